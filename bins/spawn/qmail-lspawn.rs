//! qmail-lspawn - deliver to local users, each as that user
//!
//! called by  qmail-start              runs as  root, group qmail (own home: the owner), in queue/mess
//! argument   defaultdelivery: what a user without a .qmail file gets
//! fd 0       requests of qmail-send: slot, message, sender, recipient
//! fd 1       first byte: concurrency limit; then one report a request
//! jail       rlimits only: its children become every user and run what users want
//! exit       0 no more requests and all reported, 100 no argument, 111 cannot start
//! touches    queue/mess (reads), queue/lock/ledger.local, users/cdb (in the child)
//!
//! The parent parses requests and opens messages, nothing else. A child beside each delivery waits for its end and
//! notes success in the ledger. Its child finds the user (users/cdb, else qmail-getpw as qmailp), becomes that
//! user for good, and becomes qmail-local.
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid};
use qmail::assign::{self, User};
use qmail::cdb;
use qmail::environ::Environ;
use qmail::home::{Account, Home};
use qmail::program::{self, Args};
use qmail::spawn::ledger::Ledger;
use qmail::spawn::report::{self, local as code};
use qmail::spawn::{self, Ceilings, Delivery, Request, line, serve, stay_with};
use qmail::sys::process::{Command, End, become_user, wait};
use qmail::trouble::Trouble;
use qmail::{exits, fd};
use std::os::fd::OwnedFd;

/// What the next one of us must know.
const LEDGER: &str = "queue/lock/ledger.local";

/// qmail-locals at work or waiting for more; beyond, those that wait leave.
const STAYING_MAX: usize = 100;

/// What qmail-getpw prints: a name, two numbers, a home directory and an extension.
const GETPW_MAX: usize = 64 * 1024;

fn main() {
    program::run("qmail-lspawn", "qmail-lspawn defaultdelivery", lspawn)
}

fn lspawn(args: Args) -> Result<(), Trouble> {
    let [default, ..] = args.list() else { return Err(args.wrong()) };
    let home = Home::find()?;
    Jail::of(&programs::QMAIL_LSPAWN).close()?;
    let local = Local {
        owner: role(&home, "qmailq")?,
        getpw: home.ids().role("qmailp"),
        depends: [program::find_in(&home, "qmail-local"), home.path("users/cdb")],
        qmail_local: program::find_in(&home, "qmail-local"),
        qmail_getpw: program::find_in(&home, "qmail-getpw"),
        default: default.clone(),
        home,
    };
    let mess = local.home.path("queue/mess");
    nix::unistd::chdir(fd::path(&mess)).map_err(|e| Trouble::unable("switch to", &mess, e))?;
    umask(Mode::from_bits_truncate(0o077));
    let null = fd::null().ok();
    let ledger = Ledger::prepare(local.home.path(LEDGER));
    serve(&local, ledger, null)
}

fn role(home: &Home, name: &str) -> Result<Account, Trouble> {
    home.ids().role(name).ok_or_else(|| Trouble::temporary(format!("unable to find user {name}")))
}

struct Local {
    home: Home,
    default: Vec<u8>,
    owner: Account,
    /// Who asks the account database; None in a home that does not name it.
    getpw: Option<Account>,
    qmail_local: Vec<u8>,
    /// Itself and users/cdb.
    depends: [Vec<u8>; 2],
    qmail_getpw: Vec<u8>,
}

impl Delivery for Local {
    fn owner(&self) -> Uid {
        self.owner.uid
    }

    fn limit(&self) -> u8 {
        spawn::LIMIT
    }

    fn keep(&self, _count: usize) -> usize {
        report::LOCAL_KEEP
    }

    fn reports(&self, end: End, output: &[u8], count: usize) -> Vec<Vec<u8>> {
        vec![report::of_local(end, output); count]
    }

    fn ceilings(&self) -> Option<Ceilings> {
        Some(Ceilings { connections: STAYING_MAX, host: usize::MAX })
    }

    fn company(&self, request: &Request) -> Vec<u8> {
        request.recipient.clone()
    }

    fn depends(&self) -> &[Vec<u8>] {
        &self.depends
    }

    fn run(&self, requests: &[Request], message: OwnedFd, output: OwnedFd, beside: Pid) -> i32 {
        match requests {
            [request] => self.deliver(request, &message, &output, beside, None),
            _ => code::BUG,
        }
    }

