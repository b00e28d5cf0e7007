"""qmail-showctl: what it says of each control file, and of what is missing, unknown or unreadable."""

import os
import re
import shutil
import unittest

from tests import harness
from tests.harness import Home, run

HOME = None


def setUpModule():
    global HOME
    HOME = Home()
    unittest.addModuleCleanup(HOME.__exit__)


class Showctl(unittest.TestCase):
    def setUp(self):
        """Only control/me."""
        for name in os.listdir(HOME.file("control")):
            path = HOME.file("control", name)
            if os.path.isdir(path):
                os.rmdir(path)
            else:
                os.unlink(path)
        HOME.control("me", "test.example\n")

    def show(self, env=None):
        r = HOME.run(["qmail-showctl"], env=env)
        self.assertEqual((r.code, r.err), (0, b""))
        return r.out.decode()

    def sections(self):
        """{file: text} of everything after the head."""
        return dict(part.split(": ", 1) for part in self.show().rstrip("\n").split("\n\n")[1:])

    def test_the_head_says_what_is_built_in_and_who_the_users_are(self):
        owner = os.stat(HOME.path)
        uid, gid = owner.st_uid, owner.st_gid
        head = self.show().split("\n\n")[0].split("\n")
        self.assertEqual(head, [
            f"qmail home directory: {HOME.path}.",
            "user-ext delimiter: -.",
            "paternalism (in decimal): 2.",
            "silent concurrency limit: 120.",
            "subdirectory split: 23.",
            "user ids: " + ", ".join([str(uid)] * 8) + ".",
            f"group ids: {gid}, {gid}.",
            f"home kind: own, everything runs as uid {uid} and gid {gid}.",
        ])

    def test_files_come_in_alphabetical_order_with_morercpthosts_behind_rcpthosts(self):
        names = list(self.sections())
        expected = sorted(names)
        for name in ("morercpthosts", "morercpthosts.cdb"):
            expected.remove(name)
        at = expected.index("rcpthosts") + 1
        expected[at:at] = ["morercpthosts", "morercpthosts.cdb"]
        self.assertEqual(names, expected)

    def test_what_is_missing_has_its_default(self):
        got = self.sections()
        self.assertEqual(got.pop("me"), "My name is test.example.")
        for name, text in got.items():
            self.assertTrue(text.startswith("(Default.) "), (name, text))
        self.assertEqual(got["concurrencyremote"], "(Default.) Remote concurrency is 20.")
        self.assertEqual(got["helohost"], "(Default.) SMTP client HELO host name is test.example.")
        self.assertEqual(got["locals"], "(Default.) Messages for test.example are delivered locally.")
        self.assertEqual(got["rcpthosts"], "(Default.) SMTP clients may send messages to any recipient.")
        self.assertEqual(got["bouncefrom"], "(Default.) Bounce user name is MAILER-DAEMON.")

    def test_what_is_there_is_shown_without_default(self):
        HOME.control("concurrencyremote", "55 of them\n")
        HOME.control("concurrencylocal", "many\n")
        HOME.control("helohost", "helo.example \nnext\n")
        HOME.control("rcpthosts", "# comment\none.example\n\n.two.example\n")
        HOME.control("virtualdomains", "v.example:joe\n")
        HOME.control("badmailfrom", "")
        got = self.sections()
        self.assertEqual(got["concurrencyremote"], "Remote concurrency is 55.")
        self.assertEqual(got["concurrencylocal"], "(Default.) Local concurrency is 10.")
        self.assertEqual(got["helohost"], "SMTP client HELO host name is helo.example.")
        self.assertEqual(got["rcpthosts"], "\nSMTP clients may send messages to recipients at one.example.\n"
                         "SMTP clients may send messages to recipients at .two.example.")
        self.assertEqual(got["virtualdomains"], "\nVirtual domain: v.example:joe.")
        self.assertIn("\nbadmailfrom: \n\n", self.show())

    def test_without_me_the_files_that_need_it_say_so(self):
        os.unlink(HOME.file("control/me"))
        got = self.sections()
        self.assertEqual(got["me"], "(Default.) My name is undefined! Uh-oh.")
        self.assertEqual(got["smtpgreeting"], "(Default.) SMTP greeting: 220 undefined! Uh-oh.")
        self.assertEqual(got["defaulthost"], "(Default.) Default host name is defaulthost.")

    def test_an_unreadable_file_is_said_to_be_trouble(self):
        for name in ("databytes", "rcpthosts", "helohost"):
            os.mkdir(HOME.file("control", name))
        got = self.sections()
        for name in ("databytes", "rcpthosts", "helohost"):
            self.assertEqual(got[name], "Oops! Trouble reading this file.")

    def test_an_unreadable_me_or_no_control_or_no_home_is_the_end(self):
        os.unlink(HOME.file("control/me"))
        os.mkdir(HOME.file("control/me"))
        r = HOME.run(["qmail-showctl"])
        self.assertEqual(r.code, 111)
        self.assertTrue(r.out.endswith(b"Oops! unable to read control/me: is a directory (#4.3.0).\n"), r.out)
        os.rename(HOME.file("control"), HOME.file("elsewhere"))
        try:
            r = HOME.run(["qmail-showctl"])
        finally:
            os.rename(HOME.file("elsewhere"), HOME.file("control"))
        self.assertEqual((r.code, r.err), (111, b""))
        self.assertRegex(r.out, rb"\nOops! unable to read [^\n]*/control: file does not exist\.\n$")
        r = HOME.run(["qmail-showctl"], env={"QMAIL_HOME": "/nonexistent"})
        self.assertEqual((r.code, r.out), (111, b"Oops! unable to use home /nonexistent: file does not exist.\n"))

    def test_unknown_files_are_reported_and_nothing_of_them_reaches_the_terminal_raw(self):
        HOME.control("defaultdelivery", "./Maildir/\n")
        HOME.control("me", "test\x1b[2J.example\n")
        HOME.control("a\x1bb", "")
        got = self.sections()
        self.assertEqual(got["defaultdelivery"], "I have no idea what this file does.")
        self.assertEqual(got["a?b"], "I have no idea what this file does.")
        self.assertEqual(got["me"], "My name is test?[2J.example.")

    def test_morercpthosts_and_its_database_are_compared(self):
        database = lambda: self.sections()["morercpthosts.cdb"]
        HOME.control("morercpthosts", "a.example\n")
        self.assertEqual(database(), "Oops! morercpthosts exists but morercpthosts.cdb doesn't. Run qmail-newmrh.")
        self.assertEqual(HOME.run(["qmail-newmrh"]).code, 0)
        self.assertEqual(database(), "Up to date.")
        os.utime(HOME.file("control/morercpthosts.cdb"), (1, 1))
        self.assertEqual(database(), "Oops! morercpthosts.cdb is older than morercpthosts. Run qmail-newmrh.")
        os.unlink(HOME.file("control/morercpthosts"))
        self.assertEqual(database(), "Oops! morercpthosts.cdb exists but morercpthosts doesn't.")
        HOME.control("morercpthosts", "a.example\n")
        os.utime(HOME.file("control/morercpthosts"), (1, 1))
        HOME.control("morercpthosts.cdb", "damaged")
        self.assertEqual(database(), "Oops! Trouble reading this file.")

    def test_output_that_cannot_be_written_is_111(self):
        with open("/dev/full", "wb") as full:
            self.assertEqual(HOME.run(["qmail-showctl"], fds={1: full.fileno()}).code, 111)

    @unittest.skipUnless(os.geteuid() == 0, "only root can make a system home")
    def test_a_system_home_shows_its_users(self):
        base = harness.scratch()
        self.addCleanup(shutil.rmtree, base)
        os.chown(base, 0, 0)
        for name in ("control", "users"):
            os.mkdir(os.path.join(base, name))
        ids = ["alias:11:21", "qmaild:12:21", "qmaill:13:21", "root:0:0", "qmailp:14:21", "qmailq:15:22", "qmailr:16:22", "qmails:17:22"]
        with open(os.path.join(base, "users/ids"), "w") as f:
            f.write("\n".join(ids) + "\n")
        r = run(["qmail-showctl"], env={"QMAIL_HOME": base, "PATH": os.environ["PATH"]})
        self.assertEqual(r.code, 0)
        self.assertIn(b"\nuser ids: 11, 12, 13, 0, 14, 15, 16, 17.\ngroup ids: 21, 22.\nhome kind: system, ", r.out)
        self.assertNotIn(b"users/ids", r.out)
        os.unlink(os.path.join(base, "users/ids"))
        r = run(["qmail-showctl"], env={"QMAIL_HOME": base, "PATH": os.environ["PATH"]})
        self.assertTrue(re.search(rb"\nuser ids: unknown, .*\nusers/ids: \(Default\.\) ", r.out, re.S), r.out)


if __name__ == "__main__":
    unittest.main()
