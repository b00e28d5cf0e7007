"""TLS: handshakes and bytes a second, ours beside stunnel (which has the key in the process that speaks TLS), and the
memory of a session at port 465.

Both start a program for each connection, with one key (P-256); the client is openssl(1). Seconds of processor time
are those of the server's processes, the program's included.
"""

import os
import re
import socket
import ssl
import subprocess
import tempfile

from tests import harness
from tests.bench import meter
from tests.bench.idle import pss
from tests.certificates import Store, self_signed
from tests.harness import Daemon, Home, free_port, wait_for

SECONDS = 4  # of handshakes of one kind
MEGABYTES = 300
SESSION_MAX = 6 * 1024  # KiB: the process that speaks TLS and qmail-smtpd
STUNNEL = ["/usr/bin/stunnel4", "/usr/bin/stunnel", os.path.join(harness.ROOT, "tests/tools/root/usr/bin/stunnel4")]


class Ours(Daemon):
    def __init__(self, store, program, group):
        user = ["-u", "65534", "-g", "65534", "-T", "61184:61184"] if os.geteuid() == 0 else []
        self.port = free_port()
        argv = [harness.program("tlsserver"), "-RHl0", "-c", "200", "-k", store.path, *user, "127.0.0.1", str(self.port), *program]
        super().__init__(["sh", "-c", 'echo $$ >"$0"; exec "$@"', group.path + "/cgroup.procs" if group.path else "/dev/null",
                          *argv])


class Stunnel(Daemon):
    def __init__(self, store, program, group):
        self.port = free_port()
        with tempfile.NamedTemporaryFile("w", delete=False) as f:
            f.write(f"foreground = yes\npid =\nsyslog = no\ndebug = 0\n[x]\naccept = 127.0.0.1:{self.port}\n"
                    f"cert = {store.file('default', 'cert.pem')}\nkey = {store.file('default', 'key.pem')}\n"
                    f"exec = {program[0]}\nexecArgs = {' '.join(program)}\n")
            self.conf = f.name
        super().__init__(["sh", "-c", 'echo $$ >"$0"; exec "$@"', group.path + "/cgroup.procs" if group.path else "/dev/null",
                          stunnel(), self.conf])

    def stop(self, *how, **more):
        code = super().stop(*how, **more)
        os.unlink(self.conf)
        return code


def stunnel():
    return next((path for path in STUNNEL if os.path.exists(path)), None)


def up(server):
    def answers():
        try:
            with socket.create_connection(("127.0.0.1", server.port), 5):
                return True
        except OSError:
            return False
    wait_for(answers, "the port")


def handshakes(server, *how):
    done = subprocess.run(["openssl", "s_time", "-connect", f"127.0.0.1:{server.port}", "-time", str(SECONDS), *how],
                          capture_output=True, text=True, timeout=SECONDS * 10)
    found = re.search(r"(\d+) connections in (\d+) real seconds", done.stdout)
    return int(found[1]), max(1, int(found[2]))


def line(name, what, count, wall, cpu):
    each = "" if cpu is None else f"{1000 * cpu / count:10.2f} ms of processor time each"
    print(f"{name:10} {what:34} {count / wall:9.0f} a second {each}", flush=True)


def session():
    """KiB of what one session at port 465 has: the process that speaks TLS, and qmail-smtpd."""
    with Store() as store, Home(users={}) as home:
        store.put("default", self_signed("localhost"))
        home.start()
        user = ["-T", "61184:61184"] if os.geteuid() == 0 else []
        argv = ["tlsserver", "-v", "-1", *harness.as_owner(), *user, "-RHl0", "-k", store.path, "127.0.0.1", "0", "qmail-smtpd"]
        with Daemon(argv, env=home.env) as server:
            port = int(server.wait_log(r"^(\d+)$")[1])
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with socket.create_connection(("127.0.0.1", port)) as s, context.wrap_socket(s) as tls:
                tls.recv(100)
                tls.sendall(b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<postmaster>\r\n")
                while b"RCPT" not in (said := tls.recv(4096)) and b"250 " not in said and b"553" not in said:
                    pass
                pid = int(re.search(r"^tlsserver: tls (\d+)", server.log(), re.M)[1])
                return sum(filter(None, map(pss, harness.family(pid))))


def measure():
    print(f"TLS (P-256, openssl s_time for {SECONDS} s; {MEGABYTES} MB from the server)")
    systems = [("tlsserver", Ours)] + ([("stunnel", Stunnel)] if stunnel() else [])
    if len(systems) == 1:
        print("no stunnel here: scripts/test-packages fetches it")
    with Store() as store:
        store.put("default", self_signed("localhost"))
        for name, kind in systems:
            group = meter.Group("tls-" + name)
            try:
                with kind(store, ["/bin/true"], group) as server:
                    up(server)
                    for what, how in (("handshakes of TLS 1.3", ["-new", "-tls1_3"]), ("handshakes of TLS 1.2", ["-new", "-tls1_2"]),
                                      ("resumed sessions of TLS 1.2", ["-reuse", "-tls1_2"])):
                        before = group.cpu()
                        count, wall = handshakes(server, *how)
                        line(name, what, count, wall, None if before is None else group.cpu() - before)
                with kind(store, ["/usr/bin/head", "-c", f"{MEGABYTES}000000", "/dev/zero"], group) as server:
                    up(server)
                    before = group.cpu()
                    clock = meter.Meter(group, None).begin()
                    with open("/dev/null", "wb") as null:
                        subprocess.run(["openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{server.port}"],
                                       stdin=subprocess.DEVNULL, stdout=null, stderr=null, timeout=120)
                    wall = clock.end()["wall"]
                    line(name, "megabytes", MEGABYTES, wall, None if before is None else group.cpu() - before)
            finally:
                group.end()
    used = session()
    print(f"a session at port 465: {used} KiB in two processes (at most {SESSION_MAX})")
    return [f"a session at port 465 has {used} KiB, more than {SESSION_MAX}"] if used > SESSION_MAX else []
