"""AUTH and STARTTLS of qmail-smtpd: golden dialogues, every mechanism by real clients, the checker's view, limits, attacks."""

import base64
import os
import shutil
import smtplib
import subprocess
import unittest

from tests import checkers, harness, logins
from tests.certificates import files_of, self_signed
from tests.checkers import Scram, b64, plain
from tests.harness import Home, Line, dialogue, wait_for
from tests.packages import fail2ban
from tests.tlsfront import Front

MAIL = "Subject: x\r\n\r\nhi\r\n.\r\n"
HOME = None


def setUpModule():
    global HOME
    HOME = Home()
    unittest.addModuleCleanup(HOME.__exit__)
    checkers.install(HOME)
    HOME.control("rcpthosts", "test.example\n")


class AuthTest(unittest.TestCase):
    def setUp(self):
        self.home = HOME
        self.kept = checkers.empty(HOME)
        self.controls(authinsecure="1\n")

    def controls(self, **files):
        for name in ("authinsecure", "scramparams.cdb", "scramsecret", "tlsclients"):
            content = files.get(name.replace(".", "_"))
            if content is not None:
                self.home.control(name, content)
            elif os.path.exists(self.home.file("control", name)):
                self.home.remove_control(name)

    def scram(self, **files):
        self.controls(scramparams_cdb=checkers.params(), scramsecret="never told\n", **files)

    def env(self, **more):
        return {**checkers.capturing(HOME), "TCPREMOTEIP": "192.0.2.7", **more}

    def start(self, *words, **env):
        line = Line.start(["qmail-smtpd", *(words or ("checker", "true"))], self.env(**env))
        self.addCleanup(line.close)
        line.expect("220 test.example ESMTP")
        return line

    def told(self):
        return checkers.read(self.kept, "told")


