"""Postfix and Exim: we deliver to them, and they to us; TLS as it comes, proved by an authority and by DANE; logins."""

import os
import unittest

from tests import checkers, harness, sandbox
from tests.certificates import Store, pair_of
from tests.harness import Daemon, Home, wait_for
from tests.mailservers import Exim, Postfix, Route
from tests.tlsrig import Certificates, digest
from tests.zones import Zones

OURS, THEIRS = "127.0.0.4", "127.0.0.2"
KINDS = ("ee", "ta", "wrong", "other", "bare")
MESSAGE = b"Subject: x\n\nhi\n"


def domains(side):
    return [f"{kind}.{side}.signed.test" for kind in KINDS] + [f"{side}.plain.test", f"alias.{side}.plain.test"]


def zones(sides):
    """Of each side {name: (address, certificate, anchor)} the domains `ee` and `ta`, which have the marks of its certificate and its
    anchor; `wrong`, which has others; `other`, whose anchor is right and whose host has a name that the certificate has not;
    `bare` without any, all in signed.test; and in plain.test itself and `alias`, whose host has another name."""
    signed, plain = "", ""
    for side, (address, certificate, anchor) in sides.items():
        anchor = f"2 0 1 {digest(anchor, 0)}"
        for kind, mark in zip(KINDS, (f"3 1 1 {digest(certificate)}", anchor, f"3 1 1 {'0' * 64}", anchor, None), strict=True):
            signed += f"{kind}.{side} MX 10 mx.{kind}.{side}\nmx.{kind}.{side} A {address}\n"
            signed += f"_25._tcp.mx.{kind}.{side} TLSA {mark}\n" if mark else ""
        plain += f"{side} MX 10 mx.{side}\nmx.{side} A {address}\nalias.{side} MX 10 other.{side}\nother.{side} A {address}\n"
    return {"signed.test": (signed, "signed"), "plain.test": (plain, "plain")}


