"""kill -9 of each daemon at any moment under load, and of all at once; each time a restart, as a supervisor does it.

What was accepted reaches everybody at least once. Second copies are counted: fewer than one a kill of each kind of process. In the
end nothing is left: no file (also the rests of what was not accepted, once they are old), process, descriptor or lock.
"""

import contextlib
import os
import signal
import sys
import time

from tests.crash import report
from tests.crash.kills_load import WAIT, Load, children, program
from tests.harness import wait_for

TITLE = "kill -9 under load: SMTP in, Maildir, program, forward and remote deliveries, mailings of 1,000 recipients"
KILLS = 20  # of each kind
CHOSEN = 40  # of any kind, one after the other
EXTRA_MAX = 1  # second copies a kill, on average
ALL_EXTRA_MAX = 3  # where some thirty deliveries are cut off at once, each perhaps between its end and the note of it
DELAY_MAX = 0.1  # seconds behind the event that was waited for: any moment is to be tried
KINDS = ("qmail-send", "qmail-lspawn", "qmail-rspawn", "beside a delivery", "qmail-clean", "qmail-queued",
         "child of qmail-queued", "qmail-local", "qmail-remote", "qmail-smtpd", "all at once")
ENDS_SEND = ("qmail-send", "qmail-lspawn", "qmail-rspawn", "qmail-clean", "all at once")
SAMPLE = "one after the other"
SPAWNERS = ("qmail-lspawn", "qmail-rspawn")


def cases(sample, seed):
    if sample:
        # As many as it likes: few kills are no average.
        yield SAMPLE, campaign, (SAMPLE, KINDS, len(KINDS), seed, 100)
        return
    for number, kind in enumerate(KINDS):
        yield kind, campaign, (kind, (kind,), KILLS, seed + number, 1000)
    yield "any of them", campaign, ("any of them", KINDS, CHOSEN, seed + len(KINDS), 1000)


def victims(load, kind):
    """The processes to be killed, groups as negative numbers; empty while there are none."""
    if kind == "all at once":
        return [-load.home.daemon.pid, -load.queued.pid, -load.server.pid]
    if kind == "qmail-send":
        return [load.home.daemon.pid]
    if kind == "qmail-queued":
        return [load.queued.pid]
    if kind == "child of qmail-queued":
        found = children(load.queued.pid)
    elif kind == "qmail-smtpd":
        found = children(load.server.pid)
    else:
        daemons = children(load.home.daemon.pid)
        mains = [pid for pid in daemons if program(pid) in SPAWNERS]
        among = {"beside a delivery": children(*mains), "qmail-local": children(*children(*mains)),
                 "qmail-remote": children(*children(*mains))}.get(kind, daemons)
        found = [pid for pid in among if kind == "beside a delivery" or program(pid) == kind]
    return [load.random.choice(found)] if found else []


def kill(load, kind):
    """How many processes were killed."""
    killed = 0
    for pid in victims(load, kind):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


def strike(load, kind, whole):
    """Kills, at any moment while everything is under way; waits for what ends with it, and starts that again."""
    accepted, sent, more = len(load.accepted), sum(load.sink.counts.values()), load.random.random() * whole / 20
    wait_for(lambda: load.mail() is not None and len(load.accepted) > accepted, "traffic", WAIT)
    wait_for(lambda: load.mail() is not None and sum(load.sink.counts.values()) > sent + more, "the mailing", WAIT)
    time.sleep(load.random.random() * DELAY_MAX)
    deadline = time.monotonic() + WAIT
    while not kill(load, kind):  # some live a few milliseconds
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {WAIT} s in vain for {kind}")
    if kind in ENDS_SEND:
        wait_for(lambda: load.home.daemon.process.poll() is not None, "qmail-send to end", WAIT)
    if kind in ("qmail-queued", "all at once"):
        wait_for(lambda: load.queued.process.poll() is not None, "qmail-queued to end", WAIT)
    load.reap_orphans()
    load.revive()


def campaign(case, kinds, kills, seed, mailing, tamper=None):
    row = report.Row(case, "SIGKILL")
    rests = report.Row(case + ": its rests", "36 hours later")
    with Load(seed, mailing) as load:
        load.revive()
        before = load.descriptors()
        load.start()
        order = [kinds[n % len(kinds)] for n in range(kills)]
        load.random.shuffle(order)
        for kind in order:
            strike(load, kind, mailing)
            row.tried += 1
        load.quiet()
        load.settle(row)
        if tamper:
            tamper(load)
        load.judge(row)
        # Connections are kept for a moment, and the processes that have them.
        with contextlib.suppress(AssertionError):
            wait_for(lambda: all(load.descriptors().get(name, 0) <= count for name, count in before.items()), "quiet", WAIT)
        idle = load.descriptors()
        for name, count in before.items():
            if idle.get(name, 0) > count:
                row.bad("left", f"{name} has {idle[name]} descriptors open, at its start {count}")
        for process in load.stop():
            row.bad("left", f"{process} still runs")
        for name in load.locks():
            row.bad("left", f"{name} is locked")
        rests.tried = load.age(rests)
        accepted = len(load.accepted)
    print(f"crash: kills: {case}: {row.tried} kills, {accepted} accepted, {row.extra} second copies {dict(load.twice)}, {rests.tried} rests, seed {seed}",
          file=sys.stderr)
    if case != SAMPLE and row.extra >= (ALL_EXTRA_MAX if case in ("all at once", "any of them") else EXTRA_MAX) * row.tried:
        row.bad("code", f"{row.extra} second copies for {row.tried} kills")
    return [row, rests] if rests.tried else [row]
