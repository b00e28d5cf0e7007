"""A system home: made, checked and mended by scripts, and a whole system running there as separate users."""

import grp
import os
import poplib
import pwd
import re
import shutil
import smtplib
import stat
import socketserver
import subprocess
import threading
import unittest

from tests import harness, sandbox
from tests.harness import BIN, ROOT, Daemon, wait_for

HOME = "/var/qmail"
ROLES = ["alias", "qmaild", "qmaill", "root", "qmailp", "qmailq", "qmailr", "qmails"]
ENV = {"PATH": f"{HOME}/bin:{os.environ['PATH']}", "LANG": "C.UTF-8"}


def sh(command, **more):
    """Runs a line of shell that must succeed; returns what it prints."""
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, **more)
    if done.returncode:
        raise AssertionError(f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def script(name, *argv, **more):
    return subprocess.run([os.path.join(ROOT, "scripts", name), *argv], capture_output=True, text=True, **more)


def mkhome(*argv, **more):
    return script("mkhome", "--system", *argv, "--bin", BIN, **more)


def made(*argv, **more):
    done = mkhome(*argv, **more)
    if done.returncode:
        raise AssertionError(f"mkhome --system {argv}: exit {done.returncode}\n{done.stderr}")
    return done


def read(*names):
    with open(os.path.join(HOME, *names), "rb") as f:
        return f.read().decode()


def write(name, text):
    with open(os.path.join(HOME, name), "w") as f:
        f.write(text)


def everything(top=HOME):
    """{path: (mode, uid, gid, content or target)} of a tree."""
    found = {}
    for d, dirs, files in os.walk(top):
        for path in [d] + [os.path.join(d, name) for name in dirs + files]:
            s = os.lstat(path)
            content = None
            if stat.S_ISREG(s.st_mode):
                with open(path, "rb") as f:
                    content = hash(f.read())
            elif stat.S_ISLNK(s.st_mode):
                content = os.readlink(path)
            found[os.path.relpath(path, top)] = (oct(s.st_mode), s.st_uid, s.st_gid, content)
    return found


def uid(name):
    return pwd.getpwnam(name).pw_uid


def gid(name):
    return grp.getgrnam(name).gr_gid


@sandbox.alone
class Made(unittest.TestCase):
    """Installed once; each test leaves the home as it should be."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        sh(f"make -s -C {ROOT} install", env={**os.environ, "ME": "mail.test.example", "QMAIL_BIN": BIN})

    def setUp(self):
        self.assertEqual(self.check(), [])

    def check(self, home=HOME):
        done = script("instcheck", home)
        self.assertEqual(done.stderr, "")
        self.assertEqual(done.returncode, 1 if done.stdout else 0)
        return done.stdout.splitlines()

    def test_the_accounts_are_made_and_written_down(self):
        for role in ROLES[1:3] + ["qmailp", "alias"]:
            self.assertEqual(pwd.getpwnam(role).pw_gid, gid("nofiles"), role)
        for role in ("qmailq", "qmailr", "qmails"):
            self.assertEqual(pwd.getpwnam(role).pw_gid, gid("qmail"), role)
        self.assertEqual(pwd.getpwnam("alias").pw_dir, HOME + "/alias")
        self.assertEqual(read("users/ids"), "".join(f"{r}:{uid(r)}:{pwd.getpwnam(r).pw_gid}\n" for r in ROLES))
        self.assertEqual(len({uid(role) for role in ROLES}), 8)

    def test_run_scripts_of_the_documents_ask_for_accounts_that_are_there(self):
        asked = set(sh(f"grep -rhoE '\\bid -[ug] \\w+' {ROOT}/README.md {ROOT}/doc").splitlines())
        self.assertIn("id -u qmaild", asked)
        for words in asked:
            sh(words)

    def test_no_program_has_a_privilege_bit_and_each_has_the_mode_of_the_manifest(self):
        with open(os.path.join(ROOT, "bins", "MANIFEST")) as f:
            for line in f:
                name, mode = line.split()[1], line.split()[3]
                if not line.startswith("#") and ">" not in name:
                    s = os.lstat(os.path.join(HOME, "bin", name))
                    self.assertEqual((f"{stat.S_IMODE(s.st_mode):04o}", s.st_uid, s.st_gid), (mode, 0, gid("qmail")), name)
                    self.assertNotIn("security.capability", os.listxattr(os.path.join(HOME, "bin", name)))
        self.assertEqual(sh(f"find {HOME} -type f -perm /6000"), "")

    def test_the_queue_belongs_to_those_who_write_it_and_its_top_to_root(self):
        want = {"queue": ("root", 0o750), "queue/pid": ("qmailq", 0o700), "queue/intd": ("qmailq", 0o700),
                "queue/todo": ("qmailq", 0o750), "queue/mess": ("qmailq", 0o750), "queue/mess/22": ("qmailq", 0o750),
                "queue/info": ("qmails", 0o700), "queue/local/0": ("qmails", 0o700), "queue/remote/7": ("qmails", 0o700),
                "queue/bounce": ("qmails", 0o700), "queue/lock": ("qmailq", 0o750), "queue/lock/sendmutex": ("qmails", 0o600),
                "queue/lock/trigger": ("qmails", 0o622), "queue/lock/tcpto": ("qmailr", 0o644),
                "queue/lock/ledger.local": ("root", 0o600), "queue/lock/ledger.remote": ("qmailr", 0o600),
                "run": ("qmailq", 0o755), "sts": ("qmailr", 0o755), "alias": ("alias", 0o2755), "control": ("root", 0o755), "users": ("root", 0o755)}
        for name, (owner, mode) in want.items():
            s = os.lstat(os.path.join(HOME, name))
            self.assertEqual((s.st_uid, s.st_gid, oct(stat.S_IMODE(s.st_mode))), (uid(owner), gid("qmail"), oct(mode)), name)

    def test_manual_pages_are_where_man_finds_them(self):
        for page in ("man1/tcpserver.1", "man5/dot-qmail.5", "man8/qmail-send.8"):
            self.assertTrue(os.path.getsize(os.path.join(HOME, "man", page)))

    def test_run_again_it_changes_nothing(self):
        write("control/me", "changed.example\n")
        os.unlink(HOME + "/control/defaulthost")
        os.unlink(HOME + "/alias/.qmail-root")
        write("tcp/smtp", ":deny\n")
        write("users/assign", ".\n")
        sh(f"echo mail >alias/Maildir/new/1.x; chown alias alias/Maildir/new/1.x; mkdir -p queue/mess/3;"
           f"echo m >queue/mess/3/26; chown qmailq:qmail queue/mess/3/26; chmod 0640 control/me", cwd=HOME)
        # Keys and passwords, by whom they are for.
        sh("mkdir -p control/tls/default; cd control; echo k >tls/default/key.pem; echo c >tls/default/cert.pem; echo s:u p >smtpauth;"
           "chown qmailp tls/default/key.pem; chmod 600 tls/default/key.pem; chown root:qmail smtpauth; chmod 640 smtpauth", cwd=HOME)
        before = everything()
        made("--me", "other.example")
        self.assertEqual(everything(), before)
        self.assertEqual([line for line in self.check() if "control" in line], [])
        sh("chown qmailp control/tls/default/cert.pem; chmod g+w control/tls/default/key.pem", cwd=HOME)
        self.assertEqual(sorted(line for line in self.check() if "control" in line),
                         [f"instcheck: control/tls/default/{name}.pem: others than root can change it" for name in ("cert", "key")])
        made()
        self.assertEqual([(os.stat(f"{HOME}/control/tls/default/{name}.pem").st_uid, oct(os.stat(f"{HOME}/control/tls/default/{name}.pem").st_mode)[-3:])
                          for name in ("cert", "key")], [(0, "644"), (0, "600")])
        sh("rm -r queue/mess/3/26 alias/Maildir/new/1.x users/assign control/tls control/smtpauth", cwd=HOME)

    # What is done to the home, and the line that says so.
    DAMAGE = [
        ("chmod 4711 bin/qmail-queue", "bin/qmail-queue: mode 4711, should be 0755"),
        ("chmod 755 bin/qmail-lspawn", "bin/qmail-lspawn: mode 0755, should be 0700"),
        ("chown joe bin/qmail-send", "bin/qmail-send: owner {joe}, should be root (0)"),
        ("rm bin/qmail-clean", "bin/qmail-clean: missing"),
        (": >bin/qmail-remote", "bin/qmail-remote: empty"),
        ("ln -sf /bin/true bin/mailq", "bin/mailq: leads to /bin/true, should lead to sendmail"),
        ("chmod 777 control", "control: mode 0777, should be 0755"),
        ("chmod 666 control/rcpthosts", "control/rcpthosts: others than root can change it"),
        ("chown joe users", "users: owner {joe}, should be root (0)"),
        ("chmod 664 users/ids", "users/ids: mode 0664, should be 0644"),
        ("chown qmailq queue", "queue: owner {qmailq}, should be root (0)"),
        ("chmod 755 queue", "queue: mode 0755, should be 0750"),
        ("chown qmails queue/mess", "queue/mess: owner {qmails}, should be qmailq ({qmailq})"),
        ("chgrp nogroup queue/todo", "queue/todo: group {nogroup}, should be qmail ({qmail})"),
        ("rmdir queue/info/7", "queue/info/7: missing"),
        ("chmod 755 queue/local/3", "queue/local/3: mode 0755, should be 0700"),
        ("chown root queue/remote/22", "queue/remote/22: owner 0, should be qmails ({qmails})"),
        ("rm queue/lock/trigger", "queue/lock/trigger: missing"),
        ("chmod 644 queue/lock/sendmutex", "queue/lock/sendmutex: mode 0644, should be 0600"),
        ("chown root queue/lock/tcpto", "queue/lock/tcpto: owner 0, should be qmailr ({qmailr})"),
        ("chown root run", "run: owner 0, should be qmailq ({qmailq})"),
        ("chmod 00755 alias", "alias: mode 0755, should be 2755"),
        ("rm man/man8/qmail-send.8", "man/man8/qmail-send.8: missing"),
        ("chmod 600 samples/control/me", "samples/control/me: mode 0600, should be 0644"),
    ]
    # What mkhome leaves to the administrator, and how that one mends it.
    STRANGE = [
        ("cp bin/forward bin/mine; chmod 2755 bin/mine", "bin/mine: has a set-uid or set-gid bit", "rm bin/mine"),
        ("cp bin/forward bin/caps; setcap cap_setuid+p bin/caps", "bin/caps: has file capabilities", "rm bin/caps"),
        ("mkdir queue/mess/23", "queue/mess/23: does not belong there", "rmdir queue/mess/23"),
        ("echo >queue/mess/3/26", "queue/mess/3/26: not a file of qmailq", "rm queue/mess/3/26"),
        ("ln -s /etc/passwd queue/info/3/26", "queue/info/3/26: not a file of qmails", "rm queue/info/3/26"),
        ("mv control/me me", "control/me: missing or empty", "mv me control/me"),
        ("ln queue/lock/tcpto queue/x", "queue/lock/tcpto: has 2 names", "rm queue/x"),
        ("truncate -s 10 queue/lock/tcpto", "queue/lock/tcpto: not 1024 bytes long", "truncate -s 1024 queue/lock/tcpto"),
        ("touch run/queue", "run/queue: not of qmailq", "rm run/queue"),
        ("rmdir queue/bounce; touch queue/bounce", "queue/bounce: is a file, should be a directory",
         "rm queue/bounce; install -d -o qmails -g qmail -m 700 queue/bounce"),
        ("usermod -G qmail qmaild", "account qmaild: its groups are {nofiles} {qmail}, not {nofiles} alone", "usermod -G '' qmaild"),
    ]

    def test_instcheck_finds_every_damage_and_mkhome_mends_it(self):
        sh("id joe 2>/dev/null || useradd joe")
        ids = {n: uid(n) for n in ("joe", "qmailq", "qmails", "qmailr")}
        ids.update({n: gid(n) for n in ("nogroup", "qmail", "nofiles")})
        before = everything()
        for command, _ in self.DAMAGE:
            sh(command, cwd=HOME)
        found = self.check()
        for command, line in self.DAMAGE:
            self.assertIn("instcheck: " + line.format(**ids), found, command)
        self.assertIn("instcheck: bin/qmail-queue: has a set-uid or set-gid bit", found)
        self.assertIn("instcheck: queue/info/7: missing", found)
        self.assertEqual(len(found), len(self.DAMAGE) + 1, found)
        made()
        self.assertEqual(self.check(), [])
        self.assertEqual(everything(), before)

    def test_instcheck_finds_what_only_an_administrator_can_judge(self):
        ids = {n: gid(n) for n in ("qmail", "nofiles")}
        before = everything()
        for command, line, undo in self.STRANGE:
            if "setcap" in command and not (shutil.which("setcap") and shutil.which("getcap")):
                continue
            with self.subTest(command):
                sh(command, cwd=HOME)
                found = self.check()
                sh(undo, cwd=HOME)
                self.assertEqual(found, ["instcheck: " + line.format(**ids)])
        self.assertEqual(everything(), before)

    def test_what_the_queues_user_planted_is_not_followed(self):
        sh("mkdir -m 700 /var/victim; echo secret >/var/victim/file; chmod 600 /var/victim/file")
        self.addCleanup(shutil.rmtree, "/var/victim")
        victim = everything("/var/victim")
        plant = [("mess", "ln -s /var/victim queue/mess/4", "rmdir queue/mess/4"),
                 ("lock", "ln -s /var/victim/file queue/lock/tcpto", "rm queue/lock/tcpto"),
                 ("lock", "ln /var/victim/file queue/lock/tcpto", "rm queue/lock/tcpto")]
        for place, command, first in plant:
            with self.subTest(command):
                sh(f"{first}; {command}", cwd=HOME)
                before = everything()
                done = mkhome()
                self.assertEqual(done.returncode, 111)
                self.assertRegex(done.stderr, r"mkhome: /var/qmail/queue/(mess/4|lock/tcpto) (is|has) ")
                self.assertEqual(everything(), before)
                self.assertEqual({**everything("/var/victim"), ".": None}, {**victim, ".": None})
                sh("rm queue/mess/4 2>/dev/null || rm queue/lock/tcpto", cwd=HOME)
                made()

    def test_root_starts_nothing_in_a_home_that_others_can_write(self):
        for damage, undo, reason in (("chmod 777 control", "chmod 755 control", f"refusing {HOME}/control: everybody can write it: run "),
                                     ("chown qmaild users", "chown root users", f"refusing {HOME}/users: uid {uid('qmaild')} owns it and root should: run "),
                                     ("chown qmails queue/mess", "chown qmailq queue/mess", "queue/mess: qmails owns it and qmailq should: run ")):
            with self.subTest(damage):
                sh(damage, cwd=HOME)
                done = subprocess.run([HOME + "/bin/qmail-start"], env=ENV, capture_output=True, text=True, timeout=harness.TIMEOUT)
                sh(undo, cwd=HOME)
                self.assertEqual((done.returncode, done.stdout), (111, ""))
                self.assertIn(reason, done.stderr)

    def test_without_leave_nothing_is_made(self):
        sh("id joe 2>/dev/null || useradd joe; mkdir -p /var/full /var/open /var/own; touch /var/full/thesis; chmod 777 /var/open;"
           "mkdir -p /var/own/users; echo owner:1000:1000 >/var/own/users/ids")
        for directory, reason in (("/var/full", "neither empty nor a home"), ("/var/own", "is an own home"),
                                  ("/var/open/home", "others can write it")):
            done = mkhome(directory)
            self.assertEqual(done.returncode, 111, directory)
            self.assertIn(reason, done.stderr)
        self.assertEqual(os.listdir("/var/full"), ["thesis"])
        self.assertEqual(os.listdir("/var/open"), [])
        done = mkhome("/var/another", preexec_fn=lambda: os.setuid(uid("joe")))
        self.assertIn("only root can make a system home", done.stderr)
        self.assertEqual(mkhome("--nonsense").returncode, 100)

    def test_accounts_that_are_not_what_they_should_be_are_refused(self):
        for damage, undo, reason in (
                ("usermod -g qmail qmaild", "usermod -g nofiles qmaild", "user qmaild exists and its group is qmail, not nofiles"),
                ("usermod -G qmail qmaild", "usermod -G '' qmaild", "user qmaild is in group qmail and must not be"),
                (f"usermod -o -u {uid('qmailq')} qmailr", f"usermod -u {uid('qmailr')} qmailr", "user qmailr has the uid of another"),
                ("usermod -u 7777 qmaild", f"usermod -u {uid('qmaild')} qmaild", "users/ids names other accounts")):
            with self.subTest(damage):
                sh(damage)
                before = everything()
                done = mkhome()
                sh(undo)
                self.assertEqual(done.returncode, 111)
                self.assertIn(reason, done.stderr)
                self.assertEqual(everything(), before)

    def test_a_home_of_the_original_is_taken_over(self):
        home = "/var/old"
        sh(f"mkdir -p {home}/control {home}/bin {home}/queue/mess/3; echo old.example >{home}/control/me;"
           f"echo x >{home}/queue/mess/3/26; chown -R qmailq:qmail {home}/queue;"
           f"echo '#!/bin/sh' >{home}/bin/qmail-queue; chown qmailq {home}/bin/qmail-queue; chmod 4711 {home}/bin/qmail-queue")
        made(home)
        self.assertEqual(self.check(home), [])
        with open(home + "/control/me") as f:
            self.assertEqual(f.read(), "old.example\n")
        self.assertTrue(os.path.exists(home + "/queue/mess/3/26"))
        self.assertFalse(os.path.exists(home + "/control/rcpthosts"))
        shutil.rmtree(home)

    def test_a_package_is_the_same_tree_under_destdir(self):
        done = sh(f"make -s -C {ROOT} install", env={**os.environ, "ME": "mail.test.example", "QMAIL_BIN": BIN,
                                                      "DESTDIR": "/var/package", "QMAIL_HOME": "/opt/mail"})
        self.assertEqual(done, "")
        self.assertEqual(self.check("/var/package/opt/mail"), [])
        self.assertFalse(os.path.exists("/opt/mail"))
        self.assertEqual(os.stat("/var/package/opt/mail/alias/.qmail-postmaster").st_uid, uid("alias"))
        shutil.rmtree("/var/package")

    def test_uninstall_leaves_all_that_is_not_ours(self):
        home = "/var/second"
        made(home, "--me", "second.example")
        with open(home + "/bin/mine", "w"):
            pass
        before = everything(home)
        sh(f"make -s -C {ROOT} uninstall", env={**os.environ, "QMAIL_HOME": home})
        gone = {n for n in before if n not in everything(home)}
        self.assertEqual({n for n in gone if not re.match(r"(bin/|man\b|samples\b)", n)}, set())
        self.assertEqual(os.listdir(home + "/bin"), ["mine"])
        self.assertFalse(os.path.exists(home + "/man"))
        self.assertTrue(os.path.exists(home + "/control/me"))
        made(home)
        self.assertEqual(self.check(home), [])
        shutil.rmtree(home)


PASSWORD = "correct horse"


class WholeSystem(unittest.TestCase):
    """The whole system as root starts it, with two people, joe and ann, who have accounts here."""

    @classmethod
    def setUpClass(cls):
        made("--me", "test.example")
        sh("useradd -m joe; useradd -m ann; groupadd club; usermod -aG club joe")
        sh("chpasswd", input=f"joe:{PASSWORD}\n")
        sh("chmod 711 /home/joe; chmod 700 /home/ann")
        for name in ("joe", "ann"):
            sh("maildirmake Maildir", cwd=f"/home/{name}", env=ENV, user=name, group=name, extra_groups=[])
        write("control/concurrencyremote", "3\n")
        cls.send = Daemon([HOME + "/bin/qmail-start", "./Maildir/", "sh", "-c", "exec cat"], env=ENV, cwd="/")
        cls.send.wait_log("^status: local 0/")
        wait_for(lambda: os.path.exists(HOME + "/run/queue"), "the socket")
        ids = {**ENV, "UID": str(uid("qmaild")), "GID": str(gid("nofiles"))}
        cls.smtpd = Daemon(["tcpserver", "-v", "-U", "-H", "-R", "-l", "test.example", "127.0.0.1", "25", "qmail-smtpd"], env=ids)
        cls.popd = Daemon(["tcpserver", "-v", "-H", "-R", "-l", "0", "127.0.0.1", "110", "qmail-popup", "test.example",
                           "checkpassword", "qmail-pop3d", "Maildir"], env=ENV)
        for server in (cls.smtpd, cls.popd):
            server.wait_log("status: 0/")

    @classmethod
    def tearDownClass(cls):
        for daemon in (cls.popd, cls.smtpd, cls.send):
            daemon.stop()

    def run_as(self, name, argv, stdin=b"", **more):
        """A program of the home, as somebody with all of that one's groups."""
        done = subprocess.run(argv, input=stdin, capture_output=True, env={**ENV, "USER": name}, cwd="/", user=name,
                              group=pwd.getpwnam(name).pw_gid, extra_groups=os.getgrouplist(name, pwd.getpwnam(name).pw_gid), **more)
        return done

    def inject(self, name, recipient, text="hello"):
        """Mail from an account here; returns its subject."""
        subject = f"s{os.urandom(6).hex()}"
        done = self.run_as(name, ["qmail-inject", recipient], f"Subject: {subject}\n\n{text}\n".encode())
        self.assertEqual(done.returncode, 0, done.stderr)
        return subject

    def arrived(self, directory, word):
        """Waits for a message with this word; returns (path, text)."""
        def look():
            for name in os.listdir(directory + "/new"):
                path = f"{directory}/new/{name}"
                with open(path) as f:
                    text = f.read()
                if word in text:
                    return path, text
            return None
        try:
            return wait_for(look, f"mail in {directory}")
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.send.log()[-3000:]}") from None

    def dotqmail(self, name, extension, text):
        path = f"/home/{name}/.qmail{extension}"
        with open(path, "w") as f:
            f.write(text)
        os.chown(path, uid(name), gid(name))
        os.chmod(path, 0o644)

    def processes(self):
        """{name: [(uid, gid, groups)]} of what runs from the home, all four ids of each the same."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/status") as f:
                    status = dict(line.split(":", 1) for line in f.read().splitlines())
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    argv = f.read().split(b"\0")
            except OSError:
                continue
            uids, gids = status["Uid"].split(), status["Gid"].split()
            name = os.path.basename(argv[0].decode())
            self.assertTrue(len(set(uids)) == len(set(gids)) == 1, (name, uids, gids))
            found.setdefault(name, []).append((int(uids[0]), int(gids[0]), [int(g) for g in status["Groups"].split()]))
        return found


@sandbox.alone
class Running(WholeSystem):
    """Mail in and out of it."""

    def test_each_daemon_is_who_it_should_be_and_has_no_further_group(self):
        qmail, nofiles = gid("qmail"), gid("nofiles")
        want = {"qmail-send": (uid("qmails"), qmail, [qmail]), "qmail-clean": (uid("qmailq"), qmail, [qmail]),
                "qmail-queued": (uid("qmailq"), qmail, [qmail]), "qmail-rspawn": (uid("qmailr"), qmail, [qmail]),
                "qmail-lspawn": (0, qmail, [qmail]), "cat": (uid("qmaill"), nofiles, [nofiles]),
                # The keeper of qmail-queued is a fork of qmail-start.
                "qmail-start": (uid("qmailq"), qmail, [qmail])}
        found = self.processes()
        for name, ids in want.items():
            # A worker of qmail-queued may still wait for work, and beside a qmail-local one of qmail-lspawn.
            one = name not in ("qmail-queued", "qmail-lspawn")
            self.assertEqual(found.get(name), [ids] if one else [ids] * max(1, len(found.get(name, []))), name)
        servers = [ids for ids in found["tcpserver"] if ids[0] != 0]
        self.assertEqual(servers, [(uid("qmaild"), nofiles, [nofiles])])

    def test_mail_of_a_user_says_who_and_arrives_in_a_home_as_its_owner(self):
        subject = self.inject("joe", "ann@test.example")
        path, text = self.arrived("/home/ann/Maildir", subject)
        self.assertRegex(text, rf"\nReceived: \(qmail \d+ invoked by uid {uid('joe')}\);")
        s = os.stat(path)
        self.assertEqual((s.st_uid, s.st_gid), (uid("ann"), gid("ann")))

    def test_mail_by_smtp_says_from_network(self):
        with smtplib.SMTP("127.0.0.1", 25, timeout=harness.TIMEOUT) as client:
            client.sendmail("far@elsewhere.example", ["joe@test.example"], b"Subject: by smtp 1\r\n\r\nx\r\n")
            self.assertRaises(smtplib.SMTPRecipientsRefused, client.sendmail, "a@b.example", ["c@elsewhere.example"], b"")
        text = self.arrived("/home/joe/Maildir", "by smtp 1")[1]
        self.assertRegex(text, r"\nReceived: \(qmail \d+ invoked from network\);")

    def test_a_bounce_says_for_bounce_and_comes_back_to_its_sender(self):
        subject = self.inject("joe", "nobody-at-all@test.example")
        text = self.arrived("/home/joe/Maildir", "Subject: " + subject)[1]
        self.assertRegex(text, r"\nReceived: \(qmail \d+ invoked for bounce\);")
        self.assertIn("no mailbox here by that name", text)

    def test_aliases_are_delivered_by_alias(self):
        subject = self.inject("joe", "postmaster@test.example")
        path, _ = self.arrived(HOME + "/alias/Maildir", subject)
        self.assertEqual(os.stat(path).st_uid, uid("alias"))
        write("alias/.qmail-sales", "&ann@test.example\n")
        subject = self.inject("joe", "sales@test.example")
        self.assertRegex(self.arrived("/home/ann/Maildir", subject)[1], r"\(qmail \d+ invoked by alias\);")

    def test_a_user_forwards_as_that_user(self):
        self.dotqmail("joe", "-fwd", "&ann@test.example\n")
        subject = self.inject("ann", "joe-fwd@test.example")
        text = self.arrived("/home/ann/Maildir", subject)[1]
        self.assertRegex(text, rf"\nReceived: \(qmail \d+ invoked by uid {uid('joe')}\);")
        self.assertRegex(text, rf"\nReceived: \(qmail \d+ invoked by uid {uid('ann')}\);")
        self.dotqmail("joe", "-prog", "|forward ann@test.example\n")
        subject = self.inject("ann", "joe-prog@test.example")
        self.assertRegex(self.arrived("/home/ann/Maildir", subject)[1], rf"invoked by uid {uid('joe')}\);")

    def test_a_program_of_a_user_has_that_users_rights_and_no_more(self):
        self.dotqmail("joe", "-id", "|id -u >ids; id -G >>ids; pwd >>ids; ls -l /proc/self/fd >fds; "
                                    f"cat {HOME}/queue/lock/tcpto >stolen; echo done >>ids\n")
        self.inject("ann", "joe-id@test.example")
        path = "/home/joe/ids"
        wait_for(lambda: os.path.exists(path) and "done" in open(path).read(), "the program")
        with open(path) as f:
            self.assertEqual(f.read(), f"{uid('joe')}\n{gid('joe')}\n/home/joe\ndone\n")
        self.assertEqual(os.path.getsize("/home/joe/stolen"), 0)
        with open("/home/joe/fds") as f:
            self.assertLess(int(max(re.findall(r" (\d+) ->", f.read()), key=int)), 4)

    def test_a_user_whose_home_is_anothers_gets_no_mail(self):
        sh("useradd -m jim; chown ann /home/jim")
        self.inject("joe", "jim@test.example")
        self.assertIn("jim@test.example", self.arrived("/home/joe/Maildir", "<jim@test.example>:")[1])
        self.assertEqual(sh("find /home/jim -newer /etc/passwd -name 'Mail*'"), "")

    def test_users_assign_rules_over_the_account_database_but_never_makes_root(self):
        write("users/assign", f"=box:ann:{uid('ann')}:{gid('ann')}:/home/ann:::\n=boss:root:0:0:/root:::\n.\n")
        self.assertEqual(self.run_as("root", ["qmail-newu"]).returncode, 0)
        subject = self.inject("joe", "box@test.example")
        path, _ = self.arrived("/home/ann/Maildir", subject)
        self.assertEqual(os.stat(path).st_uid, uid("ann"))
        self.inject("joe", "boss@test.example")
        self.send.wait_log(r"deferral: Not_allowed_to_perform_deliveries_as_root\.")

    def test_mail_to_another_host_goes_out_as_qmailr(self):
        got = []

        class Server(socketserver.StreamRequestHandler):
            def handle(self):
                self.wfile.write(b"220 there\r\n")
                data = False
                for line in self.rfile:
                    if data:
                        data = line != b".\r\n"
                        got.append(line)
                    else:
                        data = line.startswith(b"DATA")
                        self.wfile.write(b"354 go\r\n" if data else b"250 ok\r\n")
                        if data:
                            got.append(outside.processes()["qmail-remote"])
                        continue
                    if not data:
                        self.wfile.write(b"250 taken\r\n")

        outside = self
        with socketserver.TCPServer(("127.0.0.1", 0), Server) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            write("control/smtproutes", f"far.example:127.0.0.1:{server.server_address[1]}\n")
            subject = self.inject("joe", "someone@far.example")
            wait_for(lambda: b".\r\n" in got, "the message there")
            server.shutdown()
            thread.join()
        self.assertEqual(got[0], [(uid("qmailr"), gid("qmail"), [gid("qmail")])])
        self.assertIn(f"Subject: {subject}\r\n".encode(), got)

    def test_nobody_can_look_into_a_daemon_not_even_its_own_account(self):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with open(f"/proc/{pid}/comm") as f:
                name = f.read().strip()
            if name.startswith("qmail-"):
                # What is not dumpable belongs to root there, and only root may trace it.
                self.assertEqual(os.stat(f"/proc/{pid}/environ").st_uid, 0, name)

    def test_mail_goes_in_where_no_privilege_can_be_gained(self):
        subject = f"s{os.urandom(6).hex()}"
        done = self.run_as("joe", ["setpriv", "--no-new-privs", "qmail-inject", "ann@test.example"], f"Subject: {subject}\n\n".encode())
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(f"invoked by uid {uid('joe')}", self.arrived("/home/ann/Maildir", subject)[1])

    def test_a_killed_qmail_queued_is_replaced_by_one_of_the_same_account(self):
        old = int(read("run/queue.lock"))
        os.kill(old, 9)
        self.send.wait_log(r"^alert: qmail-queued ended \(signal 9\), starting it again")
        subject = self.inject("joe", "ann@test.example")  # waits for the new one
        self.arrived("/home/ann/Maildir", subject)
        self.assertNotEqual(int(read("run/queue.lock")), old)
        self.assertEqual(self.processes()["qmail-queued"][0][0], uid("qmailq"))
        self.assertEqual(stat.S_IMODE(os.stat(HOME + "/run/queue.lock").st_mode), 0o600)

    def test_root_too_goes_through_the_socket(self):
        subject = self.inject("root", "joe@test.example")
        self.assertRegex(self.arrived("/home/joe/Maildir", subject)[1], r"\(qmail \d+ invoked by uid 0\);")

    def test_pop3_with_the_passwords_of_the_system(self):
        subject = self.inject("ann", "joe@test.example")
        path = self.arrived("/home/joe/Maildir", subject)[0]
        os.utime(path, (os.path.getmtime(path) - 5,) * 2)
        client = poplib.POP3("127.0.0.1", 110, timeout=harness.TIMEOUT)
        client.user("joe")
        self.assertRaises(poplib.error_proto, client.pass_, "wrong")
        client.close()
        client = poplib.POP3("127.0.0.1", 110, timeout=harness.TIMEOUT)
        client.user("joe")
        client.pass_(PASSWORD)
        session = self.processes()["qmail-pop3d"]
        self.assertEqual([(u, g) for u, g, _ in session], [(uid("joe"), gid("joe"))])
        self.assertEqual(session[0][2], [gid("joe")])
        texts = [b"\n".join(client.retr(n + 1)[1]) for n in range(client.stat()[0])]
        self.assertTrue(any(subject.encode() in text for text in texts))
        client.quit()

    def test_what_is_in_the_queue_belongs_to_those_who_wrote_it(self):
        self.dotqmail("joe", "-later", "|exit 111\n")
        self.inject("ann", "joe-later@test.example")
        self.send.wait_log(r"deferral: ")
        wait_for(lambda: os.listdir(HOME + "/queue/intd") == [], "the message to be preprocessed")
        files = sh("find queue -type f -path '*/[0-9]*' -printf '%H/%P %U %G %m\n'", cwd=HOME)
        self.assertRegex(files, rf"(?m)^queue/mess/\S+ {uid('qmailq')} {gid('qmail')} 644$")
        self.assertRegex(files, rf"(?m)^queue/info/\S+ {uid('qmails')} {gid('qmail')} 600$")
        self.assertRegex(files, rf"(?m)^queue/local/\S+ {uid('qmails')} {gid('qmail')} 600$")
        self.assertEqual(script("instcheck").stdout, "")
        listed = self.run_as("root", ["qmail-qread"])
        self.assertIn(b"\tlocal\tjoe-later@test.example", listed.stdout)

    def test_a_user_sees_nothing_of_anothers_mail_and_of_programs_that_hold_it(self):
        self.inject("joe", "ann@test.example")
        self.assertNotEqual(self.run_as("joe", ["ls", "/home/ann/Maildir/new"]).returncode, 0)
        self.assertNotEqual(self.run_as("joe", ["cat", HOME + "/bin/qmail-local"]).returncode, 0)
        self.assertEqual(self.run_as("joe", ["qmail-qread"]).returncode, 111)
        self.assertEqual(self.run_as("joe", [HOME + "/bin/qmail-queued"]).returncode, 111)
        self.assertEqual(self.run_as("joe", ["sh", "-c", f"flock -n {HOME}/run/queue.lock true"]).returncode not in (0,), True)

    def test_the_tools_of_the_administrator_work(self):
        for argv in (["qmail-showctl"], ["qmail-qread"], ["qmail-qstat"], ["qmail-tcpto"], ["qmail-tcpok"], ["qmail-newmrh"]):
            if argv == ["qmail-newmrh"]:
                write("control/morercpthosts", "more.example\n")
            done = self.run_as("root", argv)
            self.assertEqual(done.returncode, 0, (argv, done))
        done = self.run_as("qmailr", ["qmail-tcpok"])
        self.assertEqual(done.returncode, 0, done)


if __name__ == "__main__":
    unittest.main()
