//! checkpassword-file - check a login against a plain file, and run a program as that user
//!
//! called by  qmail-popup and others with a name and a password on fd 3
//! arguments  file program [argument ...]
//! runs as    root, or the one user that all lines of the file name
//! fd 3       name NUL password NUL [challenge NUL [mechanism NUL ...]]
//! fd 4       out: the server's signature of SCRAM, if it is open
//! jail       rlimits only: it runs its arguments
//! exit       1 not acceptable, 2 misused, 111 temporary trouble; else the program's
//! touches    the file and its index, which authpasswd makes
//!
//! Lines are `name:stored:uid:gid:home`; the first of a name counts. The same work is done whether the name is
//! there or not.
#![forbid(unsafe_code)]

use auth::passwd;
use auth::stored::Bare;
use jail::{Jail, programs};
use qmail::program::{self, Args};
use qmail::trouble::Trouble;

fn main() {
    program::run("checkpassword-file", "checkpassword-file file program [arg ...]", check)
}

fn check(args: Args) -> Result<(), Trouble> {
    let (file, program) = passwd::arguments(&args)?;
    Jail::of(&programs::CHECKPASSWORD_FILE).close()?;
    Err(passwd::serve("checkpassword-file", file, program, Bare::Hash))
}
