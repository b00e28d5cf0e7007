//! passwd - a file of users, and the index beside it
//!
//! Lines are `name:stored:uid:gid:home`; the first of a name counts, and of `stored` the values are `stored`'s
//! affair (two of its notations have colons of their own). Lines of any other shape are nobody's.
//!
//! The index is a cdb of the file's name and `.cdb`: under each name its line, and under the empty name, which is
//! nobody's, which state of the file it was made from, and a stored field that shows what is usual there. It is
//! asked only while the file is in that very state; else the file is read.
#![forbid(unsafe_code)]

use crate::account::{Account, program_of};
use crate::login::{Login, misused, refused};
use crate::stored::{self, Bare, DUMMY, is_usable};
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::{Gid, Uid};
use qmail::auth::Secret;
use qmail::cdb;
use qmail::program::Args;
use qmail::table;
use qmail::timed::{Line, Reader};
use qmail::trouble::Trouble;
use qmail::{decimal, fd};
use std::os::fd::AsFd;

/// A line longer than this is nobody's.
pub const LINE_MAX: usize = 4096;

/// The file and the program of a checker's command line.
pub fn arguments(args: &Args) -> Result<(&[u8], &[Vec<u8>]), Trouble> {
    let [file, program @ ..] = args.list() else { return Err(misused("no file to check against")) };
    Ok((file, program_of(program)?))
}

/// Checks the login of descriptor 3 against a file, and becomes its user and the program; comes back with the reason
/// why not. The same work is done whether the name is there or not.
pub fn serve(checker: &str, file: &[u8], program: &[Vec<u8>], bare: Bare) -> Trouble {
    let user = || {
        let login = Login::read()?;
        let Some(proof) = login.proof() else { return Err(refused()) };
        let found = look_up(file, login.name(), bare)?;
        if found.is_stale {
            warn_of_index(checker, file);
        }
        let stored = found.user.as_ref().map(|user| user.stored.as_slice());
        let verdict = stored::check(stored, found.usual.as_deref().unwrap_or(DUMMY), bare, &proof);
        login.settle(verdict)?;
        found.user.ok_or_else(refused)
    };
    match user() {
        Ok(User { stored, account }) => {
            drop(Secret(stored));
            account.run(program)
        }
        Err(trouble) => trouble,
    }
}

/// One user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub stored: Vec<u8>,
    pub account: Account,
}

/// What a file says of a name.
#[derive(Debug, Default)]
pub struct Found {
    pub user: Option<User>,
    /// The first field of another user's that can be used.
    pub usual: Option<Vec<u8>>,
    /// The index is not the file's: who made it should hear of it.
    pub is_stale: bool,
}

/// Looks a name up. The file is read to its end whether the name is there or not.
pub fn look_up(file: &[u8], name: &[u8], bare: Bare) -> Result<Found, Trouble> {
    let opened = fd::open_read(file).map_err(|errno| Trouble::unable("open", file, errno))?;
    let state = fstat(&opened).map_err(|errno| Trouble::unable("read", file, errno))?;
    match by_index(file, name, &state, bare)? {
        Some(found) => Ok(found),
        None => {
            let mut found = Found { is_stale: has_index(file), ..Found::default() };
            each_line(opened, file, |line| {
                let Some(user) = parse(line) else { return Ok(()) };
                if found.user.is_none() && !name.is_empty() && user.account.name == name {
                    found.user = Some(user);
                } else if found.usual.is_none() && is_usable(&user.stored, bare) {
                    found.usual = Some(user.stored);
                }
                Ok(())
            })?;
            Ok(found)
        }
    }
}

/// Every line that is not too long, without its end.
pub fn each_line(
    opened: impl AsFd,
    file: &[u8],
    mut take: impl FnMut(&[u8]) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let mut lines = Reader::new(opened);
    loop {
        match lines.line(b'\n', LINE_MAX).map_err(|errno| Trouble::unable("read", file, errno))? {
            Line::Whole(line) => take(&line)?,
            Line::TooLong => {}
            Line::End(line) => return take(&line),
        }
    }
}

/// `name:stored:uid:gid:home`
pub fn parse(line: &[u8]) -> Option<User> {
    if line.starts_with(b"#") {
        return None;
    }
    let at = line.iter().position(|b| *b == b':')?;
    let (name, rest) = line.split_at(at);
    let mut fields = rest.get(1..)?.rsplitn(4, |b| *b == b':');
    let (home, gid, uid, stored) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    // Values that were written with colons; in other lines they are a field too many.
    let colons = stored.iter().filter(|b| **b == b':').count();
    let told = stored.split(|b| *b == b' ').filter(|value| value.starts_with(b"SCRAM-SHA-256$")).count();
    if colons != told * 2 {
        return None;
    }
    let account = Account {
        name: name.to_vec(),
        uid: Uid::from_raw(id(uid)?),
        gid: Gid::from_raw(id(gid)?),
        home: home.to_vec(),
        shell: b"/bin/sh".to_vec(),
    };
    Some(User { stored: stored.to_vec(), account })
}

