"""Starts qmail-send and qmail-clean on what a power cut left, and sees what becomes of it.

Many states are put into one queue: what is told apart by message numbers does not disturb one another. The spawners
are played, so that who asks for what is seen; a message that would be delivered is read as a spawner would.

A case says which messages it handed in (`Message`); what was promised about them is in the record.
"""

import collections
import dataclasses
import os
import re
import signal
import subprocess

from tests import harness
from tests.queue_rig import SPLIT, Queue, Sender, split

NUMBERED = re.compile(r"^queue/(?:(?:mess|info|local|remote)/\d+|todo|intd|bounce)/(\d+)$")
BOUNCE = b"--- Below this line is a copy of the message.\n"
BATCH = 200  # states in one queue: enough that starting costs little, few enough that each has its turn soon


@dataclasses.dataclass
class Message:
    """What was handed in. Its text holds its token, so that it is known wherever it turns up."""

    token: str
    sender: str
    recipients: dict  # address: "USER" who has a Maildir; "USER/FILE", an mbox; "fails"; ">ADDRESS", forwarded there

    @property
    def text(self):
        return (f"Subject: {self.token}\nX-Token: {self.token}.\n\n" + "".join(f"{self.token} line {n}\n" for n in range(9))).encode()


def token(content):
    found = re.search(rb"^X-Token: (.*)\.$", content, re.M)
    return found[1].decode() if found else None


@dataclasses.dataclass
class Seen:
    """A file of which only its content is known."""

    content: bytes


def writer(content):
    """The pid in the first line of a mess file."""
    return int(re.match(rb"Received: \(qmail (\d+) invoked", content)[1])


def mails(mbox):
    """The mails in an mbox, each with what stands behind it."""
    return [mail for mail in re.split(rb"(?:\A|(?<=\n\n))From .*\n", mbox)[1:]]


@dataclasses.dataclass
class Outcome:
    """What became of one state."""

    asked: set = dataclasses.field(default_factory=set)  # (token, recipient): a delivery was ordered, of the whole message
    told: set = dataclasses.field(default_factory=set)  # (token, recipient): the sender heard of its failure
    wrong: list = dataclasses.field(default_factory=list)  # (kind, text)
    aside: list = dataclasses.field(default_factory=list)
    left: set = dataclasses.field(default_factory=set)  # {frozenset of directories}: of one number, what is left where


