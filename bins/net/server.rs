//! server - the part that stays: listens, counts, forks a child for each connection, reaps
#![forbid(unsafe_code)]

use crate::listen;
use crate::log::Log;
use crate::options::Options;
use crate::ready::{News, Ready};
use crate::session::{self, Connection};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc::linger;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::{Gid, Pid, Uid};
use qmail::sys::{process, signal};
use qmail::trouble::{self, Trouble};
use qmail::trust::{Judge, Kind, Thing};
use qmail::{decimal, fd, program};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long no connection is accepted after the system had no descriptors, memory or processes left:
/// the backlog waits, and the log does not fill.
const PAUSE: Duration = Duration::from_secs(1);

/// A customer's or a host's network: what one peer can take addresses from at will (rfc6177:2).
const V6_NEIGHBOURHOOD: u32 = 64;

/// A child counts against all limits until it is reaped.
struct Child {
    is: Who,
    group: IpAddr,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Process(Pid),
    /// It was handed over under this number, and has no process yet.
    Given(u64),
    /// About to be one of the two.
    Nobody,
}

/// What becomes of connections.
pub trait Service {
    /// Whether a program of ours may stay ready for them (`ready`): when its process is all there is to one.
    const MAY_STAY_READY: bool;

    /// Signals that it asks for in `tend`.
    fn signals(&self) -> &'static [Signal] {
        &[]
    }

    /// Whenever the server has woken up, before it accepts a connection.
    fn tend(&mut self, _log: &Log) {}

    /// A child that the server did not start has ended.
    fn ended(&mut self, _pid: Pid) {}

    /// One connection, in a child of its own: its exit code.
    fn serve(&self, connection: &Connection) -> i32;
}

pub struct Server<S> {
    options: Options,
    log: Log,
    listener: TcpListener,
    children: Vec<Child>,
    ready: Ready,
    resume: Option<Instant>,
    service: S,
}

/// Listens where the options say, once what they name is found trustworthy.
pub fn listen(options: &Options) -> Result<TcpListener, Trouble> {
    keep_from_children();
    check_trust(options)?;
    listen::open(options)
}

fn unable(action: &str, error: &std::io::Error) -> Trouble {
    Trouble::temporary(format!("unable to {action}")).because(trouble::errno(error))
}

/// Programs get descriptors 0, 1 and 2 and nothing that our parent forgot to close.
fn keep_from_children() {
    let listed = std::fs::read_dir("/proc/self/fd").ok().map(|list| {
        list.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()).collect::<Vec<i32>>()
    });
    for number in listed.unwrap_or_else(|| (0..1024).collect()) {
        if number > 2 {
            let _ = fcntl(fd::Standard(number), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        }
    }
}

/// Rules set variables, QMAILQUEUE say, and so are as good as a program. Who the program will run as could
/// change its own program anyway: only one that stays root's must be root's.
fn check_trust(options: &Options) -> Result<(), Trouble> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    let mut things = Vec::new();
    if let Some(rules) = &options.rules {
        let (directory, _) = rules.split_at(rules.iter().rposition(|b| *b == b'/').unwrap_or_default());
        let directory = match directory {
            [] if rules.starts_with(b"/") => b"/",
            [] => b".",
            above => above,
        };
        things.push(Thing::new(Kind::Directory, directory).optional());
        things.push(Thing::new(Kind::File, rules.as_slice()).optional());
    }
    let name = options.program.first().map(Vec::as_slice).unwrap_or_default();
    match program::find(name) {
        Some(path) if options.uid.is_none() => things.push(Thing::new(Kind::Program, path).optional()),
        _ => {}
    }
    let trusted: Vec<Uid> = options.uid.map(Uid::from_raw).into_iter().collect();
    Judge::new(&trusted).first(&things)
}

