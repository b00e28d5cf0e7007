//! saslauthd - the packets of saslauthd(8): four strings out, one back, each behind its length of two bytes
#![forbid(unsafe_code)]

use crate::daemon::Outcome;

/// Bytes of an answer: a word, and what is said about it.
pub const ANSWER_MAX: usize = 1024;

/// The question; None when a string is too long, or has a NUL, which the other side would take for its end.
pub fn question(name: &[u8], password: &[u8], service: &[u8], realm: &[u8]) -> Option<Vec<u8>> {
    let strings = [name, password, service, realm];
    let length = strings.iter().map(|string| string.len() + 2).sum();
    let mut out = Vec::with_capacity(length); // moved, it would leave copies behind
    for string in strings {
        if string.contains(&0) {
            return None;
        }
        out.extend_from_slice(&u16::try_from(string.len()).ok()?.to_be_bytes());
        out.extend_from_slice(string);
    }
    Some(out)
}

/// What an answer says; None as long as it is not there whole.
pub fn answer(packet: &[u8], name: &[u8]) -> Option<Outcome> {
    let (length, text) = packet.split_first_chunk()?;
    let length = usize::from(u16::from_be_bytes(*length));
    if length > ANSWER_MAX {
        return Some(Outcome::Trouble("its answer is too long"));
    }
    let text = text.get(..length)?;
    Some(match text.get(..2) {
        Some(b"OK") => Outcome::Accepted(name.to_vec()),
        Some(b"NO") => Outcome::Refused,
        _ => Outcome::Trouble("its answer is neither yes nor no"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_counted() {
        let packet = question(b"joe", b"pencil", b"smtp", b"").unwrap();
        assert_eq!(packet, b"\0\x03joe\0\x06pencil\0\x04smtp\0\0");
        assert_eq!(question(b"joe", &[b'x'; 65_536], b"", b""), None);
        assert_eq!(question(b"j\0e", b"x", b"", b""), None);
    }

    #[test]
    fn an_answer_is_yes_or_no() {
        let of = |packet: &[u8]| answer(packet, b"joe");
        assert_eq!(of(b"\0\x02OK"), Some(Outcome::Accepted(b"joe".to_vec())));
        assert_eq!(of(b"\0\x18NO authentication failed"), Some(Outcome::Refused));
        assert_eq!((of(b""), of(b"\0"), of(b"\0\x03OK")), (None, None, None));
        for wrong in [b"\0\0".as_slice(), b"\0\x01O", b"\0\x02no", b"\xff\xff"] {
            assert!(matches!(of(wrong), Some(Outcome::Trouble(_))), "{wrong:?}");
        }
    }
}
