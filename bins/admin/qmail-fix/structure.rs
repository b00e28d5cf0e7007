//! The directories of a queue and what is in `lock`, with their owners and modes.
#![forbid(unsafe_code)]

use crate::place::{Kind, open_directory, unlink_at};
use crate::problem::{Mend, Problem};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat, mkdirat};
use nix::unistd::{Uid, fchown, mkfifoat};
use qmail::fd;
use qmail::home::Ids;
use qmail::queue::SPLIT;
use qmail::trouble::Trouble;
use std::os::fd::{AsFd, OwnedFd};

/// Mode bits with which others can spoil what is there.
const WRITABLE: u32 = 0o022;

/// Bytes of an empty lock/tcpto.
const TCPTO_SIZE: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Directory,
    File,
    Fifo,
}

/// Something that a queue has whatever is in it.
struct Part {
    path: String,
    kind: Type,
    role: &'static str,
    mode: u32,
}

fn parts() -> Vec<Part> {
    let part = |path: &str, kind, role, mode| Part { path: path.to_string(), kind, role, mode };
    let mut parts = vec![
        part("lock", Type::Directory, "qmailq", 0o750),
        part("pid", Type::Directory, "qmailq", 0o700),
        part("lock/sendmutex", Type::File, "qmails", 0o600),
        part("lock/tcpto", Type::File, "qmailr", 0o644),
        // What the spawners note of deliveries; they use none that somebody else owns.
        part("lock/ledger.local", Type::File, "root", 0o600),
        part("lock/ledger.remote", Type::File, "qmailr", 0o600),
        part("lock/trigger", Type::Fifo, "qmails", 0o622),
    ];
    for kind in Kind::ALL {
        let mode = if matches!(kind, Kind::Mess | Kind::Todo) { 0o750 } else { 0o700 };
        parts.push(part(kind.name(), Type::Directory, kind.role(), mode));
        for split in (0..SPLIT).filter(|_| kind.is_split()) {
            parts.push(part(&format!("{}/{split}", kind.name()), Type::Directory, kind.role(), mode));
        }
    }
    parts
}

impl Part {
    /// The open directory that it is in, and its name there. Never through a symbolic link.
    fn place(&self, root: &OwnedFd) -> Result<(OwnedFd, &str), Errno> {
        let mut at = root.try_clone().map_err(|_| Errno::EMFILE)?;
        let mut name = self.path.as_str();
        while let Some((directory, rest)) = name.split_once('/') {
            at = open_directory(&at, directory)?;
            name = rest;
        }
        Ok((at, name))
    }

    fn found(&self, root: &OwnedFd) -> Result<Option<FileStat>, Errno> {
        let looked = self.place(root).and_then(|(at, name)| fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW));
        match looked {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn file_type(&self) -> SFlag {
        match self.kind {
            Type::Directory => SFlag::S_IFDIR,
            Type::File => SFlag::S_IFREG,
            Type::Fifo => SFlag::S_IFIFO,
        }
    }

    fn is_right_type(&self, found: &FileStat) -> bool {
        SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == self.file_type()
    }

    /// What it should be, and no link to a file of somebody else.
    fn is_ours_alone(&self, found: &FileStat) -> bool {
        self.is_right_type(found) && (self.kind == Type::Directory || found.st_nlink == 1)
    }

    /// A file of another account. The directory `lock` is an account's, and by renaming and linking it can put there
    /// what others own, so root gives nothing away that it finds there: it makes a new one.
    fn is_anothers(&self, found: &FileStat, ids: &Ids) -> bool {
        Uid::effective().is_root()
            && self.kind != Type::Directory
            && self.is_right_type(found)
            && ids.role(self.role).is_some_and(|account| account.uid.as_raw() != found.st_uid)
    }

    fn problem(&self, root: &OwnedFd, ids: &Ids) -> Result<Option<Problem>, Trouble> {
        let path = &self.path;
        let Some(found) = self.found(root).map_err(|errno| Trouble::unable("look at", path, errno))? else {
            return Ok(Some(Problem::new(path, "is missing", Mend::Fix("makes it".to_string()))));
        };
        let expected = match self.kind {
            Type::Directory => "a directory",
            Type::File => "a file",
            Type::Fifo => "a fifo",
        };
        if !self.is_right_type(&found) {
            let what = format!("is not {expected}");
            return Ok(Some(Problem::new(
                path,
                what,
                Mend::Hand("move it away, then -r makes one".to_string()),
            )));
        }
        let closed = if self.kind == Type::Fifo { 0 } else { WRITABLE };
        Ok(owner_problem(path, &found, ids, self.role, self.mode, closed))
    }

    fn make(&self, root: &OwnedFd, ids: &Ids) -> Result<(), Errno> {
        let (at, name) = self.place(root)?;
        let mode = Mode::from_bits_truncate(self.mode);
        let made = match self.kind {
            Type::Directory => {
                mkdirat(&at, name, mode)?;
                self.open(root)?
            }
            Type::Fifo => {
                mkfifoat(&at, name, mode)?;
                self.open(root)?
            }
            Type::File => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let file = openat(&at, name, flags, mode)?;
                if self.path.ends_with("tcpto") {
                    fd::write_all(&file, &[0u8; TCPTO_SIZE])?;
                }
                file
            }
        };
        // Whose directory it is may have put something else there meanwhile.
        let found = fstat(&made)?;
        if !self.is_ours_alone(&found) || found.st_uid != Uid::effective().as_raw() {
            return Err(Errno::EAGAIN);
        }
        mend_owner(made, ids, self.role, self.mode)?;
        fd::fsync(at)
    }

