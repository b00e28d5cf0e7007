//! One way out of the queue: passes over recipient lists, delivery slots, the pipes to the spawner.
//!
//! A pass reads one list from its start and begins a delivery for each recipient not done yet, when a
//! slot is free. A job is a message in the course of a pass or with deliveries still running. Messages on
//! the short way have neither: `todo` starts their deliveries, and `short` keeps what became of them.
//!
//! Deliveries that are asked for in one burst share a connection, where the spawner can do that; elsewhere
//! each has its own. Slots are bounded by what the pipe can name, connections by concurrencyremote.
#![forbid(unsafe_code)]

use crate::Call;
use crate::bounces;
use crate::desk::{
    Desk, SLEEP_SECONDS, SYSTEM_TROUBLE_SECONDS, Wake, file_stat, list_path, modified, now, remove,
    sync_parent,
};
use crate::pass::{EndOfPass, Pass, host};
use crate::proof::{Errand, Proof};
use crate::short::{self, Fate, Message};
use crate::slots::Slots;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use qmail::fd;
use qmail::queue::info::{INFO_MAX, Info};
use qmail::queue::list::{self, Spot};
use qmail::queue::report::{Report, Reports, log_safe};
use qmail::queue::rewrite::{Way, verp};
use qmail::queue::{self, Number, bounce, schedule};
use qmail::spawn::slot::LIMIT_WIDE;
use qmail::spawn::{LIMIT_TOGETHER, TOGETHER_BYTES, TOGETHER_MAX, Width};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Bytes of reports read in one turn.
const REPORTS_A_TURN: usize = 16 * 1024;

/// A burst waits so long for slots of another that has been reported in part: the rest of its reports is on
/// the pipe, unless the spawner could not keep it together.
const PATIENCE: Duration = Duration::from_millis(250);

/// One delivery that was asked for.
pub struct Delivery {
    id: u64,
    number: Number,
    place: Place,
    recipient: Vec<u8>,
    /// The id of the first delivery of its burst.
    burst: u64,
}

/// Where it is noted that a recipient is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the list.
    Record(Spot),
    /// The recipient of this index of a message on its short way.
    Short(usize),
}

/// Deliveries that were asked for together.
struct Burst {
    size: usize,
    /// How many have been reported.
    reported: usize,
    /// How many still have their slot.
    left: usize,
}

impl Burst {
    /// Some were reported: the others are about to be.
    fn is_ending(&self) -> bool {
        self.reported > 0 && self.reported < self.size
    }
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

/// The end of a delivery that could not be written down yet. Its slot stays taken: nothing is forgotten,
/// and nobody gets the message a second time while we live.
struct Stuck {
    slot: usize,
    /// What bounce/N still lacks; None when only the done mark is missing.
    paragraph: Option<Vec<u8>>,
}

/// What a spawner can take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub slots: usize,
    /// Connections, or deliveries where each has its own.
    pub connections: usize,
    /// Recipients of one message at one host may travel together.
    pub together: bool,
    /// How slots are written.
    pub width: Width,
}

impl Limits {
    /// From the control file and the spawner's first byte. A spawner to which it was announced that
    /// recipients travel together, but which does not know of that, says another limit.
    pub fn of(wanted: u64, limit: u8, announced: bool, width: Width) -> Limits {
        let connections = usize::try_from(wanted.min(u64::from(limit))).unwrap_or(0);
        let together = announced && limit == LIMIT_TOGETHER;
        let slots = match (together, width) {
            (false, _) => connections,
            (true, Width::Narrow) => usize::from(limit),
            (true, Width::Wide) => usize::from(LIMIT_WIDE),
        };
        Limits { slots, connections, together, width }
    }
}

pub struct Channel {
    way: Way,
    limits: Limits,
    commands: OwnedFd,
    from: OwnedFd,
    alive: bool,
    /// The rest of a burst of commands that the pipe did not take.
    unsent: Vec<u8>,
    reports: Reports,
    slots: Slots,
    bursts: BTreeMap<u64, Burst>,
    jobs: BTreeMap<Number, Job>,
    jobs_max: usize,
    pass: Option<Pass>,
    /// Until then the next burst waits for the end of one that is ending, so as not to become a small one.
    patient: Option<Instant>,
    stuck: Vec<Stuck>,
    stuck_until: u64,
    /// Reports about messages whose way is being changed.
    held: Vec<Report>,
}

