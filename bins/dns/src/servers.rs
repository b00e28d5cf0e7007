//! servers - whom to ask
#![forbid(unsafe_code)]

use qmail::{environ, fd};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// More than this many make a question take longer, not an answer likelier.
pub const SERVERS_MAX: usize = 8;

/// resolv.conf is a handful of lines.
const RESOLV_CONF_MAX: usize = 64 * 1024;

const RESOLV_CONF: &str = "/etc/resolv.conf";

const PORT: u16 = 53;

/// The servers of `$DNSCACHEIP`, else of /etc/resolv.conf, else 127.0.0.1. A file that cannot be read
/// counts as missing: the question then fails temporarily, which is right. And whether the way to them is
/// protected, as resolv.conf says of its own.
pub fn find() -> (Vec<SocketAddr>, bool) {
    let named = environ::get("DNSCACHEIP").map(|text| parse_list(&text)).unwrap_or_default();
    if !named.is_empty() {
        return (named, false);
    }
    let text = fd::read_file(RESOLV_CONF, RESOLV_CONF_MAX).ok().flatten().unwrap_or_default();
    let mut list = parse_resolv_conf(&text);
    if list.is_empty() {
        list.push(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)));
    }
    (list, trusts_ad(&text))
}

/// `ip`, `ip:port`, IPv6 as `ip`, `[ip]` or `[ip]:port`, separated by spaces, tabs or commas. What is
/// neither is skipped.
pub fn parse_list(text: &[u8]) -> Vec<SocketAddr> {
    text.split(|b| b" \t\n,".contains(b))
        .filter(|w| !w.is_empty())
        .filter_map(server)
        .take(SERVERS_MAX)
        .collect()
}

/// The addresses of the `nameserver` lines.
pub fn parse_resolv_conf(text: &[u8]) -> Vec<SocketAddr> {
    text.split(|b| *b == b'\n')
        .filter_map(|line| {
            let mut words = line.split(|b| matches!(b, b' ' | b'\t' | b'\r')).filter(|w| !w.is_empty());
            if words.next() == Some(b"nameserver") { server(words.next()?) } else { None }
        })
        .take(SERVERS_MAX)
        .collect()
}

/// Whether resolv.conf says `options trust-ad`: the way to its servers is protected.
pub fn trusts_ad(text: &[u8]) -> bool {
    text.split(|b| *b == b'\n').any(|line| {
        let mut words = line.split(|b| matches!(b, b' ' | b'\t' | b'\r')).filter(|w| !w.is_empty());
        words.next() == Some(b"options") && words.any(|word| word == b"trust-ad")
    })
}

fn server(word: &[u8]) -> Option<SocketAddr> {
    let word = std::str::from_utf8(word).ok()?;
    if let Ok(address) = word.parse::<SocketAddr>() {
        return Some(address);
    }
    let bare = word.strip_prefix('[').and_then(|w| w.strip_suffix(']')).unwrap_or(word);
    match bare.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, PORT)),
        Err(_) => link_local(bare),
    }
}

/// `fe80::1%eth0`: a link-local address needs to know its link.
fn link_local(word: &str) -> Option<SocketAddr> {
    let (ip, zone) = word.split_once('%')?;
    let scope = match zone.parse::<u32>() {
        Ok(number) => number,
        Err(_) => nix::net::if_::if_nametoindex(zone).ok()?,
    };
    Some(SocketAddr::V6(SocketAddrV6::new(ip.parse::<Ipv6Addr>().ok()?, PORT, 0, scope)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(list: &[SocketAddr]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_list_has_addresses_with_and_without_ports() {
        let found = parse_list(b"127.0.0.1, 192.0.2.1:5353 ::1,[::1]:54\t[2001:db8::1] nonsense 1.2.3 x:53");
        assert_eq!(
            text(&found),
            ["127.0.0.1:53", "192.0.2.1:5353", "[::1]:53", "[::1]:54", "[2001:db8::1]:53"]
        );
        assert_eq!(parse_list(b""), []);
    }

    #[test]
    fn no_more_servers_than_the_limit_are_taken() {
        assert_eq!(parse_list(&b"127.0.0.1 ".repeat(100)).len(), SERVERS_MAX);
    }

    #[test]
    fn resolv_conf_vouches_for_its_servers_or_not() {
        assert!(trusts_ad(b"nameserver 192.0.2.1\noptions edns0 trust-ad\n"));
        assert!(!trusts_ad(b"nameserver 192.0.2.1\noptions edns0\n# options trust-ad\nsearch trust-ad\n"));
    }

    #[test]
    fn resolv_conf_gives_its_nameservers() {
        let conf = b"# nameserver 9.9.9.9\nsearch example.org\nnameserver 192.0.2.1\n  nameserver\t2001:db8::1 # x\n\
            nameserver fe80::1%3\nnameserver\noptions edns0\nnameserver nowhere\r\nnameserver 192.0.2.2\r\n";
        assert_eq!(
            text(&parse_resolv_conf(conf)),
            ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%3]:53", "192.0.2.2:53"]
        );
    }
}
