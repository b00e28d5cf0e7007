"""qmail-remote at relays that want a login: control/smtproutes, senderroutes, smtpauth, and AUTH (RFC 4954)."""

import base64
import contextlib
import hashlib
import hmac
import os
import socket
import ssl
import threading
import unittest

from tests import checkers, namespace
from tests.certificates import Store, pair_of
from tests.harness import TIMEOUT, owner
from tests.test_qmail_remote import Gone
from tests.test_remote_tls import Case as Base
from tests.test_remote_tls import EHLO, MAIL, OFFER, Mx, rows
from tests.test_tlsserver import Server
from tests.tlsrig import digest, server_context

load_tests = namespace.together

NAME, PASSWORD = "joe@isp.test", "a secret, with blanks"


def b64(text):
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


class Relay(Mx):
    """Offers these mechanisms, under TLS unless `clear`, and checks the password."""

    def __init__(self, pair, mechanisms, clear=False, verdict=None, **more):
        super().__init__(None if clear else pair, port=587, before="" if clear else OFFER, **more)
        self.mechanisms, self.clear, self.verdict, self.used = mechanisms, clear, verdict, None

    def play(self, talk):
        if self.clear:
            talk.say("220 mx.test ESMTP")
        super().play(talk)
        if self.clear:
            self.serve(talk)

    def secure(self, talk):
        super().secure(talk)
        self.serve(talk)
        return "over"

    def line(self, talk):
        line = talk.reader.readline().decode("latin-1")
        if not line:
            raise Gone
        return line.rstrip("\r\n")

    def serve(self, talk):
        talk.hear("EHLO test.example")
        talk.say(f"250-mx.test\n250 AUTH {self.mechanisms}")
        verb, _, rest = self.line(talk).partition(" ")
        if verb == "QUIT":
            return
        assert verb == "AUTH", verb
        self.used, _, initial = rest.partition(" ")
        right = getattr(self, self.used.replace("-", "_").lower())(talk, initial)
        if right is None:
            return
        talk.say(self.verdict or ("235 welcome" if right else "535-5.7.8 no\n535 5.7.8 way"))
        if not right or self.verdict:
            talk.hear("QUIT")
            return
        rows(talk, self.bodies, MAIL)

    def answer(self, talk, challenge):
        talk.say("334 " + b64(challenge))
        line = self.line(talk)
        return None if line == "*" else base64.b64decode(line, validate=True).decode()

    def plain(self, talk, initial):
        return base64.b64decode(initial).decode() == f"\0{NAME}\0{PASSWORD}"

    def login(self, talk, initial):
        assert not initial
        return (self.answer(talk, "Username:"), self.answer(talk, "Password:")) == (NAME, PASSWORD)

    def cram_md5(self, talk, initial):
        assert not initial
        challenge = "<1.2@mx.test>"
        wanted = hmac.new(PASSWORD.encode(), challenge.encode(), hashlib.md5).hexdigest()
        return self.answer(talk, challenge) == f"{NAME} {wanted}"

    KNOWS = True

    FLAG, BINDING = "y", b""  # this relay offers no -PLUS, and the session could be bound

    def scram_sha_256(self, talk, initial):
        header, bare = base64.b64decode(initial).decode().split(",,")
        assert header == self.FLAG, header
        nonce = bare.split("r=")[1] + "more"
        salt = os.urandom(12)
        first = f"r={nonce},s={b64(salt)},i=4096"
        last = self.answer(talk, first)
        without, _, proof = last.rpartition(",p=")
        assert base64.b64decode(without.split(",")[0][2:]) == header.encode() + b",," + self.BINDING
        message = f"{bare},{first},{without}".encode()
        salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), salt, 4096)
        key = hmac.new(salted, b"Client Key", "sha256").digest()
        signature = hmac.new(hashlib.sha256(key).digest(), message, "sha256").digest()
        right = bytes(a ^ b for a, b in zip(key, signature)) == base64.b64decode(proof)
        server = hmac.new(hmac.new(salted, b"Server Key", "sha256").digest(), message, "sha256").digest()
        if right:
            said = self.answer(talk, "v=" + b64(server if self.KNOWS else b"x" * 32))
            if said is None:
                talk.say("501 cancelled")
                talk.hear("QUIT")
                return None
        return right


