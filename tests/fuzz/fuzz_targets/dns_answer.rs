//! Whatever a DNS server sends: parsed without a panic, and what comes out keeps its promises.
#![cfg_attr(fuzzing, no_main)]

use dns::wire::{Data, Kind, Question, RECORDS_MAX, Verdict, parse_answer};
use fuzz::fuzz_target;

/// A name as the DNS may carry it: up to 255 bytes on the wire, no NUL.
fn is_name(name: &[u8]) -> bool {
    name.len() <= 253 && !name.contains(&0)
}

fuzz_target!(|bytes: &[u8]| {
    // The identity is taken from the answer, so that the fuzzer need not guess it.
    let id = bytes.get(..2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    for kind in [Kind::A, Kind::Aaaa, Kind::Mx, Kind::Ptr, Kind::Txt] {
        let Some(question) = Question::new(b"a.test", kind) else { return };
        match parse_answer(bytes, id, &question) {
            Verdict::Records { records, .. } => {
                assert!(!records.is_empty() && records.len() <= RECORDS_MAX);
                for record in records {
                    match (kind, record) {
                        (Kind::A, Data::A(_)) | (Kind::Aaaa, Data::Aaaa(_)) | (Kind::Txt, Data::Txt(_)) => {}
                        (Kind::Mx, Data::Mx(mx)) => assert!(is_name(&mx.name)),
                        (Kind::Ptr, Data::Ptr(name)) => assert!(is_name(&name)),
                        (kind, record) => panic!("{record:?} for {kind:?}"),
                    }
                }
            }
            Verdict::Alias { name, .. } => assert!(is_name(&name)),
            _ => {}
        }
    }
});
