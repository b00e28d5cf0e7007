"""A scratch queue, and a qmail-send in it whose lspawn, rspawn and qmail-clean are played by the test."""

import collections
import contextlib
import fcntl
import hashlib
import os
import re
import select
import shutil
import signal
import subprocess
import threading
import time

from tests import harness

SPLIT = 23
Request = collections.namedtuple("Request", "way slot number sender recipient")


def split(directory, number):
    return f"{directory}/{number % SPLIT}/{number}"


def commit_record(pid, message, envelope):
    """The last record of todo/N."""
    digests = f"{hashlib.sha256(message).hexdigest()} {hashlib.sha256(envelope).hexdigest()}"
    return f"p{pid} {len(message)} {digests}".encode() + b"\0"


def check_record(head, local, remote):
    """The last record of info/N; a list is bytes or None."""
    def word(content):
        if content is None:
            return "-"
        records, end, tail = content.rpartition(b"\0")
        tail = re.sub(rb"^\S+", lambda m: b"." * len(m[0]), tail)
        return hashlib.sha256(re.sub(rb"(^|\0)D", rb"\1T", records + end) + tail).hexdigest()
    return f"c{hashlib.sha256(head).hexdigest()} {word(local)} {word(remote)}".encode() + b"\0"


CONTENT = b"Subject: x\n\nhi\n"


def whole_list(records, content=CONTENT):
    """A recipient list: its records, a mark for each, and the tag; the content is None where there is no commit record."""
    marks = b"".join(b"Q" if r.startswith(b"D") else b"." for r in records.split(b"\0")[:-1])
    tag = "-" if content is None else hashlib.sha256(content).hexdigest()[:16]
    return records + marks + b" " + tag.encode()


