//! filter - the part of a jail that seccomp holds: which system calls there are
//!
//! The program for the kernel is a search tree over ranges of call numbers. The kernel tries a new filter with
//! every number it knows, so a list looked through from the front costs 150 us to install, the tree 20.
#![forbid(unsafe_code)]

use crate::calls::{Call, Group, Only};
use nix::errno::Errno;
use qmail::sys::process::seccomp_is_known;
use qmail::trouble::errno;
use seccompiler::{Error, sock_filter};
use std::collections::BTreeMap;

/// Allows these calls from now on; all others answer EPERM. A kernel without seccomp allows everything.
pub fn install(groups: &[&Group]) -> Result<(), String> {
    if groups.is_empty() {
        return Ok(());
    }
    match seccompiler::apply_filter(&program(groups)) {
        Err(Error::Seccomp(e))
            if matches!(errno(&e), Errno::ENOSYS | Errno::EINVAL) && !seccomp_is_known() =>
        {
            Ok(())
        }
        result => result.map_err(|e| e.to_string()),
    }
}

pub fn missing() -> Option<String> {
    let text = "seccomp: programs are not kept from system calls they do not need";
    (!seccomp_is_known()).then(|| text.to_string())
}

/// Instructions of classic BPF (linux/bpf_common.h).
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const ANSWER: u16 = 0x06; // BPF_RET | BPF_K

/// Answers (linux/seccomp.h).
const ALLOW: u32 = 0x7fff_0000;
const REFUSE: u32 = 0x0005_0000 | Errno::EPERM as u32;
const KILL: u32 = 0x8000_0000; // the process: it speaks another architecture's language

/// Where things stand in struct seccomp_data.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16; // of 8 bytes each, the low half first

/// This machine's AUDIT_ARCH (linux/audit.h).
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: u32 = 0xc000_00f3;

/// The conditions under which a call is allowed: each of them is enough. None allows it as it is.
type Ways = Vec<&'static [Only]>;

/// What is said to a range of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict<'a> {
    Allow,
    Refuse,
    Look(&'a [&'static [Only]]),
}

fn program(groups: &[&Group]) -> Vec<sock_filter> {
    let listed = listed(groups);
    let mut code = vec![
        instruction(LOAD, ARCHITECTURE_AT),
        jump(IF_EQUAL, ARCHITECTURE, 1, 0),
        instruction(ANSWER, KILL),
        instruction(LOAD, NUMBER_AT),
    ];
    code.extend(tree(&ranges(&listed)));
    code
}

/// Each call; one that a group allows as it is has no conditions, whatever another group says.
fn listed(groups: &[&Group]) -> BTreeMap<u32, Ways> {
    let calls = || groups.iter().flat_map(|group| group.calls);
    let number = |call: &Call| u32::try_from(call.number).unwrap_or(u32::MAX);
    let mut listed: BTreeMap<u32, Ways> = BTreeMap::new();
    for call in calls() {
        listed.entry(number(call)).or_default().push(call.only);
    }
    for call in calls().filter(|call| call.only.is_empty()) {
        listed.insert(number(call), Vec::new());
    }
    listed
}

/// All numbers as ranges, each from where it begins to where the next one does.
fn ranges(listed: &BTreeMap<u32, Ways>) -> Vec<(u32, Verdict<'_>)> {
    let mut ranges: Vec<(u32, Verdict)> = Vec::with_capacity(2 * listed.len() + 1);
    let mut next = 0; // not spoken of yet
    let mut add = |from: u32, verdict| {
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((from, verdict));
        }
    };
    for (number, only) in listed {
        if *number > next {
            add(next, Verdict::Refuse);
        }
        add(*number, if only.is_empty() { Verdict::Allow } else { Verdict::Look(only) });
        next = number.saturating_add(1);
    }
    add(next, Verdict::Refuse);
    ranges
}

