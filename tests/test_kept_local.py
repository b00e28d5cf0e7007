"""A qmail-local takes the next message for the same recipient: qmail-lspawn and qmail-local as they are, with requests
one after the other. Whatever a user or the administrator changed between two messages counts for the second."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import unittest

from tests import harness, spawners, tinycdb
from tests.crash import kept, runner
from tests.harness import wait_for
from tests.spawners import request


class Case(unittest.TestCase):
    def setUp(self):
        self.home = harness.Home(users={"joe": "", "ann": ""})
        self.addCleanup(self.home.__exit__)
        self.assign(joe="joe", ann="ann")
        self.number = 457
        self.process = None

    def assign(self, **places):
        uid, gid = harness.owner()[1:]
        records = [(b"", b"-")]
        for name, place in places.items():
            data = f"{name}\0{uid}\0{gid}\0{self.home.file('home', place)}\0".encode()
            records += [(f"!{name}\0".encode(), data + b"\0"), (f"!{name}-".encode(), data + b"-\0")]
        self.home.write("users/cdb.new", tinycdb.make(records))
        os.rename(self.home.file("users/cdb.new"), self.home.file("users/cdb"))

    def start(self):
        spawners.forget(self.home)
        self.process = subprocess.Popen([harness.program("qmail-lspawn"), "./Maildir/"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env=self.home.env, bufsize=0)

        def end():
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
        self.addCleanup(end)
        self.assertEqual(self.process.stdout.read(1)[0], spawners.SLOT_LIMIT)

    def ask(self, recipient="joe@h.test", sender="s@h.test", slot=0, content=None):
        self.number += 1
        path = spawners.put_message(self.home, self.number, content or f"Subject: {self.number}\n\nbody\n".encode())
        self.process.stdin.write(request(slot, path, sender, recipient))

    def report(self):
        """The next report: its slot, and the rest."""
        slot, text = self.process.stdout.read(1), b""
        while not text.endswith(b"\0"):
            byte = self.process.stdout.read(1)
            self.assertNotEqual(byte, b"", "the reports ended")
            text += byte
        return slot[0], text[:-1]

    def deliver(self, *args, **more):
        if self.process is None:
            self.start()
        self.ask(*args, **more)
        return self.report()[1]

    def names(self, user="joe", maildir="Maildir"):
        return sorted(os.listdir(self.home.file("home", user, maildir, "new")))

    def writers(self, *args):
        """The processes that wrote to a Maildir, as its file names have them."""
        return {re.search(r"P(\d+)", name)[1] for name in self.names(*args)}

    def locals(self):
        return [pid for pid, name in harness.family(self.process.pid).items() if name == "qmail-local"]


    def kill(self, pid, number=signal.SIGKILL):
        """Whoever is still there."""
        if spawners.lives(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class Messages(Case):
    def test_one_process_takes_many_and_each_arrives_once_and_as_it_is(self):
        for n in range(60):
            self.assertEqual(self.deliver(sender=f"s{n}@h.test", content=f"Subject: {n}\n\n{'x' * n * 100}\n".encode()), b"Kdid 1+0+0\n")
        found = {}
        for name in self.names():
            with open(self.home.file("home/joe/Maildir/new", name), "rb") as f:
                text = f.read()
            found[int(re.search(rb"Subject: (\d+)", text)[1])] = text
        self.assertEqual(len(self.names()), 60)
        self.assertEqual(found, {n: f"Return-Path: <s{n}@h.test>\nDelivered-To: joe@h.test\nSubject: {n}\n\n{'x' * n * 100}\n".encode()
                                 for n in range(60)})
        self.assertLess(len(self.writers()), 30)  # a slow machine may need more than one

    def test_each_recipient_has_its_own(self):
        for _ in range(5):
            for user in ("joe", "ann"):
                self.assertEqual(self.deliver(f"{user}@h.test"), b"Kdid 1+0+0\n")
        self.assertEqual((len(self.names()), len(self.names("ann"))), (5, 5))
        self.assertEqual(self.writers() & self.writers("ann"), set())

    def test_many_at_once_for_one_recipient(self):
        self.start()
        for _ in range(3):
            for slot in range(20):
                self.ask(slot=slot)
            self.assertEqual(sorted(self.report() for _ in range(20)), [(slot, b"Kdid 1+0+0\n") for slot in range(20)])
        self.assertEqual(len(self.names()), 60)

    def test_an_mbox_too(self):
        self.home.dotqmail(".qmail", "./Mailbox\n")
        for n in range(10):
            self.assertEqual(self.deliver(content=f"Subject: {n}\n\nbody\n".encode()), b"Kdid 1+0+0\n")
        with open(self.home.file("home/joe/Mailbox")) as f:
            self.assertEqual(re.findall(r"^Subject: (\d+)$", f.read(), re.M), [str(n) for n in range(10)])

    def test_at_the_end_of_requests_nobody_stays(self):
        self.deliver()
        wait_for(self.locals, "one that waits")
        self.process.stdin.close()
        self.assertEqual(self.process.wait(harness.TIMEOUT), 0)
        self.assertEqual(self.process.stdout.read(), b"")

    def test_on_an_idle_machine_nobody_stays(self):
        self.deliver()
        wait_for(lambda: len(harness.family(self.process.pid)) == 1, "qmail-lspawn to be alone")
        self.assertEqual(self.deliver(), b"Kdid 1+0+0\n")


    def test_who_is_stopped_while_it_waits_holds_nobody(self):
        # A user may do that, to one after the other; the process beside each is root's.
        self.deliver()
        kept = self.locals()
        beside = [harness.parent(pid) for pid in kept]
        for pid in kept:
            self.addCleanup(self.kill, pid)
            self.kill(pid, signal.SIGSTOP)
        self.process.stdin.close()
        self.assertEqual(self.process.wait(harness.TIMEOUT), 0)
        wait_for(lambda: not any(spawners.lives(pid) for pid in [*kept, *beside]), "everybody to leave")


class Changes(Case):
    def test_the_qmail_file_is_read_for_each(self):
        for n in range(10):
            self.home.dotqmail(".qmail", f"./box{n % 2}/\n")
            for kind in ("new", "cur", "tmp"):
                path = self.home.file("home/joe", f"box{n % 2}", kind)
                os.makedirs(path, exist_ok=True)
            for directory, _, _ in os.walk(self.home.file("home/joe", f"box{n % 2}")):
                os.chown(directory, *harness.owner()[1:])
            self.assertEqual(self.deliver(), b"Kdid 1+0+0\n")
        self.assertEqual([len(self.names("joe", f"box{n}")) for n in (0, 1)], [5, 5])

    def test_a_home_that_is_being_edited_holds_the_next_one(self):
        self.assertEqual(self.deliver(), b"Kdid 1+0+0\n")
        os.chmod(self.home.file("home/joe"), 0o1755)
        self.assertEqual(self.deliver()[:1], b"Z")
        os.chmod(self.home.file("home/joe"), 0o755)
        self.assertEqual(self.deliver(), b"Kdid 1+0+0\n")
        self.assertEqual(len(self.names()), 2)

    def test_a_message_that_loops_is_refused_and_the_next_is_not(self):
        self.assertEqual(self.deliver(), b"Kdid 1+0+0\n")
        self.assertIn(b"looping", self.deliver(content=b"Delivered-To: joe@h.test\n\nx\n"))
        self.assertEqual(self.deliver(), b"Kdid 1+0+0\n")

    def test_users_cdb_holds_from_the_next_one_on(self):
        self.assertEqual(self.deliver(), b"Kdid 1+0+0\n")
        self.assign(joe="ann", ann="ann")
        self.assertEqual(self.deliver(), b"Kdid 1+0+0\n")
        self.assertEqual((len(self.names()), len(self.names("ann"))), (1, 1))
        self.assign(ann="ann")
        with open(self.home.file("users/cdb"), "rb") as f:
            self.assertNotIn(b"!joe", f.read())
        self.deliver()
        self.assertEqual((len(self.names()), len(self.names("ann"))), (1, 1))

    def test_a_program_gets_neither_the_line_nor_its_name_and_ends_the_process(self):
        self.home.dotqmail(".qmail", "./Maildir/\n|env; for n in 3 4 5 6 7 8 9; do [ ! -e /proc/$$/fd/$n ] || echo fd $n; done\n")
        for _ in range(3):
            said = self.deliver()
            self.assertTrue(said.endswith(b"did 1+0+1\n"), said)
            self.assertIn(b"RECIPIENT=joe@h.test", said)
            self.assertNotIn(b"QMAILKEEP", said)
            self.assertNotIn(b"\nfd ", said)
        self.assertEqual(len(self.writers()), 3)

    def test_what_a_program_says_is_no_word_of_ours(self):
        self.home.dotqmail(".qmail", "|printf 'r\\0kept\\n'; exit 111\n")
        for _ in range(3):
            self.assertEqual(self.deliver(), b"Zr")

    def test_another_program_in_its_place_gets_every_message(self):
        place = self.home.file("bin/qmail-local")
        real = os.path.realpath(place)
        shutil.rmtree(self.home.file("bin-own"), ignore_errors=True)
        if os.path.islink(self.home.file("bin")):
            os.mkdir(self.home.file("bin-own"))
            for name in os.listdir(self.home.file("bin")):
                os.symlink(os.path.realpath(self.home.file("bin", name)), self.home.file("bin-own", name))
            os.unlink(self.home.file("bin"))
            os.rename(self.home.file("bin-own"), self.home.file("bin"))
        os.unlink(place)
        with open(place, "w") as f:
            f.write(f'#!/bin/sh\necho wrapped\nexec {real} "$@"\n')
        os.chmod(place, 0o755)
        for _ in range(4):
            self.assertEqual(self.deliver(), b"Kwrapped\ndid 1+0+0\n")
        self.assertEqual(len(self.writers()), 4)


class Trouble(Case):
    def test_killed_while_it_waits_another_one_takes_the_next(self):
        for _ in range(5):
            self.assertEqual(self.deliver(), b"Kdid 1+0+0\n")
            for pid in self.locals():
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not self.locals(), "its end")
        self.assertEqual(len(self.names()), 5)

    def test_killed_beside_it_another_one_takes_the_next(self):
        for _ in range(5):
            self.assertEqual(self.deliver(), b"Kdid 1+0+0\n")
            for pid, name in harness.family(self.process.pid).items():
                if name == "qmail-lspawn" and pid != self.process.pid:
                    os.kill(pid, signal.SIGKILL)
            wait_for(lambda: len(harness.family(self.process.pid)) == 1, "its end")
        self.assertEqual(len(self.names()), 5)

    def test_killed_within_the_second_one_it_is_reported_and_comes_again(self):
        self.home.dotqmail(".qmail", "./Mailbox\n")
        self.assertEqual(self.deliver(), b"Kdid 1+0+0\n")
        holder = subprocess.Popen(["flock", "-x", self.home.file("home/joe/Mailbox"), "sleep", "1000"])
        try:
            wait_for(lambda: subprocess.run(["flock", "-n", self.home.file("home/joe/Mailbox"), "true"]).returncode, "the lock")
            self.ask()
            for pid in wait_for(self.locals, "who waits for the lock"):
                os.kill(pid, signal.SIGKILL)
            self.assertEqual(self.report()[1][:1], b"Z")
        finally:
            for pid in harness.family(holder.pid):
                os.kill(pid, signal.SIGKILL)
            holder.wait()
        self.assertEqual(self.deliver(), b"Kdid 1+0+0\n")


@unittest.skipIf(os.geteuid(), "only root may trace programs that made themselves undumpable")
class EveryCall(unittest.TestCase):
    """tests/crash/kept.py."""

    def setUp(self):
        for name in ("qmail-lspawn", "qmail-local"):
            harness.needs_static(name)
        if not shutil.which("strace"):
            self.skipTest("strace is not installed (scripts/test-packages)")

    def test_the_sample_finds_nothing(self):
        runner.sample(self, "kept")

    def test_the_judge_sees_what_is_lost_altered_and_left(self):
        with contextlib.ExitStack() as stack:
            rig = kept.Rig(stack)
            rig.clear()
            self.assertEqual(rig.judge(*rig.talk(kept.SLOTS), True), ([], 0))
            new = rig.home.file("home/joe/Maildir/new")
            one, other, _ = os.listdir(new)
            with open(os.path.join(new, one), "ab") as f:
                f.write(b"more")
            os.rename(os.path.join(new, other), rig.home.file("home/joe/Maildir/tmp", other))
            wrong, _ = rig.judge({slot: "K" for slot in kept.SLOTS}, False, True)
            self.assertEqual([kind for kind, _ in wrong], ["half", "lost", "lost", "left", "stuck"])
            wrong, _ = rig.judge({0: "D"}, True, False)
            self.assertEqual([kind for kind, _ in wrong][:3], ["stuck", "half", "code"])


if __name__ == "__main__":
    unittest.main()
