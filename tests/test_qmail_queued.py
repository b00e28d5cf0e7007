"""qmail-queued: callers that stall, die, flood or lie, and a server that is killed."""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import unittest

from tests import harness
from tests.harness import Home, wait_for

ENVELOPE = b"Fs@h\0Tr@d\0\0"


class QmailQueued(unittest.TestCase):
    def setUp(self):
        self.home = Home()
        self.addCleanup(self.home.__exit__)
        self.start()

    def start(self):
        self.daemon = harness.Daemon(["qmail-queued"], env=self.home.env)
        self.addCleanup(self.daemon.stop)
        wait_for(self.answers, "qmail-queued to listen")
        wait_for(lambda: not self.children(), "the end of the child that answered")

    def answers(self):
        """Whether a caller that asks for nothing is sent away: a child of its own did that."""
        try:
            s = self.connect()
            s.shutdown(socket.SHUT_WR)
            return self.answer(s) == bytes([74])
        except OSError:
            return False

    def connect(self):
        s = socket.socket(socket.AF_UNIX)
        try:
            s.settimeout(harness.TIMEOUT)
            s.connect(self.home.file("run/queue"))
        except OSError:
            s.close()
            raise
        self.addCleanup(s.close)
        return s

    def request(self, message, envelope, hello=b"1"):
        """A connection that has passed these descriptors, which are closed here."""
        s = self.connect()
        socket.send_fds(s, [hello], [message, envelope])
        return s

    def pipes(self):
        """Two pipes: (message read, message write, envelope read, envelope write)."""
        ends = os.pipe() + os.pipe()

        def close():
            for fd in ends:
                try:
                    os.close(fd)
                except OSError:
                    pass
        self.addCleanup(close)
        return ends

    def children(self):
        with open(f"/proc/{self.daemon.pid}/task/{self.daemon.pid}/children") as f:
            return [int(p) for p in f.read().split()]

    def status(self, pid, field):
        with open(f"/proc/{pid}/status") as f:
            return next(line.split()[1] for line in f if line.startswith(field + ":"))

    def leftovers(self):
        found = []
        for top in ("pid", "mess", "intd", "todo"):
            for d, _, files in os.walk(self.home.file("queue", top)):
                found += [os.path.join(d, f) for f in files]
        return found

    def queue(self, **more):
        return self.home.run(["qmail-queue"], env={"QMAILDOOR": "socket"}, fds={0: b"m\n", 1: ENVELOPE}, **more)

    def answer(self, s):
        got = b""
        while chunk := s.recv(300):
            got += chunk
        return got

    def test_the_caller_is_who_the_kernel_says_it_is(self):
        mr, mw, er, ew = self.pipes()
        s = self.request(mr, er)
        os.write(mw, b"m\n")
        os.close(mw)
        os.write(ew, ENVELOPE)
        self.assertEqual(self.answer(s), b"\0")
        [todo] = os.listdir(self.home.file("queue/todo"))
        with open(self.home.file("queue/todo", todo), "rb") as f:
            self.assertTrue(f.read().startswith(b"u%d\0p%d +\0" % (os.geteuid(), os.getpid())))

    def test_a_caller_that_hangs_up_before_the_link_leaves_nothing(self):
        for stage in range(4):
            with self.subTest(stage=stage):
                mr, mw, er, ew = self.pipes()
                s = self.request(mr, er)
                wait_for(lambda: any("/mess/" in f for f in self.leftovers()), "mess")
                if stage > 0:
                    os.write(mw, b"m\n")
                if stage > 1:
                    os.close(mw)
                    wait_for(lambda: any("/intd/" in f for f in self.leftovers()), "intd")
                if stage > 2:
                    os.write(ew, ENVELOPE[:-1])
                s.close()
                wait_for(lambda: not self.leftovers(), "cleanup")
                wait_for(lambda: not self.children(), "the child's end")

    def test_a_caller_that_hangs_up_while_its_message_is_synced_leaves_nothing(self):
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        if os.geteuid() != 0:
            self.skipTest("only root can trace a program that holds others' mail")
        mr, mw, er, ew = self.pipes()
        s = self.request(mr, er)
        wait_for(lambda: any("/mess/" in f for f in self.leftovers()), "mess")
        [child] = self.children()
        trace = os.path.join(self.home.base, "trace")
        # The first fsync waits until the caller has gone.
        tracer = subprocess.Popen(["strace", "-qq", "-o", trace, "-e", "trace=fsync", "-e",
                                   "inject=fsync:delay_enter=1000000:when=1", "-p", str(child)],
                                  stderr=subprocess.DEVNULL)
        self.addCleanup(tracer.wait)
        wait_for(lambda: self.status(child, "TracerPid") != "0", "strace to hold the child")
        os.close(mw)
        os.write(ew, ENVELOPE)
        wait_for(lambda: os.path.getsize(trace) > 0, "the sync")
        s.close()
        wait_for(lambda: not self.children(), "the child's end")
        self.assertEqual(self.leftovers(), [])

    def test_a_killed_client_leaves_nothing(self):
        r, w = os.pipe()
        p = subprocess.Popen([harness.program("qmail-queue")], env={**self.home.env, "QMAILDOOR": "socket"}, stdin=r,
                             stdout=subprocess.DEVNULL)
        os.close(r)
        os.write(w, b"half a mess")
        wait_for(lambda: any("/mess/" in f for f in self.leftovers()), "mess")
        p.kill()
        p.wait()
        wait_for(lambda: not self.leftovers(), "cleanup")
        os.close(w)

    def test_a_stalled_caller_does_not_hold_up_others(self):
        stalled = [self.request(*(lambda e: (e[0], e[2]))(self.pipes())) for _ in range(10)]
        for _ in range(3):
            self.assertEqual(self.queue().code, 0)
        self.assertEqual(len(stalled), 10)

    def test_a_caller_that_says_nothing_holds_only_its_own_child(self):
        silent = [self.connect() for _ in range(10)]
        self.assertEqual(self.queue().code, 0)
        for s in silent:
            s.close()
        wait_for(lambda: not self.children(), "the children's end")

    def test_requests_of_another_shape_are_refused(self):
        mr, _, er, _ = self.pipes()
        for fds, hello in (([], b"1"), ([mr], b"1"), ([mr, er, er], b"1"), ([mr, er], b"2"), ([mr, er], b"11")):
            with self.subTest(fds=len(fds), hello=hello):
                s = self.connect()
                socket.send_fds(s, [hello], fds)
                self.assertEqual(self.answer(s), bytes([74]))
                s.close()
        wait_for(lambda: not self.leftovers(), "nothing left")

    def test_flags_of_a_passed_description_are_never_changed(self):
        mr, mw, er, ew = self.pipes()
        os.set_blocking(mr, False)
        s = self.request(mr, er)
        wait_for(lambda: any("/mess/" in f for f in self.leftovers()), "mess")
        self.assertFalse(os.get_blocking(mr))
        self.assertTrue(os.get_blocking(er))
        os.write(mw, b"m\n")
        os.close(mw)
        os.write(ew, ENVELOPE)
        self.assertEqual(self.answer(s), b"\0")
        self.assertFalse(os.get_blocking(mr))

    def test_files_fifos_and_sockets_are_read_as_well(self):
        path = self.home.write("message", b"from a file\n")
        fifo = self.home.file("fifo")
        os.mkfifo(fifo)
        a, b = socket.socketpair()
        self.addCleanup(a.close)
        self.addCleanup(b.close)
        b.sendall(b"from a socket\n")
        b.shutdown(socket.SHUT_WR)
        rw = os.open(fifo, os.O_RDWR)
        fr = os.open(fifo, os.O_RDONLY)
        os.write(rw, b"from a fifo\n")
        os.close(rw)
        plain = os.open(path, os.O_RDONLY)
        for fd in (plain, fr, a.fileno()):
            _, _, er, ew = self.pipes()
            s = self.request(fd, er)
            os.write(ew, ENVELOPE)
            self.assertEqual(self.answer(s), b"\0")
        os.close(plain)
        os.close(fr)
        bodies = b""
        for f in self.leftovers():
            if "/mess/" in f:
                with open(f, "rb") as m:
                    bodies += m.read()
        for what in (b"from a file\n", b"from a fifo\n", b"from a socket\n"):
            self.assertIn(what, bodies)

    def test_a_flood_by_one_stranger_leaves_room_for_the_home_and_for_others(self):
        if os.geteuid() != 0:
            self.skipTest("only root can connect as other users")
        script = """
import os, select, socket, sys, time
os.setgroups([]); os.setgid(54321); os.setuid(54321)
held, refused, end = [], 0, time.time() + 20
for i in range(80):
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    r, w = os.pipe()
    e, f = os.pipe()
    try:
        socket.send_fds(s, [b"1"], [r, e])
    except OSError:
        pass  # refused already; the answer is there to be read
    held.append((s, w, f))
    os.close(r)
    os.close(e)
while refused < 20 and time.time() < end:
    for entry in list(held):
        if select.select([entry[0]], [], [], 0)[0]:
            refused += entry[0].recv(300)[:1] == bytes([82])
            held.remove(entry)
print(refused, flush=True)
sys.stdin.read()
"""
        # The harness runs the daemon as root, which becomes the owner; the flood is uid 54321.
        flood = subprocess.Popen([sys.executable, "-c", script, self.home.file("run/queue")],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(lambda: (flood.kill(), flood.wait(), flood.stdin.close(), flood.stdout.close()))
        self.assertEqual(flood.stdout.readline(), b"20\n")
        refused = self.queue(as_user=(54321, 54321))
        self.assertEqual(refused.code, 82)
        self.assertEqual(self.queue(as_user=(54322, 54322)).code, 0)
        self.assertEqual(self.queue(as_user=harness.owner()[1:]).code, 0)

    @contextlib.contextmanager
    def held(self):
        """The server stands still; what comes meanwhile it finds all at once."""
        os.kill(self.daemon.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.daemon.pid, signal.SIGCONT)

    def ready_worker(self):
        """The worker of a message that has just been taken; the server, which must be held, does not know it yet."""
        mr, mw, er, ew = self.pipes()
        with contextlib.ExitStack() as stack:
            s = self.request(mr, er)
            wait_for(lambda: any("/mess/" in f for f in self.leftovers()), "the worker at work")
            stack.enter_context(self.held())
            [worker] = self.children()
            os.write(mw, b"m\n")
            os.close(mw)
            os.write(ew, ENVELOPE)
            os.close(ew)
            self.assertEqual(self.answer(s), b"\0")
            return worker, stack.pop_all()

    def second_message(self):
        mr, mw, er, ew = self.pipes()
        s = self.request(mr, er)
        os.write(mw, b"second\n")
        os.close(mw)
        os.write(ew, ENVELOPE)
        os.close(ew)
        return s

    def test_a_worker_takes_the_next_message_too_and_then_goes_home(self):
        before = os.listdir(f"/proc/{self.daemon.pid}/fd")
        worker, holding = self.ready_worker()
        with holding:
            s = self.second_message()
            wait_for(lambda: self.status(worker, "State") == "S", "the worker to wait")
        self.assertEqual(self.answer(s), b"\0")
        self.assertLessEqual(self.children(), [worker])
        self.assertEqual(len(os.listdir(self.home.file("queue/todo"))), 2)
        wait_for(lambda: not self.children(), "the worker's end")
        self.assertEqual(os.listdir(f"/proc/{self.daemon.pid}/fd"), before)

    def test_a_worker_that_died_while_it_was_free_is_not_waited_for(self):
        worker, holding = self.ready_worker()
        with holding:
            wait_for(lambda: self.status(worker, "State") == "S", "the worker to wait")
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda: self.status(worker, "State") == "Z", "the worker's end")
            s = self.second_message()
        self.assertEqual(self.answer(s), b"\0")
        self.assertEqual(len(os.listdir(self.home.file("queue/todo"))), 2)

    def test_workers_without_work_go_home_and_take_nothing_with_them(self):
        before = os.listdir(f"/proc/{self.daemon.pid}/fd")
        waiting = [self.request(mr, er) for mr, _, er, _ in (self.pipes() for _ in range(12))]
        wait_for(lambda: len(self.children()) == 12, "twelve workers")
        for s in waiting:
            s.close()
        wait_for(lambda: not self.children(), "their end")
        self.assertEqual(os.listdir(f"/proc/{self.daemon.pid}/fd"), before)
        self.assertEqual(self.leftovers(), [])

    def test_a_second_server_refuses_to_start(self):
        result = self.home.run(["qmail-queued"])
        self.assertEqual(result.code, 111)
        self.assertIn(b"qmail-queued is already running", result.err)
        self.assertEqual(self.queue().code, 0)

    def test_nobody_else_can_take_the_lock_hostage(self):
        self.daemon.stop()
        os.chmod(self.home.file("run/queue.lock"), 0o644)
        self.start()
        self.assertEqual(stat.S_IMODE(os.stat(self.home.file("run/queue.lock")).st_mode), 0o600)

    def test_a_killed_server_is_replaced_over_its_stale_socket(self):
        mr, mw, er, ew = self.pipes()
        s = self.request(mr, er)
        wait_for(lambda: any("/mess/" in f for f in self.leftovers()), "mess")
        self.daemon.stop(signal.SIGKILL)
        self.start()
        self.assertEqual(self.queue().code, 0)
        # The child of the killed server was at work, and finishes it.
        os.write(mw, b"m\n")
        os.close(mw)
        os.write(ew, ENVELOPE)
        self.assertEqual(self.answer(s), b"\0")
        self.assertEqual(len(os.listdir(self.home.file("queue/todo"))), 2)

    def test_term_ends_it_with_0(self):
        self.assertEqual(self.daemon.stop(), 0)

    def test_a_missing_run_directory_is_said(self):
        self.daemon.stop()
        os.rename(self.home.file("run"), self.home.file("away"))
        result = self.home.run(["qmail-queued"])
        self.assertEqual(result.code, 111)
        self.assertIn(b"qmail-queued: fatal: refusing %s: file does not exist: run " % self.home.file("run").encode(), result.err)

    def test_a_home_with_a_very_long_name_is_reached(self):
        # Longer than a socket's address can hold: see door.rs.
        long = os.path.join(self.home.base, "x" * 120)
        os.mkdir(long)
        if os.geteuid() == 0:
            os.chown(long, *harness.owner()[1:])
        os.symlink(self.home.path, os.path.join(long, "home"))
        env = {**self.home.env, "QMAIL_HOME": os.path.join(long, "home"), "QMAILDOOR": "socket"}
        result = harness.run(["qmail-queue"], env=env, fds={0: b"m\n", 1: ENVELOPE})
        self.assertEqual(result.code, 0)


if __name__ == "__main__":
    unittest.main()
