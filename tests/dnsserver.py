"""DNS for tests: a packaged server (nsd) with zones of the test's own, and one that answers by script.

    with Nsd({"example.org": "@ MX 10 mx\\nmx A 127.0.0.2\\n"}) as dns:
        run([...], env={"DNSCACHEIP": dns.address})
"""

import os
import shutil
import socket
import struct
import tempfile
import threading

from tests.harness import TIMEOUT, Daemon, free_port, wait_for
from tests.packages import tool

A, CNAME, SOA, MX, AAAA = 1, 5, 6, 15, 28
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)


class Nsd:
    """An authoritative server on loopback. zones: {name: records in zone file syntax}; names outside
    are REFUSED. SOA and NS are added. A zone whose text is None is configured without its file: SERVFAIL."""

    def __init__(self, zones, host="127.0.0.1", port=None):
        self.base = tempfile.mkdtemp(prefix="qmail-nsd-")
        self.host, self.port = host, port or free_port(host)
        conf = [
            "server:", f"  ip-address: {host}@{self.port}", '  username: ""', '  chroot: ""', f'  zonesdir: "{self.base}"',
            f'  pidfile: "{self.base}/pid"', '  database: ""', f'  zonelistfile: "{self.base}/zonelist"',
            f'  xfrdfile: "{self.base}/xfrd"', f'  xfrdir: "{self.base}"', "  server-count: 1", "  reuseport: no",
            "  hide-version: yes", "  rrl-ratelimit: 0", "remote-control:", "  control-enable: no",
        ]
        for number, (name, records) in enumerate(zones.items()):
            conf += ["zone:", f"  name: {name}", f"  zonefile: {number}.zone"]
            if records is not None:
                with open(os.path.join(self.base, f"{number}.zone"), "w") as f:
                    f.write(f"$ORIGIN {name}.\n$TTL 60\n@ SOA ns.{name}. root.{name}. 1 60 60 60 60\n@ NS ns\nns A 127.0.0.1\n{records}\n")
        with open(os.path.join(self.base, "nsd.conf"), "w") as f:
            f.write("\n".join(conf) + "\n")
        self.ready = next(iter(zones))

    @property
    def address(self):
        """For DNSCACHEIP."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __enter__(self):
        path, env = tool("nsd")
        self.daemon = Daemon([path, "-d", "-c", os.path.join(self.base, "nsd.conf")], env=env)
        try:
            wait_for(self._answers, "nsd to answer")
        except BaseException as e:
            log = self.daemon.log()
            self.__exit__()
            raise AssertionError(f"{e}\n--- nsd ---\n{log}") from None
        return self

    def _answers(self):
        if self.daemon.process.poll() is not None:
            raise AssertionError(f"nsd ended with {self.daemon.process.returncode}")
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(0.2)
            try:
                s.connect((self.host, self.port))
                s.send(question(self.ready, SOA))
                return len(s.recv(4096)) > 12
            except (TimeoutError, ConnectionRefusedError):
                return False

    def __exit__(self, *_):
        self.daemon.stop()
        shutil.rmtree(self.base, ignore_errors=True)


# -- bytes

def encode_name(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


def question(name, kind, identity=1):
    return struct.pack(">6H", identity, 0x0100, 1, 0, 0, 0) + encode_name(name) + struct.pack(">2H", kind, 1)


class Query:
    """What arrived: identity, flags, name, kind, edns (the UDP size offered, None without EDNS0)."""

    def __init__(self, data, tcp=False):
        self.data, self.tcp = data, tcp
        self.identity, self.flags, _, _, _, additional = struct.unpack(">6H", data[:12])
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1:at + 1 + data[at]].decode("latin-1"))
            at += 1 + data[at]
        self.name = ".".join(labels)
        self.kind, _ = struct.unpack(">2H", data[at + 1:at + 5])
        self.end = at + 5
        self.edns = struct.unpack(">H", data[self.end + 3:self.end + 5])[0] if additional else None

    def answer(self, records=(), rcode=NOERROR, flags=0x8180, identity=None, asked=None, authority=(), copy_question=True):
        """An answer; records: (name, kind, data bytes)."""
        asked = self.data[12:self.end] if asked is None else asked
        head = struct.pack(">6H", self.identity if identity is None else identity, flags | rcode, int(copy_question),
                           len(records), len(authority), 0)
        return head + (asked if copy_question else b"") + b"".join(
            encode_name(n) + struct.pack(">2HIH", k, 1, 60, len(d)) + d for n, k, d in (*records, *authority))


def mx(preference, name):
    return struct.pack(">H", preference) + encode_name(name)


class Responder:
    """Answers by script, UDP and TCP on one port. answer(Query) gives a list of messages to send back,
    or None to say nothing. All queries are kept in .queries."""

    def __init__(self, answer, host="127.0.0.1", port=0):
        self.answer, self.host, self.queries, self.stopping = answer, host, [], False
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.tcp = socket.socket(family, socket.SOCK_STREAM)
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.tcp.bind((host, port))
        self.tcp.listen()
        self.port = self.tcp.getsockname()[1]
        self.udp = socket.socket(family, socket.SOCK_DGRAM)
        self.udp.bind((host, self.port))
        self.threads = [threading.Thread(target=t, daemon=True) for t in (self._udp, self._tcp)]

    address = Nsd.address

    def _udp(self):
        while True:
            data, peer = self.udp.recvfrom(4096)
            if self.stopping:
                return
            query = Query(data)
            self.queries.append(query)
            for message in self.answer(query) or ():
                self.udp.sendto(message, peer)

    def _tcp(self):
        while True:
            connection, _ = self.tcp.accept()
            with connection, connection.makefile("rb") as reader:
                if self.stopping:
                    return
                connection.settimeout(TIMEOUT)
                length = reader.read(2)
                if len(length) < 2:
                    continue
                query = Query(reader.read(struct.unpack(">H", length)[0]), tcp=True)
                self.queries.append(query)
                for message in self.answer(query) or ():
                    connection.sendall(struct.pack(">H", len(message)) + message)

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.stopping = True
        family = self.udp.family
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.sendto(b"", (self.host, self.port))
        socket.create_connection((self.host, self.port), TIMEOUT).close()
        for t in self.threads:
            t.join(TIMEOUT)
        self.udp.close()
        self.tcp.close()
