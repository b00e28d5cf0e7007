"""The fuzz targets without libFuzzer: every seed through its target, and targets, seeds and table complete."""

import json
import os
import re
import resource
import subprocess
import unittest

from tests.fuzz import coverage
from tests.harness import ROOT

FUZZ = os.path.join(ROOT, "tests", "fuzz")

MEMORY = 1024 * 1024 * 1024  # address space of one target, far above what its inputs need
SECONDS = 60  # of the processor, for the seeds of one target
SEEDS_MAX = 300 * 1024  # bytes of all seeds together: the repository keeps them


def limits():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Seeds(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        build = subprocess.run(
            ["cargo", "build", "--quiet", "--locked", "--example", "replay", "--message-format", "json",
             "--manifest-path", os.path.join(FUZZ, "Cargo.toml")], capture_output=True, text=True)
        if build.returncode:
            raise AssertionError(build.stderr)
        built = [json.loads(line) for line in build.stdout.splitlines()]
        cls.replay = next(m["executable"] for m in built if m.get("executable"))
        cls.targets = subprocess.run([cls.replay, "--list"], capture_output=True, text=True, check=True).stdout.split()

    def run_replay(self, *arguments):
        return subprocess.run([self.replay, *arguments], capture_output=True, text=True, preexec_fn=limits)

    def test_every_seed_passes_its_target(self):
        for target in self.targets:
            with self.subTest(target):
                seeds = os.path.join(FUZZ, "seeds", target)
                done = self.run_replay("--target", target, os.path.join(FUZZ, "seeds"))
                self.assertEqual((done.returncode, done.stdout),
                                 (0, f"{target}: {len(os.listdir(seeds))} inputs\n"), done.stderr)

    def test_the_judges_of_conversations_see_what_is_wrong(self):
        done = self.run_replay("--controls")
        self.assertEqual(done.returncode, 0, done.stderr)
        seen = done.stdout.splitlines()
        self.assertGreaterEqual(len(seen), 10)
        for line in seen:
            self.assertTrue(line.endswith(": seen"), line)

    def test_targets_seeds_manifest_and_table_name_the_same(self):
        files = sorted(name[:-3] for name in os.listdir(os.path.join(FUZZ, "fuzz_targets")))
        with open(os.path.join(FUZZ, "Cargo.toml")) as f:
            manifest = re.findall(r'name = "(\w+)", path = "fuzz_targets/(\w+)\.rs"', f.read())
        with open(os.path.join(FUZZ, "README.md")) as f:
            readme = f.read()
        table = re.findall(r"^\|[^|]*\|[^|]*\| `(\w+)` \|[^|]*\|$", readme, re.M)
        self.assertEqual(sorted(self.targets), files)
        self.assertEqual(sorted(manifest), [(name, name) for name in files])
        self.assertEqual(sorted(set(table)), files)
        self.assertEqual(sorted(name for name in os.listdir(os.path.join(FUZZ, "seeds"))), files)
        for name in coverage.parsers(readme):
            self.assertTrue(os.path.exists(os.path.join(ROOT, "bins", name)), name)

    def test_seeds_are_few_and_small(self):
        sizes = [os.path.getsize(os.path.join(directory, name))
                 for directory, _, names in os.walk(os.path.join(FUZZ, "seeds")) for name in names]
        self.assertLess(sum(sizes), SEEDS_MAX)
        self.assertNotIn(0, [len(os.listdir(os.path.join(FUZZ, "seeds", name))) for name in self.targets])


class Coverage(unittest.TestCase):
    """tests/fuzz/coverage.py, of an export made by hand."""

    README = "| bytes | read by | target | holds |\n|---|---|---|---|\n| x | `lib/src/a.rs` `lib/src/b.rs` | `x` | y |\n"

    def export(self):
        def function(name, line, count, path="/src/bins/lib/src/a.rs"):
            return {"name": name, "count": count, "filenames": [path], "regions": [[line, 1, line + 2, 2, count]]}
        return {
            "files": [{"filename": "/src/bins/lib/src/a.rs", "summary": {"lines": {"count": 10, "covered": 7}}}],
            "functions": [
                function("qmail::a::used", 1, 5),
                function("qmail::a::Type::unused", 4, 0),
                function("qmail::a::generic::<u8>", 7, 0),
                function("qmail::a::generic::<u16>", 7, 3),
                function("qmail::a::used::{closure#0}", 2, 0),
                function("<qmail::a::Over<_>>::method", 11, 0),
                function("<qmail::a::Over<&fuzz::Client<fuzz::judge::{closure#1}>>>::method", 11, 2),
                function("<qmail::a::Over<fn(&str) -> u8>>::called::<u8>", 13, 2),
                function("<qmail::a::Type as core::fmt::Display>::fmt", 9, 0),
            ],
        }

    def test_what_no_input_reached_is_named(self):
        export = self.export()
        lines, missing = coverage.table(self.README, export, [f["name"] for f in export["functions"]])
        self.assertEqual(lines[1].split(), "lib/src/a.rs 7/ 10 70% 4/ 6 Type::unused Type::fmt".split())
        self.assertEqual(lines[2].split(), "all 7/ 10 70% 4/ 6".split())
        self.assertEqual(missing, ["lib/src/b.rs"])


if __name__ == "__main__":
    unittest.main()
