//! maildirmake - makes an empty Maildir
//!
//! called by  users and their administrators          runs as  them
//! jail       makes directories where the Maildir will be; no exec, no network
//! exit       0 made, 100 wrong use, 111 not made, or not all of it
//! touches    the directory it is given, and tmp, new and cur in it
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use nix::unistd::mkdir;
use qmail::fd;
use qmail::program::{self, Args};
use qmail::trouble::Trouble;

fn main() -> ! {
    program::run("maildirmake", "maildirmake dir", maildirmake)
}

fn maildirmake(args: Args) -> Result<(), Trouble> {
    let parsed = args.options("")?;
    let [directory] = parsed.rest.as_slice() else { return Err(args.wrong()) };
    Jail::of(&programs::MAILDIRMAKE).place(programs::TARGET, jail::parent(trimmed(directory))).close()?;
    umask(Mode::from_bits_truncate(0o077));
    make(directory)?;
    for part in ["tmp", "new", "cur"] {
        make(&[directory.as_slice(), b"/", part.as_bytes()].concat())?;
    }
    // Mail delivered into it in the next second shall not vanish with it in a power cut.
    fd::sync_directory(directory).map_err(|errno| Trouble::unable("sync", directory, errno))?;
    sync_parent(directory)
}

/// `a/b/` lies where `a/b` lies.
fn trimmed(directory: &[u8]) -> &[u8] {
    let end = directory.iter().rposition(|b| *b != b'/').map_or(directory.len().min(1), |at| at + 1);
    directory.get(..end).unwrap_or_default()
}

fn make(directory: &[u8]) -> Result<(), Trouble> {
    mkdir(fd::path(directory), Mode::S_IRWXU).map_err(|errno| Trouble::unable("mkdir", directory, errno))
}

fn sync_parent(directory: &[u8]) -> Result<(), Trouble> {
    let parent = [directory, b"/.."].concat();
    match fd::sync_directory(&parent) {
        Ok(()) | Err(Errno::EACCES) => Ok(()), // may be written but not read: as good as it gets
        Err(errno) => Err(Trouble::unable("sync", parent, errno)),
    }
}
