//! From `todo/N` onward: a message with few recipients is delivered at once (the short way, `short`); for
//! others, and for those that did not end soon, `todo/N` becomes `info/S/N` and the recipient lists (S4 to S5).
//!
//! Each turn does one small step: a directory entry, some records, one sync. The commit is the removal
//! of `todo/N` by qmail-clean; whatever goes wrong before it is begun again at the next scan, or, for a message
//! that is changing its way, after a pause.
#![forbid(unsafe_code)]

use crate::channel::Channel;
use crate::cleaner::Task;
use crate::desk::{Desk, SLEEP_SECONDS, Wake, file_stat, is_message_gone, list_path, now, remove_durably};
use crate::proof::{Hasher, moved};
use crate::short::{self, Fate, Message, RECIPIENTS_MAX};
use nix::dir::{Dir, OwningIter};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat, futimens};
use nix::sys::time::TimeSpec;
use qmail::envelope;
use qmail::fd;
use qmail::queue::info::check_record;
use qmail::queue::list::{ListMeter, RECORD_MAX, Spot, tag, write_tail};
use qmail::queue::record::{self, Meter, Record as Commit};
use qmail::queue::report::log_safe;
use qmail::queue::rewrite::Way;
use qmail::queue::todo::{self, Record};
use qmail::queue::{self, Number, lock};
use qmail::sys::descriptor::start_writeback;
use qmail::timed::Reader;
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// Seconds until `todo` is looked at although nobody pulled the trigger.
const RESCAN_SECONDS: u64 = 1500;

/// The same while the trigger cannot be opened: nobody can call us then, and it may be back at any time.
const DEAF_SECONDS: u64 = 20;

/// Envelope records read in one turn.
const RECORDS_A_TURN: usize = 200;

/// Bytes of a list collected before they are written.
const LIST_BUFFER: usize = 32 * 1024;

/// Preprocessed messages that may wait for qmail-clean while the next ones are begun.
const COMMITTING_MAX: usize = 8;

/// Directory entries that one turn passes over because they need nothing.
const ENTRIES_A_TURN: usize = 64;

pub struct Todo {
    /// The fifo that qmail-queue writes to. Opened anew before every scan, never read.
    trigger: Option<OwnedFd>,
    scan: Option<OwningIter>,
    next_scan: u64,
    job: Option<Job>,
    /// Waiting for qmail-clean: what was written.
    committing: BTreeMap<Number, Written>,
}

/// One message on its way from S4 onward.
struct Job {
    number: Number,
    /// Bytes of the message.
    size: u64,
    stage: Stage,
}

enum Stage {
    Proving(Box<Proving>),
    Reading(Box<Reading>),
    Writing(Box<Writing>),
    Syncing(Syncing),
}

/// The files of a message in S5.
#[derive(Clone)]
enum Written {
    /// Preprocessed: which lists there are.
    New([bool; 2]),
    /// Its way was changed: where each recipient stands in its list; None for those without a list.
    Changed(Vec<Option<Spot>>),
}

/// A number found at the start: is the envelope whole, and is the message the one it was written for?
struct Proving {
    todo: Reader<OwnedFd>,
    meter: Meter,
    /// A commit record is to come.
    sealed: bool,
    commit: Option<Commit>,
    /// The last one so far.
    recipient: Option<Vec<u8>>,
    mess: Hasher,
}

/// The envelope of a message that may go the short way.
struct Reading {
    todo: Reader<OwnedFd>,
    uid: u64,
    pid: u64,
    sealed: bool,
    sender: Option<Vec<u8>>,
    commit: Option<Commit>,
    recipients: Vec<(Way, Vec<u8>)>,
}

struct Writing {
    todo: Reader<OwnedFd>,
    uid: u64,
    pid: u64,
    sealed: bool,
    commit: Option<Commit>,
    files: Files,
}

/// Info and recipient lists being written.
struct Files {
    number: Number,
    info: OwnedFd,
    /// What was written to info so far; empty until the sender was seen.
    head: Vec<u8>,
    lists: [Option<List>; 2],
}

/// A recipient list being written.
struct List {
    name: String,
    file: OwnedFd,
    /// Bytes so far.
    length: u64,
    /// Recipients so far, and the indices of those who are done.
    count: u64,
    done: Vec<u64>,
    buffer: Vec<u8>,
    meter: ListMeter,
}

/// Files and directories to be synced, in this order.
type Unsynced = VecDeque<(String, OwnedFd)>;

