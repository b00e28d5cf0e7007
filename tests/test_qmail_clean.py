"""qmail-clean: one reply a request, nothing removed but what was asked for."""

import fcntl
import os
import subprocess
import unittest

from tests import harness
from tests.harness import Home


class QmailClean(unittest.TestCase):
    def setUp(self):
        self.home = Home()
        self.addCleanup(self.home.__exit__)

    def touch(self, name):
        self.home.write(f"queue/{name}", b"x")

    def there(self, name):
        return os.path.exists(self.home.file("queue", name))

    def ask(self, requests):
        return self.home.run(["qmail-clean"], requests)

    def test_foop_removes_intd_and_mess(self):
        for name in ("intd/457", "mess/20/457"):
            self.touch(name)
        result = self.ask(b"foop/457\0")
        self.assertEqual((result.code, result.out), (0, b"+"))
        self.assertEqual([self.there(n) for n in ("intd/457", "mess/20/457")], [False, False])

    def test_foop_leaves_what_has_been_accepted_since_it_was_asked(self):
        for name in ("intd/457", "mess/20/457", "todo/457"):
            self.touch(name)
        self.assertEqual(self.ask(b"foop/457\0").out, b"!")
        self.assertEqual([self.there(n) for n in ("intd/457", "mess/20/457", "todo/457")], [True, True, True])

    def test_foop_of_a_message_that_is_gone_leaves_what_may_be_the_next_ones(self):
        self.touch("intd/457")
        self.assertEqual(self.ask(b"foop/457\0").out, b"+")
        self.assertTrue(self.there("intd/457"))

    def test_it_serves_when_the_one_before_it_has_ended(self):
        """Until then a number that it was asked about may be in the hands of the other."""
        self.touch("mess/20/457")
        before = os.open(self.home.file("queue/intd"), os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, before)
        fcntl.flock(before, fcntl.LOCK_EX)
        child = subprocess.Popen([harness.program("qmail-clean")], env=self.home.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        for pipe in (child.stdin, child.stdout):
            self.addCleanup(pipe.close)
        child.stdin.write(b"foop/457\0")
        child.stdin.close()
        harness.wait_for(lambda: self.waits_for_a_lock(child.pid), "qmail-clean to wait")
        self.assertTrue(self.there("mess/20/457"))
        fcntl.flock(before, fcntl.LOCK_UN)
        self.assertEqual(child.stdout.read(), b"+")
        self.assertFalse(self.there("mess/20/457"))

    def waits_for_a_lock(self, pid):
        """A line of /proc/locks with an arrow is somebody who waits."""
        with open("/proc/locks") as locks:
            return any("->" in line and f" {pid} " in line for line in locks)

    def test_todo_removes_intd_and_todo(self):
        for name in ("intd/457", "mess/20/457", "todo/457"):
            self.touch(name)
        self.assertEqual(self.ask(b"todo/457\0").out, b"+")
        self.assertEqual([self.there(n) for n in ("intd/457", "mess/20/457", "todo/457")], [False, True, False])

    def test_files_that_are_gone_count_as_removed(self):
        self.assertEqual(self.ask(b"foop/99\0todo/99\0").out, b"++")

    def test_malformed_requests_get_one_x_each_and_do_nothing(self):
        self.touch("mess/20/457")
        bad = [b"", b"foop", b"foop/", b"foop/457x", b"foop/x457", b"foop/4/57", b"doom/457", b"foop/0457", b"foop/-1",
               b"foop/" + b"1" * 200, b"foop/99999999999999999999", b"../../457", b"foop/457\n"]
        result = self.ask(b"".join(b + b"\0" for b in bad) + b"foop/98\0")
        self.assertEqual((result.code, result.out), (0, b"x" * len(bad) + b"+"))
        self.assertTrue(self.there("mess/20/457"))

    def test_an_unfinished_request_is_not_acted_on(self):
        self.touch("mess/20/457")
        result = self.ask(b"foop/457")
        self.assertEqual((result.code, result.out), (0, b""))
        self.assertTrue(self.there("mess/20/457"))

    def test_an_unlink_that_fails_is_said_and_the_later_one_not_tried(self):
        os.mkdir(self.home.file("queue/intd/457"))
        self.touch("mess/20/457")
        self.assertEqual(self.ask(b"foop/457\0").out, b"!")
        self.assertTrue(self.there("mess/20/457"))

    def test_a_message_whose_writer_lives_is_not_removed(self):
        self.touch("mess/20/457")
        self.touch("intd/457")
        with open(self.home.file("queue/mess/20/457"), "r+") as writer:
            harness.hold_as_writer(writer)
            self.assertEqual(self.ask(b"foop/457\0").out, b"!")
        self.assertTrue(self.there("mess/20/457") and self.there("intd/457"))
        self.assertEqual(self.ask(b"foop/457\0").out, b"+")

    def test_young_files_in_pid_stay(self):
        self.touch("pid/1.2.3")
        self.assertEqual(self.ask(b"").code, 0)
        self.assertTrue(self.there("pid/1.2.3"))

    def test_nobody_reading_the_answers_is_exit_100(self):
        r, w = os.pipe()
        os.close(r)
        self.addCleanup(os.close, w)
        self.assertEqual(self.home.run(["qmail-clean"], b"foop/1\0", fds={1: w}).code, 100)

    def test_without_a_queue_it_does_not_start(self):
        os.rename(self.home.file("queue"), self.home.file("away"))
        result = self.ask(b"")
        self.assertEqual(result.code, 111)
        self.assertIn(b"qmail-clean: fatal: unable to switch to ", result.err)


if __name__ == "__main__":
    unittest.main()
