//! Where the files of a queue are. Every directory is opened once, from `queue/` down and never through a
//! symbolic link, and worked in by its descriptor: in a system home root works here among files of daemons.
#![forbid(unsafe_code)]

use crate::structure::open_up;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use qmail::fd;
use qmail::queue::{self, Number, SPLIT};
use qmail::trouble::Trouble;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a file of a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Local,
    Remote,
    Bounce,
    Info,
    Intd,
    Todo,
    Mess,
}

impl Kind {
    /// In the order in which their names may change: mess keeps its number taken until the last.
    pub const ALL: [Kind; 7] =
        [Kind::Local, Kind::Remote, Kind::Bounce, Kind::Info, Kind::Intd, Kind::Todo, Kind::Mess];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Local => "local",
            Kind::Remote => "remote",
            Kind::Bounce => "bounce",
            Kind::Info => "info",
            Kind::Intd => "intd",
            Kind::Todo => "todo",
            Kind::Mess => "mess",
        }
    }

    pub fn is_split(self) -> bool {
        matches!(self, Kind::Local | Kind::Remote | Kind::Info | Kind::Mess)
    }

    /// Who owns it.
    pub fn role(self) -> &'static str {
        match self {
            Kind::Mess | Kind::Todo | Kind::Intd => "qmailq",
            _ => "qmails",
        }
    }

    pub fn mode(self) -> u32 {
        match self {
            Kind::Mess | Kind::Todo | Kind::Intd => 0o644,
            _ => 0o600,
        }
    }

    /// Which of its directories a number belongs in.
    pub fn split(self, number: Number) -> u64 {
        if self.is_split() { number % SPLIT } else { 0 }
    }
}

/// What the name of a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Of(Number),
    /// On its way from one number to another.
    Moving(Number, Number),
    /// Being written for a message that is accepted.
    Draft(Number),
    /// Of no message, and it was in the way of one.
    Lost(Number),
}

impl Name {
    pub fn parse(name: &[u8]) -> Option<Name> {
        if let Some(number) = queue::number(name) {
            return Some(Name::Of(number));
        }
        let at = name.iter().position(|b| *b == b'.')?;
        let (from, to) = (queue::number(name.get(..at)?)?, name.get(at + 1..)?);
        Some(match to {
            b"fix" => Name::Draft(from),
            b"lost" => Name::Lost(from),
            _ => Name::Moving(from, queue::number(to)?),
        })
    }

    pub fn text(self) -> String {
        match self {
            Name::Of(number) => number.to_string(),
            Name::Moving(from, to) => format!("{from}.{to}"),
            Name::Draft(number) => format!("{number}.fix"),
            Name::Lost(number) => format!("{number}.lost"),
        }
    }
}

/// A file of a message, and where it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub kind: Kind,
    pub split: u64,
    pub name: Name,
}

impl Piece {
    /// Where it belongs.
    pub fn at(kind: Kind, number: Number) -> Piece {
        Piece { kind, split: kind.split(number), name: Name::Of(number) }
    }

    pub fn named(self, name: Name) -> Piece {
        Piece { name, ..self }
    }

    pub fn path(self) -> String {
        let (kind, name) = (self.kind.name(), self.name.text());
        if self.kind.is_split() { format!("{kind}/{}/{name}", self.split) } else { format!("{kind}/{name}") }
    }
}

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

pub fn open_directory(at: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    openat(at, name, DIRECTORY, Mode::empty())
}

/// An open queue.
pub struct Queue {
    pub root: OwnedFd,
    directories: BTreeMap<(Kind, u64), OwnedFd>,
}

