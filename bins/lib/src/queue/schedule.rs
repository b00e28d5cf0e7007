//! schedule - when a message is tried again, and what is due first
//!
//! Attempts come at quadratically growing ages: the n-th try of a channel when the message is
//! (n times skip) squared seconds old. Times are seconds since 1970.
#![forbid(unsafe_code)]

use super::Number;
use super::rewrite::Way;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

impl Way {
    /// How far the square root of the age moves between two attempts: remote hosts are asked at
    /// ages 0, 400, 1600, 3600 …, local mailboxes at 0, 100, 400, 900 …
    pub fn skip(self) -> u64 {
        match self {
            Way::Local => 10,
            Way::Remote => 20,
        }
    }
}

/// The attempt after one that starts at `now`. A birth in the future counts as now.
pub fn next_attempt(birth: u64, now: u64, way: Way) -> u64 {
    let age = now.saturating_sub(birth);
    let root = age.isqrt() + way.skip(); // below 2^32 + 20: no overflow before the square
    birth.saturating_add(root.saturating_mul(root))
}

/// Whether the attempt that starts at `now` is the last.
pub fn expired(birth: u64, now: u64, lifetime: u64) -> bool {
    now > birth.saturating_add(lifetime)
}

/// Messages by the time they are due. Sixteen bytes a message.
#[derive(Debug, Default)]
pub struct Schedule(BinaryHeap<Reverse<(u64, Number)>>);

impl Schedule {
    pub fn insert(&mut self, due: u64, number: Number) {
        self.0.push(Reverse((due, number)));
    }

    /// When the first one is due.
    pub fn next_due(&self) -> Option<u64> {
        self.0.peek().map(|Reverse((due, _))| *due)
    }

    /// The first one, if it is due.
    pub fn peek_due(&self, now: u64) -> Option<(u64, Number)> {
        self.0.peek().map(|Reverse(entry)| *entry).filter(|(due, _)| *due <= now)
    }

    /// Takes the first one, if it is due: (when it was due, number).
    pub fn take_due(&mut self, now: u64) -> Option<(u64, Number)> {
        let entry = self.peek_due(now)?;
        self.0.pop();
        Some(entry)
    }

    /// Makes everything due at `now` that was due later.
    pub fn hurry(&mut self, now: u64) {
        let hurried = self.0.drain().map(|Reverse((due, number))| Reverse((due.min(now), number)));
        self.0 = hurried.collect();
    }

    /// Everything, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Number)> + '_ {
        self.0.iter().map(|Reverse(entry)| *entry)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_at_squares_of_the_skip() {
        let mut ages = Vec::new();
        let mut now = 1000;
        for _ in 0..5 {
            now = next_attempt(1000, now, Way::Local);
            ages.push(now - 1000);
        }
        assert_eq!(ages, [100, 400, 900, 1600, 2500]);
        assert_eq!(next_attempt(1000, 1000, Way::Remote), 1400);
        assert_eq!(next_attempt(1000, 1400, Way::Remote), 2600);
        assert_eq!(next_attempt(1000, 1399, Way::Remote), 1000 + 39 * 39);
    }

    #[test]
    fn strange_clocks_do_not_overflow() {
        assert_eq!(next_attempt(5000, 10, Way::Local), 5100);
        assert_eq!(next_attempt(0, u64::MAX, Way::Local), u64::MAX);
        assert!(!expired(u64::MAX, 5, 10));
        assert!(!expired(100, 110, 10) && expired(100, 111, 10));
        // Older than a 32-bit square root of seconds can say.
        assert_eq!(next_attempt(0, 1 << 40, Way::Remote), ((1u64 << 20) + 20).pow(2));
    }

    #[test]
    fn what_is_due_first_comes_first() {
        let mut s = Schedule::default();
        s.insert(30, 1);
        s.insert(10, 2);
        s.insert(20, 3);
        assert_eq!(s.next_due(), Some(10));
        assert_eq!(s.take_due(5), None);
        assert_eq!(s.take_due(15), Some((10, 2)));
        assert_eq!(s.take_due(15), None);
        s.hurry(15);
        assert_eq!((s.take_due(15), s.take_due(15), s.take_due(15)), (Some((15, 1)), Some((15, 3)), None));
    }
}
