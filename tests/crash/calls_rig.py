"""How one system call is made to fail: the tracer, the points of a case, and a system to start on what is left.

A case is a Stage: it makes its place once, and again and again puts a known thing there, runs the program, and judges.
`campaign` runs it undisturbed, compares the calls with strace's, and then runs it once for each point and fault.
"""

import collections
import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time

from tests import harness
from tests.crash.report import Row
from tests.queue_rig import Request

HERE = os.path.dirname(os.path.abspath(__file__))
ERRORS = ("EIO", "ENOSPC", "ENOMEM", "EMFILE", "EINTR", "EAGAIN")
TEXT_MAX = 2000  # characters of a finding
TRIES = 20  # what is not in step with a program may come sooner or later than the last time; the calls then differ
DEADLINE = 120  # seconds one run may take: a bound against hanging, far above the few milliseconds it does

# -- which fault makes sense where

# These do not fail, or only for wrong arguments: no caller can be asked to look.
CANNOT_FAIL = {
    "exit", "exit_group", "rt_sigreturn",  # do not return
    "getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid", "umask", "alarm", "set_tid_address", "arch_prctl",
    "rt_sigaction", "rt_sigprocmask", "sigaltstack", "getrlimit", "uname", "sched_yield",
    "brk",  # answers with the old end of memory, never with an errno
}
FCNTL_CANNOT_FAIL = ("0x1", "0x3")  # F_GETFD, F_GETFL: an open descriptor has its flags
# These can be short of memory and nothing else.
MEMORY = {"mmap": ("ENOMEM", "EAGAIN"), "munmap": ("ENOMEM",), "mremap": ("ENOMEM", "EAGAIN"), "mprotect": ("ENOMEM",), "madvise": ("ENOMEM", "EAGAIN")}
# close always closes; what it can say is that data of earlier writes were lost, or that it was interrupted.
CLOSE = ("EIO", "ENOSPC", "EINTR")
SHORT = {"read", "write", "pread64", "pwrite64"}
KINDS = ("an error", "a short count", "SIGKILL")

Point = collections.namedtuple("Point", "process number call result text")
Fault = collections.namedtuple("Fault", "point word kind option")


