//! The process that stays ready for connections (qmail::forkserver), as tcpserver sees it.

use crate::session::Call;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qmail::forkserver::{Answer, Launcher};
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
    Ready(Launcher, Pid),
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
            State::Offered(launcher) | State::Ready(launcher, _) => Some(launcher.as_fd()),
        }
    }

    /// How long at most.
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

    /// What came from there.
    pub fn news(&mut self) -> Vec<News> {
        let mut news = Vec::new();
        if self.patience().is_some_and(|left| left.is_zero())
            && let State::Ready(_, pid) = &self.state
        {
            let _ = kill(*pid, Signal::SIGKILL); // the end of the socket follows, when its children have answered
        }
        loop {
            let (State::Offered(launcher) | State::Ready(launcher, _)) = &self.state else { return news };
            match launcher.answer() {
                None => return news,
                Some(Answer::Ready(pid)) => {
                    let State::Offered(launcher) =
                        std::mem::replace(&mut self.state, State::None(Instant::now()))
                    else {
                        return news;
                    };
                    self.state = State::Ready(launcher, pid);
                }
                Some(Answer::Taken(number, pid)) => {
                    news.extend(self.take(number).map(|given| News::Taken(given, pid)));
                }
                Some(Answer::Refused(number)) => news.extend(self.take(number).map(News::Back)),
                Some(Answer::Gone) => {
                    let pause = if matches!(self.state, State::Ready(..)) { Duration::ZERO } else { RETRY };
                    self.state = State::None(Instant::now() + pause);
                    news.extend(self.given.drain(..).map(News::Back));
                }
            }
        }
    }

    fn take(&mut self, number: u64) -> Option<Given> {
        let at = self.given.iter().position(|given| given.number == number)?;
        self.given.remove(at)
    }
}
