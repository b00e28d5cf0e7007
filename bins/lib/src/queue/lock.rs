//! lock - the sign of life of a message's writer
//!
//! An open-file-description lock for writing on `mess/N`, held from its creation until the answer. It
//! takes a descriptor open for writing to hold one, so a recipient's program, which gets the message for
//! reading, cannot pretend to be a writer; and looking for one takes no lock that could be in anybody's way.
#![forbid(unsafe_code)]

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::os::fd::AsFd;

/// Holds the lock as long as this open file lives. The file is new and ours: nobody else can have it.
pub fn hold(file: impl AsFd) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))).map(|_| ())
}

/// Whether a writer holds it. A file system without locks has no writers that hold any.
pub fn is_held(file: impl AsFd) -> Result<bool, Errno> {
    let mut lock = whole_file(libc::F_RDLCK);
    match fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)) {
        Ok(_) => Ok(i32::from(lock.l_type) != libc::F_UNLCK),
        Err(Errno::EINVAL | Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// From the first byte to whatever the end may become.
fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: 0, // SEEK_SET
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fd;

    #[test]
    fn a_writer_is_seen_until_it_is_gone_and_a_reader_cannot_pretend() {
        let name = std::env::temp_dir().join(format!("queue-lock-{}", std::process::id()));
        let name = name.to_str().unwrap();
        let writer = fd::create_new(name, 0o644).unwrap();
        let reader = fd::open_read(name).unwrap();
        assert_eq!(is_held(&reader), Ok(false));
        hold(&writer).unwrap();
        assert_eq!(is_held(&reader), Ok(true));
        assert!(hold(&reader).is_err());
        drop(writer);
        assert_eq!(is_held(&reader), Ok(false));
        std::fs::remove_file(name).unwrap();
    }
}
