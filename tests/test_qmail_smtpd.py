"""qmail-smtpd from outside: golden dialogues, limits, smuggling, troubles, deadlines, memory."""

import fcntl
import itertools
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import termios
import time
import unittest

from tests import harness
from tests.harness import Home, Line, dialogue, run, wait_for

# In the place of qmail-queue: keeps what it is given, then ends as it is told.
CAPTURE = """#!/bin/sh
cat >"$CAPTURE_DIR/message.$$"
cat <&1 >"$CAPTURE_DIR/envelope.$$"
[ -s "$CAPTURE_DIR/envelope.$$" ] || exit 54
[ -z "$CAPTURE_TEXT" ] || printf "$CAPTURE_TEXT" >&6
exit "${CAPTURE_EXIT:-0}"
"""

GREETED = b"220 test.example ESMTP\r\n"
BARE_LF = b"451 See https://cr.yp.to/docs/smtplf.html.\r\n"
HEAD = b"HELO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<joe@test.example>\r\nDATA\r\n"
RSS_MAX = 3 * 1024  # KiB, whatever a client sends


def peak_memory(pid):
    """The most that was ever resident, in KiB."""
    with open(f"/proc/{pid}/status") as f:
        return int(re.search(r"VmHWM:\s+(\d+) kB", f.read()).group(1))


HOME = None  # one for all tests; each finds its control files as mkhome made them
CONTROLS = {}


def setUpModule():
    global HOME
    HOME = Home()
    unittest.addModuleCleanup(HOME.__exit__)
    for name in os.listdir(HOME.file("control")):
        with open(HOME.file("control", name), "rb") as f:
            CONTROLS[name] = f.read()


class SmtpdTest(unittest.TestCase):
    def setUp(self):
        """Control files as mkhome made them, and nothing captured."""
        self.home = HOME
        self.queue = HOME.write("capture.sh", CAPTURE, 0o755)
        for name in os.listdir(self.home.file("control")):
            path = self.home.file("control", name)
            if os.path.isdir(path):
                os.rmdir(path)
            elif name not in CONTROLS:
                os.unlink(path)
        for name, content in CONTROLS.items():
            self.home.control(name, content)
        self.kept = self.home.file("kept")
        shutil.rmtree(self.kept, ignore_errors=True)
        os.mkdir(self.kept)
        if os.geteuid() == 0:
            os.chown(self.kept, *harness.owner()[1:])

    def env(self, more=None):
        return {**self.home.env, "QMAILQUEUE": self.queue, "CAPTURE_DIR": self.kept, **(more or {})}

    def smtpd(self, text, env=None, **more):
        return run(["qmail-smtpd"], text, self.env(env), **more)

    def start(self, env=None):
        line = Line.start(["qmail-smtpd"], self.env(env))
        self.addCleanup(line.close)
        return line

    def play(self, text, env=None):
        """A whole dialogue, ended by the client; returns the Result."""
        line = self.start(env)
        dialogue(line, text)
        return line.finish()

    def captured(self):
        """(message, envelope) of each message with a whole envelope, in no particular order."""
        all = []
        for name in os.listdir(self.kept):
            if name.startswith("envelope."):
                with open(os.path.join(self.kept, name), "rb") as f:
                    envelope = f.read()
                with open(os.path.join(self.kept, name.replace("envelope", "message")), "rb") as f:
                    message = f.read()
                if envelope.endswith(b"\0\0"):
                    all.append((message, envelope))
        return all

    def only(self):
        """The one captured message without its Received line, and its envelope."""
        [(message, envelope)] = self.captured()
        received = re.match(rb"Received: from [^\n]*\n  by [^\n]*\n", message)
        self.assertTrue(received, message)
        return message[received.end():], envelope


