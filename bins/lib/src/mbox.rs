//! mbox - appends a message to a mailbox file, durably (mbox(5))
//!
//! Under the lock: zeros at the end, and what an earlier, killed attempt of this very message left there, are cut
//! off; the message is appended; file and directory are synced; the path must still lead to the file. Any
//! failure cuts back to where the file ended before.
#![forbid(unsafe_code)]

use crate::sys::{memory, process, signal};
use crate::trouble::errno as errno_of;
use crate::{date, fd};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::signal::Signal;
use nix::sys::stat::{FileStat, Mode, fstat, stat};
use nix::sys::uio::pread;
use nix::unistd::{Whence, alarm, ftruncate, lseek};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

/// Who holds the lock longer than this is stuck, or is a user reading mail: try again later.
pub const LOCK_TIMEOUT: u32 = 30;

/// One write is at least this long, the last one excepted.
const CHUNK: usize = 64 * 1024;

/// Zeros at the end of a mailbox that are looked at: more than any message leaves, and read in a moment.
const ZEROS_MAX: i64 = 256 * 1024 * 1024;

/// A mailbox that is replaced this often while we wait for it is being attacked or rotated in a loop.
const OPEN_TRIES: u32 = 10;

/// The message is not delivered; the mailbox is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Open(Errno),
    /// `LOCK_TIMEOUT` went by.
    Locked,
    Write(Errno),
    /// The message could not be read.
    Message(Errno),
    /// The process that waits for the lock could not be started.
    Fork(Errno),
}

/// The three lines before a message, each with its LF.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    pub from_line: &'a [u8],
    pub return_path: &'a [u8],
    pub delivered_to: &'a [u8],
}

impl Head<'_> {
    fn bytes(&self) -> Vec<u8> {
        [self.from_line, self.return_path, self.delivered_to].concat()
    }

    /// Where the date stands, which no two attempts have in common.
    fn date(&self) -> Range<usize> {
        let end = self.from_line.len().saturating_sub(1);
        end.saturating_sub(date::mbox(0).len())..end
    }
}

/// Back to the beginning of a message.
pub fn rewind(message: impl AsFd) -> Result<(), Errno> {
    lseek(message.as_fd(), 0, Whence::SeekSet).map(|_| ())
}

const FROM: &[u8] = b"From ";

/// Where in a line we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Nothing of the line has been seen.
    Fresh,
    /// Only `>`s so far (they are written already) and this many bytes of `From ` (held back).
    Start(usize),
    Middle,
}

/// Quotes lines for an mbox: `>` before every line that matches `>*From `, so that the way back is
/// exact (mboxrd).
#[derive(Debug)]
struct Quoter {
    at: At,
}

impl Quoter {
    fn new() -> Quoter {
        Quoter { at: At::Fresh }
    }

    fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some((byte, rest)) = bytes.split_first() {
            match self.at {
                At::Middle => {
                    let end = memchr::memchr(b'\n', bytes).map(|at| at + 1);
                    let (line, behind) = bytes.split_at(end.unwrap_or(bytes.len()));
                    out.extend_from_slice(line);
                    bytes = behind;
                    if end.is_some() {
                        self.at = At::Fresh;
                    }
                }
                At::Fresh | At::Start(0) if *byte == b'>' => {
                    out.push(b'>');
                    self.at = At::Start(0);
                    bytes = rest;
                }
                At::Fresh => self.at = At::Start(0),
                At::Start(seen) if FROM.get(seen) == Some(byte) => {
                    self.at = At::Start(seen + 1);
                    bytes = rest;
                    if seen + 1 == FROM.len() {
                        // Behind the other `>`s is as good as before them: nobody can tell.
                        out.push(b'>');
                        self.release(out);
                    }
                }
                At::Start(_) => self.release(out),
            }
        }
    }

    /// Writes what was held back; the rest of the line needs no looking at.
    fn release(&mut self, out: &mut Vec<u8>) {
        if let At::Start(seen) = self.at {
            out.extend_from_slice(FROM.get(..seen).unwrap_or_default());
        }
        self.at = At::Middle;
    }

    /// Ends the last line if it was not, and then the message with one empty line.
    fn finish(&mut self, out: &mut Vec<u8>) {
        if self.at != At::Fresh {
            self.release(out);
            out.push(b'\n');
        }
        out.push(b'\n');
    }
}

