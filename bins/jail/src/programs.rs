//! programs - what each program may do: the one manifest
//!
//! A program's own constants are the only ones that end up in its binary. doc/security.md shows all of them
//! (`scripts/security-tables`), and `scripts/check` compares.
//!
//! A place of a program that lives long is a directory wherever its files may be replaced by rename: the
//! permission would stay with the old file.
#![forbid(unsafe_code)]

use crate::calls::{
    ADDRESSES, ALARM, FILES, INTERNET, LIBRARIES, LINK, LOCK, NARROW, PAIR, PATCH, PIPES, RENAME, RUN,
    SERVICES, SIBLINGS, SYNC, TALK, TERMINAL, UNIX, UNLINK as REMOVE, UPGRADE, WAIT,
};
use crate::profile::{
    Access, CREATE, EXECUTE, LINKS, LIST, Lot, MKDIR, MOVE, Network, Place, Profile, READ, RMDIR, TRUNCATE,
    UNLINK, WRITE, Where,
    Where::{Given, Home, Path},
};

/// Names of places that only the program can tell.
pub const PROGRAMS: &str = "the directory that the home's programs really lie in";
pub const TARGET: &str = "the directories of the files named";
pub const QUEUE: &str = "the queue";
pub const FILE: &str = "the file named";
pub const AUTHORITIES: &str = "the directories of the files of authorities";
pub const RESOLVER: &str = "the directory that /etc/resolv.conf really lies in";

const fn place(at: Where, may: Access) -> Place {
    Place { at, may }
}

const fn own(places: &'static [Place]) -> Lot {
    Lot { name: "", places }
}

/// What `qmail::queue::accept` does.
const ACCEPT: Lot = Lot {
    name: "to write the queue",
    places: &[
        place(Home("queue/pid"), READ | WRITE | CREATE | UNLINK | MOVE),
        place(Home("queue/mess"), LIST | CREATE | UNLINK | MOVE),
        place(Home("queue/intd"), READ | WRITE | CREATE | UNLINK | MOVE),
        place(Home("queue/todo"), LIST | CREATE | UNLINK | MOVE),
        place(Home("queue/lock"), WRITE),
    ],
};

/// What a program of ours needs to find its home, and to start where it is not static.
const START: Lot = Lot {
    name: "to start a program of ours",
    places: &[
        // The kernel asks for both. The home's own directory, too: a link in it may become a program.
        place(Given(PROGRAMS), READ | EXECUTE),
        place(Home("bin"), READ | EXECUTE),
        place(Home("users/ids"), READ),
        place(Path("/lib64/ld-linux-x86-64.so.2"), READ | EXECUTE),
        place(Path("/lib/ld-linux-aarch64.so.1"), READ | EXECUTE),
        place(Path("/lib"), READ),
        place(Path("/lib64"), READ),
        place(Path("/usr/lib"), READ),
        place(Path("/usr/lib64"), READ),
        place(Path("/usr/local/lib"), READ),
    ],
};

/// Where the system keeps what its own libraries read.
const SYSTEM: Lot = Lot {
    name: "settings of the system",
    places: &[
        place(Path("/etc"), READ),
        place(Path("/run"), READ),
        place(Path("/var/run"), READ),
        place(Given(RESOLVER), READ),
    ],
};

// ---- net

pub static TCPSERVER: Profile =
    Profile::limits("tcpserver", "root until it listens, then `-u` `-g`", "its arguments");

pub static TCPSERVER_NAMES: Profile = Profile::jail("tcpserver", "as before")
    .part("a child that asks the DNS")
    .network(Network::Ports("TCP to the ports of the DNS servers; UDP"))
    .calls(&[&RUN, &TALK, &INTERNET]);

pub static TCPSERVER_IDENT: Profile = Profile::jail("tcpserver", "as before")
    .part("a child that asks ident")
    .network(Network::Local("the connection to the ident server"))
    .calls(&[&RUN, &TALK]);

pub static TCPRULES: Profile = Profile::jail("tcprules", "its caller").files(&[own(&[
    place(Given(TARGET), LIST | WRITE | TRUNCATE | CREATE | UNLINK | MOVE),
    place(Given(FILE), WRITE | TRUNCATE),
])]);

pub static TCPRULESCHECK: Profile =
    Profile::jail("tcprulescheck", "its caller").files(&[own(&[place(Given(FILE), READ)])]);

pub static RELAY_CTRL_CHECK: Profile = Profile::limits("relay-ctrl-check", "qmaild", "its arguments");

