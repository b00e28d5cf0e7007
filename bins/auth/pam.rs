//! pam - the system's PAM, behind one safe function
//!
//! libpam is looked for when it is asked for the first time: a system without it has all other checkers. Its modules
//! are code of others and run in this process.
#![allow(unsafe_code)]

use qmail::auth::wipe;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::{mem, ptr};

/// What pam(3) numbers so on Linux.
const SUCCESS: c_int = 0;
const OPEN_ERR: c_int = 1;
const SYMBOL_ERR: c_int = 2;
const SERVICE_ERR: c_int = 3;
const SYSTEM_ERR: c_int = 4;
const BUF_ERR: c_int = 5;
const CRED_INSUFFICIENT: c_int = 8;
const AUTHINFO_UNAVAIL: c_int = 9;
const CONV_ERR: c_int = 19;
const ABORT: c_int = 26;
const MODULE_UNKNOWN: c_int = 28;
const BAD_ITEM: c_int = 29;

const USER: c_int = 2;
const RHOST: c_int = 4;
const FAIL_DELAY: c_int = 10;

const PROMPT_ECHO_OFF: c_int = 1;
const PROMPT_ECHO_ON: c_int = 2;
const ERROR_MSG: c_int = 3;
const TEXT_INFO: c_int = 4;

const SILENT: c_int = 0x8000;
const DISALLOW_NULL_AUTHTOK: c_int = 1;

/// Messages of one turn of the conversation; libpam's own limit.
const MESSAGES_MAX: usize = 32;

#[repr(C)]
struct Message {
    style: c_int,
    text: *const c_char,
}

#[repr(C)]
struct Response {
    text: *mut c_char,
    code: c_int,
}

type Converse = extern "C" fn(c_int, *const *const Message, *mut *mut Response, *mut c_void) -> c_int;

#[repr(C)]
struct Conversation {
    converse: Converse,
    data: *mut c_void,
}

type Handle = *mut c_void;

/// The functions of libpam that are used.
struct Library {
    start: unsafe extern "C" fn(*const c_char, *const c_char, *const Conversation, *mut Handle) -> c_int,
    end: unsafe extern "C" fn(Handle, c_int) -> c_int,
    set_item: unsafe extern "C" fn(Handle, c_int, *const c_void) -> c_int,
    get_item: unsafe extern "C" fn(Handle, c_int, *mut *const c_void) -> c_int,
    authenticate: unsafe extern "C" fn(Handle, c_int) -> c_int,
    acct_mgmt: unsafe extern "C" fn(Handle, c_int) -> c_int,
}

