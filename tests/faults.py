"""Faults made on purpose, taken back at the end: files that cannot be read, directories that cannot be written."""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import unittest

from tests import harness
from tests.harness import wait_for

SPLIT = 23
AS = ("directory", "loop", "secret")  # beside "missing": what may stand in the place of a file


def _own(path):
    if os.geteuid() == 0:
        os.chown(path, *harness.owner()[1:])


@contextlib.contextmanager
def replaced(path, by):
    """Nothing, a directory, a symbolic link to itself, or a file of mode 000 in the place of a file.

    The last is unreadable for the home's owner, whom programs of an own home become when root starts them.
    """
    was = path + "~was"
    there = os.path.lexists(path)
    if there:
        os.rename(path, was)
    if by == "directory":
        os.mkdir(path)
    elif by == "loop":
        os.symlink(os.path.basename(path), path)
    elif by == "secret":
        if there:
            shutil.copyfile(was, path)
        else:
            open(path, "wb").close()
        _own(path)
        os.chmod(path, 0)
    try:
        yield
    finally:
        if by == "directory":
            os.rmdir(path)
        elif by != "missing":
            os.unlink(path)
        if there:
            os.rename(was, path)


@contextlib.contextmanager
def missing(*paths):
    """Files or directories that are not there."""
    for path in paths:
        os.rename(path, path + "~was")
    try:
        yield
    finally:
        for path in paths:
            os.rename(path + "~was", path)


@contextlib.contextmanager
def mode(bits, *paths):
    """Directories or files of another mode."""
    were = [os.stat(p).st_mode & 0o7777 for p in paths]
    for path in paths:
        os.chmod(path, bits)
    try:
        yield
    finally:
        for path, was in zip(paths, were):
            os.chmod(path, was)


def parts(home, name):
    """A directory of the queue, or the 23 that it is split into."""
    if name in ("mess", "info", "local", "remote"):
        return [home.file("queue", name, str(n)) for n in range(SPLIT)]
    return [home.file("queue", name)]


def left(home, *tops):
    """Every file of messages in the queue."""
    found = []
    for top in tops or ("pid", "mess", "intd", "todo", "info", "local", "remote", "bounce"):
        for directory, _, names in os.walk(home.file("queue", top)):
            found += [os.path.relpath(os.path.join(directory, n), home.file("queue")) for n in names]
    return sorted(found)


