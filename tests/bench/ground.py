"""Where a measurement stands: a file system that syncs as in production, and programs that every user can run."""

import contextlib
import os
import shutil
import subprocess
import tempfile

from tests import harness, sandbox

IMAGE_MIB = 512  # sparse: what is not written takes no room
VARIABLE = "QMAIL_BENCH_DIRECTORY"
LARGE_MIB = 12288  # for 100,000 messages in a queue


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


@contextlib.contextmanager
def directory():
    """What measurements in a sandbox write to, in the environment: removed behind the sandbox, however that ends."""
    with tempfile.TemporaryDirectory(prefix="qmail-bench-", dir="/tmp", ignore_cleanup_errors=True) as path:
        os.chmod(path, 0o755)
        yield {VARIABLE: path}


def _file_system(path):
    done = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", path], capture_output=True, text=True)
    return done.stdout.strip() or "unknown file system"


@contextlib.contextmanager
def compiled():
    """The driver, compiled; the path of a program that does nothing beside it, in the environment."""
    base = tempfile.mkdtemp(prefix="load-", dir=os.environ.get(VARIABLE, "/tmp"))
    try:
        os.chmod(base, 0o755)
        load, bare, source = (os.path.join(base, name) for name in ("load", "bare", "bare.c"))
        with open(source, "w") as f:
            f.write("#include <sys/syscall.h>\nvoid _start(void) { __asm__ volatile(\"syscall\" :: \"a\"(SYS_exit_group), \"D\"(0)); }\n"
                    if os.uname().machine == "x86_64" else "int main(void) { return 0; }\n")
        own = ["-nostdlib"] if os.uname().machine == "x86_64" else []
        here = os.path.dirname(os.path.abspath(__file__))
        subprocess.run(["cc", "-O2", "-static", "-o", load, os.path.join(here, "load.c")], check=True)
        subprocess.run(["cc", "-O2", "-static", *own, "-o", bare, source], check=True)
        os.environ["QMAIL_BENCH_BARE"] = bare
        yield load
    finally:
        shutil.rmtree(base, ignore_errors=True)


def device(path):
    """The device a directory lies on."""
    done = subprocess.run(["findmnt", "-no", "SOURCE", "-T", path], capture_output=True, text=True)
    return done.stdout.strip()


@contextlib.contextmanager
def journaled(mib=IMAGE_MIB):
    """(a directory that the owner of homes can write, what it is on in words); an ext4 with a journal, if that can be had."""
    base = tempfile.mkdtemp(prefix="qmail-bench-", dir=os.environ.get(VARIABLE, "/tmp"))
    image, mounted = os.path.join(base, "image"), os.path.join(base, "disk")
    try:
        os.chmod(base, 0o755)
        os.mkdir(mounted)
        with open(image, "wb") as f:
            f.truncate(mib << 20)
        trouble = "only root in its sandbox can mount one"
        if sandbox.here():
            made = subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], capture_output=True, text=True)
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
