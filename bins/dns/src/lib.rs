//! dns - a blocking stub resolver
//!
//! Asks the recursive servers of `$DNSCACHEIP`, else of /etc/resolv.conf, else 127.0.0.1; knows no
//! search list and no /etc/hosts: mail names are whole. Questions go out by UDP with EDNS0 and by TCP
//! when an answer was cut; every wait has an end. `domain` does the wire format (module `wire`), which
//! takes bytes and gives values; sockets are in `stub`.
//!
//! ```no_run
//! match dns::mx(b"example.org") {
//!     Ok(answer) => println!("{:?}, signed: {}", answer.records, answer.authentic),
//!     Err(dns::Failure::Temporary) => println!("ask again later"),
//!     Err(failure) => println!("there is none: {failure:?}"),
//! }
//! ```
#![forbid(unsafe_code)]

pub mod reverse;
pub mod servers;
mod stub;
pub mod wire;

pub use reverse::reverse_name;
pub use wire::{Kind, Mx, Tlsa};

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// One question with all its retries, servers and aliases takes no longer than this, unless
/// `Resolver::within` says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The name exists and has no such record.
    NoData,
    /// The name does not exist, or is none (an empty label, one over 63 bytes, 255 bytes in all).
    NoSuchName,
    /// No server answered, or none sensibly: the question is open.
    Temporary,
}

/// What was found: at least one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    pub records: Vec<T>,
    /// The server validated all of it (the AD bit), and can be believed: it is on this machine, or it is
    /// one of resolv.conf, which vouches for the way to it (`options trust-ad`).
    pub authentic: bool,
}

impl<T> Answer<T> {
    /// The same answer with other records; NoData when none is left.
    fn filter_map<U>(self, pick: impl FnMut(T) -> Option<U>) -> Result<Answer<U>, Failure> {
        let records: Vec<U> = self.records.into_iter().filter_map(pick).collect();
        if records.is_empty() {
            Err(Failure::NoData)
        } else {
            Ok(Answer { records, authentic: self.authentic })
        }
    }
}

/// Where and how long to ask.
#[derive(Debug, Clone)]
pub struct Resolver {
    servers: Vec<SocketAddr>,
    /// The AD bit of a server elsewhere is believed.
    trust_ad: bool,
    patience: Duration,
}

impl Resolver {
    /// With the servers of this machine and environment.
    pub fn find() -> Resolver {
        let (servers, trust_ad) = servers::find();
        Resolver { trust_ad, ..Resolver::at(servers) }
    }

