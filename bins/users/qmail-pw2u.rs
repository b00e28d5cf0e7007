//! qmail-pw2u - make users/assign from a password file
//!
//! called by  an administrator: qmail-pw2u < /etc/passwd > users/assign
//! fd 0       name:password:uid:gid:gecos:home:shell lines
//! fd 1       the lines of users/assign, only when all went well
//! reads      users/include exclude mailnames subusers append; who owns the home directories
//! jail       reads users/; no exec, no network
//! exit       0; 100 usage; 111 trouble, a home directory missing with -h, no account alias
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use nix::sys::stat::stat;
use qmail::control::{self, Map, Set};
use qmail::home::Home;
use qmail::trouble::Trouble;
use qmail::{decimal, fd, program};
use std::collections::HashMap;

const USAGE: &str = "qmail-pw2u [ -/ohHuUC ] [ -c char ]";
/// A password file of a million users; the result is kept until all of it is known.
const INPUT_MAX: usize = 256 * 1024 * 1024;
const ALIAS: &[u8] = b"alias";

fn main() {
    program::run("qmail-pw2u", USAGE, pw2u)
}

fn pw2u(args: program::Args) -> Result<(), Trouble> {
    let options = Options::of(&args)?;
    let home = Home::find()?;
    let users = home.path("users");
    nix::unistd::chdir(fd::path(&users)).map_err(|e| Trouble::unable("chdir to", &users, e))?;
    Jail::of(&programs::QMAIL_PW2U).home(&home).close()?;
    let lists = Lists::read()?;
    let input = fd::read_to_end(fd::IN, INPUT_MAX)
        .map_err(|e| Trouble::temporary("unable to read input").because(e))?;
    let mut out = Vec::new();
    let mut accounts = Vec::new();
    for line in input.split(|b| *b == b'\n') {
        let Some(account) = Account::parse(line) else { continue };
        if wanted(&account, &options, &lists)? {
            print_account(&account, &options, &lists, &mut out);
            accounts.push(account);
        }
    }
    if !accounts.iter().any(|a| a.name == ALIAS) {
        return Err(Trouble::temporary("unable to find alias user"));
    }
    print_subusers(&accounts, &options, &lists, &mut out)?;
    out.extend_from_slice(&lists.append);
    if out.last().is_some_and(|b| *b != b'\n') {
        out.push(b'\n'); // or the final dot would become part of that line
    }
    out.extend_from_slice(b".\n");
    fd::write_all(fd::OUT, &out).map_err(|e| Trouble::temporary("unable to write output").because(e))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HomeCheck {
    /// A missing home means: skip the user.
    Skip,
    /// A missing home means: stop.
    Stop,
    None,
}

struct Options {
    homes: HomeCheck,
    uppercase: bool,
    separator: Option<u8>,
    dash: &'static [u8],
}

impl Options {
    fn of(args: &program::Args) -> Result<Options, Trouble> {
        let mut o = Options { homes: HomeCheck::Skip, uppercase: false, separator: Some(b'-'), dash: b"-" };
        for (letter, value) in args.options("/ohHuUCc:")?.options {
            match letter {
                '/' => o.dash = b"-/",
                'o' => o.homes = HomeCheck::Skip,
                'h' => o.homes = HomeCheck::Stop,
                'H' => o.homes = HomeCheck::None,
                'u' => o.uppercase = true,
                'U' => o.uppercase = false,
                'C' => o.separator = None,
                _ => o.separator = Some(separator(&value)?),
            }
        }
        Ok(o)
    }
}

/// One byte that can stand in a line of users/assign.
fn separator(value: &[u8]) -> Result<u8, Trouble> {
    match value {
        [byte] if !b":\n\0".contains(byte) => Ok(*byte),
        _ => Err(Trouble::usage("-c takes one character, and no colon")),
    }
}

/// The administrator's wishes, in users/.
struct Lists {
    include: Option<Set>,
    exclude: Set,
    mailnames: Map,
    subusers: Vec<Vec<u8>>,
    append: Vec<u8>,
}

impl Lists {
    fn read() -> Result<Lists, Trouble> {
        let text = |name: &str| {
            fd::read_file(name, INPUT_MAX)
                .map_err(|e| Trouble::temporary(format!("unable to read controls: users/{name}")).because(e))
        };
        let list = |name| Ok::<_, Trouble>(text(name)?.map(|t| control::entries(&t)));
        Ok(Lists {
            include: list("include")?.map(|l| Set::of(&l)),
            exclude: Set::of(&list("exclude")?.unwrap_or_default()),
            mailnames: Map::of(&list("mailnames")?.unwrap_or_default()),
            subusers: list("subusers")?.unwrap_or_default(),
            append: text("append")?.unwrap_or_default(),
        })
    }
}

/// A line of the password file.
struct Account {
    name: Vec<u8>,
    uid: u64,
    gid: u64,
    home: Vec<u8>,
}

impl Account {
    /// None for what is no account: too few fields, no name, ids that are no numbers, a NUL.
    fn parse(line: &[u8]) -> Option<Account> {
        let fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
        let [name, _password, uid, gid, _gecos, home, ..] = fields.as_slice() else { return None };
        if name.is_empty() || line.contains(&0) {
            return None;
        }
        let (uid, gid) = (decimal::strict(uid)?, decimal::strict(gid)?);
        Some(Account { name: name.to_vec(), uid, gid, home: home.to_vec() })
    }

    /// `user:uid:gid:home:`
    fn fields(&self) -> Vec<u8> {
        [
            self.name.as_slice(),
            b":",
            &decimal::text(self.uid),
            b":",
            &decimal::text(self.gid),
            b":",
            &self.home,
            b":",
        ]
        .concat()
    }
}

fn wanted(account: &Account, options: &Options, lists: &Lists) -> Result<bool, Trouble> {
    let name = account.name.as_slice();
    if account.uid == 0
        || (!options.uppercase && name.iter().any(u8::is_ascii_uppercase))
        || lists.include.as_ref().is_some_and(|include| !include.contains(name))
        || lists.exclude.contains(name)
    {
        return Ok(false);
    }
    if options.homes == HomeCheck::None {
        return Ok(true);
    }
    match stat(fd::path(&account.home)) {
        Ok(home) => Ok(u64::from(home.st_uid) == account.uid),
        Err(Errno::ENOENT) if options.homes == HomeCheck::Skip => Ok(false),
        Err(errno) => Err(Trouble::unable("stat", &account.home, errno)),
    }
}

fn print_account(account: &Account, options: &Options, lists: &Lists, out: &mut Vec<u8>) {
    let fields = account.fields();
    if account.name == ALIAS {
        out.extend_from_slice(&[b"+:".as_slice(), &fields, options.dash, b"::\n"].concat());
    }
    let names = lists.mailnames.get(&account.name).unwrap_or(&account.name);
    for name in names.split(|b| *b == b':').filter(|n| !n.is_empty()) {
        out.extend_from_slice(&[b"=", name, b":", &fields, b"::\n"].concat());
        if let Some(separator) = options.separator {
            out.extend_from_slice(&[b"+", name, &[separator, b':'], &fields, options.dash, b"::\n"].concat());
        }
    }
}

fn print_subusers(
    accounts: &[Account],
    options: &Options,
    lists: &Lists,
    out: &mut Vec<u8>,
) -> Result<(), Trouble> {
    let by_name: HashMap<&[u8], &Account> = accounts.iter().map(|a| (a.name.as_slice(), a)).collect();
    for line in &lists.subusers {
        let parts: Vec<&[u8]> = line.split(|b| *b == b':').collect();
        let [sub, user, pre, ..] = parts.as_slice() else {
            return Err(Trouble::temporary([b"bad format in users/subusers: ", line.as_slice()].concat()));
        };
        let account = by_name.get(user).ok_or_else(|| {
            Trouble::temporary([b"unable to find ".as_slice(), user, b" user for subuser"].concat())
        })?;
        let fields = account.fields();
        out.extend_from_slice(&[b"=", *sub, b":", &fields, options.dash, b":", pre, b":\n"].concat());
        if let Some(separator) = options.separator {
            let key: &[u8] = &[separator, b':'];
            out.extend_from_slice(&[b"+", *sub, key, &fields, options.dash, b":", pre, b"-:\n"].concat());
        }
    }
    Ok(())
}
