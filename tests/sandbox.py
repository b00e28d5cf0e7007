"""A machine of a test's own, for what only root can try: accounts, /var/qmail, /home, ports, processes.

    @sandbox.alone
    class Something(unittest.TestCase): ...

runs all tests of the class in one process in new mount, process and network namespaces. /etc is a copy
there, /var and /home are empty: useradd and `make install` change nothing outside, and at the end every
process in it is ended and every file gone. Skipped where this cannot be had, with the reason.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import unittest

from tests.harness import ROOT

MARK = "QMAIL_TEST_SANDBOX"
LIMIT = 300  # seconds for one class: a bound against hanging

# The copies live on a file system of their own, which nobody outside can see.
SETUP = """
mount --make-rprivate / && mount -t tmpfs -o mode=755 none /mnt && cp -a /etc /mnt/etc && mount --bind /mnt/etc /etc &&
mount -t tmpfs -o mode=755 none /var && mkdir /var/tmp /var/mail && chmod 1777 /var/tmp &&
mount -t tmpfs -o mode=755 none /home && ip link set lo up && exec "$@"
"""


def here():
    return MARK in os.environ


@functools.cache
def command():
    """argv to put before a command that is to run there; raises SkipTest."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    if os.geteuid() != 0:
        raise unittest.SkipTest("a system home is root's: run this as root")
    for tool in ("unshare", "ip", "useradd", "setpriv"):
        if not shutil.which(tool, path=path):
            raise unittest.SkipTest(f"{tool} is not installed")
    argv = ["env", f"PATH={path}", f"{MARK}=1", "unshare", "-mnp", "--fork", "--mount-proc", "--kill-child",
            "sh", "-c", SETUP, "sh"]
    tried = subprocess.run(argv + ["true"], capture_output=True)
    if tried.returncode:
        raise unittest.SkipTest(f"no namespaces here: {tried.stderr.decode().strip()}")
    return argv


def alone(cls):
    """Runs a class of tests in a sandbox; each is reported under its own name."""
    if here():
        return cls

    def set_up(outside):
        argv = command() + [sys.executable, "-m", "tests.sandbox", cls.__module__, cls.__name__]
        try:
            done = subprocess.run(argv, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT)
            out, text = done.stdout, done.stderr
        except subprocess.TimeoutExpired as late:
            out, text = late.stdout or b"", b"not done within %d s" % LIMIT
        outside.outcomes, outside.trouble = {}, text.decode("utf-8", "replace")
        for line in out.decode().split("\n"):
            if line.startswith("\x1e"):
                name, outcome, said = json.loads(line[1:])
                if not name:
                    outside.trouble += said
                # The first failure of a test is the one that counts.
                elif outside.outcomes.get(name, ("", ""))[0] != "failed":
                    outside.outcomes[name] = (outcome, said)

    def reporter(name):
        def test(self):
            outcome, text = self.outcomes.get(name, ("failed", self.trouble))
            if outcome == "skipped":
                self.skipTest(text)
            self.assertEqual(outcome, "passed", text)
        return test

    body = {name: reporter(name) for name in dir(cls) if name.startswith("test")}
    body.update(setUpClass=classmethod(set_up), __module__=cls.__module__, __doc__=cls.__doc__)
    return type(cls.__name__, (unittest.TestCase,), body)


class _Said(unittest.TestResult):
    """Says each outcome as a line of JSON; what hits a whole class goes under the empty name."""

    def say(self, test, outcome, text=""):
        name = getattr(test, "test_case", test)
        name = getattr(name, "_testMethodName", "")
        print("\x1e" + json.dumps([name, outcome, text]), flush=True)

    def addSuccess(self, test):
        self.say(test, "passed")

    def addFailure(self, test, err):
        self.say(test, "failed", self._exc_info_to_string(err, test))

    addError = addFailure

    def addSkip(self, test, reason):
        self.say(test, "skipped", reason)

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.say(test, "failed", f"{subtest}\n{self._exc_info_to_string(err, test)}")


if __name__ == "__main__":
    unittest.defaultTestLoader.loadTestsFromName(".".join(sys.argv[1:3])).run(_Said())
