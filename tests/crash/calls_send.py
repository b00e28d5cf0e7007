"""Every call of qmail-send, by each way that a message can go."""

import os
import re
import signal

from tests.crash.calls_queue import SENDER, TEXT, strip
from tests.crash.calls_rig import AHEAD, Healer, Stage, World, clear, files_of
from tests.queue_rig import CONTENT, Queue

RECORDS = ("todo/", "info/", "local/", "remote/", "bounce/")


def local(n=1):
    return [f"l{i}@local.example".encode() for i in range(n)]


def remote(n=1):
    return [f"r{i}@remote.example".encode() for i in range(n)]


class Numbered(Queue):
    """A queue in which all messages lie in one directory of the 23: loops over them are the same each time."""

    at = 5

    def message(self, content=CONTENT):
        spare = []
        while True:
            name = self.write("queue/pid/new", content)
            number = os.stat(name).st_ino
            if number % 23 == self.at:
                break
            spare.append(f"{name}.{number}")
            os.rename(name, spare[-1])
        for file in spare:
            os.unlink(file)
        os.rename(name, self.file(f"queue/mess/{self.at}/{number}"))
        return number


class Sending(Stage):
    """qmail-send, with everybody around it played; it goes on in step until nothing is left, and is then told to stop."""

    late = True
    verdicts = {}  # {recipient: letters of its reports, the last for good}; K if it is not there

    def enter(self, stack):
        self.home = stack.enter_context(Numbered(locals="local.example\n"))
        self.home.mkdir("run")
        del self.home.env["QMAILDOOR"]  # bounces go by the socket
        self.healer = Healer(self.home, self.tools, self.answer)
        self.world = None

    def put(self):
        """Messages into the queue: {text: recipients}."""
        raise NotImplementedError

    def answer(self, request):
        letters = self.verdicts.get(request.recipient, "K")
        letter = letters[min(self.tries.get(request.recipient, 0), len(letters) - 1)]
        self.tries[request.recipient] = self.tries.get(request.recipient, 0) + 1
        return f"{letter}said\n".encode()

    def prepare(self):
        self.tries, self.expected, self.alarmed, self.stopped, self.begun = {}, {}, False, False, False
        if not self.late:
            self.expected = self.put()
        if self.world:
            self.world.close()
        self.world = World(self.home, self.tools, self.answer, script=self.script)
        return ["qmail-send"], self.home.env, self.world.open(greeted=self.late)

    def told(self, pid):
        self.world.told(pid)

    def step(self, milliseconds):
        return self.world.step(milliseconds)

    def script(self, world):
        if self.late and not self.begun:
            if "status: local 0/" not in world.lines():
                return False
            self.begun = True
            self.expected = self.put()
            self.home.pull()
            return True
        if self.stopped:
            return False
        if not any(name.startswith(RECORDS) for name in files_of(self.home)):
            self.stopped = True
            world.signal(signal.SIGTERM)
            return True
        if not self.alarmed and any(report[:1] == b"Z" for _, _, report in world.requests):
            self.alarmed = True
            world.signal(signal.SIGALRM)
            return True
        return False

    def judge(self, run, fault):
        world, wrong = self.world, []
        if run is None:
            clear(self.home)
            return []
        if fault is None and world.jumps:
            wrong.append(("stuck", f"without a fault: {world.jumps} waits in vain"))
        if world.stuck:
            wrong.append(("stuck", f"{world.stuck}; log:\n{world.lines()}"))
        if fault and fault.word != "SIGKILL" and not run.killed() and run.code not in (0, 111):
            wrong.append(("code", f"ended with {run.statuses}"))
        if self.late and not self.begun:
            self.begun, self.expected = True, self.put()
        before = sorted(files_of(self.home))
        for name in self.verdicts:  # who was deferred is not deferred again
            self.tries[name] = max(1, self.tries.get(name, 0))
        healed = self.healer.heal()
        if healed.left:
            wrong.append(("left", f"{healed.left}, of {before}"))
        if healed.stuck:
            wrong.append(("stuck", f"a new start on {before}: {healed.stuck}\n{healed.log}"))
        delivered = world.delivered() + healed.delivered
        bounced = [b for b in world.bounces + healed.bounced]
        wanted = {recipient for recipients in self.expected.values() for recipient in recipients}
        failing = {r for r in wanted if self.verdicts.get(r, "K")[-1] == "D"}
        for way, sender, recipient, content in delivered:
            if strip(content) not in self.expected:
                wrong.append(("half", f"delivered: {content}"))
            elif recipient not in self.expected[strip(content)] or sender != SENDER or (way == "local") != (b"local" in recipient):
                wrong.append(("stray", f"delivered from {sender} to {recipient}, {way}"))
        for text, recipients in self.expected.items():
            for recipient in recipients - failing:
                copies = sum(d[2] == recipient and strip(d[3]) == text for d in delivered)
                if not copies:
                    wrong.append(("lost", f"{recipient} of {text[:30]}, from {before}\n{world.lines()}\n{healed.log}"))
                self.extra += max(0, copies - 1)
            for recipient in recipients & failing:
                told = sum(b"<" + recipient + b">:\nsaid\n" in message and message.endswith(text) for message, _ in bounced)
                if not told:
                    wrong.append(("lost", f"no bounce for {recipient}, from {before}\n{world.lines()}\n{healed.log}"))
                self.extra += max(0, told - 1)
        for message, envelope in bounced:
            if envelope != b"F\0T" + SENDER + b"\0\0":
                wrong.append(("stray", f"a bounce to {envelope}"))
            if any(b"<" + recipient + b">:\n" in message for recipient in wanted - failing):
                wrong.append(("code", f"bounced, without a failure: {message}"))
            if not any(message.endswith(text) for text in self.expected):
                wrong.append(("half", f"a bounce: {message}"))
        return wrong


