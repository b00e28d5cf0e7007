//! qmail-queued - the door of the queue for everybody who may not write it
//!
//! called by  qmail-start, or a service of its own     runs as  qmailq
//! socket     run/queue: a byte and two descriptors in (message, envelope), a code and a text out
//! fd 2       troubles, a line each
//! exit       0 after TERM, 111 cannot start, or a stranger could spoil the queue
//! jail       queue/ mess intd todo pid lock; no exec. A forked child for each message writes queue/ as
//!            qmail-queue does, and has only the system calls for it
//!
//! Who hands in a message is what the kernel says (SO_PEERCRED): effective uid and pid. A child works on
//! the caller's descriptors and never changes their flags. It gives up when the caller hangs up before
//! the message is visible; the parent ends it at its deadline. Children are shared out: a part is kept for
//! the accounts of the home, of the rest each person has a part, and the last are for those who have few.
#![forbid(unsafe_code)]

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
use qmail::home::{Home, Ids, ROLES};
use qmail::queue::accept::{self, Origin, Source};
use qmail::queue::door;
use qmail::setup;
use qmail::sys::{process, signal};
use qmail::timed::{Deadline, Reader};
use qmail::trouble::{Trouble, wording};
use qmail::{fd, program};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// Children at one time: each holds a few descriptors and about 300 KiB.
const CHILDREN_MAX: usize = 240;

/// Of these, kept for the accounts of the home (smtpd, bounces, aliases): a flood by users leaves them free.
const RESERVED: usize = 80;

/// What is left for everybody else.
const STRANGERS_MAX: usize = CHILDREN_MAX - RESERVED;

/// Children at one time for one person that is not the home's.
const PER_PERSON_MAX: usize = 40;

/// The last children of the strangers are for people who have fewer than this many: who sends one message
/// gets in beside a few who send as many as they can.
const FEW: usize = 4;

/// So many are kept for them.
const FEW_SHARE: usize = 40;

/// From here on a uid is not a person: people own blocks of so many subordinate ids (subuid(5)), and each is
/// theirs to use for the asking. A block counts as one person.
const BLOCK: u32 = 65_536;

/// A caller that connected must hand over its descriptors within this time.
const REQUEST_SECONDS: u64 = 60;

/// A caller that sends not one byte for so long is given up.
const STALL_SECONDS: u64 = 1200;

/// The watchdog strikes a little later than the wait it watches: by a signal that kills, also out of a read
/// from a file system that does not answer.
const WATCHDOG_SECONDS: u32 = STALL_SECONDS as u32 + 30;

/// A read that blocks although there was something to read (another reader took it) is interrupted so often,
/// to see whether the caller is still there.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// The parent ends a child at this age, should even its watchdog not have (a minute after its lifetime).
const CHILD_SECONDS: u64 = accept::LIFETIME_SECONDS + 60;

/// A child that a sick disk holds does not die at once.
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
    let mut server = ManuallyDrop::new(Server { home, listener, lock, children: Vec::new() });
    while !signal::take(Signal::SIGTERM) {
        server.turn();
    }
    // Children finish what they have; they hold neither lock nor socket.
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

struct Child {
    pid: Pid,
    uid: Uid,
    deadline: Deadline,
}

struct Server {
    home: Home,
    listener: OwnedFd,
    lock: Flock<OwnedFd>,
    children: Vec<Child>,
}