/// Everything is written: what is still to be synced.
struct Syncing {
    rest: Unsynced,
    written: Written,
}

/// What a step came to.
enum Step {
    Going(Stage),
    /// It is on its short way.
    Started,
    Synced(Written),
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
    pub fn trigger_fd(&self, desk: &Desk) -> Option<BorrowedFd<'_>> {
        self.trigger.as_ref().filter(|_| self.scan.is_none() && !desk.stopping).map(AsFd::as_fd)
    }

    /// Somebody pulled the trigger.
    pub fn pulled(&mut self) {
        self.next_scan = 0;
    }

    pub fn wake(&self, desk: &Desk) -> Wake {
        let change = self.wake_of_changes(desk);
        if desk.stopping {
            change
        } else if self.job.is_some() {
            Wake::Now
        } else if self.scan.is_some() {
            Wake::now_if(self.may_begin(desk)).min(change)
        } else {
            Wake::at(Some(self.next_scan), now()).min(change)
        }
    }

    fn wake_of_changes(&self, desk: &Desk) -> Wake {
        if self.job.as_ref().is_some_and(|job| desk.short.is_changing(job.number)) {
            return Wake::Now;
        }
        if !self.may_begin(desk) {
            return Wake::Never; // qmail-clean's answer will call
        }
        match desk.short.until_change(Instant::now(), desk.stopping) {
            Some(left) if left.is_zero() => Wake::Now,
            Some(left) => Wake::At(now() + left.as_secs() + 1),
            None => Wake::Never,
        }
    }

    fn may_begin(&self, desk: &Desk) -> bool {
        self.committing.len() < COMMITTING_MAX && desk.cleaner.has_room()
    }

    pub fn step(&mut self, desk: &mut Desk, channels: &mut [Channel; 2]) {
        if desk.stopping {
            // Of what is begun only a change of way goes on; the rest is in S4, and the next start's.
            self.job = self.job.take().filter(|job| desk.short.is_changing(job.number));
        }
        if let Some(job) = self.job.take() {
            self.job = self.advance(desk, channels, job);
        } else if self.may_begin(desk)
            && let Some(number) = desk.short.next_change(Instant::now(), desk.stopping)
        {
            self.job = change(desk, number);
            if self.job.is_none() {
                give_up_change(desk, channels, number);
            }
        } else if !desk.stopping {
            self.look(desk);
        }
    }

    fn look(&mut self, desk: &mut Desk) {
        if self.scan.is_some() {
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
                self.next_scan = now() + if self.trigger.is_some() { RESCAN_SECONDS } else { DEAF_SECONDS };
            }
            Err(_) => self.later(desk),
        }
    }

    fn later(&mut self, desk: &Desk) {
        desk.log.line("alert: unable to opendir todo, sleeping...");
        self.next_scan = now() + SLEEP_SECONDS;
    }

    fn next_entry(&mut self, desk: &mut Desk) {
        for _ in 0..ENTRIES_A_TURN {
            match self.scan.as_mut().and_then(Iterator::next) {
                Some(Ok(entry)) => {
                    let Some(number) = queue::number(entry.file_name().to_bytes()) else { continue };
                    if self.committing.contains_key(&number) || desk.short.contains(number) {
                        continue;
                    }
                    if !desk.is_aside(number) {
                        self.job = begin(desk, number);
                    }
                    return;
                }
                None => self.scan = None,
                Some(Err(_)) => {
                    self.scan = None;
                    self.later(desk);
                }
            }
            return;
        }
    }

    fn advance(&mut self, desk: &mut Desk, channels: &mut [Channel; 2], mut job: Job) -> Option<Job> {
        let step = match job.stage {
            Stage::Proving(proving) => proving.step(job.number),
            Stage::Reading(reading) => reading.step(desk, channels, job.number, job.size),
            Stage::Writing(writing) => writing.step(desk, job.size),
            Stage::Syncing(syncing) => syncing.step(),
        };
        match step {
            Step::Going(stage) => {
                job.stage = stage;
                return Some(job);
            }
            Step::Started => {}
            Step::Synced(written) => {
                self.committing.insert(job.number, written);
                desk.cleaner.ask(Task::Preprocessed(job.number)); // model: T18
            }
            Step::Trouble(what) => {
                desk.log.line(format!("warning: {what}"));
                give_up_change(desk, channels, job.number);
            }
            Step::Aside(reason) => desk.put_aside(job.number, &reason),
        }
        None
    }

    /// qmail-clean answered: with success the message is in S5 and may be delivered.
    // model: T19
    pub fn committed(&mut self, desk: &mut Desk, channels: &mut [Channel; 2], number: Number, done: bool) {
        let Some(written) = self.committing.remove(&number) else { return };
        if !done {
            give_up_change(desk, channels, number);
            return; // still in S4: the next scan redoes it
        }
        desk.unproven.remove(&number);
        match written {
            Written::New(lists) => {
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
            Written::Changed(spots) => {
                let Some(message) = desk.short.remove(number) else { return };
                for channel in channels {
                    channel.adopt(desk, number, &message, &spots);
                    channel.take_held(desk);
                }
            }
        }
    }
}

