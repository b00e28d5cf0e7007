//! hosts - from a host name to the addresses to try, in order
#![forbid(unsafe_code)]

use crate::SMTP_PORT;
use crate::dane::Questions;
use crate::report::{self, Report};
use crate::route::{self, Relay, Route};
use dns::{Answer, Failure, Mx, Resolver, Tlsa};
use qmail::ipme;
use qmail::sys::random;
use qmail::timed::Deadline;
use std::net::IpAddr;
use std::time::Duration;

/// All look-ups for one host together. A domain with many names on dead servers must not hold a slot
/// for hours; what was not found in time counts as a temporary failure.
const PATIENCE: Duration = Duration::from_secs(300);

/// The best this many names are looked up.
const NAMES_MAX: usize = 50;

/// And this many addresses are tried: each may cost timeoutconnect.
const PLACES_MAX: usize = 64;

/// An address and the preference of the name it was found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub ip: IpAddr,
    pub preference: u16,
    /// Its name, in `Places::names`.
    pub name: usize,
}

/// A name by which addresses were found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Name {
    /// An address in words where there is no name.
    pub name: Vec<u8>,
    /// The DNS proved its addresses.
    pub proved: bool,
}

/// What to try, best first, and on which port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    pub places: Vec<Place>,
    pub names: Vec<Name>,
    pub port: u16,
    /// The DNS proved that these names are the host's; a route's relay is the administrator's word.
    pub proved: bool,
    /// Some exchangers could not be looked up now.
    pub in_doubt: bool,
}

/// What the administrator's route says; whether it leads to ourselves is the administrator's business.
pub fn of_route(route: &Route, lookup: &Lookup) -> Result<Places, Report> {
    let found = match &route.relay {
        Relay::Ip(ip) => Places::of_ip(*ip),
        Relay::Name(name) => lookup.addresses(name)?,
    };
    Ok(Places { port: route.port, proved: true, ..found })
}

/// What the DNS says of a host, up to where we ourselves, at these addresses, are listed.
pub fn of_host(host: &[u8], lookup: &Lookup, own: &[IpAddr]) -> Result<Places, Report> {
    let mut found = match route::literal(host) {
        Some(ip) => Places::of_ip(ip),
        None => lookup.exchangers(host)?,
    };
    found.places = before_me(found.places, own);
    if found.places.is_empty() {
        return Err(report::best_is_me());
    }
    Ok(found)
}

impl Places {
    fn of_ip(ip: IpAddr) -> Places {
        let ip = ip.to_canonical();
        let name = Name { name: ip.to_string().into_bytes(), proved: false };
        Places {
            places: vec![Place { ip, preference: 0, name: 0 }],
            names: vec![name],
            port: SMTP_PORT,
            proved: true,
            in_doubt: false,
        }
    }
}

/// The DNS servers, known beforehand, and the time for all questions together.
pub struct Lookup {
    resolver: Resolver,
    deadline: Deadline,
}

impl Lookup {
    pub fn begin() -> Lookup {
        Lookup { resolver: Resolver::find(), deadline: Deadline::after(PATIENCE) }
    }

    /// The ports that questions go to.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.resolver.ports()
    }

    /// The resolver for one more question; None when time is over.
    fn within(&self) -> Option<Resolver> {
        let left = self.deadline.left().unwrap_or(dns::PATIENCE).min(dns::PATIENCE);
        if left.is_zero() { None } else { Some(self.resolver.clone().within(left)) }
    }

    fn ip(&self, name: &[u8]) -> Result<Answer<IpAddr>, Failure> {
        self.within().ok_or(Failure::Temporary)?.ip(name)
    }

    /// The addresses of one name, all alike. They are the host's if the DNS proves them.
    fn addresses(&self, name: &[u8]) -> Result<Places, Report> {
        match self.ip(name) {
            Ok(answer) => Ok(Places {
                places: collect(answer.records.into_iter().map(|ip| Place { ip, preference: 0, name: 0 })),
                names: vec![Name { name: whole(name), proved: answer.authentic }],
                port: SMTP_PORT,
                proved: true,
                in_doubt: false,
            }),
            Err(Failure::NoSuchName) => Err(report::no_such_host(name)),
            Err(Failure::NoData) => Err(report::no_address()),
            Err(Failure::Temporary) => Err(report::dns_temporary()),
        }
    }

    /// The addresses of a host's mail exchangers; a host without any is its own (RFC 5321 section 5.1).
    fn exchangers(&self, host: &[u8]) -> Result<Places, Report> {
        let resolver = self.within().ok_or_else(report::dns_temporary)?;
        let (list, proved) = match resolver.mx(host) {
            Ok(answer) => (answer.records, answer.authentic),
            Err(Failure::NoSuchName | Failure::NoData) => return self.addresses(host),
            Err(Failure::Temporary) => return Err(report::dns_temporary()),
        };
        if is_null(&list) {
            return Err(report::null_mx(host));
        }
        let (mut found, mut names) = (Vec::new(), Vec::new());
        let mut in_doubt = false;
        for mx in sorted(list)? {
            if names.iter().any(|known: &Name| known.name.eq_ignore_ascii_case(&whole(&mx.name))) {
                continue;
            }
            match self.ip(&mx.name) {
                Ok(answer) => {
                    let (preference, name) = (mx.preference, names.len());
                    found.extend(answer.records.into_iter().map(|ip| Place { ip, preference, name }));
                    names.push(Name { name: whole(&mx.name), proved: answer.authentic });
                }
                Err(Failure::Temporary) => in_doubt = true,
                Err(Failure::NoSuchName | Failure::NoData) => {}
            }
        }
        match (found.is_empty(), in_doubt) {
            (false, _) => {
                let places = collect(found.into_iter());
                Ok(Places { places, names, port: SMTP_PORT, proved, in_doubt })
            }
            (true, true) => Err(report::dns_temporary()),
            (true, false) => Err(report::no_address()),
        }
    }
}