class Dialogue(AuthTest):
    def test_plain_and_login_and_what_they_allow(self):
        line = self.start()
        dialogue(line, f"""
            C: EHLO x
            S: 250-test.example
            S: 250-PIPELINING
            S: 250-8BITMIME
            S: 250-SIZE 0
            S: 250-ENHANCEDSTATUSCODES
            S: 250 AUTH PLAIN LOGIN
            C: MAIL FROM:<a@b>
            S: 250 2.1.0 ok
            C: RCPT TO:<x@elsewhere.example>
            S: 553 5.7.1 ...
            C: AUTH PLAIN {plain("joe", "secret")}
            S: 503 5.5.1 not during a message (#5.5.1)
            C: RSET
            S: 250 2.0.0 flushed
            C: AUTH PLAIN {plain("joe", "secret")}
            S: 235 2.7.0 ok, go ahead
            C: AUTH PLAIN {plain("joe", "secret")}
            S: 503 5.5.1 you are authenticated already (#5.5.1)
            C: MAIL FROM:<a@b> AUTH=<>
            S: 250 2.1.0 ok
            C: RCPT TO:<x@elsewhere.example>
            S: 250 2.1.5 ok
            C: DATA
            S: 354 go ahead
        """)
        line.send(MAIL)
        line.expect("250 2.0.0 ok ...")
        self.assertEqual(self.told(), b"joe\0secret\0\0\n")
        message = checkers.read(self.kept, "message")
        self.assertRegex(message, rb"^Received: from unknown \(HELO x\) \(joe@192\.0\.2\.7\)\n  by unknown with ESMTPA; ")
        self.assertEqual(checkers.read(self.kept, "envelope"), b"Fa@b\0Tx@elsewhere.example\0\0")
        line.send("QUIT\r\n")
        result = line.finish()
        self.assertEqual(result.code, 0)
        self.assertEqual(result.err, b"qmail-smtpd: LOGIN, user=joe, method=PLAIN, ip=[192.0.2.7]\n")

    def test_login_asks_twice_and_takes_a_name_with_the_command(self):
        for begin in (f"C: AUTH login {b64('joe')}", f"C: AUTH LOGIN\nS: 334 VXNlcm5hbWU6\nC: {b64('joe')}"):
            line = self.start()
            dialogue(line, f"C: EHLO x\n" + "S: ...\n" * 6 + begin)
            dialogue(line, f"""
                S: 334 UGFzc3dvcmQ6
                C: {b64("secret")}
                S: 235 2.7.0 ok, go ahead
            """)
            line.close()

    def test_plain_is_asked_for_what_did_not_come_with_it(self):
        line = self.start()
        dialogue(line, f"""
            C: AUTH PLAIN
            S: 334...
            C: {plain("jim@example.net", "pa ss,wo=rd", authzid="jim@example.net")}
            S: 235 ok, go ahead
        """)

    def test_every_refusal_has_its_code(self):
        long = "A" * 12292
        line = self.start(SMTPAUTH="+cram")
        dialogue(line, f"""
            C: EHLO x
            S: ...
            S: ...
            S: ...
            S: ...
            S: ...
            S: 250 AUTH CRAM-MD5 PLAIN LOGIN
            C: AUTH
            S: 504 5.5.4 no such mechanism (#5.5.4)
            C: AUTH DIGEST-MD5
            S: 504 5.5.4 no such mechanism (#5.5.4)
            C: AUTH EXTERNAL =
            S: 504 5.5.4 no such mechanism (#5.5.4)
            C: AUTH SCRAM-SHA-256
            S: 504 5.5.4 no such mechanism (#5.5.4)
            C: AUTH PLAIN ***
            S: 501 5.5.2 that is not base64 (#5.5.2)
            C: AUTH PLAIN
            S: 334...
            C: *
            S: 501 5.7.0 authentication cancelled (#5.7.0)
            C: AUTH PLAIN
            S: 334...
            C: {long}
            S: 500 5.5.6 authentication exchange line is too long (#5.5.6)
            C: AUTH PLAIN =
            S: 501 5.5.2 that is not what the mechanism says (#5.5.2)
            C: AUTH PLAIN {plain("joe", "secret")} more
            S: 501 5.5.4 syntax error (#5.5.4)
            C: AUTH PLAIN {plain("temp", "x")}
            S: 454 4.7.0 unable to check that now (#4.7.0)
            C: AUTH PLAIN {plain("misused", "x")}
            S: 454 4.7.0 unable to check that now (#4.7.0)
            C: AUTH CRAM-MD5 {b64("x")}
            S: 501 5.5.2 that is not what the mechanism says (#5.5.2)
            C: NOOP
            S: 250 2.0.0 ok
        """)
        self.assertEqual(self.told().count(b"\n"), 2)

    def test_lines_of_12288_octets_are_taken(self):
        password = "p" * (9216 - 6)  # in base64 with its name 12288 octets
        answer = plain("temp", password)
        self.assertEqual(len(answer), 12288)
        line = self.start()
        dialogue(line, f"C: AUTH PLAIN\nS: 334...\nC: {answer}\nS: 454 unable to check that now (#4.7.0)")
        dialogue(line, f"C: AUTH PLAIN {answer}\nS: 454 unable to check that now (#4.7.0)")
        self.assertEqual(self.told(), f"temp\0{password}\0\0\n".encode() * 2)

    def test_a_long_line_is_no_command_but_auth(self):
        line = self.start()
        dialogue(line, f"C: NOOP {'x' * 5000}\nS: 500 command line too long (#5.5.2)")
        dialogue(line, f"C: AUTH PLAIN {'x' * 13000}\nS: 500 command line too long (#5.5.2)")
        dialogue(line, "C: NOOP\nS: 250 ok")

    def test_after_three_wrong_passwords_the_line_is_closed_and_each_is_a_line_of_the_log(self):
        line = self.start()
        bad = plain("joe", "wrong")
        dialogue(line, f"""
            C: AUTH PLAIN {bad}
            S: 535 authorization failed (#5.7.8)
            C: AUTH PLAIN {plain("joe", "three")}
            S: 535 authorization failed (#5.7.8)
            C: AUTH LOGIN
            S: 334 VXNlcm5hbWU6
            C: {b64("a,b] x")}
            S: 334 UGFzc3dvcmQ6
            C: {b64("wrong")}
            S: 421 too many failed logins (#4.7.0)
        """)
        result = line.finish()
        self.assertEqual((result.code, result.out), (1, b""))
        rows = result.err.decode().splitlines()
        self.assertEqual(rows, [
            "qmail-smtpd: LOGIN FAILED, user=joe, method=PLAIN, ip=[192.0.2.7]",
            "qmail-smtpd: LOGIN FAILED, user=joe, method=PLAIN, ip=[192.0.2.7]",
            "qmail-smtpd: LOGIN FAILED, user=ab?x, method=LOGIN, ip=[192.0.2.7]"])
        for row in rows:
            self.assertRegex(row, fail2ban("courier-auth"))

    def test_attempts_are_counted_whatever_becomes_of_them(self):
        line = self.start()
        for _ in range(20):
            dialogue(line, "C: AUTH PLAIN\nS: 334...\nC: *\nS: 501 ...")
        dialogue(line, "C: AUTH PLAIN\nS: 421 too many failed logins (#4.7.0)")

    def test_nobody_logs_in_where_others_can_listen(self):
        self.controls()
        line = self.start()
        dialogue(line, f"""
            C: EHLO x
            S: ...
            S: ...
            S: ...
            S: ...
            S: 250 ENHANCEDSTATUSCODES
            C: AUTH PLAIN {plain("joe", "secret")}
            S: 538 5.7.11 encryption required for this mechanism (#5.7.11)
        """)
        self.assertEqual(self.told(), b"")

    def test_smtpauth_chooses_and_demands(self):
        line = self.start(SMTPAUTH="!cram")
        dialogue(line, f"""
            C: EHLO x
            S: ...
            S: ...
            S: ...
            S: ...
            S: ...
            S: 250 AUTH CRAM-MD5
            C: MAIL FROM:<a@b>
            S: 530 5.7.0 authentication required (#5.7.0)
            C: AUTH PLAIN {plain("joe", "secret")}
            S: 534 5.7.9 mechanism is too weak (#5.7.9)
        """)
        for words, setting in (((), "-"), (("checker", "true"), "-")):
            line = Line.start(["qmail-smtpd", *words], self.env(SMTPAUTH=setting))
            self.addCleanup(line.close)
            dialogue(line, "S: 220 ...\nC: EHLO x\nS: ...\nS: ...\nS: ...\nS: ...\nS: 250 ENHANCEDSTATUSCODES")
            dialogue(line, f"C: AUTH PLAIN {plain('joe', 'secret')}\nS: 502 5.5.1 unimplemented (#5.5.1)")

    def test_cram_md5_hands_over_response_and_challenge(self):
        line = self.start(SMTPAUTH="+cram")
        line.send("AUTH CRAM-MD5\r\n")
        challenge = base64.b64decode(line.expect("334 ...")[4:])
        self.assertRegex(challenge, rb"^<[A-Za-z0-9+/]{24}@test\.example>$")
        digest = checkers.hmac.new(b"pa ss,wo=rd", challenge, "md5").hexdigest()
        dialogue(line, f"C: {b64('jim@example.net ' + digest.upper())}\nS: 235 ok, go ahead")
        self.assertEqual(self.told(), b"jim@example.net\0" + digest.encode() + b"\0" + challenge + b"\0\n")

    def test_scram_needs_keys_and_shows_the_servers_signature(self):
        self.scram(authinsecure="1\n")
        line = self.start()
        scram = Scram("jim@example.net", "pa ss,wo=rd")
        line.send(f"EHLO x\r\nAUTH SCRAM-SHA-256 {scram.first()}\r\n")
        dialogue(line, "S: ...\n" * 5 + "S: 250 AUTH SCRAM-SHA-256 PLAIN LOGIN")
        line.send(scram.final(line.expect("334 ...")[4:]) + "\r\n")
        line.expect("334 " + scram.expected())
        dialogue(line, "C:\nS: 235 2.7.0 ok, go ahead")
        fields = self.told().split(b"\0")
        self.assertEqual((fields[0], fields[2], fields[3:]),
                         (b"jim@example.net", scram.message, [b"SCRAM-SHA-256", b"smtp", b"192.0.2.7", b"\n"]))

    def test_scram_refuses_what_is_wrong(self):
        self.scram(authinsecure="1\n")
        line = self.start()
        for client, refusal in ((Scram("joe", "wrong"), "535 ..."), (Scram("joe", "secret", header="y,,"), "235 ...")):
            line.send(f"AUTH SCRAM-SHA-256 {client.first()}\r\n")
            line.send(client.final(line.expect("334 ...")[4:]) + "\r\n")
            if refusal.startswith("235"):
                line.expect("334 ...")
                line.send("\r\n")
            line.expect(refusal)
        # A NUL in an extension would give the checker fields that the client made.
        client = Scram("joe", "secret")
        client.bare += ",f=y\0PLAIN\0smtp\0::1\0"
        line = self.start()
        line.send(f"AUTH SCRAM-SHA-256 {client.first()}\r\n")
        line.expect("501 ...")

    def test_names_nobody_has_cannot_be_told_from_others(self):
        self.scram(authinsecure="1\n")
        seen = []
        for _ in range(2):
            line = self.start()
            line.send(f"AUTH SCRAM-SHA-256 {Scram('nobody', 'x').first()}\r\n")
            seen.append(base64.b64decode(line.expect("334 ...")[4:]).decode().partition(",")[2])
            line.close()
        self.assertEqual(len(set(seen)), 1)
        self.assertRegex(seen[0], r"^s=[A-Za-z0-9+/]{22}==,i=\d+$")

    def test_a_checker_that_cannot_be_run_is_a_trouble_of_ours(self):
        line = self.start("no-such-checker", "true")
        dialogue(line, f"C: AUTH PLAIN {plain('joe', 'secret')}\nS: 454 unable to check that now (#4.7.0)")
        result = line.finish()
        self.assertIn(b"qmail-smtpd: warning: unable to run no-such-checker", result.err)

    def test_without_a_checker_there_is_no_auth(self):
        line = Line.start(["qmail-smtpd"], self.env())
        self.addCleanup(line.close)
        dialogue(line, "S: 220 ...\nC: AUTH PLAIN AAAA\nS: 502 unimplemented (#5.5.1)")


