//! The end of a message: its bounce is injected, then its files go.
//!
//! S5 to S2 is the removal of info; from there qmail-clean does S2 to S1. The lists have gone and been
//! synced before. A message on its short way comes here only when the sender must hear of a failure (or when
//! qmail-clean refused), and goes back there for its end.
#![forbid(unsafe_code)]

use crate::cleaner::Task;
use crate::desk::{
    Desk, SYSTEM_TROUBLE_SECONDS, Wake, file_stat, list_path, modified, now, remove, sync_parent,
};
use crate::proof::{Errand, Proof};
use crate::short;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;
use nix::unistd::{Whence, lseek};
use qmail::fd;
use qmail::queue::bounce::{Kind, Letter};
use qmail::queue::client::{Outcome, Pending};
use qmail::queue::info::{INFO_MAX, Info};
use qmail::queue::rewrite::Way;
use qmail::queue::{self, Number, bounce_path};
use qmail::requiretls::{Look, Wish};
use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

/// Bounces on their way at once. Each is a temporary file and a question to qmail-queued.
const BOUNCES_MAX: usize = 4;

/// Bytes copied in one turn.
const STEP: usize = 256 * 1024;

const CHUNK: usize = 64 * 1024;

/// A bounce being put together or handed in.
struct Bounce {
    number: Number,
    letter: Letter,
    file: OwnedFd,
    /// How much of the message is still to go with it, at most.
    left: u64,
    stage: Stage,
}

enum Stage {
    /// Copying bounce/N.
    Reports {
        from: OwnedFd,
        mess: OwnedFd,
    },
    /// Copying mess/N.
    Copy {
        mess: OwnedFd,
    },
    Sent(Pending),
    Over,
}

/// What became of a bounce.
enum Step {
    Going,
    Queued(u32),
    Trouble(&'static str),
}

const INJECTING: &str = "warning: trouble injecting bounce message, will try later";
const STARTING: &str = "warning: unable to start qmail-queue, will try later";

#[derive(Default)]
pub struct Done {
    bounces: Vec<Bounce>,
    /// Messages whose bounce waits for a place.
    line: VecDeque<Number>,
}

impl Done {
    /// Descriptors that answer for bounces handed in.
    pub fn fds(&self, desk: &Desk) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.bounces.iter().filter(|bounce| !desk.short.is_changing(bounce.number)).filter_map(|bounce| {
            match &bounce.stage {
                Stage::Sent(pending) => pending.fd(),
                _ => None,
            }
        })
    }

    pub fn wake(&self, desk: &Desk, proof: &Proof) -> Wake {
        let now = now();
        let each = self.bounces.iter().map(|bounce| match &bounce.stage {
            _ if desk.short.is_changing(bounce.number) => Wake::Never,
            Stage::Sent(pending) if pending.fd().is_some() => Wake::Never,
            Stage::Sent(_) => Wake::Soon, // all is said, and the child is about to end
            _ => Wake::Now,
        });
        each.min().unwrap_or(Wake::Never).min(self.wake_of_ends(desk, proof, now))
    }

    fn wake_of_ends(&self, desk: &Desk, proof: &Proof, now: u64) -> Wake {
        if desk.stopping || !desk.cleaner.has_room() {
            return Wake::Never;
        }
        if self.bounces.len() < BOUNCES_MAX && !self.line.is_empty() {
            return Wake::Now;
        }
        match desk.done.peek_due(now) {
            Some((_, number)) if desk.unproven.contains(&number) && !proof.is_idle() => Wake::Never,
            _ => Wake::at(desk.done.next_due(), now),
        }
    }

    /// Whether no bounce is in other hands: what is only half written can be dropped.
    pub fn is_quiet(&self) -> bool {
        !self.bounces.iter().any(|bounce| matches!(bounce.stage, Stage::Sent(_)))
    }

    pub fn step(&mut self, desk: &mut Desk, proof: &mut Proof) {
        let mut going = Vec::with_capacity(self.bounces.len());
        for mut bounce in std::mem::take(&mut self.bounces) {
            if desk.short.is_changing(bounce.number) {
                going.push(bounce); // its end depends on which way the message is
                continue;
            }
            match bounce.step(desk) {
                Step::Going => going.push(bounce),
                Step::Queued(qp) => {
                    desk.log.line(format!("bounce msg {} qp {qp}", bounce.number));
                    after_bounce(desk, bounce.number);
                }
                Step::Trouble(line) => {
                    desk.log.line(line);
                    later(desk, bounce.number);
                }
            }
        }
        self.bounces = going;
        if self.wake_of_ends(desk, proof, now()) != Wake::Now {
            return;
        }
        if self.bounces.len() < BOUNCES_MAX
            && let Some(number) = self.line.pop_front()
        {
            self.begin_bounce(desk, number);
        } else if let Some((due, number)) = desk.done.take_due(now()) {
            self.begin(desk, proof, due, number);
        }
    }

