//! certificate - the few fields of an X.509 certificate that rustls does not show (rfc5280:4.1)
//!
//! Only certificates whose chain or whose signature rustls has looked at come here, but strangers wrote them:
//! everything is bounds-checked, nothing recurses, and what is not understood is None.
#![forbid(unsafe_code)]

use sha2::{Digest, Sha256, Sha384, Sha512};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;

/// id-ce-subjectAltName, 2.5.29.17.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// Names of attributes that are written out (rfc4514:3), by their OID.
const ATTRIBUTES: [(&[u8], &str); 8] = [
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 9], "STREET"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
];

/// One value in DER.
#[derive(Clone, Copy)]
struct Value<'a> {
    tag: u8,
    content: &'a [u8],
    /// With tag and length.
    whole: &'a [u8],
}

/// The next value: tags of one byte, definite lengths of at most 4.
fn take<'a>(rest: &mut &'a [u8]) -> Option<Value<'a>> {
    let start = *rest;
    let (&tag, after) = start.split_first()?;
    if tag & 0x1f == 0x1f {
        return None;
    }
    let (&first, after) = after.split_first()?;
    let (length, after) = if first < 0x80 {
        (usize::from(first), after)
    } else {
        let (bytes, after) =
            after.split_at_checked(usize::from(first & 0x7f)).filter(|(b, _)| (1..=4).contains(&b.len()))?;
        (bytes.iter().fold(0usize, |n, b| n << 8 | usize::from(*b)), after)
    };
    let (content, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(Value { tag, content, whole: start.get(..start.len() - after.len())? })
}

fn expect<'a>(rest: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    take(rest).filter(|value| value.tag == tag).map(|value| value.content)
}

/// The values of a sequence.
fn values(mut rest: &[u8]) -> impl Iterator<Item = Value<'_>> {
    std::iter::from_fn(move || take(&mut rest))
}

/// What is in a sequence, which is all there is.
pub fn content(mut der: &[u8]) -> Option<&[u8]> {
    let content = expect(&mut der, SEQUENCE)?;
    der.is_empty().then_some(content)
}

/// The fields, as they stand in the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certificate<'a> {
    /// Of a Name: what is in its sequence.
    pub issuer: &'a [u8],
    pub subject: &'a [u8],
    /// SubjectPublicKeyInfo, whole.
    pub spki: &'a [u8],
    /// AlgorithmIdentifier of the signature: what is in its sequence.
    signature: &'a [u8],
    /// GeneralNames: what is in its sequence.
    alternatives: &'a [u8],
}

impl<'a> Certificate<'a> {
    pub fn parse(mut der: &'a [u8]) -> Option<Certificate<'a>> {
        let mut outer = expect(&mut der, SEQUENCE)?;
        let mut body = expect(&mut outer, SEQUENCE)?;
        let signature = expect(&mut outer, SEQUENCE)?;
        if body.first() == Some(&VERSION) {
            take(&mut body)?;
        }
        expect(&mut body, INTEGER)?; // serial number
        expect(&mut body, SEQUENCE)?; // signature, again
        let issuer = expect(&mut body, SEQUENCE)?;
        expect(&mut body, SEQUENCE)?; // validity
        let subject = expect(&mut body, SEQUENCE)?;
        let spki = take(&mut body).filter(|value| value.tag == SEQUENCE)?.whole;
        let extensions = values(body).find(|value| value.tag == EXTENSIONS);
        let alternatives = extensions.and_then(|value| alternatives(value.content)).unwrap_or_default();
        Some(Certificate { issuer, subject, spki, signature, alternatives })
    }

    /// The first mail address among the subject's alternative names.
    pub fn email(&self) -> Option<&'a [u8]> {
        self.alternative(EMAIL)
    }

