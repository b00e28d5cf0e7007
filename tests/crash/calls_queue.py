"""Every call of what takes messages in and removes them: qmail-queue, qmail-queued, qmail-clean."""

import contextlib
import os
import select
import signal
import socket

from tests import harness
from tests.crash.calls_rig import AHEAD, RECEIVED, Healer, Stage, children, clear, files_of, filled, is_idle, process_state
from tests.queue_rig import Queue

TEXT = b"Subject: known\n\nfirst line\n" + b"x" * 70 + b"\nlast line\n"
SENDER, RECIPIENTS = b"s@else.example", (b"joe@local.example", b"x@remote.example")


HANGS = 60  # seconds in which a caller must be told something; it takes milliseconds


def envelope(sender=SENDER, recipients=RECIPIENTS):
    return b"F" + sender + b"\0" + b"".join(b"T" + r + b"\0" for r in recipients) + b"\0"


def strip(content):
    """A message without the lines that our own programs put at its head."""
    return None if content is None else RECEIVED.sub(b"", content)


class Accepting(Stage):
    """A message is handed in once. What is judged: the answer, and what a system started on the queue makes of it."""

    text = TEXT
    recipients = RECIPIENTS

    def enter(self, stack):
        self.home = self.make_home(stack)
        self.healer = Healer(self.home, self.tools)

    def make_home(self, stack):
        return stack.enter_context(Queue(locals="local.example\n"))

    def strip(self, content):
        return strip(content)

    def outcome(self, answers, fault):
        """answers: {text: "done", "later" (may be tried again), "never", or None (nobody was told)}."""
        wrong = []
        files = files_of(self.home)
        healed = self.healer.heal(files)
        seen = [d for d in healed.delivered if self.strip(d[3]) not in answers]
        if seen:
            wrong.append(("half", f"delivered: {seen[0]}"))
        strangers = {d[2] for d in healed.delivered} - set(self.recipients) | {d[1] for d in healed.delivered} - {SENDER}
        if strangers:
            wrong.append(("stray", f"delivered: {sorted(strangers)}"))
        if healed.bounced:
            wrong.append(("stray", f"a bounce: {healed.bounced[0]}"))
        if healed.left:
            wrong.append(("left", f"{healed.left}, of {sorted(files)}"))
        if healed.stuck:
            wrong.append(("stuck", f"{healed.stuck}, with {sorted(files)}"))
        for text, answer in answers.items():
            copies = [sum(d[2] == r and self.strip(d[3]) == text for d in healed.delivered) for r in self.recipients]
            if answer == "done" and not all(copies):
                wrong.append(("lost", f"copies {copies} of what was acknowledged; the queue had {sorted(files)}"))
            if answer == "never":
                wrong.append(("code", "refused for good"))
            if answer and answer.startswith("exit"):
                wrong.append(("code", f"{answer} is not documented for trouble that may pass"))
            if answer == "done" and max(copies) > 1:
                wrong.append(("half", f"copies {copies}"))
            if answer != "done" and any(copies):
                self.extra += 1  # the caller hands it in again
            if fault is None and (answer != "done" or copies != [1] * len(self.recipients)):
                wrong.append(("code", f"without a fault: {answer}, copies {copies}"))
        return wrong


def queue_answer(code):
    """What an exit code of qmail-queue says."""
    if code is None:
        return None
    return "done" if code == 0 else "never" if 11 <= code <= 40 else "later" if 51 <= code <= 81 else f"exit {code}"


class Direct(Accepting):
    """qmail-queue where it owns the queue."""

    name = "qmail-queue, as the queue's owner"

    def prepare(self):
        return ["qmail-queue"], self.home.env, {0: filled(self.text), 1: filled(envelope())}

    def judge(self, run, fault):
        if run is None:
            clear(self.home)
            return []
        return self.outcome({self.text: queue_answer(run.code)}, fault)


