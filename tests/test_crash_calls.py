"""The sample of tests/crash/calls.py; that its tracer does what it says, and that its judges see what they are there to see."""

import contextlib
import errno
import itertools
import os
import subprocess
import unittest

from tests import harness
from tests.crash import calls_mail, calls_queue, calls_rig, runner

PROGRAM = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static long say(const char *what, long result) { dprintf(1, "%s %ld %d\n", what, result, result < 0 ? errno : 0); return result; }
int main(void)
{
	char room[8];
	mkdir("made", 0700);
	errno = 0;
	say("mkdir", syscall(SYS_mkdir, "there", 0700));
	say("read", read(0, room, 8));
	say("close", close(0));
	if (!fork())
		_exit(say("rmdir", rmdir("made")) != 0);
	int status;
	wait(&status);
	say("child", status);
	return 7;
}
"""


def needs_root(test):
    return unittest.skipIf(os.geteuid(), "only root may trace programs that made themselves undumpable")(test)


class Tracer(unittest.TestCase):
    """What is made to fail really does not happen; what is not, does."""

    @classmethod
    def setUpClass(cls):
        cls.tools = calls_rig.Tools()
        cls.addClassCleanup(cls.tools.close)
        cls.program = os.path.join(cls.tools.base, "program")
        subprocess.run(["cc", "-o", cls.program, "-xc", "-"], input=PROGRAM.encode(), check=True)

    def setUp(self):
        self.place = harness.scratch()
        before = os.getcwd()
        os.chdir(self.place)
        self.addCleanup(os.chdir, before)

    def run_it(self, *options):
        for name in ("made", "there"):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(name)
        out = os.open("out", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        run = calls_rig.traced(self.tools, options, [self.program], dict(os.environ), {0: calls_rig.filled(b"12345678"), 1: out, 2: os.dup(out)})
        with open("out") as f:
            return run, dict(line.split(" ", 1) for line in f.read().splitlines())

    def at(self, name, process="0"):
        run, _ = self.run_it()
        [number] = [n for p, n, call, *_ in run.calls if (p, call) == (process, name)][-1:]
        return ["-p", process, "-n", str(number), "-f"]

    def test_without_a_fault_nothing_is_changed(self):
        run, said = self.run_it()
        self.assertEqual((run.code, said), (7, {"mkdir": "0 0", "read": "8 0", "close": "0 0", "rmdir": "0 0", "child": "0 0"}))
        self.assertFalse(run.hit)

    def test_an_error_is_told_and_the_call_is_not_made(self):
        for name in calls_rig.ERRORS:
            run, said = self.run_it(*self.at("mkdir"), f"error={getattr(errno, name)}")
            self.assertEqual(said["mkdir"], f"-1 {getattr(errno, name)}")
            self.assertTrue(run.hit)
            self.assertFalse(os.path.exists("there"))

    def test_close_closes_whatever_it_says(self):
        _, said = self.run_it(*self.at("close"), f"after={errno.EIO}")
        self.assertIn(said["close"], ("-1 5",))

    def test_less_is_read_than_was_asked_for(self):
        _, said = self.run_it(*self.at("read"), "count=3")
        self.assertEqual(said["read"], "3 0")

    def test_who_is_killed_does_not_make_the_call(self):
        run, said = self.run_it(*self.at("mkdir"), "kill")
        self.assertTrue(run.killed())
        self.assertEqual((said, os.path.exists("there")), ({}, False))

    def test_a_child_is_met_without_its_parent(self):
        _, said = self.run_it(*self.at("rmdir", "0.0"), f"error={errno.EIO}")
        self.assertEqual((said["rmdir"], said["child"]), ("-1 5", "256 0"))
        self.assertTrue(os.path.exists("made"))


@needs_root
class Calls(unittest.TestCase):
    def setUp(self):
        for name in ("qmail-queue", "qmail-send", "qmail-local"):
            harness.needs_static(name)

    def test_the_sample_finds_nothing(self):
        runner.sample(self, "calls")

    def judged(self, stage, options=(), fault=None):
        """The kinds of wrong that a stage sees in one run."""
        with contextlib.ExitStack() as stack:
            stage = stage()
            stage.tools = calls_rig.Tools()
            stack.callback(stage.tools.close)
            stage.enter(stack)
            return {kind for kind, _ in stage.judge(stage.run(options), fault)}

    def test_a_report_that_could_not_be_written_is_written_again(self):
        with contextlib.ExitStack() as stack:
            stage = calls_mail.Lspawn()
            stage.tools = calls_rig.Tools()
            stack.callback(stage.tools.close)
            stage.enter(stack)
            writes = [n for p, n, call, *_ in stage.run().calls if (p, call) == ("0", "write")]
            self.assertGreater(len(writes), 2)
            tried = 0
            for number, near in itertools.product(writes, range(-5, 6)):  # signals come earlier or later
                run = stage.run(["-p", "0", "-n", str(number + near), "-f", f"error={errno.ENOMEM}"])
                wrong = stage.judge(run, None)
                if run.hit == "write":
                    tried += 1
                    self.assertEqual(wrong, [], number)
                if tried == len(writes):
                    break
            self.assertGreater(tried, 1)

    FAULT = calls_rig.Fault(calls_rig.Point("0", 1, "read", 1, ""), "EIO", calls_rig.KINDS[0], "")

    def test_a_message_that_is_gone_behind_its_acknowledgement_is_seen(self):
        class Gone(calls_queue.Direct):
            def after(self, run):
                calls_rig.clear(self.home)
        self.assertEqual(self.judged(Gone, fault=self.FAULT), {"lost"})

    def test_a_message_that_is_altered_in_the_queue_is_seen(self):
        class Altered(calls_queue.Direct):
            def after(self, run):
                for name in calls_rig.files_of(self.home):
                    if name.startswith("mess/"):
                        with open(self.home.file("queue/" + name), "ab") as f:
                            f.write(b"more\n")
        self.assertIn("lost", self.judged(Altered, fault=self.FAULT))

    def test_a_refusal_for_good_and_a_success_without_work_are_seen(self):
        class Refuses(calls_queue.Direct):
            def after(self, run):
                run.code = 31
                calls_rig.clear(self.home)

        class Pretends(calls_queue.Direct):
            def after(self, run):
                run.code = 0
                calls_rig.clear(self.home)
        self.assertEqual(self.judged(Refuses, fault=self.FAULT), {"code"})
        self.assertEqual(self.judged(Pretends, ["-p", "0", "-n", "1", "-f", "kill"], self.FAULT), {"lost"})

    def test_what_nobody_removes_is_seen(self):
        class Leaves(calls_queue.Direct):
            def after(self, run):
                self.home.write("queue/todo/nobodys", b"x")
        self.assertIn("left", self.judged(Leaves, fault=self.FAULT))

    def test_half_a_message_in_a_mailbox_is_seen(self):
        class Cuts(calls_mail.Maildir):
            def after(self, run):
                [name] = os.listdir(f"{self.place}/Maildir/new")
                os.truncate(f"{self.place}/Maildir/new/{name}", 100)
        self.assertEqual(self.judged(Cuts, fault=self.FAULT), {"half"})

    def test_a_torn_message_in_an_mbox_is_seen(self):
        class Tears(calls_mail.Mbox):
            def after(self, run):
                with open(f"{self.place}/Mailbox", "r+b") as f:
                    whole = f.read()
                    f.seek(len(self.old))
                    f.write(b"From x\nhalf\n" + whole[len(self.old):])
        self.assertIn("half", self.judged(Tears, fault=self.FAULT))

    def test_mail_in_another_users_mailbox_is_seen(self):
        class Strays(calls_mail.Lspawn):
            def after(self, run):
                super().after(run)
                place = self.home.file("joe/Maildir/new")
                name = os.listdir(place)[0]
                os.rename(f"{place}/{name}", self.home.file(f"ann/Maildir/new/{name}"))
        self.assertEqual(self.judged(Strays, fault=self.FAULT), {"stray", "lost"})

    def test_a_mailbox_that_takes_nothing_more_is_seen(self):
        class Sticks(calls_mail.Maildir):
            def reset(self):
                os.chmod(f"{self.place}/Maildir/tmp", 0o700)
                super().reset()

            def after(self, run):
                os.chmod(f"{self.place}/Maildir/tmp", 0)
        self.assertEqual(self.judged(Sticks, ["-p", "0", "-n", "1", "-f", "kill"], self.FAULT), {"stuck"})

    def test_a_call_that_was_not_counted_is_seen(self):
        class Forgets(calls_queue.Direct):
            def straced(self):
                found = super().straced()
                found["0"].remove("fsync")
                return found
        rows = calls_rig.campaign(Forgets, sample=True)
        self.assertTrue(any("strace" in text for row in rows for text in row.wrong.get("code", ())), rows)


if __name__ == "__main__":
    unittest.main()
