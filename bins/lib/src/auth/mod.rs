//! auth - logins that one process takes and another one checks
#![forbid(unsafe_code)]

pub mod door;
pub mod services;

/// Overwrites a secret. black_box keeps the compiler from leaving out what nobody reads again.
pub fn wipe(secret: &mut [u8]) {
    secret.fill(0);
    std::hint::black_box(secret);
}
