//! tlsserver - listen on a TCP port and run a program for each connection, behind TLS
//!
//! called by  a supervisor's run script           runs as  root (it has two users to start), or who starts it
//! fd 0, 1    given up once it listens; in the program the session, or with -n the connection
//! fd 2       log lines, one write each; left to the program
//! fd 3       a listening socket, when LISTEN_PID and LISTEN_FDS=1 say so (sd_listen_fds(3))
//! sets       what tcpserver sets, and TLS_* and SSL_*; with -n SSLCTLFD SSLREADFD SSLWRITEFD instead
//! touches    control/tls of the home (-k): read when it starts, and whenever something in it has changed
//! refuses    by root: rules, keys, or without -u a program, that strangers could change
//! jail       rlimits only: it runs its arguments. The keys are in one process, what peers send is read by others,
//!            one a connection; both are in jails, and neither is the program's user
//! exit       0 after TERM; 100 usage; 111 trouble before it listens, or the socket is lost. A connection's
//!            child ends as its program did: 100 denied by a rule, 111 dropped, or no TLS
#![forbid(unsafe_code)]

mod connection;
mod guard;
mod options;

use guard::Guard;
use jail::{Jail, programs};
use net::server::{self, Server};
use options::Options;
use qmail::program;
use qmail::trouble::Trouble;

fn main() {
    program::run("tlsserver", options::USAGE, tlsserver)
}

fn tlsserver(args: program::Args) -> Result<(), Trouble> {
    let (tcp, tls) = Options::of(&args)?;
    Jail::of(&programs::TLSSERVER).close()?;
    let listener = server::listen(&tcp)?;
    let guard = Guard::start(&tls, tcp.limit)?;
    Server::new("tlsserver", tcp, listener, connection::Tls { options: tls, guard })?.run()
}
