//! accept - a message enters the queue (S1 -> S2 -> S3 -> S4)
//!
//! The one function behind both doors: `qmail-queue` where it owns the queue, and the child of
//! `qmail-queued` for everybody else. The working directory is `queue/`, the umask 033.
//!
//! Order is what makes it safe, and no step may move:
//!
//! | step | after it |
//! |---|---|
//! | lock and create `pid/…`, link `mess/S/N`, unlink `pid/…` | S2: the number is ours, the lock says we live |
//! | write mess, create and write `intd/N` | S3 |
//! | sync mess, intd and the directory `mess/S` | everything the name `todo/N` will promise is on disk |
//! | link `todo/N` | S4: visible - but qmail-send leaves it while we hold the lock |
//! | sync the directory `todo` | S4 durable |
//! | look at mess's link count, give up the lock, pull the trigger, answer 0 | accepted |
//!
//! Never link before the first sync: a power cut would leave half a message under a valid name.
#![forbid(unsafe_code)]

use super::record::{Meter, Record};
use super::{Number, intd, mess, pull_trigger, todo_path};
use crate::envelope::{self, Part};
use crate::exits::queue as code;
use crate::home::Home;
use crate::sys::descriptor::start_writeback;
use crate::timed::{Deadline, Reader};
use crate::{date, fd};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstat;
use nix::unistd::{Pid, Uid, UnlinkatFlags};
use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};

/// A writer lives 24 hours at most: the cleanup of leftovers counts on it.
pub const LIFETIME_SECONDS: u64 = 86_400;

/// Tries for a number that no stale envelope haunts.
const SEQUENCE_MAX: u32 = 9;

/// Bytes collected before they are written to mess.
const CHUNK: usize = 64 * 1024;

/// A refusal: the exit code of `qmail-queue`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub i32);

/// Who hands the message in.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    pub uid: Uid,
    pub pid: Pid,
}

/// Where message and envelope are read from.
pub struct Source<M, E> {
    pub message: Reader<M>,
    pub envelope: Reader<E>,
    /// Seconds without a byte after which SIGALRM ends this process, even out of a read that never returns;
    /// None where only the lifetime counts.
    pub stall: Option<u32>,
}

/// Takes a message into the queue; Ok is the promise that it survives anything.
pub fn accept<M: AsFd, E: AsFd>(
    home: &Home,
    origin: Origin,
    mut source: Source<M, E>,
) -> Result<Number, Refusal> {
    let lifetime = Deadline::seconds(LIFETIME_SECONDS);
    source.message.set_overall(lifetime);
    source.envelope.set_overall(lifetime);
    let draft = Draft::begin()?;
    match draft.fill(home, origin, &mut source) {
        // Nobody waits for the answer any more, and will hand the message in again: the last moment to stop.
        // model: Q11
        Ok(()) if source.envelope.peer_left() => {
            draft.discard();
            Err(Refusal(code::READ))
        }
        Ok(()) => draft.commit(),
        Err(refusal) => {
            draft.discard();
            Err(refusal)
        }
    }
}

/// A message being written. The lock on `mess` is held as long as this lives.
struct Draft {
    number: Number,
    mess: OwnedFd,
    intd_created: Cell<bool>,
}

impl Draft {
    /// S1 -> S2: a file whose inode number becomes the message's number.
    fn begin() -> Result<Draft, Refusal> {
        // A number whose stale todo/N survived a power cut cannot be used: keep its inode while trying
        // for another, so that the file system cannot hand it out again.
        let mut haunted = Vec::new();
        let result = Draft::find_number(&mut haunted);
        for (name, _file) in &haunted {
            let _ = unlink(name);
        }
        result
    }

