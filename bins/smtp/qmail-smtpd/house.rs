//! The process around the conversation: who checks passwords, and whose TLS it is.
//!
//! A system home's qmaild asks qmail-authd, as qmail-popup does; so does who is told to by the word `authask`.
//! Everybody else runs the checker itself, the classic way: by a process of its own, which parts from
//! this one before the jail closes, parses nothing, and stays root where this one was started so.

use jail::{Jail, programs};
use nix::unistd::{Gid, Uid};
use qmail::auth::door::{self, Answer, RateRequest, Request};
use qmail::auth::launcher::{self, Launcher, Way};
use qmail::home::Home;
use qmail::queue::client::Reach;
use qmail::sasl::server::Fields;
use qmail::sasl::{NONCE_BYTES, encode};
use qmail::sys::random;
use qmail::trouble::Trouble;
use qmail::ucspitls::{Facts, Offer};
use qmail::{environ, fd};
use smtpd::around::{Around, Verdict};
use std::time::Duration;

/// What checkers are told that we are.
const SERVICE: &[u8] = b"smtp";

/// The exit code of a checker that was misused; others from 1 to 99 refuse.
const MISUSED: i32 = 2;

/// The word for qmail-authd where the classic way would be taken.
const AUTHASK: &[u8] = b"authask";

/// Whether the environment asks for more than a conversation without logins and TLS.
pub fn is_needed() -> bool {
    environ::first(&["SUBMISSION", "SMTPAUTH", "SSLCTLFD", "TLS_PROTOCOL", "SSL_PROTOCOL"]).is_some()
}

/// How a login reaches its checker.
enum Check {
    Nobody,
    /// From here.
    Door(Home, Vec<Vec<u8>>),
    /// By the process beside us; true if that asks qmail-authd.
    Launcher(Launcher, Vec<Vec<u8>>, bool),
}

pub struct House {
    check: Check,
    home: Home,
    /// Where `home` cannot be reached from within the jail.
    closed: bool,
    tls: Option<Offer>,
}

impl House {
    /// Before the jail closes. Where a checker is to be run here, what returns is a child.
    pub fn prepare(
        home: &Home,
        words: &[Vec<u8>],
        reach: &Reach,
        tls: Option<Offer>,
    ) -> Result<House, Trouble> {
        let (asks, words) = match words {
            [first, rest @ ..] if first == AUTHASK && !rest.is_empty() => (true, rest),
            words => (is_behind_door(home), words),
        };
        let closed = matches!(reach, Reach::Foreign);
        let check = match words {
            [] => Check::Nobody,
            words if asks && !closed => Check::Door(home.clone(), words.to_vec()),
            words => {
                Jail::of(&programs::QMAIL_SMTPD_CHECKING).close()?;
                let run = (!asks).then(|| words.to_vec());
                let user = unprivileged(home);
                let launcher = launcher::part("qmail-smtpd", Way { home: home.clone(), run }, user)?;
                Check::Launcher(launcher, words.to_vec(), asks)
            }
        };
        Ok(House { check, home: home.clone(), closed, tls })
    }

    pub fn has_checker(&self) -> bool {
        !matches!(self.check, Check::Nobody)
    }

    fn ask(&self, fields: &Fields, facts: &Facts) -> Result<Answer, Trouble> {
        let ip = environ::get("TCPREMOTEIP").unwrap_or_default();
        let whole = |words: &[Vec<u8>]| Request::with(fields.whole(SERVICE, &ip), words, facts.all());
        match &self.check {
            Check::Nobody => Err(Trouble::temporary("there is no checker")),
            Check::Door(home, words) => door::ask(home, whole(words), fd::IN, fd::OUT),
            Check::Launcher(launcher, words, asks) => {
                let request = if *asks || fields.needs_whole() {
                    whole(words)
                } else {
                    Request::with(fields.short(), words, facts.all())
                };
                launcher.ask(request, fd::IN, fd::OUT)
            }
        }
    }
}

/// Whether logins are qmail-authd's affair: we are the account that talks to the network.
fn is_behind_door(home: &Home) -> bool {
    let qmaild = home.ids().role("qmaild").filter(|_| !home.ids().is_own());
    qmaild.is_some_and(|qmaild| qmaild.uid == Uid::effective())
}

/// Root's child talks as qmaild, where there is one.
fn unprivileged(home: &Home) -> Option<(Uid, Gid)> {
    let qmaild = home.ids().role("qmaild").filter(|_| Uid::effective().is_root());
    qmaild.map(|qmaild| (qmaild.uid, qmaild.gid))
}

impl Around for House {
    fn unique(&mut self) -> Option<Vec<u8>> {
        let mut bytes = [0u8; NONCE_BYTES];
        random::fill(&mut bytes).ok()?;
        Some(encode(&bytes))
    }

    fn check(&mut self, fields: &Fields, facts: &Facts) -> Verdict {
        match self.ask(fields, facts) {
            Ok(Answer { code: 0, signature, account }) => Verdict::Accepted { signature, account },
            // Checkers of the field refuse with 3 to 20, too.
            Ok(Answer { code, .. }) if code != MISUSED && (1..100).contains(&code) => Verdict::Refused,
            Ok(Answer { code, .. }) => {
                crate::warn("a login was not checked", format!("the checker ended with {code}").as_bytes());
                Verdict::Temporary
            }
            Err(trouble) => {
                crate::warn("a login was not checked", &trouble.text());
                Verdict::Temporary
            }
        }
    }

    fn tells_refusals(&self) -> bool {
        matches!(self.check, Check::Door(..) | Check::Launcher(_, _, true))
    }

    /// The books are qmail-authd's.
    fn may_send(&mut self, account: &[u8], recipients: u32, hourly: u32) -> Option<bool> {
        let request = RateRequest { recipients, hourly, account: account.to_vec() };
        match &self.check {
            Check::Launcher(launcher, ..) if self.closed => launcher.may_send(&request),
            _ => door::may_send(&self.home, &request),
        }
    }

    fn pause(&mut self, time: Duration) {
        if matches!(self.check, Check::Launcher(_, _, false)) {
            std::thread::sleep(time);
        }
    }

    fn facts(&self) -> Facts {
        Facts::from_environ()
    }

    fn offers_tls(&self) -> bool {
        self.tls.is_some()
    }

    fn start_tls(&mut self) -> Option<Facts> {
        self.tls.take()?.start().ok() // a failure is the client's affair, and the TLS process has named it
    }

    fn log(&mut self, line: &[u8]) {
        let _ = fd::write_all(fd::ERR, &[b"qmail-smtpd: ".as_slice(), line, b"\n"].concat());
    }
}
