//! qmail-fix - check a queue, and mend it without losing a message
//!
//! called by  the administrator          runs as  root (in an own home its owner)
//! fd 1       a line a problem; what was mended, what was accepted
//! fd 2       trouble; progress, when it is a terminal
//! jail       reads, writes, links and removes in the queue; no exec, no network
//! exit       0 nothing is wrong, 1 problems are left, 100 wrong use, 111 trouble
//! touches    with -r and -a the files of the queue, under lock/sendmutex; else nothing
//!
//! | module | concern |
//! |---|---|
//! | `place` | where files are, and work on them without following links |
//! | `structure` | directories, and what is in `lock` |
//! | `number` | numbers that are not inodes, files in the wrong directory |
//! | `judge` | whether the files of a number belong together |
//! | `accept` | a message that is kept aside is accepted as it lies |
#![forbid(unsafe_code)]

mod accept;
mod judge;
mod number;
mod place;
mod problem;
mod structure;

use jail::{Jail, programs};
use judge::{Verdict, judge};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, umask};
use nix::unistd::Uid;
use number::Plan;
use place::{Kind, Piece, Queue, is_file, names, open_directory, unlink_at};
use problem::{Mend, Problem};
use qmail::fd;
use qmail::home::{Home, Ids};
use qmail::program::{self, Args, Parsed};
use qmail::queue::age::Clock;
use qmail::queue::{self, FIXING, Number, lock};
use qmail::timed::Writer;
use qmail::trouble::Trouble;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// The numbers are being given: an unfinished run goes on with that.
const PLACING: &str = "placing";

const SPLIT_TODO: &str = "let the old qmail-send empty it, and remove its directories";

/// Rounds until everything has its place: one, and one more for what an earlier run had under way.
const ROUNDS: u32 = 4;

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(1);

fn main() -> ! {
    program::run("qmail-fix", "qmail-fix [-r | -a number] [queue]", fix)
}

fn fix(args: Args) -> Result<(), Trouble> {
    let parsed = args.options("ra:")?;
    let wanted = wanted(&args, &parsed)?;
    let home = Home::find()?;
    let path = match parsed.rest.as_slice() {
        [] => home.path("queue"),
        [path] => path.clone(),
        _ => return Err(args.wrong()),
    };
    umask(Mode::from_bits_truncate(0o077));
    let root = open(&path)?;
    // Before the jail: it makes directories and a fifo, and reads nothing that anybody wrote.
    let mutex = match wanted {
        Wanted::Check => None,
        Wanted::Mend => {
            // Before anything changes; what is there may be replaced, though, and then it is another one.
            let early = open_mutex(&root).ok().map(lock_mutex).transpose()?;
            let before = structure::problems(&root, home.ids())?;
            structure::mend(&root, home.ids())?;
            let mutex = match early {
                Some(early) if is_mutex(&root, &early) => early,
                _ => take_mutex(&root)?,
            };
            Some((mutex, before))
        }
        Wanted::Accept(_) => Some((take_mutex(&root)?, Vec::new())),
    };
    let may_give = !Uid::effective().is_root() || are_links_protected();
    Jail::of(&programs::QMAIL_FIX).place(programs::QUEUE, path).close()?;
    // Every directory is held open, and an old queue may have some hundreds of each kind. Where it cannot be raised
    // the opening says so.
    let _ = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    let queue = Queue::open(root)?;
    let clock = Clock::start();
    let mut fixer = Fixer { queue, ids: home.ids(), clock, progress: Progress::new(), may_give };
    // A message would get a new number, and its envelope would not be found.
    if wanted != Wanted::Check && !fixer.queue.split_todo()?.is_empty() {
        return Err(Trouble::temporary(format!("todo is split: {SPLIT_TODO}")));
    }
    let mut out = Writer::new(fd::OUT);
    let put = |out: &mut Writer<fd::Standard>, line: &str| {
        out.put(line).map_err(|errno| Trouble::unable("write to", "standard output", errno))
    };
    if let Wanted::Accept(number) = wanted {
        put(&mut out, &fixer.accept(number)?)?;
        return out.flush().map_err(|errno| Trouble::unable("write to", "standard output", errno));
    }
    let before = match &mutex {
        Some((_, before)) => {
            let before = [before.clone(), fixer.check_messages()?].concat();
            fixer.mend()?;
            before
        }
        None => Vec::new(),
    };
    let problems = fixer.check()?;
    for problem in before.iter().filter(|p| matches!(p.mend, Mend::Fix(_)) && !problems.contains(p)) {
        put(&mut out, &problem.mended())?;
    }
    for problem in &problems {
        put(&mut out, &problem.line())?;
    }
    out.flush().map_err(|errno| Trouble::unable("write to", "standard output", errno))?;
    if problems.is_empty() { Ok(()) } else { Err(Trouble::exit(1, "")) }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Check,
    Mend,
    Accept(Number),
}

