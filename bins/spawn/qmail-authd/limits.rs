//! limits - how fast passwords may be tried, and how long a refusal is held back
//!
//! Three measures, none of which locks an account:
//! - *Sources*: an address has `FAILURES` failures, and gets one back each `FORGIVE`; without any left it is
//!   refused and no checker asked. How many it has used makes the delay.
//! - *Accounts*: addresses that have not lately succeeded for an account share `CHECKS` checks of it, and get
//!   one back each `RENEW`. Whoever comes above that rate waits. It holds however many addresses are invented.
//! - *Known pairs*: an address that lately succeeded for an account is its own source there: neither what
//!   others try from that address nor what others try at that account is counted against it.
//!
//! Beside it, how many recipients an account may send to in an hour. The front says the number, so it holds
//! against users, not against a front that has been taken over.
//!
//! Nothing here asks for the time or does I/O. Names and passwords are kept as keyed hashes only. When a
//! table is full, the entries that say least go.

use qmail::auth::door::RateRequest;
use qmail::sys::random;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Failures of an address: so many at once, one more each.
const FAILURES: Rate = Rate { size: 10, interval: Duration::from_secs(60) };

/// Checks of an account by addresses that are not known there.
const CHECKS: Rate = Rate { size: 20, interval: Duration::from_secs(10) };

/// How long a refusal is held back, by how many failures the source has used; the last for all above.
const DELAYS: [Duration; 4] =
    [Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8), Duration::from_secs(15)];

/// Checks at one time: a memory-hard hash takes up to 256 MiB.
const CHECKS_AT_ONCE: u32 = 40;

/// How long after a success an address is known.
const KNOWN_FOR: Duration = Duration::from_secs(7 * 86_400);

/// Addresses that one account may have known: a person has some, and one account shall not fill the table.
const KNOWN_PER_ACCOUNT: usize = 16;

/// Entries of the tables; about 200 bytes each.
const SOURCES_MAX: usize = 4096;
const ACCOUNTS_MAX: usize = 4096;
const KNOWN_MAX: usize = 8192;
const SENDERS_MAX: usize = 8192;

/// Recipients are allowed by the hour.
const HOUR: Duration = Duration::from_secs(3600);

/// A number of tokens, of which one comes back each interval.
struct Rate {
    size: u32,
    interval: Duration,
}

/// Tokens taken from a rate, kept as the moment when all will be back.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    full_at: Instant,
}

impl Bucket {
    fn used(&self, rate: &Rate, now: Instant) -> u32 {
        let left = self.full_at.saturating_duration_since(now).as_nanos();
        u32::try_from(left.div_ceil(rate.interval.as_nanos().max(1))).unwrap_or(u32::MAX)
    }

    /// Takes one, into debt if need be, but no deeper than the size once more.
    fn take(&mut self, rate: &Rate, now: Instant) {
        let bottom = now + rate.interval * (rate.size * 2);
        self.full_at = (self.full_at.max(now) + rate.interval).min(bottom);
    }

    fn give_back(&mut self, rate: &Rate) {
        self.full_at = self.full_at.checked_sub(rate.interval).unwrap_or(self.full_at);
    }
}

type Key = [u8; 16];

/// IPv4 as it is, IPv6 by its first 64 bits; one source for all that have neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
    Unknown,
}

impl Source {
    pub fn of(address: Option<IpAddr>) -> Source {
        match address.map(|ip| ip.to_canonical()) {
            Some(IpAddr::V4(ip)) => Source::V4(ip.octets()),
            Some(IpAddr::V6(ip)) => Source::V6(ip.octets().first_chunk().copied().unwrap_or_default()),
            None => Source::Unknown,
        }
    }
}

/// Who tries what from where.
#[derive(Debug, Clone, Copy)]
pub struct Login {
    source: Source,
    account: Key,
    secret: Key,
}

impl Login {
    pub fn is_of_same_account(&self, other: &Login) -> bool {
        self.account == other.account
    }
}

/// What a source has done.
#[derive(Debug, Clone)]
struct Meter {
    failures: Bucket,
    /// Checks under way.
    running: u32,
    /// The last different wrong passwords: a mail program that repeats one of them learns nothing.
    wrong: Vec<Key>,
}

impl Meter {
    fn new(now: Instant) -> Meter {
        Meter { failures: Bucket { full_at: now }, running: 0, wrong: Vec::new() }
    }

