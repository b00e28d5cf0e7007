"""The table of limits is shown rows made by hand: it must see what is missed."""

import unittest

from tests.bench import table, work


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
