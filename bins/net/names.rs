//! What the DNS calls the two ends of a connection, and where a name leads to. Strangers write these answers,
//! so a child in a jail reads them.

use crate::options::Options;
use dns::Resolver;
use jail::{Jail, programs};
use qmail::timed::Deadline;
use qmail::trouble::Trouble;
use std::net::IpAddr;
use std::time::Duration;

/// A name in the DNS has at most 255 bytes (rfc1035:2.3.4).
const NAME_MAX: usize = 255;

/// Names of two addresses, and for the paranoid IPv4 and IPv6 addresses of a name. Each question has an end by
/// itself; this is for a child that is not what it was.
const QUESTIONS_MAX: u32 = 4;
const PATIENCE: Duration = dns::PATIENCE.saturating_mul(QUESTIONS_MAX + 1);

#[derive(Default)]
pub struct Names {
    pub local: Option<Vec<u8>>,
    pub remote: Option<Vec<u8>>,
}

/// Whether nobody has to be asked.
pub fn are_given(options: &Options) -> bool {
    options.local_host.is_some() && !options.remote_host
}

/// Those that the options want and that are known. Without a question there is no child.
pub fn find(options: &Options, local: IpAddr, remote: IpAddr) -> Result<Names, Trouble> {
    let given = options.local_host.clone();
    if are_given(options) {
        return Ok(Names { local: given, remote: None });
    }
    let resolver = Resolver::find(); // reads files
    let jail = Jail::of(&programs::TCPSERVER_NAMES).ports(resolver.ports());
    let answer = jail::aside(jail, &[], 2 * NAME_MAX + 1, Deadline::after(PATIENCE), || {
        let local = if given.is_none() { name_of(&resolver, local) } else { None };
        let name = if options.remote_host { name_of(&resolver, remote) } else { None };
        let name = name.filter(|name| !options.paranoid || leads_to(&resolver, name, remote));
        [local.unwrap_or_default(), name.unwrap_or_default()].join(&0)
    })?;
    let found = answer.map(|answer| parse(&answer)).unwrap_or_default();
    Ok(Names { local: given.or(found.local), remote: found.remote.filter(|_| options.remote_host) })
}

/// The DNS has not said whether there is an address.
pub struct Unanswered;

/// Longest text of an address.
const ADDRESS_MAX: usize = 45;

/// The first address of a name that is fit for the purpose.
pub fn address(
    name: &[u8],
    is_fit: impl Fn(&IpAddr) -> bool,
) -> Result<Result<Option<IpAddr>, Unanswered>, Trouble> {
    let resolver = Resolver::find();
    let jail = Jail::of(&programs::TCPSERVER_NAMES).ports(resolver.ports());
    let answer =
        jail::aside(jail, &[], ADDRESS_MAX, Deadline::after(PATIENCE), || match resolver.ip(name) {
            Ok(answer) => answer
                .records
                .into_iter()
                .find(&is_fit)
                .map(|ip| ip.to_string().into_bytes())
                .unwrap_or_default(),
            Err(dns::Failure::Temporary) => b"?".to_vec(),
            Err(_) => Vec::new(),
        })?;
    Ok(match answer.as_deref() {
        None | Some(b"?") => Err(Unanswered),
        Some(text) => {
            let ip = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
            Ok(ip.filter(is_fit))
        }
    })
}

/// Both names with a NUL between them, empty when there is none.
fn parse(answer: &[u8]) -> Names {
    let mut names = answer.split(|b| *b == 0);
    let mut next = || names.next().filter(|name| !name.is_empty()).map(<[u8]>::to_vec);
    Names { local: next(), remote: next() }
}

/// The name the DNS has for an address, in lower case. A NUL would cut it into another name.
fn name_of(resolver: &Resolver, ip: IpAddr) -> Option<Vec<u8>> {
    let name = resolver.ptr(ip).ok()?.records.into_iter().next()?.to_ascii_lowercase();
    (!name.is_empty() && !name.contains(&0)).then_some(name)
}

fn leads_to(resolver: &Resolver, name: &[u8], ip: IpAddr) -> bool {
    resolver.ip(name).is_ok_and(|answer| answer.records.contains(&ip))
}