/// What DANE asks of the DNS.
impl Questions for Lookup {
    fn cname(&self, name: &[u8]) -> Result<Answer<Vec<u8>>, Failure> {
        self.within().ok_or(Failure::Temporary)?.cname(name)
    }

    fn tlsa(&self, name: &[u8]) -> Result<Answer<Tlsa>, Failure> {
        self.within().ok_or(Failure::Temporary)?.tlsa(name)
    }
}

/// Without a final dot.
fn whole(name: &[u8]) -> Vec<u8> {
    name.strip_suffix(b".").unwrap_or(name).to_vec()
}

/// rfc7505:3 one record with the root as its name: no mail here.
fn is_null(list: &[Mx]) -> bool {
    matches!(list, [only] if only.name.is_empty())
}

/// Best preference first, equals in random order, so that they share the work. A root among other names
/// is none (RFC 7505 section 3: it must stand alone).
fn sorted(list: Vec<Mx>) -> Result<Vec<Mx>, Report> {
    let mut keyed = Vec::with_capacity(list.len());
    for mx in list.into_iter().filter(|mx| !mx.name.is_empty()) {
        keyed.push((mx.preference, random::number16().map_err(|_| report::no_resources())?, mx));
    }
    keyed.sort_by_key(|(preference, chance, _)| (*preference, *chance));
    Ok(keyed.into_iter().map(|(_, _, mx)| mx).take(NAMES_MAX).collect())
}

/// Each address of a name once; IPv4 in IPv6 clothes as what it is. Of another name it is another host: what its
/// certificate must be, and whether a policy has it, goes by the name.
fn collect(places: impl Iterator<Item = Place>) -> Vec<Place> {
    let mut kept: Vec<Place> = Vec::new();
    for place in places {
        let ip = place.ip.to_canonical();
        if !kept.iter().any(|k| (k.ip, k.name) == (ip, place.name)) {
            kept.push(Place { ip, ..place });
        }
    }
    kept
}

/// What is better than we are: mail never goes to an exchanger as good as or worse than ourselves
/// (RFC 5321 section 5.1), or it would go round.
fn before_me(places: Vec<Place>, own: &[IpAddr]) -> Vec<Place> {
    let me = places.iter().filter(|p| own.contains(&p.ip)).map(|p| p.preference).min();
    let better = |p: &Place| me.is_none_or(|me| p.preference < me);
    places.into_iter().filter(better).take(PLACES_MAX).collect()
}

pub fn own_addresses() -> Result<Vec<IpAddr>, Report> {
    ipme::addresses().map_err(|_| report::no_resources())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn places(list: &[(&str, u16)]) -> Vec<Place> {
        list.iter().map(|(a, preference)| Place { ip: ip(a), preference: *preference, name: 0 }).collect()
    }

    fn mx(preference: u16, name: &[u8]) -> Mx {
        Mx { preference, name: name.to_vec() }
    }

    #[test]
    fn only_what_is_better_than_we_are_is_tried() {
        let all = places(&[("192.0.2.1", 10), ("2001:db8::1", 20), ("192.0.2.2", 20), ("192.0.2.3", 30)]);
        assert_eq!(before_me(all.clone(), &[]), all);
        assert_eq!(before_me(all.clone(), &[ip("192.0.2.2")]), all[..1]);
        assert_eq!(before_me(all.clone(), &[ip("2001:db8::1")]), all[..1]);
        assert_eq!(before_me(all.clone(), &[ip("192.0.2.3"), ip("192.0.2.1")]), []);
    }

    #[test]
    fn exchangers_are_sorted_by_preference() {
        let list = vec![mx(30, b"c"), mx(10, b"a"), mx(0, b""), mx(20, b"b"), mx(65535, b"z")];
        let names: Vec<_> = sorted(list).unwrap().into_iter().map(|m| m.name).collect();
        assert_eq!(names, [b"a", b"b", b"c", b"z"]);
    }

    #[test]
    fn equals_come_in_every_order() {
        let mut first = std::collections::HashSet::new();
        for _ in 0..200 {
            let list = vec![mx(10, b"a"), mx(10, b"b"), mx(10, b"c")];
            first.insert(sorted(list).unwrap().remove(0).name);
        }
        assert_eq!(first.len(), 3);
    }

    #[test]
    fn a_null_mx_stands_alone() {
        assert!(is_null(&[mx(0, b"")]));
        assert!(!is_null(&[mx(0, b""), mx(10, b"a")]));
        assert!(!is_null(&[mx(0, b"a")]));
    }

    #[test]
    fn an_address_of_a_name_is_tried_once() {
        let all = places(&[("::ffff:192.0.2.1", 10), ("192.0.2.1", 10), ("192.0.2.2", 10)]);
        assert_eq!(collect(all.into_iter()), places(&[("192.0.2.1", 10), ("192.0.2.2", 10)]));
        let [one, two] = [0, 1].map(|name| Place { ip: ip("192.0.2.1"), preference: 10, name });
        assert_eq!(collect([one, two, one].into_iter()), [one, two]);
    }

    #[test]
    fn this_host_has_addresses() {
        let own = own_addresses().unwrap();
        assert!(own.contains(&ip("0.0.0.0")) && own.contains(&ip("::")));
    }
}
