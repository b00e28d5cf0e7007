//! Every reply: its code, its enhanced status (RFC 3463) and its text, inseparable.
//!
//! The texts are a contract: scripts and logs match them. After EHLO, where ENHANCEDSTATUSCODES is announced,
//! RFC 2034 puts the status in front of the text; before it and after HELO the bytes are qmail's.

use std::borrow::Cow;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    /// Empty where RFC 2034 wants none: greeting, HELO, EHLO, and 354.
    status: Cow<'static, str>,
    text: Cow<'static, [u8]>,
    /// Refusals end in ` (#STATUS)`, which is where qmail has always put it.
    tagged: bool,
}

pub const OK_SENDER: Reply = Reply::plain(250, "2.1.0", "ok");
pub const OK_RECIPIENT: Reply = Reply::plain(250, "2.1.5", "ok");
pub const OK: Reply = Reply::plain(250, "2.0.0", "ok");
pub const FLUSHED: Reply = Reply::plain(250, "2.0.0", "flushed");
pub const GO_AHEAD: Reply = Reply::plain(354, "", "go ahead");
pub const VRFY: Reply = Reply::plain(252, "2.0.0", "not told here; a message would find out");
pub const HELP: Reply = Reply::plain(214, "2.0.0", "see the manual page qmail-smtpd(8)");

pub const UNIMPLEMENTED: Reply = Reply::refusal(502, "5.5.1", "unimplemented");
pub const LINE_TOO_LONG: Reply = Reply::refusal(500, "5.5.2", "command line too long");
pub const MAIL_FIRST: Reply = Reply::refusal(503, "5.5.1", "MAIL first");
pub const RCPT_FIRST: Reply = Reply::refusal(503, "5.5.1", "RCPT first");
pub const BAD_ADDRESS: Reply = Reply::refusal(555, "5.5.4", "syntax error");
pub const BAD_SIZE: Reply = Reply::refusal(501, "5.5.4", "syntax error in SIZE");
pub const BAD_REQUIRETLS: Reply = Reply::refusal(501, "5.5.4", "syntax error in REQUIRETLS");
/// rfc8689:2 The parameter is for sessions under TLS; the status is "encryption needed" (RFC 5248).
pub const REQUIRETLS_WITHOUT_TLS: Reply = Reply::refusal(530, "5.7.10", "REQUIRETLS needs TLS first");
pub const BAD_SENDER: Reply =
    Reply::refusal(553, "5.7.1", "sorry, your envelope sender is in my badmailfrom list");
pub const NOT_MY_DOMAIN: Reply =
    Reply::refusal(553, "5.7.1", "sorry, that domain isn't in my list of allowed rcpthosts");
pub const TOO_MANY_RECIPIENTS: Reply = Reply::refusal(452, "4.5.3", "too many recipients");
pub const TOO_BIG: Reply =
    Reply::refusal(552, "5.3.4", "sorry, that message size exceeds my databytes limit");
pub const TOO_MANY_HOPS: Reply = Reply::refusal(554, "5.4.6", "too many hops, this message is looping");
pub const NO_QUEUE: Reply = Reply::refusal(451, "4.3.0", "qqt failure");

// rfc4954:6
pub const WELCOME: Reply = Reply::plain(235, "2.7.0", "ok, go ahead");
pub const UNWELCOME: Reply = Reply::refusal(535, "5.7.8", "authorization failed");
pub const LOGIN_LATER: Reply = Reply::refusal(454, "4.7.0", "unable to check that now");
pub const LOGIN_FIRST: Reply = Reply::refusal(530, "5.7.0", "authentication required");
pub const LOGIN_NEEDS_TLS: Reply = Reply::refusal(538, "5.7.11", "encryption required for this mechanism");
pub const WEAK_MECHANISM: Reply = Reply::refusal(534, "5.7.9", "mechanism is too weak");
pub const NO_MECHANISM: Reply = Reply::refusal(504, "5.5.4", "no such mechanism");
pub const CANCELLED: Reply = Reply::refusal(501, "5.7.0", "authentication cancelled");
pub const BAD_LOGIN: Reply = Reply::refusal(501, "5.5.4", "syntax error");
pub const BAD_BASE64: Reply = Reply::refusal(501, "5.5.2", "that is not base64");
pub const BAD_ANSWER: Reply = Reply::refusal(501, "5.5.2", "that is not what the mechanism says");
pub const ANSWER_TOO_LONG: Reply = Reply::refusal(500, "5.5.6", "authentication exchange line is too long");
pub const LOGGED_IN: Reply = Reply::refusal(503, "5.5.1", "you are authenticated already");
pub const NOT_NOW: Reply = Reply::refusal(503, "5.5.1", "not during a message");
pub const TOO_MANY_LOGINS: Reply = Reply::refusal(421, "4.7.0", "too many failed logins");

// rfc3207:4
pub const TLS_READY: Reply = Reply::plain(220, "2.0.0", "ready to start TLS");
pub const TLS_FIRST: Reply = Reply::refusal(530, "5.7.0", "must issue a STARTTLS command first");
pub const TLS_ALREADY: Reply = Reply::refusal(503, "5.5.1", "TLS is here already");
pub const NO_ARGUMENT: Reply = Reply::refusal(501, "5.5.4", "no argument here");
pub const NOT_PIPELINED: Reply = Reply::refusal(554, "5.5.0", "nothing may follow STARTTLS before TLS");

