//! dialogue - the conversation with one server
//!
//! Commands go out one at a time, or, where the server offers PIPELINING (RFC 2920), MAIL, every RCPT
//! and DATA together; replies are taken in the order of the commands either way. After something that
//! is no reply nothing that follows could be told apart, so the conversation ends there.
//!
//! A session may take one message after the other. Behind the first one a server may have lost its patience, or
//! the connection its life: until MAIL is accepted the message is not begun there, and somebody else may take it.
#![forbid(unsafe_code)]

use crate::message::Message;
use crate::report::{self, Report};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use qmail::auth::Secret;
use qmail::quote;
use qmail::smtp::body::{self, Encoder};
use qmail::smtp::reply::{self, Extensions, Parser, Reply};
use qmail::timed::{Deadline, Reader, Sink, Source};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

/// Commands sent before their replies are read, in bytes: what the smallest socket buffer takes, so
/// that we never wait in a write while the server waits for us to read (RFC 2920 section 3.1).
const BURST_MAX: usize = 4096;

/// A whole reply may take this many times timeoutremote: a host that drips one byte a second keeps
/// every single read in time and would hold us for ever.
const REPLY_PATIENCE: u32 = 2;

/// The body may take timeoutremote and as long as this many bytes a second take: slower than any line.
const SLOWEST_BODY: u64 = 64;

/// QUIT is a courtesy; nobody waits for it.
const QUIT_PATIENCE: Duration = Duration::from_secs(1);

/// Encoded message held before it is written.
const BODY_BUFFER: usize = 64 * 1024;

/// What an encoder adds at the end.
const END_MAX: usize = 16;

/// The other end of a connection, or whatever plays it in a test.
pub trait Server: Source + Sink + Clone {
    /// Whether there is something to read, an end included, without waiting for it.
    fn has_spoken(&self) -> bool;
}

/// A connection, or the clear side of an encrypted one. It ends with its session.
pub type Wire = Rc<OwnedFd>;

impl Server for Wire {
    fn has_spoken(&self) -> bool {
        let mut here = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut here, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }
}

/// A connection, and what is known of who is at its other end.
pub struct Session<S> {
    ip: IpAddr,
    stream: S,
    reader: Reader<S>,
    timeout: Duration,
    extensions: Extensions,
    /// Of AUTH.
    mechanisms: Vec<Vec<u8>>,
    /// What success is told with: the facts of TLS.
    note: Vec<u8>,
    /// Every message goes with REQUIRETLS.
    requires_tls: bool,
    /// The next reply will be the answer to the next command.
    in_step: bool,
    /// The server said that it stops (421), whatever it was asked.
    closing: bool,
    /// Messages offered so far.
    messages: u32,
    /// Whether the server accepted the sender of the latest one.
    begun: bool,
    /// A sender was accepted and no message followed: the server is to forget it first.
    unfinished: bool,
}

/// What came of offering a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Report(Report),
    /// It was not the first one, and its sender was not accepted: nothing was told of any recipient. On a
    /// connection of its own it may fare better.
    NotBegun,
}

/// One line of the conversation that is answered by one reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command<'a> {
    Reset,
    Mail,
    Rcpt(&'a [u8]),
    /// A recipient that cannot be put into a line: refused by us, nothing is sent.
    Unspeakable,
    Data,
}

impl<S: Server> Session<S> {
    /// Each read and write may take `timeout`.
    pub fn new(ip: IpAddr, stream: S, timeout: Duration) -> Session<S> {
        Session {
            ip,
            reader: Reader::with_timeout(stream.clone(), timeout),
            stream,
            timeout,
            extensions: Extensions::default(),
            mechanisms: Vec::new(),
            note: Vec::new(),
            requires_tls: false,
            in_step: true,
            closing: false,
            messages: 0,
            begun: false,
            unfinished: false,
        }
    }

    /// Who is at the other end.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// How many messages were offered.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// Whether the server may be offered another message: every reply was one and came in its turn.
    pub fn is_fit(&self) -> bool {
        self.in_step && !self.closing && !self.has_spoken()
    }

    /// Waits for the greeting.
    pub fn greet(&mut self) -> Result<(), Report> {
        let reply = self.reply()?;
        if reply.code() == Some(220) {
            return Ok(());
        }
        self.quit();
        Err(report::greeting_failed(self.ip, &reply))
    }

