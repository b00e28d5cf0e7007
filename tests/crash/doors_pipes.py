"""Hostile input inside the house: envelopes, the pipes of the spawners in both directions, and what the DNS says."""

import concurrent.futures
import os
import random
import re
import socket
import struct
import subprocess

from tests import harness, queue_rig, spawners
from tests.crash.doors_rig import MEMORY_MAX, Crowd, in_memory, peak, strings
from tests.crash.report import Row
from tests.dnsserver import CNAME, MX, A, NXDOMAIN, SERVFAIL, Responder, encode_name, mx
from tests.harness import Daemon, wait_for

# -- envelopes


def envelope_code(envelope):
    """(exit code of qmail-queue, records it keeps)."""
    kept, at = [], 0
    while True:
        if kept and envelope[at:at + 1] == b"\0":
            return 0, kept
        end = envelope.find(b"\0", at)
        if end < 0:
            return 54, None
        if envelope[at:at + 1] != (b"T" if kept else b"F"):
            return 91, None
        kept.append(envelope[at:end])
        at = end + 1


def envelopes(door, longest, program="qmail-queue"):
    in_memory()
    row = Row(f"qmail-queue, {door} door", f"every envelope of up to {longest} bytes out of F, T, NUL, x")
    message = b"Subject: x\n\nhello\n"
    with harness.Home(users={}) as home, Daemon(["qmail-queued"], env=home.env, cwd="/"):
        wait_for(lambda: os.path.exists(home.file("run/queue")), "the socket run/queue")
        expected = {}

        def done(envelope, code, _):
            row.tried += 1
            wanted, kept = envelope_code(envelope)
            if code != wanted:
                row.bad("code", f"{envelope!r}: exit {code} instead of {wanted}")
            if kept:
                key = b"\0".join(kept)
                expected[key] = expected.get(key, 0) + 1
        with Crowd([program], {**home.env, "QMAILDOOR": door}, done) as crowd:
            for envelope in strings((b"F", b"T", b"\0", b"x"), longest):
                crowd.put(envelope, message, second=envelope)
        for name in os.listdir(home.file("queue/todo")):
            with open(home.file("queue/todo", name), "rb") as f:
                records = f.read().split(b"\0")
            key = b"\0".join(r for r in records if r[:1] in b"FT" and r)
            with open(home.file("queue/mess", str(int(name) % 23), name), "rb") as f:
                whole = f.read().partition(b"\n")[2] == message
            if not expected.get(key) or not whole:
                row.bad("half", f"{records}")
            expected[key] = expected.get(key, 0) - 1
        for key, count in expected.items():
            if count > 0:
                row.bad("lost", f"{key!r} was accepted")
        numbers = set(os.listdir(home.file("queue/todo")))
        for top in ("pid", "intd", "mess"):
            for directory, _, names in os.walk(home.file("queue", top)):
                for name in set(names) - numbers:
                    row.bad("left", os.path.join(directory, name))
    return [row]


# -- the socket run/queue

def hellos(step=1):
    """Every first byte with up to four descriptors: one request is served, "1" with two; nothing else leaves a trace."""
    in_memory()
    row = Row("qmail-queued, run/queue", "every first byte with 0 to 4 descriptors")
    message, envelope = b"Subject: x\n\nx\n", b"F\0Tr@h\0\0"
    with harness.Home(users={}) as home, Daemon(["qmail-queued"], env=home.env, cwd="/") as daemon:
        wait_for(lambda: os.path.exists(home.file("run/queue")), "the socket run/queue")
        descriptors = f"/proc/{daemon.pid}/fd"
        before = len(os.listdir(descriptors))
        files = []
        for content in (message, envelope, b"", b""):
            files.append(os.memfd_create("x"))
            os.write(files[-1], content)
        try:
            good = 0
            for first in [*range(0, 256, step), ord("1")]:
                for count in range(5):
                    row.tried += 1
                    for fd in files:
                        os.lseek(fd, 0, os.SEEK_SET)
                    with socket.socket(socket.AF_UNIX) as s:
                        s.settimeout(2 * harness.TIMEOUT)
                        s.connect(home.file("run/queue"))
                        try:
                            socket.send_fds(s, [bytes([first])], files[:count])
                            answer = s.recv(1)
                        except (BrokenPipeError, ConnectionResetError):
                            answer = b""
                    served = first == ord("1") and count == 2
                    good += served
                    if (answer == b"\0") != served:
                        row.bad("code", f"{bytes([first])!r} with {count} descriptors: {answer!r}")
            wait_for(lambda: len(harness.family(daemon.pid)) == 1, "children to end")
            if len(os.listdir(home.file("queue/todo"))) != good:
                row.bad("half", f"{good} served, {os.listdir(home.file('queue/todo'))}")
            wait_for(lambda: len(os.listdir(descriptors)) == before, "what was passed to be closed")
        finally:
            for fd in files:
                os.close(fd)
    return [row]


