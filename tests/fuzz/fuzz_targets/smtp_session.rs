//! Whole conversations with qmail-smtpd, in any pieces and pipelined in any way: each command has got its answer before
//! the session waits for the next, the codes are those of a model that reads byte by byte, and what goes into the
//! queue is what the model says, with no other sender and no other recipient.
#![cfg_attr(fuzzing, no_main)]

use fuzz::dialogue::{Client, Ending, Event, Fault, is_wrong, written_out};
use fuzz::fuzz_target;
use qmail::control::Set;
use qmail::ipme;
use qmail::queue::client::{Message, Outcome, Queue};
use qmail::queue::origin::Origin;
use qmail::rcpthosts::RcptHosts;
use qmail::received::Peer;
use smtpd::config::Config;
use smtpd::session::{Connection, Session};
use std::cell::RefCell;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

const LOCAL_NAME: &[u8] = b"me.example";
const SMALL: u64 = 40;
const BAD_SENDERS: [&[u8]; 2] = [b"bad@x.example", b"@evil.example"];
const HOSTS: [&[u8]; 2] = [b"ours.example", b".sub.example"];
const SUFFIX: &[u8] = b"@relay.example";
const PARTING: &[u8] = b"no (#5.7.1)\r\n250 ok\n";

/// For `replay --controls`.
pub const RECIPIENT_LOST: Fault = Fault::Result(1);
pub const BYTE_CHANGED: Fault = Fault::Result(2);
pub const REFUSED: Fault = Fault::Result(3);

/// What 0x80 and the following bytes of a script stand for.
fn phrases() -> &'static [Vec<u8>] {
    static PHRASES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    PHRASES.get_or_init(|| {
        let mut phrases: Vec<Vec<u8>> = [
            "HELO client.example\r\n",
            "EHLO client.example\r\n",
            "MAIL FROM:<a@x.example>\r\n",
            "MAIL FROM:<>\r\n",
            "MAIL FROM:<bad@x.example> SIZE=10\r\n",
            "MAIL FROM:<c@EVIL.example>\r\n",
            "MAIL FROM:<a@x.example> SIZE=41 BODY=8BITMIME\r\n",
            "MAIL FROM:<\"a b\\\"c\"@x.example>\r\n",
            "RCPT TO:<joe@ours.example>\r\n",
            "RCPT TO:<@a,@b:jim@Host.SUB.example>\r\n",
            "RCPT TO:<joe@elsewhere.example>\r\n",
            "RCPT TO:<joe@[127.0.0.1]>\r\n",
            "RCPT TO: bare@ours.example x\r\n",
            "RCPT TO:<local>\r\n",
            "DATA\r\n",
            "RSET\r\n",
            "NOOP\r\n",
            "VRFY joe\r\n",
            "HELP\r\n",
            "QUIT\r\n",
            "STARTTLS\r\n",
            "BDAT 3 LAST\r\n",
            "\r\n.\r\n",
            ".\r\n",
            "Subject: x\r\n\r\n",
            "..stuffed\r\n",
            "\n.\n",
            "\r\n.\n",
            "\r\r\n",
            "\0",
        ]
        .map(|phrase| phrase.as_bytes().to_vec())
        .to_vec();
        phrases.push(b"Received: by a\r\nDelivered-To: b\r\n".repeat(30));
        phrases.push(b"RCPT TO:<m>\r\n".repeat(250));
        phrases.push([b"MAIL FROM:<".as_slice(), &[b'a'; 890], b"@x.example>\r\n"].concat());
        phrases.push(vec![b'x'; 4090]);
        phrases
    })
}

/// Addresses of this machine, for `[IP]` in an address.
fn own() -> &'static [IpAddr] {
    static OWN: OnceLock<Vec<IpAddr>> = OnceLock::new();
    OWN.get_or_init(|| ipme::addresses().expect("this machine's addresses"))
}

/// What went into the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Queued {
    message: Vec<u8>,
    sender: Vec<u8>,
    recipients: Vec<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Takes,
    Refuses,
    Defers,
    IsAway,
}

/// A queue that only remembers.
#[derive(Clone)]
struct Memory {
    mood: Mood,
    queued: Rc<RefCell<Vec<Queued>>>,
}

