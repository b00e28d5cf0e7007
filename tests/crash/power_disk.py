"""Power cuts of real file systems: a home on a mounted image that is copied, at once and without sync, under load.

The image lies on a file system that can share blocks (xfs, itself an image), so that a copy is of one moment: what the
image's file system had written by then, and nothing that it still held in memory. The copy is mounted in the image's
place, which replays its journal, and the system is started there.
"""

import contextlib
import fcntl
import os
import random
import re
import signal
import subprocess
import tempfile
import threading
import time

from tests import harness
from tests.crash import power_judge, power_lives
from tests.crash.report import Row
from tests.harness import Home, Line, wait_for

FICLONE = 0x40049409
MIB = 1 << 20
# What it is made with, its size, and how a copy beside the original is mounted.
KINDS = {
    "ext4": (["mkfs.ext4", "-q", "-O", "has_journal"], 96 * MIB, "loop"),
    "xfs": (["mkfs.xfs", "-q"], 320 * MIB, "loop,nouuid"),
    "btrfs": (["mkfs.btrfs", "-q"], 256 * MIB, "loop"),
}
PAUSE = 0.01, 0.12  # seconds between two copies
WRITERS = 3


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
    if done.returncode:
        raise AssertionError(f"{argv}: {done.stderr}")


def make(path, size, command):
    with open(path, "wb") as f:
        f.truncate(size)
    run(*command, path)


@contextlib.contextmanager
def mounted(image, place, options="loop"):
    run("mount", "-o", options, image, place)
    try:
        yield
    finally:
        # Who still ends there is waited for.
        wait_for(lambda: not subprocess.run(["umount", place], capture_output=True).returncode, f"{place} to be left")


class Traffic:
    """Messages by SMTP and by qmail-queue, until it is stopped; who was promised what."""

    def __init__(self, home):
        self.home, self.stopped = home, threading.Event()
        self.accepted = []  # messages, in the order of their promise
        self.troubles = []
        self.threads = [threading.Thread(target=self.write, args=(n,)) for n in range(WRITERS)]

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for t in self.threads:
            t.join(4 * harness.TIMEOUT)

    def write(self, who):
        try:
            with contextlib.ExitStack() as stack:
                line = None
                if who:
                    line = Line.start(["qmail-smtpd"], env=self.home.env)
                    stack.callback(line.close)
                    line.expect("220 ...")
                    line.send("HELO x\r\n")
                    line.expect("250 ...")
                count = 0
                while not self.stopped.is_set():
                    count += 1
                    message = power_lives.message(f"w{who}m{count}", self.recipients(count))
                    if line:
                        self.talk(line, message)
                    else:
                        power_lives.inject(self.home, message)
                    self.accepted.append(message)
        except Exception as e:
            self.troubles.append(repr(e))

    @staticmethod
    def recipients(count):
        if count % 7 == 3:
            return {**power_lives.JOE, **power_lives.FAILS}
        if count % 11 == 5:
            return {f"joe-n-{n}@test.example": "joe" for n in range(10)}
        return {**power_lives.JOE, "ann@test.example": "ann"} if count % 2 else power_lives.JOE

    @staticmethod
    def talk(line, message):
        for command, reply in [(f"MAIL FROM:<{message.sender}>", "250 ..."), *((f"RCPT TO:<{r}>", "250 ...") for r in message.recipients),
                               ("DATA", "354 ..."), (message.text.decode().replace("\n", "\r\n") + ".", "250 ...")]:
            line.send(command + "\r\n")
            line.expect(reply)


def try_cuts(title, kind, seed, cuts, start=Home.start):
    """One file system, cut so many times under load. `start` starts the system for that."""
    chance = random.Random(seed)
    command, size, again = KINDS[kind]
    row = Row(title, "power cut")
    base = tempfile.gettempdir()
    outer, place = os.path.join(base, "outer"), os.path.join(base, "home")
    os.mkdir(outer)
    os.mkdir(place)
    make(outer + ".img", 6144 * MIB, ["mkfs.xfs", "-q", "-m", "reflink=1"])
    with mounted(outer + ".img", outer):
        image = os.path.join(outer, "image")
        make(image, size, command)
        with mounted(image, place):
            os.chmod(place, 0o755)
            tempfile.tempdir = place
            try:
                home = Home(users={"joe": "secret", "ann": "secret"})
            finally:
                tempfile.tempdir = base
            power_lives.prepare(home, "")
            home.control("concurrencylocal", "20\n")
            run("sync")  # a home is not made under the eyes of a power cut
            promised = load(home, image, chance, cuts, start)
        for count, messages in enumerate(promised):
            copy = f"{image}.{count}"
            with mounted(copy, place, again):
                judge(row, home, messages, count)
            os.unlink(copy)
    return [row]


