"""Damaged queue files: what is delivered from them, what is kept aside, and that somebody is told.

Many messages, each with one damage, lie in a queue on which qmail-send is started. The spawners are played here: what
they are asked for is compared with what was accepted. What was not delivered must be in the log or in what qmail-fix
says, and its message still there. qmail-fix itself is killed at its calls and run again.
"""

import collections
import os
import random
import re

from tests import harness
from tests.crash.report import Row
from tests.queue_rig import Queue, Sender, split, whole_list

TITLE = "Damaged queue files"

S, A, B, X = b"s@sender.example", b"a@local.example", b"b@local.example", b"x@far.example"
SAMPLE_STEP = 23  # of flipped bits and of cuts; prime, so that all bits come
FIX_STEP = 29  # of qmail-fix's openings and syncs, most of which are of one directory after another
BATCH = 900  # messages a start
SOUND = "not damaged"


class Message:
    """One that was accepted, and what is known of it."""

    def __init__(self, queue, state, content, old=False):
        self.state, self.content, self.what = state, content, ""
        self.sender, self.left, self.done = S, [A, X], []
        if state == "todo":
            self.number = queue.todo(S, [A, X], content, pull=False, record=not old)
        else:
            self.left, self.done = [A, X], [B]
            self.number = queue.preprocessed(S, local=[b"T" + A, b"D" + B], remote=[b"T" + X], content=content, record=not old)

    def path(self, kind):
        return f"{kind}/{self.number}" if kind in ("todo", "intd", "bounce") else split(kind, self.number)


def flips(whole):
    for at in range(len(whole)):
        for bit in range(8):
            yield f"bit {bit} of byte {at}", whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1:]


def cuts(whole):
    for length in range(len(whole)):
        yield f"cut to {length}", whole[:length]


def others(whole):
    half = len(whole) // 2
    yield "zeros", bytes(len(whole))
    yield "a zero page behind it", whole + bytes(4096)
    yield "zeros from the middle on", whole[:half] + bytes(len(whole) - half)
    yield "zeros up to the middle", bytes(half) + whole[half:]
    yield "twice", whole + whole
    yield "ones", b"\xff" * len(whole)
    yield "empty", b""


FAULTS = {"a bit flipped": flips, "cut": cuts, "zeros and others": others}


def write(queue, name, text):
    """As a disk damages: the same file, the same owner and mode."""
    with open(queue.file("queue/" + name), "r+b") as f:
        f.truncate()
        f.write(text)


def read_request(queue, contents, request):
    """What qmail-local would read at this moment."""
    try:
        contents.setdefault(request.number, set()).add(queue.read(split("mess", request.number)))
    except OSError:
        contents.setdefault(request.number, set()).add(None)
    return b"K"


def score(row, message, delivered, contents, reported, there):
    """One message: whom it was delivered to (requests), with what, whether it was told of and is there."""
    what = f"{message.state}: {message.what}"
    got = collections.Counter(r.recipient for r in delivered)
    for r in delivered:
        if r.sender != message.sender:
            row.bad("stray", f"{what}: from {r.sender}")
        if r.recipient not in message.left + message.done:
            row.bad("stray", f"{what}: to {r.recipient}")
    if contents - {message.content}:
        row.bad("half", f"{what}: delivered as {contents}")
    row.extra += sum(got[r] for r in message.done)
    missing = [r for r in message.left if not got[r]]
    if missing and not reported:
        row.bad("lost", f"{what}: {missing}")
    elif missing and not there:
        row.bad("lost", f"{what}: told, and removed")


def judge(queue, messages, row, sacrificed=False):
    """Starts qmail-send on messages that are damaged already and scores each. With `sacrificed` what was damaged is the
    message itself, which nobody can keep: that it is told is all."""
    contents = {}
    mine = {m.number: m for m in messages}
    # One that is whole: when it is out, a sweep through what was found has come by.
    told = re.compile(r"^(?:alert|warning): .*?(?<!\d)(\d{4,})(?!\d)")
    with Sender(queue, limits=(120, 120), answer=lambda r: read_request(queue, contents, r)) as sender:
        def decided():
            over = {int(name.split("/")[1]) for name in sender.cleaned if name.startswith("foop/")}
            over |= {int(m[1]) for m in map(told.match, list(sender.lines)) if m}
            return over >= {n for n, m in mine.items() if not m.silent}
        try:
            harness.wait_for(decided, f"{len(mine)} decisions", 4 * harness.TIMEOUT)
        except AssertionError as e:
            row.bad("stuck", str(e))
        if sender.stop() != 0:
            row.bad("stuck", "qmail-send did not end as told")
        requests, lines = list(sender.requests), list(sender.lines)
    fixed = harness.run(["qmail-fix"], env=queue.env, timeout=4 * harness.TIMEOUT)
    said = {int(m[1]) for m in map(told.match, lines) if m}
    said |= {int(n) for line in fixed.out.decode("latin-1").splitlines() for n in re.findall(r"(?<!\d)\d{4,}(?!\d)", line)}
    by = collections.defaultdict(list)
    for r in requests:
        by[r.number].append(r)
    for number, message in mine.items():
        row.tried += message.what != SOUND
        there = sacrificed or queue.there(split("mess", number))
        score(row, message, by[number], contents.get(number, set()), number in said, there)
    for number in set(by) - set(mine):
        row.bad("stray", f"delivered number {number}, which nobody accepted")


