//! Starting programs and children. All programs here are single-threaded, so a forked child may do
//! anything; a child that executes is still prepared completely before the fork, because nothing that
//! can fail belongs between.
#![allow(unsafe_code)]

use crate::environ::{self, Environ};
use crate::sys::signal;
use nix::errno::Errno;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Exit(i32),
    /// Died from this signal.
    Crash(i32),
}

impl End {
    /// From a wait status as the kernel packs it.
    fn of(status: i32) -> End {
        if libc::WIFEXITED(status) {
            End::Exit(libc::WEXITSTATUS(status))
        } else {
            End::Crash(libc::WTERMSIG(status))
        }
    }
}

/// waitpid(2) that returns only for a child that is gone: its pid and the status as the kernel packs it.
/// (nix's decoder makes an error, and a child lost, of a death by a real-time signal.)
fn waitpid(pid: libc::pid_t, flags: libc::c_int) -> Result<Option<(Pid, i32)>, Errno> {
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one int where the pointer points.
        match Errno::result(unsafe { libc::waitpid(pid, &mut status, flags) }) {
            Ok(0) => return Ok(None),
            Ok(_) if !libc::WIFEXITED(status) && !libc::WIFSIGNALED(status) => {}
            Ok(found) => return Ok(Some((Pid::from_raw(found), status))),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Waits for one child.
pub fn wait(pid: Pid) -> Result<End, Errno> {
    let ended = waitpid(pid.as_raw(), 0)?.ok_or(Errno::ECHILD)?;
    Ok(End::of(ended.1))
}

/// How a child ended; None while it lives.
pub fn try_wait(pid: Pid) -> Result<Option<End>, Errno> {
    Ok(waitpid(pid.as_raw(), libc::WNOHANG)?.map(|(_, status)| End::of(status)))
}

/// The next child that has ended, without waiting.
pub fn reap() -> Option<(Pid, End)> {
    reap_raw().map(|(pid, status)| (pid, End::of(status)))
}

/// As `reap`, with the wait status as the kernel packs it (tcpserver logs it so: exit 1 shows as 256).
pub fn reap_raw() -> Option<(Pid, i32)> {
    waitpid(-1, libc::WNOHANG).ok().flatten()
}

/// Whether this is a child of ours that has not been waited for: until then its number is nobody else's.
pub fn is_child(pid: Pid) -> bool {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::Pid(pid), look), Err(Errno::ECHILD))
}

/// Forks a child that runs `work` and exits with what it returns. Signals are as in the parent.
pub fn fork_child(work: impl FnOnce() -> i32) -> Result<Pid, Errno> {
    // SAFETY: no program here has threads, so the child is a whole copy and may allocate and do I/O.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => exit(work()),
    }
}

/// Forks a child that takes descriptors over: it begins `work` when this process has closed its copies. Whoever
/// passed a descriptor can make its last close wait for as long as it likes (SO_LINGER), also where it lies unread
/// in a connection; so the last close must never be a server's. A process that ends waits for nothing of that.
pub fn fork_heir<T>(things: T, work: impl FnOnce(&T) -> i32) -> Result<Pid, (Errno, T)> {
    let (read, write) = match crate::fd::pipe() {
        Ok(pipe) => pipe,
        Err(errno) => return Err((errno, things)),
    };
    // SAFETY: see fork_child.
    match unsafe { fork() } {
        Err(errno) => Err((errno, things)),
        Ok(ForkResult::Parent { child }) => {
            drop(things);
            drop(write);
            Ok(child)
        }
        Ok(ForkResult::Child) => {
            drop(write);
            let _ = crate::fd::read(&read, &mut [0]);
            drop(read);
            exit(work(&things))
        }
    }
}

/// Forks a sibling: a child of our parent, which gets the signal of its end. Its pid here, None in it. In the sibling
/// the C library's idea of its thread is the parent's: it must not raise signals to itself.
pub fn fork_sibling() -> Result<Option<Pid>, Errno> {
    // SAFETY: as in fork_child. Without a stack and flags that share memory clone(2) is fork; the C library's
    // handlers around fork are for threads, which there are none of.
    let result = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0) };
    let pid = Errno::result(result)?;
    Ok((pid != 0).then(|| Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))))
}

/// Forks, and goes on in both: the child's pid in the parent, None in the child.
pub fn part() -> Result<Option<Pid>, Errno> {
    // SAFETY: as in fork_child.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Ends this process as that one ended: with its code, or by its signal.
pub fn end_as(end: End) -> ! {
    match end {
        End::Exit(code) => exit(code),
        End::Crash(number) => {
            signal::unblock();
            // SAFETY: the default action of a signal, which needs no code of ours; raise touches no memory.
            unsafe {
                libc::signal(number, libc::SIG_DFL);
                libc::raise(number);
            }
            exit(BY_SIGNAL + number) // not reached: what ended one process ends another
        }
    }
}

/// Shells add this to the number of the signal.
const BY_SIGNAL: i32 = 128;

/// Ends the process now: no destructors, no flushing of std's buffers (we use none).
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit does not return and touches nothing.
    unsafe { libc::_exit(code) }
}

fn c_string(bytes: &[u8]) -> CString {
    // A NUL cannot be carried to a program; what stands before it is.
    CString::new(bytes.split(|b| *b == 0).next().unwrap_or_default()).unwrap_or_default()
}

