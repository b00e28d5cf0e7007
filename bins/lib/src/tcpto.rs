//! tcpto - which addresses have timed out lately
//!
//! `queue/lock/tcpto` is a table of 64 records that all qmail-remotes of a home share. Module functions
//! on `Record`s decide and do no I/O; `Table` is the locked file.
#![forbid(unsafe_code)]

use crate::fd;
use crate::trouble::errno;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Below the home.
pub const FILE: &str = "queue/lock/tcpto";

/// Bytes of a record and of the whole file.
pub const RECORD_SIZE: usize = 16;
pub const FILE_SIZE: usize = 64 * RECORD_SIZE;

/// The lock is held for a few system calls; whoever holds it longer than this is stopped or stuck.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Timeouts are counted up to this.
const COUNT_MAX: u8 = 10;

/// From this count on an address is left alone for a while.
const COUNT_ENOUGH: u8 = 2;

/// Timeouts closer together than this, in seconds, count once: several deliveries found the same.
const ONE_EVENT: i64 = 120;

/// In choosing a record to overwrite, one timeout is worth this many seconds.
const COUNT_WORTH: i64 = 1024;

/// What is known of one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub ip: Ipv4Addr,
    /// Recent timeouts, 0 to 10; 0 is a free record.
    pub count: u8,
    /// When the last of them was counted: the low 32 bits of the seconds since 1970.
    pub last: u32,
}

impl Record {
    /// From 16 bytes of the file; None when there are fewer.
    pub fn parse(bytes: &[u8]) -> Option<Record> {
        let [a, b, c, d, count, _, _, _, w, x, y, z, ..] = *bytes else { return None };
        Some(Record { ip: Ipv4Addr::new(a, b, c, d), count, last: u32::from_le_bytes([w, x, y, z]) })
    }

    pub fn bytes(&self) -> [u8; RECORD_SIZE] {
        let [a, b, c, d] = self.ip.octets();
        let [w, x, y, z] = self.last.to_le_bytes();
        [a, b, c, d, self.count, 0, 0, 0, w, x, y, z, 0, 0, 0, 0]
    }

    /// Seconds since the last timeout. Negative when the clock was set back since; right for 68 years
    /// around now, whatever the century.
    pub fn age(&self, now: u64) -> i64 {
        i64::from(i32::from_ne_bytes(low32(now).wrapping_sub(self.last).to_ne_bytes()))
    }
}

fn low32(seconds: u64) -> u32 {
    u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or(0)
}

/// All records of a file's bytes.
pub fn parse(file: &[u8]) -> Vec<Record> {
    file.chunks_exact(RECORD_SIZE).filter_map(Record::parse).take(FILE_SIZE / RECORD_SIZE).collect()
}

/// Whether the address is to be left alone now: at least two timeouts, the last of them less than 64 to
/// 97 minutes ago, by process number, so that not all come back at once. A time that lies in the future
/// says that the clock was set back, and nothing of the host.
pub fn skip(records: &[Record], ip: Ipv4Addr, now: u64, pid: u32) -> bool {
    let Some(record) = records.iter().find(|r| r.ip == ip) else { return false };
    let rest = i64::from(60 + (pid & 31)) * 64;
    record.count >= COUNT_ENOUGH && (0..rest).contains(&record.age(now))
}

/// The record to write after a timeout, and its place; None when nothing changes (or the table has no
/// record at all).
pub fn timed_out(records: &[Record], ip: Ipv4Addr, now: u64) -> Option<(usize, Record)> {
    if let Some((at, record)) = records.iter().enumerate().find(|(_, r)| r.ip == ip) {
        if record.count > 0 && (0..ONE_EVENT).contains(&record.age(now)) {
            return None;
        }
        let count = record.count.saturating_add(1).min(COUNT_MAX);
        return Some((at, Record { ip, count, last: low32(now) }));
    }
    let free = records.iter().position(|r| r.count == 0);
    let least = || {
        let worth = |r: &Record| i64::from(r.count) * COUNT_WORTH - r.age(now);
        records.iter().enumerate().min_by_key(|(_, r)| worth(r)).map(|(at, _)| at)
    };
    Some((free.or_else(least)?, Record { ip, count: 1, last: low32(now) }))
}

