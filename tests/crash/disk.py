"""The disk full and freed, names used up and freed, directories closed for a while, while mail flows; a queue of 100,000.

What was accepted arrives when there is space again, clients are told to come again and nobody hears of a failure.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time

from tests import faults, harness
from tests.crash import report
from tests.crash.kills_load import WAIT, Load, descendants
from tests.harness import wait_for

TITLE = "Full disks, names used up, directories that cannot be entered, 100,000 queued messages, a slow host"
ROUNDS = 4
INODES = 6000
DIRECTORIES = ("pid", "mess", "intd", "todo", "info", "local", "remote", "bounce", "lock")
CLOSED_SECONDS = 1  # where files of a list could not be removed, qmail-send tries again after 123
BACKLOG, DRAINED = 100_000, 1000
MEMORY_MIB = 64  # qmail-send with that many messages
FEW = 2000  # messages, in the sample
ENDING = 60  # messages whose last recipient is done may be on their way out when qmail-send is stopped
SLOW = 5  # messages to the slow host, of 20 that may leave at once


def cases(sample, seed):
    yield "disk full", full, ("disk full", Full, 1 if sample else ROUNDS, seed)
    if not sample:
        yield "no names left", full, ("no names left", Names, ROUNDS, seed + 1)
        yield "a slow host", slow_host, (seed + 2,)
        yield "closed directories", closed, (DIRECTORIES, seed + 3)
    many = FEW if sample else BACKLOG
    yield f"{many:,} queued", backlog, (many, min(DRAINED, many // 10), seed + 4)


class Full:
    """No byte is left. Space that somebody gives back meanwhile is taken again."""

    def __init__(self, root):
        self.name = os.path.join(root, "filler")

    def take(self):
        with open(self.name, "ab", buffering=0) as f, contextlib.suppress(OSError):
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        f.write(b"x" * size)

    def free(self):
        os.unlink(self.name)


class Names:
    """No inode is left."""

    def __init__(self, root):
        self.directory = os.path.join(root, "names")
        os.mkdir(self.directory)
        self.count = 0

    def take(self):
        with contextlib.suppress(OSError):
            while True:
                os.close(os.open(os.path.join(self.directory, str(self.count)), os.O_CREAT | os.O_WRONLY))
                self.count += 1

    def free(self):
        for name in os.listdir(self.directory):
            os.unlink(os.path.join(self.directory, name))


def finish(load, row):
    """Everything accepted must arrive; nothing may be left."""
    load.quiet()
    load.settle(row)
    load.judge(row)
    for name in load.stop():
        row.bad("left", f"{name} still runs")
    rests = load.age(row)
    print(f"crash: disk: {row.case}: {len(load.accepted)} accepted, {load.refused} refused, {row.extra} second copies {dict(load.twice)}, {rests} rests", file=sys.stderr)
    # A .qmail file of two lines is begun again when the second one failed.
    unasked = {to: count for to, count in load.twice.items() if to != "joe-copy@test.example"}
    if unasked:
        row.bad("code", f"second copies where nothing was killed: {unasked}")


def full(case, kind, rounds, seed):
    row = report.Row(case, "and freed")
    if os.geteuid():
        raise AssertionError("only root can make a file system to be filled")
    with Load(seed, 100, inodes=INODES) as load:
        load.sink.thought = 0
        load.start()
        disk = kind(load.place.root)
        for _ in range(rounds):
            accepted = len(load.accepted)
            wait_for(lambda: load.mail() is not None and len(load.accepted) > accepted + 5, "traffic", WAIT)
            refused = load.refused
            until = time.monotonic() + CLOSED_SECONDS
            wait_for(lambda: disk.take() or load.refused > refused + 3 and time.monotonic() > until, "refusals", WAIT)
            disk.free()
            row.tried += 1
        finish(load, row)
    return [row]


def closed(directories, seed):
    rows = []
    with Load(seed, 100) as load:
        load.sink.thought = 0
        load.start()
        for name in directories:
            row = report.Row("a closed directory", name)
            accepted = len(load.accepted)
            wait_for(lambda: load.mail() is not None and len(load.accepted) > accepted + 5, "traffic", WAIT)
            with faults.mode(0, load.home.file("queue", name)):
                until = time.monotonic() + CLOSED_SECONDS
                wait_for(lambda: load.mail() is not None and time.monotonic() > until, "a while", WAIT)
            if load.home.daemon.process.poll() is not None:
                row.bad("stuck", f"qmail-send ended when {name} was closed")
            load.revive()
            row.tried = 1
            rows.append(row)
        finish(load, rows[-1])
    return rows


def slow_host(seed):
    """One byte a second; others are served as ever."""
    row = report.Row("a host that answers one byte a second", "and others' mail")
    with Load(seed, 100) as load:
        load.sink.thought = 0
        load.sink.slow = 1
        load.revive()
        for n in range(SLOW):
            name, to = f"slow.{n}", f"u{n}@slow.example"
            if load.home.inject(faults.message(name), "ann@test.example", [to]).code == 0:
                load.accepted[name] = [to]
        wait_for(lambda: harness.family(load.home.daemon.pid) and
                 sum(name == "qmail-remote" for name, _ in descendants().values()) >= SLOW, "the slow deliveries", WAIT)
        load.start()
        wait_for(lambda: load.mail() is not None and sum(n.startswith("mailing") for n, _ in list(load.sink.counts)) >= 200, "two mailings", WAIT)
        if any(name.startswith("slow") for name, _ in load.sink.counts):
            row.bad("code", "the slow host was not slow")
        row.tried = sum(load.sink.counts.values())
        load.sink.slow = None  # it has mended its ways
        finish(load, row)
    return [row]


FILL = r"""
import os, sys
home, count = sys.argv[1], int(sys.argv[2])
os.chdir(home + "/queue")
os.umask(0o077)
for i in range(count):
    with open("pid/x", "w") as f:
        f.write("Subject: queued.%d\n\nbegin queued.%d\n\nend queued.%d\n" % (i, i, i))
        n = os.fstat(f.fileno()).st_ino
        os.fchmod(f.fileno(), 0o644)
    os.rename("pid/x", f"mess/{n % 23}/{n}")
    with open(f"info/{n % 23}/{n}", "w") as f:
        f.write("Fann@test.example\0")
    with open(f"remote/{n % 23}/{n}", "w") as f:
        f.write(f"Tuser{i}@host{i % 1000}.example\0")
