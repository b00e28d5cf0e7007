//! client - how a program hands a message to the queue
//!
//! By `$QMAILQUEUE` if that is set (in a jail by the launcher of this session); else over the socket of qmail-queued,
//! without starting a program; else, where this process may write the queue itself, by `bin/qmail-queue`. `QMAILDOOR`
//! set to `socket` or `direct` leaves only that one of the last two.
#![forbid(unsafe_code)]

use super::door;
use super::launcher::Launcher;
use super::origin::Origin;
use crate::envelope::{self, Envelope};
use crate::environ::Environ;
use crate::exits::queue as code;
use crate::home::Home;
use crate::sys::process::{self, Command, End};
use crate::timed::{self, Deadline, Writer};
use crate::{environ, fd};
use nix::errno::Errno;
use nix::sys::stat::stat;
use nix::unistd::{Pid, Uid};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is on disk. `qp` is the process id the log shows for it.
    Queued { qp: u32 },
    /// Refused for good; the text is for users.
    Permanent(Vec<u8>),
    /// Try again later; the text is for users.
    Temporary(Vec<u8>),
}

impl Outcome {
    /// Empty for success, else the class letter `D` or `Z` and the text.
    pub fn text(&self) -> Vec<u8> {
        match self {
            Outcome::Queued { .. } => Vec::new(),
            Outcome::Permanent(text) => [b"D", text.as_slice()].concat(),
            Outcome::Temporary(text) => [b"Z", text.as_slice()].concat(),
        }
    }

    /// From a string that starts with its class letter.
    fn of_text(text: &[u8]) -> Outcome {
        match text.split_first() {
            Some((b'D', rest)) => Outcome::Permanent(rest.to_vec()),
            Some((_, rest)) => Outcome::Temporary(rest.to_vec()),
            None => Outcome::Temporary(Vec::new()),
        }
    }

    /// From the end of a qmail-queue and what it wrote to descriptor 6.
    pub fn of_end(end: End, custom: &[u8], qp: u32) -> Outcome {
        match end {
            End::Exit(0) => Outcome::Queued { qp },
            End::Exit(code::CUSTOM) if custom.len() > 2 && matches!(custom.first(), Some(b'D' | b'Z')) => {
                Outcome::of_text(custom)
            }
            End::Exit(code) => Outcome::of_text(exit_text(code).as_bytes()),
            End::Crash(_) => Outcome::of_text(b"Zqq crashed (#4.3.0)"),
        }
    }
}

/// What users are told for an exit code of qmail-queue.
fn exit_text(code: i32) -> &'static str {
    match code {
        11 | 115 => "Denvelope address too long for qq (#5.1.3)",
        31 => "Dmail server permanently rejected message (#5.3.0)",
        51 => "Zqq out of memory (#4.3.0)",
        52 => "Zqq timeout (#4.3.0)",
        53 => "Zqq write error or disk full (#4.3.0)",
        54 => "Zqq read error (#4.3.0)",
        55 => "Zqq unable to read configuration (#4.3.0)",
        56 => "Zqq trouble making network connection (#4.3.0)",
        61 => "Zqq trouble in home directory (#4.3.0)",
        62..=66 => "Zqq trouble creating files in queue (#4.3.0)",
        71 => "Zmail server temporarily rejected message (#4.3.0)",
        72 => "Zconnection to mail server timed out (#4.4.1)",
        73 => "Zconnection to mail server rejected (#4.4.1)",
        74 => "Zcommunication with mail server failed (#4.4.2)",
        81 | 91 => "Zqq internal bug (#4.3.0)",
        120 => "Zunable to exec qq (#4.3.0)",
        11..=40 => "Dqq permanent problem (#5.3.0)",
        _ => "Zqq temporary problem (#4.3.0)",
    }
}

fn refused(code: i32) -> Outcome {
    Outcome::of_end(End::Exit(code), b"", 0)
}

/// Which way leads into the queue.
enum Way {
    Program(Vec<u8>),
    Socket(OwnedFd),
}

