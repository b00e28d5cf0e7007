//! authpasswd - set passwords in a file of users, and make what others look up from it
//!
//! called by  the administrator
//! arguments  [-mn] [-s scheme] file name [uid gid home]   -d file name   -x file ...   -p [-s scheme]
//! runs as    who owns the file, or root
//! fd 0       the password: a line; a terminal is asked twice
//! fd 1       -p: what is stored of it
//! exit       0, 100 wrong use or nothing to be done, 111 temporary trouble
//! touches    the file, FILE.new, FILE.cdb, and control/scramparams.cdb of the home
//! jail       the directories of the files, and control; no network, no exec
#![forbid(unsafe_code)]

use auth::crypt;
use auth::passwd::{self, Index};
use auth::stored::{self, Bare, Scram, Value};
use jail::{Jail, programs};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{FileStat, Mode, fstat, stat};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{Gid, Uid};
use qmail::auth::Secret;
use qmail::home::Home;
use qmail::program::{self, Args, Parsed};
use qmail::sasl::scram::{COUNT, Params, SALT_BYTES};
use qmail::sys::{random, signal};
use qmail::table::{self, TICK};
use qmail::trouble::Trouble;
use qmail::{cdb, decimal, fd};
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

const USAGE: &str = "authpasswd [-mn] [-s scheme] [-P params] file name [uid gid home] | -d [-P params] file name | \
                     -x [-P params] file ... | -p [-mn] [-s scheme]";

/// crypt(3) hashes no longer password.
const PASSWORD_MAX: usize = crypt::PASSWORD_MAX;

/// Names are a part of many file names and of addresses.
const NAME_MAX: usize = 255;

/// Argon2id with the memory (KiB), passes and lanes of RFC 9106's advice for who has little of the first: 19 MiB, as
/// logins are checked 40 at a time.
const ARGON2: (u32, u32, u32) = (19 * 1024, 2, 1);
const ARGON2_KEY: usize = 32;

/// Bytes for a salt of crypt(3): the most that any scheme takes.
const CRYPT_SALT: usize = 32;

/// The file of users, for what is kept in memory: some 100 bytes a user.
const FILE_MAX: usize = 1024 * 1024 * 1024;

/// What people at a terminal, and who ends their session, would end this program with.
const ENDING: [Signal; 5] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGTSTP];

fn main() {
    program::run("authpasswd", USAGE, set)
}

fn set(args: Args) -> Result<(), Trouble> {
    let parsed = args.options("dmnpxs:P:")?;
    let modes = ['d', 'p', 'x'].iter().filter(|letter| parsed.has(**letter)).count();
    if modes > 1 {
        return Err(args.wrong());
    }
    let named: &[Vec<u8>] = match (parsed.rest.as_slice(), parsed.has('x'), parsed.has('p')) {
        ([], false, true) => return print(&parsed),
        (files @ [_, ..], true, false) => files,
        ([file, _name], false, false) => std::slice::from_ref(file),
        ([file, _name, _uid, _gid, _home], false, false) if !parsed.has('d') => std::slice::from_ref(file),
        _ => return Err(args.wrong()),
    };
    let params = params_file(&parsed)?;
    let files = &named.iter().map(|file| real(file)).collect::<Result<Vec<_>, _>>()?;
    close_jail(files, params.as_deref())?;
    match (parsed.rest.as_slice(), files.as_slice()) {
        ([_, name, account @ ..], [file]) if !parsed.has('x') => {
            change(&parsed, file, name, account, params.as_deref())
        }
        _ => make_anew(files, params.as_deref()),
    }
}

/// The file behind links, which is to be replaced.
fn real(file: &[u8]) -> Result<Vec<u8>, Trouble> {
    std::fs::canonicalize(fd::path(file))
        .map(|path| path.into_os_string().into_vec())
        .map_err(|error| Trouble::unable("find", file, qmail::trouble::errno(&error)))
}

/// What a program that has only public parameters may know: of the home, unless it is named, or named as nothing.
fn params_file(parsed: &Parsed) -> Result<Option<Vec<u8>>, Trouble> {
    match parsed.value('P') {
        Some(b"") => Ok(None),
        Some(name) => Ok(Some(name.to_vec())),
        None => Ok(Some(Home::find()?.path("control/scramparams.cdb"))),
    }
}

