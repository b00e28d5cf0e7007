//! open - a session with a host: connected, proved as it is demanded, logged in
//!
//! A host that does not prove who it must be is passed over for the next one, as one that does not answer
//! (RFC 7672 section 2.1, RFC 8461 section 5). Where nothing is demanded, and TLS fails, the same host is asked
//! once more without (RFC 7435). A message may demand more, or ask for less (RFC 8689): then there is a second look at
//! the hosts, less strict, where the first has found none.
#![forbid(unsafe_code)]

use crate::connect;
use crate::dane::{self, Dane};
use crate::demand::{Demand, Host, Kind, Level, Pass, Refusal, Rule, Verify};
use crate::dialogue::{Session, Wire};
use crate::hosts::{Lookup, Name, Place, Places};
use crate::login::{self, Credentials};
use crate::policy;
use crate::report::{self, Report};
use crate::route::{self, Login, Route};
use crate::sts::{self, Answer};
use crate::tls::{self, Facts, Outcome};
use jail::{Jail, programs};
use qmail::control::{Control, Map};
use qmail::sasl::Binding;
use qmail::tcpto;
use qmail::timed::Deadline;
use qmail::trouble::Trouble;
use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// A handshake. tlsclient gives up before.
const HANDSHAKE: Duration = Duration::from_secs(180);

/// rfc8314:3.3 where TLS begins with the first byte.
const WRAPPED_PORT: u16 = 465;

/// So many timeoutremote may pass before the last host is asked that is not what it must be: an attacker's domain may have
/// a hundred slow ones, and a place among all deliveries is not to be held for days.
const SEARCH_PATIENCE: u32 = 2;

/// Seconds, unless control files say otherwise.
const TIMEOUT_CONNECT: u64 = 60;
const TIMEOUT_REMOTE: u64 = 1200;

/// What the administrator says.
pub struct Settings {
    pub helohost: Vec<u8>,
    routes: Map,
    by_sender: Map,
    demands: Map,
    control: Control,
    pub timeout_connect: Duration,
    pub timeout_remote: Duration,
}

impl Settings {
    pub fn read(control: &Control) -> Result<Settings, Trouble> {
        // Nobody waits 0 seconds: that would be a way to send nothing, not a timeout.
        let seconds =
            |name, default| Ok::<_, Trouble>(Duration::from_secs(control.int(name, default)?.max(1)));
        Ok(Settings {
            helohost: control
                .line_or_me("helohost")?
                .ok_or_else(|| Trouble::temporary("control/helohost and control/me are missing"))?,
            routes: control.map("smtproutes")?.unwrap_or_default(),
            by_sender: control.map("senderroutes")?.unwrap_or_default(),
            demands: control.map("tlsroutes")?.unwrap_or_default(),
            control: control.clone(),
            timeout_connect: seconds("timeoutconnect", TIMEOUT_CONNECT)?,
            timeout_remote: seconds("timeoutremote", TIMEOUT_REMOTE)?,
        })
    }

    fn value(&self, host: &[u8], sender: &[u8]) -> Option<&[u8]> {
        route::choose(&self.routes, &self.by_sender, host, sender)
    }

    /// The login of this name. The file has passwords in it: who may read it is not everybody.
    fn login(&self, name: &[u8]) -> Result<(Vec<u8>, qmail::auth::Secret), Report> {
        let open = nix::sys::stat::stat(qmail::fd::path(&self.control.path("smtpauth")))
            .is_ok_and(|s| s.st_mode & 0o007 != 0);
        if open {
            return Err(report::no_login(name, "everybody may read that file: chmod o= it"));
        }
        let logins =
            self.control.map("smtpauth").map_err(|why| report::no_controls(&why))?.unwrap_or_default();
        route::credentials(&logins, name).ok_or_else(|| report::no_login(name, "there is none of that name"))
    }
}

/// Where the mail of a sender for a host goes, and how.
pub struct Way {
    value: Option<Vec<u8>>,
    pub route: Option<Route>,
    credentials: Option<Credentials>,
    rule: Rule,
}

