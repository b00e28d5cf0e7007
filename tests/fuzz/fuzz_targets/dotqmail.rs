//! Any bytes as a .qmail file, and any bytes as extension and addresses.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::dotqmail::{Delivery, Instruction, Owner, candidates, instructions};

fuzz_target!(|data: &[u8]| {
    for instruction in instructions(data) {
        match instruction {
            Instruction::Program(text)
            | Instruction::Maildir(text)
            | Instruction::Mbox(text)
            | Instruction::Forward(text) => {
                assert!(!text.contains(&b'\n') && !text.contains(&0));
            }
            _ => {}
        }
    }
    let mut parts = data.splitn(4, |b| *b == 0);
    let mut next = || parts.next().unwrap_or_default().to_vec();
    let delivery =
        Delivery { local: next(), ext: next(), domain: next(), sender: next(), ..Default::default() };
    for candidate in candidates(b"-", &delivery.ext).take(100) {
        assert!(candidate.file.starts_with(b".qmail-"));
        assert!(candidate.default.is_none() || delivery.default(&candidate).is_some());
    }
    for line in [delivery.delivered_to(), delivery.return_path(), delivery.from_line(0)] {
        assert_eq!(line.iter().position(|b| *b == b'\n'), Some(line.len() - 1));
    }
    let _ = (delivery.variables(0), delivery.new_sender(Owner::EachRecipient));
});
