"""qmail-smtpd that stays ready behind tcpserver (qmail::forkserver): every connection has a process of its own, its own
environment and what control/ says now, whatever becomes of the process that forks them."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

from tests import harness
from tests.harness import Daemon, Home, Line, wait_for

PATIENCE = 2.2  # seconds: tcpserver has 2 with who does not answer
SESSIONS = 1100  # a ready process is followed by another one after 1000


class Ready(unittest.TestCase):
    program = ("qmail-smtpd",)
    options = ("-H", "-R", "-l", "test.example")

    def setUp(self):
        self.home = Home(users={"joe": ""})
        self.addCleanup(self.home.__exit__)
        self.home.start()
        self.env = {**self.home.env, "QMAILDOOR": "socket"}  # as where the queue is another account's
        # The owner's: the programs run as that.
        self.rules = os.path.join(self.home.path, "rules.cdb")

    def serve(self, *options, rules=None):
        if rules is not None:
            temporary = os.path.join(self.home.path, "rules.tmp")
            made = harness.run(["tcprules", self.rules, temporary], stdin=rules.encode(), env=self.env)
            self.assertEqual(made.code, 0, made.err)
            options = (*options, "-x", self.rules)
        argv = ["tcpserver", "-v", "-1", *harness.as_owner(), *self.options, *options, "127.0.0.1", "0", *self.program]
        self.server = Daemon(argv, env=self.env)
        self.addCleanup(self.end, self.server)
        self.port = int(self.server.wait_log(r"^(\d+)$")[1])

    def end(self, server):
        children = [pid for pid in harness.family(server.pid) if pid != server.pid]
        server.stop()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def connect(self):
        return Line.connect(self.port)

    def session(self, *commands, greeting="220 test.example ESMTP"):
        """The replies to these commands, then QUIT."""
        with self.connect() as line:
            line.expect(greeting)
            replies = []
            for command in commands:
                line.send(command + "\r\n")
                replies.append(line.expect("..."))
            line.send("QUIT\r\n")
            line.expect("221 ...")
            return replies

    def ready(self):
        """The process that stays: a child of tcpserver that no line of the log names."""
        children = harness.family(self.server.pid)
        log = self.server.log()
        found = [pid for pid, name in children.items() if name == "qmail-smtpd" and harness.parent(pid) == self.server.pid
                 and not re.search(rf"^tcpserver: pid {pid} ", log, re.M)]
        return found[0] if len(found) == 1 else None

    def begin(self):
        self.session()
        return wait_for(self.ready, "a process that stays")

    def oks(self):
        """The processes that got a connection, in the order of the log."""
        return [int(pid) for pid in re.findall(r"^tcpserver: ok (\d+) ", self.server.log(), re.M)]

    @contextlib.contextmanager
    def talking(self):
        """A session that is open, and its process."""
        before = len(self.oks())
        with self.connect() as line:
            line.expect("220 ...")
            wait_for(lambda: len(self.oks()) > before, "the session in the log")
            yield line, self.oks()[-1]


class Sessions(Ready):
    def test_each_connection_is_a_process_with_the_lines_it_always_had(self):
        self.serve("-c", "7")
        ready = self.begin()
        with self.talking() as (_, pid):
            self.assertEqual(harness.parent(pid), self.server.pid)
            self.assertNotEqual(pid, ready)
            # Started for the connection it would have it on 0.
            self.assertEqual(os.readlink(f"/proc/{pid}/fd/0"), "/dev/null")
            with open(f"/proc/{pid}/limits") as f:
                self.assertRegex(f.read(), r"(?m)^Max processes +0 +0 ")
        lines = [self.connect() for _ in range(5)]
        try:
            for line in lines:
                line.expect("220 ...")
        finally:
            for line in lines:
                line.close()
        log = wait_for(lambda: self.server.log() if self.server.log().endswith("status: 0/7\n") else None, "all to have ended")
        pids = [re.findall(rf"^tcpserver: {word} (\d+) ", log, re.M) for word in ("pid", "ok", "end")]
        self.assertEqual(len(pids[0]), 7)
        self.assertEqual(len(set(pids[0])), 7)
        self.assertEqual(sorted(pids[0]), sorted(pids[1]))
        self.assertEqual(sorted(pids[0]), sorted(pids[2]))
        self.assertRegex(log, r"(?m)^tcpserver: pid \d+ from 127\.0\.0\.1$")
        self.assertRegex(log, rf"(?m)^tcpserver: ok \d+ test\.example:127\.0\.0\.1:{self.port} :127\.0\.0\.1::\d+$")

    def test_the_limit_of_processes_holds(self):
        self.serve("-c", "2")
        self.begin()
        with self.connect() as one, self.connect() as two:
            one.expect("220 ...")
            two.expect("220 ...")
            with self.connect() as three:
                two.close()
                three.expect("220 ...")
        self.assertNotIn("status: 3/2", self.server.log())

    def test_more_sessions_than_a_process_serves_and_each_is_served_once(self):
        self.serve()
        self.begin()
        for _ in range(SESSIONS):
            self.assertEqual(self.session("NOOP", "RSET"), ["250 ok", "250 flushed"])
        log = self.server.log()
        self.assertEqual(len(re.findall(r"^tcpserver: ok ", log, re.M)), SESSIONS + 1)

    def test_mail_comes_in(self):
        self.serve()
        self.home.control("rcpthosts", "test.example\n")
        self.begin()
        replies = self.session("MAIL FROM:<a@b.example>", "RCPT TO:<joe@test.example>", "DATA", "Subject: x\r\n\r\nhello\r\n.")
        self.assertRegex(replies[-1], r"^250 ok \d+ qp \d+$")
        message = wait_for(self.home.messages, "the message")[0]
        self.assertIn(b"(127.0.0.1)", message)
        self.assertIn(b"\nhello\n", message)


class Changes(Ready):
    def test_control_holds_from_the_next_connection_on(self):
        self.serve()
        self.begin()
        for n in range(20):
            name = f"greeting-{n}.example"
            self.home.control("smtpgreeting", name + "\n")
            self.session(greeting=f"220 {name} ESMTP")
        self.home.remove_control("smtpgreeting")
        self.session()

    def test_also_behind_a_link(self):
        elsewhere = tempfile.mkdtemp(prefix="qmail-forkserver-")
        self.addCleanup(shutil.rmtree, elsewhere)
        os.chmod(elsewhere, 0o755)
        target = os.path.join(elsewhere, "mailname")

        def name(text):
            with open(target + ".new", "w") as f:
                f.write(text)
            os.chmod(target + ".new", 0o644)
            os.rename(target + ".new", target)
        name("one.example\n")
        os.symlink(target, self.home.file("control/smtpgreeting"))
        self.serve()
        self.session(greeting="220 one.example ESMTP")
        wait_for(self.ready, "a process that stays")
        name("two.example\n")
        self.session(greeting="220 two.example ESMTP")

    def test_broken_control_is_refused_as_ever(self):
        self.serve()
        self.begin()
        self.home.remove_control("me")
        with self.connect() as line:
            line.expect("421 ...")
        self.server.wait_log(r"^qmail-smtpd: fatal: control/smtpgreeting and control/me do not exist$")

    def test_rules_hold_for_their_connection_only(self):
        self.home.control("rcpthosts", "test.example\n")
        self.serve(rules="127.0.0.1:allow,RELAYCLIENT=\"\",DATABYTES=\"3\"\n127.0.0.2:allow\n127.0.0.3:deny\n:allow\n")
        relay, plain = ("127.0.0.1", "250 ok"), ("127.0.0.2", "553 ...")
        for source, reply in [relay, plain, relay, plain, plain, relay, plain]:
            with self.connect_from(source) as line:
                line.expect("220 ...")
                line.send("MAIL FROM:<a@b.example>\r\n")
                line.expect("250 ok")
                line.send("RCPT TO:<x@elsewhere.example>\r\n")
                line.expect(reply)
                line.send("RSET\r\nMAIL FROM:<a@b.example> SIZE=10\r\n")
                line.expect("250 flushed")
                line.expect("552 ..." if source == "127.0.0.1" else "250 ok")
        with self.connect_from("127.0.0.3") as line:
            self.assertEqual(line.reader.read(), b"")
        self.server.wait_log(r"^tcpserver: deny ")

    def connect_from(self, source):
        s = socket.create_connection(("127.0.0.1", self.port), harness.TIMEOUT, (source, 0))
        f, r = s.makefile("rwb", buffering=0), s.makefile("rb")

        def close():
            for thing in (r, f, s):
                thing.close()
        return Line(r, f, close)

    def test_a_queue_program_of_the_rules_is_used(self):
        script = self.home.file("filter")
        with open(script, "w") as f:
            f.write("#!/bin/sh\ncat >/dev/null; cat <&1 >/dev/null; exit 31\n")
        os.chmod(script, 0o755)
        self.home.control("rcpthosts", "test.example\n")
        self.serve(rules=f'127.0.0.2:allow,QMAILQUEUE="{script}"\n:allow\n')
        self.begin()
        for source, reply in [("127.0.0.2", "554 ..."), ("127.0.0.1", "250 ok ..."), ("127.0.0.2", "554 ...")]:
            with self.connect_from(source) as line:
                line.expect("220 ...")
                for command, answer in (("MAIL FROM:<a@b.example>", "250 ok"), ("RCPT TO:<joe@test.example>", "250 ok"),
                                        ("DATA", "354 ..."), ("x\r\n.", reply)):
                    line.send(command + "\r\n")
                    line.expect(answer)


class Trouble(Ready):
    def test_killed_it_is_replaced_and_its_sessions_go_on(self):
        self.serve()
        for _ in range(5):
            ready = self.begin()
            with self.connect() as line:
                line.expect("220 ...")
                os.kill(ready, signal.SIGKILL)
                wait_for(lambda: ready not in harness.family(self.server.pid), "its end")
                self.session("NOOP")
                line.send("NOOP\r\n")
                line.expect("250 ok")

    def test_stopped_it_is_given_up(self):
        self.serve()
        ready = self.begin()
        os.kill(ready, signal.SIGSTOP)
        self.session("NOOP")
        wait_for(lambda: ready not in harness.family(self.server.pid), "its end")

    def test_idle_it_goes_home(self):
        self.serve()
        self.begin()
        wait_for(lambda: len(harness.family(self.server.pid)) == 1, "tcpserver to be alone")
        self.session("NOOP")

    def test_it_ends_with_tcpserver_and_sessions_do_not(self):
        self.serve()
        ready = self.begin()
        with self.talking() as (line, pid):
            self.server.process.terminate()
            self.server.process.wait(harness.TIMEOUT)
            wait_for(lambda: not os.path.exists(f"/proc/{ready}"), "its end")
            self.assertTrue(os.path.exists(f"/proc/{pid}"))
            line.send("QUIT\r\n")
            line.expect("221 ...")

    def test_a_program_of_another_file_gets_no_connection_later(self):
        # A wrapper looks at every connection: it must not be passed by.
        wrapper = self.home.file("bin-wrapper/qmail-smtpd")
        os.mkdir(os.path.dirname(wrapper), 0o755)
        with open(wrapper, "w") as f:
            f.write(f"#!/bin/sh\necho wrapped >&2\nexec {harness.program('qmail-smtpd')}\n")
        os.chmod(wrapper, 0o755)
        self.program = (wrapper,)
        self.serve()
        for n in range(5):
            self.session("NOOP")
            wait_for(lambda n=n: self.server.log().count("wrapped") == n + 1, "the wrapper")
        self.assertIsNone(self.ready())

    @unittest.skipUnless(os.geteuid() == 0, "looks at the descriptors of others")
    def test_one_that_cannot_stay_does_not_keep_the_offer(self):
        # Who has that socket is handed the connections of others.
        self.program = ("qmail-smtpd", "/bin/false", "/bin/true")
        self.serve()
        with self.talking():
            wait_for(lambda: len(self.sockets(self.server.pid)) == 1, "tcpserver to see that nobody has it")

    def sockets(self, pid):
        found = []
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
        return [link for link in found if link.startswith("socket:")]

    def test_where_names_are_looked_up_every_connection_starts_a_program(self):
        self.options = ("-h", "-R", "-l", "test.example")
        self.env["DNSCACHEIP"] = "127.0.0.1:9"
        self.serve()
        self.session("NOOP")
        self.session("NOOP")
        self.assertIsNone(self.ready())
        self.assertNotIn("FORKSERVER", self.server.log())


LIAR = r"""
import ctypes, os, platform, signal, socket, struct, sys
CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}[platform.machine()]
CLONE_PARENT = 0x8000
kind, place = sys.argv[1:3]
libc = ctypes.CDLL(None)
offer = os.environ.get("FORKSERVER", "").split(":")

