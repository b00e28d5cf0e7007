//! assign - users/assign and users/cdb: which user a local part belongs to
//!
//! Format and lookup order: qmail-users(5). `compile` is qmail-newu's, `lookup` is qmail-lspawn's, and
//! the six fields of `User` are what qmail-getpw prints.
#![forbid(unsafe_code)]

use crate::{cdb, decimal};
use nix::unistd::{Gid, Uid};

/// Who receives mail for a local part, and what remains of the local part for `.qmail` files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub user: Vec<u8>,
    pub uid: Uid,
    pub gid: Gid,
    pub home: Vec<u8>,
    pub dash: Vec<u8>,
    pub ext: Vec<u8>,
}

impl User {
    /// user, uid, gid, home, dash, ext, each ended by a NUL: the output of qmail-getpw.
    pub fn fields(&self) -> Vec<u8> {
        let (uid, gid) = (decimal::text(self.uid), decimal::text(self.gid));
        let fields = [&self.user, &uid, &gid, &self.home, &self.dash, &self.ext];
        fields.into_iter().flat_map(|f| f.iter().copied().chain(std::iter::once(0))).collect()
    }

    /// Reads what `fields` wrote; None when it is anything else. (A reader of qmail-getpw that gets None
    /// has met a temporary trouble, never a missing user.)
    pub fn parse(fields: &[u8]) -> Option<User> {
        User::unended(fields.strip_suffix(b"\0")?)
    }

    /// Six fields with NULs between them.
    fn unended(fields: &[u8]) -> Option<User> {
        let list: Vec<&[u8]> = fields.split(|b| *b == 0).collect();
        let [user, uid, gid, home, dash, ext] = list.as_slice() else { return None };
        Some(User {
            user: user.to_vec(),
            uid: Uid::from_raw(id(uid)?),
            gid: Gid::from_raw(id(gid)?),
            home: home.to_vec(),
            dash: dash.to_vec(),
            ext: ext.to_vec(),
        })
    }
}

/// A number without digits would be 0, which is root: it is refused instead.
fn id(text: &[u8]) -> Option<u32> {
    u32::try_from(decimal::prefix(text)?).ok().filter(|id| *id != u32::MAX) // -1: "leave it as it is"
}

/// Finds the user for a local part in users/cdb. None: no line of users/assign covers it, ask qmail-getpw.
/// An error (also: the record with the wild characters is missing) is temporary, exit 117 in qmail-lspawn.
pub fn lookup<S: cdb::Source>(cdb: &cdb::Reader<S>, local: &[u8]) -> Result<Option<User>, cdb::Error> {
    let wild = cdb.get(b"")?.ok_or(cdb::Error::Corrupt)?;
    let mut key = [b"!", local, b"\0"].concat().to_ascii_lowercase();
    if let Some(data) = cdb.get(&key)? {
        return User::unended(&data).map(Some).ok_or(cdb::Error::Corrupt);
    }
    for length in (0..=local.len()).rev() {
        key.truncate(1 + length);
        let last = key.last().copied().filter(|_| length > 0);
        if last.is_some_and(|last| !wild.iter().any(|w| w.eq_ignore_ascii_case(&last))) {
            continue;
        }
        if let Some(mut data) = cdb.get(&key)? {
            data.extend_from_slice(local.get(length..).unwrap_or_default());
            return User::unended(&data).map(Some).ok_or(cdb::Error::Corrupt);
        }
    }
    Ok(None)
}

/// What is wrong with users/assign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bad {
    /// This line, counted from 1, is none of `=`, `+` and `.`, has fewer than seven colons, or a NUL.
    Line(usize),
    /// The line with a dot that ends the file is missing: it may have been cut.
    NoEnd,
    TooBig,
}

/// The bytes of users/cdb for the text of users/assign.
pub fn compile(text: &[u8]) -> Result<Vec<u8>, Bad> {
    let mut writer = cdb::Writer::new();
    let mut wild = Vec::new();
    if text.is_empty() {
        return Err(Bad::NoEnd);
    }
    for (number, line) in text.strip_suffix(b"\n").unwrap_or(text).split(|b| *b == b'\n').enumerate() {
        if line.starts_with(b".") {
            writer.add(b"", &wild).map_err(|_| Bad::TooBig)?;
            return writer.finish().map_err(|_| Bad::TooBig);
        }
        let (key, data) = record(line).ok_or(Bad::Line(number + 1))?;
        if let [b'!', .., last] = key.as_slice()
            && *last != 0
            && !wild.contains(last)
        {
            wild.push(*last);
        }
        writer.add(&key, &data).map_err(|_| Bad::TooBig)?;
    }
    Err(Bad::NoEnd)
}

