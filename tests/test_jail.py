"""The jails: what the kernel says of each running program, against the table of doc/security.md; that no
program of somebody else's is ever in one; and what happens where the kernel cannot close them."""

import fcntl
import os
import re
import shutil
import socket
import subprocess
import tempfile
import unittest

from tests import harness, sandbox
from tests.harness import Home, program, run, scratch, wait_for

FOREIGN = "#!/bin/sh\ngrep -E 'NoNewPrivs|Seccomp:' /proc/self/status >%s.new && mv %s.new %s\n"


def status(pid):
    """(no_new_privs, number of seccomp filters) of a process; None when it is gone."""
    try:
        with open(f"/proc/{pid}/status") as f:
            fields = dict(line.split(":", 1) for line in f.read().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields["NoNewPrivs"]), int(fields["Seccomp_filters"])


BASE = status("self")  # what the tests themselves live under: a container may have filters of its own


def table():
    """{(program, part of its life): how it is locked in, of doc/security.md}"""
    rows = {}
    with open(os.path.join(harness.ROOT, "doc", "security.md")) as f:
        for line in f:
            if row := re.match(r"\| `([a-z0-9-]+)`(?: ([^|]*))? \| .* \| ([^|]*) \|$", line):
                rows[row[1], row[2] or ""] = row[3]
    return rows


TABLE = table()


def expected(name, part="", outer=0):
    """What status() must say; `outer`: filters of a jail that this one is closed in."""
    lock = TABLE[name, part]
    if lock == "rlimits":
        return BASE
    return 1, BASE[1] + outer + ("seccomp" in lock)


def core_limit(pid):
    with open(f"/proc/{pid}/limits") as f:
        return re.search(r"^Max core file size +(\d+|unlimited)", f.read(), re.M)[1]


