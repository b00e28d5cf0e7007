"""STLS, AUTH, UTF8 and APOP of qmail-popup: golden dialogues, python's poplib, a model client of SCRAM, attacks."""

import base64
import os
import poplib
import shutil
import subprocess
import unittest

from tests import checkers, harness, logins
from tests.checkers import Scram, b64, plain
from tests.harness import Home, Line, dialogue
from tests.packages import tool
from tests.tlsfront import Front

HOME = None


def setUpModule():
    global HOME
    HOME = Home()
    unittest.addModuleCleanup(HOME.__exit__)
    checkers.install(HOME)
    HOME.write("bin/hello", "#!/bin/sh\nprintf '+OK hello\\r\\n'\nexec cat\n", 0o755)
    checkers.offer_scram(HOME)


class PopTest(unittest.TestCase):
    def setUp(self):
        self.kept = checkers.empty(HOME)
        HOME.control("authinsecure", "0\n")

    def argv(self, *program):
        return ["qmail-popup", "pop.example", "checker", *(program or ("qmail-pop3d", "Maildir"))]

    def env(self, **more):
        return {**HOME.env, "TCPREMOTEIP": "192.0.2.7", "CHECKER_HOME": HOME.file("home", "joe"), **more}

    def start(self, *program, **env):
        line = Line.start(self.argv(*program), self.env(**env))
        self.addCleanup(line.close)
        line.expect("+OK ready")
        return line

    def told(self):
        return checkers.read(self.kept, "told")


class Dialogue(PopTest):
    def test_without_tls_it_is_what_it_was(self):
        line = self.start()
        dialogue(line, f"""
            C: CAPA
            S: +OK ...
            S: USER
            S: TOP
            S: UIDL
            S: PIPELINING
            S: RESP-CODES
            S: AUTH-RESP-CODE
            S: UTF8 USER
            S: .
            C: AUTH
            S: +OK ...
            S: .
            C: UTF8
            S: +OK ...
            C: AUTH PLAIN {plain("joe", "secret")}
            S: -ERR no such mechanism
            C: USER joe
            S: +OK ...
            C: PASS secret
            S: +OK ...
            C: STAT
            S: +OK 0 0
            C: QUIT
            S: +OK ...
        """)
        self.assertRegex(self.told(), rb"^joe\0secret\0<[^>]*@pop\.example>\0\n$")

    def test_mechanisms_where_it_is_said_that_they_may_be_overheard(self):
        HOME.control("authinsecure", "1\n")
        line = self.start(POP3AUTH="+cram")
        dialogue(line, """
            C: CAPA
            S: +OK ...
            S: USER
            S: TOP
            S: UIDL
            S: PIPELINING
            S: RESP-CODES
            S: AUTH-RESP-CODE
            S: UTF8 USER
            S: SASL SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN
            S: .
            C: AUTH
            S: +OK ...
            S: SCRAM-SHA-256
            S: CRAM-MD5
            S: PLAIN
            S: LOGIN
            S: .
            C: AUTH LOGIN
            S: + VXNlcm5hbWU6
            C: *
            S: -ERR cancelled
            C: AUTH PLAIN *
            S: -ERR that is not base64
        """)
        line.send("AUTH CRAM-MD5\r\n")
        challenge = base64.b64decode(line.expect("+ ...")[2:])
        self.assertRegex(challenge, rb"^<[^@]+@pop\.example>$")
        digest = checkers.hmac.new(b"secret", challenge, "md5").hexdigest()
        dialogue(line, f"C: {b64('joe ' + digest)}\nS: +OK ...\nC: STAT\nS: +OK 0 0\nC: QUIT\nS: +OK ...")
        self.assertEqual(self.told(), b"joe\0" + digest.encode() + b"\0" + challenge + b"\0\n")

    def test_plain_and_login_with_and_without_initial_response(self):
        HOME.control("authinsecure", "1\n")
        for text in (f"C: AUTH PLAIN {plain('joe', 'secret')}", f"C: auth plain\nS: + \nC: {plain('joe', 'secret')}",
                     f"C: AUTH LOGIN {b64('joe')}\nS: + UGFzc3dvcmQ6\nC: {b64('secret')}"):
            line = self.start()
            dialogue(line, text.replace("S: + \n", "S: +...\n"))
            dialogue(line, "S: +OK ...\nC: STAT\nS: +OK 0 0\nC: QUIT\nS: +OK ...")
            line.close()
        self.assertEqual(self.told(), b"joe\0secret\0\0\n" * 3)

    def test_scram_ends_with_the_servers_signature_and_then_the_mailbox_is_there(self):
        HOME.control("authinsecure", "1\n")
        for answer, reply in (("", "+OK ..."), ("*", "-ERR [AUTH] authorization failed"), ("x", "-ERR [AUTH] authorization failed")):
            line = self.start()
            scram = Scram("joe", "secret")
            line.send(f"AUTH SCRAM-SHA-256 {scram.first()}\r\n")
            line.send(scram.final(line.expect("+ ...")[2:]) + "\r\n")
            line.expect("+ " + scram.expected())
            line.send(answer + "\r\n")
            line.expect(reply)
            if not answer:
                dialogue(line, "C: STAT\nS: +OK 0 0\nC: QUIT\nS: +OK ...")
            line.close()
        self.assertIn(b"\0SCRAM-SHA-256\0pop3\x00192.0.2.7\0\n", self.told())
        line = self.start()
        scram = Scram("joe", "wrong")
        line.send(f"AUTH SCRAM-SHA-256 {scram.first()}\r\n")
        line.send(scram.final(line.expect("+ ...")[2:]) + "\r\n")
        line.expect("-ERR [AUTH] authorization failed")

    def test_a_long_answer_is_taken_and_a_longer_one_is_not(self):
        HOME.control("authinsecure", "1\n")
        answer = plain("temp", "p" * (9216 - 6))
        self.assertEqual(len(answer), 12288)
        dialogue(self.start(), f"C: AUTH PLAIN\nS: +...\nC: {answer}A\nS: -ERR ...\nC: AUTH PLAIN\nS: +...\nC: {answer}\n"
                               "S: -ERR [SYS/TEMP] authorization failed")

    def test_three_failures_close_the_line(self):
        HOME.control("authinsecure", "1\n")
        line = self.start()
        dialogue(line, "C: AUTH X\nS: -ERR no such mechanism\n" * 3)
        self.assertEqual(line.reader.read(), b"")


