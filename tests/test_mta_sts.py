"""mta-sts: policies from the web, kept in files, answered over a socket (RFC 8461)."""

import os
import time
import unittest

from tests import namespace
from tests.dnsserver import A, NXDOMAIN, SERVFAIL, Responder
from tests.faults import Small
from tests.harness import Home, owner, wait_for
from tests.tlsrig import Certificates, Web, page

load_tests = namespace.together

TXT = 16
POLICY = "version: STSv1\nmode: enforce\nmx: mx.good.test\nmx: *.wild.test\nmax_age: 86400\n"
ENFORCE = b"Emx.good.test\0*.wild.test\0"


class Zone:
    """Who publishes what; what is not named does not exist."""

    def __init__(self):
        self.texts, self.rcode, self.queries = {"_mta-sts.good.test": ["v=STSv1; id=1;"]}, 0, []

    def __call__(self, query):
        self.queries.append((query.name, query.kind))
        if query.kind == TXT and self.rcode:
            return [query.answer(rcode=self.rcode)]
        if query.kind == TXT and query.name in self.texts:
            return [query.answer([(query.name, TXT, bytes([len(text)]) + text.encode()) for text in self.texts[query.name]])]
        if query.kind == A and query.name.startswith("mta-sts."):
            return [query.answer([(query.name, A, bytes([127, 0, 0, 1]))])]
        return [query.answer(rcode=NXDOMAIN)]


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if namespace.here():
            cls.made = cls.enterClassContext(Certificates())
            cls.good = cls.made.make("mta-sts.good.test")
            cls.home = cls.enterClassContext(Home())

    def setUp(self):
        if not namespace.here():
            return
        self.zone = Zone()
        self.dns = self.enterContext(Responder(self.zone))
        for name in os.listdir(self.home.file("sts")):
            os.unlink(self.home.file("sts", name))

    def env(self):
        return {"DNSCACHEIP": self.dns.address, "SSL_CERT_FILE": self.made.ca}

    def web(self, answer=page(POLICY), pair=None):
        return Web(pair or self.good, answer)

    def asked(self, domain="good.test"):
        return self.home.run(["tlsclient", "mta-sts", "-q", domain], env=self.env())


class ByHand(Case):
    """mta-sts -q: what is on the web now."""

    @namespace.alone
    def test_a_policy_is_shown(self):
        with self.web() as web:
            done = self.asked("Good.Test")
        self.assertEqual((done.code, done.err), (0, b""))
        self.assertRegex(done.out, rb"^mta-sts 1\nfetched 1 \d+\nversion: STSv1\nmode: enforce\nmax_age: 86400\n"
                                   rb"mx: mx.good.test\nmx: \*.wild.test\nend\n$")
        request = web.asked[0].decode()
        self.assertTrue(request.startswith("GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.good.test\r\n"), request)

    @namespace.alone
    def test_no_record_is_no_policy(self):
        for texts in ([], ["v=spf1 -all"], ["v=STSv1; id=1;", "v=STSv1; id=2;"]):
            self.zone.texts["_mta-sts.good.test"] = texts or ["x"]
            done = self.asked()
            self.assertEqual((done.code, done.out, done.err), (1, b"", b""))
        self.assertEqual(self.asked("other.test").code, 1)

    @namespace.alone
    def test_what_is_no_policy_is_not_taken_for_one(self):
        for answer, why in (
                (page(POLICY, status="404 Not Found"), b"no policy there (not 200)"),
                (page(POLICY, status="301 Moved\r\nLocation: https://mta-sts.good.test/x"), b"redirected"),
                (page(POLICY, kind="text/html"), b"not of type text/plain"),
                (page("<html>"), b"what is there is no policy"),
                (page("version: STSv1\nmode: enforce\nmax_age: 1\n"), b"what is there is no policy"),
                (page(POLICY)[:-5], b"cut off"),
                (page("x" * 70000), b"too long"),
                (page("x" * 70000, length=False), b"too long"),
                (b"hello\r\n\r\n", b"no answer of HTTP"),
                (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20000, b"no answer of HTTP")):
            with self.subTest(why=why), self.web(answer):
                done = self.asked()
                self.assertEqual((done.code, done.out, done.err), (111, b"", b"mta-sts: fatal: " + why + b"\n"))

    @namespace.alone
    def test_a_certificate_must_be_good_and_for_the_name(self):
        for pair in (self.made.make("good.test"), self.made.expired("mta-sts.good.test"),
                     self.made.make("mta-sts.good.test", own=True)):
            with self.web(pair=pair) as web:
                done = self.asked()
            self.assertEqual((done.code, done.out, web.asked), (111, b"", []))
            self.assertIn(b"mta-sts: fatal: TLS: ", done.err)

    @namespace.alone
    def test_troubles_on_the_way_are_said(self):
        self.assertRegex(self.asked().err, rb"no connection to 127.0.0.1")
        self.zone.rcode = SERVFAIL
        self.assertRegex(self.asked().err, rb"the DNS does not say")
        self.zone.rcode = 0
        done = self.home.run(["mta-sts", "-q", "good.test"], env=self.env())
        self.assertEqual((done.code, done.err), (111, b"mta-sts: fatal: there is no TLS: it must be run by tlsclient\n"))

    @namespace.alone
    def test_wrong_use(self):
        for argv in ([], ["-q", "good.test", "x"], ["-q", "a/b.test"], ["-q", "192.0.2.1"], ["-x"]):
            self.assertEqual(self.home.run(["mta-sts", *argv], env=self.env()).code, 100, argv)


