//! auth - logins that one process takes and another one checks
#![forbid(unsafe_code)]

pub mod door;
pub mod services;

use crate::fd;
use nix::errno::Errno;
use std::os::fd::AsFd;

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
