"""Damaged files: what the disk or a hand changed is kept aside and said, never delivered altered.

Queue files of the running system; every damage to every kind of them is in tests/crash/damage.py. users/cdb is damaged
byte by byte under a running qmail-lspawn.
"""

import os
import subprocess
import unittest

from tests import harness, spawners
from tests.faults import copies, left, message, nudge, start, wait_line
from tests.harness import Home, wait_for

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
