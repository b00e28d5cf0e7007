//! The lines of the log: one for each login, another for each refusal, and what is wrong with our own house.

use qmail::trouble::Trouble;
use qmail::{fd, ucspi};
use std::net::IpAddr;

/// Who tried to log in to what from where; never with what.
#[derive(Debug, Clone)]
pub struct Attempt {
    service: Vec<u8>,
    account: Vec<u8>,
    address: Vec<u8>,
}

impl Attempt {
    /// `name` and `service` are what the front says, and made safe for a log here.
    pub fn new(service: &[u8], name: &[u8], address: Option<IpAddr>) -> Attempt {
        let field = |bytes: &[u8]| if bytes.is_empty() { b"-".to_vec() } else { ucspi::log_field(bytes) };
        let address = address.map_or(b"-".to_vec(), |ip| ip.to_canonical().to_string().into_bytes());
        Attempt { service: field(service), account: field(name), address }
    }

    /// `qmail-authd: login: SERVICE ACCOUNT ADDRESS RESULT`
    pub fn end(&self, result: &str) {
        let fields: [&[u8]; 5] =
            [b"qmail-authd: login:", &self.service, &self.account, &self.address, result.as_bytes()];
        let mut lines = [fields.join(&b' '), b"\n".to_vec()].concat();
        if result.starts_with("refused") && self.address != b"-" {
            lines.extend_from_slice(&self.failed());
        }
        let _ = fd::write_all(fd::ERR, &lines);
    }

    /// `qmail-authd: LOGIN FAILED, user=ACCOUNT, service=SERVICE, ip=[ADDRESS]`, which log watchers know of another
    /// server. Nothing in the name can look like another field.
    fn failed(&self) -> Vec<u8> {
        let safe = |b: &u8| if b",[]=".contains(b) { b'?' } else { *b };
        let account: Vec<u8> = self.account.iter().map(safe).collect();
        let parts: [&[u8]; 7] = [
            b"qmail-authd: LOGIN FAILED, user=",
            &account,
            b", service=",
            &self.service,
            b", ip=[",
            &self.address,
            b"]\n",
        ];
        parts.concat()
    }
}

/// `qmail-authd: warning: TEXT`
pub fn complain(trouble: &Trouble) {
    let text = trouble.text();
    let safe: Vec<u8> = text.iter().map(|b| if matches!(b, 32..=126) { *b } else { b'?' }).collect();
    let _ = fd::write_all(fd::ERR, &[b"qmail-authd: warning: ".as_slice(), &safe, b"\n"].concat());
}
