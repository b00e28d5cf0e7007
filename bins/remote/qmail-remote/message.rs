//! message - fd 0: looked at once before it is offered, then read again to be sent
#![forbid(unsafe_code)]

use crate::report::{self, Report};
use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::unistd::{Whence, lseek};
use qmail::fd;
use qmail::requiretls::{Look, Wish};
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
    wish: Wish,
    /// None when it is a pipe, which can be read once only.
    seen: Option<Seen>,
    /// What had to be read of a pipe to know its header.
    begun: Vec<u8>,
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
            Err(Errno::ESPIPE) => return Message::of_pipe(file),
            Err(_) => return Err(report::no_message()),
        };
        let (mut scan, mut look, mut whole) = (Scan::new(), Look::default(), Some(Vec::new()));
        read_pieces(&file, |piece| {
            scan.put(piece);
            look.put(piece);
            whole = whole.take().filter(|kept| kept.len() + piece.len() <= CHUNK).map(|mut kept| {
                kept.extend_from_slice(piece);
                kept
            });
            Ok(())
        })?;
        if !scan.ends_whole() {
            return Err(report::partial_line());
        }
        Ok(Message { file, wish: look.wish(), seen: Some(Seen { start, scan, whole }), begun: Vec::new() })
    }

    /// Of a pipe the header is read before anything is offered: it may say that it must not be.
    fn of_pipe(file: F) -> Result<Message<F>, Report> {
        let (mut look, mut begun, mut piece) = (Look::default(), Vec::new(), vec![0; CHUNK_MIN]);
        while !look.is_over() {
            let n = fd::read(&file, &mut piece).map_err(|_| report::no_message())?;
            if n == 0 {
                break;
            }
            let piece = piece.get(..n).unwrap_or_default();
            look.put(piece);
            begun.extend_from_slice(piece);
        }
        Ok(Message { file, wish: look.wish(), seen: None, begun })
    }

    /// What its header asks for.
    pub fn wish(&self) -> Wish {
        self.wish
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
        if !self.begun.is_empty() {
            take(&std::mem::take(&mut self.begun))?;
        }
        if let Some(seen) = &self.seen {
            lseek(&self.file, seen.start, Whence::SeekSet).map_err(|_| report::no_message())?;
        }
        read_pieces(&self.file, take)
    }
}

fn read_pieces(file: impl AsFd, mut take: impl FnMut(&[u8]) -> Result<(), Report>) -> Result<(), Report> {
    // A small message in little memory. Of a file that says nothing sensible of its size, or grows, the rest comes in
    // chunks.
    let size = fstat(&file).ok().and_then(|found| usize::try_from(found.st_size).ok()).unwrap_or(CHUNK);
    let mut buffer = vec![0; size.saturating_add(1).clamp(CHUNK_MIN, CHUNK)];
    loop {
        match fd::read(&file, &mut buffer).map_err(|_| report::no_message())? {
            0 => return Ok(()),
            n => take(buffer.get(..n).unwrap_or_default())?,
        }
    }
}