class Queue:
    """A home with control files and a queue, nothing else. As a context manager it goes away at the end."""

    def __init__(self, **controls):
        self.base = harness.scratch()
        self.path = os.path.join(self.base, "home")
        self.uid, self.gid = harness.owner()[1:]
        self.env = {"QMAIL_HOME": self.path, "PATH": f"{harness.BIN}:{os.environ['PATH']}", "QMAILDOOR": "direct"}
        for name in ["", "control", "users", "bin", "queue", "queue/pid", "queue/intd", "queue/todo", "queue/bounce",
                     "queue/lock"]:
            self.mkdir(name)
        for name in ("mess", "info", "local", "remote"):
            self.mkdir(f"queue/{name}")
            for s in range(SPLIT):
                self.mkdir(f"queue/{name}/{s}")
        self.write("users/ids", f"owner:{self.uid}:{self.gid}\n")
        self.write("queue/lock/sendmutex", b"")
        os.mkfifo(self.file("queue/lock/trigger"))
        self.own("queue/lock/trigger")
        for name, text in {"me": "me.example\n", **controls}.items():
            if text is not None:
                self.write(f"control/{name}", text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.base, ignore_errors=True)

    def file(self, name):
        return os.path.join(self.path, name)

    def own(self, name):
        if os.geteuid() == 0:
            os.chown(self.file(name), self.uid, self.gid)

    def mkdir(self, name):
        os.mkdir(self.file(name), 0o755)
        self.own(name)

    def write(self, name, content, mode=0o644, age=0):
        """Writes a file; `age` sets its times back by so many seconds."""
        with open(self.file(name), "wb") as f:
            f.write(content if isinstance(content, bytes) else content.encode())
        os.chmod(self.file(name), mode)
        self.own(name)
        self.age(name, age)
        return self.file(name)

    def age(self, name, seconds):
        now = time.time()
        os.utime(self.file(name), (now - seconds, now - seconds))

    def read(self, name):
        with open(self.file("queue/" + name), "rb") as f:
            return f.read()

    def there(self, name):
        return os.path.exists(self.file("queue/" + name))

    def left(self):
        """Every file of messages in the queue."""
        found = []
        for top in ("mess", "intd", "todo", "info", "local", "remote", "bounce"):
            for directory, _, names in os.walk(self.file("queue/" + top)):
                found += [os.path.relpath(os.path.join(directory, n), self.file("queue")) for n in names]
        return sorted(found)

    # -- messages, as qmail-queue and qmail-send leave them

    def message(self, content=CONTENT):
        """mess/S/N with N its inode number."""
        name = self.write("queue/pid/new", content)
        number = os.stat(name).st_ino
        os.rename(name, self.file("queue/" + split("mess", number)))
        return number

    def todo(self, sender, recipients, content=CONTENT, record=True, number=None, pull=True):
        """A message in S4."""
        number = self.message(content) if number is None else number
        envelope = b"F" + sender + b"\0" + b"".join(b"T" + r + b"\0" for r in recipients)
        whole = (b"u1000\0p4321 +\0" + envelope + commit_record(4321, content, envelope) if record else
                 b"u1000\0p4321\0" + envelope)
        self.write(f"queue/intd/{number}", whole)
        os.link(self.file(f"queue/intd/{number}"), self.file(f"queue/todo/{number}"))
        if pull:
            self.pull()
        return number

    def preprocessed(self, sender, local=None, remote=None, content=CONTENT, record=True, age=0, due=0):
        """A message in S5. `local` and `remote` are lists of (letter + address); age of info, due time of lists."""
        number = self.message(content)
        lists = {"local": local, "remote": remote}
        lists = {k: None if v is None else b"".join(r + b"\0" for r in v) for k, v in lists.items()}
        if record:
            lists = {k: None if v is None else whole_list(v, content) for k, v in lists.items()}
        info = b"F" + sender + b"\0"
        if record:
            info += commit_record(4321, content, b"")
            info += check_record(info, lists["local"], lists["remote"])
        self.write("queue/" + split("info", number), info, 0o600, age)
        for way, text in lists.items():
            if text is not None:
                self.write("queue/" + split(way, number), text, 0o600, -due)
        return number

    def pull(self):
        try:
            fd = os.open(self.file("queue/lock/trigger"), os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return
        with contextlib.suppress(BrokenPipeError):  # qmail-send is just opening it anew, and looks then
            os.write(fd, b"\0")
        os.close(fd)

    def bounces_to(self, directory="bounced", code=0):
        """A QMAILQUEUE that keeps what it is given; the files are NUMBER.message and NUMBER.envelope."""
        if not os.path.exists(self.file(directory)):
            self.mkdir(directory)
        script = f"""#!/bin/sh
cd {self.file(directory)} || exit 61
cat >$$.message || exit 54
cat <&1 >$$.part || exit 54
mv $$.part $$.envelope
exit {code}
"""
        self.env["QMAILQUEUE"] = self.write("bin/keep", script, 0o755)

    def bounced(self, directory="bounced"):
        """What was given to it: a list of (envelope, message)."""
        found = []
        for name in sorted(os.listdir(self.file(directory))):
            if name.endswith(".envelope"):
                parts = []
                for kind in ("envelope", "message"):
                    with open(self.file(f"{directory}/{name[:-9]}.{kind}"), "rb") as f:
                        parts.append(f.read())
                found.append(tuple(parts))
        return found


WIDE = b"\xffwide\0"  # behind the first byte of a spawner whose slots have two bytes


class Sender:
    """qmail-send, driven alone. `answer(request)` gives a report (class letter and text) or None to hold it.

    `under` is a program that runs it in its own place.
    """

    def __init__(self, queue, limits=(120, 120), answer=None, first_bytes=True, under=(), greets=True, wide=False):
        self.queue, self.answer, self.slot = queue, answer, 2 if wide else 1  # bytes of qmail-rspawn's slots
        self.requests, self.cleaned, self.lines = [], [], []
        self.changed = threading.Condition()
        self.clean_reply = None  # None: do it and say +
        self.greets, self.greeted = greets, False  # whether its first question is answered; it was asked
        self.closing = False
        ends = {}
        parent = {}
        for fd, child_reads in {0: False, 1: False, 2: True, 3: False, 4: True, 5: False, 6: True}.items():
            r, w = os.pipe()
            ends[fd], parent[fd] = (r, w) if child_reads else (w, r)
        if first_bytes:
            os.write(parent[2], bytes([limits[0]]))
            os.write(parent[4], bytes([limits[1]]) + (WIDE if wide else b""))
        else:
            os.close(parent.pop(2))
        self.parent = parent

        def arrange():
            high = {n: fcntl.fcntl(f, fcntl.F_DUPFD, 100) for n, f in ends.items()}
            for n, f in high.items():
                os.dup2(f, n, inheritable=True)
                os.close(f)

        self.process = subprocess.Popen([*under, harness.program("qmail-send")], env=queue.env, cwd="/", close_fds=False,
                                        preexec_fn=arrange)
        for f in ends.values():
            os.close(f)
        self.threads = [threading.Thread(target=t, args=a, daemon=True) for t, a in
                        [(self._log, ()), (self._spawner, ("local", 1)), (self._spawner, ("remote", 3)), (self._clean, ())]]
        for t in self.threads:
            t.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.closing = True
        for t in self.threads:
            t.join(harness.TIMEOUT)
        while self.parent:
            os.close(self.parent.popitem()[1])

    def _chunks(self, fd):
        while not self.closing:
            ready, _, _ = select.select([fd], [], [], 0.2)
            if ready:
                chunk = os.read(fd, 65536)
                if not chunk:
                    return
                yield chunk

    def _log(self):
        rest = b""
        for chunk in self._chunks(self.parent[0]):
            *lines, rest = (rest + chunk).split(b"\n")
            with self.changed:
                self.lines += [line.decode("latin-1") for line in lines]
                self.changed.notify_all()

    def _spawner(self, way, fd):
        data = b""
        for chunk in self._chunks(self.parent[fd]):
            data += chunk
            size = self.slot if way == "remote" else 1
            while len(data) > size and data.count(b"\0", size) >= 3:
                path, sender, recipient, rest = data[size:].split(b"\0", 3)
                request = Request(way, int.from_bytes(data[:size], "little"), int(path.split(b"/")[1]), sender, recipient)
                data = rest
                reply = self.answer(request) if self.answer else None
                with self.changed:
                    self.requests.append(request)
                    self.changed.notify_all()
                if reply is not None:
                    self.report(request, reply)

    def _clean(self):
        data = b""
        for chunk in self._chunks(self.parent[5]):
            *requests, data = (data + chunk).split(b"\0")
            for request in requests:
                if not request:  # qmail-send looks whether anybody answers
                    with self.changed:
                        self.greeted = True
                        self.changed.notify_all()
                    if self.greets:
                        self.greet()
                    continue
                verb, number = request.decode().split("/")
                if not self.clean_reply:
                    for name in [f"intd/{number}", split("mess", int(number)) if verb == "foop" else f"todo/{number}"]:
                        try:
                            os.unlink(self.queue.file("queue/" + name))
                        except FileNotFoundError:
                            pass
                with self.changed:
                    self.cleaned.append(request.decode())
                    self.changed.notify_all()
                if self.clean_reply != b"":
                    try:
                        os.write(self.parent[6], self.clean_reply or b"+")
                    except BrokenPipeError:
                        return

    # -- what the test does

    def greet(self):
        """qmail-clean is ready."""
        os.write(self.parent[6], b"x")

    def report(self, request, text):
        size = self.slot if request.way == "remote" else 1
        self.say(request.way, request.slot.to_bytes(size, "little") + text + b"\0")

    def say(self, way, raw):
        try:
            os.write(self.parent[2 if way == "local" else 4], raw)
        except BrokenPipeError:
            pass

    def close(self, fd):
        os.close(self.parent.pop(fd))

    def kill(self, number):
        self.process.send_signal(number)

    def stop(self):
        """SIGTERM; the exit code."""
        self.kill(signal.SIGTERM)
        code = self.process.wait(harness.TIMEOUT)
        self.threads[0].join(harness.TIMEOUT)
        return code

    def wait(self, predicate, what, timeout=harness.TIMEOUT):
        with self.changed:
            if not self.changed.wait_for(predicate, timeout):
                raise AssertionError(f"waited in vain for {what}\n--- log ---\n" + "\n".join(self.lines[-60:]))

    def wait_line(self, pattern, count=1):
        """Waits until `count` lines match; the last of them."""
        found = []

        def enough():
            found[:] = [m for line in self.lines if (m := re.search(pattern, line))]
            return len(found) >= count
        self.wait(enough, f"{count} x {pattern!r}")
        return found[count - 1]

    def wait_requests(self, count):
        self.wait(lambda: len(self.requests) >= count, f"{count} deliveries, got {self.requests}")
        return self.requests[:count]

    def wait_cleaned(self, request):
        self.wait(lambda: request in self.cleaned, f"{request}, got {self.cleaned}")

    def log(self, number=None):
        """The log so far, with a message number replaced by N."""
        with self.changed:
            text = "\n".join(self.lines) + "\n"
        return text.replace(str(number), "N") if number else text


class Traced:
    """A Sender under strace: the order of the calls that a power cut makes matter."""

    def __init__(self, case, queue, **more):
        if not shutil.which("strace"):
            case.skipTest("strace is not installed")
        if os.geteuid() != 0:
            case.skipTest("only root may look into a process that made itself undumpable")
        self.case = case
        self.file = os.path.join(queue.base, "trace")
        open(self.file, "w").close()
        os.chmod(self.file, 0o666)
        calls = "trace=open,openat,close,fsync,unlink,unlinkat,write,pwrite64"
        self.sender = Sender(queue, under=["strace", "-D", "-o", self.file, "-e", calls], **more)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sender.__exit__()

    def calls(self, number):
        """The calls about this message: what comes behind those of the start."""
        found = self.all_calls(number)
        return found[found.index("sync bounce") + 1:]

    def all_calls(self, number):
        """The calls, as "sync NAME", "unlink NAME", "mark NAME", "ask REQUEST"; N for its
        number and S for its directory."""
        names, found = {}, []
        with open(self.file) as lines:
            for line in lines:
                if m := re.match(r'open(?:at)?\((?:AT_FDCWD, )?"([^"]*)".* = (\d+)$', line):
                    names[m[2]] = m[1]
                elif m := re.match(r'fsync\((\d+)\)\s+= 0', line):
                    found.append(f"sync {names[m[1]]}")
                elif m := re.match(r'unlink(?:at)?\((?:AT_FDCWD, )?"([^"]*)".*= 0$', line):
                    found.append(f"unlink {m[1]}")
                elif m := re.match(r'pwrite64\((\d+), "D", 1', line):
                    found.append(f"mark {names[m[1]]}")
                elif m := re.match(r'write\(5, "([^"\\]*)', line):
                    found.append(f"ask {m[1]}")
        if not found:
            self.case.skipTest("strace may not trace here")
        at = str(number % SPLIT)
        return [call.replace(f"/{at}/{number}", "/S/N").replace(str(number), "N").removesuffix("/" + at) +
                ("/S" if call.endswith("/" + at) else "") for call in found]


def idle(sender):
    """Waits until qmail-send sleeps in poll with nothing to do."""
    def sleeping():
        with open(f"/proc/{sender.process.pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "S"
    harness.wait_for(sleeping, "qmail-send to be idle")