def a_queue():
    queue = Queue(locals="local.example\n", concurrencylocal="120\n", concurrencyremote="120\n")
    queue.write("queue/lock/tcpto", bytes(1024))
    queue.bounces_to()
    return queue


def content(n):
    return b"Subject: %d\n\nhi\n" % n


def changed(kind, state, fault, sample, seed, old=False):
    """Each way to change the bytes of one kind of file."""
    case = f"{kind}, {'accepted' if state == 'todo' else 'preprocessed'}"
    row = Row(case if not old else case + ", by an old qmail-send", fault)
    with a_queue() as queue:
        probe = Message(queue, state, content(10000), old)
        ways = list(FAULTS[fault](queue.read(probe.path(kind))))
    if (sample or kind == "intd") and fault != "zeros and others":  # intd is read by nobody when there is todo
        ways = ways[random.Random(seed).randrange(SAMPLE_STEP)::SAMPLE_STEP]
    for start in range(0, len(ways), BATCH):
        with a_queue() as queue:
            messages = []
            for n, (what, _) in enumerate(ways[start:start + BATCH]):
                message = Message(queue, state, content(10000 + n), old)
                if kind == "intd":  # a name of its own, or it would be todo that is damaged
                    whole = queue.read(message.path("intd"))
                    os.unlink(queue.file("queue/" + message.path("intd")))
                    queue.write("queue/" + message.path("intd"), whole)
                whole = queue.read(message.path(kind))
                # The same damage to this message's bytes, which are not quite the probe's.
                again = dict(FAULTS[fault](whole))
                message.what, message.silent = f"{kind}: {what}", False
                write(queue, message.path(kind), again.get(what, whole[:-1]))
                messages.append(message)
            judge(queue, messages, row)
    return [row]


def exchanged(state, sample, seed):
    """Files of two messages, for the same people, that changed places, or whose contents did."""
    rows = []
    for kind in ("todo", "intd", "mess") if state == "todo" else ("info", "local", "remote", "mess"):
        row = Row(f"{kind}, {'accepted' if state == 'todo' else 'preprocessed'}", "two changed places")
        with a_queue() as queue:
            messages = []
            for n in range(2 if sample else 10):
                for how in ("names", "contents"):
                    pair = [Message(queue, state, content(10000 + 4 * n + k + 2 * (how == "names"))) for k in (0, 1)]
                    if kind in ("local", "remote") and state == "info":
                        # The other way round: who is done there is not done here.
                        done = pair[1]
                        records = {"local": b"D" + A + b"\0T" + B + b"\0", "remote": b"D" + X + b"\0"}
                        for way, text in records.items():
                            if way == kind:
                                write(queue, done.path(way), whole_list(text, done.content))
                        pair[1].left, pair[1].done = ([B, X], [A]) if kind == "local" else ([A], [B, X])
                    paths = [queue.file("queue/" + m.path(kind)) for m in pair]
                    if how == "names":
                        os.rename(paths[0], paths[0] + "~")
                        os.rename(paths[1], paths[0])
                        os.rename(paths[0] + "~", paths[1])
                    else:
                        texts = [queue.read(m.path(kind)) for m in pair]
                        for m, text in zip(pair, reversed(texts)):
                            write(queue, m.path(kind), text)
                    for m in pair:
                        m.what, m.silent = f"{kind}: {how} exchanged", False
                    messages += pair
            # The start would refuse a queue in which most messages have another inode.
            for n in range(60):
                sound = Message(queue, state, content(20000 + n))
                sound.what, sound.silent = SOUND, False
                messages.append(sound)
            judge(queue, messages, row)
        rows.append(row)
    return rows


