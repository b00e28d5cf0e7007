//! route - control/smtproutes, and addresses written as hosts
//!
//! A value is `relay` or `relay:port`; relay is a name, `1.2.3.4`, `[1.2.3.4]`, `[2001:db8::1]`,
//! `[IPv6:2001:db8::1]`, or without a port a plain `2001:db8::1`.
#![forbid(unsafe_code)]

use crate::SMTP_PORT;
use qmail::control::{Map, dot_suffixes};
use qmail::decimal;
use std::net::{IpAddr, Ipv6Addr};

/// The value for a host: of the whole of it, of each suffix starting at a dot, of the empty key. None
/// when there is none, or an empty one, which says "as the DNS says".
pub fn find<'a>(routes: &'a Map, host: &[u8]) -> Option<&'a [u8]> {
    let value = std::iter::once(host)
        .chain(dot_suffixes(host))
        .chain(std::iter::once(b"".as_slice()))
        .find_map(|key| routes.get(key))?;
    Some(value).filter(|value| !value.is_empty())
}

/// Where a value leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relay {
    Ip(IpAddr),
    Name(Vec<u8>),
}

/// A relay and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub relay: Relay,
    pub port: u16,
}

impl Route {
    /// None for a value that says nothing usable: no relay, no port after a colon, port 0 or over 65535.
    pub fn parse(value: &[u8]) -> Option<Route> {
        if let Some(ip) = text(value).and_then(|v| v.parse::<Ipv6Addr>().ok()) {
            return Some(Route { relay: Relay::Ip(IpAddr::V6(ip)), port: SMTP_PORT });
        }
        // The port stands behind the first colon outside brackets.
        let bracket = if value.starts_with(b"[") { memchr::memchr(b']', value)? } else { 0 };
        let colon = value.iter().enumerate().skip(bracket).find(|(_, b)| **b == b':').map(|(at, _)| at);
        let (relay, port) = match colon {
            Some(at) => {
                let (relay, port) = value.split_at(at);
                let port = decimal::prefix(port.get(1..)?)?;
                (relay, u16::try_from(port).ok().filter(|port| *port > 0)?)
            }
            None => (value, SMTP_PORT),
        };
        let relay = match literal(relay) {
            Some(ip) => Relay::Ip(ip),
            None if relay.is_empty() || relay.starts_with(b"[") => return None,
            None => Relay::Name(relay.to_vec()),
        };
        Some(Route { relay, port })
    }
}

/// The address that `[1.2.3.4]`, `1.2.3.4`, `[IPv6:2001:db8::1]` (RFC 5321 section 4.1.3),
/// `[2001:db8::1]` or `2001:db8::1` names.
pub fn literal(host: &[u8]) -> Option<IpAddr> {
    let inside = match host.strip_prefix(b"[") {
        Some(rest) => rest.strip_suffix(b"]")?,
        None => return text(host)?.parse().ok(),
    };
    match inside.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case(b"IPv6:") => {
            text(inside.get(5..)?)?.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
        }
        _ => text(inside)?.parse().ok(),
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use qmail::control::entries;

    fn map(text: &[u8]) -> Map {
        Map::of(&entries(text))
    }

    fn ip(text: &str) -> Relay {
        Relay::Ip(text.parse().unwrap())
    }

    #[test]
    fn the_whole_host_comes_before_its_suffixes_and_these_before_the_empty_key() {
        let routes = map(b"a.b.c:whole\n.b.c:long\n.c:short\n:rest\nd.c:\n");
        assert_eq!(find(&routes, b"A.B.C"), Some(b"whole".as_slice()));
        assert_eq!(find(&routes, b"x.b.c"), Some(b"long".as_slice()));
        assert_eq!(find(&routes, b"b.c"), Some(b"short".as_slice()));
        assert_eq!(find(&routes, b"c"), Some(b"rest".as_slice()));
        assert_eq!(find(&routes, b"d.c"), None, "an empty value is an exception");
        assert_eq!(find(&map(b".2.3.4]:x\n"), b"[1.2.3.4]"), Some(b"x".as_slice()));
        assert_eq!(find(&map(b"a:x\n"), b"b"), None);
    }

    #[test]
    fn a_relay_is_a_name_or_an_address_with_or_without_a_port() {
        let relay = |value: &[u8]| Route::parse(value).map(|r| (r.relay, r.port));
        let name = |n: &[u8]| Relay::Name(n.to_vec());
        assert_eq!(relay(b"mx.example"), Some((name(b"mx.example"), 25)));
        assert_eq!(relay(b"mx.example:2525"), Some((name(b"mx.example"), 2525)));
        assert_eq!(relay(b"mx.example:26x"), Some((name(b"mx.example"), 26)));
        assert_eq!(relay(b"10.0.0.1"), Some((ip("10.0.0.1"), 25)));
        assert_eq!(relay(b"10.0.0.1:26"), Some((ip("10.0.0.1"), 26)));
        assert_eq!(relay(b"[10.0.0.1]:26"), Some((ip("10.0.0.1"), 26)));
        assert_eq!(relay(b"[::1]"), Some((ip("::1"), 25)));
        assert_eq!(relay(b"[::1]:2525"), Some((ip("::1"), 2525)));
        assert_eq!(relay(b"[ipv6:::1]:2525"), Some((ip("::1"), 2525)));
        assert_eq!(relay(b"2001:db8::1"), Some((ip("2001:db8::1"), 25)));
        assert_eq!(relay(b"[::1"), None);
        assert_eq!(relay(b"[mx.example]"), None);
        assert_eq!(relay(b"[::1]x:25"), None);
    }

    #[test]
    fn a_port_that_is_none_is_refused() {
        for bad in
            [b"mx:".as_slice(), b"mx:smtp", b"mx:0", b"mx:65536", b":25", b":", b"mx:99999999999999999999"]
        {
            assert_eq!(Route::parse(bad), None, "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn literals_are_addresses_and_names_are_not() {
        for good in ["[127.0.0.1]", "127.0.0.1", "[IPv6:::1]", "[ipv6:2001:db8::1]", "[::1]", "::1"] {
            assert!(literal(good.as_bytes()).is_some(), "{good}");
        }
        for bad in ["", "[]", "[IPv6:127.0.0.1]", "[127.0.0.1", "127.0.0.1]", "127.1", "host", "[IPv6:]"] {
            assert_eq!(literal(bad.as_bytes()), None, "{bad}");
        }
    }
}