class Case(unittest.TestCase):
    def own(self):
        home = Home()
        self.addCleanup(home.__exit__)
        return home

    def start(self, argv, env, cwd=None, stdout=subprocess.DEVNULL, user=None):
        """A program that waits for its input; ended at the end."""
        process = subprocess.Popen([program(argv[0]), *argv[1:]], stdin=subprocess.PIPE, stdout=stdout,
                                   stderr=subprocess.DEVNULL, env=env, cwd=cwd, user=user, group=user and harness.owner()[2],
                                   extra_groups=[] if user else None)

        def end():
            process.kill()
            process.communicate()
        self.addCleanup(end)
        return process

    def comes_to(self, pid, name, part="", outer=0):
        """Waits until the jail is closed; for a program without one, that it never is shows elsewhere."""
        wanted = expected(name, part, outer)
        try:
            wait_for(lambda: status(pid) in (wanted, None), f"{name} to be as the table says")
        except AssertionError:
            self.fail(f"{name} {part}: {status(pid)} is not {wanted}")
        self.assertEqual(status(pid), wanted, f"{name} {part}")

    def full_pipe(self):
        """The writing end of a pipe that takes nothing more: whoever writes to it stays where it is."""
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(write, False)
        try:
            while True:
                os.write(write, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(write, True)
        return write

    def stuck(self, argv, env, cwd=None):
        """A program that has something to say and cannot."""
        write = self.full_pipe()
        try:
            return self.start(argv, env, cwd, stdout=write).pid
        finally:
            os.close(write)


class Running(Case):
    """Each program at work, seen from outside."""

    def test_the_daemons(self):
        home = self.own().start()
        names = ("qmail-send", "qmail-lspawn", "qmail-rspawn", "qmail-clean", "qmail-queued")

        def pids():
            found = {name: pid for pid, name in harness.family(home.daemon.pid).items()}
            found["qmail-queued"] = home.queued_pid()
            return found if all(found.get(name) for name in names) else None
        found = wait_for(pids, "all daemons")
        # In an own home the queue is its user's: bin/qmail-queue is a way for bounces.
        parts = {"qmail-send": "where its user owns the queue"}
        for name in names:
            with self.subTest(name):
                self.comes_to(found[name], name, parts.get(name, ""))
                wait_for(lambda name=name: core_limit(found[name]) == "0", f"{name} to be without core dumps")

    def test_a_child_of_qmail_queued(self):
        home = self.own().start()
        server = home.queued_pid()
        self.start(["qmail-queue"], {**home.env, "QMAILDOOR": "socket"})
        child = wait_for(lambda: [pid for pid in harness.family(server) if pid != server], "its child")
        self.comes_to(child[0], "qmail-queued", "a worker, which takes messages")

    def test_qmail_queue_by_each_door(self):
        home = self.own().start()
        for door, part in (("direct", "writing the queue"), ("socket", "asking qmail-queued")):
            with self.subTest(door):
                self.comes_to(self.start(["qmail-queue"], {**home.env, "QMAILDOOR": door}).pid, "qmail-queue", part)

    def test_qmail_smtpd_by_what_it_may_have_to_run(self):
        home = self.own()
        for env, part in (({"QMAILDOOR": "socket"}, ""), ({}, "where its user owns the queue")):
            with self.subTest(part):
                self.comes_to(self.start(["qmail-smtpd"], {**home.env, **env}).pid, "qmail-smtpd", part)

    def test_qmail_smtpd_and_its_launcher(self):
        home = self.own()
        launcher = self.start(["qmail-smtpd"], {**home.env, "QMAILQUEUE": "/nowhere"}).pid
        session = wait_for(lambda: set(harness.family(launcher)) - {launcher}, "its session").pop()
        self.comes_to(session, "qmail-smtpd", "with QMAILQUEUE, the child that talks")
        self.assertEqual(status(launcher), expected("qmail-smtpd", "with QMAILQUEUE"))
        self.assertEqual((core_limit(session), core_limit(launcher)), ("0", "0"))
        with open("/dev/null") as null:
            self.assertEqual({os.stat(f"/proc/{launcher}/fd/{n}").st_rdev for n in (0, 1)}, {os.fstat(null.fileno()).st_rdev})

    def test_children_of_tcpserver_that_read_answers(self):
        where = f"127.113.{os.getpid() >> 8 & 255}.{os.getpid() % 254 + 1}"  # other tests may run, too
        with socket.socket(type=socket.SOCK_DGRAM) as names, socket.socket() as idents:
            names.bind(("127.0.0.1", 0))
            parts = {"-R": "a child that asks the DNS"}
            try:
                idents.bind((where, 113))
                idents.listen()
                parts["-H"] = "a child that asks ident"
            except PermissionError:  # only root may serve it
                pass
            env = {**os.environ, "DNSCACHEIP": f"127.0.0.1:{names.getsockname()[1]}"}
            for option, part in parts.items():
                with self.subTest(part), harness.Daemon(["tcpserver", "-1", option, "-l0", "0.0.0.0", "0", "cat"], env=env) as server:
                    port = int(server.wait_log(r"^(\d+)$")[1])
                    with socket.create_connection(("127.0.0.1", port), source_address=(where, 0)):
                        found = wait_for(lambda: len(pids := sorted(harness.family(server.pid).items())) == 3 and dict(pids), "its child")
                        top = next(pid for pid in found if harness.parent(pid) == server.pid)
                        [child] = set(found) - {server.pid, top}
                        self.comes_to(child, "tcpserver", part)
                        self.assertEqual(status(top), expected("tcpserver"))
                        self.assertEqual(core_limit(child), "0")

    def test_qmail_pop3d(self):
        home = self.own()
        user = harness.owner()[1] if os.geteuid() == 0 else None
        pop3d = self.start(["qmail-pop3d", "Maildir"], home.env, cwd=home.file("home", "joe"), user=user)
        self.comes_to(pop3d.pid, "qmail-pop3d")

    def test_splogger(self):
        self.comes_to(self.start(["splogger"], {}).pid, "splogger")

    def test_qmail_remote_asking_and_connected(self):
        home = self.own()
        with tempfile.TemporaryFile() as message, socket.socket() as server, \
                socket.socket(type=socket.SOCK_DGRAM) as silent:
            message.write(b"Subject: x\n\nx\n")
            silent.bind(("127.0.0.1", 0))
            server.bind(("127.0.0.1", 0))
            server.listen()
            home.control("smtproutes", f"asked:name.example:25\nconnected:[127.0.0.1]:{server.getsockname()[1]}\n")
            env = {**home.env, "DNSCACHEIP": f"127.0.0.1:{silent.getsockname()[1]}"}
            for host, part, outer in (("asked", "", 0), ("connected", "once a host is chosen", 1)):
                with self.subTest(host):
                    message.seek(0)
                    process = subprocess.Popen([program("qmail-remote"), host, "", f"x@{host}"], env=env, stdin=message,
                                               stdout=subprocess.DEVNULL)
                    try:
                        self.comes_to(process.pid, "qmail-remote", part, outer)
                    finally:
                        process.kill()
                        process.wait()

    def test_qmail_getpw(self):
        with open("/etc/nsswitch.conf") as f:
            sources = re.search(r"^passwd:(.*)", f.read(), re.M)[1].split()
        self.assertLessEqual(set(sources), {"files", "compat", "systemd", "sss"}, "the profile below is another")
        self.comes_to(self.stuck(["qmail-getpw", "nobody-there"], self.own().env), "qmail-getpw")

    def test_tools_that_say_something(self):
        home = self.own()
        home.start()
        home.inject("x\n", "", ["nobody-there@[127.0.0.1"])  # so that qmail-qread has something to list
        home.stop()
        home.write("queue/lock/tcpto", bytes([127, 0, 0, 1, 3]) + bytes(1019))
        cdb = home.file("rules.cdb")
        self.assertEqual(home.run(["tcprules", cdb, cdb + ".tmp"], b":allow\n").code, 0)
        for argv in (["qmail-showctl"], ["qmail-tcpto"], ["tcprulescheck", cdb]):
            with self.subTest(argv[0]):
                self.comes_to(self.stuck(argv, home.env), argv[0])
        with self.subTest("tools that read"):
            for argv in (["tcprules", cdb, cdb + ".tmp"], ["qmail-pw2u"]):
                self.comes_to(self.start(argv, home.env).pid, argv[0])

    def test_qmail_qread(self):
        home = self.own()
        env = {"QMAILDOOR": "direct"}
        self.assertEqual(home.inject("x\n", "", ["joe@test.example"], env).code, 0)
        self.comes_to(self.stuck(["qmail-qread"], home.env), "qmail-qread")

    def test_programs_that_run_others(self):
        home = self.own()
        for argv in (["qmail-inject"], ["tcpserver", "127.0.0.1", "0", "true"]):
            with self.subTest(argv[0]):
                pid = self.start(argv, home.env).pid
                wait_for(lambda pid=pid: core_limit(pid) == "0", f"{argv[0]} to be without core dumps")
                self.assertEqual(status(pid), expected(argv[0]))

    @unittest.skipUnless(shutil.which("strace"), "strace is not installed")
    def test_tools_that_say_nothing_close_theirs_too(self):
        home = self.own()
        home.write("users/assign", ".\n")
        home.control("morercpthosts", "x.example\n")
        with scratch_directory() as base:
            for argv in (["qmail-newu"], ["qmail-newmrh"], ["qmail-tcpok"], ["maildirmake", f"{base}/m/"]):
                with self.subTest(argv[0]):
                    log = os.path.join(base, argv[0])
                    done = run(["strace", "-o", log, "-e", "trace=landlock_restrict_self", program(argv[0]), *argv[1:]],
                               env=home.env)
                    self.assertEqual((done.code, done.err), (0, b""))
                    with open(log) as f:
                        self.assertIn("= 0", f.read())

    def test_every_program_is_in_the_table(self):
        with open(os.path.join(harness.ROOT, "bins", "MANIFEST")) as f:
            names = {line.split()[1] for line in f if not line.startswith("#") and ">" not in line}
        self.assertLessEqual(names, {name for name, _ in TABLE})


def scratch_directory():
    class Scratch:
        def __enter__(self):
            self.path = scratch()
            return self.path

        def __exit__(self, *_):
            shutil.rmtree(self.path)
    return Scratch()


class Others(Case):
    """A jail is never handed to a program that is not ours."""

    def free(self, home, name):
        """Waits for what a foreign program wrote of itself."""
        path = home.file(name)
        wait_for(lambda: os.path.exists(path), f"{name} to be written")
        with open(path) as f:
            fields = dict(line.split(":", 1) for line in f.read().splitlines())
        self.assertEqual(int(fields["NoNewPrivs"]), BASE[0])
        self.assertEqual(int(fields["Seccomp"]), 2 if BASE[1] else 0)

    def tell(self, home, script, name):
        target = home.file(name)
        return home.write(script, FOREIGN % (target, target, target) + "exit 31\n", 0o755)

    def test_qmailqueue(self):
        home = self.own()
        script = self.tell(home, "filter", "told")
        env = {"QMAILQUEUE": script}
        for argv, stdin in ((["qmail-inject", "joe@test.example"], b"\nx\n"),
                            (["qmail-smtpd"], b"HELO x\r\nMAIL FROM:<>\r\nRCPT TO:<joe@test.example>\r\nDATA\r\n\r\nx\r\n.\r\nQUIT\r\n")):
            with self.subTest(argv[0]):
                home.run(argv, stdin, env)
                self.free(home, "told")
                os.unlink(home.file("told"))

    def test_a_line_of_dot_qmail(self):
        home = self.own()
        home.dotqmail(".qmail", "|" + self.tell(home, "line", "told") + "; exit 0\n")
        home.start()
        self.assertEqual(home.inject("x\n", "", ["joe@test.example"]).code, 0)
        self.free(home, "told")

    def test_another_qmail_remote(self):
        for way in ("QMAILREMOTE", "PATH", "bin"):
            with self.subTest(way):
                home = self.own()
                env = {}
                if way == "QMAILREMOTE":
                    env = {"QMAILREMOTE": self.tell(home, "remote", "told")}
                elif way == "PATH":
                    self.tell(home, "else/qmail-remote", "told")
                    env = {"PATH": home.file("else") + ":" + home.env["PATH"]}
                else:
                    os.unlink(home.file("bin/qmail-remote"))
                    self.tell(home, "bin/qmail-remote", "told")
                home.start(env=env)
                self.assertEqual(home.inject("x\n", "", ["joe@elsewhere.example"], {"QMAILDOOR": "direct"}).code, 0)
                self.free(home, "told")
                home.stop()

    def test_our_qmail_remote_is_run_in_the_jail_of_qmail_rspawn(self):
        home = self.own()
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            server.settimeout(harness.TIMEOUT)
            home.control("smtproutes", f":[127.0.0.1]:{server.getsockname()[1]}\n")
            home.start()
            self.assertEqual(home.inject("x\n", "", ["joe@elsewhere.example"]).code, 0)
            connection, _ = server.accept()
            with connection:
                remote = [pid for pid, name in harness.family(home.daemon.pid).items() if name == "qmail-remote"]
                connection.settimeout(harness.TIMEOUT)
                connection.sendall(b"220 here\r\n")
                self.assertIn(b"EHLO", connection.recv(1000))
                connection.sendall(b"250 here\r\n")  # without STARTTLS: now there is nothing to choose any more
                self.comes_to(remote[0], "qmail-remote", "once a host is chosen", 1)
                connection.sendall(b"554 go away\r\n")
            home.wait_log("delivery 1: ")


class Places(Case):
    """Homes and Maildirs as administrators arrange them."""

    def test_links_do_not_matter(self):
        home = self.own()
        away = os.path.join(home.base, "away")
        os.mkdir(away)
        os.rename(home.file("control"), os.path.join(away, "qmail"))
        os.symlink(os.path.join(away, "qmail"), home.file("control"))
        with open(os.path.join(away, "names"), "w") as f:
            f.write("test.example\n")
        os.unlink(home.file("control/locals"))
        os.symlink(os.path.join(away, "names"), home.file("control/locals"))
        os.rename(home.maildir(), os.path.join(away, "Maildir"))
        os.symlink(os.path.join(away, "Maildir"), home.maildir())
        other = os.path.join(home.base, "other")
        os.symlink(home.path, other)
        home.env = {key: value.replace(home.path, other) for key, value in home.env.items()}
        home.start()
        self.assertEqual(home.inject("x\n", "", ["joe@test.example"]).code, 0)
        home.wait_empty()
        self.assertEqual(len(home.messages()), 1)
        # The file behind the link is replaced, and read again.
        with open(os.path.join(away, "fresh"), "w") as f:
            f.write("test.example\nfresh.example\n")
        os.rename(os.path.join(away, "fresh"), os.path.join(away, "names"))
        home.daemon.process.send_signal(1)
        wait_for(lambda: home.inject("x\n", "", ["joe@fresh.example"]).code == 0 and
                 not home.wait_empty() and len(home.messages()) > 1, "the new name to be local")
        self.assertNotIn("unable to reread", home.log())
        user = {"as_user": harness.owner()[1:]} if os.geteuid() == 0 else {}

        def pop3d(commands):
            return run(["qmail-pop3d", "Maildir"], commands, home.env, cwd=home.file("home/joe"), **user)
        wait_for(lambda: b"+OK 2 " in pop3d(b"STAT\r\nQUIT\r\n").out, "both to be older than a second")
        r = pop3d(b"RETR 1\r\nDELE 1\r\nQUIT\r\n")
        self.assertEqual((r.code, r.out.count(b"+OK"), r.out.count(b"-ERR")), (0, 4, 0), r)


    def test_a_link_gives_what_it_leads_to_to_read_and_nothing_to_write(self):
        home = self.own()
        away = os.path.join(home.base, "away")
        os.mkdir(away)
        os.chmod(away, 0o777)
        target = os.path.join(away, "assign")
        os.replace(home.file("users/assign"), target)
        os.symlink(target, home.file("users/assign"))
        # Reading is allowed behind the link; a database to be written there is not.
        self.assertEqual(home.run(["qmail-newu"]).code, 0)
        os.symlink(os.path.join(away, "cdb.tmp"), home.file("users/cdb.tmp"))
        r = home.run(["qmail-newu"])
        self.assertEqual((r.code, os.path.exists(os.path.join(away, "cdb.tmp"))), (111, False), r)

    def test_what_is_replaced_by_rename_while_everything_runs(self):
        home = self.own()
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            server.settimeout(harness.TIMEOUT)
            home.start()
            # A new qmail-remote and new control files, each moved over the old one.
            shutil.copy(os.path.realpath(home.file("bin/qmail-remote")), home.file("bin/fresh"))
            os.rename(home.file("bin/fresh"), home.file("bin/qmail-remote"))
            for name, text in (("smtproutes", f":[127.0.0.1]:{server.getsockname()[1]}\n"), ("locals", "test.example\nfresh.example\n")):
                home.write("control/fresh", text, 0o644)
                os.rename(home.file("control/fresh"), home.file("control", name))
            self.assertEqual(home.inject("x\n", "", ["joe@elsewhere.example"]).code, 0)
            server.accept()[0].close()
            home.daemon.process.send_signal(1)
            wait_for(lambda: home.inject("x\n", "", ["joe@fresh.example"]).code == 0 and home.messages(), "the new name to be local")
            # The directory itself is another matter, as doc/security.md says: nothing is lost, and the log tells.
            os.rename(home.file("control"), home.file("control.old"))
            shutil.copytree(home.file("control.old"), home.file("control"))
            home.daemon.process.send_signal(1)
            home.wait_log("alert: unable to read control/locals: .*\n(.*\n)*.*alert: unable to reread control/locals")
            self.assertEqual(home.inject("x\n", "", ["joe@later.example"], {"QMAILDOOR": "socket"}).code, 0)
            home.wait_log("to remote joe@later.example\n(.*\n)*.*deferral: .*control")


@sandbox.alone
class Network(Case):
    """A machine whose /etc/resolv.conf is a link to a place of its own."""

    def test_resolv_conf_is_read_wherever_it_is(self):
        home = self.own()
        home.env.pop("DNSCACHEIP", None)
        os.mkdir("/mnt/network")
        with open("/mnt/network/resolv.conf", "w") as f:
            f.write("nameserver 127.0.0.7\n")
        os.unlink("/etc/resolv.conf")
        os.symlink("/mnt/network/resolv.conf", "/etc/resolv.conf")
        with socket.socket(type=socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.7", 53))
            server.settimeout(harness.TIMEOUT)
            home.start()
            self.assertEqual(home.inject("x\n", "", ["joe@elsewhere.example"]).code, 0)
            self.assertIn(b"\x09elsewhere\x07example\x00", server.recv(4096).lower())


@unittest.skipUnless(shutil.which("strace"), "strace is not installed")
class Kernels(Case):
    """What this kernel can do may be missing in another."""

    def faulty(self, argv, faults, env, stdin=b"", **more):
        injected = [word for fault in faults for word in ("-e", f"inject={fault}")]
        return run(["strace", "-f", "-o", "/dev/null", *injected, program(argv[0]), *argv[1:]], stdin, env, **more)

    def test_without_landlock_programs_run_on_and_qmail_showctl_says_so(self):
        home = self.own()
        none = ["landlock_create_ruleset:error=EOPNOTSUPP"]
        r = self.faulty(["qmail-queue"], none, {**home.env, "QMAILDOOR": "direct"}, fds={0: b"x\n", 1: b"F\0Tjoe@test.example\0\0"})
        self.assertEqual(r.code, 0)
        r = self.faulty(["qmail-showctl"], none, home.env)
        self.assertRegex(r.out, rb"\n\nnotes: \n(.*\n)*this kernel: Landlock: ")

    def test_this_kernel_misses_nothing(self):
        home = self.own()
        self.assertNotIn(b"this kernel: ", home.run(["qmail-showctl"]).out)

    def test_a_jail_that_cannot_be_closed_is_a_temporary_failure(self):
        home = self.own()
        home.write("users/assign", ".\n")
        # qmail-queue asks once more than others what Landlock can do.
        for fault, other in (("landlock_restrict_self:error=E2BIG",) * 2,
                             ("landlock_create_ruleset:error=ENOMEM:when=3", "landlock_create_ruleset:error=ENOMEM:when=2"),
                             ("seccomp:error=ENOMEM", None), ("prlimit64:error=EPERM",) * 2):
            with self.subTest(fault):
                r = self.faulty(["qmail-queue"], [fault], {**home.env, "QMAILDOOR": "direct"},
                                fds={0: b"x\n", 1: b"F\0Tjoe@test.example\0\0"})
                self.assertEqual(r.code, 61)
                self.assertEqual(os.listdir(home.file("queue/todo")), [])
                if other:
                    r = self.faulty(["qmail-newu"], [other], home.env)
                    self.assertEqual(r.code, 111)
                    self.assertRegex(r.err, rb"^qmail-newu: fatal: unable to (close the jail|set resource limits): ")


if __name__ == "__main__":
    unittest.main()
