//! message - fd 0: looked at once before it is offered, then read again to be sent
#![forbid(unsafe_code)]

use crate::report::{self, Report};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use qmail::fd;
use qmail::smtp::body::Scan;

/// One read of the message.
const CHUNK: usize = 64 * 1024;

/// The message on fd 0, from where it stands to its end.
#[derive(Debug)]
pub struct Message {
    /// None when fd 0 is a pipe, which can be read once only.
    seen: Option<(i64, Scan)>,
}

impl Message {
    /// Reads through a seekable message, and refuses one that SMTP cannot carry.
    pub fn open() -> Result<Message, Report> {
        let start = match lseek(fd::IN, 0, Whence::SeekCur) {
            Ok(start) => start,
            Err(Errno::ESPIPE) => return Ok(Message { seen: None }),
            Err(_) => return Err(report::no_message()),
        };
        let mut scan = Scan::new();
        read_pieces(|piece| {
            scan.put(piece);
            Ok(())
        })?;
        if !scan.ends_whole() {
            return Err(report::partial_line());
        }
        Ok(Message { seen: Some((start, scan)) })
    }

    /// What is known of it beforehand.
    pub fn scan(&self) -> Option<Scan> {
        self.seen.map(|(_, scan)| scan)
    }

    /// Hands all of it over, piece by piece.
    pub fn read(&mut self, take: impl FnMut(&[u8]) -> Result<(), Report>) -> Result<(), Report> {
        if let Some((start, _)) = self.seen {
            lseek(fd::IN, start, Whence::SeekSet).map_err(|_| report::no_message())?;
        }
        read_pieces(take)
    }
}

fn read_pieces(mut take: impl FnMut(&[u8]) -> Result<(), Report>) -> Result<(), Report> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match fd::read(fd::IN, &mut buffer).map_err(|_| report::no_message())? {
            0 => return Ok(()),
            n => take(buffer.get(..n).unwrap_or_default())?,
        }
    }
}
