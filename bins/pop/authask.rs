//! authask - a checker that lets qmail-authd check
//!
//! called by  whoever would run a checker: qmail-smtpd with `authask true`, another popup with `authask pop3`
//! arguments  word [word ...]: the name of a service of control/authprograms, or its whole command line
//! runs as    qmaild (own home: the owner), or root
//! fd 0, 1    the connection; passed to the checker and what it becomes
//! fd 3       name NUL password NUL timestamp NUL, and more for SCRAM
//! fd 4       where the server's signature of SCRAM goes, if it is open
//! exit       what checker or program exits with; 1 not acceptable, 2 misused, 111 temporary trouble
//! touches    run/auth
//! jail       run/auth; no file, no exec
//!
//! It executes nothing. It stays until the session ends, and if it is ended, so is the session.
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use qmail::auth::door::{self, Request};
use qmail::auth::{SIGNATURE_FD, Secret, tell_account};
use qmail::environ::Environ;
use qmail::fd;
use qmail::home::Home;
use qmail::program::{self, Args};
use qmail::trouble::Trouble;

/// The exit codes of a checker: not acceptable, and misused.
const REFUSED: i32 = 1;
const MISUSED: i32 = 2;

fn main() {
    program::run("authask", "authask word [word ...]", ask)
}

fn ask(args: Args) -> Result<(), Trouble> {
    if args.list().is_empty() {
        return Err(Trouble::exit(MISUSED, "no service named"));
    }
    let home = Home::find()?;
    Jail::of(&programs::AUTHASK).home(&home).close()?;
    let fields = read_fields()?;
    let signature = fd::take(SIGNATURE_FD).ok();
    let answer = door::ask(&home, Request::new(fields, args.list()), fd::IN, fd::OUT)?;
    if let Some(file) = signature {
        let _ = fd::write_all(&file, &answer.signature);
        let _ = tell_account(&mut Environ::inherited(), &answer.account);
    }
    Err(Trouble::exit(answer.code, ""))
}

/// What descriptor 3 says, to its end.
fn read_fields() -> Result<Secret, Trouble> {
    let fd3 = fd::take(3).map_err(|e| Trouble::unable("read", "descriptor 3", e))?;
    Secret::read(&fd3, door::FIELDS_MAX).map_err(|errno| match errno {
        Errno::EFBIG => Trouble::exit(REFUSED, ""), // nobody has such a password
        errno => Trouble::unable("read", "descriptor 3", errno),
    })
}
