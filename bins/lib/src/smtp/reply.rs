//! reply - what an SMTP server answers, read strictly
//!
//! A reply is three digits, the first of them 2 to 5, then an end of line, a space and text, or `-` and
//! text with more lines to follow that all carry the same code (RFC 5321 section 4.2). What is anything
//! else has no code: callers take it for a temporary failure and stop talking, for nothing that follows
//! could be told apart.
#![forbid(unsafe_code)]

/// RFC 5321 section 4.5.3.1.5 allows 512; wordy servers exist.
pub const LINE_MAX: usize = 4096;

/// All lines of one reply; EHLO answers and policy lectures stay far below.
pub const REPLY_MAX: usize = 64 * 1024;

/// This much of a reply is kept for reports.
pub const TEXT_MAX: usize = 5000;

/// A whole reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// 200 to 599; None for what is no reply.
    code: Option<u16>,
    text: Vec<u8>,
    lines: Vec<Vec<u8>>,
}

impl Reply {
    /// 200 to 599, None when the server did not speak SMTP.
    pub fn code(&self) -> Option<u16> {
        self.code
    }

    /// Done: 2xx.
    pub fn is_positive(&self) -> bool {
        self.is_class(2)
    }

    /// Go on: 3xx.
    pub fn is_intermediate(&self) -> bool {
        self.is_class(3)
    }

    /// Never: 5xx.
    pub fn is_permanent(&self) -> bool {
        self.is_class(5)
    }

    /// No, for now or for ever: 4xx or 5xx.
    pub fn is_negative(&self) -> bool {
        self.is_class(4) || self.is_class(5)
    }

    fn is_class(&self, class: u16) -> bool {
        self.code.is_some_and(|code| code / 100 == class)
    }

    /// For a report: all lines with their codes, each ended by LF, CR removed, NUL shown as `?`, the
    /// first `TEXT_MAX` bytes.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// The lines without code and separator; the first is the greeting, the others of an EHLO reply
    /// are extensions.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.lines.iter().map(Vec::as_slice)
    }
}

/// Takes bytes as they arrive and says when a reply is complete. One parser a reply.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    all: Vec<u8>,
    code: Option<u16>,
    lines: Vec<Vec<u8>>,
}

impl Parser {
    pub fn new() -> Parser {
        Parser::default()
    }