/// The record to write after any other end of a connection attempt; None when nothing changes.
pub fn answered(records: &[Record], ip: Ipv4Addr) -> Option<(usize, Record)> {
    let (at, record) = records.iter().enumerate().find(|(_, r)| r.ip == ip && r.count > 0)?;
    Some((at, Record { count: 0, ..*record }))
}

/// Which step on the table failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Open,
    Lock,
    Read,
    Write,
}

/// The file, open: what a jail lets a program keep.
#[derive(Debug)]
pub struct File {
    writing: OwnedFd,
    reading: OwnedFd,
}

impl File {
    /// The lock is on a descriptor open for writing: who cannot write the table cannot hold others up.
    pub fn open(path: &[u8]) -> Result<File, Errno> {
        Ok(File { writing: fd::open_write(path)?, reading: fd::open_read(path)? })
    }

    /// Locks and reads. One at a time: a second table of the same file would share the lock.
    pub fn table(&self) -> Result<Table, (Step, Errno)> {
        let writing = self.writing.try_clone().map_err(|e| (Step::Open, errno(&e)))?;
        let file = lock(writing).map_err(|e| (Step::Lock, e))?;
        let mut bytes = vec![0; FILE_SIZE];
        let mut length = 0;
        while let Some(room) = bytes.get_mut(length..).filter(|room| !room.is_empty()) {
            let at = i64::try_from(length).map_err(|_| (Step::Read, Errno::EFBIG))?;
            match nix::sys::uio::pread(&self.reading, room, at) {
                Ok(0) => break,
                Ok(n) => length += n,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err((Step::Read, errno)),
            }
        }
        Ok(Table { file, records: parse(bytes.get(..length).unwrap_or_default()) })
    }
}

/// The table, locked until the value is dropped.
#[derive(Debug)]
pub struct Table {
    file: Flock<OwnedFd>,
    records: Vec<Record>,
}

impl Table {
    /// Opens, locks and reads.
    pub fn open(path: &[u8]) -> Result<Table, (Step, Errno)> {
        File::open(path).map_err(|e| (Step::Open, e))?.table()
    }

    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Writes one changed record.
    pub fn write(&mut self, at: usize, record: &Record) -> Result<(), Errno> {
        let offset = i64::try_from(at * RECORD_SIZE).map_err(|_| Errno::EFBIG)?;
        write_at(&self.file, &record.bytes(), offset)
    }
}

/// Makes the table empty, under the lock.
pub fn clear(path: &[u8]) -> Result<(), (Step, Errno)> {
    let file = lock(fd::open_write(path).map_err(|e| (Step::Open, e))?).map_err(|e| (Step::Lock, e))?;
    write_at(&file, &[0; FILE_SIZE], 0).map_err(|e| (Step::Write, e))
}

fn lock(mut file: OwnedFd) -> Result<Flock<OwnedFd>, Errno> {
    let start = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((unlocked, Errno::EAGAIN | Errno::EINTR)) if start.elapsed() < LOCK_PATIENCE => {
                file = unlocked;
                std::thread::sleep(LOCK_PAUSE);
            }
            Err((_, Errno::EAGAIN)) => return Err(Errno::ETIMEDOUT),
            Err((_, errno)) => return Err(errno),
        }
    }
}

