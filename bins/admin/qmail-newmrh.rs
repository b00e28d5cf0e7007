//! qmail-newmrh - make control/morercpthosts.cdb from control/morercpthosts
//!
//! called by  an administrator         runs as  root; in an own home its owner
//! touches    control/morercpthosts, .tmp and .cdb beside it
//! jail       control/; no exec, no network
//! exit       0 the cdb is new and on disk; 111 trouble, the cdb is as it was
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::sys::stat::{Mode, umask};
use qmail::cdb::{TooBig, Writer};
use qmail::home::Home;
use qmail::trouble::Trouble;
use qmail::{control, program, table};

/// A million domains and more; the database made of them is built in memory.
const SOURCE_MAX: usize = 256 * 1024 * 1024;

fn main() {
    program::run("qmail-newmrh", "qmail-newmrh", newmrh)
}

fn newmrh(args: program::Args) -> Result<(), Trouble> {
    args.none()?;
    umask(Mode::from_bits_truncate(0o033));
    let home = Home::find()?;
    Jail::of(&programs::QMAIL_NEWMRH).home(&home).close()?;
    table::compile(&home.control(), "morercpthosts", "morercpthosts.cdb", SOURCE_MAX, |text, _| compile(text))
}

/// A record without data for each domain: qmail-smtpd asks only whether there is one.
fn compile(text: &[u8]) -> Result<Vec<u8>, TooBig> {
    let mut writer = Writer::new();
    for domain in control::entries(text) {
        writer.add(&domain.to_ascii_lowercase(), b"")?;
    }
    writer.finish()
}