struct Writing {
    memory: Memory,
    message: Vec<u8>,
    aborted: bool,
}

impl Queue for Memory {
    type Message = Writing;

    fn submit(&self, _: &Origin) -> Result<Writing, Outcome> {
        match self.mood {
            Mood::IsAway => Err(Outcome::Temporary(b"away".to_vec())),
            _ => Ok(Writing { memory: self.clone(), message: Vec::new(), aborted: false }),
        }
    }
}

impl Message for Writing {
    fn put(&mut self, bytes: &[u8]) {
        self.message.extend_from_slice(bytes);
        if let (true, Some(byte)) = (is_wrong(BYTE_CHANGED), self.message.last_mut()) {
            *byte ^= 1;
        }
    }

    fn abort(&mut self) {
        self.aborted = true;
    }

    fn close_with<'a>(self, sender: &[u8], recipients: impl Iterator<Item = &'a [u8]>) -> Outcome {
        match self.memory.mood {
            _ if self.aborted => Outcome::Temporary(b"read error".to_vec()),
            Mood::Refuses => Outcome::Permanent(PARTING.to_vec()),
            Mood::Defers | Mood::IsAway => Outcome::Temporary(PARTING.to_vec()),
            Mood::Takes => {
                let mut recipients: Vec<Vec<u8>> = recipients.map(<[u8]>::to_vec).collect();
                if is_wrong(RECIPIENT_LOST) {
                    recipients.pop();
                }
                let queued = Queued { message: self.message, sender: sender.to_vec(), recipients };
                self.memory.queued.borrow_mut().push(queued);
                if is_wrong(REFUSED) {
                    return Outcome::Temporary(PARTING.to_vec());
                }
                Outcome::Queued { qp: 7 }
            }
        }
    }
}

/// Which of the administrator's decisions hold.
#[derive(Debug, Clone, Copy)]
struct Decided {
    small: bool,
    relay: bool,
    listed: bool,
    badmailfrom: bool,
    localip: bool,
    typed: bool,
    mood: Mood,
}

impl Decided {
    fn of(flags: u8) -> Decided {
        let has = |bit: u8| flags & 1 << bit != 0;
        let moods = [Mood::Takes, Mood::Refuses, Mood::Defers, Mood::IsAway];
        Decided {
            small: has(0),
            relay: has(1),
            listed: has(2),
            badmailfrom: has(3),
            localip: has(4),
            typed: has(7),
            mood: moods[usize::from(flags >> 5 & 3)],
        }
    }

    fn config(&self) -> Config {
        let set = |list: &[&[u8]]| Set::of(&list.iter().map(|e| e.to_vec()).collect::<Vec<_>>());
        Config {
            greeting: b"mx.example".to_vec(),
            timeout: Duration::from_secs(1200),
            databytes: if self.small { SMALL } else { 0 },
            relay: self.relay.then(|| SUFFIX.to_vec()),
            rcpthosts: if self.listed { RcptHosts::of(set(&HOSTS)) } else { RcptHosts::default() },
            badmailfrom: if self.badmailfrom { set(&BAD_SENDERS) } else { Set::default() },
            access: Default::default(),
            localiphost: self.localip.then(|| LOCAL_NAME.to_vec()),
        }
    }
}

/// An answer: its code, its lines, and whether it has an enhanced status where the client said EHLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    code: u16,
    lines: usize,
    enhanced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Command,
    Data(Place),
    Over,
}

/// Where in a line of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    Middle,
    Dot,
    DotCr,
    Cr,
}

/// What RFC 5321 and the manual page say, read byte by byte.
struct Model {
    decided: Decided,
    state: State,
    line: Vec<u8>,
    extended: bool,
    sender: Option<Vec<u8>>,
    recipients: Vec<Vec<u8>>,
    message: Vec<u8>,
    queued: Vec<Queued>,
    answers: Vec<Answer>,
    quit: bool,
}

impl Model {
    fn new(decided: Decided) -> Model {
        Model {
            decided,
            state: State::Command,
            line: Vec::new(),
            extended: false,
            sender: None,
            recipients: Vec::new(),
            message: Vec::new(),
            queued: Vec::new(),
            answers: vec![Answer { code: 220, lines: 1, enhanced: false }],
            quit: false,
        }
    }

