//! forkserver - a program that is ready, forked for each connection instead of started
//!
//! Starting a program costs more than a short SMTP session: exec, the files of `control/`, the jail. So a launcher
//! (tcpserver) offers a program of ours a socket. A program that knows the offer leaves a sibling behind: a process
//! that has read what it needs, has closed its jail, and forks itself for each connection it is handed. One process
//! a connection stays, a child of the launcher as ever; what differs is how it came to be.
//!
//! ```text
//! FORKSERVER=FD:DEVICE:INODE    the offer: a SOCK_SEQPACKET socket, for the program in this very file
//! server → launcher   0, pid               ready
//! launcher → server   n, the environment   one connection (SCM_RIGHTS); NAME=VALUE, a NUL behind each
//! child → launcher    n, pid               it is mine
//! server → launcher   n, 0                 not by me: start a program
//! ```
//!
//! Numbers are of eight and four bytes, as the machine has them: both ends are on it. Each pid is the sender's own,
//! which the kernel says too (SO_PASSCRED). The end of the socket says that nobody is at work on what was not
//! answered; the launcher can bring it about (`stop`): who has not answered by then is not heard, and ends. A wrapper
//! that executes the program later is another file, and so gets every connection as before.
#![forbid(unsafe_code)]

use crate::environ::{self, Environ};
use crate::sys::process;
use crate::{decimal, fd};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType,
    UnixCredentials, recvmsg, send, sendmsg, setsockopt, shutdown, socketpair, sockopt,
};
use nix::sys::stat::stat;
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, getpid};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// The offer.
pub const VARIABLE: &str = "FORKSERVER";

/// A connection with its environment, which execve(2) would take 128 KiB a string of; ours has 2 or 3.
const REQUEST_MAX: usize = 64 * 1024;

/// Number and pid.
const ANSWER_SIZE: usize = 12;

/// The number of what is no connection.
const READY: u64 = 0;

/// Whatever may gather in a process is gone after so many connections.
const CONNECTIONS_MAX: u32 = 1000;

/// And after so long: what changed where no watch sees it (another machine's file system) holds for a minute.
const LIFE: Duration = Duration::from_secs(60);

/// Without a connection it goes home: an idle system has no processes that wait in vain.
const IDLE: Duration = Duration::from_secs(5);

/// The launcher's end.
pub struct Launcher {
    socket: OwnedFd,
}

/// What came from the other end.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Ready(Pid),
    Taken(u64, Pid),
    Refused(u64),
    /// What no server of ours says.
    Wrong,
    /// Nobody is there any more.
    Gone,
}

impl Launcher {
    /// A socket of ours, and the one to be offered.
    pub fn offer() -> Result<(Launcher, OwnedFd), Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        setsockopt(&ours, sockopt::PassCred, &true)?;
        Ok((Launcher { socket: ours }, theirs))
    }

    /// Tells the program in this file of its descriptor `number`.
    pub fn announce(environ: &mut Environ, number: RawFd, program: &[u8]) {
        if let Ok(file) = stat(fd::path(program)) {
            environ.set(VARIABLE, format!("{number}:{}:{}", file.st_dev, file.st_ino));
        }
    }

    /// Hands a connection over, or not: the socket may be full, the environment too large.
    pub fn give(&self, number: u64, connection: impl AsFd, environ: &Environ) -> Result<(), Errno> {
        let mut request = number.to_ne_bytes().to_vec();
        for entry in environ.strings() {
            request.extend_from_slice(&entry);
            request.push(0);
        }
        if request.len() > REQUEST_MAX {
            return Err(Errno::E2BIG);
        }
        let pass = [connection.as_fd().as_raw_fd()];
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let control = [ControlMessage::ScmRights(&pass)];
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&request)], &control, flags, None).map(drop)
    }

    /// The next answer that is there.
    pub fn answer(&self) -> Option<Answer> {
        let answer = match self.receive() {
            // It ended with requests unread. What it said before is still there, behind the error.
            Err(Errno::ECONNRESET) => self.receive(),
            answer => answer,
        };
        match answer {
            Ok(answer) => Some(answer),
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            Err(_) => Some(Answer::Gone),
        }
    }

    /// There is room for the word of the kernel only: descriptors that come with an answer do not arrive.
    fn receive(&self) -> Result<Answer, Errno> {
        let mut bytes = [0; ANSWER_SIZE + 1];
        let mut control = nix::cmsg_space!(UnixCredentials);
        let mut data = [IoSliceMut::new(&mut bytes)];
        let socket = self.socket.as_raw_fd();
        let received = recvmsg::<()>(socket, &mut data, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
        if received.bytes == 0 {
            return Ok(Answer::Gone);
        }
        let sender = received.cmsgs().ok().and_then(|mut messages| match messages.next()? {
            ControlMessageOwned::ScmCredentials(sender) => Some(Pid::from_raw(sender.pid())),
            _ => None,
        });
        let length = received.bytes;
        let answer = parse_answer(bytes.get(..length).unwrap_or_default());
        Ok(answer
            .filter(|answer| answer.pid().is_none_or(|pid| Some(pid) == sender))
            .unwrap_or(Answer::Wrong))
    }

    /// From now on nobody is heard, and nothing is handed over: what has been said is still to be read, then comes
    /// the end.
    pub fn stop(&self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }
}

impl Answer {
    fn pid(&self) -> Option<Pid> {
        match self {
            Answer::Ready(pid) | Answer::Taken(_, pid) => Some(*pid),
            Answer::Refused(_) | Answer::Wrong | Answer::Gone => None,
        }
    }
}

