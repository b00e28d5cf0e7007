"""Hosts that answer wrong, at every stage of the conversation: whom a recipient's mail is said to have reached.

One listener plays all hosts, each at an address of its own in 127/8. What a host took and refused is written down
there, beside the script, and what qmail-rspawn reports is compared with both: with what happened, and with what a
strict reading of RFC 5321 makes of the bytes. The wrong answer is followed by right ones: who overlooks it
can come to a success that nobody gave.
"""

import contextlib
import os
import re
import select
import signal
import socket
import struct
import subprocess
import threading
import time

from tests import harness, spawners
from tests.crash.report import Row
from tests.spawners import request

TITLE = "Hosts that answer wrong"

BODY = b"Subject: wrong answers\n\n.dot\nlast\n"
STAGES = ("greeting", "EHLO", "HELO", "MAIL", "first RCPT", "middle RCPT", "last RCPT", "DATA", "end of data", "QUIT")
RCPT = STAGES[4:7]
RIGHT = {"greeting": b"220 hi\r\n", "EHLO": b"250 hi\r\n", "DATA": b"354 go ahead\r\n", "QUIT": b"221 bye\r\n"}
PIPELINING = b"250-hi\r\n250 PIPELINING\r\n"
UNKNOWN = b"502 unimplemented\r\n"

# What comes behind the wrong bytes.
GO_ON, CLOSE, RESET, SILENCE, DRIP, FLOOD = "goes on", "closes", "resets", "is silent", "drips", "floods"
ENDS = (CLOSE, RESET, SILENCE, DRIP, FLOOD)
SLOW = (SILENCE, DRIP)

FLOOD_MAX = 16 << 20  # nobody takes so much: by then a client that is not gone never will be
DRIP_SECONDS = 0.3  # sooner than a read gives up, so that only the time for the whole reply can

MEGABYTE = b"x" * (1 << 20)

# Complete lines, after which the host goes on as if it had answered well. At one stage or another some of
# them are right: they are the controls.
LINES = [
    b"\r\n", b"\n", b"\0\r\n", b"2\r\n", b"25\r\n", b"55\r\n", b"2500 ok\r\n", b"5500 no\r\n", b"ok\r\n", b"abc ok\r\n", b"2x0 ok\r\n",
    b"5x0 no\r\n", b"2 50 ok\r\n", b"-250 ok\r\n", b"+250 ok\r\n", b" 250 ok\r\n", b" 550 no\r\n", b"\t250 ok\r\n", b"250ok\r\n",
    b"550no\r\n", b"250\tok\r\n", b"250\0ok\r\n", b"250_ok\r\n", b"0x250 ok\r\n", b"2.5.0 ok\r\n",
    b"000 ok\r\n", b"050 ok\r\n", b"100 wait\r\n", b"199 wait\r\n", b"600 ok\r\n", b"650 ok\r\n", b"999 no\r\n",
    b"250-ok\r\n550 no\r\n", b"550-no\r\n250 ok\r\n", b"250-ok\r\n251 ok\r\n", b"550-no\r\n551 no\r\n", b"250-ok\r\nok\r\n",
    b"550-no\r\n\r\n", b"250-ok\r\n250\tok\r\n",
    "２５０ ok\r\n".encode(), "٢٥٠ ok\r\n".encode(), b"\xb2\xb5\xb0 ok\r\n", b"\xef\xbb\xbf250 ok\r\n", b"\x1b[2J250 ok\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n", b"SSH-2.0-x\r\n", b"* OK IMAP4rev1\r\n", b"+OK POP3\r\n", b"\xff\xfd\x18\xff\xfd\x20\r\n",
    b"\x15\x03\x01\x00\x02\x02\x46\r\n", b"250 " + MEGABYTE + b"\r\n", b"550 " + MEGABYTE + b"\r\n", MEGABYTE + b"\r\n",
    b"220 hi\r\n", b"250\r\n", b"250 \r\n", b"250 ok\n", b"250-a\r\n250-\r\n250 b\r\n", b"250 o\0k\r\n", b"250 o\rk\r\n",
    "250 schön, \u202e\U0001f4e8\r\n".encode(), b"250 \x1b]0;title\x07\x1b[31mred\r\n", b"200 ok\r\n", b"251 forwarded\r\n", b"299 ok\r\n",
    b"250 " + b"y" * 4000 + b"\r\n", b"250-more\r\n" * 200 + b"250 ok\r\n",
    b"300 what\r\n", b"334 \r\n", b"354 go ahead\r\n", b"354-go\r\n354 ahead\r\n", b"399 go\r\n",
    b"421 closing\r\n", b"450 later\r\n", b"452-full\r\n452 up\r\n", b"499\r\n",
    b"500\r\n", b"550 no\r\n", b"550 no\n", b"552-no\r\n552 way\r\n", b"554 \xff\0\x1b[2J\x07no\r\n", "550 größer als erlaubt\r\n".encode(),
    b"599 no\r\n", b"550 2.0.0 250 ok\r\n", b"550-" + b"z" * 3000 + b"\r\n550 end\r\n",
]
# What the host says last.
LAST = [(data, CLOSE) for data in (
    b"", b"2", b"25", b"250", b"250 ok", b"550 no", b"250 ok\r", b"550 no\r", b"250-more\r\n", b"550-more\r\n", b"250-more\r\n250", b"\r",
    b"\0", b"220 hi\r\n", b"250 ok\r\n", b"354 go\r\n", b"421 bye\r\n", b"450 later\r\n", b"554 no\r\n")]
