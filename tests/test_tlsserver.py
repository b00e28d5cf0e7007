"""tlsserver from outside: real TLS on loopback, with the libraries of others as peers."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import unittest

from tests import harness
from tests.certificates import Authority, Certified, Store, openssl, self_signed
from tests.harness import Daemon, run, wait_for
from tests.packages import tool
from tests.test_tcpserver import Rules, environment

ROOT = os.geteuid() == 0
# That of the system: root's own may be where nobody else gets.
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
TLS_USER = 61184  # nobody's
MEGABYTE = 1024 * 1024


class Server(Daemon):
    def __init__(self, *options, store, program=("cat",), env=None, verbose="-v", host="127.0.0.1"):
        who = harness.as_owner() + (["-T", f"{TLS_USER}:{TLS_USER}"] if ROOT else [])
        super().__init__(["tlsserver", verbose, "-1", "-RHl0", "-k", store.path, *who, *options, host, "0", *program],
                         env=env)
        self.port = int(self.wait_log(r"^(\d+)$")[1])

    def connect(self, context=None, name="localhost", session=None):
        """A session, ready."""
        s = socket.create_connection(("127.0.0.1", self.port), harness.TIMEOUT)
        try:
            return (context or trusting()).wrap_socket(s, server_hostname=name, session=session)
        except BaseException:
            s.close()
            raise

    def clear(self):
        return socket.create_connection(("127.0.0.1", self.port), harness.TIMEOUT)

    def failures(self):
        return re.findall(r"^tlsserver: tls \d+ failed: (.*)$", self.log(), re.M)

    def wait_idle(self):
        wait_for(lambda: self.log().splitlines()[-1].startswith("tlsserver: status: 0/"), "all sessions to end")


def trusting(version=None, authority=None, **how):
    """A client's context; without an authority it believes anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authority:
        context.load_verify_locations(authority.file)
    else:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if version:
        context.minimum_version = context.maximum_version = version
    if "alpn" in how:
        context.set_alpn_protocols(how["alpn"])
    if "pair" in how:
        with tempfile.NamedTemporaryFile() as both:
            both.write(b"".join(reversed(how["pair"])))
            both.flush()
            context.load_cert_chain(both.name)
    return context


def read_all(s):
    got = []
    while chunk := s.recv(65536):
        got.append(chunk)
    return b"".join(got)


def answers(server, *where, **how):
    """What a session's program says, to its end."""
    with server.connect(*where, **how) as s:
        return read_all(s)


