//! problems - everything that is wrong with a home, as far as this user can see it
//!
//! A problem loses, delays or misleads mail, or lets strangers do it. A note is worth knowing and may be meant
//! so: a daemon that is not running, a place that this user cannot look into.

use crate::values;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, stat};
use nix::sys::statvfs::statvfs;
use qmail::auth::door as logins;
use qmail::control::Control;
use qmail::home::{Home, Ids};
use qmail::queue::door;
use qmail::setup;
use qmail::spawn;
use qmail::table::Table;
use qmail::trouble::wording;
use qmail::trust::{Kind, Problem};
use qmail::{assign, cdb, decimal, fd};
use std::collections::HashSet;

/// Fewer bytes or files than this on the queue's file system will not last.
const ROOM_MIN: u64 = 64 * 1024 * 1024;
const FILES_MIN: u64 = 1000;

/// What is wrong with a file is told so many times at most.
const LINES_MAX: usize = 20;

/// A file of rules or of users is read whole.
const FILE_MAX: usize = 64 * 1024 * 1024;

/// What each program of the home that a daemon starts is called.
const PROGRAMS: [&str; 8] = [
    "qmail-lspawn",
    "qmail-rspawn",
    "qmail-clean",
    "qmail-send",
    "qmail-queued",
    "qmail-local",
    "qmail-getpw",
    "qmail-remote",
];

/// The accounts of a system home.
const ROLES: [&str; 7] = ["alias", "qmaild", "qmaill", "qmailp", "qmailq", "qmailr", "qmails"];

/// Only the daemons of group qmail read these.
const INTERNAL: [&str; 15] = [
    "bouncefrom",
    "bouncehost",
    "concurrencyhost",
    "concurrencylocal",
    "concurrencyremote",
    "doublebouncehost",
    "doublebounceto",
    "envnoathost",
    "helohost",
    "percenthack",
    "queuelifetime",
    "smtproutes",
    "timeoutconnect",
    "timeoutremote",
    "virtualdomains",
];

/// What a value must be.
type Check = fn(&[u8]) -> Option<&'static str>;

/// Files of one line.
const LINES: [(&str, Check); 13] = [
    ("bouncefrom", values::user),
    ("bouncehost", values::host),
    ("defaultdomain", values::host),
    ("defaulthost", values::host),
    ("doublebouncehost", values::host),
    ("doublebounceto", values::user),
    ("envnoathost", values::host),
    ("helohost", values::host),
    ("idhost", values::host),
    ("localiphost", values::host),
    ("me", values::host),
    ("plusdomain", values::host),
    ("smtpgreeting", greeting),
];

const NUMBERS: [&str; 8] = [
    "concurrencyhost",
    "concurrencylocal",
    "concurrencyremote",
    "databytes",
    "queuelifetime",
    "timeoutconnect",
    "timeoutremote",
    "timeoutsmtpd",
];

const LISTS: [(&str, Check); 5] = [
    ("badmailfrom", values::sender),
    ("locals", values::plain),
    ("morercpthosts", values::wildcard),
    ("percenthack", values::plain),
    ("rcpthosts", values::wildcard),
];

/// Clients take its first word for the name of this host.
fn greeting(line: &[u8]) -> Option<&'static str> {
    values::host(line.split(|b| *b == b' ').next().unwrap_or_default())
}

/// What was found.
#[derive(Default)]
pub struct Findings {
    pub problems: Vec<Problem>,
    pub notes: Vec<Problem>,
}

/// Looks at everything. `names` are those in control/.
pub fn find(home: &Home, names: &[Vec<u8>]) -> Findings {
    let mut look = Look { home, control: home.control(), found: Findings::default() };
    look.trust();
    look.reach();
    look.values();
    look.domains();
    look.misspelt(names);
    look.databases();
    look.running();
    look.room();
    look.found
}

struct Look<'a> {
    home: &'a Home,
    control: Control,
    found: Findings,
}