/// Code that leads every number to its verdict.
fn tree(ranges: &[(u32, Verdict<'_>)]) -> Vec<sock_filter> {
    match ranges {
        [] => vec![instruction(ANSWER, REFUSE)],
        [(_, verdict)] => answer(*verdict),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let from = high.first().map_or(0, |(from, _)| *from);
            let below = tree(low);
            let distance = u32::try_from(below.len()).unwrap_or(u32::MAX);
            let mut code = match u8::try_from(distance) {
                Ok(distance) => vec![jump(IF_AT_LEAST, from, distance, 0)],
                Err(_) => vec![jump(IF_AT_LEAST, from, 0, 1), instruction(JUMP, distance)],
            };
            code.extend(below);
            code.extend(tree(high));
            code
        }
    }
}

fn answer(verdict: Verdict<'_>) -> Vec<sock_filter> {
    match verdict {
        Verdict::Allow => vec![instruction(ANSWER, ALLOW)],
        Verdict::Refuse => vec![instruction(ANSWER, REFUSE)],
        Verdict::Look(only) => {
            let mut code: Vec<sock_filter> = only.iter().flat_map(|all| look(all)).collect();
            code.push(instruction(ANSWER, REFUSE));
            code
        }
    }
}

/// Allows when each argument has one of its values; else goes on behind. The arguments compared are of 32 bits.
fn look(all: &[Only]) -> Vec<sock_filter> {
    let mut code = vec![instruction(ANSWER, ALLOW)];
    for only in all.iter().rev() {
        let rest = std::mem::take(&mut code);
        code.push(instruction(LOAD, ARGUMENTS_AT + 8 * u32::from(only.argument)));
        code.push(instruction(AND, only.mask));
        let distance = |instructions: usize| u8::try_from(instructions).unwrap_or(u8::MAX);
        for (at, value) in only.values.iter().enumerate() {
            let left = only.values.len() - 1 - at;
            code.push(jump(
                IF_EQUAL,
                *value,
                distance(left),
                if left == 0 { distance(rest.len()) } else { 0 },
            ));
        }
        code.extend(rest);
    }
    code
}

fn instruction(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Lock;
    use crate::programs;
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };
    use std::collections::BTreeSet;

    /// What the kernel would answer.
    fn verdict(code: &[sock_filter], architecture: u32, number: u32, arguments: [u32; 6]) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let i = &code[at];
            at += 1;
            match i.code {
                LOAD => {
                    value = match i.k {
                        NUMBER_AT => number,
                        ARCHITECTURE_AT => architecture,
                        k if (k - ARGUMENTS_AT).is_multiple_of(8) => {
                            arguments[((k - ARGUMENTS_AT) / 8) as usize]
                        }
                        _ => 0,
                    }
                }
                AND => value &= i.k,
                IF_EQUAL => at += usize::from(if value == i.k { i.jt } else { i.jf }),
                IF_AT_LEAST => at += usize::from(if value >= i.k { i.jt } else { i.jf }),
                JUMP => at += i.k as usize,
                ANSWER => return i.k,
                code => panic!("what is {code:#x}?"),
            }
        }
    }

    /// The same list, compiled by people who do nothing else.
    fn reference(groups: &[&Group]) -> BpfProgram {
        let condition = |only: &Only, value: u32| {
            let operator = SeccompCmpOp::MaskedEq(u64::from(only.mask));
            SeccompCondition::new(only.argument, SeccompCmpArgLen::Dword, operator, u64::from(value)).unwrap()
        };
        // Every choice of one value an argument.
        let rules_of = |all: &[Only]| -> Vec<SeccompRule> {
            let mut choices: Vec<Vec<SeccompCondition>> = vec![Vec::new()];
            for only in all {
                let with =
                    |chosen: &Vec<SeccompCondition>, v| [chosen.as_slice(), &[condition(only, v)]].concat();
                choices =
                    choices.iter().flat_map(|chosen| only.values.iter().map(|v| with(chosen, *v))).collect();
            }
            choices.into_iter().map(|chosen| SeccompRule::new(chosen).unwrap()).collect()
        };
        let rules = listed(groups)
            .into_iter()
            .map(|(number, ways)| (i64::from(number), ways.into_iter().flat_map(rules_of).collect()))
            .collect();
        let target = TargetArch::try_from(std::env::consts::ARCH).unwrap();
        let refuse = SeccompAction::Errno(Errno::EPERM as u32);
        SeccompFilter::new(rules, refuse, SeccompAction::Allow, target).unwrap().try_into().unwrap()
    }

    #[test]
    fn every_filter_answers_as_seccompilers_own_would() {
        for profile in programs::ALL {
            let Lock::Jail(groups) = profile.lock else { continue };
            if groups.is_empty() {
                continue;
            }
            let (ours, theirs) = (program(groups), reference(groups));
            let mut values: BTreeSet<u32> = [0, 1, 2, 7, 10, 16, 262, u32::MAX].into();
            let only = groups.iter().flat_map(|g| g.calls).flat_map(|c| c.only);
            values.extend(only.flat_map(|o| o.values.iter().copied().chain([o.mask])));
            let calls: BTreeSet<u32> = groups
                .iter()
                .flat_map(|g| g.calls)
                .filter(|c| !c.only.is_empty())
                .map(|c| c.number as u32)
                .collect();
            for number in (0..600).chain([1 << 30, (1 << 30) + 1, 1 << 31, u32::MAX]) {
                // Two arguments at a time where arguments are looked at.
                let others: Vec<u32> =
                    if calls.contains(&number) { values.iter().copied().collect() } else { vec![3] };
                for (value, other) in values.iter().flat_map(|v| others.iter().map(move |o| (*v, *o))) {
                    for (one, two) in [(0, 2), (2, 0), (1, 0), (3, 0)] {
                        let mut arguments = [3; 6];
                        (arguments[one], arguments[two]) = (value, other);
                        let answer = |code| verdict(code, ARCHITECTURE, number, arguments);
                        assert_eq!(answer(&ours), answer(&theirs), "{} {number} {arguments:?}", profile.name);
                    }
                }
            }
        }
    }

    #[test]
    fn another_architecture_is_not_listened_to() {
        let Lock::Jail(groups) = programs::QMAIL_CLEAN.lock else { panic!() };
        assert_eq!(verdict(&program(groups), ARCHITECTURE ^ 1, 0, [0; 6]), KILL);
    }

    #[test]
    fn long_lists_jump_far_enough() {
        let listed: BTreeMap<u32, Ways> = (0..2000).map(|n| (3 * n, Vec::new())).collect();
        let code = tree(&ranges(&listed));
        let mut whole = vec![instruction(LOAD, NUMBER_AT)];
        whole.extend(code);
        for number in 0..7000 {
            let wanted = if number % 3 == 0 && number < 6000 { ALLOW } else { REFUSE };
            assert_eq!(verdict(&whole, 0, number, [0; 6]), wanted, "{number}");
        }
    }
}
