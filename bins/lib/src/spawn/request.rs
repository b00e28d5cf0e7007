//! request - one delivery asked for: slot, message path, sender, recipient
#![forbid(unsafe_code)]

use super::slot::{Slot, Width};

/// A message path longer than this is refused; an honest one is `22/` and 20 digits.
const PATH_MAX: usize = 99;
/// An address is at most 1002 bytes; a virtual domain's prefix and a VERP sender may multiply that.
/// Beyond this the request counts as one there is no memory for.
pub const FIELD_MAX: usize = 16 * 1024;

/// One delivery as qmail-send asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Which of qmail-send's slots the report is for.
    pub slot: Slot,
    /// `S/N`, relative to `queue/mess`.
    pub path: Vec<u8>,
    pub sender: Vec<u8>,
    pub recipient: Vec<u8>,
    /// A field was longer than this program keeps; what is here is its beginning.
    pub cut: bool,
}

impl Request {
    /// The bytes of the request: slot, then three fields each ended by a NUL.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.slot.encode();
        for field in [&self.path, &self.sender, &self.recipient] {
            out.extend_from_slice(field);
            out.push(0);
        }
        out
    }

    /// The part of the recipient before its last `@`, and the part behind it.
    pub fn local_and_domain(&self) -> (&[u8], &[u8]) {
        let at = memchr::memrchr(b'@', &self.recipient).unwrap_or(self.recipient.len());
        let (local, rest) = self.recipient.split_at(at);
        (local, rest.get(1..).unwrap_or_default())
    }

    /// The recipient's host, in small letters.
    pub fn host(&self) -> Vec<u8> {
        self.local_and_domain().1.to_ascii_lowercase()
    }

    /// Whether the recipients of both may be given to one delivery: same message, sender and host.
    pub fn is_mate_of(&self, other: &Request) -> bool {
        self.path == other.path
            && self.sender == other.sender
            && self.local_and_domain().1.eq_ignore_ascii_case(other.local_and_domain().1)
    }

    /// The checks that need nothing but the request, in the order of the specification. `busy` tells
    /// whether a slot has a delivery already. The error is the report, letter and text.
    pub fn check(&self, limit: u16, busy: impl Fn(Slot) -> bool) -> Result<(), &'static [u8]> {
        if self.cut {
            return Err(b"Zqmail-spawn out of memory. (#4.3.0)\n");
        }
        if self.slot.number() >= limit {
            return Err(b"ZInternal error: delnum too big. (#4.3.5)\n");
        }
        if busy(self.slot) {
            return Err(b"ZInternal error: delnum in use. (#4.3.5)\n");
        }
        if self.path.starts_with(b"/") || !self.path.iter().all(|b| b.is_ascii_digit() || *b == b'/') {
            return Err(b"DInternal error: messid has nonnumerics. (#5.3.5)\n");
        }
        if self.path.len() > PATH_MAX {
            return Err(b"DInternal error: messid too long. (#5.3.5)\n");
        }
        if self.path.is_empty() {
            return Err(b"DInternal error: messid too short. (#5.3.5)\n");
        }
        if !self.recipient.contains(&b'@') {
            return Err(b"DSorry, address must include host name. (#5.1.3)\n");
        }
        Ok(())
    }
}

/// Puts requests together from bytes as they come.
#[derive(Debug, Default)]
pub struct Parser {
    width: Width,
    /// As far as it has come.
    slot: Vec<u8>,
    fields: Vec<Vec<u8>>,
    current: Vec<u8>,
    cut: bool,
}

impl Parser {
    /// For slots of this width.
    pub fn new(width: Width) -> Parser {
        Parser { width, ..Parser::default() }
    }

