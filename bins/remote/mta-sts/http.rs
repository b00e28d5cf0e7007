//! http - one answer of a web server, read as far as RFC 8461 needs it
//!
//! Pure: bytes in, the body out. `httparse` reads head and chunk sizes.
#![forbid(unsafe_code)]

use crate::sts::POLICY_MAX;

/// Status line and fields together.
pub const HEAD_MAX: usize = 16 * 1024;

/// More fields than any honest server sends.
const FIELDS_MAX: usize = 64;

/// All of an answer: the head, the policy, and what chunks add to it.
pub const ANSWER_MAX: usize = HEAD_MAX + 2 * POLICY_MAX;

/// Why an answer is of no use; words for a person.
pub type Why = &'static str;

/// How the end of a body is known.
enum Length {
    Bytes(usize),
    Chunks,
    /// By the end of the connection.
    End,
}

/// The body, once it is whole; None while more must be read. `ended` says that nothing more will come.
pub fn body(bytes: &[u8], ended: bool) -> Result<Option<Vec<u8>>, Why> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let start = match head.parse(bytes) {
        Ok(httparse::Status::Complete(start)) if start <= HEAD_MAX => start,
        Ok(httparse::Status::Partial) if bytes.len() <= HEAD_MAX && !ended => return Ok(None),
        _ => return Err("no answer of HTTP"),
    };
    match head.code {
        Some(200) => {}
        // rfc8461:3.3 a redirect must not be followed.
        Some(300..=399) => return Err("redirected"),
        _ => return Err("no policy there (not 200)"),
    }
    let field = |name: &str| {
        let mut all = head.headers.iter().filter(|f| f.name.eq_ignore_ascii_case(name)).map(|f| f.value);
        (all.next(), all.next())
    };
    let kind = field("content-type").0.unwrap_or_default();
    let kind = kind.split(|b| matches!(b, b';' | b' ' | b'\t')).next().unwrap_or_default();
    if !kind.eq_ignore_ascii_case(b"text/plain") {
        return Err("not of type text/plain");
    }
    let length = match (field("transfer-encoding"), field("content-length")) {
        ((Some(coding), None), _) if coding.eq_ignore_ascii_case(b"chunked") => Length::Chunks,
        ((Some(_), _), _) | ((None, _), (_, Some(_))) => return Err("length not understood"),
        (_, (Some(length), _)) => {
            let length = qmail::decimal::strict(length).and_then(|n| usize::try_from(n).ok());
            Length::Bytes(length.ok_or("length not understood")?)
        }
        _ => Length::End,
    };
    let rest = bytes.get(start..).unwrap_or_default();
    let whole = match length {
        Length::Bytes(length) if length > POLICY_MAX => return Err("too long"),
        Length::Bytes(length) => rest.get(..length).map(<[u8]>::to_vec),
        Length::Chunks => chunks(rest)?,
        Length::End => ended.then(|| rest.to_vec()),
    };
    match whole {
        Some(body) if body.len() > POLICY_MAX => Err("too long"),
        Some(body) => Ok(Some(body)),
        None if ended => Err("cut off"),
        None if bytes.len() > ANSWER_MAX => Err("too long"),
        None => Ok(None),
    }
}

/// rfc9112:7.1 None while the last chunk is not there.
fn chunks(mut rest: &[u8]) -> Result<Option<Vec<u8>>, Why> {
    let mut body = Vec::new();
    loop {
        let (start, length) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err("chunks not understood"),
        };
        if length == 0 {
            return Ok(Some(body));
        }
        let length = usize::try_from(length).ok().filter(|n| *n <= POLICY_MAX).ok_or("too long")?;
        let Some((chunk, more)) = rest.get(start..).and_then(|r| r.split_at_checked(length)) else {
            return Ok(None);
        };
        body.extend_from_slice(chunk);
        if body.len() > POLICY_MAX {
            return Err("too long");
        }
        rest = match more {
            [] | [b'\r'] => return Ok(None),
            [b'\r', b'\n', more @ ..] => more,
            _ => return Err("chunks not understood"),
        };
    }
}