impl Look<'_> {
    fn problem(&mut self, name: &str, what: impl Into<Vec<u8>>, mend: impl Into<Vec<u8>>) {
        self.found.problems.push(Problem::new(self.home.path(name), what, mend));
    }

    fn note(&mut self, name: &str, what: impl Into<Vec<u8>>) {
        self.found.notes.push(Problem::new(self.home.path(name), what, ""));
    }

    /// Owners, modes, kinds; links and directories on the way.
    fn trust(&mut self) {
        let home = self.home;
        let mut things = setup::place(home);
        things.push(setup::programs(home));
        things.extend(PROGRAMS.iter().map(|name| setup::program(home, &home.path(&format!("bin/{name}")))));
        things.extend(setup::configuration(home));
        // Whose these should be cannot be said while a role is missing.
        if !self.roles_are_missing() {
            things.extend(setup::queue(home));
        }
        things.push(setup::rules(home, Kind::Directory, "tcp"));
        things.extend(
            self.rules().iter().map(|name| setup::rules(home, Kind::File, &format!("tcp/{name}.cdb"))),
        );
        let mut hidden: HashSet<Vec<u8>> = HashSet::new();
        for problem in setup::problems(home, &things) {
            if problem.known {
                self.found.problems.push(problem);
            } else if hidden.insert(problem.path.clone()) {
                self.found.notes.push(Problem { mend: Vec::new(), ..problem });
            }
        }
        if let Ids::System(list) = home.ids() {
            for (n, (name, account)) in list.iter().enumerate() {
                if let Some((other, _)) = list.iter().take(n).find(|(_, a)| a.uid == account.uid) {
                    let (name, other) = (String::from_utf8_lossy(name), String::from_utf8_lossy(other));
                    let what = format!("{name} and {other} have the same uid, and so no wall between them");
                    self.problem("users/ids", what, "give each an account of its own");
                }
            }
        }
    }

    /// Roles that users/ids does not name. The original software has no such file, and its files tell.
    fn roles_are_missing(&mut self) -> bool {
        let home = self.home;
        let missing: Vec<_> = ROLES.into_iter().filter(|role| home.ids().role(role).is_none()).collect();
        if missing.is_empty() || look(&home.path("users/ids")).is_none() {
            return false;
        }
        let what = format!("does not name {}", missing.join(", "));
        self.problem("users/ids", what, "scripts/mkhome --system says what must stand there");
        true
    }

    /// What everybody needs must be open to everybody; in an own home there is only the owner.
    fn reach(&mut self) {
        if self.home.ids().is_own() {
            return;
        }
        for (name, bit, how) in [
            ("", 0o001, "a+x"),
            ("bin", 0o001, "a+x"),
            ("control", 0o001, "a+x"),
            ("users", 0o001, "a+x"),
            ("run", 0o001, "a+x"),
            ("users/ids", 0o004, "a+r"),
        ] {
            if look(&self.home.path(name)).is_some_and(|s| s.st_mode & bit == 0) {
                self.closed(name, how);
            }
        }
        let qmail = self.home.ids().role("qmailq").map(|a| a.gid.as_raw());
        for name in setup::CONTROLS {
            let path = format!("control/{name}");
            let Some(found) = look(&self.home.path(&path)) else { continue };
            let for_group =
                INTERNAL.contains(&name) && qmail == Some(found.st_gid) && found.st_mode & 0o040 != 0;
            // Two are read by root alone: the source of a database, and what qmail-authd may run.
            let for_root = matches!(name, "morercpthosts" | "authprograms");
            if name == "smtpauth" {
                // Passwords: not for everybody, but for qmailr, and root's, as all that qmail-start goes by.
                if found.st_mode & 0o004 != 0 || qmail != Some(found.st_gid) || found.st_mode & 0o040 == 0 {
                    let file = String::from_utf8_lossy(&self.home.path(&path)).into_owned();
                    let mend = format!("chown root:qmail {file}; chmod 640 {file}");
                    self.problem(
                        &path,
                        "is for qmail-remote, which must be able to read it, and for nobody else",
                        mend,
                    );
                }
                continue;
            }
            if found.st_mode & 0o004 == 0 && !for_group && !for_root {
                self.closed(&path, "a+r");
            }
        }
    }

    fn closed(&mut self, name: &str, how: &str) {
        let mend = [format!("chmod {how} ").as_bytes(), &self.home.path(name)].concat();
        self.problem(name, "closed to those who need it", mend);
    }

    /// Each control file for itself.
    fn values(&mut self) {
        let databases = ["morercpthosts.cdb", "submissionsenders.cdb"];
        for name in setup::CONTROLS.iter().filter(|name| !databases.contains(name)) {
            match fd::read_file(self.control.path(name), FILE_MAX) {
                Ok(_) => {}
                Err(Errno::EACCES) => self.note(&format!("control/{name}"), "cannot be read as this user"),
                Err(errno) => {
                    let what = format!(
                        "cannot be read ({}), and programs that need it refuse to work",
                        wording(errno)
                    );
                    self.problem(&format!("control/{name}"), what, "make it a file, or remove it");
                }
            }
        }
        for name in NUMBERS {
            self.number(name);
        }
        for (name, check) in LINES {
            if let Some(line) = self.line(name)
                && let Some(wrong) = check(&line)
            {
                self.entry(name, &line, wrong);
            }
        }
        for (name, check) in LISTS {
            let entries = self.list(name).unwrap_or_default();
            self.entries(
                name,
                entries.iter().filter_map(|e| Some((e.as_slice(), check(e)?.to_owned()))).collect(),
            );
        }
        let routes = self.list("smtproutes").unwrap_or_default();
        let wrong = routes.iter().filter_map(|line| {
            let (key, relay) = match pair(line) {
                Some(pair) => pair,
                None => return Some((line.as_slice(), "has no colon, and is ignored".to_owned())),
            };
            let wrong =
                if key.is_empty() { None } else { values::wildcard(key).map(|w| format!("its host {w}")) };
            let wrong = wrong.or_else(|| values::relay(relay).map(str::to_owned));
            Some((line.as_slice(), wrong?))
        });
        self.entries("smtproutes", wrong.collect());
    }

    fn line(&self, name: &str) -> Option<Vec<u8>> {
        self.control.line(name).ok().flatten()
    }

    fn list(&self, name: &str) -> Option<Vec<Vec<u8>>> {
        self.control.list(name).ok().flatten()
    }

    /// One line of a file that holds what it should not.
    fn entry(&mut self, name: &str, entry: &[u8], wrong: &str) {
        let what = [b"\"", entry, b"\" ", wrong.as_bytes()].concat();
        self.problem(&format!("control/{name}"), what, "correct it");
    }

    fn entries(&mut self, name: &str, wrong: Vec<(&[u8], String)>) {
        for (entry, wrong) in wrong.iter().take(LINES_MAX) {
            self.entry(name, entry, wrong);
        }
        if let Some(more) = wrong.len().checked_sub(LINES_MAX).filter(|more| *more > 0) {
            self.problem(
                &format!("control/{name}"),
                format!("{more} more of its lines are wrong"),
                "correct them",
            );
        }
    }

    fn number(&mut self, name: &str) {
        let Some(line) = self.line(name) else { return };
        let path = format!("control/{name}");
        let most = match name {
            "concurrencylocal" => u64::from(spawn::LIMIT),
            "concurrencyremote" => u64::from(spawn::LIMIT_TOGETHER),
            _ => u64::MAX,
        };
        match (decimal::strict(&line), decimal::prefix(&line)) {
            (None, Some(taken)) => {
                self.entry(name, &line, &format!("is more than a number: {taken} is taken"))
            }
            (None, None) => self.entry(name, &line, "is no number: the default is taken"),
            (Some(0), _) if ["concurrencylocal", "concurrencyremote"].contains(&name) => {
                self.note(&path, "0 holds all deliveries back")
            }
            (Some(n), _) if n > most => {
                self.note(&path, format!("more than {most}, which is the most that a spawner does at once"));
            }
            _ => {}
        }
    }

    /// Whose mail is whose.
    fn domains(&mut self) {
        let unreadable = |name: &str| self.control.list(name).is_err();
        let (no_me, no_rcpthosts) = (unreadable("me"), unreadable("rcpthosts"));
        let me = self.line("me");
        match &me {
            None if !no_me => {
                self.problem("control/me", "missing", "write the full name of this host into it")
            }
            Some(me) if !me.contains(&b'.') && !me.is_empty() => {
                self.note("control/me", "a name without a dot: other hosts may refuse mail from it");
            }
            _ => {}
        }
        match self.list("rcpthosts") {
            None if !no_rcpthosts => self.problem(
                "control/rcpthosts",
                "missing, and so everybody can send mail to every domain through this host",
                "write the domains that this host takes mail for into it",
            ),
            Some(list)
                if list.is_empty() && self.list("morercpthosts").is_none_or(|more| more.is_empty()) =>
            {
                self.note(
                    "control/rcpthosts",
                    "names no domain: mail is taken only from clients that may relay",
                );
            }
            _ => {}
        }
        let locals = self.list("locals").unwrap_or_else(|| me.into_iter().collect());
        let locals: HashSet<Vec<u8>> = locals.iter().map(|d| d.to_ascii_lowercase()).collect();
        let lines = self.list("virtualdomains").unwrap_or_default();
        let mut seen = HashSet::new();
        let mut wrong = Vec::new();
        for line in &lines {
            let Some((key, _)) = pair(line) else {
                wrong.push((line.as_slice(), "has no colon, and is ignored".to_owned()));
                continue;
            };
            let key = key.to_ascii_lowercase();
            let domain = key.rsplit(|b| *b == b'@').next().unwrap_or_default();
            if let Some(words) = values::virtual_key(&key) {
                wrong.push((line.as_slice(), format!("has a key that {words}")));
            } else if locals.contains(domain) {
                wrong.push((line.as_slice(), "is never used: the domain is in control/locals".to_owned()));
            } else if !seen.insert(key) {
                wrong
                    .push((line.as_slice(), "takes the place of an earlier line of the same key".to_owned()));
            }
        }
        self.entries("virtualdomains", wrong);
    }

    fn misspelt(&mut self, names: &[Vec<u8>]) {
        for name in names
            .iter()
            .filter(|name| setup::CONTROLS.iter().all(|known| known.as_bytes() != name.as_slice()))
        {
            if let Some(meant) = values::meant(name, &setup::CONTROLS) {
                let path = [self.home.path("control/").as_slice(), name].concat();
                let mend = format!("rename it to {meant}, or remove it");
                self.found.problems.push(Problem::new(path, "no program reads it", mend));
            }
        }
    }

    /// Databases that say something else than what they were made from.
    fn databases(&mut self) {
        self.database("control/morercpthosts", "control/morercpthosts.cdb", b"qmail-newmrh", true);
        self.database("users/assign", "users/cdb", b"qmail-newu", true);
        let senders = Table::read(&self.control, "submissionsenders", "submissionsenders.cdb");
        if senders.is_ok_and(|table| table.is_stale) {
            let what = "not of control/submissionsenders as it is, and so that is read at each login";
            self.problem("control/submissionsenders.cdb", what, "run qmail-newsenders");
        }
        if let Ok(Some(users)) = cdb::Reader::open(self.home.path("users/cdb"))
            && assign::lookup(&users, b"postmaster").is_err()
        {
            self.problem("users/cdb", "damaged: local mail is put off", "run qmail-newu");
        }
        for name in self.rules() {
            let (source, made) = (format!("tcp/{name}"), format!("tcp/{name}.cdb"));
            let path = self.home.path(&source);
            let quoted = String::from_utf8_lossy(&path).into_owned();
            let mend = format!("tcprules {quoted}.cdb {quoted}.tmp <{quoted}");
            self.database(&source, &made, mend.as_bytes(), false);
        }
    }

    fn database(&mut self, source: &str, made: &str, maker: &[u8], both: bool) {
        let run = [b"run ", maker].concat();
        match (look(&self.home.path(source)), look(&self.home.path(made))) {
            (Some(_), None) => self.problem(made, format!("missing, and so {source} has no effect"), run),
            (None, Some(_)) if both => {
                self.problem(
                    made,
                    format!("made from {source}, which is gone"),
                    "remove it, or bring that back",
                );
            }
            (Some(s), Some(m)) if (s.st_mtime, s.st_mtime_nsec) > (m.st_mtime, m.st_mtime_nsec) => {
                self.problem(made, format!("older than {source}"), run);
            }
            _ => {}
        }
    }

    /// Names in tcp/ of which there is a database.
    fn rules(&self) -> Vec<String> {
        let Ok(list) = std::fs::read_dir(fd::path(&self.home.path("tcp"))) else { return Vec::new() };
        let names = list.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> =
            names.filter_map(|n| n.strip_suffix(".cdb").map(str::to_owned)).collect();
        names.sort();
        names
    }

    /// Daemons may be down for a reason.
    fn running(&mut self) {
        match door::connect_now(self.home) {
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => {
                self.note(
                    door::SOCKET,
                    "nobody listens: qmail-queued is not running, and mail cannot be handed in",
                );
            }
            Err(Errno::EAGAIN) => self.note(door::SOCKET, "so many wait there that no more can"),
            _ => {}
        }
        // A home without POP3 has never had this one.
        if look(&self.home.path(logins::SOCKET)).is_some() && matches!(logins::listener(self.home), Ok(None))
        {
            self.note(
                logins::SOCKET,
                "nobody listens: qmail-authd is not running, and nobody can log in through it",
            );
        }
        let trigger = "queue/lock/trigger";
        let is_fifo = look(&self.home.path(trigger))
            .is_some_and(|s| s.st_mode & nix::libc::S_IFMT == nix::libc::S_IFIFO);
        if is_fifo && matches!(fd::open_write(self.home.path(trigger)), Err(Errno::ENXIO)) {
            self.note(trigger, "nobody reads it: qmail-send is not running, and nothing is delivered");
        }
    }

    fn room(&mut self) {
        let Ok(disk) = statvfs(fd::path(&self.home.path("queue"))) else { return };
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        if free < ROOM_MIN {
            let what = format!("its file system has {} KiB left, and mail will soon be put off", free / 1024);
            self.problem("queue", what, "make room");
        }
        // Some file systems count no files, and say 0 for all.
        if disk.files() > 0 && disk.files_available() < FILES_MIN {
            let what = format!(
                "its file system can hold {} files more, and mail will soon be put off",
                disk.files_available()
            );
            self.problem("queue", what, "remove files there that nobody needs");
        }
    }
}

/// `key:value`, at the first colon.
fn pair(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|b| *b == b':')?;
    Some((line.get(..at)?, line.get(at + 1..)?))
}

/// A file's status; None when it cannot be seen.
fn look(path: &[u8]) -> Option<FileStat> {
    stat(fd::path(path)).ok()
}
