"""The workloads, each done by ours and by every peer in turn, a round after the other.

A workload is a function that yields (case, row) for one system that it starts itself; a row is what was measured. All rows
go to tests/bench/table.py and, with --json, into a file. What the drivers do is said at the head of tests/bench/load.c.
"""

import contextlib
import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import time

from tests import dnsserver
from tests.bench import systems
from tests.bench.meter import Meter
from tests.harness import wait_for

COUNTERS = ("connections", "open", "peak", "messages", "recipients", "bytes", "last", "deferred", "defer", "delay")
SINK_HOSTS = 100

# How much of everything (patience: seconds any single piece of work may take, a bound against hanging): full is what the limits are for, quick shows whether it works, tiny is for tests.
SCALES = {
    "full": {"patience": 1800, "rounds": 3, "writers": (1, 10, 50), "sizes": (1024, 32768), "messages": 1000, "alone": 300, "recipients": 10000,
             "deferred": 20000, "burst": 20000, "fresh": 100, "backlog": 100000, "pop": 2000, "connections": 500, "starts": 300},
    "quick": {"patience": 300, "rounds": 1, "writers": (1, 10, 50), "sizes": (1024,), "messages": 300, "alone": 100, "recipients": 10000,
              "deferred": 1000, "burst": 2000, "fresh": 40, "backlog": 3000, "pop": 2000, "connections": 500, "starts": 50},
    "tiny": {"patience": 150, "rounds": 1, "writers": (1, 5), "sizes": (1024,), "messages": 20, "alone": 5, "recipients": 150,
             "deferred": 20, "burst": 40, "fresh": 3, "backlog": 30, "pop": 20, "connections": 10, "starts": 2},
}


class Sink:
    """Where outgoing mail ends; its counters by name."""

    def __init__(self, load, directory):
        self.path = os.path.join(directory, "counters")
        self.process = subprocess.Popen([load, "sink", "-p", "25", self.path], stdout=subprocess.PIPE)
        if self.process.stdout.readline() != b"ready\n":
            raise SystemExit("bench: the sink does not listen")
        self.file = open(self.path, "r+b")
        self.map = mmap.mmap(self.file.fileno(), 8 * len(COUNTERS))

    def __getitem__(self, name):
        return struct.unpack_from("=Q", self.map, 8 * COUNTERS.index(name))[0]

    def __setitem__(self, name, value):
        struct.pack_into("=Q", self.map, 8 * COUNTERS.index(name), value)

    def reset(self, defer=0, delay=0):
        """Counts from nothing. A connection that a system keeps stays one that is open."""
        for name in COUNTERS:
            if name != "open":
                self[name] = 0
        self["peak"], self["defer"], self["delay"] = self["open"], defer, delay

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self.process.stdout.close()
        self.map.close()
        self.file.close()


def zones():
    hosts = "\n".join(f"h{n} MX 10 h{n}\nh{n} A 127.0.1.{n}" for n in range(1, SINK_HOSTS + 1))
    return {"sink.example": f"@ MX 10 h1\n{hosts}\n", "defer.example": "@ MX 10 mx\nmx A 127.0.2.1\n",
            systems.DOMAIN: "@ MX 10 mx\nmx A 127.0.0.1\n", "127.in-addr.arpa": "1.0.0 PTR localhost.\n", "localhost": "@ A 127.0.0.1\n"}


