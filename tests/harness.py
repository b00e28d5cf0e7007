"""What the tests share: programs run from outside, homes made by scripts/mkhome, golden dialogues.

QMAIL_BIN names the directory of the programs under test (default: target/bin of the checkout).
"""

import contextlib
import fcntl
import functools
import os
import pwd
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN = os.environ.get("QMAIL_BIN", os.path.join(ROOT, "target", "bin"))
TIMEOUT = 30  # seconds any single wait may take; an event comes sooner, a bug never


class Result:
    """How a program ended: code (negative for a signal), out, err, and captured descriptors."""

    def __init__(self, code, out, err, fds):
        self.code, self.out, self.err, self.fds = code, out, err, fds

    def __repr__(self):
        return f"Result(code={self.code}, out={self.out!r}, err={self.err!r}, fds={self.fds!r})"


def program(name):
    """The path of a program under test; other names are left to PATH."""
    path = os.path.join(BIN, name)
    return path if "/" not in name and os.path.exists(path) else name


def needs_static(name):
    """Skips where this program is dynamic: a fault at the n-th call would hit the loader, whose ends are not ours."""
    with open(program(name), "rb") as f:
        if b"/ld-" in f.read(4096):
            raise unittest.SkipTest(f"{name} is a dynamic program here (the musl target of Rust is not installed): "
                                    "faults would hit its loader")


def _feeder(fd, data):
    def feed():
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view[:65536]):]
        except BrokenPipeError:
            pass
        finally:
            os.close(fd)
    return threading.Thread(target=feed, daemon=True)


def _drainer(fd, into):
    def drain():
        while chunk := os.read(fd, 65536):
            into.append(chunk)
        os.close(fd)
    return threading.Thread(target=drain, daemon=True)


def run(argv, stdin=b"", env=None, fds=None, cwd=None, timeout=TIMEOUT, as_user=None):
    """Runs a program to its end. env replaces the whole environment (None inherits).

    fds: {number: bytes to be read from it | "capture" | an open file descriptor}. Number 0 and 1
    may be given too. as_user: (uid, gid), for tests run by root.
    """
    ends, feeds, threads, captured, close = dict(fds or {}), [], [], {}, []
    ends.setdefault(0, stdin)
    ends.setdefault(1, "capture")
    ends.setdefault(2, "capture")
    child = {}
    for number, what in ends.items():
        if isinstance(what, int):
            child[number] = what
            continue
        r, w = os.pipe()
        if what == "capture":
            child[number] = w
            close.append(w)
            captured[number] = []
            threads.append(_drainer(r, captured[number]))
        else:
            child[number] = r
            close.append(r)
            threads.append(_feeder(w, what))

    def arrange():
        # Out of the way first: a source may have the number of another's target.
        high = {n: fcntl.fcntl(f, fcntl.F_DUPFD, 100) for n, f in child.items()}
        for n, f in high.items():
            os.dup2(f, n, inheritable=True)
            os.close(f)
        for n in (0, 1, 2):
            if n not in high:
                os.close(n)
        if as_user:
            os.setgroups([as_user[1]])
            os.setgid(as_user[1])
            os.setuid(as_user[0])

    argv = [program(argv[0])] + [a for a in argv[1:]]
    try:
        process = subprocess.Popen(argv, env=env, cwd=cwd, close_fds=False, preexec_fn=arrange)
    finally:
        for f in close:
            os.close(f)
    for t in threads:
        t.start()
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"{argv} did not end within {timeout} s") from None
    for t in threads:
        t.join(timeout)
    got = {n: b"".join(chunks) for n, chunks in captured.items()}
    return Result(code, got.get(1, b""), got.get(2, b""), got)


