//! maildrop - the messages of one session: taken down once, found again, deleted at the end
#![forbid(unsafe_code)]

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, lstat, stat};
use nix::unistd::{linkat, unlink};
use qmail::fd;
use qmail::pop3::{Name, base, uidlist_record, unique_id};
use qmail::timed::{Line, Reader};
use qmail::trouble::errno;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, SystemTime};

/// A file in tmp that nobody touched for so long belongs to a delivery that died.
const TMP_SECONDS: u64 = 129_600;

/// A directory that changed within this time of a scan may have changed after it: clocks of file
/// systems are coarse.
const COARSE: Duration = Duration::from_secs(2);

/// A line of dovecot-uidlist: a file name of at most 255 bytes, and some fields.
const UIDLIST_LINE_MAX: usize = 4096;

pub struct Message {
    /// With its directory: `new/NAME` or `cur/NAME`.
    path: Box<[u8]>,
    /// A second name, in `new`: another session gave it the one in `cur` and was stopped there.
    twin: Option<Box<[u8]>>,
    size: u64,
    deleted: bool,
}

impl Message {
    fn base(&self) -> &[u8] {
        base(self.path.get(4..).unwrap_or_default())
    }

    fn is_new(&self) -> bool {
        self.path.starts_with(b"new/")
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn is_deleted(&self) -> bool {
        self.deleted
    }
}

pub struct Maildrop {
    messages: Vec<Message>,
    /// Messages not marked deleted, and the sum of their sizes.
    count: usize,
    bytes: u64,
    /// Indexes of messages, in order of their base names; made when first needed.
    by_base: Vec<u32>,
    /// When `cur` was last read, and the time of its last change then.
    read: Option<(SystemTime, SystemTime)>,
    /// Unique ids that are not made from the name.
    ids: Option<HashMap<usize, Box<[u8]>>>,
}

/// Removes what dead deliveries left in tmp. Trouble is no trouble: the next session tries again.
pub fn clean_tmp(now: u64) {
    let Ok(names) = names_in("tmp") else { return };
    for name in names.flatten() {
        let path = [b"tmp/".as_slice(), &name].concat();
        if lstat(fd::path(&path)).is_ok_and(|s| youngest(&s).saturating_add(TMP_SECONDS) < now) {
            let _ = unlink(fd::path(&path));
        }
    }
}

/// When a file was last read or written; a file system without access times still has the latter.
fn youngest(file: &FileStat) -> u64 {
    u64::try_from(file.st_atime.max(file.st_mtime)).unwrap_or(u64::MAX)
}

/// The names in a directory, without those that begin with a dot.
fn names_in(directory: &str) -> Result<impl Iterator<Item = Result<Vec<u8>, Errno>>, Errno> {
    let entries = std::fs::read_dir(directory).map_err(|e| errno(&e))?;
    Ok(entries.filter_map(|entry| match entry {
        Ok(entry) => {
            let name = entry.file_name().into_vec();
            (!name.starts_with(b".")).then_some(Ok(name))
        }
        Err(e) => Some(Err(errno(&e))),
    }))
}

/// A message and what it is sorted by.
struct Found {
    time: (u64, u32),
    message: Message,
}

impl Maildrop {
    /// Takes down what is there. Reads `new` first: what moves to `cur` meanwhile is seen twice, not never.
    pub fn scan(now: u64) -> Result<Maildrop, Errno> {
        let mut found = Vec::new();
        for directory in ["new", "cur"] {
            for name in names_in(directory)? {
                let path = [directory.as_bytes(), b"/", &name?].concat();
                found.extend(look_at(path, now));
            }
        }
        // Time of delivery, then the name; the same in every session. Of one message in two places the
        // one in cur is kept.
        found.sort_unstable_by(|a, b| {
            let key = |f: &Found| (f.time, f.message.is_new());
            let names = || a.message.base().cmp(b.message.base());
            a.time.cmp(&b.time).then_with(names).then_with(|| key(a).cmp(&key(b)))
        });
        found.dedup_by(|later, kept| {
            let double = later.message.base() == kept.message.base();
            if double && same_file(&later.message.path, &kept.message.path) {
                kept.message.twin = Some(std::mem::take(&mut later.message.path));
            }
            double
        });
        let messages: Vec<Message> = found.into_iter().map(|f| f.message).collect();
        let bytes = messages.iter().fold(0, |sum: u64, m| sum.saturating_add(m.size));
        Ok(Maildrop { count: messages.len(), bytes, messages, by_base: Vec::new(), read: None, ids: None })
    }

    pub fn all(&self) -> &[Message] {
        &self.messages
    }

    pub fn get(&self, at: usize) -> Option<&Message> {
        self.messages.get(at)
    }

    /// Messages not marked deleted, and their bytes.
    pub fn total(&self) -> (usize, u64) {
        (self.count, self.bytes)
    }