def fork_sibling():
    return libc.syscall(CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)

def note(name):
    open(os.path.join(place, name), "w").close()

if len(offer) == 3 and fork_sibling() == 0:
    signal.alarm(100)
    door = socket.socket(fileno=int(offer[0]))
    door.setblocking(True)
    pid = int(os.readlink("/proc/self"))  # the C library knows the parent's
    say = lambda number, pid: door.send(struct.pack("@Qi", number, pid))
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    if kind == "names another as itself":
        say(0, int(open(os.path.join(place, "victim")).read()))
    else:
        say(0, pid)
    note("ready")
    request, connections, _, _ = socket.recv_fds(door, 100000, 10)
    number, = struct.unpack_from("@Q", request)
    note("asked")
    if kind == "leaves one behind that is silent":
        if os.fork():
            os._exit(0)
        signal.alarm(100)
        os.read(door.fileno(), 1)  # until its end
        os._exit(0)
    elif kind == "says twice that it is ready":
        say(0, pid)
    elif kind == "has others serve":
        say(number, int(open(os.path.join(place, "victim")).read()))
    elif kind == "serves itself":
        say(number, pid)
    elif kind == "talks and talks":
        while True:
            say(1 << 40, 0)
    elif kind == "says what is no word":
        door.send(b"x")
    elif kind == "brings descriptors":
        socket.send_fds(door, [struct.pack("@Qi", number, 0)], [null] * 10)
    elif kind == "is slow":
        while not os.path.exists(os.path.join(place, "answer")):
            pass
        if fork_sibling() == 0:
            say(number, int(os.readlink("/proc/self")))
            note("answered")
            os.write(connections[0], b"220 it\r\n")
            os._exit(0)
        os.close(connections[0])
    signal.pause()
