//! record - the commit record: what a message was when it was accepted
//!
//! `p` PID, a space, length of mess, SHA-256 of mess, SHA-256 of the envelope, NUL - as the last record
//! of `todo/N`, and again in `info/N` behind the sender. Readers of the old format take it for the pid
//! once more. After a power cut it tells whether the files of one number belong to one message.
#![forbid(unsafe_code)]

use crate::decimal;
use sha2::{Digest, Sha256};

/// A SHA-256 value.
pub type Hash = [u8; 32];

/// Length and hash of bytes that pass by.
#[derive(Clone, Default)]
pub struct Meter {
    length: u64,
    hash: Sha256,
}

impl Meter {
    pub fn new() -> Meter {
        Meter::default()
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.length = self.length.saturating_add(bytes.len() as u64);
        self.hash.update(bytes);
    }

    /// Bytes seen and their hash.
    pub fn finish(self) -> (u64, Hash) {
        (self.length, self.hash.finalize().into())
    }
}

/// What was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Bytes of `mess/N`, our Received line included.
    pub length: u64,
    /// SHA-256 of `mess/N`.
    pub message: Hash,
    /// SHA-256 of the records `F…\0T…\0…` as they stand in `todo/N`.
    pub envelope: Hash,
}

impl Record {
    /// The whole `p` record, NUL included; under 200 bytes.
    pub fn encode(&self, pid: u64) -> Vec<u8> {
        format!("p{pid} {} {} {}\0", self.length, hex(&self.message), hex(&self.envelope)).into_bytes()
    }

    /// Reads what stands behind the `p` (without the NUL): the pid, and the record if it has one.
    /// None when a space is there and what follows is not a record: damaged.
    pub fn parse(text: &[u8]) -> Option<(u64, Option<Record>)> {
        let mut words = text.split(|b| *b == b' ');
        let pid = decimal::prefix(words.next()?).unwrap_or(0);
        let Some(length) = words.next() else { return Some((pid, None)) };
        let record = Record {
            length: decimal::strict(length)?,
            message: unhex(words.next()?)?,
            envelope: unhex(words.next()?)?,
        };
        words.next().is_none().then_some((pid, Some(record)))
    }

    /// Whether this is the message that was accepted.
    pub fn matches_message(&self, length: u64, message: &Hash) -> bool {
        self.length == length && self.message == *message
    }
}

/// Whether this address ends in a whole record: the NUL between them was damaged.
pub fn is_swallowed_by(address: &[u8]) -> bool {
    let mut starts = memchr::memchr_iter(b'p', address);
    starts.any(|at| matches!(Record::parse(address.get(at + 1..).unwrap_or_default()), Some((_, Some(_)))))
}

/// Lower-case hexadecimal.
pub fn hex(hash: &Hash) -> String {
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

/// The value of 64 lower-case hexadecimal digits.
pub fn unhex(text: &[u8]) -> Option<Hash> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut hash = [0u8; 32];
    if text.len() != 64 {
        return None;
    }
    for (slot, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *slot = (digit(*high)? << 4) | digit(*low)?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Record {
        let mut meter = Meter::new();
        meter.update(b"abc");
        let (length, message) = meter.finish();
        Record { length, message, envelope: [7; 32] }
    }

    #[test]
    fn a_record_survives_writing_and_reading() {
        let bytes = sample().encode(4321);
        assert!(bytes.len() < 200 && bytes.ends_with(b"\0") && bytes.starts_with(b"p4321 3 ba7816bf"));
        let parsed = Record::parse(&bytes[1..bytes.len() - 1]);
        assert_eq!(parsed, Some((4321, Some(sample()))));
    }

    #[test]
    fn a_record_is_found_at_the_end_of_an_address_that_swallowed_it() {
        let record = sample().encode(4321);
        let record = &record[..record.len() - 1];
        assert!(is_swallowed_by(&[b"pop@example.org ", record].concat()));
        assert!(!is_swallowed_by(b"pop@example.org p4321"));
        assert!(!is_swallowed_by(&[record, b"x"].concat()));
    }

    #[test]
    fn an_old_pid_has_no_record_and_a_damaged_record_is_refused() {
        assert_eq!(Record::parse(b"4321"), Some((4321, None)));
        assert_eq!(Record::parse(b"4321 3 abc"), None);
        let bytes = sample().encode(1);
        assert_eq!(Record::parse(&bytes[1..bytes.len() - 2]), None);
        assert_eq!(Record::parse(&[&bytes[1..bytes.len() - 1], b" x"].concat()), None);
    }
}
