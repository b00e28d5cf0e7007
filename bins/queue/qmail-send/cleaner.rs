//! The conversation with qmail-clean, the only one who may remove mess, intd and todo files.
//!
//! One request at a time is on the pipe, so a write never waits; the others stand in line here.
#![forbid(unsafe_code)]

use crate::log::Log;
use nix::errno::Errno;
use qmail::fd;
use qmail::queue::Number;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
            Task::Preprocessed(n) | Task::Ended(n) | Task::Finished(n) => format!("todo/{n}"),
            Task::Delivered(n) | Task::Leftover(n) => format!("foop/{n}"),
        }
    }
}

pub struct Cleaner {
    to: OwnedFd,
    from: OwnedFd,
    line: VecDeque<Task>,
    asked: Option<Task>,
    alive: bool,
}

impl Cleaner {
    /// Descriptors 5 and 6.
    pub fn new(to: OwnedFd, from: OwnedFd) -> Cleaner {
        Cleaner { to, from, line: VecDeque::new(), asked: None, alive: true }
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
        !self.alive || (self.asked.is_none() && self.line.is_empty())
    }

    /// To poll for input; None when the connection is lost.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.alive.then(|| self.from.as_fd())
    }

    /// Whether qmail-clean can still be asked.
    pub fn is_alive(&self) -> bool {
        self.alive
    }

    /// Puts the next request on the pipe, when no other is there.
    fn send(&mut self) {
        if self.asked.is_some() || !self.alive {
            return;
        }
        let Some(task) = self.line.pop_front() else { return };
        self.alive = fd::write_all(&self.to, format!("{}\0", task.request()).as_bytes()).is_ok();
        self.asked = Some(task);
    }

    /// Called when input is there: which task was answered, and whether it was done.
    pub fn answer(&mut self, log: Log) -> Option<(Task, bool)> {
        let mut byte = [0u8; 1];
        match fd::read(&self.from, &mut byte) {
            Ok(1) => {}
            Err(Errno::EAGAIN) => return None,
            Ok(_) | Err(_) => {
                self.alive = false;
                return None;
            }
        }
        let task = self.asked.take()?; // an answer to nothing is none
        let done = byte == *b"+";
        if !done {
            log.line(format!("warning: qmail-clean unable to clean up {}", task.request()));
        }
        self.send();
        Some((task, done))
    }
}
