"""qmail-qread: what administrators and their scripts read about the queue."""

import os
import unittest

from tests import harness
from tests.queue_rig import Queue, Sender, split


class QmailQread(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.queue = Queue(locals="local.example\n")
        self.addCleanup(self.queue.__exit__)

    def qread(self):
        result = harness.run(["qmail-qread"], env=self.queue.env)
        return result.code, result.out.decode("latin-1")

    def born(self, name, seconds=1_000_000_000):
        os.utime(self.queue.file("queue/" + name), (seconds, seconds))

    def test_an_empty_queue_is_an_empty_list(self):
        self.assertEqual(self.qread(), (0, ""))

    def test_each_recipient_is_shown_with_what_became_of_it(self):
        n = self.queue.preprocessed(b"s@h", local=[b"Ta@local.example", b"Db@local.example"], remote=[b"Dx@y", b"Tz@y"])
        self.born(split("info", n))
        self.assertEqual(self.qread(), (0, f"""\
9 Sep 2001 01:46:40 GMT  #{n}  15  <s@h> 
\tlocal\ta@local.example
  done\tlocal\tb@local.example
  done\tremote\tx@y
\tremote\tz@y
"""))

    def test_a_message_with_a_failed_recipient_is_bouncing(self):
        n = self.queue.preprocessed(b"", remote=[b"Tx@y"])
        self.queue.write(f"queue/bounce/{n}", b"<a@b>:\nno\n\n")
        self.born(split("info", n))
        self.assertEqual(self.qread(), (0, f"9 Sep 2001 01:46:40 GMT  #{n}  15  <>  bouncing\n\tremote\tx@y\n"))

    def test_messages_not_yet_preprocessed_are_listed_too(self):
        n = self.queue.todo(b"s@h", [b"a@local.example", b"x@y"])
        self.born(f"todo/{n}")
        self.queue.write("queue/" + split("info", n), b"Fhalf")
        self.assertEqual(self.qread(), (0, f"""\
9 Sep 2001 01:46:40 GMT  #{n}  15  <s@h>  preprocessing
\ttodo\ta@local.example
\ttodo\tx@y
"""))

    def test_a_message_on_its_short_way_is_listed_from_its_envelope(self):
        with Sender(self.queue) as sender:
            n = self.queue.todo(b"s@h", [b"a@local.example", b"x@y"])
            sender.wait_requests(2)
            self.born(f"todo/{n}")
            listed = f"9 Sep 2001 01:46:40 GMT  #{n}  15  <s@h>  preprocessing\n\ttodo\ta@local.example\n\ttodo\tx@y\n"
            self.assertEqual(self.qread(), (0, listed))
            sender.report(sender.requests[0], b"Kdone\n")
            sender.wait_line("success")
            self.assertEqual(self.qread(), (0, listed))
            sender.report(sender.requests[1], b"Zlater\n")
            harness.wait_for(lambda: not self.queue.there(f"todo/{n}"), "the lists")
            deferred = sender.requests[1]
            self.assertRegex(self.qread()[1], rf"\A.*  <s@h> \n\t{deferred.way}\t{deferred.recipient.decode()}\n\Z")

    def test_files_of_the_original_software_are_listed_the_same(self):
        n = self.queue.preprocessed(b"s@h", local=[b"Ta@local.example"], record=False)
        self.born(split("info", n))
        self.assertEqual(self.qread()[1], f"9 Sep 2001 01:46:40 GMT  #{n}  15  <s@h> \n\tlocal\ta@local.example\n")

    def test_bytes_that_are_not_printable_are_masked(self):
        n = self.queue.preprocessed(b"a\nb\xff@h", remote=[b"Tx\ty z@y"])
        self.born(split("info", n))
        self.assertEqual(self.qread()[1], f"9 Sep 2001 01:46:40 GMT  #{n}  15  <a_b_@h> \n\tremote\tx_y z@y\n")

    def test_what_qmail_send_keeps_aside_says_so(self):
        n = self.queue.preprocessed(b"s@h", local=[b"Ta@local.example"])
        m = self.queue.todo(b"s@h", [b"b@local.example"])
        for number in (n, m):
            self.queue.write("queue/" + split("mess", number), b"another's\n")
        with Sender(self.queue) as sender:
            sender.wait_line("kept aside", 2)
            self.assertEqual(sender.stop(), 0)
        self.born(split("info", n))
        self.born(f"todo/{m}")
        self.assertEqual(self.qread(), (0, f"""\
9 Sep 2001 01:46:40 GMT  #{n}  10  <s@h>  kept aside
\tlocal\ta@local.example
9 Sep 2001 01:46:40 GMT  #{m}  10  <s@h>  preprocessing kept aside
\ttodo\tb@local.example
"""))

    def test_trouble_with_one_message_is_said_and_the_others_are_listed(self):
        numbers = [self.queue.preprocessed(b"s@h", remote=[b"Tx@y"]) for _ in range(3)]
        broken, no_mess, cut = numbers
        self.queue.write("queue/" + split("info", broken), b"")
        os.unlink(self.queue.file("queue/" + split("mess", no_mess)))
        self.queue.write("queue/" + split("remote", cut), b"Tx@y\0Tz")
        self.born(split("info", cut))
        code, out = self.qread()
        self.assertEqual(code, 0)
        self.assertEqual(sorted(out.split("\n")[:-1]), sorted([
            f"warning: trouble with #{broken}: no sender in {split('info', broken)}",
            f"warning: trouble with #{no_mess}: there is no {split('mess', no_mess)}",
            f"9 Sep 2001 01:46:40 GMT  #{cut}  15  <s@h> ",
            "\tremote\tx@y",
            f"warning: trouble with #{cut}: broken record in {split('remote', cut)}",
        ]))

    def test_a_queue_that_cannot_be_read_is_fatal(self):
        os.rename(self.queue.file("queue/info/7"), self.queue.file("queue/info/x"))
        self.assertEqual(self.qread(), (111, "fatal: unable to opendir info/7: file does not exist\n"))
        os.rename(self.queue.file("queue"), self.queue.file("old"))
        self.assertEqual(self.qread(), (111, "fatal: unable to chdir: file does not exist\n"))


if __name__ == "__main__":
    unittest.main()
