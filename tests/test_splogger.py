"""splogger from outside: what arrives at a syslog socket of the test's own, in a mount namespace."""

import os
import re
import shutil
import socket
import subprocess
import unittest

from tests import harness


class Splogger(unittest.TestCase):
    def setUp(self):
        if not shutil.which("unshare"):
            self.skipTest("unshare is not installed: no place for a /dev/log of our own")
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        with open(os.path.join(self.base, "null"), "w"):
            pass
        self.argv = ["unshare", "-m" if os.geteuid() == 0 else "-rm", "sh", "-c",
                     'mount --bind /dev/null "$0/null" && mount --rbind "$0" /dev && exec "$@"', self.base]
        tried = subprocess.run([*self.argv, "true"], capture_output=True)
        if tried.returncode:
            self.skipTest(f"no mount namespace here: {tried.stderr.decode().strip()}")

    def listen(self, kind=socket.SOCK_DGRAM):
        log = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(log.close)
        log.bind(os.path.join(self.base, "log"))
        log.settimeout(harness.TIMEOUT)
        return log

    def splogger(self, *argv, stdin=b""):
        done = subprocess.run([*self.argv, harness.program("splogger"), *argv], input=stdin, capture_output=True,
                              timeout=harness.TIMEOUT)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))

    def logged(self, text, *argv):
        """The datagrams that some lines become; they wait in the socket."""
        log = self.listen()
        self.splogger(*argv, stdin=text)
        found = []
        log.setblocking(False)
        while True:
            try:
                found.append(log.recv(10_000))
            except BlockingIOError:
                return found

    def test_a_line_gets_tag_priority_and_time(self):
        [message] = self.logged(b"status: local 0/10 remote 0/20\n", "qmail")
        self.assertRegex(message, rb"^<22>qmail: [0-9]{10}\.[0-9]{6} status: local 0/10 remote 0/20$")

    def test_alerts_and_warnings_have_their_priority(self):
        found = self.logged(b"alert: a\nwarning: w\nan alert: a\nalert\n")
        self.assertEqual([re.match(rb"<\d+>", m)[0] for m in found], [b"<17>", b"<20>", b"<22>", b"<22>"])
        self.assertIn(b">splogger: ", found[0])

    def test_the_facility_is_a_number(self):
        self.assertTrue(self.logged(b"x\n", "tag", "16")[0].startswith(b"<134>tag: "))

    def test_a_long_line_is_continued_with_the_same_time_and_priority(self):
        found = self.logged(b"warning: " + b"x" * 1700 + b"\nnext\n", "t")
        times = [re.fullmatch(rb"<(\d+)>t: ([0-9.]+)([ +])(.*)", m).groups() for m in found]
        self.assertEqual([(p, mark, len(text)) for p, _, mark, text in times],
                         [(b"20", b" ", 799), (b"20", b"+", 799), (b"20", b"+", 111), (b"22", b" ", 4)])
        self.assertEqual(times[0][1], times[1][1])
        self.assertEqual(times[0][1], times[2][1])

    def test_799_bytes_are_one_message(self):
        self.assertEqual(len(self.logged(b"x" * 799 + b"\n" + b"y" * 800 + b"\n")), 3)

    def test_odd_bytes_become_question_marks_and_empty_lines_nothing(self):
        found = self.logged(b"\n\na\tb\0c\xff\x7f~\n\nunended")
        self.assertEqual([m.split(b" ", 2)[2] for m in found], [b"a?b?c??~", b"unended"])

    def test_without_a_syslog_lines_are_lost_and_nothing_waits(self):
        self.splogger(stdin=b"x\n" * 1000)

    def test_a_syslog_that_wants_a_stream_gets_one(self):
        log = self.listen(socket.SOCK_STREAM)
        log.listen()
        self.splogger("t", stdin=b"one\ntwo\n")
        connection, _ = log.accept()
        with connection:
            got = b""
            while more := connection.recv(1000):
                got += more
        self.assertRegex(got, rb"^<22>t: [0-9.]+ one\0<22>t: [0-9.]+ two\0$")

    def test_a_syslog_that_was_started_anew_is_found_again(self):
        log = self.listen()
        process = subprocess.Popen([*self.argv, harness.program("splogger"), "t"], stdin=subprocess.PIPE)
        self.addCleanup(process.wait, harness.TIMEOUT)
        self.addCleanup(process.stdin.close)
        process.stdin.write(b"one\n")
        process.stdin.flush()
        self.assertTrue(log.recv(1000).endswith(b" one"))
        log.close()
        os.unlink(os.path.join(self.base, "log"))
        log = self.listen()
        process.stdin.write(b"two\n")
        process.stdin.flush()
        self.assertTrue(log.recv(1000).endswith(b" two"))


if __name__ == "__main__":
    unittest.main()