class Tls(PopTest):
    def front(self, program=(), **more):
        env = self.env(**more.pop("env", {}))
        front = Front(self.argv(*program), env, **more)
        self.addCleanup(front.close)
        return front

    def connect(self, front):
        line = Line.connect(front.port)
        self.addCleanup(line.close)
        line.expect("+OK ready")
        return line

    def test_before_stls_no_password_is_taken(self):
        line = self.connect(self.front())
        dialogue(line, f"""
            C: CAPA
            S: +OK ...
            S: TOP
            S: UIDL
            S: PIPELINING
            S: RESP-CODES
            S: AUTH-RESP-CODE
            S: UTF8 USER
            S: STLS
            S: .
            C: USER joe
            S: -ERR STLS first
            C: AUTH PLAIN {plain("joe", "secret")}
            S: -ERR STLS first
        """)
        self.assertEqual(self.told(), b"")

    def test_bytes_behind_stls_close_the_line(self):
        line = self.connect(self.front())
        line.send("STLS\r\nUSER joe\r\n")
        line.expect("-ERR nothing may follow STLS before TLS")
        self.assertEqual(line.reader.read(), b"")

    def test_after_utf8_there_is_no_way_to_tls(self):
        dialogue(self.connect(self.front()), "C: UTF8\nS: +OK ...\nC: STLS\nS: -ERR not now")

    def test_poplib_by_stls_and_from_the_first_byte(self):
        for first in (False, True):
            front = self.front(first=first)
            context = front.client_context()
            if first:
                client = poplib.POP3_SSL("127.0.0.1", front.port, timeout=harness.TIMEOUT, context=context)
            else:
                client = poplib.POP3("127.0.0.1", front.port, timeout=harness.TIMEOUT)
                self.assertIn("STLS", client.capa())
                client.stls(context=context)
            self.addCleanup(client.close)
            capa = client.capa()
            self.assertNotIn("STLS", capa)
            self.assertEqual(capa["SASL"], ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN"])
            self.assertTrue(client.utf8().startswith(b"+OK"))
            client.user("joe")
            client.pass_("secret")
            client.quit()
        self.assertIn(b"TLS_PROTOCOL=TLSv1.3\n", checkers.read(self.kept, "environ"))

    def test_plus_is_bound_to_the_session(self):
        import ssl
        front = self.front(program=("hello",))
        client = poplib.POP3("127.0.0.1", front.port, timeout=harness.TIMEOUT)
        self.addCleanup(client.close)
        client.stls(context=front.client_context())
        with open(front.cert) as f:
            binding = checkers.hashlib.sha256(ssl.PEM_cert_to_DER_cert(f.read())).digest()
        for data, right in ((b"\0" * 32, False), (binding, True)):
            scram = Scram("joe", "secret", header="p=tls-server-end-point,,", binding=data)
            client._putcmd("AUTH SCRAM-SHA-256-PLUS " + scram.first())
            challenge = client._getline()[0].decode()
            self.assertTrue(challenge.startswith("+ "), challenge)
            client._putline(scram.final(challenge[2:]).encode())
            answer = client._getline()[0]
            self.assertEqual(answer, b"+OK hello" if right else b"-ERR [AUTH] authorization failed")

    def test_fetchmail_starts_tls_by_itself(self):
        front = self.front()
        directory = harness.scratch()
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        rc = os.path.join(directory, "rc")
        with open(rc, "w") as f:
            f.write(f'poll 127.0.0.1 service {front.port} protocol POP3 user "joe" password "secret" sslproto "TLS1.2+" '
                    f'sslcertck sslcertfile "{front.cert}" sslcommonname "localhost" mda "cat"\n')
        os.chmod(rc, 0o600)
        path, env = tool("fetchmail")
        done = subprocess.run([path, "-v", "-f", rc, "--pidfile", os.path.join(directory, "pid"), "--idfile", os.path.join(directory, "ids")],
                              capture_output=True, text=True, timeout=harness.TIMEOUT,
                              env={**env, "HOME": directory, "FETCHMAILHOME": directory, "LANG": "C"})
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)  # no mail
        self.assertIn("STLS", done.stdout)
        self.assertIn(b"joe\0secret\0", self.told())


