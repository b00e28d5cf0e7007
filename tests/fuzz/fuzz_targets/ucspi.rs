//! What a peer says of itself - by ident, by DNS, by HELO - in log lines and in a Received line; and any
//! text as /etc/services.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::maildir;
use qmail::received::Peer;
use qmail::ucspi::{ident_reply, log_field, port};
use std::time::Duration;

fuzz_target!(|input: (u64, &[u8], &[u8], &[u8])| {
    let (seconds, reply, host, helo) = input;
    let info = ident_reply(reply);
    if let Some(info) = &info {
        assert!(!info.is_empty() && !info.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')));
    }
    for text in [reply, host, helo] {
        let field = log_field(text);
        assert!(field.len() <= 103 && field.iter().all(|b| matches!(b, 33..=126) && *b != b':'));
    }
    let _ = port(host, reply);

    let peer = Peer { host: host.to_vec(), ip: host.to_vec(), info, local: helo.to_vec() };
    for helo in [None, Some(helo)] {
        let line = peer.line(helo, "SMTP", seconds);
        let mut lines = line.split(|b| *b == b'\n');
        assert!(lines.next().is_some_and(|l| l.starts_with(b"Received: from ")));
        assert!(lines.next().is_some_and(|l| l.starts_with(b"  by ")));
        assert_eq!((lines.next(), lines.next()), (Some(b"".as_slice()), None));
        assert!(line.iter().all(|b| matches!(b, 32..=126 | b'\n')));
    }

    // The host's name in the name of a message file: one name, in no other directory, and visible.
    let name = maildir::unique_name(Duration::from_micros(seconds), 7, 0, host);
    assert!(name.len() < 512 && name[0].is_ascii_digit());
    assert!(!name.iter().any(|b| matches!(b, 0..=b' ' | b'/' | b':')));
});
