//! sendmail - the command line of sendmail(8) in front of qmail-inject
//!
//! called by  mail readers, cron, scripts; as `mailq` for the queue's contents
//! runs as    the caller; in an own home root becomes its owner
//! fd 0       the message, or with -bs the SMTP client
//! jail       rlimits only: it becomes another program
//! exit       of qmail-inject, qmail-smtpd or qmail-qread, which it becomes; 100 wrong use, 111 cannot become it
//! touches    nothing itself
#![forbid(unsafe_code)]

use inject::options::{Mode, Options};
use jail::{Jail, programs};
use qmail::environ::{self, Environ};
use qmail::home::Home;
use qmail::program::{self, Args};
use qmail::sys::process::Command;
use qmail::trouble::Trouble;
use std::os::unix::ffi::OsStrExt;

const USAGE: &str = "sendmail [-t] [-f sender] [-F name] [-bm | -bp | -bs] [-i] [recipient ...]";

/// What an SMTP session from this very machine looks like to qmail-smtpd: it may relay, without limit.
const LOCAL_SESSION: [(&str, &str); 8] = [
    ("RELAYCLIENT", ""),
    ("DATABYTES", "0"),
    ("PROTO", "TCP"),
    ("TCPLOCALIP", "127.0.0.1"),
    ("TCPLOCALHOST", "localhost"),
    ("TCPREMOTEIP", "127.0.0.1"),
    ("TCPREMOTEHOST", "localhost"),
    ("TCPREMOTEINFO", "sendmail-bs"),
];

fn main() -> ! {
    program::run("sendmail", USAGE, sendmail)
}

fn sendmail(args: Args) -> Result<(), Trouble> {
    args.none()?;
    Jail::of(&programs::SENDMAIL).close()?;
    let options = Options::parse(args.list())?;
    let mut environ = Environ::inherited();
    match options.mode {
        Mode::Queue => become_program("qmail-qread", &[], &environ),
        Mode::Smtp => {
            local_session(&mut environ);
            become_program("qmail-smtpd", &[], &environ)
        }
        Mode::Mail if called_as(b"mailq") => become_program("qmail-qread", &[], &environ),
        Mode::Mail if called_as(b"newaliases") => {
            Err(Trouble::permanent("please use fastforward/newaliases instead"))
        }
        Mode::Mail => {
            identify(&options, &mut environ);
            become_program("qmail-inject", &arguments(options), &environ)
        }
    }
}

fn called_as(name: &[u8]) -> bool {
    std::env::args_os().next().is_some_and(|own| own.as_bytes().rsplit(|b| *b == b'/').next() == Some(name))
}

/// An SMTP session that already has an environment (tcpserver's) keeps it.
fn local_session(environ: &mut Environ) {
    if environ::get("PROTO").is_none() {
        for (name, value) in LOCAL_SESSION {
            environ.set(name, value);
        }
    }
}

/// A sender given here is also the author, under no other name: qmail-inject takes both from its
/// environment. The empty sender of notices has no author in it.
fn identify(options: &Options, environ: &mut Environ) {
    if let Some(name) = &options.name {
        environ.set("MAILNAME", name);
    }
    let Some(sender) = options.sender.as_deref().filter(|s| !s.is_empty()) else { return };
    for name in ["QMAILNAME", "MAILNAME", "NAME", "QMAILHOST", "MAILHOST"] {
        environ.unset(name);
    }
    let mut halves = sender.rsplitn(2, |b| *b == b'@');
    let (last, first) = (halves.next().unwrap_or_default(), halves.next());
    environ.set("QMAILUSER", first.unwrap_or(last));
    if first.is_some() {
        environ.set("QMAILHOST", last);
    }
}

fn arguments(options: Options) -> Vec<Vec<u8>> {
    let mut list: Vec<Vec<u8>> = vec![if options.read_header { b"-H".to_vec() } else { b"-a".to_vec() }];
    if let Some(sender) = options.sender {
        list.push(b"-f".to_vec());
        list.push(sender);
    }
    list.push(b"--".to_vec());
    list.extend(options.recipients);
    list
}

/// Only the home's own programs: a PATH may lead into another home.
fn become_program(name: &str, arguments: &[Vec<u8>], environ: &Environ) -> Result<(), Trouble> {
    let home = Home::find()?;
    let entered = home.enter().map_err(|t| {
        Trouble::temporary([b"unable to switch to qmail home directory: ", t.text().as_slice()].concat())
    });
    entered?;
    let argv: Vec<&[u8]> =
        std::iter::once(name.as_bytes()).chain(arguments.iter().map(Vec::as_slice)).collect();
    let errno = Command::new(home.path(&format!("bin/{name}")), &argv).environ(environ).exec();
    Err(Trouble::unable("run", name, errno))
}
