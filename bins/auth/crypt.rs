//! crypt - the system's libcrypt, behind one safe function
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};

#[link(name = "crypt")]
unsafe extern "C" {
    fn crypt(phrase: *const c_char, setting: *const c_char) -> *mut c_char;
}

/// Hashes a password as `setting` (a stored hash, or the beginning of one) says. None when libcrypt
/// does not know the scheme, or either holds a NUL.
pub fn hash(password: &[u8], setting: &[u8]) -> Option<Vec<u8>> {
    let phrase = CString::new(password).ok()?;
    let setting = CString::new(setting).ok()?;
    // SAFETY: both are NUL-terminated and live through the call; the result is NULL or a static string of
    // libcrypt's, copied before anything else is called (this program has one thread).
    let hash = unsafe {
        let hash = crypt(phrase.as_ptr(), setting.as_ptr());
        (!hash.is_null()).then(|| CStr::from_ptr(hash).to_bytes().to_vec())
    };
    crate::login::wipe(&mut phrase.into_bytes());
    // libcrypt says "failed" with a text that no setting can be: "*0" or "*1".
    hash.filter(|hash| !hash.starts_with(b"*"))
}
