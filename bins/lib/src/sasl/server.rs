//! server - the side that asks: one login, from the mechanism's name to what a checker is told
//!
//! The caller sends each `Challenge` in base64 and gives the decoded line back to `answer`; looks up what
//! `Parameters` asks for; has `Check` checked and tells `accepted` of a success. A failed check ends it.
#![forbid(unsafe_code)]

use super::scram::{self, ClientFinal, ClientFirst, Flag, Params};
use super::{Binding, Mechanism, equal, prep};
use crate::auth::{ACCOUNT_MAX, Secret};

/// What a login depends on beside what the client says.
#[derive(Debug, Clone, Default)]
pub struct Setting {
    /// Random text, printable and without a comma, never used before.
    pub unique: Vec<u8>,
    /// The name behind the `@` of a CRAM-MD5 challenge.
    pub host: Vec<u8>,
    /// Of the TLS session.
    pub binding: Binding,
    /// SCRAM-SHA-256-PLUS was among the mechanisms that the client was told.
    pub plus_offered: bool,
    /// Whom the client's certificate is for, if that is as good as a password.
    pub external: Option<Vec<u8>>,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this; the answer goes to `answer`.
    Challenge(Vec<u8>),
    /// Look up what SCRAM needs to know of this name; it goes to `parameters`.
    Parameters(Vec<u8>),
    /// Have this checked; a success goes to `accepted`.
    Check(Fields),
    /// The client is whom this says.
    Accepted(Vec<u8>),
    Refused(Refusal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not what the mechanism says.
    Malformed,
    /// Understood, and not acceptable.
    Unacceptable,
}

/// What a checker is told on its descriptor 3.
#[derive(Debug, PartialEq, Eq)]
pub struct Fields {
    pub name: Vec<u8>,
    /// Password, response or proof.
    pub secret: Secret,
    /// What the response answers; for SCRAM what was signed. Empty behind a password.
    pub challenge: Vec<u8>,
    pub mechanism: Mechanism,
}

impl Fields {
    /// `name NUL secret NUL challenge NUL`, which every checker knows.
    pub fn short(&self) -> Secret {
        self.join(&[])
    }

    /// The same with mechanism, service and the client's address, each behind a NUL. The channel binding of a
    /// -PLUS mechanism has been seen to: a checker has nothing more to do for it.
    pub fn whole(&self, service: &[u8], ip: &[u8]) -> Secret {
        let mechanism = match self.mechanism {
            Mechanism::ScramSha256Plus => Mechanism::ScramSha256,
            other => other,
        };
        self.join(&[mechanism.name().as_bytes(), service, ip])
    }

    /// What a checker must know more than a password or a response to it.
    pub fn needs_whole(&self) -> bool {
        self.mechanism.is_scram()
    }

    fn join(&self, more: &[&[u8]]) -> Secret {
        let fields = [self.name.as_slice(), &self.secret, &self.challenge];
        let all = || fields.iter().chain(more);
        let mut out = Secret(Vec::with_capacity(all().map(|field| field.len() + 1).sum()));
        for field in all() {
            out.0.extend_from_slice(field);
            out.0.push(0);
        }
        out
    }
}

/// Where a login is.
enum State {
    Begun,
    /// LOGIN: its name is asked for, its password.
    Name,
    Password(Vec<u8>),
    /// CRAM-MD5: its response to this.
    Response(Vec<u8>),
    /// SCRAM: the parameters are being looked up; what the client began with.
    Parameters(First),
    /// SCRAM: its proof.
    Proof(First, Vec<u8>, Vec<u8>),
    /// It is being checked.
    Checking(Vec<u8>),
    /// SCRAM: the signature was sent, and an empty answer is awaited.
    Signed(Vec<u8>),
    Over,
}

/// The client's first message of SCRAM, as far as it is needed later.
struct First {
    name: Vec<u8>,
    bare: Vec<u8>,
    nonce: Vec<u8>,
    /// What `c=` must say.
    binding: Vec<u8>,
}

pub struct Server {
    mechanism: Mechanism,
    setting: Setting,
    state: State,
}

impl Server {
    pub fn new(mechanism: Mechanism, setting: Setting) -> Server {
        Server { mechanism, setting, state: State::Begun }
    }

