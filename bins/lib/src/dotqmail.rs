//! dotqmail - what a .qmail file says, and what a delivery tells its programs and mailboxes
//!
//! Pure: bytes in, values out. qmail-local carries it out.
#![forbid(unsafe_code)]

use crate::{date, quote};

/// How every control file of a user is named at its beginning.
const PREFIX: &[u8] = b".qmail";

/// What a control file is named at its end when it stands for all longer extensions.
const DEFAULT: &[u8] = b"default";

/// One line of a .qmail file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction<'a> {
    /// Nothing but blanks: ignored, but not allowed as the first line.
    Blank,
    /// A comment, or a `+` line that means nothing to us.
    Comment,
    /// `|COMMAND`
    Program(&'a [u8]),
    /// A path that ends in `/`.
    Maildir(&'a [u8]),
    /// A path that does not.
    Mbox(&'a [u8]),
    /// `&ADDRESS`, or anything else.
    Forward(&'a [u8]),
    /// `+list`: from here on only forwards are allowed.
    ForwardOnly,
    /// Holds a NUL, which no path, command or address can carry: a file damaged by a crash.
    Damaged,
}

impl<'a> Instruction<'a> {
    /// Reads one line, without its LF. Blanks at its end do not count; blanks at its beginning do.
    pub fn parse(line: &'a [u8]) -> Instruction<'a> {
        let line = trimmed(line);
        match line.split_first() {
            None => Instruction::Blank,
            Some((b'#', _)) => Instruction::Comment,
            _ if line.contains(&0) => Instruction::Damaged,
            Some((b'|', command)) => Instruction::Program(command),
            Some((b'/' | b'.', _)) if line.ends_with(b"/") => Instruction::Maildir(line),
            Some((b'/' | b'.', _)) => Instruction::Mbox(line),
            Some((b'&', address)) => Instruction::Forward(address),
            Some((b'+', b"list")) => Instruction::ForwardOnly,
            Some((b'+', _)) => Instruction::Comment,
            Some(_) => Instruction::Forward(line),
        }
    }
}

fn trimmed(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|b| !matches!(b, b' ' | b'\t')).map_or(0, |at| at + 1);
    line.get(..end).unwrap_or_default()
}

/// The instructions of a whole file. There is always at least one: an empty text is one blank line.
pub fn instructions(text: &[u8]) -> impl Iterator<Item = Instruction<'_>> {
    text.strip_suffix(b"\n").unwrap_or(text).split(|b| *b == b'\n').map(Instruction::parse)
}

/// A name under which a control file may be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub file: Vec<u8>,
    /// Where in the extension the part begins that `default` in the name stands for; None when the
    /// name does not end in `default`.
    pub default: Option<usize>,
}

/// The extension as file names spell it: lower case, and `:` for `.`, so that no extension leads
/// to another directory.
pub fn safe_extension(ext: &[u8]) -> Vec<u8> {
    ext.iter().map(|b| if *b == b'.' { b':' } else { b.to_ascii_lowercase() }).collect()
}

/// `.qmail` + dash + the whole safe extension + `end`.
pub fn control_name(dash: &[u8], ext: &[u8], end: &[u8]) -> Vec<u8> {
    [PREFIX, dash, &safe_extension(ext), end].concat()
}

/// Where to look for the control file, in order: the exact name, then a `default` for ever shorter
/// beginnings of the extension, cut at its hyphens.
pub fn candidates<'a>(dash: &'a [u8], ext: &'a [u8]) -> impl Iterator<Item = Candidate> + 'a {
    let safe = safe_extension(ext);
    let exact = Candidate {
        file: control_name(dash, ext, b""),
        default: safe.ends_with(DEFAULT).then(|| safe.len() - DEFAULT.len()),
    };
    let defaults = (0..=safe.len()).rev().filter_map(move |at| {
        let beginning = safe.get(..at)?;
        let file = [PREFIX, dash, beginning, DEFAULT].concat();
        (beginning.is_empty() || beginning.ends_with(b"-")).then_some(Candidate { file, default: Some(at) })
    });
    std::iter::once(exact).chain(defaults)
}

/// Who sends what the forwards of this recipient send on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// No owner file: the original sender.
    None,
    /// `…-owner` exists: bounces go there.
    Plain,
    /// `…-owner-default` exists as well: each recipient gets a bounce address of its own (VERP).
    EachRecipient,
}

/// Bounces and double bounces keep their sender whatever owner files there are: else a loop.
pub fn may_have_owner(sender: &[u8]) -> bool {
    !sender.is_empty() && sender != b"#@[]"
}

/// What a delivery is about: the arguments of qmail-local.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delivery {
    pub user: Vec<u8>,
    pub home: Vec<u8>,
    pub local: Vec<u8>,
    pub dash: Vec<u8>,
    pub ext: Vec<u8>,
    pub domain: Vec<u8>,
    pub sender: Vec<u8>,
    pub default_delivery: Vec<u8>,
}

impl Delivery {
    /// `local@domain`.
    pub fn recipient(&self) -> Vec<u8> {
        [self.local.as_slice(), b"@", &self.domain].concat()
    }

