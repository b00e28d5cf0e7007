//! Asks the peer's host who owns the connection (RFC 1413). Any trouble of the network means: unknown. The
//! peer writes the answer, so a child in a jail reads it.

use jail::{Jail, programs};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::sockopt::SocketError;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, getsockopt, socket,
};
use qmail::timed::{self, Deadline, Line, Reader};
use qmail::trouble::Trouble;
use qmail::ucspi;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

const PORT: u16 = 113;

/// `remote` may still be the IPv6 form of an IPv4 peer, and has the scope of a link-local one.
pub fn ask(local: SocketAddr, remote: SocketAddr, timeout: Duration) -> Result<Option<Vec<u8>>, Trouble> {
    let deadline = Deadline::after(timeout);
    let mut server = match remote.ip().to_canonical() {
        ip if ip == remote.ip() => remote,
        ip => SocketAddr::new(ip, remote.port()),
    };
    server.set_port(PORT);
    let mut own = match (local, server) {
        (SocketAddr::V6(mut local), SocketAddr::V6(server)) => {
            local.set_scope_id(server.scope_id());
            SocketAddr::V6(local)
        }
        _ => local,
    };
    own.set_port(0);
    let Ok(connection) = connected(own, server, deadline) else { return Ok(None) };
    let query = ucspi::ident_query(remote.port(), local.port());
    let jail = Jail::of(&programs::TCPSERVER_IDENT);
    let id = jail::aside(jail, &[connection.as_fd()], ucspi::IDENT_REPLY_MAX, deadline, || {
        talk(&connection, &query, deadline).unwrap_or_default()
    })?;
    Ok(id.filter(|id| !id.is_empty() && !id.contains(&0)))
}

/// The user id, if the server tells one.
fn talk(connection: &OwnedFd, query: &[u8], deadline: Deadline) -> Option<Vec<u8>> {
    timed::write_all(connection, query, deadline).ok()?;
    let mut reader = Reader::new(connection);
    reader.set_overall(deadline);
    match reader.line(b'\n', ucspi::IDENT_REPLY_MAX).ok()? {
        Line::Whole(line) | Line::End(line) => ucspi::ident_reply(&line),
        Line::TooLong => None,
    }
}

/// From the very address the peer is connected to: the server looks for a connection between the two.
fn connected(own: SocketAddr, server: SocketAddr, deadline: Deadline) -> Result<OwnedFd, Errno> {
    let family = if server.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(own))?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(server)) {
        Ok(()) => return Ok(socket),
        Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno),
    }
    timed::wait(&socket, PollFlags::POLLOUT, deadline)?;
    match getsockopt(&socket, SocketError)? {
        0 => Ok(socket),
        error => Err(Errno::from_raw(error)),
    }
}