"""


def memory(pid):
    """MiB that a process had at its highest."""
    with open(f"/proc/{pid}/status") as f:
        return int(re.search(r"VmHWM:\s*(\d+)", f.read())[1]) / 1024


def waiting(load):
    """How many recipients wait."""
    count = 0
    for directory in faults.parts(load.home, "remote"):
        for name in os.listdir(directory):
            with open(os.path.join(directory, name), "rb") as f:
                count += f.read(1) == b"T"
    return count


def backlog(count, drained, seed):
    """As an earlier life of qmail-send left them. On a memory file system, where there is one: qmail-send is on trial."""
    row = report.Row(f"{count:,} queued messages", "a start, new mail, a part delivered")
    with Load(seed, 100, memory=True) as load:
        load.sink.thought = 0
        drop = ["setpriv", "--reuid", str(harness.owner()[1]), "--regid", str(harness.owner()[2]), "--clear-groups"] if os.geteuid() == 0 else []
        with tempfile.NamedTemporaryFile("w", suffix=".py") as f:
            f.write(FILL)
            f.flush()
            os.chmod(f.name, 0o644)
            subprocess.run([*drop, sys.executable, f.name, load.home.path, str(count)], check=True)
        load.home.control("concurrencyremote", "0\n")
        load.revive()
        # New mail does not wait for the old.
        if load.home.inject(faults.message("new"), "ann@test.example", ["joe@test.example"]).code:
            row.bad("stuck", "no new mail is accepted")
        load.accepted["new"] = ["joe@test.example"]
        try:
            wait_for(lambda: faults.copies(load.home.messages(), "new"), "new mail", WAIT)
        except AssertionError as e:
            row.bad("stuck", str(e))
        load.home.daemon.stop(timeout=WAIT)
        load.home.control("concurrencyremote", "20\n")
        load.revive()
        faults.nudge(load.home)
        wait_for(lambda: len(load.sink.counts) >= drained, f"{drained} deliveries", WAIT)
        peak = memory(load.home.daemon.pid)
        if peak > MEMORY_MIB:
            row.bad("left", f"qmail-send has {peak} MiB")
        load.home.daemon.stop(timeout=WAIT)
        load.home.daemon = None
        done = len(load.sink.counts)
        row.tried, row.extra = done, sum(load.sink.counts.values()) - done
        undone, there = waiting(load), sum(len(os.listdir(path)) for path in faults.parts(load.home, "mess"))
        if undone != count - done:
            row.bad("lost" if undone < count - done else "code", f"{undone} recipients wait, {count - done} should")
        if there - undone > ENDING:
            row.bad("left", f"{there} messages are there for {undone} recipients")
        print(f"crash: disk: {count:,} queued: {peak:.0f} MiB, {done} delivered", file=sys.stderr)
    return [row]
