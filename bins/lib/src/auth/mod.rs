//! auth - logins that one process takes and another one checks
#![forbid(unsafe_code)]

pub mod door;
pub mod launcher;
pub mod scram;
pub mod services;

use crate::environ::Environ;
use crate::fd;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

/// Where a checker puts the server's signature of SCRAM, in base64, and behind a LF the name of the account.
pub const SIGNATURE_FD: RawFd = 4;

/// The variable that tells the program behind the checker that it is there, to be said to the client first.
pub const SIGNATURE_VARIABLE: &str = "SASL_SIGNATURE_FD";

/// The variable that asks the checker for the name of the account: a checker may take several names for one.
pub const ACCOUNT_VARIABLE: &str = "SASL_ACCOUNT_FD";

/// Bytes of an account's name.
pub const ACCOUNT_MAX: usize = 1024;

/// The service whose caller wants to know the account: what is sent by one is limited, and so is as whom.
pub const NAMED: &[u8] = b"smtp";

/// A signature is 44 bytes; nobody has to say more there.
pub const SIGNATURE_MAX: usize = 128;

/// Behind name, secret and challenge.
const MECHANISM_FIELD: usize = 3;
const SERVICE_FIELD: usize = 4;

/// What a checker writes to, and the program that it becomes reads from: a file without a name.
#[derive(Debug)]
pub struct Remarks {
    file: OwnedFd,
    /// The mechanism is one of SCRAM.
    signature: bool,
    account: bool,
}

impl Remarks {
    /// One, if what a checker is told wants it.
    pub fn wanted(fields: &[u8]) -> Result<Option<Remarks>, Errno> {
        let field = |n| fields.split(|b| *b == 0).nth(n).unwrap_or_default();
        let signature = field(MECHANISM_FIELD).starts_with(b"SCRAM-");
        let account = field(SERVICE_FIELD) == NAMED;
        if signature || account { Remarks::make(signature, account).map(Some) } else { Ok(None) }
    }

    /// One for a caller that wants to know the account in any case.
    pub fn with_account(fields: &[u8]) -> Result<Remarks, Errno> {
        let signature = Remarks::wanted(fields)?.is_some_and(|remarks| remarks.signature);
        Remarks::make(signature, true)
    }

    fn make(signature: bool, account: bool) -> Result<Remarks, Errno> {
        let file = memfd_create(c"remarks", MFdFlags::MFD_CLOEXEC)?;
        Ok(Remarks { file, signature, account })
    }

    /// Tells checker and program what it is for.
    pub fn announce(&self, environ: &mut Environ) {
        for (name, wanted) in [(SIGNATURE_VARIABLE, self.signature), (ACCOUNT_VARIABLE, self.account)] {
            if wanted {
                environ.set(name, SIGNATURE_FD.to_string());
            }
        }
    }

    /// The signature and the account that have been written there; empty where they have not.
    pub fn read(&self) -> (Vec<u8>, Vec<u8>) {
        let mut chunk = [0u8; SIGNATURE_MAX + 1 + ACCOUNT_MAX + 1];
        let said = read_start(&self.file, &mut chunk);
        (signature(said), account(said))
    }
}

impl AsFd for Remarks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Of a checker that has let somebody in: the name of the account, where that was asked for.
pub fn tell_account(environ: &mut Environ, name: &[u8]) -> Result<(), Errno> {
    let asked = environ.get(ACCOUNT_VARIABLE.as_bytes()).is_some();
    environ.unset(ACCOUNT_VARIABLE);
    if !asked || !is_account(name) {
        return Ok(());
    }
    fd::write_all(fd::Standard(SIGNATURE_FD), &[b"\n", name].concat())
}

/// An empty one is what somebody has typed, as ever.
fn is_account(name: &[u8]) -> bool {
    (1..=ACCOUNT_MAX).contains(&name.len()) && !name.iter().any(|b| matches!(b, b'\n' | 0))
}

