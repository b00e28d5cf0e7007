//! popauth - remember the address of who has read mail, so that he may relay mail for some minutes
//!
//! called by  qmail-popup or qmail-authd, before the checker with -d, and again behind it
//! arguments  -d directory [-t seconds] checker [argument ...] popauth program [argument ...]
//!            program [argument ...]
//! runs as    as its caller with -d: root, or the owner; then as the user
//! fd POPAUTHFD  from the first to the second: one byte when the login was right, one back
//! env        TCPREMOTEIP is the address; POPAUTHFD is set for the second, and taken away by it
//! touches    the directory: makes a file of the address's name, removes those that are old
//! jail       rlimits only: it runs its arguments; the child that writes may do nothing else
//! exit       111 temporary trouble, 100 wrong use; else that of checker or program
//!
//! The child is started before the checker and knows the address from before the login. Behind the checker all that is
//! said is that the login was right: no user gets a right to write anything, and none says an address.
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use qmail::program::{self, Args};
use qmail::sys::descriptor;
use qmail::sys::process::{self, Command};
use qmail::timed::{self, Deadline};
use qmail::trouble::Trouble;
use qmail::{decimal, environ, exits, fd};
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

const USAGE: &str = "popauth -d directory [-t seconds] checker [arg ...] popauth program [arg ...]";

/// How long an address is remembered, at least and at most.
const WINDOW: u64 = 1200;
const WINDOW_MAX: u64 = 86_400;

/// A session that waits for its file goes on without it after that.
const PATIENCE_SECONDS: u64 = 5;

/// Between two looks for what is old.
const SWEEP: Duration = Duration::from_secs(60);

/// Its time says when that was done.
const SWEPT: &str = "swept";

/// Files looked at in one sweep, some 10 ms of work.
const SWEEP_MAX: usize = 10_000;

fn main() {
    program::run("popauth", USAGE, start)
}

fn start(args: Args) -> Result<(), Trouble> {
    let parsed = args.options("d:t:")?;
    if parsed.rest.is_empty() {
        return Err(args.wrong());
    }
    Jail::of(&programs::POPAUTH).close()?;
    let Some(directory) = parsed.value('d') else { return Err(second(&parsed.rest)) };
    let window = match parsed.value('t').map(decimal::strict) {
        None => WINDOW,
        Some(Some(seconds)) if (1..=WINDOW_MAX).contains(&seconds) => seconds,
        Some(_) => return Err(Trouble::usage("-t takes 1 to 86400 seconds")),
    };
    first(directory, Duration::from_secs(window), &parsed.rest)
}

/// Before the checker: leaves the child behind that will write.
fn first(directory: &[u8], window: Duration, checker: &[Vec<u8>]) -> Result<(), Trouble> {
    let address =
        environ::get("TCPREMOTEIP").and_then(|text| std::str::from_utf8(&text).ok()?.parse::<IpAddr>().ok());
    let mut environ = environ::Environ::inherited();
    let Some(address) = address else {
        environ.set("POPAUTHFD", ""); // a session without an address has nothing to remember
        return Err(run(checker, &environ));
    };
    let unable = |errno| Trouble::temporary("unable to start a child").because(errno);
    let (ours, childs) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).map_err(unable)?;
    let middle = process::fork_child(|| {
        // Nobody waits for a child of the checker's: its parent is gone at once.
        match process::fork_child(|| {
            remember(&childs, directory, &address.to_canonical().to_string(), window)
        }) {
            Ok(_) => exits::SUCCESS,
            Err(_) => exits::TEMPORARY,
        }
    })
    .map_err(unable)?;
    drop(childs);
    if process::wait(middle) != Ok(process::End::Exit(exits::SUCCESS)) {
        return Err(Trouble::temporary("unable to start a child"));
    }
    nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).map_err(unable)?;
    environ.set("POPAUTHFD", ours.as_raw_fd().to_string());
    Err(run(checker, &environ))
}

/// Behind the checker: says that the login was right, and becomes the program.
fn second(program: &[Vec<u8>]) -> Trouble {
    let Some(number) = environ::get("POPAUTHFD") else {
        return Trouble::temporary("before the checker there must be popauth -d");
    };
    let mut environ = environ::Environ::inherited();
    environ.unset("POPAUTHFD");
    if !number.is_empty() {
        let told = decimal::strict(&number)
            .and_then(|number| i32::try_from(number).ok().filter(|number| *number > 2))
            .map_or(Err(Errno::EBADF), fd::take)
            .and_then(|child| tell(&child));
        if let Err(errno) = told {
            // Mail can be read all the same.
            warn(&Trouble::unable("remember", "this address", errno));
        }
    }
    run(program, &environ)
}

fn tell(child: &OwnedFd) -> Result<(), Errno> {
    let deadline = Deadline::seconds(PATIENCE_SECONDS);
    timed::write_all(child, b"y", deadline)?;
    match timed::read(child, &mut [0], deadline)? {
        0 => Err(Errno::EPIPE), // it has said why
        _ => Ok(()),
    }
}

fn run(words: &[Vec<u8>], environ: &environ::Environ) -> Trouble {
    let name = words.first().map(Vec::as_slice).unwrap_or_default();
    let Some(path) = program::find(name) else { return Trouble::unable("find", name, Errno::ENOENT) };
    let errno = Command::new(path, words).environ(environ).exec();
    Trouble::unable("run", name, errno)
}

fn warn(trouble: &Trouble) {
    let _ = fd::write_all(fd::ERR, &[b"popauth: warning: ".as_slice(), &trouble.text(), b"\n"].concat());
}

/// The child: waits for the word, or for the end of all who could say it.
fn remember(session: &OwnedFd, directory: &[u8], address: &str, window: Duration) -> i32 {
    fd::give_up_standard();
    descriptor::close_others(&[session.as_fd()]);
    let jail = Jail::of(&programs::POPAUTH_REMEMBERING).place(programs::TARGET, directory);
    if let Err(trouble) = jail.close() {
        warn(&trouble);
        return exits::TEMPORARY;
    }
    if fd::read(session, &mut [0]) != Ok(1) {
        return exits::SUCCESS; // the login was wrong
    }
    let file = [directory, b"/", address.as_bytes()].concat();
    if let Err(errno) = touch(&file) {
        warn(&Trouble::unable("write", &file, errno));
        return exits::TEMPORARY;
    }
    let _ = fd::write_all(session, b"y");
    sweep(directory, window);
    exits::SUCCESS
}

/// A file whose time is now. It holds nothing: a disk that is full has still room for an address.
fn touch(file: &[u8]) -> Result<(), Errno> {
    fd::create(file, 0o644).map(drop)
}

/// Removes what is older than the window, if nobody has done so within the last minute.
fn sweep(directory: &[u8], window: Duration) {
    let marker = [directory, b"/", SWEPT.as_bytes()].concat();
    let age = |path: &[u8]| {
        let modified = fs::symlink_metadata(fd::path(path)).and_then(|found| found.modified()).ok()?;
        SystemTime::now().duration_since(modified).ok()
    };
    if age(&marker).is_some_and(|age| age < SWEEP) || touch(&marker).is_err() {
        return;
    }
    let Ok(entries) = fs::read_dir(fd::path(directory)) else { return };
    for entry in entries.flatten().take(SWEEP_MAX) {
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.parse::<IpAddr>().is_ok());
        let file = [directory, b"/", name.as_bytes()].concat();
        if is_ours && age(&file).is_some_and(|age| age > window) {
            let _ = nix::unistd::unlink(fd::path(&file)); // whoever comes back in between writes it anew
        }
    }
}
