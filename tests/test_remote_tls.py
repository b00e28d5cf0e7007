"""qmail-remote and TLS: STARTTLS where it is offered, control/tlsroutes where it is demanded, and what stands between."""

import contextlib
import os
import socket
import ssl
import sys
import unittest

from tests import namespace
from tests.dnsserver import A, MX, NXDOMAIN, Responder, mx
from tests.harness import TIMEOUT, Home
from tests.test_qmail_remote import MESSAGE, ON_THE_WIRE, Gone, Peer
from tests.tlsrig import Certificates, Web, digest, page, server_context

load_tests = namespace.together

TXT = 16

OFFER = """
    S: 220 mx.test ESMTP
    C: EHLO test.example
    S: 250-mx.test\n250-STARTTLS\n250 PIPELINING
"""
MAIL = """
    C: MAIL FROM:<s@test.example>
    S: 250 ok
    C: RCPT TO:<r@dest.test>
    S: 250 ok
    C: DATA
    S: 354 go ahead
    BODY
    S: 250 queued
    C: QUIT
    END
"""
NO_CONNECTION = b"ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0"


def rows(talk, bodies, text):
    """Plays rows as Peer does."""
    for row in filter(None, map(str.strip, text.strip("\n").split("\n    "))):
        if row.startswith("S:"):
            talk.say(row[3:])
        elif row.startswith("C:"):
            talk.hear(row[3:])
        elif row == "BODY":
            bodies.append(talk.body())
        elif row == "END":
            talk.end()


class Mx(Peer):
    """A server with STARTTLS and this certificate; `inside` is what is said under TLS."""

    def __init__(self, pair=None, inside=None, before=OFFER, host="127.0.0.2", port=25, connections=1, first=False, context=None):
        super().__init__(self.play, host, port, connections)
        self.context = context or (server_context(pair) if pair else None)
        self.before, self.inside, self.first = before, inside or EHLO + MAIL, first
        self.encrypted = 0

    def play(self, talk):
        if not self.first:
            rows(talk, self.bodies, self.before)
        if self.context:
            if not self.first:
                talk.hear("STARTTLS")
                self.go_ahead(talk)
            if self.secure(talk) != "over":
                rows(talk, self.bodies, self.inside)

    def __exit__(self, kind, *more):
        if kind is not None and self.accepted < self.connections:
            self.socket.shutdown(socket.SHUT_RDWR)  # the test has failed: nobody else will come
        super().__exit__(kind, *more)

    def go_ahead(self, talk):
        talk.say("220 ready")

    def secure(self, talk):
        try:
            talk.connection = self.context.wrap_socket(talk.connection, server_side=True)
        except (ssl.SSLError, OSError) as e:
            raise Gone(str(e)) from None
        self.encrypted += 1
        talk.reader = talk.connection.makefile("rb")


EHLO = """
    C: EHLO test.example
    S: 250 mx.test
"""
GREETED = "    S: 220 mx.test ESMTP\n" + EHLO


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if namespace.here():
            cls.made = cls.enterClassContext(Certificates())
            cls.good = cls.made.make("mx.test")
            cls.home = cls.enterClassContext(Home())

    def setUp(self):
        if not namespace.here():
            return
        for name in ("smtproutes", "tlsroutes", "senderroutes", "smtpauth"):
            with contextlib.suppress(FileNotFoundError):
                self.home.remove_control(name)
        self.records = {("dest.test", MX): [mx(10, "mx.test")], ("mx.test", A): [bytes([127, 0, 0, 2])]}
        self.authentic = set()
        self.dns = self.enterContext(Responder(self.answer))

    def answer(self, query):
        data = self.records.get((query.name.lower(), query.kind))
        flags = 0x8180 | (0x20 if query.name.lower() in self.authentic else 0)
        if data is None:
            return [query.answer(rcode=NXDOMAIN if not any(n == query.name.lower() for n, _ in self.records) else 0, flags=flags,
                                 authority=[("test", 6, bytes(22))])]
        return [query.answer([(query.name, query.kind, d) for d in data], flags=flags)]

    def env(self):
        return {"DNSCACHEIP": self.dns.address, "SSL_CERT_FILE": self.made.ca}

    def remote(self, host="dest.test", sender="s@test.example", before=(), env=None, message=MESSAGE):
        return self.home.remote(host, sender, f"r@{host}", message=message, before=before, env={**self.env(), **(env or {})})

    def secure(self, **more):
        return self.remote(before=["tlsclient"], **more)

    def accepted(self, out, word, where=b"127.0.0.2"):
        self.assertRegex(out, rb"^r\0K" + where.replace(b".", rb"\.") + rb" accepted message\.\nRemote host said: 250 queued\n"
                              rb"tls=TLSv1\.3 TLS\S* " + word.encode() + rb"\n\0$")

    def plain(self, out):
        self.assertEqual(out, b"r\0K127.0.0.2 accepted message.\nRemote host said: 250 queued\n\0")


