//! client - the side that answers: one login at somebody else's server
//!
//! The caller sends `initial` with the mechanism's name where the protocol allows it, else as the answer to an
//! empty challenge; gives each challenge, base64 taken off, to `answer` and sends what that says; and asks
//! `succeeded` when the server says that all is well. A SCRAM server that has not shown that it knows the
//! password is not believed.
#![forbid(unsafe_code)]

use super::digest::cram_md5;
use super::scram::{self, ServerFirst, prove};
use super::{Binding, Mechanism, equal, prep};
use crate::auth::Secret;

/// Why a login does not go on. Nothing here is the server's word on the password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Name or password hold what this mechanism cannot send (a NUL, or what `prep` refuses).
    Unprepared,
    /// The server did not say what the mechanism says.
    Malformed,
    /// The server does not know the password itself: it is another one, or somebody stands between.
    Impostor,
}

impl Failure {
    pub fn text(self) -> &'static str {
        match self {
            Failure::Unprepared => "name or password hold characters that this mechanism cannot send",
            Failure::Malformed => "the server does not keep to the mechanism",
            Failure::Impostor => "the server has not shown that it knows the password",
        }
    }
}

/// The best mechanism of those offered. One that tells the password only if nobody else can listen;
/// -PLUS only with data for it.
pub fn choose<'a>(
    offered: impl IntoIterator<Item = &'a [u8]>,
    private: bool,
    binding: &Binding,
) -> Option<Mechanism> {
    offered
        .into_iter()
        .filter_map(Mechanism::of)
        .filter(|mechanism| match mechanism {
            Mechanism::External => false,
            Mechanism::ScramSha256Plus => binding.best().is_some(),
            other => private || !other.tells_password(),
        })
        .max()
}

enum State {
    Begun,
    /// LOGIN: the name was sent.
    Named,
    /// SCRAM: sent, without the header.
    First(Vec<u8>),
    /// SCRAM: the signature that must come.
    Proved([u8; 32]),
    /// All has been said.
    Done,
    /// Something was wrong: nothing makes it right again.
    Failed,
}

pub struct Client {
    mechanism: Mechanism,
    name: Vec<u8>,
    password: Secret,
    /// Random text, printable and without a comma, never used before.
    nonce: Vec<u8>,
    /// SCRAM: what is in front of the first message, and the data behind it in the last.
    header: Vec<u8>,
    data: Vec<u8>,
    state: State,
}

impl Client {
    /// `plus_offered`: SCRAM-SHA-256-PLUS was among the server's mechanisms.
    pub fn new(
        mechanism: Mechanism,
        name: &[u8],
        password: Secret,
        nonce: Vec<u8>,
        binding: &Binding,
        plus_offered: bool,
    ) -> Result<Client, Failure> {
        if name.contains(&0) || password.contains(&0) || mechanism == Mechanism::External {
            return Err(Failure::Unprepared);
        }
        let (mut name, mut password) = (name.to_vec(), password);
        let (mut header, mut data) = (b"n,,".to_vec(), Vec::new());
        if mechanism.is_scram() {
            name = prep::prepare(&name).map_err(|_| Failure::Unprepared)?;
            password = Secret(prep::prepare(&password).map_err(|_| Failure::Unprepared)?);
            match (mechanism, binding.best()) {
                (Mechanism::ScramSha256Plus, Some((name, bytes))) => {
                    header = format!("p={name},,").into_bytes();
                    data = bytes.to_vec();
                }
                (Mechanism::ScramSha256Plus, None) => return Err(Failure::Unprepared),
                // rfc5802:6: the server learns if somebody has taken -PLUS from its list.
                (_, Some(_)) if !plus_offered => header = b"y,,".to_vec(),
                _ => {}
            }
        }
        Ok(Client { mechanism, name, password, nonce, header, data, state: State::Begun })
    }

    /// What goes with the mechanism's name; None where the server speaks first.
    pub fn initial(&mut self) -> Option<Secret> {
        match self.mechanism {
            Mechanism::Plain => {
                self.state = State::Done;
                Some(self.plain())
            }
            Mechanism::ScramSha256 | Mechanism::ScramSha256Plus => {
                let bare = [b"n=", scram::escape(&self.name).as_slice(), b",r=", &self.nonce].concat();
                let message = [self.header.as_slice(), &bare].concat();
                self.state = State::First(bare);
                Some(Secret(message))
            }
            Mechanism::Login | Mechanism::CramMd5 | Mechanism::External => None,
        }
    }

