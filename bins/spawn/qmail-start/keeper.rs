//! keeper - a small child of qmail-start that sees to it that qmail-queued runs
//!
//! runs as    qmailq (own home: the owner)
//! touches    run/queue.lock (tries it); starts qmail-queued, whose lines on fd 2 it relays to the log
//! ends       with qmail-send; qmail-queued goes on, so that mail is accepted while qmail-send is down
//!
//! When the lock is free nobody keeps the door: qmail-queued is started, and again when it ends. When
//! somebody else holds it (an earlier start's, or a service of its own), the keeper waits until it is
//! free, leaves a supervisor some seconds to restart what it watches, and looks again.
#![forbid(unsafe_code)]

use crate::check_runnable;
use crate::users::User;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, getpid, getppid};
use qmail::fd;
use qmail::home::Home;
use qmail::program;
use qmail::queue::door;
use qmail::sys::process::{Command, End, fork_child, reap};
use qmail::sys::{memory, signal};
use qmail::trouble::{Trouble, wording};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

const LOCK: &str = door::LOCK;

/// Between looks at a lock somebody else holds, and at whether qmail-send still lives (its death is
/// also a signal, which a change of uid between the two may keep from us).
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A supervisor whose qmail-queued ended restarts it within this time.
const GRACE: Duration = Duration::from_secs(5);

/// Before qmail-queued is started again, so that one that cannot run does not take the processor.
const PAUSE: Duration = Duration::from_secs(1);

/// A longer line is relayed in pieces: one write of it stays whole among others' lines.
const LINE_MAX: usize = 1000;

/// Forks the keeper. `log` is where lines go: the logger, or fd 1.
pub fn start(home: &Home, user: User, log: Option<&OwnedFd>) -> Result<(), Trouble> {
    let parent = getpid();
    let keep = || match prepare(home, &user, log) {
        Ok(keeper) => keeper.keep(parent),
        Err(errno) => {
            let _ = fd::write_all(
                fd::ERR,
                format!("qmail-start: unable to keep qmail-queued: {}\n", wording(errno)).as_bytes(),
            );
            qmail::exits::TEMPORARY
        }
    };
    fork_child(keep).map(drop).map_err(|e| Trouble::temporary("unable to fork").because(e))
}

struct Keeper {
    program: Vec<u8>,
    lock: Vec<u8>,
    log: OwnedFd,
    null: OwnedFd,
}

