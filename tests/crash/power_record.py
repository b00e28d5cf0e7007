"""The calls of a whole system that change files, in one order, from strace.

A record is a list of steps, in the order in which the calls ended:

    ("name", path, file or None, pid)     a name leads to this file from now on, or to none
    ("rename", old, new, file)            both at once, where the file system does that
    ("write", file, offset, bytes, pid)   ("cut", file, length)
    ("sync", what, since)                 a file, a directory, several directories, or None for everything: durable is
                                          what ended before step number `since`: before the sync began
    ("ack", program, pid, arguments)      a promise: the process ended with 0; or program is 250, +OK: it wrote that

Files are `File`, numbered as they come up; directories are paths. Paths are relative to the home; of interest are
those in `queue/` (without `queue/lock`) and in `home/`.
"""

import os
import re

CALLS = ("open,openat,creat,close,close_range,dup,dup2,dup3,fcntl,link,linkat,symlink,symlinkat,unlink,unlinkat,rename,renameat,"
         "renameat2,mkdir,mkdirat,rmdir,write,writev,pwrite64,pwritev,pwritev2,truncate,ftruncate,fallocate,lseek,fsync,"
         "fdatasync,sync_file_range,sync,syncfs,chdir,fchdir,fork,vfork,clone,clone3,execve,sendfile,copy_file_range")

OF_INTEREST = re.compile(r"^(queue/(?!lock)|home/)")
STRING_MAX = 1 << 20  # bytes of one write that strace shows

LINE = re.compile(r"^(\d+) +(.*)$")
CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+|\?)(.*)$", re.S)
UNFINISHED = re.compile(r"^(\w+)\((.*?) ?<unfinished \.\.\.>$", re.S)
RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$", re.S)
TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


class File:
    """A file as the record knows it."""

    def __init__(self, order, number, content=b""):
        self.order, self.number, self.content = order, number, content

    def __repr__(self):
        return f"<file {self.order}, inode {self.number}>"


class Open:
    """An open file description, a directory's if `file` is None."""

    def __init__(self, file, path, append):
        self.file, self.path, self.append, self.offset = file, path, append, 0


def strace(trace):
    """What to put before a command."""
    return ["strace", "-f", "--seccomp-bpf", "-xx", "-s", str(STRING_MAX), "-e", f"trace={CALLS}", "-e", "signal=none",
            "-e", "quiet=attach,personality", "-o", trace]


def snapshot(home):
    """{path: (inode number, content)} of what a home holds."""
    found = {}
    for top in ("queue", "home"):
        for directory, _, names in os.walk(os.path.join(home, top)):
            for name in names:
                whole = os.path.join(directory, name)
                path = os.path.relpath(whole, home)
                if OF_INTEREST.match(path):
                    with open(whole, "rb") as f:
                        found[path] = os.fstat(f.fileno()).st_ino, f.read()
    return found


class Trouble(AssertionError):
    """A record that cannot be understood proves nothing."""


