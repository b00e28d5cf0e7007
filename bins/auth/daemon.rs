//! daemon - a question to another daemon of this machine, over its socket
//!
//! Its answer is read in a child that can do nothing but that, by a deadline.
#![forbid(unsafe_code)]

use crate::login::refused;
use jail::{Jail, Profile};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use qmail::fd;
use qmail::timed::Deadline;
use qmail::trouble::Trouble;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The other daemon may hold its own failures back for some seconds, or wait for a directory.
const PATIENCE_SECONDS: u64 = 30;

/// A name, and the mark before it.
const ANSWER_MAX: usize = 2048;

/// What the other daemon says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The login is right, and whose it is.
    Accepted(Vec<u8>),
    Refused,
    /// It could not find out, or said what makes no sense: why.
    Trouble(&'static str),
}

/// Connects to a socket and has `converse` lead the conversation; the name that was let in.
pub fn ask(
    path: &[u8],
    profile: &'static Profile,
    converse: impl FnOnce(&OwnedFd, Deadline) -> Outcome,
) -> Result<Vec<u8>, Trouble> {
    let connection = open(path).map_err(|errno| Trouble::unable("connect to", path, errno))?;
    let deadline = Deadline::seconds(PATIENCE_SECONDS);
    let said =
        jail::aside(Jail::of(profile), &[connection.as_fd()], ANSWER_MAX, deadline, || {
            match converse(&connection, deadline) {
                Outcome::Accepted(name) => [b"+".as_slice(), &name].concat(),
                Outcome::Refused => b"-".to_vec(),
                Outcome::Trouble(reason) => [b"?", reason.as_bytes()].concat(),
            }
        })?;
    let trouble = |reason: &[u8]| Err(Trouble::temporary([b"unable to ask ", path, b": ", reason].concat()));
    match said.as_deref().and_then(<[u8]>::split_first) {
        Some((b'+', name)) => Ok(name.to_vec()),
        Some((b'-', b"")) => Err(refused()),
        Some((b'?', reason)) => trouble(reason),
        _ => trouble(b"no answer"),
    }
}

fn open(path: &[u8]) -> Result<OwnedFd, nix::errno::Errno> {
    let connection = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // One whose backlog is full is waited for no longer than one that does not answer.
    let limit = nix::sys::time::TimeVal::new(PATIENCE_SECONDS as i64, 0);
    setsockopt(&connection, sockopt::SendTimeout, &limit)?;
    connect(connection.as_raw_fd(), &UnixAddr::new(fd::path(path))?)?;
    Ok(connection)
}