class Dialogues(SmtpdTest):
    def test_after_helo_every_reply_has_the_bytes_of_qmail(self):
        self.home.control("badmailfrom", "bad@x\n")
        r = self.play("""
            S: 220 test.example ESMTP
            C: HELO client.example
            S: 250 test.example
            C: NOOP
            S: 250 ok
            C: VRFY joe
            S: 252 not told here; a message would find out
            C: HELP
            S: 214 see the manual page qmail-smtpd(8)
            C: RCPT TO:<joe@test.example>
            S: 503 MAIL first (#5.5.1)
            C: DATA
            S: 503 MAIL first (#5.5.1)
            C: MAIL FROM:<bad@x>
            S: 250 ok
            C: RCPT TO:<joe@test.example>
            S: 553 sorry, your envelope sender is in my badmailfrom list (#5.7.1)
            C: MAIL FROM:<a@b>
            S: 250 ok
            C: DATA
            S: 503 RCPT first (#5.5.1)
            C: RCPT TO:<joe@elsewhere.example>
            S: 553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)
            C: RCPT TO:<@nowhere>
            S: 555 syntax error (#5.5.4)
            C: RCPT TO:<joe@test.example>
            S: 250 ok
            C: RSET
            S: 250 flushed
            C: DATA
            S: 503 MAIL first (#5.5.1)
            C: FOO
            S: 502 unimplemented (#5.5.1)
            C: MAIL FROM:<a@b>
            S: 250 ok
            C: RCPT TO:<joe@test.example>
            S: 250 ok
            C: DATA
            S: 354 go ahead
            C: Subject: hello
            C:
            C: ..dot
            C: .
            S: 250 ok ... qp ...
            C: QUIT
            S: 221 test.example
        """)
        self.assertEqual((r.code, r.out, r.err), (0, b"", b""))
        self.assertEqual(self.only(), (b"Subject: hello\n\n.dot\n", b"Fa@b\0Tjoe@test.example\0\0"))

    def test_after_ehlo_extensions_are_announced_and_replies_carry_their_status(self):
        self.home.control("badmailfrom", "bad@x\n")
        r = self.play("""
            S: 220 test.example ESMTP
            C: EHLO client.example
            S: 250-test.example
            S: 250-PIPELINING
            S: 250-8BITMIME
            S: 250-SIZE 0
            S: 250 ENHANCEDSTATUSCODES
            C: NOOP
            S: 250 2.0.0 ok
            C: VRFY joe
            S: 252 2.0.0 not told here; a message would find out
            C: HELP
            S: 214 2.0.0 see the manual page qmail-smtpd(8)
            C: RCPT TO:<joe@test.example>
            S: 503 5.5.1 MAIL first (#5.5.1)
            C: MAIL FROM:<bad@x>
            S: 250 2.1.0 ok
            C: RCPT TO:<joe@test.example>
            S: 553 5.7.1 sorry, your envelope sender is in my badmailfrom list (#5.7.1)
            C: RSET
            S: 250 2.0.0 flushed
            C: FOO
            S: 502 5.5.1 unimplemented (#5.5.1)
            C: MAIL FROM:<a@b> BODY=8BITMIME SIZE=100
            S: 250 2.1.0 ok
            C: RCPT TO:<joe@test.example>
            S: 250 2.1.5 ok
            C: DATA
            S: 354 go ahead
            C: .
            S: 250 2.0.0 ok ... qp ...
            C: HELO client.example
            S: 250 test.example
            C: NOOP
            S: 250 ok
            C: EHLO client.example
            S: 250-test.example
            S: 250-PIPELINING
            S: 250-8BITMIME
            S: 250-SIZE 0
            S: 250 ENHANCEDSTATUSCODES
            C: QUIT
            S: 221 2.0.0 test.example
        """)
        self.assertEqual((r.code, r.out), (0, b""))

    def test_the_reply_to_a_message_names_time_and_qp(self):
        before = int(time.time())
        r = self.smtpd(HEAD + b".\r\nQUIT\r\n")
        seconds, qp = re.search(rb"\r\n250 ok (\d+) qp (\d+)\r\n", r.out).groups()
        self.assertTrue(before <= int(seconds) <= int(time.time()))
        self.assertIn(f"message.{int(qp)}", os.listdir(self.kept))

    def test_the_greeting_is_the_control_file_or_me(self):
        self.home.control("smtpgreeting", "mx.example no UBE  \nsecond line\n")
        r = self.smtpd(b"HELO x\r\nQUIT\r\n")
        self.assertEqual(r.out, b"220 mx.example no UBE ESMTP\r\n250 mx.example no UBE\r\n221 mx.example no UBE\r\n")

    def test_verbs_come_in_any_case_and_with_either_line_end(self):
        r = self.smtpd(b"hElO x\nnoop\r\nQuit   \n")
        self.assertEqual((r.code, r.out), (0, GREETED + b"250 test.example\r\n250 ok\r\n221 test.example\r\n"))

    def test_mail_again_forgets_the_recipients(self):
        r = self.smtpd(b"MAIL FROM:<a@b>\r\nRCPT TO:<joe@test.example>\r\nMAIL FROM:<c@d>\r\nDATA\r\nQUIT\r\n")
        self.assertEqual(r.out.split(b"\r\n")[1:5], [b"250 ok", b"250 ok", b"250 ok", b"503 RCPT first (#5.5.1)"])

    def test_a_refused_mail_leaves_no_transaction(self):
        r = self.smtpd(b"MAIL FROM:<a@b>\r\nMAIL FROM:<c@d> SIZE=x\r\nRCPT TO:<joe@test.example>\r\nQUIT\r\n")
        self.assertEqual(r.out.split(b"\r\n")[1:4], [b"250 ok", b"501 syntax error in SIZE (#5.5.4)", b"503 MAIL first (#5.5.1)"])

    def test_helo_and_data_end_the_transaction(self):
        for between in (b"HELO y\r\n", b"EHLO y\r\n", b"DATA\r\n.\r\n"):
            r = self.smtpd(HEAD[:-6] + between + b"RCPT TO:<joe@test.example>\r\nQUIT\r\n")
            self.assertRegex(r.out, rb"503 (5.5.1 )?MAIL first")

    def test_several_messages_in_one_connection_stay_apart(self):
        self.smtpd(HEAD + b"one\r\n.\r\n" + HEAD[8:].replace(b"a@b", b"c@d") + b"two\r\n.\r\nQUIT\r\n")
        got = {(message.rsplit(b"\n", 2)[1], envelope) for message, envelope in self.captured()}
        self.assertEqual(got, {(b"one", b"Fa@b\0Tjoe@test.example\0\0"), (b"two", b"Fc@d\0Tjoe@test.example\0\0")})

    def test_without_arguments_mail_and_rcpt_name_the_empty_address(self):
        self.smtpd(b"MAIL\r\nRCPT\r\nDATA\r\n.\r\nQUIT\r\n")
        self.assertEqual(self.only(), (b"", b"F\0T\0\0"))

    def test_extra_arguments_to_the_program_are_ignored_and_help_helps(self):
        self.assertEqual(run(["qmail-smtpd", "x"], b"QUIT\r\n", self.env()).code, 0)
        self.assertIn(b"usage: qmail-smtpd", run(["qmail-smtpd", "--help"], b"", self.env()).out)


