//! Whatever an SMTP server says: the same replies however it is cut, bounded, and a code only where
//! every line has it.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::smtp::reply::{Extensions, LINE_MAX, Parser, REPLY_MAX, Reply, TEXT_MAX};

fn replies<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Reply> {
    let (mut all, mut parser) = (Vec::new(), Parser::new());
    for mut piece in pieces {
        while !piece.is_empty() {
            let (used, reply) = parser.take(piece);
            assert!(used > 0 && used <= piece.len());
            piece = &piece[used..];
            if let Some(reply) = reply {
                all.push(reply);
                parser = Parser::new();
            }
        }
    }
    all
}

fuzz_target!(|bytes: &[u8]| {
    let whole = replies(std::iter::once(bytes));
    assert_eq!(whole, replies(bytes.chunks(1)));
    assert_eq!(whole, replies(bytes.chunks(7)));
    for reply in whole {
        assert!(reply.text().len() <= TEXT_MAX + 1);
        assert!(!reply.text().contains(&b'\r') && !reply.text().contains(&0));
        assert!(reply.lines().all(|line| line.len() <= LINE_MAX));
        assert!(reply.lines().map(<[u8]>::len).sum::<usize>() <= REPLY_MAX);
        if let Some(code) = reply.code() {
            assert!((200..600).contains(&code));
            assert!(reply.text().starts_with(code.to_string().as_bytes()));
        }
        Extensions::of(&reply);
    }
});
