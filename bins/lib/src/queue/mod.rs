//! queue - the queue on disk and its doors (doc/internals.md has states, invariants and commit points)
//!
//! Message number N is the inode number of `mess/S/N`, S = N mod 23. All paths are relative to `queue/`.

pub mod accept;
pub mod age;
pub mod bounce;
pub mod client;
pub mod door;
pub mod info;
pub mod launcher;
pub mod list;
pub mod lock;
pub mod origin;
pub mod record;
pub mod report;
pub mod rewrite;
pub mod schedule;
pub mod todo;

/// Subdirectories of mess, info, local and remote.
pub const SPLIT: u64 = 23;

/// Stands while qmail-fix -r moves messages; qmail-send does not start beside it.
pub const FIXING: &str = "lock/fixing";

/// A message's number.
pub type Number = u64;

/// `mess/S/N`; the directory is one of the split ones.
pub fn split_path(directory: &str, number: Number) -> String {
    format!("{directory}/{}/{number}", number % SPLIT)
}

/// `S/N`: how qmail-send names a message to the spawners.
pub fn message_id(number: Number) -> String {
    format!("{}/{number}", number % SPLIT)
}

pub fn mess(number: Number) -> String {
    split_path("mess", number)
}

pub fn info(number: Number) -> String {
    split_path("info", number)
}

pub fn intd(number: Number) -> String {
    format!("intd/{number}")
}

pub fn todo_path(number: Number) -> String {
    format!("todo/{number}")
}

pub fn bounce_path(number: Number) -> String {
    format!("bounce/{number}")
}

/// The message number that a file name in the queue stands for: purely decimal, no leading zero.
/// Other names are not the queue's and are left alone.
pub fn number(name: &[u8]) -> Option<Number> {
    if name.len() > 1 && name.starts_with(b"0") {
        return None;
    }
    crate::decimal::strict(name)
}

/// What qmail-send asks qmail-clean to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// `foop/N`: all that is left of a message.
    Message(Number),
    /// `todo/N`: its envelope.
    Todo(Number),
}

impl Removal {
    /// A request without its NUL. Nothing of it reaches a path except a number.
    pub fn parse(request: &[u8]) -> Option<Removal> {
        match request.split_at_checked(5)? {
            (b"foop/", name) => number(name).map(Removal::Message),
            (b"todo/", name) => number(name).map(Removal::Todo),
            _ => None,
        }
    }

    pub fn request(self) -> String {
        match self {
            Removal::Message(number) => format!("foop/{number}"),
            Removal::Todo(number) => format!("todo/{number}"),
        }
    }
}

/// Wakes qmail-send: one byte into the fifo `lock/trigger`. Every failure is ignored, because
/// qmail-send looks by itself from time to time.
pub fn pull_trigger() {
    if let Ok(trigger) = crate::fd::open_write("lock/trigger") {
        let _ = nix::unistd::write(&trigger, b"\0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_by_23() {
        assert_eq!(mess(457), "mess/20/457");
        assert_eq!(message_id(457), "20/457");
    }

    #[test]
    fn a_removal_names_a_number_and_nothing_else() {
        assert_eq!(Removal::parse(b"foop/457"), Some(Removal::Message(457)));
        assert_eq!(Removal::parse(b"todo/457"), Some(Removal::Todo(457)));
        for other in [b"".as_slice(), b"foop/", b"foop", b"todo/0457", b"todo/../x", b"mess/457", b"todo/4 "]
        {
            assert_eq!(Removal::parse(other), None);
        }
    }

    #[test]
    fn only_plain_decimal_names_are_numbers() {
        assert_eq!(number(b"457"), Some(457));
        for other in [b"".as_slice(), b"0457", b"457x", b"-1", b"99999999999999999999", b"."] {
            assert_eq!(number(other), None);
        }
    }
}
