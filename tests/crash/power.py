"""Power cuts: every state that a cut may leave behind each call that changes a file, and cuts of real file systems."""

import contextlib
import ctypes
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile

from tests import harness
from tests.crash import power_after, power_disk, power_judge, power_lives, power_model, power_record
from tests.crash.power_judge import Message
from tests.crash.report import Row
from tests.harness import Home
from tests.queue_rig import SPLIT

TITLE = "Power cuts: all states of the files that a model allows behind each step, and copies of mounted disks"


# -- recording

def record(life):
    """(what was recorded, the messages of this life)"""
    home = Home(users={"joe": "secret", "ann": "secret"})
    try:
        power_lives.prepare(home, life)
        before = power_record.snapshot(home.path)
        trace = os.path.join(home.base, "trace")
        argv = [*power_record.strace(trace), sys.executable, "-m", "tests.crash.power_lives", life, home.base]
        done = subprocess.run(argv, cwd=harness.ROOT, capture_output=True, text=True, timeout=4 * harness.TIMEOUT)
        if done.returncode:
            raise AssertionError(f"{life}: {done.stderr}")
        messages = [Message(**m) for m in json.loads(done.stdout)]
        return power_record.read(trace, home.path, before, power_record.snapshot(home.path)), messages
    finally:
        home.__exit__()


def promises(reader, messages):
    """[(first step, step behind the last, promise)]: what was promised, and how long it holds."""
    ours = {m.token for m in messages}
    accepted = {}  # pid: tokens of what it has put into the queue, in order
    mess = {}  # number: what is in it
    removed = {}  # pid: (token, user) of mail it has deleted
    found = []
    for path, file in reader.before.items():
        if "/Maildir/" in path:
            found.append([0, END, ("delivered", power_judge.token(file.content), path.split("/")[1], "")])
    for at, step in enumerate(reader.steps):
        if step[0] == "name" and step[2] and step[1].startswith("queue/mess/"):
            mess[os.path.basename(step[1])] = step[2].content
        elif step[0] == "name" and step[2] and step[1].startswith("queue/todo/"):
            content = mess[os.path.basename(step[1])]
            accepted.setdefault(power_judge.writer(content), []).append(power_judge.token(content))
        elif step[0] == "name" and not step[2] and MAIL.match(step[1]):
            if gone := deleted(reader, at):
                for promise in found:
                    if promise[1] == END and promise[2][:3] == ("delivered", *gone):
                        promise[1] = at
                removed.setdefault(step[3], []).append(gone)
        elif step[0] == "ack" and step[1] == "+OK":
            found += [[at, END, ("gone", *gone, "")] for gone in removed.pop(step[2], ())]
        elif step[0] == "ack" and step[1] in ("qmail-queue", "250") and accepted.get(step[2]):
            found.append([at, END, ("accepted", accepted[step[2]].pop(0))])
        elif step[0] == "ack" and step[1] == "qmail-local":
            found += [[at, END, p] for p in reported(reader.steps[:at], step) if p[1] in ours]
    return found


END = 1 << 30
MAIL = re.compile(r"home/(\w+)/Maildir/(new|cur)/")


def deleted(reader, at):
    """(token, user) if this step takes the last name of a mail in a Maildir."""
    names = dict(reader.before)
    for step in reader.steps[:at]:
        if step[0] == "name":
            names[step[1]] = step[2]
        elif step[0] == "rename":
            names[step[1]], names[step[2]] = None, step[3]
    path = reader.steps[at][1]
    file = names.pop(path)
    if any(other is file and MAIL.match(name) for name, other in names.items()):
        return None
    return power_judge.token(file.content), MAIL.match(path)[1]


def reported(before, ack):
    """What a qmail-local that ended with 0 has put into mailboxes."""
    _, _, pid, argv = ack
    user, local, domain = argv[2], argv[4], argv[7]
    recipient = f"{local}@{domain}"
    names = {step[2]: step[1] for step in before if step[0] == "name" and step[2]}
    for step in before:
        if step[0] == "name" and step[2] and step[3] == pid and "/Maildir/new/" in step[1]:
            yield "delivered", power_judge.token(step[2].content), user, recipient
        elif step[0] == "write" and step[4] == pid and b"\nDelivered-To: " in step[3] and step[3].startswith(b"From "):
            box = names.get(step[1], f"home/{user}/Mailbox").removeprefix("home/")  # one that was there has no step
            yield "delivered", power_judge.token(step[3]), box, recipient