/// What is asked for (RFC 8461 section 3.3). No cache may answer.
pub fn request(host: &[u8]) -> Vec<u8> {
    [
        b"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: ".as_slice(),
        host,
        b"\r\nUser-Agent: qmail-rs\r\nAccept: text/plain\r\nCache-Control: no-cache\r\nConnection: close\r\n\r\n",
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n";

    fn ask(fields: &str, rest: &str, ended: bool) -> Result<Option<Vec<u8>>, Why> {
        body(format!("{HEAD}{fields}\r\n{rest}").as_bytes(), ended)
    }

    #[test]
    fn a_body_ends_by_its_length_its_last_chunk_or_the_connection() {
        let whole = Ok(Some(b"policy".to_vec()));
        assert_eq!(ask("Content-Length: 6\r\n", "policy", false), whole);
        assert_eq!(ask("content-length: 6\r\n", "policy and more", false), whole);
        assert_eq!(
            ask("Transfer-Encoding: chunked\r\n", "4\r\npoli\r\n2;x=y\r\ncy\r\n0\r\n\r\n", false),
            whole
        );
        assert_eq!(ask("", "policy", true), whole);
    }

    #[test]
    fn what_is_not_there_yet_is_waited_for_and_what_will_not_come_is_missed() {
        for (fields, rest) in [
            ("Content-Length: 6\r\n", "polic"),
            ("Transfer-Encoding: chunked\r\n", "4\r\npoli\r\n2\r\ncy\r\n"),
            ("Transfer-Encoding: chunked\r\n", "4\r\npoli\r"),
            ("Transfer-Encoding: chunked\r\n", "4\r\npo"),
            ("Transfer-Encoding: chunked\r\n", ""),
        ] {
            assert_eq!(ask(fields, rest, false), Ok(None), "{fields} {rest}");
            assert_eq!(ask(fields, rest, true), Err("cut off"), "{fields} {rest}");
        }
        assert_eq!(ask("", "polic", false), Ok(None));
        assert_eq!(body(b"HTTP/1.1 200 O", false), Ok(None));
        assert_eq!(body(b"HTTP/1.1 200 O", true), Err("no answer of HTTP"));
        assert_eq!(body(b"", false), Ok(None));
    }

    #[test]
    fn nothing_but_a_text_from_the_place_itself_is_taken() {
        let of = |text: &str| body(text.as_bytes(), true).unwrap_err();
        assert_eq!(of("HTTP/1.1 301 Moved\r\nLocation: https://x/\r\n\r\n"), "redirected");
        assert_eq!(of("HTTP/1.1 404 No\r\nContent-Type: text/plain\r\n\r\n"), "no policy there (not 200)");
        assert_eq!(of("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\nx"), "not of type text/plain");
        assert_eq!(of("HTTP/1.1 200 OK\r\n\r\nx"), "not of type text/plain");
        assert_eq!(of("nonsense\r\n\r\n"), "no answer of HTTP");
        assert_eq!(of("220 mail.test ESMTP\r\n"), "no answer of HTTP");
    }

    #[test]
    fn lengths_that_contradict_or_are_too_large_are_refused() {
        for fields in [
            "Content-Length: 6\r\nContent-Length: 7\r\n",
            "Content-Length: 6x\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
        ] {
            assert_eq!(ask(fields, "policy", false), Err("length not understood"));
        }
        assert_eq!(ask("Content-Length: 65537\r\n", "", false), Err("too long"));
        assert_eq!(ask("Transfer-Encoding: chunked\r\n", "fffffff\r\n", false), Err("too long"));
        assert_eq!(ask("Transfer-Encoding: chunked\r\n", "x\r\n", false), Err("chunks not understood"));
        assert_eq!(ask("Transfer-Encoding: chunked\r\n", "1\r\nabc", false), Err("chunks not understood"));
        assert_eq!(ask("", &"x".repeat(POLICY_MAX + 1), true), Err("too long"));
        assert_eq!(ask("", &"x".repeat(ANSWER_MAX), false), Err("too long"));
        assert_eq!(body("x".repeat(HEAD_MAX + 1).as_bytes(), false), Err("no answer of HTTP"));
    }
}