    /// Begins, with the initial response if there was one.
    pub fn start(&mut self, initial: Option<Secret>) -> Step {
        match (self.mechanism, initial) {
            (Mechanism::CramMd5, None) => {
                let challenge =
                    [b"<", self.setting.unique.as_slice(), b"@", &self.setting.host, b">"].concat();
                self.state = State::Response(challenge.clone());
                Step::Challenge(challenge)
            }
            (Mechanism::CramMd5, Some(_)) => self.refuse(Refusal::Malformed), // the server speaks first
            (Mechanism::Login, None) => {
                self.state = State::Name;
                Step::Challenge(b"Username:".to_vec())
            }
            (_, None) => Step::Challenge(Vec::new()),
            (Mechanism::Login, Some(initial)) => {
                self.state = State::Name;
                self.answer(initial)
            }
            (_, Some(initial)) => self.answer(initial),
        }
    }

    /// The client's answer to a challenge.
    pub fn answer(&mut self, answer: Secret) -> Step {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Begun => match self.mechanism {
                Mechanism::Plain => self.plain(&answer),
                Mechanism::External => self.external(&answer),
                Mechanism::ScramSha256 | Mechanism::ScramSha256Plus => self.first(&answer),
                Mechanism::Login | Mechanism::CramMd5 => self.refuse(Refusal::Malformed),
            },
            State::Name => {
                if answer.contains(&0) {
                    return self.refuse(Refusal::Malformed);
                }
                self.state = State::Password(answer.to_vec());
                Step::Challenge(b"Password:".to_vec())
            }
            State::Password(name) => self.check(name, answer, Vec::new()),
            State::Response(challenge) => self.response(&answer, challenge),
            State::Proof(first, nonce, server_first) => self.proof(&first, &nonce, &server_first, &answer),
            State::Signed(name) if answer.is_empty() => Step::Accepted(name),
            _ => self.refuse(Refusal::Malformed),
        }
    }

    /// What was looked up for SCRAM.
    pub fn parameters(&mut self, params: &Params) -> Step {
        let State::Parameters(first) = std::mem::replace(&mut self.state, State::Over) else {
            return self.refuse(Refusal::Malformed);
        };
        let nonce = [first.nonce.as_slice(), &self.setting.unique].concat();
        let message = scram::server_first(&nonce, params);
        self.state = State::Proof(first, nonce, message.clone());
        Step::Challenge(message)
    }

    /// The checker has accepted. What it said of the server's signature, in base64, is for the client of
    /// SCRAM, which does not believe that it is logged in without it.
    pub fn accepted(&mut self, signature: &[u8]) -> Step {
        let State::Checking(name) = std::mem::replace(&mut self.state, State::Over) else {
            return self.refuse(Refusal::Malformed);
        };
        if !self.mechanism.is_scram() {
            return Step::Accepted(name);
        }
        if super::decode(signature).is_none_or(|bytes| bytes.len() != 32) {
            return self.refuse(Refusal::Unacceptable);
        }
        self.state = State::Signed(name);
        Step::Challenge([b"v=", signature].concat())
    }

    fn refuse(&mut self, refusal: Refusal) -> Step {
        self.state = State::Over;
        Step::Refused(refusal)
    }

    /// An empty password is nobody's: some directories take it for a question without a name. Nor is a name that is
    /// longer than an account's: where a checker takes it for a shorter one, nobody could count what it sends.
    fn check(&mut self, name: Vec<u8>, secret: Secret, challenge: Vec<u8>) -> Step {
        // A NUL would be the end of a field, and what is behind it the next one.
        if [name.as_slice(), &secret, &challenge].iter().any(|field| field.contains(&0)) {
            return self.refuse(Refusal::Malformed);
        }
        if name.is_empty() || name.len() > ACCOUNT_MAX || secret.is_empty() {
            return self.refuse(Refusal::Unacceptable);
        }
        self.state = State::Checking(name.clone());
        Step::Check(Fields { name, secret, challenge, mechanism: self.mechanism })
    }

    /// `authzid NUL authcid NUL password` (RFC 4616). Nobody may act for another.
    fn plain(&mut self, message: &[u8]) -> Step {
        let mut fields = message.split(|b| *b == 0);
        let (Some(authzid), Some(name), Some(password), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return self.refuse(Refusal::Malformed);
        };
        if !(authzid.is_empty() || authzid == name) {
            return self.refuse(Refusal::Unacceptable);
        }
        self.check(name.to_vec(), Secret(password.to_vec()), Vec::new())
    }

