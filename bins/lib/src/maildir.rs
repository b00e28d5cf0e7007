//! maildir - delivers a message into a Maildir, durably (maildir(5))
//!
//! Order, and why none of it may move: the file is written and synced in `tmp`, then linked into `new`,
//! then `new` is synced, and only then is the delivery a success. Until the link nobody sees it; after
//! the sync no power cut can take it back. A failure removes what was made and leaves nothing visible.
#![forbid(unsafe_code)]

use crate::fd;
use crate::timed::Deadline;
use crate::trouble::is_temporary;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Readers may remove files in `tmp` that are 36 hours old; no delivery lives that long.
pub const TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Two names that collide in the same microsecond of the same process number do not collide again.
const NAME_TRIES: u32 = 3;

/// Bytes of the host's name that go into a file name, before `/` and `:` are spelt out.
const HOST_MAX: usize = 64;

/// One read and one write move this much.
const CHUNK: usize = 64 * 1024;

/// Why nothing was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// There is no such directory, or it may not be entered.
    Directory,
    /// The message could not be read.
    Message,
    /// More than `TIMEOUT` went by.
    Timeout,
    /// Anything else: it may go better another time.
    Temporary,
}

/// The name of a message: `SECONDS.MmicrosecondsPpidQsequence.HOST`. Unique on this host, without `/`
/// and `:`, and not starting with a dot.
pub fn unique_name(time: Duration, pid: u32, sequence: u32, host: &[u8]) -> Vec<u8> {
    let (seconds, micros) = (time.as_secs(), time.subsec_micros());
    let mut name = format!("{seconds}.M{micros:06}P{pid}Q{sequence}.").into_bytes();
    for byte in host.iter().take(HOST_MAX) {
        match byte {
            b'/' => name.extend_from_slice(b"\\057"),
            b':' => name.extend_from_slice(b"\\072"),
            0..=b' ' | 0x7f => name.push(b'_'),
            other => name.push(*other),
        }
    }
    name
}

/// Writes `head` and then the message, from its beginning, as a new file of this Maildir. `sequence`
/// tells apart what one process delivers.
pub fn deliver(directory: &[u8], head: &[u8], message: impl AsFd, sequence: u32) -> Result<(), Failure> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let maildir = nix::fcntl::open(fd::path(directory), flags, Mode::empty())
        .map_err(|errno| if is_temporary(errno) { Failure::Temporary } else { Failure::Directory })?;
    let deadline = Deadline::after(TIMEOUT);
    let new = open_new(&maildir).map_err(temporary)?;
    let (name, file) = create(&maildir, sequence).map_err(temporary)?;
    let result = write(file, head, message, deadline).and_then(|()| publish(&maildir, new, &name, deadline));
    let _ = remove(&maildir, b"tmp/", &name); // published or failed: the other name is not needed
    result
}

fn temporary(_: Errno) -> Failure {
    Failure::Temporary
}

fn within(directory: &[u8], name: &[u8]) -> Vec<u8> {
    [directory, name].concat()
}

fn remove(maildir: &OwnedFd, directory: &[u8], name: &[u8]) -> Result<(), Errno> {
    unlinkat(maildir, fd::path(&within(directory, name)), UnlinkatFlags::NoRemoveDir)
}

