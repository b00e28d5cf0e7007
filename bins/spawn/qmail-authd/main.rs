//! qmail-authd - the door of logins: runs checkers, and what they let in, for those who may not
//!
//! called by  a service of its own     runs as  root (own home: the owner), in the home
//! socket     run/auth: a login and two descriptors in, an exit code out (qmail::auth::door)
//! fd 2       the log: a line a login, troubles
//! exit       0 after TERM, 111 cannot start, or its socket is another's
//! env        PATH goes to the checkers, after it the home's bin
//! touches    run/auth (makes); reads control/authprograms; starts what is listed there
//! jail       rlimits: checkers and users' programs inherit all else
//!
//! qmail-popup, as qmaild, talks to the network and knows no secrets of the system; this program knows
//! no network. It reads one packet of fixed form, looks for the command line it asks for in a list that
//! root wrote, and starts it with a clean environment. `limits` says how fast passwords may be tried,
//! `guard` is the child that stays beside a session.
//!
//! `run` belongs to qmailq. Nothing is opened, or given a mode or an owner, by a name in there: the socket
//! is bound under a name of its own with the right mode from the start, and renamed.
#![forbid(unsafe_code)]

mod guard;
mod limits;
mod log;

use guard::Session;
use jail::{Jail, programs};
use limits::{Limits, Login, Outcome, Source, Ticket, Verdict};
use log::Attempt;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockaddrStorage, UnixAddr, accept4, bind, getpeername, getsockopt,
    listen, socket, sockopt,
};
use nix::sys::stat::{Mode, fstat, umask};
use nix::unistd::{Gid, Pid, Uid};
use qmail::auth::Remarks;
use qmail::auth::door::{self, Answer, Received, Request};
use qmail::auth::services::{self, Service};
use qmail::environ::{self, Environ};
use qmail::home::Home;
use qmail::sys::process::{self, End};
use qmail::sys::{descriptor, signal};
use qmail::trouble::{Trouble, wording};
use qmail::trust::{Kind, Thing};
use qmail::{exits, fd, program, setup};
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Logins and sessions at one time: one descriptor here, and two processes, each.
const FRONTS_MAX: usize = 600;

/// Of these, for one uid that is not ours: the rest is for what root does by hand.
const PER_UID_MAX: usize = 560;

/// Logins that wait for a check, each with two more descriptors and up to 80 KiB; and those of one account.
const WAITING_MAX: usize = 64;
const WAITING_PER_ACCOUNT_MAX: usize = 8;

/// Requests that are read before those that may not wait are sent away.
const REQUESTS_A_TURN: usize = 16;

/// A front that connected must say what it wants within this time.
const REQUEST: Duration = Duration::from_secs(60);

/// A login that may not be checked by then is a temporary failure.
const WAIT: Duration = Duration::from_secs(20);

/// Between two looks whether one that waits may be checked.
const LOOK: Duration = Duration::from_millis(250);

/// A check that has not ended by then is a session, for what counts checks at one time.
const CHECK: Duration = Duration::from_secs(3);

/// What ends later was a session, whatever its exit code: no checker takes so long to refuse.
const SESSION: Duration = Duration::from_secs(120);

/// Between two looks whether run/auth still leads here.
const SELF: Duration = Duration::from_secs(60);

/// Connections waiting to be taken.
const BACKLOG: i32 = 128;

/// Pause after an accept or a fork that failed for want of resources.
const PAUSE: Duration = Duration::from_millis(200);

/// control/authprograms: some hundred lines.
const LIST_MAX: usize = 64 * 1024;

/// The exit codes of a checker: not acceptable, and misused.
const REFUSED: i32 = 1;
const MISUSED: i32 = 2;

fn main() {
    program::run("qmail-authd", "qmail-authd", serve)
}

