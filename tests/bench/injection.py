"""Messages a second into the queue, everything synced: the two doors beside each other.

The same small message from files, by 1 and by 10 writers at once, each writing the next when the last is
accepted. The ways: `direct` is qmail-queue run by the queue's owner; `socket` speaks to the socket of
qmail-queued without starting a program, as qmail-smtpd and qmail-inject do; `door` is qmail-queue over the
socket, for foreign callers: it pays for a program and for a child, and only its numbers are shown. The ways take turns, a round after the other. A rate is the median of all rounds; a ratio is
the median of the rounds' own ratios, for what else happens on the machine and its disk changes between them.
"""

import os
import shutil
import socket
import statistics
import subprocess
import time

from tests import harness
from tests.bench import ground

WRITERS = (1, 10)
ROUNDS = 9  # each way once in each
MESSAGES = 200  # of each way in a round
SIZE = 4096
RATIO_MIN = 0.8  # of the socket against direct writing: what issue 3 promises
ENVELOPE = b"Fsender@example.org\0Trecipient@example.org\0\0"


class Bench:
    def __init__(self, directory):
        self.home = os.path.join(directory, "home")
        argv = [os.path.join(harness.ROOT, "scripts", "mkhome"), self.home, "--me", "bench.example", "--bin", harness.BIN,
                "--link"]
        self.owner = harness.owner()
        if os.geteuid() == 0:
            argv += ["--owner", self.owner[0]]
        subprocess.run(argv, check=True, capture_output=True)
        # Read once, they stay in memory.
        self.message = self.file(directory, "message", b"Subject: bench\n\n" + b"x" * (SIZE - 17) + b"\n")
        self.envelope = self.file(directory, "envelope", ENVELOPE)
        self.env = {"QMAIL_HOME": self.home, "PATH": os.environ["PATH"]}
        self.program = os.path.join(harness.BIN, "qmail-queue")

    @staticmethod
    def file(directory, name, content):
        path = os.path.join(directory, name)
        with open(path, "wb") as f:
            f.write(content)
        os.chmod(path, 0o444)
        return path

    def sources(self):
        """Message and envelope opened anew: each from its beginning."""
        return os.open(self.message, os.O_RDONLY), os.open(self.envelope, os.O_RDONLY)

    def start(self, env):
        message, envelope = self.sources()
        actions = [(os.POSIX_SPAWN_DUP2, message, 0), (os.POSIX_SPAWN_DUP2, envelope, 1)]
        pid = os.posix_spawn(self.program, ["qmail-queue"], env, file_actions=actions)
        os.close(message)
        os.close(envelope)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def direct(self):
        return self.start({**self.env, "QMAILDOOR": "direct"})

    def door(self):
        return self.start({**self.env, "QMAILDOOR": "socket"})

    def socket(self):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(self.home + "/run/queue")
            message, envelope = self.sources()
            socket.send_fds(s, [b"1"], [message, envelope])
            os.close(message)
            os.close(envelope)
            return s.recv(256)[0]

    def writer(self, way, count, go):
        """A process that waits for the word and then writes its messages; ends with 0 when all went in."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(self.owner[2])
                os.setuid(self.owner[1])
            os.close(go[1])
            os.read(go[0], 1)
            code = any(way() for _ in range(count))
        finally:
            os._exit(code)

    def run(self, way, writers):
        """Messages a second of one run. The queue is emptied afterwards, off the clock."""
        go = os.pipe()
        share = MESSAGES // writers
        pids = [self.writer(way, share, go) for _ in range(writers)]
        os.close(go[0])
        started = time.monotonic()
        os.close(go[1])  # the word
        codes = [os.waitpid(pid, 0)[1] for pid in pids]
        seconds = time.monotonic() - started
        if any(codes):
            raise SystemExit(f"bench: a message was not accepted by {way.__name__}")
        self.empty()
        return share * writers / seconds

    def empty(self):
        for top in ("mess", "intd", "todo"):
            for directory, _, names in os.walk(os.path.join(self.home, "queue", top)):
                for name in names:
                    os.unlink(os.path.join(directory, name))
        os.sync()


def measure():
    if not shutil.which("findmnt"):
        return ["findmnt is not installed"]
    missed = []
    with ground.journaled() as (directory, words):
        bench = Bench(directory)
        with harness.Daemon(["qmail-queued"], env=bench.env) as queued:
            harness.wait_for(lambda: os.path.exists(bench.home + "/run/queue"), "qmail-queued")
            print(f"Messages a second into the queue: {SIZE} bytes, synced, {MESSAGES} a run, medians of {ROUNDS} rounds")
            print(f"on {words}\nof {ground.machine()}\n")
            print("writers     direct       door     socket   door/direct  socket/direct")
            for writers in WRITERS:
                ways = [bench.direct, bench.door, bench.socket]
                rates = {way: [] for way in ways}
                for way in ways:
                    bench.run(way, writers)  # warms up, and does not count
                for _ in range(ROUNDS):
                    for way in ways:
                        rates[way].append(bench.run(way, writers))
                direct, door, spoken = (statistics.median(rates[way]) for way in ways)
                ratios = {}
                for name, way in (("door", bench.door), ("socket", bench.socket)):
                    ratios[name] = statistics.median(a / b for a, b in zip(rates[way], rates[bench.direct]))
                    if way is bench.socket and ratios[name] < RATIO_MIN:
                        missed.append(f"{name} with {writers} writers: {ratios[name]:.2f} of direct writing, not {RATIO_MIN}")
                print(f"{writers:7} {direct:10.0f} {door:10.0f} {spoken:10.0f} {ratios['door']:13.2f} {ratios['socket']:14.2f}",
                      flush=True)
            if queued.process.poll() is not None:
                missed.append("qmail-queued ended")
    return missed
