"""qmail-newmrh from outside."""

import os
import stat
import unittest

from tests import tinycdb
from tests.harness import Home


class Newmrh(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = Home(users={})
        cls.addClassCleanup(cls.home.__exit__)

    def file(self):
        with open(self.home.file("control/morercpthosts.cdb"), "rb") as f:
            return f.read()

    def test_each_domain_becomes_a_lower_case_key_without_data(self):
        self.home.control("morercpthosts", "# none\nExample.COM \t\n\n.example.org\nexample.com\nlast.example")
        got = self.home.run(["qmail-newmrh"])
        self.assertEqual((got.code, got.out, got.err), (0, b"", b""))
        self.assertEqual(self.file(), tinycdb.make([
            (b"example.com", b""), (b".example.org", b""), (b"example.com", b""), (b"last.example", b"")]))
        self.assertEqual(stat.S_IMODE(os.stat(self.home.file("control/morercpthosts.cdb")).st_mode), 0o644)
        self.assertFalse(os.path.exists(self.home.file("control/morercpthosts.tmp")))

    def test_an_empty_file_allows_nothing_more(self):
        self.home.control("morercpthosts", "")
        self.assertEqual(self.home.run(["qmail-newmrh"]).code, 0)
        self.assertEqual(self.file(), tinycdb.make([]))

    def test_lists_longer_than_other_control_files_may_be_are_read(self):
        self.home.control("morercpthosts", "#" + "x" * (65 << 20) + "\na.example\n")
        got = self.home.run(["qmail-newmrh"])
        self.home.control("morercpthosts", "a.example\n")
        self.assertEqual((got.code, got.err), (0, b""))
        self.assertEqual(self.file(), tinycdb.make([(b"a.example", b"")]))

    def test_trouble_is_111_and_leaves_the_old_file(self):
        self.home.control("morercpthosts", "a.example\n")
        self.assertEqual(self.home.run(["qmail-newmrh"]).code, 0)
        before = self.file()
        tmp = self.home.file("control/morercpthosts.tmp")
        os.mkdir(tmp)
        try:
            self.home.control("morercpthosts", "b.example\n")
            got = self.home.run(["qmail-newmrh"])
        finally:
            os.rmdir(tmp)
        self.assertEqual((got.code, got.err), (
            111, b"qmail-newmrh: fatal: unable to write to control/morercpthosts.tmp: is a directory\n"))
        self.assertEqual(self.file(), before)
        self.home.remove_control("morercpthosts")
        got = self.home.run(["qmail-newmrh"])
        self.assertEqual((got.code, got.err), (
            111, b"qmail-newmrh: fatal: unable to read control/morercpthosts: file does not exist\n"))
        self.assertEqual(self.file(), before)


if __name__ == "__main__":
    unittest.main()
