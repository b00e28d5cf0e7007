"""Foreign clients and servers, from Debian's packages: they send to us, receive from us, and read our mailboxes.

Python's smtplib and poplib are in test_flow; mutt and s-nail sending by our sendmail in test_clients_sendmail.
"""

import os
import re
import shutil
import socket
import subprocess
import unittest

from tests import harness, namespace
from tests.dnsserver import Nsd
from tests.harness import Daemon, Home, free_port, wait_for
from tests.packages import tool


class Clients(unittest.TestCase):
    def setUp(self):
        self.home = Home()
        self.addCleanup(self.home.__exit__)

    def start(self, env=None):
        self.home.start(env=env)
        self.smtp = free_port()
        self.launch(self.smtp, "qmail-smtpd")

    def launch(self, port, *program):
        server = Daemon(["tcpserver", *harness.as_owner(), "-v", "-H", "-R", "-l", "test.example", "127.0.0.1", str(port), *program],
                        env=self.home.env)
        self.addCleanup(server.stop)
        server.wait_log("status: 0/")
        return server

    def foreign(self, argv, timeout=60, **more):
        path, env = tool(argv[0])
        return subprocess.run([path, *argv[1:]], env=env, capture_output=True, timeout=timeout, **more)

    def sink(self, *options, host="127.0.0.1", port=None):
        """Postfix's test server; what it received is appended to .dump. -u: as root it wants a user."""
        path, env = tool("smtp-sink")
        port = port or free_port()
        base = harness.scratch()
        self.addCleanup(shutil.rmtree, base)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        user = ["-u", harness.owner()[0]] if os.geteuid() == 0 else []
        argv = [path, *user, "-R", base, "-D", "dump", *options, address, "100"]
        if os.geteuid() != 0:
            argv = [path, "-D", os.path.join(base, "dump"), *options, address, "100"]
        daemon = Daemon(argv, env=env, cwd=base)
        self.addCleanup(daemon.stop)
        wait_for(lambda: self.listens(host, port), f"smtp-sink on {host}:{port}")
        daemon.port, daemon.dump = port, os.path.join(base, "dump")
        return daemon

    def listens(self, host, port):
        try:
            socket.create_connection((host, port)).close()
            return True
        except OSError:
            return False

    def dumped(self, sink):
        try:
            with open(sink.dump, "rb") as f:
                return f.read()
        except FileNotFoundError:
            return b""

    def test_smtp_source_delivers_a_thousand_messages_over_twenty_connections(self):
        self.start()
        done = self.foreign(["smtp-source", "-s", "20", "-m", "1000", "-l", "4096", "-f", "a@far.example",
                             "-t", "joe@test.example", f"127.0.0.1:{self.smtp}"])
        self.assertEqual(done.returncode, 0, done)
        self.home.wait_empty(120)
        messages = self.home.messages()
        self.assertEqual(len(messages), 1000)
        self.assertTrue(all(len(m) > 4096 for m in messages))

    def test_smtp_source_with_several_messages_and_recipients_a_session(self):
        self.start()
        done = self.foreign(["smtp-source", "-d", "-s", "2", "-m", "40", "-r", "3", "-N", "-f", "a@far.example",
                             "-t", "joe@test.example", f"127.0.0.1:{self.smtp}"])
        self.assertEqual(done.returncode, 0, done)

        def bounced():
            # -N makes addresses 1joe@…, 2joe@… : nobody's here, so each recipient fails in one bounce a message.
            return len(re.findall(r"^delivery \d+: failure: Sorry,_no_mailbox", self.home.log(), re.M)) >= 120
        wait_for(bounced, "120 failures", 60)

    def test_swaks_with_every_greeting(self):
        self.start()
        for protocol in ("SMTP", "ESMTP"):
            done = self.foreign(["swaks", "--server", "127.0.0.1", "--port", str(self.smtp), "--protocol", protocol,
                                 "--from", "a@far.example", "--to", "joe@test.example", "--header", f"Subject: by {protocol}",
                                 "--body", ".begins with a dot\n.\nends"])
            self.assertEqual(done.returncode, 0, done.stdout.decode())
        wait_for(lambda: len(self.home.messages()) == 2, "both messages")
        for text in self.home.messages():
            self.assertIn(b"\n.begins with a dot\n.\nends\n", text)

    def test_swaks_pipelining_and_a_refused_recipient(self):
        self.start()
        done = self.foreign(["swaks", "--server", "127.0.0.1", "--port", str(self.smtp), "--pipeline", "--from", "a@far.example",
                             "--to", "joe@test.example,who@elsewhere.example"])
        out = done.stdout.decode()
        self.assertRegex(out, r"553 5\.7\.1 sorry, that domain isn't in my list of allowed rcpthosts \(#5\.7\.1\)")
        wait_for(lambda: len(self.home.messages()) == 1, "the message for the accepted recipient")

    def send_out(self, count, body=b"Subject: out\n\n.dot\n..\n\xff\xfe 8-bit\nlast\n"):
        for n in range(count):
            self.assertEqual(self.home.inject(body, "joe@test.example", [f"r{n}@sink.example"]).code, 0)
        self.home.wait_empty(60)

    def test_smtp_sink_receives_what_was_sent(self):
        for options in ((), ("-e",), ("-p",), ("-8",), ("-e", "-p", "-8")):
            with self.subTest(options=options):
                sink = self.sink(*options)
                self.home.control("smtproutes", f"sink.example:127.0.0.1:{sink.port}\n")
                if not self.home.daemon:
                    self.home.start()
                self.send_out(3)
                wait_for(lambda: self.dumped(sink).count(b"last") == 3, "three messages in the dump")
                dump = self.dumped(sink).replace(b"\r\n", b"\n")
                self.assertIn(b"\n.dot\n..\n\xff\xfe 8-bit\nlast\n", dump)
                self.assertEqual(len(re.findall(r"success: 127.0.0.1_accepted_message./Remote_host_said:_250", self.home.log())) % 3, 0)

    def test_smtp_sink_that_refuses_for_now_and_for_good(self):
        for option, result in (("MAIL", "deferral"), ("RCPT", "deferral"), ("DATA", "deferral"), (".", "deferral")):
            sink = self.sink("-r", option)  # 4xx at that command
            self.home.control("smtproutes", f"sink.example:127.0.0.1:{sink.port}\n")
            if not self.home.daemon:
                self.home.start()
            before = len(self.home.log())
            self.home.inject(b"Subject: x\n\n", "joe@test.example", ["a@sink.example"])
            wait_for(lambda: re.search(rf"^delivery \d+: {result}: ", self.home.log()[before:], re.M), f"{result} after {option}")
        before = len(self.home.log())
        sink = self.sink("-f", "RCPT")  # 5xx
        self.home.control("smtproutes", f"sink.example:127.0.0.1:{sink.port}\n")
        self.home.inject(b"Subject: x\n\n", "joe@test.example", ["b@sink.example"])
        wait_for(lambda: "failure: 127.0.0.1_does_not_like_recipient." in self.home.log()[before:], "the failure")
        wait_for(lambda: any(b"failure notice" in m for m in self.home.messages()), "its bounce")

    def test_fetchmail_fetches_by_pop3_and_deletes(self):
        tool("fetchmail")
        self.home.start()
        port = free_port()
        self.launch(port, "qmail-popup", "test.example", "checkpassword-file", self.home.file("users/passwd"),
                    "qmail-pop3d", "Maildir")
        for n in range(3):
            self.home.inject(b"Subject: number %d\nFrom: a@far.example\n\nbody %d\n" % (n, n), "a@far.example", ["joe@test.example"])
        wait_for(lambda: len(self.home.messages()) == 3, "the messages")
        new = os.path.join(self.home.maildir(), "new")
        for name in os.listdir(new):
            # A message of this very second is not listed yet.
            path = os.path.join(new, name)
            os.utime(path, (os.path.getmtime(path) - 5,) * 2)
        base = harness.scratch()
        self.addCleanup(shutil.rmtree, base)
        rc = os.path.join(base, "fetchmailrc")
        with open(rc, "w") as f:
            f.write(f'poll 127.0.0.1 service {port} protocol pop3 timeout 20 user "joe" password "secret" sslproto "" '
                    f'mda "cat >>{base}/fetched" nokeep fetchall\n')
        os.chmod(rc, 0o600)
        path, env = tool("fetchmail")
        done = subprocess.run([path, "-f", rc, "--nosyslog", "--nodetach", "--pidfile", f"{base}/pid"],
                              env={**env, "HOME": base, "FETCHMAILHOME": base}, capture_output=True, timeout=60)
        self.assertEqual(done.returncode, 0, done)
        with open(os.path.join(base, "fetched"), "rb") as f:
            got = f.read()
        for n in range(3):
            self.assertIn(b"\nbody %d\n" % n, got)
        wait_for(lambda: not self.home.messages(), "the mailbox to be empty")

    def test_s_nail_reads_our_maildir(self):
        tool("s-nail")
        self.home.start()
        self.home.inject(b"Subject: to be read\nFrom: a@far.example\n\nread me\n", "a@far.example", ["joe@test.example"])
        wait_for(self.home.messages, "the message")
        env = {**os.environ, "TERM": "dumb", "HOME": self.home.base, "MAILRC": "/dev/null"}
        done = subprocess.run(["s-nail", "-:/", "-R", "-f", self.home.maildir()], input=b"type 1\nxit\n", env=env,
                              capture_output=True, timeout=60)
        self.assertIn(b"Subject: to be read", done.stdout)
        self.assertIn(b"read me", done.stdout)

    @namespace.alone
    def test_by_mx_aaaa_null_mx_and_failing_zones(self):
        zones = {
            "mx.example": "@ MX 10 dead\n@ MX 20 live\ndead A 127.0.0.9\nlive A 127.0.0.2",
            "six.example": "@ MX 10 mail\nmail AAAA 2001:db8::25",
            "plain.example": "@ A 127.0.0.2",
            "null.example": "@ MX 0 .",
            "broken.example": None,
        }
        four, six = self.sink(host="127.0.0.2", port=25), self.sink(host="::", port=25)
        with Nsd(zones) as dns:
            self.home.control("timeoutconnect", "5\n")
            self.home.start(env={"DNSCACHEIP": dns.address})
            for zone in zones:
                self.home.inject(b"Subject: x\n\nfor %s\n" % zone.encode(), "joe@test.example", [f"a@{zone}"])

            def reports():
                """What was said of each zone; the bounce of one of them is a delivery, too, and does not count."""
                log = self.home.log()
                said = dict(re.findall(r"^delivery (\d+): (.*)", log, re.M))
                begun = re.findall(r"starting delivery (\d+): msg \d+ to remote a@(\S+)", log)
                found = {zone: said[number] for number, zone in begun if number in said}
                return found if len(found) == len(zones) else None
            report = wait_for(reports, "a report for each", 60)
            self.assertRegex(report["mx.example"], r"^success: 127\.0\.0\.2_accepted_message\.")
            self.assertRegex(report["plain.example"], r"^success: 127\.0\.0\.2_accepted_message\.")
            self.assertRegex(report["six.example"], r"^success: 2001:db8::25_accepted_message\.")
            self.assertRegex(report["null.example"], r"^failure: .*\(#5\.1\.10\)")
            self.assertRegex(report["broken.example"], r"^deferral: .*\(#4\.\d\.\d\)")
            wait_for(lambda: self.dumped(four).count(b"for ") == 2, "two messages by IPv4")
            wait_for(lambda: self.dumped(six).count(b"for six.example") == 1, "one by IPv6")


if __name__ == "__main__":
    unittest.main()