class Single(Sending):
    """One message of the name's kind, handed in while qmail-send sleeps."""

    recipients = ()

    def put(self):
        self.home.todo(SENDER, self.recipients, TEXT, pull=False)
        return {TEXT: set(self.recipients)}


class Short(Single):
    name = "qmail-send, the short way"
    recipients = local() + remote()


class ShortBounce(Single):
    name = "qmail-send, the short way with a bounce"
    recipients = local() + remote()
    verdicts = {remote()[0]: "D"}


class Change(Single):
    name = "qmail-send, a deferral: change of way"
    thin = 2
    recipients = local(2) + remote()
    verdicts = {local()[0]: "ZK", remote()[0]: "D"}


class Long(Single):
    name = "qmail-send, the long way"
    thin = 2
    recipients = local(5) + remote(5)


class LongBounce(Single):
    name = "qmail-send, the long way with a deferral and a bounce"
    thin = 2
    recipients = local(5) + remote(4)
    verdicts = {remote()[0]: "ZK", local()[0]: "D"}


class Start(Sending):
    """Everything there is in a queue, found at the start; all of it is 40 hours old."""

    name = "qmail-send, a start on every state"
    late = False
    thin = 6
    options = ("-t", str(AHEAD))
    verdicts = {remote()[0]: "D"}

    def put(self):
        home, texts = self.home, [f"Subject: found {n}\n\nx\n".encode() for n in range(8)]
        home.todo(SENDER, local(), texts[0], pull=False)  # S4
        again = home.preprocessed(SENDER, local=[b"T" + local()[0]], content=texts[1])  # S4, where T18 was not done
        home.todo(SENDER, local(), texts[1], number=again, pull=False)
        home.preprocessed(SENDER, local=[b"D" + local()[0], b"T" + local(2)[1]], remote=[b"T" + remote()[0]], content=texts[2])  # S5
        ended = home.preprocessed(SENDER, content=texts[3])  # S5 at its end, with a bounce
        home.write(f"queue/bounce/{ended}", b"<r0@remote.example>:\nsaid\n\n")
        home.message(texts[4])  # S2
        torn = home.message(texts[5])  # S3
        home.write(f"queue/intd/{torn}", b"u1\0p1\0")
        home.preprocessed(SENDER, remote=[b"T" + remote(2)[1]], content=texts[6], record=False)  # of an older make
        return {texts[0]: set(local()), texts[1]: set(local()), texts[2]: {local(2)[1], remote()[0]}, texts[3]: {remote()[0]},
                texts[6]: {remote(2)[1]}}

    def points(self, found):
        """What is done for each of 23 directories alike is tried for the first, and for that with messages."""
        wanted = {"0", str(Numbered.at)}
        kept, within = [], None
        for point in found:
            if m := re.fullmatch(r"(?:info|local|remote|mess)/(\d+)", point.text):
                within = m[1]
            elif point.call.startswith("open"):
                within = None
            if within is None or within in wanted:
                kept.append(point)
        return kept
