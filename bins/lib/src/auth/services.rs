//! services - the list of what may be run for a login, as root wrote it: control/authprograms
//!
//! A line a service: `NAME:CHECKER [ARGUMENT ...] PROGRAM [ARGUMENT ...]`, words separated by spaces or tabs.
#![forbid(unsafe_code)]

use crate::control;

/// What there is without the file.
pub const DEFAULT: &[u8] = b"pop3:checkpassword qmail-pop3d Maildir\ntrue:checkpassword true\n";

/// A command line under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: Vec<u8>,
    pub words: Vec<Vec<u8>>,
}

/// All services of the file; the error is the first line that is none.
pub fn parse(text: &[u8]) -> Result<Vec<Service>, Vec<u8>> {
    control::entries(text).into_iter().map(|line| service(&line).ok_or(line)).collect()
}

fn service(line: &[u8]) -> Option<Service> {
    let at = memchr::memchr(b':', line)?;
    let (name, command) = line.split_at(at);
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
    let words: Vec<Vec<u8>> = command
        .get(1..)?
        .split(|b| matches!(b, b' ' | b'\t'))
        .filter(|word| !word.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    // A checker without a program behind it would let nobody in.
    (!name.is_empty() && name.iter().all(is_name) && words.len() >= 2)
        .then(|| Service { name: name.to_vec(), words })
}

/// The first service that one word names, or whose command line the words are.
pub fn select<'a>(services: &'a [Service], words: &[Vec<u8>]) -> Option<&'a Service> {
    services.iter().find(|service| service.words == words || matches!(words, [name] if *name == service.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<Vec<u8>> {
        line.split(' ').map(|w| w.as_bytes().to_vec()).collect()
    }

    #[test]
    fn a_service_is_found_by_its_name_or_its_whole_command_line() {
        let list = parse(b"# c\n pop3:x y\n").unwrap_err();
        assert_eq!(list, b" pop3:x y");
        let list =
            parse(b"pop3:check \t qmail-pop3d  Maildir \n#\n\ntrue:check true\npop3:other x\n").unwrap();
        let first = Service { name: b"pop3".to_vec(), words: words("check qmail-pop3d Maildir") };
        assert_eq!(select(&list, &words("pop3")), Some(&first));
        assert_eq!(select(&list, &words("check qmail-pop3d Maildir")), Some(&first));
        for wrong in
            ["check", "check qmail-pop3d", "check qmail-pop3d Maildir x", "pop3 x", "", "check true "]
        {
            assert_eq!(select(&list, &words(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn a_line_that_is_no_service_is_named() {
        for bad in ["x", ":check true", "a b:check true", "pop3:", "pop3:check", "pop3 check true"] {
            assert_eq!(parse(format!("a:b c\n{bad}\n").as_bytes()), Err(bad.as_bytes().to_vec()));
        }
    }

    #[test]
    fn the_default_is_readable() {
        assert_eq!(parse(DEFAULT).unwrap().len(), 2);
    }
}