impl Way {
    pub fn of(settings: &Settings, host: &[u8], sender: &[u8]) -> Result<Way, Report> {
        let value = settings.value(host, sender).map(<[u8]>::to_vec);
        let route = match &value {
            Some(value) => Some(Route::parse(value).ok_or_else(|| report::no_route(value))?),
            None => None,
        };
        let credentials = match &route {
            None | Some(Route { login: Login::None, .. }) => None,
            Some(Route { login: Login::Named(name), cleartext, .. }) => {
                let (name, password) = settings.login(name)?;
                Some(Credentials { name, password, in_the_clear: *cleartext })
            }
            Some(Route { login: Login::Given { name, password }, cleartext, .. }) => {
                Some(Credentials { name: name.clone(), password: password.clone(), in_the_clear: *cleartext })
            }
        };
        let relay = route.as_ref().map(Route::name);
        let mut rule = Rule::find(&settings.demands, host, relay.as_deref())
            .map_err(|value| report::no_demand(&value))?
            .unwrap_or(Rule::plain(Level::Auto));
        // A password is told to nobody who has not proved to be the relay, unless the administrator says so.
        if rule.level == Level::Auto && credentials.as_ref().is_some_and(|c| !c.in_the_clear) {
            rule.level = Level::Pkix;
        }
        Ok(Way { value, route, credentials, rule })
    }

    /// Whether the mail of this sender for the same host goes the same way.
    pub fn is_for(&self, settings: &Settings, host: &[u8], sender: &[u8]) -> bool {
        settings.value(host, sender) == self.value.as_deref()
    }
}

/// Who is to be talked to, and what is needed for it.
pub struct Opening<'a> {
    pub host: &'a [u8],
    pub way: &'a Way,
    /// Of the message. The session is for others of its kind only.
    pub kind: Kind,
    pub settings: &'a Settings,
    pub lookup: &'a Lookup,
    pub table: Option<&'a tcpto::File>,
    /// The second jail is.
    pub closed: Cell<bool>,
}

/// What came of a host.
enum Attempt {
    Ready(Box<(Session<Wire>, Option<Facts>)>),
    /// It is not to be used now; another one may be.
    Next(Report),
    /// TLS failed, and may be tried with a lesser demand; None: is not demanded.
    Lesser(Option<Demand>),
}

/// Why there is no session yet.
enum Missing {
    /// No host was what it must be: the first reason.
    PassedOver(Report),
    /// Nothing else is to be tried.
    Ended(Report),
}

