//! One connection: a process that speaks TLS, and its child, which becomes the program.

use crate::guard::{Guard, drop_rights};
use crate::options::Options;
use jail::{Jail, programs};
use net::log::Log;
use net::server::{self, Service};
use net::session::{self, Connection};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use nix::unistd::Pid;
use qmail::environ::Environ;
use qmail::sys::{descriptor, process, signal};
use qmail::timed::{self, Deadline};
use qmail::trouble::Trouble;
use qmail::{exits, fd, ucspitls};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use tls::facts::{self, CONTROL_FD, LIST_MAX, READ_FD, WRITE_FD};
use tls::link;
use tls::relay;
use tls::session::Server;

/// What the program says when TLS shall begin: and tell it about the session, or do not.
const BEGIN: u8 = b'Y';
const BEGIN_QUIETLY: u8 = b'y';

/// The numbers a program finds its ends under. Low ones have their uses (checkers: 3 and 4, clients: 6 and 7).
const CONTROL: i32 = 10;
const READ: i32 = 11;
const WRITE: i32 = 12;

/// For what a session tells about itself: it fits the socket's buffer.
const TELL_SECONDS: u64 = 60;

pub struct Tls {
    pub options: Options,
    pub guard: Guard,
}

impl Service for Tls {
    const MAY_STAY_READY: bool = false;

    fn signals(&self) -> &'static [Signal] {
        &[Signal::SIGHUP]
    }

    fn tend(&mut self, log: &Log) {
        self.guard.tend(signal::take(Signal::SIGHUP), log);
    }

    fn ended(&mut self, pid: Pid) {
        self.guard.ended(pid);
    }

    fn serve(&self, connection: &Connection) -> i32 {
        self.part(connection).unwrap_or_else(|trouble| {
            connection.log.drop(trouble.text());
            exits::TEMPORARY
        })
    }
}

/// The ends of one side.
struct Ends {
    /// Where TLS is asked for, and told about.
    control: OwnedFd,
    /// What the session carries.
    text: OwnedFd,
}

fn ends() -> Result<(Ends, Ends), Errno> {
    let pair = || socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC);
    let ((control, their_control), (text, their_text)) = (pair()?, pair()?);
    Ok((Ends { control, text }, Ends { control: their_control, text: their_text }))
}

impl Tls {
    /// Becomes two processes, of two users.
    fn part(&self, connection: &Connection) -> Result<i32, Trouble> {
        let failed = |what: &'static str| move |errno| Trouble::temporary(what).because(errno);
        let (ours, theirs) = ends().map_err(failed("unable to open sockets"))?;
        match process::part().map_err(failed("unable to fork"))? {
            None => {
                drop(ours);
                let keep = [connection.stream.as_fd(), theirs.control.as_fd(), theirs.text.as_fd()];
                descriptor::close_others(&keep);
                server::change_user(connection.options)?;
                Ok(self.program(connection, &theirs))
            }
            Some(program) => {
                drop(theirs);
                let ended = self.speak(connection, ours);
                if let Err(trouble) = ended {
                    connection.log.drop(trouble.text());
                }
                match process::wait(program) {
                    Ok(end) => process::end_as(end),
                    Err(_) => Ok(exits::TEMPORARY),
                }
            }
        }
    }

    /// The child: looks who the peer is and whether it may, and becomes the program. TLS from the first byte is
    /// asked for here, when the rules have let the peer in.
    fn program(&self, connection: &Connection, ends: &Ends) -> i32 {
        let options = connection.options;
        let banner: &[u8] = if self.options.delayed { &options.banner } else { b"" };
        connection.admit(banner, |mut environ| {
            for name in ucspitls::NAMES.iter().chain(&[CONTROL_FD, READ_FD, WRITE_FD]) {
                environ.unset(name);
            }
            if self.options.delayed {
                let numbers = [(CONTROL_FD, CONTROL), (READ_FD, READ), (WRITE_FD, WRITE)];
                for (name, number) in numbers {
                    environ.set(name, number.to_string());
                }
                let others = [(&ends.control, CONTROL), (&ends.text, READ), (&ends.text, WRITE)];
                return session::execute(connection, environ, connection.stream, &others);
            }
            if begin(&ends.control, &mut environ).is_none() {
                return Ok(exits::TEMPORARY); // why has been said where it happened
            }
            session::print_banner(&ends.text, &options.banner)?;
            session::execute(connection, environ, &ends.text, &[])
        })
    }

