"""Where a measurement stands: a file system that syncs as in production, and programs that every user can run."""

import contextlib
import os
import shutil
import subprocess
import tempfile

from tests import harness, sandbox

IMAGE_MIB = 512  # sparse: what is not written takes no room


@contextlib.contextmanager
def programs_for_all():
    """Root measures homes of another user, who may not reach this checkout: the environment that names a copy."""
    if os.geteuid() != 0 or "QMAIL_BIN" in os.environ:
        yield {}
        return
    directory = tempfile.mkdtemp(prefix="qmail-bin-")
    try:
        os.chmod(directory, 0o755)
        shutil.copytree(harness.BIN, directory, symlinks=True, dirs_exist_ok=True)
        yield {"QMAIL_BIN": directory}
    finally:
        shutil.rmtree(directory)


def _file_system(path):
    done = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", path], capture_output=True, text=True)
    return done.stdout.strip() or "unknown file system"


@contextlib.contextmanager
def journaled():
    """(a directory that the owner of homes can write, what it is on in words); an ext4 with a journal, if that can be had."""
    base = tempfile.mkdtemp(prefix="qmail-bench-", dir="/tmp")
    image, mounted = os.path.join(base, "image"), os.path.join(base, "disk")
    try:
        os.chmod(base, 0o755)
        os.mkdir(mounted)
        with open(image, "wb") as f:
            f.truncate(IMAGE_MIB << 20)
        trouble = "only root in its sandbox can mount one"
        if sandbox.here():
            made = subprocess.run(["mkfs.ext4", "-q", "-F", image], capture_output=True, text=True)
            made = made if made.returncode else subprocess.run(["mount", "-o", "loop", image, mounted], capture_output=True,
                                                               text=True)
            trouble = made.stderr.strip() if made.returncode else ""
        words = f"ext4 with its journal, a loop image on {_file_system(base)}"
        if trouble:
            words = f"{_file_system(base)} (no ext4 with a journal: {trouble})"
        if os.geteuid() == 0:
            os.chown(mounted, *harness.owner()[1:])
        try:
            yield mounted, words
        finally:
            if not trouble:
                subprocess.run(["umount", "-l", mounted], check=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def machine():
    """The machine, in words."""
    with open("/proc/meminfo") as f:
        memory = int(f.readline().split()[1]) / (1 << 20)
    with open("/proc/cpuinfo") as f:
        model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "unknown processor")
    return f"{os.cpu_count()} × {model}, {memory:.0f} GiB, Linux {os.uname().release}"
