"""qmail-authd from outside: who may ask for what, what a checker gets, sessions and their ends, wrong passwords."""

import glob
import os
import pwd
import re
import signal
import socket
import struct
import subprocess
import time
import unittest

from tests import harness, logins, sandbox
from tests.harness import Daemon, Line, dialogue, wait_for
from tests.logins import Front, fields, packet
from tests.packages import fail2ban, unpacked
from tests.test_system_home import ENV, HOME, gid, made, script, sh, uid, write

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

    def test_descriptors_that_come_in_a_wrong_number_are_not_kept(self):
        fds = f"/proc/{self.authd.pid}/fd"
        wait_for(lambda: len(os.listdir(fds)) == 4, "the listener alone")
        good = packet(fields("joe", "secret"), ["true"])
        with open(os.devnull, "r+b") as null:
            for number in (1, 3, 50, 253):
                self.assertEqual(self.front(good, [null.fileno()] * number).answer(), 111)
        wait_for(lambda: len(os.listdir(fds)) == 4, "all to be closed")

    def test_who_connects_and_says_nothing_is_in_nobodys_way(self):
        silent = [self.front() for _ in range(100)]
        self.assertEqual(self.ask("true").answer(), 0)
        for front in silent:
            self.assertTrue(front.is_waiting())
            front.close()
        self.assertEqual(self.ask("true").answer(), 0)
        wait_for(lambda: len(os.listdir(f"/proc/{self.authd.pid}/fd")) < 12, "the connections to be closed")

    def lingering(self):
        """A TCP connection that takes for ever to close: full, and its peer reads nothing."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sender = socket.create_connection(listener.getsockname())
            peer = listener.accept()[0]
        self.addCleanup(peer.close)
        sender.setblocking(False)
        try:
            while True:
                sender.send(bytes(65536))
        except BlockingIOError:
            pass
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30000))
        return sender

    def test_what_takes_for_ever_to_close_is_not_closed_by_it(self):
        self.script("fail", "exit 111")
        os.kill(self.authd.pid, signal.SIGSTOP)  # so that all is there when it looks, and nobody else has it
        self.addCleanup(lambda: self.authd.process.poll() is not None or os.kill(self.authd.pid, signal.SIGCONT))
        good = [packet(fields("joe", "secret"), [word]) for word in ("no-such-service", "fail", "true")]
        for data in ([b"no request"], *([data] for data in good), *([data, b"and more"] for data in good)):
            front = self.front()
            for piece in data:
                # In every packet another one; the last sender's copy is the one that was passed.
                sender = self.lingering()
                second = self.lingering() if piece != b"no request" else None
                passed = [sender] + [second] * (second is not None)
                socket.send_fds(front.socket, [piece], [s.fileno() for s in passed])
                for s in passed:
                    os.close(s.detach())  # not the last: the packet has it
            if data[-1] == b"and more":
                front.close()
        os.kill(self.authd.pid, signal.SIGCONT)
        self.assertEqual(self.ask("true").answer(), 0)
        self.wait_quiet()

    def wait_quiet(self):
        wait_for(lambda: list(harness.family(self.authd.pid)) == [self.authd.pid], "its children to end")
        self.assertEqual(self.ask("true").answer(), 0)

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

    def test_hup_ends_neither_it_nor_sessions(self):
        front, pid = self.session()
        for member in harness.family(self.authd.pid):
            if member != pid:
                os.kill(member, signal.SIGHUP)
        self.assertEqual(self.ask("true").answer(), 0)
        self.assertTrue(front.is_waiting())
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

    def test_a_refusal_has_a_line_that_fail2ban_finds(self):
        found = fail2ban("courier-auth")
        for ip, name, shown in [("192.0.2.1", "joe", "joe"), ("2001:db8::1", "x, ip=[192.0.2.66], user=y", "x??ip??192.0.2.66???user?y")]:
            self.assertEqual(self.ask("true", name=name, password="wrong", ip=ip).answer(), 1)
            match = found.fullmatch(self.authd.wait_log(rf"^qmail-authd: LOGIN FAILED, .*ip=\[{ip}\]$")[0])
            self.assertEqual((match["host"], match["user"]), (ip, shown))
        self.assertEqual(self.ask("true", password="wrong").answer(), 1)  # from nowhere
        self.assertEqual(self.ask("true", ip="192.0.2.1").answer(), 0)
        wait_for(lambda: len(self.logins()) == 4, "all lines")
        self.assertEqual(self.authd.log().count("LOGIN FAILED"), 2)

    def test_fail2ban_itself_finds_the_line_in_every_log(self):
        regex, filters, modules = unpacked("usr/bin/fail2ban-regex"), unpacked("etc/fail2ban"), unpacked("usr/lib/python3/dist-packages")
        self.assertEqual(self.ask("true", name="joe", password="wrong", ip="192.0.2.1").answer(), 1)
        refused = self.authd.wait_log(r"^qmail-authd: LOGIN FAILED, .*$")[0]
        refused = [refused, refused.replace("authd", "smtpd").replace("192.0.2.1", "2001:db8::1")]
        others = ["qmail-smtpd: LOGIN, user=joe, method=PLAIN, ip=[192.0.2.1]", "qmail-authd: login: true joe 192.0.2.1 refused 1"]
        befores = ["@40000000692082f10d1c9a4c ", "2026-11-21T21:00:00.12345 ", "2026-11-21 21:00:00 ", "Nov 21 21:00:00 host qmail: 1795294800.123456 ",
                   "Nov 21 21:00:00 host qmail-authd[12]: ", "2026-11-21T21:00:00.123+00:00 host qmail-submission[12]: "]
        with open(os.path.join(harness.ROOT, "doc", "man", "qmail-authd.8")) as f:
            told = re.search(r"^filter = (.*)$", f.read(), re.M)[1].replace("\\e", "\\")

        def found(befores, name):
            log = self.home.write("log-of-logins", "".join(f"{before}{line}\n" for before in befores for line in refused + others))
            done = subprocess.run(["python3", regex, "-c", filters, "-o", "ip", log, name],
                                  env={**os.environ, "PYTHONPATH": modules, "PYTHONDONTWRITEBYTECODE": "1"},
                                  capture_output=True, text=True, timeout=harness.TIMEOUT)
            return done.stdout.split()
        self.assertEqual(found(befores, told), ["192.0.2.1", "2001:db8::1"] * len(befores))
        self.assertEqual(found(befores[:3], "courier-auth"), ["192.0.2.1", "2001:db8::1"] * 3)
        self.assertEqual(found([before.replace("[12]", "") for before in befores[3:]], told.replace("[", "[logtype=journal,", 1)), ["192.0.2.1", "2001:db8::1"] * 3)

    def test_the_log_names_who_and_never_the_password_and_nothing_can_spoil_it(self):
        self.ask("check", name="joe\n\x1b[31mroot 192.0.2.1 ok", password="sesame-of-joe", ip="192.0.2.1")
        self.ask(["nix\nqmail-authd: login: x"], name="", password="sesame-of-joe")
        self.wait_count("no such service", 1)
        self.wait_count("refused 1", 1)
        self.assertEqual(sorted(self.logins()), [("check", "joe??[31mroot?192.0.2.1?ok", "192.0.2.1", "refused 1"),
                                                 ("nix?qmail-authd??login??x", "-", "-", "no such service")])
        self.assertNotIn("sesame", self.authd.log())


PASSWORD = "sesame-of-joe"
RUN = HOME + "/run/auth"


@sandbox.alone
class ASystem(unittest.TestCase):
    """A system home: qmail-authd as root, POP3 talked by qmaild, joe with an account."""

    @classmethod
    def setUpClass(cls):
        made("--me", "test.example")
        sh("useradd -m joe; groupadd club; usermod -aG club joe; chmod 711 /home/joe")
        sh("chpasswd", input=f"joe:{PASSWORD}\n")
        sh("maildirmake Maildir", cwd="/home/joe", env=ENV, user="joe", group="joe", extra_groups=[])

    def setUp(self):
        self.authd = None
        self.start()
        ids = ["-u", str(uid("qmaild")), "-g", str(gid("nofiles"))]
        self.popd = Daemon(["tcpserver", "-v", "-H", "-R", "-l", "0", "-c", "3", *ids, "127.0.0.1", "110", "qmail-popup", "test.example",
                            "checkpassword", "qmail-pop3d", "Maildir"], env={**ENV, "SECRET": "of the daemon"})
        self.addCleanup(self.popd.stop)
        self.popd.wait_log("status: 0/3")

    def start(self):
        self.authd = Daemon(["qmail-authd"], env=ENV, cwd="/")
        self.addCleanup(self.authd.stop)
        wait_for(self.listening, "qmail-authd to listen")

    def listening(self):
        if self.authd.process.poll() is not None:
            raise AssertionError(self.authd.log())
        return logins.server(HOME) == self.authd.pid

    def connect(self):
        line = Line.connect(110)
        self.addCleanup(line.close)
        line.expect("+OK ready")
        return line

    def log_in(self, password=PASSWORD, name="joe"):
        line = self.connect()
        line.send(f"USER {name}\r\n")
        line.expect("+OK ...")
        line.send(f"PASS {password}\r\n")
        return line

    def session(self):
        line = self.log_in()
        line.expect("+OK ...")
        return line, self.find("qmail-pop3d")

    def find(self, name):
        """The one process of this name; those of an earlier test may still be ending."""
        def look():
            found = []
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{pid}/comm") as f:
                        if f.read().strip() == name:
                            found.append(int(pid))
                except OSError:
                    continue
            return found if len(found) == 1 else None
        return wait_for(look, f"exactly one {name}")[0]

    def who(self, pid):
        with open(f"/proc/{pid}/status") as f:
            status = dict(line.split(":", 1) for line in f.read().splitlines())
        uids, gids = set(status["Uid"].split()), set(status["Gid"].split())
        self.assertTrue(len(uids) == len(gids) == 1, (uids, gids))
        return int(uids.pop()), int(gids.pop()), [int(g) for g in status["Groups"].split()]

    def jail(self, pid):
        """(no_new_privs, seccomp) of a process."""
        with open(f"/proc/{pid}/status") as f:
            status = dict(line.split(":", 1) for line in f.read().splitlines())
        return int(status["NoNewPrivs"]), int(status["Seccomp"])

    def ended(self, pid):
        wait_for(lambda: not harness.family(pid), f"process {pid} to end")

    def run_as(self, name, argv, fds=None):
        return harness.run([f"{HOME}/bin/{argv[0]}", *argv[1:]], env=ENV, cwd="/", fds=fds, as_user=(uid(name), pwd.getpwnam(name).pw_gid))

    def test_a_session_is_the_users_and_its_front_qmailds(self):
        line, pop3d = self.session()
        nofiles, joe = gid("nofiles"), (uid("joe"), gid("joe"), [gid("joe")])
        self.assertEqual(self.who(pop3d), joe)
        popup = self.find("qmail-popup")
        self.assertEqual(self.who(popup), (uid("qmaild"), nofiles, [nofiles]))
        self.assertEqual(sorted(map(int, os.listdir(f"/proc/{pop3d}/fd"))), [0, 1, 2])
        for n in (0, 1):
            self.assertEqual(os.readlink(f"/proc/{pop3d}/fd/{n}"), os.readlink(f"/proc/{popup}/fd/{n}"))
        with open(f"/proc/{pop3d}/environ", "rb") as f:
            environ = dict(entry.split("=", 1) for entry in f.read().decode().split("\0") if entry)
        self.assertEqual(sorted(environ), ["HOME", "PATH", "PROTO", "QMAIL_HOME", "SHELL", "TCPLOCALHOST", "TCPLOCALIP", "TCPLOCALPORT",
                                           "TCPREMOTEIP", "TCPREMOTEPORT", "USER"])
        self.assertEqual((environ["USER"], environ["HOME"], environ["TCPREMOTEIP"]), ("joe", "/home/joe", "127.0.0.1"))
        # Beside it stands a child of qmail-authd, which holds no connection of a client.
        with open(f"/proc/{pop3d}/status") as f:
            beside = int(next(row.split()[1] for row in f if row.startswith("PPid")))
        self.assertEqual(self.who(beside)[0], 0)
        # The front is locked in; what runs foreign programs is not.
        self.assertEqual([self.jail(popup), self.jail(beside), self.jail(self.authd.pid)], [(1, 2), (0, 0), (0, 0)])
        self.assertNotIn(os.readlink(f"/proc/{pop3d}/fd/0"), [os.readlink(p) for p in glob.glob(f"/proc/{beside}/fd/*")])
        dialogue(line, "C: STAT\nS: +OK 0 0\nC: QUIT\nS: +OK ...")
        self.assertEqual(line.reader.read(), b"")
        self.popd.wait_log(rf"^tcpserver: end {popup} status 256$")
        self.popd.wait_log(r"status: 0/3\n\Z")
        self.authd.wait_log(r"^qmail-authd: login: pop3 joe 127\.0\.0\.1 ok$")

    def test_what_is_pipelined_behind_the_password_is_the_sessions(self):
        line = self.connect()
        line.send(f"USER joe\r\nPASS {PASSWORD}\r\nSTAT\r\nQUIT\r\n")
        for want in ("+OK ...", "+OK ...", "+OK 0 0", "+OK ..."):
            line.expect(want)
        self.assertEqual(line.reader.read(), b"")

    def test_limits_of_tcpserver_count_sessions_until_they_end(self):
        lines = [self.session_only() for _ in range(3)]
        self.popd.wait_log(r"^tcpserver: status: 3/3$")
        waiting = Line.connect(110)
        self.addCleanup(waiting.close)
        lines[0].send("QUIT\r\n")
        waiting.expect("+OK ready")  # not before
        self.assertRegex(self.popd.log(), r"(?s)status: 3/3\n.*: end \d+ status 256\n.*status: 3/3\n")
        for line in lines[1:]:
            line.close()
        waiting.close()
        self.popd.wait_log(r"status: 0/3\n\Z")

    def session_only(self):
        line = self.log_in()
        line.expect("+OK ...")
        return line

    def test_a_front_that_is_killed_ends_the_session(self):
        line, pop3d = self.session()
        os.kill(self.find("qmail-popup"), signal.SIGKILL)
        self.ended(pop3d)
        self.assertEqual(line.reader.read(), b"")
        self.popd.wait_log(r"^tcpserver: end \d+ status 9$")
        self.authd.wait_log(r"^qmail-authd: login: pop3 joe 127\.0\.0\.1 left$")

    def test_a_client_that_leaves_ends_everything(self):
        line, pop3d = self.session()
        popup = self.find("qmail-popup")
        line.close()
        self.ended(pop3d)
        self.ended(popup)

    def test_a_wrong_password_is_refused_late_and_logged(self):
        line = self.log_in("wrong-one")
        self.authd.wait_log(r"^qmail-authd: login: pop3 joe 127\.0\.0\.1 refused 1$")
        self.assertNotIn("wrong-one", self.authd.log() + self.popd.log())
        line.expect("-ERR [AUTH] authorization failed")
        self.assertEqual(line.reader.read(), b"")

    def test_sessions_outlive_qmail_authd_and_it_may_start_again_beside_them(self):
        line, pop3d = self.session()
        self.authd.stop(signal.SIGKILL)
        self.start()
        dialogue(line, "C: STAT\nS: +OK 0 0\nC: QUIT\nS: +OK ...")
        self.assertEqual(line.reader.read(), b"")
        self.ended(pop3d)

    def test_what_root_has_not_listed_is_not_run(self):
        popup = ["qmail-popup", "test.example", "sh", "-c", "id >/var/stolen"]
        r = self.run_as("qmaild", popup, fds={0: f"USER joe\r\nPASS {PASSWORD}\r\n".encode()})
        self.assertRegex(r.out, rb"\r\n-ERR \[SYS/PERM\] authorization failed\r\n$")
        self.authd.wait_log(r"^qmail-authd: login: sh joe - no such service$")
        r = self.run_as("qmaild", ["qmail-popup", "test.example", "true"], fds={0: f"USER joe\r\nPASS {PASSWORD}\r\n".encode()})
        self.assertEqual(r.out.count(b"\r\n"), 2)  # a service by its name; `true` says nothing
        self.assertFalse(os.path.exists("/var/stolen"))

    def test_smtp_auth_asks_as_a_checker(self):
        for login, code in ((f"joe\0{PASSWORD}\0\0", 0), ("joe\0wrong\0\0", 1), ("nobody-here\0x\0\0", 1), ("joe", 2)):
            self.assertEqual(self.run_as("qmaild", ["authask", "true"], fds={3: login.encode()}).code, code, login)
        self.authd.stop()
        self.assertEqual(self.run_as("qmaild", ["authask", "true"], fds={3: f"joe\0{PASSWORD}\0\0".encode()}).code, 111)

    def test_a_list_that_others_can_write_is_not_believed(self):
        write("control/authprograms", "true:checkpassword true\n")
        self.addCleanup(os.unlink, HOME + "/control/authprograms")
        login = {3: f"joe\0{PASSWORD}\0\0".encode()}
        self.assertEqual(self.run_as("qmaild", ["authask", "true"], fds=login).code, 0)
        for damage, undo in (("chmod 664", "chmod 644"), ("chown qmaild", "chown root")):
            sh(f"{damage} control/authprograms", cwd=HOME)
            self.assertEqual(self.run_as("qmaild", ["authask", "true"], fds=login).code, 111)
            self.authd.wait_log(r"^qmail-authd: warning: refusing control/authprograms: root must own it")
            again = subprocess.run([HOME + "/bin/qmail-authd"], env={**ENV, "QMAIL_HOME": HOME}, capture_output=True, timeout=harness.TIMEOUT)
            self.assertEqual(again.returncode, 111)
            self.assertIn(b"refusing /var/qmail/control/authprograms: ", again.stderr)
            sh(f"{undo} control/authprograms", cwd=HOME)

    def test_only_qmaild_and_root_may_ask(self):
        s = os.lstat(RUN)
        self.assertEqual((s.st_uid, s.st_gid, s.st_mode & 0o7777), (0, gid("nofiles"), 0o660))
        login = {3: f"joe\0{PASSWORD}\0\0".encode()}
        for name in ("joe", "qmails", "qmailq", "qmailr"):
            r = self.run_as(name, ["authask", "true"], fds=login)
            self.assertEqual((r.code, r.err), (111, b"authask: fatal: unable to connect to run/auth: access denied\n"), name)
        for name in ("alias", "qmaill", "qmailp"):  # of qmaild's group
            self.assertEqual(self.run_as(name, ["authask", "true"], fds=login).code, 111)
            self.authd.wait_log(rf"^qmail-authd: warning: refused a connection by uid {uid(name)}$")
        self.assertEqual(self.run_as("root", ["authask", "true"], fds=login).code, 0)
        self.assertEqual(self.authd.log().count("login:"), 1)

    def test_a_socket_that_qmailq_puts_there_is_told_no_password(self):
        self.authd.stop()
        program = ("import os, socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\nos.unlink('run/auth')\n"
                   "s.bind('run/auth')\nos.chmod('run/auth', 0o666)\ns.listen()\nprint('there', flush=True)\ns.settimeout(120)\n"
                   "for _ in range(2): c = s.accept()[0]; print('heard', c.recv(100000), flush=True); c.close()\n")
        spoof = subprocess.Popen(["python3", "-c", program], cwd=HOME, stdout=subprocess.PIPE, text=True, user="qmailq", group="qmail",
                                 extra_groups=[])
        self.addCleanup(spoof.stdout.close)
        self.addCleanup(spoof.wait)
        self.addCleanup(spoof.kill)
        self.assertEqual(spoof.stdout.readline(), "there\n")
        line = self.log_in()
        line.expect("-ERR [SYS/TEMP] authorization failed")
        self.popd.wait_log(rf"^qmail-popup: warning: refusing run/auth: it is served by uid {uid('qmailq')}$")
        self.assertEqual(self.run_as("qmaild", ["authask", "true"], fds={3: b"joe\0secret\0\0"}).code, 111)
        self.assertEqual([spoof.stdout.readline() for _ in range(2)], ["heard b''\n"] * 2)
        self.assertEqual(script("instcheck").stdout, "instcheck: run/auth: not a socket of root\n")
        self.start()  # root takes the name back
        self.assertEqual(script("instcheck").stdout, "")
        self.assertEqual(os.lstat(RUN).st_uid, 0)

    def test_root_follows_nothing_that_qmailq_puts_in_its_way(self):
        with open("/var/victim", "w") as f:
            f.write("untouched")
        os.chmod("/var/victim", 0o600)
        before = os.stat("/var/victim")
        for trap in ("ln -s /var/victim auth", "ln -s /var/victim auth.new", "ln -s /var auth", "ln -s /nonexistent auth.new", "mkfifo auth"):
            self.authd.stop()
            sh(f"rm -rf auth auth.new; {trap}", cwd=HOME + "/run", user="qmailq", group="qmail", extra_groups=[])
            self.start()
            self.assertEqual(self.run_as("qmaild", ["authask", "true"], fds={3: f"joe\0{PASSWORD}\0\0".encode()}).code, 0, trap)
        after = os.stat("/var/victim")
        self.assertEqual((before.st_mode, before.st_uid, before.st_size, before.st_ctime), (after.st_mode, after.st_uid, after.st_size, after.st_ctime))

    def test_the_classic_way_parses_as_qmaild_and_root_only_waits(self):
        classic = Line.start(["qmail-popup", "test.example", "checkpassword", "qmail-pop3d", "Maildir"], env=ENV)
        self.addCleanup(classic.close)
        classic.expect("+OK ready")
        nofiles = gid("nofiles")
        child, = [pid for pid in harness.family(classic.process.pid) if pid != classic.process.pid]
        self.assertEqual(self.who(child), (uid("qmaild"), nofiles, [nofiles]))
        self.assertEqual(os.stat(f"/proc/{child}/environ").st_uid, 0)  # nobody of its account can look into it
        self.assertEqual(self.who(classic.process.pid)[0], 0)
        self.assertEqual([self.jail(child), self.jail(classic.process.pid)], [(1, 2), (0, 0)])
        dialogue(classic, f"C: USER joe\nS: +OK ...\nC: PASS {PASSWORD}\nS: +OK ...\nC: STAT\nS: +OK 0 0")
        self.assertEqual(self.who(self.find("qmail-pop3d"))[0], uid("joe"))
        self.assertEqual(classic.finish().code, 1)


if __name__ == "__main__":
    unittest.main()
