//! `bounce/N`: what the sender will be told, collected while other recipients are still being tried.
#![forbid(unsafe_code)]

use crate::desk::sync_parent;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::sys::uio::pread;
use nix::unistd::ftruncate;
use qmail::fd;
use qmail::queue::{Number, bounce_path};
use std::os::fd::OwnedFd;

/// Appends a paragraph; Ok means that it is on disk under its name, so that the recipient may be marked
/// as done. With trouble the file is as it was.
pub fn append(number: Number, paragraph: &[u8]) -> Result<(), Errno> {
    let name = bounce_path(number);
    write(&name, paragraph, |file| {
        fd::fsync(file)?; // model: L5
        sync_parent(&name) // model: L6
    })
}

/// As `append`, for a message whose `todo/N` still stands for everybody: nothing is synced.
pub fn append_unsynced(number: Number, paragraph: &[u8]) -> Result<(), Errno> {
    write(&bounce_path(number), paragraph, |_| Ok(()))
}

fn write(
    name: &str,
    paragraph: &[u8],
    sync: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    let file = open(name, flags, Mode::from_bits_truncate(0o600))?;
    let before = fstat(&file)?.st_size;
    let written = separator(&file, before).and_then(|separator| {
        fd::write_all(&file, separator)?;
        fd::write_all(&file, paragraph)?; // model: L4
        sync(&file)
    });
    if written.is_err() {
        let _ = ftruncate(&file, before);
    }
    written
}

/// What ends a paragraph that a crash cut off, so that the next one stands by itself.
fn separator(file: &OwnedFd, size: i64) -> Result<&'static [u8], Errno> {
    let mut tail = [0u8; 2];
    let n = pread(file, &mut tail, (size - 2).max(0))?;
    Ok(match tail.get(..n).unwrap_or_default() {
        b"" | b"\n\n" => b"",
        [.., b'\n'] => b"\n",
        _ => b"\n\n",
    })
}
