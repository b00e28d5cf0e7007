"""Run scripts and units: a system home under runit, daemontools and systemd, as these really run it."""

import os
import poplib
import re
import shutil
import signal
import smtplib
import subprocess
import time
import unittest

from tests import harness, sandbox
from tests.harness import ROOT, wait_for
from tests.test_system_home import gid, made, script, sh, uid

TOOLS = os.path.join(ROOT, "tests", "tools", "root", "usr", "bin")
SERVICES = ["qmail-queued", "qmail-send", "qmail-smtpd", "qmail-authd", "qmail-pop3d"]
PASSWORD = "correct horse"

# What each process is, by the name it was started with: user, group and the further groups.
WHO = {"qmail-send": ("qmails", "qmail"), "qmail-clean": ("qmailq", "qmail"), "qmail-rspawn": ("qmailr", "qmail"),
       "qmail-lspawn": ("root", "qmail"), "qmail-queued": ("qmailq", "qmail"), "tcpserver 25": ("qmaild", "nofiles"),
       "qmail-authd": ("root", None), "tcpserver 110": ("qmaild", "nofiles")}


def tools(*names):
    """Paths of programs that scripts/test-packages has unpacked."""
    for name in names:
        if not os.path.exists(os.path.join(TOOLS, name)):
            raise unittest.SkipTest(f"{name} is not here (scripts/test-packages unpacks it)")
    return [os.path.join(TOOLS, name) for name in names]


