"""Faults of the system are temporary: each is told with the name of what is wrong, loses nothing, and passes.

For every program that reads a control file, for every directory of the queue and for every helper
program: while the fault lasts the answer is 111, 4xx, Z or -ERR [SYS/TEMP], and nothing is accepted or
delivered by half; afterwards the running system goes on by itself. A full disk is in test_faults_disk,
damaged files are in test_faults_damage, killed daemons in tests/crash/kills.py.
"""

import contextlib
import os
import poplib
import re
import signal
import socketserver
import threading
import unittest
from itertools import product

from tests import harness
from tests.faults import (AS, copies, crowd, left, message, missing, mode, nudge, parts, replaced, start, started_without, wait_arrival,
                          wait_line)
from tests.harness import Daemon, Home, Line, dialogue, free_port, wait_for

HOST = "test.example"
SMTP = ("EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<joe@test.example>\r\nDATA\r\n"
        "Subject: x\r\n\r\nx\r\n.\r\nQUIT\r\n").encode()
ENVELOPE = b"Fa@b.example\0Tjoe@test.example\0\0"
QUEUE_SILENT = range(51, 82)  # what qmail-queue says when a fault may pass

CONTROLS = {
    "qmail-smtpd": ["smtpgreeting", "me", "databytes", "timeoutsmtpd", "rcpthosts", "badmailfrom", "localiphost"],
    "qmail-inject": ["defaulthost", "defaultdomain", "plusdomain", "idhost", "me"],
    "qmail-remote": ["helohost", "me", "smtproutes", "timeoutconnect", "timeoutremote"],
    "qmail-send": ["envnoathost", "percenthack", "locals", "virtualdomains", "bouncefrom", "bouncehost", "me",
                   "doublebounceto", "doublebouncehost", "concurrencylocal", "concurrencyremote", "queuelifetime"],
    "qmail-newmrh": ["morercpthosts"],
}


class Case(unittest.TestCase):
    def make(self, **more):
        home = Home(**more)
        self.addCleanup(home.__exit__)
        return home


