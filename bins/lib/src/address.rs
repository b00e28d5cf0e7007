//! address - RFC 822 address lists: tokens, structure, completion of hosts, and back to text
//!
//! `parse` takes what stands behind the colon of a field and gives a `List`; `List::addresses` gives
//! envelope addresses, `List::text` the field's new text. A list is read from its right end, as
//! qmail-inject always did: what stands before a `<` or a `:` is a name, whatever it looks like.
//! Time and memory are linear in the text; tokens point into it.
#![forbid(unsafe_code)]

use crate::quote;
use std::borrow::Cow;
use std::ops::Range;

/// Most tokens of one list: 100,000 addresses with names and dotted hosts stay well below, and the
/// table of tokens stays below 64 MiB.
pub const TOKENS_MAX: usize = 2_000_000;

/// Lines of rewritten lists are broken after commas when they would become longer than this.
pub const COLUMNS: usize = 80;

/// Why a text is not an address list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// A `"` without its end.
    Quote,
    /// A `(` without its end, or a `)` where a token would start.
    Comment,
    /// A `[` without its end, or a `]` where a token would start.
    Literal,
    /// `:` without `;`, or `;` inside an open group.
    Group,
    /// `>` without `<`, `<` with nothing behind it, or a list inside `<` and `>`.
    Angle,
    /// A NUL inside an address: no envelope can carry it.
    Nul,
    /// More than `TOKENS_MAX` tokens.
    TooMany,
    /// Not exactly one address where one was asked for.
    NotOne,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Atom,
    Quoted,
    Literal,
    Comment,
    Dot,
    At,
    Comma,
    Semicolon,
    Colon,
    Open,
    Close,
}

impl Kind {
    fn of_special(byte: u8) -> Option<Kind> {
        Some(match byte {
            b'.' => Kind::Dot,
            b'@' => Kind::At,
            b',' => Kind::Comma,
            b';' => Kind::Semicolon,
            b':' => Kind::Colon,
            b'<' => Kind::Open,
            b'>' => Kind::Close,
            _ => return None,
        })
    }

    fn is_word(self) -> bool {
        matches!(self, Kind::Atom | Kind::Quoted | Kind::Literal)
    }

    /// What a name before `<` or `:` may consist of.
    fn in_phrase(self) -> bool {
        self.is_word() || matches!(self, Kind::Dot | Kind::At | Kind::Comment)
    }
}

/// A piece of the text, with its delimiters and backslashes.
#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    kind: Kind,
    raw: &'a [u8],
    /// Blanks stood before it.
    spaced: bool,
}

fn blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn ends_atom(byte: u8) -> bool {
    blank(byte) || matches!(byte, b'(' | b'[' | b'"') || Kind::of_special(byte).is_some()
}

/// The length of the quoted string, comment or literal that `text` starts with.
fn delimited(text: &[u8], open: u8, close: u8) -> Option<usize> {
    let mut depth = 0usize;
    let mut bytes = text.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        if *byte == b'\\' {
            bytes.next();
        } else if *byte == close && at > 0 {
            depth -= 1;
            if depth == 0 {
                return Some(at + 1);
            }
        } else if *byte == open && (depth == 0 || open == b'(') {
            depth += 1; // only comments nest (rfc822:3.4.3)
        }
    }
    None
}

fn atom_length(text: &[u8]) -> usize {
    let mut bytes = text.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        if *byte == b'\\' {
            bytes.next();
        } else if ends_atom(*byte) {
            return at;
        }
    }
    text.len()
}

fn tokens(text: &[u8]) -> Result<Vec<Token<'_>>, Wrong> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut spaced = false;
    while let Some(first) = rest.first() {
        if blank(*first) {
            spaced = true;
            rest = rest.get(1..).unwrap_or_default();
            continue;
        }
        let (kind, length) = match first {
            b'"' => (Kind::Quoted, delimited(rest, b'"', b'"').ok_or(Wrong::Quote)?),
            b'(' => (Kind::Comment, delimited(rest, b'(', b')').ok_or(Wrong::Comment)?),
            b'[' => (Kind::Literal, delimited(rest, b'[', b']').ok_or(Wrong::Literal)?),
            b')' => return Err(Wrong::Comment),
            b']' => return Err(Wrong::Literal),
            byte => match Kind::of_special(*byte) {
                Some(kind) => (kind, 1),
                None => (Kind::Atom, atom_length(rest)),
            },
        };
        if found.len() == TOKENS_MAX {
            return Err(Wrong::TooMany);
        }
        let (raw, behind) = rest.split_at(length.min(rest.len()));
        found.push(Token { kind, raw, spaced });
        rest = behind;
        spaced = false;
    }
    Ok(found)
}

