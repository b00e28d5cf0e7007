//! apart - a program in two processes: a session, in a jail, and a launcher that starts programs for it
//!
//! A jail is inherited, and never handed to a program that is not ours. So whoever parses what strangers send and may
//! have such a program run parts in two: the session has the connection and closes its jail; the launcher has neither, and
//! ends as the session does. Between them is a pair of packet sockets.
#![forbid(unsafe_code)]

use crate::sys::process::{self, End};
use crate::sys::signal;
use crate::trouble::Trouble;
use crate::{fd, ucspitls};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;
use std::os::fd::OwnedFd;

/// Passed on to the session, which they would have reached were it one process.
const FOR_THE_SESSION: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// Returns in the session, with its end of the pair. `launcher` works with the other end until the session, whose process
/// it is told, has ended, and says how.
pub fn part(launcher: impl FnOnce(OwnedFd, Pid) -> End) -> Result<OwnedFd, Trouble> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| Trouble::unable("make", "a pair of sockets", e))?;
    signal::die_of(&[Signal::SIGCHLD]); // a parent may have it ignored: then no end would be told
    let mask = signal::hold(&FOR_THE_SESSION);
    match process::part().map_err(|e| Trouble::temporary("unable to fork").because(e))? {
        None => {
            signal::release(&mask);
            drop(ours);
            Ok(theirs)
        }
        Some(session) => {
            drop(theirs);
            fd::give_up_standard();
            ucspitls::give_up();
            process::end_as(launcher(ours, session))
        }
    }
}

/// In the launcher, first: signals are waited for, and ends of children.
pub fn catch_signals() {
    signal::catch(&[&FOR_THE_SESSION[..], &[Signal::SIGCHLD]].concat());
}

/// Whenever the launcher has woken up.
pub fn pass_on_signals(session: Pid) {
    for number in FOR_THE_SESSION.into_iter().filter(|number| signal::take(*number)) {
        let _ = kill(session, number);
    }
}