/// Whether this process may write the queue: its effective uid owns `queue/mess`.
pub fn owns_queue(home: &Home) -> Result<bool, i32> {
    match stat(fd::path(&home.path("queue/mess"))) {
        Ok(mess) => Ok(mess.st_uid == Uid::effective().as_raw()),
        Err(Errno::ENOENT) => Err(code::QUEUE_DIR),
        Err(_) => Ok(false), // not even visible: somebody else's
    }
}

/// A variable that leads the way; not in a program with more rights than its caller has.
pub(super) fn setting(name: &str) -> Option<Vec<u8>> {
    environ::get(name).filter(|_| !process::secure_execution())
}

/// `QMAILDOOR`: `socket` or `direct` forces that door; anything else chooses by itself.
pub fn forced(door: &str) -> bool {
    setting("QMAILDOOR").is_some_and(|v| v == door.as_bytes())
}

/// What handing a message to the queue may come to in this process: what its jail must allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Only the socket.
    Socket,
    /// The socket, or `bin/qmail-queue` of the home.
    Own,
    /// `$QMAILQUEUE`: a program of somebody else's.
    Foreign,
}

/// The same choice as every submission will make.
pub fn reach(home: &Home) -> Reach {
    if setting("QMAILQUEUE").is_some() {
        Reach::Foreign
    } else if forced("direct") || (!forced("socket") && owns_queue(home) != Ok(false)) {
        Reach::Own
    } else {
        Reach::Socket
    }
}

fn find_way(home: &Home, patient: bool) -> Result<Way, i32> {
    if let Some(program) = setting("QMAILQUEUE") {
        return Ok(Way::Program(program));
    }
    let direct = || Way::Program(home.path("bin/qmail-queue"));
    if forced("direct") {
        return Ok(direct());
    }
    let connection = if patient { door::connect_once(home) } else { door::connect_now(home) };
    match connection {
        Ok(connection) => Ok(Way::Socket(connection)),
        Err(_) if !forced("socket") && owns_queue(home)? => Ok(direct()),
        Err(_) if patient => door::connect_patiently(home).map(Way::Socket),
        Err(_) => Err(code::CONNECT_REFUSED),
    }
}

/// Starts a program in the place of qmail-queue with these two descriptors: its process id, and what to read
/// its descriptor 6 from. It says its troubles on `errors`, if that is not our own descriptor 2.
pub(super) fn start_program(
    home: &Home,
    program: &[u8],
    message: &impl AsFd,
    envelope: &impl AsFd,
    errors: Option<&fd::Standard>,
    environ: &Environ,
) -> Result<(Pid, OwnedFd), i32> {
    let (text, text_write) = fd::pipe().map_err(|_| code::EXEC)?;
    let mut command = Command::new(program, &[program])
        .environ(environ)
        .directory(home.path(""))
        .descriptor(message, 0)
        .descriptor(envelope, 1)
        .descriptor(&text_write, 6);
    if let Some(errors) = errors {
        command = command.descriptor(errors, 2);
    }
    let pid = command.spawn().map_err(|_| code::EXEC)?;
    Ok((pid, text))
}

/// Who takes the message and will answer.
enum Taker {
    Child { pid: Pid, text: OwnedFd },
    Server { connection: OwnedFd },
}

impl Taker {
    /// Starts qmail-queue, or asks qmail-queued, with these two descriptors.
    fn start(
        home: &Home,
        way: Way,
        message: &impl AsFd,
        envelope: &impl AsFd,
        errors: Option<&fd::Standard>,
    ) -> Result<Taker, i32> {
        match way {
            Way::Program(program) => {
                let (pid, text) =
                    start_program(home, &program, message, envelope, errors, &Environ::inherited())?;
                Ok(Taker::Child { pid, text })
            }
            Way::Socket(connection) => {
                door::send_request(&connection, message, envelope);
                Ok(Taker::Server { connection })
            }
        }
    }

