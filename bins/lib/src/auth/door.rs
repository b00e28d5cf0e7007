//! door - the socket `run/auth`: how a login reaches a checker that may become the user
//!
//! The client connects, sees by SO_PEERCRED that the server is the one who may know passwords, and sends
//! one packet: two descriptors (the connection it serves) and a request. It waits, however long a session
//! may take, for one byte: the exit code of the checker, or of the program that the checker became; behind it,
//! where the mechanism is SCRAM, what the checker said of the server's signature, and behind a LF, where it said so,
//! the name of the account. The end of the connection without it is a temporary failure.
//!
//! A request is `1`, then the bytes for descriptor 3 (length of 4 bytes), the words that select a service
//! (a count of 1 byte, each with a length of 2), and variables (a count of 1 byte; each a name with a length
//! of 1 and a value with a length of 2). Lengths are big-endian; nothing follows.
#![forbid(unsafe_code)]

use crate::auth::{ACCOUNT_MAX, Remarks, SIGNATURE_MAX, Secret, account, signature, wipe};
use crate::exits;
use crate::home::Home;
use crate::timed::Deadline;
use crate::trouble::Trouble;
use crate::{environ, fd, ucspitls};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, recv, send,
    sendmsg, setsockopt, socket, sockopt,
};
use nix::unistd::{Pid, Uid};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// The socket, relative to the home.
pub const SOCKET: &str = "run/auth";

/// Packets: a request is there whole or not at all.
pub const TYPE: SockType = SockType::SeqPacket;

/// Bytes for descriptor 3: tokens of 2 to 16 KiB are passwords too. What the checkers read.
pub const FIELDS_MAX: usize = 64 * 1024;

/// Words of a request, and the length of each; command lines are short.
pub const WORDS_MAX: usize = 32;
pub const WORD_MAX: usize = 1024;

/// The value of a variable; host names have 255 bytes, what ident says up to 1000.
pub const VALUE_MAX: usize = 1024;

/// A whole request. Linux keeps a packet of up to 84 KiB in single pages, without asking for more than that.
pub const REQUEST_MAX: usize = FIELDS_MAX + 16 * 1024;

/// What the UCSPI launchers say about the connection.
const CONNECTION: [&str; 8] = [
    "PROTO",
    "TCPLOCALIP",
    "TCPLOCALPORT",
    "TCPLOCALHOST",
    "TCPREMOTEIP",
    "TCPREMOTEPORT",
    "TCPREMOTEHOST",
    "TCPREMOTEINFO",
];

/// The variables that go with a login, and no others.
pub fn names() -> impl Iterator<Item = &'static str> {
    CONNECTION.into_iter().chain(ucspitls::shown())
}

/// The first byte of a login; another protocol would start with another one.
const HELLO: u8 = b'1';

/// The first byte of a question about an account's rate.
const RATE: u8 = b'2';

/// How long a client tries a missing or refusing socket: qmail-authd may just be starting again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// A server must take a connection within this time; its backlog is full otherwise.
const CONNECT_SECONDS: i64 = 60;

/// Bytes in the path of a socket's address (sun_path, without its NUL).
const PATH_MAX: usize = 107;