    fn begin(&mut self, desk: &mut Desk, proof: &mut Proof, due: u64, number: Number) {
        if desk.is_aside(number) || self.is_in_hand(number) {
            return;
        }
        if desk.short.contains(number) {
            self.begin_short(desk, number);
            return;
        }
        match outlook(desk, number) {
            None => later(desk, number),
            Some(Outlook::NotYet) => {}
            // Should the writer of todo/N take it back, info would be forgotten: the sweep looks again.
            Some(Outlook::Waiting) => {
                desk.orphans.insert(number, Instant::now());
            }
            Some(Outlook::End) => end(desk, number),
            // The bounce will carry the message back: to its own sender, which needs proof.
            Some(Outlook::Bounce) if desk.unproven.contains(&number) => {
                proof.begin(desk, number, due, Errand::Finish);
            }
            Some(Outlook::Bounce) => self.line.push_back(number),
        }
    }

    /// Whether its bounce is being put together or handed in, or waits for that.
    fn is_in_hand(&self, number: Number) -> bool {
        self.bounces.iter().any(|bounce| bounce.number == number) || self.line.contains(&number)
    }

    fn begin_short(&mut self, desk: &mut Desk, number: Number) {
        match desk.short.outlook(number) {
            short::Outlook::Bounce => self.line.push_back(number),
            short::Outlook::End => short::end(desk, number),
            short::Outlook::NotYet if desk.short.is_changing(number) => desk.done.insert(now() + 1, number),
            short::Outlook::NotYet => {}
        }
    }

    fn begin_bounce(&mut self, desk: &mut Desk, number: Number) {
        if desk.short.is_changing(number) {
            desk.done.insert(now() + 1, number);
            return;
        }
        match Bounce::begin(desk, number) {
            Ok(Some(bounce)) => self.bounces.push(bounce),
            Ok(None) => {
                desk.log.line(format!("triple bounce: discarding {}", bounce_path(number)));
                after_bounce(desk, number);
            }
            Err(line) => {
                desk.log.line(line);
                later(desk, number);
            }
        }
    }
}

/// What is left to do for a message that is on the list.
enum Outlook {
    /// There are recipients left, or nothing.
    NotYet,
    /// There is an envelope again.
    Waiting,
    Bounce,
    End,
}

/// None with trouble, which has been logged.
// model: E1
fn outlook(desk: &Desk, number: Number) -> Option<Outlook> {
    const LATER: &str = "; will try again later";
    for way in Way::BOTH {
        if desk.exists(&list_path(way, number), LATER)? {
            return Some(Outlook::NotYet);
        }
    }
    if !desk.exists(&queue::info(number), LATER)? {
        return Some(Outlook::NotYet);
    }
    if desk.exists(&queue::todo_path(number), LATER)? {
        return Some(Outlook::Waiting);
    }
    let name = bounce_path(number);
    match file_stat(&name) {
        Ok(None) => Some(Outlook::End),
        // Created, and then nothing could be written to it.
        Ok(Some(file)) if file.st_size == 0 && remove(&name).is_ok() => {
            desk.log.line(format!("warning: {name} was empty: removing it"));
            Some(Outlook::End)
        }
        Ok(Some(_)) => Some(Outlook::Bounce),
        Err(_) => {
            desk.log.line(format!("warning: unable to stat {name}"));
            None
        }
    }
}

fn later(desk: &mut Desk, number: Number) {
    desk.done.insert(now() + SYSTEM_TROUBLE_SECONDS, number);
}

/// The sender knows: bounce/N goes, durably, so that one found without info is never a leftover of ours,
/// and so that it is not there when `todo/N` is gone.
fn after_bounce(desk: &mut Desk, number: Number) {
    let name = bounce_path(number);
    // model: E4
    if remove(&name).is_err() {
        desk.log.line(format!("warning: unable to unlink {name}"));
        later(desk, number);
        return;
    }
    let _ = sync_parent(&name); // model: E5
    end(desk, number);
}

/// S5 to S2, and on to S1.
fn end(desk: &mut Desk, number: Number) {
    if desk.short.contains(number) {
        short::end(desk, number);
        return;
    }
    desk.unproven.remove(&number);
    desk.log.line(format!("end msg {number}"));
    let name = queue::info(number);
    // model: E6
    if remove(&name).is_err() {
        desk.log.line(format!("warning: unable to unlink {name}; will try again later"));
        later(desk, number);
        return;
    }
    desk.cleaner.ask(Task::Delivered(number)); // model: E7
}