    /// The first host name there.
    pub fn dns(&self) -> Option<&'a [u8]> {
        self.alternative(DNS)
    }

    /// Names are IA5 (rfc5280:4.2.1.6); one that is not is none.
    fn alternative(&self, tag: u8) -> Option<&'a [u8]> {
        let found = values(self.alternatives).find(|value| value.tag == tag)?.content;
        (!found.is_empty() && found.iter().all(|b| (33..=126).contains(b))).then_some(found)
    }

    /// The subject as text (rfc4514): last attribute first, values that are no clean text as `#` and hex.
    pub fn subject_text(&self) -> Vec<u8> {
        let names: Vec<Vec<u8>> =
            values(self.subject).filter(|rdn| rdn.tag == SET).map(|rdn| relative(rdn.content)).collect();
        names.into_iter().rev().collect::<Vec<_>>().join(&b',')
    }

    /// The hash for tls-server-end-point (rfc5929:4.1) of this certificate, `der`: that of its signature, SHA-256
    /// for the two weak ones; None where the signature has none of its own (Ed25519).
    pub fn end_point(&self, der: &[u8]) -> Option<Vec<u8>> {
        const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1];
        const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4];
        const SHA2: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2];
        let mut rest = self.signature;
        let algorithm = expect(&mut rest, OID)?;
        let named = |oid: &[u8], base: &[u8]| oid.strip_prefix(base).map(<[u8]>::to_vec);
        let bits = match (named(algorithm, RSA).as_deref(), named(algorithm, ECDSA).as_deref()) {
            (Some([4 | 5 | 11]), _) | (_, Some([1] | [3, 2])) => 256, // with MD5, SHA-1, SHA-256
            (Some([12]), _) | (_, Some([3, 3])) => 384,
            (Some([13]), _) | (_, Some([3, 4])) => 512,
            // RSASSA-PSS: [0] hashAlgorithm; its default is SHA-1 (rfc4055:3.1).
            (Some([10]), _) => {
                let mut parameters = expect(&mut rest, SEQUENCE)?;
                let hash = match take(&mut parameters).filter(|value| value.tag == 0xa0) {
                    Some(value) => named(first_oid(value.content)?, SHA2)?,
                    None => vec![1],
                };
                match hash.as_slice() {
                    [1] => 256,
                    [2] => 384,
                    [3] => 512,
                    _ => return None,
                }
            }
            _ => return None,
        };
        Some(match bits {
            256 => Sha256::digest(der).to_vec(),
            384 => Sha384::digest(der).to_vec(),
            _ => Sha512::digest(der).to_vec(),
        })
    }
}

/// The OID of an AlgorithmIdentifier.
fn first_oid(mut rest: &[u8]) -> Option<&[u8]> {
    let mut inside = expect(&mut rest, SEQUENCE)?;
    expect(&mut inside, OID)
}

fn alternatives(mut extensions: &[u8]) -> Option<&[u8]> {
    let list = expect(&mut extensions, SEQUENCE)?;
    values(list).filter(|value| value.tag == SEQUENCE).find_map(|extension| {
        let mut rest = extension.content;
        if expect(&mut rest, OID)? != SUBJECT_ALT_NAME {
            return None;
        }
        if rest.first() == Some(&BOOLEAN) {
            take(&mut rest)?;
        }
        let mut names = expect(&mut rest, OCTETS)?;
        expect(&mut names, SEQUENCE)
    })
}

/// The attributes of one RelativeDistinguishedName, `+` between them.
fn relative(set: &[u8]) -> Vec<u8> {
    let attributes: Vec<Vec<u8>> = values(set)
        .filter_map(|attribute| {
            let mut rest = attribute.content;
            let kind = expect(&mut rest, OID)?;
            let value = take(&mut rest)?;
            let known = ATTRIBUTES.iter().find(|(oid, _)| *oid == kind).map(|(_, name)| (*name).to_owned());
            let mut text = known.clone().unwrap_or_else(|| dotted(kind)).into_bytes();
            text.push(b'=');
            // UTF8String, PrintableString, IA5String
            let clean = matches!(value.tag, 0x0c | 0x13 | 0x16)
                && std::str::from_utf8(value.content).is_ok_and(|t| !t.chars().any(char::is_control));
            match clean && known.is_some() {
                true => escape(value.content, &mut text),
                false => {
                    text.push(b'#');
                    text.extend_from_slice(&hex(value.whole));
                }
            }
            Some(text)
        })
        .collect();
    attributes.join(&b'+')
}

/// rfc4514:2.4
fn escape(value: &[u8], text: &mut Vec<u8>) {
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.iter().enumerate() {
        let special = b"\"+,;<>\\=".contains(byte)
            || (at == 0 && matches!(byte, b' ' | b'#'))
            || (at == last && *byte == b' ');
        if special {
            text.push(b'\\');
        }
        text.push(*byte);
    }
}

/// An OID in numbers.
fn dotted(oid: &[u8]) -> String {
    let mut arcs: Vec<u64> = Vec::new();
    let mut arc = 0u64;
    for byte in oid {
        arc = arc.wrapping_shl(7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            match arcs.is_empty() {
                true => {
                    let first = (arc / 40).min(2);
                    arcs.extend([first, arc - first * 40]);
                }
                false => arcs.push(arc),
            }
            arc = 0;
        }
    }
    arcs.iter().map(u64::to_string).collect::<Vec<_>>().join(".")
}

