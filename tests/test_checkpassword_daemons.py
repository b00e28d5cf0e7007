"""checkpassword-dovecot and checkpassword-saslauthd from outside: against Debian's Dovecot and saslauthd, which have users of the
test's own, and against sockets that answer what no honest daemon says."""

import glob
import os
import shutil
import socket
import threading
import unittest

from tests import harness
from tests.harness import wait_for
from tests.packages import TOOLS, unpacked

UID, GID = harness.owner()[1:]
ACCOUNT = harness.owner()[0]
HASH = "$6$abcdefghijklmnop$56TBvBN4aKG8fPSlsWIfoXFPnIOFO5q1G5H3EPmTBL7VoKVeXsaY7s15dq91.92PYJFRFdRkML2wWbDf8qhUe/"  # pencil


def libraries(*more):
    return ":".join([*more, *glob.glob(f"{TOOLS}/usr/lib/*-linux-gnu"), *glob.glob(f"{TOOLS}/lib/*-linux-gnu")])


class Asking(unittest.TestCase):
    """One checker; where its daemon listens; everybody becomes the owner of homes, whose home may be anywhere."""

    checker = None

    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        self.socket = os.path.join(self.base, "socket")

    def check(self, name, password, *program, options=(), more=b"", account=ACCOUNT, env=None, fds=None):
        argv = [self.checker, "-p", self.socket, *(["-u", account] if account else []), *options, *(program or ("true",))]
        login = name.encode() + b"\0" + password.encode() + b"\0<1.2@h>\0" + more
        passwd = os.path.join(self.base, "passwd")
        if os.geteuid() == 0:
            # The account's own home may not be there for whoever it is.
            with open(passwd, "w") as f:
                f.write(f"root:x:0:0::/root:/bin/sh\n{ACCOUNT}:x:{UID}:{GID}::{self.base}:/bin/sh\njoe:x:12345:23456::{self.base}:/bin/sh\n")
            argv = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/passwd && exec "$@"', passwd, harness.program(argv[0]), *argv[1:]]
        result = harness.run(argv, fds={3: login, **(fds or {})}, env={**os.environ, **(env or {})})
        self.assertNotIn(b"pencil", result.err)
        return result

    def codes(self, *logins, **more):
        return [self.check(name, password, **more).code for name, password in logins]


class Fake:
    """A socket that gives one answer to each connection, when it has heard so many bytes; what it heard."""

    def __init__(self, test, path, answers):
        self.heard, self.answers = [], list(answers)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        os.chmod(path, 0o666)
        self.listener.listen(5)
        self.listener.settimeout(harness.TIMEOUT)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        test.addCleanup(self.close)

    def serve(self):
        for greeting, until, answer in self.answers:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(harness.TIMEOUT)
                heard = b""
                try:
                    connection.sendall(greeting)
                    while until not in heard and (more := connection.recv(65536)):
                        heard += more
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
                except OSError:
                    pass  # whoever asked has left
                self.heard.append(heard)

    def close(self):
        self.listener.close()
        self.thread.join(harness.TIMEOUT)


GREETING = b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\tab\nDONE\n"


