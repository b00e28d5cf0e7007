//! login - the talk of qmail-popup with a client, until there is a name and a secret
#![forbid(unsafe_code)]

use crate::access::Access;
use crate::connection::Answers;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, getsockopt, recv, sockopt};
use qmail::auth::{Secret, wipe};
use qmail::environ;
use qmail::fd::{self, Standard};
use qmail::pop3::{Command, LINE_MAX, Verb};
use qmail::sasl::server::{Fields, Refusal, Server, Setting, Step};
use qmail::sasl::{self, Mechanism};
use qmail::timed::{self, Deadline, Sink, Source};
use std::time::Duration;

/// From the banner to the password: whoever holds the line longer holds others out.
const LOGIN_SECONDS: u64 = 60;

/// Unknown or failed commands before the line is closed.
const FAILURES_MAX: u32 = 3;

/// Reads of what nobody wants to know.
const DRAIN_MAX: u32 = 64;

/// What checkers are told that we are.
const SERVICE: &[u8] = b"pop3";

/// Greets the client and talks to it until there is a name and a secret: what a checker reads. None when the
/// client has left or has to. This is the only code that parses what comes from the network, and it needs
/// nothing but the client, of whom one read gives no more than a line.
pub fn talk(
    client: impl Source + Pending,
    answers: &mut Answers<impl Sink>,
    timestamp: &[u8],
    access: &mut Access,
) -> Result<Option<Secret>, Errno> {
    let greeting = if access.apop { timestamp } else { b"ready" };
    answers.put(&[b"+OK ", greeting, b"\r\n"].concat())?;
    answers.flush()?;
    let login = Talk {
        input: Input { client, deadline: Deadline::seconds(LOGIN_SECONDS) },
        answers,
        access,
        name: None,
        utf8: false,
    }
    .log_in()?;
    answers.flush()?;
    Ok(login.map(|login| match login {
        Login::Simple { name, secret } => {
            let mut fields = Secret(Vec::with_capacity(name.len() + secret.len() + timestamp.len() + 3));
            for field in [&*name, &*secret, timestamp] {
                fields.0.extend_from_slice(field);
                fields.0.push(0);
            }
            fields
        }
        Login::Sasl(fields) if access.whole || fields.needs_whole() => {
            fields.whole(SERVICE, &environ::get("TCPREMOTEIP").unwrap_or_default())
        }
        Login::Sasl(fields) => fields.short(),
    }))
}

/// What a client says it is.
enum Login {
    /// Name, and password or the digest of APOP.
    Simple {
        name: Secret,
        secret: Secret,
    },
    Sasl(Fields),
}

/// What came of a command.
enum Done {
    Ok,
    /// It has been answered in full.
    Answered,
    Failed(&'static str),
    Login(Login),
    Over,
}

struct Talk<'a, I, O> {
    input: Input<I>,
    answers: &'a mut Answers<O>,
    access: &'a mut Access,
    /// rfc1939:7: PASS comes right after USER.
    name: Option<Secret>,
    /// rfc6856:2: from then on there is no way to TLS.
    utf8: bool,
}

