"""The whole chain: a message in by one door comes out where it should, and the log says so."""

import os
import re
import signal
import smtplib
import unittest

from tests import harness
from tests.harness import Daemon, Home, Line, dialogue, free_port, wait_for


class Flow(unittest.TestCase):
    """One running system for all of these; each test uses addresses of its own."""

    @classmethod
    def setUpClass(cls):
        cls.home = Home(users={"joe": "secret", "ann": "word", "list": "x"})
        cls.addClassCleanup(cls.home.__exit__)
        cls.home.control("virtualdomains", "virtual.example:joe-virt\n.wild.example:ann-wild\n")
        cls.home.control("concurrencylocal", "20\n")
        cls.home.control("rcpthosts", "test.example\n.wild.example\nvirtual.example\n")
        cls.home.start()
        cls.port = free_port()
        cls.smtpd = Daemon(["tcpserver", *harness.as_owner(), "-v", "-H", "-R", "-l", "test.example", "127.0.0.1", str(cls.port), "qmail-smtpd"],
                           env=cls.home.env)
        cls.addClassCleanup(cls.smtpd.stop)
        cls.smtpd.wait_log("status: 0/")

    def deliver(self, *recipients, body=b"Subject: x\n\nhello\n", sender="ann@test.example"):
        """Queues and waits for the end of that message; returns the log lines that speak of it."""
        before = len(self.home.log())
        self.assertEqual(self.home.inject(body, sender, recipients).code, 0)

        def ended():
            log = self.home.log()[before:]
            number = re.search(rf"info msg (\d+): bytes \d+ from <{re.escape(sender)}>", log)
            # From its beginning on: the number may have been another message's just before.
            log = log[log.rindex("new msg", 0, number.end()):] if number else ""
            return re.search(rf"^end msg {number[1]}$", log, re.M) and (number[1], log) if number else None
        number, log = wait_for(ended, f"the end of the message to {recipients}")
        ours, deliveries = [], set()
        for line in log.splitlines(True):
            start = re.match(r"starting delivery (\d+): msg (\d+) ", line)
            if start and start[2] == number:
                deliveries.add(start[1])
            report = re.match(r"delivery (\d+):", line)
            if re.search(rf" msg {number}\b", line) or report and report[1] in deliveries:
                ours.append(line)
        return "".join(ours)

    def test_smtp_in_maildir_out_with_the_trace_fields_in_order(self):
        with smtplib.SMTP("127.0.0.1", self.port, local_hostname="client.example") as client:
            client.sendmail("sender@far.example", ["joe-smtp@test.example"], b"Subject: by smtp\r\n\r\n.dots\r\n..\r\nend")
        self.home.dotqmail(".qmail-smtp", "./Smtp/\n")
        for d in ("Smtp", "Smtp/tmp", "Smtp/new", "Smtp/cur"):
            path = self.home.file("home/joe", d)
            os.makedirs(path, exist_ok=True)
            if os.geteuid() == 0:
                os.chown(path, *harness.owner()[1:])
        # The first attempt came before the mailbox was there and was told so, or found it.
        with smtplib.SMTP("127.0.0.1", self.port, local_hostname="client.example") as client:
            client.sendmail("sender@far.example", ["joe-smtp@test.example"], b"Subject: by smtp\r\n\r\n.dots\r\n..\r\nend")
        new = self.home.file("home/joe/Smtp/new")
        wait_for(lambda: os.listdir(new), "the message")
        with open(os.path.join(new, sorted(os.listdir(new))[0]), "rb") as f:
            text = f.read().decode()
        date = r"\d{1,2} \w{3} \d{4} \d\d:\d\d:\d\d -0000"
        self.assertRegex(text, (
            r"\AReturn-Path: <sender@far.example>\n"
            r"Delivered-To: joe-smtp@test.example\n"
            rf"Received: \(qmail \d+ invoked by uid \d+\); {date}\n"
            r"Received: from unknown \(HELO client.example\) \(127.0.0.1\)\n"
            rf"  by test.example with SMTP; {date}\n"
            r"Subject: by smtp\n\n.dots\n..\nend\n\Z"))

    def test_the_log_tells_the_story_of_a_message(self):
        log = self.deliver("joe@test.example")
        n = r"(\d+)"
        self.assertRegex(log, (
            rf"new msg {n}\ninfo msg \1: bytes \d+ from <ann@test.example> qp \d+ uid \d+\n"
            rf"starting delivery {n}: msg \1 to local joe@test.example\n"
            r"delivery \2: success: did_1\+0\+0/\nend msg \1\n"))
        self.assertRegex(self.home.log(), r"(?m)^status: local \d+/20 remote 0/20$")

    def test_a_forward_reaches_its_address_with_both_delivered_to_lines(self):
        self.home.dotqmail(".qmail-friends", "&ann-f@test.example\n")
        self.home.dotqmail(".qmail-f", "|cat >got-friends\n", user="ann")
        self.deliver("joe-friends@test.example")
        path = self.home.file("home/ann/got-friends")
        wait_for(lambda: os.path.exists(path) and os.path.getsize(path), "the forwarded message")
        with open(path) as f:
            text = f.read()
        self.assertIn("Delivered-To: joe-friends@test.example\n", text)

    def test_a_program_sees_its_environment(self):
        self.home.dotqmail(".qmail-env-default", '|echo "$EXT|$DEFAULT|$SENDER|$RECIPIENT|$LOCAL|$HOST|$USER" >env\n')
        self.deliver("joe-env-A.b@test.example")
        with open(self.home.file("home/joe/env")) as f:
            self.assertEqual(f.read(), "env-A.b|A.b|ann@test.example|joe-env-A.b@test.example|joe-env-A.b|test.example|joe\n")

    def test_a_program_that_fails_soft_is_deferred_and_one_that_fails_hard_bounces(self):
        self.home.dotqmail(".qmail-soft", "|if [ -e again ]; then exit 0; fi; >again; echo not yet; exit 111\n")
        before = len(self.home.log())
        self.home.inject(b"Subject: x\n\n", "ann@test.example", ["joe-soft@test.example"])
        wait_for(lambda: "deferral: not_yet/" in self.home.log()[before:], "the deferral")
        self.home.daemon.process.send_signal(signal.SIGALRM)
        wait_for(lambda: re.search(r"to local joe-soft@test.example\n(.*\n)*?delivery \d+: success: did_0\+0\+1/",
                                   self.home.log()[before:]), "the second attempt")
        self.home.dotqmail(".qmail-hard", "|echo no such luck; exit 100\n")
        log = self.deliver("joe-hard@test.example", sender="ann-b@test.example")
        self.assertIn("failure: no_such_luck/", log)
        self.assertRegex(log, r"bounce msg \d+ qp \d+\n")

    def test_a_bounce_comes_back_as_qsbmf(self):
        self.home.dotqmail(".qmail-b", "|cat >bounced\n", user="ann")
        self.deliver("nobody-here@test.example", body=b"Subject: original\n\nbody\n", sender="ann-b@test.example")
        path = self.home.file("home/ann/bounced")
        wait_for(lambda: os.path.exists(path) and os.path.getsize(path), "the bounce")
        with open(path) as f:
            text = f.read()
        body = text.split("\n\n", 1)[1]
        self.assertTrue(body.startswith("Hi. This is the qmail-send program at test.example.\n"))
        self.assertIn("\n\n<nobody-here@test.example>:\nSorry, no mailbox here by that name. (#5.1.1)\n\n", body)
        self.assertIn("\n\n--- Below this line is a copy of the message.\n\nReturn-Path: <ann-b@test.example>\n", body)
        self.assertTrue(body.endswith("Subject: original\n\nbody\n"))

    def test_a_bounce_that_bounces_goes_to_postmaster(self):
        before = len(self.home.log())
        self.home.inject(b"Subject: x\n\n", "nobody-1@test.example", ["nobody-2@test.example"])
        wait_for(lambda: re.search(r"from <#@\[\]>", self.home.log()[before:]), "the double bounce")
        wait_for(lambda: any(b"the bounce bounced" in m for m in self.home.messages("joe")), "it in postmaster's mailbox")

    def test_virtual_domains_and_their_prefix_in_bounces(self):
        self.home.dotqmail(".qmail-virt-info", "|cat >virt\n")
        log = self.deliver("info@virtual.example")
        self.assertIn("to local joe-virt-info@virtual.example\n", log)
        self.assertTrue(os.path.exists(self.home.file("home/joe/virt")))
        self.home.dotqmail(".qmail-vb", "|cat >virt-bounce\n", user="ann")
        self.deliver("missing@virtual.example", sender="ann-vb@test.example")
        path = self.home.file("home/ann/virt-bounce")
        wait_for(lambda: os.path.exists(path) and os.path.getsize(path), "the bounce")
        with open(path) as f:
            self.assertIn("\n<missing@virtual.example>:\n", f.read())
        self.home.dotqmail(".qmail-wild-default", "|cat >wild\n", user="ann")
        self.assertIn("to local ann-wild-x@a.wild.example\n", self.deliver("x@a.wild.example"))

    def test_verp_gives_each_recipient_a_sender_of_its_own(self):
        for name, text in ((".qmail", "&joe-v1@test.example\n&ann-v2@test.example\n"), (".qmail-owner", "./Maildir/\n"),
                           (".qmail-owner-default", "./Maildir/\n")):
            self.home.dotqmail(name, text, user="list")
        self.home.dotqmail(".qmail-v1", '|echo "$SENDER" >verp\n')
        self.home.dotqmail(".qmail-v2", '|echo "$SENDER" >verp\n', user="ann")
        self.deliver("list@test.example")
        for user, ext in (("joe", "joe-v1"), ("ann", "ann-v2")):
            path = self.home.file(f"home/{user}/verp")
            wait_for(lambda p=path: os.path.exists(p) and os.path.getsize(p), "the list's message")
            with open(path) as f:
                self.assertEqual(f.read(), f"list-owner-{ext}=test.example@test.example\n")

    def test_a_loop_is_found(self):
        self.home.dotqmail(".qmail-loop", "&joe-loop@test.example\n")
        before = len(self.home.log())
        self.home.inject(b"Subject: x\n\n", "", ["joe-loop@test.example"])
        wait_for(lambda: "This_message_is_looping:_it_already_has_my_Delivered-To_line." in self.home.log()[before:],
                 "the loop to be found")

    def test_mbox_and_alias_deliveries(self):
        self.home.write("alias/.qmail-help", "./Mailbox\n")
        self.deliver("help@test.example", body=b"Subject: m\n\nFrom me\n")
        with open(self.home.file("alias/Mailbox")) as f:
            text = f.read()
        self.assertRegex(text, r"\AFrom ann@test.example \w{3} \w{3} \d\d \d\d:\d\d:\d\d \d{4}\n")
        self.assertIn("\n>From me\n\n", text)

    def test_a_message_for_many_goes_to_each_once(self):
        for n in range(60):
            self.home.dotqmail(f".qmail-many-{n}", f"|cat >>many-{n}\n")
        self.deliver(*(f"joe-many-{n}@test.example" for n in range(60)), body=b"Subject: m\n\nfor many\n")
        for n in range(60):
            with open(self.home.file(f"home/joe/many-{n}")) as f:
                self.assertEqual(f.read().count("for many\n"), 1)

    def test_a_stranger_may_not_relay(self):
        with Line.connect(self.port) as line:
            dialogue(line, """
                S: 220 test.example ESMTP
                C: HELO x
                S: 250 test.example
                C: MAIL FROM:<a@b.example>
                S: 250 ok
                C: RCPT TO:<c@elsewhere.example>
                S: 553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)
                C: QUIT
                S: 221 test.example
            """)


