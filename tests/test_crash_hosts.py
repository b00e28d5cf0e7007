"""The sample of tests/crash/hosts.py, and that its judge sees what it is there to see."""

import unittest

from tests import spawners
from tests.crash import hosts, runner

SAYS = {  # what stands in the place of qmail-remote: its word on three recipients
    "success whatever is said": r"printf 'r\0r\0r\0Kdone\n\0'",
    "failure whatever is said": r"printf 'h\0h\0h\0Dno\n\0'",
}


class Hosts(unittest.TestCase):
    def test_the_sample_finds_nothing(self):
        runner.sample(self, "hosts")

    def test_who_believes_a_wrong_answer_is_seen(self):
        fakes = spawners.Fakes()
        self.addCleanup(fakes.remove)
        for name, kind in (("success whatever is said", "lost"), ("failure whatever is said", "code")):
            fakes.script("qmail-remote", SAYS[name])
            [row] = hosts.wrong_at("end of data", True, fakes.path)
            self.assertGreaterEqual(len(row.wrong[kind]), row.tried, name)

    def test_who_believes_it_is_seen_in_the_whole_chain_too(self):
        fakes = spawners.Fakes()
        self.addCleanup(fakes.remove)
        for says, kind in ((r"for r; do printf 'r\0'; done; printf 'Kdone\n\0'", "lost"), (r"for r; do printf 'h\0'; done; printf 'Dno\n\0'", "code")):
            fakes.script("qmail-remote", "shift 2; " + says)
            [row] = hosts.chain(True, 8, fakes.path)
            self.assertTrue(row.wrong.get(kind), row)

    def test_a_strict_reading_is_strict(self):
        for data, wanted in ((b"250 ok\r\n", (250, b"")), (b"250-a\r\n250 b\nx", (250, b"x")), (b"354\r\n", (354, b"")),
                             (b"250-a\r\n251 b\r\n", (None, b"")), (b"250ok\r\n", (None, b"")), (b"650 x\r\n", (None, b"")), (b"250 ok", (None, b""))):
            self.assertEqual(hosts.strict(data), wanted)

    def test_more_than_thirty_kinds_are_tried_at_each_stage(self):
        for stage in hosts.STAGES:
            self.assertGreater(len({(p.data, p.after) for p in hosts.points(stage) if p.verdicts() != "KKK" or stage == "QUIT"}), 30, stage)


if __name__ == "__main__":
    unittest.main()
