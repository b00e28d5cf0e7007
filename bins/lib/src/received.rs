//! received - the Received line that a network daemon puts on top of a message
//!
//! `Received: from HOST (HELO X) (INFO@IP)` and, folded, `by LOCAL with PROTO; DATE` (RFC 5321 section
//! 4.4). Scanners of loops, logs and bounces read this line: its bytes are a contract.
#![forbid(unsafe_code)]

use crate::{date, environ};

/// Who is at the other end, as the UCSPI environment tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// TCPREMOTEHOST, else `unknown`.
    pub host: Vec<u8>,
    /// TCPREMOTEIP, else `unknown`.
    pub ip: Vec<u8>,
    /// TCPREMOTEINFO, what an ident server said.
    pub info: Option<Vec<u8>>,
    /// TCPLOCALHOST, else TCPLOCALIP, else `unknown`.
    pub local: Vec<u8>,
}

impl Peer {
    /// The peer that tcpserver put into our environment.
    pub fn from_environ() -> Peer {
        let or_unknown = |names: &[&str]| environ::first(names).unwrap_or_else(|| b"unknown".to_vec());
        Peer {
            host: or_unknown(&["TCPREMOTEHOST"]),
            ip: or_unknown(&["TCPREMOTEIP"]),
            info: environ::get("TCPREMOTEINFO"),
            local: or_unknown(&["TCPLOCALHOST", "TCPLOCALIP"]),
        }
    }

    /// The whole line, its LF included. `helo` is the name the client gave itself, where it has one: shown when it
    /// is not the peer's host name. `protocol` is SMTP, QMTP or QMQP; `seconds` is the time.
    pub fn line(&self, helo: Option<&[u8]>, protocol: &str, seconds: u64) -> Vec<u8> {
        let mut line = b"Received: from ".to_vec();
        put_safely(&mut line, &self.host);
        if let Some(helo) = helo.filter(|name| !name.eq_ignore_ascii_case(&self.host)) {
            line.extend_from_slice(b" (HELO ");
            put_safely(&mut line, helo);
            line.push(b')');
        }
        line.extend_from_slice(b" (");
        if let Some(info) = &self.info {
            put_safely(&mut line, info);
            line.push(b'@');
        }
        put_safely(&mut line, &self.ip);
        line.extend_from_slice(b")\n  by ");
        put_safely(&mut line, &self.local);
        line.extend_from_slice(format!(" with {protocol}; {}\n", date::rfc822(seconds)).as_bytes());
        line
    }
}

/// What a peer chose may contain anything: only these bytes go into a header line as they are.
fn put_safely(line: &mut Vec<u8>, text: &[u8]) {
    let safe = |b: &u8| if b.is_ascii_alphanumeric() || b".@%+/=:-[]".contains(b) { *b } else { b'?' };
    line.extend(text.iter().map(safe));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer {
            host: b"client.example".to_vec(),
            ip: b"192.0.2.7".to_vec(),
            info: None,
            local: b"mx.example".to_vec(),
        }
    }

    #[test]
    fn the_line_has_two_parts_and_the_second_is_folded() {
        let line = peer().line(None, "SMTP", 0);
        assert_eq!(
            line,
            b"Received: from client.example (192.0.2.7)\n  by mx.example with SMTP; 1 Jan 1970 00:00:00 -0000\n"
        );
    }

    #[test]
    fn helo_is_shown_only_when_it_is_not_the_host_name() {
        let with = |helo: &[u8]| String::from_utf8(peer().line(Some(helo), "SMTP", 0)).unwrap();
        assert!(with(b"other").starts_with("Received: from client.example (HELO other) (192.0.2.7)\n"));
        assert!(with(b"CLIENT.Example").starts_with("Received: from client.example (192.0.2.7)\n"));
        assert!(with(b"").contains("(HELO )"));
    }

    #[test]
    fn ident_information_stands_before_the_address() {
        let peer = Peer { info: Some(b"joe".to_vec()), ..peer() };
        assert!(peer.line(None, "QMTP", 0).starts_with(b"Received: from client.example (joe@192.0.2.7)\n"));
    }

    #[test]
    fn strange_bytes_become_question_marks() {
        let peer = Peer { info: Some(b"a\nb".to_vec()), ..peer() };
        let line = peer.line(Some(b"x_y (z)\r\n\xff"), "SMTP", 0);
        assert!(line.starts_with(b"Received: from client.example (HELO x?y??z????) (a?b@192.0.2.7)\n  by"));
    }
}
