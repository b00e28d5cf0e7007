//! checkpassword-file - check a login against a plain file, and run a program as that user
//!
//! called by  qmail-popup and others with a name and a password on fd 3
//! arguments  file program [argument ...]
//! runs as    root, or the one user that all lines of the file name
//! fd 3       name NUL password NUL timestamp NUL
//! jail       rlimits only: it runs its arguments
//! exit       1 not acceptable, 2 misused, 111 temporary trouble; else the program's
//!
//! Lines are `name:hash:uid:gid:home`; the first of a name counts. The whole file is read and one hash
//! computed, whether the name is there or not.
#![deny(unsafe_code)] // allowed in crypt, which speaks to libcrypt

mod crypt;
mod login;

use jail::{Jail, programs};
use login::{Account, Login};
use nix::unistd::{Gid, Uid};
use qmail::program::{self, Args};
use qmail::timed::{Line, Reader};
use qmail::trouble::Trouble;
use qmail::{decimal, fd};

/// A line longer than this is nobody's.
const LINE_MAX: usize = 4096;

/// What a password is hashed with when no line of the file shows what is usual there (yescrypt, as
/// passwd of present systems).
const DUMMY: &[u8] = b"$y$j9T$F5Jx5fExrKuPp53xLKQ..1";

fn main() {
    program::run("checkpassword-file", "checkpassword-file file program [arg ...]", check)
}

fn check(args: Args) -> Result<(), Trouble> {
    let [file, program @ ..] = args.list() else { return Err(login::misused("no file to check against")) };
    let program = login::program_of(program)?;
    Jail::of(&programs::CHECKPASSWORD_FILE).close()?;
    let mut login = Login::read()?;
    let (found, usual) = look_up(file, &login.name)?;
    let hash = found.as_ref().map(|(hash, _)| hash.as_slice());
    let verdict = login.check(hash, usual.as_deref().unwrap_or(DUMMY));
    login.forget();
    verdict?;
    match found {
        Some((_, account)) if !account.uid.is_root() => Err(account.run(program)),
        _ => Err(login::refused()),
    }
}

type Stored = (Vec<u8>, Account);

/// The hash and account of a name, and a hash of the file's that shows the usual scheme.
fn look_up(file: &[u8], name: &[u8]) -> Result<(Option<Stored>, Option<Vec<u8>>), Trouble> {
    let trouble = |errno| Trouble::unable("read", file, errno);
    let opened = fd::open_read(file).map_err(|errno| Trouble::unable("open", file, errno))?;
    let mut lines = Reader::new(opened);
    let (mut found, mut usual) = (None, None);
    loop {
        let (line, last) = match lines.line(b'\n', LINE_MAX).map_err(trouble)? {
            Line::Whole(line) => (line, false),
            Line::TooLong => continue,
            Line::End(line) => (line, true),
        };
        if let Some(stored) = parse(&line) {
            if found.is_none() && !name.is_empty() && stored.1.name == name {
                found = Some(stored);
            } else if usual.is_none() && login::usable(&stored.0) {
                usual = Some(stored.0);
            }
        }
        if last {
            return Ok((found, usual));
        }
    }
}

/// `name:hash:uid:gid:home`. Lines of any other shape are nobody's.
fn parse(line: &[u8]) -> Option<Stored> {
    if line.starts_with(b"#") {
        return None;
    }
    let fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
    let [name, hash, uid, gid, home] = fields.as_slice() else { return None };
    let account = Account {
        name: name.to_vec(),
        uid: Uid::from_raw(id(uid)?),
        gid: Gid::from_raw(id(gid)?),
        home: home.to_vec(),
        shell: b"/bin/sh".to_vec(),
    };
    Some((hash.to_vec(), account))
}

/// A uid or gid; the highest number means "leave as it is" to the system.
fn id(text: &[u8]) -> Option<u32> {
    u32::try_from(decimal::strict(text)?).ok().filter(|id| *id != u32::MAX)
}
