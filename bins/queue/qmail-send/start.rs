//! Start-up: descriptors, control files, the lock, the spawners' first byte, and what the queue holds.
#![forbid(unsafe_code)]

use crate::Manager;
use crate::channel::{Channel, Limits};
use crate::cleaner::Cleaner;
use crate::controls::{self, Controls};
use crate::desk::{Desk, Load, SLEEP_SECONDS, file_stat, is_message_gone, remove};
use crate::done::{Done, schedule_found};
use crate::log::Log;
use crate::proof::Proof;
use crate::short::Short;
use crate::sweep::Sweep;
use crate::todo::{Todo, is_waiting};
use jail::{Jail, programs};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, umask};
use qmail::fd;
use qmail::home::Home;
use qmail::queue::age::Clock;
use qmail::queue::client::{Reach, reach};
use qmail::queue::rewrite::Way;
use qmail::queue::schedule::Schedule;
use qmail::queue::{self, Number, SPLIT};
use qmail::spawn::slot::WIDE;
use qmail::spawn::{self, LIMIT_TOGETHER, Width};
use qmail::sys::signal;
use qmail::trouble::{Trouble, wording};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Everything up to the loop. The error is the end of the line `alert: cannot start: …`.
pub fn start(log: Log) -> Result<Manager, &'static str> {
    // First of all: what is not open here would be opened as something else.
    let descriptors = descriptors();
    let home = Home::find().map_err(|trouble| {
        controls::explain(log, &trouble);
        "unable to switch to home directory"
    })?;
    let controls = Controls::read(&home).map_err(|trouble| {
        controls::explain(log, &trouble);
        "unable to read controls"
    })?;
    nix::unistd::chdir(fd::path(&home.path("queue"))).map_err(|errno| {
        controls::explain(log, &Trouble::unable("switch to", "queue", errno));
        "unable to switch to queue directory"
    })?;
    signal::ignore(&[Signal::SIGPIPE]);
    signal::catch(&[Signal::SIGTERM, Signal::SIGALRM, Signal::SIGHUP]);
    umask(Mode::from_bits_truncate(0o077));
    close_jail(&home).map_err(|trouble| {
        controls::explain(log, &trouble);
        "unable to close the jail"
    })?;
    let mutex = fd::open_write("lock/sendmutex").map_err(|errno| {
        controls::explain(log, &Trouble::unable("open", "queue/lock/sendmutex", errno));
        "unable to open mutex"
    })?;
    let mutex =
        Flock::lock(mutex, FlockArg::LockExclusiveNonblock).map_err(|_| "qmail-send is already running")?;

    let descriptors = descriptors.ok_or("hath the daemon spawn no fire?")?;
    let limits = |read: &OwnedFd, wanted: u64, together: bool, announced: Width| {
        let limit = first_byte(read)?;
        let width = if limit == LIMIT_TOGETHER { width(read, announced) } else { Width::Narrow };
        Some(Limits::of(wanted, limit, together, width))
    };
    let [to_local, from_local, to_remote, from_remote, to_clean, from_clean] = descriptors;
    let [wanted_local, wanted_remote] = controls.concurrency;
    let local =
        limits(&from_local, wanted_local, false, Width::Narrow).ok_or("hath the daemon spawn no fire?")?;
    let remote =
        limits(&from_remote, wanted_remote, spawn::is_together_announced(), spawn::announced_width())
            .ok_or("hath the daemon spawn no fire?")?;
    // A spawner that is slow to read must not stop us; these pipe ends are ours alone.
    for pipe in [&to_local, &to_remote] {
        let _ = fd::set_nonblocking(pipe, true);
    }

    let mut desk = Desk {
        log,
        home,
        controls,
        cleaner: Cleaner::new(to_clean, from_clean),
        clock: Clock::start(),
        local: Schedule::default(),
        remote: Schedule::default(),
        done: Schedule::default(),
        short: Short::default(),
        load: [Load { used: 0, max: local.connections }, Load { used: 0, max: remote.connections }],
        deliveries: 0,
        unproven: BTreeSet::new(),
        aside: BTreeMap::new(),
        orphans: BTreeMap::new(),
        stopping: false,
    };
    can_be_read()?;
    wait_for_cleaner(&mut desk).ok_or("lost qmail-clean connection")?;
    make_durable(&desk); // model: A1
    find_messages(&mut desk); // model: A2
    desk.say_status();
    let jobs = local.connections + remote.connections;
    Ok(Manager {
        desk,
        channels: [
            Channel::new(Way::Local, to_local, from_local, local, jobs),
            Channel::new(Way::Remote, to_remote, from_remote, remote, jobs),
        ],
        proof: Proof::default(),
        done: Done::default(),
        todo: Todo::new(),
        sweep: Sweep::new(),
        cleaner_lost: false,
        stop_by: None,
        _mutex: mutex,
    })
}

