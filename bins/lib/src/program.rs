//! program - how every program starts, reads its arguments, and ends
//!
//! `run` is the only thing a `main` calls. It makes the process undumpable, turns a panic into the
//! program's temporary exit code, hands over the arguments as bytes, and prints a trouble in the one
//! form: `NAME: fatal: TEXT`.
#![forbid(unsafe_code)]

use crate::trouble::Trouble;
use crate::{environ, exits, fd, home::Home, sys};
use getopts::{Fail, HasArg, Occur, Options, ParsingStyle};
use std::os::unix::ffi::OsStringExt;

/// How a program speaks of its own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// `NAME: fatal: TEXT` on fd 2.
    Prefixed,
    /// The text alone on fd 2: it becomes a delivery report or a bounce.
    Bare,
    /// Nothing: the exit code says it all (qmail-queue), or the program reports by other means.
    Silent,
    /// It writes a log to fd 0 by itself (qmail-send); a bug of ours is told there.
    Log,
}

/// What `run` knows of a program.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    pub name: &'static str,
    /// The usage line, without "usage: ".
    pub usage: &'static str,
    pub voice: Voice,
    /// Exit code after a bug of ours.
    pub on_panic: i32,
}

impl Program {
    pub const fn new(name: &'static str, usage: &'static str) -> Program {
        Program { name, usage, voice: Voice::Prefixed, on_panic: exits::TEMPORARY }
    }

    pub const fn voice(self, voice: Voice) -> Program {
        Program { voice, ..self }
    }

    pub const fn on_panic(self, code: i32) -> Program {
        Program { on_panic: code, ..self }
    }

    /// Starts the program, runs `main` and exits with what became of it.
    pub fn run(self, main: fn(Args) -> Result<(), Trouble>) -> ! {
        sys::memory::undumpable();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
            let _ = match self.voice {
                Voice::Silent => Ok(()),
                Voice::Log => fd::write_all(fd::IN, format!("alert: internal bug{place}\n").as_bytes()),
                _ => {
                    fd::write_all(fd::ERR, format!("{}: fatal: internal bug{place}\n", self.name).as_bytes())
                }
            };
            sys::process::exit(self.on_panic)
        }));
        let list = std::env::args_os().skip(1).map(OsStringExt::into_vec).collect();
        match main(Args { program: self, list }) {
            Ok(()) => sys::process::exit(exits::SUCCESS),
            Err(trouble) => self.end(&trouble),
        }
    }

    /// Says what is wrong and exits.
    fn end(&self, trouble: &Trouble) -> ! {
        let text = trouble.text();
        let mut out = Vec::new();
        let speaks = !matches!(self.voice, Voice::Silent | Voice::Log);
        if speaks && !text.is_empty() {
            match self.voice {
                Voice::Prefixed if trouble.is_usage() => {
                    out.extend_from_slice(format!("{}: ", self.name).as_bytes())
                }
                Voice::Prefixed => out.extend_from_slice(format!("{}: fatal: ", self.name).as_bytes()),
                _ => {}
            }
            out.extend_from_slice(&text);
            out.push(b'\n');
        }
        if speaks && trouble.is_usage() {
            out.extend_from_slice(format!("{}: usage: {}\n", self.name, self.usage).as_bytes());
        }
        let _ = fd::write_all(fd::ERR, &out);
        sys::process::exit(trouble.exit_code())
    }
}

/// `Program::new(name, usage).run(main)`: the usual program.
pub fn run(name: &'static str, usage: &'static str, main: fn(Args) -> Result<(), Trouble>) -> ! {
    Program::new(name, usage).run(main)
}

/// The command line after the program's name, as bytes.
#[derive(Debug, Clone)]
pub struct Args {
    program: Program,
    list: Vec<Vec<u8>>,
}

/// What the options were, in their order, and what stood behind them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    pub options: Vec<(char, Vec<u8>)>,
    pub rest: Vec<Vec<u8>>,
}

impl Parsed {
    /// Whether a flag was given.
    pub fn has(&self, letter: char) -> bool {
        self.options.iter().any(|(l, _)| *l == letter)
    }

    /// The last argument given to an option.
    pub fn value(&self, letter: char) -> Option<&[u8]> {
        self.options.iter().rev().find(|(l, _)| *l == letter).map(|(_, v)| v.as_slice())
    }
}

