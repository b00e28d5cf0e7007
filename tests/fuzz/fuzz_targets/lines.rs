//! The reader that all input goes through: lines up to any terminator and length, of any bytes in any
//! pieces.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::fd;
use qmail::timed::{Line, Reader};

/// The next line of `bytes`, which are cut.
fn expected(bytes: &mut &[u8], terminator: u8, max: usize) -> Line {
    let at = bytes.iter().position(|b| *b == terminator);
    let line = bytes[..at.unwrap_or(bytes.len())].to_vec();
    *bytes = at.map_or(b"", |at| &bytes[at + 1..]);
    match at {
        _ if line.len() > max => Line::TooLong,
        Some(_) => Line::Whole(line),
        None => Line::End(line),
    }
}

fuzz_target!(|input: (u8, u16, u16, &[u8])| {
    let (terminator, max, piece, bytes) = input;
    let max = usize::from(max);
    let (read, write) = fd::pipe().expect("a pipe");
    let mut pieces = bytes.chunks(usize::from(piece).max(1));
    let mut reader = Reader::new(read);
    // Part of it is in the buffer before the first line is asked for.
    if let Some(first) = pieces.next() {
        fd::write_all(&write, &first[..first.len().min(30_000)]).expect("room in a pipe");
        assert!(reader.more().expect("a pipe can be read") > 0);
    }
    for piece in pieces.take(1) {
        fd::write_all(&write, &piece[..piece.len().min(30_000)]).expect("room in a pipe");
    }
    drop(write);
    let sent = bytes.chunks(usize::from(piece).max(1)).take(2).flat_map(|p| &p[..p.len().min(30_000)]);
    let sent: Vec<u8> = sent.copied().collect();
    let mut rest = sent.as_slice();
    loop {
        let line = reader.line(terminator, max).expect("a pipe can be read");
        assert_eq!(line, expected(&mut rest, terminator, max));
        if matches!(line, Line::End(_)) {
            break;
        }
    }
    assert!(reader.buffered().is_empty() && rest.is_empty());
});
