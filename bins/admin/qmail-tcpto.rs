//! qmail-tcpto - list the addresses that timed out lately
//!
//! called by  the administrator           runs as  root or qmailr: the lock needs writing
//! fd 1       one line an address, and what went wrong
//! jail       queue/lock/tcpto; no exec, no network
//! exit       0, 111 trouble
//! touches    queue/lock/tcpto, reading
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use qmail::home::Home;
use qmail::program::{self, Args};
use qmail::tcpto::{self, Record, Step};
use qmail::trouble::{Trouble, wording};
use qmail::{date, exits, fd};

fn main() -> ! {
    program::run("qmail-tcpto", "qmail-tcpto", list)
}

fn list(args: Args) -> Result<(), Trouble> {
    args.none()?;
    let no_home = |trouble: Trouble| fatal(&[b"unable to chdir: ", trouble.text().as_slice()].concat());
    let home = Home::find().map_err(no_home)?;
    home.enter().map_err(no_home)?;
    Jail::of(&programs::QMAIL_TCPTO).home(&home).close().map_err(|trouble| fatal(&trouble.text()))?;
    let table = tcpto::Table::open(&home.path(tcpto::FILE)).map_err(|(step, errno)| failed(step, errno))?;
    let now = date::now();
    let lines: Vec<u8> = table.records().iter().filter(|r| r.count > 0).flat_map(|r| line(r, now)).collect();
    fd::write_all(fd::OUT, &lines).map_err(|e| Trouble::temporary("unable to write output").because(e))
}

/// Tools read this line; a clock that was set back makes no negative numbers.
fn line(record: &Record, now: u64) -> Vec<u8> {
    let (ip, seconds, count) = (record.ip, record.age(now).max(0), record.count);
    format!("{ip} timed out {seconds} seconds ago; # recent timeouts: {count}\n").into_bytes()
}

fn failed(step: Step, errno: Errno) -> Trouble {
    let step = match step {
        Step::Open => "open",
        Step::Lock => "lock",
        Step::Read | Step::Write => "read",
    };
    fatal(format!("unable to {step} tcpto: {}", wording(errno)).as_bytes())
}

/// Said on fd 1, as it always was.
fn fatal(text: &[u8]) -> Trouble {
    let _ = fd::write_all(fd::OUT, &[b"fatal: ", text, b"\n"].concat());
    Trouble::exit(exits::TEMPORARY, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_long_ago_and_how_often() {
        let record = Record { ip: "192.0.2.7".parse().unwrap(), count: 3, last: 1_000_000 };
        let said = b"192.0.2.7 timed out 60 seconds ago; # recent timeouts: 3\n";
        assert_eq!(line(&record, 1_000_060), said);
        assert!(line(&record, 999_000).windows(9).any(|w| w == b" 0 second"));
    }
}
