//! digest - HMAC, PBKDF2 and MD5, as logins need them
//!
//! MD5 is here for CRAM-MD5 and APOP, which clients of old still speak, and for nothing else.
#![forbid(unsafe_code)]

use super::hex;
use crate::auth::wipe;
use sha2::{Digest, Sha256};

/// Bytes that both hashes work on at a time.
const BLOCK: usize = 64;

/// A key of HMAC, ready for many messages.
pub struct HmacSha256 {
    inner: Sha256,
    outer: Sha256,
}

impl HmacSha256 {
    pub fn new(key: &[u8]) -> HmacSha256 {
        let mut block = [0u8; BLOCK];
        if key.len() > BLOCK {
            fill(&mut block, &sha256(key));
        } else {
            fill(&mut block, key);
        }
        let (inner, outer) =
            (Sha256::new_with_prefix(xor(&block, 0x36)), Sha256::new_with_prefix(xor(&block, 0x5c)));
        wipe(&mut block);
        HmacSha256 { inner, outer }
    }

    pub fn of(&self, message: &[u8]) -> [u8; 32] {
        let inner = self.inner.clone().chain_update(message).finalize();
        self.outer.clone().chain_update(inner).finalize().into()
    }
}

fn fill(block: &mut [u8; BLOCK], key: &[u8]) {
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
}

fn xor(block: &[u8; BLOCK], with: u8) -> [u8; BLOCK] {
    block.map(|b| b ^ with)
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

pub fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    HmacSha256::new(key).of(message)
}

/// PBKDF2 with HMAC-SHA-256 (RFC 8018), one block of 32 bytes: what SCRAM calls Hi.
pub fn pbkdf2_sha256(password: &[u8], salt: &[u8], count: u32) -> [u8; 32] {
    let hmac = HmacSha256::new(password);
    let mut last = hmac.of(&[salt, &[0, 0, 0, 1]].concat());
    let mut all = last;
    for _ in 1..count {
        last = hmac.of(&last);
        all.iter_mut().zip(last).for_each(|(to, from)| *to ^= from);
    }
    wipe(&mut last);
    all
}

/// Shifts of each round, four a round, used in turn (rfc1321:3.4).
const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];

/// 2^32 times the absolute sines of 1 to 64.
#[rustfmt::skip]
const SINES: [u32; 64] = [
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
];

const MD5_START: [u32; 4] = [0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476];

/// MD5 on its way, at the end of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Md5State([u32; 4]);

impl Md5State {
    fn block(&mut self, block: &[u8]) {
        let mut words = [0u32; 16];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = bytes.iter().rev().fold(0, |all, b| all << 8 | u32::from(*b));
        }
        let [mut a, mut b, mut c, mut d] = self.0;
        for (i, sine) in SINES.iter().enumerate() {
            let round = i / 16;
            let (mixed, at) = match round {
                0 => (b & c | !b & d, i),
                1 => (b & d | c & !d, 5 * i + 1),
                2 => (b ^ c ^ d, 3 * i + 5),
                _ => (c ^ (b | !d), 7 * i),
            };
            let word = words.get(at % 16).copied().unwrap_or_default();
            let shift = SHIFTS.get(round).and_then(|shifts| shifts.get(i % 4)).copied().unwrap_or_default();
            let turned = a.wrapping_add(mixed).wrapping_add(word).wrapping_add(*sine).rotate_left(shift);
            (a, d, c, b) = (d, c, b, b.wrapping_add(turned));
        }
        for (sum, word) in self.0.iter_mut().zip([a, b, c, d]) {
            *sum = sum.wrapping_add(word);
        }
    }

    /// The digest, when so many bytes came before these.
    fn finish(mut self, before: usize, rest: &[u8]) -> [u8; 16] {
        let bits = ((before + rest.len()) as u64).wrapping_mul(8);
        let mut tail = rest.to_vec();
        tail.push(0x80);
        while tail.len() % BLOCK != BLOCK - 8 {
            tail.push(0);
        }
        tail.extend_from_slice(&bits.to_le_bytes());
        tail.chunks(BLOCK).for_each(|block| self.block(block));
        wipe(&mut tail);
        self.bytes()
    }

    fn bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        for (to, word) in out.chunks_exact_mut(4).zip(self.0) {
            to.iter_mut().zip(word.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
        out
    }

    fn of_bytes(bytes: &[u8; 16]) -> Md5State {
        let mut words = [0u32; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = bytes.iter().rev().fold(0, |all, b| all << 8 | u32::from(*b));
        }
        Md5State(words)
    }
}

pub fn md5(bytes: &[u8]) -> [u8; 16] {
    Md5State(MD5_START).finish(0, bytes)
}

