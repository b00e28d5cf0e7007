//! A pass over one recipient list: who is not done yet, in the order of the list.
//!
//! Where recipients may travel together a pass reads ahead and collects them by host, so that those at one
//! host leave in one burst wherever they stand in the list.
#![forbid(unsafe_code)]

use nix::errno::Errno;
use qmail::envelope;
use qmail::queue::Number;
use qmail::queue::list::{Entries, Spot, Trouble};
use qmail::spawn::{TOGETHER_BYTES, TOGETHER_MAX};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;

/// Records read in one turn.
const RECORDS_A_TURN: usize = 200;

/// Recipients that a pass knows of before it begins with the first: some hundred bytes for each, and
/// enough to find a hundred at each of a hundred hosts.
const AHEAD_MAX: usize = 10_000;

/// Bytes of their addresses.
const AHEAD_BYTES: usize = 1024 * 1024;

/// A recipient not done yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    pub spot: Spot,
    pub address: Vec<u8>,
}

/// Why a pass over a list ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndOfPass {
    Complete,
    Trouble(&'static str),
    Cut,
}

pub struct Pass {
    pub number: Number,
    list: Entries,
    together: bool,
    ahead: Ahead,
    ended: Option<EndOfPass>,
}

impl Pass {
    pub fn new(number: Number, list: OwnedFd, together: bool) -> Result<Pass, Errno> {
        let list = Entries::open(list)?;
        Ok(Pass { number, list, together, ahead: Ahead::default(), ended: None })
    }

    /// Reads on, one turn's worth. True when as much is known as will be before somebody is taken.
    pub fn read_on(&mut self) -> bool {
        for _ in 0..RECORDS_A_TURN {
            if self.ended.is_some() || self.ahead.is_full(self.together) {
                return true;
            }
            self.ended = match self.list.next_entry() {
                Ok(Some(entry)) => {
                    if !entry.done {
                        self.ahead.put(Recipient { spot: entry.spot, address: entry.address });
                    }
                    None
                }
                Ok(None) => Some(EndOfPass::Complete),
                Err(Trouble::Letter) => Some(EndOfPass::Trouble("unknown record type in")),
                Err(Trouble::Reading) => Some(EndOfPass::Trouble("trouble reading")),
            };
        }
        self.ended.is_some() || self.ahead.is_full(self.together)
    }

    /// How many could leave in one burst.
    pub fn mates(&self) -> usize {
        if self.together { self.ahead.mates() } else { self.ahead.count.min(1) }
    }

    /// The next ones, all at one host, at most so many.
    pub fn take(&mut self, room: usize) -> Vec<Recipient> {
        self.ahead.take(if self.together { room.min(TOGETHER_MAX) } else { room.min(1) })
    }

    /// Why it is over; None while there is somebody left.
    pub fn end(&self) -> Option<EndOfPass> {
        self.ended.clone().filter(|_| self.ahead.count == 0)
    }
}

/// Recipients by host; the host that was met first is the next one.
#[derive(Default)]
struct Ahead {
    order: VecDeque<Vec<u8>>,
    hosts: BTreeMap<Vec<u8>, VecDeque<Recipient>>,
    count: usize,
    bytes: usize,
}

impl Ahead {
    fn is_full(&self, together: bool) -> bool {
        self.count >= if together { AHEAD_MAX } else { 1 } || self.bytes >= AHEAD_BYTES
    }

    fn put(&mut self, recipient: Recipient) {
        self.count += 1;
        self.bytes += recipient.address.len();
        let host = host(&recipient.address);
        match self.hosts.get_mut(&host) {
            Some(mates) => mates.push_back(recipient),
            None => {
                self.order.push_back(host.clone());
                self.hosts.insert(host, VecDeque::from([recipient]));
            }
        }
    }

    fn mates(&self) -> usize {
        let first = self.order.front().and_then(|host| self.hosts.get(host));
        first.map_or(0, |mates| mates.len().min(TOGETHER_MAX))
    }

