//! alongside - a process that stays beside a program and answers it
//!
//! `A program argument …` makes a pair of sockets, leaves a child with one end and becomes the program, which finds the
//! number of the other in a variable. Everything that the program starts may ask there, a packet a question; the child
//! gives each to a process of its own, so that what one peer says never meets what another does. It ends
//! when nobody holds the other end any more.
//!
//! The child does not answer itself but sees to it that somebody does: who is killed, by the system when memory is short
//! say, is followed by another one, and questions wait in the socket meanwhile. The program has no part in that.
#![forbid(unsafe_code)]

use crate::environ::Environ;
use crate::home::Home;
use crate::sys::process::{self, Command, End};
use crate::sys::signal;
use crate::trouble::Trouble;
use crate::{exits, fd, program};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// The number of the socket in the program is at least this: those below are other contracts'.
const NUMBER_MIN: i32 = 10;

/// Leaves `child` behind, with its end, and becomes the program of these words: of PATH, else of the home. Gives the
/// reason why that could not be.
pub fn precede(
    home: &Home,
    words: &[Vec<u8>],
    variable: &str,
    child: impl FnOnce(&OwnedFd) -> i32,
) -> Result<(), Trouble> {
    let name = words.first().map(Vec::as_slice).unwrap_or_default();
    let path = program::find(name).unwrap_or_else(|| [home.path("bin/").as_slice(), name].concat());
    let (theirs, ours) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| Trouble::unable("make", "a pair of sockets", e))?;
    process::fork_child(|| child(&ours)).map_err(|e| Trouble::temporary("unable to fork").because(e))?;
    drop(ours);
    // Not close-on-exec, unlike everything else here.
    let number =
        fcntl(&theirs, FcntlArg::F_DUPFD(NUMBER_MIN)).map_err(|e| Trouble::unable("make", "a socket", e))?;
    let mut environ = Environ::inherited();
    environ.set(variable, number.to_string());
    let errno = Command::new(&path, words).environ(&environ).exec();
    Err(Trouble::unable("run", &path, errno))
}

/// In the child, first: nothing of the program's stays open in it but its end, and what else it needs.
pub fn settle(ours: &OwnedFd, more: &[BorrowedFd<'_>]) {
    signal::defaults();
    signal::ignore(&[Signal::SIGPIPE]);
    fd::give_up_standard();
    crate::sys::descriptor::close_others(&[&[ours.as_fd()], more].concat());
    signal::catch(&[Signal::SIGCHLD]);
}

/// Before another one is started in the place of one that was killed, so that one that cannot live does not take the
/// processor.
const PAUSE: Duration = Duration::from_secs(1);

/// Takes packets, of at most so many bytes, until nobody can send one any more: the exit code. `start` has a process of
/// its own answer one, and says whether there is such a process; of these there are `children_max`.
pub fn serve(
    ours: &OwnedFd,
    packet_max: usize,
    children_max: usize,
    mut start: impl FnMut(Vec<u8>, Vec<OwnedFd>) -> bool,
) -> i32 {
    loop {
        let server = process::fork_child(|| take(ours, packet_max, children_max, &mut start));
        if server.and_then(process::wait) == Ok(End::Exit(exits::SUCCESS)) {
            return exits::SUCCESS;
        }
        std::thread::sleep(PAUSE);
    }
}

/// The child's child.
fn take(
    ours: &OwnedFd,
    packet_max: usize,
    children_max: usize,
    start: &mut impl FnMut(Vec<u8>, Vec<OwnedFd>) -> bool,
) -> i32 {
    let mut children = 0usize;
    loop {
        while process::reap().is_some() {
            children = children.saturating_sub(1);
        }
        let full = children >= children_max;
        let mut fds = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
        match signal::wait(if full { &mut [] } else { &mut fds }, None) {
            Ok(_) if !full => {}
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return exits::TEMPORARY,
        }
        let mut packet = vec![0; packet_max];
        let received = match fd::receive(ours, &mut packet) {
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(_) => return exits::TEMPORARY,
            Ok(received) => received,
        };
        if received.bytes == 0 && received.passed.is_empty() {
            if is_over(ours) {
                return exits::SUCCESS;
            }
            continue; // an empty packet
        }
        packet.truncate(received.bytes);
        if received.whole && start(packet, received.passed) {
            children += 1;
        }
    }
}

/// Whether nobody can send any more. An empty packet looks the same when it is read.
fn is_over(ours: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(ours.as_fd(), PollFlags::from_bits_retain(libc::POLLRDHUP))];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|found| found > 0)
}
