"""qmail-pw2u from outside."""

import os
import unittest

from tests import harness
from tests.harness import Home


class Pw2u(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = Home(users={})
        cls.addClassCleanup(cls.home.__exit__)
        cls.uid = harness.owner()[1]  # whose directories those of the home are

    def setUp(self):
        for name in ("include", "exclude", "mailnames", "subusers", "append"):
            if os.path.exists(self.home.file("users", name)):
                os.unlink(self.home.file("users", name))

    def pw2u(self, passwd, *options):
        return self.home.run(["qmail-pw2u", *options], passwd.encode())

    def line(self, name, uid=None, home=None):
        return f"{name}:x:{uid or self.uid}:50:Some One:{home or self.home.path}:/bin/sh\n"

    def fields(self, name, home=None):
        return f"{name}:{self.uid}:50:{home or self.home.path}"

    def good(self, passwd, *options):
        got = self.pw2u(passwd, *options)
        self.assertEqual((got.code, got.err), (0, b""))
        self.assertTrue(got.out.endswith(b"\n.\n"))
        return got.out.decode().splitlines()[:-1]

    def test_each_user_gets_two_lines_and_alias_catches_the_rest(self):
        got = self.good(self.line("joe") + self.line("alias") + self.line("sue"))
        joe, alias, sue = (self.fields(n) for n in ("joe", "alias", "sue"))
        self.assertEqual(got, [f"=joe:{joe}:::", f"+joe-:{joe}:-::", f"+:{alias}:-::", f"=alias:{alias}:::",
                               f"+alias-:{alias}:-::", f"=sue:{sue}:::", f"+sue-:{sue}:-::"])

    def test_what_it_prints_qmail_newu_takes(self):
        self.home.write("users/assign", self.pw2u(self.line("joe") + self.line("alias")).out)
        self.assertEqual(self.home.run(["qmail-newu"]).code, 0)

    def test_the_break_character_can_be_another_or_none(self):
        passwd = self.line("alias")
        alias = self.fields("alias")
        self.assertEqual(self.good(passwd, "-c", "+")[2], f"+alias+:{alias}:-::")
        self.assertEqual(self.good(passwd, "-c+")[2], f"+alias+:{alias}:-::")
        self.assertEqual(self.good(passwd, "-C"), [f"+:{alias}:-::", f"=alias:{alias}:::"])
        self.assertEqual(self.good(passwd, "-Cc-")[2], f"+alias-:{alias}:-::")

    def test_the_dash_can_be_a_directory(self):
        self.home.write("users/subusers", "help:alias:pre:\n")
        alias = self.fields("alias")
        self.assertEqual(self.good(self.line("alias"), "-/"), [
            f"+:{alias}:-/::", f"=alias:{alias}:::", f"+alias-:{alias}:-/::", f"=help:{alias}:-/:pre:",
            f"+help-:{alias}:-/:pre-:"])

    def test_root_is_never_a_user_and_uppercase_names_only_with_u(self):
        passwd = self.line("alias") + f"toor:x:0:0::{self.home.path}:/bin/sh\n" + self.line("Joe")
        users = [line.split(":")[1] for line in self.good(passwd) if line.startswith("=")]
        self.assertEqual(users, ["alias"])
        users = [line.split(":")[1] for line in self.good(passwd, "-u") if line.startswith("=")]
        self.assertEqual(users, ["alias", "Joe"])
        self.assertEqual(self.good(passwd, "-uU"), self.good(passwd))

    def test_what_is_no_account_is_skipped(self):
        passwd = self.line("alias") + "\n+::::::\nshort:x:5\nx:x:y:1::/:\n" + self.line("")
        self.assertEqual(self.good(passwd), self.good(self.line("alias")))

    def test_a_home_that_is_missing_or_anothers_is_a_reason_to_skip(self):
        passwd = self.line("alias") + self.line("gone", home="/nonexistent") + self.line("other", home="/")
        self.assertEqual(self.good(passwd), self.good(self.line("alias")))
        self.assertEqual(self.good(passwd, "-Ho"), self.good(self.line("alias")))
        got = self.pw2u(passwd, "-h")
        self.assertEqual((got.code, got.out, got.err),
                         (111, b"", b"qmail-pw2u: fatal: unable to stat /nonexistent: file does not exist\n"))
        self.assertEqual(len(self.good(passwd, "-H")), 7)

    def test_trouble_with_a_home_is_not_taken_for_a_missing_one(self):
        loop = self.home.file("loop")
        os.symlink("loop", loop)
        self.addCleanup(os.unlink, loop)
        got = self.pw2u(self.line("alias") + self.line("joe", home=loop))
        self.assertEqual((got.code, got.out), (111, b""))
        self.assertIn(f"unable to stat {loop}: ".encode(), got.err)

    def test_include_and_exclude_choose_users(self):
        passwd = self.line("alias") + self.line("joe") + self.line("sue")
        self.home.write("users/include", "# these\nalias\njoe\nsue\n")
        self.home.write("users/exclude", "joe\n")
        users = [line.split(":")[1] for line in self.good(passwd) if line.startswith("=")]
        self.assertEqual(users, ["alias", "sue"])

    def test_mailnames_stand_in_the_place_of_the_user(self):
        self.home.write("users/mailnames", "joe:j.doe:john:\nsue:\n")
        joe = self.fields("joe")
        got = self.good(self.line("alias") + self.line("joe") + self.line("sue"))
        self.assertEqual(got[3:], [f"=j.doe:{joe}:::", f"+j.doe-:{joe}:-::", f"=john:{joe}:::", f"+john-:{joe}:-::"])

    def test_subusers_come_after_the_users_and_append_last(self):
        self.home.write("users/subusers", "help:joe:sos:\n")
        self.home.write("users/append", "+x:joe:1:2:/h:-::\n=last:joe:1:2:/h:::")
        joe = self.fields("joe")
        self.assertEqual(self.good(self.line("alias") + self.line("joe"))[5:], [
            f"=help:{joe}:-:sos:", f"+help-:{joe}:-:sos-:", "+x:joe:1:2:/h:-::", "=last:joe:1:2:/h:::"])
        self.assertEqual(self.good(self.line("alias") + self.line("joe"), "-C")[3], f"=help:{joe}:-:sos:")

    def test_a_subuser_without_user_is_111(self):
        self.home.write("users/subusers", "help:nobody-here:sos:\n")
        got = self.pw2u(self.line("alias"))
        self.assertEqual((got.code, got.out, got.err),
                         (111, b"", b"qmail-pw2u: fatal: unable to find nobody-here user for subuser\n"))
        self.home.write("users/subusers", "help\n")
        self.assertEqual(self.pw2u(self.line("alias")).err, b"qmail-pw2u: fatal: bad format in users/subusers: help\n")

    def test_without_alias_there_is_no_result(self):
        got = self.pw2u(self.line("joe"))
        self.assertEqual((got.code, got.out, got.err), (111, b"", b"qmail-pw2u: fatal: unable to find alias user\n"))

    def test_unreadable_lists_are_111(self):
        os.mkdir(self.home.file("users/exclude"))
        self.addCleanup(lambda: os.path.isdir(self.home.file("users/exclude")) and os.rmdir(self.home.file("users/exclude")))
        got = self.pw2u(self.line("alias"))
        self.assertEqual((got.code, got.err), (
            111, b"qmail-pw2u: fatal: unable to read controls: users/exclude: is a directory\n"))
        os.rmdir(self.home.file("users/exclude"))

    def test_wrong_use_is_100(self):
        for options in (["-z"], ["-c"], ["-c", ""], ["-c", ":"], ["-c", "ab"]):
            got = self.pw2u(self.line("alias"), *options)
            self.assertEqual(got.code, 100)
            self.assertIn(b"qmail-pw2u: usage: qmail-pw2u [ -/ohHuUC ] [ -c char ]\n", got.err)


if __name__ == "__main__":
    unittest.main()
