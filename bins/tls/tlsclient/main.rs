//! tlsclient - speak TLS for programs that connect to others
//!
//! called by  qmail-start, before mta-sts and qmail-rspawn    runs as  qmailr (own home: the owner)
//! arguments  program [argument …]
//! becomes    program, with the number of a socket in TLSCLIENTFD; a child of it stays and answers there until
//!            nobody holds the other end. One connection a packet; each has a process of its own
//! touches    control/tlsca or the system's authorities; control/tls/NAME, where a certificate of ours is demanded
//! env        SSL_CERT_FILE  authorities instead of these
//! exit       the program's; 100 wrong use; 111 cannot begin
//! jail       rlimits only for what becomes the program; the child reads those files, and a connection's process
//!            has nothing but the connection
#![forbid(unsafe_code)]

mod connection;
mod server;

use jail::{Jail, programs};
use nix::fcntl::{FcntlArg, fcntl};
use qmail::environ::Environ;
use qmail::home::Home;
use qmail::program::{self, Args};
use qmail::sys::process::{self, Command};
use qmail::trouble::Trouble;
use tls::link;

const USAGE: &str = "tlsclient program [ argument ... ]";

/// Where the program finds the number of the socket.
const VARIABLE: &str = "TLSCLIENTFD";

/// The number is at least this: those below are other contracts'.
const NUMBER_MIN: i32 = 10;

fn main() {
    program::run("tlsclient", USAGE, tlsclient)
}

fn tlsclient(args: Args) -> Result<(), Trouble> {
    let parsed = args.options("")?;
    let Some(name) = parsed.rest.first() else { return Err(args.wrong()) };
    let home = Home::find()?;
    Jail::of(&programs::TLSCLIENT).close()?;
    let path = program::find(name).unwrap_or_else(|| [home.path("bin/").as_slice(), name].concat());
    let (theirs, ours) = link::pair().map_err(|e| Trouble::unable("make", "a pair of sockets", e))?;
    process::fork_child(|| server::run(&home, &ours))
        .map_err(|e| Trouble::temporary("unable to fork").because(e))?;
    drop(ours);
    // Not close-on-exec, unlike everything else here.
    let number =
        fcntl(&theirs, FcntlArg::F_DUPFD(NUMBER_MIN)).map_err(|e| Trouble::unable("make", "a socket", e))?;
    let mut environ = Environ::inherited();
    environ.set(VARIABLE, number.to_string());
    let errno = Command::new(&path, &parsed.rest).environ(&environ).exec();
    Err(Trouble::unable("run", &path, errno))
}
