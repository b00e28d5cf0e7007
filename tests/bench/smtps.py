"""SMTP behind TLS at port 465, ours (a system home, tlsserver before qmail-smtpd) beside Postfix (its tree: scripts/bench-peers).

A session is connection, handshake, greeting, QUIT. What is sent in bulk is a message that is larger than either allows: it is
read to its end and refused, so that no disk is measured. Postfix sends nothing in bulk as a server: that row is in `tls`.
"""

import os

from tests import sandbox
from tests.bench import ground, systems, tlsload
from tests.certificates import Store, self_signed
from tests.harness import wait_for

PORT = 465
LARGEST = 1_000_000  # bytes of a message
MIB = 2048  # programs with all their symbols have room


class Ours(systems.Ours):
    def lay(self):
        super().lay()
        systems.put("/var/qmail/control/databytes", f"{LARGEST}\n")

    def launch(self):
        super().launch()
        ids = {line.split(":")[0]: line.split(":")[2:4] for line in open("/etc/passwd")}
        env = {"PATH": f"/var/qmail/bin:{os.environ['PATH']}"}
        uid, gid = ids["qmaild"]
        self.daemon("/var/qmail/bin/tlsserver", "-RH", "-l", systems.DOMAIN, "-c", "600", "-b", "600", "-u", uid, "-g", gid, "127.0.0.1", str(PORT),
                    "qmail-smtpd", env=env)


class Postfix(systems.Postfix):
    """smtpd with its tickets, which it has by itself; without names of clients, as ours."""

    def configure(self):
        super().configure()
        with open(self.root + "/etc/postfix/main.cf", "a") as f:
            f.write(f"message_size_limit = {LARGEST}\nmailbox_size_limit = 0\nsmtpd_peername_lookup = no\n"
                    "smtpd_tls_chain_files = /etc/postfix/key.pem /etc/postfix/cert.pem\n")
        with open(self.root + "/etc/postfix/master.cf", "a") as f:
            f.write(f"{PORT} inet n - n - 600 smtpd -o smtpd_tls_wrappermode=yes -o smtpd_tls_security_level=may\n")


def install(system, store):
    """The same key for both."""
    if isinstance(system, Ours):
        directory, names = "/var/qmail/control/tls/default", ("cert.pem", "key.pem")
    else:
        directory, names = system.root + "/etc/postfix", ("cert.pem", "key.pem")
    for name in names:
        with open(store.file("default", name)) as f:
            systems.put(os.path.join(directory, name), f.read(), 0o600 if name == "key.pem" else 0o644)


def begin(tls):
    """To the text of a message."""
    tlsload.answer(tls)
    for command in (b"EHLO localhost", b"MAIL FROM:<a@bench.example>", b"RCPT TO:<u0@bench.example>", b"DATA"):
        tls.sendall(command + b"\r\n")
        said = tlsload.answer(tls)
        if said[:1] not in b"23":
            raise SystemExit(f"bench: {command} was answered {said!r}")


def end(tls):
    tls.sendall(b"\r\n.\r\n")
    said = tlsload.answer(tls)
    if not said.startswith(b"552"):
        raise SystemExit(f"bench: a message that is too large was answered {said!r}")


def measure():
    if not sandbox.here():
        print("SMTP behind TLS: only root in its sandbox has a place for both")
        return []
    kinds = [Ours] + ([Postfix] if Postfix.there() else [])
    print(f"SMTP behind TLS at port {PORT}, {tlsload.CLIENTS} clients, P-256; medians of {tlsload.ROUNDS} rounds of {tlsload.SECONDS} s "
          f"or {tlsload.MEGABYTES} MB in turn; ms for each session or MB")
    if len(kinds) == 1:
        print("no Postfix here: scripts/bench-peers makes its tree")
    found, made = tlsload.Table(), []
    with ground.journaled(MIB) as (disk, _), Store() as store:
        os.chown(disk, 0, 0)
        store.put("default", self_signed("localhost"))
        try:
            for kind in kinds:
                made.append(kind(disk, ground.device(disk)))
                made[-1].prepare()
                install(made[-1], store)
            for _ in range(tlsload.ROUNDS):
                for system in made:
                    one_round(system, found)
        finally:
            for system in made:
                system.close()
    found.show([system.name for system in made])
    return []


def one_round(system, found):
    system.start()
    try:
        wait_for(lambda: tlsload.listens(PORT), f"{system.name} at port {PORT}", tlsload.PATIENCE)  # start() knows of 25 only
        for version, resumed in tlsload.KINDS:
            found.add(f"TLS {version}, {'resumed' if resumed else 'full'}", system.name,
                      tlsload.rate(system.group, PORT, version, resumed, tlsload.smtp))
        found.add("MB from the client", system.name, tlsload.up(system.group, PORT, begin, end))
    finally:
        system.stop()
