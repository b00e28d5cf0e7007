//! Any bytes as an envelope on descriptor 1 of qmail-queue: read as the format says, and nothing beyond
//! the limits is kept. And what a client writes, qmail-queue reads.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::envelope::{self, ADDRESS_MAX, Envelope, Part};
use qmail::fd;
use qmail::timed::Reader;
use std::os::fd::OwnedFd;

/// Whole records up to the end of the envelope, and how it ended.
fn read(bytes: &[u8]) -> (Vec<Part>, Part) {
    let mut input = input(bytes);
    let mut parts = Vec::new();
    loop {
        match envelope::next(&mut input, parts.is_empty()).expect("a pipe can be read") {
            part @ (Part::Sender(_) | Part::Recipient(_)) => parts.push(part),
            end => return (parts, end),
        }
    }
}

/// A pipe that holds these bytes: fewer than the 64 KiB that a pipe takes.
fn input(bytes: &[u8]) -> Reader<OwnedFd> {
    let (read, write) = fd::pipe().expect("a pipe");
    fd::write_all(write, bytes).expect("room in a pipe");
    Reader::new(read)
}

/// The same without a buffer.
fn expected(bytes: &[u8]) -> (Vec<Part>, Part) {
    let mut parts = Vec::new();
    for record in bytes.split_inclusive(|b| *b == 0) {
        let whole = record.strip_suffix(b"\0");
        let line = whole.unwrap_or(record);
        if line.len() > ADDRESS_MAX + 1 {
            return (parts, Part::TooLong);
        }
        if whole.is_none() {
            return (parts, Part::Broken);
        }
        parts.push(match (line, parts.is_empty()) {
            ([b'F', sender @ ..], true) => Part::Sender(sender.to_vec()),
            ([b'T', recipient @ ..], false) => Part::Recipient(recipient.to_vec()),
            ([], false) => return (parts, Part::Complete),
            _ => return (parts, Part::Bad),
        });
    }
    (parts, Part::Broken)
}

fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(60_000)];
    let (parts, end) = read(bytes);
    assert_eq!((&parts, &end), (&expected(bytes).0, &expected(bytes).1));

    let mut written = Envelope::default();
    for part in &parts {
        match part {
            Part::Sender(sender) => written.sender = sender.clone(),
            Part::Recipient(recipient) => written.recipients.push(recipient.clone()),
            other => panic!("{other:?} is no record"),
        }
    }
    if !parts.is_empty() {
        assert_eq!(read(&written.encode()), (parts, Part::Complete));
    }

    if let Some((local, domain)) = envelope::split(bytes) {
        assert_eq!(envelope::domain(bytes), Some(domain));
        assert_eq!([local, b"@", domain].concat(), bytes);
    }
});
