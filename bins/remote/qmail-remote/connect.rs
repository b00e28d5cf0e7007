//! connect - a connection to an address
//!
//! The table of hosts that timed out lately (tcpto) is a courtesy to our own slots: whoever may not
//! write it goes on as if it were empty. It has room for IPv4 only.
#![forbid(unsafe_code)]

use crate::dialogue::Wire;
use crate::hosts::Place;
use crate::report::{self, Report};
use nix::errno::Errno;
use qmail::{date, tcpto, trouble};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

/// Connects to one address; None when it does not take the connection, and the next one is to be tried.
pub fn to(
    place: &Place,
    port: u16,
    patience: Duration,
    table: Option<&tcpto::File>,
) -> Result<Option<Wire>, Report> {
    let past = Past::of(place.ip, table);
    if past == Past::TimedOutLately {
        return Ok(None);
    }
    match TcpStream::connect_timeout(&SocketAddr::new(place.ip, port), patience) {
        Ok(stream) => {
            past.answered(place.ip, table);
            // Commands are small and each waits for its answer. Without it they are only slower.
            let _ = stream.set_nodelay(true);
            // A write must never wait in the kernel, where no deadline reaches it.
            stream.set_nonblocking(true).map_err(|_| report::no_resources())?;
            return Ok(Some(Rc::new(OwnedFd::from(stream))));
        }
        Err(error) if error.kind() == ErrorKind::TimedOut => timed_out(place.ip, table),
        Err(error) => match trouble::errno(&error) {
            Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM => {
                return Err(report::no_resources());
            }
            _ => past.answered(place.ip, table),
        },
    }
    Ok(None)
}

/// What the table says of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    Unknown,
    Known,
    TimedOutLately,
}

impl Past {
    fn of(ip: IpAddr, table: Option<&tcpto::File>) -> Past {
        let IpAddr::V4(ip) = ip else { return Past::Unknown };
        let Some(open) = read(table) else { return Past::Unknown };
        if tcpto::skip(open.records(), ip, date::now(), std::process::id()) {
            Past::TimedOutLately
        } else if tcpto::answered(open.records(), ip).is_some() {
            Past::Known
        } else {
            Past::Unknown
        }
    }

    /// It is there again, or at least says no.
    fn answered(self, ip: IpAddr, table: Option<&tcpto::File>) {
        if self != Past::Unknown {
            change(ip, table, tcpto::answered);
        }
    }
}

fn timed_out(ip: IpAddr, table: Option<&tcpto::File>) {
    change(ip, table, |records, ip| tcpto::timed_out(records, ip, date::now()));
}

fn read(table: Option<&tcpto::File>) -> Option<tcpto::Table> {
    table?.table().ok()
}

/// A table that cannot be written is out of date, which does no harm.
fn change(
    ip: IpAddr,
    table: Option<&tcpto::File>,
    decide: impl Fn(&[tcpto::Record], Ipv4Addr) -> Option<(usize, tcpto::Record)>,
) {
    let IpAddr::V4(ip) = ip else { return };
    let Some(mut open) = read(table) else { return };
    if let Some((at, record)) = decide(open.records(), ip) {
        let _ = open.write(at, &record);
    }
}