    /// `NAME SP 32 hexadecimal digits` (RFC 2195); a name may have spaces.
    fn response(&mut self, message: &[u8], challenge: Vec<u8>) -> Step {
        let Some(at) = memchr::memrchr(b' ', message) else { return self.refuse(Refusal::Malformed) };
        let (name, digest) = message.split_at(at);
        let digest = digest.get(1..).unwrap_or_default();
        if digest.len() != 32 || !digest.iter().all(u8::is_ascii_hexdigit) {
            return self.refuse(Refusal::Malformed);
        }
        self.check(name.to_vec(), Secret(digest.to_ascii_lowercase()), challenge)
    }

    /// Whom the certificate is for; an authorization identity must be the same (RFC 4422 appendix A).
    fn external(&mut self, authzid: &[u8]) -> Step {
        match self.setting.external.take() {
            Some(name) if !name.is_empty() && (authzid.is_empty() || authzid == name) => Step::Accepted(name),
            _ => self.refuse(Refusal::Unacceptable),
        }
    }

    fn first(&mut self, message: &[u8]) -> Step {
        let Ok(first) = ClientFirst::parse(message) else { return self.refuse(Refusal::Malformed) };
        let plus = self.mechanism == Mechanism::ScramSha256Plus;
        let data = match &first.flag {
            Flag::Used(name) if plus => self.setting.binding.of(name),
            Flag::None if !plus => Some(b"".as_slice()),
            // rfc5802:6: somebody between us has taken -PLUS from the list.
            Flag::NotOffered if !plus && !self.setting.plus_offered => Some(b"".as_slice()),
            _ => None,
        };
        let Some(data) = data else { return self.refuse(Refusal::Unacceptable) };
        let Ok(name) = prep::prepare(&first.name) else { return self.refuse(Refusal::Malformed) };
        if name.is_empty() || first.authzid.as_ref().is_some_and(|authzid| *authzid != first.name) {
            return self.refuse(Refusal::Unacceptable);
        }
        let binding = [first.header, data].concat();
        let (bare, nonce) = (first.bare.to_vec(), first.nonce.to_vec());
        self.state = State::Parameters(First { name: name.clone(), bare, nonce, binding });
        Step::Parameters(name)
    }

