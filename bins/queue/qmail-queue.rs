//! qmail-queue - take a message into the queue
//!
//! called by  whoever sends mail          runs as  whoever calls it
//! fd 0       the message, to its end
//! fd 1       the envelope: F sender NUL, T recipient NUL …, NUL
//! fd 6       (written, if open) a text for users when the exit code is 82
//! exit       0 on disk for good; 11 52 53 54 61-66 72-74 81 82 91 as in qmail-queue(8)
//! jail       queue/ mess intd todo pid lock where its uid owns queue/mess, else no file; no TCP, no exec
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::sys::signal::Signal;
use qmail::exits::queue as code;
use qmail::home::Home;
use qmail::program::{Args, Program, Voice};
use qmail::queue::accept::{self, Origin, Source};
use qmail::queue::{client, door};
use qmail::timed::{Deadline, Reader};
use qmail::trouble::Trouble;
use qmail::{fd, sys};

/// Beside the lifetime that reading observes: a backstop should a disk never answer.
const ALARM_SECONDS: u32 = accept::LIFETIME_SECONDS as u32;

/// Longest answer of qmail-queued: a code and a text.
const ANSWER_MAX: usize = 1 + door::TEXT_MAX;

/// Where a caller may want to read why (exit 82).
const CUSTOM_TEXT: fd::Standard = fd::Standard(6);

fn main() {
    Program::new("qmail-queue", "qmail-queue <message 1<envelope")
        .voice(Voice::Silent)
        .on_panic(code::BUG)
        .run(queue)
}

fn queue(_: Args) -> Result<(), Trouble> {
    prepare_signals();
    let home = Home::find().map_err(|_| exit(code::HOME))?;
    let direct = !client::forced("socket") && client::owns_queue(&home).map_err(exit)?;
    if direct { write_queue(&home) } else { ask_server(&home) }
}

/// Asked-for signals do not stop a message half-way; bugs and the alarm have exit codes.
fn prepare_signals() {
    use Signal::*;
    sys::signal::unblock();
    sys::signal::ignore(&[SIGPIPE, SIGVTALRM, SIGPROF, SIGQUIT, SIGINT, SIGHUP, SIGXCPU, SIGXFSZ]);
    sys::signal::exit_on(&[SIGILL, SIGABRT, SIGFPE, SIGBUS, SIGSEGV, SIGSYS], code::BUG);
    sys::signal::exit_on_alarm(code::TIMEOUT);
    nix::unistd::alarm::set(ALARM_SECONDS);
}

/// The direct door.
fn write_queue(home: &Home) -> Result<(), Trouble> {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o033));
    home.enter().map_err(|_| exit(code::HOME))?;
    nix::unistd::chdir("queue").map_err(|_| exit(code::QUEUE_DIR))?;
    Jail::of(&programs::QMAIL_QUEUE).home(home).close().map_err(|_| exit(code::HOME))?;
    let origin = Origin { uid: nix::unistd::getuid(), pid: nix::unistd::getpid() };
    let source = Source { message: Reader::new(fd::IN), envelope: Reader::new(fd::OUT), stall: None };
    // model: Q16 R4
    accept::accept(home, origin, source).map(|_| ()).map_err(|refusal| exit(refusal.0))
}

/// The socket door: qmail-queued does the same with our descriptors.
fn ask_server(home: &Home) -> Result<(), Trouble> {
    let connection = door::connect_patiently(home).map_err(exit)?;
    Jail::of(&programs::QMAIL_QUEUE_ASKING).close().map_err(|_| exit(code::HOME))?;
    door::send_request(&connection, &fd::IN, &fd::OUT);
    let mut answer = Vec::new();
    let mut chunk = [0u8; ANSWER_MAX];
    loop {
        match qmail::timed::read(&connection, &mut chunk, Deadline::never()) {
            Ok(0) | Err(_) => break,
            Ok(n) => answer.extend_from_slice(chunk.get(..n).unwrap_or_default()),
        }
    }
    match door::parse_answer(&answer) {
        Some((0, _)) => Ok(()),
        Some((number, text)) => {
            if number == code::CUSTOM {
                let _ = fd::write_all(CUSTOM_TEXT, text);
            }
            Err(exit(number))
        }
        None => Err(exit(code::COMMUNICATION)),
    }
}

fn exit(code: i32) -> Trouble {
    Trouble::exit(code, "")
}