class Reader:
    """Reads a trace. `steps` is the record, `names` what was there before it."""

    def __init__(self, trace, home, before):
        self.home = home.rstrip("/") + "/"
        self.steps, self.files = [], []
        self.names = {}  # path: File, now
        by_inode = {}
        for path, (number, content) in sorted(before.items()):
            if number not in by_inode:
                by_inode[number] = self.new_file(number, content)
            self.names[path] = by_inode[number]
        self.before = dict(self.names)
        self.contents_before = {path: content for path, (_, content) in before.items()}
        self.places, self.tables, self.close_on_exec, self.argv = {}, {}, {}, {}
        with open(trace, errors="strict") as f:
            self.lines = [LINE.match(line.rstrip("\n")).groups() for line in f]
        self.children = self.find_children()
        begun = {}
        for at, (pid, text) in enumerate(self.lines):
            pid = int(pid)
            if m := UNFINISHED.match(text):
                begun[pid] = m[1], m[2], len(self.steps)
                self.fork(at)
                continue
            since = len(self.steps)
            if m := RESUMED.match(text):
                name, head, since = begun.pop(pid)
                text = f"{name}({head}{m[2]}"
            else:
                self.fork(at)
            if m := re.match(r"^\+\+\+ exited with (\d+) \+\+\+$", text):
                self.ended(pid, int(m[1]))
            elif m := CALL.match(text):
                if m[3] != "?" and not m[3].startswith("-"):
                    self.call(pid, m[1], m[2], int(m[3]), since)
            elif not text.startswith(("+++", "---")) and " = ?" not in text:
                raise Trouble(text[:300])

    def new_file(self, number, content=b""):
        self.files.append(File(len(self.files), number, content))
        return self.files[-1]

    def find_children(self):
        """{line at which a fork began: the child}; a child's first lines may come before its parent's answer."""
        begun, found = {}, {}
        for at, (pid, text) in enumerate(self.lines):
            if re.match(r"(clone3?|v?fork)\(.*<unfinished", text):
                begun[pid] = at
            elif m := re.match(r"(?:<\.\.\. )?(?:clone3?|v?fork)(?: resumed>|\().* = (\d+)$", text):
                found[begun.pop(pid) if "resumed" in text else at] = pid, int(m[1])
        return found

    def fork(self, at):
        if at in self.children:
            parent, child = self.children[at]
            parent = int(parent)
            for table, empty in ((self.tables, {}), (self.close_on_exec, set()), (self.argv, [])):
                table[child] = table.get(parent, empty).copy()
            self.places[child] = self.places.get(parent, "/")

    # -- where a call means

    def path(self, pid, at, name):
        """A path relative to the home, or an absolute one."""
        if at is None or at == "AT_FDCWD":
            base = self.places.get(pid, "/")
        else:
            open_file = self.table(pid).get(int(at))
            base = open_file.path if open_file else "/unknown"
            if not base.startswith("/"):
                base = self.home + base
        whole = os.path.normpath(os.path.join(base, name))
        return whole[len(self.home):] if whole.startswith(self.home) else whole

    def table(self, pid):
        return self.tables.setdefault(pid, {})

    def put(self, pid, fd, open_file, closing):
        self.table(pid)[fd] = open_file
        (self.close_on_exec.setdefault(pid, set()).add if closing else self.close_on_exec.setdefault(pid, set()).discard)(fd)

    # -- calls

    def call(self, pid, name, arguments, result, since):
        if any(cut for _, cut in TEXT.findall(arguments)) and name != "execve":
            raise Trouble(f"cut: {name}")
        texts = [bytes.fromhex(t.replace("\\x", "")) for t, _ in TEXT.findall(arguments)]
        words = [w.strip() for w in TEXT.sub("STRING", arguments).split(",")]
        handler = getattr(self, "do_" + name, None)
        if handler:
            handler(pid, texts, words, result, since)

    def do_open(self, pid, texts, words, result, since):
        self.opened(pid, self.path(pid, None, os.fsdecode(texts[0])), words[1], result)

    def do_openat(self, pid, texts, words, result, since):
        self.opened(pid, self.path(pid, words[0], os.fsdecode(texts[0])), words[2], result)

    def opened(self, pid, path, flags, fd):
        flags = flags.split("|")
        file = None
        if OF_INTEREST.match(path):
            file = self.names.get(path)
            if "O_TMPFILE" in flags:
                file = self.new_file(0)
            elif file is None and "O_CREAT" in flags:
                file = self.new_file(0)
                self.name(path, file, pid)
            if file and "O_TRUNC" in flags:
                self.cut(file, 0)
        self.put(pid, fd, Open(file, path, "O_APPEND" in flags), "O_CLOEXEC" in flags)

    def do_close(self, pid, texts, words, result, since):
        self.table(pid).pop(int(words[0]), None)

    def do_close_range(self, pid, texts, words, result, since):
        last = int(words[1]) if words[1].isdigit() else 1 << 32
        for fd in [fd for fd in self.table(pid) if int(words[0]) <= fd <= last]:
            del self.table(pid)[fd]

    def do_fcntl(self, pid, texts, words, result, since):
        fd = int(words[0])
        if words[1].startswith("F_DUPFD"):
            self.copied(pid, fd, result, "CLOEXEC" in words[1])
        elif words[1] == "F_SETFD" and fd in self.table(pid):
            self.put(pid, fd, self.table(pid)[fd], "FD_CLOEXEC" in words[2])

    def copied(self, pid, old, new, closing):
        self.table(pid).pop(new, None)
        if old in self.table(pid):
            self.put(pid, new, self.table(pid)[old], closing)

    def do_dup(self, pid, texts, words, result, since):
        self.copied(pid, int(words[0]), result, False)

    do_dup2 = do_dup

    def do_dup3(self, pid, texts, words, result, since):
        self.copied(pid, int(words[0]), result, "O_CLOEXEC" in words[2])

    def do_lseek(self, pid, texts, words, result, since):
        if open_file := self.table(pid).get(int(words[0])):
            open_file.offset = result

    def do_chdir(self, pid, texts, words, result, since):
        path = self.path(pid, None, os.fsdecode(texts[0]))
        self.places[pid] = path if path.startswith("/") else self.home + path

    def do_fchdir(self, pid, texts, words, result, since):
        path = self.table(pid)[int(words[0])].path
        self.places[pid] = path if path.startswith("/") else self.home + path

    def do_execve(self, pid, texts, words, result, since):
        for fd in self.close_on_exec.pop(pid, set()):
            self.table(pid).pop(fd, None)
        self.argv[pid] = [os.fsdecode(t) for t in texts]

    def name(self, path, file, pid):
        if not OF_INTEREST.match(path):
            return
        self.steps.append(("name", path, file, pid))
        if file is None:
            self.names.pop(path, None)
        else:
            self.names[path] = file

    def do_link(self, pid, texts, words, result, since):
        self.linked(pid, self.path(pid, None, os.fsdecode(texts[0])), self.path(pid, None, os.fsdecode(texts[1])))

    def do_linkat(self, pid, texts, words, result, since):
        self.linked(pid, self.path(pid, words[0], os.fsdecode(texts[0])), self.path(pid, words[2], os.fsdecode(texts[1])))

    def linked(self, pid, old, new):
        if OF_INTEREST.match(new):
            if old not in self.names:
                raise Trouble(f"link of {old}, of which nothing is known")
            self.name(new, self.names[old], pid)

    def do_unlink(self, pid, texts, words, result, since):
        self.name(self.path(pid, None, os.fsdecode(texts[0])), None, pid)

    def do_unlinkat(self, pid, texts, words, result, since):
        self.name(self.path(pid, words[0], os.fsdecode(texts[0])), None, pid)

    def do_rename(self, pid, texts, words, result, since):
        self.renamed(self.path(pid, None, os.fsdecode(texts[0])), self.path(pid, None, os.fsdecode(texts[1])))

    def do_renameat(self, pid, texts, words, result, since):
        self.renamed(self.path(pid, words[0], os.fsdecode(texts[0])), self.path(pid, words[2], os.fsdecode(texts[1])))

    do_renameat2 = do_renameat

    def renamed(self, old, new):
        if OF_INTEREST.match(old) or OF_INTEREST.match(new):
            file = self.names.pop(old)
            self.names[new] = file
            self.steps.append(("rename", old, new, file))

    def do_write(self, pid, texts, words, result, since):
        open_file = self.table(pid).get(int(words[0]))
        data = (texts[0] if texts else b"")[:result]
        if open_file and open_file.file:
            at = len(open_file.file.content) if open_file.append else open_file.offset
            self.written(pid, open_file.file, at, data)
            open_file.offset = at + result
        for m in re.finditer(rb"(?:\A|\n)250 (?:[\d.]+ )?ok \d+ qp (\d+)", b"" if open_file else data):
            self.steps.append(("ack", "250", int(m[1]), []))
        if data.startswith(b"+OK"):
            self.steps.append(("ack", "+OK", pid, [data]))

    def do_pwrite64(self, pid, texts, words, result, since):
        open_file = self.table(pid).get(int(words[0]))
        if open_file and open_file.file:
            self.written(pid, open_file.file, int(words[-1]), texts[0][:result])

    def written(self, pid, file, at, data):
        if data:
            file.content = file.content[:at].ljust(at, b"\0") + data + file.content[at + len(data):]
            self.steps.append(("write", file, at, data, pid))

    def cut(self, file, length):
        if len(file.content) != length:
            file.content = file.content[:length].ljust(length, b"\0")
            self.steps.append(("cut", file, length))

    def do_ftruncate(self, pid, texts, words, result, since):
        open_file = self.table(pid).get(int(words[0]))
        if open_file and open_file.file:
            self.cut(open_file.file, int(words[1]))

    def not_known(self, pid, texts, words, result, since):
        open_file = self.table(pid).get(int(words[0])) if words[0].isdigit() else None
        if open_file and open_file.file:
            raise Trouble(f"a call that this reader does not know changes {open_file.path}")

    do_writev = do_pwritev = do_pwritev2 = do_fallocate = do_sendfile = do_copy_file_range = not_known

    def do_fsync(self, pid, texts, words, result, since):
        open_file = self.table(pid).get(int(words[0]))
        if open_file and (open_file.file or OF_INTEREST.match(open_file.path + "/")):
            self.steps.append(("sync", open_file.file or open_file.path, since))

    do_fdatasync = do_fsync

    def do_syncfs(self, pid, texts, words, result, since):
        self.steps.append(("sync", None, since))

    do_sync = do_syncfs

    def ended(self, pid, code):
        argv = self.argv.get(pid)
        if argv and code == 0:
            self.steps.append(("ack", os.path.basename(argv[0]), pid, argv[1:]))


def read(trace, home, before, after):
    """The record; what it says is there at the end must be what is there."""
    reader = Reader(trace, home, before)
    replayed = {path: file.content for path, file in reader.names.items()}
    found = {path: content for path, (_, content) in after.items()}
    if replayed != found:
        different = [p for p in replayed.keys() | found.keys() if replayed.get(p) != found.get(p)]
        raise Trouble(f"the record does not lead to what is there: {sorted(different)[:5]}")
    return reader
