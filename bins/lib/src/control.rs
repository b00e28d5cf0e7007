//! control - the one-value-a-file configuration
//!
//! `line`: the first line, trailing blanks removed; `int`: its leading digits; `list`: all lines but
//! empty ones and comments; `map`: a list of `key:value`. A missing file is the default; a file that
//! cannot be read is a temporary trouble that names it.
#![forbid(unsafe_code)]

use crate::trouble::Trouble;
use crate::{decimal, fd};
use std::collections::HashMap;

/// A control file larger than this is a mistake: 64 MiB hold more than a million domains.
pub const FILE_MAX: usize = 64 * 1024 * 1024;

/// The directory of control files.
#[derive(Debug, Clone)]
pub struct Control {
    directory: Vec<u8>,
}

impl Control {
    pub fn at(directory: impl Into<Vec<u8>>) -> Control {
        Control { directory: directory.into() }
    }

    /// The absolute path of a control file.
    pub fn path(&self, name: &str) -> Vec<u8> {
        [self.directory.as_slice(), b"/", name.as_bytes()].concat()
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Trouble> {
        fd::read_file(self.path(name), FILE_MAX)
            .map_err(|e| Trouble::unable("read", format!("control/{name}"), e).status("4.3.0"))
    }

    /// The first line; an existing empty file gives the empty line, not None.
    pub fn line(&self, name: &str) -> Result<Option<Vec<u8>>, Trouble> {
        Ok(self
            .read(name)?
            .map(|text| trimmed(text.split(|b| *b == b'\n').next().unwrap_or_default()).to_vec()))
    }

    /// The name of this host.
    pub fn me(&self) -> Result<Option<Vec<u8>>, Trouble> {
        self.line("me")
    }

    /// A line whose default is `control/me`; None when both are missing.
    pub fn line_or_me(&self, name: &str) -> Result<Option<Vec<u8>>, Trouble> {
        match self.line(name)? {
            Some(line) => Ok(Some(line)),
            None => self.me(),
        }
    }

    /// A number; `default` when the file is missing or has no leading digit.
    pub fn int(&self, name: &str, default: u64) -> Result<u64, Trouble> {
        Ok(self.line(name)?.and_then(|line| decimal::prefix(&line)).unwrap_or(default))
    }

    /// All entries; None when the file is missing.
    pub fn list(&self, name: &str) -> Result<Option<Vec<Vec<u8>>>, Trouble> {
        Ok(self.read(name)?.map(|text| entries(&text)))
    }

    /// A list to ask for membership.
    pub fn set(&self, name: &str) -> Result<Option<Set>, Trouble> {
        Ok(self.list(name)?.map(|list| Set::of(&list)))
    }

    /// A list of `key:value` to look keys up in.
    pub fn map(&self, name: &str) -> Result<Option<Map>, Trouble> {
        Ok(self.list(name)?.map(|list| Map::of(&list)))
    }
}

fn trimmed(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|b| !matches!(b, b' ' | b'\t' | b'\n')).map_or(0, |at| at + 1);
    line.get(..end).unwrap_or_default()
}

/// The entries of a list file. A NUL inside a line ends an entry and starts another.
pub fn entries(text: &[u8]) -> Vec<Vec<u8>> {
    text.split(|b| *b == b'\n')
        .map(trimmed)
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .flat_map(|line| line.split(|b| *b == 0).map(<[u8]>::to_vec))
        .collect()
}

/// A line of a map; None where it has no colon.
pub fn key_and_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (key, value) = line.split_at(memchr::memchr(b':', line)?);
    Some((key, value.get(1..)?))
}

/// Entries compared without regard to ASCII case.
#[derive(Debug, Clone, Default)]
pub struct Set(std::collections::HashSet<Vec<u8>>);

impl Set {
    pub fn of(list: &[Vec<u8>]) -> Set {
        Set(list.iter().map(|entry| entry.to_ascii_lowercase()).collect())
    }

    pub fn contains(&self, entry: &[u8]) -> bool {
        self.0.contains(&entry.to_ascii_lowercase())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// `key:value` lines; keys compared without regard to ASCII case, the later line wins.
#[derive(Debug, Clone, Default)]
pub struct Map(HashMap<Vec<u8>, Vec<u8>>);

impl Map {
    /// Lines without `:` are ignored.
    pub fn of(list: &[Vec<u8>]) -> Map {
        let pairs = list.iter().filter_map(|line| key_and_value(line));
        Map(pairs.map(|(key, value)| (key.to_ascii_lowercase(), value.to_vec())).collect())
    }

    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.0.get(&key.to_ascii_lowercase()).map(Vec::as_slice)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The suffixes of a domain that start at a dot, longest first: `.b.c` and `.c` of `a.b.c`.
pub fn dot_suffixes(domain: &[u8]) -> impl Iterator<Item = &[u8]> {
    domain
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'.')
        .map(move |(at, _)| domain.get(at..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_drop_comments_and_blanks_and_keep_the_last_unended_line() {
        let found = entries(b"# c\n\na.b \t\n x\nlast");
        assert_eq!(found, [b"a.b".to_vec(), b" x".to_vec(), b"last".to_vec()]);
        assert_eq!(entries(b"a\0b\n"), [b"a".to_vec(), b"b".to_vec()]);
    }

    #[test]
    fn in_maps_the_later_line_wins_and_case_does_not_count() {
        let map = Map::of(&entries(b"A.b:one\na.B:two:x\nnocolon\n:all\n"));
        assert_eq!(map.get(b"a.b"), Some(b"two:x".as_slice()));
        assert_eq!(map.get(b""), Some(b"all".as_slice()));
        assert_eq!(map.get(b"nocolon"), None);
    }

    #[test]
    fn suffixes_come_longest_first() {
        let all: Vec<_> = dot_suffixes(b"a.b.c").collect();
        assert_eq!(all, [b".b.c".as_slice(), b".c".as_slice()]);
    }

    #[test]
    fn a_missing_file_is_none_and_an_empty_one_is_not() {
        let dir = std::env::temp_dir().join(format!("control-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("empty"), b"").unwrap();
        std::fs::write(dir.join("line"), b"value \t\nsecond\n").unwrap();
        let control = Control::at(dir.to_str().unwrap());
        assert_eq!(control.line("missing").unwrap(), None);
        assert_eq!(control.line("empty").unwrap(), Some(Vec::new()));
        assert_eq!(control.line("line").unwrap(), Some(b"value".to_vec()));
        assert_eq!(control.int("line", 7).unwrap(), 7);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
