//! sts - MTA-STS (RFC 8461): what a domain publishes about its exchangers, and what is kept of it
//!
//! Pure: bytes and times in, decisions out. The program mta-sts asks the DNS and the web server and keeps the
//! files; qmail-remote asks mta-sts.
#![forbid(unsafe_code)]

use qmail::decimal;

/// A policy larger than this is none (RFC 8461 section 3.3 lets a sender set such a limit).
pub const POLICY_MAX: usize = 64 * 1024;

/// Exchangers named by one policy.
pub const MX_MAX: usize = 128;

/// rfc8461:3.2 about a year.
pub const MAX_AGE_MAX: u64 = 31_557_600;

/// A policy that could not be fetched is not asked for again for this long (RFC 8461 section 3.3).
pub const RETRY_AFTER: u64 = 300;

/// A policy is fetched again, though its id is the same, after half its time, but not more often than this.
const REFRESH_MIN: u64 = 24 * 60 * 60;

/// A line of a policy or of a kept file.
const LINE_MAX: usize = 1024;

/// rfc8461:3.1 an id has this many letters and digits.
const ID_MAX: usize = 32;

/// What is to be done with a host that does not meet the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Enforce,
    Testing,
    None,
}

impl Mode {
    fn of(word: &[u8]) -> Option<Mode> {
        match word {
            b"enforce" => Some(Mode::Enforce),
            b"testing" => Some(Mode::Testing),
            b"none" => Some(Mode::None),
            _ => None,
        }
    }

    fn word(self) -> &'static [u8] {
        match self {
            Mode::Enforce => b"enforce",
            Mode::Testing => b"testing",
            Mode::None => b"none",
        }
    }
}

/// A policy as its domain wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub mode: Mode,
    pub max_age: u64,
    /// Lower case; the first label may be `*`.
    pub mx: Vec<Vec<u8>>,
}

impl Policy {
    /// rfc8461:3.2; None for what is no policy.
    pub fn parse(text: &[u8]) -> Option<Policy> {
        if text.len() > POLICY_MAX {
            return None;
        }
        let (mut version, mut mode, mut max_age) = (None, None, None);
        let mut mx = Vec::new();
        for line in text.split(|b| *b == b'\n') {
            let line = trim(line.strip_suffix(b"\r").unwrap_or(line));
            if line.is_empty() {
                continue;
            }
            let at = memchr::memchr(b':', line)?;
            let (key, value) = line.split_at(at);
            let (key, value) = (trim(key), trim(value.get(1..).unwrap_or_default()));
            // What stands twice counts where it stands first; what is not known is passed over.
            match key {
                b"version" => _ = version.get_or_insert(value),
                b"mode" => _ = mode.get_or_insert(value),
                b"max_age" => _ = max_age.get_or_insert(value),
                b"mx" if mx.len() < MX_MAX => mx.push(pattern(value)?),
                b"mx" => return None,
                _ => {}
            }
        }
        if version != Some(b"STSv1".as_slice()) {
            return None;
        }
        let mode = Mode::of(mode?)?;
        let max_age = decimal::strict(max_age?).filter(|age| *age <= MAX_AGE_MAX)?;
        if mx.is_empty() && mode != Mode::None {
            return None;
        }
        Some(Policy { mode, max_age, mx })
    }

    /// Whether an exchanger of this name is one of the policy's (RFC 8461 section 4.1).
    pub fn names(&self, host: &[u8]) -> bool {
        let host = host.strip_suffix(b".").unwrap_or(host).to_ascii_lowercase();
        self.mx.iter().any(|pattern| match pattern.strip_prefix(b"*") {
            Some(suffix) => {
                let label = memchr::memchr(b'.', &host).unwrap_or(host.len());
                label > 0 && host.get(label..) == Some(suffix)
            }
            None => *pattern == host,
        })
    }
}

/// A name, or `*.` and a name.
fn pattern(value: &[u8]) -> Option<Vec<u8>> {
    let name = value.strip_suffix(b".").unwrap_or(value).to_ascii_lowercase();
    let bare = name.strip_prefix(b"*.").unwrap_or(&name);
    is_domain(bare).then(|| name.clone())
}