fn account(said: &[u8]) -> Vec<u8> {
    let name = memchr::memchr(b'\n', said).and_then(|at| said.get(at + 1..));
    name.filter(|name| is_account(name)).unwrap_or_default().to_vec()
}

/// The first line, without what cannot be base64.
fn signature(said: &[u8]) -> Vec<u8> {
    let is_base64 = |b: &u8| b.is_ascii_alphanumeric() || b"+/=".contains(b);
    said.iter().take(SIGNATURE_MAX).take_while(|b| is_base64(b)).copied().collect()
}

fn read_start(file: impl AsFd, chunk: &mut [u8]) -> &[u8] {
    let _ = nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekSet);
    let n = fd::read(&file, chunk).unwrap_or(0);
    chunk.get(..n).unwrap_or_default()
}

/// The signature in a checker's file.
pub fn read_signature(file: impl AsFd) -> Vec<u8> {
    signature(read_start(file, &mut [0u8; SIGNATURE_MAX]))
}

/// Name and password on their way: overwritten when nobody needs them any more.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(pub Vec<u8>);

impl Secret {
    /// From a descriptor, to its end, with no copy elsewhere; EFBIG beyond `max` bytes.
    pub fn read(from: impl AsFd, max: usize) -> Result<Secret, Errno> {
        let mut secret = Secret(vec![0; max + 1]);
        let mut length = 0;
        loop {
            match fd::read(&from, secret.0.get_mut(length..).unwrap_or_default())? {
                0 if length > max => return Err(Errno::EFBIG),
                0 => break,
                n => length += n,
            }
        }
        secret.0.truncate(length);
        Ok(secret)
    }
}

impl std::ops::Deref for Secret {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Overwrites a secret. black_box keeps the compiler from leaving out what nobody reads again.
pub fn wipe(secret: &mut [u8]) {
    secret.fill(0);
    std::hint::black_box(secret);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checker_is_asked_for_what_its_caller_needs() {
        let wanted = |fields: &[u8]| {
            Remarks::wanted(fields).unwrap().map(|remarks| (remarks.signature, remarks.account))
        };
        assert_eq!(wanted(b"joe\0pencil\0\0"), None);
        assert_eq!(wanted(b"joe\0pencil\0\0PLAIN\0pop3\0::1\0"), None);
        assert_eq!(wanted(b"joe\0p\0m\0SCRAM-SHA-256\0pop3\0::1\0"), Some((true, false)));
        assert_eq!(wanted(b"joe\0p\0m\0SCRAM-SHA-256\0smtp\0::1\0"), Some((true, true)));
        assert_eq!(wanted(b"joe\0pencil\0\0PLAIN\0smtp\0::1\0"), Some((false, true)));
        assert!(Remarks::with_account(b"joe\0pencil\0\0").unwrap().account);
    }

    #[test]
    fn remarks_are_a_signature_and_an_account() {
        for (text, wanted) in [
            (b"".as_slice(), (b"".as_slice(), b"".as_slice())),
            (b"c2ln", (b"c2ln", b"")),
            (b"c2ln\njoe@example.org", (b"c2ln", b"joe@example.org")),
            (b"\njoe", (b"", b"joe")),
            (b"\n", (b"", b"")),
            (b"\njoe\nsue", (b"", b"")),
            (b"\njo\0e", (b"", b"")),
            (b"a b\njoe", (b"a", b"joe")),
        ] {
            let remarks = Remarks::with_account(b"").unwrap();
            fd::write_all(&remarks, text).unwrap();
            assert_eq!(remarks.read(), (wanted.0.to_vec(), wanted.1.to_vec()));
        }
        let remarks = Remarks::with_account(b"").unwrap();
        fd::write_all(&remarks, &[b"\n".as_slice(), &[b'j'; ACCOUNT_MAX + 1]].concat()).unwrap();
        assert_eq!(remarks.read().1, b"");
    }
}