def canonical(state):
    """What tells states apart; of .qmail files there is one state only."""
    return frozenset((path, content) for path, (_, content) in state.items() if "/.qmail" not in path)


def try_models(title, seed, most):
    life = power_lives.TITLES[title]
    with tmpfs():
        reader, messages = record(life)
        if life == "number_used_again":
            use_numbers_again(reader)
        return judge_record(title, reader, messages, seed, most)


def use_numbers_again(reader):
    """As a file system does that gives the inode of a file that is gone to the next one: a message that was begun
    when another had ended has that one's number from here on."""
    begun, numbers, free = {}, {}, []
    for at, step in enumerate(reader.steps):
        if step[0] == "name" and step[2]:
            begun.setdefault(step[2], at)
    for at, step in enumerate(reader.steps):
        if step[0] == "name" and step[1].startswith("queue/mess/"):
            number = int(os.path.basename(step[1]))
            if step[2] is None:
                free.append((at, numbers.get(number, number)))
            elif free and free[0][0] < begun[step[2]]:
                numbers[number] = free.pop(0)[1]

    def renamed(path):
        found = power_judge.NUMBERED.match(path)
        return power_judge.here(path, numbers[int(found[1])]) if found and int(found[1]) in numbers else path

    def synced(what):
        """What was a directory for several numbers is several now."""
        top, _, number = str(what).rpartition("/")
        return (what, *(os.path.dirname(renamed(f"{what}/{n}")) for n in numbers if str(n % SPLIT) == number and top.startswith("queue/")))
    reader.steps = [(step[0], renamed(step[1]), *step[2:]) if step[0] == "name" else
                    (step[0], synced(step[1]), step[2]) if step[0] == "sync" and isinstance(step[1], str) else step
                    for step in reader.steps]
    assert numbers, "no number was used again"


def judge_record(title, reader, messages, seed, most, enough=lambda rows: False):
    """The rows of one record; of more different states than `most` so many are judged, chosen by the seed. It ends
    sooner when rows are `enough`."""
    judge = power_judge.Judge(reader, messages)
    promised = promises(reader, messages)
    rows = {model: Row(title, model) for model in power_model.MODELS}
    points, states = {}, {}
    for model in power_model.MODELS:
        for at, state in power_model.every_state(reader, model, seed):
            key = canonical(state)
            states.setdefault(key, state)
            due = tuple(p for first, last, p in promised if first < at <= last)
            points.setdefault(key, {}).setdefault(due, {})[model] = at
    # Those of the one model are few; of the others', a sample.
    keys = sorted(states, key=lambda key: not any("ext4" in models for models in points[key].values()))
    few = sum(any("ext4" in models for models in points[key].values()) for key in keys)
    keys[few:] = random.Random(seed).sample(keys[few:], min(len(keys) - few, max(0, most - few)))
    left = {}  # what a sweep would find: rows of the models in which it was found
    bench, again = power_judge.Bench(judge), power_after.Again()
    try:
        for first in range(0, len(keys), power_judge.BATCH):
            batch = keys[first:first + power_judge.BATCH]
            for key, outcome in zip(batch, bench.run([states[k] for k in batch])):
                note(rows, judge, states[key], outcome, points[key])
                second_delivery(rows, judge, again, states[key], outcome, points[key])
                for names in outcome.left:
                    left.setdefault(names, {}).update(dict.fromkeys(m for due in points[key].values() for m in due))
            if enough(rows):
                break
    finally:
        bench.close()
        shutil.rmtree(again.base)
    if left and not any(row.wrong for row in rows.values()):
        for names in power_after.sweep(left):
            for model in left.get(names, rows):
                rows[model].bad("left", f"still there days later: {sorted(names)}")
    if judge.kept:
        print(f"crash: power: {title}: {judge.kept} states had an old envelope beside a new message, kept aside", file=sys.stderr)
    return list(rows.values())


