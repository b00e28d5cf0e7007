"""REQUIRETLS and `TLS-Required: No` (RFC 8689): what qmail-smtpd notes of it, which hosts qmail-remote then talks to, what
goes over a connection that is kept, and what a bounce says. Numbers of sections are the RFC's."""

import contextlib
import os
import smtplib
import socket
import unittest

from tests import namespace, servers, spawners
from tests.dnsserver import A, MX, SERVFAIL, mx
from tests.harness import TIMEOUT, Home, Line, dialogue
from tests.test_kept import Spawner
from tests.test_remote_tls import Case as Base
from tests.test_remote_tls import Policies
from tests.tlsfront import Front
from tests.tlsrig import Web, digest, page, server_context

load_tests = namespace.together

TLSA, TXT = 52, 16
FIELD = b"Qmail-RequireTLS: yes\n"
PLAIN = b"Subject: x\n\nbody\n"
DEMAND = FIELD + PLAIN
LAX = b"TLS-Required: No\n" + PLAIN


class Server(servers.Threaded):
    """An exchanger that serves whoever connects. `heard` has a list for each connection: the lines, with `*` before those
    that came under TLS, bodies left out. `clear` and `offers` are what EHLO announces before and under TLS."""

    def __init__(self, pair, offers="REQUIRETLS", clear="STARTTLS", host="127.0.0.2", port=25, first=False, says=None, greeting="220 mx.test ESMTP"):
        self.context, self.offers, self.clear = server_context(pair) if pair else None, offers.split(), clear.split()
        self.first, self.says, self.greeting = first, says or {}, greeting.encode() + b"\r\n"
        self.bodies = []
        super().__init__(host, port)

    def serve(self, connection, number):
        heard = self.heard[number]
        connection.settimeout(TIMEOUT)
        with contextlib.suppress(OSError), connection:
            if self.first:
                with self.context.wrap_socket(connection, server_side=True) as inner:
                    self.talk(inner, heard, True, self.greeting)
            else:
                self.talk(connection, heard, False, self.greeting)

    def talk(self, stream, heard, secure, greeting=b""):
        reader = stream.makefile("rb")
        stream.sendall(greeting)
        while line := reader.readline():
            line = line.rstrip(b"\r\n").decode("latin-1")
            heard.append("*" * secure + line)
            verb = line.split(" ")[0].split(":")[0]
            if verb == "EHLO":
                words = ["mx.test", *(self.offers if secure else self.clear)]
                said = "\r\n".join(f"250{' ' if i == len(words) - 1 else '-'}{word}" for i, word in enumerate(words))
            else:
                said = self.says.get(verb) or {"STARTTLS": "220 ready", "DATA": "354 go ahead", "QUIT": "221 bye"}.get(verb, "250 ok")
            stream.sendall(said.encode() + b"\r\n")
            if verb == "STARTTLS" and said.startswith("220"):
                with self.context.wrap_socket(stream, server_side=True) as inner:
                    self.connections.append(inner)
                    return self.talk(inner, heard, True)
            if verb == "DATA" and said.startswith("354"):
                body = b""
                while (row := reader.readline()) not in (b".\r\n", b""):
                    body += row
                self.bodies.append(body.replace(b"\r\n", b"\n"))
                stream.sendall(b"250 queued\r\n")
            if verb == "QUIT":
                return None
        return None

    def mails(self):
        """The MAIL commands of each connection."""
        return [[line for line in heard if "MAIL FROM" in line] for heard in self.heard]


STRICT = "*MAIL FROM:<s@test.example> REQUIRETLS"
USUAL = "*MAIL FROM:<s@test.example>"
CLEAR = "MAIL FROM:<s@test.example>"


