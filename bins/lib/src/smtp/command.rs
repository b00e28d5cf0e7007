//! smtp::command - what a client's command line says
//!
//! A line is a verb, spaces, an argument (RFC 5321 section 4.1.1). Addresses are read as qmail always
//! read them: liberally, quotes and backslashes only protect the end of the address.
#![forbid(unsafe_code)]

use crate::decimal;
use memchr::memchr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest command line in bytes, without its line end. RFC 5321 asks for 512 and its extensions for a
/// few hundred more; nothing that is longer can be a command.
pub const LINE_MAX: usize = 4096;

/// Longest address in bytes that is taken from a client; qmail-queue would take 1002.
pub const ADDRESS_MAX: usize = 899;

/// What the client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Helo,
    Ehlo,
    Mail,
    Rcpt,
    Data,
    Rset,
    Noop,
    Vrfy,
    Help,
    Quit,
    Auth,
    Starttls,
    /// A word that means nothing to us.
    Unknown,
}

const VERBS: [(&[u8], Verb); 12] = [
    (b"helo", Verb::Helo),
    (b"ehlo", Verb::Ehlo),
    (b"mail", Verb::Mail),
    (b"rcpt", Verb::Rcpt),
    (b"data", Verb::Data),
    (b"rset", Verb::Rset),
    (b"noop", Verb::Noop),
    (b"vrfy", Verb::Vrfy),
    (b"help", Verb::Help),
    (b"quit", Verb::Quit),
    (b"auth", Verb::Auth),
    (b"starttls", Verb::Starttls),
];

/// A command line taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command<'a> {
    pub verb: Verb,
    /// What follows the spaces after the verb, trailing blanks included.
    pub argument: &'a [u8],
}

impl<'a> Command<'a> {
    /// `line` is without its LF; one CR before that is removed here.
    pub fn parse(line: &'a [u8]) -> Command<'a> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let (word, rest) = line.split_at(memchr(b' ', line).unwrap_or(line.len()));
        let verb =
            VERBS.iter().find(|(name, _)| word.eq_ignore_ascii_case(name)).map_or(Verb::Unknown, |(_, v)| *v);
        Command { verb, argument: without_leading_spaces(rest) }
    }
}

fn without_leading_spaces(text: &[u8]) -> &[u8] {
    let spaces = text.iter().take_while(|b| **b == b' ').count();
    text.get(spaces..).unwrap_or_default()
}

/// The address of MAIL FROM or RCPT TO, and what stands behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path<'a> {
    /// Without brackets, source route, quotes and backslashes. Of any length: see `ADDRESS_MAX`.
    pub address: Vec<u8>,
    /// `SIZE=… BODY=…`, not yet looked at.
    pub parameters: &'a [u8],
}

/// Reads the argument of MAIL or RCPT: what stands between the first `<` and the next unquoted `>`, or
/// else behind the first `:` up to an unquoted space. A missing terminator is tolerated, and no argument at
/// all names the empty address. None when there is no address: neither `<` nor `:`, a source
/// route that leads nowhere, or a NUL or CR (they would end the address for whoever reads it next).
pub fn path(argument: &[u8]) -> Option<Path<'_>> {
    if argument.is_empty() {
        return Some(Path { address: Vec::new(), parameters: argument });
    }
    let (text, terminator) = match memchr(b'<', argument) {
        Some(at) => (argument.get(at + 1..)?, b'>'),
        None => (without_leading_spaces(argument.get(memchr(b':', argument)? + 1..)?), b' '),
    };
    let text = without_route(text, terminator)?;
    let mut address = Vec::with_capacity(text.len());
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            0 | b'\r' => return None,
            _ if escaped => {
                address.push(*byte);
                escaped = false;
            }
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            _ if *byte == terminator && !quoted => {
                return Some(Path { address, parameters: text.get(at + 1..)? });
            }
            _ => address.push(*byte),
        }
    }
    Some(Path { address, parameters: &[] })
}