    fn take(&mut self, room: usize) -> Vec<Recipient> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        let Some(host) = self.order.front() else { return taken };
        let Some(mates) = self.hosts.get_mut(host) else { return taken };
        while taken.len() < room {
            let Some(next) = mates.front() else { break };
            if !taken.is_empty() && bytes + next.address.len() > TOGETHER_BYTES {
                break;
            }
            bytes += next.address.len();
            taken.extend(mates.pop_front());
        }
        let emptied = mates.is_empty();
        if emptied && let Some(host) = self.order.pop_front() {
            self.hosts.remove(&host);
        }
        self.count = self.count.saturating_sub(taken.len());
        self.bytes = self.bytes.saturating_sub(bytes);
        taken
    }
}

/// What decides whether two recipients can travel together.
pub fn host(address: &[u8]) -> Vec<u8> {
    envelope::domain(address).unwrap_or_default().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use qmail::fd;

    fn pass(list: &[u8], together: bool) -> Pass {
        let name = format!("pass-{:?}-{}", std::thread::current().id(), std::process::id());
        let name = std::env::temp_dir().join(name);
        std::fs::write(&name, list).unwrap();
        let file = fd::open_read(name.to_str().unwrap()).unwrap();
        std::fs::remove_file(name).unwrap();
        Pass::new(7, file, together).unwrap()
    }

    fn all(mut pass: Pass, room: usize) -> (Vec<Vec<String>>, EndOfPass) {
        let mut bursts = Vec::new();
        loop {
            while !pass.read_on() {}
            if let Some(end) = pass.end() {
                return (bursts, end);
            }
            let burst = pass.take(room);
            assert!(!burst.is_empty() && burst.len() <= room.min(TOGETHER_MAX));
            bursts.push(burst.iter().map(|r| String::from_utf8_lossy(&r.address).into_owned()).collect());
        }
    }

    const LIST: &[u8] = b"Ta@x\0Tb@y\0Dc@x\0Td@X\0Te@z\0Tf@y\0";

    #[test]
    fn those_at_one_host_leave_in_one_burst_wherever_they_stand() {
        let (bursts, end) = all(pass(LIST, true), 100);
        assert_eq!(bursts, [vec!["a@x", "d@X"], vec!["b@y", "f@y"], vec!["e@z"]]);
        assert_eq!(end, EndOfPass::Complete);
    }

    #[test]
    fn little_room_makes_small_bursts() {
        let (bursts, _) = all(pass(LIST, true), 1);
        assert_eq!(bursts.concat(), ["a@x", "d@X", "b@y", "f@y", "e@z"]);
    }

    #[test]
    fn one_by_one_the_order_is_that_of_the_list() {
        let (bursts, _) = all(pass(LIST, false), 100);
        assert_eq!(bursts, [["a@x"], ["b@y"], ["d@X"], ["e@z"], ["f@y"]]);
    }

    #[test]
    fn offsets_point_at_the_records() {
        let mut pass = pass(LIST, true);
        while !pass.read_on() {}
        let offsets: Vec<u64> = pass.take(9).iter().map(|r| r.spot.record).collect();
        assert_eq!(offsets, [0, 15]);
    }

    #[test]
    fn what_stands_before_a_broken_record_is_delivered_first() {
        for (tail, why) in [(b"Xq\0".as_slice(), "unknown record type in"), (b"Tq", "trouble reading")] {
            let (bursts, end) = all(pass(&[LIST, tail].concat(), true), 100);
            assert_eq!(bursts.concat().len(), 5);
            assert_eq!(end, EndOfPass::Trouble(why));
        }
    }

    #[test]
    fn a_burst_is_bounded_in_number_and_bytes() {
        let many: Vec<u8> = (0..250).flat_map(|i| format!("Tr{i}@x\0").into_bytes()).collect();
        let sizes: Vec<usize> = all(pass(&many, true), 255).0.iter().map(Vec::len).collect();
        assert_eq!(sizes, [100, 100, 50]);
        let long: Vec<u8> =
            (0..4).flat_map(|_| [b"T", vec![b'l'; 15_000].as_slice(), b"@x\0"].concat()).collect();
        let sizes: Vec<usize> = all(pass(&long, true), 255).0.iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 2]);
    }
}