fn write_at(file: &Flock<OwnedFd>, bytes: &[u8], offset: i64) -> Result<(), Errno> {
    match nix::sys::uio::pwrite(&**file, bytes, offset)? {
        n if n == bytes.len() => Ok(()),
        _ => Err(Errno::ENOSPC),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, last)
    }

    fn record(host: u8, count: u8, ago: i64) -> Record {
        Record { ip: ip(host), count, last: low32((NOW as i64 - ago) as u64) }
    }

    #[test]
    fn a_record_is_sixteen_bytes_with_a_little_endian_time() {
        let bytes = [192, 0, 2, 7, 3, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0];
        let record = Record::parse(&bytes).unwrap();
        assert_eq!(record, Record { ip: ip(7), count: 3, last: 0x0102_0304 });
        assert_eq!(record.bytes(), bytes);
        assert_eq!(Record::parse(&bytes[..11]), None);
        assert_eq!(parse(&[bytes.as_slice(), &bytes[..5]].concat()).len(), 1);
        assert_eq!(parse(&[0; 4096]).len(), 64);
    }

    #[test]
    fn two_timeouts_keep_an_address_out_for_an_hour_or_so() {
        assert!(!skip(&[record(1, 1, 10)], ip(1), NOW, 0));
        assert!(skip(&[record(1, 2, 10)], ip(1), NOW, 0));
        assert!(skip(&[record(1, 2, 60 * 64 - 1)], ip(1), NOW, 0));
        assert!(!skip(&[record(1, 2, 60 * 64)], ip(1), NOW, 0));
        assert!(skip(&[record(1, 10, 91 * 64 - 1)], ip(1), NOW, 31 + 64));
        assert!(!skip(&[record(1, 10, 91 * 64)], ip(1), NOW, 31 + 64));
        assert!(!skip(&[record(1, 9, 10)], ip(2), NOW, 0));
        assert!(!skip(&[record(1, 9, -10)], ip(1), NOW, 0), "the clock was set back");
    }

    #[test]
    fn timeouts_of_a_known_address_count_once_in_two_minutes() {
        assert_eq!(timed_out(&[record(1, 1, 119)], ip(1), NOW), None);
        assert_eq!(timed_out(&[record(1, 1, 120)], ip(1), NOW), Some((0, record(1, 2, 0))));
        assert_eq!(timed_out(&[record(1, 0, 5)], ip(1), NOW), Some((0, record(1, 1, 0))));
        assert_eq!(timed_out(&[record(1, 10, 500)], ip(1), NOW), Some((0, record(1, 10, 0))));
        assert_eq!(timed_out(&[record(1, 255, 500)], ip(1), NOW), Some((0, record(1, 10, 0))));
    }

    #[test]
    fn an_unknown_address_takes_a_free_record_or_the_least_worth_keeping() {
        let table = [record(1, 1, 9000), record(2, 0, 0), record(3, 0, 0)];
        assert_eq!(timed_out(&table, ip(9), NOW), Some((1, record(9, 1, 0))));
        let full = [record(1, 1, 9000), record(2, 9, 12_000), record(3, 2, 10_500)];
        assert_eq!(timed_out(&full, ip(9), NOW), Some((2, record(9, 1, 0))));
        assert_eq!(timed_out(&[], ip(9), NOW), None);
    }

    #[test]
    fn an_answer_clears_what_was_counted() {
        let table = [record(1, 3, 50)];
        assert_eq!(answered(&table, ip(1)), Some((0, record(1, 0, 50))));
        assert_eq!(answered(&table, ip(2)), None);
        assert_eq!(answered(&[record(1, 0, 50)], ip(1)), None);
    }

    #[test]
    fn times_go_on_after_the_year_2106() {
        let later = u64::from(u32::MAX) + 100;
        let record = Record { ip: ip(1), count: 2, last: u32::MAX - 9 };
        assert_eq!(record.age(later), 109);
        assert!(skip(&[record], ip(1), later, 0));
    }

    #[test]
    fn the_file_is_read_and_changed_in_place() {
        let path = std::env::temp_dir().join(format!("tcpto-{}", std::process::id()));
        let name = path.to_str().unwrap().as_bytes();
        std::fs::write(&path, [0; FILE_SIZE]).unwrap();
        let mut table = Table::open(name).unwrap();
        assert_eq!(table.records().len(), 64);
        table.write(3, &record(7, 2, 0)).unwrap();
        drop(table);
        assert_eq!(Table::open(name).unwrap().records()[3], record(7, 2, 0));
        clear(name).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [0; FILE_SIZE]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Table::open(name).unwrap_err(), (Step::Open, Errno::ENOENT));
    }
}
