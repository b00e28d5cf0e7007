//! The next message for the same recipient, when qmail-lspawn has one at once: to start us again would cost more than
//! to write it. Everything that a user may have changed is looked at again for each.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use qmail::spawn::line::Line;
use qmail::timed::Deadline;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Messages to one process.
const MESSAGES_MAX: u32 = 100;

/// How long a process takes more: for so long what the account database said of the user holds.
const AGE_MAX: Duration = Duration::from_secs(5);

/// How long it waits for the next one: longer than the pauses in a flood, too short to be found on an idle machine.
const IDLE: Duration = Duration::from_secs(1);

/// Where more messages come from.
pub struct More {
    line: Line,
    messages: u32,
    until: Deadline,
}

/// A message and its sender.
pub struct Next {
    pub message: OwnedFd,
    pub sender: Vec<u8>,
}

impl More {
    /// If who started us has more.
    pub fn inherited() -> Option<More> {
        Some(More { line: Line::inherited()?, messages: 1, until: Deadline::after(AGE_MAX) })
    }

    /// Says that what we had is done, and waits for the next one; None when there is none in time.
    pub fn next(&mut self) -> Option<Next> {
        if self.messages >= MESSAGES_MAX || self.until.passed() {
            return None;
        }
        self.messages += 1;
        self.line.announce().ok()?;
        let deadline = Deadline::after(IDLE);
        loop {
            let left = deadline.left().filter(|left| !left.is_zero())?;
            let mut fds = [PollFd::new(self.line.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::try_from(left).ok()?) {
                Err(Errno::EINTR) | Ok(0) => {}
                Err(_) => return None,
                Ok(_) => {
                    let errand = self.line.take_errand()?;
                    return Some(Next { message: errand.message, sender: errand.sender });
                }
            }
        }
    }
}
