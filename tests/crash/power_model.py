"""What a power cut may leave: every state of the files that a model of a file system allows behind a step of a record.

posix   a name is durable when its directory has been synced, data when its file has; everything else has happened
        or not, each name and each write for itself, a write also torn (its first half) or of zeros
btrfs   as posix, and a sync of a file makes the names it has durable
ext4    names change in order: some beginning of all changes, at least to what was last synced; of each file the
        synced data, and the rest all or not

A state is {path: (File, content)}.
"""

import itertools
import os
import random
import re

MODELS = ("posix", "ext4", "btrfs")
# Names that nobody reads at a start: whether they are there changes nothing but what is swept.
UNREAD = re.compile(r"queue/pid/|home/\w+/Maildir/tmp/")

LIMIT = 384  # states tried behind one step: all if there are no more
SAMPLE = 48  # if there are: the single ones, their complements, the beginnings, and so many at random


def apply(content, operation, how="whole"):
    """A write or cut on top of a content."""
    if how == "none":
        return content
    if operation[0] == "cut":
        return content[:operation[2]].ljust(operation[2], b"\0")
    at, data = operation[2], operation[3]
    if how == "torn":
        data = data[:len(data) // 2]
    elif how == "zeros":
        data = bytes(len(data))
    return content[:at].ljust(at, b"\0") + data + content[at + len(data):]


def ways(operation):
    """What may be left of an operation."""
    if operation[0] == "write" and len(operation[3]) > 1:
        return "none", "whole", "torn", "zeros"
    return "none", "whole"


class Disk:
    """What is durable and what is not yet, in the posix or btrfs model, while a record is gone through."""

    def __init__(self, reader, model):
        self.model = model
        self.names = {path: [(-1, file)] for path, file in reader.before.items()}  # the first is durable
        self.base = {}  # file: durable content
        self.open = {}  # file: [(step, operation)]

    def content(self, file):
        return self.base.get(file, b"")

    def step(self, at, step):
        kind = step[0]
        if kind == "name":
            self.names.setdefault(step[1], [(-1, None)]).append((at, step[2]))
        elif kind == "rename":
            self.names.setdefault(step[1], [(-1, None)]).append((at, None))
            self.names.setdefault(step[2], [(-1, None)]).append((at, step[3]))
        elif kind in ("write", "cut"):
            self.open.setdefault(step[1], []).append((at, step))
        elif kind == "sync":
            for what in step[1] if isinstance(step[1], tuple) else (step[1],):
                self.sync(what, step[2])

    def sync(self, what, since):
        for file in list(self.open) if what is None else [what] if what in self.open else []:
            for at, operation in self.open[file]:
                if at < since:
                    self.base[file] = apply(self.content(file), operation)
            self.open[file] = [(at, o) for at, o in self.open[file] if at >= since]
            if not self.open[file]:
                del self.open[file]
        for path, history in self.names.items():
            if what is None or os.path.dirname(path) == what or self.model == "btrfs" and history[-1][1] is what is not None:
                durable = [h for h in history if h[0] < since]
                history[:] = [(-1, durable[-1][1])] + [h for h in history if h[0] >= since] if durable else history

    def dimensions(self):
        """[(what, [(step, value), …])]: what is not certain, and since when it may be what."""
        found = []
        for path, history in self.names.items():
            if len(history) > 1 and not UNREAD.match(path):
                options = {value: at for at, value in reversed(history)}  # the first time it was so
                if len(options) > 1:
                    found.append((path, sorted(((at, v) for v, at in options.items()), key=lambda o: o[0])))
        reachable = {value for path, history in self.names.items() if not UNREAD.match(path) for _, value in history}
        for file, operations in self.open.items():
            if file in reachable:
                for at, operation in operations:
                    found.append(((file, at), [(-1 if way == "none" else at, way) for way in ways(operation)]))
        return found

    def state(self, chosen):
        """chosen: {what: value}"""
        names = {path: chosen.get(path, history[-1][1]) for path, history in self.names.items()}
        contents = {}
        names = {path: file for path, file in names.items() if file and not UNREAD.match(path)}
        for file in set(names.values()):
            content = self.content(file)
            for at, operation in self.open.get(file, ()):
                content = apply(content, operation, chosen.get((file, at), "whole"))
            contents[file] = content
        return {path: (file, contents[file]) for path, file in names.items()}

    def states(self, chance, limit=LIMIT, sample=SAMPLE):
        dimensions = self.dimensions()
        count = 1
        for _, options in dimensions:
            count *= len(options)
        keys = [what for what, _ in dimensions]
        if count <= limit:
            for values in itertools.product(*[[v for _, v in options] for _, options in dimensions]):
                yield self.state(dict(zip(keys, values)))
            return
        oldest = {what: options[0][1] for what, options in dimensions}
        # The last thing that happened to it, whole.
        newest = {what: self.names[what][-1][1] if isinstance(what, str) else "whole" for what, _ in dimensions}
        for start in (oldest, newest):
            yield self.state(start)
            for what, options in dimensions:
                for _, value in options:
                    if value != start[what]:
                        yield self.state({**start, what: value})
        for moment in sorted({at for _, options in dimensions for at, _ in options}):
            yield self.state({what: max((o for o in options if o[0] <= moment), key=lambda o: (o[0], o[1] == "whole"))[1]
                              for what, options in dimensions})
        for _ in range(sample):
            yield self.state({what: chance.choice(options)[1] for what, options in dimensions})


class Journal:
    """The same in the ext4 model."""

    def __init__(self, reader):
        self.before = dict(reader.before)
        self.changes = []  # (step, [(path, file)])
        self.committed = -1  # changes up to this step are durable
        self.touched = {}  # file or directory: the last step that changed its inode
        self.disk = Disk(reader, "posix")  # for data

    def step(self, at, step):
        kind = step[0]
        if kind == "name":
            self.change(at, [(step[1], step[2])])
        elif kind == "rename":
            self.change(at, [(step[1], None), (step[2], step[3])])
        elif kind in ("write", "cut"):
            self.disk.step(at, step)
        elif kind == "sync":
            self.disk.step(at, step)
            for what in step[1] if isinstance(step[1], tuple) else (step[1],):
                touched = [t for t in self.touched.get(what, ()) if t < step[2]]
                self.committed = max([self.committed, *touched[-1:]] if what else [self.committed, step[2] - 1])

    def change(self, at, names):
        self.changes.append((at, names))
        for path, file in names:
            self.touched.setdefault(os.path.dirname(path), []).append(at)
            if file:
                self.touched.setdefault(file, []).append(at)

    def states(self, chance, limit=LIMIT, sample=SAMPLE):
        names = dict(self.before)
        todo = []
        for at, changes in self.changes:
            if at > self.committed:
                todo.append(changes)
                continue
            self.put(names, changes)
        for length in range(len(todo) + 1):
            if length:
                self.put(names, todo[length - 1])
            read = {path: file for path, file in names.items() if not UNREAD.match(path)}
            files = sorted({f for f in read.values() if f in self.disk.open}, key=lambda f: f.order)
            choices = itertools.product((False, True), repeat=len(files))
            if 2 ** len(files) > limit:
                choices = ([chance.random() < 0.5 for _ in files] for _ in range(sample))
            for choice in choices:
                written = {f for f, yes in zip(files, choice) if yes}
                state = {}
                for path, file in read.items():
                    content = self.disk.content(file)
                    if file in written:
                        for _, operation in self.disk.open[file]:
                            content = apply(content, operation)
                    state[path] = file, content
                yield state

    @staticmethod
    def put(names, changes):
        for path, file in changes:
            if file:
                names[path] = file
            else:
                names.pop(path, None)


def model_of(reader, model):
    disk = Journal(reader) if model == "ext4" else Disk(reader, model)
    data = disk.disk if model == "ext4" else disk
    for path, file in reader.before.items():
        data.base[file] = reader.contents_before[path]
    return disk


def every_state(reader, model, seed, limit=LIMIT, sample=SAMPLE):
    """(step, state) for each point: behind each step that changes what may be left, and before the first."""
    chance = random.Random(f"{seed} {model}")
    disk = model_of(reader, model)
    for state in disk.states(chance, limit, sample):
        yield 0, state
    for at, step in enumerate(reader.steps):
        disk.step(at, step)
        for state in disk.states(chance, limit, sample):
            yield at + 1, state
