//! shadow - the shadow entries of accounts, behind safe functions
#![allow(unsafe_code)]

use nix::errno::Errno;
use qmail::auth::{Secret, wipe};
use std::ffi::{CStr, CString, c_char};
use std::mem::MaybeUninit;
use std::ptr;

/// An entry needs some hundred bytes; this is what the system's own tools give it at most.
const ENTRY_MAX: usize = 64 * 1024;

/// Entries that are looked through for one with a hash: a system's own accounts come first, and have none.
const LOOK_MAX: usize = 1000;

unsafe extern "C" {
    fn setspent();
    fn endspent();
}

/// What shadow(5) has of an account. Days are counted from 1970; -1 is an empty field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub hash: Secret,
    pub changed: i64,
    pub max: i64,
    pub expires: i64,
}

impl Entry {
    /// Why nobody may log in with this account today, though the password be right.
    pub fn closed(&self, today: i64) -> Option<&'static str> {
        if self.expires >= 0 && today >= self.expires {
            Some("the account has expired")
        } else if self.changed == 0 {
            Some("the password must be changed first")
        } else if self.changed > 0 && self.max >= 0 && today > self.changed.saturating_add(self.max) {
            Some("the password has expired")
        } else {
            None
        }
    }
}

/// The entry; None when the account has none there.
pub fn entry(name: &[u8]) -> Result<Option<Entry>, Errno> {
    let Ok(name) = CString::new(name) else { return Ok(None) };
    let mut entry = MaybeUninit::<libc::spwd>::zeroed();
    let mut buffer = vec![0u8; ENTRY_MAX];
    let mut found: *mut libc::spwd = ptr::null_mut();
    // SAFETY: all pointers are to live memory of the sizes given; the result points into `entry` and
    // `buffer`, and its string is copied before they go.
    let (code, entry) = unsafe {
        let code = libc::getspnam_r(
            name.as_ptr(),
            entry.as_mut_ptr(),
            buffer.as_mut_ptr().cast::<c_char>(),
            buffer.len(),
            &mut found,
        );
        let entry = found.as_ref().filter(|found| !found.sp_pwdp.is_null()).map(|found| Entry {
            hash: Secret(CStr::from_ptr(found.sp_pwdp).to_bytes().to_vec()),
            changed: found.sp_lstchg,
            max: found.sp_max,
            expires: found.sp_expire,
        });
        (code, entry)
    };
    wipe(&mut buffer);
    match (code, entry) {
        (0, entry) => Ok(entry),
        (libc::ENOENT, _) => Ok(None), // no shadow file on this system
        (code, _) => Err(Errno::from_raw(code)),
    }
}

/// The first hash there that `is_usable`: what is usual on this system, for names that have none.
pub fn usual(is_usable: impl Fn(&[u8]) -> bool) -> Option<Secret> {
    let mut buffer = vec![0u8; ENTRY_MAX];
    let mut hash = None;
    // SAFETY: as above; these programs have one thread, and nobody else in it reads the list.
    unsafe {
        setspent();
        for _ in 0..LOOK_MAX {
            let mut entry = MaybeUninit::<libc::spwd>::zeroed();
            let mut found: *mut libc::spwd = ptr::null_mut();
            let room = buffer.as_mut_ptr().cast::<c_char>();
            let code = libc::getspent_r(entry.as_mut_ptr(), room, buffer.len(), &mut found);
            let Some(found) = found.as_ref().filter(|_| code == 0) else { break };
            if !found.sp_pwdp.is_null() && is_usable(CStr::from_ptr(found.sp_pwdp).to_bytes()) {
                hash = Some(Secret(CStr::from_ptr(found.sp_pwdp).to_bytes().to_vec()));
                break;
            }
        }
        endspent();
    }
    wipe(&mut buffer);
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_closed_by_its_dates() {
        let closed =
            |changed, max, expires| Entry { hash: Secret::default(), changed, max, expires }.closed(20_000);
        assert_eq!(closed(-1, -1, -1), None);
        assert_eq!(closed(19_000, 99_999, -1), None);
        assert_eq!(closed(19_000, 1000, 20_001), None);
        assert!(closed(19_000, 999, -1).is_some() && closed(0, -1, -1).is_some());
        assert!(closed(-1, -1, 20_000).is_some() && closed(-1, -1, 0).is_some());
    }
}
