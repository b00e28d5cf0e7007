"""qmail-rspawn from outside, with a program in the place of qmail-remote."""

import fcntl
import os
import struct
import termios
import unittest

from tests import harness, spawners
from tests.spawners import request, reports


def unread(fd):
    """Bytes in a pipe."""
    return struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0]


def sleeps(pid):
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rsplit(")", 1)[1].split()[0] == "S"


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
        spawners.forget(self.home)
        result = harness.run(["qmail-rspawn"], sent, {**self.fakes.env(self.home.env), **(env or {})})
        self.assertEqual((result.code, result.err, result.out[0]), (0, b"", spawners.SLOT_LIMIT))
        return reports(result.out)

    TOGETHER = {"QMAILBURST": "1"}
    # Says who it was asked for, and who else was.
    ECHO = 'host=$1 sender=$2; shift 2; for r; do printf "r\\0"; done; printf "K$host $sender $*\\0"'

    def together(self, *requests, env=None, code=None):
        """The reports on requests of (message, sender, recipient) that come at once, with slots from 0."""
        self.fakes.script("qmail-remote", code or self.ECHO)
        sent = b"".join(request(slot, *r) for slot, r in enumerate(requests))
        env = {**self.fakes.env(self.home.env), **(self.TOGETHER if env is None else env)}
        spawners.forget(self.home)
        result = harness.run(["qmail-rspawn"], sent, env)
        self.assertEqual((result.code, result.err), (0, b""))
        return result.out[0], reports(result.out)

    def test_what_comes_together_for_one_host_shares_a_qmail_remote(self):
        m, n = self.message, spawners.put_message(self.home, 458)
        limit, found = self.together((m, "s@h", "a@d"), (m, "s@h", "b@D"), (m, "s@h", "c@e"), (m, "s@h", "d@d"),
                                     (m, "t@h", "e@d"), (n, "t@h", "f@d"), (n, "t@h", "g@d"))
        self.assertEqual(limit, 255)
        self.assertEqual([r.decode() for _, r in sorted(found.items())], [
            "Kd s@h a@d b@D", "Kd s@h a@d b@D", "Ke s@h c@e", "Kd s@h d@d", "Kd t@h e@d", "Kd t@h f@d g@d",
            "Kd t@h f@d g@d"])

    def test_slots_of_two_bytes(self):
        m = self.message
        self.fakes.script("qmail-remote", self.ECHO)
        slots = (0, 1, 256, 258, 2047, 2048, 258)
        sent = b"".join(slot.to_bytes(2, "little") + request(0, m, "s@h", f"r{slot}@d")[1:] for slot in slots)
        for env, wanted in (({}, None), ({"QMAILREMOTE": "qmail-remote"}, b"x")):
            spawners.forget(self.home)
            result = harness.run(["qmail-rspawn"], sent, {**self.fakes.env(self.home.env), "QMAILBURST": "2", **env})
            self.assertEqual(result.code, 0)
            if wanted:
                self.assertEqual(result.out[:1], wanted)
                continue
            self.assertEqual(result.out[:7], b"\xff\xffwide\0")
            found, rest = [], result.out[7:]
            while rest:
                end = rest.index(b"\0", 2)
                found.append((int.from_bytes(rest[:2], "little"), rest[2:end]))
                rest = rest[end + 1:]
            who = b"Kd s@h r0@d r1@d r256@d r258@d r2047@d"
            self.assertEqual(sorted(found), [(0, who), (1, who), (256, who), (258, who), (258, b"ZInternal error: delnum in use. (#4.3.5)\n"),
                                             (2047, who), (2048, b"ZInternal error: delnum too big. (#4.3.5)\n")])

    def test_without_the_announcement_or_with_QMAILREMOTE_each_has_its_own(self):
        m = self.message
        for env in ({}, {"QMAILBURST": "0"}, {"QMAILBURST": ""}, {**self.TOGETHER, "QMAILREMOTE": "qmail-remote"}):
            with self.subTest(env):
                limit, found = self.together((m, "s@h", "a@d"), (m, "s@h", "b@d"), env=env)
                self.assertEqual((limit, found), (120, {0: b"Kd s@h a@d", 1: b"Kd s@h b@d"}))

    def test_each_recipient_gets_its_own_verdict(self):
        m, everybody = self.message, ["a@d", "b@d", "c@d"]
        for said, wanted in [
            (r"r\0hno\n\0slater\n\0Kdone\n\0", [b"Kdone\n", b"Dno\n", b"Zlater\n"]),
            (r"r\0r\0hno\n\0Zlost it\n\0", [b"Zlost it\n", b"Zlost it\n", b"Dno\n"]),
            (r"hno\n\0hno\n\0hno\n\0Dgiving up\n\0", [b"Dno\ngiving up\n"] * 3),
            (r"hno\n\0Zdied\n\0", [b"Dno\n", b"Zdied\n", b"Zdied\n"]),
            (r"Zno connection\n\0", [b"Zno connection\n"] * 3),
            (r"Dno such host\n\0", [b"Dno such host\n"] * 3),
            (r"r\0r\0Kdone\n\0", [b"Kdone\n", b"Kdone\n", b"Zdone\n"]),
            (r"r\0r\0r\0Kcut o", [b"Z"] * 3),
            ("", [b"Zqmail-remote produced no output.\n"] * 3),
        ]:
            with self.subTest(said):
                found = self.together(*[(m, "s@h", r) for r in everybody], code=f"printf '{said}'")[1]
                self.assertEqual([r for _, r in sorted(found.items())], wanted)
        for code, wanted in (("exit 1", b"ZUnable to run qmail-remote.\n"), ("kill -9 $$", b"Zqmail-remote crashed.\n")):
            found = self.together(*[(m, "s@h", r) for r in everybody], code=code)[1]
            self.assertEqual(found, dict.fromkeys(range(3), wanted))

    def test_a_hundred_travel_together_and_not_more(self):
        m = self.message
        _, found = self.together(*[(m, "s@h", f"r{i}@d") for i in range(250)])
        sizes = [len(report.split()) - 2 for _, report in sorted(found.items())]
        self.assertEqual(sizes, [100] * 200 + [50] * 50)
        _, found = self.together(*[(m, "s@h", "x" * 9000 + f"{i}@d") for i in range(5)])  # bytes count, too
        sizes = [len(report.split()) - 2 for _, report in sorted(found.items())]
        self.assertEqual(sizes, [3, 3, 3, 2, 2])

    def test_a_hundred_long_refusals_reach_their_recipients(self):
        m = self.message
        _, found = self.together(*[(m, "s@h", f"r{i}@d") for i in range(100)], code=(
            'shift 2; for r; do printf "h$r "; head -c 5000 /dev/zero | tr "\\0" x; printf "\\0"; done; printf "Dgiving up\\0"'))
        self.assertEqual(found, {i: b"Dr%d@d " % i + b"x" * 5000 + b"giving up" for i in range(100)})

    def test_a_wrong_request_among_them_stands_alone(self):
        m = self.message
        sent = [request(1, m, "s@h", "a@d"), request(1, m, "s@h", "b@d"), request(255, m, "s@h", "c@d"),
                request(2, m, "s@h", "no-host"), request(3, m, "s@h", "d@d"), request(4, "1/999999", "s@h", "e@d"),
                request(5, "1/999999", "s@h", "f@d")]
        self.fakes.script("qmail-remote", self.ECHO)
        spawners.forget(self.home)
        result = harness.run(["qmail-rspawn"], b"".join(sent), {**self.fakes.env(self.home.env), **self.TOGETHER})
        said = sorted(result.out[1:-1].split(b"\0"))
        self.assertEqual(said, sorted([
            b"\x01ZInternal error: delnum in use. (#4.3.5)\n", b"\x01Kd s@h a@d d@d",
            b"\xffZInternal error: delnum too big. (#4.3.5)\n", b"\x02DSorry, address must include host name. (#5.1.3)\n",
            b"\x03Kd s@h a@d d@d", b"\x04Zqmail-spawn unable to open message. (#4.3.0)\n",
            b"\x05Zqmail-spawn unable to open message. (#4.3.0)\n"]))

    def test_half_a_request_is_waited_for(self):
        self.fakes.script("qmail-remote", self.ECHO)
        spawners.forget(self.home)
        line = harness.Line.start(["qmail-rspawn"], {**self.fakes.env(self.home.env), **self.TOGETHER})
        with line:
            whole = b"".join(request(i, self.message, "s@h", f"r{i}@d") for i in range(3))
            self.assertEqual(line.reader.read(1), b"\xff")
            line.send(whole[:-3])
            # It has read that: the pipe is empty, and nobody was started.
            fd = line.process.stdin.fileno()
            harness.wait_for(lambda: not unread(fd), "it to read")
            harness.wait_for(lambda: sleeps(line.process.pid), "it to wait")
            self.assertEqual(spawners.children_of(line.process.pid), [])
            line.send(whole[-3:])
            self.assertEqual(reports(b"\xff" + line.finish().out), dict.fromkeys(range(3), b"Kd s@h r0@d r1@d r2@d"))

    def test_of_those_who_travelled_together_only_who_has_not_got_it_is_served_again(self):
        self.fakes.script("qmail-remote", "shift 2; echo $* >>$FAKES/ran; until [ -e $FAKES/go ]; do sleep 0.01; done; "
                                          r"""for r; do case $r in f*) printf 's\0';; *) printf 'r\0';; esac; done; printf 'K\0'""")
        whole = b"".join(request(i, self.message, "s@h", r + "@d") for i, r in enumerate(("a", "fa", "b")))
        more = request(3, self.message, "s@h", "c@d")
        spawners.forget(self.home)
        env = {**self.fakes.env(self.home.env), **self.TOGETHER}
        line = harness.Line.start(["qmail-rspawn"], env)
        with line:
            line.send(whole)
            harness.wait_for(lambda: os.path.exists(self.fakes.file("ran")), "the delivery to run")
            line.process.kill()
            line.process.wait()
        line = harness.Line.start(["qmail-rspawn"], env)
        with line:
            line.send(whole + more)
            harness.wait_for(lambda: b"c@d" in self.ran(), "who is new to be served at once")
            with open(self.fakes.file("go"), "w"):
                pass
            found = reports(line.finish().out)
        before = b"Kdelivered before a restart\n"
        self.assertEqual(found, {0: before, 1: b"Z", 2: before, 3: b"K"})
        self.assertEqual(self.ran(), b"a@d fa@d b@d\nc@d\nfa@d\n")

    def ran(self):
        with open(self.fakes.file("ran"), "rb") as f:
            return f.read()

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
