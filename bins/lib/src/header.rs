//! header - the fields of a message header: where the header ends, and which fields mean something
//!
//! `Reader` is fed a message in pieces and says where its body begins; it holds the header and nothing
//! else. Fields are kept as they are, continuation lines and final LF included.
#![forbid(unsafe_code)]

/// A header larger than this is refused: it is held in memory, and 100,000 recipients with their names
/// fit in.
pub const HEADER_MAX: usize = 8 * 1024 * 1024;

/// A line whose first colon stands beyond this is not a field. The longest field names in use have
/// about 40 bytes; a body without header may begin with any long line, which must not be held.
pub const NAME_MAX: usize = 1000;

/// What mbox files have between messages, found inside a header (delivered mail fed back by hand).
const FROM_LINE: &[u8] = b"From ";
const MBOX_LINE: &[u8] = b"MBOX-Line: ";

/// Fields that somebody here treats in a special way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    To,
    Cc,
    Bcc,
    ApparentlyTo,
    ResentTo,
    ResentCc,
    ResentBcc,
    Sender,
    From,
    ReplyTo,
    ReturnReceiptTo,
    ErrorsTo,
    ReturnPath,
    ResentSender,
    ResentFrom,
    ResentReplyTo,
    Date,
    MessageId,
    ResentDate,
    ResentMessageId,
    MailFollowupTo,
    ContentLength,
    /// Any other.
    Other,
}

/// Their names, in lower case.
const KNOWN: [(&[u8], Field); 22] = [
    (b"to", Field::To),
    (b"cc", Field::Cc),
    (b"bcc", Field::Bcc),
    (b"apparently-to", Field::ApparentlyTo),
    (b"resent-to", Field::ResentTo),
    (b"resent-cc", Field::ResentCc),
    (b"resent-bcc", Field::ResentBcc),
    (b"sender", Field::Sender),
    (b"from", Field::From),
    (b"reply-to", Field::ReplyTo),
    (b"return-receipt-to", Field::ReturnReceiptTo),
    (b"errors-to", Field::ErrorsTo),
    (b"return-path", Field::ReturnPath),
    (b"resent-sender", Field::ResentSender),
    (b"resent-from", Field::ResentFrom),
    (b"resent-reply-to", Field::ResentReplyTo),
    (b"date", Field::Date),
    (b"message-id", Field::MessageId),
    (b"resent-date", Field::ResentDate),
    (b"resent-message-id", Field::ResentMessageId),
    (b"mail-followup-to", Field::MailFollowupTo),
    (b"content-length", Field::ContentLength),
];

impl Field {
    /// Recognises a field by its name, in any case.
    pub fn named(name: &[u8]) -> Field {
        KNOWN
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map_or(Field::Other, |(_, field)| *field)
    }

    /// Holds addresses that the message goes to, unless it is resent.
    pub fn is_recipient(self) -> bool {
        matches!(self, Field::To | Field::Cc | Field::Bcc | Field::ApparentlyTo)
    }

    /// Holds addresses that a resent message goes to.
    pub fn is_resent_recipient(self) -> bool {
        matches!(self, Field::ResentTo | Field::ResentCc | Field::ResentBcc)
    }

    /// Holds addresses of those the message comes from, or answers go to.
    pub fn is_sender(self) -> bool {
        use Field::*;
        matches!(
            self,
            Sender
                | From
                | ReplyTo
                | ReturnReceiptTo
                | ErrorsTo
                | ReturnPath
                | ResentSender
                | ResentFrom
                | ResentReplyTo
        )
    }

    /// One of these makes a message a resent one (rfc822:4.2).
    pub fn makes_resent(self) -> bool {
        use Field::*;
        matches!(
            self,
            ResentSender
                | ResentFrom
                | ResentReplyTo
                | ResentTo
                | ResentCc
                | ResentBcc
                | ResentDate
                | ResentMessageId
        )
    }

    /// Never leaves with the message.
    pub fn is_private(self) -> bool {
        matches!(self, Field::Bcc | Field::ResentBcc | Field::ReturnPath | Field::ContentLength)
    }
}

fn blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// What the beginning of a line says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// A field whose colon stands here.
    Colon(usize),
    NotField,
    /// Could be either as far as it goes.
    Open,
}

fn shape(line: &[u8]) -> Shape {
    let start = line.get(..line.len().min(NAME_MAX)).unwrap_or_default();
    let name = start.iter().take_while(|b| matches!(b, 33..=126) && **b != b':').count();
    let blanks = start.iter().skip(name).take_while(|b| blank(**b)).count();
    match start.get(name + blanks) {
        Some(b':') if name > 0 => Shape::Colon(name + blanks),
        Some(_) => Shape::NotField,
        None if line.len() >= NAME_MAX => Shape::NotField,
        None => Shape::Open,
    }
}

/// The name of a field, without the blanks before the colon, and what stands behind the colon. None when
/// the line is not a field.
pub fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let Shape::Colon(colon) = shape(line) else { return None };
    let (name, value) = line.split_at(colon);
    let length = name.iter().rposition(|b| !blank(*b)).map_or(0, |at| at + 1);
    Some((name.get(..length).unwrap_or_default(), value.get(1..).unwrap_or_default()))
}

