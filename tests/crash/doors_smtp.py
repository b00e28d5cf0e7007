"""qmail-smtpd against clients that want to be misunderstood, compared with a strict model of RFC 5321."""

import collections
import contextlib
import os
import re
import subprocess

from tests import harness
from tests.crash.doors_rig import MEMORY_MAX, Crowd, in_memory, peak, strings
from tests.crash.report import Row
from tests.harness import Daemon, wait_for

LINE_MAX = 4096
RECIPIENTS_MAX = 1000
MAIL = {b"FROM:<a@in.test>": b"a@in.test", b"FROM:<smuggled@in.test>": b"smuggled@in.test", b"": b""}
SIZE = b"FROM:<a@in.test> SIZE=1a"
RCPT = {b"TO:<joe@test.example>": 250, b"TO:<jim@test.example>": 250, b"TO:<who@elsewhere.test>": 553, b"joe@test.example": 555, b"": 250}


def content(data):
    """What is stored of what stands between DATA and the lone dot. A CR that ends no line is kept, and so is the
    dot before one."""
    lines = data.split(b"\r\n")
    return b"\n".join(line[1:] if line[:1] == b"." and line[1:2] != b"\r" else line for line in lines)


def serve(stream):
    """What a strict server makes of all that a client sends: ([codes of its replies], [(sender, recipients, message)],
    whether it hung up first)."""
    replies, messages, at = [220], [], 0
    sender, recipients = None, []
    while True:
        end = stream.find(b"\n", at)
        if end < 0:
            return replies, messages, False
        line, at = stream[at:end], end + 1
        if len(line) > LINE_MAX:
            replies.append(500)
            continue
        verb, _, argument = line.removesuffix(b"\r").partition(b" ")
        verb, argument = verb.upper(), argument.lstrip(b" ")
        if verb in (b"HELO", b"EHLO", b"RSET"):
            sender, recipients = None, []
            replies.append(250)
        elif verb == b"NOOP":
            replies.append(250)
        elif verb == b"VRFY":
            replies.append(252)
        elif verb == b"HELP":
            replies.append(214)
        elif verb == b"QUIT":
            return replies + [221], messages, True
        elif verb == b"MAIL":
            recipients = []
            sender = address(argument, MAIL)
            replies.append(501 if argument == SIZE else 555 if sender is None else 250)
        elif verb == b"RCPT":
            code = 503 if sender is None else RCPT.get(argument, 555)
            if code == 250 and len(recipients) >= RECIPIENTS_MAX:
                code = 452
            if code == 250:
                recipients.append(argument[4:-1])
            replies.append(code)
        elif verb == b"DATA":
            if sender is None or not recipients:
                replies.append(503)
                continue
            replies.append(354)
            # As if a line had just ended: the first line of the message may be its end.
            rest = b"\r\n" + stream[at:]
            end = rest.find(b"\r\n.\r\n")
            bare = re.search(rb"(?<!\r)\n", rest[:end + 2] if end >= 0 else rest)
            if bare:
                return replies + [451], messages, True
            if end < 0:
                return replies, messages, False
            messages.append((sender, tuple(recipients), content(rest[2:end + 2])))
            at += end + 3
            sender, recipients = None, []
            replies.append(250)
        else:
            replies.append(502)


def address(argument, known):
    """Of those that are used here; b%d@in.test is a number's."""
    if match := re.fullmatch(rb"FROM:<(b\d+@in\.test)>", argument):
        return match[1]
    return known.get(argument)