/// The first step for one entry; None when there is nothing to do now.
// model: T1
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
    let Ok((size, inode)) =
        fstat(&mess).map(|found| (u64::try_from(found.st_size).unwrap_or(0), found.st_ino))
    else {
        desk.log.line(format!("warning: unable to stat {mess_name}"));
        return None;
    };
    if inode != number {
        desk.put_aside(number, &moved(number, inode));
        return None;
    }
    // Its writer is still syncing: not committed, and it will pull the trigger itself.
    if lock::is_held(&mess) != Ok(false) {
        return None;
    }
    let todo = Reader::new(envelope);
    let stage = if desk.unproven.contains(&number) {
        let (meter, mess) = (Meter::new(), Hasher::new(mess));
        Stage::Proving(Box::new(Proving { todo, meter, sealed: false, commit: None, recipient: None, mess }))
    } else {
        Stage::Reading(Box::new(Reading::new(todo)))
    };
    Some(Job { number, size, stage })
}

/// A change of way begins: everything is written that is to be written. None after trouble.
// model: H2
fn change(desk: &mut Desk, number: Number) -> Option<Job> {
    let message = desk.short.change(number)?;
    match write_changed(number, &message) {
        Ok(syncing) => Some(Job { number, size: 0, stage: Stage::Syncing(syncing) }),
        Err(what) => {
            desk.log.line(format!("warning: {what}"));
            None
        }
    }
}

/// If this message was changing its way, it is on the short one still.
fn give_up_change(desk: &mut Desk, channels: &mut [Channel; 2], number: Number) {
    if desk.short.is_changing(number) {
        desk.short.change_failed(number, Instant::now());
        for channel in channels {
            channel.take_held(desk);
        }
    }
}

/// Info and lists of a message of which something is known already: born when it was first seen, with marks
/// for those who are done. Its bounce stays, and is to be synced with the rest.
fn write_changed(number: Number, message: &Message) -> Result<Syncing, String> {
    // For good: a list of an earlier try that is not written again may not come back.
    for name in [list_path(Way::Local, number), list_path(Way::Remote, number), queue::info(number)] {
        remove_durably(&name).map_err(|_| format!("unable to unlink {name}"))?;
    }
    let mut files = Files::create(number)?;
    files.sender(&message.sender)?;
    let mut places = Vec::new();
    for recipient in &message.recipients {
        let left = |r: &short::Recipient| r.way == recipient.way && r.fate != Fate::Done;
        places.push(if message.recipients.iter().any(left) {
            Some(files.recipient(recipient.way, recipient.fate == Fate::Done, &recipient.address)?)
        } else {
            None // a list on which everybody is done would only be removed
        });
    }
    let birth = TimeSpec::new(i64::try_from(message.birth).unwrap_or(i64::MAX), 0);
    let (mut rest, [local, remote]) = files.finish(message.commit.as_ref(), message.pid, Some(birth))?;
    let spots = message.recipients.iter().zip(places).map(|(recipient, place)| {
        let (record, index) = place?;
        let marks = match recipient.way {
            Way::Local => local,
            Way::Remote => remote,
        };
        Some(Spot { record, mark: marks.map(|marks| marks + index) })
    });
    let spots = spots.collect();
    if message.has_failed() {
        let name = queue::bounce_path(number);
        let bounce = fd::open_read(&name).map_err(|_| format!("unable to open {name}"))?;
        rest.push_back((name, bounce));
        let directory = fd::open_directory("bounce").map_err(|_| "unable to open bounce".to_string())?;
        rest.push_back(("bounce".to_string(), directory));
    }
    Ok(Syncing { rest, written: Written::Changed(spots) })
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
    // Where another split put it.
    for name in (0..queue::SPLIT).map(|split| format!("mess/{split}/{number}")) {
        match file_stat(&name) {
            Ok(None) => {}
            Ok(Some(_)) => {
                desk.put_aside(number, &format!("the message is {name}: run qmail-fix"));
                return;
            }
            Err(_) => {
                desk.log.line(format!("warning: unable to stat {name}"));
                return;
            }
        }
    }
    // It ended before a power cut brought the name back; or damage took it, which should be known.
    desk.log.line(format!("warning: no message beside {}: removing it", queue::todo_path(number)));
    if let Err(what) = remove_traces(number) {
        desk.log.line(format!("warning: {what}"));
        return;
    }
    desk.cleaner.ask(Task::Finished(number));
}

