//! server - the child that stays: answers who holds the other end, each in a process of its own
//!
//! What web servers say is read in those processes only, and one sees one domain.
#![forbid(unsafe_code)]

use crate::fetch::Web;
use crate::kept::Place;
use jail::{Jail, programs};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, send};
use qmail::home::Home;
use qmail::sys::descriptor::{Standard, close_others};
use qmail::sys::process::{self, exit, fork_child};
use qmail::sys::signal;
use qmail::{date, exits, fd};
use remote::sts::{self, Answer, Kept};
use remote::tls;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Questions answered at once; more wait in the socket. Each may take a minute, but most take a millisecond.
const CHILDREN_MAX: usize = 64;

/// A question: a domain.
const QUESTION_MAX: usize = 256;

/// resolv.conf may be a link to where the network's manager writes it.
const RESOLV_CONF: &[u8] = b"/etc/resolv.conf";

/// Of the DNS, should resolv.conf change while we run.
const DNS_PORT: u16 = 53;

/// Answers until nobody can ask any more. `theirs` and its second number `number` are the program's.
pub fn run(home: &Home, theirs: &OwnedFd, number: i32, ours: &OwnedFd) -> i32 {
    fd::give_up_standard();
    process::close(number);
    process::close(theirs.as_raw_fd());
    let client = tls::Client::find();
    let descriptors = client.as_ref().map(tls::Client::as_standard);
    let keep: Vec<_> =
        std::iter::once(ours.as_fd()).chain(descriptors.as_ref().map(Standard::as_fd)).collect();
    close_others(&keep);
    signal::catch(&[Signal::SIGCHLD]);
    let ports = Web::find().ports().chain([DNS_PORT]).collect::<Vec<_>>();
    let jail = Jail::of(&programs::MTA_STS_SERVER)
        .home(home)
        .place(programs::RESOLVER, jail::home_of(RESOLV_CONF))
        .ports(ports)
        .close();
    if jail.is_err() {
        return exits::TEMPORARY; // who asks gets no answer, and waits with its mail
    }
    let place = Place::of(home);
    let mut children = 0usize;
    loop {
        while process::reap().is_some() {
            children = children.saturating_sub(1);
        }
        let mut fds = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
        let watched = if children < CHILDREN_MAX { fds.as_mut_slice() } else { &mut [] };
        match signal::wait(watched, None) {
            Ok(_) if children < CHILDREN_MAX => {}
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return exits::TEMPORARY,
        }
        let mut question = [0; QUESTION_MAX];
        let received = match fd::receive(ours, &mut question) {
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(_) => return exits::TEMPORARY,
            Ok(received) => received,
        };
        if received.bytes == 0 && received.passed.is_empty() {
            return exits::SUCCESS; // nobody holds the other end
        }
        let (Some(asker), true) = (received.passed.first(), received.whole) else { continue };
        let domain = question.get(..received.bytes).unwrap_or_default();
        if fork_child(|| answer(&place, domain, asker)).is_ok() {
            children += 1;
        }
    }
}

/// In a child: one answer.
fn answer(place: &Place, domain: &[u8], asker: &OwnedFd) -> i32 {
    if Jail::of(&programs::MTA_STS_ASKING).close().is_err() {
        return exits::TEMPORARY;
    }
    let domain = domain.to_ascii_lowercase();
    let answer = if sts::is_domain(&domain) { look(place, &domain) } else { Ok(Answer::Nothing) };
    let Ok(answer) = answer else { return exits::TEMPORARY }; // who asked waits with its mail
    let _ = send(asker.as_raw_fd(), &answer.bytes(), MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
    exit(exits::SUCCESS)
}

/// rfc8461:3.3 and 5.1: what is kept and has not run out holds, whether or not there is anything new.
fn look(place: &Place, domain: &[u8]) -> Result<Answer, Errno> {
    let mut kept = place.read(domain)?.unwrap_or_default();
    let web = Web::find();
    let now = date::now();
    if let Ok(Some(id)) = web.id(domain)
        && kept.wants(&id, now)
    {
        match web.policy(domain) {
            Ok(policy) => kept = Kept { policy: Some((policy, id, now)), failed: None },
            Err(_) => kept.failed = Some((id, now)),
        }
        place.write(domain, &kept);
    }
    Ok(Answer::of(kept.valid(now)))
}
