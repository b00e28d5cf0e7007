"""qmail-inject: messages from people and scripts, through -n and through a capturing QMAILQUEUE."""

import os
import re
import shutil
import unittest

from tests.harness import Home, scratch

CAPTURE = """#!/bin/sh
cat >"$CAPTURE/message" && cat <&1 >"$CAPTURE/envelope"
"""

REFUSE = """#!/bin/sh
cat >/dev/null; cat <&1 >/dev/null
printf %s "$ANSWER" >&6
exit "$CODE"
"""

DATE = rb"\d{1,2} (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d -0000"
ADDED = b"Date: DATE\nMessage-ID: <ID@id.host>\n"


def golden(text):
    """The text with what changes from run to run put by its name."""
    text = re.sub(rb"(?m)^((?:Resent-)?Date: )" + DATE + rb"$", rb"\1DATE", text)
    return re.sub(rb"<\d{14}\.\d+\.qmail@", b"<ID@", text)


class Base(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = Home()
        cls.addClassCleanup(cls.home.__exit__)
        for name, value in (("defaulthost", "dh"), ("defaultdomain", "def.dom"), ("plusdomain", "plus.dom"),
                            ("idhost", "id.host")):
            cls.home.control(name, value + "\n")
        cls.capture = scratch()
        cls.addClassCleanup(shutil.rmtree, cls.capture)
        cls.queue = cls.home.write("capture", CAPTURE, 0o755)
        cls.refuse = cls.home.write("refuse", REFUSE, 0o755)

    def inject(self, *args, stdin=b"", code=0, err=b"", env=None, **more):
        env = {"USER": "joe", **(env or {})}
        result = self.home.run(["qmail-inject", *args], stdin, env, **more)
        self.assertEqual((result.code, result.err), (code, err), result)
        return result.out

    def shown(self, *args, stdin=b"", **more):
        """What -n prints, without the fields it added in front."""
        out = golden(self.inject("-n", *args, stdin=stdin, **more))
        sender, out = re.fullmatch(rb"Return-Path: <(.*?)>\n(.*)", out, re.S).groups()
        return sender, out

    def queued(self, *args, stdin=b"", env=None, **more):
        """(sender, recipients, message) as qmail-queue gets them."""
        for name in ("message", "envelope"):
            path = os.path.join(self.capture, name)
            if os.path.exists(path):
                os.unlink(path)
        out = self.inject(*args, stdin=stdin, env={"QMAILQUEUE": self.queue, "CAPTURE": self.capture, **(env or {})}, **more)
        self.assertEqual(out, b"")
        with open(os.path.join(self.capture, "message"), "rb") as f:
            message = f.read()
        with open(os.path.join(self.capture, "envelope"), "rb") as f:
            envelope = f.read()
        self.assertTrue(envelope.endswith(b"\0\0"), envelope)
        sender, *recipients = envelope[:-2].split(b"\0")
        self.assertEqual({r[:1] for r in recipients} | {b"T"}, {b"T"}, envelope)
        self.assertEqual(sender[:1], b"F")
        return sender[1:], [r[1:] for r in recipients], golden(message)


class Header(Base):
    def test_a_bare_body_becomes_a_message(self):
        sender, out = self.shown(stdin=b"hello, world\n")
        self.assertEqual(sender, b"joe@dh.def.dom")
        self.assertEqual(out, ADDED + b"From: joe@dh.def.dom\nCc: recipient list not shown: ;\n\nhello, world\n")

    def test_nothing_at_all_becomes_a_header_without_an_empty_line(self):
        _, out = self.shown()
        self.assertEqual(out, ADDED + b"From: joe@dh.def.dom\nCc: recipient list not shown: ;\n")

    def test_a_date_has_no_weekday_and_no_zone_but_utc(self):
        out = self.inject("-n")
        self.assertRegex(out, rb"\nDate: " + DATE + rb"\n")
        self.assertRegex(out, rb"\nMessage-ID: <\d{14}\.\d+\.qmail@id\.host>\n")

    def test_the_example_of_the_specification(self):
        to = b"fred, bob@host, (c) <sue@a.b+>, x@y. , <@r1,@r2:z@q>, me@[1.2.3.4], grp: a, b;"
        _, out = self.shown(stdin=b"Date: x\nMessage-ID: y\nFrom: z\nTo: " + to + b"\n")
        self.assertEqual(out, b"Date: x\nMessage-ID: y\nFrom: z@dh.def.dom\nTo: "
                         b"fred@dh.def.dom, bob@host.def.dom, (c) <sue@a.b.plus.dom>, x@y.def.dom,\n"
                         b"  <z@q.def.dom>, me@[1.2.3.4], grp: a@dh.def.dom, b@dh.def.dom;\n")

    def test_fields_keep_their_order_and_everything_unknown_its_bytes(self):
        header = b"Received: by x\nX-Odd \t:  \x01\xff\n\t\tmore  \nTo: a@x.y\nSubject:\nFrom: b@x.y\nDate: d\nMessage-Id: m\n"
        _, out = self.shown(stdin=header + b"\nbody")
        self.assertEqual(out, header + b"\nbody")

    def test_private_fields_do_not_leave(self):
        text = b"BCC: b@x.y\nReturn-Path: <r@x.y>\nResent-Bcc: x\nContent-Length: 9\n more\nTo: a@x.y\n\n"
        sender, out = self.shown(stdin=text)
        self.assertEqual(sender, b"r@x.y")
        self.assertEqual(out, b"Resent-Date: DATE\nResent-Message-ID: <ID@id.host>\nResent-From: joe@dh.def.dom\n"
                         b"Resent-Cc: recipient list not shown: ;\nTo: a@x.y\n\n")

    def test_the_header_ends_where_it_does(self):
        for text, shown in [
            (b"To: a@x.y\n\nb: c\n", b"To: a@x.y\n\nb: c\n"),
            (b"To: a@x.y", b"To: a@x.y\n"),
            (b"To: a@x.y\nno field\n\nx", b"To: a@x.y\n\nno field\n\nx"),
            (b"To: a@x.y\n: x\n", b"To: a@x.y\n\n: x\n"),
            (b"To: a@x.y\nFrom a b c\n\nFrom d\n", b"To: a@x.y\nMBOX-Line: From a b c\n\nFrom d\n"),
            (b"To: a@x.y\n\n\n\n", b"To: a@x.y\n\n\n\n"),
        ]:
            with self.subTest(text):
                _, out = self.shown(stdin=text)
                self.assertEqual(out, ADDED + b"From: joe@dh.def.dom\n" + shown)

    def test_a_continuation_of_nothing_is_refused(self):
        self.inject("-n", stdin=b" To: a@x.y\n\n", code=100, err=b"qmail-inject: fatal: invalid header field:  To: a@x.y\n")

    def test_a_sender_field_that_cannot_be_parsed_is_refused(self):
        self.inject("-n", stdin=b"From: a b >\n c\nTo: x\n", code=100,
                    err=b"qmail-inject: fatal: unable to parse this line:\nFrom: a b >\n c\n")

    def test_a_recipient_field_that_cannot_be_parsed_stays_and_names_nobody(self):
        err = b"qmail-inject: warning: no recipients in this line, unable to parse it:\nTo: a@x.y, b@x.y > c@x.y\n"
        _, recipients, message = self.queued(stdin=b"To: a@x.y, b@x.y > c@x.y\nCc: d\n", err=err)
        self.assertEqual(recipients, [b"d@dh.def.dom"])
        self.assertTrue(message.endswith(b"To: a@x.y, b@x.y > c@x.y\nCc: d@dh.def.dom\n"))
        self.queued("-a", "x", stdin=b"To: (\n")

    def test_a_nul_never_gets_into_an_envelope(self):
        err = b"qmail-inject: warning: no recipients in this line, unable to parse it:\nTo: a\0Tb@x.y\n"
        self.assertEqual(self.queued(stdin=b"To: a\0Tb@x.y\n", err=err)[1], [])

    def test_a_resent_message_gets_fields_of_its_own_only(self):
        sender, recipients, message = self.queued(stdin=b"To: a@x\nResent-To: b@x, c@x\nSubject: s\n\n")
        self.assertEqual(recipients, [b"b@x.def.dom", b"c@x.def.dom"])
        self.assertEqual(message, b"Resent-Date: DATE\nResent-Message-ID: <ID@id.host>\nResent-From: joe@dh.def.dom\n"
                         b"To: a@x.def.dom\nResent-To: b@x.def.dom, c@x.def.dom\nSubject: s\n\n")

    def test_a_header_too_long_is_refused(self):
        out = b"qmail-inject: fatal: the header is longer than 8388608 bytes\n"
        self.inject("-n", stdin=b"X: " + b"x" * 8388608, code=100, err=out)

    def test_a_megabyte_of_recipients_is_served(self):
        names = [b"user%d@host.dom" % n for n in range(60000)]
        _, recipients, message = self.queued(stdin=b"To: " + b", ".join(names) + b"\n\n")
        self.assertEqual(recipients, names)
        self.assertLessEqual(max(map(len, message.split(b"\n"))), 80)


class Body(Base):
    def test_the_body_passes_unchanged(self):
        body = bytes(range(256)) * 4000 + b"\r\n.\r\nFrom x\nno newline"
        _, _, message = self.queued("a@x.y", stdin=b"To: a@x.y\n\n" + body)
        self.assertEqual(message.partition(b"\n\n")[2], body)

    def test_a_body_without_header_may_begin_with_any_long_line(self):
        line = b"x" * 20_000_000
        _, _, message = self.queued("a@x.y", stdin=line)
        self.assertTrue(message.endswith(b";\n\n" + line))


class Recipients(Base):
    MESSAGE = b"To: t@x.y\nCc: c@x.y\nBcc: b@x.y\nApparently-To: a@x.y\n\n"
    HEADER = [b"t@x.y", b"c@x.y", b"b@x.y", b"a@x.y"]

    def test_options_say_where_recipients_come_from(self):
        for options, expected in [
            ([], self.HEADER),
            (["r@x.y"], [b"r@x.y"]),
            (["-a"], []),
            (["-a", "r"], [b"r@dh.def.dom"]),
            (["-h", "r"], self.HEADER),
            (["-H", "r", "s"], [b"r@dh.def.dom", b"s@dh.def.dom", *self.HEADER]),
            (["-H", "-A", "r"], [b"r@dh.def.dom"]),
            (["-aN", "--", "-r"], [b"-r@dh.def.dom"]),
            (["-nN", "r", "-h"], [b"r@dh.def.dom", b"-h@dh.def.dom"]),
        ]:
            with self.subTest(options):
                self.assertEqual(self.queued(*options, stdin=self.MESSAGE)[1], expected)

    def test_duplicates_are_kept(self):
        self.assertEqual(self.queued("-H", "a@x.y", stdin=b"To: a@x.y, a@x.y\n")[1], [b"a@x.y"] * 3)

    def test_arguments_are_completed_like_fields_and_quoted_where_they_must_be(self):
        _, recipients, _ = self.queued("-a", "fred", "bob@host", "sue@a.b+", "x@y.", "me@[1.2.3.4]", "a b@x.y",
                                       "l-@h-@[]", b"\xff@x.y", "a, b")
        self.assertEqual(recipients, [b"fred@dh.def.dom", b"bob@host.def.dom", b"sue@a.b.plus.dom", b"x@y.def.dom",
                                      b"me@[1.2.3.4]", b"a b@x.y", b"l-@h-@[]", b"\xff@x.y", b"a, b@dh.def.dom"])

    def test_an_argument_that_is_no_address_is_refused(self):
        for argument in ("Joe <joe@x.y>", "joe@x,y", "joe@(", "", "a\nb"):
            self.inject("-n", argument, code=100, err=f"qmail-inject: fatal: unable to parse address: {argument}\n".encode())

    def test_no_recipients_are_no_error(self):
        self.assertEqual(self.queued()[1], [])


class Sender(Base):
    def sender(self, *args, stdin=b"", letters="", **env):
        return self.shown(*args, stdin=stdin, env={"QMAILINJECT": letters, **env})[0]

    def test_the_option_wins(self):
        self.assertEqual(self.sender("-fjim", stdin=b"Return-Path: <x@y.z>\n"), b"jim@dh.def.dom")
        self.assertEqual(self.sender("-f", "", stdin=b"Return-Path: <x@y.z>\n"), b"")
        self.assertEqual(self.sender("-f", "a b@x.y"), b'"a b"@x.y')
        self.inject("-n", "-f", "a@b c", code=100, err=b"qmail-inject: fatal: unable to parse address: a@b c\n")

    def test_a_return_path_comes_next_unless_it_is_not_wanted(self):
        text = b"Return-Path: <x@y>\nReturn-Path: <z@z.z>\n"
        self.assertEqual(self.sender(stdin=text), b"x@y.def.dom")
        self.assertEqual(self.sender(stdin=text, letters="s"), b"joe@dh.def.dom")
        self.assertEqual(self.sender(stdin=text, letters="r"), b'"x@y.def.dom-"@[]')
        self.assertEqual(self.sender(stdin=b"Return-Path: <>\n"), b"")

    def test_the_default_sender_comes_from_the_environment(self):
        self.assertEqual(self.sender(QMAILSUSER="bounce", QMAILSHOST="b.host", QMAILHOST="h.host"), b"bounce@b.host")
        self.assertEqual(self.sender(QMAILHOST="h.host"), b"joe@h.host")

    def test_senders_of_their_own_for_messages_and_recipients(self):
        self.assertRegex(self.sender(letters="m"), rb"^joe-\d+\.\d+@dh\.def\.dom$")
        self.assertEqual(self.sender(letters="r"), b'"joe-@dh.def.dom-"@[]')
        self.assertEqual(self.queued(env={"QMAILINJECT": "r"})[0], b"joe-@dh.def.dom-@[]")


class Author(Base):
    def author(self, letters="", stdin=b"", **env):
        out = self.shown(stdin=stdin, env={"QMAILINJECT": letters, **env})[1]
        return re.search(rb"(?m)^From: (.*)$", out)[1]

    def test_the_first_variable_that_is_set_names_the_user(self):
        names = {"QMAILUSER": "a", "MAILUSER": "b", "USER": "c", "LOGNAME": "d"}
        for name in list(names):
            self.assertEqual(self.author(**names), names[name].encode() + b"@dh.def.dom")
            del names[name]
            if name == "USER":
                break
        result = self.home.run(["qmail-inject", "-n"], env={"LOGNAME": "d"})
        self.assertIn(b"From: d@dh.def.dom\n", result.out)
        result = self.home.run(["qmail-inject", "-n"])
        self.assertIn(b"From: anonymous@dh.def.dom\n", result.out)

    def test_host_and_name_come_the_same_way(self):
        self.assertEqual(self.author(QMAILHOST="q", MAILHOST="m"), b"joe@q.def.dom")
        self.assertEqual(self.author(MAILHOST="m.dom"), b"joe@m.dom")
        self.assertEqual(self.author(QMAILNAME="Q", MAILNAME="M", NAME="N"), b'"Q" <joe@dh.def.dom>')
        self.assertEqual(self.author(MAILNAME='M "x" \\', NAME="N"), b'"M \\"x\\" \\\\" <joe@dh.def.dom>')
        self.assertEqual(self.author(NAME="J\u00fcrgen"), '"J\u00fcrgen" <joe@dh.def.dom>'.encode())
        self.assertEqual(self.author(NAME=""), b"joe@dh.def.dom")

    def test_letter_c_makes_the_name_a_comment(self):
        self.assertEqual(self.author("c", NAME="Joe (x)"), b"joe@dh.def.dom (Joe \\(x\\))")

    def test_a_line_break_in_a_name_starts_no_field(self):
        self.assertEqual(self.author(NAME="Joe\nBcc: x@y"), b'"Joe Bcc: x@y" <joe@dh.def.dom>')

    def test_letters_f_and_i_replace_what_came_in(self):
        text = b"From: x@y.z\nMessage-ID: <1@2>\nTo: a@x.y\n"
        self.assertEqual(self.shown(stdin=text, env={"QMAILINJECT": "fi"})[1], ADDED + b"From: joe@dh.def.dom\nTo: a@x.y\n")

    def test_a_strange_user_is_quoted(self):
        self.assertEqual(self.author(QMAILUSER="a b\\c"), b'"a b\\\\c"@dh.def.dom')


class Controls(Base):
    def test_the_environment_wins_over_control_files(self):
        env = {"QMAILDEFAULTHOST": "h", "QMAILDEFAULTDOMAIN": "d.dom", "QMAILPLUSDOMAIN": "p.dom", "QMAILIDHOST": "i"}
        _, out = self.shown(stdin=b"To: a, b@c+\n", env=env)
        self.assertEqual(out, b"Date: DATE\nMessage-ID: <ID@i>\nFrom: joe@h.d.dom\nTo: a@h.d.dom, b@c.p.dom\n")

    def test_missing_files_default_to_me_and_then_to_their_names(self):
        with Home(me="me.dom") as home:
            for name in ("defaulthost", "defaultdomain", "plusdomain"):
                home.remove_control(name)
            run = lambda: golden(home.run(["qmail-inject", "-n"], b"To: a, b@c, d@e+\n", {"USER": "u"}).out)
            self.assertEqual(run(), b"Return-Path: <u@me.dom>\nDate: DATE\nMessage-ID: <ID@me.dom>\nFrom: u@me.dom\n"
                             b"To: a@me.dom, b@c.me.dom, d@e.me.dom\n")
            home.remove_control("me")
            self.assertIn(b"<ID@idhost>\nFrom: u@defaulthost.defaultdomain\n"
                          b"To: a@defaulthost.defaultdomain, b@c.defaultdomain, d@e.plusdomain\n", run())
            home.control("defaultdomain", "a, b\n")
            result = home.run(["qmail-inject", "-n"])
            self.assertEqual((result.code, result.err), (111, b"qmail-inject: fatal: control/defaultdomain or "
                                                         b"QMAILDEFAULTDOMAIN is not a host name\n"))
            os.unlink(home.file("control", "defaultdomain"))
            os.mkdir(home.file("control", "defaultdomain"))
            result = home.run(["qmail-inject", "-n"])
            self.assertEqual((result.code, result.err), (111, b"qmail-inject: fatal: unable to read control/defaultdomain: "
                                                         b"is a directory (#4.3.0)\n"))

    def test_an_empty_file_completes_nothing(self):
        with Home(me="me.dom") as home:
            for name in ("defaulthost", "defaultdomain"):
                home.control(name, "")
            result = home.run(["qmail-inject", "-n"], b"To: a, b@c\n", {"USER": "u"})
            self.assertIn(b"\nTo: a, b@c\n", result.out)

    def test_without_a_home_nothing_is_queued(self):
        result = self.home.run(["qmail-inject", "x"], env={"QMAIL_HOME": "/nowhere"})
        self.assertEqual((result.code, result.err),
                         (111, b"qmail-inject: fatal: unable to use home /nowhere: file does not exist\n"))


class Followup(Base):
    def test_a_list_among_the_recipients_asks_for_answers_to_all(self):
        lists = self.home.write("lists", "# mine\nLIST@x.y\n")
        text = b"To: a, list@x.y\nCc: \"b c\"@x.y, d@x.y\n"
        _, out = self.shown(stdin=text, env={"QMAILMFTFILE": "lists"}, cwd=os.path.dirname(lists))
        self.assertEqual(out, ADDED + b"From: joe@dh.def.dom\nMail-Followup-To: \"b c\"@x.y,\n  d@x.y,\n"
                         b"  a@dh.def.dom,\n  list@x.y\nTo: a@dh.def.dom, list@x.y\nCc: \"b c\"@x.y, d@x.y\n")
        for other in (b"To: a\n", text + b"Mail-Followup-To: x\n", text + b"Resent-Date: x\n", b"Bcc: list@x.y\n"):
            _, out = self.shown(stdin=other, env={"QMAILMFTFILE": lists})
            self.assertNotIn(b"Mail-Followup-To: \"", out)

    def test_a_missing_file_asks_for_nothing_and_a_bad_one_is_a_trouble(self):
        self.shown(stdin=b"To: a\n", env={"QMAILMFTFILE": "/nowhere/lists"})
        self.inject("-n", env={"QMAILMFTFILE": "/"}, code=111, err=b"qmail-inject: fatal: unable to read /: is a directory\n")


class Ends(Base):
    def test_wrong_options_get_one_line(self):
        self.inject("-x", code=100, err=b"qmail-inject: illegal option -- x\n")
        self.inject("-f", code=100, err=b"qmail-inject: option requires an argument -- f\n")

    def test_help_is_printed_on_demand(self):
        self.assertIn(b"usage: qmail-inject [-nNaAhH]", self.inject("--help"))

    def test_the_queue_has_the_last_word(self):
        for answer, status, code, err in [
            ("", "0", 0, b""),
            ("Dno way (#5.7.1)", "82", 100, b"qmail-inject: fatal: no way (#5.7.1)\n"),
            ("Zlater", "82", 111, b"qmail-inject: fatal: later\n"),
            ("", "53", 111, b"qmail-inject: fatal: qq write error or disk full (#4.3.0)\n"),
            ("", "31", 100, b"qmail-inject: fatal: mail server permanently rejected message (#5.3.0)\n"),
            ("", "101", 111, b"qmail-inject: fatal: qq temporary problem (#4.3.0)\n"),
        ]:
            self.inject("a", stdin=b"x" * 100000, env={"QMAILQUEUE": self.refuse, "ANSWER": answer, "CODE": status},
                        code=code, err=err)

    def test_a_queue_that_cannot_be_run_is_temporary(self):
        self.inject("a", env={"QMAILQUEUE": "/nowhere"}, code=111, err=b"qmail-inject: fatal: unable to exec qq (#4.3.0)\n")

    def test_a_queue_that_stops_reading_is_believed_only_when_it_fails(self):
        for status, code, err in ((0, 111, b"qq read error (#4.3.0)"), (53, 111, b"qq write error or disk full (#4.3.0)")):
            deaf = self.home.write("deaf", f"#!/bin/sh\nexit {status}\n", 0o755)
            self.inject("a", stdin=b"x" * 300000, env={"QMAILQUEUE": deaf}, code=code, err=b"qmail-inject: fatal: " + err + b"\n")

    def test_an_unreadable_message_is_not_queued(self):
        directory = os.open("/", os.O_RDONLY)
        self.addCleanup(os.close, directory)
        self.inject("a", fds={0: directory}, code=111, err=b"qmail-inject: fatal: read error: is a directory\n")

    def test_output_that_cannot_be_written_is_a_trouble(self):
        full = os.open("/dev/full", os.O_WRONLY)
        self.addCleanup(os.close, full)
        self.inject("-n", fds={1: full}, code=111, err=b"qmail-inject: fatal: unable to write: out of disk space\n")

    def test_a_message_gets_into_a_real_queue(self):
        self.inject("a@x.y", stdin=b"Subject: hi\n\nhello\n", env={"QMAILDOOR": "direct"})
        todo = self.home.file("queue", "todo")
        [number] = os.listdir(todo)
        with open(os.path.join(todo, number), "rb") as f:
            self.assertIn(b"\0Fjoe@dh.def.dom\0Ta@x.y\0", f.read())
        with open(self.home.file("queue", "mess", str(int(number) % 23), number), "rb") as f:
            self.assertTrue(f.read().endswith(b"Subject: hi\n\nhello\n"))


if __name__ == "__main__":
    unittest.main()
