//! The short way: a message with few recipients, for each of whom a slot is free at once, is delivered
//! straight from `todo/N`, which stays its only record until it ends (S4 to S2).
//!
//! What is known here of such a message is memory and nothing else: a crash begins it again. So when it does
//! not end soon it changes its way: `todo` writes info and lists with what is known (S4 to S5).
#![forbid(unsafe_code)]

use crate::cleaner::Task;
use crate::desk::{Desk, SLEEP_SECONDS, SYSTEM_TROUBLE_SECONDS, now};
use qmail::queue::record::Record as Commit;
use qmail::queue::rewrite::Way;
use qmail::queue::{self, Number, schedule};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// More recipients go the long way: a crash would repeat deliveries to all of them.
pub const RECIPIENTS_MAX: usize = 8;

/// A message that has not ended after this time changes its way, for the same reason.
const LATE: Duration = Duration::from_secs(30);

/// Between two tries to change the way.
const PAUSE: Duration = Duration::from_secs(SLEEP_SECONDS);

/// What became of a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Running,
    Deferred,
    /// Delivered, or failed and in `bounce/N`.
    Done,
}

#[derive(Debug, Clone)]
pub struct Recipient {
    pub way: Way,
    /// After rewriting.
    pub address: Vec<u8>,
    pub fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Deliveries run, or the bounce does.
    Going,
    /// Info and lists are being written.
    Changing,
    /// qmail-clean was asked for `todo/N`.
    Ending,
    /// It could not remove it, and will be asked again.
    Refused,
}

/// What is left to do for a message on its short way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// Not now.
    NotYet,
    /// Everybody is done; the sender must hear of somebody.
    Bounce,
    /// Everybody is done, and qmail-clean refused once.
    End,
}

/// A message in flight.
#[derive(Debug, Clone)]
pub struct Message {
    pub sender: Vec<u8>,
    pub pid: u64,
    pub commit: Option<Commit>,
    pub recipients: Vec<Recipient>,
    /// When it was first seen: its birth, for schedules.
    pub birth: u64,
    since: Instant,
    /// Somebody failed for good: there is a `bounce/N`.
    failed: bool,
    phase: Phase,
    /// A change that failed is not tried again before.
    pause_until: Option<Instant>,
    /// SIGALRM came while somebody was deferred: there will be no waiting for the next attempt.
    hurried: bool,
}

impl Message {
    pub fn new(
        sender: Vec<u8>,
        pid: u64,
        commit: Option<Commit>,
        recipients: Vec<(Way, Vec<u8>)>,
    ) -> Message {
        let running = |(way, address)| Recipient { way, address, fate: Fate::Running };
        Message {
            sender,
            pid,
            commit,
            recipients: recipients.into_iter().map(running).collect(),
            birth: now(),
            since: Instant::now(),
            failed: false,
            phase: Phase::Going,
            pause_until: None,
            hurried: false,
        }
    }

    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// When the next attempt is made for those of this way who are left.
    pub fn retry(&self, way: Way, now: u64) -> u64 {
        if self.hurried { now } else { schedule::next_attempt(self.birth, self.birth, way) }
    }

    fn any(&self, fate: Fate) -> bool {
        self.recipients.iter().any(|recipient| recipient.fate == fate)
    }

    fn everybody_done(&self) -> bool {
        self.recipients.iter().all(|recipient| recipient.fate == Fate::Done)
    }

    /// When its way is to be changed; None while there is no reason.
    fn change_at(&self, stopping: bool) -> Option<Instant> {
        if self.phase != Phase::Going {
            return None;
        }
        let at_once = self.any(Fate::Deferred) || (stopping && self.any(Fate::Done));
        let when = if at_once { self.since } else { self.since + LATE };
        Some(self.pause_until.map_or(when, |pause| pause.max(when)))
    }
}

/// The messages on their short way.
#[derive(Default)]
pub struct Short(BTreeMap<Number, Message>);

impl Short {
    pub fn insert(&mut self, number: Number, message: Message) {
        self.0.insert(number, message);
    }

    pub fn get(&self, number: Number) -> Option<&Message> {
        self.0.get(&number)
    }

