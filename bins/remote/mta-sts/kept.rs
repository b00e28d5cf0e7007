//! kept - the files in sts/: what is known of each domain, so that a policy holds when nobody can be asked
#![forbid(unsafe_code)]

use nix::errno::Errno;
use nix::unistd::unlink;
use qmail::fd;
use qmail::home::Home;
use remote::sts::{Kept, POLICY_MAX};

/// The directory, in the home.
const DIRECTORY: &str = "sts";

/// Domains that are known at a time; beyond that a chance one makes room.
const FILES_MAX: usize = 10_000;

/// A policy as it is kept is never longer than it came.
const FILE_MAX: usize = POLICY_MAX + 1024;

/// Where the files are.
pub struct Place {
    directory: Vec<u8>,
}

impl Place {
    pub fn of(home: &Home) -> Place {
        Place { directory: home.path(DIRECTORY) }
    }

    /// The name has been checked: letters, digits, `-`, `_` and dots between them.
    fn path(&self, domain: &[u8]) -> Vec<u8> {
        [self.directory.as_slice(), b"/", domain].concat()
    }

    /// What is kept; None when that is nothing, or damaged. The error is a file that is there and cannot be read now:
    /// what it demands is not known.
    pub fn read(&self, domain: &[u8]) -> Result<Option<Kept>, Errno> {
        match fd::read_file(self.path(domain), FILE_MAX) {
            Ok(text) => Ok(text.and_then(|text| Kept::parse(&text))),
            Err(Errno::EFBIG) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Keeps it durably. A cache that cannot be written costs a question the next time.
    pub fn write(&self, domain: &[u8], kept: &Kept) {
        if self.is_full(domain) == Ok(true) {
            return;
        }
        // No domain begins with a dot, and no other process has this number.
        let new = self.path(format!(".{}", std::process::id()).as_bytes());
        let written = fd::create(&new, 0o644)
            .and_then(|file| fd::write_all(&file, &kept.bytes()).and_then(|()| fd::fsync(&file)));
        let done = written.and_then(|()| {
            std::fs::rename(fd::path(&new), fd::path(&self.path(domain)))
                .map_err(|e| qmail::trouble::errno(&e))
        });
        match done {
            Ok(()) => _ = fd::sync_directory(&self.directory),
            Err(_) => _ = unlink(fd::path(&new)),
        }
    }

    /// Whether there is no room for one more; some other one is removed then, if that is possible. What has run
    /// out, or cannot be read, goes first.
    fn is_full(&self, domain: &[u8]) -> Result<bool, Errno> {
        if fd::open_read(self.path(domain)).is_ok() {
            return Ok(false);
        }
        let names: Vec<Vec<u8>> = std::fs::read_dir(fd::path(&self.directory))
            .map_err(|e| qmail::trouble::errno(&e))?
            .filter_map(|entry| Some(entry.ok()?.file_name().into_encoded_bytes()))
            .collect();
        if names.len() < FILES_MAX {
            return Ok(false);
        }
        let now = qmail::date::now();
        let holds =
            |name: &Vec<u8>| self.read(name).is_ok_and(|kept| kept.is_some_and(|k| k.valid(now).is_some()));
        let stale = names.iter().find(|name| !holds(name));
        // All of them hold: then a new one is not kept, for an old one may be all that protects its domain.
        Ok(stale.is_none_or(|name| unlink(fd::path(&self.path(name))).is_err()))
    }
}