// ---- tls

pub static TLSSERVER: Profile =
    Profile::limits("tlsserver", "root, then of a child `-u` `-g`; or who starts it", "its arguments");

pub static TLSSERVER_KEEPER: Profile = Profile::jail("tlsserver", "`-T`, the keys' owner or qmailp")
    .part("the process that has the keys")
    .network(Network::Local("connections of sessions in their handshake"))
    .calls(&[&RUN, &TALK]);

pub static TLSSERVER_SESSION: Profile = Profile::jail("tlsserver", "`-T`, the keys' owner or qmailp")
    .part("the process that speaks TLS, one a connection")
    .network(Network::Local("the connection; the program; the process that has the keys"))
    .calls(&[&RUN, &TALK, &WAIT]);

pub static TLSCLIENT: Profile = Profile::limits("tlsclient", "qmailr", "its arguments");

pub static TLSCLIENT_SERVER: Profile = Profile::jail("tlsclient", "qmailr")
    .part("the child that stays")
    .files(&[own(&[place(Home("control"), READ | LINKS), place(Given(AUTHORITIES), READ)])])
    .network(Network::Local("connections that are handed over"))
    .forks();

pub static TLSCLIENT_SESSION: Profile = Profile::jail("tlsclient", "qmailr")
    .part("the process that speaks TLS, one a connection")
    .network(Network::Local("the connection; who asked for it"))
    .calls(&[&RUN, &TALK]);

pub static TLSCERT: Profile = Profile::jail("tlscert", "root, or the owner")
    .files(&[own(&[place(Given(TARGET), READ | LIST | WRITE | CREATE | UNLINK | MKDIR | RMDIR)])]);

// ---- smtp

pub static QMAIL_SMTPD: Profile = Profile::jail("qmail-smtpd", "qmaild")
    .files(&[own(&[place(Home("run"), LIST)])])
    .network(Network::Local("the connection; sockets of this machine (`run/queue`)"))
    .calls(&[&RUN, &FILES, &TALK, &UNIX, &ADDRESSES, &PIPES, &TERMINAL, &UPGRADE]);

/// No connection is read here; each process it forks ends that right for itself before it reads one.
pub static QMAIL_SMTPD_READY: Profile = Profile::jail("qmail-smtpd", "qmaild")
    .part("that stays ready, and is forked for each connection")
    .files(&[own(&[place(Home("run"), LIST)])])
    .network(Network::Local("the connections; sockets of this machine (`run/queue`)"))
    .calls(&[&RUN, &FILES, &TALK, &UNIX, &ADDRESSES, &PIPES, &TERMINAL, &SIBLINGS])
    .forks();

pub static QMAIL_SMTPD_OWN: Profile = Profile::jail("qmail-smtpd", "the owner")
    .part("where its user owns the queue")
    .files(&[own(&[place(Home("run"), LIST)]), ACCEPT, START])
    .network(Network::Local("the connection; sockets of this machine (`run/queue`)"))
    .executes("bin/qmail-queue, when nobody listens at `run/queue`");

pub static QMAIL_SMTPD_LAUNCHER: Profile =
    Profile::limits("qmail-smtpd", "qmaild", "`$QMAILQUEUE`").part("with QMAILQUEUE");

pub static QMAIL_SMTPD_CHECKING: Profile =
    Profile::limits("qmail-smtpd", "its caller", "its arguments").part("the process that runs a checker");

pub static QMAIL_SMTPD_TALKING: Profile = Profile::jail("qmail-smtpd", "qmaild")
    .part("with QMAILQUEUE, the child that talks")
    .network(Network::Local("the connection"))
    .calls(&[&RUN, &TALK, &ADDRESSES, &PATCH, &PIPES, &TERMINAL, &UPGRADE]);

// ---- inject

pub static QMAIL_INJECT: Profile = Profile::limits(
    "qmail-inject",
    "its caller",
    "`$QMAILQUEUE`, bin/qmail-queue; it can no more than who calls it",
);

pub static SENDMAIL: Profile =
    Profile::limits("sendmail", "its caller", "qmail-inject, qmail-smtpd, qmail-qread");

// ---- queue

pub static QMAIL_QUEUE: Profile = Profile::jail("qmail-queue", "its caller, who owns the queue")
    .part("writing the queue")
    .files(&[ACCEPT])
    .calls(&[&RUN, &FILES, &REMOVE, &LINK, &SYNC, &ALARM]);

