//! One connection: the handshake, the verdict, and what is said afterwards.

use crate::server::Files;
use jail::{Jail, programs};
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};
use qmail::sys::{descriptor, signal};
use qmail::timed::Deadline;
use qmail::{exits, fd};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, Error,
    RootCertStore, SignatureScheme, SupportedProtocolVersion,
};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tls::facts::{self, Fact};
use tls::verdict::{self, Demands, Proof, Verify};
use tls::{relay, session, store};

/// From the first byte of the handshake to its last. Who asks has a limit of its own.
const HANDSHAKE_SECONDS: u64 = 120;

/// For a server that was found by no name: it is not asked for one.
const NAMELESS: &str = "nameless.invalid";

static BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
static ONLY_NEWEST: &[&SupportedProtocolVersion] = &[&TLS13];

/// What was handed over.
pub struct Things {
    pub answer: OwnedFd,
    pub clear: OwnedFd,
    pub socket: OwnedFd,
}

/// Why there is no session.
enum Failure {
    /// It may pass: `Z`.
    Handshake(String),
    /// The peer is not what was demanded: `D`.
    Refused(String),
}

pub fn run(things: &Things, packet: &[u8], files: &Files) -> i32 {
    signal::defaults();
    signal::ignore(&[Signal::SIGPIPE]);
    descriptor::close_others(&[things.answer.as_fd(), things.clear.as_fd(), things.socket.as_fd()]);
    match begin(things, packet, files) {
        Ok((mut tls, proof, facts)) => {
            let letter = if matches!(proof, Proof::None) { b"U" } else { b"K" };
            say(things, letter, &facts::encode(&facts));
            relay::run(&mut tls, &things.socket, &things.clear);
        }
        Err(Failure::Handshake(reason)) => say(things, b"Z", reason.as_bytes()),
        Err(Failure::Refused(reason)) => say(things, b"D", reason.as_bytes()),
    }
    let _ = shutdown(things.socket.as_raw_fd(), Shutdown::Both);
    exits::SUCCESS
}

/// When there can be no process for it.
pub fn busy(things: &Things) {
    say(things, b"Z", b"too many processes");
}

/// Never waits: an answer fits the socket's buffer, or nobody reads it.
fn say(things: &Things, letter: &[u8], text: &[u8]) {
    let _ = send(
        things.answer.as_raw_fd(),
        &[letter, text].concat(),
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
    );
}

fn begin(things: &Things, packet: &[u8], files: &Files) -> Result<(Connection, Proof, Vec<Fact>), Failure> {
    let failed = Failure::Handshake;
    let demands =
        Demands::parse(packet).ok_or_else(|| failed("the demands are not understood".to_owned()))?;
    let roots = match demands.verify {
        Verify::Pkix => authorities(files)?,
        _ => RootCertStore::empty(),
    };
    let identity = match &demands.cert {
        Some(name) => Some(identity(files, name)?),
        None => None,
    };
    relay::at_once(&things.socket);
    Jail::of(&programs::TLSCLIENT_SESSION).close().map_err(|t| failed(lossy(&t.text())))?;

    let name = ServerName::try_from(lossy(&demands.name)).or_else(|_| ServerName::try_from(NAMELESS));
    let name = name.map_err(|e| failed(e.to_string()))?.to_owned();
    let asks = !matches!(&name, ServerName::DnsName(name) if name.as_ref() == NAMELESS);
    let only_newest = demands.only_newest;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let judge = Arc::new(Judge::new(demands, roots, &provider));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(if only_newest { ONLY_NEWEST } else { BOTH })
        .map_err(|e| failed(e.to_string()))?
        .dangerous() // only by its name: `verdict` decides
        .with_custom_certificate_verifier(Arc::clone(&judge) as Arc<dyn ServerCertVerifier>);
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled(); // no process sees two connections
    config.enable_sni = asks;
    let client = ClientConnection::new(Arc::new(config), name).map_err(|e| failed(e.to_string()))?;
    let mut tls = Connection::Client(client);
    let done = relay::handshake(&mut tls, &things.socket, Deadline::seconds(HANDSHAKE_SECONDS));
    let found = judge.found.lock().unwrap_or_else(PoisonError::into_inner).take();
    let proof = match (done, found) {
        (Ok(()), Some(Ok(proof))) => proof,
        (_, Some(Err(reason))) => return Err(Failure::Refused(reason)),
        (Err(reason), _) => return Err(failed(reason)),
        (Ok(()), None) => return Err(failed("its certificate was not looked at".to_owned())),
    };
    let Connection::Client(client) = &tls else { return Err(failed("not a client".to_owned())) };
    // rfc5929:4 binds a login to a certificate: to that of somebody else, if nobody has shown the key of this one.
    let certificates = client.peer_certificates().filter(|_| judge.holds_key.load(Ordering::Relaxed));
    let server = certificates.and_then(<[_]>::first).map(AsRef::as_ref);
    let mut facts =
        facts::common(client, server, |key, label| client.export_keying_material(key, label, Some(b"")));
    facts.push(("TLS_VERIFIED", proof.word().as_bytes().to_vec()));
    Ok((tls, proof, facts))
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

/// Those that are trusted, from the first file that is there.
fn authorities(files: &Files) -> Result<RootCertStore, Failure> {
    let there = |path: &&Vec<u8>| nix::sys::stat::stat(fd::path(path)).is_ok();
    let none = || Failure::Handshake("there is no file of authorities (control/tlsca)".to_owned());
    let file = files.authorities.iter().find(there).ok_or_else(none)?;
    session::authorities(file).map_err(|trouble| Failure::Handshake(lossy(&trouble.text())))
}

/// A certificate of ours.
fn identity(files: &Files, name: &[u8]) -> Result<Arc<dyn ResolvesClientCert>, Failure> {
    let file = |file: &str| [files.certificates.as_slice(), b"/", name, b"/", file.as_bytes()].concat();
    let read =
        || Ok(CertifiedKey::new(store::chain(&file("cert.pem"))?, store::private_key(&file("key.pem"))?));
    let read: Result<_, qmail::trouble::Trouble> = read();
    let found = read.map_err(|trouble| Failure::Handshake(lossy(&trouble.text())))?;
    Ok(Arc::new(SingleCertAndKey::from(found)))
}

/// Asks `verdict` while the handshake runs, so that nothing is sent to who is not the right one.
#[derive(Debug)]
struct Judge {
    demands: Demands,
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
    found: Mutex<Option<Result<Proof, String>>>,
    /// The server has signed with the key of its certificate.
    holds_key: AtomicBool,
}

impl Judge {
    fn new(demands: Demands, roots: RootCertStore, provider: &CryptoProvider) -> Judge {
        let algorithms = provider.signature_verification_algorithms;
        Judge { demands, roots, algorithms, found: Mutex::new(None), holds_key: AtomicBool::new(false) }
    }

    /// Where anybody is taken, odd keys and certificates are better than no encryption.
    fn takes_anybody(&self) -> bool {
        self.demands.verify == Verify::Nothing
    }

    fn signature(
        &self,
        checked: Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.holds_key.store(checked.is_ok(), Ordering::Relaxed);
        match self.takes_anybody() {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => checked,
        }
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(own).chain(above).cloned().collect();
        let found = verdict::judge(&self.demands, &chain, &self.roots, now);
        let good = found.is_ok();
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        match good {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(verify_tls12_signature(message, certificate, signed, &self.algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(verify_tls13_signature(message, certificate, signed, &self.algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
