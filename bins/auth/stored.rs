//! stored - what is kept of a password: reading it, and holding a proof against it
//!
//! A stored field is a row of values with a space between: hashes as crypt(3) makes them, PHC strings, and
//! `{SCHEME}` forms as other servers write them. The first that can check a proof does. Parsing does no work and
//! knows no password; `check` does all work for an unknown user, too.
#![forbid(unsafe_code)]

use crate::crypt;
use crate::login::Proof;
use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use qmail::auth::Secret;
use qmail::decimal;
use qmail::sasl::digest::{HmacMd5, apop};
use qmail::sasl::scram::{Keys, Params};
use qmail::sasl::{decode, encode, equal, hex, prep};

/// What an unknown user's password is hashed with where no other shows what is usual (yescrypt, as passwd of present
/// systems).
pub const DUMMY: &[u8] = b"$y$j9T$F5Jx5fExrKuPp53xLKQ..1";

/// Memory that one hash may take, in KiB: logins are checked 40 at a time.
const MEMORY_MAX: u32 = 256 * 1024;

/// Rounds of PBKDF2, some seconds of work; a slip of the pen there would stop all logins.
const ROUNDS_MAX: u32 = 10_000_000;

/// Passes of argon2, of the same reason.
const PASSES_MAX: u32 = 1000;

/// Lanes and blocks of argon2 and scrypt.
const LANES_MAX: u32 = 64;

/// Bytes of a salt and of a derived key.
const SALT_MAX: usize = 512;
const KEY_MAX: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    Md5,
    Sha1,
    Sha256,
    Sha512,
}

impl Hash {
    fn length(self) -> usize {
        match self {
            Hash::Md5 => 16,
            Hash::Sha1 => 20,
            Hash::Sha256 => 32,
            Hash::Sha512 => 64,
        }
    }

    fn of(self, password: &[u8], salt: &[u8]) -> Secret {
        use sha2::Digest;
        Secret(match self {
            Hash::Md5 => md5::Md5::new().chain_update(password).chain_update(salt).finalize().to_vec(),
            Hash::Sha1 => sha1::Sha1::new().chain_update(password).chain_update(salt).finalize().to_vec(),
            Hash::Sha256 => sha2::Sha256::new().chain_update(password).chain_update(salt).finalize().to_vec(),
            Hash::Sha512 => sha2::Sha512::new().chain_update(password).chain_update(salt).finalize().to_vec(),
        })
    }
}

/// Parameters and keys of SCRAM-SHA-256.
#[derive(Clone, PartialEq, Eq)]
pub struct Scram {
    pub params: Params,
    keys: Keys,
}

impl Scram {
    /// Those of a password; None when it cannot be prepared as clients do it.
    pub fn new(password: &[u8], params: Params) -> Option<Scram> {
        let prepared = Secret(prep::prepare(password).ok()?);
        Some(Scram { keys: Keys::derive(&prepared, &params), params })
    }

    /// `{SCRAM-SHA-256}count,salt,stored,server`
    pub fn write(&self) -> Vec<u8> {
        let fields = [self.params.text(), encode(&self.keys.stored), encode(&self.keys.server)];
        [b"{SCRAM-SHA-256}".as_slice(), &fields.join(&b',')].concat()
    }

    /// The server's signature, in base64, for who has proved to know the password.
    fn check(&self, proof: &[u8], message: &[u8]) -> Option<Vec<u8>> {
        let right = decode(proof).is_some_and(|proof| self.keys.verify(&proof, message));
        right.then(|| encode(&self.keys.signature(message)))
    }

    fn parse(count: &[u8], salt: &[u8], stored: &[u8], server: &[u8]) -> Option<Scram> {
        let params = Params::parse(&[count, salt].join(&b','))?;
        let keys =
            Keys { stored: decode(stored)?.try_into().ok()?, server: decode(server)?.try_into().ok()? };
        Some(Scram { params, keys })
    }
}

