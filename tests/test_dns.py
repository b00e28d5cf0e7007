"""The resolver, seen through qmail-remote: what its report says tells what the DNS said.

A null MX ("does not accept mail") needs no port 25, so it is the sign of an answer that was understood.
"""

import struct
import tempfile
import unittest

from tests import namespace
from tests.dnsserver import (A, AAAA, CNAME, FORMERR, MX, NOTIMP, NXDOMAIN, REFUSED, SERVFAIL, SOA, Nsd, Responder,
                             encode_name, mx)
from tests.harness import Home, free_port

NULL = b"DSorry, %s does not accept mail (null MX). (#5.1.10)\n\0"
NO_HOST = b"DSorry, I couldn't find any host named %s. (#5.1.2)\n\0"
NO_ADDRESS = b"DSorry, I couldn't find a mail exchanger or IP address. (#5.4.4)\n\0"
LATER = b"ZSorry, I couldn't find any host by that name. (#4.1.2)\n\0"

ZONES = {
    "zone.test": """
null MX 0 .
null7 MX 7 .
nodata TXT "here, but nothing of use"
alias CNAME null
alias2 CNAME alias
outside CNAME null.other.test.
lost CNAME nothing.other.test.
nowhere CNAME missing
mixed MX 0 .
mixed MX 10 missing
dead MX 10 missing
dead MX 20 nodata
doubt MX 10 missing
doubt MX 20 host.broken.test.
*.wild MX 0 .
""" + "".join(f"c{n} CNAME c{n + 1}\n" for n in range(30)),
    "other.test": "null MX 0 .\n",
    "broken.test": None,
}


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = cls.enterClassContext(Home())
        cls.message = cls.enterClassContext(tempfile.TemporaryFile())
        cls.message.write(b"Subject: x\n\nx\n")

    def remote(self, host, servers):
        self.message.seek(0)
        result = self.home.run(["qmail-remote", host, "s@test.example", f"r@{host}"], fds={0: self.message.fileno()},
                               env={"DNSCACHEIP": servers})
        self.assertEqual((result.code, result.err), (0, b""))
        return result.out

    def null(self, host, servers):
        """The answer came through."""
        self.assertEqual(self.remote(host, servers), NULL % host.encode())


