//! launcher - how a session in a jail has logins checked where it may not do it itself
//!
//! A jail is inherited, and never handed to a checker. So a program that parses what strangers send parts in two:
//! the session closes its jail and has the connection; the launcher parses nothing and runs the checker
//! whenever the session asks, or asks qmail-authd for it.
//!
//! They talk over a pair of packet sockets, in the words of `door`. A request's services are not looked at: the
//! launcher runs what it was told before the session began. It ends as the session does.
#![forbid(unsafe_code)]

use super::Remarks;
use super::door::{self, Answer, RateRequest, Received, Request};
use crate::environ::Environ;
use crate::home::Home;
use crate::sys::memory;
use crate::sys::process::{self, Command, End};
use crate::sys::signal;
use crate::timed::Deadline;
use crate::trouble::Trouble;
use crate::{apart, exits, fd, program};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// A checker that takes longer is not checking any more: the slowest ask a directory over the network.
const CHECK_SECONDS: u64 = 120;

/// Before a wait that the system refused (no memory) is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// How logins are checked.
#[derive(Debug, Clone)]
pub struct Way {
    pub home: Home,
    /// By these words, run here, the classic way; None: by qmail-authd of the home.
    pub run: Option<Vec<Vec<u8>>>,
}

/// The session's way to its launcher.
#[derive(Debug)]
pub struct Launcher {
    connection: OwnedFd,
}

/// Parts this process in two, and returns in the session, as `user` if there is one to become. The launcher
/// stays in here until the session ends, and then ends the same way. `name` is the program's, for the log.
pub fn part(name: &'static str, way: Way, user: Option<(Uid, Gid)>) -> Result<Launcher, Trouble> {
    let launcher = move |ours, session| Service { name, way, session, connection: Some(ours) }.run();
    let connection = apart::part(launcher)?;
    if let Some((uid, gid)) = user {
        process::become_user(uid, gid, &[gid])
            .map_err(|e| Trouble::unable("become", "the user who talks to the network", e))?;
        memory::undumpable(); // a new uid may have made it dumpable
    }
    Ok(Launcher { connection })
}

impl Launcher {
    /// Has a login checked, with the connection it is for.
    pub fn ask(&self, request: Request, input: impl AsFd, output: impl AsFd) -> Result<Answer, Trouble> {
        door::ask_at(&self.connection, request, input, output)
    }

    /// Whether an account may send; None when nobody is there to tell.
    pub fn may_send(&self, request: &RateRequest) -> Option<bool> {
        door::may_send_at(&self.connection, request)
    }
}

struct Service {
    name: &'static str,
    way: Way,
    session: Pid,
    /// None when the session has said something that is no request: it is not listened to any more.
    connection: Option<OwnedFd>,
}

/// A checker at work.
struct Running {
    pid: Pid,
    remarks: Remarks,
    until: Deadline,
}

impl Service {
    fn run(mut self) -> End {
        apart::catch_signals();
        let mut running: Option<Running> = None;
        loop {
            signal::take(Signal::SIGCHLD);
            while let Some((pid, end)) = process::reap() {
                if pid == self.session {
                    if let Some(running) = &running {
                        let _ = kill(running.pid, Signal::SIGKILL); // nobody wants to know any more
                    }
                    return end;
                }
                if let Some(checker) = running.take_if(|running| running.pid == pid) {
                    self.answer(end, &checker.remarks);
                }
            }
            apart::pass_on_signals(self.session);
            let mut fds = Vec::with_capacity(1);
            let mut left = None;
            match (&running, &self.connection) {
                (Some(running), _) if running.until.passed() => {
                    let _ = kill(running.pid, Signal::SIGKILL);
                    left = Some(PAUSE);
                }
                (Some(running), _) => left = running.until.left(),
                (None, Some(connection)) => fds.push(PollFd::new(connection.as_fd(), PollFlags::POLLIN)),
                (None, None) => {}
            }
            match signal::wait(&mut fds, left) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => running = self.take(),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Takes a request and starts the checker for it, or has it answered.
    fn take(&mut self) -> Option<Running> {
        let received = self.connection.as_ref().map(door::receive);
        let (request, input, output) = match received {
            Some(Ok(Received::Request(request, input, output))) => (request, input, output),
            Some(Ok(Received::Rate(request))) => {
                let code = match door::may_send(&self.way.home, &request) {
                    Some(true) => exits::SUCCESS,
                    Some(false) => 1,
                    None => exits::TEMPORARY,
                };
                self.say(&Answer::of(code));
                return None;
            }
            Some(Err(Errno::EAGAIN | Errno::EINTR)) => return None,
            _ => {
                self.connection = None;
                return None;
            }
        };
        let checked = match &self.way.run {
            Some(words) => match start(words, request, &input, &output) {
                Ok(running) => return Some(running),
                Err(trouble) => Err(trouble),
            },
            None => door::ask(&self.way.home, request, input, output),
        };
        let answer = checked.unwrap_or_else(|trouble| {
            let line = [self.name.as_bytes(), b": warning: ", &trouble.text(), b"\n"].concat();
            let _ = fd::write_all(fd::ERR, &line);
            Answer::of(exits::TEMPORARY)
        });
        self.say(&answer);
        None
    }

    fn answer(&self, end: End, remarks: &Remarks) {
        self.say(&match end {
            End::Exit(code) => Answer::with(code, Some(remarks)),
            End::Crash(_) => Answer::of(exits::TEMPORARY),
        });
    }

    fn say(&self, answer: &Answer) {
        if let Some(connection) = &self.connection {
            door::send_answer(connection, answer);
        }
    }
}

/// Starts a checker with what it is to be told.
fn start(words: &[Vec<u8>], request: Request, input: &OwnedFd, output: &OwnedFd) -> Result<Running, Trouble> {
    let name = words.first().map(Vec::as_slice).unwrap_or_default();
    let trouble = |errno| Trouble::unable("run", name, errno);
    let path = program::find(name).ok_or_else(|| trouble(Errno::ENOENT))?;
    let remarks = Remarks::with_account(&request.fields).map_err(trouble)?;
    let (read, write) = fd::pipe().map_err(trouble)?;
    // All of it fits into a pipe; where the system keeps pipes smaller, nobody shall wait.
    fd::set_nonblocking(&write, true).map_err(trouble)?;
    if nix::unistd::write(&write, &request.fields) != Ok(request.fields.len()) {
        return Err(trouble(Errno::EMSGSIZE));
    }
    drop(write);
    let mut environ = Environ::inherited();
    request.environ.iter().for_each(|(name, value)| environ.set(name, value));
    remarks.announce(&mut environ);
    let command = Command::new(path, words)
        .environ(&environ)
        .on_failure(exits::TEMPORARY)
        .descriptor(input, 0)
        .descriptor(output, 1)
        .descriptor(&read, 3)
        .descriptor(&remarks, super::SIGNATURE_FD);
    let pid = command.spawn().map_err(trouble)?;
    Ok(Running { pid, remarks, until: Deadline::seconds(CHECK_SECONDS) })
}
