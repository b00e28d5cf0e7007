//! qmail-getpw - find the account that a local part belongs to
//!
//! called by  qmail-lspawn, for what users/cdb does not cover     runs as  qmailp
//! argv       local
//! fd 1       user uid gid home dash ext, each ended by a NUL
//! reads      who owns the home directories; accounts of the home
//! jail       reads the account database where the system keeps it, speaks to its services; no write, no fork,
//!            no exec, and no network unless nsswitch.conf names a source that may need it
//! exit       0; 100 no argument; 111 the account database cannot be asked, the home is in trouble;
//!            115 a home directory cannot be asked about for now; 116 there is no alias account;
//!            118 the account database is busy (ETXTBSY)
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use nix::sys::stat::stat;
use nix::unistd;
use qmail::assign::User;
use qmail::home::{Home, Ids};
use qmail::trouble::{Trouble, is_temporary};
use qmail::{fd, program};
use std::os::unix::ffi::OsStrExt;

/// What separates user and extension in an address.
const BREAK: u8 = b'-';
/// A name of this length or longer is not asked for: no account has one.
const NAME_MAX: usize = 32;

const NFS: i32 = 115;
const NO_ALIAS: i32 = 116;
const BUSY: i32 = 118;

fn main() {
    program::run("qmail-getpw", "qmail-getpw local", getpw)
}

fn getpw(args: program::Args) -> Result<(), Trouble> {
    // No options: the local part of an address may begin with a hyphen.
    let Some(local) = args.list().first() else { return Err(args.wrong()) };
    let home = Home::find();
    let profile = if asks_network() { &programs::QMAIL_GETPW_NETWORK } else { &programs::QMAIL_GETPW };
    Jail::of(profile).close()?;
    let user = match account(local)? {
        Some(user) => user,
        None => {
            complete()?;
            alias(local, &home?)?
        }
    };
    fd::write_all(fd::OUT, &user.fields())
        .map_err(|e| Trouble::temporary("unable to write output").because(e))
}

/// Sources of accounts that need files and sockets of this machine only. (Not `ldap`: there are two of that name.)
const HERE: [&[u8]; 10] = [
    b"files",
    b"compat",
    b"db",
    b"cache",
    b"systemd",
    b"sss",
    b"extrausers",
    b"altfiles",
    b"mymachines",
    b"winbind",
];

const NSSWITCH: &str = "/etc/nsswitch.conf";

/// nsswitch.conf is a page of lines.
const NSSWITCH_MAX: usize = 64 * 1024;

/// Whether a source of accounts may be asked over the network. Denied that, it would be passed over in silence,
/// and a user with an account would be nobody.
fn asks_network() -> bool {
    match fd::read_file(NSSWITCH, NSSWITCH_MAX) {
        Ok(Some(text)) => text.split(|b| *b == b'\n').any(is_elsewhere),
        Ok(None) => false, // the C library asks files then
        Err(_) => true,
    }
}

/// Whether a line names a source of accounts that is not known to be here.
fn is_elsewhere(line: &[u8]) -> bool {
    let line = line.split(|b| *b == b'#').next().unwrap_or_default();
    let mut fields = line.splitn(2, |b| *b == b':');
    let database = fields.next().unwrap_or_default().trim_ascii();
    if ![b"passwd".as_slice(), b"passwd_compat", b"group", b"initgroups"].contains(&database) {
        return false;
    }
    // `[NOTFOUND=return]` says what to do after a source.
    let mut bracket = false;
    fields.next().unwrap_or_default().split(u8::is_ascii_whitespace).any(|word| {
        bracket |= word.starts_with(b"[");
        let source = !bracket && !word.is_empty();
        bracket &= !word.ends_with(b"]");
        source && !HERE.contains(&word)
    })
}

/// The longest user name that the local part begins with.
fn account(local: &[u8]) -> Result<Option<User>, Trouble> {
    for (name, extension) in splits(local) {
        let Some(found) = named(name)? else { continue };
        if found.uid.is_root() || !owns_home(&found)? {
            continue;
        }
        let dash = if extension.is_some() { b"-".to_vec() } else { Vec::new() };
        return Ok(Some(user(found, dash, extension.unwrap_or_default().to_vec())));
    }
    Ok(None)
}