class Case(Base):
    maxDiff = None

    def setUp(self):
        super().setUp()
        if namespace.here():
            self.failing = set()
            for name in os.listdir(self.home.file("sts")):
                os.unlink(self.home.file("sts", name))

    def answer(self, query):
        if query.name.lower() in self.failing:
            return [query.answer(rcode=SERVFAIL)]
        return super().answer(query)

    def prove(self, *names):
        """The DNS proves these; without any the exchanger of dest.test."""
        self.authentic |= set(names or ("dest.test",))

    def mark(self, pair=None, name="mx.test"):
        """TLSA records of an exchanger, for this certificate's key; without one, for a key that nobody has."""
        data = bytes([3, 1, 1]) + bytes.fromhex(digest(pair[0]) if pair else "0" * 64)
        self.records[f"_25._tcp.{name}", TLSA] = [data]
        self.prove("dest.test", name, f"_25._tcp.{name}")

    @contextlib.contextmanager
    def policy(self, mode="enforce", host="mx.test"):
        """dest.test has one."""
        text = b"v=STSv1; id=1;"
        self.records["mta-sts.dest.test", A] = [bytes([127, 0, 0, 1])]
        self.records["_mta-sts.dest.test", TXT] = [bytes([len(text)]) + text]
        with Web(self.made.make("mta-sts.dest.test"), page(f"version: STSv1\nmode: {mode}\nmx: {host}\nmax_age: 86400\n")):
            yield

    def send(self, message, sts=False, **more):
        return self.remote(before=["tlsclient"] + ["mta-sts"] * sts, message=message, **more)

    def passed(self, out, how, host="127.0.0.2"):
        """`how` is what stands behind the cipher; None where there was no TLS."""
        start = f"r\0K{host} accepted message.\nRemote host said: 250 queued\n".encode()
        self.assertEqual(out[:len(start)], start, out)
        if how is None or how.startswith("tls="):
            self.assertEqual(out[len(start):], b"\0" if how is None else how.encode() + b"\n\0")
        else:
            self.assertRegex(out[len(start):], rb"^tls=TLSv1\.3 TLS\S+ " + how.encode() + rb"\n\0$")

    NO_REQUIRETLS = b"DThe message demands REQUIRETLS, and 127.0.0.2 does not offer it. (#5.7.30)\n\0"
    NO_TLS = b"DThe message demands REQUIRETLS, and 127.0.0.2 offers no TLS. (#5.7.10)\n\0"
    NOT_NAMED = b"DThe message demands REQUIRETLS, and neither DNSSEC nor MTA-STS says that mx.test is to have it. (#5.7.30)\n\0"

    def not_proved(self, out):
        self.assertRegex(out, rb"^DThe message demands REQUIRETLS, and 127\.0\.0\.2 is not proved to be the host that it should be\. "
                              rb"\(#5\.7\.10\)\n[^\n\0]+\n\0$")

    def refused(self, out):
        self.assertRegex(out, rb"^Z127\.0\.0\.2 is not proved to be the host that it should be\. \(#4\.7\.5\)\n[^\n\0]+\n\0$")


class Received(unittest.TestCase):
    """4.1: qmail-smtpd."""

    @classmethod
    def setUpClass(cls):
        if namespace.here():
            cls.home = cls.enterClassContext(Home())

    def setUp(self):
        if namespace.here():
            self.home.write("show", "#!/bin/sh\ncat >\"$QMAIL_HOME/seen\"\ncat <&1 >/dev/null\n", 0o755)
            self.seen = self.home.file("seen")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.seen)

    def talk(self, text, **env):
        line = Line.start(["qmail-smtpd"], {**self.home.env, "QMAILQUEUE": self.home.file("show"), "RELAYCLIENT": "", **env})
        with line:
            dialogue(line, "S: 220 test.example ESMTP\n" + text + "C: QUIT\nS: 221 ...\n")

    MAIL = "S: 250 2.1.0 ok\nC: RCPT TO:<r@x.test>\nS: 250 2.1.5 ok\nC: DATA\nS: 354 go ahead\nC: {}\nC: \nC: body\nC: .\nS: 250 ...\n"
    INSIDE = "S: 250-...\nS: 250-PIPELINING\nS: 250-8BITMIME\nS: 250-SIZE 0\nS: 250-ENHANCEDSTATUSCODES\nS: 250 REQUIRETLS\n"
    OUTSIDE = "S: 250-...\nS: 250-PIPELINING\nS: 250-8BITMIME\nS: 250-SIZE 0\nS: 250 ENHANCEDSTATUSCODES\n"

    def queued(self):
        with open(self.seen, "rb") as f:
            return f.read()

    @namespace.alone
    def test_the_demand_stands_below_the_received_field(self):
        mail = self.MAIL.format("TLS-Required: No")
        self.talk("C: EHLO c.test\n" + self.INSIDE + "C: MAIL FROM:<s@x.test> SIZE=10 requireTLS\n" + mail, TLS_PROTOCOL="TLSv1.3")
        self.assertRegex(self.queued(), rb"^Received: [^\n]+\n  by [^\n]+ with ESMTPS; [^\n]+\n" + FIELD +
                                        rb"TLS-Required: No\n\nbody\n$")

    @namespace.alone
    def test_without_the_parameter_nothing_is_added(self):
        mail = self.MAIL.format("TLS-Required: No")
        self.talk("C: EHLO c.test\n" + self.INSIDE + "C: MAIL FROM:<s@x.test>\n" + mail, TLS_PROTOCOL="TLSv1.3")
        self.assertRegex(self.queued(), rb"^Received: [^\n]+\n  by [^\n]+\nTLS-Required: No\n\nbody\n$")

    @namespace.alone
    def test_it_is_of_one_transaction(self):
        mail = self.MAIL.format("A: b")
        self.talk("C: EHLO c.test\n" + self.INSIDE + "C: MAIL FROM:<s@x.test> REQUIRETLS\nS: 250 ...\nC: RSET\nS: 250 ...\n"
                  "C: MAIL FROM:<s@x.test>\n" + mail, TLS_PROTOCOL="TLSv1.3")
        self.assertNotIn(b"RequireTLS", self.queued())

    @namespace.alone
    def test_without_tls_it_is_neither_offered_nor_taken(self):
        self.talk("C: EHLO c.test\n" + self.OUTSIDE + "C: MAIL FROM:<s@x.test> REQUIRETLS\n"
                  "S: 530 5.7.10 REQUIRETLS needs TLS first (#5.7.10)\nC: RCPT TO:<r@x.test>\nS: 503 5.5.1 ...\n")

    @namespace.alone
    def test_starttls_brings_it(self):
        env = {**self.home.env, "QMAILQUEUE": self.home.file("show"), "RELAYCLIENT": ""}
        with Front(["qmail-smtpd"], env) as front, smtplib.SMTP("127.0.0.1", front.port, "c.test", TIMEOUT) as client:
            client.ehlo()
            self.assertNotIn("requiretls", client.esmtp_features)
            self.assertEqual(client.mail("s@x.test", ["REQUIRETLS"])[0], 530)
            client.starttls(context=front.client_context())
            client.ehlo()
            self.assertEqual(client.esmtp_features["requiretls"], "")
            self.assertEqual(client.sendmail("s@x.test", ["r@x.test"], "A: b\r\n\r\nbody\r\n", ["requiretls"]), {})
        self.assertRegex(self.queued(), rb"^Received: [^\n]+\n  by [^\n]+ with ESMTPS; [^\n]+\n" + FIELD + rb"A: b\n\nbody\n$")

    @namespace.alone
    def test_it_has_no_value(self):
        for word in ("REQUIRETLS=", "REQUIRETLS=yes"):
            self.talk("C: EHLO c.test\n" + self.INSIDE + f"C: MAIL FROM:<s@x.test> {word}\n"
                      "S: 501 5.5.4 syntax error in REQUIRETLS (#5.5.4)\nC: RCPT TO:<r@x.test>\nS: 503 5.5.1 ...\n", TLS_PROTOCOL="TLSv1.3")


