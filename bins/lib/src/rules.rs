//! rules - who may connect, and with which variables: tcprules' text, its cdb, and the lookup order
//!
//! Format: tcprules(1). IPv4 addresses and their prefixes are keys as they are written. IPv6 is an
//! addition: written in brackets, because the first colon ends an address, and kept as keys in one
//! canonical form (RFC 5952), `[2001:db8::1]` or `[2001:db8::/32]`, prefixes in steps of four bits.
#![forbid(unsafe_code)]

use crate::{cdb, decimal};
use std::net::Ipv6Addr;

/// The step between two prefix lengths that are looked up; others are expanded to up to eight records.
const STEP: u32 = 4;

/// Why there is no database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bad {
    /// This line cannot be parsed.
    Line(Vec<u8>),
    TooBig,
}

/// The bytes of the cdb for these rules.
pub fn compile(text: &[u8]) -> Result<Vec<u8>, Bad> {
    let mut writer = cdb::Writer::new();
    for line in text.split(|b| *b == b'\n') {
        let end = line.iter().rposition(|b| !matches!(b, b' ' | b'\t')).map_or(0, |at| at + 1);
        let line = line.get(..end).unwrap_or_default();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let (keys, data) = parse(line).ok_or_else(|| Bad::Line(line.to_vec()))?;
        for key in keys {
            writer.add(&key, &data).map_err(|_| Bad::TooBig)?;
        }
    }
    writer.finish().map_err(|_| Bad::TooBig)
}

/// `ADDRESS:INSTRUCTIONS`: the keys it stands for and their data.
fn parse(line: &[u8]) -> Option<(Vec<Vec<u8>>, Vec<u8>)> {
    if line.contains(&0) {
        return None;
    }
    let (keys, rest) = match bracketed(line) {
        Some(found) => found,
        None => {
            let (address, rest) = line.split_at(memchr::memchr(b':', line)?);
            (expand(address)?, rest)
        }
    };
    Some((keys, instructions(rest.strip_prefix(b":")?)?))
}

/// `[IPV6]`, `[IPV6/BITS]` or `INFO@[IPV6]`: the keys, and the line from the colon on. None when the
/// line is not of this kind; then its first colon ends the address as ever.
fn bracketed(line: &[u8]) -> Option<(Vec<Vec<u8>>, &[u8])> {
    let open = memchr::memchr(b'[', line)?;
    let (info, rest) = line.split_at(open);
    let inside = rest.get(1..memchr::memchr(b']', rest)?)?;
    let after = rest.get(inside.len() + 2..)?;
    if !after.starts_with(b":") || info.contains(&b':') {
        return None;
    }
    let inside = std::str::from_utf8(inside).ok()?;
    if !info.is_empty() {
        let address: Ipv6Addr = inside.parse().ok().filter(|a| never_mapped(*a, 128))?;
        return info.ends_with(b"@").then(|| (vec![[info, v6_key(address, 128).as_slice()].concat()], after));
    }
    let (address, bits) = match inside.split_once('/') {
        Some((address, bits)) => (address, u32::try_from(decimal::strict(bits.as_bytes())?).ok()?),
        None => (inside, 128),
    };
    let address: Ipv6Addr = address.parse().ok()?;
    if bits > 128 || masked(address, bits) != address || !never_mapped(address, bits) {
        return None;
    }
    Some((v6_keys(address, bits), after))
}

/// IPv4 peers always go by their IPv4 address: a rule for `::ffff:1.2.3.4` would never be found.
fn never_mapped(address: Ipv6Addr, bits: u32) -> bool {
    bits < 96 || address.to_ipv4_mapped().is_none()
}

fn masked(address: Ipv6Addr, bits: u32) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    Ipv6Addr::from(u128::from(address) & mask)
}

/// The key of an address (128 bits) or of a prefix.
fn v6_key(address: Ipv6Addr, bits: u32) -> Vec<u8> {
    match bits {
        128 => format!("[{address}]"),
        _ => format!("[{}/{bits}]", masked(address, bits)),
    }
    .into_bytes()
}