class Peers:
    KIND = None
    LOGINS = (("PLAIN", 587), ("LOGIN", 587), ("CRAM-MD5", 587), ("PLAIN", 465))

    @classmethod
    def setUpClass(cls):
        cls.made = cls.enterClassContext(Certificates())
        cls.pairs = pairs = {side: cls.made.make(f"mx.ta.{side}.signed.test", f"mx.{side}.plain.test") for side in ("ours", "theirs")}
        cls.enterClassContext(Zones(zones({"ours": (OURS, pairs["ours"][0], cls.made.ca),
                                           "theirs": (THEIRS, pairs["theirs"][0], cls.made.ca)}), port=53))
        if os.path.islink("/etc/resolv.conf"):
            os.unlink("/etc/resolv.conf")
        with open("/etc/resolv.conf", "w") as f:
            f.write("nameserver 127.0.0.1\noptions trust-ad\n")
        cls.client = cls.made.make("mx.theirs.plain.test", email="joe@test.example")
        cls.peer = cls.enterClassContext(cls.KIND(
            "mx.theirs.plain.test", THEIRS, pairs["theirs"], cls.made.ca, domains("theirs"),
            proved=["ours.plain.test", "alias.ours.plain.test"], routes=cls.routes(), client=cls.client))
        cls.ours(pairs["ours"])

    @classmethod
    def routes(cls):
        return {f"{mechanism.lower()}.{port}.test": Route("mx.ours.plain.test", port, mechanism) for mechanism, port in cls.LOGINS}

    @classmethod
    def ours(cls, pair):
        """A home with qmail-smtpd behind tlsserver."""
        cls.home = cls.enterClassContext(Home())
        with open(cls.made.ca, "rb") as f:
            cls.home.control("tlsca", f.read())
        cls.home.control("locals", "\n".join(["test.example", *domains("ours"), *cls.routes()]) + "\n")
        cls.home.control("rcpthosts", "\n".join(domains("ours")) + "\n")
        checkers.install(cls.home)
        checkers.offer_scram(cls.home)
        cls.home.start()
        store = cls.enterClassContext(Store())
        store.put("default", pair_of(pair))
        start = lambda port, *more, env=None: cls.enterClassContext(Daemon(  # noqa: E731
            ["tlsserver", "-v", "-RHl0", "-k", store.path, *harness.as_owner(), *more], env={**cls.home.env, **(env or {})}))
        login = {"SUBMISSION": "1", "SMTPAUTH": "+cram"}
        cls.servers = {25: start(25, "-n", OURS, "25", "qmail-smtpd"),
                       587: start(587, "-n", "-A", cls.made.ca, OURS, "587", "qmail-smtpd", "checker", "true", env=login),
                       465: start(465, OURS, "465", "qmail-smtpd", "checker", "true", env=login)}
        for server in cls.servers.values():
            server.wait_log("status: 0/")

    def setUp(self):
        for name in ("tlsroutes", "smtproutes", "smtpauth", "tlsclients"):
            if os.path.exists(self.home.file("control", name)):
                self.home.remove_control(name)

    # -- we to them

    def send(self, domain, demand=None):
        """What qmail-remote reports of a message, and what is new in their mailbox."""
        if demand:
            self.home.control("tlsroutes", f"{domain}:{demand}\n")
        before = self.peer.messages()
        out = self.home.remote(domain, "joe@test.example", f"r@{domain}", message=MESSAGE, before=["tlsclient"])
        if out.startswith(b"r"):
            wait_for(lambda: len(self.peer.messages()) > len(before), "the message in their mailbox")
        return out.decode(), [m for m in self.peer.messages() if m not in before]

    def accepted(self, out, proof):
        self.assertRegex(out, rf"^r\0K127\.0\.0\.2 accepted message\.\nRemote host said: 250 [^\n]*\ntls=TLSv1\.3 TLS\S* {proof}\n\0$")

    def refused(self, outcome):
        out, messages = outcome
        self.assertRegex(out, r"^Z127\.0\.0\.2 is not proved to be the host that it should be\. \(#4\.7\.5\)\n[^\n\0]+\n\0$")
        self.assertEqual(messages, [])

    def test_we_use_their_starttls_whoever_they_are(self):
        for domain in ("theirs.plain.test", "alias.theirs.plain.test", "bare.theirs.signed.test"):
            out, (message,) = self.send(domain)
            self.accepted(out, "unverified")
            self.assertRegex(message, self.ENCRYPTED)

    def test_we_demand_their_name_of_an_authority(self):
        self.accepted(self.send("theirs.plain.test", "pkix name=mx.theirs.plain.test")[0], "pkix")
        self.refused(self.send("theirs.plain.test", "pkix name=other.theirs.plain.test"))

    def test_we_demand_what_their_zone_marks(self):
        for kind in ("ee", "ta"):
            out, (message,) = self.send(f"{kind}.theirs.signed.test")
            self.accepted(out, "dane")
            self.assertRegex(message, self.ENCRYPTED)
        for kind in ("wrong", "other"):
            self.refused(self.send(f"{kind}.theirs.signed.test"))

    def test_we_show_our_certificate_where_we_are_told_to(self):
        for name, content in zip(("cert", "key"), pair_of(self.client), strict=True):
            self.home.write(f"control/tls/mine/{name}.pem", content, 0o600)
        _, (message,) = self.send("theirs.plain.test", "encrypt cert=mine")
        self.assertRegex(message, self.SHOWN)
        _, (message,) = self.send("theirs.plain.test", "encrypt")
        self.assertNotRegex(message, self.SHOWN)

    def test_we_log_in_at_their_port_587(self):
        self.home.control("smtproutes", ":mx.theirs.plain.test:587 @them\n")
        self.home.write("control/smtpauth", f"them:{self.LOGIN} secret\n", 0o600)
        out, (message,) = self.send("theirs.plain.test")
        self.accepted(out, "pkix")
        self.assertRegex(message, self.LOGGED_IN)
        self.home.write("control/smtpauth", f"them:{self.LOGIN} wrong\n", 0o600)
        out, messages = self.send("theirs.plain.test")
        self.assertRegex(out, rf"^Z127\.0\.0\.2 refused our login \({self.BEST}\)\.\nRemote host said: 535 ")
        self.assertEqual(messages, [])

    # -- they to us

    def receive(self, recipient, sender="s@sender.test"):
        """The outcome at their side, and what is new in our mailbox."""
        before = self.home.messages()
        outcome = self.peer.deliver(recipient, sender)
        if outcome.sent:
            wait_for(lambda: len(self.home.messages()) > len(before), "the message in our mailbox")
        return outcome, [m for m in self.home.messages() if m not in before]

    def test_they_use_our_starttls(self):
        outcome, (message,) = self.receive("joe@bare.ours.signed.test")
        self.assertEqual((outcome.sent, outcome.proof), (True, "unverified"), outcome.text)
        self.assertIn(b" with ESMTPS; ", message)
        self.servers[25].wait_log(r"^tlsserver: tls \d+ TLSv1\.3 TLS_\S+ \S+ full$")

    def test_they_demand_our_name_of_an_authority(self):
        outcome, messages = self.receive("joe@ours.plain.test")
        self.assertEqual((outcome.sent, outcome.proof, len(messages)), (True, "verified", 1), outcome.text)
        outcome, messages = self.receive("joe@alias.ours.plain.test")
        self.assertEqual((outcome.sent, messages), (False, []))
        self.assertIn("ertificate", outcome.text)

    def test_they_demand_what_our_zone_marks(self):
        for kind in ("ee", "ta"):
            outcome, (message,) = self.receive(f"joe@{kind}.ours.signed.test")
            self.assertEqual((outcome.sent, outcome.proof), (True, "verified"), outcome.text)
            self.assertIn(b" with ESMTPS; ", message)
        for kind in ("wrong", "other"):
            outcome, messages = self.receive(f"joe@{kind}.ours.signed.test")
            self.assertEqual((outcome.sent, messages), (False, []))
            self.assertIn("ertificate", outcome.text)

    def test_they_log_in_to_submit(self):
        self.home.control("tlsclients", "joe@test.example\n")
        for domain, route in self.routes().items():
            outcome, (message,) = self.receive(f"joe@{domain}", "joe@test.example")
            self.assertEqual((outcome.sent, outcome.proof), (True, "verified"), outcome.text)
            self.assertRegex(message, rb"\(joe(@test\.example)?@127\.0\.0\.\d\)\n  by \S+ with ESMTPSA; ")
            self.assertIn(f", method={route.mechanism}, ", self.servers[route.port].log())


