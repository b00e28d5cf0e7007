"""Every call of qmail-lspawn and of a qmail-local that takes one message after the other, and of the process beside it: each
fails, or is the last of its process, while three messages for one recipient come one behind the other.

strace counts in each process for itself, so that a fault may meet several of them in one run."""

import contextlib
import os
import random
import re
import select
import shutil
import signal
import subprocess
import time

from tests import harness, spawners, tinycdb
from tests.crash.report import Row
from tests.spawners import request

TITLE = "A qmail-local that stays"
CASE = "qmail-lspawn and a qmail-local that stays"
KINDS = ("EIO", "ENOMEM", "SIGKILL")
SLOTS = (0, 1, 2)
SENDER = "s@h.test"

# strace cannot make them fail, or the kernel never does; to make memory fail ends a process before it has begun.
SPARED = {"execve", "exit", "exit_group", "close", "rt_sigreturn", "restart_syscall", "brk", "mmap", "munmap", "mprotect", "arch_prctl",
          "set_tid_address", "sigaltstack", "rt_sigaction", "rt_sigprocmask", "getpid", "getppid", "geteuid", "uname", "umask"}
FIRST, LAST = 12, 3  # of the same call; the ledger's rows are 4,096
# How messages, locks and words go from one to the other.
OF_THE_LINE = {"sendmsg", "recvmsg", "poll", "ppoll", "pwrite64", "write", "read", "wait4", "lseek", "fsync"}
SAMPLE = 20


