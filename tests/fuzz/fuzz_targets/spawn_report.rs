//! What a spawner tells qmail-send, in any bytes and any pieces: the same reports, bounded, and nothing in
//! them that could end a log line, or the paragraph of a bounce. And what a qmail-queue tells its caller.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::queue::bounce::paragraph;
use qmail::queue::client::Outcome;
use qmail::queue::door;
use qmail::queue::report::{REPORT_MAX, Reports, log_safe};
use qmail::spawn::report;
use qmail::sys::process::End;

fuzz_target!(|bytes: &[u8]| {
    let whole = Reports::default().feed(bytes);
    let mut parser = Reports::default();
    let pieces: Vec<_> = bytes.iter().flat_map(|b| parser.feed(&[*b])).collect();
    assert_eq!(whole, pieces);
    for found in &whole {
        assert!(found.text.len() + 2 <= REPORT_MAX && !found.text.contains(&0));
        assert!(log_safe(&found.text).bytes().all(|b| matches!(b, 33..=126) && b != b'%'));

        let text = paragraph(b"a@b", &found.text);
        let inside = text.strip_suffix(b"\n\n").expect("an empty line at the end");
        assert!(inside.starts_with(b"<a@b>:") && !inside.windows(2).any(|w| w == b"\n\n"));

        // A spawner of ours writes it so that it is read as it was.
        if let Some(letter) = found.letter {
            let said = [&[letter], found.text.as_slice()].concat();
            assert_eq!(Reports::default().feed(&report::encode(found.slot, &said)), [found.clone()]);
        }
    }

    // Exit codes and texts of qmail-queue, ours or another: only 0 is success.
    if let Some((code, text)) = door::parse_answer(bytes) {
        let outcome = Outcome::of_end(End::Exit(code), text, 7);
        assert_eq!(outcome == Outcome::Queued { qp: 7 }, code == 0);
        let crashed = Outcome::of_end(End::Crash(code), text, 7);
        assert!(matches!(crashed, Outcome::Temporary(_)));
        assert!(outcome.text().is_empty() == (code == 0) && crashed.text().starts_with(b"Z"));
    }
});