/// By what handing in a bounce may come to.
fn close_jail(home: &Home) -> Result<(), Trouble> {
    match reach(home) {
        Reach::Foreign => Jail::of(&programs::QMAIL_SEND_FILTER).close(),
        Reach::Socket => Jail::of(&programs::QMAIL_SEND).home(home).close(),
        Reach::Own => {
            let queue = jail::home_of(&home.path("bin/qmail-queue"));
            Jail::of(&programs::QMAIL_SEND_OWN).home(home).place(programs::PROGRAMS, queue).close()
        }
    }
}

/// Descriptors 1 to 6. None when one of them is not open. They are nobody else's: through them a program of
/// QMAILQUEUE could order deliveries and removals.
fn descriptors() -> Option<[OwnedFd; 6]> {
    let all: Vec<OwnedFd> = (1..=6).map_while(|number| fd::take(number).ok()).collect();
    for pipe in &all {
        fd::close_on_exec(pipe).ok()?;
    }
    all.try_into().ok()
}

/// What a spawner says first: how many deliveries it can run.
fn first_byte(from: &OwnedFd) -> Option<u8> {
    let mut byte = [0u8; 1];
    match fd::read(from, &mut byte) {
        Ok(1) => Some(byte[0]),
        _ => None,
    }
}

/// Whether the spawner, to which it was announced, says that slots are wide: in one piece with its first byte. One
/// that says nothing more knows of no other than narrow ones.
fn width(from: &OwnedFd, announced: Width) -> Width {
    let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
    if announced == Width::Narrow || !poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        return Width::Narrow;
    }
    let mut word = [0u8; WIDE.len()];
    match fd::read(from, &mut word) {
        Ok(length) if word.get(..length) == Some(WIDE) => Width::Wide,
        _ => Width::Narrow,
    }
}

/// Messages looked at in each directory of mess before anything is done.
const SAMPLE: usize = 2;

/// Whether this queue is what we take it for: not being mended, and not moved or restored so that names mean
/// something else. A single message of which that is true is seen when it is used.
fn can_be_read() -> Result<(), &'static str> {
    if !matches!(file_stat(queue::FIXING), Ok(None)) {
        return Err("the queue is being mended: qmail-fix -r must come to its end");
    }
    for split in numbers("mess").unwrap_or_default().into_iter().filter(|split| *split >= SPLIT) {
        // Empty ones are in nobody's way; one that cannot be read may hold messages.
        match numbers(&format!("mess/{split}")) {
            Ok(numbers) if numbers.is_empty() => {}
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            _ => return Err("the queue has more directories than ours: run qmail-fix -r"),
        }
    }
    if is_todo_split() {
        return Err("todo is split: let the old qmail-send empty it, and remove its directories");
    }
    let (mut looked, mut wrong) = (0u64, 0u64);
    for split in 0..SPLIT {
        let Ok(mut open) = Dir::open(format!("mess/{split}").as_str(), DIRECTORY, Mode::empty()) else {
            continue;
        };
        let numbers =
            open.iter().map_while(Result::ok).filter_map(|e| queue::number(e.file_name().to_bytes()));
        for number in numbers.take(SAMPLE) {
            if number % SPLIT != split {
                return Err("messages are in other directories than ours: run qmail-fix -r");
            }
            if let Ok(Some(mess)) = file_stat(&queue::mess(number)) {
                looked += 1;
                wrong += u64::from(mess.st_ino != number);
            }
        }
    }
    if wrong * 2 > looked {
        return Err("the queue was moved or restored, and its numbers are no inodes: run qmail-fix -r");
    }
    Ok(())
}

/// Whether todo has directories, as the big-todo patch makes them. The messages in them would not be found. (A
/// directory in the place of a message's envelope is damage of that message: its mess is there.)
fn is_todo_split() -> bool {
    let Ok(mut open) = Dir::open("todo", DIRECTORY, Mode::empty()) else { return false };
    open.iter().map_while(Result::ok).any(|entry| {
        let is_directory = || match entry.file_type() {
            Some(known) => known == Type::Directory,
            // Not every file system says it.
            None => queue::number(entry.file_name().to_bytes()).is_some_and(|number| {
                let found = file_stat(&queue::todo_path(number));
                matches!(found, Ok(Some(found)) if found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits())
            }),
        };
        queue::number(entry.file_name().to_bytes())
            .is_some_and(|number| is_directory() && matches!(file_stat(&queue::mess(number)), Ok(None)))
    })
}

