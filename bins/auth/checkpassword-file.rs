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

use auth::account::program_of;
use auth::login::{Login, misused, refused};
use auth::passwd;
use auth::stored::{self, Bare, DUMMY};
use jail::{Jail, programs};
use qmail::program::{self, Args};
use qmail::trouble::Trouble;

fn main() {
    program::run("checkpassword-file", "checkpassword-file file program [arg ...]", check)
}

fn check(args: Args) -> Result<(), Trouble> {
    let [file, program @ ..] = args.list() else { return Err(misused("no file to check against")) };
    let program = program_of(program)?;
    Jail::of(&programs::CHECKPASSWORD_FILE).close()?;
    let login = Login::read()?;
    let Some(proof) = login.proof() else { return Err(refused()) };
    let found = passwd::look_up(file, login.name(), Bare::Hash)?;
    if found.is_stale {
        passwd::warn_of_index("checkpassword-file", file);
    }
    let stored = found.user.as_ref().map(|user| user.stored.as_slice());
    let verdict = stored::check(stored, found.usual.as_deref().unwrap_or(DUMMY), Bare::Hash, &proof);
    login.settle(verdict)?;
    Err(found.user.map_or_else(refused, |user| user.account.run(program)))
}
