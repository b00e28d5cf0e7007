//! session - one connection, in the child: who it is, whether it may, and then the program
#![forbid(unsafe_code)]

use crate::ident;
use crate::log::Log;
use crate::names::{self, Names};
use crate::options::Options;
use nix::errno::Errno;
use nix::unistd::Pid;
use qmail::environ::Environ;
use qmail::rules::{self, Item, Peer, Rule};
use qmail::sys::process::Command;
use qmail::sys::socket;
use qmail::timed::Deadline;
use qmail::trouble::{self, Trouble};
use qmail::{cdb, exits, forkserver, program, timed, ucspi};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// For the banner. The send buffer is empty and far larger; only a strange system makes this wait.
const BANNER_TIMEOUT: u64 = 60;

/// What a supervisor told us about its socket is not for the program.
const NOT_FOR_PROGRAMS: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", forkserver::VARIABLE];

/// Where the program finds what it is offered.
const OFFERED: RawFd = 3;

pub struct Connection<'a> {
    pub options: &'a Options,
    pub log: &'a Log,
    pub stream: &'a TcpStream,
    /// The peer; an IPv4 one never in its IPv6 form.
    pub remote: SocketAddr,
    /// Of the server's child, by which its lines in the log are known.
    pub pid: Pid,
    /// For a program that may stay ready.
    pub offer: Option<&'a OwnedFd>,
}

impl Connection<'_> {
    /// Looks who it is and whether it may, and then goes on with the environment of the program: the exit code.
    /// `go` returns only when there is no program to run, with its code or the reason.
    pub fn admit(&self, banner: &[u8], go: impl FnOnce(Environ) -> Result<i32, Vec<u8>>) -> i32 {
        let ended = admit(self, banner).and_then(|call| match call.denied {
            true => Ok(exits::PERMANENT),
            false => go(call.environ),
        });
        ended.unwrap_or_else(|text| {
            self.log.drop(text);
            exits::TEMPORARY
        })
    }
}

fn admit(connection: &Connection, banner: &[u8]) -> Result<Call, Vec<u8>> {
    let Connection { options, log, stream, remote, pid, .. } = *connection;
    log.status(from(pid, remote));
    prepare(options, stream);
    print_banner(stream, banner)?;
    let local = local(stream)?;
    let names = names::find(options, local.ip(), remote.ip()).map_err(|trouble| trouble.text())?;
    let remote_info = if options.remote_info {
        ident::ask(local, stream.peer_addr().unwrap_or(remote), options.ident_timeout)
            .map_err(|trouble| trouble.text())?
    } else {
        None
    };
    let call = Call::of(options, Ends { local, remote, names, remote_info })?;
    log.status(call.verdict(pid));
    Ok(call)
}

/// What the peer is greeted with, before anything is known of it.
pub fn print_banner(stream: impl AsFd, banner: &[u8]) -> Result<(), Vec<u8>> {
    timed::write_all(stream, banner, Deadline::seconds(BANNER_TIMEOUT)).map_err(|e| reason("print banner", e))
}

/// Whether nothing has to be asked and nothing said before the program can have a connection.
pub fn is_quick(options: &Options) -> bool {
    options.banner.is_empty() && !options.remote_info && names::are_given(options)
}

/// A connection of which `is_quick` holds; None when it is denied, or anything is wrong with it.
pub fn quick(options: &Options, stream: &TcpStream, remote: SocketAddr) -> Option<Call> {
    prepare(options, stream);
    let local = local(stream).ok()?;
    let names = Names { local: options.local_host.clone(), remote: None };
    Call::of(options, Ends { local, remote, names, remote_info: None }).ok().filter(|call| !call.denied)
}

fn prepare(options: &Options, stream: &TcpStream) {
    if !options.keep_ip_options {
        socket::drop_ip_options(stream);
    }
    if options.no_delay {
        let _ = stream.set_nodelay(true);
    }
}

fn local(stream: &TcpStream) -> Result<SocketAddr, Vec<u8>> {
    let local = stream.local_addr().map_err(|e| reason("get local address", trouble::errno(&e)))?;
    Ok(SocketAddr::new(local.ip().to_canonical(), local.port()))
}

/// The line of a process that has a connection.
pub fn from(pid: Pid, remote: SocketAddr) -> String {
    format!("pid {pid} from {}", remote.ip())
}

