//! jail - what a program gives up once it knows what it needs
//!
//! One line in a program closes its jail, and that line is the privilege review:
//!
//! ```no_run
//! # fn f(home: &qmail::home::Home) -> Result<(), qmail::trouble::Trouble> {
//! jail::Jail::of(&jail::programs::QMAIL_CLEAN).home(home).close()?;
//! # Ok(()) }
//! ```
//!
//! `programs` says what each program may do, `calls` which system calls, `files` and `filter` make the kernel
//! see to it (Landlock, seccomp). What is refused answers EACCES or EPERM and nobody is killed. A jail holds
//! for the process and what it starts, for good: *it is never handed to a program that is not ours*.
//! On a kernel that cannot do a part of it programs run on without that part; `support` says what is
//! missing. A jail that cannot be closed for any other reason is a temporary failure.
//!
//! It may be closed in a forked child, with a profile of the child's own (`aside` does it for a single
//! answer), and more than once: the second can only be narrower than the first.
#![forbid(unsafe_code)]

mod aside;
pub mod calls;
mod files;
mod filter;
pub mod profile;
pub mod programs;

pub use aside::aside;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
pub use profile::Profile;
use profile::{Lock, Where};
use qmail::fd;
use qmail::home::Home;
use qmail::trouble::Trouble;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A jail that is still open.
pub struct Jail<'a> {
    profile: &'static Profile,
    home: Option<&'a Home>,
    given: Vec<(&'static str, Vec<u8>)>,
    ports: Vec<u16>,
}

impl<'a> Jail<'a> {
    pub fn of(profile: &'static Profile) -> Jail<'a> {
        Jail { profile, home: None, given: Vec::new(), ports: Vec::new() }
    }

    /// The home that the profile's places lie in.
    pub fn home(mut self, home: &'a Home) -> Self {
        self.home = Some(home);
        self
    }

    /// Where a place is that the profile knows by its name only. More than one may have that name.
    pub fn place(mut self, name: &'static str, path: impl Into<Vec<u8>>) -> Self {
        self.given.push((name, path.into()));
        self
    }

    /// The only TCP ports that may be connected to.
    pub fn ports(mut self, ports: impl IntoIterator<Item = u16>) -> Self {
        self.ports.extend(ports);
        self
    }

    /// Closes it. Failure is temporary, and the program must not go on.
    pub fn close(self) -> Result<(), Trouble> {
        if !self.profile.stays {
            limit(self.profile)?;
        }
        let Lock::Jail(calls) = self.profile.lock else { return Ok(()) };
        if !self.profile.stays {
            let places = self.places()?;
            files::restrict(self.profile, &places, &self.ports).map_err(|e| trouble(&e.to_string()))?;
        }
        filter::install(calls).map_err(|e| trouble(&e))
    }

    /// The places of the profile that are there, opened, with what may be done in them. One that is missing
    /// or closed to us anyway needs no permission.
    fn places(&self) -> Result<Vec<(OwnedFd, profile::Access)>, Trouble> {
        let mut found = Vec::new();
        for place in self.profile.places() {
            match place.at {
                Where::Home(name) => {
                    let home = self.home.ok_or_else(|| trouble("no home was given"))?;
                    open(&home.path(name), place.may, &mut found)?;
                }
                Where::Path(path) => open(path.as_bytes(), place.may, &mut found)?,
                Where::Given(name) => {
                    for (_, path) in self.given.iter().filter(|(given, _)| *given == name) {
                        open(path, place.may, &mut found)?;
                    }
                }
            }
        }
        Ok(found)
    }
}

fn trouble(reason: &str) -> Trouble {
    Trouble::temporary(format!("unable to close the jail: {reason}"))
}

fn open(
    path: &[u8],
    may: profile::Access,
    found: &mut Vec<(OwnedFd, profile::Access)>,
) -> Result<(), Trouble> {
    use nix::fcntl::OFlag;
    match nix::fcntl::open(fd::path(path), OFlag::O_PATH | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty()) {
        Ok(place) => found.push((place, may)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ELOOP) => return Ok(()),
        Err(errno) => return Err(Trouble::unable("close the jail around", path, errno)),
    }
    if may & profile::LINKS != 0 {
        links(path, found)?;
    }
    Ok(())
}

/// What symbolic links directly in this directory lead to: `control/me` may be a link to /etc/mailname. The
/// directory of the target, for the file may be replaced; a directory itself; but never all of the system.
fn links(directory: &[u8], found: &mut Vec<(OwnedFd, profile::Access)>) -> Result<(), Trouble> {
    let Ok(entries) = std::fs::read_dir(fd::path(directory)) else { return Ok(()) };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_symlink())) {
        let link = [directory, b"/", entry.file_name().as_bytes()].concat();
        let Ok(target) = std::fs::canonicalize(fd::path(&link)) else { continue };
        if target.parent().is_none() {
            continue;
        }
        let place = if target.is_dir() { target.into_os_string().into_vec() } else { home_of(&link) };
        open(&place, profile::READ, found)?;
    }
    Ok(())
}

/// The directory that a file really lies in, or the file itself where that is the root or not to be found.
pub fn home_of(path: &[u8]) -> Vec<u8> {
    let Ok(target) = std::fs::canonicalize(fd::path(path)) else { return path.to_vec() };
    match target.parent() {
        Some(directory) if directory.parent().is_some() => directory.as_os_str().as_bytes().to_vec(),
        _ => path.to_vec(),
    }
}

/// Inside a jail that forks: no further process from here, for good.
pub fn alone() -> Result<(), Trouble> {
    setrlimit(Resource::RLIMIT_NPROC, 0, 0).map_err(|e| Trouble::unable("set", "resource limits", e))
}

/// rlimits: no core dump, it would hold other people's mail, and no further process for who starts none. Where
/// another program may come after, core dumps are off softly: it may have other needs.
fn limit(profile: &Profile) -> Result<(), Trouble> {
    let result = match profile.lock {
        Lock::Jail(_) if profile.alone => {
            setrlimit(Resource::RLIMIT_CORE, 0, 0).and_then(|()| setrlimit(Resource::RLIMIT_NPROC, 0, 0))
        }
        _ => getrlimit(Resource::RLIMIT_CORE)
            .and_then(|(_, ceiling)| setrlimit(Resource::RLIMIT_CORE, 0, ceiling)),
    };
    result.map_err(|e| Trouble::unable("set", "resource limits", e))
}

/// What this kernel cannot do of the jails, for a person; empty when nothing is missing.
pub fn support() -> Vec<String> {
    let mut missing = files::missing();
    missing.extend(filter::missing());
    missing
}

/// The directory that holds this name: what a file is created or renamed in.
pub fn parent(path: &[u8]) -> Vec<u8> {
    match path.iter().rposition(|b| *b == b'/') {
        Some(0) => b"/".to_vec(),
        Some(at) => path.get(..at).unwrap_or_default().to_vec(),
        None => b".".to_vec(),
    }
}
