"""make run: the first thing a newcomer does. Here scripts/run with the programs under test."""

import os
import poplib
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import unittest

from tests import harness
from tests.harness import ROOT, Daemon, free_port, wait_for


class MakeRun(unittest.TestCase):
    def setUp(self):
        if not os.path.exists(os.path.join(ROOT, "target", "bin", "qmail-send")):
            self.skipTest("scripts/run takes its programs from target/bin, where there are none (make build)")
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base)
        self.home = os.path.join(self.base, "run home")
        self.smtp, self.pop3, self.submission = free_port(), free_port(), free_port()
        self.env = {**os.environ, "RUN_HOME": self.home, "SMTP_PORT": str(self.smtp), "POP3_PORT": str(self.pop3),
                    "SUBMISSION_PORT": str(self.submission)}

    def start(self, **env):
        daemon = Daemon([os.path.join(ROOT, "scripts", "run")], env={**self.env, **env}, cwd=self.base, own_group=True)
        self.addCleanup(daemon.stop, signal.SIGINT)
        daemon.wait_log(r"Ctrl-C here stops all of it")
        return daemon

    def read(self, path):
        with open(path) as f:
            return f.read()

    def test_a_second_ctrl_c_does_not_wait_for_a_delivery_that_hangs(self):
        daemon = self.start()
        qmail = os.path.join(self.home, "home/joe/.qmail-hang")
        with open(qmail, "w") as f:
            f.write("|tail -f /dev/null\n")
        if os.geteuid() == 0:
            os.chown(qmail, *harness.owner()[1:])
        with smtplib.SMTP("127.0.0.1", self.smtp) as client:
            client.sendmail("ann@mail.example", ["joe-hang@mail.example"], b"Subject: x\r\n\r\n")
        before = wait_for(lambda: "tail" in harness.family(daemon.pid).values() and harness.family(daemon.pid), "the delivery")
        os.killpg(daemon.pid, signal.SIGINT)
        daemon.wait_log("deliveries under way are waited for")
        os.killpg(daemon.pid, signal.SIGINT)
        self.assertEqual(daemon.process.wait(harness.TIMEOUT), 1)
        wait_for(lambda: not harness.family(*before), "every process to be gone")

    def test_it_runs_shows_a_first_message_and_ctrl_c_stops_all_of_it(self):
        daemon = self.start()
        text = daemon.log()
        self.assertIn("    Subject: first message\n", text)
        self.assertIn("    \n    It works.\n", text)
        self.assertIn(f"SMTP on 127.0.0.1:{self.smtp}, POP3 on 127.0.0.1:{self.pop3},", text)
        with smtplib.SMTP("127.0.0.1", self.smtp) as client:
            client.sendmail("ann@mail.example", ["joe@mail.example"], b"Subject: second\r\n\r\nhello\r\n")
        new = os.path.join(self.home, "home/joe/Maildir/new")
        wait_for(lambda: len(os.listdir(new)) == 2, "the second message")
        pop = poplib.POP3("127.0.0.1", self.pop3)
        pop.user("joe")
        self.assertIn(b"+OK", pop.pass_("secret"))
        pop.quit()
        self.assertEqual(daemon.process.poll(), None)
        with open(os.path.join(self.home, "run/queue.lock")) as f:
            before = harness.family(daemon.pid, int(f.read()))
        self.assertLessEqual({"qmail-send", "qmail-lspawn", "qmail-rspawn", "qmail-clean", "qmail-queued", "tcpserver", "tlsserver"},
                             set(before.values()))
        os.killpg(daemon.pid, signal.SIGINT)  # as a terminal does
        self.assertEqual(daemon.process.wait(harness.TIMEOUT), 0)
        log = os.path.join(self.home, "log/mail")
        wait_for(lambda: self.read(log).endswith("status: exiting\n"), "the log's last line")
        self.assertNotIn("alert:", self.read(log))
        self.assertRegex(self.read(log), r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d new msg \d+$")
        wait_for(lambda: not harness.family(*before), "every process to be gone")
        with self.assertRaises(OSError):
            socket.create_connection(("127.0.0.1", self.smtp)).close()

    def test_the_printed_commands_work(self):
        daemon = self.start()
        commands = re.findall(r"^    ((?:export|python3|printf|tail|qmail-).*)$", daemon.log(), re.M)
        self.assertGreaterEqual(len(commands), 8)
        script = "set -e\n" + "\n".join(commands)
        as_owner = ["setpriv", "--reuid", str(harness.owner()[1]), "--regid", str(harness.owner()[2]),
                    "--clear-groups"] if os.geteuid() == 0 else []
        # Quoted as printed; a home whose name has a blank is the harness's doing, not a newcomer's.
        script = script.replace(self.home, os.path.join(self.base, "link"))
        os.symlink(self.home, os.path.join(self.base, "link"))
        done = subprocess.run(as_owner + ["sh"], input=script, capture_output=True, text=True, cwd=self.base, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        joe, ann = (os.path.join(self.home, "home", u, "Maildir/new") for u in ("joe", "ann"))
        wait_for(lambda: len(os.listdir(joe)) == 4 and len(os.listdir(ann)) == 2, "what the commands sent")

    def test_a_port_in_use_and_an_unusable_place_get_a_sentence(self):
        with socket.create_server(("127.0.0.1", self.pop3)):
            done = subprocess.run([os.path.join(ROOT, "scripts", "run")], env=self.env, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 111)
        self.assertIn(f"port {self.pop3} is in use", done.stderr)
        done = subprocess.run([os.path.join(ROOT, "scripts", "run")], env={**self.env, "POP3_PORT": str(self.smtp)},
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 111)
        self.assertIn("cannot both have port", done.stderr)
        self.assertFalse(os.path.exists(self.home))
        done = subprocess.run([os.path.join(ROOT, "scripts", "run")], env={**self.env, "RUN_HOME": "/proc/nothing/here"},
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 111)
        self.assertIn("RUN_HOME=... chooses another place", done.stderr)

    def test_a_missing_compiler_gets_a_sentence(self):
        tools = os.path.join(self.base, "tools")
        os.mkdir(tools)
        for name in ("sh", "dirname", "cat"):
            os.symlink(shutil.which(name), os.path.join(tools, name))
        done = subprocess.run([os.path.join(ROOT, "scripts", "build")], env={"PATH": tools}, capture_output=True, text=True)
        self.assertEqual(done.returncode, 111)
        self.assertIn("there is no cargo here: install Rust", done.stderr)

    def test_a_second_run_in_the_same_home_is_refused_and_the_first_goes_on(self):
        daemon = self.start()
        done = subprocess.run([os.path.join(ROOT, "scripts", "run")], capture_output=True, text=True, timeout=60,
                              env={**self.env, "SMTP_PORT": str(free_port()), "POP3_PORT": str(free_port()), "SUBMISSION_PORT": str(free_port())})
        self.assertEqual(done.returncode, 111)
        self.assertIn("already running", done.stderr)
        self.assertIsNone(daemon.process.poll())


if __name__ == "__main__":
    unittest.main()
