//! connection - answers to the client: collected, each sent at once
#![forbid(unsafe_code)]

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, getsockopt, send, setsockopt, sockopt};
use qmail::fd;
use qmail::timed::{self, Deadline, Sink};

/// Answers are sent in pieces of about this size.
const BUFFER: usize = 64 * 1024;

/// A client that does not take that much in this time is gone.
const WRITE_SECONDS: u64 = 300;

pub struct Answers<O = Client> {
    buffer: Vec<u8>,
    client: O,
}

impl Default for Answers {
    fn default() -> Answers {
        Answers::to(Client::default())
    }
}

impl<O: Sink> Answers<O> {
    pub fn to(client: O) -> Answers<O> {
        Answers { buffer: Vec::new(), client }
    }

    /// `+OK TEXT`; without a text the space stays, as it always was.
    pub fn ok(&mut self, text: &str) -> Result<(), Errno> {
        self.put(format!("+OK {text}\r\n").as_bytes())
    }

    pub fn err(&mut self, text: &str) -> Result<(), Errno> {
        self.put(format!("-ERR {text}\r\n").as_bytes())
    }

    /// Part of an answer.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Sends what there is.
    pub fn flush(&mut self) -> Result<(), Errno> {
        let all = std::mem::take(&mut self.buffer);
        all.chunks(BUFFER)
            .try_for_each(|piece| self.client.write_all(piece, Deadline::seconds(WRITE_SECONDS)))
    }
}

/// The client's side of fd 1.
pub struct Client {
    is_socket: bool,
}

impl Default for Client {
    /// An answer goes out in one write, so waiting for more to put in the packet would only delay it.
    fn default() -> Client {
        let is_socket = getsockopt(&fd::OUT, sockopt::SockType).is_ok();
        if is_socket {
            let _ = setsockopt(&fd::OUT, sockopt::TcpNoDelay, &true); // not TCP: no matter
        }
        Client { is_socket }
    }
}

impl Sink for Client {
    fn write_all(&self, mut piece: &[u8], deadline: Deadline) -> Result<(), Errno> {
        if !self.is_socket {
            return timed::write_all(fd::OUT, piece, deadline);
        }
        while !piece.is_empty() {
            timed::wait(fd::OUT, PollFlags::POLLOUT, deadline)?;
            match send(fd::OUT.0, piece, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(n) => piece = piece.get(n..).unwrap_or_default(),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                // It was a socket before TLS took its place.
                Err(Errno::ENOTSOCK) => return timed::write_all(fd::OUT, piece, deadline),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}