class Received(SmtpdTest):
    def received(self, env, helo=b"HELO x\r\n"):
        self.setUp()
        self.smtpd(helo + HEAD[8:] + b".\r\nQUIT\r\n", env)
        [(message, _)] = self.captured()
        return re.sub(rb"; \d+ [A-Z][a-z][a-z] \d{4} \d\d:\d\d:\d\d -0000\n$", b"; DATE\n", message)

    def test_it_tells_what_tcpserver_knows(self):
        env = {"TCPREMOTEHOST": "client.example", "TCPREMOTEIP": "192.0.2.7", "TCPLOCALHOST": "mx.example",
               "TCPLOCALIP": "192.0.2.1", "TCPREMOTEINFO": "joe_x"}
        self.assertEqual(self.received(env), b"Received: from client.example (HELO x) (joe?x@192.0.2.7)\n"
                         b"  by mx.example with SMTP; DATE\n")

    def test_unknown_is_what_is_not_told(self):
        self.assertEqual(self.received({}), b"Received: from unknown (HELO x) (unknown)\n"
                         b"  by unknown with SMTP; DATE\n")

    def test_the_local_address_stands_for_a_missing_local_name_and_ehlo_is_smtp_too(self):
        env = {"TCPREMOTEHOST": "Client.example", "TCPREMOTEIP": "::1", "TCPLOCALIP": "::1"}
        self.assertEqual(self.received(env, b"EHLO client.EXAMPLE\r\n"),
                         b"Received: from Client.example (::1)\n  by ::1 with SMTP; DATE\n")

    def test_a_client_that_never_said_helo_has_no_name(self):
        self.assertIn(b"from unknown (unknown)\n", self.received({}, b""))


class Addresses(SmtpdTest):
    def envelope(self, mail, rcpt, env=None):
        self.setUp()
        r = self.smtpd(b"MAIL " + mail + b"\r\nRCPT " + rcpt + b"\r\nDATA\r\n.\r\nQUIT\r\n", env)
        [(_, envelope)] = self.captured() or [(b"", r.out)]
        return envelope

    def test_addresses_are_read_liberally(self):
        relay = {"RELAYCLIENT": ""}
        self.assertEqual(self.envelope(b"FROM: a@b SIZE=1", b"TO:<@x,@y:\"j o\\\"e\"@h> X=1", relay), b"Fa@b\0Tj o\"e@h\0\0")
        self.assertEqual(self.envelope(b"FROM:<>", b"TO:joe@h", relay), b"F\0Tjoe@h\0\0")
        self.assertEqual(self.envelope(b"whatever<\">\"@b", b"TO:<joe@h", relay), b"F>@b\0Tjoe@h\0\0")

    def test_relayclient_is_appended_to_every_recipient(self):
        self.assertEqual(self.envelope(b"FROM:<>", b"TO:<joe@h>", {"RELAYCLIENT": "@relay.example"}),
                         b"F\0Tjoe@h@relay.example\0\0")

    def test_899_bytes_are_an_address_and_900_are_not(self):
        local = b"x" * (899 - len("@test.example"))
        ok = self.envelope(b"FROM:<a@b>", b"TO:<" + local + b"@test.example>")
        self.assertEqual(ok, b"Fa@b\0T" + local + b"@test.example\0\0")
        r = self.smtpd(b"MAIL FROM:<" + b"x" * 900 + b">\r\nMAIL FROM:<a@b>\r\nRCPT TO:<x" + local + b"@test.example>\r\nQUIT\r\n")
        self.assertEqual(r.out.split(b"\r\n")[1:4], [b"555 syntax error (#5.5.4)", b"250 ok", b"555 syntax error (#5.5.4)"])

    def test_a_nul_or_cr_cannot_get_into_the_envelope(self):
        for evil in (b"a\0Tevil@x", b"a\rb@x", b"\"a\0b\"@x", b"a\\\0b@x"):
            r = self.smtpd(b"MAIL FROM:<" + evil + b">\r\nMAIL FROM:<>\r\nRCPT TO:<" + evil + b">\r\nQUIT\r\n", {"RELAYCLIENT": ""})
            self.assertEqual(r.out.split(b"\r\n")[1:4], [b"555 syntax error (#5.5.4)", b"250 ok", b"555 syntax error (#5.5.4)"], evil)

    def test_an_address_of_ours_in_brackets_becomes_localiphost(self):
        self.home.control("localiphost", "test.example\n")
        self.assertEqual(self.envelope(b"FROM:<a@[127.0.0.1]>", b"TO:<joe@[127.0.0.1]>"),
                         b"Fa@test.example\0Tjoe@test.example\0\0")
        r = self.smtpd(b"MAIL FROM:<>\r\nRCPT TO:<joe@[192.0.2.1]>\r\nRCPT TO:<joe@[127.0.0.1>\r\nQUIT\r\n")
        self.assertEqual(r.out.count(b"553 sorry, that domain"), 2)

    @unittest.skipUnless(os.path.exists("/proc/net/if_inet6") and "00000000000000000000000000000001" in open("/proc/net/if_inet6").read(),
                         "this machine has no IPv6 loopback address")
    def test_an_ipv6_address_of_ours_too(self):
        self.assertEqual(self.envelope(b"FROM:<>", b"TO:<joe@[IPv6:::1]>"), b"F\0Tjoe@test.example\0\0")