    fn open(&self, root: &OwnedFd) -> Result<OwnedFd, Errno> {
        let (at, name) = self.place(root)?;
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        openat(at, name, flags, Mode::empty())
    }
}

/// What is wrong with an owner or a mode; `closed` are bits that must not be.
pub fn owner_problem(
    path: &str,
    found: &FileStat,
    ids: &Ids,
    role: &str,
    mode: u32,
    closed: u32,
) -> Option<Problem> {
    if let Some(account) = ids.role(role)
        && found.st_uid != account.uid.as_raw()
    {
        let what = format!("belongs to uid {} and not to {}", found.st_uid, account.uid);
        let mend = if Uid::effective().is_root() {
            Mend::Fix("mends that".to_string())
        } else {
            Mend::Hand("root must chown it".to_string())
        };
        return Some(Problem::new(path, what, mend));
    }
    let wanted = mode & !WRITABLE; // group and others may read less than they should, but not the owner
    (found.st_mode & closed != 0 || found.st_mode & 0o700 & wanted != wanted & 0o700 || lacks(found, wanted))
        .then(|| {
            let what = format!("has mode {:o} and not {mode:o}", found.st_mode & 0o7777);
            Problem::new(path, what, Mend::Fix("mends that".to_string()))
        })
}

/// Readers of other accounts are shut out.
fn lacks(found: &FileStat, wanted: u32) -> bool {
    found.st_mode & 0o050 & wanted != wanted & 0o050
}

/// What its owner cannot even open. Nobody but he is asked for: root can open everything, and in its hands a name
/// may be a link to somebody else's.
pub fn open_up(at: impl AsFd, name: &str, mode: u32) {
    if !Uid::effective().is_root() {
        let _ = fchmodat(at, name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink);
    }
}

/// Owner and mode, of an open file.
pub fn mend_owner(file: impl AsFd, ids: &Ids, role: &str, mode: u32) -> Result<(), Errno> {
    if let Some(account) = ids.role(role)
        && Uid::effective().is_root()
    {
        fchown(&file, Some(account.uid), Some(account.gid))?;
    }
    fchmod(&file, Mode::from_bits_truncate(mode))
}

pub fn problems(root: &OwnedFd, ids: &Ids) -> Result<Vec<Problem>, Trouble> {
    let mut problems = Vec::new();
    for part in parts() {
        problems.extend(part.problem(root, ids)?);
    }
    Ok(problems)
}

/// Makes what is missing and mends owners and modes.
pub fn mend(root: &OwnedFd, ids: &Ids) -> Result<(), Trouble> {
    for part in parts() {
        let unable = |errno| Trouble::unable("make", &part.path, errno);
        let found = part.found(root).map_err(unable)?;
        let is_anothers = found.is_some_and(|found| part.is_anothers(&found, ids));
        if is_anothers {
            let (at, name) = part.place(root).map_err(unable)?;
            unlink_at(&at, name).map_err(unable)?;
        }
        if is_anothers || found.is_none() {
            part.make(root, ids).map_err(unable)?;
            continue;
        }
        if !matches!(part.problem(root, ids)?, Some(Problem { mend: Mend::Fix(_), .. })) {
            continue;
        }
        let unable = |errno| Trouble::unable("mend", &part.path, errno);
        let (at, name) = part.place(root).map_err(unable)?;
        open_up(&at, name, part.mode);
        let file = part.open(root).map_err(unable)?;
        let found = fstat(&file).map_err(unable)?;
        if part.is_ours_alone(&found) && !part.is_anothers(&found, ids) {
            mend_owner(file, ids, part.role, part.mode).map_err(unable)?;
        } // else it stays in the list
    }
    Ok(())
}