class Sessions(Certified):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.store.put("mx.example.org", cls.ca.issue("mx.example.org", "RSA"))
        cls.store.put("*.example.net", cls.ca.issue("*.example.net", "P-384"))
        cls.store.put("ed.example.org", cls.ca.issue("ed.example.org", "Ed25519"))
        cls.store.put("long.example.org", cls.ca.issue("long.example.org", "P-521"))

    def serve(self, *options, **how):
        how.setdefault("store", self.store)
        return self.enterContext(Server(*options, **how))

    def test_a_session_in_both_versions_and_what_is_said_about_it(self):
        server = self.serve(program=["env"])
        for version, name, suite in [(ssl.TLSVersion.TLSv1_3, "TLSv1.3", "TLS_AES_256_GCM_SHA384"),
                                     (ssl.TLSVersion.TLSv1_2, "TLSv1.2", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384")]:
            with server.connect(trusting(version, self.ca)) as s:
                shown = hashlib.sha256(s.getpeercert(True)).hexdigest()
                got = environment(read_all(s))
            wanted = {"TLS_PROTOCOL": name, "SSL_PROTOCOL": name, "TLS_CIPHER": suite, "SSL_CIPHER": suite,
                      "TLS_SERVER_NAME": "localhost", "SSL_TLS_SNI_HOSTNAME": "localhost",
                      "TLS_SERVER_END_POINT": shown, "PROTO": "TCP", "TCPREMOTEIP": "127.0.0.1"}
            self.assertEqual({k: got.get(k) for k in wanted}, wanted)
            self.assertEqual("TLS_EXPORTER" in got, version == ssl.TLSVersion.TLSv1_3)
            self.assertNotIn("SSLCTLFD", got)
        server.wait_log(r"^tlsserver: tls (\d+) TLSv1\.3 TLS_AES_256_GCM_SHA384 localhost full$")
        server.wait_log(r"^tlsserver: end \d+ status 0$")
        lines = [re.sub(r"\d+", "N", line) for line in server.log().splitlines()[1:]]
        self.assertEqual(lines[:4], ["tlsserver: status: N/N", "tlsserver: status: N/N", "tlsserver: pid N from N.N.N.N",
                                     "tlsserver: ok N N:N.N.N.N:N :N.N.N.N::N"])

    def test_the_lines_of_a_connection_have_one_pid(self):
        server = self.serve(program=["true"])
        answers(server)
        server.wait_log(r"^tlsserver: end")
        pids = set(re.findall(r"^tlsserver: (?:pid|ok|tls|end) (\d+)", server.log(), re.M))
        self.assertEqual(len(pids), 1, server.log())

    def test_certificates_by_name(self):
        server = self.serve(program=["true"])
        for asked, name in [("mx.example.org", "mx.example.org"), ("MX.Example.ORG", "mx.example.org"),
                            ("a.example.net", "*.example.net"), ("ed.example.org", "ed.example.org"),
                            ("long.example.org", "long.example.org"), ("unknown.example", "localhost"), (None, "localhost")]:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                context = trusting(version, self.ca)
                context.check_hostname = False
                with server.connect(context, name=asked) as s:
                    names = [value for kind, value in s.getpeercert()["subjectAltName"]]
                self.assertEqual(names, [name], asked)

    def test_without_a_default_an_unknown_name_gets_no_session(self):
        with Store() as store:
            store.put("mx.example.org", self.ca.issue("mx.example.org"))
            server = self.serve(store=store)
            with self.assertRaises(ssl.SSLError):
                server.connect(name="other.example.org")
            server.connect(name="mx.example.org").close()
            server.wait_log(r"^tlsserver: end \d+ status 28416$")

    def test_old_versions_and_weak_suites_are_refused(self):
        server = self.serve()
        tries = [["-tls1"], ["-tls1_1"], ["-tls1_2", "-cipher", "AES128-GCM-SHA256:@SECLEVEL=0"],
                 ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA256:@SECLEVEL=0"],
                 ["-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256:@SECLEVEL=0"], ["-tls1_2", "-cipher", "NULL:@SECLEVEL=0"]]
        for how in tries:
            extra = [] if "-cipher" in how else ["-cipher", "ALL:@SECLEVEL=0"]
            done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-servername",
                                   "mx.example.org", *how, *extra], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
            self.assertNotEqual(done.returncode, 0, how)
            self.assertIn(b"Cipher is (NONE)", done.stdout, how)
        wait_for(lambda: len(server.failures()) == len(tries), "a line for each")

    def test_the_lowest_version_may_be_raised(self):
        server = self.serve("-m", "1.3", program=["true"])
        with self.assertRaises(ssl.SSLError):
            server.connect(trusting(ssl.TLSVersion.TLSv1_2))
        server.connect(trusting(ssl.TLSVersion.TLSv1_3)).close()

    def test_alpn(self):
        server = self.serve("-a", "smtp,imap", program=["env"])
        with server.connect(trusting(alpn=["pop3", "imap"])) as s:
            self.assertEqual(s.selected_alpn_protocol(), "imap")
            self.assertEqual(environment(read_all(s))["TLS_ALPN"], "imap")
        with self.assertRaises(ssl.SSLError):
            server.connect(trusting(alpn=["http/1.1"]))
        self.assertNotIn("TLS_ALPN", environment(answers(server)))

    def test_a_session_is_resumed(self):
        server = self.serve(program=["echo", "done"])
        for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            context = trusting(version, self.ca)
            with server.connect(context) as s:
                self.assertEqual(read_all(s), b"done\n")
                session = s.session
            with server.connect(context, session=session) as s:
                self.assertTrue(s.session_reused)
                self.assertEqual(read_all(s), b"done\n")
        wait_for(lambda: len(re.findall(r"^tlsserver: tls \d+ TLSv1\.[23] \S+ localhost resumed$", server.log(), re.M)) == 2,
                 "two lines")

    def test_what_a_login_is_bound_to_is_what_the_client_has(self):
        server = self.serve(program=["env"])
        done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_3", "-ign_eof",
                               "-keymatexport", "EXPORTER-Channel-Binding", "-keymatexportlen", "32"],
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        theirs = re.search(rb"Keying material: ([0-9A-F]+)", done.stdout)[1].decode().lower()
        ours = re.search(rb"TLS_EXPORTER=([0-9a-f]+)", done.stdout)[1].decode()
        self.assertEqual(ours, theirs)

    def test_a_response_of_the_authority_is_stapled(self):
        with Store() as store:
            pair = self.ca.issue("localhost")
            store.put("default", pair)
            certificate = store.file("default", "cert.pem")
            serial = openssl("x509", "-in", certificate, "-noout", "-serial").decode().strip().split("=")[1]
            with open(self.ca.path("status"), "w") as f:
                f.write(f"V\t400101000000Z\t\t{serial}\tunknown\t/CN=localhost\n")
            request = self.ca.path("request")
            openssl("ocsp", "-issuer", self.ca.file, "-cert", certificate, "-reqout", request, "-no_nonce")
            openssl("ocsp", "-index", self.ca.path("status"), "-rsigner", self.ca.file, "-rkey", self.ca.key, "-CA",
                    self.ca.file, "-reqin", request, "-respout", store.file("default", "ocsp.der"), "-ndays", "7")
            server = self.serve(store=store)
            done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-status"],
                                  stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
            self.assertIn(b"Cert Status: good", done.stdout)

    def test_the_handshake_has_an_end(self):
        server = self.serve("-w", "1")
        with server.clear() as silent, server.clear() as dripping:
            hello = client_hello()
            dripping.sendall(hello[:20])
            for s in (silent, dripping):
                self.assertEqual(rest_of(s), b"")
        wait_for(lambda: server.failures() == ["it took too long"] * 2, "two lines")
        server.wait_log(r"^tlsserver: end \d+ status 28416$")

    def test_cut_and_broken_handshakes_end_that_session_only(self):
        server = self.serve()
        hello = client_hello()
        with server.connect() as other:
            for piece in [hello[:n] for n in (1, 4, 5, 6, 40, len(hello) // 2, len(hello) - 1)]:
                with server.clear() as s:
                    s.sendall(piece)
                    s.shutdown(socket.SHUT_WR)
                    rest_of(s)
            for text in (b"EHLO x\r\n" * 10, b"\x16\x03\x01\xff\xff" + bytes(4000), b"\x80\x2e\x01\x03\x01" + bytes(60),
                         hello[:11] + bytes(len(hello) - 11), hello[:-1] + bytes([hello[-1] ^ 1]) * 40):
                with server.clear() as s:
                    try:
                        s.sendall(text)
                        s.shutdown(socket.SHUT_WR)
                    except OSError:
                        pass  # it was cut off already
                    rest_of(s)
            other.sendall(b"still here")
            self.assertEqual(other.recv(100), b"still here")
        server.wait_idle()
        self.assertEqual(len(server.failures()), 12)

    def test_text_of_the_peer_in_the_log_is_clean(self):
        server = self.serve()
        with server.clear() as s:
            s.sendall(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x1b")
            s.shutdown(socket.SHUT_WR)
            rest_of(s)
        server.wait_log("failed")
        self.assertNotIn("\x1b", server.log())

    def test_variables_from_outside_are_not_believed(self):
        lies = {name: "lie" for name in ("TLS_PROTOCOL", "TLS_CIPHER", "TLS_SERVER_NAME", "TLS_CLIENT_VERIFIED",
                                         "TLS_CLIENT_SUBJECT", "TLS_CLIENT_EMAIL", "TLS_CLIENT_DNS", "TLS_ALPN",
                                         "TLS_CLIENT_FINGERPRINT", "TLS_EXPORTER", "TLS_SERVER_END_POINT",
                                         "SSL_PROTOCOL", "SSL_CIPHER", "SSL_TLS_SNI_HOSTNAME", "SSLCTLFD", "SSLREADFD",
                                         "SSLWRITEFD")}
        env = {**os.environ, **lies}
        server = self.serve(program=["env"], env=env)
        self.assertNotIn("lie", environment(answers(server)).values())
        server = self.serve("-n", program=["env"], env=env)
        with server.clear() as s:
            self.assertNotIn("lie", environment(read_all(s)).values())

    def test_rules_come_before_the_handshake_and_their_variables_before_the_session(self):
        with Rules("127.0.0.1:allow,A='b',TLS_CLIENT_VERIFIED='1',TLS_PROTOCOL='old'\n") as rules:
            got = environment(answers(self.serve("-x", rules, program=["env"])))
            self.assertEqual((got["A"], got["TLS_PROTOCOL"]), ("b", "TLSv1.3"))
        with Rules("127.:deny\n") as rules:
            server = self.serve("-x", rules)
            with server.clear() as s:
                s.sendall(client_hello())
                self.assertEqual(rest_of(s), b"")
            server.wait_log(r"^tlsserver: deny \d+ ")
            server.wait_log(r"^tlsserver: end \d+ status 25600$")
            self.assertNotIn("tlsserver: tls", server.log())

    def test_limits_count_sessions(self):
        server = self.serve("-C", "1")
        with server.connect() as s:
            with server.clear() as second:
                self.assertEqual(rest_of(second), b"")
            server.wait_log(r"^tlsserver: warning: dropping connection, already 1 from 127\.0\.0\.1$")
            s.sendall(b"x")
            self.assertEqual(s.recv(1), b"x")
        server.wait_idle()
        server.connect().close()

    def test_a_banner_is_inside_the_session(self):
        server = self.serve("-B", "hello\r\n", program=["echo", "x"])
        self.assertEqual(answers(server), b"hello\r\nx\n")

    def test_a_program_that_is_not_there(self):
        server = self.serve(program=["/nonexistent"])
        self.assertEqual(answers(server), b"")
        server.wait_log(r"^tlsserver: warning: dropping connection, unable to run /nonexistent: file does not exist$")
        server.wait_log(r"^tlsserver: end \d+ status 28416$")

    def test_the_end_of_the_program_is_its_status(self):
        server = self.serve(program=["sh", "-c", "exit 7"])
        answers(server)
        server.wait_log(r"^tlsserver: end \d+ status 1792$")

    def test_term_ends_the_server_and_no_session(self):
        server = self.serve()
        with server.connect() as s:
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(harness.TIMEOUT), 0)
            s.sendall(b"on")
            self.assertEqual(s.recv(2), b"on")


# Writes without ever reading, and ends when it is told.
FILLS_UNTIL_TOLD = """
import os, select, sys
told = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
os.set_blocking(1, False)
poll = select.poll()
poll.register(told, select.POLLIN)
poll.register(1, select.POLLOUT)
wrote = 0
def fill():
    global wrote
    try:
        while True:
            wrote += os.write(1, bytes(65536))
    except BlockingIOError:
        pass
while all(fd != told for fd, _ in poll.poll()):
    fill()
fill()
os.write(2, b"%d wrote %d\\n" % (os.getpid(), wrote))
"""


def client_hello():
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a server")


def rest_of(s):
    """What a peer says to the end, alerts of TLS aside; a reset is an end."""
    got = b""
    try:
        while chunk := s.recv(4096):
            got += chunk
    except ConnectionResetError:
        pass
    return re.sub(rb"^\x15\x03.\x00\x02..", b"", got, flags=re.S)


class Transfers(Certified):
    def serve(self, *options, **how):
        return self.enterContext(Server(*options, store=self.store, **how))

    def test_much_goes_both_ways_at_once_unchanged(self):
        server = self.serve()
        text = os.urandom(MEGABYTE) * 8
        for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            with server.connect(trusting(version)) as s:
                # A socket of this library is not for two threads: they speak to a session through a loop.
                got = pump(s, text)
            self.assertEqual(hashlib.sha256(got).digest(), hashlib.sha256(text).digest())

    def test_what_the_program_wrote_arrives_though_it_has_ended_and_the_peer_is_slow(self):
        server = self.serve(program=["sh", "-c", "head -c 3000000 /dev/zero"])
        with server.connect() as s:
            got = s.recv(1)
            wait_for(lambda: stalled(server), "the session to be full")
            while chunk := s.recv(1000):
                got += chunk
        self.assertEqual(len(got), 3000000)
        server.wait_log(r"^tlsserver: end \d+ status 0$")

    def test_what_the_program_wrote_arrives_though_it_has_ended_and_read_nothing(self):
        """Both ways are full when it ends."""
        with word_for_a_program() as fifo:
            server = self.serve(program=[PYTHON, "-c", FILLS_UNTIL_TOLD, fifo])
            with server.connect(trusting(ssl.TLSVersion.TLSv1_3)) as s:
                s.setblocking(False)

                looks = []  # many alike: a way that is full for a moment only is not

                def is_full():
                    try:
                        while s.send(b"x" * 16384):
                            looks.clear()
                    except ssl.SSLWantWriteError:
                        looks.append(stalled(server, both=True))
                    return looks[-20:] == [True] * 20
                wait_for(is_full, "the session to be full both ways")
                with open(fifo, "wb") as f:
                    f.write(b"go\n")
                program, wrote = map(int, server.wait_log(r"^(\d+) wrote (\d+)$").groups())


                def is_gone():
                    try:
                        with open(f"/proc/{program}/stat") as stat:
                            return stat.read().rpartition(")")[2].split()[0] == "Z"  # reaped when the relay ends
                    except FileNotFoundError:
                        return True
                relay = harness.parent(program)
                wait_for(is_gone, "the program to be gone")
                if ROOT and os.uname().machine == "x86_64" and os.path.exists("/proc/self/syscall"):
                    wait_for(lambda: polls_with_a_limit(relay), "the relay to know that the program is gone")
                s.settimeout(harness.TIMEOUT)
                self.assertEqual(len(read_all(s)), wrote)
            server.wait_log(r"^tlsserver: end \d+ status 0$")

    def test_the_peer_may_end_first_and_gets_its_answer(self):
        server = self.serve(program=["sh", "-c", "wc -c; echo done"])
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = trusting(ssl.TLSVersion.TLSv1_3).wrap_bio(incoming, outgoing, server_hostname="localhost")
        with server.clear() as s:
            def step(what, *arguments):
                while True:
                    try:
                        return what(*arguments)
                    except ssl.SSLWantReadError:
                        if out := outgoing.read():
                            s.sendall(out)
                        if chunk := s.recv(65536):
                            incoming.write(chunk)
                        else:
                            incoming.write_eof()
            step(session.do_handshake)
            session.write(b"x" * 10000)
            try:
                session.unwrap()
            except ssl.SSLWantReadError:
                pass
            s.sendall(outgoing.read())
            got = b""
            while b"done" not in got:
                got += step(session.read, 1000)
            self.assertEqual(got.split(), [b"10000", b"done"])

    def test_a_cut_connection_is_an_end_for_the_program(self):
        server = self.serve(program=["sh", "-c", "wc -c >&2"])
        with server.connect() as s:
            s.sendall(b"12345")
            s.shutdown(socket.SHUT_RDWR)  # no announcement
        server.wait_log(r"^5$")
        server.wait_idle()

    def test_a_program_that_goes_on_without_the_session_keeps_its_place(self):
        with word_for_a_program() as fifo:
            server = self.serve(program=["sh", "-c", f"exec <&- >&-; read x <{fifo}; exit 3"])
            self.assertEqual(answers(server), b"")
            self.assertNotIn("tlsserver: end", server.log())
            with open(fifo, "wb") as f:
                f.write(b"go\n")
            server.wait_log(r"^tlsserver: end \d+ status 768$")


@contextlib.contextmanager
def word_for_a_program():
    """A fifo that a program of anybody's may read: it is told when."""
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o755)
        fifo = os.path.join(base, "fifo")
        os.mkfifo(fifo)
        os.chmod(fifo, 0o644)
        yield fifo


def stalled(server, both=False):
    """Whether all of the program's output that can be is on its way, and the relay waits for the peer; with `both`, whether
    the relay leaves what the peer has sent as well."""
    relays = [pid for pid in harness.family(server.pid) if harness.parent(pid) == server.pid]
    for pid in relays:
        with open(f"/proc/{pid}/stat") as f:
            if f.read().rpartition(")")[2].split()[0] != "S":
                return False
    # Connected sockets whose send queue at our side is not empty, by the table of the kernel.
    with open("/proc/net/tcp") as f:
        table = [line.split() for line in f if f":{server.port:04X} " in line]
    if both:
        table = [row for row in table if row[1].endswith(f":{server.port:04X}") and int(row[4].split(":")[1], 16) > 0]
    return any(int(row[4].split(":")[0], 16) > 0 for row in table)


def polls_with_a_limit(pid):
    """Whether a process waits in poll(2), and not for ever."""
    with open(f"/proc/{pid}/syscall") as f:
        number, *arguments = f.read().split()
    return number == "7" and not int(arguments[2], 16) & 1 << 31


def pump(s, text):
    """Sends and receives at once, as long as either is possible."""
    s.setblocking(False)
    sent, got = 0, bytearray()
    import select
    while len(got) < len(text):
        moved = False
        if sent < len(text):
            try:
                sent += s.send(text[sent:sent + 65536])
                moved = True
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                pass
        try:
            chunk = s.recv(65536)
            if not chunk:
                break
            got += chunk
            moved = True
        except ssl.SSLWantReadError:
            pass
        if not moved:
            ready = select.select([s], [s] if sent < len(text) else [], [], harness.TIMEOUT)
            if not any(ready):
                raise AssertionError("nothing moves")
    return bytes(got)


class Reloads(unittest.TestCase):
    def setUp(self):
        self.ca = self.enterContext(Authority())
        self.store = self.enterContext(Store())
        self.store.put("default", self.ca.issue("first.example"))
        self.server = self.enterContext(Server(store=self.store))

    def shown(self, name="localhost"):
        context = trusting(None, self.ca)
        context.check_hostname = False
        with self.server.connect(context, name=name) as s:
            return s.getpeercert()["subjectAltName"][0][1]

    def test_new_files_are_seen_and_sessions_go_on(self):
        with self.server.connect() as old:
            self.assertEqual(self.shown(), "first.example")
            self.store.put("default", self.ca.issue("second.example"))
            wait_for(lambda: self.shown() == "second.example", "the new certificate")
            self.store.put("added.example", self.ca.issue("added.example"))
            wait_for(lambda: self.shown("added.example") == "added.example", "the added name")
            old.sendall(b"here")
            self.assertEqual(old.recv(4), b"here")

    def test_hup_is_a_look_at_once(self):
        self.store.put("default", self.ca.issue("second.example"))
        before = self.server.log().count("certificates read")
        self.server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: self.server.log().count("certificates read") > before, "the line")
        self.assertEqual(self.shown(), "second.example")

    def test_files_that_are_no_good_change_nothing(self):
        other = self.ca.issue("other.example")
        with open(self.store.file("default", "key.pem"), "wb") as f:
            f.write(other[1])
        self.server.process.send_signal(signal.SIGHUP)
        self.server.wait_log(r"^tlsserver: warning: refusing \S+/default/cert.pem: it is not the certificate of key.pem "
                             r"beside it, keeping the certificates that were read before$")
        self.assertEqual(self.shown(), "first.example")
        self.store.put("default", other)
        wait_for(lambda: self.shown() == "other.example", "the good ones")

    def test_a_keeper_that_is_killed_is_started_again(self):
        keeper, = [pid for pid in harness.family(self.server.pid) if pid != self.server.pid]
        os.kill(keeper, signal.SIGKILL)

        def again():
            try:
                return self.shown() == "first.example"
            except (ssl.SSLError, OSError):
                return False
        wait_for(again, "sessions again")

    def test_a_keeper_that_cannot_be_started_is_tried_again(self):
        keeper, = [pid for pid in harness.family(self.server.pid) if pid != self.server.pid]
        key = self.store.file("default", "key.pem")
        os.rename(key, key + ".away")
        self.server.process.send_signal(signal.SIGHUP)
        self.server.wait_log(r"key\.pem.*, keeping the certificates that were read before$")
        os.kill(keeper, signal.SIGKILL)
        self.server.wait_log(r"key\.pem: file does not exist(: make it, or take out what names it)?$")
        os.rename(key + ".away", key)

        def again():
            try:
                return self.shown() == "first.example"
            except (ssl.SSLError, OSError):
                return False
        wait_for(again, "sessions again")

    def test_old_keepers_do_not_stay(self):
        for n in range(3):
            self.server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: self.server.log().count("certificates read") == n + 1, "the line")
        wait_for(lambda: len(harness.family(self.server.pid)) == 2, "one keeper")


