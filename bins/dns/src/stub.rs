//! stub - the sockets: asks one question of several servers until one answers
#![forbid(unsafe_code)]

use crate::wire::{CHAIN_MAX, Data, Kind, Question, Verdict, parse_answer};
use crate::{Answer, Failure};
use nix::errno::Errno;
use nix::poll::PollFlags;
use qmail::sys::random;
use qmail::timed::{self, Deadline};
use qmail::trouble;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// How long one server is waited for, round by round. A recursive server with an empty cache may need
/// the first seconds itself.
const ROUNDS: [Duration; 4] =
    [Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8), Duration::from_secs(16)];

/// A TCP answer is one exchange with a server we know to be alive.
const TCP_PATIENCE: Duration = Duration::from_secs(10);

/// More than we offered to take, for servers that know no EDNS0 manners.
const UDP_MAX: usize = 4096;

/// Wrong datagrams looked at before a server is given up for this round: somebody is guessing.
const STRANGERS_MAX: usize = 256;

/// Asks, following aliases over as many questions as it takes.
pub fn ask(
    servers: &[SocketAddr],
    trust_ad: bool,
    patience: Duration,
    name: &[u8],
    kind: Kind,
) -> Result<Answer<Data>, Failure> {
    let deadline = Deadline::after(patience);
    let mut name = name.to_vec();
    let mut all_authentic = true;
    for _ in 0..CHAIN_MAX {
        let question = Question::new(&name, kind).ok_or(Failure::NoSuchName)?;
        let (verdict, server) = ask_all(servers, &question, deadline);
        let believed = trust_ad || server.is_some_and(|server| server.ip().to_canonical().is_loopback());
        match verdict {
            Verdict::Records { records, authentic } => {
                return Ok(Answer { records, authentic: authentic && believed && all_authentic });
            }
            Verdict::Alias { name: target, authentic } => {
                all_authentic &= authentic && believed;
                name = target;
            }
            Verdict::NoData => return Err(Failure::NoData),
            Verdict::NoSuchName => return Err(Failure::NoSuchName),
            _ => return Err(Failure::Temporary),
        }
    }
    Err(Failure::Temporary)
}

/// The first verdict that settles the question, and whose it is; Useless when no server gave one in time. Only servers
/// that were silent are asked again: what one could not say now it cannot say a moment later.
fn ask_all(servers: &[SocketAddr], question: &Question, deadline: Deadline) -> (Verdict, Option<SocketAddr>) {
    let mut silent = servers.to_vec();
    for round in ROUNDS {
        let mut again = Vec::new();
        for server in silent {
            if deadline.passed() {
                return (Verdict::Useless, None);
            }
            match ask_one(server, question, Deadline::after(round).or(deadline), deadline) {
                Ok(verdict) if verdict.settles() => return (verdict, Some(server)),
                Err(Errno::ETIMEDOUT) => again.push(server),
                Ok(_) | Err(_) => {}
            }
        }
        silent = again;
    }
    (Verdict::Useless, None)
}

/// One server: by UDP with EDNS0, without if it must be, by TCP if the answer was cut.
fn ask_one(
    server: SocketAddr,
    question: &Question,
    udp: Deadline,
    overall: Deadline,
) -> Result<Verdict, Errno> {
    let mut edns = true;
    let mut verdict = by_udp(server, question, edns, udp)?;
    if verdict == Verdict::NotUnderstood {
        edns = false;
        verdict = by_udp(server, question, edns, udp)?;
    }
    if verdict == Verdict::Truncated {
        return by_tcp(server, question, edns, Deadline::after(TCP_PATIENCE).or(overall));
    }
    Ok(verdict)
}

/// A socket of its own for each question: the kernel chooses a random port, and a connected socket
/// takes datagrams from that server only.
fn by_udp(server: SocketAddr, question: &Question, edns: bool, deadline: Deadline) -> Result<Verdict, Errno> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let id = random::number16()?;
    let query = question.query(id, edns).ok_or(Errno::EINVAL)?;
    let socket = UdpSocket::bind((any, 0)).map_err(|e| trouble::errno(&e))?;
    socket.connect(server).map_err(|e| trouble::errno(&e))?;
    // A datagram that turns out broken after poll (bad checksum) must not leave us waiting in read.
    socket.set_nonblocking(true).map_err(|e| trouble::errno(&e))?;
    socket.send(&query).map_err(|e| trouble::errno(&e))?;
    let mut buffer = [0; UDP_MAX];
    for _ in 0..STRANGERS_MAX {
        let n = timed::read(&socket, &mut buffer, deadline)?;
        match parse_answer(buffer.get(..n).unwrap_or_default(), id, question) {
            Verdict::NotOurs => {}
            verdict => return Ok(verdict),
        }
    }
    Ok(Verdict::Useless)
}

/// rfc7766:8: a length of two bytes before each message.
fn by_tcp(server: SocketAddr, question: &Question, edns: bool, deadline: Deadline) -> Result<Verdict, Errno> {
    let id = random::number16()?;
    let query = question.query(id, edns).ok_or(Errno::EINVAL)?;
    let patience = deadline.left().filter(|left| !left.is_zero()).ok_or(Errno::ETIMEDOUT)?;
    let stream = TcpStream::connect_timeout(&server, patience).map_err(|e| trouble::errno(&e))?;
    stream.set_nonblocking(true).map_err(|e| trouble::errno(&e))?;
    let length = u16::try_from(query.len()).map_err(|_| Errno::EMSGSIZE)?;
    timed::wait(&stream, PollFlags::POLLOUT, deadline)?;
    timed::write_all(&stream, &[length.to_be_bytes().as_slice(), &query].concat(), deadline)?;
    let mut header = [0; 2];
    read_exact(&stream, &mut header, deadline)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(header))];
    read_exact(&stream, &mut answer, deadline)?;
    Ok(match parse_answer(&answer, id, question) {
        Verdict::Truncated | Verdict::NotOurs => Verdict::Useless,
        verdict => verdict,
    })
}

fn read_exact(stream: &TcpStream, buffer: &mut [u8], deadline: Deadline) -> Result<(), Errno> {
    let mut done = 0;
    while let Some(room) = buffer.get_mut(done..).filter(|room| !room.is_empty()) {
        match timed::read(stream, room, deadline)? {
            0 => return Err(Errno::ECONNRESET),
            n => done += n,
        }
    }
    Ok(())
}