class Required(Case):
    """4.2.1: the message demands it."""

    def demanded(self, pair=None, message=DEMAND, server=None, sts=False, **more):
        with Server(pair or self.good, **(server or {})) as server:
            out = self.send(message, sts=sts, **more)
        return out, server

    @namespace.alone
    def test_a_host_proved_by_dnssec_with_a_certificate_that_offers_it_has_the_message(self):
        self.prove()
        out, server = self.demanded()
        self.passed(out, "pkix, REQUIRETLS")
        self.assertEqual((server.mails(), server.bodies), ([[STRICT]], [DEMAND]))

    @namespace.alone
    def test_a_host_proved_by_a_policy_has_it_whatever_the_mode(self):
        for mode in ("enforce", "testing"):
            with self.policy(mode):
                out, server = self.demanded(sts=True)
            self.passed(out, "sts, REQUIRETLS")
            self.assertEqual(server.mails(), [[STRICT]])
            os.unlink(self.home.file("sts/dest.test"))

    @namespace.alone
    def test_a_host_that_nothing_proves_is_not_even_connected_to(self):
        out, server = self.demanded()
        self.assertEqual((out, server.heard), (self.NOT_NAMED, []))
        with self.policy("testing", "other.test"):
            out, server = self.demanded(sts=True)
        self.assertEqual((out, server.heard), (self.NOT_NAMED, []))
        os.unlink(self.home.file("sts/dest.test"))
        with self.policy("enforce", "other.test"):
            out, server = self.demanded(sts=True)
        self.assertEqual((out, server.heard), (b"Zmx.test is not one of the hosts that the domain's policy names (MTA-STS). (#4.7.5)\n\0", []))

    @namespace.alone
    def test_dane_proves_host_and_certificate(self):
        own = self.made.make("whatever.test", own=True)
        self.mark(own)
        out, server = self.demanded(own)
        self.passed(out, "dane, REQUIRETLS")
        self.assertEqual(server.mails(), [[STRICT]])
        self.not_proved(self.demanded(self.good)[0])

    @namespace.alone
    def test_a_domain_without_exchangers_is_its_own_host(self):
        del self.records["dest.test", MX]
        self.records["dest.test", A] = [bytes([127, 0, 0, 2])]
        self.passed(self.demanded(self.made.make("dest.test"))[0], "pkix, REQUIRETLS")
        self.not_proved(self.demanded(self.good)[0])

    @namespace.alone
    def test_a_certificate_that_is_no_good_ends_it(self):
        self.prove()
        for pair in (self.made.make("dest.test"), self.made.expired("mx.test"), self.made.make("mx.test", own=True)):
            out, server = self.demanded(pair)
            self.not_proved(out)
            self.assertEqual(server.bodies, [])

    @namespace.alone
    def test_tls_that_is_not_offered_ends_it_and_tls_that_is_not_there_now_does_not(self):
        self.prove()
        out, server = self.demanded(server={"clear": "PIPELINING REQUIRETLS"})
        self.assertEqual((out, server.heard), (self.NO_TLS, [["EHLO test.example", "QUIT"]]))
        out, server = self.demanded(server={"says": {"STARTTLS": "454 not now"}})
        self.assertEqual(out, b"ZTLS is demanded for this host, and 127.0.0.2 does not offer it. (#4.7.4)\n\0")
        self.assertEqual(server.bodies, [])

    @namespace.alone
    def test_what_counts_is_what_is_offered_under_tls(self):
        self.prove()
        out, server = self.demanded(server={"clear": "STARTTLS REQUIRETLS", "offers": "PIPELINING"})
        self.assertEqual(out, self.NO_REQUIRETLS)
        self.assertEqual(server.heard, [["EHLO test.example", "STARTTLS", "*EHLO test.example", "*QUIT"]])

    @namespace.alone
    def test_the_next_exchanger_is_tried(self):
        self.records["dest.test", MX] = [mx(10, "first.test"), mx(20, "mx.test")]
        self.records["first.test", A] = [bytes([127, 0, 0, 3])]
        self.prove()
        for pair, more in ((self.made.make("first.test"), {"offers": ""}), (self.made.make("first.test"), {"clear": ""}),
                           (self.made.make("other.test"), {}), (None, {"greeting": "554 no"}), (None, {"says": {"STARTTLS": "454 later"}})):
            with Server(pair, host="127.0.0.3", **more) as first:
                out, server = self.demanded()
            self.passed(out, "pkix, REQUIRETLS")
            self.assertEqual((len(first.heard), first.bodies, server.bodies), (1, [], [DEMAND]))

    @namespace.alone
    def test_never_is_said_only_when_every_host_has_said_it(self):
        self.records["dest.test", MX] = [mx(10, "mx.test"), mx(20, "gone.test")]
        self.records["gone.test", A] = [bytes([127, 0, 0, 4])]
        self.prove()
        out, server = self.demanded(server={"offers": ""})
        self.assertEqual(out, b"ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0")
        self.failing.add("gone.test")
        out, server = self.demanded(server={"offers": ""})
        self.assertEqual(out, b"ZSorry, I wasn't able to establish an SMTP connection. (#4.4.1)\n\0")
        del self.records["gone.test", A]
        self.failing.clear()
        self.assertEqual(self.demanded(server={"offers": ""})[0], self.NO_REQUIRETLS)

    @namespace.alone
    def test_what_cannot_be_known_now_holds_the_message(self):
        self.mark(self.good)
        self.failing.add("_25._tcp.mx.test")
        self.assertEqual(self.demanded()[0], b"Zmx.test is not used while its TLSA records cannot be had. (#4.7.5)\n\0")
        self.failing.clear()
        self.assertEqual(self.remote(message=DEMAND),
                         b"ZTLS is demanded for this host, and tlsclient does not run here. (#4.7.4)\n\0")

    @namespace.alone
    def test_slow_hosts_are_not_all_waited_for(self):
        hosts = range(2, 10)
        self.records["dest.test", MX] = [mx(host, f"mx{host}.test") for host in hosts]
        self.records.update({(f"mx{host}.test", A): [bytes([127, 0, 0, host])] for host in hosts})
        self.prove()
        self.home.control("timeoutremote", "1\n")
        self.addCleanup(os.unlink, self.home.file("control/timeoutremote"))
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.create_server((f"127.0.0.{host}", 25))) for host in hosts]
            self.assertRegex(self.send(DEMAND), rb"^ZConnected to 127\.0\.0\.2 but connection died\. \(#4\.4\.2\)\n\0$")
            asked = 0
            for listener in silent:
                listener.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    listener.accept()[0].close()
                    asked += 1
        self.assertIn(asked, (1, 2, 3))

    @namespace.alone
    def test_a_host_that_only_a_policy_could_name_is_not_refused_for_good_while_that_cannot_be_had(self):
        no_tls = b"ZTLS is demanded for this host, and tlsclient does not run here. (#4.7.4)\n\0"
        unknown = b"ZThe message demands REQUIRETLS, and the domain's policy (MTA-STS) cannot be had now. (#4.7.5)\n\0"
        self.assertEqual(self.remote(message=DEMAND), no_tls, "nobody asks for one without tlsclient")
        with self.policy():
            self.assertEqual(self.remote(message=DEMAND), no_tls)
        out, server = self.demanded(sts=True)
        self.assertEqual((out, server.heard), (unknown, []), "its web server is gone")
        self.passed(self.demanded(message=PLAIN, sts=True)[0], "unverified")
        self.passed(self.demanded(sender="", sts=True)[0], "unverified")
        os.unlink(self.home.file("sts/dest.test"))
        self.failing.add("_mta-sts.dest.test")
        self.assertEqual(self.demanded(sts=True)[0], unknown, "the DNS does not answer")
        self.failing.clear()
        del self.records["_mta-sts.dest.test", TXT]
        self.assertEqual(self.demanded(sts=True)[0], self.NOT_NAMED)

    @namespace.alone
    def test_what_the_administrator_demands_holds_as_well(self):
        self.prove()
        for level, how in (("may", "pkix"), ("encrypt", "pkix"), ("pkix", "pkix"), ("auto minimum=1.3", "pkix")):
            self.home.control("tlsroutes", f"dest.test:{level}\n")
            out, server = self.demanded()
            self.passed(out, how + ", REQUIRETLS")
            self.not_proved(self.demanded(self.made.make("other.test"))[0])
        self.home.control("tlsroutes", "dest.test:none\n")
        out, server = self.demanded()
        self.assertEqual((out, server.heard),
                         (b"DThe message demands REQUIRETLS, and control/tlsroutes has no TLS for mx.test. (#5.7.10)\n\0", []))
        self.home.control("tlsroutes", "dest.test:dane\n")
        self.assertEqual(self.demanded()[0], b"Zmx.test has no TLSA records, which control/tlsroutes demands. (#4.7.5)\n\0")
        self.home.control("tlsroutes", f"dest.test:fingerprint {'0' * 64}\n")
        self.not_proved(self.demanded()[0])

    @namespace.alone
    def test_a_relay_must_be_the_one_of_its_name(self):
        self.home.control("smtproutes", ":mx.test:2525\n")
        out, server = self.demanded(server={"port": 2525})
        self.passed(out, "pkix, REQUIRETLS")
        self.not_proved(self.demanded(self.made.make("dest.test"), server={"port": 2525})[0])
        self.assertEqual(self.demanded(server={"port": 2525, "offers": ""})[0], self.NO_REQUIRETLS)
        self.home.control("smtproutes", ":mx.test:465\n")
        self.passed(self.demanded(server={"port": 465, "first": True})[0], "pkix, REQUIRETLS")
        self.home.control("smtproutes", ":127.0.0.2:2525\n")
        self.not_proved(self.demanded(server={"port": 2525})[0])
        self.home.control("tlsroutes", "127.0.0.2:pkix name=mx.test\n")
        self.passed(self.demanded(server={"port": 2525})[0], "pkix, REQUIRETLS")

    @namespace.alone
    def test_the_demand_outweighs_the_other_field(self):
        self.prove()
        out, server = self.demanded(message=b"TLS-Required: No\n" + DEMAND)
        self.passed(out, "pkix, REQUIRETLS")
        self.assertEqual(self.demanded(message=b"TLS-Required: No\n" + DEMAND, server={"offers": ""})[0], self.NO_REQUIRETLS)

    @namespace.alone
    def test_a_message_from_a_pipe_demands_it_too(self):
        self.prove()
        body = DEMAND + b"line\n" * 20000
        for offers in ("REQUIRETLS", ""):
            with Server(self.good, offers=offers) as server:
                done = self.home.run(["tlsclient", "qmail-remote", "dest.test", "s@test.example", "r@dest.test"], body, env=self.env())
            if offers:
                self.passed(done.out, "pkix, REQUIRETLS")
                self.assertEqual(server.bodies, [body])
            else:
                self.assertEqual((done.out, server.bodies), (self.NO_REQUIRETLS, []))

    @namespace.alone
    def test_what_stands_in_the_body_demands_nothing(self):
        out, server = self.demanded(message=PLAIN + DEMAND)
        self.passed(out, "unverified")
        self.assertEqual(server.mails(), [[USUAL]])

    @namespace.alone
    def test_qmail_inject_passes_it_on(self):
        done = self.home.run(["qmail-inject", "-n"], b"To: r@dest.test\n" + DEMAND)
        self.assertEqual(done.code, 0)
        self.assertIn(b"\n" + FIELD, b"\n" + done.out)


