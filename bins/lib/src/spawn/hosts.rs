//! hosts - how many deliveries to one host run at once
//!
//! A host that refuses connections gets fewer of them: half as many each time, and one more for each message it
//! takes, up to the ceiling.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

/// Hosts in trouble that are remembered. Beyond this the others have the ceiling as their limit.
const HOSTS_MAX: usize = 1000;

/// How many there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceilings {
    /// At work or waiting for more, in all.
    pub connections: usize,
    /// At work for one host; usize::MAX is no limit.
    pub host: usize,
}

/// What was learnt of hosts.
pub struct Hosts {
    ceilings: Ceilings,
    /// Limits below the ceiling.
    limits: BTreeMap<Vec<u8>, usize>,
}

impl Hosts {
    pub fn new(ceilings: Ceilings) -> Hosts {
        let at_least_one = Ceilings { connections: ceilings.connections.max(1), host: ceilings.host.max(1) };
        Hosts { ceilings: at_least_one, limits: BTreeMap::new() }
    }

    pub fn ceilings(&self) -> Ceilings {
        self.ceilings
    }

    /// How many may be at work for this host now.
    pub fn limit(&self, host: &[u8]) -> usize {
        self.limits.get(host).copied().unwrap_or(self.ceilings.host)
    }

    /// A delivery there ended, well or not: whether somebody talked to us.
    pub fn learn(&mut self, host: &[u8], well: bool) {
        if self.ceilings.host == usize::MAX {
            return; // no host has a limit
        }
        let limit = self.limit(host);
        let limit = if well { limit.saturating_add(1) } else { (limit / 2).max(1) };
        if limit >= self.ceilings.host {
            self.limits.remove(host);
        } else if let Some(known) = self.limits.get_mut(host) {
            *known = limit;
        } else if self.limits.len() < HOSTS_MAX {
            self.limits.insert(host.to_vec(), limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_refuses_gets_fewer_and_has_them_back_when_it_does_not() {
        let mut hosts = Hosts::new(Ceilings { connections: 100, host: 5 });
        let mut seen = Vec::new();
        for well in [true, false, false, false, true, true, true, true, true] {
            hosts.learn(b"h", well);
            seen.push(hosts.limit(b"h"));
        }
        assert_eq!(seen, [5, 2, 1, 1, 2, 3, 4, 5, 5]);
        assert!(hosts.limits.is_empty());
        assert_eq!(hosts.limit(b"other"), 5);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut hosts = Hosts::new(Ceilings { connections: 0, host: 20 });
        for n in 0..2 * HOSTS_MAX {
            hosts.learn(format!("h{n}").as_bytes(), false);
        }
        assert_eq!(hosts.limits.len(), HOSTS_MAX);
        assert_eq!(hosts.ceilings().connections, 1);
    }
}
