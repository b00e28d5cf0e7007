//! fetch - asks the DNS whether a domain has a policy, and its web server for it
#![forbid(unsafe_code)]

use dns::{Failure, Resolver};
use qmail::timed::{self, Deadline};
use remote::demand::{Demand, Verify};
use remote::http::{self, ANSWER_MAX};
use remote::sts::{self, Policy};
use remote::tls::{self, Outcome};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// One policy, from the first question to the last byte (RFC 8461 section 3.3 suggests a minute).
const PATIENCE: Duration = Duration::from_secs(60);

/// One question to the DNS.
const DNS_PATIENCE: Duration = Duration::from_secs(20);

/// One address of the web server.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);

/// Addresses that are tried.
const ADDRESSES_MAX: usize = 4;

const HTTPS: u16 = 443;

/// One read of an answer.
const CHUNK: usize = 8192;

type Why = String;

/// The DNS, and who makes TLS.
pub struct Web {
    resolver: Resolver,
    tls: Option<tls::Client>,
}

impl Web {
    pub fn find() -> Web {
        Web { resolver: Resolver::find().within(DNS_PATIENCE), tls: tls::Client::find() }
    }

    /// Where a jail must let it go.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.resolver.ports().chain([HTTPS])
    }

    /// The id of the domain's policy; None when it has none.
    pub fn id(&self, domain: &[u8]) -> Result<Option<Vec<u8>>, Why> {
        match self.resolver.txt(&[b"_mta-sts.", domain].concat()) {
            Ok(answer) => Ok(sts::id(&answer.records)),
            Err(Failure::NoData | Failure::NoSuchName) => Ok(None),
            Err(Failure::Temporary) => Err("the DNS does not say whether there is a policy".into()),
        }
    }

    /// The policy itself.
    pub fn policy(&self, domain: &[u8]) -> Result<Policy, Why> {
        let deadline = Deadline::after(PATIENCE);
        let client = self.tls.ok_or("there is no TLS: it must be run by tlsclient")?;
        let host = [b"mta-sts.", domain].concat();
        let stream = self.connect(&host, deadline)?;
        let demand = Demand { verify: Verify::Pkix, sts: true, ..Demand::of_host(host.clone()) };
        let left = deadline.left().unwrap_or(PATIENCE);
        match client.begin(&stream, &demand, left).map_err(|e| format!("TLS: {e}"))? {
            Outcome::Encrypted(clear, facts) if facts.verified => {
                drop(stream);
                read(&clear, &host, deadline)
            }
            Outcome::Encrypted(..) | Outcome::NoClient | Outcome::Gone => Err("TLS: no verdict".into()),
            Outcome::Failed(why) | Outcome::Refused(why) => {
                Err(format!("TLS: {}", String::from_utf8_lossy(&why)))
            }
        }
    }

    fn connect(&self, host: &[u8], deadline: Deadline) -> Result<TcpStream, Why> {
        let found =
            self.resolver.ip(host).map_err(|_| format!("no address of {}", String::from_utf8_lossy(host)))?;
        let mut why = String::new();
        for ip in found.records.into_iter().take(ADDRESSES_MAX) {
            let left = deadline.left().unwrap_or(CONNECT_PATIENCE).min(CONNECT_PATIENCE);
            if left.is_zero() {
                return Err("no answer in time".into());
            }
            match TcpStream::connect_timeout(&SocketAddr::new(ip, HTTPS), left) {
                Ok(stream) => {
                    stream.set_nonblocking(true).map_err(|e| e.to_string())?;
                    return Ok(stream);
                }
                Err(error) => why = format!("no connection to {ip}: {error}"),
            }
        }
        Err(why)
    }
}

fn read(clear: &OwnedFd, host: &[u8], deadline: Deadline) -> Result<Policy, Why> {
    let lost = |errno: nix::errno::Errno| format!("no answer: {}", errno.desc());
    timed::write_all(clear, &http::request(host), deadline).map_err(lost)?;
    let mut answer = Vec::new();
    let mut chunk = [0; CHUNK];
    loop {
        let length = timed::read(clear, &mut chunk, deadline).map_err(lost)?;
        answer.extend_from_slice(chunk.get(..length).unwrap_or_default());
        if let Some(body) = http::body(&answer, length == 0)? {
            return Policy::parse(&body).ok_or_else(|| "what is there is no policy".into());
        }
        if answer.len() > ANSWER_MAX {
            return Err("too long".into());
        }
    }
}
