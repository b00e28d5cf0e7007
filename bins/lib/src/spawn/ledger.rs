//! ledger - which deliveries run and which succeeded, where the next spawner finds it
//!
//! A spawner, or the qmail-send behind it, may be killed while deliveries run: they end all the same, and nobody
//! is there to be told. So each delivery has a row in a file (`queue/lock/ledger.local`, `ledger.remote`), written
//! before it begins and again when it succeeded, by the process beside it. The next spawner is asked for the same
//! delivery again; it finds the row and answers with success, or waits for whoever is still at work on it.
//!
//! Rows say facts that stay true: "this very message was delivered to this recipient". The key holds the number,
//! size, times, generation, beginning and end of the message file, so that the next message of that number has
//! another one; where times are whole seconds there is no key, and nothing is known. A row whose checksum is wrong
//! says nothing, and a missing file neither: second copies, nothing worse. Nothing is synced: what a power cut takes
//! away is the knowledge, not the delivery.
//!
//! Locks are on open files: that of a row lives as long as the process beside the delivery, that behind the rows
//! as long as a spawner may begin something. An address that stands twice in an envelope has one key: of its two
//! copies one may be missing after any restart of the spawner, not only after a crash.
#![forbid(unsafe_code)]

use super::Request;
use crate::fd;
use crate::sys::descriptor::generation;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, lstat};
use nix::sys::uio::{pread, pwrite};
use nix::unistd::geteuid;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Rows, used in turn: several times the slots of a channel. A recipient on the short way is known by its row
/// alone until the whole message has ended, 30 seconds at most: for so long a row lasts below 136 deliveries a
/// second on its channel. Beyond that a restart may make second copies.
const ROWS: usize = 4096;
const ROW: usize = 64;

/// Bytes of key and check: half a SHA-256 would do.
const KEY: usize = 24;

/// So much of the beginning and of the end of a message is part of its key: its first Received line and more.
const PART: usize = 512;

/// How long a spawner that lost its qmail-send may take to see that. Then the next one begins all the same, and
/// there may be second copies.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// Between two looks at a row of an earlier spawner. Deliveries may take minutes.
const GLANCE: Duration = Duration::from_millis(50);

const RUNNING: [u8; 4] = *b"run\n";
const DONE: [u8; 4] = *b"done";

/// One delivery: this message to this recipient.
pub type Key = [u8; KEY];

/// What the file says of one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    done: bool,
    sequence: u32,
    number: u64,
    key: Key,
}

impl Row {
    fn encode(&self) -> [u8; ROW] {
        let mut bytes = [0; ROW];
        let fields: [&[u8]; 4] = [
            if self.done { &DONE } else { &RUNNING },
            &self.sequence.to_le_bytes(),
            &self.number.to_le_bytes(),
            &self.key,
        ];
        let text = fields.concat();
        let check = Sha256::digest(&text);
        for (to, from) in bytes.iter_mut().zip(text.iter().chain(check.iter())) {
            *to = *from;
        }
        bytes
    }

    /// None when it is empty, torn or something else.
    fn decode(bytes: &[u8]) -> Option<Row> {
        let row = Row {
            done: bytes.get(..4)? == DONE,
            sequence: u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?),
            number: u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?),
            key: bytes.get(16..16 + KEY)?.try_into().ok()?,
        };
        (row.encode() == bytes).then_some(row)
    }
}

/// What is known of a delivery from an earlier spawner's life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Earlier {
    pub done: bool,
    /// What those who were at work on it wrote, and where.
    pub running: Vec<Claimed>,
}

/// The file, and what was in it at the start.
pub struct Ledger {
    name: Vec<u8>,
    earlier: BTreeMap<Key, Earlier>,
    /// Rows of those who are at work for an earlier spawner. What is done is in `earlier`, whatever becomes of
    /// its row: kept it would be from life to life, until there were no others.
    kept: BTreeSet<usize>,
    next: usize,
    sequence: u32,
    /// Held while this spawner may begin something.
    life: Option<OwnedFd>,
}

impl Ledger {
    /// Creates the file if it is missing. Before the jail closes.
    pub fn prepare(name: Vec<u8>) -> Ledger {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let _ = open(fd::path(&name), flags, Mode::from_bits_truncate(0o600));
        Ledger { name, earlier: BTreeMap::new(), kept: BTreeSet::new(), next: 0, sequence: 0, life: None }
    }

