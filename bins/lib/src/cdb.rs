//! cdb - constant databases: a reader that trusts no byte of the file, and a writer
//!
//! Format: cdb(5). The reader reads by position from an open file and never maps it (a mapped file cut
//! short by a careless copy is a SIGBUS); every position and length is held against the size the file
//! had when it was opened, so a damaged file is an error and not a panic, a long loop or a large buffer.
#![forbid(unsafe_code)]

use crate::fd;
use crate::trouble::{Trouble, errno};
use nix::errno::Errno;
use std::os::fd::{AsFd, OwnedFd};

/// 256 pairs of (position, slots), one for each hash table.
const HEADER: usize = 2048;
/// A slot of a table, a pair of the header, and the head of a record are two numbers of four bytes.
const PAIR: u64 = 8;
/// Data longer than this is refused: the longest honest record is an alias list of some 100,000 addresses.
const DATA_MAX: u32 = 16 * 1024 * 1024;

/// Why nothing can be said about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    Io(Errno),
    /// The file contradicts itself.
    Corrupt,
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Error {
        Error::Io(errno)
    }
}

impl Error {
    /// "unable to read NAME: REASON", temporary.
    pub fn trouble(self, name: impl AsRef<[u8]>) -> Trouble {
        match self {
            Error::Io(errno) => Trouble::unable("read", name, errno),
            Error::Corrupt => {
                Trouble::temporary([b"unable to read ", name.as_ref(), b": damaged database"].concat())
            }
        }
    }
}

/// The hash of a key.
pub fn hash(key: &[u8]) -> u32 {
    key.iter().fold(5381, |h: u32, byte| h.wrapping_mul(33) ^ u32::from(*byte))
}

/// Bytes that can be read by position.
pub trait Source {
    fn size(&self) -> Result<u64, Errno>;
    /// Fills the whole buffer, or says that the bytes are not there.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<(), Error>;
}

impl Source for OwnedFd {
    fn size(&self) -> Result<u64, Errno> {
        Ok(u64::try_from(nix::sys::stat::fstat(self)?.st_size).unwrap_or(0))
    }

    fn read_at(&self, mut buffer: &mut [u8], mut at: u64) -> Result<(), Error> {
        while !buffer.is_empty() {
            let offset = i64::try_from(at).map_err(|_| Error::Corrupt)?;
            match nix::sys::uio::pread(self.as_fd(), buffer, offset) {
                Ok(0) => return Err(Error::Corrupt), // it has been cut since it was opened
                Ok(n) => {
                    buffer = buffer.get_mut(n..).unwrap_or_default();
                    at = at.saturating_add(n as u64);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Io(errno)),
            }
        }
        Ok(())
    }
}

impl Source for &[u8] {
    fn size(&self) -> Result<u64, Errno> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<(), Error> {
        let at = usize::try_from(at).map_err(|_| Error::Corrupt)?;
        let end = at.checked_add(buffer.len()).ok_or(Error::Corrupt)?;
        buffer.copy_from_slice(self.get(at..end).ok_or(Error::Corrupt)?);
        Ok(())
    }
}

/// An open database. What a key finds is what the file of that moment says, whatever is renamed over it.
#[derive(Debug)]
pub struct Reader<S = OwnedFd> {
    source: S,
    size: u64,
}

