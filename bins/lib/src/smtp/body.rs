//! body - a message as it goes over the wire after DATA
//!
//! LF becomes CR LF and CR LF stays one CR LF. A lone CR becomes CR LF too: receivers differ in what they
//! take for a line end, so neither a bare CR nor a bare LF is ever sent, and every dot after any CR LF of
//! ours is doubled (RFC 5321 sections 2.3.8 and 4.5.2). A message without CR comes out of a server that
//! stores CR LF as LF exactly as it was; of one with lone CRs the line breaks survive, the CRs do not.
#![forbid(unsafe_code)]

/// What stands behind the last line.
pub const END: &[u8] = b".\r\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    LineStart,
    Middle,
    /// A CR was read; its CR LF is not written yet.
    Cr,
}

/// Turns a message, piece by piece, into what is sent.
#[derive(Debug, Clone)]
pub struct Encoder {
    at: At,
}

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder { at: At::LineStart }
    }
}

impl Encoder {
    pub fn new() -> Encoder {
        Encoder::default()
    }

    /// Appends to `out` what `bytes` become.
    pub fn put(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some((byte, rest)) = bytes.split_first() {
            if self.at == At::Cr {
                out.extend_from_slice(b"\r\n");
                self.at = At::LineStart;
                if *byte == b'\n' {
                    bytes = rest;
                    continue;
                }
            }
            match byte {
                b'\r' => {
                    self.at = At::Cr;
                    bytes = rest;
                }
                b'\n' => {
                    out.extend_from_slice(b"\r\n");
                    self.at = At::LineStart;
                    bytes = rest;
                }
                _ => {
                    if *byte == b'.' && self.at == At::LineStart {
                        out.push(b'.');
                    }
                    let length = memchr::memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len());
                    let (run, rest) = bytes.split_at(length);
                    out.extend_from_slice(run);
                    self.at = At::Middle;
                    bytes = rest;
                }
            }
        }
    }

    /// Whether the last byte was an LF (or there was none): what SMTP can carry to its end.
    pub fn ends_whole(&self) -> bool {
        self.at == At::LineStart
    }

    /// Ends an unended line and the message.
    pub fn finish(self, out: &mut Vec<u8>) {
        if self.at != At::LineStart {
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(END);
    }
}

/// What must be known of a message before it is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// Bytes as sent, without doubled dots and the end (RFC 1870 section 5).
    pub size: u64,
    /// It has bytes over 127.
    pub eight_bit: bool,
    at: At,
}

impl Default for Scan {
    fn default() -> Scan {
        Scan { size: 0, eight_bit: false, at: At::LineStart }
    }
}

impl Scan {
    pub fn new() -> Scan {
        Scan::default()
    }

    /// Looks at the next piece of the message.
    pub fn put(&mut self, bytes: &[u8]) {
        self.eight_bit |= !bytes.is_ascii();
        for byte in bytes {
            self.size += match (self.at, byte) {
                (At::Cr, b'\n') => 0, // counted with its CR
                (_, b'\r' | b'\n') => 2,
                _ => 1,
            };
            self.at = match byte {
                b'\r' => At::Cr,
                b'\n' => At::LineStart,
                _ => At::Middle,
            };
        }
    }

    /// As `Encoder::ends_whole`.
    pub fn ends_whole(&self) -> bool {
        self.at == At::LineStart
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new();
        encoder.put(message, &mut out);
        encoder.finish(&mut out);
        out
    }

    /// A receiver that knows CR LF . CR LF and nothing else: what it got, and what was left behind.
    fn strict_receiver(wire: &[u8]) -> Option<(Vec<u8>, usize)> {
        let mut got = Vec::new();
        let mut rest = wire;
        loop {
            let at = rest.windows(2).position(|w| w == b"\r\n")?;
            let line = &rest[..at];
            rest = &rest[at + 2..];
            if line == b"." {
                return Some((got, rest.len()));
            }
            got.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
            got.push(b'\n');
        }
    }

