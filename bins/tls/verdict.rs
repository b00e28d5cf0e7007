//! verdict - whether a server's certificate is what was demanded of it (rfc6125, rfc7671, rfc7672, rfc8461)
//!
//! Pure: certificates, demands, authorities and a time in, a proof or a reason out.
#![forbid(unsafe_code)]

use crate::certificate::Certificate;
use crate::facts;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, Der, ServerName, TrustAnchor, UnixTime};
use sha2::{Digest, Sha256, Sha512};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// More is no packet of ours.
pub const DEMANDS_MAX: usize = 64 * 1024;
const NAMES_MAX: usize = 100;
const RECORDS_MAX: usize = 100;

/// A chain has three certificates, perhaps five; each costs signatures to look at.
const CHAIN_MAX: usize = 20;

/// How a server shall prove who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// It need not.
    Nothing,
    /// By an authority of the system, for one of the names.
    Pkix,
    /// By the records of its zone.
    Dane,
}

/// A TLSA record (rfc6698:2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub usage: u8,
    pub selector: u8,
    pub matching: u8,
    pub data: Vec<u8>,
}

/// What qmail-remote demands of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demands {
    /// Asked for in the handshake, and the first of the names a certificate may have.
    pub name: Vec<u8>,
    pub names: Vec<Vec<u8>>,
    pub verify: Verify,
    pub records: Vec<Record>,
    /// The directory of our own certificate.
    pub cert: Option<Vec<u8>>,
    /// Nothing below TLS 1.3.
    pub only_newest: bool,
}

impl Demands {
    /// `NAME=value\0` as often as it takes; None for anything that is not understood whole: what was demanded must
    /// not be lost.
    pub fn parse(packet: &[u8]) -> Option<Demands> {
        let mut demands = Demands {
            name: Vec::new(),
            names: Vec::new(),
            verify: Verify::Nothing,
            records: Vec::new(),
            cert: None,
            only_newest: false,
        };
        let (mut sts, mut verify) = (false, None);
        let packet = packet.strip_suffix(b"\0")?;
        for entry in packet.split(|b| *b == 0) {
            let (name, value) = facts::parse(entry).next()?;
            match name {
                b"name" => demands.name = host(value),
                b"names" => {
                    demands.names.extend(value.split(|b| *b == b',').filter(|n| !n.is_empty()).map(host))
                }
                b"verify" => {
                    verify = Some(match value {
                        b"none" => Verify::Nothing,
                        b"pkix" => Verify::Pkix,
                        b"dane" => Verify::Dane,
                        _ => return None,
                    });
                }
                b"tlsa" => demands.records.push(record(value)?),
                b"sts" => {
                    sts = match value {
                        b"0" | b"" => false,
                        b"1" => true,
                        _ => return None,
                    };
                }
                b"cert" => demands.cert = Some(directory(value)?.to_vec()).filter(|name| !name.is_empty()),
                b"minimum" => {
                    demands.only_newest = match value {
                        b"1.2" | b"" => false,
                        b"1.3" => true,
                        _ => return None,
                    };
                }
                _ => return None,
            }
            if demands.names.len() > NAMES_MAX || demands.records.len() > RECORDS_MAX {
                return None;
            }
        }
        // rfc8461:2: what DANE proves is proved; without it, MTA-STS wants an authority.
        demands.verify = match verify? {
            Verify::Nothing if sts => Verify::Pkix,
            verify => verify,
        };
        Some(demands)
    }

    /// All names that a certificate may have.
    fn references(&self) -> impl Iterator<Item = ServerName<'_>> {
        let names = std::iter::once(&self.name).chain(&self.names);
        names.filter_map(|name| ServerName::try_from(std::str::from_utf8(name).ok()?).ok())
    }
}

/// Certificates have names without the last dot.
fn host(name: &[u8]) -> Vec<u8> {
    name.strip_suffix(b".").unwrap_or(name).to_ascii_lowercase()
}

/// One step down, and no way out.
fn directory(name: &[u8]) -> Option<&[u8]> {
    (!name.starts_with(b".") && !name.contains(&b'/')).then_some(name)
}

