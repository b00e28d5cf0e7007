"""What comes behind the first start: the sweep of what is left, 36 hours later, and the second delivery into an mbox."""

import ctypes
import os
import re
import subprocess
import tempfile
import time

from tests import harness
from tests.crash import power_disk, power_judge

CLONE_NEWTIME = 0x80
DAYS = 3 * 86400  # more than the 36 hours that anything is left alone
TOPS = ("mess", "todo", "intd", "info", "local", "remote", "bounce")
SWEPT_WITHIN = 4 * harness.TIMEOUT


def sweep(combinations):
    """Those of these combinations of files that are still there when they are days old.

    Nobody can set a file's ctime; so they lie on an ext4, whose debugger can. And the machine must have been up that
    long: from here on this process's children see a clock that says so.
    """
    base = tempfile.gettempdir()
    image, place = os.path.join(base, "sweep.img"), os.path.join(base, "sweep")
    os.mkdir(place)
    power_disk.make(image, 64 * power_disk.MIB, power_disk.KINDS["ext4"][0])
    old = int(time.time()) - DAYS
    with power_disk.mounted(image, place):
        tempfile.tempdir = place
        try:
            os.chmod(place, 0o755)
            bench = power_judge.Bench(None)
        finally:
            tempfile.tempdir = base
        placed = {}
        for index, names in enumerate(combinations):
            state = {f"queue/{top}{'/7' if top not in ('todo', 'intd', 'bounce') else ''}/7": (top if top != "todo" else "intd", b"left\n")
                     for top in sorted(names)}
            [number] = bench.build(index, state).values()
            placed[number] = names
        bench.queue.write("queue/pid/1.1.1", b"left\n")
        inodes = [os.stat(os.path.join(d, f)).st_ino for d, _, files in os.walk(bench.queue.file("queue")) for f in files]
    script = os.path.join(base, "sweep.debugfs")
    with open(script, "w") as f:
        for inode in inodes:
            for field in ("atime", "mtime", "ctime"):
                f.write(f"set_inode_field <{inode}> {field} @{old}\nset_inode_field <{inode}> {field}_extra 0\n")
    power_disk.run("debugfs", "-w", "-f", script, image)
    with power_disk.mounted(image, place):
        first = os.stat(bench.queue.file("queue/pid/1.1.1"))
        assert max(first.st_ctime, first.st_mtime) == old, first
        older_machine()
        with power_judge.Player(bench.queue, limits=(200, 200), answer=lambda request: b"K") as sender:
            sender.wait_line("^status")

            def left():
                return [n for n in placed if any(os.path.exists(bench.queue.file(power_judge.here(f"queue/{top}/7/7", n)))
                                                 for top in TOPS)]

            def decided():
                aside = {int(m[1]) for line in list(sender.lines) if (m := power_judge.ASIDE.match(line))}
                return set(left()) <= aside and not os.listdir(bench.queue.file("queue/pid"))
            try:
                harness.wait_for(decided, "the sweep", SWEPT_WITHIN)
            except AssertionError:
                pass  # what is there still is what this is about
            found = [placed[n] for n in left()] + [{"pid"} for _ in os.listdir(bench.queue.file("queue/pid"))]
            assert sender.stop() == 0
    return found


def older_machine():
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWTIME):
        raise OSError(ctypes.get_errno(), "unshare")
    with open("/proc/self/timens_offsets", "w") as f:
        f.write(f"boottime {DAYS} 0")


DROP = ["setpriv", "--reuid", str(harness.owner()[1]), "--regid", str(harness.owner()[2]), "--clear-groups"]


class Again:
    """A qmail-local, and a user's directory with an mbox as a cut left it."""

    def __init__(self):
        self.base = harness.scratch()
        self.seen = {}

    def deliver(self, mbox, mails):
        """The mbox after these (mess, sender, recipient) have been delivered into it."""
        key = mbox, tuple(mails)
        if key not in self.seen:
            path = os.path.join(self.base, "Mailbox")
            with open(path, "wb") as f:
                f.write(mbox)
            os.chown(path, *harness.owner()[1:])
            for mess, sender, recipient in mails:
                local, _, domain = recipient.partition("@")
                argv = [*DROP, harness.program("qmail-local"), "--", "joe", self.base, local, "", "", domain, sender, "./Mailbox"]
                with tempfile.TemporaryFile() as f:
                    f.write(mess)
                    f.seek(0)
                    done = subprocess.run(argv, stdin=f, capture_output=True, env={"PATH": os.environ["PATH"]})
                if done.returncode:
                    raise AssertionError(f"{argv}: {done}")
            with open(path, "rb") as f:
                self.seen[key] = f.read()
            os.unlink(path)
        return self.seen[key]


def torn(mbox, whole):
    """The mails of an mbox that are none of these texts, whole."""
    return [mail for mail in power_judge.mails(mbox) if not any(re.fullmatch(rb"(?:[A-Z][\w-]*: .*\n)*" + re.escape(text) + rb"\n",
                                                                            mail) for text in whole)]
