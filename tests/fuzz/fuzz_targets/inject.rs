//! qmail-inject's work on any header, with any wishes: what comes out is a header of lines, has what it must have once,
//! tells nobody of hidden recipients, and is the same when it is injected again. And what sendmail reads of a command line.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use inject::compose::{Composed, Settings, compose};
use inject::identity::{Identity, Letters};
use inject::options::Options;
use qmail::address::Completion;
use qmail::control::Set;
use qmail::header::{Header, Reader};

/// The header of a message that has nothing else, None when it cannot be read.
fn header(text: &[u8]) -> Option<Header> {
    let mut reader = Reader::new();
    if reader.feed(text).ok()?.is_none() {
        reader.end().ok()?;
    }
    Some(reader.finish())
}

fn settings<'a>(with: &'a Completion, letters: &[u8], name: &[u8]) -> Settings<'a> {
    Settings {
        completion: with,
        letters: Letters::of(letters),
        identity: Identity {
            user: b"joe".to_vec(),
            sender_user: b"joe".to_vec(),
            name: Some(name.to_vec()).filter(|name| !name.is_empty()),
            ..Identity::default()
        },
        sender: None,
        header_recipients: true,
        idhost: b"id.host".to_vec(),
        lists: Set::of(&[b"list@def.host".to_vec()]),
        now: 1_700_000_000,
        pid: 77,
    }
}

/// How many fields have this name.
fn count(header: &Header, name: &[u8]) -> usize {
    let named =
        |field: &&[u8]| qmail::header::split(field).is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
    header.fields().filter(named).count()
}

fn judge_composed(composed: &Composed) -> Header {
    for address in composed.recipients.iter().chain([&composed.sender]) {
        assert!(!address.iter().any(|b| matches!(b, 0 | b'\n')), "an address that ends its record");
    }
    let read = header(&composed.header).expect("what was composed is a header");
    let again: Vec<u8> = read.fields().flatten().copied().collect();
    assert_eq!(again, composed.header, "a header with a body in it");
    for hidden in [b"Bcc".as_slice(), b"Resent-Bcc", b"Return-Path", b"Content-Length"] {
        assert_eq!(count(&read, hidden), 0);
    }
    read
}

fuzz_target!(|input: (&[u8], &[u8], &[u8])| {
    let (letters, name, text) = input;
    let mut with = Completion::default();
    with.set_default_host(b"def.host").unwrap();
    with.set_default_domain(b"def.domain").unwrap();
    with.set_plus_domain(b"plus.domain").unwrap();

    let words: Vec<Vec<u8>> = text.split(|b| *b == 0).map(<[u8]>::to_vec).collect();
    match Options::parse(&words) {
        Ok(options) => {
            let given = |word: &Vec<u8>| {
                words.iter().any(|w| w == word || w.get(1..w.len().saturating_sub(1)) == Some(word))
            };
            assert!(options.recipients.iter().all(given), "a recipient that nobody named");
        }
        Err(trouble) => assert!(trouble.is_usage() && trouble.exit_code() == 100),
    }

    // A name from the environment has no NUL.
    let name: Vec<u8> = name.iter().copied().filter(|b| *b != 0).collect();
    let settings = settings(&with, letters, &name);
    let Some(original) = header(text) else { return };
    let Ok(first) = compose(&original, &settings) else { return };
    let read = judge_composed(&first);
    let resent = original.known().any(|(field, _)| field.makes_resent());
    let prefix = if resent { "Resent-" } else { "" };
    for must in ["Date", "Message-ID", "From"] {
        assert!(count(&read, format!("{prefix}{must}").as_bytes()) >= 1, "no {must}");
    }
    let to = [b"To".as_slice(), b"Cc"].map(|field| count(&read, &[prefix.as_bytes(), field].concat()));
    assert!(to.iter().sum::<usize>() >= 1);

    // Nothing is to be added or changed any more. (Each pass drops one trailing dot and one trailing at.)
    let wishes = self::settings(&with, b"", b"");
    let Ok(second) = compose(&read, &wishes) else { panic!("what was composed cannot be composed") };
    judge_composed(&second);
    if !first.recipients.iter().any(|a| a.ends_with(b".") || a.ends_with(b"@")) {
        let read = header(&second.header).expect("what was composed is a header");
        let third = compose(&read, &wishes).expect("what was composed can be composed");
        assert_eq!(third.header, second.header);
        assert_eq!(third.recipients, second.recipients);
    }
});
