//! dane - which certificate a mail exchanger must show, as its signed zone says (RFC 7672)
//!
//! Only asked for where the DNS proved the exchangers of a domain, and only believed where it proves the records too:
//! everything else is "no DANE here". An answer that cannot be had is neither: the exchanger must not be used
//! then, or who can suppress an answer could turn DANE off.
#![forbid(unsafe_code)]

use dns::{Answer, Failure, Tlsa};

/// Aliases followed from an exchanger's name. Each is one question.
const ALIASES_MAX: usize = 8;

/// Records taken of one name. More can only make a server harder to refuse, and are left out.
const RECORDS_MAX: usize = 32;

/// And so many bytes of all of them, for they travel in one packet; whole certificates are 1 or 2 KiB each.
const DATA_MAX: usize = 24 * 1024;

/// What is asked of the DNS.
pub trait Questions {
    fn cname(&self, name: &[u8]) -> Result<Answer<Vec<u8>>, Failure>;
    fn tlsa(&self, name: &[u8]) -> Result<Answer<Tlsa>, Failure>;
}

/// What an exchanger's zone says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dane {
    /// Nothing that is proved.
    Nothing,
    /// There are records, and none that we could check: TLS is demanded, a certificate is not
    /// (RFC 7672 section 2.2).
    Unusable { base: Vec<u8> },
    /// One of the records must be met. The name is the one to ask the server for, and the first of those
    /// that its certificate may carry.
    Records { base: Vec<u8>, records: Vec<Tlsa> },
    /// It cannot be known now: this exchanger must wait.
    Unknown,
}

/// Asks for one exchanger. `proved` says whether its addresses, with all aliases on the way, were.
pub fn of(questions: &impl Questions, host: &[u8], port: u16, proved: bool) -> Dane {
    let host = host.strip_suffix(b".").unwrap_or(host);
    let bases = match bases(questions, host, proved) {
        Ok(bases) => bases,
        Err(()) => return Dane::Unknown,
    };
    for base in bases {
        let name = [format!("_{port}._tcp.").as_bytes(), base.as_slice()].concat();
        match questions.tlsa(&name) {
            Ok(answer) if answer.authentic => {
                let records = usable(answer.records);
                return if records.is_empty() {
                    Dane::Unusable { base }
                } else {
                    Dane::Records { base, records }
                };
            }
            Ok(_) | Err(Failure::NoData | Failure::NoSuchName) => {}
            Err(Failure::Temporary) => return Dane::Unknown,
        }
    }
    Dane::Nothing
}

/// rfc7672:2.2.2 the names under which records may stand: where all is proved the end of the aliases, then
/// the name itself; the name itself too if only its alias is proved; else none.
fn bases(questions: &impl Questions, host: &[u8], proved: bool) -> Result<Vec<Vec<u8>>, ()> {
    let mut end = host.to_vec();
    for step in 0..ALIASES_MAX {
        match questions.cname(&end) {
            Ok(answer) => match answer.records.into_iter().next() {
                _ if !answer.authentic => {
                    return Ok(if step > 0 || proved { vec![host.to_vec()] } else { vec![] });
                }
                Some(name) => end = name,
                None => break,
            },
            Err(Failure::NoData | Failure::NoSuchName) => break,
            Err(Failure::Temporary) => return Err(()),
        }
        if !proved {
            return Ok(vec![host.to_vec()]);
        }
    }
    if !proved {
        return Ok(Vec::new());
    }
    Ok(if end.eq_ignore_ascii_case(host) { vec![end] } else { vec![end, host.to_vec()] })
}

