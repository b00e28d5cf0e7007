"""popauth and relay-ctrl-check from outside: who has read mail may relay for a while, from that address and no other."""

import os
import shutil
import time
import unittest

from tests import harness
from tests.faults import Small, own_mounts
from tests.harness import wait_for

UID, GID = harness.owner()[1:]


class PopBeforeSmtp(unittest.TestCase):
    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        self.open = os.path.join(self.base, "open")
        os.mkdir(self.open, 0o755)  # of whoever runs the test: root, where that is who runs checkers
        self.passwd = os.path.join(self.base, "passwd")
        with open(self.passwd, "w") as f:
            f.write(f"joe:{{PLAIN}}pencil:{UID}:{GID}:{self.base}\n")
        self.env = {"PATH": f"{harness.BIN}:{os.environ['PATH']}"}

    def login(self, address, password="pencil", program=("echo", "in"), options=(), env=None):
        argv = ["popauth", "-d", self.open, *options, "checkpassword-file", self.passwd, "popauth", *program]
        env = {**self.env, **({"TCPREMOTEIP": address} if address is not None else {}), **(env or {})}
        return harness.run(argv, fds={3: f"joe\0{password}\0<1.2@h>\0".encode()}, env=env)

    def may(self, address, *options, env=None, unset=True):
        argv = ["relay-ctrl-check", *(["-d", self.open] if unset else []), *options, "sh", "-c", 'echo "${RELAYCLIENT-closed}"']
        result = harness.run(argv, env={**self.env, **({"TCPREMOTEIP": address} if address else {}), **(env or {})})
        self.assertEqual((result.code, result.err), (0, b""), result)
        return result.out.decode().rstrip("\n")

    def age(self, name, seconds):
        then = time.time() - seconds
        os.utime(os.path.join(self.open, name), (then, then))

    def files(self):
        return set(os.listdir(self.open))

    def test_who_has_read_mail_may_relay(self):
        for address, name in (("192.0.2.7", "192.0.2.7"), ("2001:DB8::7", "2001:db8::7"), ("::ffff:192.0.2.8", "192.0.2.8")):
            with self.subTest(address):
                self.assertEqual(self.may(address), "closed")
                result = self.login(address)
                self.assertEqual((result.code, result.out, result.err), (0, b"in\n", b""))
                self.assertIn(name, self.files())
                self.assertEqual(self.may(address), "")
        self.assertEqual((self.may("192.0.2.9"), self.may("2001:db8::8"), self.may(""), self.may("../etc/passwd")), ("closed",) * 4)
        self.assertEqual(self.may("192.0.2.8"), "")

    def test_the_file_is_there_before_the_session_begins(self):
        result = self.login("192.0.2.7", program=("ls", self.open))
        self.assertIn(b"192.0.2.7\n", result.out)

    def test_a_wrong_password_opens_nothing_and_leaves_nobody(self):
        self.assertEqual(self.login("192.0.2.7", "wrong").code, 1)
        self.assertEqual(self.files(), set())
        wait_for(lambda: not self.left(), "the child to end")

    def left(self):
        """Processes of popauth that have our directory in their command line."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    words = f.read()
            except OSError:
                continue
            if b"popauth" in words and self.open.encode() in words:
                found.append(pid)
        return found

    def test_the_user_can_neither_write_nor_say_an_address(self):
        self.login("192.0.2.7", program=("sh", "-c", f"TCPREMOTEIP=192.0.2.66 popauth true; echo x >{self.open}/192.0.2.67; env"))
        if os.geteuid() == 0:
            self.assertEqual(self.files() - {"swept"}, {"192.0.2.7"})
        result = self.login("192.0.2.7", program=("env",))
        self.assertNotIn(b"POPAUTHFD", result.out)

    def test_the_window_closes_by_itself(self):
        self.login("192.0.2.7")
        for seconds, options, env, answer in [(1100, [], {}, ""), (1300, [], {}, "closed"), (1300, ["-t", "2000"], {}, ""), (1100, ["-t", "1000"], {}, "closed"),
                                              (1300, [], {"RELAY_CTRL_EXPIRY": "2000"}, ""), (-3600, [], {}, "closed")]:
            self.age("192.0.2.7", seconds)
            with self.subTest((seconds, options, env)):
                self.assertEqual(self.may("192.0.2.7", *options, env=env), answer)
        self.age("192.0.2.7", 5000)
        self.login("192.0.2.7")
        self.assertEqual(self.may("192.0.2.7"), "")

    def test_what_is_old_goes_when_somebody_comes(self):
        for name in ("192.0.2.1", "2001:db8::1", "192.0.2.2", "README"):
            with open(os.path.join(self.open, name), "w"):
                pass
            self.age(name, 1000 if name == "192.0.2.2" else 5000)
        self.login("192.0.2.7")
        wait_for(lambda: self.files() == {"192.0.2.2", "192.0.2.7", "README", "swept"}, "old files to go")
        # Not looked for again within a minute.
        self.age("192.0.2.2", 5000)
        self.login("192.0.2.7")
        wait_for(lambda: not self.left(), "the child to end")
        self.assertIn("192.0.2.2", self.files())
        self.age("swept", 100)
        self.login("192.0.2.7", options=("-t", "6000"))
        wait_for(lambda: not self.left(), "the child to end")
        self.assertIn("192.0.2.2", self.files())
        self.age("swept", 100)
        self.login("192.0.2.7")
        wait_for(lambda: "192.0.2.2" not in self.files(), "the old file to go")

    def test_a_session_without_an_address_is_just_a_session(self):
        for address in (None, "", "unknown"):
            result = self.login(address)
            self.assertEqual((result.code, result.out, result.err), (0, b"in\n", b""))
        self.assertEqual(self.files(), set())

    def test_mail_is_read_though_nothing_can_be_written(self):
        os.rmdir(self.open)
        result = self.login("192.0.2.7")
        self.assertEqual((result.code, result.out), (0, b"in\n"))
        self.assertIn(b"popauth: warning: ", result.err)

    @own_mounts
    def test_a_full_disk_has_room_for_an_address_and_without_names_mail_is_read(self):
        self.login("192.0.2.7")
        disk = Small(self.open, inodes=40)
        self.addCleanup(disk.end)
        disk.fill()
        self.age("192.0.2.7", 5000)
        for address in ("192.0.2.7", "192.0.2.8"):
            result = self.login(address)
            self.assertEqual((result.code, result.out, result.err, self.may(address)), (0, b"in\n", b"", ""))
        disk.take_inodes()
        before = self.files()
        result = self.login("192.0.2.9")
        self.assertEqual((result.code, result.out, self.may("192.0.2.9"), self.files()), (0, b"in\n", "closed", before))
        self.assertRegex(result.err, rb"popauth: warning: unable to write [^ ]*/192\.0\.2\.9: [a-z ]*\n")
        wait_for(lambda: not self.left(), "the children to end")

    def test_relayclient_is_the_administrators_word(self):
        self.login("192.0.2.7")
        self.assertEqual(self.may("192.0.2.7", env={"RELAY_CTRL_RELAYCLIENT": "@relay"}), "@relay")
        self.assertEqual(self.may("192.0.2.7", env={"RELAYCLIENT": "kept"}), "kept")
        self.assertEqual(self.may("192.0.2.9", env={"RELAY_CTRL_RELAYCLIENT": "@relay"}), "closed")
        self.assertEqual(self.may("192.0.2.7", env={"RELAY_CTRL_DIR": self.open}, unset=False), "")

    def test_only_a_file_opens(self):
        os.mkdir(os.path.join(self.open, "192.0.2.7"))
        os.symlink("/etc/passwd", os.path.join(self.open, "192.0.2.8"))
        self.assertEqual((self.may("192.0.2.7"), self.may("192.0.2.8")), ("closed", "closed"))

    def test_trouble_is_temporary(self):
        def code(*argv, **env):
            return harness.run(list(argv), env={**self.env, "TCPREMOTEIP": "192.0.2.7", **env}).code
        self.assertEqual(code("relay-ctrl-check", "-d", self.base + "/none", "true"), 111)
        self.assertEqual(code("relay-ctrl-check", "-d", self.passwd, "true"), 111)
        self.assertEqual(code("relay-ctrl-check", "-d", self.open, "no-such-program"), 111)
        self.assertEqual(code("popauth", "true"), 111)
        self.assertEqual(code("popauth", "-d", self.open, "no-such-program"), 111)

    def test_misuse(self):
        for argv in (["popauth"], ["popauth", "-d", self.open], ["popauth", "-d", self.open, "-t", "0", "true"], ["popauth", "-x", "true"],
                     ["relay-ctrl-check"], ["relay-ctrl-check", "true"], ["relay-ctrl-check", "-d", self.open, "-t", "x", "true"],
                     ["relay-ctrl-check", "-d", self.open, "-t", "90000", "true"]):
            with self.subTest(argv):
                result = harness.run(argv, env={**self.env, "TCPREMOTEIP": "192.0.2.7"})
                self.assertEqual(result.code, 100)
                self.assertIn(b"usage: ", result.err)


class WholeChain(unittest.TestCase):
    def test_from_a_pop3_login_to_a_relayed_message(self):
        with harness.Home() as home:
            home.control("rcpthosts", "test.example\n")
            os.mkdir(home.file("popauth"))
            if os.geteuid() == 0:
                os.chown(home.file("popauth"), *harness.owner()[1:])
            service = ["popauth", "-d", home.file("popauth"), "checkpassword-file", home.file("users/passwd"), "popauth", "qmail-pop3d", "Maildir"]
            home.control("authprograms", f"pop3:{' '.join(service)}\n")
            pop, smtp = harness.free_port(), harness.free_port()
            launch = ["tcpserver", *harness.as_owner(), "-HRl0", "127.0.0.1"]
            with harness.Daemon([*launch, str(pop), home.file("bin/qmail-popup"), "test.example", *service], env=home.env) as popd, \
                    harness.Daemon([*launch, str(smtp), home.file("bin/relay-ctrl-check"), "-d", home.file("popauth"), home.file("bin/qmail-smtpd")],
                                   env=home.env):
                def rcpt():
                    with self.connected(smtp) as line:
                        harness.dialogue(line, "S: 220 ...\nC: HELO client\nS: 250 ...\nC: MAIL FROM:<joe@test.example>\nS: 250 ...\n"
                                               "C: RCPT TO:<somebody@elsewhere.example>")
                        return line.reader.readline()[:3]
                self.assertEqual(rcpt(), b"553")
                with self.connected(pop) as line:
                    harness.dialogue(line, "S: +OK ...\nC: USER joe\nS: +OK ...\nC: PASS secret")
                    self.assertEqual(line.reader.readline()[:3], b"+OK", popd.log())
                    harness.dialogue(line, "C: QUIT\nS: +OK ...")
                self.assertEqual(rcpt(), b"250")
                # The same by qmail-authd, which gives no other descriptors and little of the environment.
                os.unlink(home.file("popauth/127.0.0.1"))
                self.assertEqual(rcpt(), b"553")
                with harness.Daemon(["qmail-authd"], env=home.env, cwd="/") as authd:
                    result = home.run(["authask", "pop3"], b"QUIT\r\n", env={"TCPREMOTEIP": "127.0.0.1"}, fds={3: b"joe\0secret\0t\0"})
                    self.assertEqual((result.code, result.out[:3]), (0, b"+OK"), authd.log())
                self.assertEqual(rcpt(), b"250")

    def connected(self, port):
        def connect():
            try:
                return harness.Line.connect(port)
            except ConnectionRefusedError:
                return None
        return wait_for(connect, "the server to listen")


if __name__ == "__main__":
    unittest.main()