# -- to the spawners

PIECES = (b"\0", b"\0", b"\0", b"\1", b"\2", b"1", b"9", b"/", b"@", b"a", b"\xff", b"s@h\0", b"1/1\0", b"/1\0", b"22/99999999999999999999\0", b"r@h\0",
          b"1" * 120 + b"\0", b"..\0", b"-x@h\0", b"\n", b"F\0T\0")


# What a request may be refused with for good: nothing in it can ever become right.
REFUSALS = (b"DInternal error: messid has nonnumerics. (#5.3.5)\n", b"DInternal error: messid too long. (#5.3.5)\n",
            b"DInternal error: messid too short. (#5.3.5)\n", b"DSorry, address must include host name. (#5.1.3)\n")


def spawner_model(stream):
    """The slots of whole requests, in order."""
    slots, at = [], 0
    while at < len(stream):
        ends, behind = 0, at + 1
        while ends < 3 and (end := stream.find(b"\0", behind)) >= 0:
            ends, behind = ends + 1, end + 1
        if ends < 3:
            break
        slots.append(stream[at])
        at = behind
    return slots


def to_spawner(program, arguments, count, seed, burst):
    """Requests of any bytes: one report for each whole one, for its slot, never a success, and the end is orderly."""
    in_memory()
    row = Row(f"{program}{', in bursts' if burst else ''}", "requests of any bytes; halves; fields of a megabyte")
    chance = random.Random(f"{seed} {program}")
    with harness.Home(users={}) as home:
        env = {**home.env, **({"QMAILBURST": "1"} if burst else {})}
        streams = [b"".join(chance.choice(PIECES) for _ in range(chance.choice((3, 30, 300, 3000)))) for _ in range(count)]
        streams += [bytes(chance.randrange(256) for _ in range(3000)) for _ in range(count)]
        streams += [b"\1" + b"1" * (1 << 20) + b"\0s\0r@h\0", b"\1" + b"1/1\0" + b"s" * (1 << 20) + b"\0r@h\0\2x\0s\0r@h\0", b"\1" + b"1/1\0s\0" + b"r" * (1 << 20) + b"@h\0",
                    b"\1" * (1 << 20), b"\0" * (1 << 16)]

        def done(stream, code, said):
            row.tried += 1
            slots = spawner_model(stream)
            found = [(report[0], report[1:]) for report in split_reports(said[1:])]
            if code != 0 or sorted(slot for slot, _ in found) != sorted(slots):
                row.bad("code", f"{stream[:200]!r}: exit {code}, {len(found)} reports on {len(slots)} requests: {said[:300]!r}")
            for slot, text in found:
                if text[:1] != b"Z" and text not in REFUSALS:
                    row.bad("code", f"{stream[:200]!r}: {slot} {text[:300]!r}")
        with Crowd([program, *arguments], env, done) as crowd:
            for stream in streams:
                crowd.put(stream, stream)
    return [row]