impl Opening<'_> {
    /// The first of these places that takes the connection and is what it must be, ready for a message. Behind this
    /// nothing else can be reached.
    pub fn session(&self, found: &Places) -> Result<Session<Wire>, Report> {
        let client = tls::Client::find();
        let policy = match self.policy(client) {
            Err(_) if self.kind == Kind::Optional => Answer::Nothing,
            policy => policy?,
        };
        let mut known: Vec<Option<Dane>> = vec![None; found.names.len()];
        let mut latest = report::no_connection();
        for pass in self.kind.passes() {
            // Without a policy of the domain's there is nothing to be lax about. And whom a password is told is not for
            // a message to say.
            let may_be_lax = self.way.rule.level == Level::Auto && self.way.credentials.is_none();
            if *pass == Pass::Lax && !may_be_lax {
                break;
            }
            match self.search(*pass, found, client, &policy, &mut known) {
                Ok(session) => return Ok(session),
                Err(Missing::Ended(report)) => return Err(report),
                Err(Missing::PassedOver(report)) => latest = report,
            }
        }
        Err(latest)
    }

    fn search(
        &self,
        pass: Pass,
        found: &Places,
        client: Option<tls::Client>,
        policy: &Answer,
        known: &mut [Option<Dane>],
    ) -> Result<Session<Wire>, Missing> {
        let mut passed_over = Vec::new();
        let mut unreachable = found.in_doubt;
        let mut dead = Vec::new();
        // Then no policy was asked for either, and nothing can be said for good.
        if pass == Pass::Strict && client.is_none() {
            return Err(Missing::PassedOver(report::no_tls_here()));
        }
        let patience = Deadline::after(self.settings.timeout_remote.saturating_mul(SEARCH_PATIENCE));
        for place in &found.places {
            if dead.contains(&place.ip) {
                continue;
            }
            let name = found.names.get(place.name).cloned().unwrap_or_default();
            let dane = known.get_mut(place.name).map_or(Dane::Nothing, |dane| {
                dane.get_or_insert_with(|| self.dane(pass, found, &name, client)).clone()
            });
            let demand = match self.demand(pass, found, &name, dane, policy) {
                Ok(demand) => demand,
                Err(report) => {
                    passed_over.push(report);
                    continue;
                }
            };
            if client.is_none() && demand.as_ref().is_some_and(|demand| demand.required) {
                passed_over.push(report::no_tls_here());
                continue;
            }
            match self.place(pass, place, found.port, client, demand) {
                Ok(Some(Attempt::Ready(opened))) => return self.ready(*opened).map_err(Missing::Ended),
                Ok(Some(Attempt::Next(report))) => passed_over.push(report),
                Ok(Some(Attempt::Lesser(_))) => {}
                Ok(None) => {
                    unreachable = true;
                    dead.push(place.ip);
                }
                // rfc8689:4.2.1 whatever step fails, the next host is asked.
                Err(report) if pass == Pass::Strict => passed_over.push(report),
                Err(report) => return Err(Missing::Ended(report)),
            }
            if patience.passed() && !passed_over.is_empty() {
                unreachable = true; // so are the others
                break;
            }
        }
        // "Never" is said only where each host has said it. Where no host was asked for anything, no other pass finds more.
        let first = passed_over.iter().position(|report| !report.is_permanent());
        match first.or((!unreachable && !passed_over.is_empty()).then_some(0)) {
            Some(at) => Err(Missing::PassedOver(passed_over.swap_remove(at))),
            None if passed_over.is_empty() => Err(Missing::Ended(report::no_connection())),
            None => Err(Missing::PassedOver(report::no_connection())),
        }
    }

    /// What the domain demands by MTA-STS. It is about the exchangers that the DNS names.
    fn policy(&self, client: Option<tls::Client>) -> Result<Answer, Report> {
        let level = self.way.rule.level;
        let matters =
            level == Level::Auto || self.kind.passes().contains(&Pass::Strict) && level != Level::Never;
        let asked = self.way.route.is_none() && matters && client.is_some();
        let domain = self.host.strip_suffix(b".").unwrap_or(self.host);
        match policy::Client::find().filter(|_| asked && sts::is_domain(domain)) {
            Some(client) => client.ask(domain).map_err(|_| report::no_policy_known()),
            None => Ok(Answer::Nothing),
        }
    }

    /// What the host's zone demands. rfc7672:2.2.1 a host whose zone is signed is asked for its own certificate also where
    /// the domain's is not: against who can only stand between that helps, and it costs the others no question.
    fn dane(&self, pass: Pass, found: &Places, name: &Name, client: Option<tls::Client>) -> Dane {
        let level = pass.level(self.way.rule.level);
        let asked = matches!(level, Some(Level::Auto | Level::Dane)) && client.is_some();
        if !asked || !(found.proved || name.proved) || route::literal(&name.name).is_some() {
            return Dane::Nothing;
        }
        dane::of(self.lookup, &name.name, found.port, name.proved)
    }

    fn demand(
        &self,
        pass: Pass,
        found: &Places,
        name: &Name,
        dane: Dane,
        sts: &Answer,
    ) -> Result<Option<Demand>, Report> {
        let relay = self.way.route.as_ref().map(Route::name);
        let host = Host {
            name: &name.name,
            domain: relay.as_deref().unwrap_or(self.host),
            proved: found.proved,
            dane,
            sts,
        };
        let demand = Demand::of(&self.way.rule, pass, host).map_err(|refusal| match refusal {
            Refusal::DaneUnknown => report::dane_unknown(&name.name),
            Refusal::DaneMissing => report::dane_missing(&name.name),
            Refusal::NotInPolicy => report::not_in_policy(&name.name),
            Refusal::NotNamed => report::requiretls_not_named(&name.name),
            Refusal::PolicyUnknown => report::requiretls_policy_unknown(),
            Refusal::NoTls => report::requiretls_denied(&name.name),
        })?;
        let wrapped = found.port == WRAPPED_PORT;
        Ok(demand.map(|demand| Demand { required: demand.required || wrapped, ..demand }))
    }

    /// Connects to one place and makes it ready; None when it takes no connection. What ends the search is an error.
    fn place(
        &self,
        pass: Pass,
        place: &Place,
        port: u16,
        client: Option<tls::Client>,
        demand: Option<Demand>,
    ) -> Result<Option<Attempt>, Report> {
        let mut remark = demand.as_ref().map_or_else(Vec::new, Demand::without_tls);
        let mut secure = client.zip(demand);
        loop {
            let patience = self.settings.timeout_connect;
            let Some(wire) = connect::to(place, port, patience, self.table)? else { return Ok(None) };
            // Nobody else will be asked: then nobody else can be, from here on.
            if secure.is_none() {
                self.close()?;
            }
            match self.attempt(pass, place.ip, wire, port == WRAPPED_PORT, secure.as_ref())? {
                Attempt::Lesser(lesser) if secure.is_some() => {
                    secure = client.zip(lesser);
                    if let Some((_, demand)) = &secure {
                        remark.clone_from(&demand.remark);
                    }
                }
                Attempt::Ready(mut opened) => {
                    if opened.1.is_none() {
                        opened.0.remark(&remark);
                    }
                    return Ok(Some(Attempt::Ready(opened)));
                }
                attempt => return Ok(Some(attempt)),
            }
        }
    }

    fn attempt(
        &self,
        pass: Pass,
        ip: IpAddr,
        wire: Wire,
        wrapped: bool,
        secure: Option<&(tls::Client, Demand)>,
    ) -> Result<Attempt, Report> {
        let strict = pass == Pass::Strict;
        let mut session = Session::new(ip, wire, self.settings.timeout_remote);
        let Some((client, demand)) = secure else {
            session.greet()?;
            session.hello(&self.settings.helohost)?;
            return Ok(Attempt::Ready(Box::new((session, None))));
        };
        if !wrapped {
            session.greet()?;
            session.hello(&self.settings.helohost)?;
            let offered = session.offers_tls();
            let begun = offered && session.start_tls()?;
            if !begun && demand.required {
                session.quit();
                return Ok(Attempt::Next(match strict && !offered {
                    true => report::requiretls_without_tls(ip),
                    false => report::tls_not_offered(ip),
                }));
            }
            if !begun {
                return Ok(Attempt::Ready(Box::new((session, None))));
            }
        }
        let outcome = client.begin(session.stream(), demand, HANDSHAKE);
        session.abandon();
        let failed = match outcome {
            Ok(Outcome::Encrypted(clear, facts))
                if facts.verified || demand.verify == Verify::Nothing && !strict =>
            {
                let mut session = session.secured(Rc::new(clear), note(demand, &facts));
                if wrapped {
                    session.greet()?;
                }
                session.hello(&self.settings.helohost)?;
                // rfc8689:4.2.1 step 5; rfc8689:5 a bounce goes on without.
                if strict && session.offers_requiretls() {
                    session.require_tls();
                } else if strict && self.kind != Kind::Bounce {
                    session.quit();
                    return Ok(Attempt::Next(report::requiretls_not_offered(ip)));
                }
                return Ok(Attempt::Ready(Box::new((session, Some(facts)))));
            }
            Ok(Outcome::Encrypted(..)) => (true, b"nothing was verified".to_vec()),
            Ok(Outcome::Refused(why)) => (true, why),
            Ok(Outcome::Failed(why)) => (false, why),
            Ok(Outcome::Gone) => return Ok(Attempt::Next(report::tls_failed(ip, b"tlsclient is gone"))),
            Ok(Outcome::NoClient) | Err(_) => (false, b"tlsclient gave no verdict".to_vec()),
        };
        Ok(match failed {
            (_, why) if !demand.required => Attempt::Lesser(demand.lesser(&why)),
            (true, why) if strict => Attempt::Next(report::requiretls_not_proved(ip, &why)),
            (true, why) => Attempt::Next(report::tls_refused(ip, &why)),
            (false, why) => Attempt::Next(report::tls_failed(ip, &why)),
        })
    }

    /// From here on there is this connection and no other.
    fn close(&self) -> Result<(), Report> {
        if self.closed.replace(true) {
            return Ok(());
        }
        Jail::of(&programs::QMAIL_REMOTE_TALKING).close().map_err(|why| report::no_jail(&why))
    }

    /// The last steps, for which nothing else is needed any more.
    fn ready(&self, (mut session, facts): (Session<Wire>, Option<Facts>)) -> Result<Session<Wire>, Report> {
        self.close()?;
        let Some(credentials) = &self.way.credentials else { return Ok(session) };
        // TLS with nobody knows whom keeps nobody from listening.
        let private = facts.as_ref().is_some_and(|facts| facts.verified);
        let binding = facts.map_or_else(Binding::default, |facts| facts.binding);
        match login::login(&mut session, credentials, private, &binding) {
            Ok(()) => Ok(session),
            Err(report) => {
                session.quit();
                Err(report)
            }
        }
    }
}

/// The line beside success.
fn note(demand: &Demand, facts: &Facts) -> Vec<u8> {
    let mut note =
        [b"tls=", facts.protocol.as_slice(), b" ", &facts.cipher, b" ", demand.word().as_bytes()].concat();
    // rfc7672:2.2.1 this is not to be taken for a proof that the domain was reached.
    if let Some(name) = &demand.found {
        note.extend_from_slice(b"-host ");
        note.extend(name.iter().map(|b| if b.is_ascii_graphic() { *b } else { b'?' }));
    }
    if !demand.remark.is_empty() {
        note.extend_from_slice(b", ");
        note.extend_from_slice(&demand.remark);
    }
    note
}