def processes():
    """{name: {pid}} of what runs here; tcpserver's name has the port."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                argv = f.read().decode("latin-1").split("\0")
            with open(f"/proc/{pid}/stat") as f:
                zombie = f.read().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        name = os.path.basename(argv[0])
        if name == "tcpserver":
            # A session that has not become qmail-smtpd yet is a child of the same name.
            name += " " + "".join(port for port in ("25", "110") if port in argv)
        if argv[0] and not zombie:
            found.setdefault(name, set()).add(int(pid))
    return found


def status(pid):
    """What the kernel says of a process; nothing when it is gone."""
    try:
        with open(f"/proc/{pid}/status") as f:
            return dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
    except (FileNotFoundError, ProcessLookupError):
        return {}


class Supervised:
    """What holds under every supervisor. A class of these says how to begin, start, stop, restart and read a log."""

    HOME = "/var/mail/home"  # not the usual place: the units must know it
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        os.chmod("/var/mail", 0o755)
        made(cls.HOME, "--me", "test.example")
        cls.env = {"PATH": f"{cls.HOME}/bin:{os.environ['PATH']}", "QMAIL_HOME": cls.HOME}
        sh("useradd -m joe && chmod 711 /home/joe")
        sh("chpasswd", input=f"joe:{PASSWORD}\n")
        sh("maildirmake Maildir", cwd="/home/joe", env=cls.env, user="joe", group="joe", extra_groups=[])
        sh("usermod -d $QMAIL_HOME/alias alias", env=cls.env)
        cls.begin()
        for name in WHO:
            if not name.startswith("tcpserver"):  # a socket unit starts it when it is needed
                cls.one(name)
        cls.serves()

    @classmethod
    def units(cls, kind, directory, *more):
        done = script("mkunits", kind, directory, "--home", cls.HOME, *more)
        if done.returncode:
            raise AssertionError(f"mkunits: exit {done.returncode}\n{done.stderr}")
        return done.stdout

    @classmethod
    def serves(cls):
        """Waits until SMTP and POP3 are there."""
        tries = []

        def greeted():
            begun = time.monotonic()
            try:
                for name, port, connect in (("SMTP", 25, smtplib.SMTP), ("POP3", 110, poplib.POP3)):
                    connect("127.0.0.1", port, timeout=harness.TIMEOUT).close()
                return True
            except (OSError, smtplib.SMTPException, poplib.error_proto) as e:
                tries.append(f"{name} {time.monotonic() - begun:.1f} s: {e!r}")
                return False
        try:
            wait_for(greeted, "SMTP and POP3 to be there")
        except AssertionError as e:
            # Whether one try took all the time, or each failed at once, says where to look.
            raise AssertionError(f"{e}; {len(tries)} tries, the last: {tries[-3:]}; there are {processes()}") from None

    @classmethod
    def one(cls, name, other_than=()):
        """Waits for exactly one process of this name, none of them one of these; returns its pid."""
        def look():
            found = processes().get(name, set())
            return found if len(found) == 1 and not found & set(other_than) else None
        try:
            return next(iter(wait_for(look, f"one {name}")))
        except AssertionError as e:
            raise AssertionError(f"{e}\n{processes()}\n" + "".join(cls.log(s)[-2000:] for s in SERVICES)) from None

    @staticmethod
    def smtp():
        return smtplib.SMTP("127.0.0.1", 25, local_hostname="client.example", timeout=harness.TIMEOUT)

    def send(self, client, recipient="joe@test.example"):
        """One message into an SMTP session; returns its subject."""
        subject = f"s{os.urandom(6).hex()}"
        client.sendmail("far@elsewhere.example", [recipient], f"Subject: {subject}\r\n\r\nhello\r\n".encode())
        return subject

    def arrived(self, subject, directory="/home/joe/Maildir/new"):
        def look():
            for name in os.listdir(directory):
                with open(os.path.join(directory, name)) as f:
                    if subject in (text := f.read()):
                        return text
            return None
        try:
            return wait_for(look, f"mail in {directory}")
        except AssertionError as e:
            raise AssertionError(f"{e}\n" + "".join(self.log(s)[-2000:] for s in SERVICES)) from None

    def wait_log(self, service, pattern):
        return wait_for(lambda: re.search(pattern, self.log(service), re.M), f"{pattern} in the log of {service}")

    @staticmethod
    def pop3():
        """A session of joe's."""
        client = poplib.POP3("127.0.0.1", 110, timeout=harness.TIMEOUT)
        client.user("joe")
        client.pass_(PASSWORD)
        return client

    def flows(self):
        """A message goes in by SMTP, into the mailbox, and out by POP3; returns its text in the mailbox."""
        with self.smtp() as client:
            subject = self.send(client)
        text = self.arrived(subject)
        for name in os.listdir("/home/joe/Maildir/new"):
            past = os.path.getmtime(f"/home/joe/Maildir/new/{name}") - 5  # the newest are left for the next session
            os.utime(f"/home/joe/Maildir/new/{name}", (past, past))
        client = self.pop3()
        count = client.stat()[0]
        found = [n + 1 for n in range(count) if f"Subject: {subject}".encode() in client.top(n + 1, 0)[1]]
        self.assertEqual(len(found), 1)
        client.dele(found[0])
        client.quit()
        return text

    def test_mail_comes_in_and_is_delivered_and_each_service_has_its_log(self):
        self.assertRegex(self.flows(), r"\nReceived: \(qmail \d+ invoked from network\);[^\n]*\n"
                                       r"Received: from unknown \(HELO client.example\) \(127.0.0.1\)\n  by test.example with SMTP")
        self.wait_log("qmail-send", r"starting delivery \d+: msg \d+ to local joe@test.example$")
        self.wait_log("qmail-smtpd", r"tcpserver: ok \d+ test.example:127.0.0.1:25 :127.0.0.1::\d+$")
        self.wait_log("qmail-pop3d", r"tcpserver: ok \d+ test.example:127.0.0.1:110 :127.0.0.1::\d+$")
        self.wait_log("qmail-authd", r"joe")

    def test_each_daemon_is_who_it_should_be_and_has_no_further_group(self):
        self.flows()
        for name, (user, group) in WHO.items():
            of = status(self.one(name))
            self.assertEqual(of["Uid"].split(), [str(uid(user))] * 4, name)
            if group:
                self.assertEqual((of["Gid"].split(), of["Groups"].split()), ([str(gid(group))] * 4, [str(gid(group))]), name)
        self.assertNotIn("qmail-start", processes())  # no keeper beside the service

    def test_a_door_that_is_stopped_stays_stopped_and_mail_is_put_off(self):
        with self.smtp() as client:
            self.stop("qmail-queued")
            self.assertNotIn("qmail-queued", processes())
            # The client inside qmail-smtpd tries for some seconds: time enough for a keeper to start another.
            with self.assertRaises(smtplib.SMTPDataError) as refused:
                self.send(client)
            self.assertEqual(refused.exception.smtp_code // 100, 4)
            self.assertNotIn("qmail-queued", processes())
            self.start("qmail-queued")
            subject = self.send(client)
        self.arrived(subject)

    def test_mail_is_accepted_while_delivery_is_stopped(self):
        self.stop("qmail-send")
        wait_for(lambda: not {"qmail-send", "qmail-lspawn", "qmail-rspawn", "qmail-clean"} & set(processes()), "delivery to end")
        with self.smtp() as client:
            subject = self.send(client)
        self.start("qmail-send")
        self.arrived(subject)

    def test_a_session_goes_on_while_its_server_is_started_again(self):
        with self.smtp() as client:
            client.ehlo()
            old = self.one("tcpserver 25")
            self.restart("qmail-smtpd")
            self.serves()
            self.one("tcpserver 25", [old])
            subject = self.send(client)
        self.arrived(subject)
        client = self.pop3()
        old, authds = self.one("tcpserver 110"), processes()["qmail-authd"]  # with the child that guards the session
        self.restart("qmail-pop3d")
        self.restart("qmail-authd")
        self.serves()
        self.one("tcpserver 110", [old])
        wait_for(lambda: processes().get("qmail-authd", set()) - authds, "a new qmail-authd")
        client.noop()
        client.quit()

    def test_a_wrong_password_is_refused(self):
        client = poplib.POP3("127.0.0.1", 110, timeout=harness.TIMEOUT)
        self.addCleanup(client.close)
        client.user("joe")
        self.assertRaisesRegex(poplib.error_proto, r"-ERR \[AUTH\]", client.pass_, "wrong")

    def test_whatever_is_killed_is_started_again_and_mail_flows(self):
        self.flows()
        for name in WHO:
            with self.subTest(name):
                old = self.one(name)
                os.kill(old, signal.SIGKILL)
                if name.startswith("tcpserver"):
                    self.serves()
                self.one(name, [old])
                self.flows()

    def test_new_domains_count_after_a_hup(self):
        for name in ("locals", "rcpthosts"):
            with open(f"{self.HOME}/control/{name}", "a") as f:
                f.write("more.example\n")
        self.reload("qmail-send")

        def starts():
            return re.findall(r"starting delivery \d+: msg \d+ to (\w+) joe@more.example$", self.log("qmail-send"), re.M)

        def local():
            # Nothing says when the signal has come: one of these messages is the first behind it.
            before = len(starts())
            with self.smtp() as client:
                self.send(client, "joe@more.example")
            wait_for(lambda: len(starts()) > before, "a delivery to begin")
            return "local" in starts()
        wait_for(local, "the new domain to be local")

    def test_no_unit_needs_a_privilege_bit(self):
        self.assertEqual(sh(f"find {self.HOME} -type f -perm /6000"), "")


class Scanned(Supervised):
    """runit and daemontools: a directory of directories with run scripts, and a process that looks at it."""

    DIRECTORY = "/var/service"

    @classmethod
    def begin(cls):
        os.mkdir(cls.DIRECTORY)
        for path in tools(*cls.PROGRAMS):
            shutil.copy(path, cls.HOME + "/bin")
        cls.units(cls.KIND, cls.DIRECTORY, "--log", "/var/logs/qmail")
        scanner = harness.Daemon([f"{cls.HOME}/bin/{cls.PROGRAMS[0]}", cls.DIRECTORY], env=cls.env, cwd="/")
        cls.addClassCleanup(scanner.stop)

    @classmethod
    def log(cls, service):
        try:
            with open(f"/var/logs/qmail/{service}/current", encoding="latin-1") as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def test_logs_are_written_by_qmaill(self):
        self.flows()
        for service in SERVICES:
            found = os.stat(f"/var/logs/qmail/{service}")
            self.assertEqual((found.st_uid, found.st_gid, found.st_mode & 0o7777), (uid("qmaill"), gid("nofiles"), 0o750))
        for pid in processes()[self.LOGGER]:
            self.assertEqual(status(pid)["Uid"].split(), [str(uid("qmaill"))] * 4)
            self.assertEqual(status(pid)["Groups"].split(), [str(gid("nofiles"))])
        self.assertEqual(len(processes()[self.LOGGER]), len(SERVICES))


class Mkunits(unittest.TestCase):
    def setUp(self):
        self.top = harness.scratch()
        self.addCleanup(shutil.rmtree, self.top)

    def mkunits(self, *argv):
        done = script("mkunits", *argv)
        return done.returncode, done.stdout, done.stderr

    def files(self):
        found = {}
        for directory, _, names in os.walk(self.top):
            for name in names:
                path = os.path.join(directory, name)
                with open(path) as f:
                    found[os.path.relpath(path, self.top)] = (os.stat(path).st_mode & 0o777, f.read())
        return found

    def test_run_scripts_are_for_the_home_and_the_log_that_are_named(self):
        for kind in ("runit", "daemontools"):
            self.assertEqual(self.mkunits(kind, self.top, "--home", "/srv/mail-1", "--log", "/srv/log"), (0, "", ""))
            found = self.files()
            self.assertEqual(set(found), {f"{s}/{part}" for s in SERVICES for part in ("run", "log/run")})
            for name, (mode, text) in found.items():
                self.assertEqual(mode, 0o755, name)
                self.assertNotIn("@", text.replace('"$@"', ""), name)
                self.assertNotIn("/var/", text, name)
                self.assertEqual(harness.run(["sh", "-n"], text.encode()).code, 0, name)
                self.assertIn(f"/srv/log/{name.split('/')[0]}" if "log/" in name else "QMAIL_HOME=/srv/mail-1 ", text)
            for name in SERVICES:
                shutil.rmtree(os.path.join(self.top, name))

    def test_unit_files_are_for_the_home_that_is_named(self):
        self.assertEqual(self.mkunits("systemd", self.top, "--home", "/srv/mail-1"), (0, "", ""))
        for name, (mode, text) in self.files().items():
            self.assertEqual(mode, 0o644, name)
            self.assertNotRegex(text, r"/var/qmail|@[A-Z]+@", name)
        self.assertEqual({n for n in self.files() if n.endswith(".service")}, {f"{s}.service" for s in SERVICES})

    def test_what_is_there_is_left_as_it_is(self):
        self.mkunits("runit", self.top)
        before = self.files()
        with open(f"{self.top}/qmail-smtpd/run", "w") as f:
            f.write("mine")
        shutil.rmtree(f"{self.top}/qmail-send")
        code, out, err = self.mkunits("runit", self.top)
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(out.count("is there and is left as it is"), len(SERVICES) - 1)
        self.assertEqual(self.files(), {**before, "qmail-smtpd/run": (before["qmail-smtpd/run"][0], "mine")})

    def test_what_cannot_be_is_refused_and_nothing_is_written(self):
        os.makedirs(f"{self.top}/own/users")
        with open(f"{self.top}/own/users/ids", "w") as f:
            f.write("owner:1000:1000\n")
        os.mkdir(f"{self.top}/to")
        for argv, code, reason in (
                ([], 100, "systemd, runit or daemontools?"), (["openrc", "/"], 100, "systemd, runit or daemontools?"),
                (["runit"], 100, "where shall they go?"), (["runit", "x", "y"], 100, "one argument too many: y"),
                (["runit", "--home"], 100, "--home needs an argument"), (["--force"], 100, "unknown option --force"),
                (["runit", f"{self.top}/to", "--home", "mail"], 100, "mail does not begin with /"),
                (["runit", f"{self.top}/to", "--home", "/a b"], 111, "/a b: for units, a path is of letters"),
                (["runit", f"{self.top}/to", "--log", "/a%b"], 111, "/a%b: for units, a path is of letters"),
                (["runit", f"{self.top}/to", "--home", f"{self.top}/own"], 111, "own is an own home"),
                (["runit", f"{self.top}/none"], 111, f"there is no directory {self.top}/none")):
            with self.subTest(argv):
                got, out, err = self.mkunits(*argv)
                self.assertEqual((got, out), (code, ""))
                self.assertIn(reason, err)
        self.assertEqual(os.listdir(f"{self.top}/to"), [])
        self.assertEqual(self.mkunits("--help")[0], 0)


@sandbox.alone
class Runit(Scanned, unittest.TestCase):
    KIND = "runit"
    PROGRAMS = ["runsvdir", "runsv", "sv", "chpst", "svlogd"]
    LOGGER = "svlogd"

    def sv(self, command, service, want):
        done = subprocess.run(["sv", "-w", str(harness.TIMEOUT), command, f"{self.DIRECTORY}/{service}"], env=self.env,
                              capture_output=True, text=True, timeout=2 * harness.TIMEOUT)
        self.assertRegex(done.stdout, rf"^ok: {want}: ", done.stderr)
        self.assertEqual(done.returncode, 0)

    def start(self, service):
        self.sv("up", service, "run")

    def stop(self, service):
        self.sv("down", service, "down")

    def restart(self, service):
        self.sv("restart", service, "run")

    def reload(self, service):
        sh(f"sv hup {self.DIRECTORY}/{service}", env=self.env)


@sandbox.alone
class Daemontools(Scanned, unittest.TestCase):
    KIND = "daemontools"
    PROGRAMS = ["svscan", "supervise", "svc", "svstat", "setuidgid", "multilog"]
    LOGGER = "multilog"

    def svc(self, option, service, want):
        sh(f"svc {option} {self.DIRECTORY}/{service}", env=self.env)
        wait_for(lambda: re.search(want, sh(f"svstat {self.DIRECTORY}/{service}", env=self.env)), f"{service} to be {want}")

    def start(self, service):
        self.svc("-u", service, r": up \(pid ")

    def stop(self, service):
        self.svc("-d", service, r": down ")

    def restart(self, service):
        sh(f"svc -t {self.DIRECTORY}/{service}", env=self.env)

    def reload(self, service):
        sh(f"svc -h {self.DIRECTORY}/{service}", env=self.env)


# Inside new namespaces, as process 1: a machine that has no units but ours and what these need, and nothing
# of the real one that systemd could change. A cgroup of its own must have been entered before.
SYSTEMD = """
mount --make-rprivate / && mkdir -p /var/boot/units /var/boot/none && cd /lib/systemd/system &&
cp basic.target sysinit.target sockets.target paths.target slices.target timers.target local-fs.target remote-fs.target \
    network.target nss-user-lookup.target multi-user.target shutdown.target umount.target \
    systemd-journald.service systemd-journald.socket /var/boot/units/ && cd / &&
mkdir /var/boot/units/sysinit.target.wants && ln -s ../systemd-journald.service /var/boot/units/sysinit.target.wants/ &&
for path in system-generators user-generators system-environment-generators; do
    test ! -d /lib/systemd/$path || mount --bind /var/boot/none /lib/systemd/$path || exit; done &&
mount --bind /var/boot/units /lib/systemd/system && rm -rf /etc/systemd/system && mkdir -p /etc/systemd/system &&
mkdir /var/boot/dev && mount -t tmpfs -o mode=755 none /var/boot/dev &&
for name in null zero full random urandom tty; do
    touch /var/boot/dev/$name && mount --bind /dev/$name /var/boot/dev/$name || exit; done &&
ln -s /proc/self/fd /var/boot/dev/fd && mkdir /var/boot/dev/shm /var/boot/dev/pts &&
mount -t devpts -o newinstance,ptmxmode=666 none /var/boot/dev/pts && ln -s pts/ptmx /var/boot/dev/ptmx && mount --move /var/boot/dev /dev &&
mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys &&
umount -R /sys && mount -t sysfs -o ro none /sys && mount -t cgroup2 none /sys/fs/cgroup &&
mount -t tmpfs -o mode=755 none /run && rm -rf /var/run && ln -s /run /var/run &&
echo 0123456789abcdef0123456789abcdef >/etc/machine-id &&
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=test \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no
"""


@sandbox.alone
class Systemd(Supervised, unittest.TestCase):
    HOME = "/home/mail"  # where the units hide everything else

    @classmethod
    def begin(cls):
        if not os.path.exists("/lib/systemd/systemd"):
            raise unittest.SkipTest("systemd is not installed")
        cls.own_cgroup()
        cls.machine = harness.Daemon(["unshare", "-mpCui", "--fork", "--mount-proc", "--kill-child", "sh", "-c", SYSTEMD])
        cls.addClassCleanup(cls.machine.stop, signal.SIGKILL)
        wait_for(lambda: cls.machine.process.poll() is not None or cls.ctl("is-system-running").strip() == "running",
                 f"systemd to run: {cls.machine.log()}")
        cls.units("systemd", f"/proc/{cls.pid()}/root/etc/systemd/system")
        cls.ctl("daemon-reload")
        cls.ctl("enable", "--now", "qmail-send", "qmail-queued", "qmail-authd", "qmail-smtpd.socket", "qmail-pop3d.socket")

    @classmethod
    def own_cgroup(cls):
        """Enters a new cgroup, of which systemd's will be children; gone at the end."""
        sh("mkdir /var/cgroup && mount -t cgroup2 none /var/cgroup")
        with open("/proc/self/cgroup") as f:
            ours = re.search(r"^0::(.*)$", f.read(), re.M)[1]
        cls.cgroup = f"/var/cgroup{ours}/qmail-units-{os.urandom(6).hex()}"
        os.mkdir(cls.cgroup)

        def removed():
            try:
                for directory, _, _ in os.walk(cls.cgroup, topdown=False):
                    os.rmdir(directory)
            except OSError:  # something in it is still ending
                return False
            return True
        cls.addClassCleanup(lambda: wait_for(removed, f"{cls.cgroup} to be empty"))
        with open(cls.cgroup + "/cgroup.procs", "w") as f:
            f.write("0")

        def leave():
            with open(f"/var/cgroup{ours}/cgroup.procs", "w") as f:
                f.write("0")
        cls.addClassCleanup(leave)

    @classmethod
    def pid(cls):
        """systemd's process id, as seen from here."""
        for pid, name in harness.family(cls.machine.pid).items():
            if name == "systemd" and cls.parent(pid) == cls.machine.pid:
                return pid
        return 0

    @staticmethod
    def parent(pid):
        return int(status(pid).get("PPid", 0))

    @classmethod
    def inside(cls, *argv):
        return subprocess.run(["nsenter", "-a", "-t", str(cls.pid()), *argv], capture_output=True, text=True,
                              timeout=2 * harness.TIMEOUT)

    @classmethod
    def ctl(cls, *argv):
        return cls.inside("systemctl", *argv).stdout

    @classmethod
    def log(cls, service):
        return cls.inside("journalctl", "-q", "--no-pager", "-o", "cat", "-u", service).stdout

    def do(self, verb, service):
        done = self.inside("systemctl", verb, service)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def start(self, service):
        self.do("start", service)

    def stop(self, service):
        self.do("stop", service)

    def restart(self, service):
        self.do("restart", service)

    def reload(self, service):
        self.do("reload", service)

    # What is shut in, and what is as free as the users' programs below it need.
    SHUT_IN = ["qmail-queued", "qmail-smtpd", "qmail-pop3d"]
    FREE = ["qmail-send", "qmail-authd"]

    def test_systemd_finds_nothing_to_say_of_the_units(self):
        files = [f"/etc/systemd/system/{s}.service" for s in SERVICES]
        files += [f"/etc/systemd/system/{s}.socket" for s in ("qmail-smtpd", "qmail-pop3d")]
        done = self.inside("systemd-analyze", "verify", "--man=no", *files)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        for service in self.SHUT_IN:
            done = self.inside("systemd-analyze", "security", "--threshold=20", "--no-pager", service)
            self.assertEqual(done.returncode, 0, done.stdout)

    def test_logins_with_the_programs_of_the_home_need_no_privilege_to_gain(self):
        """As the unit's comment says."""
        drop_in = f"/proc/{self.pid()}/root/etc/systemd/system/qmail-authd.service.d"
        os.mkdir(drop_in)
        with open(f"{drop_in}/override.conf", "w") as f:
            f.write("[Service]\nNoNewPrivileges=yes\nRestrictSUIDSGID=yes\n")
        try:
            self.ctl("daemon-reload")
            self.restart("qmail-authd")
            of = status(self.main_pid("qmail-authd"))
            self.assertEqual((of["NoNewPrivs"], of["Seccomp"]), ("1", "2"))
            self.flows()
        finally:
            shutil.rmtree(drop_in)
            self.ctl("daemon-reload")
            self.restart("qmail-authd")

    def test_without_its_socket_a_server_is_down(self):
        self.flows()
        self.stop("qmail-smtpd.socket")
        self.assertRaises(ConnectionRefusedError, self.smtp)
        self.assertEqual(self.ctl("is-active", "qmail-smtpd").strip(), "inactive")
        self.start("qmail-smtpd.socket")
        self.flows()

    def main_pid(self, service):
        """The main process of a service, as seen from here."""
        number = self.ctl("show", "-P", "MainPID", service).strip()
        for pids in processes().values():
            for pid in pids:
                if status(pid).get("NSpid", "").split()[1:] == [number]:
                    return pid
        raise AssertionError(f"{service} has no process {number}")

    def test_what_faces_strangers_can_gain_nothing(self):
        self.flows()
        for service in self.SHUT_IN:
            of = status(self.main_pid(service))
            self.assertEqual((of["NoNewPrivs"], of["Seccomp"], int(of["CapBnd"], 16), int(of["CapEff"], 16)), ("1", "2", 0, 0), service)
            shown = dict(line.split("=", 1) for line in self.ctl("show", service).splitlines())
            for name, value in (("NoNewPrivileges", "yes"), ("RestrictSUIDSGID", "yes"), ("ProtectSystem", "strict"),
                                ("MemoryDenyWriteExecute", "yes"), ("PrivateDevices", "yes"), ("ProtectHome", "tmpfs")):
                self.assertEqual(shown[name], value, (service, name))

    def test_delivery_is_as_free_as_programs_of_users_need_it(self):
        self.flows()
        for service in self.FREE:
            shown = dict(line.split("=", 1) for line in self.ctl("show", service).splitlines())
            self.assertEqual((shown["NoNewPrivileges"], shown["RestrictSUIDSGID"]), ("no", "no"))
            # qmail-send itself may have shut itself in since.
        for name in ("qmail-lspawn", "qmail-authd"):
            of = status(self.one(name))
            self.assertEqual((of["NoNewPrivs"], of["Seccomp"]), ("0", "0"), name)

    def in_mounts_of(self, service, command):
        done = subprocess.run(["nsenter", "-m", "-t", str(self.main_pid(service)), "sh", "-c", command],
                              capture_output=True, text=True, timeout=harness.TIMEOUT)
        return done.returncode, done.stdout + done.stderr

    def test_each_sees_only_its_part_of_the_machine(self):
        self.flows()
        for service, writable in (("qmail-queued", ["queue/mess", "queue/pid", "run"]), ("qmail-smtpd", []),
                                  ("qmail-pop3d", [])):
            for place in ("", "bin", "control", "users", "tcp", "queue/mess", "queue/pid", "run"):
                code, said = self.in_mounts_of(service, f"cd {self.HOME}/{place} && : >probe && rm probe")
                if place in writable:
                    self.assertEqual((code, said), (0, ""), (service, place))
                else:
                    self.assertRegex(said, "Read-only file system", (service, place))
            self.assertEqual(self.in_mounts_of(service, "ls /home /tmp"), (0, "/home:\nmail\n\n/tmp:\n"))
            self.assertRegex(self.in_mounts_of(service, ": >/etc/probe")[1], "Read-only file system")
        self.assertEqual(self.in_mounts_of("qmail-send", "test -d /home/joe/Maildir"), (0, ""))

    # Tells what the program of a filter or a user can do.
    PROBE = """#!/bin/sh
try() {
    name=$1
    shift
    if "$@" >/dev/null 2>&1; then printf '%s ' "$name"; fi
}
file=$(mktemp)
try temporary test -f "$file"
try setgid chmod 2755 "$file"
try others test -d /home/joe
try processes test -d /proc/1
try root sh -c 'test "$(/var/mail/set-uid-id -u)" = 0'
try namespaces unshare -U true
try system sh -c ': >/var/mail/open/probe'
rm -f "$file"
"""

    def test_programs_below_them_have_just_that_freedom(self):
        sh("cp /usr/bin/id /var/mail/set-uid-id && chmod 4755 /var/mail/set-uid-id && mkdir -m 1777 /var/mail/open")
        for name, text in (("probe", self.PROBE), ("filter", "#!/bin/sh\ncat >/dev/null\nprintf 'Dcan: %s.' \"$(probe)\" >&6\nexit 82\n")):
            with open(f"{self.HOME}/bin/{name}", "w") as f:
                f.write(text)
            os.chmod(f"{self.HOME}/bin/{name}", 0o755)
        with open(f"{self.HOME}/tcp/smtp", "r+") as f:
            rules = f.read()
            f.seek(0)
            f.write(f'127.0.0.2:allow,QMAILQUEUE="{self.HOME}/bin/filter"\n' + rules)
        sh("tcprules smtp.cdb smtp.tmp <smtp", cwd=f"{self.HOME}/tcp", env=self.env)
        with smtplib.SMTP("127.0.0.1", 25, local_hostname="client.example", source_address=("127.0.0.2", 0),
                          timeout=harness.TIMEOUT) as client, self.assertRaises(smtplib.SMTPDataError) as refused:
            self.send(client)
        self.assertRegex(refused.exception.smtp_error.decode(), r"can: temporary\s*\.")
        with open("/home/joe/.qmail-probe", "w") as f:
            f.write("|probe >/home/joe/probe.new && mv /home/joe/probe.new /home/joe/probe\n")
        sh("chown joe:joe /home/joe/.qmail-probe && chmod 644 /home/joe/.qmail-probe")
        with self.smtp() as client:
            self.send(client, "joe-probe@test.example")
        wait_for(lambda: os.path.exists("/home/joe/probe"), "the program of joe")
        with open("/home/joe/probe") as f:
            can = set(f.read().split())
        self.assertEqual(can | {"namespaces"}, {"temporary", "setgid", "others", "processes", "root", "system", "namespaces"})


if __name__ == "__main__":
    unittest.main()
