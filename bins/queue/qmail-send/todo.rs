//! Preprocessing: `todo/N` becomes `info/S/N` and the recipient lists (S4 to S5).
//!
//! Each turn does one small step: a directory entry, some records, one sync. The commit is the removal
//! of `todo/N` by qmail-clean; whatever goes wrong before it is begun again at the next scan.
//!
//! The short way (delivering few recipients straight from `todo/N`, S4 to S2) will start here instead of
//! `Writing`: the envelope is read, the writer's lock is gone, nothing has been written yet.
#![forbid(unsafe_code)]

use crate::channel::RECORD_MAX;
use crate::cleaner::Task;
use crate::desk::{Desk, SLEEP_SECONDS, Wake, file_stat, is_message_gone, list_path, now, remove};
use crate::proof::Hasher;
use nix::dir::{Dir, OwningIter};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat};
use qmail::envelope;
use qmail::fd;
use qmail::queue::info::{ListMeter, check_record};
use qmail::queue::record::{self, Meter, Record as Commit};
use qmail::queue::report::log_safe;
use qmail::queue::rewrite::Way;
use qmail::queue::todo::{self, Record};
use qmail::queue::{self, Number, lock};
use qmail::sys::descriptor::start_writeback;
use qmail::timed::Reader;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Seconds until `todo` is looked at although nobody pulled the trigger.
const RESCAN_SECONDS: u64 = 1500;

/// Envelope records read in one turn.
const RECORDS_A_TURN: usize = 200;

/// Bytes of a list collected before they are written.
const LIST_BUFFER: usize = 32 * 1024;

/// Preprocessed messages that may wait for qmail-clean while the next ones are begun.
const COMMITTING_MAX: usize = 8;

pub struct Todo {
    /// The fifo that qmail-queue writes to. Opened anew before every scan, never read.
    trigger: Option<OwnedFd>,
    scan: Option<OwningIter>,
    next_scan: u64,
    job: Option<Job>,
    /// Waiting for qmail-clean: which lists were written.
    committing: BTreeMap<Number, [bool; 2]>,
}

/// One message on its way from S4 to S5.
struct Job {
    number: Number,
    /// Bytes of the message.
    size: u64,
    stage: Stage,
}

enum Stage {
    Proving(Box<Proving>),
    Writing(Box<Writing>),
    Syncing(Syncing),
}

/// A number found at the start: is the envelope whole, and is the message the one it was written for?
struct Proving {
    todo: Reader<OwnedFd>,
    meter: Meter,
    commit: Option<Commit>,
    /// The last one so far.
    recipient: Option<Vec<u8>>,
    mess: Hasher,
}

struct Writing {
    todo: Reader<OwnedFd>,
    uid: u64,
    pid: u64,
    info: OwnedFd,
    /// What was written to info so far; empty until the sender was seen.
    head: Vec<u8>,
    commit: Option<Commit>,
    lists: [Option<List>; 2],
}

/// A recipient list being written.
struct List {
    name: String,
    file: OwnedFd,
    buffer: Vec<u8>,
    meter: ListMeter,
}

/// Everything is written: what is still to be synced, in order.
struct Syncing {
    rest: VecDeque<(String, OwnedFd)>,
    lists: [bool; 2],
}

/// What a step came to.
enum Step {
    Going(Stage),
    Synced([bool; 2]),
    /// A warning; the next scan begins again.
    Trouble(String),
    /// Kept aside for this reason.
    Aside(String),
}

impl Todo {
    /// Opens the trigger: pulls from now on are seen.
    pub fn new() -> Todo {
        let mut todo =
            Todo { trigger: None, scan: None, next_scan: 0, job: None, committing: BTreeMap::new() };
        todo.reopen_trigger();
        todo
    }

    fn reopen_trigger(&mut self) {
        self.trigger = None; // closed first: what is in the fifo goes with its last descriptor
        self.trigger = fd::open_read("lock/trigger").ok();
    }

