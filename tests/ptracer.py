"""Makes a running program do system calls of our choice: what an attacker can who has taken it over.

    with ptracer.Attacker(pid) as a:         # stopped where it is, whatever it waits for
        a.open("/etc/shadow")                # a number, or the name of the errno: "EACCES"
        a.connect_tcp("127.0.0.1", 80)
        a.execve("/bin/sh")
                                             # goes on as if nothing had been

By ptrace(2), as root, on x86-64, on any program of any user, static or not, undumpable or not. The calls are
made by the program itself, through its own seccomp filter, Landlock domain, credentials and limits.

    with ptracer.Started(argv, user=(uid, gid)) as a:   # traced from its first instruction
        a.run_to("seccomp")                             # until it has done this call
        a.open(...)

An outcome is one of: a number (done), an errno's name, "BLOCKED" (let through: it would wait),
"SIGSYS" or another signal's name (the program is dead), "EXECUTED" (the program has become another, and is
killed). The calling thread must be the one that attached.
"""

import ctypes
import errno
import fcntl
import os
import platform
import shutil
import signal as signals
import socket as sockets
import struct
import time
import unittest

CALL_LIMIT = 1  # seconds: a call of ours that has no answer by then waits for something: it was let through
STOP_LIMIT = 30  # seconds until a program stops, or has come to a call: a bound against hanging
DESCRIPTORS = 4096  # no descriptor of the tests has a higher number
SCRATCH = 4096  # bytes of the program's stack that hold what its calls point to

# ptrace(2)
PEEKTEXT, POKETEXT, GETREGS, SETREGS = 1, 4, 12, 13
CONT, DETACH, SYSCALL = 7, 17, 24
SEIZE, INTERRUPT = 0x4206, 0x4207
SYSGOOD, FORK, VFORK, CLONE, EXEC, EXITKILL = 0x1, 0x2, 0x4, 0x8, 0x10, 0x100000
EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_STOP = 1, 2, 3, 4, 128
WALL = 0x40000000
X32 = 0x40000000  # the bit of the third set of numbers of this machine

AGAIN = (512, 513, 514, 516)  # ERESTART…: how the kernel says inside that a call was interrupted

NUMBERS = {
    "read": 0, "write": 1, "close": 3, "mmap": 9, "mprotect": 10, "munmap": 11, "dup2": 33, "getpid": 39, "socket": 41, "connect": 42,
    "sendto": 44, "bind": 49, "listen": 50, "socketpair": 53, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "wait4": 61, "kill": 62,
    "fcntl": 72, "truncate": 76, "chdir": 80, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88,
    "chmod": 90, "fchmod": 91, "chown": 92, "getuid": 102, "ptrace": 101, "setuid": 105, "setgid": 106, "setgroups": 116,
    "setresuid": 117, "mknod": 133, "personality": 135, "prctl": 157, "setrlimit": 160, "chroot": 161, "mount": 165, "umount2": 166,
    "init_module": 175, "tkill": 200, "keyctl": 250, "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264, "linkat": 265,
    "symlinkat": 266, "fchmodat": 268, "unshare": 272, "tgkill": 234, "perf_event_open": 298, "prlimit64": 302, "open_by_handle_at": 304,
    "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "renameat2": 316, "seccomp": 317, "memfd_create": 319,
    "bpf": 321, "execveat": 322, "userfaultfd": 323, "statx": 332, "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428,
    "fsopen": 430, "pidfd_open": 434, "clone3": 435, "openat2": 437, "pidfd_getfd": 438, "landlock_create_ruleset": 444,
    "landlock_restrict_self": 446, "open": 2, "stat": 4, "rt_sigaction": 13, "lseek": 8, "poll": 7, "nanosleep": 35, "pause": 34,
}
NUMBERS32 = {"fork": 2, "open": 5, "execve": 11, "getpid": 20, "ptrace": 26, "kill": 37, "socket": 359, "connect": 362}

AT_FDCWD = -100
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000
MAP_PRIVATE_ANONYMOUS, MAP_32BIT = 0x22, 0x40

