"""checkpassword and checkpassword-file from outside: descriptor 3 in, an exit code or the user's program out."""

import os
import shutil
import unittest

from tests import harness

UID, GID = harness.owner()[1:]

# The password is "pencil".
VECTORS = {
    "MD5": "$1$abcdefgh$Gqo0dW5ZZwRMuhky6A93q0",
    "SHA-256": "$5$abcdefghijklmnop$mwkOiYLw5/HQW3OlFtEIF6QWHgkGNIKDi/rM9KKCnV5",
    "SHA-512": "$6$abcdefghijklmnop$56TBvBN4aKG8fPSlsWIfoXFPnIOFO5q1G5H3EPmTBL7VoKVeXsaY7s15dq91.92PYJFRFdRkML2wWbDf8qhUe/",
    "bcrypt": "$2b$05$abcdefghijklmnopqrstuu680Yiaj5hFUaJTH/rTAcbA2PQEGfiZu",
    "yescrypt": "$y$j75$abcdefghijkl$G1Bw0nbf6kKOppE0XU9Ut1.OWvQpuMM3tsJPfzf.gkB",
}


def fields(name, password, more=b"<1.2@h>\0"):
    return name.encode() + b"\0" + password.encode() + b"\0" + more


class File(unittest.TestCase):
    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        self.home = os.path.join(self.base, "joe")
        os.mkdir(self.home)
        self.passwd = os.path.join(self.base, "passwd")
        self.write(self.line("joe", VECTORS["SHA-256"]))

    def line(self, name, stored, uid=UID, gid=GID, home=None):
        return f"{name}:{stored}:{uid}:{gid}:{home or self.home}\n"

    def write(self, text):
        with open(self.passwd, "w") as f:
            f.write(text)

    def check(self, login, *program, env=None):
        program = program or ("sh", "-c", "echo in")
        return harness.run(["checkpassword-file", self.passwd, *program], fds={3: login}, env=env)

    def code(self, login):
        return self.check(login).code

    def test_the_right_password_runs_the_program_as_the_user(self):
        script = 'echo "$USER $HOME $SHELL $KEPT"; pwd; id -u; id -g; id -G; cat; [ -e /dev/fd/3 ] || echo closed; exit 7'
        result = harness.run(["checkpassword-file", self.passwd, "sh", "-c", script], b"input\n", fds={3: fields("joe", "pencil")},
                             env={"PATH": os.environ["PATH"], "KEPT": "kept", "HOME": "/"})
        groups = {GID} if os.geteuid() == 0 else {GID, *os.getgroups()}
        self.assertEqual(result.out.decode().split("\n")[:4], [f"joe {self.home} /bin/sh kept", self.home, str(UID), str(GID)])
        self.assertEqual(set(map(int, result.out.decode().split("\n")[4].split())), groups)
        self.assertTrue(result.out.endswith(b"\ninput\nclosed\n"), result.out)
        self.assertEqual((result.code, result.err), (7, b""))

    def test_every_scheme_of_crypt_is_understood(self):
        for scheme, stored in VECTORS.items():
            self.write(self.line("joe", stored))
            with self.subTest(scheme):
                self.assertEqual(self.code(fields("joe", "pencil")), 0)
                self.assertEqual(self.code(fields("joe", "Pencil")), 1)
        for name in ("CRYPT", "SHA256-CRYPT"):
            self.write(self.line("joe", "{" + name + "}" + VECTORS["SHA-256"]))
            self.assertEqual(self.code(fields("joe", "pencil")), 0)

    def test_a_wrong_password_or_name_is_refused_without_a_word(self):
        for name, password in [("joe", ""), ("joe", "pencil "), ("joe", "penci"), ("joe", "x" * 1000), ("JOE", "pencil"),
                               ("", "pencil"), ("other", "pencil"), ("joe:", "pencil")]:
            with self.subTest((name, password)):
                result = self.check(fields(name, password))
                self.assertEqual((result.code, result.out, result.err), (1, b"", b""))

    def test_a_stored_value_that_lets_nobody_in(self):
        for stored in ("", "*", "!", "x", "!!", "*LK*", "!" + VECTORS["SHA-256"]):
            self.write(self.line("joe", stored))
            for password in ("", stored, "pencil"):
                with self.subTest((stored, password)):
                    self.assertEqual(self.code(fields("joe", password)), 1)

    def test_an_unknown_scheme_is_our_trouble_and_not_the_users(self):
        for stored in ("$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAAA", "{SSHA}wQlfDRC2U2VxQ+eMKr7SFL0BmVgBAgMEBQYHCA==", "$nonsense$"):
            self.write(self.line("joe", stored))
            with self.subTest(stored):
                result = self.check(fields("joe", "pencil"))
                self.assertEqual(result.code, 111)
                self.assertIn(b"unknown scheme", result.err)
                self.assertNotIn(b"pencil", result.err)

    def test_misuse(self):
        for argv, login in [([], fields("joe", "pencil")), ([self.passwd], fields("joe", "pencil")),
                            ([self.passwd, "true"], b""), ([self.passwd, "true"], b"joe"),
                            ([self.passwd, "true"], b"joe\0pencil")]:
            with self.subTest((argv, login)):
                self.assertEqual(harness.run(["checkpassword-file", *argv], fds={3: login}).code, 2)

    def test_two_fields_are_enough_and_more_are_no_harm(self):
        for more in (b"", b"<t>\0", b"\0PLAIN\0smtp\0" + b"127.0.0.1\0"):
            self.assertEqual(self.code(fields("joe", "pencil", more)), 0)

    def test_descriptor_3_is_bounded(self):
        self.assertEqual(self.code(fields("joe", "pencil", b"t\0" + b"x" * 60_000)), 0)
        self.assertEqual(self.code(fields("joe", "pencil", b"t\0" + b"x" * 70_000)), 1)

    def test_without_descriptor_3_the_trouble_is_temporary(self):
        result = harness.run(["checkpassword-file", self.passwd, "true"])
        self.assertEqual(result.code, 111)
        self.assertIn(b"descriptor 3", result.err)

    def test_troubles_are_temporary_and_name_the_thing(self):
        os.unlink(self.passwd)
        result = self.check(fields("joe", "pencil"))
        self.assertEqual(result.code, 111)
        self.assertIn(f"unable to open {self.passwd}: file does not exist".encode(), result.err)
        self.write(self.line("joe", VECTORS["SHA-256"], home="/nonexistent"))
        result = self.check(fields("joe", "pencil"))
        self.assertEqual((result.code, result.err[-54:]), (111, b"unable to switch to /nonexistent: file does not exist\n"))
        self.write(self.line("joe", VECTORS["SHA-256"]))
        result = self.check(fields("joe", "pencil"), "no-such-program")
        self.assertEqual((result.code, result.out), (111, b""))

    def test_the_first_line_of_a_name_counts_and_odd_lines_are_nobodys(self):
        noise = "# comment\n\njoe\njoe:x:1\njoe:" + VECTORS["MD5"] + ":a:b:/\n" + "joe:" + "x" * 10_000 + "\n" \
            + self.line("joe", VECTORS["MD5"], uid=4294967295) + "joe:" + VECTORS["MD5"] + f":{UID}:{GID}:/:/bin/sh\n"
        self.write(noise + self.line("joe", "*") + self.line("joe", VECTORS["SHA-256"]))
        self.assertEqual(self.code(fields("joe", "pencil")), 1)
        self.write(noise + self.line("joe", VECTORS["SHA-256"]) + self.line("joe", "*"))
        self.assertEqual(self.code(fields("joe", "pencil")), 0)

    def test_a_last_line_without_end_counts(self):
        self.write(self.line("a", "*") + self.line("joe", VECTORS["SHA-256"]).rstrip("\n"))
        self.assertEqual(self.code(fields("joe", "pencil")), 0)

    def test_root_is_never_let_in(self):
        self.write(self.line("joe", VECTORS["SHA-256"], uid=0, gid=0))
        self.assertEqual(self.code(fields("joe", "pencil")), 1)

    def test_a_user_we_cannot_become_is_refused(self):
        self.write(self.line("joe", VECTORS["SHA-256"], uid=UID + 1))
        result = harness.run(["checkpassword-file", self.passwd, "true"], fds={3: fields("joe", "pencil")},
                             as_user=(UID, GID) if os.geteuid() == 0 else None)
        self.assertEqual(result.code, 1)

    def test_without_root_it_goes_on_when_it_is_that_user_already(self):
        self.write(self.line("joe", VECTORS["SHA-256"], gid=GID + 1))
        result = harness.run(["checkpassword-file", self.passwd, "id", "-u"], fds={3: fields("joe", "pencil")},
                             as_user=(UID, GID) if os.geteuid() == 0 else None)
        self.assertEqual((result.code, result.out), (0, b"%d\n" % UID))


