//! rewrite - where a recipient goes, and under which name (qmail-send(8), "recipients")
//!
//! Pure: control files come in as values, addresses as bytes.
#![forbid(unsafe_code)]

use crate::control::{Map, Set, dot_suffixes};
use crate::envelope;
use memchr::memrchr;

/// The two ways out of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    Local,
    Remote,
}

impl Way {
    /// In the order in which their files are written and synced.
    pub const BOTH: [Way; 2] = [Way::Local, Way::Remote];

    /// The word of log lines, and the name of the directory in the queue.
    pub fn name(self) -> &'static str {
        match self {
            Way::Local => "local",
            Way::Remote => "remote",
        }
    }
}

/// What the control files say about recipients.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Appended, behind an `@`, to recipients without one.
    pub envnoathost: Vec<u8>,
    /// Domains in which `user%host@domain` means `user@host`.
    pub percenthack: Set,
    pub locals: Set,
    pub virtualdomains: Map,
}

impl Rules {
    /// The way out for one recipient of an envelope, and the address used on it.
    pub fn rewrite(&self, recipient: &[u8]) -> (Way, Vec<u8>) {
        let mut address = recipient.to_vec();
        if !address.contains(&b'@') {
            address.push(b'@');
            address.extend_from_slice(&self.envnoathost);
        }
        self.unwrap_percents(&mut address);
        let domain = envelope::domain(&address).unwrap_or_default();
        if self.locals.contains(domain) {
            return (Way::Local, address);
        }
        let entry = self.virtualdomains.get(&address).or_else(|| self.of_domain(domain));
        match entry {
            Some(prepend) if !prepend.is_empty() => {
                let prefixed = [prepend, b"-", address.as_slice()].concat();
                (Way::Local, prefixed)
            }
            _ => (Way::Remote, address), // an empty value is an exception from a wider entry
        }
    }

    /// `a%b%c@hack` becomes `a%b@c`, and again while the new domain is one of percenthack.
    fn unwrap_percents(&self, address: &mut Vec<u8>) {
        while let Some((local, domain)) = envelope::split(address) {
            let Some(percent) = memrchr(b'%', local) else { return };
            if !self.percenthack.contains(domain) {
                return;
            }
            let length = local.len();
            address.truncate(length);
            if let Some(byte) = address.get_mut(percent) {
                *byte = b'@';
            }
        }
    }

    /// The virtualdomains entry of a domain: itself, its suffixes at dots, the empty key.
    fn of_domain(&self, domain: &[u8]) -> Option<&[u8]> {
        self.virtualdomains
            .get(domain)
            .or_else(|| dot_suffixes(domain).find_map(|suffix| self.virtualdomains.get(suffix)))
            .or_else(|| self.virtualdomains.get(b""))
    }

    /// The address as its sender knows it: without the prefix that a virtual domain gave it.
    /// Entries for whole addresses are not consulted.
    pub fn without_prefix<'a>(&self, address: &'a [u8]) -> &'a [u8] {
        let domain = envelope::domain(address).unwrap_or_default();
        match self.of_domain(domain) {
            Some(prepend) if !prepend.is_empty() => {
                address.strip_prefix(prepend).and_then(|rest| rest.strip_prefix(b"-")).unwrap_or(address)
            }
            _ => address,
        }
    }
}

/// The sender of one delivery. `BOX@HOST-@[]` asks for a return path of its own for each recipient:
/// `BOX` `R=D` `@HOST` for recipient `R@D`.
pub fn verp(sender: &[u8], recipient: &[u8]) -> Vec<u8> {
    let expanded = || {
        let owner = sender.strip_suffix(b"-@[]")?;
        let at = memrchr(b'@', owner)?;
        let (mailbox, host) = owner.split_at(at);
        let (local, domain) = envelope::split(recipient)?;
        Some([mailbox, local, b"=", domain, host].concat())
    };
    expanded().unwrap_or_else(|| sender.to_vec())
}

