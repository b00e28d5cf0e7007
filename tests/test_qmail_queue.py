"""qmail-queue: both doors, the bytes on disk, every exit code that can be forced."""

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import unittest

from tests import harness
from tests.harness import Home, run, wait_for

ENVELOPE = b"Fs@h.com\0Textra@x.y\0Tfred@dh.def.dom\0\0"


class Case(unittest.TestCase):
    def setUp(self):
        self.home = Home()
        self.addCleanup(self.home.__exit__)

    def queue(self, message=b"Subject: x\n\nhello\n", envelope=ENVELOPE, env=None, **more):
        fds = {0: message, 1: envelope, 6: "capture"}
        return self.home.run(["qmail-queue"], env={"QMAILDOOR": self.door, **(env or {})}, fds=fds, **more)

    def names(self, *where):
        found = []
        for d, _, files in os.walk(self.home.file("queue", *where)):
            found += [os.path.relpath(os.path.join(d, f), self.home.file("queue")) for f in files]
        return sorted(found)

    def read(self, name):
        with open(self.home.file("queue", name), "rb") as f:
            return f.read()

    def leftovers(self):
        return [n for top in ("pid", "mess", "intd", "todo") for n in self.names(top)]


class EitherDoor:
    """What both doors promise; run once for each."""

    def test_a_message_is_queued_with_its_envelope_and_commit_record(self):
        result = self.queue()
        self.assertEqual(result.code, 0, result)
        [todo] = self.names("todo")
        number = int(todo.split("/")[1])
        self.assertEqual(self.names("mess"), [f"mess/{number % 23}/{number}"])
        self.assertEqual(self.names("intd"), [f"intd/{number}"])
        self.assertEqual(self.names("pid"), [])
        mess = self.read(f"mess/{number % 23}/{number}")
        uid = harness.owner()[1]
        received, rest = mess.split(b"\n", 1)
        match = re.fullmatch(rb"Received: \(qmail (\d+) invoked by uid (\d+)\); "
                             rb"\d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d -0000", received)
        self.assertTrue(match, received)
        self.assertEqual(int(match[2]), uid)
        self.assertEqual(rest, b"Subject: x\n\nhello\n")
        self.assertEqual(os.stat(self.home.file("queue", self.names("mess")[0])).st_ino, number)
        digest = hashlib.sha256(mess).hexdigest()
        envelope = hashlib.sha256(ENVELOPE[:-1]).hexdigest()
        pid = match[1].decode()
        want = f"u{uid}\0p{pid} +\0".encode() + ENVELOPE[:-1] + f"p{pid} {len(mess)} {digest} {envelope}\0".encode()
        self.assertEqual(self.read(todo), want)
        self.assertEqual(os.stat(self.home.file("queue", todo)).st_mode & 0o777, 0o644)

    def test_any_bytes_pass_unchanged(self):
        body = bytes(range(256)) * 700 + b"\r\n.\r\n\0no newline at the end"
        self.assertEqual(self.queue(body).code, 0)
        self.assertTrue(self.read(self.names("mess")[0]).endswith(body))

    def test_an_empty_message_without_recipients_is_legal(self):
        self.assertEqual(self.queue(b"", b"F\0\0").code, 0)
        self.assertTrue(self.read(self.names("todo")[0]).startswith(f"u{harness.owner()[1]}\0".encode()))

    def test_an_address_of_1002_bytes_is_taken_and_one_more_is_11(self):
        long = b"x" * 1000 + b"@y"
        self.assertEqual(self.queue(envelope=b"F" + long + b"\0T" + long + b"\0\0").code, 0)
        self.assertEqual(self.queue(envelope=b"F" + b"z" + long + b"\0T\0\0").code, 11)
        self.assertEqual(self.queue(envelope=b"F\0T" + b"z" + long + b"\0\0").code, 11)
        self.assertEqual(len(self.names("todo")), 1)

    def test_a_bad_letter_is_91_and_leaves_nothing(self):
        for envelope in (b"", b"X\0\0", b"T\0\0", b"\0", b"Fa\0Fb\0\0", b"Fa\0Xb\0\0"):
            with self.subTest(envelope=envelope):
                self.assertEqual(self.queue(envelope=envelope).code, 54 if envelope == b"" else 91)
        self.assertEqual(self.leftovers(), [])

    def test_an_envelope_without_its_final_nul_is_54_and_leaves_nothing(self):
        for envelope in (b"", b"Fs", b"Fs\0", b"Fs\0Tr", b"Fs\0Tr\0"):
            with self.subTest(envelope=envelope):
                self.assertEqual(self.queue(envelope=envelope).code, 54)
        self.assertEqual(self.leftovers(), [])

    def test_bytes_behind_the_final_nul_do_not_count(self):
        self.assertEqual(self.queue(envelope=ENVELOPE + b"Tmore\0\0").code, 0)
        self.assertNotIn(b"more", self.read(self.names("todo")[0]))

    def test_many_recipients_stream_through(self):
        envelope = b"Fs\0" + b"".join(b"Tuser%d@example.org\0" % i for i in range(20000)) + b"\0"
        self.assertEqual(self.queue(envelope=envelope).code, 0)
        self.assertIn(b"Tuser19999@example.org\0p", self.read(self.names("todo")[0]))

    def test_the_trigger_is_pulled(self):
        fifo = os.open(self.home.file("queue/lock/trigger"), os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, fifo)
        self.assertEqual(self.queue().code, 0)
        self.assertEqual(os.read(fifo, 10), b"\0")

    def test_a_stale_intd_of_the_number_is_replaced(self):
        self.assertEqual(self.queue().code, 0)
        [mess] = self.names("mess")
        number = mess.split("/")[2]
        os.unlink(self.home.file("queue", mess))
        os.unlink(self.home.file("queue/todo", number))
        # The file system hands the inode number out again sooner or later; whatever number comes,
        # a leftover of that name must not stand in its way.
        self.assertEqual(self.queue().code, 0)
        self.assertEqual(len(self.names("todo")), 1)


