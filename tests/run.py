#!/usr/bin/env python3
"""Runs the tests and sums them up: `N passed, N failed, N skipped`.

Each tests/test_*.py is a process of its own; TEST_JOBS (4) run at a time. Names of files (test_flow) as
arguments run only those. What is skipped is named with its reason. A test that failed beside the others is
tried once more alone: if it passes then, the machine was too busy for it or it has a race, and it is
printed as UNSTEADY with what went wrong the first time, to be mended. More than RETRIED_MAX are not retried.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
FILE_TIMEOUT = 420  # seconds one file may take: a bound against hanging, far above the longest
JOBS = int(os.environ.get("TEST_JOBS", "4"))  # three kept two processors busy for less than half of their time
RETRIED_MAX = 3  # more failures than this are no accident of timing


class Reporter(unittest.TestResult):
    """Says each outcome as a line of JSON on descriptor 1."""

    def say(self, test, outcome, text=""):
        print("\x1e" + json.dumps({"test": test.id(), "outcome": outcome, "text": text}), flush=True)

    def addSuccess(self, test):
        self.say(test, "passed")

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.say(test, "failed", self.failures[-1][1])

    def addError(self, test, err):
        super().addError(test, err)
        self.say(test, "failed", self.errors[-1][1])

    def addSkip(self, test, reason):
        self.say(test, "skipped", reason)

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.say(subtest, "failed", self._exc_info_to_string(err, test))

    def addExpectedFailure(self, test, err):
        self.say(test, "failed", "expected failures are not allowed here")

    def addUnexpectedSuccess(self, test):
        self.say(test, "failed", "expected failures are not allowed here")


def one_file(name):
    """name: a file's, or file.Class.test."""
    # Whoever started us (nohup, a script's background) may ignore signals that tests send.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    sys.path.insert(0, ROOT)
    suite = unittest.defaultTestLoader.loadTestsFromName(f"tests.{name}")
    suite.run(Reporter())


def run_file(name):
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, __file__, "--file", name], cwd=ROOT, start_new_session=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        out, _ = process.communicate(timeout=FILE_TIMEOUT)
        hung = False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        hung = True
    outcomes, noise = [], []
    for line in out.decode(errors="replace").split("\n"):
        before, mark, rest = line.partition("\x1e")
        if before:
            noise.append(before)
        if mark:
            outcomes.append(json.loads(rest))
    if hung or process.returncode or not outcomes:
        why = f"hung for {FILE_TIMEOUT} s" if hung else f"ended with {process.returncode} after {len(outcomes)} tests"
        outcomes.append({"test": f"tests.{name}", "outcome": "failed", "text": why + "\n" + "\n".join(noise[-40:])})
    return name, outcomes, time.monotonic() - started


def retry(total):
    """Runs the few tests that failed once more, alone; those that pass now become unsteady."""
    def name(o):  # without what a subtest adds
        return re.sub(r"[ (].*", "", o["test"])
    failed = {name(o) for o in total if o["outcome"] == "failed"}
    again = sorted(t for t in failed if re.fullmatch(r"tests\.\w+\.\w+\.\w+", t))
    if len(again) < len(failed) or len(failed) > RETRIED_MAX:
        return total
    for test in again:
        _, outcomes, _ = run_file(test.removeprefix("tests."))
        if outcomes and all(o["outcome"] == "passed" for o in outcomes):
            first = [o for o in total if name(o) == test and o["outcome"] == "failed"]
            total = [o for o in total if o not in first]
            total += [{"test": test, "outcome": "unsteady", "text": first[0]["text"]}, *outcomes]
    return total


def cargo_tests():
    """The unit tests beside the code."""
    started = time.monotonic()
    done = subprocess.run(["cargo", "test", "--quiet", "--locked", "--workspace"], cwd=ROOT, capture_output=True, text=True)
    text = done.stdout + done.stderr
    outcomes = []
    for match in re.finditer(r"test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", text):
        for outcome, n in zip(("passed", "failed", "skipped"), map(int, match.groups())):
            outcomes += [{"test": "cargo test", "outcome": outcome, "text": text if outcome == "failed" else "ignored"}] * n
    if done.returncode and not any(o["outcome"] == "failed" for o in outcomes):
        outcomes.append({"test": "cargo test", "outcome": "failed", "text": text[-4000:]})
    return "cargo test", outcomes, time.monotonic() - started


def reachable_programs():
    """Root runs homes as another user, who may not reach this checkout: a copy of the programs for all."""
    if os.geteuid() != 0 or "QMAIL_BIN" in os.environ:
        return None
    directory = tempfile.mkdtemp(prefix="qmail-bin-")
    os.chmod(directory, 0o755)
    shutil.copytree(os.path.join(ROOT, "target", "bin"), directory, symlinks=True, dirs_exist_ok=True)
    os.environ["QMAIL_BIN"] = directory
    return directory


def main(names):
    copied = reachable_programs()
    try:
        return run_all(names)
    finally:
        if copied:
            shutil.rmtree(copied)


def run_all(names):
    files = sorted(f[:-3] for f in os.listdir(HERE) if re.fullmatch(r"test_\w+\.py", f))
    if names:
        unknown = [n for n in names if n not in files]
        if unknown:
            sys.exit(f"no such test file: {', '.join(unknown)}; there are: {', '.join(files)}")
        files = names
    results = [] if names else [cargo_tests()]
    for result in results:
        show(*result)
    # Those that take longest, so that none of them is alone at the end.
    slowest = ["test_load", "test_crash_kills", "test_crash_calls", "test_model", "test_qmail_authd", "test_fuzz_seeds", "test_units",
               "test_qmail_local", "test_system_home"]
    files.sort(key=lambda f: slowest.index(f) if f in slowest else len(slowest))
    with ThreadPoolExecutor(JOBS) as pool:
        for result in pool.map(run_file, files):
            show(*result)
            results.append(result)
    total = retry([o for _, outcomes, _ in results for o in outcomes])
    print()
    for o in total:
        if o["outcome"] == "skipped":
            print(f"skipped {o['test']}: {o['text']}")
        elif o["outcome"] == "unsteady":
            print(f"UNSTEADY {o['test']}: passed alone, but beside the others:\n{o['text']}")
    for o in {o["test"] + o["text"]: o for o in total if o["outcome"] == "failed"}.values():
        print(f"FAILED {o['test']}\n{o['text']}")
    counts = [sum(o["outcome"] == k for o in total) for k in ("passed", "failed", "skipped")]
    print("{} passed, {} failed, {} skipped".format(*counts))
    return 1 if counts[1] or not counts[0] else 0


def show(name, outcomes, seconds):
    counts = [sum(o["outcome"] == k for o in outcomes) for k in ("passed", "failed", "skipped")]
    print("{:32} {:4} passed {:3} failed {:3} skipped  {:6.1f} s".format(name, *counts, seconds), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--file"]:
        one_file(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1:]))
