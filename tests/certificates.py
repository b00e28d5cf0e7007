"""Certificates for tests, made by openssl(1): an authority, and what it signs."""

import os
import shutil
import subprocess
import tempfile
import unittest

from tests import harness


def openssl(*argv, stdin=b""):
    done = subprocess.run(["openssl", *argv], input=stdin, capture_output=True, timeout=harness.TIMEOUT)
    if done.returncode:
        raise AssertionError(f"openssl {argv}: {done.stderr.decode()}")
    return done.stdout


def write(path, content, mode):
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as f:
        f.write(content)
    os.chmod(path, mode)


class Authority:
    """A directory with an authority in it: `file` is its certificate. Removed at the end."""

    def __init__(self, name="Test Authority"):
        self.base = tempfile.mkdtemp(prefix="qmail-ca-")
        os.chmod(self.base, 0o755)
        self.file, self.key = self.path("ca.pem"), self.path("ca.key")
        self.made = 0
        self._key(self.key, "P-256")
        openssl("req", "-x509", "-new", "-key", self.key, "-out", self.file, "-days", "30", "-subj", f"/CN={name}",
                "-addext", "basicConstraints=critical,CA:TRUE")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.base, ignore_errors=True)

    def path(self, *names):
        return os.path.join(self.base, *names)

    @staticmethod
    def _key(path, kind):
        rsa = ["-algorithm", "RSA", "-pkeyopt"]
        how = {"RSA": [*rsa, "rsa_keygen_bits:2048"], "RSA-1024": [*rsa, "rsa_keygen_bits:1024"], "Ed25519": ["-algorithm", "ED25519"]}
        openssl("genpkey", *how.get(kind, ["-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{kind}"]), "-out", path)
        os.chmod(path, 0o600)

    def request(self, subject, kind="P-256"):
        """(key file, request file) of a new key."""
        self.made += 1
        key, request = self.path(f"{self.made}.key"), self.path(f"{self.made}.csr")
        self._key(key, kind)
        openssl("req", "-new", "-key", key, "-out", request, "-subj", subject)
        return key, request

    def issue(self, name, kind="P-256", subject=None, alternatives=None, days="30", ca=False, to=None):
        """(certificate, key) in PEM for a host; days below 0 is one that has expired. `to`: an Authority whose own
        certificate this becomes."""
        key, request = (to.key, self.path("to.csr")) if to else self.request(subject or f"/CN={name}", kind)
        if to:
            openssl("req", "-new", "-key", key, "-out", request, "-subj", subject or f"/CN={name}")
        extensions = self.path("extensions")
        alternatives = alternatives or f"DNS:{name}"
        lines = ["basicConstraints=critical,CA:TRUE"] if ca else [f"subjectAltName={alternatives}"]
        write(extensions, "\n".join(lines).encode(), 0o600)
        self.made += 1
        out = self.path(f"{self.made}.pem")
        when = ["-days", days]
        if days.startswith("-"):
            # x509 -req knows no past: ca(1) does.
            return self._expired(request, extensions, out), open(key, "rb").read()
        openssl("x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self.key, "-set_serial", str(1000 + self.made),
                *when, "-extfile", extensions, "-out", out)
        with open(out, "rb") as f, open(key, "rb") as g:
            return f.read(), g.read()

    def _expired(self, request, extensions, out):
        index, conf = self.path("index"), self.path("ca.conf")
        write(index, b"", 0o600)
        write(self.path("serial"), b"1000\n", 0o600)
        write(conf, f"""[ca]
default_ca=it
[it]
database={index}
serial={self.path('serial')}
new_certs_dir={self.base}
policy=any
default_md=sha256
[any]
commonName=supplied
""".encode(), 0o600)
        openssl("ca", "-batch", "-notext", "-config", conf, "-in", request, "-cert", self.file, "-keyfile", self.key,
                "-startdate", "20200101000000Z", "-enddate", "20200201000000Z", "-extfile", extensions, "-out", out)
        with open(out, "rb") as f:
            return f.read()


def self_signed(name, subject=None, alternatives=None):
    """(certificate, key) in PEM, signed by itself."""
    with tempfile.TemporaryDirectory(prefix="qmail-self-") as base:
        key, out = os.path.join(base, "key"), os.path.join(base, "cert")
        Authority._key(key, "P-256")
        openssl("req", "-x509", "-new", "-key", key, "-out", out, "-days", "30", "-subj", subject or f"/CN={name}",
                "-addext", f"subjectAltName={alternatives or f'DNS:{name}'}")
        with open(out, "rb") as f, open(key, "rb") as g:
            return f.read(), g.read()


class Certified(unittest.TestCase):
    """A class with an authority `ca` and a `store`, whose default is its certificate for localhost."""

    @classmethod
    def setUpClass(cls):
        cls.ca = cls.enterClassContext(Authority())
        cls.store = cls.enterClassContext(Store())
        cls.store.put("default", cls.ca.issue("localhost"))


def files_of(pair, directory, name="it", mode=0o600):
    """The names of two files in a directory with this (certificate, key)."""
    names = [os.path.join(directory, name + end) for end in (".pem", ".key")]
    write(names[0], pair[0], 0o644)
    write(names[1], pair[1], mode)
    return tuple(names)


def pair_of(files):
    """(certificate, key) in PEM, of the names of two files."""
    pair = []
    for name in files:
        with open(name, "rb") as f:
            pair.append(f.read())
    return tuple(pair)


class Store:
    """A directory as tlsserver wants it: one directory a name."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="qmail-tls-")
        os.chmod(self.path, 0o755)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)

    def file(self, *names):
        return os.path.join(self.path, *names)

    def put(self, name, pair, mode=0o600):
        """Both files at once, by renaming the directory: as a careful hook does."""
        certificate, key = pair
        fresh = self.file(f".{name}.new")
        os.mkdir(fresh, 0o755)
        write(os.path.join(fresh, "cert.pem"), certificate, 0o644)
        write(os.path.join(fresh, "key.pem"), key, mode)
        if os.path.exists(self.file(name)):
            os.rename(self.file(name), self.file(f".{name}.old"))
        os.rename(fresh, self.file(name))
        shutil.rmtree(self.file(f".{name}.old"), ignore_errors=True)
        return self