class Case(Base):
    def setUp(self):
        super().setUp()
        if namespace.here():
            self.routes("@isp")
            self.auth(f"isp:{NAME} {PASSWORD}\n")

    def routes(self, words, name="smtproutes", key=""):
        self.home.control(name, f"{key}:mx.test:587 {words}\n")

    def auth(self, text, mode=0o600):
        self.home.write("control/smtpauth", text, mode)

    def through(self, mechanisms, peer=Relay, **more):
        with contextlib.suppress(Gone), peer(more.pop("pair", self.good), mechanisms, **more) as relay:
            out = self.secure()
        return out, relay


class Mechanisms(Case):
    @namespace.alone
    def test_each_mechanism_logs_in(self):
        for mechanism in ("PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"):
            out, relay = self.through(mechanism)
            self.accepted(out, "pkix")
            self.assertEqual((relay.used, len(relay.bodies)), (mechanism, 1))

    @namespace.alone
    def test_the_best_one_is_taken(self):
        for offered, used in (("LOGIN PLAIN", "PLAIN"), ("PLAIN CRAM-MD5 NTLM", "CRAM-MD5"), ("SCRAM-SHA-1 SCRAM-SHA-256 PLAIN", "SCRAM-SHA-256")):
            self.assertEqual(self.through(offered)[1].used, used)

    @namespace.alone
    def test_a_wrong_password_is_a_temporary_trouble(self):
        self.auth(f"isp:{NAME} wrong\n")
        for mechanism in ("PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"):
            out, relay = self.through(mechanism)
            self.assertEqual(out, b"Z127.0.0.2 refused our login (%s).\nRemote host said: 535-5.7.8 no\n535 5.7.8 way\n\0" % mechanism.encode())
            self.assertEqual(relay.bodies, [])

    @namespace.alone
    def test_nothing_usable_is_a_temporary_trouble(self):
        for offered in ("", "XOAUTH2 NTLM", "EXTERNAL"):
            out, relay = self.through(offered)
            self.assertEqual(out, b"ZA login is needed at 127.0.0.2, and it offers no mechanism that may be used here. (#4.7.0)\n\0")

    @namespace.alone
    def test_a_server_of_scram_that_does_not_know_the_password_gets_no_mail(self):
        class Impostor(Relay):
            KNOWS = False
        out, relay = self.through("SCRAM-SHA-256", peer=Impostor)
        self.assertEqual(out, b"ZOur login at 127.0.0.2 (SCRAM-SHA-256) was not completed: the server has not shown that it knows the password. (#4.7.0)\n\0")
        self.assertEqual(relay.bodies, [])


class EndPoint(Relay):
    """With TLS 1.2, where a login is bound to the server's certificate."""
    FLAG = "p=tls-server-end-point"
    scram_sha_256_plus = Relay.scram_sha_256


