//! Any text as resolv.conf and as $DNSCACHEIP.
#![cfg_attr(fuzzing, no_main)]

use dns::reverse_name;
use dns::servers::{SERVERS_MAX, parse_list, parse_resolv_conf};
use fuzz::fuzz_target;

fuzz_target!(|text: &[u8]| {
    for list in [parse_list(text), parse_resolv_conf(text)] {
        assert!(list.len() <= SERVERS_MAX);
        for server in list {
            assert_eq!(parse_list(server.to_string().as_bytes()), [server]);
            let name = reverse_name(server.ip());
            assert!(name.ends_with(b".arpa") && name.len() <= 72);
        }
    }
});
