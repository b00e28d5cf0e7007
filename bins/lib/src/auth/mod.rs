//! auth - logins that one process takes and another one checks
#![forbid(unsafe_code)]

pub mod door;
pub mod launcher;
pub mod scram;
pub mod services;

use crate::fd;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

/// Where a checker puts the server's signature of SCRAM, in base64.
pub const SIGNATURE_FD: RawFd = 4;

/// The variable that tells the program behind the checker that it is there, to be said to the client first.
pub const SIGNATURE_VARIABLE: &str = "SASL_SIGNATURE_FD";

/// A signature is 44 bytes; nobody has to say more there.
pub const SIGNATURE_MAX: usize = 128;

/// Behind name, secret and challenge.
const MECHANISM_FIELD: usize = 3;

/// What a checker writes to, and the program that it becomes reads from: a file without a name.
#[derive(Debug)]
pub struct Signature(OwnedFd);

impl Signature {
    /// One, if what a checker is told wants it.
    pub fn wanted(fields: &[u8]) -> Result<Option<Signature>, Errno> {
        if !launcher::wants_signature(fields) {
            return Ok(None);
        }
        memfd_create(c"signature", MFdFlags::MFD_CLOEXEC).map(|file| Some(Signature(file)))
    }

    /// What has been written there.
    pub fn read(&self) -> Vec<u8> {
        read_signature(&self.0)
    }
}

impl AsFd for Signature {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The signature in a checker's file: its first line, without what cannot be base64.
pub fn read_signature(file: impl AsFd) -> Vec<u8> {
    let _ = nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekSet);
    let mut chunk = [0u8; SIGNATURE_MAX];
    let n = fd::read(&file, &mut chunk).unwrap_or(0);
    let said = chunk.get(..n).unwrap_or_default();
    let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || b"+/=".contains(b);
    said.iter().take_while(|b| is_base64(b)).copied().collect()
}

/// Name and password on their way: overwritten when nobody needs them any more.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(pub Vec<u8>);

impl Secret {
    /// From a descriptor, to its end, with no copy elsewhere; EFBIG beyond `max` bytes.
    pub fn read(from: impl AsFd, max: usize) -> Result<Secret, Errno> {
        let mut secret = Secret(vec![0; max + 1]);
        let mut length = 0;
        loop {
            match fd::read(&from, secret.0.get_mut(length..).unwrap_or_default())? {
                0 if length > max => return Err(Errno::EFBIG),
                0 => break,
                n => length += n,
            }
        }
        secret.0.truncate(length);
        Ok(secret)
    }
}

impl std::ops::Deref for Secret {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Overwrites a secret. black_box keeps the compiler from leaving out what nobody reads again.
pub fn wipe(secret: &mut [u8]) {
    secret.fill(0);
    std::hint::black_box(secret);
}
