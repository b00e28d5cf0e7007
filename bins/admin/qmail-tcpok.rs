//! qmail-tcpok - forget which addresses timed out lately
//!
//! called by  the administrator           runs as  root or qmailr
//! jail       writes queue/lock/tcpto; no exec, no network
//! exit       0, 111 trouble
//! touches    queue/lock/tcpto: all of it becomes zero, under its lock
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use qmail::fd;
use qmail::home::Home;
use qmail::program::{self, Args};
use qmail::tcpto::{self, Step};
use qmail::trouble::Trouble;

fn main() -> ! {
    program::run("qmail-tcpok", "qmail-tcpok", forget)
}

fn forget(args: Args) -> Result<(), Trouble> {
    args.none()?;
    let home = Home::find()?;
    for directory in ["", "queue/lock"] {
        let path = home.path(directory);
        nix::unistd::chdir(fd::path(&path)).map_err(|e| Trouble::unable("chdir to", &path, e))?;
    }
    Jail::of(&programs::QMAIL_TCPOK).home(&home).close()?;
    let path = home.path(tcpto::FILE);
    tcpto::clear(&path).map_err(|(step, errno)| {
        let action = match step {
            Step::Open => "write",
            Step::Lock => "lock",
            Step::Read | Step::Write => "clear",
        };
        Trouble::unable(action, &path, errno)
    })
}
