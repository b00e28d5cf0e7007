//! checkpassword-pam - check a login by PAM, and run a program as that user
//!
//! called by  qmail-popup and others with a name and a password on fd 3
//! arguments  [-s service] [-u account] program [argument ...]
//! runs as    root, or whoever PAM's modules can work as
//! fd 3       name NUL password NUL [timestamp NUL ...]
//! env        TCPREMOTEIP is told to PAM
//! jail       rlimits only: modules of PAM are code of others, and it runs its arguments
//! exit       1 not acceptable, 2 misused, 111 temporary trouble; else the program's
//! touches    what the modules of /etc/pam.d/SERVICE touch; the account database
#![forbid(unsafe_code)]

use auth::account::{self, program_of};
use auth::login::{Login, REFUSED, misused, refused};
use auth::pam::{self, Answer};
use jail::{Jail, programs};
use qmail::environ;
use qmail::program::{self, Args};
use qmail::trouble::Trouble;

/// The file of /etc/pam.d. Never what the caller says: a service may let in whoever root asks for.
const SERVICE: &[u8] = b"checkpassword";

fn main() {
    program::run("checkpassword-pam", "checkpassword-pam [-s service] [-u account] program [arg ...]", check)
}

fn check(args: Args) -> Result<(), Trouble> {
    let parsed = args.options("s:u:").map_err(|_| misused("the options are -s service and -u account"))?;
    let program = program_of(&parsed.rest)?;
    Jail::of(&programs::CHECKPASSWORD_PAM).close()?;
    let login = Login::read()?;
    let Some(password) = login.password().filter(|password| !password.is_empty()) else {
        return Err(refused());
    };
    let remote = environ::get("TCPREMOTEIP");
    let answer = pam::ask(parsed.value('s').unwrap_or(SERVICE), login.name(), password, remote.as_deref());
    let name = match answer {
        Answer::Accepted(name) => name,
        Answer::Refused => return Err(refused()),
        Answer::Closed(code) => {
            let text = [login.name(), b": PAM refuses the account", number(code).as_bytes()].concat();
            return Err(Trouble::exit(REFUSED, text));
        }
        Answer::Trouble(what, code) => {
            return Err(Trouble::temporary(format!("unable to ask PAM: {what} failed{}", number(code))));
        }
        Answer::Missing => return Err(Trouble::temporary("unable to ask PAM: there is no libpam.so.0 here")),
    };
    drop(login);
    Err(account::behind(&name, parsed.value('u'))?.run(program))
}

/// As pam(3) counts.
fn number(code: i32) -> String {
    format!(" (PAM error {code})")
}