fn serve(args: program::Args) -> Result<(), Trouble> {
    args.none()?;
    descriptor::close_above(2); // a session shall have the standard ones and no others
    let home = Home::find()?;
    Jail::of(&programs::QMAIL_AUTHD).close()?;
    let us = home.ids().role("root").filter(|_| home.ids().is_own()).map_or(Uid::from_raw(0), |o| o.uid);
    if Uid::effective() != us {
        return Err(Trouble::temporary(format!("must be run as uid {us}")));
    }
    home.enter()?;
    check_trust(&home)?;
    let listener = open_socket(&home)?;
    // HUP is caught and nothing is done: there is nothing to read again, and sessions need their children.
    signal::catch(&[Signal::SIGTERM, Signal::SIGCHLD, Signal::SIGHUP]);
    let limits = Limits::new().map_err(|e| Trouble::unable("get", "random bytes", e))?;
    // Never dropped: with the listener would go connections nobody took, and what was passed in them.
    let mut server = ManuallyDrop::new(Server {
        us,
        home,
        listener: Some(listener),
        fronts: Vec::new(),
        rest: VecDeque::new(),
        limits,
        ended: Vec::new(),
    });
    let mut look = Instant::now() + SELF;
    while !signal::take(Signal::SIGTERM) {
        server.turn(look)?;
        if Instant::now() >= look {
            if door::listener(&server.home).is_ok_and(|found| found != Some(nix::unistd::getpid())) {
                return Err(Trouble::temporary(format!("{} is another's, or gone", door::SOCKET)));
            }
            look = Instant::now() + SELF;
        }
    }
    server.leave();
    Ok(())
}

/// What it will rely on, before it does: the list, and the checkers in it. What is wrong is better heard now than
/// at the first login.
fn check_trust(home: &Home) -> Result<(), Trouble> {
    let mut things = setup::place(home);
    things.push(home.thing(Kind::Directory, "control"));
    things.push(home.thing(Kind::File, "control/authprograms").optional());
    setup::require(home, &things)?;
    let checkers = list(home)?;
    let programs = checkers.iter().map(|service| program_path(home, service));
    let things: Vec<Thing> = programs.map(|path| setup::program(home, &path).optional()).collect();
    setup::require(home, &things)
}

/// Who is already there is found by asking; whoever takes our name later, by looking for ourselves.
fn open_socket(home: &Home) -> Result<OwnedFd, Trouble> {
    let trouble = |errno| Trouble::unable("create socket", door::SOCKET, errno);
    if door::listener(home).map_err(|e| Trouble::unable("connect to", door::SOCKET, e))?.is_some() {
        return Err(Trouble::temporary("qmail-authd is already running"));
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, door::TYPE, flags, None).map_err(trouble)?;
    let fresh = "run/auth.new";
    let _ = nix::unistd::unlink(fresh); // a name only: what it leads to is nothing to us
    bind_with_mode(home, &listener, fresh).map_err(trouble)?;
    Backlog::new(BACKLOG).and_then(|backlog| listen(&listener, backlog)).map_err(trouble)?;
    nix::fcntl::renameat(nix::fcntl::AT_FDCWD, fresh, nix::fcntl::AT_FDCWD, door::SOCKET).map_err(trouble)?;
    match door::listener(home) {
        Ok(Some(pid)) if pid == nix::unistd::getpid() => Ok(listener),
        _ => Err(Trouble::temporary("another qmail-authd starts at the same moment")),
    }
}

/// The mode is right from the start: for us and, in a system home, the group of qmaild.
fn bind_with_mode(home: &Home, listener: &OwnedFd, name: &str) -> Result<(), Errno> {
    let group = home.ids().role("qmaild").filter(|_| !home.ids().is_own()).map(|qmaild| qmaild.gid);
    let closed = if group.is_some() { 0o117 } else { 0o177 };
    let (mask, gid) = (umask(Mode::from_bits_truncate(closed)), Gid::effective());
    let bound = group
        .map_or(Ok(()), nix::unistd::setegid)
        .and_then(|()| UnixAddr::new(name))
        .and_then(|address| bind(listener.as_raw_fd(), &address));
    umask(mask);
    nix::unistd::setegid(gid)?;
    bound
}

/// The services, read for each request.
fn list(home: &Home) -> Result<Vec<Service>, Trouble> {
    let name = "control/authprograms";
    let trouble = |errno| Trouble::unable("read", name, errno);
    let text = match fd::open_read(home.control().path("authprograms")) {
        Err(Errno::ENOENT) => services::DEFAULT.to_vec(),
        Err(errno) => return Err(trouble(errno)),
        Ok(file) => {
            let found = fstat(&file).map_err(trouble)?;
            if !home.ids().is_own() && (found.st_uid != 0 || found.st_mode & 0o022 != 0) {
                return Err(Trouble::temporary(format!(
                    "refusing {name}: root must own it and nobody else may write it"
                )));
            }
            fd::read_to_end(&file, LIST_MAX).map_err(trouble)?
        }
    };
    services::parse(&text)
        .map_err(|line| Trouble::temporary([b"bad line in control/authprograms: ", line.as_slice()].concat()))
}

