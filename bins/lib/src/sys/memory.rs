//! What others may see of this process's memory.
#![allow(unsafe_code)]

/// No core dump and no ptrace by processes of the same uid: what we hold is other people's mail.
pub fn undumpable() {
    // SAFETY: prctl with integer arguments touches no memory of ours.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
}

/// The signal that ends this process when its parent ends (0 = none).
pub fn die_with_parent(signal: i32) {
    // SAFETY: as above.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0);
    }
}