    /// The process id that log lines and replies show: qmail-queue's, or with the socket our own,
    /// because that is whom qmail-queued sees.
    fn qp(&self) -> u32 {
        let pid = match self {
            Taker::Child { pid, .. } => *pid,
            Taker::Server { .. } => nix::unistd::getpid(),
        };
        u32::try_from(pid.as_raw()).unwrap_or(0)
    }

    /// How long its answer may take. A child is waited for in any case; a server that does not answer,
    /// though it has everything, is stopped or its disk is, and our own caller is waiting too.
    fn patience(&self) -> Deadline {
        match self {
            Taker::Child { .. } => Deadline::never(),
            Taker::Server { .. } => Deadline::after(STALL),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Taker::Child { text, .. } => text.as_fd(),
            Taker::Server { connection } => connection.as_fd(),
        }
    }

    /// The outcome, once everything this taker had to say has been read.
    fn judge(&self, said: &[u8], end: Option<End>) -> Outcome {
        match (self, end) {
            (Taker::Child { .. }, Some(end)) => Outcome::of_end(end, said, self.qp()),
            (Taker::Child { .. }, None) => Outcome::of_text(b"Zqq waitpid surprise (#4.3.0)"),
            (Taker::Server { .. }, _) => match door::parse_answer(said) {
                Some((code, text)) => Outcome::of_end(End::Exit(code), text, self.qp()),
                None => refused(code::COMMUNICATION),
            },
        }
    }
}

/// One byte of code and the text; a replacement's text is cut here.
pub(super) const ANSWER_MAX: usize = door::TEXT_MAX + 1;

/// A taker that takes not one byte, or does not answer, for so long (20 minutes, as qmail-queued allows its
/// callers) is given up: a temporary failure.
const STALL: Duration = Duration::from_secs(1200);

/// One read of a message that is copied.
const CHUNK: usize = 64 * 1024;

/// Who says in the end what became of a message that is written piece by piece.
enum Asked {
    Taker(Taker),
    Launcher { launcher: Rc<Launcher>, number: u32 },
}

impl Asked {
    /// Waits for it.
    fn verdict(&self) -> Outcome {
        let taker = match self {
            Asked::Taker(taker) => taker,
            Asked::Launcher { launcher, number } => {
                return launcher.outcome(*number).unwrap_or_else(|| refused(code::COMMUNICATION));
            }
        };
        let said = read_answer(taker.fd(), taker.patience());
        let end = match taker {
            Taker::Child { pid, .. } => process::wait(*pid).ok(),
            Taker::Server { .. } => None,
        };
        taker.judge(&said, end)
    }
}

/// Who takes messages: the queue, or whatever plays it in a test.
pub trait Queue {
    type Message: Message;

    /// Begins a message from there. The error is what to tell the user.
    fn submit(&self, origin: &Origin) -> Result<Self::Message, Outcome>;
}

/// A message on its way, written piece by piece.
pub trait Message {
    /// Appends to it.
    fn put(&mut self, bytes: &[u8]);

    /// Nothing shall be queued.
    fn abort(&mut self);

    /// Ends it, hands over the envelope and waits for the verdict.
    fn close_with<'a>(self, sender: &[u8], recipients: impl Iterator<Item = &'a [u8]>) -> Outcome;
}

/// Where the messages of a process go in.
pub enum Entrance {
    /// As this process finds it.
    Home(Home),
    /// By the launcher of this session.
    Launcher(Rc<Launcher>),
}

impl Queue for Entrance {
    type Message = Submission;

    fn submit(&self, origin: &Origin) -> Result<Submission, Outcome> {
        match self {
            Entrance::Home(home) => Submission::open(home),
            Entrance::Launcher(launcher) => Submission::through(launcher, origin),
        }
    }
}

impl Message for Submission {
    fn put(&mut self, bytes: &[u8]) {
        Submission::put(self, bytes);
    }

    fn abort(&mut self) {
        Submission::abort(self);
    }

    fn close_with<'a>(self, sender: &[u8], recipients: impl Iterator<Item = &'a [u8]>) -> Outcome {
        Submission::close_with(self, sender, recipients)
    }
}