/// One value of a stored field.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// As crypt(3) has it; whether libcrypt knows the scheme it says itself.
    Crypt(Vec<u8>),
    Argon2 {
        kind: argon2::Algorithm,
        version: argon2::Version,
        memory: u32,
        passes: u32,
        lanes: u32,
        salt: Vec<u8>,
        key: Vec<u8>,
    },
    Scrypt {
        log_n: u8,
        r: u32,
        p: u32,
        salt: Vec<u8>,
        key: Vec<u8>,
    },
    Pbkdf2 {
        hash: Hash,
        rounds: u32,
        salt: Vec<u8>,
        key: Vec<u8>,
    },
    Digest {
        hash: Hash,
        digest: Vec<u8>,
        salt: Vec<u8>,
    },
    Clear(Secret),
    Scram(Scram),
    /// HMAC-MD5 behind its first block.
    Cram(HmacMd5),
    /// Stands in the place of a password for who has none.
    Nobody,
    /// A scheme we do not know, or one that is written wrong.
    Unknown,
}

/// What a proof is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// Accepted, with what tells the client that we know the password, too.
    Signed(Vec<u8>),
    Refused,
    /// Nothing can be said: a trouble of ours, not of the user.
    Unknown,
}

/// What a value without a scheme's name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bare {
    /// A hash.
    Hash,
    /// The secret itself.
    Secret,
}

/// The values of a stored field.
pub fn parse(field: &[u8], bare: Bare) -> Vec<Value> {
    // What is locked is locked whole.
    if bare == Bare::Hash && (field == b"x" || field.starts_with(b"!") || field.starts_with(b"*")) {
        return vec![Value::Nobody];
    }
    let mut values = Vec::new();
    let mut rest = field;
    loop {
        let named = name_of(rest);
        // What is in clear may have spaces, and so ends the row.
        if is_clear(named.map(|(name, _)| name), bare) {
            values.push(value(rest, bare));
            return values;
        }
        let (first, more) = match rest.iter().position(|b| *b == b' ') {
            Some(at) => (rest.get(..at).unwrap_or_default(), rest.get(at + 1..)),
            None => (rest, None),
        };
        values.push(value(first, bare));
        match more {
            Some(more) => rest = more,
            None => return values,
        }
    }
}

/// Whether a whole field lets nobody in: accounts without a login have a word or nothing in the place of a hash.
pub fn is_usable(field: &[u8], bare: Bare) -> bool {
    parse(field, bare).iter().any(|value| *value != Value::Nobody)
}

/// `{NAME}REST`, `{NAME.ENCODING}REST`
fn name_of(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = value.strip_prefix(b"{")?;
    let at = inner.iter().position(|b| *b == b'}')?;
    Some((inner.get(..at)?, inner.get(at + 1..)?))
}

fn is_clear(name: Option<&[u8]>, bare: Bare) -> bool {
    match name {
        Some(name) => {
            let name = name.split(|b| *b == b'.').next().unwrap_or_default();
            [b"PLAIN".as_slice(), b"CLEAR", b"CLEARTEXT"].iter().any(|clear| name.eq_ignore_ascii_case(clear))
        }
        None => bare == Bare::Secret,
    }
}

fn value(text: &[u8], bare: Bare) -> Value {
    match (name_of(text), bare) {
        (Some((name, rest)), _) => named(name, rest),
        (None, Bare::Hash) => unnamed(text),
        (None, Bare::Secret) if text.is_empty() => Value::Nobody,
        (None, Bare::Secret) => Value::Clear(Secret(text.to_vec())),
    }
}

/// A hash that says itself what it is.
fn unnamed(text: &[u8]) -> Value {
    if text.is_empty() || text == b"x" || text.starts_with(b"*") || text.starts_with(b"!") {
        return Value::Nobody;
    }
    let parsed = if text.starts_with(b"$argon2") {
        argon2(text)
    } else if let Some(rest) = text.strip_prefix(b"$pbkdf2-sha256$") {
        pbkdf2_sha256_of(rest)
    } else if let Some(rest) = text.strip_prefix(b"$scrypt$") {
        scrypt(rest)
    } else if let Some(rest) = text.strip_prefix(b"SCRAM-SHA-256$") {
        scram_colons(rest)
    } else {
        Some(Value::Crypt(text.to_vec()))
    };
    parsed.unwrap_or(Value::Unknown)
}

