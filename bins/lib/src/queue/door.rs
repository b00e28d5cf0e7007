//! door - the socket `run/queue`: how a message gets in where the caller may not write the queue
//!
//! The client connects, sends one byte (`HELLO`) with exactly two descriptors (message, envelope) and
//! waits. The server answers with the exit code of qmail-queue as one byte, perhaps followed by a text
//! for the caller's descriptor 6, and closes. Who the client is says the kernel (SO_PEERCRED).
#![forbid(unsafe_code)]

use crate::exits::queue as code;
use crate::fd;
use crate::home::Home;
use crate::timed::{self, Deadline};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, connect, sendmsg,
    shutdown, socket,
};
use nix::sys::stat::Mode;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// The socket, relative to the home.
pub const SOCKET: &str = "run/queue";

/// The file that the running qmail-queued holds locked, relative to the home.
pub const LOCK: &str = "run/queue.lock";

/// Whoever can read a file can lock it, and so keep everybody's mail out.
const LOCK_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// The only request there is; another protocol would start with another byte.
const HELLO: u8 = b'1';

/// A text for descriptor 6 is at most this long.
pub const TEXT_MAX: usize = 255;

/// How long a client tries a missing or refusing socket: qmail-queued may just be starting again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// A server must take a connection within this time; its backlog is full otherwise.
const CONNECT_SECONDS: u64 = 60;

/// Bytes in the path of a socket's address (sun_path, with its NUL).
const PATH_MAX: usize = 107;

/// Opens the lock file, made if it is missing; `path` leads to `LOCK`.
pub fn open_lock(path: impl AsRef<[u8]>) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    let file = nix::fcntl::open(fd::path(path.as_ref()), flags, LOCK_MODE)?;
    nix::sys::stat::fchmod(&file, LOCK_MODE)?; // it may have been made by another hand
    Ok(file)
}

/// Connects, patiently. The error is an exit code of qmail-queue.
pub fn connect_patiently(home: &Home) -> Result<OwnedFd, i32> {
    let deadline = Deadline::after(PATIENCE);
    loop {
        match connect_once(home) {
            Ok(connection) => return Ok(connection),
            Err(Errno::ENOENT | Errno::ECONNREFUSED) if !deadline.passed() => std::thread::sleep(PAUSE),
            Err(Errno::EAGAIN | Errno::ETIMEDOUT) => return Err(code::CONNECT_TIMEOUT),
            Err(_) => return Err(code::CONNECT_REFUSED),
        }
    }
}

/// Connects if somebody listens; waits while the backlog is full.
pub fn connect_once(home: &Home) -> Result<OwnedFd, Errno> {
    connect_with(home, SockFlag::SOCK_CLOEXEC)
}

/// Connects at once or not at all: EAGAIN when the backlog is full. For a caller whose loop must go on.
pub fn connect_now(home: &Home) -> Result<OwnedFd, Errno> {
    connect_with(home, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
}

fn connect_with(home: &Home, flags: SockFlag) -> Result<OwnedFd, Errno> {
    let connection = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let limit = nix::sys::time::TimeVal::new(CONNECT_SECONDS as i64, 0);
    nix::sys::socket::setsockopt(&connection, nix::sys::socket::sockopt::SendTimeout, &limit)?;
    let path = home.path(SOCKET);
    if path.len() <= PATH_MAX {
        connect(connection.as_raw_fd(), &UnixAddr::new(fd::path(&path))?)?;
    } else {
        // A home with a long name: reach its directory by a short one.
        let directory = fd::open_directory(home.path("run"))?;
        let short = format!("/proc/self/fd/{}/queue", directory.as_raw_fd());
        connect(connection.as_raw_fd(), &UnixAddr::new(short.as_str())?)?;
    }
    Ok(connection)
}

/// Hands over the two descriptors. Failure is not told here: a server that refused before it was asked
/// has left its answer to be read, one that is gone leaves none, and one that waits for what could not be
/// sent is told that nothing comes.
pub fn send_request(connection: &OwnedFd, message: &impl AsFd, envelope: &impl AsFd) {
    send_request_with(connection, message, envelope, b"");
}

/// The same to somebody who wants to know more; in one packet.
pub(super) fn send_request_with(
    connection: &OwnedFd,
    message: &impl AsFd,
    envelope: &impl AsFd,
    more: &[u8],
) {
    let pass: [RawFd; 2] = [message.as_fd().as_raw_fd(), envelope.as_fd().as_raw_fd()];
    let data = [IoSlice::new(&[HELLO]), IoSlice::new(more)];
    let control = [ControlMessage::ScmRights(&pass)];
    let sent = sendmsg::<()>(connection.as_raw_fd(), &data, &control, MsgFlags::MSG_NOSIGNAL, None);
    if sent.is_err() {
        let _ = shutdown(connection.as_raw_fd(), Shutdown::Write);
    }
}

/// Takes the two descriptors; EPROTO when the request is anything else.
pub fn receive_request(connection: &impl AsFd, deadline: Deadline) -> Result<(OwnedFd, OwnedFd), Errno> {
    receive_request_with(connection, deadline, 0).map(|(passed, _)| passed)
}

/// The same from somebody who says more, of at most so many bytes.
pub(super) fn receive_request_with(
    connection: &impl AsFd,
    deadline: Deadline,
    max: usize,
) -> Result<((OwnedFd, OwnedFd), Vec<u8>), Errno> {
    timed::wait(connection, nix::poll::PollFlags::POLLIN, deadline)?;
    let mut bytes = vec![0u8; 1 + max + 1]; // one more than a request has
    let received = fd::receive(connection, &mut bytes)?;
    let whole = received.bytes <= 1 + max && received.whole;
    match (<[OwnedFd; 2]>::try_from(received.passed), bytes.get(..received.bytes)) {
        (Ok([message, envelope]), Some([HELLO, more @ ..])) if whole => {
            Ok(((message, envelope), more.to_vec()))
        }
        _ => Err(Errno::EPROTO),
    }
}

/// Whether a descriptor was opened for reading. One that was not would never be ready, and be waited for.
pub fn is_readable(passed: &impl AsFd) -> bool {
    nix::fcntl::fcntl(passed, nix::fcntl::FcntlArg::F_GETFL).is_ok_and(|flags| {
        flags & OFlag::O_PATH.bits() == 0 && flags & OFlag::O_ACCMODE.bits() != OFlag::O_WRONLY.bits()
    })
}

/// The server's last word. Never waits: the answer fits the socket's buffer, or nobody reads it.
pub fn send_answer(connection: &impl AsFd, code: i32, text: &[u8]) {
    let mut answer = vec![u8::try_from(code).unwrap_or(crate::exits::queue::BUG as u8)];
    answer.extend_from_slice(text.get(..text.len().min(TEXT_MAX)).unwrap_or_default());
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let _ = nix::sys::socket::send(connection.as_fd().as_raw_fd(), &answer, flags);
}

/// The exit code and the text; None when the connection ended without an answer.
pub fn parse_answer(answer: &[u8]) -> Option<(i32, &[u8])> {
    answer.split_first().map(|(code, text)| (i32::from(*code), text))
}
