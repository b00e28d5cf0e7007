//! One way out of the queue: passes over recipient lists, delivery slots, the pipes to the spawner.
//!
//! A pass reads one list from its start and begins a delivery for each recipient not done yet, when a
//! slot is free. A job is a message in the course of a pass or with deliveries still running.
#![forbid(unsafe_code)]

use crate::Call;
use crate::bounces;
use crate::desk::{
    Desk, SLEEP_SECONDS, SYSTEM_TROUBLE_SECONDS, Wake, file_stat, list_path, modified, now, remove,
    sync_parent,
};
use crate::proof::{Errand, Proof};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::sys::uio::pwrite;
use qmail::fd;
use qmail::queue::info::{INFO_MAX, Info};
use qmail::queue::report::{Report, Reports, log_safe};
use qmail::queue::rewrite::{Way, verp};
use qmail::queue::{self, Number, bounce, schedule};
use qmail::timed::{Line, Reader};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of one record of a list: an address as long as envelopes allow behind what control files may
/// put before it.
pub const RECORD_MAX: usize = 16 * 1024;

/// Records of recipients already done that one turn reads over.
const RECORDS_A_TURN: usize = 200;

/// Bytes of reports read in one turn.
const REPORTS_A_TURN: usize = 16 * 1024;

/// One delivery that was asked for.
struct Delivery {
    id: u64,
    number: Number,
    /// Where the recipient's record stands in the list.
    offset: u64,
    recipient: Vec<u8>,
}

/// A message in the course of delivery.
struct Job {
    sender: Vec<u8>,
    /// When it was due, and when it will be again.
    due: u64,
    retry: u64,
    /// This pass is the last one: temporary failures become permanent.
    dying: bool,
    /// The pass and each delivery that is running.
    references: usize,
    /// Recipients seen in this pass and not done.
    undone: usize,
    /// The pass read all of the list.
    complete: bool,
    /// The pass was cut short because we are stopping.
    cut: bool,
}

/// The list being read.
struct Pass {
    number: Number,
    list: Reader<OwnedFd>,
    offset: u64,
}

/// The end of a delivery that could not be written down yet. Its slot stays taken: nothing is forgotten,
/// and nobody gets the message a second time while we live.
struct Stuck {
    slot: usize,
    /// What bounce/N still lacks; None when only the done mark is missing.
    paragraph: Option<Vec<u8>>,
}

pub struct Channel {
    way: Way,
    commands: OwnedFd,
    from: OwnedFd,
    alive: bool,
    /// The rest of a command that the pipe did not take.
    unsent: Vec<u8>,
    reports: Reports,
    slots: Vec<Option<Delivery>>,
    jobs: BTreeMap<Number, Job>,
    jobs_max: usize,
    pass: Option<Pass>,
    stuck: Vec<Stuck>,
    stuck_until: u64,
}

/// Why a pass over a list ended.
enum EndOfPass {
    Complete,
    Trouble(String),
    Cut,
}

impl Channel {
    /// `slots` deliveries at once; `jobs_max` messages in flight.
    pub fn new(way: Way, commands: OwnedFd, from: OwnedFd, slots: usize, jobs_max: usize) -> Channel {
        Channel {
            way,
            commands,
            from,
            alive: true,
            unsent: Vec::new(),
            reports: Reports::default(),
            slots: std::iter::repeat_with(|| None).take(slots).collect(),
            jobs: BTreeMap::new(),
            jobs_max,
            pass: None,
            stuck: Vec::new(),
            stuck_until: 0,
        }
    }

    pub fn way(&self) -> Way {
        self.way
    }

