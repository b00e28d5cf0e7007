//! server - the child that stays: answers who holds the other end, each in a process of its own
//!
//! What web servers say is read in those processes only, and one sees one domain.
#![forbid(unsafe_code)]

use crate::fetch::Web;
use crate::kept::Place;
use jail::{Jail, programs};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use qmail::home::Home;
use qmail::sys::descriptor::Standard;
use qmail::sys::process::{exit, fork_child};
use qmail::{alongside, date, exits};
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

/// Answers until nobody can ask any more.
pub fn run(home: &Home, ours: &OwnedFd) -> i32 {
    let client = tls::Client::find().map(|client| client.as_standard());
    alongside::settle(ours, client.as_ref().map(Standard::as_fd).as_slice());
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
    alongside::serve(ours, QUESTION_MAX, CHILDREN_MAX, |domain, passed| {
        passed.first().is_some_and(|asker| fork_child(|| answer(&place, &domain, asker)).is_ok())
    })
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
    let id = web.id(domain);
    let has_one = !matches!(id, Ok(None));
    if let Ok(Some(id)) = id
        && kept.wants(&id, now)
    {
        match web.policy(domain) {
            Ok(policy) => kept = Kept { policy: Some((policy, id, now)), failed: None },
            Err(_) => kept.failed = Some((id, now)),
        }
        place.write(domain, &kept);
    }
    Ok(match kept.valid(now) {
        None if has_one => Answer::Unknown,
        policy => Answer::of(policy),
    })
}
