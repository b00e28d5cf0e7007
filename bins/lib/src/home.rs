//! home - where the system lives, and who its users are
//!
//! The home is `QMAIL_HOME`, else `/var/qmail`. `users/ids` says what kind it is: an own home has one
//! account that everything runs as; a system home has qmail's eight. Ids come from there and never
//! from the account database. A process of uid 0 trusts a home only when nobody else can write it, and
//! in an own home becomes the owner before it does anything.
#![forbid(unsafe_code)]

use crate::control::Control;
use crate::trouble::Trouble;
use crate::trust::{Judge, Kind, Thing};
use crate::{decimal, environ, fd, sys};
use nix::errno::Errno;
use nix::sys::stat::{FileStat, stat};
use nix::unistd::{Gid, Uid};

/// Where the home is when nobody says otherwise.
pub const DEFAULT: &str = "/var/qmail";

/// users/ids has nine lines at most; this leaves room for comments.
const IDS_MAX: usize = 16 * 1024;

/// The directories a process of uid 0 must be able to trust.
const TRUSTED: [&str; 4] = ["", "bin", "control", "users"];

/// The accounts of a system home: what each is for is in qmail-start(8).
pub const ROLES: [&str; 8] = ["alias", "qmaild", "qmaill", "root", "qmailp", "qmailq", "qmailr", "qmails"];

/// One account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub uid: Uid,
    pub gid: Gid,
}

/// The accounts of a home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    /// One ordinary user owns and runs everything.
    Own(Account),
    /// Separate users, by role.
    System(Vec<(Vec<u8>, Account)>),
}

impl Ids {
    /// The account that plays this role; None in a system home that does not name it.
    pub fn role(&self, name: &str) -> Option<Account> {
        match self {
            Ids::Own(owner) => Some(*owner),
            Ids::System(list) => list.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, a)| *a),
        }
    }

    pub fn is_own(&self) -> bool {
        matches!(self, Ids::Own(_))
    }

    /// `NAME:UID:GID` lines; one line `owner:UID:GID` makes an own home. `#` and empty lines are skipped.
    pub fn parse(text: &[u8]) -> Option<Ids> {
        let mut list = Vec::new();
        for line in text.split(|b| *b == b'\n').filter(|l| !l.is_empty() && !l.starts_with(b"#")) {
            let mut fields = line.split(|b| *b == b':');
            let name = fields.next()?.to_vec();
            let uid = u32::try_from(decimal::strict(fields.next()?)?).ok()?;
            let gid = u32::try_from(decimal::strict(fields.next()?)?).ok()?;
            if fields.next().is_some() {
                return None;
            }
            list.push((name, Account { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) }));
        }
        match list.as_slice() {
            [] => None,
            [(name, owner)] if name == b"owner" => Some(Ids::Own(*owner)),
            list if list.iter().any(|(name, _)| name == b"owner") => None,
            _ => Some(Ids::System(list)),
        }
    }
}

/// A home that was found and may be trusted.
#[derive(Debug, Clone)]
pub struct Home {
    path: Vec<u8>,
    ids: Ids,
}

impl Home {
    /// Finds the home, checks it, and as uid 0 in an own home becomes its owner. Does not change the
    /// working directory.
    pub fn find() -> Result<Home, Trouble> {
        let home = Home::found(true)?;
        home.check_queue()?;
        Ok(home)
    }

    /// As `find`, also where strangers can write, and whoever owns the queue: for who is to say so.
    pub fn look() -> Result<Home, Trouble> {
        Home::found(false)
    }

    fn found(trusting: bool) -> Result<Home, Trouble> {
        let path = match environ::get("QMAIL_HOME") {
            Some(path) if !sys::process::secure_execution() => path,
            _ => DEFAULT.as_bytes().to_vec(),
        };
        if !path.starts_with(b"/") {
            return Err(Trouble::temporary("QMAIL_HOME must be a path that starts with /"));
        }
        let home = stat(fd::path(&path)).map_err(|e| unusable(&path, e))?;
        let as_root = Uid::effective().is_root();
        if as_root && home.st_uid != 0 {
            return Home::become_owner(path, &home);
        }
        if as_root && trusting {
            for name in TRUSTED {
                trust(&path, &join(&path, name))?;
            }
        }
        let ids = read_ids(&path)?;
        if as_root && ids.is_own() {
            return Err(contradiction(
                &path,
                "users/ids names an owner, but root owns the home: chown it to that owner, or correct users/ids",
            ));
        }
        Ok(Home { path, ids })
    }

    /// Root was asked to work in an ordinary user's home: it becomes that user first, and only then
    /// looks at what that user wrote.
    fn become_owner(path: Vec<u8>, home: &FileStat) -> Result<Home, Trouble> {
        let (uid, gid) = (Uid::from_raw(home.st_uid), Gid::from_raw(home.st_gid));
        sys::process::become_user(uid, gid, &[gid])
            .map_err(|e| Trouble::unable("become the owner of home", &path, e))?;
        let ids = read_ids(&path)?;
        let Ids::Own(owner) = &ids else {
            return Err(contradiction(
                &path,
                "users/ids names a system's accounts, but root does not own the home: chown it to root",
            ));
        };
        if owner.uid != uid {
            return Err(contradiction(
                &path,
                "users/ids names another owner than the home has: chown it to that owner, or correct users/ids",
            ));
        }
        Ok(Home { path, ids })
    }