impl Reader<OwnedFd> {
    /// Opens a database; None when the file does not exist.
    pub fn open(name: impl AsRef<[u8]>) -> Result<Option<Reader<OwnedFd>>, Errno> {
        match fd::open_read(name) {
            Ok(file) => Reader::new(file).map(Some),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

impl<S: Source> Reader<S> {
    pub fn new(source: S) -> Result<Reader<S>, Errno> {
        let size = source.size()?;
        Ok(Reader { source, size })
    }

    /// The data of the first record with this key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let hash = hash(key);
        let (table, slots) = self.pair(u64::from(hash % 256) * PAIR)?;
        if slots == 0 {
            return Ok(None);
        }
        let (table, slots) = (u64::from(table), u64::from(slots));
        if table + slots * PAIR > self.size {
            return Err(Error::Corrupt);
        }
        let first = u64::from(hash / 256) % slots;
        for probe in 0..slots {
            let (found, record) = self.pair(table + (first + probe) % slots * PAIR)?;
            if record == 0 {
                return Ok(None);
            }
            if found == hash
                && let Some(data) = self.record(u64::from(record), key)?
            {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// Whether there is a record with this key.
    pub fn contains(&self, key: &[u8]) -> Result<bool, Error> {
        Ok(self.get(key)?.is_some())
    }

    /// The data of the record at this position, if its key is the one looked for.
    fn record(&self, at: u64, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let (key_length, data_length) = self.pair(at)?;
        let data_at = at + PAIR + u64::from(key_length);
        if data_at + u64::from(data_length) > self.size {
            return Err(Error::Corrupt);
        }
        if key_length as usize != key.len() || self.bytes(at + PAIR, key_length)? != key {
            return Ok(None);
        }
        if data_length > DATA_MAX {
            return Err(Error::Corrupt);
        }
        Ok(Some(self.bytes(data_at, data_length)?))
    }

    /// Callers have held the length against the size of the file.
    fn bytes(&self, at: u64, length: u32) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; length as usize];
        self.source.read_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn pair(&self, at: u64) -> Result<(u32, u32), Error> {
        if at + PAIR > self.size {
            return Err(Error::Corrupt);
        }
        let mut bytes = [0; 8];
        self.source.read_at(&mut bytes, at)?;
        let [a, b, c, d, e, f, g, h] = bytes;
        Ok((u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])))
    }
}

/// A database being made, in memory: records in the order they are added.
#[derive(Debug, Clone)]
pub struct Writer {
    file: Vec<u8>,
    /// (hash, position) of each record.
    index: Vec<(u32, u32)>,
}

/// The database would not fit into the 4 GiB that its numbers can address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooBig;

impl Default for Writer {
    fn default() -> Writer {
        Writer::new()
    }
}

impl Writer {
    pub fn new() -> Writer {
        Writer { file: vec![0; HEADER], index: Vec::new() }
    }

    /// Adds a record. Several with one key may be added; readers find the first.
    pub fn add(&mut self, key: &[u8], data: &[u8]) -> Result<(), TooBig> {
        let position = u32::try_from(self.file.len()).map_err(|_| TooBig)?;
        let key_length = u32::try_from(key.len()).map_err(|_| TooBig)?;
        let data_length = u32::try_from(data.len()).map_err(|_| TooBig)?;
        self.file.extend_from_slice(&key_length.to_le_bytes());
        self.file.extend_from_slice(&data_length.to_le_bytes());
        self.file.extend_from_slice(key);
        self.file.extend_from_slice(data);
        self.index.push((hash(key), position));
        // Each record costs two slots behind the records.
        let whole = self.file.len() as u64 + self.index.len() as u64 * 2 * PAIR;
        if whole > u64::from(u32::MAX) { Err(TooBig) } else { Ok(()) }
    }

    /// The file: the tables behind the records, and the header that says where they are.
    pub fn finish(mut self) -> Result<Vec<u8>, TooBig> {
        let mut tables: Vec<Vec<(u32, u32)>> = vec![Vec::new(); 256];
        for (hash, position) in &self.index {
            if let Some(table) = tables.get_mut((hash % 256) as usize) {
                table.push((*hash, *position));
            }
        }
        let mut header = Vec::with_capacity(HEADER);
        for table in tables {
            let position = u32::try_from(self.file.len()).map_err(|_| TooBig)?;
            let slots = fill(&table);
            header.extend_from_slice(&position.to_le_bytes());
            header.extend_from_slice(&u32::try_from(slots.len()).map_err(|_| TooBig)?.to_le_bytes());
            for (hash, record) in slots {
                self.file.extend_from_slice(&hash.to_le_bytes());
                self.file.extend_from_slice(&record.to_le_bytes());
            }
        }
        if let Some(room) = self.file.get_mut(..HEADER) {
            room.copy_from_slice(&header);
        }
        Ok(self.file)
    }
}

/// A hash table twice as large as what it holds; a record whose slot is taken goes to the next free one.
fn fill(records: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let length = records.len() * 2;
    let mut slots = vec![(0, 0); length];
    for (hash, position) in records {
        let first = (hash / 256) as usize % length;
        let (before, from) = slots.split_at_mut(first);
        if let Some(slot) = from.iter_mut().chain(before).find(|(_, record)| *record == 0) {
            *slot = (*hash, *position);
        }
    }
    slots
}

/// The step of a replacement that failed, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplaceError {
    Open(Errno),
    Write(Errno),
    Rename(Errno),
}

/// Puts `bytes` where `name` is, at once and for good: written to `temporary` (same file system), synced,
/// renamed, and the directory synced. On failure `name` is untouched, and what could not be written whole
/// is removed; only when the last sync fails is `name` new already, though perhaps not after a power cut.
pub fn replace(name: &[u8], temporary: &[u8], bytes: &[u8], mode: u32) -> Result<(), ReplaceError> {
    let file = fd::create(temporary, mode).map_err(ReplaceError::Open)?;
    let written = fd::write_all(&file, bytes).and_then(|()| fd::fsync(&file));
    if let Err(errno) = written.and_then(|()| nix::unistd::close(file)) {
        let _ = nix::unistd::unlink(fd::path(temporary)); // half of it on a full disk helps nobody
        return Err(ReplaceError::Write(errno));
    }
    std::fs::rename(fd::path(temporary), fd::path(name)).map_err(|e| ReplaceError::Rename(errno(&e)))?;
    let directory = match memchr::memrchr(b'/', name) {
        Some(0) => b"/",
        Some(at) => name.get(..at).unwrap_or_default(),
        None => b".",
    };
    fd::sync_directory(directory).map_err(ReplaceError::Rename)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(records: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut writer = Writer::new();
        for (key, data) in records {
            writer.add(key, data).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn hashes_are_those_of_every_other_implementation() {
        assert_eq!(hash(b""), 0x0000_1505);
        assert_eq!(hash(b"!"), 0x0002_b584);
        assert_eq!(hash(b"!joe-"), 0x05e4_3ca9);
        assert_eq!(hash(b"!joe\0"), 0x05e4_3c84);
        assert_eq!(hash(b".example.com"), 0x2395_694c);
    }

    #[test]
    fn what_is_written_is_found_and_nothing_else() {
        let many: Vec<(Vec<u8>, Vec<u8>)> =
            (0..5000).map(|i| (format!("key{i}").into_bytes(), format!("data{i}").into_bytes())).collect();
        let mut writer = Writer::new();
        for (key, data) in &many {
            writer.add(key, data).unwrap();
        }
        let file = writer.finish().unwrap();
        let reader = Reader::new(file.as_slice()).unwrap();
        for (key, data) in &many {
            assert_eq!(reader.get(key).unwrap().as_ref(), Some(data));
        }
        assert_eq!(reader.get(b"key5000").unwrap(), None);
        assert_eq!(reader.get(b"").unwrap(), None);
    }

    #[test]
    fn of_two_records_with_one_key_the_first_is_found() {
        let file = made(&[(b"k", b"first"), (b"k", b"second"), (b"", b"")]);
        let reader = Reader::new(file.as_slice()).unwrap();
        assert_eq!(reader.get(b"k").unwrap(), Some(b"first".to_vec()));
        assert_eq!(reader.get(b"").unwrap(), Some(Vec::new()));
    }

    #[test]
    fn an_empty_database_is_a_header_of_positions_without_slots() {
        let file = made(&[]);
        assert_eq!(file.len(), HEADER);
        assert_eq!(file.get(..8).unwrap(), [0, 8, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Reader::new(file.as_slice()).unwrap().get(b"x").unwrap(), None);
    }

    #[test]
    fn one_record_has_its_bytes_where_the_format_says() {
        // hash of "a" is 0x0002b5c4: table 0xc4, slot 0x2b5 mod 2 = 1.
        let file = made(&[(b"a", b"xy")]);
        assert_eq!(file.get(2048..2059).unwrap(), b"\x01\0\0\0\x02\0\0\0axy");
        assert_eq!(file.get(2059..).unwrap(), b"\0\0\0\0\0\0\0\0\xc4\xb5\x02\0\x00\x08\0\0");
        let (before, after) = (2059u32.to_le_bytes(), 2075u32.to_le_bytes());
        assert_eq!(file.get(0xc4 * 8..0xc4 * 8 + 4).unwrap(), before);
        assert_eq!(file.get(0xc4 * 8 + 4..0xc4 * 8 + 8).unwrap(), [2, 0, 0, 0]);
        assert_eq!(file.get(0xc5 * 8..0xc5 * 8 + 4).unwrap(), after);
    }

    #[test]
    fn a_file_cut_anywhere_or_with_any_byte_changed_never_panics() {
        let file = made(&[(b"a", b"xy"), (b"b", b"z"), (b"", b"-")]);
        for end in 0..file.len() {
            let reader = Reader::new(file.get(..end).unwrap()).unwrap();
            for key in [b"a".as_slice(), b"b", b""] {
                let _ = reader.get(key);
            }
        }
        for at in 0..file.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = file.clone();
                damaged[at] = value;
                let _ = Reader::new(damaged.as_slice()).unwrap().get(b"a");
            }
        }
    }

    #[test]
    fn lengths_beyond_the_file_are_corrupt_and_not_allocated() {
        let mut file = made(&[(b"a", b"xy")]);
        file[2052..2056].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Reader::new(file.as_slice()).unwrap().get(b"a"), Err(Error::Corrupt));
        let mut file = made(&[(b"a", b"xy")]);
        file[0xc4 * 8 + 4..0xc4 * 8 + 8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Reader::new(file.as_slice()).unwrap().get(b"a"), Err(Error::Corrupt));
        assert_eq!(Reader::new(b"".as_slice()).unwrap().get(b"a"), Err(Error::Corrupt));
    }

    #[test]
    fn a_replaced_file_is_read_back_from_disk() {
        let dir = std::env::temp_dir().join(format!("cdb-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let name = |n: &str| dir.join(n).to_str().unwrap().as_bytes().to_vec();
        replace(&name("x.cdb"), &name("x.tmp"), &made(&[(b"k", b"v")]), 0o644).unwrap();
        let reader = Reader::open(name("x.cdb")).unwrap().unwrap();
        assert_eq!(reader.get(b"k").unwrap(), Some(b"v".to_vec()));
        replace(&name("x.cdb"), &name("x.tmp"), b"", 0o644).unwrap();
        assert_eq!(reader.get(b"k").unwrap(), Some(b"v".to_vec()));
        assert!(Reader::open(name("none")).unwrap().is_none());
        assert!(!dir.join("x.tmp").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
