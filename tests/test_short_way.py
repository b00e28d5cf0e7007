"""The short way of qmail-send: few recipients, delivered straight from todo/N; and what ends it early.

The test plays qmail-lspawn, qmail-rspawn and qmail-clean, and looks at the files of the queue at each step.
"""

import os
import re
import signal
import threading
import time
import unittest

from tests import harness
from tests.queue_rig import Queue, Sender, Traced, check_record, commit_record, split, whole_list

CONTROLS = {"me": "me.example\n", "locals": "local.example\n", "virtualdomains": "virt.example:joe\n"}
A, B, X = b"a@local.example", b"b@local.example", b"x@else.example"
LATE = 30  # seconds that a message may be on its short way


class Case(unittest.TestCase):
    maxDiff = None

    def queue(self, **controls):
        queue = Queue(**{**CONTROLS, **controls})
        self.addCleanup(queue.__exit__)
        return queue

    def sender(self, queue, **more):
        sender = Sender(queue, **more)
        self.addCleanup(sender.__exit__)
        return sender

    def started(self, queue, sender, *recipients, sender_address=b"s@h"):
        """A message on its short way: its number and its requests by recipient."""
        before = len(sender.requests)
        number = queue.todo(sender_address, recipients)
        requests = sender.wait_requests(before + len(recipients))[before:]
        return number, {r.recipient: r for r in requests}

    def in_s4(self, number, *more):
        return sorted([split("mess", number), f"intd/{number}", f"todo/{number}", *more])

    def in_s5(self, number, *more):
        return sorted([split("mess", number), split("info", number), *more])

    def wait_bounce(self, queue, number, text):
        harness.wait_for(lambda: queue.there(f"bounce/{number}") and queue.read(f"bounce/{number}") == text, "the bounce")

    def changed(self, queue, number):
        harness.wait_for(lambda: not queue.there(f"todo/{number}"), "the change of way")


