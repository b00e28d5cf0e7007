//! ipme - the IP addresses of this machine
#![forbid(unsafe_code)]

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `0.0.0.0` and `::`, which reach this machine too, and the addresses of both families of every interface that
/// is up.
pub fn addresses() -> Result<Vec<IpAddr>, Errno> {
    let mut all = vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    for interface in getifaddrs()?.filter(|i| i.flags.contains(InterfaceFlags::IFF_UP)) {
        let Some(address) = interface.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            all.push(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            all.push(IpAddr::V6(v6.ip()));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_ours_and_a_documentation_address_is_not() {
        let all = addresses().unwrap();
        assert!(all.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
        assert!(!all.contains(&IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))));
    }
}