/// The bytes of one message as they stand in a mailbox, piece by piece. The first piece holds the
/// whole head.
struct Record<M> {
    message: M,
    quoter: Quoter,
    head: Vec<u8>,
    ended: bool,
}

impl<M: AsFd> Record<M> {
    fn new(head: &Head, message: M) -> Result<Record<M>, Errno> {
        rewind(&message)?;
        Ok(Record { message, quoter: Quoter::new(), head: head.bytes(), ended: false })
    }

    /// The next piece, never empty; None at the end.
    fn next(&mut self) -> Result<Option<Vec<u8>>, Errno> {
        let mut out = std::mem::take(&mut self.head);
        let mut buffer = vec![0; CHUNK];
        while !self.ended && out.len() < CHUNK {
            let n = fd::read(&self.message, &mut buffer)?;
            if n == 0 {
                self.quoter.finish(&mut out);
                self.ended = true;
            }
            self.quoter.feed(buffer.get(..n).unwrap_or_default(), &mut out);
        }
        Ok((!out.is_empty()).then_some(out))
    }
}

/// Appends the message, from its beginning, to this mailbox, which is created if need be.
pub fn deliver(path: &[u8], head: &Head, message: impl AsFd) -> Result<(), Failure> {
    let mailbox = Mailbox::open(path)?;
    let mut end = mailbox.size().map_err(Failure::Write)?;
    let text = mailbox.text_end(end).map_err(Failure::Write)?;
    if text < end {
        ftruncate(&mailbox.file, text).map_err(Failure::Write)?;
        end = text;
    }
    if let Some(torn) = mailbox.torn_start(end, head, &message)? {
        ftruncate(&mailbox.file, torn).map_err(Failure::Write)?;
        end = torn;
    }
    let separator = mailbox.separator(end).map_err(Failure::Write)?;
    let result = mailbox
        .append(separator, head, message)
        .and_then(|()| mailbox.make_durable(path).map_err(Failure::Write));
    if result.is_err() && mailbox.lock.is_held() {
        // Without the lock these bytes could be another's by now.
        let _ = ftruncate(&mailbox.file, end);
    }
    mailbox.close();
    result
}

/// How we hold a mailbox.
enum Lock {
    /// Taken at once.
    Ours(Flock<OwnedFd>),
    /// Taken by a child for the file description it shares with us; gone when we close it.
    Shared,
    /// The file system cannot lock: delivered all the same, as ever, but nothing is ever cut.
    None,
}

impl Lock {
    fn is_held(&self) -> bool {
        !matches!(self, Lock::None)
    }
}

struct Mailbox {
    file: OwnedFd,
    lock: Lock,
    readable: bool,
}

impl Mailbox {
    /// Opens and locks. A mailbox that was replaced while we waited for its lock (by a mail reader
    /// that rewrites it) is no longer where the mail is: start again.
    fn open(path: &[u8]) -> Result<Mailbox, Failure> {
        for _ in 0..OPEN_TRIES {
            let (file, readable) = open_file(path).map_err(Failure::Open)?;
            let lock = lock(&file)?;
            let mailbox = Mailbox { file, lock, readable };
            if mailbox.is_at(path).map_err(Failure::Open)? {
                return Ok(mailbox);
            }
            mailbox.close();
        }
        Err(Failure::Open(Errno::EBUSY))
    }

