//! shares - who may have how many messages taken at one time
//!
//! A part is kept for the accounts of the home, of the rest each person has a part, and the last are for those
//! who have few.
#![forbid(unsafe_code)]

use nix::unistd::Uid;
use qmail::home::{Ids, ROLES};

/// Messages at one time, each in a worker: that holds a few descriptors and about 300 KiB.
pub const MESSAGES_MAX: usize = 240;

/// Of these, kept for the accounts of the home (smtpd, bounces, aliases): a flood by users leaves them free.
const RESERVED: usize = 80;

/// What is left for everybody else.
const STRANGERS_MAX: usize = MESSAGES_MAX - RESERVED;

/// Messages at one time for one person that is not the home's: what a script of theirs may start at once. It is half of
/// what those who have many can have together.
const PER_PERSON_MAX: usize = 60;

/// The last ones of the strangers are for people who have fewer than this many: who sends one message
/// gets in beside a few who send as many as they can.
const FEW: usize = 4;

/// So many are kept for them.
const FEW_SHARE: usize = 40;

/// From here on a uid is not a person: people own blocks of so many subordinate ids (subuid(5)), and each is
/// theirs to use for the asking. A block counts as one person.
const BLOCK: u32 = 65_536;

/// Whether one more is taken for `uid`, beside those for `taken`.
pub fn has_room_for(ids: &Ids, uid: Uid, taken: impl Iterator<Item = Uid> + Clone) -> bool {
    if is_account(ids, uid) {
        return taken.count() < MESSAGES_MAX;
    }
    let strangers = taken.filter(|uid| !is_account(ids, *uid));
    let own = strangers.clone().filter(|other| person(*other) == person(uid)).count();
    let share = if own < FEW { STRANGERS_MAX } else { STRANGERS_MAX - FEW_SHARE };
    own < PER_PERSON_MAX && strangers.count() < share
}

fn is_account(ids: &Ids, uid: Uid) -> bool {
    ROLES.iter().any(|role| ids.role(role).is_some_and(|account| account.uid == uid))
}

/// Whom a limit counts: a uid, or the block it lies in.
fn person(uid: Uid) -> (u32, u32) {
    let uid = uid.as_raw();
    if uid < BLOCK { (0, uid) } else { (uid / BLOCK, 0) }
}
