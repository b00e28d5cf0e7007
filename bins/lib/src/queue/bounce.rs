//! bounce - the text of a bounce message (QSBMF, qsbmf(5))
//!
//! Paragraphs are separated by one empty line and hold none. A recipient paragraph starts with `<`,
//! the break before the copy of the message with `-`.
#![forbid(unsafe_code)]

use super::rewrite;
use crate::envelope::Envelope;
use crate::{date, quote, requiretls};

/// The sender of a double bounce; a bounce to it is discarded.
pub const DOUBLE_BOUNCE_SENDER: &[u8] = b"#@[]";

/// Said at the end of the last report when a message is given up.
pub const EXPIRED: &[u8] = b"I'm not going to try again; this message has been in the queue too long.\n";

/// The paragraph for one recipient: `<ADDRESS>:`, the report, an empty line. Whatever the report
/// contains, the paragraph has no empty line inside and ends in exactly one.
pub fn paragraph(address: &[u8], report: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(address.len() + report.len() + 6);
    out.push(b'<');
    out.extend(address.iter().map(|b| if *b == b'\n' { b'_' } else { *b }));
    out.extend_from_slice(b">:\n");
    let end = report.iter().rposition(|b| *b != b'\n').map_or(0, |at| at + 1);
    let mut previous = b'\n';
    for byte in report.get(..end).unwrap_or_default() {
        let put = if *byte == b'\n' && previous == b'\n' { b'/' } else { *byte };
        out.push(put);
        previous = put;
    }
    if end > 0 {
        out.push(b'\n');
    }
    out.push(b'\n');
    out
}

/// What happens to a message that could not be delivered to somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Back to its sender.
    Single { to: Vec<u8> },
    /// A bounce bounced: the administrator gets it.
    Double,
    /// The administrator's copy bounced: the end of the line.
    Triple,
}

impl Kind {
    pub fn of(sender: &[u8]) -> Kind {
        match sender {
            DOUBLE_BOUNCE_SENDER => Kind::Triple,
            b"" => Kind::Double,
            other => Kind::Single { to: rewrite::bounce_recipient(other).to_vec() },
        }
    }
}

/// What the control files say about bounces.
#[derive(Debug, Clone, Default)]
pub struct Names {
    pub bouncefrom: Vec<u8>,
    pub bouncehost: Vec<u8>,
    pub doublebounceto: Vec<u8>,
    pub doublebouncehost: Vec<u8>,
}

/// A bounce without the parts that are files: between `opening` and `break_line` stands `bounce/N`,
/// behind `break_line` the message, or its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    pub envelope: Envelope,
    pub opening: Vec<u8>,
    pub break_line: Vec<u8>,
}

impl Names {
    /// The letter about a message from `sender`; None for a triple bounce. rfc8689:5 if the message may not travel
    /// without TLS (`requires_tls`), its bounce may not either, and what follows the letter is the header alone.
    pub fn letter(&self, sender: &[u8], now: u64, requires_tls: bool) -> Option<Letter> {
        let (to, from, introduction, below): (Vec<u8>, &[u8], &str, &str) = match Kind::of(sender) {
            Kind::Triple => return None,
            Kind::Single { to } => (to, b"", SINGLE, "a copy of the message"),
            Kind::Double => {
                let to = [self.doublebounceto.as_slice(), b"@", &self.doublebouncehost].concat();
                (to, DOUBLE_BOUNCE_SENDER, DOUBLE, "the original bounce")
            }
        };
        let me = [self.bouncefrom.as_slice(), b"@", &self.bouncehost].concat();
        let (demand, below) = if requires_tls {
            (requiretls::FIELD, format!("{below}'s header"))
        } else {
            (b"".as_slice(), below.into())
        };
        let opening = [
            demand,
            b"Date: ",
            date::rfc822(now).as_bytes(),
            b"\nFrom: ",
            &one_line(quote::address(&me)),
            b"\nTo: ",
            &one_line(quote::address(&to)),
            b"\nSubject: failure notice\n\nHi. This is the qmail-send program at ",
            &one_line(self.bouncehost.clone()),
            b".\n",
            introduction.as_bytes(),
            b"\n",
        ]
        .concat();
        let copy = format!("--- Below this line is {below}.\n\nReturn-Path: <");
        let break_line = [copy.as_bytes(), &one_line(quote::address(sender)), b">\n"].concat();
        Some(Letter { envelope: Envelope::new(from, vec![to]), opening, break_line })
    }
}

const SINGLE: &str = "It wasn't able to deliver your message to the addresses below; the reason stands with each.\n\
    This is a permanent error: no further attempt will be made.\n";

const DOUBLE: &str =
    "A report of a failed delivery could not be delivered to its address either: the bounce bounced.\n";

