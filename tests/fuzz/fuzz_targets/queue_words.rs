//! Words between programs and of administrators that stand for a path or a host: requests to qmail-clean, routes, and
//! rcpthosts as text and as database.
#![cfg_attr(fuzzing, no_main)]

use fuzz::{fuzz_target, scratch};
use qmail::cdb;
use qmail::control::{Control, Map, Set, entries};
use qmail::queue::origin::Origin;
use qmail::queue::{self, Removal};
use qmail::rcpthosts::RcptHosts;
use remote::route::{Login, Relay, Route, choose, credentials, literal};
use std::fs;

fuzz_target!(|input: (&[u8], &[u8])| {
    let (text, word) = input;
    if let Some(removal) = Removal::parse(word) {
        assert_eq!(removal.request().as_bytes(), word);
        let (Removal::Message(number) | Removal::Todo(number)) = removal;
        assert!(queue::todo_path(number)["todo/".len()..].bytes().all(|b| b.is_ascii_digit()));
    }

    if let Some(origin) = Origin::parse(text) {
        assert_eq!(Origin::parse(&origin.list()), Some(origin));
    }

    let list = entries(text);
    let routes = Map::of(&list);
    if let Some((name, password)) = credentials(&routes, word) {
        assert!(!name.is_empty() && !name.contains(&b' ') && !password.is_empty());
    }
    if let Some(value) = choose(&routes, &routes, word, word) {
        assert!(!value.is_empty());
        if let Some(route) = Route::parse(value) {
            assert!(route.port > 0);
            if let Login::Given { name, password } = &route.login {
                assert!(
                    !name.is_empty()
                        && !password.is_empty()
                        && !name.contains(&b' ')
                        && !password.contains(&b' ')
                );
            }
            let value: Vec<u8> = value.iter().copied().skip_while(|b| matches!(b, b' ' | b'\t')).collect();
            match route.relay {
                Relay::Ip(ip) => assert_eq!(literal(ip.to_string().as_bytes()), Some(ip)),
                Relay::Name(name) => {
                    assert!(!name.is_empty() && value.starts_with(&name) && literal(&name).is_none())
                }
            }
        }
    }
    if let Some(ip) = literal(word) {
        assert_eq!(literal(format!("[{ip}]").as_bytes()), Some(ip));
        let direct = Route::parse(format!("[{ip}]:26").as_bytes()).map(|route| (route.relay, route.port));
        assert_eq!(direct, Some((Relay::Ip(ip), 26)));
    }

    // The same list as text and as database admits the same; and any file as the database harms nothing.
    let by_text = RcptHosts::of(Set::of(&list));
    let allowed = by_text.allow(word).expect("no file is read");
    assert!(allowed || word.contains(&b'@'), "an address without a domain is ours");
    let control = scratch().join("control");
    fs::create_dir_all(&control).expect("scratch space");
    fs::write(control.join("rcpthosts"), b"").expect("scratch space");
    let mut writer = cdb::Writer::new();
    for entry in &list {
        writer.add(&entry.to_ascii_lowercase(), b"").expect("small records fit");
    }
    let database = control.join("morercpthosts.cdb");
    fs::write(&database, writer.finish().expect("small files fit")).expect("scratch space");
    let read = || RcptHosts::read(&Control::at(control.to_str().expect("a name of ours")));
    assert_eq!(read().expect("files of ours").allow(word).expect("a database of ours"), allowed);
    fs::write(&database, text).expect("scratch space");
    if let Err(trouble) = read().and_then(|hosts| hosts.allow(word)) {
        assert_ne!(trouble.exit_code(), 100, "damage is no refusal");
    }
});
