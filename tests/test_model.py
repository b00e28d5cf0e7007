"""The model of the queue (tests/model): it holds as it is, and each mistake put into it is found.

What takes few states; `make model` checks everything, also the two messages with a kill and a power cut at once.
"""

import os
import re
import shutil
import subprocess
import unittest
from concurrent.futures import ThreadPoolExecutor

from tests import harness

SCRIPT = os.path.join(harness.ROOT, "scripts", "model")
ROW = re.compile(r"^(\S+) +([0-9.e+]+) +(\d+) +(\d+)  (.+)$", re.M)
DEADLINE = 400  # seconds for one half of the checks: they take 20 where nobody else is busy


def script_rows():
    """What scripts/model knows: {name: must} of the rows of its sample."""
    with open(SCRIPT) as file:
        text = file.read()
    rows = {}
    for must, block in re.findall(r"^(holds|ends|found)='\n(.*?)^'$", text, re.M | re.S):
        rows.update({name: must for extent, name in re.findall(r"^(\w+) +(\S+) ", block, re.M) if extent == "sample"})
    return rows


def model(*arguments):
    return subprocess.run([SCRIPT, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE)


class Model(unittest.TestCase):
    def setUp(self):
        for tool in ("spin", "cc"):
            if not shutil.which(tool):
                self.skipTest(f"{tool} is not installed")

    def test_it_holds_and_each_mutation_is_found(self):
        rows = script_rows()
        self.assertGreater(len(rows), 30)
        names = list(rows)
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda part: model(*part), (names[::2], names[1::2])))
        verdicts = {}
        for result in results:
            self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
            verdicts.update({m[1]: m[5] for m in ROW.finditer(result.stdout)})
        self.assertEqual(verdicts, rows)

    def test_a_counter_example_is_shown_as_steps(self):
        result = model("--steps", "NO_SYNC_TODO_NAME")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        steps = re.findall(r"^  (Q13|Q16|-- power cut|not true:)", result.stdout, re.M)
        self.assertEqual(steps, ["Q13", "Q16", "-- power cut", "not true:"])

    def test_each_mutation_is_in_the_model_and_each_of_the_model_is_tried(self):
        with open(SCRIPT) as file:
            tried = set(re.findall(r"^(?:sample|full) +([A-Z_]+) ", file.read(), re.M))
        known = set()
        for name in os.listdir(os.path.join(harness.ROOT, "tests", "model")):
            with open(os.path.join(harness.ROOT, "tests", "model", name)) as file:
                known |= set(re.findall(r"^#ifn?def ([A-Z_]+)$", file.read(), re.M))
        self.assertEqual(known - {"ONE", "RCPTS", "FAILING", "CUTS", "KILLS", "SHORT", "PIDS"}, tried)

    def test_an_unknown_check_is_refused(self):
        result = model("NO_SUCH_CHECK")
        self.assertEqual(result.returncode, 111)
        self.assertIn("there is no check NO_SUCH_CHECK", result.stderr)


if __name__ == "__main__":
    unittest.main()
