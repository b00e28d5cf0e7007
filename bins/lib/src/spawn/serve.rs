//! serve - the loop of both spawners
//!
//! Watches the requests, what comes of every delivery, and the reports' reader. Beside each delivery, or those
//! that may travel together and were asked for together, stands a child of ours: it forks the one that becomes
//! the delivery program, waits until that has exited and nobody holds its output pipe any more, notes successes in
//! the ledger, hands up the reports and ends. Killed is one process, and the others finish what they have.
//!
//! Where the delivery program can take one message after the other (`line`), the two stay for a while and are
//! handed what comes for the same host, or recipient. Then a host has a ceiling of its own, and what is above it waits
//! here.
#![forbid(unsafe_code)]

use super::hosts::{Ceilings, Hosts};
use super::ledger::{Claim, Claimed, Earlier, Key, Ledger, Message};
use super::line::{self, Line};
use super::request::{Parser, Request};
use super::slot::{LIMIT_WIDE, Slot, WIDE, Width};
use super::{TOGETHER_BYTES, TOGETHER_MAX, report};
use crate::sys::memory::die_with_parent;
use crate::sys::process::{self, End, fork_child};
use crate::sys::signal;
use crate::timed::Deadline;
use crate::trouble::Trouble;
use crate::{exits, fd};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{FileStat, SFlag, fstat, stat};
use nix::unistd::{Pid, Uid, Whence, lseek};
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Reports that wait for a slow reader: beyond this no new requests are read. What runs may still add
/// one report a slot.
const WAITING_MAX: usize = 256 * 1024;
/// One read of a child's output.
const READ_SIZE: usize = 4096;
/// Stands behind the reports of a child that stays for what comes next. None ends so: the last byte is a NUL.
const STAYS: u8 = b'+';
/// What is said of a delivery that an earlier spawner began.
const BEFORE: &[u8] = b"Kdelivered before a restart\n";
/// One read of requests: all that a pipe holds, so that what was written together is read together.
const REQUESTS_SIZE: usize = 64 * 1024;

/// How long a delivery program whose line has ended may say goodbye to its server.
const GOODBYE: Duration = Duration::from_secs(5);

/// Before reports are written again, behind a trouble of the system (a pipe may want memory).
const PAUSE: Duration = Duration::from_millis(200);

/// Descriptors for each child that stays (its reports, its line), and for as many that are just leaving.
const DESCRIPTORS: usize = 4;

/// Those of requests, reports, the ledger, a message.
const DESCRIPTORS_BESIDE: usize = 64;

/// What makes a spawner local or remote.
pub trait Delivery {
    /// Who must own a message file.
    fn owner(&self) -> Uid;
    /// How many deliveries may be asked for at once: the first byte.
    fn limit(&self) -> u8;
    /// How slots are written. Wide ones have a limit of their own.
    fn width(&self) -> Width {
        Width::Narrow
    }
    /// Whether recipients of one message at one host may be given to one child.
    fn together(&self) -> bool {
        false
    }
    /// Bytes of the output of a child with `count` requests that matter; the rest is read and dropped.
    fn keep(&self, count: usize) -> usize;
    /// The work of the child, which becomes the delivery program; gives an exit code if it cannot.
    /// `output` is the pipe to be its fd 1 and 2, `message` its fd 0. It ends with the process `beside` it, but a
    /// change of user undoes that: `stay_with` again.
    fn run(&self, requests: &[Request], message: OwnedFd, output: OwnedFd, beside: Pid) -> i32;
    /// For a delivery program that takes one message after the other: how many there may be.
    fn ceilings(&self) -> Option<Ceilings> {
        None
    }
    /// What messages for one such program have in common: their host.
    fn company(&self, request: &Request) -> Vec<u8> {
        request.host()
    }
    /// Files that such a program stands for as they were when it started: itself, and what it read. Once one is
    /// another, it gets no more.
    fn depends(&self) -> &[Vec<u8>] {
        &[]
    }
    /// As `run`, for such a program: its end of the line.
    fn run_on(
        &self,
        requests: &[Request],
        message: OwnedFd,
        output: OwnedFd,
        beside: Pid,
        _line: OwnedFd,
    ) -> i32 {
        self.run(requests, message, output, beside)
    }
    /// One report, letter and text, for each of `count` requests that were run together.
    fn reports(&self, end: End, output: &[u8], count: usize) -> Vec<Vec<u8>>;
}

/// A child beside a delivery program: at work for one request or several that travel together, or waiting for the
/// next, without any.
struct Job {
    /// Names the job: its process id may be used again before the pipe came to its end.
    id: u64,
    requests: Vec<Request>,
    /// What the ledger has for each.
    rows: Vec<Option<Claimed>>,
    pid: Pid,
    /// None once it came to its end.
    pipe: Option<OwnedFd>,
    /// Whole reports, encoded.
    reports: Vec<u8>,
    end: Option<End>,
    /// Where more can be handed to it, and which host or recipient it serves.
    line: Option<OwnedFd>,
    host: Vec<u8>,
}

