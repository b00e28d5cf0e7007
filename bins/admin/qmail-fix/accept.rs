//! `-a N`: a message that is kept aside is accepted as it lies. It gets new records, which say what is there now.
//!
//! What makes it a message again comes last: until then its files do not match their records, and nobody touches it.
#![forbid(unsafe_code)]

use crate::judge::{Envelope, list_kind, measure};
use crate::place::{Kind, Name, Piece, Queue};
use crate::structure::mend_owner;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat, futimens};
use nix::sys::time::TimeSpec;
use qmail::envelope;
use qmail::fd;
use qmail::home::Ids;
use qmail::queue::info::{INFO_MAX, Info, check_record};
use qmail::queue::list::{ListMeter, MARKED, Shape, Tail, tag, write_tail};
use qmail::queue::record::{Hash, Meter, Record as Commit};
use qmail::queue::rewrite::Way;
use qmail::queue::{Number, todo};
use qmail::trouble::Trouble;
use std::os::fd::OwnedFd;

/// Bytes of a recipient list that are read at once: some millions of recipients.
const LIST_MAX: usize = 256 * 1024 * 1024;

/// What was accepted.
pub struct Accepted {
    pub sender: Vec<u8>,
    /// Who is left to be delivered to.
    pub recipients: u64,
    /// Records in which nothing can be read.
    pub unreadable: u64,
}

pub fn accept(queue: &Queue, ids: &Ids, number: Number) -> Result<Accepted, Trouble> {
    let there = |kind| matches!(queue.stat(Piece::at(kind, number)), Ok(Some(_)));
    if !there(Kind::Mess) {
        return Err(Trouble::temporary(format!("there is no message {number}")));
    }
    let accepted = if there(Kind::Todo) {
        envelope_anew(queue, ids, number, Kind::Todo)
    } else if [Kind::Info, Kind::Local, Kind::Remote].into_iter().any(there) {
        lists_anew(queue, ids, number)
    } else if there(Kind::Intd) {
        envelope_anew(queue, ids, number, Kind::Intd)
    } else {
        return Err(Trouble::temporary(format!("nothing says whom message {number} is for")));
    };
    // With nobody to deliver to, qmail-send would take it for delivered, and remove it.
    accepted
        .map_err(|(piece, errno)| Trouble::unable("write", piece.path(), errno))?
        .ok_or_else(|| Trouble::temporary(format!("nobody can be read in it; message {number} stays aside")))
}

type Outcome<T> = Result<T, (Piece, Errno)>;

fn at<T>(piece: Piece, result: Result<T, Errno>) -> Outcome<T> {
    result.map_err(|errno| (piece, errno))
}

fn seal(queue: &Queue, number: Number, envelope: Hash) -> Outcome<Commit> {
    let mess = Piece::at(Kind::Mess, number);
    let (length, message) = at(mess, measure(queue, mess))?;
    Ok(Commit { length, message, envelope })
}

/// todo/N and intd/N with what can be read of the one that is there; None when that is nobody.
fn envelope_anew(queue: &Queue, ids: &Ids, number: Number, from: Kind) -> Outcome<Option<Accepted>> {
    let from = Piece::at(from, number);
    let found = at(from, Envelope::read(queue, from))?;
    if found.recipients.is_empty() {
        return Ok(None);
    }
    let sender = found.sender.unwrap_or_default(); // what fails is then told to the postmaster
    let mut records = envelope::record(b'F', &sender);
    for recipient in &found.recipients {
        records.extend_from_slice(&envelope::record(b'T', recipient));
    }
    let mut meter = Meter::new();
    meter.update(&records);
    let commit = seal(queue, number, meter.finish().1)?;
    let whole = [todo::head(found.uid, found.pid), records, commit.encode(found.pid)].concat();
    let intd = Piece::at(Kind::Intd, number);
    let todo = Piece::at(Kind::Todo, number);
    let (new_intd, new_todo) = (intd.named(Name::Draft(number)), todo.named(Name::Draft(number)));
    let file = at(new_intd, queue.create(new_intd))?;
    at(new_intd, fd::write_all(&file, &whole))?;
    at(new_intd, finish(&file, ids, Kind::Intd, None))?;
    at(new_todo, queue.unlink(new_todo).and_then(|()| queue.link(new_intd, new_todo)))?;
    at(intd, queue.rename(new_intd, intd.name).and_then(|()| queue.sync(intd)))?;
    at(todo, queue.rename(new_todo, todo.name).and_then(|()| queue.sync(todo)))?;
    Ok(Some(Accepted { sender, recipients: found.recipients.len() as u64, unreadable: found.unreadable }))
}

/// Owner, mode and times, and all of it on disk.
fn finish(file: &OwnedFd, ids: &Ids, kind: Kind, like: Option<&FileStat>) -> Result<(), Errno> {
    mend_owner(file, ids, kind.role(), kind.mode())?;
    if let Some(like) = like {
        let time = TimeSpec::new(like.st_mtime, like.st_mtime_nsec);
        futimens(file, &time, &time)?;
    }
    fd::fsync(file)
}

