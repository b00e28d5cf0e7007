"""qmail-remote against servers that follow a script, honest and otherwise; reports byte for byte."""

import contextlib
import os
import socket
import struct
import tempfile
import threading
import time
import unittest

from tests import namespace
from tests.dnsserver import Nsd
from tests.harness import TIMEOUT, Home, free_port

ME = "test.example"
NO_CONNECTION = b"ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0"
BEST_IS_ME = (b"DSorry. Although I'm listed as a best-preference MX or A for that host,\n"
              b"it isn't in my control/locals file, so I don't treat it as local. (#5.4.6)\n\0")
MESSAGE = b"Subject: test\n\nhello\n"
ON_THE_WIRE = b"Subject: test\r\n\r\nhello\r\n"


class Gone(Exception):
    """The client closed the connection."""


class Talk:
    """The server's side of one connection."""

    def __init__(self, connection):
        self.connection = connection
        self.reader = connection.makefile("rb")

    def say(self, text):
        self.raw(text.encode("latin-1").replace(b"\n", b"\r\n") + b"\r\n")

    def raw(self, data):
        self.connection.sendall(data)

    def hear(self, expected):
        line = self.reader.readline()
        if not line:
            raise Gone(f"instead of {expected!r}")
        if line != expected.encode("latin-1") + b"\r\n":
            raise AssertionError(f"expected {expected!r}, got {line!r}")

    def body(self):
        """Up to CR LF . CR LF and nothing else, as it was sent."""
        lines = []
        while True:
            line = self.reader.readline()
            if not line.endswith(b"\n"):
                raise Gone("inside the body")
            if line == b".\r\n" and (not lines or lines[-1].endswith(b"\r\n")):
                return b"".join(lines)
            lines.append(line)

    def end(self):
        """Nothing more comes."""
        rest = self.reader.read()
        if rest:
            raise AssertionError(f"expected nothing more, got {rest!r}")


class Peer:
    """Serves connections on loopback with a script: a function of a Talk, or rows of `S:` (said), `C:`
    (must be heard), BODY, END (nothing more comes). What went wrong is raised at the end of the block."""

    def __init__(self, script, host="127.0.0.1", port=0, connections=1):
        self.script, self.connections, self.accepted, self.bodies, self.errors = script, connections, 0, [], []
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((host, port))
        self.socket.listen()
        self.host, self.port = host, self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def route(self):
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def _serve(self):
        for _ in range(self.connections):
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.accepted += 1
            connection.settimeout(TIMEOUT)
            try:
                with connection:
                    talk = Talk(connection)
                    with talk.reader:
                        self._play(talk)
            except BaseException as e:  # told to the test, whatever it is
                self.errors.append(e)

    def _play(self, talk):
        if callable(self.script):
            self.script(talk)
            return
        for row in self.script.strip("\n").split("\n"):
            row = row.strip()
            if row.startswith("S:"):
                talk.say(row[3:])
            elif row.startswith("C:"):
                talk.hear(row[3:])
            elif row == "BODY":
                self.bodies.append(talk.body())
            elif row == "END":
                talk.end()
            elif row:
                raise ValueError(row)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        if not self.accepted:
            self.socket.shutdown(socket.SHUT_RDWR)  # nobody came, and nobody will
        self.thread.join(TIMEOUT)
        self.socket.close()
        if self.errors and kind is None:
            raise self.errors[0]


PLAIN = """
    S: 220 peer.test ESMTP
    C: EHLO test.example
    S: 250 peer.test
    C: MAIL FROM:<s@test.example>
    S: 250 ok
    C: RCPT TO:<r@peer.test>
    S: 250 ok
    C: DATA
    S: 354 go ahead
    BODY
    S: 250 queued
    C: QUIT
    END
"""


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = cls.enterClassContext(Home(me=ME))

    def setUp(self):
        for name in ("smtproutes", "timeoutremote", "timeoutconnect", "helohost"):
            with contextlib.suppress(FileNotFoundError):
                self.home.remove_control(name)
        self.home.control("me", ME + "\n")
        self.table(b"")

    def table(self, records):
        self.home.write("queue/lock/tcpto", records.ljust(1024, b"\0"))

    def read_table(self):
        with open(self.home.file("queue/lock/tcpto"), "rb") as f:
            data = f.read()
        self.assertEqual(len(data), 1024)
        return [data[i:i + 16] for i in range(0, 1024, 16) if any(data[i:i + 16])]

    def remote(self, *args, message=MESSAGE, env=None):
        return self.home.remote(*args, message=message, env=env)

    def to_peer(self, peer, message=MESSAGE, sender="s@test.example", recipients=("r@peer.test",)):
        """Sends by way of a route to the peer."""
        self.home.control("smtproutes", f"peer.test:{peer.route}\n")
        return self.remote("peer.test", sender, *recipients, message=message)

    def talk(self, script, host="127.0.0.1", **more):
        with Peer(script, host=host) as peer:
            out = self.to_peer(peer, **more)
        self.assertEqual(peer.accepted, 1)
        return out, peer


