//! checkpassword - check a login against the system's accounts, and run a program as that user
//!
//! called by  qmail-popup and others with a name and a password on fd 3
//! arguments  [-s] program [argument ...]
//! runs as    root
//! fd 3       name NUL password NUL [timestamp NUL ...]
//! jail       rlimits only: it runs its arguments
//! exit       1 not acceptable, 2 misused, 111 temporary trouble; else the program's
//! touches    the account database and the shadow passwords, through the system's library; /etc/shells with -s
#![forbid(unsafe_code)]

use auth::account::{self, Account, program_of};
use auth::login::{Login, REFUSED, misused, refused};
use auth::shadow;
use auth::stored::{self, Bare, DUMMY};
use jail::{Jail, programs};
use qmail::auth::Secret;
use qmail::fd;
use qmail::program::{self, Args};
use qmail::trouble::Trouble;
use std::time::{SystemTime, UNIX_EPOCH};

/// /etc/shells has some dozen lines.
const SHELLS_MAX: usize = 64 * 1024;

fn main() {
    program::run("checkpassword", "checkpassword [-s] program [arg ...]", check)
}

fn check(args: Args) -> Result<(), Trouble> {
    // Any command line without options is a program, as it always was.
    let parsed = args.options("s").map_err(|_| misused("the only option is -s"))?;
    let program = program_of(&parsed.rest)?;
    Jail::of(&programs::CHECKPASSWORD).close()?;
    let login = Login::read()?;
    let Some(proof) = login.proof() else { return Err(refused()) };
    let found = look_up(login.name())?;
    let stored = found.as_ref().map(|found| &*found.hash);
    // Looked for whether it is needed or not: who is unknown must not be told by the time that takes.
    let usual = shadow::usual(|hash| stored::is_usable(hash, Bare::Hash));
    let verdict = stored::check(stored, usual.as_deref().unwrap_or(DUMMY), Bare::Hash, &proof);
    login.settle(verdict)?;
    let Some(Found { account, closed, .. }) = found else { return Err(refused()) };
    if let Some(reason) = closed {
        return Err(closed_to(&account, reason)); // said only to who knows the password
    }
    if parsed.has('s') && !is_shell(&account.shell)? {
        return Err(closed_to(&account, "its shell is none of /etc/shells"));
    }
    Err(account.run(program))
}

struct Found {
    account: Account,
    hash: Secret,
    closed: Option<&'static str>,
}

/// What the system knows of a name. A shadow entry counts before what passwd says.
fn look_up(name: &[u8]) -> Result<Option<Found>, Trouble> {
    let Some((account, word)) = account::of_system(name)? else { return Ok(None) };
    let entry =
        shadow::entry(name).map_err(|e| Trouble::temporary("unable to read shadow passwords").because(e))?;
    Ok(Some(match entry {
        Some(entry) => Found { account, closed: entry.closed(today()), hash: entry.hash },
        None => Found { account, closed: None, hash: Secret(word) },
    }))
}

fn today() -> i64 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds / 86_400).unwrap_or(i64::MAX)
}

/// The exit code of a refusal, with a word for the log.
fn closed_to(account: &Account, reason: &str) -> Trouble {
    Trouble::exit(REFUSED, [account.name.as_slice(), b": ", reason.as_bytes()].concat())
}

/// Whether an account is one for people: its shell is in /etc/shells.
fn is_shell(shell: &[u8]) -> Result<bool, Trouble> {
    let text =
        fd::read_file("/etc/shells", SHELLS_MAX).map_err(|e| Trouble::unable("read", "/etc/shells", e))?;
    let shell = if shell.is_empty() { b"/bin/sh" } else { shell };
    Ok(text.unwrap_or_default().split(|b| *b == b'\n').any(|line| line == shell))
}
