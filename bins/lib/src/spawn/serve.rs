//! serve - the loop of both spawners
//!
//! Watches the requests, what comes of every delivery, and the reports' reader. Beside each delivery, or those
//! that may travel together and were asked for together, stands a child of ours: it forks the one that becomes
//! the delivery program, waits until that has exited and nobody holds its output pipe any more, notes successes in
//! the ledger, hands up the reports and ends. Killed is one process, and the others finish what they have.
#![forbid(unsafe_code)]

use super::ledger::{Claim, Claimed, Earlier, Key, Ledger, Message};
use super::request::{Parser, Request};
use super::{TOGETHER_BYTES, TOGETHER_MAX, report};
use crate::sys::memory::die_with_parent;
use crate::sys::process::{self, End, fork_child};
use crate::sys::signal;
use crate::trouble::Trouble;
use crate::{exits, fd};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::unistd::{Pid, Uid};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Reports that wait for a slow reader: beyond this no new requests are read. What runs may still add
/// one report a slot.
const WAITING_MAX: usize = 256 * 1024;
/// One read of a child's output.
const READ_SIZE: usize = 4096;
/// What is said of a delivery that an earlier spawner began.
const BEFORE: &[u8] = b"Kdelivered before a restart\n";
/// One read of requests: all that a pipe holds, so that what was written together is read together.
const REQUESTS_SIZE: usize = 64 * 1024;

/// Before reports are written again, behind a trouble of the system (a pipe may want memory).
const PAUSE: Duration = Duration::from_millis(200);

/// What makes a spawner local or remote.
pub trait Delivery {
    /// Who must own a message file.
    fn owner(&self) -> Uid;
    /// How many deliveries may be asked for at once: the first byte.
    fn limit(&self) -> u8;
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
    /// One report, letter and text, for each of `count` requests that were run together.
    fn reports(&self, end: End, output: &[u8], count: usize) -> Vec<Vec<u8>>;
}

/// A child at work beside a delivery, for one request or several that travel together.
struct Job {
    requests: Vec<Request>,
    /// What the ledger has for each.
    rows: Vec<Option<Claimed>>,
    pid: Pid,
    /// None once it came to its end.
    pipe: Option<OwnedFd>,
    /// Whole reports, encoded.
    reports: Vec<u8>,
    end: Option<End>,
}

impl Job {
    /// Names the job: its process id may be used again before the pipe came to its end.
    fn slot(&self) -> u8 {
        self.requests.first().map_or(u8::MAX, |r| r.slot)
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
    /// The reports of the job of this slot.
    Job(u8),
    Requests,
}

struct Spawner<'a, D> {
    delivery: &'a D,
    ledger: Ledger,
    /// What a child gets for 0 and 1.
    null: Option<OwnedFd>,
    parser: Parser,
    /// Requests not begun: those that are still coming may belong to them.
    arrived: Vec<Request>,
    jobs: Vec<Job>,
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
        parser: Parser::default(),
        arrived: Vec::new(),
        jobs: Vec::new(),
        waiting: vec![delivery.limit()],
        more_requests: true,
        deaf: false,
    };
    while spawner.more_requests || !spawner.jobs.is_empty() || !(spawner.deaf || spawner.waiting.is_empty()) {
        spawner.step().map_err(|e| Trouble::temporary("unable to wait for events").because(e))?;
    }
    Ok(())
}

