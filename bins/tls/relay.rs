//! relay - between a peer that speaks TLS and a program that does not
//!
//! Both ends are stream sockets; their flags are never changed. What is read from one end is written to the
//! other before more is read, so that memory is bounded and whoever is slow slows the other.
//!
//! rustls itself would ask the peer for 4 KiB at a time, so it is fed out of a piece of ours.
#![forbid(unsafe_code)]

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, sendmsg, setsockopt, shutdown, sockopt};
use qmail::timed::{self, Deadline};
use rustls::Connection;
use std::io::{BufRead, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// From either end at a time: four full records, and as much as rustls takes of the program's. What is never read never
/// takes memory.
const CHUNK: usize = 64 * 1024;

/// When the program has ended, what it wrote is still sent: as long as the peer takes some of it so often, and
/// no longer than that. It is some hundred kilobytes at most.
const STALLED: Duration = Duration::from_secs(60);
const FLUSHED: Duration = Duration::from_secs(600);

/// How long what the peer still sends is read and thrown away when all was sent: a connection that is closed
/// with something unread is reset, and the peer may lose the end of what it was sent.
const LINGER: Duration = Duration::from_secs(5);

/// A socket, never waited for.
struct Wire<'a>(&'a OwnedFd);

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Ok(recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(send(self.0.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> std::io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        Ok(sendmsg::<()>(self.0.as_raw_fd(), pieces, &[], flags, None)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Whether a socket was merely not ready.
fn is_pause(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// What is sent goes at once: tickets and then the first words of the program are two pieces, and the second would wait for
/// the peer to confirm the first, which it does 40 ms later when it has nothing to say itself.
pub fn at_once(peer: &OwnedFd) {
    let _ = setsockopt(peer, sockopt::TcpNoDelay, &true); // not TCP: no matter
}

/// Goes on until both sides have agreed; why they have not otherwise, in words for a log.
pub fn handshake(tls: &mut Connection, peer: &OwnedFd, deadline: Deadline) -> Result<(), String> {
    let broken = |errno: Errno| match errno {
        Errno::ETIMEDOUT => "it took too long".to_owned(),
        errno => qmail::trouble::wording(errno).to_owned(),
    };
    loop {
        while tls.wants_write() {
            match tls.write_tls(&mut Wire(peer)) {
                Ok(_) => {}
                Err(e) if is_pause(&e) => timed::wait(peer, PollFlags::POLLOUT, deadline).map_err(broken)?,
                Err(e) => return Err(broken(qmail::trouble::errno(&e))),
            }
        }
        if !tls.is_handshaking() {
            return Ok(());
        }
        timed::wait(peer, PollFlags::POLLIN, deadline).map_err(broken)?;
        if deadline.passed() {
            return Err(broken(Errno::ETIMEDOUT)); // a peer that drips is always ready
        }
        match tls.read_tls(&mut Wire(peer)) {
            Ok(0) => return Err("the peer ended the connection".to_owned()),
            Ok(_) => {}
            Err(e) if is_pause(&e) => continue,
            Err(e) => return Err(broken(qmail::trouble::errno(&e))),
        }
        if let Err(reason) = tls.process_new_packets() {
            alert(tls, peer);
            return Err(reason.to_string());
        }
    }
}

/// Tells the peer why, if that can be done at once.
pub fn alert(tls: &mut Connection, peer: &OwnedFd) {
    while tls.wants_write() && tls.write_tls(&mut Wire(peer)).is_ok() {}
}

/// Until both have said all, or one of them is gone.
pub fn run(tls: &mut Connection, peer: &OwnedFd, program: &OwnedFd) {
    // The session is given a piece only when it has sent the one before, and takes all of it, whatever else it sends.
    tls.set_buffer_limit(None);
    let mut relay = Relay {
        tls,
        peer,
        program,
        text: vec![0; CHUNK],
        wire: vec![0; CHUNK],
        fed: 0,
        read: 0,
        held: false,
        peer_talks: true,
        program_talks: true,
        program_listens: true,
        program_gone: false,
        limit: Deadline::never(),
        stalled: Deadline::never(),
    };
    // What came with the end of the handshake is there already.
    if relay.take().and_then(|()| relay.until_done()).is_ok() {
        relay.linger();
    }
}

struct Relay<'a> {
    tls: &'a mut Connection,
    peer: &'a OwnedFd,
    program: &'a OwnedFd,
    /// From the program.
    text: Vec<u8>,
    /// From the peer: `read` bytes, of which the session has got `fed`.
    wire: Vec<u8>,
    fed: usize,
    read: usize,
    /// The program has not taken what the session has for it.
    held: bool,
    peer_talks: bool,
    program_talks: bool,
    program_listens: bool,
    program_gone: bool,
    limit: Deadline,
    stalled: Deadline,
}

impl Relay<'_> {
    fn until_done(&mut self) -> Result<(), Errno> {
        loop {
            let done = !self.program_talks && !self.tls.wants_write();
            if done && (self.program_gone || !self.peer_talks) {
                return Ok(());
            }
            let (mut peer, mut program) = (PollFlags::empty(), PollFlags::empty());
            peer.set(PollFlags::POLLIN, self.peer_talks && !self.held);
            peer.set(PollFlags::POLLOUT, self.tls.wants_write());
            program.set(PollFlags::POLLIN, self.program_talks && !self.tls.wants_write());
            program.set(PollFlags::POLLOUT, self.held);
            let [peer, program] = self.wait(peer, program)?;
            if peer.intersects(PollFlags::POLLOUT) {
                self.send()?;
            }
            if program.intersects(PollFlags::POLLOUT | PollFlags::POLLERR) {
                self.take()?;
            }
            if program.intersects(PollFlags::POLLIN | PollFlags::POLLHUP)
                && self.program_talks
                && !self.tls.wants_write()
            {
                self.read_program()?;
            }
            if program.intersects(PollFlags::POLLHUP) {
                self.program_gone = true; // told again and again from now on
                self.hurry();
            }
            if peer.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR)
                && self.peer_talks
                && !self.held
            {
                self.read_peer()?;
            }
        }
    }

    /// What is ready. An end that nothing is wanted from is not looked at, but for a program that may go.
    fn wait(&self, peer: PollFlags, program: PollFlags) -> Result<[PollFlags; 2], Errno> {
        let wants_program = !program.is_empty() || !self.program_gone;
        let mut fds = Vec::with_capacity(2);
        if !peer.is_empty() {
            fds.push(PollFd::new(self.peer.as_fd(), peer));
        }
        if wants_program {
            fds.push(PollFd::new(self.program.as_fd(), program));
        }
        let flushing = (self.program_gone || !self.program_talks) && self.tls.wants_write();
        let deadline = if flushing { self.limit.or(self.stalled) } else { Deadline::never() };
        let timeout = deadline.left().map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) if deadline.passed() => return Err(Errno::ETIMEDOUT),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let mut found = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        let peer = if peer.is_empty() { None } else { found.next() };
        Ok([peer.unwrap_or(PollFlags::empty()), found.next().unwrap_or(PollFlags::empty())])
    }

    /// To the peer, as much as it takes now.
    fn send(&mut self) -> Result<(), Errno> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Wire(self.peer)) {
                Ok(_) => self.stalled = Deadline::after(STALLED),
                Err(e) if is_pause(&e) => return Ok(()),
                Err(e) => return Err(qmail::trouble::errno(&e)),
            }
        }
        Ok(())
    }

    /// The program says no more than it has said: from now on the time for that runs.
    fn hurry(&mut self) {
        if self.limit.left().is_none() {
            (self.limit, self.stalled) = (Deadline::after(FLUSHED), Deadline::after(STALLED));
        }
    }

    fn read_program(&mut self) -> Result<(), Errno> {
        match recv(self.program.as_raw_fd(), &mut self.text, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Ok(0) | Err(_) => {
                self.program_talks = false;
                self.tls.send_close_notify();
                self.hurry();
            }
            Ok(n) => {
                let text = self.text.get(..n).unwrap_or_default();
                self.tls.writer().write_all(text).map_err(|_| Errno::ENOBUFS)?;
            }
        }
        self.send()
    }

    /// Only when everything that came before is the program's.
    fn read_peer(&mut self) -> Result<(), Errno> {
        match recv(self.peer.as_raw_fd(), &mut self.wire, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => self.peer_talks = false,
            Ok(n) => (self.fed, self.read) = (0, n),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        self.take()
    }

    /// What came, through the session and to the program, as far as that takes it now.
    fn take(&mut self) -> Result<(), Errno> {
        loop {
            match self.tls.process_new_packets() {
                Ok(state) if state.peer_has_closed() => {
                    self.peer_talks = false;
                    self.fed = self.read;
                }
                Ok(_) => {}
                Err(_) => {
                    alert(self.tls, self.peer);
                    return Err(Errno::EPROTO);
                }
            }
            self.deliver();
            if self.held {
                return Ok(());
            }
            let mut rest = self.wire.get(self.fed..self.read).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            match self.tls.read_tls(&mut rest).map_err(|e| qmail::trouble::errno(&e))? {
                0 => self.fed = self.read, // it wants no more
                n => self.fed += n,
            }
        }
        if !self.peer_talks {
            let _ = shutdown(self.program.as_raw_fd(), Shutdown::Write);
        }
        Ok(())
    }

    /// To the program, as much as it takes now. One that takes no more is left to end by itself.
    fn deliver(&mut self) {
        let mut reader = self.tls.reader();
        self.held = false;
        while let Some(text) = reader.fill_buf().ok().filter(|text| !text.is_empty()) {
            if !self.program_listens {
                let dropped = text.len();
                reader.consume(dropped);
                continue;
            }
            match send(self.program.as_raw_fd(), text, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(n) => reader.consume(n),
                Err(Errno::EAGAIN | Errno::EINTR) => {
                    self.held = true;
                    return;
                }
                Err(_) => self.program_listens = false,
            }
        }
    }

    fn linger(&self) {
        let _ = shutdown(self.peer.as_raw_fd(), Shutdown::Write);
        let deadline = Deadline::after(LINGER);
        let mut rest = [0; 4096];
        while self.peer_talks && !deadline.passed() {
            let done = match timed::wait(self.peer, PollFlags::POLLIN, deadline) {
                Ok(()) => recv(self.peer.as_raw_fd(), &mut rest, MsgFlags::MSG_DONTWAIT),
                Err(errno) => Err(errno),
            };
            if !matches!(done, Ok(1..) | Err(Errno::EAGAIN | Errno::EINTR)) {
                return;
            }
        }
    }
}