impl AsFd for Launcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn parse_answer(bytes: &[u8]) -> Option<Answer> {
    let (number, pid) = bytes.split_first_chunk()?;
    let number = u64::from_ne_bytes(*number);
    let pid = i32::from_ne_bytes(pid.try_into().ok()?);
    match (number, pid) {
        (_, pid) if pid < 0 => None,
        (READY, 0) => None,
        (READY, pid) => Some(Answer::Ready(Pid::from_raw(pid))),
        (number, 0) => Some(Answer::Refused(number)),
        (number, pid) => Some(Answer::Taken(number, Pid::from_raw(pid))),
    }
}

/// An offer made to this program.
pub struct Offer {
    socket: OwnedFd,
}

/// The offer, if there is one for the program in our file. To be asked once, at start.
pub fn offered() -> Option<Offer> {
    let value = environ::get(VARIABLE)?;
    let mut parts = value.split(|b| *b == b':').map(decimal::strict);
    let (number, device, inode) = (parts.next()??, parts.next()??, parts.next()??);
    let socket = fd::take(RawFd::try_from(number).ok().filter(|number| *number > 2)?).ok()?;
    fd::close_on_exec(&socket).ok()?;
    let own = stat("/proc/self/exe").ok()?;
    (own.st_dev == device && own.st_ino == inode).then_some(Offer { socket })
}

/// What a server is made of when it is ready.
pub struct Server {
    socket: OwnedFd,
    changes: Inotify,
}

impl Offer {
    /// Leaves a sibling of this process behind; true in it. Its 0 and 1 are not the connection.
    pub fn part(&self) -> Result<bool, Errno> {
        if process::fork_sibling()?.is_some() {
            return Ok(false);
        }
        let null = fd::null()?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        Ok(true)
    }

    /// In the sibling, before anything is read there: from now on changes in these directories, and where the
    /// links directly in them lead, are the end of the server.
    pub fn server(self, directories: &[&[u8]]) -> Result<Server, Errno> {
        let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        for directory in directories {
            watch(&changes, fd::path(directory))?;
            for entry in
                std::fs::read_dir(fd::path(directory)).map_err(|e| crate::trouble::errno(&e))?.flatten()
            {
                if entry.file_type().is_ok_and(|kind| kind.is_symlink())
                    && let Ok(target) = std::fs::canonicalize(entry.path())
                {
                    watch(&changes, target.parent().unwrap_or(&target))?;
                }
            }
        }
        Ok(Server { socket: self.socket, changes })
    }
}

fn watch(changes: &Inotify, directory: &Path) -> Result<(), Errno> {
    let what = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF;
    changes.add_watch(directory, what | AddWatchFlags::IN_ONLYDIR).map(drop)
}

impl Server {
    /// Waits for connections, and forks for each: returns in the children with theirs, whose environment is this
    /// process's from then on. None when the server goes home.
    pub fn serve(self) -> Option<OwnedFd> {
        let end = Instant::now() + LIFE;
        self.say(READY, getpid()).ok()?;
        let mut request = vec![0; REQUEST_MAX];
        for _ in 0..CONNECTIONS_MAX {
            let (number, environ, connection) = self.next(end, &mut request)?;
            if !is_for_us(&environ) {
                self.say(number, Pid::from_raw(0)).ok()?;
                continue;
            }
            match process::fork_sibling() {
                Ok(Some(_)) => {}
                Ok(None) => {
                    // Unheard it must not go on: the launcher would start another one.
                    self.say(number, getpid()).ok()?;
                    environ::replace(environ);
                    return Some(connection);
                }
                Err(_) => self.say(number, Pid::from_raw(0)).ok()?,
            }
        }
        None
    }

    /// The next connection; None at the end of our time, or when what we know is no longer true.
    fn next(&self, end: Instant, request: &mut [u8]) -> Option<(u64, Environ, OwnedFd)> {
        let left = end.checked_duration_since(Instant::now())?.min(IDLE);
        let mut fds = [
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.changes.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::try_from(left).ok()?).ok()?;
        if !fds.first()?.any()? {
            return None;
        }
        let received = fd::receive(&self.socket, request).ok()?;
        // Looked at behind that: what was changed before the client came holds for it.
        poll(&mut fds, PollTimeout::ZERO).ok()?;
        if fds.last()?.any()? || !received.whole {
            return None;
        }
        let [connection] = <[OwnedFd; 1]>::try_from(received.passed).ok()?;
        let (number, strings) = request.get(..received.bytes)?.split_first_chunk()?;
        let mut environ = Environ::empty();
        for entry in strings.split(|b| *b == 0) {
            if let Some(at) = entry.iter().position(|b| *b == b'=') {
                let (name, value) = entry.split_at(at);
                environ.set(name, value.get(1..).unwrap_or_default());
            }
        }
        Some((u64::from_ne_bytes(*number), environ, connection))
    }

    fn say(&self, number: u64, pid: Pid) -> Result<(), Errno> {
        let answer = [number.to_ne_bytes().as_slice(), &pid.as_raw().to_ne_bytes()].concat();
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        send(self.socket.as_raw_fd(), &answer, flags).map(drop)
    }
}

/// Beginnings of variables by which a program does something else than one that was started without them.
const WAY: [&[u8]; 6] = [b"QMAIL", b"SMTPAUTH=", b"SUBMISSION=", b"SSLCTLFD=", b"TLS_", b"SSL_"];

/// What leads a program's way must be what it was when the server found its own.
fn is_for_us(environ: &Environ) -> bool {
    let own = Environ::inherited();
    let way = |environ: &Environ| {
        let mut way: Vec<_> = environ
            .strings()
            .into_iter()
            .filter(|entry| WAY.iter().any(|way| entry.starts_with(way)))
            .collect();
        way.sort();
        way
    };
    way(environ) == way(&own)
}
