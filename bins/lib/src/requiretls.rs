//! requiretls - what a message asks of those who carry it (RFC 8689)
//!
//! The envelope in the queue has no place for it. So the demand of `MAIL FROM:<…> REQUIRETLS` travels in the header, as
//! a trace field that qmail-smtpd puts below its Received line and that stays there: through filters, forwarding,
//! lists and bounces. Whoever writes it by hand demands the same; a forged one can make delivery stricter, and no more.
//! The wish for the opposite is the sender's own field, `TLS-Required: No`, and counts only where nothing is demanded.
#![forbid(unsafe_code)]

use memchr::memchr;

/// The field as it is written. What stands behind the colon does not matter to who reads it.
pub const FIELD: &[u8] = b"Qmail-RequireTLS: yes\n";

const REQUIRED: &[u8] = b"Qmail-RequireTLS";
const OPTIONAL: &[u8] = b"TLS-Required";

/// So much of a header is looked at, which is more than servers take; what qmail-smtpd writes stands at its beginning.
/// It is also what one step of qmail-send may read.
pub const HEADER_MAX: u64 = 256 * 1024;

/// What is held of a line that comes in pieces: the longest field name and a short value fit in.
const HELD_MAX: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    #[default]
    Nothing,
    /// No delivery without TLS, proved hosts, and servers that promise the same.
    Required,
    /// Delivery also where the domain's own policies are not met.
    Optional,
}

/// Reads a header as the message passes.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// The beginning of a line whose end has not come.
    held: Vec<u8>,
    /// How much of that line has.
    pending: u64,
    /// Bytes of the header's whole lines.
    length: u64,
    over: bool,
    required: bool,
    /// How often `TLS-Required` stands there, and what it says.
    optional: u32,
    value: Vec<u8>,
    /// The latest field is one, and may go on.
    in_value: bool,
}

impl Look {
    /// Takes the next piece.
    pub fn put(&mut self, mut piece: &[u8]) {
        while !self.over && !piece.is_empty() {
            let Some(end) = memchr(b'\n', piece) else {
                self.hold(piece);
                self.over = self.length + self.pending > HEADER_MAX;
                return;
            };
            let (line, rest) = piece.split_at(end);
            piece = rest.get(1..).unwrap_or_default();
            let length = self.pending + line.len() as u64 + 1;
            if self.pending == 0 {
                self.line(line);
            } else {
                self.hold(line);
                let held = std::mem::take(&mut self.held);
                self.line(&held);
            }
            self.pending = 0;
            self.over |= self.length + length > HEADER_MAX;
            if !self.over {
                self.length += length;
            }
        }
    }

    fn hold(&mut self, piece: &[u8]) {
        let room = HELD_MAX.saturating_sub(self.held.len());
        self.held.extend(piece.iter().take(room));
        self.pending += piece.len() as u64;
    }

    /// A line, or the beginning of a long one.
    fn line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.first().is_some_and(|b| matches!(b, b' ' | b'\t')) {
            if self.in_value {
                self.value.push(b' ');
                self.value.extend(line.iter().take(HELD_MAX.saturating_sub(self.value.len())));
            }
            self.over |= self.length == 0;
            return;
        }
        self.in_value = false;
        let Some((name, value)) = field(line) else {
            // What mailboxes have between messages is no end. Everything else that is no field, an empty line first, is.
            self.over = !(line.starts_with(b"From ") || line.starts_with(b">From "));
            return;
        };
        if name.eq_ignore_ascii_case(REQUIRED) {
            self.required = true;
        } else if name.eq_ignore_ascii_case(OPTIONAL) {
            self.optional = self.optional.saturating_add(1);
            self.value = value.to_vec();
            self.in_value = true;
        }
    }

    /// Whether nothing more is to be learned.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// What the message asks for, as far as it has come. rfc8689:3 the field for "no" stands once, or says nothing.
    pub fn wish(&self) -> Wish {
        if self.required {
            Wish::Required
        } else if self.optional == 1 && self.value.trim_ascii().eq_ignore_ascii_case(b"no") {
            Wish::Optional
        } else {
            Wish::Nothing
        }
    }

    /// How many bytes the header has, without the empty line behind it.
    pub fn header(&self) -> u64 {
        self.length
    }
}

