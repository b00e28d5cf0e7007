//! trust - whether a stranger could spoil what a program is about to rely on
//!
//! A `Thing` says what to look at and who may own it; a `Judge` looks: at the thing itself, and at every
//! directory and symbolic link on the way from `/` to where it really is. Whoever can write a directory
//! can put something else in the place of what lies in it, unless it is sticky.
#![forbid(unsafe_code)]

use crate::fd;
use crate::trouble::{Trouble, wording};
use nix::errno::Errno;
use nix::libc::{S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_ISVTX, S_IWGRP, S_IWOTH};
use nix::sys::stat::{FileStat, lstat};
use nix::unistd::{Gid, Uid};
use std::collections::{HashSet, VecDeque};
use std::os::unix::ffi::OsStringExt;

/// As many symbolic links on one way as Linux follows.
const LINKS_MAX: usize = 40;

/// Who files of users that this user namespace does not know seem to belong to.
const NAMELESS: u32 = 65534;

/// /proc/self/uid_map has a line a range, 340 at most.
const UID_MAP_MAX: usize = 64 * 1024;

/// Others than the owner can write.
pub const WRITABLE: u32 = S_IWGRP | S_IWOTH;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    /// A file that its owner at least can execute.
    Program,
    Fifo,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Directory => "a directory",
            Kind::File => "a file",
            Kind::Program => "a program",
            Kind::Fifo => "a fifo",
        }
    }

    fn fits(self, mode: u32) -> bool {
        match self {
            Kind::Directory => mode & S_IFMT == S_IFDIR,
            Kind::File => mode & S_IFMT == S_IFREG,
            Kind::Program => mode & S_IFMT == S_IFREG && mode & 0o111 != 0,
            Kind::Fifo => mode & S_IFMT == S_IFIFO,
        }
    }
}

/// Something that is about to be relied on.
#[derive(Debug, Clone)]
pub struct Thing {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Who may own it: the first is who should. Empty: whoever the judge trusts.
    pub owners: Vec<Uid>,
    /// Who may own a directory on the way, beside those whom the judge trusts.
    pub through: Vec<Uid>,
    /// Mode bits that it must not have.
    pub closed: u32,
    /// A missing one is no problem.
    pub optional: bool,
    /// What makes a missing one; empty when only a person can.
    pub maker: String,
    /// The maker mends owner and mode, too.
    pub mended: bool,
}

impl Thing {
    pub fn new(kind: Kind, path: impl Into<Vec<u8>>) -> Thing {
        let (owners, through) = (Vec::new(), Vec::new());
        let (path, maker) = (path.into(), String::new());
        Thing { path, kind, owners, through, closed: WRITABLE, optional: false, maker, mended: false }
    }

    pub fn optional(self) -> Thing {
        Thing { optional: true, ..self }
    }
}

/// What is wrong with one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub path: Vec<u8>,
    pub what: Vec<u8>,
    /// How to mend it, for a shell or a person.
    pub mend: Vec<u8>,
    /// False: we may not look, and so do not know.
    pub known: bool,
}

impl Problem {
    pub fn new(path: impl Into<Vec<u8>>, what: impl Into<Vec<u8>>, mend: impl Into<Vec<u8>>) -> Problem {
        Problem { path: path.into(), what: what.into(), mend: mend.into(), known: true }
    }

    /// `PATH: WHAT: MEND`, on one line.
    pub fn line(&self) -> Vec<u8> {
        let mend: &[u8] = if self.mend.is_empty() { b"" } else { b": " };
        [self.path.as_slice(), b": ", self.what.as_slice(), mend, self.mend.as_slice()].concat()
    }

    /// What a daemon says that will have nothing to do with it.
    pub fn refusal(&self) -> Trouble {
        Trouble::temporary([b"refusing ", self.line().as_slice()].concat())
    }
}

/// Whose word counts, and what people are called.
#[derive(Debug, Clone)]
pub struct Judge {
    trusted: Vec<Uid>,
    own_group: Option<Gid>,
    users: Vec<(Uid, String)>,
    groups: Vec<(Gid, String)>,
    seen: HashSet<Vec<u8>>,
}

impl Judge {
    /// `trusted` may own everything; root always may.
    pub fn new(trusted: &[Uid]) -> Judge {
        let root = Uid::from_raw(0);
        let trusted = std::iter::once(root).chain(trusted.iter().copied()).collect();
        Judge {
            trusted,
            own_group: None,
            users: vec![(root, "root".to_owned())],
            groups: Vec::new(),
            seen: HashSet::new(),
        }
    }