/// Whether a checker's exit code says that the login is wrong. Checkers of the field refuse with 3 to 20 too.
fn is_refusal(code: i32) -> bool {
    code != MISUSED && (1..100).contains(&code)
}

/// One connection of a front.
struct Front {
    connection: OwnedFd,
    uid: Uid,
    stage: Stage,
}

enum Stage {
    /// Has said nothing yet.
    Silent { until: Instant },
    /// Wants a check.
    Waiting { asked: Box<Asked>, until: Instant },
    /// Its child is at work.
    Running { pid: Pid, ticket: Ticket, attempt: Attempt, since: Instant, remarks: Option<Remarks> },
    /// It has been decided, and will be told later.
    Held { code: i32, until: Instant },
}

impl Stage {
    /// When there is something to do without an event.
    fn due(&self) -> Option<Instant> {
        match self {
            Stage::Silent { until } | Stage::Held { until, .. } => Some(*until),
            Stage::Waiting { until, .. } => Some((*until).min(Instant::now() + LOOK)),
            Stage::Running { .. } => None,
        }
    }
}

/// A request that was found good.
struct Asked {
    request: Request,
    input: OwnedFd,
    output: OwnedFd,
    service: Service,
    login: Login,
    attempt: Attempt,
}

struct Server {
    us: Uid,
    home: Home,
    /// None in a child.
    listener: Option<OwnedFd>,
    fronts: Vec<Front>,
    /// Those that `admit` has still to look at.
    rest: VecDeque<Front>,
    limits: Limits,
    /// What fronts have passed, to be closed by a child: whoever passed a descriptor can make its last close wait
    /// as long as it likes (SO_LINGER), also where it lies unread in a connection.
    ended: Vec<OwnedFd>,
}

impl Server {
    /// Waits for something to happen, and does what there is to do.
    fn turn(&mut self, look: Instant) -> Result<(), Trouble> {
        let ready = self.wait(look)?;
        let mut ready = ready.into_iter();
        if ready.next().unwrap_or(false) {
            self.accept();
        }
        let mut requests = 0;
        for Front { connection, uid, stage } in std::mem::take(&mut self.fronts) {
            let mut ready = ready.next().unwrap_or(false); // none for the one just accepted
            if ready && matches!(stage, Stage::Silent { .. }) {
                requests += 1;
                ready = requests <= REQUESTS_A_TURN;
            }
            let stage = self.step(&connection, uid, stage, ready);
            self.keep(connection, uid, stage);
        }
        self.reap();
        self.admit();
        self.bury();
        Ok(())
    }

    /// A front goes on, or has ended.
    fn keep(&mut self, connection: OwnedFd, uid: Uid, stage: Option<Stage>) {
        match stage {
            Some(stage) => self.fronts.push(Front { connection, uid, stage }),
            None => self.ended.push(connection),
        }
    }

    /// A login that is not checked.
    fn dismiss(&mut self, asked: Box<Asked>) {
        self.ended.extend([asked.input, asked.output]);
    }

    /// Closes what has ended, by a child's end.
    fn bury(&mut self) {
        if !self.ended.is_empty()
            && let Err((errno, _)) = process::fork_heir(std::mem::take(&mut self.ended), |_| exits::SUCCESS)
        {
            pause("fork", errno);
        }
    }

