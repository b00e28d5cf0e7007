"""The sample of the part `clock`, and that its judge sees what is lost."""

import unittest

from tests.crash import clock, runner
from tests.crash.calls_rig import Tools


class Clock(unittest.TestCase):
    def test_the_sample_finds_nothing(self):
        runner.sample(self, "clock")

    def test_a_message_removed_under_its_writer_is_seen(self):
        """What cannot be known: a qmail-send started behind the jump, and a writer that holds no lock."""
        tools = Tools()
        self.addCleanup(tools.close)
        wrong = clock.one(tools, clock.Others, "message begun", "40 hours forth", restarted=True)
        self.assertIn("lost", [kind for kind, _ in wrong])


if __name__ == "__main__":
    unittest.main()
