//! scram - the messages and keys of SCRAM-SHA-256 (RFC 5802, 7677)
//!
//! Messages are parsed and written here; what they mean is decided in `server` and `client`.
#![forbid(unsafe_code)]

use super::digest::{HmacSha256, hmac_sha256, pbkdf2_sha256, sha256};
use super::{decode, encode, equal};
use crate::auth::wipe;
use crate::decimal;

/// Rounds of new keys, and of names that nobody has: all accounts of a site should have the same.
pub const COUNT: u32 = 10_000;

/// Fewer are no protection (rfc7677:4); with more a server could keep a client busy (a million take a second).
pub const COUNT_MIN: u32 = 4096;
pub const COUNT_MAX: u32 = 1_000_000;

/// Bytes of a salt: of new ones, and at most.
pub const SALT_BYTES: usize = 16;
const SALT_MAX: usize = 1024;

/// Bytes of the other side's nonce.
const NONCE_MAX: usize = 512;

/// A message that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// What everybody may know of somebody's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params {
    pub count: u32,
    pub salt: Vec<u8>,
}

impl Params {
    /// From `COUNT,SALT64`, as it stands in control/scramparams.cdb.
    pub fn parse(text: &[u8]) -> Option<Params> {
        let at = memchr::memchr(b',', text)?;
        let (count, salt) = text.split_at(at);
        Params::of(count, salt.get(1..)?)
    }

    fn of(count: &[u8], salt: &[u8]) -> Option<Params> {
        let count = u32::try_from(decimal::strict(count)?).ok()?;
        let salt = decode(salt)?;
        let fits = (COUNT_MIN..=COUNT_MAX).contains(&count) && (1..=SALT_MAX).contains(&salt.len());
        fits.then_some(Params { count, salt })
    }

    pub fn text(&self) -> Vec<u8> {
        [self.count.to_string().into_bytes(), encode(&self.salt)].join(&b',')
    }

    /// Those of a name that nobody has: always the same, so that it cannot be told from the others.
    pub fn invented(secret: &[u8], name: &[u8]) -> Params {
        let salt = hmac_sha256(secret, name).into_iter().take(SALT_BYTES).collect();
        Params { count: COUNT, salt }
    }
}

/// What a server keeps of a password. Whoever has them can check proofs, and make the server's signature.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    pub stored: [u8; 32],
    pub server: [u8; 32],
}

impl Keys {
    /// From a prepared password (`prep`).
    pub fn derive(password: &[u8], params: &Params) -> Keys {
        let mut salted = pbkdf2_sha256(password, &params.salt, params.count);
        let mac = HmacSha256::new(&salted);
        let mut client = mac.of(b"Client Key");
        let keys = Keys { stored: sha256(&client), server: mac.of(b"Server Key") };
        wipe(&mut salted);
        wipe(&mut client);
        keys
    }

    /// Whether a client's proof shows that it knows the password.
    pub fn verify(&self, proof: &[u8], auth_message: &[u8]) -> bool {
        let signature = hmac_sha256(&self.stored, auth_message);
        let mut client: Vec<u8> = proof.iter().zip(signature).map(|(a, b)| a ^ b).collect();
        let same = proof.len() == signature.len() && equal(&sha256(&client), &self.stored);
        wipe(&mut client);
        same
    }

    /// The server's proof that it knows the keys.
    pub fn signature(&self, auth_message: &[u8]) -> [u8; 32] {
        hmac_sha256(&self.server, auth_message)
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        wipe(&mut self.stored);
        wipe(&mut self.server);
    }
}

/// A client's proof, and the signature it must get in return.
pub fn prove(password: &[u8], params: &Params, auth_message: &[u8]) -> (Vec<u8>, [u8; 32]) {
    let mut salted = pbkdf2_sha256(password, &params.salt, params.count);
    let mac = HmacSha256::new(&salted);
    let mut client = mac.of(b"Client Key");
    let signature = hmac_sha256(&sha256(&client), auth_message);
    let proof = client.iter().zip(signature).map(|(a, b)| a ^ b).collect();
    let expected = hmac_sha256(&mac.of(b"Server Key"), auth_message);
    wipe(&mut salted);
    wipe(&mut client);
    (proof, expected)
}

/// What a client says of channel binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flag {
    /// `n`: it knows none.
    None,
    /// `y`: it could, and thinks that we cannot.
    NotOffered,
    /// `p=TYPE`.
    Used(Vec<u8>),
}

/// `n,a=AUTHZID,n=NAME,r=NONCE`, with or without more behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFirst<'a> {
    pub flag: Flag,
    pub authzid: Option<Vec<u8>>,
    /// Up to the second comma and with it: the client repeats it in its last message.
    pub header: &'a [u8],
    /// What is behind the header.
    pub bare: &'a [u8],
    pub name: Vec<u8>,
    pub nonce: &'a [u8],
}

