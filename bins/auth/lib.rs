//! auth - what checkers share: descriptor 3, stored passwords, accounts, and the daemons that some of them ask
#![deny(unsafe_code)] // allowed in crypt, shadow and pam, which speak to C libraries

pub mod account;
pub mod crypt;
pub mod daemon;
pub mod dovecot;
pub mod login;
pub mod pam;
pub mod passwd;
pub mod saslauthd;
pub mod shadow;
pub mod stored;
