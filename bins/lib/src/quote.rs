//! quote - addresses as header lines and SMTP write them
//!
//! The local part goes inside double quotes when its bytes demand it (RFC 5321 section 4.1.2,
//! RFC 5322 section 3.2.4); the domain is never touched.
#![forbid(unsafe_code)]

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-./=?^_{|}~`".contains(&byte)
}

fn needs_quotes(local: &[u8]) -> bool {
    local.is_empty()
        || !local.iter().all(|b| plain(*b))
        || local.starts_with(b".")
        || local.ends_with(b".")
        || local.windows(2).any(|w| w == b"..")
}

/// `local` in double quotes, CR LF `"` and `\` behind a backslash.
pub fn quoted_string(local: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(local.len() + 2);
    out.push(b'"');
    for byte in local {
        if matches!(byte, b'\r' | b'\n' | b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out.push(b'"');
    out
}

/// An address with its local part (before the last `@`) quoted if it must be. Empty stays empty.
pub fn address(address: &[u8]) -> Vec<u8> {
    if address.is_empty() {
        return Vec::new();
    }
    let at = memchr::memrchr(b'@', address).unwrap_or(address.len());
    let (local, domain) = address.split_at(at);
    if !needs_quotes(local) {
        return address.to_vec();
    }
    let mut out = quoted_string(local);
    out.extend_from_slice(domain);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_addresses_stay_as_they_are() {
        assert_eq!(address(b"joe.doe+x@example.com"), b"joe.doe+x@example.com");
        assert_eq!(address(b""), b"");
        assert_eq!(address(b"no-at-sign"), b"no-at-sign");
    }

    #[test]
    fn strange_local_parts_are_quoted_and_domains_are_not() {
        assert_eq!(address(b"a b@x"), b"\"a b\"@x");
        assert_eq!(address(b"a\"\\@x y"), b"\"a\\\"\\\\\"@x y");
        assert_eq!(address(b".a@x"), b"\".a\"@x");
        assert_eq!(address(b"a..b@x"), b"\"a..b\"@x");
        assert_eq!(address(b"@x"), b"\"\"@x");
        assert_eq!(address(b"a@b@x"), b"\"a@b\"@x");
    }
}