class Opportunistic(Case):
    """Nothing is demanded: TLS where it is offered, and mail goes out all the same."""

    @namespace.alone
    def test_tls_is_used_where_it_is_offered_whoever_is_there(self):
        for pair in (self.good, self.made.make("other.test"), self.made.expired("mx.test"), self.made.make("mx.test", own=True)):
            with Mx(pair) as peer:
                out = self.secure()
            self.accepted(out, "unverified")
            self.assertEqual(peer.bodies, [ON_THE_WIRE])

    @namespace.alone
    def test_without_tlsclient_nobody_asks_for_tls(self):
        with Mx(before=OFFER + MAIL) as peer:
            out = self.remote()
        self.plain(out)
        self.assertEqual(peer.bodies, [ON_THE_WIRE])

    @namespace.alone
    def test_a_number_that_is_no_socket_is_nobody(self):
        for number in ("1", "x", "", "4000"):
            with Mx(before=OFFER + MAIL):
                self.plain(self.remote(env={"TLSCLIENTFD": number}))

    @namespace.alone
    def test_a_server_that_offers_none_gets_its_mail_in_the_clear(self):
        with Mx(before=GREETED + MAIL):
            self.plain(self.secure())

    @namespace.alone
    def test_a_refused_starttls_is_followed_by_mail_in_the_clear(self):
        with Mx(before=OFFER + "    C: STARTTLS\n    S: 454 not now\n" + MAIL):
            self.plain(self.secure())

    @namespace.alone
    def test_a_handshake_that_fails_is_followed_by_a_connection_without(self):
        class Broken(Mx):
            def secure(self, talk):
                talk.connection.recv(1)  # the handshake has begun
                talk.raw(b"this is no handshake\r\n")
                self.before, self.context = OFFER + MAIL, None
                return "over"
        with Broken(self.good, connections=2) as peer:
            self.plain(self.secure())
        self.assertEqual((peer.accepted, peer.bodies), (2, [ON_THE_WIRE]))

    @namespace.alone
    def test_a_tlsclient_that_is_gone_lowers_nothing(self):
        """As when both of its processes are killed: mail waits, it does not go in the clear."""
        orphaned = ("import os, socket, sys\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\nb.close()\n"
                    "os.set_inheritable(a.fileno(), True)\nos.environ['TLSCLIENTFD'] = str(a.fileno())\nos.execvp(sys.argv[1], sys.argv[1:])")
        class Left(Mx):
            def secure(self, talk):
                talk.end()
                return "over"
        with Left(self.good) as peer:
            out = self.remote(before=[sys.executable, "-c", orphaned])
        self.assertEqual(out, b"ZTLS with 127.0.0.2 failed. (#4.7.5)\ntlsclient is gone\n\0")
        self.assertEqual(peer.bodies, [])

    @namespace.alone
    def test_what_was_offered_in_the_clear_is_forgotten(self):
        """PIPELINING was offered before TLS and is not behind it: each command waits for its reply."""
        def strict(talk):
            rows(talk, [], EHLO)
            for heard, said in (("MAIL FROM:<s@test.example>", "250 ok"), ("RCPT TO:<r@dest.test>", "250 ok"), ("DATA", "354 go")):
                talk.hear(heard)
                talk.connection.settimeout(0.3)
                with contextlib.suppress(TimeoutError):
                    raise AssertionError(f"unasked: {talk.connection.recv(100)!r}")
                talk.connection.settimeout(TIMEOUT)
                talk.reader = talk.connection.makefile("rb")
                talk.say(said)
            talk.body()
            talk.say("250 queued")
        peer = Mx(self.good)
        peer.play = lambda talk: (rows(talk, [], OFFER), talk.hear("STARTTLS"), talk.say("220 go"), peer.secure(talk), strict(talk))
        peer.script = peer.play
        with peer:
            self.accepted(self.secure(), "unverified")

    @namespace.alone
    def test_a_level_of_none_asks_for_no_tls(self):
        self.home.control("tlsroutes", "dest.test:none\n")
        with Mx(before=OFFER + MAIL):
            self.plain(self.secure())


