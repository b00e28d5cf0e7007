//! timed - input and output with deadlines
//!
//! Every wait for a peer has an end. Errors are errno: ETIMEDOUT is a deadline that passed. Descriptors
//! may be blocking or not; their flags are never changed.
#![forbid(unsafe_code)]

use crate::sys::descriptor::Standard;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// One read or write moves at most this much; also the size of a reader's buffer.
const CHUNK: usize = 8192;

/// Before a descriptor is asked again that was called ready and then had nothing: another reader was
/// faster, or it is a file whose server lies, and would keep the processor busy.
const AGAIN: Duration = Duration::from_millis(20);

/// A point in time after which waiting ends; `never` waits for ever.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    pub fn never() -> Deadline {
        Deadline(None)
    }

    pub fn after(time: Duration) -> Deadline {
        Deadline(Instant::now().checked_add(time))
    }

    pub fn seconds(seconds: u64) -> Deadline {
        Deadline::after(Duration::from_secs(seconds))
    }

    /// The earlier of the two.
    pub fn or(self, other: Deadline) -> Deadline {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Deadline(Some(a.min(b))),
            (a, b) => Deadline(a.or(b)),
        }
    }

    pub fn passed(&self) -> bool {
        self.0.is_some_and(|at| Instant::now() >= at)
    }

    /// Time left; None when it never ends.
    pub fn left(&self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn poll_timeout(&self) -> PollTimeout {
        match self.left() {
            None => PollTimeout::NONE,
            // Rounded up, so that a wait never ends a fraction too early and spins.
            Some(left) => PollTimeout::try_from(left.as_millis().saturating_add(1).min(i32::MAX as u128))
                .unwrap_or(PollTimeout::MAX),
        }
    }
}