impl Job {
    fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    /// Whether all is reported and the child stays.
    fn has_stayed(&self) -> bool {
        let said = self.reports.split_last();
        said.is_some_and(|(last, reports)| *last == STAYS && is_whole(reports, &self.requests))
    }

    /// Whether its first report says that it is to be tried later.
    fn is_refused(&self) -> bool {
        let text = self.requests.first().and_then(|first| first.slot.width().split(&self.reports));
        text.is_some_and(|(_, text)| text.first() == Some(&b'Z'))
    }
}

/// A request, and what the ledger says of it.
struct Wanted {
    request: Request,
    number: u64,
    key: Option<Key>,
    earlier: Earlier,
}

/// What a ready descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Reader,
    /// The reports of this job.
    Job(u64),
    Requests,
}

struct Spawner<'a, D> {
    delivery: &'a D,
    ledger: Ledger,
    /// What a child gets for 0 and 1.
    null: Option<OwnedFd>,
    /// The limit of descriptors that children get back.
    files: Option<(u64, u64)>,
    parser: Parser,
    /// Requests not begun: those that are still coming may belong to them.
    arrived: Vec<Request>,
    jobs: Vec<Job>,
    /// The newest job's.
    id: u64,
    /// Where children stay: how many may be at work for a host, and rows that wait for others to finish.
    hosts: Option<Hosts>,
    behind: VecDeque<Vec<Request>>,
    /// Reports not yet written.
    waiting: Vec<u8>,
    more_requests: bool,
    /// Nobody reads reports any more: what runs is finished, nothing new is started, because a new
    /// qmail-send will ask for it again.
    deaf: bool,
}

/// Serves requests on fd 0 with reports on fd 1, in the working directory `queue/mess`, until there are
/// no more requests and every delivery has ended.
/// `null` was opened where that can be.
pub fn serve(delivery: &impl Delivery, mut ledger: Ledger, null: Option<OwnedFd>) -> Result<(), Trouble> {
    signal::catch(&[Signal::SIGCHLD]);
    ledger.take_over();
    let mut spawner = Spawner {
        delivery,
        ledger,
        null,
        files: delivery.ceilings().and_then(raise_files),
        parser: Parser::new(delivery.width()),
        arrived: Vec::new(),
        jobs: Vec::new(),
        id: 0,
        hosts: delivery.ceilings().map(Hosts::new),
        behind: VecDeque::new(),
        waiting: greeting(delivery),
        more_requests: true,
        deaf: false,
    };
    while spawner.has_work() {
        spawner.step().map_err(|e| Trouble::temporary("unable to wait for events").because(e))?;
    }
    Ok(())
}

/// Makes room for the descriptors of all children, as far as that may be: the limit there was before, if it is another
/// one now.
fn raise_files(ceilings: Ceilings) -> Option<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let children = ceilings.connections.min(usize::from(LIMIT_WIDE));
    let wanted = u64::try_from(children * DESCRIPTORS + DESCRIPTORS_BESIDE).ok()?.min(hard);
    (wanted > soft).then_some(())?;
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).ok()?;
    Some((soft, hard))
}

/// The first byte, and the word on wide slots: in one piece, or who reads it could not know that there is more.
fn greeting(delivery: &impl Delivery) -> Vec<u8> {
    let word = if delivery.width() == Width::Wide { WIDE } else { b"" };
    [&[delivery.limit()], word].concat()
}

fn limit(delivery: &impl Delivery) -> u16 {
    match delivery.width() {
        Width::Narrow => u16::from(delivery.limit()),
        Width::Wide => LIMIT_WIDE,
    }
}