/// Header fields and paragraphs are built around it: a line feed in an address must not end them.
fn one_line(mut text: Vec<u8>) -> Vec<u8> {
    for byte in &mut text {
        if *byte == b'\n' {
            *byte = b'_';
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paragraph_has_one_empty_line_at_its_end_and_none_inside() {
        assert_eq!(paragraph(b"a@b", b"no\n"), b"<a@b>:\nno\n\n");
        assert_eq!(paragraph(b"a@b", b"no"), b"<a@b>:\nno\n\n");
        assert_eq!(paragraph(b"a@b", b"one\n\ntwo\n"), b"<a@b>:\none\n/two\n\n");
        assert_eq!(paragraph(b"a@b", b"one\n\n\ntwo\n\n"), b"<a@b>:\none\n/\ntwo\n\n");
        assert_eq!(paragraph(b"a@b", b"\nlead\n"), b"<a@b>:\n/lead\n\n");
        assert_eq!(paragraph(b"a@b", b""), b"<a@b>:\n\n");
        assert_eq!(paragraph(b"a@b", b"\n\n"), b"<a@b>:\n\n");
        assert_eq!(paragraph(b"a\n>:\n@b", b"x\n"), b"<a_>:_@b>:\nx\n\n");
    }

    #[test]
    fn a_paragraph_never_has_an_empty_line_inside_whatever_it_is_given() {
        for pattern in 0u32..256 {
            let report: Vec<u8> =
                (0..8).map(|bit| if pattern >> bit & 1 == 1 { b'\n' } else { b'x' }).collect();
            let text = paragraph(b"a@b", &report);
            let inside = text.strip_suffix(b"\n\n").unwrap();
            assert!(!inside.windows(2).any(|w| w == b"\n\n") && !inside.ends_with(b"\n"), "{text:?}");
        }
    }

    fn names() -> Names {
        Names {
            bouncefrom: b"MAILER-DAEMON".to_vec(),
            bouncehost: b"me.example".to_vec(),
            doublebounceto: b"postmaster".to_vec(),
            doublebouncehost: b"admin.example".to_vec(),
        }
    }

    #[test]
    fn a_bounce_goes_to_the_sender_from_nobody() {
        let letter = names().letter(b"joe doe@x.example", 0, false).unwrap();
        assert_eq!(letter.envelope, Envelope::new(*b"", vec![b"joe doe@x.example".to_vec()]));
        let opening = b"Date: 1 Jan 1970 00:00:00 -0000\nFrom: MAILER-DAEMON@me.example\n\
            To: \"joe doe\"@x.example\nSubject: failure notice\n\n\
            Hi. This is the qmail-send program at me.example.\n\
            It wasn't able to deliver your message to the addresses below; the reason stands with each.\n\
            This is a permanent error: no further attempt will be made.\n\n";
        assert_eq!(String::from_utf8_lossy(&letter.opening), String::from_utf8_lossy(opening));
        assert_eq!(
            letter.break_line,
            b"--- Below this line is a copy of the message.\n\nReturn-Path: <\"joe doe\"@x.example>\n"
        );
    }

    #[test]
    fn a_bounce_of_what_demands_tls_demands_it_and_shows_the_header_only() {
        let (plain, strict) =
            (names().letter(b"s@h", 0, false).unwrap(), names().letter(b"s@h", 0, true).unwrap());
        assert_eq!(strict.opening, [requiretls::FIELD, plain.opening.as_slice()].concat());
        assert_eq!(
            strict.break_line,
            b"--- Below this line is a copy of the message's header.\n\nReturn-Path: <s@h>\n"
        );
        let double = names().letter(b"", 0, true).unwrap();
        assert!(double.break_line.starts_with(b"--- Below this line is the original bounce's header.\n"));
    }

    #[test]
    fn a_double_bounce_goes_to_the_administrator() {
        let letter = names().letter(b"", 0, false).unwrap();
        assert_eq!(letter.envelope, Envelope::new(*b"#@[]", vec![b"postmaster@admin.example".to_vec()]));
        assert_eq!(letter.break_line, b"--- Below this line is the original bounce.\n\nReturn-Path: <>\n");
        assert!(String::from_utf8_lossy(&letter.opening).contains("the bounce bounced"));
    }

    #[test]
    fn a_triple_bounce_goes_nowhere_and_verp_senders_lose_their_marker() {
        assert_eq!(names().letter(b"#@[]", 0, false), None);
        assert_eq!(names().letter(b"l-@h-@[]", 0, false).unwrap().envelope.recipients, [b"l-@h".to_vec()]);
    }

    #[test]
    fn a_line_feed_in_a_sender_cannot_add_a_header_field() {
        let letter = names().letter(b"a\nBcc: x@y", 0, false).unwrap();
        assert!(!letter.opening.windows(5).any(|w| w == b"\nBcc:"));
        assert!(!letter.break_line.windows(5).any(|w| w == b"\nBcc:"));
    }
}