class Asking:
    """A process behind `tlsclient mta-sts` that asks what the test tells it to: python with the socket."""

    CODE = r"""
import os, socket, sys
door = socket.socket(fileno=int(os.environ["MTASTSFD"]))
for line in sys.stdin:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    socket.send_fds(door, [line.rstrip("\n").encode()], [theirs.fileno()])
    theirs.close()
    ours.settimeout(60)
    print(ours.recv(65536).hex() or "-", flush=True)
"""


class Serving(Case):
    """As qmail-remote asks."""

    def ask(self, *domains, tls=True):
        """The answers, in order, of one mta-sts."""
        argv = (["tlsclient"] if tls else []) + ["mta-sts", "python3", "-c", Asking.CODE]
        as_user = owner()[1:] if os.geteuid() == 0 else None
        done = self.home.run(argv, "".join(f"{d}\n" for d in domains).encode(), env=self.env(), as_user=as_user)
        self.assertEqual((done.code, done.err), (0, b""))
        return [bytes.fromhex(line) if line != "-" else None for line in done.out.decode().split()]

    def kept(self, domain="good.test"):
        with open(self.home.file("sts", domain)) as f:
            return f.read()

    def keep(self, text, domain="good.test"):
        self.home.write(f"sts/{domain}", text)

    def known(self, age=0, identity="1", max_age=86400, mode="enforce", failed=""):
        self.keep(f"mta-sts 1\n{failed}fetched {identity} {int(time.time()) - age}\nversion: STSv1\nmode: {mode}\n"
                  f"max_age: {max_age}\nmx: old.good.test\nend\n")

    OLD = b"Eold.good.test\0"

    @namespace.alone
    def test_a_policy_is_fetched_once_and_kept(self):
        with self.web() as web:
            self.assertEqual(self.ask("good.test", "GOOD.test", "good.test"), [ENFORCE] * 3)
            self.assertEqual(self.ask("good.test"), [ENFORCE])
        self.assertEqual(len(web.asked), 1)
        self.assertRegex(self.kept(), r"^mta-sts 1\nfetched 1 \d+\n")
        self.assertEqual(self.ask("good.test"), [ENFORCE], "the web server is gone")

    @namespace.alone
    def test_domains_without_a_policy_have_none(self):
        self.assertEqual(self.ask("other.test", "", "a/../b.test", "[192.0.2.1]", "x" * 250), [b"N"] * 5)
        self.assertEqual(os.listdir(self.home.file("sts")), [])

    @namespace.alone
    def test_a_policy_that_cannot_be_had_is_not_one_that_is_not_there(self):
        self.assertEqual(self.ask("good.test"), [b"U"], "nobody listens at the web server")
        self.zone.rcode = SERVFAIL
        self.assertEqual(self.ask("other.test"), [b"U"], "the DNS does not say")
        self.zone.rcode = 0
        self.zone.texts.clear()
        self.assertEqual(self.ask("good.test"), [b"N"], "the record is gone")

    @namespace.alone
    def test_testing_and_none_are_told_apart(self):
        for mode, answer in (("testing", b"Tmx.good.test\0*.wild.test\0"), ("none", b"N")):
            os.path.exists(self.home.file("sts/good.test")) and os.unlink(self.home.file("sts/good.test"))
            with self.web(page(POLICY.replace("enforce", mode))):
                self.assertEqual(self.ask("good.test"), [answer])

    @namespace.alone
    def test_a_new_id_brings_the_new_policy(self):
        self.known(identity="0")
        with self.web():
            self.assertEqual(self.ask("good.test"), [ENFORCE])

    @namespace.alone
    def test_a_policy_holds_while_nobody_can_be_asked(self):
        self.known(identity="0", age=3600)
        self.assertEqual(self.ask("good.test"), [self.OLD], "the web server is gone")
        self.assertRegex(self.kept(), r"(?m)^failed 1 \d+$")
        self.zone.texts.clear()
        self.assertEqual(self.ask("good.test"), [self.OLD], "its record is gone")
        self.zone.rcode = SERVFAIL
        self.assertEqual(self.ask("good.test"), [self.OLD], "the DNS is gone")
        self.assertEqual(self.ask("good.test", tls=False), [self.OLD], "there is no TLS")

    @namespace.alone
    def test_a_policy_that_has_run_out_holds_no_longer(self):
        self.known(age=86401)
        self.assertEqual(self.ask("good.test"), [b"U"])
        with self.web():
            self.known(age=86401)
            self.assertEqual(self.ask("good.test"), [ENFORCE])

    @namespace.alone
    def test_a_policy_past_half_its_time_is_fetched_again(self):
        self.known(age=200000, max_age=300000)
        with self.web():
            self.assertEqual(self.ask("good.test"), [ENFORCE])

    @namespace.alone
    def test_what_could_not_be_fetched_is_not_asked_for_at_once_again(self):
        with self.web(page("no policy")) as web:
            self.assertEqual(self.ask("good.test", "good.test"), [b"U", b"U"])
            self.assertEqual(len(web.asked), 1)
            self.known(failed=f"failed 2 {int(time.time()) - 301}\n", identity="1")
            self.zone.texts["_mta-sts.good.test"] = ["v=STSv1; id=2;"]
            self.assertEqual(self.ask("good.test"), [self.OLD])
            self.assertEqual(len(web.asked), 2)

    @namespace.alone
    def test_a_damaged_file_is_fetched_again(self):
        for text in ("", "\0" * 100, "mta-sts 1\nfetched 1 "):
            self.keep(text)
            with self.web():
                self.assertEqual(self.ask("good.test"), [ENFORCE])

    @namespace.alone
    def test_a_file_that_cannot_be_read_holds_the_mail(self):
        os.mkdir(self.home.file("sts/good.test"))
        self.addCleanup(os.rmdir, self.home.file("sts/good.test"))
        self.assertEqual(self.ask("good.test", "other.test"), [None, b"N"])

    @namespace.alone
    def test_without_the_directory_nothing_is_kept_and_all_is_asked_for(self):
        os.rename(self.home.file("sts"), self.home.file("away"))
        self.addCleanup(os.rename, self.home.file("away"), self.home.file("sts"))
        with self.web() as web:
            self.assertEqual(self.ask("good.test", "good.test"), [ENFORCE, ENFORCE])
        self.assertEqual(len(web.asked), 2)

    @namespace.alone
    def test_a_full_disk_keeps_what_is_kept_and_leaves_nothing_else(self):
        self.known(identity="0")
        disk = Small(self.home.file("sts"))
        self.addCleanup(disk.end)
        before = self.kept()
        for fill in (disk.fill, disk.take_inodes):
            fill()
            full = os.listdir(self.home.file("sts"))
            with self.web():
                self.assertEqual(self.ask("good.test"), [ENFORCE], "what is new holds all the same")
            self.assertEqual(self.ask("good.test"), [self.OLD], "the web server is gone")
            self.assertEqual((sorted(os.listdir(self.home.file("sts"))), self.kept()), (sorted(full), before))
            disk.free()
        with self.web():
            self.assertEqual(self.ask("good.test"), [ENFORCE])
        self.assertRegex(self.kept(), r"^mta-sts 1\nfetched 1 \d+\n")

    @namespace.alone
    def test_it_ends_with_the_program_and_leaves_nothing(self):
        with self.web():
            self.ask("good.test")
        self.assertEqual(os.listdir(self.home.file("sts")), ["good.test"])
        wait_for(lambda: not self.running(), "mta-sts and its children to end")

    def running(self):
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as f, open(f"/proc/{pid}/cmdline", "rb") as c:
                    if f"QMAIL_HOME={self.home.path}\0".encode() in f.read() and b"mta-sts" in c.read():
                        found.append(pid)
            except OSError:
                pass
        return found

    @namespace.alone
    def test_a_program_that_is_not_there_is_said(self):
        done = self.home.run(["mta-sts", "nothing-of-that-name"], env=self.env())
        self.assertEqual(done.code, 111)
        self.assertRegex(done.err, rb"^mta-sts: fatal: unable to run .*nothing-of-that-name: file does not exist\n$")


if __name__ == "__main__":
    unittest.main()