/// Group before user: afterwards it would not be allowed.
pub fn change_user(options: &Options) -> Result<(), Trouble> {
    let failed = |what: &str| {
        let text = format!("unable to set {what}");
        move |errno| Trouble::temporary(text).because(errno)
    };
    if let Some(gid) = options.gid.map(Gid::from_raw) {
        if Uid::effective().is_root() {
            nix::unistd::setgroups(&[gid]).map_err(failed("gid"))?;
        }
        nix::unistd::setgid(gid).map_err(failed("gid"))?;
    }
    if let Some(uid) = options.uid.map(Uid::from_raw) {
        nix::unistd::setuid(uid).map_err(failed("uid"))?;
    }
    Ok(())
}

/// What -C counts as one address.
fn group(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => {
            IpAddr::V6(Ipv6Addr::from(u128::from(ip) >> (128 - V6_NEIGHBOURHOOD) << (128 - V6_NEIGHBOURHOOD)))
        }
    }
}

impl<S: Service> Server<S> {
    /// Prints the port where that is wanted, and gives up descriptors 0 and 1.
    pub fn new(
        program: &'static str,
        options: Options,
        listener: TcpListener,
        service: S,
    ) -> Result<Server<S>, Trouble> {
        if options.print_port {
            let port = listener.local_addr().map_err(|e| unable("get local port", &e))?.port();
            let line = [decimal::text(port), b"\n".to_vec()].concat();
            fd::write_all(fd::OUT, &line)
                .map_err(|e| Trouble::temporary("unable to print port").because(e))?;
        }
        fd::give_up_standard();
        let log = Log::new(program, options.verbosity);
        let ready = Ready::new(&options.program, S::MAY_STAY_READY && session::is_quick(&options));
        Ok(Server { options, log, listener, children: Vec::new(), ready, resume: None, service })
    }

    /// Until TERM.
    pub fn run(mut self) -> Result<(), Trouble> {
        signal::catch(&[&[Signal::SIGCHLD, Signal::SIGTERM], self.service.signals()].concat());
        // Another process may take a connection between our poll and our accept.
        self.listener.set_nonblocking(true).map_err(|e| unable("listen", &e))?;
        self.status();
        loop {
            if signal::take(Signal::SIGTERM) {
                return Ok(());
            }
            let called = self.ready()?;
            // A child answers before it can end: what is told of it comes before its end here, too.
            let ended = signal::take(Signal::SIGCHLD);
            let ends: Vec<(Pid, i32)> =
                std::iter::from_fn(|| ended.then(process::reap_raw).flatten()).collect();
            ends.iter().for_each(|(pid, _)| self.ready.ended(*pid));
            self.hear(&ends);
            for (pid, status) in ends {
                self.ended(pid, status);
            }
            self.service.tend(&self.log);
            if called {
                self.accept()?;
            }
        }
    }

