//! worker - a child that takes messages, one after another
//!
//! What a process needs before it takes a message (fork, signals, jail, timers) costs more than the message. So a
//! worker that took one stays a moment, and gets the next connection over a pair of sockets it shares with the
//! server. A worker that refused a message ends: whatever the trouble was, it goes with the process.
//!
//!     server → worker   the connection, with uid and pid of the caller
//!     server → worker   a byte: the server has closed its own copy
//!     worker → server   a byte: the message is taken, the answer given, everything closed
//!
//! Whoever passed a descriptor can make its last close wait for as long as it likes (SO_LINGER), also where it lies
//! unread in a connection. So the last close must never be the server's: hence the second line.
#![forbid(unsafe_code)]

use super::{BUSY_SECONDS, complain};
use jail::{Jail, programs};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use nix::unistd::{Pid, Uid};
use qmail::exits::queue as code;
use qmail::fd;
use qmail::home::Home;
use qmail::queue::accept::{self, Origin, Source};
use qmail::queue::door;
use qmail::sys::{process, signal};
use qmail::timed::{self, Deadline, Reader};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// A caller that connected must hand over its descriptors within this time.
const REQUEST_SECONDS: u64 = 60;

/// A caller that sends not one byte for so long is given up.
const STALL_SECONDS: u64 = 1200;

/// The watchdog strikes a little later than the wait it watches: by a signal that kills, also out of a read
/// from a file system that does not answer.
const WATCHDOG_SECONDS: u32 = STALL_SECONDS as u32 + 30;

/// A read that blocks although there was something to read (another reader took it) is interrupted so often,
/// to see whether the caller is still there.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// A worker without a message stays so long: longer than the pauses of a busy machine, too short to be found
/// on an idle one.
const IDLE: Duration = Duration::from_millis(250);

/// Messages in the life of a worker: whatever might gather in a process is gone after so many.
const MESSAGES_MAX: u32 = 1000;

/// uid and pid, four bytes each.
const ORIGIN_SIZE: usize = 8;

/// A child, as the server sees it.
pub struct Worker {
    pub pid: Pid,
    /// Gone when it is to end, or has.
    channel: Option<OwnedFd>,
    /// Whose message it takes.
    busy: Option<Uid>,
    /// When it is killed if it is busy, sent home if it is not.
    pub deadline: Deadline,
    left: u32,
}

impl Worker {
    /// Forks. The child keeps none of the descriptors in `servers`, which make a process the server.
    pub fn start(home: &Home, servers: &[RawFd]) -> Result<Worker, Errno> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let own = ours.as_raw_fd();
        let pid = process::fork_child(|| {
            servers.iter().chain([&own]).for_each(|number| process::close(*number));
            work(home, &theirs)
        })?;
        Ok(Worker { pid, channel: Some(ours), busy: None, deadline: Deadline::never(), left: MESSAGES_MAX })
    }

    pub fn channel(&self) -> Option<&OwnedFd> {
        self.channel.as_ref()
    }

    pub fn busy(&self) -> Option<Uid> {
        self.busy
    }

    pub fn is_free(&self) -> bool {
        self.busy.is_none() && self.channel.is_some()
    }

    /// Gives it a connection. Not given back by a worker that died meanwhile only when nobody has it any more.
    pub fn give(&mut self, connection: OwnedFd, origin: Origin) -> Result<(), OwnedFd> {
        let Some(channel) = &self.channel else { return Err(connection) };
        let mut bytes = [0u8; ORIGIN_SIZE];
        let (uid, pid) = bytes.split_at_mut(ORIGIN_SIZE / 2);
        uid.copy_from_slice(&origin.uid.as_raw().to_ne_bytes());
        pid.copy_from_slice(&origin.pid.as_raw().to_ne_bytes());
        let pass = [connection.as_raw_fd()];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let control = [ControlMessage::ScmRights(&pass)];
        if sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(&bytes)], &control, flags, None).is_err() {
            self.channel = None;
            return Err(connection);
        }
        drop(connection);
        let told = nix::sys::socket::send(channel.as_raw_fd(), b"g", flags);
        if told.is_err() {
            self.channel = None; // its end says the same to the worker, which takes this message and ends
        }
        self.busy = Some(origin.uid);
        self.deadline = Deadline::seconds(BUSY_SECONDS);
        self.left = self.left.saturating_sub(1);
        Ok(())
    }

    /// Its channel is ready: it has finished, or ended.
    pub fn hear(&mut self) {
        let Some(channel) = &self.channel else { return };
        match fd::read(channel, &mut [0u8; 1]) {
            Ok(1) if self.left > 0 => {
                self.busy = None;
                self.deadline = Deadline::after(IDLE);
            }
            Ok(1) => {
                self.busy = None;
                self.dismiss();
            }
            Ok(_) | Err(_) => self.channel = None,
        }
    }

    /// It ends as soon as it is free.
    pub fn dismiss(&mut self) {
        self.channel = None;
        self.deadline = Deadline::never();
    }
}