    /// To poll for a pull, when one would start a scan.
    pub fn trigger_fd(&self) -> Option<BorrowedFd<'_>> {
        self.trigger.as_ref().filter(|_| self.scan.is_none()).map(AsFd::as_fd)
    }

    /// Somebody pulled the trigger.
    pub fn pulled(&mut self) {
        self.next_scan = 0;
    }

    pub fn wake(&self, desk: &Desk) -> Wake {
        if desk.stopping {
            Wake::Never
        } else if self.job.is_some() {
            Wake::Now
        } else if self.scan.is_some() {
            Wake::now_if(self.may_begin(desk))
        } else {
            Wake::at(Some(self.next_scan), now())
        }
    }

    fn may_begin(&self, desk: &Desk) -> bool {
        self.committing.len() < COMMITTING_MAX && desk.cleaner.has_room()
    }

    pub fn step(&mut self, desk: &mut Desk) {
        if desk.stopping {
            return;
        }
        if let Some(job) = self.job.take() {
            self.job = self.advance(desk, job);
        } else if self.scan.is_some() {
            if self.may_begin(desk) {
                self.next_entry(desk);
            }
        } else if now() >= self.next_scan {
            self.begin_scan(desk);
        }
    }

    fn begin_scan(&mut self, desk: &Desk) {
        // In this order: who links todo/N after we looked pulls a trigger that we have open.
        self.reopen_trigger();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match Dir::open("todo", flags, Mode::empty()) {
            Ok(directory) => {
                self.scan = Some(directory.into_iter());
                self.next_scan = now() + RESCAN_SECONDS;
            }
            Err(_) => self.later(desk),
        }
    }

    fn later(&mut self, desk: &Desk) {
        desk.log.line("alert: unable to opendir todo, sleeping...");
        self.next_scan = now() + SLEEP_SECONDS;
    }

    fn next_entry(&mut self, desk: &mut Desk) {
        match self.scan.as_mut().and_then(Iterator::next) {
            Some(Ok(entry)) => {
                let Some(number) = queue::number(entry.file_name().to_bytes()) else { return };
                if !desk.is_aside(number) && !self.committing.contains_key(&number) {
                    self.job = begin(desk, number);
                }
            }
            None => self.scan = None,
            Some(Err(_)) => {
                self.scan = None;
                self.later(desk);
            }
        }
    }

    fn advance(&mut self, desk: &mut Desk, mut job: Job) -> Option<Job> {
        let step = match job.stage {
            Stage::Proving(proving) => proving.step(desk, job.number),
            Stage::Writing(writing) => writing.step(desk, job.number, job.size),
            Stage::Syncing(syncing) => syncing.step(),
        };
        match step {
            Step::Going(stage) => {
                job.stage = stage;
                return Some(job);
            }
            Step::Synced(lists) => {
                self.committing.insert(job.number, lists);
                desk.cleaner.ask(Task::Preprocessed(job.number));
            }
            Step::Trouble(what) => desk.log.line(format!("warning: {what}")),
            Step::Aside(reason) => desk.put_aside(job.number, &reason),
        }
        None
    }

    /// qmail-clean answered: with success the message is in S5 and may be delivered.
    pub fn committed(&mut self, desk: &mut Desk, number: Number, done: bool) {
        let Some(lists) = self.committing.remove(&number) else { return };
        if !done {
            return; // still in S4: the next scan redoes it
        }
        desk.unproven.remove(&number);
        let now = now();
        for (way, used) in Way::BOTH.into_iter().zip(lists) {
            if used {
                desk.schedule(way).insert(now, number);
            }
        }
        if lists == [false, false] {
            desk.done.insert(now, number);
        }
    }
}

/// The first step for one entry; None when there is nothing to do now.
fn begin(desk: &mut Desk, number: Number) -> Option<Job> {
    let name = queue::todo_path(number);
    let envelope = match fd::open_read(&name) {
        Ok(file) => file,
        Err(Errno::ENOENT) => return None, // an entry read before it went
        Err(_) => {
            desk.log.line(format!("warning: unable to open {name}"));
            return None;
        }
    };
    let mess_name = queue::mess(number);
    let mess = match fd::open_read(&mess_name) {
        Ok(file) => file,
        Err(Errno::ENOENT) => {
            finish_without_message(desk, number);
            return None;
        }
        Err(_) => {
            desk.log.line(format!("warning: unable to open {mess_name}"));
            return None;
        }
    };
    let Ok(size) = fstat(&mess).map(|found| u64::try_from(found.st_size).unwrap_or(0)) else {
        desk.log.line(format!("warning: unable to stat {mess_name}"));
        return None;
    };
    // Its writer is still syncing: not committed, and it will pull the trigger itself.
    if lock::is_held(&mess) != Ok(false) {
        return None;
    }
    let todo = Reader::new(envelope);
    let stage = if desk.unproven.contains(&number) {
        let (meter, mess) = (Meter::new(), Hasher::new(mess));
        Stage::Proving(Box::new(Proving { todo, meter, commit: None, recipient: None, mess }))
    } else {
        match Writing::begin(desk, number, todo) {
            Ok(writing) => Stage::Writing(Box::new(writing)),
            Err(what) => {
                desk.log.line(format!("warning: {what}"));
                return None;
            }
        }
    };
    Some(Job { number, size, stage })
}