class Policy(SmtpdTest):
    def rcpt(self, *recipients, mail=b"a@b", env=None):
        text = b"MAIL FROM:<" + mail + b">\r\n" + b"".join(b"RCPT TO:<" + r + b">\r\n" for r in recipients)
        r = self.smtpd(text + b"QUIT\r\n", env)
        return [int(line[:3]) for line in r.out.split(b"\r\n")[2:-2]]

    def test_rcpthosts_has_names_and_suffixes_and_is_asked_without_regard_to_case(self):
        self.home.control("rcpthosts", "# comment\nOne.example\n.two.example\n")
        self.assertEqual(self.rcpt(b"a@ONE.example", b"a@x.one.example", b"a@two.example", b"a@x.Two.example", b"postmaster"),
                         [250, 553, 553, 250, 250])

    def test_without_rcpthosts_everything_is_accepted_and_with_an_empty_one_nothing(self):
        self.home.remove_control("rcpthosts")
        self.assertEqual(self.rcpt(b"a@anywhere.example"), [250])
        self.home.control("rcpthosts", "")
        self.assertEqual(self.rcpt(b"a@test.example"), [553])

    def test_morercpthosts_cdb_adds_to_it(self):
        self.home.control("morercpthosts", "More.example\n.sub.example\n")
        self.assertEqual(self.home.run(["qmail-newmrh"]).code, 0)
        self.assertEqual(self.rcpt(b"a@more.EXAMPLE", b"a@x.sub.example", b"a@sub.example", b"a@test.example"),
                         [250, 250, 553, 250])

    def test_a_damaged_morercpthosts_cdb_ends_the_session_when_it_is_asked(self):
        self.home.control("morercpthosts.cdb", "damaged")
        r = self.smtpd(b"MAIL FROM:<>\r\nRCPT TO:<a@test.example>\r\nRCPT TO:<a@b>\r\nQUIT\r\n")
        self.assertEqual(r.out, GREETED + b"250 ok\r\n250 ok\r\n421 unable to read controls (#4.3.0)\r\n")
        self.assertEqual((r.code, r.err), (1, b"qmail-smtpd: fatal: unable to read control/morercpthosts.cdb: damaged database (#4.3.0)\n"))

    def test_relayclient_opens_every_domain_even_when_it_is_empty(self):
        self.assertEqual(self.rcpt(b"a@anywhere.example", env={"RELAYCLIENT": ""}), [250])

    def test_badmailfrom_refuses_at_rcpt_by_address_and_by_domain(self):
        self.home.control("badmailfrom", "bad@one.example\n@two.example\n")
        for sender, code in ((b"BAD@one.example", 553), (b"ok@one.example", 250), (b"x@TWO.example", 553),
                             (b"x@y@two.example", 553), (b"x@sub.two.example", 250), (b"", 250)):
            self.assertEqual(self.rcpt(b"joe@test.example", mail=sender), [code], sender)

    def test_the_order_of_the_checks_is_address_sender_domain(self):
        self.home.control("badmailfrom", "@two.example\n")
        r = self.smtpd(b"MAIL FROM:<x@two.example>\r\nRCPT TO:<@x>\r\nRCPT TO:<a@elsewhere>\r\nQUIT\r\n")
        self.assertIn(b"555 syntax error (#5.5.4)\r\n553 sorry, your envelope sender", r.out)


class Sizes(SmtpdTest):
    def test_databytes_is_announced_and_a_larger_declared_size_refused_at_once(self):
        self.home.control("databytes", "1000\n")
        r = self.smtpd(b"EHLO x\r\nMAIL FROM:<> SIZE=1001\r\nMAIL FROM:<> size=1000\r\nQUIT\r\n")
        self.assertIn(b"250-SIZE 1000\r\n", r.out)
        self.assertEqual(r.out.split(b"\r\n")[6:8], [b"552 5.3.4 sorry, that message size exceeds my databytes limit (#5.3.4)", b"250 2.1.0 ok"])

    def test_a_malformed_size_is_a_syntax_error(self):
        for bad in (b"SIZE", b"SIZE=", b"SIZE=1x", b"SIZE=-1", b"SIZE=99999999999999999999"):
            r = self.smtpd(b"MAIL FROM:<> " + bad + b"\r\nQUIT\r\n")
            self.assertIn(b"\r\n501 syntax error in SIZE (#5.5.4)\r\n", r.out, bad)

    def test_other_parameters_are_ignored(self):
        r = self.smtpd(b"MAIL FROM:<> AUTH=<> RET=FULL =x foo SIZES=y\r\nRCPT TO:<joe@test.example> NOTIFY=NEVER\r\nQUIT\r\n")
        self.assertEqual(r.out.split(b"\r\n")[1:3], [b"250 ok", b"250 ok"])

    def test_size_counts_the_bytes_as_stored(self):
        self.home.control("databytes", "10\n")
        for text, code in ((b"12345678\r\n\r\n", b"250 ok"), (b"123456789\r\n\r\n", b"552 sorry, that message size exceeds my databytes limit (#5.3.4)"),
                           (b"..345678\r\n\r\n\r\n", b"250 ok")):
            self.setUp()
            self.home.control("databytes", "10\n")
            r = self.smtpd(HEAD + text + b".\r\nQUIT\r\n")
            self.assertTrue(r.out.split(b"\r\n")[5].startswith(code), (text, r.out))
            self.assertEqual(len(self.captured()), 1 if code == b"250 ok" else 0)
            self.assertEqual(r.code, 0)

    def test_the_environment_overrides_databytes(self):
        self.home.control("databytes", "10\n")
        for value, size in (("5", 5), ("7x", 7), ("", 0), ("none", 0), ("0", 0)):
            r = self.smtpd(b"EHLO x\r\nQUIT\r\n", {"DATABYTES": value})
            self.assertIn(b"250-SIZE %d\r\n" % size, r.out)