LAST += [(b"", RESET), (b"", SILENCE), (b"25", SILENCE), (b"250 ok", SILENCE), (b"550-no\r\n", SILENCE), (b"250-", DRIP), (b"550-", DRIP),
         (b"", DRIP), (b"250-more\r\n", FLOOD), (b"550-more\r\n", FLOOD), (b"2", FLOOD), (b"\0", FLOOD)]
# Behind the right answer one that nobody asked for.
MORE = [b"250 early\r\n", b"354 early\r\n", b"550 late\r\n", b"421 bye\r\n", b"\r\n", b"xyz\r\n", b"25"]


def strict(data):
    """(code of the first reply or None, bytes behind it) by RFC 5321 section 4.2, but that a LF may end a line; a
    line may be as long as 4096 bytes, a reply 64 KiB."""
    code, rest = None, data
    while True:
        line, end, rest = rest.partition(b"\n")
        line = line.removesuffix(b"\r")
        if not end or len(line) > 4096 or not re.fullmatch(rb"(?s)[2-5][0-9][0-9]([ -].*)?", line) or code not in (None, line[:3]):
            return None, b""
        code = line[:3]
        if line[3:4] != b"-":
            return int(code), rest


class Point:
    """One host: what it says wrong, and what really happened there."""

    def __init__(self, number, stage, data, after=GO_ON, pipelining=False, more=None):
        self.number, self.stage, self.after, self.pipelining, self.more = number, stage, after, pipelining, more
        self.data = self.right(stage) + more if more is not None else data
        self.code, behind = strict(self.data)
        self.twice = bool(behind) and stage not in ("end of data", "QUIT")
        self.second = strict(behind)[0]
        self.healed = False
        self.taken = []  # (recipients, message): it said 2xx to them

    address = property(lambda self: f"127.{self.number // 62500 + 1}.{self.number // 250 % 250 + 1}.{self.number % 250 + 1}")
    host = property(lambda self: f"h{self.number}.test")
    recipients = property(lambda self: [f"r{n}@{self.host}" for n in range(3)])

    def __repr__(self):
        said = self.data if len(self.data) < 60 else self.data[:30] + b"..." + b"%d bytes" % len(self.data)
        return f"{'pipelining, ' if self.pipelining else ''}{self.stage}: {said!r}, then {self.after}"

    def right(self, stage):
        if stage == "EHLO" and self.pipelining:
            return PIPELINING
        if stage == "EHLO" and self.stage == "HELO":
            return UNKNOWN
        return RIGHT.get(stage, b"250 ok\r\n")

    def verdicts(self):
        """What each recipient is to be told, a letter each; None where the conversation is out of step, and only what
        happened decides."""
        code, ends, stage = self.code, self.after in ENDS, self.stage
        kind = code and code // 100
        if stage == "QUIT" or stage == "end of data" and kind == 2:
            return "KKK"
        if self.twice and (kind == 5 or self.pipelining and stage not in ("greeting", "EHLO")):
            return None
        if self.twice:  # a refusal in the middle of the message is one of what came so far
            return "DDD" if stage == "DATA" and self.second and self.second // 100 == 5 else "ZZZ"
        if stage in ("greeting", "EHLO", "HELO"):
            good = code == (220 if stage == "greeting" else 250) or stage == "EHLO" and kind == 5
            return "KKK" if good and not ends else "ZZZ"
        if stage in RCPT and kind and kind != 2:
            others = "Z" if ends else "K"
            return "".join(("D" if kind == 5 else "Z") if n == RCPT.index(stage) else others for n in range(3))
        if kind == 5:
            return "DDD"
        return "KKK" if kind == (3 if stage == "DATA" else 2) and not ends and stage != "end of data" else "ZZZ"


