//! line - how a delivery program that has finished is given the next message
//!
//! A server is slow to greet and quick to take a second message, and a program costs more to start than a Maildir to
//! write. So qmail-rspawn says to its qmail-remote, and qmail-lspawn to its qmail-local, by
//! `QMAILKEEP=3`, that descriptor 3 is a line: a socket of packets on which more messages for the same host, or the same
//! recipient, may come. A program that knows nothing of it does not look, and ends behind its first message as ever.
//!
//! One that does says `KEPT` on the line when its reports are written: it waits, and its connection with it. (Not among
//! the reports: what it ran itself may have written there.) A packet is a message (a descriptor, opened at its
//! beginning) and NUL-ended words: the sender, then each recipient. The program reports on it as on the first one, and
//! waits or ends.
//!
//! *Not begun*: a program that ends well and has said nothing of what was sent to it has not begun it. Somebody else
//! may. The end of the line is the end of the work: whoever waits then says goodbye to its server and ends.
//!
//! The process beside the program has such a line of its own, from the spawner. There the words are preceded by the
//! slots and rows of the ledger (`Handed`).
#![forbid(unsafe_code)]

use super::Request;
use super::ledger::{CLAIMED, Claimed};
use super::slot::{Slot, Width};
use crate::{environ, fd};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, getsockopt, sendmsg, shutdown,
    socketpair, sockopt,
};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Tells a delivery program the number of its line.
pub const VARIABLE: &str = "QMAILKEEP";

/// That number.
pub const NUMBER: RawFd = 3;

/// The packet of a program that waits for the next message.
const KEPT: &[u8] = b"kept\n";

/// The longest packet: the addresses of those who travel together, a sender, and for each recipient its row.
pub const PACKET_MAX: usize = 96 * 1024;

/// A line: both ends, close-on-exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Puts a packet with its descriptors on the line: at once or not at all.
pub fn send(line: impl AsFd, words: &[u8], passed: &[RawFd]) -> Result<(), Errno> {
    if words.len() > PACKET_MAX {
        return Err(Errno::EMSGSIZE);
    }
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let control = [ControlMessage::ScmRights(passed)];
    sendmsg::<()>(line.as_fd().as_raw_fd(), &[IoSlice::new(words)], &control, flags, None).map(drop)
}

/// Whether the program at the other end says that it waits. Anything else there is its end.
pub fn is_kept(line: impl AsFd) -> bool {
    let mut said = [0; KEPT.len() + 1];
    fd::receive(line, &mut said).is_ok_and(|received| said.get(..received.bytes) == Some(KEPT))
}

/// The end of a line that packets come from.
pub struct Line {
    end: OwnedFd,
    open: bool,
    /// Room for one packet, kept: most of it is never touched.
    room: Vec<u8>,
}

impl Line {
    /// The line of this delivery program, if who started it has more. The descriptor is ours alone.
    pub fn inherited() -> Option<Line> {
        let number = environ::get(VARIABLE)?;
        if number != NUMBER.to_string().as_bytes() {
            return None;
        }
        let end = fd::take(NUMBER).ok()?;
        fd::close_on_exec(&end).ok()?;
        (getsockopt(&end, sockopt::SockType) == Ok(SockType::SeqPacket)).then(|| Line::new(end))
    }

    /// Says that all is reported, and that this program waits.
    pub fn announce(&self) -> Result<(), Errno> {
        send(&self.end, KEPT, &[])
    }

    pub fn new(end: OwnedFd) -> Line {
        Line { end, open: true, room: Vec::new() }
    }

    /// A packet that is there. None: nobody will send one any more, or it was not whole.
    fn receive(&mut self) -> Option<(&[u8], Vec<OwnedFd>)> {
        if self.room.is_empty() {
            self.room = vec![0; PACKET_MAX];
        }
        let received = fd::receive(&self.end, &mut self.room).ok().filter(|r| r.whole && r.bytes > 0)?;
        Some((self.room.get(..received.bytes)?, received.passed))
    }

    /// From now on nothing can be put on the line; what was before can still be taken.
    pub fn refuse(&mut self) {
        self.open = false;
        let _ = shutdown(self.end.as_raw_fd(), Shutdown::Read);
    }

    /// Whether more may come.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Takes the next message that is there.
    pub fn take_errand(&mut self) -> Option<Errand> {
        let (words, passed) = self.receive()?;
        let Ok([message]) = <[OwnedFd; 1]>::try_from(passed) else { return None };
        let mut words = words.strip_suffix(b"\0")?.split(|b| *b == 0).map(<[u8]>::to_vec);
        let sender = words.next()?;
        let recipients: Vec<Vec<u8>> = words.collect();
        (!recipients.is_empty()).then_some(Errand { message, sender, recipients })
    }

