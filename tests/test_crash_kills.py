"""The sample of `make crash` for kills under load, and that its judge sees."""

import os
import shutil
import unittest

from tests.crash import kills, runner


class Kills(unittest.TestCase):
    def test_a_sample_of_kills_loses_nothing_and_leaves_nothing(self):
        runner.sample(self, "kills")

    def test_the_judge_sees_what_was_lost_doubled_cut_strayed_or_left(self):
        def tamper(load):
            new = load.home.file("home/joe/Maildir/new")
            one, two, three, *_ = [os.path.join(new, name) for name in sorted(os.listdir(new))]
            os.unlink(one)
            shutil.copy2(two, two + ".again")
            with open(three, "r+b") as f:
                f.truncate(os.path.getsize(three) - 10)
            load.sink.counts["mailing.1", "nobody@else.example"] += 1

        rows = kills.campaign(kills.SAMPLE, ("qmail-smtpd",), 8, runner.SAMPLE_SEED, 100, tamper)
        wrong = {kind: len(found) for row in rows for kind, found in row.wrong.items() if found}
        self.assertEqual(rows[0].extra, 1)
        self.assertEqual({kind: wrong.get(kind, 0) for kind in ("lost", "half", "stray")}, {"lost": 2, "half": 1, "stray": 1})


if __name__ == "__main__":
    unittest.main()