class Bounces(Case):
    """5: non-delivery messages."""

    def send_as(self, sender, pair=None, **server):
        with Server(pair or self.good, **server) as server:
            out = self.send(DEMAND, sender=sender)
        return out, server

    @namespace.alone
    def test_a_bounce_carries_the_demand_where_it_can(self):
        self.prove()
        for sender in ("", "#@[]"):
            out, server = self.send_as(sender)
            self.passed(out, "pkix, REQUIRETLS")
            self.assertEqual(server.mails(), [[f"*MAIL FROM:<{sender}> REQUIRETLS"]])

    @namespace.alone
    def test_a_bounce_is_not_lost_for_it(self):
        out, server = self.send_as("")
        self.passed(out, "unverified")
        self.assertEqual(server.mails(), [["*MAIL FROM:<>"]], "a host that nothing proves")
        self.prove()
        out, server = self.send_as("", offers="")
        self.passed(out, "pkix")
        self.assertEqual(server.mails(), [["*MAIL FROM:<>"]], "REQUIRETLS is not offered")
        out, server = self.send_as("", self.made.make("other.test"))
        self.passed(out, "unverified")
        self.assertEqual(server.mails(), [[], ["*MAIL FROM:<>"]], "a certificate that is no good")
        out, server = self.send_as("", clear="")
        self.passed(out, None)
        with Server(self.good, clear="") as server:
            self.passed(self.remote(message=DEMAND, sender=""), None)

    @namespace.alone
    def test_what_holds_for_other_mail_holds_for_it(self):
        self.mark()
        out, server = self.send_as("")
        self.refused(out)
        self.assertEqual(server.bodies, [])

    @namespace.alone
    def test_it_carries_the_header_and_not_the_message(self):
        home = Home()
        self.addCleanup(home.__exit__)
        home.start()
        message = b"Received: from x\n  by y\nSubject: x\n" + FIELD + b"\nthe secret\n" + b"more of it\n" * 40000
        self.assertEqual(home.inject(message, "joe@test.example", ["nobody-here@test.example"]).code, 0)
        self.assertEqual(home.inject(message.replace(FIELD, b""), "joe@test.example", ["nobody-here@test.example"]).code, 0)
        home.wait_log(r"(?s)^end msg.*^end msg.*^end msg.*^end msg")
        home.wait_empty()
        strict, usual = sorted(home.messages(), key=len)
        head, _, below = strict.partition(b"--- Below this line is a copy of the message's header.\n\nReturn-Path: <joe@test.example>\n")
        self.assertRegex(head, rb"\n" + FIELD + rb"Date: [^\n]+\nFrom: MAILER-DAEMON@test.example\n")
        self.assertIn(b"<nobody-here@test.example>:\nSorry, no mailbox here by that name.", head)
        self.assertTrue(below.endswith(message.partition(b"\n\n")[0] + b"\n"), below)
        self.assertNotIn(b"secret", strict)
        self.assertNotIn(FIELD, usual)
        self.assertTrue(usual.endswith(message.replace(FIELD, b"")))


