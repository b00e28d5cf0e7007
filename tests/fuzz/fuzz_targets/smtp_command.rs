//! What a client's command line can hold: nothing of it panics, and no address carries what would end it early.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::smtp::command::{Command, declared_size, literal, path};

fuzz_target!(|line: &[u8]| {
    let command = Command::parse(line);
    assert!(command.argument.len() <= line.len());
    let _ = literal(line);
    if let Some(path) = path(command.argument) {
        assert!(path.address.len() <= command.argument.len());
        assert!(!path.address.iter().any(|b| matches!(b, 0 | b'\r')));
        let _ = declared_size(path.parameters);
    }
});
