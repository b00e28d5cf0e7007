//! launcher - how a session in a jail has `$QMAILQUEUE` run
//!
//! A jail is inherited, and never handed to a program that is not ours. So a program that parses what
//! strangers send parts in two where `$QMAILQUEUE` is set: the session closes its jail and has the connection;
//! the launcher has neither, and starts that one program whenever the session asks.
//!
//! They talk over a pair of packet sockets. A request is that of `door`, one byte with two descriptors, here
//! always pipes, and behind the byte what the session has learnt of its client (`origin`). The answer tells the number
//! of the request (the first is 1) and the process id, of 4 bytes each, big-endian, how the program ended (`e` exit,
//! `s` signal), with what (1 byte), and the text of its descriptor 6. The launcher looks at nothing else, and ends as
//! the session does. A session whose launcher is gone gets no message into the queue any more.
#![forbid(unsafe_code)]

use super::client::{ANSWER_MAX, Outcome, setting, start_program};
use super::door;
use super::origin::{LIST_MAX, Origin};
use crate::environ::Environ;
use crate::home::Home;
use crate::sys::process::{self, End};
use crate::sys::signal;
use crate::timed::Deadline;
use crate::trouble::Trouble;
use crate::{apart, fd};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::Pid;
use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// Before a wait that the system refused (no memory) is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// What stands in an answer before the text.
const HEAD: usize = 10;

/// The session's way to its launcher.
pub struct Launcher {
    connection: OwnedFd,
    asked: Cell<u32>,
}

/// Parts this process in two, and returns in the session. The launcher stays in here until the session ends,
/// and then ends the same way.
pub fn part(home: &Home) -> Result<Rc<Launcher>, Trouble> {
    let program = setting("QMAILQUEUE").ok_or_else(|| Trouble::temporary("QMAILQUEUE is not set"))?;
    let launcher =
        move |ours, session| Service { home, program, session, connection: Some(ours), requests: 0 }.run();
    Ok(Rc::new(Launcher { connection: apart::part(launcher)?, asked: Cell::new(0) }))
}

impl Launcher {
    /// Asks for the program, with these ends of pipes; the number of the request.
    pub fn ask(&self, message: &OwnedFd, envelope: &OwnedFd, origin: &Origin) -> u32 {
        self.asked.set(self.asked.get().wrapping_add(1));
        door::send_request_with(&self.connection, message, envelope, &origin.list());
        self.asked.get()
    }

    /// Waits for what became of a request. None when nobody is there to tell.
    pub fn outcome(&self, number: u32) -> Option<Outcome> {
        let mut packet = [0u8; HEAD + ANSWER_MAX];
        loop {
            let n = match recv(self.connection.as_raw_fd(), &mut packet, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                result => result.ok().filter(|n| *n > 0)?,
            };
            let answer = Answer::parse(packet.get(..n)?)?;
            // One that nobody waited for is of an earlier request.
            if answer.number == number {
                return Some(Outcome::of_end(answer.end, &answer.text, answer.pid));
            }
        }
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    number: u32,
    /// 0 when none was started.
    pid: u32,
    end: End,
    text: Vec<u8>,
}

impl Answer {
    fn encode(&self) -> Vec<u8> {
        let (kind, code) = match self.end {
            End::Exit(code) => (b'e', code),
            End::Crash(number) => (b's', number),
        };
        let code = u8::try_from(code).unwrap_or(u8::MAX);
        [&self.number.to_be_bytes()[..], &self.pid.to_be_bytes(), &[kind, code], &self.text].concat()
    }

    fn parse(packet: &[u8]) -> Option<Answer> {
        let (number, rest) = packet.split_first_chunk()?;
        let (pid, rest) = rest.split_first_chunk()?;
        let end = match rest {
            [b'e', code, ..] => End::Exit(i32::from(*code)),
            [b's', number, ..] => End::Crash(i32::from(*number)),
            _ => return None,
        };
        let text = rest.get(2..)?.to_vec();
        Some(Answer { number: u32::from_be_bytes(*number), pid: u32::from_be_bytes(*pid), end, text })
    }
}

/// The launcher's side.
struct Service<'a> {
    home: &'a Home,
    program: Vec<u8>,
    session: Pid,
    /// None when the session has said something that is no request: it is not listened to any more.
    connection: Option<OwnedFd>,
    requests: u32,
}

/// A program at work.
struct Running {
    pid: Pid,
    end: Option<End>,
    /// Its descriptor 6; None when that has come to its end.
    text: Option<OwnedFd>,
    said: Vec<u8>,
}

