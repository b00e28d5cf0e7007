"""What the tests of the spawners share: requests, reports, fake delivery programs, a system home."""

import contextlib
import os
import shutil
import subprocess
import tempfile


SLOT_LIMIT = 120


def request(slot, path, sender, recipient):
    fields = [path, sender, recipient]
    return bytes([slot]) + b"".join((f if isinstance(f, bytes) else f.encode()) + b"\0" for f in fields)


def reports(output):
    """The reports behind the first byte, as {slot: letter and text}; a slot that reports twice is an error."""
    found = {}
    at = 1
    while at < len(output):
        end = output.index(b"\0", at + 1)
        slot = output[at]
        assert slot not in found, f"slot {slot} reports twice: {output!r}"
        found[slot] = output[at + 1:end]
        at = end + 1
    return found


class Fakes:
    """A directory to be put in front of PATH, with scripts in the place of delivery programs."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="qmail-fakes-")
        os.chmod(self.path, 0o1777)  # all may write; nobody can put another program in the place of ours

    def script(self, name, text):
        path = os.path.join(self.path, name)
        with open(path, "w") as f:
            f.write("#!/bin/sh\n" + text)
        os.chmod(path, 0o755)
        return path

    def file(self, name):
        return os.path.join(self.path, name)

    def fifo(self, name):
        os.mkfifo(self.file(name))
        os.chmod(self.file(name), 0o666)
        return self.file(name)

    def env(self, home_env):
        return {**home_env, "PATH": f"{self.path}:{home_env['PATH']}", "FAKES": self.path}

    def remove(self):
        shutil.rmtree(self.path, ignore_errors=True)


def put_message(home, number, content=b"Subject: x\n\nbody\n"):
    """A file where the spawners look for message `number`; gives its path as requests name it."""
    name = f"{number % 23}/{number}"
    home.write(f"queue/mess/{name}", content)
    return name


def forget(home):
    """Empties the ledgers: what is asked for again is delivered again."""
    for name in ("local", "remote"):
        with contextlib.suppress(OSError):
            os.truncate(home.file(f"queue/lock/ledger.{name}"), 0)


class SystemHome:
    """A home of several users, made by root, with numeric ids that need no accounts."""

    IDS = {"alias": (7790, 2108), "qmaild": (7791, 2108), "qmaill": (7792, 2108), "root": (0, 0),
           "qmailp": (7793, 2108), "qmailq": (7794, 2107), "qmailr": (7795, 2107), "qmails": (7796, 2107)}

    def __init__(self):
        self.base = tempfile.mkdtemp(prefix="qmail-system-")
        os.chmod(self.base, 0o755)
        self.path = os.path.join(self.base, "home")
        for d in ("", "bin", "control", "users", "queue"):
            os.mkdir(os.path.join(self.path, d), 0o755)
        for role, names in (("qmailq", "run queue/mess queue/todo queue/intd queue/pid queue/lock"),
                            ("qmails", "queue/info queue/local queue/remote queue/bounce")):
            for d in names.split():
                self.owned(os.mkdir, d, role, 0o755)
        for n in range(23):
            self.owned(os.mkdir, f"queue/mess/{n}", "qmailq", 0o755)
        self.owned(os.mknod, "queue/lock/sendmutex", "qmails", 0o600)
        self.owned(os.mknod, "queue/lock/tcpto", "qmailr", 0o644)
        self.owned(os.mknod, "queue/lock/ledger.remote", "qmailr", 0o600)
        self.owned(os.mkfifo, "queue/lock/trigger", "qmails", 0o622)
        with open(os.path.join(self.path, "users/ids"), "w") as f:
            f.write("".join(f"{name}:{uid}:{gid}\n" for name, (uid, gid) in self.IDS.items()))
        self.env = {"QMAIL_HOME": self.path, "PATH": f"{self.path}/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}

    def owned(self, make, name, role, mode):
        make(self.file(name))
        os.chown(self.file(name), *self.IDS[role])
        os.chmod(self.file(name), mode)

    def file(self, *names):
        return os.path.join(self.path, *names)

    def write(self, name, content, mode=0o644):
        with open(self.file(name), "wb") as f:
            f.write(content)
        os.chmod(self.file(name), mode)
        if name.startswith("queue/mess/"):
            os.chown(self.file(name), *self.IDS["qmailq"])

    def remove(self):
        shutil.rmtree(self.base, ignore_errors=True)


def children_of(pid):
    """The process ids of a process's children."""
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True).stdout
    return [int(word) for word in out.split()]


def lives(pid):
    """Whether a process is there and not just waited for."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def with_environment(entry):
    """The process ids of all living processes whose environment has this entry."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as f:
                if entry.encode() in f.read().split(b"\0") and lives(name):
                    found.append(int(name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            pass
    return found


def parent_of(pid):
    with open(f"/proc/{pid}/stat") as f:
        return int(f.read().rsplit(")", 1)[1].split()[1])


def pipes_of(pid):
    """{descriptor: pipe} of a process."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            link = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
        if link.startswith("pipe:"):
            found[int(name)] = link
    return found
