//! qmail-clean - remove queue files when qmail-send asks
//!
//! called by  qmail-start              runs as  qmailq, in queue/
//! fd 0       requests "foop/N\0" or "todo/N\0"
//! fd 1       one byte a request: + done, ! try later, x refused
//! exit       0 no more requests, 100 nobody reads the answers, 111 temporary trouble
//! jail       unlink in intd mess todo pid; no network, no exec, no create
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg};
use nix::unistd::{UnlinkatFlags, unlinkat};
use qmail::home::Home;
use qmail::queue::age::Clock;
use qmail::queue::{self, Number, Removal, lock};
use qmail::timed::{Deadline, Line, Reader};
use qmail::trouble::Trouble;
use qmail::{exits, fd, program};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// An honest request is 5 bytes, up to 20 digits and a NUL; this is the bound of the protocol.
const REQUEST_MAX: usize = 99;

/// The directory pid is looked through at start and then after this many requests.
const SWEEP_EVERY: u32 = 31;

/// The directory intd, which may be long, is looked through at start and then after this time.
const INTD_SWEEP_EVERY: Duration = Duration::from_secs(76_431);

fn main() {
    program::run("qmail-clean", "qmail-clean", clean)
}

fn clean(args: program::Args) -> Result<(), Trouble> {
    args.none()?;
    let home = Home::find()?;
    let directory = home.path("queue");
    nix::unistd::chdir(fd::path(&directory)).map_err(|e| Trouble::unable("switch to", &directory, e))?;
    wait_for_turn()?;
    Jail::of(&programs::QMAIL_CLEAN).home(&home).close()?;
    let clock = Clock::start();
    let mut requests = Reader::new(fd::IN);
    let mut until_sweep = 0;
    let mut intd_sweep = Deadline::after(Duration::ZERO);
    loop {
        if until_sweep == 0 {
            sweep_pid(&clock);
            until_sweep = SWEEP_EVERY;
        }
        if intd_sweep.passed() {
            sweep_intd(&clock);
            intd_sweep = Deadline::after(INTD_SWEEP_EVERY);
        }
        until_sweep -= 1;
        let answer =
            match requests.line(b'\0', REQUEST_MAX).map_err(|e| Trouble::unable("read", "requests", e))? {
                Line::Whole(request) => decide(&request),
                Line::TooLong => b'x',
                Line::End(_) => return Ok(()),
            };
        fd::write_all(fd::OUT, &[answer]).map_err(|_| Trouble::exit(exits::PERMANENT, ""))?;
    }
}

/// One qmail-clean a queue, for life. An earlier one may still have a request of a qmail-send that is gone:
/// carried out while the next qmail-send is at work, it would remove what belongs to another message by now.
/// It waits for the end of that one.
fn wait_for_turn() -> Result<(), Trouble> {
    let trouble = |errno| Trouble::unable("lock", "intd", errno);
    let mut directory = fd::open_directory("intd").map_err(trouble)?;
    loop {
        directory = match Flock::lock(directory, FlockArg::LockExclusive) {
            // It goes with the process; in the jail there is no giving it up.
            Ok(lock) => {
                std::mem::forget(lock);
                return Ok(());
            }
            Err((directory, Errno::EINTR)) => directory,
            Err((_, errno)) => return Err(trouble(errno)),
        }
    }
}

/// Serves one request. Nothing of it reaches a path except a number we parsed ourselves.
fn decide(request: &[u8]) -> u8 {
    let done = match Removal::parse(request) {
        Some(Removal::Message(number)) => remove_message(number),
        // model: C5 C6
        Some(Removal::Todo(number)) => {
            unlink(&queue::intd(number)).and_then(|()| unlink(&queue::todo_path(number)))
        }
        None => return b'x',
    };
    if done.is_ok() { b'+' } else { b'!' }
}

/// Removes intd and then mess: never under a writer that still holds its lock, never what has been accepted
/// since. This number may be another message's by now, and not the one that qmail-send speaks of.
fn remove_message(number: Number) -> Result<(), Errno> {
    let mess = queue::mess(number);
    // As long as this is open nobody can get the number anew.
    // model: C1
    let file = match fd::open_read(&mess) {
        Ok(file) => file,
        // Gone. What is found under these names from now on is a new message; an intd alone is swept.
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    // In this order: a writer links todo before it gives up its lock.
    // model: C2
    if lock::is_held(&file)? || !is_gone(&queue::todo_path(number)) {
        return Err(Errno::EAGAIN);
    }
    unlink(&queue::intd(number))?; // model: C3
    unlink(&mess) // model: C4
}

/// A file that is gone already counts as removed.
fn unlink(name: &str) -> Result<(), Errno> {
    match unlinkat(AT_FDCWD, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Removes what dead writers left in pid: old, and locked by nobody.
fn sweep_pid(clock: &Clock) {
    let Ok(entries) = std::fs::read_dir("pid") else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(file) = nix::sys::stat::lstat(&path) else { continue };
        if clock.is_old(&file) && unlocked(&path) {
            let _ = nix::unistd::unlink(&path); // model: C7
        }
    }
}

/// Removes envelopes that lost their message in a crash: old, without mess and without todo. Nobody else may
/// list this directory in a system home.
fn sweep_intd(clock: &Clock) {
    let Ok(entries) = std::fs::read_dir("intd") else { return };
    for entry in entries.flatten() {
        let Some(number) = queue::number(entry.file_name().as_bytes()) else { continue };
        let Ok(file) = nix::sys::stat::lstat(&entry.path()) else { continue };
        if clock.is_old(&file) && is_gone(&queue::mess(number)) && is_gone(&queue::todo_path(number)) {
            let _ = unlink(&queue::intd(number)); // model: C8
        }
    }
}

/// Certainly not there; trouble looking counts as there.
fn is_gone(name: &str) -> bool {
    nix::sys::stat::lstat(name) == Err(Errno::ENOENT)
}

fn unlocked(path: &std::path::Path) -> bool {
    fd::open_read(path.as_os_str().as_bytes()).is_ok_and(|file| lock::is_held(file) == Ok(false))
}