/// A prefix whose length is not a step becomes all those of the next step inside it.
fn v6_keys(address: Ipv6Addr, bits: u32) -> Vec<Vec<u8>> {
    let step = bits.next_multiple_of(STEP);
    let one = 1u128.checked_shl(128 - step).unwrap_or(0);
    (0..1u128 << (step - bits)).map(|i| v6_key(Ipv6Addr::from(u128::from(address) + i * one), step)).collect()
}

/// An address, or all addresses of a range: `1.2.3.37-53`, `10.2-3.`. None when what surrounds the hyphen
/// is no number. A range that counts down is empty.
fn expand(address: &[u8]) -> Option<Vec<Vec<u8>>> {
    let hyphen = memchr::memchr(b'-', address).filter(|_| memchr::memchr2(b'=', b'@', address).is_none());
    let Some(hyphen) = hyphen else { return Some(vec![address.to_vec()]) };
    let (left, right) = (address.get(..hyphen)?, address.get(hyphen + 1..)?);
    let (before, low) = left.split_at(memchr::memrchr(b'.', left).map_or(0, |at| at + 1));
    let (high, after) = right.split_at(memchr::memchr(b'.', right).unwrap_or(right.len()));
    let (low, high) = (decimal::strict(low)?, decimal::strict(high)?.min(255));
    Some((low..=high).map(|n| [before, &decimal::text(n), after].concat()).collect())
}

/// `deny` or `allow`, then any number of `,VAR=QvalueQ`, Q being any byte.
fn instructions(text: &[u8]) -> Option<Vec<u8>> {
    let (mut data, mut rest) = match (text.strip_prefix(b"deny"), text.strip_prefix(b"allow")) {
        (Some(rest), _) => (b"D\0".to_vec(), rest),
        (None, Some(rest)) => (Vec::new(), rest),
        (None, None) => return None,
    };
    while !rest.is_empty() {
        let setting = rest.strip_prefix(b",")?;
        let (name, quoted) = setting.split_at(memchr::memchr(b'=', setting)? + 1);
        let (quote, value) = quoted.split_first()?;
        let (value, after) = value.split_at(memchr::memchr(*quote, value)?);
        data.push(b'+');
        data.extend_from_slice(name);
        data.extend_from_slice(value);
        data.push(0);
        rest = after.get(1..)?;
    }
    Some(data)
}

/// What is known of a peer. IPv4 in dotted decimal, IPv6 in any text form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer<'a> {
    pub ip: &'a [u8],
    pub host: Option<&'a [u8]>,
    pub info: Option<&'a [u8]>,
}

/// One thing that a record says, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Deny,
    Set { name: Vec<u8>, value: Vec<u8> },
}

/// The record that decides about a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The address as it stands in the database.
    pub address: Vec<u8>,
    pub items: Vec<Item>,
}

impl Rule {
    pub fn denies(&self) -> bool {
        self.items.contains(&Item::Deny)
    }
}

/// Finds the rule for a peer: the first record of `addresses` wins entirely. None: nothing is said, allow.
pub fn find<S: cdb::Source>(cdb: &cdb::Reader<S>, peer: &Peer) -> Result<Option<Rule>, cdb::Error> {
    for address in addresses(peer) {
        if let Some(data) = cdb.get(&address)? {
            let items = items(&data).ok_or(cdb::Error::Corrupt)?;
            return Ok(Some(Rule { address, items }));
        }
    }
    Ok(None)
}

/// The addresses that are looked up for a peer, in their order.
fn addresses(peer: &Peer) -> Vec<Vec<u8>> {
    let v6 = std::str::from_utf8(peer.ip).ok().and_then(|ip| ip.parse::<Ipv6Addr>().ok());
    let whole = v6.map_or_else(|| peer.ip.to_vec(), |ip| v6_key(ip, 128));
    let named = |name: &[u8]| [b"=", name].concat();
    let host = peer.host.map(named);
    let mut list = Vec::new();
    if let Some(info) = peer.info {
        list.push([info, b"@", &whole].concat());
        list.extend(host.as_ref().map(|host| [info, b"@", host].concat()));
    }
    list.push(whole);
    list.extend(host);
    match v6 {
        Some(ip) => list.extend((0..128).step_by(STEP as usize).rev().map(|bits| v6_key(ip, bits))),
        None => {
            let dots = memchr::memchr_iter(b'.', peer.ip).rev();
            list.extend(dots.filter_map(|at| peer.ip.get(..=at)).map(<[u8]>::to_vec));
        }
    }
    if let Some(host) = peer.host {
        list.extend(crate::control::dot_suffixes(host).map(named));
        list.push(named(b""));
    }
    list.push(Vec::new());
    list
}