    /// A group whose members may write files and directories on the way: the owner's own, in an own home.
    pub fn own_group(self, group: Gid) -> Judge {
        Judge { own_group: Some(group), ..self }
    }

    /// Messages call these by name.
    pub fn names(self, users: Vec<(Uid, String)>, groups: Vec<(Gid, String)>) -> Judge {
        Judge { users: [self.users, users].concat(), groups, ..self }
    }

    /// Everything that is wrong with these, each path once.
    pub fn all(&mut self, things: &[Thing]) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut named = HashSet::new();
        for thing in things {
            for problem in self.look(thing) {
                if named.insert(problem.path.clone()) {
                    found.push(problem);
                }
            }
        }
        found
    }

    /// The first thing that is wrong, or that cannot be looked at.
    pub fn first(&mut self, things: &[Thing]) -> Result<(), Trouble> {
        for thing in things {
            if let Some(problem) = self.look(thing).into_iter().next() {
                return Err(problem.refusal());
            }
        }
        Ok(())
    }

    fn look(&mut self, thing: &Thing) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some((place, status)) = self.walk(thing, &mut problems) {
            problems.extend(self.judge(thing, &place, &status));
        }
        problems
    }

    /// Goes from / to where the thing really is; None when it does not get there.
    fn walk(&mut self, thing: &Thing, problems: &mut Vec<Problem>) -> Option<(Vec<u8>, FileStat)> {
        let mut left: VecDeque<Vec<u8>> = components(&thing.path).collect();
        if !thing.path.starts_with(b"/") {
            let here = nix::unistd::getcwd().ok()?.into_os_string().into_vec();
            left = components(&here).chain(left).collect();
        }
        let mut place = Vec::new(); // the real path so far; empty is /
        let (mut links, mut linked) = (0, false); // linked: the last name itself was one
        let mut status = lstat("/").ok()?;
        loop {
            if left.iter().all(|name| name == b".") {
                let end = if place.is_empty() { b"/".to_vec() } else { place };
                return Some((end, status));
            }
            let name = left.pop_front()?;
            if status.st_mode & S_IFMT != S_IFDIR {
                problems.push(self.wrong_kind(thing, &place, Kind::Directory));
                return None;
            }
            self.judge_way(thing, &place, &status, problems);
            if name == b"." {
                continue;
            }
            let next = if name == b".." { parent(&place) } else { [&place, b"/".as_slice(), &name].concat() };
            status = match lstat(fd::path(if next.is_empty() { b"/" } else { &next })) {
                Ok(status) => status,
                Err(Errno::ENOENT) if thing.optional && !linked => return None,
                Err(errno) => {
                    problems.push(self.absent(thing, &next, links > 0, errno));
                    return None;
                }
            };
            if status.st_mode & S_IFMT != S_IFLNK {
                place = next;
                continue;
            }
            links += 1;
            linked |= left.is_empty();
            let target = nix::fcntl::readlink(fd::path(&next)).map(OsStringExt::into_vec);
            let target = match target {
                Ok(target) if links <= LINKS_MAX => target,
                other => {
                    problems.push(self.absent(thing, &next, false, other.err().unwrap_or(Errno::ELOOP)));
                    return None;
                }
            };
            if !self.may_own(thing, status.st_uid) {
                let what = format!("a symbolic link that {} made", self.user(status.st_uid));
                problems.push(Problem::new(next, what, "remove it, and make it again as it should be"));
                return None;
            }
            if target.starts_with(b"/") {
                place = Vec::new();
            }
            status = lstat(fd::path(if place.is_empty() { b"/" } else { &place })).ok()?;
            for name in components(&target).collect::<Vec<_>>().into_iter().rev() {
                left.push_front(name);
            }
        }
    }

    fn may_own(&self, thing: &Thing, uid: u32) -> bool {
        let uid = Uid::from_raw(uid);
        self.trusted.contains(&uid) || thing.through.contains(&uid) || is_outsider(uid)
    }

    /// A directory on the way.
    fn judge_way(&mut self, thing: &Thing, place: &[u8], status: &FileStat, problems: &mut Vec<Problem>) {
        if !self.seen.insert(place.to_vec()) {
            return;
        }
        let mut writable = status.st_mode & WRITABLE;
        if status.st_mode & S_ISVTX != 0 {
            writable = 0; // each file there is safe from all but its owner, who is judged too
        }
        if self.own_group == Some(Gid::from_raw(status.st_gid)) {
            writable &= !S_IWGRP;
        }
        let stranger = !self.may_own(thing, status.st_uid);
        if stranger || writable != 0 {
            let shown = if place.is_empty() { b"/" } else { place };
            let owner = thing.through.first().or(self.trusted.first()).copied().filter(|_| stranger);
            let mut problem = self.describe(shown, status, owner, writable, "");
            problem.what.extend_from_slice(b", and it is on the way to ");
            problem.what.extend_from_slice(&thing.path);
            problems.push(problem);
        }
    }

    /// The thing itself, which is really at `place`.
    pub fn judge(&self, thing: &Thing, place: &[u8], status: &FileStat) -> Option<Problem> {
        if !thing.kind.fits(status.st_mode) {
            return Some(self.wrong_kind(thing, place, thing.kind));
        }
        let uid = Uid::from_raw(status.st_uid);
        let fine = match thing.owners.as_slice() {
            [] => self.trusted.contains(&uid) || is_outsider(uid),
            owners => owners.contains(&uid),
        };
        let mut open = status.st_mode & thing.closed;
        if thing.kind == Kind::File && self.own_group == Some(Gid::from_raw(status.st_gid)) {
            open &= !S_IWGRP;
        }
        if fine && open == 0 {
            return None;
        }
        let owner = thing.owners.first().or(self.trusted.first()).copied().filter(|_| !fine);
        let mender = if thing.mended { thing.maker.as_str() } else { "" };
        let mut problem = self.describe(place, status, owner, open, mender);
        if place != thing.path {
            problem.what.extend_from_slice(b", and ");
            problem.what.extend_from_slice(&thing.path);
            problem.what.extend_from_slice(b" leads there");
        }
        Some(problem)
    }

    /// Who owns it who should not, and who can do with it what.
    fn describe(
        &self,
        place: &[u8],
        status: &FileStat,
        owner: Option<Uid>,
        open: u32,
        maker: &str,
    ) -> Problem {
        let (mut what, mut mend) = (Vec::new(), Vec::new());
        if let Some(owner) = owner {
            what.push(format!(
                "{} owns it and {} should",
                self.user(status.st_uid),
                self.user(owner.as_raw())
            ));
            mend.push([format!("chown {} ", self.account(owner)).as_bytes(), &quoted(place)].concat());
        }
        for (bits, doing) in [(0o022, "write"), (0o044, "read")] {
            match open & bits {
                0 => continue,
                n if n & 0o007 != 0 => what.push(format!("everybody can {doing} it")),
                _ => what.push(format!("{} can {doing} it", self.group(status.st_gid))),
            }
        }
        if open != 0 {
            let who = |bits: u32, letter: &'static str| if open & bits != 0 { letter } else { "" };
            let (who, what) =
                (who(0o070, "g").to_owned() + who(0o007, "o"), who(0o044, "r").to_owned() + who(0o022, "w"));
            mend.push([format!("chmod {who}-{what} ").as_bytes(), &quoted(place)].concat());
        }
        let mut by_hand = mend.join(b" && ".as_slice());
        if !maker.is_empty() {
            by_hand = [b"run ", maker.as_bytes(), b", or ", &by_hand].concat();
        }
        Problem::new(place, what.join(", "), by_hand)
    }

    fn absent(&self, thing: &Thing, place: &[u8], linked: bool, errno: Errno) -> Problem {
        if errno == Errno::EACCES {
            let above = if parent(place).is_empty() { b"/".to_vec() } else { parent(place) };
            let what = "what is in it cannot be looked at as this user";
            return Problem { known: false, ..Problem::new(above, what, "look as root") };
        }
        let mut what = wording(errno).as_bytes().to_vec();
        if linked {
            what.extend([b", and ", thing.path.as_slice(), b" leads there"].concat());
        }
        let mend = match errno {
            Errno::ENOENT if !linked && !thing.maker.is_empty() => format!("run {}", thing.maker),
            _ => "make it, or take out what names it".to_owned(),
        };
        Problem::new(place, what, mend)
    }

    fn wrong_kind(&self, thing: &Thing, place: &[u8], kind: Kind) -> Problem {
        let mut what = format!("it should be {}", kind.name()).into_bytes();
        if place != thing.path {
            what.extend([b", as ", thing.path.as_slice(), b" needs it"].concat());
        }
        let mut mend = b"move it away".to_vec();
        if !thing.maker.is_empty() {
            mend.extend_from_slice(format!(" and run {}", thing.maker).as_bytes());
        }
        Problem::new(place, what, mend)
    }

    fn user(&self, uid: u32) -> String {
        let known = self.users.iter().find(|(u, _)| u.as_raw() == uid);
        known.map_or_else(|| format!("uid {uid}"), |(_, name)| name.clone())
    }

    /// As chown takes it.
    fn account(&self, uid: Uid) -> String {
        let known = self.users.iter().find(|(u, _)| *u == uid);
        known.map_or_else(|| uid.to_string(), |(_, name)| name.clone())
    }

    fn group(&self, gid: u32) -> String {
        let known = self.groups.iter().find(|(g, _)| g.as_raw() == gid);
        known.map_or_else(|| format!("group {gid}"), |(_, name)| format!("group {name}"))
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|b| *b == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec)
}

