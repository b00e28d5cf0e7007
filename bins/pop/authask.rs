//! authask - a checker that lets qmail-authd check
//!
//! called by  whoever would run a checker: qmail-smtpd with `authask true`, another popup with `authask pop3`
//! arguments  word [word ...]: the name of a service of control/authprograms, or its whole command line
//! runs as    qmaild (own home: the owner), or root
//! fd 0, 1    the connection; passed to the checker and what it becomes
//! fd 3       name NUL password NUL timestamp NUL, and more for SCRAM
//! fd 4       where the server's signature of SCRAM goes, if it is open, and the account, where SASL_ACCOUNT_FD asks for it
//! exit       what checker or program exits with; 1 not acceptable, 2 misused, 111 temporary trouble
//! touches    run/auth
//! jail       run/auth; no file, no exec
//!
//! It executes nothing. It stays until the session ends, and if it is ended, so is the session.
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use qmail::auth::door::{self, Request};
use qmail::auth::{ACCOUNT_VARIABLE, NAMED, SIGNATURE_FD, Secret, tell_account};
use qmail::environ::Environ;
use qmail::home::Home;
use qmail::program::{self, Args};
use qmail::trouble::Trouble;
use qmail::{environ, fd};

/// The exit codes of a checker: not acceptable, and misused.
const REFUSED: i32 = 1;
const MISUSED: i32 = 2;

/// Name, secret and challenge.
const FIELDS_OF_OLD: usize = 3;

fn main() {
    program::run("authask", "authask word [word ...]", ask)
}

fn ask(args: Args) -> Result<(), Trouble> {
    if args.list().is_empty() {
        return Err(Trouble::exit(MISUSED, "no service named"));
    }
    let home = Home::find()?;
    Jail::of(&programs::AUTHASK).home(&home).close()?;
    let mut fields = read_fields()?;
    if environ::get(ACCOUNT_VARIABLE).is_some() {
        ask_for_account(&mut fields);
    }
    let signature = fd::take(SIGNATURE_FD).ok();
    let answer = door::ask(&home, Request::new(fields, args.list()), fd::IN, fd::OUT)?;
    if let Some(file) = signature {
        let _ = fd::write_all(&file, &answer.signature);
        let _ = tell_account(&mut Environ::inherited(), &answer.account);
    }
    Err(Trouble::exit(answer.code, ""))
}

/// qmail-authd asks for the account where the service is one whose caller wants to know it. Who gives the three fields
/// of old, and wants to know it, has said no service.
fn ask_for_account(fields: &mut Secret) {
    if fields.ends_with(b"\0") && fields.iter().filter(|b| **b == 0).count() == FIELDS_OF_OLD {
        let ip = environ::get("TCPREMOTEIP").unwrap_or_default();
        let mut more = Secret(Vec::with_capacity(fields.len() + NAMED.len() + ip.len() + 3));
        for piece in [&**fields, b"\0", NAMED, b"\0", &ip, b"\0"] {
            more.0.extend_from_slice(piece);
        }
        *fields = more;
    }
}

/// What descriptor 3 says, to its end.
fn read_fields() -> Result<Secret, Trouble> {
    let fd3 = fd::take(3).map_err(|e| Trouble::unable("read", "descriptor 3", e))?;
    Secret::read(&fd3, door::FIELDS_MAX).map_err(|errno| match errno {
        Errno::EFBIG => Trouble::exit(REFUSED, ""), // nobody has such a password
        errno => Trouble::unable("read", "descriptor 3", errno),
    })
}