class Between(Case):
    """Somebody stands between."""

    @namespace.alone
    def test_what_is_said_behind_the_220_in_the_clear_ends_the_conversation(self):
        class Injecting(Mx):
            def go_ahead(self, talk):
                talk.raw(b"220 ready\r\n250 mx.test\r\n250 ok\r\n")

            def secure(self, talk):
                talk.end()
                raise Gone
        for level in ("", "dest.test:encrypt\n"):
            self.home.control("tlsroutes", level)
            peer = Injecting(self.good, connections=1)
            with contextlib.suppress(Gone), peer:
                out = self.secure()
                self.assertEqual(out, b"ZConnected to 127.0.0.2 but it spoke between STARTTLS and the handshake. (#4.7.5)\n\0")
            self.assertEqual((peer.bodies, peer.encrypted), ([], 0))

    @namespace.alone
    def test_what_is_said_later_in_the_clear_ends_the_handshake(self):
        class Late(Mx):
            def secure(self, talk):
                talk.connection.recv(1)  # the handshake has begun
                talk.raw(b"250 mx.test\r\n250 ok\r\n")
                raise Gone
        self.home.control("tlsroutes", "dest.test:encrypt\n")
        peer = Late(self.good)
        with contextlib.suppress(Gone), peer:
            self.assertRegex(self.secure(), rb"^ZTLS with 127\.0\.0\.2 failed\. \(#4\.7\.5\)\n.+\n\0$")
        self.assertEqual(peer.bodies, [])

    @namespace.alone
    def test_a_server_that_ends_in_the_handshake_is_a_temporary_trouble_where_tls_is_demanded(self):
        class Gone_(Mx):
            def secure(self, talk):
                talk.connection.recv(1)
                raise Gone
        self.home.control("tlsroutes", "dest.test:encrypt\n")
        peer = Gone_(self.good)
        with contextlib.suppress(Gone), peer:
            self.assertRegex(self.secure(), rb"^ZTLS with 127\.0\.0\.2 failed\. \(#4\.7\.5\)\n.+\n\0$")

    @namespace.alone
    def test_starttls_that_was_stripped_is_a_temporary_trouble_where_tls_is_demanded(self):
        for level in ("encrypt", "pkix name=mx.test", f"fingerprint {'0' * 64}"):
            self.home.control("tlsroutes", f"dest.test:{level}\n")
            with Mx(before=GREETED + "    C: QUIT\n    END") as peer:
                out = self.secure()
            self.assertEqual(out, b"ZTLS is demanded for this host, and 127.0.0.2 does not offer it. (#4.7.4)\n\0")
            self.assertEqual(peer.bodies, [])
        with Mx(before=OFFER + "    C: STARTTLS\n    S: 454 not now\n    C: QUIT\n    END"):
            self.assertEqual(self.secure(), out)


