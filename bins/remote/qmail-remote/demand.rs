//! demand - how a host must prove itself: control/tlsroutes, what DANE and MTA-STS say, and what the message asks for
//!
//! A line of tlsroutes is `domain:level word …`. Levels, from none to all: `none` `may` `auto` `encrypt` `pkix`
//! `dane` `fingerprint`. Words: `name=HOST` (a name that the certificate may carry instead of the host's),
//! `minimum=1.3`, `cert=DIRECTORY` (of our own certificate), and the digests behind `fingerprint`.
#![forbid(unsafe_code)]

use crate::dane::Dane;
use crate::sts::Answer;
use dns::Tlsa;
use qmail::control::{Map, dot_suffixes};
use qmail::queue::bounce::DOUBLE_BOUNCE_SENDER;
use qmail::requiretls::Wish;

/// How much is demanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// No TLS, even if it is offered.
    Never,
    /// TLS where it is offered, whoever is at the other end; DANE and MTA-STS are not asked.
    May,
    /// What the domain publishes by DANE or MTA-STS; without that, as `may`.
    Auto,
    /// TLS, whoever is at the other end.
    Encrypt,
    /// TLS and a certificate of a public authority, for one of the names.
    Pkix,
    /// TLS and a certificate that the signed zone marks; no mail while it marks none.
    Dane,
    /// TLS and one of these certificates.
    Fingerprint,
}

/// One line of tlsroutes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub level: Level,
    names: Vec<Vec<u8>>,
    prints: Vec<Vec<u8>>,
    minimum: Option<Vec<u8>>,
    cert: Option<Vec<u8>>,
}

impl Rule {
    /// Nothing but a level.
    pub fn plain(level: Level) -> Rule {
        Rule { level, names: Vec::new(), prints: Vec::new(), minimum: None, cert: None }
    }

    /// None for a value with anything in it that is not known: a demand must not be lost by a slip of the pen.
    pub fn parse(value: &[u8]) -> Option<Rule> {
        let mut words = value.split(|b| matches!(b, b' ' | b'\t')).filter(|w| !w.is_empty());
        let level = match words.next() {
            None | Some(b"auto") => Level::Auto,
            Some(b"none") => Level::Never,
            Some(b"may") => Level::May,
            Some(b"encrypt") => Level::Encrypt,
            Some(b"pkix") => Level::Pkix,
            Some(b"dane") => Level::Dane,
            Some(b"fingerprint") => Level::Fingerprint,
            Some(_) => return None,
        };
        let mut rule = Rule::plain(level);
        for word in words {
            if let Some(name) = word.strip_prefix(b"name=").filter(|n| is_word(n)) {
                rule.names.push(name.to_vec());
            } else if let Some(version) =
                word.strip_prefix(b"minimum=").filter(|v| matches!(*v, b"1.2" | b"1.3"))
            {
                rule.minimum = Some(version.to_vec());
            } else if let Some(name) = word.strip_prefix(b"cert=").filter(|n| is_file(n)) {
                rule.cert = Some(name.to_vec());
            } else {
                rule.prints.push(fingerprint(word).filter(|_| level == Level::Fingerprint)?);
            }
        }
        (level != Level::Fingerprint || !rule.prints.is_empty()).then_some(rule)
    }

    /// The line for a host: of the host that mail is for, else of the relay that a route names, each whole and
    /// then by its suffixes, else of the empty key. A final dot changes nothing. The error is a value that cannot be read.
    pub fn find(routes: &Map, host: &[u8], relay: Option<&[u8]>) -> Result<Option<Rule>, Vec<u8>> {
        let host = host.strip_suffix(b".").unwrap_or(host);
        let keys = |name| std::iter::once(name).chain(dot_suffixes(name));
        let value = keys(host)
            .chain(relay.into_iter().flat_map(keys))
            .filter(|key: &&[u8]| !key.is_empty())
            .chain(std::iter::once(b"".as_slice()))
            .find_map(|key| routes.get(key));
        value.map(|value| Rule::parse(value).ok_or_else(|| value.to_vec())).transpose()
    }
}

