//! Whatever a DNS server sends: parsed without a panic, what comes out keeps its promises, and "there is no such thing" is
//! believed only of a whole answer that says so.
#![cfg_attr(fuzzing, no_main)]

use dns::wire::{Data, Kind, Question, RECORDS_MAX, Verdict, parse_answer};
use fuzz::fuzz_target;

/// A name as the DNS may carry it: up to 255 bytes on the wire, no NUL.
fn is_name(name: &[u8]) -> bool {
    name.len() <= 253 && !name.contains(&0)
}

/// Whether question, answers and authority of this message are all there.
fn is_whole(bytes: &[u8]) -> bool {
    let count =
        |at: usize| bytes.get(at..at + 2).map_or(0, |b| usize::from(u16::from_be_bytes([b[0], b[1]])));
    let mut at = 12;
    for record in 0..count(4) + count(6) + count(8) {
        loop {
            match bytes.get(at) {
                Some(0) => break at += 1,
                Some(length @ 1..64) => at += 1 + usize::from(*length),
                Some(192..) => break at += 2,
                _ => return false,
            }
        }
        at += if record < count(4) { 4 } else { 10 + count(at + 8) };
        if at > bytes.len() {
            return false;
        }
    }
    true
}

fuzz_target!(|bytes: &[u8]| {
    // The identity is taken from the answer, so that the fuzzer need not guess it.
    let id = bytes.get(..2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    for kind in [Kind::A, Kind::Aaaa, Kind::Mx, Kind::Ptr, Kind::Txt, Kind::Cname, Kind::Tlsa] {
        let Some(question) = Question::new(b"a.test", kind) else { return };
        match parse_answer(bytes, id, &question) {
            Verdict::Records { records, .. } => {
                assert!(!records.is_empty() && records.len() <= RECORDS_MAX);
                for record in records {
                    match (kind, record) {
                        (Kind::A, Data::A(_)) | (Kind::Aaaa, Data::Aaaa(_)) | (Kind::Txt, Data::Txt(_)) => {}
                        (Kind::Mx, Data::Mx(mx)) => assert!(is_name(&mx.name)),
                        (Kind::Ptr, Data::Ptr(name)) | (Kind::Cname, Data::Cname(name)) => {
                            assert!(is_name(&name));
                        }
                        (Kind::Tlsa, Data::Tlsa(_)) => {}
                        (kind, record) => panic!("{record:?} for {kind:?}"),
                    }
                }
            }
            Verdict::Alias { name, .. } => assert!(is_name(&name)),
            Verdict::NoSuchName | Verdict::NoData => {
                assert!(bytes[2] & 0x80 != 0 && bytes[2] & 0x02 == 0, "no answer, or a cut one");
                assert!(matches!(bytes[3] & 0x0f, 0 | 3) && is_whole(bytes));
            }
            _ => {}
        }
    }
});
