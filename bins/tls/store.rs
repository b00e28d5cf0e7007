//! store - the directory of certificates: one directory a server name, and `default`
//!
//! `NAME/cert.pem` the chain, `NAME/key.pem` its key, `NAME/ocsp.der` a response to staple. Names that start with
//! a dot, and directories with neither certificate nor key, are not looked at. A directory may be a symbolic
//! link. All of them are good, or none is used.
#![forbid(unsafe_code)]

use nix::sys::stat::stat;
use nix::unistd::Uid;
use qmail::fd;
use qmail::trouble::Trouble;
use qmail::trust::{Judge, Kind, Thing, WRITABLE};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// For clients that ask for no name, or for one that is not there.
pub const DEFAULT: &str = "default";

const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";
const RESPONSE: &str = "ocsp.der";

/// Some thousand names are a big provider's; each costs a look once a second.
const NAMES_MAX: usize = 10_000;

/// Chains have some kilobytes, and must go in one packet.
const FILE_MAX: usize = 32 * 1024;

/// Others than owner and group can read.
const WORLD_READABLE: u32 = 0o004;

pub type Keys = BTreeMap<Vec<u8>, Arc<CertifiedKey>>;

pub struct Store {
    directory: Vec<u8>,
}

impl Store {
    pub fn at(directory: impl Into<Vec<u8>>) -> Store {
        Store { directory: directory.into() }
    }

    fn names(&self) -> Result<Vec<Vec<u8>>, Trouble> {
        let unreadable =
            |e: std::io::Error| Trouble::unable("read", &self.directory, qmail::trouble::errno(&e));
        let mut names = Vec::new();
        for entry in std::fs::read_dir(fd::path(&self.directory)).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name().into_vec();
            if !name.starts_with(b".")
                && [CERTIFICATE, KEY].iter().any(|file| stat(fd::path(&self.file(&name, file))).is_ok())
            {
                names.push(name);
            }
            if names.len() > NAMES_MAX {
                return Err(Trouble::temporary([b"too many names in ", self.directory.as_slice()].concat()));
            }
        }
        names.sort();
        Ok(names)
    }

    fn file(&self, name: &[u8], file: &str) -> Vec<u8> {
        [self.directory.as_slice(), b"/", name, b"/", file.as_bytes()].concat()
    }

    /// Changes when any of the files does. Never fails: what cannot be looked at is no change.
    pub fn state(&self) -> Vec<u8> {
        let mut state = Vec::new();
        for name in self.names().unwrap_or_default() {
            state.extend_from_slice(&name);
            for file in [CERTIFICATE, KEY, RESPONSE] {
                if let Ok(s) = stat(fd::path(&self.file(&name, file))) {
                    for number in [
                        s.st_dev as i64,
                        s.st_ino as i64,
                        s.st_size,
                        s.st_mtime,
                        s.st_mtime_nsec,
                        s.st_ctime,
                        s.st_ctime_nsec,
                    ] {
                        state.extend_from_slice(&number.to_ne_bytes());
                    }
                }
                state.push(b'/');
            }
        }
        state
    }

    /// The owner of the first key that is not root's.
    pub fn owner(&self) -> Option<(u32, u32)> {
        let names = self.names().ok()?;
        names.iter().find_map(|name| {
            let found = stat(fd::path(&self.file(name, KEY))).ok()?;
            (found.st_uid != 0).then_some((found.st_uid, found.st_gid))
        })
    }

    /// Everything, read and tried: the first thing that is wrong is said. `owner` may own them beside root.
    pub fn load(&self, owner: Option<Uid>) -> Result<Keys, Trouble> {
        let names = self.names()?;
        if names.is_empty() {
            let text = b": there is no NAME/cert.pem in it (tlscert makes a first one)";
            return Err(Trouble::temporary(
                [b"no certificate in ", self.directory.as_slice(), text].concat(),
            ));
        }
        let mut keys = Keys::new();
        for name in names {
            self.check(&name, owner)?;
            keys.insert(name.to_ascii_lowercase(), Arc::new(self.read(&name)?));
        }
        Ok(keys)
    }

    /// Nobody but root and the owner may be able to put another key here; and a key is not for everybody.
    fn check(&self, name: &[u8], owner: Option<Uid>) -> Result<(), Trouble> {
        let key = Thing { closed: WRITABLE | WORLD_READABLE, ..Thing::new(Kind::File, self.file(name, KEY)) };
        if !Uid::effective().is_root() {
            let readable = stat(fd::path(&key.path)).is_ok_and(|s| s.st_mode & WORLD_READABLE != 0);
            return match readable {
                true => Err(Trouble::temporary(
                    [b"refusing ", key.path.as_slice(), b": everybody can read it: chmod o= it"].concat(),
                )),
                false => Ok(()),
            };
        }
        let trusted: Vec<Uid> = owner.into_iter().collect();
        Judge::new(&trusted).first(&[
            Thing::new(Kind::Directory, self.directory.as_slice()),
            Thing::new(Kind::Directory, [self.directory.as_slice(), b"/", name].concat()),
            Thing::new(Kind::File, self.file(name, CERTIFICATE)),
            key,
        ])
    }

    fn read(&self, name: &[u8]) -> Result<CertifiedKey, Trouble> {
        let (certificate, key) = (self.file(name, CERTIFICATE), self.file(name, KEY));
        let chain = chain(&certificate)?;
        let key = private_key(&key)?;
        let mut found = CertifiedKey::new(chain, key);
        match found.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => return Err(bad(&certificate, "it is not the certificate of key.pem beside it")),
        }
        let response = self.file(name, RESPONSE);
        found.ocsp = fd::read_file(&response, FILE_MAX).map_err(|e| Trouble::unable("read", &response, e))?;
        Ok(found)
    }
}

/// The certificates of a file, the server's own first.
pub fn chain(path: &[u8]) -> Result<Vec<CertificateDer<'static>>, Trouble> {
    let pem = whole(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(bad(path, "there is no certificate in PEM in it")),
    }
}

pub fn private_key(path: &[u8]) -> Result<Arc<dyn rustls::sign::SigningKey>, Trouble> {
    let pem = whole(path)?;
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| bad(path, "there is no private key in PEM in it (without a password)"))?;
    any_supported_type(&key).map_err(|_| {
        bad(path, "not a kind of key that is known here (RSA from 2048 bits, P-256, P-384, Ed25519)")
    })
}

fn whole(path: &[u8]) -> Result<Zeroizing<Vec<u8>>, Trouble> {
    let found = fd::read_file(path, FILE_MAX).map_err(|e| Trouble::unable("read", path, e))?;
    found.map(Zeroizing::new).ok_or_else(|| Trouble::unable("read", path, nix::errno::Errno::ENOENT))
}

fn bad(path: &[u8], what: &str) -> Trouble {
    Trouble::temporary([b"refusing ", path, b": ", what.as_bytes()].concat())
}

/// The key for a name that a client asks for: its own, that of `*.` and its domain, or the default.
pub fn find<'a>(keys: &'a Keys, name: &[u8]) -> Option<&'a Arc<CertifiedKey>> {
    let name = name.to_ascii_lowercase();
    let above = name.iter().position(|b| *b == b'.').and_then(|at| name.get(at..));
    let own = Some(&name).filter(|name| !name.is_empty()).and_then(|name| keys.get(name.as_slice()));
    own.or_else(|| keys.get([b"*", above?].concat().as_slice())).or_else(|| keys.get(DEFAULT.as_bytes()))
}