/// A key of HMAC-MD5 without the key: the states behind its first block, which is what servers store who do not
/// want to keep passwords for CRAM-MD5.
#[derive(Clone, PartialEq, Eq)]
pub struct HmacMd5 {
    pub inner: [u8; 16],
    pub outer: [u8; 16],
}

impl HmacMd5 {
    pub fn new(key: &[u8]) -> HmacMd5 {
        let mut block = [0u8; BLOCK];
        if key.len() > BLOCK {
            fill(&mut block, &md5(key));
        } else {
            fill(&mut block, key);
        }
        let behind = |with| {
            let mut state = Md5State(MD5_START);
            state.block(&xor(&block, with));
            state.bytes()
        };
        let both = HmacMd5 { inner: behind(0x36), outer: behind(0x5c) };
        wipe(&mut block);
        both
    }

    pub fn of(&self, message: &[u8]) -> [u8; 16] {
        let inner = Md5State::of_bytes(&self.inner).finish(BLOCK, message);
        Md5State::of_bytes(&self.outer).finish(BLOCK, &inner)
    }
}

impl Drop for HmacMd5 {
    fn drop(&mut self) {
        wipe(&mut self.inner);
        wipe(&mut self.outer);
    }
}

/// The response of CRAM-MD5 (RFC 2195), 32 hexadecimal digits.
pub fn cram_md5(secret: &[u8], challenge: &[u8]) -> Vec<u8> {
    hex(&HmacMd5::new(secret).of(challenge))
}

/// The digest of APOP (rfc1939:7), 32 hexadecimal digits.
pub fn apop(timestamp: &[u8], secret: &[u8]) -> Vec<u8> {
    let mut both = [timestamp, secret].concat();
    let digest = hex(&md5(&both));
    wipe(&mut both);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> String {
        String::from_utf8(hex(bytes)).unwrap()
    }

    // rfc1321:A.5
    #[test]
    fn md5_of_the_rfc() {
        for (message, digest) in [
            ("", "d41d8cd98f00b204e9800998ecf8427e"),
            ("a", "0cc175b9c0f1b6a831c399e269772661"),
            ("abc", "900150983cd24fb0d6963f7d28e17f72"),
            ("message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
            ("abcdefghijklmnopqrstuvwxyz", "c3fcd3d76192e4007dfb496cca67e13b"),
            (
                "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
                "d174ab98d277d9f5a5611c2c9f419d9f",
            ),
            (
                "12345678901234567890123456789012345678901234567890123456789012345678901234567890",
                "57edf4a22be3c955ac49da2e2107b67a",
            ),
        ] {
            assert_eq!(text(&md5(message.as_bytes())), digest, "{message}");
        }
    }

    // rfc2202:2
    #[test]
    fn hmac_md5_of_the_rfc() {
        let of = |key: &[u8], message: &[u8]| text(&HmacMd5::new(key).of(message));
        assert_eq!(of(&[0x0b; 16], b"Hi There"), "9294727a3638bb1c13f48ef8158bfc9d");
        assert_eq!(of(b"Jefe", b"what do ya want for nothing?"), "750c783e6ab0b503eaa86e310a5db738");
        assert_eq!(of(&[0xaa; 16], &[0xdd; 50]), "56be34521d144c88dbb8c733f0e8b3f6");
        let long = of(&[0xaa; 80], b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(long, "6b1ab7fe4bd7bf8f0b62e6ce61b9d0cd");
    }

    // rfc4231:4
    #[test]
    fn hmac_sha256_of_the_rfc() {
        let of = |key: &[u8], message: &[u8]| text(&hmac_sha256(key, message));
        let first = "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7";
        assert_eq!(of(&[0x0b; 20], b"Hi There"), first);
        let second = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(of(b"Jefe", b"what do ya want for nothing?"), second);
        let sixth = "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54";
        assert_eq!(of(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First"), sixth);
    }

    // rfc7914:11
    #[test]
    fn pbkdf2_of_the_rfc() {
        let one = "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc";
        assert_eq!(text(&pbkdf2_sha256(b"passwd", b"salt", 1)), one);
    }

    #[test]
    fn responses_of_the_rfcs() {
        let cram = cram_md5(b"tanstaaftanstaaf", b"<1896.697170952@postoffice.reston.mci.net>");
        assert_eq!(cram, b"b913a602c7eda7a495b4e6e7334d3890");
        let apop = apop(b"<1896.697170952@dbc.mtview.ca.us>", b"tanstaaf");
        assert_eq!(apop, b"c4c9334bac560ecc979e58001b3e22fb");
    }
}