impl<I: Source + Pending, O: Sink> Talk<'_, I, O> {
    /// Talks until there is a name and a secret; None when the client has left or has to.
    fn log_in(mut self) -> Result<Option<Login>, Errno> {
        let mut failures = 0;
        while failures < FAILURES_MAX {
            let Some(line) = self.input.line(LINE_MAX)? else { return Ok(None) };
            let done = if line.len() > LINE_MAX {
                Done::Failed("line too long")
            } else {
                self.obey(&Command::parse(&line))?
            };
            match done {
                Done::Ok => self.answers.ok("")?,
                Done::Answered => {}
                Done::Failed(text) => {
                    failures += 1;
                    self.answers.err(text)?;
                }
                Done::Login(login) => return Ok(Some(login)),
                Done::Over => return Ok(None),
            }
            self.answers.flush()?;
        }
        Ok(None)
    }

    fn obey(&mut self, command: &Command<'_>) -> Result<Done, Errno> {
        let user = self.name.take();
        Ok(match command.verb {
            Verb::User | Verb::Pass if !self.access.takes_passwords() => Done::Failed("STLS first"),
            Verb::User => {
                self.name = command.name().map(|name| Secret(name.to_vec()));
                if self.name.is_some() { Done::Ok } else { Done::Failed("syntax error") }
            }
            Verb::Pass => match (user, command.password()) {
                (None, _) => Done::Failed("USER first"),
                (_, None) => Done::Failed("syntax error"),
                (Some(name), Some(password)) => {
                    Done::Login(Login::Simple { name, secret: Secret(password.to_vec()) })
                }
            },
            Verb::Apop if self.access.apop => match command.apop() {
                Some((name, digest)) => {
                    let (name, secret) = (Secret(name.to_vec()), Secret(digest.to_vec()));
                    Done::Login(Login::Simple { name, secret })
                }
                None => Done::Failed("syntax error"),
            },
            Verb::Auth => return self.auth(command),
            Verb::Stls => return self.start_tls(command),
            Verb::Utf8 if command.words().is_empty() => {
                self.utf8 = true;
                Done::Ok
            }
            Verb::Utf8 => Done::Failed("syntax error"),
            Verb::Capa => {
                self.capabilities()?;
                Done::Answered
            }
            Verb::Quit => {
                self.answers.ok("")?;
                Done::Over
            }
            Verb::Noop => Done::Ok,
            _ => Done::Failed("authorization first"),
        })
    }

    /// rfc2449:6, rfc5034:3, rfc2595:4, rfc6856:2
    fn capabilities(&mut self) -> Result<(), Errno> {
        self.answers.ok("")?;
        if self.access.takes_passwords() {
            self.answers.put(b"USER\r\n")?;
        }
        self.answers.put(b"TOP\r\nUIDL\r\nPIPELINING\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nUTF8 USER\r\n")?;
        let names: Vec<&str> =
            self.access.mechanisms().iter().rev().map(|mechanism| mechanism.name()).collect();
        if !names.is_empty() {
            self.answers.put(format!("SASL {}\r\n", names.join(" ")).as_bytes())?;
        }
        if self.access.offers_tls() && !self.utf8 {
            self.answers.put(b"STLS\r\n")?;
        }
        self.answers.put(b".\r\n")
    }

    /// Whatever the client has sent behind STLS came before the handshake: somebody else may have put it there.
    fn start_tls(&mut self, command: &Command<'_>) -> Result<Done, Errno> {
        if !self.access.offers_tls() {
            return Ok(Done::Failed("authorization first"));
        }
        if self.utf8 || !command.words().is_empty() {
            return Ok(Done::Failed("not now"));
        }
        if self.input.client.has_more() {
            self.input.drain();
            self.answers.err("nothing may follow STLS before TLS")?;
            return Ok(Done::Over);
        }
        self.answers.ok("begin TLS")?;
        self.answers.flush()?;
        self.access.start_tls()?;
        Ok(Done::Answered)
    }

    /// rfc5034:4; without a mechanism the list of them, as clients of old ask for it.
    fn auth(&mut self, command: &Command<'_>) -> Result<Done, Errno> {
        let offered = self.access.mechanisms();
        let words = command.words();
        let [name, rest @ ..] = words.as_slice() else {
            self.answers.ok("")?;
            for mechanism in offered.iter().rev() {
                self.answers.put(format!("{}\r\n", mechanism.name()).as_bytes())?;
            }
            self.answers.put(b".\r\n")?;
            return Ok(Done::Answered);
        };
        let Some(mechanism) = Mechanism::of(name).filter(|mechanism| offered.contains(mechanism)) else {
            let hidden = self.access.offers_tls();
            return Ok(Done::Failed(if hidden { "STLS first" } else { "no such mechanism" }));
        };
        let initial = match rest {
            [] => None,
            [b"="] => Some(Secret::default()),
            [text] => match sasl::decode(text) {
                Some(bytes) => Some(Secret(bytes)),
                None => return Ok(Done::Failed("that is not base64")),
            },
            _ => return Ok(Done::Failed("syntax error")),
        };
        let Some(unique) = self.access.unique() else {
            return Ok(Done::Failed("[SYS/TEMP] unable to do that now"));
        };
        let setting = Setting {
            unique,
            host: self.access.host.clone(),
            binding: self.access.facts.binding(),
            plus_offered: offered.contains(&Mechanism::ScramSha256Plus),
            external: None,
        };
        self.exchange(Server::new(mechanism, setting), initial)
    }

    /// Up to what a checker has to say. What SCRAM says behind that is said by the program behind the checker.
    fn exchange(&mut self, mut server: Server, initial: Option<Secret>) -> Result<Done, Errno> {
        let mut step = server.start(initial);
        loop {
            step = match step {
                Step::Challenge(challenge) => {
                    self.answers.put(&[b"+ ", sasl::encode(&challenge).as_slice(), b"\r\n"].concat())?;
                    self.answers.flush()?;
                    let Some(line) = self.input.line(sasl::LINE_MAX + 1)? else { return Ok(Done::Over) };
                    let line = line.strip_suffix(b"\r").unwrap_or(&line);
                    match (line, sasl::decode(line)) {
                        (b"*", _) => return Ok(Done::Failed("cancelled")),
                        (line, _) if line.len() > sasl::LINE_MAX => return Ok(Done::Failed("line too long")),
                        (_, Some(answer)) => server.answer(Secret(answer)),
                        (_, None) => return Ok(Done::Failed("that is not base64")),
                    }
                }
                Step::Parameters(name) => match self.access.params(&name) {
                    Some(params) => server.parameters(&params),
                    None => return Ok(Done::Failed("[SYS/TEMP] unable to do that now")),
                },
                Step::Check(fields) => return Ok(Done::Login(Login::Sasl(fields))),
                Step::Accepted(_) | Step::Refused(Refusal::Malformed) => {
                    return Ok(Done::Failed("syntax error"));
                }
                Step::Refused(Refusal::Unacceptable) => {
                    return Ok(Done::Failed("[AUTH] authorization failed"));
                }
            };
        }
    }
}