/// Why a header was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// A continuation line that continues nothing.
    Invalid(Vec<u8>),
    /// More than `HEADER_MAX` bytes.
    TooLong,
}

/// The fields of a header, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    text: Vec<u8>,
    /// Where each field begins.
    starts: Vec<usize>,
}

impl Header {
    /// Each field whole: its lines with their LFs.
    pub fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let ends = self.starts.iter().skip(1).copied().chain(std::iter::once(self.text.len()));
        self.starts.iter().zip(ends).filter_map(|(start, end)| self.text.get(*start..end))
    }

    /// Each field recognised.
    pub fn known(&self) -> impl Iterator<Item = (Field, &[u8])> {
        self.fields().map(|field| (split(field).map_or(Field::Other, |(name, _)| Field::named(name)), field))
    }
}

/// Collects a header from a message that comes in pieces.
#[derive(Debug, Default)]
pub struct Reader {
    header: Header,
    /// Where the line that is not yet whole begins in `header.text`.
    line: usize,
    /// That line is known to belong to the header, however long it gets.
    certain: bool,
}

impl Reader {
    pub fn new() -> Reader {
        Reader::default()
    }

    /// Takes the next piece. None: the header goes on. Otherwise the body's first bytes, the empty line
    /// included (it is added when the header ends without one); what comes after this piece is body.
    pub fn feed(&mut self, mut piece: &[u8]) -> Result<Option<Vec<u8>>, Wrong> {
        while !piece.is_empty() {
            let end = memchr::memchr(b'\n', piece).map_or(piece.len(), |at| at + 1);
            let (now, later) = piece.split_at(end);
            self.header.text.extend_from_slice(now);
            let whole = now.ends_with(b"\n");
            if self.take_line(whole)? {
                let mut body = self.header.text.split_off(self.line);
                if body != b"\n" {
                    body.insert(0, b'\n');
                }
                body.extend_from_slice(later);
                return Ok(Some(body));
            }
            if self.header.text.len() > HEADER_MAX {
                return Err(Wrong::TooLong);
            }
            piece = later;
        }
        Ok(None)
    }

    /// Looks at the last line; true when the body begins with it.
    fn take_line(&mut self, whole: bool) -> Result<bool, Wrong> {
        let line = self.header.text.get(self.line..).unwrap_or_default();
        if !self.certain {
            let first = line.first().copied().unwrap_or(b'\n');
            if first == b'\n' {
                return Ok(true);
            } else if blank(first) {
                if self.header.starts.is_empty() {
                    return if whole || line.len() > NAME_MAX { Err(self.invalid()) } else { Ok(false) };
                }
            } else {
                match shape(line) {
                    Shape::Colon(_) => self.header.starts.push(self.line),
                    Shape::Open if !whole => return Ok(false),
                    _ if line.starts_with(FROM_LINE) => {
                        self.header.starts.push(self.line);
                        self.header.text.splice(self.line..self.line, MBOX_LINE.iter().copied());
                    }
                    _ => return Ok(true),
                }
            }
            self.certain = true;
        }
        if whole {
            self.line = self.header.text.len();
            self.certain = false;
        }
        Ok(false)
    }

    fn invalid(&self) -> Wrong {
        let line = self.header.text.get(self.line..).unwrap_or_default();
        Wrong::Invalid(line.strip_suffix(b"\n").unwrap_or(line).to_vec())
    }

    /// The message ended inside its header. Gives what turned out to be body, most often nothing.
    pub fn end(&mut self) -> Result<Vec<u8>, Wrong> {
        if self.line == self.header.text.len() {
            return Ok(Vec::new());
        }
        self.header.text.push(b'\n');
        if self.take_line(true)? {
            let mut body = self.header.text.split_off(self.line);
            body.pop(); // a body ends as it ended
            body.insert(0, b'\n');
            return Ok(body);
        }
        Ok(Vec::new())
    }

