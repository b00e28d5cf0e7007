"""tlsclient from outside: connections are handed to it as qmail-remote does; the servers are other people's TLS."""

import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import unittest

from tests import harness
from tests.certificates import Authority, Store, files_of, openssl, self_signed
from tests.harness import Daemon, Home, run, wait_for

PYTHON = shutil.which("python3", path="/usr/bin:/bin") or sys.executable

# The program behind tlsclient: brings its socket to the test, and stays as long as that wants.
HANDOVER = r"""
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
socket.send_fds(s, [b"x"], [int(os.environ["TLSCLIENTFD"])])
s.recv(1)
"""


class Tls:
    """tlsclient with a program of ours behind it, in an own home."""

    def __init__(self, home, env=None):
        self.base = harness.scratch()
        path = os.path.join(self.base, "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            os.chmod(path, 0o777)
            listener.listen()
            listener.settimeout(harness.TIMEOUT)
            self.daemon = Daemon(["tlsclient", PYTHON, "-c", HANDOVER, path], env={**home.env, **(env or {})})
            self.program, _ = listener.accept()
        self.program.settimeout(harness.TIMEOUT)
        _, fds, _, _ = socket.recv_fds(self.program, 1, 1)
        self.socket = socket.socket(fileno=fds[0])

    def __enter__(self):
        return self

    def keeper(self):
        """The pid of the child that stays."""
        pid, = [p for p in harness.family(self.daemon.pid) if harness.parent(p) == self.daemon.pid]
        return pid

    def server(self):
        """And of its child, which takes connections."""
        keeper = self.keeper()
        pid, = wait_for(lambda: [p for p in harness.family(keeper) if harness.parent(p) == keeper], "the server")
        return pid

    def __exit__(self, *_):
        self.socket.close()
        self.program.close()
        self.daemon.process.wait(harness.TIMEOUT)
        self.daemon.stop()
        shutil.rmtree(self.base, ignore_errors=True)

    def ask(self, connection, demands):
        """(verdict letter, facts or text, clear socket)"""
        answer, their_answer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        clear, their_clear = socket.socketpair()
        packet = demands if isinstance(demands, bytes) else b"".join(f"{k}={v}\0".encode() for k, v in demands)
        socket.send_fds(self.socket, [packet], [their_answer.fileno(), their_clear.fileno(), connection.fileno()])
        for s in (their_answer, their_clear, connection):
            s.close()
        answer.settimeout(harness.TIMEOUT)
        clear.settimeout(harness.TIMEOUT)
        with answer:
            got = answer.recv(65536)
        letter, rest = got[:1].decode(), got[1:].decode()
        if letter in "KU" and letter:
            return letter, dict(e.split("=", 1) for e in rest.split("\0") if e), clear
        return letter, rest, clear


class Server:
    """A TLS server of python's, which greets, says each line back and ends at the end."""

    def __init__(self, pair, version=None, ask=None, work=None, chain=b"", weak=False, group=None):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if version:
            self.context.minimum_version = self.context.maximum_version = version
        if weak:
            self.context.set_ciphers(weak)
        if group:
            self.context.set_ecdh_curve(group)
        with tempfile.NamedTemporaryFile() as f:
            f.write(pair[1] + pair[0] + chain)
            f.flush()
            self.context.load_cert_chain(f.name)
        if ask:
            self.context.load_verify_locations(ask)
            self.context.verify_mode = ssl.CERT_REQUIRED
        self.names, self.got, self.peer, self.error = [], b"", None, None
        self.context.sni_callback = lambda s, name, c: self.names.append(name)
        self.work = work or self.echo
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(harness.TIMEOUT)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def connect(self):
        return socket.create_connection(self.listener.getsockname(), harness.TIMEOUT)

    def serve(self):
        try:
            s, _ = self.listener.accept()
            s.settimeout(harness.TIMEOUT)
            with self.context.wrap_socket(s, server_side=True) as tls:
                self.peer = tls.getpeercert() if self.context.verify_mode else None
                self.work(tls)
        except (OSError, ssl.SSLError) as e:
            self.error = e

    def echo(self, tls):
        tls.sendall(b"hello\n")
        while chunk := tls.recv(65536):
            self.got += chunk
            tls.sendall(chunk)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        self.thread.join(harness.TIMEOUT)


def read_all(s):
    got = []
    while chunk := s.recv(65536):
        got.append(chunk)
    return b"".join(got)


def der(pem):
    return ssl.PEM_cert_to_DER_cert(pem.decode())


def spki(pem):
    return openssl("pkey", "-pubin", "-outform", "DER", stdin=openssl("x509", "-pubkey", "-noout", stdin=pem))


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Ear:
    """Between a client, who gets `mouth`, and a server: hears what the server says first."""

    def __init__(self, address):
        self.mouth, ours = socket.socketpair()
        server = socket.create_connection(address, harness.TIMEOUT)
        ours.settimeout(harness.TIMEOUT)
        self.heard = b""
        self.threads = [threading.Thread(target=self.carry, args=pair, daemon=True) for pair in ((ours, server, False), (server, ours, True))]
        self.ends = (ours, server)
        for thread in self.threads:
            thread.start()

    def carry(self, source, to, listen):
        try:
            while data := source.recv(65536):
                if listen:
                    self.heard += data
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # who is cut off sees it

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.mouth.close()
        for thread in self.threads:
            thread.join(harness.TIMEOUT)
        for end in self.ends:
            end.close()


X25519MLKEM768 = 0x11ec
HELLO_RETRY = hashlib.sha256(b"HelloRetryRequest").digest()  # rfc8446:4.1.3


def chosen(heard):
    """The group of the key exchange, out of a server's first words in TLS 1.3."""
    while heard[:1] in (b"\x14", b"\x16"):
        length = int.from_bytes(heard[3:5], "big")
        record, kind = heard[5:5 + length], heard[:1]
        heard = heard[5 + length:]
        if kind == b"\x14" or record[6:38] == HELLO_RETRY:
            continue
        at = 39 + record[38] + 3  # behind version and random number: session, suite, compression
        extensions = record[at + 2:at + 2 + int.from_bytes(record[at:at + 2], "big")]
        while extensions:
            number, size = int.from_bytes(extensions[:2], "big"), int.from_bytes(extensions[2:4], "big")
            if number == 51:  # key_share
                return int.from_bytes(extensions[4:6], "big")
            extensions = extensions[4 + size:]
    raise AssertionError("no ServerHello with a key")


class Connections(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.ca = cls.enterClassContext(Authority())
        cls.home = cls.enterClassContext(Home(users={}))
        with open(cls.ca.file, "rb") as f:
            cls.home.control("tlsca", f.read())
        cls.good = cls.ca.issue("mx.example.org")
        cls.tls = cls.enterClassContext(Tls(cls.home))

    def ask(self, pair, *demands, **how):
        server = self.enterContext(Server(pair, **how))
        letter, said, clear = self.tls.ask(server.connect(), demands)
        self.addCleanup(clear.close)
        return server, letter, said, clear

    def talk(self, clear, text=b"some text"):
        self.assertEqual(clear.recv(6), b"hello\n")
        clear.sendall(text)
        got = b""
        while len(got) < len(text):
            got += clear.recv(65536)
        self.assertEqual(got, text)

    def test_an_encrypted_connection_and_its_facts(self):
        for version, name in ((ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")):
            server, letter, facts, clear = self.ask(self.good, ("name", "mx.example.org"), ("verify", "none"), version=version)
            self.assertEqual((letter, facts["TLS_PROTOCOL"], facts["TLS_VERIFIED"]), ("U", name, "none"))
            self.assertRegex(facts["TLS_CIPHER"], "^TLS_")
            self.assertEqual(facts["TLS_SERVER_END_POINT"], sha256(der(self.good[0])))
            self.assertEqual("TLS_EXPORTER" in facts, name == "TLSv1.3")
            self.assertEqual(server.names, ["mx.example.org"])
            self.talk(clear)

    def test_the_key_exchange_is_post_quantum_where_both_have_it(self):
        with Store() as store:
            store.put("default", self.good)
            who = harness.as_owner() + (["-T", "61184:61184"] if os.geteuid() == 0 else [])
            argv = ["tlsserver", "-v", "-1", "-RHl0", "-k", store.path, *who, "127.0.0.1", "0", "sh", "-c", "echo hello; cat"]
            with Daemon(argv) as daemon:
                port = int(daemon.wait_log(r"^(\d+)$")[1])
                with Ear(("127.0.0.1", port)) as ear:
                    letter, said, clear = self.tls.ask(ear.mouth, [("name", "mx.example.org"), ("verify", "pkix"), ("minimum", "1.3")])
                    with clear:
                        self.assertEqual(letter, "K", said)
                        self.talk(clear)
                self.assertEqual(chosen(ear.heard), X25519MLKEM768)

    def test_the_key_exchange_with_a_server_that_has_an_older_one(self):
        for name, number in (("prime256v1", 23), ("X25519", 29), ("secp384r1", 24)):
            with Server(self.good, version=ssl.TLSVersion.TLSv1_3, group=name) as server, Ear(server.listener.getsockname()) as ear:
                letter, said, clear = self.tls.ask(ear.mouth, [("name", "mx.example.org"), ("verify", "pkix")])
                with clear:
                    self.assertEqual(letter, "K", said)
                    self.talk(clear)
            self.assertEqual(chosen(ear.heard), number, name)

    def test_an_exporter_is_that_of_the_server(self):
        with tempfile.TemporaryDirectory() as base:
            cert, key = files_of(self.good, base)
            port = harness.free_port()
            with Daemon(["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", cert, "-key", key, "-keymatexport",
                         "EXPORTER-Channel-Binding", "-keymatexportlen", "32", "-naccept", "1"], stdin=subprocess.PIPE) as daemon:
                daemon.wait_log("ACCEPT")
                letter, facts, clear = self.tls.ask(socket.create_connection(("127.0.0.1", port)), [("verify", "none")])
                with clear:
                    self.assertEqual(letter, "U")
                    theirs = daemon.wait_log(r"Keying material: ([0-9A-F]+)")[1]
                    self.assertEqual(facts["TLS_EXPORTER"], theirs.lower())
                daemon.process.stdin.close()

    def test_pkix(self):
        pkix = ("verify", "pkix")
        server, letter, facts, clear = self.ask(self.good, ("name", "mx.example.org"), pkix)
        self.assertEqual((letter, facts["TLS_VERIFIED"]), ("K", "pkix"))
        self.talk(clear)
        refused = [
            (self.good, "other.example.org", "its certificate is not for other.example.org"),
            (self_signed("mx.example.org"), "mx.example.org", None),
            (self.ca.issue("mx.example.org", days="-1"), "mx.example.org", "its certificate has expired"),
        ]
        for pair, name, why in refused:
            server, letter, said, clear = self.ask(pair, ("name", name), pkix)
            self.assertEqual(letter, "D", said)
            self.assertIn(why or "", said)
            self.assertEqual(read_all(clear), b"")
            server.thread.join(harness.TIMEOUT)
            self.assertEqual(server.got, b"")

    def test_any_of_several_names(self):
        _, letter, _, clear = self.ask(self.good, ("name", "x.example"), ("names", "y.example,mx.example.org"), ("verify", "pkix"))
        self.assertEqual(letter, "K")
        self.talk(clear)

    def test_mta_sts_is_an_authority_and_a_name(self):
        sts = ("sts", "1"), ("verify", "none")
        self.assertEqual(self.ask(self.good, ("name", "mx.example.org"), *sts)[1], "K")
        self.assertEqual(self.ask(self_signed("mx.example.org"), ("name", "mx.example.org"), *sts)[1], "D")

    def test_dane_of_the_end_entity(self):
        pair = self_signed("nobody.example")
        for record in (f"3 1 1 {sha256(spki(pair[0]))}", f"3 0 1 {sha256(der(pair[0]))}", f"3 0 0 {der(pair[0]).hex()}",
                       f"3 1 2 {hashlib.sha512(spki(pair[0])).hexdigest()}"):
            _, letter, facts, clear = self.ask(pair, ("name", "mx.example.org"), ("verify", "dane"), ("tlsa", "3 1 1 " + 64 * "0"),
                                               ("tlsa", record))
            self.assertEqual((letter, facts.get("TLS_VERIFIED")), ("K", "dane-ee"), record)
            self.talk(clear)
        server, letter, said, _ = self.ask(pair, ("name", "mx.example.org"), ("verify", "dane"), ("tlsa", "3 1 1 " + 64 * "0"))
        self.assertEqual((letter, said), ("D", "no TLSA record fits its certificates"))

    def test_dane_of_an_anchor(self):
        with open(self.ca.file, "rb") as f:
            anchor = f.read()
        record = ("tlsa", f"2 0 1 {sha256(der(anchor))}")
        dane = ("verify", "dane")
        _, letter, facts, clear = self.ask(self.good, ("name", "mx.example.org"), dane, record, chain=anchor)
        self.assertEqual((letter, facts.get("TLS_VERIFIED")), ("K", "dane-ta"))
        self.talk(clear)
        self.assertEqual(self.ask(self.good, ("name", "other.example.org"), dane, record, chain=anchor)[1], "D")
        self.assertEqual(self.ask(self.ca.issue("mx.example.org", days="-1"), ("name", "mx.example.org"), dane, record,
                                  chain=anchor)[1:3], ("D", "its certificate has expired"))
        # Not sent, it is not found by its digest; it is when it stands in the record.
        self.assertEqual(self.ask(self.good, ("name", "mx.example.org"), dane, record)[1], "D")
        whole = ("tlsa", f"2 0 0 {der(anchor).hex()}")
        self.assertEqual(self.ask(self.good, ("name", "mx.example.org"), dane, whole)[1], "K")

    def test_records_that_prove_nothing_leave_encryption(self):
        _, letter, facts, clear = self.ask(self_signed("x"), ("name", "mx.example.org"), ("verify", "dane"),
                                           ("tlsa", f"1 0 1 {sha256(der(self.good[0]))}"))
        self.assertEqual((letter, facts["TLS_VERIFIED"]), ("K", "unusable"))
        self.talk(clear)

    def test_a_certificate_of_ours(self):
        self.home.write("control/tls/mine/cert.pem", self.ca.issue("client.example.org")[0])
        pair = self.ca.issue("client.example.org")
        self.home.write("control/tls/mine/cert.pem", pair[0])
        self.home.write("control/tls/mine/key.pem", pair[1], 0o600)
        server, letter, _, clear = self.ask(self.good, ("verify", "none"), ("cert", "mine"), ask=self.ca.file)
        self.assertEqual(letter, "U")
        self.talk(clear)
        self.assertIn((("commonName", "client.example.org"),), server.peer["subject"])
        _, letter, said, _ = self.ask(self.good, ("verify", "none"), ("cert", "missing"))
        self.assertEqual(letter, "Z")
        self.assertRegex(said, "unable to read .*control/tls/missing/cert.pem: file does not exist")

    def test_old_versions_and_weak_suites_are_no_handshake(self):
        for how in ({"version": ssl.TLSVersion.TLSv1_1, "weak": "ALL:@SECLEVEL=0"},
                    {"version": ssl.TLSVersion.TLSv1_2, "weak": "AES128-SHA:AES128-GCM-SHA256:@SECLEVEL=0"}):
            server, letter, said, clear = self.ask(self.good, ("verify", "none"), **how)
            self.assertEqual(letter, "Z", said)
            self.assertEqual(read_all(clear), b"")
        self.assertEqual(self.ask(self.good, ("verify", "none"), ("minimum", "1.3"), version=ssl.TLSVersion.TLSv1_2)[1], "Z")
        self.assertEqual(self.ask(self.good, ("verify", "none"), ("minimum", "1.3"))[1], "U")

    def test_a_key_that_is_too_short_proves_nothing(self):
        """Where anybody is taken, it is; but no login is bound to its certificate, whose key it may not have."""
        pair = self.ca.issue("mx.example.org", "RSA-1024")
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            short = {"version": version, "weak": "ALL:@SECLEVEL=0"}
            _, letter, facts, clear = self.ask(pair, ("verify", "none"), **short)
            self.assertEqual((letter, facts["TLS_VERIFIED"]), ("U", "none"))
            self.assertNotIn("TLS_SERVER_END_POINT", facts)
            self.talk(clear)
            for demands in ((("verify", "pkix"),), (("verify", "dane"), ("tlsa", f"3 1 1 {sha256(spki(pair[0]))}"))):
                server, letter, said, _ = self.ask(pair, ("name", "mx.example.org"), *demands, **short)
                self.assertIn(letter, "DZ", said)

    def test_openssl_with_an_old_version_or_a_weak_suite_is_no_handshake(self):
        rsa = self.ca.issue("mx.example.org", "RSA")
        weak = [["-tls1", "-cipher", "ALL"], ["-tls1_1", "-cipher", "ALL"], ["-tls1_2", "-cipher", "AES128-GCM-SHA256"],
                ["-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256"],
                ["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA:ECDHE-RSA-AES128-SHA256"]]
        with tempfile.TemporaryDirectory() as base:
            files = files_of(rsa, base)
            for options, letter in ((["-tls1_2"], "U"), (["-tls1_3"], "U"), *(([*how[:-1], how[-1] + ":@SECLEVEL=0"], "Z") for how in weak)):
                port = harness.free_port()
                with Daemon(["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", files[0], "-key", files[1], *options],
                            stdin=subprocess.PIPE) as daemon:
                    daemon.wait_log("ACCEPT")
                    got, said, clear = self.tls.ask(socket.create_connection(("127.0.0.1", port)), [("verify", "none")])
                    clear.close()
                    self.assertEqual(got, letter, said)
                    daemon.process.stdin.close()

    def test_a_server_that_speaks_no_tls_or_goes_away(self):
        for text in (b"", b"500 what?\r\n", b"220 ready\r\n250 ok\r\n", b"\x16\x03\x03\x00\x02\x02"):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                connection = socket.create_connection(listener.getsockname())
                peer, _ = listener.accept()
                with peer:
                    peer.sendall(text)
                    peer.shutdown(socket.SHUT_WR)
                    letter, said, clear = self.tls.ask(connection, [("verify", "none")])
            with clear:
                self.assertEqual(letter, "Z")
                self.assertTrue(said)
                self.assertEqual(read_all(clear), b"")

    def test_text_before_the_handshake_is_not_taken_for_the_servers(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            connection = socket.create_connection(listener.getsockname())
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"250 injected\r\n")
                letter, said, clear = self.tls.ask(connection, [("verify", "none")])
        with clear:
            self.assertEqual((letter, read_all(clear)), ("Z", b""))

    def test_much_goes_both_ways_and_the_end_is_told(self):
        server, letter, _, clear = self.ask(self.good, ("verify", "none"))
        text = os.urandom(1024 * 1024) * 4
        self.assertEqual(clear.recv(6), b"hello\n")
        sender = threading.Thread(target=clear.sendall, args=(text,), daemon=True)
        sender.start()
        got = bytearray()
        while len(got) < len(text):
            got += clear.recv(65536)
        sender.join(harness.TIMEOUT)
        self.assertEqual(bytes(got), text)
        clear.shutdown(socket.SHUT_WR)
        self.assertEqual(read_all(clear), b"")
        server.thread.join(harness.TIMEOUT)
        self.assertIsNone(server.error)  # announced, not cut

    def test_the_end_of_who_asked_is_the_end_of_the_connection(self):
        server, _, _, clear = self.ask(self.good, ("verify", "none"))
        self.talk(clear)
        clear.close()
        server.thread.join(harness.TIMEOUT)
        self.assertFalse(server.thread.is_alive())

    def test_demands_that_are_not_understood_are_refused(self):
        for packet in (b"", b"x", b"verify=none", b"verify=all\0", b"verify=none\0unknown=1\0", b"verify=none\0cert=../x\0"):
            if packet:
                with Server(self.good) as server:
                    letter, said, clear = self.tls.ask(server.connect(), packet)
                    clear.close()
                    self.assertEqual((letter, said), ("Z", "the demands are not understood"), packet)

    def test_a_packet_without_its_three_descriptors_stops_nothing(self):
        socket.send_fds(self.tls.socket, [b"verify=none\0"], [0])
        socket.send_fds(self.tls.socket, [b"verify=none\0"], [0, 0, 0, 0])
        self.tls.socket.send(b"verify=none\0")
        socket.send_fds(self.tls.socket, [b"verify=none\0"], [0, 0, 0])  # no sockets
        _, letter, _, clear = self.ask(self.good, ("verify", "none"))
        self.assertEqual(letter, "U")
        self.talk(clear)

    def test_a_name_that_is_none_is_not_asked_for(self):
        for name in ("192.0.2.1", "not a name", ""):
            server, letter, _, clear = self.ask(self.good, ("name", name), ("verify", "none"))
            self.assertEqual((letter, server.names), ("U", [None]), name)
            clear.close()

    def test_connections_do_not_wait_for_each_other(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            connection = socket.create_connection(listener.getsockname())
            answer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            clear, their_clear = socket.socketpair()
            with answer, clear:
                socket.send_fds(self.tls.socket, [b"verify=none\0"], [theirs.fileno(), their_clear.fileno(), connection.fileno()])
                for s in (theirs, their_clear, connection):
                    s.close()
                self.talk(self.ask(self.good, ("verify", "none"))[3])  # while the other waits for its server
                peer, _ = listener.accept()
                peer.close()
                answer.settimeout(harness.TIMEOUT)
                self.assertEqual(answer.recv(100)[:1], b"Z")


class Authorities(unittest.TestCase):
    def verdict(self, home, pair, env=None):
        with Tls(home, env) as tls, Server(pair) as server:
            letter, said, clear = tls.ask(server.connect(), [("name", "mx.example.org"), ("verify", "pkix")])
            clear.close()
            return letter, said

    def test_where_they_come_from(self):
        with Authority() as ca, Authority("Other") as other, Home(users={}) as home:
            pair = ca.issue("mx.example.org")
            self.assertEqual(self.verdict(home, pair)[0], "D")  # the system does not know it
            with open(other.file, "rb") as f:
                home.control("tlsca", f.read())
            self.assertEqual(self.verdict(home, pair)[0], "D")
            self.assertEqual(self.verdict(home, pair, {"SSL_CERT_FILE": ca.file})[0], "K")
            with open(ca.file, "rb") as f:
                home.control("tlsca", f.read())
            self.assertEqual(self.verdict(home, pair)[0], "K")
            home.control("tlsca", "nothing")
            letter, said = self.verdict(home, pair)
            self.assertEqual(letter, "Z")
            self.assertRegex(said, "no certificate in PEM in .*tlsca")


class Lives(unittest.TestCase):
    def test_it_becomes_the_program_and_its_child_ends_with_the_last_holder(self):
        with Home(users={}) as home:
            with Tls(home) as tls:
                with open(f"/proc/{tls.daemon.pid}/cmdline", "rb") as f:
                    self.assertIn(b"-c\0", f.read())
                server = tls.server()
            wait_for(lambda: not os.path.exists(f"/proc/{server}"), "the child to end")

    def test_who_is_killed_is_followed_by_another_one_and_mail_waits_for_no_restart(self):
        with Home(users={}) as home, Tls(home) as tls:
            for victim in (tls.server, tls.server, tls.keeper):
                pid = victim()
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda pid=pid: pid not in harness.family(tls.daemon.pid), "its end")
                with Server(self_signed("x")) as server:
                    letter, _, clear = tls.ask(server.connect(), [("verify", "none")])
                    clear.close()
                    self.assertEqual(letter, "U")

    def test_an_empty_packet_is_not_the_end(self):
        """Any qmail-remote could send one, and there would be no TLS for the others."""
        with Home(users={}) as home, Tls(home) as tls, Server(self_signed("x")) as server:
            tls.socket.send(b"")
            letter, _, clear = tls.ask(server.connect(), [("verify", "none")])
            clear.close()
            self.assertEqual(letter, "U")

    def test_the_child_holds_nothing_of_the_programs(self):
        """Whoever waits for the end of a pipe must not wait for it."""
        with Home(users={}) as home:
            got = run(["tlsclient", "sh", "-c", "sleep 0 & echo out; exec 9>&-"], env=home.env)
            self.assertEqual((got.code, got.out), (0, b"out\n"))

    def test_wrong_use_and_what_is_not_there(self):
        with Home(users={}) as home:
            self.assertEqual(run(["tlsclient"], env=home.env).code, 100)
            got = run(["tlsclient", "nonexistent-program"], env=home.env)
            self.assertEqual(got.code, 111)
            self.assertRegex(got.err.decode(), r"^tlsclient: fatal: unable to run \S+/bin/nonexistent-program: file does not exist\n$")

    @unittest.skipUnless(os.geteuid() == 0, "needs root, to look into other processes")
    def test_a_process_that_speaks_tls_and_was_taken_over_has_nothing(self):
        from tests import ptracer
        with Home(users={}) as home, Tls(home) as tls, Server(self_signed("x")) as server:
            letter, _, clear = tls.ask(server.connect(), [("verify", "none")])
            with clear:
                self.assertEqual(letter, "U")
                stays = tls.server()
                pid, = [p for p in harness.family(stays) if p != stays]
                with ptracer.Attacker(pid) as attacker:
                    for path in ("/etc/passwd", home.file("control/me"), "/etc/ssl/certs/ca-certificates.crt"):
                        self.assertIn(attacker.open(path), ("EPERM", "EACCES"))
                    self.assertIn(attacker.connect_tcp("127.0.0.1", server.listener.getsockname()[1]), ("EPERM", "EACCES"))
                    self.assertEqual(attacker.execve("/bin/sh"), "EPERM")
                # Only 0, 1, 2, and the two ends of the relay (what was answered is done with).
                self.assertLessEqual(len(os.listdir(f"/proc/{pid}/fd")), 6)
                with ptracer.Attacker(stays) as attacker:
                    self.assertIn(attacker.open("/etc/passwd"), ("EPERM", "EACCES"))
                    self.assertIn(attacker.connect_tcp("127.0.0.1", server.listener.getsockname()[1]), ("EPERM", "EACCES"))


if __name__ == "__main__":
    unittest.main()
