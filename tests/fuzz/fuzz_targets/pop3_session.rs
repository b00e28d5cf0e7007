//! Whole sessions of qmail-pop3d over a real Maildir, in any pieces and pipelined in any way: what is answered, before
//! the session waits for the next command, is what a model answers, byte by byte; nothing changes before QUIT; and
//! at QUIT exactly the messages go that were deleted.
#![cfg_attr(fuzzing, no_main)]

use fuzz::dialogue::{Client, Ending, Event, Fault, is_wrong, written_out};
use fuzz::{fuzz_target, scratch};
use pop::connection::Answers;
use pop::maildrop::Maildrop;
use pop::session;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The messages a Maildir may hold, in the order in which a session counts them.
const MESSAGES: [(&str, &[u8]); 4] = [
    ("cur/1700000000.1.host:2,S", b"Subject: one\n\n.\n..two\nthree\r\n.\r\nfour"),
    ("new/1700000001.M5P2.host,S=9", b"a\n\nb\nc\nd"),
    ("cur/1700000002.M1P3.host,S=3,W=70:2,", b"no header\r"),
    ("new/1700000003.a b.host", b""),
];

/// The unique id of the last: its name is not fit to be one.
fn id(at: usize) -> Vec<u8> {
    let name = MESSAGES[at].0;
    let base = name[4..].split(':').next().unwrap_or_default();
    if at == 3 { qmail::pop3::unique_id(base.as_bytes()) } else { base.as_bytes().to_vec() }
}

/// As the names say, else as the file is.
const SIZES: [u64; 4] = [36, 9, 70, 0];

/// For `replay --controls`.
pub const MESSAGE_GONE: Fault = Fault::Result(1);

/// What 0x80 and the following bytes of a script stand for.
fn phrases() -> &'static [Vec<u8>] {
    static PHRASES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    PHRASES.get_or_init(|| {
        let phrases = [
            "STAT\r\n",
            "LIST\r\n",
            "UIDL\r\n",
            "LIST 1\r\n",
            "UIDL 2\r\n",
            "RETR 1\r\n",
            "RETR 2\r\n",
            "RETR 3\r\n",
            "RETR 4\r\n",
            "TOP 1 0\r\n",
            "TOP 1 3\r\n",
            "TOP 2 1\r\n",
            "DELE 1\r\n",
            "DELE 2\r\n",
            "DELE 3\r\n",
            "DELE 4\r\n",
            "RSET\r\n",
            "LAST\r\n",
            "NOOP\r\n",
            "CAPA\r\n",
            "QUIT\r\n",
            "USER x\r\n",
            "DELE 1a\r\n",
            "DELE 18446744073709551617\r\n",
            "RETR 0\r\n",
            "TOP 1\r\n",
            "TOP 2 99999999999999999999\r\n",
            "LIST  2 \r\n",
            "\n",
            "\0",
        ];
        let mut phrases: Vec<Vec<u8>> = phrases.map(|phrase| phrase.as_bytes().to_vec()).to_vec();
        phrases.push(vec![b'x'; 4090]);
        phrases
    })
}

/// RFC 1939 and the manual page, over the messages that are there.
struct Model {
    /// Of MESSAGES.
    there: Vec<usize>,
    deleted: Vec<bool>,
    last: usize,
    line: Vec<u8>,
    said: Vec<u8>,
    over: bool,
    quit: bool,
}

impl Model {
    fn new(there: Vec<usize>) -> Model {
        let deleted = vec![false; there.len()];
        Model {
            there,
            deleted,
            last: 0,
            line: Vec::new(),
            said: b"+OK \r\n".to_vec(),
            over: false,
            quit: false,
        }
    }

    fn say(&mut self, text: &str) {
        self.said.extend_from_slice(text.as_bytes());
        self.said.extend_from_slice(b"\r\n");
    }

    fn take(&mut self, byte: u8) {
        match byte {
            _ if self.over => {}
            b'\n' => {
                let line = std::mem::take(&mut self.line);
                if line.len() > 4096 {
                    return self.say("-ERR line too long");
                }
                self.command(line.strip_suffix(b"\r").unwrap_or(&line));
            }
            byte => self.line.push(byte),
        }
    }