    pub fn contains(&self, number: Number) -> bool {
        self.0.contains_key(&number)
    }

    /// Its way is being changed: nothing else may happen to it meanwhile.
    pub fn is_changing(&self, number: Number) -> bool {
        self.0.get(&number).is_some_and(|message| message.phase == Phase::Changing)
    }

    /// Notes what became of a recipient.
    pub fn set(&mut self, number: Number, index: usize, fate: Fate) {
        let message = self.0.get_mut(&number);
        if let Some(recipient) = message.and_then(|message| message.recipients.get_mut(index)) {
            recipient.fate = fate;
        }
    }

    /// Notes that `bounce/N` speaks of somebody.
    pub fn set_failed(&mut self, number: Number) {
        if let Some(message) = self.0.get_mut(&number) {
            message.failed = true;
        }
    }

    pub fn outlook(&self, number: Number) -> Outlook {
        match self.0.get(&number) {
            Some(message) if message.phase == Phase::Refused => Outlook::End,
            Some(message) if message.phase == Phase::Going && message.everybody_done() => Outlook::Bounce,
            _ => Outlook::NotYet,
        }
    }

    /// The next message whose way is to be changed now.
    pub fn next_change(&self, now: Instant, stopping: bool) -> Option<Number> {
        let due = |message: &Message| message.change_at(stopping).is_some_and(|when| when <= now);
        self.0.iter().find(|(_, message)| due(message)).map(|(number, _)| *number)
    }

    /// Time until the next change.
    pub fn until_change(&self, now: Instant, stopping: bool) -> Option<Duration> {
        let first = self.0.values().filter_map(|message| message.change_at(stopping)).min();
        first.map(|when| when.saturating_duration_since(now))
    }

    /// Whoever is deferred by now is due as soon as there are lists.
    pub fn hurry(&mut self) {
        for message in self.0.values_mut() {
            message.hurried |= message.any(Fate::Deferred);
        }
    }

    /// Begins a change of way; what is known of the message.
    pub fn change(&mut self, number: Number) -> Option<Message> {
        let message = self.0.get_mut(&number)?;
        message.phase = Phase::Changing;
        Some(message.clone())
    }

    /// The change did not come about: the message is on its short way still.
    pub fn change_failed(&mut self, number: Number, now: Instant) {
        if let Some(message) = self.0.get_mut(&number) {
            message.phase = Phase::Going;
            message.pause_until = Some(now + PAUSE);
        }
    }

    /// It has left the short way.
    pub fn remove(&mut self, number: Number) -> Option<Message> {
        self.0.remove(&number)
    }

    /// Whether nothing would be forgotten if we ended now and more could still be done about it.
    pub fn is_quiet(&self) -> bool {
        self.0.values().all(|message| {
            message.phase == Phase::Refused
                || (message.phase == Phase::Going && !message.any(Fate::Done) && !message.any(Fate::Deferred))
        })
    }

    /// Messages of which somebody is done and nothing on disk says so.
    pub fn forgotten(&self) -> impl Iterator<Item = Number> + '_ {
        self.0.iter().filter(|(_, message)| message.any(Fate::Done)).map(|(number, _)| *number)
    }
}

/// A recipient has been dealt with: perhaps it was the last one.
pub fn settled(desk: &mut Desk, number: Number) {
    let Some(message) = desk.short.get(number) else { return };
    if message.phase != Phase::Going || !message.everybody_done() {
        return;
    }
    if message.failed {
        desk.done.insert(now(), number);
    } else {
        end(desk, number);
    }
}

/// S4 to S2: everybody is done and the sender knows of whoever failed. The answer comes to `ended`.
pub fn end(desk: &mut Desk, number: Number) {
    let Some(message) = desk.short.0.get_mut(&number) else { return };
    message.phase = Phase::Ending;
    desk.cleaner.ask(Task::Ended(number)); // model: T18
}

/// qmail-clean answered. With success the message is in S2, and mess can go.
// model: T19
pub fn ended(desk: &mut Desk, number: Number, done: bool) {
    if done {
        desk.log.line(format!("end msg {number}"));
        desk.short.remove(number);
        desk.cleaner.ask(Task::Delivered(number)); // model: E7
    } else if let Some(message) = desk.short.0.get_mut(&number) {
        message.phase = Phase::Refused;
        desk.done.insert(now() + SYSTEM_TROUBLE_SECONDS, number);
    }
}

