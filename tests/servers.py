"""A server on loopback: a thread for each connection, all of them at their end when its block is left."""

import contextlib
import socket
import threading

from tests.harness import TIMEOUT


class Threaded:
    """`serve(connection, number)` has each connection that comes; they count from 0. `heard` has a list for each."""

    def __init__(self, host="127.0.0.1", port=0):
        self.heard, self.connections, self.threads = [], [], []
        self.socket = socket.create_server((host, port))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.accept, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(TIMEOUT)
        self.socket.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(TIMEOUT)

    def accept(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.heard.append([])
            self.connections.append(connection)
            thread = threading.Thread(target=self.serve, args=(connection, len(self.heard) - 1), daemon=True)
            self.threads.append(thread)
            thread.start()