/// The address that a bounce goes to: a VERP sender without its marker.
pub fn bounce_recipient(sender: &[u8]) -> &[u8] {
    sender.strip_suffix(b"-@[]").filter(|owner| !owner.is_empty()).unwrap_or(sender)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::entries;

    fn rules() -> Rules {
        let virtualdomains = b"virt.example:joe\n.wild.example:team\nbob@other.example:special\n\
            except.wild.example:\nUPPER.example:Big\n";
        Rules {
            envnoathost: b"me.example".to_vec(),
            percenthack: Set::of(&[b"hack.example".to_vec()]),
            locals: Set::of(&[b"me.example".to_vec(), b"local.example".to_vec()]),
            virtualdomains: Map::of(&entries(virtualdomains)),
        }
    }

    fn is(recipient: &[u8], way: Way, address: &[u8]) {
        assert_eq!(rules().rewrite(recipient), (way, address.to_vec()));
    }

    #[test]
    fn a_name_alone_belongs_to_envnoathost() {
        is(b"joe", Way::Local, b"joe@me.example");
        is(b"", Way::Local, b"@me.example");
    }

    #[test]
    fn local_domains_are_compared_without_case_and_kept_as_written() {
        is(b"Joe@Local.EXAMPLE", Way::Local, b"Joe@Local.EXAMPLE");
        is(b"joe@sub.local.example", Way::Remote, b"joe@sub.local.example");
    }

    #[test]
    fn percents_are_unwrapped_only_where_asked() {
        is(b"a%local.example@hack.example", Way::Local, b"a@local.example");
        is(b"a%b.example%hack.example@hack.example", Way::Remote, b"a@b.example");
        is(b"a%b@local.example", Way::Local, b"a%b@local.example");
        is(b"plain@hack.example", Way::Remote, b"plain@hack.example");
    }

    #[test]
    fn virtual_domains_go_from_the_whole_address_to_the_wildest_entry() {
        is(b"x@virt.example", Way::Local, b"joe-x@virt.example");
        is(b"x@VIRT.example", Way::Local, b"joe-x@VIRT.example");
        is(b"x@sub.virt.example", Way::Remote, b"x@sub.virt.example");
        is(b"x@a.wild.example", Way::Local, b"team-x@a.wild.example");
        is(b"x@wild.example", Way::Remote, b"x@wild.example");
        is(b"bob@other.example", Way::Local, b"special-bob@other.example");
        is(b"x@except.wild.example", Way::Remote, b"x@except.wild.example");
    }

    #[test]
    fn an_empty_key_catches_everything_else() {
        let all = Rules { virtualdomains: Map::of(&[b":out".to_vec(), b"not.example:".to_vec()]), ..rules() };
        assert_eq!(all.rewrite(b"x@y.example"), (Way::Local, b"out-x@y.example".to_vec()));
        assert_eq!(all.rewrite(b"x@not.example"), (Way::Remote, b"x@not.example".to_vec()));
        assert_eq!(all.rewrite(b"x@local.example"), (Way::Local, b"x@local.example".to_vec()));
    }

    #[test]
    fn bounces_show_the_address_without_its_prefix() {
        let r = rules();
        assert_eq!(r.without_prefix(b"joe-x@virt.example"), b"x@virt.example");
        assert_eq!(r.without_prefix(b"team-x@a.wild.example"), b"x@a.wild.example");
        assert_eq!(r.without_prefix(b"JOE-x@virt.example"), b"JOE-x@virt.example");
        assert_eq!(r.without_prefix(b"joe-x@plain.example"), b"joe-x@plain.example");
        assert_eq!(r.without_prefix(b"special-bob@other.example"), b"special-bob@other.example");
        assert_eq!(r.without_prefix(b"Big-x@upper.example"), b"x@upper.example");
        let all = Rules { virtualdomains: Map::of(&[b":out".to_vec()]), ..rules() };
        assert_eq!(all.without_prefix(b"out-x@y.example"), b"x@y.example");
    }

    #[test]
    fn verp_puts_the_recipient_into_the_sender() {
        assert_eq!(verp(b"joe-list-owner-@h-@[]", b"bob@d"), b"joe-list-owner-bob=d@h");
        assert_eq!(verp(b"x-@h-@[]", b"a@b@c"), b"x-a@b=c@h");
        assert_eq!(verp(b"joe@h", b"bob@d"), b"joe@h");
        assert_eq!(verp(b"#@[]", b"bob@d"), b"#@[]");
        assert_eq!(verp(b"nohost-@[]", b"bob@d"), b"nohost-@[]");
        assert_eq!(verp(b"", b"bob@d"), b"");
    }

    #[test]
    fn a_bounce_of_a_verp_message_goes_to_the_plain_owner() {
        assert_eq!(bounce_recipient(b"joe-@h-@[]"), b"joe-@h");
        assert_eq!(bounce_recipient(b"joe@h"), b"joe@h");
    }
}
