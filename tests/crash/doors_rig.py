"""What the hostile trials share: many processes at once, each with bytes for fd 0 and a file for what it says."""

import os
import re
import signal
import tempfile
import time

from tests import harness

SCRATCH_MIN = 1 << 30  # bytes of a memory file system that the messages of two cases need, with much to spare
MEMORY_MAX = 8 * 1024  # KiB of any process, whatever it is sent: a message or a mailbox is never held whole


def in_memory():
    """Scratch directories of this process on a file system without a disk: what is tried here is no fault of disks."""
    if os.access("/dev/shm", os.W_OK) and os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize > SCRATCH_MIN:
        tempfile.tempdir = "/dev/shm"


def strings(letters, longest):
    """All strings of up to so many of these letters (or pieces), shorter ones first."""
    found = [b""]
    yield from found
    for _ in range(longest):
        found = [s + letter for s in found for letter in letters]
        yield from found


class Crowd:
    """Runs one program many times. `put` starts a process on bytes; `done(key, code, said)` is told how each ended."""

    AT_ONCE = 4

    def __init__(self, argv, env, done, cwd="/", drop=False):
        self.argv, self.env, self.done, self.cwd = argv, env, done, cwd
        if drop and os.geteuid() == 0:
            name, uid, gid = harness.owner()
            self.argv = ["/usr/bin/setpriv", "--reuid", str(uid), "--regid", str(gid), "--clear-groups", harness.program(argv[0]), *argv[1:]]
        self.path = self.argv[0] if "/" in self.argv[0] else harness.program(self.argv[0])
        self.files = [(os.memfd_create("in"), os.memfd_create("out")) for _ in range(self.AT_ONCE)]
        for pair in self.files:
            for fd in pair:
                os.fchmod(fd, 0o666)
        self.free, self.working = list(self.files), {}

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            while self.working and kind is None:
                self._wait()
        finally:
            for pid in self.working:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            for pair in self.files:
                for fd in pair:
                    os.close(fd)

    def put(self, key, data, *more, second=b""):
        """`more`: arguments behind argv. `second`: what may be read from fd 1, as qmail-queue does."""
        if not self.free:
            self._wait()
        files = self.free.pop()
        for fd, content in zip(files, (data, second)):
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view):]
            os.lseek(fd, 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate((*files, files[1]))]
        os.chdir(self.cwd)  # the process is the case's alone
        pid = os.posix_spawn(self.path, [*self.argv, *more], self.env, file_actions=actions)
        self.working[pid] = key, files, time.monotonic() + 3 * harness.TIMEOUT

    def _wait(self):
        """Until one of them has ended."""
        pid, status = self._ended()
        key, files, _ = self.working.pop(pid)
        said = os.pread(files[1], os.fstat(files[1]).st_size, 0)
        self.free.append(files)
        self.done(key, os.waitstatus_to_exitcode(status), said)

    def _ended(self):
        """(pid, status) of the next; a process that does not end is killed, and told so by its code."""
        while True:
            for pid in self.working:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    return pid, status
            late = [pid for pid, (_, _, until) in self.working.items() if time.monotonic() > until]
            for pid in late:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.0003)


def peak(pid):
    """The most memory that was ever resident, in KiB; with its children's, each by itself."""
    found = 0
    for one in harness.family(pid):
        try:
            with open(f"/proc/{one}/status") as f:
                if match := re.search(r"VmHWM:\s+(\d+) kB", f.read()):
                    found = max(found, int(match[1]))
        except OSError:
            pass
    return found
