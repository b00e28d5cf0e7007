//! What others write about TLS for mail: MTA-STS records, policies, kept files, answers of web servers and of mta-sts, verdicts
//! of tlsclient, lines of tlsroutes. What comes out keeps its promises, and written again it is the same.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use remote::dane::Dane;
use remote::demand::{Demand, Host, Pass, Rule};
use remote::http;
use remote::sts::{Answer, Kept, MAX_AGE_MAX, MX_MAX, Mode, POLICY_MAX, Policy, id, is_domain};
use remote::tls::Verdict;

fn check(policy: &Policy) {
    assert!(policy.max_age <= MAX_AGE_MAX && policy.mx.len() <= MX_MAX);
    assert!(policy.mode == Mode::None || !policy.mx.is_empty());
    for mx in &policy.mx {
        let bare = mx.strip_prefix(b"*.").unwrap_or(mx);
        assert!(is_domain(bare) && mx.iter().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase()));
        // A pattern with a star is for one label more, and for nothing else.
        if mx.starts_with(b"*.") {
            assert!(policy.names(&[b"a.", bare].concat()));
        } else {
            assert!(policy.names(mx));
        }
        assert!(!policy.names(b"") || policy.mx.iter().any(|m| m.is_empty()));
    }
    let kept = Kept { policy: Some((policy.clone(), b"1".to_vec(), 7)), failed: Some((b"2".to_vec(), 9)) };
    assert_eq!(Kept::parse(&kept.bytes()), Some(kept.clone()));
    let answer = Answer::of(kept.valid(7));
    let again = Answer::parse(&answer.bytes()).map(|a| a.bytes());
    assert_eq!(again, Some(answer.bytes()));
}

fuzz_target!(|bytes: &[u8]| {
    if let Some(policy) = Policy::parse(bytes) {
        check(&policy);
    }
    if let Some(kept) = Kept::parse(bytes) {
        assert_eq!(Kept::parse(&kept.bytes()), Some(kept.clone()));
        if let Some((policy, _, at)) = &kept.policy {
            check(policy);
            assert!(
                kept.valid(at.saturating_add(policy.max_age)).is_none()
                    || *at == u64::MAX
                    || policy.max_age == 0
            );
        }
    }
    if let Some(found) = id(&[bytes.to_vec()]) {
        assert!(found.len() <= 32 && found.iter().all(u8::is_ascii_alphanumeric));
    }
    if is_domain(bytes) {
        assert!(!bytes.contains(&b'/') && !bytes.starts_with(b".") && bytes.len() <= 253);
    }
    if let Some(answer) = Answer::parse(bytes) {
        assert_eq!(Answer::parse(&answer.bytes()), Some(answer));
    }
    match (http::body(bytes, false), http::body(bytes, true)) {
        // What is whole does not become more by the end of the connection.
        (Ok(Some(body)), then) => {
            assert!(body.len() <= POLICY_MAX);
            assert_eq!(then, Ok(Some(body)));
        }
        (Ok(None), then) => assert_ne!(then, Ok(None)),
        (Err(why), then) => assert_eq!(then, Err(why)),
    }
    match Verdict::parse(bytes) {
        Some(Verdict::Good { facts, .. }) => {
            for text in [&facts.protocol, &facts.cipher] {
                assert!(text.iter().all(|b| (32..127).contains(b)));
            }
        }
        Some(Verdict::Failed(why) | Verdict::Refused(why)) => {
            assert!(why.iter().all(|b| (32..127).contains(b)))
        }
        None => {}
    }
    if let Some(rule) = Rule::parse(bytes) {
        let host = Host {
            name: b"mx.test",
            domain: b"test",
            proved: false,
            dane: Dane::Nothing,
            sts: &Answer::Nothing,
        };
        if let Ok(Some(demand)) = Demand::of(&rule, Pass::Published, host) {
            let packet = demand.bytes();
            // Nothing in a value begins another one.
            let values = packet.strip_suffix(b"\0").map(|p| p.split(|b| *b == 0).count());
            let names = usize::from(demand.names.len() > 1);
            assert_eq!(values, Some(3 + names + demand.tlsa.len() + usize::from(demand.cert.is_some())));
        }
    }
});