    /// Waits until no earlier spawner begins anything, and reads what they left. In `queue/mess`.
    pub fn take_over(&mut self) {
        let Ok(file) = self.open() else { return };
        let until = Instant::now() + PATIENCE;
        while set_lock(&file, libc::F_WRLCK, ROWS) == Err(Errno::EAGAIN) && Instant::now() < until {
            std::thread::sleep(PAUSE);
        }
        self.load(&file, is_there);
        self.life = Some(file);
    }

    /// From now on this spawner begins nothing.
    pub fn give_up(&mut self) {
        self.life = None;
    }

    /// What a child must close: it outlives the spawner.
    pub fn life(&self) -> Option<&OwnedFd> {
        self.life.as_ref()
    }

    fn load(&mut self, file: &OwnedFd, is_there: impl Fn(u64) -> bool) {
        let mut last = None;
        for at in 0..ROWS {
            let Some(row) = read_row(file, at) else { continue };
            if last.is_none_or(|sequence| row.sequence >= sequence) {
                last = Some(row.sequence);
                self.next = (at + 1) % ROWS;
                self.sequence = row.sequence.wrapping_add(1);
            }
            // Whoever ended between the two looks has written what came of it before.
            let running = !row.done && is_locked(file, at);
            let row = if running { row } else { read_row(file, at).unwrap_or(row) };
            if (row.done || running) && is_there(row.number) {
                let earlier = self.earlier.entry(row.key).or_default();
                earlier.done |= row.done;
                earlier.running.extend(running.then_some(Claimed { at, row }));
                if running {
                    self.kept.insert(at);
                }
            }
        }
    }

    pub fn earlier(&self, key: Option<&Key>) -> Earlier {
        key.and_then(|key| self.earlier.get(key)).cloned().unwrap_or_default()
    }

    /// Takes a row for each delivery with a key and locks it. Where that cannot be, there is no row.
    pub fn claim(&mut self, deliveries: &[(u64, Option<Key>)]) -> Claim {
        let mut rows = Vec::new();
        let file = self.open().ok();
        for (number, key) in deliveries {
            let row = key.map(|key| Row { done: false, sequence: self.sequence, number: *number, key });
            let taken = file
                .as_ref()
                .zip(row)
                .and_then(|(file, row)| Some(Claimed { at: self.take_row(file, &row)?, row }));
            self.sequence = self.sequence.wrapping_add(u32::from(taken.is_some()));
            rows.push(taken);
        }
        Claim { file, rows }
    }

    fn take_row(&mut self, file: &OwnedFd, row: &Row) -> Option<usize> {
        for _ in 0..ROWS {
            let at = self.next;
            self.next = (at + 1) % ROWS;
            if self.kept.contains(&at) {
                continue;
            }
            match set_lock(file, libc::F_WRLCK, at) {
                Ok(()) => return write_row(file, at, row).is_ok().then_some(at),
                Err(Errno::EAGAIN | Errno::EACCES) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// Waits for the end of whoever is at work in a row; whether that delivery succeeded. The row may be given to
    /// another one as soon as that has ended: who slept for its lock would wait for that one too.
    pub fn wait_for(&self, earlier: &Claimed) -> bool {
        let Ok(file) = self.open() else { return false };
        let theirs = || read_row(&file, earlier.at).filter(|row| row.sequence == earlier.row.sequence);
        while theirs().is_some() && is_locked(&file, earlier.at) {
            std::thread::sleep(GLANCE);
        }
        theirs().is_some_and(|row| row.done && row.key == earlier.row.key)
    }

    /// Whether the row of a delivery that began says that it succeeded.
    pub fn says_done(&self, claimed: &Claimed) -> bool {
        let done = Row { done: true, ..claimed.row };
        self.open().is_ok_and(|file| read_row(&file, claimed.at) == Some(done))
    }

    /// Every time anew: locks belong to open files. In a directory of qmailq's: nothing but our own plain file
    /// of one name will do.
    fn open(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = open(fd::path(&self.name), flags, Mode::empty())?;
        let found = fstat(&file)?;
        let plain = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        if plain && found.st_nlink == 1 && found.st_uid == geteuid().as_raw() {
            Ok(file)
        } else {
            Err(Errno::EPERM)
        }
    }
}

/// A row and what was written there when its delivery began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    at: usize,
    row: Row,
}

/// Bytes of a row that is told to another process: its place, sequence, number and key.
pub const CLAIMED: usize = 16 + KEY;

impl Claimed {
    /// For another process of ours. Never all zero bytes: those stand for no row.
    pub fn encode(&self) -> [u8; CLAIMED] {
        let place = u32::try_from(self.at).unwrap_or(u32::MAX).wrapping_add(1);
        let fields: [&[u8]; 4] = [
            &place.to_le_bytes(),
            &self.row.sequence.to_le_bytes(),
            &self.row.number.to_le_bytes(),
            &self.row.key,
        ];
        let mut bytes = [0; CLAIMED];
        for (to, from) in bytes.iter_mut().zip(fields.concat()) {
            *to = from;
        }
        bytes
    }

    pub fn decode(bytes: &[u8; CLAIMED]) -> Option<Claimed> {
        let place = usize::try_from(u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
        let row = Row {
            done: false,
            sequence: u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?),
            number: u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?),
            key: bytes.get(16..)?.try_into().ok()?,
        };
        Some(Claimed { at: place.checked_sub(1).filter(|at| *at < ROWS)?, row })
    }
}

/// The rows of deliveries that leave together, locked while this lives.
pub struct Claim {
    file: Option<OwnedFd>,
    rows: Vec<Option<Claimed>>,
}

impl Claim {
    /// Rows that another process took, in the file by which it holds their locks.
    pub fn taken(file: Option<OwnedFd>, rows: Vec<Option<Claimed>>) -> Claim {
        Claim { file, rows }
    }