class Judge:
    """Knows what the messages of a record are, byte for byte."""

    def __init__(self, reader, messages):
        self.messages = {m.token: m for m in messages}
        self.kept = 0  # times that an envelope was found beside another message of its number
        self.whole = collections.defaultdict(set)  # number: contents that mess had
        self.text = {}  # token: the content of mess
        for step in reader.steps:
            if step[0] == "name" and step[2] and step[1].startswith("queue/mess/"):
                self.whole[int(os.path.basename(step[1]))].add(step[2].content)
        for contents in self.whole.values():
            self.text.update((token(content), content) for content in contents if BOUNCE not in content)
        for path, file in reader.before.items():
            if path.startswith("queue/mess/"):
                self.whole[int(os.path.basename(path))].add(file.content)

    def read(self, outcome, sender, recipient, content, whole):
        """A delivery is ordered: is it one that was handed in? Returns the answer of the spawner."""
        where = f"{sender.decode()} -> {recipient.decode()}"
        known = token(content)
        if known not in self.messages or not whole:
            outcome.wrong.append(("half", f"{where}: {content[:3000]!r}"))
            return b"K"
        message = self.messages[known]
        if not sender:
            reports, line, copy = content.partition(BOUNCE)
            if recipient.decode() != message.sender:
                outcome.wrong.append(("stray", f"bounce of {known} to {recipient.decode()}"))
            elif not line or not copy.endswith(message.text):
                outcome.wrong.append(("half", f"bounce of {known}: {content!r}"))
            else:
                told = {r.decode() for r in re.findall(rb"^<(.*)>:$", reports, re.M)}
                for r in told:
                    if message.recipients.get(r) != "fails":
                        outcome.wrong.append(("code", f"{known} for {r} bounced"))
                outcome.told |= {(known, r) for r in told}
            return b"K"
        to = recipient.decode()
        forwards = [">" + to == kind for kind in message.recipients.values()]
        if sender.decode() != message.sender or to not in message.recipients and not any(forwards):
            outcome.wrong.append(("stray", f"{known}: {where}"))
            return b"K"
        if not content.endswith(message.text) or b"\0" in content:
            outcome.wrong.append(("half", f"{where}: {content!r}"))
        outcome.asked.add((known, to))
        return b"D" if message.recipients.get(to) == "fails" else b"K"

    # -- mailboxes are in the state

    def in_box(self, state, known, box, recipient):
        """Whether a message is whole in a mailbox, for this recipient of it."""
        text = self.messages[known].text
        line = f"Delivered-To: {recipient}\n".encode() if recipient else b""
        if "/" in box:
            found = state.get("home/" + box)
            return found is not None and any(line in mail and text + b"\n" in mail for mail in mails(found[1]))
        return any(re.match(f"home/{box}/Maildir/(new|cur)/", path) and content.endswith(text) and content == file.content
                   and line in content for path, (file, content) in state.items())

    def bounce_in_box(self, state, known, recipient):
        message = self.messages[known]
        user = message.sender.partition("@")[0]
        for path, (file, content) in state.items():
            if re.match(f"home/{user}/Maildir/(new|cur)/", path) and token(content) == known and content == file.content:
                reports, line, copy = content.partition(BOUNCE)
                if line and f"<{recipient}>:\n".encode() in reports and copy.endswith(message.text):
                    return True
        return False

    def verdict(self, state, promised, outcome):
        """[(kind, text)]: what is wrong with this state, given what had been promised."""
        found = list(outcome.wrong)
        for path, (file, content) in state.items():
            if re.match(r"home/\w+/Maildir/(new|cur)/", path) and content != file.content:
                found.append(("half", f"{path}: {content!r}"))
        for promise in promised:
            if promise[0] == "delivered":
                _, known, box, recipient = promise
                if not self.in_box(state, known, box, recipient):
                    found.append(("lost", f"{known} was reported to be in {box}"))
            elif promise[0] == "accepted":
                known = promise[1]
                for recipient, kind in self.messages[known].recipients.items():
                    if not self.served(state, known, recipient, kind, outcome):
                        found.append(("lost", f"{known} for {recipient}: kept aside {outcome.aside}" if outcome.aside else
                                      f"{known} for {recipient}"))
            elif promise[0] == "gone":
                _, known, box, recipient = promise
                if self.in_box(state, known, box, recipient):
                    found.append(("code", f"{known} was deleted from {box}, and is there"))
        for there, line in outcome.aside:
            # An old envelope beside a new message is told from damage by nobody: it is kept, and shown.
            if len(self.whole[there]) > 1:
                self.kept += 1
            elif not any(kind == "lost" for kind, _ in found):
                found.append(("left", line))
        return found

    def second_copies(self, state, outcome):
        """Deliveries that are ordered once more."""
        kinds = [(known, r, self.messages[known].recipients.get(r, "fails")) for known, r in outcome.asked]
        return sum(self.in_box(state, known, kind, r) for known, r, kind in kinds if kind != "fails" and not kind.startswith(">"))

    def served(self, state, known, recipient, kind, outcome):
        if kind == "fails":
            return (known, recipient) in outcome.told or self.bounce_in_box(state, known, recipient)
        if (known, recipient) in outcome.asked:
            return True
        if kind.startswith(">"):
            target = kind[1:]
            return (known, target) in outcome.asked or self.in_box(state, known, target.partition("@")[0], target)
        return self.in_box(state, known, kind, recipient)


class Player(Sender):
    """qmail-send with a qmail-clean of its own, and the spawners played."""

    def _clean(self):
        self.cleaner = subprocess.Popen([harness.program("qmail-clean")], env=self.queue.env, cwd="/", stdin=self.parent[5],
                                        stdout=self.parent[6], stderr=subprocess.DEVNULL)
        # Its ends of the pipes are now its own; ours would keep it from seeing the end.
        os.close(self.parent.pop(5))
        os.close(self.parent.pop(6))
        self.cleaner.wait()