impl<'a> Token<'a> {
    /// What it means: delimiters, backslashes and line breaks removed.
    fn value(&self) -> Cow<'a, [u8]> {
        let inner = match self.kind {
            Kind::Quoted | Kind::Literal | Kind::Comment => {
                self.raw.get(1..self.raw.len().saturating_sub(1)).unwrap_or_default()
            }
            _ => self.raw,
        };
        if memchr::memchr2(b'\\', b'\n', inner).is_none() {
            return Cow::Borrowed(inner);
        }
        let mut value = Vec::with_capacity(inner.len());
        pairs(inner, |pair| value.extend(pair.last()));
        Cow::Owned(value)
    }

    /// As it stands in a name: unchanged but for line breaks, and atoms that no reader would take for one.
    fn write(&self, out: &mut Vec<u8>) {
        match self.kind {
            Kind::Atom => write_atom(&self.value(), out),
            Kind::Quoted | Kind::Literal | Kind::Comment => {
                pairs(self.raw, |pair| out.extend_from_slice(pair))
            }
            _ => out.extend_from_slice(self.raw),
        }
    }
}

/// Gives every byte, or backslash and byte, of `raw` that is not part of a line break.
fn pairs(raw: &[u8], mut each: impl FnMut(&[u8])) {
    let mut at = 0;
    while let Some(byte) = raw.get(at) {
        let next = raw.get(at + 1);
        let length = match (byte, next) {
            (b'\\', Some(_)) => 2,
            (b'\r', Some(b'\n')) => 2,
            _ => 1,
        };
        let pair = raw.get(at..at + length).unwrap_or_default();
        if pair.last() != Some(&b'\n') && pair != b"\\" {
            each(pair);
        }
        at += length;
    }
}

/// rfc822:3.3: printable, not a blank, not a special.
fn plain_atom(value: &[u8]) -> bool {
    let safe = |b: &u8| (33..=126).contains(b) && !ends_atom(*b) && !matches!(b, b')' | b']' | b'\\');
    !value.is_empty() && value.iter().all(safe)
}

fn write_atom(value: &[u8], out: &mut Vec<u8>) {
    if plain_atom(value) {
        out.extend_from_slice(value);
    } else {
        out.extend_from_slice(&quote::quoted_string(value));
    }
}

/// One part of an address: a word, a dot or an `@`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part<'a> {
    kind: Kind,
    value: Cow<'a, [u8]>,
}

impl Part<'_> {
    fn mark(kind: Kind) -> Part<'static> {
        Part { kind, value: Cow::Borrowed(if kind == Kind::At { b"@" } else { b"." }) }
    }
}

/// An address, by its parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Address<'a> {
    parts: Vec<Part<'a>>,
}