/// Key and data of an `=` or `+` line.
fn record(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    if line.contains(&0) {
        return None;
    }
    let (kind, rest) = line.split_first()?;
    let fields: Vec<&[u8]> = rest.splitn(8, |b| *b == b':').collect();
    let [local, data @ .., _ignored] = fields.as_slice() else { return None };
    if data.len() != 6 {
        return None;
    }
    let mut key = [b"!", *local].concat().to_ascii_lowercase();
    match kind {
        b'=' => key.push(0),
        b'+' => {}
        _ => return None,
    }
    Some((key, data.join(&0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &[u8] = b"=Joe:joe:503:78:/home/joe:::\n\
        +joe-:joe:507:100:/home/joe:-::\n\
        +:alias:7790:2108:/var/qmail/alias:-::\n.\n";

    fn found(text: &[u8], local: &[u8]) -> Option<User> {
        let file = compile(text).unwrap();
        lookup(&cdb::Reader::new(file.as_slice()).unwrap(), local).unwrap()
    }

    #[test]
    fn an_exact_line_comes_before_a_prefix_and_case_does_not_count() {
        let joe = found(EXAMPLE, b"JOE").unwrap();
        assert_eq!(
            (joe.uid, joe.dash.as_slice(), joe.ext.as_slice()),
            (Uid::from_raw(503), b"".as_slice(), b"".as_slice())
        );
    }

    #[test]
    fn the_rest_of_the_address_keeps_its_case() {
        let joe = found(EXAMPLE, b"Joe-List-X").unwrap();
        assert_eq!((joe.uid, joe.ext.as_slice()), (Uid::from_raw(507), b"List-X".as_slice()));
        assert_eq!(joe.dash, b"-");
    }

    #[test]
    fn whatever_is_left_goes_to_the_catch_all() {
        let alias = found(EXAMPLE, b"joey").unwrap();
        assert_eq!((alias.user.as_slice(), alias.ext.as_slice()), (b"alias".as_slice(), b"joey".as_slice()));
        assert_eq!(found(EXAMPLE, b"").unwrap().ext, b"");
    }

    #[test]
    fn without_a_catch_all_there_is_nobody() {
        assert_eq!(found(b"=joe:joe:503:78:/home/joe:::\n.\n", b"joey"), None);
        assert_eq!(found(b".\n", b"joe"), None);
    }

    #[test]
    fn the_longest_prefix_wins_and_what_it_adds_comes_first() {
        let text = b"+a-:u:1:2:/h:-:x-:\n+a-b-:v:3:4:/h:-:y-:\n.\n";
        assert_eq!(found(text, b"a-b-C").unwrap().ext, b"y-C");
        assert_eq!(found(text, b"a-b").unwrap().ext, b"x-b");
        assert_eq!(found(text, b"a-").unwrap().ext, b"x-");
    }

    #[test]
    fn a_prefix_that_ends_in_an_uppercase_letter_matches_too() {
        assert_eq!(found(b"+LIST:u:1:2:/h:-::\n.\n", b"listx").unwrap().ext, b"x");
    }

    #[test]
    fn of_two_equal_lines_the_first_wins() {
        assert_eq!(found(b"=a:u:1:2:/h:::\n=a:v:3:4:/h:::\n.\n", b"a").unwrap().user, b"u");
    }

    #[test]
    fn the_wild_characters_are_listed_once_in_the_order_they_appear() {
        let text = [
            EXAMPLE.strip_suffix(b".\n").unwrap(),
            b"+x+:u:1:2:/h:-::\n+y-:u:1:2:/h:-::\n.rest is ignored\n=x\n",
        ]
        .concat();
        let file = compile(&text).unwrap();
        let reader = cdb::Reader::new(file.as_slice()).unwrap();
        assert_eq!(reader.get(b"").unwrap(), Some(b"-+".to_vec()));
        assert_eq!(reader.get(b"!joe\0").unwrap(), Some(b"joe\x00503\x0078\x00/home/joe\x00\x00".to_vec()));
        assert_eq!(
            reader.get(b"!").unwrap(),
            Some(b"alias\x007790\x002108\x00/var/qmail/alias\x00-\x00".to_vec())
        );
    }

    #[test]
    fn a_bad_line_is_named_and_a_missing_end_is_noticed() {
        assert_eq!(compile(b"=a:u:1:2:/h::\n.\n"), Err(Bad::Line(1)));
        assert_eq!(compile(b"=a:u:1:2:/h:::\n\n.\n"), Err(Bad::Line(2)));
        assert_eq!(compile(b"=a:u:1:2:/h:::\n#x:u:1:2:/h:::\n.\n"), Err(Bad::Line(2)));
        assert_eq!(compile(b"=a:u:1:2:/\0h:::\n.\n"), Err(Bad::Line(1)));
        assert_eq!(compile(b"=a:u:1:2:/h:::\n"), Err(Bad::NoEnd));
        assert_eq!(compile(b""), Err(Bad::NoEnd));
        assert!(compile(b"=a:u:1:2:/h:::anything: more\n.").is_ok());
    }

    #[test]
    fn a_database_without_the_wild_characters_or_with_a_broken_record_is_an_error() {
        let mut writer = cdb::Writer::new();
        writer.add(b"!joe\0", b"joe\x00503\x00").unwrap();
        let file = writer.clone().finish().unwrap();
        let reader = cdb::Reader::new(file.as_slice()).unwrap();
        assert_eq!(lookup(&reader, b"joe"), Err(cdb::Error::Corrupt));
        writer.add(b"", b"-").unwrap();
        let file = writer.finish().unwrap();
        let reader = cdb::Reader::new(file.as_slice()).unwrap();
        assert_eq!(lookup(&reader, b"joe"), Err(cdb::Error::Corrupt));
    }

    #[test]
    fn an_id_without_digits_is_not_taken_for_root() {
        let file = compile(b"=a:u::2:/h:::\n=b:u:1:x:/h:::\n=c:u:4294967295:1:/h:::\n.\n").unwrap();
        let reader = cdb::Reader::new(file.as_slice()).unwrap();
        for local in [b"a", b"b", b"c"] {
            assert_eq!(lookup(&reader, local), Err(cdb::Error::Corrupt));
        }
    }

    #[test]
    fn the_six_fields_come_back_as_they_were() {
        let user = found(EXAMPLE, b"joe-x").unwrap();
        assert_eq!(user.fields(), b"joe\x00507\x00100\x00/home/joe\x00-\x00x\x00");
        assert_eq!(User::parse(&user.fields()), Some(user.clone()));
        assert_eq!(User::parse(b""), None);
        assert_eq!(User::parse(b"joe\x00507\x00100\x00/home/joe\x00-\x00x"), None);
    }
}
