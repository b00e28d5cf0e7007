//! The child that stays: gives each connection to a process of its own, so that what one peer says never
//! meets what another does.

use crate::connection;
use jail::{Jail, programs};
use qmail::home::Home;
use qmail::spawn::slot::LIMIT_WIDE;
use qmail::sys::process;
use qmail::{alongside, environ, exits};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tls::verdict::DEMANDS_MAX;

/// Connections at once: all that qmail-rspawn can have, and those of mta-sts. More wait in the socket.
const CHILDREN_MAX: usize = LIMIT_WIDE as usize + 256;

/// After a fork that the system had no room for.
const PAUSE: Duration = Duration::from_secs(1);

/// Where systems keep the authorities that they trust.
const SYSTEMS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
];

/// Files that connections need.
pub struct Files {
    /// Authorities, the first that is there.
    pub authorities: Vec<Vec<u8>>,
    /// Certificates of ours.
    pub certificates: Vec<u8>,
}

impl Files {
    fn of(home: &Home) -> Files {
        let set = environ::get("SSL_CERT_FILE").filter(|path| !path.is_empty());
        let systems = SYSTEMS.iter().map(|path| path.as_bytes().to_vec());
        let authorities = set.into_iter().chain([home.path("control/tlsca")]).chain(systems).collect();
        Files { authorities, certificates: home.path("control/tls") }
    }
}

/// Answers until nobody can ask any more.
pub fn run(home: &Home, ours: &OwnedFd) -> i32 {
    alongside::settle(ours, &[]);
    let files = Files::of(home);
    let mut jail = Jail::of(&programs::TLSCLIENT_SERVER).home(home);
    for file in &files.authorities {
        // The directory, for the file may be replaced; where it really lies, for it may be a link.
        for place in [jail::parent(file), jail::home_of(file)] {
            jail = jail.place(programs::AUTHORITIES, place);
        }
    }
    if jail.close().is_err() {
        return exits::TEMPORARY; // who asks gets no answer, and waits with its mail
    }
    alongside::serve(ours, DEMANDS_MAX, CHILDREN_MAX, |demands, passed| {
        let Ok([answer, clear, socket]) = <[OwnedFd; 3]>::try_from(passed) else { return false };
        let things = connection::Things { answer, clear, socket };
        match process::fork_heir(things, |things| connection::run(things, &demands, &files)) {
            Ok(_) => true,
            Err((_, things)) => {
                connection::busy(&things);
                std::thread::sleep(PAUSE);
                false
            }
        }
    })
}
