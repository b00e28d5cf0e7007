"""forward: a message sent on from a .qmail line."""

import os
import shutil
import unittest

from tests import harness
from tests.test_qmail_local import QUEUE, read

MESSAGE = b"Subject: x\n\nbody without an end"
DTLINE = b"Delivered-To: joe@host.example\n"


class Forward(unittest.TestCase):
    def setUp(self):
        self.home = harness.scratch()
        self.addCleanup(shutil.rmtree, self.home, True)
        self.user = harness.owner()[1:] if os.geteuid() == 0 else None
        os.mkdir(os.path.join(self.home, "users"))
        uid, gid = harness.owner()[1:]
        self.write("users/ids", f"owner:{uid}:{gid}\n")
        self.write("queue-program", QUEUE.format(self.home))
        self.env = {"PATH": os.environ["PATH"], "QMAIL_HOME": self.home, "NEWSENDER": "s@x", "DTLINE": DTLINE.decode(),
                    "QMAILQUEUE": f"{self.home}/queue-program"}

    def write(self, name, content):
        with open(os.path.join(self.home, name), "w") as f:
            f.write(content)
        os.chmod(f.name, 0o755)

    def forward(self, *addresses, message=MESSAGE, without=(), **more):
        env = {name: value for name, value in {**self.env, **more.pop("env", {})}.items() if name not in without}
        return harness.run(["forward", *addresses], message, env, as_user=self.user, **more)

    def nothing_queued(self):
        self.assertFalse(os.path.exists(f"{self.home}/envelope"))

    def test_the_message_goes_on_with_one_line_before_it_to_all_addresses_at_once(self):
        result = self.forward("a@b", "c d@e", "")
        self.assertEqual((result.code, result.out), (0, b""))
        self.assertRegex(result.err, rb"\Aforward: qp \d+\n\Z")
        self.assertEqual(read(self.home, "message"), DTLINE + MESSAGE)
        self.assertEqual(read(self.home, "envelope"), b"Fs@x\0Ta@b\0Tc d@e\0T\0\0")

    def test_an_address_that_looks_like_an_option_is_an_address(self):
        for address in ("-x@y", "--help", "--", "-"):
            self.assertEqual(self.forward(address).code, 0)
            self.assertEqual(read(self.home, "envelope"), b"Fs@x\0T" + address.encode() + b"\0\0")

    def test_a_large_message_arrives_whole(self):
        message = os.urandom(2_000_000)
        self.assertEqual(self.forward("a@b", message=message).code, 0)
        self.assertEqual(read(self.home, "message"), DTLINE + message)

    def test_the_message_is_read_from_where_it_stands(self):
        path = f"{self.home}/input"
        with open(path, "wb") as f:
            f.write(b"read already\n" + MESSAGE)
        with open(path, "rb") as f:
            os.lseek(f.fileno(), 13, os.SEEK_SET)
            self.assertEqual(self.forward("a@b", fds={0: f.fileno()}).code, 0)
        self.assertEqual(read(self.home, "message"), DTLINE + MESSAGE)

    def test_an_empty_sender_stays_empty(self):
        self.assertEqual(self.forward("a@b", env={"NEWSENDER": ""}).code, 0)
        self.assertEqual(read(self.home, "envelope"), b"F\0Ta@b\0\0")

    def test_outside_of_a_delivery_it_is_refused(self):
        for missing in ("NEWSENDER", "DTLINE"):
            result = self.forward("a@b", without=(missing,))
            self.assertEqual((result.code, result.err), (100, f"forward: fatal: {missing} not set\n".encode()))
            self.nothing_queued()

    def test_without_an_address_it_is_wrong_use(self):
        result = self.forward()
        self.assertEqual((result.code, result.err), (100, b"forward: usage: forward address ...\n"))
        self.nothing_queued()

    def test_asked_for_help_outside_of_a_delivery_it_helps(self):
        result = self.forward("--help", without=("NEWSENDER", "DTLINE"))
        self.assertEqual(result.code, 0)
        self.assertIn(b"usage: forward address ...", result.out)

    def test_a_refusal_for_good_is_100_and_any_other_111(self):
        for code, ours, text in ((31, 100, "mail server permanently rejected message (#5.3.0)"),
                                 (11, 100, "envelope address too long for qq (#5.1.3)"),
                                 (53, 111, "qq write error or disk full (#4.3.0)"),
                                 (120, 111, "unable to exec qq (#4.3.0)"),
                                 (101, 111, "qq temporary problem (#4.3.0)")):
            self.write("exit", str(code))
            result = self.forward("a@b")
            self.assertEqual((result.code, result.err), (ours, f"forward: fatal: {text}\n".encode()))

    def test_a_message_that_cannot_be_read_is_not_queued(self):
        directory = os.open(self.home, os.O_RDONLY)
        self.addCleanup(os.close, directory)
        result = self.forward("a@b", fds={0: directory})
        self.assertEqual((result.code, result.err), (111, b"forward: fatal: unable to read message: is a directory\n"))
        # The envelope was left unfinished: a queue takes nothing of it.
        self.assertEqual(read(self.home, "envelope"), b"")

    def test_without_a_home_it_is_temporary(self):
        result = self.forward("a@b", env={"QMAIL_HOME": "/nonexistent"})
        self.assertEqual((result.code, result.err),
                         (111, b"forward: fatal: unable to use home /nonexistent: file does not exist\n"))


if __name__ == "__main__":
    unittest.main()
