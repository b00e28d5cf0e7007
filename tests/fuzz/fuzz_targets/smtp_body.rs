//! Whatever a message holds: on the wire there is one end, at the end, and no bare CR or LF.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::smtp::body::{Encoder, Scan};

fuzz_target!(|message: &[u8]| {
    let mut wire = Vec::new();
    let (mut encoder, mut scan) = (Encoder::new(), Scan::new());
    for piece in message.chunks(5) {
        encoder.put(piece, &mut wire);
        scan.put(piece);
    }
    assert_eq!(encoder.ends_whole(), scan.ends_whole());
    encoder.finish(&mut wire);

    // A receiver that knows CR LF . CR LF and nothing else.
    let mut got = Vec::new();
    let mut rest = wire.as_slice();
    loop {
        let at = rest.windows(2).position(|w| w == b"\r\n").expect("an end");
        let (line, behind) = (&rest[..at], &rest[at + 2..]);
        assert!(!line.contains(&b'\r') && !line.contains(&b'\n'));
        rest = behind;
        if line == b"." {
            break;
        }
        got.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
        got.push(b'\n');
    }
    assert!(rest.is_empty());
    if !message.contains(&b'\r') && scan.ends_whole() {
        assert_eq!(got, message);
    }
    assert_eq!(scan.eight_bit, !message.is_ascii());
});
