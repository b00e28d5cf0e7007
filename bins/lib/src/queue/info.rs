//! info - `info/S/N`: writing, reading, telling damage in it and in the recipient lists beside it
//!
//! `F` sender NUL, where readers of the old format stop; then the commit record of the message, as it
//! stood in `todo/N`; then `c` and the SHA-256 of what stands before it, of `local/S/N` and of
//! `remote/S/N` (`-` where there is none), separated by spaces, NUL. Recipients count as not done in the
//! hash of a list (`queue::list`), so that delivering changes none. An info file without these records was written
//! by an old qmail-send: there is no list with a tail beside it.
#![forbid(unsafe_code)]

use super::record::{self, Hash, Meter, Record};
use super::rewrite::Way;
use memchr::memchr;

/// A sender, a commit record and three hashes are under 1500 bytes.
pub const INFO_MAX: usize = 4096;

/// What `info/S/N` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub sender: Vec<u8>,
    /// None when an old qmail-queue accepted the message.
    pub commit: Option<Record>,
    /// None when an old qmail-send preprocessed the message.
    pub check: Option<Check>,
}

/// The hashes of the `c` record, and what they say about info itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub local: Option<Hash>,
    pub remote: Option<Hash>,
}

impl Check {
    /// The hash that a list must have; None when the message has no recipients that way.
    pub fn list(&self, way: Way) -> Option<&Hash> {
        match way {
            Way::Local => self.local.as_ref(),
            Way::Remote => self.remote.as_ref(),
        }
    }
}

/// Why an info file cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// No sender record: not even old readers could use it.
    NoSender,
    /// What stands behind the sender is not what was written there.
    Changed,
}

impl Info {
    pub fn parse(bytes: &[u8]) -> Result<Info, Damage> {
        let end = memchr(0, bytes).ok_or(Damage::NoSender)?;
        let sender =
            bytes.get(..end).and_then(|line| line.strip_prefix(b"F")).ok_or(Damage::NoSender)?.to_vec();
        let mut info = Info { sender, commit: None, check: None };
        let mut at = end + 1;
        while at < bytes.len() {
            let rest = bytes.get(at..).unwrap_or_default();
            let length = memchr(0, rest).ok_or(Damage::Changed)?;
            match rest.get(..length).and_then(<[u8]>::split_first) {
                Some((b'p', text)) if info.commit.is_none() && info.check.is_none() => {
                    let (_, commit) = Record::parse(text).ok_or(Damage::Changed)?;
                    info.commit = Some(commit.ok_or(Damage::Changed)?);
                }
                Some((b'c', text)) if info.check.is_none() => {
                    let head = bytes.get(..at).unwrap_or_default();
                    info.check = Some(parse_check(head, text).ok_or(Damage::Changed)?);
                }
                _ => return Err(Damage::Changed),
            }
            at += length + 1;
        }
        // Both were written in one go, and nobody else writes here: one alone is half a file.
        if info.commit.is_some() && info.check.is_none() { Err(Damage::Changed) } else { Ok(info) }
    }
}

fn parse_check(head: &[u8], text: &[u8]) -> Option<Check> {
    let mut words = text.split(|b| *b == b' ');
    if record::unhex(words.next()?)? != hash(head) {
        return None;
    }
    let mut list = || match words.next()? {
        b"-" => Some(None),
        digits => record::unhex(digits).map(Some),
    };
    let check = Check { local: list()?, remote: list()? };
    words.next().is_none().then_some(check)
}

/// The `c` record behind `head` (everything written to info so far), NUL included.
pub fn check_record(head: &[u8], local: Option<&Hash>, remote: Option<&Hash>) -> Vec<u8> {
    let word = |list: Option<&Hash>| list.map_or_else(|| "-".to_string(), record::hex);
    format!("c{} {} {}\0", record::hex(&hash(head)), word(local), word(remote)).into_bytes()
}

fn hash(bytes: &[u8]) -> Hash {
    let mut meter = Meter::new();
    meter.update(bytes);
    meter.finish().1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pieces: &[&[u8]]) -> Option<Hash> {
        let mut meter = crate::queue::list::ListMeter::default();
        pieces.iter().for_each(|piece| meter.update(piece));
        meter.finish()
    }

    fn sample() -> Vec<u8> {
        let commit = Record { length: 3, message: [1; 32], envelope: [2; 32] };
        let mut info = [b"Fjoe@x\0".to_vec(), commit.encode(77)].concat();
        let check = check_record(&info, list(&[b"Ta@b\0"]).as_ref(), None);
        info.extend_from_slice(&check);
        info
    }

    #[test]
    fn what_was_written_is_read_back() {
        let info = Info::parse(&sample()).unwrap();
        assert_eq!(info.sender, b"joe@x");
        assert_eq!(info.commit.unwrap().length, 3);
        let check = info.check.unwrap();
        assert_eq!(check.list(Way::Local), list(&[b"Ta@b\0"]).as_ref());
        assert_eq!(check.list(Way::Remote), None);
        assert!(sample().len() < 500);
    }

    #[test]
    fn an_old_info_file_is_a_sender_and_nothing_else() {
        assert_eq!(Info::parse(b"F\0"), Ok(Info { sender: vec![], commit: None, check: None }));
        for bad in [b"".as_slice(), b"F", b"Fjoe", b"Xjoe\0", b"\0"] {
            assert_eq!(Info::parse(bad), Err(Damage::NoSender));
        }
    }

    #[test]
    fn any_flipped_bit_or_missing_end_is_noticed() {
        let whole = sample();
        let sender_end = whole.iter().position(|b| *b == 0).unwrap() + 1;
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                let as_list = |bytes: &[u8]| Info::parse(bytes).map(|i| i.check.and_then(|c| c.local));
                // A changed list hash parses, and then does not match the list.
                assert_ne!(as_list(&flipped), as_list(&whole), "byte {at} bit {bit}");
            }
        }
        for length in 0..whole.len() {
            assert!(length == sender_end || Info::parse(&whole[..length]).is_err(), "cut at {length}");
        }
    }
}
