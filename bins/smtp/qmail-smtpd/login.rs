//! AUTH (RFC 4954) and STARTTLS (RFC 3207): who the client is, and who can listen.

use crate::around::{Around, Facts, Verdict};
use crate::reply::{self, Reply};
use crate::session::{End, Session};
use qmail::auth::Secret;
use qmail::queue::client::Queue;
use qmail::sasl::server::{Refusal, Server, Setting, Step};
use qmail::sasl::{self, Mechanism};
use qmail::timed::{Sink, Source};
use qmail::ucspi;
use std::time::Duration;

/// Wrong passwords in a connection. Who has none by then does not know one.
const FAILURES_MAX: u32 = 3;

/// AUTH commands in a connection, whatever becomes of them: each may cost a check.
const ATTEMPTS_MAX: u32 = 20;

/// How long a refusal is held back, once more for each before it. (qmail-authd does it by itself.)
const DELAY: Duration = Duration::from_secs(2);

/// The client, as far as it has shown who it is.
#[derive(Debug, Default)]
pub struct Standing {
    pub facts: Facts,
    /// Whose password it knew, or whose certificate it has.
    pub user: Option<Vec<u8>>,
    /// By which it has shown that.
    pub mechanism: Option<Mechanism>,
    failures: u32,
    attempts: u32,
}

impl Standing {
    /// Of somebody who has said nothing yet.
    pub fn with(facts: Facts) -> Standing {
        Standing { facts, ..Standing::default() }
    }

    /// The word for `Received: … with` (RFC 3848). Without TLS and login it is what it always was.
    pub fn protocol(&self) -> &'static str {
        match (self.facts.is_tls(), self.user.is_some()) {
            (false, false) => "SMTP",
            (true, false) => "ESMTPS",
            (false, true) => "ESMTPA",
            (true, true) => "ESMTPSA",
        }
    }
}

