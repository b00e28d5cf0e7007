"""Every call of what hands mail in, and of what brings it to its place."""

import contextlib
import os
import re
import shutil
import socket
import threading
import time

from tests import harness, spawners, tinycdb
from tests.crash.calls_queue import SENDER, TEXT, Accepting
from tests.crash.calls_rig import AHEAD, Healer, Stage, children, clear, files_of, filled, is_idle, process_state, traced
from tests.spawners import request

UID, GID = harness.owner()[1:]
WIRE = TEXT.replace(b"\n", b"\r\n")
ME = "test.example"
PATIENCE = 10_000  # milliseconds that a client waits for a server that waits for somebody else


def null():
    return os.open("/dev/null", os.O_WRONLY)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def exit_answer(run):
    """What an exit code of a program that people and scripts run says."""
    if run.code is None:
        return None
    return {0: "done", 111: "later", 100: "never"}.get(run.code, f"exit {run.code}")


# -- handing in

class MovedHealer(Healer):
    """The door of the real qmail-queued is out of the way of the played one meanwhile."""

    def heal(self, files=None):
        files = files_of(self.home) if files is None else files
        if not files:
            return super().heal(files)
        path = self.home.file("run/queue")
        os.rename(path, path + "~")
        try:
            return super().heal(files)
        finally:
            os.rename(path + "~", path)


