"""qmail-queued tried by callers that die at every byte, pass strange descriptors, come from other namespaces or in
their thousands, and by chains of filters; and the system around it."""

import array
import contextlib
import os
import pwd
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import unittest

from tests import harness, sandbox
from tests.harness import Daemon, Home, wait_for
from tests.test_system_home import ENV, HOME, gid, made, sh, uid

MESSAGE = b"m\n"
ENVELOPE = b"Fs@h\0Tr@d\0\0"


def close(*descriptors):
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)


def files(queue):
    """Every file of a message, with its directory."""
    return [os.path.join(d, f) for top in ("pid", "mess", "intd", "todo") for d, _, names in os.walk(os.path.join(queue, top))
            for f in names]


class Case(unittest.TestCase):
    """An own home with a qmail-queued in it; `before` is put in front of its command."""

    before = ()

    def setUp(self):
        self.home = Home()
        self.addCleanup(self.home.__exit__)
        self.start()

    def start(self):
        self.daemon = Daemon([*self.before, harness.program("qmail-queued")], env=self.home.env)
        self.addCleanup(self.stop)
        wait_for(lambda: os.path.exists(self.home.file("run/queue")), f"the socket\n{self.daemon.log()}")
        self.server = wait_for(self.find_server, "qmail-queued")

    def find_server(self):
        found = [pid for pid, name in harness.family(self.daemon.pid).items() if name == "qmail-queued"]
        return found[0] if found else None

    def stop(self):
        for pid in self.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server, signal.SIGKILL)
        self.daemon.process.wait(harness.TIMEOUT)
        self.daemon.stop()

    def children(self):
        try:
            with open(f"/proc/{self.server}/task/{self.server}/children") as f:
                return [int(p) for p in f.read().split()]
        except FileNotFoundError:
            return []

    def connect(self):
        s = socket.socket(socket.AF_UNIX)
        self.addCleanup(s.close)
        s.settimeout(harness.TIMEOUT)
        s.connect(self.home.file("run/queue"))
        return s

    def request(self, message, envelope):
        s = self.connect()
        socket.send_fds(s, [b"1"], [message, envelope])
        return s

    def pipe(self, content=None):
        """(read end, write end); with content, written and closed: (read end, -1)."""
        r, w = os.pipe()
        self.addCleanup(close, r, w)
        if content is not None:
            os.write(w, content)
            os.close(w)
            w = -1
        return r, w

    def answer(self, s):
        got = b""
        while chunk := s.recv(300):
            got += chunk
        return got

    def left(self):
        return files(self.home.file("queue"))

    def mess(self):
        """The only message's bytes."""
        [name] = [f for f in self.left() if "/mess/" in f]
        with open(name, "rb") as f:
            return f.read()

    def todo(self):
        [name] = [f for f in self.left() if "/todo/" in f]
        with open(name, "rb") as f:
            return f.read()

    def nothing_stays(self):
        wait_for(lambda: not self.children(), "the child's end")
        self.assertEqual(self.left(), [])

    def others_are_served(self):
        self.assertEqual(self.home.run(["qmail-queue"], env={"QMAILDOOR": "socket"}, fds={0: MESSAGE, 1: ENVELOPE}).code, 0)
        self.assertEqual(len(os.listdir(self.home.file("queue/todo"))), 1)


