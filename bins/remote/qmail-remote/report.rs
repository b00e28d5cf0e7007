//! report - everything qmail-remote says, in one place
//!
//! Texts are shown to users and parsed by bounce readers.
#![forbid(unsafe_code)]

use nix::errno::Errno;
use qmail::fd;
use qmail::smtp::reply::Reply;
use qmail::trouble::Trouble;
use std::net::IpAddr;

/// A letter and a text of lines, each ended by LF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    letter: u8,
    text: Vec<u8>,
}

impl Report {
    /// One sentence.
    fn line(letter: u8, text: impl Into<Vec<u8>>) -> Report {
        let mut text = text.into();
        text.push(b'\n');
        Report { letter, text }
    }

    /// Adds a sentence for the administrator, who reads it in the log.
    fn because(mut self, why: &[u8]) -> Report {
        self.text.extend_from_slice(why);
        self.text.push(b'\n');
        self
    }

    /// Adds a line to success.
    pub fn noting(self, note: &[u8]) -> Report {
        if self.letter == b'K' && !note.is_empty() { self.because(note) } else { self }
    }

    /// `TEXT.` and what the server said, if it said anything.
    fn said(letter: u8, text: String, reply: &Reply) -> Report {
        let mut report = Report::line(letter, text + ".");
        if !reply.text().is_empty() {
            report.text.extend_from_slice(b"Remote host said: ");
            report.text.extend_from_slice(reply.text());
        }
        report
    }

    /// The letter, the text and a NUL on fd 1.
    pub fn print(&self) -> Result<(), Errno> {
        fd::write_all(fd::OUT, &self.bytes())
    }

    /// As they stand on fd 1.
    pub fn bytes(&self) -> Vec<u8> {
        [&[self.letter], self.text.as_slice(), b"\0"].concat()
    }
}

/// What a refusal by a reply amounts to: never for 5xx, otherwise try again.
fn refusal(reply: &Reply) -> u8 {
    if reply.is_permanent() { b'D' } else { b'Z' }
}

impl Report {
    /// Whether it says "never".
    pub fn is_permanent(&self) -> bool {
        self.letter == b'D'
    }
}

/// A name as it may stand in a report.
fn shown(name: &[u8]) -> Vec<u8> {
    name.iter().map(|b| if (33..=126).contains(b) { *b } else { b'?' }).collect()
}

pub fn wrong_use() -> Report {
    Report::line(b'D', "I (qmail-remote) was invoked improperly. (#5.3.5)")
}

pub fn no_home(why: &Trouble) -> Report {
    Report::line(b'Z', "Unable to switch to home directory. (#4.3.0)").because(&why.text())
}

pub fn no_controls(why: &Trouble) -> Report {
    Report::line(b'Z', "Unable to read control files. (#4.3.0)").because(&why.text())
}

/// What stands in control/smtproutes for this host leads nowhere.
pub fn no_jail(why: &Trouble) -> Report {
    Report::line(b'Z', "Unable to close the jail. (#4.3.0)").because(&why.text())
}

pub fn no_route(value: &[u8]) -> Report {
    no_controls(&Trouble::temporary(
        [b"no usable relay in control/smtproutes: ", shown(value).as_slice()].concat(),
    ))
}

pub fn no_resources() -> Report {
    Report::line(b'Z', "System resources temporarily unavailable. (#4.3.0)")
}

pub fn no_message() -> Report {
    Report::line(b'Z', "Unable to read message. (#4.3.0)")
}

pub fn partial_line() -> Report {
    Report::line(b'D', "SMTP cannot transfer messages with partial final lines. (#5.6.2)")
}

pub fn dns_temporary() -> Report {
    Report::line(b'Z', "Sorry, I couldn't find any host by that name. (#4.1.2)")
}

pub fn no_such_host(host: &[u8]) -> Report {
    Report::line(
        b'D',
        [b"Sorry, I couldn't find any host named ".as_slice(), &shown(host), b". (#5.1.2)"].concat(),
    )
}

pub fn no_address() -> Report {
    Report::line(b'D', "Sorry, I couldn't find a mail exchanger or IP address. (#5.4.4)")
}

/// rfc7505:4.2 (556 5.1.10 when a server says it).
pub fn null_mx(host: &[u8]) -> Report {
    Report::line(
        b'D',
        [b"Sorry, ".as_slice(), &shown(host), b" does not accept mail (null MX). (#5.1.10)"].concat(),
    )
}