/// A uid or gid; the highest number means "leave as it is" to the system.
fn id(text: &[u8]) -> Option<u32> {
    u32::try_from(decimal::strict(text)?).ok().filter(|id| *id != u32::MAX)
}

/// The index of a file.
pub fn index_name(file: &[u8]) -> Vec<u8> {
    [file, b".cdb"].concat()
}

fn has_index(file: &[u8]) -> bool {
    nix::sys::stat::stat(fd::path(&index_name(file))).is_ok()
}

/// Into the log: logins work, and are slow.
fn warn_of_index(program: &str, file: &[u8]) {
    let line =
        [program.as_bytes(), b": warning: the index of ", file, b" is not of this file: run authpasswd -x\n"];
    let _ = fd::write_all(fd::ERR, &line.concat());
}

/// None when there is no index, or none of this state of the file.
fn by_index(file: &[u8], name: &[u8], state: &FileStat, bare: Bare) -> Result<Option<Found>, Trouble> {
    let index = index_name(file);
    let opened = match fd::open_read(&index) {
        Ok(opened) => opened,
        Err(nix::errno::Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(Trouble::unable("open", &index, errno)),
    };
    let found = fstat(&opened).map_err(|errno| Trouble::unable("read", &index, errno))?;
    // Whoever may write it could let himself in.
    let is_ours =
        (found.st_uid == state.st_uid || found.st_uid == 0) && found.st_mode & 0o022 & !state.st_mode == 0;
    let reader = cdb::Reader::new(opened).map_err(|errno| Trouble::unable("read", &index, errno))?;
    let get = |key: &[u8]| reader.get(key).map_err(|error| error.trouble(&index));
    let Some(head) = get(b"")?.filter(|_| is_ours) else { return Ok(None) };
    let Some(usual) =
        head.strip_prefix(table::state(state).as_slice()).and_then(|rest| rest.strip_prefix(b"\n"))
    else {
        return Ok(None);
    };
    let line = if name.is_empty() { None } else { get(name)? };
    let user = line.as_deref().and_then(parse).filter(|user| user.account.name == name);
    Ok(Some(Found {
        user,
        usual: Some(usual.to_vec()).filter(|usual| is_usable(usual, bare)),
        is_stale: false,
    }))
}

/// The index of these lines, which are the file in this state.
pub struct Index {
    writer: cdb::Writer,
    usual: Option<Vec<u8>>,
}

impl Default for Index {
    fn default() -> Index {
        Index::new()
    }
}

impl Index {
    pub fn new() -> Index {
        Index { writer: cdb::Writer::new(), usual: None }
    }

    /// The next line. A reader finds the first of a name.
    pub fn add(&mut self, line: &[u8]) -> Result<(), cdb::TooBig> {
        let Some(user) = parse(line).filter(|user| !user.account.name.is_empty()) else { return Ok(()) };
        self.writer.add(&user.account.name, line)?;
        if self.usual.is_none() && is_usable(&user.stored, Bare::Hash) {
            self.usual = Some(user.stored);
        }
        Ok(())
    }

    /// The file of the index.
    pub fn finish(mut self, state: &FileStat) -> Result<Vec<u8>, cdb::TooBig> {
        let head = [table::state(state).as_slice(), b"\n", &self.usual.unwrap_or_default()].concat();
        self.writer.add(b"", &head)?;
        self.writer.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_five_fields() {
        let user = parse(b"joe:$1$abcdefgh$x:1000:100:/home/joe").unwrap();
        assert_eq!((user.stored.as_slice(), user.account.uid.as_raw()), (b"$1$abcdefgh$x".as_slice(), 1000));
        assert_eq!((user.account.gid.as_raw(), user.account.home.as_slice()), (100, b"/home/joe".as_slice()));
        for bad in [
            "",
            "joe",
            "joe:x:1",
            "joe:x:a:1:/",
            "joe:x:4294967295:1:/",
            "#joe:x:1:1:/",
            "joe:x:1:1:/:/bin/sh",
            "joe:x:y:1:1:/",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn only_a_notation_with_colons_has_colons() {
        let stored = |text: &str| parse(text.as_bytes()).map(|user| String::from_utf8(user.stored).unwrap());
        let value = "SCRAM-SHA-256$4096:c2FsdA==$c3Q=:c3I=";
        assert_eq!(stored(&format!("joe:{value}:1:2:/")).as_deref(), Some(value));
        let both = format!("$1$a$b {value}");
        assert_eq!(stored(&format!("joe:{both}:1:2:/")).as_deref(), Some(both.as_str()));
        assert_eq!(stored("joe:SCRAM-SHA-256$4096:c2FsdA==$c3Q=:1:2:/"), None);
    }
}