    fn all_strings(alphabet: &[u8], max: usize) -> Vec<Vec<u8>> {
        let mut all = vec![Vec::new()];
        let mut from = 0;
        for _ in 0..max {
            let until = all.len();
            for i in from..until {
                for byte in alphabet {
                    all.push([all[i].as_slice(), &[*byte]].concat());
                }
            }
            from = until;
        }
        all
    }

    #[test]
    fn whatever_the_message_there_is_exactly_one_end_and_it_is_the_last() {
        for message in all_strings(b"\r\n.x", 6) {
            let wire = encoded(&message);
            let (_, behind) = strict_receiver(&wire).unwrap();
            assert_eq!(behind, 0, "{message:?} gave {wire:?}");
        }
    }

    #[test]
    fn neither_a_bare_cr_nor_a_bare_lf_is_ever_sent() {
        for message in all_strings(b"\r\n.x", 6) {
            let wire = encoded(&message);
            for (i, byte) in wire.iter().enumerate() {
                match byte {
                    b'\r' => assert_eq!(wire.get(i + 1), Some(&b'\n'), "{message:?}"),
                    b'\n' => assert_eq!(wire.get(i.wrapping_sub(1)), Some(&b'\r'), "{message:?}"),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_message_without_cr_arrives_as_it_was() {
        for message in all_strings(b"\n.x", 7).into_iter().filter(|m| m.is_empty() || m.ends_with(b"\n")) {
            assert_eq!(strict_receiver(&encoded(&message)).unwrap().0, message);
        }
    }

    #[test]
    fn line_ends_become_cr_lf_and_cr_lf_stays_one() {
        assert_eq!(encoded(b"a\nb\r\nc\n"), b"a\r\nb\r\nc\r\n.\r\n");
        assert_eq!(encoded(b""), b".\r\n");
        assert_eq!(encoded(b"\n"), b"\r\n.\r\n");
    }

    #[test]
    fn a_lone_cr_ends_a_line_and_the_dot_behind_it_is_doubled() {
        assert_eq!(encoded(b"a\r.\nb\n"), b"a\r\n..\r\nb\r\n.\r\n");
        assert_eq!(encoded(b"a\r\r\n"), b"a\r\n\r\n.\r\n");
        assert_eq!(encoded(b"\r.\r\n"), b"\r\n..\r\n.\r\n");
        assert_eq!(encoded(b".\n..\n"), b"..\r\n...\r\n.\r\n");
    }

    #[test]
    fn the_pieces_a_message_comes_in_do_not_matter() {
        for message in all_strings(b"\r\n.x", 5) {
            let whole = encoded(&message);
            for cut in 0..=message.len() {
                let mut out = Vec::new();
                let mut encoder = Encoder::new();
                encoder.put(&message[..cut], &mut out);
                encoder.put(&message[cut..], &mut out);
                encoder.finish(&mut out);
                assert_eq!(out, whole);
            }
        }
    }

    #[test]
    fn a_scan_tells_size_and_end_as_the_encoder_will_send_them() {
        for message in all_strings(b"\r\n.x", 6) {
            let mut scan = Scan::new();
            let (mut encoder, mut out) = (Encoder::new(), Vec::new());
            for byte in &message {
                scan.put(&[*byte]);
                encoder.put(&[*byte], &mut out);
            }
            assert_eq!(scan.ends_whole(), encoder.ends_whole(), "{message:?}");
            if !scan.ends_whole() {
                continue;
            }
            let stuffed = out.split(|b| *b == b'\n').filter(|line| line.starts_with(b"..")).count();
            let single = out.split(|b| *b == b'\n').filter(|line| *line == b".\r").count();
            assert_eq!(single, 0);
            assert_eq!(scan.size, (out.len() - stuffed) as u64, "{message:?}");
        }
    }

    #[test]
    fn eight_bit_bytes_pass_and_are_noticed() {
        let mut scan = Scan::new();
        scan.put(b"plain\n");
        assert!(!scan.eight_bit);
        scan.put(b"\xe4\n");
        assert!(scan.eight_bit);
        let all: Vec<u8> = (0..=255).filter(|b| *b != b'\r').chain([b'\n']).collect();
        assert_eq!(strict_receiver(&encoded(&all)).unwrap().0, all);
    }
}