class Dialogue(Case):
    def test_a_message_is_sent_and_the_answer_reported(self):
        out, peer = self.talk(PLAIN)
        self.assertEqual(out, b"r\0K127.0.0.1 accepted message.\nRemote host said: 250 queued\n\0")
        self.assertEqual(peer.bodies, [ON_THE_WIRE])

    def test_other_addresses_of_loopback_and_ipv6_are_named_in_the_report(self):
        out, _ = self.talk(PLAIN, host="127.0.0.9")
        self.assertEqual(out, b"r\0K127.0.0.9 accepted message.\nRemote host said: 250 queued\n\0")
        out, _ = self.talk(PLAIN, host="::1")
        self.assertEqual(out, b"r\0K::1 accepted message.\nRemote host said: 250 queued\n\0")

    def test_helo_is_said_where_ehlo_is_not_known(self):
        for code in ("500 what", "502-no\n502 such thing", "554 no"):
            def script(t):
                t.say("220-peer.test\n220 ready")
                t.hear("EHLO test.example")
                t.say(code)
                t.hear("HELO test.example")
                t.say("250 hi")
                t.hear("MAIL FROM:<s@test.example>")
                t.say("250 ok")
                t.hear("RCPT TO:<r@peer.test>")
                t.say("251 forwarded")
                t.hear("DATA")
                t.say("354 go")
                self.assertEqual(t.body(), ON_THE_WIRE)
                t.say("250-two\n250 lines")
                t.hear("QUIT")
                t.end()
            out, _ = self.talk(script)
            self.assertEqual(out, b"r\0K127.0.0.1 accepted message.\nRemote host said: 250-two\n250 lines\n\0")

    def test_the_name_said_is_helohost(self):
        self.home.control("helohost", "out.example  \n")
        out, _ = self.talk("S: 220 hi\nC: EHLO out.example\nS: 450 later\nC: QUIT\nEND")
        self.assertEqual(out, b"ZConnected to 127.0.0.1 but my name was rejected.\nRemote host said: 450 later\n\0")

    def test_recipients_are_reported_one_by_one(self):
        out, peer = self.talk("""
            S: 220 hi
            C: EHLO test.example
            S: 250 hi
            C: MAIL FROM:<>
            S: 250 ok
            C: RCPT TO:<a@peer.test>
            S: 250 ok
            C: RCPT TO:<b@peer.test>
            S: 550 no b
            C: RCPT TO:<c@peer.test>
            S: 451 not now
            C: RCPT TO:<d@peer.test>
            S: 250 ok
            C: DATA
            S: 354 go
            BODY
            S: 250 ok
            C: QUIT
            END
        """, sender="", recipients=[f"{c}@peer.test" for c in "abcd"])
        self.assertEqual(out, b"r\0h127.0.0.1 does not like recipient.\nRemote host said: 550 no b\n\0"
                              b"s127.0.0.1 does not like recipient.\nRemote host said: 451 not now\n\0r\0"
                              b"K127.0.0.1 accepted message.\nRemote host said: 250 ok\n\0")
        self.assertEqual(peer.bodies, [ON_THE_WIRE])

    def test_without_an_accepted_recipient_no_data_is_sent(self):
        start = "S: 220 hi\nC: EHLO test.example\nS: 250 hi\nC: MAIL FROM:<s@test.example>\nS: 250 ok\n"
        refusals = {"550": (b"h", b"D"), "450": (b"s", b"Z"), "354": (b"s", b"Z")}
        for code, (recipient, message) in refusals.items():
            out, _ = self.talk(start + f"C: RCPT TO:<r@peer.test>\nS: {code} no\nC: QUIT\nEND")
            self.assertEqual(out, recipient + b"127.0.0.1 does not like recipient.\nRemote host said: " +
                             code.encode() + b" no\n\0" + message + b"Giving up on 127.0.0.1.\n\0")

    def test_addresses_are_quoted_and_domains_are_not(self):
        with Peer(r"""
            S: 220 hi
            C: EHLO test.example
            S: 250 hi
            C: MAIL FROM:<"a b"@x y>
            S: 250 ok
            C: RCPT TO:<"\"."@peer.test>
            S: 250 ok
            C: RCPT TO:<nodomain>
            S: 250 ok
            C: RCPT TO:<"ä"@peer.test>
            S: 550 no
            C: DATA
            S: 354 go
            BODY
            S: 250 ok
            C: QUIT
            END
        """.replace(r"\xe4", "\xe4")) as peer:
            self.home.control("smtproutes", f"peer.test:{peer.route}\n")
            out = self.remote("peer.test", "a b@x y", '".@peer.test', "nodomain", b"\xe4@peer.test")
        self.assertTrue(out.startswith(b"r\0r\0h"), out)

    def test_an_address_with_a_line_break_is_refused_and_never_sent(self):
        out, _ = self.talk(PLAIN, recipients=["x\nRSET\r\n@peer.test", "r@peer.test", "y@peer.test\r\nDATA"])
        bad = b"hSorry, that address has a line break in it. (#5.1.3)\n\0"
        self.assertEqual(out, bad + b"r\0" + bad + b"K127.0.0.1 accepted message.\nRemote host said: 250 queued\n\0")
        out, _ = self.talk("S: 220 hi\nC: EHLO test.example\nS: 250 hi\nC: QUIT\nEND", sender="s@x\n")
        self.assertEqual(out, b"DSorry, the sender's address has a line break in it. (#5.1.7)\n\0")

    def test_the_text_of_a_reply_is_cut_at_5000_bytes_and_cleaned(self):
        def script(t):
            t.raw(b"554-a\0b\rc\r\n" + b"554-" + b"x" * 4000 + b"\r\n554 " + b"y" * 4000 + b"\r\n")
            t.hear("QUIT")
        out, _ = self.talk(script)
        said = (b"554-a?bc\n554-" + b"x" * 4000 + b"\n554 " + b"y" * 4000)[:5000]
        self.assertEqual(out, b"ZConnected to 127.0.0.1 but greeting failed.\nRemote host said: " + said + b"\n\0")


