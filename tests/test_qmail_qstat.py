"""qmail-qstat: two numbers."""

import os
import unittest

from tests import harness
from tests.queue_rig import Queue


class QmailQstat(unittest.TestCase):
    def setUp(self):
        self.queue = Queue()
        self.addCleanup(self.queue.__exit__)

    def qstat(self):
        result = harness.run(["qmail-qstat"], env=self.queue.env)
        return result.code, result.out.decode(), result.err.decode()

    def test_an_empty_queue_has_no_messages(self):
        self.assertEqual(self.qstat(), (0, "messages in queue: 0\n"
                                           "messages in queue but not yet preprocessed: 0\n", ""))

    def test_messages_are_counted_in_mess_and_in_todo(self):
        for _ in range(3):
            self.queue.preprocessed(b"s@h", remote=[b"Tx@y"])
        for _ in range(2):
            self.queue.todo(b"s@h", [b"x@y"])
        self.assertEqual(self.qstat(), (0, "messages in queue: 5\n"
                                           "messages in queue but not yet preprocessed: 2\n", ""))

    def test_a_queue_that_cannot_be_read_is_said(self):
        os.rename(self.queue.file("queue/todo"), self.queue.file("queue/other"))
        code, out, err = self.qstat()
        self.assertEqual((code, out), (111, ""))
        self.assertEqual(err, f"qmail-qstat: fatal: unable to read {self.queue.path}/queue/todo\n")
        os.rename(self.queue.file("queue"), self.queue.file("old"))
        self.assertEqual(self.qstat()[2], f"qmail-qstat: fatal: unable to switch to {self.queue.path}/queue\n")


if __name__ == "__main__":
    unittest.main()