impl Queue {
    pub fn open(root: OwnedFd) -> Result<Queue, Trouble> {
        // One that is missing or is none has been said by then, and nothing is found in it.
        let open = |at: &OwnedFd, name: &str, path: &str| match open_directory(at, name) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(errno) => Err(Trouble::unable("open", path, errno)),
        };
        let mut directories = BTreeMap::new();
        for kind in Kind::ALL {
            let Some(top) = open(&root, kind.name(), kind.name())? else { continue };
            if !kind.is_split() {
                directories.insert((kind, 0), top);
                continue;
            }
            for split in numbers(&top).map_err(|errno| Trouble::unable("list", kind.name(), errno))? {
                let name = split.to_string();
                let opened = open(&top, &name, &format!("{}/{name}", kind.name()))?;
                directories.extend(opened.map(|opened| ((kind, split), opened)));
            }
        }
        Ok(Queue { root, directories })
    }

    /// Directories of another split, and whether nothing is in them. What is in one may be a message that is still
    /// to be moved.
    pub fn foreign(&self) -> Result<Vec<(Kind, u64, bool)>, Trouble> {
        let mut found = Vec::new();
        for ((kind, split), directory) in self.directories.iter().filter(|((_, split), _)| *split >= SPLIT) {
            let unable = |errno| Trouble::unable("list", format!("{}/{split}", kind.name()), errno);
            if fstat(directory).map_err(unable)?.st_nlink == 0 {
                continue; // we have just removed it
            }
            let inside = names(directory).map_err(unable)?;
            found.push((*kind, *split, inside.iter().all(|name| matches!(name.as_slice(), b"." | b".."))));
        }
        Ok(found)
    }

    /// Directories where messages of todo and intd should be: the big-todo patch makes them.
    pub fn split_todo(&self) -> Result<Vec<Piece>, Trouble> {
        let mut found = Vec::new();
        for piece in self.pieces()?.into_iter().filter(|p| matches!(p.kind, Kind::Todo | Kind::Intd)) {
            let stat = self.stat(piece).map_err(|errno| Trouble::unable("look at", piece.path(), errno))?;
            let is_directory = stat.is_some_and(|stat| {
                SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
            });
            // In the place of a message's envelope, whose mess is there, it is damage of that message.
            if let Name::Of(number) = piece.name
                && is_directory
                && matches!(self.stat(Piece::at(Kind::Mess, number)), Ok(None))
            {
                found.push(piece);
            }
        }
        Ok(found)
    }

    /// An empty directory of another split.
    pub fn remove_foreign(&self, kind: Kind, split: u64) -> Result<(), Errno> {
        let top = open_directory(&self.root, kind.name())?;
        match unlinkat(&top, split.to_string().as_str(), UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()), // it stays in the list
            other => other.and_then(|()| fd::fsync(&top)),
        }
    }

    fn directory(&self, piece: Piece) -> Result<BorrowedFd<'_>, Errno> {
        self.directories.get(&(piece.kind, piece.split)).map(AsFd::as_fd).ok_or(Errno::ENOENT)
    }

    /// Everything that has a name of ours.
    pub fn pieces(&self) -> Result<Vec<Piece>, Trouble> {
        let mut pieces = Vec::new();
        for ((kind, split), directory) in &self.directories {
            let path = format!("{}/{split}", kind.name());
            let names = names(directory).map_err(|errno| Trouble::unable("list", path, errno))?;
            let found = names.iter().filter_map(|name| Name::parse(name));
            pieces.extend(found.map(|name| Piece { kind: *kind, split: *split, name }));
        }
        Ok(pieces)
    }

    /// What is there under this name; a symbolic link is itself.
    pub fn stat(&self, piece: Piece) -> Result<Option<FileStat>, Errno> {
        let Ok(directory) = self.directory(piece) else { return Ok(None) };
        match fstatat(directory, piece.name.text().as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens a file for reading; nothing else than a file.
    pub fn open_file(&self, piece: Piece) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(self.directory(piece)?, piece.name.text().as_str(), flags, Mode::empty())?;
        if is_file(&fstat(&file)?) { Ok(file) } else { Err(Errno::EINVAL) }
    }

    /// Makes that its owner can open it.
    pub fn open_up(&self, piece: Piece) {
        if let Ok(directory) = self.directory(piece) {
            open_up(directory, &piece.name.text(), piece.kind.mode());
        }
    }

    /// A new file, in the place of one that an earlier try left.
    pub fn create(&self, piece: Piece) -> Result<OwnedFd, Errno> {
        self.unlink(piece)?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(piece.kind.mode());
        openat(self.directory(piece)?, piece.name.text().as_str(), flags, mode)
    }

    /// Within its directory.
    pub fn rename(&self, piece: Piece, name: Name) -> Result<(), Errno> {
        let directory = self.directory(piece)?;
        renameat(directory, piece.name.text().as_str(), directory, name.text().as_str())
    }

    pub fn link(&self, from: Piece, to: Piece) -> Result<(), Errno> {
        let (old, new) = (from.name.text(), to.name.text());
        linkat(self.directory(from)?, old.as_str(), self.directory(to)?, new.as_str(), AtFlags::empty())
    }

    /// What may be missing already.
    pub fn unlink(&self, piece: Piece) -> Result<(), Errno> {
        unlink_at(self.directory(piece)?, &piece.name.text())
    }

    pub fn sync(&self, piece: Piece) -> Result<(), Errno> {
        fd::fsync(self.directory(piece)?)
    }

    /// All names, of these kinds.
    pub fn sync_all(&self, kinds: &[Kind]) -> Result<(), Trouble> {
        for ((kind, split), directory) in
            self.directories.iter().filter(|((kind, _), _)| kinds.contains(kind))
        {
            let path = format!("{}/{split}", kind.name());
            fd::fsync(directory).map_err(|errno| Trouble::unable("sync", path, errno))?;
        }
        Ok(())
    }
}

pub fn unlink_at(directory: impl AsFd, name: &str) -> Result<(), Errno> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

pub fn is_file(found: &FileStat) -> bool {
    SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}

/// The names in a directory, in no order.
pub fn names(directory: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    // Of its own: the offset of a shared descriptor would be shared, too.
    let mut open = Dir::openat(directory, ".", DIRECTORY, Mode::empty())?;
    let mut names = Vec::new();
    for entry in open.iter() {
        names.push(entry?.file_name().to_bytes().to_vec());
    }
    Ok(names)
}

fn numbers(directory: impl AsFd) -> Result<Vec<u64>, Errno> {
    Ok(names(directory)?.iter().filter_map(|name| queue::number(name)).collect())
}
