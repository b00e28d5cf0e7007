"""Recipients of one message at one host travel together: qmail-send's bursts, and a mailing from queue to server.

How qmail-rspawn puts requests together is in test_qmail_rspawn.
"""

import collections
import os
import re
import socketserver
import threading
import unittest

from tests import harness
from tests.queue_rig import Queue, Sender, split, whole_list

CONTROLS = {"me": "me.example\n", "locals": "local.example\n"}
TOGETHER = (120, 255)  # the first bytes of the spawners where they do it


class Bursts(unittest.TestCase):
    maxDiff = None

    def queue(self, announced=True, **controls):
        queue = Queue(**{**CONTROLS, **controls})
        self.addCleanup(queue.__exit__)
        if announced:
            queue.env["QMAILBURST"] = "1"
        return queue

    def sender(self, queue, **more):
        sender = Sender(queue, **more)
        self.addCleanup(sender.__exit__)
        return sender

    def everybody(self, count, hosts=("big.example",)):
        return [b"r%d@%s" % (i, hosts[i % len(hosts)].encode()) for i in range(count)]

    def test_a_connection_carries_a_hundred_and_a_slot_is_no_connection(self):
        queue = self.queue(concurrencyremote="3\n")
        with self.sender(queue, limits=TOGETHER) as sender:
            sender.wait_line("^status: local 0/10 remote 0/3$")
            number = queue.todo(b"s@h", self.everybody(250))
            requests = sender.wait_requests(250)
            self.assertEqual([r.slot for r in requests], list(range(250)))
            self.assertEqual([r.recipient for r in requests], self.everybody(250))
            sender.wait_line("^status: local 0/10 remote 3/3$", 50)  # the log comes after the requests
            loads = [int(m) for m in re.findall(r"^status: .* remote (\d+)/3$", sender.log(), re.M)]
            self.assertEqual(loads, [0] + [1] * 100 + [2] * 100 + [3] * 50)
            for request in requests[:150]:
                sender.report(request, b"Kdone\n")
            sender.wait_line("success", 150)
            sender.wait_line("^status: local 0/10 remote 2/3$", 150)
            for request in requests[150:]:
                sender.report(request, b"Kdone\n")
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(len(sender.requests), 250)

    def test_slots_of_two_bytes_are_many(self):
        queue = self.queue(concurrencyremote="30\n")
        queue.env["QMAILBURST"] = "2"
        queue.bounces_to()
        with self.sender(queue, limits=TOGETHER, wide=True) as sender:
            number = queue.todo(b"s@h", self.everybody(2300))
            requests = sender.wait_requests(2048)
            self.assertEqual([r.slot for r in requests], list(range(2048)))
            self.assertEqual([r.recipient for r in requests], self.everybody(2048))
            for request in reversed(requests):
                sender.report(request, b"Dno\n" if request.slot == 258 else b"Kdone\n")
            for request in sender.wait_requests(2300)[2048:]:
                self.assertLess(request.slot, 2048)
                sender.report(request, b"Kdone\n")
            sender.wait_cleaned(f"foop/{number}")
        [(_, bounce)] = queue.bounced()
        self.assertEqual(bounce.count(b">:\nno\n"), 1)
        self.assertIn(b"<r258@big.example>:\nno\n", bounce)

    def test_slots_are_of_two_bytes_where_both_know_of_it_and_nowhere_else(self):
        for what, announced, byte, wide, size in [("an older spawner", "2", 255, False, 1), ("an older qmail-start", "1", 255, False, 1),
                                                  ("another spawner", "2", 120, False, 1), ("both", "2", 255, True, 2)]:
            with self.subTest(what):
                queue = self.queue()
                queue.env["QMAILBURST"] = announced
                with self.sender(queue, limits=(120, byte), wide=wide) as sender:
                    self.assertEqual(sender.slot, size)
                    number = queue.todo(b"s@h", self.everybody(3))
                    for request in sender.wait_requests(3):
                        sender.report(request, b"Kdone\n")
                    sender.wait_cleaned(f"foop/{number}")

    def test_each_recipient_has_its_own_fate(self):
        queue = self.queue()
        queue.bounces_to()
        letters = {r: b"KDZ"[i % 3:i % 3 + 1] for i, r in enumerate(self.everybody(30))}
        with self.sender(queue, limits=TOGETHER, answer=lambda r: letters[r.recipient] + b"said\n") as sender:
            number = queue.todo(b"s@h", list(letters))
            sender.wait_line("^delivery", 30)
            harness.wait_for(lambda: not queue.there(f"todo/{number}"), "preprocessing")
            marks = whole_list(b"".join((b"T" if v == b"Z" else b"D") + r + b"\0" for r, v in letters.items()))
            harness.wait_for(lambda: queue.read(split("remote", number)) == marks, "the marks")
            self.assertEqual(queue.read(f"bounce/{number}").count(b">:\nsaid\n\n"), 10)

    def test_hosts_are_collected_wherever_they_stand_in_the_list(self):
        queue = self.queue()
        hosts = ("one.example", "two.example", "ONE.example")
        with self.sender(queue, limits=TOGETHER) as sender:
            queue.todo(b"s@h", self.everybody(30, hosts))
            found = [r.recipient.split(b"@")[1].lower() for r in sender.wait_requests(30)]
            self.assertEqual(found, [b"one.example"] * 20 + [b"two.example"] * 10)
            sender.wait_line("^status: local 0/10 remote 2/20$", 10)

    def test_a_short_way_travels_together_too(self):
        queue = self.queue(concurrencyremote="2\n")
        with self.sender(queue, limits=TOGETHER) as sender:
            number = queue.todo(b"s@h", self.everybody(6, ("one.example", "two.example")))
            sender.wait_requests(6)
            sender.wait_line("^status: local 0/10 remote 2/2$", 3)
            self.assertTrue(queue.there(f"todo/{number}"))
            # A third host is one connection too many.
            other = queue.todo(b"s@h", [b"x@three.example"])
            harness.wait_for(lambda: not queue.there(f"todo/{other}"), "the long way")
            self.assertEqual(len(sender.requests), 6)

    def test_senders_of_their_own_travel_alone(self):
        queue = self.queue(concurrencyremote="5\n")
        with self.sender(queue, limits=TOGETHER) as sender:
            queue.todo(b"list-@h-@[]", self.everybody(30))
            requests = sender.wait_requests(5)
            sender.wait_line("^status: local 0/10 remote 5/5$")
            self.assertEqual({r.sender for r in requests}, {b"list-r%d=big.example@h" % i for i in range(5)})

    def test_where_it_is_not_agreed_upon_each_has_a_slot_and_a_connection(self):
        for what, announced, byte, env in [("not announced", False, 255, {}), ("another spawner", True, 120, {}),
                                           ("another qmail-remote", True, 255, {"QMAILREMOTE": "mine"})]:
            with self.subTest(what):
                queue = self.queue(announced, concurrencyremote="4\n")
                queue.env.update(env)
                with self.sender(queue, limits=(120, byte)) as sender:
                    number = queue.todo(b"s@h", self.everybody(30))
                    self.assertEqual({r.slot for r in sender.wait_requests(4)}, set(range(4)))
                    sender.wait_line("^status: local 0/10 remote 4/4$")
                    for at in range(30):
                        sender.report(sender.wait_requests(at + 1)[at], b"Kdone\n")
                    sender.wait_cleaned(f"foop/{number}")
                    self.assertLessEqual({r.slot for r in sender.requests}, set(range(4)))

    def test_local_deliveries_are_as_ever(self):
        queue = self.queue(concurrencylocal="7\n")
        with self.sender(queue, limits=(255, 255), answer=lambda r: b"Kdone\n") as sender:
            number = queue.todo(b"s@h", self.everybody(30, ("local.example",)))
            sender.wait_cleaned(f"foop/{number}")
            self.assertTrue({r.slot for r in sender.requests} <= set(range(7)))

    def test_concurrency_zero_holds_mail(self):
        queue = self.queue(concurrencyremote="0\n")
        with self.sender(queue, limits=TOGETHER) as sender:
            number = queue.todo(b"s@h", self.everybody(3))
            harness.wait_for(lambda: not queue.there(f"todo/{number}"), "preprocessing")
            self.assertEqual(sender.stop(), 0)
            self.assertEqual(sender.requests, [])

    def test_thousands_at_many_hosts_all_arrive_once(self):
        queue = self.queue()
        everybody = self.everybody(3000, [f"h{i}.example" for i in range(40)])
        with self.sender(queue, limits=TOGETHER, answer=lambda r: b"Kdone\n") as sender:
            number = queue.todo(b"s@h", everybody)
            sender.wait_cleaned(f"foop/{number}")
            self.assertEqual(sorted(r.recipient for r in sender.requests), sorted(everybody))
            with open(f"/proc/{sender.process.pid}/status") as f:
                rss = int(re.search(r"VmHWM:\s*(\d+)", f.read()).group(1))
            self.assertLess(rss, 10 * 1024)


