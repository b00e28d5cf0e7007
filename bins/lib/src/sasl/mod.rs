//! sasl - who is there: the mechanisms of SMTP AUTH, POP3 AUTH and a client that has to log in
//!
//! `server` asks, `client` answers: state machines fed with what the other side said, base64 taken off, that
//! give what to say next. They do no I/O, draw no random numbers and read no passwords from anywhere.
//! `scram` has messages and keys of SCRAM, `digest` HMAC, PBKDF2 and MD5, `prep` the preparation of names and
//! passwords (RFC 4013, in part), `words` what an administrator wants of it. RFC 4422, 4616, 2195, 5802, 7677, 9266.
#![forbid(unsafe_code)]

pub mod client;
pub mod digest;
pub mod prep;
pub mod scram;
pub mod server;
pub mod words;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What stands on one line behind a verb, a code or a `+`, in base64 (rfc4954:4 asks for 12,288 octets).
pub const LINE_MAX: usize = 12_288;

/// Random bytes in a nonce or challenge of ours: nobody meets the same twice.
pub const NONCE_BYTES: usize = 18;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mechanism {
    Login,
    Plain,
    CramMd5,
    ScramSha256,
    ScramSha256Plus,
    External,
}

/// Every mechanism there is, the one to prefer last.
pub const MECHANISMS: [Mechanism; 6] = [
    Mechanism::Login,
    Mechanism::Plain,
    Mechanism::CramMd5,
    Mechanism::ScramSha256,
    Mechanism::ScramSha256Plus,
    Mechanism::External,
];

impl Mechanism {
    pub const fn name(self) -> &'static str {
        match self {
            Mechanism::Login => "LOGIN",
            Mechanism::Plain => "PLAIN",
            Mechanism::CramMd5 => "CRAM-MD5",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
            Mechanism::External => "EXTERNAL",
        }
    }

    /// By its name in any case.
    pub fn of(name: &[u8]) -> Option<Mechanism> {
        MECHANISMS.into_iter().find(|mechanism| mechanism.name().as_bytes().eq_ignore_ascii_case(name))
    }

    /// Whoever listens has the password.
    pub const fn tells_password(self) -> bool {
        matches!(self, Mechanism::Login | Mechanism::Plain)
    }

    pub const fn is_scram(self) -> bool {
        matches!(self, Mechanism::ScramSha256 | Mechanism::ScramSha256Plus)
    }
}

/// What ties a login to the TLS session it is in (RFC 5056).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Binding {
    /// `tls-exporter` (RFC 9266).
    pub exporter: Option<Vec<u8>>,
    /// `tls-server-end-point` (RFC 5929).
    pub end_point: Option<Vec<u8>>,
}

impl Binding {
    /// From the values of TLS_EXPORTER and TLS_SERVER_END_POINT, hexadecimal; what is not is not there.
    pub fn from_hex(exporter: Option<&[u8]>, end_point: Option<&[u8]>) -> Binding {
        Binding { exporter: exporter.and_then(unhex), end_point: end_point.and_then(unhex) }
    }

    pub fn is_empty(&self) -> bool {
        self.exporter.is_none() && self.end_point.is_none()
    }

    /// The data of a type of binding.
    pub fn of(&self, name: &[u8]) -> Option<&[u8]> {
        match name {
            b"tls-exporter" => self.exporter.as_deref(),
            b"tls-server-end-point" => self.end_point.as_deref(),
            _ => None,
        }
    }

    /// What a client should use.
    pub fn best(&self) -> Option<(&'static str, &[u8])> {
        let exporter = self.exporter.as_deref().map(|data| ("tls-exporter", data));
        exporter.or_else(|| self.end_point.as_deref().map(|data| ("tls-server-end-point", data)))
    }
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    if text.is_empty() || !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    text.chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> Vec<u8> {
    let digit = |n: u8| char::from_digit(u32::from(n), 16).map_or(b'0', |c| c as u8);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

/// Standard base64 with its padding, on one line.
pub fn encode(bytes: &[u8]) -> Vec<u8> {
    STANDARD.encode(bytes).into_bytes()
}

/// None for anything but standard base64 with its padding (rfc4954:4: no other character, no line ends).
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Compares in a time that does not tell where the first difference is; that the lengths differ it may tell.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y));
    a.len() == b.len() && std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mechanisms_are_found_by_name_in_any_case() {
        for mechanism in MECHANISMS {
            assert_eq!(Mechanism::of(mechanism.name().to_lowercase().as_bytes()), Some(mechanism));
        }
        assert_eq!(Mechanism::of(b"SCRAM-SHA-1"), None);
        assert_eq!(Mechanism::of(b""), None);
    }

    #[test]
    fn base64_is_strict() {
        assert_eq!(decode(b"AHRlc3QAdGVzdDEyMzQ=").as_deref(), Some(b"\0test\0test1234".as_slice()));
        assert_eq!(encode(b"Username:"), b"VXNlcm5hbWU6");
        assert_eq!(decode(b"").as_deref(), Some(b"".as_slice()));
        for bad in [
            b"AHRl=".as_slice(),
            b"AHRlc3Q",
            b"AH Rl",
            b"AHRl\r",
            b"=",
            b"*",
            b"AHRlc3R=",
            b"\xff\xff\xff\xff",
        ] {
            assert_eq!(decode(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn binding_data_comes_in_hexadecimal() {
        let binding = Binding::from_hex(Some(b"00ffA0"), Some(b"zz"));
        assert_eq!(binding.of(b"tls-exporter"), Some([0, 255, 160].as_slice()));
        assert_eq!(binding.of(b"tls-server-end-point"), None);
        assert_eq!(binding.of(b"tls-unique"), None);
        assert_eq!(binding.best(), Some(("tls-exporter", [0, 255, 160].as_slice())));
        assert!(Binding::from_hex(Some(b""), Some(b"abc")).is_empty());
        assert_eq!(hex(&[0, 255, 160]), b"00ffa0");
    }

    #[test]
    fn only_equal_is_equal() {
        assert!(equal(b"abc", b"abc"));
        assert!(!equal(b"abc", b"abd") && !equal(b"abc", b"ab") && !equal(b"", b"a"));
        assert!(equal(b"", b""));
    }
}