    pub fn file(&self) -> Option<&OwnedFd> {
        self.file.as_ref()
    }

    pub fn rows(&self) -> &[Option<Claimed>] {
        &self.rows
    }

    /// The delivery of this index succeeded.
    pub fn done(&self, index: usize) {
        if let (Some(file), Some(Some(claimed))) = (&self.file, self.rows.get(index)) {
            let _ = write_row(file, claimed.at, &Row { done: true, ..claimed.row });
        }
    }

    /// To be asked for later, without the locks: for each delivery its row, if it has one.
    pub fn into_rows(self) -> Vec<Option<Claimed>> {
        self.rows
    }
}

/// What every delivery of one message has in common in its key.
pub struct Message {
    number: u64,
    /// None where the file's times do not tell it from the next one of its number.
    digest: Option<Sha256>,
}

impl Message {
    /// `path` as in the request, and the opened file. Its offset is not moved.
    pub fn of(path: &[u8], file: impl AsFd, found: &FileStat) -> Message {
        let name = path.rsplit(|b| *b == b'/').next().and_then(|name| std::str::from_utf8(name).ok());
        let number = name.and_then(|name| name.parse().ok()).unwrap_or_default();
        if found.st_ctime_nsec == 0 {
            return Message { number, digest: None }; // ext3, and ext4 with small inodes: whole seconds
        }
        let mut digest = Sha256::new();
        // The kernel's clock of files goes in ticks of some milliseconds; this differs within one.
        digest.update(generation(&file).to_le_bytes());
        for value in [found.st_size, found.st_mtime, found.st_mtime_nsec, found.st_ctime, found.st_ctime_nsec]
        {
            digest.update(value.to_le_bytes());
        }
        field(&mut digest, path);
        for start in [0, found.st_size.saturating_sub(PART.try_into().unwrap_or_default()).max(0)] {
            let mut part = [0; PART];
            let length = pread(&file, &mut part, start).unwrap_or_default();
            field(&mut digest, part.get(..length).unwrap_or_default());
        }
        Message { number, digest: Some(digest) }
    }

