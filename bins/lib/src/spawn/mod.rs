//! spawn - what qmail-lspawn and qmail-rspawn share: requests in, deliveries, reports out
//!
//! `request` and `report` are the bytes of the pipes (spec: send to spawn, spawn to send) and the tables
//! from exit codes to reports; `serve` is the loop. The letters: K delivered, Z try later, D never.
#![forbid(unsafe_code)]

pub mod report;
pub mod request;
mod serve;

pub use request::Request;
pub use serve::{Delivery, serve};

/// The concurrency limit a spawner announces as its first byte: slots are 0 to 119.
pub const LIMIT: u8 = 120;