    /// The ports of its servers: where a jail must let it go.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.servers.iter().map(SocketAddr::port)
    }

    /// With these servers, asked in this order. Without any, every question is Temporary.
    pub fn at(servers: Vec<SocketAddr>) -> Resolver {
        Resolver { servers, trust_ad: false, patience: PATIENCE }
    }

    /// Gives up on a question after this time.
    pub fn within(self, patience: Duration) -> Resolver {
        Resolver { patience, ..self }
    }

    /// The mail exchangers, in the order of the answer. A null MX (RFC 7505) is the one record with an
    /// empty name.
    pub fn mx(&self, name: &[u8]) -> Result<Answer<Mx>, Failure> {
        self.ask(name, Kind::Mx)?.filter_map(|data| match data {
            wire::Data::Mx(mx) => Some(mx),
            _ => None,
        })
    }

    /// IPv4 addresses.
    pub fn a(&self, name: &[u8]) -> Result<Answer<Ipv4Addr>, Failure> {
        self.ask(name, Kind::A)?.filter_map(|data| match data {
            wire::Data::A(ip) => Some(ip),
            _ => None,
        })
    }

    /// IPv6 addresses.
    pub fn aaaa(&self, name: &[u8]) -> Result<Answer<Ipv6Addr>, Failure> {
        self.ask(name, Kind::Aaaa)?.filter_map(|data| match data {
            wire::Data::Aaaa(ip) => Some(ip),
            _ => None,
        })
    }

    /// All addresses, IPv4 before IPv6. Addresses of one family are an answer even if the question for
    /// the other is open.
    pub fn ip(&self, name: &[u8]) -> Result<Answer<IpAddr>, Failure> {
        let v4 = self.a(name).and_then(|answer| answer.filter_map(|ip| Some(IpAddr::V4(ip))));
        if v4 == Err(Failure::NoSuchName) {
            return v4; // rfc8020:2: of such a name nothing exists, no other type either
        }
        let v6 = self.aaaa(name).and_then(|answer| answer.filter_map(|ip| Some(IpAddr::V6(ip))));
        match (v4, v6) {
            (Ok(mut four), Ok(six)) => {
                four.records.extend(six.records);
                four.authentic &= six.authentic;
                Ok(four)
            }
            (Ok(some), Err(_)) | (Err(_), Ok(some)) => Ok(some),
            (Err(Failure::Temporary), Err(_)) | (Err(_), Err(Failure::Temporary)) => Err(Failure::Temporary),
            // Two servers, or one and a change between: the name exists for one type, so it exists.
            (Err(_), Err(_)) => Err(Failure::NoData),
        }
    }

    /// The names of an address, as the DNS has them: not verified, in whatever case.
    pub fn ptr(&self, ip: IpAddr) -> Result<Answer<Vec<u8>>, Failure> {
        self.ask(&reverse_name(ip), Kind::Ptr)?.filter_map(|data| match data {
            wire::Data::Ptr(name) if !name.is_empty() => Some(name),
            _ => None,
        })
    }

    /// Texts, the strings of each record joined.
    pub fn txt(&self, name: &[u8]) -> Result<Answer<Vec<u8>>, Failure> {
        self.ask(name, Kind::Txt)?.filter_map(|data| match data {
            wire::Data::Txt(text) => Some(text),
            _ => None,
        })
    }

    /// What a name is an alias for: one name, not followed further.
    pub fn cname(&self, name: &[u8]) -> Result<Answer<Vec<u8>>, Failure> {
        self.ask(name, Kind::Cname)?.filter_map(|data| match data {
            wire::Data::Cname(name) => Some(name),
            _ => None,
        })
    }

    /// How the certificate of a service is to be known (RFC 6698).
    pub fn tlsa(&self, name: &[u8]) -> Result<Answer<Tlsa>, Failure> {
        self.ask(name, Kind::Tlsa)?.filter_map(|data| match data {
            wire::Data::Tlsa(tlsa) => Some(tlsa),
            _ => None,
        })
    }

    fn ask(&self, name: &[u8], kind: Kind) -> Result<Answer<wire::Data>, Failure> {
        stub::ask(&self.servers, self.trust_ad, self.patience, name, kind)
    }
}

/// `Resolver::find().mx(name)`.
pub fn mx(name: &[u8]) -> Result<Answer<Mx>, Failure> {
    Resolver::find().mx(name)
}

/// `Resolver::find().a(name)`.
pub fn a(name: &[u8]) -> Result<Answer<Ipv4Addr>, Failure> {
    Resolver::find().a(name)
}

/// `Resolver::find().aaaa(name)`.
pub fn aaaa(name: &[u8]) -> Result<Answer<Ipv6Addr>, Failure> {
    Resolver::find().aaaa(name)
}

/// `Resolver::find().ip(name)`.
pub fn ip(name: &[u8]) -> Result<Answer<IpAddr>, Failure> {
    Resolver::find().ip(name)
}

/// `Resolver::find().ptr(ip)`.
pub fn ptr(ip: IpAddr) -> Result<Answer<Vec<u8>>, Failure> {
    Resolver::find().ptr(ip)
}

/// `Resolver::find().txt(name)`.
pub fn txt(name: &[u8]) -> Result<Answer<Vec<u8>>, Failure> {
    Resolver::find().txt(name)
}