impl<D: Delivery> Spawner<'_, D> {
    /// Whether something may still come, or is to be finished. Who stays for more leaves by itself when we end.
    fn has_work(&self) -> bool {
        self.more_requests
            || !self.behind.is_empty()
            || self.jobs.iter().any(|job| !job.is_idle())
            || !(self.deaf || self.waiting.is_empty())
    }

    /// Waits for something to happen and deals with it.
    fn step(&mut self) -> Result<(), Errno> {
        let ready = self.wait()?;
        // The reader first: when qmail-send has died, its last requests are not begun.
        for (source, events) in &ready {
            match source {
                Source::Reader => self.send(*events),
                Source::Job(id) => self.collect(*id),
                Source::Requests => {}
            }
        }
        self.reap();
        self.finish();
        self.start_behind();
        if ready.iter().any(|(source, _)| *source == Source::Requests) {
            self.take_requests();
        }
        Ok(())
    }

    /// Sleeps until a descriptor is ready or a child has ended.
    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, Errno> {
        let mut watched = Vec::with_capacity(self.jobs.len() + 2);
        let mut fds = Vec::with_capacity(self.jobs.len() + 2);
        if !self.deaf {
            // Without anything to write it is still watched: it tells when the reader is gone.
            let wanted = if self.waiting.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            watched.push(Source::Reader);
            fds.push(PollFd::new(fd::OUT.as_fd(), wanted));
        }
        for job in &self.jobs {
            if let Some(pipe) = &job.pipe {
                watched.push(Source::Job(job.id));
                fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLIN));
            }
        }
        if self.more_requests && self.waiting.len() < WAITING_MAX {
            watched.push(Source::Requests);
            fds.push(PollFd::new(fd::IN.as_fd(), PollFlags::POLLIN));
        }
        match signal::wait(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        }
        let events = fds.iter().map(|f| f.revents().unwrap_or(PollFlags::empty()));
        Ok(watched.into_iter().zip(events).filter(|(_, events)| !events.is_empty()).collect())
    }

    /// Reads what a child reports.
    fn collect(&mut self, id: u64) {
        let Some(job) = self.jobs.iter_mut().find(|j| j.id == id) else { return };
        let Some(pipe) = &job.pipe else { return };
        let mut chunk = [0u8; READ_SIZE];
        match fd::read(pipe, &mut chunk) {
            Ok(0) | Err(_) => job.pipe = None,
            Ok(n) => job.reports.extend_from_slice(chunk.get(..n).unwrap_or_default()),
        }
    }

    fn reap(&mut self) {
        while let Some((pid, end)) = process::reap() {
            if let Some(job) = self.jobs.iter_mut().find(|j| j.pid == pid && j.end.is_none()) {
                job.end = Some(end);
            }
        }
    }

    /// Reports the deliveries that are over.
    fn finish(&mut self) {
        let mut at = 0;
        while let Some(job) = self.jobs.get(at) {
            if job.has_stayed() {
                self.dismiss_or_keep(at);
                at += 1;
                continue;
            }
            let (None, Some(end)) = (&job.pipe, job.end) else {
                at += 1;
                continue;
            };
            let job = self.jobs.remove(at);
            if let Some(hosts) = self.hosts.as_mut().filter(|_| !job.is_idle()) {
                hosts.learn(&job.host, !job.is_refused());
            }
            if is_whole(&job.reports, &job.requests) {
                self.say(&job.reports);
                continue;
            }
            // It was killed, or its words did not get through: what came of the delivery the ledger may know.
            let reports = match end {
                End::Exit(exits::SUCCESS) => vec![LOST.to_vec(); job.requests.len()],
                end => self.delivery.reports(end, b"", job.requests.len()),
            };
            for (index, (request, report)) in job.requests.iter().zip(reports).enumerate() {
                let row = job.rows.get(index).and_then(Option::as_ref);
                let done = row.is_some_and(|row| self.ledger.says_done(row));
                self.report(request.slot, if done { UNHEARD } else { &report });
            }
        }
    }

    /// A child has finished what it had, and stays.
    fn dismiss_or_keep(&mut self, at: usize) {
        let Some(job) = self.jobs.get_mut(at) else { return };
        job.reports.pop();
        job.requests.clear();
        job.rows.clear();
        let reports = std::mem::take(&mut job.reports);
        if let Some(hosts) = &mut self.hosts {
            hosts.learn(&job.host, true);
        }
        if !self.more_requests && self.behind.is_empty() {
            job.line = None; // there is nothing to wait for
        }
        self.say(&reports);
    }

    fn report(&mut self, slot: Slot, report: &[u8]) {
        self.say(&report::encode(slot, report));
    }

    fn say(&mut self, reports: &[u8]) {
        if !self.deaf {
            self.waiting.extend_from_slice(reports);
        }
    }

    /// Writes reports, as much as the pipe takes now.
    fn send(&mut self, ready: PollFlags) {
        if ready.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL) {
            return self.lose_reader();
        }
        if ready.contains(PollFlags::POLLOUT) {
            // A pipe that is ready takes PIPE_BUF bytes without making us wait.
            let piece = self.waiting.get(..self.waiting.len().min(nix::libc::PIPE_BUF)).unwrap_or_default();
            match nix::unistd::write(fd::OUT, piece) {
                Ok(n) => drop(self.waiting.drain(..n)),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                // The reader is there, and waits for every report: it is tried until it goes.
                Err(errno) if errno != Errno::EPIPE && self.more_requests => {
                    let _ = signal::wait(&mut [], Some(PAUSE));
                }
                Err(_) => self.lose_reader(),
            }
        }
    }

    fn lose_reader(&mut self) {
        self.deaf = true;
        self.waiting = Vec::new();
        self.behind.clear();
        self.begin_nothing_more();
    }

    /// Nothing can come any more, or nobody would hear what came of it.
    fn begin_nothing_more(&mut self) {
        self.ledger.give_up();
        self.jobs.iter_mut().filter(|job| job.is_idle()).for_each(|job| job.line = None);
    }

    fn take_requests(&mut self) {
        let mut chunk = vec![0u8; REQUESTS_SIZE];
        match nix::unistd::read(fd::IN, &mut chunk) {
            Err(Errno::EINTR | Errno::EAGAIN) => return,
            Ok(0) | Err(_) => {
                self.more_requests = false;
                self.start_arrived();
                if self.behind.is_empty() {
                    self.begin_nothing_more();
                }
                return;
            }
            Ok(n) => self.arrived.extend(self.parser.feed(chunk.get(..n).unwrap_or_default())),
        }
        // Half a request: its writer is at work, and what comes may travel with what is here.
        if self.parser.is_within()
            && self.delivery.together()
            && self.arrived.len() < usize::from(limit(self.delivery))
        {
            return;
        }
        self.start_arrived();
    }

    /// Starts a child for each request, or for each row of requests that may travel together.
    fn start_arrived(&mut self) {
        let mut row: Vec<Request> = Vec::new();
        for request in std::mem::take(&mut self.arrived) {
            if self.deaf {
                return;
            }
            let busy = |slot| {
                let begun = self.jobs.iter().flat_map(|job| &job.requests);
                begun.chain(self.behind.iter().flatten()).chain(&row).any(|r| r.slot == slot)
            };
            if let Err(refusal) = request.check(limit(self.delivery), busy) {
                self.report(request.slot, refusal);
                continue;
            }
            if !(self.delivery.together() && joins(&row, &request)) {
                self.start_or_wait(std::mem::take(&mut row));
            }
            row.push(request);
        }
        self.start_or_wait(row);
    }

    /// Starts a row, unless as many as may be are at work for its host.
    fn start_or_wait(&mut self, row: Vec<Request>) {
        if self.may_start(&row, &self.depends()) {
            self.start_row(row);
        } else {
            self.behind.push_back(row);
        }
    }

    /// What requests must have in common to be of one program that stays.
    fn company(&self, request: &Request, depends: &[u8]) -> Vec<u8> {
        [&self.delivery.company(request), depends].concat()
    }

    /// What such programs stand for, as it is now. Empty where none stays.
    fn depends(&self) -> Vec<u8> {
        let mut depends = Vec::new();
        for file in self.delivery.depends().iter().filter(|_| self.hosts.is_some()) {
            // Its times tell one that was written from one that was not, where the file is the same.
            if let Ok(found) = stat(fd::path(file)) {
                for number in [found.st_dev, found.st_ino] {
                    depends.extend_from_slice(&number.to_ne_bytes());
                }
                for number in [found.st_size, found.st_ctime, found.st_ctime_nsec] {
                    depends.extend_from_slice(&number.to_ne_bytes());
                }
            }
            depends.push(b'/');
        }
        depends
    }

    fn may_start(&self, row: &[Request], depends: &[u8]) -> bool {
        let (Some(hosts), Some(first)) = (&self.hosts, row.first()) else { return true };
        let host = self.company(first, depends);
        self.jobs.iter().filter(|job| !job.is_idle() && job.host == host).count() < hosts.limit(&host)
    }

    /// Starts what waited, as far as there is room for it now; what came first for a host first.
    fn start_behind(&mut self) {
        let depends = if self.behind.is_empty() { Vec::new() } else { self.depends() }; // once: rows may be many
        let mut at = 0;
        while let Some(row) = self.behind.get(at) {
            if !self.may_start(row, &depends) {
                at += 1;
            } else if let Some(row) = self.behind.remove(at) {
                self.start_row(row);
            }
        }
        if !self.more_requests && self.behind.is_empty() {
            self.begin_nothing_more();
        }
    }

    /// Starts what is to travel together. What succeeded before is reported; what somebody is still at work on
    /// goes apart from what is new, because it waits.
    fn start_row(&mut self, row: Vec<Request>) {
        let Some(first) = row.first() else { return };
        let (file, found) = match self.open(&first.path) {
            Ok(opened) => opened,
            Err(refusal) => return row.iter().for_each(|request| self.report(request.slot, refusal)),
        };
        let message = Message::of(&first.path, &file, &found);
        let (mut new, mut begun) = (Vec::new(), Vec::new());
        for request in row {
            let (number, key) = message.delivery(&request);
            let earlier = self.ledger.earlier(key.as_ref());
            if earlier.done {
                self.report(request.slot, BEFORE);
            } else {
                let which = if earlier.running.is_empty() { &mut new } else { &mut begun };
                which.push(Wanted { request, number, key, earlier });
            }
        }
        let again = if new.is_empty() || begun.is_empty() {
            None
        } else {
            begun.first().map(|wanted| self.open(&wanted.request.path).map(|(file, _)| file))
        };
        if let Some(again) = again {
            self.start_all(begun, again);
            self.start_all(new, Ok(file));
        } else {
            begun.append(&mut new);
            self.start_all(begun, Ok(file));
        }
    }

    fn start_all(&mut self, wanted: Vec<Wanted>, message: Result<OwnedFd, &'static [u8]>) {
        let slots: Vec<Slot> = wanted.iter().map(|wanted| wanted.request.slot).collect();
        if let Err(refusal) = message.and_then(|message| self.start(wanted, message)) {
            slots.into_iter().for_each(|slot| self.report(slot, refusal));
        }
    }

    /// Starts one child for requests of one message.
    fn start(&mut self, wanted: Vec<Wanted>, message: OwnedFd) -> Result<(), &'static [u8]> {
        if wanted.is_empty() {
            return Ok(());
        }
        let deliveries: Vec<(u64, Option<Key>)> =
            wanted.iter().map(|wanted| (wanted.number, wanted.key)).collect();
        let host = match (&self.hosts, wanted.first()) {
            (Some(_), Some(first)) => self.company(&first.request, &self.depends()),
            _ => Vec::new(),
        };
        // Before anybody begins: there is no moment at which it runs and nobody can know.
        let claim = self.ledger.claim(&deliveries);
        let Some(wanted) = self.hand_over(&host, wanted, &message, &claim) else { return Ok(()) };
        self.make_room();
        let (read, write) = fd::pipe().map_err(|_| NO_PIPE)?;
        let line = self.hosts.as_ref().map(|_| line::pair()).transpose().map_err(|_| NO_PIPE)?;
        let (near, mut far) = line.map_or((None, None), |(near, far)| (Some(near), Some(far)));
        let mut claim = Some(claim);
        let (requests, rows) = (
            wanted.iter().map(|wanted| wanted.request.clone()).collect(),
            claim.as_ref().map(|claim| claim.rows().to_vec()).unwrap_or_default(),
        );
        let pid = fork_child(|| {
            self.let_go();
            process::close(read.as_raw_fd());
            near.iter().map(AsRawFd::as_raw_fd).for_each(process::close);
            let Some(claim) = claim.take() else { return exits::TEMPORARY };
            beside(self.delivery, &self.ledger, wanted, claim, message, &write, far.take())
        })
        .map_err(|_| NO_FORK)?;
        self.id += 1;
        self.jobs.push(Job {
            id: self.id,
            requests,
            rows,
            pid,
            pipe: Some(read),
            reports: Vec::new(),
            end: None,
            line: near,
            host,
        });
        Ok(())
    }

    /// Hands these to a child that waits for more of their host, the one that waits the shortest time: the others
    /// may be too many. Gives them back if there is none.
    fn hand_over(
        &mut self,
        host: &[u8],
        wanted: Vec<Wanted>,
        message: &OwnedFd,
        claim: &Claim,
    ) -> Option<Vec<Wanted>> {
        if self.hosts.is_none() || wanted.iter().any(|wanted| !wanted.earlier.running.is_empty()) {
            return Some(wanted);
        }
        let requests: Vec<Request> = wanted.iter().map(|wanted| wanted.request.clone()).collect();
        while let Some(at) =
            self.jobs.iter().rposition(|job| job.is_idle() && job.line.is_some() && job.host == host)
        {
            let Some(job) = self.jobs.get_mut(at) else { break };
            let Some(near) = &job.line else { break };
            if line::hand(near, message, claim.file(), &requests, claim.rows()).is_ok() {
                job.requests = requests;
                job.rows = claim.rows().to_vec();
                return None;
            }
            job.line = None; // it is about to leave
        }
        Some(wanted)
    }

    /// Has one who waits leave, where there would be too many connections.
    fn make_room(&mut self) {
        let Some(hosts) = &self.hosts else { return };
        let here = self.jobs.iter().filter(|job| !job.is_idle() || job.line.is_some()).count();
        if here >= hosts.ceilings().connections
            && let Some(job) = self.jobs.iter_mut().find(|job| job.is_idle() && job.line.is_some())
        {
            job.line = None;
        }
    }

    /// In a child: nothing of the spawner's may stay open there when the spawner is gone. 0 and 1 stay taken: no
    /// program may find there what is opened later.
    fn let_go(&self) {
        let pipes = self.jobs.iter().flat_map(|job| job.pipe.iter().chain(&job.line));
        pipes.chain(self.ledger.life()).map(AsRawFd::as_raw_fd).for_each(process::close);
        fd::give_up_standard_for(self.null.as_ref());
        if let Some((soft, hard)) = self.files {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard); // delivery programs get what we were given
        }
    }

    /// The message file: opened once, here; the delivery program gets the descriptor.
    fn open(&self, path: &[u8]) -> Result<(OwnedFd, FileStat), &'static [u8]> {
        let unable: &[u8] = b"Zqmail-spawn unable to open message. (#4.3.0)\n";
        let file = fd::open_read(path).map_err(|_| unable)?;
        let found =
            fstat(&file).map_err(|_| b"Zqmail-spawn unable to fstat message. (#4.3.0)\n".as_slice())?;
        if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(b"ZSorry, message has wrong type. (#4.3.5)\n");
        }
        if found.st_uid != self.delivery.owner().as_raw() {
            return Err(b"ZSorry, message has wrong owner. (#4.3.5)\n");
        }
        // The delivery program and what it runs expect a plain file, not one that "would block".
        fd::set_nonblocking(&file, false).map_err(|_| unable)?;
        Ok((file, found))
    }
}

