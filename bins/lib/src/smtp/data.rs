//! smtp::data - the message behind DATA, from the wire to the lines of the queue
//!
//! CR LF becomes LF, the dot that hides a leading dot goes, a line of one dot is the end. A LF without
//! its CR is refused wherever it stands: it is what lets a message smuggle a second one past a
//! server that reads line ends differently. State is one byte, whatever the client sends.
#![forbid(unsafe_code)]

use memchr::{memchr, memchr2};

/// Where in a line the decoder is. What has been read but not stored is part of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start of a line, of the message too.
    Start,
    Middle,
    /// Behind a dot at the start of a line, which is not stored.
    Dot,
    /// Behind that dot and a CR; neither is stored.
    DotCr,
    /// Behind a CR that is not stored yet.
    Cr,
}

/// What a piece of input led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// All of it used, the message goes on.
    More,
    /// The message has ended; what was not used is the next command.
    End,
    /// A LF without CR. Nothing after it can be trusted: the conversation must end.
    BareLf,
}

/// The decoder of one message.
#[derive(Debug, Clone)]
pub struct Decoder {
    state: State,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { state: State::Start }
    }
}

impl Decoder {
    /// Decodes `input`, gives what it stands for to `store` in pieces, and says how many bytes were used.
    pub fn feed(&mut self, input: &[u8], mut store: impl FnMut(&[u8])) -> (usize, Step) {
        let mut used = 0;
        while let Some((first, _)) = input.get(used..).and_then(<[u8]>::split_first) {
            match (self.state, *first) {
                (State::Start, b'.') => self.state = State::Dot,
                (State::Start | State::Middle, _) => {
                    // The usual case by far: a run of ordinary bytes up to a line end.
                    let rest = input.get(used..).unwrap_or_default();
                    let run = memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
                    if run > 0 {
                        store(rest.get(..run).unwrap_or_default());
                        self.state = State::Middle;
                    }
                    used += run;
                    match rest.get(run) {
                        None => continue,
                        Some(b'\n') => return (used + 1, Step::BareLf),
                        Some(_) => self.state = State::Cr,
                    }
                }
                (State::Dot, b'\n') => return (used + 1, Step::BareLf),
                (State::Dot, b'\r') => self.state = State::DotCr,
                (State::Dot, byte) => {
                    store(&[byte]);
                    self.state = State::Middle;
                }
                (State::DotCr, b'\n') => return (used + 1, Step::End),
                (State::DotCr, b'\r') => {
                    store(b".\r");
                    self.state = State::Cr;
                }
                (State::DotCr, byte) => {
                    store(&[b'.', b'\r', byte]);
                    self.state = State::Middle;
                }
                (State::Cr, b'\n') => {
                    store(b"\n");
                    self.state = State::Start;
                }
                (State::Cr, b'\r') => store(b"\r"),
                (State::Cr, byte) => {
                    store(&[b'\r', byte]);
                    self.state = State::Middle;
                }
            }
            used += 1;
        }
        (used, Step::More)
    }
}

/// Counts the hosts a message has passed: header lines that begin with `received` or `delivered`, in any
/// case. Looks at nine bytes of a line and at no line after the first empty one.
#[derive(Debug, Clone)]
pub struct Hops {
    count: u32,
    in_header: bool,
    /// The beginning of the current line, in lower case.
    begin: [u8; 9],
    /// How much of `begin` is filled.
    filled: usize,
}

impl Default for Hops {
    fn default() -> Hops {
        Hops { count: 0, in_header: true, begin: [0; 9], filled: 0 }
    }
}

impl Hops {
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The next decoded bytes of the message, in pieces of any size.
    pub fn feed(&mut self, mut decoded: &[u8]) {
        while self.in_header && !decoded.is_empty() {
            if self.filled == self.begin.len() {
                let Some(end) = memchr(b'\n', decoded) else { return };
                decoded = decoded.get(end..).unwrap_or_default();
            }
            let Some((byte, rest)) = decoded.split_first() else { return };
            decoded = rest;
            if *byte == b'\n' {
                self.in_header = self.filled > 0;
                self.filled = 0;
            } else {
                self.take(byte.to_ascii_lowercase());
            }
        }
    }