    /// A failure counts once.
    fn fail(&mut self, secret: Key, now: Instant) {
        if self.wrong.contains(&secret) {
            return;
        }
        self.failures.take(&FAILURES, now);
        if self.wrong.len() >= FAILURES.size as usize {
            self.wrong.remove(0);
        }
        self.wrong.push(secret);
    }

    fn delay(&self, now: Instant) -> Duration {
        let used = self.failures.used(&FAILURES, now).max(1) as usize;
        DELAYS.get(used - 1).or(DELAYS.last()).copied().unwrap_or_default()
    }
}

/// An address that succeeded for an account.
#[derive(Debug, Clone)]
struct Known {
    until: Instant,
    meter: Meter,
}

/// What is to be done with a login.
#[derive(Debug)]
pub enum Verdict {
    Check(Ticket),
    /// Not now: ask again.
    Wait,
    /// Refuse after this time, without a check.
    Refuse(Duration),
}

/// A check under way.
#[derive(Debug)]
pub struct Ticket {
    login: Login,
    known: bool,
    running: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    Refused,
    /// Trouble of ours.
    Neither,
}

pub struct Limits {
    key: [u8; 32],
    sources: HashMap<Source, Meter>,
    accounts: HashMap<Key, Bucket>,
    known: HashMap<(Key, Source), Known>,
    senders: HashMap<Key, Bucket>,
    running: u32,
}

impl Limits {
    pub fn new() -> Result<Limits, nix::errno::Errno> {
        let mut key = [0; 32];
        random::fill(&mut key)?;
        Ok(Limits {
            key,
            sources: HashMap::new(),
            accounts: HashMap::new(),
            known: HashMap::new(),
            senders: HashMap::new(),
            running: 0,
        })
    }

    /// From the bytes for descriptor 3. Names that many systems take for one are one account.
    pub fn login(&self, fields: &[u8], source: Source) -> Login {
        let mut fields = fields.split(|b| *b == 0);
        let name = fields.next().unwrap_or_default();
        let account = self.account(name);
        Login { source, account, secret: self.hash(name, fields.next().unwrap_or_default()) }
    }

    fn account(&self, name: &[u8]) -> Key {
        let mut folded = name.trim_ascii().to_ascii_lowercase();
        folded.iter_mut().filter(|b| **b == b'%').for_each(|b| *b = b'@');
        self.hash(&folded, b"")
    }

    /// Whether an account may send to so many recipients; if so they are counted. One message with more than an
    /// hour's recipients never may.
    pub fn may_send(&mut self, request: &RateRequest, now: Instant) -> bool {
        let rate = Rate { size: request.hourly, interval: HOUR / request.hourly.max(1) };
        let account = self.account(&request.account);
        if !self.senders.contains_key(&account) {
            make_room(&mut self.senders, SENDERS_MAX, |bucket| bucket.full_at);
        }
        let bucket = self.senders.entry(account).or_insert(Bucket { full_at: now });
        let may = bucket.used(&rate, now).saturating_add(request.recipients) <= rate.size;
        if may {
            bucket.full_at = bucket.full_at.max(now) + rate.interval * request.recipients;
        }
        may
    }

    fn hash(&self, first: &[u8], second: &[u8]) -> Key {
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update(first.len().to_be_bytes());
        hash.update(first);
        hash.update(second);
        hash.finalize().first_chunk().copied().unwrap_or_default()
    }

    /// Whether this login may be checked now.
    pub fn admit(&mut self, login: &Login, now: Instant) -> Verdict {
        let known = self.known.get(&(login.account, login.source)).is_some_and(|known| known.until > now);
        let meter = self.meter(login, known, now);
        let used = meter.failures.used(&FAILURES, now);
        if used >= FAILURES.size {
            return Verdict::Refuse(meter.delay(now));
        }
        // Those under way may all fail.
        if used + meter.running >= FAILURES.size || self.running >= CHECKS_AT_ONCE {
            return Verdict::Wait;
        }
        if !known && !self.take_check(login.account, now) {
            return Verdict::Wait;
        }
        self.meter(login, known, now).running += 1;
        self.running += 1;
        Verdict::Check(Ticket { login: *login, known, running: true })
    }