/// The life of the child; its exit code is the last answer.
fn work(home: &Home, channel: &OwnedFd) -> i32 {
    let ready = prepare();
    while let Ok(Some((connection, origin))) = next(channel) {
        let answer = match ready {
            Ok(()) => take_message(home, origin, &connection),
            Err(code) => code,
        };
        // model: Q16 R4
        door::send_answer(&connection, answer, b"");
        if answer != 0 {
            return answer;
        }
        // The watchdog still watches: this close may wait for what a caller passed unasked.
        drop(connection);
        nix::unistd::alarm::cancel();
        if fd::write_all(channel, b"f").is_err() {
            break;
        }
    }
    0
}

fn prepare() -> Result<(), i32> {
    use Signal::*;
    signal::ignore(&[SIGPIPE, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU, SIGXFSZ]);
    signal::exit_on(&[SIGILL, SIGABRT, SIGFPE, SIGBUS, SIGSEGV, SIGSYS], code::BUG);
    signal::die_of(&[SIGALRM]);
    if let Err(errno) = signal::interrupt_every(LOOK_EVERY) {
        complain("start a timer", errno);
        return Err(code::MEMORY);
    }
    signal::unblock();
    Jail::of(&programs::QMAIL_QUEUED_WORKER).close().map_err(|_| code::HOME)
}

/// The next connection and whose it is; None when the server has no more.
fn next(channel: &OwnedFd) -> Result<Option<(OwnedFd, Origin)>, Errno> {
    timed::wait(channel, PollFlags::POLLIN, Deadline::never())?;
    let mut bytes = [0u8; ORIGIN_SIZE];
    let received = fd::receive(channel, &mut bytes)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let [u0, u1, u2, u3, p0, p1, p2, p3] = bytes;
    let uid = Uid::from_raw(u32::from_ne_bytes([u0, u1, u2, u3]));
    let pid = Pid::from_raw(i32::from_ne_bytes([p0, p1, p2, p3]));
    let [connection] = <[OwnedFd; 1]>::try_from(received.passed).map_err(|_| Errno::EPROTO)?;
    // Also when the server is gone: its copies are, too.
    fd::read(channel, &mut [0u8; 1])?;
    Ok(Some((connection, Origin { uid, pid })))
}

/// The work of qmail-queue on the caller's descriptors.
fn take_message(home: &Home, origin: Origin, connection: &OwnedFd) -> i32 {
    let (message, envelope) = match door::receive_request(connection, Deadline::seconds(REQUEST_SECONDS)) {
        Ok(both) => both,
        Err(_) => return code::COMMUNICATION,
    };
    if !door::is_readable(&message) || !door::is_readable(&envelope) {
        return code::READ;
    }
    let watch = fd::Standard(connection.as_raw_fd());
    let mut source = Source {
        message: Reader::with_timeout(message, Duration::from_secs(STALL_SECONDS)),
        envelope: Reader::with_timeout(envelope, Duration::from_secs(STALL_SECONDS)),
        stall: Some(WATCHDOG_SECONDS),
    };
    source.message.set_watch(watch);
    source.envelope.set_watch(watch);
    accept::accept(home, origin, source).map_or_else(|refusal| refusal.0, |_| 0)
}