pub fn best_is_me() -> Report {
    Report::line(
        b'D',
        "Sorry. Although I'm listed as a best-preference MX or A for that host,\n\
         it isn't in my control/locals file, so I don't treat it as local. (#5.4.6)",
    )
}

pub fn no_connection() -> Report {
    Report::line(b'Z', "Sorry, I wasn't able to establish an SMTP connection. (#4.4.1)")
}

pub fn died(ip: IpAddr, dot_sent: bool) -> Report {
    let duplicate = if dot_sent { "Possible duplicate! " } else { "" };
    Report::line(b'Z', format!("Connected to {ip} but connection died. {duplicate}(#4.4.2)"))
}

/// Whatever a host says instead of a greeting, another try may find it in a better mood.
pub fn greeting_failed(ip: IpAddr, reply: &Reply) -> Report {
    Report::said(b'Z', format!("Connected to {ip} but greeting failed"), reply)
}

pub fn name_rejected(ip: IpAddr, reply: &Reply) -> Report {
    Report::said(b'Z', format!("Connected to {ip} but my name was rejected"), reply)
}

pub fn sender_rejected(ip: IpAddr, reply: &Reply) -> Report {
    Report::said(refusal(reply), format!("Connected to {ip} but sender was rejected"), reply)
}

/// Said without being asked: a server that stops, or one that cannot count.
pub fn out_of_turn(ip: IpAddr, reply: &Reply) -> Report {
    Report::said(b'Z', format!("Connected to {ip} but it spoke out of turn"), reply)
}

/// An address that a line of SMTP cannot carry.
pub fn bad_sender() -> Report {
    Report::line(b'D', "Sorry, the sender's address has a line break in it. (#5.1.7)")
}

pub fn bad_recipient() -> Report {
    Report::line(b'h', "Sorry, that address has a line break in it. (#5.1.3)")
}

pub fn recipient_accepted() -> Report {
    Report { letter: b'r', text: Vec::new() }
}

pub fn recipient_refused(ip: IpAddr, reply: &Reply) -> Report {
    let letter = if reply.is_permanent() { b'h' } else { b's' };
    Report::said(letter, format!("{ip} does not like recipient"), reply)
}

/// No recipient was accepted; for good only if every one was refused for good.
pub fn giving_up(ip: IpAddr, permanent: bool) -> Report {
    Report::line(if permanent { b'D' } else { b'Z' }, format!("Giving up on {ip}."))
}

pub fn data_failed(ip: IpAddr, reply: &Reply) -> Report {
    Report::said(refusal(reply), format!("{ip} failed on DATA command"), reply)
}

/// Said behind the 220 of STARTTLS, by whoever stands between (RFC 3207 section 6).
pub fn injected(ip: IpAddr) -> Report {
    Report::line(b'Z', format!("Connected to {ip} but it spoke between STARTTLS and the handshake. (#4.7.5)"))
}

/// What stands in control/tlsroutes for this host is not understood.
pub fn no_demand(value: &[u8]) -> Report {
    no_controls(&Trouble::temporary(
        [b"not understood in control/tlsroutes: ", shown(value).as_slice()].concat(),
    ))
}

/// Demanded, and nobody here can make it.
pub fn no_tls_here() -> Report {
    Report::line(b'Z', "TLS is demanded for this host, and tlsclient does not run here. (#4.7.4)")
}

pub fn tls_not_offered(ip: IpAddr) -> Report {
    Report::line(b'Z', format!("TLS is demanded for this host, and {ip} does not offer it. (#4.7.4)"))
}

pub fn tls_failed(ip: IpAddr, why: &[u8]) -> Report {
    Report::line(b'Z', format!("TLS with {ip} failed. (#4.7.5)")).because(why)
}

pub fn tls_refused(ip: IpAddr, why: &[u8]) -> Report {
    Report::line(b'Z', format!("{ip} is not proved to be the host that it should be. (#4.7.5)")).because(why)
}

/// rfc7672:2.1 what cannot be had must not be taken for "no".
pub fn dane_unknown(host: &[u8]) -> Report {
    about(host, "is not used while its TLSA records cannot be had. (#4.7.5)")
}

pub fn dane_missing(host: &[u8]) -> Report {
    about(host, "has no TLSA records, which control/tlsroutes demands. (#4.7.5)")
}

pub fn not_in_policy(host: &[u8]) -> Report {
    about(host, "is not one of the hosts that the domain's policy names (MTA-STS). (#4.7.5)")
}

pub fn no_policy_known() -> Report {
    Report::line(b'Z', "Unable to ask mta-sts what this domain demands. (#4.7.5)")
}

