//! slot - the number by which qmail-send knows a delivery
//!
//! One byte on the pipes, as it always was. Where qmail-start announced `QMAILBURST=2` to both, and the spawner says
//! `WIDE` behind its first byte, it is two, the low one first: recipients that travel together need many.
#![forbid(unsafe_code)]

/// What a spawner says behind its first byte, 255, where slots are wide. To who does not know, a report on a
/// delivery that there is not.
pub const WIDE: &[u8] = b"\xffwide\0";

/// Wide slots are 0 to 2047: half of the rows of the ledger, so that none is used again before its time.
pub const LIMIT_WIDE: u16 = 2048;

/// How a slot is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Width {
    #[default]
    Narrow,
    Wide,
}

impl Width {
    /// The bytes of a slot.
    pub fn bytes(self) -> usize {
        match self {
            Width::Narrow => 1,
            Width::Wide => 2,
        }
    }

    /// The slot that these bytes begin with, and what is behind it.
    pub fn split(self, bytes: &[u8]) -> Option<(Slot, &[u8])> {
        let (number, rest) = bytes.split_at_checked(self.bytes())?;
        let number = number.iter().rev().fold(0, |number, byte| number << 8 | u16::from(*byte));
        Some((Slot { number, width: self }, rest))
    }
}

/// A slot, which knows how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    number: u16,
    width: Width,
}

impl Slot {
    /// None where it cannot be written so.
    pub fn of(number: usize, width: Width) -> Option<Slot> {
        let number = u16::try_from(number).ok()?;
        (width == Width::Wide || number <= u16::from(u8::MAX)).then_some(Slot { number, width })
    }

    pub fn number(self) -> u16 {
        self.number
    }

    pub fn index(self) -> usize {
        usize::from(self.number)
    }

    pub fn width(self) -> Width {
        self.width
    }

    /// As it is written.
    pub fn encode(self) -> Vec<u8> {
        self.number.to_le_bytes().into_iter().take(self.width.bytes()).collect()
    }
}

impl From<u8> for Slot {
    fn from(number: u8) -> Slot {
        Slot { number: u16::from(number), width: Width::Narrow }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_read_as_they_are_written() {
        for (number, width, written) in [
            (0, Width::Narrow, b"\0".as_slice()),
            (255, Width::Narrow, b"\xff"),
            (0, Width::Wide, b"\0\0"),
            (258, Width::Wide, b"\x02\x01"),
        ] {
            let slot = Slot::of(number, width).unwrap();
            assert_eq!(slot.encode(), written);
            assert_eq!(width.split(&[written, b"rest"].concat()), Some((slot, b"rest".as_slice())));
            assert!(width.split(written.get(1..).unwrap()).is_none());
        }
        assert_eq!(Slot::of(256, Width::Narrow), None);
        assert_eq!(Slot::of(65_536, Width::Wide), None);
    }

    #[test]
    fn to_who_does_not_know_of_them_the_word_is_a_report() {
        let mut reports = crate::queue::report::Reports::default();
        let said = reports.feed(WIDE);
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].slot, Slot::from(255));
        assert!(!b"KZD".contains(&said[0].letter.unwrap()));
    }
}
