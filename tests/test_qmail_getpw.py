"""qmail-getpw from outside, with an account database of the test's own in a private mount namespace."""

import os
import shutil
import subprocess
import tempfile
import unittest

from tests import harness
from tests.harness import Home, run


def namespace():
    """The words that start a command which may mount, or None."""
    argv = ["unshare", "-m"] if not os.geteuid() else [
        "unshare", "-Um", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}", "--keep-caps"]
    if not shutil.which("unshare"):
        return None
    tried = subprocess.run([*argv, "sh", "-c", "mount --bind /dev/null /etc/passwd"], capture_output=True)
    return argv if tried.returncode == 0 else None


NAMESPACE = namespace()


@unittest.skipUnless(NAMESPACE, "this system lets us make no mount namespace (unshare)")
class Getpw(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = Home(users={})
        cls.addClassCleanup(cls.home.__exit__)
        cls.uid, cls.gid = harness.owner()[1:]
        cls.own = cls.home.path  # a directory that belongs to that uid

    def getpw(self, *argv, passwd=(), wrap=(), env=None, root="root:x:0:0::/:/bin/sh\n", sources="files"):
        """Runs it where the account database has these (name, uid, gid, home)."""
        with tempfile.NamedTemporaryFile("w", prefix="qmail-passwd-") as f, \
                tempfile.NamedTemporaryFile("w", prefix="qmail-nsswitch-") as switch:
            switch.write(f"passwd: {sources}\n")
            switch.flush()
            os.chmod(switch.name, 0o644)
            f.write(root)
            f.writelines(f"{n}:x:{u}:{g}::{h}:/bin/sh\n" for n, u, g, h in passwd)
            f.flush()
            os.chmod(f.name, 0o644)
            script = 'mount --bind "$0" /etc/passwd && mount --bind "$1" /etc/nsswitch.conf && shift && exec "$@"'
            return run([*NAMESPACE, "sh", "-c", script, f.name, switch.name, *wrap, harness.program("qmail-getpw"), *argv],
                       env={**self.home.env, **(env or {})})

    def finds(self, local, *wanted, passwd):
        got = self.getpw(local, passwd=passwd)
        self.assertEqual((got.code, got.err), (0, b""))
        self.assertEqual(got.out, b"".join(os.fsencode(str(f)) + b"\0" for f in wanted))

    def alias(self, local, passwd):
        self.finds(local, "alias", self.uid, self.gid, self.home.file("alias"), "-", local, passwd=passwd)

    def joe(self, name="joe"):
        return (name, self.uid, 77, self.own)

    def test_a_user_gets_his_mail_whatever_the_case(self):
        self.finds("joe", "joe", self.uid, 77, self.own, "", "", passwd=[self.joe()])
        self.finds("JOE", "joe", self.uid, 77, self.own, "", "", passwd=[self.joe()])

    def test_what_follows_a_break_is_the_extension_in_its_own_case(self):
        self.finds("Joe-List-X", "joe", self.uid, 77, self.own, "-", "List-X", passwd=[self.joe()])
        self.finds("joe-", "joe", self.uid, 77, self.own, "-", "", passwd=[self.joe()])

    def test_the_longest_name_wins(self):
        passwd = [self.joe(), self.joe("joe-list")]
        self.finds("joe-list-x", "joe-list", self.uid, 77, self.own, "-", "x", passwd=passwd)
        self.finds("joe-list", "joe-list", self.uid, 77, self.own, "", "", passwd=passwd)
        self.finds("joe-lis", "joe", self.uid, 77, self.own, "-", "lis", passwd=passwd)

    def test_nobodys_mail_is_the_aliases(self):
        for local in ("sue", "Sue-X", "joey", "", "-", "-x", "--", "--help", "x" * 900, "j\xf6e"):
            self.alias(local, [self.joe()])

    def test_a_very_long_name_is_not_asked_for(self):
        name = "n" * 32
        self.alias(name, [self.joe(name)])
        self.finds(name[1:], name[1:], self.uid, 77, self.own, "", "", passwd=[self.joe(name[1:])])

    def test_root_an_absent_home_and_anothers_home_are_no_users(self):
        self.alias("root", [])
        self.alias("root-x", [])
        self.alias("gone", [("gone", self.uid, 77, "/nonexistent")])
        overflow = 65534  # whom everybody else's files belong to, seen from a user namespace
        if not os.geteuid() or self.uid != overflow:
            self.alias("other", [("other", self.uid, 77, "/")])

    def test_a_shorter_name_is_tried_when_the_longer_is_no_user(self):
        passwd = [self.joe(), ("joe-x", self.uid, 77, "/nonexistent")]
        self.finds("joe-x", "joe", self.uid, 77, self.own, "-", "x", passwd=passwd)

    def test_in_an_own_home_alias_is_the_homes_whatever_the_database_says(self):
        self.alias("sue", [("alias", self.uid, 99, self.own)])
        self.alias("sue", [("alias", 4711, 99, "/nonexistent")])

    def system_home(self, ids):
        home = os.path.join(self.home.base, "system")
        shutil.rmtree(home, ignore_errors=True)
        os.makedirs(os.path.join(home, "users"))
        with open(os.path.join(home, "users/ids"), "w") as f:
            f.write(ids)
        return {"QMAIL_HOME": home}, home

    def test_in_a_system_home_the_database_adds_to_the_alias_of_the_home(self):
        env, home = self.system_home("alias:7790:2108\nqmaild:7791:2108\n")
        got = self.getpw("sue", passwd=[("alias", 7790, 99, "/somewhere")], env=env)
        self.assertEqual((got.code, got.out), (0, b"alias\x007790\x0099\0/somewhere\0-\0sue\0"), got)
        for passwd in ([], [("alias", 1, 99, "/somewhere")]):
            got = self.getpw("sue", passwd=passwd, env=env)
            self.assertEqual((got.code, got.out), (0, f"alias\x007790\x002108\0{home}/alias\0-\0sue\0".encode()), got)

    def test_a_missing_alias_is_116(self):
        env, _ = self.system_home("qmaild:7791:2108\n")
        got = self.getpw("sue", env=env)
        self.assertEqual((got.code, got.out, got.err), (116, b"", b"qmail-getpw: fatal: unable to find alias user\n"))
        got = self.getpw("sue", passwd=[("alias", 1, 99, "/somewhere")], env=env)
        self.assertEqual((got.code, got.out), (0, b"alias\x001\x0099\0/somewhere\0-\0sue\0"), got)

    def test_wrong_use_is_100(self):
        got = self.getpw()
        self.assertEqual((got.code, got.out, got.err), (100, b"", b"qmail-getpw: usage: qmail-getpw local\n"))

    def test_a_home_of_the_system_in_trouble_is_111(self):
        got = self.getpw("sue", env={"QMAIL_HOME": "/nonexistent"})
        self.assertEqual((got.code, got.out), (111, b""))

    def test_an_account_database_in_trouble_is_temporary(self):
        for error, code in (("EMFILE", 111), ("EIO", 111), ("ENOMEM", 111), ("ETXTBSY", 118)):
            got = self.strace(f"inject=openat:error={error}", "/etc/passwd")
            self.assertEqual((got.code, got.out), (code, b""), (error, got))

    def test_a_source_that_is_passed_over_in_silence_is_noticed(self):
        for error, code in (("EMFILE", 111), ("EIO", 111), ("ENOENT", 111)):
            got = self.strace(f"inject=openat:error={error}", "/etc/passwd", sources="files nosuchmodule")
            self.assertEqual((got.code, got.out), (code, b""), (error, got))

    def test_a_database_without_root_decides_about_nobody(self):
        got = self.getpw("sue", passwd=[self.joe()], root="")
        self.assertEqual((got.code, got.out), (111, b""))
        self.assertEqual(self.getpw("joe", passwd=[self.joe()], root="").code, 0)

    def test_a_source_that_is_not_installed_is_no_trouble(self):
        got = self.getpw("sue", passwd=[self.joe()], sources="files nosuchmodule")
        self.assertEqual((got.code, got.out[:6]), (0, b"alias\0"))

    def test_a_home_directory_that_cannot_be_asked_about_is_115(self):
        for error, code in (("EIO", 115), ("ESTALE", 115), ("ETIMEDOUT", 115)):
            got = self.strace(f"inject=newfstatat,stat,statx:error={error}", self.own + "/there")
            self.assertEqual((got.code, got.out), (code, b""), (error, got))

    def strace(self, inject, path, **more):
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        os.makedirs(self.own + "/there", exist_ok=True)
        wrap = ["strace", "-qq", "-o", "/dev/null", "-P", path, "-e", inject]
        return self.getpw("joe", passwd=[("joe", self.uid, 77, self.own + "/there")], wrap=wrap, **more)


if __name__ == "__main__":
    unittest.main()