impl<D: Delivery> Spawner<'_, D> {
    /// Waits for something to happen and deals with it.
    fn step(&mut self) -> Result<(), Errno> {
        let ready = self.wait()?;
        // The reader first: when qmail-send has died, its last requests are not begun.
        for (source, events) in &ready {
            match source {
                Source::Reader => self.send(*events),
                Source::Job(slot) => self.collect(*slot),
                Source::Requests => {}
            }
        }
        self.reap();
        self.finish();
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
                watched.push(Source::Job(job.slot()));
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
    fn collect(&mut self, slot: u8) {
        let Some(job) = self.jobs.iter_mut().find(|j| j.slot() == slot) else { return };
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
            let (None, Some(end)) = (&job.pipe, job.end) else {
                at += 1;
                continue;
            };
            let job = self.jobs.swap_remove(at);
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

    fn report(&mut self, slot: u8, report: &[u8]) {
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
        self.ledger.give_up();
    }

    fn take_requests(&mut self) {
        let mut chunk = vec![0u8; REQUESTS_SIZE];
        match nix::unistd::read(fd::IN, &mut chunk) {
            Err(Errno::EINTR | Errno::EAGAIN) => return,
            Ok(0) | Err(_) => {
                self.more_requests = false;
                self.start_arrived();
                self.ledger.give_up();
                return;
            }
            Ok(n) => self.arrived.extend(self.parser.feed(chunk.get(..n).unwrap_or_default())),
        }
        // Half a request: its writer is at work, and what comes may travel with what is here.
        if self.parser.is_within()
            && self.delivery.together()
            && self.arrived.len() < usize::from(self.delivery.limit())
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
            let busy = |slot| self.jobs.iter().flat_map(|j| &j.requests).chain(&row).any(|r| r.slot == slot);
            if let Err(refusal) = request.check(self.delivery.limit(), busy) {
                self.report(request.slot, refusal);
                continue;
            }
            if !(self.delivery.together() && joins(&row, &request)) {
                self.start_row(std::mem::take(&mut row));
            }
            row.push(request);
        }
        self.start_row(row);
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
        let slots: Vec<u8> = wanted.iter().map(|wanted| wanted.request.slot).collect();
        if let Err(refusal) = message.and_then(|message| self.start(wanted, message)) {
            slots.into_iter().for_each(|slot| self.report(slot, refusal));
        }
    }

    /// Starts one child for requests of one message.
    fn start(&mut self, wanted: Vec<Wanted>, message: OwnedFd) -> Result<(), &'static [u8]> {
        if wanted.is_empty() {
            return Ok(());
        }
        let (read, write) = fd::pipe().map_err(|_| NO_PIPE)?;
        let deliveries: Vec<(u64, Option<Key>)> =
            wanted.iter().map(|wanted| (wanted.number, wanted.key)).collect();
        // Before the fork: there is no moment at which it runs and nobody can know.
        let claim = self.ledger.claim(&deliveries);
        let pid = fork_child(|| {
            self.let_go();
            process::close(read.as_raw_fd());
            beside(self.delivery, &self.ledger, &wanted, &claim, message, &write)
        })
        .map_err(|_| NO_FORK)?;
        let requests = wanted.into_iter().map(|wanted| wanted.request).collect();
        let rows = claim.into_rows();
        self.jobs.push(Job { requests, rows, pid, pipe: Some(read), reports: Vec::new(), end: None });
        Ok(())
    }

    /// In a child: nothing of the spawner's may stay open there when the spawner is gone. 0 and 1 stay taken: no
    /// program may find there what is opened later.
    fn let_go(&self) {
        let pipes = self.jobs.iter().filter_map(|job| job.pipe.as_ref());
        pipes.chain(self.ledger.life()).map(AsRawFd::as_raw_fd).for_each(process::close);
        fd::give_up_standard_for(self.null.as_ref());
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

/// In the child beside a delivery: has it made, notes what succeeded, reports.
fn beside<D: Delivery>(
    delivery: &D,
    ledger: &Ledger,
    wanted: &[Wanted],
    claim: &Claim,
    message: OwnedFd,
    reports: &OwnedFd,
) -> i32 {
    let before = |one: &Wanted| one.earlier.running.iter().any(|row| ledger.wait_for(row));
    let done: Vec<bool> = wanted.iter().map(before).collect();
    let rest: Vec<Request> =
        wanted.iter().zip(&done).filter(|(_, done)| !**done).map(|(one, _)| one.request.clone()).collect();
    let mut verdicts = if rest.is_empty() {
        Vec::new()
    } else {
        deliver(delivery, &rest, message).unwrap_or_else(|refusal| vec![refusal.to_vec(); rest.len()])
    }
    .into_iter();
    let mut text = Vec::new();
    for (index, (one, done)) in wanted.iter().zip(done).enumerate() {
        let verdict = if done { Some(BEFORE.to_vec()) } else { verdicts.next() };
        let verdict = verdict.unwrap_or_else(|| NO_FORK.to_vec());
        if verdict.first() == Some(&b'K') {
            claim.done(index);
        }
        text.extend_from_slice(&report::encode(one.request.slot, &verdict));
    }
    // If the spawner is gone, the ledger knows.
    let _ = fd::write_all(reports, &text);
    exits::SUCCESS
}

/// From now on this process ends with its parent: nobody would hear what comes of a delivery, and it would be made
/// again. False when the parent has ended before.
pub fn stay_with(parent: Pid) -> bool {
    die_with_parent(Signal::SIGKILL as i32);
    Pid::parent() == parent
}

/// Runs the delivery program to its end; a report for each request.
fn deliver<D: Delivery>(
    delivery: &D,
    requests: &[Request],
    message: OwnedFd,
) -> Result<Vec<Vec<u8>>, &'static [u8]> {
    let (read, write) = fd::pipe().map_err(|_| NO_PIPE)?;
    let ours = Pid::this();
    let pid = fork_child(|| {
        if stay_with(ours) { delivery.run(requests, message, write, ours) } else { exits::TEMPORARY }
    })
    .map_err(|_| NO_FORK)?;
    let keep = delivery.keep(requests.len());
    let (mut output, mut chunk) = (Vec::new(), [0u8; READ_SIZE]);
    while let Ok(n @ 1..) = fd::read(&read, &mut chunk) {
        let room = keep.saturating_sub(output.len());
        output.extend_from_slice(chunk.get(..n.min(room)).unwrap_or_default());
    }
    let end = process::wait(pid).map_err(|_| NO_FORK)?;
    Ok(delivery.reports(end, &output, requests.len()))
}