/// What may stand in a packet as one value.
fn is_word(word: &[u8]) -> bool {
    !word.is_empty() && word.iter().all(|b| b.is_ascii_graphic() && *b != b',')
}

/// A name in a directory, and no way out of it.
fn is_file(name: &[u8]) -> bool {
    is_word(name) && !name.starts_with(b".") && !name.contains(&b'/')
}

/// The SHA-256 of a certificate as openssl writes it: 64 digits, with or without colons.
fn fingerprint(word: &[u8]) -> Option<Vec<u8>> {
    let digits: Vec<u8> = word.iter().filter(|b| **b != b':').map(u8::to_ascii_lowercase).collect();
    (digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit)).then_some(digits)
}

/// What a message has to do with all that (RFC 8689). A session is for messages of one kind, that for which it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ordinary,
    /// It travels under TLS, between hosts that are proved and promise the same, or not at all.
    Required,
    /// A bounce of such a one: the same where it can be had, but it is not to be lost for that.
    Bounce,
    /// `TLS-Required: No`: what the domain publishes is followed, and does not stop it.
    Optional,
}

impl Kind {
    /// rfc8689:4.2.1, rfc8689:5
    pub fn of(wish: Wish, sender: &[u8]) -> Kind {
        match wish {
            Wish::Nothing => Kind::Ordinary,
            Wish::Required if sender.is_empty() || sender == DOUBLE_BOUNCE_SENDER => Kind::Bounce,
            Wish::Required => Kind::Required,
            Wish::Optional => Kind::Optional,
        }
    }

    /// How hosts are looked at, and how once more if none of them is what it must be then.
    pub fn passes(self) -> &'static [Pass] {
        match self {
            Kind::Ordinary => &[Pass::Published],
            Kind::Required => &[Pass::Strict],
            Kind::Bounce => &[Pass::Strict, Pass::Published],
            Kind::Optional => &[Pass::Published, Pass::Lax],
        }
    }
}

/// One look at the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// What the administrator demands, or else the domain.
    Published,
    /// Both, and what REQUIRETLS needs (rfc8689:2).
    Strict,
    /// The administrator.
    Lax,
}

impl Pass {
    /// What a level comes to. None where the two contradict.
    pub fn level(self, level: Level) -> Option<Level> {
        match (self, level) {
            (Pass::Strict, Level::Never) => None,
            (Pass::Strict, Level::May | Level::Encrypt) => Some(Level::Auto),
            (Pass::Lax, Level::Auto) => Some(Level::May),
            (_, level) => Some(level),
        }
    }
}

/// How a certificate is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    Nothing,
    Pkix,
    Dane,
    /// As Dane, of what the administrator wrote: no DNS has a part in it.
    Print,
}

/// What one host must meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// Without TLS, or with TLS that fails, nothing is sent.
    pub required: bool,
    pub verify: Verify,
    /// The first is asked for (SNI); a certificate may carry any of them.
    pub names: Vec<Vec<u8>>,
    /// `usage selector matching hex`.
    pub tlsa: Vec<Vec<u8>>,
    pub sts: bool,
    pub minimum: Option<Vec<u8>>,
    pub cert: Option<Vec<u8>>,
    /// The certificate is looked at only to tell the log: a policy is in testing mode.
    pub trial: bool,
    /// What is told with success.
    pub remark: Vec<u8>,
    /// Where the DNS did not prove that this host is the domain's: what its certificate proves is the host alone.
    pub found: Option<Vec<u8>>,
}

/// Before what MTA-STS in testing mode would have refused.
const TESTING: &[u8] = b"MTA-STS in testing: ";

/// What let a message through that nothing else would have.
const LAX: &[u8] = b"TLS-Required: No";

/// What is known of the host.
#[derive(Debug)]
pub struct Host<'a> {
    /// The name that was found, or the relay's; an address where there is no name.
    pub name: &'a [u8],
    /// The domain that mail is for, or the relay's name.
    pub domain: &'a [u8],
    /// The DNS proved that this host serves that domain, or the administrator's route says it.
    pub proved: bool,
    pub dane: Dane,
    pub sts: &'a Answer,
}

