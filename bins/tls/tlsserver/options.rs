//! What the command line says beyond tcpserver's options.

use net::options as tcp;
use nix::unistd::{Gid, Uid};
use qmail::home::{self, Ids};
use qmail::trouble::Trouble;
use qmail::{environ, fd, program};
use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};
use std::time::Duration;
use tls::session::Settings;
use tls::store::Store;

pub const USAGE: &str = "tlsserver [ -1qQvXUoOdDhHpPrR46nN ] [ -k directory ] [ -T uid:gid ] [ -m version ] [ -a protocol,... ] \
    [ -A authorities ] [ -w seconds ] [ -c limit ] [ -C limit ] [ -x rules.cdb ] [ -B banner ] [ -g gid ] [ -u uid ] \
    [ -b backlog ] [ -l localname ] [ -t timeout ] [ -I interface ] host port program [ arg ... ]";
const LETTERS: &str = "nNk:T:m:a:A:w:";

/// Where certificates are, below the home.
const DIRECTORY: &str = "control/tls";

/// From the first byte of the handshake to its last.
const HANDSHAKE_SECONDS: u64 = 30;

/// The account of the processes that speak TLS when a home has no other for them: it runs only short questions
/// about users, and never anything that a peer reaches.
const ROLE: &str = "qmailp";

static FROM_1_2: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
static FROM_1_3: &[&SupportedProtocolVersion] = &[&TLS13];

/// users/ids has nine lines at most.
const IDS_MAX: usize = 16 * 1024;

pub struct Options {
    /// The program says when TLS begins.
    pub delayed: bool,
    pub directory: Vec<u8>,
    /// Who the processes that speak TLS become; None when we cannot become anybody.
    pub user: Option<(Uid, Gid)>,
    pub handshake: Duration,
    pub settings: Settings,
}

impl Options {
    pub fn of(args: &program::Args) -> Result<(tcp::Options, Options), Trouble> {
        let (tcp, given) = tcp::Options::with(args, LETTERS)?;
        let settings = Settings {
            versions: FROM_1_2,
            protocols: Vec::new(),
            authorities: None,
            certificate_needed: false,
        };
        let mut o = Options {
            delayed: false,
            directory: [home().as_slice(), b"/", DIRECTORY.as_bytes()].concat(),
            user: None,
            handshake: Duration::from_secs(HANDSHAKE_SECONDS),
            settings,
        };
        let mut user = None;
        for (letter, value) in given {
            match letter {
                'n' => o.delayed = true,
                'N' => o.settings.certificate_needed = true,
                'k' => o.directory = value,
                'T' => user = Some(pair(&value)?),
                'm' => o.settings.versions = versions(&value)?,
                'a' => o.settings.protocols = protocols(&value)?,
                'A' => o.settings.authorities = Some(value),
                _ => o.handshake = Duration::from_secs(tcp::number(letter, &value)?),
            }
        }
        if o.settings.certificate_needed && o.settings.authorities.is_none() {
            return Err(Trouble::usage("-N needs the authorities of -A"));
        }
        if Uid::effective().is_root() {
            let (uid, gid) = user
                .or_else(|| Store::at(o.directory.as_slice()).owner())
                .or_else(account)
                .ok_or_else(|| {
                    Trouble::temporary(
                        "nobody to become for TLS: give -T uid:gid, or users/ids an account qmailp",
                    )
                })?;
            o.user = Some((Uid::from_raw(uid), Gid::from_raw(gid)));
        }
        Ok((tcp, o))
    }
}

fn home() -> Vec<u8> {
    environ::get("QMAIL_HOME").unwrap_or_else(|| home::DEFAULT.as_bytes().to_vec())
}

/// The account of a system home; an own home has its owner alone.
fn account() -> Option<(u32, u32)> {
    let text = fd::read_file([home().as_slice(), b"/users/ids"].concat(), IDS_MAX).ok()??;
    let account = Ids::parse(&text)?.role(ROLE).filter(|account| !account.uid.is_root())?;
    Some((account.uid.as_raw(), account.gid.as_raw()))
}

fn pair(value: &[u8]) -> Result<(u32, u32), Trouble> {
    let wrong = || Trouble::usage("-T takes UID:GID, two numbers above 0");
    let at = value.iter().position(|b| *b == b':').ok_or_else(wrong)?;
    let (uid, gid) = value.split_at(at);
    let id = |number: &[u8]| tcp::id("-T", number)?.ok_or_else(wrong);
    Ok((id(uid)?, id(gid.get(1..).unwrap_or_default())?))
}

fn versions(value: &[u8]) -> Result<&'static [&'static SupportedProtocolVersion], Trouble> {
    match value {
        b"1.2" => Ok(FROM_1_2),
        b"1.3" => Ok(FROM_1_3),
        _ => Err(Trouble::usage("-m takes 1.2 or 1.3, the lowest version")),
    }
}

/// rfc7301:3.1: names of 1 to 255 bytes.
fn protocols(value: &[u8]) -> Result<Vec<Vec<u8>>, Trouble> {
    let names: Vec<Vec<u8>> = value.split(|b| *b == b',').map(<[u8]>::to_vec).collect();
    match names.iter().all(|name| (1..=255).contains(&name.len())) {
        true => Ok(names),
        false => Err(Trouble::usage("-a takes names of protocols with commas between them")),
    }
}
