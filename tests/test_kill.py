"""kill -9 of any daemon at any moment: in the middle of traffic, every accepted message is delivered.

Every accepted message is delivered at least once; what came twice is counted and printed (the model
allows a repeated delivery after a crash, never a loss), and nothing is left behind in the queue.
"""

import os
import random
import re
import signal
import smtplib
import sys
import threading
import time
import unittest

from tests import harness
from tests.harness import Daemon, Home, free_port, wait_for

KILLS = 24
WRITERS = 4
SETTLE = 90  # seconds: far above the few that a loaded machine takes
DAEMONS = ("qmail-send", "qmail-lspawn", "qmail-rspawn", "qmail-clean", "qmail-queued", "qmail-local", "qmail-smtpd",
           "all")


class Kill(unittest.TestCase):
    def setUp(self):
        self.home = Home(users={"joe": "secret", "ann": "x"})
        self.addCleanup(self.home.__exit__)
        self.home.dotqmail(".qmail-copy", "&ann@test.example\n./Maildir/\n")
        self.port = free_port()
        argv = ["tcpserver", *harness.as_owner(), "-H", "-R", "-l", "test.example", "127.0.0.1", str(self.port), "qmail-smtpd"]
        self.server = Daemon(argv, env=self.home.env)
        self.addCleanup(self.server.stop)
        self.accepted, self.stop_writing, self.lock = set(), threading.Event(), threading.Lock()

    def write(self, which):
        """Sends messages until told to stop, and notes those that were acknowledged with 250."""
        n = 0
        while not self.stop_writing.is_set():
            n += 1
            name = f"{which}.{n}"
            recipient = "joe-copy@test.example" if n % 5 == 0 else "joe@test.example"
            try:
                with smtplib.SMTP("127.0.0.1", self.port, timeout=60) as client:
                    client.sendmail("ann@test.example", [recipient], f"Subject: {name}\r\n\r\n".encode() + b"x" * (n % 7 * 1000))
                with self.lock:
                    self.accepted.add((name, recipient))
            except (OSError, smtplib.SMTPException):
                pass

    def processes(self):
        """{pid: program} of everything that runs in this home, and tcpserver with what it launched."""
        roots = [self.home.daemon.pid, self.server.pid, self.home.queued_pid()]
        return harness.family(*filter(None, roots))

    def restart(self):
        """As a supervisor would: qmail-start runs again as soon as qmail-send is gone."""
        if self.home.daemon.process.poll() is not None:
            # Spawners finish what they have; a new qmail-send needs only the lock.
            self.home.daemon = None
            self.home.start()

    def test_every_accepted_message_is_delivered_and_nothing_is_left_behind(self):
        self.home.start()
        writers = [threading.Thread(target=self.write, args=(w,)) for w in range(WRITERS)]
        for w in writers:
            w.start()
        random.seed(20261120)
        killed = dict.fromkeys(DAEMONS, 0)
        try:
            for n in range(KILLS):
                target = DAEMONS[n % len(DAEMONS)]
                count = len(self.accepted)
                wait_for(lambda: len(self.accepted) > count, "traffic")
                time.sleep(random.random() * 0.05)  # no event to wait for: any moment is to be tried
                for pid, name in self.processes().items():
                    if pid != self.server.pid and (name == target[:15] or target == "all" and name != "tcpserver"):
                        try:
                            os.kill(pid, signal.SIGKILL)
                            killed[target] += 1
                        except ProcessLookupError:
                            pass
                        if target not in ("all", "qmail-local", "qmail-smtpd"):
                            break
                if target in ("qmail-send", "all", "qmail-lspawn", "qmail-rspawn", "qmail-clean"):
                    # Losing one of its partners ends qmail-send too; then all of it starts again.
                    wait_for(lambda: self.home.daemon.process.poll() is not None, "qmail-send to end")
                self.restart()
        finally:
            self.stop_writing.set()
            for w in writers:
                w.join()
        self.restart()
        self.settle()
        wanted = {"joe": [n for n, _ in self.accepted], "ann": [n for n, r in self.accepted if "copy" in r]}
        lost, extra = [], 0
        for user, names in wanted.items():
            got = {}
            for text in self.home.messages(user):
                subject = re.search(rb"^Subject: (.*)$", text, re.M)[1].decode()
                got[subject] = got.get(subject, 0) + 1
            lost += [f"{n} for {user}" for n in names if n not in got]
            extra += sum(c - 1 for c in got.values())
        print(f"killed {sum(killed.values())} processes {killed}; {len(self.accepted)} messages accepted, "
              f"{len(lost)} lost, {extra} extra copies", file=sys.stderr)
        self.assertEqual(lost, [])
        self.assertTrue(all(killed[d] for d in DAEMONS if d not in ("qmail-local", "qmail-smtpd")), killed)
        self.assertGreater(len(self.accepted), KILLS)

    def settle(self):
        """Until only leftovers of unaccepted messages are there (S2, S3: for the 36-hour rule)."""
        def settled():
            self.assertIsNone(self.home.daemon.process.poll(), "qmail-send ended by itself")
            for top in ("todo", "info", "local", "remote", "bounce"):
                for _, _, names in os.walk(self.home.file("queue", top)):
                    if names:
                        # What was deferred by a kill is tried again by the schedule, or now; a writer killed
                        # before it pulled the trigger is found by the next scan, or by the next message's pull.
                        self.home.daemon.process.send_signal(signal.SIGALRM)
                        with open(self.home.file("queue/lock/trigger"), "wb", buffering=0) as trigger:
                            trigger.write(b"\0")
                        return False
            return True
        try:
            wait_for(settled, "the queue to settle", SETTLE)
        except AssertionError as e:
            left = [os.path.join(d, f) for top in ("todo", "info", "local", "remote", "bounce", "mess", "intd")
                    for d, _, files in os.walk(self.home.file("queue", top)) for f in files]
            raise AssertionError(f"{e}\n{left}\n{self.processes()}\n{self.home.log()[-3000:]}") from None


if __name__ == "__main__":
    unittest.main()
