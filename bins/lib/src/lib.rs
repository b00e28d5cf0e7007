//! qmail - what the programs of this mail system share
//!
//! In reading order; a module may use those above it. Nothing here decides policy and nothing here is
//! a program: parsers take bytes and give values, and only `fd`, `timed`, `home`, `control`, `trust`,
//! `queue` and `sys` touch the world.

pub mod control;
pub mod environ;
pub mod exits;
pub mod fd;
pub mod home;
pub mod program;
pub mod sys; // the only `unsafe`
pub mod timed;
pub mod trouble;
pub mod trust;

pub mod address;
pub mod cdb;
pub mod date;
pub mod decimal;
pub mod envelope;
pub mod header;
pub mod ipme;
pub mod quote;
pub mod requiretls;

pub mod alongside;
pub mod apart;
pub mod assign;
pub mod auth;
pub mod dotqmail;
pub mod forkserver;
pub mod maildir;
pub mod mbox;
pub mod pop3;
pub mod queue;
pub mod rcpthosts;
pub mod received;
pub mod rules;
pub mod sasl;
pub mod setup;
pub mod smtp;
pub mod spawn;
pub mod table;
pub mod tcpto;
pub mod ucspi;
pub mod ucspitls;