class Queue:
    """A home of which only the door of the queue is open: what comes in stays, and is looked at."""

    def __init__(self):
        self.home = harness.Home(users={"joe": "x", "jim": "x"})
        self.expected = collections.Counter()
        try:
            self.home.control("rcpthosts", "test.example\n")
            self.daemon = Daemon(["qmail-queued"], env=self.home.env, cwd="/")
            wait_for(lambda: os.path.exists(self.home.file("run/queue")), "the socket run/queue")
        except BaseException:
            self.home.__exit__()
            raise
        self.env = {**self.home.env, "TCPREMOTEIP": "192.0.2.1"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.daemon.stop()
        finally:
            self.home.__exit__()

    def codes(self, said):
        """The codes of replies: a line whose fourth byte is no hyphen ends one."""
        return [int(code) for code in re.findall(rb"^(\d\d\d) [^\r\n]*\r$", said, re.M)]

    def expect(self, messages):
        self.expected.update(messages)

    def take(self):
        """All that was accepted, as (sender, recipients, message without the lines Received), and no more in the queue."""
        found = collections.Counter()
        for name in os.listdir(self.home.file("queue/todo")):
            with open(self.home.file("queue/todo", name), "rb") as f:
                records = f.read().split(b"\0")
            mess = self.home.file("queue/mess", str(int(name) % 23), name)
            with open(mess, "rb") as f:
                head, text = re.fullmatch(rb"(?s)(Received: \([^\n]*\n)Received: from [^\n]*\n  by [^\n]*\n(.*)", f.read()).groups()
            sender = next(r[1:] for r in records if r[:1] == b"F")
            found[sender, tuple(r[1:] for r in records if r[:1] == b"T"), text] += 1
            for path in (mess, self.home.file("queue/todo", name), self.home.file("queue/intd", name)):
                os.unlink(path)
        return found

    def judge(self, row):
        """What came in is what should have come in, and nothing of what was broken off is left."""
        def quiet():  # a child may still be cleaning up behind a client that left
            return len(harness.family(self.daemon.pid)) == 1
        wait_for(quiet, "the children of qmail-queued to end")
        found = self.take()
        for message in self.expected - found:
            row.bad("lost", f"acknowledged, and not in the queue: {message!r}")
        for message in found - self.expected:
            row.bad("stray" if b"smuggled" in b"".join((message[0], message[2])) else "half", f"in the queue: {message!r}")
        left = [os.path.join(d, n) for top in ("mess", "intd", "todo", "pid") for d, _, names in os.walk(self.home.file("queue", top)) for n in names]
        for name in left:
            row.bad("left", name)
        self.expected.clear()


ASK = b"HELO x\r\nMAIL FROM:<a@in.test>\r\nRCPT TO:<joe@test.example>\r\nDATA\r\n"
BEHIND = b"MAIL FROM:<smuggled@in.test>\r\nRCPT TO:<jim@test.example>\r\nDATA\r\nsmuggled\r\n.\r\nQUIT\r\n"
PLACES = {"behind text": b"Subject: x\r\n\r\nbody", "at the start of a line": b"Subject: x\r\n\r\nbody\r\n", "at the start of the message": b"",
          "behind a dot": b"Subject: x\r\n\r\nbody\r\n."}


def around_the_end(step=1, program="qmail-smtpd"):
    """Each string of CR, LF and dot up to six bytes, and behind it a message of its own that wants out."""
    in_memory()
    rows = {place: Row("qmail-smtpd", f"CR, LF and dot in every order, {place}") for place in PLACES}
    with Queue() as queue:
        def done(key, code, said):
            place, stream = key
            rows[place].tried += 1
            replies, messages, quit = serve(stream)
            if queue.codes(said) != replies or code != (0 if replies[-1] == 221 else 1):
                rows[place].bad("code", f"{stream!r}: exit {code}, {said!r} instead of {replies}")
            queue.expect(messages)
        for place, head in PLACES.items():
            with Crowd([program], queue.env, done) as crowd:
                for number, string in enumerate(strings((b"\r", b"\n", b"."), 6)):
                    if number % step == 0:
                        stream = ASK + head + string + BEHIND
                        crowd.put((place, stream), stream)
            queue.judge(rows[place])
    return list(rows.values())


WORDS = [b"HELO x\r\n", b"EHLO x\r\n", b"MAIL FROM:<a@in.test>\r\n", b"MAIL a@in.test\r\n", b"RCPT TO:<joe@test.example>\r\n",
         b"RCPT TO:<who@elsewhere.test>\r\n", b"DATA\r\n", b"RSET\r\n", b"XXXX\r\n", b"NOOP\r\n", b"MAIL " + SIZE + b"\r\n", b"RCPT joe@test.example\r\n"]
TEXT = b"text\r\n.\r\n"
AT_ONCE = 2000  # orders in one session


def orders(longest, part, parts):
    """Every order of so many commands. A message follows DATA where the model says 354: a server of another mind
    takes it for commands, and every reply behind it shows that."""
    in_memory()
    row = Row("qmail-smtpd", f"every order of up to {longest} commands out of {len(WORDS)}")
    every = [order for number, order in enumerate(sequences(len(WORDS), longest)) if number % parts == part]
    with Queue() as queue:
        def done(stream, code, said):
            replies, messages, _ = serve(stream)
            if queue.codes(said) != replies:
                where = next((n for n, (a, b) in enumerate(zip(queue.codes(said), replies)) if a != b), min(len(said), len(replies)))
                row.bad("code", f"reply {where} of a long session: {queue.codes(said)[where - 5:where + 3]} instead of {replies[where - 5:where + 3]}")
            queue.expect(messages)
        with Crowd(["qmail-smtpd"], queue.env, done) as crowd:
            for at in range(0, len(every), AT_ONCE):
                stream = b"".join(b"HELO again\r\n" + talk(order) for order in every[at:at + AT_ONCE])
                row.tried += len(every[at:at + AT_ONCE])
                crowd.put(stream, stream)
        queue.judge(row)
    return [row]


def sequences(letters, longest):
    order = [()]
    for _ in range(longest):
        order = [o + (n,) for o in order for n in range(letters)]
        yield from order


def talk(order):
    """The bytes of one order."""
    said, has_sender, has_recipient = b"", False, False
    for n in order:
        word = WORDS[n]
        said += word
        if word[:4] == b"DATA":
            if has_recipient:
                said += TEXT
                has_sender = has_recipient = False
        elif word[:4] == b"RCPT":
            has_recipient |= has_sender and b"TO:<joe" in word
        elif word[:4] not in (b"XXXX", b"NOOP"):
            has_sender, has_recipient = word == b"MAIL FROM:<a@in.test>\r\n", False
    return said


def behind_quit():
    """Nothing that stands behind QUIT is done, wherever it is said."""
    in_memory()
    row = Row("qmail-smtpd", "QUIT after every order of up to 3 commands, and a message behind it")
    with Queue() as queue:
        def done(stream, code, said):
            row.tried += 1
            replies, messages, _ = serve(stream)
            if queue.codes(said) != replies or code != 0:
                row.bad("code", f"{stream!r}: exit {code}, {said!r} instead of {replies}")
            queue.expect(messages)
        with Crowd(["qmail-smtpd"], queue.env, done) as crowd:
            for order in sequences(len(WORDS), 3):
                stream = talk(order) + b"QUIT\r\n" + BEHIND
                crowd.put(stream, stream)
        queue.judge(row)
    return [row]


VERBS = (b"HELO", b"EHLO", b"MAIL", b"RCPT", b"DATA", b"RSET", b"NOOP", b"VRFY", b"HELP", b"QUIT", b"AUTH", b"STARTTLS", b"BDAT", b"XXXX", b"")


def floods(scale):
    """Much of everything; what was asked before and behind it is answered, in bounded memory."""
    in_memory()
    row = Row("qmail-smtpd", "lines of a megabyte, NULs, 100,000 recipients")
    mega = b"x" * scale
    trials = {f"{verb.decode()} and a line of {scale} bytes": verb + b" " + mega + b"\r\n" for verb in VERBS}
    trials |= {f"{verb.decode()}, a colon, brackets": verb + b" FROM:<" + b"<" * scale + b"\r\n" for verb in (b"MAIL", b"RCPT")}
    trials |= {
        "a line of NULs": b"\0" * scale + b"\r\n", "a line of CRs": b"\r" * scale + b"\n", "empty lines": b"\r\n" * (scale // 10),
        "recipients": b"MAIL FROM:<a@in.test>\r\n" + b"RCPT TO:<joe@test.example>\r\n" * (scale // 10),
        "recipients nobody here knows": b"MAIL FROM:<a@in.test>\r\n" + b"RCPT TO:<who@elsewhere.test>\r\n" * (scale // 10),
        "senders": b"MAIL FROM:<a@in.test>\r\n" * (scale // 10),
        "RSET": b"RSET\r\n" * (scale // 10),
    }
    trials |= {f"NUL in {verb.decode()}": b"".join(verb[:n] + b"\0" + verb[n:] + b" <a@in.test>\r\n" for n in range(len(verb) + 1)) for verb in VERBS
               if verb not in (b"HELO", b"EHLO")}
    with Queue() as queue:
        for name, text in trials.items():
            row.tried += 1
            stream = b"HELO x\r\n" + text + ASK + b"whole\r\n.\r\n"
            replies, messages, ended = serve(stream)
            out = os.memfd_create("out")
            os.fchmod(out, 0o666)
            process = subprocess.Popen([harness.program("qmail-smtpd")], env=queue.env, stdin=subprocess.PIPE, stdout=out)
            try:
                try:
                    process.stdin.write(stream)
                    process.stdin.flush()
                except BrokenPipeError:
                    pass

                def said():
                    return os.pread(out, os.fstat(out).st_size, 0)
                wait_for(lambda: len(queue.codes(said())) >= len(replies) or process.poll() is not None, f"replies to {name}", 3 * harness.TIMEOUT)
                if process.poll() is None and (used := peak(process.pid)) > MEMORY_MAX:
                    row.bad("code", f"{name}: {used} KiB of memory")
                if queue.codes(said()) != replies:
                    row.bad("code", f"{name}: {said()[-300:]!r} instead of {replies[-5:]}")
                queue.expect(messages)
            finally:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
                process.wait(harness.TIMEOUT)
                os.close(out)
        queue.judge(row)
    return [row]
