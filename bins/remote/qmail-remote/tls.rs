//! tls - TLS for a connection, made by another process
//!
//! tlsclient stands before qmail-rspawn and leaves a socket, whose number is in TLSCLIENTFD. It is handed the connected
//! socket and what is demanded, makes the handshake, and says what it found before anything is sent; then
//! what is written here in the clear goes out encrypted. Keys and certificates are never parsed in here.
#![forbid(unsafe_code)]

use crate::demand::Demand;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use qmail::environ;
use qmail::sasl::Binding;
use qmail::sys::descriptor::Standard;
use qmail::timed::{self, Deadline};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Where the number of the socket stands.
pub const VARIABLE: &str = "TLSCLIENTFD";

/// A verdict with its facts.
const VERDICT_MAX: usize = 16 * 1024;

/// What is shown of a fact in a report.
const FACT_MAX: usize = 80;

/// And of a reason.
const REASON_MAX: usize = 400;

/// The way to tlsclient.
#[derive(Debug, Clone, Copy)]
pub struct Client(Standard);

impl Client {
    /// None where nobody offers TLS.
    pub fn find() -> Option<Client> {
        let number = i32::try_from(environ::number(VARIABLE)?).ok().filter(|n| *n > 2)?;
        // What is not open, or no socket, would fail at every connection.
        let client = Client(Standard(number));
        nix::sys::socket::getsockopt(&client.0, nix::sys::socket::sockopt::SockType)
            .is_ok_and(|kind| kind == SockType::SeqPacket)
            .then_some(client)
    }

    /// For who closes everything else.
    pub fn as_standard(&self) -> Standard {
        self.0
    }

    /// Hands over a connection. The connected socket may be closed here afterwards.
    pub fn begin(self, connection: impl AsFd, demand: &Demand, patience: Duration) -> Result<Outcome, Errno> {
        let pair = |kind| {
            socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
        };
        let (answer, their_answer) = pair(SockType::SeqPacket)?;
        let (clear, their_clear) = pair(SockType::Stream)?;
        let demands = demand.bytes();
        let pass = [their_answer.as_raw_fd(), their_clear.as_raw_fd(), connection.as_fd().as_raw_fd()];
        let control = [ControlMessage::ScmRights(&pass)];
        let packet = [IoSlice::new(&demands)];
        let deadline = Deadline::after(patience);
        loop {
            match sendmsg::<()>(
                self.0.0,
                &packet,
                &control,
                MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
                None,
            ) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => timed::wait(self.0, PollFlags::POLLOUT, deadline)?,
                Err(_) => return Ok(Outcome::Gone),
            }
        }
        drop((their_answer, their_clear));
        let mut packet = vec![0; VERDICT_MAX];
        let length = timed::read(&answer, &mut packet, deadline)?;
        Ok(Outcome::of(Verdict::parse(packet.get(..length).unwrap_or_default()), clear))
    }
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// The clear side of an encrypted connection.
    Encrypted(OwnedFd, Facts),
    /// The handshake failed, or the peer went away.
    Failed(Vec<u8>),
    /// The peer is not who it should be.
    Refused(Vec<u8>),
    /// Whoever took it over in tlsclient is not well.
    NoClient,
    /// tlsclient, which was there when qmail-rspawn was started, is gone: a fault of ours that lowers nothing.
    Gone,
}

impl Outcome {
    fn of(verdict: Option<Verdict>, clear: OwnedFd) -> Outcome {
        match verdict {
            Some(Verdict::Good { verified, facts }) => Outcome::Encrypted(clear, Facts { verified, ..facts }),
            Some(Verdict::Failed(why)) => Outcome::Failed(why),
            Some(Verdict::Refused(why)) => Outcome::Refused(why),
            None => Outcome::NoClient,
        }
    }
}

/// What is known of an encrypted connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// As it was demanded.
    pub verified: bool,
    pub protocol: Vec<u8>,
    pub cipher: Vec<u8>,
    pub binding: Binding,
}

/// The one packet of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Good { verified: bool, facts: Facts },
    Failed(Vec<u8>),
    Refused(Vec<u8>),
}

impl Verdict {
    /// None for what is none.
    pub fn parse(packet: &[u8]) -> Option<Verdict> {
        let (letter, rest) = packet.split_first()?;
        match letter {
            b'K' | b'U' => {
                let fact = |name: &[u8]| {
                    rest.split(|b| *b == 0).find_map(|f| f.strip_prefix(name)?.strip_prefix(b"="))
                };
                let word = |name| shown(fact(name).unwrap_or_default(), FACT_MAX);
                let facts = Facts {
                    verified: false,
                    protocol: word(b"TLS_PROTOCOL"),
                    cipher: word(b"TLS_CIPHER"),
                    binding: Binding::from_hex(fact(b"TLS_EXPORTER"), fact(b"TLS_SERVER_END_POINT")),
                };
                Some(Verdict::Good { verified: *letter == b'K', facts })
            }
            b'Z' | b'D' => {
                let text = rest.split(|b| *b == 0).next().unwrap_or_default();
                let why = shown(text.strip_suffix(b"\n").unwrap_or(text), REASON_MAX);
                Some(if *letter == b'Z' { Verdict::Failed(why) } else { Verdict::Refused(why) })
            }
            _ => None,
        }
    }
}

/// As it may stand in one line of a report.
fn shown(text: &[u8], max: usize) -> Vec<u8> {
    text.iter().take(max).map(|b| if (32..=126).contains(b) { *b } else { b'?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_a_letter_and_facts() {
        let good = b"KTLS_PROTOCOL=TLSv1.3\0TLS_CIPHER=TLS_AES_128_GCM_SHA256\0TLS_EXPORTER=00fF\0odd\0X=\0";
        let Some(Verdict::Good { verified: true, facts }) = Verdict::parse(good) else { panic!() };
        assert_eq!(
            (facts.protocol.as_slice(), facts.binding.exporter),
            (b"TLSv1.3".as_slice(), Some(vec![0, 255]))
        );
        assert_eq!(facts.binding.end_point, None);
        assert!(matches!(Verdict::parse(b"U"), Some(Verdict::Good { verified: false, .. })));
        assert_eq!(Verdict::parse(b"Zbroken\n\0"), Some(Verdict::Failed(b"broken".to_vec())));
        assert_eq!(Verdict::parse(b"Dexpi\x1bred"), Some(Verdict::Refused(b"expi?red".to_vec())));
        assert_eq!(Verdict::parse(b""), None);
        assert_eq!(Verdict::parse(b"k"), None);
    }
}
