//! What Dovecot and saslauthd say to a checker that asks them.
#![cfg_attr(fuzzing, no_main)]

use auth::daemon::Outcome;
use auth::dovecot::{self, Greeting};
use auth::saslauthd;
use fuzz::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut greeting = Greeting::default();
    let mut greeted = false;
    let mut plain = false;
    for line in bytes.split(|b| *b == b'\n') {
        plain |= line.to_ascii_uppercase().starts_with(b"MECH\tPLAIN");
        if let Ok(true) = greeting.take(line) {
            assert!(plain && line.starts_with(b"DONE"));
            greeted = true;
        }
        match dovecot::answer(line) {
            Some(Outcome::Accepted(name)) => {
                assert!(
                    line.starts_with(b"OK\t1\t")
                        && line.split(|b| *b == b'\t').all(|field| field != b"nologin")
                );
                assert!(!name.is_empty() && !name.contains(&0) && !name.contains(&b'\n'));
            }
            Some(Outcome::Refused) => assert!(line.starts_with(b"FAIL\t1") || line.starts_with(b"OK\t1\t")),
            Some(Outcome::Trouble(_)) | None => {}
        }
    }
    assert!(!greeted || bytes.split(|b| *b == b'\n').any(|line| line.starts_with(b"VERSION\t1")));
    match saslauthd::answer(bytes, b"joe") {
        Some(Outcome::Accepted(name)) => assert!(name == b"joe" && bytes.get(2..4) == Some(b"OK")),
        Some(Outcome::Refused) => assert!(bytes.get(2..4) == Some(b"NO")),
        Some(Outcome::Trouble(_)) => {}
        None => assert!(bytes.len() < 2 + saslauthd::ANSWER_MAX),
    }
    // Once there whole, what follows changes nothing.
    if let Some(outcome) = saslauthd::answer(bytes, b"joe") {
        assert_eq!(saslauthd::answer(&[bytes, b"NO"].concat(), b"joe"), Some(outcome));
    }
    // What is asked is one line, whatever the login.
    let (name, password) = bytes.split_at(bytes.len() / 2);
    if let Some(line) = dovecot::question(name, name, password, &dovecot::Peers::default()) {
        assert!(line.iter().filter(|b| **b == b'\n').count() == 1 && line.ends_with(b"\n"));
        assert_eq!(line.iter().filter(|b| **b == b'\t').count(), 7);
    }
});
