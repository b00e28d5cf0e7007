//! session - the commands of the TRANSACTION state
#![forbid(unsafe_code)]

use crate::connection::Answers;
use crate::maildrop::Maildrop;
use nix::errno::Errno;
use qmail::fd;
use qmail::pop3::{self, Command, LINE_MAX, Stuffer, Top, Verb};
use qmail::sasl;
use qmail::timed::{Deadline, Line, Reader, Sink, Source};

/// A client that has not sent a whole command for so long is gone (rfc1939:3 wants at least 600).
const IDLE_SECONDS: u64 = 1200;

/// One read of a message.
const CHUNK: usize = 64 * 1024;

/// The client's answer to the server's signature is an empty line, or `*`.
const ANSWER_MAX: usize = 512;

/// For that it has as long as for the rest of its login.
const ANSWER_SECONDS: u64 = 60;

/// Serves the client until it leaves. An error is a client that cannot be talked to any more.
pub fn run(maildrop: Maildrop, client: impl Source, answers: &mut Answers<impl Sink>) -> Result<(), Errno> {
    serve(maildrop, Reader::new(client), answers)
}

/// The same behind a login by SCRAM, which is not over before the client has seen the server's signature (rfc5034:4).
pub fn run_signed(
    signature: &[u8],
    maildrop: Maildrop,
    client: impl Source,
    answers: &mut Answers<impl Sink>,
) -> Result<(), Errno> {
    let mut input = Reader::new(client);
    let challenge = sasl::encode(&[b"v=", signature].concat());
    answers.put(&[b"+ ", challenge.as_slice(), b"\r\n"].concat())?;
    answers.flush()?;
    input.set_overall(Deadline::seconds(ANSWER_SECONDS));
    match input.line(b'\n', ANSWER_MAX)? {
        Line::Whole(line) if matches!(line.as_slice(), b"" | b"\r") => serve(maildrop, input, answers),
        _ => answers.err("[AUTH] authorization failed"),
    }
}

fn serve(
    maildrop: Maildrop,
    mut input: Reader<impl Source>,
    answers: &mut Answers<impl Sink>,
) -> Result<(), Errno> {
    let mut session = Session { maildrop, answers, last: 0 };
    session.answers.ok("")?;
    loop {
        // Commands that came together are answered together.
        if !input.buffered().contains(&b'\n') {
            session.answers.flush()?;
        }
        input.set_overall(Deadline::seconds(IDLE_SECONDS));
        match input.line(b'\n', LINE_MAX)? {
            Line::Whole(line) => {
                if session.obey(&Command::parse(&line))? {
                    return Ok(());
                }
            }
            Line::TooLong => session.answers.err("line too long")?,
            Line::End(_) => return Ok(()),
        }
    }
}

struct Session<'a, O> {
    maildrop: Maildrop,
    answers: &'a mut Answers<O>,
    /// The highest number deleted, for LAST.
    last: usize,
}