def wait_for(predicate, what, timeout=TIMEOUT):
    """Waits until predicate() is true and returns its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s in vain for {what}")
        time.sleep(0.01)


def family(*pids):
    """{pid: name} of these processes and all that descend from them. (Who owns them cannot read their
    environment: they are undumpable.)"""
    parents, names = {}, {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{pid}/stat", "rb") as f:
                head, _, tail = f.read().decode("latin-1").rpartition(")")
        except OSError:
            continue
        if tail.split()[0] != "Z":
            names[pid], parents[pid] = head.partition("(")[2], int(tail.split()[1])
    found = {pid: names[pid] for pid in pids if pid in names}
    while True:
        more = {pid: names[pid] for pid, parent in parents.items() if parent in found and pid not in found}
        if not more:
            return found
        found.update(more)


def parent(pid):
    """The parent of a process; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return int(f.read().rpartition(b")")[2].split()[1])
    except OSError:
        return None


def hold_as_writer(file):
    """The lock that says a message's writer lives: on an open file description, for writing."""
    fcntl.fcntl(file, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))  # F_OFD_SETLK


def free_port(host="127.0.0.1"):
    """A port nobody listens on now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.bind((host, 0))
        return s.getsockname()[1]


def owner():
    """(name, uid, gid) that homes belong to: who runs the tests, or nobody when root does."""
    p = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    return p.pw_name, p.pw_uid, p.pw_gid


def as_owner():
    """Options by which tcpserver becomes the owner of homes: root runs no program out of that one's hands."""
    return ["-u", str(owner()[1]), "-g", str(owner()[2])] if os.geteuid() == 0 else []


def scratch():
    """A temporary directory that the owner of homes can reach and write."""
    path = tempfile.mkdtemp(prefix="qmail-test-")
    os.chmod(path, 0o755)
    if os.geteuid() == 0:
        os.chown(path, *owner()[1:])
    return path