class Rig:
    def __init__(self, stack):
        self.home = stack.enter_context(harness.Home(users={"joe": ""}))
        uid, gid = harness.owner()[1:]
        place = self.home.file("home/joe")
        self.home.write("users/cdb", tinycdb.make([(b"!joe\0", f"joe\0{uid}\0{gid}\0{place}\0\0".encode()), (b"", b"")]))
        self.texts = {slot: f"Subject: {slot}\n\n{'body ' * (slot + 1)}\n".encode() for slot in SLOTS}
        self.paths = {slot: spawners.put_message(self.home, 457 + slot, text) for slot, text in self.texts.items()}
        self.log = os.path.join(self.home.base, "strace")

    def clear(self):
        spawners.forget(self.home)
        for sub in ("tmp", "new", "cur"):
            for name in os.listdir(self.home.file("home/joe/Maildir", sub)):
                os.unlink(self.home.file("home/joe/Maildir", sub, name))

    def talk(self, slots, *before):
        """{slot: letter} of those that were answered, and whether somebody was waited for in vain."""
        process = subprocess.Popen([*before, harness.program("qmail-lspawn"), "./Maildir/"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, env=self.home.env, bufsize=0)
        letters, hung = {}, False
        try:
            said = self.read(process, 1)
            for slot in slots if said else ():
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(request(slot, self.paths[slot], SENDER, "joe@h.test"))
                report = b""
                while said and not (len(report) > 1 and report.endswith(b"\0")):
                    said = self.read(process, 1)
                    report += said or b""
                if not said:
                    break
                letters[report[0]] = report[1:2].decode("latin-1")
            hung = said is None
            process.stdin.close()
            process.wait(0 if hung else harness.TIMEOUT)
        except subprocess.TimeoutExpired:
            hung = True
        finally:
            for pid in harness.family(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()
            process.stdin.close()
        return letters, hung

    @staticmethod
    def read(process, size):
        """None when nothing comes."""
        if not select.select([process.stdout], [], [], harness.TIMEOUT)[0]:
            return None
        return process.stdout.read(size)

    def settle(self):
        """Who outlived qmail-lspawn has a row of the ledger locked, or nothing to do."""
        deadline = time.monotonic() + harness.TIMEOUT
        while any(name == "qmail-local" and self.is_here(pid) for pid, name in harness.family(1).items()):
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)

    def is_here(self, pid):
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{pid}/cwd").startswith(self.home.path)
        return False

    def copies(self):
        """{slot: how many}, and what is no copy of anything."""
        found, wrong = dict.fromkeys(SLOTS, 0), []
        for name in os.listdir(self.home.file("home/joe/Maildir/new")):
            with open(self.home.file("home/joe/Maildir/new", name), "rb") as f:
                text = f.read()
            head = f"Return-Path: <{SENDER}>\nDelivered-To: joe@h.test\n".encode()
            slots = [slot for slot in SLOTS if text == head + self.texts[slot]]
            for slot in slots:
                found[slot] += 1
            wrong += [] if slots else [text]
        return found, wrong

    def counted(self):
        """{call: how often the process makes it that makes it most often}."""
        self.clear()
        letters, hung = self.talk(SLOTS, "strace", "-f", "-qq", "-o", self.log)
        if hung or set(letters.values()) != {"K"} or len(letters) != len(SLOTS):
            raise AssertionError(f"without a fault: {letters}, hung: {hung}")
        counts = {}
        with open(self.log, errors="replace") as f:
            for line in f:
                if m := re.match(r"(\d+) +(\w+)\(", line):
                    counts[m[1], m[2]] = counts.get((m[1], m[2]), 0) + 1
        most = {}
        for (_, call), n in counts.items():
            if call not in SPARED:
                most[call] = max(most.get(call, 0), n)
        return most

    def points(self):
        for call, most in sorted(self.counted().items()):
            for n in range(1, most + 1):
                if n <= FIRST or n > most - LAST:
                    yield from ((call, n, kind) for kind in KINDS)

    def one(self, call, n, kind):
        """One fault: [(kind of wrong, what)], and how many second copies."""
        self.clear()
        option = "signal=SIGKILL" if kind == "SIGKILL" else f"error={kind}"
        letters, hung = self.talk(SLOTS, "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{option}:when={n}")
        self.settle()
        # What was killed, or may remove nothing, leaves a file that readers of a Maildir remove when it is old.
        return self.judge(letters, hung, kind != "SIGKILL" and call != "unlinkat")

    def judge(self, letters, hung, tidy):
        wrong = [("stuck", f"no answer, or no end: {letters}")] if hung else []
        copies, odd = self.copies()
        wrong += [("half", f"{text}") for text in odd]
        for slot, letter in letters.items():
            if letter not in "KZ":
                wrong.append(("code", f"message {slot} is refused for good: {letter}"))
            if letter == "K" and not copies.get(slot):
                wrong.append(("lost", f"message {slot}: {letters}, {copies}"))
        if tidy and (left := os.listdir(self.home.file("home/joe/Maildir/tmp"))):
            wrong.append(("left", f"in tmp: {left}"))
        rest = [slot for slot in SLOTS if letters.get(slot) != "K"]
        again, hung = self.talk(rest) if rest else ({}, False)
        self.settle()
        copies, _ = self.copies()
        if hung or [again.get(slot) for slot in rest] != ["K"] * len(rest) or not all(copies.values()):
            wrong.append(("stuck", f"the fault is gone: {again}, {copies}"))
        return wrong, sum(max(0, n - 1) for n in copies.values())


def campaign(sample, seed, part):
    rows = {kind: Row(CASE, kind) for kind in KINDS}
    with contextlib.ExitStack() as stack:
        rig = Rig(stack)
        points = list(rig.points())
        if sample:
            points = [point for point in points if point[0] in OF_THE_LINE]
            points = random.Random(seed).sample(points, min(SAMPLE, len(points)))
        for call, n, kind in points[part[0] - 1::part[1]]:
            wrong, extra = rig.one(call, n, kind)
            rows[kind].tried += 1
            rows[kind].extra += extra
            for what, text in wrong:
                rows[kind].bad(what, f"{kind} at {call} number {n} of a process: {text}")
    return list(rows.values())


def cases(sample, seed):
    if os.geteuid() or not shutil.which("strace"):
        return  # only root may trace programs that made themselves undumpable
    shares = 2
    for k in range(1, shares + 1):
        yield f"{CASE} ({k}/{shares})", campaign, (sample, seed, (k, shares))