    /// The delivery of this request.
    pub fn delivery(&self, request: &Request) -> (u64, Option<Key>) {
        let Some(mut digest) = self.digest.clone() else { return (self.number, None) };
        field(&mut digest, &request.sender);
        field(&mut digest, &request.recipient);
        let mut key = [0; KEY];
        for (to, from) in key.iter_mut().zip(digest.finalize()) {
            *to = from;
        }
        (self.number, Some(key))
    }
}

fn field(digest: &mut Sha256, bytes: &[u8]) {
    digest.update(bytes.len().to_le_bytes());
    digest.update(bytes);
}

fn is_there(number: u64) -> bool {
    lstat(format!("{}/{number}", number % crate::queue::SPLIT).as_str()).is_ok()
}

fn offset(at: usize) -> libc::off_t {
    libc::off_t::try_from(at * ROW).unwrap_or(libc::off_t::MAX)
}

fn read_row(file: &OwnedFd, at: usize) -> Option<Row> {
    let mut bytes = [0; ROW];
    let read = pread(file, &mut bytes, offset(at)).ok()?;
    Row::decode(bytes.get(..read)?)
}

fn write_row(file: &OwnedFd, at: usize, row: &Row) -> Result<(), Errno> {
    match pwrite(file, &row.encode(), offset(at))? {
        ROW => Ok(()),
        _ => Err(Errno::ENOSPC),
    }
}

/// Of one row, or of the place behind the last.
fn lock_of(kind: libc::c_int, at: usize) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: 0, // SEEK_SET
        l_start: offset(at),
        l_len: offset(1),
        l_pid: 0,
    }
}

fn set_lock(file: &OwnedFd, kind: libc::c_int, at: usize) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock_of(kind, at))).map(|_| ())
}