    fn find_number(haunted: &mut Vec<(String, OwnedFd)>) -> Result<Draft, Refusal> {
        for sequence in 1..=SEQUENCE_MAX {
            let name = format!("pid/{}.{}.{sequence}", nix::unistd::getpid(), date::now());
            // model: Q1
            let file = match fd::create_new(&name, 0o644) {
                Ok(file) => file,
                Err(Errno::EEXIST) => continue,
                Err(_) => return Err(Refusal(code::PID)),
            };
            let number = fstat(&file).map_err(|_| Refusal(code::PID))?.st_ino;
            if exists(&todo_path(number)) {
                haunted.push((name, file));
                continue;
            }
            // model: Q2
            if super::lock::hold(&file).is_err() {
                let _ = unlink(&name);
                return Err(Refusal(code::PID));
            }
            // model: Q3
            if link(&name, &mess(number)).is_err() {
                let _ = unlink(&name);
                return Err(Refusal(code::MESS));
            }
            let draft = Draft { number, mess: file, intd_created: Cell::new(false) };
            // model: Q4
            if unlink(&name).is_err() {
                draft.discard();
                return Err(Refusal(code::PID));
            }
            return Ok(draft);
        }
        Err(Refusal(code::PID))
    }

    /// S2 -> S3: message and envelope are written; nothing is promised yet.
    fn fill<M: AsFd, E: AsFd>(
        &self,
        home: &Home,
        origin: Origin,
        source: &mut Source<M, E>,
    ) -> Result<(), Refusal> {
        // model: Q5
        let (length, message) = self.copy_message(&received(home, origin), source)?;
        // The kernel starts on the message while we read the envelope.
        start_writeback(&self.mess);
        // model: Q6
        let file = self.create_intd()?;
        // model: Q7
        let head = super::todo::head(origin.uid, origin.pid);
        let envelope = copy_envelope(&file, head, source)?;
        let commit =
            Record { length, message, envelope }.encode(u64::try_from(origin.pid.as_raw()).unwrap_or(0));
        fd::write_all(&file, &commit).map_err(|_| Refusal(code::WRITE))?;
        self.sync(&file)
    }

    fn copy_message<M: AsFd, E: AsFd>(
        &self,
        received: &[u8],
        source: &mut Source<M, E>,
    ) -> Result<(u64, super::record::Hash), Refusal> {
        let mut meter = Meter::new();
        let mut pending = received.to_vec();
        meter.update(received);
        loop {
            watchdog(source.stall);
            let bytes = source.message.fill().map_err(read_trouble)?;
            let n = bytes.len();
            if n == 0 {
                break;
            }
            meter.update(bytes);
            pending.extend_from_slice(bytes);
            source.message.consume(n);
            if pending.len() >= CHUNK {
                fd::write_all(&self.mess, &pending).map_err(|_| Refusal(code::WRITE))?;
                pending.clear();
            }
        }
        fd::write_all(&self.mess, &pending).map_err(|_| Refusal(code::WRITE))?;
        Ok(meter.finish())
    }

    /// A file of this name that is there already was left by a crash: the number is ours, and
    /// nobody else can be writing it.
    fn create_intd(&self) -> Result<OwnedFd, Refusal> {
        let name = intd(self.number);
        let created = match fd::create_new(&name, 0o644) {
            Err(Errno::EEXIST) => unlink(&name).and_then(|()| fd::create_new(&name, 0o644)),
            other => other,
        };
        let file = created.map_err(|_| Refusal(code::INTD))?;
        self.intd_created.set(true);
        Ok(file)
    }

    /// The first flush: contents of both files, and the name of mess.
    fn sync(&self, intd: &OwnedFd) -> Result<(), Refusal> {
        start_writeback(intd);
        let directory = format!("mess/{}", self.number % super::SPLIT);
        fd::fsync(&self.mess) // model: Q8
            .and_then(|()| fd::fsync(intd)) // model: Q9
            .and_then(|()| fd::sync_directory(directory)) // model: Q10
            .map_err(|_| Refusal(code::WRITE))
    }

