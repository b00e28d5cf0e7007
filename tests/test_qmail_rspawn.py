"""qmail-rspawn from outside, with a program in the place of qmail-remote."""

import os
import unittest

from tests import harness, spawners
from tests.spawners import request, reports


class InAnOwnHome(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = harness.Home()

    @classmethod
    def tearDownClass(cls):
        cls.home.__exit__()

    def setUp(self):
        self.fakes = spawners.Fakes()
        self.addCleanup(self.fakes.remove)
        self.message = spawners.put_message(self.home, 457)

    def rspawn(self, *recipients, env=None):
        sent = b"".join(request(slot, self.message, "s@h", r) for slot, r in enumerate(recipients, 1))
        result = harness.run(["qmail-rspawn"], sent, {**self.fakes.env(self.home.env), **(env or {})})
        self.assertEqual((result.code, result.err, result.out[0]), (0, b"", spawners.SLOT_LIMIT))
        return reports(result.out)

    def one(self, script):
        self.fakes.script("qmail-remote", script)
        return self.rspawn("r@d.example")[1]

    def test_qmail_remote_gets_host_sender_and_recipient(self):
        report = self.one('printf "r\\0K"; pwd; for a; do echo "[$a]"; done; cat; printf "\\0"')
        mess = self.home.file("queue/mess")
        self.assertEqual(report, f"K{mess}\n[d.example]\n[s@h]\n[r@d.example]\nSubject: x\n\nbody\n".encode())

    def test_the_host_stands_behind_the_last_at_sign(self):
        self.fakes.script("qmail-remote", 'printf "r\\0K$1 $3\\0"')
        self.assertEqual(self.rspawn("a@b@c", "x@"), {1: b"Kc a@b@c", 2: b"K x@"})

    def test_its_reports_are_translated(self):
        for said, wanted in [
            ("r\\0K1.2.3.4 accepted message.\\n\\0", b"K1.2.3.4 accepted message.\n"),
            ("hno such user\\n\\0DGiving up.\\n\\0", b"Dno such user\nGiving up.\n"),
            ("slater\\n\\0DGiving up.\\n\\0", b"Zlater\nGiving up.\n"),
            ("r\\0Zlost it\\n\\0", b"Zlost it\n"),
            ("ZCould not connect.\\n\\0", b"ZCould not connect.\n"),
            ("DNo such host.\\n\\0", b"DNo such host.\n"),
            ("r\\0Kbut not to its end", b"Z"),
            ("r\\0", b"Z"),
            ("hcut off", b"Z"),
            ("", b"Zqmail-remote produced no output.\n"),
        ]:
            with self.subTest(said):
                self.assertEqual(self.one(f"printf '{said}'"), wanted)

    def test_any_other_end_is_temporary(self):
        for code in [1, 2, 99, 100, 101, 111, 126, 127, 255]:
            with self.subTest(code):
                self.assertEqual(self.one(f"printf 'r\\0Kyes\\0'; exit {code}"), b"ZUnable to run qmail-remote.\n")
        self.assertEqual(self.one("printf 'r\\0Kyes\\0'; kill -9 $$"), b"Zqmail-remote crashed.\n")

    def test_QMAILREMOTE_runs_instead_by_path_or_name(self):
        self.fakes.script("mine", 'printf "r\\0K$0\\0"')
        wanted = {1: b"K" + self.fakes.file("mine").encode()}
        self.assertEqual(self.rspawn("r@d", env={"QMAILREMOTE": self.fakes.file("mine")}), wanted)
        self.assertEqual(self.rspawn("r@d", env={"QMAILREMOTE": "mine"}), wanted)
        for missing in ("", "no-such-program", "/nonexistent"):
            with self.subTest(missing):
                found = self.rspawn("r@d", env={"QMAILREMOTE": missing})
                self.assertEqual(found, {1: b"ZUnable to run qmail-remote.\n"})

    def test_the_table_of_timeouts_is_emptied_at_start(self):
        self.home.write("queue/lock/tcpto", b"\x7f\0\0\x01\x05" + b"x" * 1019)
        self.rspawn()
        with open(self.home.file("queue/lock/tcpto"), "rb") as f:
            self.assertEqual(f.read(), bytes(1024))

    def test_an_enormous_report_is_bounded_and_the_verdict_temporary(self):
        self.assertEqual(self.one("head -c 1000000 /dev/zero | tr '\\0' r; printf '\\0Kyes\\0'"), b"Z")


if __name__ == "__main__":
    unittest.main()