/// Without a filter: it has nothing that its caller has not, parses one answer of ours, and a filter would be a
/// fifth of its life.
pub static QMAIL_QUEUE_ASKING: Profile = Profile::jail("qmail-queue", "its caller")
    .part("asking qmail-queued")
    .network(Network::Local("the connection to `run/queue`"));

pub static QMAIL_QUEUED: Profile = Profile::jail("qmail-queued", "qmailq")
    .files(&[ACCEPT])
    .network(Network::Local("the socket `run/queue`"))
    .forks();

pub static QMAIL_QUEUED_WORKER: Profile = Profile::jail("qmail-queued", "qmailq")
    .part("a worker, which takes messages")
    .calls(&[&RUN, &FILES, &REMOVE, &LINK, &SYNC, &ALARM, &TALK])
    .stays();

const SEND: Lot = Lot {
    name: "of qmail-send",
    places: &[
        place(Home("control"), READ | LINKS),
        place(Home("queue/info"), READ | LIST | WRITE | TRUNCATE | CREATE | UNLINK),
        place(Home("queue/local"), READ | LIST | WRITE | TRUNCATE | CREATE | UNLINK),
        place(Home("queue/remote"), READ | LIST | WRITE | TRUNCATE | CREATE | UNLINK),
        place(Home("queue/bounce"), READ | LIST | WRITE | TRUNCATE | CREATE | UNLINK),
        place(Home("queue/mess"), READ | LIST),
        place(Home("queue/todo"), READ | LIST),
        place(Home("queue/lock"), READ | WRITE),
        place(Home("run"), LIST),
    ],
};

pub static QMAIL_SEND: Profile = Profile::jail("qmail-send", "qmails")
    .files(&[SEND])
    .network(Network::Local("sockets of this machine (`run/queue`)"));

pub static QMAIL_SEND_OWN: Profile = Profile::jail("qmail-send", "the owner")
    .part("where its user owns the queue")
    .files(&[SEND, ACCEPT, START])
    .network(Network::Local("sockets of this machine (`run/queue`)"))
    .executes("bin/qmail-queue, when nobody listens at `run/queue`");

pub static QMAIL_SEND_FILTER: Profile =
    Profile::limits("qmail-send", "qmails", "`$QMAILQUEUE`").part("with QMAILQUEUE");

pub static QMAIL_CLEAN: Profile = Profile::jail("qmail-clean", "qmailq")
    .files(&[own(&[
        place(Home("queue/mess"), READ | UNLINK),
        place(Home("queue/intd"), LIST | UNLINK),
        place(Home("queue/todo"), UNLINK),
        place(Home("queue/pid"), LIST | READ | UNLINK),
    ])])
    .calls(&[&RUN, &FILES, &REMOVE]);

// ---- spawn

pub static QMAIL_START: Profile =
    Profile::limits("qmail-start", "root, or the owner", "the daemons and the logger, each as its user");

pub static QMAIL_LSPAWN: Profile = Profile::limits(
    "qmail-lspawn",
    "root, or the owner",
    "qmail-getpw as qmailp, qmail-local as the recipient",
);

pub static QMAIL_RSPAWN: Profile = Profile::jail("qmail-rspawn", "qmailr")
    .files(&[
        own(&[
            place(Home("control"), READ | LINKS),
            place(Home("queue/mess"), READ),
            place(Home("queue/lock"), READ | WRITE),
        ]),
        START,
        SYSTEM,
    ])
    .network(Network::Any("not limited: qmail-remote's"))
    .executes("qmail-remote");

pub static QMAIL_RSPAWN_OTHER: Profile =
    Profile::limits("qmail-rspawn", "qmailr", "`$QMAILREMOTE`, or a script in the place of qmail-remote")
        .part("with another program");

pub static QMAIL_AUTHD: Profile =
    Profile::limits("qmail-authd", "root, or the owner", "what control/authprograms lists");

// ---- local

pub static QMAIL_LOCAL: Profile = Profile::limits("qmail-local", "the recipient", "what `.qmail` says");

pub static FORWARD: Profile = Profile::limits("forward", "the recipient", "`$QMAILQUEUE`, bin/qmail-queue");

pub static MAILDIRMAKE: Profile =
    Profile::jail("maildirmake", "its caller").files(&[own(&[place(Given(TARGET), LIST | MKDIR)])]);

// ---- remote

pub static QMAIL_REMOTE: Profile = Profile::jail("qmail-remote", "qmailr")
    .network(Network::Ports("TCP to the port of SMTP (or of the route) and those of the DNS servers; UDP"))
    .calls(&[&RUN, &TALK, &INTERNET, &PATCH, &LOCK, &NARROW, &PAIR]);

