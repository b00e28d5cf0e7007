//! Headers: in whatever pieces a message comes, the same header and body are found, and nothing is lost.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::header::{self, Header, Reader, Wrong};
use qmail::requiretls::{HEADER_MAX, Look, Wish};

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

fn look(message: &[u8], piece: usize) -> Look {
    let mut look = Look::default();
    message.chunks(piece).for_each(|part| look.put(part));
    look
}

/// What a message demands, and where its header ends, are the same in any pieces; nothing of a body demands anything.
fn demands(message: &[u8], piece: usize) {
    let (whole, pieces) = (look(message, usize::MAX), look(message, piece));
    assert_eq!((whole.wish(), whole.header()), (pieces.wish(), pieces.header()));
    assert!(whole.header() <= HEADER_MAX && whole.header() <= message.len() as u64);
    let head = &message[..whole.header() as usize];
    assert!(head.is_empty() || head.ends_with(b"\n"));
    assert_eq!(look(head, usize::MAX).wish(), whole.wish());
    let has = |name: &[u8]| head.windows(name.len()).any(|w| w.eq_ignore_ascii_case(name));
    assert!(whole.wish() != Wish::Required || has(b"Qmail-RequireTLS"));
    assert!(whole.wish() != Wish::Optional || has(b"TLS-Required") && !has(b"Qmail-RequireTLS:"));
}

fuzz_target!(|input: &[u8]| {
    let Some((piece, message)) = input.split_first() else { return };
    demands(message, usize::from(*piece).max(1));
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
