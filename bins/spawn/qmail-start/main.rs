//! qmail-start - start the mail system: its daemons, six pipes between them, each as its own user
//!
//! called by  a supervisor or boot script      runs as  root (own home: the owner; root becomes it)
//! arguments  [defaultdelivery [logger [argument ...]]], default ./Mailbox
//! fd 1       the log, or the logger's fd 1
//! fd 2       troubles before everything runs; no daemon gets it
//! jail       rlimits only: it runs the logger and what may not be in its jail
//! env        tells qmail-rspawn and qmail-send QMAILBURST=2, nobody else, unless QMAILREMOTE is set
//! exit       becomes qmail-send; 111 when something is missing, or a stranger could spoil it: nothing is
//!            started then
//!
//! who            runs as            fd 0          fd 1          more
//! logger         qmaill nofiles     log           ours
//! keeper         qmailq qmail       keeps qmail-queued running: keeper.rs (not with QMAILKEEPER=no)
//! qmail-lspawn   root qmail         from send 1   to send 2
//! qmail-rspawn   qmailr qmail       from send 3   to send 4     behind tlsclient and mta-sts, where they are
//! qmail-clean    qmailq qmail       from send 5   to send 6
//! qmail-send     qmails qmail       log           to lspawn     2 lspawn, 3 4 rspawn, 5 6 clean
#![forbid(unsafe_code)]

mod keeper;
mod users;

use jail::{Jail, programs};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::{Mode, SFlag, stat, umask};
use nix::unistd::{AccessFlags, access};
use qmail::environ::{self, Environ};
use qmail::exits;
use qmail::fd::{self, Standard};
use qmail::home::Home;
use qmail::program::{self, Args};
use qmail::setup;
use qmail::spawn;
use qmail::sys::descriptor::close_above;
use qmail::sys::process::Command;
use qmail::trouble::{Trouble, wording};
use std::os::fd::OwnedFd;
use users::Users;

/// Descriptors the daemons must not inherit from whoever called us, on kernels that cannot close a range.
const CLOSED: std::ops::RangeInclusive<i32> = 2..=6;

/// Where fd 2 goes while descriptors 0 to 6 are arranged for qmail-send; any number above them.
const SPARE: i32 = 30;

/// What the keeper and the spawners start.
const LATER: [&str; 6] = ["qmail-queued", "qmail-local", "qmail-getpw", "qmail-remote", TLSCLIENT, MTA_STS];

/// Who makes TLS for qmail-remote, and who knows what domains demand of it. Each becomes what stands behind it.
const TLSCLIENT: &str = "tlsclient";
const MTA_STS: &str = "mta-sts";

fn main() {
    program::run("qmail-start", "qmail-start [defaultdelivery [logger [argument ...]]]", start)
}

