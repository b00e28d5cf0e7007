"""A home under load, and the judge of what came of it: for the parts kills and disk.

SMTP in (three clients), deliveries to a Maildir, to a program, forwards, remote ones to a sink of our own, and mailings
of many recipients. What was acknowledged (250, or exit 0 of qmail-queue) is noted, and where it has to arrive.
"""

import asyncio
import collections
import contextlib
import ctypes
import os
import random
import re
import shutil
import signal
import smtplib
import subprocess
import tempfile
import threading
import time

from tests import faults, harness
from tests.harness import Daemon, Home, free_port, wait_for

WAIT = 240  # seconds: any single wait; what is waited for takes few, on a machine that does much else some more
CLIENTS = 3
MAILING, MATES = 1000, 4  # recipients of a mailing; those at one host
# Seconds that the sink takes for each answer: a host far away. But none behind the dot: whoever is cut off between
# the dot and its answer sends it again (rfc1047), and this is to count what we add to that.
THOUGHT = 0.1
PAUSE = 0.15  # seconds between two connections of a client
IMAGE_MIB = 192
SUBREAPER = 36  # prctl(2)


class Sink:
    """An SMTP server that takes everything and counts (subject, recipient) before it says so."""

    def __init__(self):
        self.counts, self.port, self.loop = collections.Counter(), None, asyncio.new_event_loop()
        self.thought = THOUGHT
        self.slow = None  # seconds a byte, for hosts whose name begins with "slow"
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        wait_for(lambda: self.port, "the sink", WAIT)

    def _run(self):
        asyncio.set_event_loop(self.loop)
        server = self.loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=500, limit=1 << 22))
        self.port = server.sockets[0].getsockname()[1]
        self.loop.run_forever()
        server.close()

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(WAIT)

    async def _say(self, writer, text, slow):
        if slow:
            for byte in text:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(self.slow or 0)  # it may have come to haste meanwhile
        else:
            writer.write(text)
            await writer.drain()

    async def _serve(self, reader, writer):
        try:
            slow, recipients = False, []
            await self._say(writer, b"220 sink\r\n", False)
            while line := await reader.readline():
                verb = line[:4].upper()
                await asyncio.sleep(self.thought)
                if verb == b"RCPT":
                    recipients.append(line[line.index(b"<") + 1:line.index(b">")].decode())
                    slow = slow or bool(self.slow) and "@slow" in recipients[-1]
                if verb == b"DATA":
                    await self._say(writer, b"354 go\r\n", slow)
                    text = await reader.readuntil(b"\r\n.\r\n")
                    name = re.search(rb"^Subject: (\S+)", text, re.M)[1].decode()
                    if f"\r\nend {name}\r\n".encode() not in text:
                        name += " (not whole)"
                    self.counts.update((name, r) for r in recipients)
                    recipients = []
                await self._say(writer, b"250 ok\r\n" if verb != b"QUIT" else b"221 bye\r\n", slow)
                if verb == b"QUIT":
                    return
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


def children(*pids):
    """The children of processes, quickly."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as f:
            found += map(int, f.read().split())
    return found


def program(pid):
    """What a process runs; empty when it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as f:
        return f.read().rstrip("\n")
    return ""


OTHERS = {os.getpid()}  # what was there before: helpers of multiprocessing


def descendants():
    """{pid: (program, parent)} of everything of ours that descends from this process, which adopts orphans."""
    names = harness.family(os.getpid())
    return {pid: (name, harness.parent(pid)) for pid, name in names.items() if pid not in OTHERS}


