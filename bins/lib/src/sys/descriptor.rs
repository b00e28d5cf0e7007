//! Descriptors by number: those a parent gave us, and flushes nix does not know.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A descriptor by its number, open for the life of the process: 0 to 6 as a parent arranged them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standard(pub RawFd);

impl AsFd for Standard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the number comes from a contract (fd 0 message, fd 1 envelope …) and is not closed by
        // us; should the parent not have opened it, every call on it gives EBADF, nothing worse.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

/// Takes ownership of an inherited descriptor, which closes when the value is dropped.
/// EBADF when it is not open.
pub fn take(number: RawFd) -> Result<OwnedFd, Errno> {
    nix::fcntl::fcntl(Standard(number), nix::fcntl::FcntlArg::F_GETFD)?;
    // SAFETY: it is open (just asked), and callers take a number once, at start, as their contract says.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Starts write-back of a file's dirty pages without waiting, so that the fsync that follows shares
/// its flush with others. Only a hint: failure is nothing.
pub fn start_writeback(fd: impl AsFd) {
    // SAFETY: a plain system call on a borrowed, open descriptor.
    unsafe {
        libc::sync_file_range(fd.as_fd().as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// What differs from one file to the next in the same inode; 0 where the file system does not say.
pub fn generation(file: impl AsFd) -> u64 {
    let mut found: libc::c_long = 0;
    // SAFETY: the kernel writes four or eight bytes where the pointer points, and eight are there.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::FS_IOC_GETVERSION, &raw mut found) };
    if result == 0 { u64::from_ne_bytes(found.to_ne_bytes()) } else { 0 }
}

/// Closes every descriptor above `last` that a careless parent left open. For the start of a program
/// that will run others' programs; nothing of ours may be open yet. Kernels before Linux 5.9 cannot, and
/// then nothing happens: what we open ourselves is close-on-exec anyway.
pub fn close_above(last: u32) {
    // At the start of a program no value owns a descriptor above the standard ones.
    close_range(last.saturating_add(1), u32::MAX);
}

/// Closes every descriptor above 2 but these. For a forked child that uses no other value that owns one, and
/// ends without dropping any. Kernels before Linux 5.9 cannot, and then nothing happens.
pub fn close_others(keep: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for number in kept.into_iter().filter(|number| *number > 2) {
        if number > first {
            close_range(first, number - 1);
        }
        first = number + 1;
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: the callers above say why nothing uses these numbers any more.
    unsafe {
        libc::syscall(libc::SYS_close_range, first, last, 0);
    }
}
