//! qmail-remote - send a message to recipients at one host by SMTP
//!
//! called by  qmail-rspawn, or anybody with a message   runs as  qmailr
//! arguments  host sender recip …
//! fd 0       the message; a file, so that it can be looked at before it is offered
//! fd 1       one report a recipient (r, h, s), then one on the message (K, D, Z), each ended by NUL
//! fd 3       with QMAILKEEP=3: more messages for the same host (spawn::line); reports on them follow on fd 1
//! env        TLSCLIENTFD  a socket of tlsclient, who makes TLS    MTASTSFD  one of mta-sts, who knows policies
//! controls   helohost me senderroutes smtpauth smtproutes timeoutconnect timeoutremote tlsroutes
//! jail       control files read and queue/lock/tcpto open, no file at all; TCP only to the port of SMTP and
//!            of DNS, UDP; once a host is chosen, no other connection; no exec
//! exit       always 0; 111 after a bug of ours. With 0 and no word about a further message it has not begun that one
//!
//! Its parts are a library (lib.rs), so that tests can have the conversation without a process.
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use qmail::fd;
use qmail::home::Home;
use qmail::program::{Args, Program, Voice};
use qmail::tcpto;
use qmail::trouble::Trouble;
use remote::SMTP_PORT;
use remote::demand::Kind;
use remote::dialogue::{Outcome, Session, Wire};
use remote::hosts::{self, Lookup};
use remote::message::Message;
use remote::more::More;
use remote::open::{Opening, Settings, Way};
use remote::report::{self, Report};

const USAGE: &str = "qmail-remote host sender recip ...";

fn main() -> ! {
    Program::new("qmail-remote", USAGE).voice(Voice::Silent).run(send)
}

fn send(args: Args) -> Result<(), Trouble> {
    if let Err(report) = deliver(args.list()) {
        // Without a reader there is nobody to tell; a report that is missing counts as temporary.
        let _ = report.print();
    }
    Ok(())
}

/// Sends the message of the arguments, and what comes behind it. The error is the report on the first one, where
/// there was nobody to talk to.
fn deliver(args: &[Vec<u8>]) -> Result<(), Report> {
    let [host, sender, recipients @ ..] = args else { return Err(report::wrong_use()) };
    if recipients.is_empty() {
        return Err(report::wrong_use());
    }
    let mut more = More::inherited();
    let home = Home::find().map_err(|why| report::no_home(&why))?;
    let settings = Settings::read(&home.control()).map_err(|why| report::no_controls(&why))?;
    let mut message = Message::open(fd::IN)?;
    let way = Way::of(&settings, host, sender)?;
    let kind = Kind::of(message.wish(), sender);
    let mut session = opened(host, &home, &settings, &way, kind)?;
    let mut answers = Answers::default();
    let mut outcome = session.send(&mut message, sender, recipients, &mut |report| answers.add(report));
    while let Outcome::Report(report) = outcome {
        answers.add(&report);
        let stays = more.as_ref().is_some_and(|more| more.may_follow(&session));
        // A report that nobody reads changes nothing: what is missing counts as temporary.
        let heard = answers.say().is_ok();
        let next = more.as_mut().filter(|_| stays && heard).and_then(|more| more.next(session.stream()));
        // Who goes another way is not begun here.
        let Some(errand) = next.filter(|errand| way.is_for(&settings, host, &errand.sender)) else { break };
        outcome = match Message::open(&errand.message) {
            // Nor who wants other things of a host than this one was looked at for.
            Ok(message) if Kind::of(message.wish(), &errand.sender) != kind => break,
            Ok(mut message) => {
                let (sender, recipients) = (&errand.sender, &errand.recipients);
                session.send(&mut message, sender, recipients, &mut |report| answers.add(report))
            }
            Err(report) => Outcome::Report(report),
        };
    }
    session.quit();
    Ok(())
}

/// Finds the host's addresses, and a session with the first that is what it must be.
fn opened(
    host: &[u8],
    home: &Home,
    settings: &Settings,
    way: &Way,
    kind: Kind,
) -> Result<Session<Wire>, Report> {
    // Everything that needs a file, before the jail closes. (A table that cannot be opened is no loss.)
    let own = if way.route.is_some() { Vec::new() } else { hosts::own_addresses()? };
    let lookup = Lookup::begin();
    let table = tcpto::File::open(&home.path(tcpto::FILE)).ok();
    let port = way.route.as_ref().map_or(SMTP_PORT, |route| route.port);
    let ports = lookup.ports().chain([port]);
    Jail::of(&programs::QMAIL_REMOTE).ports(ports).close().map_err(|why| report::no_jail(&why))?;

    let found = match &way.route {
        Some(route) => hosts::of_route(route, &lookup)?,
        None => hosts::of_host(host, &lookup, &own)?,
    };
    Opening { host, way, kind, settings, lookup: &lookup, table: table.as_ref(), closed: false.into() }
        .session(&found)
}

/// What is to be said of a message, gathered: recipients may be many.
#[derive(Default)]
struct Answers(Vec<u8>);

impl Answers {
    fn add(&mut self, report: &Report) {
        self.0.extend_from_slice(&report.bytes());
    }

    /// Says it.
    fn say(&mut self) -> Result<(), Errno> {
        fd::write_all(fd::OUT, &std::mem::take(&mut self.0))
    }
}
