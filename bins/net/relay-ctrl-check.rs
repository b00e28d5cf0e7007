//! relay-ctrl-check - let who has just read mail relay mail: the other side of popauth
//!
//! called by  tcpserver, before qmail-smtpd
//! arguments  [-d directory] [-t seconds] program [argument ...]
//! runs as    qmaild
//! fd 0, 1    the connection, for the program
//! env        TCPREMOTEIP; RELAY_CTRL_DIR, RELAY_CTRL_EXPIRY, RELAY_CTRL_RELAYCLIENT; sets RELAYCLIENT
//! touches    the directory that popauth writes: looks at one file
//! jail       rlimits only: it runs its arguments
//! exit       111 temporary trouble, 100 wrong use; else the program's
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use qmail::environ::{self, Environ};
use qmail::program::{self, Args};
use qmail::sys::process::Command;
use qmail::trouble::Trouble;
use qmail::{decimal, fd};
use std::fs;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// How long an address may relay after it was written.
const WINDOW: u64 = 1200;
const WINDOW_MAX: u64 = 86_400;

fn main() {
    program::run("relay-ctrl-check", "relay-ctrl-check [-d directory] [-t seconds] program [arg ...]", check)
}

fn check(args: Args) -> Result<(), Trouble> {
    let parsed = args.options("d:t:")?;
    let Some(name) = parsed.rest.first() else { return Err(args.wrong()) };
    Jail::of(&programs::RELAY_CTRL_CHECK).close()?;
    let directory = parsed.value('d').map(<[u8]>::to_vec).or_else(|| environ::get("RELAY_CTRL_DIR"));
    let Some(directory) = directory else {
        return Err(Trouble::usage("neither -d nor RELAY_CTRL_DIR is there"));
    };
    let seconds = parsed.value('t').map(<[u8]>::to_vec).or_else(|| environ::get("RELAY_CTRL_EXPIRY"));
    let window = match seconds.as_deref().map(decimal::strict) {
        None => WINDOW,
        Some(Some(seconds)) if (1..=WINDOW_MAX).contains(&seconds) => seconds,
        Some(_) => return Err(Trouble::usage("an expiry has 1 to 86400 seconds")),
    };
    let mut environ = Environ::inherited();
    if environ.get(b"RELAYCLIENT").is_none() && is_open(&directory, Duration::from_secs(window))? {
        environ.set("RELAYCLIENT", environ::get("RELAY_CTRL_RELAYCLIENT").unwrap_or_default());
    }
    let Some(path) = program::find(name) else { return Err(Trouble::unable("find", name, Errno::ENOENT)) };
    let errno = Command::new(path, &parsed.rest).environ(&environ).exec();
    Err(Trouble::unable("run", name, errno))
}

/// Whether the file of the client's address is young enough. One from the future was written before the clock was set
/// back, nobody knows when.
fn is_open(directory: &[u8], window: Duration) -> Result<bool, Trouble> {
    let address =
        environ::get("TCPREMOTEIP").and_then(|text| std::str::from_utf8(&text).ok()?.parse::<IpAddr>().ok());
    let Some(address) = address else { return Ok(false) };
    let file = [directory, b"/", address.to_canonical().to_string().as_bytes()].concat();
    let unable = |error: &std::io::Error| Trouble::unable("look at", &file, qmail::trouble::errno(error));
    match fs::symlink_metadata(fd::path(&file)) {
        Ok(found) => {
            let age = SystemTime::now().duration_since(found.modified().map_err(|error| unable(&error))?);
            Ok(found.is_file() && age.is_ok_and(|age| age < window))
        }
        // The directory must be there: else everybody would be refused who should not be.
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {
            match fs::metadata(fd::path(directory)) {
                Ok(_) => Ok(false),
                Err(error) => Err(Trouble::unable("look at", directory, qmail::trouble::errno(&error))),
            }
        }
        Err(error) => Err(unable(&error)),
    }
}
