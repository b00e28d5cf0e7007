"""The sample of tests/crash/doors.py, and that its judges see what they are there to see."""

import os
import shutil
import unittest
import unittest.mock

from tests import harness, queue_rig
from tests.crash import doors_bodies, doors_local, doors_pipes, doors_smtp, runner
from tests.dnsserver import NXDOMAIN


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

    @unittest.skipUnless(doors_bodies.has_sink(), "smtp-sink is neither installed nor unpacked (scripts/test-packages)")
    def test_a_client_that_alters_a_body_or_keeps_it_is_seen(self):
        rows = doors_bodies.out(0, 1, 1000, self.script(f"""tr x y | {harness.program("qmail-remote")} "$@"\n"""))
        self.assertTrue(any(row.wrong.get("half") for row in rows), rows)
        rows = doors_bodies.out(0, 1, 5000, self.script(r"printf 'r\0K127.0.0.1 accepted message.\nRemote host said: 250 \0'"))
        self.assertTrue(any(row.wrong.get("lost") for row in rows), rows)

    def test_a_queue_that_alters_loses_or_takes_half_is_seen(self):
        rows = doors_bodies.inward(0, 1, 1000, self.script(f"""tr '\\377' y | {harness.program("qmail-smtpd")}\n"""))
        self.assertTrue(any(row.wrong.get("half") for row in rows) and any(row.wrong.get("lost") for row in rows), rows)
        [row] = doors_pipes.envelopes("direct", 3, self.script("exit 0"))
        self.assertTrue(row.wrong.get("lost") and row.wrong.get("code"), row)

    def test_numbers_read_half_way_and_two_replies_to_a_request_are_seen(self):
        [row] = doors_local.pop3_numbers(2, self.script(f"""perl -pe 's/^DELE ([0-9]+).*/DELE $1\\r/' | {harness.program("qmail-pop3d")} "$@"\n"""))
        self.assertTrue(row.wrong.get("code"), row)
        for answer in ("tr '\\0' + | tr -cd +", f"tr '\\n' '\\0' | {harness.program('qmail-clean')}"):
            [row] = doors_local.clean(2, self.script(answer + "\n"))
            self.assertTrue(row.wrong.get("code"), row)

    def test_a_spawner_that_reports_too_often_or_for_good_is_seen(self):
        for answer in (r"printf '\377'; cat", r"printf '\377\0Dno\n\0'"):
            [row] = doors_pipes.to_spawner(self.script(answer + "\n"), (), 2, 1, True)
            self.assertTrue(row.wrong.get("code"), row)

    def test_reports_that_qmail_send_hears_otherwise_are_seen(self):
        say = queue_rig.Sender.say
        with unittest.mock.patch.object(queue_rig.Sender, "say", lambda self, way, raw: say(self, way, raw.replace(b"Kdone", b"Ddone"))):
            [row] = doors_pipes.to_send("remote", 2, 1)
        self.assertTrue(row.wrong.get("code"), row)

    def test_a_resolver_that_takes_a_no_for_granted_is_seen(self):
        [row] = doors_pipes.dns({"an honest no": lambda q: [q.answer(rcode=NXDOMAIN)]})
        self.assertTrue(row.wrong.get("code"), row)

    def test_the_models_of_pipes(self):
        self.assertEqual(doors_pipes.spawner_model(b"\0a\0b\0c\0\1\0\0\0\2a\0b"), [0, 1])
        both = {0: b"a", 1: b"b"}
        self.assertEqual(doors_pipes.report_model(b"\0Kx\0\0D\0\5K\0\1x\0\1", both), ({b"a": b"K", b"b": b"Z"}, b"\1"))
        self.assertEqual([doors_pipes.envelope_code(e)[0] for e in (b"", b"F", b"F\0", b"F\0\0", b"Fa\0Tb\0\0x", b"T\0\0", b"F\0F\0\0")], [54, 54, 54, 0, 0, 91, 91])

    def test_the_model_of_a_server_is_strict(self):
        ask = doors_smtp.ASK
        for data, wanted in ((b"a\r\n.\r\n", [(b"a@in.test", (b"joe@test.example",), b"a\n")]), (b".\r\n", [(b"a@in.test", (b"joe@test.example",), b"")]),
                             (b"a\n.\r\n", []), (b"a\r\n.\n", []), (b"a\r.\r\n", []), (b"a\r\n.\r\r\n", []), (b"\r\n..\r\n.x\r\n.\r\n", [
                                 (b"a@in.test", (b"joe@test.example",), b"\n.\nx\n")])):
            self.assertEqual(doors_smtp.serve(ask + data)[1], wanted, data)


if __name__ == "__main__":
    unittest.main()
