//! Numbers that are not inodes, and files in the wrong one of the split directories: where each message
//! belongs, and its way there.
//!
//! All messages move at once, in two phases, so that numbers may change places among each other:
//!
//! | step | after it |
//! |---|---|
//! | rename each file of message N to `N.M` where it lies, mess last; sync | nobody has a number that another waits for |
//! | create `lock/placing`; sync | the phase is known |
//! | link each `N.M` to `M` where that belongs; sync; unlink `N.M`; sync | every message has its number |
//! | remove `lock/placing`; sync | |
//!
//! Each step may be done again. `lock/fixing` stands all the time, and qmail-send does not start beside it. Writers
//! may work: N is taken until mess is renamed, when all else is, and M is an inode in use, which no new message gets.
#![forbid(unsafe_code)]

use crate::judge::measure;
use crate::place::{Kind, Name, Piece, Queue, is_file};
use crate::problem::{Mend, Problem};
use nix::errno::Errno;
use qmail::queue::Number;
use qmail::trouble::Trouble;
use std::collections::{BTreeMap, BTreeSet};

/// What is to be done, and what is to be said.
#[derive(Default)]
pub struct Plan {
    pub problems: Vec<Problem>,
    /// Files, and the names by which they wait.
    moves: Vec<(Piece, Name)>,
    /// Files of no message, in the way of one.
    lost: Vec<Piece>,
    /// Some wait from an earlier run.
    moving: bool,
    pub drafts: Vec<Piece>,
    /// Numbers in their places.
    pub numbers: BTreeSet<Number>,
}

impl Plan {
    pub fn make(queue: &Queue) -> Result<Plan, Trouble> {
        let mut plan = Plan::default();
        let mut messages: BTreeMap<Number, Vec<Piece>> = BTreeMap::new();
        let mut waiting: BTreeMap<Number, Vec<(Piece, Number)>> = BTreeMap::new();
        let mut targets = BTreeSet::new();
        for piece in queue.pieces()? {
            match piece.name {
                Name::Of(number) => messages.entry(number).or_default().push(piece),
                Name::Moving(from, to) => {
                    plan.moving = true;
                    waiting.entry(from).or_default().push((piece, to));
                    plan.say(piece, "is on its way to another number", "goes on");
                }
                Name::Lost(_) => {
                    plan.by_hand(piece, "belongs to no message, and was in the way of one", "remove it")
                }
                Name::Draft(_) => {
                    plan.drafts.push(piece);
                    plan.say(piece, "was left by a -a that did not end", "removes it");
                }
            }
        }
        for (number, pieces) in &messages {
            plan.place(queue, *number, pieces, &mut targets)?;
        }
        for (from, pieces) in &waiting {
            let staying = messages.get(from).map(Vec::as_slice).unwrap_or_default();
            plan.follow(queue, *from, pieces, staying, &mut targets)?;
        }
        for (number, pieces) in messages.iter().filter(|(number, _)| targets.contains(number)) {
            if !pieces.iter().any(|piece| piece.kind == Kind::Mess) {
                plan.lost.extend(pieces);
                plan.numbers.remove(number);
            }
        }
        Ok(plan)
    }

    fn say(&mut self, piece: Piece, what: impl AsRef<str>, mend: &str) {
        self.problems.push(Problem::new(piece.path(), what, Mend::Fix(mend.to_string())));
    }

    fn by_hand(&mut self, piece: Piece, what: impl AsRef<str>, how: &str) {
        self.problems.push(Problem::new(piece.path(), what, Mend::Hand(how.to_string())));
    }

