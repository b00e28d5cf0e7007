//! qmail-showctl - show what the configuration says, file by file, and everything that is wrong
//!
//! called by  the administrator
//! runs as    anybody who may read control/; who sees less finds less, and is told where
//! fd 1       everything: FILE: what it means; then notes, then problems, a line each
//! exit       0 shown, 1 shown and there is a problem, 111 no home, no control, or no readable control/me
//! jail       reads the home and /etc; knocks at run/queue and queue/lock/trigger; no exec, no network
#![forbid(unsafe_code)]

mod problems;
mod values;

use jail::{Jail, programs};
use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, stat};
use qmail::cdb;
use qmail::control::Control;
use qmail::home::{Home, Ids, ROLES};
use qmail::program::{Args, Program};
use qmail::table::Table;
use qmail::trouble::Trouble;
use qmail::trust::Problem;
use qmail::{exits, fd};

/// Byte between a user's name and the extension of an address, in qmail-getpw and qmail-pw2u.
const BREAK: &str = "-";
/// Mode bits that a home directory or .qmail file must not have.
const PATERNALISM: u32 = 0o002;
/// Exit when something is wrong, as of a tool that compares.
const PROBLEMS: i32 = 1;
/// Deliveries a spawner does at once unless told otherwise.
const SPAWN: u32 = 120;