impl Library {
    fn open() -> Option<Library> {
        // SAFETY: the name is NUL-terminated; what is loaded is the system's own library, and stays loaded.
        let library = unsafe { libc::dlopen(c"libpam.so.0".as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return None;
        }
        let symbol = |name: &CStr| {
            // SAFETY: the handle is open and the name NUL-terminated.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!found.is_null()).then_some(found)
        };
        // SAFETY: these are the functions of these names that pam(3) describes, with the types it gives them.
        unsafe {
            Some(Library {
                start: mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(
                        *const c_char,
                        *const c_char,
                        *const Conversation,
                        *mut Handle,
                    ) -> c_int,
                >(symbol(c"pam_start")?),
                end: mem::transmute::<*mut c_void, unsafe extern "C" fn(Handle, c_int) -> c_int>(symbol(
                    c"pam_end",
                )?),
                set_item: mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(Handle, c_int, *const c_void) -> c_int,
                >(symbol(c"pam_set_item")?),
                get_item: mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(Handle, c_int, *mut *const c_void) -> c_int,
                >(symbol(c"pam_get_item")?),
                authenticate: mem::transmute::<*mut c_void, unsafe extern "C" fn(Handle, c_int) -> c_int>(
                    symbol(c"pam_authenticate")?,
                ),
                acct_mgmt: mem::transmute::<*mut c_void, unsafe extern "C" fn(Handle, c_int) -> c_int>(
                    symbol(c"pam_acct_mgmt")?,
                ),
            })
        }
    }
}

/// What PAM says of a login.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Under this name, which a module may have changed.
    Accepted(Vec<u8>),
    Refused,
    /// The password is right, and the account may not be used: why, by pam(3)'s number.
    Closed(i32),
    /// Nothing can be said: what failed, and pam(3)'s number.
    Trouble(&'static str, i32),
    /// There is no libpam here.
    Missing,
}

/// Whether a return value says something about us and not about the user.
fn is_trouble(code: c_int) -> bool {
    matches!(
        code,
        OPEN_ERR
            | SYMBOL_ERR
            | SERVICE_ERR
            | SYSTEM_ERR
            | BUF_ERR
            | CRED_INSUFFICIENT
            | AUTHINFO_UNAVAIL
            | CONV_ERR
            | ABORT
            | MODULE_UNKNOWN
            | BAD_ITEM
    )
}

/// What a module is told when it asks.
struct Talk {
    name: CString,
    password: CString,
}

impl Drop for Talk {
    fn drop(&mut self) {
        wipe(&mut mem::take(&mut self.password).into_bytes());
    }
}

/// A conversation: whoever asks without showing gets the password, whoever shows what is typed the name.
extern "C" fn converse(
    count: c_int,
    messages: *const *const Message,
    responses: *mut *mut Response,
    data: *mut c_void,
) -> c_int {
    let count = usize::try_from(count).unwrap_or(0);
    if count == 0 || count > MESSAGES_MAX || messages.is_null() || responses.is_null() || data.is_null() {
        return CONV_ERR;
    }
    // SAFETY: libpam gives `count` pointers to messages, a place for one pointer, and what was given to pam_start, which
    // lives until pam_end. It frees, by free(3), the array and each text, so both are of malloc's.
    unsafe {
        let talk = &*data.cast::<Talk>();
        let row = libc::calloc(count, mem::size_of::<Response>()).cast::<Response>();
        if row.is_null() {
            return BUF_ERR;
        }
        for n in 0..count {
            let message = *messages.add(n);
            let style = if message.is_null() { -1 } else { (*message).style };
            let answer = match style {
                PROMPT_ECHO_OFF => libc::strdup(talk.password.as_ptr()),
                PROMPT_ECHO_ON => libc::strdup(talk.name.as_ptr()),
                ERROR_MSG | TEXT_INFO => continue, // not for the client
                _ => ptr::null_mut(),
            };
            if answer.is_null() {
                forget(row, count);
                return CONV_ERR;
            }
            (*row.add(n)).text = answer;
        }
        *responses = row;
    }
    SUCCESS
}

/// Frees answers that nobody gets.
///
/// # Safety
/// `row` is an array of `count` that calloc gave, and its texts are strdup's or NULL.
unsafe fn forget(row: *mut Response, count: usize) {
    // SAFETY: as above.
    unsafe {
        for n in 0..count {
            let text = (*row.add(n)).text;
            if !text.is_null() {
                let length = libc::strlen(text);
                wipe(std::slice::from_raw_parts_mut(text.cast::<u8>(), length));
                libc::free(text.cast());
            }
        }
        libc::free(row.cast());
    }
}

/// Whoever fails waits elsewhere, where no root process waits with him.
extern "C" fn no_delay(_code: c_int, _microseconds: c_uint, _data: *mut c_void) {}

/// Asks for a login by the rules of a service: who he is, and then whether he may come in.
pub fn ask(service: &[u8], name: &[u8], password: &[u8], remote: Option<&[u8]>) -> Answer {
    let strings = (CString::new(service), CString::new(name), CString::new(password));
    let (Ok(service), Ok(name), Ok(password)) = strings else { return Answer::Refused };
    let remote = remote.and_then(|remote| CString::new(remote).ok());
    let Some(pam) = Library::open() else { return Answer::Missing };
    let user = name.clone();
    let mut talk = Talk { name, password };
    let conversation = Conversation { converse, data: (&raw mut talk).cast() };
    let mut handle: Handle = ptr::null_mut();
    // SAFETY: all strings are NUL-terminated and live, as `talk` and `conversation` do, until pam_end has returned; the
    // handle is used between pam_start and pam_end only; the name that comes back is copied before the latter.
    unsafe {
        let code = (pam.start)(service.as_ptr(), user.as_ptr(), &conversation, &mut handle);
        if code != SUCCESS {
            return Answer::Trouble("pam_start", code);
        }
        if let Some(remote) = &remote {
            (pam.set_item)(handle, RHOST, remote.as_ptr().cast());
        }
        (pam.set_item)(handle, FAIL_DELAY, no_delay as *const c_void);
        let code = (pam.authenticate)(handle, SILENT | DISALLOW_NULL_AUTHTOK);
        let (answer, code) = if code != SUCCESS {
            let trouble = Answer::Trouble("pam_authenticate", code);
            (if is_trouble(code) { trouble } else { Answer::Refused }, code)
        } else {
            let code = (pam.acct_mgmt)(handle, SILENT | DISALLOW_NULL_AUTHTOK);
            let mut item: *const c_void = ptr::null();
            let answer = match code {
                SUCCESS if (pam.get_item)(handle, USER, &mut item) == SUCCESS && !item.is_null() => {
                    Answer::Accepted(CStr::from_ptr(item.cast()).to_bytes().to_vec())
                }
                SUCCESS => Answer::Trouble("pam_get_item", BAD_ITEM),
                code if is_trouble(code) => Answer::Trouble("pam_acct_mgmt", code),
                code => Answer::Closed(code),
            };
            (answer, code)
        };
        (pam.end)(handle, code);
        drop(talk);
        answer
    }
}