/// rfc7672:3.1 the records that say something to a mail client: 2 and 3 of usage, of a known selector and
/// digest. Of digests of one kind the strongest counts (RFC 7671 section 9).
fn usable(records: Vec<Tlsa>) -> Vec<Tlsa> {
    let fits = |r: &Tlsa| {
        matches!(r.usage, 2 | 3)
            && matches!(r.selector, 0 | 1)
            && match r.matching {
                0 => !r.data.is_empty(),
                1 => r.data.len() == 32,
                2 => r.data.len() == 64,
                _ => false,
            }
    };
    let all: Vec<Tlsa> = records.into_iter().filter(fits).collect();
    let outdone = |r: &Tlsa| {
        r.matching == 1 && all.iter().any(|s| (s.usage, s.selector, s.matching) == (r.usage, r.selector, 2))
    };
    let mut bytes = 0;
    let mut kept: Vec<Tlsa> = Vec::new();
    for record in all.iter().filter(|r| !outdone(r)) {
        if kept.len() < RECORDS_MAX && bytes + record.data.len() <= DATA_MAX {
            bytes += record.data.len();
            kept.push(record.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn tlsa(usage: u8, selector: u8, matching: u8) -> Tlsa {
        let length = if matching == 2 { 64 } else { 32 };
        Tlsa { usage, selector, matching, data: vec![7; length] }
    }

    type Reply<T> = (&'static str, Result<(T, bool), Failure>);

    /// Names that are not listed do not exist.
    #[derive(Default)]
    struct Zone {
        aliases: Vec<Reply<&'static str>>,
        marks: Vec<Reply<Vec<Tlsa>>>,
        asked: RefCell<Vec<String>>,
    }

    impl Questions for Zone {
        fn cname(&self, name: &[u8]) -> Result<Answer<Vec<u8>>, Failure> {
            let found = self.aliases.iter().find(|(n, _)| n.as_bytes() == name);
            let (target, authentic) = found.map_or(Err(Failure::NoData), |(_, r)| *r)?;
            Ok(Answer { records: vec![target.into()], authentic })
        }

        fn tlsa(&self, name: &[u8]) -> Result<Answer<Tlsa>, Failure> {
            self.asked.borrow_mut().push(String::from_utf8(name.to_vec()).unwrap());
            let found = self.marks.iter().find(|(n, _)| n.as_bytes() == name);
            let (records, authentic) = found.map_or(Err(Failure::NoSuchName), |(_, r)| r.clone())?;
            Ok(Answer { records, authentic })
        }
    }

    fn marked(name: &'static str, records: Vec<Tlsa>) -> Zone {
        Zone { marks: vec![(name, Ok((records, true)))], ..Zone::default() }
    }

    fn found(base: &str, records: Vec<Tlsa>) -> Dane {
        Dane::Records { base: base.into(), records }
    }

    #[test]
    fn records_of_a_proved_name_are_to_be_met() {
        let zone = marked("_25._tcp.mx.test", vec![tlsa(3, 1, 1)]);
        assert_eq!(of(&zone, b"mx.test.", 25, true), found("mx.test", vec![tlsa(3, 1, 1)]));
        assert_eq!(of(&zone, b"mx.test", 26, true), Dane::Nothing, "they are of one port");
        assert_eq!(of(&zone, b"other.test", 25, true), Dane::Nothing);
    }

    #[test]
    fn of_a_name_whose_addresses_are_not_proved_nothing_is_asked() {
        let zone = marked("_25._tcp.mx.test", vec![tlsa(3, 1, 1)]);
        assert_eq!(of(&zone, b"mx.test", 25, false), Dane::Nothing);
        assert!(zone.asked.borrow().is_empty());
    }

    #[test]
    fn records_that_are_not_proved_are_none() {
        let zone =
            Zone { marks: vec![("_25._tcp.mx.test", Ok((vec![tlsa(3, 1, 1)], false)))], ..Zone::default() };
        assert_eq!(of(&zone, b"mx.test", 25, true), Dane::Nothing);
    }

    #[test]
    fn an_answer_that_cannot_be_had_is_not_no() {
        let zone = Zone { marks: vec![("_25._tcp.mx.test", Err(Failure::Temporary))], ..Zone::default() };
        assert_eq!(of(&zone, b"mx.test", 25, true), Dane::Unknown);
        let zone = Zone { aliases: vec![("mx.test", Err(Failure::Temporary))], ..Zone::default() };
        assert_eq!(of(&zone, b"mx.test", 25, true), Dane::Unknown);
        assert_eq!(of(&zone, b"mx.test", 25, false), Dane::Unknown);
    }

    #[test]
    fn the_end_of_proved_aliases_comes_before_the_name_itself() {
        let alias = || vec![("mx.test", Ok(("b.test", true))), ("b.test", Ok(("c.test", true)))];
        let zone = Zone { aliases: alias(), ..marked("_25._tcp.c.test", vec![tlsa(3, 0, 1)]) };
        assert_eq!(of(&zone, b"mx.test", 25, true), found("c.test", vec![tlsa(3, 0, 1)]));
        let zone = Zone { aliases: alias(), ..marked("_25._tcp.mx.test", vec![tlsa(3, 0, 1)]) };
        assert_eq!(of(&zone, b"mx.test", 25, true), found("mx.test", vec![tlsa(3, 0, 1)]));
        assert_eq!(*zone.asked.borrow(), ["_25._tcp.c.test", "_25._tcp.mx.test"]);
    }

    #[test]
    fn a_proved_alias_to_what_is_not_proved_leaves_the_name_itself() {
        let aliases = vec![("mx.test", Ok(("elsewhere.test", true)))];
        let zone = Zone { aliases, ..marked("_25._tcp.mx.test", vec![tlsa(3, 1, 1)]) };
        assert_eq!(of(&zone, b"mx.test", 25, false), found("mx.test", vec![tlsa(3, 1, 1)]));
        let aliases = vec![("mx.test", Ok(("elsewhere.test", false)))];
        let zone = Zone { aliases, ..marked("_25._tcp.mx.test", vec![tlsa(3, 1, 1)]) };
        assert_eq!(of(&zone, b"mx.test", 25, false), Dane::Nothing);
    }

    #[test]
    fn what_a_mail_client_cannot_check_demands_tls_and_no_more() {
        for odd in [
            tlsa(0, 1, 1),
            tlsa(1, 1, 1),
            tlsa(3, 2, 1),
            tlsa(3, 1, 3),
            Tlsa { data: vec![1], ..tlsa(3, 1, 1) },
        ] {
            let zone = marked("_25._tcp.mx.test", vec![odd.clone()]);
            assert_eq!(of(&zone, b"mx.test", 25, true), Dane::Unusable { base: b"mx.test".to_vec() });
            let zone = marked("_25._tcp.mx.test", vec![odd, tlsa(2, 0, 2)]);
            assert_eq!(of(&zone, b"mx.test", 25, true), found("mx.test", vec![tlsa(2, 0, 2)]));
        }
    }

    #[test]
    fn the_strongest_digest_of_a_kind_counts() {
        let zone =
            marked("_25._tcp.mx.test", vec![tlsa(3, 1, 1), tlsa(3, 1, 2), tlsa(2, 0, 1), tlsa(3, 1, 0)]);
        let kept = vec![tlsa(3, 1, 2), tlsa(2, 0, 1), tlsa(3, 1, 0)];
        assert_eq!(of(&zone, b"mx.test", 25, true), found("mx.test", kept));
    }

    #[test]
    fn what_is_taken_has_a_bound() {
        let zone = marked("_25._tcp.mx.test", vec![tlsa(3, 1, 1); 1000]);
        assert_eq!(of(&zone, b"mx.test", 25, true), found("mx.test", vec![tlsa(3, 1, 1); RECORDS_MAX]));
        let large = Tlsa { data: vec![0; DATA_MAX + 1], ..tlsa(3, 0, 0) };
        let zone = marked("_25._tcp.mx.test", vec![large]);
        assert_eq!(of(&zone, b"mx.test", 25, true), Dane::Unusable { base: b"mx.test".to_vec() });
    }
}