class Between:
    """Stands between qmail-remote and a server, with a certificate that is believed, and reads along; `strip` is taken out of what
    the server offers."""

    def __init__(self, pair, server, strip):
        self.context, self.server, self.strip, self.heard = server_context(pair), server, strip, b""
        self.socket = socket.create_server(("127.0.0.2", 587))
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        connection, _ = self.socket.accept()
        with connection, socket.create_connection(self.server, TIMEOUT) as upstream:
            for s in (connection, upstream):
                s.settimeout(TIMEOUT)
            theirs = upstream.makefile("rb")
            theirs.readline()
            connection.sendall(b"220 mx.test ESMTP\r\n")
            ours = connection.makefile("rb")
            ours.readline()
            connection.sendall(b"250-mx.test\r\n250 STARTTLS\r\n")
            ours.readline()
            connection.sendall(b"220 go\r\n")
            upstream.sendall(b"STARTTLS\r\n")
            theirs.readline()
            trusting = ssl.create_default_context()
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            with self.context.wrap_socket(connection, server_side=True) as client, trusting.wrap_socket(upstream) as server:
                ours, theirs = client.makefile("rb"), server.makefile("rb")
                while line := ours.readline():
                    self.heard += line
                    server.sendall(line)
                    while reply := theirs.readline():
                        client.sendall(reply.replace(self.strip, b""))
                        if reply[3:4] == b" ":
                            break

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self.socket.shutdown(socket.SHUT_RDWR)  # perhaps nobody came
        self.thread.join(TIMEOUT)
        self.socket.close()


class Bound(Case):
    """SCRAM-SHA-256-PLUS: a login is good for this session of TLS only."""

    @contextlib.contextmanager
    def ours(self, name, host):
        """tlsserver and qmail-smtpd, and keys that authpasswd has made."""
        checkers.install(self.home)
        users = self.home.write("users/relay", "", 0o600)
        _, uid, gid = owner()
        done = self.home.run(["authpasswd", users, NAME, str(uid), str(gid), self.home.path], PASSWORD.encode(),
                             as_user=(uid, gid) if os.geteuid() == 0 else None)
        self.assertEqual((done.code, done.err), (0, b""))
        with Store() as store, Server("-n", store=store.put("default", pair_of(self.made.make(name))), host=host,
                                      program=("qmail-smtpd", "checkpassword-file", users, "true"),
                                      env=checkers.capturing(self.home)) as server:
            yield server

    def queued(self):
        return checkers.read(self.home.file("kept"), "message")

    @namespace.alone
    def test_a_login_is_bound_to_the_session(self):
        with self.ours("mx.test", "127.0.0.2") as server:
            self.home.control("smtproutes", f":mx.test:{server.port} @isp\n")
            self.assertRegex(self.secure(), rb"(?s)^r\0K127\.0\.0\.2 accepted message\..*\ntls=TLSv1\.3 \S+ pkix\n\0$")
            server.wait_log(rf"^qmail-smtpd: LOGIN, user={NAME}, method=SCRAM-SHA-256-PLUS, ")
        self.assertIn(b" with ESMTPSA; ", self.queued())

    @namespace.alone
    def test_who_stands_between_with_a_certificate_that_is_believed_gets_no_login(self):
        with self.ours("real.test", "127.0.0.3") as server:
            for strip, method, name in ((b"\0", "SCRAM-SHA-256-PLUS", NAME), (b"SCRAM-SHA-256-PLUS ", "SCRAM-SHA-256", "")):
                with Between(self.good, ("127.0.0.3", server.port), strip) as between:
                    out = self.secure()
                self.assertRegex(out, rf"^Z127\.0\.0\.2 refused our login \({method}\)\.\nRemote host said: 535 ".encode())
                self.assertIn(f"AUTH {method} ".encode(), between.heard)
                server.wait_log(rf"^qmail-smtpd: LOGIN FAILED, user={name}, method={method}, ")
        self.assertEqual(self.queued(), b"")

    @namespace.alone
    def test_with_tls_1_2_it_is_bound_to_the_certificate(self):
        context = server_context(self.good)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        bound = type("Bound", (EndPoint,), {"BINDING": bytes.fromhex(digest(self.good[0], 0))})
        out, relay = self.through("SCRAM-SHA-256 SCRAM-SHA-256-PLUS", peer=bound, context=context)
        self.assertRegex(out, rb"(?s)^r\0K.*\ntls=TLSv1\.2 ")
        self.assertEqual((relay.used, len(relay.bodies)), ("SCRAM-SHA-256-PLUS", 1))


