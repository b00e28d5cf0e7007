"""Mail readers and git sending through our sendmail."""

import os
import shutil
import subprocess
import unittest

from tests.harness import Home, scratch

CAPTURE = '#!/bin/sh\ncat >"$CAPTURE/message" && cat <&1 >"$CAPTURE/envelope"\n'


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = Home()
        cls.addClassCleanup(cls.home.__exit__)
        cls.queue = cls.home.write("capture", CAPTURE, 0o755)
        cls.sendmail = cls.home.file("bin", "sendmail")

    def setUp(self):
        self.scratch = scratch()
        self.addCleanup(shutil.rmtree, self.scratch)
        self.env = {**self.home.env, "QMAILQUEUE": self.queue, "CAPTURE": self.scratch, "HOME": self.scratch,
                    "USER": "joe", "LC_ALL": "C.UTF-8", "TERM": "dumb"}

    def client(self, argv, stdin=b""):
        """Runs a client; returns (envelope, header as a dict of lower-case names, body)."""
        if shutil.which(argv[0]) is None:
            self.fail(f"{argv[0]} is not installed: scripts/test-packages installs it")
        done = subprocess.run(argv, input=stdin, env=self.env, cwd=self.scratch, capture_output=True, timeout=30)
        self.assertEqual(done.returncode, 0, done)
        with open(os.path.join(self.scratch, "envelope"), "rb") as f:
            envelope = f.read()
        with open(os.path.join(self.scratch, "message"), "rb") as f:
            header, _, body = f.read().partition(b"\n\n")
        fields = [f.partition(b":") for f in header.replace(b"\n ", b" ").split(b"\n")]
        return envelope, {name.lower(): value.strip() for name, _, value in fields}, body

    def test_mutt(self):
        envelope, header, body = self.client(
            ["mutt", "-F", "/dev/null", "-e", f'set sendmail="{self.sendmail} -oem -oi"', "-e", "set from=joe@my.dom",
             "-e", "set use_envelope_from", "-e", "set use_8bitmime", "-e", 'set dsn_notify="failure,delay"',
             "-e", "set dsn_return=hdrs", "-e", "set copy=no", "-e", 'set realname="Joe \u00dcser"',
             "-s", "gr\u00fc\u00dfe", "-c", "c@d.dom", "-b", "e@f.dom", "--", "a@b.dom"],
            "erste Zeile\n.\nFrom hier\n\u00fc\n".encode())
        self.assertEqual(envelope, b"Fjoe@my.dom\0Ta@b.dom\0Tc@d.dom\0Te@f.dom\0\0")
        self.assertEqual(header[b"to"], b"a@b.dom")
        self.assertEqual(header[b"cc"], b"c@d.dom")
        self.assertNotIn(b"bcc", header)
        self.assertRegex(header[b"from"], rb"^Joe =\?iso-8859-1\?Q\?=DCser\?= <joe@my\.dom>$")
        self.assertIn(b"\n.\n", b"\n" + body)

    def test_s_nail(self):
        envelope, header, body = self.client(
            ["s-nail", "-:/", f"-Smta={self.sendmail}", "-Sfrom=Joe User <joe@my.dom>", "-Sr-option=", "-r", "joe@my.dom",
             "-Sttycharset=utf-8", "-s", "hello", "-c", "c@d.dom", "-b", "e@f.dom", "a@b.dom"],
            b"one\n.two\n")
        self.assertEqual(envelope, b"Fjoe@my.dom\0Ta@b.dom\0Tc@d.dom\0Te@f.dom\0\0")
        self.assertEqual((header[b"to"], header[b"cc"], header[b"subject"]), (b"a@b.dom", b"c@d.dom", b"hello"))
        self.assertNotIn(b"bcc", header)
        self.assertIn(b"joe@my.dom", header[b"from"])
        self.assertEqual(body, b"one\n.two\n")

    def test_git_send_email_style(self):
        text = b"From: A U Thor <author@my.dom>\nTo: \"L, ist\" <list@b.dom>\nSubject: [PATCH] x\nMessage-Id: <1@x>\nDate: d\n\ndiff\n"
        envelope, header, body = self.client([self.sendmail, "-i", "-f", "author@my.dom", "list@b.dom", "cc@b.dom"], text)
        self.assertEqual(envelope, b"Fauthor@my.dom\0Tlist@b.dom\0Tcc@b.dom\0\0")
        with open(os.path.join(self.scratch, "message"), "rb") as f:
            self.assertEqual(f.read(), text)

    def test_cron_style(self):
        envelope, header, _ = self.client([self.sendmail, "-FCronDaemon", "-i", "-B8BITMIME", "-oem", "joe"],
                                          b"From: root (Cron Daemon)\nTo: joe\nSubject: Cron <root@h> x\n\nout\n")
        self.assertEqual(envelope, b"Fjoe@test.example\0Tjoe@test.example\0\0")
        self.assertEqual(header[b"from"], b"root@test.example (Cron Daemon)")

    def test_php_style(self):
        envelope, header, _ = self.client([self.sendmail, "-t", "-i", "-fwww@my.dom"],
                                          b"To: a@b.dom\nSubject: x\nFrom: Shop <shop@my.dom>\nBcc: k@b.dom\n\nhi\n")
        self.assertEqual(envelope, b"Fwww@my.dom\0Ta@b.dom\0Tk@b.dom\0\0")
        self.assertNotIn(b"bcc", header)

    def test_smtp_over_a_pipe(self):
        with subprocess.Popen([self.sendmail, "-bs"], env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
            out, _ = p.communicate(b"EHLO me\r\nMAIL FROM:<a@b.dom>\r\nRCPT TO:<c@far.dom>\r\nDATA\r\n"
                                   b"Subject: x\r\n\r\n..\r\n.\r\nQUIT\r\n", timeout=30)
        self.assertEqual(p.returncode, 0, out)
        with open(os.path.join(self.scratch, "envelope"), "rb") as f:
            self.assertEqual(f.read(), b"Fa@b.dom\0Tc@far.dom\0\0")
        with open(os.path.join(self.scratch, "message"), "rb") as f:
            self.assertTrue(f.read().endswith(b"Subject: x\n\n.\n"))


if __name__ == "__main__":
    unittest.main()
