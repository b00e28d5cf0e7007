"""The measurements measure: every workload done once, with very few messages, by ours; some by each peer that is there.

Nothing is said here about how fast anything is. The table of limits is shown rows made by hand: it must see what is missed.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

from tests import harness, sandbox
from tests.bench import logins, smtps, systems, table, tls, work

LIMIT = 200  # seconds for each of two runs: below what a file of tests may take in all
OURS = {"ours", "bare"}
PEERS_DO = ["smtp", "relay", "pop"]  # enough to see that they are driven; the others are done with the same drivers


class Sample(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        sandbox.command()  # skips where there is none
        kinds = {*systems.MAIL, *systems.POP, *systems.START}
        cls.there = {kind.name for kind in kinds if kind.there()}
        cls.said, cls.result, cls.codes = "", [], []
        cls.measure(OURS, list(work.WORK))
        if peers := cls.there - OURS:
            cls.measure(peers, PEERS_DO)

    @classmethod
    def measure(cls, names, workloads):
        with tempfile.TemporaryDirectory() as directory:
            out = os.path.join(directory, "rows")
            argv = [sys.executable, "-m", "tests.bench", "--tiny", "--unpacked", "--only", ",".join(sorted(names)), "--json", out, *workloads]
            # Ended by SIGTERM it removes what it made.
            process = subprocess.Popen(argv, cwd=harness.ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                       text=True)
            try:
                said, _ = process.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                process.terminate()
                said = process.communicate()[0] + f"not done within {LIMIT} s\n"
            cls.said += said
            cls.codes.append(process.returncode)
            try:
                with open(out) as f:
                    cls.result += json.load(f)["rows"]
            except FileNotFoundError:
                raise AssertionError(f"nothing was measured:\n{cls.said}") from None

    def rows(self, workload):
        return [row for row in self.result if row["workload"] == workload]

    def test_every_workload_is_done_by_every_system_that_is_there(self):
        self.assertEqual([row for row in self.result if "trouble" in row], [], self.said)
        self.assertEqual(set(self.codes), {0}, self.said)
        for name, (_, kinds) in work.WORK.items():
            wanted = {"raw"} if kinds is None else {kind.name for kind in kinds} & (self.there if name in PEERS_DO else OURS)
            self.assertEqual({row["system"] for row in self.rows(name)}, wanted, name)

    def test_all_messages_are_counted_and_cost_something(self):
        scale = work.SCALES["tiny"]
        for name in ("sendmail", "smtp", "relay"):
            cases = {row["case"] for row in self.rows(name)}
            self.assertEqual(len(cases), len(scale["writers"]), name)
            for row in self.rows(name):
                self.assertIn(row["messages"], (scale["alone"], scale["messages"]), row)
                self.assertGreater(row["seconds"], 0, row)
                if row["cpu"] is not None:
                    self.assertGreater(row["cpu"], 0, row)
        for row in self.rows("recipients"):
            self.assertEqual(row["messages"], scale["recipients"], row)
            self.assertGreater(row["bytes"], scale["recipients"], row)
        for row in self.rows("memory"):
            if "served" in row:
                self.assertEqual(row["served"], scale["connections"], row)

    def test_flushes_of_ours_are_seen(self):
        # One that is not synced is not accepted: a count of none would be a meter that sees nothing.
        for name in ("sendmail", "smtp", "relay"):
            for row in self.rows(name):
                if row["system"] == "ours":
                    self.assertGreater(row["flushes"], 0, row)

    def test_tables_name_every_case(self):
        for row in self.result:
            self.assertIn(row["case"], self.said)


class Logins(unittest.TestCase):
    def test_every_case_of_logins_is_measured(self):
        said = io.StringIO()
        small = {"USERS": 100, "LOGINS": 4, "SLOW": 1, "ROUNDS": 1, "AT_ONCE": (1, 2)}
        with unittest.mock.patch.multiple(logins, **small), contextlib.redirect_stdout(said):
            self.assertEqual(logins.measure(), [])
        rows = [line for line in said.getvalue().splitlines() if line.startswith(("1 user", "100 users"))]
        self.assertEqual(len(rows), 8, said.getvalue())
        for row in rows:
            self.assertTrue(all(float(rate) > 0 for rate in row.split()[-2:]), row)


class Tls(unittest.TestCase):
    def test_every_row_is_measured_beside_the_peers_that_are_there(self):
        sandbox.command()  # skips where there is none
        done = subprocess.run([sys.executable, "-m", "tests.bench", "--tiny", "--unpacked", "tls", "smtps"], cwd=harness.ROOT,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT)
        rows = [line for line in done.stdout.splitlines() if line.startswith(("TLS 1.", "MB "))]
        sessions = [f"TLS {version}, {kind}" for version in ("1.3", "1.2") for kind in ("full", "resumed")]
        named = [*sessions, "MB to the client", "MB from the client", *sessions, "MB from the client"]
        self.assertEqual([row[:30].strip() for row in rows], named, done)
        peers = [tls.stunnel() is not None] * 6 + [smtps.Postfix.there()] * 5
        for row, peer in zip(rows, peers):
            figures = row[30:].split()
            self.assertEqual(len(figures), 6 if peer else 2, row)
            # A slow machine may round to nothing; without a control group there is no processor time.
            self.assertTrue(all(float(figure) >= 0 for figure in figures if figure != "-"), row)
            self.assertNotEqual(figures[0], "-", row)
        self.assertRegex(done.stdout, r"(?m)^a session at port 465: [1-9]\d* KiB")


class Limits(unittest.TestCase):
    def lines(self, ours, peer, workload, case, scale="full"):
        rows = [{"workload": workload, "case": case, "system": name, "round": 0, **row} for name, row in (("ours", ours), ("exim", peer))]
        return {what: reached for what, reached, _ in table.limits(table.Found(rows), work.SCALES[scale])}

    def test_a_rate_below_its_ratio_is_not_reached(self):
        case = "1024 bytes, 10"
        for seconds, reached in ((1.5, True), (1.6, False)):  # 133 and 125 a second against 100
            lines = self.lines({"messages": 200, "seconds": seconds, "cpu": 0.1}, {"messages": 100, "seconds": 1.0, "cpu": 0.1}, "smtp", case)
            self.assertEqual(lines[f"SMTP to Maildir, {case}: rate"], reached, seconds)
        lines = self.lines({"messages": 100, "seconds": 1, "cpu": 0.4}, {"messages": 100, "seconds": 1, "cpu": 0.5}, "smtp", case)
        self.assertFalse(lines[f"SMTP to Maildir, {case}: CPU"])
        lines = self.lines({"messages": 100, "seconds": 1, "cpu": 0.2}, {"messages": 100, "seconds": 1, "cpu": 0.5}, "smtp", case)
        self.assertTrue(lines[f"SMTP to Maildir, {case}: CPU"])

    def test_the_best_peer_is_the_one_that_counts(self):
        rows = [{"workload": "sendmail", "case": "10 at a time", "system": name, "round": 0, "messages": rate, "seconds": 1.0}
                for name, rate in (("ours", 300), ("exim", 100), ("postfix", 250))]
        lines = {what: (reached, words) for what, reached, words in table.limits(table.Found(rows), work.SCALES["full"])}
        reached, words = lines["injection, 10 at a time: rate"]
        self.assertFalse(reached)
        self.assertIn("1.20 × postfix", words)

    def test_medians_are_of_rounds(self):
        rows = [{"workload": "pop", "case": "2000 messages", "system": "ours", "round": n, "messages": 2000, "seconds": s}
                for n, s in enumerate((9.0, 1.0, 2.0))]
        self.assertEqual(table.Found(rows).of("pop", "2000 messages", "ours", "seconds"), 2.0)

    def test_what_was_not_measured_is_not_reached_either(self):
        self.assertEqual(table.limits(table.Found([]), work.SCALES["full"]), [])
        found = table.Found([{"workload": "smtp", "case": "", "system": "ours", "round": 0, "trouble": "it hung"}])
        self.assertIn("NOT MEASURED: smtp, ours: it hung", table.show(found))
