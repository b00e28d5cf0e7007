//! reverse - the name under which an address is looked up
#![forbid(unsafe_code)]

use std::net::IpAddr;

/// `4.3.2.1.in-addr.arpa` of 1.2.3.4; 32 nibbles and `ip6.arpa` of an IPv6 address (RFC 3596 section
/// 2.5). An IPv4 address in IPv6 clothes (`::ffff:1.2.3.4`) is looked up as what it is.
pub fn reverse_name(ip: IpAddr) -> Vec<u8> {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa").into_bytes()
        }
        IpAddr::V6(ip) => {
            let mut name = String::with_capacity(72);
            for byte in ip.octets().iter().rev() {
                name.push_str(&format!("{:x}.{:x}.", byte & 15, byte >> 4));
            }
            name.push_str("ip6.arpa");
            name.into_bytes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_numbers_turn_round() {
        assert_eq!(reverse_name("192.0.2.7".parse().unwrap()), b"7.2.0.192.in-addr.arpa");
        assert_eq!(reverse_name("::ffff:192.0.2.7".parse().unwrap()), b"7.2.0.192.in-addr.arpa");
    }

    #[test]
    fn thirty_two_nibbles_turn_round() {
        assert_eq!(
            reverse_name("2001:db8::567:89ab".parse().unwrap()),
            b"b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
        );
    }
}