    fn command(&mut self, line: &[u8]) {
        let mut words = line.split(|b| *b == b' ');
        let verb = words.next().unwrap_or_default().to_ascii_uppercase();
        let words: Vec<&[u8]> = words.filter(|w| !w.is_empty()).collect();
        match (verb.as_slice(), words.as_slice()) {
            (b"STAT", _) => {
                let left: Vec<usize> = (0..self.there.len()).filter(|at| !self.deleted[*at]).collect();
                let bytes: u64 = left.iter().map(|at| SIZES[self.there[*at]]).sum();
                self.say(&format!("+OK {} {bytes}", left.len()));
            }
            (b"LIST" | b"UIDL", []) => {
                self.say("+OK ");
                for at in 0..self.there.len() {
                    if !self.deleted[at] {
                        self.tell(&verb, at);
                    }
                }
                self.say(".");
            }
            (b"LIST" | b"UIDL", [word]) => {
                if let Some(at) = self.number(word) {
                    self.said.extend_from_slice(b"+OK ");
                    self.tell(&verb, at);
                }
            }
            (b"RETR", [word]) => {
                if let Some(at) = self.number(word) {
                    self.send(at, None);
                }
            }
            (b"TOP", [word, lines]) => {
                if let Some(at) = self.number(word) {
                    if !lines.iter().all(u8::is_ascii_digit) {
                        return self.say("-ERR syntax error");
                    }
                    let lines = String::from_utf8_lossy(lines).parse().unwrap_or(usize::MAX);
                    self.send(at, Some(lines));
                }
            }
            (b"DELE", [word]) => {
                if let Some(at) = self.number(word) {
                    self.deleted[at] = true;
                    self.last = self.last.max(at + 1);
                    self.say("+OK ");
                }
            }
            (b"LIST" | b"UIDL" | b"RETR" | b"TOP" | b"DELE", _) => self.say("-ERR syntax error"),
            (b"RSET", _) => {
                self.deleted.fill(false);
                self.last = 0;
                self.say("+OK ");
            }
            (b"LAST", _) => self.say(&format!("+OK {}", self.last)),
            (b"NOOP", _) => self.say("+OK "),
            (b"CAPA", _) => {
                let words = "USER\r\nTOP\r\nUIDL\r\nPIPELINING\r\nRESP-CODES\r\nAUTH-RESP-CODE";
                self.say(&format!("+OK \r\n{words}\r\nIMPLEMENTATION qmail-rs\r\n."));
            }
            (b"QUIT", _) => {
                self.say("+OK ");
                (self.over, self.quit) = (true, true);
            }
            _ => self.say("-ERR unimplemented"),
        }
    }

    fn number(&mut self, word: &[u8]) -> Option<usize> {
        let digits = word.iter().all(u8::is_ascii_digit);
        let number = String::from_utf8_lossy(word).trim_start_matches('0').parse::<u128>().unwrap_or(0);
        let high = word.iter().filter(|b| **b != b'0').count() > 38 || number > self.there.len() as u128;
        match () {
            () if !digits => self.say("-ERR syntax error"),
            () if high => self.say("-ERR not that many messages"),
            () if number == 0 => self.say("-ERR messages are counted from 1"),
            () if self.deleted[number as usize - 1] => self.say("-ERR already deleted"),
            () => return Some(number as usize - 1),
        }
        None
    }

    fn tell(&mut self, verb: &[u8], at: usize) {
        let message = self.there[at];
        let value = if verb == b"UIDL" { id(message) } else { SIZES[message].to_string().into_bytes() };
        self.say(&format!("{} {}", at + 1, String::from_utf8_lossy(&value)));
    }

    /// Line by line.
    fn send(&mut self, at: usize, body: Option<usize>) {
        self.say("+OK ");
        let (mut in_body, mut left) = (false, body.unwrap_or(usize::MAX));
        for line in MESSAGES[self.there[at]].1.split_inclusive(|b| *b == b'\n') {
            if in_body && left == 0 {
                break;
            }
            left -= usize::from(in_body);
            in_body |= matches!(line, b"\n" | b"\r\n");
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            if text.starts_with(b".") {
                self.said.push(b'.');
            }
            self.said.extend_from_slice(text);
            self.said.extend_from_slice(b"\r\n");
        }
        self.say(".");
    }
}

