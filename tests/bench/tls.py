"""TLS: sessions and bytes a second, ours beside stunnel (which has the key in the process that speaks TLS), and the
memory of a session at port 465.

Both start a program for each connection, with one key (P-256), and take turns; the clients are beside them on the same
processors. Processor time is that of the server's processes, the program's included.
"""

import os
import re
import shutil
import tempfile

from tests import harness
from tests.bench import meter, tlsload
from tests.bench.idle import pss
from tests.certificates import Store, self_signed
from tests.harness import Daemon, Home, free_port, wait_for

SESSION_MAX = 6 * 1024  # KiB: the process that speaks TLS and qmail-smtpd
STUNNEL = ["/usr/bin/stunnel4", "/usr/bin/stunnel", os.path.join(harness.ROOT, "tests/tools/root/usr/bin/stunnel4")]


class Server(Daemon):
    def __init__(self, argv, group):
        super().__init__(["sh", "-c", 'echo $$ >"$0"; exec "$@"', group.path + "/cgroup.procs" if group.path else "/dev/null", *argv])

    def __enter__(self):
        super().__enter__()
        wait_for(lambda: tlsload.listens(self.port), "the port")
        return self


class Ours(Server):
    def __init__(self, store, program, group):
        user = ["-u", "65534", "-g", "65534", "-T", "61184:61184"] if os.geteuid() == 0 else []
        self.port = free_port()
        super().__init__([harness.program("tlsserver"), "-RHl0", "-c", "200", "-k", store.path, *user, "127.0.0.1", str(self.port),
                          *program], group)


class Stunnel(Server):
    def __init__(self, store, program, group):
        self.port = free_port()
        with tempfile.NamedTemporaryFile("w", delete=False) as f:
            f.write(f"foreground = yes\npid =\nsyslog = no\ndebug = 0\n[x]\naccept = 127.0.0.1:{self.port}\n"
                    f"cert = {store.file('default', 'cert.pem')}\nkey = {store.file('default', 'key.pem')}\n"
                    f"exec = {program[0]}\nexecArgs = {' '.join(program)}\n")
            self.conf = f.name
        super().__init__([stunnel(), self.conf], group)

    def stop(self, *how, **more):
        code = super().stop(*how, **more)
        os.unlink(self.conf)
        return code


def stunnel():
    return next((path for path in STUNNEL if os.path.exists(path)), None)


def session():
    """KiB of what one session at port 465 has: the process that speaks TLS, and qmail-smtpd."""
    with Store() as store, Home(users={}) as home:
        store.put("default", self_signed("localhost"))
        home.start()
        user = ["-T", "61184:61184"] if os.geteuid() == 0 else []
        argv = ["tlsserver", "-v", "-1", *harness.as_owner(), *user, "-RHl0", "-k", store.path, "127.0.0.1", "0", "qmail-smtpd"]
        with Daemon(argv, env=home.env) as server:
            port = int(server.wait_log(r"^(\d+)$")[1])
            with tlsload.connect(port, tlsload.trusting()) as tls:
                tlsload.answer(tls)
                for command in (b"EHLO x\r\n", b"MAIL FROM:<>\r\n", b"RCPT TO:<postmaster>\r\n"):
                    tls.sendall(command)
                    tlsload.answer(tls)
                pid = int(re.search(r"^tlsserver: tls (\d+)", server.log(), re.M)[1])
                return sum(filter(None, map(pss, harness.family(pid))))


def script(directory, name, text):
    path = os.path.join(directory, name)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o755), "w") as f:
        f.write(f"#!/bin/sh\n{text}\n")
    return [path]


def measure():
    size = tlsload.MEGABYTES * 1_000_000
    systems = {"tlsserver": Ours} | ({"stunnel": Stunnel} if stunnel() else {})
    print(f"TLS before a program that does nothing, {tlsload.CLIENTS} clients, P-256; medians of {tlsload.ROUNDS} rounds of "
          f"{tlsload.SECONDS} s or {tlsload.MEGABYTES} MB in turn; ms for each session or MB")
    if len(systems) == 1:
        print("no stunnel here: scripts/test-packages fetches it")
    found, directory = tlsload.Table(), harness.scratch()
    groups = {name: meter.Group("tls-" + name) for name in systems}
    os.chmod(directory, 0o755)
    try:
        takes = script(directory, "takes", f"head -c {size} >/dev/null; echo 250 it")
        gives = ["/usr/bin/head", "-c", str(size), "/dev/zero"]
        with Store() as store:
            store.put("default", self_signed("localhost"))
            for _ in range(tlsload.ROUNDS):
                for name, kind in systems.items():
                    group = groups[name]
                    with kind(store, ["/bin/true"], group) as server:
                        for version, resumed in tlsload.KINDS:
                            found.add(f"TLS {version}, {'resumed' if resumed else 'full'}", name,
                                      tlsload.rate(group, server.port, version, resumed, tlsload.to_the_end))
                    with kind(store, gives, group) as server:
                        found.add("MB to the client", name, tlsload.down(group, server.port))
                    with kind(store, takes, group) as server:
                        found.add("MB from the client", name, tlsload.up(group, server.port))
    finally:
        for group in groups.values():
            group.end()
        shutil.rmtree(directory, ignore_errors=True)
    found.show(list(systems))
    used = session()
    print(f"a session at port 465: {used} KiB in two processes (at most {SESSION_MAX})")
    return [f"a session at port 465 has {used} KiB, more than {SESSION_MAX}"] if used > SESSION_MAX else []
