//! keeper - the one process that has the keys: it signs, and makes and opens session tickets
//!
//! Each session's process has a connection of its own to it, of packets, and only until its handshake is done:
//! one question, one answer. What may be asked is counted, and what may be signed is looked at: it must be
//! what a server signs in a handshake and nothing else.
//!
//! `C` name          the chain for this server name: see `Identity`; empty when there is none
//! `S` id scheme m   the signature of m; empty when refused. id has 4 bytes, scheme 2
//! `E` p, `D` c      a session ticket made, opened; empty when it cannot be
#![forbid(unsafe_code)]

use crate::store::{self, Keys};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use qmail::fd;
use qmail::timed::Deadline;
use rustls::server::ProducesTickets;
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

/// A chain, a ticket with a client's chain in it: more is not sent or taken.
pub const PACKET_MAX: usize = 96 * 1024;

/// One handshake: a name (two, if the client is asked to begin again), a signature, some tickets.
const NAMES_MAX: usize = 2;
const SIGNATURES_MAX: usize = 1;
const TICKETS_MAX: usize = 16;

/// A handshake has an end; this is for a process that is not what it was.
const CLIENT_SECONDS: u64 = 300;

/// Everything a signature scheme can be with our keys.
const SCHEMES: [SignatureScheme; 10] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PKCS1_SHA512,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA256,
];

/// What a session may know of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Of the key, among those of the keeper.
    pub id: u32,
    pub algorithm: SignatureAlgorithm,
    pub schemes: Vec<SignatureScheme>,
    pub response: Option<Vec<u8>>,
    pub chain: Vec<Vec<u8>>,
}

impl Identity {
    fn of(id: u32, key: &CertifiedKey) -> Identity {
        let fits = |scheme: &SignatureScheme| key.key.choose_scheme(&[*scheme]).is_some();
        Identity {
            id,
            algorithm: key.key.algorithm(),
            schemes: SCHEMES.into_iter().filter(fits).collect(),
            response: key.ocsp.clone(),
            chain: key.cert.iter().map(|der| der.to_vec()).collect(),
        }
    }

    /// id, algorithm, count and schemes, length and response (empty: none), length and certificate each.
    fn encode(&self) -> Option<Vec<u8>> {
        let mut out = self.id.to_be_bytes().to_vec();
        out.push(self.algorithm.into());
        out.push(u8::try_from(self.schemes.len()).ok()?);
        for scheme in &self.schemes {
            out.extend(u16::from(*scheme).to_be_bytes());
        }
        for piece in std::iter::once(self.response.as_deref().unwrap_or_default())
            .chain(self.chain.iter().map(Vec::as_slice))
        {
            out.extend(u32::try_from(piece.len()).ok()?.to_be_bytes());
            out.extend_from_slice(piece);
        }
        (out.len() <= PACKET_MAX).then_some(out)
    }

    pub fn parse(mut packet: &[u8]) -> Option<Identity> {
        let rest = &mut packet;
        let id = u32::from_be_bytes(take(rest, 4)?.try_into().ok()?);
        let algorithm = SignatureAlgorithm::from(*take(rest, 1)?.first()?);
        let count = usize::from(*take(rest, 1)?.first()?);
        let schemes = take(rest, 2 * count)?
            .chunks_exact(2)
            .filter_map(|two| Some(u16::from_be_bytes(two.try_into().ok()?)));
        let schemes = schemes.map(SignatureScheme::from).collect();
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let length = u32::from_be_bytes(take(rest, 4)?.try_into().ok()?);
            pieces.push(take(rest, usize::try_from(length).ok()?)?.to_vec());
        }
        let response = Some(pieces.first()?.clone()).filter(|response| !response.is_empty());
        let chain: Vec<_> = pieces.into_iter().skip(1).collect();
        (!chain.is_empty()).then_some(Identity { id, algorithm, schemes, response, chain })
    }
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(n)?;
    *rest = left;
    Some(taken)
}

/// Whether a server signs such a thing in a handshake: in TLS 1.3 the hash of a transcript behind a fixed text
/// (rfc8446:4.4.3), in TLS 1.2 two random numbers and the parameters of an elliptic curve (rfc8422:5.4).
fn is_of_a_handshake(message: &[u8]) -> bool {
    const TEXT: &[u8] = b"TLS 1.3, server CertificateVerify\0";
    const PAD: usize = 64;
    const NAMED_CURVE: u8 = 3;
    let Some((head, rest)) = message.split_at_checked(PAD) else { return false };
    if head.iter().all(|b| *b == b' ') {
        return rest.strip_prefix(TEXT).is_some_and(|hash| matches!(hash.len(), 32 | 48));
    }
    matches!(rest, [NAMED_CURVE, _, _, length, point @ ..] if point.len() == usize::from(*length))
}

struct Client {
    connection: OwnedFd,
    deadline: Deadline,
    names: usize,
    signatures: usize,
    tickets: usize,
}

pub struct Keeper {
    keys: Keys,
    /// The same by number: what `id` counts.
    numbered: Vec<Arc<CertifiedKey>>,
    tickets: Arc<dyn ProducesTickets>,
    clients: Vec<Client>,
    clients_max: usize,
    /// The question that is answered.
    packet: Vec<u8>,
}

impl Keeper {
    pub fn new(keys: Keys, tickets: Arc<dyn ProducesTickets>, clients_max: usize) -> Keeper {
        let numbered = keys.values().cloned().collect();
        Keeper { keys, numbered, tickets, clients: Vec::new(), clients_max, packet: vec![0; PACKET_MAX] }
    }

