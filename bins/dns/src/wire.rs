//! wire - questions to bytes, bytes to what an answer says
//!
//! Pure: no sockets, no clock. `parse_answer` is given whatever arrived and is fuzzed.
#![forbid(unsafe_code)]

use domain::base::iana::{Class, Opcode, Rcode};
use domain::base::name::ToLabelIter;
use domain::base::wire::ParseError;
use domain::base::{Message, MessageBuilder, Name, Rtype, ToName, UnknownRecordData};
use domain::rdata;
use std::net::{Ipv4Addr, Ipv6Addr};

/// What we offer to take by UDP: what passes everywhere unfragmented (dnsflagday.net 2020).
pub const UDP_PAYLOAD: u16 = 1232;

/// An answer may bring this many records of interest; a host with more addresses than that is a joke.
pub const RECORDS_MAX: usize = 1024;

/// Aliases followed from one name, in an answer and over further questions alike.
pub const CHAIN_MAX: usize = 16;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    A,
    Aaaa,
    Mx,
    Ptr,
    Txt,
    /// The alias itself, which is not followed.
    Cname,
    Tlsa,
}

impl Kind {
    fn rtype(self) -> Rtype {
        match self {
            Kind::A => Rtype::A,
            Kind::Aaaa => Rtype::AAAA,
            Kind::Mx => Rtype::MX,
            Kind::Ptr => Rtype::PTR,
            Kind::Txt => Rtype::TXT,
            Kind::Cname => Rtype::CNAME,
            Kind::Tlsa => Rtype::TLSA,
        }
    }
}

/// A mail exchanger; lower preference first. The empty name is the root: "no mail here" (RFC 7505).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mx {
    pub preference: u16,
    pub name: Vec<u8>,
}

/// How a certificate is to be known (RFC 6698 section 2.1): the four fields, as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tlsa {
    pub usage: u8,
    pub selector: u8,
    pub matching: u8,
    pub data: Vec<u8>,
}

/// The data of one record. Names are without the final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Mx(Mx),
    Ptr(Vec<u8>),
    Txt(Vec<u8>),
    Cname(Vec<u8>),
    Tlsa(Tlsa),
}

/// A question as it is put on the wire: a checked name and a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    name: Name<Vec<u8>>,
    kind: Kind,
}

impl Question {
    /// None when `name` is no name. One final dot is allowed; any byte may stand in a label.
    pub fn new(name: &[u8], kind: Kind) -> Option<Question> {
        let name = name.strip_suffix(b".").unwrap_or(name);
        let mut wire = Vec::with_capacity(name.len() + 2);
        for label in name.split(|b| *b == b'.') {
            let length = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n))?; // rfc1035:2.3.4
            wire.push(length);
            wire.extend_from_slice(label);
        }
        wire.push(0);
        Some(Question { name: Name::from_octets(wire).ok()?, kind })
    }

    /// The query, asking for recursion and for the AD bit (RFC 6840 section 5.7). Servers that choke on
    /// EDNS0 are asked again without.
    pub fn query(&self, id: u16, edns: bool) -> Option<Vec<u8>> {
        let mut message = MessageBuilder::new_vec();
        message.header_mut().set_id(id);
        message.header_mut().set_rd(true);
        message.header_mut().set_ad(true);
        let mut question = message.question();
        question.push((&self.name, self.kind.rtype())).ok()?;
        let mut additional = question.additional();
        if edns {
            additional
                .opt(|opt| {
                    opt.set_udp_payload_size(UDP_PAYLOAD);
                    Ok(())
                })
                .ok()?;
        }
        Some(additional.finish())
    }
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Not an answer to this question: wait on, somebody may be guessing.
    NotOurs,
    /// Cut: ask again by TCP.
    Truncated,
    /// The server did not understand: ask again without EDNS0.
    NotUnderstood,
    /// The server could not or would not say, or what it says makes no sense: ask another.
    Useless,
    NoSuchName,
    NoData,
    /// The name is an alias and what it stands for was not told: ask for that name.
    Alias {
        name: Vec<u8>,
        authentic: bool,
    },
    Records {
        records: Vec<Data>,
        authentic: bool,
    },
}

