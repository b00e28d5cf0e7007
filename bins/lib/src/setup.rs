//! setup - what the daemons of a home rely on, and whose it must be
//!
//! Descriptions only; `trust::Judge` looks. The daemons ask for the first problem before they do anything
//! (`require`), qmail-showctl for all of them. Programs that run once a message do not look: they would pay
//! for it every time, and what they could find was found when the daemons started.
#![forbid(unsafe_code)]

use crate::fd;
use crate::home::Home;
use crate::trouble::Trouble;
use crate::trust::{Kind, Problem, Thing};
use nix::sys::stat::lstat;
use nix::unistd::Uid;

/// Every control file that some program reads.
pub const CONTROLS: [&str; 41] = [
    "authinsecure",
    "authprograms",
    "badmailfrom",
    "bouncefrom",
    "bouncehost",
    "concurrencyhost",
    "concurrencylocal",
    "concurrencyremote",
    "databytes",
    "defaultdomain",
    "defaulthost",
    "doublebouncehost",
    "doublebounceto",
    "envnoathost",
    "helohost",
    "idhost",
    "localiphost",
    "locals",
    "me",
    "morercpthosts",
    "morercpthosts.cdb",
    "percenthack",
    "plusdomain",
    "qmqpservers",
    "queuelifetime",
    "rcpthosts",
    "scramparams.cdb",
    "scramsecret",
    "smtpgreeting",
    "senderroutes",
    "smtpauth",
    "smtproutes",
    "submissionrate",
    "submissionsenders",
    "submissionsenders.cdb",
    "timeoutconnect",
    "timeoutremote",
    "timeoutsmtpd",
    "tlsclients",
    "tlsroutes",
    "virtualdomains",
];

/// Whoever can read it can take away the pulls that are meant for qmail-send.
const READABLE: u32 = 0o044;

/// Something of the home that belongs to this role.
fn of(home: &Home, kind: Kind, name: &str, role: &str) -> Thing {
    let root = Uid::from_raw(0);
    let owners = match home.ids().role(role) {
        Some(account) if home.ids().is_own() => vec![account.uid, root],
        _ if role == "root" => vec![root],
        Some(account) => vec![account.uid],
        None => Vec::new(),
    };
    Thing { owners, ..home.thing(kind, name) }
}

/// The home itself, and who its users are.
pub fn place(home: &Home) -> Vec<Thing> {
    vec![
        of(home, Kind::Directory, "", "root"),
        of(home, Kind::Directory, "users", "root"),
        // A home of the original software has none.
        of(home, Kind::File, "users/ids", "root").optional(),
    ]
}

/// What says where mail goes.
pub fn configuration(home: &Home) -> Vec<Thing> {
    let files = ["users/assign".to_owned(), "users/cdb".to_owned()]
        .into_iter()
        .chain(CONTROLS.iter().map(|name| format!("control/{name}")))
        .map(|name| of(home, Kind::File, &name, "root").optional());
    std::iter::once(of(home, Kind::Directory, "control", "root")).chain(files).collect()
}

/// The queue and its doors. Who may write one of these can read, forge or remove everybody's mail.
pub fn queue(home: &Home) -> Vec<Thing> {
    // An original home's queue is qmailq's whole; only a person can say that it should be ours.
    let ours = home.ids().is_own() || lstat(fd::path(&home.path("users/ids"))).is_ok();
    let qmailq: Vec<Uid> = home.ids().role("qmailq").map(|account| account.uid).into_iter().collect();
    let mut top = of(home, Kind::Directory, "queue", "root");
    if !ours {
        top.owners.extend(&qmailq);
    }
    let mut things = vec![top];
    let directories = [
        ("lock", "qmailq"),
        ("mess", "qmailq"),
        ("todo", "qmailq"),
        ("intd", "qmailq"),
        ("pid", "qmailq"),
        ("info", "qmails"),
        ("local", "qmails"),
        ("remote", "qmails"),
        ("bounce", "qmails"),
    ];
    for (name, role) in directories {
        things.push(of(home, Kind::Directory, &format!("queue/{name}"), role));
    }
    for (name, role) in [("sendmutex", "qmails"), ("tcpto", "qmailr")] {
        things.push(of(home, Kind::File, &format!("queue/lock/{name}"), role));
    }
    things.push(Thing { closed: READABLE, ..of(home, Kind::Fifo, "queue/lock/trigger", "qmails") });
    for thing in &mut things {
        thing.through.clone_from(&qmailq);
    }
    things.push(of(home, Kind::Directory, "run", "qmailq"));
    // What domains demand of who sends them mail (mta-sts); a home may do without it.
    things.push(of(home, Kind::Directory, "sts", "qmailr").optional());
    things
}

/// The home's directory of programs.
pub fn programs(home: &Home) -> Thing {
    of(home, Kind::Directory, "bin", "root")
}

/// A program that a daemon of the home will start, wherever it was found. In a system home it is root's.
pub fn program(home: &Home, path: &[u8]) -> Thing {
    let in_bin = path.strip_prefix(home.path("bin/").as_slice());
    match in_bin.and_then(|name| std::str::from_utf8(name).ok()) {
        Some(name) => of(home, Kind::Program, &format!("bin/{name}"), "root"),
        None => Thing::new(Kind::Program, path),
    }
}

/// Rules for tcpserver that the home keeps, and where it keeps them.
pub fn rules(home: &Home, kind: Kind, name: &str) -> Thing {
    of(home, kind, name, "root").optional()
}

/// The first problem ends a daemon before it starts: `refusing PATH: WHAT: MEND`.
pub fn require(home: &Home, things: &[Thing]) -> Result<(), Trouble> {
    home.judge().first(things)
}

/// All problems, for a person.
pub fn problems(home: &Home, things: &[Thing]) -> Vec<Problem> {
    home.judge().all(things)
}
