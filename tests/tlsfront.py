"""A TLS process in front of a program, made of Python's own: from the first byte, or by UCSPI-TLS when the program asks.

For tests of programs behind it; tlsserver's own tests are elsewhere."""

import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading

from tests import harness
from tests.certificates import files_of, self_signed


class Front:
    """Listens on a port of 127.0.0.1 and starts the program for each connection. As a context manager it ends with
    everything it started."""

    def __init__(self, argv, env, first=False, facts=None, ca=None):
        self.argv, self.env, self.first, self.facts = argv, env, first, facts or {}
        self.directory = tempfile.mkdtemp(prefix="qmail-tls-")
        self.cert, self.key = files_of(self_signed("localhost"), self.directory)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.cert, self.key)
        if ca:
            self.context.load_verify_locations(ca)
            self.context.verify_mode = ssl.CERT_OPTIONAL
        self.log = open(os.path.join(self.directory, "log"), "wb")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.children, self.sockets, self.codes = [], [], []
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def client_context(self):
        context = ssl.create_default_context(cafile=self.cert)
        context.check_hostname = False
        return context

    def errors(self):
        with open(self.log.name, "rb") as f:
            return f.read().decode("latin-1")

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def about(self, tls):
        with open(self.cert) as f:
            der = ssl.PEM_cert_to_DER_cert(f.read())
        facts = {"TLS_PROTOCOL": tls.version(), "TLS_CIPHER": tls.cipher()[0],
                 "TLS_SERVER_END_POINT": hashlib.sha256(der).hexdigest(), "SSL_PROTOCOL": tls.version(), **self.facts}
        subject = (tls.getpeercert() or {}).get("subjectAltName", ())
        emails = [value for kind, value in subject if kind == "email"]
        if emails:
            facts.update(TLS_CLIENT_VERIFIED="1", TLS_CLIENT_EMAIL=emails[0])
        return facts

    def serve(self, connection):
        connection.settimeout(harness.TIMEOUT)
        try:
            if self.first:
                tls = self.context.wrap_socket(connection, server_side=True)
                ours, theirs = socket.socketpair()
                self.start({**self.env, **self.about(tls)}, theirs, theirs, [])
                theirs.close()
            else:
                control, its_control = socket.socketpair()
                ours, theirs = socket.socketpair()
                env = {**self.env, "SSLCTLFD": str(its_control.fileno()), "SSLREADFD": str(theirs.fileno()),
                       "SSLWRITEFD": str(theirs.fileno())}
                self.start(env, connection, connection, [its_control.fileno(), theirs.fileno()])
                its_control.close()
                theirs.close()
                control.settimeout(harness.TIMEOUT)
                if control.recv(1) != b"Y":
                    return
                tls = self.context.wrap_socket(connection, server_side=True)
                said = "".join(f"{name}={value}\0" for name, value in self.about(tls).items())
                control.sendall(said.encode() + b"\0")
            self.relay(tls, ours)
        except OSError:
            pass
        finally:
            connection.close()

    def start(self, env, stdin, stdout, descriptors):
        with self.lock:
            self.children.append(subprocess.Popen(
                [harness.program(self.argv[0])] + self.argv[1:], env=env, stdin=stdin, stdout=stdout, stderr=self.log,
                pass_fds=descriptors))

    def relay(self, tls, ours):
        def inward():
            try:
                while data := tls.recv(65536):
                    ours.sendall(data)
            except OSError:
                pass
            try:
                ours.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        thread = threading.Thread(target=inward, daemon=True)
        thread.start()
        try:
            while data := ours.recv(65536):
                tls.sendall(data)
            tls.unwrap()
        except OSError:
            pass
        finally:
            ours.close()
            tls.close()
            thread.join(harness.TIMEOUT)

    def close(self):
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        with self.lock:
            for child in self.children:
                if child.poll() is None:
                    child.kill()
                child.wait()
        self.log.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