/// In the child beside a delivery: has it made, notes what succeeded, reports. Where there is a line, it then
/// waits for more as long as the delivery program does.
fn beside<D: Delivery>(
    delivery: &D,
    ledger: &Ledger,
    wanted: Vec<Wanted>,
    claim: Claim,
    message: OwnedFd,
    reports: &OwnedFd,
    line: Option<OwnedFd>,
) -> i32 {
    let mut line = line.map(Line::new);
    let before = |one: &Wanted| one.earlier.running.iter().any(|row| ledger.wait_for(row));
    let done: Vec<bool> = wanted.iter().map(before).collect();
    let requests: Vec<Request> = wanted.into_iter().map(|one| one.request).collect();
    let rest: Vec<Request> =
        requests.iter().zip(&done).filter(|(_, done)| !**done).map(|(one, _)| one.clone()).collect();
    let (mut program, verdicts) = if rest.is_empty() {
        (None, Vec::new())
    } else {
        deliver(delivery, None, &rest, message, line.is_some())
    };
    tell(reports, &requests, &done, verdicts, &claim, program.is_some());
    drop(claim);
    while let (Some(waiting), Some(line)) = (program.take(), line.as_mut()) {
        let Some(handed) = next(line, &waiting) else { break };
        let claim = Claim::taken(handed.ledger, handed.rows);
        let keep = line.is_open();
        let (kept, verdicts) = deliver(delivery, Some(waiting), &handed.requests, handed.message, keep);
        program = kept;
        let done = vec![false; handed.requests.len()];
        tell(reports, &handed.requests, &done, verdicts, &claim, program.is_some());
    }
    exits::SUCCESS
}

