//! link - a session's connection to the keeper, in the shapes that rustls wants a key and tickets in
#![forbid(unsafe_code)]

use crate::keeper::{Identity, NONE, PACKET_MAX};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, send, sendmsg, socketpair,
};
use qmail::timed::{self, Deadline};
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

/// An RSA signature takes a millisecond; a busy keeper has some hundred of them to make.
const ANSWER_SECONDS: u64 = 30;

/// How long a client may use a ticket: two of the periods after which the keys of tickets change.
const TICKET_SECONDS: u32 = 12 * 3600;

/// A pair of connected packet sockets, close-on-exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// The connection, open for the time of a handshake.
#[derive(Debug, Default)]
pub struct Link(Mutex<Option<OwnedFd>>);

impl Link {
    /// Opens the connection: the other end is sent through the keeper's door.
    pub fn open(&self, ours: OwnedFd, theirs: OwnedFd, door: &OwnedFd) -> Result<(), Errno> {
        let pass = [theirs.as_raw_fd()];
        let data = [IoSlice::new(b"+")];
        let control = [ControlMessage::ScmRights(&pass)];
        sendmsg::<()>(door.as_raw_fd(), &data, &control, MsgFlags::MSG_NOSIGNAL, None)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ours);
        Ok(())
    }

    /// Nothing can be asked any more.
    pub fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn ask(&self, parts: &[&[u8]]) -> Option<Vec<u8>> {
        let question = parts.concat();
        let connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = connection.as_ref().filter(|_| question.len() <= PACKET_MAX)?;
        let deadline = Deadline::seconds(ANSWER_SECONDS);
        timed::wait(connection, PollFlags::POLLOUT, deadline).ok()?;
        send(connection.as_raw_fd(), &question, MsgFlags::MSG_NOSIGNAL).ok()?;
        timed::wait(connection, PollFlags::POLLIN, deadline).ok()?;
        let length = recv(connection.as_raw_fd(), &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC).ok()?;
        let mut answer = vec![0; length.min(PACKET_MAX)];
        recv(connection.as_raw_fd(), &mut answer, MsgFlags::empty()).ok()?;
        Some(answer).filter(|answer| !answer.is_empty() && answer.as_slice() != [NONE])
    }
}

/// Finds the certificate for the name that a client asks for.
#[derive(Debug)]
pub struct Resolver {
    link: Arc<Link>,
    /// The certificate that was shown.
    shown: Mutex<Option<Vec<u8>>>,
}

impl Resolver {
    pub fn new(link: Arc<Link>) -> Resolver {
        Resolver { link, shown: Mutex::new(None) }
    }

    /// The certificate that was found, also where the session was resumed and none was sent.
    pub fn shown(&self) -> Option<Vec<u8>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or_default();
        let identity = Identity::parse(&self.link.ask(&[b"C", name.as_bytes()])?)?;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = identity.chain.first().cloned();
        let chain = identity.chain.into_iter().map(CertificateDer::from).collect();
        let key = Key {
            link: Arc::clone(&self.link),
            id: identity.id,
            algorithm: identity.algorithm,
            schemes: identity.schemes,
        };
        let mut found = CertifiedKey::new(chain, Arc::new(key));
        found.ocsp = identity.response;
        Some(Arc::new(found))
    }
}

/// A key that is elsewhere.
#[derive(Debug)]
struct Key {
    link: Arc<Link>,
    id: u32,
    algorithm: SignatureAlgorithm,
    schemes: Vec<SignatureScheme>,
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = *self.schemes.iter().find(|scheme| offered.contains(scheme))?;
        Some(Box::new(Pen { link: Arc::clone(&self.link), id: self.id, scheme }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }
}

#[derive(Debug)]
struct Pen {
    link: Arc<Link>,
    id: u32,
    scheme: SignatureScheme,
}

impl Signer for Pen {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let question =
            [b"S".as_slice(), &self.id.to_be_bytes(), &u16::from(self.scheme).to_be_bytes(), message];
        self.link
            .ask(&question)
            .ok_or_else(|| Error::General("no signature from the keeper of the keys".into()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// Tickets that the keeper makes and opens.
#[derive(Debug)]
pub struct Tickets(pub Arc<Link>);

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        TICKET_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.ask(&[b"E", plain])
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.ask(&[b"D", cipher])
    }
}
