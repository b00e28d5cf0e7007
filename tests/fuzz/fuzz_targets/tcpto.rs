//! Any file as the table of timeouts, at any time: a record lies in the table, and what is noted is found.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::tcpto::{FILE_SIZE, RECORD_SIZE, answered, parse, skip, timed_out};

fuzz_target!(|input: (u64, u32, u8, &[u8])| {
    let (now, pid, pick, file) = input;
    let mut records = parse(file);
    assert!(records.len() <= FILE_SIZE / RECORD_SIZE && records.len() <= file.len() / RECORD_SIZE);
    let known = records.get(usize::from(pick) % records.len().max(1)).map(|r| r.ip);
    let ip = known.filter(|_| pick & 1 == 0).unwrap_or(std::net::Ipv4Addr::from_bits(pid));

    for record in &records {
        assert_eq!(parse(&record.bytes()), [*record]);
    }
    let _ = skip(&records, ip, now, pid);
    // Three timeouts, minutes apart, are enough; one answer makes good for all.
    for minutes in 0..3 {
        let then = now.wrapping_add(minutes * 200);
        if let Some((at, record)) = timed_out(&records, ip, then) {
            assert!((1..=10).contains(&record.count));
            records[at] = record;
        }
    }
    if !records.is_empty() {
        assert!(skip(&records, ip, now.wrapping_add(400), pid));
    }
    if let Some((at, record)) = answered(&records, ip) {
        records[at] = record;
    }
    assert!(!skip(&records, ip, now.wrapping_add(400), pid));
});
