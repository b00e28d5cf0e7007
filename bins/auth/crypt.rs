//! crypt - the system's libcrypt, behind safe functions
#![allow(unsafe_code)]

use qmail::auth::{Secret, wipe};
use std::ffi::{CStr, CString, c_char, c_int, c_ulong};

#[link(name = "crypt")]
unsafe extern "C" {
    fn crypt(phrase: *const c_char, setting: *const c_char) -> *mut c_char;
    fn crypt_gensalt(
        prefix: *const c_char,
        count: c_ulong,
        random: *const c_char,
        length: c_int,
    ) -> *mut c_char;
}

/// crypt(3) hashes no longer password than this.
pub const PASSWORD_MAX: usize = 511;

/// Hashes a password as `setting` (a stored hash, or the beginning of one) says. None when libcrypt
/// does not know the scheme, or either holds a NUL.
pub fn hash(password: &[u8], setting: &[u8]) -> Option<Secret> {
    let phrase = CString::new(password).ok()?;
    let setting = CString::new(setting).ok()?;
    // SAFETY: both are NUL-terminated and live through the call; the result is NULL or a static string of
    // libcrypt's, copied before anything else is called (these programs have one thread).
    let hash = unsafe {
        let hash = crypt(phrase.as_ptr(), setting.as_ptr());
        (!hash.is_null()).then(|| Secret(CStr::from_ptr(hash).to_bytes().to_vec()))
    };
    wipe(&mut phrase.into_bytes());
    // libcrypt says "failed" with a text that no setting can be: "*0" or "*1".
    hash.filter(|hash| !hash.starts_with(b"*"))
}

/// A new setting for `hash`, by the prefix of its scheme, of usual cost; `random` is its salt. None when libcrypt
/// does not know the scheme.
pub fn setting(prefix: &[u8], random: &[u8]) -> Option<Vec<u8>> {
    let prefix = CString::new(prefix).ok()?;
    let length = c_int::try_from(random.len()).ok()?;
    // SAFETY: pointers and length are those of live memory; the result is as that of crypt.
    unsafe {
        let setting = crypt_gensalt(prefix.as_ptr(), 0, random.as_ptr().cast(), length);
        (!setting.is_null()).then(|| CStr::from_ptr(setting).to_bytes().to_vec())
    }
    .filter(|setting| !setting.starts_with(b"*"))
}