    /// The parent: waits until TLS is wanted, and is between peer and program from then on.
    fn speak(&self, connection: &Connection, ends: Ends) -> Result<(), Trouble> {
        let failed = |what: &'static str| move |errno| Trouble::temporary(what).because(errno);
        let peer = connection.stream.as_fd().try_clone_to_owned();
        let peer = peer.map_err(|e| failed("unable to open sockets")(qmail::trouble::errno(&e)))?;
        let door =
            self.guard.door().ok_or_else(|| Trouble::temporary("the process for the keys has ended"))?;
        let (question, theirs) = link::pair().map_err(failed("unable to open sockets"))?;
        let keep = [&peer, &ends.control, &ends.text, &question, &theirs, door].map(AsFd::as_fd);
        descriptor::close_others(&keep);
        drop_rights(self.options.user)?;
        relay::at_once(&peer);
        let prepared = Server::prepare(&self.options.settings)?;
        Jail::of(&programs::TLSSERVER_SESSION).close()?;

        let Some(wanted) = asked(&ends.control) else { return Ok(()) };
        prepared.reach(question, theirs, door).map_err(failed("unable to reach the process for the keys"))?;
        process::close(door.as_raw_fd());
        let pid = connection.pid;
        let (mut tls, told) = match prepared.accept(&peer, Deadline::after(self.options.handshake)) {
            Ok(done) => done,
            Err(reason) => {
                let reason = facts::clean(reason.as_bytes());
                connection.log.status([format!("tls {pid} failed: ").as_bytes(), &reason].concat());
                // The program has the connection, too, and must not go on in the clear.
                let _ = shutdown(peer.as_raw_fd(), Shutdown::Both);
                return Ok(());
            }
        };
        connection.log.status(line(pid, &tls, &told));
        let mut list = if wanted == BEGIN { facts::encode(&told) } else { Vec::new() };
        list.push(0);
        let told = match wanted {
            BEGIN => timed::write_all(&ends.control, &list, Deadline::seconds(TELL_SECONDS)),
            _ => Ok(()),
        };
        drop(ends.control);
        if told.is_ok() {
            relay::run(&mut tls, &peer, &ends.text);
        }
        let _ = shutdown(peer.as_raw_fd(), Shutdown::Both);
        Ok(())
    }
}

/// `tls PID VERSION CIPHER NAME full|resumed`
fn line(pid: Pid, tls: &rustls::Connection, told: &[facts::Fact]) -> Vec<u8> {
    let name = told.iter().find(|(name, _)| *name == "TLS_SERVER_NAME").map(|(_, value)| value.as_slice());
    let kind = if facts::is_resumed(tls) { "resumed" } else { "full" };
    let head = format!("tls {pid} {} {} ", facts::protocol(tls), facts::cipher(tls));
    [head.as_bytes(), &qmail::ucspi::log_field(name.unwrap_or(b"-")), b" ", kind.as_bytes()].concat()
}

/// The byte with which the program asks for TLS; None when it never does.
fn asked(control: &OwnedFd) -> Option<u8> {
    let mut byte = [0];
    let said = timed::wait(control, PollFlags::POLLIN, Deadline::never())
        .and_then(|()| fd::read(control, &mut byte));
    match (said, byte) {
        (Ok(1), [wanted @ (BEGIN | BEGIN_QUIETLY)]) => Some(wanted),
        _ => None,
    }
}

/// Asks for TLS, and puts what is told about it into the environment. None when there is no TLS.
fn begin(control: &OwnedFd, environ: &mut Environ) -> Option<()> {
    fd::write_all(control, &[BEGIN]).ok()?;
    let mut list = Vec::new();
    let mut chunk = [0; 1024];
    while list != b"\0" && !list.ends_with(b"\0\0") {
        let n = fd::read(control, &mut chunk).ok().filter(|n| *n > 0)?;
        list.extend_from_slice(chunk.get(..n).unwrap_or_default());
        if list.len() > LIST_MAX {
            return None;
        }
    }
    for (name, value) in facts::parse(&list) {
        environ.set(name, value);
    }
    Some(())
}
