//! Any bytes as info/N; what is written there is read back, and any change is noticed; a recipient list
//! has the same hash however it is cut and whoever is done.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::queue::info::{Info, check_record};
use qmail::queue::list::ListMeter;
use qmail::queue::record::{Hash, Record};

fn hash(list: &[u8], piece: usize) -> Option<Hash> {
    let mut meter = ListMeter::default();
    list.chunks(piece).for_each(|part| meter.update(part));
    meter.finish()
}

/// The list with every `T` at the start of a record turned into `D`.
fn done(list: &[u8]) -> Vec<u8> {
    let mut done = list.to_vec();
    for at in 0..done.len() {
        if done[at] == b'T' && (at == 0 || done[at - 1] == 0) {
            done[at] = b'D';
        }
    }
    done
}

fuzz_target!(|input: (u16, u8, &[u8], &[u8])| {
    let (at, flip, sender, list) = input;
    let _ = Info::parse(list);

    let local = hash(list, usize::MAX);
    assert_eq!(local, hash(list, 1));
    assert_eq!(local, hash(list, 5));
    assert_eq!(local, hash(&done(list), 3));
    let sound = (list.is_empty() || list.ends_with(b"\0"))
        && list.split_inclusive(|b| *b == 0).all(|r| matches!(r[0], b'T' | b'D'));
    assert_eq!(local.is_some(), sound);

    let sender: Vec<u8> = sender.iter().copied().filter(|b| *b != 0).collect();
    let commit = Record { length: list.len() as u64, message: [3; 32], envelope: [4; 32] };
    let head = [b"F".as_slice(), &sender, b"\0", &commit.encode(u64::from(at))].concat();
    let mut file = [head.as_slice(), &check_record(&head, local.as_ref(), None)].concat();
    let info = Info::parse(&file).expect("what was written can be read");
    assert_eq!((&info.sender, &info.commit), (&sender, &Some(commit)));
    assert_eq!(info.check.as_ref().map(|c| (c.local, c.remote)), Some((local, None)));

    let at = usize::from(at) % file.len();
    if flip != 0 {
        file[at] ^= flip;
        assert_ne!(Info::parse(&file), Ok(info), "a change at {at} was not noticed");
    } else {
        // Cut behind the sender it is a file of the old format; anywhere else it is damaged.
        let cut = Info::parse(&file[..at]);
        assert!(cut.is_err() || at == sender.len() + 2, "a cut at {at} was not noticed");
    }
});
