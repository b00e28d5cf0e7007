//! What follows DATA: from the connection into the queue, in constant memory.

use crate::config::Config;
use crate::reply::{self, Reply};
use crate::session::{Connection, End};
use crate::submission::Completion;
use qmail::date;
use qmail::queue::client::{Message, Outcome};
use qmail::smtp::data::{Decoder, Hops, Step};
use qmail::timed::{Deadline, Sink, Source};
use std::time::{Duration, Instant};

/// A message with so many Received and Delivered lines is going round in circles.
const HOPS_MAX: u32 = 100;

/// Bytes a second, on the average, that a whole message must come with; a read timeout alone would let a client
/// hold us for years with a byte at a time. No line that mail travels on is slower.
const RATE_MIN: u64 = 100;

/// No message takes longer than this: qmail-queue gives up after a day, too.
const MESSAGE_TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A message being received.
pub struct Incoming<'a, M> {
    config: &'a Config,
    submission: M,
    hops: Hops,
    /// Bytes of the client's message, as stored.
    size: u64,
    /// A user's message gets what its header lacks.
    completion: Option<Completion>,
}

impl<'a, M: Message> Incoming<'a, M> {
    /// Begins with the Received line, and what goes with it, which counts neither as hop nor as size.
    pub fn begin(
        config: &'a Config,
        mut submission: M,
        received: &[u8],
        completion: Option<Completion>,
    ) -> Incoming<'a, M> {
        submission.put(received);
        Incoming { config, submission, hops: Hops::default(), size: 0, completion }
    }

    /// Reads up to the lone dot. What is too big or looping is read to its end all the same, so that
    /// the reply is understood as the one to this message.
    pub fn read(&mut self, connection: &mut Connection<impl Source, impl Sink>) -> Result<(), End> {
        let mut decoder = Decoder::default();
        let started = Instant::now();
        let mut received: u64 = 0;
        let mut typed_cr = false;
        loop {
            if connection.input.buffered().is_empty() {
                connection.input.set_overall(deadline(started, self.config.timeout, received));
                let n = connection.more()?;
                received = received.saturating_add(n as u64);
            }
            let available = connection.input.buffered();
            let (used, step) = if connection.typed {
                let line = available.split_inclusive(|b| *b == b'\n').next().unwrap_or_default();
                let fed = decoder.feed(&with_cr(line, typed_cr), |bytes| self.store(bytes));
                typed_cr = line.ends_with(b"\r");
                (line.len(), fed.1)
            } else {
                decoder.feed(available, |bytes| self.store(bytes))
            };
            connection.input.consume(used);
            match step {
                Step::More => {}
                Step::End => return Ok(()),
                Step::BareLf => return Err(End::Fatal(reply::BARE_LF, None)),
            }
        }
    }

    fn store(&mut self, bytes: &[u8]) {
        self.hops.feed(bytes);
        self.size = self.size.saturating_add(bytes.len() as u64);
        if self.is_looping() || self.config.is_too_big(self.size) {
            self.submission.abort();
        } else if let Some(completion) = &mut self.completion {
            completion.feed(bytes, |bytes| self.submission.put(bytes));
        } else {
            self.submission.put(bytes);
        }
    }

    fn is_looping(&self) -> bool {
        self.hops.count() >= HOPS_MAX
    }

    /// Hands over the envelope and says what became of the message; to `warn` what the log should know.
    pub fn finish<'r>(
        mut self,
        sender: &[u8],
        recipients: impl Iterator<Item = &'r [u8]>,
        warn: fn(&str, &[u8]),
    ) -> Reply {
        let looping = self.is_looping();
        if let Some(completion) = self.completion.take() {
            completion.finish(|bytes| self.submission.put(bytes));
        }
        let outcome = self.submission.close_with(sender, recipients);
        match outcome {
            Outcome::Queued { qp } => Reply::made(250, "2.0.0", format!("ok {} qp {qp}", date::now())),
            _ if looping => reply::TOO_MANY_HOPS,
            _ if self.config.is_too_big(self.size) => reply::TOO_BIG,
            Outcome::Permanent(text) => Reply::of_queue(554, "5.3.0", &text),
            Outcome::Temporary(text) => {
                warn("unable to queue message", &text);
                Reply::of_queue(451, "4.3.0", &text)
            }
        }
    }
}

/// When a message that began then, and has brought so many bytes, must have brought more.
fn deadline(started: Instant, grace: Duration, received: u64) -> Deadline {
    let allowed = grace.saturating_add(Duration::from_secs(received / RATE_MIN)).min(MESSAGE_TIME_MAX);
    Deadline::after(allowed.saturating_sub(started.elapsed()))
}

/// The line of a person at a terminal, whose Enter key is no CR LF; `behind_cr` when the piece before ended in CR.
fn with_cr(line: &[u8], behind_cr: bool) -> Vec<u8> {
    match line.strip_suffix(b"\n") {
        Some(text) if !(text.ends_with(b"\r") || text.is_empty() && behind_cr) => [text, b"\r\n"].concat(),
        _ => line.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_must_keep_coming() {
        let grace = Duration::from_secs(1200);
        let begun = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        assert!(!deadline(begun(1000), grace, 0).passed());
        assert!(deadline(begun(1300), grace, 0).passed());
        assert!(!deadline(begun(1300), grace, 100 * RATE_MIN + 10_000).passed());
    }

    #[test]
    fn a_typed_line_gets_the_cr_it_lacks() {
        assert_eq!(with_cr(b"a\n", false), b"a\r\n");
        assert_eq!(with_cr(b"a\r\n", false), b"a\r\n");
        assert_eq!(with_cr(b"a", false), b"a");
        assert_eq!(with_cr(b"a\n", true), b"a\r\n");
        assert_eq!(with_cr(b"\n", true), b"\n");
    }
}
