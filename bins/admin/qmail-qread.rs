//! qmail-qread - list what is in the queue, message by message, with what became of each recipient
//!
//! called by  the administrator        runs as  root or qmails (the owner, in an own home)
//! fd 1       the list; also `warning: trouble with #N: REASON` where a message cannot be read
//! jail       reads queue/ info local remote todo; no exec, no network
//! exit       0 done, 111 the queue cannot be read
//! touches    reads queue/ info, local, remote, bounce, todo, mess; locks and changes nothing
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, fstat, stat};
use qmail::home::Home;
use qmail::program::{Args, Program, Voice};
use qmail::queue::info::{Damage, INFO_MAX, Info};
use qmail::queue::list::{Entries, Trouble as ListTrouble};
use qmail::queue::rewrite::Way;
use qmail::queue::todo::{self, Record};
use qmail::queue::{self, Number, SPLIT};
use qmail::timed::{Reader, Writer};
use qmail::trouble::{Trouble, wording};
use qmail::{date, exits, fd};

type Out = Writer<fd::Standard>;

fn main() {
    // Trouble is said on fd 1, where the tools that read this list look for it.
    Program::new("qmail-qread", "qmail-qread").voice(Voice::Silent).run(read)
}

fn read(args: Args) -> Result<(), Trouble> {
    args.none()?;
    let mut out = Writer::new(fd::OUT);
    let listed = list(&mut out);
    let ended = match &listed {
        Err(Fatal::Queue(text)) => out.put(format!("fatal: {text}\n")),
        _ => Ok(()),
    };
    let flushed = ended.and_then(|()| out.flush());
    if listed.is_err() || flushed.is_err() {
        return Err(Trouble::exit(exits::TEMPORARY, ""));
    }
    Ok(())
}

/// Why the list ends early.
enum Fatal {
    Queue(String),
    /// Nobody reads it any more.
    Output,
}

impl From<Errno> for Fatal {
    fn from(_: Errno) -> Fatal {
        Fatal::Output
    }
}

fn list(out: &mut Out) -> Result<(), Fatal> {
    let home = Home::find().map_err(|trouble| Fatal::Queue(printable(&trouble.text())))?;
    nix::unistd::chdir(fd::path(&home.path("queue")))
        .map_err(|errno| Fatal::Queue(format!("unable to chdir: {}", wording(errno))))?;
    Jail::of(&programs::QMAIL_QREAD)
        .home(&home)
        .close()
        .map_err(|trouble| Fatal::Queue(printable(&trouble.text())))?;
    for split in 0..SPLIT {
        for number in numbers(&format!("info/{split}"))? {
            match Message::of_info(number) {
                Ok(Some(message)) => message.print(out, Message::lists)?,
                Ok(None) => {} // it ended, or is in todo, meanwhile
                Err(reason) => trouble(out, number, &reason)?,
            }
        }
    }
    for number in numbers("todo")? {
        match Message::of_todo(number) {
            Ok(Some(message)) => message.print(out, Message::envelope)?,
            Ok(None) => {}
            Err(reason) => trouble(out, number, &reason)?,
        }
    }
    Ok(())
}

fn trouble(out: &mut Out, number: Number, reason: &str) -> Result<(), Fatal> {
    Ok(out.put(format!("warning: trouble with #{number}: {reason}\n"))?)
}

