//! origin - what a program of `$QMAILQUEUE` is told of who sends a message, as far as that was shown in the conversation
//!
//! Variables of fixed names, each `NAME=value` and a NUL on the way to the launcher. Nothing among them is a secret.
#![forbid(unsafe_code)]

use crate::environ::Environ;
use crate::ucspitls;

/// By whom a message comes.
const SENDER: [&str; 4] = ["RELAYCLIENT", "TCPREMOTEINFO", "SMTPAUTHUSER", "SMTPAUTHMETHOD"];

/// What can be told: that, and how the message was protected on its way.
pub fn names() -> impl Iterator<Item = &'static str> {
    SENDER.into_iter().chain(ucspitls::shown())
}

/// What no launcher of connections says, so that nothing else may either.
const OURS: [&str; 2] = ["SMTPAUTHUSER", "SMTPAUTHMETHOD"];

/// What is of no use to who has not got the connection.
const DESCRIPTORS: [&str; 3] = ["SSLCTLFD", "SSLREADFD", "SSLWRITEFD"];

/// The value of a variable; a longer one is left out.
const VALUE_MAX: usize = 1024;

/// All of them, with their names.
pub const LIST_MAX: usize = (SENDER.len() + ucspitls::NAMES.len()) * (VALUE_MAX + 32);

/// What has been shown; the rest is what it was when the connection came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin(Vec<(&'static str, Vec<u8>)>);

impl Origin {
    /// Adds one; not what has another name, or cannot be a variable.
    pub fn add(&mut self, name: &[u8], value: &[u8]) {
        let known = names().find(|known| known.as_bytes() == name);
        let fits = value.len() <= VALUE_MAX && !value.contains(&0);
        if let Some(name) = known.filter(|name| fits && self.0.iter().all(|(earlier, _)| earlier != name)) {
            self.0.push((name, value.to_vec()));
        }
    }

    /// As `parse` reads it.
    pub fn list(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(name, value)| [name.as_bytes(), b"=", value, b"\0"].concat()).collect()
    }

    /// None when it is no list, or tells more than may be told.
    pub fn parse(list: &[u8]) -> Option<Origin> {
        let mut origin = Origin::default();
        if list.is_empty() {
            return Some(origin);
        }
        let entries: Vec<&[u8]> = list.strip_suffix(b"\0")?.split(|b| *b == 0).collect();
        for entry in &entries {
            let (name, value) = entry.split_at(memchr::memchr(b'=', entry)?);
            origin.add(name, value.get(1..)?);
        }
        (origin.0.len() == entries.len()).then_some(origin)
    }

    /// For the program.
    pub fn put(&self, environ: &mut Environ) {
        OURS.iter().chain(&ucspitls::BINDINGS).chain(&DESCRIPTORS).for_each(|name| environ.unset(name));
        self.0.iter().for_each(|(name, value)| environ.set(name, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let mut origin = Origin::default();
        assert_eq!(Origin::parse(&origin.list()), Some(origin.clone()));
        for name in names() {
            origin.add(name.as_bytes(), &[b'='; VALUE_MAX]);
        }
        origin.add(b"PATH", b"/evil");
        origin.add(b"RELAYCLIENT", b"twice");
        assert!(origin.list().len() <= LIST_MAX);
        assert_eq!(Origin::parse(&origin.list()), Some(origin));
        let long = [b"RELAYCLIENT=".as_slice(), &[b'x'; VALUE_MAX + 1], b"\0"].concat();
        for bad in [
            b"\0".as_slice(),
            b"RELAYCLIENT",
            b"RELAYCLIENT=",
            b"RELAYCLIENT\0",
            b"PATH=/evil\0",
            b"RELAYCLIENT=\0RELAYCLIENT=\0",
            b"RELAYCLIENT=\0\0",
            &long,
        ] {
            assert_eq!(Origin::parse(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn what_was_not_shown_is_not_believed() {
        let mut environ = Environ::empty();
        for name in ["SMTPAUTHUSER", "TLS_EXPORTER", "TCPREMOTEIP", "TLS_PROTOCOL"] {
            environ.set(name, "before");
        }
        let mut origin = Origin::default();
        origin.add(b"TLS_PROTOCOL", b"TLSv1.3");
        origin.put(&mut environ);
        assert_eq!(environ.get(b"SMTPAUTHUSER"), None);
        assert_eq!(environ.get(b"TLS_EXPORTER"), None);
        assert_eq!(environ.get(b"TCPREMOTEIP"), Some(b"before".as_slice()));
        assert_eq!(environ.get(b"TLS_PROTOCOL"), Some(b"TLSv1.3".as_slice()));
    }
}
