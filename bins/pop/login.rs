//! login - the talk of qmail-popup with a client, until there is a name and a secret
#![forbid(unsafe_code)]

use crate::connection::Answers;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, getsockopt, recv, sockopt};
use qmail::auth::wipe;
use qmail::fd::{self, Standard};
use qmail::pop3::{Command, LINE_MAX, Verb};
use qmail::timed::{self, Deadline, Sink, Source};

/// From the banner to the password: whoever holds the line longer holds others out.
const LOGIN_SECONDS: u64 = 60;

/// Unknown or failed commands before the line is closed.
const FAILURES_MAX: u32 = 3;

/// Name, secret and timestamp, each ended by a NUL.
pub const LOGIN_FIELDS: usize = 3;

/// Greets the client and talks to it until there is a name and a secret: what a checker reads. None when the
/// client has left or has to. This is the only code that parses what comes from the network, and it needs
/// nothing but the client, of whom one read gives no more than a line.
pub fn talk(
    client: impl Source,
    answers: &mut Answers<impl Sink>,
    timestamp: &[u8],
) -> Result<Option<Vec<u8>>, Errno> {
    answers.put(&[b"+OK ", timestamp, b"\r\n"].concat())?;
    answers.flush()?;
    let login = log_in(client, answers)?;
    answers.flush()?;
    Ok(login.map(|Login { mut name, mut secret }| {
        let fields = [name.as_slice(), b"\0", &secret, b"\0", timestamp, b"\0"].concat();
        wipe(&mut name);
        wipe(&mut secret);
        fields
    }))
}

/// What a client says it is.
struct Login {
    name: Vec<u8>,
    /// Password, or the digest of APOP.
    secret: Vec<u8>,
}

/// Talks until there is a name and a secret; None when the client has left or has to.
fn log_in(client: impl Source, answers: &mut Answers<impl Sink>) -> Result<Option<Login>, Errno> {
    let mut input = Input { client, deadline: Deadline::seconds(LOGIN_SECONDS) };
    let mut name: Option<Vec<u8>> = None;
    let mut failures = 0;
    while failures < FAILURES_MAX {
        let Some(mut line) = input.line()? else { return Ok(None) };
        let user = name.take(); // rfc1939:7: PASS comes right after USER
        let command = Command::parse(&line);
        let refusal = match command.verb {
            _ if line.len() > LINE_MAX => Some("line too long"),
            Verb::User => {
                name = command.name().map(<[u8]>::to_vec);
                name.is_none().then_some("syntax error")
            }
            Verb::Pass => match (user, command.password()) {
                (None, _) => Some("USER first"),
                (_, None) => Some("syntax error"),
                (Some(name), Some(password)) => {
                    let secret = password.to_vec();
                    wipe(&mut line);
                    return Ok(Some(Login { name, secret }));
                }
            },
            Verb::Apop => match command.apop() {
                Some((name, digest)) => {
                    return Ok(Some(Login { name: name.to_vec(), secret: digest.to_vec() }));
                }
                None => Some("syntax error"),
            },
            Verb::Capa => {
                answers.ok("")?;
                answers.put(b"USER\r\nTOP\r\nUIDL\r\nPIPELINING\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\n.\r\n")?;
                answers.flush()?;
                continue;
            }
            Verb::Quit => {
                answers.ok("")?;
                return Ok(None);
            }
            Verb::Noop => None,
            _ => Some("authorization first"),
        };
        match refusal {
            Some(text) => {
                failures += 1;
                answers.err(text)?;
            }
            None => answers.ok("")?,
        }
        answers.flush()?;
    }
    Ok(None)
}

/// The client's lines.
struct Input<I> {
    client: I,
    deadline: Deadline,
}

impl<I: Source> Input<I> {
    /// The next line without its LF, one byte longer than LINE_MAX if it is too long; None at the end.
    fn line(&mut self) -> Result<Option<Vec<u8>>, Errno> {
        let mut line = Vec::with_capacity(LINE_MAX + 1); // grown, it would leave copies of a password behind
        loop {
            let mut chunk = [0u8; 512];
            let n = self.client.read(&mut chunk, self.deadline, None)?;
            let piece = chunk.get(..n).unwrap_or_default();
            if piece.is_empty() {
                wipe(&mut line);
                return Ok(None);
            }
            let room = (LINE_MAX + 1).saturating_sub(line.len());
            let end = piece.strip_suffix(b"\n");
            let text = end.unwrap_or(piece);
            line.extend_from_slice(text.get(..text.len().min(room)).unwrap_or_default());
            let complete = end.is_some();
            wipe(&mut chunk);
            if complete {
                return Ok(Some(line));
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
