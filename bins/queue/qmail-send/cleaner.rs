//! The conversation with qmail-clean, the only one who may remove mess, intd and todo files.
//!
//! Some requests are on the pipe, so few that a write never waits, and are answered in their order; the others
//! stand in line here. What is on the pipe is done even if we are killed: the more of it, the fewer messages that
//! have ended come back at the next start.
#![forbid(unsafe_code)]

use crate::log::Log;
use nix::errno::Errno;
use qmail::fd;
use qmail::queue::{Number, Removal};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Requests on the pipe. Each is at most 26 bytes, and a pipe holds a page at the least.
const PIPE_MAX: usize = 64;

/// Requests that may stand in line before those who make them are asked to wait.
const LINE_MAX: usize = 64;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Preprocessed: `todo/N` has done its service. (S4 to S5.)
    Preprocessed(Number),
    /// Delivered the short way: `todo/N` was its record. (S4 to S2.)
    Ended(Number),
    /// Delivered: the message can go. (S2 to S1.)
    Delivered(Number),
    /// A message that ended before its envelope did, or left something behind: `todo/N` without mess.
    Finished(Number),
    /// Left by a writer that died.
    Leftover(Number),
}

impl Task {
    pub fn number(self) -> Number {
        match self {
            Task::Preprocessed(n)
            | Task::Ended(n)
            | Task::Delivered(n)
            | Task::Finished(n)
            | Task::Leftover(n) => n,
        }
    }

    fn request(self) -> String {
        match self {
            Task::Preprocessed(n) | Task::Ended(n) | Task::Finished(n) => Removal::Todo(n).request(),
            Task::Delivered(n) | Task::Leftover(n) => Removal::Message(n).request(),
        }
    }
}

pub struct Cleaner {
    to: OwnedFd,
    from: OwnedFd,
    line: VecDeque<Task>,
    asked: VecDeque<Task>,
    alive: bool,
}

impl Cleaner {
    /// Descriptors 5 and 6.
    pub fn new(to: OwnedFd, from: OwnedFd) -> Cleaner {
        Cleaner { to, from, line: VecDeque::new(), asked: VecDeque::new(), alive: true }
    }

    /// Asks for nothing: a request that is refused, to see that somebody answers. None when nobody reads.
    pub fn greet(&mut self) -> Option<()> {
        self.alive = fd::write_all(&self.to, b"\0").is_ok();
        self.alive.then_some(())
    }

    /// Takes the answer to that. None when there is nobody.
    pub fn greeted(&mut self) -> Option<()> {
        let mut byte = [0u8; 1];
        self.alive = fd::read(&self.from, &mut byte) == Ok(1);
        self.alive.then_some(())
    }

    pub fn ask(&mut self, task: Task) {
        self.line.push_back(task);
        self.send();
    }

    /// Whether more requests are welcome.
    pub fn has_room(&self) -> bool {
        self.alive && self.line.len() < LINE_MAX
    }

    /// Whether a request about this message is on its way.
    pub fn concerns(&self, number: Number) -> bool {
        self.asked.iter().chain(&self.line).any(|task| task.number() == number)
    }

    /// Nothing is asked, or nobody is there to answer.
    pub fn is_idle(&self) -> bool {
        !self.alive || (self.asked.is_empty() && self.line.is_empty())
    }

    /// To poll for input; None when the connection is lost.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.alive.then(|| self.from.as_fd())
    }

    /// Whether qmail-clean can still be asked.
    pub fn is_alive(&self) -> bool {
        self.alive
    }

    /// Puts requests on the pipe, as many as may be there.
    fn send(&mut self) {
        while self.alive
            && self.asked.len() < PIPE_MAX
            && let Some(task) = self.line.pop_front()
        {
            self.alive = fd::write_all(&self.to, format!("{}\0", task.request()).as_bytes()).is_ok();
            self.asked.push_back(task);
        }
    }

    /// Called when input is there: which tasks were answered, and whether they were done.
    pub fn answers(&mut self, log: Log) -> Vec<(Task, bool)> {
        let mut bytes = [0u8; PIPE_MAX];
        let said = match fd::read(&self.from, &mut bytes) {
            Ok(n @ 1..) => bytes.get(..n).unwrap_or_default(),
            Err(Errno::EAGAIN) => return Vec::new(),
            Ok(_) | Err(_) => {
                self.alive = false;
                return Vec::new();
            }
        };
        let mut answered = Vec::with_capacity(said.len());
        for byte in said {
            let Some(task) = self.asked.pop_front() else { break }; // an answer to nothing is none
            let done = *byte == b'+';
            if !done {
                log.line(format!("warning: qmail-clean unable to clean up {}", task.request()));
            }
            answered.push((task, done));
        }
        self.send();
        answered
    }
}
