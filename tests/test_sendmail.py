"""sendmail: its command line, what it hands to qmail-inject, and its other names."""

import os
import shutil
import unittest

from tests.harness import Home, scratch

# Stands for qmail-inject, qmail-smtpd, qmail-qread: shows how it was called.
SHOW = """#!/bin/sh
printf '%s\\n' "${0##*/}" "$@"
echo "in $(pwd)"
env | grep -E '^(QMAIL[A-Z]*|MAIL[A-Z]*|NAME|RELAYCLIENT|DATABYTES|PROTO|TCP[A-Z]*)=' | grep -v ^QMAIL_HOME | LC_ALL=C sort
cat
exit 7
"""


class Base(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = Home()
        cls.addClassCleanup(cls.home.__exit__)

    def sendmail(self, *args, name="sendmail", env=None, **more):
        return self.home.run([self.home.file("bin", name), *args], env=env, **more)


class Wrapper(Base):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for name in ("qmail-inject", "qmail-smtpd", "qmail-qread"):
            os.unlink(cls.home.file("bin", name))
            cls.home.write(f"bin/{name}", SHOW, 0o755)

    def shown(self, *args, **more):
        """The program sendmail became, its arguments, its environment."""
        result = self.sendmail(*args, **more)
        self.assertEqual((result.code, result.err), (7, b""), result)
        called, there, environ = result.out.decode().partition(f"in {self.home.path}\n")
        self.assertTrue(there, result.out)
        return called.split("\n")[:-1], environ.split("\n")[:-1]

    def test_a_message_goes_to_qmail_inject(self):
        for args, expected in [
            ([], ["-a", "--"]),
            (["a@b", "-t"], ["-a", "--", "a@b", "-t"]),
            (["-t"], ["-H", "--"]),
            (["-ti", "a@b"], ["-H", "--", "a@b"]),
            (["-oem", "-oi", "-f", "x@y", "--", "a@b", "c"], ["-a", "-f", "x@y", "--", "a@b", "c"]),
            (["-bm", "-B8BITMIME", "-v", "-m", "-x", "-p", "SMTP", "-e", "m", "-E", "-Jx", "a"], ["-a", "--", "a"]),
            (["-N", "never", "-R", "hdrs", "-V", "id", "-O", "X=y", "-h3", "-L", "t", "-U", "-G", "-Am", "a"], ["-a", "--", "a"]),
            (["-rx@y", "<a@b>", "--", "-c"], ["-a", "-f", "x@y", "--", "a@b", "--", "-c"]),
            (["-f", "<>", "a"], ["-a", "-f", "", "--", "a"]),
            (["-f", "", "a"], ["-a", "-f", "", "--", "a"]),
        ]:
            with self.subTest(args):
                self.assertEqual(self.shown(*args)[0], ["qmail-inject", *expected])

    def test_standard_input_passes_through(self):
        result = self.sendmail("a", stdin=b"\x00\xff\nno newline")
        self.assertTrue(result.out.endswith(b"\x00\xff\nno newline"))

    def test_a_sender_is_the_author_under_no_other_name(self):
        old = {"QMAILNAME": "1", "MAILNAME": "2", "NAME": "3", "QMAILHOST": "4", "MAILHOST": "5", "QMAILUSER": "6"}
        self.assertEqual(self.shown("-fjoe@h.dom", env=old)[1], ["QMAILHOST=h.dom", "QMAILUSER=joe"])
        self.assertEqual(self.shown("-fa@b@c", env=old)[1], ["QMAILHOST=c", "QMAILUSER=a@b"])
        self.assertEqual(self.shown("-fjoe", env=old)[1], ["QMAILUSER=joe"])
        self.assertEqual(self.shown("-fjoe", "-FJoe")[1], ["QMAILUSER=joe"])
        self.assertEqual(self.shown("-FJoe", "-fjoe")[1], ["QMAILUSER=joe"])

    def test_the_empty_sender_has_no_author_in_it(self):
        self.assertEqual(self.shown("-f", "<>", "-FCron", env={"QMAILUSER": "6"})[1], ["MAILNAME=Cron", "QMAILUSER=6"])

    def test_a_name_alone_leaves_the_rest(self):
        self.assertEqual(self.shown("-FCron Daemon", env={"QMAILHOST": "4"})[1], ["MAILNAME=Cron Daemon", "QMAILHOST=4"])

    def test_smtp_on_standard_input_is_a_local_session_that_may_relay(self):
        local = ["DATABYTES=0", "PROTO=TCP", "RELAYCLIENT=", "TCPLOCALHOST=localhost", "TCPLOCALIP=127.0.0.1",
                 "TCPREMOTEHOST=localhost", "TCPREMOTEINFO=sendmail-bs", "TCPREMOTEIP=127.0.0.1"]
        self.assertEqual(self.shown("-bs", "-Z", "a"), (["qmail-smtpd"], local))
        self.assertEqual(self.shown("-bs", env={"DATABYTES": "5", "TCPREMOTEIP": "1.2.3.4"}), (["qmail-smtpd"], local))
        self.assertEqual(self.shown("-bs", env={"PROTO": "TCP", "TCPREMOTEIP": "1.2.3.4"}),
                         (["qmail-smtpd"], ["PROTO=TCP", "TCPREMOTEIP=1.2.3.4"]))

    def test_the_queue_is_shown_by_qmail_qread(self):
        self.assertEqual(self.shown("-bp", "-q")[0], ["qmail-qread"])
        self.assertEqual(self.shown("-v", name="mailq")[0], ["qmail-qread"])
        self.assertEqual(self.shown("-bs", name="mailq")[0], ["qmail-smtpd"])

    def test_newaliases_is_another_programs_name(self):
        result = self.sendmail(name="newaliases")
        self.assertEqual((result.code, result.err),
                         (100, b"sendmail: fatal: please use fastforward/newaliases instead\n"))

    def test_what_would_be_missed_is_refused(self):
        for args, said in [(["-bd"], "illegal option -- bd"), (["-bi"], "illegal option -- bi"), (["-q15m"], "illegal option -- q"),
                           (["-C", "x"], "illegal option -- C"), (["-X", "log"], "illegal option -- X"), (["-f"], "option requires an argument -- f")]:
            for name in ("sendmail", "mailq", "newaliases"):
                result = self.sendmail(*args, name=name)
                self.assertEqual(result.code, 100)
                self.assertRegex(result.err.decode(), rf"^sendmail: {said}\nsendmail: usage: sendmail .*\n$")

    def test_help_is_printed_on_demand(self):
        result = self.sendmail("--help")
        self.assertEqual((result.code, result.err), (0, b""))
        self.assertRegex(result.out, rb"^usage: sendmail \[-t\]")

    def test_a_program_that_cannot_be_run_is_temporary(self):
        with Home() as home:
            for name, args in (("qmail-inject", ["a"]), ("qmail-smtpd", ["-bs"]), ("qmail-qread", ["-bp"])):
                os.unlink(home.file("bin", name))
                result = home.run([home.file("bin/sendmail"), *args])
                self.assertEqual((result.code, result.err),
                                 (111, f"sendmail: fatal: unable to run {name}: file does not exist\n".encode()))
        result = self.sendmail("a", env={"QMAIL_HOME": "/nowhere"})
        self.assertEqual((result.code, result.err), (111, b"sendmail: fatal: unable to use home /nowhere: file does not exist\n"))


class Chain(Base):
    """With the real programs behind it."""

    def test_a_message_is_queued_for_arguments_and_header(self):
        capture = scratch()
        self.addCleanup(shutil.rmtree, capture)
        queue = self.home.write("capture", '#!/bin/sh\ncat >"$CAPTURE/message" && cat <&1 >"$CAPTURE/envelope"\n', 0o755)
        result = self.sendmail("-t", "-f", "me@my.dom", "a@b.c", stdin=b"To: d@e.f\nBcc: g@h.i\n\n.\nend\n",
                               env={"QMAILQUEUE": queue, "CAPTURE": capture})
        self.assertEqual((result.code, result.out, result.err), (0, b"", b""))
        with open(os.path.join(capture, "envelope"), "rb") as f:
            self.assertEqual(f.read(), b"Fme@my.dom\0Ta@b.c\0Td@e.f\0Tg@h.i\0\0")
        with open(os.path.join(capture, "message"), "rb") as f:
            self.assertTrue(f.read().endswith(b"\nFrom: me@my.dom\nTo: d@e.f\n\n.\nend\n"))

    def test_exit_codes_come_through(self):
        self.assertEqual(self.sendmail("-f", "a@b c", "x").code, 100)
        self.assertEqual(self.sendmail("a", env={"QMAILQUEUE": "/nowhere"}).code, 111)

    def test_an_smtp_client_can_use_a_pipe(self):
        result = self.sendmail("-bs", stdin=b"QUIT\r\n")
        self.assertEqual(result.code, 0)
        self.assertRegex(result.out, rb"^220 test\.example .*\r\n221 test\.example\r\n$")

    def test_the_queue_can_be_listed(self):
        self.assertEqual(self.sendmail("-f", "me@my.dom", "a@b.c", stdin=b"\nx\n", env={"QMAILDOOR": "direct"}).code, 0)
        result = self.sendmail(name="mailq")
        self.assertEqual((result.code, result.err), (0, b""))
        self.assertIn(b"<me@my.dom>", result.out)


if __name__ == "__main__":
    unittest.main()