/// The directories in which files are replaced, and other files of users that the parameters are made of.
fn close_jail(files: &[Vec<u8>], params: Option<&[u8]>) -> Result<(), Trouble> {
    let mut jail = Jail::of(&programs::AUTHPASSWD);
    for file in files.iter().map(Vec::as_slice).chain(params) {
        jail = jail.place(programs::TARGET, jail::parent(file));
    }
    for file in params.map(sources).unwrap_or_default() {
        jail = jail.place(programs::FILE, file);
    }
    jail.close()
}

// ---- the password

/// What is stored of the password on descriptor 0, or of the one that somebody types.
fn make(parsed: &Parsed) -> Result<Vec<u8>, Trouble> {
    let scheme = parsed.value('s').unwrap_or(b"yescrypt");
    let password = ask()?;
    let mut values = Vec::new();
    match scheme {
        b"none" => {}
        b"argon2id" => values.push(argon2id(&password)?),
        scheme => values.push(crypted(&password, scheme)?),
    }
    if !parsed.has('n') {
        let params = Params { count: COUNT, salt: random_bytes(SALT_BYTES)? };
        match Scram::new(&password, params) {
            Some(scram) => values.push(scram.write()),
            None => note(
                "this password is for PLAIN and LOGIN only: it has characters that SCRAM clients may prepare otherwise",
            ),
        }
    }
    if parsed.has('m') {
        values.push(stored::write_cram(&password));
    }
    if values.is_empty() {
        return Err(Trouble::permanent("nothing would be stored"));
    }
    Ok(values.join(&b' '))
}

/// The words of `-s` that libcrypt makes.
fn crypted(password: &[u8], scheme: &[u8]) -> Result<Vec<u8>, Trouble> {
    let prefix: &[u8] = match scheme {
        b"yescrypt" => b"$y$",
        b"bcrypt" => b"$2b$",
        b"sha512" => b"$6$",
        b"sha256" => b"$5$",
        _ => return Err(Trouble::permanent([b"no scheme ", scheme].concat())),
    };
    let setting = crypt::setting(prefix, &random_bytes(CRYPT_SALT)?);
    let hash = setting.and_then(|setting| crypt::hash(password, &setting));
    let unknown = || Trouble::permanent([b"libcrypt of this system has no ", scheme].concat());
    hash.map(|hash| hash.to_vec()).ok_or_else(unknown)
}

fn argon2id(password: &[u8]) -> Result<Vec<u8>, Trouble> {
    let (memory, passes, lanes) = ARGON2;
    let salt = random_bytes(SALT_BYTES)?;
    stored::write_argon2id(password, salt, memory, passes, lanes, ARGON2_KEY)
        .ok_or_else(|| Trouble::temporary("unable to make a hash of argon2"))
}

fn random_bytes(length: usize) -> Result<Vec<u8>, Trouble> {
    let mut bytes = vec![0; length];
    random::fill(&mut bytes).map_err(|errno| Trouble::unable("get", "random bytes", errno))?;
    Ok(bytes)
}

fn ask() -> Result<Secret, Trouble> {
    let password = match tcgetattr(fd::IN) {
        Err(_) => line(|| Ok(()))?,
        Ok(usual) => {
            let silence = Silence::begin(usual)?;
            let first = silence.prompt("New password: ")?;
            let second = silence.prompt("Again: ")?;
            drop(silence);
            if *first != *second {
                return Err(Trouble::permanent("these are not the same"));
            }
            first
        }
    };
    if password.is_empty() || password.len() > PASSWORD_MAX || password.contains(&0) {
        return Err(Trouble::permanent(format!("a password has 1 to {PASSWORD_MAX} bytes, and no NUL")));
    }
    Ok(password)
}

/// A line of descriptor 0, byte by byte: what follows it is not ours. `wait` comes before each of them.
fn line(wait: impl Fn() -> Result<(), Trouble>) -> Result<Secret, Trouble> {
    let mut line = Secret(Vec::with_capacity(PASSWORD_MAX + 2)); // moved, it would leave copies behind
    let mut byte = [0u8; 1];
    while line.len() <= PASSWORD_MAX {
        wait()?;
        match fd::read(fd::IN, &mut byte).map_err(|errno| Trouble::unable("read", "the password", errno))? {
            0 => break,
            _ if byte == *b"\n" => break,
            _ => line.0.extend_from_slice(&byte),
        }
    }
    Ok(line)
}

/// A terminal that does not show what is typed, until this is dropped: also by a signal, which waits for that.
struct Silence {
    usual: Termios,
    mask: SigSet,
}

