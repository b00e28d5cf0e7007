//! qmail-send - deliver what is in the queue: schedule, hand to the spawners, bounce, remove
//!
//! called by  qmail-start (which becomes it)   runs as  qmails, in queue/
//! fd 0       the log, one write a line
//! fd 1, 2    commands to qmail-lspawn, its reports (first byte: how many deliveries it can run)
//! fd 3, 4    the same with qmail-rspawn
//! fd 5, 6    requests to qmail-clean, its answers
//! exit       0 after SIGTERM, when what was running has ended; 111 cannot start
//! jail       reads control/ and todo, mess; owns info, local, remote, bounce, lock/sendmutex; listens
//!            to lock/trigger; hands bounces to the queue like any other sender; no exec but bin/qmail-queue
//!            where its user owns the queue. With QMAILQUEUE rlimits only
//!
//! One loop that never waits for anything but poll, and in which every part does one small step a turn:
//!
//! | module | concern |
//! |---|---|
//! | `start` | descriptors, control files, lock, what the queue holds |
//! | `desk` | what all parts look at: due times, what is proven, what is kept aside |
//! | `todo` | from `todo/N` onward: to the short way, or into info and lists |
//! | `short` | messages delivered straight from `todo/N` |
//! | `channel`, `pass`, `slots` | passes over the lists, deliveries, reports |
//! | `bounces`, `done` | what failed, and the end of a message |
//! | `proof` | messages found at a start against their commit record |
//! | `cleaner`, `sweep` | qmail-clean, and what others left behind |
#![forbid(unsafe_code)]

mod bounces;
mod channel;
mod cleaner;
mod controls;
mod desk;
mod done;
mod log;
mod pass;
mod proof;
mod short;
mod slots;
mod start;
mod sweep;
mod todo;

use channel::Channel;
use cleaner::Task;
use desk::{Desk, Wake, now};
use log::Log;
use nix::fcntl::Flock;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use qmail::program::{Args, Program, Voice};
use qmail::queue::rewrite::Way;
use qmail::sys::signal;
use qmail::trouble::Trouble;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// The longest sleep: a day, lest a clock that was set be noticed even later.
const SLEEP_MAX_SECONDS: u64 = 86_400;

/// The shortest, where a child is about to end.
const SOON: Duration = Duration::from_millis(10);

/// How long an end waits for bounces that somebody else has in hand, and for files that cannot be written. A
/// bounce or a message sent again is a nuisance, a stop that takes a day is one too.
const STOP_SECONDS: u64 = 60;

fn main() -> ! {
    // Descriptor 2 is a pipe here: nothing may be written to it.
    Program::new("qmail-send", "qmail-send").voice(Voice::Log).run(send)
}

fn send(args: Args) -> Result<(), Trouble> {
    args.none()?;
    let log = Log;
    let mut manager = start::start(log).map_err(|why| {
        log.line(format!("alert: cannot start: {why}"));
        Trouble::temporary("")
    })?;
    while !manager.may_end() {
        let ready = manager.wait();
        manager.turn(&ready);
    }
    for way in Way::BOTH {
        channel::store_due_times(&mut manager.desk, way);
    }
    short::say_forgotten(&manager.desk);
    log.line("status: exiting");
    Ok(())
}

/// All of qmail-send.
struct Manager {
    desk: Desk,
    channels: [Channel; 2],
    proof: proof::Proof,
    done: done::Done,
    todo: todo::Todo,
    sweep: sweep::Sweep,
    /// It has been said that qmail-clean is gone.
    cleaner_lost: bool,
    /// When patience with others' work ends, once we are stopping and no delivery runs.
    stop_by: Option<u64>,
    /// Held for life: there is one qmail-send a queue.
    _mutex: Flock<OwnedFd>,
}

/// Whose descriptor woke us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Trigger,
    Reports(Way),
    Commands(Way),
    Cleaner,
    Bounce,
}