class Ends(Case):
    def test_nothing_is_written_for_a_message_that_is_delivered_at_once(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A, X)
            self.assertEqual(queue.left(), self.in_s4(number))
            sender.report(by[A], b"Kdone\n")
            sender.wait_line("success")
            self.assertEqual(queue.left(), self.in_s4(number))
            sender.report(by[X], b"Kdone\n")
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(sender.cleaned, [f"todo/{number}", f"foop/{number}"])
            self.assertEqual(sender.stop(), 0)
        self.assertEqual(queue.left(), [])

    def test_it_syncs_nothing(self):
        queue = self.queue()
        with Traced(self, queue, answer=lambda r: b"Kdone\n") as traced:
            number = queue.todo(b"s@h", [A, X])
            traced.sender.wait_cleaned(f"foop/{number}")
            traced.sender.stop()
        self.assertEqual(traced.calls(number), ["ask todo/N", "ask foop/N"])

    def test_eight_recipients_go_the_short_way_and_nine_do_not(self):
        for count in (8, 9):
            queue = self.queue()
            with self.sender(queue) as sender:
                number, _ = self.started(queue, sender, *[b"r%d@local.example" % i for i in range(count)])
                found = self.in_s4(number) if count == 8 else self.in_s5(number, split("local", number))
                self.assertEqual(queue.left(), found)

    def test_without_a_slot_for_each_at_once_lists_are_written(self):
        queue = self.queue(concurrencylocal="2\n")
        with self.sender(queue) as sender:
            first, _ = self.started(queue, sender, A)
            second = queue.todo(b"s@h", [B, X, b"c@local.example"])
            requests = sender.wait_requests(3)
            self.assertEqual(queue.left(), sorted(self.in_s4(first) + self.in_s5(second, split("local", second),
                                                                                 split("remote", second))))
            self.assertEqual({r.recipient for r in requests}, {A, B, X})
            third = queue.todo(b"s@h", [b"y@else.example"])  # there is a slot for this one
            sender.wait(lambda: third in {r.number for r in sender.requests}, "the third message")
            self.assertTrue(queue.there(f"todo/{third}") and not queue.there(split("info", third)))

    def test_behind_a_spawner_that_does_not_read_mail_goes_the_long_way(self):
        queue = self.queue(concurrencylocal="255\n")
        reads = threading.Event()
        self.addCleanup(reads.set)
        with self.sender(queue, limits=(255, 20), answer=lambda r: reads.wait() and None) as sender:
            # Far more than the pipe holds.
            numbers = [queue.todo(b"s" * 900 + b"@h", [b"x" * 900 + b"%d@local.example" % i]) for i in range(120)]
            harness.wait_for(lambda: any(n.startswith("info/") for n in queue.left()), "a message on the long way")
            reads.set()
            sender.wait(lambda: len(sender.requests) == 120, "all deliveries")
            self.assertEqual({r.number for r in sender.requests}, set(numbers))

    def test_a_scan_passes_over_what_is_in_flight(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A)
            for i in range(3):
                _, other = self.started(queue, sender, b"o%d@local.example" % i)  # each pulls the trigger
                sender.report(*other.values(), b"K")
            sender.wait_line("success", 3)
            self.assertEqual([r.recipient for r in sender.requests].count(A), 1)
            sender.report(by[A], b"K")
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(sender.log().count(f"new msg {number}\n"), 1)

    def test_virtual_domains_and_verp_are_as_ever(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            _, by = self.started(queue, sender, b"a@virt.example", X, sender_address=b"list-@h-@[]")
            self.assertEqual({(r.way, r.recipient, r.sender) for r in by.values()}, {
                ("local", b"joe-a@virt.example", b"list-joe-a=virt.example@h"),
                ("remote", X, b"list-x=else.example@h")})

    def test_what_lies_there_from_the_past_of_the_number_goes_for_good(self):
        queue = self.queue()
        number = queue.todo(b"s@h", [A])
        for name in (split("info", number), split("local", number), f"bounce/{number}"):
            queue.write("queue/" + name, b"old\0", 0o600)
        with Traced(self, queue, answer=lambda r: b"K") as traced:
            traced.sender.wait_cleaned(f"foop/{number}")
            traced.sender.stop()
        self.assertEqual(traced.calls(number), [
            "unlink local/S/N", "sync local/S", "unlink info/S/N", "sync info/S", "unlink bounce/N", "sync bounce",
            "ask todo/N", "ask foop/N",
        ])

    def test_qmail_clean_may_refuse_and_nobody_gets_it_twice(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            sender.clean_reply = b"!"
            number, by = self.started(queue, sender, A)
            sender.report(by[A], b"Kdone\n")
            sender.wait_line(f"^warning: qmail-clean unable to clean up todo/{number}$")
            sender.clean_reply = None
            self.started(queue, sender, B)  # a scan
            self.assertEqual(len(sender.requests), 2)
            self.assertNotIn("end msg", sender.log())
            sender.kill(signal.SIGTERM)
            sender.report(sender.requests[1], b"Zlater")
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 0)
            sender.wait_line(f"^warning: trouble marking todo/{number}; message will be delivered twice!$")
        with self.sender(queue, answer=lambda r: b"K") as sender:
            sender.wait_cleaned(f"foop/{number}")


class Failures(Case):
    def test_the_bounce_is_accepted_before_todo_goes(self):
        queue = self.queue()
        queue.bounces_to()
        # It keeps a list of what is there while it takes the bounce.
        script = queue.file("bin/keep")
        with open(script) as f:
            text = f.read().replace("cat >$$", "ls ../queue/todo ../queue/bounce >$$.there\ncat >$$", 1)
        queue.write("bin/keep", text, 0o755)
        with Traced(self, queue) as traced:
            sender = traced.sender
            number, by = self.started(queue, sender, A, b"b@virt.example", X, sender_address=b"joe@h")
            sender.report(by[A], b"Kdone\n")
            sender.report(by[b"joe-b@virt.example"], b"Dno such user\n")
            self.wait_bounce(queue, number, b"<b@virt.example>:\nno such user\n\n")
            self.assertEqual(queue.left(), self.in_s4(number, f"bounce/{number}"))
            self.assertEqual(queue.bounced(), [])
            sender.report(by[X], b"Dnor here")
            sender.wait_cleaned(f"foop/{number}")
            [(envelope, message)] = queue.bounced()
            self.assertEqual(envelope, b"F\0Tjoe@h\0\0")
            self.assertIn(b"<b@virt.example>:\nno such user\n\n<x@else.example>:\nnor here\n\n--- Below", message)
            there = [n for n in os.listdir(queue.file("bounced")) if n.endswith(".there")]
            with open(queue.file(f"bounced/{there[0]}")) as f:
                self.assertEqual(f.read().count(str(number)), 2)
            sender.stop()
            log = sender.log(number)
            self.assertRegex(log, r"(?m)^bounce msg N qp \d+\nend msg N$")
        self.assertEqual(traced.calls(number), ["unlink bounce/N", "sync bounce", "ask todo/N", "ask foop/N"])
        self.assertEqual(queue.left(), [])

    def test_a_triple_bounce_is_discarded(self):
        queue = self.queue()
        with self.sender(queue, answer=lambda r: b"Dno") as sender:
            number = queue.todo(b"#@[]", [A])
            sender.wait_cleaned(f"foop/{number}")
            self.assertIn(f"triple bounce: discarding bounce/{number}", sender.lines)
            self.assertEqual(queue.left(), [])

    def test_a_bounce_that_cannot_be_written_keeps_its_slot_and_its_message(self):
        queue = self.queue()
        queue.bounces_to()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A)
            os.rename(queue.file("queue/bounce"), queue.file("queue/elsewhere"))
            sender.report(by[A], b"Dno")
            sender.wait_line("^alert: unable to append to bounce message; HELP! sleeping...$")
            self.assertEqual(queue.left(), self.in_s4(number))
            os.rename(queue.file("queue/elsewhere"), queue.file("queue/bounce"))
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(len(queue.bounced()), 1)

    def test_a_bounce_that_is_refused_outlives_a_stop(self):
        queue = self.queue()
        queue.bounces_to(code=53)
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A, X)
            sender.report(by[A], b"Kdone\n")
            sender.report(by[X], b"Dno")
            sender.wait_line("^warning: trouble injecting bounce message, will try later$")
            self.assertEqual(sender.stop(), 0)
        self.assertEqual(queue.left(), self.in_s5(number, f"bounce/{number}"))
        queue.bounces_to("later")
        with self.sender(queue) as sender:
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(sender.requests, [])
            self.assertEqual(len(queue.bounced("later")), 1)
        self.assertEqual(queue.left(), [])


