//! route - control/smtproutes, and addresses written as hosts
//!
//! A value is `relay` or `relay:port`, and may have words behind it: `@NAME`, a login that control/smtpauth has, or a
//! name and a password, and `cleartext`, which lets them be told without TLS. relay is a name, `1.2.3.4`, `[1.2.3.4]`,
//! `[2001:db8::1]`, `[IPv6:2001:db8::1]`, or without a port a plain `2001:db8::1`.
#![forbid(unsafe_code)]

use crate::SMTP_PORT;
use qmail::auth::Secret;
use qmail::control::{Map, dot_suffixes};
use qmail::decimal;
use std::net::{IpAddr, Ipv6Addr};

/// Where a value leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relay {
    Ip(IpAddr),
    Name(Vec<u8>),
}

/// What a route says of the login at its relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    None,
    /// It stands in control/smtpauth.
    Named(Vec<u8>),
    Given {
        name: Vec<u8>,
        password: Secret,
    },
}

/// A relay and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub relay: Relay,
    pub port: u16,
    pub login: Login,
    /// The password may be told without TLS.
    pub cleartext: bool,
}

impl Route {
    /// None for a value that says nothing usable: no relay, no port after a colon, port 0 or over 65535, words that are
    /// no login.
    pub fn parse(value: &[u8]) -> Option<Route> {
        let mut words: Vec<&[u8]> =
            value.split(|b| matches!(b, b' ' | b'\t')).filter(|w| !w.is_empty()).collect();
        let cleartext = words.len() > 1 && words.last() == Some(&b"cleartext".as_slice());
        if cleartext {
            words.pop();
        }
        let (address, login) = match words.as_slice() {
            [address] => (*address, Login::None),
            [address, [b'@', name @ ..]] if !name.is_empty() => (*address, Login::Named(name.to_vec())),
            [address, name, password] => {
                (*address, Login::Given { name: name.to_vec(), password: Secret(password.to_vec()) })
            }
            _ => return None,
        };
        let (relay, port) = Route::address(address)?;
        Some(Route { relay, port, login, cleartext })
    }

    fn address(value: &[u8]) -> Option<(Relay, u16)> {
        if let Some(ip) = text(value).and_then(|v| v.parse::<Ipv6Addr>().ok()) {
            return Some((Relay::Ip(IpAddr::V6(ip)), SMTP_PORT));
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
        Some((relay, port))
    }

    /// The name of the relay, or its address in words.
    pub fn name(&self) -> Vec<u8> {
        match &self.relay {
            Relay::Ip(ip) => ip.to_string().into_bytes(),
            Relay::Name(name) => name.strip_suffix(b".").unwrap_or(name).to_vec(),
        }
    }
}

/// The value that decides: smtproutes for this host or a suffix of it, else senderroutes for the sender, else
/// smtproutes for everything. None when all is as the DNS says.
pub fn choose<'a>(routes: &'a Map, by_sender: &'a Map, host: &[u8], sender: &[u8]) -> Option<&'a [u8]> {
    let mut of_host = std::iter::once(host).chain(dot_suffixes(host)).filter(|key| !key.is_empty());
    let value = of_host
        .find_map(|key| routes.get(key))
        .or_else(|| of_sender(by_sender, sender))
        .or_else(|| routes.get(b""))?;
    Some(value).filter(|value| !value.is_empty())
}

/// Of the whole address, of its domain with `@`, of the domain's suffixes, of the empty key. A bounce has no sender.
fn of_sender<'a>(routes: &'a Map, sender: &[u8]) -> Option<&'a [u8]> {
    let at = memchr::memrchr(b'@', sender)?;
    let domain = sender.get(at..).unwrap_or_default();
    std::iter::once(sender)
        .chain(std::iter::once(domain))
        .chain(dot_suffixes(domain))
        .chain(std::iter::once(b"".as_slice()))
        .find_map(|key| routes.get(key))
}

