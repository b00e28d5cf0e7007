//! Proof that files found at a start belong together: the message against its commit record, the
//! recipient lists against their hashes. Done when a message is first used, in small steps, so that
//! neither the start nor the loop waits for a long queue or a long message.
#![forbid(unsafe_code)]

use crate::desk::{Desk, SYSTEM_TROUBLE_SECONDS, Wake, list_path, now};
use nix::errno::Errno;
use nix::sys::stat::fstat;
use qmail::fd;
use qmail::queue::info::{Damage, INFO_MAX, Info};
use qmail::queue::list::{ListMeter, Shape, Tail};
use qmail::queue::record::{Hash, Meter};
use qmail::queue::rewrite::Way;
use qmail::queue::{self, Number};
use std::os::fd::OwnedFd;

/// Bytes hashed in one turn: about two milliseconds of work.
const STEP: usize = 1024 * 1024;

const CHUNK: usize = 64 * 1024;

/// Hashes a file, one step a turn.
pub struct Hasher {
    file: OwnedFd,
    meter: Meter,
}

impl Hasher {
    pub fn new(file: OwnedFd) -> Hasher {
        Hasher { file, meter: Meter::new() }
    }

    /// Length and hash, once the end is reached.
    pub fn step(&mut self) -> Result<Option<(u64, Hash)>, Errno> {
        let meter = &mut self.meter;
        let ended = feed(&self.file, |bytes| meter.update(bytes))?;
        Ok(ended.then(|| meter.clone().finish()))
    }
}

/// Reads up to one step's worth; true at the end of the file.
fn feed(file: &OwnedFd, mut take: impl FnMut(&[u8])) -> Result<bool, Errno> {
    let mut chunk = vec![0u8; CHUNK];
    for _ in 0..STEP / CHUNK {
        let n = fd::read(file, &mut chunk)?;
        if n == 0 {
            return Ok(true);
        }
        take(chunk.get(..n).unwrap_or_default());
    }
    Ok(false)
}

/// Who waits for the proof: what to schedule again when it stands.
#[derive(Debug, Clone, Copy)]
pub enum Errand {
    Deliver(Way),
    Finish,
}

struct Trial {
    number: Number,
    errand: Errand,
    due: u64,
    info: Info,
    stage: Stage,
}

enum Stage {
    List(Way, OwnedFd, Shape, ListMeter),
    Mess(Hasher),
}

/// What a step found out.
enum Verdict {
    Undecided,
    Sound,
    Unreadable(String),
    /// This file is not what it was.
    Changed(String),
    /// The message has this inode.
    Moved(u64),
}

/// At most one message is on trial.
#[derive(Default)]
pub struct Proof(Option<Trial>);

impl Proof {
    pub fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    pub fn wake(&self) -> Wake {
        Wake::now_if(self.0.is_some())
    }

    /// Takes a preprocessed message whose files have not been compared in this life. Whatever comes
    /// out, it is scheduled again or put aside.
    pub fn begin(&mut self, desk: &mut Desk, number: Number, due: u64, errand: Errand) {
        match Trial::begin(number, due, errand) {
            Ok(trial) => self.0 = Some(trial),
            Err(verdict) => settle(desk, number, due, errand, verdict),
        }
    }

    pub fn step(&mut self, desk: &mut Desk) {
        let Some(trial) = &mut self.0 else { return };
        match trial.step() {
            Verdict::Undecided => {}
            verdict => {
                settle(desk, trial.number, trial.due, trial.errand, verdict);
                self.0 = None;
            }
        }
    }
}

impl Trial {
    fn begin(number: Number, due: u64, errand: Errand) -> Result<Trial, Verdict> {
        let name = queue::info(number);
        let bytes = match fd::read_file(&name, INFO_MAX) {
            Ok(Some(bytes)) => bytes,
            Err(Errno::EFBIG) => return Err(Verdict::Changed(name)),
            Ok(None) | Err(_) => return Err(Verdict::Unreadable(name)),
        };
        let info = match Info::parse(&bytes) {
            Ok(info) => info,
            Err(Damage::Changed) => return Err(Verdict::Changed(name)),
            Err(Damage::NoSender) => return Err(Verdict::Unreadable(name)),
        };
        let stage = Trial::next_stage(number, None)?;
        Ok(Trial { number, errand, due, info, stage })
    }

