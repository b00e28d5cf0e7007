//! files - the part of a jail that Landlock holds: files, TCP ports, signals and ptrace to the outside
#![forbid(unsafe_code)]

use crate::profile::{
    Access as May, CREATE, EXECUTE, LIST, MKDIR, MOVE, Network, Profile, READ, RMDIR, TRUNCATE, UNLINK, WRITE,
};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};
use std::os::fd::OwnedFd;

/// The newest Landlock that the profiles were tried with. What later ones restrict is left alone until then: a
/// restriction nobody tried may keep mail out.
const TRIED: ABI = ABI::V7;

/// Without permission to link and rename across directories (which Linux 5.13 to 5.18 cannot give) there is no
/// jail for a program that must.
const LINKING: ABI = ABI::V2;

/// Restricts this process. Where the kernel has no Landlock nothing happens; where it has an old one, what
/// that one knows.
pub fn restrict(profile: &Profile, places: &[(OwnedFd, May)], ports: &[u16]) -> Result<(), RulesetError> {
    if profile.places().any(|place| place.may & MOVE != 0) && !has_fs(AccessFs::Refer) {
        return Ok(());
    }
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(TRIED))?
        .scope(Scope::from_all(TRIED))?;
    if !matches!(profile.network, Network::Any(_)) {
        ruleset = ruleset.handle_access(AccessNet::from_all(TRIED))?;
    }
    let mut created = ruleset.create()?;
    for (place, may) in places {
        created = created.add_rule(PathBeneath::new(place, rights(*may)))?;
    }
    for port in ports {
        created = created.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    created.restrict_self().map(drop)
}

fn rights(may: May) -> BitFlags<AccessFs> {
    let table: [(May, AccessFs); 10] = [
        (READ, AccessFs::ReadFile),
        (LIST, AccessFs::ReadDir),
        (WRITE, AccessFs::WriteFile),
        (TRUNCATE, AccessFs::Truncate),
        (CREATE, AccessFs::MakeReg),
        (UNLINK, AccessFs::RemoveFile),
        (MOVE, AccessFs::Refer),
        (MKDIR, AccessFs::MakeDir),
        (RMDIR, AccessFs::RemoveDir),
        (EXECUTE, AccessFs::Execute),
    ];
    table.iter().filter(|(bit, _)| may & bit != 0).map(|(_, right)| *right).collect()
}

fn strictly() -> Ruleset {
    Ruleset::default().set_compatibility(CompatLevel::HardRequirement)
}

fn has_fs(access: impl Into<BitFlags<AccessFs>>) -> bool {
    strictly().handle_access(access.into()).is_ok()
}

/// What of it this kernel cannot do.
pub fn missing() -> Vec<String> {
    if !has_fs(AccessFs::from_all(ABI::V1)) {
        return vec!["Landlock: programs reach every file and port that their user may".to_string()];
    }
    let known = [
        (has_fs(AccessFs::from_all(LINKING)), "programs that link or move files have no jail around files"),
        (has_fs(AccessFs::from_all(ABI::V3)), "files that may be written may be cut"),
        (strictly().handle_access(AccessNet::from_all(ABI::V4)).is_ok(), "TCP ports are not limited"),
        (strictly().scope(Scope::from_all(ABI::V6)).is_ok(), "signals to other processes are not limited"),
    ];
    let lacking = known.iter().filter(|(there, _)| !there);
    lacking.map(|(_, what)| format!("Landlock is too old: {what}")).collect()
}
