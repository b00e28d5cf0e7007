//! qmail-rspawn - deliver to other hosts through qmail-remote
//!
//! called by  qmail-start              runs as  qmailr, group qmail (own home: the owner), in queue/mess
//! fd 0       requests of qmail-send: slot, message, sender, recipient
//! fd 1       first byte: concurrency limit; then one report a request
//! exit       0 no more requests and all reported, 111 cannot start
//! jail       reads queue/mess and what qmail-remote reads, writes queue/lock/tcpto (emptied at start) and
//!            queue/lock/ledger.remote, executes the home's programs only. With another program than ours for
//!            qmail-remote rlimits only
//! env        QMAILREMOTE  a program to run instead of qmail-remote, found through PATH
//!            QMAILBURST   1: requests that come together for one message, sender and host share a
//!                         qmail-remote (not with QMAILREMOTE); 2: the same, and slots are of two bytes
//! tells      qmail-remote, if it is ours, QMAILKEEP=3: more messages for its host come on descriptor 3
//! controls   concurrencyhost concurrencyremote
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Pid, Uid};
use qmail::environ::{self, Environ};
use qmail::home::Home;
use qmail::program::{self, Args};
use qmail::spawn::ledger::Ledger;
use qmail::spawn::{self, Ceilings, Delivery, Request, Width, line, report, serve};
use qmail::sys::process::{Command, End};
use qmail::trouble::Trouble;
use qmail::{exits, fd};
use std::os::fd::OwnedFd;

/// What the next one of us must know.
const LEDGER: &str = "queue/lock/ledger.remote";

/// Connections to one host, and in all, unless the control files say otherwise. (qmail-send keeps to the second for
/// what is at work; here connections that wait are counted, too.)
const CONCURRENCY_HOST: u64 = 20;
const CONCURRENCY_REMOTE: u64 = 20;

/// Control files of which a connection that is kept is made.
const READ_BY_REMOTE: [&str; 7] =
    ["smtproutes", "senderroutes", "smtpauth", "tlsroutes", "helohost", "me", "timeoutremote"];

/// Length of the table of hosts that timed out.
const TCPTO_SIZE: usize = 1024;

fn main() {
    program::run("qmail-rspawn", "qmail-rspawn", rspawn)
}

fn rspawn(args: Args) -> Result<(), Trouble> {
    args.none()?;
    let home = Home::find()?;
    let qmailq = home.ids().role("qmailq").ok_or_else(|| Trouble::temporary("unable to find user qmailq"))?;
    let mess = home.path("queue/mess");
    nix::unistd::chdir(fd::path(&mess)).map_err(|e| Trouble::unable("switch to", &mess, e))?;
    umask(Mode::from_bits_truncate(0o077));
    forget_timeouts(&home);
    let replacement = environ::get(spawn::REPLACEMENT);
    let null = fd::null().ok();
    let ledger = Ledger::prepare(home.path(LEDGER));
    let ceilings = ceilings(&home)?;
    let ours = close_jail(&home, replacement.is_some())?;
    let remote = Remote {
        owner: qmailq.uid,
        replacement,
        together: spawn::is_together_announced(),
        width: spawn::announced_width(),
        ceilings: ours.then_some(ceilings),
        depends: std::iter::once(program::find_in(&home, "qmail-remote"))
            .chain(READ_BY_REMOTE.iter().map(|name| home.path(&format!("control/{name}"))))
            .collect(),
        home,
    };
    serve(&remote, ledger, null)
}

/// Some systems have a link here to where the network's manager writes it.
const RESOLV_CONF: &[u8] = b"/etc/resolv.conf";

/// A jail is never handed to a program that is not ours: another one may be named by QMAILREMOTE, stand before
/// ours in PATH, or be a script in its place. Whether it is ours.
fn close_jail(home: &Home, replaced: bool) -> Result<bool, Trouble> {
    if replaced || spawn::ours(home, "qmail-remote").is_none() {
        return Jail::of(&programs::QMAIL_RSPAWN_OTHER).close().map(|()| false);
    }
    let ours = jail::home_of(&home.path("bin/qmail-remote"));
    Jail::of(&programs::QMAIL_RSPAWN)
        .home(home)
        .place(programs::PROGRAMS, ours)
        .place(programs::RESOLVER, jail::home_of(RESOLV_CONF))
        .close()
        .map(|()| true)
}