class Place:
    """Where homes of this process are made: by root a small ext4 with a journal, whose files can be made old."""

    def __init__(self, inodes=65536, memory=False):
        self.real = os.geteuid() == 0 and not memory
        self.base = tempfile.mkdtemp(prefix="qmail-load-")
        os.chmod(self.base, 0o755)
        if os.geteuid():
            tempfile.tempdir = self.base
            return
        if ctypes.CDLL(None, use_errno=True).unshare(0x20000):  # CLONE_NEWNS: what is mounted here nobody else sees
            raise OSError(ctypes.get_errno(), "unshare")
        self.sh("mount", "--make-rprivate", "/")
        self.sh("mount", "-t", "tmpfs", "-o", "mode=755,size=4g", "tmpfs", self.base)
        if memory:
            tempfile.tempdir = self.base
            return
        self.image, self.root = os.path.join(self.base, "image"), os.path.join(self.base, "root")
        os.mkdir(self.root)
        with open(self.image, "wb") as f:
            f.truncate(IMAGE_MIB << 20)
        self.sh("mkfs.ext4", "-q", "-N", str(inodes), self.image)
        self.mount()
        os.chmod(self.root, 0o755)
        tempfile.tempdir = self.root

    def sh(self, *argv):
        done = subprocess.run(argv, capture_output=True, env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
        if done.returncode:
            raise AssertionError(f"{argv}: {done.stderr.decode()}")
        return done.stdout

    def mount(self):
        self.sh("mount", "-o", "loop", self.image, self.root)

    def age(self, names):
        """Makes files old, ctime too: nobody may have anything open in there."""
        inodes = [os.stat(name).st_ino for name in names]
        self.sh("umount", self.root)
        with open(os.path.join(self.base, "commands"), "w") as f:
            f.writelines(f"sif <{n}> {field} 20200102030405\n" for n in inodes for field in ("atime", "mtime", "ctime"))
        self.sh("debugfs", "-w", "-f", f.name, self.image)
        self.mount()
        for name in names:
            assert os.stat(name).st_ctime < 1.6e9, name

    def end(self):
        tempfile.tempdir = None
        if self.real:
            self.sh("umount", "-l", self.root)
        if os.geteuid() == 0:
            self.sh("umount", "-l", self.base)
        shutil.rmtree(self.base, ignore_errors=True)


class Load:
    """A home with its services, the clients, and what they were promised."""

    def __init__(self, seed, mailing=MAILING, **place):
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
        OTHERS.update(descendants())
        self.random, self.mailing_size = random.Random(seed), mailing
        self.stack = contextlib.ExitStack()
        self.place = Place(**place)
        self.stack.callback(self.place.end)
        self.sink = Sink()
        self.stack.callback(self.sink.stop)
        self.home = Home(users={"joe": "secret", "ann": "x"})
        self.stack.callback(shutil.rmtree, self.home.base, True)
        self.stack.callback(self.kill_all)
        self.home.control("smtproutes", f":127.0.0.1:{self.sink.port}\n")
        self.home.control("rcpthosts", "test.example\n.example\n")
        self.home.dotqmail(".qmail-copy", "&ann@test.example\n./Maildir/\n")
        self.home.dotqmail(".qmail-run", "|./run\n")
        self.home.write("home/joe/run", "#!/bin/sh\nname=$(sed -n 's/^Subject: //p')\nsleep 0.01\necho $name >>ran\n", 0o755)
        self.port, self.server, self.queued = free_port(), None, None
        self.lock, self.accepted, self.mailings = threading.Lock(), {}, 0
        self.refused, self.forbidden = 0, []  # how often a client was told to come again; never to
        self.twice = collections.Counter()  # by recipient
        self.writing, self.threads = threading.Event(), []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.writing.clear()
        for thread in self.threads:
            thread.join(WAIT)
        self.stack.close()

    # -- the system

    def revive(self):
        """What has ended is started again, as a supervisor would."""
        if self.queued is None or self.queued.process.poll() is not None:
            self.queued = Daemon([self.home.file("bin/qmail-queued")], env=self.home.env, cwd="/",
                                 logfile=self.home.logfile + ".queued", own_group=True)
        if self.server is None or self.server.process.poll() is not None:
            argv = ["tcpserver", *harness.as_owner(), "-H", "-R", "-l", "test.example", "127.0.0.1", str(self.port), "qmail-smtpd"]
            self.server = Daemon(argv, env=self.home.env, logfile=self.home.logfile + ".server", own_group=True)
        if self.home.daemon is None or self.home.daemon.process.poll() is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.home.logfile)
            self.home.daemon = Daemon([self.home.file("bin/qmail-start"), "./Maildir/"], env={**self.home.env, "QMAILKEEPER": "no"},
                                      cwd="/", logfile=self.home.logfile, own_group=True)
            self.home.daemon.wait_log(r"^status: local 0/", WAIT)

    def kill_all(self):
        """Nothing of this home may stay behind, whatever happened."""
        def gone():
            for pid in descendants():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.reap()
            return not descendants()
        wait_for(gone, "every process to end", WAIT)

    def reap(self):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def stop(self):
        """As an administrator would; [what did not end]."""
        self.home.daemon.stop(timeout=WAIT)
        self.home.daemon = None
        for daemon in (self.server, self.queued):
            daemon.stop(timeout=WAIT)
        self.server = self.queued = None
        try:
            wait_for(lambda: self.reap() or not descendants(), "every process to end", WAIT)
        except AssertionError:
            return sorted(name for name, _ in descendants().values())
        return []

    # -- the load

    def start(self):
        self.revive()
        self.writing.set()
        self.threads = [threading.Thread(target=self.write, args=(c,)) for c in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def write(self, client):
        """Sends messages until told to stop, and notes those that were acknowledged."""
        whom = ("joe@test.example", "joe-copy@test.example", "joe-run@test.example", "far@away.example",
                "joe@test.example near@by.example")
        n = 0
        while self.writing.is_set():
            n += 1
            name, recipients = f"{client}.{n}", whom[n % len(whom)].split()
            try:
                with smtplib.SMTP("127.0.0.1", self.port, timeout=WAIT) as smtp:
                    for _ in range(3):  # one connection, some messages
                        refused = smtp.sendmail("ann@test.example", recipients, faults.message(name, n % 7 * 1000).replace(b"\n", b"\r\n"))
                        with self.lock:
                            self.accepted[name] = [r for r in recipients if r not in refused]
                        n += 1
                        name, recipients = f"{client}.{n}", whom[n % len(whom)].split()
            except smtplib.SMTPResponseException as e:
                self.refuse([e.smtp_code])
            except smtplib.SMTPRecipientsRefused as e:
                self.refuse([code for code, _ in e.recipients.values()])
            except (OSError, smtplib.SMTPException):
                self.refuse([])  # as any client: not at once again
            time.sleep(PAUSE)

    def refuse(self, codes):
        with self.lock:
            self.refused += 1
            self.forbidden += [code for code in codes if code >= 500]
        time.sleep(0.01)

    def mail(self):
        """A mailing, if the last one is nearly through; how many of it have arrived."""
        name = f"mailing.{self.mailings}"
        arrived = sum(1 for (n, _) in list(self.sink.counts) if n == name)
        if name in self.accepted and arrived < self.mailing_size * 0.9:
            return arrived
        self.mailings += 1
        name = f"mailing.{self.mailings}"
        everybody = [f"m{i}@host{i // MATES}.example" for i in range(self.mailing_size)]
        if self.home.inject(faults.message(name), "ann@test.example", everybody).code == 0:
            with self.lock:
                self.accepted[name] = everybody
        return 0

    def quiet(self):
        """The clients stop; everything accepted is on its way."""
        self.writing.clear()
        for thread in self.threads:
            thread.join(WAIT)

    def settle(self, row, what=("todo", "info", "local", "remote", "bounce")):
        """Until only rests of what was not accepted are in the queue."""
        def settled():
            self.revive()
            self.reap_orphans()
            if not faults.left(self.home, *what):
                return True
            faults.nudge(self.home)  # what was deferred by a kill is tried now
            time.sleep(0.1)
            return False
        try:
            wait_for(settled, "the queue to settle", WAIT)
        except AssertionError as e:
            row.bad("stuck", f"{e}: {faults.left(self.home)[:20]} {sorted(n for n, _ in descendants().values())}")

    def reap_orphans(self):
        """Zombies that we adopted; not those whose end the harness waits for."""
        mine = OTHERS | {d.pid for d in (self.home.daemon, self.server, self.queued) if d}
        with contextlib.suppress(ChildProcessError):
            for pid in self.zombies() - mine:
                os.waitpid(pid, os.WNOHANG)

    def zombies(self):
        with open(f"/proc/self/task/{os.getpid()}/children") as f:
            return {int(pid) for pid in f.read().split() if harness.family(int(pid)) == {}}

    # -- the judge

    def arrived(self):
        """{(name, recipient): copies}, wherever they came; what is not whole has another name."""
        found = collections.Counter(self.sink.counts)
        for user, address in (("joe", "joe@test.example"), ("ann", "ann@test.example")):
            for text in self.home.messages(user):
                name = re.search(rb"^Subject: (.*)$", text, re.M)[1].decode()
                to = re.search(rb"^Delivered-To: (.*)$", text, re.M)[1].decode()
                whole = f"\n\nbegin {name}\n".encode() in text and text.endswith(f"\nend {name}\n".encode())
                found[name if whole else name + " (not whole)", to] += 1
        with contextlib.suppress(FileNotFoundError), open(self.home.file("home/joe/ran")) as f:
            found.update((name, "joe-run@test.example") for name in f.read().split())
        return found

    def judge(self, row):
        """Every acknowledged message at least once to everybody; second copies are counted."""
        found = self.arrived()
        for name, recipients in self.accepted.items():
            for recipient in recipients:
                wanted = [recipient] + (["ann@test.example"] if recipient.startswith("joe-copy") else [])
                for address in wanted:
                    if not found[name, address]:
                        row.bad("lost", f"{name} for {address}")
        for code in self.forbidden:
            row.bad("code", f"a client was told {code}")
        for (name, address), copies in found.items():
            if name == "failure notice":
                row.bad("code", f"{copies} bounces for {address}")
                continue
            row.extra += copies - 1
            if copies > 1:
                self.twice[name.partition(".")[0] == "mailing" and "mailing" or address] += copies - 1
            if name.endswith("(not whole)"):
                row.bad("half", f"{name} for {address}")
            elif not self.may_get(name, address):
                row.bad("stray", f"{name} for {address}")

    def may_get(self, name, address):
        """Who is meant; of what was not acknowledged, anybody whom the clients write to."""
        meant = self.accepted.get(name)
        if meant is None:
            return True
        return address in meant or address == "ann@test.example" and "joe-copy@test.example" in meant

    def descriptors(self):
        """{daemon: how many descriptors it has open}."""
        found = {}
        for pid, (name, _) in descendants().items():
            with contextlib.suppress(OSError):
                found[name] = max(found.get(name, 0), len(os.listdir(f"/proc/{pid}/fd")))
        return found

    def locks(self):
        """Files of the home that somebody has locked."""
        inodes = {}
        for top in ("queue", "run"):
            for directory, _, names in os.walk(self.home.file(top)):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        path = os.path.join(directory, name)
                        s = os.lstat(path)
                        inodes[f"{os.major(s.st_dev):02x}:{os.minor(s.st_dev):02x}:{s.st_ino}"] = os.path.relpath(path, self.home.path)
        with open("/proc/locks") as f:
            return [inodes[word] for line in f for word in line.split() if word in inodes]

    def age(self, row):
        """What is left becomes 40 hours old, and the machine has been up that long: clean-up takes it all."""
        rests = faults.left(self.home)
        if not self.place.real or not rests:
            return len(rests)
        self.place.age([self.home.file("queue", name) for name in rests])
        offsets = ["unshare", "-T", "--fork", "--boottime", "216000", "--monotonic", "216000"]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.home.logfile)
        daemon = Daemon([*offsets, self.home.file("bin/qmail-start"), "./Maildir/"], env={**self.home.env, "QMAILKEEPER": "no"}, cwd="/",
                        logfile=self.home.logfile)
        try:
            wait_for(lambda: not faults.left(self.home), "clean-up", WAIT)
        except AssertionError:
            row.bad("left", f"{faults.left(self.home)[:20]}")
        finally:
            for pid, (name, _) in descendants().items():
                if name == "qmail-send":
                    os.kill(pid, signal.SIGTERM)
            daemon.process.wait(WAIT)
        return len(rests)
