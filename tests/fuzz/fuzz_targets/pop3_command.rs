//! POP3 command lines, Maildir names, records of a uidlist, and messages as RETR and TOP send them.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::pop3::{
    Command, Name, Stuffer, Top, base, is_unique_id, message, number, uidlist_record, unique_id,
};

fuzz_target!(|bytes: &[u8]| {
    let command = Command::parse(bytes);
    let _ = (command.name(), command.password(), command.apop());
    for word in command.words() {
        let _ = number(word);
        if let Ok(at) = message(word, 10) {
            assert!(at < 10);
        }
    }
    let _ = Name::of(bytes);
    assert!(is_unique_id(&unique_id(base(bytes))));
    if let Some((_, id)) = uidlist_record(bytes) {
        assert!(is_unique_id(id));
    }

    // However a message is cut into reads, what is sent is the same, holds no bare LF, and no line that
    // could be taken for the end.
    let mut whole = Vec::new();
    let mut stuffer = Stuffer::default();
    stuffer.push(bytes, &mut whole);
    stuffer.finish(&mut whole);
    let mut pieces = Vec::new();
    let mut stuffer = Stuffer::default();
    bytes.iter().for_each(|b| stuffer.push(&[*b], &mut pieces));
    stuffer.finish(&mut pieces);
    assert_eq!(whole, pieces);
    assert!(whole.is_empty() || whole.ends_with(b"\r\n"));
    assert!(!whole.starts_with(b".\r\n") && !whole.windows(5).any(|w| w == b"\r\n.\r\n"));
    assert!(
        whole.iter().enumerate().all(|(at, b)| *b != b'\n' || at > 0 && whole.get(at - 1) == Some(&b'\r'))
    );

    let taken = Top::new(2).take(bytes);
    let mut top = Top::new(2);
    let one_by_one: usize = bytes.iter().map(|b| top.take(&[*b])).sum();
    assert_eq!(taken, one_by_one);
});
