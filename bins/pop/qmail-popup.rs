//! qmail-popup - the login of POP3: takes name and password, and has them checked
//!
//! called by  tcpserver
//! runs as    qmaild: qmail-authd checks; root: it runs the checker itself, the classic way (own home: the owner)
//! arguments  hostname subprogram [argument ...]
//! fd 0, 1    the client; the subprogram gets them too, and fd 3 with name, password, timestamp
//! exit       1 always: the session is the subprogram's
//! env        as qmaild the variables of qmail::auth::door go with a login; else the subprogram inherits all
//!            POP3AUTH SSLCTLFD SSLREADFD SSLWRITEFD TLS_*: which logins there are
//! touches    as qmaild run/auth; reads control/
//! jail       as qmaild the connection and run/auth, no file, no exec; the classic way rlimits, and in the child that
//!            talks the connection alone
//!
//! Not a byte behind the login line is read: it belongs to the subprogram. The classic way forks: the child
//! talks to the client, as qmaild where root is the parent, and gives what a checker reads over a pipe; the
//! parent parses nothing. As root in an own home it becomes the home's owner before it reads anything;
//! without a home it works as it always did.
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Uid;
use pop::access::Access;
use pop::connection::Answers;
use pop::login::{Unread, talk};
use qmail::auth::door::{self, Answer, Request};
use qmail::auth::{Remarks, SIGNATURE_FD, Secret, wipe};
use qmail::environ::Environ;
use qmail::home::Home;
use qmail::program::{self, Args, Program, Voice};
use qmail::sys::memory;
use qmail::sys::process::{self, End};
use qmail::timed::{self, Deadline};
use qmail::trouble::Trouble;
use qmail::ucspitls::Facts;
use qmail::{date, environ, fd};
use std::os::fd::{AsRawFd, OwnedFd};

/// The talk with a client ends by itself: a minute, and as long as one answer may take to be sent. A child
/// that talks for longer is not talking any more.
const TALK_SECONDS: u64 = 400;

/// What a checker is told, and what is known of a TLS session.
const FIELDS_MAX: usize = 128 * 1024;

/// Name, secret and timestamp or challenge; with mechanism, service and address.
const FIELDS: [usize; 2] = [3, 6];

/// What a checker that cannot be executed exits with; answered as every temporary trouble.
const NOT_RUN: i32 = qmail::exits::TEMPORARY;

fn main() {
    Program::new("qmail-popup", "qmail-popup hostname subprogram [arg ...]")
        .voice(Voice::Silent)
        .on_panic(1)
        .run(popup)
}

fn popup(args: Args) -> Result<(), Trouble> {
    let mut answers = Answers::default();
    // Whatever happens the code is 1; a client that cannot be written to needs no words.
    let _ = session(&args, &mut answers).and_then(|()| answers.flush());
    Err(Trouble::exit(1, ""))
}

fn session(args: &Args, answers: &mut Answers) -> Result<(), Errno> {
    let [host, subprogram @ ..] = args.list() else { return answers.err("usage: popup hostname subprogram") };
    if subprogram.is_empty() {
        return answers.err("usage: popup hostname subprogram");
    }
    let home = match Home::find() {
        Ok(home) => Some(home),
        Err(trouble) if environ::get("QMAIL_HOME").is_some() => return not_set_up(answers, &trouble),
        Err(_) => None,
    };
    let mut timestamp = format!("<{}.{}@", std::process::id(), date::now()).into_bytes();
    timestamp.extend_from_slice(host);
    timestamp.push(b'>');
    let mut access = match Access::read(home.as_ref().map(Home::control).as_ref(), host) {
        Ok(access) => access,
        Err(trouble) => return not_set_up(answers, &trouble),
    };
    match &home {
        Some(home) if is_behind_door(home) => {
            // Here everything is in one process, which has nobody's rights and executes nothing.
            if let Err(trouble) = Jail::of(&programs::QMAIL_POPUP).home(home).close() {
                return not_set_up(answers, &trouble);
            }
            access.whole = true;
            let Some(fields) = talk(Unread::default(), answers, &timestamp, &mut access)? else {
                return Ok(());
            };
            ask(answers, home, subprogram, fields, &access.facts)
        }
        home => match talk_in_child(answers, home.as_ref(), &timestamp, &mut access)? {
            Some(fields) => check(answers, subprogram, fields, &access.facts),
            None => Ok(()),
        },
    }
}

