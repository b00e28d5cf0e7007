"""Code injected into programs after their jail has closed: what a taken-over program can still do."""

import os
import select
import shutil
import subprocess
import tempfile
import unittest

from tests import harness, ptracer
from tests.harness import wait_for

USER = (7760, 7760)  # an account that needs no name


def waits_in(pid, number):
    """Whether a process sleeps in this system call."""
    try:
        with open(f"/proc/{pid}/syscall") as f:
            return f.read().split()[0] == str(number)
    except OSError:
        return False


@ptracer.needed
class Tool(unittest.TestCase):
    """The injector on programs without a jail: all that their account allows succeeds, or it could prove nothing."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="qmail-inject-")
        self.addCleanup(shutil.rmtree, self.dir)
        os.chown(self.dir, *USER)
        self.sleeper = self.start("sleep", "1000")

    def start(self, *argv):
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=USER[0], group=USER[1],
                                   extra_groups=[], cwd="/")

        def end():
            process.kill()
            process.communicate()
        self.addCleanup(end)
        return process

    def subjects(self):
        """Programs of each kind, in each kind of stop: (name, pid)."""
        glibc = self.start("cat")
        wait_for(lambda: waits_in(glibc.pid, 0), "cat to read")
        yield "glibc", glibc.pid
        hidden = shutil.copy(shutil.which("cat"), self.dir)
        os.chmod(hidden, 0o711)
        hidden = self.start(hidden)
        wait_for(lambda: waits_in(hidden.pid, 0), "the other cat to read")
        self.assertEqual(os.stat(f"/proc/{hidden.pid}/environ").st_uid, 0)
        yield "undumpable", hidden.pid
        musl = self.start(harness.program("tcpserver"), "127.0.0.1", "0", "true")
        wait_for(lambda: waits_in(musl.pid, 271), "tcpserver to poll")
        yield "musl", musl.pid
        busy = self.start("sh", "-c", "echo; while :; do :; done")
        busy.stdout.readline()
        yield "in its own code", busy.pid

    def test_what_an_account_may_do_succeeds(self):
        own = self.dir + "/own"
        for name, pid in self.subjects():
            with self.subTest(name), ptracer.Attacker(pid) as a:
                for done in (a.create(own), a.open(own, os.O_RDWR), a.stat(own), a.chmod(own, 0o644), a.link(own, own + "2"),
                             a.rename(own + "2", own + "3"), a.unlink(own + "3"), a.symlink("x", own + "2"), a.unlink(own + "2"),
                             a.truncate(own), a.unlink(own), a.mkdir(own), a.call("rmdir", own.encode() + b"\0"),
                             a.listen_tcp("127.0.0.1", 0), a.fork(), a.ptrace(self.sleeper.pid), a.signal(self.sleeper.pid, 0),
                             a.setuid(USER[0]), a.perf(), a.memfd(), a.io_uring(), a.unshare(ptracer.CLONE_NEWUSER)):
                    self.assertEqual(done, 0)
                # Itself: musl programs of ours made themselves undumpable or not, cat did not.
                self.assertEqual(a.open("/proc/self/mem", os.O_RDWR), 0 if name in ("glibc", "in its own code") else "EACCES")
                self.assertEqual(a.read_file("/proc/self/comm")[-1:], b"\n")
                # The namespace above made it root there, and of nothing else.
                self.assertEqual(a.call("getuid"), 65534)

    def test_what_an_account_may_not_do_has_the_name_of_its_errno(self):
        for name, pid in self.subjects():
            with self.subTest(name), ptracer.Attacker(pid) as a:
                self.assertEqual(a.open("/etc/shadow"), "EACCES")
                self.assertEqual(a.open("/nowhere"), "ENOENT")
                self.assertEqual(a.create("/etc/x"), "EACCES")
                self.assertEqual(a.setuid(0), "EPERM")
                self.assertEqual(a.mount("none", "/mnt", "tmpfs"), "EPERM")
                self.assertEqual(a.ptrace(1), "EPERM")
                self.assertEqual(a.signal(1, 0), "EPERM")
                self.assertEqual(a.connect_tcp("127.0.0.1", 1), "ECONNREFUSED")
                self.assertEqual(a.connect_unix("/nowhere"), "ENOENT")
                self.assertEqual(a.connect_unix("@qmail-nowhere"), "ECONNREFUSED")

    def test_it_connects_and_reads_memory(self):
        with harness.socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            for name, pid in self.subjects():
                with self.subTest(name), ptracer.Attacker(pid) as a:
                    self.assertEqual(a.connect_tcp(*s.getsockname()), 0)
                    self.assertEqual(a.connect_udp(*s.getsockname()), 0)
                    with open(f"/proc/{self.sleeper.pid}/maps") as f:
                        self.assertEqual(a.process_vm_readv(self.sleeper.pid, int(f.read().split("-")[0], 16)), 8)

    def test_the_other_ways_into_the_kernel_are_tried_for_real(self):
        for name, pid in self.subjects():
            with self.subTest(name), ptracer.Attacker(pid) as a:
                self.assertEqual(a.call("getpid"), pid)
                self.assertIn(a.x32("getpid"), (pid, "ENOSYS"))  # few kernels are built with it
                old = a.int80("getpid")
                if old != "SIGSEGV":  # a kernel built, or started, without it
                    self.assertEqual(old, pid)
                    self.assertGreater(a.int80("open", b"/etc/passwd\0", 0), 2)
                    self.assertEqual(a.int80("open", b"/etc/shadow\0", 0), "EACCES")

    def test_the_program_goes_on_as_if_nothing_had_been(self):
        cat = self.start("cat")
        for number in range(3):
            wait_for(lambda: waits_in(cat.pid, 0), "cat to read")
            with ptracer.Attacker(cat.pid) as a:
                self.assertEqual(a.call("pause"), "BLOCKED")
                self.assertEqual(a.fork(), 0)
                self.assertEqual(a.open("/etc/passwd"), 0)
            cat.stdin.write(b"x")
            cat.stdin.flush()
            self.assertTrue(select.select([cat.stdout], [], [], harness.TIMEOUT)[0], "it does not go on")
            self.assertEqual(os.read(cat.stdout.fileno(), 9), b"x")
        # A wait with a time in it is continued by restart_syscall(2).
        poller = self.start("perl", "-MIO::Poll", "-e", "$p = IO::Poll->new; $p->mask(STDIN, POLLIN); print $p->poll(600), qq(\\n)")
        wait_for(lambda: waits_in(poller.pid, 7), "perl to poll")
        sleeper = self.start("sh", "-c", "trap 'echo got it; exit 3' USR1; echo; while :; do read -r x; done")
        sleeper.stdout.readline()
        with ptracer.Attacker(poller.pid) as a, ptracer.Attacker(sleeper.pid) as b:
            # A signal that comes meanwhile comes afterwards.
            os.kill(sleeper.pid, harness.signal.SIGUSR1)
            self.assertEqual(b.open("/etc/passwd"), 0)
            self.assertEqual(a.open("/etc/passwd"), 0)
        self.assertEqual(sleeper.wait(harness.TIMEOUT), 3)
        self.assertEqual(sleeper.stdout.readline(), b"got it\n")
        self.assertEqual(poller.communicate(b"x", harness.TIMEOUT)[0], b"1\n")

    def test_an_executed_shell_is_seen_and_ended(self):
        for name, pid in self.subjects():
            with self.subTest(name), ptracer.Attacker(pid) as a:
                self.assertEqual(a.execve("/nowhere", "sh"), "ENOENT")
                self.assertEqual(a.execve("/bin/sh", "sh", "-c", f"echo >{self.dir}/ran"), "EXECUTED")
                self.assertRaises(ptracer.Gone, a.open, "/etc/passwd")
        self.assertFalse(os.path.exists(self.dir + "/ran"))

    def test_a_program_is_followed_from_its_first_instruction(self):
        with ptracer.Started(["cat", "/etc/hostname"], user=USER) as a:
            self.assertIn("mmap", a.run_to("openat"))
            self.assertEqual(a.call("getuid"), USER[0])
            self.assertEqual(a.open("/etc/shadow"), "EACCES")
        with ptracer.Started(["cat", "/etc/hostname"], user=USER) as a:
            self.assertRaises(ptracer.Gone, a.run_to, "landlock_restrict_self")
        r, w = os.pipe()
        self.addCleanup(os.close, r)
        a = ptracer.Started(["cat", "/etc/hostname"], user=USER, fds={1: w})
        os.close(w)
        a.run_to("openat")
        self.assertEqual(a.open("/etc/passwd"), 0)
        a.release()
        with open("/etc/hostname", "rb") as f:
            self.assertEqual(os.read(r, 4096), f.read())
        self.assertEqual(os.waitpid(a.pid, 0)[1], 0)


if __name__ == "__main__":
    unittest.main()