class SinglePrograms(Case):
    """Programs run alone, each with what it needs in disorder."""

    @classmethod
    def setUpClass(cls):
        cls.home = Home()
        cls.addClassCleanup(cls.home.__exit__)

    def answer(self, program):
        """Runs a program so that it would succeed; (answer, what it says to the log)."""
        run = self.home.run
        if program == "qmail-smtpd":
            result = run([program], SMTP)
            self.assertEqual(result.code, 1 if result.out.startswith(b"421") else 0)
            return result.out, result.err
        if program == "qmail-inject":
            result = run([program, "joe"], b"Subject: x\n\nx\n")
        elif program == "qmail-remote":
            result = run([program, "[127.0.0.1]", "a@b", "c@d"], b"x\n")
            self.assertEqual(result.code, 0)
            return result.out, result.out
        elif program == "qmail-send":
            result = run([program], fds={0: "capture"})
            return result.code, result.fds[0]
        else:
            result = run([program])
        return result.code, result.err

    def test_a_control_file_that_cannot_be_read_is_temporary_and_named(self):
        for program, names in CONTROLS.items():
            for name, way in product(names, AS):
                with self.subTest(program, name=name, by=way), replaced(self.home.file("control", name), way):
                    answer, said = self.answer(program)
                    self.assertIn(f"control/{name}".encode(), said)
                    if program == "qmail-smtpd":
                        self.assertEqual(answer, b"421 unable to read controls (#4.3.0)\r\n")
                    elif program == "qmail-remote":
                        self.assertRegex(answer, rb"\AZUnable to read control files. \(#4.3.0\)\n[^\0]*\0\Z")
                    else:
                        self.assertEqual(answer, 111)
                    self.assertEqual(left(self.home), [])

    def test_a_database_of_domains_that_cannot_be_read_ends_the_session(self):
        """control/morercpthosts.cdb may be opened as late as it is asked: not to know a domain is not to refuse it."""
        for way in AS:
            with self.subTest(way), replaced(self.home.file("control/morercpthosts.cdb"), way):
                result = self.home.run(["qmail-smtpd"], b"HELO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@elsewhere.example>\r\n")
                self.assertTrue(result.out.endswith(b"421 unable to read controls (#4.3.0)\r\n"), result)
                self.assertEqual(result.code, 1)
                self.assertIn(b"control/morercpthosts.cdb", result.err)

    def test_without_the_name_of_this_host_nothing_is_served(self):
        with missing(self.home.file("control/me"), self.home.file("control/locals")):
            self.assertEqual(self.answer("qmail-smtpd")[0], b"421 unable to read controls (#4.3.0)\r\n")
            self.assertEqual(self.answer("qmail-send")[0], 111)
            self.assertTrue(self.answer("qmail-remote")[0].startswith(b"ZUnable to read control files. (#4.3.0)\n"))
            for program in ("qmail-smtpd", "qmail-send", "qmail-remote"):
                self.assertIn(b"control/me", self.answer(program)[1])

    def test_a_home_without_readable_ids_is_used_by_nobody(self):
        """users/ids says whose home it is. Without it no program may guess."""
        for way in AS:
            with self.subTest(way), replaced(self.home.file("users/ids"), way):
                self.assertEqual(self.answer("qmail-smtpd")[0], b"421 unable to read controls (#4.3.0)\r\n")
                self.assertIn(b"users/ids", self.answer("qmail-smtpd")[1])
                self.assertTrue(self.answer("qmail-remote")[0].startswith(b"Z"))
                self.assertIn(b"users/ids", self.answer("qmail-send")[1])
                self.assertEqual(self.home.inject(b"x\n", "a@b", ["joe"]).code, 61)
                for argv in (["qmail-send"], ["qmail-start", "./Maildir/"], ["qmail-queued"], ["qmail-clean"],
                             ["qmail-lspawn", "x"], ["qmail-rspawn"], ["qmail-inject", "joe"], ["sendmail", "joe"],
                             ["qmail-newu"], ["qmail-newmrh"], ["qmail-newsenders"], ["qmail-qread"], ["qmail-tcpto"], ["qmail-tcpok"],
                             ["forward", "joe"]):
                    result = self.home.run(argv, b"x\n", env={"NEWSENDER": "", "DTLINE": "Delivered-To: x\n"})
                    self.assertEqual(result.code, 111, argv)
                    if argv[0] != "qmail-send":  # whose descriptor 2 is a pipe: its log is descriptor 0
                        self.assertIn(b"users/ids", result.err + result.out, argv)
                result = self.home.run(["qmail-popup", HOST, "checker"], b"QUIT\r\n")
                self.assertRegex(result.out, rb"\A-ERR \[SYS/TEMP\] [^\r]*\r\n\Z")
                self.assertIn(b"users/ids", result.err)
                self.assertEqual(left(self.home), [])

    def test_what_a_database_is_made_of_is_named_and_the_database_stays(self):
        with open(self.home.file("users/cdb"), "rb") as f:
            before = f.read()
        for name, way in [*product(["users/assign", "users/cdb.tmp"], AS), ("users/assign", "missing")]:
            with self.subTest(name, by=way), replaced(self.home.file(name), way):
                result = self.home.run(["qmail-newu"])
                self.assertEqual(result.code, 111)
                self.assertIn(name.encode(), result.err)
                with open(self.home.file("users/cdb"), "rb") as f:
                    self.assertEqual(f.read(), before)
        with mode(0o500, self.home.file("users")):
            result = self.home.run(["qmail-newu"])
        self.assertEqual(result.code, 111)
        self.assertIn(b"users/cdb.tmp", result.err)
        result = self.home.run(["qmail-newmrh"])
        self.assertEqual(result.code, 111)
        self.assertIn(b"control/morercpthosts", result.err)

    def test_an_output_that_takes_nothing_is_no_success(self):
        self.assertEqual(self.home.inject(message("shown"), "a@b.example", ["joe@test.example"]).code, 0)
        self.addCleanup(lambda: [os.unlink(self.home.file("queue", name)) for name in left(self.home)])
        for argv in (["qmail-inject", "-n", "joe"], ["qmail-showctl"], ["qmail-qread"], ["qmail-getpw", "nobody"], ["qmail-pw2u"], ["tcprulescheck", self.home.file("tcp/smtp.cdb")]):
            with self.subTest(argv[0]), open("/dev/full", "wb") as full:
                result = self.home.run(argv, b"nobody:x:65534:65534::/nonexistent:/bin/sh\n" * 2000,
                                       fds={1: full.fileno()})
                self.assertEqual(result.code, 111, result)