class DirectDoor(EitherDoor, Case):
    door = "direct"

    def setUp(self):
        super().setUp()
        self.addCleanup(lambda: None)

    def queue(self, *args, **more):
        # "direct" concerns callers; qmail-queue itself writes where its uid owns queue/mess.
        self.assertIsNone(self.home.queued_pid())
        return super().queue(*args, **more)

    def test_each_missing_directory_has_its_code(self):
        queue = self.home.file("queue")
        for name, code in (("pid", 63), ("intd", 65), ("todo", 66), ("mess", 62)):
            with self.subTest(missing=name):
                os.rename(f"{queue}/{name}", f"{queue}/away")
                try:
                    self.assertEqual(self.queue().code, code)
                finally:
                    os.rename(f"{queue}/away", f"{queue}/{name}")
        for n in range(23):
            os.rename(f"{queue}/mess/{n}", f"{queue}/mess/x{n}")
        self.assertEqual(self.queue().code, 64)
        for n in range(23):
            os.rename(f"{queue}/mess/x{n}", f"{queue}/mess/{n}")
        self.assertEqual([n for n in self.leftovers()], [])
        os.rename(queue, queue + ".away")
        self.assertEqual(self.queue().code, 62)
        self.assertEqual(self.queue(env={"QMAIL_HOME": "/nonexistent"}).code, 61)
        self.assertEqual(self.queue(env={"QMAIL_HOME": "relative"}).code, 61)

    def test_a_full_disk_is_53_and_leaves_nothing(self):
        # RLIMIT_FSIZE fails a write as a full disk does; a real one is in test_faults.
        argv = ["sh", "-c", "ulimit -f 16; trap '' XFSZ; exec qmail-queue"]
        result = self.home.run(argv, fds={0: b"x" * 200000, 1: ENVELOPE})
        self.assertEqual(result.code, 53)
        self.assertEqual(self.leftovers(), [])

    def test_an_unreadable_message_is_54_and_leaves_nothing(self):
        directory = os.open("/", os.O_RDONLY)
        self.addCleanup(os.close, directory)
        self.assertEqual(self.home.run(["qmail-queue"], fds={0: directory, 1: ENVELOPE}).code, 54)
        self.assertEqual(self.home.run(["qmail-queue"], fds={0: b"m", 1: directory}).code, 54)
        self.assertEqual(self.leftovers(), [])

    def test_signals_asked_for_do_not_stop_a_message(self):
        r, w = os.pipe()
        p = subprocess.Popen([harness.program("qmail-queue")], env=self.home.env, stdin=r, stdout=subprocess.PIPE)
        p.stdout.close()
        os.close(r)
        try:
            wait_for(lambda: self.names("mess"), "mess to appear")
            for s in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU, signal.SIGPIPE):
                p.send_signal(s)
            self.assertIsNone(p.poll())
            p.send_signal(signal.SIGALRM)
            self.assertEqual(p.wait(10), 52)
        finally:
            os.close(w)
            p.kill()
            p.wait()

    def test_a_kill_at_each_system_call_leaves_a_legal_state(self):
        """S1, S2, S3 or S4, and S4 only whole (RELIABILITY: after any kill)."""
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        trace = self.home.file("..", "trace")
        env = {**self.home.env, "QMAILDOOR": "direct"}
        calls = "openat,linkat,unlinkat,write,fsync,fstat,flock,newfstatat,fcntl"
        base = ["strace", "-o", trace, "-e", f"trace={calls}"]
        result = run(base + [harness.program("qmail-queue")], env=env, fds={0: b"m\n", 1: ENVELOPE})
        self.assertEqual(result.code, 0, result)
        with open(trace) as f:
            total = sum(1 for line in f if re.match(r"\w+\(", line))
        self.clear()
        tried = 0
        for n in range(1, total + 1):
            argv = ["strace", "-o", trace, "-e", f"trace={calls}", "-e", f"inject={calls}:signal=SIGKILL:when={n}",
                    harness.program("qmail-queue")]
            run(argv, env=env, fds={0: b"m\n", 1: ENVELOPE})
            tried += 1
            mess, intd, todo = self.names("mess"), self.names("intd"), self.names("todo")
            for name in mess:
                self.assertEqual(os.stat(self.home.file("queue", name)).st_ino, int(name.split("/")[2]))
            for name in todo:
                number = int(name.split("/")[1])
                self.assertIn(f"mess/{number % 23}/{number}", mess)
                self.assertTrue(self.read(f"mess/{number % 23}/{number}").endswith(b"\nm\n"))
                self.assertIn(ENVELOPE[:-1] + b"p", self.read(name))
            for name in intd:
                number = int(name.split("/")[1])
                self.assertIn(f"mess/{number % 23}/{number}", mess, f"intd without mess after call {n}")
            self.clear()
        self.assertGreater(tried, 15)

    def clear(self):
        for name in self.leftovers():
            os.unlink(self.home.file("queue", name))