/// What is known of both ends.
struct Ends {
    local: SocketAddr,
    remote: SocketAddr,
    names: Names,
    remote_info: Option<Vec<u8>>,
}

/// What the rules say of a connection, and what the program is told.
pub struct Call {
    pub environ: Environ,
    denied: bool,
    /// Behind the verdict and the pid.
    line: Vec<u8>,
}

impl Call {
    fn of(options: &Options, ends: Ends) -> Result<Call, Vec<u8>> {
        let Ends { local, remote, names: Names { local: local_host, remote: remote_host }, remote_info } =
            ends;
        let mut environ = Environ::inherited();
        for name in NOT_FOR_PROGRAMS {
            environ.unset(name);
        }
        environ.set("PROTO", "TCP");
        environ.set("TCPLOCALIP", local.ip().to_string());
        environ.set("TCPLOCALPORT", local.port().to_string());
        environ.set("TCPREMOTEIP", remote.ip().to_string());
        environ.set("TCPREMOTEPORT", remote.port().to_string());
        for (name, value) in
            [("TCPLOCALHOST", &local_host), ("TCPREMOTEHOST", &remote_host), ("TCPREMOTEINFO", &remote_info)]
        {
            match value {
                Some(value) => environ.set(name, value),
                None => environ.unset(name),
            }
        }
        let ip = remote.ip().to_string();
        let peer = Peer { ip: ip.as_bytes(), host: remote_host.as_deref(), info: remote_info.as_deref() };
        let rule = rule(options, &peer)?;
        let denied = rule.as_ref().is_some_and(Rule::denies);
        for item in rule.into_iter().flat_map(|rule| rule.items) {
            if let Item::Set { name, value } = item {
                environ.set(name, value);
            }
        }
        let field = |value: &Option<Vec<u8>>| ucspi::log_field(value.as_deref().unwrap_or_default());
        let local_part =
            [field(&local_host), ucspi::log_address(local.ip()), local.port().to_string().into_bytes()];
        let remote_part = [
            field(&remote_host),
            ucspi::log_address(remote.ip()),
            field(&remote_info),
            remote.port().to_string().into_bytes(),
        ];
        let line = [local_part.join(&b':'), remote_part.join(&b':')].join(&b' ');
        Ok(Call { environ, denied, line })
    }

    /// The line that says what becomes of it.
    pub fn verdict(&self, pid: Pid) -> Vec<u8> {
        let verdict = format!("{} {pid} ", if self.denied { "deny" } else { "ok" });
        [verdict.as_bytes(), &self.line].concat()
    }
}

fn reason(action: &str, errno: Errno) -> Vec<u8> {
    Trouble::temporary(format!("unable to {action}")).because(errno).text()
}

fn rule(options: &Options, peer: &Peer) -> Result<Option<Rule>, Vec<u8>> {
    let Some(name) = &options.rules else { return Ok(None) };
    match cdb::Reader::open(name) {
        Ok(Some(cdb)) => rules::find(&cdb, peer).map_err(|e| e.trouble(name).text()),
        Ok(None) if options.rules_may_be_missing => Ok(None),
        Ok(None) => Err(Trouble::unable("read", name, Errno::ENOENT).text()),
        Err(errno) => Err(Trouble::unable("read", name, errno).text()),
    }
}

/// Becomes the program, with the stream as its descriptors 0 and 1 and whatever `others` say; returns why it
/// could not.
pub fn execute(
    connection: &Connection,
    mut environ: Environ,
    stream: &impl AsFd,
    others: &[(&OwnedFd, RawFd)],
) -> Result<i32, Vec<u8>> {
    let program = &connection.options.program;
    let name = program.first().map(Vec::as_slice).unwrap_or_default();
    let unable = |errno| Trouble::unable("run", name, errno).text();
    let path = program::find(name).ok_or_else(|| unable(Errno::ENOENT))?;
    if connection.offer.is_some() {
        forkserver::Launcher::announce(&mut environ, OFFERED, &path);
    }
    let mut command =
        Command::new(path, program).environ(&environ).descriptor(stream, 0).descriptor(stream, 1);
    let offer = connection.offer.map(|offer| (offer, OFFERED));
    for (descriptor, number) in others.iter().copied().chain(offer) {
        command = command.descriptor(descriptor, number);
    }
    Err(unable(command.exec()))
}
