//! Whether the files of one number belong together: what qmail-send proves before it uses a message.
#![forbid(unsafe_code)]

use crate::place::{Kind, Piece, Queue};
use nix::errno::Errno;
use qmail::envelope;
use qmail::fd;
use qmail::queue::age::Clock;
use qmail::queue::info::{INFO_MAX, Info};
use qmail::queue::list::{ListMeter, Shape, Tail};
use qmail::queue::record::{self, Hash, Meter, Record as Commit};
use qmail::queue::rewrite::Way;
use qmail::queue::todo::{self, Record};
use qmail::queue::{Number, lock};
use qmail::timed::Reader;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// Looks at a message that is changing just now before it is left alone.
const LOOKS: u32 = 20;

const CHUNK: usize = 64 * 1024;

/// What was found about a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to say: whole, or in somebody's hands.
    Sound,
    /// Neither delivered nor removed by qmail-send: this is why. It can be accepted as it lies.
    Aside(String),
    /// mess and a whole envelope in intd: it was never acknowledged, or its todo is lost. qmail-send removes it like
    /// what a writer left.
    Unacknowledged,
    /// A file without the others, which qmail-send removes when its time has come.
    Rest(&'static str),
    /// Left by a writer that died long ago.
    Leftover,
    /// The system refuses to say.
    Unreadable(Piece, Errno),
}

/// The files of a number, as they are now, with what would change if somebody changed them.
type Look = BTreeMap<Kind, (u64, i64, i64, i64)>;

/// The verdict; taken again while the message changes.
pub fn judge(queue: &Queue, number: Number, clock: &Clock) -> Verdict {
    for _ in 0..LOOKS {
        let Ok(before) = look(queue, number) else { continue };
        let verdict = decide(queue, number, &before, clock);
        if verdict == Verdict::Sound || look(queue, number).is_ok_and(|after| after == before) {
            return verdict;
        }
    }
    Verdict::Sound // qmail-send is at it
}

fn look(queue: &Queue, number: Number) -> Result<Look, Errno> {
    let mut found = BTreeMap::new();
    for kind in Kind::ALL {
        if let Some(file) = queue.stat(Piece::at(kind, number))? {
            found.insert(kind, (file.st_ino, file.st_size, file.st_ctime, file.st_ctime_nsec));
        }
    }
    Ok(found)
}

fn decide(queue: &Queue, number: Number, files: &Look, clock: &Clock) -> Verdict {
    let has = |kind| files.contains_key(&kind);
    if has(Kind::Mess) && is_in_hand(queue, number) {
        return Verdict::Sound;
    }
    let proof = match (has(Kind::Mess), has(Kind::Todo), has(Kind::Info)) {
        (true, true, _) => prove_envelope(queue, Piece::at(Kind::Todo, number), number),
        (true, false, true) => prove_lists(queue, number),
        (true, false, false) => return without_info(queue, number, files, clock),
        (false, true, _) => {
            return Verdict::Rest("there is no message for it; qmail-send removes it when it starts");
        }
        (false, false, true) => {
            return Verdict::Rest("there is no message for it; qmail-send removes it after 36 hours");
        }
        (false, false, false) if files.keys().all(|kind| *kind == Kind::Intd) => {
            return if files.is_empty() || !is_old(queue, Piece::at(Kind::Intd, number), clock) {
                Verdict::Sound
            } else {
                Verdict::Leftover
            };
        }
        _ => {
            return Verdict::Rest(
                "there is no message for it; qmail-send removes it when it is 36 hours old",
            );
        }
    };
    match proof {
        Ok(None) => Verdict::Sound,
        Ok(Some(changed)) => Verdict::Aside(format!("{} is not what was accepted", changed.path())),
        Err((piece, errno)) => Verdict::Unreadable(piece, errno),
    }
}

/// mess, perhaps intd: a writer's, or one that died. Or a list or a bounce that damage tore from it.
fn without_info(queue: &Queue, number: Number, files: &Look, clock: &Clock) -> Verdict {
    if let Some(torn) = files.keys().find(|kind| matches!(kind, Kind::Local | Kind::Remote | Kind::Bounce)) {
        let torn = Piece::at(*torn, number).path();
        return Verdict::Aside(format!("{torn} is there without {}", Piece::at(Kind::Info, number).path()));
    }
    let intd = Piece::at(Kind::Intd, number);
    if files.contains_key(&Kind::Intd) && is_sealed(queue, intd, number) {
        return Verdict::Unacknowledged;
    }
    if is_old(queue, Piece::at(Kind::Mess, number), clock) { Verdict::Leftover } else { Verdict::Sound }
}

fn is_old(queue: &Queue, piece: Piece, clock: &Clock) -> bool {
    matches!(queue.stat(piece), Ok(Some(file)) if clock.is_old(&file))
}

/// A writer holds the lock; in doubt one does.
fn is_in_hand(queue: &Queue, number: Number) -> bool {
    match queue.open_file(Piece::at(Kind::Mess, number)) {
        Ok(mess) => lock::is_held(&mess) != Ok(false),
        Err(_) => false,
    }
}

/// Whether this envelope ends in the commit record of its message.
fn is_sealed(queue: &Queue, envelope: Piece, number: Number) -> bool {
    matches!(Envelope::read(queue, envelope), Ok(found) if found.sound && found.commit.is_some())
        && prove_envelope(queue, envelope, number) == Ok(None)
}