    /// EHLO, and HELO where EHLO is not known (RFC 5321 section 3.2).
    pub fn hello(&mut self, name: &[u8]) -> Result<(), Report> {
        let reply = self.ask(&[b"EHLO ", name])?;
        if reply.code() == Some(250) {
            self.extensions = Extensions::of(&reply);
            self.mechanisms = reply::mechanisms(&reply);
            return Ok(());
        }
        let reply = if reply.is_permanent() { self.ask(&[b"HELO ", name])? } else { reply };
        if reply.code() == Some(250) {
            return Ok(());
        }
        self.quit();
        Err(report::name_rejected(self.ip, &reply))
    }

    /// Offers one message. Tells what becomes of each recipient, in their order; what becomes of the message is
    /// the result.
    pub fn send(
        &mut self,
        message: &mut Message<impl AsFd>,
        sender: &[u8],
        recipients: &[Vec<u8>],
        tell: &mut dyn FnMut(&Report),
    ) -> Outcome {
        if !speakable(sender) {
            return Outcome::Report(report::bad_sender());
        }
        self.messages = self.messages.saturating_add(1);
        self.begun = false;
        let report = self.transaction(message, sender, recipients, tell).unwrap_or_else(|report| report);
        if self.begun || self.messages == 1 {
            Outcome::Report(report.noting(&self.note))
        } else {
            Outcome::NotBegun
        }
    }

    /// Both kinds are reports: `Err` only ends the work early.
    fn transaction(
        &mut self,
        message: &mut Message<impl AsFd>,
        sender: &[u8],
        recipients: &[Vec<u8>],
        tell: &mut dyn FnMut(&Report),
    ) -> Result<Report, Report> {
        let mail = self.mail_command(message, sender);
        let commands: Vec<Command> = self
            .unfinished
            .then_some(Command::Reset)
            .into_iter()
            .chain(std::iter::once(Command::Mail))
            .chain(
                recipients.iter().map(|r| if speakable(r) { Command::Rcpt(r) } else { Command::Unspeakable }),
            )
            .chain(std::iter::once(Command::Data))
            .collect();
        let go_ahead = self.envelope(&commands, &mail, tell)?;
        if !go_ahead.is_intermediate() {
            return Err(report::data_failed(self.ip, &go_ahead));
        }
        self.body(message)
    }

    /// `MAIL FROM:<s>` with what the server understands: the size as sent (RFC 1870) and, only for messages that
    /// need it, BODY (RFC 6152) and REQUIRETLS (RFC 8689).
    fn mail_command(&self, message: &Message<impl AsFd>, sender: &[u8]) -> Vec<u8> {
        let mut line = [b"MAIL FROM:<".as_slice(), &quote::address(sender), b">"].concat();
        if let Some(scan) = message.scan() {
            if self.extensions.size {
                line.extend_from_slice(format!(" SIZE={}", scan.size).as_bytes());
            }
            if self.extensions.eight_bit_mime && scan.eight_bit {
                line.extend_from_slice(b" BODY=8BITMIME");
            }
        }
        if self.requires_tls {
            line.extend_from_slice(b" REQUIRETLS");
        }
        line
    }

    /// MAIL, every RCPT, DATA, in bursts. The reply to DATA if a recipient was accepted.
    fn envelope(
        &mut self,
        mut commands: &[Command],
        mail: &[u8],
        tell: &mut dyn FnMut(&Report),
    ) -> Result<Reply, Report> {
        let mut refused: Option<Report> = None; // MAIL was
        let (mut accepted, mut all_permanent) = (false, true);
        let mut go_ahead = None;
        while !commands.is_empty() && refused.is_none() {
            if commands == [Command::Data] && !accepted {
                break; // nobody to send to: not asked for, no data
            }
            let (burst, bytes) = self.burst(commands, mail);
            let (now, later) = commands.split_at(burst);
            commands = later;
            self.in_turn()?;
            self.write(&bytes)?;
            for command in now {
                if *command == Command::Unspeakable {
                    if refused.is_none() {
                        tell(&report::bad_recipient());
                    }
                    continue;
                }
                let reply = match self.reply() {
                    Ok(reply) => reply,
                    Err(lost) => return Err(refused.unwrap_or(lost)),
                };
                match command {
                    Command::Reset if reply.is_positive() => self.unfinished = false,
                    Command::Mail if refused.is_none() && reply.is_positive() => {
                        self.begun = true;
                        self.unfinished = true;
                    }
                    Command::Reset | Command::Mail => {
                        refused = refused.or(Some(report::sender_rejected(self.ip, &reply)));
                    }
                    Command::Unspeakable => {}
                    Command::Rcpt(_) if refused.is_some() => {} // it only says "MAIL first"
                    Command::Rcpt(_) if reply.is_positive() => {
                        accepted = true;
                        tell(&report::recipient_accepted());
                    }
                    Command::Rcpt(_) => {
                        all_permanent &= reply.is_permanent();
                        tell(&report::recipient_refused(self.ip, &reply));
                    }
                    Command::Data => go_ahead = Some(reply),
                }
                // A sender that this one forgot to forget is not ours.
                if refused.is_some() && self.unfinished && !self.begun {
                    self.in_step = false;
                }
                if !self.in_step {
                    // Whatever comes next cannot be told to be an answer to what we asked.
                    return match (refused, go_ahead) {
                        (Some(report), _) => Err(report),
                        (None, Some(reply)) if accepted => Err(report::data_failed(self.ip, &reply)),
                        _ => Err(report::giving_up(self.ip, false)),
                    };
                }
            }
        }
        match (refused, go_ahead) {
            (None, Some(reply)) if accepted => Ok(reply),
            (refused, go_ahead) => {
                if go_ahead.is_some_and(|reply| reply.is_intermediate()) {
                    if refused.is_none() {
                        // rfc2920:3.1 DATA was on its way before we knew: an empty message that nobody gets.
                        if self.write(body::END).and_then(|()| self.reply()).is_ok() {
                            self.unfinished = false;
                        }
                    } else {
                        // Without a sender it had no right to: who knows whom it would give the message.
                        self.in_step = false;
                    }
                }
                Err(refused.unwrap_or_else(|| report::giving_up(self.ip, all_permanent)))
            }
        }
    }