/// How the bytes of a value are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Usual,
    Hex,
    Base64,
}

/// A value behind the name that another server gives its scheme.
fn named(name: &[u8], rest: &[u8]) -> Value {
    let name = name.to_ascii_uppercase();
    let (name, encoding) = match name.iter().position(|b| *b == b'.') {
        None => (name.as_slice(), Encoding::Usual),
        Some(at) => match name.get(at + 1..) {
            Some(b"HEX") => (name.get(..at).unwrap_or_default(), Encoding::Hex),
            Some(b"B64" | b"BASE64") => (name.get(..at).unwrap_or_default(), Encoding::Base64),
            _ => return Value::Unknown,
        },
    };
    if rest.is_empty() || rest.starts_with(b"!") && !is_clear(Some(name), Bare::Hash) {
        return Value::Nobody;
    }
    use Hash::*;
    let parsed = match name {
        b"CRYPT" | b"SHA512-CRYPT" | b"SHA256-CRYPT" | b"MD5-CRYPT" | b"BLF-CRYPT" | b"DES-CRYPT"
        | b"ARGON2" | b"ARGON2I" | b"ARGON2ID" => bytes(rest, encoding).map(|text| unnamed(&text)),
        b"PLAIN" | b"CLEAR" | b"CLEARTEXT" => bytes(rest, encoding).map(|text| Value::Clear(Secret(text))),
        b"MD5" if rest.starts_with(b"$1$") => Some(unnamed(rest)),
        b"MD5" | b"PLAIN-MD5" | b"LDAP-MD5" => digest(Md5, rest, encoding),
        b"SMD5" => salted(Md5, rest, encoding),
        b"SHA" | b"SHA1" => digest(Sha1, rest, encoding),
        b"SSHA" => salted(Sha1, rest, encoding),
        b"SHA256" => digest(Sha256, rest, encoding),
        b"SSHA256" => salted(Sha256, rest, encoding),
        b"SHA512" => digest(Sha512, rest, encoding),
        b"SSHA512" => salted(Sha512, rest, encoding),
        b"PBKDF2" => pbkdf2_sha1_of(rest),
        b"SCRAM-SHA-256" => scram_commas(rest),
        b"CRAM-MD5" | b"HMAC-MD5" => cram(rest),
        _ => None,
    };
    parsed.unwrap_or(Value::Unknown)
}

fn bytes(text: &[u8], encoding: Encoding) -> Option<Vec<u8>> {
    match encoding {
        Encoding::Usual => Some(text.to_vec()),
        Encoding::Hex => unhex(text),
        Encoding::Base64 => decode(text),
    }
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    text.chunks(2).map(pair).collect()
}

/// A digest, base64 unless its length says that it is hexadecimal.
fn digest(hash: Hash, text: &[u8], encoding: Encoding) -> Option<Value> {
    let encoding = match encoding {
        Encoding::Usual if text.len() == hash.length() * 2 => Encoding::Hex,
        Encoding::Usual => Encoding::Base64,
        given => given,
    };
    let digest = bytes(text, encoding).filter(|digest| digest.len() == hash.length())?;
    Some(Value::Digest { hash, digest, salt: Vec::new() })
}

/// A digest and behind it the salt.
fn salted(hash: Hash, text: &[u8], encoding: Encoding) -> Option<Value> {
    let encoding = if encoding == Encoding::Usual { Encoding::Base64 } else { encoding };
    let mut digest = bytes(text, encoding).filter(|all| all.len() > hash.length())?;
    let salt = digest.split_off(hash.length());
    (salt.len() <= SALT_MAX).then_some(Value::Digest { hash, digest, salt })
}

fn rounds(text: &[u8]) -> Option<u32> {
    u32::try_from(decimal::strict(text)?).ok().filter(|rounds| (1..=ROUNDS_MAX).contains(rounds))
}

fn fields(text: &[u8], at: u8) -> Vec<&[u8]> {
    text.split(|b| *b == at).collect()
}

/// `count,salt,stored,server`
fn scram_commas(text: &[u8]) -> Option<Value> {
    let [count, salt, stored, server] = fields(text, b',').try_into().ok()?;
    Scram::parse(count, salt, stored, server).map(Value::Scram)
}