/// A message on its way into the queue, written piece by piece.
pub struct Submission {
    asked: Asked,
    message: Option<Writer<OwnedFd>>,
    envelope: OwnedFd,
    /// A write failed: if the taker says success all the same, it is not believed.
    broken: bool,
    aborted: bool,
}

impl Submission {
    /// Starts the taker. The error is what to tell the user.
    pub fn open(home: &Home) -> Result<Submission, Outcome> {
        let way = find_way(home, true).map_err(refused)?;
        Submission::with(|message, envelope| {
            Ok(Asked::Taker(Taker::start(home, way, message, envelope, None)?))
        })
    }

    /// Asks the launcher of this session to start the taker.
    fn through(launcher: &Rc<Launcher>, origin: &Origin) -> Result<Submission, Outcome> {
        Submission::with(|message, envelope| {
            let number = launcher.ask(message, envelope, origin);
            Ok(Asked::Launcher { launcher: Rc::clone(launcher), number })
        })
    }

    /// `ask` gets the ends to read message and envelope from.
    fn with(ask: impl FnOnce(&OwnedFd, &OwnedFd) -> Result<Asked, i32>) -> Result<Submission, Outcome> {
        let (message_read, message) = fd::pipe().map_err(|_| refused(code::EXEC))?;
        let (envelope_read, envelope) = fd::pipe().map_err(|_| refused(code::EXEC))?;
        let asked = ask(&message_read, &envelope_read).map_err(refused)?;
        Ok(Submission {
            asked,
            message: Some(Writer::with_timeout(message, STALL)),
            envelope,
            broken: false,
            aborted: false,
        })
    }

    /// Appends to the message.
    pub fn put(&mut self, bytes: impl AsRef<[u8]>) {
        if self.broken {
            return;
        }
        let written = self.message.as_mut().is_none_or(|m| m.put(bytes).is_ok());
        self.broken = !written;
    }

    /// Appends what the descriptor holds up to its end, as long as the taker reads. Err when it cannot be read:
    /// the caller shall `abort`.
    pub fn put_from(&mut self, input: impl AsFd) -> Result<(), Errno> {
        let mut buffer = vec![0; CHUNK];
        while !self.broken {
            let n = fd::read(&input, &mut buffer)?;
            if n == 0 {
                break;
            }
            self.put(buffer.get(..n).unwrap_or_default());
        }
        Ok(())
    }

    /// Whether the taker stopped reading: sending more is useless.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Nothing shall be queued: the envelope will be left unfinished.
    pub fn abort(&mut self) {
        self.aborted = true;
    }

    /// Ends the message, hands over the envelope and waits for the verdict.
    pub fn close(self, envelope: &Envelope) -> Outcome {
        self.close_with(&envelope.sender, envelope.recipients.iter().map(Vec::as_slice))
    }

    /// As `close`, with recipients that come one by one.
    pub fn close_with<'a>(mut self, sender: &[u8], recipients: impl Iterator<Item = &'a [u8]>) -> Outcome {
        if let Some(message) = self.message.take() {
            // The pipe closes here: end of message.
            self.broken |= message.finish().is_err();
        }
        let mut out = Writer::with_timeout(self.envelope, STALL);
        if !self.broken && !self.aborted {
            let mut written = out.put(envelope::record(b'F', sender)).is_ok();
            for recipient in recipients {
                written = written && out.put(envelope::record(b'T', recipient)).is_ok();
            }
            self.broken = !(written && out.put(b"\0").is_ok() && out.flush().is_ok());
        }
        drop(out); // end of envelope; without its last NUL nothing is queued
        match self.asked.verdict() {
            Outcome::Queued { .. } if self.broken || self.aborted => refused(code::READ),
            outcome => outcome,
        }
    }
}