class Dovecot(Asking):
    checker = "checkpassword-dovecot"

    def fake(self, *answers):
        return Fake(self, self.socket, [(GREETING, b"AUTH", answer) if isinstance(answer, bytes) else answer for answer in answers])

    def test_what_is_asked(self):
        fake = self.fake(b"OK\t1\tuser=joe\n", b"OK\t1\tuser=joe\n", b"OK\t1\tuser=joe\n")
        env = {"TCPREMOTEIP": "2001:db8::7", "TCPREMOTEPORT": "1234", "TCPLOCALIP": "192.0.2.1", "TCPLOCALPORT": "none"}
        self.assertEqual(self.check("joe", "pencil", env=env, more=b"PLAIN\0pop3\0\0").code, 0)
        env = dict.fromkeys(env, "")
        self.assertEqual(self.check("joe", "pencil", options=("-s", "imap"), env=env, more=b"PLAIN\0pop3\0\0").code, 0)
        self.assertEqual(self.check("joe", "pencil", env=env, more=b"PLAIN\0pop3\trip=1.2.3.4\0\0").code, 0)
        asked = [b"service=pop3\tsecured\tnologin\tno-penalty\tlip=192.0.2.1\trip=2001:db8::7\trport=1234",
                 b"service=imap\tsecured\tnologin\tno-penalty", b"service=smtp\tsecured\tnologin\tno-penalty"]
        wait_for(lambda: len(fake.heard) == 3, "all to be heard")
        for heard, wanted in zip(fake.heard, asked):
            self.assertRegex(heard, rb"\AVERSION\t1\t1\nCPID\t[0-9]+\nAUTH\t1\tPLAIN\t" + wanted + rb"\tresp=AGpvZQBwZW5jaWw=\n\Z")

    def test_every_answer_has_its_exit_code(self):
        answers = [(b"OK\t1\tuser=joe\n", 0), (b"MECH\tX\nOK\t9\tuser=eve\nOK\t1\tuser=joe\tx=y\n", 0), (b"FAIL\t1\tuser=joe\n", 1),
                   (b"FAIL\t1\tuser=joe\tcode=user_disabled\n", 1), (b"OK\t1\tuser=joe\tnologin\n", 1), (b"FAIL\t1\ttemp\n", 111),
                   (b"FAIL\t1\tcode=temp_fail\n", 111), (b"CONT\t1\t\n", 111), (b"OK\t1\n", 111), (b"", 111), (b"OK\t1\tuser=joe", 111),
                   (b"OK\t2\tuser=joe\n", 111), (b"x" * 20_000 + b"\n", 111), (b"x\n" * 2000, 111),
                   ((b"VERSION\t2\t0\nMECH\tPLAIN\nDONE\n", b"CPID", b""), 111), ((b"VERSION\t1\t2\nMECH\tLOGIN\nDONE\n", b"CPID", b""), 111),
                   ((b"220 mail.example ESMTP\r\n", b"CPID", b""), 111)]
        self.fake(*(answer for answer, _ in answers))
        for answer, code in answers:
            with self.subTest(answer):
                result = self.check("joe", "pencil")
                self.assertEqual((result.code, b"unable to ask" in result.err), (code, code == 111), result)

    def test_who_is_let_in_is_whom_dovecot_names(self):
        self.fake(*[b"OK\t1\tuser=joe@example.org\n"] * 3)
        self.assertEqual(self.check("Joe", "pencil", "sh", "-c", 'echo "$USER"').out, b"joe@example.org\n")
        # Who asks for it learns the name, behind where a signature would be, and the program sees nothing of that.
        for asked, said in ({"SASL_ACCOUNT_FD": "4"}, b"\njoe@example.org"), ({}, b""):
            result = self.check("Joe", "pencil", "sh", "-c", 'echo "${SASL_ACCOUNT_FD-gone}"', env=asked, fds={4: "capture"})
            self.assertEqual((result.code, result.out, result.fds[4]), (0, b"gone\n", said))

    def test_nobody_is_asked_for_what_is_no_password(self):
        for more in (b"CRAM-MD5\0smtp\0\0", b"SCRAM-SHA-256\0\0\0"):
            self.assertEqual(self.check("joe", "pencil", more=more).code, 1)
        self.assertEqual((self.check("joe", "").code, self.check("", "pencil").code, self.check("joe", "x" * 9000).code), (1, 1, 1))

    def test_without_a_daemon_the_trouble_is_temporary(self):
        result = self.check("joe", "pencil")
        self.assertEqual((result.code, result.err), (111, f"{self.checker}: fatal: unable to connect to {self.socket}: file does not exist\n".encode()))

    def test_misuse(self):
        for argv in ([], ["-p"], ["-x", "true"]):
            self.assertEqual(harness.run([self.checker, *argv], fds={3: b"joe\0pencil\0"}).code, 2)

    @unittest.skipUnless(os.geteuid() == 0, "Dovecot starts its processes as other users: needs root")
    def test_against_dovecot(self):
        dovecot, doveconf = unpacked("usr/sbin/dovecot"), unpacked("usr/bin/doveconf")
        modules = f"{TOOLS}/usr/lib/dovecot"
        path = libraries(modules, f"{modules}/modules/old-stats")
        users, conf, run = (os.path.join(self.base, name) for name in ("users", "conf", "run"))
        with open(users, "w") as f:
            f.write(f"joe:{{CRYPT}}{HASH}::::::\nclosed:{{PLAIN}}pencil::::::nologin\nstrange:{{NONSENSE}}x::::::\n")
        with open(conf, "w") as f:
            f.write(f"""protocols =
base_dir = {run}
state_dir = {self.base}/state
libexec_dir = {modules}
import_environment = TZ LD_LIBRARY_PATH={path}
auth_mechanisms = plain
auth_failure_delay = 0
auth_debug = yes
default_internal_user = {ACCOUNT}
default_internal_group = root
default_login_user = daemon
log_path = /dev/stderr
passdb {{
  driver = passwd-file
  args = username_format=%Ln {users}
}}
service auth {{
  unix_listener auth-client {{
    mode = 0666
  }}
}}
""")
        self.socket = f"{run}/auth-client"
        argv = [doveconf, "-f", "service=master", "-c", conf, "-m", "master", "-e", dovecot, "-F", "-c", conf]
        # It ends its whole process group.
        with harness.Daemon(argv, env={"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": path}, own_group=True) as daemon:
            wait_for(lambda: os.path.exists(self.socket) or daemon.process.poll() is not None, "Dovecot to listen")
            self.assertEqual(self.codes(("joe", "pencil"), ("JOE", "pencil"), ("joe", "wrong"), ("other", "pencil"), ("closed", "pencil"),
                                        ("joe", "pen\tcil\x01")), [0, 0, 1, 1, 1, 1], daemon.log())
            self.assertEqual(self.check("JOE", "pencil", "sh", "-c", 'echo "$USER"; id -u').out, f"joe\n{UID}\n".encode())
            result = self.check("joe", "pencil", "id", "-u", account=None, env={"TCPREMOTEIP": "192.0.2.9"})
            self.assertEqual((result.code, result.out), (0, b"12345\n"), result)
            self.assertIn("192.0.2.9", daemon.log())