impl<'a> Address<'a> {
    /// Words side by side, which only happen inside `<` and `>`, become one quoted word: `<a b@c>` is
    /// `<"a b"@c>`, a strange address but the one that was written.
    fn of(tokens: &[Token<'a>]) -> Address<'a> {
        let mut parts: Vec<Part<'a>> = Vec::new();
        for token in tokens.iter().filter(|t| t.kind != Kind::Comment) {
            let joins = |kind| matches!(kind, Kind::Atom | Kind::Quoted);
            match parts.last_mut() {
                Some(last) if joins(last.kind) && joins(token.kind) => {
                    let joined = last.value.to_mut();
                    joined.push(b' ');
                    joined.extend_from_slice(&token.value());
                    last.kind = Kind::Quoted;
                }
                _ => parts.push(Part { kind: token.kind, value: token.value() }),
            }
        }
        Address { parts }
    }

    fn last_kind(&self) -> Option<Kind> {
        self.parts.last().map(|p| p.kind)
    }

    fn drop_last(&mut self, kind: Kind) {
        if self.last_kind() == Some(kind) {
            self.parts.pop();
        }
    }

    fn append(&mut self, mark: Kind, host: &Host) {
        if !host.0.is_empty() {
            self.parts.push(Part::mark(mark));
            self.parts.extend(host.0.iter().cloned());
        }
    }

    fn host(&self) -> Option<&[Part<'a>]> {
        let at = self.parts.iter().rposition(|p| p.kind == Kind::At)?;
        self.parts.get(at + 1..)
    }

    /// The rewriting rules: what an address lacks is added (qmail-header(5)).
    pub fn complete(&mut self, with: &Completion) {
        match self.parts.as_slice() {
            // `@[]` marks addresses that are not for rewriting
            [.., Part { kind: Kind::At, .. }, Part { kind: Kind::Literal, value }] if value.is_empty() => {
                return;
            }
            _ => {}
        }
        self.drop_last(Kind::Dot);
        self.drop_last(Kind::At);
        if self.parts.is_empty() {
            return;
        }
        if self.host().is_none() {
            self.append(Kind::At, &with.default_host);
        }
        self.complete_plus(&with.plus_domain);
        let whole = |p: &Part<'_>| matches!(p.kind, Kind::Dot | Kind::Literal);
        if self.host().is_some_and(|host| !host.iter().any(whole)) {
            self.append(Kind::Dot, &with.default_domain);
        }
    }

    fn complete_plus(&mut self, plus_domain: &Host) {
        if self.host().is_none_or(<[_]>::is_empty) {
            return;
        }
        let Some(last) = self.parts.last_mut() else { return };
        if last.kind != Kind::Atom || !last.value.ends_with(b"+") {
            return;
        }
        last.value.to_mut().pop();
        if !last.value.is_empty() {
            self.append(Kind::Dot, plus_domain);
        } else {
            self.parts.pop(); // a host of "+" alone, or ".+", is the domain itself
            self.parts.extend(plus_domain.0.iter().cloned());
        }
    }

    /// As an envelope carries it: no quotes, no comments.
    pub fn envelope(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for part in &self.parts {
            if part.kind == Kind::Literal {
                out.push(b'[');
                out.extend_from_slice(&part.value);
                out.push(b']');
            } else {
                out.extend_from_slice(&part.value);
            }
        }
        out
    }

    /// As a header field carries it: quoted where it must be.
    pub fn text(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for part in &self.parts {
            match part.kind {
                Kind::Atom => write_atom(&part.value, &mut out),
                Kind::Quoted => out.extend_from_slice(&quote::quoted_string(&part.value)),
                Kind::Literal => write_literal(&part.value, &mut out),
                _ => out.extend_from_slice(&part.value),
            }
        }
        out
    }
}

fn write_literal(value: &[u8], out: &mut Vec<u8>) {
    out.push(b'[');
    for byte in value {
        if matches!(byte, b'[' | b']' | b'\\' | b'\r') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out.push(b']');
}

/// A host name as text to complete addresses with. The empty one completes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Host(Vec<Part<'static>>);

impl Host {
    fn parse(text: &[u8]) -> Result<Host, Wrong> {
        let found = tokens(text)?;
        if found.iter().any(|t| !t.kind.is_word() && t.kind != Kind::Dot) || text.contains(&0) {
            return Err(Wrong::NotOne);
        }
        let own = |p: Part<'_>| Part { kind: p.kind, value: Cow::Owned(p.value.into_owned()) };
        Ok(Host(Address::of(&found).parts.into_iter().map(own).collect()))
    }
}

/// What addresses are completed with: policy, given by value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Completion {
    default_host: Host,
    default_domain: Host,
    plus_domain: Host,
}

impl Completion {
    /// For addresses without `@`. Not a host name: `Wrong`, and nothing changes.
    pub fn set_default_host(&mut self, text: &[u8]) -> Result<(), Wrong> {
        self.default_host = Host::parse(text)?;
        Ok(())
    }

    /// For hosts without dot.
    pub fn set_default_domain(&mut self, text: &[u8]) -> Result<(), Wrong> {
        self.default_domain = Host::parse(text)?;
        Ok(())
    }

    /// For hosts that end in `+`.
    pub fn set_plus_domain(&mut self, text: &[u8]) -> Result<(), Wrong> {
        self.plus_domain = Host::parse(text)?;
        Ok(())
    }
}

/// An element of a list; the ranges are of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    /// `name <address> after`, or without angles `(comments) address (comments)`.
    Mailbox { name: Range<usize>, angle: bool, address: Range<usize>, after: Range<usize> },
    /// `name:`
    GroupStart(Range<usize>),
    /// `;` and the comments behind it.
    GroupEnd(Range<usize>),
    /// Comments where an address could stand.
    Remark(Range<usize>),
}

/// A parsed address list.
#[derive(Debug, Clone)]
pub struct List<'a> {
    tokens: Vec<Token<'a>>,
    items: Vec<Item>,
}

/// Parses the body of an address field.
pub fn parse(text: &[u8]) -> Result<List<'_>, Wrong> {
    let tokens = tokens(text)?;
    let items = Arranger { tokens: &tokens, at: tokens.len(), open_group: None, items: Vec::new() }.run()?;
    Ok(List { tokens, items })
}

/// Parses a text that must be one address, as command lines give it: what needs quotes is quoted first.
pub fn one(text: &[u8], completion: &Completion) -> Result<Address<'static>, Wrong> {
    if memchr::memchr2(b'\n', 0, text).is_some() {
        return Err(Wrong::NotOne); // no header and no SMTP command could carry it
    }
    let quoted = quote::address(text);
    let list = parse(&quoted)?;
    let [Item::Mailbox { address, .. }] = list.items.as_slice() else { return Err(Wrong::NotOne) };
    let mut found = list.address(address);
    found.complete(completion);
    let own = |p: Part<'_>| Part { kind: p.kind, value: Cow::Owned(p.value.into_owned()) };
    Ok(Address { parts: found.parts.into_iter().map(own).collect() })
}