def replaced(state, sample, seed):
    """Something else in the place of a file, or nothing."""
    rows = []
    kinds = ("todo", "intd", "mess") if state == "todo" else ("info", "local", "remote", "mess")
    for by in ("a directory", "a symbolic link to another message's", "a link to itself", "nothing"):
        for kind in kinds:
            if kind in ("local", "remote") and by == "nothing":
                continue  # see "Not tried" in doc/reliability.md
            row = Row(f"{kind}, {'accepted' if state == 'todo' else 'preprocessed'}", f"replaced by {by}")
            with a_queue() as queue:
                messages = [Message(queue, state, content(10000 + n)) for n in range(3 if sample else 8)]
                sound = [Message(queue, state, content(20000 + n)) for n in range(40)]
                for m in sound:
                    m.what, m.silent = SOUND, False
                for m in messages:
                    m.what, m.silent = f"{kind}: replaced by {by}", False
                    path = queue.file("queue/" + m.path(kind))
                    if kind == "intd" and by == "a directory":
                        continue  # qmail-clean's, which is played here: tests/test_qmail_clean.py
                    os.unlink(path)
                    if by == "a directory":
                        os.mkdir(path)
                    elif by == "a link to itself":
                        os.symlink(os.path.basename(path), path)
                    elif by != "nothing":
                        os.symlink(queue.file("queue/" + sound[0].path(kind)), path)
                    # These wait for their time, and qmail-fix names them.
                    m.silent = (by == "nothing" and kind in ("todo", "info")) or (by.startswith("a symbolic") and kind == "todo")
                judge(queue, messages + sound, row, sacrificed=kind == "mess")
            rows.append(row)
    return rows


def bounces(fault, sample, seed):
    """bounce/N of a message at its end: the sender is told, in whatever words are left."""
    row = Row("bounce, at the end", fault)
    text = b"<no@far.example>:\nno such user\n\n"
    ways = [(what, t) for what, t in FAULTS[fault](text) if t]
    if sample and fault != "zeros and others":
        ways = ways[random.Random(seed).randrange(SAMPLE_STEP)::SAMPLE_STEP]
    with a_queue() as queue:
        numbers = {}
        for n, (what, damaged) in enumerate(ways):
            number = queue.preprocessed(S, content=content(10000 + n))
            queue.write(f"queue/bounce/{number}", damaged, 0o600)
            numbers[number] = (what, content(10000 + n))
        with Sender(queue) as sender:
            harness.wait_for(lambda: len([c for c in sender.cleaned if c.startswith("foop/")]) >= len(numbers), "the ends",
                             4 * harness.TIMEOUT)
            sender.stop()
        told = [(envelope, message) for envelope, message in queue.bounced()]
        for what, text in numbers.values():
            row.tried += 1
            found = [envelope for envelope, message in told if message.endswith(text)]
            if found != [b"F\0T" + S + b"\0\0"]:
                row.bad("lost" if not found else "stray", f"{what}: {found}")
    return [row]


def mending_killed(call, sample, seed):
    """qmail-fix -r, killed at its n-th call of this kind, and run again; then all of it is delivered once."""
    from tests import test_qmail_fix
    row = Row("qmail-fix -r on a moved queue", f"SIGKILL at {call}")
    case = test_qmail_fix.Killed()
    try:
        points = list(range(1, case.points(call) + 1))
        step = 1 if call in ("renameat", "linkat", "unlinkat") else FIX_STEP
        step = step * SAMPLE_STEP if sample else step
        for n in points[random.Random(seed).randrange(min(step, len(points)))::step]:
            queue = case.make()
            wanted = case.mess(queue)
            row.tried += 1
            case.run_killed(queue, call, n, "-r")
            for args in (["-r"], []):
                again = harness.run(["qmail-fix", *args], env=queue.env)
                if again.code != 0:
                    row.bad("stuck", f"call {n}: qmail-fix {args}: {again.code} {again.out + again.err}")
            try:
                found = case.delivered(queue)
            except AssertionError as e:
                row.bad("left", f"call {n}: {e}")
                continue
            for key, count in (collections.Counter(wanted) - collections.Counter(found)).items():
                row.bad("lost", f"call {n}: {key}")
            for key, count in (collections.Counter(found) - collections.Counter(wanted)).items():
                row.extra += count
                row.bad("half" if key not in wanted else "stray", f"call {n}: {key} {count} times more")
            queue.__exit__()
    finally:
        case.doCleanups()
    return [row]


def cases(sample, seed):
    for state, kinds in (("todo", ("todo", "intd", "mess")), ("info", ("info", "local", "remote", "mess"))):
        for kind in kinds:
            for fault in FAULTS:
                if not (sample and (kind == "intd" or kind == "remote")):
                    name = f"{kind}, {'accepted' if state == 'todo' else 'preprocessed'}"
                    yield f"{name}: {fault}", changed, (kind, state, fault, sample, seed)
        yield f"{state}: two changed places", exchanged, (state, sample, seed)
        yield f"{state}: replaced", replaced, (state, sample, seed)
    for fault in FAULTS:
        yield f"bounce: {fault}", bounces, (fault, sample, seed)
    if os.geteuid() == 0:
        for call in ("linkat",) if sample else ("renameat", "linkat", "unlinkat", "openat", "fsync"):
            yield f"qmail-fix: {call}", mending_killed, (call, sample, seed)
