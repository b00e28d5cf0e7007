//! net - launching programs for network connections: what tcpserver and its peers have in common
#![forbid(unsafe_code)]

mod ident;
mod listen;
pub mod log;
mod names;
pub mod options;
mod ready;
pub mod server;
pub mod session;
