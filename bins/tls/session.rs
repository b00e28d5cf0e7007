//! session - the server's side of a handshake
#![forbid(unsafe_code)]

use crate::facts::{self, Fact};
use crate::link::{Link, Resolver, Tickets};
use crate::relay;
use nix::errno::Errno;
use qmail::timed::Deadline;
use qmail::trouble::Trouble;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    Connection, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme, SupportedProtocolVersion,
};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A session that is resumed needs no second ticket at once.
const TICKETS: usize = 1;

/// Some hundred authorities.
const AUTHORITIES_MAX: usize = 1024 * 1024;

/// What an administrator decides about TLS.
#[derive(Debug, Clone)]
pub struct Settings {
    pub versions: &'static [&'static SupportedProtocolVersion],
    /// Protocols of ALPN (rfc7301); without any, what a client says about them is not looked at.
    pub protocols: Vec<Vec<u8>>,
    /// Authorities of clients' certificates: a file in PEM.
    pub authorities: Option<Vec<u8>>,
    /// Who shows none, or none of theirs, is turned away.
    pub certificate_needed: bool,
}

/// Ready for one session.
pub struct Server {
    config: Arc<ServerConfig>,
    resolver: Arc<Resolver>,
    link: Arc<Link>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    certificate_needed: bool,
}

impl Server {
    /// Reads the authorities, so this comes before any jail.
    pub fn prepare(settings: &Settings) -> Result<Server, Trouble> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let link = Arc::new(Link::default());
        let resolver = Arc::new(Resolver::new(Arc::clone(&link)));
        let verifier = match &settings.authorities {
            Some(file) => Some(verifier(file, &provider)?),
            None => None,
        };
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(settings.versions)
            .map_err(|e| Trouble::temporary(format!("unable to prepare TLS: {e}")))?;
        let builder = match &verifier {
            Some(inner) => builder.with_client_cert_verifier(match settings.certificate_needed {
                true => Arc::clone(inner),
                false => Arc::new(Tolerant(Arc::clone(inner))),
            }),
            None => builder.with_no_client_auth(),
        };
        let certificates: Arc<dyn rustls::server::ResolvesServerCert> = resolver.clone();
        let mut config = builder.with_cert_resolver(certificates);
        config.alpn_protocols.clone_from(&settings.protocols);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::new(Tickets(Arc::clone(&link)));
        config.send_tls13_tickets = TICKETS;
        Ok(Server {
            config: Arc::new(config),
            resolver,
            link,
            verifier,
            certificate_needed: settings.certificate_needed,
        })
    }

    /// Connects to the keeper: see `Link::open`.
    pub fn reach(&self, ours: OwnedFd, theirs: OwnedFd, door: &OwnedFd) -> Result<(), Errno> {
        self.link.open(ours, theirs, door)
    }

    /// The handshake: the session, and what there is to say about it. Afterwards the keeper is out of reach.
    pub fn accept(self, peer: &OwnedFd, deadline: Deadline) -> Result<(Connection, Vec<Fact>), String> {
        let session = ServerConnection::new(self.config).map_err(|e| e.to_string())?;
        let mut tls = Connection::Server(session);
        let done = relay::handshake(&mut tls, peer, deadline);
        self.link.close();
        done?;
        let Connection::Server(session) = &tls else { return Err("not a server".to_owned()) };
        let shown = self.resolver.shown();
        let mut facts = facts::common(session, shown.as_deref(), |key, label| {
            session.export_keying_material(key, label, Some(b""))
        });
        if let Some(name) = session.server_name() {
            facts.push(("TLS_SERVER_NAME", facts::clean(name.as_bytes())));
        }
        // Of a resumed session the certificate was verified when it began, perhaps against other authorities.
        let verified = match (&self.verifier, session.peer_certificates()) {
            (Some(verifier), Some([own, above @ ..])) => {
                let verified = verifier.verify_client_cert(own, above, UnixTime::now()).is_ok();
                facts.extend(facts::client(own, verified));
                verified
            }
            _ => false,
        };
        if self.certificate_needed && !verified {
            return Err("the client's certificate is not valid any more".to_owned());
        }
        Ok((tls, facts::with_old_names(facts)))
    }
}

fn verifier(file: &[u8], provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, Trouble> {
    let roots = authorities(file)?;
    let built = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    built.map_err(|e| Trouble::temporary([b"unable to use ", file, b": ", e.to_string().as_bytes()].concat()))
}

/// The authorities in a file in PEM. What is none is left out, but there is at least one.
pub fn authorities(file: &[u8]) -> Result<RootCertStore, Trouble> {
    let pem = qmail::fd::read_file(file, AUTHORITIES_MAX).map_err(|e| Trouble::unable("read", file, e))?;
    let pem = pem.ok_or_else(|| Trouble::unable("read", file, Errno::ENOENT))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    match roots.is_empty() {
        true => Err(Trouble::temporary([b"no certificate in PEM in ", file].concat())),
        false => Ok(roots),
    }
}

/// Takes any certificate whose key the client has: what it is worth is said afterwards. Many a mail server
/// shows one to everybody who asks.
#[derive(Debug)]
struct Tolerant(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Tolerant {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _own: &CertificateDer<'_>,
        _above: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
