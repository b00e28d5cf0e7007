//! dialogue - a client that says what it was told to, in pieces, and looks at every answer before its next word.

use nix::errno::Errno;
use qmail::fd::Standard;
use qmail::timed::{Deadline, Sink, Source};
use std::cell::{Cell, RefCell};

/// Bytes that a script may come to when its phrases are written out: room for the recipients that are too many.
const WORDS_MAX: usize = 20_000;

/// The same where they come in small pieces, each of which costs a read.
const PIECED_MAX: usize = 2000;

/// Stands before a byte that would be a phrase.
const LITERAL: u8 = 0xff;

/// A script in which each byte from 0x80 on stands for a phrase, so that what a fuzzer makes is often grammatical.
/// All others stand for themselves, and so does what follows a 0xFF.
pub fn written_out(script: &[u8], phrases: &[Vec<u8>], cut: u8) -> Vec<u8> {
    let max = if cut == 0 { WORDS_MAX } else { PIECED_MAX };
    let mut words = Vec::new();
    let mut bytes = script.iter();
    while let (Some(byte), true) = (bytes.next(), words.len() < max) {
        match byte.checked_sub(0x80).and_then(|at| phrases.get(usize::from(at))) {
            Some(phrase) => words.extend_from_slice(phrase),
            None if *byte == LITERAL => words.extend(bytes.next()),
            None => words.push(*byte),
        }
    }
    words
}

/// How the words end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The client hangs up.
    End,
    /// It says nothing more, and the time is up.
    Silence,
}

/// What is made wrong on purpose, to see that the judge of a conversation sees it: see `control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A byte of an answer.
    Answer,
    /// Answers that should have come before the session waits come later.
    Silence,
    /// What a session leaves behind: each target has its own.
    Result(u8),
}

thread_local! {
    static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Whether this is wrong just now.
pub fn is_wrong(fault: Fault) -> bool {
    FAULT.get() == Some(fault)
}

/// Whether the target sees this fault in the conversation.
pub fn control(fault: Fault, run: fn(&[u8]) -> bool, seed: &[u8]) -> bool {
    FAULT.set(Some(fault));
    let judged = std::panic::catch_unwind(|| run(seed));
    FAULT.set(None);
    judged.is_err()
}

/// What the judge of a session is told.
pub enum Event<'a> {
    /// Answered since the last time: before the session reads, and at the end.
    Said(&'a [u8]),
    /// The session reads, and gets these words; none when they are over.
    Reads(&'a [u8]),
}

/// The client. The judge panics where an answer is not what it should be.
pub struct Client<F> {
    words: Vec<u8>,
    said: Cell<usize>,
    ending: Ending,
    /// 0: everything in one piece; else pieces of up to so many bytes.
    cut: u8,
    chance: Cell<u32>,
    /// Pieces end behind a line feed, as a reader has them that must not take more.
    by_line: bool,
    /// Answers that come at once are taken up to this number of bytes; 0 is no limit.
    takes: usize,
    answers: RefCell<Vec<u8>>,
    /// An answer was not taken.
    broken: Cell<bool>,
    judge: RefCell<F>,
}

impl<F: FnMut(Event<'_>)> Client<F> {
    pub fn new(words: Vec<u8>, cut: u8, judge: F) -> Client<F> {
        Client {
            words,
            said: Cell::new(0),
            ending: Ending::End,
            cut,
            chance: Cell::new(u32::from(cut) | 1),
            by_line: false,
            takes: 0,
            answers: RefCell::default(),
            broken: Cell::new(false),
            judge: RefCell::new(judge),
        }
    }

    pub fn ending(self, ending: Ending) -> Client<F> {
        Client { ending, ..self }
    }

    pub fn line_by_line(self) -> Client<F> {
        Client { by_line: true, ..self }
    }

    /// A client that breaks off when more than so many bytes of answers come at once; with 0 it does not.
    pub fn taking(self, takes: usize) -> Client<F> {
        Client { takes, ..self }
    }

    /// Whether the session could say all it wanted.
    pub fn took_all(&self) -> bool {
        !self.broken.get()
    }

    /// What was never read.
    pub fn unsaid(&self) -> &[u8] {
        &self.words[self.said.get()..]
    }

    /// At the end of the session.
    pub fn finish(self) {
        self.look();
    }

    fn look(&self) {
        if is_wrong(Fault::Silence) {
            return (self.judge.borrow_mut())(Event::Said(b""));
        }
        let mut answers = self.answers.take();
        if let (true, Some(byte)) = (is_wrong(Fault::Answer), answers.first_mut()) {
            *byte ^= 1;
        }
        if self.took_all() {
            (self.judge.borrow_mut())(Event::Said(&answers));
        }
    }

    fn piece(&self, room: usize) -> usize {
        let rest = self.unsaid();
        let mut length = rest.len().min(room);
        if self.cut > 0 {
            let mut x = self.chance.get();
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            self.chance.set(x);
            length = length.min(1 + x as usize % usize::from(self.cut));
        }
        if self.by_line {
            length = rest[..length].iter().position(|b| *b == b'\n').map_or(length, |at| at + 1);
        }
        length
    }
}

impl<F: FnMut(Event<'_>)> Source for &Client<F> {
    fn read(&self, buffer: &mut [u8], _: Deadline, _: Option<Standard>) -> Result<usize, Errno> {
        assert!(!buffer.is_empty(), "a read of nothing");
        self.look();
        let n = self.piece(buffer.len());
        buffer[..n].copy_from_slice(&self.unsaid()[..n]);
        self.said.set(self.said.get() + n);
        (self.judge.borrow_mut())(Event::Reads(&buffer[..n]));
        if n == 0 && self.ending == Ending::Silence { Err(Errno::ETIMEDOUT) } else { Ok(n) }
    }
}

/// It waits for the answer to each command that needs one before it sends more.
impl<F> pop::login::Pending for &Client<F> {
    fn has_more(&self) -> bool {
        false
    }
}

impl<F> Sink for &Client<F> {
    fn write_all(&self, bytes: &[u8], _: Deadline) -> Result<(), Errno> {
        let mut answers = self.answers.borrow_mut();
        answers.extend_from_slice(bytes);
        if self.takes > 0 && answers.len() > self.takes {
            self.broken.set(true);
        }
        if self.broken.get() { Err(Errno::EPIPE) } else { Ok(()) }
    }
}