@unittest.skipUnless(shutil.which("gsasl") and shutil.which("swaks") and shutil.which("msmtp"),
                     "scripts/test-packages installs swaks, gsasl and msmtp")
class Clients(AuthTest):
    """Real clients, over TLS in front of qmail-smtpd, from the first byte and by STARTTLS."""

    def front(self, **more):
        env = more.pop("env", {})
        front = Front(["qmail-smtpd", "checker", "true"], self.env(SMTPAUTH="+cram", **env), **more)
        self.addCleanup(front.close)
        return front

    def setUp(self):
        super().setUp()
        self.scram()

    def check_arrived(self, protocol):
        self.assertRegex(checkers.read(self.kept, "message"), rb"with " + protocol + rb"; ")

    def test_swaks_with_every_mechanism_it_has(self):
        front = self.front()
        for mechanism in ("PLAIN", "LOGIN", "CRAM-MD5"):
            done = subprocess.run(
                ["swaks", "--server", "127.0.0.1", "--port", str(front.port), "--tls", "--auth", mechanism, "--auth-user", "joe",
                 "--auth-password", "secret", "--from", "joe@test.example", "--to", "x@elsewhere.example", "--helo", "c.example"],
                capture_output=True, text=True, timeout=harness.TIMEOUT)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn("235 2.7.0", done.stdout)
            self.check_arrived(b"ESMTPSA")

    def test_smtplib_with_tls_first_and_later(self):
        for first in (False, True):
            front = self.front(first=first)
            context = front.client_context()
            if first:
                client = smtplib.SMTP_SSL("127.0.0.1", front.port, timeout=harness.TIMEOUT, context=context)
            else:
                client = smtplib.SMTP("127.0.0.1", front.port, timeout=harness.TIMEOUT)
                client.ehlo()
                self.assertNotIn("auth", client.esmtp_features)
                client.starttls(context=context)
            with client:
                client.ehlo()
                self.assertNotIn("starttls", client.esmtp_features)
                self.assertEqual(client.esmtp_features["auth"].split(),
                                 ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "CRAM-MD5", "PLAIN", "LOGIN"])
                client.login("joe", "secret")
                client.sendmail("joe@test.example", ["x@elsewhere.example"], "Subject: x\n\nhi\n")
            self.check_arrived(b"ESMTPSA")

    def test_gsasl_and_msmtp_speak_scram(self):
        front = self.front()
        done = subprocess.run(
            ["gsasl", "--smtp", "--connect", f"localhost:{front.port}", "--mechanism", "SCRAM-SHA-256", "--no-cb",
             "--authentication-id", "joe", "--password", "secret", "--starttls", "--x509-ca-file", front.cert],
            input="", capture_output=True, text=True, timeout=harness.TIMEOUT)
        self.assertIn("235 2.7.0", done.stdout + done.stderr)
        self.assertIn(b"SCRAM-SHA-256\0smtp\0", self.told())
        done = subprocess.run(
            ["msmtp", "--host=127.0.0.1", f"--port={front.port}", "--auth=scram-sha-256", "--user=joe", "--tls=on",
             "--tls-certcheck=off", "--from=joe@test.example", "--passwordeval=echo secret", "--file=/dev/null",
             "x@elsewhere.example"],
            input="Subject: y\n\nhi\n", capture_output=True, text=True, timeout=harness.TIMEOUT)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.check_arrived(b"ESMTPSA")


