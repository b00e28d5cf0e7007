"""tcpserver from outside: real connections on loopback, over IPv4 and IPv6."""

import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import unittest

from tests import harness
from tests.harness import Daemon, Line, run, wait_for

HAVE_V6 = os.path.exists("/proc/net/if_inet6") and bool(open("/proc/net/if_inet6").read())


class Server(Daemon):
    """tcpserver on a port of the kernel's choice. Options come before, the program behind host and port."""

    def __init__(self, *options, host="127.0.0.1", port="0", program=("cat",), env=None, verbose="-v",
                 lookups="-RHl0"):
        options = [o for o in (verbose, "-1", lookups, *options) if o]
        super().__init__(["tcpserver", *options, host, port, *program], env=env)
        self.port = int(self.wait_log(r"^(\d+)$")[1])

    def talk(self, text=b"", host="127.0.0.1", source=None):
        """Sends a text, ends the sending, and returns everything that comes back."""
        with socket.create_connection((host, self.port), harness.TIMEOUT, source and (source, 0)) as s:
            s.settimeout(harness.TIMEOUT)
            try:
                s.sendall(text)
                s.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was dropped, perhaps behind a banner
            return read_all(s)

    def lines(self):
        """The log: pids become P in the order they appear, the server's port SPORT, the client's CPORT."""
        lines = [line for line in self.log().splitlines()[1:]]
        found = []
        for line in lines:
            line = re.sub(r"^(tcpserver: (?:pid|ok|deny|end)) \d+", r"\1 P", line)
            found.append(re.sub(r":%d (.*):\d+$" % self.port, r":SPORT \1:CPORT", line))
        return found


def read_all(s):
    got = b""
    try:
        while chunk := s.recv(65536):
            got += chunk
    except ConnectionResetError:
        pass
    return got


def environment(text):
    return dict(line.split("=", 1) for line in text.decode("latin-1").splitlines() if "=" in line)


class Rules:
    """A cdb made by tcprules, in a directory of its own."""

    def __init__(self, text):
        self.dir = tempfile.TemporaryDirectory(prefix="qmail-rules-")
        self.path = os.path.join(self.dir.name, "rules.cdb")
        os.chmod(self.dir.name, 0o755)
        made = run(["tcprules", self.path, self.path + ".tmp"], text.encode())
        assert made.code == 0, made

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        self.dir.cleanup()


class Names:
    """A DNS server for a few names: {(name, type): [rdata]}; whatever is asked else does not exist."""

    A, PTR, AAAA = 1, 12, 28

    def __init__(self, records):
        self.records = {(n.lower(), t): r for (n, t), r in records.items()}
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.env = {**os.environ, "DNSCACHEIP": f"127.0.0.1:{self.socket.getsockname()[1]}"}
        self.thread = threading.Thread(target=self.serve, daemon=True)

    @staticmethod
    def name(text):
        return b"".join(bytes([len(p)]) + p.encode() for p in text.split(".")) + b"\0"

    def serve(self):
        while True:
            try:
                query, peer = self.socket.recvfrom(4096)
            except OSError:
                return
            if query == b"end":
                return
            at, labels = 12, []
            while query[at]:
                labels.append(query[at + 1:at + 1 + query[at]].decode())
                at += query[at] + 1
            kind = struct.unpack(">H", query[at + 1:at + 3])[0]
            found = self.records.get((".".join(labels).lower(), kind))
            known = found is not None or any(n == ".".join(labels).lower() for n, _ in self.records)
            flags = 0x8180 | (0 if known else 3)
            answer = query[:2] + struct.pack(">HHHHH", flags, 1, len(found or []), 0, 0) + query[12:at + 5]
            for rdata in found or []:
                answer += b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 60, len(rdata)) + rdata
            self.socket.sendto(answer, peer)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.socket.sendto(b"end", self.socket.getsockname())
        self.thread.join()
        self.socket.close()


