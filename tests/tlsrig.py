"""TLS for tests of what goes out: certificates, and a web server.

    with Certificates() as made:
        good = made.make("mx.test")          # (certificate with chain, key)
        server_context(good)                 # an ssl.SSLContext
"""

import contextlib
import hashlib
import socket
import ssl
import threading

from tests.certificates import Authority, files_of, openssl, self_signed
from tests.harness import TIMEOUT


class Certificates:
    """An authority of the test's own (`ca`: the file of its certificate), and files with what it issues."""

    def __init__(self):
        self.authority = Authority("authority")
        self.ca, self.number = self.authority.file, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.authority.__exit__()

    def make(self, *names, own=False, email=None):
        """A certificate for these names (and an address), of the authority or (own) self-signed; its chain behind it."""
        alternatives = ",".join([f"DNS:{name}" for name in names] + ([f"email:{email}"] if email else []))
        if own:
            return self.files(self_signed(names[0], alternatives=alternatives))
        return self.files(self.authority.issue(names[0], alternatives=alternatives), True)

    def expired(self, name):
        """One that has run out."""
        return self.files(self.authority.issue(name, days="-1"), True)

    def files(self, pair, chain=False):
        self.number += 1
        if chain:
            with open(self.ca, "rb") as f:
                pair = pair[0] + f.read(), pair[1]
        # A server of the test may be another user; there is nothing to protect.
        return files_of(pair, self.authority.base, f"made{self.number}", 0o644)


def server_context(pair):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


def digest(cert, selector=1):
    """The SHA-256 of a certificate (0) or of its key (1), as in a TLSA record."""
    der = openssl("x509", "-in", cert, "-outform", "DER")
    if selector == 1:
        public = openssl("x509", "-in", cert, "-noout", "-pubkey")
        der = openssl("pkey", "-pubin", "-outform", "DER", stdin=public)
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