class StartTls(AuthTest):
    def front(self, words=("checker", "true"), ca=None, facts=None, **env):
        front = Front(["qmail-smtpd", *words], self.env(**env), ca=ca, facts=facts)
        self.addCleanup(front.close)
        return front

    def connect(self, front):
        line = Line.connect(front.port)
        self.addCleanup(line.close)
        line.expect("220 test.example ESMTP")
        return line

    def upgrade(self, front, context=None):
        client = smtplib.SMTP("127.0.0.1", front.port, timeout=harness.TIMEOUT)
        self.addCleanup(client.close)
        client.ehlo()
        client.starttls(context=context or front.client_context())
        return client

    def test_bytes_behind_starttls_are_refused(self):
        front = self.front()
        for injected in ("EHLO y\r\n", "x", "\r\n"):
            line = self.connect(front)
            line.send("EHLO x\r\n")
            dialogue(line, "S: ...\n" * 5 + "S: 250-STARTTLS\nS: 250 AUTH PLAIN LOGIN")
            line.send("STARTTLS\r\n" + injected)
            line.expect("554 5.5.0 nothing may follow STARTTLS before TLS (#5.5.0)")
            self.assertEqual(line.reader.read(), b"")

    def test_a_handshake_that_fails_ends_the_session(self):
        front = self.front()
        line = self.connect(front)
        dialogue(line, "C: STARTTLS\nS: 220 ready to start TLS")
        line.send("this is no handshake\r\n")
        wait_for(lambda: front.children and front.children[0].poll() is not None, "qmail-smtpd to end")
        self.assertEqual(front.children[0].returncode, 1)

    def test_what_was_said_before_is_forgotten(self):
        self.controls(authinsecure="1\n")
        front = self.front()
        client = smtplib.SMTP("127.0.0.1", front.port, timeout=harness.TIMEOUT)
        self.addCleanup(client.close)
        client.ehlo("first.example")
        client.login("joe", "secret")
        self.assertEqual(client.mail("a@b")[0], 250)
        client.starttls(context=front.client_context())
        self.assertEqual(client.rcpt("x@elsewhere.example")[0], 503)
        self.assertEqual(client.docmd("MAIL FROM:<a@b>")[0], 250)
        self.assertEqual(client.rcpt("x@elsewhere.example")[0], 553)
        self.assertEqual(client.rcpt("x@test.example")[0], 250)
        self.assertEqual(client.data("Subject: x\n\n")[0], 250)
        self.assertRegex(checkers.read(self.kept, "message"), rb"^Received: from unknown \(192\.0\.2\.7\)\n  by unknown with ESMTPS; ")
        self.assertEqual(client.docmd("STARTTLS")[0], 502)

    def test_starttls_is_there_only_where_tls_is(self):
        line = self.start()
        dialogue(line, "C: STARTTLS\nS: 502 unimplemented (#5.5.1)")
        line = self.start(TLS_PROTOCOL="TLSv1.3", SSLCTLFD="9999", SSLREADFD="9998", SSLWRITEFD="9997")
        dialogue(line, "C: STARTTLS\nS: 502 unimplemented (#5.5.1)")
        line = self.connect(self.front())
        dialogue(line, "C: STARTTLS now\nS: 501 no argument here (#5.5.4)")

    def test_plus_binds_the_login_to_this_session(self):
        self.scram()
        front = self.front()
        client = self.upgrade(front)
        with open(front.cert) as f:
            import ssl
            der = ssl.PEM_cert_to_DER_cert(f.read())
        right = checkers.hashlib.sha256(der).digest()
        header = "p=tls-server-end-point,,"
        for binding, code in ((b"\0" * 32, 535), (right, 235)):
            scram = Scram("joe", "secret", header=header, binding=binding)
            answer = client.docmd("AUTH", "SCRAM-SHA-256-PLUS " + scram.first())
            self.assertEqual(answer[0], 334)
            answer = client.docmd(scram.final(answer[1]))
            if code == 235:
                self.assertEqual(answer, (334, scram.expected().encode()))
                answer = client.docmd("")
            self.assertEqual(answer[0], code)

    def test_a_stripped_list_of_mechanisms_is_noticed(self):
        self.scram()
        client = self.upgrade(self.front())
        scram = Scram("joe", "secret", header="y,,")
        self.assertEqual(client.docmd("AUTH", "SCRAM-SHA-256 " + scram.first())[0], 535)

    def test_external_is_a_certificate_that_was_verified_and_listed(self):
        directory = harness.scratch()
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        cert, key = files_of(self_signed("joe", alternatives="email:joe@example.net"), directory)
        for listed, code in ((None, 502), ("jim@example.net\n", 504), ("joe@example.net\n", 235)):
            self.controls(tlsclients=listed)
            front = self.front(words=(), ca=cert, SMTPAUTH="")
            context = front.client_context()
            context.load_cert_chain(cert, key)
            client = self.upgrade(front, context)
            self.assertEqual(client.docmd("AUTH", "EXTERNAL =")[0], code)
            if code == 235:
                client.ehlo()
                client.sendmail("a@b", ["x@elsewhere.example"], "Subject: x\n\n")
                self.assertIn(b"(joe@example.net@192.0.2.7)", checkers.read(self.kept, "message"))
            plainly = self.upgrade(front)
            self.assertIn(plainly.docmd("AUTH", "EXTERNAL =")[0], (502, 504))

    def test_the_checker_learns_what_is_known_of_the_session(self):
        client = self.upgrade(self.front())
        client.ehlo()
        client.login("joe", "secret")
        self.assertIn(b"TLS_PROTOCOL=TLSv1.3\n", checkers.read(self.kept, "environ"))