    /// What counts the failures of a login: its known pair, else its address.
    fn meter(&mut self, login: &Login, known: bool, now: Instant) -> &mut Meter {
        if known {
            let fresh = || Known { until: now + KNOWN_FOR, meter: Meter::new(now) };
            return &mut self.known.entry((login.account, login.source)).or_insert_with(fresh).meter;
        }
        if !self.sources.contains_key(&login.source) {
            make_room(&mut self.sources, SOURCES_MAX, |meter| (meter.running, meter.failures.full_at));
        }
        self.sources.entry(login.source).or_insert_with(|| Meter::new(now))
    }

    fn take_check(&mut self, account: Key, now: Instant) -> bool {
        if !self.accounts.contains_key(&account) {
            make_room(&mut self.accounts, ACCOUNTS_MAX, |bucket| bucket.full_at);
        }
        let bucket = self.accounts.entry(account).or_insert(Bucket { full_at: now });
        let may = bucket.used(&CHECKS, now) < CHECKS.size;
        if may {
            bucket.take(&CHECKS, now);
        }
        may
    }

    /// It has gone on for so long that it is a session and no check: it is in nobody's way any more.
    pub fn release(&mut self, ticket: &mut Ticket) {
        if !std::mem::replace(&mut ticket.running, false) {
            return;
        }
        self.running = self.running.saturating_sub(1);
        let login = &ticket.login;
        let meter = if ticket.known {
            self.known.get_mut(&(login.account, login.source)).map(|known| &mut known.meter)
        } else {
            self.sources.get_mut(&login.source)
        };
        if let Some(meter) = meter {
            meter.running = meter.running.saturating_sub(1);
        }
    }

    /// Counts the end of a check; how long a refusal is to be held back.
    pub fn settle(&mut self, mut ticket: Ticket, outcome: Outcome, now: Instant) -> Duration {
        self.release(&mut ticket);
        let Ticket { login, known, .. } = ticket;
        match outcome {
            Outcome::Accepted => {
                if let Some(bucket) = self.accounts.get_mut(&login.account).filter(|_| !known) {
                    bucket.give_back(&CHECKS);
                }
                self.remember(&login, now);
            }
            Outcome::Refused => self.meter(&login, known, now).fail(login.secret, now),
            Outcome::Neither => {}
        }
        self.meter(&login, known, now).delay(now)
    }

    /// This address succeeded for this account. One whose origin nobody knows may be anybody's.
    fn remember(&mut self, login: &Login, now: Instant) {
        if login.source == Source::Unknown {
            return;
        }
        let pair = (login.account, login.source);
        let until = now + KNOWN_FOR;
        if let Some(known) = self.known.get_mut(&pair) {
            known.until = until;
            return;
        }
        let others = self.known.iter().filter(|((account, _), _)| *account == login.account);
        if others.clone().count() >= KNOWN_PER_ACCOUNT {
            let oldest = others.min_by_key(|(_, known)| known.until).map(|(pair, _)| *pair);
            oldest.and_then(|pair| self.known.remove(&pair));
        }
        make_room(&mut self.known, KNOWN_MAX, |known| known.until);
        self.known.insert(pair, Known { until, meter: Meter::new(now) });
    }
}