/// What a front asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// For descriptor 3: name, password or digest, timestamp, each ended by a NUL.
    pub fields: Secret,
    /// The name of a service, or its whole command line.
    pub words: Vec<Vec<u8>>,
    /// Those of `names` that are set.
    pub environ: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Request {
    /// With the variables of this process. A value that is too long to be true is left out.
    pub fn new(fields: Secret, words: &[Vec<u8>]) -> Request {
        let environ = names()
            .filter_map(|name| Some((name.as_bytes().to_vec(), environ::get(name)?)))
            .filter(|(_, value)| value.len() <= VALUE_MAX)
            .collect();
        Request { fields, words: words.to_vec(), environ }
    }

    /// The same; a variable of `more` counts before one of this process.
    pub fn with(fields: Secret, words: &[Vec<u8>], more: &[(Vec<u8>, Vec<u8>)]) -> Request {
        let mut request = Request::new(fields, words);
        let known = |name: &[u8]| names().any(|known| known.as_bytes() == name);
        for (name, value) in more.iter().filter(|(name, value)| known(name) && value.len() <= VALUE_MAX) {
            request.environ.retain(|(earlier, _)| earlier != name);
            request.environ.push((name.clone(), value.clone()));
        }
        request
    }

    /// As it is sent; None when it is more than a server takes.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(REQUEST_MAX); // moved, it would leave copies behind
        out.push(HELLO);
        out.extend_from_slice(&u32::try_from(self.fields.len()).ok()?.to_be_bytes());
        out.extend_from_slice(&self.fields);
        out.push(u8::try_from(self.words.len()).ok()?);
        for word in &self.words {
            out.extend_from_slice(&u16::try_from(word.len()).ok()?.to_be_bytes());
            out.extend_from_slice(word);
        }
        out.push(u8::try_from(self.environ.len()).ok()?);
        for (name, value) in &self.environ {
            out.push(u8::try_from(name.len()).ok()?);
            out.extend_from_slice(name);
            out.extend_from_slice(&u16::try_from(value.len()).ok()?.to_be_bytes());
            out.extend_from_slice(value);
        }
        let whole = Request::parse(&out).is_some();
        if !whole {
            wipe(&mut out);
        }
        whole.then_some(out)
    }

    /// None when it is anything but a request, to the last byte.
    pub fn parse(packet: &[u8]) -> Option<Request> {
        if packet.len() > REQUEST_MAX {
            return None;
        }
        let mut rest = packet.strip_prefix(&[HELLO])?;
        let length = u32::from_be_bytes(take(&mut rest, 4)?.try_into().ok()?);
        let fields = take(&mut rest, usize::try_from(length).ok().filter(|n| *n <= FIELDS_MAX)?)?;
        let count = usize::from(*take(&mut rest, 1)?.first()?);
        if !(1..=WORDS_MAX).contains(&count) {
            return None;
        }
        let mut words = Vec::with_capacity(count);
        for _ in 0..count {
            words.push(text(&mut rest, WORD_MAX)?.to_vec());
        }
        let count = usize::from(*take(&mut rest, 1)?.first()?);
        let mut environ: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for _ in 0..count {
            let length = usize::from(*take(&mut rest, 1)?.first()?);
            let name = take(&mut rest, length)?;
            let value = text(&mut rest, VALUE_MAX)?;
            let is_known = names().any(|known| known.as_bytes() == name);
            if !is_known || environ.iter().any(|(earlier, _)| earlier == name) {
                return None;
            }
            environ.push((name.to_vec(), value.to_vec()));
        }
        rest.is_empty().then(|| Request { fields: Secret(fields.to_vec()), words, environ })
    }

    /// The value of a variable that came with it.
    pub fn variable(&self, name: &str) -> Option<&[u8]> {
        self.environ.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, value)| value.as_slice())
    }
}

/// May this account send to so many recipients now?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateRequest {
    pub recipients: u32,
    /// So many are allowed an hour; at least one.
    pub hourly: u32,
    pub account: Vec<u8>,
}

impl RateRequest {
    pub fn encode(&self) -> Vec<u8> {
        let numbers = [self.recipients.to_be_bytes(), self.hourly.to_be_bytes()].concat();
        [&[RATE], numbers.as_slice(), &self.account].concat()
    }

    pub fn parse(packet: &[u8]) -> Option<RateRequest> {
        let mut rest = packet.strip_prefix(&[RATE])?;
        let recipients = u32::from_be_bytes(take(&mut rest, 4)?.try_into().ok()?);
        let hourly = u32::from_be_bytes(take(&mut rest, 4)?.try_into().ok()?);
        let fits = hourly > 0 && (1..=WORD_MAX).contains(&rest.len()) && !rest.contains(&0);
        fits.then(|| RateRequest { recipients, hourly, account: rest.to_vec() })
    }
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(n)?;
    *rest = left;
    Some(taken)
}

/// Bytes behind a length of 2, for an argument or a variable: without a NUL.
fn text<'a>(rest: &mut &'a [u8], max: usize) -> Option<&'a [u8]> {
    let length = u16::from_be_bytes(take(rest, 2)?.try_into().ok()?);
    let taken = take(rest, usize::from(length))?;
    (taken.len() <= max && !taken.contains(&0)).then_some(taken)
}

