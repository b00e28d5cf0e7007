//! tls - what the programs that speak TLS share
#![forbid(unsafe_code)]

pub mod certificate;
pub mod facts;
pub mod keeper;
pub mod link;
pub mod relay;
pub mod session;
pub mod store;
pub mod verdict;
