//! Who sends: user, host and name from the environment, and how they are written.

use qmail::address::{self, Address, Completion};
use qmail::environ;
use qmail::quote;
use qmail::trouble::Trouble;

/// The letters of QMAILINJECT.
#[derive(Debug, Clone, Copy, Default)]
pub struct Letters {
    /// c: `addr (Name)` instead of `"Name" <addr>`.
    pub comment: bool,
    /// s: an incoming Return-Path is not the sender.
    pub no_return_path: bool,
    /// f: an incoming From is dropped.
    pub no_from: bool,
    /// i: an incoming Message-ID is dropped.
    pub no_message_id: bool,
    /// m: a sender of its own for each message.
    pub per_message: bool,
    /// r: a sender of its own for each recipient.
    pub per_recipient: bool,
}

impl Letters {
    pub fn of(letters: &[u8]) -> Letters {
        let has = |letter| letters.contains(&letter);
        Letters {
            comment: has(b'c'),
            no_return_path: has(b's'),
            no_from: has(b'f'),
            no_message_id: has(b'i'),
            per_message: has(b'm'),
            per_recipient: has(b'r'),
        }
    }
}

/// What the environment says of the user.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    pub user: Vec<u8>,
    /// Empty: the default host.
    pub host: Vec<u8>,
    pub name: Option<Vec<u8>>,
    pub sender_user: Vec<u8>,
    pub sender_host: Vec<u8>,
}

impl Identity {
    pub fn from_environment() -> Identity {
        let user = environ::first(&["QMAILUSER", "MAILUSER", "USER", "LOGNAME"]);
        let user = user.unwrap_or_else(|| b"anonymous".to_vec());
        let host = environ::first(&["QMAILHOST", "MAILHOST"]).unwrap_or_default();
        Identity {
            sender_user: environ::get("QMAILSUSER").unwrap_or_else(|| user.clone()),
            sender_host: environ::get("QMAILSHOST").unwrap_or_else(|| host.clone()),
            name: environ::first(&["QMAILNAME", "MAILNAME", "NAME"]).filter(|name| !name.is_empty()),
            user,
            host,
        }
    }

    /// What stands behind `From: `.
    pub fn from(&self, comment: bool, completion: &Completion) -> Result<Vec<u8>, Trouble> {
        let address = address(&self.user, &self.host, completion)?.text();
        let Some(name) = &self.name else { return Ok(address) };
        // A line break would end the field: whatever follows would be a field of its own.
        let name: Vec<u8> = name.iter().map(|b| if matches!(b, b'\r' | b'\n') { b' ' } else { *b }).collect();
        Ok(if comment {
            [address.as_slice(), b" (", &escaped(&name), b")"].concat()
        } else {
            [quote::quoted_string(&name).as_slice(), b" <", &address, b">"].concat()
        })
    }

    /// The envelope sender of those who did not ask for another.
    pub fn sender(
        &self,
        letters: Letters,
        now: u64,
        pid: u32,
        completion: &Completion,
    ) -> Result<Vec<u8>, Trouble> {
        let mut user = self.sender_user.clone();
        if letters.per_message {
            user.extend_from_slice(format!("-{now}.{pid}").as_bytes());
        }
        if letters.per_recipient {
            user.push(b'-');
        }
        let mut sender = address(&user, &self.sender_host, completion)?.envelope();
        if letters.per_recipient {
            sender.extend_from_slice(b"-@[]");
        }
        Ok(sender)
    }
}

fn escaped(comment: &[u8]) -> Vec<u8> {
    let escape = |b: &u8| if matches!(b, b'(' | b')' | b'\\') { vec![b'\\', *b] } else { vec![*b] };
    comment.iter().flat_map(escape).collect()
}

/// An address that is none.
pub fn unparsable(address: &[u8]) -> Trouble {
    Trouble::permanent([b"unable to parse address: ", address].concat())
}

fn address(user: &[u8], host: &[u8], completion: &Completion) -> Result<Address<'static>, Trouble> {
    let text = [user, b"@", host].concat();
    address::one(&text, completion).map_err(|_| unparsable(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion() -> Completion {
        let mut with = Completion::default();
        with.set_default_host(b"dh.dom").unwrap();
        with.set_default_domain(b"def.dom").unwrap();
        with
    }

    fn joe(name: &str) -> Identity {
        let name = Some(name.as_bytes().to_vec()).filter(|n| !n.is_empty());
        Identity { user: b"joe".to_vec(), sender_user: b"joe".to_vec(), name, ..Identity::default() }
    }

    fn from(identity: &Identity, comment: bool) -> String {
        String::from_utf8(identity.from(comment, &completion()).unwrap()).unwrap()
    }

    #[test]
    fn a_name_is_quoted_or_a_comment() {
        assert_eq!(from(&joe(""), false), "joe@dh.dom");
        assert_eq!(from(&joe("Joe \"X\" (U)"), false), "\"Joe \\\"X\\\" (U)\" <joe@dh.dom>");
        assert_eq!(from(&joe("Joe (U\\"), true), "joe@dh.dom (Joe \\(U\\\\)");
        assert_eq!(from(&joe("Joe\nBcc: all"), false), "\"Joe Bcc: all\" <joe@dh.dom>");
    }

    #[test]
    fn any_user_is_a_local_part() {
        let odd =
            |user: &str, host: &str| Identity { user: user.into(), host: host.into(), ..Identity::default() };
        assert_eq!(from(&odd("a b", "host"), false), "\"a b\"@host.def.dom");
        assert_eq!(from(&odd("a@b", ""), false), "\"a@b\"@dh.dom");
        assert_eq!(from(&odd("", "x.y"), false), "\"\"@x.y");
        assert_eq!(from(&odd("a", "[1.2.3.4]"), false), "a@[1.2.3.4]");
        let trouble = odd("a", "b c").from(false, &completion()).unwrap_err();
        assert_eq!((trouble.exit_code(), trouble.text()), (100, b"unable to parse address: a@b c".to_vec()));
    }

    #[test]
    fn senders_can_be_one_a_message_or_one_a_recipient() {
        let sender = |letters: &str| {
            let sender =
                joe("").sender(Letters::of(letters.as_bytes()), 1700000000, 77, &completion()).unwrap();
            String::from_utf8(sender).unwrap()
        };
        assert_eq!(sender(""), "joe@dh.dom");
        assert_eq!(sender("m"), "joe-1700000000.77@dh.dom");
        assert_eq!(sender("r"), "joe-@dh.dom-@[]");
        assert_eq!(sender("xrm"), "joe-1700000000.77-@dh.dom-@[]");
    }
}
