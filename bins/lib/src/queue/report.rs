//! report - what a spawner says about deliveries, and how it looks in the log
//!
//! On the pipe: slot (one byte, may be NUL, or two: `spawn::slot`), class letter, text, NUL.
#![forbid(unsafe_code)]

use crate::spawn::{Slot, Width};

/// Bytes kept of one report, slot and letter included; the rest is read and dropped.
pub const REPORT_MAX: usize = 10_000;

/// One report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub slot: Slot,
    /// `K`, `Z` or `D` when all is well; None when there was none.
    pub letter: Option<u8>,
    pub text: Vec<u8>,
}

/// Puts reports together from what a pipe delivers.
#[derive(Debug, Default)]
pub struct Reports {
    width: Width,
    partial: Vec<u8>,
}

impl Reports {
    /// Of slots of this width.
    pub fn new(width: Width) -> Reports {
        Reports { width, partial: Vec::new() }
    }

    /// Takes bytes; the reports they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Report> {
        let mut complete = Vec::new();
        for byte in bytes {
            // The first bytes are a slot number, even if they are NUL.
            match self.width.split(&self.partial) {
                Some((slot, said)) if *byte == 0 => {
                    let (letter, text) =
                        said.split_first().map_or((None, Vec::new()), |(l, t)| (Some(*l), t.to_vec()));
                    complete.push(Report { slot, letter, text });
                    self.partial = Vec::new(); // gives a long report's memory back
                }
                _ if self.partial.len() < REPORT_MAX => self.partial.push(*byte),
                _ => {}
            }
        }
        complete
    }
}

/// Untrusted text for the log: a line feed becomes `/`, whatever is not a printable byte or could be
/// taken for a format becomes `_`.
pub fn log_safe(text: &[u8]) -> String {
    let safe = |b: &u8| match b {
        b'\n' => '/',
        b'%' => '_',
        33..=126 => char::from(*b),
        _ => '_',
    };
    text.iter().map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(slot: u8, letter: u8, text: &[u8]) -> Report {
        Report { slot: slot.into(), letter: Some(letter), text: text.to_vec() }
    }

    #[test]
    fn slot_zero_is_not_an_end() {
        let mut r = Reports::default();
        assert_eq!(r.feed(b"\0Kdid 1+0+0\n\0\x07D"), [report(0, b'K', b"did 1+0+0\n")]);
        assert_eq!(r.feed(b"no\0\0Z"), [report(7, b'D', b"no")]);
        assert_eq!(r.feed(b"\0"), [report(0, b'Z', b"")]);
    }

    #[test]
    fn a_report_without_a_letter_is_one_all_the_same() {
        let mut r = Reports::default();
        assert_eq!(
            r.feed(b"\x03\0\x04K\0"),
            [Report { slot: 3.into(), letter: None, text: vec![] }, report(4, b'K', b"")]
        );
    }

    #[test]
    fn a_long_report_is_cut_and_keeps_its_letter() {
        let mut r = Reports::default();
        assert_eq!(r.feed(&[b"\x01D".to_vec(), vec![b'x'; 50_000]].concat()), []);
        let all = r.feed(b"\0");
        assert_eq!(all, [report(1, b'D', &[b'x'; REPORT_MAX - 2])]);
    }

    #[test]
    fn log_text_is_one_printable_word() {
        assert_eq!(
            log_safe(b"1.2.3.4 ok.\nhost: 250 50% \x00\xff\t\x7f\n"),
            "1.2.3.4_ok./host:_250_50______/"
        );
    }
}
