//! checkpassword-any - ask one checker after another, until one lets the login in
//!
//! called by  qmail-popup and others with a name and a password on fd 3
//! arguments  [-f] checker [argument ...] -- [checker [argument ...] --] ... program [argument ...]
//!            -y descriptor program [argument ...]    (what it puts behind a checker)
//! runs as    root, or whoever the checkers can work as
//! fd 3       name NUL password NUL ...; each checker gets all of it by a pipe
//! fd 0, 1, 4 passed to the checkers
//! jail       rlimits only: it runs its arguments
//! exit       that of the checker that did not refuse, or of the program; 1 all refused, 2 misused, 111 temporary trouble
//!
//! A checker's exit code alone would not tell a refusal from the end of the program behind it. So what stands behind it is
//! this program again, which says by a pipe that the login is right before it becomes the program.
#![forbid(unsafe_code)]

use auth::login::{REFUSED, misused, refused};
use jail::{Jail, programs};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qmail::auth::Secret;
use qmail::auth::door::FIELDS_MAX;
use qmail::program::{self, Args};
use qmail::sys::process::{self, Command, End};
use qmail::sys::signal;
use qmail::trouble::Trouble;
use qmail::{decimal, exits, fd};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// The number of the pipe behind a checker, above those that anybody passes on.
const YES: i32 = 63;

/// What refuses in the field, with option -f: checkers of virtual domains have a code for each reason.
const FOREIGN: std::ops::RangeInclusive<i32> = 3..=20;

fn main() {
    program::run(
        "checkpassword-any",
        "checkpassword-any [-f] checker [arg ...] -- [checker [arg ...] --] ... program [arg ...]",
        ask,
    )
}

fn ask(args: Args) -> Result<(), Trouble> {
    let parsed = args.options("fy:").map_err(|_| misused("the only option is -f"))?;
    Jail::of(&programs::CHECKPASSWORD_ANY).close()?;
    if let Some(number) = parsed.value('y') {
        return Err(go_on(number, &parsed.rest));
    }
    let parts: Vec<&[Vec<u8>]> = parsed.rest.split(|word| word == b"--").collect();
    let ([checkers @ .., program], true) = (parts.as_slice(), parts.iter().all(|part| !part.is_empty()))
    else {
        return Err(misused("a checker and a program are needed, with -- between"));
    };
    if checkers.is_empty() {
        return Err(misused("a checker and a program are needed, with -- between"));
    }
    let us = std::env::current_exe()
        .map(|path| path.into_os_string().into_vec())
        .map_err(|error| Trouble::unable("find", "this program", qmail::trouble::errno(&error)))?;
    let fd3 = fd::take(3).map_err(|e| Trouble::unable("read", "descriptor 3", e))?;
    let login = Secret::read(&fd3, FIELDS_MAX).map_err(|errno| match errno {
        Errno::EFBIG => refused(),
        errno => Trouble::unable("read", "descriptor 3", errno),
    })?;
    drop(fd3);
    if login.iter().filter(|b| **b == 0).count() < 2 {
        return Err(misused("name and password on descriptor 3 must each end in a NUL"));
    }
    signal::catch(&[Signal::SIGCHLD, Signal::SIGTERM]);
    for checker in checkers {
        match run(checker, &us, program, &login)? {
            Outcome::Accepted(pid) => {
                drop(login);
                stand_by(pid)
            }
            Outcome::Ended(End::Exit(REFUSED)) => {}
            Outcome::Ended(End::Exit(code)) if parsed.has('f') && FOREIGN.contains(&code) => {}
            Outcome::Ended(End::Exit(exits::SUCCESS)) => {
                let name = checker.first().map(Vec::as_slice).unwrap_or_default();
                return Err(Trouble::temporary([name, b" ended without running the program"].concat()));
            }
            Outcome::Ended(End::Exit(code)) => return Err(Trouble::exit(code, "")),
            Outcome::Ended(End::Crash(number)) => {
                let name = checker.first().map(Vec::as_slice).unwrap_or_default();
                return Err(Trouble::temporary(
                    [name, format!(" died from signal {number}").as_bytes()].concat(),
                ));
            }
        }
    }
    Err(refused())
}

