//! The desk: what every part of qmail-send looks at. A message is a number here, and two or three
//! due times; everything else about it stays on disk.
#![forbid(unsafe_code)]

use crate::cleaner::Cleaner;
use crate::controls::Controls;
use crate::log::Log;
use crate::short::Short;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, lstat, stat};
use nix::unistd::unlink;
use qmail::home::Home;
use qmail::queue::age::Clock;
use qmail::queue::rewrite::Way;
use qmail::queue::schedule::Schedule;
use qmail::queue::{self, Number};
use qmail::{date, fd};
use std::collections::{BTreeMap, BTreeSet};

/// Seconds until the next try after a trouble of the system.
pub const SYSTEM_TROUBLE_SECONDS: u64 = 123;

/// Seconds until the next try of what must not be given up.
pub const SLEEP_SECONDS: u64 = 10;

/// When a part of qmail-send wants its next turn, if no descriptor calls it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    Now,
    /// In a few milliseconds.
    Soon,
    /// Seconds since 1970.
    At(u64),
    Never,
}

impl Wake {
    pub fn at(due: Option<u64>, now: u64) -> Wake {
        match due {
            Some(due) if due <= now => Wake::Now,
            Some(due) => Wake::At(due),
            None => Wake::Never,
        }
    }

    pub fn now_if(condition: bool) -> Wake {
        if condition { Wake::Now } else { Wake::Never }
    }
}

/// Deliveries in flight and the most there may be; connections where several share one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    pub used: usize,
    pub max: usize,
}

pub struct Desk {
    pub log: Log,
    pub home: Home,
    pub controls: Controls,
    pub cleaner: Cleaner,
    pub clock: Clock,
    pub local: Schedule,
    pub remote: Schedule,
    /// Messages without recipients left.
    pub done: Schedule,
    /// Messages delivered straight from `todo/N`.
    pub short: Short,
    pub load: [Load; 2],
    /// Deliveries started in this life: the D of log lines.
    pub deliveries: u64,
    /// Numbers whose files were here when we started: to be compared with their commit record at first use.
    pub unproven: BTreeSet<Number>,
    /// Numbers with info but without a message, and since when we know. The message may come back: a disk
    /// not mounted yet, a restore under way.
    pub orphans: BTreeMap<Number, std::time::Instant>,
    /// Numbers whose files do not belong together: neither delivered nor removed. With the change time of
    /// mess/N, by which another message with the same number is told.
    pub aside: BTreeMap<Number, Option<ChangeTime>>,
    /// Told to stop, or left alone by a spawner: nothing new is begun.
    pub stopping: bool,
}

impl Desk {
    pub fn schedule(&mut self, way: Way) -> &mut Schedule {
        match way {
            Way::Local => &mut self.local,
            Way::Remote => &mut self.remote,
        }
    }

    /// The line that says how busy we are.
    pub fn say_status(&self) {
        let [local, remote] = &self.load;
        let stopping = if self.stopping { " exitasap" } else { "" };
        self.log.line(format!(
            "status: local {}/{} remote {}/{}{stopping}",
            local.used, local.max, remote.used, remote.max
        ));
    }

    /// Looks for a file; trouble other than its absence counts as None and is logged with `ending`.
    pub fn exists(&self, name: &str, ending: &str) -> Option<bool> {
        match file_stat(name) {
            Ok(found) => Some(found.is_some()),
            Err(_) => {
                self.log.line(format!("warning: unable to stat {name}{ending}"));
                None
            }
        }
    }

    /// From now on this message is neither delivered nor removed. qmail-qread finds the mark; nobody
    /// else reads it, and the next start makes a fresh judgement.
    pub fn put_aside(&mut self, number: Number, reason: &str) {
        if self.is_aside(number) {
            return;
        }
        self.aside.insert(number, change_time(number).ok().flatten());
        self.unproven.remove(&number);
        self.log.line(format!("alert: msg {number} kept aside: {reason}"));
        if let Ok(mark) = fd::create(aside_mark(number), 0o600) {
            let _ = fd::write_all(mark, format!("{reason}\n").as_bytes());
        }
    }

    /// Whether this message was put aside. The administrator may have removed its files since, and the number
    /// may be a new message's: whatever has it now is judged anew.
    pub fn is_aside(&mut self, number: Number) -> bool {
        let Some(then) = self.aside.get(&number) else { return false };
        match change_time(number) {
            Ok(now) if now != *then => {
                self.aside.remove(&number);
                self.unproven.insert(number);
                let _ = remove(&aside_mark(number));
                false
            }
            _ => true, // trouble looking: in doubt it is the one we know
        }
    }
}

/// Seconds and nanoseconds.
type ChangeTime = (i64, i64);

/// When mess/N was changed last; None when there is none.
fn change_time(number: Number) -> Result<Option<ChangeTime>, Errno> {
    Ok(file_stat(&queue::mess(number))?.map(|mess| (mess.st_ctime, mess.st_ctime_nsec)))
}

/// Where qmail-qread sees that a message was put aside.
pub fn aside_mark(number: Number) -> String {
    format!("{}.aside", queue::bounce_path(number))
}

/// The file's stat; None when it does not exist. A directory that is missing (not mounted, moved away)
/// says nothing about its files, nor a link to a file that is gone: a list that is not there has been delivered
/// to its end, so that must be certain.
pub fn file_stat(name: &str) -> Result<Option<FileStat>, Errno> {
    match stat(name) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT) if lstat(name).is_ok() => Err(Errno::ENOENT),
        Err(Errno::ENOENT) => stat(parent(name)).map(|_| None),
        Err(errno) => Err(errno),
    }
}

/// Whether there certainly is no message of this number: its directory is there, and it is not.
pub fn is_message_gone(number: Number) -> bool {
    let name = queue::mess(number);
    let directory = name.rsplit_once('/').map_or(".", |(directory, _)| directory);
    matches!(file_stat(&name), Ok(None)) && matches!(file_stat(directory), Ok(Some(_)))
}

/// Removes a file that may be missing already, and makes that durable if it was there.
pub fn remove_durably(name: &str) -> Result<(), Errno> {
    match unlink(name) {
        Err(Errno::ENOENT) => Ok(()),
        other => other.and_then(|()| sync_parent(name)),
    }
}

/// Removes a file that may be missing already.
pub fn remove(name: &str) -> Result<(), Errno> {
    match unlink(name) {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// Syncs the directory that a queue file is in.
pub fn sync_parent(name: &str) -> Result<(), Errno> {
    fd::sync_directory(parent(name))
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or(".", |(directory, _)| directory)
}

/// `local/S/N` or `remote/S/N`.
pub fn list_path(way: Way, number: Number) -> String {
    queue::split_path(way.name(), number)
}

/// Seconds of a file's modification time, as our schedules count.
pub fn modified(file: &FileStat) -> u64 {
    u64::try_from(file.st_mtime).unwrap_or(0)
}

pub fn now() -> u64 {
    date::now()
}
