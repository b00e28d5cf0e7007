"""5,000 messages of 4 KiB by 20 connections at once arrive once each, byte for byte, in bounded memory.

And 20,000 messages in the queue when qmail-send starts: it is up in seconds and stays small.
"""

import os
import re
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from tests import harness
from tests.harness import Daemon, Home, free_port, wait_for

MESSAGES, CONNECTIONS, SIZE = 5000, 20, 4096
SEND_MIB, SMTPD_MIB, STARTUP_MIB = 16, 3, 64  # resident memory allowed (the project's promise)
BACKLOG = 20000
STARTUP_SECONDS = 20  # a bound against minutes; measured: about two


def resident(pid):
    """(name, KiB of resident memory now, at its highest) of a process; None when it is gone."""
    try:
        with open(f"/proc/{pid}/status") as f:
            text = f.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name = re.search(r"Name:\s*(\S+)", text)[1]
    now, peak = re.search(r"VmRSS:\s*(\d+)", text), re.search(r"VmHWM:\s*(\d+)", text)
    return (name, int(now[1]), int(peak[1])) if now and peak else None


def body(n):
    """Message n: every byte but CR and LF occurs, lines begin with dots, and no two are alike."""
    head = f"Subject: {n}\r\nX-Number: {n}\r\n\r\n".encode()
    filler = bytes(b for b in range(1, 256) if b not in (10, 13))
    line = b".." + filler[n % 200:] + filler[:n % 200] + b"\r\n"
    text = head + line * (SIZE // len(line) + 1)
    return text[:SIZE - 2].rstrip(b"\r\n") + b"\r\n"


def stuffed(text):
    return text.replace(b"\r\n.", b"\r\n..")


class Load(unittest.TestCase):
    def test_five_thousand_messages_arrive_once_each_byte_for_byte(self):
        with Home() as home:
            home.control("concurrencylocal", "20\n")
            home.start()
            port = free_port()
            argv = ["tcpserver", *harness.as_owner(), "-H", "-R", "-l", "test.example", "-c", "50", "127.0.0.1", str(port), "qmail-smtpd"]
            with Daemon(argv, env=home.env) as server:
                wait_for(lambda: self.listens(port), "tcpserver")
                peaks, done = {}, threading.Event()
                watcher = threading.Thread(target=self.watch, args=(home, server, peaks, done))
                watcher.start()
                errors = []
                clients = [threading.Thread(target=self.client, args=(port, c, errors)) for c in range(CONNECTIONS)]
                for c in clients:
                    c.start()
                for c in clients:
                    c.join()
                self.assertEqual(errors, [])
                home.wait_empty(240)
                done.set()
                watcher.join()
            self.assertEqual(self.wrong(home), [])
            self.assertLess(peaks["qmail-send"], SEND_MIB * 1024)
            self.assertGreater(peaks["qmail-send"], 0)
            self.assertLess(peaks["qmail-smtpd"], SMTPD_MIB * 1024)
            self.assertGreater(peaks["qmail-smtpd"], 0)

    def listens(self, port):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return True
        except OSError:
            return False

    def client(self, port, which, errors):
        try:
            with socket.create_connection(("127.0.0.1", port), 120) as s, s.makefile("rb") as replies:
                def expect(code):
                    while True:
                        line = replies.readline()
                        if line[3:4] != b"-":
                            break
                    if not line.startswith(code):
                        raise AssertionError(f"wanted {code}, got {line}")
                expect(b"220")
                s.sendall(b"EHLO load\r\n")
                expect(b"250")
                for n in range(which, MESSAGES, CONNECTIONS):
                    s.sendall(b"MAIL FROM:<load@far.example>\r\nRCPT TO:<joe@test.example>\r\nDATA\r\n")
                    for code in (b"250", b"250", b"354"):
                        expect(code)
                    s.sendall(stuffed(body(n)) + b".\r\n")
                    expect(b"250")
                s.sendall(b"QUIT\r\n")
                expect(b"221")
        except Exception as e:
            errors.append(f"connection {which}: {e!r}")

    def watch(self, home, server, peaks, done):
        peaks.update({"qmail-send": 0, "qmail-smtpd": 0})
        while not done.wait(0.2):
            try:
                with open(f"/proc/{server.pid}/task/{server.pid}/children") as f:
                    pids = f.read().split()
            except FileNotFoundError:
                pids = []
            for pid in [home.daemon.pid, *pids]:
                seen = resident(pid)
                if seen and seen[0] in peaks:
                    peaks[seen[0]] = max(peaks[seen[0]], seen[2])

    def wrong(self, home):
        """What is not as it was sent: numbers missing, twice, or changed."""
        seen, wrong = {}, []
        new = os.path.join(home.maildir(), "new")
        for name in os.listdir(new):
            with open(os.path.join(new, name), "rb") as f:
                text = f.read()
            n = int(re.search(rb"^X-Number: (\d+)$", text, re.M)[1])
            seen[n] = seen.get(n, 0) + 1
            original = body(n).replace(b"\r\n", b"\n")
            if not text.endswith(original) or text[:-len(original)].count(b"\n") != 5:
                wrong.append(f"{n} was changed")
        wrong += [f"{n} came {seen.get(n, 0)} times" for n in range(MESSAGES) if seen.get(n) != 1]
        return wrong


class Backlog(unittest.TestCase):
    def test_a_queue_of_twenty_thousand_is_taken_up_in_seconds_and_bounded_memory(self):
        with Home() as home:
            home.control("concurrencyremote", "0\n")
            home.control("concurrencylocal", "0\n")
            self.fill(home)
            started = time.monotonic()
            home.start()
            home.inject(b"Subject: x\n\n", "ann@test.example", ["joe@test.example"])
            home.wait_log(r"^new msg", 60)
            self.assertLess(time.monotonic() - started, STARTUP_SECONDS)
            peak = resident(home.daemon.pid)[2]
            self.assertLess(peak, STARTUP_MIB * 1024)
            # It really knows them: with slots they would be due. ALRM makes it look at every one.
            listed = home.run(["qmail-qread"]).out
            self.assertGreaterEqual(listed.count(b"\tremote\t"), BACKLOG)

    def fill(self, home):
        """20,000 preprocessed messages to a remote host, as an earlier life of qmail-send left them."""
        script = r"""
import os, sys
home, count = sys.argv[1], int(sys.argv[2])
os.chdir(home + "/queue")
os.umask(0o077)
for i in range(count):
    with open("pid/x", "w") as f:
        f.write("Subject: x\n\nhello\n")
    n = os.stat("pid/x").st_ino
    os.chmod("pid/x", 0o644)
    os.rename("pid/x", f"mess/{n % 23}/{n}")
    with open(f"info/{n % 23}/{n}", "w") as f:
        f.write("Fann@test.example\0")
    with open(f"remote/{n % 23}/{n}", "w") as f:
        f.write(f"Tuser{i}@host{i % 100}.invalid\0")
"""
        as_owner = []
        if os.geteuid() == 0:
            as_owner = ["setpriv", "--reuid", str(harness.owner()[1]), "--regid", str(harness.owner()[2]), "--clear-groups"]
        with tempfile.NamedTemporaryFile("w", suffix=".py") as f:
            f.write(script)
            f.flush()
            os.chmod(f.name, 0o644)
            subprocess.run(as_owner + ["python3", f.name, home.path, str(BACKLOG)], check=True)


if __name__ == "__main__":
    unittest.main()
