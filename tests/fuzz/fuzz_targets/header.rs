//! Headers: in whatever pieces a message comes, the same header and body are found, and nothing is lost.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::header::{self, Header, Reader, Wrong};

fn read(message: &[u8], piece: usize) -> Result<(Header, Vec<u8>), Wrong> {
    let mut reader = Reader::new();
    let mut pieces = message.chunks(piece);
    while let Some(part) = pieces.next() {
        if let Some(mut body) = reader.feed(part)? {
            pieces.for_each(|part| body.extend_from_slice(part));
            return Ok((reader.finish(), body));
        }
    }
    let body = reader.end()?;
    Ok((reader.finish(), body))
}

fuzz_target!(|input: &[u8]| {
    let Some((piece, message)) = input.split_first() else { return };
    let whole = read(message, usize::MAX);
    let pieces = read(message, usize::from(*piece).max(1));
    let (Ok((header, body)), Ok(in_pieces)) = (&whole, &pieces) else {
        assert_eq!(whole.is_ok(), pieces.is_ok());
        return;
    };
    assert_eq!((header, body), (&in_pieces.0, &in_pieces.1));
    assert!(header.fields().all(|field| field.ends_with(b"\n") && header::split(field).is_some()));
    assert!(body.is_empty() || body.starts_with(b"\n"));

    // Written and read again it is the same: all that was added is settled.
    let mut written: Vec<u8> = header.fields().flatten().copied().collect();
    written.extend_from_slice(body);
    assert_eq!(read(&written, usize::MAX).as_ref(), Ok(&(header.clone(), body.clone())));
});