impl Verdict {
    /// Whether this answers the question, be it with "no".
    pub fn settles(&self) -> bool {
        use Verdict::*;
        matches!(self, NoSuchName | NoData | Alias { .. } | Records { .. })
    }
}

/// Reads what arrived as the answer to `question` sent with `id`.
pub fn parse_answer(bytes: &[u8], id: u16, question: &Question) -> Verdict {
    let Ok(message) = Message::from_slice(bytes) else { return Verdict::NotOurs };
    let header = message.header();
    if header.id() != id || !header.qr() || header.opcode() != Opcode::QUERY {
        return Verdict::NotOurs;
    }
    let counts = message.header_counts();
    if counts.qdcount() == 0 {
        // A refusal may come without the question; nothing else may.
        return refusal(header.rcode()).unwrap_or(Verdict::NotOurs);
    }
    match message.sole_question() {
        Ok(asked)
            if asked.qclass() == Class::IN
                && asked.qtype() == question.kind.rtype()
                && asked.qname().name_eq(&question.name) => {}
        _ => return Verdict::NotOurs,
    }
    if let Some(refusal) = refusal(header.rcode()) {
        return refusal;
    }
    if header.tc() {
        return Verdict::Truncated;
    }
    read_sections(message, question).unwrap_or(Verdict::Useless)
}

fn refusal(rcode: Rcode) -> Option<Verdict> {
    match rcode {
        Rcode::NOERROR | Rcode::NXDOMAIN => None,
        Rcode::FORMERR | Rcode::NOTIMP => Some(Verdict::NotUnderstood),
        _ => Some(Verdict::Useless),
    }
}

type Parsed<'a> = domain::base::name::ParsedName<&'a [u8]>;

fn read_sections(message: &Message<[u8]>, question: &Question) -> Result<Verdict, ParseError> {
    let header = message.header();
    let denied = header.rcode() == Rcode::NXDOMAIN;
    // Walk the aliases by name, not by position: their order in the answer is nobody's promise.
    let mut aliases: Vec<(Parsed, Parsed)> = Vec::new();
    let mut found: Vec<(Parsed, Data)> = Vec::new();
    for record in message.answer()? {
        let record = record?;
        if record.class() != Class::IN || aliases.len() + found.len() >= RECORDS_MAX {
            continue;
        }
        if record.rtype() == Rtype::CNAME && question.kind != Kind::Cname {
            if let Some(record) = record.into_record::<rdata::Cname<_>>()? {
                aliases.push((*record.owner(), *record.data().cname()));
            }
        } else if record.rtype() == question.kind.rtype() {
            let owner = record.owner();
            if let Some(data) = read_data(record, question.kind)? {
                found.push((owner, data));
            }
        }
    }
    let mut name: Option<Parsed> = None;
    for step in 0.. {
        let next = aliases.iter().find(|(owner, _)| is(&name, owner, question)).map(|(_, target)| *target);
        match next {
            None => break,
            Some(_) if step >= CHAIN_MAX => return Ok(Verdict::Useless), // a ring
            Some(target) => name = Some(target),
        }
    }
    let records: Vec<Data> =
        found.into_iter().filter(|(owner, _)| is(&name, owner, question)).map(|(_, data)| data).collect();
    let authority = authority(message)?; // also read where it is not needed: what is cut is not believed
    // Some boxes in the middle cut or miscount what a question with EDNS adds: it is asked again without.
    if records.is_empty() && !is_whole(message).unwrap_or(false) {
        return Ok(Verdict::NotUnderstood);
    }
    let authentic = header.ad();
    Ok(match (records.is_empty(), denied) {
        (false, false) => Verdict::Records { records, authentic },
        (false, true) => Verdict::Useless, // it denies the name and gives its records
        (true, true) => Verdict::NoSuchName,
        (true, false) => match (authority, name) {
            (Authority::Denies, _) => Verdict::NoData,
            (_, Some(name)) => match text(&name) {
                Some(name) => Verdict::Alias { name, authentic },
                None => Verdict::NoSuchName,
            },
            (Authority::Refers, None) if !header.aa() => Verdict::Useless,
            (_, None) => Verdict::NoData,
        },
    })
}