class Connections(unittest.TestCase):
    def test_the_program_gets_the_connection_and_its_addresses(self):
        with Server(program=("env",)) as server:
            with socket.create_connection(("127.0.0.1", server.port)) as s:
                port = s.getsockname()[1]
                env = environment(read_all(s))
        wanted = {"PROTO": "TCP", "TCPLOCALIP": "127.0.0.1", "TCPLOCALPORT": str(server.port), "TCPLOCALHOST": "0",
                  "TCPREMOTEIP": "127.0.0.1", "TCPREMOTEPORT": str(port)}
        self.assertEqual({k: v for k, v in env.items() if k in wanted or k.startswith("TCP")}, wanted)

    def test_inherited_names_of_another_connection_are_unset(self):
        old = {**os.environ, "TCPREMOTEHOST": "old", "TCPREMOTEINFO": "old", "TCPLOCALHOST": "old", "PROTO": "X"}
        with Server(program=("env",), env=old) as server:
            env = environment(server.talk())
        self.assertNotIn("TCPREMOTEHOST", env)
        self.assertNotIn("TCPREMOTEINFO", env)
        self.assertEqual((env["TCPLOCALHOST"], env["PROTO"]), ("0", "TCP"))

    @unittest.skipUnless(HAVE_V6, "this machine has no IPv6")
    def test_an_ipv6_peer_has_plain_addresses(self):
        with Server(host="::1", program=("env",)) as server:
            env = environment(server.talk(host="::1"))
        self.assertEqual((env["TCPREMOTEIP"], env["TCPLOCALIP"], env["PROTO"]), ("::1", "::1", "TCP"))

    @unittest.skipUnless(HAVE_V6, "this machine has no IPv6")
    def test_host_0_and_the_empty_host_take_both_families_and_ipv4_looks_like_ipv4(self):
        for host in ("0", ""):
            with Server(host=host, program=("env",)) as server:
                four, six = environment(server.talk()), environment(server.talk(host="::1"))
            self.assertEqual((four["TCPREMOTEIP"], four["TCPLOCALIP"]), ("127.0.0.1", "127.0.0.1"))
            self.assertEqual(six["TCPREMOTEIP"], "::1")

    @unittest.skipUnless(HAVE_V6, "this machine has no IPv6")
    def test_4_and_6_restrict_to_a_family(self):
        for option, host, good, bad in (("-4", "0", "127.0.0.1", "::1"), ("-6", "0", "::1", "127.0.0.1"),
                                        ("-4", "localhost", "127.0.0.1", "::1"), ("-6", "localhost", "::1", "127.0.0.1"),
                                        ("", "::", "::1", "127.0.0.1"), ("", "0.0.0.0", "127.0.0.1", "::1")):
            with self.subTest(option=option, host=host):
                with Server(option or "-Q", "-v", host=host) as server:
                    self.assertEqual(server.talk(b"x", host=good), b"x")
                    with self.assertRaises(ConnectionRefusedError):
                        server.talk(b"x", host=bad)

    def test_many_connections_are_each_served_once(self):
        with Server("-c", "20", "-b", "200") as server:
            got = {}

            def one(n):
                got[n] = server.talk(f"{n}\n".encode())
            threads = [threading.Thread(target=one, args=(n,)) for n in range(200)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            self.assertEqual(got, {n: f"{n}\n".encode() for n in range(200)})
            server.wait_log(r"\A(.*\n)*.*status: 0/20\n\Z")
            counts = [int(n) for n in re.findall(r"status: (\d+)/20", server.log())]
            self.assertEqual(len(re.findall(r"^tcpserver: ok ", server.log(), re.M)), 200)
            self.assertLessEqual(max(counts), 20)

    def test_a_banner_comes_first_even_for_those_a_rule_denies(self):
        with Rules(":deny\n") as rules, Server("-B", "hello\r\n", "-x", rules) as server:
            self.assertEqual(server.talk(), b"hello\r\n")

    def test_options_of_a_connection_are_set(self):
        program = ("python3", "-c", "import socket;s=socket.socket(fileno=0);"
                   "print(s.getsockopt(socket.IPPROTO_TCP,socket.TCP_NODELAY))")
        for option, wanted in (("-D", b"1\n"), ("-d", b"0\n"), ("-Dd", b"0\n")):
            with Server(option, program=program) as server:
                self.assertEqual(server.talk(), wanted)


    def test_ip_options_of_the_peer_are_removed_unless_o_is_given(self):
        program = ("python3", "-c", "import socket;s=socket.socket(fileno=0);"
                   "print(len(s.getsockopt(socket.IPPROTO_IP,socket.IP_OPTIONS,44)))")
        for host in ("127.0.0.1", *(["0"] if HAVE_V6 else [])):
            for option, kept in (("-o", True), ("-O", False), ("", False)):
                with Server(option, host=host, program=program) as server, socket.socket() as s:
                    s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([7, 7, 4, 0, 0, 0, 0, 0]))  # record route
                    s.connect(("127.0.0.1", server.port))
                    self.assertEqual(int(read_all(s)) > 0, kept, (host, option))


