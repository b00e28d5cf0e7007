"""Logins a second by checkpassword-file: a file of 100,000 users beside a file of one, with the index and without, by scheme.

A login is all of it: a pipe for descriptor 3, the checker, and a program behind it that does nothing (true).
"""

import base64
import hashlib
import os
import shutil
import statistics
import subprocess
import time

from tests import harness
from tests.bench import ground

USERS = 100_000
LOGINS = 200  # of a run
SLOW = 10  # of a run where each takes tens of milliseconds
ROUNDS = 5
AT_ONCE = (1, os.cpu_count() or 1)
PASSWORD = b"pencil"

# RFC 7677, section 3.
SCRAM = ("{SCRAM-SHA-256}4096,W22ZaJ0SNY7soEsUEjb6gQ==,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,"
         "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=")
PROOF = (b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=\0n=user,r=rOprNGfwEbeRWgbNEkqO,"
         b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,"
         b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0\0SCRAM-SHA-256\0smtp\0\0")


def ssha256(n):
    salt = b"%08d" % n
    return "{SSHA256}" + base64.b64encode(hashlib.sha256(PASSWORD + salt).digest() + salt).decode()


class Bench:
    def __init__(self, directory):
        self.directory = directory
        self.checker, self.maker = harness.program("checkpassword-file"), harness.program("authpasswd")
        self.schemes = {"scram": SCRAM, "yescrypt": self.made("yescrypt"), "argon2id": self.made("argon2id")}

    def file(self, name, users, indexed=True):
        path = os.path.join(self.directory, name)
        uid, gid = harness.owner()[1:]
        with open(path, "w") as f:
            for n in range(users):
                f.write(f"user{n}:{ssha256(n)}:{uid}:{gid}:/\n")
            for user, stored in self.schemes.items():
                f.write(f"{user}:{stored}:{uid}:{gid}:/\n")
        if indexed:
            subprocess.run([self.maker, "-P", "", "-x", path], check=True)
        return path

    def made(self, scheme):
        done = subprocess.run([self.maker, "-p", "-n", "-s", scheme], input=PASSWORD, stdout=subprocess.PIPE, check=True)
        return done.stdout.decode().strip()

    def login(self, file, fields):
        """One login, begun: its pid."""
        r, w = os.pipe()
        os.write(w, fields)
        os.close(w)
        pid = os.posix_spawn(self.checker, ["checkpassword-file", file, "true"], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, r, 3)])
        os.close(r)
        return pid

    def run(self, file, users, count, at_once, code):
        """Logins a second, of these users in turn."""
        running, begun = set(), 0
        started = time.monotonic()
        while begun < count or running:
            while begun < count and len(running) < at_once:
                running.add(self.login(file, users[begun % len(users)]))
                begun += 1
            pid, status = os.wait()
            running.discard(pid)
            if os.waitstatus_to_exitcode(status) != code:
                raise SystemExit(f"bench: a login ended with status {status}")
        return count / (time.monotonic() - started)


def plain(name, password=PASSWORD):
    return name.encode() + b"\0" + password + b"\0\0"


def measure():
    directory = harness.scratch()
    try:
        bench = Bench(directory)
        many, one = bench.file("many", USERS), bench.file("one", 1)
        unindexed = bench.file("unindexed", USERS, indexed=False)
        spread = [plain(f"user{n}") for n in range(0, USERS, USERS // 97)]
        cases = [("1 user", one, [plain("user0")], LOGINS, 0), (f"{USERS} users", many, spread, LOGINS, 0),
                 (f"{USERS} users, a wrong password", many, [plain("user7", b"wrong")], LOGINS, 1),
                 (f"{USERS} users, an unknown name", many, [plain("nobody")], LOGINS, 1),
                 (f"{USERS} users, without index", unindexed, spread, SLOW, 0), (f"{USERS} users, SCRAM", many, [b"scram\0" + PROOF], LOGINS, 0),
                 (f"{USERS} users, yescrypt", many, [plain("yescrypt")], SLOW, 0), (f"{USERS} users, argon2id", many, [plain("argon2id")], SLOW, 0)]
        print(f"Logins a second by checkpassword-file: SSHA256 where nothing else is said, medians of {ROUNDS} rounds")
        print(f"of {ground.machine()}\n")
        print(f"{'':44}" + "".join(f"{f'{n} at a time':>14}" for n in AT_ONCE))
        for name, file, users, count, code in cases:
            rates = []
            for at_once in AT_ONCE:
                bench.run(file, users, max(count // 10, 1), at_once, code)  # warms up, and does not count
                rates.append(statistics.median(bench.run(file, users, count, at_once, code) for _ in range(ROUNDS)))
            print(f"{name:44}" + "".join(f"{rate:14.1f}" for rate in rates), flush=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return []
