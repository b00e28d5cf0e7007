"""The clients of the measurements of TLS, python's own (OpenSSL), and tables of systems that take turns."""

import multiprocessing
import os
import socket
import ssl
import statistics
import time

from tests.bench import meter

ROUNDS = 3
SECONDS = 2  # of sessions of one kind, in each round
MEGABYTES = 300
CLIENTS = os.cpu_count() or 1  # processes
PATIENCE = 60  # seconds for anything
VERSIONS = {"1.3": ssl.TLSVersion.TLSv1_3, "1.2": ssl.TLSVersion.TLSv1_2}
KINDS = [(version, resumed) for version in VERSIONS for resumed in (False, True)]
BLOCK = 1 << 16


def shorten():
    """To see that everything is measured, and not how much it is."""
    global ROUNDS, SECONDS, MEGABYTES
    ROUNDS, SECONDS, MEGABYTES = 1, 0.2, 3


def trusting(version="1.3"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = VERSIONS[version]
    return context


def listens(port):
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE):
            return True
    except OSError:
        return False


def connect(port, context, session=None):
    s = socket.create_connection(("127.0.0.1", port), PATIENCE)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tls = context.wrap_socket(s, session=session)
    # A server that leaves Nagle's algorithm on sends its greeting when its tickets are confirmed: not 40 ms later, here.
    tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    return tls


def answer(tls):
    """A reply of SMTP, to its last line."""
    got = b""
    while not got.endswith(b"\n") or got.splitlines()[-1][3:4] == b"-":
        data = tls.recv(BLOCK)
        if not data:
            raise SystemExit(f"bench: the end behind {got!r}")
        got += data
    return got


def to_the_end(tls):
    """A session with a program that ends by itself."""
    while tls.recv(BLOCK):
        pass


def smtp(tls):
    answer(tls)
    tls.sendall(b"QUIT\r\n")
    to_the_end(tls)


def sessions(port, version, resumed, talk, seconds):
    """One after the other: how many, of which each is as it should be."""
    context, session, count = trusting(version), None, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with connect(port, context, session) as tls:
            if tls.session_reused != (session is not None):
                raise SystemExit(f"bench: a session of TLS {version} was not resumed")
            talk(tls)
            if resumed:
                session = tls.session
        count += 1
    return count


def _client(pipe, work):
    pipe.send(sessions(*work))


def rate(group, *work):
    """(sessions a second of all clients together, ms of the server's processor time for each)"""
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe(False) for _ in range(CLIENTS)]
    clients = [fork.Process(target=_client, args=(theirs, (*work, SECONDS))) for _, theirs in pipes]
    measured = meter.Meter(group, None).begin()
    for client in clients:
        client.start()
    for _, theirs in pipes:
        theirs.close()
    try:
        count = sum(ours.recv() for ours, _ in pipes)
        return per(measured.end(), count, 1000)
    finally:
        for client in clients:
            client.join(PATIENCE)
            client.kill()


def per(cost, count, factor):
    return count / cost["wall"], None if cost["cpu"] is None else factor * cost["cpu"] / count


def down(group, port):
    """(megabytes a second from the server, ms for each)"""
    measured, got = meter.Meter(group, None).begin(), 0
    block = bytearray(BLOCK)
    with connect(port, trusting()) as tls:
        while n := tls.recv_into(block):
            got += n
    if got != MEGABYTES * 1_000_000:
        raise SystemExit(f"bench: {got} bytes came")
    return per(measured.end(), MEGABYTES, 1000)


def up(group, port, before=lambda tls: None, after=answer):
    """The same to the server."""
    block = (b"x" * 76 + b"\r\n") * (BLOCK // 78)
    whole, rest = divmod(MEGABYTES * 1_000_000, len(block))
    with connect(port, trusting()) as tls:
        before(tls)
        measured = meter.Meter(group, None).begin()
        for _ in range(whole):
            tls.sendall(block)
        tls.sendall(block[:rest])
        after(tls)
        return per(measured.end(), MEGABYTES, 1000)


class Table:
    """What was measured, by row and system; one column of ratios a peer, round by round."""

    def __init__(self):
        self.rows = {}

    def add(self, what, system, measured):
        self.rows.setdefault(what, {}).setdefault(system, []).append(measured)

    def show(self, systems):
        ours, *peers = systems
        print(f"{'':30}" + "".join(f"{system + ' a second':>22}{'CPU ms':>8}" for system in systems)
              + "".join(f"{'rate / ' + peer:>18}{'CPU':>7}" for peer in peers))
        for what, found in self.rows.items():
            line = f"{what:30}"
            for system in systems:
                line += f"{middle(found.get(system), 0):>22}{middle(found.get(system), 1, 2):>8}"
            for peer in peers:
                pairs = list(zip(found.get(ours, []), found.get(peer, [])))
                line += f"{ratio(pairs, 0):>18}{ratio(pairs, 1):>7}"
            print(line, flush=True)


def middle(runs, which, digits=0):
    values = [run[which] for run in runs or [] if run[which] is not None]
    return f"{statistics.median(values):.{digits}f}" if values else "-"


def ratio(pairs, which):
    values = [a[which] / b[which] for a, b in pairs if a[which] and b[which]]
    return f"{statistics.median(values):.2f}" if values else "-"