impl Silence {
    fn begin(usual: Termios) -> Result<Silence, Trouble> {
        let mut silent = usual.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        let silence = Silence { usual, mask: signal::hold(&ENDING) };
        signal::catch(&ENDING);
        tcsetattr(fd::IN, SetArg::TCSAFLUSH, &silent)
            .map_err(|errno| Trouble::unable("silence", "the terminal", errno))?;
        Ok(silence)
    }

    fn prompt(&self, words: &str) -> Result<Secret, Trouble> {
        let _ = fd::write_all(fd::ERR, words.as_bytes());
        let typed = line(typing);
        let _ = fd::write_all(fd::ERR, b"\n");
        typed
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = tcsetattr(fd::IN, SetArg::TCSAFLUSH, &self.usual);
        signal::die_of(&ENDING);
        signal::release(&self.mask);
    }
}

/// Waits until there is something to read.
fn typing() -> Result<(), Trouble> {
    loop {
        match signal::wait(&mut [PollFd::new(fd::IN.as_fd(), PollFlags::POLLIN)], None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) if ENDING.iter().any(|number| signal::take(*number)) => {
                return Err(Trouble::temporary("interrupted, nothing was changed"));
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Trouble::unable("read", "the password", errno)),
        }
    }
}

fn print(parsed: &Parsed) -> Result<(), Trouble> {
    Jail::of(&programs::AUTHPASSWD).close()?;
    let stored = make(parsed)?;
    fd::write_all(fd::OUT, &[stored.as_slice(), b"\n"].concat())
        .map_err(|errno| Trouble::unable("write to", "descriptor 1", errno))
}

fn note(words: &str) {
    let _ = fd::write_all(fd::ERR, format!("authpasswd: note: {words}\n").as_bytes());
}

// ---- the file

/// Sets, adds or removes a user. All files are written before the first of them is put into its place.
fn change(
    parsed: &Parsed,
    file: &[u8],
    name: &[u8],
    account: &[Vec<u8>],
    params: Option<&[u8]>,
) -> Result<(), Trouble> {
    let is_name = (1..=NAME_MAX).contains(&name.len()) && !name.starts_with(b"#");
    if !is_name || name.iter().any(|b| matches!(b, b':' | b'\n' | 0)) {
        return Err(Trouble::permanent("a name has 1 to 255 bytes, no colon, and no # in front"));
    }
    let account = account_of(account)?;
    // Before the lock: somebody may type slowly.
    let stored = if parsed.has('d') { None } else { Some(make(parsed)?) };
    let lock = lock(file)?;
    let found = state(&lock, file)?;
    let text = read(&lock, file)?;
    let fresh = rewrite(&text, name, stored.as_deref(), account.as_deref())?;
    if fresh.split(|b| *b == b'\n').any(|line| line.len() > passwd::LINE_MAX && is_of(line, name)) {
        return Err(Trouble::permanent("the line would be too long"));
    }
    let changed = Aside::write(file, &fresh, &found)?;
    let index = index(file, &fresh, &state(&changed.opened, file)?)?;
    let published = publish(params, &[file.to_vec()], Some(&fresh))?;
    // What others do to the new file could not be told from it within this tick of the clock.
    std::thread::sleep(TICK);
    let now = stat(fd::path(file)).map_err(|errno| Trouble::unable("read", file, errno))?;
    if table::state(&now) != table::state(&found) {
        return Err(Trouble::temporary("somebody else has changed the file meanwhile"));
    }
    let _held = changed.place()?;
    index.place()?;
    published.map_or(Ok(()), Published::place)
}

/// Indexes of files as they are, and the public parameters.
fn make_anew(files: &[Vec<u8>], params: Option<&[u8]>) -> Result<(), Trouble> {
    for file in files {
        let lock = lock(file)?;
        // In this order: whatever is changed behind the look at it has another time, and the index is not believed.
        let found = state(&lock, file)?;
        std::thread::sleep(TICK);
        index(file, &read(&lock, file)?, &found)?.place()?;
    }
    publish(params, files, None)?.map_or(Ok(()), Published::place)
}

/// `uid:gid:home`, when it was given.
fn account_of(words: &[Vec<u8>]) -> Result<Option<Vec<u8>>, Trouble> {
    let [uid, gid, home] = words else { return Ok(None) };
    let is_id = |text: &[u8]| decimal::strict(text).is_some_and(|id| id < u64::from(u32::MAX));
    if !is_id(uid) || !is_id(gid) || home.iter().any(|b| matches!(b, b':' | b'\n' | 0)) {
        return Err(Trouble::permanent("uid and gid are numbers, and a home has no colon"));
    }
    Ok(Some([uid.as_slice(), gid, home].join(&b':')))
}