/// `count:salt$stored:server`
fn scram_colons(text: &[u8]) -> Option<Value> {
    let [public, keys] = fields(text, b'$').try_into().ok()?;
    let [count, salt] = fields(public, b':').try_into().ok()?;
    let [stored, server] = fields(keys, b':').try_into().ok()?;
    Scram::parse(count, salt, stored, server).map(Value::Scram)
}

/// The state behind the outer block, then that behind the inner one.
fn cram(text: &[u8]) -> Option<Value> {
    let all: [u8; 32] = unhex(text)?.try_into().ok()?;
    let (outer, inner) = all.split_at(16);
    Some(Value::Cram(HmacMd5 { inner: inner.try_into().ok()?, outer: outer.try_into().ok()? }))
}

/// `{CRAM-MD5}` and the states.
pub fn write_cram(password: &[u8]) -> Vec<u8> {
    let states = HmacMd5::new(password);
    [b"{CRAM-MD5}".to_vec(), hex(&states.outer), hex(&states.inner)].concat()
}

/// A PHC string of argon2id, version 19.
pub fn write_argon2id(
    password: &[u8],
    salt: Vec<u8>,
    memory: u32,
    passes: u32,
    lanes: u32,
    length: usize,
) -> Option<Vec<u8>> {
    let params = argon2::Params::new(memory, passes, lanes, Some(length)).ok()?;
    let mut key = Secret(vec![0; length]);
    let (kind, version) = (argon2::Algorithm::Argon2id, argon2::Version::V0x13);
    argon2::Argon2::new(kind, version, params).hash_password_into(password, &salt, &mut key.0).ok()?;
    let row =
        format!("$argon2id$v=19$m={memory},t={passes},p={lanes}${}${}", PHC.encode(salt), PHC.encode(&*key));
    Some(row.into_bytes())
}

/// Base64 of PHC strings: without padding.
const PHC: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// The same, where `.` stands for `+`.
fn adapted(text: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<u8> = text.iter().map(|b| if *b == b'.' { b'+' } else { *b }).collect();
    PHC.decode(text).ok()
}

fn salt_and_key(salt: &[u8], key: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (salt, key) = (adapted(salt)?, adapted(key)?);
    let fits = (1..=SALT_MAX).contains(&salt.len()) && (4..=KEY_MAX).contains(&key.len());
    fits.then_some((salt, key))
}

/// The number behind `NAME=` in a row of parameters with commas between.
fn parameter(row: &[u8], name: &[u8]) -> Option<u32> {
    let of = |field: &[u8]| field.strip_prefix(name)?.strip_prefix(b"=").and_then(decimal::strict);
    fields(row, b',').into_iter().find_map(of).and_then(|n| u32::try_from(n).ok())
}

/// `$argon2id$v=19$m=65536,t=3,p=4$salt$key`; without `v=` it is version 16.
fn argon2(text: &[u8]) -> Option<Value> {
    use argon2::{Algorithm, Version};
    let parts = fields(text, b'$');
    let (kind, version, row, salt, key) = match parts.as_slice() {
        [b"", kind, version, row, salt, key] => (*kind, version.strip_prefix(b"v=")?, *row, *salt, *key),
        [b"", kind, row, salt, key] => (*kind, b"16".as_slice(), *row, *salt, *key),
        _ => return None,
    };
    let kind = match kind {
        b"argon2id" => Algorithm::Argon2id,
        b"argon2i" => Algorithm::Argon2i,
        b"argon2d" => Algorithm::Argon2d,
        _ => return None,
    };
    let version = match version {
        b"19" => Version::V0x13,
        b"16" => Version::V0x10,
        _ => return None,
    };
    let (memory, passes, lanes) = (parameter(row, b"m")?, parameter(row, b"t")?, parameter(row, b"p")?);
    let (salt, key) = salt_and_key(salt, key)?;
    let sane = memory <= MEMORY_MAX && (1..=PASSES_MAX).contains(&passes) && (1..=LANES_MAX).contains(&lanes);
    // Who makes them has given no less; the algorithm refuses less than 8 KiB a lane.
    (sane && memory >= lanes * 8 && salt.len() >= 8).then_some(Value::Argon2 {
        kind,
        version,
        memory,
        passes,
        lanes,
        salt,
        key,
    })
}

