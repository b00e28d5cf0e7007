//! Requests of qmail-send to a spawner: any bytes, cut anywhere; and reports made of any output.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::spawn::{LIMIT, report, request};
use qmail::sys::process::End;

fuzz_target!(|bytes: &[u8]| {
    // The same requests whether they come at once or byte by byte.
    let whole = request::Parser::default().feed(bytes);
    let mut parser = request::Parser::default();
    let pieces: Vec<_> = bytes.iter().flat_map(|b| parser.feed(&[*b])).collect();
    assert_eq!(whole, pieces);
    for (request, next) in whole.iter().zip(whole.iter().skip(1)) {
        // Who travels together has one host.
        if next.is_mate_of(request) {
            assert!(request.is_mate_of(next) && request.path == next.path && request.sender == next.sender);
            assert!(next.local_and_domain().1.eq_ignore_ascii_case(request.local_and_domain().1));
        }
    }
    for request in &whole {
        let _ = request.check(LIMIT.into(), |slot| slot.number() == 7);
        let (local, domain) = request.local_and_domain();
        assert!(local.len() + domain.len() <= request.recipient.len());
        if !request.cut {
            assert_eq!(request::Parser::default().feed(&request.encode()), [request.clone()]);
        }
    }
    // A report is one letter of three, and its end is where its first NUL is.
    for code in [0, 100, 111] {
        let local = report::of_local(End::Exit(code), bytes);
        assert!(matches!(local.first(), Some(b'K' | b'Z' | b'D')) && !local.contains(&0));
        for count in [1, 3] {
            let remote = report::of_remote(End::Exit(code), bytes, count);
            assert_eq!(remote.len(), count);
            assert!(remote.iter().all(|r| matches!(r.first(), Some(b'K' | b'Z' | b'D'))));
            // Of several nobody succeeds without a whole report of its own that says so, and one on the message.
            for (at, report) in remote.iter().enumerate().filter(|(_, r)| count > 1 && r.starts_with(b"K")) {
                let said: Vec<_> = bytes.split(|b| *b == 0).collect();
                assert!(
                    said[at].starts_with(b"r") && said[at..].iter().any(|r| r.starts_with(b"K")),
                    "{report:?}"
                );
            }
        }
    }
});