/// Whether a line is one of this user, whatever else it says.
fn is_of(line: &[u8], name: &[u8]) -> bool {
    line.strip_prefix(name).is_some_and(|rest| rest.starts_with(b":"))
}

/// The text with the user's first good line changed, or with a new line, or without any of the user's.
fn rewrite(
    text: &[u8],
    name: &[u8],
    stored: Option<&[u8]>,
    account: Option<&[u8]>,
) -> Result<Vec<u8>, Trouble> {
    let mut fresh = Vec::with_capacity(text.len() + passwd::LINE_MAX);
    let mut done = false;
    for line in text.split_inclusive(|b| *b == b'\n') {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        match (passwd::parse(bare).filter(|user| user.account.name == name), stored) {
            (None, _) => fresh.extend_from_slice(line),
            (Some(_), None) => done = true,
            (Some(_), Some(_)) if done => fresh.extend_from_slice(line),
            (Some(user), Some(stored)) => {
                let kept = [user.account.uid.to_string(), user.account.gid.to_string()].join(":");
                let kept = [kept.as_bytes(), &user.account.home].join(&b':');
                fresh.extend_from_slice(&[name, stored, account.unwrap_or(&kept)].join(&b':'));
                fresh.push(b'\n');
                done = true;
            }
        }
    }
    match (done, stored, account) {
        (true, _, _) => Ok(fresh),
        (false, Some(stored), Some(account)) => {
            if !fresh.is_empty() && !fresh.ends_with(b"\n") {
                fresh.push(b'\n');
            }
            fresh.extend_from_slice(&[name, stored, account].join(&b':'));
            fresh.push(b'\n');
            Ok(fresh)
        }
        (false, Some(_), None) => Err(Trouble::permanent("a new user needs a uid, a gid and a home")),
        (false, None, _) => Err(Trouble::permanent("there is no such user")),
    }
}

/// The file, held against others who change it. A file that was replaced meanwhile is another one.
fn lock(file: &[u8]) -> Result<Flock<OwnedFd>, Trouble> {
    let unable = |errno| Trouble::unable("lock", file, errno);
    loop {
        let opened = fd::open_read(file).map_err(|errno| Trouble::unable("open", file, errno))?;
        let held = Flock::lock(opened, FlockArg::LockExclusive).map_err(|(_, errno)| unable(errno))?;
        let (ours, there) = (fstat(&*held).map_err(unable)?, stat(fd::path(file)).map_err(unable)?);
        if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino) {
            return Ok(held);
        }
    }
}

fn read(opened: &OwnedFd, file: &[u8]) -> Result<Vec<u8>, Trouble> {
    fd::read_to_end(opened, FILE_MAX).map_err(|errno| Trouble::unable("read", file, errno))
}

fn state(opened: &OwnedFd, file: &[u8]) -> Result<FileStat, Trouble> {
    fstat(opened).map_err(|errno| Trouble::unable("read", file, errno))
}

/// A file that is whole and on disk, and not yet where it shall be. It is held against others from before it can
/// be seen.
struct Aside {
    file: Vec<u8>,
    opened: Flock<OwnedFd>,
    name: Name,
}

/// A name that is not left behind: by then the file has its place, or shall have none.
struct Name(Vec<u8>);

impl Drop for Name {
    fn drop(&mut self) {
        let _ = nix::unistd::unlink(fd::path(&self.0));
    }
}

impl Aside {
    /// With the owner and mode of another one.
    fn write(file: &[u8], bytes: &[u8], like: &FileStat) -> Result<Aside, Trouble> {
        let name = [file, b".new"].concat();
        let unable = |errno| Trouble::unable("write", [file, b".new"].concat(), errno);
        match nix::unistd::unlink(fd::path(&name)) {
            Ok(()) | Err(Errno::ENOENT) => {} // of somebody who was killed: we have the lock
            Err(errno) => return Err(unable(errno)),
        }
        let opened = fd::create_new(&name, 0o600).map_err(unable)?;
        let name = Name(name);
        let opened = Flock::lock(opened, FlockArg::LockExclusive).map_err(|(_, errno)| unable(errno))?;
        let mode = Mode::from_bits_truncate(like.st_mode & 0o777);
        let (uid, gid) = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
        // Who is not root gives no file away, and it is his then; but what one group may do is not for another.
        let groups_own = (like.st_mode >> 3) & !like.st_mode & 0o007 != 0;
        let must =
            |needed: bool, errno| if needed || Uid::effective().is_root() { Err(errno) } else { Ok(()) };
        nix::unistd::fchown(&*opened, None, Some(gid))
            .or_else(|errno| must(groups_own, errno))
            .and_then(|()| nix::unistd::fchown(&*opened, Some(uid), None).or_else(|errno| must(false, errno)))
            .and_then(|()| nix::sys::stat::fchmod(&*opened, mode))
            .and_then(|()| fd::write_all(&*opened, bytes))
            .and_then(|()| fd::fsync(&*opened))
            .map_err(unable)?;
        Ok(Aside { file: file.to_vec(), opened, name })
    }

