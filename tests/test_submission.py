"""Submission: qmail-smtpd with SUBMISSION in its environment. Logins first, senders of the account, whole headers, a rate."""

import base64
import os
import poplib
import re
import shutil
import smtplib
import subprocess
import unittest

from tests import checkers, harness, logins, tinycdb
from tests.certificates import Certified, files_of, self_signed
from tests.checkers import b64, plain
from tests.harness import Home, Line, dialogue
from tests.packages import tool
from tests.test_tlsserver import Server, trusting
from tests.tlsfront import Front

HOME = None


def setUpModule():
    global HOME
    HOME = Home()
    unittest.addModuleCleanup(HOME.__exit__)
    checkers.install(HOME)
    HOME.control("locals", "test.example\nother.example\n")
    HOME.control("idhost", "id.example\n")


class Submission(unittest.TestCase):
    def setUp(self):
        self.home, self.kept = HOME, checkers.empty(HOME)
        HOME.control("authinsecure", "1\n")
        HOME.control("submissionsenders", "")

    def env(self, **more):
        return {**checkers.capturing(HOME), "TCPREMOTEIP": "192.0.2.7", "SUBMISSION": "1", **more}

    def start(self, **env):
        line = Line.start(["qmail-smtpd", "checker", "true"], self.env(**env))
        self.addCleanup(line.close)
        line.expect("220 test.example ESMTP")
        return line

    def log_in(self, name="joe", password="secret", **env):
        line = self.start(**env)
        dialogue(line, f"C: AUTH PLAIN {plain(name, password)}\nS: 235 ok, go ahead")
        return line

    def test_no_mail_without_a_login(self):
        dialogue(self.start(RELAYCLIENT=""), """
            C: MAIL FROM:<joe@test.example>
            S: 530 authentication required (#5.7.0)
            C: RCPT TO:<x@elsewhere.example>
            S: 503 MAIL first (#5.5.1)
            C: DATA
            S: 503 MAIL first (#5.5.1)
        """)
        line = Line.start(["qmail-smtpd"], self.env())
        self.addCleanup(line.close)
        dialogue(line, "S: 220 ...\nC: MAIL FROM:<a@b>\nS: 530 authentication required (#5.7.0)")

    def test_where_tls_is_to_be_had_it_comes_first(self):
        HOME.control("authinsecure", "0\n")
        with Front(["qmail-smtpd", "checker", "true"], self.env()) as front:
            with Line.connect(front.port) as line:
                dialogue(line, """
                    S: 220 ...
                    C: MAIL FROM:<joe@test.example>
                    S: 530 must issue a STARTTLS command first (#5.7.0)
                """)
            with smtplib.SMTP("127.0.0.1", front.port, timeout=harness.TIMEOUT) as client:
                client.starttls(context=front.client_context())
                self.assertEqual(client.mail("joe@test.example"), (530, b"authentication required (#5.7.0)"))
                client.login("joe", "secret")
                client.sendmail("joe@test.example", ["x@elsewhere.example"], "Subject: x\n\nhi\n")
        self.assertIn(b" with ESMTPSA; ", checkers.read(self.kept, "message"))

    def test_the_sender_is_one_of_the_account(self):
        HOME.control("submissionsenders", "joe:sales@example.net @example.com\n")
        line = self.log_in()
        for sender, taken in (("joe@test.example", True), ("Joe@Other.Example", True), ("joe-list@test.example", True), ("", True),
                              ("sales@example.net", True), ("who@example.com", True), ("ann@test.example", False),
                              ("joe@elsewhere.example", False), ("joey@test.example", False), ("x@sub.example.com", False)):
            line.send(f"MAIL FROM:<{sender}>\r\n")
            line.expect("250 ok" if taken else "553 sorry, that sender address is not one of your account (#5.7.1)")
            line.send("RCPT TO:<x@elsewhere.example>\r\n")
            line.expect("250 ok" if taken else "503 MAIL first (#5.5.1)")
        line = self.log_in("jim@example.net", "pa ss,wo=rd")
        dialogue(line, """
            C: MAIL FROM:<jim@example.net>
            S: 250 ok
            C: MAIL FROM:<jim@test.example>
            S: 553 ...
        """)

    def test_a_name_with_a_dash_that_is_an_account_is_not_its_beginnings(self):
        self.addCleanup(lambda: os.path.exists(HOME.file("control/submissionsenders.cdb")) and HOME.remove_control("submissionsenders.cdb"))
        HOME.control("submissionsenders", "joe-smith:\n")
        for indexed in False, True:
            if indexed:
                self.assertEqual(HOME.run(["qmail-newsenders"]).code, 0)
            dialogue(self.log_in(), """
                C: MAIL FROM:<joe-list@test.example>
                S: 250 ok
                C: MAIL FROM:<Joe-Smith@test.example>
                S: 553 ...
                C: MAIL FROM:<joe-smith-list@other.example>
                S: 553 ...
            """)

    def test_the_index_of_senders_is_asked_as_long_as_it_is_of_the_file(self):
        self.addCleanup(lambda: os.path.exists(HOME.file("control/submissionsenders.cdb")) and HOME.remove_control("submissionsenders.cdb"))

        def may(sender):
            line = self.log_in()
            line.send(f"MAIL FROM:<{sender}>\r\n")
            return line.expect("...")[:3] == "250"
        HOME.control("submissionsenders", "JOE:a@example.net\n# joe:b@example.net\n")
        self.assertEqual(HOME.run(["qmail-newsenders"]).code, 0)
        self.assertEqual((may("a@example.net"), may("b@example.net")), (True, False))
        # What only the index has: it was asked.
        with open(HOME.file("control/submissionsenders.cdb"), "rb") as f:
            records = dict(tinycdb.records(f.read()))
        HOME.write("control/submissionsenders.cdb", tinycdb.make([(b"joe", b"c@example.net"), (b"\n", records[b"\n"])]))
        self.assertEqual((may("a@example.net"), may("c@example.net")), (False, True))
        HOME.control("submissionsenders", "joe:d@example.net d2@example.net\n")
        self.assertEqual((may("c@example.net"), may("d2@example.net")), (False, True))
        said = harness.run(["qmail-smtpd", "checker", "true"], b"QUIT\r\n", env=self.env()).err
        self.assertEqual(said, b"qmail-smtpd: warning: the index of control/submissionsenders is not of this file: run qmail-newsenders\n")
        HOME.write("control/submissionsenders.cdb", "damaged")
        result = harness.run(["qmail-smtpd", "checker", "true"], env=self.env())
        self.assertEqual((result.out[:3], b"control/submissionsenders.cdb: damaged database" in result.err), (b"421", True), result)
        HOME.write("control/submissionsenders.cdb", tinycdb.make([(b"joe", b"c@example.net"), (b"\n", records[b"\n"])]))
        HOME.remove_control("submissionsenders")
        self.assertEqual(may("c@example.net"), False)

    def send(self, message):
        line = self.log_in()
        dialogue(line, """
            C: MAIL FROM:<joe@test.example>
            S: 250 ok
            C: RCPT TO:<x@elsewhere.example>
            S: 250 ok
            C: DATA
            S: 354 go ahead
        """)
        line.send(message.replace("\n", "\r\n") + ".\r\n")
        line.expect("250 ok ...")
        line.close()
        text = checkers.read(self.kept, "message").decode()
        received, _, rest = text.partition(" -0000\n")
        self.assertTrue(received.startswith("Received: from "), received)
        return rest

    DATE = r"Date: \d+ [A-Z][a-z][a-z] \d{4} \d\d:\d\d:\d\d -0000\n"
    ID = r"Message-ID: <\d{14}\.[0-9a-f]{48}\.qmail@id\.example>\n"

    def test_date_and_message_id_are_added_where_they_are_missing(self):
        self.assertRegex(self.send("Subject: x\n\nhi\n"), f"^Subject: x\n{self.DATE}{self.ID}\nhi\n$")
        self.assertRegex(self.send("Subject: x\n"), f"^Subject: x\n{self.DATE}{self.ID}$")
        self.assertRegex(self.send("date: mine\nSubject: x\n\nDate: body\n"), f"^date: mine\nSubject: x\n{self.ID}\nDate: body\n$")
        whole = "Message-ID: <a@b>\nDate: mine\nTo: x,\n Date: y\n\nhi\n"
        self.assertEqual(self.send(whole), whole)
        ids = {re.search(self.ID, self.send("A: b\n\n")).group() for _ in range(2)}
        self.assertEqual(len(ids), 2)

    def test_a_large_message_passes_as_it_is(self):
        body = "".join(f"{n}: some line of the body\n" for n in range(50000))
        self.assertTrue(self.send("Date: d\nMessage-ID: <a@b>\n\n" + body).endswith("\n\n" + body))