impl Channel {
    /// At most `jobs_max` messages in flight.
    pub fn new(way: Way, commands: OwnedFd, from: OwnedFd, limits: Limits, jobs_max: usize) -> Channel {
        Channel {
            way,
            limits,
            commands,
            from,
            alive: true,
            unsent: Vec::new(),
            reports: Reports::new(limits.width),
            slots: Slots::new(limits.slots),
            bursts: BTreeMap::new(),
            jobs: BTreeMap::new(),
            jobs_max,
            pass: None,
            patient: None,
            stuck: Vec::new(),
            stuck_until: 0,
            held: Vec::new(),
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
        if !self.has_room(1, 1) {
            return Wake::Never; // a report or room in the pipe will call
        }
        if self.is_patient() {
            return Wake::Soon;
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
        let running = self.slots.taken();
        self.pass.is_none() && (!self.alive || running <= self.stuck.len() + self.held.len())
    }

    fn may_start(&self) -> bool {
        self.has_room(1, 1) && !self.is_patient()
    }

    fn is_patient(&self) -> bool {
        self.patient.is_some_and(|until| Instant::now() < until)
    }

    /// Whether so many deliveries over so many connections could be started at once.
    fn has_room(&self, deliveries: usize, connections: usize) -> bool {
        self.alive
            && self.unsent.is_empty()
            && self.bursts.len() + connections <= self.limits.connections
            && self.slots.free() >= deliveries
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

    // model: L1
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
            Ok((job, pass)) => {
                self.pass = Some(pass);
                self.jobs.insert(number, job);
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

    fn begin_job(&self, desk: &Desk, number: Number, due: u64, now: u64) -> Result<(Job, Pass), String> {
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
        let pass =
            Pass::new(number, list, self.shares(&job.sender)).map_err(|_| format!("reading {name}"))?;
        Ok((job, pass))
    }

    /// Reads on, and begins the deliveries of the next burst.
    fn read_list(&mut self, desk: &mut Desk) {
        let room = self.slots.free();
        let Some(pass) = &mut self.pass else { return };
        if !pass.read_on() {
            return;
        }
        if let Some(end) = pass.end() {
            self.end_pass(desk, end);
            return;
        }
        // Slots of a burst that is ending come free together: a burst begun now would stay small for good.
        if pass.mates() > room && self.patient.is_none() && self.bursts.values().any(Burst::is_ending) {
            self.patient = Some(Instant::now() + PATIENCE);
            return;
        }
        let number = pass.number;
        let recipients = pass.take(room);
        // Counted before anything else: a list is complete only when nobody is left.
        let Some(job) = self.jobs.get_mut(&number) else { return };
        job.undone += recipients.len();
        job.references += recipients.len();
        let sender = job.sender.clone();
        let burst = recipients.into_iter().map(|r| (Place::Record(r.spot), r.address)).collect();
        self.start_burst(desk, number, &sender, burst);
        self.send(desk);
    }

    fn end_pass(&mut self, desk: &mut Desk, end: EndOfPass) {
        let Some(pass) = self.pass.take() else { return };
        if let EndOfPass::Trouble(what) = &end {
            let name = list_path(self.way, pass.number);
            let ending = if what.starts_with("unknown") { "!" } else { "; will try again later" };
            desk.log.line(format!("warning: {what} {name}{ending}"));
        }
        if let Some(job) = self.jobs.get_mut(&pass.number) {
            job.complete = end == EndOfPass::Complete;
            job.cut = end == EndOfPass::Cut;
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
        // model: L8
        if remove(&name).is_err() {
            desk.log.line(format!("warning: unable to unlink {name}; will try again later"));
            desk.schedule(self.way).insert(now() + SYSTEM_TROUBLE_SECONDS, number);
            return;
        }
        // Before info goes: a list that came back beside it after a power cut would be delivered again.
        // model: L9
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

    // -- the short way

    /// The recipients of this channel, as the bursts they would leave in, when there is room for all of them
    /// at once. Recipients are named by their index.
    pub fn plan(&self, sender: &[u8], recipients: &[(Way, Vec<u8>)]) -> Option<Vec<Vec<usize>>> {
        let shares = self.shares(sender);
        let mut bursts: Vec<(Vec<u8>, usize, Vec<usize>)> = Vec::new();
        let mut count = 0;
        for (index, (_, address)) in recipients.iter().enumerate().filter(|(_, (way, _))| *way == self.way) {
            count += 1;
            let host = host(address);
            let mates = bursts.iter_mut().find(|(other, bytes, mates)| {
                shares
                    && *other == host
                    && bytes + address.len() <= TOGETHER_BYTES
                    && mates.len() < TOGETHER_MAX
            });
            match mates {
                Some((_, bytes, mates)) => {
                    *bytes += address.len();
                    mates.push(index);
                }
                None => bursts.push((host, address.len(), vec![index])),
            }
        }
        let fits = count == 0 || self.has_room(count, bursts.len());
        fits.then(|| bursts.into_iter().map(|(_, _, mates)| mates).collect())
    }

    /// Starts what was planned for a message on its short way.
    pub fn start(&mut self, desk: &mut Desk, number: Number, plan: Vec<Vec<usize>>) {
        for mates in plan {
            let Some(message) = desk.short.get(number) else { return };
            let sender = message.sender.clone();
            let recipient = |index: usize| message.recipients.get(index).map(|r| r.address.clone());
            let burst = mates.into_iter().filter_map(|i| Some((Place::Short(i), recipient(i)?))).collect();
            self.start_burst(desk, number, &sender, burst);
        }
        self.send(desk);
    }

    /// The message has changed its way: from now on its deliveries are those of a list, in which its
    /// recipients stand at these spots. None is for those who have no list.
    pub fn adopt(&mut self, desk: &mut Desk, number: Number, message: &Message, spots: &[Option<Spot>]) {
        let ours = message.recipients.iter().zip(spots);
        let ours = ours.filter(|(recipient, spot)| recipient.way == self.way && spot.is_some());
        let fates: Vec<Fate> = ours.map(|(recipient, _)| recipient.fate).collect();
        if fates.is_empty() {
            return;
        }
        let mut references = 1;
        for delivery in self.slots.all().filter(|delivery| delivery.number == number) {
            if let Place::Short(index) = delivery.place
                && let Some(Some(spot)) = spots.get(index)
            {
                delivery.place = Place::Record(*spot);
                references += 1;
            }
        }
        let job = Job {
            sender: message.sender.clone(),
            due: message.birth,
            retry: message.retry(self.way, now()),
            dying: false, // it was born when this attempt began
            references,
            undone: fates.iter().filter(|fate| **fate != Fate::Done).count(),
            complete: true,
            cut: false,
        };
        self.jobs.insert(number, job);
        self.release(desk, number);
    }

    /// Whatever came of a change of way: reports that waited for it are taken now.
    pub fn take_held(&mut self, desk: &mut Desk) {
        for report in std::mem::take(&mut self.held) {
            self.take(desk, report);
        }
    }

    // -- deliveries

    /// Whether recipients of this sender's messages can travel together: not if each is to see another sender.
    fn shares(&self, sender: &[u8]) -> bool {
        self.limits.together && verp(sender, b"r@d") == sender
    }

    /// Takes slots for deliveries that leave together, and puts the commands where `send` finds them.
    // model: L3
    fn start_burst(&mut self, desk: &mut Desk, number: Number, sender: &[u8], burst: Vec<(Place, Vec<u8>)>) {
        let (first, size) = (desk.deliveries + 1, burst.len());
        self.bursts.insert(first, Burst { size, reported: 0, left: size });
        for (place, recipient) in burst {
            let id = desk.deliveries + 1;
            let (to, delivery) =
                (log_safe(&recipient), Delivery { id, number, place, recipient, burst: first });
            let Some((slot, delivery)) = self.slots.take(delivery, self.limits.width) else { return };
            desk.deliveries = id;
            self.unsent.extend_from_slice(&slot.encode());
            let recipient = &delivery.recipient;
            for field in [queue::message_id(number).as_bytes(), &verp(sender, recipient), recipient] {
                self.unsent.extend_from_slice(field);
                self.unsent.push(0);
            }
            let way = self.way.name();
            desk.log.line(format!("starting delivery {id}: msg {number} to {way} {to}"));
            self.say_load(desk);
        }
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

    /// Writes as much of the commands as the pipe takes.
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
        let slot = report.slot.index();
        let waiting = self.stuck.iter().any(|stuck| stuck.slot == slot)
            || self.held.iter().any(|held| held.slot == report.slot);
        let Some(delivery) = self.slots.get(slot).filter(|_| !waiting) else {
            desk.log.line("warning: internal error: delivery report out of range");
            return;
        };
        if desk.short.is_changing(delivery.number) {
            self.held.push(report);
            return;
        }
        if let Some(burst) = self.bursts.get_mut(&delivery.burst) {
            burst.reported += 1;
        }
        self.patient = None;
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
                self.defer(desk, slot);
            }
            _ => {
                desk.log.line(format!("delivery {id}: report mangled, will defer"));
                self.defer(desk, slot);
            }
        }
    }

    /// A permanent failure: the sender will be told, then the recipient is done. In this order.
    fn fail(&mut self, desk: &mut Desk, slot: usize, paragraph: Vec<u8>) {
        let Some(delivery) = self.slots.get(slot) else { return };
        let noted = match delivery.place {
            Place::Record(_) => bounces::append(delivery.number, &paragraph),
            // todo/N still speaks of the recipient.
            Place::Short(_) => bounces::append_unsynced(delivery.number, &paragraph),
        };
        match noted {
            Ok(()) => {
                desk.short.set_failed(delivery.number);
                self.mark_done(desk, slot);
            }
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
            let delivery = self.slots.get(stuck.slot);
            if delivery.is_some_and(|delivery| desk.short.is_changing(delivery.number)) {
                self.stick(stuck.slot, stuck.paragraph); // where it is to be noted is about to change
                continue;
            }
            match stuck.paragraph {
                Some(paragraph) => self.fail(desk, stuck.slot, paragraph),
                None if self.try_mark(desk, stuck.slot).is_ok() => self.free(desk, stuck.slot),
                None => self.stick(stuck.slot, None),
            }
        }
    }

    /// The recipient needs nothing more.
    fn mark_done(&mut self, desk: &mut Desk, slot: usize) {
        match self.try_mark(desk, slot) {
            Ok(()) => self.free(desk, slot),
            Err(name) => {
                // Twice only if we end before the mark can be written.
                desk.log.line(format!("warning: trouble marking {name}; message will be delivered twice!"));
                self.stick(slot, None);
            }
        }
    }

    /// Writes the done mark. The error is the name of the list.
    // model: L7
    fn try_mark(&mut self, desk: &mut Desk, slot: usize) -> Result<(), String> {
        let Some(delivery) = self.slots.get(slot) else { return Ok(()) };
        let spot = match delivery.place {
            Place::Record(spot) => spot,
            Place::Short(index) => {
                desk.short.set(delivery.number, index, Fate::Done);
                return Ok(());
            }
        };
        let name = list_path(self.way, delivery.number);
        write_mark(&name, spot).map_err(|_| name)?;
        if let Some(job) = self.jobs.get_mut(&delivery.number) {
            job.undone = job.undone.saturating_sub(1);
        }
        Ok(())
    }

    /// The recipient will be tried again.
    fn defer(&mut self, desk: &mut Desk, slot: usize) {
        if let Some(Delivery { number, place: Place::Short(index), .. }) = self.slots.get(slot) {
            desk.short.set(*number, *index, Fate::Deferred);
        }
        self.free(desk, slot);
    }

    fn free(&mut self, desk: &mut Desk, slot: usize) {
        let Some(delivery) = self.slots.give_back(slot) else { return };
        if let Some(burst) = self.bursts.get_mut(&delivery.burst) {
            burst.left = burst.left.saturating_sub(1);
            if burst.left == 0 {
                self.bursts.remove(&delivery.burst);
            }
        }
        self.say_load(desk);
        match delivery.place {
            Place::Record(_) => self.release(desk, delivery.number),
            Place::Short(_) => short::settled(desk, delivery.number),
        }
    }

    fn say_load(&self, desk: &mut Desk) {
        if let Some(load) = desk.load.get_mut(self.way as usize) {
            load.used = self.bursts.len();
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

/// Not synced: what comes back undone after a power cut is delivered twice, never lost.
fn write_mark(name: &str, spot: Spot) -> Result<(), Errno> {
    list::mark_done(open(name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?, spot)
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
