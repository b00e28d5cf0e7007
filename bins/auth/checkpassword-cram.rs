//! checkpassword-cram - check a response to a challenge against a file of secrets, and run a program as that user
//!
//! called by  qmail-popup (APOP) and others with a name, a response and a challenge on fd 3
//! arguments  file program [argument ...]
//! runs as    root, or the one user that all lines of the file name
//! fd 3       name NUL response NUL challenge NUL [mechanism NUL ...]
//! jail       rlimits only: it runs its arguments
//! exit       1 not acceptable, 2 misused, 111 temporary trouble; else the program's
//! touches    the file and its index, which authpasswd -x makes
//!
//! As checkpassword-file, where what stands in the place of a hash is the secret itself.
#![forbid(unsafe_code)]

use auth::passwd;
use auth::stored::Bare;
use jail::{Jail, programs};
use qmail::program::{self, Args};
use qmail::trouble::Trouble;

fn main() {
    program::run("checkpassword-cram", "checkpassword-cram file program [arg ...]", check)
}

fn check(args: Args) -> Result<(), Trouble> {
    let (file, program) = passwd::arguments(&args)?;
    Jail::of(&programs::CHECKPASSWORD_CRAM).close()?;
    Err(passwd::serve("checkpassword-cram", file, program, Bare::Secret))
}
