//! What the administrator decided: read at the start; `locals` and `virtualdomains` again on HUP.
#![forbid(unsafe_code)]

use crate::log::Log;
use qmail::control::{Control, Map, Set};
use qmail::home::Home;
use qmail::queue::bounce::Names;
use qmail::queue::report::log_safe;
use qmail::queue::rewrite::Rules;
use qmail::trouble::Trouble;

pub struct Controls {
    pub rules: Rules,
    pub names: Names,
    /// Deliveries at once, before the spawner's limit: local, remote.
    pub concurrency: [u64; 2],
    /// Seconds after which a message is given up.
    pub lifetime: u64,
}

impl Controls {
    pub fn read(home: &Home) -> Result<Controls, Trouble> {
        let control = home.control();
        let or_me = |name: &str| Ok(control.line_or_me(name)?.unwrap_or_else(|| name.as_bytes().to_vec()));
        let or = |name: &str, default: &str| {
            Ok(control.line(name)?.unwrap_or_else(|| default.as_bytes().to_vec()))
        };
        Ok(Controls {
            rules: Rules {
                envnoathost: or_me("envnoathost")?,
                percenthack: control.set("percenthack")?.unwrap_or_default(),
                locals: locals(&control)?,
                virtualdomains: control.map("virtualdomains")?.unwrap_or_default(),
            },
            names: Names {
                bouncefrom: or("bouncefrom", "MAILER-DAEMON")?,
                bouncehost: or_me("bouncehost")?,
                doublebounceto: or("doublebounceto", "postmaster")?,
                doublebouncehost: or_me("doublebouncehost")?,
            },
            concurrency: [control.int("concurrencylocal", 10)?, control.int("concurrencyremote", 20)?],
            lifetime: control.int("queuelifetime", 604_800)?,
        })
    }

    /// HUP. With trouble in either file the old values of both stay.
    pub fn reread(&mut self, home: &Home, log: Log) {
        let control = home.control();
        let fresh = locals(&control).map_err(|trouble| (trouble, "control/locals")).and_then(|locals| {
            match virtualdomains(&control) {
                Ok(map) => Ok((locals, map)),
                Err(trouble) => Err((trouble, "control/virtualdomains")),
            }
        });
        match fresh {
            Ok((locals, virtualdomains)) => {
                self.rules.locals = locals;
                self.rules.virtualdomains = virtualdomains;
            }
            Err((trouble, name)) => {
                explain(log, &trouble);
                log.line(format!("alert: unable to reread {name}"));
            }
        }
    }
}

fn locals(control: &Control) -> Result<Set, Trouble> {
    match control.set("locals")? {
        Some(set) => Ok(set),
        None => match control.me()? {
            Some(me) => Ok(Set::of(&[me])),
            None => Err(Trouble::temporary("control/locals and control/me are missing")),
        },
    }
}

fn virtualdomains(control: &Control) -> Result<Map, Trouble> {
    Ok(control.map("virtualdomains")?.unwrap_or_default())
}

/// Says which file keeps us from starting, before the line that says that we cannot.
pub fn explain(log: Log, trouble: &Trouble) {
    let text: String = trouble.text().split(|b| *b == b' ').map(log_safe).collect::<Vec<_>>().join(" ");
    log.line(format!("alert: {text}"));
}
