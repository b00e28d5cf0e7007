"""qmail-newsenders from outside. That the index is asked is tried in test_submission."""

import os
import stat
import unittest

from tests import tinycdb
from tests.faults import Small, own_mounts
from tests.harness import Home

INDEX = "control/submissionsenders.cdb"


class Newsenders(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = Home(users={})
        cls.addClassCleanup(cls.home.__exit__)

    def file(self):
        with open(self.home.file(INDEX), "rb") as f:
            return f.read()

    def make(self):
        got = self.home.run(["qmail-newsenders"])
        self.assertEqual((got.code, got.out, got.err), (0, b"", b""))

    def state(self):
        found = os.stat(self.home.file("control/submissionsenders"))
        seconds, nanoseconds = divmod(found.st_mtime_ns, 10**9)
        return f"{found.st_ino} {found.st_size} {seconds}.{nanoseconds}".encode()

    def test_each_line_becomes_a_record_and_the_last_of_an_account_comes_first(self):
        self.home.control("submissionsenders", "# none\nJoe:a@b.example \t\n\nnothing\nsue:*\njoe: c@d.example @e.example\n")
        self.make()
        self.assertEqual(self.file(), tinycdb.make([
            (b"\n", self.state()), (b"joe", b" c@d.example @e.example"), (b"sue", b"*"), (b"joe", b"a@b.example")]))
        self.assertEqual(stat.S_IMODE(os.stat(self.home.file(INDEX)).st_mode), 0o644)
        self.assertFalse(os.path.exists(self.home.file("control/submissionsenders.tmp")))

    def test_what_is_changed_at_once_makes_another_index(self):
        for text in ("joe:a@b.example\n", "joe:c@d.example\n"):
            self.home.control("submissionsenders", text)
            self.make()
            self.assertEqual(dict(tinycdb.records(self.file())), {b"\n": self.state(), b"joe": text[4:-1].encode()})

    def test_trouble_is_111_and_leaves_the_old_index(self):
        self.home.control("submissionsenders", "joe:a@b.example\n")
        self.make()
        before = self.file()
        self.home.remove_control("submissionsenders")
        got = self.home.run(["qmail-newsenders"])
        self.assertEqual((got.code, got.err), (
            111, b"qmail-newsenders: fatal: unable to read control/submissionsenders: file does not exist\n"))
        self.assertEqual(self.file(), before)

    @own_mounts
    def test_a_full_disk_is_111_and_leaves_the_old_index(self):
        self.home.control("submissionsenders", "joe:a@b.example\n")
        self.make()
        before = self.file()
        disk = Small(self.home.file("control"))
        self.addCleanup(disk.end)
        self.home.control("submissionsenders", "".join(f"joe{n}:a@b.example\n" for n in range(500)))
        for leave in (0, 1, 3):
            disk.fill(leave)
            got = self.home.run(["qmail-newsenders"])
            self.assertEqual((got.code, got.err), (
                111, b"qmail-newsenders: fatal: unable to write to control/submissionsenders.tmp: out of disk space\n"))
            self.assertEqual(self.file(), before)
            self.assertFalse(os.path.exists(self.home.file("control/submissionsenders.tmp")))
        disk.free()
        self.make()


if __name__ == "__main__":
    unittest.main()