    /// A queue that belongs to somebody else than users/ids says is not ours to touch.
    fn check_queue(&self) -> Result<(), Trouble> {
        let Some(qmailq) = self.ids.role("qmailq") else { return Ok(()) };
        let path = self.path("queue/mess");
        match stat(fd::path(&path)) {
            Ok(mess) if mess.st_uid != qmailq.uid.as_raw() => {
                let thing = Thing { owners: vec![qmailq.uid], ..self.thing(Kind::Directory, "queue/mess") };
                self.judge().judge(&thing, &path, &mess).map_or(Ok(()), |problem| Err(problem.refusal()))
            }
            // Unreadable from here (another user's queue) or missing: whoever uses the queue will say so.
            _ => Ok(()),
        }
    }

    /// Who may be trusted with what a daemon of this home relies on: root, and in an own home its owner.
    pub fn judge(&self) -> Judge {
        match &self.ids {
            Ids::Own(owner) => Judge::new(&[owner.uid]).own_group(owner.gid),
            Ids::System(list) => {
                let users = list.iter().map(|(name, a)| (a.uid, String::from_utf8_lossy(name).into_owned()));
                let group = |role, name: &str| self.ids.role(role).map(|a| (a.gid, name.to_owned()));
                let groups = [group("qmailq", "qmail"), group("alias", "nofiles")];
                Judge::new(&[]).names(users.collect(), groups.into_iter().flatten().collect())
            }
        }
    }

    /// Something of the home, with what would make it. Whose it should be is the caller's to say.
    pub fn thing(&self, kind: Kind, name: &str) -> Thing {
        let (maker, mended) = (maker(&self.path, self.ids.is_own()), !self.ids.is_own());
        Thing { maker, mended, ..Thing::new(kind, self.path(name)) }
    }

    /// Makes the home the working directory.
    pub fn enter(&self) -> Result<(), Trouble> {
        nix::unistd::chdir(fd::path(&self.path)).map_err(|e| Trouble::unable("switch to", &self.path, e))
    }

    /// The absolute path of something in the home; "" is the home itself.
    pub fn path(&self, name: &str) -> Vec<u8> {
        join(&self.path, name)
    }

    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    pub fn control(&self) -> Control {
        Control::at(self.path("control"))
    }
}

fn join(path: &[u8], name: &str) -> Vec<u8> {
    if name.is_empty() { path.to_vec() } else { [path, b"/", name.as_bytes()].concat() }
}

/// The likeliest slip: another shell, where QMAIL_HOME was not exported.
fn unusable(path: &[u8], errno: Errno) -> Trouble {
    let hint = if environ::get("QMAIL_HOME").is_none() { " (QMAIL_HOME is not set)" } else { "" };
    Trouble::unable("use home", [path, hint.as_bytes()].concat(), errno)
}

fn contradiction(path: &[u8], what: &str) -> Trouble {
    Trouble::temporary([b"refusing home ", path, b": ", what.as_bytes()].concat())
}

/// Root's look at one directory, cheap enough for every start. Daemons look further: `setup`.
fn trust(home: &[u8], path: &[u8]) -> Result<(), Trouble> {
    let found = match stat(fd::path(path)) {
        Ok(found) => found,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(Trouble::unable("stat", path, errno)),
    };
    let thing = Thing { maker: maker(home, false), mended: true, ..Thing::new(Kind::Directory, path) };
    Judge::new(&[]).judge(&thing, path, &found).map_or(Ok(()), |problem| Err(problem.refusal()))
}

/// The command that makes what is missing in a home.
fn maker(home: &[u8], own: bool) -> String {
    let place = String::from_utf8_lossy(home);
    match own {
        true => format!("scripts/mkhome {place}"),
        false if home == DEFAULT.as_bytes() => "scripts/mkhome --system".to_owned(),
        false => format!("scripts/mkhome --system {place}"),
    }
}

fn read_ids(path: &[u8]) -> Result<Ids, Trouble> {
    let name = join(path, "users/ids");
    match fd::read_file(&name, IDS_MAX) {
        Ok(Some(text)) => {
            Ids::parse(&text).ok_or_else(|| Trouble::temporary([b"bad format in ", name.as_slice()].concat()))
        }
        Ok(None) => Ok(infer_ids(path)),
        Err(errno) => Err(Trouble::unable("read", &name, errno)),
    }
}

/// A home of the original software has no users/ids: its files tell who is who, as far as needed.
fn infer_ids(path: &[u8]) -> Ids {
    let owners = [
        ("alias", "alias"),
        ("qmailq", "queue/mess"),
        ("qmailr", "queue/lock/tcpto"),
        ("qmails", "queue/lock/sendmutex"),
    ];
    let found = owners.iter().filter_map(|(role, file)| {
        let s = stat(fd::path(&join(path, file))).ok()?;
        Some((
            role.as_bytes().to_vec(),
            Account { uid: Uid::from_raw(s.st_uid), gid: Gid::from_raw(s.st_gid) },
        ))
    });
    Ids::System(found.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_line_makes_an_own_home() {
        let ids = Ids::parse(b"# made by mkhome\nowner:1000:1001\n").unwrap();
        assert!(ids.is_own());
        assert_eq!(ids.role("qmails").unwrap().gid, Gid::from_raw(1001));
    }

    #[test]
    fn a_system_home_names_its_roles() {
        let ids = Ids::parse(b"alias:7790:2108\nqmailq:7794:2107\n").unwrap();
        assert_eq!(ids.role("qmailq").unwrap().uid, Uid::from_raw(7794));
        assert_eq!(ids.role("qmailr"), None);
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [b"".as_slice(), b"owner:x:1\n", b"owner:1\n", b"owner:1:1:1\n", b"owner:1:1\nalias:1:1\n"]
        {
            assert_eq!(Ids::parse(bad), None);
        }
    }
}
