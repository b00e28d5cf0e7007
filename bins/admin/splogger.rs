//! splogger - pass lines on to syslog, each with a precise time
//!
//! called by  qmail-start, as its logger       runs as  qmaill
//! arguments  [tag [facility]]: a word, default splogger; a number, default 2 (mail)
//! fd 0       lines
//! exit       0 at the end of the input
//! jail       no file, no network but sockets of this machine (/dev/log), no exec
//!
//! `alert:` and `warning:` at the beginning of a line set its priority. While nobody listens at the
//! socket lines are lost: whoever logs must not wait for its log.
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, send};
use qmail::program::{self, Args};
use qmail::timed::{self, Deadline, Reader};
use qmail::trouble::{Trouble, errno};
use qmail::{decimal, fd};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SOCKET: &str = "/dev/log";

/// A longer line is continued in a message of its own; some syslogs cut at 1024 bytes.
const PIECE_MAX: usize = 799;

/// A syslog that takes nothing for so long loses the line.
const SEND_TIME: Duration = Duration::from_secs(5);

/// LOG_MAIL, before it is shifted to its place.
const MAIL: u64 = 2;

/// Priorities of syslog(3).
const ALERT: u64 = 1;
const WARNING: u64 = 4;
const INFO: u64 = 6;

fn main() {
    program::run("splogger", "splogger [tag [facility]]", splogger)
}

fn splogger(args: Args) -> Result<(), Trouble> {
    let tag = args.list().first().map_or(b"splogger".as_slice(), Vec::as_slice);
    let facility = args.list().get(1).map_or(MAIL, |text| decimal::prefix(text).unwrap_or(0)) & 0x7f;
    Jail::of(&programs::SPLOGGER).close()?;
    let mut syslog = Syslog { tag: tag.to_vec(), facility, connection: None };
    let mut input = Reader::new(fd::IN);
    let mut line = Current::default();
    loop {
        let bytes = input.fill().map_err(|e| Trouble::unable("read", "standard input", e))?.to_vec();
        if bytes.is_empty() {
            line.end(&mut syslog);
            return Ok(());
        }
        input.consume(bytes.len());
        for byte in bytes {
            line.take(byte, &mut syslog);
        }
    }
}

/// The line that is being read.
#[derive(Default)]
struct Current {
    piece: Vec<u8>,
    /// Priority and time, once a first piece of the line has been sent.
    begun: Option<(u64, String)>,
}

impl Current {
    fn take(&mut self, byte: u8, syslog: &mut Syslog) {
        if byte == b'\n' {
            return self.end(syslog);
        }
        if self.piece.len() == PIECE_MAX {
            self.send(syslog);
        }
        self.piece.push(if (32..=126).contains(&byte) { byte } else { b'?' });
    }

    fn end(&mut self, syslog: &mut Syslog) {
        if !self.piece.is_empty() {
            self.send(syslog);
        }
        self.begun = None;
    }

    fn send(&mut self, syslog: &mut Syslog) {
        let piece = std::mem::take(&mut self.piece);
        let (priority, time, mark) = match self.begun.take() {
            Some((priority, time)) => (priority, time, '+'),
            None => (priority(&piece), now(), ' '),
        };
        syslog.send(priority, &[format!("{time}{mark}").as_bytes(), &piece].concat());
        self.begun = Some((priority, time));
    }
}

fn priority(line: &[u8]) -> u64 {
    if line.starts_with(b"alert:") {
        ALERT
    } else if line.starts_with(b"warning:") {
        WARNING
    } else {
        INFO
    }
}

/// `SECONDS.MICROS`.
fn now() -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:06}", time.as_secs(), time.subsec_micros())
}

/// The socket of the system's log: datagrams, or a stream in which a NUL ends each message.
enum Connection {
    Datagrams(UnixDatagram),
    Stream(UnixStream),
}

struct Syslog {
    tag: Vec<u8>,
    facility: u64,
    connection: Option<Connection>,
}

impl Syslog {
    /// Sends a message, over a new connection when the old one has gone with its syslog.
    fn send(&mut self, priority: u64, text: &[u8]) {
        let head = format!("<{}>", self.facility << 3 | priority);
        let message = [head.as_bytes(), &self.tag, b": ", text].concat();
        for _ in 0..2 {
            if self.connection.is_none() {
                self.connection = connect().ok();
            }
            let Some(connection) = &self.connection else { return };
            match connection.send(&message) {
                Ok(()) | Err(Errno::ETIMEDOUT) => return,
                Err(_) => self.connection = None,
            }
        }
    }
}

fn connect() -> Result<Connection, Errno> {
    let datagrams = UnixDatagram::unbound().map_err(|e| errno(&e))?;
    match datagrams.connect(SOCKET).map_err(|e| errno(&e)) {
        Ok(()) => Ok(Connection::Datagrams(datagrams)),
        Err(Errno::EPROTOTYPE) => UnixStream::connect(SOCKET).map(Connection::Stream).map_err(|e| errno(&e)),
        Err(errno) => Err(errno),
    }
}

impl Connection {
    fn send(&self, message: &[u8]) -> Result<(), Errno> {
        let deadline = Deadline::after(SEND_TIME);
        match self {
            Connection::Datagrams(socket) => loop {
                timed::wait(socket, PollFlags::POLLOUT, deadline)?;
                match send(socket.as_raw_fd(), message, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                    Err(Errno::EINTR | Errno::EAGAIN) => {}
                    result => return result.map(drop),
                }
            },
            Connection::Stream(socket) => timed::write_all(socket, &[message, b"\0"].concat(), deadline),
        }
    }
}