    /// Local list, remote list, message. A list that is not there has been delivered to its end.
    fn next_stage(number: Number, after: Option<Way>) -> Result<Stage, Verdict> {
        let ways = Way::BOTH.into_iter().skip(after.map_or(0, |way| 1 + way as usize));
        for way in ways {
            let name = list_path(way, number);
            match fd::open_read(&name).and_then(|file| Ok((Shape::of(&file)?, file))) {
                Ok((shape, file)) => return Ok(Stage::List(way, file, shape, ListMeter::new(shape))),
                Err(Errno::ENOENT) => {}
                Err(_) => return Err(Verdict::Unreadable(name)),
            }
        }
        let name = queue::mess(number);
        let opened = fd::open_read(&name).and_then(|file| Ok((fstat(&file)?.st_ino, file)));
        match opened {
            Ok((inode, file)) if inode == number => Ok(Stage::Mess(Hasher::new(file))),
            Ok((inode, _)) => Err(Verdict::Moved(inode)),
            Err(_) => Err(Verdict::Unreadable(name)),
        }
    }

    // model: L2
    fn step(&mut self) -> Verdict {
        match &mut self.stage {
            Stage::List(way, file, shape, meter) => {
                let name = list_path(*way, self.number);
                match feed(file, |bytes| meter.update(bytes)) {
                    Err(_) => Verdict::Unreadable(name),
                    Ok(false) => Verdict::Undecided,
                    Ok(true) => {
                        let found = std::mem::take(meter).finish();
                        let way = *way;
                        match self.info.check.as_ref().map(|check| check.list(way)) {
                            Some(hash) if hash.is_some() && hash == found.as_ref() => self.go_on(way),
                            Some(_) => Verdict::Changed(name),
                            // An old qmail-send wrote info, and any list is taken: but none with a tail.
                            None if shape.tail == Tail::None => self.go_on(way),
                            None => Verdict::Changed(queue::info(self.number)),
                        }
                    }
                }
            }
            Stage::Mess(hasher) => match (hasher.step(), &self.info.commit) {
                (_, None) => Verdict::Sound,
                (Err(_), _) => Verdict::Unreadable(queue::mess(self.number)),
                (Ok(None), _) => Verdict::Undecided,
                (Ok(Some((length, hash))), Some(commit)) if commit.matches_message(length, &hash) => {
                    Verdict::Sound
                }
                (Ok(Some(_)), Some(_)) => Verdict::Changed(queue::mess(self.number)),
            },
        }
    }

    fn go_on(&mut self, after: Way) -> Verdict {
        match Trial::next_stage(self.number, Some(after)) {
            Ok(stage) => {
                self.stage = stage;
                Verdict::Undecided
            }
            Err(verdict) => verdict,
        }
    }
}

/// Why a message whose number is not its inode is kept aside.
pub fn moved(number: Number, inode: u64) -> String {
    format!("{} has inode {inode}: run qmail-fix", queue::mess(number))
}

fn settle(desk: &mut Desk, number: Number, due: u64, errand: Errand, verdict: Verdict) {
    let again = match verdict {
        Verdict::Changed(name) => {
            desk.put_aside(number, &format!("{name} is not what was accepted"));
            return;
        }
        Verdict::Moved(inode) => {
            desk.put_aside(number, &moved(number, inode));
            return;
        }
        Verdict::Unreadable(name) => {
            desk.log.line(format!("warning: trouble reading {name}; will try again later"));
            now() + SYSTEM_TROUBLE_SECONDS
        }
        Verdict::Sound | Verdict::Undecided => {
            desk.unproven.remove(&number);
            due
        }
    };
    match errand {
        Errand::Deliver(way) => desk.schedule(way).insert(again, number),
        Errand::Finish => desk.done.insert(again, number),
    }
}
