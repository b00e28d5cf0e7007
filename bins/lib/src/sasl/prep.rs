//! prep - SASLprep (RFC 4013), as far as it goes without the tables of Unicode
//!
//! SASLprep maps some characters, normalizes (NFKC), and refuses some. Here every character is either known to
//! stay what it is - printable ASCII, and the letters, digits and signs of `STABLE` - or mapped to a space
//! or to nothing by the two short lists of the RFC, or the whole text is refused: what cannot be prepared
//! as the other side will do it would be a password that never matches. Of `STABLE` all are assigned in Unicode
//! 3.2, not prohibited, unchanged by NFKC, of combining class 0, and never the second half of a composition,
//! so that any row of them is unchanged, too.
#![forbid(unsafe_code)]

use crate::auth::wipe;

/// What cannot be prepared: controls, what is prohibited, what is no UTF-8, and characters we do not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unprepared;

/// First and last of ranges, ascending.
#[rustfmt::skip]
pub const STABLE: [(u32, u32); 46] = [
    (0x20, 0x7e),
    // Latin
    (0xa1, 0xa7), (0xa9, 0xa9), (0xab, 0xac), (0xae, 0xae), (0xb0, 0xb1), (0xb6, 0xb7), (0xbb, 0xbb),
    (0xbf, 0x131), (0x134, 0x13e), (0x141, 0x148), (0x14a, 0x17e), (0x180, 0x1c3), (0x1cd, 0x1f0),
    (0x1f4, 0x220), (0x222, 0x233),
    // Greek, Cyrillic
    (0x386, 0x386), (0x388, 0x38a), (0x38c, 0x38c), (0x38e, 0x3a1), (0x3a3, 0x3ce), (0x400, 0x482),
    (0x48a, 0x4ce), (0x4d0, 0x4f5), (0x4f8, 0x4f9), (0x500, 0x50f),
    // Hebrew, Arabic
    (0x5d0, 0x5ea), (0x621, 0x63a), (0x640, 0x64a), (0x660, 0x66f), (0x671, 0x674), (0x679, 0x6d5), (0x6f0, 0x6fe),
    // Latin, signs, the euro
    (0x1e00, 0x1e99), (0x1ea0, 0x1ef9), (0x2012, 0x2016), (0x2018, 0x2023), (0x20a0, 0x20a7), (0x20a9, 0x20b1),
    // Japanese, Chinese, Korean
    (0x3001, 0x3029), (0x3041, 0x3096), (0x30a1, 0x30fe), (0x3400, 0x4db5), (0x4e00, 0x9fa5), (0xac00, 0xd7a3),
    (0x20000, 0x2a6d6),
];

/// Of `STABLE`, what is written from right to left (RFC 3454 table D.1), and what stands in both directions.
const RIGHT_TO_LEFT: (u32, u32) = (0x5d0, 0x6fe);
const NEUTRAL: [(u32, u32); 9] = [
    (0x20, 0x40),
    (0x5b, 0x60),
    (0x7b, 0x7e),
    (0xa1, 0xb7),
    (0xbb, 0xbb),
    (0xbf, 0xbf),
    (0x660, 0x66c),
    (0x6f0, 0x6f9),
    (0x2012, 0x20b1),
];

/// Prepares a name or a password.
pub fn prepare(text: &[u8]) -> Result<Vec<u8>, Unprepared> {
    let text = std::str::from_utf8(text).map_err(|_| Unprepared)?;
    let mut out = Vec::with_capacity(text.len()); // never longer; moved, it would leave copies behind
    let mut directions = Directions::default();
    for c in text.chars() {
        match mapped(c) {
            Some(Mapped::Nothing) => {}
            Some(Mapped::To(c)) => {
                directions.see(u32::from(c));
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            None => {
                wipe(&mut out);
                return Err(Unprepared);
            }
        }
    }
    if directions.are_mixed() {
        wipe(&mut out);
        return Err(Unprepared);
    }
    Ok(out)
}

enum Mapped {
    Nothing,
    To(char),
}

fn mapped(c: char) -> Option<Mapped> {
    let code = u32::from(c);
    match code {
        // RFC 3454 table B.1
        0xad | 0x34f | 0x1806 | 0x180b..=0x180d | 0x200c | 0x200d | 0x2060 | 0xfe00..=0xfe0f | 0xfeff => {
            Some(Mapped::Nothing)
        }
        // table C.1.2; U+200B is in both, and rfc4013:2.1 has the space first
        0xa0 | 0x1680 | 0x2000..=0x200b | 0x202f | 0x205f | 0x3000 => Some(Mapped::To(' ')),
        _ if is_in(code, &STABLE) => Some(Mapped::To(c)),
        _ => None,
    }
}

fn is_in(code: u32, ranges: &[(u32, u32)]) -> bool {
    ranges.iter().any(|(first, last)| (first..=last).contains(&&code))
}

/// rfc3454:6: what is written from right to left begins and ends so and has nothing of the other direction in it.
#[derive(Default)]
struct Directions {
    first: Option<bool>,
    last: bool,
    right_to_left: bool,
    left_to_right: bool,
}

impl Directions {
    fn see(&mut self, code: u32) {
        let neutral = is_in(code, &NEUTRAL);
        let right_to_left = !neutral && is_in(code, &[RIGHT_TO_LEFT]);
        self.first.get_or_insert(right_to_left);
        self.last = right_to_left;
        self.right_to_left |= right_to_left;
        self.left_to_right |= !neutral && !right_to_left;
    }

    fn are_mixed(&self) -> bool {
        self.right_to_left && (self.left_to_right || self.first != Some(true) || !self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(text: &str) -> Option<String> {
        prepare(text.as_bytes()).ok().map(|out| String::from_utf8(out).unwrap())
    }

    // rfc4013:3
    #[test]
    fn the_examples_of_the_rfc() {
        assert_eq!(prepared("I\u{ad}X").as_deref(), Some("IX"));
        assert_eq!(prepared("user").as_deref(), Some("user"));
        assert_eq!(prepared("USER").as_deref(), Some("USER"));
        assert_eq!(prepared("\u{7}"), None);
        assert_eq!(prepared("\u{627}1"), None);
        // The two that NFKC changes are refused here, which is the same for both sides.
        assert_eq!(prepared("\u{aa}"), None);
        assert_eq!(prepared("\u{2168}"), None);
    }

    #[test]
    fn what_is_stable_passes_and_what_is_not_known_is_refused() {
        for same in [
            "pencil",
            "~ {}",
            "Übergröße",
            "пароль",
            "κωδικός",
            "סיסמה",
            "密码",
            "パスワード",
            "비밀번호",
            "€5",
        ] {
            assert_eq!(prepared(same).as_deref(), Some(same));
        }
        assert_eq!(prepared("a\u{a0}b\u{3000}c").as_deref(), Some("a b c"));
        for other in ["a\u{301}", "\u{1100}\u{1161}", "\u{1f600}", "\u{fb01}", "a\tb", "\u{7f}", "\u{e000}"] {
            assert_eq!(prepared(other), None, "{other:?}");
        }
        assert_eq!(prepare(b"\xff"), Err(Unprepared));
        assert_eq!(prepared("").as_deref(), Some(""));
    }

    #[test]
    fn directions_are_not_mixed() {
        assert!(prepared("\u{5d0}1\u{5d1}").is_some());
        assert!(prepared("\u{5d0}a\u{5d1}").is_none());
        assert!(prepared("1\u{5d0}").is_none());
    }
}