class Bench:
    """One queue for many states."""

    def __init__(self, judge, env=None):
        self.judge = judge
        self.queue = Queue(locals="test.example\n", me="test.example\n", concurrencylocal="200\n")
        os.symlink(harness.program("qmail-queue"), self.queue.file("bin/qmail-queue"))
        self.queue.env.update(env or {})
        self.owners = {}  # number here: state's index

    def close(self):
        self.queue.__exit__()

    def build(self, index, state):
        """The files of a state. Numbers are what this file system gives; {number there: number here}."""
        paths = {path: value for path, value in state.items() if NUMBERED.match(path)}
        numbers, made = {}, {}
        for path, (file, content) in paths.items():
            if path.startswith("queue/mess/"):
                made[file] = self.make(content)
                numbers[int(NUMBERED.match(path)[1])] = os.stat(made[file]).st_ino
        for path, (file, content) in paths.items():
            there = int(NUMBERED.match(path)[1])
            if there not in numbers:  # no message: any number that no message here has
                name = self.make(b"")
                numbers[there] = os.stat(name).st_ino
                os.unlink(name)
            if file not in made:
                made[file] = self.make(content)
        for path, (file, content) in paths.items():
            there = int(NUMBERED.match(path)[1])
            os.link(made[file], self.queue.file(here(path, numbers[there])))
        for name in made.values():
            os.unlink(name)
        for there, number in numbers.items():
            self.owners[number] = index, there
        return numbers

    def make(self, content):
        name = self.queue.file("queue/pid/new")
        while os.path.exists(name):
            name += "x"
        with open(name, "wb") as f:
            f.write(content)
        if os.geteuid() == 0:
            os.chown(name, self.queue.uid, self.queue.gid)
        return name

    def run(self, states):
        """The outcomes of states, in their order."""
        self.owners = {}
        outcomes = [Outcome() for _ in states]
        for index, state in enumerate(states):
            self.build(index, state)
        later = []  # requests of messages that are made now: bounces

        def answer(request):
            try:
                with open(self.queue.file("queue/" + split("mess", request.number)), "rb") as f:
                    content = f.read()
            except FileNotFoundError:
                content = b""
            if request.number not in self.owners:
                later.append((request, content))
                return b"K"
            index, there = self.owners[request.number]
            whole = content in self.judge.whole[there]
            return self.judge.read(outcomes[index], request.sender, request.recipient, content, whole) + b"said\n"
        with Player(self.queue, limits=(200, 200), answer=answer) as sender:
            sender.wait_line("^status")
            asked = 0

            def settled():
                nonlocal asked
                if sender.process.poll() is not None:
                    raise AssertionError("qmail-send ended:\n" + "\n".join(sender.lines[-20:]))
                if not self.waiting(sender):
                    return True
                asked += 1
                if asked % 20 == 0:  # what was deferred, or whose time is to come
                    sender.kill(signal.SIGALRM)
                    self.queue.pull()
                return False
            stuck = set()
            try:
                harness.wait_for(settled, "the queue to be settled", 4 * harness.TIMEOUT)
            except AssertionError:
                stuck = self.waiting(sender)
            if sender.stop() != 0:
                raise AssertionError("qmail-send did not end well:\n" + "\n".join(sender.lines[-20:]))
            lines = list(sender.lines)
        for number in stuck:
            index, there = self.owners.get(number, (0, "of a bounce"))
            outcomes[index].wrong.append(("stuck", f"message {there}: " + "; ".join(x for x in lines if str(number) in x)[-500:]))
        self.take_bounces(outcomes, lines, later)
        self.take_aside(outcomes, lines)
        self.take_left(outcomes)
        return outcomes

    def numbers(self, top):
        found = set()
        for s in [f"/{n}" for n in range(SPLIT)] if top in ("mess", "info", "local", "remote") else [""]:
            found.update(int(n) for n in os.listdir(self.queue.file(f"queue/{top}{s}")) if n.isdigit())
        return found

    def waiting(self, sender):
        """Messages that qmail-send still has to do something about."""
        found = self.numbers("todo") | self.numbers("info") & self.numbers("mess")
        if found:
            with sender.changed:
                found -= {int(m[1]) for m in map(ASIDE.match, sender.lines) if m}
        return found

    def take_bounces(self, outcomes, lines, later):
        process, origin = {}, {}  # qmail-queue's pid: number it bounces; number of a bounce: of its message
        for line in lines:
            if m := re.match(r"bounce msg (\d+) qp (\d+)$", line):
                process[int(m[2])] = int(m[1])
        for line in lines:
            if m := re.match(r"info msg (\d+): bytes \d+ from <.*> qp (\d+) ", line):
                if int(m[1]) not in self.owners:
                    origin[int(m[1])] = process[int(m[2])]
        for request, content in later:
            index, _ = self.owners[origin[request.number]]
            self.judge.read(outcomes[index], request.sender, request.recipient, content, True)

    def take_aside(self, outcomes, lines):
        for line in lines:
            if m := ASIDE.match(line):
                index, there = self.owners[int(m[1])]
                outcomes[index].aside.append((there, line))

    def take_left(self, outcomes):
        """What is left is taken out of the queue."""
        found = {}
        for top in ("mess", "todo", "intd", "info", "local", "remote", "bounce"):
            for directory, _, names in os.walk(self.queue.file("queue/" + top)):
                for name in names:
                    whole = os.path.join(directory, name)
                    number = name.partition(".")[0]
                    if number.isdigit() and int(number) in self.owners and number == name:
                        found.setdefault(int(number), set()).add(top)
                    elif number.isdigit() and number == name:
                        raise AssertionError(f"{top}/{name} was left by a bounce")
                    os.unlink(whole)
        for number, tops in found.items():
            index, there = self.owners[number]
            aside = any(there == kept for kept, _ in outcomes[index].aside)
            # info without a message waits for it for 36 hours of one life of qmail-send, which nobody can make shorter.
            if not aside and not ("info" in tops and "mess" not in tops):
                outcomes[index].left.add(frozenset(tops))


# What is not touched any more in this life: kept aside, or to be looked at again in two minutes, for ever.
ASIDE = re.compile(r"^(?:alert: msg (?=\d+ kept aside)|warning: trouble reading \w+/(?:\d+/)?)(\d+)\b")


def here(path, number):
    """A path of the queue with another number."""
    top = path.split("/")[1]
    return "queue/" + (split(top, number) if top in ("mess", "info", "local", "remote") else f"{top}/{number}")