/// At our end: whose done recipients will get the message again.
pub fn say_forgotten(desk: &Desk) {
    for number in desk.short.forgotten() {
        let name = queue::todo_path(number);
        desk.log.line(format!("warning: trouble marking {name}; message will be delivered twice!"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(fates: &[Fate]) -> Message {
        let recipients = fates.iter().map(|_| (Way::Local, b"a@b".to_vec())).collect();
        let mut message = Message::new(b"s@h".to_vec(), 1, None, recipients);
        for (recipient, fate) in message.recipients.iter_mut().zip(fates) {
            recipient.fate = *fate;
        }
        message
    }

    fn short(fates: &[Fate]) -> (Short, Instant) {
        let mut short = Short::default();
        let message = message(fates);
        let since = message.since;
        short.insert(7, message);
        (short, since)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_message_changes_its_way_after_thirty_seconds_and_not_before() {
        for fates in [vec![Fate::Running], vec![Fate::Done, Fate::Running], vec![Fate::Done]] {
            let (short, since) = short(&fates);
            assert_eq!(short.next_change(since + LATE - SECOND, false), None);
            assert_eq!(short.until_change(since, false), Some(LATE));
            assert_eq!(short.next_change(since + LATE, false), Some(7));
        }
        assert_eq!(LATE, 30 * SECOND);
    }

    #[test]
    fn a_deferral_changes_the_way_at_once() {
        let (short, since) = short(&[Fate::Running, Fate::Deferred]);
        assert_eq!(short.next_change(since, false), Some(7));
        assert_eq!(short.until_change(since, false), Some(Duration::ZERO));
    }

    #[test]
    fn who_is_deferred_can_be_hurried_and_who_is_not_cannot() {
        for (fate, expected) in [(Fate::Deferred, 5), (Fate::Running, 1000 + 400)] {
            let (mut short, _) = short(&[fate]);
            short.hurry();
            let mut message = short.change(7).unwrap();
            message.birth = 1000;
            assert_eq!(message.retry(Way::Remote, 5), expected);
        }
    }

    #[test]
    fn a_stop_changes_the_way_of_those_with_somebody_done() {
        let (with, since) = short(&[Fate::Running, Fate::Done]);
        assert_eq!(with.next_change(since, true), Some(7));
        assert!(!with.is_quiet());
        let (without, since) = short(&[Fate::Running, Fate::Running]);
        assert_eq!(without.next_change(since, true), None);
        assert!(without.is_quiet());
        assert_eq!(without.forgotten().count(), 0);
        assert_eq!(with.forgotten().collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn a_change_that_failed_is_tried_again_after_a_pause() {
        let (mut short, since) = short(&[Fate::Deferred]);
        assert!(short.change(7).is_some() && short.is_changing(7));
        assert_eq!(short.next_change(since + LATE, false), None);
        assert!(!short.is_quiet());
        short.change_failed(7, since + SECOND);
        assert_eq!(short.next_change(since + PAUSE, true), None);
        assert_eq!(short.next_change(since + PAUSE + SECOND, true), Some(7));
    }

    #[test]
    fn what_is_ending_does_not_change() {
        let (mut short, since) = short(&[Fate::Done]);
        for phase in [Phase::Ending, Phase::Refused] {
            short.0.get_mut(&7).unwrap().phase = phase;
            assert_eq!(short.next_change(since + LATE, true), None);
            assert_eq!(short.is_quiet(), phase == Phase::Refused);
        }
        assert_eq!(short.outlook(7), Outlook::End);
        assert_eq!(short.outlook(8), Outlook::NotYet);
    }

    #[test]
    fn a_bounce_waits_for_everybody() {
        assert_eq!(short(&[Fate::Done, Fate::Running]).0.outlook(7), Outlook::NotYet);
        assert_eq!(short(&[Fate::Done, Fate::Done]).0.outlook(7), Outlook::Bounce);
    }
}
