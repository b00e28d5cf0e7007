//! forward - sends a message on to the addresses it is given
//!
//! called by  a .qmail line `|forward address ...`     runs as  the recipient
//! fd 0       the message, from where it stands
//! fd 2       `forward: qp PID`, or why not
//! jail       rlimits only: it may run $QMAILQUEUE, and can no more than its user
//! exit       0 queued, 100 refused for good or wrong use, 111 try again later
//! touches    the queue, through qmail-queued or $QMAILQUEUE
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use qmail::home::Home;
use qmail::program::{self, Args};
use qmail::queue::client::{Outcome, Submission};
use qmail::trouble::{Trouble, wording};
use qmail::{environ, fd};

fn main() -> ! {
    program::run("forward", "forward address ...", forward)
}

fn forward(args: Args) -> Result<(), Trouble> {
    let Some(sender) = environ::get("NEWSENDER") else {
        args.none()?; // --help, which from qmail-local would be an address and not a question
        return Err(Trouble::permanent("NEWSENDER not set"));
    };
    let Some(delivered_to) = environ::get("DTLINE") else {
        return Err(Trouble::permanent("DTLINE not set"));
    };
    // No options: an address may begin with a hyphen, and must not be mistaken for one.
    if args.list().is_empty() {
        return Err(args.wrong());
    }
    Jail::of(&programs::FORWARD).close()?;
    let mut queue = Submission::open(&Home::find()?).map_err(refusal)?;
    queue.put(&delivered_to);
    if let Err(errno) = queue.put_from(fd::IN) {
        queue.abort();
        let _ = queue.close_with(b"", std::iter::empty());
        return Err(Trouble::temporary(format!("unable to read message: {}", wording(errno))));
    }
    match queue.close_with(&sender, args.list().iter().map(Vec::as_slice)) {
        Outcome::Queued { qp } => {
            let _ = fd::write_all(fd::ERR, format!("forward: qp {qp}\n").as_bytes());
            Ok(())
        }
        outcome => Err(refusal(outcome)),
    }
}

fn refusal(outcome: Outcome) -> Trouble {
    match outcome {
        Outcome::Permanent(text) => Trouble::permanent(text),
        Outcome::Temporary(text) => Trouble::temporary(text),
        Outcome::Queued { .. } => Trouble::temporary("internal bug"),
    }
}
