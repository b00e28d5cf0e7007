//! more - the next message for a connection that was opened for another one
//!
//! A connection saves its beginning to whoever comes next; kept too long it costs the server a place, and us. So
//! there is a limit to everything.
#![forbid(unsafe_code)]

use crate::dialogue::{Server, Session};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use qmail::spawn::line::{Errand, Line};
use qmail::timed::Deadline;
use std::os::fd::AsFd;
use std::time::Duration;

/// Messages over one connection: some servers count, and to begin anew after so many costs nothing.
const MESSAGES_MAX: u32 = 100;

/// The age at which a connection is given up between messages: long enough to be worth it, and short enough for
/// what the DNS and the control files say to be heard of.
const AGE_MAX: Duration = Duration::from_secs(300);

/// How long a connection waits for the next message. Servers would give it minutes, but the place there is theirs.
const IDLE: Duration = Duration::from_secs(2);

/// Where more messages come from.
pub struct More {
    line: Line,
    until: Deadline,
}

impl More {
    /// If who started us has more.
    pub fn inherited() -> Option<More> {
        Some(More { line: Line::inherited()?, until: Deadline::after(AGE_MAX) })
    }

    /// Whether this session may take another message.
    pub fn may_follow<S: Server>(&self, session: &Session<S>) -> bool {
        session.is_fit() && session.messages() < MESSAGES_MAX && !self.until.passed()
    }

    /// Says that the reports are written, and waits for the next one. None when there is none in time, or the server
    /// has something to say: nobody asked it, so it stops.
    pub fn next(&mut self, server: impl AsFd) -> Option<Errand> {
        self.line.announce().ok()?;
        let deadline = Deadline::after(IDLE);
        loop {
            let left = deadline.left().filter(|left| !left.is_zero())?;
            let mut fds = [
                PollFd::new(self.line.as_fd(), PollFlags::POLLIN),
                PollFd::new(server.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::ZERO)) {
                Err(Errno::EINTR) | Ok(0) => continue,
                Err(_) => return None,
                Ok(_) => {}
            }
            let [line, server] = fds.map(|fd| fd.any().unwrap_or(true));
            return if line && !server { self.line.take_errand() } else { None };
        }
    }
}
