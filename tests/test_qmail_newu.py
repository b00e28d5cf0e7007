"""qmail-newu from outside."""

import os
import stat
import unittest

from tests import tinycdb
from tests.harness import Home


class Newu(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = Home(users={})
        cls.addClassCleanup(cls.home.__exit__)

    def newu(self, text):
        self.home.write("users/assign", text)
        return self.home.run(["qmail-newu"])

    def file(self):
        with open(self.home.file("users/cdb"), "rb") as f:
            return f.read()

    def test_the_file_is_the_one_every_other_implementation_makes(self):
        got = self.newu("=Joe:joe:503:78:/home/joe:::\n+joe-:joe:507:100:/home/joe:-::\n"
                        "+:alias:7790:2108:/var/qmail/alias:-::\n+x+:joe:1:2:/h:-:pre:and: more\n.\n")
        self.assertEqual((got.code, got.out, got.err), (0, b"", b""))
        self.assertEqual(self.file(), tinycdb.make([
            (b"!joe\0", b"joe\x00503\x0078\0/home/joe\0\0"), (b"!joe-", b"joe\x00507\x00100\0/home/joe\0-\0"),
            (b"!", b"alias\x007790\x002108\0/var/qmail/alias\0-\0"), (b"!x+", b"joe\x001\x002\0/h\0-\0pre"), (b"", b"-+")]))
        self.assertEqual(stat.S_IMODE(os.stat(self.home.file("users/cdb")).st_mode), 0o644)
        self.assertFalse(os.path.exists(self.home.file("users/cdb.tmp")))

    def test_a_dot_alone_is_a_file_without_users(self):
        self.assertEqual(self.newu(".\n").code, 0)
        self.assertEqual(self.file(), tinycdb.make([(b"", b"")]))

    def test_a_bad_line_is_named_and_changes_nothing(self):
        self.assertEqual(self.newu("=a:u:1:2:/h:::\n.\n").code, 0)
        before = self.file()
        good = "=b:u:1:2:/h:::\n"
        for text, where in ((good + "=a:u:1:2:/h::\n.\n", "line 2"), (good + "\n.\n", "line 2"), ("# c\n.\n", "line 1"),
                            (good + "x:u:1:2:/h:::\n.\n", "line 2"), (good + "=a\0:u:1:2:/h:::\n.\n", "line 2"),
                            (good, "the last line must be a dot"), ("", "the last line must be a dot")):
            got = self.newu(text)
            self.assertEqual((got.code, got.err), (111, f"qmail-newu: fatal: bad format in users/assign: {where}\n".encode()))
            self.assertEqual(self.file(), before)

    def test_missing_files_and_directories_are_111(self):
        self.assertEqual(self.newu(".\n").code, 0)
        before = self.file()
        os.mkdir(self.home.file("users/cdb.tmp"))
        try:
            got = self.newu("=a:u:1:2:/h:::\n.\n")
        finally:
            os.rmdir(self.home.file("users/cdb.tmp"))
        self.assertEqual((got.code, got.err), (111, b"qmail-newu: fatal: unable to open users/cdb.tmp: is a directory\n"))
        self.assertEqual(self.file(), before)
        os.unlink(self.home.file("users/assign"))
        got = self.home.run(["qmail-newu"])
        self.assertEqual((got.code, got.err), (111, b"qmail-newu: fatal: unable to open users/assign: file does not exist\n"))

    def test_a_home_that_is_not_there_is_111(self):
        got = self.home.run(["qmail-newu"], env={"QMAIL_HOME": "/nonexistent"})
        self.assertEqual(got.code, 111)
        self.assertIn(b"/nonexistent", got.err)


if __name__ == "__main__":
    unittest.main()
