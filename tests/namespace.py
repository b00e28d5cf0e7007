"""A network of a test's own, where port 25 is free and 127.0.0.2 is somebody else.

    @namespace.alone
    def test_...(self): ...

runs the test in a process of its own, in a new network namespace with loopback only: as root by
unshare -n, as an ordinary user by way of a user namespace (and skipped where the system allows none).
Every IPv6 address in 2001:db8::/32 is local there without belonging to an interface.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import unittest

from tests.harness import ROOT

MARK = "QMAIL_TEST_NAMESPACE"
SETUP = ("ip link set lo up && ip -6 route add local 2001:db8::/32 dev lo && "
         "echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start && ")


@functools.cache
def command():
    """argv to put before a command that is to run there; raises SkipTest."""
    for tool in ("unshare", "ip"):
        if not shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            raise unittest.SkipTest(f"{tool} is not installed")
    path = f"PATH={os.environ['PATH']}:/usr/sbin:/sbin"
    if os.geteuid() == 0:
        argv = ["env", path, "unshare", "-n", "sh", "-c", SETUP + 'exec "$@"', "sh"]
    else:
        # Root of a user namespace makes the network; a second one inside gives us our own uid back.
        back = f"exec unshare -U --map-user={os.geteuid()} --map-group={os.getegid()} -- "
        argv = ["env", path, "unshare", "-rn", "sh", "-c", SETUP + back + '"$@"', "sh"]
    tried = subprocess.run(argv + ["true"], capture_output=True)
    if tried.returncode:
        raise unittest.SkipTest(f"no network namespace here: {tried.stderr.decode().strip()}")
    return argv


def here():
    """Whether this process is in such a network."""
    return MARK in os.environ


def alone(method):
    """Runs a test method in a namespace."""
    @functools.wraps(method)
    def test(self):
        if here():
            return method(self)
        done = subprocess.run(command() + [sys.executable, "-m", "unittest", self.id()], cwd=ROOT,
                              env={**os.environ, MARK: "1"}, capture_output=True)
        text = done.stderr.decode("utf-8", "replace")
        if "skipped=" in text and not done.returncode:
            raise unittest.SkipTest(f"inside the namespace: {text.strip()}")
        self.assertEqual(done.returncode, 0, text)
    return test


def together(_loader, tests, _pattern):
    """`load_tests = namespace.together` in a file whose tests are all @alone: they share one namespace, one after the
    other, and what their classes set up. (One that is named by itself has a namespace of its own.)"""
    if here():
        return tests
    found, stack = [], [tests]
    while stack:
        for test in stack.pop():
            (stack if isinstance(test, unittest.TestSuite) else found).append(test)
    shared = _Shared(found[0].__class__.__module__)
    return unittest.TestSuite(_Stands(test.id(), shared) for test in sorted(found, key=lambda test: test.id()))


class _Shared:
    def __init__(self, module):
        self.module = module

    @functools.cached_property
    def outcomes(self):
        argv = [sys.executable, os.path.join(ROOT, "tests", "run.py"), "--file", self.module.removeprefix("tests.")]
        done = subprocess.run(command() + argv, cwd=ROOT, env={**os.environ, MARK: "1"}, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        text = done.stdout.decode("utf-8", "replace")
        self.noise = text[-4000:]
        return [json.loads(line.partition("\x1e")[2]) for line in text.split("\n") if "\x1e" in line]


class _Stands(unittest.TestCase):
    """For a test that runs there."""

    def __init__(self, name, shared):
        super().__init__()
        self.name, self.shared = name, shared

    def id(self):
        return self.name

    def runTest(self):
        # What fails in a class's setting up has the class's name.
        mine = [o for o in self.shared.outcomes if o["test"].split(" ")[0] == self.name]
        for outcome in mine:
            if outcome["outcome"] == "skipped":
                raise unittest.SkipTest(outcome["text"])
            self.assertEqual(outcome["outcome"], "passed", outcome["text"])
        self.assertTrue(mine, "it did not run: " + "\n".join(o["text"] for o in self.shared.outcomes if o["text"])
                        + self.shared.noise)
