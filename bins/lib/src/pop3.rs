//! pop3 - the bytes of POP3: commands, numbers, Maildir names, unique ids, dot-stuffing
//!
//! qmail-popup and qmail-pop3d do the talking (RFC 1939, 2449, 3206).
#![forbid(unsafe_code)]

use crate::decimal;
use sha2::{Digest, Sha256};

/// A longer command line is refused. RFC 2449 wants 255; passwords and future arguments may be longer.
pub const LINE_MAX: usize = 4096;

/// Octets of a unique id (rfc1939:7).
const UIDL_MAX: usize = 70;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Apop,
    Auth,
    Capa,
    Dele,
    Last,
    List,
    Noop,
    Pass,
    Quit,
    Retr,
    Rset,
    Stat,
    Stls,
    Top,
    Uidl,
    User,
    Utf8,
    Unknown,
}

const VERBS: [(&[u8], Verb); 17] = [
    (b"APOP", Verb::Apop),
    (b"CAPA", Verb::Capa),
    (b"DELE", Verb::Dele),
    (b"LAST", Verb::Last),
    (b"LIST", Verb::List),
    (b"NOOP", Verb::Noop),
    (b"PASS", Verb::Pass),
    (b"QUIT", Verb::Quit),
    (b"RETR", Verb::Retr),
    (b"RSET", Verb::Rset),
    (b"STAT", Verb::Stat),
    (b"TOP", Verb::Top),
    (b"UIDL", Verb::Uidl),
    (b"USER", Verb::User),
    (b"AUTH", Verb::Auth),
    (b"STLS", Verb::Stls),
    (b"UTF8", Verb::Utf8),
];

/// One command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command<'a> {
    pub verb: Verb,
    /// What follows the verb and one space, to the end of the line: a password may begin and end with
    /// spaces.
    pub argument: &'a [u8],
}

impl<'a> Command<'a> {
    /// `line` without its LF; a CR before that is dropped.
    pub fn parse(line: &'a [u8]) -> Command<'a> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let at = memchr::memchr(b' ', line).unwrap_or(line.len());
        let (word, rest) = line.split_at(at);
        let verb =
            VERBS.iter().find(|(name, _)| word.eq_ignore_ascii_case(name)).map_or(Verb::Unknown, |(_, v)| *v);
        Command { verb, argument: rest.get(1..).unwrap_or_default() }
    }

    /// The argument's words. Clients put more than one space between them, and behind.
    pub fn words(&self) -> Vec<&'a [u8]> {
        self.argument.split(|b| *b == b' ').filter(|w| !w.is_empty()).collect()
    }

    /// The argument of USER: the whole, without blanks around; None when empty or with a NUL, which would
    /// shift the fields of the checker's descriptor 3.
    pub fn name(&self) -> Option<&'a [u8]> {
        let name = self.argument.trim_ascii();
        (!name.is_empty() && !name.contains(&0)).then_some(name)
    }

    /// The argument of PASS, every byte of it.
    pub fn password(&self) -> Option<&'a [u8]> {
        (!self.argument.is_empty() && !self.argument.contains(&0)).then_some(self.argument)
    }

    /// Name and digest of APOP.
    pub fn apop(&self) -> Option<(&'a [u8], &'a [u8])> {
        let both = self.name()?;
        let at = memchr::memrchr(b' ', both)?;
        let (name, digest) = both.split_at(at);
        Some((name.trim_ascii_end(), digest.get(1..).unwrap_or_default()))
    }
}

/// Why a message number is none. The texts are the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Syntax,
    Zero,
    TooHigh,
}

impl Refusal {
    pub fn text(self) -> &'static str {
        match self {
            Refusal::Syntax => "syntax error",
            Refusal::Zero => "messages are counted from 1",
            Refusal::TooHigh => "not that many messages",
        }
    }
}

