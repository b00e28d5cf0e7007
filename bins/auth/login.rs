//! login - what every checker does: reads descriptor 3, compares passwords, becomes the user
#![forbid(unsafe_code)]

use crate::crypt;
use nix::errno::Errno;
use nix::unistd::{Gid, Uid};
use qmail::environ::Environ;
use qmail::fd;
use qmail::program;
use qmail::sys::process::{Command, become_user};
use qmail::trouble::Trouble;

/// Name, password and timestamp; tokens of 2 to 16 KiB are passwords too.
const FIELDS_MAX: usize = 64 * 1024;

/// crypt(3) hashes no longer password than this; one that long is nobody's.
const PASSWORD_MAX: usize = 511;

/// The login is not acceptable.
const REFUSED: i32 = 1;
/// The caller does not keep to the interface.
const MISUSED: i32 = 2;

/// A refusal says nothing: the exit code is the answer.
pub fn refused() -> Trouble {
    Trouble::exit(REFUSED, "")
}

pub fn misused(text: &str) -> Trouble {
    Trouble::exit(MISUSED, text)
}

/// What descriptor 3 says.
pub struct Login {
    pub name: Vec<u8>,
    password: Vec<u8>,
}

impl Login {
    /// Reads descriptor 3 to its end: name, password, more, each ended by a NUL.
    pub fn read() -> Result<Login, Trouble> {
        let fd3 = fd::take(3).map_err(|e| Trouble::unable("read", "descriptor 3", e))?;
        let mut all = fd::read_to_end(&fd3, FIELDS_MAX).map_err(|errno| match errno {
            Errno::EFBIG => refused(),
            errno => Trouble::unable("read", "descriptor 3", errno),
        })?;
        let mut fields = all.split(|b| *b == 0);
        let login = match (fields.next(), fields.next(), fields.next()) {
            (Some(name), Some(password), Some(_)) => {
                Ok(Login { name: name.to_vec(), password: password.to_vec() })
            }
            _ => Err(misused("name and password on descriptor 3 must each end in a NUL")),
        };
        wipe(&mut all);
        login
    }

    /// Whether the password belongs to what is stored. Nothing, or something that stands for "no login",
    /// is refused in the time that a wrong password takes; a scheme we do not know is a trouble of ours,
    /// not of the user.
    pub fn check(&self, stored: Option<&[u8]>, dummy: &[u8]) -> Result<(), Trouble> {
        let stored = stored.filter(|hash| usable(hash) && self.password.len() <= PASSWORD_MAX);
        let found = crypt::hash(&self.password, scheme(stored.unwrap_or(dummy)));
        match (stored.map(scheme), found) {
            (None, _) => Err(refused()),
            (Some(_), None) => Err(Trouble::temporary("unable to check password: unknown scheme of hash")),
            (Some(stored), Some(mut found)) => {
                let same = equal(stored, &found);
                wipe(&mut found);
                if same { Ok(()) } else { Err(refused()) }
            }
        }
    }

    /// The password is not needed any more.
    pub fn forget(&mut self) {
        wipe(&mut self.password);
    }
}

/// Whether a stored value can be a hash: accounts without a login have a word or nothing in its place.
pub fn usable(stored: &[u8]) -> bool {
    !(stored.is_empty() || stored == b"x" || stored.starts_with(b"*") || stored.starts_with(b"!"))
}

/// The hash behind the name another server gives its scheme.
fn scheme(stored: &[u8]) -> &[u8] {
    let names: [&[u8]; 5] =
        [b"{CRYPT}", b"{SHA512-CRYPT}", b"{SHA256-CRYPT}", b"{MD5-CRYPT}", b"{BLF-CRYPT}"];
    names.iter().find_map(|name| stored.strip_prefix(*name)).unwrap_or(stored)
}

/// Compares in a time that does not tell where the first difference is.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y));
    a.len() == b.len() && std::hint::black_box(difference) == 0
}

/// Overwrites a secret. black_box keeps the compiler from leaving out what nobody reads again.
pub fn wipe(secret: &mut [u8]) {
    secret.fill(0);
    std::hint::black_box(secret);
}

/// An account that was let in.
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
        if !self.is_already() && become_user(self.uid, self.gid, &[self.gid]).is_err() {
            return refused();
        }
        if let Err(errno) = nix::unistd::chdir(fd::path(&self.home)) {
            return Trouble::unable("switch to", &self.home, errno);
        }
        let mut environ = Environ::inherited();
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
