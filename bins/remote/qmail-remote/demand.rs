//! demand - how a host must prove itself: control/tlsroutes, and what DANE and MTA-STS say
//!
//! A line of tlsroutes is `domain:level word …`. Levels, from none to all: `none` `may` `auto` `encrypt` `pkix`
//! `dane` `fingerprint`. Words: `name=HOST` (a name that the certificate may carry instead of the host's),
//! `minimum=1.3`, `cert=DIRECTORY` (of our own certificate), and the digests behind `fingerprint`.
#![forbid(unsafe_code)]

use crate::dane::Dane;
use crate::sts::{Answer, Policy};
use dns::Tlsa;
use qmail::control::{Map, dot_suffixes};

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

/// How a certificate is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    Nothing,
    Pkix,
    Dane,
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
    /// What MTA-STS in testing mode would have refused, for the log.
    pub testing: Option<&'static str>,
}

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
}

impl Demand {
    /// TLS where it can be had; None where it shall not be used.
    pub fn of(rule: &Rule, host: Host<'_>) -> Result<Option<Demand>, Refusal> {
        let names = if rule.names.is_empty() { vec![host.name.to_vec()] } else { rule.names.clone() };
        let mut demand = Demand {
            required: true,
            verify: Verify::Nothing,
            names,
            tlsa: Vec::new(),
            sts: false,
            minimum: rule.minimum.clone(),
            cert: rule.cert.clone(),
            testing: None,
        };
        match rule.level {
            Level::Never => return Ok(None),
            Level::May => demand.required = false,
            Level::Encrypt => {}
            Level::Pkix => {
                demand.verify = Verify::Pkix;
                // A name that nothing proves is whatever an attacker wants: then the certificate must be for the domain.
                if rule.names.is_empty() && !host.proved {
                    demand.names = vec![host.domain.to_vec()];
                }
            }
            Level::Fingerprint => {
                demand.verify = Verify::Dane;
                demand.tlsa =
                    rule.prints.iter().map(|print| [b"3 0 1 ", print.as_slice()].concat()).collect();
            }
            Level::Dane => match host.dane {
                Dane::Records { base, records } => demand.mark(base, &records, host.domain),
                Dane::Unknown => return Err(Refusal::DaneUnknown),
                Dane::Nothing | Dane::Unusable { .. } => return Err(Refusal::DaneMissing),
            },
            Level::Auto => {
                let policy: Option<&Policy> = match host.sts {
                    Answer::Enforce(policy) if !policy.names(host.name) => return Err(Refusal::NotInPolicy),
                    Answer::Enforce(policy) => Some(policy),
                    Answer::Testing(policy) => {
                        demand.testing = (!policy.names(host.name)).then_some("host is not in the policy");
                        None
                    }
                    Answer::Nothing => None,
                };
                // rfc8461:2 what DANE demands no policy can lessen.
                match host.dane {
                    Dane::Records { base, records } => demand.mark(base, &records, host.domain),
                    Dane::Unknown => return Err(Refusal::DaneUnknown),
                    dane if policy.is_some() => {
                        demand.verify = Verify::Pkix;
                        demand.sts = true;
                        demand.names = vec![host.name.to_vec()];
                        drop(dane);
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
                Verify::Dane => b"dane",
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
        Demand::of(&rule(value), host(name, dane, sts))
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
        assert!(!free.required && free.testing.is_some());
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
        assert_eq!(demand("dane", "mx.test", Dane::Nothing, &nothing), Err(Refusal::DaneMissing));
        assert!(bytes(demand("dane", "mx.test", records(), &nothing)).0);
        assert_eq!(
            bytes(demand("encrypt", "mx.test", Dane::Nothing, &nothing)),
            (true, "name=mx.test verify=none minimum=1.2 ".into())
        );
        let said = bytes(demand("pkix", "mx.test", Dane::Nothing, &nothing)).1;
        assert_eq!(said, "name=domain.test verify=pkix minimum=1.2 ", "an unproved name proves nothing");
        let said = bytes(Demand::of(
            &rule("pkix"),
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
}
