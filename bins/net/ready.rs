//! The process that stays ready for connections (qmail::forkserver), as tcpserver sees it.
//!
//! Programs that read what strangers send are forked from it: it may have been taken over, and say anything. What no
//! honest one says is the end of it. It cannot have another process taken for a session or killed, keep a place
//! for longer than a process of its own lives, or hold up anybody for longer than PATIENCE.

use crate::session::Call;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qmail::forkserver::{Answer, Launcher};
use qmail::sys::process;
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Programs of ours that know the offer. To others it would be one more descriptor.
const KNOW_IT: [&[u8]; 1] = [b"qmail-smtpd"];

/// Behind an offer that nobody took, or a server that could not be: how long every connection gets a program.
const RETRY: Duration = Duration::from_secs(10);

/// A server that has not taken a connection after so long is stopped or worse, and is killed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Handed over and not answered; more wait in the backlog of the port.
const UNANSWERED_MAX: usize = 32;

/// A connection that was handed over.
pub struct Given {
    pub number: u64,
    pub stream: TcpStream,
    pub remote: SocketAddr,
    pub call: Call,
    since: Instant,
}

/// What has become of connections.
pub enum News {
    /// A process has it.
    Taken(Given, Pid),
    /// It needs a program.
    Back(Given),
}

enum State {
    /// Nobody. An offer may be made from then on.
    None(Instant),
    Offered(Launcher),
    /// The process is known until it is reaped: later its number may be another one's.
    Ready(Launcher, Option<Pid>),
    /// Given up; what was said before is still to be read.
    Last(Launcher),
}

pub struct Ready {
    state: State,
    given: VecDeque<Given>,
    last: u64,
    wanted: bool,
}

impl Ready {
    pub fn new(program: &[Vec<u8>], is_quick: bool) -> Ready {
        let name = program.first().and_then(|path| path.rsplit(|b| *b == b'/').next()).unwrap_or_default();
        let wanted = is_quick && KNOW_IT.contains(&name);
        Ready { state: State::None(Instant::now()), given: VecDeque::new(), last: 0, wanted }
    }

    /// For the program about to be started: a socket to offer it, when there is nobody yet.
    pub fn offer(&mut self) -> Option<OwnedFd> {
        match &self.state {
            State::None(from) if self.wanted && Instant::now() >= *from => {}
            _ => return None,
        }
        let (launcher, theirs) = Launcher::offer().ok()?;
        self.state = State::Offered(launcher);
        Some(theirs)
    }

    /// What to wait for.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::None(_) => None,
            State::Offered(launcher) | State::Ready(launcher, _) | State::Last(launcher) => {
                Some(launcher.as_fd())
            }
        }
    }

    /// How long at most. The time is over once: who was given up leaves nothing to wait for.
    pub fn patience(&self) -> Option<Duration> {
        let first = self.given.front()?;
        Some(PATIENCE.saturating_sub(first.since.elapsed()))
    }

    pub fn takes_more(&self) -> bool {
        matches!(self.state, State::Ready(..)) && self.given.len() < UNANSWERED_MAX
    }

    /// Hands a connection over: its number, or the connection back.
    pub fn give(&mut self, stream: TcpStream, remote: SocketAddr, call: Call) -> Result<u64, TcpStream> {
        let State::Ready(launcher, _) = &self.state else { return Err(stream) };
        self.last += 1;
        match launcher.give(self.last, &stream, &call.environ) {
            Ok(()) => {
                let since = Instant::now();
                self.given.push_back(Given { number: self.last, stream, remote, call, since });
                Ok(self.last)
            }
            Err(_) => Err(stream),
        }
    }

    /// A child has been reaped.
    pub fn ended(&mut self, ended: Pid) {
        if let State::Ready(_, pid) = &mut self.state
            && *pid == Some(ended)
        {
            *pid = None;
        }
    }

    /// The next thing that has become of a connection, to be asked for until there is none. `is_free` knows whether a
    /// process can have taken one: a child that has none yet.
    pub fn news(&mut self, is_free: impl Fn(Pid) -> bool) -> Option<News> {
        loop {
            let (launcher, server) = match &self.state {
                State::None(_) => return self.given.pop_front().map(News::Back),
                State::Ready(launcher, server) => (launcher, *server),
                State::Offered(launcher) | State::Last(launcher) => (launcher, None),
            };
            match launcher.answer() {
                // Judged only now: it may be we who were stopped.
                None if self.patience().is_some_and(|left| left.is_zero()) => self.give_up(),
                None => return None,
                Some(Answer::Ready(pid)) => self.begin(pid, process::is_child(pid) && is_free(pid)),
                Some(Answer::Taken(number, pid)) if is_free(pid) && server != Some(pid) => {
                    match self.take(number) {
                        Some(given) => return Some(News::Taken(given, pid)),
                        None => self.give_up(),
                    }
                }
                Some(Answer::Refused(number)) => match self.take(number) {
                    Some(given) => return Some(News::Back(given)),
                    None => self.give_up(),
                },
                Some(Answer::Taken(..) | Answer::Wrong) => self.give_up(),
                Some(Answer::Gone) => {
                    let pause = if matches!(self.state, State::Ready(..)) { Duration::ZERO } else { RETRY };
                    self.state = State::None(Instant::now() + pause);
                }
            }
        }
    }

    fn begin(&mut self, pid: Pid, is_believed: bool) {
        let now = Instant::now();
        match std::mem::replace(&mut self.state, State::None(now)) {
            State::Offered(launcher) if is_believed => self.state = State::Ready(launcher, Some(pid)),
            state => {
                self.state = state;
                self.give_up();
            }
        }
    }

    /// It is stopped, or worse. Connections that it has not answered for by now get programs: the processes it may yet
    /// have made for them are not heard, and end.
    fn give_up(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::None(Instant::now())) {
            State::Offered(launcher) => {
                launcher.stop();
                State::Last(launcher)
            }
            State::Ready(launcher, pid) => {
                if let Some(pid) = pid {
                    let _ = kill(pid, Signal::SIGKILL);
                }
                launcher.stop();
                State::Last(launcher)
            }
            state @ (State::Last(_) | State::None(_)) => state,
        };
    }

    fn take(&mut self, number: u64) -> Option<Given> {
        let at = self.given.iter().position(|given| given.number == number)?;
        self.given.remove(at)
    }
}
