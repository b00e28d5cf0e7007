//! message - fd 0: looked at once before it is offered, then read again to be sent
#![forbid(unsafe_code)]

use crate::report::{self, Report};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use qmail::fd;
use qmail::smtp::body::Scan;
use std::os::fd::AsFd;

/// One read of the message.
const CHUNK: usize = 64 * 1024;

/// The message in a file, from where that stands to its end.
#[derive(Debug)]
pub struct Message<F> {
    file: F,
    /// None when it is a pipe, which can be read once only.
    seen: Option<(i64, Scan)>,
}

impl<F: AsFd> Message<F> {
    /// Reads through a seekable message, and refuses one that SMTP cannot carry.
    pub fn open(file: F) -> Result<Message<F>, Report> {
        let start = match lseek(&file, 0, Whence::SeekCur) {
            Ok(start) => start,
            Err(Errno::ESPIPE) => return Ok(Message { file, seen: None }),
            Err(_) => return Err(report::no_message()),
        };
        let mut scan = Scan::new();
        read_pieces(&file, |piece| {
            scan.put(piece);
            Ok(())
        })?;
        if !scan.ends_whole() {
            return Err(report::partial_line());
        }
        Ok(Message { file, seen: Some((start, scan)) })
    }

    /// What is known of it beforehand.
    pub fn scan(&self) -> Option<Scan> {
        self.seen.map(|(_, scan)| scan)
    }

    /// Hands all of it over, piece by piece.
    pub fn read(&mut self, take: impl FnMut(&[u8]) -> Result<(), Report>) -> Result<(), Report> {
        if let Some((start, _)) = self.seen {
            lseek(&self.file, start, Whence::SeekSet).map_err(|_| report::no_message())?;
        }
        read_pieces(&self.file, take)
    }
}

fn read_pieces(file: impl AsFd, mut take: impl FnMut(&[u8]) -> Result<(), Report>) -> Result<(), Report> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match fd::read(&file, &mut buffer).map_err(|_| report::no_message())? {
            0 => return Ok(()),
            n => take(buffer.get(..n).unwrap_or_default())?,
        }
    }
}
