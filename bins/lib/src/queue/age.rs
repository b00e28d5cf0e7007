//! age - when a leftover is old enough to be removed
//!
//! A file that belongs to no message may belong to a writer still at work. Our writers hold a lock and
//! need no age; others give up after 24 hours, so 36 hours make removal safe - if those hours really
//! passed for the writer. The wall clock alone cannot say so: it may have been set while the file was
//! written, or the machine may have slept, and a sleeping writer's alarm does not count. A file is old when
//! its newest time is 36 hours back, the machine was started that long ago, and what the wall clock gained
//! on the time awake since this process started is subtracted.
#![forbid(unsafe_code)]

use nix::sys::stat::FileStat;
use nix::time::{ClockId, clock_gettime};

/// 36 hours. Must exceed the 24 hours after which a writer gives up.
pub const OLD_SECONDS: i64 = 129_600;

/// The two clocks of this process.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Wall clock minus time awake when the process started.
    offset: i64,
}

impl Clock {
    pub fn start() -> Clock {
        Clock { offset: wall() - awake() }
    }

    /// Whether nobody has touched the file for 36 hours that really passed.
    pub fn is_old(&self, file: &FileStat) -> bool {
        let newest = file.st_atime.max(file.st_mtime).max(file.st_ctime);
        old(newest, wall(), seconds(ClockId::CLOCK_BOOTTIME), wall() - awake() - self.offset)
    }
}

fn old(newest: i64, wall: i64, uptime: i64, gained: i64) -> bool {
    uptime > OLD_SECONDS && wall - gained.max(0) - newest > OLD_SECONDS
}

fn wall() -> i64 {
    seconds(ClockId::CLOCK_REALTIME)
}

/// Time since the machine started, without what it slept.
fn awake() -> i64 {
    seconds(ClockId::CLOCK_MONOTONIC)
}

fn seconds(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |time| time.tv_sec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    #[test]
    fn a_file_untouched_for_two_days_of_uptime_is_old() {
        assert!(old(1000 * DAY, 1002 * DAY, 10 * DAY, 0));
        assert!(!old(1001 * DAY, 1002 * DAY, 10 * DAY, 0));
    }

    #[test]
    fn a_clock_set_forward_or_a_machine_asleep_makes_nothing_old() {
        assert!(!old(1000 * DAY, 1040 * DAY, 10 * DAY, 40 * DAY));
        assert!(old(1000 * DAY, 1042 * DAY, 12 * DAY, 40 * DAY));
    }

    #[test]
    fn a_clock_set_back_makes_nothing_old_either() {
        assert!(!old(1000 * DAY, 1001 * DAY, 10 * DAY, -30 * DAY));
    }

    #[test]
    fn nothing_is_old_on_a_machine_just_started() {
        assert!(!old(0, 1000 * DAY, DAY, 0));
    }
}
