//! dovecot - the client's side of Dovecot's authentication protocol, version 1
//!
//! Lines of fields with tabs between. Both sides greet; the client asks, with its number for the question, and waits for
//! the line that answers it. Nothing here does I/O.
#![forbid(unsafe_code)]

use crate::daemon::Outcome;
use qmail::decimal;
use qmail::sasl::encode;
use std::net::IpAddr;

/// Lines longer than this are nobody's; a server's own limit.
pub const LINE_MAX: usize = 16_384;

/// Lines of a greeting, and those that may come before an answer.
pub const LINES_MAX: usize = 1000;

/// Bytes of name and password: what fits a line in base64, beside the rest.
const SECRETS_MAX: usize = 8192;

/// A name that was let in.
const NAME_MAX: usize = 1024;

/// Our number for the one question.
const ID: &[u8] = b"1";

/// What a server has said of itself.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Greeting {
    version: bool,
    plain: bool,
}

impl Greeting {
    /// Takes a line: whether it was the last one. The error says what makes no sense.
    pub fn take(&mut self, line: &[u8]) -> Result<bool, &'static str> {
        let fields: Vec<&[u8]> = line.split(|b| *b == b'\t').collect();
        match fields.as_slice() {
            [b"VERSION", major, ..] => match decimal::strict(major) {
                Some(1) => self.version = true,
                _ => return Err("it speaks another version of the protocol"),
            },
            [b"MECH", name, ..] => self.plain |= name.eq_ignore_ascii_case(b"PLAIN"),
            [b"DONE", ..] if !self.version => return Err("it does not say its version"),
            [b"DONE", ..] if !self.plain => return Err("it does not do PLAIN"),
            [b"DONE", ..] => return Ok(true),
            _ => {} // SPID, CUID, COOKIE and what is yet to come
        }
        Ok(false)
    }
}

/// Where the login comes from, as far as it is known.
#[derive(Debug, Default, Clone)]
pub struct Peers {
    pub local: Option<IpAddr>,
    pub local_port: Option<u16>,
    pub remote: Option<IpAddr>,
    pub remote_port: Option<u16>,
}

/// The client's greeting.
pub fn greeting(pid: i32) -> Vec<u8> {
    format!("VERSION\t1\t1\nCPID\t{pid}\n").into_bytes()
}

/// The question; None for name and password that nobody has. `service` is a word.
pub fn question(service: &[u8], name: &[u8], password: &[u8], peers: &Peers) -> Option<Vec<u8>> {
    if name.is_empty()
        || name.contains(&0)
        || password.contains(&0)
        || name.len() + password.len() > SECRETS_MAX
    {
        return None;
    }
    let is_word = service.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-');
    let service = if is_word { service } else { b"" };
    let mut line = [b"AUTH\t", ID, b"\tPLAIN\tservice=", service, b"\tsecured\tnologin\tno-penalty"].concat();
    let mut add = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            line.extend_from_slice(format!("\t{key}={value}").as_bytes());
        }
    };
    add("lip", peers.local.map(|ip| ip.to_string()));
    add("rip", peers.remote.map(|ip| ip.to_string()));
    add("lport", peers.local_port.map(|port| port.to_string()));
    add("rport", peers.remote_port.map(|port| port.to_string()));
    line.reserve_exact(SECRETS_MAX * 2); // moved, it would leave copies behind
    let mut plain = qmail::auth::Secret([b"\0", name, b"\0", password].concat());
    let coded = qmail::auth::Secret(encode(&plain));
    plain.0.clear();
    line.extend_from_slice(b"\tresp=");
    line.extend_from_slice(&coded);
    line.push(b'\n');
    Some(line)
}

