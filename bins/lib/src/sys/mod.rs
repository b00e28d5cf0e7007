//! sys - the only `unsafe` of this project, behind functions that are safe to call
//!
//! Kept small on purpose: each module wraps one need and says beside each unsafe block why it is sound.

mod arena;
pub mod descriptor;
pub mod memory;
pub mod process;
pub mod random;
pub mod signal;
pub mod socket;