class Server:
    """An SMTP server that counts. `verdict(recipient)` gives the reply to RCPT."""

    def __init__(self, case, verdict):
        self.connections, self.messages = 0, []  # recipients of each message
        self.lock = threading.Lock()
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                with outer.lock:
                    outer.connections += 1
                self.wfile.write(b"220 hi\r\n")
                recipients, inside = [], False
                for line in self.rfile:
                    if inside:
                        if line == b".\r\n":
                            with outer.lock:
                                outer.messages.append(recipients)
                            recipients, inside = [], False
                            self.wfile.write(b"250 taken\r\n")
                        continue
                    verb = line[:4].upper()
                    if verb == b"EHLO":
                        self.wfile.write(b"250-hi\r\n250 PIPELINING\r\n")
                    elif verb == b"RCPT":
                        recipient = re.search(rb"<(.*)>", line)[1].decode()
                        reply = verdict(recipient)
                        if reply.startswith("2"):
                            recipients.append(recipient)
                        self.wfile.write(reply.encode() + b"\r\n")
                    elif verb == b"DATA" and not recipients:
                        self.wfile.write(b"554 for whom?\r\n")
                    elif verb == b"DATA":
                        inside = True
                        self.wfile.write(b"354 go\r\n")
                    elif verb == b"QUIT":
                        self.wfile.write(b"221 bye\r\n")
                        return
                    else:
                        self.wfile.write(b"250 ok\r\n")

        class Listener(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 300

        self.server = Listener(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        case.addCleanup(self.server.server_close)
        case.addCleanup(self.server.shutdown)


class Mailing(unittest.TestCase):
    COUNT = 250

    def start(self, env=None):
        home = harness.Home(users={"joe": "secret"})
        self.addCleanup(home.__exit__)
        everybody = [f"r{i}@big.example" for i in range(self.COUNT)]
        kinds = {r: ["550 no such user", "451 come again"][i % 10] if i % 10 < 2 else "250 ok"
                 for i, r in enumerate(everybody)}
        server = Server(self, kinds.get)
        home.control("smtproutes", f":[127.0.0.1]:{server.port}\n")
        home.start(env=env)
        self.assertEqual(home.inject(b"Subject: mailing\n\nhello\n", "joe@test.example", everybody).code, 0)
        harness.wait_for(lambda: home.log().count("\ndelivery ") == self.COUNT, "all reports", 2 * harness.TIMEOUT)
        return home, server, kinds

    def check_fates(self, home, server, kinds):
        of = collections.defaultdict(set)
        for recipient, reply in kinds.items():
            of[reply[0]].add(recipient)
        arrived = collections.Counter(r for message in server.messages for r in message)
        self.assertEqual(arrived, {r: 1 for r in of["2"]})
        counts = collections.Counter(re.findall(r"^delivery \d+: (\w+): ", home.log(), re.M))
        self.assertEqual(counts, {"success": len(of["2"]), "failure": len(of["5"]), "deferral": len(of["4"])})
        ids = dict(re.findall(r"^starting delivery (\d+): msg \d+ to remote (\S+)$", home.log(), re.M))
        for delivery, kind, text in re.findall(r"^delivery (\d+): (\w+): (.*)$", home.log(), re.M):
            reply = kinds[ids[delivery]]
            self.assertEqual(kind, {"2": "success", "4": "deferral", "5": "failure"}[reply[0]])
            self.assertIn("250_taken" if kind == "success" else reply.replace(" ", "_"), text)
        left = home.run(["qmail-qread"]).out.decode()
        self.assertEqual(set(re.findall(r"^\tremote\t(.*)$", left, re.M)), of["4"])
        [bounce] = [os.path.join(d, f) for d, _, fs in os.walk(home.file("queue/bounce")) for f in fs]
        with open(bounce) as f:
            self.assertEqual(set(re.findall(r"^<(.*)>:$", f.read(), re.M)), of["5"])

    def test_250_recipients_at_one_host_are_three_connections(self):
        home, server, kinds = self.start()
        self.check_fates(home, server, kinds)
        self.assertEqual((server.connections, len(server.messages)), (3, 3))
        self.assertEqual(sorted(len(m) for m in server.messages), [40, 80, 80])

    def test_with_another_qmail_remote_they_are_250(self):
        home, server, kinds = self.start({"QMAILREMOTE": os.path.join(harness.BIN, "qmail-remote")})
        self.check_fates(home, server, kinds)
        self.assertEqual((server.connections, len(server.messages)), (250, 200))


if __name__ == "__main__":
    unittest.main()