fn wanted(args: &Args, parsed: &Parsed) -> Result<Wanted, Trouble> {
    match (parsed.has('r'), parsed.value('a')) {
        (false, None) => Ok(Wanted::Check),
        (true, None) => Ok(Wanted::Mend),
        (false, Some(number)) => queue::number(number).map(Wanted::Accept).ok_or_else(|| args.wrong()),
        (true, Some(_)) => Err(args.wrong()),
    }
}

fn open(path: &[u8]) -> Result<OwnedFd, Trouble> {
    let root = fd::open_directory(path).map_err(|errno| Trouble::unable("open", path, errno))?;
    // Something that is no queue at all is better not filled with the directories of one.
    if open_directory(&root, "mess").is_err() && open_directory(&root, "info").is_err() {
        let text = b": neither mess nor info is there".as_slice();
        return Err(Trouble::temporary([path, b" is no queue", text].concat()));
    }
    Ok(root)
}

/// Nobody can link to files of others. Without that an account could have root give it a file that it linked into
/// its directory, and whose other name is gone at the right moment.
fn are_links_protected() -> bool {
    std::fs::read("/proc/sys/fs/protected_hardlinks").is_ok_and(|text| text.starts_with(b"1"))
}

/// There is one qmail-send a queue, and none while we work.
fn take_mutex(root: &OwnedFd) -> Result<Flock<OwnedFd>, Trouble> {
    lock_mutex(open_mutex(root).map_err(|errno| Trouble::unable("open", "lock/sendmutex", errno))?)
}

fn open_mutex(root: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    openat(open_directory(root, "lock")?, "sendmutex", flags, Mode::empty())
}

fn is_mutex(root: &OwnedFd, file: &OwnedFd) -> bool {
    let now = open_mutex(root).and_then(fstat);
    matches!((now, fstat(file)), (Ok(now), Ok(file)) if (now.st_dev, now.st_ino) == (file.st_dev, file.st_ino))
}

fn lock_mutex(file: OwnedFd) -> Result<Flock<OwnedFd>, Trouble> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| Trouble::temporary("qmail-send is running: stop it first"))
}

struct Fixer<'a> {
    queue: Queue,
    ids: &'a Ids,
    clock: Clock,
    progress: Progress,
    /// Files of messages may get another owner.
    may_give: bool,
}

