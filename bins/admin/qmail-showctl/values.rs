//! values - what is wrong with a value of a control file; no reading, no writing
//!
//! Each function gives what is wrong in a few words, or None. Stricter than the programs that read the
//! values: they take what they can, a person wants to know what was meant.

use qmail::decimal;
use std::net::{IpAddr, Ipv6Addr};

/// The longest name that the DNS can hold (rfc1035:2.3.4), without the dot at its end.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// A misspelt name has so many letters wrong, missing or too many, at most.
const SLIPS_MAX: usize = 2;

/// A name of a host or domain, or an address in brackets.
pub fn host(name: &[u8]) -> Option<&'static str> {
    if name.is_empty() {
        return Some("is empty");
    }
    if let Some(rest) = name.strip_prefix(b"[") {
        let inside = rest.strip_suffix(b"]").unwrap_or_default();
        return if ip(inside) { None } else { Some("is no address in brackets") };
    }
    if name.iter().any(|b| !b.is_ascii()) {
        return Some("has letters that are not ASCII: its xn-- form is meant");
    }
    if name.contains(&b'@') {
        return Some("is an address, where a domain is meant");
    }
    if name.iter().any(|b| !b.is_ascii_alphanumeric() && !b"-_.".contains(b)) {
        return Some("has a character that no domain has");
    }
    let mut labels = name.split(|b| *b == b'.');
    if name.len() > NAME_MAX || labels.clone().any(|label| label.len() > LABEL_MAX) {
        return Some("is longer than a domain can be");
    }
    if labels.clone().any(<[u8]>::is_empty) {
        return Some("has a dot at its beginning or end, or two together");
    }
    if labels.any(|label| label.starts_with(b"-") || label.ends_with(b"-")) {
        return Some("has a part that begins or ends with a hyphen");
    }
    None
}

/// A domain, or `.domain` for all below it.
pub fn wildcard(entry: &[u8]) -> Option<&'static str> {
    host(entry.strip_prefix(b".").unwrap_or(entry))
}

/// A domain for which wildcards mean nothing.
pub fn plain(entry: &[u8]) -> Option<&'static str> {
    if entry.starts_with(b".") {
        Some("begins with a dot, and there are no wildcards here")
    } else {
        host(entry)
    }
}

/// The part of an address before its @.
pub fn user(name: &[u8]) -> Option<&'static str> {
    if name.is_empty() {
        Some("is empty")
    } else if name.contains(&b'@') {
        Some("has an @, and the host is added behind it")
    } else {
        None
    }
}

/// A sender to refuse: an address, or `@domain`.
pub fn sender(entry: &[u8]) -> Option<&'static str> {
    if entry.contains(&b'@') { None } else { Some("has no @, and so no sender is like it") }
}

/// The key of virtualdomains: an address, a domain, `.domain`, or nothing for everything.
pub fn virtual_key(key: &[u8]) -> Option<&'static str> {
    match key.iter().rposition(|b| *b == b'@') {
        _ if key.is_empty() => None,
        Some(at) => host(key.get(at + 1..).unwrap_or_default()),
        None => wildcard(key),
    }
}

/// What stands behind the first colon of a line of smtproutes.
pub fn relay(value: &[u8]) -> Option<&'static str> {
    let mut words = value.split(|b| matches!(b, b' ' | b'\t')).filter(|word| !word.is_empty());
    let value = words.next().unwrap_or_default();
    let mut login: Vec<&[u8]> = words.collect();
    login.pop_if(|word| *word == b"cleartext");
    let is_login = match login.as_slice() {
        [] | [_, _] => true,
        [name] => name.starts_with(b"@"),
        _ => false,
    };
    if !is_login {
        return Some("has something behind its relay that is no login");
    }
    if value.is_empty() || std::str::from_utf8(value).is_ok_and(|v| v.parse::<Ipv6Addr>().is_ok()) {
        return None;
    }
    let bracket =
        if value.starts_with(b"[") { value.iter().position(|b| *b == b']').unwrap_or_default() } else { 0 };
    let colon = value.iter().skip(bracket).position(|b| *b == b':').map(|at| at + bracket);
    let (name, port) = match colon {
        Some(at) => (value.get(..at).unwrap_or_default(), value.get(at + 1..)),
        None => (value, None),
    };
    if port.is_some_and(|port| !decimal::strict(port).is_some_and(|port| (1..=65535).contains(&port))) {
        return Some("has a port that is no number from 1 to 65535");
    }
    host(name).map(|_| "names no usable relay")
}