// rfc6409:6
pub const NOT_YOUR_ADDRESS: Reply =
    Reply::refusal(553, "5.7.1", "sorry, that sender address is not one of your account");
pub const TOO_MANY_MESSAGES: Reply =
    Reply::refusal(450, "4.7.1", "sorry, your account has sent too much within the hour");

pub const NOBODY_COUNTS: Reply =
    Reply::refusal(451, "4.3.0", "unable to see now how much your account has sent");

pub const TIMEOUT: Reply = Reply::refusal(451, "4.4.2", "timeout");
pub const BARE_LF: Reply = Reply::plain(451, "4.6.0", "See https://cr.yp.to/docs/smtplf.html.");
pub const NO_CONTROLS: Reply = Reply::refusal(421, "4.3.0", "unable to read controls");
pub const NO_ADDRESSES: Reply = Reply::refusal(421, "4.3.0", "unable to figure out my IP addresses");

impl Reply {
    /// The text as it is.
    const fn plain(code: u16, status: &'static str, text: &'static str) -> Reply {
        Reply { code, status: Cow::Borrowed(status), text: Cow::Borrowed(text.as_bytes()), tagged: false }
    }

    /// The text with the status behind it.
    const fn refusal(code: u16, status: &'static str, text: &'static str) -> Reply {
        Reply { code, status: Cow::Borrowed(status), text: Cow::Borrowed(text.as_bytes()), tagged: true }
    }

    /// A text made on the spot; an empty status is never shown.
    pub fn made(code: u16, status: &'static str, text: impl Into<Vec<u8>>) -> Reply {
        Reply { code, status: Cow::Borrowed(status), text: Cow::Owned(text.into()), tagged: false }
    }

    /// What qmail-queue, or a filter in its place, said. Its text may hold a status of its own, and any byte:
    /// a line end in it must not become a reply of its own.
    pub fn of_queue(code: u16, default_status: &'static str, text: &[u8]) -> Reply {
        let kept = text.iter().rposition(|b| !b.is_ascii_whitespace()).map_or(0, |at| at + 1);
        let text: Vec<u8> =
            text.iter().take(kept).map(|b| if matches!(b, 32..=126) { *b } else { b'?' }).collect();
        let status = status_in(&text).filter(|status| status.get(..1) == default_status.get(..1));
        Reply {
            code,
            status: status.map_or(Cow::Borrowed(default_status), Cow::Owned),
            text: Cow::Owned(text),
            tagged: false,
        }
    }

    /// The line for the wire; `extended` puts the status in front.
    pub fn line(&self, extended: bool) -> Vec<u8> {
        let mut line = format!("{} ", self.code).into_bytes();
        if extended && !self.status.is_empty() {
            line.extend_from_slice(self.status.as_bytes());
            line.push(b' ');
        }
        line.extend_from_slice(&self.text);
        if self.tagged {
            line.extend_from_slice(format!(" (#{})", self.status).as_bytes());
        }
        line.extend_from_slice(b"\r\n");
        line
    }
}

/// The last `(#d.d.d)` of a text.
fn status_in(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let (status, _) = text.rsplit_once("(#")?.1.split_once(')')?;
    let parts: Vec<&str> = status.split('.').collect();
    let number = |part: &&str| (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    (parts.len() == 3 && parts.iter().all(number)).then(|| status.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_helo_the_bytes_are_those_of_qmail() {
        assert_eq!(OK_SENDER.line(false), b"250 ok\r\n");
        assert_eq!(MAIL_FIRST.line(false), b"503 MAIL first (#5.5.1)\r\n");
        assert_eq!(BARE_LF.line(false), b"451 See https://cr.yp.to/docs/smtplf.html.\r\n");
    }

    #[test]
    fn after_ehlo_the_status_stands_in_front() {
        assert_eq!(OK_SENDER.line(true), b"250 2.1.0 ok\r\n");
        assert_eq!(MAIL_FIRST.line(true), b"503 5.5.1 MAIL first (#5.5.1)\r\n");
        assert_eq!(GO_AHEAD.line(true), b"354 go ahead\r\n");
    }

    #[test]
    fn a_queue_text_brings_its_own_status_if_the_class_fits() {
        let line = |code, status, text: &[u8]| Reply::of_queue(code, status, text).line(true);
        assert_eq!(line(554, "5.3.0", b"no (#5.7.1)"), b"554 5.7.1 no (#5.7.1)\r\n");
        assert_eq!(line(451, "4.3.0", b"no (#5.7.1)"), b"451 4.3.0 no (#5.7.1)\r\n");
        assert_eq!(line(451, "4.3.0", b"later (#4.7)"), b"451 4.3.0 later (#4.7)\r\n");
        assert_eq!(line(451, "4.3.0", b"later"), b"451 4.3.0 later\r\n");
    }

    #[test]
    fn a_queue_text_cannot_make_a_second_reply() {
        assert_eq!(Reply::of_queue(554, "5.3.0", b"a\r\n250 ok\xff\n").line(false), b"554 a??250 ok?\r\n");
        assert_eq!(Reply::of_queue(554, "5.3.0", b" \n").line(false), b"554 \r\n");
    }
}