/// What a line says of our question; None for all others.
pub fn answer(line: &[u8]) -> Option<Outcome> {
    let mut fields = line.split(|b| *b == b'\t');
    let (verb, id) = (fields.next()?, fields.next()?);
    if id != ID {
        return None;
    }
    let fields: Vec<&[u8]> = fields.collect();
    Some(match verb {
        // The password is right, and the account closed.
        b"OK" if fields.iter().any(|field| *field == b"nologin") => Outcome::Refused,
        b"OK" => {
            let user = fields.iter().find_map(|field| field.strip_prefix(b"user="));
            match user.and_then(unescape).filter(|name| is_name(name)) {
                Some(name) => Outcome::Accepted(name),
                None => Outcome::Trouble("it does not say who is let in"),
            }
        }
        b"FAIL" if fields.iter().any(|field| [b"temp".as_slice(), b"code=temp_fail"].contains(field)) => {
            Outcome::Trouble("it has a temporary trouble")
        }
        b"FAIL" => Outcome::Refused,
        b"CONT" => Outcome::Trouble("it wants to go on after all was said"),
        _ => return None,
    })
}

fn is_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && !name.contains(&0) && !name.contains(&b'\n')
}

/// Tabs and line ends inside a value stand behind a byte 1.
fn unescape(value: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            1 => match bytes.next()? {
                b'0' => 0,
                b'1' => 1,
                b't' => b'\t',
                b'r' => b'\r',
                b'n' => b'\n',
                _ => return None,
            },
            byte => *byte,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_must_have_version_and_mechanism() {
        let greet = |text: &str| {
            let mut greeting = Greeting::default();
            text.lines().map(|line| greeting.take(line.as_bytes())).find(|taken| *taken != Ok(false))
        };
        assert_eq!(greet("VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t7\nCOOKIE\tab\nDONE"), Some(Ok(true)));
        assert_eq!(greet("VERSION\t1\t2\nMECH\tLOGIN\tplaintext\nDONE"), Some(Err("it does not do PLAIN")));
        assert_eq!(greet("MECH\tPLAIN\nDONE"), Some(Err("it does not say its version")));
        assert_eq!(greet("VERSION\t2\t0"), Some(Err("it speaks another version of the protocol")));
        assert_eq!(greet("VERSION\t1\t2\nMECH\tPLAIN"), None);
    }

    #[test]
    fn a_question_is_one_line() {
        let peers =
            Peers { remote: Some("2001:db8::1".parse().unwrap()), remote_port: Some(7), ..Peers::default() };
        let line = question(b"pop3", b"joe", b"pencil", &peers).unwrap();
        let wanted = "AUTH\t1\tPLAIN\tservice=pop3\tsecured\tnologin\tno-penalty\trip=2001:db8::1\trport=7\tresp=AGpvZQBwZW5jaWw=\n";
        assert_eq!(String::from_utf8(line).unwrap(), wanted);
        assert_eq!(question(b"pop3", b"jo\0e", b"x", &peers), None);
        assert_eq!(question(b"pop3", b"joe", &[b'x'; SECRETS_MAX], &peers), None);
        assert!(
            question(b"a\tb", b"joe", b"x", &peers)
                .unwrap()
                .starts_with(b"AUTH\t1\tPLAIN\tservice=\tsecured")
        );
    }

    #[test]
    fn an_answer_is_to_our_question() {
        assert_eq!(answer(b"OK\t1\tuser=joe\tother"), Some(Outcome::Accepted(b"joe".to_vec())));
        assert_eq!(answer(b"OK\t1\tuser=j\x01te"), Some(Outcome::Accepted(b"j\te".to_vec())));
        assert_eq!(answer(b"OK\t1\tuser=joe\tnologin"), Some(Outcome::Refused));
        assert_eq!(answer(b"OK\t2\tuser=joe"), None);
        assert!(matches!(answer(b"OK\t1\tuser="), Some(Outcome::Trouble(_))));
        assert!(matches!(answer(b"OK\t1\tuser=a\x01nb"), Some(Outcome::Trouble(_))));
        assert_eq!(answer(b"FAIL\t1\tuser=joe\tcode=user_disabled"), Some(Outcome::Refused));
        assert!(matches!(answer(b"FAIL\t1\tuser=joe\ttemp"), Some(Outcome::Trouble(_))));
        assert!(matches!(answer(b"CONT\t1\t"), Some(Outcome::Trouble(_))));
        assert_eq!(answer(b"MECH\tPLAIN"), None);
    }
}