/// `todo/N` without a message: what is left of one that ended before its envelope was removed. Its other
/// files go first, so that the number can be used again.
fn finish_without_message(desk: &mut Desk, number: Number) {
    if desk.cleaner.concerns(number) {
        return;
    }
    if !is_message_gone(number) {
        desk.log.line(format!("warning: unable to open {}", queue::mess(number)));
        return;
    }
    if !desk.unproven.contains(&number) {
        desk.log.line(format!("warning: no message beside {}: removing it", queue::todo_path(number)));
    }
    if let Err(what) = remove_traces(number) {
        desk.log.line(format!("warning: {what}"));
        return;
    }
    desk.cleaner.ask(Task::Finished(number));
}

/// What an earlier, unfinished preprocessing (or the number's former message) left.
pub fn remove_traces(number: Number) -> Result<(), String> {
    let names = [
        list_path(Way::Local, number),
        list_path(Way::Remote, number),
        queue::info(number),
        queue::bounce_path(number),
    ];
    for name in names {
        remove(&name).map_err(|_| format!("unable to unlink {name}"))?;
    }
    Ok(())
}

impl Proving {
    fn step(mut self: Box<Self>, desk: &mut Desk, number: Number) -> Step {
        let name = queue::todo_path(number);
        if self.commit.is_some() {
            return self.hash_message(desk, number);
        }
        for _ in 0..RECORDS_A_TURN {
            match todo::next(&mut self.todo) {
                Ok(Some(Record::Sender(address))) => self.meter.update(&envelope::record(b'F', &address)),
                Ok(Some(Record::Recipient(address))) => {
                    self.meter.update(&envelope::record(b'T', &address));
                    self.recipient = Some(address);
                }
                Ok(Some(Record::Uid(_) | Record::Pid(_))) => {}
                Ok(Some(Record::Commit(commit))) => {
                    let found = std::mem::take(&mut self.meter).finish().1;
                    return match todo::next(&mut self.todo) {
                        Ok(None) if found == commit.envelope => {
                            self.commit = Some(commit);
                            Step::Going(Stage::Proving(self))
                        }
                        Ok(_) => Step::Aside(format!("{name} is not what was accepted")),
                        Err(_) => Step::Trouble(format!("trouble reading {name}")),
                    };
                }
                Ok(Some(Record::Bad)) => return Step::Aside(format!("{name} is not what was accepted")),
                // Without a record (an old qmail-queue wrote it) the old rule: what is there is accepted, if
                // it is for somebody and has not lost its record just there.
                Ok(None) if self.recipient.is_some_and(|last| !record::is_swallowed_by(&last)) => {
                    return write_now(desk, number);
                }
                Ok(None) => return Step::Aside(format!("{name} is not what was accepted")),
                Err(_) => return Step::Trouble(format!("trouble reading {name}")),
            }
        }
        Step::Going(Stage::Proving(self))
    }

    fn hash_message(mut self: Box<Self>, desk: &mut Desk, number: Number) -> Step {
        let name = queue::mess(number);
        match self.mess.step() {
            Ok(None) => Step::Going(Stage::Proving(self)),
            Ok(Some((length, hash)))
                if self.commit.as_ref().is_none_or(|c| c.matches_message(length, &hash)) =>
            {
                write_now(desk, number)
            }
            Ok(Some(_)) => Step::Aside(format!("{name} is not what was accepted")),
            Err(_) => Step::Trouble(format!("trouble reading {name}")),
        }
    }
}

/// From proof to work: the envelope is read once more from its start.
fn write_now(desk: &mut Desk, number: Number) -> Step {
    let name = queue::todo_path(number);
    let Ok(todo) = fd::open_read(&name) else { return Step::Trouble(format!("unable to open {name}")) };
    match Writing::begin(desk, number, Reader::new(todo)) {
        Ok(writing) => Step::Going(Stage::Writing(Box::new(writing))),
        Err(what) => Step::Trouble(what),
    }
}

impl Writing {
    fn begin(desk: &mut Desk, number: Number, todo: Reader<OwnedFd>) -> Result<Writing, String> {
        remove_traces(number)?;
        desk.orphans.remove(&number); // the number has a message again
        let name = queue::info(number);
        let info = fd::create_new(&name, 0o600).map_err(|_| format!("unable to create {name}"))?;
        desk.log.line(format!("new msg {number}"));
        Ok(Writing { todo, uid: 0, pid: 0, info, head: Vec::new(), commit: None, lists: [None, None] })
    }