/// A program to be started: everything a child needs, prepared before the fork.
pub struct Command<'a> {
    path: CString,
    argv: Vec<CString>,
    environ: Vec<CString>,
    directory: Option<CString>,
    descriptors: Vec<(RawFd, RawFd)>,
    borrowed: std::marker::PhantomData<BorrowedFd<'a>>,
    user: Option<(Uid, Gid, Vec<Gid>)>,
    failure: i32,
}

impl<'a> Command<'a> {
    /// `path` is executed as it is (no PATH search: see `program::find`); `argv` includes argv[0].
    pub fn new<S: AsRef<[u8]>>(path: impl AsRef<[u8]>, argv: &[S]) -> Command<'a> {
        Command {
            path: c_string(path.as_ref()),
            argv: argv.iter().map(|a| c_string(a.as_ref())).collect(),
            environ: Vec::new(),
            directory: None,
            descriptors: Vec::new(),
            borrowed: std::marker::PhantomData,
            user: None,
            failure: crate::exits::queue::EXEC,
        }
        .environ(&environ::Environ::inherited())
    }

    pub fn environ(mut self, environ: &Environ) -> Self {
        self.environ = environ.strings().iter().map(|s| c_string(s)).collect();
        self
    }

    /// Changes there in the child first.
    pub fn directory(mut self, path: impl AsRef<[u8]>) -> Self {
        self.directory = Some(c_string(path.as_ref()));
        self
    }

    /// Makes `from` the child's descriptor `to`. Everything else the child inherits must be meant to
    /// be: what we open is close-on-exec.
    pub fn descriptor(mut self, from: &'a impl AsFd, to: RawFd) -> Self {
        self.descriptors.push((from.as_fd().as_raw_fd(), to));
        self
    }

    /// Becomes this user in the child: exactly these supplementary groups, then gid, then uid.
    pub fn user(mut self, uid: Uid, gid: Gid, groups: &[Gid]) -> Self {
        self.user = Some((uid, gid, groups.to_vec()));
        self
    }

    /// The child's exit code when it cannot be made ready or executed (default 120).
    pub fn on_failure(mut self, code: i32) -> Self {
        self.failure = code;
        self
    }

    /// Forks and executes.
    pub fn spawn(&self) -> Result<Pid, Errno> {
        let argv = pointers(&self.argv);
        let environ = pointers(&self.environ);
        // SAFETY: see fork_child; the child only makes system calls on what was prepared above.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(child),
            ForkResult::Child => {
                let _ = self.become_program(&argv, &environ);
                exit(self.failure)
            }
        }
    }

    /// Executes in this process; returns only with the reason why that failed.
    pub fn exec(&self) -> Errno {
        self.become_program(&pointers(&self.argv), &pointers(&self.environ))
    }

    fn become_program(&self, argv: &[*const libc::c_char], environ: &[*const libc::c_char]) -> Errno {
        let prepared = self.arrange_descriptors().and_then(|()| {
            if let Some(directory) = &self.directory {
                nix::unistd::chdir(directory.as_c_str())?;
            }
            if let Some((uid, gid, groups)) = &self.user {
                become_user(*uid, *gid, groups)?;
            }
            Ok(())
        });
        if let Err(errno) = prepared {
            return errno;
        }
        signal::defaults();
        // SAFETY: both arrays are NULL-terminated and point into CStrings that live in `self`.
        unsafe { libc::execve(self.path.as_ptr(), argv.as_ptr(), environ.as_ptr()) };
        let errno = Errno::last();
        signal::ignore(&[nix::sys::signal::Signal::SIGPIPE]); // as program::run left it
        errno
    }

    /// Sources move out of the way first, so that no target number overwrites a source still needed.
    fn arrange_descriptors(&self) -> Result<(), Errno> {
        const OUT_OF_THE_WAY: RawFd = 20;
        let mut moved = Vec::with_capacity(self.descriptors.len());
        for (from, to) in &self.descriptors {
            // SAFETY: plain system calls on numbers; the closes below concern only our duplicates.
            let copy = unsafe { libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, OUT_OF_THE_WAY) };
            moved.push((Errno::result(copy)?, *to));
        }
        for (copy, to) in moved {
            // SAFETY: as above; dup2 clears close-on-exec on the target.
            Errno::result(unsafe { libc::dup2(copy, to) })?;
            unsafe { libc::close(copy) };
        }
        Ok(())
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

/// Groups, gid, uid, in this order, for good. When everything is already so (an own home, where one
/// user runs all), nothing is asked of the system.
pub fn become_user(uid: Uid, gid: Gid, groups: &[Gid]) -> Result<(), Errno> {
    if nix::unistd::geteuid() != Uid::from_raw(0)
        && uid == nix::unistd::getuid()
        && uid == nix::unistd::geteuid()
    {
        return if gid == nix::unistd::getgid() { Ok(()) } else { nix::unistd::setgid(gid) };
    }
    nix::unistd::setgroups(groups)?;
    nix::unistd::setgid(gid)?;
    nix::unistd::setuid(uid)
}

/// Whether this program runs with more rights than its caller (set-uid, set-gid, file capabilities): the
/// caller's environment is not to be believed.
pub fn secure_execution() -> bool {
    // SAFETY: reads a word the kernel put beside our arguments.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Closes a descriptor number, open or not.
pub fn close(number: RawFd) {
    // SAFETY: callers close numbers that nothing of theirs uses again (tcpserver: 0 and 1 after listening;
    // qmail-queued's children: what is the server's).
    unsafe { libc::close(number) };
}

/// Whether this kernel can filter system calls.
pub fn seccomp_is_known() -> bool {
    // SAFETY: prctl with integer arguments touches no memory of ours.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) != -1 }
}