/// A message number of a maildrop of `count` messages, as an index from 0. Digits to the end of the
/// word; one too large for us is too high, not another message.
pub fn message(word: &[u8], count: usize) -> Result<usize, Refusal> {
    match number(word)? {
        0 => Err(Refusal::Zero),
        n => match usize::try_from(n) {
            Ok(n) if n <= count => Ok(n - 1),
            _ => Err(Refusal::TooHigh),
        },
    }
}

/// A count of lines; one too large for us is as good as all.
pub fn number(word: &[u8]) -> Result<u64, Refusal> {
    if word.is_empty() || !word.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Syntax);
    }
    Ok(decimal::strict(word).unwrap_or(u64::MAX))
}

/// The part of a file name that never changes: up to the first `:`.
pub fn base(name: &[u8]) -> &[u8] {
    name.split(|b| *b == b':').next().unwrap_or_default()
}

/// What a Maildir file name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// Time of delivery: seconds, and the microseconds behind `M`. None when the name is of another make.
    pub time: Option<(u64, u32)>,
    /// `,S=`: bytes of the file.
    pub file_size: Option<u64>,
    /// `,W=`: bytes as sent, every line ended by CR LF.
    pub wire_size: Option<u64>,
}

impl Name {
    pub fn of(name: &[u8]) -> Name {
        let base = base(name);
        let mut fields = base.split(|b| *b == b',');
        let unique = fields.next().unwrap_or_default();
        let (mut file_size, mut wire_size) = (None, None);
        for field in fields {
            match field.split_at_checked(2) {
                Some((b"S=", value)) => file_size = decimal::strict(value),
                Some((b"W=", value)) => wire_size = decimal::strict(value),
                _ => {}
            }
        }
        Name { time: time(unique), file_size, wire_size }
    }
}

/// `SECONDS.UNIQUE.HOST`; in UNIQUE, `M` and digits at its beginning or behind another field's digits.
fn time(unique: &[u8]) -> Option<(u64, u32)> {
    let mut parts = unique.split(|b| *b == b'.');
    let seconds = decimal::strict(parts.next()?)?;
    let delivery = parts.next()?;
    let micros = memchr::memchr(b'M', delivery)
        .and_then(|at| delivery.get(at + 1..))
        .and_then(decimal::prefix)
        .and_then(|n| u32::try_from(n).ok())
        .unwrap_or(0);
    Some((seconds, micros))
}

/// The unique id of a message: the base name when it is fit to be one, else a hash of it.
pub fn unique_id(base: &[u8]) -> Vec<u8> {
    if is_unique_id(base) {
        return base.to_vec();
    }
    let digest = Sha256::digest(base);
    digest.iter().take(16).flat_map(|b| format!("{b:02x}").into_bytes()).collect()
}

/// 1 to 70 characters, 0x21 to 0x7E.
pub fn is_unique_id(text: &[u8]) -> bool {
    (1..=UIDL_MAX).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic)
}

/// One record of `dovecot-uidlist` version 3 that names a unique id: (base name, id).
/// `UID [Kvalue ...] :NAME`.
pub fn uidlist_record(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.windows(2).position(|w| w == b" :")?;
    let (fields, name) = line.split_at(at);
    let mut fields = fields.split(|b| *b == b' ');
    decimal::strict(fields.next()?)?;
    let id = fields.find_map(|f| f.strip_prefix(b"P")).filter(|id| is_unique_id(id))?;
    Some((base(name.get(2..)?), id))
}

/// Turns a file into what RETR sends: CR LF at every line end, a dot before a dot that begins a line.
#[derive(Debug)]
pub struct Stuffer {
    /// The last byte taken; a file begins as a line does.
    last: u8,
    empty: bool,
}

impl Default for Stuffer {
    fn default() -> Stuffer {
        Stuffer { last: b'\n', empty: true }
    }
}

