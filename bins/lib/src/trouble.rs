//! trouble - the one error type: what went wrong, for a person, and what to exit with
//!
//! A text names the thing in trouble first and the reason last: "unable to open control/me: access denied".
#![forbid(unsafe_code)]

use crate::exits;
use nix::errno::Errno;

/// Something that ends a program or a step of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    exit: i32,
    text: Vec<u8>,
    status: &'static str,
    usage: bool,
}

impl Trouble {
    /// Trying again later may help (exit 111).
    pub fn temporary(text: impl Into<Vec<u8>>) -> Trouble {
        Trouble::exit(exits::TEMPORARY, text)
    }

    /// Trying again will not help (exit 100).
    pub fn permanent(text: impl Into<Vec<u8>>) -> Trouble {
        Trouble::exit(exits::PERMANENT, text)
    }

    /// An exit code that is an interface of its own; an empty text is not printed.
    pub fn exit(code: i32, text: impl Into<Vec<u8>>) -> Trouble {
        Trouble { exit: code, text: text.into(), status: "", usage: false }
    }

    /// The command line is wrong (exit 100); the program's usage line follows the text.
    pub fn usage(text: impl Into<Vec<u8>>) -> Trouble {
        Trouble { exit: exits::PERMANENT, text: text.into(), status: "", usage: true }
    }

    /// "unable to DO NAME: REASON", temporary: `Trouble::unable("open", b"control/me", errno)`.
    pub fn unable(action: &str, name: impl AsRef<[u8]>, errno: Errno) -> Trouble {
        let mut text = b"unable to ".to_vec();
        text.extend_from_slice(action.as_bytes());
        text.push(b' ');
        text.extend_from_slice(name.as_ref());
        Trouble::temporary(text).because(errno)
    }

    /// Appends ": REASON" to the text.
    pub fn because(mut self, errno: Errno) -> Trouble {
        self.text.extend_from_slice(b": ");
        self.text.extend_from_slice(wording(errno).as_bytes());
        self
    }

    /// Adds an enhanced status code such as "4.3.0", printed as " (#4.3.0)".
    pub fn status(mut self, status: &'static str) -> Trouble {
        self.status = status;
        self
    }

    /// The same trouble with another exit code.
    pub fn with_exit(mut self, code: i32) -> Trouble {
        self.exit = code;
        self
    }

    pub fn exit_code(&self) -> i32 {
        self.exit
    }

    pub fn is_usage(&self) -> bool {
        self.usage
    }

    /// The text for a person, with the enhanced status if there is one.
    pub fn text(&self) -> Vec<u8> {
        let mut text = self.text.clone();
        if !self.status.is_empty() {
            text.extend_from_slice(b" (#");
            text.extend_from_slice(self.status.as_bytes());
            text.push(b')');
        }
        text
    }
}

/// The reason in our own words.
pub fn wording(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT => "file does not exist",
        Errno::EACCES => "access denied",
        Errno::EPERM => "permission denied",
        Errno::ENOSPC => "out of disk space",
        Errno::EDQUOT => "disk quota exceeded",
        Errno::ETIMEDOUT => "timed out",
        Errno::EEXIST => "file already exists",
        Errno::ENOTDIR => "not a directory",
        Errno::EISDIR => "is a directory",
        Errno::ENOTEMPTY => "directory not empty",
        Errno::ELOOP => "too many symbolic links",
        Errno::ENAMETOOLONG => "file name too long",
        Errno::EROFS => "read-only file system",
        Errno::EXDEV => "cross-device link",
        Errno::EIO => "input/output error",
        Errno::ENOMEM => "out of memory",
        Errno::EMFILE => "too many open files in this process",
        Errno::ENFILE => "too many open files in this system",
        Errno::EFBIG => "file too big",
        Errno::EPIPE => "broken pipe",
        Errno::EINVAL => "invalid argument",
        Errno::EBADF => "descriptor not open",
        Errno::ENOEXEC => "exec format error",
        Errno::EAGAIN => "temporarily unavailable",
        Errno::EINTR => "interrupted",
        Errno::ECONNREFUSED => "connection refused",
        Errno::ECONNRESET => "connection reset",
        Errno::ECONNABORTED => "connection aborted",
        Errno::ENETUNREACH => "network unreachable",
        Errno::EHOSTUNREACH => "no route to host",
        Errno::EADDRINUSE => "address already in use",
        Errno::EADDRNOTAVAIL => "address not available",
        Errno::ENXIO => "device not configured",
        Errno::ESRCH => "no such process",
        Errno::ECHILD => "no child processes",
        Errno::ENOLCK => "no locks available",
        Errno::ESTALE => "stale file handle",
        other => other.desc(),
    }
}

/// Whether trying again may help (the specification's list of temporary errno).
pub fn is_temporary(errno: Errno) -> bool {
    use Errno::*;
    matches!(
        errno,
        EINTR
            | ENOMEM
            | ETXTBSY
            | EIO
            | ETIMEDOUT
            | EAGAIN
            | EDEADLK
            | EBUSY
            | ENFILE
            | EMFILE
            | EFBIG
            | ENOSPC
            | ENETDOWN
            | ENETUNREACH
            | ENETRESET
            | ECONNABORTED
            | ECONNRESET
            | ENOBUFS
            | ETOOMANYREFS
            | ECONNREFUSED
            | EHOSTDOWN
            | EHOSTUNREACH
            | EUSERS
            | EDQUOT
            | ESTALE
            | ENOLCK
    )
}

/// The errno of an error of std; what has none counts as EIO.
pub fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_names_the_thing_and_then_the_reason() {
        let trouble = Trouble::unable("open", "control/me", Errno::EACCES).status("4.3.0");
        assert_eq!(trouble.text(), b"unable to open control/me: access denied (#4.3.0)");
        assert_eq!(trouble.exit_code(), 111);
    }

    #[test]
    fn doubt_is_temporary_but_a_missing_file_is_not() {
        assert!(is_temporary(Errno::EIO) && is_temporary(Errno::ENOSPC));
        assert!(!is_temporary(Errno::ENOENT) && !is_temporary(Errno::EACCES));
    }
}
