"""qmail-start from outside: who is started, as whom, with which descriptors; and the keeper of qmail-queued."""

import fcntl
import json
import os
import signal
import unittest

from tests import harness, spawners

# A daemon that writes down what it finds and waits for the end of its input (qmail-send: for a signal).
DAEMON = """#!/usr/bin/env python3
import json, os, signal, sys
fds = {{}}
for name in os.listdir("/proc/self/fd"):
    try:
        fds[name] = os.readlink("/proc/self/fd/" + name)
    except FileNotFoundError:
        pass
name = os.path.basename(sys.argv[0])
found = dict(burst=os.environ.get("QMAILBURST"), argv=sys.argv[1:], uid=os.getuid(), gid=os.getgid(), groups=os.getgroups(), pid=os.getpid(),
             fds=fds, cwd=os.getcwd(), umask=os.umask(0))
path = os.path.join("{out}", "met-" + name)
with open(path + ".tmp", "w") as f:
    json.dump(found, f)
os.rename(path + ".tmp", path)
if name == "qmail-send":
    os.write(0, b"status: sending\\n")
    signal.pause()
elif name == "logger":
    for line in sys.stdin.buffer:
        os.write(1, b"logged: " + line)
else:
    while os.read(0, 100):
        pass
"""

# A qmail-queued that holds the lock, speaks, and stays.
QUEUED = """#!/usr/bin/env python3
import fcntl, json, os, signal, sys
lock = os.open(os.environ["QMAIL_HOME"] + "/run/queue.lock", os.O_RDWR)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    os._exit(111)
fds = {{name: os.readlink("/proc/self/fd/" + name) for name in ("0", "1", "2")}}
pipes = [n for n in os.listdir("/proc/self/fd") if int(n) > 2 and os.path.exists("/proc/self/fd/" + n)]
found = dict(pid=os.getpid(), fds=fds, uid=os.getuid(), gid=os.getgid(), groups=os.getgroups())
with open("{out}/queued-%d.tmp" % os.getpid(), "w") as f:
    json.dump(found, f)
os.rename("{out}/queued-%d.tmp" % os.getpid(), "{out}/queued-%d" % os.getpid())
os.write(2, b"qmail-queued: warning: something\\n")
signal.pause()
"""

DAEMONS = ["qmail-send", "qmail-lspawn", "qmail-rspawn", "qmail-clean"]


class Started(unittest.TestCase):
    def setUp(self):
        self.fakes = spawners.Fakes()
        self.addCleanup(self.fakes.remove)
        for name in DAEMONS + ["logger"]:
            self.fake(name, DAEMON)
        self.fake("qmail-queued", QUEUED)
        self.make_home()
        self.env = self.fakes.env(self.home.env)
        self.addCleanup(self.end_queued)

    def fake(self, name, text):
        with open(self.fakes.script(name, ""), "w") as f:
            f.write(text.format(out=self.fakes.path))

    def make_home(self):
        self.home = harness.Home(users={})
        self.addCleanup(self.home.__exit__)

    def queueds(self):
        """What each qmail-queued wrote down, in order of their start."""
        names = [n for n in os.listdir(self.fakes.path) if n.startswith("queued-") and not n.endswith(".tmp")]
        names.sort(key=lambda n: os.stat(self.fakes.file(n)).st_mtime_ns)
        found = []
        for name in names:
            with open(self.fakes.file(name)) as f:
                found.append(json.load(f))
        return found

    def living(self):
        return [q for q in self.queueds() if spawners.lives(q["pid"])]

    def end_queued(self):
        """Ends what qmail-start left behind, also a qmail-queued that was just about to begin."""
        while left := spawners.with_environment(f"FAKES={self.fakes.path}"):
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    def start(self, *args, env=None):
        daemon = harness.Daemon(["qmail-start", *args], env=env or self.env)
        self.addCleanup(daemon.stop)
        return daemon

    def met(self, name):
        """What a daemon wrote down."""
        path = self.fakes.file("met-" + name)
        harness.wait_for(lambda: os.path.exists(path), f"{name} to be started")
        with open(path) as f:
            return json.load(f)

    def one_queued(self):
        harness.wait_for(self.living, "qmail-queued to be started")
        return self.living()[-1]


