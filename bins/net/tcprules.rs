//! tcprules - compile rules for tcpserver into a cdb
//!
//! called by  an administrator         runs as  whoever may write there
//! argv       cdb, and a temporary file in the same file system
//! fd 0       rules, one a line
//! jail       creates and renames in the directories of both files; no exec, no network
//! exit       0 the cdb is new and on disk; 100 usage, a line that cannot be parsed; 111 trouble.
//!            Unless it is 0 the old cdb is untouched
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use qmail::cdb::{self, ReplaceError};
use qmail::rules::{self, Bad};
use qmail::trouble::Trouble;
use qmail::{fd, program};

/// Rules for a million addresses; the database made of them is built in memory.
const RULES_MAX: usize = 64 * 1024 * 1024;

fn main() {
    program::run("tcprules", "tcprules cdb tmp", tcprules)
}

fn tcprules(args: program::Args) -> Result<(), Trouble> {
    let parsed = args.options("")?;
    let [name, temporary, ..] = parsed.rest.as_slice() else { return Err(args.wrong()) };
    Jail::of(&programs::TCPRULES)
        .place(programs::TARGET, jail::parent(name))
        .place(programs::TARGET, jail::parent(temporary))
        .place(programs::FILE, temporary.as_slice()) // which may be a link
        .close()?;
    let text = fd::read_to_end(fd::IN, RULES_MAX)
        .map_err(|e| Trouble::temporary("unable to read input").because(e))?;
    let file = rules::compile(&text).map_err(|bad| match bad {
        Bad::Line(line) => Trouble::permanent([b"unable to parse this line: ".as_slice(), &line].concat()),
        Bad::TooBig => Trouble::permanent("too many rules: a cdb holds less than 4 GiB"),
    })?;
    cdb::replace(name, temporary, &file, 0o644).map_err(|error| match error {
        ReplaceError::Open(e) => Trouble::unable("create", temporary, e),
        ReplaceError::Write(e) => Trouble::unable("write", temporary, e),
        ReplaceError::Rename(e) => Trouble::unable("move", [temporary, b" to ".as_slice(), name].concat(), e),
    })
}
