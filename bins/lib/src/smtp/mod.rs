//! smtp - the parsers of RFC 5321: what a client says to us, and what a server says to us
//!
//! `command` and `data` read a client (qmail-smtpd); `reply` and `body` are the other side (qmail-remote).

pub mod body;
pub mod command;
pub mod data;
pub mod reply;
