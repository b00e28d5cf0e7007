//! ucspitls - TLS that begins in the middle of a conversation, made by the process in front of us (UCSPI-TLS)
//!
//! SSLCTLFD, SSLREADFD and SSLWRITEFD are numbers of inherited descriptors. A program that has told its client to
//! begin writes `Y` to the first, and reads from it what is to be known of the session: `NAME=value NUL` until
//! an empty one. From then on it speaks over the other two, which take the place of 0 and 1 here: nothing else
//! of the program needs to know. The end of the first before the list ends is a handshake that failed.
#![forbid(unsafe_code)]

use crate::fd::{self, Standard};
use crate::sasl::Binding;
use crate::sys::process;
use crate::timed::{self, Deadline};
use crate::{decimal, environ};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// All variables together: certificates' names are the longest of them.
const FACTS_MAX: usize = 64 * 1024;

/// A handshake has its own, shorter deadline in the process that makes it.
const HANDSHAKE_SECONDS: u64 = 300;

/// What is known of a session: no other variable is taken for such, and who makes the session lets none of them
/// through from elsewhere. The last are those of older launchers.
pub const NAMES: [&str; 14] = [
    "TLS_PROTOCOL",
    "TLS_CIPHER",
    "TLS_SERVER_NAME",
    "TLS_CLIENT_VERIFIED",
    "TLS_CLIENT_SUBJECT",
    "TLS_CLIENT_EMAIL",
    "TLS_CLIENT_DNS",
    "TLS_CLIENT_FINGERPRINT",
    "TLS_EXPORTER",
    "TLS_SERVER_END_POINT",
    "TLS_ALPN",
    "SSL_PROTOCOL",
    "SSL_CIPHER",
    "SSL_TLS_SNI_HOSTNAME",
];

/// Of these, what a login can be bound to: for who talks to the client, and for nobody behind.
pub const BINDINGS: [&str; 2] = ["TLS_EXPORTER", "TLS_SERVER_END_POINT"];

/// What those behind may be told: all but these.
pub fn shown() -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().filter(|name| !BINDINGS.contains(name))
}

/// What is known of the TLS session; nothing where there is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts(Vec<(Vec<u8>, Vec<u8>)>);

impl Facts {
    /// Of a session that was there before us. What the launcher did not say is not there: without a protocol there
    /// is no session, whatever else is set.
    pub fn from_environ() -> Facts {
        let all = NAMES.iter().filter_map(|name| Some((name.as_bytes().to_vec(), environ::get(name)?)));
        let facts = Facts(all.collect());
        if facts.is_tls() { facts } else { Facts::default() }
    }

    /// From the list on SSLCTLFD, without its end. None when it is none; unknown names are passed over.
    pub fn parse(list: &[u8]) -> Option<Facts> {
        let mut facts = Facts::default();
        let entries = list.strip_suffix(b"\0")?;
        for entry in entries.split(|b| *b == 0) {
            let at = memchr::memchr(b'=', entry)?;
            let (name, value) = (entry.get(..at)?, entry.get(at + 1..)?);
            if NAMES.iter().any(|known| known.as_bytes() == name) && facts.get_bytes(name).is_none() {
                facts.0.push((name.to_vec(), value.to_vec()));
            }
        }
        facts.is_tls().then_some(facts)
    }

    /// As `parse` reads it.
    pub fn list(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(name, value)| [name.as_slice(), b"=", value, b"\0"].concat()).collect()
    }

    pub fn is_tls(&self) -> bool {
        ["TLS_PROTOCOL", "SSL_PROTOCOL"].iter().any(|name| self.get(name).is_some_and(|v| !v.is_empty()))
    }

    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.get_bytes(name.as_bytes())
    }

    fn get_bytes(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
    }

    pub fn all(&self) -> &[(Vec<u8>, Vec<u8>)] {
        &self.0
    }

    /// For SCRAM-SHA-256-PLUS.
    pub fn binding(&self) -> Binding {
        Binding::from_hex(self.get("TLS_EXPORTER"), self.get("TLS_SERVER_END_POINT"))
    }

    /// The address in the client's certificate, if its chain was verified.
    pub fn client_email(&self) -> Option<&[u8]> {
        let verified = self.get("TLS_CLIENT_VERIFIED") == Some(b"1");
        self.get("TLS_CLIENT_EMAIL").filter(|email| verified && !email.is_empty())
    }
}