impl Fixer<'_> {
    /// Everything that is wrong.
    fn check(&mut self) -> Result<Vec<Problem>, Trouble> {
        let mut problems = structure::problems(&self.queue.root, self.ids)?;
        problems.extend(self.check_messages()?);
        Ok(problems)
    }

    fn check_messages(&mut self) -> Result<Vec<Problem>, Trouble> {
        let mut problems = Vec::new();
        if self.is_fixing()? {
            let mend = Mend::Fix("goes on".to_string());
            problems.push(Problem::new(
                FIXING,
                "a qmail-fix -r did not end, and qmail-send does not start",
                mend,
            ));
        }
        let plan = Plan::make(&self.queue)?;
        problems.extend(plan.problems);
        let mut numbers = plan.numbers;
        for piece in self.queue.split_todo()? {
            let what = "is a directory, so todo is split";
            problems.push(Problem::new(piece.path(), what, Mend::Hand(SPLIT_TODO.to_string())));
            if let place::Name::Of(number) = piece.name {
                numbers.remove(&number);
            }
        }
        for (kind, split, is_empty) in self.queue.foreign()? {
            let mend = if is_empty {
                Mend::Fix("removes it".to_string())
            } else {
                Mend::Hand("when no message is in it any more, remove it".to_string())
            };
            let name = format!("{}/{split}", kind.name());
            problems.push(Problem::new(name, "is a directory of another split", mend));
        }
        self.progress.begin("checking", numbers.len());
        for number in numbers {
            problems.extend(self.problem_of(number));
            problems.extend(self.owners_of(number)?.into_iter().map(|(_, problem)| problem));
            self.progress.step();
        }
        for (name, _) in self.leftovers()? {
            let mend = Mend::Fix("removes it".to_string());
            problems.push(Problem::new(format!("pid/{name}"), "was left by a writer that died", mend));
        }
        Ok(problems)
    }

    fn problem_of(&self, number: Number) -> Option<Problem> {
        let name = format!("msg {number}");
        Some(match judge(&self.queue, number, &self.clock) {
            Verdict::Sound => return None,
            Verdict::Aside(reason) => {
                let hand =
                    format!("put it right, or accept it as it lies (-a {number}), or remove its files");
                Problem::new(name, format!("kept aside: {reason}"), Mend::Hand(hand))
            }
            Verdict::Unacknowledged => {
                let what = format!("was never acknowledged, or lost its todo/{number}");
                let hand = format!("qmail-send removes it after 36 hours; -a {number} accepts it");
                Problem::new(name, what, Mend::Hand(hand))
            }
            Verdict::Rest(what) => Problem::new(name, "a rest", Mend::Hand(what.to_string())),
            Verdict::Leftover => {
                Problem::new(name, "was left by a writer that died", Mend::Fix("removes it".to_string()))
            }
            Verdict::Unreadable(piece, errno) => {
                let what = format!("cannot be read: {}", qmail::trouble::wording(errno));
                Problem::new(piece.path(), what, Mend::Hand("put it back in its place".to_string()))
            }
        })
    }

    /// Files of this number whose owner or mode is wrong.
    fn owners_of(&self, number: Number) -> Result<Vec<(Piece, Problem)>, Trouble> {
        let mut problems = Vec::new();
        for kind in Kind::ALL {
            let piece = Piece::at(kind, number);
            let found =
                self.queue.stat(piece).map_err(|errno| Trouble::unable("look at", piece.path(), errno))?;
            if let Some(found) = found.filter(is_file) {
                let problem = structure::owner_problem(
                    &piece.path(),
                    &found,
                    self.ids,
                    kind.role(),
                    kind.mode(),
                    0o022,
                );
                let problem = problem.map(|problem| {
                    if self.is_given_by_hand(piece, &found) {
                        let how = format!("look at it, and chown {} {}", kind.role(), piece.path());
                        let what = format!("belongs to uid {}", found.st_uid);
                        Problem::new(piece.path(), what, Mend::Hand(how))
                    } else {
                        problem
                    }
                });
                problems.extend(problem.map(|problem| (piece, problem)));
            }
        }
        Ok(problems)
    }

    /// What root does not give to its account. In `lock`, which is qmailq's, is a file of root that nobody else may
    /// read, and qmailq can rename that to a message.
    fn is_given_by_hand(&self, piece: Piece, found: &FileStat) -> bool {
        let role = piece.kind.role();
        let is_anothers = self.ids.role(role).is_some_and(|account| account.uid.as_raw() != found.st_uid);
        let is_secret = found.st_uid == 0 && role == "qmailq" && found.st_mode & 0o004 == 0;
        Uid::effective().is_root() && is_anothers && (!self.may_give || is_secret)
    }

    /// Old files in `pid` that nobody holds.
    fn leftovers(&self) -> Result<Vec<(String, OwnedFd)>, Trouble> {
        let Ok(directory) = open_directory(&self.queue.root, "pid") else { return Ok(Vec::new()) };
        let unable = |errno| Trouble::unable("list", "pid", errno);
        let mut found = Vec::new();
        for name in names(&directory).map_err(unable)? {
            let Ok(name) = String::from_utf8(name) else { continue };
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let Ok(file) = openat(&directory, name.as_str(), flags, Mode::empty()) else { continue };
            let is_old = fstat(&file).is_ok_and(|stat: FileStat| is_file(&stat) && self.clock.is_old(&stat));
            if is_old && lock::is_held(&file) == Ok(false) {
                found.push((name, file));
            }
        }
        Ok(found)
    }

    /// The directory `lock`, where marks stand.
    fn lock(&self) -> Result<OwnedFd, Trouble> {
        open_directory(&self.queue.root, "lock").map_err(|errno| Trouble::unable("open", "lock", errno))
    }

    fn is_fixing(&self) -> Result<bool, Trouble> {
        let Ok(lock) = open_directory(&self.queue.root, "lock") else { return Ok(false) };
        is_there(&lock, name_in_lock(FIXING))
    }

    fn mend(&mut self) -> Result<(), Trouble> {
        let lock = self.lock()?;
        let fixing = name_in_lock(FIXING);
        if !is_there(&lock, fixing)? && self.is_in_place()? {
            return self.tidy();
        }
        set_mark(&lock, fixing)?;
        let mut rounds = 0;
        loop {
            if is_there(&lock, PLACING)? {
                self.progress.begin("numbering", 0);
                let progress = &mut self.progress;
                number::place(&self.queue, || progress.step())?;
                remove_mark(&lock, PLACING)?;
            }
            let plan = Plan::make(&self.queue)?;
            rounds += 1;
            if plan.is_empty() || rounds > ROUNDS {
                break;
            }
            self.progress.begin("moving", 0);
            let progress = &mut self.progress;
            plan.stage(&self.queue, || progress.step())?;
            set_mark(&lock, PLACING)?;
        }
        self.tidy()?;
        remove_mark(&lock, fixing)
    }

    fn is_in_place(&self) -> Result<bool, Trouble> {
        Ok(Plan::make(&self.queue)?.is_empty())
    }

    /// Owners and modes; what writers and we ourselves left.
    fn tidy(&mut self) -> Result<(), Trouble> {
        let plan = Plan::make(&self.queue)?;
        for draft in plan.drafts {
            self.queue.unlink(draft).map_err(|errno| Trouble::unable("unlink", draft.path(), errno))?;
        }
        for (kind, split, _) in self.queue.foreign()?.into_iter().filter(|(_, _, is_empty)| *is_empty) {
            let unable = |errno| Trouble::unable("remove", format!("{}/{split}", kind.name()), errno);
            self.queue.remove_foreign(kind, split).map_err(unable)?;
        }
        for number in plan.numbers {
            for (piece, problem) in self.owners_of(number)? {
                if matches!(problem.mend, Mend::Fix(_)) {
                    self.mend_owner(piece)?;
                }
            }
            if judge(&self.queue, number, &self.clock) == Verdict::Leftover {
                self.remove_leftover(number)?;
            }
        }
        if let Ok(pid) = open_directory(&self.queue.root, "pid") {
            for (name, _file) in self.leftovers()? {
                unlink_at(&pid, &name)
                    .map_err(|errno| Trouble::unable("unlink", format!("pid/{name}"), errno))?;
            }
        }
        Ok(())
    }

    /// Of a file that has no other names than the queue's: nobody gets another's file into his hands by a link to it.
    fn mend_owner(&self, piece: Piece) -> Result<(), Trouble> {
        let unable = |errno| Trouble::unable("mend", piece.path(), errno);
        self.queue.open_up(piece);
        let file = self.queue.open_file(piece).map_err(unable)?;
        let found = fstat(&file).map_err(unable)?;
        let place::Name::Of(number) = piece.name else { return Ok(()) };
        let twin = match piece.kind {
            Kind::Intd => Some(Piece::at(Kind::Todo, number)),
            Kind::Todo => Some(Piece::at(Kind::Intd, number)),
            _ => None,
        };
        let twin = twin.and_then(|twin| self.queue.stat(twin).ok().flatten());
        let names = if twin.is_some_and(|twin| twin.st_ino == found.st_ino) { 2 } else { 1 };
        if found.st_nlink != names || self.is_given_by_hand(piece, &found) {
            return Ok(()); // it stays in the list
        }
        structure::mend_owner(&file, self.ids, piece.kind.role(), piece.kind.mode()).map_err(unable)
    }

    /// As qmail-clean does it.
    fn remove_leftover(&self, number: Number) -> Result<(), Trouble> {
        let [mess, intd] = [Kind::Mess, Kind::Intd].map(|kind| Piece::at(kind, number));
        let unable = |errno| Trouble::unable("unlink", mess.path(), errno);
        // Open until the end: nobody else gets the number meanwhile.
        let file = match self.queue.open_file(mess) {
            Ok(file) => Some(file),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(unable(errno)),
        };
        let is_held = file.as_ref().is_some_and(|file| lock::is_held(file.as_fd()) != Ok(false));
        let todo = self.queue.stat(Piece::at(Kind::Todo, number)).map_err(unable)?;
        if is_held || todo.is_some() {
            return Ok(());
        }
        self.queue.unlink(intd).map_err(unable)?;
        if file.is_some() {
            self.queue.unlink(mess).map_err(unable)?;
        }
        Ok(())
    }

    /// The line that says what was done.
    fn accept(&mut self, number: Number) -> Result<String, Trouble> {
        if self.is_fixing()? || !self.is_in_place()? {
            return Err(Trouble::temporary("messages have wrong numbers: qmail-fix -r first"));
        }
        match judge(&self.queue, number, &self.clock) {
            Verdict::Aside(_) | Verdict::Unacknowledged => {}
            _ => return Ok(format!("msg {number}: is not kept aside\n")),
        }
        let accepted = accept::accept(&self.queue, self.ids, number)?;
        let sender = qmail::queue::report::log_safe(&accepted.sender);
        let unreadable = match accepted.unreadable {
            0 => String::new(),
            count => format!(", records that cannot be read: {count}"),
        };
        let left = accepted.recipients;
        Ok(format!("msg {number}: accepted from <{sender}>, recipients left: {left}{unreadable}\n"))
    }
}