    fn proof(&mut self, first: &First, nonce: &[u8], server_first: &[u8], message: &[u8]) -> Step {
        let Ok(last) = ClientFinal::parse(message) else { return self.refuse(Refusal::Malformed) };
        if !equal(last.nonce, nonce) || !equal(&last.binding, &first.binding) || last.proof.len() != 32 {
            return self.refuse(Refusal::Unacceptable);
        }
        let signed = scram::auth_message(&first.bare, server_first, last.without_proof);
        self.check(first.name.clone(), Secret(super::encode(&last.proof)), signed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sasl::scram::Keys;

    fn secret(text: &[u8]) -> Secret {
        Secret(text.to_vec())
    }

    fn server(mechanism: Mechanism) -> Server {
        let binding = Binding { exporter: Some(b"exported".to_vec()), end_point: None };
        let setting = Setting {
            unique: b"1896.697170952".to_vec(),
            host: b"postoffice.reston.mci.net".to_vec(),
            binding,
            plus_offered: true,
            external: Some(b"joe@example.org".to_vec()),
        };
        Server::new(mechanism, setting)
    }

    fn checked(step: Step) -> Fields {
        match step {
            Step::Check(fields) => fields,
            other => panic!("{other:?}"),
        }
    }

    const UNACCEPTABLE: Step = Step::Refused(Refusal::Unacceptable);
    const MALFORMED: Step = Step::Refused(Refusal::Malformed);

    #[test]
    fn plain_is_one_message_with_or_without_being_asked() {
        let fields = checked(server(Mechanism::Plain).start(Some(secret(b"\0test\0test1234"))));
        assert_eq!(fields.short(), secret(b"test\0test1234\0\0"));
        assert_eq!(fields.whole(b"smtp", b"::1"), secret(b"test\0test1234\0\0PLAIN\0smtp\0::1\0"));
        let mut asked = server(Mechanism::Plain);
        assert_eq!(asked.start(None), Step::Challenge(Vec::new()));
        assert_eq!(checked(asked.answer(secret(b"test\0test\0a b"))).secret, secret(b"a b"));
        assert_eq!(asked.accepted(b""), Step::Accepted(b"test".to_vec()));
        let long = |length| [b"\0", vec![b'j'; length].as_slice(), b"\0secret"].concat();
        assert_eq!(
            checked(server(Mechanism::Plain).start(Some(secret(&long(ACCOUNT_MAX))))).name.len(),
            ACCOUNT_MAX
        );
        assert_eq!(server(Mechanism::Plain).start(Some(secret(&long(ACCOUNT_MAX + 1)))), UNACCEPTABLE);
        for (wrong, step) in [
            (b"".as_slice(), MALFORMED),
            (b"\0test", MALFORMED),
            (b"\0a\0b\0c", MALFORMED),
            (b"root\0test\0x", UNACCEPTABLE),
            (b"\0\0x", UNACCEPTABLE),
            (b"\0test\0", UNACCEPTABLE),
        ] {
            assert_eq!(server(Mechanism::Plain).start(Some(secret(wrong))), step);
        }
    }

    #[test]
    fn login_asks_for_name_and_password() {
        for initial in [false, true] {
            let mut login = server(Mechanism::Login);
            if initial {
                assert_eq!(login.start(Some(secret(b"joe"))), Step::Challenge(b"Password:".to_vec()));
            } else {
                assert_eq!(login.start(None), Step::Challenge(b"Username:".to_vec()));
                assert_eq!(login.answer(secret(b"joe")), Step::Challenge(b"Password:".to_vec()));
            }
            assert_eq!(checked(login.answer(secret(b"pw"))).short(), secret(b"joe\0pw\0\0"));
            assert_eq!(login.accepted(b""), Step::Accepted(b"joe".to_vec()));
            assert_eq!(login.accepted(b""), MALFORMED);
        }
        let mut login = server(Mechanism::Login);
        login.start(None);
        assert_eq!(login.answer(secret(b"a\0b")), MALFORMED);
    }

    // rfc2195:2
    #[test]
    fn cram_hands_response_and_challenge_to_the_checker() {
        let mut cram = server(Mechanism::CramMd5);
        let challenge = b"<1896.697170952@postoffice.reston.mci.net>";
        assert_eq!(cram.start(None), Step::Challenge(challenge.to_vec()));
        let fields = checked(cram.answer(secret(b"tim t b913a602c7eda7a495b4e6e7334d3890")));
        let expected = [b"tim t\0b913a602c7eda7a495b4e6e7334d3890\0".as_slice(), challenge, b"\0"].concat();
        assert_eq!(fields.short(), Secret(expected));
        assert_eq!(server(Mechanism::CramMd5).start(Some(secret(b"x"))), MALFORMED);
        for wrong in [b"tim".as_slice(), b"tim 00", b"tim b913a602c7eda7a495b4e6e7334d389x"] {
            let mut cram = server(Mechanism::CramMd5);
            cram.start(None);
            assert_eq!(cram.answer(secret(wrong)), MALFORMED);
        }
    }

    #[test]
    fn external_is_the_certificate_and_nobody_else() {
        let external = |answer: &[u8]| server(Mechanism::External).start(Some(secret(answer)));
        assert_eq!(external(b""), Step::Accepted(b"joe@example.org".to_vec()));
        assert_eq!(external(b"joe@example.org"), Step::Accepted(b"joe@example.org".to_vec()));
        assert_eq!(external(b"root"), UNACCEPTABLE);
        let mut none = Server::new(Mechanism::External, Setting::default());
        assert_eq!(none.start(None), Step::Challenge(Vec::new()));
        assert_eq!(none.answer(secret(b"")), UNACCEPTABLE);
    }

    const PARAMS: &[u8] = b"4096,W22ZaJ0SNY7soEsUEjb6gQ==";
    const PROOF: &[u8] = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn scram(plus_offered: bool) -> Server {
        let unique = b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_vec();
        Server::new(Mechanism::ScramSha256, Setting { unique, plus_offered, ..Setting::default() })
    }

    // rfc7677:3
    #[test]
    fn scram_looks_up_hands_over_and_shows_the_signature() {
        let mut scram = scram(true);
        let step = scram.start(Some(secret(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")));
        assert_eq!(step, Step::Parameters(b"user".to_vec()));
        let params = Params::parse(PARAMS).unwrap();
        let first = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        assert_eq!(scram.parameters(&params), Step::Challenge(first.to_vec()));
        let fields = checked(scram.answer(secret(PROOF)));
        assert!(fields.needs_whole());
        assert_eq!(fields.secret, secret(b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="));
        let keys = Keys::derive(b"pencil", &params);
        assert!(keys.verify(&super::super::decode(&fields.secret).unwrap(), &fields.challenge));
        let signature = super::super::encode(&keys.signature(&fields.challenge));
        let last = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(scram.accepted(&signature), Step::Challenge(last.to_vec()));
        assert_eq!(scram.answer(secret(b"")), Step::Accepted(b"user".to_vec()));
    }

    #[test]
    fn scram_without_the_signature_is_no_login() {
        let mut scram = scram(false);
        scram.start(Some(secret(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")));
        scram.parameters(&Params::parse(PARAMS).unwrap());
        checked(scram.answer(secret(PROOF)));
        assert_eq!(scram.accepted(b""), UNACCEPTABLE);
    }

    #[test]
    fn scram_refuses_other_nonces_bindings_names_and_downgrades() {
        let first = |server: &mut Server, message: &[u8]| server.start(Some(secret(message)));
        assert_eq!(first(&mut scram(true), b"y,,n=user,r=x"), UNACCEPTABLE);
        assert_eq!(first(&mut scram(false), b"y,,n=user,r=x"), Step::Parameters(b"user".to_vec()));
        assert_eq!(first(&mut scram(true), b"p=tls-exporter,,n=user,r=x"), UNACCEPTABLE);
        assert_eq!(first(&mut scram(true), b"n,a=root,n=user,r=x"), UNACCEPTABLE);
        assert_eq!(first(&mut scram(true), b"n,a=user,n=user,r=x"), Step::Parameters(b"user".to_vec()));
        assert_eq!(first(&mut scram(true), b"n,,n=,r=x"), UNACCEPTABLE);
        assert_eq!(first(&mut scram(true), b"n,,n=\xff,r=x"), MALFORMED);
        for wrong in [
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=".as_slice(),
            b"c=eSws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=AAAA",
        ] {
            let mut scram = scram(true);
            first(&mut scram, b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
            scram.parameters(&Params::parse(PARAMS).unwrap());
            assert_eq!(scram.answer(secret(wrong)), UNACCEPTABLE);
        }
    }

    #[test]
    fn plus_wants_the_binding_of_this_session() {
        for (flag, data, accepted) in [
            (b"p=tls-exporter,,".as_slice(), b"exported".as_slice(), true),
            (b"p=tls-exporter,,", b"other", false),
            (b"p=tls-exporter,,", b"", false),
        ] {
            let mut plus = server(Mechanism::ScramSha256Plus);
            let message = [flag, b"n=user,r=abc"].concat();
            assert_eq!(plus.start(Some(Secret(message))), Step::Parameters(b"user".to_vec()));
            plus.parameters(&Params::parse(PARAMS).unwrap());
            let binding = super::super::encode(&[flag, data].concat());
            let last =
                [b"c=", binding.as_slice(), b",r=abc1896.697170952,p=", &super::super::encode(&[0; 32])]
                    .concat();
            match plus.answer(Secret(last)) {
                Step::Check(fields) => {
                    assert!(accepted);
                    let whole = fields.whole(b"smtp", b"");
                    assert!(whole.ends_with(b"\0SCRAM-SHA-256\0smtp\0\0"));
                }
                step => assert_eq!((step, accepted), (UNACCEPTABLE, false)),
            }
        }
        for wrong in [
            b"n,,n=user,r=abc".as_slice(),
            b"p=tls-unique,,n=user,r=abc",
            b"p=tls-server-end-point,,n=user,r=abc",
        ] {
            assert_eq!(server(Mechanism::ScramSha256Plus).start(Some(secret(wrong))), UNACCEPTABLE);
        }
    }
}