class Messages(SmtpdTest):
    def test_every_byte_arrives(self):
        body = bytes(b for b in range(256) if b not in (10, 13)) * 50
        self.smtpd(HEAD + body + b"\r\n\r\0\r\r\nend\r\n.\r\nQUIT\r\n")
        self.assertEqual(self.only()[0], body + b"\n\r\0\r\nend\n")

    def test_dots_come_back_as_they_were(self):
        lines = [b"." * n + x for n in range(4) for x in (b"", b"x", b".x")]
        stuffed = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines)
        self.smtpd(HEAD + stuffed + b".\r\nQUIT\r\n")
        self.assertEqual(self.only()[0], b"".join(line + b"\n" for line in lines))

    def test_ninety_nine_hops_pass_and_a_hundred_do_not(self):
        for hops, code in ((99, b"250 ok"), (100, b"554 too many hops, this message is looping (#5.4.6)")):
            self.setUp()
            header = b"RECEIVED: x\r\ndelivered-To y\r\n" * 49 + b"Received\r\n" + b"Subject: Received: x\r\n"
            header += b"delivered\r\n" * (hops - 99)
            r = self.smtpd(HEAD + header + b"\r\n" + b"Received: in the body\r\n" * 10 + b".\r\nQUIT\r\n")
            self.assertTrue(r.out.split(b"\r\n")[5].startswith(code), r.out)
            self.assertEqual(len(self.captured()), 1 if hops == 99 else 0)
            self.assertEqual(r.code, 0)

    def test_a_bare_lf_ends_the_conversation_and_queues_nothing(self):
        for text in (b"a\nb\r\n", b"\n", b".\n", b"a\r\n.\n", b"a\r\n\n.\r\n", b"a\n.\r\n"):
            r = self.smtpd(HEAD + text + b".\r\nQUIT\r\n")
            self.assertTrue(r.out.endswith(b"354 go ahead\r\n" + BARE_LF), (text, r.out))
            self.assertEqual((r.code, r.err), (1, b""))
        self.assertEqual(self.captured(), [])

    def test_only_cr_lf_dot_cr_lf_ends_a_message(self):
        """Every line end a sloppy server might take for one, on both sides of a dot: no second message appears."""
        ends = (b"\n", b"\r", b"\r\n", b"\r\r\n", b"\n\r", b"\0\r\n", b"")
        for before, after in itertools.product(ends, ends):
            self.setUp()
            smuggled = b"MAIL FROM:<evil@x>\r\nRCPT TO:<joe@test.example>\r\nDATA\r\nevil\r\n"
            r = self.smtpd(HEAD + b"text" + before + b"." + after + smuggled + b".\r\nQUIT\r\n")
            envelopes = [envelope for _, envelope in self.captured()]
            if (before, after) in ((b"\r\n", b"\r\n"), (b"\0\r\n", b"\r\n"), (b"\r\r\n", b"\r\n")):
                self.assertEqual(sorted(e[:5] for e in envelopes), [b"Fa@b\0", b"Fevil"], (before, after))
            else:
                self.assertNotIn(b"Fevil", [e[:5] for e in envelopes], (before, after))
                self.assertEqual(r.out.count(b"354 go ahead"), 1, (before, after))
                self.assertTrue(r.out.endswith(BARE_LF) or r.out.count(b"250 ok ") == 1, (before, after, r.out))

    def test_a_message_cut_anywhere_is_not_queued_and_whole_commands_are_answered(self):
        text = b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<joe@test.example>\r\nDATA\r\nSubject: x\r\n\r\n.y\r\n.\r\nQUIT\r\n"
        whole = text.index(b"\r\n.\r\n") + 5
        for cut in range(len(text)):
            r = self.smtpd(text[:cut])
            self.assertEqual(r.code, 1, cut)
            self.assertTrue(r.out.startswith(GREETED) and r.out.endswith(b"\r\n"), cut)
            done = [text[:cut].count(b"\n")] if cut <= text.index(b"Subject") else [5, 4, 6]
            self.assertIn(sum(1 for line in r.out.split(b"\r\n") if line[3:4] == b" ") - 1, done, cut)
            if cut < whole:
                self.assertEqual(self.captured(), [], cut)
        wait_for(lambda: len(self.captured()) == len(text) - whole, "the whole messages")


class QueueTrouble(SmtpdTest):
    def reply(self, env, hello=b"HELO x\r\n"):
        r = self.smtpd(hello + HEAD[8:] + b"x\r\n.\r\nNOOP\r\nQUIT\r\n", env)
        self.assertEqual(r.code, 0)
        return r.out.split(b"\r\n")[-4], r.err

    def test_exit_codes_become_replies_and_the_conversation_goes_on(self):
        for code, text in ((11, b"554 envelope address too long for qq (#5.1.3)"),
                           (31, b"554 mail server permanently rejected message (#5.3.0)"),
                           (40, b"554 qq permanent problem (#5.3.0)"),
                           (53, b"451 qq write error or disk full (#4.3.0)"),
                           (66, b"451 qq trouble creating files in queue (#4.3.0)"),
                           (91, b"451 qq internal bug (#4.3.0)"),
                           (101, b"451 qq temporary problem (#4.3.0)"),
                           (120, b"451 unable to exec qq (#4.3.0)")):
            self.assertEqual(self.reply({"CAPTURE_EXIT": str(code)})[0], text)

    def test_a_temporary_trouble_of_the_queue_is_told_to_the_log(self):
        self.assertEqual(self.reply({"CAPTURE_EXIT": "53"})[1],
                         b"qmail-smtpd: warning: unable to queue message: qq write error or disk full (#4.3.0)\n")
        self.assertEqual(self.reply({"CAPTURE_EXIT": "31"})[1], b"")

    def test_a_text_of_a_filter_becomes_the_reply_and_its_status_is_found(self):
        reject = {"CAPTURE_EXIT": "82", "CAPTURE_TEXT": "Dno thanks (#5.7.1)"}
        self.assertEqual(self.reply(reject)[0], b"554 no thanks (#5.7.1)")
        self.assertEqual(self.reply(reject, b"EHLO x\r\n")[0], b"554 5.7.1 no thanks (#5.7.1)")
        defer = {"CAPTURE_EXIT": "82", "CAPTURE_TEXT": "Zgreylisted\\n"}
        self.assertEqual(self.reply(defer)[0], b"451 greylisted")
        self.assertEqual(self.reply(defer, b"EHLO x\r\n")[0], b"451 4.3.0 greylisted")

    def test_a_text_of_a_filter_cannot_forge_a_reply(self):
        forged = {"CAPTURE_EXIT": "82", "CAPTURE_TEXT": "Dno\\r\\n250 ok"}
        self.assertEqual(self.reply(forged)[0], b"554 no??250 ok")

    def test_a_crash_is_temporary(self):
        crash = self.home.write("crash.sh", "#!/bin/sh\ncat >/dev/null\nkill -SEGV $$\n", 0o755)
        self.assertEqual(self.reply({"QMAILQUEUE": crash})[0], b"451 qq crashed (#4.3.0)")

    def test_a_missing_program_is_temporary(self):
        for missing in ("/nonexistent", ""):
            self.assertEqual(self.reply({"QMAILQUEUE": missing})[0], b"451 unable to exec qq (#4.3.0)")

    def test_a_queue_that_stops_reading_does_not_stop_the_conversation(self):
        deaf = self.home.write("deaf.sh", "#!/bin/sh\nexit 53\n", 0o755)
        r = self.smtpd(HEAD + b"x" * 70 * 1024 * 16 + b"\r\n.\r\nQUIT\r\n", {"QMAILQUEUE": deaf})
        self.assertIn(b"451 qq write error or disk full (#4.3.0)\r\n221", r.out)

    def test_success_without_reading_is_no_success(self):
        liar = self.home.write("liar.sh", "#!/bin/sh\nexit 0\n", 0o755)
        r = self.smtpd(HEAD + b"x" * 70 * 1024 * 16 + b"\r\n.\r\nQUIT\r\n", {"QMAILQUEUE": liar})
        self.assertIn(b"451 qq read error (#4.3.0)\r\n221", r.out)

    def test_no_way_into_the_queue_is_qqt_failure(self):
        env = self.env({"QMAILDOOR": "socket"})
        del env["QMAILQUEUE"]
        r = run(["qmail-smtpd"], HEAD + b"QUIT\r\n", env)
        self.assertIn(b"\r\n451 qqt failure (#4.3.0)\r\n221", r.out)
        self.assertRegex(r.err, rb"^qmail-smtpd: warning: unable to start qmail-queue: .*\n$")

    def test_the_real_queue_holds_the_message_when_250_is_said(self):
        env = self.env({"QMAILDOOR": "direct"})
        del env["QMAILQUEUE"]
        line = Line.start(["qmail-smtpd"], env)
        self.addCleanup(line.close)
        line.expect("220 ...")
        line.send(HEAD + b"hello\r\n.\r\n")
        for reply in ("250 test.example", "250 ok", "250 ok", "354 go ahead", "250 ok ... qp ..."):
            line.expect(reply)
        [number] = os.listdir(self.home.file("queue/todo"))
        with open(self.home.file("queue/mess", str(int(number) % 23), number), "rb") as f:
            self.assertTrue(f.read().endswith(b"-0000\nhello\n"))
        with open(self.home.file("queue/todo", number), "rb") as f:
            self.assertIn(b"Fa@b\0Tjoe@test.example\0", f.read())