/// Why a host must not be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its TLSA records cannot be had.
    DaneUnknown,
    /// They are demanded, and there are none.
    DaneMissing,
    /// The domain's policy does not name it.
    NotInPolicy,
    /// The message demands that somebody names it, and nobody does.
    NotNamed,
    /// The same, and the domain's policy, which may name it, cannot be had.
    PolicyUnknown,
    /// The message demands TLS, and the administrator will have none there.
    NoTls,
}

impl Demand {
    /// TLS, with a host that is asked for by this name.
    pub fn of_host(name: Vec<u8>) -> Demand {
        Demand {
            required: true,
            verify: Verify::Nothing,
            names: vec![name],
            tlsa: Vec::new(),
            sts: false,
            minimum: None,
            cert: None,
            trial: false,
            remark: Vec::new(),
            found: None,
        }
    }

    /// TLS where it can be had; None where it shall not be used.
    pub fn of(rule: &Rule, pass: Pass, host: Host<'_>) -> Result<Option<Demand>, Refusal> {
        let level = pass.level(rule.level).ok_or(Refusal::NoTls)?;
        let strict = pass == Pass::Strict;
        let listed = match host.sts {
            Answer::Enforce(policy) | Answer::Testing(policy) => policy.names(host.name),
            Answer::Nothing | Answer::Unknown => false,
        };
        // rfc8689:4.2.1 step 2: the DNS proves it, or a policy, which came from a proved web server, in whatever mode.
        let named = host.proved || strict && listed;
        if strict && !named {
            return Err(match host.sts {
                Answer::Enforce(_) => Refusal::NotInPolicy,
                Answer::Unknown => Refusal::PolicyUnknown,
                Answer::Testing(_) | Answer::Nothing => Refusal::NotNamed,
            });
        }
        let names = if rule.names.is_empty() { vec![host.name.to_vec()] } else { rule.names.clone() };
        let mut demand = Demand {
            names,
            minimum: rule.minimum.clone(),
            cert: rule.cert.clone(),
            remark: if pass == Pass::Lax { LAX.to_vec() } else { Vec::new() },
            ..Demand::of_host(Vec::new())
        };
        match level {
            Level::Never => return Ok(None),
            Level::May => demand.required = false,
            Level::Encrypt => {}
            Level::Pkix => {
                demand.verify = Verify::Pkix;
                // A name that nothing proves is whatever an attacker wants: then the certificate must be for the domain.
                if rule.names.is_empty() && !named {
                    demand.names = vec![host.domain.to_vec()];
                }
            }
            Level::Fingerprint => {
                demand.verify = Verify::Print;
                demand.tlsa =
                    rule.prints.iter().map(|print| [b"3 0 1 ", print.as_slice()].concat()).collect();
            }
            Level::Dane => match host.dane {
                // rfc7672:2.2.1 what an unproved host proves of itself is not what is demanded for the domain.
                Dane::Records { .. } | Dane::Unknown if !host.proved => return Err(Refusal::DaneMissing),
                Dane::Records { base, records } => demand.mark(base, &records, host.domain),
                Dane::Unknown => return Err(Refusal::DaneUnknown),
                Dane::Nothing | Dane::Unusable { .. } => return Err(Refusal::DaneMissing),
            },
            Level::Auto => {
                let enforced = match host.sts {
                    Answer::Enforce(_) if !listed => return Err(Refusal::NotInPolicy),
                    Answer::Enforce(_) => true,
                    Answer::Testing(_) if !listed => {
                        demand.remark = [TESTING, b"host is not in the policy"].concat();
                        false
                    }
                    Answer::Testing(_) => {
                        demand.trial = host.dane == Dane::Nothing && !strict;
                        false
                    }
                    Answer::Nothing | Answer::Unknown => false,
                };
                // rfc8461:2 what DANE demands no policy can lessen.
                match host.dane {
                    Dane::Records { base, records } => {
                        demand.mark(base, &records, host.domain);
                        demand.found = (!named && !enforced).then(|| host.name.to_vec());
                    }
                    Dane::Unknown => return Err(Refusal::DaneUnknown),
                    Dane::Nothing | Dane::Unusable { .. } if enforced || strict || demand.trial => {
                        demand.required = !demand.trial;
                        demand.verify = Verify::Pkix;
                        demand.sts = listed;
                        demand.names = vec![host.name.to_vec()];
                    }
                    Dane::Unusable { base } => demand.names = vec![base],
                    Dane::Nothing => demand.required = false,
                }
            }
        }
        Ok(Some(demand))
    }