    fn is_at(&self, path: &[u8]) -> Result<bool, Errno> {
        let ours = fstat(&self.file)?;
        let same = |there: FileStat| there.st_dev == ours.st_dev && there.st_ino == ours.st_ino;
        match stat(fd::path(path)) {
            Ok(there) => Ok(same(there)),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn size(&self) -> Result<i64, Errno> {
        Ok(fstat(&self.file)?.st_size)
    }

    /// Up to `length` bytes from `at`; fewer only at the end of the file.
    fn bytes(&self, at: i64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut out = vec![0; length];
        let mut have = 0;
        while let Some(room) = out.get_mut(have..).filter(|room| !room.is_empty()) {
            let position = at.saturating_add(i64::try_from(have).map_err(|_| Errno::EFBIG)?);
            match pread(&self.file, room, position) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        out.truncate(have);
        Ok(out)
    }

    /// What must stand before our From_ line so that it starts a message, whatever the file ends with:
    /// nothing for a proper mailbox, or for one that we cannot read.
    fn separator(&self, end: i64) -> Result<&'static [u8], Errno> {
        if !self.readable {
            return Ok(b"");
        }
        let last = self.bytes((end - 2).max(0), usize::try_from(end.min(2)).unwrap_or(0))?;
        Ok(match last.as_slice() {
            [] | [b'\n', b'\n'] => b"",
            [b'\n'] | [_, b'\n'] => b"\n",
            _ => b"\n\n",
        })
    }

    /// Where the file ends when the zeros at its end are left out: a power cut kept the length of an append and
    /// not its bytes. They are no text, and not part of a mail, which ends with an empty line.
    fn text_end(&self, end: i64) -> Result<i64, Errno> {
        if !self.readable || !self.lock.is_held() {
            return Ok(end);
        }
        let stop = (end - ZEROS_MAX).max(0);
        let mut upper = end;
        while upper > stop {
            let lower = (upper - i64::try_from(CHUNK).unwrap_or(0)).max(stop);
            let bytes = self.bytes(lower, usize::try_from(upper - lower).unwrap_or(0))?;
            if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                return Ok(lower + i64::try_from(last).unwrap_or(0) + 1);
            }
            upper = lower;
        }
        // No append is so long; or there has never been anything but zeros.
        Ok(if stop == 0 { 0 } else { end })
    }

    /// Where the file's end turns into the torn beginning of this very message: an attempt that was
    /// killed, or that a power cut stopped.
    ///
    /// Nothing that could be another's is ever taken for that. A whole message ends with an empty
    /// line, so a file that does is left alone. The tail must start with the last From_ line of the
    /// file, behind an empty line, and be byte for byte (but for the date) what we are about to write,
    /// and shorter: all of it will stand there again.
    fn torn_start(&self, end: i64, head: &Head, message: impl AsFd) -> Result<Option<i64>, Failure> {
        if !self.lock.is_held() || self.separator(end).map_err(Failure::Write)?.is_empty() {
            return Ok(None);
        }
        let size = fstat(&message).map_err(Failure::Message)?.st_size;
        // Quoting adds a byte for each six at most.
        let longest =
            size.saturating_mul(2).saturating_add(i64::try_from(head.bytes().len()).unwrap_or(0) + 2);
        match self.last_from(end, longest).map_err(Failure::Write)? {
            Some(start) if self.continues_as(start, head, message)? => Ok(Some(start)),
            _ => Ok(None),
        }
    }

    /// The start of the last line that begins with `From ` behind an empty line or at the very start,
    /// when it is no more than `longest` bytes before the end and no other such line stands between.
    fn last_from(&self, end: i64, longest: i64) -> Result<Option<i64>, Errno> {
        const NEEDLE: &[u8] = b"\n\nFrom ";
        let stop = (end - longest - 2).max(0);
        let mut upper = end;
        while upper > stop {
            let lower = (upper - i64::try_from(CHUNK).unwrap_or(0)).max(stop);
            // Some bytes more than the step, so that no needle is cut in two.
            let reach = (upper + 6).min(end);
            let bytes = self.bytes(lower, usize::try_from(reach - lower).unwrap_or(0))?;
            if let Some(at) = memchr::memmem::rfind(&bytes, NEEDLE) {
                return Ok(Some(lower + i64::try_from(at).unwrap_or(0) + 2));
            }
            if lower == 0 && bytes.starts_with(FROM) {
                return Ok(Some(0));
            }
            upper = lower;
        }
        Ok(None)
    }

    /// Whether what stands from `start` to the end of the file is a beginning, and not the whole, of
    /// the record we are about to write.
    fn continues_as(&self, start: i64, head: &Head, message: impl AsFd) -> Result<bool, Failure> {
        let mut record = Record::new(head, message).map_err(Failure::Message)?;
        let mut at = start;
        let mut date = head.date();
        while let Some(expected) = record.next().map_err(Failure::Message)? {
            let found = self.bytes(at, expected.len()).map_err(Failure::Write)?;
            if !same(&expected, &found, &date) {
                return Ok(false);
            }
            if found.len() < expected.len() {
                return Ok(true);
            }
            at += i64::try_from(expected.len()).unwrap_or(0);
            date = 0..0; // only the first piece has one
        }
        Ok(false)
    }

    fn append(&self, separator: &[u8], head: &Head, message: impl AsFd) -> Result<(), Failure> {
        let mut record = Record::new(head, message).map_err(Failure::Message)?;
        let mut pending = separator.to_vec();
        while let Some(piece) = record.next().map_err(Failure::Message)? {
            pending.extend_from_slice(&piece);
            // An unfinished message must not look finished: no write but the last ends with an empty line.
            let held = usize::from(!record.ended && pending.ends_with(b"\n\n"));
            let rest = pending.split_off(pending.len() - held);
            fd::write_all(&self.file, &pending).map_err(Failure::Write)?;
            pending = rest;
        }
        fd::write_all(&self.file, &pending).map_err(Failure::Write)
    }

    /// Syncs the file and the name it has, and looks whether it still has it.
    fn make_durable(&self, path: &[u8]) -> Result<(), Errno> {
        fd::fsync(&self.file)?;
        sync_name(path, &self.file)?;
        if self.is_at(path)? { Ok(()) } else { Err(Errno::ESTALE) }
    }

    /// Lets go of the lock. Dropping it would do, but a failure to unlock must not undo a success.
    fn close(self) {
        if let Lock::Ours(lock) = self.lock {
            if let Err((lock, _)) = lock.unlock() {
                std::mem::forget(lock);
            }
        }
    }
}

/// Whether `found` is what `expected` begins with; in `date` any date will do.
fn same(expected: &[u8], found: &[u8], date: &Range<usize>) -> bool {
    let kind = |byte: u8| match byte {
        b'0'..=b'9' => b'0',
        b'A'..=b'Z' => b'A',
        b'a'..=b'z' => b'a',
        other => other,
    };
    expected
        .iter()
        .zip(found)
        .enumerate()
        .all(|(i, (e, f))| e == f || date.contains(&i) && kind(*e) == kind(*f))
}

/// The mailbox, for appending, and whether it can be read too.
fn open_file(path: &[u8]) -> Result<(OwnedFd, bool), Errno> {
    let flags = OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let (file, readable) = match open(fd::path(path), flags | OFlag::O_RDWR, mode) {
        Ok(file) => (file, true),
        Err(Errno::EACCES) => (open(fd::path(path), flags | OFlag::O_WRONLY, mode)?, false),
        Err(errno) => return Err(errno),
    };
    // A pipe or a device keeps nothing, so no success could be promised.
    let kind = fstat(&file)?.st_mode & nix::libc::S_IFMT;
    if kind != nix::libc::S_IFREG {
        return Err(Errno::EINVAL);
    }
    Ok((file, readable))
}

/// The exclusive lock. When somebody else holds it, a child waits for it with an alarm clock: the lock
/// belongs to the open file, which we share, and so stays when the child is gone.
fn lock(file: &OwnedFd) -> Result<Lock, Failure> {
    const TIMED_OUT: i32 = 1;
    const CANNOT_LOCK: i32 = 2;
    let copy = || file.try_clone().map_err(|e| Failure::Open(errno_of(&e)));
    match Flock::lock(copy()?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(Lock::Ours(lock)),
        Err((_, Errno::EAGAIN | Errno::EINTR)) => {}
        Err(_) => return Ok(Lock::None),
    }
    let shared = copy()?;
    let child = process::fork_child(move || {
        memory::die_with_parent(Signal::SIGKILL as i32);
        signal::unblock();
        signal::exit_on(&[Signal::SIGALRM], TIMED_OUT);
        alarm::set(LOCK_TIMEOUT);
        match Flock::lock(shared, FlockArg::LockExclusive) {
            Ok(lock) => std::mem::forget(lock), // not unlocked: it is for the parent
            Err(_) => return CANNOT_LOCK,
        }
        0
    })
    .map_err(Failure::Fork)?;
    match process::wait(child).map_err(Failure::Fork)? {
        process::End::Exit(0) => Ok(Lock::Shared),
        process::End::Exit(CANNOT_LOCK) => Ok(Lock::None),
        _ => Err(Failure::Locked),
    }
}

/// Makes the directory entry of a mailbox durable: we may have created it, or a mail reader may have
/// renamed it to where it is.
fn sync_name(path: &[u8], file: &OwnedFd) -> Result<(), Errno> {
    let real = std::fs::canonicalize(fd::path(path)).map_err(|e| errno_of(&e))?;
    let directory = real.parent().unwrap_or(&real);
    match open(directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(directory) => fd::fsync(directory),
        // Somebody else's directory that we may write through but not read: the whole file system then.
        Err(Errno::EACCES) => nix::unistd::syncfs(file),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::path::{Path, PathBuf};

    const HEAD: Head = Head {
        from_line: b"From s@h Fri Nov 20 12:00:00 2026\n",
        return_path: b"Return-Path: <s@h>\n",
        delivered_to: b"Delivered-To: joe@x\n",
    };
    const LATER: Head = Head { from_line: b"From s@h Sat Nov 21 08:15:59 2026\n", ..HEAD };
    const TEXT: &[u8] = b"Subject: x\n\nFrom here on\n\n>From there\nthe end";

    fn quoted(text: &[u8], step: usize) -> Vec<u8> {
        let (mut quoter, mut out) = (Quoter::new(), Vec::new());
        for piece in text.chunks(step) {
            quoter.feed(piece, &mut out);
        }
        quoter.finish(&mut out);
        out
    }

    fn scratch(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("mbox-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        directory
    }

    fn message(directory: &Path, text: &[u8]) -> std::fs::File {
        let path = directory.join("message");
        let mut file =
            std::fs::File::options().create(true).truncate(true).read(true).write(true).open(path).unwrap();
        file.write_all(text).unwrap();
        file
    }

    fn bytes(path: &Path) -> &[u8] {
        std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
    }

    /// What the mailbox holds after a delivery of `text` onto `before`.
    fn after(name: &str, before: &[u8], head: &Head, text: &[u8]) -> Vec<u8> {
        let directory = scratch(name);
        let mailbox = directory.join("Mailbox");
        std::fs::write(&mailbox, before).unwrap();
        deliver(bytes(&mailbox), head, message(&directory, text)).unwrap();
        let found = std::fs::read(&mailbox).unwrap();
        std::fs::remove_dir_all(directory).unwrap();
        found
    }

    fn record(head: &Head, text: &[u8]) -> Vec<u8> {
        [head.bytes(), quoted(text, 100)].concat()
    }

    #[test]
    fn from_lines_are_quoted_however_the_message_is_cut_into_pieces() {
        let text = b"From a\n>From b\n>>>From c\nFrom\n>Fromx\n> From\n\nxFrom d\nFrom ";
        let wanted = b">From a\n>>From b\n>>>>From c\nFrom\n>Fromx\n> From\n\nxFrom d\n>From \n\n";
        for step in 1..text.len() {
            assert_eq!(quoted(text, step), wanted, "in pieces of {step}");
        }
    }

    #[test]
    fn a_message_ends_with_a_whole_line_and_an_empty_one() {
        assert_eq!(quoted(b"", 1), b"\n");
        assert_eq!(quoted(b"x", 1), b"x\n\n");
        assert_eq!(quoted(b"x\n", 1), b"x\n\n");
        assert_eq!(quoted(b">>", 1), b">>\n\n");
        assert_eq!(quoted(b">Fro", 1), b">Fro\n\n");
    }

    #[test]
    fn a_torn_beginning_of_the_same_message_is_replaced_wherever_it_was_torn() {
        let other = record(&HEAD, b"Subject: other\n\ntext\n");
        let whole = record(&HEAD, TEXT);
        for before in [b"".as_slice(), &other] {
            for cut in FROM.len()..whole.len() {
                let torn = whole.get(..cut).unwrap();
                if torn.ends_with(b"\n\n") {
                    continue; // could be a whole message: the next test
                }
                let mailbox = after("torn", &[before, torn].concat(), &LATER, TEXT);
                assert_eq!(mailbox, [before, &record(&LATER, TEXT)].concat(), "torn at {cut}");
            }
        }
    }

    #[test]
    fn zeros_at_the_end_are_replaced_with_what_is_torn_before_them() {
        let other = record(&HEAD, b"Subject: other\n\ntext\n");
        let whole = record(&HEAD, TEXT);
        for torn in [b"".as_slice(), whole.get(..30).unwrap(), whole.get(..whole.len() - 3).unwrap()] {
            for zeros in [1, 100, 3 * CHUNK] {
                for before in [b"".as_slice(), &other] {
                    let found = [before, torn, &vec![0; zeros]].concat();
                    let wanted = [before, &record(&LATER, TEXT)].concat();
                    assert_eq!(after("zeros", &found, &LATER, TEXT), wanted, "{zeros} zeros");
                }
            }
        }
        // Zeros with text behind them are somebody's.
        let kept = [b"x\0\0y\n\n".as_slice(), &whole].concat();
        assert_eq!(after("zeros", b"x\0\0y\n\n", &HEAD, TEXT), kept);
    }

    #[test]
    fn nothing_that_could_be_another_message_is_ever_cut() {
        let whole = record(&HEAD, TEXT);
        let keep: [Vec<u8>; 8] = [
            // A complete message that ours begins with, or that is ours.
            record(&HEAD, b"Subject: x\n"),
            whole.clone(),
            // Torn, but of another message, sender or recipient.
            record(&HEAD, b"Subject: y\n\nlong enough").strip_suffix(b"\n").unwrap().to_vec(),
            record(&Head { from_line: b"From t@h Fri Nov 20 12:00:00 2026\n", ..HEAD }, b"Sub")
                .strip_suffix(b"\n")
                .unwrap()
                .to_vec(),
            record(&Head { delivered_to: b"Delivered-To: jim@x\n", ..HEAD }, b"Sub")
                .strip_suffix(b"\n")
                .unwrap()
                .to_vec(),
            // A From_ line without an empty line before it, too little to tell, something longer.
            [b"text\n".as_slice(), whole.get(..80).unwrap()].concat(),
            b"text\n\nFrom".to_vec(),
            [whole.as_slice(), b"more"].concat(),
        ];
        for before in keep {
            let mailbox = after("keep", &before, &LATER, TEXT);
            assert!(mailbox.starts_with(&before), "{}", String::from_utf8_lossy(&before));
            assert!(mailbox.ends_with(&[b"\n\n".as_slice(), &record(&LATER, TEXT)].concat()));
        }
    }

    #[test]
    fn a_long_message_is_recognised_across_many_pieces() {
        let text = b"From line after line\n\n".repeat(20_000);
        let whole = record(&HEAD, &text);
        let torn = whole.get(..300_001).unwrap();
        assert_eq!(after("long", torn, &LATER, &text), record(&LATER, &text));
    }

    #[test]
    fn an_unended_mailbox_is_ended_before_the_from_line() {
        let record = record(&HEAD, TEXT);
        for (before, separator) in
            [("", ""), ("x\n\n", ""), ("x\n", "\n"), ("x", "\n\n"), ("\n", "\n"), ("ab", "\n\n")]
        {
            let wanted = [before.as_bytes(), separator.as_bytes(), &record].concat();
            assert_eq!(after("unended", before.as_bytes(), &HEAD, TEXT), wanted);
        }
    }

    #[test]
    fn a_mailbox_is_created_and_anything_but_a_file_refused() {
        let directory = scratch("created");
        let mailbox = directory.join("Mailbox");
        deliver(bytes(&mailbox), &HEAD, message(&directory, TEXT)).unwrap();
        assert_eq!(std::fs::read(&mailbox).unwrap(), record(&HEAD, TEXT));
        assert_eq!(
            deliver(b"/dev/null", &HEAD, message(&directory, TEXT)),
            Err(Failure::Open(Errno::EINVAL))
        );
        assert_eq!(
            deliver(bytes(&directory), &HEAD, message(&directory, TEXT)),
            Err(Failure::Open(Errno::EISDIR))
        );
        std::fs::remove_dir_all(directory).unwrap();
    }
}