/// qmail-clean answers when no other is left that works for a qmail-send before us: until then numbers may
/// still lose their files. What it is asked is nothing, which every qmail-clean refuses. None when it is gone.
fn wait_for_cleaner(desk: &mut Desk) -> Option<()> {
    desk.cleaner.greet()?;
    loop {
        let mut fds = [PollFd::new(desk.cleaner.fd()?, PollFlags::POLLIN)];
        if signal::wait(&mut fds, Some(Duration::from_secs(SLEEP_SECONDS))).is_ok_and(|ready| ready > 0) {
            return desk.cleaner.greeted();
        }
        if signal::take(Signal::SIGTERM) {
            desk.stopping = true;
            return Some(());
        }
        desk.log.line("status: waiting for qmail-clean");
    }
}

/// An earlier life may have removed files of a message, and ended before it made that durable. Those that
/// came back after the next power cut would be beside a message that has no more use for them.
fn make_durable(desk: &Desk) {
    let lists = ["info", "local", "remote"].into_iter();
    let split = lists.flat_map(|name| (0..SPLIT).map(move |s| format!("{name}/{s}")));
    for name in split.chain(["bounce".to_string()]) {
        if let Err(errno) = fd::sync_directory(&name) {
            desk.log.line(format!("warning: trouble fsyncing {name}: {}", wording(errno)));
        }
    }
}

/// Notes every message of the queue: two numbers for each, nothing is read of it but names and times.
fn find_messages(desk: &mut Desk) {
    for_each_number(desk, "todo", |desk, number| {
        desk.unproven.insert(number);
    });
    for split in 0..SPLIT {
        for_each_number(desk, &format!("info/{split}"), find_preprocessed);
    }
    remove_marks(desk);
}

fn find_preprocessed(desk: &mut Desk, number: Number) {
    match is_waiting(number) {
        Ok(true) => {
            // S4: info is what a broken preprocessing left. Its writer may still take todo/N back, though.
            desk.orphans.insert(number, Instant::now());
            return;
        }
        Ok(false) => {}
        Err(_) => desk
            .log
            .line(format!("warning: unable to stat {}; will try again later", queue::todo_path(number))),
    }
    if is_message_gone(number) {
        desk.log.line(format!("warning: no message beside {}: left alone", queue::info(number)));
        desk.orphans.insert(number, Instant::now());
    } else {
        take_up(desk, number);
    }
}

/// A message of an earlier life of ours.
pub fn take_up(desk: &mut Desk, number: Number) {
    desk.unproven.insert(number);
    schedule_found(desk, number);
}

/// Calls `each` for every message number in a directory. What is not found here would wait for the next
/// start, so there is no going on without a directory.
fn for_each_number(desk: &mut Desk, directory: &str, each: fn(&mut Desk, Number)) {
    let numbers = loop {
        match numbers(directory) {
            Ok(numbers) => break numbers,
            Err(_) => {
                desk.log.line(format!("alert: unable to opendir {directory}, sleeping..."));
                let _ = signal::wait(&mut [], Some(Duration::from_secs(SLEEP_SECONDS)));
                if signal::take(Signal::SIGTERM) {
                    desk.stopping = true;
                }
                if desk.stopping {
                    return;
                }
            }
        }
    };
    for number in numbers {
        each(desk, number);
    }
}

fn numbers(directory: &str) -> Result<Vec<Number>, Errno> {
    let mut numbers = Vec::new();
    for entry in Dir::open(directory, DIRECTORY, Mode::empty())?.iter() {
        numbers.extend(queue::number(entry?.file_name().to_bytes()));
    }
    Ok(numbers)
}

/// Marks of the last life (`bounce/N.aside`): every start judges anew.
fn remove_marks(desk: &Desk) {
    let Ok(mut open) = Dir::open("bounce", DIRECTORY, Mode::empty()) else { return };
    let marks: Vec<String> = open
        .iter()
        .map_while(Result::ok) // an error may come again for ever
        .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_string))
        .filter(|name| name.strip_suffix(".aside").is_some_and(|n| queue::number(n.as_bytes()).is_some()))
        .collect();
    for mark in marks {
        let name = format!("bounce/{mark}");
        if remove(&name).is_err() {
            desk.log.line(format!("warning: unable to unlink {name}"));
        }
    }
}
