//! The keeper of the keys, seen from the server: starts it, and another one when files have changed.

use crate::options::Options;
use jail::{Jail, programs};
use net::log::Log;
use nix::unistd::{Gid, Pid, Uid};
use qmail::sys::{descriptor, memory, process, signal};
use qmail::timed::{self, Deadline};
use qmail::trouble::Trouble;
use qmail::{exits, fd};
use rustls::crypto::aws_lc_rs::Ticketer;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use tls::keeper::Keeper;
use tls::link;
use tls::store::Store;

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// Reading and trying ten thousand keys takes some seconds.
const START_SECONDS: u64 = 60;

/// A trouble with a file is told in so many bytes.
const REASON_MAX: usize = 4096;

/// It may have as many sessions in their handshake as the server has at all, and needs a descriptor for each.
const SPARE_DESCRIPTORS: u64 = 64;

pub struct Guard {
    store: Store,
    user: Option<(Uid, Gid)>,
    clients_max: usize,
    /// Where new sessions' connections are brought; None when the keeper has ended.
    door: Option<OwnedFd>,
    pid: Pid,
    /// Of the files when they were last read, whatever came of it.
    state: Vec<u8>,
    looked: Instant,
}

impl Guard {
    /// The first one: without it there is no server.
    pub fn start(options: &Options, clients_max: usize) -> Result<Guard, Trouble> {
        let store = Store::at(options.directory.as_slice());
        let mut guard = Guard {
            state: store.state(),
            store,
            user: options.user,
            clients_max,
            door: None,
            pid: Pid::from_raw(0),
            looked: Instant::now(),
        };
        guard.replace()?;
        Ok(guard)
    }

    pub fn door(&self) -> Option<&OwnedFd> {
        self.door.as_ref()
    }

    pub fn ended(&mut self, pid: Pid) {
        if pid == self.pid {
            self.door = None;
        }
    }

    /// Sees that new sessions get what is in the files now. While they are no good, what was good before stays.
    pub fn tend(&mut self, asked: bool, log: &Log) {
        if self.door.is_some() && !asked && self.looked.elapsed() < LOOK {
            return;
        }
        // One that does not start is not tried again without a pause: its end, too, wakes us.
        if self.door.is_none() {
            std::thread::sleep(LOOK.saturating_sub(self.looked.elapsed()));
        }
        self.looked = Instant::now();
        let state = self.store.state();
        if self.door.is_some() && !asked && state == self.state {
            return;
        }
        self.state = state;
        match self.replace() {
            Ok(()) => log.status("certificates read"),
            Err(trouble) => {
                let kept: &[u8] = if self.door.is_some() {
                    b", keeping the certificates that were read before"
                } else {
                    b""
                };
                log.warning([trouble.text().as_slice(), kept].concat());
            }
        }
    }

    /// Another keeper. The old one serves the sessions that know it, and ends.
    fn replace(&mut self) -> Result<(), Trouble> {
        let failed = |what: &'static str| move |errno| Trouble::temporary(what).because(errno);
        let (ours, theirs) = link::pair().map_err(failed("unable to open sockets"))?;
        let (read, write) = fd::pipe().map_err(failed("unable to open pipe"))?;
        let (store, user, clients_max) = (&self.store, self.user, self.clients_max);
        // In this process the closure's ends are closed when it was not called.
        let forked = process::fork_child(move || {
            signal::defaults();
            fd::give_up_standard();
            descriptor::close_others(&[theirs.as_fd(), write.as_fd()]);
            match prepare(store, user, clients_max) {
                Ok(keeper) => {
                    let _ = fd::write_all(&write, b"\0");
                    drop(write);
                    keeper.serve(theirs);
                    exits::SUCCESS
                }
                Err(trouble) => {
                    let _ = fd::write_all(&write, &trouble.text());
                    exits::TEMPORARY
                }
            }
        });
        let pid = forked.map_err(failed("unable to fork"))?;
        let said = first_word(&read);
        if said != b"\0" {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            let none = b"the process for the keys did not start".to_vec();
            return Err(Trouble::temporary(if said.is_empty() { none } else { said }));
        }
        self.door = Some(ours);
        self.pid = pid;
        Ok(())
    }
}

/// What the child says: a NUL when it is ready, the reason when it will not be.
fn first_word(pipe: &OwnedFd) -> Vec<u8> {
    let deadline = Deadline::seconds(START_SECONDS);
    let mut said = Vec::new();
    let mut chunk = [0; REASON_MAX];
    while let Ok(n @ 1..) = timed::read(pipe, &mut chunk, deadline) {
        said.extend_from_slice(chunk.get(..n).unwrap_or_default());
        if said == b"\0" || said.len() >= REASON_MAX {
            break;
        }
    }
    said
}

/// Reads the keys as who we are, and becomes who may do nothing but use them.
fn prepare(store: &Store, user: Option<(Uid, Gid)>, clients_max: usize) -> Result<Keeper, Trouble> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let keys = store.load(user.map(|(uid, _)| uid))?;
    let tickets =
        Ticketer::new().map_err(|e| Trouble::temporary(format!("unable to make keys for tickets: {e}")))?;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = u64::try_from(clients_max).unwrap_or(u64::MAX).saturating_add(SPARE_DESCRIPTORS);
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted.max(soft).min(hard), hard);
    }
    drop_rights(user)?;
    Jail::of(&programs::TLSSERVER_KEEPER).close()?;
    Ok(Keeper::new(keys, tickets, clients_max))
}

/// Becomes the user of the processes for TLS, whom nobody may look into.
pub fn drop_rights(user: Option<(Uid, Gid)>) -> Result<(), Trouble> {
    if let Some((uid, gid)) = user {
        process::become_user(uid, gid, &[gid])
            .map_err(|e| Trouble::temporary("unable to become the user for TLS").because(e))?;
    }
    memory::undumpable(); // another user is another process to the kernel
    Ok(())
}
