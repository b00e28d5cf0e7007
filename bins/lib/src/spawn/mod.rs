//! spawn - what qmail-lspawn and qmail-rspawn share: requests in, deliveries, reports out
//!
//! `request` and `report` are the bytes of the pipes (spec: send to spawn, spawn to send) and the tables
//! from exit codes to reports; `serve` is the loop, `ledger` what outlives it, `line` how a delivery program gets
//! more than one message, `hosts` how many of them work for one host. The letters: K delivered, Z try later, D never.
#![forbid(unsafe_code)]

mod hosts;
pub mod ledger;
pub mod line;
pub mod report;
pub mod request;
mod serve;
pub mod slot;

pub use hosts::Ceilings;
pub use request::Request;
pub use serve::{Delivery, serve, stay_with};
pub use slot::{Slot, Width};

use crate::home::Home;
use crate::{environ, fd, program};

/// The concurrency limit a spawner announces as its first byte: slots are 0 to 119.
pub const LIMIT: u8 = 120;

/// Where recipients of one message at one host travel together: every slot that the first byte can
/// announce, since a slot is no process then. By this value qmail-send knows that its spawner does it.
pub const LIMIT_TOGETHER: u8 = 255;

/// Recipients that travel together: what every server takes (rfc5321:4.5.3.1.8).
pub const TOGETHER_MAX: usize = 100;

/// Bytes of their addresses: far below what the system allows for the arguments of a program.
pub const TOGETHER_BYTES: usize = 32 * 1024;

/// With the value 1 or 2 qmail-start announces to qmail-send and qmail-rspawn that the other one, too, knows of
/// recipients that travel together; with 2 that it knows of wide slots (`slot`).
pub const TOGETHER: &str = "QMAILBURST";

/// A program in the place of qmail-remote: who wrote it counted on one recipient.
pub const REPLACEMENT: &str = "QMAILREMOTE";

/// Whether recipients may travel together, as far as the environment says.
pub fn is_together_announced() -> bool {
    matches!(environ::get(TOGETHER).as_deref(), Some(b"1" | b"2")) && environ::get(REPLACEMENT).is_none()
}

/// How slots are to be written, as far as the environment says.
pub fn announced_width() -> Width {
    let wide = is_together_announced() && environ::get(TOGETHER).as_deref() == Some(b"2");
    if wide { Width::Wide } else { Width::Narrow }
}

/// Where a delivery program of this name is, if it is the one of the home and nothing stands before it: another one of
/// that name in PATH, or a script in its place, is somebody else's. What cannot be read is no script: its interpreter
/// could not read it either.
pub fn ours(home: &Home, name: &str) -> Option<Vec<u8>> {
    let path = program::find_in(home, name);
    let directory =
        |path: &[u8]| std::fs::canonicalize(fd::path(path)).ok()?.parent().map(std::path::Path::to_path_buf);
    let is_home =
        directory(&path).is_some() && directory(&path) == directory(&home.path(&format!("bin/{name}")));
    let mut start = [0; 2];
    let is_script =
        fd::open_read(&path).is_ok_and(|file| fd::read(&file, &mut start) == Ok(2) && start == *b"#!");
    (is_home && !is_script).then_some(path)
}