/// What became of a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The exit code of the checker, or of the program behind it.
    pub code: i32,
    /// For SCRAM, what the checker said of the server's signature, in base64.
    pub signature: Vec<u8>,
    /// Whose login it was, in the words of the checker; empty when it has none for that.
    pub account: Vec<u8>,
}

impl Answer {
    pub fn of(code: i32) -> Answer {
        Answer::with(code, None)
    }

    pub fn with(code: i32, remarks: Option<&Remarks>) -> Answer {
        let (signature, account) = remarks.map(Remarks::read).unwrap_or_default();
        Answer { code, signature, account }
    }

    /// As it is sent.
    fn encode(&self) -> Vec<u8> {
        let code = u8::try_from(self.code).unwrap_or(exits::TEMPORARY as u8);
        let signature = self.signature.get(..self.signature.len().min(SIGNATURE_MAX)).unwrap_or_default();
        let mut packet = [&[code], signature].concat();
        if !self.account.is_empty() {
            packet.push(b'\n');
            packet.extend_from_slice(&self.account);
        }
        packet
    }

    fn parse(packet: &[u8]) -> Option<Answer> {
        let (code, said) = packet.split_first()?;
        Some(Answer { code: i32::from(*code), signature: signature(said), account: account(said) })
    }
}

/// Hands a login over, with the connection it is for, and waits until checker or program have ended. Every
/// trouble is temporary and in words for a log. The password is not kept while it waits.
pub fn ask(home: &Home, request: Request, input: impl AsFd, output: impl AsFd) -> Result<Answer, Trouble> {
    let connection = connect_patiently(home).map_err(|e| Trouble::unable("connect to", SOCKET, e))?;
    // `run` belongs to qmailq: whoever can put another socket there must not be told a password.
    let peer = getsockopt(&connection, sockopt::PeerCredentials)
        .map_err(|e| Trouble::unable("see who serves", SOCKET, e))?;
    if Uid::from_raw(peer.uid()) != server(home) {
        return Err(Trouble::temporary(format!("refusing {SOCKET}: it is served by uid {}", peer.uid())));
    }
    ask_at(&connection, request, input, output)
}

/// Whether the account may send; None when nobody is there to tell.
pub fn may_send(home: &Home, request: &RateRequest) -> Option<bool> {
    let connection = connect_with(home, SockFlag::empty()).ok()?;
    may_send_at(&connection, request)
}

pub(super) fn may_send_at(connection: &OwnedFd, request: &RateRequest) -> Option<bool> {
    let limit = nix::sys::time::TimeVal::new(CONNECT_SECONDS, 0);
    setsockopt(connection, sockopt::ReceiveTimeout, &limit).ok()?;
    send(connection.as_raw_fd(), &request.encode(), MsgFlags::MSG_NOSIGNAL).ok()?;
    let mut answer = [0u8; 1];
    let got = loop {
        match recv(connection.as_raw_fd(), &mut answer, MsgFlags::empty()) {
            Err(Errno::EINTR) => {}
            result => break result,
        }
    };
    let _ = setsockopt(connection, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 0));
    match (got, answer) {
        (Ok(1), [0]) => Some(true),
        (Ok(1), [1]) => Some(false),
        _ => None,
    }
}

/// The same over a connection that is there already.
pub(super) fn ask_at(
    connection: &OwnedFd,
    request: Request,
    input: impl AsFd,
    output: impl AsFd,
) -> Result<Answer, Trouble> {
    let mut packet = request.encode().ok_or_else(|| Trouble::temporary("more words than a service has"))?;
    let sent = send_packet(connection, &packet, input, output);
    wipe(&mut packet);
    drop(request);
    match sent {
        // A server that refused before it was asked has left its answer to be read, or none.
        Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET) => {}
        Err(errno) => return Err(Trouble::unable("write to", SOCKET, errno)),
    }
    let mut answer = [0u8; 1 + SIGNATURE_MAX + 1 + ACCOUNT_MAX];
    loop {
        match recv(connection.as_raw_fd(), &mut answer, MsgFlags::empty()).map(|n| answer.get(..n)) {
            Err(Errno::EINTR) => {}
            answer => {
                let answer = answer.ok().flatten().and_then(Answer::parse);
                return answer
                    .ok_or_else(|| Trouble::temporary(format!("{SOCKET} was closed without an answer")));
            }
        }
    }
}