/// Becomes the queue's user and lets go of every descriptor but the log.
fn prepare(home: &Home, user: &User, log: Option<&OwnedFd>) -> Result<Keeper, Errno> {
    let log = match log {
        Some(log) => nix::unistd::dup(log)?,
        None => nix::unistd::dup(fd::OUT)?,
    };
    nix::fcntl::fcntl(&log, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    let null = open(fd::path(b"/dev/null"), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    user.become_now()?;
    memory::die_with_parent(Signal::SIGTERM as i32); // a change of uid would undo it
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    umask(Mode::from_bits_truncate(0o022));
    signal::catch(&[Signal::SIGCHLD]);
    Ok(Keeper { program: program::find_in(home, "qmail-queued"), lock: home.path(LOCK), log, null })
}

/// What a wait ended with.
enum Event {
    ParentGone,
    Time,
}

impl Keeper {
    fn keep(&self, parent: Pid) -> i32 {
        let mut told = String::new(); // an obstacle is said once, and waited for
        while getppid() == parent {
            let event = match self.turn(parent) {
                Ok(event) => {
                    told.clear();
                    event
                }
                Err(alert) => {
                    if alert != told {
                        self.say(&alert);
                    }
                    told = alert;
                    sleep(GRACE, parent)
                }
            };
            if let Event::ParentGone = event {
                break;
            }
        }
        qmail::exits::SUCCESS
    }

    /// Runs qmail-queued, or waits for the one that somebody else runs. The error is a line for the log.
    fn turn(&self, parent: Pid) -> Result<Event, String> {
        if check_runnable(&self.program).is_err() {
            return Err(format!("alert: unable to run {}\n", String::from_utf8_lossy(&self.program)));
        }
        if !self.lock_is_free().map_err(|e| format!("alert: unable to lock {LOCK}: {}\n", wording(e)))? {
            return Ok(self.wait_for_lock(parent));
        }
        Ok(match self.run_queued(parent) {
            Some(end) => {
                self.say(&ended(end));
                sleep(PAUSE, parent)
            }
            None => Event::ParentGone,
        })
    }

    /// Whether nobody holds the lock. It is not kept: qmail-queued takes it itself.
    fn lock_is_free(&self) -> Result<bool, Errno> {
        match Flock::lock(door::open_lock(&self.lock)?, FlockArg::LockExclusiveNonblock) {
            Ok(_) => Ok(true),
            Err((_, Errno::EAGAIN)) => Ok(false),
            Err((_, errno)) => Err(errno),
        }
    }

    /// Somebody else keeps the door. The wait is made of looks, not of a blocking lock, which would hold
    /// on when qmail-send is gone.
    fn wait_for_lock(&self, parent: Pid) -> Event {
        while matches!(self.lock_is_free(), Ok(false)) {
            if let Event::ParentGone = sleep(LOOK_EVERY, parent) {
                return Event::ParentGone;
            }
        }
        sleep(GRACE, parent)
    }

    /// Runs qmail-queued until it ends; None when qmail-send ended first.
    fn run_queued(&self, parent: Pid) -> Option<End> {
        let started = fd::pipe().and_then(|(read, write)| {
            let command = Command::new(&self.program, &["qmail-queued"])
                .descriptor(&self.null, 0)
                .descriptor(&self.null, 1)
                .descriptor(&write, 2)
                .on_failure(qmail::exits::TEMPORARY);
            Ok((read, command.spawn()?))
        });
        let Ok((lines, child)) = started else { return Some(End::Exit(qmail::exits::TEMPORARY)) };
        let mut relay = Relay { log: &self.log, line: Vec::new() };
        let mut open = true;
        loop {
            if let Some((_, end)) = std::iter::from_fn(reap).find(|(pid, _)| *pid == child) {
                while open && ready(&lines, Duration::ZERO) {
                    open = relay.pass(&lines); // its last words
                }
                relay.finish();
                // Ended together, as when all is stopped: that needs no alert. (qmail-send's jail keeps
                // its death's signal from us.)
                return (getppid() == parent).then_some(end);
            }
            if getppid() != parent {
                return None;
            }
            if !open {
                let _ = signal::wait(&mut [], Some(LOOK_EVERY));
            } else if ready(&lines, LOOK_EVERY) {
                open = relay.pass(&lines);
            }
        }
    }

    fn say(&self, line: &str) {
        let _ = fd::write_all(&self.log, line.as_bytes());
    }
}

fn ended(end: End) -> String {
    match end {
        End::Exit(code) => format!("alert: qmail-queued ended (exit {code}), starting it again\n"),
        End::Crash(number) => format!("alert: qmail-queued ended (signal {number}), starting it again\n"),
    }
}

/// Sleeps, but not longer than qmail-send lives.
fn sleep(time: Duration, parent: Pid) -> Event {
    let end = Instant::now() + time;
    loop {
        if getppid() != parent {
            return Event::ParentGone;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Event::Time;
        }
        let _ = signal::wait(&mut [], Some(left.min(LOOK_EVERY)));
        while reap().is_some() {}
    }
}

/// Whether there is something to read within this time.
fn ready(lines: &OwnedFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(lines.as_fd(), PollFlags::POLLIN)];
    signal::wait(&mut fds, Some(time)).is_ok_and(|n| n > 0)
}

/// Passes lines on, each in one write.
struct Relay<'a> {
    log: &'a OwnedFd,
    line: Vec<u8>,
}

impl Relay<'_> {
    /// Reads once; false at the end.
    fn pass(&mut self, lines: &OwnedFd) -> bool {
        let mut chunk = [0u8; 1024];
        match fd::read(lines, &mut chunk) {
            Ok(0) | Err(_) => false,
            Ok(n) => {
                self.take(chunk.get(..n).unwrap_or_default());
                true
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() >= LINE_MAX {
                self.finish();
            }
        }
    }

    fn finish(&mut self) {
        if !self.line.is_empty() {
            if !self.line.ends_with(b"\n") {
                self.line.push(b'\n');
            }
            let _ = fd::write_all(self.log, &self.line);
            self.line.clear();
        }
    }
}