/// Takes out the entries that say least, if the table is full: one in sixteen, so that it is not looked
/// through for each.
fn make_room<K: Hash + Eq + Copy, V, O: Ord>(table: &mut HashMap<K, V>, max: usize, says: impl Fn(&V) -> O) {
    if table.len() < max {
        return;
    }
    let mut all: Vec<(O, K)> = table.iter().map(|(key, value)| (says(value), *key)).collect();
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (_, key) in all.iter().take(max / 16) {
        table.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Trial {
        limits: Limits,
        now: Instant,
    }

    impl Trial {
        fn new() -> Trial {
            Trial { limits: Limits::new().unwrap(), now: Instant::now() }
        }

        fn login(&self, name: &str, password: &str, ip: &str) -> Login {
            let fields = format!("{name}\0{password}\0<stamp>\0");
            self.limits.login(fields.as_bytes(), Source::of(ip.parse().ok()))
        }

        fn admit(&mut self, name: &str, password: &str, ip: &str) -> Verdict {
            let login = self.login(name, password, ip);
            self.limits.admit(&login, self.now)
        }

        fn check(&mut self, name: &str, password: &str, ip: &str) -> Ticket {
            match self.admit(name, password, ip) {
                Verdict::Check(ticket) => ticket,
                other => panic!("{other:?}"),
            }
        }

        fn fail(&mut self, name: &str, password: &str, ip: &str) -> u64 {
            let ticket = self.check(name, password, ip);
            self.limits.settle(ticket, Outcome::Refused, self.now).as_secs()
        }

        fn succeed(&mut self, name: &str, ip: &str) {
            let ticket = self.check(name, "right", ip);
            self.limits.settle(ticket, Outcome::Accepted, self.now);
        }
    }

    #[test]
    fn an_account_sends_to_so_many_an_hour() {
        let (mut limits, start) = (Limits::new().unwrap(), Instant::now());
        let ask = |name: &[u8], recipients| RateRequest { recipients, hourly: 100, account: name.to_vec() };
        assert!(limits.may_send(&ask(b"joe", 60), start));
        assert!(!limits.may_send(&ask(b"JOE ", 41), start));
        assert!(limits.may_send(&ask(b"joe", 40), start));
        assert!(!limits.may_send(&ask(b"joe", 1), start));
        assert!(limits.may_send(&ask(b"jim", 100), start));
        assert!(limits.may_send(&ask(b"joe", 1), start + Duration::from_secs(37)));
        assert!(!limits.may_send(&ask(b"joe", 1), start + Duration::from_secs(38)));
        assert!(!limits.may_send(&ask(b"joe", 101), start + HOUR * 3));
        assert!(limits.may_send(&ask(b"joe", 100), start + HOUR * 3));
    }

    #[test]
    fn each_failure_of_an_address_doubles_the_delay_up_to_15_seconds() {
        let mut t = Trial::new();
        let delays: Vec<u64> = (0..6).map(|n| t.fail("joe", &n.to_string(), "192.0.2.1")).collect();
        assert_eq!(delays, [2, 4, 8, 15, 15, 15]);
        assert_eq!(t.fail("joe", "x", "192.0.2.2"), 2);
    }

    #[test]
    fn the_same_wrong_password_counts_once() {
        let mut t = Trial::new();
        let delays: Vec<u64> = (0..30)
            .map(|_| {
                t.now += CHECKS.interval; // the account's own rate is another matter
                t.fail("joe", "old", "192.0.2.1")
            })
            .collect();
        assert_eq!(delays, [2; 30]);
        assert_eq!(t.fail("ann", "old", "192.0.2.1"), 2, "the first has been forgiven by now");
        assert_eq!(t.fail("bob", "old", "192.0.2.1"), 4);
    }

    #[test]
    fn ten_failures_and_the_address_is_refused_unasked_until_one_is_forgiven() {
        let mut t = Trial::new();
        for n in 0..10 {
            t.fail(&format!("user{n}"), "x", "2001:db8::1");
        }
        for ip in ["2001:db8::1", "2001:db8::ffff:1"] {
            assert!(matches!(t.admit("joe", "right", ip), Verdict::Refuse(d) if d.as_secs() == 15));
        }
        assert!(matches!(t.admit("joe", "right", "2001:db8:0:1::1"), Verdict::Check(_)));
        t.now += 59 * SECOND;
        assert!(matches!(t.admit("joe", "right", "2001:db8::1"), Verdict::Refuse(_)));
        t.now += SECOND;
        t.fail("joe", "y", "2001:db8::1");
        assert!(matches!(t.admit("joe", "right", "2001:db8::1"), Verdict::Refuse(_)));
    }

    #[test]
    fn checks_under_way_may_all_fail_and_so_count() {
        let mut t = Trial::new();
        t.fail("joe", "1", "192.0.2.1");
        let mut tickets: Vec<Ticket> =
            (0..9).map(|n| t.check(&format!("user{n}"), "x", "192.0.2.1")).collect();
        assert!(matches!(t.admit("ann", "x", "192.0.2.1"), Verdict::Wait));
        // One turns out to be a session: room for the next.
        t.limits.release(tickets.last_mut().unwrap());
        tickets.push(t.check("ann", "x", "192.0.2.1"));
        for ticket in tickets {
            t.limits.settle(ticket, Outcome::Refused, t.now);
        }
        assert!(matches!(t.admit("bob", "x", "192.0.2.1"), Verdict::Refuse(_)));
        assert_eq!(t.limits.running, 0);
        assert_eq!(t.limits.sources.get(&Source::V4([192, 0, 2, 1])).unwrap().running, 0);
    }

    #[test]
    fn an_account_is_tried_at_a_bounded_rate_however_many_addresses_there_are() {
        let mut t = Trial::new();
        let mut tried = 0;
        // An hour of tries from ever new addresses, with the account's name in all its forms.
        for second in 0..3600u32 {
            t.now += SECOND;
            for n in 0..10 {
                let name = ["joe@x.example", "JOE@x.Example", " joe%x.example"][n as usize % 3];
                let ip = format!("10.{}.{}.{}", second / 256 % 256, second % 256, n);
                if let Verdict::Check(ticket) = t.admit(name, &format!("{second}-{n}"), &ip) {
                    tried += 1;
                    t.limits.settle(ticket, Outcome::Refused, t.now);
                }
            }
        }
        assert!((360..=381).contains(&tried), "{tried}");
        assert!(t.limits.sources.len() <= SOURCES_MAX);
        // It is no lock: others are not touched, and neither is who was here before.
        assert!(matches!(t.admit("ann", "x", "192.0.2.1"), Verdict::Check(_)));
    }

    #[test]
    fn an_address_that_succeeded_is_not_held_up_by_what_others_try() {
        let mut t = Trial::new();
        t.succeed("joe", "192.0.2.1");
        for n in 0..10 {
            t.fail(&format!("user{n}"), "x", "192.0.2.1"); // the same address
        }
        for n in 0..20 {
            t.fail("joe", &n.to_string(), &format!("10.0.0.{n}")); // the same account
        }
        assert!(matches!(t.admit("ann", "right", "192.0.2.1"), Verdict::Refuse(_)));
        assert!(matches!(t.admit("joe", "right", "192.0.2.2"), Verdict::Wait));
        t.succeed("joe", "192.0.2.1");
        // It has its own ten failures, and no more.
        for n in 0..10 {
            t.fail("joe", &n.to_string(), "192.0.2.1");
        }
        assert!(matches!(t.admit("joe", "right", "192.0.2.1"), Verdict::Refuse(_)));
        t.now += KNOWN_FOR + SECOND;
        assert!(matches!(t.admit("joe", "x", "192.0.2.1"), Verdict::Check(ticket) if !ticket.known));
    }

    #[test]
    fn success_costs_the_account_nothing_and_trouble_is_no_failure() {
        let mut t = Trial::new();
        for n in 0..100 {
            t.succeed("joe", &format!("10.0.1.{n}"));
        }
        assert!(t.limits.known.len() <= KNOWN_PER_ACCOUNT);
        for _ in 0..20 {
            let ticket = t.check("ann", "x", "192.0.2.9");
            t.limits.settle(ticket, Outcome::Neither, t.now);
        }
        assert_eq!(t.fail("bob", "x", "192.0.2.9"), 2);
    }

    #[test]
    fn what_has_no_address_is_one_source_and_never_known() {
        let mut t = Trial::new();
        t.succeed("joe", "no address");
        assert!(t.limits.known.is_empty());
        for n in 0..10 {
            t.fail(&format!("user{n}"), "x", "?");
        }
        assert!(matches!(t.admit("joe", "right", ""), Verdict::Refuse(_)));
        assert_eq!(Source::of("::ffff:192.0.2.1".parse().ok()), Source::V4([192, 0, 2, 1]));
    }

    #[test]
    fn all_checks_together_are_bounded() {
        let mut t = Trial::new();
        let mut tickets: Vec<Ticket> =
            (0..40).map(|n| t.check(&format!("user{n}"), "x", &format!("10.0.0.{n}"))).collect();
        assert!(matches!(t.admit("joe", "x", "10.0.1.1"), Verdict::Wait));
        t.limits.settle(tickets.pop().unwrap(), Outcome::Neither, t.now);
        t.check("joe", "x", "10.0.1.1");
    }

    #[test]
    fn a_full_table_forgets_what_says_least() {
        let mut t = Trial::new();
        for n in 0..10 {
            t.fail(&format!("user{n}"), "x", "192.0.2.1");
        }
        for n in 0..20_000u32 {
            let ip = format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255);
            t.fail(&format!("name{n}"), "x", &ip);
        }
        assert!(matches!(t.admit("joe", "x", "192.0.2.1"), Verdict::Refuse(_)));
        assert!(t.limits.sources.len() <= SOURCES_MAX && t.limits.accounts.len() <= ACCOUNTS_MAX);
    }
}
