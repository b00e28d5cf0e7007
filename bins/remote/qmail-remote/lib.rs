//! remote - the parts of qmail-remote, in the order of the work
//!
//! `open` (a session with a host) by means of `route` (where the administrator wants it to go), `hosts` (where the DNS
//! says), `demand` with `dane`, `sts` and `policy` (how a host must prove itself), `connect`, `tls` and `login`; then
//! `dialogue` (the conversation), `message` (fd 0), `more` (the messages behind the first), `report` (every text).
//! A `Session` outlives a message. `http` is the program mta-sts's.
#![forbid(unsafe_code)]

pub mod connect;
pub mod dane;
pub mod demand;
pub mod dialogue;
pub mod hosts;
#[path = "../mta-sts/http.rs"]
pub mod http;
pub mod login;
pub mod message;
pub mod more;
pub mod open;
pub mod policy;
pub mod report;
pub mod route;
pub mod sts;
pub mod tls;

/// The port of SMTP.
pub const SMTP_PORT: u16 = 25;
