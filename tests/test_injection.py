"""Code injected into programs after their jail has closed: what a taken-over program can still do.

ROWS says for every program of the manifest how to get hold of it and which ATTACKS succeed; all others must
be refused. Each is tried in a program of the same account without a jail too: what succeeds there shows
that the attack is real, and is what a program that has no jail (it executes others' programs) can do.
"""

import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import unittest

from tests import harness, ptracer, sandbox
from tests.harness import ROOT, Daemon, Line, wait_for
from tests.ptracer import Attacker, Started
from tests.test_system_home import ENV, HOME, gid, made, sh, uid, write

USER = (7760, 7760)  # an account that needs no name


def waits_in(pid, number):
    """Whether a process sleeps in this system call."""
    try:
        with open(f"/proc/{pid}/syscall") as f:
            return f.read().split()[0] == str(number)
    except OSError:
        return False


@ptracer.needed
class Tool(unittest.TestCase):
    """The injector on programs without a jail: all that their account allows succeeds, or it could prove nothing."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="qmail-inject-")
        self.addCleanup(shutil.rmtree, self.dir)
        os.chown(self.dir, *USER)
        self.sleeper = self.start("sleep", "1000")

    def start(self, *argv):
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=USER[0], group=USER[1],
                                   extra_groups=[], cwd="/")

        def end():
            process.kill()
            process.communicate()
        self.addCleanup(end)
        return process

    def subjects(self):
        """Programs of each kind, in each kind of stop: (name, pid)."""
        glibc = self.start("cat")
        wait_for(lambda: waits_in(glibc.pid, 0), "cat to read")
        yield "glibc", glibc.pid
        hidden = shutil.copy(shutil.which("cat"), self.dir)
        os.chmod(hidden, 0o711)
        hidden = self.start(hidden)
        wait_for(lambda: waits_in(hidden.pid, 0), "the other cat to read")
        self.assertEqual(os.stat(f"/proc/{hidden.pid}/environ").st_uid, 0)
        yield "undumpable", hidden.pid
        musl = self.start(harness.program("tcpserver"), "127.0.0.1", "0", "true")
        wait_for(lambda: waits_in(musl.pid, 271), "tcpserver to poll")
        yield "musl", musl.pid
        busy = self.start("sh", "-c", "echo; while :; do :; done")
        busy.stdout.readline()
        yield "in its own code", busy.pid

    def test_what_an_account_may_do_succeeds(self):
        own = self.dir + "/own"
        for name, pid in self.subjects():
            with self.subTest(name), ptracer.Attacker(pid) as a:
                for done in (a.create(own), a.open(own, os.O_RDWR), a.stat(own), a.chmod(own, 0o644), a.link(own, own + "2"),
                             a.rename(own + "2", own + "3"), a.unlink(own + "3"), a.symlink("x", own + "2"), a.unlink(own + "2"),
                             a.truncate(own), a.unlink(own), a.mkdir(own), a.call("rmdir", own.encode() + b"\0"),
                             a.listen_tcp("127.0.0.1", 0), a.fork(), a.ptrace(self.sleeper.pid), a.signal(self.sleeper.pid, 0),
                             a.setuid(USER[0]), a.memfd()):
                    self.assertEqual(done, 0)
                # Itself: musl programs of ours made themselves undumpable or not, cat did not.
                self.assertEqual(a.open("/proc/self/mem", os.O_RDWR), 0 if name in ("glibc", "in its own code") else "EACCES")
                self.assertEqual(a.read_file("/proc/self/comm")[-1:], b"\n")
                # These a system may forbid to everybody.
                for done in (a.perf(), a.io_uring()):
                    self.assertIn(done, (0, "EPERM", "EACCES", "ENOSYS"))
                if a.unshare(ptracer.CLONE_NEWUSER) == 0:
                    self.assertEqual(a.call("getuid"), 65534)

    def test_what_an_account_may_not_do_has_the_name_of_its_errno(self):
        for name, pid in self.subjects():
            with self.subTest(name), ptracer.Attacker(pid) as a:
                self.assertEqual(a.open("/etc/shadow"), "EACCES")
                self.assertEqual(a.open("/nowhere"), "ENOENT")
                self.assertEqual(a.create("/etc/x"), "EACCES")
                self.assertEqual(a.setuid(0), "EPERM")
                self.assertEqual(a.mount("none", "/mnt", "tmpfs"), "EPERM")
                self.assertEqual(a.ptrace(1), "EPERM")
                self.assertEqual(a.signal(1, 0), "EPERM")
                self.assertEqual(a.connect_tcp("127.0.0.1", 1), "ECONNREFUSED")
                self.assertEqual(a.connect_unix("/nowhere"), "ENOENT")
                self.assertEqual(a.connect_unix("@qmail-nowhere"), "ECONNREFUSED")

    def test_it_connects_and_reads_memory(self):
        with harness.socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            for name, pid in self.subjects():
                with self.subTest(name), ptracer.Attacker(pid) as a:
                    self.assertEqual(a.connect_tcp(*s.getsockname()), 0)
                    self.assertEqual(a.connect_udp(*s.getsockname()), 0)
                    with open(f"/proc/{self.sleeper.pid}/maps") as f:
                        self.assertEqual(a.process_vm_readv(self.sleeper.pid, int(f.read().split("-")[0], 16)), 8)

    def test_the_other_ways_into_the_kernel_are_tried_for_real(self):
        for name, pid in self.subjects():
            with self.subTest(name), ptracer.Attacker(pid) as a:
                self.assertEqual(a.call("getpid"), pid)
                self.assertIn(a.x32("getpid"), (pid, "ENOSYS"))  # few kernels are built with it
                old = a.int80("getpid")
                if old != "SIGSEGV":  # a kernel built, or started, without it
                    self.assertEqual(old, pid)
                    self.assertGreater(a.int80("open", b"/etc/passwd\0", 0), 2)
                    self.assertEqual(a.int80("open", b"/etc/shadow\0", 0), "EACCES")

    def test_the_program_goes_on_as_if_nothing_had_been(self):
        cat = self.start("cat")
        for number in range(3):
            wait_for(lambda: waits_in(cat.pid, 0), "cat to read")
            with ptracer.Attacker(cat.pid) as a:
                self.assertEqual(a.call("pause"), "BLOCKED")
                self.assertEqual(a.fork(), 0)
                self.assertEqual(a.open("/etc/passwd"), 0)
            cat.stdin.write(b"x")
            cat.stdin.flush()
            self.assertTrue(select.select([cat.stdout], [], [], harness.TIMEOUT)[0], "it does not go on")
            self.assertEqual(os.read(cat.stdout.fileno(), 9), b"x")
        # A wait with a time in it is continued by restart_syscall(2).
        poller = self.start("perl", "-MIO::Poll", "-e", "$p = IO::Poll->new; $p->mask(STDIN, POLLIN); print $p->poll(600), qq(\\n)")
        wait_for(lambda: waits_in(poller.pid, 7), "perl to poll")
        sleeper = self.start("sh", "-c", "trap 'echo got it; exit 3' USR1; echo; while :; do read -r x; done")
        sleeper.stdout.readline()
        with ptracer.Attacker(poller.pid) as a, ptracer.Attacker(sleeper.pid) as b:
            # A signal that comes meanwhile comes afterwards.
            os.kill(sleeper.pid, harness.signal.SIGUSR1)
            self.assertEqual(b.open("/etc/passwd"), 0)
            self.assertEqual(a.open("/etc/passwd"), 0)
        self.assertEqual(sleeper.wait(harness.TIMEOUT), 3)
        self.assertEqual(sleeper.stdout.readline(), b"got it\n")
        self.assertEqual(poller.communicate(b"x", harness.TIMEOUT)[0], b"1\n")

    def test_an_executed_shell_is_seen_and_ended(self):
        for name, pid in self.subjects():
            with self.subTest(name), ptracer.Attacker(pid) as a:
                self.assertEqual(a.execve("/nowhere", "sh"), "ENOENT")
                self.assertEqual(a.execve("/bin/sh", "sh", "-c", f"echo >{self.dir}/ran"), "EXECUTED")
                self.assertRaises(ptracer.Gone, a.open, "/etc/passwd")
        self.assertFalse(os.path.exists(self.dir + "/ran"))

    def test_a_program_is_followed_from_its_first_instruction(self):
        with ptracer.Started(["cat", "/etc/hostname"], user=USER) as a:
            self.assertIn("mmap", a.run_to("openat"))
            self.assertEqual(a.call("getuid"), USER[0])
            self.assertEqual(a.open("/etc/shadow"), "EACCES")
        with ptracer.Started(["cat", "/etc/hostname"], user=USER) as a:
            self.assertRaises(ptracer.Gone, a.run_to, "landlock_restrict_self")
        r, w = os.pipe()
        self.addCleanup(os.close, r)
        a = ptracer.Started(["cat", "/etc/hostname"], user=USER, fds={1: w})
        os.close(w)
        a.run_to("openat")
        self.assertEqual(a.open("/etc/passwd"), 0)
        a.release()
        with open("/etc/hostname", "rb") as f:
            self.assertEqual(os.read(r, 4096), f.read())
        self.assertEqual(os.waitpid(a.pid, 0)[1], 0)



LOOT = "/var/loot"  # one directory for each uid: its own files, which its jail must keep it from
PASSWORD = "correct horse"
PLACES = ("queue/mess/0", "queue/intd", "queue/todo", "queue/pid", "queue/info/0", "queue/local/0", "queue/remote/0", "queue/bounce",
          "queue/lock", "run", "control", "users", "bin", "alias", "sts", "Maildir")


class Stage:
    """What the attacks of one account aim at."""

    def __init__(self, user, home, victim):
        self.uid, self.home, self.victim, self.dir = user, home, victim, f"{LOOT}/{user}"
        with open(f"/proc/{victim}/maps") as f:
            self.memory = int(f.read().split("-")[0], 16)

    def place(self, name):
        return "/home/joe/Maildir/new" if name == "Maildir" else f"{self.home}/{name}"

    def reset(self):
        """All files there again, as if nobody had been at them."""
        shutil.rmtree(self.dir, ignore_errors=True)
        os.mkdir(self.dir, 0o700)
        os.chown(self.dir, self.uid, 0)
        for name in ("key", "a", "b", "c", "d"):
            self.file(f"{self.dir}/{name}", self.uid)
        for name in PLACES:
            there = self.place(name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(there + "/evil")
            self.file(there + "/spare", os.stat(there).st_uid)

    def clear(self):
        for name in PLACES:
            for file in ("evil", "spare"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self.place(name)}/{file}")

    @staticmethod
    def file(path, owner):
        with open(path, "w") as f:
            f.write("x\n")
        os.chown(path, owner, 0)
        os.chmod(path, 0o600)


def wide(a):
    """An anonymous page that can be written and executed."""
    page = a.call("mmap", 0, 4096, 7, 0x22, -1, 0)
    return page if isinstance(page, str) else a.call("munmap", page, 4096)


def pidfd(a, s):
    """A descriptor of another process, by its pidfd."""
    handle = a.call("pidfd_open", s.victim, 0)
    if isinstance(handle, str):
        return handle
    got = a.call("pidfd_getfd", handle, 0, 0)
    a.call("close", handle)
    return a._closing(got)


def dumpable(a):
    before = a.prctl(3)
    done = a.prctl(4, 1)
    if done == 0 and before == 0:
        a.prctl(4, 0)
    return done


def mount(a):
    done = a.mount("none", "/mnt", "tmpfs")
    return done if isinstance(done, str) else a.call("umount2", b"/mnt\0", 0)


# In this order; those at the end may end the program.
ATTACKS = {
    "password file": lambda a, s: a.read_file("/etc/shadow"),
    "key": lambda a, s: a.read_file(s.dir + "/key"),
    "public file": lambda a, s: a.read_file(LOOT + "/public"),
    "another's mail": lambda a, s: a.read_file("/home/ann/Maildir/new/letter"),
    "control": lambda a, s: a.read_file(s.home + "/control/me"),
    "a message": lambda a, s: a.read_file(s.home + "/queue/mess/0/spare"),
    "list": lambda a, s: a.open(s.dir, os.O_RDONLY | os.O_DIRECTORY),
    **{f"make {p}": lambda a, s, p=p: a.create(s.place(p) + "/evil") for p in PLACES},
    **{f"write {p}": lambda a, s, p=p: a.open(s.place(p) + "/spare", os.O_WRONLY) for p in PLACES},
    **{f"unlink {p}": lambda a, s, p=p: a.unlink(s.place(p) + "/spare") for p in PLACES},
    "create": lambda a, s: a.create(s.dir + "/new"),
    "unlink": lambda a, s: a.unlink(s.dir + "/a"),
    "rename": lambda a, s: a.rename(s.dir + "/b", s.dir + "/bb"),
    "link": lambda a, s: a.link(s.dir + "/c", s.dir + "/cc"),
    "symlink": lambda a, s: a.symlink("/etc", s.dir + "/l"),
    "mkdir": lambda a, s: a.mkdir(s.dir + "/m"),
    "truncate": lambda a, s: a.truncate(s.dir + "/d"),
    "chmod": lambda a, s: a.chmod(s.dir + "/d", 0o644),
    "own memory": lambda a, s: a.open("/proc/self/mem", os.O_RDWR),
    "executable memory": lambda a, s: wide(a),
    "tcp": lambda a, s: a.connect_tcp("127.0.0.1", 80),
    "multipath tcp": lambda a, s: a.connect_multipath("127.0.0.1", 80),
    "fast open": lambda a, s: a.connect_fast("127.0.0.1", 80),
    "udp": lambda a, s: a.connect_udp("127.0.0.1", 80),
    "listen": lambda a, s: a.listen_tcp("127.0.0.1", 0),
    "socket path": lambda a, s: a.connect_unix(LOOT + "/socket"),
    "abstract socket": lambda a, s: a.connect_unix("@qmail-loot"),
    "netlink": lambda a, s: a.socket(16, 3, 0),
    "packets": lambda a, s: a.socket(17, 3, 0),
    "fork": lambda a, s: a.fork(),
    "trace": lambda a, s: a.ptrace(s.victim),
    "read memory": lambda a, s: a.process_vm_readv(s.victim, s.memory),
    "take descriptor": pidfd,
    "signal": lambda a, s: a.signal(s.victim, 0),
    "another's limits": lambda a, s: a.limit(s.victim),
    "keys": lambda a, s: a.call("keyctl", 0, -5 & 0xffffffff, 0),
    "bpf": lambda a, s: a.bpf(),
    "perf": lambda a, s: a.perf(),
    "uring": lambda a, s: a.io_uring(),
    "memfd": lambda a, s: a.memfd(),
    "dumpable": lambda a, s: dumpable(a),
    "mount": lambda a, s: mount(a),
    "x32": lambda a, s: a.x32("open", (s.dir + "/key").encode() + b"\0", 0),
    "root": lambda a, s: a.setuid(0),
    "chroot": lambda a, s: a.chroot("/"),
    "namespace": lambda a, s: a.unshare(ptracer.CLONE_NEWUSER),
    "shell": lambda a, s: a.execve("/bin/sh", "sh", "-c", ":"),
    # Not among the others: it may be answered by a signal.
    "int80": lambda a, s: a.int80("open", (s.dir + "/key").encode() + b"\0", 0),
}
LANDLOCK_ABI = ctypes.CDLL(None).syscall(444, 0, 0, 1)
# What an older Landlock cannot refuse.
UNKNOWN = ({"signal", "abstract socket"} if LANDLOCK_ABI < 6 else set()) | ({"tcp", "listen"} if LANDLOCK_ABI < 4 else set())
# A program that goes on running after an attack must not have these done to it where they succeed.
LASTING = {"root", "chroot", "namespace", "shell", "mount", "int80"}
# Programs that one can have another of, for what may end them.
SESSIONS = {"qmail-smtpd", "qmail-pop3d", "splogger", "tlsserver the process that has the keys",
            "tlsserver the process that speaks TLS, one a connection"}
REFUSED = {"EPERM", "EACCES"}
ALSO = {"fork": {"EAGAIN"},  # its limit of processes is 0
        "x32": {"ENOSYS"},  # a kernel that has no such calls
        "int80": {"SIGSYS", "SIGSEGV", "ENOSYS"}}
# What a kernel of today has no way to refuse where there is no filter of system calls: neither Landlock nor
# any other thing that needs no privilege knows of these.
NO_FILTER = {"chmod", "executable memory", "udp", "socket path", "netlink", "memfd", "perf", "uring", "keys", "dumpable", "namespace",
             "another's limits", "multipath tcp", "fast open"}
# A Landlock to come may.
LATER = {"multipath tcp", "fast open"}
# Root without a filter keeps what is not of files, TCP, processes and mounts.
ROOT_TOO = NO_FILTER | {"fork", "root", "chroot", "bpf", "packets"}


def queue(*access):
    """{"unlink queue/todo", …} from "unlink todo mess/0"."""
    return {f"{verb} queue/{p}" for line in access for verb, *places in [line.split()] for p in places}


def succeeded(outcome):
    return not isinstance(outcome, str) or outcome in ("EXECUTED", "BLOCKED")


# What the files named may be in: the directory of a maildir of joe's.
NAMED = {"make Maildir", "write Maildir", "unlink Maildir"}
KEPT = {"make sts", "write sts", "unlink sts"}
ACCEPT = queue("make intd pid", "unlink mess/0 intd todo pid", "write intd pid lock")
OPEN, LIMITS, LANDLOCK, SECCOMP = "none yet", "rlimits", "rlimits, Landlock", "rlimits, Landlock, seccomp"

# Those that live by children of their own program.
FORKING = {"qmail-queued", "tlsclient the child that stays", "mta-sts the child that answers qmail-remote"}

# Asks tlsclient or mta-sts, as qmail-remote would, when a line comes.
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
ASKER = r"""
import os, socket, sys
sys.stdin.readline()
answer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if "MTASTSFD" in os.environ:
    number, packet, passed = os.environ["MTASTSFD"], b"far.example", [theirs]