    /// Whether the listener and each front, in their order, have something for us.
    fn wait(&self, look: Instant) -> Result<Vec<bool>, Trouble> {
        let now = Instant::now();
        let due = self.fronts.iter().filter_map(|front| front.stage.due()).fold(look, Instant::min);
        let Some(listener) = &self.listener else { return Ok(Vec::new()) };
        let room = self.fronts.len() < FRONTS_MAX;
        let mut fds = Vec::with_capacity(self.fronts.len() + 1);
        fds.push(PollFd::new(listener.as_fd(), if room { PollFlags::POLLIN } else { PollFlags::empty() }));
        // The end of a connection comes unasked. Where a child is at work it is the child's affair.
        let waiting = self.fronts.iter().filter(|front| !matches!(front.stage, Stage::Running { .. }));
        fds.extend(waiting.map(|front| {
            let is_silent = matches!(front.stage, Stage::Silent { .. });
            let events = if is_silent { PollFlags::POLLIN } else { PollFlags::empty() };
            PollFd::new(front.connection.as_fd(), events)
        }));
        let happened = signal::wait(&mut fds, Some(due.saturating_duration_since(now))).is_ok_and(|n| n > 0);
        let mut found = fds.iter().map(|fd| happened && fd.any().unwrap_or(false));
        let listener = found.next().unwrap_or(false);
        let fronts = self.fronts.iter().map(|front| match front.stage {
            Stage::Running { .. } => false,
            _ => found.next().unwrap_or(false),
        });
        Ok(std::iter::once(listener).chain(fronts.collect::<Vec<_>>()).collect())
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let connection = match accept4(listener.as_raw_fd(), flags).and_then(fd::take) {
            Ok(connection) => connection,
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => return,
            Err(errno) => return pause("accept a connection", errno),
        };
        let Ok(peer) = getsockopt(&connection, sockopt::PeerCredentials) else {
            return self.ended.push(connection);
        };
        let uid = Uid::from_raw(peer.uid());
        let qmaild = self.home.ids().role("qmaild").is_some_and(|qmaild| qmaild.uid == uid);
        if !(uid.is_root() || uid == self.us || qmaild) {
            door::send_answer(&connection, &Answer::of(exits::TEMPORARY));
            self.ended.push(connection);
            return log::complain(&Trouble::temporary(format!("refused a connection by uid {uid}")));
        }
        let own = self.fronts.iter().filter(|front| front.uid == uid).count();
        if own >= PER_UID_MAX && uid != self.us {
            door::send_answer(&connection, &Answer::of(exits::TEMPORARY));
            self.ended.push(connection);
            return log::complain(&Trouble::temporary(format!("too many logins at once by uid {uid}")));
        }
        let stage = Stage::Silent { until: Instant::now() + REQUEST };
        self.fronts.push(Front { connection, uid, stage });
    }

    /// What happened to a front, or what its time brings; None when there is nothing left of it.
    fn step(&mut self, connection: &OwnedFd, uid: Uid, stage: Stage, ready: bool) -> Option<Stage> {
        let now = Instant::now();
        match stage {
            Stage::Silent { .. } if ready => match door::receive(connection) {
                Ok(Received::Request(request, input, output)) => {
                    self.take(connection, request, input, output)
                }
                Ok(Received::Rate(rate)) => {
                    let may = self.limits.may_send(&rate, now);
                    door::send_answer(connection, &Answer::of(if may { exits::SUCCESS } else { REFUSED }));
                    None
                }
                Ok(Received::End) => None,
                Err(Errno::EAGAIN | Errno::EINTR) => Some(stage),
                wrong => {
                    door::send_answer(connection, &Answer::of(exits::TEMPORARY));
                    log::complain(&Trouble::temporary(format!("uid {uid} sent what is no request")));
                    if let Ok(Received::Wrong(passed)) = wrong {
                        self.ended.extend(passed);
                    }
                    None
                }
            },
            Stage::Silent { until } if now >= until => None,
            Stage::Held { .. } if ready => None, // it has left
            Stage::Waiting { asked, .. } if ready => {
                self.dismiss(asked);
                None
            }
            Stage::Waiting { asked, until } if now >= until => {
                door::send_answer(connection, &Answer::of(exits::TEMPORARY));
                asked.attempt.end("late");
                self.dismiss(asked);
                None
            }
            Stage::Held { code, until } if now >= until => {
                door::send_answer(connection, &Answer::of(code));
                None
            }
            Stage::Running { pid, mut ticket, attempt, since, remarks } => {
                if now.saturating_duration_since(since) >= CHECK {
                    self.limits.release(&mut ticket);
                }
                Some(Stage::Running { pid, ticket, attempt, since, remarks })
            }
            stage => Some(stage),
        }
    }

    /// A request has come.
    fn take(
        &mut self,
        connection: &OwnedFd,
        request: Request,
        input: OwnedFd,
        output: OwnedFd,
    ) -> Option<Stage> {
        let address = address(&input, &request);
        let name = request.fields.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        let service = list(&self.home).map(|list| services::select(&list, &request.words).cloned());
        let word = request.words.first().map(Vec::as_slice).unwrap_or_default();
        let (answer, result) = match service {
            Ok(Some(service)) => {
                let attempt = Attempt::new(&service.name, &name, address);
                let login = self.limits.login(&request.fields, Source::of(address));
                let asked = Asked { request, input, output, service, login, attempt };
                return Some(Stage::Waiting { asked: Box::new(asked), until: Instant::now() + WAIT });
            }
            Ok(None) => (MISUSED, "no such service"),
            Err(trouble) => {
                log::complain(&trouble);
                (exits::TEMPORARY, "no services")
            }
        };
        Attempt::new(word, &name, address).end(result);
        self.ended.extend([input, output]);
        door::send_answer(connection, &Answer::of(answer));
        None
    }