/// What an earlier attempt that a crash has undone (or the number's former message) left. For good: a bounce
/// or a list that came back beside the message in S5 would speak of somebody who has been tried since.
pub fn remove_traces(number: Number) -> Result<(), String> {
    let names = [
        list_path(Way::Local, number),
        list_path(Way::Remote, number),
        queue::info(number),
        queue::bounce_path(number),
    ];
    for name in names {
        // model: T3 T4 T5 T6 T7 T8
        remove_durably(&name).map_err(|_| format!("unable to unlink {name}"))?;
    }
    Ok(())
}

impl Proving {
    // model: T2
    fn step(mut self: Box<Self>, number: Number) -> Step {
        let name = queue::todo_path(number);
        if self.commit.is_some() {
            return self.hash_message(number);
        }
        for _ in 0..RECORDS_A_TURN {
            match todo::next(&mut self.todo) {
                Ok(Some(Record::Sender(address))) => self.meter.update(&envelope::record(b'F', &address)),
                Ok(Some(Record::Recipient(address))) => {
                    self.meter.update(&envelope::record(b'T', &address));
                    self.recipient = Some(address);
                }
                Ok(Some(Record::Uid(_))) => {}
                Ok(Some(Record::Pid { sealed, .. })) => self.sealed |= sealed,
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
                // Where no record is to be (an old qmail-queue wrote it) the old rule: what is there is accepted,
                // if it is for somebody and has not lost its record just there.
                Ok(None)
                    if !self.sealed
                        && self.recipient.as_ref().is_some_and(|last| !record::is_swallowed_by(last)) =>
                {
                    return read_now(number);
                }
                Ok(None) => return Step::Aside(format!("{name} is not what was accepted")),
                Err(_) => return Step::Trouble(format!("trouble reading {name}")),
            }
        }
        Step::Going(Stage::Proving(self))
    }

    fn hash_message(mut self: Box<Self>, number: Number) -> Step {
        let name = queue::mess(number);
        match self.mess.step() {
            Ok(None) => Step::Going(Stage::Proving(self)),
            Ok(Some((length, hash)))
                if self.commit.as_ref().is_none_or(|c| c.matches_message(length, &hash)) =>
            {
                read_now(number)
            }
            Ok(Some(_)) => Step::Aside(format!("{name} is not what was accepted")),
            Err(_) => Step::Trouble(format!("trouble reading {name}")),
        }
    }
}

/// From proof to work: the envelope is read once more from its start.
fn read_now(number: Number) -> Step {
    match reopen(number) {
        Ok(todo) => Step::Going(Stage::Reading(Box::new(Reading::new(todo)))),
        Err(what) => Step::Trouble(what),
    }
}

fn reopen(number: Number) -> Result<Reader<OwnedFd>, String> {
    let name = queue::todo_path(number);
    fd::open_read(&name).map(Reader::new).map_err(|_| format!("unable to open {name}"))
}

fn log_sender(desk: &Desk, number: Number, size: u64, sender: &[u8], pid: u64, uid: u64) {
    let from = log_safe(sender);
    desk.log.line(format!("info msg {number}: bytes {size} from <{from}> qp {pid} uid {uid}"));
}

impl Reading {
    fn new(todo: Reader<OwnedFd>) -> Reading {
        let (sender, commit, recipients) = (None, None, Vec::new());
        Reading { todo, uid: 0, pid: 0, sealed: false, sender, commit, recipients }
    }

