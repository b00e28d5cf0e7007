"""Lives of the system whose calls are recorded: each hands something in and returns when all is done.

The first line of each is its name in the tables.

run as  python3 -m tests.crash.power_lives LIFE BASE     under strace, in a home made before; prints the messages
"""

import contextlib
import dataclasses
import json
import os
import signal
import socketserver
import sys
import threading

from tests import harness
from tests.crash.power_judge import Message
from tests.faults import left, nudge
from tests.harness import Daemon, Home, wait_for

SENDER = "ann@test.example"
JOE = {"joe@test.example": "joe"}
FAILS = {"joe-fail@test.example": "fails"}
EARLIER = b"Subject: earlier\n\nhello\n"


def prepare(home, life):
    """Before the record begins: where mail goes."""
    home.dotqmail(".qmail-fail", "|exit 100\n")
    home.dotqmail(".qmail-n-default", "./Maildir/\n")
    home.dotqmail(".qmail-box", "./Mailbox\n")
    home.dotqmail(".qmail-new", "./Newbox\n")
    home.dotqmail(".qmail-to", "&ann@test.example\n")
    home.dotqmail(".qmail-later", f"|test -e {home.file('run/go')} || exit 111\n./Maildir/\n")
    if life == "rests":
        for name in ("mess/20/43", "mess/21/44", "intd/44", "intd/45", "local/0/46", "bounce/46"):
            home.write("queue/" + name, f"rest of {name}\n")
    if life == "mailbox":
        home.write("home/joe/Mailbox", b"From a@b Thu Jan  1 00:00:00 2026\n" + EARLIER + b"\n", 0o600)
    if life == "pop3":
        for n in (1, 2, 3):
            home.write(f"home/joe/Maildir/new/170000000{n}.M1P1Q1.here", message(f"mail{n}").text, 0o600)


def message(token, recipients=None, sender=SENDER):
    return Message(token, sender, recipients or JOE)


def inject(home, handed_in, door="socket"):
    result = home.inject(handed_in.text, handed_in.sender, list(handed_in.recipients), {"QMAILDOOR": door})
    assert result.code == 0, result
    return handed_in


def by_smtp(home, *handed_in):
    text = "EHLO x\r\n"
    for m in handed_in:
        text += f"MAIL FROM:<{m.sender}>\r\n" + "".join(f"RCPT TO:<{r}>\r\n" for r in m.recipients)
        text += "DATA\r\n" + m.text.decode().replace("\n", "\r\n") + ".\r\n"
    result = home.run(["qmail-smtpd"], (text + "QUIT\r\n").encode())
    assert result.out.count(b" qp ") == len(handed_in), result
    return list(handed_in)


@contextlib.contextmanager
def queued(home):
    with Daemon(["qmail-queued"], env=home.env, cwd="/"):
        wait_for(lambda: os.path.exists(home.file("run/queue")), "the socket")
        yield


# -- into the queue

def direct(home):
    """qmail-queue, direct"""
    return [inject(home, message("one"), "direct")]


def socket(home):
    """qmail-queue by the socket"""
    with queued(home):
        return [inject(home, message("one"))]


def smtp(home):
    """qmail-smtpd, two messages"""
    with queued(home):
        return by_smtp(home, message("one"), message("two", {**JOE, "ann@test.example": "ann"}))


