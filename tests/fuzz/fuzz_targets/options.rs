//! Any command line: the options that getopt(3) would find, in their order, or its refusal.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::program::{Args, Parsed, Program};

const SPEC: &str = "ab:c/";

/// getopt, as short as can be. The error is the letter.
fn expected(list: &[&[u8]]) -> Result<Parsed, u8> {
    let mut parsed = Parsed::default();
    let mut words = list.iter();
    while let Some(word) = words.clone().next() {
        let Some(mut cluster) = word.strip_prefix(b"-").filter(|c| !c.is_empty()) else { break };
        words.next();
        if cluster == b"-" {
            break;
        }
        while let Some((letter, rest)) = cluster.split_first() {
            cluster = rest;
            let value = match letter {
                b'a' | b'c' | b'/' => Vec::new(),
                b'b' if !rest.is_empty() => std::mem::take(&mut cluster).to_vec(),
                b'b' => words.next().ok_or(*letter)?.to_vec(),
                _ => return Err(*letter),
            };
            parsed.options.push((char::from(*letter), value));
        }
    }
    parsed.rest = words.map(|w| w.to_vec()).collect();
    Ok(parsed)
}

fuzz_target!(|bytes: &[u8]| {
    let list: Vec<&[u8]> = bytes.split(|b| *b == 0).collect();
    if list[0] == b"--help" {
        return; // prints
    }
    let found = Args::of(Program::new("prog", "prog"), &list).options(SPEC);
    match (found, expected(&list)) {
        (Ok(found), Ok(wanted)) => assert_eq!(found, wanted),
        (Err(trouble), Err(letter)) => {
            assert!(trouble.is_usage() && trouble.exit_code() == 100);
            assert_eq!(trouble.text().last(), Some(&letter));
        }
        (found, wanted) => panic!("{found:?} and not {wanted:?}"),
    }
});
