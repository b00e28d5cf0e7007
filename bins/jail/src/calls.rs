//! calls - groups of system calls, as programs need them
//!
//! Lists hold what musl, glibc and std make of the functions we use, on every architecture; a call that an
//! architecture does not have is left out there. None has execve, fork, ptrace, kill, mount,
//! clone and ioctl (but for the few named), or memory that may be executed - except where a program loads libraries
//! (`LIBRARIES`).
#![forbid(unsafe_code)]

/// A system call.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// As `SYS_read`.
    pub name: &'static str,
    pub number: i64,
    /// Only when each of these arguments has one of its values.
    pub only: &'static [Only],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Only {
    /// Counted from 0.
    pub argument: u8,
    /// Bits that are looked at.
    pub mask: u32,
    pub values: &'static [u32],
    /// The same in words.
    pub say: &'static str,
}

/// Calls that go together.
#[derive(Debug)]
pub struct Group {
    pub name: &'static str,
    pub calls: &'static [Call],
}

macro_rules! calls {
    ($($(#[$there:meta])* $call:ident $(($($only:expr),+))?),* $(,)?) => {
        &[$($(#[$there])* Call {
            name: stringify!($call),
            number: libc::$call,
            only: &[$($($only),+)?],
        }),*]
    };
}

const ALL: u32 = 0xffff_ffff;

const NOT_EXECUTABLE: Only =
    Only { argument: 2, mask: libc::PROT_EXEC as u32, values: &[0], say: "never executable" };

/// Of TCP and UDP only: Landlock does not see the ports of other protocols, and multipath TCP speaks to every
/// server of TCP.
const TCP_OR_UDP: Only = Only {
    argument: 2,
    mask: ALL,
    values: &[0, libc::IPPROTO_TCP as u32, libc::IPPROTO_UDP as u32],
    say: "TCP, UDP",
};

/// MSG_FASTOPEN connects while it sends, and Landlock does not see it.
const fn no_connecting(flags_at: u8) -> Only {
    Only { argument: flags_at, mask: libc::MSG_FASTOPEN as u32, values: &[0], say: "no MSG_FASTOPEN" }
}

/// The limits of another process of the same user may keep it from its work.
const ITSELF: Only = Only { argument: 0, mask: ALL, values: &[0], say: "of itself" };

/// Every program: its memory, its descriptors, clocks, signals to itself, its end.
pub static RUN: Group = Group {
    name: "run",
    calls: calls![
        SYS_read,
        SYS_readv,
        SYS_write,
        SYS_writev,
        SYS_close,
        SYS_lseek,
        SYS_fstat,
        SYS_fcntl,
        #[cfg(target_arch = "x86_64")]
        SYS_poll,
        SYS_ppoll,
        SYS_brk,
        SYS_mmap(NOT_EXECUTABLE),
        SYS_mprotect(NOT_EXECUTABLE),
        SYS_mremap,
        SYS_munmap,
        SYS_madvise,
        SYS_futex,
        SYS_getrandom,
        SYS_clock_gettime,
        SYS_gettimeofday,
        SYS_clock_nanosleep,
        SYS_nanosleep,
        SYS_restart_syscall,
        SYS_rt_sigaction,
        SYS_rt_sigprocmask,
        SYS_rt_sigreturn,
        SYS_sigaltstack,
        SYS_getpid,
        SYS_gettid,
        SYS_getuid,
        SYS_geteuid,
        SYS_exit,
        SYS_exit_group,
    ],
};

/// Opening, listing and looking at files, where Landlock allows it.
pub static FILES: Group = Group {
    name: "files",
    calls: calls![
        #[cfg(target_arch = "x86_64")]
        SYS_open,
        SYS_openat,
        SYS_getdents64,
        SYS_pread64,
        #[cfg(target_arch = "x86_64")]
        SYS_stat,
        #[cfg(target_arch = "x86_64")]
        SYS_lstat,
        SYS_newfstatat,
        SYS_statx,
    ],
};

/// Removing names.
pub static UNLINK: Group = Group {
    name: "unlink",
    calls: calls![
        #[cfg(target_arch = "x86_64")]
        SYS_unlink,
        SYS_unlinkat,
    ],
};

/// Two sockets that are connected to each other, to pass one of them on.
pub static PAIR: Group = Group {
    name: "pair",
    calls: calls![SYS_socketpair(Only {
        argument: 0,
        mask: ALL,
        values: &[libc::AF_UNIX as u32],
        say: "AF_UNIX"
    })],
};

/// Renaming within what Landlock allows.
pub static RENAME: Group = Group {
    name: "rename",
    calls: calls![
        #[cfg(target_arch = "x86_64")]
        SYS_rename,
        #[cfg(not(target_arch = "riscv64"))]
        SYS_renameat,
        SYS_renameat2,
    ],
};

/// A second name for a file.
pub static LINK: Group = Group {
    name: "link",
    calls: calls![
        #[cfg(target_arch = "x86_64")]
        SYS_link,
        SYS_linkat,
    ],
};

/// Making files and names durable.
pub static SYNC: Group =
    Group { name: "sync", calls: calls![SYS_fsync, SYS_fdatasync, SYS_syncfs, SYS_sync_file_range] };

/// Reading and writing at a place of a file.
pub static PATCH: Group = Group { name: "patch", calls: calls![SYS_pread64, SYS_pwrite64] };

/// Locking whole files.
pub static LOCK: Group = Group { name: "lock", calls: calls![SYS_flock] };

/// Clocks that strike.
pub static ALARM: Group = Group {
    name: "alarm",
    calls: calls![
        #[cfg(target_arch = "x86_64")]
        SYS_alarm,
        SYS_setitimer,
        SYS_timer_create,
        SYS_timer_settime,
        SYS_timer_delete,
    ],
};

/// Talking over sockets that are open.
pub static TALK: Group = Group {
    name: "talk",
    calls: calls![
        SYS_sendto(no_connecting(3)),
        SYS_sendmsg(no_connecting(2)),
        SYS_recvfrom,
        SYS_recvmsg,
        SYS_getsockopt,
        SYS_setsockopt,
        SYS_getsockname,
        SYS_getpeername,
        SYS_shutdown,
    ],
};

/// How a child ended.
pub static WAIT: Group = Group { name: "wait", calls: calls![SYS_wait4] };

/// New pipes.
pub static PIPES: Group = Group { name: "pipes", calls: calls![SYS_pipe2] };

/// The connection gives way to its TLS session.
pub static UPGRADE: Group = Group {
    name: "upgrade",
    calls: calls![
        #[cfg(target_arch = "x86_64")]
        SYS_dup2,
        SYS_dup3,
    ],
};

/// Is it a terminal?
pub static TERMINAL: Group = Group {
    name: "terminal",
    calls: calls![SYS_ioctl(Only {
        argument: 1,
        mask: ALL,
        values: &[libc::TIOCGWINSZ as u32, libc::TCGETS as u32],
        say: "TIOCGWINSZ, TCGETS",
    })],
};

/// New sockets of the local machine.
pub static UNIX: Group = Group {
    name: "unix",
    calls: calls![
        SYS_socket(Only { argument: 0, mask: ALL, values: &[libc::AF_UNIX as u32], say: "AF_UNIX" }),
        SYS_connect,
    ],
};

/// What addresses has this machine?
pub static ADDRESSES: Group = Group {
    name: "addresses",
    calls: calls![
        SYS_socket(Only { argument: 0, mask: ALL, values: &[libc::AF_NETLINK as u32], say: "AF_NETLINK" }),
        SYS_bind, // glibc's getifaddrs
    ],
};

/// New connections to other machines.
pub static INTERNET: Group = Group {
    name: "internet",
    calls: calls![
        SYS_socket(
            Only {
                argument: 0,
                mask: ALL,
                values: &[libc::AF_INET as u32, libc::AF_INET6 as u32],
                say: "AF_INET, AF_INET6",
            },
            TCP_OR_UDP
        ),
        SYS_connect,
        SYS_bind,
        SYS_ioctl(Only { argument: 1, mask: ALL, values: &[libc::FIONBIO as u32], say: "FIONBIO" }),
    ],
};

/// Closing a second jail inside the first.
pub static NARROW: Group = Group {
    name: "narrow",
    calls: calls![
        SYS_prctl(Only {
            argument: 0,
            mask: ALL,
            values: &[libc::PR_SET_NO_NEW_PRIVS as u32, libc::PR_GET_SECCOMP as u32],
            say: "PR_SET_NO_NEW_PRIVS, PR_GET_SECCOMP",
        }),
        SYS_seccomp,
        SYS_prlimit64(ITSELF),
        #[cfg(target_arch = "x86_64")]
        SYS_getrlimit,
        #[cfg(target_arch = "x86_64")]
        SYS_setrlimit,
    ],
};

/// A process beside this one for each connection (`qmail::forkserver`), which gives up making more.
pub static SIBLINGS: Group = Group {
    name: "siblings",
    calls: calls![
        SYS_clone(Only {
            argument: 0,
            mask: ALL,
            values: &[libc::CLONE_PARENT as u32 | libc::SIGCHLD as u32],
            say: "a sibling",
        }),
        SYS_prlimit64(ITSELF),
        #[cfg(target_arch = "x86_64")]
        SYS_setrlimit,
    ],
};

/// Loading shared libraries: memory that may be executed.
pub static LIBRARIES: Group = Group {
    name: "libraries",
    calls: calls![
        SYS_mmap,
        SYS_mprotect,
        #[cfg(target_arch = "x86_64")]
        SYS_access,
        SYS_faccessat,
        SYS_faccessat2,
        #[cfg(target_arch = "x86_64")]
        SYS_readlink,
        SYS_readlinkat,
        SYS_getcwd,
        SYS_uname,
        SYS_prlimit64(ITSELF),
        SYS_sched_getaffinity,
        SYS_membarrier,
    ],
};

/// What the clients of account services (nscd, sssd, systemd, directories) do beside talking.
pub static SERVICES: Group = Group {
    name: "services",
    calls: calls![
        SYS_getgid,
        SYS_getegid,
        SYS_getppid,
        SYS_getresuid,
        SYS_getresgid,
        SYS_getgroups,
        SYS_dup,
        SYS_dup3,
        SYS_flock,
        SYS_statfs,
        SYS_fstatfs,
        SYS_sched_yield,
        SYS_clock_getres,
        SYS_sysinfo,
        SYS_socketpair,
        SYS_sendmmsg(no_connecting(3)),
        SYS_recvmmsg,
        #[cfg(target_arch = "x86_64")]
        SYS_select,
        SYS_pselect6,
        #[cfg(target_arch = "x86_64")]
        SYS_epoll_create,
        SYS_epoll_create1,
        SYS_epoll_ctl,
        #[cfg(target_arch = "x86_64")]
        SYS_epoll_wait,
        SYS_epoll_pwait,
        SYS_eventfd2,
        SYS_timerfd_create,
        SYS_timerfd_settime,
        SYS_signalfd4,
        SYS_inotify_init1,
        SYS_inotify_add_watch,
        SYS_memfd_create,
        SYS_ftruncate,
        #[cfg(target_arch = "x86_64")]
        SYS_time,
    ],
};