/// Behind a checker: the login is right.
fn go_on(number: &[u8], program: &[Vec<u8>]) -> Trouble {
    let Some(name) = program.first() else { return misused("no program to run") };
    let pipe =
        decimal::strict(number).and_then(|n| i32::try_from(n).ok()).map_or(Err(Errno::EBADF), fd::take);
    // A checker that closes what it does not know would leave its success unsaid, and the next one would be asked.
    if let Err(errno) = pipe.and_then(|pipe| fd::write_all(&pipe, b"y")) {
        return Trouble::unable("say that a login is right", "to checkpassword-any", errno);
    }
    let Some(path) = program::find(name) else { return Trouble::unable("find", name, Errno::ENOENT) };
    let errno = Command::new(path, program).exec();
    Trouble::unable("run", name, errno)
}

/// What became of a checker.
enum Outcome {
    /// It has let the login in, and is the program, or will be.
    Accepted(Pid),
    Ended(End),
}

/// Starts a checker, feeds it, and waits for its verdict.
fn run(checker: &[Vec<u8>], us: &[u8], program: &[Vec<u8>], login: &[u8]) -> Result<Outcome, Trouble> {
    let name = checker.first().map(Vec::as_slice).unwrap_or_default();
    let Some(path) = program::find(name) else { return Err(Trouble::unable("find", name, Errno::ENOENT)) };
    let mut words = checker.to_vec();
    words.extend([us.to_vec(), b"-y".to_vec(), YES.to_string().into_bytes()]);
    words.extend_from_slice(program);
    let unable = |errno| Trouble::unable("run", name, errno);
    let (read, write) = fd::pipe().map_err(unable)?;
    let (verdict, yes) = fd::pipe().map_err(unable)?;
    fd::set_nonblocking(&write, true).map_err(unable)?;
    let command = Command::new(path, &words).descriptor(&read, 3).descriptor(&yes, YES);
    let pid = command.on_failure(exits::TEMPORARY).spawn().map_err(unable)?;
    drop((read, yes));
    let outcome = watch(pid, Some(write), &verdict, login);
    outcome.map_err(|errno| Trouble::unable("wait for", name, errno))
}

fn watch(pid: Pid, mut feed: Option<OwnedFd>, verdict: &OwnedFd, login: &[u8]) -> Result<Outcome, Errno> {
    let mut fed = 0;
    let mut verdict = Some(verdict);
    loop {
        let mut fds = Vec::with_capacity(2);
        fds.extend(verdict.map(|verdict| PollFd::new(verdict.as_fd(), PollFlags::POLLIN)));
        fds.extend(feed.as_ref().map(|feed| PollFd::new(feed.as_fd(), PollFlags::POLLOUT)));
        let ready = signal::wait(&mut fds, None).is_ok_and(|n| n > 0);
        let mut any = fds.iter().map(|fd| ready && fd.any().unwrap_or(false));
        let said = verdict.is_some() && any.next().unwrap_or(false);
        let hungry = any.next().unwrap_or(false);
        drop(any);
        if said && let Some(pipe) = verdict {
            match fd::read(pipe, &mut [0]) {
                Ok(1) => return Ok(Outcome::Accepted(pid)),
                _ => verdict = None, // nobody is left who could say so
            }
        }
        if let Some(pipe) = feed.as_ref().filter(|_| hungry) {
            match nix::unistd::write(pipe, login.get(fed..).unwrap_or_default()) {
                Ok(n) => fed += n,
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(_) => fed = login.len(), // a checker may decide without having read all
            }
            if fed >= login.len() {
                feed = None;
            }
        }
        if signal::take(Signal::SIGTERM) {
            let _ = kill(pid, Signal::SIGTERM);
        }
        signal::take(Signal::SIGCHLD);
        if let Some(end) = process::try_wait(pid)? {
            // It may have said so as its last act.
            let late = verdict.is_some_and(|pipe| {
                let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
                let there = nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).is_ok_and(|n| n > 0);
                there && fd::read(pipe, &mut [0]) == Ok(1)
            });
            if late {
                process::end_as(end);
            }
            return Ok(Outcome::Ended(end));
        }
    }
}

/// Stays for the exit code of the session, and holds nothing of it.
fn stand_by(pid: Pid) -> ! {
    fd::give_up_standard();
    drop(fd::take(4));
    loop {
        if let Ok(Some(end)) = process::try_wait(pid) {
            process::end_as(end)
        }
        if signal::take(Signal::SIGTERM) {
            let _ = kill(pid, Signal::SIGTERM);
        }
        signal::take(Signal::SIGCHLD);
        let _ = signal::wait(&mut [], None);
    }
}
