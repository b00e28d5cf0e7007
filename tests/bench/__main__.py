"""Runs the measurements named (all, if none is) and exits 1 when one misses a limit of its own.

As root they run in mount, process and network namespaces of their own (tests/sandbox.py), on a file system
with a journal, and before other work of the machine; others measure where they are and say so.
"""

import importlib
import os
import sys
import unittest

from tests import sandbox
from tests.bench import ground
from tests.harness import BIN

NAMES = ["injection", "idle"]
NICE = -15  # all that is measured alike


def main(names):
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        sys.exit(f"bench: there is no {unknown[0]}; there are: {', '.join(NAMES)}")
    if not os.path.exists(os.path.join(BIN, "qmail-queued")):
        sys.exit("bench: no programs to measure: run make")
    if os.geteuid() == 0 and not sandbox.here():
        try:
            argv = sandbox.command() + [sys.executable, "-m", "tests.bench", *names]
        except unittest.SkipTest as reason:
            print(f"no sandbox ({reason}): measuring where we are\n")
        else:
            with ground.programs_for_all() as env:
                os.environ.update(env)
                return os.spawnvp(os.P_WAIT, argv[0], argv)
    if sandbox.here():
        os.nice(NICE)
    missed = []
    for name in names or NAMES:
        missed += importlib.import_module(f"tests.bench.{name}").measure()
        print(flush=True)
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