    /// `Delivered-To:` line, LF included. A LF in the address must not start a header line.
    pub fn delivered_to(&self) -> Vec<u8> {
        header_line(b"Delivered-To: ", &self.recipient(), b"")
    }

    /// `Return-Path:` line, LF included.
    pub fn return_path(&self) -> Vec<u8> {
        header_line(b"Return-Path: <", &quote::address(&self.sender), b">")
    }

    /// The From_ line of an mbox, LF included: `From SENDER DATE`.
    pub fn from_line(&self, seconds: u64) -> Vec<u8> {
        let mut line = b"From ".to_vec();
        if self.sender.is_empty() {
            line.extend_from_slice(b"MAILER-DAEMON");
        }
        line.extend(self.sender.iter().map(|b| if matches!(b, b' ' | b'\t' | b'\n') { b'-' } else { *b }));
        line.push(b' ');
        line.extend_from_slice(date::mbox(seconds).as_bytes());
        line.push(b'\n');
        line
    }

    /// The envelope sender of forwards.
    pub fn new_sender(&self, owner: Owner) -> Vec<u8> {
        match owner {
            Owner::None => self.sender.clone(),
            Owner::Plain => [self.local.as_slice(), b"-owner@", &self.domain].concat(),
            Owner::EachRecipient => [self.local.as_slice(), b"-owner-@", &self.domain, b"-@[]"].concat(),
        }
    }

    /// The variables that a delivery's programs see, but for NEWSENDER and DEFAULT.
    pub fn variables(&self, seconds: u64) -> Vec<(&'static str, Vec<u8>)> {
        let host2 = before_last_dot(&self.domain);
        let host3 = before_last_dot(host2);
        let ext2 = after_hyphen(&self.ext);
        let ext3 = after_hyphen(ext2);
        vec![
            ("SENDER", self.sender.clone()),
            ("RECIPIENT", self.recipient()),
            ("LOCAL", self.local.clone()),
            ("HOST", self.domain.clone()),
            ("USER", self.user.clone()),
            ("HOME", self.home.clone()),
            ("EXT", self.ext.clone()),
            ("EXT2", ext2.to_vec()),
            ("EXT3", ext3.to_vec()),
            ("EXT4", after_hyphen(ext3).to_vec()),
            ("HOST2", host2.to_vec()),
            ("HOST3", host3.to_vec()),
            ("HOST4", before_last_dot(host3).to_vec()),
            ("DTLINE", self.delivered_to()),
            ("RPLINE", self.return_path()),
            ("UFLINE", self.from_line(seconds)),
        ]
    }

    /// The value of DEFAULT, for the file that was used.
    pub fn default(&self, used: &Candidate) -> Option<&[u8]> {
        self.ext.get(used.default?..)
    }
}

fn header_line(before: &[u8], content: &[u8], after: &[u8]) -> Vec<u8> {
    let content: Vec<u8> = content.iter().map(|b| if *b == b'\n' { b'_' } else { *b }).collect();
    [before, &content, after, b"\n"].concat()
}

fn before_last_dot(domain: &[u8]) -> &[u8] {
    memchr::memrchr(b'.', domain).and_then(|at| domain.get(..at)).unwrap_or(domain)
}

fn after_hyphen(ext: &[u8]) -> &[u8] {
    memchr::memchr(b'-', ext).and_then(|at| ext.get(at + 1..)).unwrap_or_default()
}

/// What a program's exit code does to the delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Continue,
    /// Success, and the lines behind this one are not read.
    Stop,
    Permanent,
    Temporary,
}

/// The meaning of exit codes: qmail's own, and those of sysexits.h that are final (qmail-command(8)).
pub fn verdict(code: i32) -> Verdict {
    match code {
        0 => Verdict::Continue,
        99 => Verdict::Stop,
        100 | 64 | 65 | 70 | 76 | 77 | 78 | 112 => Verdict::Permanent,
        _ => Verdict::Temporary,
    }
}

#[cfg(test)]
mod tests {
    use super::Instruction::*;
    use super::*;

    fn names(dash: &[u8], ext: &[u8]) -> Vec<String> {
        candidates(dash, ext).map(|c| String::from_utf8(c.file).unwrap()).collect()
    }

    fn delivery() -> Delivery {
        Delivery {
            user: b"joe".to_vec(),
            home: b"/home/joe".to_vec(),
            local: b"joe-a-b".to_vec(),
            dash: b"-".to_vec(),
            ext: b"a-b".to_vec(),
            domain: b"x.example.com".to_vec(),
            sender: b"s@h".to_vec(),
            default_delivery: b"./Mailbox".to_vec(),
        }
    }

