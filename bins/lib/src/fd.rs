//! fd - descriptors: names for the inherited ones, pipes, directories, whole-file reads
#![forbid(unsafe_code)]

pub use crate::sys::descriptor::{Standard, take};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{MsgFlags, recvmsg};
use nix::sys::stat::Mode;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub const IN: Standard = Standard(0);
pub const OUT: Standard = Standard(1);
pub const ERR: Standard = Standard(2);

/// The path that these bytes name.
pub fn path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

/// A pipe: (read end, write end), both close-on-exec.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC)
}

/// Gives up descriptors 0 and 1: nobody may wait for our end of a pipe or keep a terminal through us. The
/// numbers stay taken, so that nothing opened later is mistaken for them.
pub fn give_up_standard() {
    give_up_standard_for(null().ok().as_ref());
}

/// The same with what was opened before: in a jail it may not be there.
pub fn give_up_standard_for(null: Option<&OwnedFd>) {
    if let Some(null) = null {
        let _ = nix::unistd::dup2_stdin(null);
        let _ = nix::unistd::dup2_stdout(null);
    } else {
        crate::sys::process::close(IN.0);
        crate::sys::process::close(OUT.0);
    }
}

/// To read nothing from and to write in vain to, close-on-exec.
pub fn null() -> Result<OwnedFd, Errno> {
    open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
}

/// Opens an existing file for reading, close-on-exec, never waiting for a fifo's writer.
pub fn open_read(name: impl AsRef<[u8]>) -> Result<OwnedFd, Errno> {
    open(path(name.as_ref()), OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())
}

/// Opens an existing file for writing, close-on-exec, never waiting for a fifo's reader.
pub fn open_write(name: impl AsRef<[u8]>) -> Result<OwnedFd, Errno> {
    open(path(name.as_ref()), OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())
}

/// Creates a file that must not exist yet, for reading and writing.
pub fn create_new(name: impl AsRef<[u8]>, mode: u32) -> Result<OwnedFd, Errno> {
    open(
        path(name.as_ref()),
        OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC,
        Mode::from_bits_truncate(mode),
    )
}

/// Creates or empties a file, for writing.
pub fn create(name: impl AsRef<[u8]>, mode: u32) -> Result<OwnedFd, Errno> {
    open(
        path(name.as_ref()),
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC,
        Mode::from_bits_truncate(mode),
    )
}

/// Opens a directory, to sync it or to work relative to it.
pub fn open_directory(name: impl AsRef<[u8]>) -> Result<OwnedFd, Errno> {
    open(path(name.as_ref()), OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Makes the names in a directory durable.
pub fn sync_directory(name: impl AsRef<[u8]>) -> Result<(), Errno> {
    fsync(open_directory(name)?)
}

/// fsync, again when a signal came between.
pub fn fsync(fd: impl AsFd) -> Result<(), Errno> {
    loop {
        match nix::unistd::fsync(&fd) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// read(2), again when a signal came between.
pub fn read(fd: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match nix::unistd::read(&fd, buffer) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Writes all of it to a file or a blocking pipe.
pub fn write_all(fd: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match nix::unistd::write(&fd, bytes) {
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Everything up to the end, EFBIG beyond `max` bytes.
pub fn read_to_end(fd: impl AsFd, max: usize) -> Result<Vec<u8>, Errno> {
    let mut all = Vec::new();
    let mut chunk = [0u8; 8192];
    loop {
        let n = read(&fd, &mut chunk)?;
        if n == 0 {
            return Ok(all);
        }
        if all.len() + n > max {
            return Err(Errno::EFBIG);
        }
        all.extend_from_slice(chunk.get(..n).unwrap_or_default());
    }
}

/// The whole file; None when it does not exist. EFBIG beyond `max` bytes.
pub fn read_file(name: impl AsRef<[u8]>, max: usize) -> Result<Option<Vec<u8>>, Errno> {
    match open_read(name) {
        Ok(file) => read_to_end(file, max).map(Some),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// No program that is started from now on gets it.
pub fn close_on_exec(fd: impl AsFd) -> Result<(), Errno> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map(drop)
}

/// Turns O_NONBLOCK on or off. Never on a description that was passed to us by another process.
pub fn set_nonblocking(fd: impl AsFd, on: bool) -> Result<(), Errno> {
    use nix::fcntl::{FcntlArg, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    let wanted = if on { flags | OFlag::O_NONBLOCK } else { flags & !OFlag::O_NONBLOCK };
    if wanted != flags {
        fcntl(&fd, FcntlArg::F_SETFL(wanted))?;
    }
    Ok(())
}

/// What recvmsg(2) brought.
pub struct Received {
    pub bytes: usize,
    /// All that were passed, close-on-exec.
    pub passed: Vec<OwnedFd>,
    /// Whether nothing was cut off.
    pub whole: bool,
}

/// A message can pass so many descriptors (SCM_MAX_FD).
const PASSED_MAX: usize = 253;

/// One message with the descriptors in it. None of them is lost, whatever is wrong: a server that lost some each
/// time would soon have no room for others.
pub fn receive(connection: impl AsFd, buffer: &mut [u8]) -> Result<Received, Errno> {
    let mut control = vec![0u8; nix::cmsg_space!([RawFd; PASSED_MAX]).capacity()];
    let mut data = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let socket = connection.as_fd().as_raw_fd();
    let (bytes, flags) =
        recvmsg::<()>(socket, &mut data, Some(&mut control), flags).map(|r| (r.bytes, r.flags))?;
    let whole = !flags.intersects(MsgFlags::MSG_CTRUNC | MsgFlags::MSG_TRUNC);
    Ok(Received { bytes, passed: passed(&control), whole })
}

/// The descriptors of the one control message there can be. (nix gives none when the kernel could not pass all.)
fn passed(control: &[u8]) -> Vec<OwnedFd> {
    const NUMBER: usize = size_of::<RawFd>();
    let header = size_of::<nix::libc::cmsghdr>();
    let number = |at: usize| Some(RawFd::from_ne_bytes(control.get(at..at + NUMBER)?.try_into().ok()?));
    let length = control.first_chunk().map_or(0, |bytes| usize::from_ne_bytes(*bytes));
    let kind = (number(header - 2 * NUMBER), number(header - NUMBER));
    if kind != (Some(nix::libc::SOL_SOCKET), Some(nix::libc::SCM_RIGHTS)) {
        return Vec::new();
    }
    let numbers = (header..length.min(control.len())).step_by(NUMBER).filter_map(number);
    numbers.filter_map(|number| take(number).ok()).collect()
}