    /// How many of the commands go out now, and as which bytes.
    fn burst(&self, commands: &[Command], mail: &[u8]) -> (usize, Vec<u8>) {
        let mut bytes = Vec::new();
        let mut count = 0;
        for command in commands {
            let line = match command {
                Command::Reset => b"RSET\r\n".to_vec(),
                Command::Mail => [mail, b"\r\n"].concat(),
                Command::Rcpt(recipient) => {
                    [b"RCPT TO:<".as_slice(), &quote::address(recipient), b">\r\n"].concat()
                }
                Command::Unspeakable => Vec::new(),
                Command::Data => b"DATA\r\n".to_vec(),
            };
            if count > 0 && (!self.extensions.pipelining || bytes.len() + line.len() > BURST_MAX) {
                break;
            }
            bytes.extend_from_slice(&line);
            count += 1;
        }
        (count, bytes)
    }

    /// The message, the final dot, and the answer that decides.
    fn body(&mut self, message: &mut Message<impl AsFd>) -> Result<Report, Report> {
        self.in_step = false; // a conversation that ends inside the message is not to be continued
        let (stream, timeout) = (self.stream.clone(), self.timeout);
        let overall = message.scan().map_or(Deadline::never(), |scan| {
            Deadline::after(timeout.saturating_add(Duration::from_secs(scan.size / SLOWEST_BODY)))
        });
        let write = |bytes: &[u8]| write(&stream, bytes, timeout, overall);
        let mut encoder = Encoder::new();
        let size = message.scan().and_then(|scan| usize::try_from(scan.size).ok()).unwrap_or(2 * BODY_BUFFER);
        let mut out = Vec::with_capacity(size.saturating_add(END_MAX).min(2 * BODY_BUFFER));
        message.read(|piece| {
            encoder.put(piece, &mut out);
            if out.len() >= BODY_BUFFER {
                write(&out).map_err(|_| self.interrupted(false))?;
                out.clear();
            }
            Ok(())
        })?;
        if !encoder.ends_whole() {
            return Err(report::partial_line()); // without the final dot the server has nothing
        }
        encoder.finish(&mut out);
        if self.has_spoken() {
            return Err(self.interrupted(false)); // what is said before the dot is no answer to it
        }
        write(&out).map_err(|_| self.interrupted(true))?;
        let reply = self.reply().map_err(|_| report::died(self.ip, true))?;
        self.unfinished = false; // rfc5321:4.1.1.4 whatever it says, nothing of the message is left
        Ok(report::after_dot(self.ip, &reply))
    }

    /// The server ended the message before we did. Its refusal, if there is one, is an answer to what it
    /// got so far; nothing else it may have said is.
    fn interrupted(&mut self, dot_sent: bool) -> Report {
        let reply = if self.has_spoken() { self.reply().ok() } else { None };
        self.in_step = false;
        match reply {
            Some(reply) if reply.is_negative() => report::after_dot(self.ip, &reply),
            Some(reply) if !dot_sent => report::out_of_turn(self.ip, &reply),
            _ => report::died(self.ip, dot_sent),
        }
    }

