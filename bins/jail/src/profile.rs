//! profile - what is said about a program: as whom it runs, and what it may touch
#![forbid(unsafe_code)]

use crate::calls::Group;

/// What may be done in a place and below it: a sum of the following.
pub type Access = u16;

pub const READ: Access = 1;
pub const LIST: Access = 1 << 1;
/// Open an existing file for writing.
pub const WRITE: Access = 1 << 2;
pub const TRUNCATE: Access = 1 << 3;
pub const CREATE: Access = 1 << 4;
pub const UNLINK: Access = 1 << 5;
/// Link and rename from and to other directories. (Within one, CREATE and UNLINK are enough.)
pub const MOVE: Access = 1 << 6;
pub const MKDIR: Access = 1 << 7;
pub const EXECUTE: Access = 1 << 8;
/// Remove empty directories.
pub const RMDIR: Access = 1 << 10;
/// Read what symbolic links directly in it lead to when the jail closes. (Who writes replaces the link.)
pub const LINKS: Access = 1 << 9;

/// Each with its word in the table.
pub const WORDS: [(Access, &str); 11] = [
    (READ, "read"),
    (LIST, "list"),
    (WRITE, "write"),
    (TRUNCATE, "truncate"),
    (CREATE, "create"),
    (UNLINK, "unlink"),
    (MOVE, "move"),
    (MKDIR, "mkdir"),
    (RMDIR, "rmdir"),
    (EXECUTE, "execute"),
    (LINKS, "(its links: read)"),
];

/// A place in the file system.
#[derive(Debug, Clone, Copy)]
pub enum Where {
    /// Below the home.
    Home(&'static str),
    /// From the root, or from the working directory.
    Path(&'static str),
    /// What the program names when it closes the jail.
    Given(&'static str),
}

#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub at: Where,
    pub may: Access,
}

/// Places that several profiles share, or one's own, which have no name.
#[derive(Debug, Clone, Copy)]
pub struct Lot {
    pub name: &'static str,
    pub places: &'static [Place],
}

#[derive(Debug, Clone, Copy)]
pub enum Network {
    /// Nothing: TCP is refused by Landlock, every new socket by seccomp where there is a filter.
    None,
    /// Only sockets of the local machine; what for.
    Local(&'static str),
    /// TCP to the ports that were given, and what else.
    Ports(&'static str),
    /// Not limited; why.
    Any(&'static str),
}

#[derive(Debug, Clone, Copy)]
pub enum Exec {
    Nothing,
    /// Only what the places say, under this jail: a program of ours.
    Ours(&'static str),
    /// Anything, so the program has no jail.
    Anything(&'static str),
}

impl Exec {
    pub const fn is_nothing(self) -> bool {
        matches!(self, Exec::Nothing)
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Lock {
    /// rlimits, no_new_privs and Landlock; seccomp with these calls, unless there are none.
    Jail(&'static [&'static Group]),
    /// rlimits only; the reason is in `exec`.
    Limits,
    /// Nothing yet.
    Open,
}

/// One program, or one part of its life.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    /// The program.
    pub name: &'static str,
    /// Which part of its life, if not all of it.
    pub part: &'static str,
    /// As whom it runs in a system home.
    pub uid: &'static str,
    pub files: &'static [Lot],
    pub network: Network,
    pub exec: Exec,
    pub lock: Lock,
    /// No further process either, by rlimit.
    pub alone: bool,
    /// A second jail of the same process: files and ports stay as the first one left them.
    pub stays: bool,
}

impl Profile {
    /// Nothing allowed but what follows.
    pub const fn jail(name: &'static str, uid: &'static str) -> Profile {
        Profile {
            name,
            part: "",
            uid,
            files: &[],
            network: Network::None,
            exec: Exec::Nothing,
            lock: Lock::Jail(&[]),
            alone: true,
            stays: false,
        }
    }

    /// rlimits only, because of what it executes, or because it can do no more than who calls it.
    pub const fn limits(name: &'static str, uid: &'static str, executes: &'static str) -> Profile {
        Profile {
            exec: Exec::Anything(executes),
            network: Network::Any("not limited"),
            lock: Lock::Limits,
            ..Profile::jail(name, uid)
        }
    }

    /// A program that does not close any jail yet: it is in the table all the same.
    pub const fn open(name: &'static str, uid: &'static str, executes: &'static str) -> Profile {
        Profile { lock: Lock::Open, ..Profile::limits(name, uid, executes) }
    }

    pub const fn part(self, part: &'static str) -> Profile {
        Profile { part, ..self }
    }

    pub const fn files(self, files: &'static [Lot]) -> Profile {
        Profile { files, ..self }
    }

    pub const fn network(self, network: Network) -> Profile {
        Profile { network, ..self }
    }

    /// Executes a program of ours under this jail.
    pub const fn executes(self, what: &'static str) -> Profile {
        Profile { exec: Exec::Ours(what), alone: false, ..self }
    }

    /// Forks, though it executes nothing.
    pub const fn forks(self) -> Profile {
        Profile { alone: false, ..self }
    }

    /// These system calls and no others.
    pub const fn calls(self, groups: &'static [&'static Group]) -> Profile {
        Profile { lock: Lock::Jail(groups), ..self }
    }

    /// A second jail inside the first.
    pub const fn stays(self) -> Profile {
        Profile { stays: true, ..self }
    }

    pub fn is_jail(&self) -> bool {
        matches!(self.lock, Lock::Jail(_))
    }

    pub fn places(&self) -> impl Iterator<Item = &'static Place> {
        self.files.iter().flat_map(|lot| lot.places)
    }

    /// Whether it can only be closed with a home.
    pub fn needs_home(&self) -> bool {
        self.places().any(|place| matches!(place.at, Where::Home(_)))
    }

    /// Whether seccomp limits its system calls.
    pub fn is_filtered(&self) -> bool {
        matches!(self.lock, Lock::Jail(groups) if !groups.is_empty())
    }
}