class Queued(Accepting):
    """qmail-queued and its child: a message by the socket, and then another one, which finds the fault gone."""

    name = "qmail-queued and its worker"
    thin = 2
    texts = (TEXT, *(b"Subject: %s\n\nafter the fault\n" % n for n in (b"second", b"third")))
    sample = 40

    def make_home(self, stack):
        home = super().make_home(stack)
        home.mkdir("run")
        home.write("queue/lock/tcpto", b"")
        os.chmod(home.file("queue/lock/trigger"), 0o622)
        os.chmod(home.file("queue/lock/sendmutex"), 0o600)
        return home

    def prepare(self):
        self.answers, self.connection, self.waited, self.seen, self.over, self.hung = [], None, False, False, False, False
        return ["qmail-queued"], self.home.env, {2: os.open("/dev/null", os.O_WRONLY)}

    def told(self, pid):
        self.pid = pid

    def hand_in(self):
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(harness.TIMEOUT)
        self.connection.connect(self.home.file("run/queue"))
        ends = [filled(self.texts[len(self.answers)]), filled(envelope(recipients=self.recipients))]
        socket.send_fds(self.connection, [b"1"], ends)
        for f in ends:
            os.close(f)

    def hear(self):
        """What the caller is told."""
        said = b""
        with self.connection, contextlib.suppress(OSError):
            while more := self.connection.recv(300):
                said += more
        self.connection = None
        self.answers.append(queue_answer(said[0] if said else None))

    def step(self, milliseconds):
        """Its workers do what they have while it waits, so that what it sees is always the same."""
        if self.connection:
            def answered():
                return select.select([self.connection], [], [], 0)[0] or all(process_state(pid) == "Z" for pid in children(self.pid))
            try:
                harness.wait_for(answered, "an answer, or the worker's end", HANGS)
            except AssertionError:
                os.kill(self.pid, signal.SIGKILL)
                for pid in children(self.pid):
                    os.kill(pid, signal.SIGKILL)
                self.hung = True
                return b"g"
            if not select.select([self.connection], [], [], 0)[0] and not self.waited:
                self.waited = True  # nobody has been told yet that it ended
                return b"g"
            self.hear()
        harness.wait_for(lambda: all(map(is_idle, children(self.pid))), "the workers to wait")
        if not self.seen:
            self.seen = True  # what they have said is heard first
            return b"g"
        self.waited = self.seen = False
        if len(self.answers) < 2:
            self.hand_in()
        elif not self.over:
            self.over = True
            os.kill(self.pid, signal.SIGTERM)
        else:
            os.kill(self.pid, signal.SIGKILL)  # it does not hear
        return b"g"

    def after(self, run):
        if self.connection:
            self.hear()
        if len(self.answers) < 2 or self.answers[-1] != "done":
            # It has ended, or met the fault with the second one; whoever keeps it starts another one.
            with harness.Daemon(["qmail-queued"], env=self.home.env) as daemon:
                def serves():
                    try:
                        self.hand_in()
                        return True
                    except OSError:
                        return False
                harness.wait_for(serves, f"the socket\n{daemon.log()}")
                self.hear()

    def judge(self, run, fault):
        if run is None:
            clear(self.home)
            return []
        wrong = self.outcome(dict(zip(self.texts, self.answers)), fault)
        if self.hung:
            wrong.append(("stuck", f"a caller has no answer in {HANGS} seconds"))
        if self.answers[-1] != "done":
            wrong.append(("stuck", f"the last message: {self.answers}"))
        return wrong


class Clean(Accepting):
    """qmail-clean asked for each thing there is, with leftovers that are old enough to be swept."""

    name = "qmail-clean"
    options = ("-t", str(AHEAD))

    def prepare(self):
        home = self.home
        self.taken = home.preprocessed(SENDER, local=[b"T" + RECIPIENTS[0]], content=b"Subject: taken up\n\nx\n")
        text = home.read(f"mess/{self.taken % 23}/{self.taken}")
        home.todo(SENDER, RECIPIENTS[:1], text, number=self.taken, pull=False)
        self.waits = home.todo(SENDER, RECIPIENTS[:1], content=b"Subject: waits\n\nx\n", pull=False)
        self.ended, self.torn = home.message(b"Subject: ended\n\nx\n"), home.message(b"Subject: torn\n\nx\n")
        home.write(f"queue/intd/{self.torn}", b"u1\0p1\0")
        home.write("queue/intd/5", b"u1\0p1\0")
        home.write("queue/pid/1.2.3", b"x")
        asked = ["", f"todo/{self.taken}", f"foop/{self.ended}", f"foop/{self.torn}", f"foop/{self.waits}", "nonsense/1"]
        self.wanted = b"x+++!x"
        self.out = os.path.join(self.tools.base, "out")
        return ["qmail-clean"], home.env, {0: filled(b"".join(r.encode() + b"\0" for r in asked)),
                                           1: os.open(self.out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)}

    def judge(self, run, fault):
        if run is None:
            clear(self.home)
            return []
        wrong = []
        with open(self.out, "rb") as f:
            said = f.read()
        files = set(files_of(self.home))
        gone = {1: {f"todo/{self.taken}", f"intd/{self.taken}"}, 2: {f"mess/{self.ended % 23}/{self.ended}"},
                3: {f"mess/{self.torn % 23}/{self.torn}", f"intd/{self.torn}"}}
        if len(said) > len(self.wanted):
            wrong.append(("code", f"more answers than requests: {said}"))
        for at, (answer, right) in enumerate(zip(said, self.wanted)):
            if answer == ord("+") and (at not in gone or gone[at] & files):
                wrong.append(("code", f"answers {said}, and there are {sorted(files)}"))
            if answer != right and answer != ord("!"):
                wrong.append(("code", f"answers {said}"))
        if run.code == 0 and len(said) < len(self.wanted):
            wrong.append(("code", f"answers {said} and then exit 0"))
        if fault is None and said != self.wanted:
            wrong.append(("code", f"without a fault: answers {said}"))
        healed = self.healer.heal()
        got = sorted(strip(d[3]) for d in healed.delivered)
        if got != [b"Subject: taken up\n\nx\n", b"Subject: waits\n\nx\n"]:
            wrong.append(("lost", f"of two messages in the queue were delivered: {got}"))
        if healed.left or healed.stuck or healed.bounced:
            wrong.append(("left", f"{healed}"))
        return wrong