class Queue(Case):
    """Directories of the queue that cannot be used, seen through each door."""

    FAULTS = {"pid": 63, "mess": 64, "intd": 65, "todo": 66}

    def refused(self, home, door, code):
        env = {"QMAILDOOR": door}
        result = home.run(["qmail-queue"], env=env, fds={0: message("refused"), 1: ENVELOPE})
        self.assertEqual(result.code, code)
        self.assertEqual(left(home), [])
        said = b"qq trouble creating files in queue (#4.3.0)"
        result = home.run(["qmail-inject", "joe"], message("refused"), env)
        self.assertEqual((result.code, result.err), (111, b"qmail-inject: fatal: " + said + b"\n"))
        result = home.run(["qmail-smtpd"], SMTP, env)
        self.assertIn(b"\r\n451 4.3.0 " + said + b"\r\n221 ", result.out)
        self.assertIn(said, result.err)
        result = home.run(["forward", "joe"], message("refused"), {**env, "NEWSENDER": "a@b", "DTLINE": "D: x\n"})
        self.assertEqual((result.code, result.err), (111, b"forward: fatal: " + said + b"\n"))
        self.assertEqual(left(home), [])

    def test_an_unwritable_directory_refuses_for_now_and_leaves_nothing(self):
        home = self.make()
        with Daemon(["qmail-queued"], env=home.env, cwd="/"):
            wait_for(lambda: os.path.exists(home.file("run/queue")), "the socket")
            for door in ("direct", "socket"):
                for name, bits in product(self.FAULTS, (0o500, 0)):
                    with self.subTest(name, door=door, mode=oct(bits)):
                        with mode(bits, *parts(home, name)):
                            self.refused(home, door, self.FAULTS[name])
                        self.assertEqual(home.run(["qmail-queue"], env={"QMAILDOOR": door},
                                                  fds={0: message("after"), 1: ENVELOPE}).code, 0)
                        self.assertEqual([n.split("/")[0] for n in left(home)], ["intd", "mess", "todo"])
                        for path in left(home):
                            os.unlink(home.file("queue", path))

    def test_a_queue_that_leads_nowhere_refuses_for_now(self):
        home = self.make()
        # (A loop in the place of queue or mess looks like somebody else's queue, and is tried for five seconds.)
        for name, way in [("", "missing"), ("mess", "missing"), *product(["pid", "intd", "todo"], ("missing", "loop"))]:
            with self.subTest(name, by=way), replaced(home.file("queue", name).rstrip("/"), way):
                result = home.run(["qmail-queue"], fds={0: message("x"), 1: ENVELOPE})
                self.assertIn(result.code, QUEUE_SILENT)
                result = home.run(["qmail-inject", "joe"], message("x"), {"QMAILDOOR": "direct"})
                self.assertEqual(result.code, 111)
                self.assertIn(b"(#4.", result.err)
            self.assertEqual(left(home), [])

    def test_the_system_waits_while_its_directories_cannot_be_written(self):
        home = self.make(users={"joe": "secret", "ann": "x"})
        remote = Remote(self, home)
        said = {
            "info": r"^warning: unable to create info/\d+/\d+$",
            "local": r"^warning: unable to create local/\d+/\d+$",
            "remote": r"^warning: unable to create remote/\d+/\d+$",
            "todo": r"^warning: qmail-clean unable to clean up todo/\d+$",
            "intd": r"^warning: qmail-clean unable to clean up todo/\d+$",
        }
        for name, line in said.items():
            with self.subTest(name):
                self.assertEqual(home.inject(message(name), "ann@test.example",
                                             ["joe@test.example", "x@remote.example", *crowd(home)]).code, 0)
                with mode(0o500, *parts(home, name)):
                    start(home)
                    wait_line(home, line)
                    self.assertEqual(copies(home.messages() + remote.messages, name), [])
                wait_arrival(home, name)
                self.assertEqual(len(copies(remote.messages, name)), 1)
                self.assertEqual(home.stop(), 0)
        # The message is delivered, and only what is left of it cannot be removed.
        start(home)
        home.inject(message("mess"), "ann@test.example", ["joe@test.example"])
        wait_arrival(home, "mess")
        home.dotqmail(".qmail-slow", "|until [ -e go ]; do sleep 0.01; done\n")
        home.inject(message("kept"), "ann@test.example", ["joe-slow@test.example"])
        wait_line(home, r"to local joe-slow@test.example$")
        with mode(0o500, *parts(home, "mess")):
            home.write("home/joe/go", "")
            wait_line(home, r"^warning: qmail-clean unable to clean up foop/\d+$")
        self.assertEqual([n.split("/")[0] for n in left(home)], ["mess"])

    def test_a_directory_that_is_away_is_no_proof_that_its_files_are_gone(self):
        """What is not mounted yet, or was moved: no list means delivered, no message means over."""
        home = self.make()
        lines = {"mess": ["unable to open mess/"], "local": ["unable to stat local/", "unable to create local/"],
                 "remote": ["unable to stat remote/", "delivery .*: success"],
                 "bounce": ["delivery .*: success", "unable to stat bounce/"],
                 "info": ["unable to opendir info/0, sleeping"], "todo": ["unable to opendir todo, sleeping"]}
        for name, expected in lines.items():
            with self.subTest(name):
                deferred, fresh = f"deferred {name}", f"fresh {name}"
                home.dotqmail(".qmail-later", "|exit 111\n")
                start(home)
                home.inject(message(deferred), "a@b.example", ["joe-later@test.example"])
                wait_line(home, r"^delivery \d+: deferral: ")
                self.assertEqual(home.stop(), 0)
                home.inject(message(fresh), "a@b.example", ["joe@test.example", *crowd(home)])
                os.unlink(home.logfile)
                with started_without(home, *parts(home, name)):
                    for line in expected:
                        wait_line(home, line)
                self.assertEqual(len(left(home, "mess")), 2)
                home.dotqmail(".qmail-later", "./Maildir/\n")
                start(home)
                wait_arrival(home, deferred)
                wait_arrival(home, fresh)
                home.stop()

    def test_what_cannot_be_marked_as_done_is_not_delivered_again(self):
        home = self.make()
        home.dotqmail(".qmail-once", "|until [ -e go ]; do sleep 0.01; done; echo >>once\n")
        start(home)
        home.inject(message("once"), "a@b.example", ["joe-once@test.example", *crowd(home)])
        number = int(wait_line(home, r"^starting delivery \d+: msg (\d+) to local joe-once@")[1])
        with mode(0o400, home.file(f"queue/local/{number % 23}/{number}")):
            home.write("home/joe/go", "")
            wait_line(home, r"^warning: trouble marking local/\d+/\d+; message will be delivered twice!$")
            nudge(home)
            home.inject(message("other"), "a@b.example", ["joe@test.example"])
            wait_for(lambda: copies(home.messages(), "other"), "the other message")
            nudge(home)
        wait_for(lambda: nudge(home) or not left(home), "the queue to be empty")
        with open(home.file("home/joe/once")) as f:
            self.assertEqual(f.read(), "\n")
        self.assertEqual(len(re.findall(r"to local joe-once@", home.log())), 1)

    def test_a_start_without_its_lock_names_it(self):
        home = self.make()
        for way in ("missing", *AS):
            with self.subTest(way), replaced(home.file("queue/lock/sendmutex"), way):
                result = home.run(["qmail-start", "./Maildir/"])
                self.assertEqual(result.code, 111)
                if way == "secret":  # it is what it should be, for all that can be seen from outside
                    self.assertIn(b"alert: unable to open queue/lock/sendmutex: ", result.out)
                    self.assertIn(b"\nalert: cannot start: unable to open mutex\n", result.out)
                else:
                    self.assertIn(b"refusing %s/queue/lock/sendmutex: " % home.path.encode(), result.err)

    def test_a_trigger_that_is_missing_delays_mail_and_loses_none(self):
        home = self.make()
        trigger = home.file("queue/lock/trigger")
        start(home)
        with missing(trigger):
            self.assertEqual(home.inject(message("unheard"), "a@b.example", ["joe@test.example"]).code, 0)
            home.stop()
        with started_without(home, trigger):  # and the start stands for the 25 minutes
            wait_for(lambda: copies(home.messages(), "unheard"), "the message")
            os.mkfifo(trigger)  # that is noticed without a restart
            os.chmod(trigger, 0o622)
            if os.geteuid() == 0:
                os.chown(trigger, *harness.owner()[1:])
            self.assertEqual(home.inject(message("heard"), "a@b.example", ["joe@test.example"]).code, 0)
            wait_for(lambda: copies(home.messages(), "heard"), "the next message", 2 * harness.TIMEOUT)

    def test_a_file_that_cannot_be_read_is_read_later(self):
        home = self.make()
        home.dotqmail(".qmail-later", "|exit 111\n")
        for name in ("todo", "mess", "info", "local"):
            with self.subTest(name):
                since = len(home.log())
                if name == "todo":
                    home.inject(message(name), "a@b.example", ["joe@test.example"])
                else:
                    start(home)
                    home.inject(message(name), "a@b.example", ["joe-later@test.example"])
                    wait_line(home, r"^delivery \d+: deferral: $|^delivery \d+: deferral: /$")
                    since = len(home.log())
                if name != "todo":
                    wait_for(lambda: not left(home, "todo"), "the deferral to be written down")
                [path] = left(home, name)
                with mode(0, home.file("queue", path)):
                    if name == "todo":
                        start(home)
                        since = 0
                    nudge(home)
                    said = {"todo": f"^warning: unable to open {path}$", "mess": "^delivery .*: deferral: qmail-spawn_unable_to_open_message"}
                    wait_line(home, said.get(name, f"^warning: trouble opening {path}; will try again later$"), since)
                home.dotqmail(".qmail-later", "./Maildir/\n")
                wait_arrival(home, name)
                home.dotqmail(".qmail-later", "|exit 111\n")
                home.stop()