class Controls(SmtpdTest):
    def test_a_control_file_that_cannot_be_read_is_named_to_the_log_and_not_to_the_client(self):
        for name in ("smtpgreeting", "badmailfrom", "databytes", "localiphost", "rcpthosts", "timeoutsmtpd"):
            self.setUp()
            if os.path.exists(self.home.file("control", name)):
                self.home.remove_control(name)
            os.mkdir(self.home.file("control", name))  # a directory: root could read anything else
            r = self.smtpd(b"QUIT\r\n")
            self.assertEqual((r.code, r.out), (1, b"421 unable to read controls (#4.3.0)\r\n"), name)
            self.assertEqual(r.err, f"qmail-smtpd: fatal: unable to read control/{name}: is a directory (#4.3.0)\n".encode())

    def test_without_me_and_smtpgreeting_there_is_no_service(self):
        self.home.remove_control("me")
        r = self.smtpd(b"QUIT\r\n")
        self.assertEqual((r.code, r.out), (1, b"421 unable to read controls (#4.3.0)\r\n"))
        self.assertIn(b"control/me", r.err)

    def test_without_a_home_there_is_no_service(self):
        r = self.smtpd(b"QUIT\r\n", {"QMAIL_HOME": "/nonexistent"})
        self.assertEqual((r.code, r.out), (1, b"421 unable to read controls (#4.3.0)\r\n"))
        self.assertEqual(r.err, b"qmail-smtpd: fatal: unable to use home /nonexistent: file does not exist\n")


class Limits(SmtpdTest):
    def test_4096_bytes_are_a_command_and_more_are_not(self):
        longest = b"NOOP " + b"x" * 4091
        r = self.smtpd(longest + b"\r\n" + longest[:-1] + b"\r\nNOOP\r\nQUIT\r\n")
        self.assertEqual(r.out.split(b"\r\n")[1:4], [b"500 command line too long (#5.5.2)", b"250 ok", b"250 ok"])

    def test_a_thousand_recipients_are_accepted_and_then_no_more(self):
        rcpt = b"RCPT TO:<joe@test.example>\r\n"
        r = self.smtpd(b"MAIL FROM:<>\r\n" + rcpt * 1001 + b"DATA\r\n.\r\nQUIT\r\n")
        replies = r.out.split(b"\r\n")
        self.assertEqual(set(replies[1:1002]), {b"250 ok"})
        self.assertEqual(replies[1002], b"452 too many recipients (#4.5.3)")
        self.assertEqual(self.only()[1].count(b"Tjoe@test.example\0"), 1000)

    def test_replies_wait_until_the_client_waits(self):
        line = self.start()
        line.expect("220 ...")
        line.send(b"MAIL FROM:<a@b>\r\nRCPT TO:<joe@test.example>\r\nNOO")
        line.expect("250 ok")  # half a command in hand: everything before it is answered
        line.expect("250 ok")
        line.send(b"P\r\nQUIT\r\n")
        line.expect("250 ok")
        self.assertEqual(line.finish().code, 0)

    def test_a_pipelined_conversation_is_answered_in_few_writes(self):
        trace = self.home.file("kept", "trace")
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        argv = ["strace", "-f", "-o", trace, "-e", "trace=write", harness.program("qmail-smtpd")]
        run(argv, b"NOOP\r\n" * 200 + b"QUIT\r\n", self.env())
        with open(trace) as f:
            self.assertIn(sum(1 for row in f if "write(1," in row), (1, 2, 3))

    def test_memory_is_bounded_whatever_the_client_sends(self):
        many = b"".join(b"RCPT TO:<%s%04d@test.example>\r\n" % (b"x" * 880, i) for i in range(1000))
        for name, text in (("a line without end", b"x" * (8 << 20)),
                           ("commands", b"NOOP " + b"x" * 4000 + b"\r\n" + b"\r\n" * 100_000),
                           ("recipients", b"MAIL FROM:<>\r\n" + many * 2),
                           ("a message", HEAD + b"x" * 100 + b"\r\n" * 3_000_000 + b"x" * (8 << 20) + b"\r\n.\r\n"),
                           ("a header", HEAD + b"Received" * (1 << 20) + b"\r\n" + b"x\r\n" * 2_000_000 + b".\r\n")):
            line = self.start({"QMAILQUEUE": self.home.write("sink.sh", "#!/bin/sh\ncat >/dev/null\ncat <&1 >/dev/null\n", 0o755)})
            drain = harness._drainer(os.dup(line.process.stdout.fileno()), [])
            drain.start()
            pid = session(line)
            line.send(text + b"\r\n")
            wait_for(lambda: is_idle(line, pid), f"the end of {name}")
            for process in (pid, line.process.pid):
                self.assertLess(peak_memory(process), RSS_MAX, name)
            os.kill(pid, signal.SIGKILL)
            line.process.wait(harness.TIMEOUT)
            drain.join(harness.TIMEOUT)