class Refusals(unittest.TestCase):
    """What is said before it listens."""

    def start(self, store, *options):
        who = ["-u", "65534", "-g", "65534", "-T", f"{TLS_USER}:{TLS_USER}"] if ROOT else []
        return run(["tlsserver", *who, "-k", store, *options, "127.0.0.1", "0", "true"])

    def refuses(self, store, text):
        got = self.start(store)
        self.assertEqual((got.code, got.out), (111, b""))
        self.assertRegex(got.err.decode(), r"^tlsserver: fatal: " + text + r"\n$")

    def test_no_certificates(self):
        self.refuses("/nonexistent", "unable to read /nonexistent: file does not exist")
        with Store() as store:
            self.refuses(store.path, r"no certificate in \S+: there is no NAME/cert.pem in it \(tlscert makes a first one\)")
            os.mkdir(store.file("default"))
            with open(store.file("default", "key.pem"), "w") as f:
                os.fchmod(f.fileno(), 0o600)
            self.refuses(store.path, r"(refusing|unable to read) \S+/default/cert.pem: file does not exist.*")

    def test_files_that_are_no_good(self):
        pair = self_signed("localhost")
        with Store() as store:
            store.put("default", (b"nothing", pair[1]))
            self.refuses(store.path, r"refusing \S+/cert.pem: there is no certificate in PEM in it")
            store.put("default", (pair[0], b"nothing"))
            self.refuses(store.path, r"refusing \S+/key.pem: there is no private key in PEM in it \(without a password\)")
            store.put("default", (pair[0], self_signed("other")[1]))
            self.refuses(store.path, r"refusing \S+/cert.pem: it is not the certificate of key.pem beside it")
            store.put("default", pair, mode=0o644)
            self.refuses(store.path, r"refusing \S+/key.pem: .*")

    @unittest.skipUnless(ROOT, "only root has something to lose")
    def test_files_that_strangers_may_change(self):
        with Store() as store:
            store.put("default", self_signed("localhost"))
            os.chmod(store.file("default"), 0o777)
            self.refuses(store.path, r"refusing \S+/default: .*")
            os.chmod(store.file("default"), 0o755)
            os.chown(store.file("default", "key.pem"), 65534, 65534)
            self.refuses(store.path, r"refusing \S+/key.pem: .*")

    def test_wrong_use(self):
        for options, text in [(["-m", "1.1"], b"-m takes 1.2 or 1.3"), (["-a", "a,,b"], b"-a takes names"),
                              (["-N"], b"-N needs the authorities of -A"), (["-T", "1"], b"-T takes UID:GID"),
                              (["-T", "0:0"], b"-T takes UID:GID"), (["-w", "x"], b"-w takes a number"),
                              (["-u", "root"], b"-u must be a number")]:
            got = self.start("/nonexistent", *options)
            self.assertEqual(got.code, 100, got)
            self.assertIn(text, got.err)
            self.assertIn(b"tlsserver: usage: tlsserver [", got.err)