    /// Children that have ended.
    fn reap(&mut self) {
        signal::take(Signal::SIGCHLD);
        while let Some((pid, end)) = process::reap() {
            let is_its =
                |front: &Front| matches!(front.stage, Stage::Running { pid: child, .. } if child == pid);
            let Some(at) = self.fronts.iter().position(is_its) else { continue };
            let Front { connection, uid, stage } = self.fronts.remove(at);
            let Stage::Running { ticket, attempt, since, remarks, .. } = stage else { continue };
            let code = match end {
                End::Exit(code) => code,
                End::Crash(_) => exits::TEMPORARY,
            };
            let answer = Answer::with(code, remarks.as_ref());
            let stage = self.settle(&connection, answer, ticket, &attempt, since);
            self.keep(connection, uid, stage);
        }
    }

    /// A checker, or what it has become, has ended.
    fn settle(
        &mut self,
        connection: &OwnedFd,
        answer: Answer,
        ticket: Ticket,
        attempt: &Attempt,
        since: Instant,
    ) -> Option<Stage> {
        let code = answer.code;
        let now = Instant::now();
        let was_session = now.saturating_duration_since(since) >= SESSION;
        let gone = has_left(connection);
        // Who leaves before the answer must not have tried for nothing: a wrong password is silent.
        let outcome = match code {
            exits::SUCCESS => Outcome::Accepted,
            _ if was_session => Outcome::Neither,
            code if is_refusal(code) || gone => Outcome::Refused,
            _ => Outcome::Neither,
        };
        let delay = self.limits.settle(ticket, outcome, now);
        attempt.end(&match code {
            exits::SUCCESS => "ok".to_owned(),
            _ if gone => "left".to_owned(),
            MISUSED => "misused".to_owned(),
            code if is_refusal(code) => format!("refused {code}"),
            code => format!("temporary {code}"),
        });
        if is_refusal(code) && !was_session && !gone {
            return Some(Stage::Held { code, until: now + delay });
        }
        door::send_answer(connection, &answer);
        None
    }

    /// Starts the checks that may be started, first come, first served; of the others some may wait.
    fn admit(&mut self) {
        let mut waiting: Vec<Login> = Vec::new();
        self.rest = std::mem::take(&mut self.fronts).into();
        while let Some(Front { connection, uid, stage }) = self.rest.pop_front() {
            let stage = match stage {
                Stage::Waiting { asked, until } => self.check(&connection, asked, until, &mut waiting),
                stage => Some(stage),
            };
            self.keep(connection, uid, stage);
        }
    }

    fn check(
        &mut self,
        connection: &OwnedFd,
        asked: Box<Asked>,
        until: Instant,
        waiting: &mut Vec<Login>,
    ) -> Option<Stage> {
        let now = Instant::now();
        match self.limits.admit(&asked.login, now) {
            Verdict::Check(ticket) => self.start(connection, *asked, ticket),
            Verdict::Refuse(delay) => {
                asked.attempt.end("refused unasked");
                self.dismiss(asked);
                Some(Stage::Held { code: REFUSED, until: now + delay })
            }
            Verdict::Wait => {
                let same = waiting.iter().filter(|login| login.is_of_same_account(&asked.login)).count();
                if waiting.len() >= WAITING_MAX || same >= WAITING_PER_ACCOUNT_MAX {
                    asked.attempt.end("too many wait");
                    door::send_answer(connection, &Answer::of(exits::TEMPORARY));
                    self.dismiss(asked);
                    return None;
                }
                waiting.push(asked.login);
                Some(Stage::Waiting { asked, until })
            }
        }
    }

