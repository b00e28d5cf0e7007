//! Whole talks with qmail-popup before the login, in any pieces: each line has got its answer before the next is read, name and
//! secret are those of a model, a checker's three fields cannot be shifted, and not a byte behind the login is read.
#![cfg_attr(fuzzing, no_main)]

use fuzz::dialogue::{Client, Ending, Event, written_out};
use fuzz::fuzz_target;
use pop::access::Access;
use pop::connection::Answers;
use pop::login::talk;
use std::sync::OnceLock;

const TIMESTAMP: &[u8] = b"<1.2@host>";

/// What 0x80 and the following bytes of a script stand for.
fn phrases() -> &'static [Vec<u8>] {
    static PHRASES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    PHRASES.get_or_init(|| {
        let phrases = [
            "USER joe\r\n",
            "USER \r\n",
            "PASS secret\r\n",
            "PASS  a b \r\n",
            "PASS\r\n",
            "APOP joe 00ff\r\n",
            "APOP joe\r\n",
            "CAPA\r\n",
            "NOOP\r\n",
            "QUIT\r\n",
            "STAT\r\n",
            "\0",
            "\n",
        ];
        let mut phrases: Vec<Vec<u8>> = phrases.map(|phrase| phrase.as_bytes().to_vec()).to_vec();
        phrases.push(vec![b'x'; 4090]);
        phrases
    })
}

struct Model {
    line: Vec<u8>,
    user: Option<Vec<u8>>,
    failures: u32,
    said: Vec<u8>,
    over: bool,
    login: Option<(Vec<u8>, Vec<u8>)>,
}

impl Model {
    fn take(&mut self, byte: u8) {
        match byte {
            _ if self.over => {}
            b'\n' => {
                let line = std::mem::take(&mut self.line);
                self.command(&line);
            }
            byte => self.line.push(byte),
        }
    }

    fn say(&mut self, text: &str) {
        self.said.extend_from_slice(text.as_bytes());
        self.said.extend_from_slice(b"\r\n");
    }

    fn fail(&mut self, text: &str) {
        self.say(&format!("-ERR {text}"));
        self.failures += 1;
        self.over = self.failures == 3;
    }

    fn command(&mut self, line: &[u8]) {
        let user = self.user.take();
        if line.len() > 4096 {
            return self.fail("line too long");
        }
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let space = line.iter().position(|b| *b == b' ');
        let (verb, argument) = space.map_or((line, b"".as_slice()), |at| (&line[..at], &line[at + 1..]));
        let bad = argument.contains(&0);
        let trimmed = argument.trim_ascii();
        match verb.to_ascii_uppercase().as_slice() {
            b"USER" if bad || trimmed.is_empty() => self.fail("syntax error"),
            b"USER" => {
                self.user = Some(trimmed.to_vec());
                self.say("+OK ");
            }
            b"PASS" => match user {
                None => self.fail("USER first"),
                Some(_) if bad || argument.is_empty() => self.fail("syntax error"),
                Some(user) => self.enter(user, argument.to_vec()),
            },
            b"APOP" => match trimmed.iter().rposition(|b| *b == b' ') {
                Some(at) if !bad => {
                    self.enter(trimmed[..at].trim_ascii_end().to_vec(), trimmed[at + 1..].to_vec());
                }
                _ => self.fail("syntax error"),
            },
            b"CAPA" => self.say(
                "+OK \r\nUSER\r\nTOP\r\nUIDL\r\nPIPELINING\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nUTF8 USER\r\n.",
            ),
            b"NOOP" => self.say("+OK "),
            b"UTF8" if argument.split(|b| *b == b' ').all(|word| word.is_empty()) => self.say("+OK "),
            b"UTF8" => self.fail("syntax error"),
            b"AUTH" if argument.split(|b| *b == b' ').all(|word| word.is_empty()) => self.say("+OK \r\n."),
            b"AUTH" => self.fail("no such mechanism"),
            b"QUIT" => {
                self.say("+OK ");
                self.over = true;
            }
            _ => self.fail("authorization first"),
        }
    }

    fn enter(&mut self, name: Vec<u8>, secret: Vec<u8>) {
        self.login = Some((name, secret));
        self.over = true;
    }
}

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (cut, patience, script) = input;
    let said = [b"+OK ", TIMESTAMP, b"\r\n"].concat();
    let mut model = Model { line: Vec::new(), user: None, failures: 0, said, over: false, login: None };
    let judge = |event: Event<'_>| match event {
        Event::Said(said) => assert_eq!(said, std::mem::take(&mut model.said)),
        Event::Reads(words) => {
            assert!(!model.over, "the talk should be over");
            words.iter().for_each(|byte| model.take(*byte));
            model.over |= words.is_empty();
        }
    };
    let ending = if patience & 1 == 0 { Ending::End } else { Ending::Silence };
    let client = Client::new(written_out(script, phrases(), cut), cut, judge)
        .line_by_line()
        .ending(ending)
        .taking(usize::from(patience >> 1) * 16);
    let mut answers = Answers::to(&client);
    let mut access = Access::default();
    access.apop = true;
    let login =
        talk(&client, &mut answers, TIMESTAMP, &mut access).and_then(|login| answers.flush().map(|()| login));
    let whole = client.took_all();
    client.finish();
    if !whole {
        assert!(login.is_err());
        return;
    }
    let fields = login.unwrap_or_default().map(|fields| fields.to_vec());
    let expected = model
        .login
        .map(|(name, secret)| [&name, b"\0".as_slice(), &secret, b"\0", TIMESTAMP, b"\0"].concat());
    assert_eq!(fields, expected);
    assert!(fields.is_none_or(|fields| fields.iter().filter(|b| **b == 0).count() == 3));
});