fn not_set_up(answers: &mut Answers, trouble: &Trouble) -> Result<(), Errno> {
    let _ = fd::write_all(fd::ERR, &[b"qmail-popup: fatal: ", trouble.text().as_slice(), b"\n"].concat());
    answers.err("[SYS/TEMP] this server is not set up")
}

/// Whether logins are qmail-authd's affair: we are the account that talks to the network.
fn is_behind_door(home: &Home) -> bool {
    let qmaild = home.ids().role("qmaild").filter(|_| !home.ids().is_own());
    qmaild.is_some_and(|qmaild| qmaild.uid == Uid::effective())
}

/// The talk with the client, in a process that needs no more than the client and a pipe.
fn talk_in_child(
    answers: &mut Answers,
    home: Option<&Home>,
    timestamp: &[u8],
    access: &mut Access,
) -> Result<Option<Secret>, Errno> {
    if let Err(trouble) = Jail::of(&programs::QMAIL_POPUP_CLASSIC).close() {
        return not_set_up(answers, &trouble).map(|()| None);
    }
    let Ok((read, write)) = fd::pipe() else {
        return answers.err("[SYS/TEMP] unable to open pipe").map(|()| None);
    };
    let child = process::fork_child(|| {
        process::close(read.as_raw_fd());
        if !give_up_root(home) {
            return NOT_RUN;
        }
        memory::die_with_parent(Signal::SIGKILL as i32);
        if let Err(trouble) = Jail::of(&programs::QMAIL_POPUP_TALKING).close() {
            warn(&trouble);
            let _ = answers.err("[SYS/TEMP] this server is not set up").and_then(|()| answers.flush());
            return NOT_RUN;
        }
        if let Ok(Some(fields)) = talk(Unread::default(), answers, timestamp, access) {
            let list = if access.upgraded { access.facts.list() } else { Vec::new() };
            let length = u32::try_from(list.len()).unwrap_or(0).to_be_bytes();
            let _ = fd::write_all(&write, &[length.as_slice(), &list].concat());
            let _ = fd::write_all(&write, &fields);
        }
        qmail::exits::SUCCESS
    });
    let Ok(pid) = child else { return answers.err("[SYS/TEMP] unable to fork").map(|()| None) };
    drop(write);
    let fields = read_fields(&read);
    let _ = kill(pid, Signal::SIGKILL); // it has said everything, or nothing that counts
    let _ = process::wait(pid);
    let Ok(said) = fields else { return Ok(None) };
    let Some((length, rest)) = said.split_first_chunk() else { return Ok(None) };
    let Some((list, fields)) =
        usize::try_from(u32::from_be_bytes(*length)).ok().and_then(|n| rest.split_at_checked(n))
    else {
        return Ok(None);
    };
    // All of them or none.
    let count = fields.iter().filter(|b| **b == 0).count();
    if !(fields.ends_with(b"\0") && FIELDS.contains(&count)) {
        return Ok(None);
    }
    if !list.is_empty() {
        let (Some(offer), Some(facts)) = (access.tls.take(), Facts::parse(list)) else { return Ok(None) };
        offer.adopt()?;
        access.facts = facts;
    }
    Ok(Some(Secret(fields.to_vec())))
}

/// Root's child talks as qmaild, where there is one.
fn give_up_root(home: Option<&Home>) -> bool {
    match home.and_then(|home| home.ids().role("qmaild")) {
        Some(qmaild) if Uid::effective().is_root() => {
            let became = process::become_user(qmaild.uid, qmaild.gid, &[qmaild.gid]).is_ok();
            memory::undumpable(); // a new uid may have made it dumpable
            became
        }
        _ => true,
    }
}