    /// To poll for reports.
    pub fn reports_fd(&self) -> Option<BorrowedFd<'_>> {
        self.alive.then(|| self.from.as_fd())
    }

    /// To poll for room, while a command waits.
    pub fn commands_fd(&self) -> Option<BorrowedFd<'_>> {
        (self.alive && !self.unsent.is_empty()).then(|| self.commands.as_fd())
    }

    pub fn wake(&self, desk: &Desk, proof: &Proof) -> Wake {
        let now = now();
        let stuck = Wake::at((!self.stuck.is_empty()).then_some(self.stuck_until), now);
        stuck.min(self.wake_of_passes(desk, proof, now))
    }

    fn wake_of_passes(&self, desk: &Desk, proof: &Proof, now: u64) -> Wake {
        if desk.stopping {
            return Wake::now_if(self.pass.is_some());
        }
        if !self.may_start() {
            return Wake::Never; // a report or room in the pipe will call
        }
        if self.pass.is_some() {
            return Wake::Now;
        }
        let schedule = match self.way {
            Way::Local => &desk.local,
            Way::Remote => &desk.remote,
        };
        match schedule.peek_due(now) {
            Some((_, number)) if desk.unproven.contains(&number) && !proof.is_idle() => Wake::Never,
            Some(_) if self.jobs.len() >= self.jobs_max => Wake::Never,
            _ => Wake::at(schedule.next_due(), now),
        }
    }

    /// Whether nothing more can come out of this channel.
    pub fn is_quiet(&self) -> bool {
        let running = self.slots.iter().flatten().count();
        self.pass.is_none() && (!self.alive || running <= self.stuck.len())
    }

    fn may_start(&self) -> bool {
        self.alive && self.unsent.is_empty() && self.free_slot().is_some()
    }

    fn free_slot(&self) -> Option<usize> {
        self.slots.iter().position(Option::is_none)
    }

    /// One step: a late bounce, the end or the beginning of a pass, one recipient.
    pub fn step(&mut self, desk: &mut Desk, proof: &mut Proof) {
        if !self.stuck.is_empty() && now() >= self.stuck_until {
            self.retry_stuck(desk);
        }
        if desk.stopping {
            if self.pass.is_some() {
                self.end_pass(desk, EndOfPass::Cut);
            }
        } else if self.may_start() {
            if self.pass.is_none() {
                self.open_pass(desk, proof);
            } else {
                self.read_list(desk);
            }
        }
    }

    // -- passes

    fn open_pass(&mut self, desk: &mut Desk, proof: &mut Proof) {
        let now = now();
        let Some((due, number)) = desk.schedule(self.way).peek_due(now) else { return };
        let unproven = desk.unproven.contains(&number);
        if self.jobs.len() >= self.jobs_max || (unproven && !proof.is_idle()) {
            return;
        }
        desk.schedule(self.way).take_due(now);
        if desk.is_aside(number) {
            return;
        }
        if unproven {
            proof.begin(desk, number, due, Errand::Deliver(self.way));
            return;
        }
        match self.begin_job(desk, number, due, now) {
            Ok((job, list)) => {
                self.jobs.insert(number, job);
                self.pass = Some(Pass { number, list: Reader::new(list), offset: 0 });
            }
            // Delivered to its end after all: the start could not look.
            Err(_) if matches!(file_stat(&list_path(self.way, number)), Ok(None)) => {
                desk.done.insert(now, number);
            }
            Err(trouble) => {
                desk.log.line(format!("warning: trouble {trouble}; will try again later"));
                desk.schedule(self.way).insert(now + SYSTEM_TROUBLE_SECONDS, number);
            }
        }
    }

    fn begin_job(&self, desk: &Desk, number: Number, due: u64, now: u64) -> Result<(Job, OwnedFd), String> {
        let name = list_path(self.way, number);
        let list = fd::open_read(&name).map_err(|_| format!("opening {name}"))?;
        let (info, birth) = read_info(number)?;
        let job = Job {
            sender: info.sender,
            due,
            retry: schedule::next_attempt(birth, now, self.way),
            dying: schedule::expired(birth, now, desk.controls.lifetime),
            references: 1,
            undone: 0,
            complete: false,
            cut: false,
        };
        Ok((job, list))
    }

    /// Reads on to the next recipient not done yet, and begins its delivery.
    fn read_list(&mut self, desk: &mut Desk) {
        for _ in 0..RECORDS_A_TURN {
            let Some(pass) = &mut self.pass else { return };
            let offset = pass.offset;
            let end = match pass.list.line(0, RECORD_MAX) {
                Ok(Line::Whole(record)) => {
                    pass.offset += record.len() as u64 + 1;
                    match record.split_first() {
                        Some((b'D', _)) => continue,
                        Some((b'T', recipient)) => {
                            let number = pass.number;
                            // Counted before anything else: a list is complete only when nobody is left.
                            if let Some(job) = self.jobs.get_mut(&number) {
                                job.undone += 1;
                            }
                            self.deliver(desk, number, offset, recipient.to_vec());
                            return;
                        }
                        _ => EndOfPass::Trouble("unknown record type in".to_string()),
                    }
                }
                Ok(Line::End(rest)) if rest.is_empty() => EndOfPass::Complete,
                Ok(Line::End(_) | Line::TooLong) | Err(_) => {
                    EndOfPass::Trouble("trouble reading".to_string())
                }
            };
            self.end_pass(desk, end);
            return;
        }
    }

    fn end_pass(&mut self, desk: &mut Desk, end: EndOfPass) {
        let Some(pass) = self.pass.take() else { return };
        if let EndOfPass::Trouble(what) = &end {
            let name = list_path(self.way, pass.number);
            let ending = if what.starts_with("unknown") { "!" } else { "; will try again later" };
            desk.log.line(format!("warning: {what} {name}{ending}"));
        }
        if let Some(job) = self.jobs.get_mut(&pass.number) {
            job.complete = matches!(end, EndOfPass::Complete);
            job.cut = matches!(end, EndOfPass::Cut);
        }
        self.release(desk, pass.number);
    }

    /// A pass or a delivery of this message is over; after the last one its future is decided.
    fn release(&mut self, desk: &mut Desk, number: Number) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        job.references = job.references.saturating_sub(1);
        if job.references > 0 {
            return;
        }
        let Some(job) = self.jobs.remove(&number) else { return };
        if job.complete && job.undone == 0 {
            self.finish_list(desk, number);
        } else {
            let when = if job.cut { job.due } else { job.retry };
            desk.schedule(self.way).insert(when, number);
        }
    }

    /// Everybody on this list is done: the list goes, and perhaps the message.
    fn finish_list(&self, desk: &mut Desk, number: Number) {
        let name = list_path(self.way, number);
        if remove(&name).is_err() {
            desk.log.line(format!("warning: unable to unlink {name}; will try again later"));
            desk.schedule(self.way).insert(now() + SYSTEM_TROUBLE_SECONDS, number);
            return;
        }
        // Before info goes: a list that came back beside it after a power cut would be delivered again.
        if sync_parent(&name).is_err() {
            desk.log.line(format!("warning: trouble fsyncing directory of {name}"));
        }
        let other = match self.way {
            Way::Local => Way::Remote,
            Way::Remote => Way::Local,
        };
        match desk.exists(&list_path(other, number), "") {
            Some(true) => {}
            Some(false) => desk.done.insert(now(), number),
            None => desk.done.insert(now() + SYSTEM_TROUBLE_SECONDS, number),
        }
    }

    // -- deliveries

    fn deliver(&mut self, desk: &mut Desk, number: Number, offset: u64, recipient: Vec<u8>) {
        let Some(slot) = self.free_slot() else { return };
        let (Ok(slot_byte), Some(job)) = (u8::try_from(slot), self.jobs.get_mut(&number)) else { return };
        job.references += 1;
        desk.deliveries += 1;
        let id = desk.deliveries;
        // Grouped recipients (one remote host, one message) would be several of these in one burst.
        let mut command = vec![slot_byte];
        for field in [queue::message_id(number).as_bytes(), &verp(&job.sender, &recipient), &recipient] {
            command.extend_from_slice(field);
            command.push(0);
        }
        let (way, to) = (self.way.name(), log_safe(&recipient));
        desk.log.line(format!("starting delivery {id}: msg {number} to {way} {to}"));
        if let Some(free) = self.slots.get_mut(slot) {
            *free = Some(Delivery { id, number, offset, recipient });
        }
        self.unsent = command;
        self.say_load(desk);
        self.send(desk);
    }

    /// What the pipes are ready for.
    pub fn serve(&mut self, desk: &mut Desk, ready: &[Call]) {
        if ready.contains(&Call::Reports(self.way)) {
            self.receive(desk);
        }
        if ready.contains(&Call::Commands(self.way)) {
            self.send(desk);
        }
    }

    /// Writes as much of a command as the pipe takes.
    fn send(&mut self, desk: &mut Desk) {
        if !self.alive || self.unsent.is_empty() {
            return;
        }
        match nix::unistd::write(&self.commands, &self.unsent) {
            Ok(n) => {
                self.unsent.drain(..n.min(self.unsent.len()));
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.lose(desk),
        }
    }

    /// Reports are there.
    fn receive(&mut self, desk: &mut Desk) {
        let mut bytes = vec![0u8; REPORTS_A_TURN];
        match fd::read(&self.from, &mut bytes) {
            Ok(n @ 1..) => {
                for report in self.reports.feed(bytes.get(..n).unwrap_or_default()) {
                    self.take(desk, report);
                }
            }
            Err(Errno::EAGAIN) => {}
            Ok(_) | Err(_) => self.lose(desk),
        }
    }

    /// What was running there may or may not have been done; what has no mark is tried again after a
    /// restart.
    fn lose(&mut self, desk: &mut Desk) {
        self.alive = false;
        desk.log.line("alert: oh no! lost spawn connection! dying...");
        desk.stopping = true;
    }

    fn take(&mut self, desk: &mut Desk, report: Report) {
        let slot = usize::from(report.slot);
        let waiting = self.stuck.iter().any(|stuck| stuck.slot == slot);
        let Some(Some(delivery)) = self.slots.get(slot).filter(|_| !waiting) else {
            desk.log.line("warning: internal error: delivery report out of range");
            return;
        };
        let dying = self.jobs.get(&delivery.number).is_some_and(|job| job.dying);
        let mut text = report.text;
        let mut letter = report.letter;
        if letter == Some(b'Z') && dying {
            letter = Some(b'D');
            if !text.is_empty() && !text.ends_with(b"\n") {
                text.push(b'\n');
            }
            text.extend_from_slice(bounce::EXPIRED);
        }
        let said = log_safe(&text);
        let id = delivery.id;
        match letter {
            Some(b'K') => {
                desk.log.line(format!("delivery {id}: success: {said}"));
                self.mark_done(desk, slot);
            }
            Some(b'D') => {
                desk.log.line(format!("delivery {id}: failure: {said}"));
                let address = desk.controls.rules.without_prefix(&delivery.recipient);
                let paragraph = bounce::paragraph(address, &text);
                self.fail(desk, slot, paragraph);
            }
            Some(b'Z') => {
                desk.log.line(format!("delivery {id}: deferral: {said}"));
                self.free(desk, slot);
            }
            _ => {
                desk.log.line(format!("delivery {id}: report mangled, will defer"));
                self.free(desk, slot);
            }
        }
    }

    /// A permanent failure: the sender will be told, then the recipient is done. In this order.
    fn fail(&mut self, desk: &mut Desk, slot: usize, paragraph: Vec<u8>) {
        let Some(Some(delivery)) = self.slots.get(slot) else { return };
        match bounces::append(delivery.number, &paragraph) {
            Ok(()) => self.mark_done(desk, slot),
            Err(_) => {
                desk.log.line("alert: unable to append to bounce message; HELP! sleeping...");
                self.stick(slot, Some(paragraph));
            }
        }
    }

    fn stick(&mut self, slot: usize, paragraph: Option<Vec<u8>>) {
        self.stuck.push(Stuck { slot, paragraph });
        self.stuck_until = now() + SLEEP_SECONDS;
    }

    fn retry_stuck(&mut self, desk: &mut Desk) {
        for stuck in std::mem::take(&mut self.stuck) {
            match stuck.paragraph {
                Some(paragraph) => self.fail(desk, stuck.slot, paragraph),
                None if self.try_mark(stuck.slot).is_ok() => self.free(desk, stuck.slot),
                None => self.stick(stuck.slot, None),
            }
        }
    }

    /// The recipient needs nothing more.
    fn mark_done(&mut self, desk: &mut Desk, slot: usize) {
        match self.try_mark(slot) {
            Ok(()) => self.free(desk, slot),
            Err(name) => {
                // Twice only if we end before the mark can be written.
                desk.log.line(format!("warning: trouble marking {name}; message will be delivered twice!"));
                self.stick(slot, None);
            }
        }
    }

    /// Writes the done mark. The error is the name of the list.
    fn try_mark(&mut self, slot: usize) -> Result<(), String> {
        let Some(Some(delivery)) = self.slots.get(slot) else { return Ok(()) };
        let name = list_path(self.way, delivery.number);
        write_mark(&name, delivery.offset).map_err(|_| name)?;
        if let Some(job) = self.jobs.get_mut(&delivery.number) {
            job.undone = job.undone.saturating_sub(1);
        }
        Ok(())
    }

    fn free(&mut self, desk: &mut Desk, slot: usize) {
        let Some(delivery) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        self.say_load(desk);
        self.release(desk, delivery.number);
    }

    fn say_load(&self, desk: &mut Desk) {
        if let Some(load) = desk.load.get_mut(self.way as usize) {
            load.used = self.slots.iter().flatten().count();
        }
        desk.say_status();
    }
}

