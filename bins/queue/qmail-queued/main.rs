//! qmail-queued - the door of the queue for everybody who may not write it
//!
//! called by  qmail-start, or a service of its own     runs as  qmailq
//! socket     run/queue: a byte and two descriptors in (message, envelope), a code and a text out
//! fd 2       troubles, a line each
//! exit       0 after TERM, 111 cannot start, or a stranger could spoil the queue
//! jail       queue/ mess intd todo pid lock; no exec. Workers, forked, write queue/ as qmail-queue does, and
//!            have only the system calls for it
//!
//! Who hands in a message is what the kernel says (SO_PEERCRED): effective uid and pid. A worker (`worker`) works
//! on the caller's descriptors and never changes their flags. It gives up when the caller hangs up before the
//! message is visible; the server ends it at its deadline. How many messages are taken for whom: `shares`.
#![forbid(unsafe_code)]

mod shares;
mod worker;

use crate::shares::{MESSAGES_MAX, has_room_for};
use crate::worker::Worker;
use jail::{Jail, programs};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, Uid};
use qmail::exits::queue as code;
use qmail::home::Home;
use qmail::queue::accept::{self, Origin};
use qmail::queue::door;
use qmail::setup;
use qmail::sys::{process, signal};
use qmail::timed::Deadline;
use qmail::trouble::{Trouble, wording};
use qmail::{fd, program};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// A worker is killed when one message keeps it busy for so long: even its watchdog did not end it, nor the end of
/// the message's lifetime a minute ago.
const BUSY_SECONDS: u64 = accept::LIFETIME_SECONDS + 60;

/// A worker that a sick disk holds does not die at once.
const KILL_AGAIN_SECONDS: u64 = 60;

/// How long the lock may be somebody's before it is another server's.
const LOCK_PATIENCE: Duration = Duration::from_millis(300);

/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Connections waiting to be taken.
const BACKLOG: i32 = 128;

/// Pause after an accept or a fork that failed for want of resources.
const PAUSE: Duration = Duration::from_millis(200);

const BUSY: &[u8] = b"Ztoo many messages are being queued for you at once, try again later (#4.3.2)";

fn main() {
    program::run("qmail-queued", "qmail-queued", serve)
}

fn serve(args: program::Args) -> Result<(), Trouble> {
    args.none()?;
    let home = Home::find()?;
    home.enter()?;
    setup::require(&home, &[setup::place(&home), setup::queue(&home)].concat())?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o033));
    let lock = take_lock()?;
    let listener = open_socket()?;
    nix::unistd::chdir("queue").map_err(|e| Trouble::unable("switch to", "queue", e))?;
    Jail::of(&programs::QMAIL_QUEUED).home(&home).close()?;
    signal::catch(&[Signal::SIGTERM, Signal::SIGCHLD]);
    // Never dropped: with the listener would go connections nobody took, and what strangers passed in them.
    let mut server = ManuallyDrop::new(Server { home, listener, lock, workers: Vec::new() });
    while !signal::take(Signal::SIGTERM) {
        server.turn();
    }
    // Workers finish what they have; they hold neither lock nor socket.
    Ok(())
}

/// One qmail-queued a home: the lock is held for life, its file says our pid.
fn take_lock() -> Result<Flock<OwnedFd>, Trouble> {
    let name = door::LOCK;
    let mut file = door::open_lock(name).map_err(|e| Trouble::unable("open", name, e))?;
    let deadline = Deadline::after(LOCK_PATIENCE);
    let lock = loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => break lock,
            // qmail-start's keeper looks whether the lock is free by taking it for an instant.
            Err((file, Errno::EAGAIN)) if !deadline.passed() => file,
            Err((_, Errno::EAGAIN)) => return Err(Trouble::temporary("qmail-queued is already running")),
            Err((_, errno)) => return Err(Trouble::unable("lock", name, errno)),
        };
        std::thread::sleep(LOCK_PAUSE);
    };
    nix::unistd::ftruncate(&*lock, 0)
        .and_then(|()| fd::write_all(&*lock, format!("{}\n", nix::unistd::getpid()).as_bytes()))
        .map_err(|e| Trouble::unable("write", name, e))?;
    Ok(lock)
}

/// Binds under another name and renames: there is always a socket of that name, and only the lock's
/// holder replaces it.
fn open_socket() -> Result<OwnedFd, Trouble> {
    let trouble = |errno| Trouble::unable("create socket", door::SOCKET, errno);
    let fresh = "run/queue.new";
    let listener =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
            .map_err(trouble)?;
    let _ = nix::unistd::unlink(fresh);
    UnixAddr::new(fresh).and_then(|address| bind(listener.as_raw_fd(), &address)).map_err(trouble)?;
    // Everybody may hand in mail; who it is, the kernel says.
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        fresh,
        Mode::from_bits_truncate(0o666),
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
    .map_err(trouble)?;
    Backlog::new(BACKLOG).and_then(|backlog| listen(&listener, backlog)).map_err(trouble)?;
    nix::fcntl::renameat(nix::fcntl::AT_FDCWD, fresh, nix::fcntl::AT_FDCWD, door::SOCKET).map_err(trouble)?;
    Ok(listener)
}