class Optional(Case):
    """4.2.2: TLS-Required: No."""

    @namespace.alone
    def test_what_the_domain_publishes_is_followed_where_it_can_be(self):
        self.mark(self.good)
        with Server(self.good) as server:
            self.passed(self.send(LAX), "dane")
        self.assertEqual(server.mails(), [[USUAL]])

    @namespace.alone
    def test_dane_does_not_stop_it(self):
        self.mark()
        with Server(self.good) as server:
            self.passed(self.send(LAX), "unverified, TLS-Required: No")
            self.refused(self.send(PLAIN))
        self.assertEqual(server.mails(), [[], [USUAL], []])
        with Server(self.good, clear=""):
            self.passed(self.send(LAX), "tls=none, TLS-Required: No")
        self.failing.add("_25._tcp.mx.test")
        with Server(self.good):
            self.passed(self.send(LAX), "unverified, TLS-Required: No")

    @namespace.alone
    def test_a_policy_does_not_stop_it(self):
        with self.policy(), Server(self.made.make("other.test")) as server:
            self.passed(self.send(LAX, sts=True), "unverified, TLS-Required: No")
            self.refused(self.send(PLAIN, sts=True))
        self.assertEqual(server.mails(), [[], [USUAL], []])
        os.unlink(self.home.file("sts/dest.test"))
        with self.policy(host="other.test"), Server(self.good):
            self.passed(self.send(LAX, sts=True), "unverified, TLS-Required: No")
        with Server(self.good, clear=""):
            self.passed(self.send(LAX, sts=True), "tls=none, TLS-Required: No")

    @namespace.alone
    def test_the_administrator_does(self):
        self.prove()
        for level in ("pkix", "pkix name=mx.test", "auto minimum=1.3"):
            self.home.control("tlsroutes", f"dest.test:{level}\n")
            with Server(self.made.make("other.test")) as server:
                out = self.send(LAX)
            if level.startswith("auto"):
                self.passed(out, "unverified")
            else:
                self.refused(out)
                self.assertEqual(len(server.heard), 1)
        self.home.control("tlsroutes", "dest.test:encrypt\n")
        with Server(self.good, clear="") as server:
            self.assertEqual(self.send(LAX), b"ZTLS is demanded for this host, and 127.0.0.2 does not offer it. (#4.7.4)\n\0")
        self.assertEqual(len(server.heard), 1)
        self.home.control("tlsroutes", "dest.test:dane\n")
        self.assertRegex(self.send(LAX), rb"^Zmx\.test has no TLSA records")

    @namespace.alone
    def test_a_password_is_told_to_nobody_else_for_it(self):
        self.mark()
        self.home.control("smtproutes", ":mx.test:25 joe secret cleartext\n")
        with Server(self.good, offers="AUTH=PLAIN", clear="STARTTLS AUTH=PLAIN") as server:
            self.refused(self.send(LAX))
        self.assertEqual(server.heard, [["EHLO test.example", "STARTTLS"]])

    @namespace.alone
    def test_twice_or_with_another_word_it_says_nothing(self):
        self.mark()
        with Server(self.good) as server:
            for message in (b"TLS-Required: No\n" + LAX, LAX.replace(b"No", b"Yes")):
                self.refused(self.send(message))
        self.assertEqual(server.bodies, [])


