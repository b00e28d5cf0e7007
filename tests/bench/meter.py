"""What a piece of work cost: processor time of one system's processes, device flushes, processes started, memory.

A system's processes are those in its control group (cgroup v2: made by `groups`, before the namespaces, and removed
behind them). Processes started are read from the numbers that a pid namespace gives out one after the other: where
other work shares the namespace it is counted too, so the measurements run in one of their own.
"""

import contextlib
import os
import re
import threading
import time

from tests import sandbox

VARIABLE = "QMAIL_BENCH_CGROUP"
RESERVED = 300  # numbers that are not given out again when they begin anew
SAMPLE = 0.2  # seconds: far less than it takes to start as many processes as there are numbers


@contextlib.contextmanager
def groups():
    """The directory of control groups for this run, in the environment; nothing where there is no cgroup v2 to write."""
    path = None
    with open("/proc/self/mounts") as f:
        mounts = [line.split() for line in f]
    for _, where, kind, *_ in mounts:
        if kind == "cgroup2" and os.geteuid() == 0:
            path = os.path.join(where, f"qmail-bench-{os.getpid()}")
            try:
                os.mkdir(path)
                break
            except OSError:
                path = None
    try:
        yield {VARIABLE: path} if path else {}
    finally:
        if path:
            for directory, _, _ in os.walk(path, topdown=False):
                _retire(directory)


def _retire(directory):
    """Ends what is left in a group of ours and removes it."""
    with contextlib.suppress(OSError), open(os.path.join(directory, "cgroup.kill"), "w") as f:
        f.write("1")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            return os.rmdir(directory)
        except FileNotFoundError:
            return None
        except OSError:
            time.sleep(0.02)  # the dead are still leaving
    return None


class Group:
    """The processes of one system."""

    def __init__(self, name):
        top = os.environ.get(VARIABLE)
        self.path = os.path.join(top, name) if top else None
        if self.path:
            os.makedirs(self.path, exist_ok=True)

    def join(self):
        """For a child before its exec."""
        if self.path:
            with open(os.path.join(self.path, "cgroup.procs"), "w") as f:
                f.write("0")

    def pids(self):
        if not self.path:
            return []
        with open(os.path.join(self.path, "cgroup.procs")) as f:
            return [int(pid) for pid in f.read().split() if pid != "0"]

    def cpu(self):
        """Seconds of processor time, the dead included; None where it is not known."""
        if not self.path:
            return None
        with open(os.path.join(self.path, "cpu.stat")) as f:
            return int(re.search(r"usage_usec (\d+)", f.read())[1]) / 1e6

    def pss(self):
        """KiB of memory, shared pages in parts, and the number of processes."""
        total = count = 0
        for pid in self.pids():
            with contextlib.suppress(OSError, StopIteration), open(f"/proc/{pid}/smaps_rollup") as f:
                total += next(int(line.split()[1]) for line in f if line.startswith("Pss:"))
                count += 1
        return total, count

    def end(self):
        """Kills what is left of the system, nothing else."""
        if self.path and self.pids():
            with open(os.path.join(self.path, "cgroup.kill"), "w") as f:
                f.write("1")
            deadline = time.monotonic() + 30
            while self.pids() and time.monotonic() < deadline:
                time.sleep(0.01)


def flushes(device):
    """Flushes this device has done since it is there; None where nobody counts them."""
    try:
        with open(f"/sys/block/{os.path.basename(device)}/stat") as f:
            return int(f.read().split()[15])
    except (OSError, IndexError, TypeError):
        return None


class Forks:
    """Counts processes and threads started in this namespace."""

    def __init__(self):
        with open("/proc/sys/kernel/pid_max") as f:
            self.range = int(f.read()) - RESERVED
        self.total, self.last, self.lock = 0, self.newest(), threading.Lock()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    @staticmethod
    def newest():
        with open("/proc/loadavg") as f:
            return int(f.read().split()[4])

    def read(self):
        with self.lock:
            at = self.newest()
            self.total += (at - self.last) % self.range if at < self.last else at - self.last
            self.last = at
            return self.total

    def watch(self):
        while not self.done.wait(SAMPLE):
            self.read()


class Meter:
    """begin(), work, end(): what the work between them cost."""

    def __init__(self, group, device):
        self.group, self.device = group, device
        self.forks = Forks() if sandbox.here() else None

    def begin(self):
        self.at = (self.group.cpu(), flushes(self.device), self.forks.read() if self.forks else None, time.monotonic())
        return self

    def end(self, cpu=0.0, forks=0):
        """The differences, without what the driver says was its own."""
        now = (self.group.cpu(), flushes(self.device), self.forks.read() if self.forks else None, time.monotonic())
        if self.forks:
            self.forks.done.set()
        both = [None if a is None or b is None else b - a for a, b in zip(self.at, now)]
        return {"cpu": None if both[0] is None else max(0.0, both[0] - cpu), "flushes": both[1],
                "forks": None if both[2] is None else max(0, both[2] - forks), "wall": both[3]}