def at_once(home):
    """three writers at once, both doors"""
    handed_in = [message(f"m{n}") for n in range(3)]
    with queued(home):
        threads = [threading.Thread(target=inject, args=(home, m, "socket" if n % 2 else "direct")) for n, m in enumerate(handed_in)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    return handed_in


# -- through it

def through(home, *handed_in):
    home.start()
    for m in handed_in:
        inject(home, m)
        home.wait_empty()
    return list(handed_in)


def short_success(home):
    """short way, success"""
    return through(home, message("one", {**JOE, "ann@test.example": "ann"}))


def short_bounce(home):
    """short way, bounce"""
    return through(home, message("one", {**JOE, **FAILS}))


def short_deferral(home):
    """change of way

    Its way is changed: one done, one failed, one left.
    """
    handed_in = message("one", {**JOE, **FAILS, "joe-later@test.example": "joe"})
    home.start()
    inject(home, handed_in)
    wait_for(lambda: not os.listdir(home.file("queue/todo")) and home.log().count("deferral: ") == 1, "the change of way")
    home.write("run/go", "")
    wait_for(lambda: nudge(home) or not left(home), "the queue to be empty")
    return [handed_in]


def long_way(home):
    """long way, 12 recipients, bounce"""
    recipients = {f"joe-n-{n}@test.example": "joe" for n in range(10)}
    return through(home, message("one", {**recipients, **FAILS, "ann@test.example": "ann"}))


def long_remote(home):
    """long way, both sides

    To both sides; the far host keeps what it took.
    """
    recipients = {f"joe-n-{n}@test.example": "joe" for n in range(5)}
    for place in ("", "/Maildir", "/Maildir/tmp", "/Maildir/new"):
        os.mkdir(home.file("home/far" + place))
    with FarHost(home) as far:
        home.control("smtproutes", f"far.example:127.0.0.1:{far.port}\n")
        return through(home, message("one", {**recipients, **{f"r{n}@far.example": "far" for n in range(4)}}))


def stopped_halfway(home):
    """long way, qmail-send killed

    qmail-send is killed while a message for twelve is under way, and begins again.
    """
    recipients = {f"joe-n-{n}@test.example": "joe" for n in range(10)}
    handed_in = message("one", {**recipients, "joe-later@test.example": "joe", **FAILS})
    home.start()
    inject(home, handed_in)
    wait_for(lambda: home.log().count("deferral: ") == 1, "the deferral")
    home.daemon.stop(signal.SIGKILL)
    home.write("run/go", "")
    home.start()
    wait_for(lambda: nudge(home) or not left(home), "the queue to be empty")
    return [handed_in]


def mailbox(home):
    """mbox, two messages and a new one"""
    return through(home, message("one", {"joe-box@test.example": "joe/Mailbox"}), message("two", {"joe-box@test.example": "joe/Mailbox"}),
                   message("three", {"joe-new@test.example": "joe/Newbox"}))


def forward(home):
    """forward"""
    return through(home, message("one", {"joe-to@test.example": ">ann@test.example"}))


def number_used_again(home):
    """numbers used again"""
    return through(home, message("one"), message("two", {"joe-n-1@test.example": "joe", **FAILS}), message("three"))


def rests(home):
    """rests of writers

    What writers left is removed beside a message that was accepted.
    """
    handed_in = inject(home, message("one"), "direct")
    result = home.run(["qmail-clean"], b"foop/43\0foop/44\0")
    assert result.out == b"++", result
    home.start()
    wait_for(lambda: not os.listdir(home.file("queue/todo")), "the message")
    return [handed_in]


def pop3(home):
    """qmail-pop3d, DELE and QUIT

    One of three messages is deleted, the others are moved to cur.
    """
    with open(os.path.join(home.base, "pop3"), "wb") as out:
        result = home.run([*DROP, harness.program("qmail-pop3d"), home.maildir()], b"DELE 2\r\nQUIT\r\n", fds={1: out.fileno()})
    assert result.code == 0, result
    return [message(f"mail{n}") for n in (1, 2, 3)]


DROP = ["setpriv", "--reuid", str(harness.owner()[1]), "--regid", str(harness.owner()[2]), "--clear-groups"]


class FarHost:
    """An SMTP server that keeps what it takes in home/far/Maildir, durably, before it says so."""

    def __init__(self, home):
        self.directory = home.file("home/far/Maildir")
        outer = self

        class Session(socketserver.StreamRequestHandler):
            def handle(self):
                outer.serve(self.rfile, self.wfile)
        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session)
        self.port = self.server.server_address[1]
        self.count = 0

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def serve(self, lines, out):
        recipients = []
        out.write(b"220 far.example\r\n")
        while line := lines.readline():
            if line.startswith(b"RCPT"):
                recipients.append(line[line.index(b"<") + 1:line.index(b">")])
            if line.startswith(b"DATA"):
                out.write(b"354 go\r\n")
                text = []
                while (line := lines.readline()) != b".\r\n":
                    text.append(line.removeprefix(b".").replace(b"\r\n", b"\n"))
                for recipient in recipients:
                    self.keep(b"Delivered-To: " + recipient + b"\n" + b"".join(text))
            if line.startswith(b"QUIT"):
                out.write(b"221 bye\r\n")
                return
            out.write(b"250 far.example\r\n")

    def keep(self, text):
        self.count += 1
        names = [os.path.join(self.directory, d, str(self.count)) for d in ("tmp", "new")]
        with open(names[0], "wb", buffering=0) as f:
            f.write(text)
            os.fsync(f.fileno())
        os.rename(*names)
        directory = os.open(os.path.join(self.directory, "new"), os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


LIVES = {life.__name__: life for life in (
    direct, socket, smtp, at_once, short_success, short_bounce, short_deferral, long_way, long_remote, stopped_halfway,
    mailbox, forward, number_used_again, rests, pop3)}


TITLES = {life.__doc__.partition("\n")[0]: name for name, life in LIVES.items()}


def main():
    life, base = sys.argv[1:]
    home = Home.__new__(Home)
    home.base, home.path, home.daemon, home.me = base, os.path.join(base, "home"), None, "test.example"
    home.env = {"QMAIL_HOME": home.path, "PATH": f"{home.path}/bin:{os.environ['PATH']}", "LANG": "C.UTF-8"}
    try:
        handed_in = LIVES[life](home)
    finally:
        home.stop()
    json.dump([dataclasses.asdict(m) for m in handed_in], sys.stdout)


if __name__ == "__main__":
    main()