class Changes(Case):
    CONTENT = b"Subject: x\n\nhi\n"

    def info(self, local, remote, *recipients):
        envelope = b"Fs@h\0" + b"".join(b"T" + r + b"\0" for r in recipients)
        head = b"Fs@h\0" + commit_record(4321, self.CONTENT, envelope)
        return head + check_record(head, local, remote)

    def test_a_deferral_writes_info_and_lists_with_what_is_known(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A, B, X)
            seen = time.time()
            harness.wait_for(lambda: time.time() > seen + 1.5, "the clock")
            sender.report(by[A], b"Kdone\n")
            sender.wait_line("success")
            sender.report(by[X], b"Zlater\n")
            self.changed(queue, number)
            local, remote = whole_list(b"D" + A + b"\0T" + B + b"\0"), whole_list(b"T" + X + b"\0")
            self.assertEqual(queue.left(), self.in_s5(number, split("local", number), split("remote", number)))
            self.assertEqual(queue.read(split("info", number)), self.info(local, remote, A, B, X))
            self.assertEqual((queue.read(split("local", number)), queue.read(split("remote", number))), (local, remote))
            birth = os.stat(queue.file("queue/" + split("info", number))).st_mtime
            self.assertLessEqual(birth, seen)
            # The rest is as for any message.
            sender.report(by[B], b"Kdone\n")
            harness.wait_for(lambda: not queue.there(split("local", number)), "the list to go")
            self.assertEqual(sender.stop(), 0)
            due = os.stat(queue.file("queue/" + split("remote", number))).st_mtime
            self.assertEqual(due, birth + 400)
            self.assertEqual(len(sender.requests), 3)
            log = sender.log(number)
            self.assertEqual((log.count("new msg N\n"), log.count("info msg N")), (1, 1))
        with self.sender(queue, answer=lambda r: b"Kdone\n") as sender:
            sender.wait_line("^status")
            sender.kill(signal.SIGALRM)
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual([r.recipient for r in sender.requests], [X])
        self.assertEqual(queue.left(), [])

    def test_everything_is_synced_before_todo_goes(self):
        queue = self.queue()
        with Traced(self, queue) as traced:
            number, by = self.started(queue, traced.sender, A, B, X)
            traced.sender.report(by[B], b"Dno\n")
            self.wait_bounce(queue, number, b"<b@local.example>:\nno\n\n")
            self.assertEqual(queue.left(), self.in_s4(number, f"bounce/{number}"))
            traced.sender.report(by[A], b"Zlater\n")
            self.changed(queue, number)
            traced.sender.report(by[X], b"Kdone\n")
            traced.sender.stop()
        self.assertEqual(traced.calls(number), [
            "sync info/S/N", "sync info/S", "sync local/S/N", "sync local/S", "sync remote/S/N", "sync remote/S",
            "sync bounce/N", "sync bounce", "ask todo/N", "mark remote/S/N", "unlink remote/S/N", "sync remote/S",
        ])
        self.assertEqual(queue.read(split("local", number)), whole_list(b"T" + A + b"\0D" + B + b"\0"))
        self.assertEqual(queue.read(f"bounce/{number}"), b"<b@local.example>:\nno\n\n")

    def test_a_list_on_which_everybody_is_done_is_not_written(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A, X)
            sender.report(by[A], b"Kdone\n")
            sender.wait_line("success")
            sender.report(by[X], b"Zlater\n")
            self.changed(queue, number)
            self.assertEqual(queue.left(), self.in_s5(number, split("remote", number)))
            self.assertEqual(queue.read(split("info", number)), self.info(None, whole_list(b"T" + X + b"\0"), A, X))
            self.assertEqual(sender.stop(), 0)
        with self.sender(queue, answer=lambda r: b"Kdone\n") as sender:  # which proves the files
            sender.wait_line("^status")
            sender.kill(signal.SIGALRM)
            sender.wait_cleaned(f"foop/{number}")
            self.assertNotIn("aside", sender.log())

    def test_reports_that_come_during_the_change_are_taken_behind_it(self):
        queue = self.queue()
        queue.bounces_to()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A, B, X)
            sender.clean_reply = b""  # qmail-clean does it, and keeps us waiting for the answer
            sender.report(by[A], b"Zlater\n")
            sender.wait_cleaned(f"todo/{number}")
            sender.report(by[B], b"Kdone\n")
            sender.report(by[X], b"Dno\n")
            sender.report(by[X], b"Ktwice\n")
            sender.wait_line("^warning: internal error: delivery report out of range$")
            self.assertEqual(len(re.findall("(?m)^delivery", sender.log())), 1)
            self.assertFalse(queue.there(f"bounce/{number}"))
            sender.clean_reply = None
            os.write(sender.parent[6], b"+")
            sender.wait_line("^delivery .*: success")
            sender.wait_line("^delivery .*: failure")
            harness.wait_for(lambda: not queue.there(split("remote", number)), "the list to go")
            marked = whole_list(b"T" + A + b"\0D" + B + b"\0")
            harness.wait_for(lambda: queue.read(split("local", number)) == marked, "the mark")
            self.assertEqual(queue.read(f"bounce/{number}"), b"<x@else.example>:\nno\n\n")
            sender.answer = lambda r: b"Kdone\n"
            sender.kill(signal.SIGALRM)
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual([r.recipient for r in sender.requests][3:], [A])
            self.assertEqual(len(queue.bounced()), 1)
        self.assertEqual(queue.left(), [])

    def test_a_change_that_fails_is_tried_again_also_while_stopping(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A, B)
            directory = queue.file(f"queue/info/{number % 23}")
            os.rename(directory, directory + "~")
            sender.report(by[A], b"Kdone\n")
            sender.report(by[B], b"Zlater\n")
            sender.wait_line(f"^warning: unable to create {split('info', number)}$")
            self.assertEqual(queue.left(), self.in_s4(number))
            sender.kill(signal.SIGTERM)
            sender.wait_line("exitasap")
            os.rename(directory + "~", directory)
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 0)
            self.assertNotIn("twice", sender.log())
        self.assertEqual(queue.left(), self.in_s5(number, split("local", number)))
        self.assertEqual(queue.read(split("local", number)), whole_list(b"D" + A + b"\0T" + B + b"\0"))

    def test_a_change_that_qmail_clean_refuses_is_made_again(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A, B)
            sender.clean_reply = b"!"
            sender.report(by[A], b"Zlater\n")
            sender.wait_line(f"^warning: qmail-clean unable to clean up todo/{number}$")
            # On the short way still: this is not in the list that was written.
            sender.report(by[B], b"Kdone\n")
            sender.wait_line("success")
            sender.clean_reply = None
            self.changed(queue, number)
            self.assertEqual(queue.read(split("local", number)), whole_list(b"T" + A + b"\0D" + B + b"\0"))
            self.assertEqual(len(sender.requests), 2)

    def test_thirty_seconds_are_the_longest_short_way(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A, B)
            sender.report(by[A], b"Kdone\n")
            sender.wait_line("success")
            harness.wait_for(lambda: not queue.there(f"todo/{number}"), "the change of way", LATE + harness.TIMEOUT)
            self.assertEqual(queue.read(split("local", number)), whole_list(b"D" + A + b"\0T" + B + b"\0"))
            sender.report(by[B], b"Kdone\n")
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(len(sender.requests), 2)
        self.assertEqual(queue.left(), [])