/// Notes what succeeded and reports on every request.
fn tell(
    reports: &OwnedFd,
    requests: &[Request],
    done: &[bool],
    verdicts: Vec<Vec<u8>>,
    claim: &Claim,
    stays: bool,
) {
    let mut text = Vec::new();
    let mut verdicts = verdicts.into_iter();
    for (index, (request, done)) in requests.iter().zip(done).enumerate() {
        let verdict = if *done { Some(BEFORE.to_vec()) } else { verdicts.next() };
        let verdict = verdict.unwrap_or_else(|| NO_FORK.to_vec());
        if verdict.first() == Some(&b'K') {
            claim.done(index);
        }
        text.extend_from_slice(&report::encode(request.slot, &verdict));
    }
    if stays {
        text.push(STAYS);
    }
    // If the spawner is gone, the ledger knows.
    let _ = fd::write_all(reports, &text);
}

/// Waits until more is handed over. None when nothing will be: the spawner is gone, or the program is, and nothing
/// lay on the line by then.
fn next(line: &mut Line, waiting: &Program) -> Option<line::Handed> {
    loop {
        let program = waiting.line.as_ref()?;
        let mut fds =
            [PollFd::new(line.as_fd(), PollFlags::POLLIN), PollFd::new(program.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(_) => return None,
            Ok(_) => {}
        }
        let [handed, left] = fds.map(|fd| fd.any().unwrap_or(true));
        if left && !handed {
            line.refuse();
        }
        return line.take_handed();
    }
}

/// From now on this process ends with its parent: nobody would hear what comes of a delivery, and it would be made
/// again. False when the parent has ended before.
pub fn stay_with(parent: Pid) -> bool {
    die_with_parent(Signal::SIGKILL as i32);
    Pid::parent() == parent
}

/// A delivery program.
struct Program {
    pid: Pid,
    output: OwnedFd,
    /// Where it may be given more.
    line: Option<OwnedFd>,
}

/// How far a delivery program is.
enum Heard {
    /// It has reported, and waits.
    Waits(Vec<u8>),
    Ended(End, Vec<u8>),
}

impl Program {
    fn start<D: Delivery>(
        delivery: &D,
        requests: &[Request],
        message: OwnedFd,
        keep: bool,
    ) -> Result<Program, &'static [u8]> {
        let (read, write) = fd::pipe().map_err(|_| NO_PIPE)?;
        let line = if keep { Some(line::pair().map_err(|_| NO_PIPE)?) } else { None };
        let (near, mut far) = line.map_or((None, None), |(near, far)| (Some(near), Some(far)));
        let ours = Pid::this();
        let pid = fork_child(|| {
            if !stay_with(ours) {
                return exits::TEMPORARY;
            }
            match far.take() {
                Some(line) => delivery.run_on(requests, message, write, ours, line),
                None => delivery.run(requests, message, write, ours),
            }
        })
        .map_err(|_| NO_FORK)?;
        Ok(Program { pid, output: read, line: near })
    }

    /// Reads what it says, of which `keep` bytes matter, until it waits for more or has ended.
    fn hear(&mut self, keep: usize) -> Result<Heard, &'static [u8]> {
        let mut output = Vec::new();
        while self.read(keep, &mut output) {
            let Some(line) = &self.line else { continue };
            if self.is_speaking(PollTimeout::NONE) {
                continue;
            }
            if !line::is_kept(line) {
                self.line = None;
                continue;
            }
            // All its words were in the pipe before it said so.
            while self.is_speaking(PollTimeout::ZERO) {
                if !self.read(keep, &mut output) {
                    return self.ended(output);
                }
            }
            return Ok(Heard::Waits(output));
        }
        self.ended(output)
    }

    /// Reads once; false at the end.
    fn read(&self, keep: usize, output: &mut Vec<u8>) -> bool {
        let mut chunk = [0u8; READ_SIZE];
        let Ok(n @ 1..) = fd::read(&self.output, &mut chunk) else { return false };
        let room = keep.saturating_sub(output.len());
        output.extend_from_slice(chunk.get(..n.min(room)).unwrap_or_default());
        true
    }

    /// Whether there is more to read, or the end, as soon as there is that or something on its line.
    fn is_speaking(&self, timeout: PollTimeout) -> bool {
        let mut fds = vec![PollFd::new(self.output.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.line.iter().map(|line| PollFd::new(line.as_fd(), PollFlags::POLLIN)));
        loop {
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => {}
                Err(_) => return true,
                Ok(_) => return fds.first().is_none_or(|output| output.any().unwrap_or(true)),
            }
        }
    }

    fn ended(&mut self, output: Vec<u8>) -> Result<Heard, &'static [u8]> {
        self.line = None;
        let end = process::wait(self.pid).map_err(|_| NO_FORK)?;
        Ok(Heard::Ended(end, output))
    }
}