    fn say(&mut self, code: u16) {
        self.answers.push(Answer { code, lines: 1, enhanced: self.extended });
    }

    fn say_plainly(&mut self, code: u16, lines: usize) {
        self.answers.push(Answer { code, lines, enhanced: false });
    }

    fn take(&mut self, byte: u8) {
        match self.state {
            State::Over => {}
            State::Command if byte == b'\n' => {
                let line = std::mem::take(&mut self.line);
                if line.len() > 4096 {
                    return self.say(500);
                }
                self.command(line.strip_suffix(b"\r").unwrap_or(&line));
            }
            State::Command => self.line.push(byte),
            State::Data(place) => self.data(place, byte),
        }
    }

    fn command(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let verb = text.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        let argument = line.get(verb.len()..).unwrap_or_default();
        let spaces = argument.iter().take_while(|b| **b == b' ').count();
        let argument = &argument[spaces..];
        match verb.as_str() {
            "HELO" | "EHLO" => {
                self.extended = verb == "EHLO";
                self.sender = None;
                self.say_plainly(250, if self.extended { 5 } else { 1 });
            }
            "MAIL" => self.mail(argument),
            "RCPT" => self.rcpt(argument),
            "DATA" if self.sender.is_none() || self.recipients.is_empty() => self.say(503),
            "DATA" if self.decided.mood == Mood::IsAway => {
                self.sender = None;
                self.say(451);
            }
            "DATA" => {
                self.say_plainly(354, 1);
                self.state = State::Data(Place::Start);
            }
            "RSET" => {
                self.sender = None;
                self.say(250);
            }
            "NOOP" => self.say(250),
            "VRFY" => self.say(252),
            "HELP" => self.say(214),
            "QUIT" => {
                self.say(221);
                self.state = State::Over;
                self.quit = true;
            }
            _ => self.say(502),
        }
    }

