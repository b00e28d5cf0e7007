//! qmail-newu - make users/cdb from users/assign
//!
//! called by  an administrator, scripts/mkhome     runs as  root; in an own home its owner
//! touches    users/assign, users/cdb.tmp, users/cdb of the home
//! jail       users/; no exec, no network
//! exit       0 users/cdb is new and on disk; 111 trouble, users/cdb is as it was
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::sys::stat::{Mode, umask};
use qmail::assign::{self, Bad};
use qmail::cdb::{self, ReplaceError};
use qmail::home::Home;
use qmail::trouble::Trouble;
use qmail::{fd, program};

/// Lines for a million users; the database made of them is built in memory.
const ASSIGN_MAX: usize = 256 * 1024 * 1024;

fn main() {
    program::run("qmail-newu", "qmail-newu", newu)
}

fn newu(args: program::Args) -> Result<(), Trouble> {
    args.none()?;
    umask(Mode::from_bits_truncate(0o033));
    let home = Home::find()?;
    home.enter()?;
    Jail::of(&programs::QMAIL_NEWU).home(&home).close()?;
    let file = fd::open_read("users/assign").map_err(|e| Trouble::unable("open", "users/assign", e))?;
    let text = fd::read_to_end(file, ASSIGN_MAX).map_err(|e| Trouble::unable("read", "users/assign", e))?;
    let bytes = assign::compile(&text).map_err(|bad| {
        Trouble::temporary(match bad {
            Bad::Line(number) => format!("bad format in users/assign: line {number}"),
            Bad::NoEnd => "bad format in users/assign: the last line must be a dot".to_string(),
            Bad::TooBig => "bad format in users/assign: users/cdb would exceed 4 GiB".to_string(),
        })
    })?;
    cdb::replace(b"users/cdb", b"users/cdb.tmp", &bytes, 0o644).map_err(|error| match error {
        ReplaceError::Open(e) => Trouble::unable("open", "users/cdb.tmp", e),
        ReplaceError::Write(e) => Trouble::unable("write", "users/cdb.tmp", e),
        ReplaceError::Rename(e) => Trouble::unable("move", "users/cdb.tmp to users/cdb", e),
    })
}
