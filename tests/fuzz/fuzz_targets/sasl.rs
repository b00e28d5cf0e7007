//! SASL, both sides: whatever the other side says, a checker's fields cannot be shifted, nobody is accepted without a check
//! or a certificate, a server without the password is not believed, and what is prepared is prepared for good.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::auth::Secret;
use qmail::sasl::client::{Client, choose};
use qmail::sasl::prep::prepare;
use qmail::sasl::scram::{ClientFinal, ClientFirst, Params, ServerFirst, escape, server_final, server_first};
use qmail::sasl::server::{Server, Setting, Step};
use qmail::sasl::{Binding, MECHANISMS, Mechanism, decode, encode};

/// The first byte of an input says which mechanism, and what is known of the session.
fn setting(first: u8) -> (Mechanism, Setting) {
    let mechanism = MECHANISMS[usize::from(first) % MECHANISMS.len()];
    let binding = Binding { exporter: (first & 64 != 0).then(|| vec![7; 32]), end_point: None };
    let external = (first & 32 != 0).then(|| b"joe@example.org".to_vec());
    let setting = Setting {
        unique: b"ours".to_vec(),
        host: b"host".to_vec(),
        binding,
        plus_offered: first & 64 != 0,
        external,
    };
    (mechanism, setting)
}

fuzz_target!(|bytes: &[u8]| {
    if let Some(decoded) = decode(bytes) {
        assert_eq!(encode(&decoded), bytes);
    }
    if let Ok(prepared) = prepare(bytes) {
        assert!(prepared.len() <= bytes.len() && !prepared.contains(&0));
        assert_eq!(prepare(&prepared), Ok(prepared));
    }
    if let Ok(first) = ClientFirst::parse(bytes) {
        assert_eq!([first.header, first.bare].concat(), bytes);
        let escaped = [b"n,,n=", escape(&first.name).as_slice(), b",r=x"].concat();
        assert_eq!(ClientFirst::parse(&escaped).map(|again| again.name), Ok(first.name));
    }
    if let Ok(last) = ClientFinal::parse(bytes) {
        assert!(bytes.starts_with(last.without_proof));
    }
    if let Ok(first) = ServerFirst::parse(bytes) {
        let written = server_first(first.nonce, &first.params);
        assert_eq!(ServerFirst::parse(&written), Ok(first));
    }
    if let Some(params) = Params::parse(bytes) {
        assert_eq!(Params::parse(&params.text()), Some(params));
    }
    let _ = server_final(bytes);
    let words = bytes.split(|b| *b == b' ');
    assert!(!choose(words, false, &Binding::default()).is_some_and(Mechanism::tells_password));

    let Some((first, rest)) = bytes.split_first() else { return };
    serve(*first, rest);
    visit(*first, rest);
});

/// The lines are a client's.
fn serve(first: u8, rest: &[u8]) {
    let (mechanism, setting) = setting(first);
    let may_be_unchecked = mechanism == Mechanism::External && setting.external.is_some();
    let mut server = Server::new(mechanism, setting);
    let mut lines = rest.split(|b| *b == b'\n').map(|line| Secret(line.to_vec()));
    let initial = if first & 128 != 0 { lines.next() } else { None };
    let mut step = server.start(initial);
    let mut checked = None;
    loop {
        step = match step {
            Step::Challenge(_) => match lines.next() {
                Some(line) => server.answer(line),
                None => return,
            },
            Step::Parameters(name) => {
                assert!(!name.is_empty() && !name.contains(&0));
                server.parameters(&Params::invented(b"secret", &name))
            }
            Step::Check(fields) => {
                assert!(checked.is_none() && !fields.name.is_empty() && !fields.secret.is_empty());
                let count = |secret: &Secret| secret.iter().filter(|b| **b == 0).count();
                assert_eq!((count(&fields.short()), count(&fields.whole(b"smtp", b"ip"))), (3, 6));
                checked = Some(fields.name.clone());
                server.accepted(&encode(&[9; 32]))
            }
            Step::Accepted(name) => {
                assert!(checked.as_ref() == Some(&name) || may_be_unchecked && name == b"joe@example.org");
                return;
            }
            Step::Refused(_) => {
                // Nothing brings it back.
                assert!(matches!(server.answer(Secret::default()), Step::Refused(_)));
                assert!(matches!(server.accepted(b""), Step::Refused(_)));
                return;
            }
        };
    }
}

/// The lines are a server's, which cannot know the password.
fn visit(first: u8, rest: &[u8]) {
    let (mechanism, setting) = setting(first);
    let nonce = b"ours".to_vec();
    let password = Secret(b"pencil".to_vec());
    let Ok(mut client) = Client::new(mechanism, b"joe", password, nonce, &setting.binding, false) else {
        return;
    };
    if first & 128 != 0 {
        let _ = client.initial();
    }
    for line in rest.split(|b| *b == b'\n').take(3) {
        match client.answer(line) {
            Ok(answer) => assert!(!mechanism.is_scram() || !answer.windows(6).any(|part| part == b"pencil")),
            Err(_) => break,
        }
    }
    // Nobody finds the signature by chance.
    assert!(!mechanism.is_scram() || client.succeeded(Some(rest)).is_err());
}
