//! The lines of the log: one for each login, and what is wrong with our own house.

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
        let _ = fd::write_all(fd::ERR, &[fields.join(&b' '), b"\n".to_vec()].concat());
    }
}

/// `qmail-authd: warning: TEXT`
pub fn complain(trouble: &Trouble) {
    let text = trouble.text();
    let safe: Vec<u8> = text.iter().map(|b| if matches!(b, 32..=126) { *b } else { b'?' }).collect();
    let _ = fd::write_all(fd::ERR, &[b"qmail-authd: warning: ".as_slice(), &safe, b"\n"].concat());
}
