//! ucspi - what the UCSPI-TCP programs share: fields of log lines, ident, service names
#![forbid(unsafe_code)]

use crate::decimal;
use std::net::IpAddr;

/// A field of a log line longer than this is cut.
const FIELD_MAX: usize = 100;

/// A field of tcpserver's `ok` and `deny` lines: what could end the field or the line, and what no
/// terminal should be sent, becomes `?`; behind 100 bytes comes `...`.
pub fn log_field(bytes: &[u8]) -> Vec<u8> {
    let safe = |b: &u8| if matches!(b, 33..=126) && !b"%:".contains(b) { *b } else { b'?' };
    let mut field: Vec<u8> = bytes.iter().take(FIELD_MAX).map(safe).collect();
    if bytes.len() > FIELD_MAX {
        field.extend_from_slice(b"...");
    }
    field
}

/// An address as a field of such a line: IPv6 in brackets, which its colons cannot leave.
pub fn log_address(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.to_string().into_bytes(),
        IpAddr::V6(ip) => format!("[{ip}]").into_bytes(),
    }
}

/// Longest ident reply that is read; honest ones have at most 512 bytes of user id (rfc1413:6).
pub const IDENT_REPLY_MAX: usize = 1000;

/// What to ask the ident server of the peer (rfc1413:5): who owns the connection from its port to ours.
pub fn ident_query(remote_port: u16, local_port: u16) -> Vec<u8> {
    format!("{remote_port} , {local_port}\r\n").into_bytes()
}

/// The user id of `PORTS : USERID : SYSTEM : ID`; None for an error or anything else. Only a NUL ends the
/// id, beside CR LF: it is what the peer says, in whatever bytes.
pub fn ident_reply(line: &[u8]) -> Option<Vec<u8>> {
    let mut parts = line.splitn(4, |b| *b == b':');
    let (_ports, kind, _system, id) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if !kind.trim_ascii().eq_ignore_ascii_case(b"USERID") {
        return None;
    }
    let start = id.iter().position(|b| !matches!(b, b' ' | b'\t'))?;
    let id = id.get(start..)?.split(|b| matches!(b, 0 | b'\r' | b'\n')).next()?;
    (!id.is_empty()).then(|| id.to_vec())
}

/// The number of a TCP port: digits, or a name that `services` (the text of /etc/services) knows.
pub fn port(name: &[u8], services: &[u8]) -> Option<u16> {
    if name.first().is_some_and(u8::is_ascii_digit) {
        return decimal::strict(name).and_then(|n| u16::try_from(n).ok());
    }
    services.split(|b| *b == b'\n').find_map(|line| {
        let line = line.split(|b| *b == b'#').next()?;
        let mut words = line.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
        let (first, number) = (words.next()?, words.next()?.strip_suffix(b"/tcp")?);
        if first != name && !words.any(|alias| alias == name) {
            return None;
        }
        decimal::strict(number).and_then(|n| u16::try_from(n).ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_fields_are_safe_and_short() {
        assert_eq!(log_field(b"a.b\x1b% :\xffc"), b"a.b?????c");
        assert_eq!(log_field(&[b'x'; 100]), [b'x'; 100]);
        assert_eq!(log_field(&[b'x'; 101]), [b"x".repeat(100), b"...".to_vec()].concat());
        assert_eq!(log_address("1.2.3.4".parse().unwrap()), b"1.2.3.4");
        assert_eq!(log_address("2001:db8:0::1".parse().unwrap()), b"[2001:db8::1]");
    }

    #[test]
    fn an_ident_reply_gives_the_user_id_and_nothing_else() {
        assert_eq!(ident_reply(b"6193, 23 : USERID : UNIX : stjohns\r\n"), Some(b"stjohns".to_vec()));
        assert_eq!(ident_reply(b"1,2:userid:OTHER:a:b c \xff"), Some(b"a:b c \xff".to_vec()));
        assert_eq!(ident_reply(b"6193, 23 : ERROR : NO-USER\r\n"), None);
        assert_eq!(ident_reply(b"6193, 23 : ERROR : NO-USER : x\r\n"), None);
        for bad in
            [b"".as_slice(), b":::", b"1,2:USERID:UNIX:", b"1,2:USERID:UNIX: \r\n", b"1,2:USERID:UNIX:\0x"]
        {
            assert_eq!(ident_reply(bad), None);
        }
    }

    #[test]
    fn ports_are_numbers_or_names_of_tcp_services() {
        let services = b"# x\nsmtp\t\t25/tcp\t\tmail # e-mail\ndomain 53/udp\ntalk 517/udp\npop3 110/tcp pop-3\nbad x/tcp\n";
        assert_eq!(port(b"smtp", services), Some(25));
        assert_eq!(port(b"mail", services), Some(25));
        assert_eq!(port(b"pop-3", services), Some(110));
        assert_eq!(port(b"domain", services), None);
        assert_eq!(port(b"e-mail", services), None);
        assert_eq!(port(b"bad", services), None);
        assert_eq!(port(b"2525", services), Some(2525));
        assert_eq!(port(b"0", services), Some(0));
        assert_eq!(port(b"65536", services), None);
        assert_eq!(port(b"25x", services), None);
        assert_eq!(port(b"", services), None);
    }
}
