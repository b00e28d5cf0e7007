//! The child of a request: it starts the checker, feeds it, and ends it when the front is gone.
//!
//! It is no session itself: the checker is its child, in a process group of its own, and becomes the
//! program. When qmail-authd has ended meanwhile, the child gives the answer in its place.

use crate::log;
use nix::errno::Errno;
use nix::libc::PIPE_BUF;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getppid, setsid};
use qmail::auth::door::{self, Answer};
use qmail::auth::{Remarks, SIGNATURE_FD, Secret};
use qmail::sys::process::{self, Command, End};
use qmail::sys::signal;
use qmail::timed::Deadline;
use qmail::trouble::{Trouble, wording};
use qmail::{environ::Environ, exits, fd};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Between asking a session to end and killing it, and between that and killing it again.
const GRACE_SECONDS: u64 = 10;

/// A refusal is held back so long when qmail-authd is not there any more to count failures.
const ORPHAN_DELAY: Duration = Duration::from_secs(15);

/// All that a session is made of.
pub struct Session<'a> {
    pub connection: &'a OwnedFd,
    /// The connection it serves: in, out.
    pub passed: &'a [OwnedFd; 2],
    pub fields: Secret,
    pub program: Vec<u8>,
    pub words: &'a [Vec<u8>],
    pub environ: Environ,
    pub directory: Vec<u8>,
    pub parent: Pid,
    /// Where a checker puts the signature of SCRAM, and the account.
    pub remarks: Option<&'a Remarks>,
}

/// Runs the session to its end; gives the answer.
pub fn run(session: Session<'_>) -> i32 {
    // What a terminal sends to the group of qmail-authd is not meant for sessions.
    let _ = setsid();
    signal::take(Signal::SIGTERM); // nor what came for it
    let (parent, connection, remarks) = (session.parent, session.connection, session.remarks);
    let code = guard(session);
    if getppid() != parent {
        if crate::is_refusal(code) {
            std::thread::sleep(ORPHAN_DELAY);
        }
        door::send_answer(connection, &Answer::with(code, remarks));
    }
    code
}

fn guard(session: Session<'_>) -> i32 {
    let Session { connection, passed, fields, program, words, environ, directory, remarks, .. } = session;
    let [input, output] = passed;
    let name = words.first().map(Vec::as_slice).unwrap_or_default();
    let started = fd::pipe().and_then(|(read, write)| {
        fd::set_nonblocking(&write, true)?;
        let command = Command::new(&program, words)
            .environ(&environ)
            .directory(&directory)
            .descriptor(input, 0)
            .descriptor(output, 1)
            .descriptor(&read, 3);
        let command = match remarks {
            Some(remarks) => command.descriptor(remarks, SIGNATURE_FD),
            None => command,
        };
        let pid = process::fork_child(|| {
            let _ = setsid(); // a group of its own, that can be ended whole
            log::complain(&Trouble::unable("run", name, command.exec()));
            exits::TEMPORARY
        })?;
        Ok((pid, write))
    });
    // From here on only the session and the front hold the connection to the client.
    passed.iter().for_each(|number| process::close(number.as_raw_fd()));
    let end = match started {
        Ok((pid, write)) => watch(pid, connection, write, fields),
        Err(errno) => {
            log::complain(&Trouble::temporary(format!("unable to fork: {}", wording(errno))));
            Ok(End::Exit(exits::TEMPORARY))
        }
    };
    match end {
        Ok(End::Exit(code)) => code,
        Ok(End::Crash(number)) => {
            log::complain(&Trouble::temporary(
                [name, format!(" died from signal {number}").as_bytes()].concat(),
            ));
            exits::TEMPORARY
        }
        Err(_) => exits::TEMPORARY,
    }
}

/// Feeds the checker and waits for its end, or for the end of who wants it.
fn watch(pid: Pid, connection: &OwnedFd, write: OwnedFd, mut fields: Secret) -> Result<End, Errno> {
    let mut feed = (!fields.is_empty()).then_some(write);
    let mut fed = 0;
    let mut kill_at: Option<Deadline> = None;
    while !has_ended(pid) {
        let mut fds = Vec::with_capacity(2);
        if kill_at.is_none() {
            fds.push(PollFd::new(connection.as_fd(), PollFlags::empty())); // its end comes unasked
        }
        if let Some(write) = &feed {
            fds.push(PollFd::new(write.as_fd(), PollFlags::POLLOUT));
        }
        let ready = signal::wait(&mut fds, kill_at.and_then(|deadline| deadline.left())).is_ok_and(|n| n > 0);
        let mut any = fds.iter().map(|fd| ready && fd.any().unwrap_or(false));
        let left = kill_at.is_none() && any.next().unwrap_or(false);
        let writable = any.next().unwrap_or(false);
        drop(any);
        signal::take(Signal::SIGCHLD);
        if let Some(write) = feed.as_ref().filter(|_| writable) {
            match nix::unistd::write(write, piece(&fields, fed)) {
                Ok(n) => fed += n,
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(_) => fed = fields.len(), // a checker may decide without having read all
            }
            if fed >= fields.len() {
                fields = Secret::default();
                feed = None;
            }
        }
        if kill_at.is_none() && (left || signal::take(Signal::SIGTERM)) {
            end(pid, Signal::SIGTERM);
            kill_at = Some(Deadline::seconds(GRACE_SECONDS));
        } else if kill_at.is_some_and(|deadline| deadline.passed()) {
            end(pid, Signal::SIGKILL);
            kill_at = Some(Deadline::seconds(GRACE_SECONDS));
        }
    }
    if kill_at.is_some() {
        // What the session started dies with it. Its number cannot be another's yet: nobody waited for it.
        end(pid, Signal::SIGKILL);
    }
    process::wait(pid)
}

/// The next bytes for a pipe.
fn piece(fields: &[u8], from: usize) -> &[u8] {
    fields.get(from..fields.len().min(from + PIPE_BUF)).unwrap_or_default()
}

fn has_ended(pid: Pid) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        match waitid(Id::Pid(pid), flags) {
            Ok(WaitStatus::StillAlive) => return false,
            Err(Errno::EINTR) => {}
            _ => return true, // an end that nix has no word for is one too
        }
    }
}

/// To the session's group, and to itself should it have left that.
fn end(pid: Pid, signal: Signal) {
    let _ = kill(Pid::from_raw(-pid.as_raw()), signal);
    let _ = kill(pid, signal);
}
