//! account - who is let in: what a checker becomes, and the system's accounts
#![forbid(unsafe_code)]

use crate::login::{misused, refused};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, User};
use qmail::auth::tell_account;
use qmail::environ::Environ;
use qmail::fd;
use qmail::program;
use qmail::sys::process::{Command, become_user};
use qmail::trouble::Trouble;
use std::os::unix::ffi::OsStringExt;

/// An account that was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: Vec<u8>,
    pub uid: Uid,
    pub gid: Gid,
    pub home: Vec<u8>,
    pub shell: Vec<u8>,
}

impl Account {
    /// Becomes the user, in its home, and then the program. Comes back only with the reason why not.
    pub fn run(&self, program: &[Vec<u8>]) -> Trouble {
        if self.uid.is_root() {
            return refused(); // what stands behind a checker reads what strangers say
        }
        if !self.is_already() && become_user(self.uid, self.gid, &[self.gid]).is_err() {
            return refused();
        }
        if let Err(errno) = nix::unistd::chdir(fd::path(&self.home)) {
            return Trouble::unable("switch to", &self.home, errno);
        }
        let mut environ = Environ::inherited();
        if let Err(errno) = tell_account(&mut environ, &self.name) {
            return Trouble::unable("write to", "descriptor 4", errno);
        }
        environ.set("USER", &self.name);
        environ.set("HOME", &self.home);
        environ.set("SHELL", &self.shell);
        let name = program.first().map(Vec::as_slice).unwrap_or_default();
        let Some(path) = program::find(name) else { return Trouble::unable("find", name, Errno::ENOENT) };
        let errno = Command::new(path, program).environ(&environ).exec();
        Trouble::unable("run", name, errno)
    }

    /// Where one account runs all there is nothing to change.
    fn is_already(&self) -> bool {
        !self.uid.is_root() && Uid::current() == self.uid && Uid::effective() == self.uid
    }
}

/// The program behind our own arguments, or a word about its absence.
pub fn program_of(list: &[Vec<u8>]) -> Result<&[Vec<u8>], Trouble> {
    if list.is_empty() { Err(misused("no program to run")) } else { Ok(list) }
}

/// What the account database says of a name: the account, by the name that it has there, and the word in the place of
/// a password.
pub fn of_system(name: &[u8]) -> Result<Option<(Account, Vec<u8>)>, Trouble> {
    // The library wants text; a name that is none is nobody's.
    let Ok(text) = std::str::from_utf8(name) else { return Ok(None) };
    let user = match User::from_name(text) {
        Ok(Some(user)) => user,
        Ok(None) => return Ok(None),
        Err(errno) => return Err(Trouble::temporary("unable to read the account database").because(errno)),
    };
    let account = Account {
        name: user.name.into_bytes(),
        uid: user.uid,
        gid: user.gid,
        home: user.dir.into_os_string().into_vec(),
        shell: user.shell.into_os_string().into_vec(),
    };
    Ok(Some((account, user.passwd.into_bytes())))
}

/// Who is let in when another daemon knows passwords: the system's account of this name, or the one that all
/// share, under the name that was checked.
pub fn behind(name: &[u8], shared: Option<&[u8]>) -> Result<Account, Trouble> {
    let (account, _) = of_system(shared.unwrap_or(name))?.ok_or_else(|| match shared {
        Some(shared) => Trouble::temporary([b"there is no account ", shared].concat()),
        None => refused(),
    })?;
    Ok(match shared {
        Some(_) => Account { name: name.to_vec(), ..account },
        None => account,
    })
}
