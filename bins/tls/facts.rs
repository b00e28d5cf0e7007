//! facts - what a program is told about its TLS session: variables, and their way over SSLCTLFD
#![forbid(unsafe_code)]

use crate::certificate::{Certificate, fingerprint, hex};
use rustls::{CommonState, HandshakeKind, ProtocolVersion};

/// A variable. A value has no NUL.
pub type Fact = (&'static str, Vec<u8>);

/// Where a program finds its ends of UCSPI-TLS.
pub const CONTROL_FD: &str = "SSLCTLFD";
pub const READ_FD: &str = "SSLREADFD";
pub const WRITE_FD: &str = "SSLWRITEFD";

/// rfc9266:2
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";
const EXPORTER_LENGTH: usize = 32;

/// Longer subjects are cut; no certificate authority makes them.
const SUBJECT_MAX: usize = 1000;

/// A list of facts is never longer.
pub const LIST_MAX: usize = 16 * 1024;

pub fn protocol(state: &CommonState) -> &'static str {
    match state.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "unknown",
    }
}

/// The name in the registry of IANA.
pub fn cipher(state: &CommonState) -> String {
    let name = state.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown");
    name.replacen("TLS13_", "TLS_", 1)
}

pub fn is_resumed(state: &CommonState) -> bool {
    state.handshake_kind() == Some(HandshakeKind::Resumed)
}

/// What is true of both sides: version, cipher, and what a login can be bound to. `server` is the certificate
/// that the server has shown, and `export` gives keying material.
pub fn common<E>(
    state: &CommonState,
    server: Option<&[u8]>,
    export: impl FnOnce([u8; EXPORTER_LENGTH], &[u8]) -> Result<[u8; EXPORTER_LENGTH], E>,
) -> Vec<Fact> {
    let mut facts = vec![
        ("TLS_PROTOCOL", protocol(state).as_bytes().to_vec()),
        ("TLS_CIPHER", cipher(state).into_bytes()),
    ];
    if let Some(alpn) = state.alpn_protocol() {
        facts.push(("TLS_ALPN", clean(alpn)));
    }
    // With TLS 1.2 only where the session has the extended master secret (rfc9266:2), and rustls does not say.
    if state.protocol_version() == Some(ProtocolVersion::TLSv1_3)
        && let Ok(key) = export([0; EXPORTER_LENGTH], EXPORTER_LABEL)
    {
        facts.push(("TLS_EXPORTER", hex(&key)));
    }
    let end_point = server.and_then(|der| Certificate::parse(der)?.end_point(der));
    facts.extend(end_point.map(|hash| ("TLS_SERVER_END_POINT", hex(&hash))));
    facts
}

/// What the peer's certificate says. Only its fingerprint can be believed of one that nobody vouches for: the
/// peer has its key.
pub fn client(der: &[u8], verified: bool) -> Vec<Fact> {
    let mut facts = vec![("TLS_CLIENT_FINGERPRINT", fingerprint(der))];
    let Some(certificate) = Certificate::parse(der).filter(|_| verified) else { return facts };
    facts.push(("TLS_CLIENT_VERIFIED", b"1".to_vec()));
    let mut subject = certificate.subject_text();
    subject.truncate(SUBJECT_MAX);
    facts.push(("TLS_CLIENT_SUBJECT", clean(&subject)));
    facts.extend(certificate.email().map(|email| ("TLS_CLIENT_EMAIL", email.to_vec())));
    facts.extend(certificate.dns().map(|name| ("TLS_CLIENT_DNS", name.to_vec())));
    facts
}

/// The same again for older run scripts.
pub fn with_old_names(mut facts: Vec<Fact>) -> Vec<Fact> {
    let old = [
        ("TLS_PROTOCOL", "SSL_PROTOCOL"),
        ("TLS_CIPHER", "SSL_CIPHER"),
        ("TLS_SERVER_NAME", "SSL_TLS_SNI_HOSTNAME"),
    ];
    for (new, old) in old {
        let value = facts.iter().find(|(name, _)| *name == new).map(|(_, value)| value.clone());
        facts.extend(value.map(|value| (old, value)));
    }
    facts
}

/// Without what ends a line, a value or a list.
pub fn clean(text: &[u8]) -> Vec<u8> {
    text.iter().map(|b| if b.is_ascii_control() { b'?' } else { *b }).collect()
}

/// `NAME=value\0` for each.
pub fn encode(facts: &[Fact]) -> Vec<u8> {
    let one = |(name, value): &Fact| [name.as_bytes(), b"=", value, b"\0"].concat();
    facts.iter().flat_map(one).collect()
}

/// The names and values of such a list. What has no `=` is left out.
pub fn parse(list: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    list.split(|b| *b == 0).filter_map(|entry| {
        let at = entry.iter().position(|b| *b == b'=')?;
        Some((entry.get(..at)?, entry.get(at + 1..)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_back_as_they_went() {
        let facts =
            with_old_names(vec![("TLS_PROTOCOL", b"TLSv1.3".to_vec()), ("TLS_CIPHER", b"a=b".to_vec())]);
        let list = encode(&facts);
        let found: Vec<_> = parse(&list).collect();
        assert_eq!(found.len(), 4);
        assert_eq!(found.get(1), Some(&(b"TLS_CIPHER".as_slice(), b"a=b".as_slice())));
        assert_eq!(found.get(2), Some(&(b"SSL_PROTOCOL".as_slice(), b"TLSv1.3".as_slice())));
    }

    #[test]
    fn a_certificate_nobody_vouches_for_has_a_fingerprint_only() {
        let names: Vec<_> = client(b"no certificate", false).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["TLS_CLIENT_FINGERPRINT"]);
    }
}