/// The lists that are there, with all recipients that can be read, and info, last of all. None when nobody is left
/// and somebody may have been.
fn lists_anew(queue: &Queue, ids: &Ids, number: Number) -> Outcome<Option<Accepted>> {
    let info = Piece::at(Kind::Info, number);
    let old = match queue.open_file(info) {
        Ok(file) => {
            let found = at(info, fstat(&file))?;
            Some((found, at(info, fd::read_to_end(file, INFO_MAX))?))
        }
        Err(Errno::ENOENT) => None,
        Err(errno) => return Err((info, errno)),
    };
    // Without one, what fails is told to the postmaster.
    let sender = old.as_ref().and_then(|(_, bytes)| sender(bytes)).unwrap_or_default();
    let mut lists = Vec::new();
    for way in Way::BOTH {
        let piece = Piece::at(list_kind(way), number);
        lists.push((piece, read_list(queue, piece)?));
    }
    let read = || lists.iter().filter_map(|(_, list)| list.as_ref());
    let left = |list: &Old| list.recipients.iter().filter(|(is_done, _)| !is_done).count() as u64;
    let (recipients, unreadable) = (read().map(left).sum(), read().map(|list| list.unreadable).sum());
    // Without lists it was delivered to its end, if info can be believed.
    let is_info_whole = old.as_ref().is_some_and(|(_, bytes)| Info::parse(bytes).is_ok());
    let is_doubtful = unreadable > 0 || (read().next().is_none() && !is_info_whole);
    if recipients == 0 && is_doubtful {
        return Ok(None);
    }
    let commit = seal(queue, number, [0; 32])?;
    let mut hashes = [None, None];
    for ((piece, list), hash) in lists.iter().zip(&mut hashes) {
        if let Some(list) = list {
            *hash = Some(list_anew(queue, ids, *piece, list, &commit)?);
        }
    }
    let [local, remote] = &hashes;
    let mut whole = envelope::record(b'F', &sender);
    whole.extend_from_slice(&commit.encode(0));
    whole.extend_from_slice(&check_record(&whole, local.as_ref(), remote.as_ref()));
    let mess = Piece::at(Kind::Mess, number);
    let birth = match old {
        Some((found, _)) => found,
        None => at(mess, queue.stat(mess))?.ok_or((mess, Errno::ENOENT))?,
    };
    let new = info.named(Name::Draft(number));
    let file = at(new, queue.create(new))?;
    at(new, fd::write_all(&file, &whole).and_then(|()| finish(&file, ids, Kind::Info, Some(&birth))))?;
    at(info, queue.rename(new, info.name).and_then(|()| queue.sync(info)))?;
    Ok(Some(Accepted { sender, recipients, unreadable }))
}

/// What stands behind the `F`, whatever comes then.
fn sender(info: &[u8]) -> Option<Vec<u8>> {
    let first = info.split_inclusive(|b| *b == 0).next()?;
    Info::parse(first).ok().map(|info| info.sender)
}

/// What can be read of a list.
struct Old {
    stat: FileStat,
    /// Whether each is done, and his address.
    recipients: Vec<(bool, Vec<u8>)>,
    unreadable: u64,
}

/// None when there is none.
fn read_list(queue: &Queue, piece: Piece) -> Outcome<Option<Old>> {
    let file = match queue.open_file(piece) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err((piece, errno)),
    };
    let (stat, shape) = (at(piece, fstat(&file))?, at(piece, Shape::of(&file))?);
    let bytes = at(piece, fd::read_to_end(file, LIST_MAX))?;
    let end = usize::try_from(shape.records).unwrap_or(usize::MAX).min(bytes.len());
    let (text, marks) = bytes.split_at_checked(end).unwrap_or((&bytes, &[]));
    let is_record = |r: &&[u8]| matches!(r.first(), Some(b'T' | b'D'));
    let all = text.strip_suffix(b"\0").map(|text| text.split(|b| *b == 0)).into_iter().flatten();
    let (records, others): (Vec<&[u8]>, Vec<&[u8]>) = all.partition(is_record);
    // One that was cut off stands where the tail should be; and a list without any was more than nothing.
    let is_cut = shape.tail == Tail::Broken && is_record(&marks);
    let unreadable = others.len() as u64 + u64::from(is_cut);
    let unreadable = if records.is_empty() { unreadable.max(1) } else { unreadable };
    // Who is done: as the marks say, or the letters of an old qmail-send. In doubt nobody is.
    let is_done = |index: usize, record: &[u8]| match shape.tail {
        Tail::Marks(count) => count == records.len() as u64 && marks.get(index) == Some(&MARKED),
        Tail::None => record.starts_with(b"D"),
        Tail::Broken => false,
    };
    let read = |(index, record): (usize, &&[u8])| {
        (is_done(index, record), record.get(1..).unwrap_or_default().to_vec())
    };
    Ok(Some(Old { stat, recipients: records.iter().enumerate().map(read).collect(), unreadable }))
}

/// The list with the tail that it should have; its hash.
fn list_anew(queue: &Queue, ids: &Ids, piece: Piece, old: &Old, commit: &Commit) -> Outcome<Hash> {
    let (mut done, mut whole) = (Vec::new(), Vec::new());
    for (index, (is_done, address)) in old.recipients.iter().enumerate() {
        if *is_done {
            done.push(index as u64);
        }
        whole.extend_from_slice(&envelope::record(if *is_done { b'D' } else { b'T' }, address));
    }
    let (count, tag) = (old.recipients.len() as u64, tag(Some(commit)));
    let mut meter = ListMeter::default();
    meter.update(&whole);
    meter.update_tail(count, &tag);
    let hash = meter.finish().ok_or((piece, Errno::EINVAL))?;
    let Name::Of(number) = piece.name else { return Err((piece, Errno::EINVAL)) };
    let new = piece.named(Name::Draft(number));
    let file = at(new, queue.create(new))?;
    at(new, fd::write_all(&file, &whole))?;
    at(new, write_tail(count, &done, &tag, |bytes| fd::write_all(&file, bytes)))?;
    at(new, finish(&file, ids, piece.kind, Some(&old.stat)))?;
    at(piece, queue.rename(new, piece.name).and_then(|()| queue.sync(piece)))?;
    Ok(hash)
}