/// The message numbers in a directory, smallest first.
fn numbers(directory: &str) -> Result<Vec<Number>, Fatal> {
    let unable = |errno| Fatal::Queue(format!("unable to opendir {directory}: {}", wording(errno)));
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut numbers: Vec<Number> = Vec::new();
    for entry in Dir::open(directory, flags, Mode::empty()).map_err(unable)?.iter() {
        numbers.extend(queue::number(entry.map_err(unable)?.file_name().to_bytes()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// What the first line about a message shows.
struct Message {
    number: Number,
    time: u64,
    size: u64,
    sender: Vec<u8>,
    /// ` bouncing`, ` preprocessing`, ` kept aside`.
    notes: Vec<&'static str>,
}

impl Message {
    /// A preprocessed message; None when it is none (any more).
    fn of_info(number: Number) -> Result<Option<Message>, String> {
        if found(&queue::todo_path(number))?.is_some() {
            return Ok(None); // info is not complete: the envelope is listed
        }
        let name = queue::info(number);
        let file = match fd::open_read(&name) {
            Ok(file) => file,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(reason("open", &name, errno)),
        };
        let time = fstat(&file).map_err(|errno| reason("stat", &name, errno))?.st_mtime;
        let bytes = match fd::read_to_end(file, INFO_MAX) {
            Ok(bytes) => bytes,
            Err(errno) => return Err(reason("read", &name, errno)),
        };
        // What qmail-send refuses as changed still has a sender to show.
        let old_part = bytes.split_inclusive(|b| *b == 0).next().unwrap_or_default();
        let sender = match Info::parse(&bytes).or_else(|damage| match damage {
            Damage::Changed => Info::parse(old_part),
            Damage::NoSender => Err(damage),
        }) {
            Ok(info) => info.sender,
            Err(_) => return Err(format!("no sender in {name}")),
        };
        let Some(mess) = found(&queue::mess(number))? else {
            return Err(format!("there is no {}", queue::mess(number)));
        };
        let mut notes = Vec::new();
        if found(&queue::bounce_path(number))?.is_some() {
            notes.push(" bouncing");
        }
        notes.extend(aside_note(number)?);
        let time = u64::try_from(time).unwrap_or(0);
        Ok(Some(Message { number, time, size: size(&mess), sender, notes }))
    }

    /// A message whose envelope is still what qmail-queue wrote.
    fn of_todo(number: Number) -> Result<Option<Message>, String> {
        let name = queue::todo_path(number);
        let file = match fd::open_read(&name) {
            Ok(file) => file,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(reason("open", &name, errno)),
        };
        let time = fstat(&file).map_err(|errno| reason("stat", &name, errno))?.st_mtime;
        let Some(mess) = found(&queue::mess(number))? else { return Ok(None) };
        let mut records = Reader::new(file);
        let sender = loop {
            match todo::next(&mut records) {
                Ok(Some(Record::Sender(sender))) => break sender,
                Ok(Some(Record::Uid(_) | Record::Pid { .. })) => {}
                Ok(_) => return Err(format!("no sender in {name}")),
                Err(errno) => return Err(reason("read", &name, errno)),
            }
        };
        let mut notes = vec![" preprocessing"];
        notes.extend(aside_note(number)?);
        let time = u64::try_from(time).unwrap_or(0);
        Ok(Some(Message { number, time, size: size(&mess), sender, notes }))
    }

    fn print(
        &self,
        out: &mut Out,
        recipients: fn(&Message, &mut Out) -> Result<(), Fatal>,
    ) -> Result<(), Fatal> {
        let (time, number, size) = (date::gmt(self.time), self.number, self.size);
        let (sender, notes) = (printable(&self.sender), self.notes.concat());
        out.put(format!("{time}  #{number}  {size}  <{sender}> {notes}\n"))?;
        recipients(self, out)
    }

    /// Recipients of a preprocessed message, from its lists.
    fn lists(&self, out: &mut Out) -> Result<(), Fatal> {
        for way in Way::BOTH {
            let name = queue::split_path(way.name(), self.number);
            let list = match fd::open_read(&name) {
                Ok(list) => list,
                Err(Errno::ENOENT) => continue,
                Err(errno) => {
                    trouble(out, self.number, &reason("open", &name, errno))?;
                    continue;
                }
            };
            if let Err(reason) = print_list(out, way, list, &name)? {
                trouble(out, self.number, &reason)?;
            }
        }
        Ok(())
    }

    /// Recipients as they stand in the envelope: which way they will go is not decided.
    fn envelope(&self, out: &mut Out) -> Result<(), Fatal> {
        let name = queue::todo_path(self.number);
        let Ok(file) = fd::open_read(&name) else { return Ok(()) };
        let mut records = Reader::new(file);
        loop {
            match todo::next(&mut records) {
                Ok(Some(Record::Recipient(address))) => {
                    out.put(format!("\ttodo\t{}\n", printable(&address)))?
                }
                Ok(Some(Record::Bad)) => {
                    return trouble(out, self.number, &format!("unknown record type in {name}"));
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(errno) => return trouble(out, self.number, &reason("read", &name, errno)),
            }
        }
    }
}

fn print_list(
    out: &mut Out,
    way: Way,
    list: std::os::fd::OwnedFd,
    name: &str,
) -> Result<Result<(), String>, Fatal> {
    let mut entries = match Entries::open(list) {
        Ok(entries) => entries,
        Err(errno) => return Ok(Err(reason("read", name, errno))),
    };
    loop {
        let entry = match entries.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(Ok(())),
            Err(ListTrouble::Letter) => return Ok(Err(format!("unknown record type in {name}"))),
            Err(ListTrouble::Reading) => return Ok(Err(format!("broken record in {name}"))),
        };
        let done = if entry.done { "  done" } else { "" };
        out.put(format!("{done}\t{}\t{}\n", way.name(), printable(&entry.address)))?;
    }
}

/// qmail-send refused this message: its files do not belong together.
fn aside_note(number: Number) -> Result<Option<&'static str>, String> {
    Ok(found(&format!("{}.aside", queue::bounce_path(number)))?.map(|_| " kept aside"))
}

fn found(name: &str) -> Result<Option<FileStat>, String> {
    match stat(name) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(reason("stat", name, errno)),
    }
}

fn size(file: &FileStat) -> u64 {
    u64::try_from(file.st_size).unwrap_or(0)
}

fn reason(action: &str, name: &str, errno: Errno) -> String {
    format!("unable to {action} {name}: {}", wording(errno))
}

/// Bytes outside the printable ones become `_`.
fn printable(text: &[u8]) -> String {
    text.iter().map(|b| if (32..=126).contains(b) { char::from(*b) } else { '_' }).collect()
}