def session(line):
    """The process that talks, where QMAILQUEUE is set: the first child of the one that was started."""
    children = wait_for(lambda: sorted(set(harness.family(line.process.pid)) - {line.process.pid}), "the session")
    return children[0]


def is_idle(line, pid):
    """Whether the process sleeps and has read everything that was sent to it."""
    waiting = fcntl.ioctl(line.writer, termios.FIONREAD, b"\0" * 4)
    with open(f"/proc/{pid}/stat") as f:
        return waiting == b"\0" * 4 and f.read().split(")")[1].split()[0] == "S"


def has_ended(process, seconds):
    """Waits so long, or until the process ends; whether it did."""
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        return False


class Deadlines(SmtpdTest):
    def setUp(self):
        super().setUp()
        self.home.control("timeoutsmtpd", "1\n")

    def ended(self, line):
        """Waits for its end; returns (exit code, everything it said)."""
        out = line.reader.read()
        return line.process.wait(harness.TIMEOUT), out

    def drip(self, line, text, byte=b"x"):
        """Sends text, then a byte now and then, until the other side has had enough."""
        line.send(text)
        try:
            while not has_ended(line.process, 0.2):
                line.send(byte)
        except BrokenPipeError:
            pass
        return self.ended(line)

    def test_silence_is_a_timeout(self):
        self.assertEqual(self.ended(self.start()), (1, GREETED + b"451 timeout (#4.4.2)\r\n"))

    def test_zero_means_one_second(self):
        self.home.control("timeoutsmtpd", "0\n")
        self.assertEqual(self.ended(self.start())[1], GREETED + b"451 timeout (#4.4.2)\r\n")

    def test_silence_in_a_message_is_a_timeout_and_queues_nothing(self):
        line = self.start()
        line.send(HEAD + b"text\r\n")
        code, out = self.ended(line)
        self.assertEqual((code, out.split(b"\r\n")[-3:]), (1, [b"354 go ahead", b"451 timeout (#4.4.2)", b""]))
        self.assertEqual(self.captured(), [])

    def test_a_command_that_drips_is_a_timeout(self):
        self.assertEqual(self.drip(self.start(), b""), (1, GREETED + b"451 timeout (#4.4.2)\r\n"))

    def test_a_long_line_that_drips_is_a_timeout(self):
        self.assertEqual(self.drip(self.start(), b"x" * 5000), (1, GREETED + b"451 timeout (#4.4.2)\r\n"))

    def test_a_line_that_floods_is_a_timeout(self):
        line = self.start()
        try:
            while True:
                line.send(b"x" * 65536)
        except BrokenPipeError:
            pass
        self.assertEqual(self.ended(line), (1, GREETED + b"451 timeout (#4.4.2)\r\n"))

    def test_a_message_that_drips_is_a_timeout(self):
        code, out = self.drip(self.start(), HEAD)
        self.assertEqual((code, out.split(b"\r\n")[-2]), (1, b"451 timeout (#4.4.2)"))
        self.assertEqual(self.captured(), [])

    def test_a_message_that_keeps_coming_is_not(self):
        line = self.start()
        line.send(HEAD)
        begun = time.monotonic()
        while time.monotonic() < begun + 2.5:  # longer than one read may take
            line.send(b"x" * 200 + b"\r\n")
            self.assertFalse(has_ended(line.process, 0.2))
        line.send(b".\r\n")
        self.assertTrue(wait_for(self.captured, "the message"))

    def test_a_client_that_does_not_read_is_left_in_silence(self):
        line = self.start()
        os.set_blocking(line.writer.fileno(), False)
        try:
            while line.process.poll() is None:
                try:
                    os.write(line.writer.fileno(), b"HELP\r\n" * 1000)
                except BlockingIOError:
                    select.select([], [line.writer], [], 0.1)
        except BrokenPipeError:
            pass
        self.assertEqual(line.process.wait(harness.TIMEOUT), 1)
        self.assertEqual(line.process.stderr.read(), b"")

    def test_a_client_that_hangs_up_is_no_matter(self):
        line = self.start()
        line.expect("220 ...")
        line.reader.close()
        line.process.stdout.close()
        line.send(b"NOOP\r\n")
        self.assertEqual(line.process.wait(harness.TIMEOUT), 1)


