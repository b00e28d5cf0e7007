//! rcpthosts - the domains that mail from the network is accepted for
//!
//! `control/rcpthosts`, and behind it `control/morercpthosts.cdb` for lists too long to be read at every
//! connection. Without `rcpthosts` everything is accepted, and the database is not looked at.
#![forbid(unsafe_code)]

use crate::cdb;
use crate::control::{self, Control, Set};
use crate::envelope;
use crate::trouble::Trouble;

const DATABASE: &str = "morercpthosts.cdb";

/// Both lists, as they were when they were opened.
#[derive(Debug, Default)]
pub struct RcptHosts {
    hosts: Option<Set>,
    more: Option<cdb::Reader>,
}

impl RcptHosts {
    /// These domains, and no database.
    pub fn of(hosts: Set) -> RcptHosts {
        RcptHosts { hosts: Some(hosts), more: None }
    }

    /// Reads one and opens the other.
    pub fn read(control: &Control) -> Result<RcptHosts, Trouble> {
        let hosts = control.set("rcpthosts")?;
        let more = match &hosts {
            Some(_) => cdb::Reader::open(control.path(DATABASE)).map_err(|e| trouble(e.into()))?,
            None => None,
        };
        Ok(RcptHosts { hosts, more })
    }

    /// Whether mail to this address is accepted: its domain, or a suffix of it that starts at a dot, is listed.
    /// An address without `@` is: it is ours by its form.
    pub fn allow(&self, address: &[u8]) -> Result<bool, Trouble> {
        let (Some(hosts), Some(domain)) = (&self.hosts, envelope::domain(address)) else { return Ok(true) };
        let domain = domain.to_ascii_lowercase();
        let keys = || std::iter::once(domain.as_slice()).chain(control::dot_suffixes(&domain));
        if keys().any(|key| hosts.contains(key)) {
            return Ok(true);
        }
        let Some(more) = &self.more else { return Ok(false) };
        for key in keys() {
            if more.contains(key).map_err(trouble)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn trouble(error: cdb::Error) -> Trouble {
    error.trouble(format!("control/{DATABASE}")).status("4.3.0")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A control directory of its own, removed at the end.
    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let directory = std::env::temp_dir().join(format!("rcpthosts-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            Scratch(directory)
        }

        fn write(&self, name: &str, bytes: &[u8]) {
            std::fs::write(self.0.join(name), bytes).unwrap();
        }

        fn read(&self) -> Result<RcptHosts, Trouble> {
            RcptHosts::read(&Control::at(self.0.to_str().unwrap()))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn database(keys: &[&[u8]]) -> Vec<u8> {
        let mut writer = cdb::Writer::new();
        keys.iter().for_each(|key| writer.add(key, b"").unwrap());
        writer.finish().unwrap()
    }

    #[test]
    fn without_the_file_everything_is_accepted_whatever_the_database_says() {
        let scratch = Scratch::new("missing");
        scratch.write(DATABASE, b"damaged");
        assert!(scratch.read().unwrap().allow(b"a@anywhere").unwrap());
    }

    #[test]
    fn an_exact_name_and_a_dot_suffix_are_looked_up_without_regard_to_case() {
        let scratch = Scratch::new("names");
        scratch.write("rcpthosts", b"Example.com\n.sub.Example.org\n");
        let hosts = scratch.read().unwrap();
        for yes in [b"a@example.COM".as_slice(), b"a@x.sub.example.org", b"a@y.x.SUB.example.org", b"no-at"] {
            assert!(hosts.allow(yes).unwrap(), "{yes:?}");
        }
        for no in [
            b"a@x.example.com".as_slice(),
            b"a@sub.example.org",
            b"a@example.com@evil",
            b"a@",
            b"a@example.com.",
        ] {
            assert!(!hosts.allow(no).unwrap(), "{no:?}");
        }
    }

    #[test]
    fn the_database_adds_to_the_file() {
        let scratch = Scratch::new("more");
        scratch.write("rcpthosts", b"");
        scratch.write(DATABASE, &database(&[b"more.example", b".wild.example"]));
        let hosts = scratch.read().unwrap();
        assert!(hosts.allow(b"a@More.example").unwrap());
        assert!(hosts.allow(b"a@x.wild.example").unwrap());
        assert!(!hosts.allow(b"a@wild.example").unwrap());
    }

    #[test]
    fn a_damaged_database_is_a_trouble_that_names_it() {
        let scratch = Scratch::new("damaged");
        scratch.write("rcpthosts", b"");
        scratch.write(DATABASE, b"damaged");
        let text = scratch.read().unwrap().allow(b"a@b").unwrap_err().text();
        assert_eq!(text, b"unable to read control/morercpthosts.cdb: damaged database (#4.3.0)");
    }
}