/// Items of a record, each ended by a NUL: `D`, or `+VAR=value`. What is not understood might be a
/// restriction, so it is damage and not skipped.
fn items(data: &[u8]) -> Option<Vec<Item>> {
    if data.is_empty() {
        return Some(Vec::new());
    }
    let items = data.strip_suffix(b"\0")?.split(|b| *b == 0);
    items
        .map(|item| {
            if item == b"D" {
                return Some(Item::Deny);
            }
            let setting = item.strip_prefix(b"+")?;
            let (name, value) = setting.split_at(memchr::memchr(b'=', setting)?);
            Some(Item::Set { name: name.to_vec(), value: value.get(1..)?.to_vec() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str, ip: &str, host: Option<&str>, info: Option<&str>) -> Option<Rule> {
        let file = compile(text.as_bytes()).unwrap();
        let reader = cdb::Reader::new(file.as_slice()).unwrap();
        let peer = Peer { ip: ip.as_bytes(), host: host.map(str::as_bytes), info: info.map(str::as_bytes) };
        find(&reader, &peer).unwrap()
    }

    fn which(text: &str, ip: &str, host: Option<&str>, info: Option<&str>) -> String {
        let address = rule(text, ip, host, info).map_or(b"default".to_vec(), |r| r.address);
        String::from_utf8(address).unwrap()
    }

    fn bad(line: &str) {
        assert_eq!(compile(line.as_bytes()), Err(Bad::Line(line.as_bytes().to_vec())), "{line}");
    }

    #[test]
    fn the_first_of_the_nine_places_wins_entirely() {
        let places =
            ["me@1.2.3.4", "me@=a.b.c", "1.2.3.4", "=a.b.c", "1.2.3.", "1.2.", "1.", "=.b.c", "=.c", "=", ""];
        for first in 0..places.len() {
            let text: String = places[first..].iter().map(|place| format!("{place}:allow\n")).collect();
            assert_eq!(which(&text, "1.2.3.4", Some("a.b.c"), Some("me")), places[first]);
        }
        assert_eq!(which("9.9.9.9:deny\n", "1.2.3.4", Some("a.b.c"), Some("me")), "default");
    }

    #[test]
    fn names_count_only_when_they_are_known() {
        assert_eq!(which("=:allow\n:deny\n", "1.2.3.4", None, None), "");
        assert_eq!(which("me@1.2.3.4:allow\n", "1.2.3.4", None, None), "default");
    }

    #[test]
    fn variables_are_quoted_by_any_byte() {
        let rule = rule("1.2.3.4:allow,A=\"x,y\",B=/a=b/,C=zz\t \n", "1.2.3.4", None, None).unwrap();
        let set = |name: &[u8], value: &[u8]| Item::Set { name: name.to_vec(), value: value.to_vec() };
        assert_eq!(rule.items, [set(b"A", b"x,y"), set(b"B", b"a=b"), set(b"C", b"")]);
        assert!(!rule.denies());
    }

    #[test]
    fn a_deny_comes_first_in_its_record() {
        let rule = rule(":deny,A=\"x\"\n", "1.2.3.4", None, None).unwrap();
        assert_eq!(rule.items.first(), Some(&Item::Deny));
        assert!(rule.denies());
    }

    #[test]
    fn ranges_are_expanded_and_capped() {
        assert_eq!(
            expand(b"1.2.3.37-39").unwrap(),
            [b"1.2.3.37".to_vec(), b"1.2.3.38".to_vec(), b"1.2.3.39".to_vec()]
        );
        assert_eq!(expand(b"10.2-3.").unwrap(), [b"10.2.".to_vec(), b"10.3.".to_vec()]);
        assert_eq!(expand(b"10-11.5.").unwrap(), [b"10.5.".to_vec(), b"11.5.".to_vec()]);
        assert_eq!(expand(b"1.254-99999.").unwrap().len(), 2);
        assert_eq!(expand(b"1.5-3.").unwrap().len(), 0);
        assert_eq!(expand(b"=my-host.net").unwrap(), [b"=my-host.net".to_vec()]);
        assert_eq!(expand(b"a-b@1.2.3.4").unwrap(), [b"a-b@1.2.3.4".to_vec()]);
        assert_eq!(expand(b"1.x-3."), None);
    }

    #[test]
    fn lines_that_say_nothing_are_skipped_and_bad_ones_named() {
        assert!(compile(b"# x\n\n \t\n1.2.3.4:allow").is_ok());
        for line in [
            "nonsense",
            "1.2.3.4:perhaps",
            "1.2.3.4:allowx",
            "1.2.3.4:allow,A",
            "1.2.3.4:allow,A=",
            "1.2.3.4:allow,A=\"x",
            "1.2.3.4:allow,A=\"x\"y",
            "1-x:deny",
            "1.2.3.4:allow,A=\"\0\"",
            ":",
        ] {
            bad(line);
        }
    }

    #[test]
    fn an_ipv6_rule_is_found_however_it_was_written() {
        assert_eq!(which("[2001:DB8:0::0:1]:deny\n", "2001:db8::1", None, None), "[2001:db8::1]");
        assert_eq!(which("[2001:db8::1]:deny\n", "2001:0db8:0:0:0:0:0:1", None, None), "[2001:db8::1]");
        assert_eq!(which("me@[2001:db8::1]:deny\n", "2001:db8::1", None, Some("me")), "me@[2001:db8::1]");
        assert_eq!(which("[2001:db8::2]:deny\n", "2001:db8::1", None, None), "default");
    }

    #[test]
    fn the_longest_ipv6_prefix_wins() {
        let text = "[::/0]:allow\n[2001:db8::/32]:allow\n[2001:db8:1::/48]:deny\n:deny\n";
        assert_eq!(which(text, "2001:db8:1::5", None, None), "[2001:db8:1::/48]");
        assert_eq!(which(text, "2001:db8:2::5", None, None), "[2001:db8::/32]");
        assert_eq!(which(text, "::1", None, None), "[::/0]");
        assert_eq!(which(text, "1.2.3.4", None, None), "");
    }

    #[test]
    fn any_ipv6_prefix_length_may_be_written() {
        assert_eq!(which("[2001:db8::/29]:deny\n", "2001:dbf::1", None, None), "[2001:dbf::/32]");
        assert_eq!(which("[2001:db8::/29]:deny\n", "2001:dc0::1", None, None), "default");
        assert_eq!(which("[::/1]:deny\n", "7fff::1", None, None), "[7000::/4]");
        assert_eq!(which("[8000::/1]:deny\n", "ffff::1", None, None), "[f000::/4]");
        assert_eq!(which("[::2/127]:deny\n", "::3", None, None), "[::3]");
        assert_eq!(which("[::3/128]:deny\n", "::3", None, None), "[::3]");
    }

    #[test]
    fn an_ipv6_rule_that_could_never_match_is_refused() {
        for line in [
            "[2001:db8::1/32]:deny",
            "[::1/129]:deny",
            "[::ffff:1.2.3.4]:deny",
            "[::ffff:1.2.3.0/120]:deny",
            "[2001:db8::zz]:deny",
            "[::1]deny",
            "x@[::/32]:deny",
            "[::1/]:deny",
        ] {
            bad(line);
        }
    }

    #[test]
    fn a_record_that_is_not_understood_is_damage() {
        for data in [b"X\0".as_slice(), b"D", b"+A\0", b"\0", b"+A=x"] {
            let mut writer = cdb::Writer::new();
            writer.add(b"", data).unwrap();
            let file = writer.finish().unwrap();
            let reader = cdb::Reader::new(file.as_slice()).unwrap();
            let peer = Peer { ip: b"1.2.3.4", host: None, info: None };
            assert_eq!(find(&reader, &peer), Err(cdb::Error::Corrupt));
        }
    }
}