/// `ln=16,r=8,p=1$salt$key`
fn scrypt(text: &[u8]) -> Option<Value> {
    let [row, salt, key] = fields(text, b'$').try_into().ok()?;
    let (log_n, r, p) = (parameter(row, b"ln")?, parameter(row, b"r")?, parameter(row, b"p")?);
    let (salt, key) = salt_and_key(salt, key)?;
    // 128 r bytes for each of 2^ln; 1024 bytes of that are a KiB.
    let memory = 1u64.checked_shl(log_n).filter(|n| *n <= 1 << 30)?.checked_mul(u64::from(r))? / 8;
    let sane = log_n >= 1 && r >= 1 && (1..=LANES_MAX).contains(&p) && memory <= u64::from(MEMORY_MAX);
    (sane && r <= LANES_MAX).then_some(Value::Scrypt { log_n: u8::try_from(log_n).ok()?, r, p, salt, key })
}

/// `rounds$salt$key`, or `i=rounds,l=length$salt$key`
fn pbkdf2_sha256_of(text: &[u8]) -> Option<Value> {
    let [row, salt, key] = fields(text, b'$').try_into().ok()?;
    let rounds = rounds(row).or_else(|| parameter(row, b"i").filter(|n| (1..=ROUNDS_MAX).contains(n)))?;
    let (salt, key) = salt_and_key(salt, key)?;
    Some(Value::Pbkdf2 { hash: Hash::Sha256, rounds, salt, key })
}

/// `$1$salt$rounds$key`, the salt as it is and the key in hexadecimal.
fn pbkdf2_sha1_of(text: &[u8]) -> Option<Value> {
    let parts = fields(text, b'$');
    let [b"", b"1", salt, count, key] = parts.as_slice() else { return None };
    let key = unhex(key).filter(|key| key.len() == Hash::Sha1.length())?;
    let fits = (1..=SALT_MAX).contains(&salt.len());
    Some(Value::Pbkdf2 { hash: Hash::Sha1, rounds: rounds(count)?, salt: salt.to_vec(), key })
        .filter(|_| fits)
}

/// Holds a proof against what is stored; None, or something that lets nobody in, is refused in the time that a
/// wrong password takes with `usual`, another user's field.
pub fn check(stored: Option<&[u8]>, usual: &[u8], bare: Bare, proof: &Proof) -> Verdict {
    let stored = stored.filter(|field| is_usable(field, bare));
    let verdict = judge(&parse(stored.unwrap_or(usual), bare), proof);
    if stored.is_some() { verdict } else { Verdict::Refused }
}

fn judge(values: &[Value], proof: &Proof) -> Verdict {
    let known = |verdict: &Verdict| *verdict != Verdict::Unknown;
    let verdicts = values.iter().filter(|value| can_check(value, proof));
    // Keys of SCRAM check a password, too, but where there is a hash that was made for it, that does.
    let (last, first): (Vec<&Value>, Vec<&Value>) =
        verdicts.partition(|value| matches!(value, Value::Scram(_)));
    let found = first.into_iter().chain(last).map(|value| hold(value, proof)).find(known);
    let lost =
        values.iter().any(|value| matches!(value, Value::Unknown | Value::Crypt(_))) && wants_hash(proof);
    found.unwrap_or(if lost { Verdict::Unknown } else { Verdict::Refused })
}

fn wants_hash(proof: &Proof) -> bool {
    matches!(proof, Proof::Password(_) | Proof::Either { .. })
}

fn can_check(value: &Value, proof: &Proof) -> bool {
    match (value, proof) {
        (Value::Nobody | Value::Unknown, _) => false,
        (Value::Scram(_), Proof::Scram { .. }) => true,
        (_, Proof::Scram { .. }) => false,
        (Value::Clear(_), _) => true,
        (Value::Cram(_), proof) => !matches!(proof, Proof::Apop { .. }),
        (_, proof) => wants_hash(proof),
    }
}

