"""Programs that are not ours get no jail: sudo, a set-gid maildrop, set-uid filters work wherever we start them.

tests/probe.c is put in each place where the system starts somebody else's program. It reports what it was
left with: privileges it may gain, filters, signals, limits, umask, descriptors.
"""

import ctypes
import glob
import os
import pwd
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import unittest

from tests import harness, sandbox
from tests.harness import ROOT, Daemon, Line, wait_for
from tests.test_system_home import ENV, HOME, gid, made, sh, uid, write

WHERE = "/var/probe"
PASSWORD = "correct horse"
UNPACKED = os.path.join(ROOT, "tests", "tools", "root")
TESTERS_UMASK = 0o022
# Resource limit 4 is RLIMIT_CORE, whose soft value our programs set to 0: doc/security.md.
CORE = "rlimit 4"


@sandbox.alone
class Foreign(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.umask(TESTERS_UMASK)
        made("--me", "test.example")
        sh("useradd -m joe; useradd -m ann; usermod -aG mail ann; chmod 711 /home/joe")
        sh("chpasswd", input=f"joe:{PASSWORD}\n")
        for name in ("joe", "ann"):
            sh("maildirmake Maildir", cwd=f"/home/{name}", env=ENV, user=name, group=name, extra_groups=[])
        sh(f"mkdir {WHERE} {WHERE}/sub {WHERE}/other; chmod 1777 {WHERE} {WHERE}/*")
        probe = WHERE + "/probe"
        sh(f"cc -O1 -Wall -Werror '-DWHERE=\"{WHERE}\"' -o {probe} {ROOT}/tests/probe.c")
        for name in ("queue-smtpd", "queue-inject", "queue-sendmail", "queue-start", "checker", "logger", "remote"):
            os.link(probe, f"{WHERE}/{name}")
        sh(f"cp {probe} {WHERE}/queue-setuid; cp {probe} {WHERE}/setuid; chmod 4755 {WHERE}/queue-setuid {WHERE}/setuid")
        sh(f"cp {probe} {WHERE}/setgid; chgrp mail {WHERE}/setgid; chmod 2755 {WHERE}/setgid")
        cls.abstract = socket.socket(socket.AF_UNIX)
        cls.addClassCleanup(cls.abstract.close)
        cls.abstract.bind("\0qmail-probe")
        cls.abstract.listen(100)
        cls.daemon(["tcpserver", "-v", "-U", "-H", "-R", "-l", "test.example", "127.0.0.1", "25", "qmail-smtpd"],
                   UID=str(uid("qmaild")), GID=str(gid("nofiles")), QMAILQUEUE=WHERE + "/queue-smtpd").wait_log("status: 0/")

        def start():
            cls.send = cls.daemon([HOME + "/bin/qmail-start", "./Maildir/", WHERE + "/logger", "logger", "cat"],
                                  QMAILQUEUE=WHERE + "/queue-start", QMAILREMOTE=WHERE + "/remote")
        cls.logger = cls.probed("logger", start, uid("qmaill"))
        cls.send.wait_log("^status: local 0/")
        wait_for(lambda: os.path.exists(HOME + "/run/queue"), "the socket")
        # The same, when whoever starts us asks the question: nothing of ours is between.
        cls.reference = cls.probed("reference", lambda: sh(f"{probe} reference"), 0)

    @classmethod
    def daemon(cls, argv, **env):
        daemon = Daemon(argv, env={**ENV, **env}, cwd="/")
        cls.addClassCleanup(daemon.stop)
        return daemon

    @staticmethod
    def probed(name, start, user, before=None):
        """What the probe says that `start` brings about, running as this user (a real uid)."""
        def reports():
            return {p for p in glob.glob(f"{WHERE}/{name}.{user}.*") if not p.endswith(".new")}
        before = reports() if before is None else set(before)
        start()
        path = wait_for(lambda: reports() - before, f"a report of {name} as {user}").pop()
        with open(path) as f:
            return dict(line.rstrip("\n").split(":", 1) for line in f)

    def free(self, report, descriptors, umask, euid=None, egid=None, parent="ok"):
        """Nothing of ours is on this program."""
        report = {key: value.strip() for key, value in report.items()}
        # Signals 32 and 33 are the C library's own: nobody can set them, and who ran the tests may have had one ignored.
        report["SigIgn"] = f"{int(report['SigIgn'], 16) & ~(3 << 31):016x}"
        want = {"no_new_privs": "0", "NoNewPrivs": "0", "Seccomp": "0", "SigPnd": "0" * 16, "ShdPnd": "0" * 16, "SigBlk": "0" * 16,
                "SigIgn": "0" * 16, "SigCgt": "0" * 16, "create": "ok", "rename elsewhere": "ok", "unlink": "ok", "connect tcp": "ok",
                "connect abstract": "ok", "signal the parent": parent, "execute": "0", "descriptors": descriptors,
                "umask": f"{umask:03o}"}
        for key, number in (("euid", euid), ("egid", egid)):
            if number is not None:
                want[key] = str(number)
        for key, value in self.reference.items():
            if key.startswith("rlimit"):
                want[key] = f"0 {value.split()[1]}" if key == CORE else value.strip()
        if report[CORE] == self.reference[CORE].strip():
            want[CORE] = report[CORE]
        self.assertEqual({key: report.get(key) for key in want}, want)

    @staticmethod
    def limits(report):
        return {key: value for key, value in report.items() if key.startswith("rlimit")}

    def dotqmail(self, extension, text):
        path = f"/home/joe/.qmail-{extension}"
        with open(path, "w") as f:
            f.write(text)
        os.chown(path, uid("joe"), gid("joe"))

    def inject(self, recipient, text="hello", env=None, program="qmail-inject", name="ann"):
        """Mail from an account here; returns its subject."""
        subject = f"s{os.urandom(6).hex()}"
        done = subprocess.run([program, recipient], input=f"Subject: {subject}\n\n{text}\n".encode(), capture_output=True, cwd="/",
                              env={**ENV, "USER": name, **(env or {})}, user=name, group=name, extra_groups=[])
        self.assertEqual(done.returncode, 0, done.stderr)
        return subject

    def arrived(self, word, user="ann"):
        def look():
            for name in os.listdir(f"/home/{user}/Maildir/new"):
                with open(f"/home/{user}/Maildir/new/{name}") as f:
                    text = f.read()
                if word in text:
                    return text
            return None
        try:
            return wait_for(look, f"mail for {user} with {word}")
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.send.log()[-3000:]}") from None

    def by_dotqmail(self, line, name, user):
        """The report of a probe that a .qmail line starts."""
        self.dotqmail("x", line + "\n")
        return self.probed(name, lambda: self.inject("joe-x@test.example"), user)

    # -- .qmail

    def test_the_probe_sees_a_jail_when_there_is_one(self):
        """Else all of the others would prove nothing."""
        report = self.probed("jailed", lambda: sh(f"setpriv --no-new-privs {WHERE}/probe jailed"), 0)
        self.assertEqual((report["no_new_privs"].strip(), report["NoNewPrivs"].strip()), ("1", "1"))
        report = self.probed("jailed", lambda: sh(f"(trap '' USR1; ulimit -n 99; umask 027; exec {WHERE}/probe jailed 5</dev/null)"), 0)
        for descriptors, umask in (("0 1 2", 0o022), ("0 1 2", 0o027), ("0 1 2 5", 0o027)):
            self.assertRaises(AssertionError, self.free, report, descriptors, umask)
        self.assertRaises(AssertionError, self.free, {**self.reference, "SigIgn": report["SigIgn"]}, self.reference["descriptors"].strip(), 0o022)
        # A Landlock domain about nothing but block devices: to move files between directories is refused by any.
        code = ("import ctypes, struct, os; l = ctypes.CDLL(None, use_errno=True); l.prctl(38, 1, 0, 0, 0);"
                "r = l.syscall(444, struct.pack('Q', 1 << 11), 8, 0); assert l.syscall(446, r, 0) == 0;"
                f"os.execv('{WHERE}/probe', ['probe', 'jailed', 'true'])")
        if has_landlock():
            report = self.probed("jailed", lambda: subprocess.run([sys.executable, "-c", code], check=True), 0)
            self.assertIn(report["rename elsewhere"].strip(), ("EXDEV", "EACCES"))

    def test_a_program_in_a_dot_qmail_file(self):
        self.free(self.by_dotqmail(f"|{WHERE}/probe plain", "plain", uid("joe")), "0 1 2", 0o077, uid("joe"), gid("joe"))

    def test_a_set_uid_filter_in_a_dot_qmail_file(self):
        self.free(self.by_dotqmail(f"|{WHERE}/setuid", "setuid", uid("joe")), "0 1 2", 0o077, 0, gid("joe"))

    def test_a_set_gid_program_in_a_dot_qmail_file(self):
        self.free(self.by_dotqmail(f"|{WHERE}/setgid", "setgid", uid("joe")), "0 1 2", 0o077, uid("joe"), gid("mail"))

    def test_sudo_in_a_dot_qmail_file(self):
        if not shutil.which("sudo"):
            self.skipTest("sudo is not installed (scripts/test-packages)")
        with open("/etc/sudoers.d/qmail-test", "w") as f:
            f.write("Defaults:joe !requiretty, !use_pty\njoe ALL=(ann) NOPASSWD: ALL\n")
        os.chmod("/etc/sudoers.d/qmail-test", 0o440)
        report = self.by_dotqmail(f"|sudo -n -u ann {WHERE}/probe sudo", "sudo", uid("ann"))
        # sudo has limits of its own; its parent, sudo, is root.
        by_hand = self.probed("byhand", lambda: sh(f"sudo -n -u ann {WHERE}/probe byhand", user="joe", group="joe", extra_groups=[]),
                              uid("ann"))
        self.free({**report, **self.limits(self.reference)}, "0 1 2", 0o077, uid("ann"), gid("ann"), parent="EPERM")
        self.assertEqual(self.limits(report), self.limits(by_hand))
        self.assertIn(str(gid("mail")), report["groups"].split())
        # And the message comes through it.
        self.dotqmail("x", "|sudo -n -u ann sh -c 'cat >/home/ann/copy'\n")
        subject = self.inject("joe-x@test.example")
        wait_for(lambda: os.path.exists("/home/ann/copy") and subject in open("/home/ann/copy").read(), "the copy by sudo")

    def test_a_set_gid_maildrop_in_a_dot_qmail_file(self):
        if not os.path.exists(UNPACKED + "/usr/bin/maildrop"):
            self.skipTest("maildrop is not unpacked (scripts/test-packages)")
        # Where a set-gid program finds its libraries; /etc and /var are this sandbox's.
        sh(f"mkdir -p /var/maildrop/lib; cd {UNPACKED}; cp usr/bin/maildrop /var/maildrop/; cp -d $(find . -name 'lib*.so*') /var/maildrop/lib/;"
           "chown root:mail /var/maildrop/maildrop; chmod 2755 /var/maildrop/maildrop;"
           "echo /var/maildrop/lib >/etc/ld.so.conf.d/zz-qmail-test.conf; PATH=$PATH:/sbin:/usr/sbin; ldconfig -X 2>&1;"
           "chgrp mail /var/mail; chmod 2775 /var/mail")
        with open("/home/joe/.mailfilter", "w") as f:
            # Its own programs get its rights; the mailbox is in a directory of the group's.
            f.write(f"cc \"|{WHERE}/probe maildrop\"\nto \"/var/mail/joe\"\n")
        os.chown("/home/joe/.mailfilter", uid("joe"), gid("joe"))
        os.chmod("/home/joe/.mailfilter", 0o600)
        report = self.by_dotqmail("|/var/maildrop/maildrop", "maildrop", uid("joe"))
        self.assertEqual((report["NoNewPrivs"].strip(), report["Seccomp"].strip()), ("0", "0"))
        subject = self.inject("joe-x@test.example")
        try:
            wait_for(lambda: os.path.exists("/var/mail/joe") and subject in open("/var/mail/joe").read(), "the mailbox of maildrop")
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.send.log()[-3000:]}") from None
        self.assertEqual(os.stat("/var/mail/joe").st_uid, uid("joe"))

    # -- QMAILQUEUE

    def test_qmailqueue_of_qmail_smtpd(self):
        def start():
            with smtplib.SMTP("127.0.0.1", 25, timeout=harness.TIMEOUT) as client:
                client.sendmail("far@elsewhere.example", ["ann@test.example"], b"Subject: through the filter\r\n\r\nx\r\n")
        self.free(self.probed("queue-smtpd", start, uid("qmaild")), "0 1 2 6", TESTERS_UMASK, uid("qmaild"), gid("nofiles"))
        self.assertIn("invoked from network", self.arrived("through the filter"))

    def test_qmailqueue_of_qmail_inject_and_sendmail(self):
        for program, name in (("qmail-inject", "queue-inject"), ("sendmail", "queue-sendmail")):
            with self.subTest(program):
                subjects = []
                report = self.probed(name, lambda: subjects.append(
                    self.inject("ann@test.example", program=program, env={"QMAILQUEUE": f"{WHERE}/{name}"}, name="joe")), uid("joe"))
                self.free(report, "0 1 2 6", TESTERS_UMASK, uid("joe"), gid("joe"))
                self.assertIn(f"invoked by uid {uid('joe')}", self.arrived(subjects[0]))

    def test_a_set_uid_qmailqueue(self):
        subjects = []
        report = self.probed("queue-setuid", lambda: subjects.append(
            self.inject("ann@test.example", env={"QMAILQUEUE": WHERE + "/queue-setuid"}, name="joe")), uid("joe"))
        self.free(report, "0 1 2 6", TESTERS_UMASK, 0, gid("joe"))
        self.assertIn("invoked by uid 0", self.arrived(subjects[0]))

    def test_qmailqueue_of_forwards_by_qmail_local(self):
        for line in ("&ann@test.example", "|forward ann@test.example"):
            with self.subTest(line):
                self.dotqmail("x", line + "\n")
                subjects = []
                report = self.probed("queue-start", lambda: subjects.append(self.inject("joe-x@test.example")), uid("joe"))
                self.free(report, "0 1 2 6", 0o077, uid("joe"), gid("joe"))
                self.assertIn(f"invoked by uid {uid('joe')}", self.arrived(subjects[0]))

    def test_qmailqueue_of_bounces_by_qmail_send(self):
        subjects = []
        report = self.probed("queue-start", lambda: subjects.append(self.inject("nobody-at-all@test.example")), uid("qmails"))
        self.free(report, report["descriptors"].strip(), 0o077, uid("qmails"), gid("qmail"))
        # The pipes of qmail-send are not its business; what is 2 to a filter is where troubles are said.
        self.assertEqual(report["descriptors"].split(), ["0", "1", "2", "6"])
        self.assertIn("invoked for bounce", self.arrived(subjects[0]))

    # -- other places

    def test_the_logger_and_what_stands_in_for_qmail_remote(self):
        # 2 is closed to it, as it always was; its parent is of another account.
        self.free(self.logger, "0 1", 0o077, uid("qmaill"), gid("nofiles"), parent="EPERM")
        report = self.probed("far.example", lambda: self.inject("someone@far.example"), uid("qmailr"))
        # And the sockets of tlsclient and mta-sts: what stands before qmail-remote, and runs it, must not cost it its TLS.
        sockets = sorted({int(report[name]) for name in ("TLSCLIENTFD", "MTASTSFD") if report[name].strip()})
        self.assertEqual(len(sockets), 2)
        self.free(report, " ".join(map(str, [0, 1, 2, *sockets])), 0o077, uid("qmailr"), gid("qmail"))

    def test_a_program_of_tcpserver(self):
        server = self.daemon(["tcpserver", "-v", "-H", "-R", "-l", "0", "127.0.0.1", "26", WHERE + "/probe", "tcp"])
        server.wait_log("status: 0/")
        report = self.probed("tcp", lambda: socket.create_connection(("127.0.0.1", 26), harness.TIMEOUT).close(), 0)
        self.free(report, "0 1 2", TESTERS_UMASK, 0, 0)

    def test_a_checker_and_a_mailbox_program_that_are_not_ours(self):
        server = self.daemon(["tcpserver", "-v", "-H", "-R", "-l", "0", "127.0.0.1", "110", "qmail-popup", "test.example",
                              WHERE + "/checker", "checker", "checkpassword", WHERE + "/probe", "mailbox"])
        server.wait_log("status: 0/")

        def login():
            with Line.connect(110) as client:
                client.expect("+OK ready")
                client.send("USER joe\r\n")
                client.expect("+OK...")
                client.send(f"PASS {PASSWORD}\r\n")
                client.reader.read()  # the session ends when the mailbox program does
        self.free(self.probed("checker", login, 0), "0 1 2 3", TESTERS_UMASK, 0, 0)
        report = self.probed("mailbox", login, uid("joe"))
        self.free(report, report["descriptors"].strip(), TESTERS_UMASK, uid("joe"), gid("joe"), parent=report["signal the parent"].strip())
        self.assertEqual(report["descriptors"].split(), ["0", "1", "2"])
        self.assertEqual(report["groups"].split(), [str(pwd.getpwnam("joe").pw_gid)])

    def test_what_qmail_authd_runs(self):
        write("control/authprograms", f"mail:{WHERE}/checker door-checker checkpassword {WHERE}/probe door\n")
        authd = self.daemon(["qmail-authd"])
        wait_for(lambda: os.path.exists(HOME + "/run/auth"), "the socket of qmail-authd")
        done = harness.run(["authask", "mail"], env=ENV, fds={3: f"joe\0{PASSWORD}\0x\0".encode()}, as_user=(uid("qmaild"), gid("nofiles")))
        self.assertEqual((done.code, done.err), (0, b""), authd.log())
        checker = self.probed("door-checker", lambda: None, 0, ())
        self.free(checker, checker["descriptors"].strip(), TESTERS_UMASK, 0, 0)
        self.assertLessEqual(set(checker["descriptors"].split()), {"0", "1", "2", "3"})
        report = self.probed("door", lambda: None, uid("joe"), ())
        self.free(report, report["descriptors"].strip(), TESTERS_UMASK, uid("joe"), gid("joe"), parent=report["signal the parent"].strip())
        self.assertLessEqual(set(report["descriptors"].split()), {"0", "1", "2"})


def has_landlock():
    return ctypes.CDLL(None).syscall(444, 0, 0, 1) > 0


if __name__ == "__main__":
    unittest.main()