class Bench:
    """The ground all stand on, and the drivers."""

    def __init__(self, disk, device, load, scale, only=()):
        self.disk, self.device, self.load, self.scale, self.only = disk, device, load, SCALES[scale], only
        self.rows, self.systems, self.stack, self.patience = [], {}, contextlib.ExitStack(), self.scale["patience"]

    @contextlib.contextmanager
    def around(self):
        self.base = os.path.dirname(self.load)
        # A machine with loopback only has no addresses in the eyes of some resolvers (AI_ADDRCONFIG).
        systems.sh("ip", "link", "add", "outside", "type", "veth", "peer", "name", "beyond")
        systems.sh("ip", "address", "add", "192.0.2.1/24", "dev", "outside")
        for end in ("outside", "beyond"):
            systems.sh("ip", "link", "set", end, "up")
        # A client that comes when the queue of a listener is full is answered a second later, not forgotten.
        with open("/proc/sys/net/ipv4/tcp_syncookies", "w") as f:
            f.write("0")
        self.sink = Sink(self.load, self.base)
        try:
            with dnsserver.Nsd(zones(), port=53), self.stack:
                yield self
        finally:
            self.sink.close()

    def there(self, kinds):
        return [kind for kind in kinds if kind.there() and (not self.only or kind.name in self.only)]

    def prepared(self, kind):
        """The one system of this kind; it stays until the end of the run."""
        if kind not in self.systems:
            began = time.monotonic()
            system = self.systems[kind] = kind(self.disk, self.device)
            self.stack.callback(system.close)
            system.prepare()
            print(f"# {system.name} prepared: {time.monotonic() - began:.1f} s", flush=True)
        return self.systems[kind]

    def run(self, name, work, kinds):
        """Every system does the work, in turn, so many rounds."""
        if kinds is None:
            return self.keep(name, "raw", 0, work(self))
        there = [self.prepared(kind) for kind in self.there(kinds)]
        for turn in range(self.scale["rounds"] if work not in ONCE else 1):
            for system in there[turn % len(there):] + there[:turn % len(there)]:
                system.pop = work is pop
                started = time.monotonic()
                try:
                    self.keep(name, system.name, turn, work(self, system))
                except (AssertionError, SystemExit, subprocess.SubprocessError) as trouble:
                    self.rows.append({"workload": name, "case": "", "system": system.name, "round": turn, "trouble": str(trouble)[:400]})
                    print(f"{name}: {system.name}: {trouble}", flush=True)
                finally:
                    ended = time.monotonic()
                    system.stop()
                    system.clean()
                print(f"# {name}, round {turn + 1}, {system.name}: {ended - started:.1f} s, and {time.monotonic() - ended:.1f} s to end", flush=True)
        return None

    def keep(self, name, system, turn, cases):
        for case, row in cases:
            self.rows.append({"workload": name, "case": case, "system": system, "round": turn, **row})

    # -- drivers

    def drive(self, what, *arguments, group=None, env=None):
        done = subprocess.run([self.load, what, *map(str, arguments)], capture_output=True, text=True, timeout=self.patience, cwd="/",
                              env=env, preexec_fn=group.join if group else None)
        if done.returncode:
            raise SystemExit(f"bench: load {what} ended with {done.returncode}: {done.stderr[-400:]}")
        return json.loads(done.stdout.splitlines()[-1])

    @contextlib.contextmanager
    def driver(self, what, *arguments):
        """A driver that says when it is ready; its result when it has ended by itself."""
        process = subprocess.Popen([self.load, what, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if process.stdout.readline() != "ready\n":
                raise SystemExit(f"bench: load {what} is not ready")
            yield process
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def result(self, process):
        out, _ = process.communicate(timeout=self.patience)
        if process.returncode:
            raise SystemExit(f"bench: a driver ended with {process.returncode}: {out}")
        return json.loads(out.splitlines()[-1])

    def watch(self, system, messages, users=systems.USERS):
        return self.driver("watch", "-m", messages, "-t", self.patience, *[system.new(user) for user in users])

    def settled(self, system):
        """The queue is empty: what removes messages behind their delivery is part of the work."""
        wait_for(lambda: system.queued(at_most=0) == 0, f"the queue of {system.name} to be empty", self.patience)

    def warm(self, system, messages=20):
        with self.watch(system, messages) as watch:
            self.drive("smtp", "-c", 5, "-m", messages, "-u", len(systems.USERS))
            self.result(watch)
        self.settled(system)

    def away(self, messages):
        wait_for(lambda: self.sink["messages"] >= messages, f"{messages} messages at the sink", self.patience)
        return self.sink["last"] / 1e9


def cost(meter, messages, seconds, **more):
    """A row: how long, and what it cost a message."""
    row = meter.end(**{name: more.pop(name) for name in ("cpu", "forks") if name in more})
    return {"messages": messages, "seconds": seconds, "cpu": row["cpu"], "flushes": row["flushes"], "forks": row["forks"], **more}


def latency(done):
    return {"median": done["ms"]["median"], "p95": done["ms"]["p95"]}


# -- the workloads

def raw(bench):
    """What the disk allows: create, write, fsync, rename, sync of the directory."""
    directory = os.path.join(bench.disk, "raw")
    for size in bench.scale["sizes"]:
        for writers in bench.scale["writers"]:
            for _ in range(bench.scale["rounds"]):
                os.mkdir(directory)
                meter = Meter(systems.Nobody(), bench.device).begin()
                done = bench.drive("raw", "-c", writers, "-m", amount(bench, writers), "-l", size, directory)
                yield f"{size} bytes, {writers}", cost(meter, done["messages"], done["seconds"], forks=done["forks"] + 1)
                shutil.rmtree(directory)
                systems.sh("sync", "-f", bench.disk)


def amount(bench, writers):
    return bench.scale["alone"] if writers == 1 else bench.scale["messages"]


def sendmail(bench, system):
    """An ordinary user's sendmail, so many at a time; a message counts when its sendmail has ended well. Who refuses some
    has not done the work, which the table says."""
    system.start()
    bench.warm(system)
    for writers in bench.scale["writers"]:
        messages = amount(bench, writers)
        meter = Meter(system.group, bench.device).begin()
        done = bench.drive("inject", *system.inside(), "-U", systems.ACCOUNTS["u0"], "-c", writers, "-m", messages, "-u",
                           len(systems.USERS), system.sendmail, "-i", group=system.group)
        bench.settled(system)
        yield f"{writers} at a time", cost(meter, done["messages"], done["seconds"], cpu=done["cpu"], forks=1, refused=done["failed"],
                                           settled=time.monotonic() - done["began"], **latency(done))


def smtp(bench, system):
    """SMTP in, a connection a message, to 50 users' Maildirs; a message counts when it lies there."""
    system.start()
    bench.warm(system)
    for size in bench.scale["sizes"]:
        for connections in bench.scale["writers"]:
            messages = amount(bench, connections)
            with bench.watch(system, messages) as watch:
                meter = Meter(system.group, bench.device).begin()
                done = bench.drive("smtp", "-c", connections, "-m", messages, "-l", size, "-u", len(systems.USERS))
                arrived = bench.result(watch)
            bench.settled(system)
            yield f"{size} bytes, {connections}", cost(meter, messages, arrived["last"] - done["began"], forks=1,
                                                       accepted=done["seconds"], **latency(done))


def relay(bench, system):
    """SMTP in, and out to a sink found by DNS; a message counts when the sink has it."""
    system.start()
    bench.warm(system)
    for connections in bench.scale["writers"]:
        messages = amount(bench, connections)
        bench.sink.reset()
        meter = Meter(system.group, bench.device).begin()
        done = bench.drive("smtp", "-c", connections, "-m", messages, "-u", len(systems.USERS), "-d", "sink.example")
        end = bench.away(messages)
        bench.settled(system)
        yield f"{connections}", cost(meter, messages, end - done["began"], forks=1, accepted=done["seconds"],
                                     connections=bench.sink["connections"], **latency(done))


def recipients(bench, system):
    """One message to very many recipients, given to sendmail; done when the sink has accepted them all."""
    system.start()
    bench.warm(system)
    count = bench.scale["recipients"]
    for case, hosts, delay in (("one host", 1, 0), ("one host, 20 ms away", 1, 20), ("100 hosts", SINK_HOSTS, 0)):
        bench.sink.reset(delay=delay)
        meter = Meter(system.group, bench.device).begin()
        done = bench.drive("inject", *system.inside(), "-U", systems.ACCOUNTS["u0"], "-r", count, "-H", hosts, system.sendmail, "-i",
                           group=system.group)
        # The last message is counted when its text has come, behind its recipients.
        wait_for(lambda: bench.sink["recipients"] >= count, f"{count} recipients at the sink", bench.patience)
        bench.settled(system)
        yield case, cost(meter, count, bench.sink["last"] / 1e9 - done["began"], cpu=done["cpu"], forks=1, bytes=bench.sink["bytes"],
                         connections=bench.sink["connections"], peak=bench.sink["peak"], transactions=bench.sink["messages"])
    bench.sink.reset()


def fill(bench, system, count):
    """That many messages in the queue for a host that defers, each tried once or put behind one that was."""
    bench.sink.reset(defer=1)
    bench.drive("smtp", "-c", 20, "-m", count, "-u", len(systems.USERS), "-d", "defer.example")
    wait_for(lambda: system.queued() >= count, "the messages to be in the queue", bench.patience)
    calm = [None, 0.0]

    def quiet():
        if bench.sink["deferred"] != calm[0]:
            calm[:] = [bench.sink["deferred"], time.monotonic()]
        return time.monotonic() - calm[1] > 2
    with contextlib.suppress(AssertionError):  # who tries again and again does so beside the fresh mail too
        wait_for(quiet, "quiet", 120)


def fresh(bench, system):
    """SMTP to a Maildir, one after the other, in an empty queue; while remote mail flows in; beside deferred mail."""
    system.start()
    bench.warm(system)
    count, new = bench.scale["fresh"], system.new("fresh")

    def latencies(case):
        meter = Meter(system.group, bench.device).begin()
        done = bench.drive("fresh", "-m", count, new)
        return case, cost(meter, count, done["seconds"], forks=1, accepted_ms=done["accepted_ms"], **latency(done))
    yield latencies("empty queue")
    bench.sink.reset()
    arguments = ["-c", 20, "-m", bench.scale["burst"], "-u", len(systems.USERS), "-d", "sink.example"]
    flood = subprocess.Popen([bench.load, "smtp", *map(str, arguments)], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: bench.sink["messages"] >= 1, "the burst to begin")
        case, row = latencies("in a burst")
        row["burst"] = "still there" if flood.poll() is None else "over before the last"
        yield case, row
        bench.away(bench.scale["burst"])
        flood.wait(bench.patience)
    finally:
        flood.kill()
        flood.wait()
    bench.settled(system)
    fill(bench, system, bench.scale["deferred"])
    yield latencies(f"beside {bench.scale['deferred']} deferred")
    bench.sink["defer"] = 0


def backlog(bench, system):
    """A host that deferred accepts again, and the system is told to try all now; done when the sink has everything."""
    count = bench.scale["backlog"]
    system.start()
    fill(bench, system, count)
    bench.sink.reset()
    meter = Meter(system.group, bench.device).begin()
    began = time.monotonic()
    system.flush()
    end = bench.away(count)
    bench.settled(system)
    yield f"{count} messages", cost(meter, count, end - began, connections=bench.sink["connections"])


def pop(bench, system):
    """POP3: login, list, then RETR and DELE of each message, QUIT; a client that waits for each answer."""
    count = bench.scale["pop"]
    for n in range(count):
        path = os.path.join(system.new("u0"), f"{1700000000 + n}.{n}.bench")
        systems.put(path, f"From: <a@b.example>\nSubject: {n}\n\n" + ("x" * 63 + "\n") * 60, 0o600)
        os.chown(path, systems.ACCOUNTS["u0"], systems.ACCOUNTS["u0"])
    systems.sh("sync", "-f", system.disk)
    system.start()
    meter = Meter(system.group, bench.device).begin()
    done = bench.drive("pop", "-p", 110, "-d", "u0", "-P", systems.PASSWORD)
    if done["messages"] != count or system.messages("u0") != 0:
        raise SystemExit(f"bench: {done['messages']} of {count} messages read, {system.messages('u0')} left")
    yield f"{count} messages", cost(meter, count, done["seconds"], forks=1, read=done["read"], listing=done["list"])


def start(bench, system):
    """From posix_spawn to exit of a program that finds no home or refuses its arguments: what starting it costs."""
    env = {**os.environ, "QMAIL_HOME": "/nonexistent"}
    for program in system.programs():
        done = bench.drive("start", *system.inside(), "-m", bench.scale["starts"], program, "--no-such-option", env=env)
        yield os.path.basename(program), {"seconds": done["ms"]["median"] / 1e3, "messages": 1, "code": done["code"], **latency(done)}


def memory(bench, system):
    """Sum of Pss when nothing happens and with idle SMTP connections; and what the machine has less of with these."""
    system.start()
    bench.warm(system, 5)
    # What only served the warming ends by itself, or stays because the system keeps it.
    calm = [None, 0.0]

    def quiet():
        family = sorted(system.group.pids())
        if family != calm[0]:
            calm[:] = [family, time.monotonic()]
        return time.monotonic() - calm[1] > 1
    wait_for(quiet, "the system to be idle", 60)
    size, processes = system.group.pss()
    yield "idle", {"pss": size, "processes": processes}
    count = bench.scale["connections"]
    before = available()
    with bench.driver("idle", "-c", count) as clients:
        machine = before - available()
        more, processes = system.group.pss()
        done = bench.result(clients)
    yield f"{count} connections", {"pss": more, "processes": processes, "each_pss": (more - size) / count, "each_machine": machine / count,
                                   "served": done["served"], "ended": done["ended"]}


def available():
    with open("/proc/meminfo") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("MemAvailable:"))


WORK = {"raw": (raw, None), "sendmail": (sendmail, systems.MAIL), "smtp": (smtp, systems.MAIL), "relay": (relay, systems.MAIL),
        "recipients": (recipients, systems.MAIL), "fresh": (fresh, systems.MAIL), "backlog": (backlog, systems.MAIL),
        "pop": (pop, systems.POP), "start": (start, systems.START), "memory": (memory, systems.MAIL)}
ONCE = (fresh, backlog, start)  # long, or the same each time: one round
