//! Submission (RFC 6409): mail that a user of ours begins. Who may write as whom, and a header that is whole.

use qmail::control::Control;
use qmail::date;
use qmail::envelope;
use qmail::sasl::hex;
use qmail::table::Table;
use qmail::trouble::Trouble;

/// Recipients an hour and account, when control/submissionrate does not say otherwise: more than a person writes
/// to, and so few that a stolen password is no use to who sells lists.
const HOURLY: u64 = 1000;

/// A field name that is longer is none (RFC 5322 has lines of 998, people 30).
const NAME_MAX: usize = 76;

const SENDERS: &str = "submissionsenders";
const SENDERS_INDEX: &str = "submissionsenders.cdb";

/// What holds for mail of users.
#[derive(Debug)]
pub struct Submission {
    /// control/submissionsenders, or its index: account to addresses, `@domain`s or `*`.
    senders: Table,
    /// Domains of which an account without one is: control/locals, or me.
    domains: Vec<Vec<u8>>,
    /// Right side of a Message-ID that we make.
    host: Vec<u8>,
    pub hourly: u32,
    /// The administrator has said so: where nobody counts, nothing is sent.
    pub is_demanded: bool,
}

impl Submission {
    pub fn read(control: &Control) -> Result<Submission, Trouble> {
        let me = control.me()?.unwrap_or_default();
        let domains = control.list("locals")?.unwrap_or_else(|| vec![me.clone()]);
        let is_demanded = control.line("submissionrate")?.is_some();
        let hourly = control.int("submissionrate", HOURLY)?;
        Ok(Submission {
            senders: Table::read(control, SENDERS, SENDERS_INDEX)?,
            domains,
            host: control.line_or_me("idhost")?.unwrap_or(me),
            hourly: u32::try_from(hourly).unwrap_or(u32::MAX),
            is_demanded,
        })
    }

    /// Whether control/submissionsenders has an index that is of no use.
    pub fn is_stale(&self) -> bool {
        self.senders.is_stale
    }

    /// Whether this account may write as this sender: as itself, as its extensions that are no other account of
    /// control/submissionsenders, as nobody (what asks for no answer), and as what control/submissionsenders says.
    pub fn may_write_as(&self, account: &[u8], sender: &[u8]) -> Result<bool, Trouble> {
        let (account, sender) = (account.to_ascii_lowercase(), sender.to_ascii_lowercase());
        if sender.is_empty() || account == sender {
            return Ok(true);
        }
        let listed = self.senders.get(&account)?.unwrap_or_default();
        let mut words = listed.split(|b| matches!(b, b' ' | b'\t')).filter(|word| !word.is_empty());
        let Some((local, domain)) = envelope::split(&sender) else { return Ok(false) };
        if words.any(|word| match word {
            b"*" => true,
            [b'@', rest @ ..] => rest.eq_ignore_ascii_case(domain),
            address => address.eq_ignore_ascii_case(&sender),
        }) {
            return Ok(true);
        }
        let (name, is_its) = match envelope::split(&account) {
            Some((name, of)) => (name, of == domain),
            None => (account.as_slice(), self.is_ours(domain)),
        };
        if !is_its || !local.starts_with(name) {
            return Ok(false);
        }
        match local.get(name.len()) {
            None => Ok(true),
            Some(b'-') => Ok(!self.is_anothers(name.len() + 1, local, domain)?),
            Some(_) => Ok(false),
        }
    }

    fn is_ours(&self, domain: &[u8]) -> bool {
        self.domains.iter().any(|ours| ours.eq_ignore_ascii_case(domain))
    }