    fn take(&mut self, byte: u8) {
        if let Some(place) = self.begin.get_mut(self.filled) {
            *place = byte;
            self.filled += 1;
        }
        let begin = self.begin.get(..self.filled).unwrap_or_default();
        if begin == b"received" || begin == b"delivered" {
            self.count = self.count.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state table of the specification, byte by byte: (stored, used, step).
    fn reference(input: &[u8]) -> (Vec<u8>, usize, Step) {
        #[derive(Clone, Copy)]
        enum S {
            Start,
            Mid,
            Dot,
            DotCr,
            Cr,
        }
        let mut out = Vec::new();
        let mut state = S::Start;
        for (at, byte) in input.iter().enumerate() {
            let (add, next): (Vec<u8>, S) = match (state, *byte) {
                (S::Start | S::Mid | S::Dot, b'\n') => return (out, at + 1, Step::BareLf),
                (S::DotCr, b'\n') => return (out, at + 1, Step::End),
                (S::Start | S::Mid, b'\r') => (vec![], S::Cr),
                (S::Start, b'.') => (vec![], S::Dot),
                (S::Start | S::Mid, x) => (vec![x], S::Mid),
                (S::Dot, b'\r') => (vec![], S::DotCr),
                (S::Dot, x) => (vec![x], S::Mid),
                (S::DotCr, b'\r') => (b".\r".to_vec(), S::Cr),
                (S::DotCr, x) => (vec![b'.', b'\r', x], S::Mid),
                (S::Cr, b'\n') => (b"\n".to_vec(), S::Start),
                (S::Cr, b'\r') => (b"\r".to_vec(), S::Cr),
                (S::Cr, x) => (vec![b'\r', x], S::Mid),
            };
            out.extend(add);
            state = next;
        }
        (out, input.len(), Step::More)
    }

    fn decode(pieces: &[&[u8]]) -> (Vec<u8>, usize, Step) {
        let (mut decoder, mut out, mut total) = (Decoder::default(), Vec::new(), 0);
        for piece in pieces {
            let (used, step) = decoder.feed(piece, |bytes| out.extend_from_slice(bytes));
            total += used;
            if step != Step::More {
                return (out, total, step);
            }
            assert_eq!(used, piece.len());
        }
        (out, total, Step::More)
    }

    #[test]
    fn every_short_string_in_every_split_decodes_as_the_table_says() {
        const ALPHABET: [u8; 4] = [b'\r', b'\n', b'.', b'x'];
        for length in 0..=6u32 {
            for number in 0..4usize.pow(length) {
                let input: Vec<u8> = (0..length).map(|i| ALPHABET[number / 4usize.pow(i) % 4]).collect();
                let expected = reference(&input);
                for split in 0..=input.len() {
                    let (a, b) = input.split_at(split);
                    assert_eq!(decode(&[a, b]), expected, "{input:?} split at {split}");
                }
                let single: Vec<&[u8]> = input.chunks(1).collect();
                assert_eq!(decode(&single), expected, "{input:?} byte by byte");
            }
        }
    }

    #[test]
    fn the_examples_of_the_specification_hold() {
        let end = |text: &[u8]| decode(&[text, b"\r\n.\r\n"]).0;
        assert_eq!(end(b"..dot"), b".dot\n");
        assert_eq!(end(b".x"), b"x\n");
        assert_eq!(end(b".\r\r\nx"), b".\r\nx\n");
        assert_eq!(end(b"text\r\r\nx"), b"text\r\nx\n");
    }

    #[test]
    fn what_follows_the_end_is_left_for_the_next_command() {
        assert_eq!(decode(&[b"a\r\n.\r\nQUIT\r\n"]), (b"a\n".to_vec(), 6, Step::End));
        assert_eq!(decode(&[b".\r\n"]), (Vec::new(), 3, Step::End));
    }

    #[test]
    fn no_way_around_the_line_end_ends_a_message() {
        for inside in [b"\n.\n".as_slice(), b"\n.\r\n", b"\r\n.\n", b"x\n", b".\n"] {
            assert_eq!(decode(&[b"a", inside]).2, Step::BareLf, "{inside:?}");
        }
        for inside in
            [b"\r.\r\n".as_slice(), b"\r.\r", b"\r\n.\r", b"\r\n.\r\r\n", b"\r\n\r.\r\n", b"\0\r\n\0.\r\n"]
        {
            assert_eq!(decode(&[b"a", inside]).2, Step::More, "{inside:?}");
        }
    }

    fn hops(pieces: &[&[u8]]) -> u32 {
        let mut hops = Hops::default();
        pieces.iter().for_each(|piece| hops.feed(piece));
        hops.count()
    }

    #[test]
    fn hops_are_header_lines_in_any_case_and_without_regard_to_the_colon() {
        assert_eq!(
            hops(&[b"Received: a\nDELIVERED-To: b\nreceivedx\ndelivere\n X\nreceive\n\nReceived: body\n"]),
            3
        );
        assert_eq!(hops(&[b"\nReceived: x\n"]), 0);
        assert_eq!(hops(&[b"xReceived: x\nReceived"]), 1);
    }

    #[test]
    fn hops_do_not_depend_on_how_the_message_is_cut() {
        let text = b"Subject: a long line of a header\nReceived: a\ndelivered\nReceived: b\n\nReceived: c\n";
        let single: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(hops(&single), 3);
        for split in 0..text.len() {
            let (a, b) = text.split_at(split);
            assert_eq!(hops(&[a, b]), 3);
        }
    }
}