fn start(args: Args) -> Result<(), Trouble> {
    let (default, logger) = match args.list() {
        [] => (b"./Mailbox".as_slice(), [].as_slice()),
        [default, logger @ ..] => (default.as_slice(), logger),
    };
    close_above(2); // what our caller held open (a lock, say) must not live on in the daemons
    for number in CLOSED {
        let _ = fcntl(Standard(number), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
    let home = Home::find()?;
    home.enter()?;
    Jail::of(&programs::QMAIL_START).close()?;
    umask(Mode::from_bits_truncate(0o077));
    let users = Users::of(&home)?;
    users.check(!logger.is_empty())?;
    setup::require(&home, &[setup::place(&home), vec![setup::programs(&home)]].concat())?;
    let (lspawn, rspawn) = (find(&home, "qmail-lspawn")?, find(&home, "qmail-rspawn")?);
    let (clean, send) = (find(&home, "qmail-clean")?, find(&home, "qmail-send")?);

    let keeper = wants_keeper()?;
    let logger_path = match logger.first() {
        Some(name) => Some(program::find(name).ok_or_else(|| Trouble::unable("find", name, Errno::ENOENT))?),
        None => None,
    };
    let started = [&lspawn, &rspawn, &clean, &send].into_iter().chain(&logger_path);
    check_trust(&home, started.map(Vec::as_slice))?;

    let log = match &logger_path {
        Some(path) => Some(start_logger(&users, path, logger)?),
        None => None,
    };
    if keeper {
        // Before the pipes are made, so that it holds none of them open.
        keeper::start(&home, users.queue()?, log.as_ref())?;
    }

    let (to_lspawn, from_lspawn) = (Pipe::new()?, Pipe::new()?);
    let (to_rspawn, from_rspawn) = (Pipe::new()?, Pipe::new()?);
    let (to_clean, from_clean) = (Pipe::new()?, Pipe::new()?);
    let environ = Environments::new();
    let daemon = |path: &[u8], argv: &[&[u8]], user: users::User, environ, input: &Pipe, output: &Pipe| {
        let command = Command::new(path, argv).descriptor(&input.read, 0).descriptor(&output.write, 1);
        launch(path, user.runs(command.environ(environ)))
    };
    let Environments { plain, together } = &environ;
    daemon(&lspawn, &[b"qmail-lspawn", default], users.lspawn()?, plain, &to_lspawn, &from_lspawn)?;
    let (first, chain) = before_rspawn(&home, rspawn);
    let chain: Vec<&[u8]> = chain.iter().map(|name| name.as_bytes()).collect();
    daemon(&first, &chain, users.rspawn()?, together, &to_rspawn, &from_rspawn)?;
    daemon(&clean, &[b"qmail-clean"], users.queue()?, plain, &to_clean, &from_clean)?;

    let spare = fcntl(fd::ERR, FcntlArg::F_DUPFD_CLOEXEC(SPARE));
    let mut command = users.send()?.runs(Command::new(&send, &["qmail-send"]).environ(together));
    command = match &log {
        Some(log) => command.descriptor(log, 0),
        None => command.descriptor(&fd::OUT, 0),
    };
    let errno = command
        .descriptor(&to_lspawn.write, 1)
        .descriptor(&from_lspawn.read, 2)
        .descriptor(&to_rspawn.write, 3)
        .descriptor(&from_rspawn.read, 4)
        .descriptor(&to_clean.write, 5)
        .descriptor(&from_clean.read, 6)
        .exec();
    // Descriptor 2 is a pipe by now: what is wrong is said on the old one.
    if let Ok(number) = spare {
        let text = format!("qmail-start: fatal: unable to run qmail-send: {}\n", wording(errno));
        let _ = fd::write_all(Standard(number), text.as_bytes());
    }
    qmail::sys::process::exit(exits::TEMPORARY)
}

/// What becomes qmail-rspawn, and its arguments: where tlsclient is not, there is nothing to know about TLS either.
fn before_rspawn(home: &Home, rspawn: Vec<u8>) -> (Vec<u8>, Vec<&'static str>) {
    let there = |name| Some(program::find_in(home, name)).filter(|path| check_runnable(path).is_ok());
    let Some(tlsclient) = there(TLSCLIENT) else { return (rspawn, vec!["qmail-rspawn"]) };
    let policies = there(MTA_STS).map(|_| MTA_STS);
    (tlsclient, [TLSCLIENT].into_iter().chain(policies).chain(["qmail-rspawn"]).collect())
}

/// Where a supervisor runs qmail-queued, a keeper would undo its `stop`, and win the race at a start.
fn wants_keeper() -> Result<bool, Trouble> {
    match environ::get("QMAILKEEPER").as_deref() {
        None | Some(b"yes") => Ok(true),
        Some(b"no") => Ok(false),
        Some(_) => Err(Trouble::temporary("QMAILKEEPER must be yes or no")),
    }
}

/// What daemons inherit.
struct Environments {
    plain: Environ,
    /// For the two that must know of each other that recipients may travel together.
    together: Environ,
}

impl Environments {
    fn new() -> Environments {
        let mut plain = Environ::inherited();
        plain.unset(spawn::TOGETHER); // whoever set it does not know which programs these are
        let mut together = plain.clone();
        if plain.get(spawn::REPLACEMENT.as_bytes()).is_none() {
            together.set(spawn::TOGETHER, "2");
        }
        Environments { plain, together }
    }
}

/// A pipe; its ends close here when the next program takes over.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn new() -> Result<Pipe, Trouble> {
        let (read, write) = fd::pipe().map_err(|e| Trouble::unable("create", "a pipe", e))?;
        Ok(Pipe { read, write })
    }
}

/// Where a program of the home is, if it can be executed.
fn find(home: &Home, name: &str) -> Result<Vec<u8>, Trouble> {
    let path = program::find_in(home, name);
    check_runnable(&path).map_err(|e| Trouble::unable("run", &path, e))?;
    Ok(path)
}

/// What is to be expected of execve: a directory may be searched, but not executed.
fn check_runnable(path: &[u8]) -> Result<(), Errno> {
    let mode = SFlag::from_bits_truncate(stat(fd::path(path))?.st_mode);
    if mode & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(Errno::EACCES);
    }
    access(fd::path(path), AccessFlags::X_OK)
}

/// What the system will rely on, beside the home itself, before any of it is. Programs that others start may be missing:
/// each is needed only for what it does.
fn check_trust<'a>(home: &Home, started: impl Iterator<Item = &'a [u8]>) -> Result<(), Trouble> {
    let mut things: Vec<_> = started.map(|path| setup::program(home, path)).collect();
    things.extend(LATER.iter().map(|name| setup::program(home, &program::find_in(home, name)).optional()));
    things.extend(setup::configuration(home));
    things.extend(setup::queue(home));
    setup::require(home, &things)
}

/// Starts the logger; what is written to the result goes to it.
fn start_logger(users: &Users, path: &[u8], argv: &[Vec<u8>]) -> Result<OwnedFd, Trouble> {
    let log = Pipe::new()?;
    launch(path, users.logger()?.runs(Command::new(path, argv).descriptor(&log.read, 0)))?;
    Ok(log.write)
}

fn launch(name: &[u8], command: Command<'_>) -> Result<(), Trouble> {
    command.on_failure(exits::TEMPORARY).spawn().map(drop).map_err(|e| Trouble::unable("start", name, e))
}