/// Drops `@a,@b:` (RFC 5321 section 4.1.2: accepted and ignored).
fn without_route(text: &[u8], terminator: u8) -> Option<&[u8]> {
    if !text.starts_with(b"@") {
        return Some(text);
    }
    let end = memchr(terminator, text).unwrap_or(text.len());
    let colon = memchr(b':', text.get(..end)?)?;
    text.get(colon + 1..)
}

/// A parameter that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// The size in bytes that the client declares (RFC 1870), None when it does not. Every other parameter is
/// ignored. The number is read to the end of the word; overflow is malformed.
pub fn declared_size(parameters: &[u8]) -> Result<Option<u64>, Malformed> {
    let mut size = None;
    for word in parameters.split(|b| matches!(b, b' ' | b'\t')) {
        let (name, value) = match memchr(b'=', word) {
            Some(at) => (word.get(..at).unwrap_or_default(), word.get(at + 1..).unwrap_or_default()),
            None => (word, b"".as_slice()),
        };
        if name.eq_ignore_ascii_case(b"size") {
            size = Some(decimal::strict(value).ok_or(Malformed)?);
        }
    }
    Ok(size)
}

/// Whether REQUIRETLS is there, which has no value (rfc8689:2).
pub fn requires_tls(parameters: &[u8]) -> Result<bool, Malformed> {
    let mut required = false;
    for word in parameters.split(|b| matches!(b, b' ' | b'\t')) {
        let (name, value) = word.split_at(memchr(b'=', word).unwrap_or(word.len()));
        if name.eq_ignore_ascii_case(b"REQUIRETLS") {
            required = value.is_empty().then_some(true).ok_or(Malformed)?;
        }
    }
    Ok(required)
}