fn is_locked(file: &OwnedFd, at: usize) -> bool {
    let mut lock = lock_of(libc::F_WRLCK, at);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(test: &str) -> Ledger {
        let name = std::env::temp_dir().join(format!("ledger-{test}-{}", std::process::id()));
        let _ = std::fs::remove_file(&name);
        Ledger::prepare(name.to_str().unwrap().as_bytes().to_vec())
    }

    fn again(before: &Ledger) -> Ledger {
        Ledger::prepare(before.name.clone())
    }

    fn states(ledger: &Ledger) -> Vec<Row> {
        let file = ledger.open().unwrap();
        (0..ROWS).filter_map(|at| read_row(&file, at)).collect()
    }

    fn remove(ledger: &Ledger) {
        std::fs::remove_file(fd::path(&ledger.name)).unwrap();
    }

    fn stat(ledger: &Ledger) -> FileStat {
        let mut found = lstat(fd::path(&ledger.name)).unwrap();
        found.st_ctime_nsec = 1;
        found
    }

    fn request(sender: &[u8], recipient: &[u8]) -> Request {
        let (path, sender, recipient) = (b"20/457".to_vec(), sender.to_vec(), recipient.to_vec());
        Request { slot: 0.into(), path, sender, recipient, cut: false }
    }

    const K1: Key = [1; KEY];
    const K2: Key = [2; KEY];

    #[test]
    fn a_row_is_read_as_it_was_written_and_a_damaged_one_not_at_all() {
        let row = Row { done: true, sequence: 7, number: 457, key: K1 };
        let bytes = row.encode();
        assert_eq!(Row::decode(&bytes), Some(row));
        for at in 0..ROW {
            let mut damaged = bytes;
            damaged[at] ^= 1;
            assert_eq!(Row::decode(&damaged), None, "byte {at}");
        }
        assert_eq!(Row::decode(&[0; ROW]), None);
        assert_eq!(Row::decode(&bytes[..ROW - 1]), None);
    }

    #[test]
    fn a_row_is_told_to_another_process_as_it_is() {
        for at in [0, 1, ROWS - 1] {
            let claimed = Claimed { at, row: Row { done: false, sequence: 7, number: 457, key: K1 } };
            assert_eq!(Claimed::decode(&claimed.encode()), Some(claimed));
        }
        assert_eq!(Claimed::decode(&[0; CLAIMED]), None);
        assert_eq!(Claimed::decode(&[0xff; CLAIMED]), None, "there is no such row");
    }

    #[test]
    fn rows_are_used_in_turn_also_by_the_next_and_locked_ones_are_passed_over() {
        let mut one = ledger("turn");
        one.take_over();
        let held = one.claim(&[(1, Some(K1)), (2, Some(K2))]);
        held.done(1);
        one.give_up();
        let mut two = again(&one);
        two.take_over();
        assert_eq!(two.next, 2);
        two.next = 0;
        let claim = two.claim(&[(3, Some(K1))]);
        assert_eq!(claim.rows[0].unwrap().at, 2);
        assert_eq!(
            states(&two).iter().map(|row| (row.done, row.number, row.sequence)).collect::<Vec<_>>(),
            [(false, 1, 0), (true, 2, 1), (false, 3, 2)]
        );
        remove(&two);
    }

    #[test]
    fn whoever_waits_learns_what_came_of_it() {
        let mut ledger = ledger("wait");
        ledger.take_over();
        let claim = ledger.claim(&[(1, Some(K1)), (1, Some(K2))]);
        claim.done(0);
        let rows = claim.into_rows();
        assert!(ledger.wait_for(&rows[0].unwrap()));
        assert!(!ledger.wait_for(&rows[1].unwrap()), "it did not succeed");
        remove(&ledger);
    }

    #[test]
    fn nobody_waits_for_the_delivery_that_has_the_row_now() {
        let mut ledger = ledger("given");
        ledger.take_over();
        let before = ledger.claim(&[(1, Some(K1))]).rows[0].unwrap();
        ledger.next = before.at;
        let now = ledger.claim(&[(1, Some(K1))]);
        assert_eq!(now.rows[0].unwrap().at, before.at);
        now.done(0);
        let other = again(&ledger);
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(other.wait_for(&before)));
        let said = told.recv_timeout(Duration::from_secs(10));
        remove(&ledger);
        assert_eq!(said, Ok(false), "it is locked, and is another one's");
    }

    #[test]
    fn a_file_that_is_not_ours_alone_is_not_used() {
        let ledger = ledger("second-name");
        let name = fd::path(&ledger.name).to_path_buf();
        let second = name.with_extension("second");
        std::fs::hard_link(&name, &second).unwrap();
        assert!(ledger.open().is_err());
        std::fs::remove_file(&name).unwrap();
        std::os::unix::fs::symlink(&second, &name).unwrap();
        assert!(ledger.open().is_err());
        assert!(again(&ledger).claim(&[(1, Some(K1))]).rows[0].is_none());
        std::fs::remove_file(&second).unwrap();
        remove(&ledger);
    }

    #[test]
    fn the_key_tells_messages_senders_and_recipients_apart() {
        let ledger = ledger("key");
        let (file, found) = (ledger.open().unwrap(), stat(&ledger));
        let message = Message::of(b"20/457", &file, &found);
        let key = message.delivery(&request(b"a", b"bc"));
        assert_eq!(key.0, 457);
        assert_eq!(key, message.delivery(&request(b"a", b"bc")));
        assert_ne!(key, message.delivery(&request(b"ab", b"c")));
        let mut later = found;
        later.st_ctime_nsec += 1;
        assert_ne!(key, Message::of(b"20/457", &file, &later).delivery(&request(b"a", b"bc")));
        pwrite(&file, b"x", 0).unwrap();
        assert_ne!(key, Message::of(b"20/457", &file, &found).delivery(&request(b"a", b"bc")));
        remove(&ledger);
    }

    #[test]
    fn the_end_of_a_message_is_part_of_its_key() {
        let ledger = ledger("end");
        let file = ledger.open().unwrap();
        pwrite(&file, &[b'x'; 3 * PART], 0).unwrap();
        let found = stat(&ledger);
        let key = || Message::of(b"20/457", &file, &found).delivery(&request(b"a", b"b"));
        let before = key();
        pwrite(&file, b"y", 3 * 512 - 1).unwrap();
        assert_ne!(before, key());
        remove(&ledger);
    }

    #[test]
    fn rows_of_what_is_done_are_used_again() {
        let mut one = ledger("full");
        one.take_over();
        let file = one.open().unwrap();
        for at in 0..ROWS {
            let sequence = u32::try_from(at).unwrap();
            write_row(&file, at, &Row { done: true, sequence, number: 1, key: K1 }).unwrap();
        }
        one.give_up();
        let mut two = again(&one);
        two.load(&file, |_| true);
        assert!(two.earlier(Some(&K1)).done);
        assert!(two.claim(&[(1, Some(K2))]).rows[0].is_some());
        remove(&two);
    }

    #[test]
    fn where_times_are_whole_seconds_there_is_no_row_and_nothing_is_believed() {
        let mut ledger = ledger("seconds");
        ledger.take_over();
        let file = ledger.open().unwrap();
        let mut found = stat(&ledger);
        found.st_ctime_nsec = 0;
        let (number, key) = Message::of(b"20/457", &file, &found).delivery(&request(b"a", b"b"));
        assert_eq!((number, key), (457, None));
        assert!(ledger.claim(&[(number, key)]).rows[0].is_none());
        assert_eq!(states(&ledger), []);
        assert_eq!(ledger.earlier(key.as_ref()), Earlier::default());
        remove(&ledger);
    }
}