/// What the child gives, to its end.
fn read_fields(pipe: &OwnedFd) -> Result<Secret, Errno> {
    let deadline = Deadline::seconds(TALK_SECONDS);
    let mut fields = Secret(Vec::with_capacity(FIELDS_MAX));
    let mut chunk = [0u8; 1024];
    loop {
        let n = timed::read(pipe, &mut chunk, deadline)?;
        if n == 0 {
            return Ok(fields);
        }
        if fields.len() + n > FIELDS_MAX {
            return Err(Errno::EFBIG);
        }
        fields.0.extend_from_slice(chunk.get(..n).unwrap_or_default());
        wipe(&mut chunk);
    }
}

/// Has qmail-authd run the subprogram, and stays until the session has ended.
fn ask(
    answers: &mut Answers,
    home: &Home,
    words: &[Vec<u8>],
    fields: Secret,
    facts: &Facts,
) -> Result<(), Errno> {
    match door::ask(home, Request::with(fields, words, facts.all()), fd::IN, fd::OUT) {
        Ok(Answer { code: 0, .. }) => Ok(()),
        Ok(Answer { code, .. }) => refuse(answers, code),
        Err(trouble) => {
            warn(&trouble);
            refuse(answers, NOT_RUN)
        }
    }
}

/// Runs the subprogram, which is the session when it accepts, and answers for it when it does not.
fn check(answers: &mut Answers, subprogram: &[Vec<u8>], fields: Secret, facts: &Facts) -> Result<(), Errno> {
    let name = subprogram.first().map(Vec::as_slice).unwrap_or_default();
    let Some(path) = program::find(name) else {
        warn(&Trouble::unable("run", name, Errno::ENOENT));
        return refuse(answers, NOT_RUN);
    };
    let Ok((read, write)) = fd::pipe() else { return answers.err("[SYS/TEMP] unable to open pipe") };
    let Ok(remarks) = Remarks::wanted(&fields) else {
        return answers.err("[SYS/TEMP] unable to make a file");
    };
    let mut environ = Environ::inherited();
    facts.all().iter().for_each(|(name, value)| environ.set(name, value));
    if let Some(remarks) = &remarks {
        remarks.announce(&mut environ);
    }
    let command = process::Command::new(path, subprogram).environ(&environ).descriptor(&read, 3);
    let command = match &remarks {
        Some(remarks) => command.descriptor(remarks, SIGNATURE_FD),
        None => command,
    };
    let Ok(pid) = process::fork_child(|| {
        warn(&Trouble::unable("run", name, command.exec()));
        NOT_RUN
    }) else {
        return answers.err("[SYS/TEMP] unable to fork");
    };
    drop(command);
    drop(read);
    let written = fd::write_all(&write, &fields);
    drop(fields);
    drop(write);
    let end = process::wait(pid);
    match (written, end) {
        (_, Ok(End::Exit(0))) => Ok(()),
        (_, Ok(End::Crash(_))) | (_, Err(_)) => answers.err("[SYS/TEMP] aack, child crashed"),
        // A checker may decide without having read all.
        (Err(errno), _) if errno != Errno::EPIPE => answers.err("[SYS/TEMP] unable to write pipe"),
        (_, Ok(End::Exit(code))) => refuse(answers, code),
    }
}

fn refuse(answers: &mut Answers, code: i32) -> Result<(), Errno> {
    answers.err(&format!("[{}] authorization failed", response_code(code)))
}

/// A line for the log: nobody can log in.
fn warn(trouble: &Trouble) {
    let _ = fd::write_all(fd::ERR, &[b"qmail-popup: warning: ", trouble.text().as_slice(), b"\n"].concat());
}

/// The response code (RFC 3206) for a checker's exit code. Checkers of the field refuse with 3 to 20 too.
fn response_code(exit: i32) -> &'static str {
    match exit {
        2 => "SYS/PERM",
        1..100 => "AUTH",
        _ => "SYS/TEMP",
    }
}
