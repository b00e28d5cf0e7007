//! Any text as control files and as users/ids, and where any recipient goes by them.
#![cfg_attr(fuzzing, no_main)]

use fuzz::fuzz_target;
use qmail::control::{Map, Set, dot_suffixes, entries};
use qmail::decimal;
use qmail::envelope;
use qmail::home::Ids;
use qmail::queue;
use qmail::queue::rewrite::{Rules, Way, bounce_recipient, verp};

fuzz_target!(|input: (&[u8], &[u8], &[u8])| {
    let (text, address, sender) = input;
    let list = entries(text);
    let set = Set::of(&list);
    for entry in &list {
        assert!(!entry.contains(&0) && !entry.contains(&b'\n'));
        assert!(set.contains(entry) && set.contains(&entry.to_ascii_uppercase()));
    }
    let map = Map::of(&list);
    for entry in list.iter().filter(|e| e.contains(&b':')) {
        let key = entry.split(|b| *b == b':').next().unwrap_or_default();
        assert!(map.get(key).is_some());
    }
    for suffix in dot_suffixes(address) {
        assert!(suffix.starts_with(b".") && address.ends_with(suffix));
    }
    if let Some(ids) = Ids::parse(text) {
        assert_eq!(ids.is_own(), ids.role("owner").is_some());
    }
    if let (Some(whole), prefix) = (decimal::strict(address), decimal::prefix(address)) {
        assert_eq!(prefix, Some(whole));
    }
    if let Some(number) = queue::number(address) {
        assert_eq!(decimal::text(number), address);
    }

    // One text in all parts: a line `a:b` is a virtual domain, any line a local or a percenthack domain.
    let rules = Rules {
        envnoathost: b"me.example".to_vec(),
        percenthack: Set::of(&list),
        locals: Set::of(&list[..list.len() / 2]),
        virtualdomains: map,
    };
    let (way, rewritten) = rules.rewrite(address);
    assert!(rewritten.contains(&b'@'));
    if way == Way::Remote {
        assert_eq!(rules.rewrite(&rewritten), (way, rewritten.clone()), "remote addresses are settled");
    }
    let plain = rules.without_prefix(&rewritten);
    assert!(rewritten.ends_with(plain));
    let for_addresses = list.iter().any(|entry| entry.contains(&b'@'));
    let domain = envelope::domain(plain).unwrap_or_default();
    if way == Way::Local && !for_addresses && !rules.locals.contains(domain) {
        assert!(plain.len() < rewritten.len(), "a prefix that cannot be taken off again");
    }

    // A return path for each recipient keeps the mailbox and the host of the list's.
    let from = verp(sender, &rewritten);
    if from != sender {
        let owner = sender.strip_suffix(b"-@[]").expect("only VERP senders change");
        let (mailbox, host) = envelope::split(owner).expect("an address");
        let middle = from.strip_prefix(mailbox).and_then(|f| f.strip_suffix(host)?.strip_suffix(b"@"));
        assert!(middle.is_some_and(|m| m.len() == rewritten.len()));
    }
    assert!(sender.starts_with(bounce_recipient(sender)));
});