class Kept(Case):
    """A connection that was opened for one kind of message is for no other."""

    def spawn(self, *messages):
        """What qmail-rspawn says of each, one after the other."""
        said = []
        env = {**self.env(), "QMAILBURST": "1"}
        spawners.forget(self.home)
        names = [spawners.put_message(self.home, 460 + number, message) for number, (message, _) in enumerate(messages)]
        line = Line.start(["tlsclient", "qmail-rspawn"], {**self.home.env, **env})
        spawner = Spawner.__new__(Spawner)
        spawner.line = line
        with line:
            spawner.limit = line.reader.read(1)
            for name, (_, sender) in zip(names, messages):
                said.append(spawner.one(name, "r@dest.test", sender))
            self.assertEqual(line.finish().code, 0)
        return said

    S = "s@test.example"

    @namespace.alone
    def test_messages_of_one_kind_share_it(self):
        self.prove()
        for message, mail in ((PLAIN, USUAL), (DEMAND, STRICT), (LAX, USUAL)):
            for _ in range(5):  # a connection waits two seconds for the next message: a slow machine misses it now and then
                with Server(self.good) as server:
                    said = self.spawn((message, self.S), (message, self.S))
                self.assertEqual([text[:1] for text in said], [b"K", b"K"])
                if len(server.mails()) == 1:
                    break
            self.assertEqual(server.mails(), [[mail, mail]])

    @namespace.alone
    def test_one_that_demands_more_has_its_own(self):
        self.prove()
        with Server(self.good) as server:
            said = self.spawn((PLAIN, self.S), (DEMAND, self.S), (PLAIN, self.S), (LAX, self.S), (DEMAND, self.S))
        self.assertEqual([text[:1] for text in said], [b"K"] * 5)
        self.assertEqual(server.mails(), [[USUAL], [STRICT], [USUAL], [USUAL], [STRICT]])

    @namespace.alone
    def test_one_that_demands_more_than_its_host_can_does_not_go_over_what_is_open(self):
        with Server(self.good, offers="") as server:
            said = self.spawn((PLAIN, self.S), (DEMAND, self.S))
        self.assertEqual((said[0][:1], said[1] + b"\0"), (b"K", self.NOT_NAMED))
        self.prove()
        with Server(self.good, offers="") as server:
            said = self.spawn((PLAIN, self.S), (DEMAND, self.S), (DEMAND, ""), (DEMAND, self.S))
        self.assertEqual((said[0][:1], said[1] + b"\0", said[2][:1], said[3] + b"\0"),
                         (b"K", self.NO_REQUIRETLS, b"K", self.NO_REQUIRETLS))
        self.assertEqual(server.mails(), [[USUAL], [], ["*MAIL FROM:<>"], []])

    @namespace.alone
    def test_what_was_lowered_for_one_is_for_no_other(self):
        self.mark()
        with Server(self.good) as server:
            said = self.spawn((LAX, self.S), (PLAIN, self.S), (LAX, self.S), (DEMAND, self.S), (LAX, self.S), (LAX, ""))
        self.assertEqual([text[:1] for text in said], [b"K", b"Z", b"K", b"D", b"K", b"K"])
        mails = [mails for mails in server.mails() if mails]
        self.assertEqual((mails[:2], sum(mails, [])), ([[USUAL], [USUAL]], [USUAL, USUAL, USUAL, "*MAIL FROM:<>"]))
        self.assertEqual(server.bodies, [LAX] * 4)

    @namespace.alone
    def test_what_is_in_the_clear_stays_with_its_kind(self):
        self.mark()
        with Server(self.good, clear="") as server:
            said = self.spawn((LAX, self.S), (PLAIN, self.S), (DEMAND, self.S))
        self.assertEqual([text[:1] for text in said], [b"K", b"Z", b"D"])
        self.assertEqual(server.bodies, [LAX])


