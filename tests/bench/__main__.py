"""python3 -m tests.bench [--quick | --tiny] [--only SYSTEM,SYSTEM] [--unpacked] [--json FILE] [NAME ...]
python3 -m tests.bench --show FILE

Runs the measurements named (all, if none is), prints their tables and what of the limits is reached, and exits 1 when a
limit that `make bench` promises today (injection, idle and tls) is missed. --tiny shortens tls, smtps and the workloads.

As root they run in mount, process and network namespaces of their own (tests/sandbox.py), on a file system
with a journal, and before other work of the machine; others measure where they are and say so, and the
workloads beside the peers (tests/bench/work.py) are not for them. --only ours leaves the peers out, --unpacked
takes those that scripts/bench-peers has made and makes no more.
--show prints the tables of a file that --json wrote, also of a run that was broken off.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import unittest

from tests import sandbox
from tests.bench import ground, meter, table, tlsload, work
from tests.harness import BIN, ROOT

OWN = ["injection", "idle", "logins", "tls", "smtps"]  # not of work.py: each a module with measure()
NICE = -15  # all that is measured alike


def beside(names, scale, only, out):
    """The workloads of work.py; what is measured is in the file behind each of them."""
    with ground.compiled() as load, ground.journaled(ground.IMAGE_MIB if scale == "tiny" else ground.LARGE_MIB) as (disk, words):
        os.chown(disk, 0, 0)
        result = {"machine": ground.machine(), "disk": words, "versions": table.versions(), "scale": work.SCALES[scale]}
        with work.Bench(disk, ground.device(disk), load, scale, only).around() as bench:
            for name in names:
                bench.run(name, *work.WORK[name])
                lines = table.limits(table.Found(bench.rows), bench.scale)
                result |= {"load": os.getloadavg()[2], "rows": bench.rows,
                           "limits": [{"what": what, "reached": reached, "words": words} for what, reached, words in lines]}
                if out:
                    with open(out, "w") as f:
                        json.dump(result, f, indent=1)
        return show(result)


def show(result):
    """Prints the tables; what could not be measured."""
    found = table.Found(result["rows"])
    print(f"\n{result['disk']}\nof {result['machine']}\nbeside a load of {result['load']:.1f} (15 minutes)\n{result['versions']}\n")
    print(table.show(found))
    print(table.show_limits([(line["what"], line["reached"], line["words"]) for line in result["limits"]]))
    return found.troubles


def arguments(words):
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench", allow_abbrev=False)
    parser.add_argument("--quick", dest="scale", action="store_const", const="quick", default="full")
    parser.add_argument("--tiny", dest="scale", action="store_const", const="tiny")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    parser.add_argument("--unpacked", action="store_true")
    parser.add_argument("--show", type=os.path.abspath)
    parser.add_argument("--json", type=os.path.abspath)
    parser.add_argument("names", nargs="*", metavar="NAME")
    given = parser.parse_args(words)
    known = OWN + list(work.WORK)
    for name in given.names:
        if name not in known:
            sys.exit(f"bench: there is no {name}; there are: {', '.join(known)}")
    return given, given.names or known


def main(words):
    given, names = arguments(words)
    if given.show:
        with open(given.show) as f:
            return 1 if show(json.load(f)) else 0
    if not os.path.exists(os.path.join(BIN, "qmail-queued")):
        sys.exit("bench: no programs to measure: run make")
    if os.geteuid() == 0 and not sandbox.here():
        try:
            # The shell is the namespace's first process, and buries what daemons leave behind.
            argv = sandbox.command() + ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", "tests.bench", *words]
        except unittest.SkipTest as reason:
            print(f"no sandbox ({reason}): measuring where we are\n")
        else:
            if not given.unpacked and (not given.only or set(given.only) - {"ours", "bare"}):
                subprocess.run([os.path.join(ROOT, "scripts", "bench-peers")], check=False)
            with ground.programs_for_all() as env, meter.groups() as group, ground.directory() as directory:
                os.environ.update(env, **group, **directory)
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
                inside = subprocess.Popen(argv)
                try:
                    return inside.wait()
                finally:
                    inside.kill()  # and with it everything in its namespace
                    inside.wait()
    if sandbox.here():
        os.nice(NICE)
    if given.scale == "tiny":
        tlsload.shorten()
    missed, troubles = [], []
    for name in names:
        if name in OWN:
            missed += importlib.import_module(f"tests.bench.{name}").measure()
            print(flush=True)
    for line in missed:
        print(f"MISSED: {line}")
    if workloads := [name for name in names if name in work.WORK]:
        if sandbox.here():
            troubles = beside(workloads, given.scale, given.only, given.json)
        else:
            print(f"not measured, for want of a sandbox: {', '.join(workloads)}")
    return 1 if missed or troubles else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