class Reset(Exception):
    """The conversation is over."""


class Hosts:
    """The listener; a thread a connection."""

    def __init__(self, points):
        self.points = {point.address: point for point in points}
        self.socket = socket.create_server(("0.0.0.0", 0), backlog=512)
        self.port = self.socket.getsockname()[1]
        self.open, self.closing = set(), False
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def routes(self):
        return "".join(f"{p.host}:{p.address}:{self.port}\n" for p in self.points.values())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closing = True
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 5).close()
        self.threads[0].join(harness.TIMEOUT)
        self.socket.close()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self.threads[1:]:
            thread.join(harness.TIMEOUT)

    def _accept(self):
        while True:
            connection, _ = self.socket.accept()
            if self.closing:
                connection.close()
                return
            self.open.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _serve(self, connection):
        try:
            connection.settimeout(2 * harness.TIMEOUT)
            self._talk(self.points[connection.getsockname()[0]], connection)
        except (Reset, OSError):
            pass
        finally:
            self.open.discard(connection)
            connection.close()

    def _talk(self, point, connection):
        def answer(stage, right=None):
            """Says it, wrong where this host does; the code by which both sides may go on."""
            right = right or point.right(stage)
            if stage != point.stage or point.healed:
                connection.sendall(right)
                return int(right[:3])
            self._wrong(point, connection)
            return point.code or int(right[:3])

        reader = connection.makefile("rb")
        with reader:
            if answer("greeting") // 100 != 2:
                return
            sender, recipients, count = False, [], 0
            while line := reader.readline():
                verb, said = line[:4].upper(), line.strip().decode("latin-1")
                if verb == b"EHLO":
                    answer("EHLO")
                elif verb == b"HELO":
                    answer("HELO")
                elif verb == b"MAIL":
                    recipients, count, sender = [], 0, answer("MAIL") // 100 == 2
                elif verb == b"RCPT":
                    if answer(RCPT[count], None if sender else b"503 MAIL first\r\n") // 100 == 2:
                        recipients.append(said[9:-1])
                    count = min(count + 1, 2)
                elif verb == b"DATA":
                    if answer("DATA", None if recipients else b"503 RCPT first\r\n") // 100 != 3:
                        continue
                    body = b""
                    while not (body == b".\r\n" or body.endswith(b"\r\n.\r\n")):
                        part = reader.readline()
                        if not part:
                            return
                        body += part
                    if point.stage != "end of data" or point.healed or point.code and point.code // 100 == 2:
                        point.taken.append((recipients, body))  # before it is said: who has heard it looks at once
                    answer("end of data")
                    sender, recipients = False, []
                elif verb == b"QUIT":
                    answer("QUIT")
                    return
                else:
                    connection.sendall(b"500 what\r\n")

    def _wrong(self, point, connection):
        """The wrong answer, and the end if it is to be the last."""
        if point.after == RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise Reset
        connection.sendall(point.data)
        if point.after == GO_ON:
            return
        if point.after == CLOSE:
            connection.shutdown(socket.SHUT_WR)
        elif point.after == FLOOD:
            for _ in range(FLOOD_MAX // 65536):
                connection.sendall(point.data * (65536 // len(point.data)))
        deadline = time.monotonic() + 4 * harness.TIMEOUT
        while time.monotonic() < deadline:  # until the client has had enough
            ready, _, _ = select.select([connection], [], [], DRIP_SECONDS)
            if ready and not connection.recv(65536):
                break
            if not ready and point.after == DRIP:
                connection.sendall(b"x")
        raise Reset


def as_sent(message):
    """A message with LF as it stands on the wire."""
    return b"".join(b"." * line.startswith(b".") + line.replace(b"\n", b"\r\n") for line in message.splitlines(True)) + b".\r\n"


class Rspawn:
    """A qmail-rspawn whose recipients travel together, many messages at a time."""

    AT_ONCE = 24

    def __init__(self, home, path=None):
        env = {**home.env, "QMAILBURST": "1"}
        if path:
            env["PATH"] = f"{path}:{env['PATH']}"
        self.message = spawners.put_message(home, 457, BODY)
        self.process = subprocess.Popen([harness.program("qmail-rspawn")], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.data = b""
        if self._more(1) != b"\xff":
            raise AssertionError(f"qmail-rspawn began with {self.data!r}")
        self.data = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(harness.TIMEOUT)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _more(self, least=0):
        ready, _, _ = select.select([self.process.stdout], [], [], 3 * harness.TIMEOUT)
        if not ready:
            raise AssertionError(f"no report for {3 * harness.TIMEOUT} s")
        chunk = os.read(self.process.stdout.fileno(), 65536)
        if not chunk:
            raise AssertionError("qmail-rspawn ended")
        self.data += chunk
        return self.data

    def ask(self, point, place):
        """The three in one piece, so that they travel together."""
        os.write(self.process.stdin.fileno(), b"".join(
            request(3 * place + n, self.message, "s@test.example", r) for n, r in enumerate(point.recipients)))

    def report(self):
        """(slot, letter, text) of the next report."""
        while b"\0" not in self.data[1:]:
            self._more()
        end = self.data.index(b"\0", 1)
        slot, letter, text = self.data[0], self.data[1:2].decode("latin-1"), self.data[2:end]
        self.data = self.data[end + 1:]
        return slot, letter, text

    def verdicts(self, points):
        """{point: letters}, of many at once."""
        waiting, free, working, found = list(reversed(points)), list(range(self.AT_ONCE)), {}, {}
        while waiting or working:
            while waiting and free:
                place, point = free.pop(), waiting.pop()
                working[place] = point, {}
                self.ask(point, place)
            slot, letter, _ = self.report()
            point, letters = working[slot // 3]
            if slot % 3 in letters:
                raise AssertionError(f"{point}: slot {slot} reported twice")
            letters[slot % 3] = letter
            if len(letters) == 3:
                found[point] = "".join(letters[n] for n in range(3))
                free.append(slot // 3)
                del working[slot // 3]
        return found


def judge(row, point, letters):
    """What really happened, then what should have been said of it."""
    row.tried += 1
    for recipient, letter in zip(point.recipients, letters):
        held = [body for recipients, body in point.taken if recipient in recipients]
        if letter == "K" and not held:
            row.bad("lost", f"{point}: {recipient} is done, and the host never took the message")
        if letter == "D" and not re.search(rb"(^|\n)5[0-9][0-9]", point.data):
            row.bad("code", f"{point}: {recipient} failed without a 5xx")
        if any(body != as_sent(BODY) for body in held):
            row.bad("half", f"{point}: took {held}")
    wanted = point.verdicts()
    if wanted not in (None, letters):
        row.bad("code", f"{point}: {letters} instead of {wanted}")


def points(stage, sample=False):
    """All that is said wrong at one stage."""
    lines = LINES if stage != "QUIT" else LINES[::5]
    if sample:
        lines = LINES[::9]
    found = []
    for pipelining in (False, True):
        if pipelining and stage == "HELO":
            continue
        if stage in ("greeting",) and pipelining:
            continue
        numbers = iter(range(len(found), 100_000))
        found += [Point(next(numbers), stage, line, GO_ON, pipelining) for line in lines]
        found += [Point(next(numbers), stage, data, after, pipelining) for data, after in (LAST[::4] if sample else LAST)
                  if not (sample and after in SLOW)]
        if stage != "QUIT":
            found += [Point(next(numbers), stage, None, GO_ON if more.endswith(b"\n") else CLOSE, pipelining, more)
                      for more in (MORE[::3] if sample else MORE)]
    return found


def wrong_at(stage, sample=False, path=None):
    """qmail-rspawn and qmail-remote, three recipients of one message together."""
    row = Row("qmail-rspawn and qmail-remote, three recipients together", f"wrong answer: {stage}")
    every = points(stage, sample)
    with harness.Home(users={}) as home, Hosts(every) as hosts:
        home.control("smtproutes", hosts.routes())
        # Where a verdict may hang on the time an honest answer takes, nobody is in a hurry.
        for slow, seconds in ((False, 4 * harness.TIMEOUT), (True, 1)):
            home.control("timeoutremote", f"{seconds}\n")
            some = [p for p in every if (p.after in SLOW and stage != "QUIT") == slow]  # nobody waits for the answer to QUIT
            with Rspawn(home, path) as rspawn:
                for point, letters in rspawn.verdicts(some).items():
                    judge(row, point, letters)
    return [row]


def no_connection():
    """Nobody there, or gone at once."""
    row = Row("qmail-rspawn and qmail-remote, three recipients together", "wrong answer: connect")
    every = [Point(0, "greeting", b"", CLOSE), Point(1, "greeting", b"", RESET), Point(2, "greeting", b"", CLOSE), Point(3, "greeting", b"", CLOSE)]
    with harness.Home(users={}) as home, Hosts(every[:2]) as hosts, socket.socket() as deaf, socket.socket() as full:
        deaf.bind(("127.0.0.1", 0))  # nobody listens: refused
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # nobody accepts: with its backlog full a connection is never made
        held = []
        try:
            for _ in range(4):
                one = socket.socket()
                held.append(one)
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            home.control("smtproutes", hosts.routes() + f"{every[2].host}:127.0.0.1:{deaf.getsockname()[1]}\n"
                         f"{every[3].host}:127.0.0.1:{full.getsockname()[1]}\n")
            home.control("timeoutconnect", "1\n")
            home.control("timeoutremote", "1\n")
            with Rspawn(home) as rspawn:
                for point, letters in rspawn.verdicts(every).items():
                    judge(row, point, letters)
        finally:
            for one in held:
                one.close()
    return [row]


def beside(count):
    """Hosts that hold their connections for ever do not hold up others."""
    row = Row("qmail-rspawn and qmail-remote, three recipients together", "hosts that never answer beside honest ones")
    silent = [Point(n, STAGES[n % 9], b"", SILENCE if n % 2 else DRIP) for n in range(count)]
    honest = [Point(count + n, "QUIT", b"221 bye\r\n") for n in range(count)]
    with harness.Home(users={}) as home, Hosts(silent + honest) as hosts:
        home.control("smtproutes", hosts.routes())
        home.control("timeoutremote", "1200\n")
        with Rspawn(home) as rspawn:
            for place, point in enumerate(silent):
                rspawn.ask(point, place)
            harness.wait_for(lambda: len(hosts.open) == count, "all of them to hold a connection")
            for n, point in enumerate(honest):
                rspawn.ask(point, count)
                letters = {}
                while len(letters) < 3:
                    slot, letter, _ = rspawn.report()
                    if slot // 3 != count:
                        row.bad("stuck", f"{silent[slot // 3]} was given up after less than its time")
                    letters[slot] = letter
                judge(row, point, "".join(letters[3 * count + k] for k in range(3)))
            # The end of qmail-rspawn waits for its children; theirs comes with their connections.
            for connection in list(hosts.open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
    return [row]


def chain(sample, step, path=None):
    """From the queue to the bounce, and again when the hosts have come to reason. `path`: in front of PATH."""
    row = Row("the whole chain: queue, bounce, log, and the next try", "wrong answer at any stage")
    every = []
    for stage in STAGES[:-1]:
        kept = [p for p in points(stage, True) if p.verdicts() and len(p.data) < 100_000 and p.after not in SLOW]
        every += kept[::step]
        every += [Point(0, stage, b"554 \x1b]0;evil\x07\xff\0 no\r\n"), Point(0, stage, b"451 \x1b[2J\xe4\x01later\r\n")]
    for number, point in enumerate(every):
        point.number = number
    with harness.Home(users={"joe": "x"}) as home, Hosts(every) as hosts:
        home.control("smtproutes", hosts.routes())
        home.control("concurrencyremote", "40\n")
        home.control("timeoutremote", f"{4 * harness.TIMEOUT}\n")
        home.start(env={"PATH": f"{path}:{home.env['PATH']}"} if path else None)
        for point in every:
            if home.inject(BODY, "joe@test.example", point.recipients).code:
                raise AssertionError("not injected")
        wanted = {p: p.verdicts() for p in every}

        def tried():
            log = home.log()
            begun = re.findall(r"^starting delivery (\d+): msg \d+ to remote ", log, re.M)
            return len(begun) >= 3 * len(every) and set(begun) <= set(re.findall(r"^delivery (\d+): ", log, re.M))
        harness.wait_for(tried, "every recipient to be tried", 4 * harness.TIMEOUT)
        for point, letters in wanted.items():
            row.tried += 1
            for recipient, letter in zip(point.recipients, letters):
                held = any(recipient in r for r, _ in point.taken)
                if held != (letter == "K"):
                    row.bad("code", f"{point}: {recipient}: {letter}, and the host {'took' if held else 'did not take'} it")
        for point in every:
            point.healed = True
        home.daemon.process.send_signal(signal.SIGALRM)
        home.wait_empty(4 * harness.TIMEOUT)
        bounced = set()
        for text in home.messages():
            # A bounce's own paragraphs: what stands behind is the copy of the message.
            bounced |= set(re.findall(rb"^<(r\d@h\d+\.test)>:$", text.partition(b"--- Below this line")[0], re.M))
        if odd := re.findall(r"^.*[^\n -~].*$", home.log(), re.M):
            row.bad("stray", f"in the log: {odd[:3]}")
        for point, letters in wanted.items():
            for recipient, letter in zip(point.recipients, letters):
                copies, told = sum(recipient in r for r, _ in point.taken), recipient.encode() in bounced
                if told != (letter == "D"):
                    row.bad("code", f"{point}: {recipient}: {letter}, and {'bounced' if told else 'not bounced'}")
                if not copies and not told:
                    row.bad("lost", f"{point}: {recipient} has nothing, and the queue is empty")
                row.extra += max(0, copies - 1)
            if any(body != as_received(body) for _, body in point.taken):
                row.bad("half", f"{point}: {point.taken}")
    return [row]


def as_received(body):
    """What the host should have got: the Received line of our queue, which is ours to choose, and the message."""
    head = re.match(rb"Received: [^\n]*\n", body)
    return (head[0] if head else b"") + as_sent(BODY)


def cases(sample, seed):
    if sample:
        yield "a few at the greeting", wrong_at, ("greeting", True)
        yield "a few after the dot", wrong_at, ("end of data", True)
        yield "a few at the middle recipient", wrong_at, ("middle RCPT", True)
        yield "the chain", chain, (True, 6)
        return
    yield "the chain", chain, (False, 2)
    for stage in STAGES:
        yield stage, wrong_at, (stage,)
    yield "connect", no_connection, ()
    yield "beside", beside, (40,)
