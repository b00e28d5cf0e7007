//! Socket options nix does not know.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

/// Removes IP options from a connection, so that answers do not take a route the peer chose. Where there
/// are none, or the family has none, nothing happens.
pub fn drop_ip_options(socket: impl AsFd) {
    // SAFETY: an option of length 0: no memory is read.
    unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), libc::IPPROTO_IP, libc::IP_OPTIONS, std::ptr::null(), 0);
    }
}
