//! Whole conversations of qmail-remote with a server that says anything, in any pieces, asked or not: success only where the
//! message went out whole and every answer, read strictly, says so; "never" only where a 5xx was said in its turn.
#![cfg_attr(fuzzing, no_main)]

use fuzz::dialogue::{Fault, is_wrong, written_out};
use fuzz::{fuzz_target, scratch};
use nix::errno::Errno;
use qmail::fd::Standard;
use qmail::timed::{Deadline, Sink, Source};
use remote::dialogue::{Outcome, Server, Session};
use remote::message::Message;
use remote::report::Report;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;
use std::time::Duration;

/// For `replay --controls`.
pub const ACCEPTED_ANYWAY: Fault = Fault::Result(1);
pub const DOT_LOST: Fault = Fault::Result(2);

/// Between what is said at one time and at the next.
const TURN: u8 = 0xfe;

/// What is said before it is asked for begins so.
const UNASKED: u8 = 0xfd;

/// What 0x80 and the following bytes of a script stand for.
fn phrases() -> &'static [Vec<u8>] {
    static PHRASES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    PHRASES.get_or_init(|| {
        let phrases = [
            "220 hello\r\n",
            "250-mx\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE\r\n",
            "250-mx\r\n250 SIZE 100\r\n",
            "250 ok\r\n",
            "250\r\n",
            "251 ok\n",
            "354 go ahead\r\n",
            "550 no\r\n",
            "550-no\r\n550 never\r\n",
            "450 later\r\n",
            "421 going\r\n",
            "250-a\r\n550 b\r\n",
            "550-a\r\n250 b\r\n",
            "2500 x\r\n",
            "25",
            "999 x\r\n",
            "150 x\r\n",
            "\r\n",
            "\0",
        ];
        let mut phrases: Vec<Vec<u8>> = phrases.map(|phrase| phrase.as_bytes().to_vec()).to_vec();
        phrases.push([b"250-".as_slice(), &[b'x'; 2000], b"\r\n"].concat());
        phrases
    })
}

/// A server in memory.
struct Script {
    turns: RefCell<VecDeque<Vec<u8>>>,
    cut: usize,
    ends_by_silence: bool,
    /// What the client read, and what it wrote.
    heard: RefCell<Vec<u8>>,
    told: RefCell<Vec<u8>>,
}

impl Source for &Script {
    fn read(&self, buffer: &mut [u8], _: Deadline, _: Option<Standard>) -> Result<usize, Errno> {
        let mut turns = self.turns.borrow_mut();
        while turns.front().is_some_and(|turn| turn.is_empty() || turn == &[UNASKED]) {
            turns.pop_front();
        }
        let Some(turn) = turns.front_mut() else {
            return if self.ends_by_silence { Err(Errno::ETIMEDOUT) } else { Ok(0) };
        };
        if turn.first() == Some(&UNASKED) {
            turn.remove(0);
        }
        let n = turn.len().min(buffer.len()).min(self.cut);
        for (place, byte) in buffer.iter_mut().zip(turn.drain(..n)) {
            *place = byte;
        }
        self.heard.borrow_mut().extend_from_slice(&buffer[..n]);
        if is_wrong(ACCEPTED_ANYWAY) {
            for place in buffer[..n].iter_mut().filter(|b| **b == b'4') {
                *place = b'2'; // the client takes 450 for a 250
            }
        }
        Ok(n)
    }
}

impl Sink for &Script {
    fn write_all(&self, bytes: &[u8], _: Deadline) -> Result<(), Errno> {
        let lost = is_wrong(DOT_LOST) && bytes.ends_with(b"\r\n.\r\n");
        self.told.borrow_mut().extend_from_slice(&bytes[..bytes.len() - if lost { 3 } else { 0 }]);
        Ok(())
    }
}

impl Server for &Script {
    /// What is left of a turn was not asked for; a new turn only where it says so.
    fn has_spoken(&self) -> bool {
        let turns = self.turns.borrow();
        let begun = !self.heard.borrow().is_empty();
        turns.front().is_some_and(|turn| begun && turn.first() == Some(&UNASKED))
    }
}

/// The codes of the replies at the beginning of these bytes; what follows the last of them is none.
fn strictly(bytes: &[u8]) -> Vec<u16> {
    let (mut codes, mut within) = (Vec::new(), None);
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let Some(text) = line.strip_suffix(b"\n") else { break };
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let digits = text.get(..3).filter(|d| d.iter().all(u8::is_ascii_digit));
        let code = digits.map(|d| d.iter().fold(0, |n, b| n * 10 + u16::from(b - b'0')));
        match (code, text.get(3)) {
            (Some(code @ 200..=599), next) if within.is_none_or(|c| c == code) => match next {
                Some(b'-') => within = Some(code),
                None | Some(b' ') => {
                    codes.push(code);
                    within = None;
                }
                _ => break,
            },
            _ => break,
        }
    }
    codes
}

/// The message on its way to a receiver that knows CR LF . CR LF alone, and what follows it.
fn received(wire: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (mut got, mut rest) = (Vec::new(), wire);
    loop {
        let at = rest.windows(2).position(|w| w == b"\r\n")?;
        let line = &rest[..at];
        rest = &rest[at + 2..];
        if line == b"." {
            return Some((got, rest));
        }
        got.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
        got.push(b'\n');
    }
}

