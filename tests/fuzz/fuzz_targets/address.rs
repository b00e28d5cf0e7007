//! Address lists: what was written reads as the same list, and nothing gets into an envelope that would end it.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::address::{self, Completion};

fuzz_target!(|text: &[u8]| {
    let mut with = Completion::default();
    with.set_default_host(b"default.host").unwrap();
    with.set_default_domain(b"default.domain").unwrap();
    with.set_plus_domain(b"plus.domain").unwrap();

    if let Ok(one) = address::one(text, &with) {
        assert!(!one.envelope().iter().any(|b| matches!(b, 0 | b'\n')));
    }
    let Ok(list) = address::parse(text) else { return };
    let envelopes =
        |list: &address::List<'_>| list.addresses(&with).map(|a| a.envelope()).collect::<Vec<_>>();
    let first = envelopes(&list);
    assert!(first.iter().flatten().all(|b| !matches!(b, 0 | b'\n')));

    let once = list.text(&with, 4);
    let mut lines = once.split(|b| *b == b'\n');
    lines.next();
    assert!(lines.all(|line| line.starts_with(b"  ")), "a line that is no continuation");
    let again = address::parse(&once).expect("what was written can be read");
    // Each pass drops one trailing dot and one trailing at: only what has none left is settled.
    if !first.iter().any(|a| a.ends_with(b".") || a.ends_with(b"@")) {
        assert_eq!(first, envelopes(&again));
        assert_eq!(once, again.text(&with, 4));
    }
});
