//! Sweeping: what writers that died left in mess, and what damage left in our own directories. (intd is
//! qmail-clean's: in a system home we may not list it.)
//!
//! Nothing goes that could still be somebody's: only what is 36 hours old by the clock of
//! `queue::age`, has neither envelope nor info, and - qmail-clean looks - is locked by nobody. A list or
//! bounce without info but beside its message was torn from it by damage: recipients may be waiting in it,
//! so it is kept, with the message, and said.
#![forbid(unsafe_code)]

use crate::cleaner::Task;
use crate::desk::{Desk, Wake, file_stat, is_message_gone, list_path, now, remove};
use crate::start::take_up;
use crate::todo::{is_waiting, remove_traces};
use nix::dir::{Dir, OwningIter};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use qmail::queue::age::OLD_SECONDS;
use qmail::queue::rewrite::Way;
use qmail::queue::{self, Number, SPLIT};
use std::time::Duration;

/// Seconds between two sweeps.
const INTERVAL_SECONDS: u64 = 76_431;

/// As long as any leftover is left alone.
const ORPHAN_AGE: Duration = Duration::from_secs(OLD_SECONDS as u64);

/// What a directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mess,
    /// Recipient lists and bounces.
    Ours,
}

pub struct Sweep {
    /// The directories still to look at, last one first.
    rest: Vec<(Kind, String)>,
    current: Option<(Kind, String, OwningIter)>,
    next: u64,
}

impl Sweep {
    pub fn new() -> Sweep {
        Sweep { rest: Vec::new(), current: None, next: 0 }
    }

    pub fn wake(&self, desk: &Desk) -> Wake {
        if desk.stopping {
            Wake::Never
        } else if self.current.is_some() || !self.rest.is_empty() {
            Wake::now_if(desk.cleaner.has_room())
        } else {
            Wake::at(Some(self.next), now())
        }
    }

    /// One directory entry.
    pub fn step(&mut self, desk: &mut Desk) {
        if self.wake(desk) != Wake::Now {
            return;
        }
        if let Some((kind, directory, entries)) = &mut self.current {
            match entries.next() {
                Some(Ok(entry)) => {
                    if let Some(number) = queue::number(entry.file_name().to_bytes()) {
                        look(desk, *kind, &format!("{directory}/{number}"), number);
                    }
                }
                Some(Err(_)) | None => self.current = None,
            }
        } else if let Some((kind, directory)) = self.rest.pop() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            self.current = Dir::open(directory.as_str(), flags, Mode::empty())
                .ok()
                .map(|open| (kind, directory, open.into_iter()));
        } else {
            self.next = now() + INTERVAL_SECONDS;
            look_at_orphans(desk);
            self.rest.push((Kind::Ours, "bounce".to_string()));
            for (kind, name) in [(Kind::Ours, "remote"), (Kind::Ours, "local"), (Kind::Mess, "mess")] {
                self.rest.extend((0..SPLIT).rev().map(|s| (kind, format!("{name}/{s}"))));
            }
        }
    }
}

/// info without a message goes when we have missed the message for 36 hours; a message that came back is
/// taken up.
// model: G3
fn look_at_orphans(desk: &mut Desk) {
    for (number, since) in std::mem::take(&mut desk.orphans) {
        if matches!(file_stat(&queue::info(number)), Ok(None)) {
            continue;
        }
        if !matches!(is_waiting(number), Ok(false)) {
            desk.orphans.insert(number, since); // preprocessing takes it, or a writer takes todo/N back
            continue;
        }
        if matches!(file_stat(&queue::mess(number)), Ok(Some(_))) {
            take_up(desk, number);
        } else if since.elapsed() > ORPHAN_AGE && is_message_gone(number) && remove_traces(number).is_ok() {
            desk.log.line(format!("warning: removed {}: there is no message for it", queue::info(number)));
        } else {
            desk.orphans.insert(number, since);
        }
    }
}

/// Decides about one file. Trouble looking at anything means: leave it.
fn look(desk: &mut Desk, kind: Kind, name: &str, number: Number) {
    let Ok(Some(file)) = file_stat(name) else { return };
    if !desk.clock.is_old(&file) || desk.is_aside(number) || desk.cleaner.concerns(number) {
        return;
    }
    let Ok(beside) = Beside::look(number) else { return };
    if beside.todo || beside.info {
        return; // a message of the queue
    }
    match (kind, beside) {
        (Kind::Mess | Kind::Ours, Beside { mess: true, ours: Some(torn), .. }) => {
            desk.put_aside(
                number,
                &format!("{torn} and {} are there without {}", queue::mess(number), queue::info(number)),
            );
        }
        (Kind::Mess, _) => desk.cleaner.ask(Task::Leftover(number)), // model: G1
        // model: G2
        (Kind::Ours, Beside { mess: false, .. }) if remove(name).is_ok() => {
            desk.log.line(format!("warning: removed {name}: there is no message for it"));
        }
        _ => {}
    }
}

/// The other files of a number.
struct Beside {
    mess: bool,
    todo: bool,
    info: bool,
    /// A list or a bounce.
    ours: Option<String>,
}

impl Beside {
    fn look(number: Number) -> Result<Beside, nix::errno::Errno> {
        let exists = |name: &str| Ok(file_stat(name)?.is_some());
        let mut ours = None;
        for name in
            [list_path(Way::Local, number), list_path(Way::Remote, number), queue::bounce_path(number)]
        {
            if exists(&name)? {
                ours = Some(name);
                break;
            }
        }
        Ok(Beside {
            mess: exists(&queue::mess(number))?,
            todo: exists(&queue::todo_path(number))?,
            info: exists(&queue::info(number))?,
            ours,
        })
    }
}