@sandbox.alone
class WithPostfix(Peers, unittest.TestCase):
    KIND = Postfix
    ENCRYPTED = rb"\(using TLSv1\.3 with cipher TLS_"
    SHOWN = rb'\(Client CN "mx\.theirs\.plain\.test", Issuer "authority" \(verified OK\)\)'
    LOGIN, LOGGED_IN, BEST = "joe@mx.theirs.plain.test", rb"\) with ESMTPSA id ", "SCRAM-SHA-256"
    LOGINS = (*Peers.LOGINS, ("SCRAM-SHA-256", 587), ("SCRAM-SHA-256", 465))

    def test_posttls_finger(self):
        own = digest(self.pairs["ours"][0], 0)
        own, other = (":".join(text[n:n + 2] for n in range(0, 64, 2)) for text in (own, "0" * 64))
        for verdict, argv in (("Verified", ["dane", "ee.ours.signed.test"]), ("Verified", ["dane", "ta.ours.signed.test"]),
                              ("Untrusted", ["dane", "wrong.ours.signed.test"]), ("Untrusted", ["dane", "other.ours.signed.test"]),
                              ("Verified", ["fingerprint", "-d", "sha256", "ours.plain.test", own]),
                              ("Untrusted", ["fingerprint", "-d", "sha256", "ours.plain.test", other]),
                              ("Verified", ["secure", "-F", self.made.ca, "ours.plain.test", "mx.ours.plain.test"]),
                              ("Untrusted", ["secure", "-F", self.made.ca, "ours.plain.test", "other.ours.plain.test"])):
            said = self.peer.finger("-c", "-L", "summary", "-l", *argv)
            self.assertRegex(said, rf"(?m)^posttls-finger: {verdict} TLS connection established to mx\..*ours\.\w*\.test\[127\.0\.0\.4\]:25: TLSv1\.3 ")


@sandbox.alone
class WithExim(Peers, unittest.TestCase):
    KIND = Exim
    ENCRYPTED = rb"\n\tby mx\.theirs\.plain\.test with esmtps +\(TLS1\.3\) "
    SHOWN = rb"X-Client: 1 .*CN=mx\.theirs\.plain\.test\n"
    LOGIN, LOGGED_IN, BEST = "joe", rb" with esmtpsa ", "CRAM-MD5"
    LOGINS = (*Peers.LOGINS, ("EXTERNAL", 587))

    def test_they_show_a_certificate_that_is_not_listed(self):
        self.home.control("tlsclients", "ann@test.example\n")
        outcome, messages = self.receive("joe@external.587.test", "joe@test.example")
        self.assertEqual((outcome.sent, messages), (False, []))
        self.assertIn("no common mechanisms", outcome.text)


if __name__ == "__main__":
    unittest.main()
