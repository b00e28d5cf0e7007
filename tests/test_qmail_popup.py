"""qmail-popup from outside: the login dialogue, and what the checker gets and says."""

import os
import socket
import subprocess
import tempfile
import unittest

from tests import harness, spawners
from tests.harness import Line, dialogue


class Login(unittest.TestCase):
    def setUp(self):
        self.fakes = spawners.Fakes()
        self.addCleanup(self.fakes.remove)
        self.fakes.script("checker", 'tr "\\0" "|" <&3 >"$FAKES/fd3"; echo "+OK welcome"; cat')
        self.env = {"PATH": f"{self.fakes.path}:{os.environ['PATH']}", "FAKES": self.fakes.path}

    def popup(self, *argv, env=None):
        line = Line.start(["qmail-popup", *(argv or ("pop.example", "checker"))], env={**self.env, **(env or {})}, cwd="/")
        self.addCleanup(line.close)
        return line

    def fd3(self):
        with open(self.fakes.file("fd3")) as f:
            return f.read()

    def end(self, line, out=b""):
        result = line.finish()
        self.assertEqual((result.code, result.out, result.err), (1, out, b""))

    def test_user_and_pass_run_the_checker_and_its_session(self):
        line = self.popup()
        dialogue(line, """
            S: +OK ready
            C: USER joe
            S: +OK ...
            C: PASS  two words
        """)
        self.assertEqual(line.reader.readline(), b"+OK welcome\n")
        self.end(line)
        self.assertRegex(self.fd3(), rf"^joe\| two words\|<{line.process.pid}\.[0-9]+@pop\.example>\|$")

    def test_apop_hands_over_the_digest_and_the_timestamp(self):
        line = self.popup(env={"POP3AUTH": "+apop"})
        banner = line.expect("+OK <...@pop.example>")
        line.send("APOP joe c4c9334bac560ecc979e58001b3e22fb\r\n")
        self.assertEqual(line.reader.readline(), b"+OK welcome\n")
        self.end(line)
        self.assertEqual(self.fd3(), f"joe|c4c9334bac560ecc979e58001b3e22fb|{banner.removeprefix('+OK ')}|")

    def test_what_stands_before_a_login(self):
        line = self.popup()
        dialogue(line, """
            S: +OK ready
            C: noop
            S: +OK ...
            C: CAPA
            S: +OK ...
            S: USER
            S: TOP
            S: UIDL
            S: PIPELINING
            S: RESP-CODES
            S: AUTH-RESP-CODE
            S: UTF8 USER
            S: .
            C: PASS x
            S: -ERR USER first
            C: USER
            S: -ERR syntax error
            C: quit
            S: +OK ...
        """)
        self.end(line)

    def test_pass_comes_right_after_user(self):
        line = self.popup()
        dialogue(line, """
            S: +OK ready
            C: USER joe
            S: +OK ...
            C: NOOP
            S: +OK ...
            C: PASS x
            S: -ERR USER first
            C: QUIT
            S: +OK ...
        """)
        self.end(line)

    def test_three_failures_close_the_line(self):
        line = self.popup()
        dialogue(line, """
            S: +OK ready
            C: STAT
            S: -ERR authorization first
            C: APOP joe c4c9334bac560ecc979e58001b3e22fb
            S: -ERR authorization first
            C: STLS
            S: -ERR authorization first
        """)
        self.end(line)

    def test_answers_without_a_text_end_in_a_space(self):
        line = self.popup()
        line.expect("+OK ready")
        line.send("NOOP\r\n")
        self.assertEqual(line.reader.readline(), b"+OK \r\n")
        self.end(line)

    def test_bare_line_feeds_are_accepted(self):
        line = self.popup()
        line.send("USER joe\nPASS x\n")
        self.end(line, line.reader.readline() * 0 + b"+OK \r\n+OK welcome\n")
        self.assertTrue(self.fd3().startswith("joe|x|<"))

    def test_a_nul_does_not_reach_the_checker(self):
        line = self.popup()
        dialogue(line, "S: +OK ready\nC: USER joe\0root\nS: -ERR syntax error\n"
                       "C: USER joe\nS: +OK ...\nC: PASS a\0b\nS: -ERR syntax error\nC: QUIT\nS: +OK ...")
        self.end(line)
        self.assertFalse(os.path.exists(self.fakes.file("fd3")))

    def test_a_line_without_end_takes_no_memory(self):
        line = self.popup()
        line.expect("+OK ready")
        line.send(b"USER " + b"x" * 200_000 + b"\r\n")
        line.expect("-ERR line too long")
        with open(f"/proc/{line.process.pid}/status") as f:
            peak = next(int(row.split()[1]) for row in f if row.startswith("VmHWM"))
        self.assertLess(peak, 8192)
        line.send("USER joe\r\nPASS y\r\n")
        line.expect("+OK ...")
        line.expect("+OK welcome")
        self.end(line)

    def test_a_long_password_is_a_password(self):
        line = self.popup()
        line.expect("+OK ready")
        line.send("USER joe\r\nPASS " + "p" * 4000 + "\r\n")
        line.expect("+OK ...")
        line.expect("+OK welcome")
        self.end(line)
        self.assertIn("|" + "p" * 4000 + "|", self.fd3())

    def test_what_is_pipelined_behind_the_password_is_the_sessions(self):
        line = self.popup()
        line.expect("+OK ready")
        line.send("USER joe\r\nPASS x\r\nSTAT\r\nQUIT\r\n")
        line.expect("+OK ...")
        line.expect("+OK welcome")
        self.end(line, b"STAT\r\nQUIT\r\n")

    def test_on_a_socket_too(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = subprocess.Popen([harness.program("qmail-popup"), "pop.example", "checker"], env=self.env, cwd="/",
                                       stdin=theirs, stdout=theirs)
            theirs.close()
            ours.settimeout(harness.TIMEOUT)
            ours.sendall(b"NOOP\r\nUSER joe\r\nPASS x\r\nSTAT\r\n")
            ours.shutdown(socket.SHUT_WR)
            got = b""
            while more := ours.recv(4096):
                got += more
            self.assertEqual(process.wait(harness.TIMEOUT), 1)
        self.assertRegex(got, rb"^\+OK ready\r\n\+OK \r\n\+OK \r\n\+OK welcome\nSTAT\r\n$")

    def answer_of(self, *argv):
        line = self.popup("pop.example", *argv)
        line.expect("+OK ready")
        line.send("USER joe\r\nPASS x\r\n")
        line.expect("+OK ...")
        result = line.finish()
        self.assertEqual(result.code, 1)
        return result.out

    def test_the_checkers_exit_code_is_the_answer(self):
        for code, answer in [(0, b""), (1, b"-ERR [AUTH] authorization failed\r\n"),
                             (2, b"-ERR [SYS/PERM] authorization failed\r\n"),
                             (3, b"-ERR [AUTH] authorization failed\r\n"),
                             (20, b"-ERR [AUTH] authorization failed\r\n"),
                             (100, b"-ERR [SYS/TEMP] authorization failed\r\n"),
                             (111, b"-ERR [SYS/TEMP] authorization failed\r\n"),
                             (127, b"-ERR [SYS/TEMP] authorization failed\r\n")]:
            with self.subTest(code):
                self.assertEqual(self.answer_of("sh", "-c", f"cat <&3 >/dev/null; exit {code}"), answer)
        self.assertEqual(self.answer_of("sh", "-c", "kill -9 $$"), b"-ERR [SYS/TEMP] aack, child crashed\r\n")

    def test_a_checker_that_reads_nothing_still_decides(self):
        self.assertEqual(self.answer_of("sh", "-c", "exec 3<&-; exit 1"), b"-ERR [AUTH] authorization failed\r\n")

    def test_a_checker_that_cannot_be_run_is_no_wrong_password(self):
        self.assertEqual(self.answer_of("no-such-checker"), b"-ERR [SYS/TEMP] authorization failed\r\n")
        self.assertEqual(self.answer_of("/nonexistent/checker"), b"-ERR [SYS/TEMP] authorization failed\r\n")

    def test_wrong_use_is_said_to_the_client(self):
        for argv in ([], ["pop.example"]):
            result = harness.run(["qmail-popup", *argv], env=self.env)
            self.assertEqual((result.code, result.out), (1, b"-ERR usage: popup hostname subprogram\r\n"))

    def test_a_client_that_leaves_is_not_answered(self):
        line = self.popup()
        line.expect("+OK ready")
        line.send("USER joe\r\nPASS half")
        self.end(line, b"+OK \r\n")
        self.assertFalse(os.path.exists(self.fakes.file("fd3")))

    @unittest.skipUnless(os.geteuid() == 0, "only root can hand over to the owner of a home")
    def test_root_becomes_the_owner_of_an_own_home(self):
        with harness.Home(users={}) as home:
            line = self.popup("h", "sh", "-c", "id -u; id -G", env=home.env)
            line.expect("+OK ready")
            line.send("USER joe\r\nPASS x\r\n")
            line.expect("+OK ...")
            line.expect(str(harness.owner()[1]))
            line.expect(str(harness.owner()[2]))
            self.end(line)

    def test_a_home_that_was_named_and_is_not_there_ends_the_login(self):
        result = harness.run(["qmail-popup", "h", "checker"], env={**self.env, "QMAIL_HOME": "/nonexistent"})
        self.assertEqual((result.code, result.out), (1, b"-ERR [SYS/TEMP] this server is not set up\r\n"))
        self.assertIn(b"qmail-popup: fatal: unable to use home /nonexistent", result.err)


class WithEverything(unittest.TestCase):
    def test_a_mail_user_logs_in_reads_and_a_wrong_password_does_not(self):
        with harness.Home(users={"joe": "secret"}) as home:
            with open(home.write("home/joe/Maildir/new/1700000000.1.h", "Subject: hello\n\nworld\n"), "rb"):
                pass
            argv = ["qmail-popup", "pop.example", "checkpassword-file", home.file("users/passwd"), "qmail-pop3d", "Maildir"]
            for password, answer in [("wrong", "-ERR [AUTH] authorization failed"), ("secret", "+OK ")]:
                with Line.start(argv, env=home.env, cwd="/") as line:
                    dialogue(line, f"S: +OK ready\nC: USER joe\nS: +OK ...\nC: PASS {password}\nS: {answer}")
                    if password == "secret":
                        dialogue(line, """
                            C: STAT
                            S: +OK 1 22
                            C: RETR 1
                            S: +OK ...
                            S: Subject: hello
                            S: ...
                            S: world
                            S: .
                            C: QUIT
                            S: +OK ...
                        """)
                    self.assertEqual(line.finish().code, 1)


if __name__ == "__main__":
    unittest.main()
