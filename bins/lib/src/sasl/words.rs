//! words - which mechanisms an administrator wants, in a variable
#![forbid(unsafe_code)]

use super::{MECHANISMS, Mechanism};

/// SMTPAUTH, as the AUTH patches have it, and POP3AUTH: empty is PLAIN and LOGIN, `+cram` adds to them, `cram` is
/// instead of them, `-` is nothing, and `!` in front means that there is no mail without a login. `scram` and
/// `external` are ours; SCRAM is there unasked where passwords have keys for it, unless others are listed.
#[derive(Debug, PartialEq, Eq)]
pub struct Words {
    pub required: bool,
    off: bool,
    listed: Option<Vec<Vec<u8>>>,
    more: Vec<Vec<u8>>,
}

/// What there is to check logins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Have {
    pub checker: bool,
    /// Passwords have keys for SCRAM.
    pub keys: bool,
    /// Certificates are as good as a password.
    pub certificates: bool,
}

impl Words {
    pub fn parse(text: &[u8]) -> Words {
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

    /// Whether a word is there.
    pub fn names(&self, word: &str) -> bool {
        let all = self.listed.as_ref().unwrap_or(&self.more);
        all.iter().any(|listed| listed == word.as_bytes())
    }

    /// What is to be offered, best last.
    pub fn mechanisms(&self, have: &Have) -> Vec<Mechanism> {
        let Have { checker, keys, certificates } = *have;
        if self.off {
            return Vec::new();
        }
        let named = |word: &str| self.names(word);
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
        let mechanisms =
            Words::parse(setting.as_bytes()).mechanisms(&Have { checker: true, keys, certificates });
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
        assert_eq!(
            words.mechanisms(&Have { checker: false, keys: true, certificates: true }),
            [Mechanism::External]
        );
    }
}