    fn place(self) -> Result<Flock<OwnedFd>, Trouble> {
        let Aside { file, opened, name } = self;
        std::fs::rename(fd::path(&name.0), fd::path(&file))
            .map_err(|error| Trouble::unable("rename to", &file, qmail::trouble::errno(&error)))?;
        fd::sync_directory(jail::parent(&file))
            .map_err(|errno| Trouble::unable("sync the directory of", &file, errno))?;
        Ok(opened)
    }
}

/// The index of a file that has this text in this state, by who holds its lock.
fn index(file: &[u8], text: &[u8], found: &FileStat) -> Result<Aside, Trouble> {
    let too_big = |_| Trouble::permanent("too many users for an index");
    let mut index = Index::new();
    lines(text).try_for_each(|line| index.add(line)).map_err(too_big)?;
    Aside::write(&passwd::index_name(file), &index.finish(found).map_err(too_big)?, found)
}

/// Lines that readers take for lines.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'\n').filter(|line| line.len() <= passwd::LINE_MAX)
}

// ---- control/scramparams.cdb

/// The files that these parameters were made of: under the empty name, which is nobody's.
fn sources(params: &[u8]) -> Vec<Vec<u8>> {
    let reader = cdb::Reader::open(params).ok().flatten();
    let list = reader.and_then(|reader| reader.get(b"").ok().flatten()).unwrap_or_default();
    list.split(|b| *b == b'\n').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
}

/// The public parameters, made anew, while nobody else makes them.
struct Published {
    made: Aside,
    _held: Flock<OwnedFd>,
}

impl Published {
    fn place(self) -> Result<(), Trouble> {
        self.made.place().map(drop)
    }
}

/// Makes the public parameters of these files, the first of them with a text that it is about to have, and of those
/// that they were made of before.
fn publish(
    params: Option<&[u8]>,
    files: &[Vec<u8>],
    text: Option<&[u8]>,
) -> Result<Option<Published>, Trouble> {
    let Some(params) = params else { return Ok(None) };
    let too_big = |_| Trouble::permanent("too many users for control/scramparams.cdb");
    let directory = fd::open_directory(jail::parent(params))
        .map_err(|errno| Trouble::unable("open the directory of", params, errno))?;
    let held = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| Trouble::unable("lock the directory of", params, errno))?;
    let mut list = files.to_vec();
    for file in sources(params) {
        if !list.contains(&file) {
            list.push(file);
        }
    }
    let mut writer = cdb::Writer::new();
    let mut known: HashSet<Vec<u8>> = HashSet::new();
    let mut add = |line: &[u8]| {
        let Some(user) = passwd::parse(line) else { return Ok(()) };
        let scram = stored::parse(&user.stored, Bare::Hash).into_iter().find_map(|value| match value {
            Value::Scram(scram) => Some(scram.params.text()),
            _ => None,
        });
        let name = user.account.name;
        match scram.filter(|_| !name.is_empty() && known.insert(name.clone())) {
            Some(public) => writer.add(&name, &public).map_err(too_big),
            None => Ok(()),
        }
    };
    let mut kept = Vec::new();
    for (at, file) in list.into_iter().enumerate() {
        match (text, fd::open_read(&file)) {
            (Some(text), _) if at == 0 => lines(text).try_for_each(&mut add)?,
            (_, Ok(opened)) => passwd::each_line(opened, &file, &mut add)?,
            (_, Err(Errno::ENOENT)) => continue,
            (_, Err(errno)) => return Err(Trouble::unable("open", &file, errno)),
        }
        kept.push(file);
    }
    writer.add(b"", &kept.join(&b'\n')).map_err(too_big)?;
    let bytes = writer.finish().map_err(too_big)?;
    let like =
        stat(fd::path(&jail::parent(params))).map_err(|errno| Trouble::unable("read", params, errno))?;
    let mut like = stat(fd::path(params)).unwrap_or(like);
    like.st_mode = 0o644;
    Ok(Some(Published { made: Aside::write(params, &bytes, &like)?, _held: held }))
}