class Remote:
    """A host remote.example that takes everything: control/smtproutes leads there."""

    def __init__(self, case, home):
        self.messages = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                self.wfile.write(b"220 hi\r\n")
                lines, inside = [], False
                for line in self.rfile:
                    if inside:
                        if line == b".\r\n":
                            outer.messages.append(b"".join(lines).replace(b"\r\n", b"\n"))
                            lines, inside = [], False
                            self.wfile.write(b"250 taken\r\n")
                        else:
                            lines.append(line)
                    elif line.upper().startswith(b"DATA"):
                        inside = True
                        self.wfile.write(b"354 go\r\n")
                    elif line.upper().startswith(b"QUIT"):
                        self.wfile.write(b"221 bye\r\n")
                        return
                    else:
                        self.wfile.write(b"250 ok\r\n")
        socketserver.ThreadingTCPServer.daemon_threads = True
        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        home.control("smtproutes", f":[127.0.0.1]:{self.server.server_address[1]}\n")
        case.addCleanup(self.server.server_close)
        case.addCleanup(self.server.shutdown)


class Helpers(Case):
    """Programs that start others, without them."""

    def test_deliveries_wait_for_the_program_that_makes_them(self):
        home = self.make()
        remote = Remote(self, home)
        start(home)
        for name, recipient, where, gone, said in (
                ("local", "joe@test.example", home.messages, ["bin/qmail-local"], "Unable_to_run_qmail-local."),
                ("remote", "x@remote.example", lambda: remote.messages, ["bin/qmail-remote"],
                 "Unable_to_run_qmail-remote."),
                ("getpw", "joe@test.example", home.messages, ["bin/qmail-getpw", "users/cdb"],
                 "Unable_to_run_qmail-getpw.")):
            with self.subTest(name):
                with missing(*map(home.file, gone)):
                    self.assertEqual(home.inject(message(name), "joe@test.example", [recipient]).code, 0)
                    wait_line(home, rf"^delivery \d+: deferral: {re.escape(said)}/$")
                    self.assertEqual(copies(where(), name), [])
                wait_arrival(home, name, where)
        self.assertNotIn("failure", home.log())

    def test_a_program_that_cannot_be_executed_is_as_good_as_missing(self):
        home = self.make()
        remote = Remote(self, home)
        start(home)
        kinds = {"not executable": (b"", 0o644), "empty": (b"", 0o755), "without its interpreter": (b"#!/nowhere\n", 0o755),
                 "dying": (b"#!/bin/sh\nkill -9 $$\n", 0o755), "126": (b"#!/bin/sh\nexit 126\n", 0o755),
                 "101": (b"#!/bin/sh\nexit 101\n", 0o755)}
        ways = {"qmail-local": ("joe@test.example", home.messages),
                "qmail-remote": ("x@remote.example", lambda: remote.messages)}
        for (program, (recipient, where)), (kind, (text, bits)) in product(ways.items(), kinds.items()):
            name = f"{program} {kind}"
            with self.subTest(name):
                with missing(home.file("bin", program)):
                    home.write(f"bin/{program}", text, bits)
                    since = len(home.log())
                    home.inject(message(name), "joe@test.example", [recipient])
                    wait_line(home, r"^delivery \d+: deferral: ", since)
                    self.assertEqual(copies(where(), name), [])
                    os.unlink(home.file("bin", program))
                wait_arrival(home, name, where)
        self.assertNotIn("failure", home.log())

    def queueless(self, home, env, said):
        """Everything that hands in mail, without a program to hand it to."""
        result = home.run(["qmail-inject", "joe"], message("x"), env)
        self.assertEqual((result.code, result.err), (111, b"qmail-inject: fatal: " + said + b"\n"))
        result = home.run(["sendmail", "joe"], message("x"), env)
        self.assertEqual((result.code, result.err), (111, b"qmail-inject: fatal: " + said + b"\n"))
        result = home.run(["forward", "joe"], message("x"), {**env, "NEWSENDER": "a@b", "DTLINE": "D: x\n"})
        self.assertEqual((result.code, result.err), (111, b"forward: fatal: " + said + b"\n"))
        result = home.run(["qmail-smtpd"], SMTP, env)
        self.assertRegex(result.out, rb"\r\n(354 go ahead\r\n)?451 4.3.0 " + re.escape(said) + rb"\r\n")
        self.assertIn(said, result.err)
        self.assertEqual(left(home), [])

    def test_without_qmail_queue_forwards_and_bounces_wait(self):
        home = self.make(users={"joe": "secret", "ann": "x"})
        for which, env in (("missing", {"QMAILDOOR": "direct"}), ("QMAILQUEUE", {"QMAILQUEUE": home.file("bin/filter")})):
            with self.subTest(which):
                gone = home.file("bin/qmail-queue")
                with missing(gone) if which == "missing" else contextlib.nullcontext():
                    self.queueless(home, env, b"unable to exec qq (#4.3.0)")
                home.dotqmail(".qmail-fwd", "&ann@test.example\n")
                forward, bounce = f"forward {which}", f"bounce {which}"
                home.inject(message(forward), "ann@test.example", ["joe-fwd@test.example"])
                home.inject(message(bounce), "ann@test.example", ["joe-nobody@test.example"])
                with missing(gone) if which == "missing" else contextlib.nullcontext():
                    start(home, env)
                    wait_line(home, r"^delivery \d+: deferral: "
                                    r"Unable_to_forward_message:_unable_to_exec_qq_\(#4.3.0\)./$")
                    wait_line(home, r"^delivery \d+: failure: Sorry,_no_mailbox_here")
                    wait_line(home, r"^warning: (unable to start qmail-queue|trouble injecting bounce message), will try later$")
                    home.stop()  # and the start below stands for the 123 seconds
                self.assertEqual(home.messages("ann"), [])
                if which == "QMAILQUEUE":
                    home.write("bin/filter", "#!/bin/sh\nexec qmail-queue\n", 0o755)
                start(home, env)
                ann = lambda: home.messages("ann")
                wait_for(lambda: nudge(home) or len(ann()) == 2 and not left(home), "both messages")
                self.assertEqual(len(copies(ann(), forward)), 1)
                self.assertEqual(len([t for t in ann() if f"begin {bounce}".encode() in t]), 1)
                home.stop()
                for name in os.listdir(home.file("home/ann/Maildir/new")):
                    os.unlink(home.file("home/ann/Maildir/new", name))

    def test_without_a_door_mail_is_refused_for_now(self):
        """Callers that may not write the queue, without qmail-queued: 111 after some seconds of patience."""
        home = self.make()
        start(home, {"QMAILDOOR": "socket"})
        with missing(home.file("run/queue")):
            result = home.run(["qmail-inject", "joe"], message("x"), {"QMAILDOOR": "socket"})
            self.assertEqual((result.code, result.err),
                             (111, b"qmail-inject: fatal: connection to mail server rejected (#4.4.1)\n"))
        with mode(0, home.file("run")):
            result = home.run(["qmail-queue"], env={"QMAILDOOR": "socket"}, fds={0: message("x"), 1: ENVELOPE})
            self.assertEqual(result.code, 73)
        result = home.run(["qmail-inject", "joe"], message("door"), {"QMAILDOOR": "socket"})
        self.assertEqual(result.code, 0)
        wait_arrival(home, "door")

    def test_the_system_starts_only_whole_and_then_delivers_what_waited(self):
        home = self.make()
        home.inject(message("waited"), "a@b.example", ["joe@test.example"])
        for program in ("qmail-lspawn", "qmail-rspawn", "qmail-clean", "qmail-send"):
            for way in ("missing", "loop", "directory", "secret"):
                with self.subTest(program, by=way):
                    path = home.file("bin", program)
                    with replaced(path, way):
                        result = home.run(["qmail-start", "./Maildir/"])
                    self.assertEqual(result.code, 111)
                    self.assertIn(f"/bin/{program}: ".encode(), result.err)
        start(home)
        wait_arrival(home, "waited")

    def test_the_door_is_opened_when_its_program_is_back(self):
        home = self.make()
        with missing(home.file("bin/qmail-queued")):
            home.daemon = Daemon([home.file("bin/qmail-start"), "./Maildir/"], home.env, "/", logfile=home.logfile)
            wait_line(home, r"^alert: unable to run \S+/bin/qmail-queued\b")
            wait_line(home, r"^status: local 0/")
            # Whoever owns the queue needs no door.
            home.inject(message("direct"), "a@b.example", ["joe@test.example"])
            wait_arrival(home, "direct")
        wait_for(lambda: os.path.exists(home.file("run/queue")), "the door")
        self.assertEqual(home.log().count("alert"), 1)
        result = home.run(["qmail-inject", "joe"], message("door"), {"QMAILDOOR": "socket"})
        self.assertEqual(result.code, 0)
        wait_arrival(home, "door")

    def test_sendmail_names_the_program_it_cannot_become(self):
        home = self.make()
        for program, argv in (("qmail-inject", ["sendmail", "joe"]), ("qmail-smtpd", ["sendmail", "-bs"]),
                              ("qmail-qread", ["sendmail", "-bp"])):
            with self.subTest(program), missing(home.file("bin", program)):
                result = home.run(argv, message("x"))
                self.assertEqual(result.code, 111)
                self.assertRegex(result.err, rb"\Asendmail: fatal: unable to run " + program.encode() + rb": .*\n\Z")