pub static QMAIL_REMOTE_TALKING: Profile = Profile::jail("qmail-remote", "qmailr")
    .part("once a host is chosen")
    .network(Network::Ports("the one connection"))
    .calls(&[&RUN, &TALK])
    .stays();

pub static MTA_STS: Profile = Profile::limits("mta-sts", "qmailr", "its arguments");

pub static MTA_STS_ASKED: Profile = Profile::jail("mta-sts", "its caller")
    .part("asked by a person")
    .network(Network::Ports("TCP to port 443 and those of the DNS servers; UDP"))
    .calls(&[&RUN, &TALK, &INTERNET, &PAIR]);

pub static MTA_STS_SERVER: Profile = Profile::jail("mta-sts", "qmailr")
    .part("the child that answers qmail-remote")
    .files(&[own(&[place(Home("sts"), READ | LIST | WRITE | TRUNCATE | CREATE | UNLINK)]), SYSTEM])
    .network(Network::Ports("TCP to port 443 and those of the DNS servers; UDP"))
    .forks();

pub static MTA_STS_ASKING: Profile = Profile::jail("mta-sts", "qmailr")
    .part("one of its children, which answers one question")
    .network(Network::Ports("as before"))
    .calls(&[&RUN, &FILES, &REMOVE, &RENAME, &SYNC, &TALK, &INTERNET, &PAIR])
    .stays();

// ---- users

/// Sources of accounts may be anywhere the system keeps libraries, settings, sockets and databases.
const ACCOUNTS: Lot = Lot {
    name: "account sources",
    places: &[
        place(Path("/lib"), READ | LIST),
        place(Path("/lib64"), READ | LIST),
        place(Path("/usr"), READ | LIST),
        place(Path("/opt"), READ | LIST),
        place(Path("/nix/store"), READ | LIST),
        place(Path("/gnu/store"), READ | LIST),
        place(Path("/etc"), READ | LIST),
        place(Path("/run"), READ | LIST),
        place(Path("/var/run"), READ | LIST),
        place(Path("/var/db"), READ | LIST),
        place(Path("/var/cache/nscd"), READ | LIST),
        place(Path("/var/lib/extrausers"), READ | LIST),
        place(Path("/var/lib/misc"), READ | LIST),
        place(Path("/var/lib/sss"), READ | LIST),
        place(Path("/var/yp"), READ | LIST),
        place(Path("/dev/null"), READ),
        place(Path("/dev/urandom"), READ),
    ],
};

pub static QMAIL_GETPW: Profile = Profile::jail("qmail-getpw", "qmailp")
    .files(&[ACCOUNTS])
    .network(Network::Local("sockets of this machine (nscd, sssd, systemd)"))
    .calls(&[&RUN, &FILES, &LIBRARIES, &TALK, &UNIX, &ADDRESSES, &PIPES, &SERVICES]);

pub static QMAIL_GETPW_NETWORK: Profile = Profile::jail("qmail-getpw", "qmailp")
    .part("where nsswitch.conf names a source that may be elsewhere")
    .files(&[ACCOUNTS])
    .network(Network::Any("not limited"))
    .calls(&[&RUN, &FILES, &LIBRARIES, &TALK, &UNIX, &ADDRESSES, &PIPES, &SERVICES, &INTERNET]);

pub static QMAIL_NEWU: Profile = Profile::jail("qmail-newu", "root, or the owner")
    .files(&[own(&[place(Home("users"), READ | LINKS | LIST | WRITE | TRUNCATE | CREATE | UNLINK)])]);

pub static QMAIL_PW2U: Profile =
    Profile::jail("qmail-pw2u", "its caller").files(&[own(&[place(Home("users"), READ | LIST | LINKS)])]);

// ---- pop

pub static QMAIL_POPUP: Profile = Profile::jail("qmail-popup", "qmaild")
    .files(&[own(&[place(Home("run"), LIST)])])
    .network(Network::Local("the connection; sockets of this machine (`run/auth`)"))
    .calls(&[&RUN, &FILES, &TALK, &UNIX, &UPGRADE]);

pub static QMAIL_POPUP_CLASSIC: Profile =
    Profile::limits("qmail-popup", "root, or the owner", "its arguments").part("the classic way");