/// Whether `owner` is the name we have come to: an alias's target, or what was asked.
fn is(name: &Option<Parsed<'_>>, owner: &Parsed<'_>, question: &Question) -> bool {
    match name {
        Some(name) => owner.name_eq(name),
        None => owner.name_eq(&question.name),
    }
}

enum Authority {
    /// An SOA: the server knows that there is nothing (RFC 2308 section 2.2).
    Denies,
    /// Name servers and no SOA: "ask them", which is no answer to a stub.
    Refers,
    Silent,
}

fn authority(message: &Message<[u8]>) -> Result<Authority, ParseError> {
    let mut found = Authority::Silent;
    for record in message.authority()? {
        match (record?.rtype(), &found) {
            (Rtype::SOA, _) => found = Authority::Denies,
            (Rtype::NS, Authority::Silent) => found = Authority::Refers,
            _ => {}
        }
    }
    Ok(found)
}

/// Whether the message ends where its counts say. Records that they do not count may be the very ones that
/// were asked for: such a server must not make us believe that there are none.
fn is_whole(message: &Message<[u8]>) -> Result<bool, ParseError> {
    let mut last = message.additional()?;
    for record in last.by_ref() {
        record?;
    }
    Ok(last.pos() == message.as_slice().len())
}

/// None for a record whose names cannot be written as names (a dot or NUL inside a label).
fn read_data(record: domain::base::ParsedRecord<'_, [u8]>, kind: Kind) -> Result<Option<Data>, ParseError> {
    Ok(match kind {
        Kind::A => record.into_record::<rdata::A>()?.map(|r| Data::A(r.data().addr())),
        Kind::Aaaa => record.into_record::<rdata::Aaaa>()?.map(|r| Data::Aaaa(r.data().addr())),
        Kind::Mx => record.into_record::<rdata::Mx<_>>()?.and_then(|r| {
            let preference = r.data().preference();
            Some(Data::Mx(Mx { preference, name: text(r.data().exchange())? }))
        }),
        Kind::Ptr => {
            record.into_record::<rdata::Ptr<_>>()?.and_then(|r| text(r.data().ptrdname()).map(Data::Ptr))
        }
        Kind::Txt => record
            .into_record::<rdata::Txt<_>>()?
            .map(|r| Data::Txt(r.data().iter().flatten().copied().collect())),
        Kind::Cname => {
            record.into_record::<rdata::Cname<_>>()?.and_then(|r| text(r.data().cname()).map(Data::Cname))
        }
        // As plain bytes: what is too short for its three numbers marks nothing.
        Kind::Tlsa => record.into_record::<UnknownRecordData<_>>()?.and_then(|r| {
            let bytes: &[u8] = r.data().data();
            let [usage, selector, matching, data @ ..] = bytes else { return None };
            let (usage, selector, matching) = (*usage, *selector, *matching);
            Some(Data::Tlsa(Tlsa { usage, selector, matching, data: data.to_vec() }))
        }),
    })
}

