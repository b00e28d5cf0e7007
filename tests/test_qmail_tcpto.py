"""qmail-tcpto: the table of addresses that timed out lately, as lines."""

import fcntl
import os
import struct
import threading
import time
import unittest

from tests.harness import Home


def record(ip, count, ago):
    return bytes(map(int, ip.split("."))) + bytes([count, 0, 0, 0]) + struct.pack("<I", int(time.time()) - ago) + bytes(4)


class QmailTcpto(unittest.TestCase):
    def setUp(self):
        self.home = self.enterContext(Home())
        self.table = self.home.file("queue/lock/tcpto")

    def list(self, **more):
        result = self.home.run(["qmail-tcpto"], **more)
        self.assertEqual(result.err, b"")
        return result.code, result.out

    def test_an_empty_table_prints_nothing(self):
        self.assertEqual(self.list(), (0, b""))

    def test_every_record_with_a_count_is_a_line(self):
        self.home.write("queue/lock/tcpto", (record("192.0.2.1", 1, 100) + record("192.0.2.2", 0, 100) + bytes(160) +
                                             record("192.0.2.3", 10, 5000)).ljust(1024, b"\0"))
        code, out = self.list()
        self.assertEqual(code, 0)
        self.assertRegex(out, rb"\A192\.0\.2\.1 timed out 10\d seconds ago; # recent timeouts: 1\n"
                              rb"192\.0\.2\.3 timed out 500\d seconds ago; # recent timeouts: 10\n\Z")

    def test_a_time_in_the_future_is_now(self):
        self.home.write("queue/lock/tcpto", record("192.0.2.1", 2, -1000).ljust(1024, b"\0"))
        self.assertEqual(self.list(), (0, b"192.0.2.1 timed out 0 seconds ago; # recent timeouts: 2\n"))

    def test_a_table_that_was_cut_is_read_as_far_as_it_goes(self):
        self.home.write("queue/lock/tcpto", record("192.0.2.1", 2, -1000) + b"\1\2\3")
        self.assertEqual(self.list(), (0, b"192.0.2.1 timed out 0 seconds ago; # recent timeouts: 2\n"))

    def test_trouble_is_said_on_descriptor_1(self):
        os.unlink(self.table)
        self.assertEqual(self.list(), (111, b"fatal: unable to open tcpto: file does not exist\n"))
        code, out = self.list(env={"QMAIL_HOME": "/nonexistent"})
        self.assertEqual(code, 111)
        self.assertRegex(out, rb"\Afatal: unable to chdir: .*file does not exist\n\Z")

    def test_it_waits_for_the_lock(self):
        with open(self.table, "wb") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            f.write(bytes(1024))
            f.flush()
            done = []
            thread = threading.Thread(target=lambda: done.append(self.list()))
            thread.start()
            f.seek(0)
            f.write(record("192.0.2.9", 1, -1000))
            f.flush()
            self.assertEqual(done, [])
            fcntl.flock(f, fcntl.LOCK_UN)
            thread.join()
        self.assertEqual(done, [(0, b"192.0.2.9 timed out 0 seconds ago; # recent timeouts: 1\n")])


if __name__ == "__main__":
    unittest.main()