/// Reads tokens from the right and finds the items, last first.
struct Arranger<'t, 'a> {
    tokens: &'t [Token<'a>],
    /// Tokens from here on have been dealt with.
    at: usize,
    /// Where in `items` the `;` is whose `:` was not yet met.
    open_group: Option<usize>,
    items: Vec<Item>,
}

impl Arranger<'_, '_> {
    fn run(mut self) -> Result<Vec<Item>, Wrong> {
        while self.at > 0 {
            let end = self.at;
            self.at = self.before_comments(end);
            let comments = self.at..end;
            match self.kind_before(self.at) {
                None => self.remark(comments),
                Some(Kind::Comma) => {
                    self.remark(comments);
                    self.at -= 1;
                }
                Some(Kind::Semicolon) => self.semicolon(comments)?,
                Some(Kind::Colon) => {
                    self.remark(comments);
                    self.colon()?;
                }
                Some(Kind::Close) => self.angle(comments)?,
                Some(Kind::Open) => return Err(Wrong::Angle),
                Some(_) => self.bare(comments)?,
            }
        }
        if let Some(at) = self.open_group {
            // `a; b`: nobody opened the group, people mean a comma
            let Some(Item::GroupEnd(after)) = self.items.get(at).cloned() else { return Err(Wrong::Group) };
            if after.is_empty() {
                self.items.remove(at);
            } else if let Some(item) = self.items.get_mut(at) {
                *item = Item::Remark(after);
            }
        }
        self.items.reverse();
        Ok(self.items)
    }

    fn kind_before(&self, at: usize) -> Option<Kind> {
        self.tokens.get(at.checked_sub(1)?).map(|t| t.kind)
    }

    fn before_comments(&self, mut at: usize) -> usize {
        while self.kind_before(at) == Some(Kind::Comment) {
            at -= 1;
        }
        at
    }

    fn before_phrase(&self, mut at: usize) -> usize {
        while self.kind_before(at).is_some_and(Kind::in_phrase) {
            at -= 1;
        }
        at
    }

    fn remark(&mut self, comments: Range<usize>) {
        if !comments.is_empty() {
            self.items.push(Item::Remark(comments));
        }
    }

    fn semicolon(&mut self, after: Range<usize>) -> Result<(), Wrong> {
        if self.open_group.is_some() {
            return Err(Wrong::Group);
        }
        self.open_group = Some(self.items.len());
        self.items.push(Item::GroupEnd(after));
        self.at -= 1;
        Ok(())
    }

    fn colon(&mut self) -> Result<(), Wrong> {
        self.open_group.take().ok_or(Wrong::Group)?;
        let end = self.at - 1;
        self.at = self.before_phrase(end);
        self.items.push(Item::GroupStart(self.at..end));
        Ok(())
    }

    fn angle(&mut self, after: Range<usize>) -> Result<(), Wrong> {
        let close = self.at - 1;
        let mut start = close;
        let mut route = false;
        let open = loop {
            match self.kind_before(start).ok_or(Wrong::Angle)? {
                Kind::Open => break start - 1,
                Kind::Close | Kind::Semicolon => return Err(Wrong::Angle),
                Kind::Comma if !route => return Err(Wrong::Angle),
                Kind::Colon if !route => {
                    route = true; // what stands before it is a source route (rfc822:6.1), and dropped
                    self.at = start;
                }
                _ => {}
            }
            start -= 1;
        };
        let address = if route { self.at..close } else { open + 1..close };
        self.mailbox(open, address, after)
    }

    /// A mailbox with angles whose `<` is at `open`, and the name before it.
    fn mailbox(&mut self, open: usize, address: Range<usize>, after: Range<usize>) -> Result<(), Wrong> {
        self.at = self.before_phrase(open);
        self.push_mailbox(self.at..open, true, address, after)
    }

    fn push_mailbox(
        &mut self,
        name: Range<usize>,
        angle: bool,
        address: Range<usize>,
        after: Range<usize>,
    ) -> Result<(), Wrong> {
        let parts = self.tokens.get(address.clone()).unwrap_or_default();
        if parts.iter().any(|t| t.kind != Kind::Comment && t.raw.contains(&0)) {
            return Err(Wrong::Nul);
        }
        self.items.push(Item::Mailbox { name, angle, address, after });
        Ok(())
    }

    /// An address without angles: words joined by dots and `@`. Two words side by side are two
    /// addresses whose comma was forgotten.
    fn bare(&mut self, after: Range<usize>) -> Result<(), Wrong> {
        let end = self.at;
        let mut start = end;
        let mut look = end;
        let mut after_word = false;
        while let Some(kind) = self.kind_before(look) {
            match kind {
                Kind::Comment => {}
                Kind::Dot | Kind::At => {
                    after_word = false;
                    start = look - 1;
                }
                word if word.is_word() && !after_word => {
                    after_word = true;
                    start = look - 1;
                }
                _ => break,
            }
            look -= 1;
        }
        match self.kind_before(look) {
            Some(Kind::Open) => self.mailbox(look - 1, look..end, after), // its `>` was forgotten
            None | Some(Kind::Comma | Kind::Semicolon | Kind::Colon) => {
                self.at = look;
                self.push_mailbox(look..start, false, start..end, after)
            }
            Some(_) => {
                self.at = start; // comments to the left belong to the neighbour there
                self.push_mailbox(start..start, false, start..end, after)
            }
        }
    }
}