    /// Whether anything has to move.
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty() && !self.moving
    }

    fn place(
        &mut self,
        queue: &Queue,
        number: Number,
        pieces: &[Piece],
        targets: &mut BTreeSet<Number>,
    ) -> Result<(), Trouble> {
        let mut kinds = BTreeSet::new();
        for piece in pieces {
            if !kinds.insert(piece.kind) {
                self.by_hand(*piece, "the same number is in another directory, too", "move one of them away");
                return Ok(());
            }
        }
        let wrong: Vec<&Piece> = pieces.iter().filter(|p| p.split != p.kind.split(number)).collect();
        let Some(mess) = pieces.iter().find(|piece| piece.kind == Kind::Mess) else {
            for piece in &wrong {
                self.by_hand(
                    **piece,
                    "is in the wrong directory, and there is no message for it",
                    "remove it",
                );
            }
            self.numbers.insert(number);
            return Ok(());
        };
        let found = queue.stat(*mess).map_err(|errno| Trouble::unable("look at", mess.path(), errno))?;
        let Some(found) = found else { return Ok(()) }; // gone meanwhile
        if !is_file(&found) {
            self.by_hand(*mess, "is not a file", "put the message back in its place, or remove it");
            return Ok(());
        }
        let inode = found.st_ino;
        if inode == number && wrong.is_empty() {
            self.numbers.insert(number);
            return Ok(());
        }
        if inode != number {
            let right = Piece::at(Kind::Mess, inode);
            if matches!(queue.stat(right), Ok(Some(other)) if other.st_ino == inode) {
                let what = format!("is the same file as {}", right.path());
                self.by_hand(*mess, what, "remove this name, and the other files of this number");
                return Ok(());
            }
            self.say(*mess, format!("its inode is {inode}"), "makes that the message's number");
        } else {
            for piece in wrong {
                let what = format!("belongs in {}", Piece::at(piece.kind, number).path());
                self.say(*piece, what, "moves it");
            }
        }
        targets.insert(inode);
        self.moves.extend(pieces.iter().map(|piece| (*piece, Name::Moving(number, inode))));
        Ok(())
    }

    /// What an earlier run left on its way goes where the message itself goes, or is: the queue may have been copied
    /// since, and the message has another inode than was expected.
    fn follow(
        &mut self,
        queue: &Queue,
        from: Number,
        pieces: &[(Piece, Number)],
        staying: &[Piece],
        targets: &mut BTreeSet<Number>,
    ) -> Result<(), Trouble> {
        let unable = |piece: Piece, errno| Trouble::unable("look at", piece.path(), errno);
        let goal = if let Some((mess, _)) = pieces.iter().find(|(piece, _)| piece.kind == Kind::Mess) {
            queue.stat(*mess).map_err(|errno| unable(*mess, errno))?.filter(is_file).map(|found| found.st_ino)
        } else if let Some(mess) = staying.iter().find(|piece| piece.kind == Kind::Mess) {
            let moves = self.moves.iter().find(|(piece, _)| piece == mess);
            Some(match moves {
                Some((_, Name::Moving(_, to))) => *to,
                _ => from,
            })
        } else {
            None
        };
        for (piece, to) in pieces {
            // Beside another of its kind it would replace that; alone it is a rest, and is said to be one.
            let is_double = goal.is_some()
                && !pieces.iter().any(|(piece, _)| piece.kind == Kind::Mess)
                && staying.iter().any(|other| other.kind == piece.kind);
            let goal = goal.filter(|_| !is_double).unwrap_or(*to);
            targets.insert(goal);
            if goal != *to {
                self.moves.push((*piece, Name::Moving(from, goal)));
            }
        }
        Ok(())
    }

    /// The first phase: everything that is to move gets a name that nobody else takes for a message's.
    pub fn stage(&self, queue: &Queue, mut step: impl FnMut()) -> Result<(), Trouble> {
        let unable = |piece: Piece, errno| Trouble::unable("rename", piece.path(), errno);
        let (mess, others): (Vec<_>, Vec<_>) =
            self.moves.iter().copied().partition(|(piece, _)| piece.kind == Kind::Mess);
        for piece in &self.lost {
            let Name::Of(number) = piece.name else { continue };
            queue.rename(*piece, Name::Lost(number)).map_err(|errno| unable(*piece, errno))?;
        }
        for (piece, name) in others {
            queue.rename(piece, name).map_err(|errno| unable(piece, errno))?;
            step();
        }
        queue.sync_all(&Kind::ALL)?;
        for (piece, name) in mess {
            queue.rename(piece, name).map_err(|errno| unable(piece, errno))?;
            step();
        }
        queue.sync_all(&[Kind::Mess])
    }
}

/// The second phase: everything that waits gets its number.
pub fn place(queue: &Queue, mut step: impl FnMut()) -> Result<(), Trouble> {
    let mut waiting: Vec<(Piece, Number)> = Vec::new();
    for piece in queue.pieces()? {
        if let Name::Moving(_, to) = piece.name {
            waiting.push((piece, to));
        }
    }
    waiting.sort_by_key(|(piece, _)| piece.kind);
    for (piece, to) in &waiting {
        let target = Piece::at(piece.kind, *to);
        let unable = |errno| Trouble::unable("link", format!("{} to {}", piece.path(), target.path()), errno);
        match queue.link(*piece, target) {
            Ok(()) => {}
            Err(Errno::EEXIST) if is_same(queue, *piece, target).map_err(unable)? => {}
            Err(errno) => return Err(unable(errno)),
        }
        step();
    }
    queue.sync_all(&Kind::ALL)?;
    for (piece, _) in &waiting {
        queue.unlink(*piece).map_err(|errno| Trouble::unable("unlink", piece.path(), errno))?;
    }
    queue.sync_all(&Kind::ALL)
}

/// One file under both names, or, where a copy was made without its links, two of the same content.
fn is_same(queue: &Queue, one: Piece, other: Piece) -> Result<bool, Errno> {
    let (Some(first), Some(second)) = (queue.stat(one)?, queue.stat(other)?) else { return Ok(false) };
    if first.st_ino == second.st_ino && first.st_dev == second.st_dev {
        return Ok(true);
    }
    if !is_file(&first) || !is_file(&second) || first.st_size != second.st_size {
        return Ok(false);
    }
    Ok(measure(queue, one)? == measure(queue, other)?)
}