/// Every way to read the local part as a user, alone or before a break, longest name first.
fn splits(local: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    let breaks = local.iter().enumerate().rev().filter(|(_, b)| **b == BREAK).map(|(at, _)| {
        let (name, rest) = local.split_at(at);
        (name, rest.get(1..))
    });
    std::iter::once((local, None)).chain(breaks).filter(|(name, _)| name.len() < NAME_MAX)
}

/// Asks the account database. A name that is no text belongs to nobody; whatever else goes wrong says
/// nothing about the user.
fn named(name: &[u8]) -> Result<Option<unistd::User>, Trouble> {
    let lower = name.to_ascii_lowercase();
    let Ok(text) = std::str::from_utf8(&lower) else { return Ok(None) };
    match unistd::User::from_name(text) {
        Ok(found) => Ok(found),
        // What the C library says when a source of nsswitch.conf does not exist here.
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        Err(Errno::ETXTBSY) => Err(Trouble::exit(BUSY, "account database busy")),
        Err(errno) => Err(Trouble::unable("look up user", name, errno)),
    }
}

/// Before mail becomes nobody's: of several sources in nsswitch.conf, one that cannot be read is passed
/// over in silence, and "not found" is the answer of the others. A database without root is not whole.
fn complete() -> Result<(), Trouble> {
    match unistd::User::from_uid(unistd::Uid::from_raw(0)) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Trouble::temporary("unable to trust the account database: it does not know uid 0")),
        Err(errno) => Err(Trouble::unable("look up user", "root", errno)),
    }
}

fn owns_home(account: &unistd::User) -> Result<bool, Trouble> {
    match stat(&account.dir) {
        Ok(home) => Ok(home.st_uid == account.uid.as_raw()),
        Err(errno) if is_temporary(errno) => {
            Err(Trouble::unable("stat", account.dir.as_os_str().as_bytes(), errno).with_exit(NFS))
        }
        Err(_) => Ok(false),
    }
}

fn user(account: unistd::User, dash: Vec<u8>, ext: Vec<u8>) -> User {
    let home = account.dir.as_os_str().as_bytes().to_vec();
    User { user: account.name.into_bytes(), uid: account.uid, gid: account.gid, home, dash, ext }
}

/// Nobody's mail is the alias account's, with the whole local part as extension. Which account that is the
/// home knows; the account database adds its group and directory only when it speaks of the same uid
/// (several homes may be on this machine, and only one of them can own the name).
fn alias(local: &[u8], home: &Home) -> Result<User, Trouble> {
    let (dash, ext) = (b"-".to_vec(), local.to_vec());
    let role = home.ids().role("alias");
    if let Ids::System(_) = home.ids()
        && let Some(found) = named(b"alias")?
        && role.is_none_or(|role| role.uid == found.uid)
    {
        return Ok(user(found, dash, ext));
    }
    let role = role.ok_or_else(|| Trouble::exit(NO_ALIAS, "unable to find alias user"))?;
    Ok(User { user: b"alias".to_vec(), uid: role.uid, gid: role.gid, home: home.path("alias"), dash, ext })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_known_to_be_here_need_no_network() {
        for here in [
            "passwd: files systemd",
            "passwd:compat # nis",
            "hosts: files dns",
            "",
            "passwd: files [NOTFOUND=return] sss",
        ] {
            assert!(!is_elsewhere(here.as_bytes()), "{here}");
        }
        for elsewhere in
            ["passwd: files ldap", "passwd_compat: nis", " passwd :\tfiles [ NOTFOUND=return ] x"]
        {
            assert!(is_elsewhere(elsewhere.as_bytes()), "{elsewhere}");
        }
    }

    #[test]
    fn the_longest_name_is_tried_first_and_a_very_long_one_never() {
        let all: Vec<_> = splits(b"a-b-c").collect();
        let expected: [(&[u8], Option<&[u8]>); 3] =
            [(b"a-b-c", None), (b"a-b", Some(b"c")), (b"a", Some(b"b-c"))];
        assert_eq!(all, expected);
        let long = [b"x-".as_slice(), &b"y".repeat(40)].concat();
        assert_eq!(splits(&long).count(), 1);
        assert_eq!(splits(b"-x").nth(1), Some((b"".as_slice(), Some(b"x".as_slice()))));
    }
}