class Logins(Case):
    """POP3 through tcpserver, qmail-popup and checkpassword-file."""

    def setUp(self):
        self.home = self.make()
        self.home.write("home/joe/Maildir/new/1.mail", message("mine"), 0o600)
        os.utime(self.home.file("home/joe/Maildir/new/1.mail"), (1, 1))
        self.port = free_port()
        argv = ["tcpserver", *harness.as_owner(), "-H", "-R", "-l", "0", "127.0.0.1", str(self.port), "qmail-popup", HOST,
                "checkpassword-file", self.home.file("users/passwd"), "qmail-pop3d", "Maildir"]
        # Only the home's own programs: the test takes one after the other away.
        self.server = Daemon(argv, {**self.home.env, "PATH": f"{self.home.path}/bin:/usr/bin:/bin"})
        self.addCleanup(self.server.stop)

        def listening():
            with contextlib.suppress(ConnectionRefusedError), Line.connect(self.port):
                return True
        wait_for(listening, "the server")

    def refused(self, named):
        since = len(self.server.log())
        with Line.connect(self.port) as line:
            dialogue(line, "S: +OK ...\nC: USER joe\nS: +OK \nC: PASS secret\nS: -ERR [SYS/TEMP] ...")
        wait_for(lambda: named in self.server.log()[since:], f"{named} in the log, which is {self.server.log()!r}")

    def test_a_login_that_cannot_be_checked_is_told_to_come_again(self):
        for name, ways in (("bin/checkpassword-file", ("missing", "loop", "directory", "secret")),
                           ("bin/qmail-pop3d", ("missing", "loop", "directory", "secret")),
                           ("users/passwd", ("missing", "loop", "directory", "secret")),
                           ("home/joe", ("missing", "loop"))):
            for way in ways:
                with self.subTest(name, by=way):
                    path = self.home.file(name)
                    with replaced(path, way):
                        self.refused(os.path.basename(name))
        with mode(0, self.home.file("home/joe")):
            self.refused("home/joe")
        with mode(0, self.home.file("home/joe/Maildir/new")):
            with Line.connect(self.port) as line:
                dialogue(line, "S: +OK ...\nC: USER joe\nS: +OK \nC: PASS secret\n"
                               "S: -ERR [SYS/TEMP] unable to scan $HOME/Maildir")
        self.reads_its_mail()

    def reads_its_mail(self):
        client = poplib.POP3("127.0.0.1", self.port, timeout=harness.TIMEOUT)
        client.user("joe")
        client.pass_("secret")
        self.assertEqual(b"\n".join(client.retr(1)[1]) + b"\n", message("mine"))
        client.quit()

    def test_a_mailbox_that_cannot_be_written_keeps_its_mail(self):
        with mode(0o500, self.home.file("home/joe/Maildir/new"), self.home.file("home/joe/Maildir/cur")):
            with Line.connect(self.port) as line:
                dialogue(line, "S: +OK ...\nC: USER joe\nS: +OK \nC: PASS secret\nS: +OK \nC: DELE 1\nS: +OK \nC: QUIT\n"
                               "S: -ERR [SYS/TEMP] unable to unlink all deleted messages")
        self.reads_its_mail()