/// Whether a policy can be looked for: a name of letters, digits, `-` and `_`, with a dot, and no address. It
/// may also be the name of a file.
pub fn is_domain(name: &[u8]) -> bool {
    let label = |l: &[u8]| {
        (1..=63).contains(&l.len())
            && !l.starts_with(b"-")
            && l.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let last = name.rsplit(|b| *b == b'.').next().unwrap_or_default();
    name.len() <= 253
        && name.contains(&b'.')
        && name.split(|b| *b == b'.').all(label)
        && !last.iter().all(u8::is_ascii_digit)
}

/// The id that `_mta-sts.DOMAIN` publishes; None when there is no policy (RFC 8461 section 3.1).
pub fn id(texts: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut ours = texts.iter().filter(|text| text.starts_with(b"v=STSv1;"));
    let (Some(text), None) = (ours.next(), ours.next()) else { return None };
    let id = text.split(|b| *b == b';').skip(1).map(trim).find_map(|field| field.strip_prefix(b"id="))?;
    is_id(id).then(|| id.to_vec())
}

fn is_id(id: &[u8]) -> bool {
    (1..=ID_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_alphanumeric)
}

/// What is kept of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// With its id and the second it was fetched.
    pub policy: Option<(Policy, Vec<u8>, u64)>,
    /// The id of a policy that could not be fetched, and when.
    pub failed: Option<(Vec<u8>, u64)>,
}

/// The first line of a kept file.
const HEAD: &[u8] = b"mta-sts 1";

impl Kept {
    /// A kept file; None for one that is damaged, or another program's.
    pub fn parse(text: &[u8]) -> Option<Kept> {
        // The last line says that nothing is missing.
        let text = text.strip_prefix(HEAD)?.strip_suffix(b"\nend\n")?;
        let mut kept = Kept::default();
        let lines = text.split(|b| *b == b'\n').filter(|line| line.len() <= LINE_MAX);
        let mut fetched = None;
        for line in lines {
            let mut words = line.split(|b| *b == b' ');
            match (words.next(), words.next(), words.next()) {
                (Some(b"fetched"), Some(id), Some(at)) if is_id(id) => {
                    fetched = Some((id.to_vec(), decimal::strict(at)?));
                }
                (Some(b"failed"), Some(id), Some(at)) if is_id(id) => {
                    kept.failed = Some((id.to_vec(), decimal::strict(at)?));
                }
                _ => {}
            }
        }
        if let Some((id, at)) = fetched {
            let start = memchr::memmem::find(text, b"version:")?;
            kept.policy = Some((Policy::parse(text.get(start..)?)?, id, at));
        }
        Some(kept)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = [HEAD, b"\n"].concat();
        let mut word = |word: &[u8], id: &[u8], at: u64| {
            out.extend_from_slice(&[word, b" ", id, format!(" {at}\n").as_bytes()].concat());
        };
        if let Some((id, at)) = &self.failed {
            word(b"failed", id, *at);
        }
        if let Some((policy, id, at)) = &self.policy {
            word(b"fetched", id, *at);
            out.extend_from_slice(b"version: STSv1\nmode: ");
            out.extend_from_slice(policy.mode.word());
            out.extend_from_slice(format!("\nmax_age: {}\n", policy.max_age).as_bytes());
            for mx in &policy.mx {
                out.extend_from_slice(&[b"mx: ", mx.as_slice(), b"\n"].concat());
            }
        }
        out.extend_from_slice(b"end\n");
        out
    }

    /// The policy that holds now.
    pub fn valid(&self, now: u64) -> Option<&Policy> {
        let (policy, _, at) = self.policy.as_ref()?;
        // A clock that was set back makes nothing invalid.
        (now <= *at || now - at < policy.max_age).then_some(policy)
    }

    /// Whether the web server is to be asked for the policy with this id.
    pub fn wants(&self, id: &[u8], now: u64) -> bool {
        if self.failed.as_ref().is_some_and(|(failed, at)| failed == id && now.abs_diff(*at) < RETRY_AFTER) {
            return false;
        }
        match (&self.policy, self.valid(now)) {
            (Some((policy, known, at)), Some(_)) if known == id => {
                now.saturating_sub(*at) > (policy.max_age / 2).max(REFRESH_MIN)
            }
            _ => true,
        }
    }
}

/// What mta-sts answers: a letter and, for the first two, names each ended by NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Enforce(Policy),
    Testing(Policy),
    Nothing,
    /// None holds, and there may be one that cannot be had now. Who demands nothing more need not care (RFC 8461
    /// section 5).
    Unknown,
}