class InTheClear(Case):
    @namespace.alone
    def test_without_tls_nothing_is_told(self):
        out, relay = self.through("", clear=True)
        self.assertEqual(out, b"ZTLS is demanded for this host, and 127.0.0.2 does not offer it. (#4.7.4)\n\0")
        self.assertIsNone(relay.used)

    @namespace.alone
    def test_a_relay_that_does_not_prove_itself_is_told_nothing(self):
        out, relay = self.through("PLAIN", pair=self.made.make("other.test"))
        self.assertRegex(out, rb"^Z127\.0\.0\.2 is not proved")
        self.assertIsNone(relay.used)

    @namespace.alone
    def test_where_only_tls_is_not_demanded_a_password_is_still_not_told(self):
        self.home.control("tlsroutes", "mx.test:may\n")
        out, relay = self.through("PLAIN LOGIN", clear=True)
        self.assertRegex(out, rb"^ZA login is needed at 127\.0\.0\.2, and it offers no mechanism that may be used here")
        out, relay = self.through("PLAIN LOGIN CRAM-MD5", clear=True)
        self.assertEqual((relay.used, len(relay.bodies)), ("CRAM-MD5", 1))

    @namespace.alone
    def test_where_anybody_is_taken_a_password_is_not_told_to_anybody(self):
        for level in ("may", "encrypt"):
            self.home.control("tlsroutes", f":{level}\n")
            with self.subTest(level):
                out, relay = self.through("PLAIN LOGIN", pair=self.made.make("other.test"))
                self.assertRegex(out, rb"^ZA login is needed at 127\.0\.0\.2, and it offers no mechanism that may be used here")
                self.assertIsNone(relay.used)
                out, relay = self.through("PLAIN CRAM-MD5", pair=self.made.make("other.test"))
                self.accepted(out, "unverified")
                self.assertEqual(relay.used, "CRAM-MD5")
        self.routes("@isp cleartext")
        self.assertEqual(self.through("PLAIN", pair=self.made.make("other.test"))[1].used, "PLAIN")

    @namespace.alone
    def test_the_route_may_say_that_it_may_be_told(self):
        self.routes("@isp cleartext")
        out, relay = self.through("PLAIN", clear=True)
        self.assertEqual((relay.used, len(relay.bodies)), ("PLAIN", 1))
        self.plain(out)


class Routes(Case):
    @namespace.alone
    def test_a_user_and_a_password_may_stand_in_the_route(self):
        self.routes(f"{NAME} simple")
        self.accepted(self.through("PLAIN", peer=type("Simple", (Relay,), {
            "plain": lambda self, talk, initial: base64.b64decode(initial).decode() == f"\0{NAME}\0simple"}))[0], "pkix")

    @namespace.alone
    def test_the_sender_chooses_where_the_domain_does_not(self):
        self.home.control("smtproutes", "inside.test:mx.test:2525\n:nowhere.test:1\n")
        self.routes("@isp", "senderroutes", "@test.example")
        self.accepted(self.through("PLAIN")[0], "pkix")
        with Mx(self.good, port=2525, inside=EHLO + MAIL.replace("dest.test", "inside.test")) as peer:
            self.accepted(self.secure(host="inside.test"), "unverified")
        self.assertEqual(len(peer.bodies), 1)
        self.assertRegex(self.secure(sender=""), rb"^DSorry, I couldn't find any host named nowhere\.test\.")

    @namespace.alone
    def test_a_login_that_is_not_there_or_readable_by_all_stops_the_mail(self):
        start = b"ZUnable to read control files. (#4.3.0)\nlogin isp of a route, control/smtpauth: "
        self.auth("other:x y\n")
        self.assertEqual(self.secure(), start + b"there is none of that name\n\0")
        self.auth(f"isp:{NAME} {PASSWORD}\n", 0o644)
        self.assertEqual(self.secure(), start + b"everybody may read that file: chmod o= it\n\0")


del Base  # its tests are its own file's

if __name__ == "__main__":
    unittest.main()
