//! message - fd 0: looked at once before it is offered, then read again to be sent
#![forbid(unsafe_code)]

use crate::report::{self, Report};
use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::unistd::{Whence, lseek};
use qmail::fd;
use qmail::smtp::body::Scan;
use std::os::fd::AsFd;

/// One read of the message.
const CHUNK: usize = 64 * 1024;

/// At least.
const CHUNK_MIN: usize = 4096;

/// The message in a file, from where that stands to its end.
#[derive(Debug)]
pub struct Message<F> {
    file: F,
    /// None when it is a pipe, which can be read once only.
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    start: i64,
    scan: Scan,
    /// All of it, where it is small: most are, and need not be read again.
    whole: Option<Vec<u8>>,
}

impl<F: AsFd> Message<F> {
    /// Reads through a seekable message, and refuses one that SMTP cannot carry.
    pub fn open(file: F) -> Result<Message<F>, Report> {
        let start = match lseek(&file, 0, Whence::SeekCur) {
            Ok(start) => start,
            Err(Errno::ESPIPE) => return Ok(Message { file, seen: None }),
            Err(_) => return Err(report::no_message()),
        };
        let (mut scan, mut whole) = (Scan::new(), Some(Vec::new()));
        read_pieces(&file, |piece| {
            scan.put(piece);
            whole = whole.take().filter(|kept| kept.len() + piece.len() <= CHUNK).map(|mut kept| {
                kept.extend_from_slice(piece);
                kept
            });
            Ok(())
        })?;
        if !scan.ends_whole() {
            return Err(report::partial_line());
        }
        Ok(Message { file, seen: Some(Seen { start, scan, whole }) })
    }

    /// What is known of it beforehand.
    pub fn scan(&self) -> Option<Scan> {
        self.seen.as_ref().map(|seen| seen.scan)
    }

    /// Hands all of it over, piece by piece.
    pub fn read(&mut self, mut take: impl FnMut(&[u8]) -> Result<(), Report>) -> Result<(), Report> {
        if let Some(Seen { whole: Some(whole), .. }) = &self.seen {
            return if whole.is_empty() { Ok(()) } else { take(whole) };
        }
        if let Some(seen) = &self.seen {
            lseek(&self.file, seen.start, Whence::SeekSet).map_err(|_| report::no_message())?;
        }
        read_pieces(&self.file, take)
    }
}

fn read_pieces(file: impl AsFd, mut take: impl FnMut(&[u8]) -> Result<(), Report>) -> Result<(), Report> {
    // A small message in little memory. Of a file that says nothing sensible of its size, or grows, the rest comes in chunks.
    let size = fstat(&file).ok().and_then(|found| usize::try_from(found.st_size).ok()).unwrap_or(CHUNK);
    let mut buffer = vec![0; size.saturating_add(1).clamp(CHUNK_MIN, CHUNK)];
    loop {
        match fd::read(&file, &mut buffer).map_err(|_| report::no_message())? {
            0 => return Ok(()),
            n => take(buffer.get(..n).unwrap_or_default())?,
        }
    }
}