impl Bounce {
    /// None for a triple bounce.
    fn begin(desk: &Desk, number: Number) -> Result<Option<Bounce>, &'static str> {
        let sender = match desk.short.get(number) {
            Some(message) => message.sender.clone(),
            None => {
                let info = fd::read_file(queue::info(number), INFO_MAX).ok().flatten().ok_or(INJECTING)?;
                Info::parse(&info).map_err(|_| INJECTING)?.sender
            }
        };
        if Kind::of(&sender) == Kind::Triple {
            return Ok(None);
        }
        let mess = fd::open_read(queue::mess(number)).map_err(|_| INJECTING)?;
        let look = look(&mess).map_err(|_| INJECTING)?;
        let requires_tls = look.wish() == Wish::Required;
        let left = if requires_tls { look.header() } else { u64::MAX };
        let Some(letter) = desk.controls.names.letter(&sender, now(), requires_tls) else { return Ok(None) };
        let stage = Stage::Reports { from: fd::open_read(bounce_path(number)).map_err(|_| INJECTING)?, mess };
        let file = temporary_file().map_err(|_| INJECTING)?;
        fd::write_all(&file, &letter.opening).map_err(|_| INJECTING)?;
        Ok(Some(Bounce { number, letter, file, left, stage }))
    }

    fn step(&mut self, desk: &Desk) -> Step {
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let next = match stage {
            Stage::Reports { from, mess } => match copy(&from, &self.file, &mut { u64::MAX }) {
                Ok(true) => fd::write_all(&self.file, &self.letter.break_line).map(|()| Stage::Copy { mess }),
                Ok(false) => Ok(Stage::Reports { from, mess }),
                Err(errno) => Err(errno),
            },
            Stage::Copy { mess } => match copy(&mess, &self.file, &mut self.left) {
                Ok(false) => Ok(Stage::Copy { mess }),
                Ok(true) => {
                    if lseek(&self.file, 0, Whence::SeekSet).is_err() {
                        return Step::Trouble(INJECTING);
                    }
                    // model: E2
                    match Pending::start(&desk.home, &self.file, &self.letter.envelope, &fd::IN) {
                        Ok(pending) => Ok(Stage::Sent(pending)),
                        Err(_) => return Step::Trouble(STARTING),
                    }
                }
                Err(errno) => Err(errno),
            },
            // model: E3
            Stage::Sent(mut pending) => match pending.try_finish() {
                None => Ok(Stage::Sent(pending)),
                Some(Outcome::Queued { qp }) => return Step::Queued(qp),
                Some(_) => Err(Errno::EIO),
            },
            Stage::Over => Err(Errno::EIO),
        };
        match next {
            Ok(stage) => {
                self.stage = stage;
                Step::Going
            }
            Err(_) => Step::Trouble(INJECTING),
        }
    }
}

/// A file without a name, in the queue's own directory: qmail-queued reads it through its descriptor.
fn temporary_file() -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match open("bounce", flags, Mode::from_bits_truncate(0o600)) {
        Ok(file) => Ok(file),
        // A file system without nameless files. The name is no number: nobody takes it for a bounce.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT) => {
            let name = format!("bounce/.{}", nix::unistd::getpid());
            remove(&name)?;
            let file = fd::create_new(&name, 0o600)?;
            remove(&name)?;
            Ok(file)
        }
        Err(errno) => Err(errno),
    }
}

/// Looks at the header of a message, and leaves it to be read from its beginning.
fn look(mess: &OwnedFd) -> Result<Look, Errno> {
    let (mut look, mut at, mut chunk) = (Look::default(), 0, vec![0u8; CHUNK]);
    while !look.is_over() {
        let n = pread(mess, &mut chunk, at)?;
        if n == 0 {
            break;
        }
        look.put(chunk.get(..n).unwrap_or_default());
        at += i64::try_from(n).map_err(|_| Errno::EIO)?;
    }
    Ok(look)
}

/// Copies up to one step's worth, of what is `left`; true at the end.
fn copy(from: &OwnedFd, to: &OwnedFd, left: &mut u64) -> Result<bool, Errno> {
    let mut chunk = vec![0u8; CHUNK];
    for _ in 0..STEP / CHUNK {
        let room = usize::try_from(*left).unwrap_or(CHUNK).min(CHUNK);
        let n = fd::read(from, chunk.get_mut(..room).unwrap_or_default())?;
        if n == 0 {
            return Ok(true);
        }
        fd::write_all(to, chunk.get(..n).unwrap_or_default())?;
        *left = left.saturating_sub(n as u64);
    }
    Ok(false)
}

/// What the start found in `info`: every message is scheduled by the times its lists carry.
pub fn schedule_found(desk: &mut Desk, number: Number) {
    let mut waiting = false;
    for way in Way::BOTH {
        let name = list_path(way, number);
        match file_stat(&name) {
            Ok(None) => {}
            Ok(Some(list)) => {
                waiting = true;
                desk.schedule(way).insert(modified(&list), number);
            }
            Err(_) => {
                waiting = true;
                desk.log.line(format!("warning: unable to stat {name}; will try again later"));
                desk.schedule(way).insert(now() + SYSTEM_TROUBLE_SECONDS, number);
            }
        }
    }
    if !waiting {
        desk.done.insert(now(), number);
    }
}