else:
    clear, text = socket.socketpair()
    connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    number, packet, passed = os.environ["TLSCLIENTFD"], b"name=far.example\0verify=none\0", [theirs, text, connection]
door = socket.socket(fileno=int(number))  # without it the child that stays would end
socket.send_fds(door, [packet], [s.fileno() for s in passed])
answer.recv(1)
"""

# program and part as in the manifest: (jail, how to get hold of it, what succeeds there).
ROWS = {
    "qmail-clean": (SECCOMP, "daemon", queue("unlink mess/0 intd todo pid") | {"a message"}),
    "qmail-queued": (LANDLOCK, "daemon", NO_FILTER | ACCEPT | {"fork"}),
    "qmail-queued a worker, which takes messages": (SECCOMP, "queued_worker", ACCEPT),
    "qmail-send": (LANDLOCK, "daemon", NO_FILTER | queue(
        "make info/0 local/0 remote/0 bounce", "write info/0 local/0 remote/0 bounce", "unlink info/0 local/0 remote/0 bounce") | {"control"}),
    "qmail-rspawn": (LANDLOCK, "daemon", NO_FILTER | {"control", "tcp", "listen", "fork"}),
    "qmail-lspawn": (LIMITS, "daemon", None),
    "tcpserver": (LIMITS, "tcpserver", None),
    "tcpserver a child that asks the DNS": (SECCOMP, "names", {"udp"}),
    "tcpserver a child that asks ident": (SECCOMP, "ident", set()),
    "tlsserver": (LIMITS, "tls", None),
    "tlsserver the process that has the keys": (SECCOMP, "tls", set()),
    "tlsserver the process that speaks TLS, one a connection": (SECCOMP, "tls", set()),
    "tlsclient the child that stays": (LANDLOCK, "behind", NO_FILTER | {"control", "fork"}),
    "tlsclient the process that speaks TLS, one a connection": (SECCOMP, "behind", set()),
    "mta-sts the child that answers qmail-remote": (LANDLOCK, "behind", NO_FILTER | KEPT | {"fork"}),
    "mta-sts one of its children, which answers one question": (SECCOMP, "behind", KEPT | {"udp"}),
    "qmail-smtpd": (SECCOMP, "smtpd", {"socket path", "netlink"}),
    # Of forks the filter leaves only the one it lives by: the attack makes another one.
    "qmail-smtpd that stays ready, and is forked for each connection": (SECCOMP, "smtp_ready", {"socket path", "netlink"}),
    "qmail-smtpd with QMAILQUEUE, the child that talks": (SECCOMP, "filtered_session", {"netlink"}),
    "qmail-popup": (SECCOMP, ("qmaild", "qmail-popup", "test.example", "pop3"), {"socket path"}),
    "qmail-popup the classic way": (LIMITS, ("root", "qmail-popup", "test.example", "true"), None),
    "qmail-popup the classic way, the child that talks": (SECCOMP, "popup", set()),
    "authask": (SECCOMP, ("qmaild", "authask", "pop3"), {"socket path"}),
    "qmail-authd": (LIMITS, ("root", "qmail-authd"), None),
    "qmail-pop3d": (SECCOMP, "pop3d", {"unlink Maildir"}),
    "qmail-remote": (SECCOMP, "remote_start", {"udp"}),
    "qmail-remote once a host is chosen": (SECCOMP, "remote", set()),
    "qmail-local": (LIMITS, "local", None),
    "popauth the child that writes an address down": (SECCOMP, "remembering", NAMED),
    "checkpassword-dovecot a child that asks Dovecot": (SECCOMP, "checking", set()),
    "checkpassword-saslauthd a child that asks saslauthd": (SECCOMP, "checking", set()),
    "splogger": (SECCOMP, "splogger", {"socket path"}),
    "qmail-getpw": (SECCOMP, "getpw", {"socket path", "netlink", "memfd", "executable memory"}),
    "qmail-getpw where nsswitch.conf names a source that may be elsewhere": (
        SECCOMP, "getpw_far", {"socket path", "netlink", "memfd", "udp", "tcp", "executable memory"}),
    # Those that end soon, followed from their first instruction.
    "qmail-smtpd where its user owns the queue": (LANDLOCK, ("qmailq", "qmail-smtpd"), NO_FILTER | ACCEPT | {"fork"}),
    "qmail-smtpd with QMAILQUEUE": (LIMITS, ("qmaild", "qmail-smtpd", "QMAILQUEUE=/bin/true"), None),
    "qmail-smtpd the process that runs a checker": (LIMITS, ("joe", "qmail-smtpd", "checkpassword", "true"), None),
    "qmail-inject": (LIMITS, ("joe", "qmail-inject", "ann"), None),
    "sendmail": (LIMITS, ("joe", "sendmail", "ann"), None),
    "qmail-queue writing the queue": (SECCOMP, ("qmailq", "qmail-queue", "QMAILDOOR=direct"), ACCEPT),
    "qmail-queue asking qmail-queued": (LANDLOCK, ("joe", "qmail-queue"), NO_FILTER),
    "qmail-send where its user owns the queue": (LANDLOCK, "send_own", NO_FILTER | ACCEPT | queue(
        "make info/0 local/0 remote/0 bounce", "write info/0 local/0 remote/0 bounce", "unlink info/0 local/0 remote/0 bounce") |
        {"control", "fork", "a message"}),
    "qmail-send with QMAILQUEUE": (LIMITS, "send_filter", None),
    "qmail-start": (LIMITS, ("root", "qmail-start"), None),
    "qmail-rspawn with another program": (LIMITS, ("qmailr", "qmail-rspawn", "QMAILREMOTE=/bin/true"), None),
    "forward": (LIMITS, ("joe", "forward", "NEWSENDER=joe", "DTLINE=x", "ann"), None),
    "maildirmake": (LANDLOCK, ("joe", "maildirmake", "/home/joe/M"), NO_FILTER),
    "tcprules": (LANDLOCK, ("joe", "tcprules", "/home/joe/x.cdb", "/home/joe/x.tmp"), NO_FILTER | NAMED),
    "tcprulescheck": (LANDLOCK, ("joe", "tcprulescheck", "/var/qmail/tcp/smtp.cdb"), NO_FILTER),
    "relay-ctrl-check": (LIMITS, ("qmaild", "relay-ctrl-check", "-d", "/home/joe/read", "true"), None),
    "tlscert": (LANDLOCK, ("joe", "tlscert", "-k", "/home/joe", "test.example"), NO_FILTER | NAMED),
    "tlsclient": (LIMITS, ("qmailr", "tlsclient", "true"), None),
    "mta-sts": (LIMITS, ("qmailr", "mta-sts", "true"), None),
    "mta-sts asked by a person": (SECCOMP, ("joe", "mta-sts", "-q", "far.example"), {"udp"}),
    "popauth": (LIMITS, ("root", "popauth", "-d", "/home/joe/read", "checkpassword", "popauth", "true"), None),
    "authpasswd": (LANDLOCK, ("joe", "authpasswd", "-P", "", "/home/joe/passwd", "ann"), NO_FILTER | NAMED),
    "qmail-newu": (LANDLOCK, ("root", "qmail-newu"), ROOT_TOO | {"make users", "write users", "unlink users"}),
    "qmail-pw2u": (LANDLOCK, ("joe", "qmail-pw2u"), NO_FILTER),
    "checkpassword": (LIMITS, ("root", "checkpassword", "true"), None),
    "checkpassword-file": (LIMITS, ("joe", "checkpassword-file", "/dev/null", "true"), None),
    "checkpassword-cram": (LIMITS, ("joe", "checkpassword-cram", "/home/joe/passwd", "true"), None),
    "checkpassword-pam": (LIMITS, ("root", "checkpassword-pam", "true"), None),
    "checkpassword-dovecot": (LIMITS, ("root", "checkpassword-dovecot", "true"), None),
    "checkpassword-saslauthd": (LIMITS, ("root", "checkpassword-saslauthd", "true"), None),
    "checkpassword-any": (LIMITS, ("root", "checkpassword-any", "checkpassword", "--", "true"), None),
    "qmail-showctl": (LANDLOCK, ("joe", "qmail-showctl"), NO_FILTER | {"control"}),
    "qmail-qread": (LANDLOCK, ("qmails", "qmail-qread"), NO_FILTER),
    "qmail-fix": (LANDLOCK, ("root", "qmail-fix"), ROOT_TOO | {"a message"} | queue(
        *(f"{verb} mess/0 intd todo pid info/0 local/0 remote/0 bounce lock" for verb in ("make", "write", "unlink")))),
    "qmail-qstat": (LIMITS, None, None),  # a shell script
    "qmail-tcpto": (LANDLOCK, ("qmailr", "qmail-tcpto"), NO_FILTER),
    "qmail-tcpok": (LANDLOCK, ("qmailr", "qmail-tcpok"), NO_FILTER),
    "qmail-newmrh": (LANDLOCK, ("root", "qmail-newmrh"), ROOT_TOO | {"control", "make control", "write control", "unlink control"}),
    "qmail-newsenders": (LANDLOCK, ("root", "qmail-newsenders"),
                         ROOT_TOO | {"control", "make control", "write control", "unlink control"}),
}


class Injected(unittest.TestCase):
    """A system home with mail flowing; every program attacked at a known point of its life."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        os.umask(0o022)
        made("--me", "test.example")
        sh("useradd -m joe; useradd -m ann; chmod 711 /home/joe; chmod 700 /home/ann")
        sh("chpasswd", input=f"joe:{PASSWORD}\n")
        for name in ("joe", "ann"):
            sh("maildirmake Maildir", cwd=f"/home/{name}", env=ENV, user=name, group=name, extra_groups=[])
        Stage.file("/home/ann/Maildir/new/letter", uid("ann"))
        # One address of the mail that stands still: its server takes connections and says nothing.
        cls.silent = cls.listener(socket.AF_INET, ("127.0.0.1", 0))
        write("control/smtproutes", f"far.example:127.0.0.1:{cls.silent.getsockname()[1]}\n")
        write("control/morercpthosts", "more.example\n")
        os.mkdir(LOOT)
        with open(LOOT + "/public", "w") as f:
            f.write("x\n")
        cls.listener(socket.AF_UNIX, LOOT + "/socket")
        os.chmod(LOOT + "/socket", 0o777)
        cls.listener(socket.AF_UNIX, "\0qmail-loot")
        cls.listener(socket.AF_INET, ("127.0.0.1", 80))
        cls.listener(socket.AF_UNIX, "/var/log.socket")
        cls.send = cls.daemon([HOME + "/bin/qmail-start", "./Maildir/"])
        cls.send.wait_log("^status: local 0/")
        wait_for(lambda: os.path.exists(HOME + "/run/queue"), "the socket")
        cls.smtpd = cls.daemon(["tcpserver", "-v", "-U", "-H", "-R", "-l", "test.example", "127.0.0.1", "25", "qmail-smtpd"],
                               UID=str(uid("qmaild")), GID=str(gid("nofiles")))
        cls.popd = cls.daemon(["tcpserver", "-v", "-H", "-R", "-l", "0", "127.0.0.1", "110", "qmail-popup", "test.example",
                               "checkpassword", "qmail-pop3d", "Maildir"])
        for server in (cls.smtpd, cls.popd):
            server.wait_log("status: 0/")
        # The key of who speaks TLS is root's alone, as tlscert makes it.
        sh("tlscert test.example", env=ENV)
        write("/home/joe/passwd", "")
        cls.stages, cls.frees = {}, {}

    @classmethod
    def listener(cls, family, address):
        s = socket.socket(family)
        cls.addClassCleanup(s.close)
        s.bind(address)
        s.listen(4096)  # nobody accepts
        return s

    @classmethod
    def daemon(cls, argv, **env):
        daemon = Daemon(argv, env={**ENV, **env}, cwd="/")
        cls.addClassCleanup(daemon.stop)
        return daemon

    # -- getting hold of them: each gives (attacker, whether it has to go on, the home)

    def found(self, name, of=None, user=None):
        """The pid of the one process with this name (and this uid) that descends from a daemon."""
        def look():
            pids = [pid for pid, called in harness.family((of or self.send).pid).items() if called == name[:15]]
            with contextlib.suppress(OSError):  # one is gone meanwhile: look again
                return [pid for pid in sorted(pids) if user is None or self.ids(pid)[0] == user][-1:]
        return wait_for(look, f"a {name}")[0]

    @staticmethod
    def ids(pid):
        with open(f"/proc/{pid}/status") as f:
            status = dict(line.split(":", 1) for line in f.read().splitlines())
        return int(status["Uid"].split()[1]), int(status["Gid"].split()[1]), status

    def closed(self, pid, jail):
        """Waits until a living program has closed its jail: it sleeps, and closing one is no reason to."""
        def look():
            status = self.ids(pid)[2]
            return jail in (OPEN, LIMITS) or status["State"].split()[0] == "S" and int(status["NoNewPrivs"]) and (
                jail == LANDLOCK or int(status["Seccomp"]) == 2)
        wait_for(look, f"the jail of process {pid}")

    @contextlib.contextmanager
    def daemon_held(self, name):
        if name == "qmail-queued":
            pid = wait_for(lambda: int(open(HOME + "/run/queue.lock").read().strip() or 0), "qmail-queued")
        else:
            def first():
                # Not one of its own children, which go when they like.
                called = {pid for pid, called in harness.family(self.send.pid).items() if called == name[:15]}
                return [pid for pid in called if harness.parent(pid) not in called]
            pid = wait_for(first, f"a {name}")[0]
        self.closed(pid, ROWS[name][0])
        with Attacker(pid) as a:
            yield a, True, HOME
        # It does what it is there for.
        before = set(os.listdir("/home/ann/Maildir/new"))
        self.inject("ann@test.example")
        wait_for(lambda: set(os.listdir("/home/ann/Maildir/new")) - before, "mail to go on")

    @contextlib.contextmanager
    def queued_worker(self, _):
        server = int(open(HOME + "/run/queue.lock").read())
        wait_for(lambda: set(harness.family(server)) == {server}, "earlier workers to go home")
        r, w = os.pipe()
        client = subprocess.Popen(["qmail-queue"], env=ENV, stdin=r, stdout=subprocess.DEVNULL, user="joe", group="joe", extra_groups=[],
                                  executable=HOME + "/bin/qmail-queue", close_fds=True)
        os.close(r)
        try:
            pid = wait_for(lambda: set(harness.family(server)) - {server}, "a worker of qmail-queued").pop()
            self.closed(pid, SECCOMP)
            with Attacker(pid) as a:
                yield a, False, HOME
        finally:
            client.kill()
            client.wait()
            os.close(w)

    @contextlib.contextmanager
    def tcpserver(self, _):
        with Attacker(self.smtpd.pid) as a:
            yield a, True, HOME
        # It still takes connections.
        with Line.connect(25) as line:
            line.expect("220 ...")

    def sessions(self):
        return [int(pid) for pid in re.findall(r"^tcpserver: ok (\d+) ", self.smtpd.log(), re.M)]

    @contextlib.contextmanager
    def smtp_session(self, _):
        before = len(self.sessions())
        with Line.connect(25) as line:
            line.expect("220 ...")
            wait_for(lambda: len(self.sessions()) > before, "the session in the log")
            pid = self.sessions()[-1]
            self.closed(pid, SECCOMP)
            with Attacker(pid) as a:
                yield a, True, HOME
            if not a.gone:
                line.send("NOOP\r\n")
                line.expect("250 ...")

    @contextlib.contextmanager
    def smtp_ready(self, _):
        def stays():
            with Line.connect(25) as line:  # another one, when that of the last session went home
                line.expect("220 ...")
                line.send("QUIT\r\n")
                line.expect("221 ...")
            served = self.sessions()
            found = [pid for pid, name in harness.family(self.smtpd.pid).items() if name == "qmail-smtpd" and pid not in served]
            return found[0] if len(found) == 1 and self.ids(found[0])[2]["Seccomp"].split() == ["2"] else None
        pid = wait_for(stays, "a process that stays ready")
        self.closed(pid, SECCOMP)
        with Attacker(pid) as a:
            yield a, True, HOME

    @contextlib.contextmanager
    def filtered_session(self, name):
        with Line.start(["setpriv", "--reuid", "qmaild", "--regid", "nofiles", "--clear-groups", HOME + "/bin/qmail-smtpd"],
                        env={**ENV, "QMAILQUEUE": "/bin/true"}) as line:
            line.expect("220 ...")
            launcher = line.process.pid
            pid = wait_for(lambda: set(harness.family(launcher)) - {launcher}, "the child that talks").pop()
            self.closed(pid, SECCOMP)
            with Attacker(pid) as a:
                yield a, True, HOME
            if not a.gone:
                line.send("NOOP\r\n")
                line.expect("250 ...")

    @contextlib.contextmanager
    def asking(self, lookups, source, **env):
        """A tcpserver with a connection that waits for the answer to a question; who asked it."""
        with Daemon(["tcpserver", "-1", lookups, "-l0", "-u", str(uid("qmaild")), "-g", str(gid("nofiles")), "0.0.0.0", "0", "cat"],
                    env={**ENV, **env}, cwd="/") as server:
            port = int(server.wait_log(r"^(\d+)$")[1])
            with socket.create_connection(("127.0.0.1", port), source_address=(source, 0)) as s:
                s.settimeout(harness.TIMEOUT)
                pids = wait_for(lambda: len(found := harness.family(server.pid)) == 3 and found, "who asks")
                [child] = [pid for pid in pids if pid != server.pid and harness.parent(pid) != server.pid]
                self.closed(child, SECCOMP)
                with Attacker(child) as a:
                    yield a, False, HOME
                with contextlib.suppress(ProcessLookupError):  # the last attack may have ended it
                    os.kill(child, signal.SIGKILL)
                s.sendall(b"it goes on\n")
                self.assertEqual(s.recv(100), b"it goes on\n")

    def names(self, _):
        silent = socket.socket(type=socket.SOCK_DGRAM)
        self.addCleanup(silent.close)
        silent.bind(("127.0.0.1", 0))
        return self.asking("-R", "127.0.0.1", DNSCACHEIP=f"127.0.0.1:{silent.getsockname()[1]}")

    def ident(self, _):
        silent = self.listener(socket.AF_INET, ("127.0.0.9", 113))
        self.addCleanup(silent.close)
        return self.asking("-H", "127.0.0.9")

    @contextlib.contextmanager
    def popup(self, _):
        with Line.connect(110) as line:
            line.expect("+OK...")
            # The classic way there are two, and this is the one that reads. The other ends it when it becomes a shell.
            with Attacker(self.found("qmail-popup", self.popd)) as a:
                yield a, True, HOME

    @contextlib.contextmanager
    def pop3d(self, _):
        with Line.connect(110) as line:
            line.expect("+OK...")
            line.send(f"USER joe\r\nPASS {PASSWORD}\r\n")
            line.expect("+OK...")
            line.expect("+OK...")
            pid = self.found("qmail-pop3d", self.popd)
            self.closed(pid, SECCOMP)
            with Attacker(pid) as a:
                yield a, True, HOME
            if not a.gone:
                line.send("NOOP\r\n")
                line.expect("+OK...")

    @contextlib.contextmanager
    def tls(self, name):
        """A tlsserver with a session, which says what it is told."""
        with Daemon(["tlsserver", "-v", "-U", "-1", "-H", "-R", "-l0", "127.0.0.1", "0", "cat"], cwd="/",
                    env={**ENV, "UID": str(uid("qmaild")), "GID": str(gid("nofiles"))}) as server:
            port = int(server.wait_log(r"^(\d+)$")[1])
            believing = ssl.create_default_context()
            believing.check_hostname, believing.verify_mode = False, ssl.CERT_NONE

            def session():
                s = socket.create_connection(("127.0.0.1", port), harness.TIMEOUT)
                with contextlib.ExitStack() as stack:
                    stack.callback(s.close)
                    s = believing.wrap_socket(s)
                    stack.pop_all()
                    return s

            def goes_on(s):
                s.sendall(b"it goes on\n")
                self.assertEqual(s.recv(100), b"it goes on\n")

            with session() as s:
                goes_on(s)
                talks = int(server.wait_log(r"^tlsserver: tls (\d+) ")[1])
                [keeper] = [pid for pid in harness.family(server.pid) if harness.parent(pid) == server.pid and pid != talks]
                pid = server.pid if name == "tlsserver" else keeper if "keys" in name else talks
                self.closed(pid, ROWS[name][0])
                with Attacker(pid) as a:
                    yield a, True, HOME
                if not a.gone:
                    goes_on(s)
                    with session() as another:
                        goes_on(another)

    @contextlib.contextmanager
    def behind(self, name):
        """tlsclient or mta-sts before a program that asks when it is told to, and gets no answer: the child that
        stays, or its child that would answer."""
        program = name.split()[0]
        with socket.socket(type=socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            asker = subprocess.Popen(
                [HOME + "/bin/" + program, PYTHON, "-c", ASKER, str(self.silent.getsockname()[1])], stdin=subprocess.PIPE,
                user="qmailr", group="qmail", extra_groups=[], cwd="/",
                env={**ENV, "DNSCACHEIP": f"127.0.0.1:{silent.getsockname()[1]}"})
            try:
                [keeper] = wait_for(lambda: self.children(asker.pid), "the child that stays")
                [stays] = wait_for(lambda: self.children(keeper), "its child, which hears questions")
                self.closed(stays, LANDLOCK)
                if ROWS[name][0] == LANDLOCK:
                    with Attacker(stays) as a:
                        yield a, True, HOME
                asker.stdin.write(b"\n")
                asker.stdin.flush()
                [answers] = wait_for(lambda: self.children(stays), "who answers")
                self.closed(answers, SECCOMP)
                if ROWS[name][0] == SECCOMP:
                    with Attacker(answers) as a:
                        yield a, False, HOME
            finally:
                asker.kill()
                asker.communicate()

    @staticmethod
    def children(pid):
        return [child for child in harness.family(pid) if harness.parent(child) == pid]

    @contextlib.contextmanager
    def remembering(self, _):
        """The popauth whose checker has not decided."""
        checker = subprocess.Popen(["popauth", "-d", "/home/joe", "cat"], env={**ENV, "TCPREMOTEIP": "192.0.2.1"},
                                   stdin=subprocess.PIPE, executable=HOME + "/bin/popauth", cwd="/")
        try:
            # Between the two there is one that ends at once.
            [pid] = wait_for(lambda: [pid for pid in self.called("popauth") - {checker.pid}
                                      if harness.parent(pid) not in (None, checker.pid)], "its child")
            self.closed(pid, SECCOMP)
            with Attacker(pid) as a:
                yield a, False, HOME
        finally:
            checker.communicate()
            wait_for(lambda: not self.called("popauth"), "its child to go")

    @staticmethod
    def called(name):
        """All processes of this name; those of a test's own sandbox are all that there are."""
        return {pid for pid, called in harness.family(1).items() if called == name}

    @contextlib.contextmanager
    def checking(self, name):
        """A checker that asks a daemon which never answers."""
        r, w = os.pipe()
        os.write(w, b"joe\0wrong\0x\0")
        os.close(w)
        argv = [HOME + "/bin/" + name.split()[0], "-p", LOOT + "/socket", "true"]
        checker = subprocess.Popen(["sh", "-c", f'exec "$@" 3<&{r}', "sh", *argv], env=ENV, pass_fds=[r], cwd="/", user="joe", group="joe",
                                   extra_groups=[], stdin=subprocess.DEVNULL)
        os.close(r)
        try:
            [pid] = wait_for(lambda: self.children(checker.pid), "who asks")
            self.closed(pid, SECCOMP)
            # Else it would end its child when that has taken too long.
            checker.send_signal(signal.SIGSTOP)
            with Attacker(pid) as a:
                yield a, False, HOME
        finally:
            checker.kill()
            checker.wait()

    @contextlib.contextmanager
    def remote(self, _):
        with open("/etc/hostname", "rb") as message, Started(
                ["qmail-remote", "far.example", "a@test.example", "b@far.example"], user=(uid("qmailr"), gid("qmail")), env=ENV,
                fds={0: message.fileno()}) as a:
            a.run_to("seccomp", 2)
            yield a, False, HOME

    @contextlib.contextmanager
    def remote_start(self, _):
        with open("/etc/hostname", "rb") as message, Started(
                ["qmail-remote", "far.example", "a@test.example", "b@far.example"], user=(uid("qmailr"), gid("qmail")), env=ENV,
                fds={0: message.fileno()}) as a:
            a.run_to("seccomp")
            yield a, False, HOME

    @contextlib.contextmanager
    def local(self, _):
        os.mkfifo("/home/joe/hold")
        os.chown("/home/joe/hold", uid("joe"), gid("joe"))
        with open("/home/joe/.qmail-hold", "w") as f:
            f.write("|cat hold\n")
        os.chown("/home/joe/.qmail-hold", uid("joe"), gid("joe"))
        self.inject("joe-hold@test.example")
        try:
            pid = self.found("qmail-local", user=uid("joe"))
            with Attacker(pid) as a:
                yield a, True, HOME
        finally:
            # Its program ends, and it.
            wait_for(lambda: self.opened("/home/joe/hold"), "cat to open the fifo")
            os.unlink("/home/joe/hold")

    @staticmethod
    def opened(fifo):
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
            return True
        except OSError:
            return False

    @contextlib.contextmanager
    def splogger(self, _):
        r, w = os.pipe()
        logger = subprocess.Popen([HOME + "/bin/splogger", "x"], stdin=r, env=ENV, user="qmaill", group="nofiles", extra_groups=[])
        os.close(r)
        try:
            self.closed(logger.pid, SECCOMP)
            with Attacker(logger.pid) as a:
                yield a, True, HOME
            if not a.gone:
                os.write(w, b"a line\n")
        finally:
            os.close(w)
            logger.wait(harness.TIMEOUT)

    @contextlib.contextmanager
    def getpw(self, _, sources="files"):
        with open("/etc/nsswitch.conf") as f:
            before = f.read()
        with open("/etc/nsswitch.conf", "w") as f:
            f.write(f"passwd: {sources}\ngroup: files\n")
        try:
            with Started(["qmail-getpw", "joe"], user=(uid("qmailp"), gid("nofiles")), env=ENV) as a:
                a.run_to("seccomp")
                yield a, False, HOME
        finally:
            with open("/etc/nsswitch.conf", "w") as f:
                f.write(before)

    def getpw_far(self, name):
        return self.getpw(name, "files ldap")

    @contextlib.contextmanager
    def sender(self, user, group, call, home=HOME, accept=None, **env):
        """A qmail-send, with the first byte of its spawners."""
        r, w = os.pipe()
        os.write(w, b"\5\5")
        try:
            with Started(["qmail-send"], user=(user, group), env={**ENV, "QMAIL_HOME": home, **env},
                         fds={2: r, 4: r, 1: w, 3: w, 5: w, 6: r}) as a:
                a.run_to(call, accept=accept or (lambda _: True))
                yield a, False, home
        finally:
            os.close(r)
            os.close(w)

    def send_own(self, _):
        if not os.path.exists("/var/own"):
            done = subprocess.run([ROOT + "/scripts/mkhome", "/var/own", "--owner", "joe", "--me", "own.example", "--bin", harness.BIN],
                                  capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
        return self.sender(uid("joe"), gid("joe"), "landlock_restrict_self", "/var/own")

    def send_filter(self, _):
        return self.sender(uid("qmails"), gid("qmail"), "prlimit64", accept=core, QMAILQUEUE="/bin/true")

    @contextlib.contextmanager
    def started(self, name, jail, user, *argv):
        env = dict(word.split("=", 1) for word in argv if re.match("[A-Z]+=", word))
        argv = [word for word in argv if not re.match("[A-Z]+=", word)]
        group = gid({"joe": "joe", "root": "root", "qmaild": "nofiles"}.get(user, "qmail"))
        r, w = os.pipe()
        os.write(w, b"joe\0wrong\0x\0")
        try:
            with Started(argv, user=(uid(user), group), env={**ENV, **env}, fds={3: r} if "checkpassword" in name else None) as a:
                if jail == LIMITS:
                    a.run_to("prlimit64", accept=core)
                elif jail == OPEN:
                    a.run_to("rt_sigaction")
                else:
                    a.run_to("seccomp" if jail == SECCOMP else "landlock_restrict_self")
                yield a, False, HOME
        finally:
            os.close(r)
            os.close(w)

    def held(self, name):
        jail, how, _ = ROWS[name]
        if isinstance(how, tuple):
            return self.started(name, jail, *how)
        return getattr(self, {"daemon": "daemon_held", "smtpd": "smtp_session"}.get(how, how))(name)

    # -- attacking

    def stage(self, user, group, home):
        # Of the same group, too: the kernel keeps processes of another one from being traced by anybody.
        if (user, group, home) not in self.stages:
            victim = subprocess.Popen(["sleep", "100000"], user=user, group=group, extra_groups=[])

            def end():
                victim.kill()
                victim.wait()
            self.addClassCleanup(end)
            wait_for(lambda: waits_in(victim.pid, 230), "the victim to sleep")
            self.stages[user, group, home] = Stage(user, home, victim.pid)
        return self.stages[user, group, home]

    def attack(self, a, stage, without=()):
        """{attack: outcome}."""
        stage.reset()
        outcomes = {}
        for name, attack in ATTACKS.items():
            if name in without or a.gone:
                continue
            outcomes[name] = attack(a, stage)
        stage.clear()
        return outcomes

    def free(self, *account):
        if account not in self.frees:
            self.frees[account] = self.try_free(*account)
        return self.frees[account]

    def try_free(self, user, group, home):
        """What the attacks come to in a program of this account that has no jail; each of the last three in one of its own."""
        outcomes = {}
        last = ("namespace", "shell", "int80")
        for without in (last, *({*ATTACKS} - {name} for name in last)):
            with Started(["cat"], user=(user, group), env=ENV) as a:
                a.run_to("openat")
                outcomes.update(self.attack(a, self.stage(user, group, home), without))
        return outcomes

    def inject(self, recipient):
        done = subprocess.run(["qmail-inject", recipient], input=b"Subject: x\n\nx\n", env={**ENV, "USER": "ann"}, cwd="/", user="ann",
                              group="ann", extra_groups=[], capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    def try_row(self, name):
        jail, _, may = ROWS[name]
        with self.held(name) as (a, goes_on, home):
            user, group, status = self.ids(a.pid)
            self.assertEqual((int(status["NoNewPrivs"]), int(status["Seccomp"])),
                             {OPEN: (0, 0), LIMITS: (0, 0), LANDLOCK: (1, 0), SECCOMP: (1, 2)}[jail])
            free = self.free(user, group, home)
            without = LASTING & {n for n in free if may is None or n in may} if goes_on else set()
            got = self.attack(a, self.stage(user, group, home), without | ({"int80"} if goes_on else set()))
        wrong = {}
        for attack, outcome in got.items():
            if may is None:
                # As its account. What differs is that cat may be looked into by itself.
                right = succeeded(outcome) == succeeded(free[attack]) or attack == "own memory"
            elif attack in UNKNOWN:
                right = True
            elif attack in may:
                # What the system's own settings forbid to everybody is not ours to prove.
                right = succeeded(outcome) or attack in LATER or attack in NO_FILTER and not succeeded(free[attack])
            else:
                right = outcome in REFUSED | ALSO.get(attack, set())
            if not right:
                wrong[attack] = (outcome, "without a jail", free[attack])
        self.assertEqual(wrong, {})
        if may is not None:
            self.assertEqual(may - set(got) - without, set(), "never tried")
        if name in SESSIONS:
            with self.held(name) as (a, _, home):
                got = ATTACKS["int80"](a, self.stage(user, group, home))
            self.assertIn(got, REFUSED | ALSO["int80"])


    def test_every_attack_is_real(self):
        """It succeeds in a program without a jail, of some account; what never does proves nothing."""
        real = set()
        for user, group in ((0, 0), (uid("joe"), gid("joe")), (uid("qmailq"), gid("qmail")), (uid("qmails"), gid("qmail"))):
            real |= {name for name, outcome in self.free(user, group, HOME).items() if succeeded(outcome)}
        # Few kernels know x32; some are without the entry for 32-bit programs, or multipath TCP.
        self.assertEqual(set(ATTACKS) - real - {"x32", "int80", "multipath tcp"}, set())


    def test_a_session_that_takes_logins_reads_no_password_and_no_key(self):
        server = self.daemon(["tcpserver", "-v", "-U", "-H", "-R", "-l", "test.example", "127.0.0.1", "587", "qmail-smtpd",
                              "checkpassword", "true"], UID=str(uid("qmaild")), GID=str(gid("nofiles")), SUBMISSION="1")
        server.wait_log("status: 0/")
        authd = self.daemon([HOME + "/bin/qmail-authd"])
        wait_for(lambda: os.path.exists(HOME + "/run/auth"), "the socket run/auth")
        write("users/passwd", "joe:x:1:1:/\n")
        with Line.connect(587) as line:
            line.expect("220 ...")
            pid = self.found("qmail-smtpd", server)
            self.closed(pid, SECCOMP)
            with Attacker(pid) as a:
                for path in ("/etc/shadow", "/etc/passwd", HOME + "/control/tls/default/key.pem", HOME + "/users/passwd", HOME + "/control/me"):
                    self.assertIn(a.open(path), REFUSED, path)
                for victim in (authd.pid, server.pid):
                    self.assertIn(a.ptrace(victim), REFUSED)
                    self.assertIn(a.process_vm_readv(victim, 4096), REFUSED)
                for refused in (a.fork(), a.setuid(0), a.connect_tcp("127.0.0.1", 80), a.listen_tcp("127.0.0.1", 0)):
                    self.assertIn(refused, {"EPERM", "EACCES", "EAGAIN"})
                self.assertIn(a.execve("/bin/sh", "sh", "-c", ":"), REFUSED)
            line.send("MAIL FROM:<a@b>\r\n")
            line.expect("530 authentication required (#5.7.0)")


class Manifest(unittest.TestCase):
    """The table here and the one of bins/jail, which scripts/check keeps in doc/security.md, say the same."""

    # Where an attack on a place is aimed at, in the words of the manifest, if not at the place of that name.
    ALIASES = {"Maildir": {"new", "cur", "the directories of the files named"}}
    WORDS = {"make": {"create", "write"}, "write": {"write"}, "unlink": {"unlink"}}

    @classmethod
    def setUpClass(cls):
        cls.profiles, shared = {}, {}
        with open(os.path.join(ROOT, "doc", "security.md")) as f:
            lines = f.read().split("<!-- tables")[1].split("<!-- end")[0].splitlines()
        heading = None
        for line in lines:
            cells = [cell.strip() for cell in line.strip("| \n").split(" | ")]
            if cells[0] in ("program", "shared places", "group"):
                heading = cells[0]
            elif heading == "shared places" and len(cells) == 2:
                shared[cells[0]] = cls.places(cells[1], {})
            elif heading == "program" and len(cells) == 6:
                cls.profiles[cells[0].replace("`", "", 2)] = cells[1:]
        cls.shared = shared

    @staticmethod
    def places(text, shared):
        """{place: words} of a cell."""
        found = {}
        for item in text.split("; "):
            item = item.strip("*")
            name, _, words = item.rpartition("` ") if item.startswith("`") else ("", "", item)
            if item in shared:
                for place, more in shared[item].items():
                    found.setdefault(place, set()).update(more)
            elif name:
                found.setdefault(name.strip("`"), set()).update(words.split())
            else:
                for known in ("the directories of the files named", "the file named", "the queue"):
                    if item.startswith(known):
                        found.setdefault(known, set()).update(item[len(known):].split())
        return found

    def test_every_profile_has_its_row_and_every_program_its_profile(self):
        self.assertEqual(set(ROWS), set(self.profiles))
        with open(os.path.join(ROOT, "bins", "MANIFEST")) as f:
            programs = {line.split()[1] for line in f if not line.startswith("#") and ">" not in line}
        self.assertEqual({name.split()[0] for name in ROWS}, programs)

    def test_they_say_the_same_of_jails(self):
        for name, (jail, _, _) in ROWS.items():
            with self.subTest(name):
                self.assertEqual(self.profiles[name][-1].split(":")[0], jail)

    def test_nothing_succeeds_that_the_manifest_does_not_say(self):
        for name, (jail, _, may) in ROWS.items():
            _, files, network, executes, _ = self.profiles[name]
            if may is None:
                self.assertIn(jail, (OPEN, LIMITS), name)
                continue
            with self.subTest(name):
                self.assertNotIn("shell", may)
                self.assertEqual("fork" in may, "under this jail" in executes or name in FORKING or "root" in may)
                if network == "none":
                    self.assertEqual(may & {"tcp", "listen", "abstract socket"}, set())
                if network == "none" and jail == SECCOMP:
                    self.assertEqual(may & {"udp", "socket path", "netlink", "packets"}, set())
                if files == "as before":  # as in the row above
                    above = list(self.profiles)
                    files = self.profiles[above[above.index(name) - 1]][1]
                places = self.places(files, self.shared)
                for attack in may:
                    verb, _, place = attack.partition(" ")
                    if place in PLACES:
                        said = set()
                        given = {"the queue"} if place.startswith("queue/") else set()
                        for known in {place, os.path.dirname(place) or place} | self.ALIASES.get(place, set()) | given:
                            said |= places.get(known, set())
                        self.assertLessEqual(self.WORDS[verb], said, attack)


def core(registers):
    """Whether a prlimit64(2) sets the limit of core dumps."""
    return registers.rsi == 4 and registers.rdx != 0


def test_of(name):
    def test(self):
        self.try_row(name)
    return test


for row, (_, how, _) in ROWS.items():
    if how:
        setattr(Injected, "test_" + re.sub(r"\W+", "_", row), test_of(row))
Injected = ptracer.needed(unittest.skipIf(LANDLOCK_ABI < 3, "this kernel has no Landlock, or one too old: see doc/security.md")(
    sandbox.alone(Injected)))


if __name__ == "__main__":
    unittest.main()
