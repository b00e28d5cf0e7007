"""Power cuts: the sample finds nothing, and the judge sees what it is there to see."""

import concurrent.futures
import copy
import os
import re
import unittest

from tests.crash import power, power_after, power_disk, power_model, power_record, runner
from tests.crash.power_lives import message
from tests.harness import Daemon, wait_for
from tests.queue_rig import commit_record

STATES = 2000  # of each mutation at most: it is over when something has been lost


def without(record, *wanted):
    """The record without these syncs: directories ("queue/mess/*/") or files by a name they have had; * is no slash."""
    patterns = [re.compile(w.replace("*", "[^/]*")) for w in wanted]
    names = {}
    dropped = set()
    for at, step in enumerate(record.steps):
        if step[0] == "name" and step[2]:
            names.setdefault(step[2], []).append(step[1])
        if step[0] == "sync":
            known = [step[1] + "/"] if isinstance(step[1], str) else names.get(step[1], [])
            if any(p.fullmatch(name) for p in patterns for name in known):
                dropped.add(at)
    assert dropped, wanted
    return with_steps(record, [at for at in range(len(record.steps)) if at not in dropped])


def with_steps(record, order):
    """The record with these of its steps in this order."""
    changed = copy.copy(record)
    changed.steps = []
    for at in order:
        step = record.steps[at]
        if step[0] == "sync":  # what had ended before it began, and what was put before it
            began = sum(other < step[2] for other in order)
            step = step[0], step[1], max(began, len(changed.steps) if order != sorted(order) else 0)
        changed.steps.append(step)
    return changed


class Record:
    """A record made by hand."""

    def __init__(self):
        self.before, self.contents_before, self.steps = {}, {}, []


def control():
    """What RELIABILITY's "Acceptance" says, and nothing else: a message into the queue, then the promise."""
    given = message("one")
    mess, envelope = power_record.File(0, 7), power_record.File(1, 8)
    mess.content = b"Received: (qmail 99 invoked by uid 1); 21 Nov 2026 15:16:14 -0000\n" + given.text
    head = b"Fann@test.example\0Tjoe@test.example\0"
    envelope.content = b"u1\0p99\0" + head + commit_record(99, mess.content, head)
    record = Record()
    record.steps = [
        ("name", "queue/pid/99", mess, 99), ("name", "queue/mess/7/7", mess, 99), ("name", "queue/pid/99", None, 99),
        ("write", mess, 0, mess.content, 99), ("name", "queue/intd/7", envelope, 99), ("write", envelope, 0, envelope.content, 99)]
    record.steps += [("sync", what, n) for n, what in enumerate((mess, envelope, "queue/mess/7"), 6)]
    record.steps += [("name", "queue/todo/7", envelope, 99), ("sync", "queue/todo", 10), ("ack", "qmail-queue", 99, [])]
    return record, [given]


def judged(life, changes):
    """[{model: kinds of what is wrong}] of a life's record with each of these changes, in a process of its own."""
    found = []
    with power.tmpfs():
        record, messages = control() if life == "control" else power.record(life)
        for change in changes:
            changed = change[0](record, *change[1:]) if change else record
            rows = power.judge_record(life, changed, messages, 1, STATES, lambda rows: change and rows["posix"].wrong.get("lost"))
            found.append({row.fault: {kind for kind, what in row.wrong.items() if what} for row in rows})
    return found


def swept(combinations):
    with power.tmpfs():
        return power_after.sweep(combinations)


def careless():
    """Cuts of a system whose syncs do nothing."""
    def start(home):
        calls = "fsync,fdatasync,syncfs,sync_file_range"
        argv = ["strace", "-f", "--seccomp-bpf", "-D", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:retval=0",
                home.file("bin/qmail-start"), "./Maildir/"]
        home.daemon = Daemon(argv, env=home.env, cwd="/", logfile=home.logfile)
        home.daemon.wait_log(r"^status: local 0/")
        wait_for(lambda: os.path.exists(home.file("run/queue")), "the socket")
    with power.tmpfs():
        return power_disk.try_cuts("careless", "ext4", 1, 2, start)


@unittest.skipUnless(os.geteuid() == 0, "only root may trace processes that made themselves undumpable")
class Judge(unittest.TestCase):
    def judged(self, life, *changes):
        with concurrent.futures.ProcessPoolExecutor(1) as pool:
            return pool.submit(judged, life, changes).result()

    def test_what_syncs_as_it_should_scores_zero_and_each_sync_less_scores(self):
        link = [0, 1, 2, 3, 4, 5, 9, 6, 7, 8, 10, 11]
        early = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 10]
        none, mess, envelope, directory, todo, linked, told = self.judged(
            "control", None, (without, "queue/mess/7/7"), (without, "queue/intd/7"), (without, "queue/mess/7/"), (without, "queue/todo/"),
            (with_steps, link), (with_steps, early))
        self.assertEqual(none, {model: set() for model in power_model.MODELS})
        for found in (mess, envelope, todo, told):
            self.assertEqual({model: "lost" in wrong for model, wrong in found.items()}, dict.fromkeys(power_model.MODELS, True), found)
        # A sync of the file makes its names durable on btrfs, and the next commit makes all durable on ext4.
        self.assertEqual({model: "lost" in wrong for model, wrong in directory.items()}, {"posix": True, "ext4": False, "btrfs": False})
        # Half a message is visible, though not taken for whole: the commit record tells.
        self.assertIn("left", linked["posix"])

    def test_each_sync_less_in_a_delivery_scores(self):
        mail, box = self.judged("short_success", (without, "home/joe/Maildir/tmp/*"), (without, "home/joe/Maildir/new/"))
        self.assertLessEqual({"lost", "half"}, mail["posix"])
        self.assertIn("lost", box["posix"])

    def test_each_sync_less_in_a_change_of_way_scores(self):
        found = self.judged(
            "short_deferral", (without, "queue/info/*/*"), (without, "queue/local/*/*"), (without, "queue/bounce/*"),
            (without, "queue/info/*/"), (without, "queue/local/*/"), (without, "queue/bounce/"))
        self.assertEqual(["lost" in wrong["posix"] for wrong in found], [True] * 6, found)

    def test_what_a_sweep_leaves_is_seen(self):
        with concurrent.futures.ProcessPoolExecutor(1) as pool:
            self.assertEqual(pool.submit(swept, [{"mess"}, {"mess", "intd"}, {"intd"}, {"local"}, {"bounce"}, {"mess", "local"}]).result(),
                             [{"mess", "local"}])

    def test_a_system_that_does_not_sync_loses_mail_on_a_real_file_system(self):
        with concurrent.futures.ProcessPoolExecutor(1) as pool:
            [row] = pool.submit(careless).result()
        self.assertIn("lost", row.wrong)

    def test_the_sample_finds_nothing(self):
        runner.sample(self, "power")


if __name__ == "__main__":
    unittest.main()