/// Sender and birth time.
fn read_info(number: Number) -> Result<(Info, u64), String> {
    let name = queue::info(number);
    let file = fd::open_read(&name).map_err(|_| format!("opening {name}"))?;
    let reading = || format!("reading {name}");
    let birth = modified(&fstat(&file).map_err(|_| reading())?);
    let bytes = fd::read_to_end(file, INFO_MAX).map_err(|_| reading())?;
    Ok((Info::parse(&bytes).map_err(|_| reading())?, birth))
}

/// `T` becomes `D`. Not synced: what comes back undone after a power cut is delivered twice, never lost.
fn write_mark(name: &str, offset: u64) -> Result<(), Errno> {
    let list = open(name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    match pwrite(&list, b"D", offset)? {
        1 => Ok(()),
        _ => Err(Errno::EIO),
    }
}

/// Writes the due times of a schedule to the lists' modification times, for the next start.
pub fn store_due_times(desk: &mut Desk, way: Way) {
    let entries: Vec<(u64, Number)> = desk.schedule(way).iter().collect();
    for (due, number) in entries {
        let name = list_path(way, number);
        if matches!(file_stat(&name), Ok(None)) {
            continue;
        }
        let time = nix::sys::time::TimeVal::new(i64::try_from(due).unwrap_or(i64::MAX), 0);
        if nix::sys::stat::utimes(name.as_str(), &time, &time).is_err() {
            desk.log.line(format!("warning: unable to utime {name}; message will be retried too soon"));
        }
    }
}