class Handing(Accepting):
    """A program that hands a message to a real qmail-queued, in which no fault is."""

    recipients = (b"joe@test.example",)

    def enter(self, stack):
        self.home = stack.enter_context(harness.Home(me=ME))
        self.daemon = stack.enter_context(harness.Daemon(["qmail-queued"], env=self.home.env))
        harness.wait_for(lambda: os.path.exists(self.home.file("run/queue")), "the socket")
        self.healer = MovedHealer(self.home, self.tools)
        self.out = os.path.join(self.tools.base, "out")

    def output(self):
        return os.open(self.out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def strip(self, content):
        """The subject and the body: programs put other lines at the head."""
        head, end, body = (content or b"").partition(b"\n\n")
        return b"".join(line for line in head.split(b"\n") if line.startswith(b"Subject:")) + end + body

    def settle(self):
        """Whoever took the message has ended. It may not have begun: who asks behind it is served behind it."""
        with socket.socket(socket.AF_UNIX) as s, contextlib.suppress(OSError):
            s.settimeout(harness.TIMEOUT)
            s.connect(self.home.file("run/queue"))
            s.shutdown(socket.SHUT_WR)
            while s.recv(100):
                pass
        deadline = time.monotonic() + harness.TIMEOUT
        while not all(map(is_idle, children(self.daemon.pid))):
            if time.monotonic() > deadline:
                raise AssertionError("the workers of qmail-queued do not end")
            time.sleep(0.0005)

    def judge(self, run, fault):
        self.settle()
        if run is None:
            clear(self.home)
            return []
        return self.outcome({TEXT: self.answer(run)}, fault)

    def answer(self, run):
        return exit_answer(run)


class Inject(Handing):
    name = "qmail-inject"
    argv = ["qmail-inject", "-f", SENDER.decode(), "-a", "joe@test.example"]

    def prepare(self):
        return self.argv, self.home.env, {0: filled(TEXT), 1: self.output(), 2: null()}


class Sendmail(Inject):
    name = "sendmail"
    argv = ["sendmail", "-f", SENDER.decode(), "joe@test.example"]


class Forward(Inject):
    name = "forward"
    argv = ["forward", "joe@test.example"]

    def prepare(self):
        argv, env, fds = super().prepare()
        return argv, {**env, "NEWSENDER": SENDER.decode(), "DTLINE": "Delivered-To: x@test.example\n"}, fds


class Smtpd(Handing):
    """Two messages in one connection: the second one finds the fault gone."""

    name = "qmail-smtpd, DATA"

    def prepare(self):
        self.second = TEXT.replace(b"known", b"second")
        self.texts = [TEXT, self.second]
        r, self.to = os.pipe()
        self.todo, self.heard, self.answers, self.bad, self.sent, self.patience = [b"EHLO x"], 0, [], [], b"", PATIENCE
        env = {**self.home.env, "TCPREMOTEIP": "127.0.0.1", "TCPREMOTEHOST": "x", "TCPLOCALHOST": ME}
        return ["qmail-smtpd"], env, {0: r, 1: self.output(), 2: null()}

    def told(self, pid):
        self.pid = pid

    def replies(self):
        return [line for line in read(self.out).split(b"\r\n")[:-1] if line[3:4] == b" "]

    def step(self, milliseconds):
        """A client that waits for each answer."""
        replies = self.replies()
        if len(replies) <= self.heard:
            # It waits for qmail-queued - or has lost its way.
            self.patience -= milliseconds is not None
            time.sleep(0.001)
            if self.patience:
                return b"g"
            self.close()
            return b"j"
        self.patience = PATIENCE
        reply, self.heard = replies[-1], len(replies)
        if reply.startswith(b"5"):
            self.bad.append(reply)
        if reply.startswith(b"354"):
            self.say(self.texts[len(self.answers)].replace(b"\n", b"\r\n") + b".")
            return b"g"
        if self.sent in (b"DATA", b"text") or not reply.startswith(b"2"):
            self.answers.append("done" if self.sent == b"text" and reply.startswith(b"2") else "later")
            self.todo = []
        if not self.todo and len(self.answers) < len(self.texts):
            self.todo = [b"MAIL FROM:<" + SENDER + b">", b"RCPT TO:<joe@test.example>", b"DATA"]
        self.say(self.todo.pop(0) if self.todo else b"QUIT")
        return b"g"

    def say(self, line):
        self.sent = b"text" if line.endswith(b"\n.") else line
        with contextlib.suppress(OSError):
            os.write(self.to, line + b"\r\n")

    def close(self):
        if self.to is not None:
            os.close(self.to)
            self.to = None

    def after(self, run):
        self.close()
        # What was said before it ended.
        replies = self.replies()
        if len(replies) > self.heard and self.sent == b"text":
            self.answers.append("done" if replies[self.heard].startswith(b"2") else "later")

    def judge(self, run, fault):
        self.settle()
        if run is None:
            clear(self.home)
            return []
        wrong = [("code", f"{line}") for line in self.bad]
        answers = dict(zip(self.texts, [*self.answers, None, None]))
        return wrong + self.outcome(answers, fault)


# -- qmail-local

class Local(Stage):
    """One delivery, and then, unless it was done, the same again without a fault."""

    user = (UID, GID)
    ours = ("qmail-local",)
    instructions = ""

    def enter(self, stack):
        self.home = stack.enter_context(harness.Home(me=ME))
        self.place = self.home.file("home/joe")
        self.home.write("message", TEXT)
        self.out = os.path.join(self.tools.base, "out")

    def argv(self):
        return ["qmail-local", "--", "joe", self.place, "joe", "", "", ME, SENDER.decode(), "./Maildir/"]

    def prepare(self):
        self.reset()
        if self.instructions:
            self.home.dotqmail(".qmail", self.instructions)
        return self.arguments()

    def reset(self):
        """The mailboxes as they were at first."""
        raise NotImplementedError

    def found(self):
        """What has been delivered: contents."""
        raise NotImplementedError

    HEAD = b"Return-Path: <" + SENDER + b">\nDelivered-To: joe@test.example\n"

    def again(self):
        argv, env, fds = self.arguments()
        return traced(self.tools, ["-t", "0", "-u", str(UID), "-g", str(GID)], [harness.program(argv[0]), *argv[1:]], env, fds)

    def arguments(self):
        out = os.open(self.out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        return self.argv(), self.home.env, {0: os.open(self.home.file("message"), os.O_RDONLY), 1: out, 2: os.dup(out)}

    def judge(self, run, fault):
        if run is None:
            self.reset()
            return []
        wrong, answer = [], exit_answer(run)
        said = read(self.out)
        before = self.found()
        if answer == "done" and len(before) != 1:
            wrong.append(("lost" if not before else "half", f"exit 0, and there are {len(before)} copies: {said}"))
        if answer == "never" or answer and answer.startswith("exit"):
            wrong.append(("code", f"{answer}: {said}"))
        wrong += [("half", f"{answer}: {content}") for content in before if not self.is_whole(content)]
        wrong += self.beside()
        if fault is None and answer != "done":
            wrong.append(("code", f"without a fault: {answer}, {said}"))
        if answer != "done":
            self.extra += bool(before)
            then = self.again()
            after = self.found()
            if then.code != 0 or len(after) != len(before) + 1:
                wrong.append(("stuck", f"the next try: {then.statuses}, {read(self.out)}; {len(before)} copies and then {len(after)}"))
            wrong += [("half", f"the next try, behind {answer}: {content}") for content in after if not self.is_whole(content)]
            wrong += self.beside()
        return wrong + self.left()

    def is_whole(self, content):
        return content == self.HEAD + TEXT

    def beside(self):
        """What came where it should not."""
        return []

    def left(self):
        return []


class Maildir(Local):
    name = "qmail-local, Maildir"

    def reset(self):
        for sub in ("tmp", "new", "cur"):
            for name in os.listdir(f"{self.place}/Maildir/{sub}"):
                os.unlink(f"{self.place}/Maildir/{sub}/{name}")

    def found(self):
        return [read(f"{self.place}/Maildir/new/{name}") for name in os.listdir(f"{self.place}/Maildir/new")]

    def left(self):
        """What lies in tmp goes when it is old and the user reads mail."""
        if not os.listdir(f"{self.place}/Maildir/tmp"):
            return []
        before = self.found()
        run = traced(self.tools, ["-t", str(AHEAD), "-u", str(UID), "-g", str(GID)], [harness.program("qmail-pop3d"), f"{self.place}/Maildir"],
                     self.home.env, {0: filled(b"QUIT\r\n"), 1: null(), 2: null()})
        tmp = os.listdir(f"{self.place}/Maildir/tmp")
        cur = [read(f"{self.place}/Maildir/cur/{name}") for name in os.listdir(f"{self.place}/Maildir/cur")]
        if tmp or run.code or sorted(cur + self.found()) != sorted(before):
            return [("left", f"in Maildir/tmp 40 hours later: {tmp}; qmail-pop3d: {run.statuses}")]
        return []


class Mbox(Local):
    name = "qmail-local, mbox"
    instructions = "./Mailbox\n"
    old = b"From x Sat Nov 21 00:00:00 2026\nSubject: old\n\nold\n\n"

    def reset(self):
        self.home.write("home/joe/Mailbox", self.old, 0o600)

    def found(self):
        """Torn ends are no message yet: the next try cuts them off."""
        text = read(f"{self.place}/Mailbox")
        if not text.startswith(self.old):
            return [text]
        found = re.split(rb"(?m)^(?=From )", text[len(self.old):])[1:]
        return [content for content in found if content.endswith(b"last line\n\n")]

    def is_whole(self, content):
        first, _, rest = content.partition(b"\n")
        return first.startswith(b"From " + SENDER) and rest == self.HEAD + TEXT + b"\n"

    def beside(self):
        """Behind a delivery that was done there is nothing torn."""
        text = read(f"{self.place}/Mailbox")
        whole = self.old + b"".join(self.found())
        if not text.startswith(self.old):
            return [("lost", f"what was there before: {text}")]
        if not text.startswith(whole):
            return [("half", f"a torn message before a whole one: {text}")]
        return []

    def left(self):
        text = read(f"{self.place}/Mailbox")
        return [("left", f"{text}")] if text != self.old + b"".join(self.found()) else []


class Program(Local):
    name = "qmail-local, a program"
    instructions = "|cat >\"came.$$\" && mv \"came.$$\" \"whole.$$\"\n"

    def reset(self):
        for name in os.listdir(self.place):
            if name.startswith(("came", "whole")):
                os.unlink(f"{self.place}/{name}")

    def found(self):
        return [read(f"{self.place}/{name}") for name in os.listdir(self.place) if name.startswith("whole")]

    def is_whole(self, content):
        return content == TEXT


class Forwarding(Handing):
    """A .qmail line that forwards."""

    name = "qmail-local, forward"
    user = (UID, GID)
    ours = ("qmail-local",)

    def enter(self, stack):
        super().enter(stack)
        self.home.write("message", TEXT)
        self.home.dotqmail(".qmail", "&joe@test.example\n")

    def prepare(self):
        out = self.output()
        argv = ["qmail-local", "--", "joe", self.home.file("home/joe"), "joe-x", "", "", ME, SENDER.decode(), "./Maildir/"]
        return argv, self.home.env, {0: os.open(self.home.file("message"), os.O_RDONLY), 1: out, 2: os.dup(out)}


# -- qmail-pop3d

class Pop(Stage):
    """A client reads two messages and deletes the first when it has come; a third one is left alone."""

    name = "qmail-pop3d: RETR, DELE, QUIT"
    user = (UID, GID)

    def enter(self, stack):
        self.base = harness.scratch()
        stack.callback(shutil.rmtree, self.base, ignore_errors=True)
        self.out = os.path.join(self.tools.base, "out")
        self.texts = {f"{n}.x.y": TEXT.replace(b"known", b"number %d" % n) for n in (1, 2, 3)}

    def prepare(self):
        shutil.rmtree(f"{self.base}/Maildir", ignore_errors=True)
        for sub in ("", "tmp", "new", "cur"):
            path = f"{self.base}/Maildir/{sub}".rstrip("/")
            os.mkdir(path)
            os.chown(path, UID, GID)
        for name, text in self.texts.items():
            with open(f"{self.base}/Maildir/new/{name}", "wb") as f:
                f.write(text)
            os.chown(f.name, UID, GID)
            os.utime(f.name, (1e9 + int(name[0]), 1e9 + int(name[0])))
        r, self.to = os.pipe()
        self.sent, self.todo = [b""], [b"RETR 1", b"DELE 1", b"RETR 2", b"STAT", b"QUIT"]
        return ["qmail-pop3d", f"{self.base}/Maildir"], {"PATH": os.environ["PATH"]}, {
            0: r, 1: os.open(self.out, os.O_RDWR | os.O_CREAT | os.O_TRUNC), 2: null()}

    def answers(self):
        """{command: its whole answer}."""
        rest, found = read(self.out), {}
        for command in self.sent:
            end = b"\r\n.\r\n" if command.startswith(b"RETR") and rest.startswith(b"+OK") else b"\r\n"
            answer, end, rest = rest.partition(end)
            if not end:
                break
            found[command] = answer + b"\r\n"
        return found

    def step(self, milliseconds):
        answers = self.answers()
        if self.sent[-1] not in answers or not self.todo:
            self.close()
            return b"j"
        if not answers[self.sent[-1]].startswith(b"+OK") and self.todo[0].startswith(b"DELE"):
            self.todo.pop(0)
        self.sent.append(self.todo.pop(0))
        with contextlib.suppress(OSError):
            os.write(self.to, self.sent[-1] + b"\r\n")
        return b"g"

    def close(self):
        if self.to is not None:
            os.close(self.to)
            self.to = None

    def after(self, run):
        self.close()

    def judge(self, run, fault):
        if run is None:
            return []
        wrong, said, found = [], read(self.out), {}
        for sub in ("new", "cur"):
            for name in os.listdir(f"{self.base}/Maildir/{sub}"):
                found[name.partition(":")[0]] = read(f"{self.base}/Maildir/{sub}/{name}")
        answers, shown = self.answers(), {}
        for command in (b"RETR 1", b"RETR 2"):
            answer = answers.get(command, b"")
            if answer.startswith(b"+OK"):
                content = answer.partition(b"\r\n")[2].replace(b"\r\n", b"\n")
                names = [name for name, text in self.texts.items() if content in (text, text + b"\n")]
                if not names:
                    wrong.append(("half", f"sent as whole: {content}"))
                shown[command] = names
        deleted = shown.get(b"RETR 1", []) if b"DELE 1" in self.sent else []
        for name, text in self.texts.items():
            if name not in found and name not in deleted:
                wrong.append(("lost", f"{name} is gone; it was not asked for: {said}"))
            elif name in found and found[name] != text:
                wrong.append(("lost", f"{name} is {found[name]}; answers: {said}"))
        if all(answers.get(c, b"").startswith(b"+OK") for c in (b"DELE 1", b"QUIT")) and any(name in found for name in deleted):
            wrong.append(("code", f"DELE and QUIT were answered +OK, and the message is there: {said}"))
        if fault is None and ("1.x.y" in found or len(shown) != 2 or len(answers) != 6 or run.code):
            wrong.append(("code", f"without a fault: {run.statuses} {said} {found}"))
        return wrong


# -- qmail-remote

class Server:
    """A host that takes everything, and notes what it took: whole messages with their recipients."""

    def __init__(self):
        self.taken, self.wrong = [], []
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen()
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            connection, _ = self.socket.accept()
            connection.settimeout(harness.TIMEOUT)
            with connection, connection.makefile("rb") as reader, contextlib.suppress(OSError):
                if self.talk(connection, reader):
                    return

    def talk(self, connection, reader):
        def say(text):
            connection.sendall(text + b"\r\n")
        say(b"220 peer")
        sender, recipients = None, []
        while line := reader.readline():
            verb = line[:4].upper()
            if verb == b"STOP":
                return True
            if verb == b"WAIT":
                say(b"250 waited")
                continue
            if not line.endswith(b"\r\n"):
                return False
            if verb == b"DATA":
                say(b"354 go on")
                body = []
                while (line := reader.readline()) != b".\r\n":
                    if not line.endswith(b"\r\n"):
                        return False
                    body.append(line[1:] if line.startswith(b".") else line)
                self.taken.append((sender, recipients, b"".join(body)))
                sender, recipients = None, []
            elif verb == b"MAIL":
                sender = line
            elif verb == b"RCPT":
                recipients.append(line[8:].strip().strip(b"<>"))
            say(b"221 bye" if verb == b"QUIT" else b"250 ok")
        return False

    def settle(self):
        """Whoever came before has been served."""
        with socket.create_connection(("127.0.0.1", self.port), harness.TIMEOUT) as s, s.makefile("rb") as reader:
            reader.readline()
            s.sendall(b"WAIT\r\n")
            reader.readline()

    def close(self):
        with socket.create_connection(("127.0.0.1", self.port), harness.TIMEOUT) as s:
            s.sendall(b"STOP\r\n")
            self.thread.join(harness.TIMEOUT)
        self.socket.close()


class Remote(Stage):
    """Two recipients of one message at one host."""

    name = "qmail-remote"
    ours = ("qmail-remote", "qmail-rspawn")
    recipients = (b"a@far.example", b"b@far.example")

    def enter(self, stack):
        self.home = stack.enter_context(harness.Home(me=ME))
        self.server = Server()
        stack.callback(self.server.close)
        self.home.control("smtproutes", f"far.example:127.0.0.1:{self.server.port}\n")
        self.home.write("message", TEXT)
        self.out = os.path.join(self.tools.base, "out")

    def output(self):
        return os.open(self.out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def prepare(self):
        self.server.taken.clear()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.home.file("queue/lock/tcpto"))
        self.home.write("queue/lock/tcpto", bytes(1024))
        return (["qmail-remote", "far.example", SENDER.decode(), *(r.decode() for r in self.recipients)], self.home.env,
                {0: os.open(self.home.file("message"), os.O_RDONLY), 1: self.output(), 2: null()})

    def verdicts(self, run):
        """(a letter for each recipient, or None; what was said)."""
        said = read(self.out)
        reports = said.split(b"\0")[:-1]
        *each, message = [r[:1] for r in reports] or [b""]
        if run.code != 0 or message not in (b"K", b"Z", b"D"):
            # Whoever started it takes that for trouble that may pass.
            return [None] * len(self.recipients), said
        letters = []
        for n in range(len(self.recipients)):
            word = each[n] if n < len(each) else b""
            if message == b"K":
                letters.append({b"r": "K", b"s": "Z", b"h": "D"}.get(word))
            else:
                letters.append("D" if word == b"h" or word != b"s" and message == b"D" else "Z")
        return letters, said

    def judge(self, run, fault):
        self.server.settle()
        if run is None:
            return []
        wrong = []
        letters, said = self.verdicts(run)
        for recipient, letter in zip(self.recipients, letters):
            copies = sum(recipient in recipients for _, recipients, _ in self.server.taken)
            if letter == "K" and copies != 1:
                wrong.append(("lost" if not copies else "half", f"success for {recipient}, who has {copies} copies: {said}"))
            if letter == "D":
                wrong.append(("code", f"refused for good: {said}"))
            if letter != "K" and copies:
                self.extra += 1
            if fault is None and (letter, copies) != ("K", 1):
                wrong.append(("code", f"without a fault: {letter}, {copies} copies: {said} {run.statuses}"))
        for sender, recipients, body in self.server.taken:
            if body != WIRE:
                wrong.append(("half", f"the host took {body}"))
            if set(recipients) - set(self.recipients) or SENDER not in sender:
                wrong.append(("stray", f"the host took it from {sender} for {recipients}"))
        if run.code not in (None, 0, 111):
            wrong.append(("code", f"ended with {run.statuses}"))
        return wrong


# -- the spawners

class Spawning(Stage):
    """Two deliveries asked for at once, then a third one, then a fourth: whichever the fault meets, others find it gone."""

    early = together = True
    thin = 8

    def told(self, pid):
        self.pid = pid

    def descriptors(self):
        (r, self.to), w = os.pipe(), os.open(self.out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self.turn = 0
        return {0: r, 1: w, 2: null()}

    def step(self, milliseconds):
        """Deliveries end while it waits, so that what it sees is always the same."""
        living = [pid for pid in children(self.pid) if process_state(pid) != "Z"]
        if living:
            harness.wait_for(lambda: all(process_state(pid) == "Z" for pid in living), "the deliveries' end")
            return b"g"
        if milliseconds == -2:
            return b"g"
        self.turn += 1
        if self.turn <= len(self.rounds):
            with contextlib.suppress(BrokenPipeError):
                os.write(self.to, self.rounds[self.turn - 1])
        elif self.to is not None:
            os.close(self.to)
            self.to = None
        elif self.turn > 50:
            os.kill(self.pid, 9)
        else:
            return b"j"
        return b"g"

    def after(self, run):
        self.left = self.to is not None  # before it was told to: qmail-send sees that, and all of it starts again
        if self.to is not None:
            os.close(self.to)
            self.to = None

    left = False

    def forget(self):
        """The ledger of what was delivered before."""
        for way in ("local", "remote"):
            with contextlib.suppress(FileNotFoundError):
                os.truncate(self.home.file(f"queue/lock/ledger.{way}"), 0)

    def points(self, found):
        """Of the same call made for each row of the ledger, the first two and the last two."""
        kept = []
        for at, point in enumerate(found):
            around = [p.call for p in found[max(0, at - 2):at + 3] if p.process == point.process]
            if around != [point.call] * 5:
                kept.append(point)
        return kept

    def reports(self):
        """({slot: letter}, what was said)."""
        said = read(self.out)
        found = {}
        for report in said[1:].split(b"\0")[:-1]:
            found[report[0]] = report[1:2].decode("latin-1")
        return found, said


class Lspawn(Spawning):
    """In a system home, by root, for two users, each with a Maildir of their own."""

    name = "qmail-lspawn, for two users of a system home"
    ours = ("qmail-lspawn",)
    users = {"joe": (UID + 1, GID), "ann": (UID - 1, GID)}

    def enter(self, stack):
        self.home = spawners.SystemHome()
        stack.callback(self.home.remove)
        self.out = os.path.join(self.tools.base, "out")
        records = []
        for name, (uid, gid) in self.users.items():
            place = self.home.file(name)
            os.mkdir(place, 0o700)
            os.chown(place, uid, gid)
            for sub in ("", "tmp", "new", "cur"):
                os.mkdir(f"{place}/Maildir/{sub}".rstrip("/"), 0o700)
                os.chown(f"{place}/Maildir/{sub}".rstrip("/"), uid, gid)
            records.append((b"!" + name.encode() + b"\0", f"{name}\0{uid}\0{gid}\0{place}\0\0".encode()))
        self.home.write("users/cdb", tinycdb.make([*records, (b"", b"")]))
        self.message = spawners.put_message(self.home, 457, TEXT)
        # Before the home in PATH, so that it takes one message each: who waits for more goes when it likes, and the runs would
        # differ. tests/test_kept_local.py and the kills try that.
        os.mkdir(self.home.file("before"), 0o755)
        shutil.copy(harness.program("qmail-local"), self.home.file("before/qmail-local"))
        self.env = {**self.home.env, "PATH": f"{self.home.file('before')}:{self.home.env['PATH']}"}

    def prepare(self):
        for name in self.users:
            for sub in ("tmp", "new", "cur"):
                for file in os.listdir(self.home.file(f"{name}/Maildir/{sub}")):
                    os.unlink(self.home.file(f"{name}/Maildir/{sub}/{file}"))
        self.forget()
        ask = [request(slot, self.message, SENDER.decode(), f"{name}@{ME}") for slot, name in enumerate(("joe", "ann"), 1)]
        self.rounds = [b"".join(ask), *(request(slot, self.message, SENDER.decode(), f"joe@{ME}") for slot in (3, 4))]
        return ["qmail-lspawn", "./Maildir/"], self.env, self.descriptors()

    def judge(self, run, fault):
        if run is None:
            return []
        letters, said = self.reports()
        wrong, copies = [], {}
        for name, (uid, gid) in self.users.items():
            place = self.home.file(f"{name}/Maildir/new")
            copies[name] = 0
            for file in os.listdir(place):
                content, status = read(f"{place}/{file}"), os.stat(f"{place}/{file}")
                if f"Delivered-To: {name}@{ME}\n".encode() not in content or (status.st_uid, status.st_gid) != (uid, gid):
                    wrong.append(("stray", f"in {name}'s mailbox, of uid {status.st_uid}: {content}"))
                elif not content.endswith(b"\n" + TEXT):
                    wrong.append(("half", f"{content}"))
                copies[name] += 1
        done = {"joe": sum(letters.get(slot) == "K" for slot in (1, 3, 4)), "ann": int(letters.get(2) == "K")}
        for name in self.users:
            if copies[name] < done[name]:
                wrong.append(("lost", f"{done[name]} reports of success for {name}, {copies[name]} copies: {said}"))
            self.extra += max(0, copies[name] - done[name])
        if "D" in letters.values():
            wrong.append(("code", f"refused for good: {said}"))
        if run.code == 0 and not self.left and (set(letters) != {1, 2, 3, 4} or "K" not in (letters[3], letters[4])):
            wrong.append(("stuck", f"it goes on, and reports {said}"))
        if fault is None and (set(letters.values()) != {"K"} or run.code):
            wrong.append(("code", f"without a fault: {said} {run.statuses}"))
        return wrong


class Rspawn(Spawning):
    """With a real qmail-remote, which talks to a real host."""

    name = "qmail-rspawn"
    ours = ("qmail-rspawn",)
    recipients = (b"a@far.example", b"b@near.example", b"c@far.example", b"d@far.example")

    def enter(self, stack):
        Remote.enter(self, stack)
        self.home.control("smtproutes", f":127.0.0.1:{self.server.port}\n")
        self.message = spawners.put_message(self.home, 457, TEXT)

    def prepare(self):
        self.server.taken.clear()
        self.forget()
        ask = [request(slot, self.message, SENDER.decode(), recipient.decode()) for slot, recipient in enumerate(self.recipients, 1)]
        self.rounds = [b"".join(ask[:2]), *ask[2:]]
        return ["qmail-rspawn"], self.home.env, self.descriptors()

    def judge(self, run, fault):
        self.server.settle()
        if run is None:
            return []
        letters, said = self.reports()
        wrong = []
        for slot, recipient in enumerate(self.recipients, 1):
            copies = sum(recipient in recipients for _, recipients, _ in self.server.taken)
            if letters.get(slot) == "K" and copies != 1:
                wrong.append(("lost" if not copies else "half", f"success for {recipient}, who has {copies} copies: {said}"))
            if letters.get(slot) == "D":
                wrong.append(("code", f"refused for good: {said}"))
            if letters.get(slot) != "K":
                self.extra += copies
        for _, recipients, body in self.server.taken:
            if body != WIRE:
                wrong.append(("half", f"the host took {body}"))
            if set(recipients) - set(self.recipients):
                wrong.append(("stray", f"the host took it for {recipients}"))
        if run.code == 0 and not self.left and (set(letters) != {1, 2, 3, 4} or "K" not in (letters[3], letters[4])):
            wrong.append(("stuck", f"it goes on, and reports {said}"))
        if fault is None and (set(letters.values()) != {"K"} or run.code):
            wrong.append(("code", f"without a fault: {said} {run.statuses}"))
        return wrong