class Stops(Case):
    def test_a_stop_writes_down_who_is_done(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A, B, X)
            sender.report(by[A], b"Kdone\n")
            sender.report(by[X], b"Dno\n")
            sender.wait_line("^status: local 1/10 remote 0/20$", 2)
            sender.kill(signal.SIGTERM)
            self.changed(queue, number)  # although a delivery runs
            self.assertEqual(queue.left(), self.in_s5(number, split("local", number), f"bounce/{number}"))
            self.assertEqual(queue.read(split("local", number)), whole_list(b"D" + A + b"\0T" + B + b"\0"))
            sender.report(by[B], b"Zlater\n")
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 0)
            birth = os.stat(queue.file("queue/" + split("info", number))).st_mtime
            self.assertEqual(os.stat(queue.file("queue/" + split("local", number))).st_mtime, int(birth) + 100)

    def test_a_stop_with_nobody_done_leaves_the_message_to_the_next_start(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A, B)
            sender.kill(signal.SIGTERM)
            sender.wait_line("exitasap")
            self.assertEqual(queue.left(), self.in_s4(number))
            sender.close(2)  # the spawner is lost with both
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 0)
        self.assertEqual(queue.left(), self.in_s4(number))
        with self.sender(queue, answer=lambda r: b"Kdone\n") as sender:
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(len(sender.requests), 2)

    def test_the_last_report_ends_the_message_although_we_are_stopping(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A)
            sender.kill(signal.SIGTERM)
            sender.wait_line("exitasap")
            sender.report(by[A], b"Kdone\n")
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 0)
            sender.wait_line("^status: exiting$")
            self.assertEqual(sender.cleaned, [f"todo/{number}", f"foop/{number}"])
            self.assertIn(f"end msg {number}", sender.lines)
        self.assertEqual(queue.left(), [])

    def test_a_deferral_while_stopping_keeps_its_schedule(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A)
            sender.kill(signal.SIGTERM)
            sender.wait_line("exitasap")
            sender.report(by[A], b"Zlater\n")
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 0)
        birth = os.stat(queue.file("queue/" + split("info", number))).st_mtime
        self.assertEqual(os.stat(queue.file("queue/" + split("local", number))).st_mtime, int(birth) + 100)

    def test_without_qmail_clean_what_is_forgotten_is_said(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number, by = self.started(queue, sender, A, B)
            sender.report(by[A], b"Kdone\n")
            sender.wait_line("success")
            sender.close(6)
            sender.wait_line("lost qmail-clean connection")
            sender.report(by[B], b"Zlater\n")
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 0)
            sender.wait_line(f"^warning: trouble marking todo/{number}; message will be delivered twice!$")
        with self.sender(queue, answer=lambda r: b"Kdone\n") as sender:
            sender.wait_cleaned(f"foop/{number}")


if __name__ == "__main__":
    unittest.main()