/// What is said of a delivery that succeeded, when the process beside it was lost before it could say so.
const UNHEARD: &[u8] = b"Kdelivered, and the report was lost\n";
const LOST: &[u8] = b"Zqmail-spawn unable to read report. (#4.3.0)\n";
const NO_PIPE: &[u8] = b"Zqmail-spawn unable to create pipe. (#4.3.0)\n";
const NO_FORK: &[u8] = b"Zqmail-spawn unable to fork. (#4.3.0)\n";

/// Whether these are the reports of a child beside these requests, all and whole.
fn is_whole(mut reports: &[u8], requests: &[Request]) -> bool {
    for request in requests {
        let Some((slot, text)) = reports.split_first() else { return false };
        let Some(end) = text.iter().position(|byte| *byte == 0) else { return false };
        if *slot != request.slot {
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
        let request = |slot| Request { slot, path: vec![], sender: vec![], recipient: vec![], cut: false };
        let requests = [request(0), request(7)];
        let whole = [report::encode(0, b"Kdone\n"), report::encode(7, b"Z")].concat();
        assert!(is_whole(&whole, &requests));
        for length in 0..whole.len() {
            assert!(!is_whole(whole.get(..length).unwrap(), &requests), "cut to {length}");
        }
        assert!(!is_whole(&[whole.as_slice(), b"x"].concat(), &requests));
        assert!(!is_whole(&whole, &[request(0), request(8)]));
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
            parser: Parser::default(),
            arrived: Vec::new(),
            jobs: Vec::new(),
            waiting: Vec::new(),
            more_requests: true,
            deaf: false,
        };
        let request = |slot| Request { slot, path: vec![], sender: vec![], recipient: vec![], cut: false };
        for (end, otherwise) in [(End::Crash(9), b"Zcrashed\n".as_slice()), (End::Exit(0), LOST)] {
            // Done, not done, without a row.
            let claim = spawner.ledger.claim(&[(1, Some([1; 24])), (1, Some([2; 24])), (1, None)]);
            claim.done(0);
            spawner.jobs.push(Job {
                requests: vec![request(0), request(1), request(2)],
                rows: claim.into_rows(),
                pid: Pid::from_raw(1),
                pipe: None,
                reports: b"\0Khalf".to_vec(),
                end: Some(end),
            });
            spawner.finish();
            let wanted = [(0, UNHEARD), (1, otherwise), (2, otherwise)];
            assert_eq!(
                std::mem::take(&mut spawner.waiting),
                wanted.map(|(slot, text)| report::encode(slot, text)).concat()
            );
        }
        std::fs::remove_file(&name).unwrap();
    }
}