/// Everything up to the end, of which the first bytes count.
fn read_answer(from: BorrowedFd<'_>, deadline: Deadline) -> Vec<u8> {
    let mut said = Vec::new();
    let mut chunk = [0u8; ANSWER_MAX];
    while let Ok(n @ 1..) = timed::read(from, &mut chunk, deadline) {
        let room = ANSWER_MAX.saturating_sub(said.len());
        said.extend_from_slice(chunk.get(..n.min(room)).unwrap_or_default());
    }
    said
}

/// A complete message file handed over without waiting: the caller polls for the verdict
/// (qmail-send and its bounces).
pub struct Pending {
    taker: Taker,
    said: Vec<u8>,
    ended: bool,
}

/// What a pipe takes without a reader.
const ENVELOPE_MAX: usize = 4096;

impl Pending {
    /// `message` is read from its current position; the envelope must be small (one recipient). `errors` is
    /// descriptor 2 of the program, where one is started.
    pub fn start(
        home: &Home,
        message: &impl AsFd,
        envelope: &Envelope,
        errors: &fd::Standard,
    ) -> Result<Pending, Outcome> {
        let bytes = envelope.encode();
        if bytes.len() > ENVELOPE_MAX {
            return Err(refused(code::ADDRESS_TOO_LONG));
        }
        let way = find_way(home, false).map_err(refused)?;
        let (envelope_read, envelope_write) = fd::pipe().map_err(|_| refused(code::EXEC))?;
        fd::write_all(&envelope_write, &bytes).map_err(|_| refused(code::READ))?;
        drop(envelope_write);
        let taker = Taker::start(home, way, message, &envelope_read, Some(errors)).map_err(refused)?;
        let _ = fd::set_nonblocking(taker.fd(), true);
        Ok(Pending { taker, said: Vec::new(), ended: false })
    }

    /// The descriptor to poll for input; None when only the child's end is awaited: ask again soon.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.ended).then(|| self.taker.fd())
    }

    /// The verdict, when there is one already. Never waits.
    pub fn try_finish(&mut self) -> Option<Outcome> {
        let mut chunk = [0u8; ANSWER_MAX];
        while !self.ended {
            match fd::read(self.taker.fd(), &mut chunk) {
                Ok(0) => self.ended = true,
                Ok(n) => {
                    let room = ANSWER_MAX.saturating_sub(self.said.len());
                    self.said.extend_from_slice(chunk.get(..n.min(room)).unwrap_or_default());
                }
                Err(Errno::EAGAIN) => return None,
                Err(_) => self.ended = true,
            }
        }
        match &self.taker {
            Taker::Server { .. } => Some(self.taker.judge(&self.said, None)),
            Taker::Child { pid, .. } => match process::try_wait(*pid) {
                Ok(None) => None,
                Ok(Some(end)) => Some(self.taker.judge(&self.said, Some(end))),
                Err(_) => Some(self.taker.judge(&self.said, None)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_become_the_texts_users_know() {
        let of = |code| Outcome::of_end(End::Exit(code), b"", 7).text();
        assert_eq!(of(0), b"");
        assert_eq!(of(53), b"Zqq write error or disk full (#4.3.0)");
        assert_eq!(of(11), b"Denvelope address too long for qq (#5.1.3)");
        assert_eq!(of(12), b"Dqq permanent problem (#5.3.0)");
        assert_eq!(of(101), b"Zqq temporary problem (#4.3.0)");
        assert_eq!(Outcome::of_end(End::Crash(9), b"", 7).text(), b"Zqq crashed (#4.3.0)");
    }

    #[test]
    fn a_custom_text_counts_only_with_exit_82_and_a_class_letter() {
        let of = |code, text: &[u8]| Outcome::of_end(End::Exit(code), text, 7).text();
        assert_eq!(of(82, b"Dno thanks (#5.7.1)"), b"Dno thanks (#5.7.1)");
        assert_eq!(of(82, b"Dx"), b"Zqq temporary problem (#4.3.0)");
        assert_eq!(of(82, b"hello"), b"Zqq temporary problem (#4.3.0)");
        assert_eq!(of(31, b"Dno thanks"), b"Dmail server permanently rejected message (#5.3.0)");
    }
}
