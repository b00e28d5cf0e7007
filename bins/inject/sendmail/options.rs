//! The options of sendmail(8), as far as they mean something here.

use qmail::trouble::Trouble;

/// What the caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Send a message.
    Mail,
    /// See the queue (-bp).
    Queue,
    /// Speak SMTP on descriptors 0 and 1 (-bs).
    Smtp,
}

/// How an option takes its argument.
enum Takes {
    Nothing,
    /// Attached or as the next word.
    Argument,
    /// What is attached, and never the next word.
    Attached,
}

/// Every letter that is accepted. Many change nothing: the queue has no delivery modes, bodies are 8-bit
/// clean anyway, and notices (-N -R -V) are not made. What would be missed if it were ignored is not here.
fn takes(letter: u8) -> Option<Takes> {
    Some(match letter {
        b't' | b'v' | b'i' | b'm' | b'x' | b'U' | b'G' => Takes::Nothing,
        b'f' | b'r' | b'F' | b'b' | b'B' | b'p' | b'o' | b'e' | b'N' | b'R' | b'V' | b'O' | b'h' | b'L' => {
            Takes::Argument
        }
        b'E' | b'J' | b'A' => Takes::Attached,
        _ => return None,
    })
}

/// A command line that was understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub mode: Mode,
    /// -t: the header names recipients too.
    pub read_header: bool,
    /// -f or -r.
    pub sender: Option<Vec<u8>>,
    /// -F.
    pub name: Option<Vec<u8>>,
    pub recipients: Vec<Vec<u8>>,
}

impl Options {
    pub fn parse(list: &[Vec<u8>]) -> Result<Options, Trouble> {
        let mut found = Options {
            mode: Mode::Mail,
            read_header: false,
            sender: None,
            name: None,
            recipients: Vec::new(),
        };
        let mut words = list.iter();
        while let Some(word) = words.next() {
            let Some(mut cluster) = word.strip_prefix(b"-").filter(|c| !c.is_empty()) else {
                found.recipients.push(without_angles(word));
                break;
            };
            if cluster == b"-" {
                break;
            }
            while let Some((letter, attached)) = cluster.split_first() {
                cluster = attached;
                let value = match takes(*letter).ok_or_else(|| illegal(*letter))? {
                    Takes::Nothing => &[],
                    Takes::Attached => std::mem::take(&mut cluster),
                    Takes::Argument if !attached.is_empty() => std::mem::take(&mut cluster),
                    Takes::Argument => words.next().ok_or_else(|| missing(*letter))?,
                };
                if found.take(*letter, value)? {
                    return Ok(found);
                }
            }
        }
        found.recipients.extend(words.map(|word| without_angles(word)));
        Ok(found)
    }

    /// True when nothing that follows is to be read.
    fn take(&mut self, letter: u8, value: &[u8]) -> Result<bool, Trouble> {
        match (letter, value) {
            (b't', _) => self.read_header = true,
            (b'f' | b'r', _) => self.sender = Some(without_angles(value)),
            (b'F', _) => self.name = Some(value.to_vec()),
            (b'b', b"m") => {}
            (b'b', b"p") => self.mode = Mode::Queue,
            (b'b', b"s") => self.mode = Mode::Smtp,
            (b'b', _) => return Err(Trouble::usage([b"illegal option -- b", value].concat())),
            _ => {}
        }
        Ok(self.mode != Mode::Mail)
    }
}

/// `<joe@host>` is joe@host, and `<>` the empty sender, as callers of other sendmails expect.
fn without_angles(address: &[u8]) -> Vec<u8> {
    let inner = address.strip_prefix(b"<").and_then(|rest| rest.strip_suffix(b">"));
    inner.unwrap_or(address).to_vec()
}

fn illegal(letter: u8) -> Trouble {
    Trouble::usage([b"illegal option -- ".as_slice(), &[letter]].concat())
}

fn missing(letter: u8) -> Trouble {
    Trouble::usage([b"option requires an argument -- ".as_slice(), &[letter]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        let words: Vec<Vec<u8>> = line.split_whitespace().map(|w| w.trim_matches('\'').into()).collect();
        Options::parse(&words).map_err(|t| String::from_utf8(t.text()).unwrap())
    }

    fn recipients(line: &str) -> String {
        String::from_utf8(parse(line).unwrap().recipients.join(b" ".as_slice())).unwrap()
    }

    #[test]
    fn mail_readers_command_lines_are_understood() {
        for line in [
            "a b",
            "-i a b",
            "-oem -oi -f x@y -- a b",
            "-oi -fx@y -B8BITMIME -N never -R hdrs -V id -- a b",
            "-t -i -FName -Am a b",
            "-i -F Cron -B 8BITMIME -oem a b",
            "-G -i -h 3 -L tag -O Timeout.queuewarn=1h -U -v a b",
            "-Jx -E -e m -p proto -m -x a b",
            "-ti -bm -- a b",
        ] {
            assert_eq!(recipients(line), "a b", "{line}");
        }
    }

    #[test]
    fn senders_and_names_are_taken() {
        let all = parse("-F Joe -r x@y -t").unwrap();
        assert_eq!(
            (all.sender.as_deref(), all.name.as_deref()),
            (Some(b"x@y".as_slice()), Some(b"Joe".as_slice()))
        );
        assert!(all.read_header);
        assert_eq!(parse("-f <>").unwrap().sender, Some(Vec::new()));
        assert_eq!(parse("-f ''").unwrap().sender, Some(Vec::new()));
        assert_eq!(parse("-f -x").unwrap().sender, Some(b"-x".to_vec()));
        assert_eq!(parse("-f a -f b").unwrap().sender, Some(b"b".to_vec()));
        assert_eq!(recipients("<a@b> -t"), "a@b -t");
        assert_eq!(recipients("- a"), "- a");
    }

    #[test]
    fn what_follows_a_mode_is_not_read() {
        assert_eq!(parse("-i -bs -Z").unwrap().mode, Mode::Smtp);
        assert_eq!(parse("-bp -bd").unwrap().mode, Mode::Queue);
        assert_eq!(parse("-b p x").unwrap().mode, Mode::Queue);
    }

    #[test]
    fn what_would_be_missed_is_refused() {
        assert_eq!(parse("-bd").unwrap_err(), "illegal option -- bd");
        assert_eq!(parse("-bi").unwrap_err(), "illegal option -- bi");
        assert_eq!(parse("-q").unwrap_err(), "illegal option -- q");
        assert_eq!(parse("-iq15m").unwrap_err(), "illegal option -- q");
        for letter in ["C x", "X log", "d0.1", "I", "n", "M", "T 1", "D log", "s", "?"] {
            assert!(parse(&format!("-{letter}")).is_err(), "{letter}");
        }
        assert_eq!(parse("-f").unwrap_err(), "option requires an argument -- f");
    }
}
