//! smtpd - the conversation of qmail-smtpd, which main.rs leads over a connection, and a test over anything
//!
//! `session` is the conversation, `message` what follows DATA, `reply` every reply there is, `config`
//! what the administrator decided; `login` is AUTH and STARTTLS, `access` and `submission` who may send what, and
//! `around` what all of this asks of the process. An extension is a word in `Session::extensions`, a verb in
//! `smtp::command` and its arm in `Session::answer`.
#![forbid(unsafe_code)]

pub mod access;
pub mod around;
pub mod config;
mod login;
mod message;
pub mod reply;
pub mod session;
pub mod submission;
