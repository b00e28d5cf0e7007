//! cost - what closing each jail costs: microseconds a forked child, with and without it
//!
//! cargo run --release -p jail --example cost [--target x86_64-unknown-linux-musl]
#![forbid(unsafe_code)]

use jail::{Jail, Profile, programs};
use qmail::fd;
use qmail::sys::process;
use std::time::{Duration, Instant};

/// Each time is the median of this many.
const ROUNDS: usize = 2001;

fn median(profile: Option<&'static Profile>) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let (read, write) = fd::pipe().unwrap_or_else(|_| process::exit(111));
            let child = process::fork_child(|| {
                let begin = Instant::now();
                let closed = profile.is_none_or(|profile| Jail::of(profile).close().is_ok());
                let took = begin.elapsed().as_nanos().to_le_bytes();
                i32::from(!closed || fd::write_all(&write, &took).is_err())
            });
            drop(write);
            let mut took = [0u8; 16];
            let _ = fd::read(&read, &mut took);
            let ended = child.and_then(process::wait);
            if ended != Ok(process::End::Exit(0)) {
                process::exit(111);
            }
            Duration::from_nanos(u64::try_from(u128::from_le_bytes(took)).unwrap_or(u64::MAX))
        })
        .collect();
    times.sort_unstable();
    times.get(ROUNDS / 2).copied().unwrap_or_default()
}

fn main() {
    for profile in programs::ALL.iter().filter(|profile| profile.is_jail() && !profile.needs_home()) {
        let line = format!(
            "{:6.1} us  {} {}\n",
            median(Some(profile)).as_secs_f64() * 1e6,
            profile.name,
            profile.part
        );
        let _ = fd::write_all(fd::OUT, line.as_bytes());
    }
}
