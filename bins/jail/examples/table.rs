//! table - the tables of doc/security.md, from the manifest (`scripts/security-tables` puts them there)
#![forbid(unsafe_code)]

use jail::calls::Group;
use jail::profile::{Exec, Lock, Lot, Network, Place, Profile, WORDS, Where};
use jail::programs;
use qmail::fd;
use std::fmt::Write;

fn main() {
    let mut out = String::new();
    let _ = tables(&mut out);
    let _ = fd::write_all(fd::OUT, out.as_bytes());
}

fn tables(out: &mut String) -> std::fmt::Result {
    writeln!(out, "| program | uid | files | network | exec | jail |\n|---|---|---|---|---|---|")?;
    for profile in programs::ALL {
        writeln!(
            out,
            "| `{}`{} | {} | {} | {} | {} | {} |",
            profile.name,
            if profile.part.is_empty() { String::new() } else { format!(" {}", profile.part) },
            profile.uid,
            files(profile),
            network(profile),
            exec(profile),
            lock(profile)
        )?;
    }
    writeln!(out, "\n| shared places | |\n|---|---|")?;
    let mut named: Vec<&Lot> = Vec::new();
    for lot in programs::ALL.iter().flat_map(|profile| profile.files) {
        if !lot.name.is_empty() && !named.iter().any(|known| known.name == lot.name) {
            named.push(lot);
        }
    }
    for lot in named {
        writeln!(out, "| {} | {} |", lot.name, places(lot))?;
    }
    writeln!(out, "\n| group | system calls |\n|---|---|")?;
    for group in groups() {
        let calls: Vec<String> = group
            .calls
            .iter()
            .map(|call| {
                let name = call.name.trim_start_matches("SYS_");
                let say: Vec<&str> = call.only.iter().map(|only| only.say).collect();
                if say.is_empty() { name.to_string() } else { format!("{name} ({})", say.join("; ")) }
            })
            .collect();
        writeln!(out, "| {} | {} |", group.name, calls.join(", "))?;
    }
    Ok(())
}

fn files(profile: &Profile) -> String {
    match profile.lock {
        Lock::Limits | Lock::Open => "its user's".to_string(),
        Lock::Jail(_) if profile.stays => "as before".to_string(),
        Lock::Jail(_) if profile.files.is_empty() => "none".to_string(),
        Lock::Jail(_) => profile.files.iter().map(lot).collect::<Vec<_>>().join("; "),
    }
}

fn lot(lot: &Lot) -> String {
    match lot.name {
        "" => places(lot),
        name => format!("*{name}*"),
    }
}

fn places(lot: &Lot) -> String {
    lot.places.iter().map(place).collect::<Vec<_>>().join("; ")
}

fn place(place: &Place) -> String {
    let name = match place.at {
        Where::Home("") => "the home".to_string(),
        Where::Home(name) | Where::Path(name) => format!("`{name}`"),
        Where::Given(name) => name.to_string(),
    };
    let may: Vec<&str> =
        WORDS.iter().filter(|(bit, _)| place.may & bit != 0).map(|(_, word)| *word).collect();
    format!("{name} {}", may.join(" "))
}

fn network(profile: &Profile) -> String {
    match profile.network {
        Network::None if profile.stays => "as before, no new connection".to_string(),
        Network::None => "none".to_string(),
        Network::Local(what) | Network::Ports(what) | Network::Any(what) => what.to_string(),
    }
}

fn exec(profile: &Profile) -> String {
    match profile.exec {
        Exec::Nothing => "nothing".to_string(),
        Exec::Ours(what) => format!("{what}, under this jail"),
        Exec::Anything(what) => what.to_string(),
    }
}

fn lock(profile: &Profile) -> String {
    match profile.lock {
        Lock::Limits => "rlimits".to_string(),
        Lock::Open => "none yet".to_string(),
        Lock::Jail([]) => "rlimits, Landlock".to_string(),
        Lock::Jail(groups) => {
            let names: Vec<&str> = groups.iter().map(|group| group.name).collect();
            format!("rlimits, Landlock, seccomp: {}", names.join(" "))
        }
    }
}

/// Those that a program uses, in order of first use.
fn groups() -> Vec<&'static Group> {
    let mut found: Vec<&'static Group> = Vec::new();
    for profile in programs::ALL {
        let Lock::Jail(groups) = profile.lock else { continue };
        for group in groups {
            if !found.iter().any(|g| g.name == group.name) {
                found.push(group);
            }
        }
    }
    found
}