@unittest.skipUnless(os.geteuid() == 0, "reading shadow passwords, and private ones in a mount namespace, need root")
class System(unittest.TestCase):
    """The accounts are of the test's own: /etc/passwd and /etc/shadow of a private mount namespace."""

    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        self.home = os.path.join(self.base, "home")
        os.mkdir(self.home)
        self.write("passwd", f"root:x:0:0:root:/root:/bin/sh\njoe:x:12345:23456:Joe:{self.home}:/bin/bash\n"
                             f"old:{VECTORS['MD5']}:12346:23456::{self.home}:/bin/sh\nlocked:x:12347:23456::{self.home}:/bin/sh\n"
                             f"empty::12348:23456::{self.home}:/bin/sh\nblank:x:12349:23456::{self.home}:/bin/sh\n"
                             "nohome:x:12350:23456::/nonexistent:/bin/sh\n")
        self.write("shadow", f"root:*:19000::::::\njoe:{VECTORS['SHA-512']}:19000:0:99999:7:::\n"
                             f"locked:!{VECTORS['SHA-512']}:19000::::::\nblank::19000::::::\n"
                             f"nohome:{VECTORS['MD5']}:19000::::::\n")

    def write(self, name, text):
        with open(os.path.join(self.base, name), "w") as f:
            f.write(text)

    def check(self, name, password, *program):
        shell = 'mount --bind "$0/passwd" /etc/passwd && mount --bind "$0/shadow" /etc/shadow && exec "$@"'
        argv = ["unshare", "-m", "sh", "-c", shell, self.base, harness.program("checkpassword"), *program]
        return harness.run(argv, fds={3: fields(name, password)})

    def test_an_account_is_let_in_by_its_shadow_password(self):
        result = self.check("joe", "pencil", "sh", "-c", 'echo "$USER $HOME $SHELL"; pwd; id -u; id -g; id -G')
        wanted = f"joe {self.home} /bin/bash\n{self.home}\n12345\n23456\n23456\n"
        self.assertEqual((result.code, result.out.decode(), result.err), (0, wanted, b""))

    def test_an_account_without_shadow_entry_by_the_password_of_passwd(self):
        self.assertEqual(self.check("old", "pencil", "id", "-u").out, b"12346\n")

    def test_the_rest_is_refused(self):
        for name, password in [("joe", "wrong"), ("joe", ""), ("root", ""), ("root", "*"), ("locked", "pencil"), ("empty", ""),
                               ("blank", ""), ("nobody-here", "pencil"), ("", ""), ("old", "x")]:
            with self.subTest((name, password)):
                result = self.check(name, password, "true")
                self.assertEqual((result.code, result.out, result.err), (1, b"", b""))

    def test_a_missing_home_is_temporary(self):
        self.assertEqual(self.check("nohome", "pencil", "true").code, 111)

    def test_without_a_program_it_is_misused(self):
        self.assertEqual(self.check("joe", "pencil").code, 2)


if __name__ == "__main__":
    unittest.main()
