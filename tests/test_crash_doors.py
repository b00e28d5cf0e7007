"""The sample of tests/crash/doors.py, and that its judges see what they are there to see."""

import os
import shutil
import unittest

from tests import harness
from tests.crash import doors_bodies, doors_smtp, runner


class Doors(unittest.TestCase):
    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base)

    def script(self, text):
        path = os.path.join(self.base, "program")
        with open(path, "w") as f:
            f.write("#!/bin/sh\n" + text)
        os.chmod(path, 0o755)
        return path

    def test_the_sample_finds_nothing(self):
        runner.sample(self, "doors")

    def test_a_server_that_takes_a_bare_lf_for_a_line_end_is_seen(self):
        lax = self.script(f"""perl -pe 's/\\r?\\n/\\r\\n/' | {harness.program("qmail-smtpd")}\n""")
        rows = doors_smtp.around_the_end(50, lax)
        self.assertTrue(any(row.wrong.get("stray") for row in rows), rows)
        self.assertTrue(any(row.wrong.get("code") for row in rows), rows)

    def test_a_client_that_alters_a_body_or_keeps_it_is_seen(self):
        rows = doors_bodies.out(0, 1, 1000, self.script(f"""tr x y | {harness.program("qmail-remote")} "$@"\n"""))
        self.assertTrue(any(row.wrong.get("half") for row in rows), rows)
        rows = doors_bodies.out(0, 1, 5000, self.script(r"printf 'r\0K127.0.0.1 accepted message.\nRemote host said: 250 \0'"))
        self.assertTrue(any(row.wrong.get("lost") for row in rows), rows)

    def test_the_model_of_a_server_is_strict(self):
        ask = doors_smtp.ASK
        for data, wanted in ((b"a\r\n.\r\n", [(b"a@in.test", (b"joe@test.example",), b"a\n")]), (b".\r\n", [(b"a@in.test", (b"joe@test.example",), b"")]),
                             (b"a\n.\r\n", []), (b"a\r\n.\n", []), (b"a\r.\r\n", []), (b"a\r\n.\r\r\n", []), (b"\r\n..\r\n.x\r\n.\r\n", [
                                 (b"a@in.test", (b"joe@test.example",), b"\n.\nx\n")])):
            self.assertEqual(doors_smtp.serve(ask + data)[1], wanted, data)


if __name__ == "__main__":
    unittest.main()
