//! What the administrator decided: control files, and the environment of this connection.

use crate::access::Access;
use qmail::control::{Control, Set};
use qmail::decimal;
use qmail::environ;
use qmail::rcpthosts::RcptHosts;
use qmail::trouble::Trouble;
use std::time::Duration;

/// Seconds for one read, one write, one command, when control/timeoutsmtpd does not say otherwise.
const TIMEOUT_DEFAULT: u64 = 1200;

pub struct Config {
    /// The text behind 220, 221 and the 250 of HELO.
    pub greeting: Vec<u8>,
    /// For one read, one write and one whole command.
    pub timeout: Duration,
    /// The largest message in bytes, as stored; 0 is no limit.
    pub databytes: u64,
    /// RELAYCLIENT: set, every recipient is accepted and this is appended to it.
    pub relay: Option<Vec<u8>>,
    pub rcpthosts: RcptHosts,
    /// Envelope senders, and `@domain`s of them, that are not welcome.
    pub badmailfrom: Set,
    /// What `[IP]` of ours in an address stands for.
    pub localiphost: Option<Vec<u8>>,
    /// Logins.
    pub access: Access,
}

impl Config {
    /// What is in `control/`, the same for every connection.
    pub fn read(control: &Control) -> Result<Config, Trouble> {
        let greeting = control
            .line_or_me("smtpgreeting")?
            .ok_or_else(|| Trouble::temporary("control/smtpgreeting and control/me do not exist"))?;
        Ok(Config {
            greeting,
            timeout: Duration::from_secs(control.int("timeoutsmtpd", TIMEOUT_DEFAULT)?.max(1)),
            databytes: control.int("databytes", 0)?,
            relay: None,
            rcpthosts: RcptHosts::read(control)?,
            badmailfrom: control.set("badmailfrom")?.unwrap_or_default(),
            localiphost: control.line_or_me("localiphost")?,
            access: Access::default(),
        })
    }

    /// The same with logins; `checker`: there is somebody to check passwords.
    pub fn with_logins(control: &Control, checker: bool) -> Result<Config, Trouble> {
        Ok(Config { access: Access::read(control, checker)?, ..Config::read(control)? })
    }

    /// What the environment says of this connection.
    pub fn for_connection(mut self) -> Config {
        if let Some(value) = environ::get("DATABYTES") {
            self.databytes = decimal::prefix(&value).unwrap_or(0);
        }
        self.relay = environ::get("RELAYCLIENT");
        self
    }

    /// Whether control/badmailfrom has this sender, or `@` and its domain.
    pub fn is_bad_sender(&self, sender: &[u8]) -> bool {
        let from_at = sender.iter().rposition(|b| *b == b'@').and_then(|at| sender.get(at..));
        self.badmailfrom.contains(sender) || from_at.is_some_and(|domain| self.badmailfrom.contains(domain))
    }

    /// Whether a message of so many bytes is refused.
    pub fn is_too_big(&self, bytes: u64) -> bool {
        self.databytes != 0 && bytes > self.databytes
    }
}
