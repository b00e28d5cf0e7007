//! tlscert - make a certificate for the first day, signed by itself
//!
//! called by  the administrator                        runs as  root, or the owner of the home
//! touches    control/tls of the home: makes `default` (-n: another name) with cert.pem and key.pem
//! jail       writes in that directory; no exec, no network
//! exit       0 made, 100 wrong use, 111 not made (one that is there already is never replaced)
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use nix::unistd::mkdir;
use qmail::home::Home;
use qmail::program::{self, Args};
use qmail::trouble::Trouble;
use qmail::{decimal, fd};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use std::time::{SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use tls::store::DEFAULT;
use zeroize::Zeroizing;

const USAGE: &str = "tlscert [ -k directory ] [ -n name ] [ -d days ] [ hostname ... ]";

/// Nobody believes it anyway, and a person who has to make a new one every year learns nothing from that.
const DAYS: u64 = 3650;
const DAYS_MAX: u64 = 36_500;
const DAY: u64 = 86_400;

/// Clocks of clients that are a little slow.
const BACK_SECONDS: u64 = 3600;

const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;

fn main() -> ! {
    program::run("tlscert", USAGE, tlscert)
}

fn tlscert(args: Args) -> Result<(), Trouble> {
    let parsed = args.options("k:n:d:")?;
    let days = match parsed.value('d').map(decimal::strict) {
        None => DAYS,
        Some(Some(days @ 1..=DAYS_MAX)) => days,
        Some(_) => return Err(Trouble::usage("-d takes a number of days above 0, a hundred years at most")),
    };
    let name = parsed.value('n').unwrap_or(DEFAULT.as_bytes());
    if name.is_empty() || name.starts_with(b".") || name.contains(&b'/') {
        return Err(Trouble::usage("-n takes the name of a directory"));
    }
    let (directory, me) = match parsed.value('k') {
        Some(directory) => (directory.to_vec(), None),
        None => {
            let home = Home::find()?;
            (home.path("control/tls"), home.control().me()?)
        }
    };
    let hosts = if parsed.rest.is_empty() { me.into_iter().collect() } else { parsed.rest.clone() };
    if hosts.is_empty() {
        return Err(Trouble::usage("no name of a host was given, and control/me has none"));
    }
    umask(Mode::from_bits_truncate(0o022));
    make(&directory, true)?;
    Jail::of(&programs::TLSCERT).place(programs::TARGET, directory.as_slice()).close()?;

    let (certificate, key) = pair(&hosts, days)?;
    // Whole or not at all: tlsserver looks at no name that starts with a dot.
    let place = [directory.as_slice(), b"/", name].concat();
    let fresh = [directory.as_slice(), b"/.", name, b".new"].concat();
    make(&fresh, true)?;
    let written = write(&fresh, "key.pem", key.as_bytes(), KEY_MODE)
        .and_then(|()| write(&fresh, "cert.pem", certificate.as_bytes(), CERTIFICATE_MODE))
        .and_then(|()| fd::sync_directory(&fresh).map_err(|e| Trouble::unable("sync", &fresh, e)))
        .and_then(|()| put(&fresh, &place));
    if written.is_err() {
        remove(&fresh);
    }
    written?;
    fd::sync_directory(&directory).map_err(|e| Trouble::unable("sync", &directory, e))
}

/// rename(2) replaces an empty directory, so one that is there has to be looked for.
fn put(fresh: &[u8], place: &[u8]) -> Result<(), Trouble> {
    match nix::sys::stat::lstat(fd::path(place)) {
        Err(Errno::ENOENT) => {}
        Ok(_) => return Err(Trouble::unable("make", place, Errno::EEXIST)),
        Err(errno) => return Err(Trouble::unable("make", place, errno)),
    }
    std::fs::rename(fd::path(fresh), fd::path(place))
        .map_err(|e| Trouble::unable("make", place, qmail::trouble::errno(&e)))
}

fn make(directory: &[u8], may_be_there: bool) -> Result<(), Trouble> {
    match mkdir(fd::path(directory), Mode::from_bits_truncate(0o755)) {
        Err(Errno::EEXIST) if may_be_there => Ok(()),
        made => made.map_err(|e| Trouble::unable("make", directory, e)),
    }
}

/// What an earlier one left when it was killed is written anew.
fn write(directory: &[u8], name: &str, text: &[u8], mode: u32) -> Result<(), Trouble> {
    let path = [directory, b"/", name.as_bytes()].concat();
    let failed = |errno| Trouble::unable("write", &path, errno);
    match nix::unistd::unlink(fd::path(&path)) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let file = fd::create_new(&path, mode).map_err(failed)?;
    fd::write_all(&file, text).and_then(|()| fd::fsync(&file)).map_err(failed)
}

fn remove(fresh: &[u8]) {
    for name in ["key.pem", "cert.pem"] {
        let _ = nix::unistd::unlink(fd::path(&[fresh, b"/", name.as_bytes()].concat()));
    }
    let _ = std::fs::remove_dir(fd::path(fresh));
}

/// A certificate for these hosts and its new key, both in PEM.
fn pair(hosts: &[Vec<u8>], days: u64) -> Result<(String, Zeroizing<String>), Trouble> {
    let names: Vec<String> = hosts.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    let common = names.first().cloned().unwrap_or_default();
    let failed = |e: rcgen::Error| Trouble::permanent(format!("unable to make a certificate: {e}"));
    let mut wanted = CertificateParams::new(names).map_err(failed)?;
    wanted.distinguished_name = DistinguishedName::new();
    wanted.distinguished_name.push(DnType::CommonName, common);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    wanted.not_before = date(now.saturating_sub(BACK_SECONDS))?;
    wanted.not_after = date(now.saturating_add(days * DAY))?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let certificate = wanted.self_signed(&key).map_err(failed)?;
    Ok((certificate.pem(), Zeroizing::new(key.serialize_pem())))
}

fn date(seconds: u64) -> Result<OffsetDateTime, Trouble> {
    let seconds = i64::try_from(seconds).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    seconds.ok_or_else(|| Trouble::temporary("the clock says a time that a certificate cannot say"))
}