class Callers(Case):
    def prefixes(self):
        """Every way to stop before the last byte: (message so far, envelope so far or None while the message is open)."""
        return [(MESSAGE[:n], None) for n in range(len(MESSAGE) + 1)] + [(MESSAGE, ENVELOPE[:n]) for n in range(len(ENVELOPE))]

    def feed(self, message, mw, envelope, ew):
        os.write(mw, message)
        if envelope is not None:
            os.close(mw)
            os.write(ew, envelope)

    def test_a_caller_that_leaves_at_any_byte_leaves_nothing(self):
        for message, envelope in self.prefixes():
            for way in ("hangs up", "closes its pipes"):
                with self.subTest(message=message, envelope=envelope, way=way):
                    (mr, mw), (er, ew) = self.pipe(), self.pipe()
                    s = self.request(mr, er)
                    close(mr, er)
                    self.feed(message, mw, envelope, ew)
                    wait_for(lambda: any("/mess/" in f for f in self.left()), "the child at work")
                    if way == "hangs up":
                        s.close()
                    else:
                        close(mw, ew)
                        self.assertEqual(self.answer(s), bytes([54]))
                    self.nothing_stays()
                    close(mw, ew)

    def test_a_qmail_queue_killed_at_any_byte_leaves_nothing(self):
        for message, envelope in self.prefixes():
            with self.subTest(message=message, envelope=envelope):
                (mr, mw), (er, ew) = self.pipe(), self.pipe()
                client = subprocess.Popen([harness.program("qmail-queue")], env={**self.home.env, "QMAILDOOR": "socket"},
                                          stdin=mr, stdout=er)
                try:
                    close(mr, er)
                    self.feed(message, mw, envelope, ew)
                    wait_for(lambda: any("/mess/" in f for f in self.left()), "the child at work")
                finally:
                    client.kill()
                    client.wait()
                self.nothing_stays()
                close(mw, ew)

    def test_a_message_is_visible_only_when_it_is_whole(self):
        (mr, mw), (er, ew) = self.pipe(), self.pipe()
        s = self.request(mr, er)
        for byte in MESSAGE:
            os.write(mw, bytes([byte]))
            self.assertEqual(os.listdir(self.home.file("queue/todo")), [])
        os.close(mw)
        for byte in ENVELOPE[:-1]:
            os.write(ew, bytes([byte]))
            self.assertEqual(os.listdir(self.home.file("queue/todo")), [])
        os.write(ew, ENVELOPE[-1:])
        self.assertEqual(self.answer(s), b"\0")
        self.assertTrue(self.mess().endswith(b"\n" + MESSAGE))
        self.assertIn(ENVELOPE[:-1] + b"p", self.todo())

    def open(self, *args):
        fd = os.open(*args)
        self.addCleanup(close, fd)
        return fd

    def test_a_descriptor_that_cannot_be_read_is_54_at_once(self):
        path = self.home.write("words", MESSAGE)
        strange = {"a directory": self.open(self.home.path, os.O_RDONLY), "O_PATH": self.open(path, os.O_PATH),
                   "a file to write": self.open(path, os.O_WRONLY), "the wrong end of a pipe": self.pipe()[1],
                   "a device to write": self.open("/dev/null", os.O_WRONLY)}
        for what, fd in strange.items():
            for place in ("message", "envelope"):
                with self.subTest(what=what, place=place):
                    good = self.pipe(MESSAGE if place == "envelope" else ENVELOPE)[0]
                    s = self.request(*((fd, good) if place == "message" else (good, fd)))
                    self.assertEqual(self.answer(s), bytes([54]))
                    self.nothing_stays()
        self.others_are_served()

    def test_one_description_for_both_is_read_once_and_has_no_envelope(self):
        path = self.home.write("words", MESSAGE + ENVELOPE)
        for what, fd in (("file", self.open(path, os.O_RDONLY)), ("pipe", self.pipe(MESSAGE + ENVELOPE)[0]),
                         ("device", self.open("/dev/null", os.O_RDONLY))):
            with self.subTest(what=what):
                self.assertEqual(self.answer(self.request(fd, fd)), bytes([54]))
                self.nothing_stays()

    def test_what_never_speaks_holds_only_its_own_child_until_its_caller_leaves(self):
        fifo = self.home.file("fifo")
        os.mkfifo(fifo)
        poller, events = select.epoll(), os.eventfd(0)
        listener, (here, there) = socket.socket(socket.AF_UNIX), socket.socketpair()
        self.addCleanup(lambda: (poller.close(), close(events), listener.close(), here.close(), there.close()))
        listener.bind(self.home.file("listener"))
        listener.listen()
        silent = {"a fifo": self.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "epoll": poller.fileno(), "eventfd": events,
                  "a listener": listener.fileno(), "a socket": here.fileno(), "a pipe": self.pipe()[0]}
        callers = []
        for what, fd in silent.items():
            callers += [self.request(fd, self.pipe(ENVELOPE)[0]), self.request(self.pipe(MESSAGE)[0], fd)]
        wait_for(lambda: sum("/mess/" in f for f in self.left()) == len(callers), "all children at work")
        self.assertEqual(os.listdir(self.home.file("queue/todo")), [])
        for s in callers:
            s.close()
        self.nothing_stays()
        self.others_are_served()

    def test_the_servers_own_connection_as_message_is_a_silent_one(self):
        s = self.connect()
        socket.send_fds(s, [b"1"], [s.fileno(), self.pipe(ENVELOPE)[0]])
        wait_for(lambda: any("/mess/" in f for f in self.left()), "the child at work")
        self.assertEqual(len(self.children()), 1)
        # What the caller says there comes back to nobody; the child does not answer itself.
        s.shutdown(socket.SHUT_RDWR)
        self.nothing_stays()
        self.others_are_served()

    def test_input_without_end_ends_with_its_caller(self):
        s = self.request(self.open("/dev/zero", os.O_RDONLY), self.pipe(ENVELOPE)[0])
        wait_for(lambda: any("/mess/" in f and os.path.getsize(f) > 1 << 20 for f in self.left()), "a mebibyte")
        s.close()
        self.nothing_stays()

    def test_a_file_that_shrank_is_taken_as_it_is_found(self):
        fd = os.memfd_create("m")
        self.addCleanup(close, fd)
        os.write(fd, b"x" * 100)
        os.lseek(fd, 50, os.SEEK_SET)
        os.ftruncate(fd, 10)
        self.assertEqual(self.answer(self.request(fd, self.pipe(ENVELOPE)[0])), b"\0")
        self.assertEqual(self.mess().count(b"\n"), 1)
        self.assertNotIn(b"x", self.mess().split(b"\n", 1)[1])

    def rights(self, *fds):
        return (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))

    def test_only_one_handing_over_of_exactly_two_counts(self):
        m, e = self.pipe(MESSAGE)[0], self.pipe(ENVELOPE)[0]
        many = [m] * 253  # the kernel's own limit
        for what, sent, code in (("one", [self.rights(m)], 74), ("253", [self.rights(*many)], 74),
                                 ("127 and 126", [self.rights(*many[:127]), self.rights(*many[127:])], 74),
                                 ("one and one", [self.rights(m), self.rights(e)], 0)):
            with self.subTest(what=what):
                s = self.connect()
                s.sendmsg([b"1"], sent)
                self.assertEqual(self.answer(s), bytes([code]))
                s.close()
        s = self.connect()
        with self.assertRaises(OSError):
            s.sendmsg([b"1"], [self.rights(*many, m)])
        s.close()
        wait_for(lambda: not self.children(), "the children's end")
        self.assertEqual(len(os.listdir(self.home.file("queue/todo"))), 1)

    def test_descriptors_that_come_later_are_not_taken(self):
        s = self.connect()
        mr, mw = self.pipe()
        socket.send_fds(s, [b"1"], [mr, self.pipe(ENVELOPE)[0]])
        wait_for(lambda: any("/mess/" in f for f in self.left()), "the child at work")
        [child] = self.children()
        before = sorted(os.listdir(f"/proc/{child}/fd"))
        socket.send_fds(s, [b"1"], [mr] * 10)
        os.write(mw, MESSAGE)
        wait_for(lambda: not select.select([mr], [], [], 0)[0], "the message to be read")
        self.assertEqual(sorted(os.listdir(f"/proc/{child}/fd")), before)
        os.close(mw)
        self.assertEqual(s.recv(1), b"\0")

    def test_a_worker_has_the_servers_standard_descriptors_two_sockets_and_what_was_passed(self):
        s = self.request(self.pipe()[0], self.pipe(ENVELOPE)[0])
        wait_for(lambda: any("/mess/" in f for f in self.left()), "the child at work")
        [child] = self.children()
        kinds = sorted(re.sub(r"[\d/].*", "", os.readlink(f"/proc/{child}/fd/{n}")) for n in os.listdir(f"/proc/{child}/fd")
                       if int(n) > 2)
        # "" is mess; one socket is the caller's, the other leads to the server.
        self.assertEqual(kinds, ["", "pipe:[", "pipe:[", "socket:[", "socket:["])
        for n in os.listdir(f"/proc/{child}/fd"):
            if int(n) > 2:
                with open(f"/proc/{child}/fdinfo/{n}") as f:
                    self.assertTrue(int(re.search(r"flags:\s*(\d+)", f.read())[1], 8) & os.O_CLOEXEC)
        s.close()
        self.nothing_stays()

    def test_credentials_that_a_caller_sends_are_not_believed(self):
        if os.geteuid() != 0:
            self.skipTest("only root can say it is another")
        s = self.connect()
        claimed = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iii", 1, 7777, 7777))
        s.sendmsg([b"1"], [claimed, self.rights(self.pipe(MESSAGE)[0], self.pipe(ENVELOPE)[0])])
        self.assertEqual(self.answer(s), b"\0")
        self.assertTrue(self.todo().startswith(b"u0\0p%d +\0" % os.getpid()))