/// `new`, opened for syncing; None when it may be written but not read (somebody else's drop box).
fn open_new(maildir: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    match openat(maildir, "new", flags, Mode::empty()) {
        Ok(new) => Ok(Some(new)),
        Err(Errno::EACCES) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn create(maildir: &OwnedFd, sequence: u32) -> Result<(Vec<u8>, OwnedFd), Errno> {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host = std::os::unix::ffi::OsStringExt::into_vec(host);
    let mut tries = 0;
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = unique_name(now, std::process::id(), sequence, &host);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let path = within(b"tmp/", &name);
        match openat(maildir, fd::path(&path), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(file) => return Ok((name, file)),
            Err(Errno::EEXIST) if tries < NAME_TRIES => tries += 1,
            Err(errno) => return Err(errno),
        }
    }
}

fn write(file: OwnedFd, head: &[u8], message: impl AsFd, deadline: Deadline) -> Result<(), Failure> {
    crate::mbox::rewind(&message).map_err(|_| Failure::Message)?;
    let mut buffer = vec![0; CHUNK];
    let mut out = head.to_vec();
    loop {
        let n = fd::read(&message, &mut buffer).map_err(|_| Failure::Message)?;
        out.extend_from_slice(buffer.get(..n).unwrap_or_default());
        if deadline.passed() {
            return Err(Failure::Timeout);
        }
        fd::write_all(&file, &out).map_err(temporary)?;
        if n == 0 {
            break;
        }
        out.clear();
    }
    fd::fsync(&file).map_err(temporary)?;
    nix::unistd::close(file).map_err(temporary)
}

/// The commit: after this returns, and not before, the message is the user's.
fn publish(maildir: &OwnedFd, new: Option<OwnedFd>, name: &[u8], deadline: Deadline) -> Result<(), Failure> {
    if deadline.passed() {
        return Err(Failure::Timeout);
    }
    let (from, to) = (within(b"tmp/", name), within(b"new/", name));
    linkat(maildir, fd::path(&from), maildir, fd::path(&to), AtFlags::empty()).map_err(temporary)?;
    let synced = match new {
        Some(new) => fd::fsync(new),
        None => sync_around(maildir, &to),
    };
    synced.map_err(|_| {
        // Visible, but perhaps not for long: taken back, so that the next attempt is not a second copy.
        let _ = remove(maildir, b"new/", name);
        Failure::Temporary
    })
}

/// Makes a name durable whose directory cannot be opened: the whole file system is synced.
fn sync_around(maildir: &OwnedFd, file: &[u8]) -> Result<(), Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    nix::unistd::syncfs(openat(maildir, fd::path(file), flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("maildir-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        for directory in ["tmp", "new", "cur"] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        root
    }

    fn message(root: &std::path::Path, text: &[u8]) -> std::fs::File {
        let mut file = std::fs::File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(root.join("message"))
            .unwrap();
        file.write_all(text).unwrap();
        file.seek(std::io::SeekFrom::Start(3)).unwrap();
        file
    }

    fn bytes(path: &std::path::Path) -> &[u8] {
        std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
    }

    #[test]
    fn a_name_has_no_slash_and_no_colon_and_starts_with_the_time() {
        let name = unique_name(Duration::new(1_700_000_000, 42_000), 77, 1, b"a/b:c d");
        assert_eq!(name, b"1700000000.M000042P77Q1.a\\057b\\072c_d");
        assert!(unique_name(Duration::ZERO, 1, 0, &[b'x'; 300]).len() < 100);
    }

    #[test]
    fn a_message_arrives_whole_in_new_and_tmp_is_left_empty() {
        let root = scratch("whole");
        let text = b"Subject: x\n\nno newline at the end".repeat(9000);
        for sequence in 0..2 {
            deliver(bytes(&root), b"Head: y\n", message(&root, &text), sequence).unwrap();
        }
        let files: Vec<_> = std::fs::read_dir(root.join("new")).unwrap().collect();
        assert_eq!(files.len(), 2);
        for file in files {
            assert_eq!(
                std::fs::read(file.unwrap().path()).unwrap(),
                [b"Head: y\n".as_slice(), &text].concat()
            );
        }
        assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_missing_part_fails_and_leaves_nothing() {
        let root = scratch("missing");
        assert_eq!(deliver(b"/nonexistent/x", b"", message(&root, b"x"), 0), Err(Failure::Directory));
        std::fs::remove_dir(root.join("new")).unwrap();
        assert_eq!(deliver(bytes(&root), b"", message(&root, b"x"), 0), Err(Failure::Temporary));
        assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
        std::fs::remove_dir_all(root).unwrap();
    }
}