class ClientCertificates(Certified):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.alice = cls.ca.issue("alice", subject="/O=Tiny, Inc./CN=alice",
                                 alternatives="email:alice@example.org,DNS:laptop.example.org,DNS:other.example.org")
        cls.stranger = self_signed("alice", "/O=Tiny, Inc./CN=alice")

    def serve(self, *options):
        return self.enterContext(Server("-A", self.ca.file, *options, store=self.store, program=["env"]))

    def of(self, server, pair=None, **how):
        context = trusting(**({"pair": pair} if pair else {}))
        with server.connect(context, **how) as s:
            got = environment(read_all(s))
        return {k.removeprefix("TLS_CLIENT_"): v for k, v in got.items() if k.startswith("TLS_CLIENT_")}

    def test_one_of_the_authority_is_told_in_full(self):
        fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.alice[0].decode())).hexdigest()
        for options in ([], ["-N"]):
            self.assertEqual(self.of(self.serve(*options), self.alice), {
                "VERIFIED": "1", "SUBJECT": r"CN=alice,O=Tiny\, Inc.", "EMAIL": "alice@example.org",
                "DNS": "laptop.example.org", "FINGERPRINT": fingerprint})

    def test_none_and_one_of_a_stranger_are_served_but_not_believed(self):
        server = self.serve()
        self.assertEqual(self.of(server), {})
        self.assertEqual(set(self.of(server, self.stranger)), {"FINGERPRINT"})

    def test_they_are_turned_away_where_one_is_needed(self):
        server = self.serve("-N")
        for pair in (None, self.stranger):
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                context = trusting(version, **({"pair": pair} if pair else {}))
                try:
                    with server.connect(context) as s:
                        self.assertEqual(read_all(s), b"")  # in TLS 1.3 the client is done before it is judged
                except (ssl.SSLError, ConnectionResetError):
                    pass
        wait_for(lambda: len(server.failures()) == 4, "four lines")

    def test_a_resumed_session_has_its_certificate(self):
        server = self.serve("-N")
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = trusting(version, pair=self.alice)
            with server.connect(context) as s:
                read_all(s)
                session = s.session
            with server.connect(context, session=session) as s:
                self.assertTrue(s.session_reused)
                self.assertIn(b"TLS_CLIENT_VERIFIED=1", read_all(s))

    def test_nobody_is_asked_without_the_option(self):
        server = self.enterContext(Server(store=self.store, program=["env"]))
        self.assertEqual(self.of(server, self.alice), {})