def tracing(*options):
    """strace as a command before another; raises SkipTest."""
    if not shutil.which("strace"):
        raise unittest.SkipTest("strace is not installed")
    if os.geteuid() != 0:
        raise unittest.SkipTest("only root can trace a program that holds others' mail")
    return ("strace", "-f", "-qq", *options)


class Limits(Case):
    """What is armed, seen from outside: nobody waits 20 minutes here."""

    def setUp(self):
        self.trace = os.path.join(harness.scratch(), "trace")
        self.addCleanup(shutil.rmtree, os.path.dirname(self.trace))
        self.before = tracing("-o", self.trace, "-e", "trace=poll,ppoll,setitimer,timer_settime,rt_sigaction")
        super().setUp()

    def test_a_silent_caller_is_waited_for_20_minutes_and_watched_beyond(self):
        s = self.request(self.pipe()[0], self.pipe(ENVELOPE)[0])

        def text():
            with open(self.trace) as f:
                return f.read()
        wait_for(lambda: re.search(r"poll\(\[\{fd=\d+, events=POLLIN\}, \{fd=\d+, events=0\}\], 2,", text()), "the wait")
        [child] = self.children()
        own = "\n".join(line for line in text().splitlines() if line.split()[0] == str(child))
        hello = re.search(r"poll\(\[\{fd=\d+, events=POLLIN\}\], 1, (\d+)", own)
        self.assertTrue(1 <= int(hello[1]) <= 60_001, own)
        wait = re.search(r"events=0\}\], 2, (\d+)", own)
        self.assertTrue(1_100_000 < int(wait[1]) <= 1_200_001, own)
        self.assertRegex(own, r"setitimer\(ITIMER_REAL, \{it_interval=\{tv_sec=0, tv_usec=0\}, it_value=\{tv_sec=1230, tv_usec=0\}\}")
        self.assertRegex(own, r"rt_sigaction\(SIGALRM, \{sa_handler=SIG_DFL")
        self.assertRegex(own, r"timer_settime\(0, 0, \{it_interval=\{tv_sec=15, tv_nsec=0\}")
        parent = wait_for(lambda: re.findall(rf"(?m)^{self.server} .*ppoll\(.*tv_sec=(\d+)", text()), "the parent's wait")
        self.assertTrue(86_000 < int(parent[-1]) <= 86_460, parent)
        s.close()
        self.nothing_stays()

    def test_the_watchdogs_signal_ends_a_child_and_only_that(self):
        s = self.request(self.pipe()[0], self.pipe(ENVELOPE)[0])
        wait_for(lambda: any("/mess/" in f for f in self.left()), "the child at work")
        [child] = self.children()
        os.kill(child, signal.SIGALRM)
        self.assertEqual(self.answer(s), b"")  # which the caller takes for 74
        wait_for(lambda: not self.children(), "the child's end")
        self.assertEqual(os.listdir(self.home.file("queue/todo")), [])
        self.others_are_served()


