//! Any text as users/assign: refused, or a database in which every local part can be looked up without
//! damage being found; any file as users/cdb; any output of qmail-getpw.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::assign::{self, User};
use qmail::cdb::{self, Reader};

fuzz_target!(|input: (&[u8], &[u8])| {
    let (text, local) = input;
    if let Ok(reader) = Reader::new(text) {
        let _ = assign::lookup(&reader, local);
    }
    if let Some(user) = User::parse(text) {
        assert_eq!(User::parse(&user.fields()), Some(user));
    }
    let Ok(made) = assign::compile(text) else { return };
    let reader = Reader::new(made.as_slice()).expect("a slice has a size");
    match assign::lookup(&reader, local) {
        // Ids that are no numbers are found here and not by the compiler, as ever.
        Ok(_) | Err(cdb::Error::Corrupt) => {}
        Err(error) => panic!("{error:?}"),
    }
});