STARTTLS = r"""
import os, sys
control, read, write = (int(os.environ[n]) for n in ("SSLCTLFD", "SSLREADFD", "SSLWRITEFD"))
def say(text, where=1): os.write(where, text + b"\n")
say(b"ready")
got = os.read(0, 1000)
command, _, rest = got.partition(b"\n")
if command == b"env":
    for name in sorted(os.environ): say(name.encode() + b"=" + os.environ[name].encode())
    sys.exit(0)
if rest:
    say(b"no: there is more")
    sys.exit(9)
say(b"go")
os.write(control, b"y" if command == b"quiet" else b"Y")
told = b""
if command != b"quiet":
    while not (told.endswith(b"\0\0") or told == b"\0"):
        chunk = os.read(control, 100)
        if not chunk:
            sys.exit(8)
        told += chunk
while True:
    line = os.read(read, 1000)
    if not line: sys.exit(0)
    if line == b"told\n": os.write(write, told.replace(b"\0", b"\n"))
    else: os.write(write, b"got " + line)
"""


class WhenAsked(Certified):
    """-n: a program that starts TLS itself."""

    def setUp(self):
        self.server = self.enterContext(Server("-n", "-w", "20", store=self.store, program=[PYTHON, "-c", STARTTLS]))

    def start(self, command=b"start\n"):
        s = self.server.clear()
        self.addCleanup(s.close)
        self.assertEqual(s.recv(100), b"ready\n")
        s.sendall(command)
        return s

    def upgrade(self, s):
        self.assertEqual(s.recv(100), b"go\n")
        tls = trusting(None, self.ca).wrap_socket(s, server_hostname="localhost")
        self.addCleanup(tls.close)
        return tls

    def test_tls_begins_when_the_program_says_so_and_it_is_told(self):
        tls = self.upgrade(self.start())
        tls.sendall(b"hello\n")
        self.assertEqual(tls.recv(100), b"got hello\n")
        tls.sendall(b"told\n")
        told = environment(tls.recv(4000))
        self.assertEqual((told["TLS_PROTOCOL"], told["TLS_SERVER_NAME"]), ("TLSv1.3", "localhost"))
        self.assertEqual(len(told["TLS_EXPORTER"]), 64)

    def test_it_may_want_to_know_nothing(self):
        tls = self.upgrade(self.start(b"quiet\n"))
        tls.sendall(b"hello\n")
        self.assertEqual(tls.recv(100), b"got hello\n")

    def test_before_that_it_knows_nothing(self):
        names = set(environment(read_all(self.start(b"env\n"))))
        self.assertTrue({"SSLCTLFD", "SSLREADFD", "SSLWRITEFD", "TCPREMOTEIP"} <= names)
        self.assertEqual({n for n in names if n.startswith("TLS_")}, set())

    def test_text_behind_the_command_is_the_programs_to_refuse(self):
        s = self.start(b"start\nevil\n")
        self.assertEqual(read_all(s), b"no: there is more\n")
        self.server.wait_log(r"^tlsserver: end \d+ status 2304$")

    def test_text_that_comes_later_than_the_command_is_no_handshake(self):
        s = self.start()
        self.assertEqual(s.recv(100), b"go\n")
        s.sendall(b"evil\r\n" * 3)
        self.assertEqual(rest_of(s), b"")
        wait_for(lambda: len(self.server.failures()) == 1, "the line")
        self.server.wait_log(r"^tlsserver: end \d+ status 2048$")

    def test_text_before_the_handshake_never_comes_out_inside(self):
        s = self.start()
        self.assertEqual(s.recv(100), b"go\n")
        s.sendall(b"evil\n" + client_hello())
        self.assertEqual(rest_of(s), b"")
        self.assertEqual(len(wait_for(self.server.failures, "the line")), 1)

    def test_without_a_handshake_the_connection_is_cut(self):
        s = self.start()
        self.assertEqual(s.recv(100), b"go\n")
        s.shutdown(socket.SHUT_WR)
        self.assertEqual(rest_of(s), b"")
        self.server.wait_log(r"^tlsserver: end \d+ status 2048$")

    def test_a_program_that_never_asks_is_an_ordinary_one(self):
        server = self.enterContext(Server("-n", "-B", "hi\n", store=self.store))
        with server.clear() as s:
            s.sendall(b"clear\n")
            s.shutdown(socket.SHUT_WR)
            self.assertEqual(read_all(s), b"hi\nclear\n")
        server.wait_log(r"^tlsserver: end \d+ status 0$")