    /// Whether the list has an account that this address is nearer to than to the one whose name ends before `from`: of
    /// joe and joe-smith the latter, as mail to joe-smith-list is his.
    fn is_anothers(&self, from: usize, local: &[u8], domain: &[u8]) -> Result<bool, Trouble> {
        let dashes = local.iter().enumerate().skip(from).filter(|(_, b)| **b == b'-').map(|(at, _)| at);
        for end in dashes.chain([local.len()]) {
            let name = local.get(..end).unwrap_or_default();
            if self.senders.get(&[name, b"@", domain].concat())?.is_some()
                || self.is_ours(domain) && self.senders.get(name)?.is_some()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What goes behind the header of a message that has not got it.
    pub fn completion(&self, seconds: u64, unique: &[u8]) -> Completion {
        let id = format!("Message-ID: <{}.{}.qmail@", date::stamp(seconds), text(unique));
        Completion {
            date: format!("Date: {}\n", date::rfc822(seconds)).into_bytes(),
            id: [id.as_bytes(), &self.host, b">\n"].concat(),
            state: State::Name(Vec::new()),
        }
    }
}

fn text(unique: &[u8]) -> String {
    String::from_utf8_lossy(&hex(unique)).into_owned()
}

/// Where a header is.
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// At the name of a field, held back until it is known to be one.
    Name(Vec<u8>),
    /// In a line of which nothing more is to be known.
    Line,
    /// Behind the header.
    Body,
}

/// Adds what a header lacks, at its end, while the message passes.
#[derive(Debug)]
pub struct Completion {
    /// Empty once one was seen.
    date: Vec<u8>,
    id: Vec<u8>,
    state: State,
}

impl Completion {
    /// Gives the message on, piece by piece.
    pub fn feed(&mut self, mut bytes: &[u8], mut out: impl FnMut(&[u8])) {
        while let Some((byte, rest)) = bytes.split_first() {
            match &mut self.state {
                State::Body => return out(bytes),
                State::Line => {
                    let length = memchr_newline(bytes);
                    let (line, rest) = bytes.split_at(length);
                    out(line);
                    if line.ends_with(b"\n") {
                        self.state = State::Name(Vec::new());
                    }
                    bytes = rest;
                }
                State::Name(name) => {
                    bytes = rest;
                    match byte {
                        b' ' | b'\t' if name.is_empty() => self.pass(*byte, State::Line, &mut out),
                        b':' if !name.is_empty() => {
                            if name.eq_ignore_ascii_case(b"date") {
                                self.date.clear();
                            } else if name.eq_ignore_ascii_case(b"message-id") {
                                self.id.clear();
                            }
                            self.pass(*byte, State::Line, &mut out);
                        }
                        33..=126 if *byte != b':' && name.len() < NAME_MAX => name.push(*byte),
                        // An empty line, or one that is no field: the header ends before it.
                        _ => {
                            out(&std::mem::take(&mut self.date));
                            out(&std::mem::take(&mut self.id));
                            self.pass(*byte, State::Body, &mut out);
                        }
                    }
                }
            }
        }
    }

    /// What was held back, and this byte.
    fn pass(&mut self, byte: u8, next: State, out: &mut impl FnMut(&[u8])) {
        if let State::Name(mut name) = std::mem::replace(&mut self.state, next) {
            name.push(byte);
            out(&name);
        }
    }

