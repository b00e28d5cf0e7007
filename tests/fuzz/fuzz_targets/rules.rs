//! Any text as rules: refused, or a database in which every peer can be looked up; and any file as that
//! database.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::cdb::Reader;
use qmail::rules::{self, Peer};

fuzz_target!(|input: (&[u8], &[u8], &[u8], &[u8])| {
    let (text, ip, host, info) = input;
    let peers = [
        Peer { ip, host: Some(host), info: Some(info) },
        Peer { ip: b"2001:db8::1", host: Some(host), info: None },
        Peer { ip: b"1.2.3.4", host: None, info: Some(info) },
    ];
    for peer in &peers {
        if let Ok(reader) = Reader::new(text) {
            let _ = rules::find(&reader, peer);
        }
    }
    let Ok(made) = rules::compile(text) else { return };
    let reader = Reader::new(made.as_slice()).expect("a slice has a size");
    for peer in &peers {
        rules::find(&reader, peer).expect("what was compiled can be read");
    }
});
