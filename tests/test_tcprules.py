"""tcprules and tcprulescheck from outside."""

import os
import tempfile
import unittest

from tests import tinycdb
from tests.harness import run


class Case(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="qmail-rules-")
        self.addCleanup(directory.cleanup)
        self.cdb, self.tmp = os.path.join(directory.name, "rules.cdb"), os.path.join(directory.name, "rules.tmp")

    def compile(self, text):
        return run(["tcprules", self.cdb, self.tmp], text if isinstance(text, bytes) else text.encode())

    def file(self):
        with open(self.cdb, "rb") as f:
            return f.read()


class Tcprules(Case):
    def test_the_file_is_the_one_every_other_implementation_makes(self):
        text = ('# comment\n\n1.2.3.4:allow,RELAYCLIENT="",X=/a b/ \t\n10.:deny\nme@1.2.3.4:allow\n=.example.org:allow\n'
                "=:deny\n1.2.3.37-39:deny\n10.254-300.:allow\n1.2.3.4:deny\n:allow")
        got = self.compile(text)
        self.assertEqual((got.code, got.out, got.err), (0, b"", b""))
        records = [
            (b"1.2.3.4", b"+RELAYCLIENT=\0+X=a b\0"), (b"10.", b"D\0"), (b"me@1.2.3.4", b""), (b"=.example.org", b""),
            (b"=", b"D\0"), (b"1.2.3.37", b"D\0"), (b"1.2.3.38", b"D\0"), (b"1.2.3.39", b"D\0"), (b"10.254.", b""),
            (b"10.255.", b""), (b"1.2.3.4", b"D\0"), (b"", b"")]
        self.assertEqual(self.file(), tinycdb.make(records))
        self.assertFalse(os.path.exists(self.tmp))

    def test_a_thousand_rules_are_all_there(self):
        rules = [(f"10.{i // 256}.{i % 256}.1".encode(), b"+N=%d\0" % i) for i in range(1000)]
        self.assertEqual(self.compile("".join(f'10.{i // 256}.{i % 256}.1:allow,N="{i}"\n' for i in range(1000))).code, 0)
        self.assertEqual(self.file(), tinycdb.make(rules))
        self.assertEqual(tinycdb.records(self.file()), rules)

    def test_no_rules_make_an_empty_file(self):
        self.assertEqual(self.compile("").code, 0)
        self.assertEqual(self.file(), tinycdb.make([]))

    def test_ipv6_addresses_have_one_canonical_form(self):
        self.compile("[2001:DB8:0:0::1]:deny\n[2001:db8::/32]:allow\n[2001:db8::/30]:deny\nme@[::1]:allow\n")
        keys = [key for key, _ in tinycdb.records(self.file())]
        self.assertEqual(keys, [b"[2001:db8::1]", b"[2001:db8::/32]", b"[2001:db8::/32]", b"[2001:db9::/32]",
                                b"[2001:dba::/32]", b"[2001:dbb::/32]", b"me@[::1]"])

    def test_a_line_that_cannot_be_parsed_changes_nothing(self):
        self.compile("1.2.3.4:deny\n")
        before = self.file()
        for line in ("nonsense", "1.2.3.4:maybe", '1.2.3.4:allow,A="x', "[2001:db8::1/32]:deny", "1.2.x-3.4:deny"):
            got = self.compile(f":allow\n{line}  \n")
            self.assertEqual((got.code, got.err), (100, f"tcprules: fatal: unable to parse this line: {line}\n".encode()))
            self.assertEqual(self.file(), before)

    def test_trouble_is_111_and_names_the_file(self):
        got = run(["tcprules", self.cdb, "/nonexistent/tmp"], b":deny\n")
        self.assertEqual((got.code, got.err), (111, b"tcprules: fatal: unable to create /nonexistent/tmp: file does not exist\n"))
        os.mkdir(self.cdb)
        got = self.compile(":deny\n")
        self.assertEqual(got.code, 111)
        self.assertIn(f"unable to move {self.tmp} to {self.cdb}: ".encode(), got.err)

    def test_wrong_use_is_100(self):
        for argv in (["tcprules"], ["tcprules", self.cdb], ["tcprulescheck"], ["tcprulescheck", self.cdb, "192.0.2.7"]):
            got = run(argv)
            self.assertEqual(got.code, 100)
            self.assertIn(b"usage: " + argv[0].encode(), got.err)

    def test_a_full_disk_leaves_the_old_file(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("this system has no /dev/full")
        self.compile(":deny\n")
        before = self.file()
        os.symlink("/dev/full", self.tmp)
        got = self.compile(":allow\n")
        self.assertEqual((got.code, got.err), (111, f"tcprules: fatal: unable to write {self.tmp}: out of disk space\n".encode()))
        self.assertEqual(self.file(), before)


class Tcprulescheck(Case):
    def check(self, ip=None, host=None, info=None):
        env = {"TCPREMOTEIP": ip, "TCPREMOTEHOST": host, "TCPREMOTEINFO": info}
        got = run(["tcprulescheck", self.cdb], env={k: v for k, v in env.items() if v is not None})
        self.assertEqual((got.code, got.err), (0, b""), got)
        return got.out.decode()

    def test_the_rule_is_shown_with_what_it_sets(self):
        self.compile('1.2.3.4:allow,A="x",B=/y=z/\n')
        self.assertEqual(self.check("1.2.3.4"), "rule 1.2.3.4:\nset environment variable A=x\n"
                         "set environment variable B=y=z\nallow connection\n")

    def test_printing_stops_at_the_deny(self):
        self.compile('1.2.3.4:deny,A="x"\n')
        self.assertEqual(self.check("1.2.3.4"), "rule 1.2.3.4:\ndeny connection\n")

    def test_what_no_rule_speaks_of_is_allowed(self):
        self.compile("1.2.3.4:deny\n")
        self.assertEqual(self.check("1.2.3.5"), "default:\nallow connection\n")
        self.assertEqual(self.check(), "default:\nallow connection\n")

    def test_without_variables_the_address_is_0_0_0_0(self):
        self.compile("0.0.0.0:deny\n:allow\n")
        self.assertEqual(self.check(), "rule 0.0.0.0:\ndeny connection\n")

    def test_the_places_are_looked_at_in_their_order(self):
        order = ["me@1.2.3.4", "me@=a.b.c", "1.2.3.4", "=a.b.c", "1.2.3.", "1.2.", "1.", "=.b.c", "=.c", "=", ""]
        for first in range(len(order)):
            self.compile("".join(f"{place}:allow\n" for place in reversed(order[first:])))
            self.assertEqual(self.check("1.2.3.4", "a.b.c", "me"), f"rule {order[first]}:\nallow connection\n")

    def test_ipv6_is_looked_up_by_address_and_by_prefix(self):
        self.compile('[2001:db8::1]:allow,A="one"\n[2001:db8::/29]:deny\n:allow\n')
        self.assertIn("A=one", self.check("2001:DB8:0::1"))
        self.assertEqual(self.check("2001:dbf::1"), "rule [2001:dbf::/32]:\ndeny connection\n")
        self.assertEqual(self.check("2001:dc0::1"), "rule :\nallow connection\n")

    def test_a_file_of_another_maker_is_read(self):
        with open(self.cdb, "wb") as f:
            f.write(tinycdb.make([(b"1.2.3.4", b"+A=x\0D\0+B=y\0")]))
        self.assertEqual(self.check("1.2.3.4"), "rule 1.2.3.4:\nset environment variable A=x\ndeny connection\n")

    def test_a_missing_or_damaged_file_is_111(self):
        self.compile(":deny\n")
        with open(self.cdb, "r+b") as f:
            f.truncate(2049)
        for name, why in (("/nonexistent.cdb", "file does not exist"), (self.cdb, "damaged database")):
            got = run(["tcprulescheck", name])
            self.assertEqual((got.code, got.out, got.err),
                             (111, b"", f"tcprulescheck: fatal: unable to read {name}: {why}\n".encode()))


if __name__ == "__main__":
    unittest.main()