    /// S3 -> S4, durable, then the answer.
    fn commit(self) -> Result<Number, Refusal> {
        let todo = todo_path(self.number);
        // model: Q12
        if let Err(errno) = link(&intd(self.number), &todo) {
            // Only when the name is certainly not ours may the message go.
            if errno == Errno::EEXIST || !exists(&todo) {
                self.discard();
            }
            return Err(Refusal(code::TODO));
        }
        // From here on the message is visible. Never remove mess/N now: should the name todo/N
        // survive although we failed, the message must be there.
        // model: Q13
        if fd::sync_directory("todo").is_err() {
            let _ = unlink(&todo); // model: R3
            return Err(Refusal(code::WRITE));
        }
        // A cleanup that did not see our lock would have taken the file from under us.
        // model: Q14
        if fstat(&self.mess).map_or(0, |s| s.st_nlink) == 0 {
            let _ = unlink(&todo);
            return Err(Refusal(code::WRITE));
        }
        let number = self.number;
        // model: Q15
        drop(self); // gives up the lock: now qmail-send may take the message
        pull_trigger();
        Ok(number)
    }

    /// S2 or S3 -> S1. intd goes first: mess without intd is S2, intd without mess would be nobody's.
    fn discard(&self) {
        // model: R1
        if self.intd_created.get() && unlink(&intd(self.number)).is_err() {
            return;
        }
        let _ = unlink(&mess(self.number)); // model: R2
    }
}

/// Copies the envelope to intd; the digest of its F and T records.
fn copy_envelope<M: AsFd, E: AsFd>(
    file: &OwnedFd,
    head: Vec<u8>,
    source: &mut Source<M, E>,
) -> Result<super::record::Hash, Refusal> {
    let mut meter = Meter::new();
    let mut pending = head;
    let mut first = true;
    loop {
        watchdog(source.stall);
        let record = match envelope::next(&mut source.envelope, first).map_err(read_trouble)? {
            Part::Sender(sender) => envelope::record(b'F', &sender),
            Part::Recipient(recipient) => envelope::record(b'T', &recipient),
            Part::Complete => break,
            Part::TooLong => return Err(Refusal(code::ADDRESS_TOO_LONG)),
            Part::Bad => return Err(Refusal(code::ENVELOPE_FORMAT)),
            Part::Broken => return Err(Refusal(code::READ)),
        };
        first = false;
        meter.update(&record);
        pending.extend_from_slice(&record);
        if pending.len() >= CHUNK {
            fd::write_all(file, &pending).map_err(|_| Refusal(code::WRITE))?;
            pending.clear();
        }
    }
    fd::write_all(file, &pending).map_err(|_| Refusal(code::WRITE))?;
    Ok(meter.finish().1)
}

/// The first line of mess; log and bounce readers match it.
fn received(home: &Home, origin: Origin) -> Vec<u8> {
    let is = |role: &str| !home.ids().is_own() && home.ids().role(role).is_some_and(|a| a.uid == origin.uid);
    let how = if is("alias") {
        "by alias".to_string()
    } else if is("qmaild") {
        "from network".to_string()
    } else if is("qmails") {
        "for bounce".to_string()
    } else {
        format!("by uid {}", origin.uid)
    };
    format!("Received: (qmail {} invoked {how}); {}\n", origin.pid, date::rfc822(date::now())).into_bytes()
}

fn read_trouble(errno: Errno) -> Refusal {
    Refusal(if errno == Errno::ETIMEDOUT { code::TIMEOUT } else { code::READ })
}

/// Winds up the alarm clock that ends a read which never returns.
fn watchdog(stall: Option<u32>) {
    if let Some(seconds) = stall {
        nix::unistd::alarm::set(seconds);
    }
}

fn link(old: &str, new: &str) -> Result<(), Errno> {
    use nix::fcntl::AT_FDCWD;
    nix::unistd::linkat(AT_FDCWD, old, AT_FDCWD, new, AtFlags::empty())
}

fn unlink(name: &str) -> Result<(), Errno> {
    nix::unistd::unlinkat(nix::fcntl::AT_FDCWD, name, UnlinkatFlags::NoRemoveDir)
}

fn exists(name: &str) -> bool {
    nix::sys::stat::lstat(name).is_ok()
}