impl Answer {
    pub fn of(policy: Option<&Policy>) -> Answer {
        match policy {
            Some(policy) if policy.mode == Mode::Enforce => Answer::Enforce(policy.clone()),
            Some(policy) if policy.mode == Mode::Testing => Answer::Testing(policy.clone()),
            _ => Answer::Nothing,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let (letter, policy) = match self {
            Answer::Enforce(policy) => (b'E', policy),
            Answer::Testing(policy) => (b'T', policy),
            Answer::Nothing => return b"N".to_vec(),
            Answer::Unknown => return b"U".to_vec(),
        };
        let mut out = vec![letter];
        for mx in &policy.mx {
            out.extend_from_slice(mx);
            out.push(0);
        }
        out
    }

    /// None for what is none: mta-sts is not there, or not well.
    pub fn parse(bytes: &[u8]) -> Option<Answer> {
        let (letter, rest) = bytes.split_first()?;
        let policy = |mode, rest: &[u8]| {
            let names = rest.strip_suffix(b"\0")?.split(|b| *b == 0);
            let mx: Option<Vec<Vec<u8>>> = names.map(pattern).collect();
            Some(Policy { mode, max_age: 0, mx: mx? })
        };
        match letter {
            b'E' => policy(Mode::Enforce, rest).map(Answer::Enforce),
            b'T' => policy(Mode::Testing, rest).map(Answer::Testing),
            b'N' if rest.is_empty() => Some(Answer::Nothing),
            b'U' if rest.is_empty() => Some(Answer::Unknown),
            _ => None,
        }
    }
}

fn trim(text: &[u8]) -> &[u8] {
    let blank = |b: &u8| matches!(b, b' ' | b'\t');
    let start = text.iter().position(|b| !blank(b)).unwrap_or(text.len());
    let end = text.iter().rposition(|b| !blank(b)).map_or(start, |at| at + 1);
    text.get(start..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"version: STSv1\r\nmode: enforce\r\nmx: mail.Example.com\r\nmx: *.example.net\r\nmx: backupmx.example.com\r\nmax_age: 604800\r\n";

    fn policy(mode: &str, age: &str) -> Option<Policy> {
        Policy::parse(format!("version: STSv1\nmode: {mode}\nmx: a.test\nmax_age: {age}\n").as_bytes())
    }

    #[test]
    fn the_policy_of_the_rfc_is_read() {
        let policy = Policy::parse(SAMPLE).unwrap();
        assert_eq!((policy.mode, policy.max_age, policy.mx.len()), (Mode::Enforce, 604_800, 3));
        assert!(policy.names(b"MAIL.example.com") && policy.names(b"mail.example.com."));
        assert!(policy.names(b"a.example.net"));
        for stranger in
            [b"a.b.example.net".as_slice(), b"example.net", b".example.net", b"xmail.example.com", b""]
        {
            assert!(!policy.names(stranger), "{:?}", String::from_utf8_lossy(stranger));
        }
    }

    #[test]
    fn fields_stand_in_any_order_once_and_among_unknown_ones() {
        let text = b"max_age: 1\nfuture: thing: x\nmode:none\n\nversion: STSv1\nmode: enforce\nmax_age: 2";
        assert_eq!(Policy::parse(text), Some(Policy { mode: Mode::None, max_age: 1, mx: vec![] }));
    }

    #[test]
    fn what_is_incomplete_or_out_of_range_is_no_policy() {
        assert!(policy("testing", "31557600").is_some());
        for (mode, age) in [
            ("enforce", "31557601"),
            ("enforce", "-1"),
            ("enforce", "1x"),
            ("enforce", ""),
            ("Enforce", "1"),
            ("", "1"),
        ] {
            assert_eq!(policy(mode, age), None, "{mode} {age}");
        }
        for text in [
            b"".as_slice(),
            b"mode: enforce\nmx: a.test\nmax_age: 1\n",
            b"version: STSv2\nmode: enforce\nmx: a.test\nmax_age: 1\n",
            b"version: STSv1\nmode: enforce\nmax_age: 1\n",
            b"version: STSv1\nmode: enforce\nmx: *\nmax_age: 1\n",
            b"version: STSv1\nmode: enforce\nmx: a.*.test\nmax_age: 1\n",
            b"version: STSv1\nmode: enforce\nmx: 192.0.2.1\nmax_age: 1\n",
            b"version: STSv1\nmode: enforce\nno field\nmx: a.test\nmax_age: 1\n",
            b"<html>\n",
        ] {
            assert_eq!(Policy::parse(text), None, "{:?}", String::from_utf8_lossy(text));
        }
        assert_eq!(Policy::parse(&[SAMPLE, &b"x: y\n".repeat(POLICY_MAX / 5)].concat()), None, "too large");
        assert_eq!(Policy::parse(&[SAMPLE, &b"mx: a.test\n".repeat(MX_MAX)].concat()), None, "too many");
    }

    #[test]
    fn one_record_of_the_version_gives_the_id() {
        let of = |list: &[&[u8]]| id(&list.iter().map(|t| t.to_vec()).collect::<Vec<_>>());
        assert_eq!(of(&[b"v=STSv1; id=20160831085700Z;"]), Some(b"20160831085700Z".to_vec()));
        assert_eq!(of(&[b"v=spf1 -all", b"v=STSv1;id=1"]), Some(b"1".to_vec()));
        assert_eq!(of(&[b"v=STSv1; x=y; id=1"]), Some(b"1".to_vec()));
        for none in [
            &[b"v=STSv1; id=1".as_slice(), b"v=STSv1; id=1"] as &[&[u8]],
            &[b"v=STSv1; id="],
            &[b"v=STSv1; id=a-b"],
            &[b"v=STSv1; id=123456789012345678901234567890123"],
            &[b"v=STSv1 id=1"],
            &[b" v=STSv1; id=1"],
            &[],
        ] {
            assert_eq!(of(none), None);
        }
    }

    #[test]
    fn a_kept_policy_holds_for_its_time_and_is_fetched_again_when_its_id_changes() {
        let mut kept =
            Kept { policy: Some((Policy::parse(SAMPLE).unwrap(), b"1".to_vec(), 1000)), failed: None };
        assert_eq!(Kept::parse(&kept.bytes()), Some(kept.clone()));
        assert!(kept.valid(1000 + 604_799).is_some() && kept.valid(5).is_some());
        assert!(kept.valid(1000 + 604_800).is_none());
        assert!(!kept.wants(b"1", 2000) && kept.wants(b"2", 2000));
        assert!(kept.wants(b"1", 1000 + 302_401), "past half its time");
        kept.failed = Some((b"2".to_vec(), 2000));
        assert_eq!(Kept::parse(&kept.bytes()), Some(kept.clone()));
        assert!(!kept.wants(b"2", 2299) && kept.wants(b"2", 2300) && kept.wants(b"3", 2001));
        assert!(Kept::default().wants(b"1", 0));
        assert_eq!(Kept::parse(&Kept::default().bytes()), Some(Kept::default()));
    }

    #[test]
    fn a_kept_file_that_is_cut_or_changed_is_none() {
        let whole = Kept {
            policy: Some((Policy::parse(SAMPLE).unwrap(), b"1".to_vec(), 1000)),
            failed: Some((b"2".to_vec(), 5)),
        }
        .bytes();
        for cut in 0..whole.len() {
            assert_eq!(Kept::parse(&whole[..cut]), None, "cut at {cut}");
        }
        assert_eq!(Kept::parse(&vec![0; whole.len()]), None);
    }

    #[test]
    fn an_answer_is_what_it_was() {
        let enforce = Policy::parse(SAMPLE).unwrap();
        let testing = Policy { mode: Mode::Testing, ..enforce.clone() };
        for answer in
            [Answer::of(Some(&enforce)), Answer::of(Some(&testing)), Answer::of(None), Answer::Unknown]
        {
            let back = Answer::parse(&answer.bytes()).unwrap();
            assert_eq!(back.bytes(), answer.bytes());
        }
        for bad in [b"".as_slice(), b"E", b"Ea.test", b"E\0", b"Nx", b"Ux", b"Xa.test\0"] {
            assert_eq!(Answer::parse(bad), None);
        }
    }

    #[test]
    fn a_domain_is_a_name_that_may_be_a_file() {
        assert!(
            is_domain(b"example.org") && is_domain(b"xn--bcher-kva.example") && is_domain(b"_x.a-b.test")
        );
        for bad in [
            b"".as_slice(),
            b"localhost",
            b"a/b.test",
            b"..",
            b".test",
            b"a..b",
            b"192.0.2.1",
            b"[192.0.2.1]",
            b"-a.test",
            b"a.test.",
        ] {
            assert!(!is_domain(bad), "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