    /// Waits for a connection, when there is room for one, a word of the process that stays ready, or a signal.
    fn ready(&mut self) -> Result<bool, Trouble> {
        let pause = self.resume.and_then(|resume| resume.checked_duration_since(Instant::now()));
        if pause.is_none() {
            self.resume = None;
        }
        let full = self.children.len() >= self.options.limit;
        let mut fds = Vec::with_capacity(2);
        fds.extend(self.ready.socket().map(|socket| PollFd::new(socket, PollFlags::POLLIN)));
        let words = fds.len();
        if !full && pause.is_none() {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        // A full house waits for a child to end, however long that takes.
        let pause = if full { None } else { pause };
        let patience = self.ready.patience();
        match signal::wait(&mut fds, pause.into_iter().chain(patience).min()) {
            Ok(_) => Ok(fds.get(words).is_some_and(|listener| listener.any().unwrap_or(true))),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(Trouble::temporary("unable to wait for connections").because(errno)),
        }
    }

    /// What has become of connections that were handed over.
    fn hear(&mut self, ends: &[(Pid, i32)]) {
        loop {
            // Our child, even if it has ended by now, and nobody's process yet: else its place would never be free again.
            let is_free = |pid| {
                let ours = ends.iter().any(|(ended, _)| *ended == pid) || process::is_child(pid);
                ours && !self.children.iter().any(|child| child.is == Who::Process(pid))
            };
            let (given, pid) = match self.ready.news(is_free) {
                Some(News::Taken(given, pid)) => (given, Some(pid)),
                Some(News::Back(given)) => (given, None),
                None => return,
            };
            let Some(at) = self.children.iter().position(|child| child.is == Who::Given(given.number)) else {
                continue;
            };
            match pid {
                Some(pid) => {
                    self.log.status(session::from(pid, given.remote));
                    self.log.status(given.call.verdict(pid));
                    if let Some(child) = self.children.get_mut(at) {
                        child.is = Who::Process(pid);
                    }
                    // Ours may be the last copy already: whoever had it could make us wait for its end.
                    let _ = setsockopt(&given.stream, sockopt::Linger, &linger { l_onoff: 0, l_linger: 0 });
                }
                None => self.start(at, &given.stream, given.remote),
            }
        }
    }

    fn accept(&mut self) -> Result<(), Trouble> {
        let (stream, peer) = match self.listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => return self.not_accepted(trouble::errno(&error)),
        };
        let _ = stream.set_nonblocking(false); // not inherited on Linux; elsewhere it is
        let ip = peer.ip().to_canonical();
        let group = group(ip);
        if let Some(limit) = self.options.limit_per_address {
            let here = self.children.iter().filter(|child| child.group == group).count();
            if here >= limit {
                self.log.drop(format!("already {here} from {ip}"));
                return Ok(());
            }
        }
        // The child's place is counted before it exists, so that its lines come after this one.
        let at = self.children.len();
        self.children.push(Child { is: Who::Nobody, group });
        self.status();
        let peer = SocketAddr::new(ip, peer.port());
        let call = if self.ready.takes_more() { session::quick(&self.options, &stream, peer) } else { None };
        let given = match call {
            Some(call) => self.ready.give(stream, peer, call),
            None => Err(stream),
        };
        match given {
            Ok(number) => {
                if let Some(child) = self.children.get_mut(at) {
                    child.is = Who::Given(number);
                }
            }
            Err(stream) => self.start(at, &stream, peer),
        }
        Ok(())
    }

    /// Starts the program for a connection that has its place.
    fn start(&mut self, at: usize, stream: &TcpStream, peer: SocketAddr) {
        let offer = self.ready.offer();
        let (service, options, log) = (&self.service, &self.options, &self.log);
        let child = || {
            signal::defaults();
            signal::ignore(&[Signal::SIGPIPE]); // a peer that is gone already; exec sets it back
            let pid = nix::unistd::getpid();
            service.serve(&Connection { options, log, stream, remote: peer, pid, offer: offer.as_ref() })
        };
        match process::fork_child(child) {
            Ok(pid) => {
                if let Some(child) = self.children.get_mut(at) {
                    child.is = Who::Process(pid);
                }
            }
            Err(errno) => {
                self.log.drop(format!("unable to fork: {}", trouble::wording(errno)));
                self.children.remove(at);
                self.status();
                self.pause();
            }
        }
    }

    /// Not every error of accept(2) is ours: on Linux it may be one of the connection that was to come.
    fn not_accepted(&mut self, errno: Errno) -> Result<(), Trouble> {
        match errno {
            Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED | Errno::EPROTO => Ok(()),
            Errno::ENETDOWN | Errno::ENETUNREACH | Errno::EHOSTDOWN | Errno::EHOSTUNREACH => Ok(()),
            Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK => {
                Err(Trouble::temporary("unable to accept connections").because(errno))
            }
            errno => {
                self.log.warning(format!("unable to accept: {}", trouble::wording(errno)));
                self.pause();
                Ok(())
            }
        }
    }

    fn pause(&mut self) {
        self.resume = Instant::now().checked_add(PAUSE);
    }

    fn ended(&mut self, pid: Pid, status: i32) {
        // A process that a shell left to us before it became tcpserver is none of our children.
        let Some(at) = self.children.iter().position(|child| child.is == Who::Process(pid)) else {
            self.service.ended(pid);
            return;
        };
        self.children.swap_remove(at);
        self.log.status(format!("end {pid} status {status}"));
        self.status();
    }

    fn status(&self) {
        self.log.status(format!("status: {}/{}", self.children.len(), self.options.limit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_neighbours_count_as_one_address_and_ipv4_ones_do_not() {
        let of = |ip: &str| group(ip.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
