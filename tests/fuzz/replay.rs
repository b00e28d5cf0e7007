//! replay - every input of the named directories through the target it belongs to, without libFuzzer
//!
//! usage: replay DIRECTORY ...     each holds a directory of inputs for each target, as tests/fuzz/seeds does
//!        replay --list            the targets
//!
//! Prints `TARGET: N inputs`. Exit 1 when an input breaks its target; the others are tried all the same. What fuzzing
//! found stays tried by this, in `make test` and with the stable compiler; coverage is measured with it (scripts/fuzz).

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

macro_rules! targets {
    ($($name:ident)*) => {
        mod fuzz_targets {
            $(pub mod $name;)*
        }
        const TARGETS: &[(&str, fn(&[u8]) -> bool)] = &[$((stringify!($name), fuzz_targets::$name::run)),*];
    };
}

targets! {
    address assign auth_request bounce cdb control dns_answer dns_question dns_servers dotqmail envelope header info
    lines mailbox options pop3_command pop3_login pop3_session rules smtp_body smtp_command smtp_data smtp_reply smtp_session spawn_report spawn_request
    tcpto todo ucspi
}

fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if given == ["--list"] {
        TARGETS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    }
    let mut broken = 0;
    for (name, run) in TARGETS {
        let mut count = 0;
        for path in given.iter().flat_map(|directory| files(&Path::new(directory).join(name))) {
            let bytes = fs::read(&path).expect("an input");
            count += 1;
            match catch_unwind(|| run(&bytes)) {
                Ok(true) => {}
                Ok(false) => {
                    eprintln!("replay: {}: too short to be an input", path.display());
                    broken += 1;
                }
                Err(_) => {
                    eprintln!("replay: {} breaks {name}", path.display());
                    broken += 1;
                }
            }
        }
        println!("{name}: {count} inputs");
    }
    fs::remove_dir_all(fuzz::scratch()).expect("scratch space");
    std::process::exit(i32::from(broken > 0));
}

/// The files of a directory, in the order of their names; none when there is no such directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a name").path()).collect();
    files.sort();
    files
}