impl Manager {
    fn turn(&mut self, ready: &[Call]) {
        self.take_signals();
        let desk = &mut self.desk;
        for channel in &mut self.channels {
            channel.serve(desk, ready);
        }
        if ready.contains(&Call::Cleaner) {
            for (task, done) in desk.cleaner.answers(desk.log) {
                match task {
                    Task::Preprocessed(number) => {
                        self.todo.committed(desk, &mut self.channels, number, done);
                    }
                    Task::Ended(number) => short::ended(desk, number, done),
                    Task::Delivered(_) | Task::Finished(_) | Task::Leftover(_) => {}
                }
            }
        }
        if !desk.cleaner.is_alive() && !self.cleaner_lost {
            self.cleaner_lost = true;
            desk.log.line("alert: oh no! lost qmail-clean connection! dying...");
            desk.stopping = true;
        }
        if ready.contains(&Call::Trigger) {
            self.todo.pulled();
        }
        self.todo.step(desk, &mut self.channels);
        self.proof.step(desk);
        for channel in &mut self.channels {
            channel.step(desk, &mut self.proof);
        }
        self.done.step(desk, &mut self.proof);
        self.sweep.step(desk);
    }

    fn take_signals(&mut self) {
        if signal::take(Signal::SIGTERM) && !self.desk.stopping {
            self.desk.stopping = true;
            self.desk.say_status();
        }
        if signal::take(Signal::SIGALRM) {
            self.desk.local.hurry(now());
            self.desk.remote.hurry(now());
            self.desk.short.hurry();
        }
        if signal::take(Signal::SIGHUP) {
            self.desk.controls.reread(&self.desk.home, self.desk.log);
        }
        if self.desk.stopping && self.stop_by.is_none() && self.channels.iter().all(Channel::is_quiet) {
            self.stop_by = Some(now() + STOP_SECONDS);
        }
    }

    /// Stopping, and nothing of ours is in anybody's hands.
    fn may_end(&self) -> bool {
        let patient = self.stop_by.is_none_or(|end| now() < end);
        let cleaner = &self.desk.cleaner;
        self.desk.stopping
            && self.channels.iter().all(Channel::is_quiet)
            && (!patient
                || (self.done.is_quiet()
                    && cleaner.is_idle()
                    && (!cleaner.is_alive() || self.desk.short.is_quiet())))
    }

    /// Sleeps until a descriptor, a signal or a due time calls; who called.
    fn wait(&self) -> Vec<Call> {
        let mut calls: Vec<(Call, BorrowedFd<'_>, PollFlags)> = Vec::new();
        let mut listen = |call, fd: Option<_>, events| calls.extend(fd.map(|fd| (call, fd, events)));
        listen(Call::Trigger, self.todo.trigger_fd(&self.desk), PollFlags::POLLIN);
        for channel in &self.channels {
            listen(Call::Reports(channel.way()), channel.reports_fd(), PollFlags::POLLIN);
            listen(Call::Commands(channel.way()), channel.commands_fd(), PollFlags::POLLOUT);
        }
        listen(Call::Cleaner, self.desk.cleaner.fd(), PollFlags::POLLIN);
        for fd in self.done.fds(&self.desk) {
            listen(Call::Bounce, Some(fd), PollFlags::POLLIN);
        }
        let mut fds: Vec<PollFd<'_>> =
            calls.iter().map(|(_, fd, events)| PollFd::new(*fd, *events)).collect();
        let Err(errno) = signal::wait(&mut fds, Some(self.sleep())) else {
            let ready = calls.iter().zip(&fds).filter(|(_, fd)| fd.any().unwrap_or(true));
            return ready.map(|((call, _, _), _)| *call).collect();
        };
        if errno != nix::errno::Errno::EINTR {
            self.desk.log.line("warning: trouble in select");
        }
        Vec::new()
    }

    fn sleep(&self) -> Duration {
        let desk = &self.desk;
        let wake = [
            self.todo.wake(desk),
            self.proof.wake(),
            self.done.wake(desk, &self.proof),
            self.sweep.wake(desk),
            if desk.stopping { Wake::At(now() + 1) } else { Wake::Never }, // patience has an end
        ]
        .into_iter()
        .chain(self.channels.iter().map(|channel| channel.wake(desk, &self.proof)))
        .min()
        .unwrap_or(Wake::Never);
        match wake {
            Wake::Now => Duration::ZERO,
            Wake::Soon => SOON,
            Wake::At(due) => Duration::from_secs(due.saturating_sub(now()).min(SLEEP_MAX_SECONDS)),
            Wake::Never => Duration::from_secs(SLEEP_MAX_SECONDS),
        }
    }
}