fn ip(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    match text.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => {
            text.get(5..).is_some_and(|t| t.parse::<Ipv6Addr>().is_ok())
        }
        _ => text.parse::<IpAddr>().is_ok(),
    }
}

/// The known name that this one was probably meant to be. Copies that editors and people keep beside a
/// file (`me~`, `me.old`) are not meant for any program.
pub fn meant<'a>(name: &[u8], known: &[&'a str]) -> Option<&'a str> {
    let is_copy = |k: &&str| {
        name.strip_prefix(k.as_bytes())
            .is_some_and(|rest| rest.starts_with(b"~") || rest.starts_with(b".") || rest.starts_with(b"-"))
    };
    if name.starts_with(b".") || name.starts_with(b"#") || known.iter().any(is_copy) {
        return None;
    }
    let lower = name.to_ascii_lowercase();
    let near = known.iter().map(|k| (slips(&lower, k.as_bytes()), *k));
    let (slips, nearest) = near.min_by_key(|(slips, _)| *slips)?;
    (slips <= SLIPS_MAX && slips * 2 < nearest.len()).then_some(nearest)
}

/// Letters to change, put in or leave out to make one of the other.
fn slips(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (y, above) in b.iter().zip(row.windows(2)) {
            let &[diagonal, over] = above else { continue };
            let left = next.last().copied().unwrap_or_default();
            next.push((diagonal + usize::from(x != y)).min(over + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts() {
        for good in [
            "a",
            "mail.example.org",
            "1.example",
            "_dmarc.x",
            "xn--bcher-kva.example",
            "[127.0.0.1]",
            "[IPv6:::1]",
            "[::1]",
        ] {
            assert_eq!(host(good.as_bytes()), None, "{good}");
        }
        let long = "x".repeat(64);
        for bad in [
            "",
            "a b",
            "a..b",
            ".a",
            "a.",
            "-a.b",
            "a-.b",
            "joe@a.b",
            "*.a",
            "a:b",
            "[1.2.3]",
            "[1.2.3.4",
            "b\u{fc}cher",
            &long,
        ] {
            assert!(host(bad.as_bytes()).is_some(), "{bad}");
        }
        assert_eq!(wildcard(b".a.b"), None);
        assert!(plain(b".a.b").is_some());
    }

    #[test]
    fn relays() {
        for good in [
            "",
            "relay",
            "relay:26",
            "1.2.3.4:25",
            "[1.2.3.4]:25",
            "[2001:db8::1]",
            "[IPv6:2001:db8::1]:587",
            "2001:db8::1",
            "relay:587 user password",
            "relay:587 @account cleartext",
        ] {
            assert_eq!(relay(good.as_bytes()), None, "{good}");
        }
        for bad in
            [":25", "relay:", "relay:x", "relay:25x", "relay:0", "relay:65536", "[1.2.3.4:25", "a b", "[x]"]
        {
            assert!(relay(bad.as_bytes()).is_some(), "{bad}");
        }
    }

    #[test]
    fn slips_of_the_pen_are_known_and_copies_are_left_alone() {
        let known = ["me", "locals", "rcpthosts", "defaultdomain", "concurrencylocal", "concurrencyremote"];
        assert_eq!(meant(b"concurencylocal", &known), Some("concurrencylocal"));
        assert_eq!(meant(b"rcpthost", &known), Some("rcpthosts"));
        assert_eq!(meant(b"Locals", &known), Some("locals"));
        for other in ["rcpthosts~", "locals.old", ".me.swp", "#me#", "defaultdelivery", "signatures", "m"] {
            assert_eq!(meant(other.as_bytes(), &known), None, "{other}");
        }
        assert_eq!(slips(b"kitten", b"sitting"), 3);
        assert_eq!(slips(b"", b"abc"), 3);
    }
}