fn name_in_lock(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn is_there(directory: &OwnedFd, name: &str) -> Result<bool, Trouble> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(Trouble::unable("look at", format!("lock/{name}"), errno)),
    }
}

/// A mark that stands after a power cut, too.
fn set_mark(lock: &OwnedFd, name: &str) -> Result<(), Trouble> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(lock, name, flags, Mode::from_bits_truncate(0o644))
        .and_then(|_| fd::fsync(lock))
        .map_err(|errno| Trouble::unable("write", format!("lock/{name}"), errno))
}

fn remove_mark(lock: &OwnedFd, name: &str) -> Result<(), Trouble> {
    unlink_at(lock, name)
        .and_then(|()| fd::fsync(lock))
        .map_err(|errno| Trouble::unable("unlink", format!("lock/{name}"), errno))
}

/// A line on a terminal, each second.
struct Progress {
    is_wanted: bool,
    what: &'static str,
    done: usize,
    all: usize,
    said: Instant,
}

impl Progress {
    fn new() -> Progress {
        let is_wanted = nix::unistd::isatty(fd::ERR).unwrap_or(false);
        Progress { is_wanted, what: "", done: 0, all: 0, said: Instant::now() }
    }

    fn begin(&mut self, what: &'static str, all: usize) {
        (self.what, self.done, self.all) = (what, 0, all);
    }

    fn step(&mut self) {
        self.done += 1;
        if self.is_wanted && self.said.elapsed() >= PROGRESS {
            self.said = Instant::now();
            let of = if self.all > 0 { format!(" of {}", self.all) } else { String::new() };
            let _ =
                fd::write_all(fd::ERR, format!("qmail-fix: {} {}{of}\n", self.what, self.done).as_bytes());
        }
    }
}
