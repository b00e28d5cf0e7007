//! What every target is made of: a body that judges one input, run by libFuzzer, by the test of the seeds
//! (replay.rs), or alone over files.

pub mod dialogue;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use arbitrary;
#[cfg(fuzzing)]
pub use libfuzzer_sys;

/// Defines a target: `fuzz_target!(|input: TYPE| { … })`, where a failed assertion is a finding. TYPE is what
/// `arbitrary` can make of bytes; of `&[u8]` it is the input as it is.
#[macro_export]
macro_rules! fuzz_target {
    (|$input:ident: $type:ty| $body:block) => {
        fn judge($input: $type) $body

        /// Judges one input; false when it is too short to be one.
        pub fn run(bytes: &[u8]) -> bool {
            let input = $crate::arbitrary::Unstructured::new(bytes);
            let input = <$type as $crate::arbitrary::Arbitrary>::arbitrary_take_rest(input);
            input.map(judge).is_ok()
        }

        #[cfg(fuzzing)]
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| -> $crate::libfuzzer_sys::Corpus {
            if run(bytes) { $crate::libfuzzer_sys::Corpus::Keep } else { $crate::libfuzzer_sys::Corpus::Reject }
        });

        #[cfg(not(fuzzing))]
        #[allow(dead_code)] // in replay.rs a target is a module
        pub fn main() {
            $crate::judge_arguments(run);
        }
    };
}

/// Judges the files named as arguments, without libFuzzer: what an artifact does can be looked at in a debugger.
pub fn judge_arguments(run: fn(&[u8]) -> bool) {
    for path in std::env::args().skip(1) {
        let bytes = std::fs::read(&path).expect("a file");
        println!("{path}: {}", if run(&bytes) { "judged" } else { "too short" });
    }
}

/// A directory of this process, made when it is first asked for: in memory where that is possible, so that no disk is
/// waited for. libFuzzer ends the process without a word: `scripts/fuzz` removes those of its children.
pub fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let directory = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let directory = directory.join(format!("fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("scratch space");
        directory
    })
}