/// Waits until the descriptor is ready (or broken, which the read or write will tell).
pub fn wait(fd: impl AsFd, events: PollFlags, deadline: Deadline) -> Result<(), Errno> {
    loop {
        let mut fds = [PollFd::new(fd.as_fd(), events)];
        match poll(&mut fds, deadline.poll_timeout()) {
            Ok(0) if deadline.passed() => return Err(Errno::ETIMEDOUT),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

/// As `wait` for input, but ECONNRESET when the other side of `watch` hangs up meanwhile.
fn wait_watching(fd: impl AsFd, watch: Standard, deadline: Deadline) -> Result<(), Errno> {
    loop {
        // POLLHUP and POLLERR come unasked.
        let mut fds =
            [PollFd::new(fd.as_fd(), PollFlags::POLLIN), PollFd::new(watch.as_fd(), PollFlags::empty())];
        match poll(&mut fds, deadline.poll_timeout()) {
            Ok(0) if deadline.passed() => return Err(Errno::ETIMEDOUT),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => {
                let [_, watched] = fds;
                return if watched.any().unwrap_or(true) { Err(Errno::ECONNRESET) } else { Ok(()) };
            }
            Err(errno) => return Err(errno),
        }
    }
}

/// Reads what is there, at least one byte; 0 is the end.
pub fn read(fd: impl AsFd, buffer: &mut [u8], deadline: Deadline) -> Result<usize, Errno> {
    loop {
        wait(&fd, PollFlags::POLLIN, deadline)?;
        match nix::unistd::read(&fd, buffer) {
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            result => return result,
        }
    }
}

/// Writes all of it.
pub fn write_all(fd: impl AsFd, mut bytes: &[u8], deadline: Deadline) -> Result<(), Errno> {
    while !bytes.is_empty() {
        wait(&fd, PollFlags::POLLOUT, deadline)?;
        // On a blocking descriptor a write longer than the buffer behind it would wait without end.
        let piece = bytes.get(..bytes.len().min(nix::libc::PIPE_BUF)).unwrap_or(bytes);
        match nix::unistd::write(&fd, piece) {
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// What a look for a line found.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A whole line, its terminator removed.
    Whole(Vec<u8>),
    /// The input ended inside a line; empty when it ended right after one.
    End(Vec<u8>),
    /// Longer than allowed. It has been read to its end and thrown away.
    TooLong,
}

/// Where a reader's bytes come from: a descriptor, or whatever plays a peer in a test.
pub trait Source {
    /// Reads what is there, at least one byte; 0 is the end. ECONNRESET when the peer of `watch` hangs up meanwhile.
    fn read(&self, buffer: &mut [u8], deadline: Deadline, watch: Option<Standard>) -> Result<usize, Errno>;
}

impl<F: AsFd> Source for F {
    fn read(&self, buffer: &mut [u8], deadline: Deadline, watch: Option<Standard>) -> Result<usize, Errno> {
        let Some(watch) = watch else { return read(self, buffer, deadline) };
        loop {
            wait_watching(self, watch, deadline)?;
            match nix::unistd::read(self, buffer) {
                // Back to where the peer is seen to leave.
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => std::thread::sleep(AGAIN),
                result => return result,
            }
        }
    }
}

/// Where a writer's bytes go: a descriptor, or whatever plays a peer in a test.
pub trait Sink {
    /// Writes all of it.
    fn write_all(&self, bytes: &[u8], deadline: Deadline) -> Result<(), Errno>;
}

impl<F: AsFd> Sink for F {
    fn write_all(&self, bytes: &[u8], deadline: Deadline) -> Result<(), Errno> {
        write_all(self, bytes, deadline)
    }
}

/// A buffered reader with a limit on each read and one on everything.
pub struct Reader<F> {
    source: F,
    buffer: Vec<u8>,
    start: usize,
    each: Option<Duration>,
    overall: Deadline,
    watch: Option<Standard>,
}

impl<F: Source> Reader<F> {
    /// Waits for ever.
    pub fn new(source: F) -> Reader<F> {
        Reader { source, buffer: Vec::new(), start: 0, each: None, overall: Deadline::never(), watch: None }
    }

    /// Each read may take this long.
    pub fn with_timeout(source: F, each: Duration) -> Reader<F> {
        Reader { each: Some(each), ..Reader::new(source) }
    }

    /// A deadline over all reads from now on.
    pub fn set_overall(&mut self, deadline: Deadline) {
        self.overall = deadline;
    }

    /// Gives up (ECONNRESET) when the peer of this connection hangs up, whatever the input still has.
    pub fn set_watch(&mut self, connection: Standard) {
        self.watch = Some(connection);
    }

    /// Whether the peer of the watched connection has hung up.
    pub fn peer_left(&self) -> bool {
        self.watch.is_some_and(|watch| {
            let mut fds = [PollFd::new(watch.as_fd(), PollFlags::empty())];
            poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
        })
    }

    /// Bytes that are here already.
    pub fn buffered(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// Drops the first `n` buffered bytes: they have been used.
    pub fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.buffer.len());
    }

    /// Overwrites what has been used: it was a password.
    pub fn forget(&mut self) {
        if let Some(used) = self.buffer.get_mut(..self.start) {
            used.fill(0);
            std::hint::black_box(used);
        }
    }

    /// What is buffered, after one read when nothing was; empty at the end of the input.
    pub fn fill(&mut self) -> Result<&[u8], Errno> {
        if self.buffered().is_empty() {
            self.more()?;
        }
        Ok(self.buffered())
    }

    /// Reads once more behind what is buffered; the number of bytes read, 0 at the end.
    pub fn more(&mut self) -> Result<usize, Errno> {
        if self.overall.passed() {
            return Err(Errno::ETIMEDOUT); // input that is always there never waits, and must end too
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let old = self.buffer.len();
        self.buffer.resize(old + CHUNK, 0);
        let deadline = self.each.map_or(Deadline::never(), Deadline::after).or(self.overall);
        let room = self.buffer.get_mut(old..).unwrap_or_default();
        let result = self.source.read(room, deadline, self.watch);
        self.buffer.truncate(old + *result.as_ref().unwrap_or(&0));
        result
    }

    /// The next line, up to `terminator`, of at most `max` bytes without it.
    pub fn line(&mut self, terminator: u8, max: usize) -> Result<Line, Errno> {
        let mut searched = 0;
        loop {
            let unseen = self.buffered().get(searched..).unwrap_or_default();
            if let Some(at) = memchr::memchr(terminator, unseen) {
                let length = searched + at;
                let line = self.buffered().get(..length).unwrap_or_default().to_vec();
                self.consume(length + 1);
                return Ok(if length > max { Line::TooLong } else { Line::Whole(line) });
            }
            searched = self.buffered().len();
            if searched > max {
                self.skip_line(terminator)?;
                return Ok(Line::TooLong);
            }
            if self.more()? == 0 {
                let rest = self.buffered().to_vec();
                self.consume(rest.len());
                return Ok(Line::End(rest));
            }
        }
    }

    /// Throws away everything up to and with the terminator, or to the end of the input.
    fn skip_line(&mut self, terminator: u8) -> Result<(), Errno> {
        loop {
            if let Some(at) = memchr::memchr(terminator, self.buffered()) {
                self.consume(at + 1);
                return Ok(());
            }
            self.consume(self.buffered().len());
            if self.more()? == 0 {
                return Ok(());
            }
        }
    }
}

/// A buffered writer. What is put is sent when the buffer fills or at `flush`; nothing is sent on drop.
pub struct Writer<F> {
    sink: F,
    buffer: Vec<u8>,
    each: Option<Duration>,
    overall: Deadline,
}

impl<F: Sink> Writer<F> {
    /// Waits for ever.
    pub fn new(sink: F) -> Writer<F> {
        Writer { sink, buffer: Vec::new(), each: None, overall: Deadline::never() }
    }

    /// Each flush may take this long.
    pub fn with_timeout(sink: F, each: Duration) -> Writer<F> {
        Writer { each: Some(each), ..Writer::new(sink) }
    }

    pub fn set_overall(&mut self, deadline: Deadline) {
        self.overall = deadline;
    }

    pub fn put(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Errno> {
        self.buffer.extend_from_slice(bytes.as_ref());
        if self.buffer.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    pub fn flush(&mut self) -> Result<(), Errno> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let deadline = self.each.map_or(Deadline::never(), Deadline::after).or(self.overall);
        let result = self.sink.write_all(&self.buffer, deadline);
        self.buffer.clear();
        result
    }

    /// Flushes and gives back what it wrote to.
    pub fn finish(mut self) -> Result<F, Errno> {
        self.flush()?;
        Ok(self.sink)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fd;

    fn reader_of(bytes: &[u8]) -> Reader<std::os::fd::OwnedFd> {
        let (read, write) = fd::pipe().unwrap();
        fd::write_all(write, bytes).unwrap();
        Reader::new(read)
    }

    #[test]
    fn lines_come_whole_and_the_rest_comes_as_the_end() {
        let mut r = reader_of(b"one\n\ntwo");
        assert_eq!(r.line(b'\n', 10), Ok(Line::Whole(b"one".to_vec())));
        assert_eq!(r.line(b'\n', 10), Ok(Line::Whole(b"".to_vec())));
        assert_eq!(r.line(b'\n', 10), Ok(Line::End(b"two".to_vec())));
        assert_eq!(r.line(b'\n', 10), Ok(Line::End(b"".to_vec())));
    }

    #[test]
    fn a_line_too_long_is_said_to_be_so_and_takes_no_memory() {
        let mut r = reader_of(&[b"x".repeat(30_000), b"\nok\n".to_vec()].concat());
        assert_eq!(r.line(b'\n', 100), Ok(Line::TooLong));
        assert_eq!(r.line(b'\n', 100), Ok(Line::Whole(b"ok".to_vec())));
    }

    #[test]
    fn a_peer_that_hung_up_is_noticed_without_reading() {
        use std::os::fd::AsRawFd;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut r = reader_of(b"whole");
        assert!(!r.peer_left());
        r.set_watch(Standard(ours.as_raw_fd()));
        assert!(!r.peer_left());
        drop(theirs);
        assert!(r.peer_left());
    }

    #[test]
    fn a_silent_peer_is_a_timeout() {
        let (read_end, _write_end) = fd::pipe().unwrap();
        let deadline = Deadline::after(Duration::from_millis(10));
        assert_eq!(read(&read_end, &mut [0; 4], deadline), Err(Errno::ETIMEDOUT));
    }

    #[test]
    fn a_full_pipe_is_a_timeout_for_the_writer() {
        let (_read_end, write_end) = fd::pipe().unwrap();
        let deadline = Deadline::after(Duration::from_millis(10));
        assert_eq!(write_all(&write_end, &[0; 200_000], deadline), Err(Errno::ETIMEDOUT));
    }
}
