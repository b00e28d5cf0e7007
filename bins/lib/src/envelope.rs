//! envelope - who sent a message and who is to get it, as `qmail-queue` reads it
//!
//! `F` sender NUL, then `T` recipient NUL for each, then one more NUL. Addresses are opaque bytes.
#![forbid(unsafe_code)]

use nix::errno::Errno;

use crate::timed::{Line, Reader};
use std::os::fd::AsFd;

/// Bytes of one address. Documented as 1000, enforced as 1002 for twenty-five years: accept the larger.
pub const ADDRESS_MAX: usize = 1002;

/// Sender and recipients of one message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Envelope {
    pub sender: Vec<u8>,
    pub recipients: Vec<Vec<u8>>,
}

impl Envelope {
    pub fn new(sender: impl Into<Vec<u8>>, recipients: Vec<Vec<u8>>) -> Envelope {
        Envelope { sender: sender.into(), recipients }
    }

    /// The bytes for descriptor 1 of `qmail-queue`, final NUL included.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = record(b'F', &self.sender);
        for recipient in &self.recipients {
            out.extend_from_slice(&record(b'T', recipient));
        }
        out.push(0);
        out
    }
}

/// One record: letter, bytes, NUL. An address cannot carry a NUL; what stands before it is kept.
pub fn record(letter: u8, address: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(address.len() + 2);
    out.push(letter);
    out.extend_from_slice(address.split(|b| *b == 0).next().unwrap_or_default());
    out.push(0);
    out
}

/// What a look for the next part of an envelope found.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    Sender(Vec<u8>),
    Recipient(Vec<u8>),
    /// The final NUL: the envelope is whole.
    Complete,
    /// An address longer than `ADDRESS_MAX`.
    TooLong,
    /// A record that is not where it belongs, or of an unknown letter.
    Bad,
    /// The input ended before the final NUL: the caller gave up.
    Broken,
}

/// Reads the next part; `first` says that the sender is due.
pub fn next(input: &mut Reader<impl AsFd>, first: bool) -> Result<Part, Errno> {
    Ok(match input.line(0, ADDRESS_MAX + 1)? {
        Line::TooLong => Part::TooLong,
        Line::End(_) => Part::Broken,
        Line::Whole(line) => classify(&line, first),
    })
}

fn classify(line: &[u8], first: bool) -> Part {
    match (line.split_first(), first) {
        (Some((b'F', sender)), true) => Part::Sender(sender.to_vec()),
        (Some((b'T', recipient)), false) => Part::Recipient(recipient.to_vec()),
        (None, false) => Part::Complete,
        _ => Part::Bad,
    }
}

/// The domain of an address, after its last `@`; None when there is none.
pub fn domain(address: &[u8]) -> Option<&[u8]> {
    memchr::memrchr(b'@', address).and_then(|at| address.get(at + 1..))
}

/// Local part and domain, split at the last `@`.
pub fn split(address: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memrchr(b'@', address)?;
    Some((address.get(..at)?, address.get(at + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_is_encoded_as_qmail_queue_reads_it() {
        let e = Envelope::new(*b"s@h.com", vec![b"a@x".to_vec(), b"b@y".to_vec()]);
        assert_eq!(e.encode(), b"Fs@h.com\0Ta@x\0Tb@y\0\0");
        assert_eq!(Envelope::default().encode(), b"F\0\0");
    }

    #[test]
    fn parts_must_come_in_their_order() {
        assert_eq!(classify(b"Fx", true), Part::Sender(b"x".to_vec()));
        assert_eq!(classify(b"Fx", false), Part::Bad);
        assert_eq!(classify(b"Tx", true), Part::Bad);
        assert_eq!(classify(b"", true), Part::Bad);
        assert_eq!(classify(b"", false), Part::Complete);
        assert_eq!(classify(b"Xx", false), Part::Bad);
    }
}