impl Args {
    /// For tests of argument parsing.
    pub fn of(program: Program, list: &[&[u8]]) -> Args {
        Args { program, list: list.iter().map(|a| a.to_vec()).collect() }
    }

    /// The arguments as they are.
    pub fn list(&self) -> &[Vec<u8>] {
        &self.list
    }

    /// This program takes no arguments. (Extra ones are ignored, as they always were.)
    pub fn none(&self) -> Result<(), Trouble> {
        self.help()
    }

    /// A usage error without further words.
    pub fn wrong(&self) -> Trouble {
        Trouble::usage("")
    }

    /// `--help` as the first argument of a program with options, or without any: usage on fd 1, exit 0.
    fn help(&self) -> Result<(), Trouble> {
        if self.list.first().is_some_and(|a| a == b"--help") {
            let line = format!("usage: {}\nsee the manual page {}\n", self.program.usage, self.program.name);
            let _ = fd::write_all(fd::OUT, line.as_bytes());
            return Err(Trouble::exit(exits::SUCCESS, ""));
        }
        Ok(())
    }

    /// Single-letter options, `spec` in the manner of getopt(3): "nNf:" takes -n, -N and -f ARG.
    /// Letters cluster, an argument is attached or separate, `--` ends options, a lone `-` is the
    /// first non-option, nothing behind the first non-option is looked at.
    pub fn options(&self, spec: &str) -> Result<Parsed, Trouble> {
        self.help()?;
        let (single, rest) = decluster(&self.list, spec)
            .map_err(|letter| Trouble::usage([b"illegal option -- ".as_slice(), &[letter]].concat()))?;
        let mut known = Options::new();
        known.parsing_style(ParsingStyle::StopAtFirstFree);
        for (letter, takes_argument) in letters(spec) {
            let has = if takes_argument { HasArg::Yes } else { HasArg::No };
            known.opt(&letter.to_string(), "", "", "", has, Occur::Multi);
        }
        let matches = known.parse(single.iter().map(|a| widen(a))).map_err(|fail| self.refusal(&fail))?;
        let mut options: Vec<(usize, char, Vec<u8>)> = Vec::new();
        for (letter, takes_argument) in letters(spec) {
            let name = letter.to_string();
            if takes_argument {
                options
                    .extend(matches.opt_strs_pos(&name).into_iter().map(|(at, v)| (at, letter, narrow(&v))));
            } else {
                options.extend(matches.opt_positions(&name).into_iter().map(|at| (at, letter, Vec::new())));
            }
        }
        options.sort_by_key(|(at, _, _)| *at);
        Ok(Parsed { options: options.into_iter().map(|(_, l, v)| (l, v)).collect(), rest })
    }

    /// The usage errors of the specification: `PROG: illegal option -- X`.
    fn refusal(&self, fail: &Fail) -> Trouble {
        match fail {
            Fail::ArgumentMissing(name) => Trouble::usage(format!("option requires an argument -- {name}")),
            Fail::UnrecognizedOption(name) => {
                Trouble::usage([b"illegal option -- ".as_slice(), &narrow(name)].concat())
            }
            other => Trouble::usage(other.to_string()),
        }
    }
}

fn letters(spec: &str) -> Vec<(char, bool)> {
    let all: Vec<char> = spec.chars().collect();
    let takes = |i: usize| all.get(i + 1) == Some(&':');
    all.iter().enumerate().filter(|(_, c)| **c != ':').map(|(i, c)| (*c, takes(i))).collect()
}

type Words = Vec<Vec<u8>>;

/// Splits `-nfX` into `-n -f X`, so that order within a cluster is kept; stops where options stop. The error
/// is a letter that is no option: getopts would take the `-` of `--name` or `-n-` for the end of options.
fn decluster(list: &[Vec<u8>], spec: &str) -> Result<(Words, Words), u8> {
    let known = letters(spec);
    let mut single = Vec::new();
    let mut at = 0;
    while let Some(argument) = list.get(at) {
        if argument == b"--" {
            at += 1;
            break;
        }
        let Some(cluster) = argument.strip_prefix(b"-").filter(|c| !c.is_empty()) else { break };
        at += 1;
        for (i, letter) in cluster.iter().enumerate() {
            single.push(vec![b'-', *letter]);
            if known.iter().any(|(c, takes)| *c == char::from(*letter) && *takes) {
                let attached = cluster.get(i + 1..).unwrap_or_default();
                if !attached.is_empty() {
                    single.push(attached.to_vec());
                } else if let Some(next) = list.get(at) {
                    single.push(next.clone());
                    at += 1;
                }
                break;
            }
            if !known.iter().any(|(c, _)| *c == char::from(*letter)) {
                return Err(*letter);
            }
        }
    }
    Ok((single, list.get(at..).unwrap_or_default().to_vec()))
}