class WrongAnswers(Case):
    """At every stage, with and without pipelining: D only for 5xx, K only for 2xx after the dot, no
    answer without three digits that agree."""

    STAGES = ("greeting", "ehlo", "mail", "rcpt", "data", "dot")
    GOOD = {"greeting": b"220 hi\r\n", "mail": b"250 ok\r\n", "rcpt": b"250 ok\r\n", "data": b"354 go\r\n",
            "dot": b"250 queued\r\n"}
    HEARD = {"ehlo": "EHLO test.example", "mail": "MAIL FROM:<s@test.example>", "rcpt": "RCPT TO:<r@peer.test>",
             "data": "DATA"}
    PERMANENT = [b"554 no\r\n", b"500\r\n", b"550-no\r\n550 way\r\n", b"599 no\n"]
    TEMPORARY = [b"421 no\r\n", b"450-\r\n450 later\r\n"]
    NONSENSE = [b"650 ok\r\n", b"150 ok\r\n", b"050 ok\r\n", b"999 no\r\n", b"xyz\r\n", b"25\r\n", b"\r\n", b"2500 ok\r\n",
                b"250ok\r\n", b"55\r\n", b"5x0 no\r\n", b"-55 no\r\n", b" 550 no\r\n", b"250-ok\r\n550 no\r\n",
                b"550-no\r\n250 ok\r\n", b"550-no\r\nno\r\n", b"\xb2\xb5\xb0 ok\r\n", b"ok\r\n"]
    BROKEN = [b"", b"2", b"250 ok", b"550 no", b"250-more\r\n", b"550-more\r\n"]

    def play(self, stage, wrong, pipelining, hang_up):
        def script(t):
            group = []  # commands heard whose answers are held back
            for now in self.STAGES:
                if now == "dot":
                    body = t.body()
                    self.bodies.append(body)
                elif now != "greeting":
                    if pipelining and now in ("mail", "rcpt", "data"):
                        if now == "mail":
                            for command in ("mail", "rcpt", "data"):
                                t.hear(self.HEARD[command])
                    else:
                        t.hear(self.HEARD[now])
                good = self.GOOD.get(now) or (b"250-hi\r\n250 PIPELINING\r\n" if pipelining else b"250 hi\r\n")
                if now != stage:
                    group.append(good)
                else:
                    group.append(wrong)
                    if hang_up:
                        t.raw(b"".join(group))
                        return
                if not (pipelining and now in ("mail", "rcpt")):
                    t.raw(b"".join(group))
                    group = []
                if now == stage == "ehlo" and wrong[:1] == b"5":
                    t.hear("HELO test.example")
                    t.raw(wrong)
        self.bodies = []
        with Peer(script) as peer:
            out = self.to_peer(peer)
            peer.thread.join(TIMEOUT)
            # Going away is the right thing after a wrong answer, and no failure of the script.
            peer.errors = [e for e in peer.errors
                           if not isinstance(e, (Gone, ConnectionError)) and "QUIT" not in str(e)]
        return out

    def expected(self, stage, wrong):
        said = wrong.replace(b"\r", b"")
        said = b"Remote host said: " + said + (b"" if said.endswith(b"\n") else b"\n") + b"\0"
        permanent = wrong in self.PERMANENT
        letter = b"D" if permanent else b"Z"
        accepted = b"r\0"
        return {
            "greeting": b"ZConnected to 127.0.0.1 but greeting failed.\n" + said,
            "ehlo": b"ZConnected to 127.0.0.1 but my name was rejected.\n" + said,
            "mail": letter + b"Connected to 127.0.0.1 but sender was rejected.\n" + said,
            "rcpt": (b"h" if permanent else b"s") + b"127.0.0.1 does not like recipient.\n" + said + letter +
                    b"Giving up on 127.0.0.1.\n\0",
            "data": accepted + letter + b"127.0.0.1 failed on DATA command.\n" + said,
            "dot": accepted + letter + b"127.0.0.1 failed after I sent the message.\n" + said,
        }[stage]

    def check(self, stage, wrong, pipelining, expected, hang_up=False):
        out = self.play(stage, wrong, pipelining, hang_up)
        self.assertEqual(out, expected, f"{wrong!r} to {stage}, pipelining {pipelining}")

    def first_line(self, wrong):
        """What is reported of nonsense: up to the line that made it nonsense."""
        lines = wrong.split(b"\r\n")
        if wrong[:4] in (b"250-", b"550-"):
            return wrong
        return lines[0] + b"\r\n"

    def each(self, answers):
        for pipelining in (False, True):
            for stage in self.STAGES:
                for wrong in answers:
                    yield stage, wrong, pipelining

    def test_refusals_for_good_are_permanent_except_of_the_greeting_and_the_name(self):
        for stage, wrong, pipelining in self.each(self.PERMANENT):
            self.check(stage, wrong, pipelining, self.expected(stage, wrong))
            if pipelining and stage == "rcpt":
                self.assertEqual(self.bodies, [b""], "the data nobody gets is empty")
            if stage == "mail":
                self.assertEqual(self.bodies, [], "without a sender nothing is sent")

    def test_refusals_for_now_are_temporary(self):
        for stage, wrong, pipelining in self.each(self.TEMPORARY):
            self.check(stage, wrong, pipelining, self.expected(stage, wrong))

    def test_what_is_no_reply_is_temporary(self):
        for stage, wrong, pipelining in self.each(self.NONSENSE):
            self.check(stage, wrong, pipelining, self.expected(stage, self.first_line(wrong)))

    def test_a_yes_at_the_wrong_place_is_no_yes(self):
        for pipelining in (False, True):
            for stage, wrong in (("greeting", b"250 ok\r\n"), ("greeting", b"221 bye\r\n"), ("ehlo", b"220 hi\r\n"),
                                 ("mail", b"354 go\r\n"), ("rcpt", b"354 go\r\n"), ("data", b"250 ok\r\n"),
                                 ("data", b"220 ok\r\n"), ("dot", b"354 go\r\n")):
                self.check(stage, wrong, pipelining, self.expected(stage, wrong))

    def test_a_connection_that_breaks_is_temporary_and_after_the_dot_maybe_a_duplicate(self):
        for stage, wrong, pipelining in self.each(self.BROKEN):
            accepted = b"r\0" if stage in ("data", "dot") else b""
            duplicate = b"Possible duplicate! " if stage == "dot" else b""
            self.check(stage, wrong, pipelining, accepted + b"ZConnected to 127.0.0.1 but connection died. " + duplicate + b"(#4.4.2)\n\0", hang_up=True)

    def test_a_refusal_followed_by_hanging_up_is_still_a_refusal(self):
        for stage, wrong, pipelining in self.each([b"554 no\r\n", b"421 bye\r\n"]):
            if stage == "ehlo" and wrong[:1] == b"5" or stage == "rcpt" and pipelining:
                continue  # there something else was to be said first
            self.check(stage, wrong, pipelining, self.expected(stage, wrong), hang_up=True)

    def test_an_answer_before_its_question_is_not_taken_for_one(self):
        say = b"ZConnected to 127.0.0.1 but it spoke out of turn.\nRemote host said: 250 early\n\0"

        def before_the_dot(t):
            t.say("220 hi")
            t.hear("EHLO test.example")
            t.say("250 hi")
            t.hear("MAIL FROM:<s@test.example>")
            t.say("250 ok")
            t.hear("RCPT TO:<r@peer.test>")
            t.say("250 ok")
            t.hear("DATA")
            t.say("354 go\n250 early")
            with self.assertRaises((Gone, ConnectionError)):
                t.body()
        out, _ = self.talk(before_the_dot)
        self.assertEqual(out, b"r\0" + say)

        def refused_before_the_dot(t):
            t.say("220 hi")
            t.hear("EHLO test.example")
            t.say("250 hi")
            t.hear("MAIL FROM:<s@test.example>")
            t.say("250 ok")
            t.hear("RCPT TO:<r@peer.test>")
            t.say("250 ok")
            t.hear("DATA")
            t.say("354 go\n552 too much of it")
            with contextlib.suppress(Gone, ConnectionError):
                t.body()
        for message in (MESSAGE, b"x" * 20_000_000 + b"\n"):
            out, _ = self.talk(refused_before_the_dot, message=message)
            self.assertEqual(out, b"r\0D127.0.0.1 failed after I sent the message.\nRemote host said: 552 too much of it\n\0")

        def twice_to_mail(t):
            t.say("220 hi")
            t.hear("EHLO test.example")
            t.say("250 hi")
            t.hear("MAIL FROM:<s@test.example>")
            t.say("250 ok\n250 early")
            t.reader.read()
        out, _ = self.talk(twice_to_mail)
        self.assertEqual(out, say)

    def test_endless_replies_and_endless_lines_end(self):
        for flood in (b"220-more\r\n" * 1000, b"2" * 8192):
            def script(t):
                with contextlib.suppress(ConnectionError):
                    for _ in range(100_000):
                        t.raw(flood)
                    self.fail("nobody stopped the flood")
            out, _ = self.talk(script)
            self.assertTrue(out.startswith(b"ZConnected to 127.0.0.1 but greeting failed.\nRemote host said: 22"), out[:80])
            self.assertLess(len(out), 5100)