def faults_at(point):
    """Every fault that this call can meet."""
    name = point.call
    if name == "fcntl" and point.text.split(",")[1] in FCNTL_CANNOT_FAIL:
        errors, how = (), "error"
    elif name == "close":
        errors, how = CLOSE, "after"
    else:
        errors, how = () if name in CANNOT_FAIL else MEMORY.get(name, ERRORS), "error"
    found = [Fault(point, e, KINDS[0], f"{how}={getattr(errno, e)}") for e in errors]
    if name in SHORT and point.result > 1:
        for size in sorted({point.result // 2, 1}):
            found.append(Fault(point, f"{size} of {point.result} bytes", KINDS[1], f"count={size}"))
    return [*found, Fault(point, "SIGKILL", KINDS[2], "kill")]


@functools.cache
def call_names():
    """{number: name} of this machine's system calls."""
    found = {}
    text = subprocess.run(["cc", "-dM", "-E", "-include", "sys/syscall.h", "-xc", "/dev/null"], capture_output=True, check=True).stdout.decode()
    for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", text, re.M):
        found[int(number)] = name
    return found


# -- running a program

class Tools:
    """The tracer, compiled, and a place for reports; on a file system in memory if there is one, for syncs take time."""

    def __init__(self):
        if os.path.ismount("/dev/shm") and os.access("/dev/shm", os.W_OK):
            tempfile.tempdir = "/dev/shm"  # of this process: it is this case's alone
        self.base = tempfile.mkdtemp(prefix="qmail-calls-")
        os.chmod(self.base, 0o755)
        self.tracer = os.path.join(self.base, "calls_tracer")
        subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", self.tracer, f"{HERE}/calls_tracer.c"], check=True)

    def close(self):
        shutil.rmtree(self.base, ignore_errors=True)


class Run:
    """How a run ended."""

    def __init__(self, text):
        self.statuses, self.calls, self.programs, self.hit, self.hung = {}, [], {}, None, False
        for line in text.splitlines():
            kind, *words = line.split(" ")
            if kind == "c":
                name = call_names().get(int(words[2]), words[2])
                self.calls.append((words[0], int(words[1]), name, int(words[3]), " ".join(words[4:]), self.program(words[0])))
            elif kind == "x":
                self.programs[words[0]] = " ".join(words[1:])
            elif kind == "f":
                self.hit = call_names().get(int(words[2]), words[2])  # the call
            elif kind == "e":
                self.statuses[words[0]] = int(words[1])
            elif kind == "d":
                self.hung = True
        self.status = self.statuses.get("0")
        # None: by a signal.
        self.code = os.WEXITSTATUS(self.status) if self.status is not None and os.WIFEXITED(self.status) else None

    def program(self, process):
        """What a process is: its own last execve, or its parent's."""
        while process not in self.programs and "." in process:
            process = process.rpartition(".")[0]
        return self.programs.get(process, "")

    def killed(self, process="0"):
        status = self.statuses.get(process)
        return status is not None and os.WIFSIGNALED(status)


def spawn(argv, env, fds):
    """Starts a program with these descriptors {number: open one}; all others of ours are closed by execve."""
    high = {n: fcntl.fcntl(f, fcntl.F_DUPFD_CLOEXEC, 100) for n, f in fds.items()}  # out of each other's way
    try:
        path = argv[0] if "/" in argv[0] else shutil.which(argv[0])
        return os.posix_spawn(path, argv, env, file_actions=[(os.POSIX_SPAWN_DUP2, f, n) for n, f in high.items()],
                              setsigdef=[signal.SIGPIPE, signal.SIGXFSZ])
    finally:
        for f in high.values():
            os.close(f)


def filled(data):
    """The reading end of a pipe that holds this and ends."""
    r, w = os.pipe()
    os.write(w, data)  # less than a pipe holds
    os.close(w)
    return r


def traced(tools, options, argv, env, fds, step=None, told=None, early=False, late=False):
    """A Run of the program under the tracer. The descriptors are closed."""
    with tempfile.NamedTemporaryFile(dir=tools.base) as report:
        theirs = {}
        if step:
            (down, to), (come, up) = os.pipe(), os.pipe()
            theirs = {90: down, 91: up}
            options = ["-W" if early else "-w", "90,91", *(["-a"] if late else []), *options]
        try:
            pid = spawn([tools.tracer, "-l", report.name, "-d", str(DEADLINE), *options, "--", *argv], env, {**fds, **theirs})
        finally:
            for f in [*fds.values(), *theirs.values()]:
                os.close(f)
        if late:
            wake(pid)
        if step:
            drive(pid, to, come, step, told)
        _, status = os.waitpid(pid, 0)
        if status:
            raise AssertionError(f"{argv}: the tracer ended with {status}")
        return Run(report.read().decode(errors="replace"))


def wake(pid):
    """Waits until the program under this tracer sleeps, and has it looked at from there on."""
    def asleep():
        child = next(iter(children(pid)), None)
        return child and (process_state(child) == "S" and waits_in_poll(child) and child or process_state(child) == "Z" and -1)
    deadline = time.monotonic() + harness.TIMEOUT
    while not (child := asleep()):
        if time.monotonic() > deadline:
            raise AssertionError("the program does not sleep")
        time.sleep(0.001)
    if child > 0:
        os.kill(child, signal.SIGSTOP)


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            return [int(p) for p in f.read().split()]
    except OSError:
        return []


def executes(pid):
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None


def process_state(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def drive(pid, to, come, step, told):
    """In step with a traced program's waits, until it ends."""
    first = True
    try:
        while data := os.read(come, 8):
            if first and told:
                told(children(pid)[0])
            first = False
            answer = step(struct.unpack("q", data)[0])
            with contextlib.suppress(BrokenPipeError):
                os.write(to, answer)
    finally:
        os.close(to)
        os.close(come)


def follow(pid, program, step, told):
    """The same with a program under strace, which is known to wait when it sleeps in poll."""
    deadline = time.monotonic() + DEADLINE
    program = os.path.realpath(program)

    def started():
        return next((child for child in children(pid) if executes(child) == program), None)
    child = harness.wait_for(started, "strace's program")
    if told:
        told(child)
    while time.monotonic() < deadline:
        state = process_state(child)
        if state == "Z":
            return
        if state == "S" and waits_in_poll(child) and process_state(child) == "S":
            step(None)
        time.sleep(0.0005)
    raise AssertionError("the program under strace does not end")


def waits_in_poll(pid):
    try:
        with open(f"/proc/{pid}/syscall") as f:
            return f.read().split()[0] in ("7", "271")  # poll, ppoll
    except (OSError, IndexError):
        return False


def is_idle(pid):
    """Whether a process waits in poll, or has ended."""
    state = process_state(pid)
    return state == "Z" or state == "S" and waits_in_poll(pid) and process_state(pid) == "S"


class Stage:
    """One case. A subclass says what is run and judges; `tools` and `rig` are there from `enter` on."""

    name = "a program, and what it does"
    user = None  # (uid, gid), where the program must not begin as root
    ours = ()  # names of programs whose calls are points; () means all that are under test
    sample = 25  # points of the sample
    options = ("-t", "0")  # of the tracer: by these nobody waits for time to pass
    late = False  # points begin when the program has slept for the first time; step() comes from then on
    early = False  # step() is called before every poll, not only before those that would wait

    def __init__(self):
        self.extra = 0

    def enter(self, stack):
        """Makes the place, once; stack closes it."""

    def prepare(self):
        """Puts the known thing there. (argv, env, {descriptor: open one}); the descriptors are closed when it runs."""
        raise NotImplementedError

    step = None  # step(milliseconds): before the program waits in poll; b"g", or b"j" where time is to pass

    def after(self, run):
        """Between the end of the program and the judgement."""

    thin = 1  # of errors and short counts only each so-manieth is tried, by the seed; of SIGKILL all
    together = False  # two children at a time, which end when they like under strace: calls are compared up to then

    def told(self, pid):
        """Which process it is, before the first step."""

    def points(self, found):
        """Those that are tried here."""
        return found

    def judge(self, run, fault):
        """[(kind of report.WRONG, what)], after any fault, or none; adds second copies to self.extra. Cleans up."""
        raise NotImplementedError

    # -- one run

    def run(self, options=(), plain=False):
        """plain: with the clocks as they are."""
        argv, env, fds = self.prepare()
        usual = ("-t", "0") if plain else self.options
        who = ["-u", str(self.user[0]), "-g", str(self.user[1])] if self.user else []
        run = traced(self.tools, [*usual, *who, *options], [harness.program(argv[0]), *argv[1:]], env, fds,
                     self.step, self.told, self.early, self.late)
        self.after(run)
        return run

    def unlike_strace(self, run):
        """What is counted otherwise by strace, in words, or None. What others' programs do is not compared."""
        counted = self.straced()
        if self.late:
            counted["0"] = counted["0"][-len(calls_of(run)["0"]):]
        mine, theirs = {}, {}
        for process, calls in calls_of(run).items():
            own = [name for p, _, name, _, _, program in run.calls if p == process and is_ours(program)]
            if self.together:
                own = own[:own.index("wait4")] if process == "0" else own if process in ("0.0", "0.1") else []
            mine[process] = own
            theirs[process] = counted.get(process, [])[:len(own) if len(own) < len(calls) else None]
        for process in counted:
            theirs.setdefault(process, counted[process])
        return difference(mine, theirs)

    def straced(self):
        """{process: [names of calls]} as strace has them, from the program's first call on."""
        argv, env, fds = self.prepare()
        log = os.path.join(self.tools.base, "strace")
        who = ["setpriv", "--reuid", str(self.user[0]), "--regid", str(self.user[1]), "--clear-groups"] if self.user else []
        try:
            pid = spawn([shutil.which("strace"), "-f", "-qq", "-s", "300", "-o", log, *who, harness.program(argv[0]), *argv[1:]],
                        env, fds)
        finally:
            for f in fds.values():
                os.close(f)
        if self.step:
            follow(pid, harness.program(argv[0]), self.step, self.told)
        os.waitpid(pid, 0)
        names, found, children, begun = {}, {}, collections.Counter(), False
        early = collections.defaultdict(list)
        with open(log, errors="replace") as f:
            for line in f:
                number, _, text = line.partition(" ")
                pid, text = int(number), text.strip()
                if not names:
                    names[pid] = "0"
                process = names.get(pid)
                if not begun:
                    begun = text.startswith(f'execve("{harness.program(argv[0])}"') and text.endswith("= 0")
                    if begun:
                        found["0"] = []
                    continue
                if m := re.match(r"(\w+)\(", text):
                    (found.setdefault(process, []) if process else early[pid]).append(m[1])
                if m := re.match(r"(?:<\.\.\. )?(?:clone|clone3|fork|vfork)(?:\(| resumed).* = (\d+)$", text):
                    child = int(m[1])
                    names[child] = f"{process}.{children[process]}"
                    children[process] += 1
                    found[names[child]] = early.pop(child, [])
        self.after(None)
        return found


def calls_of(run):
    found = {}
    for process, _, name, *_ in run.calls:
        found.setdefault(process, []).append(name)
    return found


def difference(one, other):
    """In words, or None."""
    for process in sorted(set(one) | set(other)):
        a, b = one.get(process, []), other.get(process, [])
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            return f"process {process}: {len(a)} calls and {len(b)}; at {at + 1}: {a[at:at + 3]} and {b[at:at + 3]}"
    return None


def campaign(make, sample=False, seed=1, part=(1, 1)):
    """All points of a stage (or a sample): its rows. part: (k, n) tries the k-th of n equal shares."""
    with contextlib.ExitStack() as stack:
        stage = make()
        stage.tools = Tools()
        stack.callback(stage.tools.close)
        stage.enter(stack)
        return attempt(stage, sample, seed, part)


def attempt(stage, sample, seed, part):
    rows = {kind: Row(stage.name, kind) for kind in KINDS}
    first = stage.run()
    wrong = stage.judge(first, None)
    if wrong or first.hung or stage.extra:
        raise AssertionError(f"{stage.name} without a fault: {wrong} {stage.extra} {first.statuses} hung: {first.hung}")
    for _ in range(TRIES):
        again = stage.run()
        stage.judge(again, None)
        unlike = difference(calls_of(first), calls_of(again))
        if not unlike:
            break
        first = again
    else:
        raise AssertionError(f"{stage.name} differs from run to run: {unlike}")
    plain = first
    if stage.options != ("-t", "0"):
        plain = stage.run(plain=True)
        stage.judge(None, None)
    for _ in range(TRIES):
        unlike = stage.unlike_strace(plain)
        stage.judge(None, None)
        if not unlike:
            break
    if unlike:
        rows["SIGKILL"].bad("code", f"the calls are not those that strace counts: {unlike}")
    points = stage.points([Point(process, number, name, result, text) for process, number, name, result, text, program in first.calls
                           if os.path.basename(program) in stage.ours or (not stage.ours and is_ours(program))])
    faults = [fault for point in points for fault in faults_at(point)]
    faults = [fault for n, fault in enumerate(faults) if (n + seed) % stage.thin == 0 or fault.kind == "SIGKILL"]
    if sample:
        faults = random.Random(seed).sample(faults, min(stage.sample, len(faults)))
    else:
        faults = faults[part[0] - 1::part[1]]
    for fault in faults:
        row = rows[fault.kind]
        for _ in range(TRIES):  # what others do may come a little earlier
            stage.extra = 0
            run = stage.run(["-p", fault.point.process, "-n", str(fault.point.number), "-f", fault.option])
            wrong = stage.judge(run, fault)
            if run.hit or wrong:
                break
        row.tried += 1
        row.extra += stage.extra
        if not run.hit:
            wrong.append(("code", "the program did not come to this call"))
        if run.hung:
            wrong.append(("stuck", f"no end within {DEADLINE} s"))
        for kind, text in wrong:
            p = fault.point
            program = os.path.basename(first.program(p.process))
            row.bad(kind, f"{fault.word} at call {p.number} of process {p.process} ({program}): {p.call} {p.text}: {text[:TEXT_MAX]}")
    stage.counted = len(points), len(first.calls)
    return list(rows.values())


def is_ours(program):
    return os.path.dirname(program) == os.path.realpath(harness.BIN)


# -- what is in a queue

TOPS = ("pid", "mess", "intd", "todo", "info", "local", "remote", "bounce")


def files_of(home):
    """{path in queue/: content}."""
    found, queue = {}, home.file("queue")
    for top in TOPS:
        with os.scandir(f"{queue}/{top}") as entries:
            for entry in entries:
                if entry.is_dir():
                    for name in os.listdir(entry.path):
                        found[f"{top}/{entry.name}/{name}"] = None
                else:
                    found[f"{top}/{entry.name}"] = None
    for name in found:
        with open(f"{queue}/{name}", "rb") as f:
            found[name] = f.read()
    return found


def clear(home, names=None):
    for name in files_of(home) if names is None else names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(home.file("queue/" + name))


RECEIVED = re.compile(rb"\A(?:Received: \(qmail \d+ [^\n]*\n)+")


def state_of(home, files):
    """What is in the queue, without what differs from run to run: two that are equal are dealt with alike."""
    numbers, state = {}, []
    for name in sorted(files):
        number = name.rpartition("/")[2]
        alias = numbers.setdefault(number, f"N{len(numbers)}")
        top, content = name.partition("/")[0], files[name]
        status = os.stat(home.file("queue/" + name))
        linked = [other for other in (f"intd/{number}", f"todo/{number}") if other in files and
                  os.stat(home.file("queue/" + other)).st_ino == status.st_ino]
        right = top == "mess" and status.st_ino == int(number) or ""
        if top == "mess":
            head, end, body = content.partition(b"\n\n")
            content = re.sub(rb"\d+", b"#", head) + end + body
        elif top in ("intd", "todo", "info"):
            content = describe_record(number, content, files)
        elif top == "bounce":
            content = re.sub(rb"\d+", b"#", content)
        state.append((top, alias, right, len(linked), status.st_nlink, status.st_mode, content))
    return hashlib.sha256(repr(state).encode()).digest(), numbers


def describe_record(number, content, files):
    """Numbers and digests replaced by whether they are right."""
    mess = next((c for n, c in files.items() if n.startswith("mess/") and n.endswith("/" + number)), None)

    def check(m):
        if mess is None:
            return b"p without mess"
        right = int(m[1]) == len(mess) and m[2].decode() == hashlib.sha256(mess).hexdigest()
        return b"p right" if right else b"p wrong"
    content = re.sub(rb"p\d+ (\d+) ([0-9a-f]{64}) [0-9a-f]{64}(?=\0)", check, content)
    return re.sub(rb"p\d+", b"p#", re.sub(rb"\bc[0-9a-f]{64}", b"c#", content))


# -- qmail-send among players, and clocks that go as they are told

class World:
    """One qmail-send whose spawners, cleaner and queue door are played, in step with its waits in poll.

    Before each wait the world does one thing: the same every time. When there is nothing to do time passes.
    """

    JUMPS_MAX = 400
    SECONDS_MAX = 30 * 86400  # nothing in a queue takes longer than that

    def __init__(self, home, tools, answer, cleaner=None, script=None):
        """answer(request): a report. cleaner: a running qmail-clean (Cleaner), or None: played here. script(world):
        called when there is nothing to do; True when it has done something (sent a signal), False: let time pass; a byte:
        what the tracer is to be told."""
        self.home, self.tools, self.answer, self.cleaner, self.script = home, tools, answer, cleaner, script
        self.requests, self.bounces, self.jumps, self.passed, self.stuck = [], [], 0, 0, None
        self.stopping = False
        self.log = os.path.join(tools.base, "log")
        self.door = None

    def _listen(self):
        """The queue's door, where bounces are handed in."""
        path = self.home.file("run/queue")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self.door = socket.socket(socket.AF_UNIX)
        self.door.bind(path)
        os.chmod(path, 0o666)
        self.door.listen()
        self.door.setblocking(False)

    def argv(self):
        return [harness.program("qmail-send")]

    def open(self, greeted=False):
        """The descriptors of qmail-send, {number: open one}. greeted: its first question is answered before it asks."""
        self._listen()
        self.parent, child = {}, {}
        for fd, child_reads in {1: False, 2: True, 3: False, 4: True, 5: False, 6: True}.items():
            r, w = os.pipe()
            child[fd], self.parent[fd] = (r, w) if child_reads else (w, r)
            os.set_blocking(self.parent[fd], False)
        os.write(self.parent[2], bytes([self.slots[0]]))
        os.write(self.parent[4], bytes([self.slots[1]]))
        child[0] = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self.data = {1: b"", 3: b"", 5: b""}
        self.greeted = greeted
        if greeted:
            os.write(self.parent[6], b"x")
        return child

    slots = (120, 120)

    def close(self):
        for f in self.parent.values():
            os.close(f)
        self.parent = {}
        self.door.close()

    def lines(self):
        """The log, or its beginning and end."""
        with open(self.log, "rb") as f:
            text = f.read().decode("latin-1")
        return text if len(text) < 1500 else text[:500] + "...\n" + text[-1000:]

    # -- one thing a time

    def step(self, milliseconds):
        """Before a wait of so long: b"g", something was done or is to be waited for, or b"j", time passes."""
        for fd in self.data:
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(self.parent[fd], 65536):
                    self.data[fd] += chunk
        if self._clean() or self._deliver() or self._bounce():
            return b"g"
        if self.script and (said := self.script(self)):
            return said if isinstance(said, bytes) else b"g"
        if milliseconds is None:
            return b"j"
        self.jumps += 1
        self.passed += max(0, milliseconds) / 1000
        if self.jumps > self.JUMPS_MAX or self.passed > self.SECONDS_MAX:
            self.stuck = f"nothing happens in {self.jumps} turns and {self.passed:.0f} seconds"
        if self.stuck:
            self.signal(signal.SIGKILL)
        return b"j"

    def delivered(self):
        return [(r.way, r.sender, r.recipient, content) for r, content, report in self.requests if report[:1] == b"K"]

    def told(self, pid):
        self.pid = pid

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _say(self, fd, data):
        with contextlib.suppress(BrokenPipeError):
            os.write(self.parent[fd], data)

    def _clean(self):
        if b"\0" not in self.data[5]:
            return False
        request, _, self.data[5] = self.data[5].partition(b"\0")
        if self.cleaner:
            self._say(6, self.cleaner.ask(request))
            return True
        if not request:
            if not self.greeted:
                self._say(6, b"x")
                return True
            self.greeted = False
            return self._clean()
        verb, number = request.decode().split("/")
        for name in [f"intd/{number}", f"mess/{int(number) % 23}/{number}" if verb == "foop" else f"todo/{number}"]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.home.file("queue/" + name))
        self._say(6, b"+")
        return True

    def _deliver(self):
        for way, fd, reports in (("local", 1, 2), ("remote", 3, 4)):
            data = self.data[fd]
            if len(data) > 1 and data.count(b"\0", 1) >= 3:
                path, sender, recipient, self.data[fd] = data[1:].split(b"\0", 3)
                try:
                    with open(self.home.file("queue/mess/" + path.decode()), "rb") as f:
                        content = f.read()
                except OSError:
                    content = None
                request = Request(way, data[0], int(path.split(b"/")[1]), sender, recipient)
                report = self.answer(request)
                self.requests.append((request, content, report))
                self._say(reports, bytes([data[0]]) + report + b"\0")
                return True
        return False

    def _bounce(self):
        try:
            connection, _ = self.door.accept()
        except BlockingIOError:
            return False
        with connection:
            connection.settimeout(harness.TIMEOUT)
            try:
                data, passed, _, _ = socket.recv_fds(connection, 2, 2)
            except OSError:
                return True
            texts = []
            for fd in passed:
                with open(fd, "rb") as f:
                    texts.append(f.read())
            if data == b"1" and len(texts) == 2:
                whole = texts[1].endswith(b"\0\0")
                if whole:
                    self.bounces.append((texts[0], texts[1]))
                with contextlib.suppress(OSError):
                    connection.sendall(b"\0" if whole else bytes([54]))
        return True


class Cleaner:
    """A real qmail-clean whose clocks are ahead."""

    def __init__(self, home, tools, ahead):
        (r, self.to), (self.come, w) = os.pipe(), os.pipe()
        self.pid = spawn([tools.tracer, "-l", os.path.join(tools.base, "cleaner"), "-d", str(DEADLINE), "-t", str(ahead), "--",
                          harness.program("qmail-clean")], home.env, {0: r, 1: w})
        os.close(r)
        os.close(w)

    def ask(self, request):
        os.write(self.to, request + b"\0")
        ready, _, _ = select.select([self.come], [], [], harness.TIMEOUT)
        if not ready:
            raise AssertionError("qmail-clean does not answer")
        return os.read(self.come, 1)

    def close(self):
        os.close(self.to)
        os.close(self.come)
        os.waitpid(self.pid, 0)


AHEAD = 40 * 3600  # whatever has been left is old enough to be cleaned up

Healed = collections.namedtuple("Healed", "delivered bounced left stuck log")


def heal(home, tools, answer=lambda request: b"Ksaid\n"):
    """A real start of qmail-send and qmail-clean, 40 hours later, until nothing is to be done: what came of it.

    delivered: [(way, sender, recipient, content)]; bounced: [(message, envelope)]; left: files; stuck: why, or None."""
    cleaner = Cleaner(home, tools, AHEAD)
    greeting = {"stopped": False}

    def script(world):
        if greeting["stopped"] or "status: local 0/" not in world.lines():
            return False
        if not any(n.partition("/")[0] for n in files_of(home)):
            greeting["stopped"] = True
            world.signal(signal.SIGTERM)
            return True
        return False
    world = World(home, tools, answer, cleaner, script)
    world.JUMPS_MAX = 60
    try:
        run = traced(tools, ["-t", str(AHEAD)], world.argv(), home.env, world.open(), world.step, world.told)
    finally:
        world.close()
        cleaner.close()
    delivered = world.delivered()
    stuck = world.stuck or (None if run.code == 0 else f"qmail-send ended with {run.statuses}")
    return Healed(delivered, world.bounces, sorted(files_of(home)), stuck, world.lines())


class Healer:
    """Starts the system on what a fault left; states that differ in nothing that matters are started once."""

    def __init__(self, home, tools, answer=lambda request: b"Ksaid\n"):
        self.home, self.tools, self.answer, self.known = home, tools, answer, {}

    def heal(self, files=None):
        files = files_of(self.home) if files is None else files
        if not files:
            return Healed([], [], [], None, "")
        key, _ = state_of(self.home, files)
        if key not in self.known:
            self.known[key] = heal(self.home, self.tools, self.answer)
        clear(self.home)
        return self.known[key]
