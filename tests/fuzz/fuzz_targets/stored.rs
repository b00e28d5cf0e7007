//! What is kept of passwords, the lines that have it, and descriptor 3.
#![cfg_attr(fuzzing, no_main)]

use auth::login::{Login, Proof};
use auth::passwd;
use auth::stored::{self, Bare, Value, Verdict};
use fuzz::fuzz_target;
use qmail::auth::Secret;

fuzz_target!(|bytes: &[u8]| {
    for bare in [Bare::Hash, Bare::Secret] {
        let values = stored::parse(bytes, bare);
        assert!(!values.is_empty());
        assert_eq!(stored::is_usable(bytes, bare), values.iter().any(|value| *value != Value::Nobody));
        for value in &values {
            if let Value::Scram(scram) = value {
                assert!(stored::parse(&scram.write(), bare) == [value.clone()]);
            }
        }
        // Nothing is computed for these, and nobody is let in.
        if values.iter().all(|value| matches!(value, Value::Nobody | Value::Unknown)) {
            let proof = Proof::Password(bytes);
            let verdict = stored::check(Some(bytes), b"{SHA256}", bare, &proof);
            assert!(matches!(verdict, Verdict::Refused | Verdict::Unknown));
        }
    }
    if bytes.starts_with(b"!") || bytes.starts_with(b"*") || bytes.is_empty() || bytes == b"x" {
        assert!(!stored::is_usable(bytes, Bare::Hash));
    }
    for line in bytes.split(|b| *b == b'\n') {
        if let Some(user) = passwd::parse(line) {
            let account = &user.account;
            assert!(!account.name.contains(&b':') && !account.home.contains(&b':'));
            let written = [account.name.as_slice(), &user.stored].join(&b':');
            assert!(line.starts_with(&written) && line.ends_with(&account.home));
            assert!(account.uid.as_raw() != u32::MAX && account.gid.as_raw() != u32::MAX);
        }
    }
    let ends = bytes.iter().filter(|b| **b == 0).count();
    let login = Login::of(Secret(bytes.to_vec()));
    assert_eq!(login.is_some(), ends >= 2);
    if let Some(login) = login {
        assert!(bytes.starts_with(&[login.name(), b"\0"].concat()));
        if let Some(password) = login.password() {
            assert!(bytes.starts_with(&[login.name(), b"\0", password, b"\0"].concat()));
        }
        if let Some(service) = login.service() {
            assert!(!service.is_empty() && !service.contains(&b'/') && !service.contains(&b'.'));
        }
    }
});
