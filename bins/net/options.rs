//! The command line of tcpserver, and of what takes the same options and more.

use qmail::trouble::Trouble;
use qmail::{decimal, environ, program};
use std::time::Duration;

const LETTERS: &str = "qQvc:C:x:XB:g:u:U1b:oOdDhHpPl:rRt:46I:";

/// Children at the same time.
const LIMIT: usize = 40;
const BACKLOG: u64 = 20;
const IDENT_TIMEOUT: u64 = 26;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    Silent,
    Errors,
    Status,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Any,
    V4,
    V6,
}

/// Options as they were given, in their order.
pub type Given = Vec<(char, Vec<u8>)>;

pub struct Options {
    pub verbosity: Verbosity,
    pub limit: usize,
    /// As `limit`, for one IPv4 address or one IPv6 network of 64 bits.
    pub limit_per_address: Option<usize>,
    pub rules: Option<Vec<u8>>,
    /// A missing rules file allows everybody.
    pub rules_may_be_missing: bool,
    pub banner: Vec<u8>,
    pub gid: Option<u32>,
    pub uid: Option<u32>,
    pub print_port: bool,
    pub backlog: u64,
    pub keep_ip_options: bool,
    pub no_delay: bool,
    pub remote_host: bool,
    pub paranoid: bool,
    /// None: look it up.
    pub local_host: Option<Vec<u8>>,
    pub remote_info: bool,
    pub ident_timeout: Duration,
    pub family: Family,
    pub interface: Option<Vec<u8>>,
    pub host: Vec<u8>,
    pub port: Vec<u8>,
    pub program: Vec<Vec<u8>>,
}

impl Options {
    pub fn of(args: &program::Args) -> Result<Options, Trouble> {
        Ok(Options::with(args, "")?.0)
    }

    /// With a program's own letters, which are none of ours: its options in their order.
    pub fn with(args: &program::Args, letters: &str) -> Result<(Options, Given), Trouble> {
        let parsed = args.options(&[LETTERS, letters].concat())?;
        let [host, port, program @ ..] = parsed.rest.as_slice() else { return Err(args.wrong()) };
        if program.is_empty() {
            return Err(args.wrong());
        }
        let mut o = Options {
            verbosity: Verbosity::Errors,
            limit: LIMIT,
            limit_per_address: None,
            rules: None,
            rules_may_be_missing: false,
            banner: Vec::new(),
            gid: None,
            uid: None,
            print_port: false,
            backlog: BACKLOG,
            keep_ip_options: false,
            no_delay: false,
            remote_host: true,
            paranoid: false,
            local_host: None,
            remote_info: true,
            ident_timeout: Duration::from_secs(IDENT_TIMEOUT),
            family: Family::Any,
            interface: None,
            host: host.clone(),
            port: port.clone(),
            program: program.to_vec(),
        };
        let (own, others): (Given, Given) =
            parsed.options.into_iter().partition(|(letter, _)| letters.contains(*letter));
        for (letter, value) in others {
            o.set(letter, value)?;
        }
        Ok((o, own))
    }

    fn set(&mut self, letter: char, value: Vec<u8>) -> Result<(), Trouble> {
        match letter {
            'q' => self.verbosity = Verbosity::Silent,
            'Q' => self.verbosity = Verbosity::Errors,
            'v' => self.verbosity = Verbosity::Status,
            'c' => self.limit = count(letter, &value)?,
            'C' => self.limit_per_address = Some(count(letter, &value)?),
            'x' => self.rules = Some(value),
            'X' => self.rules_may_be_missing = true,
            'B' => self.banner = value,
            'g' => self.gid = id("-g", &value)?,
            'u' => self.uid = id("-u", &value)?,
            'U' => {
                self.gid = id("$GID", &environ::get("GID").unwrap_or_default())?;
                self.uid = id("$UID", &environ::get("UID").unwrap_or_default())?;
            }
            '1' => self.print_port = true,
            'b' => self.backlog = number(letter, &value)?,
            'o' => self.keep_ip_options = true,
            'O' => self.keep_ip_options = false,
            'd' => self.no_delay = false,
            'D' => self.no_delay = true,
            'h' => self.remote_host = true,
            'H' => self.remote_host = false,
            'p' => self.paranoid = true,
            'P' => self.paranoid = false,
            'l' => self.local_host = Some(value),
            'r' => self.remote_info = true,
            'R' => self.remote_info = false,
            't' => self.ident_timeout = Duration::from_secs(number(letter, &value)?),
            '4' => self.family = Family::V4,
            '6' => self.family = Family::V6,
            _ => self.interface = Some(value),
        }
        Ok(())
    }
}

pub fn number(letter: char, value: &[u8]) -> Result<u64, Trouble> {
    decimal::prefix(value).ok_or_else(|| Trouble::usage(format!("-{letter} takes a number")))
}

/// A limit of 0 would never accept anything.
fn count(letter: char, value: &[u8]) -> Result<usize, Trouble> {
    match number(letter, value)? {
        0 => Err(Trouble::usage(format!("-{letter} takes a number above 0"))),
        n => Ok(usize::try_from(n).unwrap_or(usize::MAX)),
    }
}

/// An id as -u takes it. 0 changes nothing. Whatever is no number must not be taken for 0: the programs would run as root.
pub fn id(name: &str, value: &[u8]) -> Result<Option<u32>, Trouble> {
    let id = decimal::strict(value).and_then(|n| u32::try_from(n).ok()).filter(|id| *id != u32::MAX);
    match id {
        Some(0) => Ok(None),
        Some(id) => Ok(Some(id)),
        None => Err(Trouble::usage(
            [name.as_bytes(), b" must be a number, and names are not looked up: \"", value, b"\""].concat(),
        )),
    }
}