/// getopts wants text: bytes become the characters U+0000 to U+00FF and come back unchanged.
fn widen(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

fn narrow(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect()
}

/// Where an executable is: a name with a slash as it is, else along PATH (default `/bin:/usr/bin`, an
/// empty element is `.`). None when nothing executable is found.
pub fn find(name: &[u8]) -> Option<Vec<u8>> {
    if name.contains(&b'/') {
        return Some(name.to_vec());
    }
    let path = environ::get("PATH").unwrap_or_else(|| b"/bin:/usr/bin".to_vec());
    path.split(|b| *b == b':')
        .map(|directory| if directory.is_empty() { b".".as_slice() } else { directory })
        .map(|directory| [directory, b"/", name].concat())
        .find(|file| executable(file))
}

/// Where a program of the home is: along PATH, else in the home's `bin`.
pub fn find_in(home: &Home, name: &str) -> Vec<u8> {
    find(name.as_bytes()).unwrap_or_else(|| home.path(&format!("bin/{name}")))
}

fn executable(file: &[u8]) -> bool {
    let regular = nix::sys::stat::stat(fd::path(file)).is_ok_and(|s| {
        nix::sys::stat::SFlag::from_bits_truncate(s.st_mode).contains(nix::sys::stat::SFlag::S_IFREG)
    });
    regular && nix::unistd::access(fd::path(file), nix::unistd::AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(spec: &str, list: &[&[u8]]) -> Result<Parsed, Trouble> {
        Args::of(Program::new("prog", "prog"), list).options(spec)
    }

    #[test]
    fn options_keep_their_order_and_cluster() {
        let parsed = parse("nNf:", &[b"-nN", b"-nfx", b"-f", b"y", b"rest", b"-n"]).unwrap();
        let letters: String = parsed.options.iter().map(|(l, _)| *l).collect();
        assert_eq!(letters, "nNnff");
        assert_eq!(parsed.value('f'), Some(b"y".as_slice()));
        assert_eq!(parsed.rest, [b"rest".to_vec(), b"-n".to_vec()]);
    }

    #[test]
    fn bytes_beyond_ascii_survive() {
        let parsed = parse("f:", &[b"-f\xff\xe9", b"\xfe"]).unwrap();
        assert_eq!(parsed.value('f'), Some(b"\xff\xe9".as_slice()));
        assert_eq!(parsed.rest, [b"\xfe".to_vec()]);
    }

    #[test]
    fn an_argument_may_look_like_an_option_or_be_empty() {
        let parsed = parse("f:a", &[b"-f", b"-a", b"-f", b"", b"--", b"-a"]).unwrap();
        assert_eq!(parsed.options, [('f', b"-a".to_vec()), ('f', b"".to_vec())]);
        assert_eq!(parsed.rest, [b"-a".to_vec()]);
    }

    #[test]
    fn a_lone_dash_is_not_an_option() {
        assert_eq!(parse("a", &[b"-", b"-a"]).unwrap().rest, [b"-".to_vec(), b"-a".to_vec()]);
    }

    #[test]
    fn wrong_use_is_named() {
        assert_eq!(parse("a", &[b"-x"]).unwrap_err().text(), b"illegal option -- x");
        assert_eq!(parse("f:", &[b"-f"]).unwrap_err().text(), b"option requires an argument -- f");
    }

    #[test]
    fn long_options_are_refused_and_what_follows_is_not_lost() {
        for list in [[b"--foo".as_slice(), b"rest"], [b"-a-", b"rest"], [b"-a--", b"rest"]] {
            assert_eq!(parse("a", &list).unwrap_err().text(), b"illegal option -- -");
        }
    }
}