class Children(unittest.TestCase):
    def test_the_program_has_three_descriptors_and_default_signals(self):
        extra = os.open("/dev/null", os.O_RDONLY)
        os.set_inheritable(extra, True)
        self.addCleanup(os.close, extra)
        # sh, unlike python, ignores no signal of its own
        script = "ls /proc/self/fd | tr '\\n' ' '; grep -E 'Sig(Blk|Ign)' /proc/self/status | tr -s '\\t\\n' ' '"
        process = subprocess.Popen(
            [harness.program("tcpserver"), "-1RHl0", "127.0.0.1", "0", "sh", "-c", script],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, close_fds=False)
        try:
            port = int(process.stdout.readline())
            # The parent gave up its fd 1: we see the end while it runs.
            self.assertEqual(process.stdout.read(), b"")
            with socket.create_connection(("127.0.0.1", port)) as s:
                got = read_all(s).decode()
        finally:
            process.terminate()
            self.assertEqual(process.wait(), 0)
            process.stdout.close()
        self.assertRegex(got, r"^0 1 2 3 SigBlk: 0{16} SigIgn: \w{8}[08]0{7}")  # 3 is what ls reads
        # (signals 32 and up are the C library's, and whoever runs the tests may ignore them)

    def test_raw_wait_statuses_are_logged(self):
        for script, status in (("exit 0", 0), ("exit 1", 256), ("kill -9 $$", 9), ("kill -40 $$", 40)):
            with self.subTest(script=script), Server(program=("sh", "-c", script)) as server:
                server.talk()
                server.wait_log(rf"^tcpserver: end \d+ status {status}$")
                server.wait_log(r"^tcpserver: status: 0/40\n\Z")

    def test_at_the_limit_connections_wait_and_are_served_later(self):
        with Server("-c", "2") as server:
            lines = [Line.connect(server.port) for _ in range(3)]
            for line in lines[:2]:
                line.send("x\n")
                line.expect("x")
            lines[2].send("third\n")
            server.wait_log(r"^tcpserver: status: 2/2$")
            self.assertEqual(len(re.findall("^tcpserver: pid", server.log(), re.M)), 2)
            lines[0].close()
            lines[2].expect("third")
            for line in lines[1:]:
                line.close()
            server.wait_log(r"^tcpserver: status: 0/2\n\Z")

    def test_one_address_has_a_limit_of_its_own_and_others_are_served(self):
        with Server("-C", "2", host="0.0.0.0") as server:
            first = [Line.connect(server.port) for _ in range(2)]
            for line in first:
                line.send("x\n")
                line.expect("x")
            self.assertEqual(server.talk(b"refused\n"), b"")
            server.wait_log(r"^tcpserver: warning: dropping connection, already 2 from 127\.0\.0\.1$")
            self.assertEqual(server.talk(b"other\n", source="127.0.0.2"), b"other\n")
            first[0].close()
            wait_for(lambda: server.talk(b"again\n") == b"again\n", "a place for the address")
            first[1].close()

    @unittest.skipUnless(HAVE_V6, "this machine has no IPv6")
    def test_the_limit_for_an_ipv6_address_is_told_in_full(self):
        with Server("-C", "1", host="::1") as server:
            line = Line.connect(server.port, "::1")
            line.send("x\n")
            line.expect("x")
            self.assertEqual(server.talk(b"refused\n", host="::1"), b"")
            server.wait_log(r"already 1 from ::1$")
            line.close()

    def test_term_ends_the_server_with_0_and_leaves_the_program_alone(self):
        server = Server()
        line = Line.connect(server.port)
        line.send("before\n")
        line.expect("before")
        os.kill(server.pid, signal.SIGTERM)
        self.assertEqual(server.process.wait(harness.TIMEOUT), 0)
        line.send("after\n")
        line.expect("after")
        line.close()
        self.assertEqual(server.stop(), 0)

    def test_beyond_the_backlog_nobody_is_let_in(self):
        with Server("-c", "1", "-b", "1") as server:
            first = Line.connect(server.port)
            first.send("x\n")
            first.expect("x")
            waiting = [socket.create_connection(("127.0.0.1", server.port), harness.TIMEOUT) for _ in range(2)]
            with self.assertRaises(TimeoutError):
                socket.create_connection(("127.0.0.1", server.port), 0.3)
            for s in waiting:
                s.close()
            first.close()

    def test_without_descriptors_it_waits_and_does_not_spin(self):
        with Server() as server:
            limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
            line = Line.connect(server.port)
            server.wait_log(r"(warning: unable to accept: too many open files in this process\n(.|\n)*){2}")
            with open(f"/proc/{server.pid}/stat") as f:
                ticks = sum(int(n) for n in f.read().split()[13:15])
            self.assertLess(ticks, os.sysconf("SC_CLK_TCK") // 4)
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
            line.send("x\n")
            line.expect("x")
            line.close()

    def test_without_processes_the_connection_is_dropped_and_the_next_one_served(self):
        nobody = 65534

        def limit(pid, soft):
            """A process of the server's user changes the server's limit: root may lack the right to."""
            child = os.fork()
            if not child:
                try:
                    if not os.geteuid():
                        os.setgroups([])
                        os.setresgid(nobody, nobody, nobody)
                        os.setresuid(nobody, nobody, nobody)
                    hard = resource.prlimit(pid, resource.RLIMIT_NPROC)[1]
                    resource.prlimit(pid, resource.RLIMIT_NPROC, (hard if soft is None else soft, hard))
                    os._exit(0)
                finally:
                    os._exit(1)
            self.assertEqual(os.waitpid(child, 0)[1], 0)
        with Server(*(() if os.geteuid() else ("-u", str(nobody), "-g", str(nobody)))) as server:
            limit(server.pid, 0)
            self.assertEqual(server.talk(b"x"), b"")
            server.wait_log(r"^tcpserver: warning: dropping connection, unable to fork: temporarily unavailable$")
            server.wait_log(r"^tcpserver: status: 0/40\n\Z")
            limit(server.pid, None)
            self.assertEqual(server.talk(b"x"), b"x")

    def test_a_program_that_is_not_there_is_said_so(self):
        with Server(program=("/nonexistent/program",), verbose="-Q") as server:
            self.assertEqual(server.talk(), b"")
            server.wait_log(r"^tcpserver: warning: dropping connection, unable to run /nonexistent/program: "
                            r"file does not exist$")
        with Server(program=("no-such-program",)) as server:
            server.talk()
            server.wait_log(r"unable to run no-such-program: file does not exist\n(.|\n)*end \d+ status 28416$")


class Logging(unittest.TestCase):
    def finished(self, server):
        server.wait_log(r"end \d+ status \d+\n.*status: 0/40\n\Z")
        return server.lines()

    def test_the_lines_of_an_accepted_connection(self):
        with Server(program=("true",)) as server:
            server.talk()
            self.assertEqual(self.finished(server), [
                "tcpserver: status: 0/40", "tcpserver: status: 1/40", "tcpserver: pid P from 127.0.0.1",
                "tcpserver: ok P 0:127.0.0.1:SPORT :127.0.0.1::CPORT", "tcpserver: end P status 0",
                "tcpserver: status: 0/40"])

    def test_the_lines_of_a_denied_connection(self):
        with Rules("127.:deny\n") as rules, Server("-x", rules) as server:
            self.assertEqual(server.talk(), b"")
            self.assertEqual(self.finished(server)[3:5], [
                "tcpserver: deny P 0:127.0.0.1:SPORT :127.0.0.1::CPORT", "tcpserver: end P status 25600"])

    @unittest.skipUnless(HAVE_V6, "this machine has no IPv6")
    def test_ipv6_stands_in_brackets_where_colons_separate(self):
        with Server(host="::1", program=("true",)) as server:
            server.talk(host="::1")
            self.assertEqual(self.finished(server)[2:4], [
                "tcpserver: pid P from ::1", "tcpserver: ok P 0:[::1]:SPORT :[::1]::CPORT"])

    def test_fields_are_cut_and_cleaned(self):
        with Server("-l", "a:b%c\x1b" + "x" * 200, program=("env",)) as server:
            env = environment(server.talk())
            field = "a?b?c?" + "x" * 94 + "..."
            server.wait_log(rf"ok \d+ {re.escape(field)}:127")
        self.assertEqual(env["TCPLOCALHOST"], "a:b%c\x1b" + "x" * 200)

    def test_less_is_said_without_v_and_nothing_with_q(self):
        for option in ("-q", "-Q"):
            with Server(verbose=option) as server:
                self.assertEqual(server.talk(b"x"), b"x")
                self.assertEqual(server.lines(), [])
        with Server(verbose="-q", program=("/nonexistent",)) as server:
            self.assertEqual(server.talk(), b"")
            self.assertEqual(server.lines(), [])


class Rule(unittest.TestCase):
    def test_variables_of_the_rule_come_last(self):
        text = '127.0.0.1:allow,RELAYCLIENT="",TCPREMOTEHOST="known"\n:deny\n'
        with Rules(text) as rules, Server("-x", rules, host="0.0.0.0", program=("env",)) as server:
            env = environment(server.talk())
            self.assertEqual((env["RELAYCLIENT"], env["TCPREMOTEHOST"]), ("", "known"))
            self.assertEqual(server.talk(source="127.0.0.2"), b"")

    def test_rules_are_read_anew_for_each_connection(self):
        with Rules(":deny\n") as rules, Server("-x", rules) as server:
            self.assertEqual(server.talk(b"x"), b"")
            self.assertEqual(run(["tcprules", rules, rules + ".tmp"], b":allow\n").code, 0)
            self.assertEqual(server.talk(b"x"), b"x")

    @unittest.skipUnless(HAVE_V6, "this machine has no IPv6")
    def test_ipv6_rules_decide_about_ipv6_peers(self):
        text = '[::1]:allow,WHO="six"\n[::/0]:deny\n127.0.0.1:allow,WHO="four"\n:deny\n'
        with Rules(text) as rules, Server("-x", rules, host="0", program=("env",)) as server:
            self.assertEqual(environment(server.talk())["WHO"], "four")
            self.assertEqual(environment(server.talk(host="::1"))["WHO"], "six")

    def test_missing_rules_drop_everybody_unless_X_says_otherwise(self):
        with Server("-x", "/nonexistent/rules.cdb", verbose="-Q") as server:
            self.assertEqual(server.talk(b"x"), b"")
            server.wait_log(r"^tcpserver: warning: dropping connection, unable to read /nonexistent/rules.cdb: "
                            r"file does not exist$")
        with Server("-X", "-x", "/nonexistent/rules.cdb") as server:
            self.assertEqual(server.talk(b"x"), b"x")

    def test_damaged_rules_drop_everybody_even_with_X(self):
        with Rules(":allow\n") as rules, Server("-X", "-x", rules) as server:
            with open(rules, "r+b") as f:
                f.truncate(2050)
            self.assertEqual(server.talk(b"x"), b"")
            server.wait_log("unable to read .*rules.cdb: damaged database\n(.|\n)*end .* status 28416$")


class Lookups(unittest.TestCase):
    ZONE = {("1.0.0.127.in-addr.arpa", Names.PTR): [Names.name("Host.Example.ORG")],
            ("host.example.org", Names.A): [socket.inet_aton("127.0.0.1")],
            ("2.0.0.127.in-addr.arpa", Names.PTR): [Names.name("host.example.org")]}

    def test_names_are_looked_up_and_lower_cased(self):
        with Names(self.ZONE) as names, \
                Server(lookups="-R", program=("env",), env=names.env) as server:
            env = environment(server.talk())
            self.assertEqual((env["TCPREMOTEHOST"], env["TCPLOCALHOST"]), ("host.example.org",) * 2)
            server.wait_log(r"ok \d+ host\.example\.org:127\.0\.0\.1:\d+ host\.example\.org:127\.0\.0\.1::\d+$")

    def test_an_address_without_name_has_no_variable(self):
        with Names({}) as names, Server(lookups="-Rl0", program=("env",), env=names.env) as server:
            self.assertNotIn("TCPREMOTEHOST", environment(server.talk()))

    def test_the_paranoid_believe_a_name_only_when_it_leads_back(self):
        with Names(self.ZONE) as names, \
                Server("-p", lookups="-Rl0", host="0.0.0.0", program=("env",), env=names.env) as server:
            self.assertEqual(environment(server.talk())["TCPREMOTEHOST"], "host.example.org")
            self.assertNotIn("TCPREMOTEHOST", environment(server.talk(source="127.0.0.2")))

    def test_rules_may_name_hosts(self):
        text = "=.example.org:deny\n"
        with Names(self.ZONE) as names, Rules(text) as rules, \
                Server("-x", rules, lookups="-Rl0", host="0.0.0.0", env=names.env) as server:
            self.assertEqual(server.talk(b"x"), b"")
            self.assertEqual(server.talk(b"x", source="127.0.0.3"), b"x")

    def ident(self, reply, rules=None):
        """The environment of a connection from 127.0.0.7, and what its ident server was asked."""
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.7", 113))
            except PermissionError:
                self.skipTest("only root may listen on port 113, the ident port")
            listener.listen()
            asked = []

            def answer():
                s, peer = listener.accept()
                with s:
                    asked.append((peer[0], s.makefile("rb").readline()))
                    s.sendall(reply)
            thread = threading.Thread(target=answer)
            thread.start()
            with Server(*(("-x", rules) if rules else ()), host="0.0.0.0", lookups="-Hl0", program=("env",)) as server:
                with socket.create_connection(("127.0.0.1", server.port), source_address=("127.0.0.7", 0)) as s:
                    wanted = f"{s.getsockname()[1]} , {server.port}\r\n".encode()
                    env = environment(read_all(s))
                log = server.log()
            thread.join()
            self.assertEqual(asked, [("127.0.0.1", wanted)])
            return env, log

    def test_ident_is_asked_from_our_own_address(self):
        env, log = self.ident(b"1,2 : USERID : UNIX : jo e%\r\n")
        self.assertEqual(env["TCPREMOTEINFO"], "jo e%")
        self.assertRegex(log, r"127\.0\.0\.7:jo\?e\?:\d+\n")

    def test_an_ident_error_leaves_the_variable_unset(self):
        self.assertNotIn("TCPREMOTEINFO", self.ident(b"1,2 : ERROR : NO-USER\r\n")[0])

    def test_rules_may_name_users(self):
        with Rules('me@127.0.0.7:allow,WHO="me"\n:deny\n') as rules:
            self.assertEqual(self.ident(b"1,2:USERID:UNIX:me\r\n", rules)[0]["WHO"], "me")

    def test_without_an_ident_server_the_connection_goes_on(self):
        with Server(host="0.0.0.0", lookups="-Hl0", program=("env",)) as server:
            self.assertNotIn("TCPREMOTEINFO", environment(server.talk(source="127.0.0.8")))


class Aside(unittest.TestCase):
    """What strangers answer to a lookup is read by a child of the connection's process."""

    def children(self, server, depth):
        """Waits until somebody is so far below the server; (the connection's process, the others)."""
        def look():
            found = sorted(set(harness.family(server.pid)) - {server.pid})
            top = [pid for pid in found if harness.parent(pid) == server.pid]
            return (top[0], [pid for pid in found if pid != top[0]]) if len(found) == depth and len(top) == 1 else None
        return wait_for(look, f"{depth} processes below tcpserver")

    def silent(self):
        """A DNS server that says nothing, as an environment."""
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(s.close)
        s.bind(("127.0.0.1", 0))
        return {**os.environ, "DNSCACHEIP": f"127.0.0.1:{s.getsockname()[1]}"}

    def test_it_has_nothing_of_the_connection_and_ends_with_who_asks(self):
        with Server(lookups="-Rl0", env=self.silent()) as server, socket.create_connection(("127.0.0.1", server.port)) as s:
            s.settimeout(harness.TIMEOUT)
            asking, [child] = self.children(server, 2)
            wait_for(lambda: len(os.listdir(f"/proc/{child}/fd")) == 5, "the child to have the standard ones, the pipe and its question")
            os.kill(asking, signal.SIGTERM)
            server.wait_log(r"^tcpserver: end \d+ status 15$")
            self.assertEqual(read_all(s), b"")
            wait_for(lambda: not os.path.exists(f"/proc/{child}"), "the child to end, too")

    def test_a_child_that_is_killed_has_found_nothing(self):
        with Server(lookups="-Rl0", program=("env",), env=self.silent()) as server, \
                socket.create_connection(("127.0.0.1", server.port)) as s:
            s.settimeout(harness.TIMEOUT)
            os.kill(self.children(server, 2)[1][0], signal.SIGKILL)
            self.assertNotIn("TCPREMOTEHOST", environment(read_all(s)))
            server.wait_log(r"^tcpserver: ok \d+ 0:127\.0\.0\.1:\d+ :127\.0\.0\.1::\d+$")

    def test_one_that_is_stopped_does_not_stop_ident(self):
        where = f"127.114.{os.getpid() >> 8 & 255}.{os.getpid() % 254 + 1}"  # other tests may run, too
        with socket.socket() as listener:
            try:
                listener.bind((where, 113))
            except PermissionError:
                self.skipTest("only root may listen on port 113, the ident port")
            listener.listen()
            with Server("-t", "5", host="0.0.0.0", lookups="-Hl0", program=("env",)) as server, \
                    socket.create_connection(("127.0.0.1", server.port), source_address=(where, 0)) as s:
                s.settimeout(harness.TIMEOUT)
                os.kill(self.children(server, 2)[1][0], signal.SIGSTOP)
                self.assertNotIn("TCPREMOTEINFO", environment(read_all(s)))

    @unittest.skipUnless(shutil.which("strace"), "strace is not installed")
    def test_without_a_question_there_is_none(self):
        with tempfile.TemporaryDirectory() as base:
            for lookups, wanted in (("-RHl0", 1), ("-Rl0", 2), ("-RH", 2), ("-Hl0", 1)):  # nobody listens for ident here
                log = os.path.join(base, lookups)
                with Names({}) as names, Traced(log, "trace=fork,vfork,clone,clone3", lookups=lookups, env=names.env) as server:
                    self.assertEqual(server.talk(b"x"), b"x")
                    server.wait_log(r"^tcpserver: end \d+ status 0$")
                with open(log) as f:
                    self.assertEqual(len(re.findall(r"clone|fork", f.read())), wanted, lookups)

    @unittest.skipUnless(shutil.which("strace"), "strace is not installed")
    def test_without_a_jail_the_connection_is_dropped(self):
        with Names({}) as names, Traced("/dev/null", "inject=landlock_restrict_self:error=E2BIG", lookups="-Rl0", env=names.env) as server:
            self.assertEqual(server.talk(b"x"), b"")
            server.wait_log(r"^tcpserver: warning: dropping connection, unable to close the jail: .*$")
            server.wait_log(r"^tcpserver: end \d+ status 28416$")


class Traced(Server):
    """tcpserver under strace, which ends with it."""

    def __init__(self, log, what, lookups, env):
        Daemon.__init__(self, ["strace", "-f", "-qq", "-o", log, "-e", what, harness.program("tcpserver"), "-v", "-1", lookups,
                               "127.0.0.1", "0", "cat"], env=env)
        self.port = int(self.wait_log(r"^(\d+)$")[1])

    def stop(self, *_):
        """strace passes no signals on."""
        for pid in set(harness.family(self.pid)) - {self.pid}:
            if harness.parent(pid) == self.pid:
                os.kill(pid, signal.SIGTERM)
        self.process.wait(harness.TIMEOUT)
        return super().stop()


class Starting(unittest.TestCase):
    def refused(self, code, text, *argv, env=None):
        got = run(["tcpserver", *argv], env=env)
        self.assertEqual((got.code, got.out), (code, b""), got)
        self.assertIn(text.encode(), got.err)

    def test_wrong_use_is_100(self):
        for argv in ((), ("0",), ("0", "0"), ("-z", "0", "0", "x"), ("-c",)):
            self.refused(100, "tcpserver: usage: tcpserver [ ", *argv)
        for argv in (("-u", "nobody"), ("-g", "nogroup"), ("-u", ""), ("-u", "1x"), ("-u", "4294967295")):
            self.refused(100, "must be a number, and names are not looked up", *argv, "0", "0", "x")
        self.refused(100, "-c takes a number", "-c", "x", "0", "0", "x")
        self.refused(100, "-C takes a number above 0", "-C", "0", "0", "0", "x")
        self.refused(100, "$UID must be a number", "-U", "0", "0", "x", env={"PATH": os.environ["PATH"], "GID": "1"})

    def test_what_cannot_be_resolved_is_111(self):
        for port in ("no-such-service", "65536", "25x", ""):
            self.refused(111, f"tcpserver: fatal: unable to figure out port number for {port}\n", "0", port, "x")
        with Names({("v4.test", Names.A): [bytes([127, 0, 0, 1])]}) as names:
            self.refused(111, "tcpserver: fatal: no IP address for nowhere.test\n", "nowhere.test", "0", "x", env=names.env)
            self.refused(111, "tcpserver: fatal: no IP address for v4.test\n", "-6", "v4.test", "0", "x", env=names.env)
        self.refused(111, "tcpserver: fatal: no IP address for 127.0.0.1\n", "-6", "127.0.0.1", "0", "x")
        self.refused(111, "tcpserver: fatal: unable to find interface nope0", "-I", "nope0", "fe80::1", "0", "x")

    def test_a_host_name_is_resolved_to_its_first_address(self):
        with Names({("v4.test", Names.A): [bytes([127, 0, 0, 5])]}) as names, \
                Server(host="v4.test", env=names.env) as server:
            self.assertEqual(server.talk(b"x", host="127.0.0.5"), b"x")
            with self.assertRaises(ConnectionRefusedError):
                server.talk(host="127.0.0.1")

    def test_a_taken_port_is_111_and_named(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            self.refused(111, "tcpserver: fatal: unable to bind: address already in use\n",
                         "127.0.0.1", str(s.getsockname()[1]), "x")
        self.refused(111, "tcpserver: fatal: unable to bind: address not available\n", "192.0.2.1", "0", "x")

    def test_a_service_name_is_a_port(self):
        if os.geteuid():
            self.skipTest("only root may listen on the port of a well-known service")
        with Server(host="127.0.0.77", port="discard") as server:
            self.assertEqual(server.port, 9)
            self.assertEqual(server.talk(b"x", host="127.0.0.77"), b"x")

    def test_after_listening_it_becomes_another_user(self):
        if os.geteuid():
            self.skipTest("only root can become another user")
        for options, env in ((("-u", "65534", "-g", "65533"), None),
                             (("-U",), {**os.environ, "UID": "65534", "GID": "65533"})):
            with Server(*options, program=("sh", "-c", "id -u; id -g; id -G"), env=env) as server:
                self.assertEqual(server.talk(), b"65534\n65533\n65533\n")
        with Server("-u", "0", "-g", "0", program=("id", "-u")) as server:
            self.assertEqual(server.talk(), b"0\n")

    def test_who_is_not_root_cannot_become_another(self):
        user = harness.owner()[1:]
        for option, what in (("-u", "uid"), ("-g", "gid")):
            got = run(["tcpserver", option, "12345", "127.0.0.1", "0", "x"], as_user=user if not os.geteuid() else None)
            self.assertEqual((got.code, got.err), (111, f"tcpserver: fatal: unable to set {what}: permission denied\n".encode()))

    def passed(self, environ, listening=True):
        """Starts tcpserver with a socket as descriptor 3, as a supervisor does."""
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        if listening:
            listener.listen()
        port = listener.getsockname()[1]
        script = f'exec 3<&{listener.fileno()}; export LISTEN_PID=$$ {environ}; exec "$@"'
        # dash cannot name descriptors above 9
        process = subprocess.Popen(
            ["bash", "-c", script, "sh", harness.program("tcpserver"), "-RHl0", "anywhere", "smtp", "env"],
            pass_fds=[listener.fileno()], stderr=subprocess.PIPE)
        listener.close()
        return process, port

    def test_a_supervisor_may_bring_the_socket(self):
        process, port = self.passed("LISTEN_FDS=1 LISTEN_FDNAMES=smtp")
        try:
            with socket.create_connection(("127.0.0.1", port)) as s:
                env = environment(read_all(s))
        finally:
            process.terminate()
            self.assertEqual(process.wait(), 0)
            process.stderr.close()
        self.assertEqual(env["TCPLOCALPORT"], str(port))
        self.assertFalse([name for name in env if name.startswith("LISTEN_")])

    def test_a_socket_that_is_not_as_promised_is_refused(self):
        for environ, listening, text in (("LISTEN_FDS=2", True, b"LISTEN_FDS must be 1"),
                                         ("LISTEN_FDS=1", False, b"unable to use descriptor 3 of LISTEN_FDS")):
            process, _ = self.passed(environ, listening)
            with process:
                self.assertEqual(process.wait(), 111)
                self.assertIn(text, process.stderr.read())

    def test_a_socket_for_another_process_is_not_taken(self):
        with Server(env={**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "1"}) as server:
            self.assertEqual(server.talk(b"x"), b"x")


if __name__ == "__main__":
    unittest.main()