    pub fn mark_deleted(&mut self, at: usize) {
        if let Some(message) = self.messages.get_mut(at).filter(|m| !m.deleted) {
            message.deleted = true;
            self.count = self.count.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(message.size);
        }
    }

    pub fn unmark_all(&mut self) {
        for message in self.messages.iter_mut().filter(|m| m.deleted) {
            message.deleted = false;
            self.count += 1;
            self.bytes = self.bytes.saturating_add(message.size);
        }
    }

    /// Opens a message, under the name it has now.
    pub fn open(&mut self, at: usize) -> Result<OwnedFd, Errno> {
        match self.try_open(at) {
            Err(Errno::ENOENT | Errno::ESTALE) => {
                self.find_again();
                self.try_open(at)
            }
            result => result,
        }
    }

    fn try_open(&self, at: usize) -> Result<OwnedFd, Errno> {
        let message = self.messages.get(at).ok_or(Errno::ENOENT)?;
        let file = fd::open_read(&message.path)?;
        if SFlag::from_bits_truncate(fstat(&file)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG {
            Ok(file)
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// Another program has changed names: reads `cur` once and learns all of them, unless nothing has
    /// changed there since the last time.
    fn find_again(&mut self) {
        let Some(changed) = std::fs::metadata("cur").ok().and_then(|m| m.modified().ok()) else { return };
        if self.read.is_some_and(|(when, then)| then == changed && changed + COARSE < when) {
            return;
        }
        self.read = Some((SystemTime::now(), changed));
        self.index();
        let Ok(names) = names_in("cur") else { return };
        for name in names.flatten() {
            if let Some(at) = self.find_base(base(&name))
                && let Some(message) = self.messages.get_mut(at)
            {
                message.path = [b"cur/".as_slice(), &name].concat().into();
            }
        }
    }

    /// Sorts the index by base name, once.
    fn index(&mut self) {
        if self.by_base.is_empty() {
            let name = |at: u32| self.messages.get(at as usize).map_or(b"".as_slice(), Message::base);
            let mut order: Vec<u32> = (0..u32::try_from(self.messages.len()).unwrap_or(u32::MAX)).collect();
            order.sort_unstable_by(|a, b| name(*a).cmp(name(*b)));
            self.by_base = order;
        }
    }

    fn find_base(&self, wanted: &[u8]) -> Option<usize> {
        let name = |at: &u32| self.messages.get(*at as usize).map_or(b"".as_slice(), Message::base);
        let place = self.by_base.binary_search_by(|at| name(at).cmp(wanted)).ok()?;
        self.by_base.get(place).map(|at| *at as usize)
    }

    /// The unique id of a message.
    pub fn id(&mut self, at: usize) -> Vec<u8> {
        if self.ids.is_none() {
            self.ids = Some(self.read_uidlist());
        }
        match self.ids.as_ref().and_then(|ids| ids.get(&at)) {
            Some(id) => id.to_vec(),
            None => unique_id(self.messages.get(at).map_or(b"", Message::base)),
        }
    }

    /// The unique ids another server gave, so that clients which leave mail there need not fetch all of
    /// it again. An id given twice is not used the second time.
    fn read_uidlist(&mut self) -> HashMap<usize, Box<[u8]>> {
        let mut ids = HashMap::new();
        let Ok(file) = fd::open_read("dovecot-uidlist") else { return ids };
        self.index();
        let mut given = HashSet::new();
        let mut lines = Reader::new(file);
        let header = lines.line(b'\n', UIDLIST_LINE_MAX);
        if !matches!(header, Ok(Line::Whole(line)) if line.starts_with(b"3 ")) {
            return ids;
        }
        loop {
            match lines.line(b'\n', UIDLIST_LINE_MAX) {
                Ok(Line::Whole(line)) => {
                    if let Some((name, id)) = uidlist_record(&line)
                        && let Some(at) = self.find_base(name)
                        && given.insert(id.to_vec())
                    {
                        ids.insert(at, id.into());
                    }
                }
                Ok(Line::TooLong) => {}
                Ok(Line::End(_)) | Err(_) => return ids,
            }
        }
    }

    /// QUIT: deletes what is marked, moves what was new to `cur`, and makes that durable. False when something
    /// marked is still there, or may come back.
    pub fn update(&mut self) -> bool {
        let quota = nix::fcntl::open(
            "maildirsize",
            OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CLOEXEC,
            Mode::empty(),
        );
        let mut removed = Removed { weigh: quota.is_ok(), count: 0, bytes: 0 };
        let complete = self.remove_marked(&mut removed);
        let moved = self.name_in_cur();
        let deleted = removed.count > 0;
        // A message must not be without a name, whatever a power cut leaves of the two changes: the one in `cur` is
        // durable before the other goes.
        let cur = if deleted || !moved.is_empty() { fd::sync_directory("cur") } else { Ok(()) };
        if cur.is_ok() {
            for path in &moved {
                let _ = unlink(fd::path(path));
            }
        }
        let new = if deleted || !moved.is_empty() { fd::sync_directory("new") } else { Ok(()) };
        if let (Ok(quota), true) = (quota, deleted) {
            let _ = fd::write_all(quota, format!("-{} -{}\n", removed.bytes, removed.count).as_bytes());
        }
        complete && (!deleted || (cur.is_ok() && new.is_ok()))
    }

    /// False when something marked is still there.
    fn remove_marked(&mut self, removed: &mut Removed) -> bool {
        let mut marked: Vec<usize> = (0..self.messages.len()).filter(|at| self.is_marked(*at)).collect();
        let mut second = Vec::new();
        let mut complete = true;
        // Those not there under their name are looked for once, all together.
        for round in 0..2 {
            marked.retain(|at| {
                let Some(message) = self.messages.get(*at) else { return false };
                match removed.remove(&message.path) {
                    Err(Errno::ENOENT | Errno::ESTALE) => return true,
                    Ok(()) if message.is_new() => second.push(*at),
                    result => complete &= result.is_ok(),
                }
                false
            });
            if round == 0 && !(marked.is_empty() && second.is_empty()) {
                self.find_again();
            }
        }
        // From `new` nobody can name it any more; what another session named before that is found now.
        for message in second.iter().filter_map(|at| self.messages.get(*at)).filter(|m| !m.is_new()) {
            complete &= matches!(unlink(fd::path(&message.path)), Ok(()) | Err(Errno::ENOENT));
        }
        for twin in self.messages.iter().filter(|m| m.deleted).filter_map(|m| m.twin.as_ref()) {
            complete &= matches!(unlink(fd::path(twin)), Ok(()) | Err(Errno::ENOENT));
        }
        complete
    }

    /// Gives each message that was new a name in `cur`; the names in `new` that can go when that is durable.
    fn name_in_cur(&self) -> Vec<Box<[u8]>> {
        let mut moved = Vec::new();
        for message in self.messages.iter().filter(|m| !m.deleted) {
            if let Some(twin) = message.twin.as_ref().filter(|twin| same_file(twin, &message.path)) {
                moved.push(twin.clone());
            }
            if !message.is_new() {
                continue;
            }
            let name = message.path.get(4..).unwrap_or_default();
            let flags: &[u8] = if name.contains(&b':') { b"" } else { b":2," };
            let path = [b"cur/", name, flags].concat();
            match linkat(AT_FDCWD, fd::path(&message.path), AT_FDCWD, fd::path(&path), AtFlags::empty()) {
                Ok(()) => moved.push(message.path.clone()),
                Err(Errno::EEXIST) if same_file(&message.path, &path) => moved.push(message.path.clone()),
                // Gone already: another session has done it.
                Err(Errno::EEXIST | Errno::ENOENT) => {}
                // A file system without links, or another's file.
                Err(_) => {
                    if renameat(AT_FDCWD, fd::path(&message.path), AT_FDCWD, fd::path(&path)).is_ok() {
                        moved.push(message.path.clone());
                    }
                }
            }
        }
        moved
    }

    fn is_marked(&self, at: usize) -> bool {
        self.messages.get(at).is_some_and(|m| m.deleted)
    }
}

/// Removes files and, where there is a quota, counts what that frees.
struct Removed {
    weigh: bool,
    count: u64,
    bytes: u64,
}

impl Removed {
    fn remove(&mut self, path: &[u8]) -> Result<(), Errno> {
        let mut bytes = 0;
        if self.weigh {
            let named = Name::of(path.get(4..).unwrap_or_default()).file_size;
            bytes = named
                .or_else(|| stat(fd::path(path)).ok().and_then(|s| u64::try_from(s.st_size).ok()))
                .unwrap_or(0);
        }
        unlink(fd::path(path))?;
        self.count += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(())
    }
}

/// Whether two names lead to one file.
fn same_file(one: &[u8], other: &[u8]) -> bool {
    match (lstat(fd::path(one)), lstat(fd::path(other))) {
        (Ok(one), Ok(other)) => one.st_dev == other.st_dev && one.st_ino == other.st_ino,
        _ => false,
    }
}

/// What a file in new or cur is to the session; None when it is nothing: gone again, a directory, or
/// delivered in this very second, in which more may come that sort before it.
fn look_at(path: Vec<u8>, now: u64) -> Option<Found> {
    let name = Name::of(path.get(4..).unwrap_or_default());
    let known = name.wire_size.or(name.file_size);
    let (time, size) = match (name.time.filter(|(seconds, _)| *seconds < now), known) {
        (Some(time), Some(size)) => (time, size),
        (time, known) => {
            let file = stat(fd::path(&path)).ok()?;
            if SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
                return None;
            }
            let changed = u64::try_from(file.st_mtime).unwrap_or(0);
            if time.is_none() && changed >= now {
                return None;
            }
            (time.unwrap_or((changed, 0)), known.unwrap_or(u64::try_from(file.st_size).unwrap_or(0)))
        }
    };
    Some(Found { time, message: Message { path: path.into(), twin: None, size, deleted: false } })
}