    /// Starts the short way, or begins the long one: for many recipients, without a slot for each, and for
    /// what is strange about an envelope, which the long way will say.
    fn step(mut self, desk: &mut Desk, channels: &mut [Channel; 2], number: Number, size: u64) -> Step {
        if self.read(desk)
            && let Some(sender) = self.sender.take()
            && let [Some(local), Some(remote)] =
                channels.each_ref().map(|channel| channel.plan(&sender, &self.recipients))
        {
            if let Err(what) = remove_traces(number) {
                return Step::Trouble(what);
            }
            desk.orphans.remove(&number); // the number has a message again
            desk.unproven.remove(&number);
            desk.log.line(format!("new msg {number}"));
            log_sender(desk, number, size, &sender, self.pid, self.uid);
            // model: H1
            desk.short.insert(number, Message::new(sender, self.pid, self.commit, self.recipients));
            for (channel, plan) in channels.iter_mut().zip([local, remote]) {
                channel.start(desk, number, plan);
            }
            short::settled(desk, number); // nobody at all is everybody
            return Step::Started;
        }
        match reopen(number).and_then(|todo| Writing::begin(desk, number, todo)) {
            Ok(writing) => Step::Going(Stage::Writing(Box::new(writing))),
            Err(what) => Step::Trouble(what),
        }
    }

    /// Reads the envelope; whether it was read to its end and can go the short way.
    fn read(&mut self, desk: &Desk) -> bool {
        for _ in 0..RECORDS_A_TURN {
            match todo::next(&mut self.todo) {
                Ok(Some(Record::Uid(uid))) => self.uid = uid,
                Ok(Some(Record::Pid { pid, sealed })) => {
                    self.pid = pid;
                    self.sealed |= sealed;
                }
                Ok(Some(Record::Sender(sender))) if self.sender.is_none() => self.sender = Some(sender),
                Ok(Some(Record::Recipient(address)))
                    if self.sender.is_some() && self.recipients.len() < RECIPIENTS_MAX =>
                {
                    let (way, rewritten) = desk.controls.rules.rewrite(&address);
                    if rewritten.len() > RECORD_MAX {
                        return false;
                    }
                    self.recipients.push((way, rewritten));
                }
                Ok(Some(Record::Commit(commit))) if self.commit.is_none() => self.commit = Some(commit),
                Ok(None) => return self.sender.is_some() && (self.commit.is_some() || !self.sealed),
                Ok(Some(_)) | Err(_) => return false,
            }
        }
        false
    }
}

impl Writing {
    fn begin(desk: &mut Desk, number: Number, todo: Reader<OwnedFd>) -> Result<Writing, String> {
        remove_traces(number)?;
        desk.orphans.remove(&number); // the number has a message again
        let files = Files::create(number)?;
        desk.log.line(format!("new msg {number}"));
        Ok(Writing { todo, uid: 0, pid: 0, sealed: false, commit: None, files })
    }

    fn step(mut self: Box<Self>, desk: &mut Desk, size: u64) -> Step {
        let name = queue::todo_path(self.files.number);
        for _ in 0..RECORDS_A_TURN {
            let written = match todo::next(&mut self.todo) {
                Ok(Some(Record::Uid(uid))) => {
                    self.uid = uid;
                    Ok(())
                }
                Ok(Some(Record::Pid { pid, sealed })) => {
                    self.pid = pid;
                    self.sealed |= sealed;
                    Ok(())
                }
                Ok(Some(Record::Sender(sender))) if self.files.head.is_empty() => {
                    log_sender(desk, self.files.number, size, &sender, self.pid, self.uid);
                    self.files.sender(&sender)
                }
                Ok(Some(Record::Recipient(address))) if !self.files.head.is_empty() => {
                    self.recipient(desk, &address)
                }
                Ok(Some(Record::Commit(commit))) if self.commit.is_none() => {
                    self.commit = Some(commit);
                    Ok(())
                }
                Ok(Some(_)) => Err(format!("unknown record type in {name}")),
                Ok(None) if self.sealed && self.commit.is_none() => {
                    return Step::Aside(format!("{name} is not what was accepted"));
                }
                Ok(None) => {
                    return match self.files.finish(self.commit.as_ref(), self.pid, None) {
                        Ok((rest, lists)) => {
                            let written = Written::New(lists.map(|list| list.is_some()));
                            Step::Going(Stage::Syncing(Syncing { rest, written }))
                        }
                        Err(what) => Step::Trouble(what),
                    };
                }
                Err(_) => Err(format!("trouble reading {name}")),
            };
            if let Err(what) = written {
                return Step::Trouble(what);
            }
        }
        Step::Going(Stage::Writing(self))
    }

    fn recipient(&mut self, desk: &Desk, address: &[u8]) -> Result<(), String> {
        let (way, rewritten) = desk.controls.rules.rewrite(address);
        if rewritten.len() > RECORD_MAX {
            let what = "control files make an address too long for";
            return Err(format!("{what} {}", list_path(way, self.files.number)));
        }
        self.files.recipient(way, false, &rewritten).map(drop)
    }
}

