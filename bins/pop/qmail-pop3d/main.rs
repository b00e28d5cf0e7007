//! qmail-pop3d - read a Maildir by POP3, after the login
//!
//! called by  the checker that qmail-popup runs       runs as  the mailbox's owner, never uid 0
//! argument   maildir, relative to the working directory (the user's home)
//! fd 0, 1    the client
//! fd 4       where SASL_SIGNATURE_FD is set: what the checker wrote there, for the client of SCRAM
//! exit       0; 1 when invoked as uid 0
//! jail       maildir/{tmp,new,cur}, maildir/maildirsize (appends), maildir/dovecot-uidlist (reads); no
//!            other file, no new connection, no exec
//!
//! What is in the Maildir at login is what the session sees. Nothing is changed before QUIT. There are
//! no locks: a file another program has moved is found again by the part of its name that never changes.
#![forbid(unsafe_code)]

use jail::{Jail, programs};
use nix::errno::Errno;
use nix::unistd::Uid;
use pop::connection::Answers;
use pop::maildrop::{self, Maildrop};
use pop::session;
use qmail::auth::{SIGNATURE_FD, SIGNATURE_VARIABLE, read_signature};
use qmail::program::{Args, Program, Voice};
use qmail::trouble::Trouble;
use qmail::{date, environ, fd};

fn main() {
    Program::new("qmail-pop3d", "qmail-pop3d maildir").voice(Voice::Bare).run(pop3d)
}

fn pop3d(args: Args) -> Result<(), Trouble> {
    if Uid::current().is_root() || Uid::effective().is_root() {
        return Err(Trouble::exit(1, "qmail-pop3d invoked as uid 0, terminating"));
    }
    let mut answers = Answers::default();
    // A client that is gone needs no words; without its QUIT nothing has changed.
    let _ = serve(&args, &mut answers).and_then(|()| answers.flush());
    Ok(())
}

fn serve(args: &Args, answers: &mut Answers) -> Result<(), Errno> {
    match args.list().first().map(|maildir| nix::unistd::chdir(fd::path(maildir))) {
        Some(Ok(())) => {}
        None | Some(Err(Errno::ENOENT | Errno::ENOTDIR)) => {
            return answers.err("[SYS/PERM] this user has no $HOME/Maildir");
        }
        Some(Err(_)) => return answers.err("[SYS/TEMP] unable to open $HOME/Maildir"),
    }
    if let Err(trouble) = Jail::of(&programs::QMAIL_POP3D).close() {
        let _ = fd::write_all(fd::ERR, &[b"qmail-pop3d: fatal: ", trouble.text().as_slice(), b"\n"].concat());
        return answers.err("[SYS/TEMP] unable to open $HOME/Maildir");
    }
    let signature = environ::get(SIGNATURE_VARIABLE).map(|_| read_signature(fd::Standard(SIGNATURE_FD)));
    let now = date::now();
    maildrop::clean_tmp(now);
    match Maildrop::scan(now) {
        Ok(maildrop) => match signature {
            None => session::run(maildrop, fd::IN, answers),
            Some(signature) if signature.is_empty() => {
                answers.err("[SYS/PERM] the checker does not know SCRAM")
            }
            Some(signature) => session::run_signed(&signature, maildrop, fd::IN, answers),
        },
        Err(_) => answers.err("[SYS/TEMP] unable to scan $HOME/Maildir"),
    }
}