    /// Takes the next bytes; gives the requests that are complete with them.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Vec<Request> {
        let mut complete = Vec::new();
        loop {
            if self.slot.len() < self.width.bytes() {
                let Some((byte, rest)) = bytes.split_first() else { return complete };
                self.slot.push(*byte);
                bytes = rest;
                continue;
            }
            let end = memchr::memchr(0, bytes);
            self.keep(bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default());
            let Some(end) = end else { return complete };
            bytes = bytes.get(end + 1..).unwrap_or_default();
            self.fields.push(std::mem::take(&mut self.current));
            if self.fields.len() == 3 {
                complete.extend(self.finish());
            }
        }
    }

    /// Whether the beginning of a request has come and its end has not.
    pub fn is_within(&self) -> bool {
        !self.slot.is_empty()
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = FIELD_MAX - self.current.len();
        if bytes.len() > room {
            self.cut = true;
        }
        self.current.extend_from_slice(bytes.get(..bytes.len().min(room)).unwrap_or_default());
    }

    fn finish(&mut self) -> Option<Request> {
        let mut fields = std::mem::take(&mut self.fields).into_iter();
        let cut = std::mem::take(&mut self.cut);
        let (slot, _) = self.width.split(&std::mem::take(&mut self.slot))?;
        Some(Request { slot, path: fields.next()?, sender: fields.next()?, recipient: fields.next()?, cut })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(slot: u8, path: &[u8], sender: &[u8], recipient: &[u8]) -> Request {
        Request {
            slot: slot.into(),
            path: path.to_vec(),
            sender: sender.to_vec(),
            recipient: recipient.to_vec(),
            cut: false,
        }
    }

    #[test]
    fn the_worked_example_of_the_specification() {
        let wanted = request(3, b"20/457", b"", b"f@g");
        assert_eq!(wanted.encode(), b"\x0320/457\0\0f@g\0");
        assert_eq!(Parser::default().feed(b"\x0320/457\0\0f@g\0"), [wanted]);
    }

    #[test]
    fn requests_come_in_pieces_and_slot_zero_is_no_terminator() {
        let bytes =
            [request(0, b"1/2", b"a@b", b"c@d").encode(), request(7, b"3/4", b"", b"e@f").encode()].concat();
        let mut parser = Parser::default();
        let found: Vec<Request> = bytes.iter().flat_map(|b| parser.feed(&[*b])).collect();
        assert_eq!(found, [request(0, b"1/2", b"a@b", b"c@d"), request(7, b"3/4", b"", b"e@f")]);
    }

    #[test]
    fn a_parser_knows_whether_it_stands_between_requests() {
        let mut parser = Parser::default();
        for byte in request(0, b"1/2", b"a@b", b"c@d").encode() {
            parser.feed(&[byte]);
        }
        assert!(!parser.is_within());
        parser.feed(b"\0");
        assert!(parser.is_within());
    }

    #[test]
    fn mates_share_message_sender_and_host() {
        let one = request(1, b"1/2", b"a@b", b"c@d.example");
        assert!(one.is_mate_of(&request(2, b"1/2", b"a@b", b"e@D.Example")));
        assert!(!one.is_mate_of(&request(2, b"1/3", b"a@b", b"e@d.example")));
        assert!(!one.is_mate_of(&request(2, b"1/2", b"A@b", b"e@d.example")));
        assert!(!one.is_mate_of(&request(2, b"1/2", b"a@b", b"e@f.example")));
    }

    #[test]
    fn a_field_beyond_the_limit_is_cut_and_the_next_request_is_whole() {
        let long = request(1, b"1/2", &vec![b'x'; FIELD_MAX + 1], b"c@d").encode();
        let mut parser = Parser::default();
        let mut found = parser.feed(&long);
        found.extend(parser.feed(&request(2, b"1/2", b"", b"c@d").encode()));
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0].check(LIMIT.into(), |_| false),
            Err(b"Zqmail-spawn out of memory. (#4.3.0)\n".as_slice())
        );
        assert_eq!(found[1].check(LIMIT.into(), |_| false), Ok(()));
    }

    const LIMIT: u8 = crate::spawn::LIMIT;

    fn refused(request: Request) -> String {
        let report = request.check(LIMIT.into(), |slot| slot == 9.into()).unwrap_err();
        String::from_utf8(report.to_vec()).unwrap()
    }

    #[test]
    fn the_checks_come_in_their_order() {
        assert!(refused(request(120, b"x", b"", b"")).starts_with("ZInternal error: delnum too big."));
        assert!(refused(request(9, b"x", b"", b"")).starts_with("ZInternal error: delnum in use."));
        assert!(refused(request(1, b"x", b"", b"")).starts_with("DInternal error: messid has nonnumerics."));
        assert!(refused(request(1, b"/1", b"", b"")).starts_with("DInternal error: messid has nonnumerics."));
        assert!(
            refused(request(1, b"../1", b"", b"")).starts_with("DInternal error: messid has nonnumerics.")
        );
        assert!(refused(request(1, &[b'1'; 100], b"", b"")).starts_with("DInternal error: messid too long."));
        assert!(refused(request(1, b"", b"", b"")).starts_with("DInternal error: messid too short."));
        assert!(
            refused(request(1, b"1/1", b"", b"x")).starts_with("DSorry, address must include host name.")
        );
    }

    #[test]
    fn the_last_at_sign_parts_local_and_domain() {
        assert_eq!(request(0, b"", b"", b"a@b@c").local_and_domain(), (b"a@b".as_slice(), b"c".as_slice()));
        assert_eq!(request(0, b"", b"", b"@c").local_and_domain(), (b"".as_slice(), b"c".as_slice()));
    }
}