impl Stuffer {
    /// Adds the encoding of these bytes to `out`.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        self.empty &= bytes.is_empty();
        while let Some(first) = bytes.first() {
            if self.last == b'\n' && *first == b'.' {
                out.push(b'.');
            }
            let Some(at) = memchr::memchr(b'\n', bytes) else {
                out.extend_from_slice(bytes);
                self.last = bytes.last().copied().unwrap_or(b'\n');
                return;
            };
            let (line, rest) = bytes.split_at(at);
            out.extend_from_slice(line);
            if line.last().copied().unwrap_or(self.last) != b'\r' {
                out.push(b'\r');
            }
            out.push(b'\n');
            self.last = b'\n';
            bytes = rest.get(1..).unwrap_or_default();
        }
    }

    /// Ends a last line that had no end.
    pub fn finish(self, out: &mut Vec<u8>) {
        if !self.empty && self.last != b'\n' {
            out.extend_from_slice(if self.last == b'\r' { b"\n" } else { b"\r\n" });
        }
    }
}

/// Counts how much of a message TOP sends: header, empty line, and so many lines of the body.
#[derive(Debug)]
pub struct Top {
    left: u64,
    in_body: bool,
    /// Bytes since the last LF; a lone CR does not make a line.
    line: Line,
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Empty,
    OnlyCr,
    Text,
}

impl Top {
    pub fn new(lines: u64) -> Top {
        Top { left: lines, in_body: false, line: Line::Empty }
    }

