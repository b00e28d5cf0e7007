//! access - which logins qmail-popup takes, as the administrator decided
#![forbid(unsafe_code)]

use nix::errno::Errno;
use qmail::auth::scram::Scram;
use qmail::control::Control;
use qmail::environ;
use qmail::sasl::scram::Params;
use qmail::sasl::words::{Have, Words};
use qmail::sasl::{Mechanism, NONCE_BYTES, encode};
use qmail::sys::random;
use qmail::trouble::Trouble;
use qmail::ucspitls::{Facts, Offer};

/// What is offered to a client, and what is known of its connection.
#[derive(Debug, Default)]
pub struct Access {
    /// The greeting has a timestamp.
    pub apop: bool,
    wanted: Vec<Mechanism>,
    /// Passwords are taken where everybody can listen, though TLS is to be had.
    insecure: bool,
    scram: Option<Scram>,
    pub facts: Facts,
    pub tls: Option<Offer>,
    /// TLS has begun at the client's wish.
    pub upgraded: bool,
    /// The name of this host, for challenges.
    pub host: Vec<u8>,
    /// Checkers are told mechanism, service and address whatever the mechanism is.
    pub whole: bool,
}

impl Access {
    /// Without a home there are no control files, and nothing is stricter than it was.
    pub fn read(control: Option<&Control>, host: &[u8]) -> Result<Access, Trouble> {
        let words = Words::parse(&environ::get("POP3AUTH").unwrap_or_default());
        let (mut insecure, mut scram) = (false, None);
        if let Some(control) = control {
            insecure = control.int("authinsecure", 0)? != 0;
            scram = Scram::read(control)?;
        }
        let have = Have { checker: true, keys: scram.is_some(), certificates: false };
        Ok(Access {
            apop: words.names("apop"),
            wanted: words.mechanisms(&have),
            insecure,
            scram,
            facts: Facts::from_environ(),
            tls: Offer::from_environ(),
            upgraded: false,
            host: host.to_vec(),
            whole: false,
        })
    }

    /// Whether STLS can be asked for.
    pub fn offers_tls(&self) -> bool {
        self.tls.is_some() && !self.facts.is_tls()
    }

    /// Whether a password may be told: in the clear only where there is no other way, as ever, or by decree.
    pub fn takes_passwords(&self) -> bool {
        self.facts.is_tls() || self.insecure || self.tls.is_none()
    }

    /// The mechanisms of AUTH at this moment, best last.
    pub fn mechanisms(&self) -> Vec<Mechanism> {
        let private = self.facts.is_tls() || self.insecure;
        let bound = !self.facts.binding().is_empty();
        let usable = |mechanism: &Mechanism| private && (*mechanism != Mechanism::ScramSha256Plus || bound);
        self.wanted.iter().copied().filter(usable).collect()
    }

    /// The parameters of SCRAM for a name: those of its keys, or those of nobody.
    pub fn params(&self, name: &[u8]) -> Option<Params> {
        self.scram.as_ref()?.params(name).ok()
    }

    /// Random text, printable and without a comma.
    pub fn unique(&self) -> Option<Vec<u8>> {
        let mut bytes = [0u8; NONCE_BYTES];
        random::fill(&mut bytes).ok()?;
        Some(encode(&bytes))
    }

    /// Begins TLS; the client has been told to.
    pub fn start_tls(&mut self) -> Result<(), Errno> {
        let offer = self.tls.take().ok_or(Errno::EBADF)?;
        self.facts = offer.start()?;
        self.upgraded = true;
        Ok(())
    }
}