    /// Says goodbye without waiting for an answer. Nothing is said where it could be taken for data.
    pub fn quit(&mut self) {
        if std::mem::take(&mut self.in_step) {
            let _ = self.stream.write_all(b"QUIT\r\n", Deadline::after(QUIT_PATIENCE));
        }
    }

    /// One command, or one line of an exchange, and its reply.
    pub fn ask(&mut self, words: &[&[u8]]) -> Result<Reply, Report> {
        // What is written may be a password.
        let mut line = Secret(Vec::with_capacity(words.iter().map(|w| w.len()).sum::<usize>() + 2));
        words.iter().chain(&[b"\r\n".as_slice()]).for_each(|word| line.0.extend_from_slice(word));
        self.in_turn()?;
        self.write(&line)?;
        self.reply()
    }

    /// Whether the server would have TLS.
    pub fn offers_tls(&self) -> bool {
        self.extensions.start_tls
    }

    /// The mechanisms of AUTH that the server offers.
    pub fn mechanisms(&self) -> &[Vec<u8>] {
        &self.mechanisms
    }

    /// Asks for TLS; whether the handshake may begin. rfc3207:6 whatever was said behind the 220 in the clear is
    /// not to be taken for something said under TLS: the conversation is over then.
    pub fn start_tls(&mut self) -> Result<bool, Report> {
        let reply = self.ask(&[b"STARTTLS"])?;
        if reply.code() != Some(220) {
            return if self.in_step { Ok(false) } else { Err(report::out_of_turn(self.ip, &reply)) };
        }
        if self.has_spoken() {
            self.in_step = false;
            return Err(report::injected(self.ip));
        }
        Ok(true)
    }

    /// Goes on over the clear side of an encrypted connection. What was learned before is forgotten
    /// (RFC 3207 section 4.2); `note` is told with each success.
    pub fn secured(self, stream: S, note: Vec<u8>) -> Session<S> {
        Session { note, ..Session::new(self.ip, stream, self.timeout) }
    }

    /// Whether the server would hand on a demand for TLS.
    pub fn offers_requiretls(&self) -> bool {
        self.extensions.require_tls
    }

    /// From here on every message carries the demand, which is the caller's to have met.
    pub fn require_tls(&mut self) {
        self.requires_tls = true;
        self.remark(b"REQUIRETLS");
    }

    /// Adds to what success is told with.
    pub fn remark(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        self.note.extend_from_slice(if self.note.is_empty() { b"tls=none, " } else { b", " });
        self.note.extend_from_slice(text);
    }

    /// Gives up without a word: in the middle of a handshake nothing can be said.
    pub fn abandon(&mut self) {
        self.in_step = false;
    }

    /// The connection.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Report> {
        write(&self.stream, bytes, self.timeout, Deadline::never()).map_err(|_| self.lost())
    }

    /// Nothing may have been said that nobody asked for: it would be taken for the answer to what we
    /// say next. (A server about to stop may send 421 at any time, RFC 5321 section 3.8.)
    fn in_turn(&mut self) -> Result<(), Report> {
        if !self.has_spoken() {
            return Ok(());
        }
        let reply = self.reply()?;
        self.in_step = false;
        Err(report::out_of_turn(self.ip, &reply))
    }

    fn has_spoken(&self) -> bool {
        !self.reader.buffered().is_empty() || self.stream.has_spoken()
    }

    /// The next reply.
    fn reply(&mut self) -> Result<Reply, Report> {
        self.reader.set_overall(Deadline::after(self.timeout.saturating_mul(REPLY_PATIENCE)));
        let mut parser = Parser::new();
        loop {
            let bytes = match self.reader.fill() {
                Ok(bytes) if !bytes.is_empty() => bytes,
                _ => return Err(self.lost()),
            };
            let (used, reply) = parser.take(bytes);
            self.reader.consume(used);
            if let Some(reply) = reply {
                self.in_step = reply.code().is_some();
                self.closing |= reply.code() == Some(421); // rfc5321:3.8
                return Ok(reply);
            }
        }
    }

    fn lost(&mut self) -> Report {
        self.in_step = false;
        report::died(self.ip, false)
    }
}

fn write(stream: &impl Sink, bytes: &[u8], timeout: Duration, overall: Deadline) -> Result<(), Errno> {
    // Piece by piece, so that the timeout is one for each, as it is for reads.
    for piece in bytes.chunks(BURST_MAX) {
        stream.write_all(piece, Deadline::after(timeout).or(overall))?;
    }
    Ok(())
}

/// Whether an address fits into one line; anything else would let its author write commands of his own.
fn speakable(address: &[u8]) -> bool {
    !address.iter().any(|b| matches!(b, b'\r' | b'\n'))
}