class Demanded(Case):
    """control/tlsroutes."""

    def refused(self, out):
        self.assertRegex(out, rb"^Z127\.0\.0\.2 is not proved to be the host that it should be\. \(#4\.7\.5\)\n[^\n\0]+\n\0$")

    def try_pair(self, pair, **more):
        with contextlib.suppress(Gone), Mx(pair, **more) as peer:
            out = self.secure()
        return out, peer

    @namespace.alone
    def test_encrypt_takes_whoever_is_there(self):
        self.home.control("tlsroutes", "dest.test:encrypt\n")
        self.accepted(self.try_pair(self.made.make("other.test", own=True))[0], "unverified")

    @namespace.alone
    def test_pkix_wants_an_authority_a_name_and_a_date(self):
        self.home.control("tlsroutes", ".test:pkix name=mx.test\n")
        self.accepted(self.try_pair(self.good)[0], "pkix")
        for pair in (self.made.make("other.test"), self.made.expired("mx.test"), self.made.make("mx.test", own=True)):
            out, peer = self.try_pair(pair)
            self.refused(out)
            self.assertEqual(peer.bodies, [])

    @namespace.alone
    def test_pkix_without_a_name_wants_the_domain_where_the_dns_proves_nothing(self):
        self.home.control("tlsroutes", "dest.test:pkix\n")
        self.refused(self.try_pair(self.good)[0])
        self.accepted(self.try_pair(self.made.make("dest.test"))[0], "pkix")
        self.authentic = {"dest.test"}
        self.accepted(self.try_pair(self.good)[0], "pkix")

    @namespace.alone
    def test_a_fingerprint_is_for_one_certificate(self):
        own = self.made.make("whatever.test", own=True)
        self.home.control("tlsroutes", f"dest.test:fingerprint {digest(own[0], 0)}\n")
        self.accepted(self.try_pair(own)[0], "fingerprint")
        self.refused(self.try_pair(self.good)[0])

    @namespace.alone
    def test_a_route_has_its_demand_by_the_name_of_its_relay(self):
        self.home.control("smtproutes", ":mx.test:2525\n")
        self.home.control("tlsroutes", "mx.test:pkix\n")
        self.accepted(self.try_pair(self.good, port=2525)[0], "pkix")
        self.refused(self.try_pair(self.made.make("dest.test"), port=2525)[0])

    @namespace.alone
    def test_port_465_speaks_tls_from_the_first_byte(self):
        self.home.control("smtproutes", "dest.test:mx.test:465\n")
        out, _ = self.try_pair(self.good, port=465, first=True, inside=GREETED + MAIL)
        self.accepted(out, "unverified")

    @namespace.alone
    def test_the_next_host_is_tried_where_the_first_does_not_prove_itself(self):
        self.home.control("tlsroutes", "dest.test:pkix name=mx.test\n")
        self.records["dest.test", MX] = [mx(10, "first.test"), mx(20, "mx.test")]
        self.records["first.test", A] = [bytes([127, 0, 0, 3])]
        with contextlib.suppress(Gone), Mx(self.made.make("other.test"), host="127.0.0.3") as first:
            self.accepted(self.try_pair(self.good)[0], "pkix")
        self.assertEqual((first.accepted, first.bodies), (1, []))

    @namespace.alone
    def test_where_nobody_makes_tls_a_demand_is_a_temporary_trouble(self):
        self.home.control("tlsroutes", "dest.test:encrypt\n")
        self.assertEqual(self.remote(), b"ZTLS is demanded for this host, and tlsclient does not run here. (#4.7.4)\n\0")

    @namespace.alone
    def test_a_line_that_is_not_understood_stops_the_mail_it_is_for(self):
        self.home.control("tlsroutes", "dest.test:pkixx\n")
        self.assertEqual(self.secure(), b"ZUnable to read control files. (#4.3.0)\n"
                                        b"not understood in control/tlsroutes: pkixx\n\0")


