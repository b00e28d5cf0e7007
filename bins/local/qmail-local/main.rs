//! qmail-local - delivers one message to one recipient, as the recipient's .qmail file says
//!
//! called by  qmail-lspawn             runs as  the recipient, in the home that is given
//! fd 0       the message, seekable; shared with the programs it is delivered to
//! fd 1       `did FILES+FORWARDS+PROGRAMS`, `qp PID`, and what programs write
//! fd 2       why not
//! fd 3       with QMAILKEEP=3 of qmail-lspawn: more messages for this recipient (qmail::spawn::line). Behind one that went
//!            only to Maildirs and mboxes this process takes the next; what it runs does not have the descriptor
//! jail       rlimits only: it runs what .qmail says
//! exit       0 done, 100 permanent trouble, 111 temporary trouble (or a bug of ours)
//! touches    .qmail files, Maildirs and mailboxes of the user; the queue, for forwards
#![forbid(unsafe_code)]

mod instructions;
mod more;
mod program;
mod report;
mod search;

use instructions::{Did, Job, Mode};
use jail::{Jail, programs};
use more::More;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode as Bits, umask};
use nix::unistd::dup2_stdin;
use qmail::dotqmail::Delivery;
use qmail::environ::Environ;
use qmail::program::{Args, Program, Voice};
use qmail::spawn::line;
use qmail::timed::{Line, Reader};
use qmail::trouble::Trouble;
use qmail::{date, fd, mbox, sys};

const USAGE: &str = "qmail-local [-nN] user homedir local dash ext domain sender defaultdelivery";

fn main() -> ! {
    Program::new("qmail-local", USAGE).voice(Voice::Bare).run(local)
}

fn local(args: Args) -> Result<(), Trouble> {
    let more = More::inherited();
    sys::descriptor::close_above(if more.is_some() { line::NUMBER.unsigned_abs() } else { 2 });
    sys::signal::unblock();
    // A file size limit shall be an error we can clean up after, not the end of us.
    sys::signal::ignore(&[Signal::SIGPIPE, Signal::SIGXFSZ]);
    umask(Bits::from_bits_truncate(0o077));

    Jail::of(&programs::QMAIL_LOCAL).close()?;
    let (mut delivery, mode) = understand(&args)?;
    let mut more = more.filter(|_| mode == Mode::Deliver);
    while deliver(&delivery, mode)?.is_plain() {
        let Some(next) = more.as_mut().and_then(More::next) else { break };
        dup2_stdin(&next.message).map_err(report::message)?;
        delivery.sender = next.sender;
    }
    Ok(())
}

/// One message, with everything as it is now.
fn deliver(delivery: &Delivery, mode: Mode) -> Result<Did, Trouble> {
    search::enter_home(&delivery.home, mode)?;
    if mode == Mode::Deliver {
        refuse_loop(&delivery.delivered_to())?;
    }
    let found = search::control_file(delivery)?;
    let new_sender = delivery.new_sender(search::owner(delivery)?);
    let mut environ = Environ::inherited();
    environ.unset(line::VARIABLE);
    let now = date::now();
    for (name, value) in delivery.variables(now) {
        environ.set(name, value);
    }
    environ.set("NEWSENDER", &new_sender);
    environ.unset("DEFAULT"); // ours or nobody's
    if let Some(default) = found.as_ref().and_then(|f| delivery.default(&f.candidate)) {
        environ.set("DEFAULT", default);
    }
    instructions::carry_out(&Job { delivery, mode, found, new_sender, environ, from_line_date: now })
}

fn understand(args: &Args) -> Result<(Delivery, Mode), Trouble> {
    let parsed = args.options("nN").map_err(named)?;
    let mode = match parsed.options.last() {
        Some(('n', _)) => Mode::Print,
        _ => Mode::Deliver,
    };
    let Ok([user, home, local, dash, ext, domain, sender, default_delivery]) =
        <[Vec<u8>; 8]>::try_from(parsed.rest)
    else {
        return Err(args.wrong());
    };
    if !home.starts_with(b"/") {
        return Err(args.wrong());
    }
    Ok((Delivery { user, home, local, dash, ext, domain, sender, default_delivery }, mode))
}

/// A wrong option is told to whoever started us, not to a sender: with our name.
fn named(trouble: Trouble) -> Trouble {
    if trouble.is_usage() {
        return Trouble::usage([b"qmail-local: ".as_slice(), &trouble.text()].concat());
    }
    trouble
}

/// A message that was here before would come for ever.
fn refuse_loop(delivered_to: &[u8]) -> Result<(), Trouble> {
    mbox::rewind(fd::IN).map_err(|_| report::rewind())?;
    let ours = delivered_to.strip_suffix(b"\n").unwrap_or(delivered_to);
    let mut message = Reader::new(fd::IN);
    loop {
        match message.line(b'\n', ours.len()).map_err(report::message)? {
            Line::Whole(line) | Line::End(line) if line == ours => {
                return Err(Trouble::permanent(report::LOOP));
            }
            Line::Whole(line) if line.is_empty() => return Ok(()),
            Line::End(_) => return Ok(()),
            Line::Whole(_) | Line::TooLong => {}
        }
    }
}