    /// The answer to a challenge.
    pub fn answer(&mut self, challenge: &[u8]) -> Result<Secret, Failure> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Begun => match self.mechanism {
                Mechanism::Login => {
                    self.state = State::Named;
                    Ok(Secret(self.name.clone()))
                }
                Mechanism::CramMd5 => {
                    let response = cram_md5(&self.password, challenge);
                    self.state = State::Done;
                    Ok(Secret([self.name.as_slice(), &response].join(&b' ')))
                }
                // Asked for what could have come with the name.
                _ if challenge.is_empty() => self.initial().ok_or(Failure::Malformed),
                _ => Err(Failure::Malformed),
            },
            State::Named => {
                self.state = State::Done;
                Ok(std::mem::take(&mut self.password))
            }
            State::First(bare) => self.prove(&bare, challenge),
            State::Proved(expected) => {
                self.verify(&expected, challenge)?;
                self.state = State::Done;
                Ok(Secret::default())
            }
            State::Done | State::Failed => Err(Failure::Malformed),
        }
    }

    /// The server has said that the login succeeded, perhaps with the last message beside it.
    pub fn succeeded(&mut self, last: Option<&[u8]>) -> Result<(), Failure> {
        match (std::mem::replace(&mut self.state, State::Failed), last) {
            (State::Done, _) => Ok(()),
            (State::Proved(expected), Some(message)) => self.verify(&expected, message),
            _ => Err(Failure::Impostor),
        }
    }

    fn plain(&self) -> Secret {
        let mut out = Secret(Vec::with_capacity(self.name.len() + self.password.len() + 2));
        for part in [b"\0".as_slice(), &self.name, b"\0", &self.password] {
            out.0.extend_from_slice(part);
        }
        out
    }

    fn prove(&mut self, bare: &[u8], challenge: &[u8]) -> Result<Secret, Failure> {
        let first = ServerFirst::parse(challenge).map_err(|_| Failure::Malformed)?;
        // Ours with something behind it: else it is an old exchange played again.
        if !first.nonce.starts_with(&self.nonce) || first.nonce.len() == self.nonce.len() {
            return Err(Failure::Impostor);
        }
        let binding = super::encode(&[self.header.as_slice(), &self.data].concat());
        let without_proof = [b"c=", binding.as_slice(), b",r=", first.nonce].concat();
        let signed = scram::auth_message(bare, challenge, &without_proof);
        let (proof, expected) = prove(&self.password, &first.params, &signed);
        self.password = Secret::default();
        self.state = State::Proved(expected);
        Ok(Secret([without_proof.as_slice(), b",p=", &super::encode(&proof)].concat()))
    }

    fn verify(&self, expected: &[u8; 32], message: &[u8]) -> Result<(), Failure> {
        let signature = scram::server_final(message).map_err(|_| Failure::Impostor)?;
        if equal(&signature, expected) { Ok(()) } else { Err(Failure::Impostor) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::server::{Refusal, Server, Setting, Step};
    use super::*;
    use crate::sasl::scram::{Keys, Params};

    fn client(mechanism: Mechanism, name: &[u8], password: &[u8]) -> Client {
        let nonce = b"rOprNGfwEbeRWgbNEkqO".to_vec();
        Client::new(mechanism, name, Secret(password.to_vec()), nonce, &Binding::default(), false).unwrap()
    }

    #[test]
    fn the_strongest_is_chosen_and_passwords_are_told_in_private_only() {
        let offered = || b"LOGIN PLAIN CRAM-MD5 SCRAM-SHA-1 XOAUTH2 EXTERNAL".split(|b| *b == b' ');
        let none = Binding::default();
        assert_eq!(choose(offered(), true, &none), Some(Mechanism::CramMd5));
        assert_eq!(choose([b"PLAIN".as_slice(), b"LOGIN"], true, &none), Some(Mechanism::Plain));
        assert_eq!(choose([b"PLAIN".as_slice(), b"LOGIN"], false, &none), None);
        let both = || [b"SCRAM-SHA-256".as_slice(), b"SCRAM-SHA-256-PLUS"];
        assert_eq!(choose(both(), false, &none), Some(Mechanism::ScramSha256));
        let binding = Binding { exporter: None, end_point: Some(vec![1]) };
        assert_eq!(choose(both(), false, &binding), Some(Mechanism::ScramSha256Plus));
    }

    #[test]
    fn plain_login_and_cram_as_in_the_rfcs() {
        assert_eq!(client(Mechanism::Plain, b"test", b"test1234").initial().unwrap().0, b"\0test\0test1234");
        let mut asked = client(Mechanism::Plain, b"test", b"test1234");
        assert_eq!(asked.answer(b"").unwrap().0, b"\0test\0test1234");
        assert_eq!(asked.succeeded(None), Ok(()));
        assert_eq!(asked.answer(b""), Err(Failure::Malformed));
        let mut login = client(Mechanism::Login, b"joe", b"pw");
        assert_eq!(login.initial(), None);
        assert_eq!(login.answer(b"Username:").unwrap().0, b"joe");
        assert_eq!(login.answer(b"Password:").unwrap().0, b"pw");
        assert_eq!(login.succeeded(None), Ok(()));
        let mut cram = client(Mechanism::CramMd5, b"tim", b"tanstaaftanstaaf");
        let response = cram.answer(b"<1896.697170952@postoffice.reston.mci.net>").unwrap();
        assert_eq!(response.0, b"tim b913a602c7eda7a495b4e6e7334d3890");
    }

    // rfc7677:3
    #[test]
    fn scram_as_in_the_rfc() {
        let first = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let mut scram = client(Mechanism::ScramSha256, b"user", b"pencil");
        assert_eq!(scram.initial().unwrap().0, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        assert_eq!(
            scram.answer(first).unwrap().0,
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        let last = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(scram.answer(last).unwrap().0, b"");
        assert_eq!(scram.succeeded(None), Ok(()));
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_not_believed() {
        let first = b"r=rOprNGfwEbeRWgbNEkqO%hv,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let begun = || {
            let mut scram = client(Mechanism::ScramSha256, b"user", b"pencil");
            scram.initial();
            scram
        };
        assert_eq!(begun().succeeded(None), Err(Failure::Impostor));
        let mut scram = begun();
        scram.answer(first).unwrap();
        assert_eq!(scram.answer(b"v=AAAA"), Err(Failure::Impostor));
        assert_eq!(scram.succeeded(None), Err(Failure::Impostor));
        let mut scram = begun();
        scram.answer(first).unwrap();
        assert_eq!(scram.succeeded(None), Err(Failure::Impostor));
        assert_eq!(begun().answer(b"r=other,s=AAAA,i=4096"), Err(Failure::Impostor));
        assert_eq!(begun().answer(b"r=rOprNGfwEbeRWgbNEkqO,s=AAAA,i=4096"), Err(Failure::Impostor));
        assert_eq!(begun().answer(b"r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=4000000000"), Err(Failure::Malformed));
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        let new = |mechanism, name: &[u8], password: &[u8]| {
            let password = Secret(password.to_vec());
            Client::new(mechanism, name, password, b"n".to_vec(), &Binding::default(), false).err()
        };
        assert_eq!(new(Mechanism::Plain, b"a\0b", b"x"), Some(Failure::Unprepared));
        assert_eq!(new(Mechanism::Login, b"a", b"\0"), Some(Failure::Unprepared));
        assert_eq!(new(Mechanism::ScramSha256, b"a", b"\xff"), Some(Failure::Unprepared));
        assert_eq!(new(Mechanism::ScramSha256Plus, b"a", b"x"), Some(Failure::Unprepared));
        assert_eq!(new(Mechanism::Plain, b"a", b"\xff"), None);
    }

    /// Client and server with one another, over every mechanism.
    #[test]
    fn the_two_sides_understand_each_other() {
        let binding = Binding { exporter: Some(vec![7; 32]), end_point: Some(vec![8; 32]) };
        for mechanism in [
            Mechanism::Plain,
            Mechanism::Login,
            Mechanism::CramMd5,
            Mechanism::ScramSha256,
            Mechanism::ScramSha256Plus,
        ] {
            for (password, right) in [(b"pencil".as_slice(), true), (b"pen", false)] {
                for initial in [true, false] {
                    let accepted = converse(mechanism, password, initial, &binding);
                    assert_eq!(accepted, right, "{mechanism:?} {initial}");
                }
            }
        }
    }

    fn converse(mechanism: Mechanism, password: &[u8], initial: bool, binding: &Binding) -> bool {
        let params = Params { count: 4096, salt: b"salt".to_vec() };
        let setting = Setting {
            unique: b"3rfcNHYJY1ZVvWVs7j".to_vec(),
            host: b"host".to_vec(),
            binding: binding.clone(),
            plus_offered: true,
            external: None,
        };
        let mut server = Server::new(mechanism, setting);
        let nonce = b"fyko+d2lbbFgONRv9qkxdawL".to_vec();
        let mut client =
            Client::new(mechanism, b"us,er", Secret(password.to_vec()), nonce, binding, true).unwrap();
        let first = if initial { client.initial() } else { None };
        let mut step = server.start(first);
        loop {
            step = match step {
                Step::Challenge(challenge) => server.answer(client.answer(&challenge).unwrap()),
                Step::Parameters(name) => {
                    assert_eq!(name, b"us,er");
                    server.parameters(&params)
                }
                Step::Check(fields) => {
                    let keys = Keys::derive(b"pencil", &params);
                    let (right, signature) = match mechanism {
                        Mechanism::CramMd5 => {
                            (*fields.secret == *cram_md5(b"pencil", &fields.challenge), vec![])
                        }
                        _ if mechanism.is_scram() => (
                            keys.verify(&super::super::decode(&fields.secret).unwrap(), &fields.challenge),
                            super::super::encode(&keys.signature(&fields.challenge)),
                        ),
                        _ => (*fields.secret == *b"pencil", vec![]),
                    };
                    if !right {
                        return false;
                    }
                    server.accepted(&signature)
                }
                Step::Accepted(name) => {
                    assert_eq!(name, b"us,er");
                    assert_eq!(client.succeeded(None), Ok(()));
                    return true;
                }
                Step::Refused(Refusal::Malformed | Refusal::Unacceptable) => panic!("refused"),
            }
        }
    }
}