    /// The header, once `feed` gave the body's beginning or `end` was called.
    pub fn finish(self) -> Header {
        self.header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields, and the body from the empty line on; None as the body when there is none.
    fn read(message: &[u8], piece: usize) -> Result<(Vec<String>, Option<String>), Wrong> {
        let mut reader = Reader::new();
        let mut body: Option<Vec<u8>> = None;
        for part in message.chunks(piece) {
            match &mut body {
                Some(body) => body.extend_from_slice(part),
                None => body = reader.feed(part)?,
            }
        }
        if body.is_none() {
            body = Some(reader.end()?).filter(|b| !b.is_empty());
        }
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        Ok((reader.finish().fields().map(text).collect(), body.map(|b| text(&b))))
    }

    fn agreed(message: &str) -> (Vec<String>, Option<String>) {
        let whole = read(message.as_bytes(), usize::MAX);
        for piece in 1..5 {
            assert_eq!(read(message.as_bytes(), piece), whole, "in pieces of {piece}");
        }
        whole.unwrap()
    }

    fn both(fields: &[&str], body: Option<&str>) -> (Vec<String>, Option<String>) {
        (fields.iter().map(|f| f.to_string()).collect(), body.map(str::to_string))
    }

    #[test]
    fn a_header_ends_at_the_first_empty_line() {
        assert_eq!(
            agreed("A: b\n c\nD : e\n\nbody\n\n"),
            both(&["A: b\n c\n", "D : e\n"], Some("\nbody\n\n"))
        );
        assert_eq!(agreed("\nA: b\n"), both(&[], Some("\nA: b\n")));
        assert_eq!(agreed("A: b\n\n"), both(&["A: b\n"], Some("\n")));
    }

    #[test]
    fn a_header_may_end_with_the_message() {
        assert_eq!(agreed("A: b\n"), both(&["A: b\n"], None));
        assert_eq!(agreed("A: b"), both(&["A: b\n"], None));
        assert_eq!(agreed("A: b\n c"), both(&["A: b\n c\n"], None));
        assert_eq!(agreed(""), both(&[], None));
    }

    #[test]
    fn a_line_that_is_no_field_begins_the_body_behind_an_empty_line() {
        assert_eq!(agreed("A: b\nhello, world\nC: d\n"), both(&["A: b\n"], Some("\nhello, world\nC: d\n")));
        assert_eq!(agreed("no newline"), both(&[], Some("\nno newline")));
        assert_eq!(agreed("word"), both(&[], Some("\nword")));
        assert_eq!(agreed("A: b\n: c\n"), both(&["A: b\n"], Some("\n: c\n")));
        assert_eq!(agreed("A: b\n\u{e9}: c\n"), both(&["A: b\n"], Some("\n\u{e9}: c\n")));
        assert_eq!(agreed("A: b\r\n\r\nbody"), both(&["A: b\r\n"], Some("\n\r\nbody")));
    }

    #[test]
    fn an_mbox_line_becomes_a_field() {
        assert_eq!(
            agreed("From joe Mon Nov 16\nA: b\n\nFrom x\n"),
            both(&["MBOX-Line: From joe Mon Nov 16\n", "A: b\n"], Some("\nFrom x\n"))
        );
        assert_eq!(agreed("A: b\nFrom x\n y\n"), both(&["A: b\n", "MBOX-Line: From x\n y\n"], None));
        assert_eq!(agreed("From "), both(&["MBOX-Line: From \n"], None));
        assert_eq!(agreed("From : joe\n"), both(&["From : joe\n"], None));
    }

    #[test]
    fn a_continuation_of_nothing_is_refused() {
        assert_eq!(read(b" A: b\n\n", 100), Err(Wrong::Invalid(b" A: b".to_vec())));
        assert_eq!(read(b"\tx", 1), Err(Wrong::Invalid(b"\tx".to_vec())));
        assert_eq!(agreed("A: b\n \n\t\nC: d\n"), both(&["A: b\n \n\t\n", "C: d\n"], None));
    }

    #[test]
    fn a_long_line_without_colon_is_body_before_it_ends() {
        let mut reader = Reader::new();
        assert_eq!(reader.feed(&[b'x'; NAME_MAX - 1]), Ok(None));
        let body = reader.feed(b"xx").unwrap().unwrap();
        assert_eq!(body.len(), NAME_MAX + 2);
        assert_eq!(reader.finish().fields().count(), 0);
    }

    #[test]
    fn a_header_without_end_is_refused() {
        for line in [b"A: b\n".as_slice(), b"A: b", b"A: b\n c"] {
            let mut reader = Reader::new();
            reader.feed(line).unwrap();
            let fill = if line.ends_with(b"\n") { b"B: c\n".repeat(1000) } else { vec![b'x'; 5000] };
            let pieces = (0..).take_while(|_| reader.feed(&fill).is_ok()).count();
            assert_eq!(pieces, (HEADER_MAX - line.len()) / fill.len());
        }
    }

    #[test]
    fn a_field_splits_at_its_colon_and_its_name_has_no_blanks() {
        assert_eq!(split(b"To \t: x: y\n"), Some((b"To".as_slice(), b" x: y\n".as_slice())));
        assert_eq!(split(b"To:"), Some((b"To".as_slice(), b"".as_slice())));
        assert_eq!(split(b"T o: x\n"), None);
        assert_eq!(split(b":x\n"), None);
    }

    #[test]
    fn fields_are_known_in_any_case() {
        assert_eq!(Field::named(b"tO"), Field::To);
        assert_eq!(Field::named(b"RESENT-message-id"), Field::ResentMessageId);
        assert_eq!(Field::named(b"X-To"), Field::Other);
        assert_eq!(KNOWN.iter().filter(|(_, f)| f.is_recipient() || f.is_resent_recipient()).count(), 7);
        assert_eq!(KNOWN.iter().filter(|(_, f)| f.is_sender()).count(), 9);
        assert_eq!(KNOWN.iter().filter(|(_, f)| f.makes_resent()).count(), 8);
        assert_eq!(KNOWN.iter().filter(|(_, f)| f.is_private()).count(), 4);
    }
}
