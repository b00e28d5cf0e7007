//! decimal - numbers as qmail reads and writes them
#![forbid(unsafe_code)]

/// The leading digits of `text` ("prefix number": what follows is ignored), saturating.
/// None when there is no leading digit. For control files, environment and arguments.
pub fn prefix(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit());
    let mut value: Option<u64> = None;
    for digit in digits {
        let so_far = value.unwrap_or(0);
        value = Some(so_far.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    }
    value
}

/// The whole of `text` as a number; None when empty, with any other byte, or on overflow.
/// For everything that comes from a peer.
pub fn strict(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut value: u64 = 0;
    for byte in text {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
    }
    Some(value)
}

/// Decimal without leading zeros.
pub fn text(value: impl std::fmt::Display) -> Vec<u8> {
    value.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_number_stops_at_the_first_other_byte_and_saturates() {
        assert_eq!(prefix(b"20x"), Some(20));
        assert_eq!(prefix(b"x20"), None);
        assert_eq!(prefix(b""), None);
        assert_eq!(prefix(b"99999999999999999999999"), Some(u64::MAX));
    }

    #[test]
    fn a_strict_number_is_digits_to_the_end_without_overflow() {
        assert_eq!(strict(b"1a"), None);
        assert_eq!(strict(b"18446744073709551616"), None);
        assert_eq!(strict(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(strict(b""), None);
    }
}