impl<'a> ClientFirst<'a> {
    pub fn parse(message: &'a [u8]) -> Result<ClientFirst<'a>, Malformed> {
        let mut fields = message.splitn(3, |b| *b == b',');
        let (flag, authzid, bare) = (
            fields.next().ok_or(Malformed)?,
            fields.next().ok_or(Malformed)?,
            fields.next().ok_or(Malformed)?,
        );
        let header = message.get(..flag.len() + authzid.len() + 2).ok_or(Malformed)?;
        let flag = match flag {
            b"n" => Flag::None,
            b"y" => Flag::NotOffered,
            other => Flag::Used(
                other.strip_prefix(b"p=").filter(|t| is_binding_type(t)).ok_or(Malformed)?.to_vec(),
            ),
        };
        let authzid = match authzid {
            b"" => None,
            other => Some(unescape(other.strip_prefix(b"a=").ok_or(Malformed)?)?),
        };
        // An `m=` in front would be an extension that we must know.
        let mut attributes = bare.split(|b| *b == b',');
        let name = unescape(value(attributes.next(), b"n=")?)?;
        let nonce = value(attributes.next(), b"r=").and_then(checked_nonce)?;
        attributes.try_for_each(|attribute| is_attribute(attribute).then_some(()).ok_or(Malformed))?;
        Ok(ClientFirst { flag, authzid, header, bare, name, nonce })
    }
}

/// `c=BINDING,r=NONCE,p=PROOF`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFinal<'a> {
    /// The header of the first message and the data of the binding.
    pub binding: Vec<u8>,
    pub nonce: &'a [u8],
    pub proof: Vec<u8>,
    /// All before `,p=`.
    pub without_proof: &'a [u8],
}

impl<'a> ClientFinal<'a> {
    pub fn parse(message: &'a [u8]) -> Result<ClientFinal<'a>, Malformed> {
        let at = memchr::memrchr(b',', message).ok_or(Malformed)?;
        let (without_proof, proof) = message.split_at(at);
        let proof = decode(value(proof.get(1..), b"p=")?).ok_or(Malformed)?;
        let mut attributes = without_proof.split(|b| *b == b',');
        let binding = decode(value(attributes.next(), b"c=")?).ok_or(Malformed)?;
        let nonce = value(attributes.next(), b"r=")?;
        attributes.try_for_each(|attribute| is_attribute(attribute).then_some(()).ok_or(Malformed))?;
        Ok(ClientFinal { binding, nonce, proof, without_proof })
    }
}

/// `r=NONCE,s=SALT,i=COUNT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFirst<'a> {
    pub nonce: &'a [u8],
    pub params: Params,
}

impl<'a> ServerFirst<'a> {
    pub fn parse(message: &'a [u8]) -> Result<ServerFirst<'a>, Malformed> {
        let mut attributes = message.split(|b| *b == b',');
        let nonce = value(attributes.next(), b"r=")?;
        let (salt, count) = (value(attributes.next(), b"s=")?, value(attributes.next(), b"i=")?);
        let params = Params::of(count, salt).ok_or(Malformed)?;
        attributes.try_for_each(|attribute| is_attribute(attribute).then_some(()).ok_or(Malformed))?;
        Ok(ServerFirst { nonce, params })
    }
}

/// The server's first message.
pub fn server_first(nonce: &[u8], params: &Params) -> Vec<u8> {
    [b"r=", nonce, b",s=", &encode(&params.salt), b",i=", params.count.to_string().as_bytes()].concat()
}

/// The signature in the server's last message, `v=SIGNATURE`; an `e=` is no success.
pub fn server_final(message: &[u8]) -> Result<Vec<u8>, Malformed> {
    let first = message.split(|b| *b == b',').next();
    decode(value(first, b"v=")?).ok_or(Malformed)
}

/// What both sides sign.
pub fn auth_message(
    client_first_bare: &[u8],
    server_first: &[u8],
    client_final_without_proof: &[u8],
) -> Vec<u8> {
    [client_first_bare, server_first, client_final_without_proof].join(&b',')
}

/// A name as it stands in a message: `,` and `=` would be taken for something else.
pub fn escape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b',' => out.extend_from_slice(b"=2C"),
            b'=' => out.extend_from_slice(b"=3D"),
            _ => out.push(*byte),
        }
    }
    out
}

fn unescape(text: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        match byte {
            b'=' => {
                let (code, behind) = rest.split_at_checked(2).ok_or(Malformed)?;
                out.push(match code {
                    b"2C" => b',',
                    b"3D" => b'=',
                    _ => return Err(Malformed),
                });
                rest = behind;
            }
            0 => return Err(Malformed),
            _ => out.push(*byte),
        }
    }
    Ok(out)
}

fn value<'a>(attribute: Option<&'a [u8]>, name: &[u8]) -> Result<&'a [u8], Malformed> {
    attribute.and_then(|attribute| attribute.strip_prefix(name)).ok_or(Malformed)
}

/// An extension that may be passed over: a letter, `=`, and something without a NUL.
fn is_attribute(attribute: &[u8]) -> bool {
    matches!(attribute, [letter, b'=', _, ..] if letter.is_ascii_alphabetic()) && !attribute.contains(&0)
}

