//! mta-sts - find the MTA-STS policies of domains, for qmail-remote
//!
//! called by  qmail-start, behind tlsclient and before qmail-rspawn   runs as  qmailr (own home: the owner)
//! arguments  program [argument …]   -q domain
//! becomes    program, with the number of a socket in MTASTSFD; a child of it stays and answers there until
//!            nobody holds the other end. One question a packet: the domain, and a socket for the answer
//! touches    sts/DOMAIN, what is known of a domain; any of them may be removed
//! env        TLSCLIENTFD  TLS (tlsclient); without it nothing can be fetched, and what is kept is used
//! with -q    fd 1 shows the policy that holds for a domain, after asking for it; nothing is kept
//! exit       the program's; 111 cannot begin. With -q 0 there is one, 1 there is none, 111 it could not be fetched
//! jail       rlimits only for what becomes the program; the child writes sts, TCP to port 443 and those of the
//!            DNS, UDP; no exec
#![forbid(unsafe_code)]

mod fetch;
mod kept;
mod server;

use fetch::Web;
use jail::{Jail, programs};
use qmail::home::Home;
use qmail::program::{self, Args};
use qmail::trouble::Trouble;
use qmail::{alongside, date, fd};
use remote::policy;
use remote::sts::{self, Kept};

const USAGE: &str = "mta-sts program [argument ...], mta-sts -q domain";

/// There is no policy.
const NOTHING: i32 = 1;

fn main() {
    program::run("mta-sts", USAGE, start)
}

fn start(args: Args) -> Result<(), Trouble> {
    let parsed = args.options("q:")?;
    if let Some(domain) = parsed.value('q') {
        return if parsed.rest.is_empty() { show(domain) } else { Err(args.wrong()) };
    }
    if parsed.rest.is_empty() {
        return Err(args.wrong());
    }
    let home = Home::find()?;
    Jail::of(&programs::MTA_STS).close()?;
    alongside::precede(&home, &parsed.rest, policy::VARIABLE, |ours| server::run(&home, ours))
}

/// For people: the policy as it is on the web now.
fn show(domain: &[u8]) -> Result<(), Trouble> {
    let domain = domain.to_ascii_lowercase();
    if !sts::is_domain(&domain) {
        return Err(Trouble::permanent([b"not a domain: ".as_slice(), &domain].concat()));
    }
    let web = Web::find();
    Jail::of(&programs::MTA_STS_ASKED).ports(web.ports()).close()?;
    let Some(id) = web.id(&domain).map_err(Trouble::temporary)? else {
        return Err(Trouble::exit(NOTHING, ""));
    };
    let policy = web.policy(&domain).map_err(Trouble::temporary)?;
    let kept = Kept { policy: Some((policy, id, date::now())), failed: None };
    let _ = fd::write_all(fd::OUT, &kept.bytes());
    Ok(())
}