class Extensions(Case):
    @staticmethod
    def offering(*extensions):
        return "250-peer.test\n" + "".join(f"250-{e}\n" for e in extensions) + "250 HELP"

    def test_mail_every_rcpt_and_data_go_out_together_where_pipelining_is_offered(self):
        recipients = [f"r{n}@peer.test" for n in range(20)]

        def script(t):
            t.say("220 hi")
            t.hear("EHLO test.example")
            t.say(self.offering("PIPELINING"))
            t.hear("MAIL FROM:<s@test.example>")
            for r in recipients:
                t.hear(f"RCPT TO:<{r}>")
            t.hear("DATA")  # all of it before the first answer
            t.say("250 ok\n" + "\n".join("550 no" if n % 2 else "250 ok" for n in range(20)) + "\n354 go")
            self.assertEqual(t.body(), ON_THE_WIRE)
            t.say("250 queued")
            t.hear("QUIT")
            t.end()
        out, _ = self.talk(script, recipients=recipients)
        self.assertEqual(out, (b"r\0h127.0.0.1 does not like recipient.\nRemote host said: 550 no\n\0" * 10) +
                         b"K127.0.0.1 accepted message.\nRemote host said: 250 queued\n\0")

    def test_many_recipients_go_out_in_bursts_that_cannot_block(self):
        recipients = ["r" * 200 + f"{n}@peer.test" for n in range(500)]

        def script(t):
            t.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            t.say("220 hi")
            t.hear("EHLO test.example")
            t.say(self.offering("PIPELINING"))
            t.hear("MAIL FROM:<s@test.example>")
            t.say("250 ok")
            for r in recipients:
                t.hear(f"RCPT TO:<{r}>")
                t.say("250-" + "x" * 500 + "\n250 ok")
            t.hear("DATA")
            t.say("354 go")
            t.body()
            t.say("250 queued")
            t.hear("QUIT")
            t.end()
        out, _ = self.talk(script, recipients=recipients)
        self.assertEqual(out, b"r\0" * 500 + b"K127.0.0.1 accepted message.\nRemote host said: 250 queued\n\0")

    def test_data_accepted_without_a_recipient_gets_a_lone_dot_and_is_a_failure(self):
        def script(t):
            t.say("220 hi")
            t.hear("EHLO test.example")
            t.say(self.offering("PIPELINING"))
            for line in ("MAIL FROM:<s@test.example>", "RCPT TO:<a@peer.test>", "RCPT TO:<b@peer.test>", "DATA"):
                t.hear(line)
            t.say("250 ok\n550 a\n550 b\n354 go")
            t.hear(".")
            t.say("250 queued what exactly?")
            t.hear("QUIT")
            t.end()
        out, _ = self.talk(script, recipients=["a@peer.test", "b@peer.test"])
        self.assertEqual(out, b"h127.0.0.1 does not like recipient.\nRemote host said: 550 a\n\0"
                              b"h127.0.0.1 does not like recipient.\nRemote host said: 550 b\n\0"
                              b"DGiving up on 127.0.0.1.\n\0")

    def test_data_accepted_after_the_sender_was_refused_gets_nothing(self):
        def script(t):
            t.say("220 hi")
            t.hear("EHLO test.example")
            t.say(self.offering("PIPELINING"))
            for line in ("MAIL FROM:<s@test.example>", "RCPT TO:<r@peer.test>", "DATA"):
                t.hear(line)
            t.say("550 not you\n250 ok\n354 go")
            t.end()
        out, _ = self.talk(script)
        self.assertEqual(out, b"DConnected to 127.0.0.1 but sender was rejected.\nRemote host said: 550 not you\n\0")

    def mail_line(self, message, *extensions):
        """The MAIL command that a message gets."""
        lines = []

        def script(t):
            t.say("220 hi")
            t.hear("EHLO test.example")
            t.say(self.offering(*extensions))
            lines.append(t.reader.readline())
            t.say("450 enough")
            t.hear("QUIT")
            t.end()
        self.talk(script, message=message)
        return lines[0]

    def test_size_is_the_size_on_the_wire(self):
        self.assertEqual(self.mail_line(b"a\n.b\r\n\nc\rd\n", "SIZE 1000"), b"MAIL FROM:<s@test.example> SIZE=15\r\n")
        self.assertEqual(self.mail_line(b"", "size"), b"MAIL FROM:<s@test.example> SIZE=0\r\n")
        self.assertEqual(self.mail_line(b"x\n"), b"MAIL FROM:<s@test.example>\r\n")

    def test_body_is_said_only_of_messages_that_need_it(self):
        self.assertEqual(self.mail_line(b"\xe4\n", "8BITMIME"), b"MAIL FROM:<s@test.example> BODY=8BITMIME\r\n")
        self.assertEqual(self.mail_line(b"x\n", "8bitmime"), b"MAIL FROM:<s@test.example>\r\n")
        self.assertEqual(self.mail_line(b"\xe4\n"), b"MAIL FROM:<s@test.example>\r\n")
        self.assertEqual(self.mail_line(b"\xe4\n", "SIZE", "8BITMIME"),
                         b"MAIL FROM:<s@test.example> SIZE=3 BODY=8BITMIME\r\n")

    def test_whether_a_message_is_too_large_is_for_the_server_to_say(self):
        def script(t):
            t.say("220 hi")
            t.hear("EHLO test.example")
            t.say(self.offering("SIZE 22"))
            t.hear("MAIL FROM:<s@test.example> SIZE=24")
            t.say("552 too large")
            t.hear("QUIT")
            t.end()
        out, _ = self.talk(script)
        self.assertEqual(out, b"DConnected to 127.0.0.1 but sender was rejected.\nRemote host said: 552 too large\n\0")
        self.assertEqual(self.mail_line(MESSAGE, "SIZE 23"), b"MAIL FROM:<s@test.example> SIZE=24\r\n")