impl Server {
    /// Waits for a connection, a child's end, a deadline or a signal, and serves what came.
    fn turn(&mut self) {
        let nearest = self.children.iter().fold(Deadline::never(), |d, child| d.or(child.deadline));
        let room = self.children.len() < CHILDREN_MAX;
        let events = if room { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds = [PollFd::new(self.listener.as_fd(), events)];
        let ready = signal::wait(&mut fds, nearest.left());
        if room && ready.is_ok_and(|n| n > 0) {
            self.accept();
        }
        self.reap();
        for child in self.children.iter_mut().filter(|child| child.deadline.passed()) {
            let _ = kill(child.pid, Signal::SIGKILL);
            child.deadline = Deadline::seconds(KILL_AGAIN_SECONDS);
        }
    }

    fn reap(&mut self) {
        signal::take(Signal::SIGCHLD);
        while let Some((pid, _)) = process::reap() {
            self.children.retain(|child| child.pid != pid);
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
        let uid = Uid::from_raw(peer.uid());
        let room = self.has_room_for(uid);
        let origin = Origin { uid, pid: Pid::from_raw(peer.pid()) };
        // The child must not keep what makes this the server.
        let servers = [self.listener.as_raw_fd(), self.lock.as_raw_fd()];
        // Also who is refused may have passed descriptors: a child closes them, by ending.
        let forked = process::fork_heir(connection, |connection| {
            servers.into_iter().for_each(process::close);
            if room {
                return take_message(&self.home, origin, connection);
            }
            door::send_answer(connection, code::CUSTOM, BUSY);
            code::CUSTOM
        });
        match forked {
            Ok(pid) if room => {
                self.children.push(Child { pid, uid, deadline: Deadline::seconds(CHILD_SECONDS) });
            }
            Ok(_) => {}
            Err((errno, connection)) => {
                door::send_answer(&connection, code::MEMORY, b"");
                complain("fork", errno);
            }
        }
    }

    /// The home's accounts may fill everything; all others share the rest, each person a part of it.
    fn has_room_for(&self, uid: Uid) -> bool {
        if is_account(self.home.ids(), uid) {
            return true;
        }
        let strangers = || self.children.iter().filter(|child| !is_account(self.home.ids(), child.uid));
        let own = strangers().filter(|child| person(child.uid) == person(uid)).count();
        let share = if own < FEW { STRANGERS_MAX } else { STRANGERS_MAX - FEW_SHARE };
        own < PER_PERSON_MAX && strangers().count() < share
    }
}

/// A child: the work of qmail-queue on the caller's descriptors.
fn take_message(home: &Home, origin: Origin, connection: &OwnedFd) -> i32 {
    use Signal::*;
    signal::ignore(&[SIGPIPE, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU, SIGXFSZ]);
    signal::exit_on(&[SIGILL, SIGABRT, SIGFPE, SIGBUS, SIGSEGV, SIGSYS], code::BUG);
    signal::die_of(&[SIGALRM]);
    if let Err(errno) = signal::interrupt_every(LOOK_EVERY) {
        complain("start a timer", errno);
        door::send_answer(connection, code::MEMORY, b"");
        return code::MEMORY;
    }
    signal::unblock();
    let jail = Jail::of(&programs::QMAIL_QUEUED_MESSAGE).close();
    let taken = door::receive_request(connection, Deadline::seconds(REQUEST_SECONDS));
    let number = match taken {
        _ if jail.is_err() => code::HOME,
        Ok((message, envelope)) if !door::is_readable(&message) || !door::is_readable(&envelope) => {
            code::READ
        }
        Ok((message, envelope)) => {
            let watch = fd::Standard(connection.as_raw_fd());
            let mut source = Source {
                message: Reader::with_timeout(message, Duration::from_secs(STALL_SECONDS)),
                envelope: Reader::with_timeout(envelope, Duration::from_secs(STALL_SECONDS)),
                stall: Some(WATCHDOG_SECONDS),
            };
            source.message.set_watch(watch);
            source.envelope.set_watch(watch);
            accept::accept(home, origin, source).map_or_else(|refusal| refusal.0, |_| 0)
        }
        Err(_) => code::COMMUNICATION,
    };
    // model: Q16 R4
    door::send_answer(connection, number, b"");
    number
}

fn is_account(ids: &Ids, uid: Uid) -> bool {
    ROLES.iter().any(|role| ids.role(role).is_some_and(|account| account.uid == uid))
}

/// Whom a limit counts: a uid, or the block it lies in.
fn person(uid: Uid) -> (u32, u32) {
    let uid = uid.as_raw();
    if uid < BLOCK { (0, uid) } else { (uid / BLOCK, 0) }
}

fn complain(action: &str, errno: Errno) {
    let _ = fd::write_all(
        fd::ERR,
        format!("qmail-queued: warning: unable to {action}: {}\n", wording(errno)).as_bytes(),
    );
    std::thread::sleep(PAUSE);
}