class Rate(logins.InAHome):
    """The books of an account's recipients are qmail-authd's."""

    def setUp(self):
        super().setUp()
        checkers.install(self.home)
        self.home.control("authinsecure", "1\n")
        self.home.control("submissionrate", "3\n")

    def send(self, recipients, expected, queue=True, name="joe", password="secret"):
        env = {**(checkers.capturing(self.home) if queue else self.home.env), "SUBMISSION": "1"}
        with Line.start(["qmail-smtpd", "checker", "true"], env) as line:
            sender = name if "@" in name else name + "@test.example"
            dialogue(line, f"S: 220 ...\nC: AUTH PLAIN {plain(name, password)}\nS: 235 ...\nC: MAIL FROM:<{sender}>\nS: 250 ...")
            for n in range(recipients):
                dialogue(line, f"C: RCPT TO:<r{n}@test.example>\nS: 250 ok")
            dialogue(line, f"C: DATA\nS: {expected}")

    def test_recipients_of_an_hour_are_counted_by_account(self):
        self.send(2, "354 go ahead")
        self.send(2, "450 sorry, your account has sent too much within the hour (#4.7.1)")
        self.send(1, "354 go ahead")
        self.send(1, "450 ...")
        self.send(3, "354 go ahead", name="jim@example.net", password="pa ss,wo=rd")
        self.send(1, "450 ...", queue=False)
        self.home.control("submissionrate", "0\n")
        self.send(1, "354 go ahead")
        self.home.control("submissionrate", "3\n")
        self.authd.stop()
        self.send(1, "451 unable to see now how much your account has sent (#4.3.0)")
        self.send(1, "451 ...", queue=False)
        self.home.remove_control("submissionrate")
        self.send(1, "354 go ahead")

    def name(self, said):
        """A checker that lets everybody in and has a name for them."""
        self.script("names", f'test "$SASL_ACCOUNT_FD" = 4 && printf {said} >&4; shift; exec true')

    def log_in(self, name, *words):
        line = Line.start(["qmail-smtpd", *words, "names", "program"], {**self.home.env, "SUBMISSION": "1", "TCPREMOTEIP": "192.0.2.7"})
        self.addCleanup(line.close)
        dialogue(line, f"S: 220 ...\nC: AUTH PLAIN {plain(name, 'x')}\nS: 235 ...")
        return line

    def test_an_account_is_whom_the_checker_names(self):
        self.name(r"'\njoe@example.net'")
        for words in ((), ("authask",)):
            line = self.log_in("Joe@other.example", *words)
            dialogue(line, """
                C: MAIL FROM:<joe@other.example>
                S: 553 ...
                C: MAIL FROM:<joe-x@example.net>
                S: 250 ok
                C: RCPT TO:<a@test.example>
                S: 250 ok
                C: RCPT TO:<b@test.example>
                S: 250 ok
            """)
        dialogue(line, "C: DATA\nS: 354 ...\nC: Subject: x\nC:\nC: .\nS: 250 ...")
        for typed, expected in (("another", "450 ..."), ("joe@example.net", "450 ...")):
            dialogue(self.log_in(typed, "authask"), f"""
                C: MAIL FROM:<>
                S: 250 ok
                C: RCPT TO:<a@test.example>
                S: 250 ok
                C: RCPT TO:<b@test.example>
                S: 250 ok
                C: DATA
                S: {expected}
            """)

    def test_a_checker_that_has_no_good_name_leaves_the_one_that_was_typed(self):
        for said in ("''", "joe@example.net", r"'\n'", r"'\na\nb'", r"'\na\000b'"):
            self.name(said)
            for words in ((), ("authask",)):
                line = self.log_in("jim@example.com", *words)
                dialogue(line, "C: MAIL FROM:<jim@example.com>\nS: 250 ok\nC: MAIL FROM:<joe@example.net>\nS: 553 ...")


