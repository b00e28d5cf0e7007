//! replay - every input of the named directories through the target it belongs to, without libFuzzer
//!
//! usage: replay [--target NAME] DIRECTORY ...     each holds a directory of inputs for each target, as tests/fuzz/seeds
//!        replay --list                            the targets
//!        replay --controls                        whether the judges of conversations see what is made wrong
//!
//! Prints `TARGET: N inputs`. Exit 1 when an input breaks its target; the others are tried all the same. What fuzzing
//! found stays tried by this, in `make test` and with the stable compiler; coverage is measured with it (scripts/fuzz).

use fuzz::dialogue::{Fault, control};
use fuzz_targets::{pop3_login, pop3_session, remote_session, smtp_session};
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

macro_rules! targets {
    ($($name:ident)*) => {
        mod fuzz_targets {
            $(pub mod $name;)*
        }
        const TARGETS: &[(&str, fn(&[u8]) -> bool)] = &[$((stringify!($name), fuzz_targets::$name::run)),*];
    };
}

targets! {
    address assign auth_request bounce cdb certificate control daemons dns_answer dns_question dns_servers dotqmail envelope header info
    inject    lines list mailbox options pop3_command pop3_login pop3_session queue_words remote_session rules sasl smtp_body smtp_command smtp_data smtp_reply smtp_session spawn_report spawn_request
    stored tcpto tls_demands todo ucspi
}

/// Faults that a judge must see, each with a conversation in which it shows.
const CONTROLS: &[(&str, Fault, fn(&[u8]) -> bool, &[u8])] = &[
    ("smtp_session, an answer", Fault::Answer, smtp_session::run, SMTP),
    ("smtp_session, an answer too late", Fault::Silence, smtp_session::run, SMTP),
    ("smtp_session, a recipient lost", smtp_session::RECIPIENT_LOST, smtp_session::run, SMTP),
    ("smtp_session, a byte changed", smtp_session::BYTE_CHANGED, smtp_session::run, SMTP),
    ("smtp_session, queued but refused", smtp_session::REFUSED, smtp_session::run, SMTP),
    (
        "remote_session, a refusal taken for an acceptance",
        remote_session::ACCEPTED_ANYWAY,
        remote_session::run,
        REMOTE,
    ),
    ("remote_session, a message without an end", remote_session::DOT_LOST, remote_session::run, REMOTE),
    ("pop3_session, an answer", Fault::Answer, pop3_session::run, POP3),
    ("pop3_session, an answer too late", Fault::Silence, pop3_session::run, POP3),
    ("pop3_session, a message gone", pop3_session::MESSAGE_GONE, pop3_session::run, POP3),
    ("pop3_login, an answer", Fault::Answer, pop3_login::run, LOGIN),
    ("pop3_login, an answer too late", Fault::Silence, pop3_login::run, LOGIN),
];
const SMTP: &[u8] = include_bytes!("seeds/smtp_session/plain");
const REMOTE: &[u8] = include_bytes!("seeds/remote_session/plain");
const POP3: &[u8] = include_bytes!("seeds/pop3_session/plain");
const LOGIN: &[u8] = include_bytes!("seeds/pop3_login/plain");

fn main() {
    let mut given: Vec<String> = std::env::args().skip(1).collect();
    if given == ["--list"] {
        TARGETS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    }
    if given == ["--controls"] {
        for (name, fault, run, seed) in CONTROLS {
            assert!(run(seed), "{name}: the conversation is wrong without a fault");
            println!("{name}: {}", if control(*fault, *run, seed) { "seen" } else { "NOT seen" });
        }
        return clean_up();
    }
    let only = given.iter().position(|word| word == "--target").map(|at| given.drain(at..at + 2).nth(1));
    let only = only.map(|name| name.expect("the name of a target"));
    let mut broken = 0;
    for (name, run) in TARGETS.iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)) {
        let mut count = 0;
        for path in given.iter().flat_map(|directory| files(&Path::new(directory).join(name))) {
            let bytes = fs::read(&path).expect("an input");
            count += 1;
            match catch_unwind(|| run(&bytes)) {
                Ok(true) => {}
                Ok(false) => {
                    eprintln!("replay: {}: too short to be an input", path.display());
                    broken += 1;
                }
                Err(_) => {
                    eprintln!("replay: {} breaks {name}", path.display());
                    broken += 1;
                }
            }
        }
        println!("{name}: {count} inputs");
    }
    clean_up();
    std::process::exit(i32::from(broken > 0));
}

fn clean_up() {
    fs::remove_dir_all(fuzz::scratch()).expect("scratch space");
}

/// The files of a directory, in the order of their names; none when there is no such directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a name").path()).collect();
    files.sort();
    files
}