    fn mail(&mut self, argument: &[u8]) {
        self.sender = None;
        let Some((sender, parameters)) = self.address(argument) else { return self.say(555) };
        let mut size = 0;
        let (mut requires_tls, mut has_value) = (false, false);
        for word in parameters.split(|b| matches!(b, b' ' | b'\t')) {
            let text = String::from_utf8_lossy(word);
            let (name, value) = text.split_once('=').unwrap_or((&text, ""));
            if name.eq_ignore_ascii_case("SIZE") {
                if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
                    return self.say(501);
                }
                let Ok(number) = value.parse::<u64>() else { return self.say(501) };
                size = number;
            } else if name.eq_ignore_ascii_case("REQUIRETLS") {
                requires_tls = true;
                has_value |= text.contains('=');
            }
        }
        if self.decided.small && size > SMALL {
            return self.say(552);
        }
        if requires_tls {
            return self.say(if has_value { 501 } else { 530 }); // there is no TLS here
        }
        self.sender = Some(sender);
        self.recipients.clear();
        self.say(250);
    }

    fn rcpt(&mut self, argument: &[u8]) {
        let Some(sender) = self.sender.clone() else { return self.say(503) };
        let Some((mut recipient, _)) = self.address(argument) else { return self.say(555) };
        let sender_domain = sender.iter().rposition(|b| *b == b'@').map(|at| &sender[at..]);
        let bad = |entry: &&[u8]| {
            entry.eq_ignore_ascii_case(&sender)
                || sender_domain.is_some_and(|d| entry.eq_ignore_ascii_case(d))
        };
        if self.decided.badmailfrom && BAD_SENDERS.iter().any(bad) {
            return self.say(553);
        }
        let domain =
            recipient.iter().rposition(|b| *b == b'@').map(|at| recipient[at + 1..].to_ascii_lowercase());
        if self.decided.relay {
            recipient.extend_from_slice(SUFFIX);
        } else if self.decided.listed
            && let Some(domain) = domain
            && domain != HOSTS[0]
            && !domain.ends_with(HOSTS[1])
        {
            return self.say(553);
        }
        if self.recipients.len() == 1000 {
            return self.say(452);
        }
        self.recipients.push(recipient);
        self.say(250);
    }

    /// The address of an argument and what stands behind it.
    fn address<'a>(&self, argument: &'a [u8]) -> Option<(Vec<u8>, &'a [u8])> {
        let position = |text: &[u8], wanted: u8| text.iter().position(|b| *b == wanted);
        let (mut text, end) = match (position(argument, b'<'), position(argument, b':')) {
            _ if argument.is_empty() => (argument, b' '),
            (Some(at), _) => (&argument[at + 1..], b'>'),
            (None, Some(at)) => {
                let text = &argument[at + 1..];
                (&text[text.iter().take_while(|b| **b == b' ').count()..], b' ')
            }
            (None, None) => return None,
        };
        if text.first() == Some(&b'@') {
            let route = &text[..position(text, end).unwrap_or(text.len())];
            text = &text[position(route, b':')? + 1..];
        }
        let (mut address, mut at, mut quoted) = (Vec::new(), 0, false);
        while at < text.len() {
            match text[at] {
                b'\\' => {
                    at += 1;
                    address.extend(text.get(at));
                }
                b'"' => quoted = !quoted,
                byte if byte == end && !quoted => break,
                byte => address.push(byte),
            }
            at += 1;
        }
        if address.iter().any(|b| matches!(b, 0 | b'\r')) {
            return None;
        }
        let rest = text.get(at + 1..).unwrap_or_default();
        if let (true, Some(host)) = (self.decided.localip, address.iter().rposition(|b| *b == b'@'))
            && let Some(inside) = address[host + 1..].strip_prefix(b"[").and_then(|d| d.strip_suffix(b"]"))
            && let Ok(ip) = std::str::from_utf8(inside)
        {
            let tagged = ip.get(..5).is_some_and(|tag| tag.eq_ignore_ascii_case("IPv6:"));
            let six = if tagged { &ip[5..] } else { ip };
            let ip = ip.parse().ok().map(IpAddr::V4).or(six.parse::<Ipv6Addr>().ok().map(IpAddr::V6));
            if ip.is_some_and(|ip| own().contains(&ip)) {
                address.truncate(host + 1);
                address.extend_from_slice(LOCAL_NAME);
            }
        }
        (address.len() <= 899).then_some((address, rest))
    }

    fn data(&mut self, place: Place, byte: u8) {
        if byte == b'\n' && self.decided.typed && !matches!(place, Place::Cr | Place::DotCr) {
            // Enter.
            self.data(place, b'\r');
            let State::Data(place) = self.state else { return };
            return self.data(place, b'\n');
        }
        let (stored, next): (&[u8], Place) = match (place, byte) {
            (Place::DotCr, b'\n') => return self.end_of_data(),
            (Place::Cr, b'\n') => (b"\n", Place::Start),
            (_, b'\n') => {
                self.state = State::Over;
                return self.say(451);
            }
            (Place::Start, b'.') => (b"", Place::Dot),
            (Place::Dot, b'\r') => (b"", Place::DotCr),
            (Place::DotCr, b'\r') => (b".\r", Place::Cr),
            (Place::Cr, b'\r') => (b"\r", Place::Cr),
            (_, b'\r') => (b"", Place::Cr),
            (Place::DotCr, x) => (&[b'.', b'\r', x], Place::Middle),
            (Place::Cr, x) => (&[b'\r', x], Place::Middle),
            (_, x) => (&[x], Place::Middle),
        };
        self.message.extend_from_slice(stored);
        self.state = State::Data(next);
    }

    fn end_of_data(&mut self) {
        let message = std::mem::take(&mut self.message);
        let header = message.split(|b| *b == b'\n').take_while(|line| !line.is_empty());
        let hop = |line: &&[u8]| {
            [b"received".as_slice(), b"delivered"]
                .iter()
                .any(|w| line.get(..w.len()).is_some_and(|start| start.eq_ignore_ascii_case(w)))
        };
        let looping = header.filter(hop).count() >= 100;
        let too_big = self.decided.small && message.len() as u64 > SMALL;
        let sender = self.sender.take().unwrap_or_default();
        match self.decided.mood {
            _ if looping => self.say(554),
            _ if too_big => self.say(552),
            Mood::Refuses => self.say(554),
            Mood::Defers | Mood::IsAway => self.say(451),
            Mood::Takes => {
                let recipients = self.recipients.clone();
                self.queued.push(Queued { message, sender, recipients });
                self.say(250);
            }
        }
        self.state = State::Command;
    }

    /// No more words.
    fn ended(&mut self, ending: Ending) {
        match (self.state, ending) {
            (State::Over, _) => {}
            (_, Ending::Silence) => self.say(451),
            (State::Command, Ending::End) if self.line.len() > 4096 => self.say(500),
            (_, Ending::End) => {}
        }
        self.state = State::Over;
    }
}

