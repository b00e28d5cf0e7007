"""qmail-remote and DANE (RFC 7672): unbound validates what nsd serves of signed zones, and of others."""

import contextlib
import unittest

from tests import namespace
from tests.harness import Home
from tests.test_qmail_remote import ON_THE_WIRE, Gone
from tests.test_remote_tls import Case as Base
from tests.test_remote_tls import GREETED, MAIL, Mx
from tests.tlsrig import Certificates, digest
from tests.zones import Zones

load_tests = namespace.together


class Dane(Base):
    @classmethod
    def setUpClass(cls):
        if not namespace.here():
            return
        cls.made = cls.enterClassContext(Certificates())
        cls.own = cls.made.make("whatever.example", own=True)
        cls.good = cls.made.make("mx.signed.test")
        cls.old = cls.made.expired("mx.signed.test")
        cls.home = cls.enterClassContext(Home())
        key, ta = digest(cls.own[0]), digest(cls.made.ca, 0)
        mx = "mx A 127.0.0.2\n"
        cls.zones = cls.enterClassContext(Zones({
            "signed.test": (
                f"@ MX 10 mx\n{mx}_25._tcp.mx TLSA 3 1 1 {key}\n"
                f"old MX 10 mxold\nmxold A 127.0.0.2\n_25._tcp.mxold TLSA 3 1 1 {digest(cls.old[0])}\n"
                f"ta MX 10 mxta\nmxta A 127.0.0.2\n_25._tcp.mxta TLSA 2 0 1 {ta}\n"
                f"wrong MX 10 mxwrong\nmxwrong A 127.0.0.2\n_25._tcp.mxwrong TLSA 3 1 1 {'0' * 64}\n"
                f"unusable MX 10 mxu\nmxu A 127.0.0.2\n_25._tcp.mxu TLSA 1 1 1 {key}\n"
                f"bare MX 10 mxbare\nmxbare A 127.0.0.2\n"
                f"two MX 10 mxwrong\ntwo MX 20 mx3\nmx3 A 127.0.0.3\n_25._tcp.mx3 TLSA 3 1 1 {key}\n"
                f"alias MX 10 mxalias\nmxalias CNAME mx\n"
                "outside MX 10 mx.plain.test.\nfailing MX 10 mx.broken.test.\n"
                f"host A 127.0.0.2\n_25._tcp.host TLSA 3 1 1 {key}\n", "signed"),
            "plain.test": (f"@ MX 10 mx\n{mx}_25._tcp.mx TLSA 3 1 1 {'0' * 64}\nto MX 10 mx.signed.test.\n", "plain"),
            "broken.test": (f"@ MX 10 mx\n{mx}_25._tcp.mx TLSA 3 1 1 a{'0' * 63}\n", "broken"),
        }))

    def setUp(self):
        if not namespace.here():
            return
        with contextlib.suppress(FileNotFoundError):
            self.home.remove_control("tlsroutes")
        self.dns = self.zones

    def mail(self, domain):
        return "    C: EHLO test.example\n    S: 250 mx\n" + MAIL.replace("dest.test", domain)

    def send(self, domain, pair, **more):
        with contextlib.suppress(Gone), Mx(pair, inside=self.mail(domain), **more) as peer:
            out = self.secure(host=domain)
        return out, peer

    def refused(self, domain, pair):
        out, peer = self.send(domain, pair)
        self.assertRegex(out, rb"^Z127\.0\.0\.2 is not proved to be the host that it should be\. \(#4\.7\.5\)\n[^\n\0]+\n\0$")
        self.assertEqual(peer.bodies, [])

    @namespace.alone
    def test_the_marked_key_is_enough_whatever_the_certificate_says(self):
        out, peer = self.send("signed.test", self.own)
        self.accepted(out, "dane")
        self.assertEqual(peer.bodies, [ON_THE_WIRE])

    @namespace.alone
    def test_a_certificate_with_the_marked_key_may_have_expired(self):
        self.accepted(self.send("old.signed.test", self.old)[0], "dane")  # rfc7672:3.1.1

    @namespace.alone
    def test_another_key_gets_no_mail_though_an_authority_vouches_for_it(self):
        self.refused("signed.test", self.good)
        self.refused("wrong.signed.test", self.own)

    @namespace.alone
    def test_starttls_that_was_stripped_gets_no_mail(self):
        with Mx(before=GREETED + "    C: QUIT\n    END"):
            self.assertEqual(self.secure(host="signed.test"),
                             b"ZTLS is demanded for this host, and 127.0.0.2 does not offer it. (#4.7.4)\n\0")

    @namespace.alone
    def test_a_marked_authority_vouches_for_the_host_or_the_domain(self):
        for name in ("mxta.signed.test", "ta.signed.test"):
            self.accepted(self.send("ta.signed.test", self.made.make(name))[0], "dane")
        self.refused("ta.signed.test", self.made.make("other.test"))
        self.refused("ta.signed.test", self.made.expired("mxta.signed.test"))
        self.refused("ta.signed.test", self.own)

    @namespace.alone
    def test_marks_that_cannot_be_checked_demand_tls_and_no_more(self):
        self.accepted(self.send("unusable.signed.test", self.good)[0], "unverified")
        with Mx(before=GREETED + "    C: QUIT\n    END"):
            self.assertRegex(self.secure(host="unusable.signed.test"), rb"^ZTLS is demanded for this host")

    @namespace.alone
    def test_without_marks_nothing_is_demanded(self):
        for domain in ("bare.signed.test", "outside.signed.test", "plain.test"):
            with Mx(before=GREETED + MAIL.replace("dest.test", domain)):
                self.plain(self.secure(host=domain))

    @namespace.alone
    def test_an_exchanger_of_a_signed_zone_must_be_it_though_the_domain_is_not_signed(self):
        """rfc7672:2.2.1"""
        self.accepted(self.send("to.plain.test", self.own)[0], "dane-host mx.signed.test")
        self.refused("to.plain.test", self.good)
        self.home.control("tlsroutes", "to.plain.test:dane\n")
        self.assertEqual(self.secure(host="to.plain.test"),
                         b"Zmx.signed.test has no TLSA records, which control/tlsroutes demands. (#4.7.5)\n\0")

    @namespace.alone
    def test_a_zone_whose_signatures_fail_gets_no_mail(self):
        self.assertEqual(self.secure(host="broken.test"), b"ZSorry, I couldn't find any host by that name. (#4.1.2)\n\0")
        self.assertRegex(self.secure(host="failing.signed.test"), rb"^Z")

    @namespace.alone
    def test_the_next_exchanger_is_tried(self):
        with contextlib.suppress(Gone), Mx(self.own) as first:
            out, peer = self.send("two.signed.test", self.own, host="127.0.0.3")
        self.accepted(out, "dane", b"127.0.0.3")
        self.assertEqual((first.bodies, peer.bodies), ([], [ON_THE_WIRE]))

    @namespace.alone
    def test_marks_stand_at_the_end_of_an_alias(self):
        self.accepted(self.send("alias.signed.test", self.own)[0], "dane")

    @namespace.alone
    def test_a_host_without_exchangers_has_marks_of_its_own(self):
        self.accepted(self.send("host.signed.test", self.own)[0], "dane")
        self.refused("host.signed.test", self.good)

    @namespace.alone
    def test_a_level_of_dane_wants_marks(self):
        self.home.control("tlsroutes", ":dane\n")
        self.accepted(self.send("signed.test", self.own)[0], "dane")
        self.assertEqual(self.secure(host="bare.signed.test"),
                         b"Zmxbare.signed.test has no TLSA records, which control/tlsroutes demands. (#4.7.5)\n\0")


del Base

if __name__ == "__main__":
    unittest.main()
