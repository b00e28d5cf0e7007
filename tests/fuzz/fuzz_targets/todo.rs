//! Any bytes as todo/N: the records that stand there, damage noticed; and a commit record comes back as
//! it was written.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::envelope::ADDRESS_MAX;
use qmail::fd;
use qmail::queue::record::{self, Meter};
use qmail::queue::todo::{self, Record};
use qmail::timed::Reader;

/// As `todo::next` reads, without a buffer.
fn expected(bytes: &[u8]) -> Vec<Record> {
    let read = |line: &[u8]| match line.strip_suffix(b"\0") {
        Some(record) if record.len() <= ADDRESS_MAX + 1 => Record::parse(record),
        _ => Record::Bad,
    };
    bytes.split_inclusive(|b| *b == 0).map(read).collect()
}

fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(60_000)]; // a pipe takes 64 KiB
    let (read, write) = fd::pipe().expect("a pipe");
    fd::write_all(write, bytes).expect("room in a pipe");
    let mut file = Reader::new(read);
    let mut records = Vec::new();
    while let Some(record) = todo::next(&mut file).expect("a pipe can be read") {
        records.push(record);
    }
    assert_eq!(records, expected(bytes));

    for record in &records {
        if let Record::Commit(commit) = record {
            let written = commit.encode(7);
            assert_eq!(Record::parse(written.strip_suffix(b"\0").expect("a NUL")), record.clone());
        }
    }
    if let Some(hash) = record::unhex(bytes) {
        assert_eq!(record::hex(&hash).as_bytes(), bytes);
    }

    // A commit record of these very bytes, and the same with one byte changed.
    let mut meter = Meter::new();
    bytes.chunks(3).for_each(|piece| meter.update(piece));
    let (length, message) = meter.finish();
    assert_eq!(length, bytes.len() as u64);
    let commit = record::Record { length, message, envelope: message };
    let mut line = commit.encode(u64::from(u32::MAX));
    assert_eq!(line.pop(), Some(0));
    assert_eq!(Record::parse(&line), Record::Commit(commit.clone()));
    let _ = record::is_swallowed_by(bytes);
    assert!(record::is_swallowed_by(&[bytes, &line].concat()));
    let at = bytes.first().map_or(0, |b| usize::from(*b) % line.len());
    line[at] ^= bytes.get(1).map_or(1, |b| (*b).max(1));
    if let Record::Commit(other) = Record::parse(&line) {
        let pid_end = line.iter().position(|b| *b == b' ').expect("a space");
        assert!(other != commit || at < pid_end, "a change at {at} was not noticed");
    }
});