impl<'a> List<'a> {
    fn tokens(&self, range: &Range<usize>) -> &[Token<'a>] {
        self.tokens.get(range.clone()).unwrap_or_default()
    }

    fn address(&self, range: &Range<usize>) -> Address<'a> {
        Address::of(self.tokens(range))
    }

    /// Every address, completed, from left to right. `<>` is the empty one.
    pub fn addresses(&self, completion: &Completion) -> impl Iterator<Item = Address<'a>> {
        self.items.iter().filter_map(move |item| match item {
            Item::Mailbox { address, .. } => {
                let mut found = self.address(address);
                found.complete(completion);
                Some(found)
            }
            _ => None,
        })
    }

    /// The list as text with every address completed, folded at `COLUMNS`; `column` is where it starts.
    pub fn text(&self, completion: &Completion, column: usize) -> Vec<u8> {
        let mut folder = Folder { out: Vec::new(), column, first: true };
        let mut chunk = Vec::new();
        let mut items = self.items.iter().peekable();
        while let Some(item) = items.next() {
            self.write_item(item, completion, &mut chunk);
            match (item, items.peek()) {
                (Item::GroupStart(_), _) => chunk.push(b' '),
                (_, None | Some(Item::GroupEnd(_))) => {}
                _ => {
                    chunk.push(b',');
                    folder.put(&mut chunk);
                }
            }
        }
        folder.put(&mut chunk);
        folder.out
    }

    fn write_item(&self, item: &Item, completion: &Completion, out: &mut Vec<u8>) {
        match item {
            Item::Remark(comments) => write_phrase(self.tokens(comments), out),
            Item::GroupStart(name) => {
                write_phrase(self.tokens(name), out);
                out.push(b':');
            }
            Item::GroupEnd(after) => {
                out.push(b';');
                self.write_comments(after, out);
            }
            Item::Mailbox { name, angle, address, after } => {
                if !name.is_empty() {
                    write_phrase(self.tokens(name), out);
                    out.push(b' ');
                }
                let mut found = self.address(address);
                found.complete(completion);
                let text = found.text();
                if *angle || text.is_empty() {
                    out.push(b'<');
                    out.extend_from_slice(&text);
                    out.push(b'>');
                } else {
                    out.extend_from_slice(&text);
                }
                self.write_comments(address, out);
                self.write_comments(after, out);
            }
        }
    }

    fn write_comments(&self, range: &Range<usize>, out: &mut Vec<u8>) {
        for comment in self.tokens(range).iter().filter(|t| t.kind == Kind::Comment) {
            out.push(b' ');
            comment.write(out);
        }
    }
}

