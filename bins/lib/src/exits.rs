//! exits - exit codes as a public interface
//!
//! The numbers are contracts: callers turn them into texts (spec: `qmail-queue`(8), checkpassword).

/// Done.
pub const SUCCESS: i32 = 0;
/// Wrong use, or a trouble that trying again will not mend.
pub const PERMANENT: i32 = 100;
/// A trouble that may pass: try again later. Whatever is in doubt ends here.
pub const TEMPORARY: i32 = 111;

/// What `qmail-queue` says with its exit code.
pub mod queue {
    pub const ADDRESS_TOO_LONG: i32 = 11;
    pub const REFUSED: i32 = 31;
    pub const MEMORY: i32 = 51;
    pub const TIMEOUT: i32 = 52;
    pub const WRITE: i32 = 53;
    pub const READ: i32 = 54;
    pub const CONFIGURATION: i32 = 55;
    pub const HOME: i32 = 61;
    pub const QUEUE_DIR: i32 = 62;
    pub const PID: i32 = 63;
    pub const MESS: i32 = 64;
    pub const INTD: i32 = 65;
    pub const TODO: i32 = 66;
    pub const DEFERRED: i32 = 71;
    pub const CONNECT_TIMEOUT: i32 = 72;
    pub const CONNECT_REFUSED: i32 = 73;
    pub const COMMUNICATION: i32 = 74;
    pub const BUG: i32 = 81;
    /// The text on fd 6 says what is wrong.
    pub const CUSTOM: i32 = 82;
    pub const ENVELOPE_FORMAT: i32 = 91;
    pub const EXEC: i32 = 120;
}