/// What a control file holds, and what its absence means.
enum Kind {
    /// A line whose default is this text.
    Line(&'static str),
    /// A line whose default is control/me, and without that this text.
    Me(&'static str),
    Int(u64),
    /// A list; the text is what its absence means.
    List(&'static str),
    /// control/locals: its absence means control/me.
    Locals,
    /// morercpthosts.cdb, made from morercpthosts.
    Database,
    /// submissionsenders.cdb, the index of submissionsenders.
    Index,
    /// A file whose content is nobody's business here: what its absence means, and its presence.
    There(&'static str, &'static str),
}

/// A control file: name, kind, and the words around its value or around each entry.
struct File(&'static str, Kind, &'static str, &'static str);

use Kind::{Database, Index, Int, Line, List, Locals, Me, There};

/// Every file that control/README.md has, in the order they are shown.
const FILES: [File; 41] = [
    File("authinsecure", Int(0), "SMTP AUTH without TLS (1: allowed) is ", ""),
    File(
        "authprograms",
        List("Logins are checked by checkpassword: pop3 runs qmail-pop3d Maildir, true runs true."),
        "A login may run ",
        "",
    ),
    File("badmailfrom", List("Any envelope sender is allowed."), "Mail from ", " is refused"),
    File("bouncefrom", Line("MAILER-DAEMON"), "Bounce user name is ", ""),
    File("bouncehost", Me("bouncehost"), "Bounce host name is ", ""),
    File("concurrencyhost", Int(20), "Concurrency for one host is ", ""),
    File("concurrencylocal", Int(10), "Local concurrency is ", ""),
    File("concurrencyremote", Int(20), "Remote concurrency is ", ""),
    File("databytes", Int(0), "SMTP DATA limit is ", " bytes"),
    File("defaultdomain", Me("defaultdomain"), "Default domain name is ", ""),
    File("defaulthost", Me("defaulthost"), "Default host name is ", ""),
    File("doublebouncehost", Me("doublebouncehost"), "Double bounce recipient host is ", ""),
    File("doublebounceto", Line("postmaster"), "Double bounce recipient user is ", ""),
    File("envnoathost", Me("envnoathost"), "Presumed domain name is ", ""),
    File("helohost", Me("undefined! Uh-oh"), "SMTP client HELO host name is ", ""),
    File("idhost", Me("idhost"), "Message-ID host name is ", ""),
    File("localiphost", Me("nothing special"), "Local IP address becomes ", ""),
    File("locals", Locals, "Messages for ", " are delivered locally"),
    File("me", Line("undefined! Uh-oh"), "My name is ", ""),
    File(
        "percenthack",
        List("The percent hack is not allowed."),
        "The percent hack is allowed for user%host@",
        "",
    ),
    File("plusdomain", Me("plusdomain"), "Plus domain name is ", ""),
    File("qmqpservers", List("No QMQP servers."), "QMQP server: ", ""),
    File("queuelifetime", Int(604_800), "Message lifetime in the queue is ", " seconds"),
    File("rcpthosts", List("SMTP clients may send messages to any recipient."), RECIPIENTS_AT, ""),
    File("morercpthosts", List("No effect."), RECIPIENTS_AT, ""),
    File("morercpthosts.cdb", Database, "", ""),
    File("scramparams.cdb", There("No SCRAM.", "Names have keys for SCRAM."), "", ""),
    File("scramsecret", There("No SCRAM.", "Names without keys get salts all the same."), "", ""),
    File("senderroutes", List("No routes by sender."), "Route by sender: ", ""),
    File("smtpauth", There("No logins at relays.", "Routes name logins of it."), "", ""),
    File("smtpgreeting", Me("undefined! Uh-oh"), "SMTP greeting: 220 ", ""),
    File("smtproutes", List("No artificial SMTP routes."), "SMTP route: ", ""),
    File("submissionrate", Int(1000), "Accounts may send to so many recipients an hour: ", ""),
    File(
        "submissionsenders",
        List("Accounts submit mail as themselves only."),
        "Account and its other senders: ",
        "",
    ),
    File("submissionsenders.cdb", Index, "", ""),
    File("timeoutconnect", Int(60), "SMTP client connection timeout is ", " seconds"),
    File("timeoutremote", Int(1200), "SMTP client data timeout is ", " seconds"),
    File("timeoutsmtpd", Int(1200), "SMTP server data timeout is ", " seconds"),
    File(
        "tlsclients",
        List("No client certificate is as good as a password."),
        "Certificate that may log in: ",
        "",
    ),
    File(
        "tlsroutes",
        List("Hosts prove themselves as they publish it (DANE, MTA-STS)."),
        "How a host must prove itself: ",
        "",
    ),
    File("virtualdomains", List("No virtual domains."), "Virtual domain: ", ""),
];

/// What is in PEM is for openssl(1) to show.
const NOT_OURS: [(&str, &str); 2] = [
    ("tls", "Certificates and keys, of tlsserver and tlsclient."),
    ("tlsca", "Authorities that tlsclient trusts, in the place of the system's."),
];

const RECIPIENTS_AT: &str = "SMTP clients may send messages to recipients at ";

fn main() -> ! {
    Program::new("qmail-showctl", "qmail-showctl").run(showctl)
}

fn showctl(args: Args) -> Result<(), Trouble> {
    args.none()?;
    let mut out = Vec::new();
    let result = show(&mut out);
    if let Err(trouble) = &result {
        out.extend_from_slice(b"Oops! ");
        out.extend(trouble.text().into_iter().map(printable));
        out.extend_from_slice(b".\n");
    }
    fd::write_all(fd::OUT, &out).map_err(|e| Trouble::unable("write", "output", e))?;
    match result {
        Ok(Found::Nothing) => Ok(()),
        Ok(Found::Problems) => Err(Trouble::exit(PROBLEMS, "")),
        Err(_) => Err(Trouble::exit(exits::TEMPORARY, "")),
    }
}

/// Whether something is wrong.
enum Found {
    Nothing,
    Problems,
}

/// What a file holds may be anything; a terminal gets none of it raw.
fn printable(byte: u8) -> u8 {
    if matches!(byte, 32..=126) { byte } else { b'?' }
}

fn show(out: &mut Vec<u8>) -> Result<Found, Trouble> {
    let home = Home::look()?;
    Jail::of(&programs::QMAIL_SHOWCTL).home(&home).close()?;
    head(out, &home);
    let control = home.control();
    let names = entries(&home)?;
    let me = control.me()?;
    for file in &FILES {
        out.extend_from_slice(format!("\n{}: ", file.0).as_bytes());
        if describe(out, &control, file, me.as_deref()).is_err() {
            out.extend_from_slice(b"Oops! Trouble reading this file.\n");
        }
    }
    for name in names.iter().filter(|name| FILES.iter().all(|file| file.0.as_bytes() != name.as_slice())) {
        let known = NOT_OURS.iter().find(|(known, _)| known.as_bytes() == name.as_slice());
        let what = known.map_or("I have no idea what this file does.", |(_, what)| what);
        out.push(b'\n');
        out.extend(name.iter().copied().map(printable));
        out.extend_from_slice(format!(": {what}\n").as_bytes());
    }
    let mut found = problems::find(&home, &names);
    // What keeps programs in their places, and this kernel cannot do.
    found.notes.extend(jail::support().into_iter().map(|lack| Problem::new("this kernel", lack, "")));
    findings(out, "notes", &found.notes);
    findings(out, "problems", &found.problems);
    Ok(if found.problems.is_empty() { Found::Nothing } else { Found::Problems })
}

/// As a file that is a list; nothing when there is none.
fn findings(out: &mut Vec<u8>, heading: &str, list: &[Problem]) {
    if !list.is_empty() {
        out.extend_from_slice(format!("\n{heading}: \n").as_bytes());
    }
    for problem in list {
        out.extend(problem.line().into_iter().map(printable));
        out.push(b'\n');
    }
}

/// What is built in, and who the users are.
fn head(out: &mut Vec<u8>, home: &Home) {
    let id = |role: &str, group: bool| match home.ids().role(role) {
        Some(account) if group => account.gid.to_string(),
        Some(account) => account.uid.to_string(),
        None if role == "root" => "0".to_owned(),
        None => "unknown".to_owned(),
    };
    let users: Vec<String> = ROLES.iter().map(|role| id(role, false)).collect();
    let kind = match home.ids() {
        Ids::Own(owner) => format!("own, everything runs as uid {} and gid {}", owner.uid, owner.gid),
        Ids::System(_) => "system, its programs run as separate users".to_owned(),
    };
    out.extend_from_slice(b"qmail home directory: ");
    out.extend(home.path("").into_iter().map(printable));
    out.extend_from_slice(
        format!(
            ".\nuser-ext delimiter: {BREAK}.\npaternalism (in decimal): {PATERNALISM}.\n\
             silent concurrency limit: {SPAWN}.\nsubdirectory split: {}.\nuser ids: {}.\ngroup ids: {}, {}.\n\
             home kind: {kind}.\n",
            qmail::queue::SPLIT,
            users.join(", "),
            id("alias", true),
            id("qmailq", true),
        )
        .as_bytes(),
    );
    if look(&home.path("users/ids")).is_none() {
        out.extend_from_slice(
            b"users/ids: (Default.) Users are told by the owners of alias and of the queue.\n",
        );
    }
}

/// The names in control/, in order.
fn entries(home: &Home) -> Result<Vec<Vec<u8>>, Trouble> {
    let unable = |errno| Trouble::unable("read", home.path("control"), errno);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut directory = Dir::open(fd::path(&home.path("control")), flags, Mode::empty()).map_err(unable)?;
    let mut names = Vec::new();
    for entry in directory.iter() {
        let name = entry.map_err(unable)?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// One file, its name already written.
fn describe(out: &mut Vec<u8>, control: &Control, file: &File, me: Option<&[u8]>) -> Result<(), Trouble> {
    let File(name, kind, before, after) = file;
    match kind {
        Line(default) => {
            let found = control.line(name)?;
            value(out, found.is_none(), before, found.as_deref().unwrap_or(default.as_bytes()), after);
        }
        Me(default) => {
            let found = control.line(name)?;
            value(out, found.is_none(), before, found.as_deref().or(me).unwrap_or(default.as_bytes()), after);
        }
        Int(default) => {
            let found = control.line(name)?.and_then(|line| qmail::decimal::prefix(&line));
            value(out, found.is_none(), before, found.unwrap_or(*default).to_string().as_bytes(), after);
        }
        List(absent) => match control.list(name)? {
            Some(entries) => list(out, &entries, before, after),
            None => out.extend_from_slice(format!("(Default.) {absent}\n").as_bytes()),
        },
        Locals => match control.list(name)? {
            Some(entries) => list(out, &entries, before, after),
            None => value(out, true, before, me.unwrap_or(b"undefined! Uh-oh"), after),
        },
        Index => index(out, control)?,
        Database => database(out, control)?,
        There(absent, there) => {
            let found = look(&control.path(name)).is_some_and(|file| file.st_size > 1);
            let text = if found { (*there).to_owned() } else { format!("(Default.) {absent}") };
            out.extend_from_slice(format!("{text}\n").as_bytes());
        }
    }
    Ok(())
}

fn value(out: &mut Vec<u8>, is_default: bool, before: &str, value: &[u8], after: &str) {
    if is_default {
        out.extend_from_slice(b"(Default.) ");
    }
    out.extend_from_slice(before.as_bytes());
    out.extend(value.iter().copied().map(printable));
    out.extend_from_slice(after.as_bytes());
    out.extend_from_slice(b".\n");
}

fn list(out: &mut Vec<u8>, entries: &[Vec<u8>], before: &str, after: &str) {
    out.push(b'\n');
    for entry in entries {
        value(out, false, before, entry, after);
    }
}

/// Whether morercpthosts.cdb says what morercpthosts says.
fn database(out: &mut Vec<u8>, control: &Control) -> Result<(), Trouble> {
    let (source, made) = (look(&control.path("morercpthosts")), look(&control.path("morercpthosts.cdb")));
    let text = match (source, made) {
        (None, None) => "(Default.) No effect.",
        (Some(_), None) => "Oops! morercpthosts exists but morercpthosts.cdb doesn't. Run qmail-newmrh.",
        (None, Some(_)) => "Oops! morercpthosts.cdb exists but morercpthosts doesn't.",
        (Some(source), Some(made)) if changed(&source) > changed(&made) => {
            "Oops! morercpthosts.cdb is older than morercpthosts. Run qmail-newmrh."
        }
        (Some(_), Some(_)) => {
            // Asked as qmail-smtpd will: what it cannot read makes it refuse the connection.
            let reader = cdb::Reader::open(control.path("morercpthosts.cdb"));
            reader
                .map_err(cdb::Error::Io)
                .and_then(|r| r.map_or(Ok(false), |r| r.contains(b"example.com")))
                .map_err(|error| error.trouble("control/morercpthosts.cdb"))?;
            "Up to date."
        }
    };
    out.extend_from_slice(text.as_bytes());
    out.push(b'\n');
    Ok(())
}

/// Whether submissionsenders.cdb is of submissionsenders.
fn index(out: &mut Vec<u8>, control: &Control) -> Result<(), Trouble> {
    let there = |name: &str| look(&control.path(name)).is_some();
    let text = match (there("submissionsenders"), there("submissionsenders.cdb")) {
        (_, false) => "(Default.) submissionsenders is read at each login.",
        (false, true) => "Oops! submissionsenders.cdb exists but submissionsenders doesn't.",
        (true, true) if Table::read(control, "submissionsenders", "submissionsenders.cdb")?.is_stale => {
            "Oops! submissionsenders.cdb is not of submissionsenders as it is. Run qmail-newsenders."
        }
        (true, true) => "Up to date.",
    };
    out.extend_from_slice(text.as_bytes());
    out.push(b'\n');
    Ok(())
}

fn changed(file: &FileStat) -> (i64, i64) {
    (file.st_mtime, file.st_mtime_nsec)
}

/// A file's status; None when it cannot be seen.
fn look(path: &[u8]) -> Option<FileStat> {
    stat(fd::path(path)).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_shown_is_what_daemons_look_at() {
        let mut shown: Vec<_> = super::FILES.iter().map(|file| file.0).collect();
        shown.sort_unstable();
        let mut known = qmail::setup::CONTROLS;
        known.sort_unstable();
        assert_eq!(shown, known);
    }
}