struct Server {
    home: Home,
    listener: OwnedFd,
    lock: Flock<OwnedFd>,
    workers: Vec<Worker>,
}

impl Server {
    /// Waits for a connection, a word of a worker, a deadline or a signal, and serves what came.
    fn turn(&mut self) {
        let nearest = self.workers.iter().fold(Deadline::never(), |d, worker| d.or(worker.deadline));
        let room = self.workers.iter().filter(|worker| !worker.is_free()).count() < MESSAGES_MAX;
        let mut fds = vec![PollFd::new(
            self.listener.as_fd(),
            if room { PollFlags::POLLIN } else { PollFlags::empty() },
        )];
        let channels = self.workers.iter().filter_map(Worker::channel);
        fds.extend(channels.map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN)));
        let ready = signal::wait(&mut fds, nearest.left()).is_ok_and(|n| n > 0);
        let mut any = fds.into_iter().map(|polled| ready && polled.any().unwrap_or(true));
        let called = any.next().unwrap_or(false) && room;
        let spoken: Vec<bool> = any.collect();
        let listening = self.workers.iter_mut().filter(|worker| worker.channel().is_some());
        listening.zip(spoken).filter(|(_, spoke)| *spoke).for_each(|(worker, _)| worker.hear());
        if called {
            self.accept();
        }
        self.reap();
        for worker in self.workers.iter_mut().filter(|worker| worker.deadline.passed()) {
            if worker.is_free() {
                worker.dismiss();
            } else {
                let _ = kill(worker.pid, Signal::SIGKILL);
                worker.deadline = Deadline::seconds(KILL_AGAIN_SECONDS);
            }
        }
    }

    fn reap(&mut self) {
        if signal::take(Signal::SIGCHLD) {
            while let Some((pid, _)) = process::reap() {
                self.workers.retain(|worker| worker.pid != pid);
            }
        }
    }

    fn accept(&mut self) {
        let connection = match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(number) => match fd::take(number) {
                Ok(connection) => connection,
                Err(_) => return,
            },
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => return,
            Err(errno) => return complain("accept a connection", errno),
        };
        let Ok(peer) = getsockopt(&connection, sockopt::PeerCredentials) else { return };
        let origin = Origin { uid: Uid::from_raw(peer.uid()), pid: Pid::from_raw(peer.pid()) };
        let taken = self.workers.iter().filter_map(Worker::busy);
        if has_room_for(self.home.ids(), origin.uid, taken) {
            self.give(connection, origin);
        } else {
            self.refuse(connection);
        }
    }

    /// To a worker that is free, or a new one.
    fn give(&mut self, mut connection: OwnedFd, origin: Origin) {
        // Always the same ones first, so that the others find nothing to do and go home.
        for worker in self.workers.iter_mut().rev().filter(|worker| worker.is_free()) {
            match worker.give(connection, origin) {
                Ok(()) => return,
                Err(back) => connection = back, // it has died
            }
        }
        let mut servers = self.descriptors();
        servers.push(connection.as_raw_fd());
        match Worker::start(&self.home, &servers) {
            Ok(mut worker) => {
                if let Err(connection) = worker.give(connection, origin) {
                    door::send_answer(&connection, code::MEMORY, b"");
                }
                self.workers.push(worker);
            }
            Err(errno) => {
                door::send_answer(&connection, code::MEMORY, b"");
                complain("fork", errno);
            }
        }
    }

    /// Who is refused may have passed descriptors too: a child closes them, by ending.
    fn refuse(&self, connection: OwnedFd) {
        let servers = self.descriptors();
        let forked = process::fork_heir(connection, |connection| {
            servers.into_iter().for_each(process::close);
            door::send_answer(connection, code::CUSTOM, BUSY);
            code::CUSTOM
        });
        if let Err((errno, connection)) = forked {
            door::send_answer(&connection, code::MEMORY, b"");
            complain("fork", errno);
        }
    }

    /// What a child must not keep: it makes a process the server.
    fn descriptors(&self) -> Vec<RawFd> {
        let channels = self.workers.iter().filter_map(Worker::channel).map(AsRawFd::as_raw_fd);
        [self.listener.as_raw_fd(), self.lock.as_raw_fd()].into_iter().chain(channels).collect()
    }
}

fn complain(action: &str, errno: Errno) {
    let _ = fd::write_all(
        fd::ERR,
        format!("qmail-queued: warning: unable to {action}: {}\n", wording(errno)).as_bytes(),
    );
    std::thread::sleep(PAUSE);
}