/// The directory that a real path lies in; that of / is / (here: the empty path).
fn parent(place: &[u8]) -> Vec<u8> {
    let at = place.iter().rposition(|b| *b == b'/').unwrap_or_default();
    place.get(..at).unwrap_or_default().to_vec()
}

/// A path for a shell to read.
fn quoted(path: &[u8]) -> Vec<u8> {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"_./@:-".contains(b);
    if path.iter().all(plain) {
        return path.to_vec();
    }
    let inner: Vec<u8> =
        path.iter().flat_map(|b| if *b == b'\'' { b"'\\''".to_vec() } else { vec![*b] }).collect();
    [b"'", inner.as_slice(), b"'"].concat()
}

/// In a user namespace that does not map it, NAMELESS is the uid of everything outside, the system's own
/// directories with it. Who made the namespace answers for what can be seen in it; nobody inside has that uid.
fn is_outsider(uid: Uid) -> bool {
    let map = || fd::read_file("/proc/self/uid_map", UID_MAP_MAX).ok().flatten();
    uid.as_raw() == NAMELESS && map().is_some_and(|map| lacks_nameless(&map))
}

fn lacks_nameless(map: &[u8]) -> bool {
    let number = |word: Option<&str>| word.and_then(|w| w.parse::<u64>().ok());
    let covers = |line: &str| {
        let mut words = line.split_whitespace();
        let (first, _, count) = (number(words.next()), words.next(), number(words.next()));
        let range = |(first, count): (u64, u64)| first..first.saturating_add(count);
        first.zip(count).map(range).is_none_or(|range| range.contains(&u64::from(NAMELESS)))
    };
    std::str::from_utf8(map).is_ok_and(|text| !text.is_empty() && !text.lines().any(covers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_of_few_users_has_a_nameless_one() {
        assert!(!lacks_nameless(b"         0          0 4294967295\n"));
        assert!(lacks_nameless(b"         0       1000          1\n"));
        assert!(lacks_nameless(b"0 1000 1\n1 100000 65000\n"));
        assert!(!lacks_nameless(b"0 1000 1\n1 100000 65536\n"));
        assert!(!lacks_nameless(b""));
    }

    #[test]
    fn paths_for_a_shell_are_quoted_where_they_must_be() {
        assert_eq!(quoted(b"/var/qmail"), b"/var/qmail");
        assert_eq!(quoted(b"/a b'c"), b"'/a b'\\''c'");
    }

    #[test]
    fn the_parent_of_a_real_path() {
        assert_eq!(parent(b"/a/b"), b"/a");
        assert_eq!(parent(b"/a"), b"");
        assert_eq!(parent(b""), b"");
    }

    #[test]
    fn what_everybody_can_write_is_found_with_its_mend_and_a_sticky_directory_on_the_way_is_fine() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let me = Uid::effective();
        let dir = std::env::temp_dir().join(format!("trust-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("d")).unwrap();
        let mode = |name: &str, mode| {
            std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        std::fs::write(dir.join("d/f"), b"").unwrap();
        symlink("d/f", dir.join("l")).unwrap();
        let path = |name: &str| dir.join(name).into_os_string().into_vec();
        let look = |thing: &Thing| Judge::new(&[me]).all(std::slice::from_ref(thing));
        for name in ["", "d"] {
            mode(name, 0o755);
        }
        mode("d/f", 0o644);
        let thing = Thing::new(Kind::File, path("l"));
        assert_eq!(look(&thing), []);
        mode("d/f", 0o646);
        mode("d", 0o777);
        let found = look(&thing);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].path, path("d"));
        assert_eq!(found[1].path, path("d/f"));
        assert!(found[1].what.starts_with(b"everybody can write it, and "));
        assert_eq!(found[1].mend, [b"chmod o-w ".as_slice(), &path("d/f")].concat());
        mode("d", 0o1777);
        assert_eq!(look(&thing).len(), 1);
        assert_eq!(look(&Thing::new(Kind::Directory, path("l"))).len(), 1);
        assert_eq!(look(&Thing::new(Kind::File, path("none"))).len(), 1);
        assert_eq!(look(&Thing::new(Kind::File, path("none")).optional()), []);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