def note(rows, judge, state, outcome, dues):
    """One state and what became of it, in the rows of the models that allow it."""
    extra = judge.second_copies(state, outcome)
    for due, models in dues.items():
        wrong = judge.verdict(state, due, outcome)
        for model, at in models.items():
            rows[model].tried += 1
            rows[model].extra += extra
            for kind, text in wrong:
                rows[model].bad(kind, f"behind step {at}: {text}\n  {describe(state)}")


CLONE_NEWNS = 0x20000


def own_mounts():
    """From here on this process mounts for itself alone, and the kernel cleans up behind it."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def second_delivery(rows, judge, again, state, outcome, dues):
    """What is ordered once more is delivered into the mbox that the cut left, by qmail-local."""
    boxes = {}
    for known, recipient in sorted(outcome.asked):
        if "/" in (box := judge.messages[known].recipients.get(recipient, "")):
            boxes.setdefault(box, []).append((known, recipient))
    for box, asked in boxes.items():
        before = state.get("home/" + box, (None, b""))[1]
        mbox = again.deliver(before, [(judge.text[known], judge.messages[known].sender, r) for known, r in asked])
        whole = [m.text for m in judge.messages.values()] + [power_lives.EARLIER]
        wrong = [("half", mail) for mail in power_after.torn(mbox, whole)]
        wrong += [("lost", known) for known, r in asked if not judge.in_box({"home/" + box: (None, mbox)}, known, box, r)]
        for kind, mail in wrong:
            for model in {m for models in dues.values() for m in models}:
                rows[model].bad(kind, f"{box} after the second delivery: {mail[:3000]!r}, before: {before[-900:]!r}")


CLONE_NEWNS = 0x20000


def own_mounts():
    """From here on this process mounts for itself alone, and the kernel cleans up behind it."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def second_delivery(rows, judge, again, state, outcome, dues):
    """What is ordered once more is delivered into the mbox that the cut left, by qmail-local."""
    if "home/joe/Mailbox" not in state or not outcome.asked:
        return
    mails = [(judge.text[known], judge.messages[known].sender, recipient) for known, recipient in sorted(outcome.asked)]
    mbox = again.deliver(state["home/joe/Mailbox"][1], mails)
    whole = [m.text for m in judge.messages.values()] + [power_lives.EARLIER]
    for kind, mail in [("half", mail) for mail in power_after.torn(mbox, whole)] + [
            ("lost", known) for known, r in outcome.asked if not judge.in_box({"home/joe/Mailbox": (None, mbox)}, known, "joe/Mailbox", r)]:
        for model in {m for models in dues.values() for m in models}:
            rows[model].bad(kind, f"after the second delivery: {mail[:3000]!r}, before: {state['home/joe/Mailbox'][1][-900:]!r}")


@contextlib.contextmanager
def tmpfs():
    """Temporary files of this process lie in memory: thousands of states are built there, and nothing needs a disk."""
    place = tempfile.mkdtemp(prefix="qmail-power-")
    own_mounts()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place], check=True)
    was, tempfile.tempdir = tempfile.tempdir, place
    try:
        yield
    finally:
        tempfile.tempdir = was
        subprocess.run(["umount", "-l", place], check=True)
        os.rmdir(place)


def describe(state):
    return "; ".join(f"{path}: {content[:50]!r}" for path, content in sorted(canonical(state)))[:2000]


SAMPLE = ("direct", "short_bounce", "mailbox", "pop3")
SAMPLE_STATES = 150
STATES = 5000
SAMPLE_CUTS = 3
CUTS = 12


def cases(sample, seed):
    if os.geteuid() != 0:
        print("crash: power: only root may trace processes that made themselves undumpable, and mount: nothing is tried", file=sys.stderr)
        return
    for title, life in power_lives.TITLES.items():
        if not sample or life in SAMPLE:
            yield title, try_models, (title, seed, SAMPLE_STATES if sample else STATES)
    for kind in power_disk.KINDS:
        if not sample or kind == "ext4":
            title = f"the whole system on {kind}, under load"
            yield title, try_disk, (title, kind, seed, SAMPLE_CUTS if sample else CUTS)


def try_disk(title, kind, seed, cuts):
    with tmpfs():
        return power_disk.try_cuts(title, kind, seed, cuts)
