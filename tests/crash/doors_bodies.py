"""Every short message: what a foreign server gets of it from us, and what our queue gets of it from a client."""

import contextlib
import os
import re
import shutil
import socket
import sys

from tests import harness
from tests.crash.doors_rig import Crowd, in_memory, strings
from tests.crash.doors_smtp import Queue, serve
from tests.crash.report import Row
from tests.harness import Daemon, free_port, wait_for

LETTERS = (b"\r", b"\n", b".", b"\0", b"\xff", b"x")
LONGEST = 6

TOOLS = os.path.join(harness.ROOT, "tests", "tools", "root")
PARTIAL = b"DSMTP cannot transfer messages with partial final lines. (#5.6.2)\n\0"
ENTRY = re.compile(rb"X-Client-Addr: 127\.0\.0\.1\nX-Client-Proto: E?SMTP\nX-Helo-Args: [^\n]*\nX-Mail-Args: [^\n]*\n"
                   rb"X-Rcpt-Args: <b(\d+)@sink\.test>\nReceived: [^\n]*\n\t[^\n]*\n\t[^\n]*\n")


def sink_command():
    """smtp-sink of Postfix, and its environment."""
    if path := shutil.which("smtp-sink", path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
        return path, dict(os.environ)
    libraries = [d for d, _, files in os.walk(os.path.join(TOOLS, "usr/lib")) if any(".so" in f for f in files)]
    return os.path.join(TOOLS, "usr/sbin/smtp-sink"), {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}


def has_sink():
    """Says so where it is missing."""
    if os.access(sink_command()[0], os.X_OK):
        return True
    print("crash: no smtp-sink here (scripts/test-packages): what we send is not tried", file=sys.stderr)
    return False


@contextlib.contextmanager
def sink():
    """(port, file): Postfix's test server, which appends all that it takes to a file."""
    path, env = sink_command()
    base, port = harness.scratch(), free_port()
    user = ["-u", harness.owner()[0], "-R", base] if os.geteuid() == 0 else []
    dump = "dump" if user else os.path.join(base, "dump")
    daemon = Daemon([path, *user, "-D", dump, f"127.0.0.1:{port}", "100"], env=env, cwd=base)
    try:
        def listens():
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                return True
        wait_for(listens, "smtp-sink")
        yield port, os.path.join(base, "dump")
    finally:
        daemon.stop()
        shutil.rmtree(base)


def arrives(message):
    """What a server stores that ends its lines with LF; None for a message that SMTP cannot carry. A lone CR is a
    line end that no two receivers agree upon: it is sent as one that all know."""
    if message and not message.endswith(b"\n"):
        return None
    return re.sub(rb"\r\n?", b"\n", message)


def out(part, parts, step=1, remote="qmail-remote"):
    """Each body as a whole message to a server of others'; one that SMTP cannot carry is refused, and goes again
    with the line end it wants."""
    in_memory()
    rows = [Row("qmail-remote to Postfix's smtp-sink", what) for what in ("every body as it is", "a body without last LF, and a LF")]
    bodies = [b for n, b in enumerate(strings(LETTERS, LONGEST)) if n % (parts * step) == part]
    messages = [(rows[0], b) for b in bodies] + [(rows[1], b + b"\n") for b in bodies if arrives(b) is None]
    accepted = set()
    with harness.Home(users={}) as home, sink() as (port, dump):
        home.control("smtproutes", f"sink.test:127.0.0.1:{port}\n")

        def done(number, code, said):
            row, message = messages[number]
            row.tried += 1
            ours = PARTIAL if arrives(message) is None else b"r\0K127.0.0.1 accepted message.\nRemote host said: 250 "
            if code != 0 or not said.startswith(ours):
                row.bad("code", f"{message!r}: {code} {said!r}")
            if b"\0K" in said:
                accepted.add(number)
        with Crowd([remote, "sink.test", "s@test.example"], home.env, done) as crowd:
            for number, (_, message) in enumerate(messages):
                crowd.put(number, message, f"b{number}@sink.test")

        # What it has answered it has written.
        text = b""
        if os.path.exists(dump):
            with open(dump, "rb") as f:
                text = f.read()
    heads = list(ENTRY.finditer(text))
    got = {}
    for head, behind in zip(heads, [h.start() for h in heads[1:]] + [len(text)]):
        got.setdefault(int(head[1]), []).append(text[head.end():behind])
    for number, (row, message) in enumerate(messages):
        wanted = arrives(message)
        copies = got.get(number, [])
        if number in accepted and not copies:
            row.bad("lost", f"{message!r} never came")
        if any(copy != (wanted or b"") + b"\n" for copy in copies):  # an empty line ends each entry
            row.bad("half", f"{message!r} came as {copies}")
        if wanted is None and copies:
            row.bad("code", f"{message!r} was refused and came")
        row.extra += max(0, len(copies) - 1)
    return rows


HELLO = b"HELO x\r\n"
ASK = b"MAIL FROM:<b%d@in.test>\r\nRCPT TO:<joe@test.example>\r\nDATA\r\n"
END = b"\r\n.\r\n"
AT_ONCE = 1000  # messages in one session


def inward(part, parts, step=1, program="qmail-smtpd"):
    """Each body behind DATA as it is, and its end, many in a session; one with a bare LF ends its own."""
    in_memory()
    fine = Row("qmail-smtpd into the queue", "every body without a bare LF, many in a session")
    bare = Row("qmail-smtpd into the queue", "every body with a bare LF, a session each")
    bodies = [b for n, b in enumerate(strings(LETTERS, LONGEST)) if n % (parts * step) == part]
    one_by_one = [b for b in bodies if re.search(rb"(?<!\r)\n", b)]
    together = [b for b in bodies if not re.search(rb"(?<!\r)\n", b)]
    sessions = [(bare, HELLO + ASK % n + b + END + ASK % n + b"smuggled" + END, 1) for n, b in enumerate(one_by_one)]
    for at in range(0, len(together), AT_ONCE):
        some = together[at:at + AT_ONCE]
        sessions.append((fine, HELLO + b"".join(ASK % (10**6 + at + n) + b + END for n, b in enumerate(some)), len(some)))
    with Queue() as queue:
        def done(number, code, said):
            row, stream, count = sessions[number]
            row.tried += count
            replies, messages, _ = serve(stream)
            if queue.codes(said) != replies:
                row.bad("code", f"{stream[:300]!r}: {said[:300]!r} instead of {replies[:20]}")
            if code != 1:
                row.bad("code", f"{stream[:300]!r}: exit {code}")
            queue.expect(messages)
        with Crowd([program], queue.env, done) as crowd:
            for number, (_, stream, _) in enumerate(sessions):
                crowd.put(number, stream)
        queue.judge(fine)
    return [fine, bare]