/// The files of a Maildir and what is in them.
fn files(maildir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for directory in ["new", "cur", "tmp"] {
        for entry in std::fs::read_dir(maildir.join(directory)).expect("a directory") {
            let name = entry.expect("a name").file_name().into_string().expect("a name of ours");
            let bytes = std::fs::read(maildir.join(directory).join(&name)).expect("a file");
            found.insert(format!("{directory}/{name}"), bytes);
        }
    }
    found
}

/// The Maildir of this process.
fn maildir() -> &'static PathBuf {
    static MAILDIR: OnceLock<PathBuf> = OnceLock::new();
    MAILDIR.get_or_init(|| {
        let maildir = scratch().join("Maildir");
        for directory in ["new", "cur", "tmp"] {
            std::fs::create_dir_all(maildir.join(directory)).expect("scratch space");
        }
        maildir
    })
}

/// The working directory for a while.
struct Inside {
    outside: PathBuf,
}

impl Inside {
    fn of(directory: &Path) -> Inside {
        let outside = std::env::current_dir().expect("a directory to come back to");
        std::env::set_current_dir(directory).expect("scratch space");
        Inside { outside }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        std::env::set_current_dir(&self.outside).expect("a directory to come back to");
    }
}

fuzz_target!(|input: (u8, u8, u8, &[u8])| {
    let (which, cut, patience, script) = input;
    let maildir = maildir();
    for name in files(maildir).keys() {
        std::fs::remove_file(maildir.join(name)).expect("scratch space");
    }
    let there: Vec<usize> = (0..MESSAGES.len()).filter(|at| which & 1 << at != 0).collect();
    for at in &there {
        std::fs::write(maildir.join(MESSAGES[*at].0), MESSAGES[*at].1).expect("scratch space");
    }
    let before = files(maildir);

    let mut model = Model::new(there);
    let mut left = false;
    let mut judge = |event: Event<'_>| match event {
        Event::Said(said) => {
            let expected = std::mem::take(&mut model.said);
            assert!(
                said == expected,
                "said {:?} and not {:?}",
                String::from_utf8_lossy(said),
                String::from_utf8_lossy(&expected)
            );
        }
        Event::Reads(words) => {
            assert!(left || !model.over, "the session should be over");
            words.iter().for_each(|byte| model.take(*byte));
            if words.is_empty() && !left {
                left = true;
                if patience & 1 == 0 && model.line.len() > 4096 {
                    model.say("-ERR line too long");
                }
                model.over = true;
            }
        }
    };
    let ending = if patience & 1 == 0 { Ending::End } else { Ending::Silence };
    let client = Client::new(written_out(script, phrases(), cut), cut, &mut judge)
        .ending(ending)
        .taking(usize::from(patience >> 1) * 16);

    // The session's paths are relative.
    let inside = Inside::of(maildir);
    let maildrop = Maildrop::scan(1_800_000_000).expect("a Maildir");
    let mut answers = Answers::to(&client);
    let ended = session::run(maildrop, &client, &mut answers).and_then(|()| answers.flush());
    drop(inside);
    let whole = client.took_all();
    client.finish();
    assert!(ended.is_ok() || !whole || ending == Ending::Silence);

    let mut after = files(maildir);
    if is_wrong(MESSAGE_GONE) {
        after.pop_first();
    }
    if !model.quit || !whole && after == before {
        // A client that broke off in an answer before QUIT has not said it.
        assert_eq!(after, before);
        return;
    }
    let mut expected = before;
    for (at, message) in model.there.iter().enumerate() {
        let name = MESSAGES[*message].0;
        let bytes = expected.remove(name).expect("it was there");
        if !model.deleted[at] {
            let moved = name.strip_prefix("new/").map(|base| format!("cur/{base}:2,"));
            expected.insert(moved.unwrap_or(name.to_owned()), bytes);
        }
    }
    assert_eq!(after, expected);
});