/// A client of whom can be told whether it has sent more than was read.
pub trait Pending {
    fn has_more(&self) -> bool;
}

/// The client's lines.
struct Input<I> {
    client: I,
    deadline: Deadline,
}

impl<I: Source + Pending> Input<I> {
    /// Takes what is there, within reason: a connection that is closed with bytes unread takes our answer with it.
    fn drain(&mut self) {
        for _ in 0..DRAIN_MAX {
            let mut chunk = [0u8; 512];
            if !self.client.has_more()
                || !matches!(self.client.read(&mut chunk, self.deadline, None), Ok(1..))
            {
                return;
            }
        }
    }

    /// The next line without its LF, one byte longer than `max` if it is too long; None at the end.
    fn line(&mut self, max: usize) -> Result<Option<Secret>, Errno> {
        let mut line = Vec::with_capacity(max + 1); // grown, it would leave copies of a password behind
        loop {
            let mut chunk = [0u8; 512];
            let n = self.client.read(&mut chunk, self.deadline, None)?;
            let piece = chunk.get(..n).unwrap_or_default();
            if piece.is_empty() {
                wipe(&mut line);
                return Ok(None);
            }
            let room = (max + 1).saturating_sub(line.len());
            let end = piece.strip_suffix(b"\n");
            let text = end.unwrap_or(piece);
            line.extend_from_slice(text.get(..text.len().min(room)).unwrap_or_default());
            let complete = end.is_some();
            wipe(&mut chunk);
            if complete {
                return Ok(Some(Secret(line)));
            }
        }
    }
}

/// The client's side of fd 0, read so that what follows the last line stays unread.
pub struct Unread {
    is_socket: bool,
}

impl Default for Unread {
    fn default() -> Unread {
        Unread { is_socket: getsockopt(&fd::IN, sockopt::SockType).is_ok() }
    }
}

impl Pending for Unread {
    fn has_more(&self) -> bool {
        timed::wait(fd::IN, PollFlags::POLLIN, Deadline::after(Duration::ZERO)).is_ok()
    }
}

impl Source for Unread {
    /// Reads some bytes, at most to the end of the line: a socket is looked at first, everything else is
    /// read byte by byte.
    fn read(&self, chunk: &mut [u8], deadline: Deadline, _: Option<Standard>) -> Result<usize, Errno> {
        loop {
            timed::wait(fd::IN, PollFlags::POLLIN, deadline)?;
            let wanted = if self.is_socket {
                match recv(fd::IN.0, chunk, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
                    Ok(seen) => {
                        let seen = chunk.get(..seen).unwrap_or_default();
                        seen.iter().position(|b| *b == b'\n').map_or(seen.len(), |at| at + 1)
                    }
                    Err(Errno::EINTR | Errno::EAGAIN) => continue,
                    Err(Errno::ENOTSOCK) => 1, // TLS has taken its place
                    Err(errno) => return Err(errno),
                }
            } else {
                1
            };
            match nix::unistd::read(fd::IN, chunk.get_mut(..wanted).unwrap_or_default()) {
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                result => return result,
            }
        }
    }
}