class Launched(SmtpdTest):
    """With QMAILQUEUE it is two processes, and to who started it one."""

    def start_waiting(self, script="#!/bin/sh\nexec cat >/dev/null\n"):
        """A session within a message, whose program is at work: (line, pids of session and program)."""
        line = self.start({"QMAILQUEUE": self.home.write("wait.sh", script, 0o755)})
        line.expect("220 ...")
        pid = session(line)
        line.send(HEAD)
        for reply in ("250 ...", "250 ok", "250 ok", "354 ..."):
            line.expect(reply)
        launcher = line.process.pid
        found = wait_for(lambda: [p for p in harness.family(launcher) if p != pid and harness.parent(p) == launcher], "the program")
        return line, pid, found[0]

    def test_qp_is_the_process_id_of_the_program(self):
        line = self.start()
        dialogue(line, "S: 220 ...\nC: HELO x\nS: 250 ...")
        told = []
        for _ in range(3):
            line.send(HEAD.partition(b"\r\n")[2] + b"x\r\n.\r\n")
            for reply in ("250 ok", "250 ok", "354 ..."):
                line.expect(reply)
            told.append(line.expect("250 ok ... qp ...").split()[-1])
        kept = [name.split(".")[1] for name in os.listdir(self.kept) if name.startswith("message.")]
        self.assertEqual(sorted(told), sorted(kept))
        self.assertNotIn(str(line.process.pid), told)

    def test_a_signal_ends_both_and_queues_nothing(self):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
            with self.subTest(number.name):
                line = self.start()
                line.expect("220 ...")
                pid = session(line)
                line.send(HEAD + b"text\r\n")
                for reply in ("250 ...", "250 ok", "250 ok", "354 ..."):
                    line.expect(reply)
                line.process.send_signal(number)
                self.assertEqual(line.process.wait(harness.TIMEOUT), -number)
                self.assertEqual(line.reader.read(), b"")
                self.assertFalse(os.path.exists(f"/proc/{pid}"))
                self.assertEqual(self.captured(), [])

    def test_a_session_that_is_killed_ends_the_launcher_the_same_way(self):
        line, pid, _ = self.start_waiting()
        os.kill(pid, signal.SIGKILL)
        self.assertEqual(line.process.wait(harness.TIMEOUT), -signal.SIGKILL)

    def test_without_its_launcher_a_session_queues_nothing(self):
        line = self.start()
        line.expect("220 ...")
        session(line)
        line.process.kill()
        line.process.wait()
        for _ in range(2):
            line.send(HEAD)
            for reply in ("250 ...", "250 ok", "250 ok", "354 ..."):
                line.expect(reply)
            line.send(b"x\r\n.\r\n")
            line.expect("451 communication with mail server failed (#4.4.2)")
        line.send(b"QUIT\r\n")
        line.expect("221 ...")
        self.assertEqual(self.captured(), [])

    def test_a_launcher_that_is_killed_within_a_message_is_a_temporary_trouble(self):
        line, _, _ = self.start_waiting("#!/bin/sh\ncat >/dev/null\ncat <&1 >/dev/null\n")
        line.process.kill()
        line.process.wait()
        line.send(b"x\r\n.\r\n")
        line.expect("451 communication with mail server failed (#4.4.2)")

    def test_it_does_not_wait_for_a_program_when_the_client_has_left(self):
        stay = self.home.file("stay")
        os.mkfifo(stay)
        self.addCleanup(os.unlink, stay)
        os.chmod(stay, 0o666)
        line, pid, program = self.start_waiting(f"#!/bin/sh\ncat >/dev/null\nread -r _ <'{stay}'\n")
        line.writer.close()
        self.assertEqual(line.process.wait(harness.TIMEOUT), 1)
        os.kill(program, 0)  # it is still there
        with open(stay, "w") as f:
            f.write("\n")

    def test_a_program_is_waited_for_to_its_end_and_that_of_its_text(self):
        for ends in ("exec 6>&-; read -r _ <'%s'; exit 31", "(read -r _ <'%s'; printf 'Dlate (#5.0.0)' >&6) & exit 82"):
            stay = self.home.file("stay")
            os.mkfifo(stay)
            os.chmod(stay, 0o666)
            line, _, _ = self.start_waiting("#!/bin/sh\ncat >/dev/null; cat <&1 >/dev/null\n" + ends % stay + "\n")
            line.send(b"x\r\n.\r\n")
            with open(stay, "w") as f:  # opens when the program is that far
                self.assertEqual(select.select([line.process.stdout], [], [], 0)[0], [])
                f.write("\n")
            line.expect("554 late (#5.0.0)" if "82" in ends else "554 mail server permanently rejected message (#5.3.0)")
            os.unlink(stay)
            self.assertEqual(line.finish().code, 1)


class Terminal(SmtpdTest):
    def test_a_person_can_type_a_whole_message(self):
        master, slave = pty.openpty()
        process = subprocess.Popen([harness.program("qmail-smtpd")], env=self.env(), stdin=slave, stdout=slave)
        os.close(slave)
        said = b""
        try:
            for typed, reply in ((b"", b"220 "), (b"HELO me\n", b"250 test"), (b"MAIL FROM:<a@b>\n", b"250 ok"),
                                 (b"RCPT TO:<joe@test.example>\n", b"250 ok"), (b"DATA\n", b"354 "),
                                 (b"Subject: typed\n\n..hello\n.\n", b" qp "), (b"QUIT\n", b"221 ")):
                os.write(master, typed)
                fresh = b""
                while reply not in fresh:
                    self.assertTrue(select.select([master], [], [], harness.TIMEOUT)[0], (typed, said + fresh))
                    fresh += os.read(master, 4096)
                said += fresh
            self.assertEqual(process.wait(harness.TIMEOUT), 0)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
            os.close(master)
        self.assertEqual(self.only(), (b"Subject: typed\n\n.hello\n", b"Fa@b\0Tjoe@test.example\0\0"))


if __name__ == "__main__":
    unittest.main()