pub static QMAIL_POPUP_TALKING: Profile = Profile::jail("qmail-popup", "qmaild, or the owner")
    .part("the classic way, the child that talks")
    .network(Network::Local("the connection"))
    .calls(&[&RUN, &TALK, &PATCH, &UPGRADE]);

pub static AUTHASK: Profile = Profile::jail("authask", "its caller")
    .files(&[own(&[place(Home("run"), LIST)])])
    .network(Network::Local("sockets of this machine (`run/auth`)"))
    .calls(&[&RUN, &FILES, &TALK, &UNIX]);

pub static QMAIL_POP3D: Profile = Profile::jail("qmail-pop3d", "the user")
    .files(&[own(&[
        place(Path("new"), LIST | READ | UNLINK | MOVE),
        place(Path("cur"), LIST | READ | UNLINK | CREATE | MOVE),
        place(Path("tmp"), LIST | UNLINK),
        place(Path("maildirsize"), WRITE),
        place(Path("dovecot-uidlist"), READ),
    ])])
    .network(Network::Local("the connection"))
    .calls(&[&RUN, &FILES, &REMOVE, &RENAME, &LINK, &SYNC, &TALK]);

pub static POPAUTH: Profile = Profile::limits(
    "popauth",
    "root, or the owner; behind the checker the user",
    "its arguments: a checker, and the program behind it",
);

pub static POPAUTH_REMEMBERING: Profile = Profile::jail("popauth", "root, or the owner")
    .part("the child that writes an address down")
    .files(&[own(&[place(Given(TARGET), LIST | WRITE | TRUNCATE | CREATE | UNLINK)])])
    .calls(&[&RUN, &FILES, &REMOVE]);

// ---- auth

pub static CHECKPASSWORD: Profile = Profile::limits("checkpassword", "root, then the user", "its arguments");

pub static CHECKPASSWORD_FILE: Profile = Profile::limits(
    "checkpassword-file",
    "root, or the one user of its file; then the user",
    "its arguments",
);

pub static CHECKPASSWORD_CRAM: Profile = Profile::limits(
    "checkpassword-cram",
    "root, or the one user of its file; then the user",
    "its arguments",
);

pub static CHECKPASSWORD_PAM: Profile =
    Profile::limits("checkpassword-pam", "root, then the user", "its arguments; PAM's modules run in it");

pub static CHECKPASSWORD_DOVECOT: Profile =
    Profile::limits("checkpassword-dovecot", "root, then the user", "its arguments");

pub static CHECKPASSWORD_DOVECOT_ASKING: Profile = Profile::jail("checkpassword-dovecot", "as before")
    .part("a child that asks Dovecot")
    .network(Network::Local("the connection to Dovecot"))
    .calls(&[&RUN, &TALK]);

pub static CHECKPASSWORD_SASLAUTHD: Profile =
    Profile::limits("checkpassword-saslauthd", "root, then the user", "its arguments");

pub static CHECKPASSWORD_SASLAUTHD_ASKING: Profile = Profile::jail("checkpassword-saslauthd", "as before")
    .part("a child that asks saslauthd")
    .network(Network::Local("the connection to saslauthd"))
    .calls(&[&RUN, &TALK]);

pub static CHECKPASSWORD_ANY: Profile = Profile::limits(
    "checkpassword-any",
    "root, or as its caller",
    "its arguments: checkers, and the program",
);

pub static AUTHPASSWD: Profile = Profile::jail("authpasswd", "root, or who owns the file of users").files(&[
    own(&[place(Given(TARGET), READ | LIST | WRITE | TRUNCATE | CREATE | UNLINK), place(Given(FILE), READ)]),
]);

// ---- admin

pub static QMAIL_SHOWCTL: Profile = Profile::jail("qmail-showctl", "its caller")
    .files(&[own(&[
        place(Home(""), READ | LIST),
        place(Home("queue/lock"), WRITE),
        place(Home("tcp"), READ | LIST | LINKS),
        place(Path("/etc"), READ),
        place(Home("control"), READ | LIST | LINKS),
        place(Home("users"), READ | LIST | LINKS),
    ])])
    .network(Network::Local("sockets of this machine (`run/queue`, `run/auth`)"));

pub static QMAIL_QREAD: Profile = Profile::jail("qmail-qread", "root or qmails").files(&[own(&[
    place(Home("queue/info"), READ | LIST),
    place(Home("queue/local"), READ),
    place(Home("queue/remote"), READ),
    place(Home("queue/todo"), READ | LIST),
])]);

pub static QMAIL_QSTAT: Profile =
    Profile::limits("qmail-qstat", "root, or group qmail", "a shell script: find, wc and the like");