impl Service<'_> {
    /// Serves until the session has ended: how. A program that still runs then sees the end of its pipes.
    fn run(mut self) -> End {
        apart::catch_signals();
        let mut running: Option<Running> = None;
        loop {
            while let Some((pid, end)) = process::reap() {
                if pid == self.session {
                    return end;
                }
                if let Some(running) = running.as_mut().filter(|running| running.pid == pid) {
                    running.end = Some(end);
                }
            }
            apart::pass_on_signals(self.session);
            if let Some(Running { pid, end: Some(end), text: None, said }) = &running {
                self.answer(*pid, *end, said);
                running = None;
            }
            // One request after the other.
            let watched = match &running {
                Some(running) => running.text.as_ref(),
                None => self.connection.as_ref(),
            };
            let mut fds: Vec<PollFd> =
                watched.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
            match signal::wait(&mut fds, None) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => match &mut running {
                    Some(running) => running.hear(),
                    None => running = self.start(),
                },
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Takes a request and starts the program for it.
    fn start(&mut self) -> Option<Running> {
        let Some((pipes, origin)) = self.connection.as_ref().and_then(receive) else {
            self.connection = None;
            return None;
        };
        self.requests = self.requests.wrapping_add(1);
        let mut environ = Environ::inherited();
        origin.put(&mut environ);
        match start_program(self.home, &self.program, &pipes.0, &pipes.1, None, &environ) {
            Ok((pid, text)) => Some(Running { pid, end: None, text: Some(text), said: Vec::new() }),
            Err(code) => {
                self.answer(Pid::from_raw(0), End::Exit(code), b"");
                None
            }
        }
    }

    /// Never waits: an answer that does not fit any more is one that nobody reads.
    fn answer(&self, pid: Pid, end: End, text: &[u8]) {
        let pid = u32::try_from(pid.as_raw()).unwrap_or(0);
        let packet = Answer { number: self.requests, pid, end, text: text.to_vec() }.encode();
        if let Some(connection) = &self.connection {
            let _ = send(connection.as_raw_fd(), &packet, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
        }
    }
}

impl Running {
    /// Reads what it says; the first bytes count.
    fn hear(&mut self) {
        let mut chunk = [0u8; ANSWER_MAX];
        match self.text.as_ref().map(|text| fd::read(text, &mut chunk)) {
            Some(Ok(n @ 1..)) => {
                let room = ANSWER_MAX.saturating_sub(self.said.len());
                self.said.extend_from_slice(chunk.get(..n.min(room)).unwrap_or_default());
            }
            _ => self.text = None,
        }
    }
}

/// A request; None when it is anything else.
fn receive(connection: &OwnedFd) -> Option<((OwnedFd, OwnedFd), Origin)> {
    let (pipes, list) = door::receive_request_with(connection, Deadline::never(), LIST_MAX).ok()?;
    Some((pipes, Origin::parse(&list)?)).filter(|(pipes, _)| are_pipes(pipes))
}

/// Ends of pipes to read from: nothing else is handed to a program.
fn are_pipes((message, envelope): &(OwnedFd, OwnedFd)) -> bool {
    [message, envelope].into_iter().all(|passed| {
        let is_pipe = fstat(passed)
            .is_ok_and(|s| SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO);
        is_pipe && door::is_readable(passed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        for end in [End::Exit(0), End::Exit(82), End::Exit(255), End::Crash(9)] {
            for text in [b"".as_slice(), b"Dno (#5.7.1)", &[b'x'; ANSWER_MAX]] {
                let answer = Answer { number: 70_000, pid: 4_000_000, end, text: text.to_vec() };
                assert_eq!(Answer::parse(&answer.encode()), Some(answer));
            }
        }
    }

    #[test]
    fn what_is_cut_or_of_another_kind_is_no_answer() {
        let whole = Answer { number: 1, pid: 2, end: End::Exit(0), text: Vec::new() }.encode();
        assert_eq!(whole.len(), HEAD);
        for n in 0..HEAD {
            assert_eq!(Answer::parse(whole.get(..n).unwrap()), None, "{n}");
        }
        let mut other = whole;
        other[8] = b'x';
        assert_eq!(Answer::parse(&other), None);
    }

    /// A session and the launcher's end of its socket.
    fn pair() -> (Launcher, OwnedFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (Launcher { connection: theirs, asked: Cell::new(0) }, ours)
    }

    #[test]
    fn an_answer_to_an_earlier_request_is_not_taken_for_this_one() {
        let (session, ours) = pair();
        let pipe = fd::pipe().unwrap().0;
        session.ask(&pipe, &pipe, &Origin::default());
        let number = session.ask(&pipe, &pipe, &Origin::default());
        for (number, code) in [(1, 0), (2, 53)] {
            let answer = Answer { number, pid: 7, end: End::Exit(code), text: Vec::new() };
            send(ours.as_raw_fd(), &answer.encode(), MsgFlags::empty()).unwrap();
        }
        assert_eq!(session.outcome(number).unwrap().text(), b"Zqq write error or disk full (#4.3.0)");
    }

    #[test]
    fn without_a_launcher_there_is_no_outcome() {
        let (session, ours) = pair();
        let pipe = fd::pipe().unwrap().0;
        drop(ours);
        let number = session.ask(&pipe, &pipe, &Origin::default());
        assert_eq!(session.outcome(number), None);
    }

    #[test]
    fn what_the_session_knows_comes_with_its_request() {
        let (session, ours) = pair();
        let pipe = fd::pipe().unwrap().0;
        let mut origin = Origin::default();
        session.ask(&pipe, &pipe, &origin);
        origin.add(b"SMTPAUTHUSER", b"joe");
        session.ask(&pipe, &pipe, &origin);
        assert_eq!(receive(&ours).unwrap().1, Origin::default());
        assert_eq!(receive(&ours).unwrap().1, origin);
        door::send_request_with(&session.connection, &pipe, &pipe, b"PATH=/evil\0");
        assert!(receive(&ours).is_none());
    }

    #[test]
    fn only_two_pipes_are_a_request() {
        let pipe = || fd::pipe().unwrap();
        let file = || std::fs::File::open("/dev/null").unwrap().into();
        assert!(are_pipes(&(pipe().0, pipe().0)));
        assert!(!are_pipes(&(pipe().0, pipe().1)));
        assert!(!are_pipes(&(file(), pipe().0)));
        let (ours, theirs) = pair();
        assert!(!are_pipes(&(pipe().0, theirs)));
        drop(ours);
    }
}
