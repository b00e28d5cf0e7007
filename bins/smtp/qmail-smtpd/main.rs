//! qmail-smtpd - receive mail by SMTP
//!
//! called by  tcpserver, one process a connection; sendmail -bs; a terminal
//! runs as    qmaild
//! fd 0, 1    the connection
//! fd 2       one line naming what is wrong with our own house; nothing about clients
//! exit       0 after QUIT, 1 otherwise
//! env        TCPREMOTEIP TCPREMOTEHOST TCPREMOTEINFO TCPLOCALHOST TCPLOCALIP RELAYCLIENT DATABYTES QMAILQUEUE
//! jail       once control/ is read no file, no exec, no connection but to sockets of this machine, for
//!            run/queue; where its user owns the queue also that and bin/qmail-queue. With QMAILQUEUE a
//!            child with no new socket at all talks to the client, and this process, with rlimits only,
//!            starts $QMAILQUEUE for it (qmail::queue::launcher)
//!
//! `session` is the conversation, `message` what follows DATA, `reply` every reply there is, `config`
//! what the administrator decided. An extension is a word in `Session::extensions`, a verb in
//! `smtp::command` and its arm in `Session::answer`.
#![forbid(unsafe_code)]

mod config;
mod message;
mod reply;
mod session;

use config::Config;
use jail::{Jail, programs};
use qmail::home::Home;
use qmail::program::{Args, Program};
use qmail::queue::client::{Entrance, Reach, reach};
use qmail::queue::launcher;
use qmail::trouble::Trouble;
use session::Session;

/// Exit code of every end but QUIT.
const EXIT_UNFINISHED: i32 = 1;

fn main() -> ! {
    Program::new("qmail-smtpd", "qmail-smtpd").on_panic(EXIT_UNFINISHED).run(smtpd)
}

fn smtpd(args: Args) -> Result<(), Trouble> {
    args.none()?;
    let ended = match prepare() {
        Ok((config, entrance)) => Session::new(&config, entrance).run(),
        Err(trouble) => session::refuse_connection(trouble),
    };
    ended.map_err(|trouble| trouble.with_exit(EXIT_UNFINISHED))
}

/// Reads what the administrator decided, and closes the jail by what handing in a message may come to. Where
/// that is a program of somebody else's, what returns is a child.
fn prepare() -> Result<(Config, Entrance), Trouble> {
    let home = Home::find()?;
    let reach = reach(&home);
    let launcher = match reach {
        Reach::Foreign => {
            Jail::of(&programs::QMAIL_SMTPD_LAUNCHER).close()?;
            Some(launcher::part(&home)?)
        }
        Reach::Socket | Reach::Own => None,
    };
    let config = Config::read(&home.control())?;
    match reach {
        Reach::Foreign => Jail::of(&programs::QMAIL_SMTPD_TALKING).close()?,
        Reach::Socket => Jail::of(&programs::QMAIL_SMTPD).home(&home).close()?,
        Reach::Own => {
            let queue = jail::home_of(&home.path("bin/qmail-queue"));
            Jail::of(&programs::QMAIL_SMTPD_OWN).home(&home).place(programs::PROGRAMS, queue).close()?;
        }
    }
    Ok((config, launcher.map_or(Entrance::Home(home), Entrance::Launcher)))
}
