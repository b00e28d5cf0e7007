"""scripts/mkhome: a complete own home, made once and refreshed without harm."""

import os
import pwd
import shutil
import stat
import subprocess
import unittest

from tests import harness, tinycdb
from tests.harness import BIN, ROOT, Home

MKHOME = os.path.join(ROOT, "scripts", "mkhome")


def mkhome(*argv, **more):
    return subprocess.run([MKHOME, *argv], capture_output=True, text=True, **more)


class Mkhome(unittest.TestCase):
    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base)
        self.home = os.path.join(self.base, "home")
        self.options = ["--bin", BIN, "--link", "--me", "mail.test.example"]
        if os.geteuid() == 0:
            self.options += ["--owner", harness.owner()[0]]

    def make(self, *more):
        made = mkhome(self.home, *self.options, *more)
        self.assertEqual(made.returncode, 0, made.stderr)
        return made

    def read(self, name):
        with open(os.path.join(self.home, name)) as f:
            return f.read()

    def everything(self):
        """{path: (mode, owner, content)} of the home."""
        found = {}
        for d, dirs, files in os.walk(self.home):
            for name in dirs + files:
                path = os.path.join(d, name)
                s = os.lstat(path)
                content = None
                if stat.S_ISREG(s.st_mode):
                    with open(path, "rb") as f:
                        content = f.read()
                found[os.path.relpath(path, self.home)] = (oct(s.st_mode), s.st_uid, content)
        return found

    def test_everything_belongs_to_one_user_who_is_not_root(self):
        self.make("--user", "joe:secret")
        _, uid, gid = harness.owner()
        self.assertEqual(self.read("users/ids"), f"owner:{uid}:{gid}\n")
        for path, (_, owner, _) in self.everything().items():
            self.assertEqual(owner, uid, path)

    def test_users_whose_names_differ_only_where_one_has_a_dot_are_two(self):
        self.make("--user", "axb:one", "--user", "a.b:two")
        for name in ("axb", "a.b"):
            self.assertIn(f"\n={name}:", "\n" + self.read("users/assign"))
            self.assertIn(f"\n{name}:", "\n" + self.read("users/passwd"))

    def test_a_users_name_is_no_way_out_of_the_home(self):
        for name in ("..", ".x", "-x", "a/b"):
            made = mkhome(self.home, *self.options, "--user", name + ":x")
            self.assertEqual(made.returncode, 100, name)
        self.assertFalse(os.path.exists(self.home))

    def test_the_queue_is_laid_out_as_the_programs_want_it(self):
        self.make()
        modes = {"queue": 0o750, "queue/pid": 0o700, "queue/intd": 0o700, "queue/todo": 0o750, "queue/mess": 0o750,
                 "queue/mess/22": 0o750, "queue/info/0": 0o700, "queue/local/7": 0o700, "queue/remote/22": 0o700,
                 "queue/bounce": 0o700, "queue/lock": 0o750, "queue/lock/sendmutex": 0o600, "queue/lock/trigger": 0o622,
                 "queue/lock/tcpto": 0o644, "queue/lock/ledger.local": 0o600,
                 "queue/lock/ledger.remote": 0o600, "users/passwd": 0o600, "run": 0o755, "sts": 0o755}
        for name, mode in modes.items():
            self.assertEqual(stat.S_IMODE(os.lstat(os.path.join(self.home, name)).st_mode), mode, name)
        self.assertTrue(stat.S_ISFIFO(os.lstat(os.path.join(self.home, "queue/lock/trigger")).st_mode))
        self.assertEqual(os.path.getsize(os.path.join(self.home, "queue/lock/tcpto")), 1024)
        self.assertEqual(sorted(map(int, os.listdir(os.path.join(self.home, "queue/mess")))), list(range(23)))

    def test_every_program_of_the_manifest_is_there(self):
        self.make()
        with open(os.path.join(ROOT, "bins", "MANIFEST")) as f:
            for line in f:
                if not line.startswith("#"):
                    name = line.split()[1].split(">")[0]
                    self.assertTrue(os.access(os.path.join(self.home, "bin", name), os.X_OK), name)

    def test_copies_are_complete_and_executable(self):
        self.options.remove("--link")
        self.make()
        self.assertFalse(os.path.islink(os.path.join(self.home, "bin/qmail-send")))
        with open(os.path.join(BIN, "qmail-send"), "rb") as a, open(os.path.join(self.home, "bin/qmail-send"), "rb") as b:
            self.assertEqual(a.read(), b.read())

    def test_control_files_make_sense_together(self):
        self.make()
        want = {"me": "mail.test.example\n", "locals": "mail.test.example\n", "rcpthosts": "mail.test.example\n",
                "defaultdomain": "test.example\n", "plusdomain": "test.example\n", "defaulthost": "mail.test.example\n"}
        for name, text in want.items():
            self.assertEqual(self.read(f"control/{name}"), text, name)

    def test_a_second_run_adds_a_user_and_changes_nothing_else(self):
        self.make("--user", "joe:secret")
        with open(os.path.join(self.home, "control/me"), "w") as f:
            f.write("changed.example\n")
        with open(os.path.join(self.home, "home/joe/Maildir/new/1.mail"), "w") as f:
            f.write("mail\n")
        before = self.everything()
        self.make("--user", "joe:other", "--user", "ann:word")
        after = self.everything()
        changed = {n for n in before if before[n] != after.get(n)}
        self.assertEqual(changed, {"control/scramparams.cdb", "users/assign", "users/cdb", "users/passwd", "users/passwd.cdb"})
        self.assertEqual({n for n in after if n not in before and not n.startswith("home/ann")}, set())
        self.assertIn("=ann:ann:", self.read("users/assign"))
        self.assertEqual(self.read("users/passwd").count("joe:"), 1)
        joe = [line for line in before["users/passwd"][2].decode().splitlines() if line.startswith("joe:")]
        self.assertIn(joe[0], self.read("users/passwd"))

    def test_the_hash_is_a_salted_one_with_keys_for_scram_and_a_user_without_password_has_none(self):
        self.make("--user", "joe:secret", "--user", "jim:secret", "--user", "mute")
        lines = dict(line.split(":", 1) for line in self.read("users/passwd").splitlines())
        for name in ("joe", "jim"):
            stored, keys = lines[name].split(":")[0].split(" ")
            self.assertTrue(stored.startswith("$y$") and keys.startswith("{SCRAM-SHA-256}10000,"), lines[name])
            result = harness.run(["checkpassword-file", os.path.join(self.home, "users/passwd"), "true"],
                                 fds={3: f"{name}\0secret\0\0".encode()}, as_user=harness.owner()[1:] if os.geteuid() == 0 else None)
            self.assertEqual((result.code, result.err), (0, b""))
        with open(os.path.join(self.home, "control/scramparams.cdb"), "rb") as f:
            self.assertEqual({key for key, _ in tinycdb.records(f.read())}, {b"", b"joe", b"jim"})
        self.assertNotEqual(lines["joe"].split(":")[0], lines["jim"].split(":")[0])
        self.assertTrue(lines["mute"].startswith("*:"))

    def test_odd_names_and_passwords(self):
        self.home = os.path.join(self.base, "a home with 'quotes'")
        self.make("--user", "j.o-e_1:a b:c'\"$x\\")
        checker = harness.run(["checkpassword-file", os.path.join(self.home, "users/passwd"), "true"],
                              fds={3: b"j.o-e_1\0a b:c'\"$x\\\0t\0"})
        self.assertEqual(checker.code, 0, checker)

    def test_it_says_how_to_start_the_home_and_what_is_said_works(self):
        said = self.make("--user", "joe:secret").stdout
        self.assertIn("qmail-start ./Maildir/ &\n", said)
        self.assertEqual(said.count("\n    "), 4)
        self.assertTrue(os.path.exists(os.path.join(self.home, "man/man8/qmail-send.8")))
        self.assertTrue(os.path.exists(os.path.join(self.home, "samples/control/me")))
        self.assertNotIn("README.md", os.listdir(os.path.join(self.home, "samples/control")))

    def test_root_needs_no_owner_to_refresh(self):
        if os.geteuid() != 0:
            self.skipTest("only root can make a home for another user")
        self.make()
        again = mkhome(self.home, "--bin", BIN, "--link")
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(os.stat(self.home).st_uid, harness.owner()[1])

    def test_a_name_that_is_no_host_is_refused(self):
        self.options[self.options.index("--me") + 1] = "not a host!"
        done = mkhome(self.home, *self.options)
        self.assertEqual(done.returncode, 100)
        self.assertIn("not the name of a host", done.stderr)

    def test_wrong_use_is_100_with_a_usage_line(self):
        for argv in ([], ["--nonsense", self.home], [self.home, "other"], [self.home, "--user"], [self.home, "--user", "a/b:x"],
                     [self.home, "--user", ":x"], [self.home + ":x"]):
            with self.subTest(argv=argv):
                done = mkhome(*argv)
                self.assertEqual(done.returncode, 100)
                self.assertIn("usage: scripts/mkhome DIR", done.stderr)
        self.assertEqual(mkhome("--help").returncode, 0)

    def test_a_directory_with_other_things_is_refused(self):
        os.mkdir(self.home)
        with open(os.path.join(self.home, "thesis.tex"), "w"):
            pass
        if os.geteuid() == 0:
            os.chown(self.home, *harness.owner()[1:])
        done = mkhome(self.home, *self.options)
        self.assertEqual(done.returncode, 111)
        self.assertIn("neither empty nor a home", done.stderr)
        self.assertEqual(os.listdir(self.home), ["thesis.tex"])

    def test_without_programs_it_says_what_to_do(self):
        done = mkhome(self.home, "--bin", self.base)
        self.assertEqual(done.returncode, 111)
        self.assertIn("run 'make build' first", done.stderr)

    def test_root_hands_over_and_never_owns(self):
        if os.geteuid() != 0:
            self.skipTest("only root can make a home for another user")
        done = mkhome(self.home, *self.options[:-2], "--owner", "root")
        self.assertEqual(done.returncode, 111)
        self.assertIn("root cannot own an own home", done.stderr)
        self.assertEqual(mkhome(self.home, *self.options[:-2], "--owner", "no-such-user").returncode, 111)
        done = subprocess.run([MKHOME, self.home, *self.options[:-2]], capture_output=True, text=True,
                              env={k: v for k, v in os.environ.items() if k != "SUDO_USER"})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(os.stat(self.home).st_uid, pwd.getpwnam("nobody").pw_uid)

    def test_root_that_became_root_by_sudo_from_root_owns_nothing_either(self):
        if os.geteuid() != 0:
            self.skipTest("only root can make a home for another user")
        options = ["--bin", BIN, "--link", "--me", "mail.test.example"]
        env = {**os.environ, "SUDO_USER": "root"}
        self.assertEqual(mkhome(self.home, *options, "--owner", "root", env=env).returncode, 111)
        done = mkhome(self.home, *options, env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(os.stat(self.home).st_uid, pwd.getpwnam("nobody").pw_uid)

    def test_root_does_not_follow_what_the_owner_planted(self):
        if os.geteuid() != 0:
            self.skipTest("only root can make a home for another user")
        self.make()
        victim = os.path.join(self.base, "victim")
        with open(victim, "w") as f:
            f.write("root's\n")
        os.chmod(victim, 0o644)
        os.unlink(os.path.join(self.home, "control/rcpthosts"))
        for name in ("users/ids", "control/rcpthosts"):
            os.symlink(victim, os.path.join(self.home, name + ".tmp"))
        done = mkhome(self.home, *self.options)
        with open(victim) as f:
            self.assertEqual(f.read(), "root's\n", done.stderr)

    def test_two_homes_live_side_by_side(self):
        with Home(me="one.example") as one, Home(me="two.example") as two:
            for home in (one, two):
                home.start()
            one.inject(b"Subject: 1\n\n", "", ["joe@one.example"])
            two.inject(b"Subject: 2\n\n", "", ["joe@two.example"])
            harness.wait_for(lambda: one.messages() and two.messages(), "both messages")


if __name__ == "__main__":
    unittest.main()
