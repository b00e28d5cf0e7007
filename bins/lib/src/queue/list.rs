//! list - `local/S/N` and `remote/S/N`: who is to get a message this way, and who is done
//!
//! A record for each recipient, `T` address NUL, with `D` for one who is done. Behind the last NUL, where
//! old readers stop, the tail: a mark for each recipient, `.` or `Q` for one who is done; a space; the tag, by
//! which the list of one message is never taken for another's. `T` and `D` differ by one bit, `.` and `Q` by
//! seven: where there is a tail its marks decide, and what is no `Q` is not done. A damaged mark is a second copy
//! at worst. Without a tail (an old qmail-send wrote the list) the letters decide.
#![forbid(unsafe_code)]

use super::record::{self, Hash, Meter, Record};
use crate::timed::{Line, Reader};
use memchr::{memchr, memrchr};
use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::uio::{pread, pwrite};
use std::os::fd::{AsFd, OwnedFd};

/// Bytes of one record: an address as long as envelopes allow behind what control files may put before it.
pub const RECORD_MAX: usize = 16 * 1024;

/// The mark of who is done.
pub const MARKED: u8 = b'Q';

/// The mark of who is not.
pub const UNMARKED: u8 = b'.';

/// Digits of a tag: half of what would still be no accident.
const TAG_DIGITS: usize = 16;

/// Bytes read at once where the tail is looked for.
const CHUNK: usize = 64 * 1024;

/// Marks read at once.
const MARKS: usize = 4096;

/// The tag of a message: the beginning of its hash, `-` where an old qmail-queue left none.
pub fn tag(commit: Option<&Record>) -> String {
    let digits = commit.map(|commit| record::hex(&commit.message));
    digits.and_then(|digits| digits.get(..TAG_DIGITS).map(str::to_string)).unwrap_or_else(|| "-".to_string())
}

/// Where a recipient stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// Its record.
    pub record: u64,
    /// Its mark; None in a list without a tail.
    pub mark: Option<u64>,
}

/// Notes that a recipient is done, in a list open for writing: the mark, which counts, then the letter. Not synced.
pub fn mark_done(list: impl AsFd, spot: Spot) -> Result<(), Errno> {
    if let Some(mark) = spot.mark {
        put(&list, MARKED, mark)?;
    }
    put(&list, b'D', spot.record)
}

