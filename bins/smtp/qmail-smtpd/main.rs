//! qmail-smtpd - receive mail by SMTP
//!
//! called by  tcpserver, one process a connection; sendmail -bs; a terminal
//! stays      where tcpserver offers it (qmail::forkserver): a process that read control/ and closed its jail, and
//!            is forked for each connection instead of started; it ends when control/ changes, and after a minute
//! arguments  [checker [argument ...] program]: it takes logins, which these check (house.rs)
//! runs as    qmaild
//! fd 0, 1    the connection
//! fd 2       one line naming what is wrong with our own house, one for each login; nothing else about clients
//! exit       0 after QUIT, 1 otherwise
//! env        TCPREMOTEIP TCPREMOTEHOST TCPREMOTEINFO TCPLOCALHOST TCPLOCALIP RELAYCLIENT DATABYTES QMAILQUEUE FORKSERVER
//!            SMTPAUTH SUBMISSION SSLCTLFD SSLREADFD SSLWRITEFD TLS_*
//! jail       once control/ is read no file, no exec, no connection but to sockets of this machine, for
//!            run/queue; where its user owns the queue also that and bin/qmail-queue. With QMAILQUEUE a
//!            child with no new socket at all talks to the client, and this process, with rlimits only,
//!            starts $QMAILQUEUE for it (qmail::queue::launcher). A checker that is run here is started by such a
//!            process as well (qmail::auth::launcher)
//!
//! The conversation is a library (lib.rs), so that tests can have it without a process.
#![forbid(unsafe_code)]

mod house;

use house::House;
use jail::{Jail, programs};
use qmail::fd;
use qmail::forkserver::{self, Offer};
use qmail::home::Home;
use qmail::program::{Args, Program};
use qmail::queue::client::{Entrance, Reach, reach};
use qmail::queue::launcher;
use qmail::received::Peer;
use qmail::timed::Writer;
use qmail::trouble::Trouble;
use qmail::ucspitls;
use smtpd::around::{Alone, Around};
use smtpd::config::Config;
use smtpd::reply;
use smtpd::session::{Connection, Session};
use smtpd::submission::Submission;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::time::Duration;

/// Exit code of every end but QUIT.
const EXIT_UNFINISHED: i32 = 1;

/// Seconds for the one line that says we cannot work at all.
const REFUSAL_TIMEOUT: u64 = 60;

fn main() -> ! {
    Program::new("qmail-smtpd", "qmail-smtpd [checker [argument ...] program]")
        .on_panic(EXIT_UNFINISHED)
        .run(smtpd)
}

fn smtpd(args: Args) -> Result<(), Trouble> {
    args.none()?;
    // Taken in any case: no session may have the socket, nor what it starts.
    let offer = forkserver::offered().filter(|_| args.list().is_empty() && !house::is_needed());
    if let Some(offer) = offer
        && offer.part().unwrap_or(false)
    {
        return stand_ready(offer).map_err(|trouble| trouble.with_exit(EXIT_UNFINISHED));
    }
    let ended = match prepare(&args) {
        Ok((config, entrance, house)) => converse(config, entrance, house, fd::IN, fd::OUT),
        Err(trouble) => refuse_connection(trouble),
    };
    ended.map_err(|trouble| trouble.with_exit(EXIT_UNFINISHED))
}

fn converse(
    config: Config,
    entrance: Entrance,
    around: impl Around,
    input: impl AsFd,
    output: impl AsFd,
) -> Result<(), Trouble> {
    let config = config.for_connection();
    let typed = input.as_fd().is_terminal();
    let connection = Connection::new(input, output, config.timeout, typed);
    Session::within(&config, Peer::from_environ(), connection, entrance, around, warn).run()
}

/// The process that stays, and those it is forked into. Where it cannot be, nothing is said: who starts for one
/// connection finds the same trouble, and has somebody to tell.
fn stand_ready(offer: Offer) -> Result<(), Trouble> {
    let Ok(home) = Home::find() else { return Ok(()) };
    if reach(&home) != Reach::Socket {
        return Ok(());
    }
    let Ok(server) = offer.server(&[&home.path("control")]) else { return Ok(()) };
    let Ok(config) = Config::read(&home.control()) else { return Ok(()) };
    Jail::of(&programs::QMAIL_SMTPD_READY).home(&home).close()?;
    let Some(connection) = server.serve() else { return Ok(()) };
    jail::alone()?;
    converse(config, Entrance::Home(home), Alone, &connection, &connection)
}

/// We cannot even greet: one reply, and the reason for the log.
fn refuse_connection(trouble: Trouble) -> Result<(), Trouble> {
    let mut output = Writer::with_timeout(fd::OUT, Duration::from_secs(REFUSAL_TIMEOUT));
    let _ = output.put(reply::NO_CONTROLS.line(false)).and_then(|()| output.flush());
    Err(trouble)
}

fn warn(what: &str, text: &[u8]) {
    let line = [b"qmail-smtpd: warning: ".as_slice(), what.as_bytes(), b": ", text, b"\n"];
    let _ = fd::write_all(fd::ERR, &line.concat());
}

/// Reads what the administrator decided, and closes the jail by what handing in a message may come to. Where
/// that is a program of somebody else's, or a checker, what returns is a child.
fn prepare(args: &Args) -> Result<(Config, Entrance, House), Trouble> {
    let home = Home::find()?;
    let tls = ucspitls::Offer::from_environ(); // first: no program that is started may have its descriptors
    let reach = reach(&home);
    let launcher = match reach {
        Reach::Foreign => {
            Jail::of(&programs::QMAIL_SMTPD_LAUNCHER).close()?;
            Some(launcher::part(&home)?)
        }
        Reach::Socket | Reach::Own => None,
    };
    let house = House::prepare(&home, args.list(), &reach, tls)?;
    let config = Config::with_logins(&home.control(), house.has_checker())?;
    if config.access.submission.as_ref().is_some_and(Submission::is_stale) {
        warn("the index of control/submissionsenders is not of this file", b"run qmail-newsenders");
    }
    match reach {
        Reach::Foreign => Jail::of(&programs::QMAIL_SMTPD_TALKING).close()?,
        Reach::Socket => Jail::of(&programs::QMAIL_SMTPD).home(&home).close()?,
        Reach::Own => {
            let queue = jail::home_of(&home.path("bin/qmail-queue"));
            Jail::of(&programs::QMAIL_SMTPD_OWN).home(&home).place(programs::PROGRAMS, queue).close()?;
        }
    }
    Ok((config, launcher.map_or(Entrance::Home(home), Entrance::Launcher), house))
}