    /// Takes what was handed over, if there is something.
    pub fn take_handed(&mut self) -> Option<Handed> {
        let (bytes, passed) = self.receive()?;
        let mut passed = passed.into_iter();
        let (message, ledger) = (passed.next()?, passed.next());
        let (count, mut rest) = bytes.split_first_chunk()?;
        let mut places = Vec::new();
        for _ in 0..u16::from_le_bytes(*count) {
            let (width, behind) = rest.split_first()?;
            let width = if *width == Width::Wide as u8 { Width::Wide } else { Width::Narrow };
            let (number, behind) = behind.split_first_chunk()?;
            let (row, behind) = behind.split_first_chunk()?;
            places.push((Slot::of(u16::from_le_bytes(*number).into(), width)?, Claimed::decode(row)));
            rest = behind;
        }
        let mut words = rest.strip_suffix(b"\0")?.split(|b| *b == 0);
        let sender = words.next()?;
        let mut handed = Handed { message, ledger, requests: Vec::new(), rows: Vec::new() };
        for ((slot, row), recipient) in places.into_iter().zip(words) {
            let (sender, recipient) = (sender.to_vec(), recipient.to_vec());
            handed.requests.push(Request { slot, path: Vec::new(), sender, recipient, cut: false });
            handed.rows.push(row);
        }
        (!handed.requests.is_empty()).then_some(handed)
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

/// A message for a delivery program.
#[derive(Debug)]
pub struct Errand {
    pub message: OwnedFd,
    pub sender: Vec<u8>,
    pub recipients: Vec<Vec<u8>>,
}

/// As an errand's packet has them.
pub fn words(requests: &[Request]) -> Vec<u8> {
    let sender = requests.first().map(|request| &request.sender);
    let mut words = Vec::new();
    for word in sender.into_iter().chain(requests.iter().map(|request| &request.recipient)) {
        words.extend_from_slice(word);
        words.push(0);
    }
    words
}

/// What a spawner hands to the process beside a delivery program that waits.
#[derive(Debug)]
pub struct Handed {
    pub message: OwnedFd,
    /// The ledger with the rows locked; None where there is none.
    pub ledger: Option<OwnedFd>,
    pub requests: Vec<Request>,
    pub rows: Vec<Option<Claimed>>,
}

/// Hands these requests, of one message, to the process at the other end. Its path does not go with them.
pub fn hand(
    line: impl AsFd,
    message: &OwnedFd,
    ledger: Option<&OwnedFd>,
    requests: &[Request],
    rows: &[Option<Claimed>],
) -> Result<(), Errno> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&u16::try_from(requests.len()).map_err(|_| Errno::EMSGSIZE)?.to_le_bytes());
    for (request, row) in requests.iter().zip(rows) {
        bytes.push(request.slot.width() as u8);
        bytes.extend_from_slice(&request.slot.number().to_le_bytes());
        bytes.extend_from_slice(&row.map_or([0; CLAIMED], |row| row.encode()));
    }
    bytes.extend_from_slice(&words(requests));
    let passed: Vec<RawFd> = std::iter::once(message).chain(ledger).map(AsRawFd::as_raw_fd).collect();
    send(line, &bytes, &passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(slot: u8, recipient: &[u8]) -> Request {
        Request {
            slot: slot.into(),
            path: b"1/2".to_vec(),
            sender: b"s@h".to_vec(),
            recipient: recipient.to_vec(),
            cut: false,
        }
    }

    #[test]
    fn what_is_handed_over_arrives_as_it_was() {
        let (near, far) = pair().unwrap();
        let mut far = Line::new(far);
        let file = fd::null().unwrap();
        let requests = [request(0, b"a@d"), request(254, b""), request(9, b"b@d")];
        for ledger in [None, Some(&file)] {
            hand(&near, &file, ledger, &requests, &[None, None, None]).unwrap();
            let handed = far.take_handed().unwrap();
            assert_eq!(handed.ledger.is_some(), ledger.is_some());
            assert_eq!(handed.rows, [None, None, None]);
            let found: Vec<_> =
                handed.requests.iter().map(|r| (r.slot.number(), r.recipient.as_slice())).collect();
            assert_eq!(found, [(0, b"a@d".as_slice()), (254, b""), (9, b"b@d")]);
            assert!(handed.requests.iter().all(|r| r.sender == b"s@h"));
        }
    }

    #[test]
    fn an_errand_is_a_message_a_sender_and_recipients() {
        let (near, far) = pair().unwrap();
        let mut far = Line::new(far);
        let file = fd::null().unwrap();
        send(&near, &words(&[request(0, b"a@d"), request(1, b"b@d")]), &[file.as_raw_fd()]).unwrap();
        let errand = far.take_errand().unwrap();
        assert_eq!(
            (errand.sender, errand.recipients),
            (b"s@h".to_vec(), vec![b"a@d".to_vec(), b"b@d".to_vec()])
        );
        for (wrong, passed) in
            [(b"s@h\0".as_slice(), 1), (b"s@h\0a@d", 1), (b"s@h\0a@d\0", 0), (b"s@h\0a@d\0", 2)]
        {
            send(&near, wrong, &vec![file.as_raw_fd(); passed]).unwrap();
            assert!(far.take_errand().is_none(), "{wrong:?} {passed}");
        }
    }

    #[test]
    fn what_was_sent_before_the_refusal_is_not_lost_and_nothing_comes_behind_it() {
        let (near, far) = pair().unwrap();
        let mut far = Line::new(far);
        let file = fd::null().unwrap();
        let put = || send(&near, &words(&[request(0, b"a@d")]), &[file.as_raw_fd()]);
        put().unwrap();
        far.refuse();
        assert_eq!(put(), Err(Errno::EPIPE));
        assert!(far.take_errand().is_some());
        assert!(far.take_errand().is_none());
    }
}