REGISTERS = ("r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
             "fs_base gs_base ds es fs gs").split()


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in REGISTERS]

    def copy(self):
        return Registers.from_buffer_copy(self)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def why_not():
    """Why this cannot be had here, or None."""
    if platform.machine() != "x86_64":
        return "code is injected on x86-64 only"
    if os.geteuid() != 0:
        return "code is injected by root"
    return None


def needed(thing):
    """A decorator: skipped where nothing can be injected."""
    return unittest.skipIf(why_not(), why_not())(thing)


def _ptrace(request, pid, address=0, data=0):
    ctypes.set_errno(0)
    result = _libc.ptrace(request, pid, address, data)
    if result == -1 and ctypes.get_errno():
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace request {request:#x} on {pid}: {os.strerror(number)}")
    return result


def signed(number):
    return number - (1 << 64) if number >> 63 else number


class Gone(AssertionError):
    """The program ended where it should not have."""


class Out:
    """An argument: room for so many bytes, which .data holds after the call."""

    def __init__(self, size):
        self.size, self.data = size, b""


class Attacker:
    """A stopped program that does our calls."""

    def __init__(self, pid):
        self.pid, self.gone, self.held, self.attached = pid, None, [], False
        try:
            _ptrace(SEIZE, pid, 0, SYSGOOD | FORK | VFORK | CLONE | EXEC | EXITKILL)
            self.attached = True
            self._interrupt()
            self._save()
        except BaseException:
            self.release()
            raise

    # -- stopping and going on

    def _wait(self, limit):
        """The next status of the program, or None when nothing is reported in time."""
        deadline = time.monotonic() + limit
        while True:
            pid, status = os.waitpid(self.pid, WALL | os.WNOHANG)
            if pid:
                if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                    self.gone = signals.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else \
                        f"exit {os.WEXITSTATUS(status)}"
                    self.attached = False
                return status
            if time.monotonic() > deadline:
                return None
            time.sleep(0.0001)

    def _interrupt(self):
        """Stops it where it is: in the kernel, waiting for something, or anywhere in its own code. Any stop
        will do, and takes the place of the one that was asked for."""
        _ptrace(INTERRUPT, self.pid)
        status = self._wait(STOP_LIMIT)
        if status is None:
            raise AssertionError(f"process {self.pid} did not stop within {STOP_LIMIT} s")
        if self.gone:
            raise Gone(f"process {self.pid}: {self.gone} before it stopped")
        if not self._new_child(status) and not status >> 16 and os.WSTOPSIG(status) != signals.SIGTRAP | 0x80:
            self.held.append(os.WSTOPSIG(status))  # it gets it when we are done

    def _registers(self):
        r = Registers()
        _ptrace(GETREGS, self.pid, 0, ctypes.addressof(r))
        return r

    def _set(self, registers):
        _ptrace(SETREGS, self.pid, 0, ctypes.addressof(registers))

    def _maps(self):
        with open(f"/proc/{self.pid}/maps") as f:
            return f.read().splitlines()

    def _save(self):
        self.registers = self._registers()
        line = next(line for line in self._maps() if line.endswith("[stack]"))
        self.scratch = int(line.split("-")[0], 16)
        self.saved_scratch = self._peek(self.scratch, SCRATCH)
        self.saved_text = _ptrace(PEEKTEXT, self.pid, self.registers.rip) & (1 << 64) - 1

    def _peek(self, address, size):
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as f:
            f.seek(address)
            data = f.read(size)
        if len(data) != size:
            raise AssertionError(f"process {self.pid}: cannot read {size} bytes at {address:#x}")
        return data

    def _poke(self, address, data):
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as f:
            f.seek(address)
            if f.write(data) != len(data):
                raise AssertionError(f"process {self.pid}: cannot write {len(data)} bytes at {address:#x}")

    def _restore(self):
        """Memory and registers as they were found."""
        self._poke(self.scratch, self.saved_scratch)
        _ptrace(POKETEXT, self.pid, self.registers.rip, self.saved_text)
        self._set(self.registers)

    def release(self):
        """Lets it go on as if nothing had been. What it got of signals meanwhile it gets now."""
        if not self.attached:
            return
        if hasattr(self, "saved_text"):
            self._restore()
        # A call that we interrupted is begun again, or ended by a signal, on the way out of a stop for
        # signals, which this one need not be.
        _ptrace(INTERRUPT, self.pid)
        for number in self.held:
            os.kill(self.pid, number)
        _ptrace(CONT, self.pid)
        status = self._wait(STOP_LIMIT)
        if status is None or self.gone:
            raise Gone(f"process {self.pid} was to go on: {self.gone}")
        self.attached = False
        _ptrace(DETACH, self.pid, 0, 0 if status >> 16 else os.WSTOPSIG(status))

    def kill(self):
        """Ends it: for programs that only an attack was to be tried on."""
        if self.attached:
            self.attached = False
            os.kill(self.pid, signals.SIGKILL)
            deadline = time.monotonic() + STOP_LIMIT
            while time.monotonic() < deadline:
                pid, status = os.waitpid(self.pid, WALL | os.WNOHANG)
                if pid and not os.WIFSTOPPED(status):
                    break
                time.sleep(0.0005)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()

    # -- calls

    def raw(self, number, *arguments, instruction=b"\x0f\x05"):
        """Does one system call. Arguments: numbers, bytes (their address is passed), Out."""
        if self.gone:
            raise Gone(f"process {self.pid} is gone: {self.gone}")
        at, out, values = self.low if instruction == b"\xcd\x80" else self.scratch, [], []
        end = at + SCRATCH
        for a in arguments:
            if isinstance(a, (bytes, Out)):
                size = a.size if isinstance(a, Out) else len(a)
                if at + size > end:
                    raise ValueError("more than the scratch page holds")
                if isinstance(a, Out):
                    out.append((at, a))
                else:
                    self._poke(at, a)
                values.append(at)
                at = at + size + 15 & ~15
            else:
                values.append(a)
        r = self.registers.copy()
        names = "rbx rcx rdx rsi rdi rbp" if instruction == b"\xcd\x80" else "rdi rsi rdx r10 r8 r9"
        for name, value in zip(names.split(), values + [0] * (6 - len(values))):
            setattr(r, name, value & (1 << 64) - 1)
        r.rax, r.orig_rax = number & (1 << 64) - 1, (1 << 64) - 1
        text = self.saved_text & ~0xffff | int.from_bytes(instruction, "little")
        _ptrace(POKETEXT, self.pid, r.rip, text)
        self._set(r)
        outcome = self._through(r)
        if isinstance(outcome, int):
            for address, o in out:
                o.data = self._peek(address, o.size)
        return outcome

    def _through(self, registers):
        """From before the instruction to the result."""
        entered, limit = False, CALL_LIMIT
        _ptrace(SYSCALL, self.pid)
        while True:
            status = self._wait(limit if entered else STOP_LIMIT)
            if self.gone:
                return self.gone
            if status is None:
                if not entered:
                    raise AssertionError(f"process {self.pid} did not do the call")
                self._interrupt()
                return "BLOCKED"
            event, number = status >> 16, os.WSTOPSIG(status)
            if event == EVENT_EXEC:
                self.gone = "EXECUTED"
                self.kill()
                return self.gone
            if self._new_child(status):
                pass
            elif number == signals.SIGTRAP | 0x80:
                if entered and self._dies_of_it():
                    limit = STOP_LIMIT
                elif entered:
                    return self._result(signed(self._registers().rax))
                else:
                    entered = True
            elif event == EVENT_STOP:
                pass
            elif number in (signals.SIGSEGV, signals.SIGILL, signals.SIGBUS):
                return signals.Signals(number).name
            else:
                self.held.append(number)
                if not entered:
                    self._set(registers)
            _ptrace(SYSCALL, self.pid)

    def _dies_of_it(self):
        """Whether a filter answers by SIGSYS: the call ends all the same, as if with its own number."""
        with open(f"/proc/{self.pid}/status") as f:
            pending = next(line for line in f if line.startswith("SigPnd:"))
        return int(pending.split()[1], 16) >> signals.SIGSYS - 1 & 1

    def _new_child(self, status):
        """A child of the program is born stopped and traced by us; it never runs."""
        if status >> 16 not in (EVENT_FORK, EVENT_VFORK, EVENT_CLONE):
            return False
        message = ctypes.c_ulong()
        _ptrace(0x4201, self.pid, 0, ctypes.addressof(message))  # PTRACE_GETEVENTMSG
        os.kill(message.value, signals.SIGKILL)
        while os.WIFSTOPPED(os.waitpid(message.value, WALL)[1]):
            pass
        return True

    @staticmethod
    def _result(value):
        if -4096 < value < 0:
            if -value in AGAIN:
                return "BLOCKED"
            return errno.errorcode.get(-value, f"errno {-value}")
        return value

    def call(self, name, *arguments):
        """A system call by its name."""
        return self.raw(NUMBERS[name], *arguments)

    def x32(self, name, *arguments):
        """By the numbers of the x32 ABI: a filter that compares numbers only must not be led astray."""
        return self.raw(NUMBERS[name] | X32, *arguments)

    def int80(self, name, *arguments):
        """By the entry for 32-bit programs, whose numbers mean other calls."""
        if any(isinstance(a, (bytes, Out)) for a in arguments):
            page = self.call("mmap", 0, SCRATCH, 3, MAP_PRIVATE_ANONYMOUS | MAP_32BIT, -1, 0)
            if not isinstance(page, int):
                raise AssertionError(f"no page below 4 GiB: {page}")
            self.low = page
        try:
            return self.raw(NUMBERS32[name], *arguments, instruction=b"\xcd\x80")
        finally:
            if self.low and not self.gone:
                self.call("munmap", self.low, SCRATCH)
            self.low = 0

    low = 0

    # -- what attackers do; descriptors they open are closed again

    def _closing(self, descriptor):
        if isinstance(descriptor, int):
            self.call("close", descriptor)
            return 0
        return descriptor

    def open(self, path, flags=os.O_RDONLY, mode=0o600):
        return self._closing(self.call("openat", AT_FDCWD, _z(path), flags, mode))

    def stat(self, path):
        return self.call("stat", _z(path), Out(144))

    def read(self, descriptor, size=1):
        room = Out(size)
        got = self.call("read", descriptor, room, size)
        return room.data[:got] if isinstance(got, int) else got

    def read_file(self, path, size=512):
        """The beginning of a file, or why not."""
        descriptor = self.call("openat", AT_FDCWD, _z(path), os.O_RDONLY, 0)
        if not isinstance(descriptor, int):
            return descriptor
        got = self.read(descriptor, size)
        self.call("close", descriptor)
        return got

    def write(self, descriptor, data):
        return self.call("write", descriptor, data, len(data))

    def create(self, path):
        return self.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def unlink(self, path):
        return self.call("unlinkat", AT_FDCWD, _z(path), 0)

    def rename(self, old, new):
        return self.call("renameat", AT_FDCWD, _z(old), AT_FDCWD, _z(new))

    def link(self, old, new):
        return self.call("linkat", AT_FDCWD, _z(old), AT_FDCWD, _z(new), 0)

    def symlink(self, target, path):
        return self.call("symlinkat", _z(target), AT_FDCWD, _z(path))

    def mkdir(self, path):
        return self.call("mkdirat", AT_FDCWD, _z(path), 0o700)

    def truncate(self, path):
        return self.call("truncate", _z(path), 0)

    def chmod(self, path, mode):
        return self.call("fchmodat", AT_FDCWD, _z(path), mode)

    def socket(self, family, kind, protocol=0):
        return self._closing(self.call("socket", family, kind, protocol))

    def _with_socket(self, family, kind, protocol, call, *arguments):
        """What a system call on a new socket comes to."""
        s = self.call("socket", family, kind, protocol)
        if not isinstance(s, int):
            return s
        outcome = self.call(call, s, *arguments)
        if not self.gone:
            self.call("close", s)
        return outcome

    def _connect(self, family, kind, address, protocol=0):
        return self._with_socket(family, kind, protocol, "connect", address, len(address))

    def connect_tcp(self, host, port):
        return self._connect(sockets.AF_INET, sockets.SOCK_STREAM, _inet(host, port))

    def connect_multipath(self, host, port):
        return self._connect(sockets.AF_INET, sockets.SOCK_STREAM, _inet(host, port), 262)  # IPPROTO_MPTCP

    def connect_fast(self, host, port):
        """Without connect(2): the first bytes are sent with the SYN, or just behind."""
        address, flag = _inet(host, port), sockets.MSG_FASTOPEN
        return self._with_socket(sockets.AF_INET, sockets.SOCK_STREAM, 0, "sendto", b"x", 1, flag, address, len(address))

    def connect_udp(self, host, port):
        return self._connect(sockets.AF_INET, sockets.SOCK_DGRAM, _inet(host, port))

    def connect_unix(self, path, kind=sockets.SOCK_STREAM):
        """A path, or an abstract name when it begins with @."""
        name = b"\0" + path[1:].encode() if path.startswith("@") else _z(path)
        return self._connect(sockets.AF_UNIX, kind, struct.pack("H", sockets.AF_UNIX) + name)

    def listen_tcp(self, host, port):
        s = self.call("socket", sockets.AF_INET, sockets.SOCK_STREAM, 0)
        if not isinstance(s, int):
            return s
        address = _inet(host, port)
        outcome = self.call("bind", s, address, len(address))
        if outcome == 0:
            outcome = self.call("listen", s, 1)
        self.call("close", s)
        return outcome

    def execve(self, path, *arguments):
        """Success ends the program."""
        name = _z(path)
        words = [name, *map(_z, arguments), b""]  # argv is laid behind its strings
        at = self.scratch + (len(name) + 15 & ~15)
        strings, pointers = b"", []
        for word in words[:-1]:
            pointers.append(at + len(strings))
            strings += word
        strings += b"\0" * (-len(strings) % 16)
        table = b"".join(struct.pack("Q", p) for p in pointers) + struct.pack("Q", 0)
        # The arguments of raw() lie one behind the other, each on 16 bytes.
        self._poke(at, strings + table)
        return self.raw(NUMBERS["execve"], name, at + len(strings), at + len(strings) + len(table) - 8)

    def fork(self):
        """The child is killed before it does anything, and gone."""
        child = self.call("clone", 0, 0, 0, 0, 0)
        if isinstance(child, int):
            self.call("wait4", child, 0, WALL, 0)
            return 0
        return child

    def ptrace(self, pid):
        outcome = self.call("ptrace", SEIZE, pid, 0, 0)
        if outcome == 0:
            # Its tracer is the program; it can only be let go while it is stopped.
            self.call("ptrace", INTERRUPT, pid, 0, 0)
            self.call("wait4", pid, 0, WALL, 0)
            self.call("ptrace", DETACH, pid, 0, 0)
        return outcome

    def process_vm_readv(self, pid, address):
        into = struct.pack("QQ", self.scratch + 2048, 8)
        return self.call("process_vm_readv", pid, into, 1, struct.pack("QQ", address, 8), 1, 0)

    def signal(self, pid, number):
        return self.call("kill", pid, number)

    def limit(self, pid):
        """Changes a limit of another process: of locks, which there are no more."""
        return self.call("prlimit64", pid, 10, struct.pack("QQ", 0, 0), 0)

    def setuid(self, uid):
        return self.call("setuid", uid)

    def unshare(self, flags):
        return self.call("unshare", flags)

    def mount(self, source, target, kind):
        return self.call("mount", _z(source), _z(target), _z(kind), 0, 0)

    def chroot(self, path):
        return self.call("chroot", _z(path))

    def prctl(self, option, *arguments):
        return self.call("prctl", option, *arguments)

    def bpf(self):
        """A map of one number: the least there is."""
        return self._closing(self.call("bpf", 0, struct.pack("IIIII", 2, 4, 4, 1, 0) + b"\0" * 100, 120))

    def io_uring(self):
        return self._closing(self.call("io_uring_setup", 1, b"\0" * 120))

    def perf(self):
        """Counts its own instructions: a software clock, user code only."""
        event = struct.pack("IIQ", 1, 128, 1) + struct.pack("QQQ", 0, 0, 0) + struct.pack("Q", 0x61) + b"\0" * 72
        return self._closing(self.call("perf_event_open", event, 0, -1, -1, 0))

    def memfd(self):
        return self._closing(self.call("memfd_create", b"x\0", 0))


class Started(Attacker):
    """A program traced from its first instruction. user: (uid, gid), which also is its only group."""

    def __init__(self, argv, user=None, env=None, cwd="/", fds=None):
        """fds: {number: open descriptor}; those of 0 to 2 that are not given are /dev/null."""
        self.gone, self.held, self.attached = None, [], False
        ready, go = os.pipe()
        null = os.open("/dev/null", os.O_RDWR)
        path = shutil.which(argv[0], path=(env or os.environ).get("PATH"))
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(go)
                os.read(ready, 1)
                wanted = {0: null, 1: null, 2: null, **(fds or {})}
                # Out of the way first: a source may have the number of another's target.
                high = {n: fcntl.fcntl(f, fcntl.F_DUPFD, 100) for n, f in wanted.items()}
                for n, f in high.items():
                    os.dup2(f, n)
                ends = sorted(wanted) + [DESCRIPTORS]
                for n, following in zip(ends, ends[1:]):
                    os.closerange(n + 1, following)
                os.chdir(cwd)
                if user:
                    os.setgroups([user[1]])
                    os.setgid(user[1])
                    os.setuid(user[0])
                for number in (signals.SIGPIPE, signals.SIGXFSZ, signals.SIGINT):
                    signals.signal(number, signals.SIG_DFL)
                os.execve(path, argv, env if env is not None else dict(os.environ))
            finally:
                os._exit(127)
        os.close(ready)
        os.close(null)
        try:
            _ptrace(SEIZE, self.pid, 0, SYSGOOD | FORK | VFORK | CLONE | EXEC | EXITKILL)
            self.attached = True
            self._interrupt()
        finally:
            os.close(go)
        while not self._go_on() >> 16 == EVENT_EXEC:
            pass
        # The end of execve itself.
        self._to_exit()

    def _go_on(self):
        _ptrace(SYSCALL, self.pid)
        status = self._wait(STOP_LIMIT)
        if status is None:
            raise AssertionError(f"process {self.pid} went on for {STOP_LIMIT} s without a call")
        if self.gone:
            raise Gone(f"process {self.pid} ended before it came there: {self.gone}")
        return status

    def _to_exit(self):
        while os.WSTOPSIG(status := self._go_on()) != signals.SIGTRAP | 0x80:
            self._new_child(status)

    def run_to(self, name, times=1, accept=lambda registers: True):
        """Lets it run until it has done this call so often with success; accept looks at its arguments.

        Children are killed as they are born. Returns the names or numbers of the calls it made on the way."""
        names = {number: n for n, number in NUMBERS.items()}
        calls = []
        while times:
            status = self._go_on()
            if os.WSTOPSIG(status) != signals.SIGTRAP | 0x80:
                if not self._new_child(status) and not status >> 16:
                    raise AssertionError(f"process {self.pid} got signal {os.WSTOPSIG(status)}")
                continue
            entry = self._registers()
            self._to_exit()
            number = entry.orig_rax
            calls.append(names.get(number, number))
            if number == NUMBERS[name] and signed(self._registers().rax) >= 0 and accept(entry):
                times -= 1
        self._save()
        return calls

    def __exit__(self, *_):
        self.kill()


def _z(text):
    return os.fsencode(text) + b"\0"


def _inet(host, port):
    return struct.pack("=H", sockets.AF_INET) + struct.pack("!H", port) + sockets.inet_aton(host) + bytes(8)