def load(home, image, chance, cuts, start):
    """Copies the image so many times; what had been promised before each."""
    promised = []
    start(home)
    try:
        with Traffic(home) as traffic:
            wait_for(lambda: len(traffic.accepted) > WRITERS or traffic.troubles, "the first messages")
            for count in range(cuts):
                time.sleep(chance.uniform(*PAUSE))  # any moment is as good as any other
                promised.append(list(traffic.accepted))
                copy(image, f"{image}.{count}")
        if traffic.troubles:
            raise AssertionError(traffic.troubles)
        home.wait_empty(4 * harness.TIMEOUT)
    finally:
        home.stop()
    return promised


def copy(image, path):
    """All blocks of one moment."""
    with open(image, "rb") as source, open(path, "wb") as target:
        fcntl.ioctl(target, FICLONE, source.fileno())


class Nothing:
    """No record: mailboxes are looked at."""

    steps, before = (), {}


def judge(row, home, messages, count):
    row.tried += 1
    judge = power_judge.Judge(Nothing, messages)
    home.start()
    try:
        rest = settle(home)
    finally:
        home.stop()
    if rest:
        row.bad("stuck", f"cut {count}: {rest}\n{home.log()[-2000:]}")
    state = boxes(home)
    nothing = power_judge.Outcome()
    for m in messages:
        for recipient, kind in m.recipients.items():
            if not judge.served(state, m.token, recipient, kind, nothing):
                row.bad("lost", f"cut {count}: {m.token} for {recipient}, of {len(messages)}\n{home.log()[-2000:]}")
    seen = set()
    for path, (_, content) in state.items():
        known = power_judge.token(content)
        whole = content.endswith(power_lives.message(known).text) if known else False
        if not whole or b"\0" in content:
            row.bad("half", f"cut {count}: {path}: {content[:500]!r}")
        to = re.search(rb"^Delivered-To: (.*)$", content, re.M)
        key = known, to and to[1], power_judge.BOUNCE in content
        row.extra += key in seen
        seen.add(key)
    for top in ("todo", "info", "local", "remote", "bounce"):
        for _, _, names in os.walk(home.file("queue", top)):
            for name in names:
                if not rest and not orphan(home, top, name):
                    row.bad("left", f"cut {count}: {top}/{name}")


def orphan(home, top, name):
    """info without mess is kept for 36 hours; lists and bounces alone as long."""
    number = int(name.partition(".")[0])
    return top != "todo" and not os.path.exists(home.file("queue", power_judge.split("mess", number)))


def settle(home):
    """Until everything that can be delivered is; what could not be."""
    def undone():
        return [name for name in os.listdir(home.file("queue/todo"))] + [
            name for s in range(power_judge.SPLIT) for name in os.listdir(home.file("queue/info", str(s)))
            if os.path.exists(home.file("queue/mess", str(s), name))]

    def settled():
        if not undone():
            return True
        home.daemon.process.send_signal(signal.SIGALRM)
        with open(home.file("queue/lock/trigger"), "wb", buffering=0) as trigger:
            trigger.write(b"\0")
        return False
    try:
        wait_for(settled, "the queue to be settled")
        return []
    except AssertionError:
        return undone()


def boxes(home):
    """What is in the mailboxes."""
    state = {}
    for user in ("joe", "ann"):
        for sub in ("new", "cur"):
            for name in os.listdir(os.path.join(home.maildir(user), sub)):
                with open(os.path.join(home.maildir(user), sub, name), "rb") as f:
                    content = f.read()
                state[f"home/{user}/Maildir/{sub}/{name}"] = power_judge.Seen(content), content
    return state