    /// How many of these bytes belong to the answer; fewer than all means that it is complete.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        for (at, byte) in bytes.iter().enumerate() {
            if self.in_body && self.left == 0 {
                return at;
            }
            match byte {
                b'\n' if self.in_body => self.left -= 1,
                b'\n' => {
                    self.in_body = self.line != Line::Text;
                    self.line = Line::Empty;
                }
                b'\r' if self.line == Line::Empty => self.line = Line::OnlyCr,
                _ => self.line = Line::Text,
            }
        }
        bytes.len()
    }

    /// Nothing more is wanted.
    pub fn is_complete(&self) -> bool {
        self.in_body && self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_do_not_care_for_case_and_lines_may_end_bare() {
        assert_eq!(Command::parse(b"retr 1\r"), Command { verb: Verb::Retr, argument: b"1" });
        assert_eq!(Command::parse(b"QUIT"), Command { verb: Verb::Quit, argument: b"" });
        assert_eq!(Command::parse(b"XTND x").verb, Verb::Unknown);
        assert_eq!(Command::parse(b"").verb, Verb::Unknown);
        assert_eq!(Command::parse(b"RETR\t1").verb, Verb::Unknown);
        assert_eq!(Command::parse(b"TOP  1   2 ").words(), [b"1".as_slice(), b"2"]);
    }

    #[test]
    fn a_password_keeps_its_spaces_and_a_nul_is_refused() {
        assert_eq!(Command::parse(b"PASS  a b \r").password(), Some(b" a b ".as_slice()));
        assert_eq!(Command::parse(b"PASS").password(), None);
        assert_eq!(Command::parse(b"PASS a\0b").password(), None);
        assert_eq!(Command::parse(b"USER joe\0root").name(), None);
        assert_eq!(Command::parse(b"USER  joe ").name(), Some(b"joe".as_slice()));
        assert_eq!(Command::parse(b"APOP joe abc").apop(), Some((b"joe".as_slice(), b"abc".as_slice())));
        assert_eq!(Command::parse(b"APOP joe").apop(), None);
    }

    #[test]
    fn numbers_are_digits_to_the_end_and_none_of_them_wraps() {
        assert_eq!(message(b"1", 1), Ok(0));
        assert_eq!(message(b"1a", 1), Err(Refusal::Syntax));
        assert_eq!(message(b"+1", 1), Err(Refusal::Syntax));
        assert_eq!(message(b"0", 1), Err(Refusal::Zero));
        assert_eq!(message(b"2", 1), Err(Refusal::TooHigh));
        assert_eq!(message(b"18446744073709551617", 1), Err(Refusal::TooHigh));
        assert_eq!(message(b"4294967297", 1), Err(Refusal::TooHigh));
    }

    #[test]
    fn names_tell_time_and_sizes() {
        let name = Name::of(b"1795201757.M629288P24879V0I1_0.host,S=16,W=19:2,S");
        assert_eq!(
            name,
            Name { time: Some((1_795_201_757, 629_288)), file_size: Some(16), wire_size: Some(19) }
        );
        let old = Name::of(b"1795201757.24879.host");
        assert_eq!(old, Name { time: Some((1_795_201_757, 0)), file_size: None, wire_size: None });
        assert_eq!(Name::of(b"hello").time, None);
        assert_eq!(Name::of(b"1.2.h,S=1x").file_size, None);
        assert_eq!(Name::of(b"1.2.h:2,S=9").file_size, None);
    }

    #[test]
    fn a_name_too_long_or_with_odd_bytes_gets_a_hash_for_id() {
        assert_eq!(unique_id(b"1.2.host,S=3"), b"1.2.host,S=3");
        assert_eq!(unique_id(&[b'a'; 70]), [b'a'; 70]);
        let hashed = unique_id(&[b'a'; 71]);
        assert_eq!((hashed.len(), is_unique_id(&hashed)), (32, true));
        assert_ne!(unique_id(b"a b"), unique_id(b"a  b"));
    }

    #[test]
    fn uidlist_records_override_only_when_they_name_an_id() {
        let record = uidlist_record(b"7 P000000016b009c82 S12 :1795201757.M8P2.vm,S=16:2,S");
        assert_eq!(record, Some((b"1795201757.M8P2.vm,S=16".as_slice(), b"000000016b009c82".as_slice())));
        assert_eq!(uidlist_record(b"1 :1795201757.M8P2.vm"), None);
        assert_eq!(uidlist_record(b"3 V1795200876 N3 G70c"), None);
        assert_eq!(uidlist_record(b"1 P :x"), None);
    }

    fn stuffed(pieces: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut stuffer = Stuffer::default();
        for piece in pieces {
            stuffer.push(piece, &mut out);
        }
        stuffer.finish(&mut out);
        out
    }

    #[test]
    fn lines_end_in_cr_lf_once_and_dots_are_doubled() {
        assert_eq!(stuffed(&[b".\n..\na.\n"]), b"..\r\n...\r\na.\r\n");
        assert_eq!(stuffed(&[b"a\r\nb\n"]), b"a\r\nb\r\n");
        assert_eq!(stuffed(&[b"a\r", b"\nb"]), b"a\r\nb\r\n");
        assert_eq!(stuffed(&[b"a\n", b".b"]), b"a\r\n..b\r\n");
        assert_eq!(stuffed(&[b"a", b".b"]), b"a.b\r\n");
        assert_eq!(stuffed(&[b"a\r.b\0\r"]), b"a\r.b\0\r\n");
        assert_eq!(stuffed(&[b"\n"]), b"\r\n");
        assert_eq!(stuffed(&[b"", b""]), b"");
    }

    #[test]
    fn top_is_the_header_the_empty_line_and_so_many_lines() {
        let message = b"A: b\r\nC: d\n\none\ntwo\nthree";
        let part = |lines| {
            let n = Top::new(lines).take(message);
            &message[..n]
        };
        assert_eq!(part(0), b"A: b\r\nC: d\n\n");
        assert_eq!(part(1), b"A: b\r\nC: d\n\none\n");
        assert_eq!(part(2), b"A: b\r\nC: d\n\none\ntwo\n");
        assert_eq!(part(9), message);
        assert_eq!(Top::new(0).take(b"A: b\r\n\r\nx"), 8);
        assert_eq!(Top::new(0).take(b"A: b\nno body"), 12);
        assert_eq!(Top::new(0).take(b"\nx"), 1);
    }
}
