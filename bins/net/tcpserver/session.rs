//! One connection, in the child: who it is, whether it may, and then the program.

use crate::ident;
use crate::log::Log;
use crate::names::{self, Names};
use crate::options::Options;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use qmail::environ::Environ;
use qmail::rules::{self, Item, Peer, Rule};
use qmail::sys::process::Command;
use qmail::sys::{signal, socket};
use qmail::timed::Deadline;
use qmail::trouble::{self, Trouble};
use qmail::{cdb, exits, program, timed, ucspi};
use std::net::{SocketAddr, TcpStream};

/// For the banner. The send buffer is empty and far larger; only a strange system makes this wait.
const BANNER_TIMEOUT: u64 = 60;

/// What a supervisor told us about its socket is not for the program.
const NOT_FOR_PROGRAMS: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Returns only when there is no program to run: the exit code of the child.
pub fn run(options: &Options, log: &Log, stream: &TcpStream, remote: SocketAddr) -> i32 {
    signal::defaults();
    signal::ignore(&[Signal::SIGPIPE]); // a peer that is gone already; exec sets it back
    match serve(options, log, stream, remote) {
        Ok(denied) => denied,
        Err(text) => {
            log.drop(text);
            exits::TEMPORARY
        }
    }
}

fn serve(options: &Options, log: &Log, stream: &TcpStream, remote: SocketAddr) -> Result<i32, Vec<u8>> {
    let pid = nix::unistd::getpid();
    log.status(format!("pid {pid} from {}", remote.ip()));
    if !options.keep_ip_options {
        socket::drop_ip_options(stream);
    }
    if options.no_delay {
        let _ = stream.set_nodelay(true);
    }
    if !options.banner.is_empty() {
        timed::write_all(stream, &options.banner, Deadline::seconds(BANNER_TIMEOUT))
            .map_err(|e| reason("print banner", e))?;
    }
    let local = stream.local_addr().map_err(|e| reason("get local address", trouble::errno(&e)))?;
    let local_ip = local.ip().to_canonical();

    let Names { local: local_host, remote: remote_host } =
        names::find(options, local_ip, remote.ip()).map_err(|trouble| trouble.text())?;
    let remote_info = if options.remote_info {
        let local = SocketAddr::new(local_ip, local.port());
        ident::ask(local, stream.peer_addr().unwrap_or(remote), options.ident_timeout)
            .map_err(|trouble| trouble.text())?
    } else {
        None
    };

    let mut environ = Environ::inherited();
    for name in NOT_FOR_PROGRAMS {
        environ.unset(name);
    }
    environ.set("PROTO", "TCP");
    environ.set("TCPLOCALIP", local_ip.to_string());
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
    let verdict = format!("{} {pid} ", if denied { "deny" } else { "ok" });
    let local_part =
        [field(&local_host), ucspi::log_address(local_ip), local.port().to_string().into_bytes()];
    let remote_part = [
        field(&remote_host),
        ucspi::log_address(remote.ip()),
        field(&remote_info),
        remote.port().to_string().into_bytes(),
    ];
    log.status([verdict.as_bytes(), &local_part.join(&b':'), b" ", &remote_part.join(&b':')].concat());
    if denied {
        return Ok(exits::PERMANENT);
    }
    Err(execute(options, stream, &environ))
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

/// Becomes the program; returns why it could not.
fn execute(options: &Options, stream: &TcpStream, environ: &Environ) -> Vec<u8> {
    let name = options.program.first().map(Vec::as_slice).unwrap_or_default();
    let errno = match program::find(name) {
        Some(path) => Command::new(path, &options.program)
            .environ(environ)
            .descriptor(stream, 0)
            .descriptor(stream, 1)
            .exec(),
        None => Errno::ENOENT,
    };
    Trouble::unable("run", name, errno).text()
}