type Proof = Result<Option<Piece>, (Piece, Errno)>;

/// An envelope, read to its end or to what is wrong in it.
pub struct Envelope {
    pub uid: u64,
    pub pid: u64,
    pub sender: Option<Vec<u8>>,
    pub recipients: Vec<Vec<u8>>,
    pub commit: Option<Commit>,
    /// Records that are none.
    pub unreadable: u64,
    /// It is what an old or a new writer wrote, as far as it can say.
    pub sound: bool,
}

impl Envelope {
    pub fn read(queue: &Queue, piece: Piece) -> Result<Envelope, Errno> {
        let mut file = Reader::new(queue.open_file(piece)?);
        let mut found = Envelope {
            uid: 0,
            pid: 0,
            sender: None,
            recipients: Vec::new(),
            commit: None,
            unreadable: 0,
            sound: false,
        };
        let (mut meter, mut is_sealed, mut broken) = (Meter::new(), false, false);
        loop {
            let ended = found.commit.is_some();
            let record = todo::next(&mut file)?;
            broken |= ended && record.is_some(); // the commit record is the last one
            match record {
                Some(Record::Uid(uid)) => found.uid = uid,
                Some(Record::Pid { pid, sealed }) => {
                    found.pid = pid;
                    is_sealed |= sealed;
                }
                Some(Record::Sender(sender)) if found.sender.is_none() => {
                    meter.update(&envelope::record(b'F', &sender));
                    found.sender = Some(sender);
                }
                Some(Record::Recipient(address)) => {
                    meter.update(&envelope::record(b'T', &address));
                    found.recipients.push(address);
                }
                Some(Record::Commit(commit)) if found.commit.is_none() => found.commit = Some(commit),
                None => break,
                // What stands behind it may still be read, should somebody accept it as it lies.
                Some(Record::Sender(_) | Record::Commit(_)) => broken = true,
                Some(Record::Bad) => {
                    found.unreadable += 1;
                    broken = true;
                }
            }
        }
        found.sound = !broken
            && match &found.commit {
                Some(commit) => meter.finish().1 == commit.envelope,
                None => {
                    let last = found.recipients.last();
                    !is_sealed
                        && found.sender.is_some()
                        && last.is_some_and(|last| !record::is_swallowed_by(last))
                }
            };
        Ok(found)
    }
}

fn prove_envelope(queue: &Queue, piece: Piece, number: Number) -> Proof {
    let found = Envelope::read(queue, piece).map_err(|errno| (piece, errno))?;
    match &found.commit {
        _ if !found.sound => Ok(Some(piece)),
        Some(commit) => prove_message(queue, number, commit),
        None => Ok(None),
    }
}

fn prove_message(queue: &Queue, number: Number, commit: &Commit) -> Proof {
    let piece = Piece::at(Kind::Mess, number);
    let (length, hash) = measure(queue, piece).map_err(|errno| (piece, errno))?;
    Ok(if commit.matches_message(length, &hash) { None } else { Some(piece) })
}

/// Length and hash of a file.
pub fn measure(queue: &Queue, piece: Piece) -> Result<(u64, Hash), Errno> {
    let mut meter = Meter::new();
    read_through(&queue.open_file(piece)?, |bytes| meter.update(bytes))?;
    Ok(meter.finish())
}

fn read_through(file: &OwnedFd, mut take: impl FnMut(&[u8])) -> Result<(), Errno> {
    let mut chunk = vec![0u8; CHUNK];
    loop {
        match fd::read(file, &mut chunk)? {
            0 => return Ok(()),
            n => take(chunk.get(..n).unwrap_or_default()),
        }
    }
}

fn prove_lists(queue: &Queue, number: Number) -> Proof {
    let piece = Piece::at(Kind::Info, number);
    let bytes = match queue.open_file(piece).and_then(|file| fd::read_to_end(file, INFO_MAX)) {
        Ok(bytes) => bytes,
        Err(Errno::EFBIG) => return Ok(Some(piece)),
        Err(errno) => return Err((piece, errno)),
    };
    let Ok(info) = Info::parse(&bytes) else { return Ok(Some(piece)) };
    for way in Way::BOTH {
        let list = Piece::at(list_kind(way), number);
        let (shape, hash) = match hash_list(queue, list) {
            Ok(found) => found,
            Err(Errno::ENOENT) => continue, // delivered to its end
            Err(errno) => return Err((list, errno)),
        };
        match info.check.as_ref().map(|check| check.list(way)) {
            Some(expected) if expected.is_some() && expected == hash.as_ref() => {}
            Some(_) => return Ok(Some(list)),
            None if shape.tail == Tail::None => {}
            None => return Ok(Some(piece)),
        }
    }
    info.commit.as_ref().map_or(Ok(None), |commit| prove_message(queue, number, commit))
}

pub fn list_kind(way: Way) -> Kind {
    match way {
        Way::Local => Kind::Local,
        Way::Remote => Kind::Remote,
    }
}

/// Its shape and its hash; no hash when it is no list.
pub fn hash_list(queue: &Queue, piece: Piece) -> Result<(Shape, Option<Hash>), Errno> {
    let file = queue.open_file(piece)?;
    let shape = Shape::of(&file)?;
    let mut meter = ListMeter::new(shape);
    read_through(&file, |bytes| meter.update(bytes))?;
    Ok((shape, meter.finish()))
}