    /// rfc7672:3.2.2 a certificate of an authority that the zone marks must be for the exchanger or for the domain.
    fn mark(&mut self, base: Vec<u8>, records: &[Tlsa], domain: &[u8]) {
        self.verify = Verify::Dane;
        let first = std::mem::replace(&mut self.names, vec![base]);
        for name in first.into_iter().chain(std::iter::once(domain.to_vec())) {
            if !self.names.contains(&name) {
                self.names.push(name);
            }
        }
        self.tlsa = records
            .iter()
            .map(|r| {
                let mut line = format!("{} {} {} ", r.usage, r.selector, r.matching).into_bytes();
                r.data.iter().for_each(|b| line.extend_from_slice(format!("{b:02x}").as_bytes()));
                line
            })
            .collect();
    }

    /// What is tried with the same host when TLS failed for this reason; None for no TLS.
    pub fn lesser(&self, why: &[u8]) -> Option<Demand> {
        self.trial.then(|| Demand {
            verify: Verify::Nothing,
            sts: false,
            trial: false,
            remark: [TESTING, why].concat(),
            ..self.clone()
        })
    }

    /// What is told with success where there is no TLS.
    pub fn without_tls(&self) -> Vec<u8> {
        if self.trial { [TESTING, b"TLS is not offered"].concat() } else { self.remark.clone() }
    }

