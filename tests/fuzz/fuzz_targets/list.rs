//! Any bytes as a recipient list: what is read has its place in the file; a list that is written is read back, its hash
//! knows nothing of who is done, and a flipped bit makes nobody done.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::queue::list::{Entries, Entry, ListMeter, Shape, Tail, write_tail};
use qmail::queue::record::Hash;
use std::os::fd::OwnedFd;

/// In memory, so that no disk is waited for.
fn file(bytes: &[u8]) -> OwnedFd {
    let memory = std::path::PathBuf::from("/dev/shm");
    let directory = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let path = directory.join(format!("fuzz-list-{}", std::process::id()));
    std::fs::write(&path, bytes).expect("scratch space");
    let file = std::fs::File::open(&path).expect("scratch space");
    std::fs::remove_file(&path).expect("scratch space");
    file.into()
}

/// Everybody on it, if it can be read to its end.
fn read(bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Entries::open(file(bytes)).expect("a file can be read");
    let mut found = Vec::new();
    while let Some(entry) = entries.next_entry().ok()? {
        let at = usize::try_from(entry.spot.record).expect("inside the file");
        let record = [&bytes[at + 1..], b""].concat();
        assert!(matches!(bytes[at], b'T' | b'D') && record.starts_with(&entry.address));
        assert_eq!(record[entry.address.len()], 0);
        let mark = entry.spot.mark.map(|mark| bytes[usize::try_from(mark).expect("inside the file")]);
        assert_eq!(entry.done, mark.map_or(bytes[at] == b'D', |mark| mark == b'Q'));
        found.push(entry);
    }
    Some(found)
}

fn hash(bytes: &[u8], piece: usize) -> Option<Hash> {
    let mut meter = ListMeter::new(Shape::of(file(bytes)).expect("a file can be read"));
    bytes.chunks(piece).for_each(|part| meter.update(part));
    meter.finish()
}

/// The list of these recipients; bits of `done` say who is.
fn list(recipients: &[&[u8]], done: u8) -> Vec<u8> {
    let is_done = |index: u64| done >> (index % 8) & 1 == 1;
    let mut whole = Vec::new();
    for (index, recipient) in (0..).zip(recipients) {
        whole.push(if is_done(index) { b'D' } else { b'T' });
        whole.extend_from_slice(recipient);
        whole.push(0);
    }
    let count = recipients.len() as u64;
    let marked: Vec<u64> = (0..count).filter(|index| is_done(*index)).collect();
    let _ = write_tail::<()>(count, &marked, "0123456789abcdef", |piece| {
        whole.extend_from_slice(piece);
        Ok(())
    });
    whole
}

fuzz_target!(|input: (u16, u8, u8, &[u8])| {
    let (at, bit, done, bytes) = input;
    let _ = read(bytes);
    assert_eq!(hash(bytes, 1), hash(bytes, 7));

    let recipients: Vec<&[u8]> = bytes.split(|b| *b == 0).filter(|r| r.len() < 1000).collect();
    let mut whole = list(&recipients, done);
    let found = read(&whole).expect("what was written can be read");
    assert!(found.iter().map(|entry| entry.address.as_slice()).eq(recipients.iter().copied()));
    let sound = hash(&whole, 5);
    assert!(sound.is_some() && sound == hash(&list(&recipients, 0), 64));

    let at = usize::from(at) % whole.len();
    whole[at] ^= 1 << (bit % 8);
    if hash(&whole, 3) == sound && Shape::of(file(&whole)).expect("a file can be read").tail != Tail::None {
        let now = read(&whole).expect("it has its hash");
        assert!(
            now.iter().zip(&found).all(|(now, then)| now.address == then.address && (then.done || !now.done))
        );
    }
});