/// rfc8689:4.2.1 the message may not go there: a failure for good, so that its sender hears of it now.
pub fn requiretls_not_offered(ip: IpAddr) -> Report {
    Report::line(b'D', format!("The message demands REQUIRETLS, and {ip} does not offer it. (#5.7.30)"))
}

pub fn requiretls_not_named(host: &[u8]) -> Report {
    requiretls(&[b"neither DNSSEC nor MTA-STS says that ", &shown(host), b" is to have it. (#5.7.30)"])
}

/// It may name one the next time.
pub fn requiretls_policy_unknown() -> Report {
    Report::line(
        b'Z',
        "The message demands REQUIRETLS, and the domain's policy (MTA-STS) cannot be had now. (#4.7.5)",
    )
}

pub fn requiretls_without_tls(ip: IpAddr) -> Report {
    requiretls(&[ip.to_string().as_bytes(), b" offers no TLS. (#5.7.10)"])
}

pub fn requiretls_not_proved(ip: IpAddr, why: &[u8]) -> Report {
    requiretls(&[ip.to_string().as_bytes(), b" is not proved to be the host that it should be. (#5.7.10)"])
        .because(why)
}

pub fn requiretls_denied(host: &[u8]) -> Report {
    requiretls(&[b"control/tlsroutes has no TLS for ", &shown(host), b". (#5.7.10)"])
}

fn requiretls(why: &[&[u8]]) -> Report {
    Report::line(b'D', [b"The message demands REQUIRETLS, and ".as_slice(), &why.concat()].concat())
}

fn about(host: &[u8], text: &str) -> Report {
    Report::line(b'Z', [shown(host).as_slice(), b" ", text.as_bytes()].concat())
}

/// What control/smtpauth says of a route's login.
pub fn no_login(name: &[u8], why: &str) -> Report {
    no_controls(&Trouble::temporary(
        [b"login ", shown(name).as_slice(), b" of a route, control/smtpauth: ", why.as_bytes()].concat(),
    ))
}

pub fn auth_not_offered(ip: IpAddr) -> Report {
    Report::line(
        b'Z',
        format!("A login is needed at {ip}, and it offers no mechanism that may be used here. (#4.7.0)"),
    )
}

/// Whatever the server says of it, it is the administrator's to mend, and mail waits.
pub fn auth_failed(ip: IpAddr, mechanism: &str, reply: &Reply) -> Report {
    Report::said(b'Z', format!("{ip} refused our login ({mechanism})"), reply)
}

pub fn auth_broken(ip: IpAddr, mechanism: &str, why: &str) -> Report {
    Report::line(b'Z', format!("Our login at {ip} ({mechanism}) was not completed: {why}. (#4.7.0)"))
}

/// The answer to the final dot decides.
pub fn after_dot(ip: IpAddr, reply: &Reply) -> Report {
    if reply.is_positive() {
        return Report::said(b'K', format!("{ip} accepted message"), reply);
    }
    Report::said(refusal(reply), format!("{ip} failed after I sent the message"), reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use qmail::smtp::reply::Parser;

    fn reply(bytes: &[u8]) -> Reply {
        Parser::new().take(bytes).1.unwrap()
    }

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 9));

    #[test]
    fn only_2xx_after_the_dot_is_success_and_only_5xx_is_failure() {
        assert_eq!(
            after_dot(IP, &reply(b"250 queued\r\n")).bytes(),
            b"K127.0.0.9 accepted message.\nRemote host said: 250 queued\n\0"
        );
        for (said, letter) in [
            (b"299 x\r\n".as_slice(), b'K'),
            (b"354 x\r\n", b'Z'),
            (b"421 x\r\n", b'Z'),
            (b"554 x\r\n", b'D'),
            (b"650 x\r\n", b'Z'),
            (b"x\r\n", b'Z'),
        ] {
            assert_eq!(after_dot(IP, &reply(said)).letter, letter);
        }
    }

    #[test]
    fn a_name_in_a_report_is_printable() {
        assert_eq!(
            no_such_host(b"a b\x80\n").bytes(),
            b"DSorry, I couldn't find any host named a?b??. (#5.1.2)\n\0"
        );
    }

    #[test]
    fn a_server_that_said_nothing_is_not_quoted() {
        let nothing = Parser::new().abandon();
        assert_eq!(
            greeting_failed(IP, &nothing).bytes(),
            b"ZConnected to 127.0.0.9 but greeting failed.\n\0"
        );
    }
}