    #[test]
    fn each_kind_of_line_is_known_by_its_first_byte() {
        let cases: [(&[u8], Instruction); 17] = [
            (b"", Blank),
            (b" \t", Blank),
            (b"# x", Comment),
            (b"#\0", Comment),
            (b"| cmd x \t", Program(b" cmd x")),
            (b"|", Program(b"")),
            (b"./Maildir/", Maildir(b"./Maildir/")),
            (b"/abs/dir/ ", Maildir(b"/abs/dir/")),
            (b"./Mailbox", Mbox(b"./Mailbox")),
            (b".x", Mbox(b".x")),
            (b"&joe@x", Forward(b"joe@x")),
            (b"& joe@x", Forward(b" joe@x")),
            (b"joe@x", Forward(b"joe@x")),
            (b" # no comment", Forward(b" # no comment")),
            (b"+list", ForwardOnly),
            (b"+lists", Comment),
            (b"a\0b", Damaged),
        ];
        for (line, meaning) in cases {
            assert_eq!(Instruction::parse(line), meaning, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_missing_final_line_feed_makes_no_difference() {
        let both: Vec<_> = instructions(b"a\n\n|b").collect();
        assert_eq!(both, [Forward(b"a"), Blank, Program(b"b")]);
        assert_eq!(instructions(b"a\n\n|b\n").collect::<Vec<_>>(), both);
        assert_eq!(instructions(b"").collect::<Vec<_>>(), [Blank]);
        assert_eq!(instructions(b"a\n\n").collect::<Vec<_>>(), [Forward(b"a"), Blank]);
    }

    #[test]
    fn the_search_goes_from_the_exact_name_to_ever_wider_defaults() {
        assert_eq!(
            names(b"-", b"a-b-c"),
            [".qmail-a-b-c", ".qmail-a-b-default", ".qmail-a-default", ".qmail-default"]
        );
        assert_eq!(names(b"-", b"a-"), [".qmail-a-", ".qmail-a-default", ".qmail-default"]);
        assert_eq!(names(b"", b""), [".qmail", ".qmaildefault"]);
        assert_eq!(names(b"-", b""), [".qmail-", ".qmail-default"]);
        assert_eq!(names(b"-", b"A.B/c"), [".qmail-a:b/c", ".qmail-default"]);
    }

    #[test]
    fn default_is_the_part_of_the_extension_that_the_name_left_open() {
        let d = Delivery { ext: b"A-B-C".to_vec(), ..delivery() };
        let of: Vec<_> = candidates(b"-", &d.ext).map(|c| d.default(&c).map(<[u8]>::to_vec)).collect();
        assert_eq!(of, [None, Some(b"C".to_vec()), Some(b"B-C".to_vec()), Some(b"A-B-C".to_vec())]);
        let d = Delivery { ext: b"x-Default".to_vec(), ..delivery() };
        let exact = candidates(b"-", &d.ext).next().unwrap();
        assert_eq!(d.default(&exact), Some(b"Default".as_slice()));
    }

    #[test]
    fn hosts_lose_a_label_from_the_end_and_extensions_a_word_from_the_beginning() {
        let d = Delivery { ext: b"a-b--c".to_vec(), ..delivery() };
        let of = |name| d.variables(0).into_iter().find(|(n, _)| *n == name).map(|(_, v)| v).unwrap();
        assert_eq!(of("HOST2"), b"x.example");
        assert_eq!(of("HOST3"), b"x");
        assert_eq!(of("HOST4"), b"x");
        assert_eq!(of("EXT2"), b"b--c");
        assert_eq!(of("EXT3"), b"-c");
        assert_eq!(of("EXT4"), b"c");
    }

    #[test]
    fn lines_cannot_be_broken_by_what_stands_in_an_address() {
        let d = Delivery { local: b"a\nb".to_vec(), sender: b"x y\nz\t@h".to_vec(), ..delivery() };
        assert_eq!(d.delivered_to(), b"Delivered-To: a_b@x.example.com\n");
        assert_eq!(d.return_path(), b"Return-Path: <\"x y\\_z\t\"@h>\n");
        assert_eq!(d.from_line(0), b"From x-y-z-@h Thu Jan 01 00:00:00 1970\n");
        let bounce = Delivery { sender: Vec::new(), ..d };
        assert_eq!(bounce.return_path(), b"Return-Path: <>\n");
        assert_eq!(bounce.from_line(0), b"From MAILER-DAEMON Thu Jan 01 00:00:00 1970\n");
    }

    #[test]
    fn an_owner_takes_the_bounces_unless_it_is_a_bounce() {
        let d = delivery();
        assert_eq!(d.new_sender(Owner::None), b"s@h");
        assert_eq!(d.new_sender(Owner::Plain), b"joe-a-b-owner@x.example.com");
        assert_eq!(d.new_sender(Owner::EachRecipient), b"joe-a-b-owner-@x.example.com-@[]");
        assert!(may_have_owner(b"s@h") && !may_have_owner(b"") && !may_have_owner(b"#@[]"));
    }

    #[test]
    fn exit_codes_in_doubt_are_temporary() {
        assert_eq!(verdict(0), Verdict::Continue);
        assert_eq!(verdict(99), Verdict::Stop);
        for code in [100, 64, 65, 70, 76, 77, 78, 112] {
            assert_eq!(verdict(code), Verdict::Permanent);
        }
        for code in [1, 2, 66, 67, 75, 101, 111, 126, 127, 255] {
            assert_eq!(verdict(code), Verdict::Temporary);
        }
    }
}
