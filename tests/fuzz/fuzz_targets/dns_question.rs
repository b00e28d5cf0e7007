//! Any bytes as a name to ask for - domains come from addresses that strangers write: refused, or a query
//! whose answer is known again.
#![cfg_attr(fuzzing, no_main)]

use dns::wire::{Kind, Question, Verdict, parse_answer};
use fuzz::fuzz_target;

/// Header, the longest name, type and class, an empty OPT record.
const QUERY_MAX: usize = 12 + 255 + 4 + 11;

fuzz_target!(|input: (u16, bool, &[u8])| {
    let (id, edns, name) = input;
    let bare = name.strip_suffix(b".").unwrap_or(name);
    let fits =
        bare.split(|b| *b == b'.').all(|label| (1..=63).contains(&label.len())) && bare.len() + 2 <= 255;
    let kinds = [Kind::A, Kind::Aaaa, Kind::Mx, Kind::Ptr, Kind::Txt, Kind::Cname, Kind::Tlsa];
    for (at, kind) in kinds.into_iter().enumerate() {
        let Some(question) = Question::new(name, kind) else {
            assert!(!fits);
            continue;
        };
        assert!(fits);
        let mut message = question.query(id, edns).expect("a query has room");
        assert!(message.len() <= QUERY_MAX);
        assert_eq!(parse_answer(&message, id, &question), Verdict::NotOurs, "an echo is no answer");
        message[2] |= 0x80;
        assert_eq!(parse_answer(&message, id, &question), Verdict::NoData);
        assert_eq!(parse_answer(&message, id.wrapping_add(1), &question), Verdict::NotOurs);
        let other = Question::new(name, kinds[(at + 1) % kinds.len()]).expect("the same name");
        assert_eq!(parse_answer(&message, id, &other), Verdict::NotOurs);
        let upper = Question::new(&name.to_ascii_uppercase(), kind).expect("as long a name");
        assert_eq!(parse_answer(&message, id, &upper), Verdict::NoData);
    }
});