class Policies(Case):
    """MTA-STS through the whole: tlsclient, mta-sts, qmail-remote."""

    def setUp(self):
        super().setUp()
        if namespace.here():
            self.web_pair = self.made.make("mta-sts.dest.test")
            self.records["mta-sts.dest.test", A] = [bytes([127, 0, 0, 1])]
            self.publish("1")
            for name in os.listdir(self.home.file("sts")):
                os.unlink(self.home.file("sts", name))

    def publish(self, identity):
        text = f"v=STSv1; id={identity};".encode()
        self.records["_mta-sts.dest.test", TXT] = [bytes([len(text)]) + text]

    def send(self, policy, pair=None, before=OFFER):
        web = Web(self.web_pair, page(policy)) if policy else contextlib.nullcontext()
        with web, contextlib.suppress(Gone), Mx(pair, before=before) as peer:
            out = self.remote(before=["tlsclient", "mta-sts"])
        return out, peer

    ENFORCE = "version: STSv1\nmode: enforce\nmx: mx.test\nmax_age: 86400\n"

    @namespace.alone
    def test_a_host_of_the_policy_must_have_its_certificate_from_the_first_contact_on(self):
        self.accepted(self.send(self.ENFORCE, self.good)[0], "sts")
        self.accepted(self.send(None, self.good)[0], "sts")
        for pair in (self.made.make("dest.test"), self.made.expired("mx.test")):
            out, peer = self.send(None, pair)
            self.assertRegex(out, rb"^Z127\.0\.0\.2 is not proved")
            self.assertEqual(peer.bodies, [])
        out, _ = self.send(None, before=GREETED + "    C: QUIT\n    END")
        self.assertEqual(out, b"ZTLS is demanded for this host, and 127.0.0.2 does not offer it. (#4.7.4)\n\0")

    @namespace.alone
    def test_a_host_that_the_policy_does_not_name_gets_no_mail(self):
        with Web(self.web_pair, page(self.ENFORCE.replace("mx: mx.test", "mx: other.test"))):
            for host in ("dest.test", "dest.test."):
                out = self.remote(before=["tlsclient", "mta-sts"], host=host)
                self.assertEqual(out, b"Zmx.test is not one of the hosts that the domain's policy names (MTA-STS). (#4.7.5)\n\0")

    @namespace.alone
    def test_testing_is_told_and_changes_nothing(self):
        policy = self.ENFORCE.replace("enforce", "testing").replace("mx: mx.test", "mx: other.test")
        out, _ = self.send(policy, self.made.make("x.test"))
        self.assertRegex(out, rb"\ntls=TLSv1\.3 \S+ unverified, MTA-STS in testing: host is not in the policy\n\0$")

    @namespace.alone
    def test_without_a_policy_nothing_is_demanded(self):
        del self.records["_mta-sts.dest.test", TXT]
        self.plain(self.send(None, before=GREETED + MAIL)[0])

    @namespace.alone
    def test_a_route_has_no_policy(self):
        self.home.control("smtproutes", "dest.test:mx.test\n")
        self.plain(self.send(self.ENFORCE, before=GREETED + MAIL)[0])

    @namespace.alone
    def test_mta_sts_that_does_not_answer_holds_the_mail(self):
        code = ("import os, socket, sys\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\nn = os.dup(a.fileno())\n"
                "os.set_inheritable(n, True)\na.close()\nos.environ['MTASTSFD'] = str(n)\n"
                "if not os.fork():\n    os.close(n)\n    [os.close(i) for i in range(3)]\n    b.recv(1)\n    os._exit(0)\n"
                "b.close()\nos.execvp(sys.argv[1], sys.argv[1:])")
        out = self.remote(before=["tlsclient", "python3", "-c", code])
        self.assertEqual(out, b"ZUnable to ask mta-sts what this domain demands. (#4.7.5)\n\0")


class Whole(Case):
    """From the queue to the exchanger: qmail-start has put tlsclient and mta-sts before qmail-rspawn."""

    @namespace.alone
    def test_mail_goes_out_encrypted_and_the_log_says_how(self):
        self.home.control("tlsroutes", "dest.test:pkix name=mx.test\n")
        self.addCleanup(self.home.stop)
        with Mx(self.good) as peer:
            self.home.start(env=self.env())
            done = self.home.inject(MESSAGE, "s@test.example", ["r@dest.test"])
            self.assertEqual(done.code, 0)
            self.home.wait_log(r"^delivery 1: success: 127\.0\.0\.2_accepted_message\./Remote_host_said:_250_queued/"
                               r"tls=TLSv1\.3_TLS\S*_pkix/")
        self.assertEqual(len(peer.bodies), 1)
        self.assertTrue(peer.bodies[0].endswith(ON_THE_WIRE))
        self.home.wait_empty()


if __name__ == "__main__":
    unittest.main()