    /// As it goes to tlsclient.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |name: &[u8], value: &[u8]| {
            out.extend_from_slice(&[name, b"=", value, b"\0"].concat());
        };
        if let Some((first, more)) = self.names.split_first() {
            put(b"name", first);
            if !more.is_empty() {
                put(b"names", &more.join(b",".as_slice()));
            }
        }
        put(
            b"verify",
            match self.verify {
                Verify::Nothing => b"none",
                Verify::Pkix => b"pkix",
                Verify::Dane | Verify::Print => b"dane",
            },
        );
        self.tlsa.iter().for_each(|record| put(b"tlsa", record));
        if self.sts {
            put(b"sts", b"1");
        }
        if let Some(cert) = &self.cert {
            put(b"cert", cert);
        }
        put(b"minimum", self.minimum.as_deref().unwrap_or(b"1.2"));
        out
    }

    /// How the certificate was found good, for the log.
    pub fn word(&self) -> &'static str {
        match (self.verify, self.sts) {
            (Verify::Nothing, _) => "unverified",
            (Verify::Pkix, true) => "sts",
            (Verify::Pkix, false) => "pkix",
            (Verify::Dane, _) => "dane",
            (Verify::Print, _) => "fingerprint",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qmail::control::entries;

    fn rule(value: &str) -> Rule {
        Rule::parse(value.as_bytes()).unwrap()
    }

    fn records() -> Dane {
        Dane::Records {
            base: b"base.test".to_vec(),
            records: vec![Tlsa { usage: 3, selector: 1, matching: 1, data: vec![0xab; 32] }],
        }
    }

    fn enforce() -> Answer {
        Answer::parse(b"Emx.test\0*.wild.test\0").unwrap()
    }

    fn host<'a>(name: &'a str, dane: Dane, sts: &'a Answer) -> Host<'a> {
        Host { name: name.as_bytes(), domain: b"domain.test", proved: false, dane, sts }
    }

    fn demand(value: &str, name: &str, dane: Dane, sts: &Answer) -> Result<Option<Demand>, Refusal> {
        Demand::of(&rule(value), Pass::Published, host(name, dane, sts))
    }

    fn bytes(demand: Result<Option<Demand>, Refusal>) -> (bool, String) {
        let demand = demand.unwrap().unwrap();
        (demand.required, String::from_utf8(demand.bytes()).unwrap().replace('\0', " "))
    }

    #[test]
    fn the_host_comes_before_the_relay_and_both_before_the_rest() {
        let routes =
            Map::of(&entries(b"a.test:dane\n.b.test:encrypt\nrelay.test:pkix\n:may\nodd.test:pkixx\n"));
        let level =
            |host: &[u8], relay: Option<&[u8]>| Rule::find(&routes, host, relay).map(|r| r.unwrap().level);
        assert_eq!(level(b"A.test", Some(b"relay.test")), Ok(Level::Dane));
        assert_eq!(level(b"x.b.test", None), Ok(Level::Encrypt));
        assert_eq!(
            (level(b"a.test.", None), level(b"x.b.test.", None)),
            (Ok(Level::Dane), Ok(Level::Encrypt))
        );
        assert_eq!(level(b"c.test", Some(b"Relay.Test")), Ok(Level::Pkix));
        assert_eq!(level(b"c.test", Some(b"")), Ok(Level::May));
        assert_eq!(level(b"odd.test", None), Err(b"pkixx".to_vec()));
        assert_eq!(Rule::find(&Map::default(), b"a.test", None), Ok(None));
    }

    #[test]
    fn a_line_with_anything_unknown_in_it_is_refused() {
        let print = "AB:".repeat(31) + "ab";
        for good in [
            "",
            "auto",
            "none",
            "may",
            "encrypt minimum=1.3",
            "pkix name=a.test name=b.test",
            "dane",
            "may cert=me",
            &format!("fingerprint {print}"),
            &format!("fingerprint {} {}", "0".repeat(64), print),
        ] {
            assert!(Rule::parse(good.as_bytes()).is_some(), "{good}");
        }
        for bad in [
            "PKIX",
            "pkix a.test",
            "may minimum=1.1",
            "pkix name=",
            "fingerprint",
            "fingerprint 00",
            "pkix cert=../x",
            "pkix cert=.",
            "may name=a,b",
            &format!("pkix {print}"),
            &format!("fingerprint {}", "0".repeat(63)),
        ] {
            assert_eq!(Rule::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn without_a_word_of_the_domain_tls_is_taken_where_it_is_offered() {
        let nothing = Answer::Nothing;
        let (required, said) = bytes(demand("auto", "mx.test", Dane::Nothing, &nothing));
        assert_eq!((required, said.as_str()), (false, "name=mx.test verify=none minimum=1.2 "));
        assert_eq!(demand("none", "mx.test", records(), &enforce()), Ok(None));
        let (required, said) = bytes(demand("may minimum=1.3", "mx.test", records(), &enforce()));
        assert_eq!((required, said.as_str()), (false, "name=mx.test verify=none minimum=1.3 "));
    }

    #[test]
    fn a_policy_demands_a_listed_name_and_its_certificate() {
        let (required, said) = bytes(demand("auto", "mx.test", Dane::Nothing, &enforce()));
        assert_eq!((required, said.as_str()), (true, "name=mx.test verify=pkix sts=1 minimum=1.2 "));
        assert_eq!(demand("auto", "other.test", Dane::Nothing, &enforce()), Err(Refusal::NotInPolicy));
        assert_eq!(demand("auto", "other.test", records(), &enforce()), Err(Refusal::NotInPolicy));
        let testing = Answer::parse(b"Tmx.test\0").unwrap();
        let free = demand("auto", "other.test", Dane::Nothing, &testing).unwrap().unwrap();
        assert!(!free.required && !free.trial && free.remark.ends_with(b"host is not in the policy"));
        let tried = demand("auto", "mx.test", Dane::Nothing, &testing).unwrap().unwrap();
        assert!(!tried.required && tried.trial && tried.remark.is_empty());
        assert_eq!((tried.verify, tried.sts), (Verify::Pkix, true));
        let then = tried.lesser(b"expired").unwrap();
        assert_eq!((then.verify, then.sts, then.required), (Verify::Nothing, false, false));
        assert_eq!(
            (then.remark.as_slice(), then.lesser(b"x")),
            (b"MTA-STS in testing: expired".as_slice(), None)
        );
        let marked = demand("auto", "mx.test", records(), &testing).unwrap().unwrap();
        assert_eq!((marked.verify, marked.required, marked.trial), (Verify::Dane, true, false));
    }

    #[test]
    fn dane_is_never_lessened_by_a_policy() {
        let mark = format!("tlsa=3 1 1 {}", "ab".repeat(32));
        let said = bytes(demand("auto", "mx.test", records(), &enforce())).1;
        assert_eq!(said, format!("name=base.test names=mx.test,domain.test verify=dane {mark} minimum=1.2 "));
        assert_eq!(demand("auto", "mx.test", Dane::Unknown, &enforce()), Err(Refusal::DaneUnknown));
        let unusable = || Dane::Unusable { base: b"base.test".to_vec() };
        let (required, said) = bytes(demand("auto", "mx.test", unusable(), &Answer::Nothing));
        assert_eq!((required, said.as_str()), (true, "name=base.test verify=none minimum=1.2 "));
        assert!(bytes(demand("auto", "mx.test", unusable(), &enforce())).1.contains("verify=pkix"));
    }

    #[test]
    fn what_the_administrator_demands_is_demanded() {
        let nothing = Answer::Nothing;
        let proved = |dane| Host { proved: true, ..host("mx.test", dane, &nothing) };
        let of = |dane| Demand::of(&rule("dane"), Pass::Published, proved(dane));
        assert_eq!(of(Dane::Nothing), Err(Refusal::DaneMissing));
        assert!(bytes(of(records())).0);
        assert_eq!(
            demand("dane", "mx.test", records(), &nothing),
            Err(Refusal::DaneMissing),
            "the domain proves nothing"
        );
        assert_eq!(
            bytes(demand("encrypt", "mx.test", Dane::Nothing, &nothing)),
            (true, "name=mx.test verify=none minimum=1.2 ".into())
        );
        let said = bytes(demand("pkix", "mx.test", Dane::Nothing, &nothing)).1;
        assert_eq!(said, "name=domain.test verify=pkix minimum=1.2 ", "an unproved name proves nothing");
        let said = bytes(Demand::of(
            &rule("pkix"),
            Pass::Published,
            Host { proved: true, ..host("mx.test", Dane::Nothing, &nothing) },
        ))
        .1;
        assert_eq!(said, "name=mx.test verify=pkix minimum=1.2 ");
        let said =
            bytes(demand("pkix name=a.test name=b.test cert=me", "mx.test", Dane::Nothing, &nothing)).1;
        assert_eq!(said, "name=a.test names=b.test verify=pkix cert=me minimum=1.2 ");
        let said =
            bytes(demand(&format!("fingerprint {}", "Ab".repeat(32)), "mx.test", Dane::Nothing, &nothing)).1;
        assert_eq!(said, format!("name=mx.test verify=dane tlsa=3 0 1 {} minimum=1.2 ", "ab".repeat(32)));
    }

    #[test]
    fn an_unproved_host_that_proves_itself_is_told_by_its_name() {
        let marked = demand("auto", "mx.test", records(), &Answer::Nothing).unwrap().unwrap();
        assert_eq!((marked.required, marked.found.as_deref()), (true, Some(b"mx.test".as_slice())));
        let known = Host { proved: true, ..host("mx.test", records(), &Answer::Nothing) };
        assert_eq!(Demand::of(&rule("auto"), Pass::Published, known).unwrap().unwrap().found, None);
    }

    #[test]
    fn a_message_is_of_a_kind() {
        for (wish, sender, kind) in [
            (Wish::Nothing, b"s@x.test".as_slice(), Kind::Ordinary),
            (Wish::Nothing, b"", Kind::Ordinary),
            (Wish::Required, b"s@x.test", Kind::Required),
            (Wish::Required, b"", Kind::Bounce),
            (Wish::Required, b"#@[]", Kind::Bounce),
            (Wish::Required, b"list-@x.test-@[]", Kind::Required),
            (Wish::Optional, b"", Kind::Optional),
        ] {
            assert_eq!(Kind::of(wish, sender), kind);
        }
    }

    #[test]
    fn a_message_that_demands_tls_wants_a_named_host_with_a_proved_certificate() {
        let nothing = Answer::Nothing;
        let testing = Answer::parse(b"Tmx.test\0").unwrap();
        let proved = |dane| Host { proved: true, ..host("mx.test", dane, &Answer::Nothing) };
        let of = |value: &str, host: Host<'_>| Demand::of(&rule(value), Pass::Strict, host);
        for level in ["auto", "may", "encrypt", "pkix", "auto minimum=1.3"] {
            let (required, said) = bytes(of(level, proved(Dane::Nothing)));
            assert!(required && said.starts_with("name=mx.test verify=pkix "), "{level}: {said}");
            assert!(
                bytes(of(level, proved(Dane::Unusable { base: b"b.test".to_vec() })))
                    .1
                    .starts_with("name=mx.test verify=pkix ")
            );
            assert_eq!(of(level, host("mx.test", Dane::Nothing, &nothing)), Err(Refusal::NotNamed));
            let unknown = host("mx.test", Dane::Nothing, &Answer::Unknown);
            assert_eq!(of(level, unknown), Err(Refusal::PolicyUnknown));
            for policy in [enforce(), testing.clone()] {
                let (required, said) = bytes(of(level, host("mx.test", Dane::Nothing, &policy)));
                assert!(required && said.starts_with("name=mx.test verify=pkix "), "{level}: {said}");
            }
            assert_eq!(of(level, host("other.test", Dane::Nothing, &testing)), Err(Refusal::NotNamed));
            assert_eq!(of(level, host("other.test", Dane::Nothing, &enforce())), Err(Refusal::NotInPolicy));
        }
        for level in ["auto", "may", "encrypt", "dane"] {
            assert_eq!(of(level, proved(Dane::Unknown)), Err(Refusal::DaneUnknown));
            assert!(bytes(of(level, proved(records()))).1.contains(" verify=dane "));
        }
        assert_eq!(of("dane", proved(Dane::Nothing)), Err(Refusal::DaneMissing));
        assert_eq!(of("none", proved(records())), Err(Refusal::NoTls));
        let print = "ab".repeat(32);
        assert!(bytes(of(&format!("fingerprint {print}"), proved(Dane::Nothing))).1.contains(" tlsa=3 0 1 "));
        assert!(
            bytes(of("pkix name=a.test minimum=1.3", proved(Dane::Nothing)))
                .1
                .starts_with("name=a.test verify=pkix minimum=1.3")
        );
    }

    #[test]
    fn a_strict_demand_is_never_less_than_that_of_an_ordinary_message() {
        let testing = Answer::parse(b"Tmx.test\0").unwrap();
        let danes = [Dane::Nothing, Dane::Unknown, Dane::Unusable { base: b"b.test".to_vec() }, records()];
        for level in ["none", "may", "auto", "encrypt", "pkix", "dane"] {
            for (dane, sts, proved) in danes.iter().flat_map(|dane| {
                [Answer::Nothing, Answer::Unknown, enforce(), testing.clone()]
                    .into_iter()
                    .flat_map(move |sts| [false, true].map(|proved| (dane.clone(), sts.clone(), proved)))
            }) {
                let of = |pass| {
                    Demand::of(&rule(level), pass, Host { proved, ..host("mx.test", dane.clone(), &sts) })
                };
                match (of(Pass::Published), of(Pass::Strict)) {
                    (_, Err(_)) => {}
                    (Ok(usual), Ok(Some(strict))) => {
                        assert!(strict.required && !strict.trial && strict.verify != Verify::Nothing);
                        if let Some(usual) = usual {
                            assert!(usual.verify != Verify::Dane || strict.verify == Verify::Dane);
                        }
                    }
                    other => panic!("{level} {dane:?} {sts:?} {proved}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_message_that_wants_no_tls_is_stopped_by_the_administrator_alone() {
        let of =
            |value: &str, dane| Demand::of(&rule(value), Pass::Lax, host("other.test", dane, &enforce()));
        for dane in [Dane::Nothing, Dane::Unknown, records()] {
            let (required, said) = bytes(of("auto minimum=1.3", dane));
            assert_eq!((required, said.as_str()), (false, "name=other.test verify=none minimum=1.3 "));
        }
        assert!(bytes(of("encrypt", Dane::Nothing)).0);
        assert!(bytes(of("pkix", Dane::Nothing)).1.contains("verify=pkix"));
        assert_eq!(of("dane", Dane::Nothing), Err(Refusal::DaneMissing));
    }
}