    fn step(mut self: Box<Self>, desk: &mut Desk, number: Number, size: u64) -> Step {
        let name = queue::todo_path(number);
        for _ in 0..RECORDS_A_TURN {
            let written = match todo::next(&mut self.todo) {
                Ok(Some(Record::Uid(uid))) => {
                    self.uid = uid;
                    Ok(())
                }
                Ok(Some(Record::Pid(pid))) => {
                    self.pid = pid;
                    Ok(())
                }
                Ok(Some(Record::Sender(sender))) if self.head.is_empty() => {
                    self.sender(desk, number, size, &sender)
                }
                Ok(Some(Record::Recipient(address))) if !self.head.is_empty() => {
                    self.recipient(desk, number, &address)
                }
                Ok(Some(Record::Commit(commit))) if self.commit.is_none() => {
                    self.commit = Some(commit);
                    Ok(())
                }
                Ok(Some(_)) => Err(format!("unknown record type in {name}")),
                Ok(None) => return self.finish(number).unwrap_or_else(Step::Trouble),
                Err(_) => Err(format!("trouble reading {name}")),
            };
            if let Err(what) = written {
                return Step::Trouble(what);
            }
        }
        Step::Going(Stage::Writing(self))
    }

    fn sender(&mut self, desk: &Desk, number: Number, size: u64, sender: &[u8]) -> Result<(), String> {
        let (from, pid, uid) = (log_safe(sender), self.pid, self.uid);
        desk.log.line(format!("info msg {number}: bytes {size} from <{from}> qp {pid} uid {uid}"));
        self.head = envelope::record(b'F', sender);
        let name = queue::info(number);
        fd::write_all(&self.info, &self.head).map_err(|_| format!("trouble writing to {name}"))
    }

    fn recipient(&mut self, desk: &Desk, number: Number, address: &[u8]) -> Result<(), String> {
        let (way, rewritten) = desk.controls.rules.rewrite(address);
        if rewritten.len() > RECORD_MAX {
            let what = "control files make an address too long for";
            return Err(format!("{what} {}", list_path(way, number)));
        }
        let Some(place) = self.lists.get_mut(way as usize) else { return Ok(()) };
        let list = match place {
            Some(list) => list,
            None => place.insert(List::create(list_path(way, number))?),
        };
        list.put(&envelope::record(b'T', &rewritten))
    }

    /// The envelope has been read to its end.
    fn finish(mut self, number: Number) -> Result<Step, String> {
        if self.head.is_empty() {
            return Err(format!("no sender in {}", queue::todo_path(number)));
        }
        let mut records = Vec::new();
        if let Some(commit) = &self.commit {
            records = commit.encode(self.pid);
        }
        self.head.extend_from_slice(&records);
        let mut rest = VecDeque::new();
        let mut hashes = [None, None];
        let mut used = [false, false];
        for (((list, hash), used), way) in
            self.lists.into_iter().zip(&mut hashes).zip(&mut used).zip(Way::BOTH)
        {
            let Some(mut list) = list else { continue };
            list.flush()?;
            *hash = list.meter.finish();
            *used = true;
            start_writeback(&list.file);
            rest.push_back((list.name, list.file));
            rest.push_back(directory_of(way.name(), number)?);
        }
        let [local, remote] = &hashes;
        records.extend_from_slice(&check_record(&self.head, local.as_ref(), remote.as_ref()));
        let name = queue::info(number);
        fd::write_all(&self.info, &records).map_err(|_| format!("trouble writing to {name}"))?;
        start_writeback(&self.info);
        rest.push_front(directory_of("info", number)?);
        rest.push_front((name, self.info));
        Ok(Step::Going(Stage::Syncing(Syncing { rest, lists: used })))
    }
}

/// The split directory, to be synced.
fn directory_of(name: &str, number: Number) -> Result<(String, OwnedFd), String> {
    let path = format!("{name}/{}", number % queue::SPLIT);
    match fd::open_directory(&path) {
        Ok(directory) => Ok((path, directory)),
        Err(_) => Err(format!("unable to open {path}")),
    }
}

impl List {
    fn create(name: String) -> Result<List, String> {
        match fd::create_new(&name, 0o600) {
            Ok(file) => Ok(List { name, file, buffer: Vec::new(), meter: ListMeter::default() }),
            Err(_) => Err(format!("unable to create {name}")),
        }
    }

    fn put(&mut self, record: &[u8]) -> Result<(), String> {
        self.buffer.extend_from_slice(record);
        if self.buffer.len() >= LIST_BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), String> {
        self.meter.update(&self.buffer);
        let result = fd::write_all(&self.file, &self.buffer);
        self.buffer.clear();
        result.map_err(|_| format!("trouble writing to {}", self.name))
    }
}

impl Syncing {
    fn step(mut self) -> Step {
        match self.rest.pop_front() {
            Some((name, file)) => match fd::fsync(&file) {
                Ok(()) => Step::Going(Stage::Syncing(self)),
                Err(_) => Step::Trouble(format!("trouble fsyncing {name}")),
            },
            None => Step::Synced(self.lists),
        }
    }
}

/// Whether the envelope is there: the message is not preprocessed.
pub fn is_waiting(number: Number) -> Result<bool, Errno> {
    Ok(file_stat(&queue::todo_path(number))?.is_some())
}
