"""authpasswd from outside: what it stores lets in and nothing else does, and what it makes for others is right."""

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import subprocess
import termios
import threading
import unittest

from tests import harness, tinycdb
from tests.faults import Small, own_mounts

UID, GID = harness.owner()[1:]


class Passwords(unittest.TestCase):
    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        self.home = os.path.join(self.base, "joe")
        os.mkdir(self.home)
        self.passwd = os.path.join(self.base, "passwd")
        self.params = os.path.join(self.base, "params.cdb")
        self.write("")

    def write(self, text, name="passwd"):
        path = os.path.join(self.base, name)
        with open(path, "w") as f:
            f.write(text)
        os.chmod(path, 0o600)
        return path

    def text(self):
        with open(self.passwd) as f:
            return f.read()

    def set(self, *argv, password="pencil"):
        return harness.run(["authpasswd", "-P", self.params, *argv], password.encode())

    def add(self, name, *options, password="pencil"):
        result = self.set(*options, self.passwd, name, str(UID), str(GID), self.home, password=password)
        self.assertEqual((result.code, result.out, result.err), (0, b"", b""))

    def code(self, name, password, file=None):
        login = name.encode() + b"\0" + password.encode() + b"\0\0"
        result = harness.run(["checkpassword-file", file or self.passwd, "true"], fds={3: login})
        self.err = result.err
        return result.code

    def test_a_new_user_has_a_hash_and_keys_of_scram(self):
        self.add("joe")
        number, gid = re.escape(str(UID)), re.escape(str(GID))
        line = rf"joe:\$y\$[^ ]+ \{{SCRAM-SHA-256\}}10000,[^,]{{24}},[^,]{{44}},[^:]{{44}}:{number}:{gid}:{re.escape(self.home)}\n"
        self.assertRegex(self.text(), rf"\A{line}\Z")
        self.assertEqual((self.code("joe", "pencil"), self.code("joe", "Pencil"), self.err), (0, 1, b""))

    def test_every_scheme_that_can_be_asked_for_lets_in(self):
        for options, pattern in [([], r"\$y\$.* \{SCRAM"), (["-s", "argon2id"], r"\$argon2id\$v=19\$m=19456,t=2,p=1\$.* \{SCRAM"),
                                 (["-s", "bcrypt", "-n"], r"\$2b\$[^ ]*:"), (["-s", "sha512", "-n"], r"\$6\$[^ ]*:"),
                                 (["-s", "sha256", "-n"], r"\$5\$[^ ]*:"), (["-s", "none"], r"\{SCRAM-SHA-256\}"),
                                 (["-s", "none", "-n", "-m"], r"\{CRAM-MD5\}[0-9a-f]{64}:")]:
            with self.subTest(options):
                self.add("joe", *options)
                self.assertRegex(self.text(), "^joe:" + pattern)
                self.assertEqual((self.code("joe", "pencil"), self.code("joe", "pencil2")), (0, 1))

    def test_a_password_is_changed_and_the_account_stays(self):
        self.add("joe")
        self.add("sue", password="other")
        before = self.text().splitlines()
        self.assertEqual(self.set(self.passwd, "joe", password="new\nrest").code, 0)
        after = self.text().splitlines()
        self.assertEqual(before[1], after[1])
        self.assertEqual(before[0].split(":")[2:], after[0].split(":")[2:])
        self.assertEqual([self.code("joe", "pencil"), self.code("joe", "new"), self.code("sue", "other")], [1, 0, 0])
        self.assertEqual(self.set(self.passwd, "joe", "1", "2", "/elsewhere").code, 0)
        self.assertTrue(self.text().splitlines()[0].endswith(":1:2:/elsewhere"))

    def test_what_is_no_line_of_the_user_stays_as_it_is(self):
        noise = "# users\n\njoe:x:1\njoe\nother:*:1:1:/\n"
        self.write(noise + f"joe:*:{UID}:{GID}:{self.home}\njoe:second:1:1:/\nlast:*:1:1:/")
        self.assertEqual(self.set(self.passwd, "joe").code, 0)
        text = self.text()
        self.assertTrue(text.startswith(noise) and text.endswith("\njoe:second:1:1:/\nlast:*:1:1:/"), text)
        self.add("sue")
        self.assertIn("last:*:1:1:/\nsue:$y$", self.text())

    def test_a_user_is_removed(self):
        self.add("joe")
        self.add("sue")
        self.assertEqual(self.set("-d", self.passwd, "joe").code, 0)
        self.assertEqual((self.code("joe", "pencil"), self.code("sue", "pencil")), (1, 0))
        self.assertNotIn("joe:", self.text())
        result = self.set("-d", self.passwd, "joe")
        self.assertEqual((result.code, result.err), (100, b"authpasswd: fatal: there is no such user\n"))

    def test_what_cannot_be_stored_is_refused_and_nothing_changes(self):
        self.add("joe")
        before = self.text()
        account = [str(UID), str(GID), self.home]
        for argv, password in [([self.passwd, "new"], "x"), ([self.passwd, "a:b", *account], "x"), ([self.passwd, "", *account], "x"),
                               ([self.passwd, "#a", *account], "x"), ([self.passwd, "a\nb", *account], "x"), ([self.passwd, "joe"], ""),
                               ([self.passwd, "joe"], "\n"), ([self.passwd, "joe"], "x" * 512), ([self.passwd, "joe"], "a\0b"),
                               ([self.passwd, "joe", "-1", "1", "/"], "x"), ([self.passwd, "joe", "1", "1", "/a:b"], "x"),
                               (["-s", "rot13", self.passwd, "joe"], "x"), (["-s", "none", "-n", self.passwd, "joe"], "x")]:
            with self.subTest((argv, password)):
                result = self.set(*argv, password=password)
                self.assertEqual((result.code, self.text()), (100, before))
                self.assertNotEqual(result.err, b"")
        for argv in [[], [self.passwd], ["-d", self.passwd], ["-x"], ["-d", "-x", self.passwd], [self.passwd, "joe", "1"], ["-p", self.passwd]]:
            with self.subTest(argv):
                result = self.set(*argv)
                self.assertEqual((result.code, self.text()), (100, before))
                self.assertIn(b"usage", result.err)
        self.assertEqual(self.set(self.passwd + "x", "joe", *account).code, 111)

    def test_a_password_that_clients_may_prepare_otherwise_gets_no_keys(self):
        result = self.set(self.passwd, "joe", str(UID), str(GID), self.home, password="p\u00aa\u212b")
        self.assertEqual((result.code, b"PLAIN and LOGIN only" in result.err), (0, True), result)
        self.assertNotIn("SCRAM", self.text())
        self.assertEqual(self.code("joe", "p\u00aa\u212b"), 0)

    def test_owner_and_mode_of_the_file_stay_and_nothing_is_left(self):
        if os.geteuid() == 0:
            os.chown(self.passwd, UID, GID)
        os.chmod(self.passwd, 0o640)
        self.add("joe")
        for path in (self.passwd, self.passwd + ".cdb"):
            found = os.stat(path)
            self.assertEqual((found.st_uid, found.st_gid, found.st_mode & 0o7777), (UID, GID, 0o640), path)
        self.assertEqual(os.stat(self.params).st_mode & 0o7777, 0o644)
        self.assertEqual(set(os.listdir(self.base)), {"joe", "passwd", "passwd.cdb", "params.cdb"})

    @unittest.skipUnless(os.geteuid() == 0, "only root makes files of another group")
    def test_what_a_group_may_read_is_not_given_to_another_group(self):
        other = GID - 1
        os.chown(self.passwd, UID, other)
        os.chown(self.base, UID, GID)
        for mode, code in (0o640, 111), (0o600, 0), (0o644, 0):
            os.chown(self.passwd, UID, other)
            os.chmod(self.passwd, mode)
            before = self.text()
            result = harness.run(["authpasswd", "-P", "", self.passwd, "joe", str(UID), str(GID), self.home], b"pencil", as_user=(UID, GID))
            self.assertEqual((result.code, os.stat(self.passwd).st_mode & 0o777), (code, mode), result.err)
            if code:
                self.assertEqual((self.text(), result.err),
                                 (before, b"authpasswd: fatal: unable to write " + self.passwd.encode() + b".new: permission denied\n"))
        self.assertEqual(self.code("joe", "pencil"), 0)

    def test_a_link_is_followed(self):
        link = os.path.join(self.base, "link")
        os.symlink("passwd", link)
        result = self.set(link, "joe", str(UID), str(GID), self.home)
        self.assertEqual((result.code, os.readlink(link), self.code("joe", "pencil")), (0, "passwd", 0))

    def test_values_alone_are_printed(self):
        result = self.set("-p", "-s", "sha512")
        self.assertRegex(result.out.decode(), r"\A\$6\$[^ ]+ \{SCRAM-SHA-256\}[^ ]+\n\Z")
        self.assertEqual(self.text(), "")

    def test_public_parameters_are_those_of_all_files_and_no_keys(self):
        self.add("joe")
        self.add("old", "-n")
        more = self.write("", "more")
        self.assertEqual(self.set(more, "sue", "1", "1", "/").code, 0)
        self.assertEqual(self.set(more, "joe", "1", "1", "/").code, 0)
        with open(more) as f:
            rows = [line.split(":")[:2] for line in self.text().splitlines() + f.read().splitlines()]
        public = self.public()
        self.assertEqual(set(public), {"", "joe", "sue"})
        for name, stored in rows:
            _, _, keys = stored.partition("{SCRAM-SHA-256}")
            if name == "sue" or keys.startswith(public["joe"]):
                self.assertEqual(keys.split(",")[:2], public[name].split(","))
            if keys:
                self.assertNotIn(keys.split(",")[2], "".join(public.values()))
        self.assertEqual(sorted(public[""].split("\n")), sorted(map(os.path.realpath, (self.passwd, more))))
        os.unlink(more)
        self.assertEqual(self.set("-d", self.passwd, "joe").code, 0)
        self.assertEqual(self.public(), {"": os.path.realpath(self.passwd)})

    def public(self):
        with open(self.params, "rb") as f:
            return {key.decode(): data.decode() for key, data in tinycdb.records(f.read())}

    def test_without_a_name_for_them_the_parameters_are_the_homes(self):
        with harness.Home() as home:
            argv = ["authpasswd", home.file("users/passwd"), "joe"]
            self.assertEqual(home.run(argv, b"fresh").code, 0)
            with open(home.file("control/scramparams.cdb"), "rb") as f:
                self.assertIn(b"joe", dict(tinycdb.records(f.read())))
            self.assertEqual(os.stat(home.file("users/passwd")).st_uid, UID)
            result = home.run(["checkpassword-file", home.file("users/passwd"), "true"], fds={3: b"joe\0fresh\0\0"})
            self.assertEqual((result.code, result.err), (0, b""))

    def test_the_index_is_asked_as_long_as_it_is_of_this_file(self):
        self.add("joe")
        with open(self.passwd, "rb") as f:
            line = f.read()
        # A line that only the index has: it was asked.
        with open(self.passwd + ".cdb", "rb") as f:
            records = tinycdb.records(f.read())
        head = dict(records)[b""]
        with open(self.passwd + ".cdb", "wb") as f:
            f.write(tinycdb.make([(b"sue", line.replace(b"joe", b"sue", 1).rstrip(b"\n")), (b"", head), (b"amy", line.rstrip(b"\n"))]))
        self.assertEqual((self.code("sue", "pencil"), self.code("joe", "pencil"), self.code("amy", "pencil"), self.code("", "x")), (0, 1, 1, 1))
        self.assertEqual(self.err, b"")
        # The file has changed: it is read, and the log says that this is slow.
        with open(self.passwd, "ab") as f:
            f.write(b"# by hand\n")
        self.assertEqual((self.code("joe", "pencil"), self.code("sue", "pencil")), (0, 1))
        self.assertIn(b"run authpasswd -x", self.err)
        self.assertEqual(self.set("-x", self.passwd).code, 0)
        self.assertEqual((self.code("joe", "pencil"), self.err), (0, b""))

    def test_an_index_that_others_could_write_is_not_asked(self):
        self.add("joe")
        os.chmod(self.passwd + ".cdb", 0o666)
        self.assertEqual(self.code("joe", "pencil"), 0)
        self.assertIn(b"run authpasswd -x", self.err)

    def test_a_damaged_index_is_temporary(self):
        self.add("joe")
        with open(self.passwd + ".cdb", "r+b") as f:
            f.write(b"\xff" * 2048)
        self.assertEqual(self.code("joe", "pencil"), 111)
        self.assertIn(b"damaged", self.err)

    def test_two_at_a_time_lose_nothing(self):
        codes = []
        threads = [threading.Thread(target=lambda n=n: codes.append(
            self.set("-s", "sha256", "-n", self.passwd, f"u{n}", "1", "1", "/").code)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(codes, [0] * 6)
        self.assertEqual(sorted(line.split(":")[0] for line in self.text().splitlines()), [f"u{n}" for n in range(6)])
        self.assertEqual(self.code("u0", "x"), 1)
        self.assertEqual(self.err, b"")

    def test_a_terminal_is_asked_twice_and_shows_nothing(self):
        for typed, code in [("pencil\npencil\n", 0), ("pencil\npencil2\n", 100)]:
            with self.subTest(typed):
                ours, theirs = pty.openpty()
                process = subprocess.Popen([harness.program("authpasswd"), "-P", self.params, self.passwd, "joe", str(UID), str(GID), self.home],
                                           stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs)
                os.close(theirs)
                seen = b""
                try:
                    for word, answer in zip((b"New password: ", b"Again: "), typed.splitlines(True)):
                        while word not in seen:
                            seen += os.read(ours, 4096)
                        os.write(ours, answer.encode())
                    self.assertEqual(process.wait(harness.TIMEOUT), code)
                    try:
                        while more := os.read(ours, 4096):
                            seen += more
                    except OSError:
                        pass  # the other end is closed
                finally:
                    process.kill()
                    process.wait()
                    os.close(ours)
                self.assertNotIn(b"pencil", seen)
        self.assertEqual(self.code("joe", "pencil"), 0)

    def terminal(self):
        """authpasswd at a terminal of its own, which asks for the password; our end, its end, and the process."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        self.addCleanup(os.close, theirs)

        def take():
            os.setsid()
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        process = subprocess.Popen([harness.program("authpasswd"), "-P", self.params, self.passwd, "joe", str(UID), str(GID), self.home],
                                   stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs, preexec_fn=take)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        seen = b""
        while b"New password: " not in seen:
            seen += os.read(ours, 4096)
        return ours, theirs, process

    def test_who_thinks_better_of_it_has_a_terminal_that_shows_what_is_typed(self):
        for how in ("\x03", "pen\x03", "\x1c", "\x1a", signal.SIGTERM, signal.SIGHUP):
            with self.subTest(how):
                ours, theirs, process = self.terminal()
                self.assertFalse(termios.tcgetattr(theirs)[3] & termios.ECHO)
                if isinstance(how, str):
                    os.write(ours, how.encode())
                else:
                    process.send_signal(how)
                self.assertEqual(process.wait(harness.TIMEOUT), 111)
                self.assertTrue(termios.tcgetattr(theirs)[3] & termios.ECHO)
                self.assertIn(b"interrupted, nothing was changed", os.read(ours, 4096))
        self.assertEqual(self.text(), "")

    def contents(self):
        found = {}
        for name in os.listdir(self.base):
            with contextlib.suppress(IsADirectoryError), open(os.path.join(self.base, name), "rb") as f:
                found[name] = f.read()
        return found

    @own_mounts
    def test_a_full_disk_leaves_the_old_files_and_no_others(self):
        self.add("joe", "-s", "sha256")
        disk = Small(self.base)
        self.addCleanup(disk.end)
        self.assertEqual(self.set("-x", self.passwd).code, 0)  # the copy has another inode
        before = self.contents()
        codes = []
        for fill, most in ((disk.fill, 8), (disk.take_inodes, 4)):
            for leave in range(most):
                fill(leave)
                full = self.contents().keys()
                result = self.set("-s", "sha256", self.passwd, "joe", password=f"new{leave}")
                codes.append(result.code)
                if result.code:
                    self.assertEqual((result.code, self.contents().keys()), (111, full))
                    self.assertRegex(result.err, rb"\Aauthpasswd: fatal: unable to write [^ ]*/(passwd|passwd\.cdb|params\.cdb)\.new: .*\n\Z")
                disk.free()
                now = self.contents()
                if result.code:
                    self.assertEqual(now, before)
                    self.assertEqual((self.code("joe", f"new{leave}"), self.err), (1, b""))
                else:
                    self.assertEqual((now.keys(), self.code("joe", f"new{leave}"), self.err), (before.keys(), 0, b""))
                before = now
        self.assertEqual((codes[0], codes[7], codes[8], codes[11]), (111, 0, 111, 0), codes)

    def test_one_who_is_killed_leaves_the_old_password_or_the_new(self):
        self.add("joe", "-s", "sha256")
        password = "pencil"
        for call, when in [(call, when) for call in ("fsync", "rename") for when in (1, 2, 3)]:
            with self.subTest((call, when)):
                fresh = f"{call}{when}"
                trace = ["strace", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"]
                done = harness.run([*trace, harness.program("authpasswd"), "-P", self.params, "-s", "sha256", self.passwd, "joe"], fresh.encode())
                self.assertNotEqual(done.code, 0)
                codes = {word: self.code("joe", word) for word in (password, fresh)}
                self.assertIn(sorted(codes.values()), [[0, 1]], codes)
                password = min(codes, key=codes.get)
        self.add("joe", "-s", "sha256")
        self.assertEqual(self.contents().keys(), {"passwd", "passwd.cdb", "params.cdb"})


if __name__ == "__main__":
    unittest.main()
