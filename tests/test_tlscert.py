"""tlscert from outside; what it makes is looked at by openssl(1) and used by tlsserver."""

import os
import ssl
import stat
import tempfile
import unittest

from tests import harness
from tests.certificates import Store, openssl
from tests.harness import run
from tests.test_tlsserver import Server


class Making(unittest.TestCase):
    def setUp(self):
        self.store = self.enterContext(Store())

    def make(self, *argv):
        return run(["tlscert", "-k", self.store.path, *argv])

    def test_a_certificate_for_its_names(self):
        self.assertEqual(self.make("-d", "10", "mx.example.org", "mail.example.org").code, 0)
        text = openssl("x509", "-in", self.store.file("default", "cert.pem"), "-noout", "-text").decode()
        self.assertIn("DNS:mx.example.org, DNS:mail.example.org", text)
        self.assertIn("CN = mx.example.org", text)
        for days, code in ((9, "will not expire"), (11, "will expire")):
            done = run(["openssl", "x509", "-in", self.store.file("default", "cert.pem"), "-noout", "-checkend", str(days * 86400)])
            self.assertIn(code, done.out.decode())

    def test_modes(self):
        self.make("localhost")
        modes = {name: stat.S_IMODE(os.stat(self.store.file(name)).st_mode)
                 for name in ("default", "default/cert.pem", "default/key.pem")}
        self.assertEqual(modes, {"default": 0o755, "default/cert.pem": 0o644, "default/key.pem": 0o600})
        self.assertEqual(os.listdir(self.store.path), ["default"])

    def test_it_is_used(self):
        self.make("localhost")
        self.make("-n", "mx.example.org", "mx.example.org")
        with Server(store=self.store) as server:
            for name, directory in (("localhost", "default"), ("mx.example.org", "mx.example.org")):
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.load_verify_locations(self.store.file(directory, "cert.pem"))
                with server.connect(context, name=name) as s:
                    s.sendall(b"x")
                    self.assertEqual(s.recv(1), b"x")

    def test_nothing_is_replaced(self):
        self.make("localhost")
        with open(self.store.file("default", "key.pem"), "rb") as f:
            before = f.read()
        got = self.make("localhost")
        self.assertEqual((got.code, got.err.decode()),
                         (111, f"tlscert: fatal: unable to make {self.store.file('default')}: file already exists\n"))
        with open(self.store.file("default", "key.pem"), "rb") as f:
            self.assertEqual(f.read(), before)
        self.assertEqual(os.listdir(self.store.path), ["default"])
        os.mkdir(self.store.file("empty"))
        self.assertEqual(self.make("-n", "empty", "localhost").code, 111)

    def test_keys_differ(self):
        self.make("localhost")
        self.make("-n", "other", "localhost")
        keys = [open(self.store.file(name, "key.pem"), "rb").read() for name in ("default", "other")]
        self.assertNotEqual(*keys)

    def test_in_a_home_it_takes_the_name_of_the_host(self):
        with harness.Home(me="mx.test.example") as home:
            self.assertEqual(home.run(["tlscert"]).code, 0)
            path = home.file("control/tls/default/cert.pem")
            self.assertIn(b"DNS:mx.test.example", openssl("x509", "-in", path, "-noout", "-text"))
            self.assertEqual(os.stat(home.file("control/tls/default/key.pem")).st_uid, harness.owner()[1])

    def test_wrong_use(self):
        for argv, text in [(["-d", "0", "x"], "-d takes a number"), (["-d", "99999", "x"], "-d takes a number"),
                           (["-n", "a/b", "x"], "-n takes the name"), (["-n", ".x", "x"], "-n takes the name"),
                           ([], "no name of a host")]:
            got = self.make(*argv)
            self.assertEqual(got.code, 100, argv)
            self.assertIn(text, got.err.decode())

    def test_a_directory_that_cannot_be_made(self):
        with tempfile.TemporaryDirectory() as base:
            with open(os.path.join(base, "file"), "w"):
                pass
            got = run(["tlscert", "-k", os.path.join(base, "file", "tls"), "x"])
            self.assertEqual(got.code, 111)
            self.assertRegex(got.err.decode(), r"^tlscert: fatal: unable to make \S+: not a directory\n$")


if __name__ == "__main__":
    unittest.main()
