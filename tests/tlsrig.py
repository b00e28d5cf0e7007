"""TLS for tests of what goes out: certificates, and a web server.

    with Certificates() as made:
        good = made.make("mx.test")          # (certificate with chain, key)
        server_context(good)                 # an ssl.SSLContext
"""

import contextlib
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading

from tests.harness import TIMEOUT


def openssl(*argv, data=None):
    done = subprocess.run(["openssl", *argv], input=data, capture_output=True)
    if done.returncode:
        raise AssertionError(f"openssl {argv[0]}: {done.stderr.decode()}")
    return done.stdout


class Certificates:
    """An authority of the test's own, and what it issues."""

    def __init__(self):
        self.base = tempfile.mkdtemp(prefix="qmail-cert-")
        os.chmod(self.base, 0o755)
        self.number = 0
        self.authority = self.issue("authority", ["-addext", "basicConstraints=critical,CA:TRUE", "-days", "30"])
        self.ca = self.authority[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.base, ignore_errors=True)

    def file(self, name):
        return os.path.join(self.base, name)

    def issue(self, name, options):
        self.number += 1
        cert, key = self.file(f"{self.number}.pem"), self.file(f"{self.number}.key")
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-batch",
                "-subj", f"/CN={name}", "-keyout", key, "-out", cert, *options)
        os.chmod(key, 0o644)  # a server of the test may be another user; there is nothing to protect
        return cert, key

    def make(self, *names, own=False, email=None):
        """A certificate for these names (and an address), of the authority or (own) self-signed; its chain behind it."""
        alternatives = [f"DNS:{name}" for name in names] + ([f"email:{email}"] if email else [])
        options = ["-addext", "subjectAltName=" + ",".join(alternatives), "-days", "10",
                   "-addext", "basicConstraints=critical,CA:FALSE"]
        if own:
            return self.issue(names[0], options)
        cert, key = self.issue(names[0], [*options, "-CA", self.authority[0], "-CAkey", self.authority[1]])
        self.add_chain(cert)
        return cert, key

    def expired(self, name):
        """One that has run out."""
        request, cert = self.file("expired.csr"), self.file("expired.pem")
        key = self.file("expired.key")
        config = self.file("ca.conf")
        with open(config, "w") as f:
            f.write(f"[ca]\ndefault_ca=d\n[d]\nnew_certs_dir={self.base}\ndatabase={self.base}/index\nserial={self.base}/serial\n"
                    f"default_md=sha256\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n[e]\nsubjectAltName=DNS:{name}\n"
                    "basicConstraints=critical,CA:FALSE\n")
        open(self.file("index"), "w").close()
        with open(self.file("serial"), "w") as f:
            f.write("7001\n")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-batch", "-subj", f"/CN={name}",
                "-keyout", key, "-out", request)
        openssl("ca", "-batch", "-config", config, "-cert", self.authority[0], "-keyfile", self.authority[1], "-in", request,
                "-out", cert, "-startdate", "20200101000000Z", "-enddate", "20210101000000Z", "-notext")
        os.chmod(key, 0o644)
        self.add_chain(cert)
        return cert, key

    def add_chain(self, cert):
        with open(cert, "a") as f, open(self.authority[0]) as authority:
            f.write(authority.read())


def server_context(pair):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


def digest(cert, selector=1):
    """The SHA-256 of a certificate (0) or of its key (1), as in a TLSA record."""
    der = openssl("x509", "-in", cert, "-outform", "DER")
    if selector == 1:
        public = openssl("x509", "-in", cert, "-noout", "-pubkey")
        der = openssl("pkey", "-pubin", "-outform", "DER", data=public)
    return hashlib.sha256(der).hexdigest()


class Web:
    """A web server over TLS on loopback: says what `answer` is to everybody, and keeps what was asked."""

    def __init__(self, pair, answer, host="127.0.0.1", port=443):
        self.context, self.answer, self.asked, self.stopping = server_context(pair), answer, [], False
        self.socket = socket.create_server((host, port))
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self):
        while True:
            connection, _ = self.socket.accept()
            with connection:
                if self.stopping:
                    return
                connection.settimeout(TIMEOUT)
                with contextlib.suppress(OSError), self.context.wrap_socket(connection, server_side=True) as tls:
                    request = b""
                    while not request.endswith(b"\r\n\r\n") and (data := tls.recv(4096)):
                        request += data
                    self.asked.append(request)
                    tls.sendall(self.answer)
                    tls.unwrap()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping = True
        with contextlib.suppress(OSError):
            socket.create_connection(self.socket.getsockname(), TIMEOUT).close()
        self.thread.join(TIMEOUT)
        self.socket.close()


def page(body, status="200 OK", kind="text/plain", length=True):
    body = body.encode()
    fields = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n" + (f"Content-Length: {len(body)}\r\n" if length else "")
    return fields.encode() + b"\r\n" + body
