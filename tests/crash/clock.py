"""The clock is set 40 hours forth or back while messages are written, or the machine sleeps as long.

A writer stands still in the middle of a message. qmail-send and qmail-clean, whose clocks are the tracer's, see the
jump, and a day later they sweep: what the writer has is a leftover by the clock on the wall. Then the writer goes on.
"""

import contextlib
import os
import signal
import subprocess

from tests import harness
from tests.crash.calls_queue import RECIPIENTS, SENDER, envelope, strip
from tests.crash.calls_rig import AHEAD, Cleaner, Tools, World, files_of, traced
from tests.crash.report import Row
from tests.harness import wait_for
from tests.queue_rig import Queue

TITLE = "The clock is set while messages are written"

TEXT = b"Subject: slow\n\n" + b"one line\n" * 9
SWEPT = 80_000  # seconds: qmail-send sweeps at its start and every 76,431

# What happens to the clocks of qmail-send: the word for the tracer; and by how much qmail-clean, started anew, is ahead.
JUMPS = {
    "40 hours forth": (b"f", AHEAD),
    "40 hours back": (b"b", -AHEAD),
    "asleep for 40 hours": (b"s", AHEAD),
    "40 hours pass": (None, AHEAD),
}


class Ours:
    """qmail-queue: it holds a lock on what it writes."""

    name = "qmail-queue at work"
    stages = ("message begun", "message written", "envelope begun")

    def __init__(self, home, stage):
        self.home = home
        (mr, self.m), (er, self.e) = os.pipe(), os.pipe()
        self.process = subprocess.Popen([harness.program("qmail-queue")], env=home.env, stdin=mr, stdout=er, stderr=subprocess.DEVNULL)
        os.close(mr)
        os.close(er)
        self.rest = envelope()
        os.write(self.m, TEXT[:40])
        wait_for(lambda: any(n.startswith("mess/") for n in files_of(home)), "mess")
        if stage != "message begun":
            self.end_message()
            wait_for(lambda: any(n.startswith("intd/") for n in files_of(home)), "intd")
        if stage == "envelope begun":
            os.write(self.e, self.rest[:9])
            self.rest = self.rest[9:]

    def end_message(self):
        os.write(self.m, TEXT[40:])
        os.close(self.m)
        self.m = None

    def finish(self):
        """The exit code."""
        with contextlib.suppress(BrokenPipeError):
            if self.m:
                self.end_message()
            os.write(self.e, self.rest)
        os.close(self.e)
        return self.process.wait(harness.TIMEOUT)


class Others:
    """The original's qmail-queue, which holds no lock, as far as the queue sees it."""

    name = "a qmail-queue that knows no lock"
    stages = ("message begun", "envelope begun")

    def __init__(self, home, stage):
        self.home = home
        name = home.file("queue/pid/1.1.1")
        with open(name, "wb") as f:
            f.write(TEXT[:40])
        self.number = os.stat(name).st_ino
        self.mess = home.file(f"queue/mess/{self.number % 23}/{self.number}")
        os.link(name, self.mess)
        os.unlink(name)
        self.file = open(self.mess, "ab")
        self.intd = home.file(f"queue/intd/{self.number}")
        self.begun = stage == "envelope begun"
        if self.begun:
            self.begin()

    def begin(self):
        self.file.write(TEXT[40:])
        self.file.close()
        with open(self.intd, "wb") as f:
            f.write(b"u0\0p1\0")

    def finish(self):
        """It looks at nothing but the answers to its calls."""
        if not self.begun:
            self.begin()
        try:
            with open(self.intd, "r+b") as f:
                f.seek(0, 2)
                f.write(envelope()[:-1])
            os.link(self.intd, self.home.file(f"queue/todo/{self.number}"))
        except FileNotFoundError:
            return 65
        trigger = os.open(self.home.file("queue/lock/trigger"), os.O_WRONLY | os.O_NONBLOCK)
        os.write(trigger, b"\0")
        os.close(trigger)
        return 0


def one(tools, writer, stage, jump, restarted=False):
    """What is wrong after one jump, [(kind, text)]. restarted: qmail-send is started behind the jump."""
    word, ahead = JUMPS[jump]
    with Queue(locals="local.example\n") as home:
        cleaner = Cleaner(home, tools, ahead)
        state = {"at": "start", "code": None}

        def script(world):
            if state["at"] == "start":
                if "status: local 0/" not in world.lines():
                    return False
                state["at"] = "up"
                return b"u"
            if state["at"] == "up":
                state["writer"] = writer(home, stage)
                state["at"] = "waiting"
                state["until"] = world.passed + SWEPT * (1 if word else 2)
                return b"g" if restarted else word or b"g"
            if state["at"] == "waiting":
                if world.passed < state["until"]:
                    return False
                state["code"] = state["writer"].finish()
                state["at"] = "over"
                return b"g"
            if state["at"] == "over" and not any(n.partition("/")[0] for n in files_of(home)):
                state["at"] = "stopped"
                world.signal(signal.SIGTERM)
                return True
            return False
        world = World(home, tools, lambda request: b"Ksaid\n", cleaner, script)
        try:
            run = traced(tools, ["-t", str(ahead if restarted else 0)], world.argv(), home.env, world.open(), world.step, world.told)
        finally:
            world.close()
            cleaner.close()
        return judge(state["code"], world, run, sorted(files_of(home)))


def judge(code, world, run, left):
    wrong = []
    copies = [sum(d[2] == r for d in world.delivered()) for r in RECIPIENTS]
    if any(d[1] != SENDER or strip(d[3]) != TEXT for d in world.delivered()):
        wrong.append(("half", f"delivered: {world.delivered()}"))
    if code is None or world.stuck or run.code != 0:
        wrong.append(("stuck", f"{world.stuck}, {run.statuses}, qmail-queue: {code}, left {left}"))
    if code == 0 and not all(copies):
        wrong.append(("lost", f"acknowledged; copies {copies}, left {left}"))
    if code and not 51 <= code <= 81:
        wrong.append(("code", f"qmail-queue ended with {code}"))
    if left:
        wrong.append(("left", str(left)))
    return wrong


def case(writer, jump):
    row = Row(f"{writer.name}", jump)
    tools = Tools()
    try:
        for stage in writer.stages:
            row.tried += 1
            for kind, text in one(tools, writer, stage, jump):
                row.bad(kind, f"{stage}: {text}")
    finally:
        tools.close()
    return [row]


def cases(sample, seed):
    for writer in (Ours, Others):
        for jump in JUMPS:
            if jump == "40 hours pass" and writer is Others:
                continue  # it would be dead by then: its own alarm comes after 24
            if not sample or jump == "40 hours forth":
                yield f"{writer.name}, {jump}", case, (writer, jump)