class ThroughAuthd(logins.InAHome):
    """`qmail-smtpd authask …`: qmail-authd runs the checker, whatever user qmail-smtpd is."""

    def setUp(self):
        super().setUp()
        self.kept = checkers.install(self.home)
        self.home.control("authprograms", "smtp:checker true\n")
        self.home.control("authinsecure", "1\n")
        checkers.offer_scram(self.home)

    def smtpd(self, *words):
        line = Line.start(["qmail-smtpd", "authask", *words], {**self.home.env, "TCPREMOTEIP": "192.0.2.9"})
        self.addCleanup(line.close)
        line.expect("220 test.example ESMTP")
        return line

    def test_a_login_is_checked_and_logged_there(self):
        for words in (("smtp",), ("checker", "true")):
            line = self.smtpd(*words)
            dialogue(line, f"C: AUTH PLAIN {plain('joe', 'secret')}\nS: 235 ok, go ahead")
        self.assertEqual(checkers.read(self.kept, "told"), b"joe\0secret\0\0PLAIN\0smtp\x00192.0.2.9\0\n" * 2)
        line = self.smtpd("smtp")
        dialogue(line, f"C: AUTH PLAIN {plain('joe', 'wrong')}\nS: 535 authorization failed (#5.7.8)")
        wait_for(lambda: len(self.logins()) == 3, "three lines of the log")
        self.assertEqual([row[-1] for row in self.logins()], ["ok", "ok", "refused 1"])
        line = self.smtpd("other")
        dialogue(line, f"C: AUTH PLAIN {plain('joe', 'secret')}\nS: 454 unable to check that now (#4.7.0)")

    def test_the_signature_comes_back(self):
        line = self.smtpd("smtp")
        scram = Scram("joe", "secret")
        line.send(f"AUTH SCRAM-SHA-256 {scram.first()}\r\n")
        line.send(scram.final(line.expect("334 ...")[4:]) + "\r\n")
        line.expect("334 " + scram.expected())
        dialogue(line, "C:\nS: 235 ok, go ahead")


if __name__ == "__main__":
    unittest.main()
