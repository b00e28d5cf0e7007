//! login - AUTH (RFC 4954) at a relay that wants one
//!
//! A wrong password is the administrator's to mend: mail waits. A server of SCRAM that does not show that it knows the
//! password gets no mail.
#![forbid(unsafe_code)]

use crate::dialogue::{Server, Session};
use crate::report::{self, Report};
use qmail::auth::Secret;
use qmail::sasl::client::{Client, Failure, choose};
use qmail::sasl::{self, Binding, Mechanism, NONCE_BYTES};
use qmail::smtp::reply::Reply;
use qmail::sys::random;

/// Challenges in one login; SCRAM has two.
const STEPS_MAX: usize = 8;

/// rfc5321:4.5.3.1.4 a command has 512 bytes; a first answer that does not fit into it waits to be asked for.
const INITIAL_MAX: usize = 360;

/// A name and its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub name: Vec<u8>,
    pub password: Secret,
    /// The password may be told where others can listen.
    pub in_the_clear: bool,
}

/// Logs in. `private` says that nobody but the relay can listen.
pub fn login<S: Server>(
    session: &mut Session<S>,
    credentials: &Credentials,
    private: bool,
    binding: &Binding,
) -> Result<(), Report> {
    let ip = session.ip();
    let private = private || credentials.in_the_clear;
    let offered = session.mechanisms().to_vec();
    let Some(mechanism) = choose(offered.iter().map(Vec::as_slice), private, binding) else {
        return Err(report::auth_not_offered(ip));
    };
    let plus = offered.iter().any(|name| Mechanism::of(name) == Some(Mechanism::ScramSha256Plus));
    let mut nonce = [0; NONCE_BYTES];
    random::fill(&mut nonce).map_err(|_| report::no_resources())?;
    let broken = |why: Failure| report::auth_broken(ip, mechanism.name(), why.text());
    let password = credentials.password.clone();
    let mut client = Client::new(mechanism, &credentials.name, password, sasl::encode(&nonce), binding, plus)
        .map_err(broken)?;
    let mut held = client.initial();
    let command = [b"AUTH ", mechanism.name().as_bytes()].concat();
    let mut reply = match held.take_if(|answer| answer.len() <= INITIAL_MAX) {
        Some(answer) => session.ask(&[&command, b" ", &encoded(&answer)])?,
        None => session.ask(&[&command])?,
    };
    for _ in 0..STEPS_MAX {
        if reply.code() != Some(334) {
            break;
        }
        let answer = match (challenge(&reply), held.take()) {
            (Some(challenge), Some(answer)) if challenge.is_empty() => Ok(answer),
            (Some(challenge), _) => client.answer(&challenge),
            (None, _) => Err(Failure::Malformed),
        };
        reply = match answer {
            Ok(answer) => session.ask(&[&encoded(&answer)])?,
            Err(why) => {
                let _ = session.ask(&[b"*"]); // rfc4954:4 takes the login back
                return Err(broken(why));
            }
        };
    }
    if reply.code() != Some(235) {
        return Err(report::auth_failed(ip, mechanism.name(), &reply));
    }
    client.succeeded(None).map_err(broken)
}

fn encoded(answer: &Secret) -> Secret {
    Secret(sasl::encode(answer))
}

/// What stands behind 334, taken out of its base64.
fn challenge(reply: &Reply) -> Option<Vec<u8>> {
    let mut lines = reply.lines();
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    sasl::decode(line)
}