pub static QMAIL_FIX: Profile = Profile::jail("qmail-fix", "root, or the owner")
    .files(&[own(&[place(Given(QUEUE), READ | LIST | WRITE | TRUNCATE | CREATE | UNLINK | MOVE | RMDIR)])]);

pub static QMAIL_TCPTO: Profile = Profile::jail("qmail-tcpto", "root or qmailr")
    .files(&[own(&[place(Home("queue/lock/tcpto"), READ | WRITE)])]);

pub static QMAIL_TCPOK: Profile =
    Profile::jail("qmail-tcpok", "root or qmailr").files(&[own(&[place(Home("queue/lock/tcpto"), WRITE)])]);

pub static QMAIL_NEWMRH: Profile = Profile::jail("qmail-newmrh", "root, or the owner")
    .files(&[own(&[place(Home("control"), READ | LINKS | LIST | WRITE | TRUNCATE | CREATE | UNLINK)])]);

pub static QMAIL_NEWSENDERS: Profile = Profile::jail("qmail-newsenders", "root, or the owner")
    .files(&[own(&[place(Home("control"), READ | LINKS | LIST | WRITE | TRUNCATE | CREATE | UNLINK)])]);

pub static SPLOGGER: Profile = Profile::jail("splogger", "qmaill")
    .network(Network::Local("the socket /dev/log"))
    .calls(&[&RUN, &TALK, &UNIX]);

/// All of them, in the order of the table.
pub static ALL: &[&Profile] = &[
    &TCPSERVER,
    &TCPSERVER_NAMES,
    &TCPSERVER_IDENT,
    &TCPRULES,
    &TCPRULESCHECK,
    &RELAY_CTRL_CHECK,
    &TLSSERVER,
    &TLSSERVER_KEEPER,
    &TLSSERVER_SESSION,
    &TLSCERT,
    &TLSCLIENT,
    &TLSCLIENT_SERVER,
    &TLSCLIENT_SESSION,
    &QMAIL_SMTPD,
    &QMAIL_SMTPD_READY,
    &QMAIL_SMTPD_OWN,
    &QMAIL_SMTPD_LAUNCHER,
    &QMAIL_SMTPD_CHECKING,
    &QMAIL_SMTPD_TALKING,
    &QMAIL_INJECT,
    &SENDMAIL,
    &QMAIL_QUEUE,
    &QMAIL_QUEUE_ASKING,
    &QMAIL_QUEUED,
    &QMAIL_QUEUED_WORKER,
    &QMAIL_SEND,
    &QMAIL_SEND_OWN,
    &QMAIL_SEND_FILTER,
    &QMAIL_CLEAN,
    &QMAIL_START,
    &QMAIL_LSPAWN,
    &QMAIL_RSPAWN,
    &QMAIL_RSPAWN_OTHER,
    &QMAIL_AUTHD,
    &QMAIL_LOCAL,
    &FORWARD,
    &MAILDIRMAKE,
    &QMAIL_REMOTE,
    &QMAIL_REMOTE_TALKING,
    &MTA_STS,
    &MTA_STS_ASKED,
    &MTA_STS_SERVER,
    &MTA_STS_ASKING,
    &QMAIL_GETPW,
    &QMAIL_GETPW_NETWORK,
    &QMAIL_NEWU,
    &QMAIL_PW2U,
    &QMAIL_POPUP,
    &QMAIL_POPUP_CLASSIC,
    &QMAIL_POPUP_TALKING,
    &AUTHASK,
    &QMAIL_POP3D,
    &POPAUTH,
    &POPAUTH_REMEMBERING,
    &CHECKPASSWORD,
    &CHECKPASSWORD_FILE,
    &CHECKPASSWORD_CRAM,
    &CHECKPASSWORD_PAM,
    &CHECKPASSWORD_DOVECOT,
    &CHECKPASSWORD_DOVECOT_ASKING,
    &CHECKPASSWORD_SASLAUTHD,
    &CHECKPASSWORD_SASLAUTHD_ASKING,
    &CHECKPASSWORD_ANY,
    &AUTHPASSWD,
    &QMAIL_SHOWCTL,
    &QMAIL_QREAD,
    &QMAIL_QSTAT,
    &QMAIL_FIX,
    &QMAIL_TCPTO,
    &QMAIL_TCPOK,
    &QMAIL_NEWMRH,
    &QMAIL_NEWSENDERS,
    &SPLOGGER,
];
