"""qmail-tcpok: the table of addresses that timed out lately, emptied."""

import os
import unittest

from tests.harness import Home


class QmailTcpok(unittest.TestCase):
    def setUp(self):
        self.home = self.enterContext(Home())
        self.table = self.home.file("queue/lock/tcpto")

    def test_the_whole_table_becomes_zero(self):
        for before in (b"\xff" * 1024, b"", b"\1" * 7):
            self.home.write("queue/lock/tcpto", before)
            result = self.home.run(["qmail-tcpok"])
            self.assertEqual((result.code, result.out, result.err), (0, b"", b""))
            with open(self.table, "rb") as f:
                self.assertEqual(f.read(), bytes(1024))

    def test_a_table_that_is_missing_is_not_made(self):
        os.unlink(self.table)
        result = self.home.run(["qmail-tcpok"])
        self.assertEqual((result.code, result.out), (111, b""))
        self.assertEqual(result.err, f"qmail-tcpok: fatal: unable to write {self.table}: file does not exist\n".encode())
        self.assertFalse(os.path.exists(self.table))

    def test_a_home_without_a_queue_is_trouble(self):
        os.rename(self.home.file("queue/lock"), self.home.file("queue/lock.away"))
        result = self.home.run(["qmail-tcpok"])
        self.assertEqual(result.code, 111)
        self.assertEqual(result.err, f"qmail-tcpok: fatal: unable to chdir to {self.home.file('queue/lock')}: "
                                     "file does not exist\n".encode())


if __name__ == "__main__":
    unittest.main()
