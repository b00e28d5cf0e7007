"""qmail-send, driven alone: the test plays qmail-lspawn, qmail-rspawn and qmail-clean on its pipes.

A message that finds a slot for each of its recipients at once goes the short way, without info and lists: what
is peculiar to it is in test_short_way. Here MANY recipients, or too few slots, make messages go the long way.
"""

import contextlib
import fcntl
import os
import random
import re
import signal
import socket
import unittest

from tests import harness
from tests.queue_rig import Queue, Sender, Traced, check_record, commit_record, idle, split, whole_list

CONTROLS = {
    "me": "me.example\n",
    "locals": "local.example\n",
    "virtualdomains": "virt.example:joe\n",
}
MANY = [b"m%d@local.example" % i for i in range(9)]  # more than go the short way
STATUS = r"^status: local \d+/\d+ remote \d+/\d+$"


def success(request):
    return b"Kok\n"


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

    def mtime(self, queue, name):
        return os.stat(queue.file("queue/" + name)).st_mtime

    def wait_ended(self, sender, queue):
        """Nothing left but messages without any other file: those wait for the cleanup of leftovers."""
        def ended():
            return all(name.startswith("mess/") for name in queue.left())
        try:
            harness.wait_for(ended, "the queue to be empty")
        except AssertionError as e:
            raise AssertionError(f"{e}; left are {queue.left()}\n{sender.log()}") from None