    /// The message has ended, perhaps within its header.
    pub fn finish(self, mut out: impl FnMut(&[u8])) {
        let State::Name(name) = self.state else { return };
        out(&self.date);
        out(&self.id);
        out(&name);
    }
}

fn memchr_newline(bytes: &[u8]) -> usize {
    bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submission(lines: &[&str]) -> Submission {
        let list: Vec<Vec<u8>> = lines.iter().map(|line| line.as_bytes().to_vec()).collect();
        let domains = vec![b"example.org".to_vec()];
        Submission {
            senders: Table::of(&list),
            domains,
            host: b"mx.example.org".to_vec(),
            hourly: 1,
            is_demanded: false,
        }
    }

    #[test]
    fn an_account_writes_as_itself_and_its_extensions() {
        let rule = submission(&[]);
        for (account, sender, may) in [
            ("joe", "joe@example.org", true),
            ("joe", "Joe@Example.ORG", true),
            ("joe", "joe-list@example.org", true),
            ("joe", "", true),
            ("joe", "joe", true),
            ("joe", "joey@example.org", false),
            ("joe", "jim@example.org", false),
            ("joe", "joe@example.net", false),
            ("joe@example.net", "joe@example.net", true),
            ("joe@example.net", "joe-x@example.net", true),
            ("joe@example.net", "joe@example.org", false),
            ("joe@example.net", "joe", false),
        ] {
            assert_eq!(
                rule.may_write_as(account.as_bytes(), sender.as_bytes()),
                Ok(may),
                "{account} {sender}"
            );
        }
    }

    #[test]
    fn the_list_gives_addresses_domains_or_everything() {
        let rule = submission(&["joe:sales@example.net  @example.com", "robot:*"]);
        for (account, sender, may) in [
            ("joe", "sales@Example.net", true),
            ("JOE", "anybody@example.com", true),
            ("joe", "joe@example.org", true),
            ("joe", "other@example.net", false),
            ("jim", "sales@example.net", false),
            ("robot", "who@ever", true),
        ] {
            assert_eq!(
                rule.may_write_as(account.as_bytes(), sender.as_bytes()),
                Ok(may),
                "{account} {sender}"
            );
        }
    }

    #[test]
    fn an_extension_that_is_an_account_of_the_list_is_nobody_elses() {
        let rule = submission(&[
            "Joe-Smith:",
            "ann-lee@example.net:x@example.com",
            "joe:joe-smith-shared@example.org",
        ]);
        for (account, sender, may) in [
            ("joe", "joe-smith@example.org", false),
            ("joe", "joe-smith-list@example.org", false),
            ("joe", "joe-smith-shared@example.org", true),
            ("joe", "joe-smithy@example.org", true),
            ("joe", "joe-list@example.org", true),
            ("joe-smith", "joe-smith-list@example.org", true),
            ("joe@example.net", "joe-smith@example.net", true),
            ("joe@example.org", "joe-smith@example.org", false),
            ("ann@example.net", "ann-lee@example.net", false),
            ("ann@example.net", "ann-lee-x@example.net", false),
            ("ann@example.net", "ann-x@example.net", true),
            ("ann-lee@example.net", "ann-lee-x@example.net", true),
        ] {
            assert_eq!(
                rule.may_write_as(account.as_bytes(), sender.as_bytes()),
                Ok(may),
                "{account} {sender}"
            );
        }
    }

    fn completed(message: &[u8]) -> Vec<u8> {
        let all = |pieces: Vec<&[u8]>| {
            let mut completion = Completion {
                date: b"Date: d\n".to_vec(),
                id: b"Message-ID: <i>\n".to_vec(),
                state: State::Name(Vec::new()),
            };
            let mut out = Vec::new();
            pieces.into_iter().for_each(|piece| completion.feed(piece, |bytes| out.extend_from_slice(bytes)));
            completion.finish(|bytes| out.extend_from_slice(bytes));
            out
        };
        let whole = all(vec![message]);
        assert_eq!(all(message.chunks(1).collect()), whole);
        whole
    }

    #[test]
    fn what_is_missing_goes_behind_the_header() {
        assert_eq!(completed(b"Subject: x\n\nhi\n"), b"Subject: x\nDate: d\nMessage-ID: <i>\n\nhi\n");
        assert_eq!(
            completed(b"DATE: t\nSubject: x\n y: z\n\nDate: b\n"),
            b"DATE: t\nSubject: x\n y: z\nMessage-ID: <i>\n\nDate: b\n"
        );
        assert_eq!(completed(b"Message-Id: <j>\nDate: t\n\n"), b"Message-Id: <j>\nDate: t\n\n");
        assert_eq!(completed(b""), b"Date: d\nMessage-ID: <i>\n");
        assert_eq!(completed(b"Subject: x\n"), b"Subject: x\nDate: d\nMessage-ID: <i>\n");
        assert_eq!(completed(b"\nbody"), b"Date: d\nMessage-ID: <i>\n\nbody");
    }

    #[test]
    fn a_line_that_is_no_field_ends_the_header() {
        assert_eq!(
            completed(b"Subject: x\nno field\nDate: t\n"),
            b"Subject: x\nDate: d\nMessage-ID: <i>\nno field\nDate: t\n"
        );
        let long = [[b'x'; 100].as_slice(), b"\n"].concat();
        assert_eq!(completed(&long), [b"Date: d\nMessage-ID: <i>\n".as_slice(), &long].concat());
        assert_eq!(completed(b"Resent-Date: t\n\n"), b"Resent-Date: t\nDate: d\nMessage-ID: <i>\n\n");
    }
}