/// `usage selector matching hex`
fn record(value: &[u8]) -> Option<Record> {
    let mut words = value.split(|b| *b == b' ').filter(|word| !word.is_empty());
    let mut number = || qmail::decimal::strict(words.next()?).and_then(|n| u8::try_from(n).ok());
    let (usage, selector, matching) = (number()?, number()?, number()?);
    let digits = words.next().unwrap_or_default();
    let digit = |b: &u8| char::from(*b).to_digit(16);
    let pair = |two: &[u8]| match two {
        [high, low] => u8::try_from(digit(high)? << 4 | digit(low)?).ok(),
        _ => None,
    };
    let data = digits.chunks(2).map(pair).collect::<Option<Vec<u8>>>()?;
    words.next().is_none().then_some(Record { usage, selector, matching, data })
}

/// What convinced us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Nothing had to.
    None,
    /// All records are of kinds that prove nothing to mail servers: encrypted, and nothing more (rfc7672:2.2).
    Unusable,
    Pkix,
    DaneEndEntity,
    DaneAnchor,
}

impl Proof {
    pub fn word(self) -> &'static str {
        match self {
            Proof::None => "none",
            Proof::Unusable => "unusable",
            Proof::Pkix => "pkix",
            Proof::DaneEndEntity => "dane-ee",
            Proof::DaneAnchor => "dane-ta",
        }
    }
}

