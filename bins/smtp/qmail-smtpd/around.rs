//! What the conversation asks of the process around it beside the queue: checks, randomness, time, TLS, the log.

use qmail::sasl::server::Fields;
pub use qmail::ucspitls::Facts;
use std::time::Duration;

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// For SCRAM with the server's signature; and whose login it was, where the checker has a word for that.
    Accepted {
        signature: Vec<u8>,
        account: Vec<u8>,
    },
    Refused,
    /// Trouble of ours.
    Temporary,
}

pub trait Around {
    /// Random text, printable and without a comma.
    fn unique(&mut self) -> Option<Vec<u8>>;

    /// Has a login checked.
    fn check(&mut self, fields: &Fields, facts: &Facts) -> Verdict;

    /// Whether who checks tells the log of refusals by itself.
    fn tells_refusals(&self) -> bool;

    /// Whether an account may send to so many recipients, of so many an hour; None where nobody counts.
    fn may_send(&mut self, account: &[u8], recipients: u32, hourly: u32) -> Option<bool>;

    /// After a refusal: whoever guesses shall wait. Nothing where the check itself was held back.
    fn pause(&mut self, time: Duration);

    /// What is known of the TLS session that was there before us.
    fn facts(&self) -> Facts;

    /// TLS may be begun.
    fn offers_tls(&self) -> bool;

    /// Begins it; None when that failed, and there is nobody to talk to any more.
    fn start_tls(&mut self) -> Option<Facts>;

    /// A line for the log.
    fn log(&mut self, line: &[u8]);
}

/// Nothing of all that: a conversation without logins and TLS.
pub struct Alone;

impl Around for Alone {
    fn unique(&mut self) -> Option<Vec<u8>> {
        None
    }

    fn check(&mut self, _: &Fields, _: &Facts) -> Verdict {
        Verdict::Temporary
    }

    fn tells_refusals(&self) -> bool {
        false
    }

    fn may_send(&mut self, _: &[u8], _: u32, _: u32) -> Option<bool> {
        None
    }

    fn pause(&mut self, _: Duration) {}

    fn facts(&self) -> Facts {
        Facts::default()
    }

    fn offers_tls(&self) -> bool {
        false
    }

    fn start_tls(&mut self) -> Option<Facts> {
        None
    }

    fn log(&mut self, _: &[u8]) {}
}
