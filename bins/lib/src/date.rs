//! date - times as mail writes them
#![forbid(unsafe_code)]

use std::time::{SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Seconds since 1970 by the wall clock; 0 for a clock set before that.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn utc(seconds: u64) -> OffsetDateTime {
    i64::try_from(seconds)
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn month(date: OffsetDateTime) -> &'static str {
    MONTHS.get(usize::from(u8::from(date.month())) - 1).copied().unwrap_or("Jan")
}

/// "D Mon YYYY HH:MM:SS", the day not padded.
fn day_and_time(seconds: u64) -> String {
    let d = utc(seconds);
    format!("{} {} {} {:02}:{:02}:{:02}", d.day(), month(d), d.year(), d.hour(), d.minute(), d.second())
}

/// `D Mon YYYY HH:MM:SS -0000`: the date of generated header lines (RFC 5322 section 3.3, "-0000":
/// UTC, saying nothing of the local zone).
pub fn rfc822(seconds: u64) -> String {
    day_and_time(seconds) + " -0000"
}

/// `D Mon YYYY HH:MM:SS GMT`, as qmail-qread prints it.
pub fn gmt(seconds: u64) -> String {
    day_and_time(seconds) + " GMT"
}

/// `Www Mon DD HH:MM:SS YYYY`, the day padded with a zero: the date of an mbox From_ line.
pub fn mbox(seconds: u64) -> String {
    let d = utc(seconds);
    let name = d.weekday().to_string();
    format!(
        "{} {} {:02} {:02}:{:02}:{:02} {}",
        name.get(..3).unwrap_or("Thu"),
        month(d),
        d.day(),
        d.hour(),
        d.minute(),
        d.second(),
        d.year()
    )
}

/// `YYYYMMDDHHMMSS`: the left half of a generated Message-ID.
pub fn stamp(seconds: u64) -> String {
    let d = utc(seconds);
    let (month, day) = (u8::from(d.month()), d.day());
    format!("{:04}{month:02}{day:02}{:02}{:02}{:02}", d.year(), d.hour(), d.minute(), d.second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_dates_have_no_weekday_and_an_unpadded_day() {
        assert_eq!(rfc822(1_700_000_000), "14 Nov 2023 22:13:20 -0000");
        assert_eq!(rfc822(0), "1 Jan 1970 00:00:00 -0000");
    }

    #[test]
    fn an_mbox_date_has_a_padded_day() {
        assert_eq!(mbox(0), "Thu Jan 01 00:00:00 1970");
    }

    #[test]
    fn a_stamp_is_fourteen_digits() {
        assert_eq!(stamp(1_700_000_000), "20231114221320");
    }

    #[test]
    fn a_time_out_of_range_is_not_a_panic() {
        assert_eq!(rfc822(u64::MAX), "1 Jan 1970 00:00:00 -0000");
    }
}
