"""The sample of tests/crash/damage.py, and that its judge sees what it is there to see."""

import os
import unittest

from tests.crash import damage, runner
from tests.crash.report import Row


class Damage(unittest.TestCase):
    def test_the_sample_finds_nothing(self):
        runner.sample(self, "damage")

    def test_a_recipient_lost_by_a_flipped_bit_is_seen(self):
        """The lists of an old qmail-send have no marks: there T and D are one bit apart."""
        [row] = damage.changed("local", "info", "a bit flipped", False, 1, old=True)
        self.assertTrue([text for text in row.wrong["lost"] if "bit 4 of byte 0" in text], row.wrong)
        self.assertIn("stray", row.wrong)

    def test_another_message_and_another_sender_are_seen(self):
        """As old programs leave them, without commit records."""
        [row] = damage.changed("mess", "info", "a bit flipped", True, 1, old=True)
        self.assertEqual(len(row.wrong["half"]), row.tried)
        [row] = damage.changed("info", "info", "a bit flipped", True, 1, old=True)
        self.assertIn("stray", row.wrong)

    def test_what_is_removed_behind_its_back_is_seen(self):
        row = Row("control", "removed")
        with damage.a_queue() as queue:
            # Both before anything goes, or they could have one number.
            message, sound = (damage.Message(queue, "info", damage.content(n)) for n in (1, 2))
            message.what, message.silent = "removed", True
            sound.what, sound.silent = "not removed", False
            for name in queue.left():
                if name.endswith(f"/{message.number}"):
                    os.unlink(queue.file("queue/" + name))
            damage.judge(queue, [message, sound], row)
        self.assertEqual((len(row.wrong.get("lost", [])), row.tried), (1, 2), row.wrong)


if __name__ == "__main__":
    unittest.main()
