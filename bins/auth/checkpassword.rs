//! checkpassword - check a login against the system's accounts, and run a program as that user
//!
//! called by  qmail-popup and others with a name and a password on fd 3
//! arguments  program [argument ...]
//! runs as    root
//! fd 3       name NUL password NUL timestamp NUL
//! jail       rlimits only: it runs its arguments
//! exit       1 not acceptable, 2 misused, 111 temporary trouble; else the program's
//! touches    the account database and the shadow passwords, through the system's library
#![deny(unsafe_code)] // allowed in crypt and shadow, which speak to C libraries

mod crypt;
mod login;
mod shadow;

use jail::{Jail, programs};
use login::{Account, Login};
use nix::unistd::User;
use qmail::program::{self, Args};
use qmail::trouble::Trouble;
use std::os::unix::ffi::OsStringExt;

/// What a password is hashed with when there is no such account: the scheme of present systems.
const DUMMY: &[u8] = b"$y$j9T$F5Jx5fExrKuPp53xLKQ..1";

fn main() {
    program::run("checkpassword", "checkpassword program [arg ...]", check)
}

fn check(args: Args) -> Result<(), Trouble> {
    let program = login::program_of(args.list())?;
    Jail::of(&programs::CHECKPASSWORD).close()?;
    let mut login = Login::read()?;
    let found = look_up(&login.name)?;
    let verdict = login.check(found.as_ref().map(|(hash, _)| hash.as_slice()), DUMMY);
    login.forget();
    verdict?;
    Err(found.map_or_else(login::refused, |(_, account)| account.run(program)))
}

/// The hash and account of a name. A shadow entry counts before what passwd says.
fn look_up(name: &[u8]) -> Result<Option<(Vec<u8>, Account)>, Trouble> {
    // The library wants text; a name that is none is nobody's.
    let Ok(text) = std::str::from_utf8(name) else { return Ok(None) };
    let user = match User::from_name(text) {
        Ok(Some(user)) => user,
        Ok(None) => return Ok(None),
        Err(errno) => return Err(Trouble::temporary("unable to read the account database").because(errno)),
    };
    let shadow =
        shadow::hash(name).map_err(|e| Trouble::temporary("unable to read shadow passwords").because(e))?;
    let account = Account {
        name: name.to_vec(),
        uid: user.uid,
        gid: user.gid,
        home: user.dir.into_os_string().into_vec(),
        shell: user.shell.into_os_string().into_vec(),
    };
    Ok(Some((shadow.unwrap_or_else(|| user.passwd.into_bytes()), account)))
}