class Blocked(Case):
    """A read that blocks though poll promised something: strace tells the child so of an empty pipe."""

    def setUp(self):
        # A worker's first poll waits for a connection, the second for the request, the third for the message.
        self.before = tracing("-o", "/dev/null", "-e", "trace=poll", "-e", "inject=poll:retval=1:when=3")
        super().setUp()

    def test_the_child_sees_its_caller_leave_all_the_same(self):
        (mr, mw), (er, _) = self.pipe(), self.pipe(ENVELOPE)
        s = self.request(mr, er)
        wait_for(lambda: any("/mess/" in f for f in self.left()), "the child at work")
        [child] = self.children()

        def blocked():
            with open(f"/proc/{child}/wchan") as f:
                return "pipe_read" in f.read()
        wait_for(blocked, "the child to block in read")
        s.close()
        self.nothing_stays()


# A stranger takes its whole share, and then hands over what takes for ever to close: a TCP connection (SO_LINGER)
# whose peer reads nothing. It lies unread in a connection that is refused, and nobody else has it any more.
LINGER = """
import os, socket, struct, sys
senders, held = [], []
for _ in range(3):
    listener = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(listener.getsockname())
    held.append(listener.accept()[0])
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(65536))
    except BlockingIOError:
        pass
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30000))
    senders.append(sender)
os.setgroups([])
os.setresgid(54321, 54321, 54321)
os.setresuid(54321, 54321, 54321)
def connected():
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect(sys.argv[1])
    return held[-1]
for _ in range(60):
    connected()
for sender in senders:
    socket.send_fds(connected(), [b"1"], [sender.fileno()])
    sender.close()
print("handed over", flush=True)
sys.stdin.read()
"""