fn put(list: impl AsFd, byte: u8, offset: u64) -> Result<(), Errno> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    loop {
        match pwrite(&list, &[byte], offset) {
            Ok(1) => return Ok(()),
            Ok(_) => return Err(Errno::EIO),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Where the parts of a list are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of the records.
    pub records: u64,
    pub tail: Tail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// An old qmail-send wrote the list.
    None,
    /// So many marks.
    Marks(u64),
    /// Something behind the records that is no tail.
    Broken,
}

impl Shape {
    /// Looks from the end, where no tail has a NUL; leaves the file's offset alone.
    pub fn of(list: impl AsFd) -> Result<Shape, Errno> {
        let size = u64::try_from(fstat(&list)?.st_size).unwrap_or(0);
        let records = end_of_records(&list, size)?;
        if records == size {
            return Ok(Shape { records, tail: Tail::None });
        }
        // A space and a tag end the file, if anything does.
        let from = records.max(size.saturating_sub(TAG_DIGITS as u64 + 1));
        let mut end = [0u8; TAG_DIGITS + 1];
        let n = pread_full(&list, &mut end, from)?;
        let end = end.get(..n).unwrap_or_default();
        let space = memrchr(b' ', end).filter(|at| is_tag(end.get(at + 1..).unwrap_or_default()));
        let tail = space.map_or(Tail::Broken, |at| Tail::Marks(from + at as u64 - records));
        Ok(Shape { records, tail })
    }
}

/// The first byte behind the last NUL.
fn end_of_records(list: impl AsFd, size: u64) -> Result<u64, Errno> {
    let mut chunk = vec![0u8; CHUNK];
    let mut end = size;
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        let piece = usize::try_from(end - start).unwrap_or(CHUNK).min(CHUNK);
        let n = pread_full(&list, chunk.get_mut(..piece).unwrap_or_default(), start)?;
        if let Some(at) = memrchr(0, chunk.get(..n).unwrap_or_default()) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

fn is_tag(text: &[u8]) -> bool {
    text == b"-" || text.len() == TAG_DIGITS
}

/// Reads until the buffer is full or the file ends.
fn pread_full(file: impl AsFd, buffer: &mut [u8], from: u64) -> Result<usize, Errno> {
    let mut have = 0;
    while let Some(room) = buffer.get_mut(have..).filter(|room| !room.is_empty()) {
        let offset = i64::try_from(from + have as u64).map_err(|_| Errno::EOVERFLOW)?;
        match pread(&file, room, offset) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(have)
}

/// A recipient on a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub spot: Spot,
    pub done: bool,
    pub address: Vec<u8>,
}

/// Why a list cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The system's, or a record or tail that is broken.
    Reading,
    /// A record of an unknown letter.
    Letter,
}

/// Reads a list, recipient by recipient.
pub struct Entries {
    reader: Reader<OwnedFd>,
    /// The same file, for marks.
    marks: OwnedFd,
    shape: Shape,
    at: u64,
    count: u64,
    /// Marks read ahead, from this one on.
    ahead: Vec<u8>,
    ahead_from: u64,
}

impl Entries {
    pub fn open(list: OwnedFd) -> Result<Entries, Errno> {
        let shape = Shape::of(&list)?;
        let marks = list.try_clone().map_err(|_| Errno::EMFILE)?;
        let reader = Reader::new(list);
        Ok(Entries { reader, marks, shape, at: 0, count: 0, ahead: Vec::new(), ahead_from: 0 })
    }

    /// The next recipient; None at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Trouble> {
        if self.at >= self.shape.records {
            let whole = match self.shape.tail {
                Tail::None => true,
                Tail::Marks(marks) => marks == self.count,
                Tail::Broken => false,
            };
            return if whole { Ok(None) } else { Err(Trouble::Reading) };
        }
        let Ok(Line::Whole(record)) = self.reader.line(0, RECORD_MAX) else { return Err(Trouble::Reading) };
        let (letter, address) = match record.split_first() {
            Some((letter @ (b'T' | b'D'), address)) => (*letter, address.to_vec()),
            _ => return Err(Trouble::Letter),
        };
        let mark = match self.shape.tail {
            Tail::Marks(marks) if self.count < marks => Some(self.mark(self.count)?),
            Tail::Marks(_) => return Err(Trouble::Reading),
            Tail::None | Tail::Broken => None,
        };
        let done = mark.map_or(letter == b'D', |mark| mark == MARKED);
        let spot = Spot { record: self.at, mark: mark.map(|_| self.shape.records + self.count) };
        self.at += record.len() as u64 + 1;
        self.count += 1;
        Ok(Some(Entry { spot, done, address }))
    }

    fn mark(&mut self, index: u64) -> Result<u8, Trouble> {
        let known = |from: u64, ahead: &[u8]| {
            usize::try_from(index.checked_sub(from)?).ok().and_then(|at| ahead.get(at).copied())
        };
        if let Some(mark) = known(self.ahead_from, &self.ahead) {
            return Ok(mark);
        }
        let mut ahead = vec![0u8; MARKS];
        let n = pread_full(&self.marks, &mut ahead, self.shape.records + index);
        ahead.truncate(n.map_err(|_| Trouble::Reading)?);
        (self.ahead, self.ahead_from) = (ahead, index);
        known(index, &self.ahead).ok_or(Trouble::Reading)
    }
}

/// The tail of a list being written: a mark for each of `count` recipients, `done` the indices of those who are;
/// given to `write` in pieces.
pub fn write_tail<E>(
    count: u64,
    done: &[u64],
    tag: &str,
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut from = 0;
    while from < count {
        let length = (count - from).min(CHUNK as u64);
        let mut piece = vec![UNMARKED; usize::try_from(length).unwrap_or(CHUNK)];
        for index in done.iter().filter_map(|index| usize::try_from(index.checked_sub(from)?).ok()) {
            if let Some(mark) = piece.get_mut(index) {
                *mark = MARKED;
            }
        }
        write(&piece)?;
        from += length;
    }
    write(format!(" {tag}").as_bytes())
}

