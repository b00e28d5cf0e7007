"""The sample of `make crash` for full disks and large queues, and that its judge sees."""

import os
import unittest

from tests.crash import disk, report, runner


@unittest.skipUnless(os.geteuid() == 0, "only root can make a file system to be filled")
class Disk(unittest.TestCase):
    def test_a_sample_of_full_disks_and_closed_directories_loses_nothing(self):
        runner.sample(self, "disk")

    def test_the_judge_sees_a_refusal_for_good_a_bounce_and_a_copy_nobody_asked_for(self):
        with disk.Load(runner.SAMPLE_SEED, 100, memory=True) as load:
            load.revive()
            notice = b"Delivered-To: ann@test.example\nSubject: failure notice\n\nbegin failure notice\n\nend failure notice\n"
            load.home.write("home/ann/Maildir/new/1.bounce", notice)
            load.sink.counts["once", "far@away.example"] = 2
            load.accepted["never"] = ["joe@test.example"]
            load.forbidden.append(552)
            row = report.Row("tampered", "")
            disk.finish(load, row)
        self.assertEqual({kind: len(texts) for kind, texts in row.wrong.items()}, {"code": 3, "lost": 1})


if __name__ == "__main__":
    unittest.main()