class MoreRights(Case):
    door = "direct"

    def test_a_program_with_more_rights_than_its_caller_does_not_believe_the_caller(self):
        if os.geteuid() != 0:
            self.skipTest("only root can make a set-id program of another user's")
        if os.path.exists("/var/qmail"):
            self.skipTest("/var/qmail is in use here")
        path = os.path.join(self.home.base, "qmail-queue")
        shutil.copy(harness.program("qmail-queue"), path)
        os.chown(path, *harness.owner()[1:])
        env = {**self.home.env, "QMAILDOOR": "direct"}
        for mode, caller, code in ((0o755, harness.owner()[1:], 0), (0o4755, (54321, 54321), 61),
                                   (0o2755, (54321, 54321), 61)):
            with self.subTest(oct(mode)):
                os.chmod(path, mode)
                result = run([path], env=env, fds={0: b"m\n", 1: ENVELOPE}, as_user=caller)
                self.assertEqual(result.code, code)
        if shutil.which("setcap"):
            os.chmod(path, 0o755)
            subprocess.run(["setcap", "cap_net_raw+ep", path], check=True)
            result = run([path], env=env, fds={0: b"m\n", 1: ENVELOPE}, as_user=harness.owner()[1:])
            self.assertEqual(result.code, 61)


class SocketDoor(EitherDoor, Case):
    door = "socket"

    def setUp(self):
        super().setUp()
        self.daemon = harness.Daemon(["qmail-queued"], env=self.home.env)
        self.addCleanup(self.daemon.stop)
        wait_for(lambda: os.path.exists(self.home.file("run/queue")), "the socket")

    def test_without_a_server_the_caller_hears_73_after_trying(self):
        self.daemon.stop()
        self.assertEqual(self.queue().code, 73)

    def test_a_caller_waits_for_a_server_that_is_just_starting(self):
        self.daemon.stop()
        os.unlink(self.home.file("run/queue"))
        r, w = os.pipe()
        p = subprocess.Popen([harness.program("qmail-queue")], env={**self.home.env, "QMAILDOOR": "socket"},
                             stdin=subprocess.DEVNULL, stdout=r)
        os.close(r)
        self.daemon = harness.Daemon(["qmail-queued"], env=self.home.env)
        self.addCleanup(self.daemon.stop)
        os.write(w, b"F\0\0")
        os.close(w)
        self.assertEqual(p.wait(20), 0)

    def test_a_text_of_the_server_goes_to_descriptor_6_with_exit_82(self):
        self.daemon.stop()
        path = self.home.file("run/queue")
        os.unlink(path)
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path)
            os.chmod(path, 0o666)
            s.listen()
            import threading

            def answer():
                connection, _ = s.accept()
                with connection:
                    _, fds, _, _ = socket.recv_fds(connection, 10, 2)
                    for fd in fds:
                        os.close(fd)
                    connection.send(bytes([82]) + b"Dno, thanks (#5.7.1)")
            thread = threading.Thread(target=answer)
            thread.start()
            result = self.queue()
            thread.join()
        self.assertEqual((result.code, result.fds[6]), (82, b"Dno, thanks (#5.7.1)"))

    def test_a_server_that_dies_in_the_middle_is_74(self):
        self.daemon.stop()
        path = self.home.file("run/queue")
        os.unlink(path)
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path)
            os.chmod(path, 0o666)
            s.listen()
            import threading

            def hang_up():
                connection, _ = s.accept()
                connection.close()
            thread = threading.Thread(target=hang_up)
            thread.start()
            self.assertEqual(self.queue().code, 74)
            thread.join()

    def test_a_stranger_may_queue_and_is_named_in_the_received_line(self):
        if os.geteuid() != 0:
            self.skipTest("only root can become another user")
        result = self.queue(as_user=(54321, 54321))
        self.assertEqual(result.code, 0, result)
        self.assertIn(b"invoked by uid 54321);", self.read(self.names("mess")[0]))
        self.assertTrue(self.read(self.names("todo")[0]).startswith(b"u54321\0"))


if __name__ == "__main__":
    unittest.main()