/// Hashes a list that passes by in pieces. Done marks do not count, neither letters nor marks: delivering
/// changes no hash.
#[derive(Clone)]
pub struct ListMeter {
    meter: Meter,
    shape: Shape,
    at: u64,
    at_start: bool,
    /// Only `T`, `D` and whole records so far.
    sound: bool,
}

impl Default for ListMeter {
    /// For a list that has no tail yet.
    fn default() -> Self {
        ListMeter::new(Shape { records: u64::MAX, tail: Tail::None })
    }
}

impl ListMeter {
    pub fn new(shape: Shape) -> ListMeter {
        let sound = shape.tail != Tail::Broken;
        ListMeter { meter: Meter::new(), shape, at: 0, at_start: true, sound }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        let left = self.shape.records.saturating_sub(self.at);
        let records = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let (records, tail) = bytes.split_at_checked(records).unwrap_or((bytes, &[]));
        self.update_records(records);
        self.at += records.len() as u64;
        if let Tail::Marks(marks) = self.shape.tail {
            let left = (self.shape.records + marks).saturating_sub(self.at);
            let marks = tail.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.meter.update(&vec![UNMARKED; marks]);
            self.meter.update(tail.get(marks..).unwrap_or_default());
        } else {
            self.sound &= tail.is_empty();
        }
        self.at += tail.len() as u64;
    }

    /// The tail of a list whose records have all passed by.
    pub fn update_tail(&mut self, count: u64, tag: &str) {
        let meter = &mut self.meter;
        let _ = write_tail::<()>(count, &[], tag, |piece| {
            meter.update(piece);
            Ok(())
        });
    }

    fn update_records(&mut self, mut bytes: &[u8]) {
        while let Some(first) = bytes.first() {
            if self.at_start {
                self.sound &= matches!(first, b'T' | b'D');
                self.meter.update(b"T");
                self.at_start = false;
                bytes = bytes.get(1..).unwrap_or_default();
                continue;
            }
            let length = memchr(0, bytes).map_or(bytes.len(), |at| at + 1);
            let (piece, rest) = bytes.split_at(length);
            self.at_start = piece.ends_with(b"\0");
            self.meter.update(piece);
            bytes = rest;
        }
    }

