//! Who may send, and by which proof: what the administrator decided about logins.

use crate::around::Facts;
use crate::submission::Submission;
use qmail::cdb;
use qmail::control::{Control, Set};
use qmail::environ;
use qmail::sasl::scram::Params;
use qmail::sasl::{MECHANISMS, Mechanism};
use qmail::trouble::Trouble;

/// Public parameters of SCRAM by account, made by who sets passwords.
const PARAMS: &str = "scramparams.cdb";

/// What the parameters of nobody's name are made of.
const SECRET: &str = "scramsecret";

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

#[derive(Debug)]
struct Scram {
    params: cdb::Reader,
    secret: Vec<u8>,
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
        let scram = if checker { read_scram(control)? } else { None };
        let certificates = control.set("tlsclients")?.unwrap_or_default();
        let wanted = words.mechanisms(checker, scram.is_some(), !certificates.is_empty());
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
        let trouble = || Trouble::temporary(format!("control/{PARAMS} has no parameters"));
        let scram = self.scram.as_ref().ok_or_else(trouble)?;
        match scram.params.get(name).map_err(|e| e.trouble(format!("control/{PARAMS}")))? {
            Some(text) => Params::parse(&text).ok_or_else(trouble),
            None => Ok(Params::invented(&scram.secret, name)),
        }
    }
}

/// SCRAM is to be had where both files are. Without a secret unknown names could be told from known ones.
fn read_scram(control: &Control) -> Result<Option<Scram>, Trouble> {
    let trouble = |errno| Trouble::unable("read", format!("control/{PARAMS}"), errno).status("4.3.0");
    let Some(params) = cdb::Reader::open(control.path(PARAMS)).map_err(trouble)? else {
        return Ok(None);
    };
    let secret = control.line(SECRET)?;
    Ok(secret.filter(|secret| !secret.is_empty()).map(|secret| Scram { params, secret }))
}

/// SMTPAUTH, as the AUTH patches have it: empty is PLAIN and LOGIN, `+cram` adds to them, `cram` is
/// instead of them, `-` is nothing, and `!` in front means that there is no mail without a login. `scram` and
/// `external` are ours; SCRAM is there unasked where passwords have keys for it, unless others are listed.
#[derive(Debug, PartialEq, Eq)]
struct Words {
    required: bool,
    off: bool,
    listed: Option<Vec<Vec<u8>>>,
    more: Vec<Vec<u8>>,
}

impl Words {
    fn parse(text: &[u8]) -> Words {
        let required = text.starts_with(b"!");
        let text = text.strip_prefix(b"!").unwrap_or(text).trim_ascii();
        let split = |text: &[u8]| -> Vec<Vec<u8>> {
            let words = text.split(|b| matches!(b, b'+' | b' ' | b','));
            words.filter(|word| !word.is_empty()).map(<[u8]>::to_ascii_lowercase).collect()
        };
        let off = text == b"-";
        if off || text.is_empty() || text.starts_with(b"+") {
            return Words { required, off, listed: None, more: if off { Vec::new() } else { split(text) } };
        }
        Words { required, off, listed: Some(split(text)), more: Vec::new() }
    }

    fn mechanisms(&self, checker: bool, keys: bool, certificates: bool) -> Vec<Mechanism> {
        if self.off {
            return Vec::new();
        }
        let named = |word: &str| {
            let all = self.listed.as_ref().unwrap_or(&self.more);
            all.iter().any(|listed| listed == word.as_bytes())
        };
        let default = self.listed.is_none();
        let is_wanted = |mechanism: &Mechanism| match mechanism {
            Mechanism::Plain => checker && (default || named("plain")),
            Mechanism::Login => checker && (default || named("login") || named("plain")),
            Mechanism::CramMd5 => checker && (named("cram") || named("cram-md5")),
            Mechanism::ScramSha256 | Mechanism::ScramSha256Plus => {
                checker && keys && (default || named("scram"))
            }
            Mechanism::External => certificates && (default || named("external")),
        };
        MECHANISMS.into_iter().filter(is_wanted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(setting: &str, keys: bool, certificates: bool) -> String {
        let mechanisms = Words::parse(setting.as_bytes()).mechanisms(true, keys, certificates);
        mechanisms.iter().map(|m| m.name()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn smtpauth_says_what_is_offered() {
        assert_eq!(names("", false, false), "LOGIN PLAIN");
        assert_eq!(names("!", false, false), "LOGIN PLAIN");
        assert_eq!(names("+cram", false, false), "LOGIN PLAIN CRAM-MD5");
        assert_eq!(names("!+cram", false, false), "LOGIN PLAIN CRAM-MD5");
        assert_eq!(names("cram", true, false), "CRAM-MD5");
        assert_eq!(names("-", true, true), "");
        assert_eq!(names("!-", true, true), "");
        assert_eq!(names("", true, true), "LOGIN PLAIN SCRAM-SHA-256 SCRAM-SHA-256-PLUS EXTERNAL");
        assert_eq!(names("scram", true, true), "SCRAM-SHA-256 SCRAM-SHA-256-PLUS");
        assert_eq!(names("scram+external", false, true), "EXTERNAL");
    }

    #[test]
    fn without_a_checker_only_certificates_count() {
        let words = Words::parse(b"!+cram");
        assert!(words.required);
        assert_eq!(words.mechanisms(false, true, true), [Mechanism::External]);
    }
}