impl Files {
    fn create(number: Number) -> Result<Files, String> {
        let name = queue::info(number);
        // model: T9
        let info = fd::create_new(&name, 0o600).map_err(|_| format!("unable to create {name}"))?;
        Ok(Files { number, info, head: Vec::new(), lists: [None, None] })
    }

    fn sender(&mut self, sender: &[u8]) -> Result<(), String> {
        self.head = envelope::record(b'F', sender);
        let name = queue::info(self.number);
        fd::write_all(&self.info, &self.head).map_err(|_| format!("trouble writing to {name}"))
    }

    /// Appends a record to a list; where it stands, and its index.
    // model: T10
    fn recipient(&mut self, way: Way, done: bool, address: &[u8]) -> Result<(u64, u64), String> {
        let [local, remote] = &mut self.lists;
        let place = match way {
            Way::Local => local,
            Way::Remote => remote,
        };
        let list = match place {
            Some(list) => list,
            None => place.insert(List::create(list_path(way, self.number))?),
        };
        list.put(done, address)
    }

    /// The envelope has been written to its end; `birth` is info's modification time, if it is not now. What is
    /// to be synced, and where the marks of each list begin.
    fn finish(
        mut self,
        commit: Option<&Commit>,
        pid: u64,
        birth: Option<TimeSpec>,
    ) -> Result<(Unsynced, [Option<u64>; 2]), String> {
        let number = self.number;
        if self.head.is_empty() {
            return Err(format!("no sender in {}", queue::todo_path(number)));
        }
        let mut records = Vec::new();
        if let Some(commit) = commit {
            records = commit.encode(pid);
        }
        self.head.extend_from_slice(&records);
        let mut rest = VecDeque::new();
        let mut hashes = [None, None];
        let mut marks = [None, None];
        for (((list, hash), marks), way) in
            self.lists.into_iter().zip(&mut hashes).zip(&mut marks).zip(Way::BOTH)
        {
            let Some(mut list) = list else { continue };
            list.end(&tag(commit))?;
            *hash = list.meter.finish();
            *marks = Some(list.length);
            start_writeback(&list.file);
            rest.push_back((list.name, list.file));
            rest.push_back(directory_of(way.name(), number)?);
        }
        let [local, remote] = &hashes;
        records.extend_from_slice(&check_record(&self.head, local.as_ref(), remote.as_ref()));
        let name = queue::info(number);
        // model: T11
        fd::write_all(&self.info, &records)
            .and_then(|()| birth.map_or(Ok(()), |birth| futimens(&self.info, &birth, &birth)))
            .map_err(|_| format!("trouble writing to {name}"))?;
        start_writeback(&self.info);
        rest.push_front(directory_of("info", number)?);
        rest.push_front((name, self.info));
        Ok((rest, marks))
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
            Ok(file) => {
                let (buffer, meter) = (Vec::new(), ListMeter::default());
                Ok(List { name, file, length: 0, count: 0, done: Vec::new(), buffer, meter })
            }
            Err(_) => Err(format!("unable to create {name}")),
        }
    }

    /// Appends a record; where it stands, and its index.
    fn put(&mut self, done: bool, address: &[u8]) -> Result<(u64, u64), String> {
        let record = envelope::record(if done { b'D' } else { b'T' }, address);
        let place = (self.length, self.count);
        if done {
            self.done.push(self.count);
        }
        self.length += record.len() as u64;
        self.count += 1;
        self.buffer.extend_from_slice(&record);
        if self.buffer.len() >= LIST_BUFFER {
            self.flush()?;
        }
        Ok(place)
    }

    /// Everybody is on it: the marks follow.
    fn end(&mut self, tag: &str) -> Result<(), String> {
        self.flush()?;
        self.meter.update_tail(self.count, tag);
        let file = &self.file;
        write_tail(self.count, &self.done, tag, |piece| fd::write_all(file, piece))
            .map_err(|_| format!("trouble writing to {}", self.name))
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
            // model: T12 T13 T14 T15 T16 T17
            Some((name, file)) => match fd::fsync(&file) {
                Ok(()) => Step::Going(Stage::Syncing(self)),
                Err(_) => Step::Trouble(format!("trouble fsyncing {name}")),
            },
            None => Step::Synced(self.written),
        }
    }
}

/// Whether the envelope is there: the message is not preprocessed.
pub fn is_waiting(number: Number) -> Result<bool, Errno> {
    Ok(file_stat(&queue::todo_path(number))?.is_some())
}