    /// Until the server and all sessions that know it are gone. `door` brings connections of new sessions.
    pub fn serve(mut self, door: OwnedFd) {
        let mut door = Some(door);
        while door.is_some() || !self.clients.is_empty() {
            let open = door.as_ref().filter(|_| self.clients.len() < self.clients_max);
            let mut fds: Vec<PollFd> =
                self.clients.iter().map(|c| PollFd::new(c.connection.as_fd(), PollFlags::POLLIN)).collect();
            fds.extend(open.map(|door| PollFd::new(door.as_fd(), PollFlags::POLLIN)));
            let left = self.clients.iter().filter_map(|c| c.deadline.left()).min();
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX)
            });
            if !matches!(poll(&mut fds, timeout), Ok(_) | Err(Errno::EINTR)) {
                return;
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
            let asked = open.is_some() && ready.get(self.clients.len()).copied().unwrap_or(false);
            let clients = std::mem::take(&mut self.clients);
            for (mut client, ready) in clients.into_iter().zip(ready) {
                if (!ready || self.answer(&mut client)) && !client.deadline.passed() {
                    self.clients.push(client);
                }
            }
            if asked {
                match door.as_ref().map(|door| fd::receive(door, &mut [0; 1])) {
                    Some(Ok(received)) if received.bytes == 0 => door = None,
                    Some(Ok(received)) => self.clients.extend(received.passed.into_iter().map(client)),
                    Some(Err(Errno::EAGAIN | Errno::EINTR)) => {}
                    _ => door = None,
                }
            }
        }
    }

    /// False when the session is done with us, or we with it.
    fn answer(&mut self, client: &mut Client) -> bool {
        let length = match nix::sys::socket::recv(
            client.connection.as_raw_fd(),
            &mut self.packet,
            MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(0) => return false,
            Ok(length) => length,
            Err(errno) => return matches!(errno, Errno::EAGAIN | Errno::EINTR),
        };
        let Some((kind, question)) = self.packet.get(..length).and_then(<[u8]>::split_first) else {
            return false;
        };
        let used = match kind {
            b'C' => &mut client.names,
            b'S' => &mut client.signatures,
            b'E' | b'D' => &mut client.tickets,
            _ => return false,
        };
        if *used == 0 {
            return false;
        }
        *used -= 1;
        let answer = match kind {
            b'C' => self.identity(question),
            b'S' => self.sign(question),
            b'E' => self.tickets.encrypt(question),
            _ => self.tickets.decrypt(question),
        };
        // Never waits: a session reads one answer before it asks again.
        let answer = answer.filter(|answer| answer.len() <= PACKET_MAX).unwrap_or_else(|| vec![NONE]);
        send(client.connection.as_raw_fd(), &answer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).is_ok()
    }

    fn identity(&self, name: &[u8]) -> Option<Vec<u8>> {
        let key = store::find(&self.keys, name)?;
        let id = self.numbered.iter().position(|numbered| Arc::ptr_eq(numbered, key))?;
        Identity::of(u32::try_from(id).ok()?, key).encode()
    }

    fn sign(&self, mut question: &[u8]) -> Option<Vec<u8>> {
        let id = u32::from_be_bytes(take(&mut question, 4)?.try_into().ok()?);
        let scheme = SignatureScheme::from(u16::from_be_bytes(take(&mut question, 2)?.try_into().ok()?));
        let key = self.numbered.get(usize::try_from(id).ok()?)?;
        let signer = key.key.choose_scheme(&[scheme]).filter(|_| is_of_a_handshake(question))?;
        signer.sign(question).ok()
    }
}

/// Instead of an answer. No answer of ours has one byte only.
pub const NONE: u8 = b'-';

fn client(connection: OwnedFd) -> Client {
    Client {
        connection,
        deadline: Deadline::seconds(CLIENT_SECONDS),
        names: NAMES_MAX,
        signatures: SIGNATURES_MAX,
        tickets: TICKETS_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_comes_back_as_it_went() {
        let identity = Identity {
            id: 7,
            algorithm: SignatureAlgorithm::ECDSA,
            schemes: vec![SignatureScheme::ECDSA_NISTP256_SHA256],
            response: None,
            chain: vec![b"own".to_vec(), b"above".to_vec()],
        };
        let packet = identity.encode().unwrap();
        assert_eq!(Identity::parse(&packet), Some(identity));
        assert!(
            (0..packet.len())
                .all(|n| Identity::parse(packet.get(..n).unwrap()).is_none_or(|i| i.chain.len() < 2))
        );
    }

    #[test]
    fn only_what_a_server_signs_in_a_handshake_is_signed() {
        let text = b"TLS 1.3, server CertificateVerify\0";
        assert!(is_of_a_handshake(&[[b' '; 64].as_slice(), text, &[1; 32]].concat()));
        assert!(!is_of_a_handshake(
            &[[b' '; 64].as_slice(), b"TLS 1.3, client CertificateVerify\0", &[1; 32]].concat()
        ));
        assert!(!is_of_a_handshake(&[[b' '; 64].as_slice(), text, &[1; 33]].concat()));
        assert!(is_of_a_handshake(&[[9; 64].as_slice(), &[3, 0, 29, 32], &[1; 32]].concat()));
        assert!(!is_of_a_handshake(&[[9; 64].as_slice(), &[3, 0, 29, 32], &[1; 31]].concat()));
        assert!(!is_of_a_handshake(b"pay the bearer"));
        assert!(!is_of_a_handshake(b""));
    }
}