class Mailboxes(Case):
    """What users' homes can have in disorder."""

    def test_a_home_or_mailbox_in_disorder_is_waited_for(self):
        home = self.make(users={"joe": "secret", "ann": "x"})
        home.dotqmail(".qmail-box", "./boxes/joe\n")
        home.dotqmail(".qmail-fwd", "&ann@test.example\n")
        os.mkdir(home.file("home/joe/boxes"))
        os.chmod(home.file("home/joe/boxes"), 0o755)
        if os.geteuid() == 0:
            os.chown(home.file("home/joe/boxes"), *harness.owner()[1:])
        start(home)

        def box():
            try:
                with open(home.file("home/joe/boxes/joe"), "rb") as f:
                    # mbox: From_ line before, empty line behind each message
                    return [b"From " + t[:-1] for t in f.read().split(b"From ")[1:]]
            except FileNotFoundError:
                return []
        joe, ann = home.messages, lambda: home.messages("ann")
        maildir, boxes, user = home.file("home/joe/Maildir"), home.file("home/joe/boxes"), home.file("home/joe")
        faults = [
            ("no home", "joe", joe, lambda: missing(user), "Unable_to_switch_to_"),
            ("home is a loop", "joe", joe, lambda: replaced(user, "loop"), "Unable_to_switch_to_"),
            ("home is closed", "joe", joe, lambda: mode(0, user), "Unable_to_switch_to_"),
            ("no Maildir", "joe", joe, lambda: missing(maildir), "Unable_to_chdir_to_maildir."),
            ("Maildir is a loop", "joe", joe, lambda: replaced(maildir, "loop"), "Unable_to_chdir_to_maildir."),
            ("no tmp", "joe", joe, lambda: missing(maildir + "/tmp"), "Temporary_error_on_maildir_delivery."),
            ("tmp unwritable", "joe", joe, lambda: mode(0o500, maildir + "/tmp"), "Temporary_error_on_maildir"),
            ("new unwritable", "joe", joe, lambda: mode(0o500, maildir + "/new"), "Temporary_error_on_maildir"),
            (".qmail is a loop", "joe", joe, lambda: replaced(user + "/.qmail", "loop"), "Unable_to_open_.qmail:_"),
            (".qmail is secret", "joe", joe, lambda: replaced(user + "/.qmail", "secret"), "Unable_to_open_.qmail:_"),
            (".qmail-fwd is a loop", "joe-fwd", ann, lambda: replaced(user + "/.qmail-fwd", "loop"),
             "Unable_to_open_.qmail-fwd:_"),
            (".qmail-fwd is secret", "joe-fwd", ann, lambda: replaced(user + "/.qmail-fwd", "secret"),
             "Unable_to_open_.qmail-fwd:_"),
            ("mbox directory unwritable", "joe-box", box, lambda: mode(0o500, boxes), "Unable_to_open_./boxes/joe:_"),
            ("mbox directory missing", "joe-box", box, lambda: missing(boxes), "Unable_to_open_./boxes/joe:_"),
            ("mbox is a directory", "joe-box", box, lambda: replaced(boxes + "/joe", "directory"),
             "Unable_to_open_./boxes/joe:_"),
            ("mbox is a loop", "joe-box", box, lambda: replaced(boxes + "/joe", "loop"), "Unable_to_open_./boxes/joe:_"),
            ("mbox is secret", "joe-box", box, lambda: replaced(boxes + "/joe", "secret"), "Unable_to_open_./boxes/joe:_"),
            ("users/cdb is a loop", "joe", joe, lambda: replaced(home.file("users/cdb"), "loop"),
             "Trouble_reading_users/cdb_in_qmail-lspawn."),
            ("users/cdb is secret", "joe", joe, lambda: replaced(home.file("users/cdb"), "secret"),
             "Trouble_reading_users/cdb_in_qmail-lspawn."),
            ("users/cdb is a directory", "joe", joe, lambda: replaced(home.file("users/cdb"), "directory"),
             "Trouble_reading_users/cdb_in_qmail-lspawn."),
        ]
        for name, local, where, fault, said in faults:
            with self.subTest(name):
                with fault():
                    since = len(home.log())
                    self.assertEqual(home.inject(message(name), "ann@test.example", [f"{local}@test.example"]).code, 0)
                    wait_line(home, rf"^delivery \d+: deferral: {re.escape(said)}", since)
                wait_arrival(home, name, where)
                self.assertEqual(os.listdir(maildir + "/tmp"), [])
        self.assertNotIn("failure", home.log())


if __name__ == "__main__":
    unittest.main()