fn speakable(address: &[u8]) -> bool {
    !address.iter().any(|b| matches!(b, b'\r' | b'\n'))
}

fuzz_target!(|input: (u8, u8, &[u8], &[u8], &[u8])| {
    let (cut, flags, addresses, message, script) = input;
    let mut addresses = addresses.split(|b| *b == 0).map(<[u8]>::to_vec);
    let sender = addresses.next().unwrap_or_default();
    let recipients: Vec<Vec<u8>> = addresses.take(20).chain([b"joe@x.example".to_vec()]).collect();
    let turns: VecDeque<Vec<u8>> = script
        .split(|b| *b == TURN)
        .map(|turn| match turn.strip_prefix(&[UNASKED]) {
            Some(rest) => [&[UNASKED], written_out(rest, phrases(), 1).as_slice()].concat(),
            None => written_out(turn, phrases(), 1),
        })
        .collect();
    let server = Script {
        turns: RefCell::new(turns),
        cut: if cut == 0 { usize::MAX } else { usize::from(cut) },
        ends_by_silence: flags & 1 != 0,
        heard: RefCell::default(),
        told: RefCell::default(),
    };

    let path = scratch().join("message");
    std::fs::write(&path, message).expect("scratch space");
    let whole = matches!(message, [] | [.., b'\n']);
    let Ok(mut file) = Message::open(File::open(&path).expect("scratch space")) else {
        assert!(!whole);
        return;
    };
    assert!(whole, "a message without an end was taken");

    let mut reports: Vec<Vec<u8>> = Vec::new();
    let mut tell = |report: &Report| reports.push(report.bytes());
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut session = Session::new(ip, &server, Duration::from_secs(1200));
    let outcome = session.greet().and_then(|()| session.hello(b"me.example")).map(|()| {
        let outcome = session.send(&mut file, &sender, &recipients, &mut tell);
        session.quit();
        outcome
    });
    let verdict = match outcome {
        Ok(Outcome::Report(report)) | Err(report) => report.bytes(),
        Ok(Outcome::NotBegun) => unreachable!("it was the first message"),
    };
    assert!(matches!(verdict.first(), Some(b'K' | b'Z' | b'D')));
    for report in reports.iter().chain([&verdict]) {
        assert_eq!(
            report.iter().position(|b| *b == 0),
            Some(report.len() - 1),
            "a report that is more than one"
        );
    }
    assert!(reports.len() <= recipients.len());

    let heard = server.heard.take();
    let told = server.told.take();
    let codes = strictly(&heard);
    let never_said = codes.iter().all(|code| *code < 500);
    let unspeakable = recipients.iter().any(|r| !speakable(r));
    assert!(verdict[0] != b'D' || !never_said || unspeakable || !speakable(&sender), "never, out of nothing");
    for (report, recipient) in reports.iter().zip(&recipients) {
        match report[0] {
            b'r' => assert!(speakable(recipient)),
            b'h' => assert!(!never_said || !speakable(recipient), "never, out of nothing"),
            letter => assert_eq!(letter, b's'),
        }
    }

    // Commands, one a line; behind DATA what may be a message.
    let mut commands = Vec::new();
    let mut rest = told.as_slice();
    while let Some(at) = rest.windows(2).position(|w| w == b"\r\n") {
        let line = &rest[..at];
        assert!(!line.iter().any(|b| matches!(b, b'\r' | b'\n')));
        commands.push(line);
        rest = &rest[at + 2..];
        if line == b"DATA" {
            break;
        }
    }
    for command in &commands {
        let known = [
            b"EHLO me.example".as_slice(),
            b"HELO me.example",
            b"MAIL FROM:<",
            b"RCPT TO:<",
            b"DATA",
            b"QUIT",
        ];
        assert!(known.iter().any(|k| command.starts_with(k)), "{:?}", String::from_utf8_lossy(command));
    }
    if verdict[0] != b'K' {
        return;
    }

    // Greeting, an answer to each command, and the one that decides. What is said behind that one is not looked at.
    let codes = codes.get(..commands.len() + 2).expect("an answer to everything");
    assert_eq!(commands.last(), Some(&b"DATA".as_slice()));
    assert!(matches!(codes, [220, .., 300..=399, 200..=299]), "{codes:?}");
    let (got, behind) = received(rest).expect("an end");
    assert_eq!(behind, b"QUIT\r\n");
    if !message.contains(&b'\r') {
        assert_eq!(got, message);
    }
    let asked = commands.iter().zip(&codes[1..]);
    let mut answers = asked.filter(|(command, _)| command.starts_with(b"RCPT")).map(|(_, code)| code / 100);
    assert_eq!(reports.len(), recipients.len());
    for (report, recipient) in reports.iter().zip(&recipients) {
        let answer = if speakable(recipient) { answers.next() } else { Some(5) };
        let expected = match answer {
            Some(2) => b'r',
            Some(5) => b'h',
            _ => b's',
        };
        assert_eq!(report[0], expected);
    }
    assert_eq!(answers.next(), None);
    assert!(reports.iter().any(|report| report[0] == b'r'));
});