class Deliveries(Case):
    def test_one_message_leaves_the_log_that_parsers_know(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            sender.wait_line(STATUS)
            number = queue.todo(b"s@h.com", [b"a@local.example"], b"Subject: x\n\nhi\n")
            [request] = sender.wait_requests(1)
            self.assertEqual(request, ("local", 0, number, b"s@h.com", b"a@local.example"))
            sender.report(request, b"Kdid 1+0+0\n")
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(sender.stop(), 0)
            self.assertEqual(sender.log(number), """\
status: local 0/10 remote 0/20
new msg N
info msg N: bytes 15 from <s@h.com> qp 4321 uid 1000
starting delivery 1: msg N to local a@local.example
status: local 1/10 remote 0/20
delivery 1: success: did_1+0+0/
status: local 0/10 remote 0/20
end msg N
status: local 0/10 remote 0/20 exitasap
status: exiting
""")
            self.assertEqual(sender.cleaned, [f"todo/{number}", f"foop/{number}"])
            self.assertEqual(queue.left(), [])

    def test_recipients_are_rewritten_and_split_into_local_and_remote(self):
        queue = self.queue(percenthack="hack.example\n", envnoathost="local.example\n")
        recipients = [b"a@virt.example", b"b", b"c@else.example", b"d%local.example@hack.example"]
        with self.sender(queue) as sender:
            queue.todo(b"s@h", recipients)
            found = {(r.way, r.recipient) for r in sender.wait_requests(4)}
            self.assertEqual(found, {("local", b"joe-a@virt.example"), ("local", b"b@local.example"),
                                     ("remote", b"c@else.example"), ("local", b"d@local.example")})

    def test_preprocessing_writes_the_files_with_commit_and_check_records(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number = queue.todo(b"s@h", [b"x@y", *MANY], b"body\n")
            sender.wait_requests(10)
            local, remote = b"".join(b"T" + r + b"\0" for r in MANY), b"Tx@y\0"
            head = b"Fs@h\0" + commit_record(4321, b"body\n", b"Fs@h\0" + remote + local)
            local, remote = (whole_list(records, b"body\n") for records in (local, remote))
            self.assertEqual(queue.read(split("info", number)), head + check_record(head, local, remote))
            self.assertEqual(queue.read(split("local", number)), local)
            self.assertEqual(queue.read(split("remote", number)), remote)
            self.assertEqual(queue.left(), sorted([split(d, number) for d in ("mess", "info", "local", "remote")]))
            mode = os.stat(queue.file("queue/" + split("info", number))).st_mode & 0o777
            self.assertEqual(mode, 0o600)

    def test_done_marks_are_single_bytes_and_finished_lists_go(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number = queue.todo(b"s@h", [*MANY, b"x@y"])
            by = {r.recipient: r for r in sender.wait_requests(10)}
            sender.report(by[MANY[1]], b"K")
            marked = whole_list(b"".join((b"D" if r == MANY[1] else b"T") + r + b"\0" for r in MANY))
            harness.wait_for(lambda: queue.read(split("local", number)) == marked, "the mark")
            sender.report(by[b"x@y"], b"K")
            sender.wait_line("success", 2)
            harness.wait_for(lambda: not queue.there(split("remote", number)), "remote to go")
            self.assertTrue(queue.there(split("info", number)))
            sender.report(by[MANY[0]], b"Zlater\n")
            sender.wait_line(r"delivery \d+: deferral: later/")
            self.assertEqual(queue.read(split("local", number)), marked)

    def test_a_message_without_recipients_just_ends(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number = queue.todo(b"s@h", [])
            sender.wait_cleaned(f"foop/{number}")
            sender.wait_line(f"^end msg {number}$")
            self.assertEqual(queue.left(), [])

    def test_an_envelope_without_commit_record_is_taken_by_the_old_rule(self):
        queue = self.queue()
        number = queue.todo(b"s@h", MANY, record=False)
        with self.sender(queue) as sender:
            sender.wait_requests(9)
            head, local = b"Fs@h\0", whole_list(b"".join(b"T" + r + b"\0" for r in MANY), None)
            self.assertEqual(queue.read(split("info", number)), head + check_record(head, local, None))

    def test_verp_gives_each_recipient_a_sender_of_its_own(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            queue.todo(b"list-owner-@h-@[]", [b"bob@d.example", b"a@virt.example"])
            found = {r.recipient: r.sender for r in sender.wait_requests(2)}
            self.assertEqual(found, {b"bob@d.example": b"list-owner-bob=d.example@h",
                                     b"joe-a@virt.example": b"list-owner-joe-a=virt.example@h"})

    def test_concurrency_is_the_smaller_of_control_file_and_spawner(self):
        queue = self.queue(concurrencylocal="3\n", concurrencyremote="200\n")
        with self.sender(queue, limits=(120, 2)) as sender:
            sender.wait_line("^status: local 0/3 remote 0/2$")
            queue.todo(b"s@h", [b"%d@y" % i for i in range(5)])
            first = sender.wait_requests(2)
            self.assertEqual({r.slot for r in first}, {0, 1})
            sender.wait_line("^status: local 0/3 remote 2/2$")
            sender.report(first[1], b"K")
            self.assertEqual(sender.wait_requests(3)[2].slot, 1)

    def test_a_concurrency_of_zero_holds_mail(self):
        queue = self.queue(concurrencyremote="0\n")
        with self.sender(queue) as sender:
            number = queue.todo(b"s@h", [b"x@y", b"a@local.example"])
            [request] = sender.wait_requests(1)
            self.assertEqual(request.way, "local")
            sender.report(request, b"K")
            harness.wait_for(lambda: not queue.there(split("local", number)), "local to go")
            self.assertEqual(sender.stop(), 0)
            self.assertEqual(queue.read(split("remote", number)), whole_list(b"Tx@y\0"))

    def test_many_recipients_pass_through_few_slots(self):
        queue = self.queue(concurrencyremote="7\n")
        everybody = [b"r%d@y.example" % i for i in range(1000)]
        with self.sender(queue, answer=success) as sender:
            number = queue.todo(b"s@h", everybody)
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(sorted(r.recipient for r in sender.requests), sorted(everybody))

    def test_bytes_that_could_fool_a_log_reader_are_masked(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number = queue.todo(b"a b%\xff\n@h", [b"x\n y@z"])
            [request] = sender.wait_requests(1)
            sender.report(request, b"Kone\ntwo 100%\r\n")
            sender.wait_line(r"^delivery 1: success: one/two_100__/$")
            self.assertIn(f"info msg {number}: bytes 15 from <a_b__/@h> qp 4321 uid 1000", sender.lines)
            self.assertIn(f"starting delivery 1: msg {number} to remote x/_y@z", sender.lines)


class Reports(Case):
    def test_reports_out_of_range_are_said_and_ignored(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            sender.wait_line(STATUS)
            sender.say("local", b"\x03Kidle\0")
            sender.say("remote", b"\xffKbeyond\0")
            sender.wait_line("^warning: internal error: delivery report out of range$", 2)
            number = queue.todo(b"s@h", [b"a@local.example"])
            [request] = sender.wait_requests(1)
            sender.report(request, b"K")
            sender.report(request, b"Ktwice")
            sender.wait_line("out of range", 3)
            sender.wait_cleaned(f"foop/{number}")

    def test_a_report_of_no_class_is_a_deferral(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number = queue.todo(b"s@h", [b"a@local.example", b"b@local.example"])
            one, two = sender.wait_requests(2)
            sender.report(one, b"Qwhat")
            sender.report(two, b"")
            sender.wait_line("^delivery [12]: report mangled, will defer$", 2)
            harness.wait_for(lambda: not queue.there(f"todo/{number}"), "the lists to be written")
            self.assertEqual(queue.read(split("local", number)), whole_list(b"Ta@local.example\0Tb@local.example\0"))

    def test_a_long_report_is_cut_at_10000_bytes_and_keeps_its_class(self):
        queue = self.queue()
        queue.bounces_to()
        with self.sender(queue) as sender:
            queue.todo(b"s@h", [b"a@local.example"])
            [request] = sender.wait_requests(1)
            sender.report(request, b"D" + b"x" * 50000 + b"y")
            line = sender.wait_line("^delivery 1: failure: (x*)$")
            self.assertEqual(len(line.group(1)), 9998)

    def test_a_report_may_come_byte_by_byte(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number = queue.todo(b"s@h", [b"a@local.example"])
            sender.wait_requests(1)
            for byte in b"\0Kslow\n\0":
                sender.say("local", bytes([byte]))
            sender.wait_line("^delivery 1: success: slow/$")
            sender.wait_cleaned(f"foop/{number}")


class Bounces(Case):
    def one_bounce(self, queue):
        harness.wait_for(lambda: queue.bounced(), "a bounce")
        [(envelope, message)] = queue.bounced()
        return envelope, message

    def test_a_failure_goes_back_to_the_sender(self):
        queue = self.queue(bouncefrom="postman\n", bouncehost="host.example\n")
        queue.bounces_to()
        with self.sender(queue) as sender:
            number = queue.todo(b"joe doe@h.example", [b"a@virt.example", b"b@local.example"], b"Subject: x\n\nbody")
            by = {r.recipient: r for r in sender.wait_requests(2)}
            sender.report(by[b"joe-a@virt.example"], b"Dno\n\nsuch user. (#5.1.1)\n")
            sender.report(by[b"b@local.example"], b"Dgone")
            sender.wait_cleaned(f"foop/{number}")
            envelope, message = self.one_bounce(queue)
            self.assertEqual(envelope, b"F\0Tjoe doe@h.example\0\0")
            date, rest = message.split(b"\n", 1)
            self.assertRegex(date, rb"^Date: \d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d -0000$")
            self.assertEqual(rest.decode(), """\
From: postman@host.example
To: "joe doe"@h.example
Subject: failure notice

Hi. This is the qmail-send program at host.example.
It wasn't able to deliver your message to the addresses below; the reason stands with each.
This is a permanent error: no further attempt will be made.

<a@virt.example>:
no
/such user. (#5.1.1)

<b@local.example>:
gone

--- Below this line is a copy of the message.

Return-Path: <"joe doe"@h.example>
Subject: x

body""")
            sender.wait_line("^end msg")
            log = sender.log(number)
            self.assertRegex(log, r"(?m)^delivery \d: failure: no//such_user._\(#5.1.1\)/$")
            self.assertRegex(log, r"(?m)^bounce msg N qp \d+\nend msg N$")
            self.assertEqual(queue.left(), [])

    def test_a_bounce_that_bounces_goes_to_the_administrator(self):
        queue = self.queue(doublebounceto="boss\n", doublebouncehost="hq.example\n")
        queue.bounces_to()
        with self.sender(queue, answer=lambda r: b"Dno") as sender:
            number = queue.todo(b"", [b"a@local.example"])
            sender.wait_cleaned(f"foop/{number}")
            envelope, message = self.one_bounce(queue)
            self.assertEqual(envelope, b"F#@[]\0Tboss@hq.example\0\0")
            for part in (b"the bounce bounced", b"--- Below this line is the original bounce.\n\nReturn-Path: <>\n"):
                self.assertIn(part, message)

    def test_a_triple_bounce_is_discarded(self):
        queue = self.queue()
        queue.bounces_to()
        with self.sender(queue, answer=lambda r: b"Dno") as sender:
            number = queue.todo(b"#@[]", [b"a@local.example"])
            sender.wait_cleaned(f"foop/{number}")
            self.assertIn(f"triple bounce: discarding bounce/{number}", sender.lines)
            self.assertEqual((queue.bounced(), queue.left()), ([], []))

    def test_a_bounce_of_a_verp_message_goes_to_the_plain_owner(self):
        queue = self.queue()
        queue.bounces_to()
        with self.sender(queue, answer=lambda r: b"Dno") as sender:
            number = queue.todo(b"l-@h-@[]", [b"a@local.example"])
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(self.one_bounce(queue)[0], b"F\0Tl-@h\0\0")

    def test_a_bounce_waits_for_the_last_recipient(self):
        queue = self.queue()
        queue.bounces_to()
        number = queue.preprocessed(b"s@h", local=[b"Ta@local.example"], remote=[b"Tx@y"])
        with self.sender(queue) as sender:
            by = {r.way: r for r in sender.wait_requests(2)}
            sender.report(by["local"], b"Dno")
            harness.wait_for(lambda: not queue.there(split("local", number)), "local to go")
            self.assertEqual(queue.read(f"bounce/{number}"), b"<a@local.example>:\nno\n\n")
            self.assertEqual(queue.bounced(), [])
            sender.report(by["remote"], b"K")
            sender.wait_cleaned(f"foop/{number}")
            self.assertIn(b"<a@local.example>:\nno\n\n--- Below", self.one_bounce(queue)[1])

    def test_a_bounce_the_queue_refuses_is_kept(self):
        queue = self.queue()
        queue.bounces_to(code=53)
        with self.sender(queue, answer=lambda r: b"Dno") as sender:
            number = queue.todo(b"s@h", [b"a@local.example"])
            sender.wait_line("^warning: trouble injecting bounce message, will try later$")
            self.assertEqual(sender.stop(), 0)
        self.assertTrue(queue.there(f"bounce/{number}"))
        queue.bounces_to("later")
        with self.sender(queue) as sender:
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(len(queue.bounced("later")), 1)
            self.assertEqual(queue.left(), [])

    def test_a_large_message_comes_back_whole(self):
        queue = self.queue()
        queue.bounces_to()
        content = b"Subject: x\n\n" + os.urandom(3 * 1024 * 1024)
        with self.sender(queue, answer=lambda r: b"Dno") as sender:
            number = queue.todo(b"s@h", [b"a@local.example"], content)
            sender.wait_cleaned(f"foop/{number}")
            self.assertTrue(self.one_bounce(queue)[1].endswith(b"\n\nReturn-Path: <s@h>\n" + content))

    def test_a_paragraph_that_a_crash_cut_off_does_not_swallow_the_next_one(self):
        queue = self.queue()
        queue.bounces_to()
        number = queue.preprocessed(b"s@h", local=[b"Ta@local.example"])
        queue.write(f"queue/bounce/{number}", b"<z@local.example>:\ncut o", 0o600)
        with self.sender(queue, answer=lambda r: b"Dno") as sender:
            sender.wait_cleaned(f"foop/{number}")
            self.assertIn(b"<z@local.example>:\ncut o\n\n<a@local.example>:\nno\n\n--- ", self.one_bounce(queue)[1])

    def test_many_bounces_at_once_all_arrive(self):
        queue = self.queue()
        queue.bounces_to()
        with self.sender(queue, answer=lambda r: b"Dno") as sender:
            numbers = [queue.todo(b"s%d@h" % i, [b"a@local.example"]) for i in range(30)]
            for number in numbers:
                sender.wait_cleaned(f"foop/{number}")
            self.assertEqual({e for e, _ in queue.bounced()}, {b"F\0Ts%d@h\0\0" % i for i in range(30)})

    def test_an_unwritable_bounce_directory_is_said_and_nothing_is_marked(self):
        queue = self.queue()
        number = queue.preprocessed(b"s@h", local=[b"Ta@local.example"])
        with self.sender(queue) as sender:
            [request] = sender.wait_requests(1)
            os.rename(queue.file("queue/bounce"), queue.file("queue/elsewhere"))
            sender.report(request, b"Dno")
            sender.wait_line("^alert: unable to append to bounce message; HELP! sleeping...$")
            self.assertEqual(queue.read(split("local", number)), whole_list(b"Ta@local.example\0"))
            self.assertEqual(sender.stop(), 0)


class Schedule(Case):
    def due_after(self, age, way):
        """When a deferral at this age is tried again, in seconds after birth."""
        queue = self.queue()
        lists = {way: [b"Ta@local.example" if way == "local" else b"Tx@y"]}
        number = queue.preprocessed(b"s@h", age=age, **lists)
        birth = int(self.mtime(queue, split("info", number)))
        with self.sender(queue, answer=lambda r: b"Zlater") as sender:
            sender.wait_line("deferral")
            self.assertEqual(sender.stop(), 0)
        return self.mtime(queue, split(way, number)) - birth

    def test_local_mail_is_tried_again_at_squares_of_ten(self):
        # Born a minute from now it is new, however long the start takes.
        self.assertEqual(self.due_after(-60, "local"), 100)
        self.assertEqual(self.due_after(102, "local"), 400)
        self.assertEqual(self.due_after(10_002, "local"), 110 ** 2)

    def test_remote_mail_is_tried_again_at_squares_of_twenty(self):
        self.assertEqual(self.due_after(-60, "remote"), 400)
        self.assertEqual(self.due_after(402, "remote"), 1600)

    def test_a_message_from_the_future_counts_as_new(self):
        self.assertEqual(self.due_after(-5000, "local"), 100)

    def test_what_is_not_due_waits(self):
        queue = self.queue()
        later = queue.preprocessed(b"s@h", local=[b"Tlater@local.example"], due=500)
        queue.preprocessed(b"s@h", local=[b"Tnow@local.example"])
        with self.sender(queue) as sender:
            [request] = sender.wait_requests(1)
            self.assertEqual(request.recipient, b"now@local.example")
            due = self.mtime(queue, split("local", later))
            sender.kill(signal.SIGALRM)
            self.assertEqual(sender.wait_requests(2)[1].recipient, b"later@local.example")
            self.assertAlmostEqual(self.mtime(queue, split("local", later)), due)

    def test_what_was_due_first_comes_first(self):
        queue = self.queue(concurrencylocal="1\n")
        for i in (3, 1, 2):
            queue.preprocessed(b"s@h", local=[b"T%d@local.example" % i], due=-1000 + i)
        with self.sender(queue, answer=success) as sender:
            found = [r.recipient[:1] for r in sender.wait_requests(3)]
            self.assertEqual(found, [b"1", b"2", b"3"])

    def test_an_expired_message_is_given_up_after_one_more_attempt(self):
        queue = self.queue(queuelifetime="1000\n")
        queue.bounces_to()
        number = queue.preprocessed(b"s@h", local=[b"Ta@local.example", b"Db@local.example"], age=1001)
        with self.sender(queue, answer=lambda r: b"Zbusy\n") as sender:
            sender.wait_cleaned(f"foop/{number}")
            expired = "I'm not going to try again; this message has been in the queue too long.\n"
            self.assertIn("delivery 1: failure: busy/" + expired.replace(" ", "_").replace("\n", "/"), sender.lines)
            [(_, message)] = queue.bounced()
            self.assertIn(b"<a@local.example>:\nbusy\n" + expired.encode() + b"\n---", message)

    def test_a_message_just_inside_its_lifetime_is_not_given_up(self):
        queue = self.queue(queuelifetime="1000\n")
        queue.preprocessed(b"s@h", local=[b"Ta@local.example"], age=900)
        with self.sender(queue, answer=lambda r: b"Zbusy\n") as sender:
            sender.wait_line("^delivery 1: deferral: busy/$")


class Signals(Case):
    def test_term_waits_for_what_runs_and_starts_nothing(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            first = queue.todo(b"s@h", [b"a@local.example"])
            [request] = sender.wait_requests(1)
            idle(sender)  # the list has been read to its end
            sender.kill(signal.SIGTERM)
            sender.wait_line("^status: local 1/10 remote 0/20 exitasap$")
            queue.todo(b"s@h", [b"b@local.example"])
            sender.report(request, b"Zlater")
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 0)
            sender.wait_line("^status: exiting$")
            self.assertEqual(len(sender.requests), 1)
            birth = int(self.mtime(queue, split("info", first)))
            self.assertAlmostEqual(self.mtime(queue, split("local", first)) - birth, 100, delta=1)

    def test_term_in_the_middle_of_a_list_leaves_the_rest_due(self):
        queue = self.queue(concurrencylocal="1\n")
        number = queue.preprocessed(b"s@h", local=[b"Ta@local.example", b"Tb@local.example"], due=-50)
        due = int(self.mtime(queue, split("local", number)))
        with self.sender(queue) as sender:
            [request] = sender.wait_requests(1)
            sender.kill(signal.SIGTERM)
            sender.wait_line("exitasap")
            sender.report(request, b"K")
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 0)
        self.assertEqual(queue.read(split("local", number)), whole_list(b"Da@local.example\0Tb@local.example\0"))
        self.assertEqual(self.mtime(queue, split("local", number)), due)

    def test_hup_rereads_locals_and_virtualdomains(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            queue.todo(b"s@h", [b"a@new.example"])
            self.assertEqual(sender.wait_requests(1)[0].way, "remote")
            queue.write("control/locals", "new.example\n")
            queue.write("control/virtualdomains", "v.example:jim\n")
            sender.kill(signal.SIGHUP)
            queue.todo(b"s@h", [b"a@new.example", b"b@v.example"])
            found = {(r.way, r.recipient) for r in sender.wait_requests(3)[1:]}
            self.assertEqual(found, {("local", b"a@new.example"), ("local", b"jim-b@v.example")})

    def test_hup_with_an_unreadable_file_keeps_the_old_values(self):
        for name in ("locals", "virtualdomains"):
            queue = self.queue()
            with self.sender(queue) as sender:
                sender.wait_line(STATUS)
                os.unlink(queue.file(f"control/{name}"))
                os.mkdir(queue.file(f"control/{name}"))
                sender.kill(signal.SIGHUP)
                sender.wait_line(f"^alert: unable to reread control/{name}$")
                queue.todo(b"s@h", [b"a@local.example", b"b@virt.example"])
                self.assertEqual({r.way for r in sender.wait_requests(2)}, {"local"})

    def test_hup_with_virtualdomains_removed_means_there_are_none(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            sender.wait_line(STATUS)
            os.unlink(queue.file("control/virtualdomains"))
            sender.kill(signal.SIGHUP)
            queue.todo(b"s@h", [b"b@virt.example"])
            self.assertEqual(sender.wait_requests(1)[0].way, "remote")


class Starts(Case):
    def cannot(self, queue, why, **more):
        with self.sender(queue, **more) as sender:
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 111)
            sender.wait_line(f"^alert: cannot start: {re.escape(why)}$")
            return sender.log()

    def test_only_one_runs_in_a_queue(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            sender.wait_line(STATUS)
            self.cannot(queue, "qmail-send is already running")

    def test_missing_or_unreadable_controls_are_named(self):
        queue = self.queue(me=None, locals=None)
        self.assertIn("control/locals and control/me are missing", self.cannot(queue, "unable to read controls"))
        queue = self.queue()
        os.mkdir(queue.file("control/concurrencylocal"))
        self.assertIn("control/concurrencylocal", self.cannot(queue, "unable to read controls"))

    def test_a_home_without_a_queue_is_refused(self):
        queue = self.queue()
        os.rename(queue.file("queue/lock/sendmutex"), queue.file("queue/lock/other"))
        self.cannot(queue, "unable to open mutex")
        os.rename(queue.file("queue"), queue.file("old"))
        self.cannot(queue, "unable to switch to queue directory")
        queue.env["QMAIL_HOME"] = queue.file("nowhere")
        self.cannot(queue, "unable to switch to home directory")

    def test_without_its_companions_it_does_not_start(self):
        queue = self.queue()
        result = harness.run(["sh", "-c", f"exec qmail-send 0>{queue.base}/log 1>&- 2>&-"], env=queue.env)
        self.assertEqual(result.code, 111)
        with open(f"{queue.base}/log") as log:
            self.assertEqual(log.read(), "alert: cannot start: hath the daemon spawn no fire?\n")

    def test_a_spawner_that_says_nothing_is_a_reason_not_to_start(self):
        self.cannot(self.queue(), "hath the daemon spawn no fire?", first_bytes=False)


class LostPipes(Case):
    def test_a_lost_spawner_ends_qmail_send_when_the_other_is_quiet(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            queue.todo(b"s@h", [b"a@local.example", b"x@y"])
            by = {r.way: r for r in sender.wait_requests(2)}
            sender.close(2)
            sender.wait_line("^alert: oh no! lost spawn connection! dying...$")
            sender.report(by["remote"], b"K")
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 0)
            sender.wait_line(r"^delivery \d: success")
            sender.wait_line("^status: exiting$")
        with self.sender(queue) as sender:
            [request] = sender.wait_requests(1)
            self.assertEqual(request.recipient, b"a@local.example")

    def test_nothing_begins_before_qmail_clean_answers(self):
        """It does when no other is left that works for a qmail-send before this one."""
        queue = self.queue()
        number = queue.todo(b"s@h", [b"a@local.example"])
        with self.sender(queue, answer=success, greets=False) as sender:
            sender.wait(lambda: sender.greeted, "qmail-send to ask whether somebody answers")
            self.assertEqual((sender.requests, sender.lines), ([], []))
            sender.greet()
            sender.wait_cleaned(f"foop/{number}")

    def test_a_stop_is_heard_while_qmail_clean_does_not_answer(self):
        with self.sender(self.queue(), greets=False) as sender:
            sender.wait(lambda: sender.greeted, "qmail-send to ask whether somebody answers")
            sender.stop()

    def test_a_lost_cleaner_ends_qmail_send(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            sender.wait_line(STATUS)
            sender.close(6)
            sender.wait_line("^alert: oh no! lost qmail-clean connection! dying...$")
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 0)

    def test_a_cleaner_that_cannot_is_asked_again(self):
        queue = self.queue()
        with self.sender(queue, answer=success) as sender:
            sender.clean_reply = b"!"
            number = queue.todo(b"s@h", MANY)
            sender.wait_line(f"^warning: qmail-clean unable to clean up todo/{number}$")
            self.assertEqual(sender.requests, [])
            sender.clean_reply = None
            queue.pull()
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(len(sender.requests), 9)

    def test_a_slow_spawner_is_waited_for(self):
        # A pipe full of commands: nobody reads until the test does.
        queue = self.queue(concurrencylocal="255\n")
        with self.sender(queue, limits=(255, 20), answer=success) as sender:
            long = b"x" * 900
            everybody = [long + b"%d@local.example" % i for i in range(255)]
            number = queue.todo(b"s" * 900 + b"@h", everybody)
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(len(sender.requests), 255)


class Preprocessing(Case):
    def test_a_message_whose_writer_holds_its_lock_is_left_alone(self):
        queue = self.queue()
        with self.sender(queue) as sender:
            number = queue.message()
            lock = os.open(queue.file("queue/" + split("mess", number)), os.O_RDWR)
            harness.hold_as_writer(lock)
            queue.todo(b"s@h", [b"a@local.example"], number=number)
            other = queue.todo(b"s@h", [b"b@local.example"])
            self.assertEqual(sender.wait_requests(1)[0].number, other)
            self.assertTrue(queue.there(f"todo/{number}"))
            os.close(lock)
            queue.pull()
            self.assertEqual(sender.wait_requests(2)[1].number, number)
            self.assertNotIn("warning", sender.log())

    def test_a_broken_preprocessing_is_begun_again(self):
        queue = self.queue()
        number = queue.todo(b"s@h", [b"a@local.example"])
        for name in ("info", "local", "remote"):
            queue.write("queue/" + split(name, number), b"TDtorn", 0o600)
        queue.write(f"queue/bounce/{number}", b"<old>:\nx\n\n", 0o600)
        with self.sender(queue, answer=success) as sender:
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual([r.recipient for r in sender.requests], [b"a@local.example"])
            self.assertEqual(queue.left(), [])

    def test_an_unknown_record_stops_a_message_and_no_other(self):
        queue = self.queue()
        with self.sender(queue, answer=success) as sender:
            sender.wait_line(STATUS)
            number = queue.message()
            queue.write(f"queue/todo/{number}", b"u1\0p2\0Fs@h\0Ta@local.example\0X\0")
            other = queue.todo(b"s@h", [b"b@local.example"])
            sender.wait_line(f"^warning: unknown record type in todo/{number}$")
            sender.wait_cleaned(f"foop/{other}")
            self.assertTrue(queue.there(f"todo/{number}") and queue.there(split("mess", number)))
            self.assertEqual(len(sender.requests), 1)

    def test_names_that_are_no_numbers_are_ignored(self):
        queue = self.queue()
        for name in ("todo/x", "todo/01", "todo/1x", "info/3/y", "mess/3/.z", "bounce/q"):
            queue.write("queue/" + name, b"junk", age=200_000)
        before = queue.left()
        with self.sender(queue, answer=success) as sender:
            number = queue.todo(b"s@h", [b"a@local.example"])
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(queue.left(), before)
            self.assertEqual(sender.cleaned, [f"todo/{number}", f"foop/{number}"])


class Restarts(Case):
    """Every combination of files is legal at a start."""

    def test_all_states_of_one_number_end_with_nothing_lost_and_nothing_left(self):
        queue = self.queue()
        queue.bounces_to()
        for mess in (True, False):
            for bits in range(32):
                with self.subTest(mess=mess, bits=f"{bits:05b}"):
                    self.one_state(queue, mess, *(bool(bits >> i & 1) for i in range(5)))
                for name in queue.left():
                    os.unlink(queue.file("queue/" + name))

    def one_state(self, queue, mess, todo, info, local, remote, bounce):
        content = b"Subject: x\n\nhi\n"
        bounced_before = len(queue.bounced())
        marker = queue.preprocessed(b"s@h", local=[b"Tmarker@local.example"], due=-5)
        number = queue.message(content)
        if not mess:
            os.unlink(queue.file("queue/" + split("mess", number)))
        if todo:
            queue.todo(b"s@h", [b"new@local.example"], content, number=number)
        lists = {"local": b"Tl@local.example\0" if local else None, "remote": b"Tr@y\0" if remote else None}
        if info:
            head = b"Fs@h\0" + commit_record(1, content, b"")
            queue.write("queue/" + split("info", number), head + check_record(head, *lists.values()), 0o600)
        for way, text in lists.items():
            if text:
                queue.write("queue/" + split(way, number), text, 0o600)
        if bounce:
            queue.write(f"queue/bounce/{number}", b"<z@y>:\nx\n\n", 0o600)
        before = [name for name in queue.left() if str(number) in name]
        with Sender(queue, answer=success) as sender:
            sender.wait_cleaned(f"foop/{marker}")
            expected = []
            if mess and todo:
                expected = [b"new@local.example"]
            elif mess and info:
                expected = [b"l@local.example"] * local + [b"r@y"] * remote
            if mess and (todo or info):
                sender.wait_cleaned(f"foop/{number}")
            elif todo:
                sender.wait_cleaned(f"todo/{number}")
            self.assertEqual(sender.stop(), 0)
            found = [r.recipient for r in sender.requests if r.number == number]
            self.assertEqual(sorted(found), sorted(expected))
            bounced = mess and info and not todo and bounce
            self.assertEqual(len(queue.bounced()) - bounced_before, int(bounced))
            # Young orphans stay; whatever belongs to a message went with it.
            left = before if not (todo or info and mess) else []
            self.assertEqual(queue.left(), left, sender.log(number))

    def test_a_message_that_is_away_for_a_while_is_not_forgotten(self):
        queue = self.queue()
        number = queue.preprocessed(b"s@h", local=[b"Tl@local.example"], remote=[b"Tr@y"], due=-5)
        for path in (split("mess", number), os.path.dirname(split("mess", number))):
            there, away = queue.file("queue/" + path), queue.file("queue/away")
            os.rename(there, away)
            marker = None if path != split("mess", number) else queue.preprocessed(b"s@h", local=[b"Tm@local.example"], due=-5)
            with Sender(queue, answer=success) as sender:
                sender.wait_line(STATUS)
                if marker:
                    sender.wait_cleaned(f"foop/{marker}")
                    sender.wait_line(f"^warning: no message beside {split('info', number)}: left alone$")
                self.assertEqual(sender.stop(), 0)
                self.assertEqual([r for r in sender.requests if r.number == number], [])
            os.rename(away, there)
        for way in ("local", "remote"):  # due now, not after the pause that follows a trouble
            os.utime(queue.file("queue/" + split(way, number)), (1, 1))
        with Sender(queue, answer=success) as sender:
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(sorted(r.recipient for r in sender.requests), [b"l@local.example", b"r@y"])
            self.assertEqual(sender.stop(), 0)

    def test_a_message_whose_bytes_changed_is_kept_aside(self):
        queue = self.queue()
        number = queue.preprocessed(b"s@h", local=[b"Ta@local.example"], remote=[b"Tx@y"], content=b"one\n")
        queue.write("queue/" + split("mess", number), b"two\n")
        good = queue.preprocessed(b"s@h", local=[b"Tb@local.example"])
        before = set(queue.left()) - {split("mess", good), split("info", good), split("local", good)}
        with self.sender(queue, answer=success) as sender:
            mess = split("mess", number)
            sender.wait_line(f"^alert: msg {number} kept aside: {mess} is not what was accepted$")
            sender.wait_cleaned(f"foop/{good}")
            self.assertEqual(sender.stop(), 0)
            self.assertEqual([r.recipient for r in sender.requests], [b"b@local.example"])
            self.assertEqual(sender.log().count("kept aside"), 1)
        self.assertEqual(set(queue.left()), before | {f"bounce/{number}.aside"})

    def damaged(self, queue, number, name):
        with self.sender(queue, answer=success) as sender:
            sender.wait_line(f"^alert: msg {number} kept aside: {name} is not what was accepted$")
            self.assertEqual(sender.stop(), 0)
            self.assertEqual(sender.requests, [])
        self.assertTrue(queue.there(split("mess", number)))

    def test_a_damaged_list_or_info_file_is_kept_aside(self):
        for victim, change in [("local", lambda b: b[:-3]), ("local", lambda b: b.replace(b"a@", b"c@")),
                               ("local", lambda b: b"\0" * len(b)), ("local", lambda b: b""),
                               ("info", lambda b: b[:-3]), ("info", lambda b: b.replace(b"s@h", b"t@h"))]:
            queue = self.queue()
            number = queue.preprocessed(b"s@h", local=[b"Ta@local.example", b"Tb@local.example"])
            name = split(victim, number)
            queue.write("queue/" + name, change(queue.read(name)), 0o600)
            self.damaged(queue, number, name)

    def test_a_damaged_envelope_is_kept_aside(self):
        for change in (lambda b: b[:-3], lambda b: b.replace(b"a@", b"c@"), lambda b: b + b"Tx@y\0",
                       lambda b: b.replace(b"u1000", b"x1000")):
            queue = self.queue()
            number = queue.todo(b"s@h", [b"a@local.example"])
            queue.write(f"queue/todo/{number}", change(queue.read(f"todo/{number}")))
            self.damaged(queue, number, f"todo/{number}")

    def test_an_envelope_beside_another_message_is_kept_aside(self):
        queue = self.queue()
        number = queue.todo(b"s@h", [b"a@local.example"], b"mine\n")
        queue.write("queue/" + split("mess", number), b"another's\n")
        self.damaged(queue, number, split("mess", number))

    def test_a_number_whose_message_was_removed_by_hand_is_a_new_messages(self):
        queue = self.queue()
        number = queue.todo(b"s@h", [b"a@local.example"], b"mine\n")
        queue.write("queue/" + split("mess", number), b"another's\n")
        with self.sender(queue, answer=success) as sender:
            sender.wait_line(f"^alert: msg {number} kept aside: ")
            for name in [f"intd/{number}", f"todo/{number}"]:
                os.unlink(queue.file("queue/" + name))
            # Gone and come again, as when the file system gives the inode a second time.
            os.rename(queue.file("queue/" + split("mess", number)), queue.file("queue/pid/new"))
            queue.write("queue/pid/new", b"new\n")
            os.rename(queue.file("queue/pid/new"), queue.file("queue/" + split("mess", number)))
            queue.todo(b"t@h", [b"b@local.example"], b"new\n", number=number)
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual([r.recipient for r in sender.requests], [b"b@local.example"])
            self.assertEqual(sender.stop(), 0)
        self.assertEqual(queue.left(), [])

    def test_a_queue_door_that_takes_no_connection_stops_nothing_else(self):
        queue = self.queue()
        queue.env["QMAILDOOR"] = "socket"
        queue.mkdir("run")
        with contextlib.ExitStack() as stack:
            door = stack.enter_context(socket.socket(socket.AF_UNIX))
            door.bind(queue.file("run/queue"))
            queue.own("run/queue")
            door.listen(0)
            while True:  # until its backlog is full
                caller = stack.enter_context(socket.socket(socket.AF_UNIX))
                caller.setblocking(False)
                try:
                    caller.connect(queue.file("run/queue"))
                except BlockingIOError:
                    break
            number = queue.preprocessed(b"s@h")
            queue.write(f"queue/bounce/{number}", b"<a@b>:\nno\n\n", 0o600)
            sender = stack.enter_context(self.sender(queue, answer=success))
            sender.wait_line("^warning: unable to start qmail-queue, will try later$")
            other = queue.todo(b"s@h", [b"a@local.example"])
            sender.wait_cleaned(f"foop/{other}")
            self.assertEqual(sender.stop(), 0)
        self.assertTrue(queue.there(f"bounce/{number}"))

    def test_a_bounce_with_the_wrong_message_is_not_sent(self):
        queue = self.queue()
        queue.bounces_to()
        number = queue.preprocessed(b"s@h", content=b"mine\n")
        queue.write(f"queue/bounce/{number}", b"<a@b>:\nno\n\n", 0o600)
        queue.write("queue/" + split("mess", number), b"another's\n")
        self.damaged(queue, number, split("mess", number))
        self.assertEqual(queue.bounced(), [])

    def test_files_of_an_old_qmail_send_are_taken_by_the_old_rule(self):
        queue = self.queue()
        number = queue.preprocessed(b"s@h", local=[b"Da@local.example", b"Tb@local.example"], record=False)
        with self.sender(queue, answer=success) as sender:
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual([r.recipient for r in sender.requests], [b"b@local.example"])

    def test_old_looking_leftovers_stay_while_their_hours_have_not_passed(self):
        # Access and modification times can be set back; the change time cannot, and it counts too.
        queue = self.queue()
        number = queue.message()
        queue.write(f"queue/intd/{number + 1}", b"u1\0", age=400_000)
        queue.age("queue/" + split("mess", number), 400_000)
        marker = queue.preprocessed(b"s@h", local=[b"Tmarker@local.example"])
        before = set(queue.left()) - {split(d, marker) for d in ("mess", "info", "local")}
        with self.sender(queue, answer=success) as sender:
            sender.wait_cleaned(f"foop/{marker}")
            self.assertEqual(sender.stop(), 0)
            self.assertEqual(sender.cleaned, [f"foop/{marker}"])
        self.assertEqual(set(queue.left()), before)

    def test_thousands_of_messages_are_taken_in_within_bounds(self):
        queue = self.queue(concurrencylocal="1\n")
        for i in range(3000):
            queue.preprocessed(b"s%d@h" % i, local=[b"Tr%d@local.example" % i], due=1000)
        first = queue.preprocessed(b"s@h", local=[b"Tnow@local.example"])
        with self.sender(queue) as sender:
            self.assertEqual(sender.wait_requests(1)[0].number, first)
            with open(f"/proc/{sender.process.pid}/status") as f:
                rss = int(re.search(r"VmHWM:\s*(\d+)", f.read()).group(1))
            self.assertLess(rss, 10 * 1024)


class Order(Case):
    """What a power cut may take must have been said again elsewhere: order of syncs, as system calls."""

    def trace(self, queue, answer):
        with Traced(self, queue, answer=answer) as traced:
            number = queue.todo(b"s@h", [b"a@local.example", b"b@local.example"])
            traced.sender.wait_cleaned(f"foop/{number}")
            traced.sender.stop()
        return traced.calls(number)

    def test_a_delivery_syncs_each_file_and_directory_before_what_it_replaces_goes(self):
        queue = self.queue(concurrencylocal="1\n")  # two recipients: the long way
        self.assertEqual(self.trace(queue, success), [
            "sync info/S/N", "sync info/S", "sync local/S/N", "sync local/S", "ask todo/N",
            "mark local/S/N", "mark local/S/N", "unlink local/S/N", "sync local/S", "unlink info/S/N", "ask foop/N",
        ])

    def test_a_start_makes_durable_what_an_earlier_life_removed_before_it_looks(self):
        queue = self.queue()
        number = queue.todo(b"s@h", [b"a@local.example"])
        with Traced(self, queue, answer=success) as traced:
            traced.sender.wait_cleaned(f"foop/{number}")
            traced.sender.stop()
            split_of = [str(i) if i != number % 23 else "S" for i in range(23)]
            start = ["ask ", *[f"sync {name}/{s}" for name in ("info", "local", "remote") for s in split_of], "sync bounce"]
            self.assertEqual(traced.all_calls(number)[:len(start)], start)

    def test_a_failure_is_on_disk_before_its_recipient_is_done(self):
        queue = self.queue(concurrencylocal="1\n")
        queue.bounces_to()
        self.assertEqual(self.trace(queue, lambda r: b"Dno")[5:], [
            "sync bounce/N", "sync bounce", "mark local/S/N", "sync bounce/N", "sync bounce", "mark local/S/N",
            "unlink local/S/N", "sync local/S", "unlink bounce/N", "sync bounce", "unlink info/S/N", "ask foop/N",
        ])


class Killed(Case):
    def test_kill_at_random_moments_loses_nobody(self):
        seed = int(os.environ.get("QMAIL_TEST_SEED", random.randrange(1 << 30)))
        rng = random.Random(seed)
        queue = self.queue(concurrencylocal="4\n", concurrencyremote="3\n")
        queue.bounces_to()
        fate, expected, delivered, failed = {}, set(), [], set()
        for i in range(40):
            recipients = [b"m%dr%d@%s" % (i, j, rng.choice([b"local.example", b"else.example"]))
                          for j in range(rng.randrange(0, 6))]
            for recipient in recipients:
                fate[recipient] = rng.choice([b"K", b"K", b"K", b"D"])
                (failed if fate[recipient] == b"D" else expected).add(recipient)
            queue.todo(b"s%d@h" % i, recipients)

        def answer(request):
            if fate[request.recipient] == b"K":
                delivered.append(request.recipient)
            return fate[request.recipient] + b"said\n"

        for _ in range(25):
            with self.sender(queue, answer=answer) as sender:
                goal = len(sender.lines) + rng.randrange(1, 40)
                try:
                    sender.wait(lambda: len(sender.lines) >= goal, "some lines", 1)
                except AssertionError:
                    break  # it has nothing left to say
                sender.kill(signal.SIGKILL)
                sender.process.wait()
        with self.sender(queue, answer=answer) as sender:
            sender.wait_line(STATUS)
            self.wait_ended(sender, queue)
            self.assertEqual(sender.stop(), 0)
        with self.subTest(seed=seed):
            self.assertEqual(set(delivered), expected)
            bounced = b"".join(message for _, message in queue.bounced())
            self.assertEqual({r for r in failed if b"<" + r + b">:\nsaid\n" not in bounced}, set())
            self.assertNotIn("kept aside", sender.log())


if __name__ == "__main__":
    unittest.main()
