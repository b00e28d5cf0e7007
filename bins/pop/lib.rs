//! pop - the conversations of qmail-popup and qmail-pop3d, which the programs lead over descriptors 0 and 1, and a test
//! over anything
#![forbid(unsafe_code)]

#[path = "qmail-popup/access.rs"]
pub mod access;
pub mod connection;
pub mod login;
#[path = "qmail-pop3d/maildrop.rs"]
pub mod maildrop;
#[path = "qmail-pop3d/session.rs"]
pub mod session;