@unittest.skipUnless(os.geteuid() == 0, "another user is needed")
class Lingering(Case):
    def test_what_a_refused_caller_passed_does_not_hold_the_server(self):
        os.chmod(self.home.path, 0o755)
        os.kill(self.server, signal.SIGSTOP)  # so that all is there when it looks
        self.addCleanup(lambda: os.kill(self.server, signal.SIGCONT))
        stranger = subprocess.Popen([sys.executable, "-c", LINGER, self.home.file("run/queue")], stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE)

        def end():
            stranger.kill()
            stranger.wait()
            stranger.stdin.close()
            stranger.stdout.close()
        self.addCleanup(end)
        self.assertEqual(stranger.stdout.readline(), b"handed over\n")
        os.kill(self.server, signal.SIGCONT)
        self.others_are_served()  # behind the stranger in the line
        wait_for(lambda: len(self.children()) == 60, "the end of the worker that served the others")
        end()
        wait_for(lambda: not self.children(), "the end of its children")


class OutsideItsNamespaces(Case):
    """qmail-queued in pid and user namespaces that its caller is not in."""

    def setUp(self):
        if os.geteuid() != 0:
            self.skipTest("only root can come from outside")
        owner = harness.owner()[1:]
        self.before = ("setpriv", f"--reuid={owner[0]}", f"--regid={owner[1]}", "--clear-groups",
                       "unshare", "-Upf", "--kill-child", f"--map-user={owner[0]}", f"--map-group={owner[1]}")
        tried = subprocess.run([*self.before, "true"], capture_output=True)
        if tried.returncode:
            self.skipTest(f"no namespaces here: {tried.stderr.decode().strip()}")
        super().setUp()

    def test_a_caller_it_cannot_name_is_the_overflow_uid_and_pid_0(self):
        self.assertEqual(self.answer(self.request(self.pipe(MESSAGE)[0], self.pipe(ENVELOPE)[0])), b"\0")
        with open("/proc/sys/kernel/overflowuid") as f:
            nobody = f.read().strip()
        self.assertRegex(self.mess(), rb"^Received: \(qmail 0 invoked by uid %s\);" % nobody.encode())
        self.assertTrue(self.todo().startswith(b"u%s\0p0 +\0" % nobody.encode()))


FLOOD = """
import os, select, socket, sys, time
held, end = [], time.monotonic() + 60
for i in range(200):
    # A process that becomes another uid for every connection, all over the subordinate range of one user.
    os.seteuid(0)
    os.seteuid(100000 + i * 327)
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    m, e = os.pipe(), os.pipe()
    try:
        socket.send_fds(s, [b"1"], [m[0], e[0]])
    except OSError:
        pass  # refused before it asked
    held.append((s, m, e))
refused = 0
while refused < 120 and time.monotonic() < end:
    for entry in select.select([h[0] for h in held], [], [], 1)[0]:
        refused += entry.recv(300)[:1] == bytes([82])
        held = [h for h in held if h[0] is not entry]
print(refused, len(held), flush=True)
sys.stdin.read()
"""

FILTERS = {
    "one": 'exec /var/filters/two',
    "two": '{ echo "X-Filter: two"; cat; } | /var/filters/three',
    "three": f"""t=$(mktemp) && cat >"$t" && exec 0<"$t" && rm "$t"
if grep -q VIRUS /dev/stdin; then printf 'Dno viruses here (#5.7.1)' >&6; exit 82; fi
exec {HOME}/bin/qmail-queue 0</dev/stdin""",
}


