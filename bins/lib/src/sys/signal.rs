//! Signals: caught ones become flags that a loop asks for between its waits.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

static SEEN: AtomicU64 = AtomicU64::new(0);
static EXIT_CODE: AtomicI32 = AtomicI32::new(111);
static ALARM_CODE: AtomicI32 = AtomicI32::new(111);

extern "C" fn note(number: libc::c_int) {
    SEEN.fetch_or(1 << (number & 63), Ordering::SeqCst);
}

extern "C" fn leave(_: libc::c_int) {
    // SAFETY: _exit is async-signal-safe and does not return.
    unsafe { libc::_exit(EXIT_CODE.load(Ordering::SeqCst)) }
}

extern "C" fn leave_on_alarm(_: libc::c_int) {
    // SAFETY: as above.
    unsafe { libc::_exit(ALARM_CODE.load(Ordering::SeqCst)) }
}

fn install(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: our handlers only touch atomics or call _exit, both async-signal-safe.
    let _ = unsafe { sigaction(signal, &action) };
}

/// Notes these signals from now on and blocks them outside `wait`, so that none is missed between
/// a look at the flags and the sleep.
pub fn catch(signals: &[Signal]) {
    let mut set = SigSet::empty();
    for signal in signals {
        set.add(*signal);
    }
    let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None);
    for signal in signals {
        install(*signal, SigHandler::Handler(note));
    }
}

/// Blocks these signals and gives the mask as it was: around a fork whose two sides treat them differently.
pub fn hold(signals: &[Signal]) -> SigSet {
    let mut before = SigSet::empty();
    let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&signals.iter().copied().collect()), Some(&mut before));
    before
}

/// Undoes `hold`.
pub fn release(before: &SigSet) {
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(before), None);
}

/// Whether the signal came since the last time this was asked.
pub fn take(signal: Signal) -> bool {
    let bit = 1 << (signal as i32 & 63);
    SEEN.fetch_and(!bit, Ordering::SeqCst) & bit != 0
}

/// poll(2) during which the caught signals may arrive; EINTR when one did.
pub fn wait(fds: &mut [nix::poll::PollFd<'_>], timeout: Option<std::time::Duration>) -> Result<i32, Errno> {
    let timeout = timeout.map(nix::sys::time::TimeSpec::from);
    nix::poll::ppoll(fds, timeout, Some(SigSet::empty()))
}

/// Makes a signal end the process at once with this exit code. One code a process.
pub fn exit_on(signals: &[Signal], code: i32) {
    EXIT_CODE.store(code, Ordering::SeqCst);
    for signal in signals {
        install(*signal, SigHandler::Handler(leave));
    }
}

/// Makes SIGALRM end the process at once with this exit code. Nothing is cleaned up in a handler.
pub fn exit_on_alarm(code: i32) {
    ALARM_CODE.store(code, Ordering::SeqCst);
    install(Signal::SIGALRM, SigHandler::Handler(leave_on_alarm));
}

/// From now on a signal comes every so often and does nothing but interrupt a call that blocks (EINTR), so
/// that its caller looks at deadlines and peers again. For life; a child does not inherit it.
pub fn interrupt_every(period: std::time::Duration) -> Result<(), Errno> {
    use nix::sys::signal::{SigEvent, SigevNotify};
    use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
    let signal = Signal::SIGUSR1;
    install(signal, SigHandler::Handler(note));
    let event = SigEvent::new(SigevNotify::SigevSignal { signal, si_value: 0 });
    let mut timer = Timer::new(nix::time::ClockId::CLOCK_MONOTONIC, event)?;
    timer.set(Expiration::Interval(period.into()), TimerSetTimeFlags::empty())?;
    std::mem::forget(timer); // its end would stop it
    Ok(())
}

/// Gives signals their default action, which for most is to end the process: one that cannot be caught in a
/// call that nothing but death interrupts.
pub fn die_of(signals: &[Signal]) {
    for signal in signals {
        install(*signal, SigHandler::SigDfl);
    }
}

pub fn ignore(signals: &[Signal]) {
    for signal in signals {
        install(*signal, SigHandler::SigIgn);
    }
}

/// Unblocks everything and gives the signals qmail programs touch their default action again:
/// before every exec, and at the start of programs a careless parent may have started.
pub fn defaults() {
    use Signal::*;
    for signal in
        [SIGPIPE, SIGALRM, SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGCHLD, SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF]
    {
        install(signal, SigHandler::SigDfl);
    }
    unblock();
}

/// Unblocks every signal.
pub fn unblock() {
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}
