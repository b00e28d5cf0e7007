//! tcpserver - listen on a TCP port and run a program for each connection
//!
//! called by  a supervisor's run script           runs as  root until it listens, then -u and -g
//! fd 0, 1    given up once it listens; in the program the connection
//! fd 2       log lines, one write each; left to the program
//! fd 3       a listening socket, when LISTEN_PID and LISTEN_FDS=1 say so (sd_listen_fds(3))
//! sets       PROTO TCPLOCALIP TCPLOCALPORT TCPLOCALHOST TCPREMOTEIP TCPREMOTEPORT TCPREMOTEHOST
//!            TCPREMOTEINFO, and what the rules say
//! refuses    by root: rules, or without -u a program, that strangers could change
//! jail       rlimits only: it runs its arguments. What the DNS and ident answer is read by children of their own,
//!            which have nothing but the sockets for that
//! exit       0 after TERM; 100 usage; 111 trouble before it listens, or the socket is lost. A child that
//!            ends before its program: 100 denied by a rule, 111 dropped
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use net::options::Options;
use net::server::{self, Server, Service};
use net::session::{self, Connection};
use qmail::program;
use qmail::trouble::Trouble;

const USAGE: &str = "tcpserver [ -1qQvXUoOdDhHpPrR46 ] [ -c limit ] [ -C limit ] [ -x rules.cdb ] [ -B banner ] \
    [ -g gid ] [ -u uid ] [ -b backlog ] [ -l localname ] [ -t timeout ] [ -I interface ] host port program [ arg ... ]";

fn main() {
    program::run("tcpserver", USAGE, tcpserver)
}

fn tcpserver(args: program::Args) -> Result<(), Trouble> {
    let options = Options::of(&args)?;
    Jail::of(&programs::TCPSERVER).close()?;
    let listener = server::listen(&options)?;
    server::change_user(&options)?;
    Server::new("tcpserver", options, listener, Tcp)?.run()
}

struct Tcp;

impl Service for Tcp {
    const MAY_STAY_READY: bool = true;

    /// The child becomes the program.
    fn serve(&self, connection: &Connection) -> i32 {
        let options = connection.options;
        connection
            .admit(&options.banner, |environ| session::execute(connection, environ, connection.stream, &[]))
    }
}