class InAnOwnHome(Started):
    def test_the_two_that_must_agree_are_told_that_recipients_may_travel_together(self):
        self.start("./Maildir/", env={**self.env, "QMAILBURST": "7"})
        self.assertEqual({name: self.met(name)["burst"] for name in DAEMONS},
                         {"qmail-send": "2", "qmail-rspawn": "2", "qmail-lspawn": None, "qmail-clean": None})

    def test_nobody_is_told_where_another_program_stands_for_qmail_remote(self):
        self.start("./Maildir/", env={**self.env, "QMAILBURST": "1", "QMAILREMOTE": "mine"})
        self.assertEqual({self.met(name)["burst"] for name in DAEMONS}, {None})

    def test_six_pipes_join_the_daemons(self):
        self.start("./Maildir/")
        send, lspawn, rspawn, clean = [self.met(name) for name in DAEMONS]
        ends = [(1, lspawn, 0), (2, lspawn, 1), (3, rspawn, 0), (4, rspawn, 1), (5, clean, 0), (6, clean, 1)]
        pipes = set()
        for number, other, theirs in ends:
            pipe = send["fds"][str(number)]
            self.assertTrue(pipe.startswith("pipe:"))
            self.assertEqual(pipe, other["fds"][str(theirs)], f"descriptor {number} of qmail-send")
            pipes.add(pipe)
        self.assertEqual(len(pipes), 6)
        for daemon, own in [(send, "0123456"), (lspawn, "01"), (rspawn, "01"), (clean, "01")]:
            held = sorted(n for n, link in daemon["fds"].items() if link.startswith("pipe:") and n != "0" or n in own)
            self.assertEqual(held, sorted(own))

    def test_the_arguments_reach_who_they_are_for(self):
        self.start("./Maildir/")
        self.assertEqual(self.met("qmail-lspawn")["argv"], ["./Maildir/"])
        for name in ("qmail-send", "qmail-rspawn", "qmail-clean"):
            self.assertEqual(self.met(name)["argv"], [])

    def test_without_arguments_mail_goes_to_Mailbox(self):
        self.start()
        self.assertEqual(self.met("qmail-lspawn")["argv"], ["./Mailbox"])

    def test_it_becomes_qmail_send_and_all_run_as_the_owner(self):
        daemon = self.start()
        uid, gid = harness.owner()[1:]
        self.assertEqual(self.met("qmail-send")["pid"], daemon.pid)
        for name in DAEMONS:
            self.assertEqual((self.met(name)["uid"], self.met(name)["gid"]), (uid, gid))

    def test_without_a_logger_the_log_is_its_output(self):
        self.start().wait_log(r"^status: sending$")

    def test_a_logger_gets_the_log_and_its_arguments(self):
        daemon = self.start("./Mailbox", "logger", "-t", "x y")
        daemon.wait_log(r"^logged: status: sending$")
        logger = self.met("logger")
        self.assertEqual(logger["argv"], ["-t", "x y"])
        self.assertEqual(logger["fds"]["0"], self.met("qmail-send")["fds"]["0"])
        self.assertEqual(logger["fds"]["1"], daemon.logfile)
        daemon.wait_log(r"^logged: qmail-queued: warning: something$")

    def test_the_logger_ends_with_qmail_send(self):
        daemon = self.start("./Mailbox", "logger")
        logger = self.met("logger")["pid"]
        self.met("qmail-send")
        self.one_queued()
        daemon.process.kill()
        daemon.process.wait()
        harness.wait_for(lambda: not spawners.lives(logger), "the logger to see the end of its input")

    def test_a_missing_program_is_named(self):
        for name in DAEMONS:
            env = {**self.home.env, "PATH": "/usr/bin:/bin"}
            link = self.home.file("bin", name)
            target = os.readlink(link)
            os.unlink(link)
            with self.subTest(name):
                result = harness.run(["qmail-start"], env=env)
                self.assertEqual((result.code, result.out), (111, b""))
                self.assertEqual(result.err, f"qmail-start: fatal: unable to run {link}: file does not exist\n".encode())
            os.symlink(target, link)
        result = harness.run(["qmail-start", "x", "no-such-logger"], env=self.env)
        self.assertEqual(result.code, 111)
        self.assertEqual(result.err, b"qmail-start: fatal: unable to find no-such-logger: file does not exist\n")

    def test_a_missing_home_is_named(self):
        result = harness.run(["qmail-start"], env={**self.env, "QMAIL_HOME": "/nonexistent"})
        self.assertEqual(result.code, 111)
        self.assertIn(b"qmail-start: fatal: unable to use home /nonexistent", result.err)

    # -- qmail-queued and its keeper

    def test_qmail_queued_is_started_and_its_lines_are_in_the_log(self):
        self.start().wait_log(r"^qmail-queued: warning: something$")

    def test_qmail_queued_holds_none_of_the_pipes(self):
        daemon = self.start("./Mailbox", "logger")
        queued = self.one_queued()
        send = self.met("qmail-send")
        daemon.wait_log(r"logged: qmail-queued: warning")
        theirs = {link for n, link in send["fds"].items() if link.startswith("pipe:")}
        self.assertFalse(theirs & set(spawners.pipes_of(queued["pid"]).values()))
        self.assertEqual((queued["fds"]["0"], queued["fds"]["1"]), ("/dev/null", "/dev/null"))

    def test_qmail_queued_is_started_again_with_an_alert(self):
        daemon = self.start()
        first = self.one_queued()
        os.kill(first["pid"], signal.SIGKILL)
        daemon.wait_log(r"^alert: qmail-queued ended \(signal 9\), starting it again$")
        harness.wait_for(lambda: len(self.queueds()) == 2, "a second qmail-queued")
        self.assertNotEqual(self.one_queued()["pid"], first["pid"])

    def test_qmail_queued_goes_on_without_qmail_send_and_its_keeper_does_not(self):
        daemon = self.start()
        queued = self.one_queued()
        keeper = spawners.parent_of(queued["pid"])
        self.assertIn(keeper, spawners.children_of(daemon.pid))
        self.assertEqual(daemon.stop(), -signal.SIGTERM)
        harness.wait_for(lambda: not spawners.lives(keeper), "the keeper to end")
        self.assertEqual([q["pid"] for q in self.living()], [queued["pid"]])

    def test_while_somebody_else_keeps_the_door_none_is_started(self):
        with open(self.home.write("run/queue.lock", "", 0o644), "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            daemon = self.start()
            daemon.wait_log(r"^status: sending$")
            harness.wait_for(lambda: spawners.children_of(daemon.pid), "the keeper to be there")
            self.assertEqual(self.queueds(), [])
        # Free now. A supervisor has five seconds to start its own; then the keeper does.
        self.one_queued()
        self.assertNotIn("alert", daemon.log())

    def test_told_that_qmail_queued_is_a_service_it_leaves_no_keeper(self):
        daemon = self.start(env={**self.env, "QMAILKEEPER": "no"})
        # The keeper would have been started before these.
        daemons = {self.met(name)["pid"] for name in DAEMONS}
        self.assertEqual(set(spawners.children_of(daemon.pid)) | {daemon.pid}, daemons)
        self.assertEqual(self.queueds(), [])

    def test_an_unknown_word_for_the_keeper_is_refused(self):
        for word in ("", "0", "none"):
            result = harness.run(["qmail-start"], env={**self.env, "QMAILKEEPER": word})
            self.assertEqual((result.code, result.out), (111, b""))
            self.assertEqual(result.err, b"qmail-start: fatal: QMAILKEEPER must be yes or no\n")

    def test_without_qmail_queued_everything_else_runs_after_one_alert(self):
        os.unlink(self.home.file("bin/qmail-queued"))
        os.unlink(self.fakes.file("qmail-queued"))
        env = {**self.env, "PATH": f"{self.fakes.path}:/usr/bin:/bin"}
        daemon = self.start(env=env)
        daemon.wait_log(r"^status: sending$")
        daemon.wait_log(r"^alert: unable to run .*/bin/qmail-queued$")
        self.assertEqual(daemon.log().count("alert"), 1)


@unittest.skipUnless(os.geteuid() == 0, "a system home needs root")
class InASystemHome(Started):
    def make_home(self):
        self.home = spawners.SystemHome()
        self.addCleanup(self.home.remove)

    def test_each_daemon_runs_as_its_own_user(self):
        self.start("./Mailbox", "logger")
        ids = self.home.IDS
        qmail = ids["qmailq"][1]
        for name, uid, gid in [("logger", ids["qmaill"][0], ids["qmaill"][1]), ("qmail-lspawn", 0, qmail),
                               ("qmail-rspawn", ids["qmailr"][0], qmail), ("qmail-clean", ids["qmailq"][0], qmail),
                               ("qmail-send", ids["qmails"][0], qmail)]:
            met = self.met(name)
            self.assertEqual((met["uid"], met["gid"], met["groups"]), (uid, gid, [gid]), name)
        queued = self.one_queued()
        self.assertEqual((queued["uid"], queued["gid"], queued["groups"]), (ids["qmailq"][0], qmail, [qmail]))

    def test_the_keeper_ends_with_qmail_send_although_it_is_another_user(self):
        daemon = self.start()
        queued = self.one_queued()
        keeper = spawners.parent_of(queued["pid"])
        self.met("qmail-send")
        daemon.stop()
        harness.wait_for(lambda: not spawners.lives(keeper), "the keeper to end")
        self.assertEqual([q["pid"] for q in self.living()], [queued["pid"]])

    def test_a_user_missing_in_users_ids_is_named(self):
        for name in ("qmailq", "qmailr", "qmails", "qmaill"):
            text = "".join(f"{n}:{u}:{g}\n" for n, (u, g) in self.home.IDS.items() if n != name)
            self.home.write("users/ids", text.encode())
            with self.subTest(name):
                result = harness.run(["qmail-start", "x", "logger"], env=self.env)
                self.assertEqual(result.code, 111)
                self.assertEqual(result.err, f"qmail-start: fatal: unable to find user {name}\n".encode())

    def test_only_root_starts_it(self):
        result = harness.run(["qmail-start"], env=self.env, as_user=(12345, 12345))
        self.assertEqual(result.code, 111)
        self.assertIn(b"only root can start a system of several users", result.err)


if __name__ == "__main__":
    unittest.main()
