//! Delivery to a program: `/bin/sh -c COMMAND` with the message on descriptor 0.

use crate::report;
use nix::errno::Errno;
use qmail::dotqmail::{Verdict, verdict};
use qmail::environ::Environ;
use qmail::sys::process::{self, Command, End};
use qmail::trouble::{Trouble, wording};
use qmail::{exits, fd, mbox};

const SHELL: &str = "/bin/sh";

/// What comes after a program that succeeded.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Line,
    /// It said (by 99) that the lines behind it are not to be read.
    End,
}

/// Runs the command and waits for it. Its output is part of our report; on failure it has said why, and
/// we add nothing.
pub fn run(command: &[u8], environ: &Environ) -> Result<Next, Trouble> {
    mbox::rewind(fd::IN).map_err(|_| report::rewind())?;
    let argv = [SHELL.as_bytes(), b"-c", command];
    let shell = Command::new(SHELL, &argv).environ(environ);
    let child = process::fork_child(|| complain(shell.exec())).map_err(report::fork)?;
    match process::wait(child) {
        Ok(End::Exit(code)) => match verdict(code) {
            Verdict::Continue => Ok(Next::Line),
            Verdict::Stop => Ok(Next::End),
            Verdict::Permanent => Err(Trouble::permanent("")),
            Verdict::Temporary => Err(Trouble::temporary("")),
        },
        Ok(End::Crash(_)) => Err(Trouble::temporary(report::CRASHED)),
        Err(errno) => Err(report::fork(errno)),
    }
}

/// In the child, when there is no shell.
fn complain(errno: Errno) -> i32 {
    let text = format!("Unable to run {SHELL}: {}. (#4.3.0)\n", wording(errno));
    let _ = fd::write_all(fd::ERR, text.as_bytes());
    exits::TEMPORARY
}
