//! shadow - the shadow password of an account, behind one safe function
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::ffi::{CStr, CString, c_char};
use std::mem::MaybeUninit;
use std::ptr;

/// An entry needs some hundred bytes; this is what the system's own tools give it at most.
const ENTRY_MAX: usize = 64 * 1024;

/// The stored hash; None when the account has no entry there.
pub fn hash(name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let Ok(name) = CString::new(name) else { return Ok(None) };
    let mut entry = MaybeUninit::<libc::spwd>::zeroed();
    let mut buffer = vec![0u8; ENTRY_MAX];
    let mut found: *mut libc::spwd = ptr::null_mut();
    // SAFETY: all pointers are to live memory of the sizes given; the result points into `entry` and
    // `buffer`, and its string is copied before they go.
    let (code, hash) = unsafe {
        let code = libc::getspnam_r(
            name.as_ptr(),
            entry.as_mut_ptr(),
            buffer.as_mut_ptr().cast::<c_char>(),
            buffer.len(),
            &mut found,
        );
        let text = found.as_ref().map(|f| f.sp_pwdp).filter(|p| !p.is_null());
        (code, text.map(|p| CStr::from_ptr(p).to_bytes().to_vec()))
    };
    crate::login::wipe(&mut buffer);
    match (code, hash) {
        (0, hash) => Ok(hash),
        (libc::ENOENT, _) => Ok(None), // no shadow file on this system
        (code, _) => Err(Errno::from_raw(code)),
    }
}
