//! todo - the records of `todo/N`: who queued a message, from whom, to whom
//!
//! `u` uid, `p` pid, `F` sender, `T` recipients, and as the last one the commit record. Behind the pid stand a
//! space and `+` (old readers stop at the space) when there is a commit record to come: an envelope that was cut
//! off behind a recipient is not taken for one of an old qmail-queue.
#![forbid(unsafe_code)]

use super::record::Record as Commit;
use crate::decimal;
use crate::envelope::ADDRESS_MAX;
use crate::timed::{Line, Reader};
use nix::errno::Errno;
use std::os::fd::AsFd;

/// What follows the pid when a commit record is to come.
const SEALED: &[u8] = b" +";

/// The head of an envelope that will end in a commit record.
pub fn head(uid: impl std::fmt::Display, pid: impl std::fmt::Display) -> Vec<u8> {
    format!("u{uid}\0p{pid} +\0").into_bytes()
}

/// One record of a todo file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Uid(u64),
    Pid {
        pid: u64,
        sealed: bool,
    },
    Sender(Vec<u8>),
    Recipient(Vec<u8>),
    Commit(Commit),
    /// An unknown letter, a damaged commit record, a record too long, or one cut off.
    Bad,
}

impl Record {
    /// Reads one record (without its NUL).
    pub fn parse(line: &[u8]) -> Record {
        match line.split_first() {
            Some((b'u', uid)) => Record::Uid(decimal::prefix(uid).unwrap_or(0)),
            Some((b'F', sender)) => Record::Sender(sender.to_vec()),
            Some((b'T', recipient)) => Record::Recipient(recipient.to_vec()),
            Some((b'p', text)) if text.ends_with(SEALED) => {
                Record::Pid { pid: decimal::prefix(text).unwrap_or(0), sealed: true }
            }
            Some((b'p', text)) => match Commit::parse(text) {
                Some((pid, None)) => Record::Pid { pid, sealed: false },
                Some((_, Some(commit))) => Record::Commit(commit),
                None => Record::Bad,
            },
            _ => Record::Bad,
        }
    }
}

/// The next record; None at the end of the file.
pub fn next(file: &mut Reader<impl AsFd>) -> Result<Option<Record>, Errno> {
    Ok(match file.line(0, ADDRESS_MAX + 1)? {
        Line::Whole(line) => Some(Record::parse(&line)),
        Line::End(rest) if rest.is_empty() => None,
        Line::End(_) | Line::TooLong => Some(Record::Bad),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_told_by_their_letter() {
        assert_eq!(Record::parse(b"u1000"), Record::Uid(1000));
        assert_eq!(Record::parse(b"p4321"), Record::Pid { pid: 4321, sealed: false });
        assert_eq!(Record::parse(b"p4321 +"), Record::Pid { pid: 4321, sealed: true });
        assert_eq!(Record::parse(b"p4321 -"), Record::Bad);
        assert_eq!(head(7, 4321), b"u7\0p4321 +\0");
        assert_eq!(Record::parse(b"F"), Record::Sender(Vec::new()));
        assert_eq!(Record::parse(b"Tf@g"), Record::Recipient(b"f@g".to_vec()));
        assert_eq!(Record::parse(b"p1 x"), Record::Bad);
        assert_eq!(Record::parse(b""), Record::Bad);
        assert_eq!(Record::parse(b"Xy"), Record::Bad);
    }
}