/// TLS is to be had.
#[derive(Debug, PartialEq, Eq)]
pub struct Offer {
    control: Standard,
    read: Standard,
    write: Standard,
}

impl Offer {
    /// None where the launcher offers nothing. No program that is started from now on gets the descriptors.
    pub fn from_environ() -> Option<Offer> {
        let number = |name| {
            let number = i32::try_from(decimal::strict(&environ::get(name)?)?).ok()?;
            let descriptor = (number > 2).then_some(Standard(number))?;
            fcntl(descriptor, FcntlArg::F_GETFD).ok()?;
            fd::close_on_exec(descriptor).ok()?;
            Some(descriptor)
        };
        Some(Offer { control: number("SSLCTLFD")?, read: number("SSLREADFD")?, write: number("SSLWRITEFD")? })
    }

    /// Begins. The client has been told to, and everything said so has been sent; afterwards 0 and 1 are the
    /// session.
    pub fn start(self) -> Result<Facts, Errno> {
        let deadline = Deadline::seconds(HANDSHAKE_SECONDS);
        timed::write_all(self.control, b"Y", deadline)?;
        let facts = read_facts(self.control, deadline)?;
        self.adopt()?;
        Ok(facts)
    }

    /// In a parent whose child has begun: 0 and 1 are the session here as well.
    pub fn adopt(self) -> Result<(), Errno> {
        nix::unistd::dup2_stdin(self.read)?;
        nix::unistd::dup2_stdout(self.write)?;
        self.close();
        Ok(())
    }

    fn close(self) {
        process::close(self.control.0);
        process::close(self.read.0);
        if self.write != self.read {
            process::close(self.write.0);
        }
    }
}

/// In a process that shall not have the session: neither before it has begun nor later.
pub fn give_up() {
    if let Some(offer) = Offer::from_environ() {
        offer.close();
    }
}

fn read_facts(control: Standard, deadline: Deadline) -> Result<Facts, Errno> {
    let mut list = Vec::new();
    let mut chunk = [0u8; 1024];
    loop {
        let n = timed::read(control, &mut chunk, deadline)?;
        if n == 0 || list.len() + n > FACTS_MAX {
            return Err(Errno::ECONNABORTED);
        }
        list.extend_from_slice(chunk.get(..n).unwrap_or_default());
        if let Some(list) = list.strip_suffix(b"\0\0") {
            return Facts::parse(&[list, b"\0"].concat()).ok_or(Errno::EPROTO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_a_list_and_only_known_ones_count() {
        let list =
            b"TLS_PROTOCOL=TLSv1.3\0LD_PRELOAD=x\0TLS_EXPORTER=00ff\0TLS_PROTOCOL=x\0TLS_CLIENT_EMAIL=a=b\0";
        let facts = Facts::parse(list).unwrap();
        assert_eq!(facts.get("TLS_PROTOCOL"), Some(b"TLSv1.3".as_slice()));
        assert_eq!(facts.get("LD_PRELOAD"), None);
        assert_eq!(facts.all().len(), 3);
        assert_eq!(facts.binding().exporter, Some(vec![0, 255]));
        assert_eq!(facts.client_email(), None); // nobody has verified it
        let agreed = b"TLS_PROTOCOL=TLSv1.3\0TLS_ALPN=pop3\0";
        assert_eq!(Facts::parse(agreed).unwrap().list(), agreed);
        let verified = [list.as_slice(), b"TLS_CLIENT_VERIFIED=1\0"].concat();
        assert_eq!(Facts::parse(&verified).unwrap().client_email(), Some(b"a=b".as_slice()));
    }

    #[test]
    fn what_is_no_list_is_no_session() {
        for wrong in [
            b"".as_slice(),
            b"\0",
            b"TLS_CIPHER=x\0",
            b"TLS_PROTOCOL\0",
            b"TLS_PROTOCOL=x",
            b"TLS_PROTOCOL=\0",
        ] {
            assert_eq!(Facts::parse(wrong), None);
        }
    }
}
