//! The texts of this program: most of them reach a log, some a sender, and tools look for them.

use nix::errno::Errno;
use qmail::trouble::{Trouble, wording};

pub const LOOP: &str = "This message is looping: it already has my Delivered-To line. (#5.4.6)";
pub const NO_MAILBOX: &str = "Sorry, no mailbox here by that name. (#5.1.1)";
pub const STICKY: &str = "Home directory is sticky: user is editing his .qmail file. (#4.2.1)";
pub const HOME_WRITABLE: &str = "Uh-oh: home directory is writable. (#4.7.0)";
pub const FILE_WRITABLE: &str = "Uh-oh: .qmail file is writable. (#4.7.0)";
pub const FIRST_BLANK: &str = "Uh-oh: first line of .qmail file is blank. (#4.2.1)";
pub const DAMAGED: &str = "Uh-oh: .qmail file has a line with a NUL. (#4.2.1)";
pub const FILE_AND_X: &str = "Uh-oh: .qmail has file delivery but has x bit set. (#4.7.0)";
pub const PROGRAM_AND_X: &str = "Uh-oh: .qmail has prog delivery but has x bit set. (#4.7.0)";
pub const CRASHED: &str = "Aack, child crashed. (#4.3.0)";
pub const MAILDIR_CHDIR: &str = "Unable to chdir to maildir. (#4.2.1)";
pub const MAILDIR_TIMEOUT: &str = "Timeout on maildir delivery. (#4.3.0)";
pub const MAILDIR_MESSAGE: &str = "Unable to read message. (#4.3.0)";
pub const MAILDIR_TEMPORARY: &str = "Temporary error on maildir delivery. (#4.3.0)";
pub const LOCKED: &str = "File has been locked for 30 seconds straight. (#4.3.0)";

/// A name from a .qmail file or a command line may be of any length; a report is for people.
const NAME_MAX: usize = 300;

/// The name as reports show it.
pub fn shown(name: &[u8]) -> Vec<u8> {
    match name.get(..NAME_MAX) {
        Some(beginning) if beginning.len() < name.len() => [beginning, b"..."].concat(),
        _ => name.to_vec(),
    }
}

/// `Unable to ACTION NAME: REASON. (#STATUS)`, temporary.
pub fn unable(action: &str, name: &[u8], reason: &str, status: &str) -> Trouble {
    let rest = format!(": {reason}. (#{status})");
    Trouble::temporary([b"Unable to ", action.as_bytes(), &shown(name), rest.as_bytes()].concat())
}

pub fn open(file: &[u8], errno: Errno) -> Trouble {
    unable("open ", file, wording(errno), "4.3.0")
}

pub fn fork(errno: Errno) -> Trouble {
    unable("fork", b"", wording(errno), "4.3.0")
}

pub fn message(errno: Errno) -> Trouble {
    unable("read message", b"", wording(errno), "4.3.0")
}

pub fn rewind() -> Trouble {
    Trouble::temporary("Unable to rewind message. (#4.3.0)")
}
