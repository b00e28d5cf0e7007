//! policy - asks mta-sts for what a domain demands
#![forbid(unsafe_code)]

use crate::sts::Answer;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, getsockopt, sendmsg, socketpair, sockopt,
};
use qmail::environ;
use qmail::sys::descriptor::Standard;
use qmail::timed::{self, Deadline};
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Where the number of the socket stands.
pub const VARIABLE: &str = "MTASTSFD";

/// A question with all that mta-sts may have to do for it (it gives up after a minute).
const PATIENCE: Duration = Duration::from_secs(90);

/// An answer with all its names.
pub const ANSWER_MAX: usize = 64 * 1024;

/// The way to mta-sts.
#[derive(Debug, Clone, Copy)]
pub struct Client(Standard);

impl Client {
    /// None where nobody knows policies.
    pub fn find() -> Option<Client> {
        let number = i32::try_from(environ::number(VARIABLE)?).ok().filter(|n| *n > 2)?;
        let client = Client(Standard(number));
        getsockopt(&client.0, sockopt::SockType)
            .is_ok_and(|kind| kind == SockType::SeqPacket)
            .then_some(client)
    }

    /// Asks. Should mta-sts not answer there is an error: a policy that was known must not be forgotten for that.
    pub fn ask(self, domain: &[u8]) -> Result<Answer, Errno> {
        let (answer, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        let deadline = Deadline::after(PATIENCE);
        let pass = [theirs.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&pass)];
        loop {
            let packet = [IoSlice::new(domain)];
            match sendmsg::<()>(
                self.0.0,
                &packet,
                &control,
                MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
                None,
            ) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => timed::wait(self.0, nix::poll::PollFlags::POLLOUT, deadline)?,
                Err(errno) => return Err(errno),
            }
        }
        drop(theirs);
        let mut packet = vec![0; ANSWER_MAX];
        let length = timed::read(&answer, &mut packet, deadline)?;
        Answer::parse(packet.get(..length).unwrap_or_default()).ok_or(Errno::EPROTO)
    }
}
