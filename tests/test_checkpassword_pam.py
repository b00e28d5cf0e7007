"""checkpassword-pam from outside, with services, accounts and shadow passwords of the test's own in a mount namespace."""

import os
import shutil
import unittest

from tests import harness

HASH = "$6$abcdefghijklmnop$56TBvBN4aKG8fPSlsWIfoXFPnIOFO5q1G5H3EPmTBL7VoKVeXsaY7s15dq91.92PYJFRFdRkML2wWbDf8qhUe/"  # pencil

SERVICES = {
    "checkpassword": "auth required pam_unix.so\naccount required pam_unix.so\n",
    "anybody": "auth required pam_permit.so\naccount required pam_permit.so\n",
    "nobody": "auth required pam_deny.so\naccount required pam_permit.so\n",
    "unavailable": "auth required pam_debug.so auth=authinfo_unavail\naccount required pam_permit.so\n",
    "unreadable": "auth required pam_debug.so auth=cred_insufficient\naccount required pam_permit.so\n",
    "unknown": "auth required pam_debug.so auth=user_unknown\naccount required pam_permit.so\n",
    "broken": "auth required pam_no_such_module.so\naccount required pam_permit.so\n",
    "closed": "auth required pam_permit.so\naccount required pam_debug.so acct=acct_expired\n",
    "aged": "auth required pam_permit.so\naccount required pam_debug.so acct=new_authtok_reqd\n",
    "lost": "auth required pam_permit.so\naccount required pam_debug.so acct=system_err\n",
}


@unittest.skipUnless(os.geteuid() == 0, "services of PAM of the test's own, in a mount namespace, need root")
class Pam(unittest.TestCase):
    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        self.home = os.path.join(self.base, "home")
        os.mkdir(self.home)
        os.mkdir(os.path.join(self.base, "pam.d"))
        for name, text in SERVICES.items():
            self.write("pam.d/" + name, text)
        self.write("passwd", f"root:x:0:0:root:/root:/bin/sh\njoe:x:12345:23456:Joe:{self.home}:/bin/sh\n"
                             f"late:x:12346:23456::{self.home}:/bin/sh\nvirtual:x:12347:23456::{self.home}:/bin/sh\n")
        self.write("shadow", f"root:{HASH}:19000:0:99999:7:::\njoe:{HASH}:19000:0:99999:7:::\nlate:{HASH}:19000:0:99999:7::1:\n"
                             "virtual:*:19000::::::\n")

    def write(self, name, text):
        with open(os.path.join(self.base, name), "w") as f:
            f.write(text)

    def check(self, name, password, *argv, more=b"", env=None):
        shell = ('for file in passwd shadow pam.d; do mount --bind "$0/$file" /etc/$file || exit 99; done; exec "$@"')
        argv = ["unshare", "-m", "sh", "-c", shell, self.base, harness.program("checkpassword-pam"), *argv]
        return harness.run(argv, fds={3: name.encode() + b"\0" + password.encode() + b"\0<1.2@h>\0" + more},
                           env={**os.environ, **(env or {})})

    def test_an_account_of_the_system_is_let_in(self):
        result = self.check("joe", "pencil", "sh", "-c", 'echo "$USER $HOME"; pwd; id -u; id -g; id -G')
        self.assertEqual((result.code, result.out.decode(), result.err), (0, f"joe {self.home}\n{self.home}\n12345\n23456\n23456\n", b""))

    def test_what_is_wrong_is_refused_without_a_word(self):
        for name, password in [("joe", "wrong"), ("joe", ""), ("other", "pencil"), ("", "pencil"), ("virtual", "*"), ("root", "pencil")]:
            with self.subTest((name, password)):
                result = self.check(name, password, "true")
                self.assertEqual((result.code, result.out, result.err), (1, b"", b""))

    def test_what_is_no_password_is_refused(self):
        self.assertEqual(self.check("joe", "pencil", "true", more=b"SCRAM-SHA-256\0smtp\0\0").code, 1)
        self.assertEqual(self.check("joe", "pencil", "true", more=b"PLAIN\0smtp\0\0").code, 0)

    def test_the_account_counts_behind_the_password(self):
        result = self.check("late", "pencil", "true")
        self.assertEqual((result.code, result.err), (1, b"checkpassword-pam: fatal: late: PAM refuses the account (PAM error 13)\n"))
        self.assertEqual(self.check("late", "wrong", "true").err, b"")
        for service in ("closed", "aged"):
            self.assertEqual(self.check("joe", "x", "-s", service, "true").code, 1)

    def test_what_pam_answers_becomes_an_exit_code(self):
        for service, code in [("anybody", 0), ("nobody", 1), ("unknown", 1), ("unavailable", 111), ("unreadable", 111), ("broken", 111), ("lost", 111)]:
            with self.subTest(service):
                result = self.check("joe", "x", "-s", service, "true")
                self.assertEqual(result.code, code, result)
                self.assertEqual(b"unable to ask PAM" in result.err, code == 111)

    def test_a_caller_does_not_choose_the_service(self):
        self.assertEqual(self.check("joe", "x", "true", more=b"PLAIN\0anybody\0\0").code, 1)

    def test_pam_is_told_the_address_and_the_password_and_nobody_waits(self):
        seen = os.path.join(self.base, "seen")
        self.write("script", f'read -r password; echo "$PAM_USER $PAM_RHOST $PAM_SERVICE $password" >{seen}\n')
        self.write("pam.d/script", f"auth optional pam_faildelay.so delay=40000000\nauth required pam_exec.so quiet expose_authtok /bin/sh {self.base}/script\n"
                                   "auth required pam_unix.so try_first_pass\naccount required pam_permit.so\n")
        for password, code in [("pencil", 0), ("wrong", 1)]:  # the delay that is asked for is longer than the test may take
            result = self.check("joe", password, "-s", "script", "true", env={"TCPREMOTEIP": "2001:db8::7"})
            self.assertEqual(result.code, code, result)
            with open(seen) as f:
                self.assertEqual(f.read().rstrip("\0\n"), f"joe 2001:db8::7 script {password}")

    def test_all_may_be_one_account(self):
        result = self.check("anybody@example.org", "x", "-s", "anybody", "-u", "virtual", "sh", "-c", 'echo "$USER"; id -u')
        self.assertEqual((result.code, result.out), (0, b"anybody@example.org\n12347\n"))
        self.assertEqual(self.check("joe", "x", "-s", "anybody", "-u", "nobody-here", "true").code, 111)
        self.assertEqual(self.check("joe", "x", "-s", "anybody", "-u", "root", "true").code, 1)

    def test_misuse(self):
        for argv in [[], ["-s"], ["-x", "true"]]:
            self.assertEqual(self.check("joe", "pencil", *argv).code, 2)


if __name__ == "__main__":
    unittest.main()
