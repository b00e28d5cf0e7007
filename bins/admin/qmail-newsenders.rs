//! qmail-newsenders - make control/submissionsenders.cdb, the index of control/submissionsenders
//!
//! called by  an administrator         runs as  root; in an own home its owner
//! touches    control/submissionsenders, .tmp and .cdb beside it
//! jail       control/; no exec, no network
//! exit       0 the index is new and on disk; 111 trouble, the index is as it was
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::sys::stat::{Mode, umask};
use qmail::control::FILE_MAX; // what qmail-smtpd reads without the index, too
use qmail::home::Home;
use qmail::trouble::Trouble;
use qmail::{program, table};

fn main() {
    program::run("qmail-newsenders", "qmail-newsenders", newsenders)
}

fn newsenders(args: program::Args) -> Result<(), Trouble> {
    args.none()?;
    umask(Mode::from_bits_truncate(0o033));
    let home = Home::find()?;
    Jail::of(&programs::QMAIL_NEWSENDERS).home(&home).close()?;
    table::compile(&home.control(), "submissionsenders", "submissionsenders.cdb", FILE_MAX, table::index)
}