os.write(1, b"220 started\r\n")
sys.stdin.readline()
os.write(1, b"221\r\n")
"""


@unittest.skipUnless(sys.platform == "linux", "a sibling is made by clone(2)")
class Liars(Ready):
    """What stays ready has been taken over: it can say what it likes, and tcpserver serves everybody all the same."""

    def lie(self, kind):
        self.place = tempfile.mkdtemp(prefix="qmail-liar-")
        self.addCleanup(shutil.rmtree, self.place)
        os.chmod(self.place, 0o777)
        path = os.path.join(self.place, "qmail-smtpd")
        with open(path, "w") as f:
            f.write("#!/usr/bin/env python3" + LIAR)
        os.chmod(path, 0o755)
        self.program = (path, kind, self.place)
        with open(os.path.join(self.place, "victim"), "w") as f:
            account = {"user": harness.owner()[1]} if os.geteuid() == 0 else {}
            self.victim = subprocess.Popen(["sleep", "1000"], **account)
            f.write(str(self.victim.pid))
        self.addCleanup(self.victim.wait)
        self.addCleanup(self.victim.kill)
        self.serve("-c", "2")

    def told(self, name):
        return os.path.exists(os.path.join(self.place, name))

    def served(self):
        with self.connect() as line:
            line.expect("220 started")
            line.send("QUIT\r\n")
            line.expect("221")

    def test_whatever_it_says_everybody_is_served_and_no_place_is_lost(self):
        for kind in ("leaves one behind that is silent", "says twice that it is ready", "has others serve", "serves itself", "talks and talks",
                     "says what is no word", "is silent", "names another as itself"):
            with self.subTest(kind):
                self.lie(kind)
                self.served()
                wait_for(lambda: self.told("ready"), "the liar to be ready")
                for _ in range(4):
                    self.served()
                self.assertEqual(self.told("asked"), kind != "names another as itself")
                self.server.wait_log(r"status: 0/2\n\Z")
                self.assertIsNone(self.victim.poll())
                self.assertNotIn(f"pid {self.victim.pid} ", self.server.log())
                self.end(self.server)

    def test_who_was_stopped_reads_before_it_judges(self):
        self.lie("is slow")
        self.served()
        wait_for(lambda: self.told("ready"), "it to be ready")
        with self.connect() as line:
            wait_for(lambda: self.told("asked"), "the connection to be handed over")
            os.kill(self.server.pid, signal.SIGSTOP)
            try:
                since = time.monotonic()
                with open(os.path.join(self.place, "answer"), "w"):
                    pass
                wait_for(lambda: self.told("answered") and time.monotonic() > since + PATIENCE, "an answer, and time enough to lose patience")
            finally:
                os.kill(self.server.pid, signal.SIGCONT)
            line.expect("220 it")
            self.server.wait_log(r"status: 0/2\n\Z")
            self.assertEqual(len(harness.family(self.server.pid)), 2)


if __name__ == "__main__":
    unittest.main()