fn ceilings(home: &Home) -> Result<Ceilings, Trouble> {
    let control = home.control();
    let number =
        |name, default| Ok::<_, Trouble>(usize::try_from(control.int(name, default)?).unwrap_or(usize::MAX));
    Ok(Ceilings {
        connections: number("concurrencyremote", CONCURRENCY_REMOTE)?,
        host: number("concurrencyhost", CONCURRENCY_HOST)?,
    })
}

/// A restart is how an administrator says that the network is back. The table only saves time: when it
/// cannot be written, deliveries go on without.
fn forget_timeouts(home: &Home) {
    if let Ok(tcpto) = fd::open_write(home.path("queue/lock/tcpto")) {
        let _ = fd::write_all(&tcpto, &[0; TCPTO_SIZE]);
    }
}

struct Remote {
    home: Home,
    owner: Uid,
    replacement: Option<Vec<u8>>,
    /// Recipients at one host may travel together.
    together: bool,
    width: Width,
    /// Where qmail-remote is ours, which takes one message after the other.
    ceilings: Option<Ceilings>,
    /// Itself, and what it read.
    depends: Vec<Vec<u8>>,
}

impl Remote {
    /// In the child: becomes `qmail-remote host sender recipient…`.
    fn become_remote(
        &self,
        requests: &[Request],
        message: &OwnedFd,
        output: &OwnedFd,
        line: Option<&OwnedFd>,
    ) -> i32 {
        let Some(first) = requests.first() else { return exits::TEMPORARY };
        let (name, path) = match &self.replacement {
            Some(name) => (name.clone(), program::find(name)),
            None => (b"qmail-remote".to_vec(), Some(program::find_in(&self.home, "qmail-remote"))),
        };
        let Some(path) = path else { return exits::TEMPORARY };
        let (_, host) = first.local_and_domain();
        let mut argv: Vec<&[u8]> = vec![&name, host, &first.sender];
        argv.extend(requests.iter().map(|r| r.recipient.as_slice()));
        let mut environ = Environ::inherited();
        environ.unset(line::VARIABLE); // whoever set it does not know what is on that descriptor
        let mut command =
            Command::new(path, &argv).descriptor(message, 0).descriptor(output, 1).descriptor(output, 2);
        // Another one, put there since, could start ours behind itself.
        if let Some(line) = line.filter(|_| spawn::ours(&self.home, "qmail-remote").is_some()) {
            environ.set(line::VARIABLE, line::NUMBER.to_string());
            command = command.descriptor(line, line::NUMBER);
        }
        command.environ(&environ).exec();
        exits::TEMPORARY
    }
}

impl Delivery for Remote {
    fn owner(&self) -> Uid {
        self.owner
    }

    fn limit(&self) -> u8 {
        if self.together { spawn::LIMIT_TOGETHER } else { spawn::LIMIT }
    }

    fn width(&self) -> Width {
        self.width
    }

    fn together(&self) -> bool {
        self.together
    }

    fn keep(&self, count: usize) -> usize {
        report::remote_keep(count)
    }

    fn reports(&self, end: End, output: &[u8], count: usize) -> Vec<Vec<u8>> {
        report::of_remote(end, output, count)
    }

    fn run(&self, requests: &[Request], message: OwnedFd, output: OwnedFd, _beside: Pid) -> i32 {
        self.become_remote(requests, &message, &output, None)
    }

    fn ceilings(&self) -> Option<Ceilings> {
        self.ceilings
    }

    fn depends(&self) -> &[Vec<u8>] {
        &self.depends
    }

    fn run_on(
        &self,
        requests: &[Request],
        message: OwnedFd,
        output: OwnedFd,
        _beside: Pid,
        line: OwnedFd,
    ) -> i32 {
        self.become_remote(requests, &message, &output, Some(&line))
    }
}