def message(name, size=300):
    """A message that can be told from others and shows whether it is whole."""
    body = f"begin {name}\n".encode()
    body += b"x" * 70 * (size // 71) + b"\n" + f"end {name}\n".encode()
    return f"Subject: {name}\n\n".encode() + body


def crowd(home):
    """Recipients who want nothing: with them a message goes the long way through the queue."""
    home.dotqmail(".qmail-nobody-default", "# thrown away\n")
    return [f"joe-nobody-{n}@{home.me}" for n in range(8)]


def copies(texts, name):
    """Those that are this message. What is not whole is an error."""
    found = [t for t in texts if f"Subject: {name}\n".encode() in t]
    for text in found:
        assert text.endswith(f"\nend {name}\n".encode()) and f"\n\nbegin {name}\n".encode() in text, text
    return found


def nudge(home):
    """What is due later is due now: SIGALRM for deferred deliveries, the trigger for todo."""
    home.daemon.process.send_signal(signal.SIGALRM)
    with contextlib.suppress(OSError):
        trigger = os.open(home.file("queue/lock/trigger"), os.O_WRONLY | os.O_NONBLOCK)
        os.write(trigger, b"\0")
        os.close(trigger)


def start(home, env=None):
    """Starts the system with an empty log, so that its first line is this start's."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(home.logfile)
    return home.start(env=env)


@contextlib.contextmanager
def started_without(home, *paths):
    """qmail-start has seen that everything is there, and qmail-send finds that these are away."""
    place = os.path.join(home.base, "held")
    os.makedirs(place, exist_ok=True)
    held, go = os.path.join(place, "held"), os.path.join(place, "go")
    with open(os.path.join(place, "qmail-send"), "w") as f:
        f.write(f"#!/bin/sh\n: >{held}\nuntil [ -e {go} ]; do sleep 0.01; done\nexec {home.file('bin/qmail-send')}\n")
    os.chmod(f.name, 0o755)
    for path in (place, f.name):
        _own(path)
    for path in (held, go):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    daemon = harness.Daemon([home.file("bin/qmail-start"), "./Maildir/"], {**home.env, "PATH": f"{place}:{home.env['PATH']}"}, "/",
                    logfile=home.logfile)
    try:
        wait_for(lambda: os.path.exists(held) or daemon.process.poll() is not None, "qmail-send to be started")
        with missing(*paths):
            with open(go, "w"):
                pass
            yield daemon
    finally:
        daemon.stop(signal.SIGKILL)  # where it waits for a directory it hears nothing else


def wait_arrival(home, name, where=None):
    """Until the message is in joe's Maildir (or where() has it) and nothing is left in the queue; it came once."""
    where = where or home.messages

    def arrived():
        if copies(where(), name):
            return True
        nudge(home)
        return False
    try:
        wait_for(arrived, f"{name} to arrive")
        wait_for(lambda: nudge(home) or not left(home), "the queue to be empty")
    except AssertionError as e:
        raise AssertionError(f"{e}\n{left(home)}\n--- log ---\n{home.log()[-4000:]}") from None
    if len(copies(where(), name)) != 1:
        raise AssertionError(f"{name} came {len(copies(where(), name))} times\n{home.log()[-4000:]}")


def wait_line(home, pattern, since=0):
    """A line of the log behind position `since`."""
    try:
        return wait_for(lambda: re.search(pattern, home.log()[since:], re.M), f"{pattern!r} in the log")
    except AssertionError as e:
        raise AssertionError(f"{e}\n--- log ---\n{home.log()[-4000:]}") from None


# -- file systems of a test's own

MARK = "QMAIL_TEST_MOUNTS"


def own_mounts(method):
    """Runs a test method in a process and a mount namespace of its own: what it mounts nobody else sees."""
    @functools.wraps(method)
    def test(self):
        if MARK in os.environ:
            return method(self)
        if os.geteuid() != 0:
            raise unittest.SkipTest("only root can mount a file system")
        unshare = ["unshare", "-m", "--propagation", "private"]
        tried = subprocess.run([*unshare, "true"], capture_output=True)
        if tried.returncode:
            raise unittest.SkipTest(f"no mount namespace here: {tried.stderr.decode().strip()}")
        done = subprocess.run([*unshare, sys.executable, "-m", "unittest", self.id()], cwd=harness.ROOT,
                              env={**os.environ, MARK: "1"}, capture_output=True)
        self.assertEqual(done.returncode, 0, done.stderr.decode("utf-8", "replace"))
    return test


class Small:
    """A small file system in the place of a directory of the home, with the same contents."""

    PAGE = 4096

    def __init__(self, path, pages=256, inodes=400):
        self.path, self.inodes = path, []
        found = os.stat(path)
        options = (f"size={pages * self.PAGE},nr_inodes={inodes},mode={found.st_mode & 0o7777:o},"
                   f"uid={found.st_uid},gid={found.st_gid}")
        was = path + "~disk"
        subprocess.run(["cp", "-a", path, was], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
        subprocess.run(["cp", "-a", was + "/.", path], check=True)
        shutil.rmtree(was)
        self.filler = os.path.join(path, "filler")

    def fill(self, leave=0):
        """Takes all but this many pages."""
        with open(self.filler, "wb", buffering=0) as f:
            with contextlib.suppress(OSError):
                while True:
                    f.write(b"x" * self.PAGE)
            f.truncate(max(0, f.tell() // self.PAGE - leave) * self.PAGE)

    def take_inodes(self, leave=0):
        """Takes all names but this many."""
        with contextlib.suppress(OSError):
            while True:
                name = f"{self.filler}.{len(self.inodes)}"
                os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
                self.inodes.append(name)
        for _ in range(leave):
            os.unlink(self.inodes.pop())

    def free(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.filler)
        while self.inodes:
            os.unlink(self.inodes.pop())

    def end(self):
        subprocess.run(["umount", "-l", self.path], check=True)
