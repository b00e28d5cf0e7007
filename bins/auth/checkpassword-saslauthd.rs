//! checkpassword-saslauthd - let saslauthd check a login, and run a program as that user
//!
//! called by  qmail-popup and others with a name and a password on fd 3
//! arguments  [-p socket] [-r realm] [-s service] [-u account] program [argument ...]
//! runs as    root, or the one account that all become
//! fd 3       name NUL password NUL [timestamp NUL mechanism NUL service NUL ...]
//! jail       rlimits only: it runs its arguments; the answer is read in a child that can do nothing else
//! exit       1 not acceptable, 2 misused, 111 temporary trouble; else the program's
//! touches    saslauthd's socket; the account database
#![forbid(unsafe_code)]

use auth::account::{self, program_of};
use auth::daemon::{self, Outcome};
use auth::login::{Login, misused, refused};
use auth::saslauthd;
use jail::{Jail, programs};
use nix::errno::Errno;
use qmail::auth::Secret;
use qmail::program::{self, Args};
use qmail::timed::{self, Deadline};
use qmail::trouble::Trouble;
use std::os::fd::OwnedFd;

const SOCKET: &[u8] = b"/run/saslauthd/mux";

/// saslauthd hands it to PAM, which lets whoever asks choose among its files: so it is not the caller who says it.
const SERVICE: &[u8] = b"smtp";

fn main() {
    program::run(
        "checkpassword-saslauthd",
        "checkpassword-saslauthd [-p socket] [-r realm] [-s service] [-u account] program [arg ...]",
        check,
    )
}

fn check(args: Args) -> Result<(), Trouble> {
    let parsed = args
        .options("p:r:s:u:")
        .map_err(|_| misused("the options are -p socket, -r realm, -s service and -u account"))?;
    let program = program_of(&parsed.rest)?;
    Jail::of(&programs::CHECKPASSWORD_SASLAUTHD).close()?;
    let login = Login::read()?;
    let Some(password) = login.password().filter(|password| !password.is_empty()) else {
        return Err(refused());
    };
    let service = parsed.value('s').unwrap_or(SERVICE);
    let realm = parsed.value('r').unwrap_or_default();
    let Some(question) = saslauthd::question(login.name(), password, service, realm) else {
        return Err(refused());
    };
    let question = Secret(question);
    let profile = &programs::CHECKPASSWORD_SASLAUTHD_ASKING;
    let socket = parsed.value('p').unwrap_or(SOCKET);
    let name = daemon::ask(socket, profile, |connection, deadline| {
        converse(connection, deadline, &question, login.name()).unwrap_or_else(|errno| match errno {
            Errno::ETIMEDOUT => Outcome::Trouble("it takes too long"),
            _ => Outcome::Trouble("the connection is broken"),
        })
    })?;
    drop((question, login));
    Err(account::behind(&name, parsed.value('u'))?.run(program))
}

fn converse(
    connection: &OwnedFd,
    deadline: Deadline,
    question: &[u8],
    name: &[u8],
) -> Result<Outcome, Errno> {
    timed::write_all(connection, question, deadline)?;
    let mut packet = Vec::new();
    let mut chunk = [0u8; 512];
    loop {
        let n = timed::read(connection, &mut chunk, deadline)?;
        packet.extend_from_slice(chunk.get(..n).unwrap_or_default());
        match saslauthd::answer(&packet, name) {
            Some(outcome) => return Ok(outcome),
            None if n == 0 => return Ok(Outcome::Trouble("it hung up")),
            None => {}
        }
    }
}
