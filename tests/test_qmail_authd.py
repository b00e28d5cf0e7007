"""qmail-authd from outside: who may ask for what, what a checker gets, sessions and their ends, wrong passwords."""

import glob
import grp
import os
import pwd
import signal
import socket
import struct
import subprocess
import time
import unittest

from tests import harness, logins, sandbox
from tests.harness import BIN, Daemon, Line, dialogue, wait_for
from tests.logins import Front, fields, packet
from tests.test_system_home import ENV, HOME, gid, made, read, script, sh, uid, write

# What a checker of these tests does: it says what it was given, and stays until its input ends.
SHOW = """
{ echo "pid $$"; echo "cwd $(pwd)"; echo "fields $(tr '\\0' '|' <&3)"; exec 3<&-
  tr '\\0' '\\n' </proc/$$/environ | sed 's/^/env /'; echo "argv $*"
  sed 's/.*) //' /proc/$$/stat | cut -d ' ' -f 3 | sed 's/^/group /'; echo done
} >shown.new; mv shown.new shown; exec cat
"""


class Checker(logins.InAHome):
    def shown(self):
        path = self.home.file("shown")
        wait_for(lambda: os.path.exists(path), "the checker")
        with open(path) as f:
            return [tuple(row.split(" ", 1)) for row in f.read().splitlines() if " " in row]

    def show(self, *words, descriptors=None, **environ):
        self.script("show", SHOW)
        front = self.ask(list(words) or ["show"], descriptors=descriptors, **environ)
        shown = self.shown()
        return front, shown, [value for key, *value in shown if key == "env" for value in value]

    def test_its_environment_is_what_is_named_and_nothing_else(self):
        self.authd.stop()
        self.home.env.update(SECRET="of root", TCPREMOTEIP="192.0.2.99", PATH="/usr/bin:/bin")
        self.start()
        given = {"PROTO": "TCP", "TCPLOCALIP": "192.0.2.1", "TCPLOCALPORT": "110", "TCPREMOTEIP": "192.0.2.2",
                 "TCPREMOTEPORT": "1234", "TCPREMOTEHOST": "c.example", "TCPREMOTEINFO": "it's; `me`", "SSL_CIPHER": ""}
        _, _, environ = self.show(**given)
        # What sh adds by itself is not in its first environment.
        want = {"PATH": f"/usr/bin:/bin:{self.home.file('bin')}", "QMAIL_HOME": self.home.path, **given}
        self.assertEqual(sorted(environ), sorted(f"{k}={v}" for k, v in want.items()))

    def test_it_gets_the_connection_the_log_a_pipe_and_no_other_descriptor(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            front, shown, _ = self.show(descriptors=[theirs.fileno()] * 2)
            theirs.close()
            self.assertEqual([value for key, *value in shown if key == "fields"], [["joe|secret|<1.2@h>|"]])
            pid = int(dict(shown)["pid"])
            wait_for(lambda: "cat" in harness.family(pid).values(), "what has no descriptors of its own")
            self.assertEqual(sorted(map(int, os.listdir(f"/proc/{pid}/fd"))), [0, 1, 2])
            for n in (0, 1):
                self.assertRegex(os.readlink(f"/proc/{pid}/fd/{n}"), "^socket:")
            self.assertEqual(os.readlink(f"/proc/{pid}/fd/2"), os.path.realpath(self.authd.logfile))
            self.assertEqual(dict(shown)["cwd"], os.path.realpath(self.home.path))
            self.assertEqual(dict(shown)["group"], str(pid))
            self.assertEqual(dict(shown)["argv"], "program")
            self.assertTrue(front.is_waiting())
            ours.shutdown(socket.SHUT_WR)  # the client's end is the session's end
            self.assertEqual(front.answer(), 0)
            self.assertEqual(ours.recv(1), b"")  # nobody of ours holds the connection
        wait_for(lambda: self.logins() == [("show", "joe", "-", "ok")], "the line about it")

    def test_only_what_is_listed_is_run(self):
        self.script("show", SHOW)
        for words in (["show", "program", "x"], ["show", ""], ["program"], ["sh", "-c", "true"], ["/bin/true", "x"], [""],
                      ["checkpassword-file", "users/passwd"], ["show\n"], ["../bin/show", "program"]):
            self.assertEqual(self.ask(words).answer(), 2, words)
        self.assertFalse(os.path.exists(self.home.file("shown")))
        self.assertEqual({row[3] for row in self.logins()}, {"no such service"})
        self.assertEqual(self.ask(["checkpassword-file", "users/passwd", "true"]).answer(), 0)

    def test_the_list_is_read_for_each_login(self):
        self.assertEqual(self.ask("later").answer(), 2)
        self.script("later", "exit 0")
        self.assertEqual(self.ask("later").answer(), 0)
        self.home.control("authprograms", "later:later program\nno service\n")
        self.assertEqual(self.ask("later").answer(), 111)
        self.authd.wait_log(r"^qmail-authd: warning: bad line in control/authprograms: no service$")
        self.home.remove_control("authprograms")
        self.assertEqual(self.ask("later").answer(), 2)
        self.home.write("bin/checkpassword.new", "#!/bin/sh\nexit 0\n", 0o755)
        os.rename(self.home.file("bin/checkpassword.new"), self.home.file("bin/checkpassword"))
        self.assertEqual([self.ask("true").answer(), self.ask("pop3").answer()], [0, 0])  # what there is by default

    def test_a_checker_that_cannot_be_run_is_a_temporary_failure(self):
        self.home.control("authprograms", "gone:no-such-checker x\n")
        self.assertEqual(self.ask("gone").answer(), 111)
        self.authd.wait_log(r"^qmail-authd: warning: unable to run no-such-checker: file does not exist$")

    def test_a_checker_that_reads_nothing_or_slowly_still_decides(self):
        self.script("deaf", "exit 3")
        front = self.front(packet(b"joe\0" + b"p" * 65000 + b"\0\0", ["deaf"]))
        self.assertEqual(front.answer(), 3)
        self.script("slow", "test $(dd bs=1000 2>/dev/null <&3 | wc -c) = 65536")
        front = self.front(packet(b"joe\0" + b"p" * 65530 + b"\0\0", ["slow"]))
        self.assertEqual(front.answer(), 0)


class Requests(logins.InAHome):
    def test_what_is_no_request_is_answered_as_trouble_and_does_no_harm(self):
        good = packet(fields("joe", "secret"), ["true"], {"PROTO": "TCP"})
        with open(os.devnull, "r+b") as null:
            fd = null.fileno()
            wrong = [(good, []), (good, [fd]), (good, [fd] * 3), (good, [fd] * 50), (good + b"x", None), (good[:-1], None), (b"", [fd] * 2),
                     (b"2" + good[1:], None), (b"1", None), (b"\xff" * 1000, None), (b"x" * 81920, None), (b"1" + b"\xff" * 90000, None),
                     (packet(b"x\0y\0\0", []), None), (packet(b"x\0y\0\0", ["w"] * 33), None), (packet(b"x\0y\0\0", ["w" * 1025]), None),
                     (packet(b"x\0y\0\0", ["true"], {"PATH": "/tmp"}), None), (packet(b"x\0y\0\0", ["true"], {"LD_PRELOAD": "x"}), None),
                     (packet(b"x\0y\0\0", ["true"], {"PROTO": "a\0b"}), None), (packet(b"x\0y\0\0", ["true"], {"PROTO": "a" * 1025}), None)]
            for data, descriptors in wrong:
                front = self.front(data, descriptors)
                self.assertEqual(front.answer(), 111, (data[:60], descriptors))
                self.assertIsNone(front.answer())
            for n in range(len(good)):
                self.assertEqual(self.front(good[:n] or b"0").answer(), 111, n)
        self.assertEqual(self.logins(), [])
        self.assertEqual(self.ask("true").answer(), 0)
        fds = os.listdir(f"/proc/{self.authd.pid}/fd")
        self.assertLess(len(fds), 12, "descriptors stay open")

    def test_who_connects_and_says_nothing_is_in_nobodys_way(self):
        silent = [self.front() for _ in range(100)]
        self.assertEqual(self.ask("true").answer(), 0)
        for front in silent:
            self.assertTrue(front.is_waiting())
            front.close()
        self.assertEqual(self.ask("true").answer(), 0)
        wait_for(lambda: len(os.listdir(f"/proc/{self.authd.pid}/fd")) < 12, "the connections to be closed")

    @unittest.skipUnless(os.geteuid() == 0, "needs a second user")
    def test_strangers_are_not_heard(self):
        os.chmod(self.home.file("run/auth"), 0o666)
        path = self.home.path
        pid = os.fork()
        if not pid:
            try:
                os.setgroups([])
                os.setgid(54321)
                os.setuid(54321)
                os._exit(0 if Front(path, packet(fields("joe", "secret"), ["true"])).answer() in (111, None) else 1)
            finally:
                os._exit(2)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
        self.authd.wait_log(r"^qmail-authd: warning: refused a connection by uid 54321$")
        self.assertEqual(self.logins(), [])

    def test_there_is_one_a_home_and_a_dead_one_leaves_nothing_in_the_way(self):
        r = self.home.run(["qmail-authd"])
        self.assertEqual((r.code, r.err), (111, b"qmail-authd: fatal: qmail-authd is already running\n"))
        self.authd.stop(signal.SIGKILL)
        self.start()
        self.assertEqual(self.ask("true").answer(), 0)
        self.assertEqual(os.listdir(self.home.file("run")), ["auth"])
        self.assertEqual(os.stat(self.home.file("run/auth")).st_mode & 0o7777, 0o600)

    def test_what_else_has_its_name_is_replaced_and_not_followed(self):
        self.authd.stop()
        path, victim = self.home.file("run/auth"), self.home.write("victim", "untouched")
        for trap in (lambda: os.symlink(victim, path), lambda: os.symlink("/nonexistent", path), lambda: os.symlink("auth", path),
                     lambda: os.link(victim, path), lambda: os.symlink(victim, path + ".new")):
            for name in glob.glob(path + "*"):
                os.unlink(name)
            trap()
            self.start()
            self.assertEqual(self.ask("true").answer(), 0)
            self.assertEqual(self.authd.stop(), 0)
            with open(victim) as f:
                self.assertEqual(f.read(), "untouched")
            self.assertEqual(os.stat(victim).st_mode & 0o777, 0o644)

    def test_a_list_that_is_wrong_is_heard_of_at_the_start(self):
        self.authd.stop()
        self.home.control("authprograms", "pop3 checkpassword\n")
        r = self.home.run(["qmail-authd"])
        self.assertEqual((r.code, r.err), (111, b"qmail-authd: fatal: bad line in control/authprograms: pop3 checkpassword\n"))


class Sessions(logins.InAHome):
    def session(self, body="exec sleep 1000"):
        """A session that goes on; (its front, its pid)."""
        self.script("stay", f'cat <&3 >/dev/null; exec 3<&-; echo $$ >pid.new; mv pid.new pid; {body}')
        front = self.ask("stay")
        wait_for(lambda: os.path.exists(self.home.file("pid")), "the session")
        with open(self.home.file("pid")) as f:
            pid = int(f.read())
        os.unlink(self.home.file("pid"))
        self.addCleanup(self.kill, pid)
        return front, pid

    def kill(self, pid):
        for member in harness.family(pid):
            try:
                os.kill(member, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def test_a_front_that_goes_away_ends_the_session(self):
        front, pid = self.session()
        front.close()
        wait_for(lambda: not harness.family(pid), "the session to end")
        wait_for(lambda: self.logins() == [("stay", "joe", "-", "left")], "the line about it")
        wait_for(lambda: list(harness.family(self.authd.pid)) == [self.authd.pid], "its child to end")

    def test_one_that_does_not_care_and_all_it_started_is_killed(self):
        front, pid = self.session("trap '' TERM; sleep 1000 & echo $! >other; while :; do sleep 1000; done")
        wait_for(lambda: os.path.exists(self.home.file("other")) and open(self.home.file("other")).read().strip(), "its child")
        with open(self.home.file("other")) as f:
            other = int(f.read())
        front.close()
        wait_for(lambda: not harness.family(pid) and not harness.family(other), "the session to end", 60)

    def test_a_front_that_goes_away_while_a_check_is_on_has_used_it_up(self):
        self.script("hang", "exec sleep 1000")
        for n in range(10):
            before = len(self.logins())
            front = self.ask("hang", name=f"user{n}", password=str(n), ip="192.0.2.7")
            wait_for(lambda: "sleep" in harness.family(self.authd.pid).values(), "the checker")
            front.close()
            wait_for(lambda: len(self.logins()) > before, "the line about it")
        self.ask("true", ip="192.0.2.7")
        wait_for(lambda: self.logins()[-1] == ("true", "joe", "192.0.2.7", "refused unasked"), "the refusal")

    def test_after_term_it_takes_no_logins_and_sessions_go_on(self):
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                talk = self.ask("pop3", descriptors=[theirs.fileno()] * 2)
            ours.settimeout(harness.TIMEOUT)
            lines = ours.makefile("rb")
            self.addCleanup(lines.close)
            self.assertTrue(lines.readline().startswith(b"+OK"))
            os.kill(self.authd.pid, signal.SIGTERM)
            self.assertEqual(self.authd.process.wait(harness.TIMEOUT), 0)
            self.assertRaises(ConnectionRefusedError, Front, self.home.path)
            self.assertTrue(talk.is_waiting())
            ours.sendall(b"STAT\r\nQUIT\r\n")
            self.assertEqual(lines.readline(), b"+OK 0 0\r\n")
            self.assertTrue(lines.readline().startswith(b"+OK"))
            self.assertEqual(talk.answer(), 0)  # by the child that stayed beside it
        # One that starts again takes its place, and the front's end is seen all the same.
        self.start()
        front, pid = self.session()
        self.authd.stop()
        self.assertTrue(harness.family(pid))
        front.close()
        wait_for(lambda: not harness.family(pid), "the session to end")

    def test_after_a_kill_sessions_go_on_too(self):
        front, pid = self.session()
        self.authd.stop(signal.SIGKILL)
        self.start()
        self.assertTrue(front.is_waiting())
        self.assertTrue(harness.family(pid))
        front.close()
        wait_for(lambda: not harness.family(pid), "the session to end")


class WrongPasswords(logins.InAHome):
    def setUp(self):
        super().setUp()
        self.script("check", "case $(tr '\\0' ' ' <&3) in *' right '*) exit 0;; esac; echo >>checks; exit 1")

    def count(self, result):
        return sum(row[3] == result for row in self.logins())

    def wait_count(self, result, n):
        wait_for(lambda: self.count(result) >= n, f"{n} times {result}")

    def asked(self):
        try:
            return os.path.getsize(self.home.file("checks"))
        except FileNotFoundError:
            return 0

    def test_a_refusal_is_held_back_without_a_process_and_nobody_else_waits(self):
        wrong = self.ask("check", password="wrong", ip="192.0.2.1")
        self.wait_count("refused 1", 1)
        wait_for(lambda: list(harness.family(self.authd.pid)) == [self.authd.pid], "the child to end")
        self.assertEqual(self.ask("check", password="right", ip="192.0.2.2").answer(), 0)
        self.assertEqual(wrong.answer(), 1)

    def test_each_failure_of_an_address_is_held_back_longer(self):
        first = self.ask("check", password="a", ip="192.0.2.1")
        self.wait_count("refused 1", 1)
        second = self.ask("check", password="b", ip="192.0.2.1")
        self.wait_count("refused 1", 2)
        third = self.ask("check", password="c", ip="192.0.2.99")  # another address: as the first
        self.wait_count("refused 1", 3)
        self.assertEqual(first.answer(), 1)
        self.assertTrue(second.is_waiting())
        self.assertEqual(third.answer(), 1)
        self.assertEqual(second.answer(), 1)

    def test_after_ten_failures_an_address_is_refused_unasked_even_with_the_right_password(self):
        for n in range(10):
            self.ask("check", name=f"user{n}", password=f"wrong{n}", ip="2001:db8::1")
        self.wait_count("refused 1", 10)
        asked = self.asked()
        late = self.ask("check", password="right", ip="2001:db8::2")  # of the same 64 bits
        self.wait_count("refused unasked", 1)
        self.assertTrue(late.is_waiting())
        self.assertEqual(self.asked(), asked)
        self.assertEqual(self.ask("check", password="right", ip="2001:db8:0:1::1").answer(), 0)
        late.close()

    def test_the_same_wrong_password_counts_once(self):
        for _ in range(12):
            self.ask("check", password="old", ip="192.0.2.1")
            before = self.count("refused 1")
            self.wait_count("refused 1", before + 1)
        self.assertEqual(self.ask("check", password="right", ip="192.0.2.1").answer(), 0)

    def test_a_front_that_invents_addresses_tries_an_account_no_faster_and_locks_nobody_out(self):
        self.assertEqual(self.ask("check", password="right", ip="198.51.100.1").answer(), 0)
        began = time.monotonic()
        fronts = [self.ask("check", name=("joe", "JOE", " joe")[n % 3], password=f"wrong{n}", ip=f"10.0.0.{n}") for n in range(60)]
        # All but those that were checked and those that wait are sent away.
        wait_for(lambda: self.count("refused 1") >= 20 and len(self.logins()) >= 1 + 60 - 8, "most of them")
        # Who is known there is not held up, and no other account.
        self.assertEqual(self.ask("check", password="right", ip="198.51.100.1").answer(), 0)
        self.assertEqual(self.ask("check", name="ann", password="right", ip="10.0.0.200").answer(), 0)
        # The rate, whatever the machine's: 20 at once, and one each 10 seconds.
        self.assertLessEqual(self.asked(), 20 + 1 + (time.monotonic() - began) / 10)
        self.assertGreaterEqual(self.count("too many wait"), 1)
        for front in fronts:
            front.close()

    def test_the_address_is_the_kernels_word_where_there_is_one(self):
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
            with server.accept()[0] as connection:
                self.assertEqual(self.ask("check", password="right", ip="192.0.2.1", descriptors=[connection.fileno()] * 2).answer(), 0)
        del client
        self.assertEqual(self.ask("check", password="right", ip="not an address").answer(), 0)
        self.assertEqual([row[2] for row in self.logins()], ["127.0.0.1", "-"])

    def test_the_log_names_who_and_never_the_password_and_nothing_can_spoil_it(self):
        self.ask("check", name="joe\n\x1b[31mroot 192.0.2.1 ok", password="sesame-of-joe", ip="192.0.2.1")
        self.ask(["nix\nqmail-authd: login: x"], name="", password="sesame-of-joe")
        self.wait_count("no such service", 1)
        self.wait_count("refused 1", 1)
        self.assertEqual(sorted(self.logins()), [("check", "joe??[31mroot?192.0.2.1?ok", "192.0.2.1", "refused 1"),
                                                 ("nix?qmail-authd??login??x", "-", "-", "no such service")])
        self.assertNotIn("sesame", self.authd.log())


if __name__ == "__main__":
    unittest.main()