class Saslauthd(Asking):
    checker = "checkpassword-saslauthd"

    def fake(self, *answers):
        return Fake(self, self.socket, [(b"", b"\0\x06pencil", answer) for answer in answers])

    def test_what_is_asked(self):
        fake = self.fake(b"\0\x02OK", b"\0\x02OK")
        self.assertEqual(self.check("joe", "pencil", more=b"PLAIN\0login\0\0").code, 0)
        self.assertEqual(self.check("joe", "pencil", options=("-s", "pop", "-r", "example.org")).code, 0)
        wait_for(lambda: len(fake.heard) == 2, "both to be heard")
        self.assertEqual(fake.heard, [b"\0\x03joe\0\x06pencil\0\x04smtp\0\0", b"\0\x03joe\0\x06pencil\0\x03pop\0\x0bexample.org"])

    def test_every_answer_has_its_exit_code(self):
        answers = [(b"\0\x02OK", 0), (b"\0\x02NO", 1), (b"\0\x18NO authentication failed", 1), (b"\0\x03OK", 111), (b"", 111), (b"\0", 111),
                   (b"\0\0", 111), (b"\0\x05maybe", 111), (b"\xff\xff" + b"OK" * 40_000, 111)]
        self.fake(*(answer for answer, _ in answers))
        for answer, code in answers:
            with self.subTest(answer):
                result = self.check("joe", "pencil")
                self.assertEqual((result.code, b"unable to ask" in result.err), (code, code == 111), result)

    def test_nobody_is_asked_for_what_is_no_password(self):
        self.assertEqual(self.check("joe", "pencil", more=b"CRAM-MD5\0smtp\0\0").code, 1)
        self.assertEqual((self.check("joe", "").code, self.check("joe", "pencil", options=("-r", "x" * 70_000)).code), (1, 1))

    def test_without_a_daemon_the_trouble_is_temporary(self):
        self.assertEqual(self.check("joe", "pencil").code, 111)

    def test_misuse(self):
        for argv in ([], ["-p"], ["-x", "true"]):
            self.assertEqual(harness.run([self.checker, *argv], fds={3: b"joe\0pencil\0"}).code, 2)

    @unittest.skipUnless(os.geteuid() == 0, "shadow passwords of the test's own, in a mount namespace, need root")
    def test_against_saslauthd(self):
        program = unpacked("usr/sbin/saslauthd")
        for name, text in (("passwd", f"root:x:0:0::/root:/bin/sh\njoe:x:12345:23456::{self.base}:/bin/sh\n"),
                           ("shadow", f"joe:{HASH}:19000:0:99999:7:::\n")):
            with open(os.path.join(self.base, name), "w") as f:
                f.write(text)
        run = os.path.join(self.base, "run")
        os.mkdir(run)
        self.socket = os.path.join(run, "mux")
        shell = 'mount --bind "$0/passwd" /etc/passwd && mount --bind "$0/shadow" /etc/shadow && exec "$@"'
        argv = ["unshare", "-m", "sh", "-c", shell, self.base, program, "-a", "shadow", "-d", "-n", "0", "-m", run]
        with harness.Daemon(argv, env={"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": libraries()}, own_group=True) as daemon:
            wait_for(lambda: os.path.exists(self.socket) or daemon.process.poll() is not None, "saslauthd to listen")
            self.assertEqual(self.codes(("joe", "pencil"), ("joe", "wrong"), ("other", "pencil")), [0, 1, 1], daemon.log())
            result = self.check("joe", "pencil", "id", "-u", account=None)
            self.assertEqual((result.code, result.out), (0, b"12345\n"), result)


del Asking

if __name__ == "__main__":
    unittest.main()