class ARealServer(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.dns = cls.enterClassContext(Nsd(ZONES))

    def check(self, host, report):
        self.assertEqual(self.remote(host, self.dns.address), report)

    def test_a_null_mx_is_a_permanent_failure(self):
        self.null("null.zone.test", self.dns.address)
        self.null("NULL.Zone.TEST", self.dns.address)
        self.null("null7.zone.test", self.dns.address)
        self.null("x.wild.zone.test", self.dns.address)

    def test_a_name_that_does_not_exist_is_a_permanent_failure(self):
        self.check("missing.zone.test", NO_HOST % b"missing.zone.test")

    def test_a_name_without_exchanger_and_address_is_another(self):
        self.check("nodata.zone.test", NO_ADDRESS)

    def test_an_alias_is_followed(self):
        self.null("alias.zone.test", self.dns.address)
        self.null("alias2.zone.test", self.dns.address)

    def test_an_alias_into_another_zone_is_followed(self):
        self.null("outside.zone.test", self.dns.address)

    def test_an_alias_to_nothing_is_nothing(self):
        self.check("nowhere.zone.test", NO_HOST % b"nowhere.zone.test")
        self.check("lost.zone.test", NO_HOST % b"lost.zone.test")

    def test_a_chain_of_thirty_aliases_is_not_followed_to_its_end(self):
        self.check("c0.zone.test", LATER)
        self.check("c29.zone.test", NO_HOST % b"c29.zone.test")

    def test_a_zone_that_fails_is_a_temporary_failure(self):
        self.check("x.broken.test", LATER)

    def test_a_server_that_refuses_is_a_temporary_failure(self):
        self.check("x.unknown.test", LATER)

    def test_a_root_among_other_exchangers_counts_for_nothing(self):
        self.check("mixed.zone.test", NO_ADDRESS)

    def test_exchangers_without_addresses_are_a_permanent_failure(self):
        self.check("dead.zone.test", NO_ADDRESS)

    def test_one_exchanger_in_doubt_makes_it_temporary(self):
        self.check("doubt.zone.test", LATER)

    def test_a_name_that_is_none_is_not_asked_for(self):
        for host in ("", "a..b", ".zone.test", "x" * 64 + ".test", "a." * 130):
            self.check(host, NO_HOST % host.encode())
        self.check("sp ace\n.zone.test", NO_HOST % b"sp?ace?.zone.test")

    def test_one_final_dot_is_no_part_of_the_name(self):
        self.null("null.zone.test.", self.dns.address)

    def test_an_ipv6_server_is_asked(self):
        with Nsd({"zone.test": "null MX 0 .\n"}, host="::1") as dns:
            self.null("null.zone.test", dns.address)


class ScriptedServers(Case):
    """Answers no honest server would give."""

    def null_answer(self, query, **changes):
        return query.answer([(query.name, MX, mx(0, ""))], **changes)

    def test_a_question_goes_out_with_edns_recursion_and_a_request_for_the_ad_bit(self):
        with Responder(lambda q: [self.null_answer(q)]) as dns:
            for _ in range(8):
                self.null("a.test", dns.address)
        for query in dns.queries:
            self.assertEqual((query.name, query.kind, query.flags, query.edns), ("a.test", MX, 0x0120, 1232))
        self.assertGreater(len({q.identity for q in dns.queries}), 4)

    def test_a_silent_server_is_followed_by_the_next(self):
        with Responder(lambda q: None) as silent, Responder(lambda q: [self.null_answer(q)]) as good:
            self.null("a.test", f"{silent.address},{good.address}")
        self.assertEqual((len(silent.queries), len(good.queries)), (1, 1))

    def test_a_server_that_is_not_there_is_followed_by_the_next(self):
        with Responder(lambda q: [self.null_answer(q)]) as good:
            self.null("a.test", f"127.0.0.1:{free_port()} {good.address}")

    def test_servers_that_fail_are_asked_once_and_followed_by_the_next(self):
        for rcode in (SERVFAIL, REFUSED, 11):
            with Responder(lambda q: [q.answer(rcode=rcode)]) as bad, Responder(lambda q: [self.null_answer(q)]) as good:
                self.null("a.test", f"{bad.address} {good.address}")
                self.assertEqual(self.remote("a.test", bad.address), LATER)
            self.assertEqual(len(bad.queries), 2)

    def test_a_referral_is_no_answer(self):
        refer = [("test", 2, encode_name("ns.test"))]
        with Responder(lambda q: [q.answer(flags=0x8000, authority=refer)]) as dns:
            self.assertEqual(self.remote("a.test", dns.address), LATER)

    def test_a_server_that_knows_no_edns_is_asked_without(self):
        for rcode in (FORMERR, NOTIMP):
            for copy in (True, False):
                def answer(q):
                    return [q.answer(rcode=rcode, copy_question=copy) if q.edns else self.null_answer(q)]
                with Responder(answer) as dns:
                    self.null("a.test", dns.address)
                self.assertEqual([q.edns for q in dns.queries], [1232, None])

    def test_what_does_not_answer_the_question_is_passed_over(self):
        def answer(q):
            lie = [(q.name, MX, mx(10, "evil.test"))]
            return [
                q.answer(lie, identity=q.identity ^ 1),
                q.answer(lie, asked=encode_name("b.test") + struct.pack(">2H", MX, 1)),
                q.answer(lie, asked=encode_name(q.name) + struct.pack(">2H", A, 1)),
                q.answer(lie, asked=encode_name(q.name) + struct.pack(">2H", MX, 3)),
                q.answer(lie, copy_question=False),
                q.answer(lie, flags=0x0100),
                q.data,
                b"",
                b"short",
                self.null_answer(q),
            ]
        with Responder(answer) as dns:
            self.null("a.test", dns.address)
        self.assertEqual(len(dns.queries), 1)

    def test_records_of_other_names_are_passed_over(self):
        def answer(q):
            return [q.answer([("b.test", MX, mx(10, "evil.test")), (q.name, MX, mx(0, "")), (q.name, A, b"\1\2\3\4")])]
        with Responder(answer) as dns:
            self.null("a.test", dns.address)

    def test_a_cut_answer_is_asked_for_by_tcp(self):
        def answer(q):
            return [self.null_answer(q) if q.tcp else q.answer(flags=0x8380)]
        for host in ("127.0.0.1", "::1"):
            with Responder(answer, host=host) as dns:
                self.null("a.test", dns.address)
            self.assertEqual([q.tcp for q in dns.queries], [False, True])

    def test_a_server_that_cuts_by_tcp_too_or_hangs_up_is_of_no_use(self):
        for by_tcp in ([], "cut"):
            def answer(q):
                return by_tcp if q.tcp and by_tcp != "cut" else [q.answer(flags=0x8380)]
            with Responder(answer) as dns:
                self.assertEqual(self.remote("a.test", dns.address), LATER)

    def test_a_large_answer_by_tcp_is_read_whole(self):
        def answer(q):
            if not q.tcp:
                return [q.answer(flags=0x8380)]
            if q.kind == MX:
                return [q.answer([(q.name, MX, mx(n, f"mx{n}.test")) for n in range(1000)])]
            return [q.answer(rcode=NXDOMAIN)]
        with Responder(answer) as dns:
            self.assertEqual(self.remote("a.test", dns.address), NO_ADDRESS)
        asked = {q.name for q in dns.queries if q.kind == A}
        self.assertEqual(asked, {f"mx{n}.test" for n in range(50)}, "the best fifty are looked up")

    def test_an_answer_with_garbage_in_it_is_of_no_use(self):
        def answer(q):
            return [self.null_answer(q)[:-3]]
        with Responder(answer) as dns:
            self.assertEqual(self.remote("a.test", dns.address), LATER)

    def test_a_ring_of_aliases_is_left(self):
        with Responder(lambda q: [q.answer([(q.name, CNAME, encode_name("b.test" if q.name == "a.test" else "a.test"))])]) as dns:
            self.assertEqual(self.remote("a.test", dns.address), LATER)
        self.assertLessEqual(len(dns.queries), 20)

    def test_an_answer_that_denies_and_gives_is_of_no_use(self):
        with Responder(lambda q: [self.null_answer(q, rcode=NXDOMAIN)]) as dns:
            self.assertEqual(self.remote("a.test", dns.address), LATER)

    def test_mx_answered_and_address_refused_is_a_temporary_failure(self):
        def answer(q):
            return [q.answer([(q.name, MX, mx(10, "m.test"))]) if q.kind == MX else q.answer(rcode=REFUSED)]
        with Responder(answer) as dns:
            self.assertEqual(self.remote("a.test", dns.address), LATER)

    def test_no_address_of_one_family_and_a_failure_for_the_other_is_temporary(self):
        for bad in (A, AAAA):
            def answer(q):
                if q.kind == MX:
                    return [q.answer([(q.name, MX, mx(10, "m.test"))])]
                return [q.answer(rcode=SERVFAIL if q.kind == bad else 0, authority=[("test", SOA, bytes(22))])]
            with Responder(answer) as dns:
                self.assertEqual(self.remote("a.test", dns.address), LATER)

    def test_a_name_that_does_not_exist_has_no_ipv6_address_either(self):
        with Responder(lambda q: [q.answer(rcode=NXDOMAIN)]) as dns:
            self.assertEqual(self.remote("a.test", dns.address), NO_HOST % b"a.test")
        self.assertEqual([q.kind for q in dns.queries], [MX, A])


class OnTheUsualPort(Case):
    @namespace.alone
    def test_a_server_without_a_port_is_asked_on_port_53(self):
        with Responder(lambda q: [q.answer([(q.name, MX, mx(0, ""))])], port=53) as dns:
            self.null("a.test", "127.0.0.1")
            # Without a usable server in the list it is the system's turn: here nothing but loopback answers.
            self.assertIn(self.remote("b.test", "nonsense"), (NULL % b"b.test", LATER))
        self.assertEqual(dns.queries[0].name, "a.test")

    @namespace.alone
    def test_servers_that_cannot_be_reached_are_a_temporary_failure(self):
        self.assertEqual(self.remote("a.test", "192.0.2.1 [2001:db9::1]:53"), LATER)


if __name__ == "__main__":
    unittest.main()
