"""Runs cases, each in a process of its own, as many at once as there are processors."""

import concurrent.futures
import importlib
import os
import sys
import traceback

from tests.crash import report

SAMPLE_SEED = 1  # a test that tries another sample each time cannot be repeated


def attempt(part, name, sample, seed):
    """In a process of its own: the rows of one case, or how it failed to be tried."""
    try:
        for each, function, arguments in importlib.import_module(f"tests.crash.{part}").cases(sample, seed):
            if each == name:
                return report.encode(function(*arguments)), None
        raise LookupError(name)
    except BaseException:
        return [], traceback.format_exc()


def run(parts, sample, seed, only=None):
    """({part: rows}, [trouble]); progress goes to standard error."""
    rows, came, troubles = {}, {part: [] for part in parts}, []
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), max_tasks_per_child=1) as pool:
        waiting = {}
        for part in parts:
            for name, _, _ in importlib.import_module(f"tests.crash.{part}").cases(sample, seed):
                if only is None or name == only:
                    waiting[pool.submit(attempt, part, name, sample, seed)] = part, name
        for count, future in enumerate(concurrent.futures.as_completed(waiting), 1):
            part, name = waiting[future]
            try:
                found, trouble = future.result()
            except BaseException as e:
                found, trouble = [], repr(e)
            found = report.decode(found)
            came[part].append((name, found))
            if trouble or not found:
                troubles.append(f"{part}: {name}: could not be tried\n{trouble or 'no rows'}")
            print(f"crash: {count}/{len(waiting)} {part}: {name}: {sum(r.tried for r in found):,} tried", file=sys.stderr, flush=True)
            for row in found:
                for kind, texts in row.wrong.items():
                    troubles += [f"{part}: {name}: {row.fault}: {kind}: {text}" for text in texts]
    for part in parts:  # in the order of cases, whoever came first
        order = [name for name, _, _ in importlib.import_module(f"tests.crash.{part}").cases(sample, seed)]
        came[part].sort(key=lambda pair: order.index(pair[0]))
        rows[part] = [row for _, found in came[part] for row in found]
    return rows, troubles


def sample(test, part):
    """For tests/test_crash_PART.py: the sample of one part finds nothing wrong, and tries something."""
    rows, troubles = run([part], True, SAMPLE_SEED)
    test.maxDiff = None
    test.assertEqual(troubles, [])
    test.assertGreater(sum(row.tried for row in rows[part]), 0)