class ByPop(unittest.TestCase):
    def test_what_was_queued_is_read_by_pop3_and_deleted(self):
        import poplib
        with Home() as home:
            home.start()
            port = free_port()
            argv = ["tcpserver", *harness.as_owner(), "-v", "-H", "-R", "-l", "0", "127.0.0.1", str(port), "qmail-popup", "test.example",
                    "checkpassword-file", home.file("users/passwd"), "qmail-pop3d", "Maildir"]
            with Daemon(argv, env=home.env) as server:
                server.wait_log("status: 0/")
                home.inject(b"Subject: pop\n\nhello\n.dot\n", "ann@test.example", ["joe@test.example"])
                home.wait_log("^end msg")
                # A message of this very second is not listed yet: its place in the order is not certain.
                new = os.path.join(home.maildir(), "new")
                path = os.path.join(new, os.listdir(new)[0])
                os.utime(path, (os.path.getmtime(path) - 5,) * 2)
                client = poplib.POP3("127.0.0.1", port, timeout=harness.TIMEOUT)
                client.user("joe")
                with self.assertRaises(poplib.error_proto):
                    client.pass_("wrong")
                client.close()
                client = poplib.POP3("127.0.0.1", port, timeout=harness.TIMEOUT)
                client.user("joe")
                client.pass_("secret")
                self.assertEqual(client.stat()[0], 1)
                lines = client.retr(1)[1]
                self.assertEqual(lines[-3:], [b"", b"hello", b".dot"])
                client.dele(1)
                client.quit()
                wait_for(lambda: not home.messages(), "the message to be gone")
                wait_for(lambda: re.search(r"tcpserver: end \d+ status \d+\ntcpserver: status: 0/40", server.log()), "its end")


class Stopping(unittest.TestCase):
    def test_mail_is_accepted_while_qmail_send_is_down_and_delivered_afterwards(self):
        with Home() as home:
            home.start()
            queued = home.queued_pid()
            self.assertEqual(home.daemon.stop(), 0)
            home.daemon = None
            self.assertEqual(home.queued_pid(), queued)
            result = home.run(["qmail-queue"], env={"QMAILDOOR": "socket"},
                              fds={0: b"Subject: x\n\nwhile down\n", 1: b"F\0Tjoe@test.example\0\0"})
            self.assertEqual(result.code, 0)
            home.start()
            self.assertEqual(home.queued_pid(), queued)
            wait_for(home.messages, "the delivery")

    def test_stopping_leaves_no_process(self):
        with Home() as home:
            home.start()
            before = harness.family(home.daemon.pid, home.queued_pid())
            self.assertLessEqual({"qmail-send", "qmail-lspawn", "qmail-rspawn", "qmail-clean", "qmail-queued"}, set(before.values()))
            self.assertEqual(home.stop(), 0)
            wait_for(lambda: not harness.family(*before), "every process to be gone")


if __name__ == "__main__":
    unittest.main()