/// Names keep the blanks they had, one for any number, so that `J. Q. Public` stays what it is.
fn write_phrase(tokens: &[Token<'_>], out: &mut Vec<u8>) {
    let mut last: Option<Kind> = None;
    for token in tokens {
        let mark = |kind| matches!(kind, Kind::Dot | Kind::At);
        if last.is_some_and(|last| token.spaced || (!mark(last) && !mark(token.kind))) {
            out.push(b' ');
        }
        token.write(out);
        last = Some(token.kind);
    }
}

struct Folder {
    out: Vec<u8>,
    column: usize,
    first: bool,
}

impl Folder {
    /// Appends a chunk, on a new line if it would reach beyond the last column, and empties it.
    fn put(&mut self, chunk: &mut Vec<u8>) {
        if chunk.is_empty() {
            return;
        }
        if !self.first {
            let fits = self.column + 1 + chunk.len() <= COLUMNS;
            self.out.extend_from_slice(if fits { b" " } else { b"\n  " });
            self.column = if fits { self.column + 1 } else { 2 };
        }
        self.first = false;
        self.column += chunk.len();
        self.out.append(chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion() -> Completion {
        let mut with = Completion::default();
        with.set_default_host(b"dh").unwrap();
        with.set_default_domain(b"def.dom").unwrap();
        with.set_plus_domain(b"plus.dom").unwrap();
        with
    }

    fn text(list: &str) -> String {
        String::from_utf8(parse(list.as_bytes()).unwrap().text(&completion(), 4)).unwrap()
    }

    fn envelope(list: &str) -> Vec<String> {
        let completion = completion();
        let list = parse(list.as_bytes()).unwrap();
        list.addresses(&completion).map(|a| String::from_utf8(a.envelope()).unwrap()).collect()
    }

    #[test]
    fn the_example_of_the_specification_comes_out_as_written_there() {
        let list = "fred, bob@host, (c) <sue@a.b+>, x@y. , <@r1,@r2:z@q>, me@[1.2.3.4], grp: a, b;";
        let long = "fred@dh.def.dom, bob@host.def.dom, (c) <sue@a.b.plus.dom>, x@y.def.dom, \
                    <z@q.def.dom>, me@[1.2.3.4], grp: a@dh.def.dom, b@dh.def.dom;";
        assert_eq!(text(list).replace("\n  ", " "), long);
        assert_eq!(
            envelope(list),
            [
                "fred@dh.def.dom",
                "bob@host.def.dom",
                "sue@a.b.plus.dom",
                "x@y.def.dom",
                "z@q.def.dom",
                "me@[1.2.3.4]",
                "a@dh.def.dom",
                "b@dh.def.dom"
            ]
        );
    }

    #[test]
    fn lines_break_after_commas_before_they_pass_eighty_columns() {
        let list = "a123456789@example.com, b123456789@example.com, c123456789@example.com, d@example.com";
        let folded = text(list);
        assert_eq!(
            folded,
            "a123456789@example.com, b123456789@example.com, c123456789@example.com,\n  d@example.com"
        );
        let exact = format!("{}@x.y, b@x.y", "a".repeat(80 - 4 - 5 - 6));
        assert_eq!(text(&exact), exact, "80 columns are not too many");
        let over = format!("a{exact}");
        assert_eq!(text(&over), over.replace(", ", ",\n  "));
    }

    #[test]
    fn an_address_too_long_for_a_line_is_not_broken() {
        let long = format!("{}@x.y", "a".repeat(200));
        assert_eq!(text(&format!("b@x.y, {long}, c@x.y")), format!("b@x.y,\n  {long},\n  c@x.y"));
    }

    #[test]
    fn what_an_address_lacks_is_added() {
        for (given, completed) in [
            ("joe", "joe@dh.def.dom"),
            ("joe@host", "joe@host.def.dom"),
            ("joe@host.dom", "joe@host.dom"),
            ("joe@host+", "joe@host.plus.dom"),
            ("joe@a.b+", "joe@a.b.plus.dom"),
            ("joe@+", "joe@plus.dom"),
            ("joe@host.", "joe@host.def.dom"),
            ("joe@a.b.", "joe@a.b"),
            ("joe@", "joe@dh.def.dom"),
            ("joe@.", "joe@dh.def.dom"),
            ("joe.", "joe@dh.def.dom"),
            ("joe@[127.1]", "joe@[127.1]"),
            ("joe@[127.1].", "joe@[127.1]"),
            ("joe+", "joe+@dh.def.dom"),
            ("a@b@c", "a@b@c.def.dom"),
            ("@host", "@host.def.dom"),
            ("joe@[]", "joe@[]"),
            ("list-@host-@[]", "list-@host-@[]"),
        ] {
            assert_eq!(envelope(given), [completed], "{given}");
        }
    }

    #[test]
    fn the_empty_address_and_what_becomes_empty_stay_empty() {
        assert_eq!(text("<>"), "<>");
        assert_eq!(envelope("<>"), [""]);
        assert_eq!(text("Nobody <>, joe@x.y"), "Nobody <>, joe@x.y");
        assert_eq!(text("<.>"), "<>");
        assert_eq!(text("@"), "<>");
    }

    #[test]
    fn an_empty_completion_adds_nothing() {
        let none = Completion::default();
        let list = parse(b"joe, joe@host, joe@host+").unwrap();
        assert_eq!(list.text(&none, 0), b"joe, joe@host, joe@host");
    }

    #[test]
    fn a_completion_may_need_completion_itself() {
        let mut with = completion();
        with.set_default_host(b"dh+").unwrap();
        assert_eq!(parse(b"joe").unwrap().text(&with, 0), b"joe@dh.plus.dom");
        with.set_default_host(b"[10.0.0.1]").unwrap();
        assert_eq!(parse(b"joe").unwrap().text(&with, 0), b"joe@[10.0.0.1]");
        assert_eq!(with.set_default_host(b"a, b"), Err(Wrong::NotOne));
        assert_eq!(with.set_default_host(b"a@b"), Err(Wrong::NotOne));
        assert_eq!(with.set_plus_domain(b"a)"), Ok(()), "a parenthesis within an atom is one of its bytes");
        assert_eq!(with.set_plus_domain(b")"), Err(Wrong::Comment));
    }

    #[test]
    fn a_forgotten_comma_is_put_in() {
        assert_eq!(text("a@x.y b@x.y"), "a@x.y, b@x.y");
        assert_eq!(text("a b c"), "a@dh.def.dom, b@dh.def.dom, c@dh.def.dom");
        assert_eq!(text("<a@x.y> b@x.y <c@x.y>"), "<a@x.y>, b@x.y <c@x.y>");
        assert_eq!(text("<a@x.y> b@x.y"), "<a@x.y>, b@x.y");
        assert_eq!(text("a@x.y (A) b@x.y (B)"), "a@x.y (A), b@x.y (B)");
        assert_eq!(text("a@x.y grp: b@x.y;"), "a@x.y grp: b@x.y;", "a name takes all that stands before it");
        assert_eq!(text("<a@x.y> grp: b@x.y; c@x.y"), "<a@x.y>, grp: b@x.y;, c@x.y");
        assert_eq!(text("a@[1.2.3.4] b"), "a@[1.2.3.4], b@dh.def.dom");
    }

    #[test]
    fn commas_too_many_are_dropped() {
        assert_eq!(text(",, a@x.y ,, b@x.y,"), "a@x.y, b@x.y");
        assert_eq!(text(" , "), "");
        assert_eq!(text(""), "");
    }

    #[test]
    fn names_are_kept_whatever_they_look_like() {
        assert_eq!(text("a b@x <d@z.y>"), "a b@x <d@z.y>");
        assert_eq!(envelope("a b@x <d@z.y>"), ["d@z.y"]);
        assert_eq!(text("J.  Q.\tPublic<j@x.y>"), "J. Q. Public <j@x.y>");
        assert_eq!(text("\"Public, J\" \"Q.\" <j@x.y>"), "\"Public, J\" \"Q.\" <j@x.y>");
        assert_eq!(text("\"a\\\\b\\\"c\" <j@x.y>"), "\"a\\\\b\\\"c\" <j@x.y>");
    }

    #[test]
    fn comments_are_kept_and_never_part_of_an_address() {
        assert_eq!(text("(a (nested) b) joe(c)@(d)x.y (e)"), "(a (nested) b) joe@x.y (c) (d) (e)");
        assert_eq!(envelope("(a (nested) b) joe(c)@(d)x.y (e)"), ["joe@x.y"]);
        assert_eq!(text("Joe (c) <joe(d)@x.y>"), "Joe (c) <joe@x.y> (d)");
        assert_eq!(text("(only)"), "(only)");
        assert_eq!(text("(one), a@x.y, (two)"), "(one), a@x.y, (two)");
        assert_eq!(text("(quoted \\) paren) a@x.y"), "(quoted \\) paren) a@x.y");
    }

    #[test]
    fn groups_are_kept_and_do_not_nest() {
        assert_eq!(text("recipient list not shown: ;"), "recipient list not shown: ;");
        assert_eq!(text("g:;"), "g: ;");
        assert_eq!(text("a@x.y, g: b@x.y; (c), d@x.y"), "a@x.y, g: b@x.y; (c), d@x.y");
        assert_eq!(text("\"the list\": Joe <joe>, b;"), "\"the list\": Joe <joe@dh.def.dom>, b@dh.def.dom;");
        assert_eq!(envelope("g: a@x.y, b@x.y;, h: c@x.y;"), ["a@x.y", "b@x.y", "c@x.y"]);
        assert_eq!(parse(b"g: h: a;;").unwrap_err(), Wrong::Group);
        assert_eq!(parse(b"g: a").unwrap_err(), Wrong::Group);
    }

    #[test]
    fn one_semicolon_between_addresses_is_taken_for_a_comma() {
        assert_eq!(text("a@x.y; b@x.y"), "a@x.y, b@x.y");
        assert_eq!(text("a@x.y, b@x.y;"), "a@x.y, b@x.y");
        assert_eq!(text("a@x.y; (c)"), "a@x.y, (c)");
        assert_eq!(parse(b"a; b; c").unwrap_err(), Wrong::Group);
    }

    #[test]
    fn a_forgotten_closing_angle_is_put_in() {
        assert_eq!(text("Joe <joe@x.y"), "Joe <joe@x.y>");
        assert_eq!(text("Joe <joe@x.y, bob@x.y"), "Joe <joe@x.y>, bob@x.y");
        assert_eq!(text("Joe <joe@x.y, Bob <bob@x.y>"), "Joe <joe@x.y>, Bob <bob@x.y>");
        assert_eq!(parse(b"Joe <").unwrap_err(), Wrong::Angle);
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        for (list, wrong) in [
            ("\"a", Wrong::Quote),
            ("\"a\\\"", Wrong::Quote),
            ("a (b", Wrong::Comment),
            ("(a (b)", Wrong::Comment),
            (")", Wrong::Comment),
            ("a )b", Wrong::Comment),
            ("a@[1", Wrong::Literal),
            ("a ]", Wrong::Literal),
            ("a>", Wrong::Angle),
            ("<a>>", Wrong::Angle),
            ("<<a>>", Wrong::Angle),
            ("<a, b>", Wrong::Angle),
            ("<a; b>", Wrong::Angle),
            ("a: b", Wrong::Group),
            ("a\0b@x.y", Wrong::Nul),
        ] {
            assert_eq!(parse(list.as_bytes()).unwrap_err(), wrong, "{list}");
        }
        assert!(parse(b"na\0me <a@x.y> (\0)").is_ok(), "names may hold anything");
    }

    #[test]
    fn backslashes_quote_one_byte_also_in_atoms() {
        assert_eq!(envelope("a\\ b@x.y"), ["a b@x.y"]);
        assert_eq!(text("a\\ b@x.y"), "\"a b\"@x.y");
        assert_eq!(envelope("\"a\\\"b\"@x.y"), ["a\"b@x.y"]);
        assert_eq!(envelope("joe@[a\\]b]"), ["joe@[a]b]"]);
        assert_eq!(text("joe@[a\\]b]"), "joe@[a\\]b]");
        assert_eq!(text("a\\"), "a@dh.def.dom");
        assert_eq!(text("a)b]c@x.y"), "\"a)b]c\"@x.y");
    }

    #[test]
    fn bytes_beyond_ascii_survive_inside_quotes() {
        let list = parse(b"J\xfcrgen M. <j\xfcr@x.y>").unwrap();
        assert_eq!(list.text(&completion(), 0), b"\"J\xfcrgen\" M. <\"j\xfcr\"@x.y>");
        assert_eq!(list.addresses(&completion()).next().unwrap().envelope(), b"j\xfcr@x.y");
    }

    #[test]
    fn words_side_by_side_within_angles_are_one_strange_word() {
        assert_eq!(envelope("<joe user@x.y>"), ["joe user@x.y"]);
        assert_eq!(text("<joe user@x.y>"), "<\"joe user\"@x.y>");
    }

    #[test]
    fn routes_and_other_things_before_a_colon_within_angles_are_dropped() {
        assert_eq!(text("Joe <@a,@b:joe@x.y>"), "Joe <joe@x.y>");
        assert_eq!(text("<mailto:joe@x.y>"), "<joe@x.y>");
        assert_eq!(text("<@a:>"), "<>");
    }

    #[test]
    fn line_breaks_are_undone_before_anything_else() {
        assert_eq!(text("a@x.y,\n\tb@x.y"), "a@x.y, b@x.y");
        assert_eq!(text("\"Joe\n User\" (a\r\n b) <j@x.y>"), "\"Joe User\" (a b) <j@x.y>");
        assert_eq!(text("\"a\\\n\"@x.y"), "\"a\"@x.y");
    }

    #[test]
    fn an_argument_is_one_address_and_is_quoted_where_it_must_be() {
        let with = completion();
        let one = |text: &str| one(text.as_bytes(), &with).map(|a| String::from_utf8(a.envelope()).unwrap());
        assert_eq!(one("joe"), Ok("joe@dh.def.dom".to_string()));
        assert_eq!(one("a b@x.y"), Ok("a b@x.y".to_string()));
        assert_eq!(one("a, b"), Ok("a, b@dh.def.dom".to_string()));
        assert_eq!(one("list-@host-@[]"), Ok("list-@host-@[]".to_string()));
        assert_eq!(one("joe@x.y (Joe)"), Ok("joe@x.y".to_string()));
        assert_eq!(one("Joe <joe@x.y>"), Err(Wrong::Angle));
        assert_eq!(one("joe@x,y"), Err(Wrong::NotOne));
        assert_eq!(one(""), Err(Wrong::NotOne));
        assert_eq!(one("a\nb@x.y"), Err(Wrong::NotOne));
    }

    #[test]
    fn what_was_written_reads_as_the_same_list() {
        for list in [
            "fred, bob@host, (c) <sue@a.b+>, x@y. , <@r1,@r2:z@q>, me@[1.2.3.4], grp: a, b;",
            "a\\ b@x (c) d e: <f \"g\"@h>, (i) ; (j)",
            "J. Q. P <a@b.>, .x., @y, \"\"@z, a\\",
        ] {
            let once = text(list);
            assert_eq!(text(&once), once);
            assert_eq!(envelope(&once), envelope(list));
        }
    }

    #[test]
    fn long_lists_of_anything_end_soon() {
        const LENGTH: usize = 1 << 17; // quadratic work would be felt here
        for unit in [
            "a", "a ", "a,", "<", "a@b,", "(", "\"", "\\", ".", "@", "a:", ":", "<a>", "()", "g:a;", "<a a a",
        ] {
            let list = unit.repeat(LENGTH / unit.len());
            if let Ok(list) = parse(list.as_bytes()) {
                list.text(&completion(), 0);
                assert!(list.addresses(&completion()).count() <= LENGTH);
            }
        }
        let nested = "(".repeat(LENGTH) + &")".repeat(LENGTH);
        assert_eq!(text(&nested), nested);
        assert_eq!(envelope(&format!("<{}>", "a ".repeat(LENGTH))).len(), 1);
        assert_eq!(parse(&b".".repeat(TOKENS_MAX + 1)).unwrap_err(), Wrong::TooMany);
    }
}