/// Printable, without a comma; that was cut off already.
fn checked_nonce(nonce: &[u8]) -> Result<&[u8], Malformed> {
    let fits = (1..=NONCE_MAX).contains(&nonce.len()) && nonce.iter().all(u8::is_ascii_graphic);
    fits.then_some(nonce).ok_or(Malformed)
}

fn is_binding_type(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || b".-".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER_FIRST: &[u8] =
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    // rfc7677:3
    #[test]
    fn the_exchange_of_the_rfc() {
        let first = ClientFirst::parse(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
        assert_eq!(
            (first.flag.clone(), first.header, first.name.as_slice()),
            (Flag::None, &b"n,,"[..], &b"user"[..])
        );
        let answer = ServerFirst::parse(SERVER_FIRST).unwrap();
        assert_eq!(server_first(answer.nonce, &answer.params), SERVER_FIRST);
        let last = ClientFinal::parse(
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        )
        .unwrap();
        assert_eq!((last.binding.as_slice(), last.nonce), (first.header, answer.nonce));
        let message = auth_message(first.bare, SERVER_FIRST, last.without_proof);
        let keys = Keys::derive(b"pencil", &answer.params);
        assert_eq!(encode(&keys.stored), b"WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=");
        assert_eq!(encode(&keys.server), b"wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=");
        assert!(keys.verify(&last.proof, &message));
        assert!(!keys.verify(&last.proof, b"another message") && !keys.verify(b"", &message));
        let signature = keys.signature(&message);
        assert_eq!(encode(&signature), b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert_eq!(prove(b"pencil", &answer.params, &message), (last.proof, signature));
        assert_eq!(server_final(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(signature.to_vec()));
        assert_eq!(server_final(b"e=invalid-proof"), Err(Malformed));
    }

    #[test]
    fn names_are_escaped() {
        let first = ClientFirst::parse(b"p=tls-exporter,a==2Cx,n=a=3Db=2Cc,r=x,f=y").unwrap();
        assert_eq!(first.name, b"a=b,c");
        assert_eq!(first.authzid.as_deref(), Some(b",x".as_slice()));
        assert_eq!(
            (first.flag, first.header),
            (Flag::Used(b"tls-exporter".to_vec()), b"p=tls-exporter,a==2Cx,".as_slice())
        );
        assert_eq!(escape(b"a=b,c"), b"a=3Db=2Cc");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bad in [
            b"".as_slice(),
            b"n,,",
            b"n,,n=user",
            b"n,,n=user,r=",
            b"n,,n=us=er,r=x",
            b"n,,n=u=2c,r=x",
            b"n,,n=u\0,r=x",
            b"n,,n=u,r=x,f=y\0PLAIN\0",
            b"n,,m=ext,n=user,r=x",
            b"n,,n=user,r=a b",
            b"n,,n=user,r=x,",
            b"n,,n=user,r=x,f",
            b"x,,n=user,r=x",
            b"p=,,n=user,r=x",
            b"n,user,n=user,r=x",
            b"n=user,r=x",
        ] {
            assert_eq!(ClientFirst::parse(bad), Err(Malformed), "{}", String::from_utf8_lossy(bad));
        }
        for bad in [
            b"".as_slice(),
            b"c=biws,r=x",
            b"c=biws,p=AAAA",
            b"c=biw,r=x,p=AAAA",
            b"c=biws,r=x,p=*",
            b"c=biws,r=x,f=y\0PLAIN\0,p=AAAA",
            b"r=x,c=biws,p=AAAA",
        ] {
            assert_eq!(ClientFinal::parse(bad), Err(Malformed), "{}", String::from_utf8_lossy(bad));
        }
        for bad in [
            b"r=x,s=AAAA,i=4095".as_slice(),
            b"r=x,s=AAAA,i=1000001",
            b"r=x,s=,i=4096",
            b"r=x,i=4096,s=AAAA",
            b"e=other",
        ] {
            assert_eq!(ServerFirst::parse(bad), Err(Malformed), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn parameters_are_kept_as_text_and_invented_for_nobody() {
        let params = Params::parse(b"4096,W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        assert_eq!((params.count, params.salt.len()), (4096, 16));
        assert_eq!(params.text(), b"4096,W22ZaJ0SNY7soEsUEjb6gQ==");
        for bad in [b"4096".as_slice(), b"4096,", b"4096,x", b"1,AAAA", b"-1,AAAA", b",AAAA"] {
            assert_eq!(Params::parse(bad), None);
        }
        let invented = Params::invented(b"secret", b"nobody");
        assert_eq!(invented, Params::invented(b"secret", b"nobody"));
        assert_ne!(invented, Params::invented(b"secret", b"somebody"));
        assert_ne!(invented, Params::invented(b"other", b"nobody"));
        assert_eq!(invented.salt.len(), SALT_BYTES);
    }
}