/// `chain` is what the server sent, its own certificate first. The error is for a person.
pub fn judge(
    demands: &Demands,
    chain: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<Proof, String> {
    let chain = chain.get(..chain.len().min(CHAIN_MAX)).unwrap_or_default();
    let (own, above) = chain.split_first().ok_or("it showed no certificate")?;
    match demands.verify {
        Verify::Nothing => Ok(Proof::None),
        Verify::Pkix => by_anchors(demands, own, above, &roots.roots, now).map(|()| Proof::Pkix),
        Verify::Dane => by_records(demands, own, above, now),
    }
}

/// A path to one of the anchors, in time, for a server, and one of the names.
fn by_anchors(
    demands: &Demands,
    own: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    now: UnixTime,
) -> Result<(), String> {
    let parsed = EndEntityCert::try_from(own).map_err(wording)?;
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    parsed
        .verify_for_usage(algorithms, anchors, above, now, KeyUsage::server_auth(), None, None)
        .map_err(wording)?;
    let fits = demands.references().any(|name| parsed.verify_is_valid_for_subject_name(&name).is_ok());
    if fits { Ok(()) } else { Err(format!("its certificate is not for {}", shown(&demands.name))) }
}

fn by_records(
    demands: &Demands,
    own: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Proof, String> {
    // rfc7672:3.1.3: the usages of the web's authorities prove nothing here. rfc7671:2.1: unknown numbers neither.
    let usable: Vec<&Record> = demands
        .records
        .iter()
        .filter(|r| matches!((r.usage, r.selector), (2 | 3, 0 | 1)) && is_whole(r))
        .collect();
    if demands.records.is_empty() {
        return Err("there is no TLSA record".to_owned());
    }
    if usable.is_empty() {
        return Ok(Proof::Unusable);
    }
    // rfc7671:5.1: neither names nor dates of a certificate that is itself in the zone count.
    if usable.iter().any(|r| r.usage == 3 && matches(r, own)) {
        return Ok(Proof::DaneEndEntity);
    }
    let mut reason = None;
    for record in usable.iter().filter(|r| r.usage == 2) {
        for anchor in anchors(record, own, above) {
            match by_anchors(demands, own, above, std::slice::from_ref(&anchor), now) {
                Ok(()) => return Ok(Proof::DaneAnchor),
                Err(why) => reason = Some(why),
            }
        }
    }
    Err(reason.unwrap_or_else(|| "no TLSA record fits its certificates".to_owned()))
}

/// Digests have their length.
fn is_whole(record: &Record) -> bool {
    match record.matching {
        0 => !record.data.is_empty(),
        1 => record.data.len() == 32,
        2 => record.data.len() == 64,
        _ => false,
    }
}

fn matches(record: &Record, der: &CertificateDer<'_>) -> bool {
    let selected = match record.selector {
        0 => Some(der.as_ref()),
        _ => Certificate::parse(der).map(|certificate| certificate.spki),
    };
    selected.is_some_and(|selected| match record.matching {
        0 => selected == record.data,
        1 => Sha256::digest(selected).as_slice() == record.data,
        _ => Sha512::digest(selected).as_slice() == record.data,
    })
}

/// The anchors that a record of usage 2 stands for: the certificates above the server's own that it fits; one
/// that is in the record whole, sent or not; a key in the record, as that of whoever issued one of those
/// sent (rfc7671:5.2).
fn anchors(
    record: &Record,
    own: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
) -> Vec<TrustAnchor<'static>> {
    let sent = above.iter().filter(|der| matches(record, der));
    let mut found: Vec<TrustAnchor<'static>> =
        sent.filter_map(|der| anchor_from_trusted_cert(der).ok().map(|anchor| anchor.to_owned())).collect();
    match (record.matching, record.selector) {
        (0, 0) => {
            let der = CertificateDer::from(record.data.as_slice());
            found.extend(anchor_from_trusted_cert(&der).ok().map(|anchor| anchor.to_owned()));
        }
        (0, 1) => {
            let key = crate::certificate::content(&record.data).map(<[u8]>::to_vec).unwrap_or_default();
            let issuers = std::iter::once(own)
                .chain(above)
                .filter_map(|der| Some(Certificate::parse(der)?.issuer.to_vec()));
            found.extend(issuers.map(|issuer| TrustAnchor {
                subject: Der::from(issuer),
                subject_public_key_info: Der::from(key.clone()),
                name_constraints: None,
            }));
        }
        _ => {}
    }
    found
}

/// The reasons that people meet, in words.
fn wording(error: webpki::Error) -> String {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } => "its certificate has expired".to_owned(),
        Error::CertNotValidYet { .. } => "its certificate is not valid yet".to_owned(),
        Error::UnknownIssuer => "nobody who is trusted has signed its certificate".to_owned(),
        Error::InvalidSignatureForPublicKey => "a signature in its chain of certificates is wrong".to_owned(),
        Error::RequiredEkuNotFoundContext(_) => "its certificate is not for servers".to_owned(),
        Error::CaUsedAsEndEntity => "its certificate is one of an authority".to_owned(),
        Error::EndEntityUsedAsCa => "a certificate above its own is not of an authority".to_owned(),
        error => format!("its certificate is no good ({error})"),
    }
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(&facts::clean(name)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::hex;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    struct Made {
        der: CertificateDer<'static>,
        spki: Vec<u8>,
    }

    /// An authority, one below it, and a server's certificate.
    struct Family {
        root: Made,
        middle: Made,
        leaf: Made,
    }

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000))
    }

    fn params(name: &str, ca: bool, year: i32) -> CertificateParams {
        let mut params = CertificateParams::new(if ca { Vec::new() } else { vec![name.to_owned()] }).unwrap();
        params.distinguished_name.push(DnType::CommonName, format!("the {name}"));
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        if ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params
    }

    fn made(der: &CertificateDer<'_>) -> Made {
        let spki = Certificate::parse(der).unwrap().spki.to_vec();
        Made { der: der.clone().into_owned(), spki }
    }

    fn family(name: &str, year: i32) -> Family {
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(params("root", true, 2040), key()).unwrap();
        let middle = CertifiedIssuer::signed_by(params("middle", true, 2040), key(), &root).unwrap();
        let leaf = params(name, false, year).signed_by(&key(), &middle).unwrap();
        Family { root: made(root.der()), middle: made(middle.der()), leaf: made(leaf.der()) }
    }

    fn demands(text: &str) -> Demands {
        Demands::parse(text.replace(' ', "\0").replace('_', " ").as_bytes()).unwrap()
    }

    fn dane(records: &[(u8, u8, u8, &[u8])]) -> Demands {
        let records = records.iter().map(|(usage, selector, matching, data)| Record {
            usage: *usage,
            selector: *selector,
            matching: *matching,
            data: data.to_vec(),
        });
        Demands { records: records.collect(), ..demands("name=mx.example.org verify=dane ") }
    }

    fn sha256(data: &[u8]) -> Vec<u8> {
        Sha256::digest(data).to_vec()
    }

    fn verdict(demands: &Demands, chain: &[&Made], roots: &[&Made]) -> Result<Proof, String> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().map(|made| made.der.clone()));
        let chain: Vec<_> = chain.iter().map(|made| made.der.clone()).collect();
        judge(demands, &chain, &store, now())
    }

    #[test]
    fn demands_are_read_whole_or_not_at_all() {
        let found = demands(
            "name=MX.example.org. names=a.example,b.example. verify=dane tlsa=3_1_1_00ff cert=mine minimum=1.3 ",
        );
        assert_eq!(found.name, b"mx.example.org");
        assert_eq!(found.names, [b"a.example".to_vec(), b"b.example".to_vec()]);
        assert_eq!(found.records, [Record { usage: 3, selector: 1, matching: 1, data: vec![0, 255] }]);
        assert_eq!(
            (found.cert.as_deref(), found.only_newest, found.verify),
            (Some(b"mine".as_slice()), true, Verify::Dane)
        );
        assert_eq!(demands("verify=none sts=1 ").verify, Verify::Pkix);
        assert_eq!(demands("verify=dane sts=1 ").verify, Verify::Dane);
        for bad in [
            b"".as_slice(),
            b"name=x\0",
            b"verify=none",
            b"verify=much\0",
            b"verify=none\0new=1\0",
            b"verify=none\0minimum=1.1\0",
            b"verify=none\0cert=../x\0",
            b"verify=none\0cert=.x\0",
            b"verify=dane\0tlsa=3 1 1 0\0",
            b"verify=dane\0tlsa=3 1 1 0g\0",
            b"verify=dane\0tlsa=256 1 1 00\0",
            b"verify=dane\0tlsa=3 1 1 00 00\0",
            b"verify=none\0\0",
        ] {
            assert_eq!(Demands::parse(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn where_nothing_is_demanded_anything_is_taken() {
        let other = family("other.example", 2001);
        assert_eq!(
            verdict(&demands("name=mx.example.org verify=none "), &[&other.leaf], &[]),
            Ok(Proof::None)
        );
        assert!(verdict(&demands("verify=none "), &[], &[]).is_err());
    }

    #[test]
    fn an_authority_a_name_and_a_date_make_pkix() {
        let pkix = demands("name=mx.example.org names=*.wrong,mail.example.org verify=pkix ");
        for (name, year, good) in [
            ("mx.example.org", 2040, true),
            ("mail.example.org", 2040, true),
            ("*.example.org", 2040, true),
            ("other.example.org", 2040, false),
            ("mx.example.org", 2001, false),
        ] {
            let family = family(name, year);
            let chain = [&family.leaf, &family.middle];
            assert_eq!(verdict(&pkix, &chain, &[&family.root]).is_ok(), good, "{name} {year}");
            assert!(verdict(&pkix, &[&family.leaf], &[&family.root]).is_err());
            assert!(verdict(&pkix, &chain, &[]).is_err());
        }
        let expired = family("mx.example.org", 2001);
        let why = verdict(&pkix, &[&expired.leaf, &expired.middle], &[&expired.root]);
        assert_eq!(why, Err("its certificate has expired".to_owned()));
    }

    #[test]
    fn an_end_entity_in_the_zone_needs_neither_name_nor_date() {
        let old = family("other.example", 2001);
        for (selector, data) in [(0, old.leaf.der.as_ref()), (1, old.leaf.spki.as_slice())] {
            let digests = [(0, data.to_vec()), (1, sha256(data)), (2, Sha512::digest(data).to_vec())];
            for (matching, digest) in digests {
                let demands = dane(&[(3, selector, matching, &digest)]);
                assert_eq!(verdict(&demands, &[&old.leaf], &[]), Ok(Proof::DaneEndEntity));
                let other = family("mx.example.org", 2040);
                assert!(verdict(&demands, &[&other.leaf, &old.leaf], &[&other.root]).is_err());
            }
        }
    }

    #[test]
    fn an_anchor_in_the_zone_needs_name_date_and_path() {
        let family = family("mx.example.org", 2040);
        let chain = [&family.leaf, &family.middle];
        let whole = [&family.leaf, &family.middle, &family.root];
        for (anchor, sent) in [(&family.middle, chain.as_slice()), (&family.root, whole.as_slice())] {
            for (selector, data) in [(0, anchor.der.as_ref()), (1, anchor.spki.as_slice())] {
                for (matching, data) in
                    [(0, data.to_vec()), (1, sha256(data)), (2, Sha512::digest(data).to_vec())]
                {
                    let demands = dane(&[(2, selector, matching, &data)]);
                    assert_eq!(verdict(&demands, sent, &[]), Ok(Proof::DaneAnchor), "{selector} {matching}");
                }
            }
        }
        // A digest of what was not sent proves nothing; what is in the record whole need not be sent.
        let digest = sha256(family.root.der.as_ref());
        assert!(verdict(&dane(&[(2, 0, 1, &digest)]), &chain, &[&family.root]).is_err());
        assert_eq!(
            verdict(&dane(&[(2, 0, 0, family.root.der.as_ref())]), &chain, &[]),
            Ok(Proof::DaneAnchor)
        );
        assert_eq!(verdict(&dane(&[(2, 1, 0, &family.root.spki)]), &chain, &[]), Ok(Proof::DaneAnchor));
    }

    #[test]
    fn an_anchor_does_not_excuse_a_wrong_name_or_an_old_date() {
        for (name, year) in [("other.example", 2040), ("mx.example.org", 2001)] {
            let family = family(name, year);
            let demands = dane(&[(2, 0, 0, family.root.der.as_ref())]);
            assert!(
                verdict(&demands, &[&family.leaf, &family.middle, &family.root], &[&family.root]).is_err()
            );
        }
        let (ours, theirs) = (family("mx.example.org", 2040), family("mx.example.org", 2040));
        let demands = dane(&[(2, 0, 1, &sha256(ours.root.der.as_ref()))]);
        // The right anchor beside a chain that does not lead to it.
        assert!(verdict(&demands, &[&theirs.leaf, &theirs.middle, &ours.root], &[&theirs.root]).is_err());
    }

    #[test]
    fn usages_of_the_web_and_unknown_numbers_are_unusable() {
        let family = family("mx.example.org", 2040);
        let digest = sha256(family.leaf.der.as_ref());
        let odd: [(u8, u8, u8, &[u8]); 6] = [
            (0, 0, 1, &digest),
            (1, 0, 1, &digest),
            (4, 0, 1, &digest),
            (3, 2, 1, &digest),
            (3, 0, 3, &digest),
            (3, 0, 1, b"short"),
        ];
        assert_eq!(verdict(&dane(&odd), &[&family.leaf], &[]), Ok(Proof::Unusable));
        // One that can be used counts, whatever stands beside it.
        let wrong = (3, 0, 1, sha256(b"other"));
        let mut some = odd.to_vec();
        some.push((wrong.0, wrong.1, wrong.2, &wrong.3));
        assert!(verdict(&dane(&some), &[&family.leaf], &[&family.root]).is_err());
        some.push((3, 0, 1, &digest));
        assert_eq!(verdict(&dane(&some), &[&family.leaf], &[]), Ok(Proof::DaneEndEntity));
        assert!(verdict(&dane(&[]), &[&family.leaf], &[&family.root]).is_err());
    }

    #[test]
    fn a_record_may_be_written_in_either_case() {
        let digits = String::from_utf8(hex(&[0xab; 32])).unwrap().to_uppercase();
        assert_eq!(record(format!("3 1 1 {digits}").as_bytes()).unwrap().data, [0xab; 32]);
    }
}