class Bodies(Case):
    def wire(self, message):
        out, peer = self.talk(PLAIN, message=message)
        self.assertTrue(out.startswith(b"r\0K"), out)
        return peer.bodies[0]

    def test_line_ends_become_cr_lf_once(self):
        self.assertEqual(self.wire(b"a\nb\r\nc\n"), b"a\r\nb\r\nc\r\n")
        self.assertEqual(self.wire(b""), b"")

    def test_dots_are_doubled_after_every_line_end_we_send(self):
        self.assertEqual(self.wire(b".\n..x\n.\r\na.b\n"), b"..\r\n...x\r\n..\r\na.b\r\n")
        self.assertEqual(self.wire(b"a\r.\r\nQUIT\r\n"), b"a\r\n..\r\nQUIT\r\n")
        self.assertEqual(self.wire(b"a\n.\rb\r\r.\n"), b"a\r\n..\r\nb\r\n\r\n..\r\n")

    def test_every_byte_but_cr_arrives(self):
        everything = bytes(b for b in range(256) if b != 13) * 700 + b"\n"
        self.assertEqual(self.wire(everything).replace(b"\r\n", b"\n"), everything)

    def test_a_large_message_of_dots_arrives(self):
        message = b".\n..\n.x\n" * 100_000
        wire = self.wire(message)
        self.assertEqual(b"\n".join(line[1:] if line[:1] == b"." else line for line in wire.split(b"\r\n")), message)

    def test_a_partial_last_line_is_refused_before_anything_is_said(self):
        for message in (b"x", b"a\nb", b"a\n\r", b"a\r"):
            with Peer(PLAIN) as peer:
                out = self.to_peer(peer, message=message)
                self.assertEqual(out, b"DSMTP cannot transfer messages with partial final lines. (#5.6.2)\n\0")
            self.assertEqual(peer.accepted, 0)

    def from_a_pipe(self, peer, message):
        self.home.control("smtproutes", f"peer.test:{peer.route}\n")
        return self.home.run(["qmail-remote", "peer.test", "s@test.example", "r@peer.test"], stdin=message).out

    def test_a_message_from_a_pipe_is_sent_too(self):
        with Peer(PLAIN) as peer:
            self.assertTrue(self.from_a_pipe(peer, MESSAGE).startswith(b"r\0K"))
        self.assertEqual(peer.bodies, [ON_THE_WIRE])

    def test_a_partial_last_line_from_a_pipe_is_never_ended(self):
        def script(t):
            for line in PLAIN.strip().split("\n")[:9]:
                line = line.strip()
                t.say(line[3:]) if line[0] == "S" else t.hear(line[3:])
            with self.assertRaises(Gone):
                t.body()
        with Peer(script) as peer:
            out = self.from_a_pipe(peer, b"a\nb")
        self.assertEqual(out, b"r\0DSMTP cannot transfer messages with partial final lines. (#5.6.2)\n\0")

    def test_a_message_is_sent_from_where_descriptor_0_stands(self):
        with Peer(PLAIN) as peer, tempfile.TemporaryFile() as f:
            f.write(b"skipped\n" + MESSAGE)
            f.flush()
            os.lseek(f.fileno(), 8, os.SEEK_SET)
            self.home.control("smtproutes", f"peer.test:{peer.route}\n")
            out = self.home.run(["qmail-remote", "peer.test", "s@test.example", "r@peer.test"], fds={0: f.fileno()}).out
        self.assertTrue(out.startswith(b"r\0K"), out)
        self.assertEqual(peer.bodies, [ON_THE_WIRE])

    def test_a_message_that_cannot_be_read_is_temporary(self):
        directory = os.open("/", os.O_RDONLY)
        try:
            out = self.home.run(["qmail-remote", "h.test", "s", "r"], fds={0: directory}).out
        finally:
            os.close(directory)
        self.assertEqual(out, b"ZUnable to read message. (#4.3.0)\n\0")


