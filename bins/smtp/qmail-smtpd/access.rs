//! Who may send, and by which proof: what the administrator decided about logins.

use crate::around::Facts;
use crate::submission::Submission;
use qmail::auth::scram::Scram;
use qmail::control::{Control, Set};
use qmail::environ;
use qmail::sasl::Mechanism;
use qmail::sasl::scram::Params;
use qmail::sasl::words::{Have, Words};
use qmail::trouble::Trouble;

/// Logins of this server. The default has none, and asks for none.
#[derive(Debug, Default)]
pub struct Access {
    /// What the administrator wants, best last; not all of it at each moment (`now`).
    wanted: Vec<Mechanism>,
    /// MAIL needs a login before it.
    pub required: bool,
    /// Logins are taken where everybody can listen.
    insecure: bool,
    scram: Option<Scram>,
    /// Addresses in certificates that are as good as a password.
    certificates: Set,
    pub submission: Option<Submission>,
}

impl Access {
    /// `checker`: there is somebody to check passwords.
    pub fn read(control: &Control, checker: bool) -> Result<Access, Trouble> {
        let submission = match environ::get("SUBMISSION") {
            Some(_) => Some(Submission::read(control)?),
            None => None,
        };
        let setting = environ::get("SMTPAUTH");
        if !checker && submission.is_none() && setting.is_none() {
            return Ok(Access::default());
        }
        let words = Words::parse(setting.as_deref().unwrap_or_default());
        let scram = if checker { Scram::read(control)? } else { None };
        let certificates = control.set("tlsclients")?.unwrap_or_default();
        let have = Have { checker, keys: scram.is_some(), certificates: !certificates.is_empty() };
        let wanted = words.mechanisms(&have);
        Ok(Access {
            wanted,
            required: words.required || submission.is_some(),
            insecure: control.int("authinsecure", 0)? != 0,
            scram,
            certificates,
            submission,
        })
    }

    /// Whether there are logins at all.
    pub fn is_known(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// What a client can use at this moment, best last.
    pub fn now(&self, facts: &Facts) -> Vec<Mechanism> {
        let private = facts.is_tls() || self.insecure;
        let usable = |mechanism: &Mechanism| match mechanism {
            Mechanism::ScramSha256Plus => !facts.binding().is_empty(),
            Mechanism::External => self.certificate(facts).is_some(),
            _ => private,
        };
        self.wanted.iter().copied().filter(usable).collect()
    }

    /// Why a mechanism that we know cannot be used now.
    pub fn lacks_privacy(&self, mechanism: Mechanism, facts: &Facts) -> bool {
        self.wanted.contains(&mechanism) && !facts.is_tls() && !self.insecure
    }

    /// The account that the client's certificate stands for.
    pub fn certificate(&self, facts: &Facts) -> Option<Vec<u8>> {
        let email = facts.client_email()?;
        self.certificates.contains(email).then(|| email.to_vec())
    }

    /// The parameters of SCRAM for a name: those of its keys, or those of nobody.
    pub fn params(&self, name: &[u8]) -> Result<Params, Trouble> {
        let scram = self.scram.as_ref().ok_or_else(|| Trouble::temporary("nobody has keys for SCRAM"))?;
        scram.params(name)
    }
}