    /// The hash; None when this is no recipient list.
    pub fn finish(self) -> Option<Hash> {
        (self.sound && self.at_start).then(|| self.meter.finish().1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fd;

    const TAG: &str = "0123456789abcdef";

    fn file(bytes: &[u8]) -> OwnedFd {
        let name = std::env::temp_dir().join(format!("queue-list-{:?}", std::thread::current().id()));
        let name = format!("{}-{}", name.to_str().unwrap(), std::process::id());
        let file = fd::create_new(&name, 0o600).unwrap();
        std::fs::remove_file(&name).unwrap();
        fd::write_all(&file, bytes).unwrap();
        nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekSet).unwrap();
        file
    }

    fn read(bytes: &[u8]) -> (Vec<(String, bool)>, Option<Trouble>) {
        let mut entries = Entries::open(file(bytes)).unwrap();
        let mut found = Vec::new();
        loop {
            match entries.next_entry() {
                Ok(Some(e)) => found.push((String::from_utf8(e.address).unwrap(), e.done)),
                Ok(None) => return (found, None),
                Err(trouble) => return (found, Some(trouble)),
            }
        }
    }

    fn hash(bytes: &[u8], piece: usize) -> Option<Hash> {
        let mut meter = ListMeter::new(Shape::of(file(bytes)).unwrap());
        bytes.chunks(piece).for_each(|piece| meter.update(piece));
        meter.finish()
    }

    fn list(marks: &str) -> Vec<u8> {
        [b"Ta@x\0Db@y\0", marks.as_bytes(), b" ", TAG.as_bytes()].concat()
    }

    fn pairs(pairs: &[(&str, bool)]) -> Vec<(String, bool)> {
        pairs.iter().map(|(name, done)| (name.to_string(), *done)).collect()
    }

    #[test]
    fn marks_decide_where_there_are_some_and_letters_elsewhere() {
        assert_eq!(read(b"Ta@x\0Db@y\0"), (pairs(&[("a@x", false), ("b@y", true)]), None));
        assert_eq!(read(&list("Q.")), (pairs(&[("a@x", true), ("b@y", false)]), None));
        assert_eq!(read(&list("?\x01")), (pairs(&[("a@x", false), ("b@y", false)]), None));
        assert_eq!(read(b""), (vec![], None));
    }

    #[test]
    fn a_tail_that_does_not_fit_is_trouble() {
        for marks in ["", ".", "..."] {
            assert_eq!(read(&list(marks)).1, Some(Trouble::Reading), "{marks}");
        }
        assert_eq!(read(b"Ta@x\0Tb@"), (pairs(&[("a@x", false)]), Some(Trouble::Reading)));
        assert_eq!(read(b"Ta@x\0Xq\0"), (pairs(&[("a@x", false)]), Some(Trouble::Letter)));
        assert_eq!(read(b"T"), (vec![], Some(Trouble::Reading)));
    }

    #[test]
    fn a_mark_that_is_made_is_read() {
        let bytes = list("..");
        let open = file(&bytes);
        let mut entries = Entries::open(open.try_clone().unwrap()).unwrap();
        let (first, second) =
            (entries.next_entry().unwrap().unwrap(), entries.next_entry().unwrap().unwrap());
        assert_eq!((first.spot.record, second.spot.record), (0, 5));
        assert!(!first.done && !second.done);
        mark_done(&open, first.spot).unwrap();
        let mut found = vec![0; bytes.len()];
        pread_full(&open, &mut found, 0).unwrap();
        assert_eq!(found, [b"Da@x\0Db@y\0Q. ", TAG.as_bytes()].concat());
    }

    #[test]
    fn many_recipients_have_each_their_mark() {
        let count = 3 * MARKS as u64 + 7;
        let mut bytes: Vec<u8> = (0..count).flat_map(|i| format!("Tr{i}@x\0").into_bytes()).collect();
        let done = [0, 1, MARKS as u64, count - 1];
        let records = bytes.len();
        write_tail::<()>(count, &done, TAG, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        let (found, trouble) = read(&bytes);
        let marked: Vec<u64> =
            (0..count).zip(&found).filter(|(_, (_, done))| *done).map(|(i, _)| i).collect();
        assert_eq!((marked.as_slice(), trouble, found.len() as u64), (done.as_slice(), None, count));
        let mut meter = ListMeter::default();
        meter.update(&bytes[..records]);
        meter.update_tail(count, TAG);
        assert_eq!(meter.finish(), hash(&bytes, 1000));
    }

    #[test]
    fn delivering_changes_no_hash_and_everything_else_does() {
        let sound = hash(&list(".."), 100).unwrap();
        for marks in ["Q.", "QQ", "?."] {
            assert_eq!(hash(&list(marks), 3), Some(sound), "{marks}");
        }
        let other_letters = [b"Da@x\0Tb@y\0.. ".as_slice(), TAG.as_bytes()].concat();
        assert_eq!(hash(&other_letters, 1), Some(sound));
        let whole = list("..");
        for length in 0..whole.len() {
            assert_ne!(hash(&whole[..length], 7), Some(sound), "cut at {length}");
        }
        let records = 10;
        for at in (0..whole.len()).filter(|at| !(records..records + 2).contains(at)) {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                let is_letter = (at == 0 || at == 5) && bit == 4;
                assert_eq!(hash(&flipped, 5) == Some(sound), is_letter, "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn lists_without_a_tail_keep_their_hash() {
        assert_eq!(hash(b"Ta@b\0TTD\0", 100), hash(b"Da@b\0DTD\0", 1));
        assert_ne!(hash(b"Ta@b\0", 100), hash(b"Ta@b\0TTD\0", 100));
        assert_eq!(hash(b"Ta@b\0TTD", 100), None);
        assert_eq!(hash(b"Xa@b\0", 100), None);
        assert!(hash(b"", 100).is_some());
    }

    #[test]
    fn a_tag_is_of_the_message() {
        assert_eq!(tag(None), "-");
        let commit = Record { length: 3, message: [0xab; 32], envelope: [0; 32] };
        assert_eq!(tag(Some(&commit)), "abababababababab");
    }
}
