//! The home, the control file, the owner: everything that is looked up before anything is delivered.

use crate::instructions::Mode;
use crate::report;
use nix::errno::Errno;
use nix::libc::{S_IFMT, S_IFREG, S_ISVTX, S_IWOTH, S_IXUSR};
use nix::sys::stat::{fstat, stat};
use qmail::dotqmail::{self, Candidate, Delivery, Owner};
use qmail::fd;
use qmail::trouble::{Trouble, wording};
use std::os::fd::OwnedFd;

/// A .qmail file is held in memory. This is some hundred thousand forwards: beyond, it is a mistake.
const FILE_MAX: usize = 8 * 1024 * 1024;

/// A control file that was found.
pub struct Found {
    pub candidate: Candidate,
    pub text: Vec<u8>,
    /// The owner's x bit: only forwards are allowed in it.
    pub forward_only: bool,
}

/// Makes the home the working directory, if its owner has it in order.
pub fn enter_home(home: &[u8], mode: Mode) -> Result<(), Trouble> {
    nix::unistd::chdir(fd::path(home))
        .map_err(|errno| report::unable("switch to ", home, wording(errno), "4.3.0"))?;
    let bits = stat(".")
        .map_err(|errno| report::unable("stat home directory", b"", wording(errno), "4.3.0"))?
        .st_mode;
    if bits & S_IWOTH != 0 {
        return Err(Trouble::temporary(report::HOME_WRITABLE));
    }
    if bits & S_ISVTX != 0 {
        if mode == Mode::Deliver {
            return Err(Trouble::temporary(report::STICKY));
        }
        let _ = fd::write_all(fd::ERR, format!("{}\n", report::STICKY).as_bytes());
    }
    Ok(())
}

/// The control file for this recipient. None when there is none and none is needed: the recipient is
/// the user himself.
pub fn control_file(delivery: &Delivery) -> Result<Option<Found>, Trouble> {
    for candidate in dotqmail::candidates(&delivery.dash, &delivery.ext) {
        if let Some(found) = try_open(candidate)? {
            return Ok(Some(found));
        }
    }
    if delivery.dash.is_empty() { Ok(None) } else { Err(Trouble::permanent(report::NO_MAILBOX)) }
}

/// None when there is no such file, or it is no file.
fn try_open(candidate: Candidate) -> Result<Option<Found>, Trouble> {
    let name = &candidate.file;
    let file = match fd::open_read(name) {
        Ok(file) => file,
        Err(errno) if is_absence(errno) => return Ok(None),
        Err(errno) => return Err(report::open(name, errno)),
    };
    let bits = fstat(&file).map_err(|errno| report::open(name, errno))?.st_mode;
    if bits & S_IFMT != S_IFREG {
        return Ok(None);
    }
    if bits & S_IWOTH != 0 {
        return Err(Trouble::temporary(report::FILE_WRITABLE));
    }
    let text = read(name, file)?;
    Ok(Some(Found { candidate, text, forward_only: bits & S_IXUSR != 0 }))
}

fn read(name: &[u8], file: OwnedFd) -> Result<Vec<u8>, Trouble> {
    fd::read_to_end(file, FILE_MAX).map_err(|errno| report::unable("read ", name, wording(errno), "4.3.0"))
}

/// Whether this says that there is no such file, or none that could be one. Everything else is in
/// doubt, and a wrong "no mailbox here" is a bounce.
fn is_absence(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG | Errno::EINVAL | Errno::ENXIO)
}

/// Whether bounces of forwards go to an owner of this address.
pub fn owner(delivery: &Delivery) -> Result<Owner, Trouble> {
    if !dotqmail::may_have_owner(&delivery.sender) || !exists(delivery, b"-owner")? {
        return Ok(Owner::None);
    }
    Ok(if exists(delivery, b"-owner-default")? { Owner::EachRecipient } else { Owner::Plain })
}

fn exists(delivery: &Delivery, end: &[u8]) -> Result<bool, Trouble> {
    let name = dotqmail::control_name(&delivery.dash, &delivery.ext, end);
    match stat(fd::path(&name)) {
        Ok(_) => Ok(true),
        Err(errno) if is_absence(errno) => Ok(false),
        Err(errno) => Err(report::unable("stat ", &name, wording(errno), "4.3.0")),
    }
}