/// The IP address that a domain of the form `[192.0.2.1]` or `[IPv6:2001:db8::1]` names (RFC 5321 section
/// 4.1.3; the tag may be missing).
pub fn literal(domain: &[u8]) -> Option<IpAddr> {
    let inside = domain.strip_prefix(b"[")?.strip_suffix(b"]")?;
    let text = std::str::from_utf8(inside).ok()?;
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Some(IpAddr::V4(ip));
    }
    let text = match text.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("ipv6:") => text.get(5..)?,
        _ => text,
    };
    text.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(argument: &[u8]) -> Vec<u8> {
        path(argument).unwrap().address
    }

    #[test]
    fn a_verb_is_the_first_word_in_any_case_and_spaces_before_the_argument_do_not_count() {
        let command = Command::parse(b"mAiL   FROM:<a@b> \r");
        assert_eq!(command, Command { verb: Verb::Mail, argument: b"FROM:<a@b> " });
        assert_eq!(Command::parse(b"QUIT").verb, Verb::Quit);
        assert_eq!(Command::parse(b"").verb, Verb::Unknown);
        assert_eq!(Command::parse(b" QUIT").verb, Verb::Unknown);
        assert_eq!(Command::parse(b"QUIT\tnow").verb, Verb::Unknown);
        assert_eq!(Command::parse(b"QUIT\0").verb, Verb::Unknown);
    }

    #[test]
    fn only_one_cr_belongs_to_the_line_end() {
        assert_eq!(Command::parse(b"NOOP\r\r").verb, Verb::Unknown);
        assert_eq!(Command::parse(b"HELO x\r\r").argument, b"x\r");
    }

    #[test]
    fn an_address_stands_between_the_brackets() {
        assert_eq!(address(b"FROM:<joe@example.com>"), b"joe@example.com");
        assert_eq!(address(b"anything <joe@x> <jim@y>"), b"joe@x");
        assert_eq!(address(b"FROM:<>"), b"");
        assert_eq!(address(b"TO:<joe@x"), b"joe@x");
    }

    #[test]
    fn without_brackets_it_stands_behind_the_colon_up_to_a_space() {
        assert_eq!(address(b"FROM:  joe@x SIZE=3"), b"joe@x");
        assert_eq!(address(b"FROM:joe@x"), b"joe@x");
        assert_eq!(address(b"FROM:"), b"");
    }

    #[test]
    fn no_argument_is_the_empty_address_and_an_argument_without_address_is_none() {
        assert_eq!(address(b""), b"");
        assert_eq!(path(b"joe@x"), None);
    }

    #[test]
    fn quotes_and_backslashes_protect_the_terminator_and_vanish() {
        assert_eq!(address(b"TO:<\"a>b\"@x>"), b"a>b@x");
        assert_eq!(address(b"TO:<a\\>b@x>"), b"a>b@x");
        assert_eq!(address(b"TO:<\"a\\\"b\"@x>"), b"a\"b@x");
        assert_eq!(address(b"TO:<a\\\\@x>"), b"a\\@x");
        assert_eq!(address(b"TO:\"a b\"@x z"), b"a b@x");
        assert_eq!(address(b"TO:<a\\"), b"a");
    }

    #[test]
    fn source_routes_are_dropped() {
        assert_eq!(address(b"TO:<@a,@b:joe@x>"), b"joe@x");
        assert_eq!(address(b"TO:@a:joe@x"), b"joe@x");
        assert_eq!(path(b"TO:<@a>"), None);
        assert_eq!(path(b"TO:<@a> X=y:z"), None);
    }

    #[test]
    fn a_nul_or_cr_in_an_address_is_refused_and_behind_it_does_not_matter() {
        assert_eq!(path(b"TO:<a\0b@x>"), None);
        assert_eq!(path(b"TO:<a\\\0b@x>"), None);
        assert_eq!(path(b"TO:<a@x\r>"), None);
        assert_eq!(address(b"TO:<a@x> \0"), b"a@x");
    }

    #[test]
    fn parameters_are_what_follows() {
        let parameters = |argument| path(argument).unwrap().parameters.to_vec();
        assert_eq!(parameters(b"FROM:<a@x> BODY=8BITMIME SIZE=10"), b" BODY=8BITMIME SIZE=10");
        assert_eq!(parameters(b"FROM:a@x SIZE=10"), b"SIZE=10");
        assert_eq!(parameters(b"FROM:<a@x"), b"");
    }

    #[test]
    fn a_declared_size_is_a_whole_number_and_other_parameters_are_ignored() {
        assert_eq!(declared_size(b" BODY=8BITMIME size=10 AUTH=<> X"), Ok(Some(10)));
        assert_eq!(declared_size(b""), Ok(None));
        assert_eq!(declared_size(b" SIZES=x"), Ok(None));
        for bad in [b" SIZE".as_slice(), b" SIZE=", b" SIZE=1a", b" SIZE=-1", b" SIZE=18446744073709551616"] {
            assert_eq!(declared_size(bad), Err(Malformed));
        }
    }

    #[test]
    fn requiretls_is_a_word_without_a_value() {
        assert_eq!(requires_tls(b" SIZE=10 requiretls BODY=8BITMIME"), Ok(true));
        assert_eq!(requires_tls(b"REQUIRETLS REQUIRETLS"), Ok(true));
        for none in [b"".as_slice(), b" SIZE=10", b" XREQUIRETLS", b" X=REQUIRETLS"] {
            assert_eq!(requires_tls(none), Ok(false));
        }
        for bad in [b" REQUIRETLS=".as_slice(), b" RequireTLS=yes", b" REQUIRETLS REQUIRETLS=1"] {
            assert_eq!(requires_tls(bad), Err(Malformed));
        }
    }

    #[test]
    fn literals_name_addresses_of_both_families() {
        assert_eq!(literal(b"[192.0.2.1]"), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(literal(b"[IPv6:::1]"), Some("::1".parse().unwrap()));
        assert_eq!(literal(b"[ipv6:2001:db8::1]"), Some("2001:db8::1".parse().unwrap()));
        assert_eq!(literal(b"[::1]"), Some("::1".parse().unwrap()));
        for none in [b"192.0.2.1".as_slice(), b"[192.0.2]", b"[192.0.2.1", b"[x]", b"[]", b"", b"[\xff]"] {
            assert_eq!(literal(none), None);
        }
    }
}
