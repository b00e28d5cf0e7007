"""Damaged files: what the disk or a hand changed is kept aside and said, never delivered altered.

Queue files are damaged while qmail-send is down: every bit of an envelope and of info, every cut, zeros.
users/cdb is damaged byte by byte under a running qmail-lspawn.
"""

import os
import re
import subprocess
import unittest

from tests import harness, spawners
from tests.faults import copies, left, message, nudge, start, wait_line
from tests.harness import Home, wait_for
from tests.queue_rig import Queue, Sender, split, whole_list

SENDER, LOCAL, REMOTE = b"s@sender.example", b"a@local.example", b"x@far.example"


def flips(whole, every_bit_before):
    """(what, damaged bytes): each bit up to a position, behind it one bit of each byte."""
    for at in range(len(whole)):
        for bit in range(8) if at < every_bit_before else [at % 8]:
            yield f"bit {bit} of byte {at}", whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1:]


def cuts(whole):
    for length in range(len(whole)):
        yield f"cut to {length}", whole[:length]


def others(whole):
    yield "zeros", bytes(len(whole))
    yield "a zero page behind it", whole + bytes(4096)
    yield "zeros from the middle on", whole[:len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    yield "twice", whole + whole


class Damage(unittest.TestCase):
    """qmail-send alone; the test plays the spawners, and judges what it would have delivered."""

    def judge(self, queue, damaged, slots=20):
        """Starts qmail-send on {number: (what, message, sender, recipients)} and waits until each is decided.

        Returns {number: True if delivered, exactly as it was; False if kept}. Anything else is a failure.
        """
        kept = re.compile(r"^alert: msg (\d+) kept aside: |^warning: trouble reading \w+/(?:\d+/)?(\d+); will try again")

        def decided(sender):
            over = {int(r.split("/")[1]) for r in sender.cleaned if r.startswith("foop/")}
            over |= {int(m[1] or m[2]) for m in map(kept.match, sender.lines) if m}
            return over >= damaged.keys()
        with Sender(queue, limits=(slots, slots), answer=lambda request: b"K") as sender:
            # Looking at all of it for each line would take longer than the work.
            wait_for(lambda: decided(sender), f"{len(damaged)} decisions")
            self.assertEqual(sender.stop(), 0)
        aside = {int(m[1] or m[2]) for m in map(kept.match, sender.lines) if m}
        requests = {}
        for r in sender.requests:
            requests.setdefault(r.number, []).append(r)
        verdict = {}
        for number, (what, text, envelope_sender, recipients) in damaged.items():
            with self.subTest(what):
                got = requests.get(number, [])
                if number in aside:
                    self.assertEqual(got, [])
                    self.assertTrue(queue.there(split("mess", number)))
                else:
                    self.assertEqual({r.sender for r in got}, {envelope_sender})
                    self.assertEqual(sorted(r.recipient for r in got), sorted(recipients))
                    self.assertEqual(text, None, "its message is not what was accepted")
                verdict[number] = number not in aside
        return verdict

    def queue(self):
        queue = Queue(locals="local.example\n", concurrencylocal="20\n")
        self.addCleanup(queue.__exit__)
        return queue

    def test_an_envelope_with_any_bit_changed_is_kept_or_says_the_same(self):
        queue = self.queue()
        damaged = {}
        probe = queue.todo(SENDER, [LOCAL, REMOTE], pull=False)
        whole = queue.read(f"todo/{probe}")
        record = whole.index(b"\0p4321 ", whole.index(b"\0T")) + 1
        for what, text in [*flips(whole, record + 7), *others(whole)]:
            number = queue.todo(SENDER, [LOCAL, REMOTE], pull=False)
            queue.write(f"queue/todo/{number}", text)
            damaged[number] = (what, None, SENDER, [LOCAL, REMOTE])
        verdict = self.judge(queue, damaged)
        # Uid and pid are only told in the log; everything from the sender on is the envelope.
        told = [*range(whole.index(b"F")), *range(record + 1, record + 5)]
        delivered = {damaged[n][0] for n, yes in verdict.items() if yes}
        self.assertLessEqual(delivered, {f"bit {bit} of byte {at}" for bit in range(8) for at in told})
        self.assertTrue(delivered)

    def test_an_envelope_cut_anywhere_loses_nobody(self):
        """Also cut exactly behind a recipient: its head says that a commit record is to come."""
        queue = self.queue()
        probe = queue.todo(SENDER, [LOCAL, REMOTE], pull=False)
        whole = queue.read(f"todo/{probe}")
        damaged = {}
        for what, text in cuts(whole):
            number = queue.todo(SENDER, [LOCAL, REMOTE], pull=False)
            queue.write(f"queue/todo/{number}", text)
            damaged[number] = (what, None, SENDER, [LOCAL, REMOTE])
        self.assertFalse(any(self.judge(queue, damaged).values()))

    def test_a_message_with_anything_changed_is_kept(self):
        queue = self.queue()
        content = b"Subject: x\n\nhi\n"
        damaged = {}
        for state in ("todo", "info"):
            for what, text in [*flips(content, len(content)), *cuts(content), *others(content)]:
                if state == "todo":
                    number = queue.todo(SENDER, [LOCAL], content, pull=False)
                else:
                    number = queue.preprocessed(SENDER, local=[b"T" + LOCAL], content=content)
                queue.write("queue/" + split("mess", number), text)
                damaged[number] = (f"{state}: {what}", text, SENDER, [LOCAL])
        self.assertFalse(any(self.judge(queue, damaged).values()))

    def test_info_with_anything_changed_is_kept(self):
        queue = self.queue()
        probe = queue.preprocessed(SENDER, local=[b"T" + LOCAL], remote=[b"T" + REMOTE])
        whole = queue.read(split("info", probe))
        end = whole.index(b"\0") + 1
        damaged = {}
        for what, text in [*flips(whole, end + 8), *cuts(whole), *others(whole)]:
            number = queue.preprocessed(SENDER, local=[b"T" + LOCAL], remote=[b"T" + REMOTE])
            queue.write("queue/" + split("info", number), text, 0o600)
            damaged[number] = (what, None, SENDER, [LOCAL, REMOTE])
        # Cut behind the sender it is what an old qmail-send writes; but that writes no marks behind the lists.
        self.assertFalse(any(self.judge(queue, damaged).values()))

    def test_a_recipient_list_with_anything_changed_is_kept_or_says_the_same(self):
        """What says who is done is a letter, and a mark by which it is believed. A mark lost is a second copy."""
        queue = self.queue()
        whole = whole_list(b"T" + LOCAL + b"\0D" + REMOTE + b"\0")
        second, marks = len(LOCAL) + 2, whole.rindex(b"\0") + 1
        damaged = {}
        for way in ("local", "remote"):
            for what, text in [*flips(whole, len(whole)), *cuts(whole), *others(whole)]:
                lists = {way: [b"T" + LOCAL, b"D" + REMOTE]}
                number = queue.preprocessed(SENDER, **lists)
                queue.write("queue/" + split(way, number), text, 0o600)
                again = what.endswith(f" of byte {marks + 1}")  # the mark of who was done
                damaged[number] = (f"{way}: {what}", None, SENDER, [LOCAL, REMOTE] if again else [LOCAL])
        delivered = {damaged[n][0] for n, yes in self.judge(queue, damaged).items() if yes}
        letters = {f"bit 4 of byte {at}" for at in (0, second)}  # T and D
        told = letters | {f"bit {bit} of byte {at}" for bit in range(8) for at in (marks, marks + 1)}
        self.assertEqual(delivered, {f"{way}: {what}" for way in ("local", "remote") for what in told})

    def test_lists_of_two_messages_that_changed_places_are_kept(self):
        """Although they are for the same people, and only who is done differs."""
        queue = self.queue()
        one = queue.preprocessed(SENDER, local=[b"T" + LOCAL, b"D" + REMOTE], content=b"one\n")
        two = queue.preprocessed(SENDER, local=[b"D" + LOCAL, b"T" + REMOTE], content=b"two\n")
        for number, other in ((one, two), (two, one)):
            queue.write("queue/" + split("local", number) + "~", queue.read(split("local", other)), 0o600)
        for number in (one, two):
            os.rename(queue.file("queue/" + split("local", number) + "~"), queue.file("queue/" + split("local", number)))
        damaged = {n: (str(n), None, SENDER, [LOCAL, REMOTE]) for n in (one, two)}
        self.assertFalse(any(self.judge(queue, damaged).values()))


class InTheRunningSystem(unittest.TestCase):
    def test_damage_is_kept_and_shown_and_all_else_is_delivered(self):
        home = Home()
        self.addCleanup(home.__exit__)
        home.dotqmail(".qmail-later", "|exit 111\n")
        env = {"QMAILDOOR": "direct"}
        start(home, env)
        for name in ("info", "local", "body"):
            home.inject(message(f"later {name}"), "a@b.example", ["joe-later@test.example"])
        wait_for(lambda: home.log().count("deferral: ") == 3, "three deferrals")
        self.assertEqual(home.stop(), 0)
        for name in ("todo", "mess", "swapped 1", "swapped 2", "sound"):
            self.assertEqual(home.inject(message(name), "a@b.example", ["joe@test.example"], env).code, 0)

        def number(name):
            for path in left(home, "mess"):
                with open(home.file("queue", path), "rb") as f:
                    if f"Subject: {name}\n".encode() in f.read():
                        return int(path.rsplit("/", 1)[1])
            raise AssertionError(name)
        numbers = {n: number(n) for n in ("later info", "later local", "later body", "todo", "mess", "swapped 1",
                                          "swapped 2", "sound")}

        def change(path, how):
            with open(home.file("queue", path), "rb") as f:
                text = f.read()
            with open(home.file("queue", path), "r+b") as f:
                f.truncate()
                f.write(how(text))

        def split_path(top, name):
            return f"{top}/{numbers[name] % 23}/{numbers[name]}"
        change(split_path("info", "later info"), lambda t: t.replace(b"a@b", b"a@c"))
        change(split_path("local", "later local"), lambda t: t.replace(b"later", b"other"))
        change(split_path("mess", "later body"), lambda t: t[:-10])
        change(f"todo/{numbers['todo']}", lambda t: t.replace(b"joe@", b"ann@"))
        change(split_path("mess", "mess"), lambda t: t.replace(b"begin", b"Begin"))
        one, two = (home.file("queue", split_path("mess", f"swapped {n}")) for n in (1, 2))
        with open(one, "rb") as a, open(two, "rb") as b:
            texts = a.read(), b.read()
        for path, text in ((one, texts[1]), (two, texts[0])):
            with open(path, "r+b") as f:
                f.write(text)
        home.dotqmail(".qmail-later", "./Maildir/\n")
        home.dotqmail(".qmail-other", "./Maildir/\n")
        start(home, env)
        wait_for(lambda: nudge(home) or home.log().count("kept aside") >= 7 and copies(home.messages(), "sound"),
                 "all of it to be decided")
        self.assertEqual([t for t in home.messages() if b"Subject: sound\n" not in t], [])
        for name, n in numbers.items():
            if name != "sound":
                wait_line(home, rf"^alert: msg {n} kept aside: \w+/(\d+/)?{n} is not what was accepted$")
                self.assertTrue(os.path.exists(home.file("queue", f"mess/{n % 23}/{n}")))
        listed = home.run(["qmail-qread"])
        self.assertEqual(listed.code, 0)
        for name, n in numbers.items():
            if name != "sound":
                self.assertRegex(listed.out.decode(), rf"(?m)#{n} .* kept aside|trouble with #{n}\b", name)
        # Put right by hand, it goes on: the next start judges anew.
        change(split_path("info", "later info"), lambda t: t.replace(b"a@c", b"a@b"))
        change(f"todo/{numbers['todo']}", lambda t: t.replace(b"ann@", b"joe@"))
        self.assertEqual(home.stop(), 0)
        start(home, env)
        wait_for(lambda: nudge(home) or len(home.messages()) == 3, "what was mended")
        for name in ("todo", "later info"):
            self.assertEqual(len(copies(home.messages(), name)), 1)
        self.assertEqual(home.log().count("kept aside"), 5)


class Users(unittest.TestCase):
    """users/cdb under a running qmail-lspawn, whose qmail-local is echo."""

    @classmethod
    def setUpClass(cls):
        cls.home = Home(users={"joe": "secret", "ann": "x"})
        cls.addClassCleanup(cls.home.__exit__)
        cls.fakes = spawners.Fakes()
        cls.addClassCleanup(cls.fakes.remove)
        for name, real in (("qmail-local", "/bin/echo"), ("qmail-getpw", "/bin/false")):
            os.symlink(real, cls.fakes.file(name))
        cls.message = spawners.put_message(cls.home, 457)
        with open(cls.home.file("users/cdb"), "rb") as f:
            cls.whole = f.read()

    def setUp(self):
        self.lspawn = subprocess.Popen([harness.program("qmail-lspawn"), "./Mailbox"], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, env=self.fakes.env(self.home.env), bufsize=0)
        self.addCleanup(self.end)
        self.assertEqual(self.lspawn.stdout.read(1), bytes([spawners.SLOT_LIMIT]))

    def end(self):
        self.lspawn.stdin.close()
        self.assertEqual(self.lspawn.wait(harness.TIMEOUT), 0)
        self.lspawn.stdout.close()

    def ask(self, recipient):
        """The report of one delivery, with the database as it is now."""
        self.lspawn.stdin.write(spawners.request(1, self.message, "s@h", recipient))
        report = b""
        while not report.endswith(b"\0"):
            report += self.lspawn.stdout.read(4096)
        return report[1:-1]

    def test_a_byte_changed_anywhere_is_a_temporary_trouble_or_a_legal_lookup(self):
        path = self.home.file("users/cdb")
        sound = self.ask("joe-x@test.example")
        place = self.home.file("home/joe")
        self.assertEqual(sound, f"K-- joe {place} joe-x - x test.example s@h ./Mailbox\n".encode())
        seen = set()
        with open(path, "r+b", buffering=0) as f:
            for at in range(len(self.whole)):
                # The head is 256 pairs of numbers, of which a lookup reads two or three: each pair once there.
                if at < 2048 and at % 8 not in (0, 4) and self.whole[at] == 0 and at % 11:
                    continue
                f.seek(at)
                f.write(bytes([self.whole[at] ^ 0xff]))
                report = self.ask("joe-x@test.example")
                f.seek(at)
                f.write(self.whole[at:at + 1])
                seen.add(report[:1])
                # A user, a home, the whole local part, the host and the sender: never another's letter, never D.
                self.assertRegex(report, rb"\A(Z.*\n|K-- [^\0]* joe-x [^\0]* test.example s@h ./Mailbox\n)\Z", f"byte {at}")
        self.assertEqual(seen, {b"Z", b"K"})
        self.assertEqual(self.ask("joe-x@test.example"), sound)

    def test_a_database_cut_anywhere_is_a_temporary_trouble(self):
        path = self.home.file("users/cdb")
        for length in [*range(0, 2048, 37), *range(2048, len(self.whole))]:
            with open(path, "wb") as f:
                f.write(self.whole[:length])
            report = self.ask("joe@test.example")
            if report[:1] == b"K":
                self.assertIn(b" joe ", report)  # found before the cut
            else:
                self.assertEqual(report, b"ZTrouble reading users/cdb in qmail-lspawn.\n", f"cut to {length}")
        for text in (bytes(len(self.whole)), b"\xff" * len(self.whole)):
            with open(path, "wb") as f:
                f.write(text)
            self.assertEqual(self.ask("joe@test.example"), b"ZTrouble reading users/cdb in qmail-lspawn.\n")
        self.home.write("users/cdb", self.whole)


if __name__ == "__main__":
    unittest.main()