@sandbox.alone
class SystemHome(unittest.TestCase):
    """All of a system home, with joe and ann; each test injects with words of its own."""

    @classmethod
    def setUpClass(cls):
        made("--me", "test.example")
        sh("useradd -m joe; useradd -m ann")
        for name in ("joe", "ann"):
            sh("maildirmake Maildir", cwd=f"/home/{name}", env=ENV, user=name, group=name, extra_groups=[])
        os.mkdir("/var/filters")
        for name, text in FILTERS.items():
            with open(f"/var/filters/{name}", "w") as f:
                f.write(f"#!/bin/sh\n{text}\n")
            os.chmod(f"/var/filters/{name}", 0o755)
        cls.start()

    @classmethod
    def start(cls):
        cls.send = Daemon([HOME + "/bin/qmail-start", "./Maildir/"], env=ENV, cwd="/")
        cls.send.wait_log("^status: local 0/")
        wait_for(lambda: os.path.exists(HOME + "/run/queue"), "the socket")

    @classmethod
    def tearDownClass(cls):
        cls.send.stop()

    def run_as(self, name, argv, stdin=b"", env=None, **more):
        p = pwd.getpwnam(name)
        return subprocess.run(argv, input=stdin, capture_output=True, env={**ENV, **(env or {})}, cwd="/", user=name,
                              group=p.pw_gid, extra_groups=[p.pw_gid], timeout=harness.TIMEOUT, **more)

    def word(self):
        return "w" + os.urandom(6).hex()

    def inject(self, name, recipient, word, env=None):
        done = self.run_as(name, ["qmail-inject", recipient], f"Subject: {word}\n\nx\n".encode(), env)
        self.assertEqual(done.returncode, 0, done.stderr)

    def smtp(self, word, recipient="joe@test.example", env=None):
        """One message by an SMTP session that runs as qmaild, as tcpserver -u starts it; the replies."""
        said = (f"HELO far.example\r\nMAIL FROM:<far@far.example>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n"
                f"Subject: {word}\r\n\r\nx\r\n.\r\nQUIT\r\n")
        done = self.run_as("qmaild", ["qmail-smtpd"], said.encode(), {"TCPREMOTEIP": "192.0.2.1", **(env or {})})
        return done.stdout.decode()

    def arrived(self, name, word):
        def look():
            for f in os.listdir(f"/home/{name}/Maildir/new"):
                with open(f"/home/{name}/Maildir/new/{f}") as m:
                    text = m.read()
                if word in text:
                    return text
            return None
        try:
            return wait_for(look, f"{word} for {name}")
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.send.log()[-3000:]}") from None

    def test_each_account_is_said_in_its_own_form(self):
        for name, form in (("joe", f"by uid {uid('joe')}"), ("qmaild", "from network"), ("qmails", "for bounce"),
                           ("alias", "by alias"), ("root", "by uid 0")):
            with self.subTest(name=name):
                word = self.word()
                script = f"printf 'Subject: {word}\\n\\nx\\n' | qmail-queue 1</var/filters/envelope"
                with open("/var/filters/envelope", "wb") as f:
                    f.write(b"Fjoe@test.example\0Tann@test.example\0\0")
                done = self.run_as(name, ["sh", "-c", script])
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertRegex(self.arrived("ann", word), rf"\nReceived: \(qmail [1-9]\d* invoked {form}\);")

    def test_a_subordinate_range_floods_while_mail_goes_on(self):
        flood = subprocess.Popen([sys.executable, "-c", FLOOD, HOME + "/run/queue"], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE)

        def end():
            flood.kill()
            flood.wait()
            flood.stdin.close()
            flood.stdout.close()
        self.addCleanup(end)
        # The range touches two blocks of 65536, of which each is one person: 60 connections each.
        self.assertEqual(flood.stdout.readline(), b"80 120\n")
        words = [self.word() for _ in range(4)]
        self.assertIn("\r\n250 ok", self.smtp(words[0]))
        self.inject("joe", "ann@test.example", words[1])
        self.inject("ann", "joe@test.example", words[2])
        self.inject("root", "joe@test.example", words[3])
        for name, word in zip(("joe", "ann", "joe", "joe"), words):
            self.arrived(name, word)

    def test_a_caller_in_other_namespaces_is_who_the_kernel_says_here(self):
        # It sees neither /var nor our processes; it is root there, and joe here.
        sh(f"mkdir -p /mnt/elsewhere; mount --bind {HOME} /mnt/elsewhere")
        self.addCleanup(sh, "umount /mnt/elsewhere")
        word = self.word()
        client = ("import os, socket, sys\n"
                  "assert os.getuid() == 0 and os.getpid() < 10 and not os.path.exists('/var/qmail')\n"
                  "s = socket.socket(socket.AF_UNIX)\ns.connect('/mnt/elsewhere/run/queue')\n"
                  "m, e = os.pipe(), os.pipe()\n"
                  "socket.send_fds(s, [b'1'], [m[0], e[0]])\n"
                  f"os.write(m[1], b'Subject: {word}\\n\\nx\\n')\nos.close(m[1])\n"
                  "os.write(e[1], b'Fjoe@test.example\\0Tann@test.example\\0\\0')\nos.close(e[1])\n"
                  "sys.exit(s.recv(1)[0])\n")
        python = shutil.which("python3", path="/usr/bin:/bin") or sys.executable  # one that joe can run
        hide = 'mount -t tmpfs none /var && exec "$@"'
        done = self.run_as("joe", ["unshare", "-Urmpnf", "--mount-proc", "sh", "-c", hide, "sh", python, "-c", client])
        if done.returncode and b"Operation not permitted" in done.stderr:
            self.skipTest(f"users make no namespaces here: {done.stderr.decode()}")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(self.arrived("ann", word), rf"\nReceived: \(qmail [1-9]\d* invoked by uid {uid('joe')}\);")

    def test_the_program_too_works_from_other_namespaces_under_another_path(self):
        sh(f"mkdir -p /mnt/beyond; mount --bind {HOME} /mnt/beyond")
        self.addCleanup(sh, "umount /mnt/beyond")
        word = self.word()
        command = f"printf 'Subject: {word}\\n\\nx\\n' | /mnt/beyond/bin/qmail-inject ann@test.example"
        done = self.run_as("joe", ["unshare", "-Umpnf", "--mount-proc", f"--map-user={uid('joe')}", f"--map-group={gid('joe')}",
                                   "sh", "-c", command], env={"QMAIL_HOME": "/mnt/beyond", "PATH": f"/mnt/beyond/bin:{os.environ['PATH']}"})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(self.arrived("ann", word), rf"\nReceived: \(qmail [1-9]\d* invoked by uid {uid('joe')}\);")

    CHAIN = {"QMAILQUEUE": "/var/filters/one"}

    def test_a_chain_of_three_filters_alters_and_passes_on(self):
        words = [self.word() for _ in range(3)]
        self.assertIn("\r\n250 ok", self.smtp(words[0], env=self.CHAIN))
        self.inject("ann", "joe@test.example", words[1], self.CHAIN)
        done = self.run_as("ann", ["sendmail", "joe@test.example"], f"Subject: {words[2]}\n\nx\n".encode(), self.CHAIN)
        self.assertEqual(done.returncode, 0, done.stderr)
        for word, form in zip(words, ("from network", f"by uid {uid('ann')}", f"by uid {uid('ann')}")):
            text = self.arrived("joe", word)
            self.assertIn("\nX-Filter: two\n", text)
            self.assertRegex(text, rf"\nReceived: \(qmail \d+ invoked {form}\);")

    def test_a_filter_at_the_end_of_a_chain_refuses_with_its_own_words(self):
        word = "VIRUS" + self.word()
        self.assertIn("\r\n554 no viruses here (#5.7.1)\r\n", self.smtp(word, env=self.CHAIN))
        for argv in (["qmail-inject", "joe@test.example"], ["sendmail", "joe@test.example"]):
            done = self.run_as("ann", argv, f"Subject: {word}\n\nx\n".encode(), self.CHAIN)
            self.assertIn(b"no viruses here (#5.7.1)", done.stderr)
            self.assertNotEqual(done.returncode, 0)
        self.assertNotIn(word, "".join(os.listdir("/home/joe/Maildir/new")))

    def test_mail_is_accepted_while_qmail_send_is_down_and_delivered_later(self):
        self.assertEqual(self.send.stop(), 0)
        try:
            words = [self.word(), self.word()]
            self.inject("joe", "ann@test.example", words[0])
            self.assertIn("\r\n250 ok", self.smtp(words[1], "ann@test.example"))
            self.assertGreaterEqual(len(os.listdir(HOME + "/queue/todo")), 2)
        finally:
            self.start()
        for word in words:
            self.arrived("ann", word)

    def test_zz_when_all_is_done_nothing_is_left_of_anybody(self):
        wait_for(lambda: not files(HOME + "/queue"), "an empty queue")


if __name__ == "__main__":
    unittest.main()