/// The answers among these bytes: nothing else may be there.
fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut found = Vec::new();
    let mut lines = 0;
    while !bytes.is_empty() {
        let end = bytes.windows(2).position(|w| w == b"\r\n").expect("an answer ends in CR LF");
        let line = &bytes[..end];
        bytes = &bytes[end + 2..];
        assert!(line.iter().all(|b| matches!(b, 32..=126)), "{line:?}");
        lines += 1;
        let code = line.get(..3).and_then(|c| std::str::from_utf8(c).ok()?.parse().ok()).expect("a code");
        match line.get(3) {
            Some(b'-') => continue,
            Some(b' ') => {}
            _ => panic!("an answer without a space behind its code: {line:?}"),
        }
        let status = line[4..].split(|b| *b == b' ').next().unwrap_or_default();
        let parts: Vec<&[u8]> = status.split(|b| *b == b'.').collect();
        let number = |part: &&[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
        let enhanced = parts.len() == 3 && parts.iter().all(number);
        assert!(!enhanced || status[0] == line[0], "status and code contradict each other: {line:?}");
        found.push(Answer { code, lines, enhanced });
        lines = 0;
    }
    found
}

/// Compares what was said with the model's answers, whenever the session waits and at its end.
struct Judge {
    model: Model,
    ending: Ending,
    /// Of the model's answers, how many have been compared.
    compared: usize,
    /// The client's words are over.
    left: bool,
}

impl Judge {
    fn look(&mut self, event: Event<'_>) {
        match event {
            Event::Said(said) => {
                let expected = &self.model.answers[self.compared..];
                assert_eq!(answers(said), expected, "said {:?}", String::from_utf8_lossy(said));
                self.compared = self.model.answers.len();
            }
            Event::Reads(words) => {
                assert!(self.left || self.model.state != State::Over, "the session should be over");
                words.iter().for_each(|byte| self.model.take(*byte));
                if words.is_empty() && !self.left {
                    self.left = true;
                    self.model.ended(self.ending);
                }
            }
        }
    }
}

fuzz_target!(|input: (u8, u8, u8, &[u8])| {
    let (flags, cut, patience, script) = input;
    let decided = Decided::of(flags);
    let config = decided.config();
    let ending = if patience & 1 == 0 { Ending::End } else { Ending::Silence };
    let mut judge = Judge { model: Model::new(decided), ending, compared: 0, left: false };
    let client = Client::new(written_out(script, phrases(), cut), cut, |event| judge.look(event))
        .ending(ending)
        .taking(usize::from(patience >> 1) * 16);

    let memory = Memory { mood: decided.mood, queued: Rc::default() };
    let queued = Rc::clone(&memory.queued);
    let peer = Peer { host: b"host".to_vec(), ip: b"192.0.2.7".to_vec(), info: None, local: b"mx".to_vec() };
    let connection = Connection::new(&client, &client, config.timeout, decided.typed);
    let ended = Session::new(&config, peer, connection, memory, |_, _| {}).run();
    let whole = client.took_all();
    client.finish();

    // The Received line is not the client's.
    let mut queued = queued.take();
    for one in &mut queued {
        assert!(one.message.starts_with(b"Received: from host "));
        let line = one.message.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(1).expect("two lines").0;
        one.message.drain(..=line);
    }
    let model = &judge.model;
    if whole {
        assert_eq!(queued, model.queued);
        assert_eq!(ended.is_ok(), model.quit);
    } else {
        // A client that broke off may not have heard of the last.
        assert!(model.queued.starts_with(&queued) && ended.is_err());
    }
});