impl<O: Sink> Session<'_, O> {
    /// Answers one command; true when it was the last.
    fn obey(&mut self, command: &Command<'_>) -> Result<bool, Errno> {
        let words = command.words();
        match (command.verb, words.as_slice()) {
            (Verb::Stat, _) => {
                let (count, bytes) = self.maildrop.total();
                self.answers.ok(&format!("{count} {bytes}"))?;
            }
            (Verb::List | Verb::Uidl, []) => self.list(command.verb)?,
            (Verb::List | Verb::Uidl, [number]) => {
                if let Some(at) = self.message(number)? {
                    let value = self.value(command.verb, at);
                    self.answers.put(&[b"+OK ", value.as_slice()].concat())?;
                }
            }
            (Verb::Retr, [number]) => {
                if let Some(at) = self.message(number)? {
                    self.send(at, None)?;
                }
            }
            (Verb::Top, [number, lines]) => {
                if let Some(at) = self.message(number)? {
                    match pop3::number(lines) {
                        Ok(lines) => self.send(at, Some(lines))?,
                        Err(refusal) => self.answers.err(refusal.text())?,
                    }
                }
            }
            (Verb::Dele, [number]) => {
                if let Some(at) = self.message(number)? {
                    self.maildrop.mark_deleted(at);
                    self.last = self.last.max(at + 1);
                    self.answers.ok("")?;
                }
            }
            (Verb::Rset, _) => {
                self.maildrop.unmark_all();
                self.last = 0;
                self.answers.ok("")?;
            }
            (Verb::Last, _) => self.answers.ok(&self.last.to_string())?,
            (Verb::Noop, _) => self.answers.ok("")?,
            (Verb::Capa, _) => {
                self.answers.ok("")?;
                self.answers.put(
                    b"USER\r\nTOP\r\nUIDL\r\nPIPELINING\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nIMPLEMENTATION qmail-rs\r\n.\r\n",
                )?;
            }
            (Verb::Quit, _) => {
                // Nothing goes before what was said about it: the client may have asked for all of it at once.
                self.answers.flush()?;
                if self.maildrop.update() {
                    self.answers.ok("")?;
                } else {
                    self.answers.err("[SYS/TEMP] unable to unlink all deleted messages")?;
                }
                return Ok(true);
            }
            (Verb::List | Verb::Uidl | Verb::Retr | Verb::Top | Verb::Dele, _) => {
                self.answers.err("syntax error")?
            }
            _ => self.answers.err("unimplemented")?,
        }
        Ok(false)
    }

    /// The message of that number; None when it was refused, which has been said.
    fn message(&mut self, number: &[u8]) -> Result<Option<usize>, Errno> {
        match pop3::message(number, self.maildrop.all().len()) {
            Err(refusal) => self.answers.err(refusal.text())?,
            Ok(at) if self.maildrop.get(at).is_none_or(|m| m.is_deleted()) => {
                self.answers.err("already deleted")?
            }
            Ok(at) => return Ok(Some(at)),
        }
        Ok(None)
    }

    /// A line of LIST or UIDL.
    fn value(&mut self, verb: Verb, at: usize) -> Vec<u8> {
        let mut line = format!("{} ", at + 1).into_bytes();
        match verb {
            Verb::Uidl => line.extend_from_slice(&self.maildrop.id(at)),
            _ => line.extend_from_slice(self.maildrop.get(at).map_or(0, |m| m.size()).to_string().as_bytes()),
        }
        line.extend_from_slice(b"\r\n");
        line
    }

    fn list(&mut self, verb: Verb) -> Result<(), Errno> {
        self.answers.ok("")?;
        for at in 0..self.maildrop.all().len() {
            if self.maildrop.get(at).is_some_and(|m| !m.is_deleted()) {
                let value = self.value(verb, at);
                self.answers.put(&value)?;
            }
        }
        self.answers.put(b".\r\n")
    }

    /// RETR, or TOP with so many lines of the body.
    fn send(&mut self, at: usize, lines: Option<u64>) -> Result<(), Errno> {
        let file = match self.maildrop.open(at) {
            Ok(file) => file,
            Err(Errno::ENOENT | Errno::ESTALE) => return self.answers.err("unable to open that message"),
            Err(_) => return self.answers.err("[SYS/TEMP] unable to open that message"),
        };
        self.answers.ok("")?;
        let mut top = lines.map(Top::new);
        let mut stuffer = Stuffer::default();
        let mut chunk = vec![0u8; CHUNK];
        let mut encoded = Vec::new();
        while top.as_ref().is_none_or(|top| !top.is_complete()) {
            // Unreadable in the middle: the line is dropped, because what was sent must not look whole.
            let n = fd::read(&file, &mut chunk)?;
            if n == 0 {
                break;
            }
            let bytes = chunk.get(..n).unwrap_or_default();
            let wanted = top.as_mut().map_or(n, |top| top.take(bytes));
            stuffer.push(bytes.get(..wanted).unwrap_or_default(), &mut encoded);
            self.answers.put(&encoded)?;
            encoded.clear();
        }
        stuffer.finish(&mut encoded);
        encoded.extend_from_slice(b".\r\n");
        self.answers.put(&encoded)
    }
}