/// Name and value; None for a line that is no field.
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, value) = line.split_at(memchr(b':', line)?);
    let name = name.trim_ascii_end();
    let is_name = !name.is_empty() && name.iter().all(|b| matches!(b, 33..=126));
    is_name.then(|| (name, value.get(1..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same in every way to cut it in two, and byte by byte.
    fn look(message: &[u8]) -> (Wish, u64) {
        let of = |pieces: &[&[u8]]| {
            let mut look = Look::default();
            pieces.iter().for_each(|piece| look.put(piece));
            (look.wish(), look.header())
        };
        let whole = of(&[message]);
        for cut in 0..=message.len().min(2000) {
            let (a, b) = message.split_at(cut);
            assert_eq!(of(&[a, b]), whole, "cut at {cut}");
        }
        assert_eq!(of(&message.chunks(1).collect::<Vec<_>>()), whole);
        whole
    }

    fn wish(message: &[u8]) -> Wish {
        look(message).0
    }

    #[test]
    fn the_field_that_is_written_is_found() {
        let message = [b"Received: from x\n  by y\n".as_slice(), FIELD, b"Subject: z\n\nbody\n"].concat();
        assert_eq!(look(&message), (Wish::Required, message.len() as u64 - 6));
        for name in
            ["Qmail-RequireTLS:", "QMAIL-REQUIRETLS: no", "qmail-requiretls : x", "Qmail-RequireTLS:\r"]
        {
            assert_eq!(wish(format!("A: b\n{name}\n\n").as_bytes()), Wish::Required, "{name}");
        }
    }

    #[test]
    fn no_is_all_that_the_other_field_can_say() {
        for good in ["TLS-Required: No", "tls-required:no", "TLS-Required:\n NO", "TLS-Required: No \r"] {
            assert_eq!(wish(format!("A: b\n{good}\nC: d\n\n").as_bytes()), Wish::Optional, "{good}");
        }
        for bad in [
            "TLS-Required: Yes",
            "TLS-Required:",
            "TLS-Required: No (x)",
            "TLS-Required: N\n o",
            "X-TLS-Required: No",
            "TLS-Required: No\nTLS-Required: No",
            "TLS-Required: No\n x",
            "TLS-Required-: No",
        ] {
            assert_eq!(wish(format!("A: b\n{bad}\nC: d\n\n").as_bytes()), Wish::Nothing, "{bad}");
        }
        let long = format!("TLS-Required: No{}x\n\n", " ".repeat(HELD_MAX - 20));
        assert_eq!(wish(long.as_bytes()), Wish::Nothing);
    }

    #[test]
    fn a_demand_outweighs_the_other_wish() {
        assert_eq!(wish(b"TLS-Required: No\nQmail-RequireTLS: yes\n\n"), Wish::Required);
        assert_eq!(wish(b"Qmail-RequireTLS: yes\nTLS-Required: No\n\n"), Wish::Required);
    }

    #[test]
    fn only_the_header_is_looked_at() {
        for (header, body) in [
            ("A: b\n", "\nQmail-RequireTLS: yes\n"),
            ("A: b\r\n", "\r\nQmail-RequireTLS: yes\n"),
            ("A: b\n", "no field\nTLS-Required: No\n"),
            ("", " A: b\nTLS-Required: No\n"),
            ("", "\nQmail-RequireTLS: yes\n"),
            ("", ": x\nQmail-RequireTLS: yes\n"),
            ("A: b\n c\n", "d e: f\nQmail-RequireTLS: yes\n"),
        ] {
            assert_eq!(
                look(format!("{header}{body}").as_bytes()),
                (Wish::Nothing, header.len() as u64),
                "{body}"
            );
        }
        assert_eq!(wish(b"From joe today\n>From x\nTLS-Required: No\n\n"), Wish::Optional);
    }

    #[test]
    fn an_unended_line_says_nothing_yet() {
        assert_eq!(look(b"A: b\nQmail-RequireTLS: yes"), (Wish::Nothing, 5));
        assert_eq!(look(b""), (Wish::Nothing, 0));
    }

    #[test]
    fn it_looks_so_far_and_no_further() {
        let line = [b"A: ".as_slice(), &[b'x'; 60], b"\n"].concat();
        let fill = line.repeat(usize::try_from(HEADER_MAX).unwrap() / line.len());
        let mut near = Look::default();
        near.put(fill.get(FIELD.len().next_multiple_of(line.len())..).unwrap());
        near.put(FIELD);
        assert_eq!((near.wish(), near.is_over()), (Wish::Required, false));
        let mut far = Look::default();
        far.put(&fill);
        far.put(&line);
        far.put(&line);
        assert!(far.is_over() && far.header() <= HEADER_MAX);
        let mut endless = Look::default();
        (0..=HEADER_MAX / 1000).for_each(|_| endless.put(&[b'x'; 1001]));
        assert!(endless.is_over() && endless.held.len() <= HELD_MAX);
    }
}
