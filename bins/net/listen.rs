//! Where to listen: the socket of a supervisor, or one of our own for host and port.

use crate::names;
use crate::options::{Family, Options};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{AcceptConn, Ipv6V6Only, ReuseAddr};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, getsockopt, listen,
    setsockopt, socket,
};
use qmail::trouble::Trouble;
use qmail::{environ, fd, ucspi};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener};
use std::os::fd::OwnedFd;

const SERVICES: &str = "/etc/services";
/// The usual file has 13 KB.
const SERVICES_MAX: usize = 4 * 1024 * 1024;

/// The first descriptor that sd_listen_fds(3) passes.
const PASSED: i32 = 3;

pub fn open(options: &Options) -> Result<TcpListener, Trouble> {
    if environ::number("LISTEN_PID") == Some(u64::from(std::process::id())) {
        return passed();
    }
    let port = port(&options.port)?;
    let scope = scope(options)?;
    if all(&options.host) && options.family == Family::Any {
        let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        match bound(any, false) {
            Ok(socket) => return listening(socket, options.backlog),
            // A system without IPv6.
            Err((_, Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL | Errno::ENOPROTOOPT)) => {}
            Err(failure) => return Err(refusal(failure)),
        }
    }
    let address = match address(options)? {
        IpAddr::V6(ip) => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)),
        ip => SocketAddr::new(ip, port),
    };
    listening(bound(address, true).map_err(refusal)?, options.backlog)
}

/// sd_listen_fds(3): descriptor 3 is ours, and host and port are words for the reader of `ps`.
fn passed() -> Result<TcpListener, Trouble> {
    if environ::number("LISTEN_FDS") != Some(1) {
        return Err(Trouble::temporary("LISTEN_FDS must be 1: there is one socket to listen on"));
    }
    let unusable = |e| Trouble::temporary("unable to use descriptor 3 of LISTEN_FDS").because(e);
    let socket = fd::take(PASSED).map_err(unusable)?;
    if !getsockopt(&socket, AcceptConn).map_err(unusable)? {
        return Err(unusable(Errno::EINVAL));
    }
    let listener = TcpListener::from(socket);
    listener.local_addr().map_err(|_| unusable(Errno::EAFNOSUPPORT))?;
    Ok(listener)
}

fn port(name: &[u8]) -> Result<u16, Trouble> {
    let digits = name.first().is_some_and(u8::is_ascii_digit);
    let services = if digits { None } else { fd::read_file(SERVICES, SERVICES_MAX).unwrap_or(None) };
    ucspi::port(name, &services.unwrap_or_default())
        .ok_or_else(|| Trouble::temporary([b"unable to figure out port number for ", name].concat()))
}

/// Every address of this host.
fn all(host: &[u8]) -> bool {
    host.is_empty() || host == b"0"
}

/// The index of the interface that link-local addresses are of; 0 when none is named.
fn scope(options: &Options) -> Result<u32, Trouble> {
    let zone = options.host.splitn(2, |b| *b == b'%').nth(1);
    let Some(name) = options.interface.as_deref().or(zone) else { return Ok(0) };
    nix::net::if_::if_nametoindex(fd::path(name)).map_err(|e| Trouble::unable("find interface", name, e))
}

fn address(options: &Options) -> Result<IpAddr, Trouble> {
    let (host, family) = (options.host.as_slice(), options.family);
    let none = || Trouble::temporary([b"no IP address for ", host].concat());
    if all(host) {
        return Ok(if family == Family::V6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        });
    }
    let literal =
        host.split(|b| *b == b'%').next().and_then(|h| std::str::from_utf8(h).ok()?.parse::<IpAddr>().ok());
    if let Some(ip) = literal.map(|ip| ip.to_canonical()) {
        return Some(ip).filter(|ip| fits(ip, family)).ok_or_else(none);
    }
    if host.eq_ignore_ascii_case(b"localhost") {
        // rfc6761:6.3: known without asking anybody.
        return Ok(if family == Family::V6 {
            Ipv6Addr::LOCALHOST.into()
        } else {
            Ipv4Addr::LOCALHOST.into()
        });
    }
    match names::address(host, |ip| fits(ip, family))? {
        Ok(found) => found.ok_or_else(none),
        Err(names::Unanswered) => Err(Trouble::temporary(
            [b"temporarily unable to figure out IP address for ", host, b": no answer from the DNS"].concat(),
        )),
    }
}

fn fits(ip: &IpAddr, family: Family) -> bool {
    match family {
        Family::Any => true,
        Family::V4 => ip.is_ipv4(),
        Family::V6 => ip.is_ipv6(),
    }
}

/// A socket bound to the address; which step failed otherwise. An IPv6 socket that is not alone takes
/// IPv4 connections too.
fn bound(address: SocketAddr, v6_alone: bool) -> Result<OwnedFd, (&'static str, Errno)> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let create = |e| ("create socket", e);
    let socket =
        socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp).map_err(create)?;
    setsockopt(&socket, ReuseAddr, &true).map_err(create)?;
    if address.is_ipv6() {
        setsockopt(&socket, Ipv6V6Only, &v6_alone).map_err(create)?;
    }
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrStorage::from(address))
        .map_err(|e| ("bind", e))?;
    Ok(socket)
}

/// The kernel cuts a long backlog to its own limit, net.core.somaxconn.
fn listening(socket: OwnedFd, backlog: u64) -> Result<TcpListener, Trouble> {
    let backlog = i32::try_from(backlog).ok().and_then(|n| Backlog::new(n).ok()).unwrap_or(Backlog::MAXCONN);
    listen(&socket, backlog).map_err(|e| refusal(("listen", e)))?;
    Ok(TcpListener::from(socket))
}

fn refusal((step, errno): (&'static str, Errno)) -> Trouble {
    Trouble::temporary(format!("unable to {step}")).because(errno)
}
