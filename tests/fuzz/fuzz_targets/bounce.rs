//! Bounces about any sender, recipient and report: the header is the one we write, the paragraphs stay
//! paragraphs, and a quoted address is read as the address it was.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::address::{self, Completion};
use qmail::date;
use qmail::queue::bounce::{Kind, Names, paragraph};
use qmail::quote;
use qmail::requiretls;

fuzz_target!(|input: (u64, &[u8], &[u8])| {
    let (now, address, report) = input;
    let text = paragraph(address, report);
    let inside = text.strip_suffix(b"\n\n").expect("an empty line at the end");
    assert!(text.starts_with(b"<") && !inside.windows(2).any(|w| w == b"\n\n") && !inside.ends_with(b"\n"));
    let length = address.len().min(inside.len() - 1);
    assert!(!inside[..=length].contains(&b'\n'));

    let names = Names {
        bouncefrom: b"MAILER-DAEMON".to_vec(),
        bouncehost: report.to_vec(),
        doublebounceto: b"postmaster".to_vec(),
        doublebouncehost: address.to_vec(),
    };
    for sender in [address, b"", b"#@[]"] {
        let (Some(letter), Some(strict)) =
            (names.letter(sender, now, false), names.letter(sender, now, true))
        else {
            assert_eq!(Kind::of(sender), Kind::Triple);
            continue;
        };
        assert_eq!(strict.opening, [requiretls::FIELD, letter.opening.as_slice()].concat());
        assert_eq!(strict.envelope, letter.envelope);
        assert_eq!(letter.envelope.recipients.len(), 1);
        let mut lines = letter.opening.split(|b| *b == b'\n');
        for start in [b"Date: ".as_slice(), b"From: ", b"To: ", b"Subject: failure notice", b"", b"Hi. "] {
            assert!(lines.next().is_some_and(|line| line.starts_with(start)));
        }
        assert!(letter.opening.ends_with(b"\n\n"));
        for text in [&letter.break_line, &strict.break_line] {
            let mut lines = text.split(|b| *b == b'\n');
            for start in [b"--- Below this line is ".as_slice(), b"", b"Return-Path: <", b""] {
                assert!(lines.next().is_some_and(|line| line.starts_with(start)));
            }
            assert_eq!(lines.next(), None);
        }
    }

    // Any local part that a header can carry comes back.
    let local: Vec<u8> = address.iter().copied().filter(|b| !matches!(b, 0 | b'\n')).collect();
    let whole = [local.as_slice(), b"@host.example"].concat();
    let quoted = quote::address(&whole);
    let list = address::parse(&quoted).expect("a quoted address is one");
    let read: Vec<_> = list.addresses(&Completion::default()).map(|a| a.envelope()).collect();
    assert_eq!(read, [whole]);

    for text in [date::rfc822(now), date::gmt(now), date::mbox(now), date::stamp(now)] {
        assert!(text.len() >= 14 && text.bytes().all(|b| matches!(b, 32..=126)));
    }
});