impl<I: Source, O: Sink, Q: Queue, A: Around> Session<'_, I, O, Q, A> {
    /// The words of EHLO that come and go.
    pub(crate) fn login_extensions(&self) -> Vec<Vec<u8>> {
        let mut words = Vec::new();
        if self.offers_tls() {
            words.push(b"STARTTLS".to_vec());
        }
        if self.standing.facts.is_tls() {
            words.push(b"REQUIRETLS".to_vec());
        }
        let mechanisms = self.mechanisms();
        if !mechanisms.is_empty() {
            let names = mechanisms.iter().rev().map(|mechanism| mechanism.name());
            words.push(["AUTH"].into_iter().chain(names).collect::<Vec<_>>().join(" ").into_bytes());
        }
        words
    }

    fn offers_tls(&self) -> bool {
        !self.standing.facts.is_tls() && self.around.offers_tls()
    }

    fn mechanisms(&self) -> Vec<Mechanism> {
        if self.standing.user.is_some() { Vec::new() } else { self.config.access.now(&self.standing.facts) }
    }

    /// Whether the client has still to say who it is before it may send, and how that is said.
    pub(crate) fn needs_login(&self) -> Option<Reply> {
        if !self.config.access.required || self.standing.user.is_some() {
            return None;
        }
        Some(if self.offers_tls() && self.mechanisms().is_empty() {
            reply::TLS_FIRST
        } else {
            reply::LOGIN_FIRST
        })
    }

    pub(crate) fn auth(&mut self, argument: &[u8]) -> Result<Reply, End> {
        let access = &self.config.access;
        if !access.is_known() {
            return Ok(reply::UNIMPLEMENTED);
        }
        if self.standing.user.is_some() {
            return Ok(reply::LOGGED_IN);
        }
        if self.is_in_transaction() {
            return Ok(reply::NOT_NOW);
        }
        self.standing.attempts += 1;
        if self.standing.attempts > ATTEMPTS_MAX {
            return Err(End::Fatal(reply::TOO_MANY_LOGINS, None));
        }
        let mut words = argument.split(|b| *b == b' ').filter(|word| !word.is_empty());
        let Some(mechanism) = words.next().and_then(Mechanism::of) else { return Ok(reply::NO_MECHANISM) };
        let offered = access.now(&self.standing.facts);
        if !offered.contains(&mechanism) {
            return Ok(match mechanism {
                _ if access.lacks_privacy(mechanism, &self.standing.facts) => reply::LOGIN_NEEDS_TLS,
                _ if mechanism.tells_password() => reply::WEAK_MECHANISM,
                _ => reply::NO_MECHANISM,
            });
        }
        let initial = match words.next() {
            None => None,
            Some(b"=") => Some(Secret::default()),
            Some(text) => match sasl::decode(text) {
                Some(bytes) => Some(Secret(bytes)),
                None => return Ok(reply::BAD_BASE64),
            },
        };
        if words.next().is_some() {
            return Ok(reply::BAD_LOGIN);
        }
        let Some(unique) = self.around.unique() else { return Ok(reply::LOGIN_LATER) };
        let setting = Setting {
            unique,
            host: self.config.greeting.split(|b| *b == b' ').next().unwrap_or_default().to_vec(),
            binding: self.standing.facts.binding(),
            plus_offered: offered.contains(&Mechanism::ScramSha256Plus),
            external: access.certificate(&self.standing.facts),
        };
        self.exchange(mechanism, Server::new(mechanism, setting), initial)
    }

    /// Challenges and answers, up to the reply.
    fn exchange(
        &mut self,
        mechanism: Mechanism,
        mut server: Server,
        initial: Option<Secret>,
    ) -> Result<Reply, End> {
        let mut step = server.start(initial);
        let (mut name, mut account) = (Vec::new(), Vec::new());
        loop {
            step = match step {
                Step::Challenge(challenge) => {
                    self.connection.put([b"334 ", sasl::encode(&challenge).as_slice(), b"\r\n"].concat())?;
                    let Some(line) = self.connection.secret_line(sasl::LINE_MAX)? else {
                        return Ok(reply::ANSWER_TOO_LONG);
                    };
                    if *line == *b"*" {
                        return Ok(reply::CANCELLED);
                    }
                    match sasl::decode(&line) {
                        Some(answer) => server.answer(Secret(answer)),
                        None => return Ok(reply::BAD_BASE64),
                    }
                }
                Step::Parameters(asked) => {
                    name = asked; // a binding that does not fit is refused without a check
                    match self.config.access.params(&name) {
                        Ok(params) => server.parameters(&params),
                        Err(trouble) => {
                            (self.warn)("unable to check a login", &trouble.text());
                            return Ok(reply::LOGIN_LATER);
                        }
                    }
                }
                Step::Check(fields) => {
                    name.clone_from(&fields.name);
                    match self.around.check(&fields, &self.standing.facts) {
                        Verdict::Accepted { signature, account: known } => {
                            account = known;
                            server.accepted(&signature)
                        }
                        Verdict::Refused => {
                            return self.refused(mechanism, &name, self.around.tells_refusals());
                        }
                        Verdict::Temporary => return Ok(reply::LOGIN_LATER),
                    }
                }
                Step::Accepted(typed) => {
                    let user = if account.is_empty() { typed } else { account };
                    self.record(b"LOGIN", mechanism, &user);
                    self.peer.info = Some(user.clone());
                    self.standing.user = Some(user);
                    self.standing.mechanism = Some(mechanism);
                    return Ok(reply::WELCOME);
                }
                Step::Refused(Refusal::Malformed) => return Ok(reply::BAD_ANSWER),
                Step::Refused(Refusal::Unacceptable) => return self.refused(mechanism, &name, false),
            }
        }
    }

    /// `told`: the log knows of it already.
    fn refused(&mut self, mechanism: Mechanism, name: &[u8], told: bool) -> Result<Reply, End> {
        if !told {
            self.record(b"LOGIN FAILED", mechanism, name);
        }
        self.around.pause(DELAY * (self.standing.failures + 1));
        self.standing.failures += 1;
        if self.standing.failures >= FAILURES_MAX {
            return Err(End::Fatal(reply::TOO_MANY_LOGINS, None));
        }
        Ok(reply::UNWELCOME)
    }

    /// `LOGIN FAILED, user=joe, method=PLAIN, ip=[192.0.2.1]`: a form that log watchers know of another server.
    fn record(&mut self, what: &[u8], mechanism: Mechanism, name: &[u8]) {
        let safe = |text: &[u8]| ucspi::log_field(text);
        let field = |text: &[u8]| safe(text).into_iter().filter(|b| !b",[]".contains(b)).collect::<Vec<u8>>();
        let method = mechanism.name().as_bytes();
        let line =
            [what, b", user=", &field(name), b", method=", method, b", ip=[", &safe_ip(&self.peer.ip), b"]"]
                .concat();
        self.around.log(&line);
    }

    /// Everything that was said in the clear is forgotten (rfc3207:4.2).
    pub(crate) fn start_tls(&mut self, argument: &[u8]) -> Result<Reply, End> {
        if !self.around.offers_tls() {
            return Ok(reply::UNIMPLEMENTED);
        }
        if self.standing.facts.is_tls() {
            return Ok(reply::TLS_ALREADY);
        }
        if !argument.trim_ascii().is_empty() {
            return Ok(reply::NO_ARGUMENT);
        }
        // Whoever pushed these bytes in front of the handshake wants them to be taken for the client's.
        if !self.connection.input.buffered().is_empty() {
            return Err(End::Fatal(reply::NOT_PIPELINED, None));
        }
        self.say(&reply::TLS_READY)?;
        self.connection.flush()?;
        let Some(facts) = self.around.start_tls() else { return Err(End::Gone) };
        let Standing { failures, attempts, .. } = self.standing;
        self.standing = Standing { facts, failures, attempts, ..Standing::default() };
        self.forget();
        Err(End::Upgraded)
    }
}

fn safe_ip(ip: &[u8]) -> Vec<u8> {
    ip.iter().copied().filter(|b| b.is_ascii_hexdigit() || b".:".contains(b)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn received_says_how_a_message_came() {
        let tls = || Facts::parse(b"TLS_PROTOCOL=TLSv1.3\0").unwrap();
        let standing = |facts, user: Option<&[u8]>| Standing {
            facts,
            user: user.map(<[u8]>::to_vec),
            ..Standing::default()
        };
        assert_eq!(Standing::default().protocol(), "SMTP");
        assert_eq!(standing(tls(), None).protocol(), "ESMTPS");
        assert_eq!(standing(Facts::default(), Some(b"joe")).protocol(), "ESMTPA");
        assert_eq!(standing(tls(), Some(b"joe")).protocol(), "ESMTPSA");
    }
}
