"""doc/containers.md, as it stands: an ordinary user runs an own home and a system home, where no privilege can be gained."""

import os
import poplib
import pwd
import re
import shutil
import signal
import smtplib
import subprocess
import unittest

from tests import harness, sandbox
from tests.harness import ROOT, wait_for
from tests.test_system_home import gid, sh, uid
from tests.test_units import processes, status

USER = "carol"
HOME = f"/home/{USER}"
CHECKOUT = f"{HOME}/qmail-rs"
RANGE = range(100000, 165536)
ENV = {"HOME": HOME, "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
SETPRIV = ["setpriv", "--reuid", USER, "--regid", USER, "--init-groups", "--inh-caps=-all"]

# What of a built checkout the page's commands read.
NEEDED = ["scripts", "bins/MANIFEST", "control", "doc/man", "doc/units"]


def commands(section):
    """The shell blocks of a section of the page, in order."""
    with open(os.path.join(ROOT, "doc", "containers.md")) as f:
        text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", f.read(), re.M | re.S)[1]
    return re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)


@sandbox.alone
class Containers(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        for tool in ("newuidmap", "newgidmap"):
            if not shutil.which(tool):
                raise unittest.SkipTest("uidmap is not installed")
        sh(f"useradd -m {USER} && touch /etc/subuid /etc/subgid && sed -i /^{USER}:/d /etc/subuid /etc/subgid &&"
           f"echo {USER}:{RANGE.start}:{len(RANGE)} | tee -a /etc/subuid /etc/subgid")
        for name in NEEDED:
            os.makedirs(os.path.dirname(f"{CHECKOUT}/{name}"), exist_ok=True)
            sh(f"cp -r {ROOT}/{name} {CHECKOUT}/{name}")
        os.makedirs(f"{CHECKOUT}/target")
        sh(f"cp -rL {harness.BIN} {CHECKOUT}/target/bin && chown -R {USER}:{USER} {HOME} && chmod -R go-w {HOME}")
        tried = subprocess.run([*SETPRIV, "unshare", "--user", "--map-auto", "true"], env=ENV, capture_output=True, text=True)
        if tried.returncode:
            raise unittest.SkipTest(f"users make no namespaces here: {tried.stderr.strip()}")

    def run_page(self, blocks):
        """Runs them as the user, the last of which leaves a container in the background; returns the Daemon."""
        script = f"cd {CHECKOUT}\n" + "\n".join(blocks) + "\nwait $!\n"
        daemon = harness.Daemon([*SETPRIV, "sh", "-ec", script], env=ENV, cwd="/")
        self.addCleanup(self.end, daemon)
        daemon.wait_log(r"^status: local 0/")
        for port in (2525, 2110):
            wait_for(lambda port=port: self.listens(port), f"port {port}")
        return daemon

    def end(self, daemon):
        """Kills what is left; a namespace ends with its process 1."""
        for pid in harness.family(daemon.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        daemon.stop()

    @staticmethod
    def listens(port):
        with open("/proc/net/tcp") as f, open("/proc/net/tcp6") as g:
            return re.search(rf":{port:04X} 0+:0000 0A", f.read() + g.read())

    def ends_by_term(self, daemon):
        """As the page says: TERM to the child of unshare."""
        numbers = {pid: status(pid).get("NSpid", "").split() for pid in harness.family(daemon.pid)}
        inside = [pid for pid, n in numbers.items() if len(n) > len(status(os.getpid())["NSpid"].split()) and n[-1] == "1"]
        self.assertEqual(len(inside), 1)
        unshare = int(status(inside[0])["PPid"])
        sh(f"pkill -TERM -P {unshare}", user=USER)
        self.assertEqual(daemon.process.wait(harness.TIMEOUT), 0, daemon.log())
        self.assertRegex(daemon.log(), r"(?m)^status: exiting$")
        self.assertFalse({"qmail-send", "qmail-queued", "tcpserver "} & set(processes()))

    @staticmethod
    def session_with_mail():
        client = poplib.POP3("127.0.0.1", 2110, timeout=harness.TIMEOUT)
        client.user("joe")
        client.pass_("secret")
        if client.stat()[0] == 1:
            return client
        client.quit()
        return None

    def mail_goes_round(self, daemon):
        """In by SMTP, delivered, out by POP3; returns the message."""
        subject = f"s{os.urandom(6).hex()}"
        with smtplib.SMTP("127.0.0.1", 2525, local_hostname="client.example", timeout=harness.TIMEOUT) as client:
            client.sendmail("far@elsewhere.example", ["joe@mail.example.org"], f"Subject: {subject}\r\n\r\nhello\r\n".encode())
        daemon.wait_log(r"^delivery 1: success: did_1\+0\+0/$")
        client = poplib.POP3("127.0.0.1", 2110, timeout=harness.TIMEOUT)
        client.user("joe")
        self.assertRaises(poplib.error_proto, client.pass_, "wrong")
        client.close()
        client = wait_for(self.session_with_mail, "a message of an age that qmail-pop3d shows")
        found = self.who("qmail-pop3d")
        text = b"\n".join(client.retr(1)[1]).decode()
        client.quit()
        self.assertIn(f"Subject: {subject}", text)
        return text, found

    def who(self, name):
        """(uid, gid) of the processes of this name, of which none can gain a privilege."""
        found = set()
        for pid in processes().get(name, ()):
            of = status(pid)
            if not of:
                continue
            self.assertEqual(of["NoNewPrivs"], "1", name)
            found.add((int(of["Uid"].split()[0]), int(of["Gid"].split()[0])))
        return found

    def no_bits(self, top):
        self.assertEqual(sh(f"find {top} -xdev -type f -perm /6000"), "")
        self.assertGreater(int(sh(f"find {top} -xdev -type f | wc -l")), 50)
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                if os.path.isfile(path) and not os.path.islink(path):
                    self.assertNotIn("security.capability", os.listxattr(path), path)

    def test_one_account_runs_all_as_the_one_user_of_the_namespace(self):
        daemon = self.run_page(commands("One account"))
        _, pop3d = self.mail_goes_round(daemon)
        me = {(uid(USER), gid(USER))}
        self.assertEqual(pop3d, me)
        for name in ("qmail-send", "qmail-lspawn", "qmail-rspawn", "qmail-clean", "qmail-queued", "tcpserver "):
            self.assertEqual(self.who(name), me, name)
        with open(f"/proc/{next(iter(processes()['qmail-send']))}/uid_map") as f:
            self.assertEqual(f.read().split(), [str(uid(USER)), str(uid(USER)), "1"])
        self.no_bits(f"{HOME}/mail")
        self.ends_by_term(daemon)

    def test_separate_users_are_ids_of_the_subordinate_range(self):
        *build, removal = commands("Separate users")
        daemon = self.run_page(build)
        top = f"{HOME}/machine"
        with open(f"{top}/var/qmail/users/ids") as f:
            ids = {line.split(":")[0]: [int(n) for n in line.split(":")[1:]] for line in f if not line.startswith("#")}
        _, pop3d = self.mail_goes_round(daemon)

        def outside(number, of):
            return pwd.getpwnam(USER)[of] if number == 0 else RANGE.start + number - 1
        for name, role, group in (("qmail-send", "qmails", "qmails"), ("qmail-clean", "qmailq", "qmailq"),
                                  ("qmail-queued", "qmailq", "qmailq"), ("qmail-rspawn", "qmailr", "qmailr"),
                                  ("qmail-lspawn", "root", "qmailq")):
            self.assertEqual(self.who(name), {(outside(ids[role][0], 2), outside(ids[group][1], 3))}, name)
        self.assertEqual(self.who("tcpserver "), {(outside(ids["qmaild"][0], 2), outside(ids["qmaild"][1], 3))})
        self.assertEqual({user for user, _ in self.who("qmail-authd")}, {outside(0, 2)})
        with open(f"{top}/etc/passwd") as f:
            joe = re.search(r"^joe:x?:(\d+):(\d+):", f.read(), re.M)
        self.assertEqual(pop3d, {(outside(int(joe[1]), 2), outside(int(joe[2]), 3))})
        for path, role in (("queue/mess", "qmailq"), ("queue/info", "qmails"), ("alias", "alias"), ("control", "root")):
            self.assertEqual(os.stat(f"{top}/var/qmail/{path}").st_uid, outside(ids[role][0], 2), path)
        self.no_bits(top)
        self.ends_by_term(daemon)
        sh(f"top={top}\ncd {CHECKOUT}\n{removal}", user=USER, group=USER, extra_groups=[], env=ENV)
        self.assertFalse(os.path.exists(top))


if __name__ == "__main__":
    unittest.main()
