//! The log on fd 2. A line is one write, so that lines of several children do not mix.

use crate::options::Verbosity;
use qmail::fd;

#[derive(Clone, Copy)]
pub struct Log {
    program: &'static str,
    verbosity: Verbosity,
}

impl Log {
    pub fn new(program: &'static str, verbosity: Verbosity) -> Log {
        Log { program, verbosity }
    }

    /// A line of -v.
    pub fn status(&self, text: impl AsRef<[u8]>) {
        self.line(Verbosity::Status, &[text.as_ref()]);
    }

    /// A connection was accepted and is given up.
    pub fn drop(&self, text: impl AsRef<[u8]>) {
        self.line(Verbosity::Errors, &[b"warning: dropping connection, ", text.as_ref()]);
    }

    pub fn warning(&self, text: impl AsRef<[u8]>) {
        self.line(Verbosity::Errors, &[b"warning: ", text.as_ref()]);
    }

    fn line(&self, from: Verbosity, parts: &[&[u8]]) {
        if self.verbosity >= from {
            // A log nobody reads is no reason to turn connections away.
            let line = [self.program.as_bytes(), b": ", parts.concat().as_slice(), b"\n"].concat();
            let _ = fd::write_all(fd::ERR, &line);
        }
    }
}
