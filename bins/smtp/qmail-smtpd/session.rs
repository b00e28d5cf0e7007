//! The conversation: one command, one reply, until QUIT.

use crate::around::{Alone, Around};
use crate::config::Config;
use crate::login::Standing;
use crate::message::Incoming;
use crate::reply::{self, Reply};
use crate::submission::Completion;
use nix::errno::Errno;
use qmail::auth::Secret;
use qmail::queue::client::{Outcome, Queue};
use qmail::queue::origin::Origin;
use qmail::received::Peer;
use qmail::smtp::command::{self, Command, Path, Verb};
use qmail::timed::{Deadline, Line, Reader, Sink, Source, Writer};
use qmail::trouble::Trouble;
use qmail::{date, envelope, ipme, requiretls, sasl};
use std::net::IpAddr;
use std::time::Duration;

/// Recipients of one message (RFC 5321 section 4.5.3.1.8 asks for at least 100); 1000 of the longest are a megabyte.
const RECIPIENTS_MAX: usize = 1000;

/// How a conversation ends.
pub enum End {
    Quit,
    /// The client is gone, or does not take our replies: nobody to talk to.
    Gone,
    /// TLS has begun: another conversation, which begins with EHLO.
    Upgraded,
    /// A last reply, and if it is our own house that is in disorder, the line for the log.
    Fatal(Reply, Option<Trouble>),
}

/// The connection, with replies held back until the client has to read them.
pub struct Connection<I, O> {
    pub input: Reader<I>,
    output: Writer<O>,
    timeout: Duration,
    /// A person sits at the other end.
    pub typed: bool,
}

impl<I: Source, O: Sink> Connection<I, O> {
    /// `timeout` is for each read, write and command.
    pub fn new(input: I, output: O, timeout: Duration, typed: bool) -> Connection<I, O> {
        let input = Reader::with_timeout(input, timeout);
        Connection { input, output: Writer::with_timeout(output, timeout), timeout, typed }
    }

    pub(crate) fn put(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), End> {
        self.output.put(bytes).map_err(|_| End::Gone)
    }

    pub(crate) fn flush(&mut self) -> Result<(), End> {
        self.output.flush().map_err(|_| End::Gone)
    }

    /// Reads once, after everything we said has been sent. The number of bytes, at least one.
    pub fn more(&mut self) -> Result<usize, End> {
        self.flush()?;
        match self.input.more().map_err(unreadable)? {
            0 => Err(End::Gone),
            n => Ok(n),
        }
    }

    /// The next command line; None for one that was too long. A whole line has the time of one read.
    fn command(&mut self, logins: bool) -> Result<Option<Secret>, End> {
        let line = self.line(if logins { AUTH_LINE_MAX } else { command::LINE_MAX })?;
        Ok(line.filter(|line| line.len() <= command::LINE_MAX || is_auth(line)))
    }

    /// A line that may be a password, without its end; None for one that was too long.
    pub(crate) fn secret_line(&mut self, max: usize) -> Result<Option<Secret>, End> {
        let line = self.line(max + 1)?; // a CR is not part of it
        self.input.forget();
        Ok(line.map(|line| Secret(line.strip_suffix(b"\r").unwrap_or(&line).to_vec())))
    }

    fn line(&mut self, max: usize) -> Result<Option<Secret>, End> {
        if !self.input.buffered().contains(&b'\n') {
            self.flush()?;
        }
        self.input.set_overall(Deadline::after(self.timeout));
        match self.input.line(b'\n', max).map_err(unreadable)? {
            Line::Whole(line) => Ok(Some(Secret(line))),
            Line::TooLong => Ok(None),
            Line::End(_) => Err(End::Gone), // half a command is none
        }
    }
}

/// AUTH may bring a whole answer along (rfc4954:4).
const AUTH_LINE_MAX: usize = "AUTH SCRAM-SHA-256-PLUS ".len() + sasl::LINE_MAX + 1;

fn is_auth(line: &[u8]) -> bool {
    Command::parse(line).verb == Verb::Auth
}

fn unreadable(errno: Errno) -> End {
    if errno == Errno::ETIMEDOUT { End::Fatal(reply::TIMEOUT, None) } else { End::Gone }
}

