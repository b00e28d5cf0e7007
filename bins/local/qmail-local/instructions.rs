//! The instruction lines, one after the other; then the forwards, all at once.

use crate::program::{self, Next};
use crate::report;
use crate::search::Found;
use qmail::dotqmail::{Delivery, Instruction, instructions};
use qmail::environ::Environ;
use qmail::home::Home;
use qmail::queue::client::{Outcome, Submission};
use qmail::trouble::{Trouble, wording};
use qmail::{fd, maildir, mbox};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Deliver,
    /// `-n`: only say what would be done.
    Print,
}

/// Everything that is known once the control file was found.
pub struct Job<'a> {
    pub delivery: &'a Delivery,
    pub mode: Mode,
    pub found: Option<Found>,
    pub new_sender: Vec<u8>,
    pub environ: Environ,
    /// The time that UFLINE shows.
    pub from_line_date: u64,
}

/// What was done, as the last line of a report counts it.
#[derive(Default)]
pub struct Did {
    files: u32,
    programs: u32,
    forwards: Vec<Vec<u8>>,
}

impl Did {
    /// Nothing was started or handed on: this process is as it was.
    pub fn is_plain(&self) -> bool {
        self.programs == 0 && self.forwards.is_empty()
    }
}

/// Does all of it. The first failure ends everything: lines behind it and all forwards are left for the
/// next attempt, which will also repeat what was done before it.
pub fn carry_out(job: &Job) -> Result<Did, Trouble> {
    let mut did = Did::default();
    run_lines(job, &mut did)?;
    let mut said = format!("did {}+{}+{}\n", did.files, did.forwards.len(), did.programs);
    if job.mode == Mode::Deliver && !did.forwards.is_empty() {
        let qp = forward(job, &did.forwards)?;
        said.push_str(&format!("qp {qp}\n"));
    }
    match (fd::write_all(fd::OUT, said.as_bytes()), job.mode) {
        (Err(errno), Mode::Print) => Err(report::unable("write", b"", wording(errno), "4.3.0")),
        // Delivered is delivered, whether or not somebody listens.
        _ => Ok(did),
    }
}

fn run_lines(job: &Job, did: &mut Did) -> Result<(), Trouble> {
    let (text, mut forward_only) = match &job.found {
        Some(found) if !found.text.is_empty() => (found.text.as_slice(), found.forward_only),
        _ => (job.delivery.default_delivery.as_slice(), false),
    };
    for (number, instruction) in instructions(text).enumerate() {
        match instruction {
            Instruction::Blank if number == 0 => return Err(Trouble::temporary(report::FIRST_BLANK)),
            Instruction::Blank | Instruction::Comment => {}
            Instruction::Damaged => return Err(Trouble::temporary(report::DAMAGED)),
            Instruction::ForwardOnly => forward_only = true,
            Instruction::Maildir(_) | Instruction::Mbox(_) if forward_only => {
                return Err(Trouble::temporary(report::FILE_AND_X));
            }
            Instruction::Program(_) if forward_only => return Err(Trouble::temporary(report::PROGRAM_AND_X)),
            Instruction::Maildir(directory) => {
                job.either("maildir", directory, || to_maildir(job, directory, did.files))?;
                did.files += 1;
            }
            Instruction::Mbox(file) => {
                job.either("mbox", file, || to_mbox(job, file))?;
                did.files += 1;
            }
            Instruction::Program(command) => {
                let mut next = Next::Line;
                job.either("program", command, || {
                    next = program::run(command, &job.environ)?;
                    Ok(())
                })?;
                did.programs += 1;
                if next == Next::End {
                    return Ok(());
                }
            }
            Instruction::Forward(address) => {
                job.either("forward", address, || Ok(()))?;
                did.forwards.push(address.to_vec());
            }
        }
    }
    Ok(())
}

impl Job<'_> {
    /// Does it, or with `-n` says it.
    fn either(
        &self,
        kind: &str,
        what: &[u8],
        act: impl FnOnce() -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        if self.mode == Mode::Deliver {
            return act();
        }
        let line = [kind.as_bytes(), b" ", what, b"\n"].concat();
        fd::write_all(fd::OUT, &line).map_err(|errno| report::unable("write", b"", wording(errno), "4.3.0"))
    }
}

fn to_maildir(job: &Job, directory: &[u8], sequence: u32) -> Result<(), Trouble> {
    use maildir::Failure;
    let head = [job.delivery.return_path(), job.delivery.delivered_to()].concat();
    maildir::deliver(directory, &head, fd::IN, sequence).map_err(|failure| {
        Trouble::temporary(match failure {
            Failure::Directory => report::MAILDIR_CHDIR,
            Failure::Message => report::MAILDIR_MESSAGE,
            Failure::Timeout => report::MAILDIR_TIMEOUT,
            Failure::Temporary => report::MAILDIR_TEMPORARY,
        })
    })
}

fn to_mbox(job: &Job, file: &[u8]) -> Result<(), Trouble> {
    use mbox::Failure;
    let head = mbox::Head {
        from_line: &job.delivery.from_line(job.from_line_date),
        return_path: &job.delivery.return_path(),
        delivered_to: &job.delivery.delivered_to(),
    };
    mbox::deliver(file, &head, fd::IN).map_err(|failure| match failure {
        Failure::Open(errno) => report::unable("open ", file, wording(errno), "4.2.1"),
        Failure::Locked => Trouble::temporary(report::LOCKED),
        Failure::Write(errno) => report::unable("write ", file, wording(errno), "4.3.0"),
        Failure::Message(errno) => report::message(errno),
        Failure::Fork(errno) => report::fork(errno),
    })
}

/// Queues the message once for all these addresses; the process id that the log will show.
///
/// The home is looked for only here: a delivery without forwards needs none.
fn forward(job: &Job, addresses: &[Vec<u8>]) -> Result<u32, Trouble> {
    let home = Home::find().map_err(|trouble| unable_to_forward(&trouble.text(), Trouble::temporary))?;
    mbox::rewind(fd::IN).map_err(|_| report::rewind())?;
    let mut queue = Submission::open(&home).map_err(refusal)?;
    queue.put(job.delivery.delivered_to());
    if let Err(errno) = queue.put_from(fd::IN) {
        queue.abort();
        let _ = queue.close_with(b"", std::iter::empty());
        return Err(report::message(errno));
    }
    match queue.close_with(&job.new_sender, addresses.iter().map(Vec::as_slice)) {
        Outcome::Queued { qp } => Ok(qp),
        outcome => Err(refusal(outcome)),
    }
}

fn refusal(outcome: Outcome) -> Trouble {
    match outcome {
        Outcome::Permanent(text) => unable_to_forward(&text, Trouble::permanent),
        Outcome::Temporary(text) => unable_to_forward(&text, Trouble::temporary),
        Outcome::Queued { .. } => unable_to_forward(b"internal bug", Trouble::temporary),
    }
}

fn unable_to_forward(text: &[u8], class: fn(Vec<u8>) -> Trouble) -> Trouble {
    class([b"Unable to forward message: ", text, b"."].concat())
}