fn hold(value: &Value, proof: &Proof) -> Verdict {
    let accepted = |right: bool| if right { Verdict::Accepted } else { Verdict::Refused };
    match proof {
        Proof::Password(secret) => by_password(value, secret),
        Proof::Either { secret, challenge } => match by_password(value, secret) {
            Verdict::Refused => {
                accepted(by_cram(value, secret, challenge) | by_apop(value, secret, challenge))
            }
            verdict => verdict,
        },
        Proof::CramMd5 { response, challenge } => accepted(by_cram(value, response, challenge)),
        Proof::Apop { digest, timestamp } => accepted(by_apop(value, digest, timestamp)),
        Proof::Scram { proof, message } => match value {
            Value::Scram(keys) => keys.check(proof, message).map_or(Verdict::Refused, Verdict::Signed),
            _ => Verdict::Refused,
        },
    }
}

fn by_cram(value: &Value, response: &[u8], challenge: &[u8]) -> bool {
    let right = match value {
        Value::Clear(secret) => HmacMd5::new(secret).of(challenge),
        Value::Cram(states) => states.of(challenge),
        _ => return false,
    };
    equal(response, &hex(&right))
}

fn by_apop(value: &Value, digest: &[u8], timestamp: &[u8]) -> bool {
    matches!(value, Value::Clear(secret) if equal(digest, &apop(timestamp, secret)))
}

fn by_password(value: &Value, password: &[u8]) -> Verdict {
    let (wanted, found): (&[u8], Option<Secret>) = match value {
        Value::Nobody => return Verdict::Refused,
        Value::Unknown => return Verdict::Unknown,
        Value::Crypt(_) if password.len() > crypt::PASSWORD_MAX => return Verdict::Refused,
        Value::Crypt(hash) => (hash, crypt::hash(password, hash)),
        Value::Argon2 { kind, version, memory, passes, lanes, salt, key } => {
            let derived =
                argon2::Params::new(*memory, *passes, *lanes, Some(key.len())).ok().and_then(|params| {
                    let mut out = Secret(vec![0; key.len()]);
                    argon2::Argon2::new(*kind, *version, params)
                        .hash_password_into(password, salt, &mut out.0)
                        .ok()?;
                    Some(out)
                });
            (key, derived)
        }
        Value::Scrypt { log_n, r, p, salt, key } => {
            let derived = scrypt::Params::new(*log_n, *r, *p).ok().and_then(|params| {
                let mut out = Secret(vec![0; key.len()]);
                scrypt::scrypt(password, salt, &params, &mut out.0).ok()?;
                Some(out)
            });
            (key, derived)
        }
        Value::Pbkdf2 { hash, rounds, salt, key } => {
            let mut out = Secret(vec![0; key.len()]);
            match hash {
                Hash::Sha1 => pbkdf2::pbkdf2_hmac::<sha1::Sha1>(password, salt, *rounds, &mut out.0),
                _ => pbkdf2::pbkdf2_hmac::<sha2::Sha256>(password, salt, *rounds, &mut out.0),
            }
            (key, Some(out))
        }
        Value::Digest { hash, digest, salt } => (digest, Some(hash.of(password, salt))),
        // Hashed, so that not even the length is told.
        Value::Clear(secret) => {
            let same = equal(&Hash::Sha256.of(secret, b""), &Hash::Sha256.of(password, b""));
            return if same && !secret.is_empty() { Verdict::Accepted } else { Verdict::Refused };
        }
        Value::Scram(keys) => {
            let derived = Scram::new(password, keys.params.clone());
            let same = derived.is_some_and(|derived| equal(&derived.keys.stored, &keys.keys.stored));
            return if same { Verdict::Accepted } else { Verdict::Refused };
        }
        Value::Cram(states) => {
            let derived = HmacMd5::new(password);
            let same = equal(&derived.inner, &states.inner) & equal(&derived.outer, &states.outer);
            return if same { Verdict::Accepted } else { Verdict::Refused };
        }
    };
    match found {
        None => Verdict::Unknown,
        Some(found) if equal(wanted, &found) => Verdict::Accepted,
        Some(_) => Verdict::Refused,
    }
}