class Peers(Certified):
    """Other people's programs as clients."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.store.put("localhost", cls.ca.issue("localhost", "RSA"))
        cls.server = cls.enterClassContext(Server(store=cls.store, program=["sh", "-c", "read a; echo got $a"]))

    def echoes(self, argv):
        done = subprocess.run(argv, input=b"hello\n", capture_output=True, timeout=60)
        self.assertIn(b"got hello", done.stdout, done)

    def test_openssl(self):
        for version in ("-tls1_2", "-tls1_3"):
            self.echoes(["openssl", "s_client", "-connect", f"127.0.0.1:{self.server.port}", "-servername", "localhost",
                         "-CAfile", self.ca.file, "-verify_return_error", "-ign_eof", version])

    def test_a_peer_may_want_other_keys(self):
        """K of openssl asks us for a KeyUpdate (rfc8446:4.6.3), which goes before what the program writes next."""
        with Server(store=self.store, program=["sh", "-c", "read a; dd if=/dev/zero bs=300000 count=1 2>/dev/null"]) as server, \
                tempfile.TemporaryFile() as told, \
                subprocess.Popen(["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_3"],
                                 stdin=subprocess.PIPE, stdout=told, stderr=told) as client:
            def said():
                return os.pread(told.fileno(), MEGABYTE, 0)
            try:
                client.stdin.write(b"K\n")
                client.stdin.flush()
                wait_for(lambda: b"KEYUPDATE" in said(), "openssl to ask")
                client.stdin.write(b"go\n")
                client.stdin.flush()
                client.wait(harness.TIMEOUT)  # it ends with the session
            finally:
                client.kill()
            self.assertEqual(said().count(b"\0"), 300000)

    def test_key_exchange(self):
        """openssl has X25519MLKEM768 from 3.5 on; tests/test_tlsclient.py has it in any case."""
        listed = subprocess.run(["openssl", "list", "-kem-algorithms"], capture_output=True, timeout=60).stdout
        groups = [("X25519", "X25519"), ("P-256", "prime256v1"), ("P-384", "secp384r1")]
        post_quantum = [("X25519MLKEM768", "X25519MLKEM768")] if b"X25519MLKEM768" in listed else []
        for version, there in (("-tls1_3", post_quantum + groups), ("-tls1_2", groups)):
            for name, said in there:
                done = self.s_client(version, "-groups", name)
                self.assertRegex(done.stdout.decode(), rf"(Server Temp Key: |group: )(ECDH, )?({said}|{name})", (version, name))
        self.assertIn(b"Cipher is (NONE)", self.s_client("-tls1_3", "-groups", "P-521").stdout)

    def s_client(self, *options):
        return subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{self.server.port}", "-servername", "localhost", *options],
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=60)

    def test_gnutls(self):
        for priority in ("NORMAL", "NORMAL:-VERS-TLS1.3"):
            self.echoes(["gnutls-cli", "--x509cafile", self.ca.file, "--priority", priority, "--sni-hostname", "localhost",
                         "--verify-hostname", "localhost", "-p", str(self.server.port), "127.0.0.1"])

    def test_stunnel(self):
        stunnel, env = tool("stunnel4", "stunnel")
        with tempfile.TemporaryDirectory() as base:
            port = harness.free_port()
            conf = os.path.join(base, "conf")
            with open(conf, "w") as f:
                f.write(f"foreground = yes\npid =\nsyslog = no\n[x]\nclient = yes\naccept = 127.0.0.1:{port}\n"
                        f"connect = 127.0.0.1:{self.server.port}\nCAfile = {self.ca.file}\nverifyChain = yes\n"
                        f"checkHost = localhost\nsni = localhost\n")
            with Daemon([stunnel, conf], env=env) as daemon:
                daemon.wait_log(r"Configuration successful")

                def talk():
                    try:
                        with socket.create_connection(("127.0.0.1", port), harness.TIMEOUT) as s:
                            s.sendall(b"hello\n")
                            return read_all(s)
                    except ConnectionRefusedError:
                        return None
                self.assertEqual(wait_for(talk, "stunnel to listen"), b"got hello\n")


PRYING = r"""
import ctypes, errno, os, sys
key, pids = sys.argv[1], list(map(int, sys.argv[2].split(","))) + [os.getppid()]
libc = ctypes.CDLL(None, use_errno=True)
def tried(what):
    try:
        what()
        return "DONE"
    except OSError as e:
        return errno.errorcode[e.errno]