/// The login of this name in control/smtpauth: a line `NAME:user password`, the password to the end of the line.
pub fn credentials(logins: &Map, name: &[u8]) -> Option<(Vec<u8>, Secret)> {
    let value = logins.get(name)?;
    let at = value.iter().position(|b| matches!(b, b' ' | b'\t'))?;
    let (user, password) = (value.get(..at)?, value.get(at + 1..)?);
    (!user.is_empty() && !password.is_empty()).then(|| (user.to_vec(), Secret(password.to_vec())))
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
        let none = Map::default();
        let find = |routes: &Map, host: &[u8]| choose(routes, &none, host, b"s@x.test").map(<[u8]>::to_vec);
        let routes = map(b"a.b.c:whole\n.b.c:long\n.c:short\n:rest\nd.c:\n");
        assert_eq!(find(&routes, b"A.B.C"), Some(b"whole".to_vec()));
        assert_eq!(find(&routes, b"x.b.c"), Some(b"long".to_vec()));
        assert_eq!(find(&routes, b"b.c"), Some(b"short".to_vec()));
        assert_eq!(find(&routes, b"c"), Some(b"rest".to_vec()));
        assert_eq!(find(&routes, b"d.c"), None, "an empty value is an exception");
        assert_eq!(find(&map(b".2.3.4]:x\n"), b"[1.2.3.4]"), Some(b"x".to_vec()));
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
    fn a_login_stands_behind_the_relay() {
        let of = |value: &[u8]| Route::parse(value).map(|r| (r.login, r.cleartext, r.port));
        let given = |name: &[u8], password: &[u8]| Login::Given {
            name: name.to_vec(),
            password: Secret(password.to_vec()),
        };
        assert_eq!(of(b"mx:587 joe secret"), Some((given(b"joe", b"secret"), false, 587)));
        assert_eq!(of(b"mx  joe\tsecret cleartext"), Some((given(b"joe", b"secret"), true, 25)));
        assert_eq!(of(b"mx:587 @isp"), Some((Login::Named(b"isp".to_vec()), false, 587)));
        assert_eq!(of(b"mx:587 @isp cleartext"), Some((Login::Named(b"isp".to_vec()), true, 587)));
        assert_eq!(of(b"mx cleartext"), Some((Login::None, true, 25)));
        for bad in [b"mx joe".as_slice(), b"mx @", b"mx joe se cret", b"mx joe se cret x", b" "] {
            assert_eq!(of(bad), None, "{:?}", String::from_utf8_lossy(bad));
        }
        let logins = Map::of(&entries(b"isp:joe@isp.test se:cret with spaces\nbad:joe\nworse: x\n"));
        assert_eq!(
            credentials(&logins, b"ISP"),
            Some((b"joe@isp.test".to_vec(), Secret(b"se:cret with spaces".to_vec())))
        );
        for none in [b"bad".as_slice(), b"worse", b"other"] {
            assert_eq!(credentials(&logins, none), None);
        }
    }

    #[test]
    fn the_host_comes_before_the_sender_and_the_sender_before_the_rest() {
        let routes = map(b"in.test:inside\n.sub.test:below\nfree.test:\n:smart\n");
        let senders = map(b"joe@a.test:joes\n@a.test:as\n.b.test:bs\nfree@c.test:\n");
        let of = |host: &[u8], sender: &[u8]| choose(&routes, &senders, host, sender).map(<[u8]>::to_vec);
        let is = |value: &[u8]| Some(value.to_vec());
        assert_eq!(of(b"in.test", b"joe@a.test"), is(b"inside"));
        assert_eq!(of(b"x.sub.test", b"joe@a.test"), is(b"below"));
        assert_eq!(of(b"free.test", b"joe@a.test"), None);
        assert_eq!(of(b"out.test", b"Joe@A.test"), is(b"joes"));
        assert_eq!(of(b"out.test", b"ann@a.test"), is(b"as"));
        assert_eq!(of(b"out.test", b"ann@x.b.test"), is(b"bs"));
        assert_eq!(of(b"out.test", b"free@c.test"), None, "an empty value is an exception");
        assert_eq!(of(b"out.test", b"other@d.test"), is(b"smart"));
        assert_eq!(of(b"out.test", b""), is(b"smart"));
        assert_eq!(choose(&map(b""), &map(b":all\n"), b"out.test", b"x@y.test"), Some(b"all".as_slice()));
        assert_eq!(choose(&map(b""), &map(b":all\n"), b"out.test", b""), None, "a bounce");
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