impl Drop for Program {
    /// It sees the end of its line, says goodbye to its server and ends; if it has not yet. One that does not (its user
    /// may have stopped it) has nothing begun, and is killed: the spawner has a descriptor for each of us.
    fn drop(&mut self) {
        if self.line.take().is_some() {
            self.wait_for_goodbye();
            let _ = kill(self.pid, Signal::SIGKILL); // not yet waited for, so the number is its
            let _ = process::wait(self.pid);
        }
    }
}

impl Program {
    /// Until it closes its output, as its end does.
    fn wait_for_goodbye(&self) {
        let deadline = Deadline::after(GOODBYE);
        while let Some(left) = deadline.left().filter(|left| !left.is_zero()) {
            let mut fds = [PollFd::new(self.output.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
            if ready.is_ok_and(|ready| ready > 0)
                && !matches!(fd::read(&self.output, &mut [0; READ_SIZE]), Ok(1..))
            {
                return;
            }
        }
    }
}

/// Has a message delivered by the program that waits, or by a new one; a report for each request, and the program if
/// it waits for more.
fn deliver<D: Delivery>(
    delivery: &D,
    waiting: Option<Program>,
    requests: &[Request],
    message: OwnedFd,
    keep: bool,
) -> (Option<Program>, Vec<Vec<u8>>) {
    let refused = |refusal: &[u8]| (None, vec![refusal.to_vec(); requests.len()]);
    let limit = delivery.keep(requests.len());
    if let Some(mut program) = waiting {
        let errand = line::words(requests);
        let given = program.line.as_ref().map(|line| line::send(line, &errand, &[message.as_raw_fd()]));
        if !matches!(given, Some(Ok(()))) {
            program.line = None; // it has ended, or will now
        }
        match program.hear(limit) {
            Ok(Heard::Waits(said)) => {
                return (Some(program), delivery.reports(End::Exit(exits::SUCCESS), &said, requests.len()));
            }
            // It has not begun: its server was gone. Another connection, and the message from its beginning.
            Ok(Heard::Ended(End::Exit(exits::SUCCESS), said)) if said.is_empty() => {
                if lseek(&message, 0, Whence::SeekSet).is_err() {
                    return refused(LOST);
                }
            }
            Ok(Heard::Ended(end, said)) => return (None, delivery.reports(end, &said, requests.len())),
            Err(refusal) => return refused(refusal),
        }
    }
    let mut program = match Program::start(delivery, requests, message, keep) {
        Ok(program) => program,
        Err(refusal) => return refused(refusal),
    };
    match program.hear(limit) {
        Ok(Heard::Waits(said)) => {
            (Some(program), delivery.reports(End::Exit(exits::SUCCESS), &said, requests.len()))
        }
        Ok(Heard::Ended(end, said)) => (None, delivery.reports(end, &said, requests.len())),
        Err(refusal) => refused(refusal),
    }
}

/// What is said of a delivery that succeeded, when the process beside it was lost before it could say so.
const UNHEARD: &[u8] = b"Kdelivered, and the report was lost\n";
const LOST: &[u8] = b"Zqmail-spawn unable to read report. (#4.3.0)\n";
const NO_PIPE: &[u8] = b"Zqmail-spawn unable to create pipe. (#4.3.0)\n";
const NO_FORK: &[u8] = b"Zqmail-spawn unable to fork. (#4.3.0)\n";

/// Whether these are the reports of a child beside these requests, all and whole.
fn is_whole(mut reports: &[u8], requests: &[Request]) -> bool {
    for request in requests {
        let Some((slot, text)) = request.slot.width().split(reports) else { return false };
        let Some(end) = text.iter().position(|byte| *byte == 0) else { return false };
        if slot != request.slot {
            return false;
        }
        reports = text.get(end + 1..).unwrap_or_default();
    }
    reports.is_empty()
}

/// Whether a request may travel with those of this row.
fn joins(row: &[Request], request: &Request) -> bool {
    let bytes: usize = row.iter().map(|r| r.recipient.len()).sum();
    row.first().is_some_and(|first| request.is_mate_of(first))
        && row.len() < TOGETHER_MAX
        && bytes + request.recipient.len() <= TOGETHER_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_all_reports_of_a_child_are_whole() {
        let request = |slot: u8| Request {
            slot: slot.into(),
            path: vec![],
            sender: vec![],
            recipient: vec![],
            cut: false,
        };
        let requests = [request(0), request(7)];
        let whole = [report::encode(0.into(), b"Kdone\n"), report::encode(7.into(), b"Z")].concat();
        assert!(is_whole(&whole, &requests));
        for length in 0..whole.len() {
            assert!(!is_whole(whole.get(..length).unwrap(), &requests), "cut to {length}");
        }
        assert!(!is_whole(&[whole.as_slice(), b"x"].concat(), &requests));
        assert!(!is_whole(&whole, &[request(0), request(8)]));
    }

    #[test]
    fn a_host_refused_where_its_first_report_says_so_however_slots_are_written() {
        for (number, width) in
            [(0, Width::Narrow), (90, Width::Narrow), (0, Width::Wide), (90 << 8, Width::Wide)]
        {
            for (text, refused) in [(b"Zno\n".as_slice(), true), (b"Kyes\n", false), (b"DZ\n", false)] {
                let slot = Slot::of(number, width).unwrap();
                let request = Request { slot, path: vec![], sender: vec![], recipient: vec![], cut: false };
                let job = Job {
                    id: 1,
                    requests: vec![request],
                    rows: Vec::new(),
                    pid: Pid::from_raw(1),
                    pipe: None,
                    reports: report::encode(slot, text),
                    end: None,
                    line: None,
                    host: Vec::new(),
                };
                assert_eq!(job.is_refused(), refused, "{number} {width:?} {text:?}");
            }
        }
    }

    struct Nothing;

    impl Delivery for Nothing {
        fn owner(&self) -> Uid {
            Uid::current()
        }
        fn limit(&self) -> u8 {
            9
        }
        fn keep(&self, _count: usize) -> usize {
            0
        }
        fn run(&self, _requests: &[Request], _message: OwnedFd, _output: OwnedFd, _beside: Pid) -> i32 {
            0
        }
        fn reports(&self, _end: End, _output: &[u8], count: usize) -> Vec<Vec<u8>> {
            vec![b"Zcrashed\n".to_vec(); count]
        }
    }

    #[test]
    fn of_a_lost_child_the_ledger_is_asked() {
        let name = std::env::temp_dir().join(format!("ledger-lost-{}", std::process::id()));
        let _ = std::fs::remove_file(&name);
        let mut spawner = Spawner {
            delivery: &Nothing,
            ledger: Ledger::prepare(name.to_str().unwrap().as_bytes().to_vec()),
            null: None,
            files: None,
            parser: Parser::default(),
            arrived: Vec::new(),
            jobs: Vec::new(),
            id: 0,
            hosts: None,
            behind: VecDeque::new(),
            waiting: Vec::new(),
            more_requests: true,
            deaf: false,
        };
        let request = |slot: u8| Request {
            slot: slot.into(),
            path: vec![],
            sender: vec![],
            recipient: vec![],
            cut: false,
        };
        for (end, otherwise) in [(End::Crash(9), b"Zcrashed\n".as_slice()), (End::Exit(0), LOST)] {
            // Done, not done, without a row.
            let claim = spawner.ledger.claim(&[(1, Some([1; 24])), (1, Some([2; 24])), (1, None)]);
            claim.done(0);
            spawner.jobs.push(Job {
                requests: vec![request(0), request(1), request(2)],
                rows: claim.into_rows(),
                id: 1,
                line: None,
                host: Vec::new(),
                pid: Pid::from_raw(1),
                pipe: None,
                reports: b"\0Khalf".to_vec(),
                end: Some(end),
            });
            spawner.finish();
            let wanted = [(0, UNHEARD), (1, otherwise), (2, otherwise)];
            assert_eq!(
                std::mem::take(&mut spawner.waiting),
                wanted.map(|(slot, text): (u8, _)| report::encode(slot.into(), text)).concat()
            );
        }
        std::fs::remove_file(&name).unwrap();
    }
}
