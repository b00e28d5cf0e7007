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
use qmail::alongside;
use qmail::home::Home;
use qmail::program::{self, Args};
use qmail::trouble::Trouble;

const USAGE: &str = "tlsclient program [ argument ... ]";

/// Where the program finds the number of the socket.
const VARIABLE: &str = "TLSCLIENTFD";

fn main() {
    program::run("tlsclient", USAGE, tlsclient)
}

fn tlsclient(args: Args) -> Result<(), Trouble> {
    let parsed = args.options("")?;
    if parsed.rest.is_empty() {
        return Err(args.wrong());
    }
    let home = Home::find()?;
    Jail::of(&programs::TLSCLIENT).close()?;
    alongside::precede(&home, &parsed.rest, VARIABLE, |ours| server::run(&home, ours))
}