class Testing(Case):
    """RFC 8461 section 5: a policy in testing is told of, and changes nothing."""

    @namespace.alone
    def test_a_certificate_that_would_have_failed_is_told_of(self):
        with self.policy("testing"), Server(self.made.make("other.test")) as server:
            out = self.send(PLAIN, sts=True)
        self.passed(out, "unverified, MTA-STS in testing: [^\n]+")
        self.assertEqual(server.mails(), [[], [USUAL]])
        with Server(self.good) as server:
            self.passed(self.send(PLAIN, sts=True), "sts")
        self.assertEqual(server.mails(), [[USUAL]])

    @namespace.alone
    def test_tls_that_would_have_been_missed_is_told_of(self):
        with self.policy("testing"), Server(None, clear="") as server:
            out = self.send(PLAIN, sts=True)
        self.passed(out, "tls=none, MTA-STS in testing: TLS is not offered")
        self.assertEqual(server.mails(), [[CLEAR]])


class Names(Case):
    """Two exchangers, one address."""

    @namespace.alone
    def test_the_name_that_the_policy_has_is_used_where_another_one_stands_first(self):
        self.records["dest.test", MX] = [mx(10, "other.test"), mx(20, "mx.test"), mx(30, "MX.test")]
        self.records["other.test", A] = self.records["mx.test", A]
        for mode, message, how in (("enforce", PLAIN, "sts"), ("testing", DEMAND, "sts, REQUIRETLS")):
            with self.policy(mode), Server(self.good) as server:
                self.passed(self.send(message, sts=True), how)
            self.assertEqual(len(server.heard), 1)
            os.unlink(self.home.file("sts/dest.test"))