    /// Forks the child that runs the checker.
    fn start(&mut self, connection: &OwnedFd, asked: Asked, ticket: Ticket) -> Option<Stage> {
        let Asked { mut request, input, output, service, attempt, .. } = asked;
        let parent = nix::unistd::getpid();
        let mut fields = std::mem::take(&mut request.fields);
        let remarks = match Remarks::wanted(&fields) {
            Ok(remarks) => remarks,
            Err(errno) => {
                self.limits.settle(ticket, Outcome::Neither, Instant::now());
                attempt.end("temporary 111");
                door::send_answer(connection, &Answer::of(exits::TEMPORARY));
                self.ended.extend([input, output]);
                pause("make a file", errno);
                return None;
            }
        };
        let program = program_path(&self.home, &service);
        let mut environ = environment(&self.home, &request);
        if let Some(remarks) = &remarks {
            remarks.announce(&mut environ);
        }
        let directory = self.home.path("");
        let passed = [input, output];
        let forked = match fd::pipe() {
            Err(errno) => Err((errno, passed)),
            Ok((cleared, clearing)) => {
                let forked = process::fork_heir(passed, |passed| {
                    // What is other fronts' must not stay open in here: they would not notice their end.
                    self.listener = None;
                    self.fronts.clear();
                    self.rest.clear();
                    self.ended.clear();
                    process::close(clearing.as_raw_fd());
                    process::close(cleared.as_raw_fd());
                    let fields = std::mem::take(&mut fields);
                    let words = &service.words;
                    guard::run(Session {
                        connection,
                        passed,
                        fields,
                        program,
                        words,
                        environ,
                        directory,
                        parent,
                        remarks: remarks.as_ref(),
                    })
                });
                // As long as we have them all, none of these closes was the last one.
                drop(clearing);
                let _ = fd::read(&cleared, &mut [0]);
                forked
            }
        };
        drop(fields);
        match forked {
            Ok(pid) => Some(Stage::Running { pid, ticket, attempt, since: Instant::now(), remarks }),
            Err((errno, passed)) => {
                self.limits.settle(ticket, Outcome::Neither, Instant::now());
                attempt.end("temporary 111");
                door::send_answer(connection, &Answer::of(exits::TEMPORARY));
                self.ended.extend(passed);
                pause("fork", errno);
                None
            }
        }
    }

    /// Sessions go on, each with its child beside it; who waits for an answer gets the one there is.
    fn leave(&mut self) {
        for front in &self.fronts {
            match front.stage {
                Stage::Running { .. } => {}
                Stage::Held { code, .. } => door::send_answer(&front.connection, &Answer::of(code)),
                _ => door::send_answer(&front.connection, &Answer::of(exits::TEMPORARY)),
            }
        }
    }
}

/// Where the checker is: along PATH, else in the home.
fn program_path(home: &Home, service: &Service) -> Vec<u8> {
    let name = service.words.first().map(Vec::as_slice).unwrap_or_default();
    program::find(name).unwrap_or_else(|| [home.path("bin/"), name.to_vec()].concat())
}

/// Nothing of ours but PATH, nothing of the front's but what it may say about the connection.
fn environment(home: &Home, request: &Request) -> Environ {
    let mut path = environ::get("PATH").unwrap_or_else(|| b"/bin:/usr/bin".to_vec());
    let bin = home.path("bin");
    if !path.split(|b| *b == b':').any(|directory| directory == bin) {
        path = [path, bin].join(&b':'); // checkers look for their program along PATH only
    }
    let mut environ = Environ::empty();
    environ.set("PATH", path);
    environ.set("QMAIL_HOME", home.path(""));
    for (name, value) in &request.environ {
        environ.set(name, value);
    }
    environ
}

/// Who is at the other end: the kernel's word if the descriptor is a connection, else the front's.
fn address(input: &OwnedFd, request: &Request) -> Option<IpAddr> {
    if let Ok(peer) = getpeername::<SockaddrStorage>(input.as_raw_fd()) {
        if let Some(peer) = peer.as_sockaddr_in() {
            return Some(IpAddr::V4(peer.ip()));
        }
        if let Some(peer) = peer.as_sockaddr_in6() {
            return Some(IpAddr::V6(peer.ip()));
        }
    }
    std::str::from_utf8(request.variable("TCPREMOTEIP")?).ok()?.parse().ok()
}

/// Whether the front has closed its end.
fn has_left(connection: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(connection.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

/// For want of resources: to try again at once would only spin.
fn pause(action: &str, errno: Errno) {
    log::complain(&Trouble::temporary(format!("unable to {action}: {}", wording(errno))));
    std::thread::sleep(PAUSE);
}
