//! environ - the environment, as bytes
#![forbid(unsafe_code)]

use crate::decimal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::OnceLock;

/// What stands in the place of the environment this process was started with.
static REPLACED: OnceLock<Environ> = OnceLock::new();

/// From now on, and once, this is the environment of the process.
pub fn replace(environ: Environ) {
    let _ = REPLACED.set(environ);
}

/// The value of a variable; None when it is not set (set and empty is `Some("")`).
pub fn get(name: &str) -> Option<Vec<u8>> {
    match REPLACED.get() {
        Some(environ) => environ.get(name.as_bytes()).map(<[u8]>::to_vec),
        None => std::env::var_os(name).map(OsStringExt::into_vec),
    }
}

/// The first of `names` that is set.
pub fn first(names: &[&str]) -> Option<Vec<u8>> {
    names.iter().find_map(|name| get(name))
}

/// A variable read as a prefix number.
pub fn number(name: &str) -> Option<u64> {
    get(name).and_then(|v| decimal::prefix(&v))
}

/// An environment being prepared for a child. Later settings win; order of first appearance is kept.
#[derive(Clone, Debug, Default)]
pub struct Environ {
    entries: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Environ {
    /// Nothing at all.
    pub fn empty() -> Environ {
        Environ::default()
    }

    /// A copy of our own.
    pub fn inherited() -> Environ {
        if let Some(environ) = REPLACED.get() {
            return environ.clone();
        }
        let entries = std::env::vars_os().map(|(k, v)| (k.as_bytes().to_vec(), v.into_vec())).collect();
        Environ { entries }
    }

    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.entries.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_slice())
    }

    /// Sets a variable. A NUL ends the value there: the system could not carry more.
    pub fn set(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (name.as_ref(), value.as_ref());
        let value = value.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        match self.entries.iter_mut().find(|(k, _)| k == name) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((name.to_vec(), value)),
        }
    }

    pub fn unset(&mut self, name: impl AsRef<[u8]>) {
        self.entries.retain(|(k, _)| k != name.as_ref());
    }

    /// `NAME=value` strings for exec.
    pub fn strings(&self) -> Vec<Vec<u8>> {
        self.entries.iter().map(|(k, v)| [k.as_slice(), b"=", v.as_slice()].concat()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_settings_win_and_unset_removes() {
        let mut e = Environ::empty();
        e.set("A", "1");
        e.set("B", "2\x003");
        e.set("A", "4");
        assert_eq!(e.strings(), [b"A=4".to_vec(), b"B=2".to_vec()]);
        e.unset("A");
        assert_eq!(e.get(b"A"), None);
    }
}
