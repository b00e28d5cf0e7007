//! checkpassword-dovecot - let Dovecot check a login, and run a program as that user
//!
//! called by  qmail-popup and others with a name and a password on fd 3
//! arguments  [-p socket] [-s service] [-u account] program [argument ...]
//! runs as    root, or the one account that all become
//! fd 3       name NUL password NUL [timestamp NUL mechanism NUL service NUL ...]
//! env        TCPREMOTEIP, TCPREMOTEPORT, TCPLOCALIP, TCPLOCALPORT are told to Dovecot
//! jail       rlimits only: it runs its arguments; Dovecot's answers are read in a child that can do nothing else
//! exit       1 not acceptable, 2 misused, 111 temporary trouble; else the program's
//! touches    Dovecot's socket; the account database
#![forbid(unsafe_code)]

use auth::account::{self, program_of};
use auth::daemon::{self, Outcome};
use auth::dovecot::{self, Greeting, LINE_MAX, LINES_MAX, Peers};
use auth::login::{Login, misused, refused};
use jail::{Jail, programs};
use nix::errno::Errno;
use qmail::environ;
use qmail::program::{self, Args};
use qmail::timed::{self, Deadline, Line, Reader};
use qmail::trouble::Trouble;
use std::os::fd::OwnedFd;
use std::str::FromStr;

const SOCKET: &[u8] = b"/run/dovecot/auth-client";

/// What the login is for, where nobody says.
const SERVICE: &[u8] = b"smtp";

fn main() {
    program::run(
        "checkpassword-dovecot",
        "checkpassword-dovecot [-p socket] [-s service] [-u account] program [arg ...]",
        check,
    )
}

fn check(args: Args) -> Result<(), Trouble> {
    let parsed = args
        .options("p:s:u:")
        .map_err(|_| misused("the options are -p socket, -s service and -u account"))?;
    let program = program_of(&parsed.rest)?;
    Jail::of(&programs::CHECKPASSWORD_DOVECOT).close()?;
    let login = Login::read()?;
    let Some(password) = login.password().filter(|password| !password.is_empty()) else {
        return Err(refused());
    };
    let service = parsed.value('s').or(login.service()).unwrap_or(SERVICE);
    let peers = Peers {
        local: variable("TCPLOCALIP"),
        local_port: variable("TCPLOCALPORT"),
        remote: variable("TCPREMOTEIP"),
        remote_port: variable("TCPREMOTEPORT"),
    };
    let Some(question) = dovecot::question(service, login.name(), password, &peers) else {
        return Err(refused());
    };
    let question = qmail::auth::Secret(question);
    let profile = &programs::CHECKPASSWORD_DOVECOT_ASKING;
    let socket = parsed.value('p').unwrap_or(SOCKET);
    let name = daemon::ask(socket, profile, |connection, deadline| {
        converse(connection, deadline, &question).unwrap_or_else(|errno| match errno {
            Errno::ETIMEDOUT => Outcome::Trouble("it takes too long"),
            _ => Outcome::Trouble("the connection is broken"),
        })
    })?;
    drop((question, login));
    Err(account::behind(&name, parsed.value('u'))?.run(program))
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    std::str::from_utf8(&environ::get(name)?).ok()?.parse().ok()
}

fn converse(connection: &OwnedFd, deadline: Deadline, question: &[u8]) -> Result<Outcome, Errno> {
    let mut lines = Reader::new(connection);
    lines.set_overall(deadline);
    timed::write_all(connection, &dovecot::greeting(nix::unistd::getpid().as_raw()), deadline)?;
    let mut greeting = Greeting::default();
    let mut greeted = false;
    for _ in 0..LINES_MAX {
        let line = match lines.line(b'\n', LINE_MAX)? {
            Line::Whole(line) => line,
            Line::TooLong => return Ok(Outcome::Trouble("its line is too long")),
            Line::End(_) => return Ok(Outcome::Trouble("it hung up")),
        };
        if greeted {
            if let Some(outcome) = dovecot::answer(&line) {
                return Ok(outcome);
            }
        } else {
            match greeting.take(&line) {
                Err(reason) => return Ok(Outcome::Trouble(reason)),
                Ok(false) => {}
                Ok(true) => {
                    timed::write_all(connection, question, deadline)?;
                    greeted = true;
                }
            }
        }
    }
    Ok(Outcome::Trouble("it says too much"))
}
