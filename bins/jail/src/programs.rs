//! programs - what each program may do: the one manifest
//!
//! A program's own constant is the only one that ends up in its binary. doc/security.md shows all of them
//! (`cargo run -p jail --example table`), and `scripts/check` compares.
#![forbid(unsafe_code)]

use crate::calls::{FILES, RENAME, RUN, TALK, UNIX, UNLINK as REMOVE};
use crate::profile::{
    CREATE, LIST, MOVE, Network, Place, Profile, READ, UNLINK, WRITE,
    Where::{Home, Path},
};

const fn place(at: crate::profile::Where, may: crate::profile::Access) -> Place {
    Place { at, may }
}

pub static QMAIL_CLEAN: Profile = Profile::jail("qmail-clean", "qmailq")
    .files(&[
        place(Home("queue/mess"), READ | UNLINK),
        place(Home("queue/intd"), LIST | UNLINK),
        place(Home("queue/todo"), UNLINK),
        place(Home("queue/pid"), LIST | READ | UNLINK),
    ])
    .calls(&[&RUN, &FILES, &REMOVE]);

pub static QMAIL_POP3D: Profile = Profile::jail("qmail-pop3d", "the user")
    .files(&[
        place(Path("new"), LIST | READ | UNLINK | MOVE),
        place(Path("cur"), LIST | READ | UNLINK | CREATE | MOVE),
        place(Path("tmp"), LIST | UNLINK),
        place(Path("maildirsize"), WRITE),
        place(Path("dovecot-uidlist"), READ),
    ])
    .calls(&[&RUN, &FILES, &REMOVE, &RENAME, &TALK]);

pub static SPLOGGER: Profile = Profile::jail("splogger", "qmaill")
    .network(Network::Local("the socket /dev/log"))
    .calls(&[&RUN, &TALK, &UNIX]);

/// All of them, in the order of the table.
pub static ALL: &[&Profile] = &[&QMAIL_CLEAN, &QMAIL_POP3D, &SPLOGGER];