/// A name as bytes, labels joined by dots, without the final one; the root is empty.
fn text(name: &impl ToLabelIter) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for label in name.iter_labels().filter(|label| !label.is_root()) {
        let bytes = label.as_slice();
        if bytes.contains(&b'.') || bytes.contains(&0) {
            return None;
        }
        if !out.is_empty() {
            out.push(b'.');
        }
        out.extend_from_slice(bytes);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::base::iana::Rcode;
    use domain::base::message_builder::{AnswerBuilder, AuthorityBuilder};
    use domain::base::{Serial, Ttl};

    const ID: u16 = 4711;
    const TTL: Ttl = Ttl::from_secs(60);

    fn name(text: &str) -> Name<Vec<u8>> {
        Question::new(text.as_bytes(), Kind::A).unwrap().name
    }

    fn question(text: &str, kind: Kind) -> Question {
        Question::new(text.as_bytes(), kind).unwrap()
    }

    /// An answer to `q` under construction.
    fn answer(q: &Question, rcode: Rcode) -> AnswerBuilder<Vec<u8>> {
        let mut message = MessageBuilder::new_vec();
        message.header_mut().set_id(ID);
        message.header_mut().set_qr(true);
        message.header_mut().set_rcode(rcode);
        let mut section = message.question();
        section.push((&q.name, q.kind.rtype())).unwrap();
        section.answer()
    }

    fn a(last: u8) -> rdata::A {
        rdata::A::new(Ipv4Addr::new(192, 0, 2, last))
    }

    fn soa(mut section: AuthorityBuilder<Vec<u8>>) -> Vec<u8> {
        let data = rdata::Soa::new(name("ns.test"), name("root.test"), Serial(1), TTL, TTL, TTL, TTL);
        section.push((name("test"), TTL, data)).unwrap();
        section.finish()
    }

    fn parsed(q: &Question, bytes: &[u8]) -> Verdict {
        parse_answer(bytes, ID, q)
    }

    fn records(list: Vec<Data>) -> Verdict {
        Verdict::Records { records: list, authentic: false }
    }

    #[test]
    fn names_are_checked_before_they_are_asked_for() {
        let long = [
            b"x".repeat(63).as_slice(),
            b".",
            &b"y".repeat(63),
            b".",
            &b"z".repeat(63),
            b".",
            &b"w".repeat(61),
        ]
        .concat();
        assert!(Question::new(&long, Kind::Mx).is_some(), "255 bytes on the wire");
        let longer = [long.as_slice(), b"w"].concat();
        for bad in [b"".as_slice(), b".", b"..", b"a..b", b".a", b"a..", &b"x".repeat(64), &longer] {
            assert_eq!(Question::new(bad, Kind::Mx), None, "{:?}", String::from_utf8_lossy(bad));
        }
        assert_eq!(Question::new(b"a.b.", Kind::A), Question::new(b"a.b", Kind::A));
        assert!(Question::new(b"under_score.\xff\x00 b", Kind::A).is_some());
    }

    #[test]
    fn a_query_asks_for_recursion_and_authenticity_and_offers_edns() {
        let bytes = question("a.test", Kind::Mx).query(0x1234, true).unwrap();
        let flags = b"\x12\x34\x01\x20\x00\x01\x00\x00\x00\x00\x00\x01";
        let asked = b"\x01a\x04test\x00\x00\x0f\x00\x01";
        let opt = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";
        assert_eq!(bytes, [flags.as_slice(), asked, opt].concat());
        let plain = question("a.test", Kind::Mx).query(0x1234, false).unwrap();
        assert_eq!(plain.len(), flags.len() + asked.len());
    }

    #[test]
    fn records_come_in_the_order_of_the_answer_with_the_ad_bit() {
        let q = question("A.test", Kind::A);
        let mut section = answer(&q, Rcode::NOERROR);
        section.header_mut().set_ad(true);
        section.push((name("a.TEST"), TTL, a(2))).unwrap();
        section.push((name("a.test"), TTL, a(1))).unwrap();
        section.push((name("b.test"), TTL, a(9))).unwrap();
        let list = vec![Data::A(Ipv4Addr::new(192, 0, 2, 2)), Data::A(Ipv4Addr::new(192, 0, 2, 1))];
        assert_eq!(parsed(&q, &section.finish()), Verdict::Records { records: list, authentic: true });
    }

    #[test]
    fn every_kind_of_record_is_read() {
        let q = question("a.test", Kind::Mx);
        let mut section = answer(&q, Rcode::NOERROR);
        section.push((name("a.test"), TTL, rdata::Mx::new(10, name("MX.a.test")))).unwrap();
        section.push((name("a.test"), TTL, rdata::Mx::new(0, Name::root_vec()))).unwrap();
        section
            .push((
                name("a.test"),
                TTL,
                rdata::Mx::new(7, Name::from_octets(b"\x03a.b\x00".to_vec()).unwrap()),
            ))
            .unwrap();
        let mx = |preference, name: &[u8]| Data::Mx(Mx { preference, name: name.to_vec() });
        assert_eq!(
            parsed(&q, &section.finish()),
            records(vec![mx(10, b"MX.a.test"), mx(0, b"")]),
            "a dot in a label is none"
        );

        let q = question("a.test", Kind::Aaaa);
        let mut section = answer(&q, Rcode::NOERROR);
        section.push((name("a.test"), TTL, rdata::Aaaa::new(Ipv6Addr::LOCALHOST))).unwrap();
        assert_eq!(parsed(&q, &section.finish()), records(vec![Data::Aaaa(Ipv6Addr::LOCALHOST)]));

        let q = question("1.2.0.192.in-addr.arpa", Kind::Ptr);
        let mut section = answer(&q, Rcode::NOERROR);
        section.push((name("1.2.0.192.in-addr.arpa"), TTL, rdata::Ptr::new(name("h.test")))).unwrap();
        assert_eq!(parsed(&q, &section.finish()), records(vec![Data::Ptr(b"h.test".to_vec())]));

        let q = question("a.test", Kind::Txt);
        let mut section = answer(&q, Rcode::NOERROR);
        section
            .push((name("a.test"), TTL, rdata::Txt::<Vec<u8>>::build_from_slice(&b"x".repeat(300)).unwrap()))
            .unwrap();
        assert_eq!(parsed(&q, &section.finish()), records(vec![Data::Txt(b"x".repeat(300))]));
    }

    #[test]
    fn an_alias_itself_and_certificate_marks_are_read() {
        let q = question("a.test", Kind::Cname);
        let mut section = answer(&q, Rcode::NOERROR);
        section.push((name("a.test"), TTL, rdata::Cname::new(name("b.test")))).unwrap();
        assert_eq!(parsed(&q, &section.finish()), records(vec![Data::Cname(b"b.test".to_vec())]));

        let q = question("_25._tcp.a.test", Kind::Tlsa);
        let mut section = answer(&q, Rcode::NOERROR);
        for bytes in [b"\x03\x01\x01\x01\x02".as_slice(), b"\x03\x01"] {
            let data = UnknownRecordData::from_octets(Rtype::TLSA, bytes.to_vec()).unwrap();
            section.push((name("_25._tcp.a.test"), TTL, data)).unwrap();
        }
        let tlsa = Tlsa { usage: 3, selector: 1, matching: 1, data: b"\x01\x02".to_vec() };
        assert_eq!(parsed(&q, &section.finish()), records(vec![Data::Tlsa(tlsa)]));
    }

    #[test]
    fn a_no_with_more_in_it_than_it_counts_is_asked_for_again() {
        let q = question("a.test", Kind::A);
        let mut section = answer(&q, Rcode::NOERROR);
        section.push((name("a.test"), TTL, a(1))).unwrap();
        let mut bytes = section.finish();
        bytes.push(0);
        assert_eq!(
            parsed(&q, &bytes),
            records(vec![Data::A(Ipv4Addr::new(192, 0, 2, 1))]),
            "what was asked for is there"
        );
        bytes.pop();
        bytes[7] = 0; // no answers, it says
        assert_eq!(parsed(&q, &bytes), Verdict::NotUnderstood);
    }

    #[test]
    fn aliases_are_followed_in_any_order() {
        let q = question("a.test", Kind::A);
        let mut section = answer(&q, Rcode::NOERROR);
        section.push((name("c.test"), TTL, a(1))).unwrap();
        section.push((name("b.test"), TTL, rdata::Cname::new(name("c.test")))).unwrap();
        section.push((name("a.test"), TTL, rdata::Cname::new(name("b.test")))).unwrap();
        assert_eq!(parsed(&q, &section.finish()), records(vec![Data::A(Ipv4Addr::new(192, 0, 2, 1))]));
    }

    #[test]
    fn an_alias_without_its_end_is_to_be_asked_for() {
        let q = question("a.test", Kind::A);
        let mut section = answer(&q, Rcode::NOERROR);
        section.push((name("a.test"), TTL, rdata::Cname::new(name("b.test")))).unwrap();
        let alias = Verdict::Alias { name: b"b.test".to_vec(), authentic: false };
        assert_eq!(parsed(&q, &section.clone().finish()), alias);
        assert_eq!(parsed(&q, &soa(section.authority())), Verdict::NoData, "the zone of b.test has spoken");
    }

    #[test]
    fn a_ring_of_aliases_is_no_answer() {
        let q = question("a.test", Kind::A);
        let mut section = answer(&q, Rcode::NOERROR);
        section.push((name("a.test"), TTL, rdata::Cname::new(name("b.test")))).unwrap();
        section.push((name("b.test"), TTL, rdata::Cname::new(name("a.test")))).unwrap();
        assert_eq!(parsed(&q, &section.finish()), Verdict::Useless);
    }

    #[test]
    fn a_no_that_is_cut_behind_its_soa_is_none() {
        let q = question("a.test", Kind::Mx);
        for rcode in [Rcode::NXDOMAIN, Rcode::NOERROR] {
            let mut cut = soa(answer(&q, rcode).authority());
            cut[9] = 2; // two records of authority, of which one is here
            assert_eq!(parsed(&q, &cut), Verdict::Useless);
        }
    }

    #[test]
    fn no_is_told_from_never_and_from_ask_somebody_else() {
        let q = question("a.test", Kind::A);
        assert_eq!(parsed(&q, &answer(&q, Rcode::NXDOMAIN).finish()), Verdict::NoSuchName);
        assert_eq!(parsed(&q, &soa(answer(&q, Rcode::NXDOMAIN).authority())), Verdict::NoSuchName);
        assert_eq!(parsed(&q, &answer(&q, Rcode::NOERROR).finish()), Verdict::NoData);
        assert_eq!(parsed(&q, &soa(answer(&q, Rcode::NOERROR).authority())), Verdict::NoData);
        assert_eq!(parsed(&q, &answer(&q, Rcode::SERVFAIL).finish()), Verdict::Useless);
        assert_eq!(parsed(&q, &answer(&q, Rcode::REFUSED).finish()), Verdict::Useless);
        assert_eq!(parsed(&q, &answer(&q, Rcode::FORMERR).finish()), Verdict::NotUnderstood);
        assert_eq!(parsed(&q, &answer(&q, Rcode::NOTIMP).finish()), Verdict::NotUnderstood);
        let mut referral = answer(&q, Rcode::NOERROR).authority();
        referral.push((name("test"), TTL, rdata::Ns::new(name("ns.test")))).unwrap();
        assert_eq!(parsed(&q, &referral.finish()), Verdict::Useless, "a referral");
        let mut denied = answer(&q, Rcode::NXDOMAIN);
        denied.push((name("a.test"), TTL, a(1))).unwrap();
        assert_eq!(parsed(&q, &denied.finish()), Verdict::Useless, "it contradicts itself");
    }

    #[test]
    fn what_answers_something_else_is_not_ours() {
        let q = question("a.test", Kind::A);
        let good = answer(&q, Rcode::NOERROR).finish();
        assert_eq!(parse_answer(&good, ID + 1, &q), Verdict::NotOurs);
        assert_eq!(parsed(&question("b.test", Kind::A), &good), Verdict::NotOurs);
        assert_eq!(parsed(&question("a.test", Kind::Mx), &good), Verdict::NotOurs);
        assert_eq!(parsed(&q, &q.query(ID, true).unwrap()), Verdict::NotOurs, "our own question");
        assert_eq!(parsed(&q, b""), Verdict::NotOurs);
        assert_eq!(parsed(&q, &good[..11]), Verdict::NotOurs);
    }

    #[test]
    fn a_cut_answer_is_asked_for_again_whatever_is_in_it() {
        let q = question("a.test", Kind::A);
        let mut section = answer(&q, Rcode::NOERROR);
        section.header_mut().set_tc(true);
        section.push((name("a.test"), TTL, a(1))).unwrap();
        assert_eq!(parsed(&q, &section.finish()), Verdict::Truncated);
    }

    #[test]
    fn damaged_answers_are_useless_and_never_a_panic() {
        let q = question("a.test", Kind::Mx);
        let mut section = answer(&q, Rcode::NOERROR);
        section.push((name("a.test"), TTL, rdata::Cname::new(name("b.test")))).unwrap();
        section.push((name("b.test"), TTL, rdata::Mx::new(10, name("mx.test")))).unwrap();
        let whole = soa(section.authority());
        for length in 0..whole.len() {
            assert!(!matches!(parsed(&q, &whole[..length]), Verdict::Records { .. }), "cut at {length}");
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                parsed(&q, &bytes);
            }
        }
        let mut endless = whole;
        let end = endless.len();
        endless.extend_from_slice(&[0xc0, u8::try_from(end).unwrap()]); // a name that points at itself
        parsed(&q, &endless);
    }
}