class Apop(PopTest):
    def test_it_is_offered_where_it_is_asked_for(self):
        line = Line.start(self.argv(), self.env(POP3AUTH="+apop"))
        self.addCleanup(line.close)
        timestamp = line.expect("+OK <...@pop.example>")[4:]
        digest = checkers.hashlib.md5((timestamp + "secret").encode()).hexdigest()
        dialogue(line, f"C: APOP joe {digest}\nS: +OK ...\nC: QUIT\nS: +OK ...")
        self.assertEqual(self.told(), f"joe\0{digest}\0{timestamp}\0\n".encode())


class ThroughAuthd(logins.InAHome):
    """What authask hands over reaches the checker whole, and its signature comes back on descriptor 4."""

    def test_the_signature_comes_back_by_authask(self):
        checkers.install(self.home)
        self.home.control("authprograms", "pop3:checker true\n")
        scram = Scram("joe", "secret")
        scram.final(b64(f"r={scram.nonce}x,s={base64.b64encode(checkers.SALT).decode()},i={checkers.COUNT}"))
        client = Scram.mac(scram.salted, b"Client Key")
        signature = Scram.mac(checkers.hashlib.sha256(client).digest(), scram.message)
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(client, signature)))
        told = b"joe\0" + proof + b"\0" + scram.message + b"\0SCRAM-SHA-256\0pop3\x00192.0.2.7\0"
        done = self.home.run(["authask", "pop3"], fds={3: told, 4: "capture"})
        self.assertEqual(done.code, 0, done.err)
        expected = base64.b64decode(scram.expected()).removeprefix(b"v=")
        self.assertEqual(done.fds[4], expected)


if __name__ == "__main__":
    unittest.main()
