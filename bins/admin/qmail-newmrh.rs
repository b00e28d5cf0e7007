//! qmail-newmrh - make control/morercpthosts.cdb from control/morercpthosts
//!
//! called by  an administrator         runs as  root; in an own home its owner
//! touches    control/morercpthosts, .tmp and .cdb beside it
//! jail       control/; no exec, no network
//! exit       0 the cdb is new and on disk; 111 trouble, the cdb is as it was
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use qmail::cdb::{ReplaceError, TooBig, Writer, replace};
use qmail::home::Home;
use qmail::trouble::Trouble;
use qmail::{control, fd, program};

const SOURCE: &str = "control/morercpthosts";
const TEMPORARY: &str = "control/morercpthosts.tmp";
const TARGET: &str = "control/morercpthosts.cdb";

/// A million domains and more; the database made of them is built in memory.
const SOURCE_MAX: usize = 256 * 1024 * 1024;

fn main() {
    program::run("qmail-newmrh", "qmail-newmrh", newmrh)
}

fn newmrh(args: program::Args) -> Result<(), Trouble> {
    args.none()?;
    umask(Mode::from_bits_truncate(0o033));
    let home = Home::find()?;
    let path = home.path("");
    nix::unistd::chdir(fd::path(&path)).map_err(|e| Trouble::unable("chdir to", &path, e))?;
    Jail::of(&programs::QMAIL_NEWMRH).home(&home).close()?;
    let text = fd::open_read(SOURCE)
        .and_then(|file| fd::read_to_end(file, SOURCE_MAX))
        .map_err(|e| Trouble::unable("read", SOURCE, e))?;
    let file = compile(&text).map_err(|TooBig| Trouble::unable("write to", TEMPORARY, Errno::EFBIG))?;
    replace(TARGET.as_bytes(), TEMPORARY.as_bytes(), &file, 0o644).map_err(|error| match error {
        ReplaceError::Open(e) | ReplaceError::Write(e) => Trouble::unable("write to", TEMPORARY, e),
        ReplaceError::Rename(e) => Trouble::unable("move", format!("{TEMPORARY} to {TARGET}"), e),
    })
}

/// A record without data for each domain: qmail-smtpd asks only whether there is one.
fn compile(text: &[u8]) -> Result<Vec<u8>, TooBig> {
    let mut writer = Writer::new();
    for domain in control::entries(text) {
        writer.add(&domain.to_ascii_lowercase(), b"")?;
    }
    writer.finish()
}