    /// Whether anything of the reply has been seen.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Takes bytes up to the end of the reply: how many were used, and the reply once it is complete.
    /// Bytes behind it belong to the next one.
    pub fn take(&mut self, bytes: &[u8]) -> (usize, Option<Reply>) {
        for (at, byte) in bytes.iter().enumerate() {
            self.all.push(*byte);
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > LINE_MAX || self.all.len() > REPLY_MAX {
                    return (at + 1, Some(self.finish(None)));
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            match self.end_of_line(line.strip_suffix(b"\r").unwrap_or(&line)) {
                Line::Last(code) => return (at + 1, Some(self.finish(Some(code)))),
                Line::More => {}
                Line::Bad => return (at + 1, Some(self.finish(None))),
            }
        }
        (bytes.len(), None)
    }

    fn end_of_line(&mut self, line: &[u8]) -> Line {
        let (Some(code), separator) = (line.get(..3).and_then(code), line.get(3)) else { return Line::Bad };
        if self.code.is_some_and(|first| first != code) {
            return Line::Bad;
        }
        self.code = Some(code);
        self.lines.push(line.get(4..).unwrap_or_default().to_vec());
        match separator {
            Some(b'-') => Line::More,
            Some(b' ') | None => Line::Last(code),
            Some(_) => Line::Bad,
        }
    }

    fn finish(&mut self, code: Option<u16>) -> Reply {
        Reply { code, text: shown(&self.all), lines: std::mem::take(&mut self.lines) }
    }

    /// What there is when the server has gone in the middle: a reply without a code.
    pub fn abandon(&mut self) -> Reply {
        self.finish(None)
    }
}

enum Line {
    More,
    Last(u16),
    Bad,
}

fn code(digits: &[u8]) -> Option<u16> {
    let [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9'] = digits else { return None };
    Some(u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0'))
}

fn shown(all: &[u8]) -> Vec<u8> {
    let bytes = all.iter().filter(|b| **b != b'\r').map(|b| if *b == 0 { b'?' } else { *b });
    let mut text: Vec<u8> = bytes.take(TEXT_MAX).collect();
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    text
}

/// What a server's EHLO reply offers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extensions {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 1870. The limit behind it is not looked at: whether a message is too large the server says.
    pub size: bool,
    /// RFC 3207.
    pub start_tls: bool,
    /// RFC 8689.
    pub require_tls: bool,
}

/// The mechanisms of AUTH (RFC 4954) that a server's EHLO reply offers; also those behind `AUTH=`, as servers of old
/// write it.
pub fn mechanisms(reply: &Reply) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for line in reply.lines().skip(1) {
        let mut words = line.split(|b| matches!(b, b' ' | b'\t' | b'=')).filter(|w| !w.is_empty());
        if words.next().is_some_and(|keyword| keyword.eq_ignore_ascii_case(b"AUTH")) {
            found.extend(words.map(<[u8]>::to_vec));
        }
    }
    found
}

impl Extensions {
    /// Keywords are compared without regard to case; what is not known is passed over.
    pub fn of(reply: &Reply) -> Extensions {
        let mut found = Extensions::default();
        for line in reply.lines().skip(1) {
            let mut words = line.split(|b| matches!(b, b' ' | b'\t')).filter(|w| !w.is_empty());
            let Some(keyword) = words.next() else { continue };
            if keyword.eq_ignore_ascii_case(b"PIPELINING") {
                found.pipelining = true;
            } else if keyword.eq_ignore_ascii_case(b"8BITMIME") {
                found.eight_bit_mime = true;
            } else if keyword.eq_ignore_ascii_case(b"SIZE") {
                found.size = true;
            } else if keyword.eq_ignore_ascii_case(b"STARTTLS") {
                found.start_tls = true;
            } else if keyword.eq_ignore_ascii_case(b"REQUIRETLS") {
                found.require_tls = true;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: &[u8]) -> Reply {
        let mut parser = Parser::new();
        let (used, reply) = parser.take(bytes);
        assert_eq!(used, bytes.len());
        reply.unwrap()
    }

    #[test]
    fn one_line_is_a_reply() {
        let reply = whole(b"250 ok\r\n");
        assert_eq!((reply.code(), reply.text()), (Some(250), b"250 ok\n".as_slice()));
        assert_eq!(whole(b"220\r\n").code(), Some(220));
        assert_eq!(whole(b"250 \r\n").code(), Some(250));
        assert_eq!(whole(b"354 bare line feed\n").code(), Some(354));
    }

    #[test]
    fn several_lines_with_one_code_are_a_reply() {
        let reply = whole(b"550-no\r\n550-\r\n550 way\r\n");
        assert_eq!((reply.code(), reply.text()), (Some(550), b"550-no\n550-\n550 way\n".as_slice()));
        assert!(reply.is_permanent());
        assert_eq!(reply.lines().collect::<Vec<_>>(), [b"no".as_slice(), b"", b"way"]);
    }

    #[test]
    fn mechanisms_stand_behind_auth_in_either_form() {
        let reply = whole(
            b"250-mx\r\n250-STARTTLS\r\n250-auth PLAIN  CRAM-MD5\r\n250-AUTH=LOGIN\r\n250 AUTHOR X\r\n",
        );
        assert_eq!(mechanisms(&reply), [b"PLAIN".as_slice(), b"CRAM-MD5", b"LOGIN"]);
        assert!(Extensions::of(&reply).start_tls && !Extensions::of(&reply).require_tls);
        assert_eq!(
            mechanisms(&whole(b"250 AUTH PLAIN\r\n")),
            Vec::<Vec<u8>>::new(),
            "the first line is a greeting"
        );
    }

    #[test]
    fn what_is_no_reply_has_no_code() {
        for bad in [
            b"25\r\n".as_slice(),
            b"\r\n",
            b"2x0 ok\r\n",
            b"150 wait\r\n",
            b"650 what\r\n",
            b"050 what\r\n",
            b"2500 ok\r\n",
            b"250x\r\n",
            b"250\tok\r\n",
            b" 250 ok\r\n",
            b"ok\r\n",
            b"-250 ok\r\n",
            b"+25 ok\r\n",
            b"250-ok\r\n550 no\r\n",
            b"250-ok\r\n251 ok\r\n",
            b"250-ok\r\nok\r\n",
            b"\xff\xfe\xfd ok\r\n",
            b"250\rok\n",
        ] {
            assert_eq!(whole(bad).code(), None, "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn replies_are_the_same_however_they_are_cut_into_pieces() {
        let stream = b"250-a\r\n250 b\r\n354 go\r\n".as_slice();
        for cut in 0..=stream.len() {
            let mut codes = Vec::new();
            let mut parser = Parser::new();
            for mut piece in [&stream[..cut], &stream[cut..]] {
                while !piece.is_empty() {
                    let (used, reply) = parser.take(piece);
                    piece = &piece[used..];
                    if let Some(reply) = reply {
                        codes.push(reply.code().unwrap());
                        parser = Parser::new();
                    }
                }
            }
            assert_eq!(codes, [250, 354]);
        }
    }

    #[test]
    fn the_text_is_cut_and_harmless() {
        let reply = whole(&[b"550 a\0b\rc".as_slice(), &b"x".repeat(30), b"\r\n"].concat());
        assert_eq!(reply.text(), [b"550 a?bc".as_slice(), &b"x".repeat(30), b"\n"].concat());
        let long = whole(
            &[b"250-".as_slice(), &b"y".repeat(4000), b"\r\n250-", &b"y".repeat(4000), b"\r\n250 \r\n"]
                .concat(),
        );
        assert_eq!(long.code(), Some(250));
        assert_eq!(long.text().len(), TEXT_MAX + 1);
        assert!(long.text().ends_with(b"y\n"));
    }

    #[test]
    fn endless_lines_and_endless_replies_end() {
        let mut parser = Parser::new();
        let (used, reply) = parser.take(&b"2".repeat(LINE_MAX * 2));
        assert_eq!((used, reply.unwrap().code()), (LINE_MAX + 1, None));
        let mut parser = Parser::new();
        let (used, reply) = parser.take(&b"250-more\r\n".repeat(REPLY_MAX));
        assert!(used <= REPLY_MAX + 1);
        assert_eq!(reply.unwrap().code(), None);
    }

    #[test]
    fn extensions_are_read_without_regard_to_case() {
        let reply = whole(b"250-me PIPELINING\r\n250-pipelining\r\n250-Size 1000\r\n250 8bitMIME x\r\n");
        assert_eq!(
            Extensions::of(&reply),
            Extensions { pipelining: true, eight_bit_mime: true, size: true, ..Extensions::default() }
        );
        let size =
            |line: &[u8]| Extensions::of(&whole(&[b"250-me\r\n250 ".as_slice(), line, b"\r\n"].concat()));
        assert!(size(b"SIZE").size && size(b"size 10k").size && !size(b"SIZES 1").size);
        assert_eq!(size(b"PIPELININGX"), Extensions::default());
        assert_eq!(Extensions::of(&whole(b"250 PIPELINING\r\n")), Extensions::default());
    }
}
