"""The command: runs parts, prints tables and findings.

usage: python3 -m tests.crash [--sample] [--seed N] [--json FILE] [--doc FILE] [part ...]

--doc puts the tables into a page, each between `<!-- crash: PART -->` and `<!-- end -->`.
Exit 1 when anything was wrong: each finding is printed, with how to try that case alone.
"""

import argparse
import importlib
import re
import sys
import time

from tests.crash import PARTS, report
from tests.crash.runner import SAMPLE_SEED, run


def insert(path, rows):
    """The tables into their places in a page."""
    with open(path) as f:
        text = f.read()
    for part, found in rows.items():
        place = re.compile(rf"(<!-- crash: {part} -->\n).*?(<!-- end -->)", re.S)
        if not place.search(text):
            raise SystemExit(f"crash: {path} has no place for {part}")
        text = place.sub(lambda m: m[1] + report.table(found) + "\n" + m[2], text)
    with open(path, "w") as f:
        f.write(text)


def main():
    parse = argparse.ArgumentParser(prog="python3 -m tests.crash")
    parse.add_argument("--sample", action="store_true", help="few and short ones, as in make test")
    parse.add_argument("--seed", type=int, help="which ones; default: by the clock, with --sample always the same")
    parse.add_argument("--json", help="write the summary to this file")
    parse.add_argument("--doc", help="put the tables into this page")
    parse.add_argument("--case", help="this case only")
    parse.add_argument("part", nargs="*")
    given = parse.parse_args()
    for part in given.part:
        if part not in PARTS:
            parse.error(f"there is no part {part}: " + " ".join(PARTS))
    seed = given.seed if given.seed is not None else SAMPLE_SEED if given.sample else int(time.time())
    print(f"crash: seed {seed}", file=sys.stderr)
    begun = time.monotonic()
    rows, troubles = run(given.part or PARTS, given.sample, seed, given.case)
    seconds = time.monotonic() - begun
    for part, found in rows.items():
        print(f"\n{importlib.import_module(f'tests.crash.{part}').TITLE}\n\n{report.table(found)}")
    everything = [row for found in rows.values() for row in found]
    print(f"\n{sum(row.tried for row in everything):,} points in {seconds:,.0f} s, {len(troubles)} findings, seed {seed}")
    for trouble in troubles:
        print(trouble)
    if given.json:
        report.save(given.json, rows, seconds, seed)
    if given.doc and not troubles:
        insert(given.doc, rows)
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
