//! login - what every checker does: reads descriptor 3, answers with an exit code
#![forbid(unsafe_code)]

use crate::stored::Verdict;
use nix::errno::Errno;
use qmail::auth::{SIGNATURE_FD, Secret};
use qmail::fd;
use qmail::sasl::Mechanism;
use qmail::trouble::Trouble;
use std::ops::Range;

/// All of descriptor 3; tokens of 2 to 16 KiB are passwords too.
const FIELDS_MAX: usize = 64 * 1024;

/// The login is not acceptable.
pub const REFUSED: i32 = 1;
/// The caller does not keep to the interface.
pub const MISUSED: i32 = 2;

/// A refusal says nothing: the exit code is the answer.
pub fn refused() -> Trouble {
    Trouble::exit(REFUSED, "")
}

pub fn misused(text: &str) -> Trouble {
    Trouble::exit(MISUSED, text)
}

/// What descriptor 3 says: name, password or response, challenge, mechanism, service, address, each ended by a
/// NUL; the last four may be missing.
pub struct Login {
    all: Secret,
    fields: Vec<Range<usize>>,
}

/// How somebody shows who he is.
#[derive(Debug, PartialEq, Eq)]
pub enum Proof<'a> {
    /// The password itself.
    Password(&'a [u8]),
    /// The password, or what it makes of a challenge: callers of old do not say which.
    Either {
        secret: &'a [u8],
        challenge: &'a [u8],
    },
    CramMd5 {
        response: &'a [u8],
        challenge: &'a [u8],
    },
    Apop {
        digest: &'a [u8],
        timestamp: &'a [u8],
    },
    Scram {
        proof: &'a [u8],
        message: &'a [u8],
    },
}

impl Login {
    /// Reads descriptor 3 to its end.
    pub fn read() -> Result<Login, Trouble> {
        let fd3 = fd::take(3).map_err(|e| Trouble::unable("read", "descriptor 3", e))?;
        let all = Secret::read(&fd3, FIELDS_MAX).map_err(|errno| match errno {
            Errno::EFBIG => refused(),
            errno => Trouble::unable("read", "descriptor 3", errno),
        })?;
        Login::of(all).ok_or_else(|| misused("name and password on descriptor 3 must each end in a NUL"))
    }

    /// None without a name and a password.
    pub fn of(all: Secret) -> Option<Login> {
        let mut fields = Vec::new();
        let mut start = 0;
        for (at, _) in all.iter().enumerate().filter(|(_, b)| **b == 0).take(FIELDS) {
            fields.push(start..at);
            start = at + 1;
        }
        (fields.len() >= 2).then_some(Login { all, fields })
    }

    fn field(&self, n: usize) -> &[u8] {
        self.fields.get(n).and_then(|range| self.all.get(range.clone())).unwrap_or_default()
    }

    pub fn name(&self) -> &[u8] {
        self.field(0)
    }

    /// What is shown; None when it is nothing that a checker could check.
    pub fn proof(&self) -> Option<Proof<'_>> {
        let (secret, challenge) = (self.field(1), self.field(2));
        let mechanism = self.field(3);
        if mechanism.is_empty() {
            return Some(match challenge {
                b"" => Proof::Password(secret),
                challenge => Proof::Either { secret, challenge },
            });
        }
        if mechanism.eq_ignore_ascii_case(b"APOP") {
            return Some(Proof::Apop { digest: secret, timestamp: challenge });
        }
        match Mechanism::of(mechanism)? {
            Mechanism::Plain | Mechanism::Login => Some(Proof::Password(secret)),
            Mechanism::CramMd5 => Some(Proof::CramMd5 { response: secret, challenge }),
            Mechanism::ScramSha256 | Mechanism::ScramSha256Plus => {
                Some(Proof::Scram { proof: secret, message: challenge })
            }
            Mechanism::External => None,
        }
    }

    /// The password, for those who can check nothing else.
    pub fn password(&self) -> Option<&[u8]> {
        match self.proof()? {
            Proof::Password(secret) | Proof::Either { secret, .. } => Some(secret),
            _ => None,
        }
    }

    /// What the login is for (`smtp`, `pop3`), where that was said in a word.
    pub fn service(&self) -> Option<&[u8]> {
        Some(self.field(4)).filter(|word| {
            (1..=SERVICE_MAX).contains(&word.len())
                && word.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        })
    }
}

impl Login {
    /// Whether the login may go on. What tells the client of SCRAM that it is us goes to descriptor 4, if somebody
    /// listens there. The secrets of the login are gone afterwards.
    pub fn settle(self, verdict: Verdict) -> Result<(), Trouble> {
        match verdict {
            Verdict::Accepted => Ok(()),
            Verdict::Refused => Err(refused()),
            Verdict::Unknown => Err(Trouble::temporary("unable to check password: unknown scheme of hash")),
            Verdict::Signed(signature) => {
                // It stays open: the program behind may have to read it there.
                match fd::write_all(fd::Standard(SIGNATURE_FD), &signature) {
                    Ok(()) | Err(Errno::EBADF) => Ok(()),
                    Err(errno) => Err(Trouble::unable("write to", "descriptor 4", errno)),
                }
            }
        }
    }
}

/// Fields that have a meaning.
const FIELDS: usize = 6;

/// Names of services are those of RFC 4422, at most 20 letters.
const SERVICE_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn login(bytes: &[u8]) -> Option<Login> {
        Login::of(Secret(bytes.to_vec()))
    }

    #[test]
    fn fields_are_those_that_end_in_a_nul() {
        assert!(login(b"").is_none() && login(b"joe\0pencil").is_none());
        let old = login(b"joe\0pencil\0").unwrap();
        assert_eq!((old.name(), old.password()), (b"joe".as_slice(), Some(b"pencil".as_slice())));
        let rest = login(b"joe\0pencil\0\0PLAI").unwrap();
        assert_eq!(rest.proof(), Some(Proof::Password(b"pencil")));
    }

    #[test]
    fn the_mechanism_says_what_is_shown() {
        let proof = |bytes: &[u8]| format!("{:?}", login(bytes).unwrap().proof());
        let kind = |mechanism: &str| proof(format!("joe\0s\0c\0{mechanism}\0smtp\0\0").as_bytes());
        assert!(kind("").contains("Either") && kind("plain").contains("Password"));
        assert!(kind("CRAM-MD5").contains("CramMd5") && kind("APOP").contains("Apop"));
        assert!(kind("SCRAM-SHA-256-PLUS").contains("Scram"));
        assert_eq!((kind("EXTERNAL"), kind("GSSAPI")), ("None".to_owned(), "None".to_owned()));
    }

    #[test]
    fn a_service_is_a_word() {
        let service = |word: &str| {
            let login = login(format!("joe\0s\0\0PLAIN\0{word}\0").as_bytes()).unwrap();
            login.service().map(<[u8]>::to_vec)
        };
        assert_eq!(service("smtp").as_deref(), Some(b"smtp".as_slice()));
        assert_eq!((service(""), service("../x"), service(&"x".repeat(21))), (None, None, None));
    }
}