pub fn hex(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| DIGITS.get(usize::from(n)).copied().unwrap_or(b'?');
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

/// The digest that clients and TLSA records name a certificate by, in hex.
pub fn fingerprint(der: &[u8]) -> Vec<u8> {
    hex(&Sha256::digest(der))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        match content.len() {
            n if n < 128 => out.push(n as u8),
            n => out.extend([0x82, (n >> 8) as u8, n as u8]),
        }
        out.extend_from_slice(content);
        out
    }

    fn attribute(oid: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
        der(SET, &der(SEQUENCE, &[der(OID, oid), der(tag, value)].concat()))
    }

    fn sample(subject: &[Vec<u8>], names: &[u8], signature: &[u8]) -> Vec<u8> {
        let extension = der(
            SEQUENCE,
            &[der(OID, SUBJECT_ALT_NAME), der(BOOLEAN, &[0xff]), der(OCTETS, &der(SEQUENCE, names))].concat(),
        );
        let body = [
            der(VERSION, &der(INTEGER, &[2])),
            der(INTEGER, &[1]),
            der(SEQUENCE, signature),
            der(SEQUENCE, b""),
            der(SEQUENCE, b""),
            der(SEQUENCE, &subject.concat()),
            der(SEQUENCE, b"key"),
            der(EXTENSIONS, &der(SEQUENCE, &extension)),
        ];
        der(SEQUENCE, &[der(SEQUENCE, &body.concat()), der(SEQUENCE, signature), der(3, b"\0")].concat())
    }

    #[test]
    fn subjects_are_written_backwards_and_escaped() {
        let subject = [
            attribute(&[0x55, 4, 10], 0x0c, b"Tiny, Inc. "),
            attribute(&[0x55, 4, 3], 0x13, b"#alice"),
            attribute(&[0x2a, 0x86, 0x48], 0x16, b"x"),
            attribute(&[0x55, 4, 11], 0x0c, b"a\nb"),
        ];
        let bytes = sample(&subject, b"", &der(OID, &[1]));
        let found = Certificate::parse(&bytes).unwrap();
        assert_eq!(
            String::from_utf8(found.subject_text()).unwrap(),
            r"OU=#0c03610a62,1.2.840=#160178,CN=\#alice,O=Tiny\, Inc.\ "
        );
        assert_eq!(found.spki, der(SEQUENCE, b"key"));
    }

    #[test]
    fn the_first_address_and_host_name_are_found() {
        let names = [der(DNS, b"mx.example.org"), der(EMAIL, b"a@example.org"), der(DNS, b"other")].concat();
        let bytes = sample(&[], &names, &der(OID, &[1]));
        let found = Certificate::parse(&bytes).unwrap();
        assert_eq!(
            (found.dns(), found.email()),
            (Some(b"mx.example.org".as_slice()), Some(b"a@example.org".as_slice()))
        );
        let bytes = sample(&[], &der(DNS, b"a\0b"), &der(OID, &[1]));
        assert_eq!(Certificate::parse(&bytes).unwrap().dns(), None);
    }

    #[test]
    fn the_end_point_takes_the_hash_of_the_signature() {
        let of = |signature: &[u8]| {
            let bytes = sample(&[], b"", signature);
            Certificate::parse(&bytes).unwrap().end_point(&bytes).map(|hash| hash.len() * 8)
        };
        assert_eq!(of(&der(OID, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5])), Some(256));
        assert_eq!(of(&der(OID, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3])), Some(384));
        let pss = der(OID, &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10]);
        let sha512 = der(SEQUENCE, &der(OID, &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3]));
        assert_eq!(of(&[pss, der(SEQUENCE, &der(0xa0, &sha512))].concat()), Some(512));
        assert_eq!(of(&der(OID, &[0x2b, 0x65, 0x70])), None); // Ed25519
    }

    #[test]
    fn pieces_of_a_certificate_are_none() {
        let bytes = sample(&[attribute(&[0x55, 4, 3], 0x13, b"x")], &der(DNS, b"x"), &der(OID, &[1]));
        assert!((0..bytes.len()).all(|n| Certificate::parse(bytes.get(..n).unwrap()).is_none()));
        assert!(Certificate::parse(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]).is_none());
    }
}