class BehindTlsserver(Certified):
    """The real thing: tlsserver before qmail-smtpd and qmail-popup, gsasl and msmtp as clients."""

    def setUp(self):
        self.kept = checkers.empty(HOME)
        HOME.control("authinsecure", "0\n")
        checkers.offer_scram(HOME)

    def serve(self, *options, program, **env):
        env = {**checkers.capturing(HOME), "CHECKER_HOME": HOME.file("home", "joe"), **env}
        return self.enterContext(Server(*options, store=self.store, program=program, env=env))

    def gsasl(self, server, protocol, *options):
        done = subprocess.run(["gsasl", protocol, "--connect", f"localhost:{server.port}", "--authentication-id", "joe", "--password",
                               "secret", "--starttls", "--x509-ca-file", self.ca.file, *options],
                              input="", capture_output=True, text=True, timeout=harness.TIMEOUT)
        return done.stdout + done.stderr

    @unittest.skipUnless(shutil.which("gsasl"), "scripts/test-packages installs gsasl")
    def test_gsasl_binds_scram_to_the_session(self):
        server = self.serve("-n", program=("qmail-smtpd", "checker", "true"), SUBMISSION="1")
        said = self.gsasl(server, "--smtp", "--mechanism", "SCRAM-SHA-256-PLUS")
        self.assertIn("AUTH SCRAM-SHA-256-PLUS", said)
        self.assertIn("235 2.7.0 ok, go ahead", said)
        self.assertEqual(self.told_binding(said), b"p=tls-exporter,")

    @staticmethod
    def told_binding(said):
        first = re.search(r"^AUTH SCRAM-SHA-256-PLUS(?: |\r?\n334 ?\r?\n)([A-Za-z0-9+/=]+)", said, re.M).group(1)
        return base64.b64decode(first)[:15]

    def test_a_user_sends_from_both_ports(self):
        for options, client in ((["-n"], self.by_starttls), ([], self.at_once)):
            server = self.serve(*options, program=("qmail-smtpd", "checker", "true"), SUBMISSION="1")
            with client(server) as smtp:
                smtp.login("joe", "secret")
                smtp.sendmail("joe@test.example", ["x@elsewhere.example"], "Subject: x\n\nhi\n")
            message = checkers.read(self.kept, "message")
            self.assertIn(b"(joe@127.0.0.1)", message)
            self.assertIn(b" with ESMTPSA; ", message)
            self.assertIn(b"\nMessage-ID: <", message)
            self.assertIn("LOGIN, user=joe, method=", server.log())

    def by_starttls(self, server):
        smtp = smtplib.SMTP("localhost", server.port, timeout=harness.TIMEOUT)
        smtp.starttls(context=trusting(authority=self.ca))
        return smtp

    def at_once(self, server):
        return smtplib.SMTP_SSL("localhost", server.port, timeout=harness.TIMEOUT, context=trusting(authority=self.ca))

    def test_a_client_certificate_is_as_good_as_a_password(self):
        HOME.control("tlsclients", "joe@test.example\n")
        self.addCleanup(HOME.remove_control, "tlsclients")
        mine = "email:joe@test.example"
        server = self.serve("-n", "-A", self.ca.file, program=("qmail-smtpd",), SUBMISSION="1")
        for pair, codes in ((self.ca.issue("joe", alternatives=mine), (235,)),
                            (self.ca.issue("ann", alternatives="email:ann@test.example"), (502, 504)),  # not listed
                            (self.ca.issue("joe", alternatives=mine, days="-1"), (502, 504)),
                            (self_signed("joe", alternatives=mine), (502, 504)),  # anybody can write that name
                            (None, (502, 504))):
            with smtplib.SMTP("localhost", server.port, timeout=harness.TIMEOUT) as smtp:
                smtp.starttls(context=trusting(authority=self.ca, **({"pair": pair} if pair else {})))
                smtp.ehlo()
                self.assertEqual("EXTERNAL" in smtp.esmtp_features.get("auth", ""), codes == (235,))
                self.assertIn(smtp.docmd("AUTH", "EXTERNAL =")[0], codes)
                if codes == (235,):
                    smtp.sendmail("joe@test.example", ["x@elsewhere.example"], "Subject: x\n\nhi\n")
                    self.assertIn(b"(joe@test.example@127.0.0.1)", checkers.read(self.kept, "message"))
                else:
                    self.assertEqual(smtp.mail("joe@test.example")[0], 530)

    def test_openssl_shows_a_certificate_and_asks_to_be_somebody(self):
        HOME.control("tlsclients", "joe@test.example\n")
        self.addCleanup(HOME.remove_control, "tlsclients")
        cert, key = files_of(self.ca.issue("joe", alternatives="email:joe@test.example"), self.ca.base)
        server = self.serve("-n", "-A", self.ca.file, program=("qmail-smtpd",), SUBMISSION="1")
        for who, reply in (("=", "235 2.7.0 "), (b64("joe@test.example"), "235 2.7.0 "), (b64("ann@test.example"), "535 5.7.8 ")):
            said = self.s_client(server, f"EHLO x\nAUTH EXTERNAL {who}\nQUIT\n", "-cert", cert, "-key", key)
            self.assertIn("EXTERNAL", said)
            self.assertIn("\n" + reply, said)

    def s_client(self, server, text, *options):
        done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-starttls", "smtp", "-quiet", "-crlf",
                               *options], input=text, capture_output=True, text=True, timeout=harness.TIMEOUT)
        return done.stdout

    def test_openssl_with_an_old_version_or_a_weak_suite_gets_no_session(self):
        server = self.serve("-n", program=("qmail-smtpd", "checker", "true"))
        self.assertIn("250 AUTH ", self.s_client(server, "EHLO x\nQUIT\n", "-tls1_2"))
        for options in (["-tls1"], ["-tls1_1"], ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"]):
            said = self.s_client(server, "EHLO x\nQUIT\n", *options, *([] if "-cipher" in options else ["-cipher", "ALL:@SECLEVEL=0"]))
            self.assertNotIn("AUTH", said)
        harness.wait_for(lambda: len(server.failures()) == 3, "a line for each")

    def test_what_is_said_before_the_handshake_is_never_heard_inside(self):
        smtp = self.serve("-n", program=("qmail-smtpd", "checker", "true"), SUBMISSION="1")
        pop = self.serve("-n", program=("qmail-popup", "pop.example", "checker", "qmail-pop3d", "Maildir"))
        for server, command, ready, no in ((smtp, "STARTTLS", "220 ...", "554 nothing may follow STARTTLS ..."), (pop, "STLS", "+OK ...", "-ERR nothing may follow STLS ...")):
            with Line.connect(server.port) as line:  # with the command
                line.expect(ready)
                line.send(f"{command}\r\nNOOP\r\n")
                line.expect(no)
                self.assertEqual(line.reader.read(), b"")
            with Line.connect(server.port) as line:  # after the answer
                line.expect(ready)
                line.send(command + "\r\n")
                line.expect(ready)
                line.send("NOOP\r\n")
                self.assertEqual(line.reader.read()[:1], b"\x15")  # an alert of TLS, and no answer
            harness.wait_for(lambda: len(server.failures()) == 1, "a line of the log")

    def test_reading_by_stls_and_scram(self):
        server = self.serve("-n", program=("qmail-popup", "pop.example", "checker", "qmail-pop3d", "Maildir"))
        client = poplib.POP3("localhost", server.port, timeout=harness.TIMEOUT)
        self.addCleanup(client.close)
        client.stls(context=trusting(authority=self.ca))
        self.assertIn("SCRAM-SHA-256-PLUS", client.capa()["SASL"])
        scram = checkers.Scram("joe", "secret")
        client._putcmd("AUTH SCRAM-SHA-256 " + scram.first())
        client._putline(scram.final(client._getline()[0].decode()[2:]).encode())
        self.assertEqual(client._getline()[0], b"+ " + scram.expected().encode())
        client._putline(b"")
        self.assertTrue(client._getline()[0].startswith(b"+OK"))
        self.assertEqual(client.stat(), (0, 0))
        client.quit()

    def on_both_ports(self):
        """(server, whether TLS comes first)"""
        for options in (["-n"], []):
            yield self.serve(*options, program=("qmail-smtpd", "checker", "true"), SUBMISSION="1", SMTPAUTH="+cram"), not options

    def sends(self, server, mechanism, argv):
        """A mail reader sends a message whose subject is the mechanism's name."""
        directory = harness.scratch()
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        path, env = tool(argv[0])
        done = subprocess.run([path, *argv[1:], "-s", mechanism, "x@elsewhere.example"], input="hi\n", cwd=directory,
                              env={**env, "HOME": directory, "TERM": "dumb", "LC_ALL": "C.UTF-8"}, capture_output=True, text=True,
                              timeout=harness.TIMEOUT)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr + server.log())
        message = checkers.read(self.kept, "message")
        self.assertIn(f"\nSubject: {mechanism}\n".encode(), message)
        self.assertRegex(message, rb"\(joe@127\.0\.0\.1\)\n  by \S+ with ESMTPSA; ")
        server.wait_log(rf"^qmail-smtpd: LOGIN, user=joe, method={mechanism}, ")

    def test_mutt_logs_in_on_both_ports(self):
        for server, first in self.on_both_ports():
            for mechanism in ("PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"):
                self.sends(server, mechanism, [
                    "mutt", "-F", "/dev/null", "-e", f'set smtp_url="smtp{"s" * first}://joe@localhost:{server.port}" smtp_pass=secret '
                    f'ssl_force_tls=yes ssl_ca_certificates_file="{self.ca.file}" smtp_authenticators={mechanism.lower()} '
                    "copy=no from=joe@test.example use_envelope_from=yes"])

    def test_s_nail_logs_in_on_both_ports(self):
        for server, first in self.on_both_ports():
            for mechanism in ("PLAIN", "LOGIN", "CRAM-MD5"):
                self.sends(server, mechanism, [
                    "s-nail", "-:/", "-Sv15-compat=yes", f"-Smta=submission{'s' * first}://joe:secret@localhost:{server.port}",
                    "-Ssmtp-use-starttls", f"-Ssmtp-auth={mechanism.lower()}", "-Sfrom=joe@test.example", f"-Stls-ca-file={self.ca.file}",
                    "-Stls-verify=strict"])

    def test_s_nail_reads_on_both_ports(self):
        path, env = tool("s-nail")
        message = HOME.write("home/joe/Maildir/new/1.1.x", "Subject: to be read\n\nread me\n")
        self.addCleanup(os.unlink, message)
        os.utime(message, (1, 1))
        for options, scheme in (["-n"], "pop3"), ([], "pop3s"):
            server = self.serve(*options, program=("qmail-popup", "pop.example", "checker", "qmail-pop3d", "Maildir"))
            done = subprocess.run(
                [path, "-:/", "-Sv15-compat=yes", "-Spop3-use-starttls", f"-Stls-ca-file={self.ca.file}", "-Stls-verify=strict", "-R", "-f",
                 f"{scheme}://joe:secret@localhost:{server.port}"], input="type 1\nxit\n", capture_output=True, text=True,
                env={**env, "HOME": HOME.base, "TERM": "dumb", "MAILRC": "/dev/null", "LC_ALL": "C.UTF-8"}, timeout=harness.TIMEOUT)
            self.assertIn("\nread me\n", done.stdout, done.stderr)
            server.wait_log(r"^tlsserver: tls \d+ TLSv1\.3 \S+ localhost full$")

    def test_a_program_of_qmailqueue_is_told_who_sends_and_how(self):
        HOME.write("environ.sh", '#!/bin/sh\ncat >/dev/null\ncat <&1 >/dev/null\nenv >"$CAPTURE_DIR/environ"\n'
                   'for f in /proc/$$/fd/*; do readlink "$f"; done >"$CAPTURE_DIR/open"; echo $PPID >"$CAPTURE_DIR/parent"\n', 0o755)
        for options, client in ((["-n"], self.by_starttls), ([], self.at_once)):
            # What the run script has of these is nobody's word.
            server = self.serve(*options, program=("qmail-smtpd", "checker", "true"), QMAILQUEUE=HOME.file("environ.sh"),
                                SMTPAUTHUSER="mallory", TLS_PROTOCOL="TLSv9")
            with client(server) as smtp:
                smtp.sendmail("x@elsewhere.example", ["joe@test.example"], "Subject: x\n\nhi\n")
                told = self.told()
                self.assertEqual(told["TLS_PROTOCOL"], "TLSv1.3")
                self.assertEqual(told.keys() & {"SMTPAUTHUSER", "SMTPAUTHMETHOD", "RELAYCLIENT"}, set())
                smtp.user, smtp.password = "joe", "secret"
                smtp.auth("PLAIN", smtp.auth_plain)
                smtp.sendmail("joe@test.example", ["x@elsewhere.example"], "Subject: x\n\nhi\n")
                told = self.told()
                # Who has started it has but the one that leads to the conversation.
                parent = f"/proc/{int(checkers.read(self.kept, 'parent'))}/fd"
                if os.geteuid() == 0:
                    sockets = [name for name in os.listdir(parent) if os.readlink(f"{parent}/{name}").startswith("socket:")]
                    self.assertEqual(len(sockets), 1)
            wanted = {"SMTPAUTHUSER": "joe", "SMTPAUTHMETHOD": "PLAIN", "RELAYCLIENT": "", "TCPREMOTEINFO": "joe", "TCPREMOTEIP": "127.0.0.1",
                      "TLS_PROTOCOL": "TLSv1.3", "SSL_PROTOCOL": "TLSv1.3", "TLS_SERVER_NAME": "localhost"}
            self.assertEqual({name: told.get(name) for name in wanted}, wanted)
            self.assertTrue(told["TLS_CIPHER"].startswith("TLS_AES_"), told)
            self.assertEqual([name for name in told if name in ("TLS_EXPORTER", "TLS_SERVER_END_POINT") or name.startswith("SSL") and name.endswith("FD")], [])
            self.assertNotIn("secret", "".join(told.values()))
            # Nor has it the session itself, where the next login may be.
            self.assertNotIn(b"socket:", checkers.read(self.kept, "open"))

    def told(self):
        return dict(line.split("=", 1) for line in checkers.read(self.kept, "environ").decode().splitlines())

    @unittest.skipUnless(shutil.which("msmtp"), "scripts/test-packages installs msmtp")
    def test_msmtp_trusts_the_certificate_and_sends(self):
        server = self.serve(program=("qmail-smtpd", "checker", "true"), SUBMISSION="1")
        for mechanism in ("plain", "login", "scram-sha-256"):
            done = subprocess.run(
                ["msmtp", "--host=localhost", f"--port={server.port}", f"--auth={mechanism}", "--user=joe", "--tls=on", "--tls-starttls=off",
                 f"--tls-trust-file={self.ca.file}", "--from=joe@test.example", "--passwordeval=echo secret", "--file=/dev/null",
                 "x@elsewhere.example"],
                input=f"Subject: {mechanism}\n\nhi\n", capture_output=True, text=True, timeout=harness.TIMEOUT)
            self.assertEqual(done.returncode, 0, done.stderr + server.log())
            self.assertIn(f"Subject: {mechanism}\n".encode(), checkers.read(self.kept, "message"))


if __name__ == "__main__":
    unittest.main()
