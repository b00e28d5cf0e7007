//! inject - what qmail-inject makes of a header, and what sendmail understands: parts that need no process
#![forbid(unsafe_code)]

#[path = "qmail-inject/compose.rs"]
pub mod compose;
#[path = "qmail-inject/identity.rs"]
pub mod identity;
#[path = "sendmail/options.rs"]
pub mod options;