def attach(pid):
    if libc.ptrace(16, pid, None, None):
        raise OSError(ctypes.get_errno(), "")
print(tried(lambda: open(key)))
for pid in pids:
    print(tried(lambda: open(f"/proc/{pid}/mem", "rb").read(1)), tried(lambda: attach(pid)),
          tried(lambda: os.listdir(f"/proc/{pid}/fd")), tried(lambda: open(f"/proc/{pid}/environ").read()))
"""


@unittest.skipUnless(ROOT, "needs root, to have several users")
class OutOfReach(unittest.TestCase):
    """The key, from a program that has been taken over, and from the process that speaks TLS."""

    @classmethod
    def setUpClass(cls):
        cls.store = cls.enterClassContext(Store())
        cls.store.put("default", self_signed("localhost"))

    def keeper(self, server):
        keeper, = [pid for pid in harness.family(server.pid) if pid != server.pid]
        return keeper

    def pry(self, *options):
        server = self.enterContext(Server(*options, store=self.store, program=["sh", "-c", 'read pids; exec "$@" "$pids"', "sh",
                                                                              PYTHON, "-c", PRYING,
                                                                              self.store.file("default", "key.pem")]))
        keeper = self.keeper(server)
        with server.connect() as s:
            s.sendall(f"{keeper},{server.pid}\n".encode())
            return read_all(s).decode().splitlines()

    def test_the_program_neither_reads_nor_traces(self):
        lines = self.pry()
        self.assertEqual(lines, ["EACCES"] + ["EACCES EPERM EACCES EACCES"] * 3)

    def test_not_even_as_the_same_user(self):
        _, uid, gid = harness.owner()
        lines = self.pry("-T", f"{uid}:{gid}")
        self.assertEqual(lines, ["EACCES"] + ["EACCES EPERM EACCES EACCES"] * 3)

    def test_who_is_who(self):
        server = self.enterContext(Server(store=self.store))
        keeper = self.keeper(server)
        with server.connect() as s:
            s.sendall(b"x")
            s.recv(1)
            session, = [p for p in harness.family(server.pid) if harness.parent(p) == server.pid and p != keeper]
            program, = [p for p in harness.family(session) if p != session]

            def status(pid):
                with open(f"/proc/{pid}/status") as f:
                    text = f.read()
                find = lambda name: re.search(rf"^{name}:\s*(.*)$", text, re.M)[1].split()
                return find("Uid")[0], find("Groups"), find("Seccomp")[0], find("NoNewPrivs")[0]
            tls = (str(TLS_USER), [str(TLS_USER)], "2", "1")
            self.assertEqual((status(keeper), status(session)), (tls, tls))
            self.assertEqual(status(program), (str(harness.owner()[1]), [str(harness.owner()[2])], "0", "0"))
            for pid in (server.pid, keeper, session):
                self.assertEqual([os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1)], ["/dev/null"] * 2)
            # What it has open: 0, 1, 2, the connection, the program.
            wait_for(lambda: len(os.listdir(f"/proc/{session}/fd")) == 5, "the way to the keys to be closed")

    def test_a_process_that_speaks_tls_and_was_taken_over_has_nothing(self):
        try:
            from tests import ptracer
        except ImportError:
            self.skipTest("no ptrace here")
        server = self.enterContext(Server(store=self.store))
        keeper = self.keeper(server)
        with server.connect() as s:
            s.sendall(b"x")
            s.recv(1)
            session, = [p for p in harness.family(server.pid) if harness.parent(p) == server.pid and p != keeper]
            for pid in (session, keeper):
                with ptracer.Attacker(pid) as attacker:
                    self.assertIn(attacker.open(self.store.file("default", "key.pem")), ("EPERM", "EACCES"))
                    self.assertIn(attacker.open("/etc/passwd"), ("EPERM", "EACCES"))
                    self.assertIn(attacker.connect_tcp("127.0.0.1", server.port), ("EPERM", "EACCES"))
                    self.assertEqual(attacker.execve("/bin/sh"), "EPERM")
            s.sendall(b"y")
            self.assertEqual(s.recv(1), b"y")

    def test_the_server_holds_no_key(self):
        """Neither the server nor a session has any piece of the key in its memory."""
        pair = self_signed("localhost")
        secrets = forms(scalar(pair[1]))
        with Store() as store:
            store.put("default", pair)
            server = self.enterContext(Server(store=store))
            keeper = self.keeper(server)
            with server.connect() as s:
                s.sendall(b"x")
                s.recv(1)
                session, = [p for p in harness.family(server.pid) if harness.parent(p) == server.pid and p != keeper]
                found = [any(secret in text for secret in secrets) for text in map(memory, (keeper, server.pid, session))]
                self.assertEqual(found, [True, False, False])


def scalar(pem):
    """The secret number of a P-256 key."""
    text = openssl("pkey", "-text", "-noout", stdin=pem).decode()
    digits = re.search(r"priv:\n((?:\s+[0-9a-f:]+\n)+)", text)[1]
    number = bytes.fromhex(re.sub(r"[\s:]", "", digits))
    return number[-32:]


P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def forms(secret):
    """As it stands in a file, in words of the machine, and as a library keeps it to sign with: times 2**256 modulo the order."""
    number = int.from_bytes(secret, "big")
    return [secret, number.to_bytes(32, "little"), ((number << 256) % P256).to_bytes(32, "little")]


def memory(pid):
    """All writable memory of a process."""
    found = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for line in maps:
            addresses, rights = line.split()[:2]
            if rights.startswith("rw"):
                start, end = (int(a, 16) for a in addresses.split("-"))
                mem.seek(start)
                try:
                    found.append(mem.read(end - start))
                except OSError:
                    pass
    return b"".join(found)


if __name__ == "__main__":
    unittest.main()