/// Who alone may be told passwords.
fn server(home: &Home) -> Uid {
    match home.ids().role("root") {
        Some(owner) if home.ids().is_own() => owner.uid,
        _ => Uid::from_raw(0),
    }
}

fn connect_patiently(home: &Home) -> Result<OwnedFd, Errno> {
    let deadline = Deadline::after(PATIENCE);
    loop {
        match connect_with(home, SockFlag::empty()) {
            Err(Errno::ENOENT | Errno::ECONNREFUSED) if !deadline.passed() => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// The process that listens; None when nobody does.
pub fn listener(home: &Home) -> Result<Option<Pid>, Errno> {
    match connect_with(home, SockFlag::SOCK_NONBLOCK) {
        Ok(connection) => {
            let peer = getsockopt(&connection, sockopt::PeerCredentials)?;
            Ok(Some(Pid::from_raw(peer.pid())))
        }
        // What is there and is no socket of ours does not listen either.
        Err(Errno::ENOENT | Errno::ECONNREFUSED | Errno::EPROTOTYPE | Errno::ELOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn connect_with(home: &Home, flags: SockFlag) -> Result<OwnedFd, Errno> {
    let connection = socket(AddressFamily::Unix, TYPE, SockFlag::SOCK_CLOEXEC | flags, None)?;
    let limit = nix::sys::time::TimeVal::new(CONNECT_SECONDS, 0);
    setsockopt(&connection, sockopt::SendTimeout, &limit)?;
    let path = home.path(SOCKET);
    if path.len() <= PATH_MAX {
        connect(connection.as_raw_fd(), &UnixAddr::new(fd::path(&path))?)?;
    } else {
        // A home with a long name: reach its directory by a short one.
        let directory = fd::open_directory(home.path("run"))?;
        let short = format!("/proc/self/fd/{}/auth", directory.as_raw_fd());
        connect(connection.as_raw_fd(), &UnixAddr::new(short.as_str())?)?;
    }
    Ok(connection)
}

fn send_packet(
    connection: &OwnedFd,
    packet: &[u8],
    input: impl AsFd,
    output: impl AsFd,
) -> Result<(), Errno> {
    // Room for the largest request where the system's usual buffer is small; as much as it allows.
    if packet.len() * 2 > getsockopt(connection, sockopt::SndBuf).unwrap_or(usize::MAX) {
        let _ = setsockopt(connection, sockopt::SndBuf, &(REQUEST_MAX * 2));
    }
    let pass: [RawFd; 2] = [input.as_fd().as_raw_fd(), output.as_fd().as_raw_fd()];
    let control = [ControlMessage::ScmRights(&pass)];
    loop {
        let data = [IoSlice::new(packet)];
        match sendmsg::<()>(connection.as_raw_fd(), &data, &control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            result => return result.map(|_| ()),
        }
    }
}

/// What a client sent.
pub enum Received {
    /// A request with its two descriptors (in, out).
    Request(Request, OwnedFd, OwnedFd),
    /// A question about a rate.
    Rate(RateRequest),
    /// Anything else, with what was passed.
    Wrong(Vec<OwnedFd>),
    /// Nothing; it has left.
    End,
}

/// What there is; EAGAIN when nothing is there yet.
pub fn receive(connection: impl AsFd) -> Result<Received, Errno> {
    let mut packet = vec![0u8; REQUEST_MAX + 1];
    let received = fd::receive(connection, &mut packet);
    let request = match &received {
        Ok(received) if received.whole => packet.get(..received.bytes).and_then(Request::parse),
        _ => None,
    };
    let rate = match &received {
        Ok(received) if received.whole && received.passed.is_empty() => {
            packet.get(..received.bytes).and_then(RateRequest::parse)
        }
        _ => None,
    };
    wipe(&mut packet);
    let received = received?;
    if let Some(rate) = rate {
        return Ok(Received::Rate(rate));
    }
    Ok(match (request, <[OwnedFd; 2]>::try_from(received.passed)) {
        (Some(request), Ok([input, output])) => Received::Request(request, input, output),
        (None, Err(passed)) if received.bytes == 0 && passed.is_empty() && received.whole => Received::End,
        (_, Ok(passed)) => Received::Wrong(passed.into()),
        (_, Err(passed)) => Received::Wrong(passed),
    })
}

/// The server's last word. Never waits: the answer fits the socket's buffer, or nobody reads it.
pub fn send_answer(connection: impl AsFd, answer: &Answer) {
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let _ = send(connection.as_fd().as_raw_fd(), &answer.encode(), flags);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            fields: Secret(b"joe\0secret\0<1.2@h>\0".to_vec()),
            words: vec![b"checker".to_vec(), b"".to_vec(), b"Maildir".to_vec()],
            environ: vec![(b"PROTO".to_vec(), b"TCP".to_vec()), (b"TCPREMOTEINFO".to_vec(), b"".to_vec())],
        }
    }

    #[test]
    fn what_is_sent_arrives() {
        assert_eq!(Request::parse(&request().encode().unwrap()), Some(request()));
    }

    #[test]
    fn what_is_known_of_a_session_goes_with_a_login_but_for_what_binds_one_to_it() {
        let names: Vec<_> = names().collect();
        assert!(["TCPREMOTEIP", "TLS_ALPN", "SSL_CIPHER"].iter().all(|name| names.contains(name)));
        assert!(!ucspitls::BINDINGS.iter().any(|name| names.contains(name)));
    }

    #[test]
    fn a_request_that_is_cut_or_longer_is_none() {
        let whole = request().encode().unwrap();
        for n in 0..whole.len() {
            assert_eq!(Request::parse(whole.get(..n).unwrap()), None, "{n}");
        }
        assert_eq!(Request::parse(&[whole.as_slice(), b"x"].concat()), None);
    }

    #[test]
    fn a_question_about_a_rate_arrives_whole_or_not_at_all() {
        let request = RateRequest { recipients: 3, hourly: 100, account: b"joe".to_vec() };
        let whole = request.encode();
        assert_eq!(RateRequest::parse(&whole), Some(request.clone()));
        for n in 0..10 {
            assert_eq!(RateRequest::parse(whole.get(..n).unwrap_or_default()), None);
        }
        assert_eq!(Request::parse(&whole), None);
        for wrong in [
            RateRequest { hourly: 0, ..request.clone() },
            RateRequest { account: b"a\0b".to_vec(), ..request.clone() },
            RateRequest { account: vec![b'a'; WORD_MAX + 1], ..request },
        ] {
            assert_eq!(RateRequest::parse(&wrong.encode()), None);
        }
    }

    #[test]
    fn an_answer_arrives_as_it_was_sent() {
        for (signature, account) in [("", ""), ("c2ln", ""), ("", "joe@example.org"), ("c2ln", "joe")] {
            let answer = Answer { code: 0, signature: signature.into(), account: account.into() };
            assert_eq!(Answer::parse(&answer.encode()), Some(answer));
        }
        assert_eq!(Answer::parse(b""), None);
        assert_eq!(Answer::parse(&Answer::of(300).encode()), Some(Answer::of(exits::TEMPORARY)));
    }

    #[test]
    fn limits_are_where_they_are_said_to_be() {
        let largest = Request { fields: Secret(vec![0; FIELDS_MAX]), ..request() };
        assert!(largest.encode().is_some());
        for wrong in [
            Request { fields: Secret(vec![b'x'; FIELDS_MAX + 1]), ..request() },
            Request { words: vec![], ..request() },
            Request { words: vec![b"w".to_vec(); WORDS_MAX + 1], ..request() },
            Request { words: vec![vec![b'w'; WORD_MAX + 1]], ..request() },
            Request { words: vec![b"a\0b".to_vec()], ..request() },
            Request { environ: vec![(b"PATH".to_vec(), b"/tmp".to_vec())], ..request() },
            Request { environ: vec![(b"PROTO".to_vec(), b"a\0b".to_vec())], ..request() },
            Request { environ: vec![(b"PROTO".to_vec(), vec![b'x'; VALUE_MAX + 1])], ..request() },
            Request { environ: vec![(b"PROTO".to_vec(), b"".to_vec()); 2], ..request() },
            Request {
                words: vec![vec![b'w'; WORD_MAX]; WORDS_MAX],
                fields: Secret(vec![0; FIELDS_MAX]),
                ..request()
            },
        ] {
            assert_eq!(wrong.encode(), None);
        }
    }
}