class Timeouts(Case):
    def test_a_silent_server_is_left(self):
        self.home.control("timeoutremote", "1\n")
        out, _ = self.talk("S: 220 hi\nC: EHLO test.example\nEND")
        self.assertEqual(out, b"ZConnected to 127.0.0.1 but connection died. (#4.4.2)\n\0")

    def test_silence_after_the_dot_may_mean_a_duplicate(self):
        self.home.control("timeoutremote", "1\n")
        out, _ = self.talk(PLAIN.replace("S: 250 queued\n    C: QUIT\n", ""))
        self.assertEqual(out, b"r\0ZConnected to 127.0.0.1 but connection died. Possible duplicate! (#4.4.2)\n\0")

    def test_a_server_that_drips_is_left_although_each_byte_is_in_time(self):
        self.home.control("timeoutremote", "1\n")

        def script(t):
            with contextlib.suppress(ConnectionError):
                for byte in b"220-" + b"x" * 3000:
                    t.raw(bytes([byte]))
                    time.sleep(0.1)  # the event waited for is the other side's patience
                self.fail("it listened to the end")
        out, _ = self.talk(script)
        self.assertEqual(out, b"ZConnected to 127.0.0.1 but connection died. (#4.4.2)\n\0")

    def test_a_server_that_stops_reading_is_left(self):
        self.home.control("timeoutremote", "1\n")
        done = threading.Event()

        def script(t):
            for line in PLAIN.strip().split("\n")[:9]:
                line = line.strip()
                t.say(line[3:]) if line[0] == "S" else t.hear(line[3:])
            done.wait(TIMEOUT)
        with Peer(script) as peer:
            out = self.to_peer(peer, message=b"x" * 70 + b"\n" + b"y" * 60_000_000 + b"\n")
            done.set()
        self.assertEqual(out, b"r\0ZConnected to 127.0.0.1 but connection died. (#4.4.2)\n\0")


class Tcpto(Case):
    """queue/lock/tcpto, and the two tools on it."""

    IP = bytes([127, 0, 0, 1])

    @staticmethod
    def record(ip, count, ago=0):
        return ip + bytes([count, 0, 0, 0]) + struct.pack("<I", int(time.time()) - ago) + bytes(4)

    @contextlib.contextmanager
    def deaf(self):
        """A port that takes no connection and says nothing: its backlog is full."""
        with socket.socket() as s, contextlib.ExitStack() as stack:
            s.bind(("127.0.0.1", 0))
            s.listen(0)
            for _ in range(3):
                c = stack.enter_context(socket.socket())
                c.setblocking(False)
                c.connect_ex(s.getsockname())
            yield s.getsockname()[1]

    def test_a_timeout_is_counted(self):
        self.home.control("timeoutconnect", "1\n")
        with self.deaf() as port:
            self.home.control("smtproutes", f":127.0.0.1:{port}\n")
            before = int(time.time())
            self.assertEqual(self.remote("h.test", "s", "r@h.test"), NO_CONNECTION)
        [record] = self.read_table()
        self.assertEqual(record[:8], self.IP + b"\1\0\0\0")
        self.assertLessEqual(before, struct.unpack("<I", record[8:12])[0])

    def test_an_address_that_timed_out_twice_is_left_alone(self):
        with Peer(PLAIN) as peer:
            self.table(self.record(self.IP, 2, 60))
            self.assertEqual(self.to_peer(peer), NO_CONNECTION)
        self.assertEqual(peer.accepted, 0)
        self.assertEqual(self.read_table()[0][4], 2)

    def test_after_an_hour_and_a_half_it_is_tried_again_and_success_clears_it(self):
        self.table(self.record(self.IP, 9, 98 * 64))
        out, _ = self.talk(PLAIN)
        self.assertTrue(out.startswith(b"r\0K"), out)
        self.assertEqual(self.read_table()[0][4], 0)

    def test_a_refused_connection_clears_the_record(self):
        self.table(bytes(16) + self.record(self.IP, 1))
        self.home.control("smtproutes", f":127.0.0.1:{free_port()}\n")
        self.assertEqual(self.remote("h.test", "s", "r@h.test"), NO_CONNECTION)
        self.assertEqual(self.read_table()[0][4], 0)

    def test_ipv6_addresses_are_never_in_the_table(self):
        self.table(self.record(bytes(4), 5) + self.record(bytes([0, 0, 0, 1]), 5))
        out, _ = self.talk(PLAIN, host="::1")
        self.assertTrue(out.startswith(b"r\0K"), out)
        self.assertEqual([r[4] for r in self.read_table()], [5, 5])

    def test_without_the_table_everything_is_tried(self):
        os.unlink(self.home.file("queue/lock/tcpto"))
        out, _ = self.talk(PLAIN)
        self.assertTrue(out.startswith(b"r\0K"), out)
        self.assertFalse(os.path.exists(self.home.file("queue/lock/tcpto")))

    def test_a_damaged_table_harms_nobody(self):
        for damage in (b"", b"\xff" * 7, os.urandom(1024), b"\xff" * 5000):
            self.home.write("queue/lock/tcpto", damage)
            out, _ = self.talk(PLAIN)
            self.assertTrue(out.startswith(b"r\0K"), out)


