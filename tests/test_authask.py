"""authask from outside: the interface of a checker, and whom it tells a password."""

import os
import signal
import socket
import subprocess
import threading
import unittest

from tests import harness, logins
from tests.harness import wait_for

AUTHASK = harness.program("authask")
LOGIN = b"joe\0secret\0<1.2@h>\0"


class Authask(logins.InAHome):
    def run_it(self, *words, login=LOGIN, env=None, **more):
        return self.home.run(["authask", *words], env=env, fds={} if login is None else {3: login}, **more)

    def start_it(self, *words, **more):
        """authask in the background, with the login of joe."""
        env = {**self.home.env, "LOGIN": self.home.write("login", LOGIN)}
        process = subprocess.Popen(["sh", "-c", 'exec "$@" 3<"$LOGIN"', "sh", AUTHASK, *words], env=env, **more)

        def end():
            if process.poll() is None:
                process.kill()
            process.wait()
        self.addCleanup(end)
        return process

    def test_the_exit_code_says_whether_the_login_is_right(self):
        self.assertEqual(self.run_it("true").code, 0)
        self.assertEqual(self.run_it("true", login=b"joe\0wrong\0x\0").code, 1)
        self.assertEqual(self.run_it("checkpassword-file", "users/passwd", "true").code, 0)

    def test_whose_login_it_was_is_told_to_who_asks(self):
        for login in LOGIN, b"joe\0secret\0\0PLAIN\0smtp\0::1\0":
            for asked, told in ({"SASL_ACCOUNT_FD": "4"}, b"\njoe"), ({}, b""):
                r = self.home.run(["authask", "true"], env={**self.home.env, **asked}, fds={3: login, 4: "capture"})
                self.assertEqual((r.code, r.err, r.fds[4]), (0, b"", told))

    def test_any_code_of_a_checker_comes_back(self):
        self.script("say", "name=$(tr '\\0' '\\n' <&3 | head -n 1); exit ${name#n}")
        for code in (2, 100, 111, 255):
            r = self.run_it("say", login=f"n{code}\0x\0\0".encode())
            self.assertEqual((r.code, r.out, r.err), (code, b"", b""))

    def test_a_checker_that_crashes_is_a_temporary_failure(self):
        self.script("crash", "kill -SEGV $$")
        self.assertEqual(self.run_it("crash").code, 111)
        self.authd.wait_log(r"^qmail-authd: warning: crash died from signal 11$")

    @unittest.skipUnless(os.geteuid() == 0, "only root may look into it")
    def test_while_it_waits_it_has_no_password_any_more(self):
        self.script("stay", "cat <&3 >/dev/null; touch here; exec sleep 1000")
        process = self.start_it("stay")
        wait_for(lambda: os.path.exists(self.home.file("here")), "the session")
        held = b""
        with open(f"/proc/{process.pid}/maps") as maps, open(f"/proc/{process.pid}/mem", "rb", buffering=0) as memory:
            for row in maps.read().splitlines():
                place, rights, *_ = row.split()
                if rights.startswith("rw"):
                    start, end = (int(n, 16) for n in place.split("-"))
                    memory.seek(start)
                    held += memory.read(end - start)
        # Not assertIn: what it would print is all of the memory.
        self.assertTrue(b"stay" in held, "that was not its memory")
        self.assertFalse(b"secret" in held, "the password is still there")

    def test_wrong_use(self):
        r = self.run_it()
        self.assertEqual((r.code, r.err), (2, b"authask: fatal: no service named\n"))
        self.assertEqual(self.run_it("no-such-service").code, 2)
        self.assertEqual(self.run_it("sh", "-c", "true").code, 2)
        r = self.run_it("true", login=None)
        self.assertEqual((r.code, r.err), (111, b"authask: fatal: unable to read descriptor 3: descriptor not open\n"))

    def test_a_password_of_64_kib_is_handed_over_and_a_longer_one_is_nobodys(self):
        self.script("count", "n=$(wc -c <&3); [ $n -eq 65536 ]")
        self.assertEqual(self.run_it("count", login=b"j\0" + b"p" * 65532 + b"\0\0").code, 0)
        self.assertEqual(self.run_it("count", login=b"j\0" + b"p" * 65533 + b"\0\0").code, 1)

    def test_more_words_than_a_service_has_are_a_temporary_failure(self):
        r = self.run_it(*["w"] * 33)
        self.assertEqual((r.code, r.err), (111, b"authask: fatal: more words than a service has\n"))

    def test_it_is_the_session_on_its_own_descriptors(self):
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = self.start_it("pop3", stdin=theirs, stdout=theirs)
            ours.settimeout(harness.TIMEOUT)
            lines = ours.makefile("rb")
            self.assertTrue(lines.readline().startswith(b"+OK"))
            ours.sendall(b"STAT\r\nQUIT\r\n")
            self.assertEqual(lines.readline(), b"+OK 0 0\r\n")
            self.assertTrue(lines.readline().startswith(b"+OK"))
            self.assertEqual(process.wait(harness.TIMEOUT), 0)
            self.assertEqual(lines.read(), b"")
            lines.close()

    def test_when_it_is_killed_the_session_ends(self):
        self.script("stay", "echo $$ >pid.new; mv pid.new pid; exec sleep 1000")
        process = self.start_it("stay")
        wait_for(lambda: os.path.exists(self.home.file("pid")), "the session")
        with open(self.home.file("pid")) as f:
            session = int(f.read())
        process.kill()
        wait_for(lambda: not harness.family(session), "the session to end")
        wait_for(lambda: ("stay", "joe", "-", "left") in self.logins(), "the line about it")

    def test_it_waits_for_a_server_that_is_just_starting(self):
        self.authd.stop()
        got = []
        thread = threading.Thread(target=lambda: got.append(self.run_it("true").code))
        thread.start()
        self.start()
        thread.join(harness.TIMEOUT)
        self.assertEqual(got, [0])

    def test_nobody_there_is_a_temporary_failure(self):
        self.authd.stop()
        refused = (111, b"authask: fatal: unable to connect to run/auth: connection refused\n")

        def answer():
            r = self.run_it("true")
            self.assertEqual(r.code, 111)
            return (r.code, r.err) == refused
        # A child that closes what has ended, and so its copy of the socket, may live for a moment longer.
        wait_for(answer, "the end of all that listen")

    def test_a_server_that_hangs_up_is_a_temporary_failure(self):
        self.script("stay", "exec sleep 1000")
        process = self.start_it("stay", stderr=subprocess.PIPE)
        self.addCleanup(process.stderr.close)
        wait_for(lambda: "sleep" in harness.family(self.authd.pid).values(), "the session")
        pids = harness.family(self.authd.pid)
        for pid in sorted(pids, key=lambda pid: pids[pid] != "qmail-authd"):  # qmail-authd and its child first
            os.kill(pid, signal.SIGKILL)
        self.assertEqual(process.wait(harness.TIMEOUT), 111)
        self.assertEqual(process.stderr.read(), b"authask: fatal: run/auth was closed without an answer\n")

    def test_a_home_with_a_long_name_is_reached_too(self):
        deep = self.home.file("d" * 100)
        os.symlink(self.home.path, deep)
        self.assertEqual(self.run_it("true", env={"QMAIL_HOME": deep}).code, 0)

    @unittest.skipUnless(os.geteuid() == 0, "needs a second user")
    def test_a_socket_of_somebody_else_is_told_nothing(self):
        self.authd.stop()
        os.unlink(self.home.file("run/auth"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as spoof:
            spoof.bind(self.home.file("run/auth"))
            os.chmod(self.home.file("run/auth"), 0o666)
            spoof.listen()  # as root, who is not the owner of this home
            r = self.run_it("true")
            self.assertEqual((r.code, r.err), (111, b"authask: fatal: refusing run/auth: it is served by uid 0\n"))
            spoof.settimeout(harness.TIMEOUT)
            with spoof.accept()[0] as connection:
                self.assertEqual(connection.recv(100), b"")


if __name__ == "__main__":
    unittest.main()
