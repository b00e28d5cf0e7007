"""maildirmake: an empty Maildir."""

import os
import shutil
import unittest

from tests import harness


class Maildirmake(unittest.TestCase):
    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, True)
        self.user = harness.owner()[1:] if os.geteuid() == 0 else None

    def make(self, *arguments, wrap=()):
        argv = ["maildirmake", *arguments]
        if wrap:
            argv[0] = harness.program(argv[0])
        return harness.run([*wrap, *argv], cwd=self.base, as_user=self.user)

    def tree(self, name):
        path = os.path.join(self.base, name)
        return sorted(os.listdir(path)), [oct(os.stat(os.path.join(path, n)).st_mode & 0o7777) for n in ("", "tmp", "new", "cur")]

    def test_it_makes_the_directory_and_its_three_parts_for_the_owner_alone(self):
        for name in ("Maildir", os.path.join(self.base, "absolute"), "with a space/"):
            result = self.make(name)
            self.assertEqual((result.code, result.out, result.err), (0, b"", b""))
            self.assertEqual(self.tree(name), (["cur", "new", "tmp"], ["0o700"] * 4))

    def test_the_umask_of_the_caller_does_not_matter(self):
        for umask in ("000", "777"):
            result = self.make(f"m{umask}", wrap=["sh", "-c", f'umask {umask}; exec "$@"', "sh"])
            self.assertEqual(result.code, 0)
            self.assertEqual(self.tree(f"m{umask}")[1], ["0o700"] * 4)

    def test_what_is_there_is_left_alone(self):
        for make in (os.mkdir, lambda p: open(p, "w").close(), lambda p: os.symlink("nowhere", p)):
            make(os.path.join(self.base, "there"))
            result = self.make("there")
            self.assertEqual((result.code, result.err), (111, b"maildirmake: fatal: unable to mkdir there: file already exists\n"))
            if os.path.isdir(path := os.path.join(self.base, "there")):
                self.assertEqual(os.listdir(path), [])
                os.rmdir(path)
            else:
                os.unlink(path)

    def test_every_failure_is_temporary_and_says_what_it_is(self):
        result = self.make("no/such/place")
        self.assertEqual((result.code, result.err),
                         (111, b"maildirmake: fatal: unable to mkdir no/such/place: file does not exist\n"))
        for when, name in ((1, "m1"), (2, "m2/tmp"), (3, "m3/new"), (4, "m4/cur")):
            result = self.make(f"m{when}", wrap=["strace", "-qq", "-o", "/dev/null", "-e", "trace=mkdir,mkdirat",
                                                 "-e", f"inject=mkdir,mkdirat:error=ENOSPC:when={when}"])
            self.assertEqual((result.code, result.err),
                             (111, f"maildirmake: fatal: unable to mkdir {name}: out of disk space\n".encode()))

    def test_a_parent_that_may_be_written_but_not_read_will_do(self):
        box = os.path.join(self.base, "box")
        os.mkdir(box)
        if self.user:
            os.chown(box, *self.user)
        os.chmod(box, 0o300)
        self.assertEqual(self.make("box/Maildir").code, 0)
        os.chmod(box, 0o700)

    def test_anything_but_one_directory_is_wrong_use(self):
        for arguments in ((), ("a", "b"), ("-x", "a")):
            result = self.make(*arguments)
            self.assertEqual(result.code, 100)
            self.assertTrue(result.err.endswith(b"maildirmake: usage: maildirmake dir\n"), result.err)
        self.assertEqual(os.listdir(self.base), [])


if __name__ == "__main__":
    unittest.main()
