//! A message delivered into any mailbox: nothing of another message is ever cut, what was torn of this one
//! is replaced, and what was written can be read back.
#![cfg_attr(fuzzing, no_main)]

use fuzz::{fuzz_target, scratch};
use qmail::mbox::{self, Head};
use std::os::unix::ffi::OsStrExt;

const EARLIER: &[u8] = b"From s@h Fri Nov 20 12:00:00 2026\n";
const NOW: &[u8] = b"From s@h Sat Nov 21 08:15:59 2026\n";
const REST: &[u8] = b"Return-Path: <s@h>\nDelivered-To: joe@x\n";

/// mbox(5) in short: a line of `>`s and `From ` gets one `>` more, and a message ends in an empty line.
fn record(from_line: &[u8], message: &[u8]) -> Vec<u8> {
    let mut out = [from_line, REST].concat();
    for line in message.split_inclusive(|b| *b == b'\n') {
        let start = line.iter().position(|b| *b != b'>').unwrap_or(line.len());
        if line[start..].starts_with(b"From ") {
            out.push(b'>');
        }
        out.extend_from_slice(line);
    }
    if !matches!(message, [] | [.., b'\n']) {
        out.push(b'\n');
    }
    out.push(b'\n');
    out
}

fuzz_target!(|input: (u16, &[u8], &[u8], &[u8])| {
    let (torn, before, behind, message) = input;
    let wanted = record(NOW, message);

    // Any bytes, the first bytes of this message as another attempt would have written them, any bytes.
    let earlier = record(EARLIER, message);
    let torn = &earlier[..usize::from(torn).min(earlier.len())];
    let mut mailbox = [before, torn, behind].concat();

    let (path, message_path) = (scratch().join("Mailbox"), scratch().join("message"));
    std::fs::write(&path, &mailbox).expect("scratch space");
    std::fs::write(&message_path, message).expect("scratch space");
    let file = std::fs::File::open(&message_path).expect("scratch space");
    let (return_path, delivered_to) = REST.split_at(19);
    let head = Head { from_line: NOW, return_path, delivered_to };
    mbox::deliver(path.as_os_str().as_bytes(), &head, &file).expect("a delivery");
    let found = std::fs::read(&path).expect("scratch space");
    std::fs::remove_file(&path).expect("scratch space");
    std::fs::remove_file(&message_path).expect("scratch space");

    // Zeros at the end are what a power cut left.
    mailbox.truncate(mailbox.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1));
    let kept = found.strip_suffix(wanted.as_slice()).expect("the message stands at the end");
    if kept.starts_with(&mailbox) {
        // Nothing was cut; the message starts behind an empty line.
        assert!(kept.is_empty() || kept.ends_with(b"\n\n"));
        assert!(kept[mailbox.len()..].iter().all(|b| *b == b'\n') && kept.len() <= mailbox.len() + 2);
    } else {
        // What was cut was a message of its own, not a whole one, and stands there again.
        let cut = mailbox.strip_prefix(kept).expect("cut at the end only");
        assert!(kept.is_empty() || kept.ends_with(b"\n\n"));
        assert!(cut.starts_with(b"From ") && cut.len() < wanted.len() && !cut.ends_with(b"\n\n"));
        let date = NOW.len() - 25..NOW.len() - 1;
        assert!(cut.iter().enumerate().all(|(at, b)| date.contains(&at) || *b == wanted[at]));
    }
});