def to_spawner_without_end(program, arguments):
    """A field that never ends takes no memory."""
    in_memory()
    row = Row(program, "a field of 16 MiB", 1)
    with harness.Home(users={}) as home:
        process = subprocess.Popen([harness.program(program), *arguments], env=home.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            process.stdin.write(b"\1" + b"1" * (16 << 20) + b"\0s\0r@h\0")
            process.stdin.flush()
            process.stdout.read(4)
            if (used := peak(process.pid)) > MEMORY_MAX:
                row.bad("code", f"{used} KiB of memory")
        finally:
            process.stdin.close()
            process.stdout.close()
            process.wait(harness.TIMEOUT)
    return [row]


def split_reports(said):
    """Slot and text of each report, of a half one too: the first byte may be NUL."""
    at = 0
    while at < len(said):
        end = said.find(b"\0", at + 1)
        end = len(said) if end < 0 else end
        yield said[at:end]
        at = end + 1


# -- from the spawners to qmail-send

def to_send(way, rounds, seed):
    """Reports of any bytes: only what is a whole report on a delivery under way counts, and only its letter."""
    in_memory()
    row = Row(f"qmail-send, reports on {way} deliveries", "wrong slots, no letter, halves, floods, any bytes")
    many = 100
    for number in range(rounds):
        chance = random.Random(f"{seed} {way} {number}")
        with queue_rig.Queue(locals="local.example\n", concurrencylocal="120\n", concurrencyremote="120\n") as queue:
            queue.bounces_to()
            host = b"local.example" if way == "local" else b"far.example"
            with queue_rig.Sender(queue, limits=(120, 120)) as sender:
                message = queue.todo(b"s@far.example" if way == "local" else b"s@local.example", [b"r%d@%s" % (n, host) for n in range(many)])
                waiting = {r.slot: r.recipient for r in sender.wait_requests(many)}
                garbage = b""
                for _ in range(chance.choice((1, 10, 100))):
                    garbage += bytes([chance.choice((0, 1, 50, 99, 100, 119, 120, 121, 255, chance.randrange(256)))])
                    garbage += chance.choice((b"", b"K", b"D", b"Z", b"k", b"\n", b"\xff", b"KD", b"DK", b"x" * 3000, b"D" + b"y" * 20_000, b"K\xff\x1b[2J\n\n", b" K",
                                              bytes(chance.randrange(1, 256) for _ in range(20)))) + b"\0"
                garbage += chance.choice((b"", b"\5", b"\5K", b"\x63D half a report", b"\xff"))
                verdicts, left = report_model(garbage, waiting)
                sender.say(way, garbage)
                # The half ends as what it is; then everybody who is left succeeds.
                if left is not None:
                    more, _ = report_model(left + b"\0", {s: r for s, r in waiting.items() if r not in verdicts})
                    verdicts.update(more)
                    sender.say(way, b"\0")
                for slot, recipient in waiting.items():
                    if recipient not in verdicts:
                        verdicts[recipient] = b"K"
                        sender.say(way, bytes([slot]) + b"Kdone\n\0")
                row.tried += many
                deferred = [r for r, letter in verdicts.items() if letter == b"Z"]
                if deferred:
                    sender.wait_line(r"^delivery \d+: (success|failure|deferral|report mangled)", many)
                    name = queue_rig.split(way, message)

                    def marked():
                        # Behind the last NUL stand the marks that are believed; the letters go with them.
                        return {r[1:]: r[:1] for r in queue.read(name).split(b"\0")[:-1]} == {r: b"T" if v == b"Z" else b"D" for r, v in verdicts.items()}
                    try:
                        wait_for(marked, "the marks")
                    except AssertionError:
                        row.bad("lost", f"round {number}: {garbage[:300]!r}: marks {queue.read(name)[:300]!r}")
                    bounce = queue.read(f"bounce/{message}") if queue.there(f"bounce/{message}") else b""
                else:
                    sender.wait_cleaned(f"foop/{message}")
                    bounce = b"".join(text for _, text in queue.bounced())
                told = set(re.findall(rb"^<(r\d+@[a-z.]+)>:$", bounce.partition(b"--- Below this line")[0], re.M))
                failed = {r for r, letter in verdicts.items() if letter == b"D"}
                if told != failed:
                    row.bad("code", f"round {number}: bounced {sorted(told)} instead of {sorted(failed)}")
                if sender.process.poll() is not None or (used := peak(sender.process.pid)) > MEMORY_MAX:
                    row.bad("code", f"round {number}: ended, or more than {MEMORY_MAX} KiB")
                if odd := [line for line in sender.lines if re.search(r"[^ -~]", line)]:
                    row.bad("stray", f"round {number}: in the log {odd[:2]}")
    return [row]


def report_model(stream, waiting):
    """({recipient: letter}, a half report or None): who is reported on, by the first report on him; what is of no letter is
    tried again."""
    verdicts, at, waiting = {}, 0, dict(waiting)
    while at < len(stream):
        end = stream.find(b"\0", at + 1)
        if end < 0:
            return verdicts, stream[at:]
        if stream[at] in waiting:
            letter = stream[at + 1:at + 2]
            verdicts[waiting.pop(stream[at])] = letter if letter in (b"K", b"D") and end > at + 1 else b"Z"
        at = end + 1
    return verdicts, None


# -- the DNS

def record(name, kind, data, ttl=60, length=None):
    return encode_name(name) + struct.pack(">2HIH", kind, 1, ttl, len(data) if length is None else length) + data


def raw(query, answers, count=None, flags=0x8180, questions=1):
    return struct.pack(">6H", query.identity, flags, questions, len(answers) if count is None else count, 0, 0) + query.data[12:query.end] + b"".join(answers)


POINTER = b"\xc0\x0c"  # to the question


def answers():
    """{what: function of a Query}: answers to a question for MX or an address that no honest server gives."""
    null = mx(0, "")
    found = {
        "nothing": lambda q: [], "an empty packet": lambda q: [b""], "one byte": lambda q: [b"x"], "a header": lambda q: [q.data[:12]],
        "the question itself": lambda q: [q.data], "another identity": lambda q: [q.answer([(q.name, MX, null)], identity=q.identity ^ 0xff)],
        "another name asked": lambda q: [q.answer([(q.name, MX, null)], asked=encode_name("b.test") + struct.pack(">2H", q.kind, 1))],
        "another class": lambda q: [q.answer([(q.name, MX, null)], asked=encode_name(q.name) + struct.pack(">2H", q.kind, 3))],
        "no question": lambda q: [q.answer([(q.name, MX, null)], copy_question=False)],
        "65535 questions": lambda q: [raw(q, [record(q.name, MX, null)], questions=65535)],
        "65535 answers": lambda q: [raw(q, [record(q.name, MX, null)], 65535)], "more answers than it says": lambda q: [raw(q, [record(q.name, A, b"\x7f\0\0\1")] * 3, 0) + b"x"],
        "a pointer to itself": lambda q: [raw(q, [struct.pack(">H", 0xc000 | q.end) + struct.pack(">2HIH", MX, 1, 60, 3) + b"\0\0\0"])],
        "pointers in a ring": lambda q: [raw(q, [POINTER + struct.pack(">2HIH", MX, 1, 60, 6) + b"\0\1" + struct.pack(">2H", 0xc000 | (q.end + 16), 0xc000 | (q.end + 14))])],
        "a pointer beyond the end": lambda q: [raw(q, [POINTER + struct.pack(">2HIH", MX, 1, 60, 4) + b"\0\1\xff\xff"])],
        "a label of reserved type": lambda q: [raw(q, [POINTER + struct.pack(">2HIH", MX, 1, 60, 4) + b"\0\1\x80\x01"])],
        "a name of a thousand bytes": lambda q: [raw(q, [POINTER + struct.pack(">2HIH", MX, 1, 60, 1003) + b"\0\1" + (b"\x3f" + b"x" * 63) * 15 + b"\x27" + b"x" * 39 + b"\0"])],
        "data longer than the packet": lambda q: [raw(q, [record(q.name, MX, null, length=60000)])],
        "data shorter than a name": lambda q: [raw(q, [record(q.name, MX, b"\0", length=1)])], "an MX without name": lambda q: [raw(q, [record(q.name, MX, b"\0\1")])],
        "an address of three bytes": lambda q: [raw(q, [record(q.name, A, b"\1\2\3")])], "an address of five": lambda q: [raw(q, [record(q.name, A, b"\1\2\3\4\5")])],
        "a ring of aliases": lambda q: [q.answer([(q.name, CNAME, encode_name(q.name))])],
        "two aliases of each other": lambda q: [q.answer([(q.name, CNAME, encode_name("x.test")), ("x.test", CNAME, encode_name(q.name))])],
        "an endless chain of aliases": lambda q: [q.answer([(q.name, CNAME, encode_name("a" + q.name))])],
        "servfail": lambda q: [q.answer(rcode=SERVFAIL)], "a code of the future": lambda q: [q.answer(rcode=15)], "cut, and no TCP answer": lambda q: [] if q.tcp else [q.answer(flags=0x8380)],
        "cut by TCP too": lambda q: [q.answer(flags=0x8380)], "no such name, and a record": lambda q: [q.answer([(q.name, MX, mx(1, "x.test"))], rcode=NXDOMAIN)],
        "an inverse query": lambda q: [q.answer([(q.name, MX, null)], flags=0x8980)],
        "a referral": lambda q: [q.answer(flags=0x8000, authority=[("test", 2, encode_name("ns.test"))])],
        "noise": lambda q: [q.data[:2] + bytes(random.Random(n).randrange(256) for _ in range(300)) for n in range(20)],
    }

    def cut(length):
        return lambda q: [q.answer([(q.name, MX, null)])[:length]]
    for length in range(12 + 12 + 21):
        found[f"a good answer cut to {length} bytes"] = cut(length)
    return found


def dns(trials=None):
    """None of these is a reason to give up a message."""
    in_memory()
    row = Row("qmail-remote, DNS", "answers that are none, one after the other")
    with harness.Home(users={}) as home:
        def one(item):
            what, answer = item
            with Responder(lambda q: answer(q)) as server:
                result = home.run(["qmail-remote", "a.test", "s@test.example", "r@a.test"], b"x\n", {"DNSCACHEIP": server.address}, timeout=6 * harness.TIMEOUT)
            return what, result
        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            for what, result in pool.map(one, (trials or answers()).items()):
                row.tried += 1
                if result.code != 0 or result.err or not result.out.startswith(b"Z"):
                    row.bad("code", f"{what}: {result}")
    return [row]


def dns_much():
    """As many exchangers as an answer holds, times to live of every kind: what is good in it is used, in bounded memory and time."""
    in_memory()
    row = Row("qmail-remote, DNS", "3,000 MX, odd times to live, names that are none")
    nobody = harness.free_port()

    def many(q):
        if not q.tcp:
            return [q.answer(flags=0x8380)]
        return [raw(q, [POINTER + struct.pack(">2HIH", MX, 1, 60, 9) + struct.pack(">H", n % 65536) + b"\4m" + b"%03d" % (n % 1000) + POINTER for n in range(3000)])]

    trials = {"3,000 MX, as many as 64 KiB hold": many}
    for ttl in (0, 1, 0x7fffffff, 0x80000000, 0xffffffff):
        trials[f"time to live {ttl}"] = lambda q, ttl=ttl: [raw(q, [record(q.name, MX, mx(0, ""), ttl)])]
    for name in (b"a\0b", b"a b", b"a.b", b"\xff", b"a\n", b"-", b"*", b"_", b"A" * 63, b"127", b"[x]", b"a@b", b"\x1b[2J"):
        trials[f"exchanger {name}"] = lambda q, name=name: [raw(q, [record(q.name, MX, b"\0\1" + bytes([len(name)]) + name + b"\4test\0")])] if q.kind == MX else [q.answer(rcode=NXDOMAIN)]
    with harness.Home(users={}) as home:
        for what, answer in trials.items():
            row.tried += 1

            def other(q):
                return answer(q) if q.kind == MX else [q.answer(rcode=NXDOMAIN)]
            with Responder(other) as server:
                result = home.run(["prlimit", f"--as={64 << 20}", harness.program("qmail-remote"), "a.test", "s@test.example", "r@a.test"], b"x\n",
                                  {"DNSCACHEIP": server.address}, timeout=6 * harness.TIMEOUT)
            # None of them has an address; the null MX of the second kind says so itself.
            if result.code != 0 or result.err or not re.fullmatch(rb"[DZ][ -~\n]*\0", result.out):
                row.bad("code", f"{what}: {result}")
            if what.startswith("time") and not result.out.startswith(b"DSorry, a.test does not accept mail"):
                row.bad("code", f"{what}: {result}")
    return [row]