/// What MAIL began.
struct Transaction {
    sender: Vec<u8>,
    /// The sender is in badmailfrom; said at RCPT, where it reaches the sender of the mail.
    unwelcome: bool,
    /// Each followed by a NUL, in one piece: a thousand small allocations would cost twice the memory.
    recipients: Vec<u8>,
    count: usize,
    /// The client demands TLS all the way (RFC 8689).
    requires_tls: bool,
}

impl Transaction {
    fn recipients(&self) -> impl Iterator<Item = &[u8]> {
        self.recipients.split(|b| *b == 0).take(self.count)
    }
}

pub struct Session<'a, I, O, Q, A = Alone> {
    pub(crate) config: &'a Config,
    pub(crate) peer: Peer,
    pub(crate) connection: Connection<I, O>,
    queue: Q,
    pub(crate) around: A,
    pub(crate) standing: Standing,
    /// Takes lines for the log: a queue that takes nothing is the administrator's business.
    pub(crate) warn: fn(&str, &[u8]),
    /// The name the client gave itself.
    helo: Option<Vec<u8>>,
    /// The client said EHLO: replies carry their enhanced status.
    extended: bool,
    transaction: Option<Transaction>,
    /// Our own IP addresses, once somebody wrote to one of them.
    own: Option<Vec<IpAddr>>,
    /// The peer as it was before it said anything.
    first_peer: Peer,
}

impl<'a, I: Source, O: Sink, Q: Queue> Session<'a, I, O, Q> {
    /// One without logins and TLS.
    pub fn new(
        config: &'a Config,
        peer: Peer,
        connection: Connection<I, O>,
        queue: Q,
        warn: fn(&str, &[u8]),
    ) -> Session<'a, I, O, Q> {
        Session::within(config, peer, connection, queue, Alone, warn)
    }
}

