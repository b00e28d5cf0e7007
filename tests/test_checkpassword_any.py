"""checkpassword-any from outside: which checkers are asked, what each is given, and whose exit code comes out."""

import os
import shutil
import signal
import unittest

from tests import harness
from tests.harness import wait_for

UID, GID = harness.owner()[1:]
LOGIN = b"joe\0pencil\0<1.2@h>\0"


class Any(unittest.TestCase):
    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        for name, password in (("one", "pencil"), ("two", "other")):
            with open(os.path.join(self.base, name), "w") as f:
                f.write(f"joe:{{PLAIN}}{password}:{UID}:{GID}:{self.base}\n")
        self.env = {**os.environ, "PATH": f"{self.base}:{harness.BIN}:{os.environ['PATH']}"}

    def script(self, name, text):
        path = os.path.join(self.base, name)
        with open(path, "w") as f:
            f.write("#!/bin/sh\n" + text)
        os.chmod(path, 0o755)

    def file(self, name):
        return ["checkpassword-file", os.path.join(self.base, name)]

    def ask(self, *words, login=LOGIN, fds=None, stdin=b""):
        return harness.run(["checkpassword-any", *words], stdin, fds={3: login, **(fds or {})}, env=self.env)

    def ends(self, name, code):
        self.script(name, f"cat <&3 >>{self.base}/{name}.heard; exit {code}\n")

    def heard(self, name):
        try:
            with open(os.path.join(self.base, name + ".heard"), "rb") as f:
                return f.read()
        except FileNotFoundError:
            return None

    def test_the_first_that_lets_in_has_the_program(self):
        program = ["sh", "-c", 'echo "$USER"; id -u; cat; [ -e /dev/fd/3 ] || [ -e /dev/fd/63 ] || echo closed; exit 7']
        for chain in ([self.file("one")], [self.file("two"), self.file("one")], [self.file("one"), ["false"]]):
            words = [word for checker in chain for word in [*checker, "--"]]
            with self.subTest(words):
                result = self.ask(*words, *program, stdin=b"input\n")
                self.assertEqual((result.code, result.out.decode(), result.err), (7, f"joe\n{UID}\ninput\nclosed\n", b""))

    def test_a_program_that_ends_like_a_refusal_is_not_asked_again(self):
        self.ends("later", 1)
        for code in (1, 2, 5, 111):
            self.assertEqual(self.ask(*self.file("one"), "--", "later", "--", "sh", "-c", f"exit {code}").code, code)
        self.assertIsNone(self.heard("later"))

    def test_all_have_refused(self):
        result = self.ask(*self.file("two"), "--", *self.file("two"), "--", "echo", "in")
        self.assertEqual((result.code, result.out, result.err), (1, b"", b""))

    def test_only_a_refusal_goes_on(self):
        self.ends("next", 1)
        for code in (2, 3, 20, 111):
            self.ends("first", code)
            self.assertEqual(self.ask("first", "--", "next", "--", "true").code, code)
        self.assertIsNone(self.heard("next"))
        self.ends("first", 1)
        self.assertEqual(self.ask("first", "--", "next", "--", "true").code, 1)
        self.assertEqual(self.heard("next"), LOGIN)

    def test_with_f_the_codes_of_the_field_are_refusals(self):
        for code, goes_on in ((1, True), (3, True), (20, True), (2, False), (21, False), (111, False)):
            self.ends("first", code)
            self.ends("next", 1)
            with self.subTest(code):
                self.assertEqual(self.ask("-f", "first", "--", "next", "--", "true").code, 1 if goes_on else code)
                self.assertEqual(self.heard("next"), LOGIN if goes_on else None)
            shutil.rmtree(os.path.join(self.base, "next.heard"), ignore_errors=True)
            for name in ("first", "next"):
                if self.heard(name) is not None:
                    os.unlink(os.path.join(self.base, name + ".heard"))

    def test_one_that_dies_or_ends_without_a_word_is_temporary(self):
        self.ends("later", 1)
        self.script("dies", "kill -SEGV $$\n")
        result = self.ask("dies", "--", "later", "--", "true")
        self.assertEqual((result.code, result.err), (111, b"checkpassword-any: fatal: dies died from signal 11\n"))
        result = self.ask("true", "--", "later", "--", "true")
        self.assertEqual((result.code, result.err), (111, b"checkpassword-any: fatal: true ended without running the program\n"))
        self.assertEqual(self.ask("no-such-checker", "--", "later", "--", "true").code, 111)
        self.assertIsNone(self.heard("later"))

    def test_one_that_closes_descriptors_lets_nobody_in_unsaid(self):
        self.script("closes", 'exec perl -e "use POSIX; POSIX::close(63); exec @ARGV" -- "$@"\n')
        result = self.ask("closes", "--", *self.file("one"), "--", "echo", "in")
        self.assertEqual((result.code, result.out), (111, b""))
        self.assertIn(b"unable to say", result.err)

    def test_every_checker_hears_all_of_a_long_login(self):
        login = b"joe\0" + b"x" * 65_000 + b"\0t\0PLAIN\0smtp\0" + b"192.0.2.1\0"
        self.ends("first", 1)
        self.ends("second", 1)
        self.script("deaf", "exit 1\n")
        self.assertEqual(self.ask("first", "--", "deaf", "--", "second", "--", "true", login=login).code, 1)
        self.assertEqual((self.heard("first"), self.heard("second")), (login, login))
        self.assertEqual(self.ask("first", "--", "true", login=login + b"x" * 1000).code, 1)

    def test_what_a_checker_leaves_running_does_not_hold_the_answer(self):
        self.script("leaves", f"sleep 60 & echo $! >{self.base}/pid; exit 1\n")
        result = self.ask("leaves", "--", *self.file("one"), "--", "true", fds={1: os.open(os.devnull, os.O_WRONLY), 2: os.open(os.devnull, os.O_WRONLY)})
        with open(os.path.join(self.base, "pid")) as f:
            os.kill(int(f.read()), signal.SIGKILL)
        self.assertEqual(result.code, 0)

    def test_the_signature_of_scram_comes_through(self):
        self.script("signs", 'printf signature >&4; exec 4>&-; exec "$@"\n')
        result = self.ask(*self.file("two"), "--", "signs", "--", "true", fds={4: "capture"})
        self.assertEqual((result.code, result.fds[4]), (0, b"signature"))

    def test_being_ended_it_ends_the_session(self):
        login = os.memfd_create("login")
        os.write(login, LOGIN)
        os.lseek(login, 0, os.SEEK_SET)
        started = os.path.join(self.base, "started")
        shell = f'exec 3<&0 0</dev/null; exec checkpassword-any {" ".join(self.file("one"))} -- sh -c "echo \\$\\$ >{started}.new; mv {started}.new {started}; exec sleep 60"'
        with harness.Daemon(["sh", "-c", shell], env=self.env, stdin=login) as daemon:
            os.close(login)
            wait_for(lambda: os.path.exists(started), "the session")
            self.assertEqual(daemon.stop(), -signal.SIGTERM)
        with open(started) as f:
            pid = int(f.read())
        wait_for(lambda: not harness.family(pid), "the session to end")

    def test_misuse(self):
        for words in ([], ["true"], ["a", "--"], ["--", "true"], ["a", "--", "--", "true"], ["-x", "a", "--", "true"], ["-f"]):
            with self.subTest(words):
                self.assertEqual(self.ask(*words).code, 2)
        for login in (b"", b"joe", b"joe\0pencil"):
            self.assertEqual(self.ask("a", "--", "true", login=login).code, 2)


if __name__ == "__main__":
    unittest.main()