    fn run_on(
        &self,
        requests: &[Request],
        message: OwnedFd,
        output: OwnedFd,
        beside: Pid,
        line: OwnedFd,
    ) -> i32 {
        match requests {
            [request] => self.deliver(request, &message, &output, beside, Some(&line)),
            _ => code::BUG,
        }
    }
}

impl Local {
    /// In the child. Gives an exit code of the report table, or becomes qmail-local.
    fn deliver(
        &self,
        request: &Request,
        message: &OwnedFd,
        output: &OwnedFd,
        beside: Pid,
        line: Option<&OwnedFd>,
    ) -> i32 {
        let (local, domain) = request.local_and_domain();
        if local.is_empty() {
            return exits::SUCCESS; // nobody to deliver to
        }
        let user = match self.find_user(local, output) {
            Ok(user) => user,
            Err(code) => return code,
        };
        if let Err(code) = self.become_recipient(&user) {
            return code;
        }
        if !stay_with(beside) {
            return exits::TEMPORARY;
        }
        let argv: [&[u8]; 10] = [
            b"bin/qmail-local",
            b"--",
            &user.user,
            &user.home,
            local,
            &user.dash,
            &user.ext,
            domain,
            &request.sender,
            &self.default,
        ];
        let mut environ = Environ::inherited();
        environ.unset(line::VARIABLE); // whoever set it does not know what is on that descriptor
        let mut command = Command::new(&self.qmail_local, &argv)
            .directory(self.home.path(""))
            .descriptor(message, 0)
            .descriptor(output, 1)
            .descriptor(output, 2);
        // Another one would not know the line, and could start ours behind itself.
        if let Some(line) = line.filter(|_| spawn::ours(&self.home, "qmail-local").is_some()) {
            environ.set(line::VARIABLE, line::NUMBER.to_string());
            command = command.descriptor(line, line::NUMBER);
        }
        command.environ(&environ).exec();
        code::EXEC
    }

    /// users/cdb decides; what it does not cover is asked of qmail-getpw.
    fn find_user(&self, local: &[u8], output: &OwnedFd) -> Result<User, i32> {
        let found = match cdb::Reader::open(self.home.path("users/cdb")) {
            Ok(None) => None,
            Ok(Some(cdb)) => assign::lookup(&cdb, local).map_err(|_| code::CDB)?,
            Err(_) => return Err(code::CDB),
        };
        match found {
            Some(user) => Ok(user),
            None => self.ask_getpw(local, output),
        }
    }

    fn ask_getpw(&self, local: &[u8], output: &OwnedFd) -> Result<User, i32> {
        let (read, write) = fd::pipe().map_err(|_| code::SYSTEM)?;
        let argv: [&[u8]; 2] = [b"bin/qmail-getpw", local];
        let mut command = Command::new(&self.qmail_getpw, &argv)
            .directory(self.home.path(""))
            .descriptor(&write, 1)
            .descriptor(output, 2)
            .on_failure(code::EXEC_GETPW);
        if !self.home.ids().is_own() {
            let qmailp = self.getpw.ok_or(code::SYSTEM)?;
            command = command.user(qmailp.uid, qmailp.gid, &[qmailp.gid]);
        }
        let pid = command.spawn().map_err(|_| code::SYSTEM)?;
        drop(command);
        drop(write);
        let fields = fd::read_to_end(&read, GETPW_MAX);
        drop(read); // one that says too much must not wait for a reader
        match wait(pid) {
            Ok(End::Exit(exits::SUCCESS)) => {}
            Ok(End::Exit(code)) => return Err(code),
            _ => return Err(code::SYSTEM),
        }
        User::parse(&fields.map_err(|_| code::SYSTEM)?).ok_or(code::SYSTEM)
    }

    /// From here on everything is done with the recipient's rights and nobody else's.
    fn become_recipient(&self, user: &User) -> Result<(), i32> {
        if self.home.ids().is_own() {
            return Ok(()); // one account runs all; uid and gid of users/assign do not count
        }
        if user.uid.is_root() {
            return Err(code::ROOT);
        }
        become_user(user.uid, user.gid, &[user.gid]).map_err(|_| code::SYSTEM)?;
        // For good: neither uid nor group may come back or have stayed.
        let groups = nix::unistd::getgroups().unwrap_or_default();
        let whole = Uid::current() == user.uid
            && Uid::effective() == user.uid
            && Gid::effective() == user.gid
            && (groups.is_empty() || groups == [user.gid]);
        if whole && nix::unistd::setuid(Uid::from_raw(0)).is_err() { Ok(()) } else { Err(code::SYSTEM) }
    }
}