class Daemon:
    """A program in the background. Its fd 1 and 2 go to a file that log() reads."""

    def __init__(self, argv, env=None, cwd=None, stdin=subprocess.DEVNULL, logfile=None, own_group=False):
        self.own = logfile is None
        self.logfile = logfile
        if self.own:
            descriptor, self.logfile = tempfile.mkstemp(prefix="qmail-log-")
            os.close(descriptor)
        self.argv = [program(argv[0])] + list(argv[1:])
        with open(self.logfile, "ab") as out:
            self.process = subprocess.Popen(self.argv, env=env, cwd=cwd, stdin=stdin, stdout=out, stderr=out,
                                            start_new_session=own_group)

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        with open(self.logfile, "rb") as f:
            return f.read().decode("latin-1")

    def wait_log(self, pattern, timeout=TIMEOUT, after=0):
        def found():
            if match := re.search(pattern, self.log()[after:], re.M):
                return match
            if self.process.poll() is not None:
                if match := re.search(pattern, self.log()[after:], re.M):
                    return match
                raise AssertionError(f"{self.argv} ended with {self.process.returncode}:\n{self.log()}")
            return None
        try:
            return wait_for(found, f"{pattern!r} in the log", timeout)
        except AssertionError as e:
            raise AssertionError(f"{e}\n--- log ---\n{self.log()[-4000:]}") from None

    def stop(self, sig=signal.SIGTERM, timeout=TIMEOUT):
        """Ends it and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                for pid in family(self.pid):  # nothing of it may stay behind
                    os.kill(pid, signal.SIGKILL)
                self.process.wait()
                raise AssertionError(f"{self.argv} did not end within {timeout} s of signal {sig}") from None
        if self.own and os.path.exists(self.logfile):
            os.unlink(self.logfile)
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


@functools.cache
def linkable():
    """Whether the owner of homes may trust the programs under test where they are (a checkout of somebody
    else's, tested with sudo, it may not): else homes get copies."""
    path = os.path.realpath(program("qmail-send"))
    while True:
        s = os.stat(path)
        if s.st_uid not in (0, owner()[1]) or s.st_mode & 0o022 and not s.st_mode & 0o1000 and s.st_gid != owner()[2]:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


@functools.cache
def hashed(password):
    """What crypt(3) makes of a password."""
    script = "print crypt <STDIN>, q($6$rounds=1000$salt$)"
    return subprocess.run(["perl", "-e", script], input=password.encode(), capture_output=True, check=True).stdout.decode()


class Home:
    """An own home in a temporary directory, removed at the end. As a context manager it is stopped first."""

    def __init__(self, me="test.example", users=None):
        self.users = {"joe": "secret"} if users is None else users
        self.base = scratch()
        self.path = os.path.join(self.base, "home")
        self.daemon = None
        self.me = me
        argv = [os.path.join(ROOT, "scripts", "mkhome"), self.path, "--me", me, "--bin", BIN]
        if linkable():
            argv.append("--link")
        if os.geteuid() == 0:
            argv += ["--owner", owner()[0]]
        for name in self.users:
            argv += ["--user", name]
        made = subprocess.run(argv, capture_output=True)
        if made.returncode:
            shutil.rmtree(self.base)
            raise AssertionError(f"mkhome failed with {made.returncode}: {made.stderr.decode()}")
        if self.users:
            self.set_passwords()
        self.env = {"QMAIL_HOME": self.path, "PATH": f"{self.path}/bin:{os.environ['PATH']}", "LANG": "C.UTF-8"}

    def set_passwords(self):
        """Cheap hashes, and no keys for SCRAM: with what --user NAME:PASSWORD makes, each home would cost 0.2 s."""
        with open(self.file("users/passwd")) as f:
            lines = [line.split(":", 2) for line in f]
        text = "".join(f"{name}:{hashed(self.users[name])}:{rest}" for name, _, rest in lines)
        self.write("users/passwd", text, 0o600)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.stop()
        finally:
            shutil.rmtree(self.base, ignore_errors=True)

    def file(self, *names):
        return os.path.join(self.path, *names)

    def maildir(self, user="joe"):
        return self.file("home", user, "Maildir")

    def messages(self, user="joe"):
        """The contents of all messages in a user's Maildir, in order of their names."""
        found = []
        for sub in ("new", "cur"):
            d = os.path.join(self.maildir(user), sub)
            for name in sorted(os.listdir(d)):
                with open(os.path.join(d, name), "rb") as f:
                    found.append(f.read())
        return found

    def write(self, name, content, mode=0o644):
        """Writes a file of the home, owned by its owner."""
        path = self.file(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if mode & 0o111:
            # A script that is just being started, by a session that outlived its test, cannot be written to.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        with open(path, "wb") as f:
            f.write(content if isinstance(content, bytes) else content.encode())
        os.chmod(path, mode)
        if os.geteuid() == 0:
            os.chown(path, *owner()[1:])
        return path

    def control(self, name, text):
        self.write(f"control/{name}", text)

    def remove_control(self, name):
        os.unlink(self.file("control", name))

    def dotqmail(self, name, text, user="joe", mode=0o600):
        """Writes home/USER/NAME (.qmail, .qmail-ext …)."""
        self.write(f"home/{user}/{name}", text, mode)

    def run(self, argv, stdin=b"", env=None, **more):
        return run(argv, stdin, {**self.env, **(env or {})}, **more)

    def inject(self, message, sender, recipients, env=None):
        """One message through qmail-queue; returns the Result."""
        envelope = b"F" + _bytes(sender) + b"\0" + b"".join(b"T" + _bytes(r) + b"\0" for r in recipients) + b"\0"
        return self.run(["qmail-queue"], env=env, fds={0: _bytes(message), 1: envelope})

    def remote(self, *args, message, before=(), env=None):
        """What qmail-remote reports of a message, which it reads from a file; `before`: programs that run it."""
        with tempfile.TemporaryFile() as f:
            f.write(message)
            f.seek(0)
            done = self.run([*before, "qmail-remote", *args], fds={0: f.fileno()}, env=env)
        if (done.code, done.err) != (0, b""):
            raise AssertionError(f"qmail-remote always ends with 0 and says nothing: {done}")
        return done.out

    # -- the running system

    @property
    def logfile(self):
        return os.path.join(self.base, "log")

    def start(self, default="./Maildir/", env=None):
        before = len(self.log())  # of earlier lives
        self.daemon = Daemon([self.file("bin/qmail-start"), default], env={**self.env, **(env or {})},
                             cwd="/", logfile=self.logfile)
        self.daemon.wait_log(r"^status: local 0/", after=before)
        wait_for(lambda: os.path.exists(self.file("run/queue")), "the socket run/queue")
        return self

    def log(self):
        try:
            with open(self.logfile, "rb") as f:
                return f.read().decode("latin-1")
        except FileNotFoundError:
            return ""

    def wait_log(self, pattern, timeout=TIMEOUT):
        return self.daemon.wait_log(pattern, timeout)

    def wait_empty(self, timeout=TIMEOUT):
        """Waits until the queue holds no message."""
        def empty():
            for top in ("mess", "todo", "intd", "info", "local", "remote", "bounce"):
                for _, _, names in os.walk(self.file("queue", top)):
                    if names:
                        return False
            return True
        try:
            wait_for(empty, "the queue to be empty", timeout)
        except AssertionError as e:
            raise AssertionError(f"{e}\n--- log ---\n{self.log()[-4000:]}") from None

    def queued_pid(self):
        """The pid of the running qmail-queued, or None."""
        try:
            with open(self.file("run/queue.lock")) as f:
                pid = int(f.read().strip() or 0)
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                return pid if b"qmail-queued" in f.read() else None
        except (FileNotFoundError, ValueError, ProcessLookupError):
            return None

    def stop(self):
        """Stops qmail-send and then qmail-queued; returns qmail-send's exit code."""
        code = None
        if self.daemon:
            code = self.daemon.stop()
            self.daemon = None
        if pid := self.queued_pid():
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
            wait_for(lambda: self.queued_pid() is None, "qmail-queued to end")
        return code


def _bytes(text):
    return text if isinstance(text, bytes) else text.encode("latin-1")


class Line:
    """One end of a line protocol: a socket, or the two pipes of a process."""

    def __init__(self, reader, writer, close):
        self.reader, self.writer, self.close = reader, writer, close

    @classmethod
    def connect(cls, port, host="127.0.0.1"):
        s = socket.create_connection((host, port), TIMEOUT)
        f = s.makefile("rwb", buffering=0)
        r = s.makefile("rb")

        def close():
            for thing in (r, f, s):
                thing.close()
        return cls(r, f, close)

    @classmethod
    def start(cls, argv, env=None, cwd=None):
        """A server program on two pipes. .process is it; .finish() closes its input and returns a Result."""
        p = subprocess.Popen([program(argv[0])] + list(argv[1:]), env=env, cwd=cwd, bufsize=0,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        reader = os.fdopen(os.dup(p.stdout.fileno()), "rb")

        def close():
            reader.close()
            for pipe in (p.stdin, p.stdout, p.stderr):
                pipe.close()
            if p.poll() is None:
                p.kill()
            p.wait()
        line = cls(reader, p.stdin, close)
        line.process = p
        return line

    def send(self, text):
        data = _bytes(text)
        while data:
            data = data[self.writer.write(data):]

    def expect(self, pattern):
        """Reads one line (CR LF removed) that must equal the text; `...` stands for anything."""
        got = self.reader.readline().decode("latin-1").rstrip("\r\n")
        regex = ".*".join(re.escape(part) for part in pattern.split("..."))
        if not re.fullmatch(regex, got, re.S):
            raise AssertionError(f"expected {pattern!r}, got {got!r}")
        return got

    def finish(self, timeout=TIMEOUT):
        self.writer.close()
        rest = self.reader.read()
        err = self.process.stderr.read()
        code = self.process.wait(timeout)
        self.close()
        return Result(code, rest, err, {})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def dialogue(line, text):
    """Plays a golden dialogue on a Line: "S: x" must arrive, "C: x" is sent with CR LF. Returns what arrived."""
    got = []
    for row in text.strip("\n").split("\n"):
        row = row.strip() if row.strip() in ("C:", "S:") else row.lstrip()
        if not row:
            continue
        side, _, rest = row.partition(":")
        rest = rest[1:] if rest.startswith(" ") else rest
        if side == "C":
            line.send(rest + "\r\n")
        elif side == "S":
            got.append(line.expect(rest))
        else:
            raise ValueError(f"a dialogue line starts with C: or S:, not {row!r}")
    return got
