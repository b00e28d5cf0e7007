"""What the tests of logins share: qmail-authd in an own home, and a front that speaks to it by hand."""

import os
import socket
import struct
import unittest

from tests import harness
from tests.harness import Daemon, wait_for


def packet(fields, words, environ=()):
    """A request as qmail-authd(8) has it."""
    def text(value):
        value = value if isinstance(value, bytes) else value.encode()
        return struct.pack(">H", len(value)) + value
    out = b"1" + struct.pack(">I", len(fields)) + fields + bytes([len(words)]) + b"".join(map(text, words))
    environ = dict(environ)
    return out + bytes([len(environ)]) + b"".join(bytes([len(name)]) + name.encode() + text(value)
                                                  for name, value in environ.items())


def fields(name, password):
    return f"{name}\0{password}\0<1.2@h>\0".encode()


class Front:
    """One connection to run/auth."""

    def __init__(self, home, data=None, descriptors=None):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(harness.TIMEOUT)
        try:
            self.socket.connect(home + "/run/auth")
        except OSError:
            self.socket.close()
            raise
        if data is not None:
            with open(os.devnull, "r+b") as null:
                try:
                    socket.send_fds(self.socket, [data], [null.fileno()] * 2 if descriptors is None else descriptors)
                except BrokenPipeError:
                    pass  # refused before it was asked

    def answer(self):
        """The exit code; None when there is none."""
        try:
            got = self.socket.recv(2)
        except ConnectionResetError:
            return None
        return got[0] if len(got) == 1 else None

    def is_waiting(self):
        self.socket.setblocking(False)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
            return False
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        finally:
            self.socket.settimeout(harness.TIMEOUT)

    def close(self):
        self.socket.close()


def server(home):
    """The pid of who listens in a home; None when nobody does."""
    try:
        front = Front(home)
    except OSError:
        return None
    try:
        return struct.unpack("iII", front.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    finally:
        front.close()


class InAHome(unittest.TestCase):
    """An own home with a running qmail-authd, and services made of scripts in its bin."""

    def setUp(self):
        self.home = harness.Home()
        self.addCleanup(self.home.__exit__)
        self.authd = None
        self.start()

    def start(self):
        self.authd = Daemon(["qmail-authd"], env=self.home.env, cwd="/")
        self.addCleanup(self.authd.stop)
        wait_for(self.listening, "qmail-authd to listen")

    def listening(self):
        if self.authd.process.poll() is not None:
            raise AssertionError(self.authd.log())
        return server(self.home.path) == self.authd.pid

    def script(self, name, text):
        """A checker in the home's bin, and a service of its name."""
        self.home.write(f"bin/{name}", "#!/bin/sh\n" + text, 0o755)
        with open(self.home.file("control/authprograms")) as f:
            self.home.control("authprograms", f"{name}:{name} program\n" + f.read())

    def front(self, data=None, descriptors=None):
        front = Front(self.home.path, data, descriptors)
        self.addCleanup(front.close)
        return front

    def ask(self, words, name="joe", password="secret", ip=None, descriptors=None, **environ):
        """Asks for a login; returns the Front."""
        words = words.split(" ") if isinstance(words, str) else words
        if ip:
            environ["TCPREMOTEIP"] = ip
        return self.front(packet(fields(name, password), words, environ), descriptors)

    def logins(self):
        """What the log says of logins: [(service, account, address, result)]."""
        rows = [row.removeprefix("qmail-authd: login: ") for row in self.authd.log().splitlines()
                if row.startswith("qmail-authd: login: ")]
        return [tuple(row.split(" ", 3)) for row in rows]
