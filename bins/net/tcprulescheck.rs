//! tcprulescheck - show what a cdb of rules says about a connection
//!
//! called by  an administrator
//! argv       cdb
//! reads      TCPREMOTEIP (default 0.0.0.0), TCPREMOTEHOST, TCPREMOTEINFO
//! fd 1       the rule, the variables it sets, allow or deny
//! jail       reads the cdb; no exec, no network
//! exit       0; 100 usage; 111 the cdb cannot be read
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use qmail::rules::{self, Item, Peer};
use qmail::trouble::Trouble;
use qmail::{cdb, environ, fd, program};

fn main() {
    program::run("tcprulescheck", "tcprulescheck cdb", tcprulescheck)
}

fn tcprulescheck(args: program::Args) -> Result<(), Trouble> {
    let parsed = args.options("")?;
    let [name] = parsed.rest.as_slice() else { return Err(args.wrong()) };
    let ip = environ::get("TCPREMOTEIP").unwrap_or_else(|| b"0.0.0.0".to_vec());
    let (host, info) = (environ::get("TCPREMOTEHOST"), environ::get("TCPREMOTEINFO"));
    let peer = Peer { ip: &ip, host: host.as_deref(), info: info.as_deref() };
    Jail::of(&programs::TCPRULESCHECK).place(programs::FILE, name.as_slice()).close()?;
    let cdb = fd::open_read(name).and_then(cdb::Reader::new).map_err(|e| Trouble::unable("read", name, e))?;
    let rule = rules::find(&cdb, &peer).map_err(|e| e.trouble(name))?;
    fd::write_all(fd::OUT, &report(rule)).map_err(|e| Trouble::temporary("unable to write output").because(e))
}

fn report(rule: Option<rules::Rule>) -> Vec<u8> {
    let Some(rule) = rule else { return b"default:\nallow connection\n".to_vec() };
    let mut out = [b"rule ", rule.address.as_slice(), b":\n"].concat();
    for item in rule.items {
        match item {
            Item::Deny => {
                out.extend_from_slice(b"deny connection\n");
                return out;
            }
            Item::Set { name, value } => {
                out.extend_from_slice(
                    &[b"set environment variable ", name.as_slice(), b"=", &value, b"\n"].concat(),
                );
            }
        }
    }
    out.extend_from_slice(b"allow connection\n");
    out
}