class Invocation(Case):
    def test_too_few_arguments_are_an_improper_invocation(self):
        for args in ((), ("host",), ("host", "sender")):
            self.assertEqual(self.remote(*args), b"DI (qmail-remote) was invoked improperly. (#5.3.5)\n\0")

    def test_a_home_that_is_not_there_is_temporary(self):
        self.assertEqual(self.remote("h", "s", "r", env={"QMAIL_HOME": "/nonexistent"}),
                         b"ZUnable to switch to home directory. (#4.3.0)\n"
                         b"unable to use home /nonexistent: file does not exist\n\0")

    def test_control_files_in_trouble_are_temporary(self):
        trouble = b"ZUnable to read control files. (#4.3.0)\n"
        self.home.remove_control("me")
        self.assertEqual(self.remote("h", "s", "r"), trouble + b"control/helohost and control/me are missing\n\0")
        for name in ("helohost", "smtproutes", "timeoutremote", "timeoutconnect"):
            self.home.control("me", ME + "\n")
            with contextlib.suppress(FileNotFoundError):
                self.home.remove_control(name)
            os.mkdir(self.home.file("control", name))
            try:
                said = f"unable to read control/{name}: is a directory (#4.3.0)\n\0".encode()
                self.assertEqual(self.remote("h", "s", "r"), trouble + said)
            finally:
                os.rmdir(self.home.file("control", name))

    def test_timeouts_of_any_size_are_taken(self):
        for value in ("0", "1", "99999999999999999999999", "soon"):
            self.home.control("timeoutremote", value)
            self.home.control("timeoutconnect", value)
            out, _ = self.talk(PLAIN)
            self.assertTrue(out.startswith(b"r\0K"), out)

    def test_a_route_that_says_nothing_usable_is_temporary(self):
        for value in ("relay:", "relay:0", "relay:x", "relay:65536", "[::1", "[name]:25", ":2525"):
            self.home.control("smtproutes", f"h.test:{value}\n")
            self.assertEqual(self.remote("h.test", "s", "r"),
                             b"ZUnable to read control files. (#4.3.0)\n"
                             b"no usable relay in control/smtproutes: " + value.encode() + b"\n\0")

    def test_an_address_of_ours_is_not_a_host_to_send_to(self):
        for host in ("[127.0.0.1]", "127.0.0.1", "[IPv6:::1]", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]"):
            self.assertEqual(self.remote(host, "s", "r"), BEST_IS_ME, host)

    def test_routes_are_looked_up_from_the_whole_host_down_to_the_empty_key(self):
        with Peer(PLAIN, connections=4) as peer:
            for host, key in (("peer.test", "PEER.test"), ("a.b.peer.test", ".peer.test"), ("x", ""), ("[1.2.3.4]", ".4]")):
                self.home.control("smtproutes", f"other.test:127.0.0.1:1\n{key}:{peer.route}\n")
                self.assertTrue(self.remote(host, "s@test.example", "r@peer.test").startswith(b"r\0K"), host)