impl<'a, I: Source, O: Sink, Q: Queue, A: Around> Session<'a, I, O, Q, A> {
    pub fn within(
        config: &'a Config,
        peer: Peer,
        connection: Connection<I, O>,
        queue: Q,
        around: A,
        warn: fn(&str, &[u8]),
    ) -> Session<'a, I, O, Q, A> {
        let standing = Standing::with(around.facts());
        let first_peer = peer.clone();
        Session {
            config,
            peer,
            connection,
            queue,
            around,
            standing,
            warn,
            helo: None,
            extended: false,
            transaction: None,
            own: None,
            first_peer,
        }
    }

    pub fn run(mut self) -> Result<(), Trouble> {
        match self.converse() {
            Err(End::Quit) => Ok(()),
            Ok(()) | Err(End::Gone | End::Upgraded) => Err(Trouble::exit(1, "")),
            Err(End::Fatal(reply, trouble)) => {
                let _ = self.say(&reply).and_then(|()| self.connection.flush());
                Err(trouble.unwrap_or(Trouble::exit(1, "")))
            }
        }
    }

    fn converse(&mut self) -> Result<(), End> {
        self.connection.put([b"220 ", self.config.greeting.as_slice(), b" ESMTP\r\n"].concat())?;
        loop {
            match self.connection.command(self.config.access.is_known())? {
                Some(line) => match self.answer(Command::parse(&line)) {
                    Err(End::Upgraded) => {}
                    answered => answered?,
                },
                None => self.say(&reply::LINE_TOO_LONG)?,
            }
        }
    }

    pub(crate) fn say(&mut self, reply: &Reply) -> Result<(), End> {
        self.connection.put(reply.line(self.extended))
    }

    fn answer(&mut self, command: Command<'_>) -> Result<(), End> {
        let reply = match command.verb {
            Verb::Helo => return self.helo(command.argument),
            Verb::Ehlo => return self.ehlo(command.argument),
            Verb::Mail => self.mail(command.argument)?,
            Verb::Rcpt => self.rcpt(command.argument)?,
            Verb::Data => self.data()?,
            Verb::Rset => {
                self.transaction = None;
                reply::FLUSHED
            }
            Verb::Noop => reply::OK,
            Verb::Vrfy => reply::VRFY,
            Verb::Help => reply::HELP,
            Verb::Quit => {
                self.say(&Reply::made(221, "2.0.0", self.config.greeting.clone()))?;
                self.connection.flush()?;
                return Err(End::Quit);
            }
            Verb::Auth => {
                let reply = self.auth(command.argument);
                self.connection.input.forget();
                reply?
            }
            Verb::Starttls => self.start_tls(command.argument)?,
            Verb::Unknown => reply::UNIMPLEMENTED,
        };
        self.say(&reply)
    }

    fn helo(&mut self, name: &[u8]) -> Result<(), End> {
        self.meet(name, false);
        self.say(&Reply::made(250, "", self.config.greeting.clone()))
    }

    fn ehlo(&mut self, name: &[u8]) -> Result<(), End> {
        self.meet(name, true);
        let extensions = self.extensions();
        let mut text = self.config.greeting.clone();
        for word in extensions {
            self.connection.put([b"250-", text.as_slice(), b"\r\n"].concat())?;
            text = word;
        }
        self.say(&Reply::made(250, "", text))
    }

    /// A new name begins anew.
    fn meet(&mut self, name: &[u8], extended: bool) {
        self.helo = Some(name.to_vec());
        self.extended = extended;
        self.transaction = None;
    }

    /// Nobody has said anything yet.
    pub(crate) fn forget(&mut self) {
        self.helo = None;
        self.extended = false;
        self.transaction = None;
        self.peer = self.first_peer.clone();
    }

    pub(crate) fn is_in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// What EHLO announces. `SIZE 0` is "no limit" (rfc1870:4).
    fn extensions(&self) -> Vec<Vec<u8>> {
        let size = format!("SIZE {}", self.config.databytes);
        let words = ["PIPELINING", "8BITMIME", &size, "ENHANCEDSTATUSCODES"];
        let mut words: Vec<Vec<u8>> = words.map(|word| word.as_bytes().to_vec()).to_vec();
        words.extend(self.login_extensions());
        words
    }

    /// A refused MAIL leaves no transaction behind: its recipients must not go to an earlier sender's message.
    fn mail(&mut self, argument: &[u8]) -> Result<Reply, End> {
        self.transaction = None;
        if let Some(reply) = self.needs_login() {
            return Ok(reply);
        }
        let Some(path) = self.path(argument)? else { return Ok(reply::BAD_ADDRESS) };
        match command::declared_size(path.parameters) {
            Err(command::Malformed) => return Ok(reply::BAD_SIZE),
            Ok(Some(size)) if self.config.is_too_big(size) => return Ok(reply::TOO_BIG),
            Ok(_) => {}
        }
        let requires_tls = match command::requires_tls(path.parameters) {
            Err(command::Malformed) => return Ok(reply::BAD_REQUIRETLS),
            Ok(true) if !self.standing.facts.is_tls() => return Ok(reply::REQUIRETLS_WITHOUT_TLS),
            Ok(required) => required,
        };
        if let (Some(submission), Some(user)) = (&self.config.access.submission, &self.standing.user) {
            match submission.may_write_as(user, &path.address) {
                Ok(true) => {}
                Ok(false) => return Ok(reply::NOT_YOUR_ADDRESS),
                Err(trouble) => return Err(End::Fatal(reply::NO_CONTROLS, Some(trouble))),
            }
        }
        let unwelcome = self.config.is_bad_sender(&path.address);
        self.transaction = Some(Transaction {
            sender: path.address,
            unwelcome,
            recipients: Vec::new(),
            count: 0,
            requires_tls,
        });
        Ok(reply::OK_SENDER)
    }

    fn rcpt(&mut self, argument: &[u8]) -> Result<Reply, End> {
        if self.transaction.is_none() {
            return Ok(reply::MAIL_FIRST);
        }
        let path = self.path(argument)?;
        let Some(transaction) = &mut self.transaction else { return Ok(reply::MAIL_FIRST) };
        let Some(Path { address: mut recipient, .. }) = path else { return Ok(reply::BAD_ADDRESS) };
        if transaction.unwelcome {
            return Ok(reply::BAD_SENDER);
        }
        match &self.config.relay {
            Some(suffix) => recipient.extend_from_slice(suffix),
            None if self.standing.user.is_some() => {}
            None => match self.config.rcpthosts.allow(&recipient) {
                Ok(true) => {}
                Ok(false) => return Ok(reply::NOT_MY_DOMAIN),
                Err(trouble) => return Err(End::Fatal(reply::NO_CONTROLS, Some(trouble))),
            },
        }
        if transaction.count >= RECIPIENTS_MAX {
            return Ok(reply::TOO_MANY_RECIPIENTS);
        }
        transaction.recipients.extend_from_slice(&recipient);
        transaction.recipients.push(0);
        transaction.count += 1;
        Ok(reply::OK_RECIPIENT)
    }

    fn data(&mut self) -> Result<Reply, End> {
        match &self.transaction {
            None => return Ok(reply::MAIL_FIRST),
            Some(transaction) if transaction.count == 0 => return Ok(reply::RCPT_FIRST),
            Some(_) => {}
        }
        // Over with DATA, whatever becomes of it.
        let Some(transaction) = self.transaction.take() else { return Ok(reply::MAIL_FIRST) };
        if let Some(reply) = self.exceeds_rate(transaction.count) {
            return Ok(reply);
        }
        let completion = self.completion();
        let submission = match self.queue.submit(&self.origin()) {
            Ok(submission) => submission,
            Err(Outcome::Permanent(text) | Outcome::Temporary(text)) => {
                (self.warn)("unable to start qmail-queue", &text);
                return Ok(reply::NO_QUEUE);
            }
            Err(Outcome::Queued { .. }) => return Ok(reply::NO_QUEUE),
        };
        self.say(&reply::GO_AHEAD)?;
        let mut received = self.peer.line(self.helo.as_deref(), self.standing.protocol(), date::now());
        if transaction.requires_tls {
            received.extend_from_slice(requiretls::FIELD);
        }
        let mut incoming = Incoming::begin(self.config, submission, &received, completion);
        incoming.read(&mut self.connection)?;
        Ok(incoming.finish(&transaction.sender, transaction.recipients(), self.warn))
    }

    /// What the client has shown of itself: where there is a program in the place of qmail-queue, it is told.
    fn origin(&self) -> Origin {
        let mut origin = Origin::default();
        self.standing.facts.all().iter().for_each(|(name, value)| origin.add(name, value));
        if let (Some(user), Some(mechanism)) = (&self.standing.user, self.standing.mechanism) {
            origin.add(b"SMTPAUTHUSER", user);
            origin.add(b"SMTPAUTHMETHOD", mechanism.name().as_bytes());
            origin.add(b"TCPREMOTEINFO", user);
            origin.add(b"RELAYCLIENT", self.config.relay.as_deref().unwrap_or_default());
        }
        origin
    }

    /// Why the account may not send to so many more now.
    fn exceeds_rate(&mut self, recipients: usize) -> Option<Reply> {
        let (submission, user) = (self.config.access.submission.as_ref()?, self.standing.user.as_ref()?);
        if submission.hourly == 0 {
            return None;
        }
        let recipients = u32::try_from(recipients).unwrap_or(u32::MAX);
        match self.around.may_send(user, recipients, submission.hourly) {
            Some(true) => None,
            Some(false) => Some(reply::TOO_MANY_MESSAGES),
            None if submission.is_demanded => {
                (self.warn)("control/submissionrate cannot be kept", b"qmail-authd does not answer");
                Some(reply::NOBODY_COUNTS)
            }
            None => None,
        }
    }

    /// What the header of a user's message must have.
    fn completion(&mut self) -> Option<Completion> {
        let submission = self.config.access.submission.as_ref()?;
        Some(submission.completion(date::now(), &self.around.unique()?))
    }

    /// The address in an argument, `[IP]` of ours replaced, and what stands behind it. None when it is bad.
    fn path<'l>(&mut self, argument: &'l [u8]) -> Result<Option<Path<'l>>, End> {
        let Some(mut path) = command::path(argument) else { return Ok(None) };
        path.address = self.without_own_literal(path.address)?;
        Ok((path.address.len() <= command::ADDRESS_MAX).then_some(path))
    }

    fn without_own_literal(&mut self, address: Vec<u8>) -> Result<Vec<u8>, End> {
        let Some(name) = &self.config.localiphost else { return Ok(address) };
        let Some((local, domain)) = envelope::split(&address) else { return Ok(address) };
        let Some(ip) = command::literal(domain) else { return Ok(address) };
        if self.own.is_none() {
            let found = ipme::addresses().map_err(|errno| {
                let trouble = Trouble::temporary("unable to figure out my IP addresses").because(errno);
                End::Fatal(reply::NO_ADDRESSES, Some(trouble))
            })?;
            self.own = Some(found);
        }
        let ours = self.own.as_ref().is_some_and(|own| own.contains(&ip));
        Ok(if ours { [local, b"@", name].concat() } else { address })
    }
}
