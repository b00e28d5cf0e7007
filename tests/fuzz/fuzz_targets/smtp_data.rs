//! A message in any bytes and any pieces: how it is cut never matters, only CR LF . CR LF ends it, and
//! what is stored never has a dot line of its own making.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::smtp::data::{Decoder, Hops, Step};

fn decode(input: &[u8], piece: usize) -> (Vec<u8>, usize, Step, u32) {
    let (mut decoder, mut hops, mut out, mut total) = (Decoder::default(), Hops::default(), Vec::new(), 0);
    for chunk in input.chunks(piece) {
        let (used, step) = decoder.feed(chunk, |bytes| {
            hops.feed(bytes);
            out.extend_from_slice(bytes);
        });
        total += used;
        if step != Step::More {
            return (out, total, step, hops.count());
        }
        assert_eq!(used, chunk.len());
    }
    (out, total, Step::More, hops.count())
}

fuzz_target!(|data: (u8, &[u8])| {
    let (piece, input) = data;
    let whole = decode(input, usize::MAX);
    assert_eq!(whole, decode(input, usize::from(piece) + 1));
    let (out, used, step, _) = whole;
    assert!(out.len() <= used);
    let taken = &input[..used];
    match step {
        Step::End => assert!(taken == b".\r\n" || taken.ends_with(b"\r\n.\r\n")),
        Step::BareLf => assert!(taken.ends_with(b"\n") && !taken.ends_with(b"\r\n")),
        Step::More => assert_eq!(used, input.len()),
    }
});