class Alone(Case):
    """With a DNS of our own and port 25: the choice of hosts."""

    ZONE = {"z.test": """
first MX 10 two
first MX 20 three
two A 127.0.0.2
three A 127.0.0.3
both A 127.0.0.2
both A 127.0.0.3
even MX 5 two
even MX 5 three
six MX 10 h6
h6 AAAA 2001:db8::25
dual A 127.0.0.2
dual AAAA 2001:db8::25
me MX 10 local
me MX 20 two
local A 127.0.0.1
backup MX 10 two
backup MX 20 local
backup MX 30 three
alias CNAME first
half MX 5 gone.broken.test.
half MX 10 two
goes MX 5 missing
goes MX 10 nowhere
goes MX 20 two
nowhere TXT "no address"
relay A 127.0.0.4
""", "broken.test": None}

    ACCEPT = PLAIN.replace("C: RCPT TO:<r@peer.test>", "C: RCPT TO:<r@z.test>")

    def setUp(self):
        super().setUp()
        if namespace.here():
            self.dns = self.enterContext(Nsd(self.ZONE))

    def send(self, host):
        return self.remote(host, "s@test.example", "r@z.test", env={"DNSCACHEIP": self.dns.address})

    def accepted_by(self, host, ip):
        self.assertEqual(self.send(host), f"r\0K{ip} accepted message.\nRemote host said: 250 queued\n\0".encode())

    def peer(self, host, script=None, port=25, connections=1):
        return Peer(script or self.ACCEPT, host=host, port=port, connections=connections)

    @namespace.alone
    def test_the_best_exchanger_gets_the_message(self):
        with self.peer("127.0.0.2") as two, self.peer("127.0.0.3") as three:
            self.accepted_by("first.z.test", "127.0.0.2")
        self.assertEqual((two.accepted, three.accepted), (1, 0))

    @namespace.alone
    def test_when_the_best_takes_no_connection_the_next_gets_it(self):
        with self.peer("127.0.0.3", connections=2):
            self.accepted_by("first.z.test", "127.0.0.3")
            self.accepted_by("alias.z.test", "127.0.0.3")

    @namespace.alone
    def test_no_other_address_is_tried_after_a_connection(self):
        for refusal, report in (("S: 554 go away\nC: QUIT\nEND", b"ZConnected to 127.0.0.2 but greeting failed.\nRemote host said: 554 go away\n\0"),
                                ("S: 421 busy\nC: QUIT\nEND", b"ZConnected to 127.0.0.2 but greeting failed.\nRemote host said: 421 busy\n\0"),
                                (lambda t: None, b"ZConnected to 127.0.0.2 but connection died. (#4.4.2)\n\0")):
            with self.peer("127.0.0.2", refusal), self.peer("127.0.0.3") as three:
                self.assertEqual(self.send("first.z.test"), report)
            self.assertEqual(three.accepted, 0)

    @namespace.alone
    def test_equals_share_the_work(self):
        refuse = "S: 450 count\nC: QUIT\nEND"
        with self.peer("127.0.0.2", refuse, connections=1000) as two, self.peer("127.0.0.3", refuse, connections=1000) as three:
            for _ in range(200):
                self.send("even.z.test")
                if two.accepted and three.accepted:
                    break
            self.assertTrue(two.accepted and three.accepted)
            for p in (two, three):
                p.socket.shutdown(socket.SHUT_RDWR)

    @namespace.alone
    def test_a_host_without_exchangers_is_its_own(self):
        with self.peer("127.0.0.2"):
            self.accepted_by("two.z.test", "127.0.0.2")
        with self.peer("127.0.0.3"):
            self.accepted_by("both.z.test", "127.0.0.3")

    @namespace.alone
    def test_ipv6_addresses_are_used(self):
        with self.peer("::"):
            self.accepted_by("six.z.test", "2001:db8::25")
        with self.peer("::"):
            self.accepted_by("[IPv6:2001:db8::77]", "2001:db8::77")

    @namespace.alone
    def test_ipv4_is_tried_before_ipv6_and_ipv6_after_it(self):
        with self.peer("127.0.0.2"):
            self.accepted_by("dual.z.test", "127.0.0.2")
        # A dual-stack listener would answer for 127.0.0.2 too: this one is for IPv6 only.
        with socket.socket(socket.AF_INET6) as s:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("::", 25))
            peer = Peer(self.ACCEPT, port=free_port())
            peer.socket.close()
            peer.socket = s
            s.listen()
            with peer:
                self.accepted_by("dual.z.test", "2001:db8::25")

    @namespace.alone
    def test_mail_for_which_we_are_the_best_exchanger_goes_nowhere(self):
        with self.peer("127.0.0.2") as two, self.peer("127.0.0.1") as one:
            self.assertEqual(self.send("me.z.test"), BEST_IS_ME)
            self.assertEqual(self.send("local.z.test"), BEST_IS_ME)
        self.assertEqual((one.accepted, two.accepted), (0, 0))

    @namespace.alone
    def test_only_better_exchangers_than_ourselves_are_tried(self):
        with self.peer("127.0.0.3") as three, self.peer("127.0.0.1") as one:
            self.assertEqual(self.send("backup.z.test"), NO_CONNECTION)
        self.assertEqual((one.accepted, three.accepted), (0, 0))
        with self.peer("127.0.0.2"):
            self.accepted_by("backup.z.test", "127.0.0.2")

    @namespace.alone
    def test_an_exchanger_that_cannot_be_looked_up_does_not_stop_the_others(self):
        with self.peer("127.0.0.2", connections=2):
            self.accepted_by("half.z.test", "127.0.0.2")
            self.accepted_by("goes.z.test", "127.0.0.2")

    @namespace.alone
    def test_an_address_literal_needs_no_dns(self):
        with self.peer("127.0.0.2", connections=2):
            self.accepted_by("[127.0.0.2]", "127.0.0.2")
            self.accepted_by("127.0.0.2", "127.0.0.2")

    @namespace.alone
    def test_a_route_by_name_uses_addresses_only_and_may_lead_to_ourselves(self):
        self.home.control("smtproutes", ":local.z.test:2525\nfirst.z.test:\nrelay.test:relay.z.test\nmx.test:first.z.test\n")
        with self.peer("127.0.0.1", port=2525):
            self.accepted_by("anything.test", "127.0.0.1")
        with self.peer("127.0.0.2"):
            self.accepted_by("first.z.test", "127.0.0.2")
        with self.peer("127.0.0.4"):
            self.accepted_by("relay.test", "127.0.0.4")
        self.assertEqual(self.send("mx.test"), b"DSorry, I couldn't find a mail exchanger or IP address. (#5.4.4)\n\0")

    @namespace.alone
    def test_an_address_left_alone_is_passed_over(self):
        self.table(Tcpto.record(bytes([127, 0, 0, 2]), 2, 10))
        with self.peer("127.0.0.2") as two, self.peer("127.0.0.3"):
            self.accepted_by("first.z.test", "127.0.0.3")
        self.assertEqual(two.accepted, 0)

    @namespace.alone
    def test_a_network_that_is_not_there_is_no_connection(self):
        self.assertEqual(self.send("[192.0.2.1]"), NO_CONNECTION)


if __name__ == "__main__":
    unittest.main()