class Unproved(Case):
    """RFC 7672 section 2.2.1: the domain's zone is not signed, that of its exchanger is."""

    def setUp(self):
        super().setUp()
        if namespace.here():
            self.own = self.made.make("whatever.test", own=True)
            self.mark(self.own)
            self.authentic.discard("dest.test")

    @namespace.alone
    def test_the_exchanger_must_be_the_one_that_its_zone_marks_and_the_log_says_of_whom_it_is_the_proof(self):
        with Server(self.own) as server:
            self.passed(self.send(PLAIN), "dane-host mx.test")
        with Server(self.good) as server:
            self.refused(self.send(PLAIN))
        self.assertEqual(server.bodies, [])

    @namespace.alone
    def test_it_is_no_proof_for_the_domain(self):
        with Server(self.own) as server:
            self.assertEqual(self.send(DEMAND), self.NOT_NAMED)
            self.home.control("tlsroutes", "dest.test:dane\n")
            self.assertEqual(self.send(PLAIN), b"Zmx.test has no TLSA records, which control/tlsroutes demands. (#4.7.5)\n\0")
        self.assertEqual(server.heard, [])

    @namespace.alone
    def test_an_exchanger_whose_zone_is_not_signed_is_asked_nothing(self):
        self.authentic.clear()
        with Server(self.good):
            self.passed(self.send(PLAIN), "unverified")
        self.assertEqual({query.kind for query in self.dns.queries} & {TLSA, 5}, set())


class Whole(Case):
    """From one server to the next: qmail-smtpd, the queue, qmail-local, the queue, qmail-remote."""

    @namespace.alone
    def test_the_demand_is_forwarded_with_the_message_and_the_log_says_so(self):
        self.home.control("smtproutes", "dest.test:mx.test:2525\n")
        self.home.dotqmail(".qmail", "&r@dest.test\n")
        self.addCleanup(self.home.stop)
        with Server(self.good, port=2525) as server:
            self.home.start(env=self.env())
            text = "EHLO c.test\r\nMAIL FROM:<s@test.example> REQUIRETLS\r\nRCPT TO:<joe@test.example>\r\nDATA\r\nA: b\r\n\r\nbody\r\n.\r\nQUIT\r\n"
            done = self.home.run(["qmail-smtpd"], text.encode(), env={"TLS_PROTOCOL": "TLSv1.3", "RELAYCLIENT": ""})
            self.assertEqual(done.code, 0)
            self.home.wait_log(r"^delivery 2: success: 127\.0\.0\.2_accepted_message\./Remote_host_said:_250_queued/"
                               r"tls=TLSv1\.3_TLS\S*_pkix,_REQUIRETLS/")
            self.home.wait_empty()
        self.assertEqual(server.mails(), [["*MAIL FROM:<s@test.example> REQUIRETLS"]])
        self.assertRegex(server.bodies[0], rb"^Received: \(qmail [^\n]+\nDelivered-To: joe@test.example\nReceived: \(qmail [^\n]+\nReceived: from [^\n]+\n"
                                           rb"  by [^\n]+\n" + FIELD + rb"A: b\n\nbody\n$")


del Base, Policies

if __name__ == "__main__":
    unittest.main()
