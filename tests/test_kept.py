"""A connection is kept for the next message to its host: qmail-rspawn and qmail-remote as they are, and a server that
follows a script. Reports, limits, and what happens when somebody leaves between two messages or in one."""

import array
import contextlib
import os
import select
import signal
import socket
import threading
import unittest

from tests import harness, servers, spawners
from tests.harness import TIMEOUT, wait_for
from tests.spawners import request, reports

ACCEPTED = b"K127.0.0.1 accepted message.\nRemote host said: 250 queued\n"
DIED = b"ZConnected to 127.0.0.1 but connection died. (#4.4.2)\n"
MESSAGES_MAX = 100  # over one connection (qmail-remote/more.rs)
CLOSE = object()


class Server(servers.Threaded):
    """`says(line, connection, message)` gives an answer of its own, CLOSE, or None for the usual one; messages count from 0 in
    each connection, of which `heard` has the lines, bodies left out."""

    def __init__(self, says=lambda line, connection, message: None):
        super().__init__()
        self.says = says
        self.ended = []  # connections at their end
        self.go = threading.Event()  # for answers that are to be waited for

    def __exit__(self, *more):
        self.go.set()
        super().__exit__(*more)

    def wait(self):
        """For `says`: the usual answer, when it is time."""
        self.go.wait(TIMEOUT)

    def serve(self, connection, number):
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as reader:
            message, body = -1, False
            connection.sendall(b"220 server.test ESMTP\r\n")
            while line := reader.readline():
                line = line.rstrip(b"\r\n").decode("latin-1")
                if body and line != ".":
                    continue
                self.heard[number].append(line)
                message += line.startswith("MAIL")
                said = self.says(line, number, message)
                if said is CLOSE:
                    break
                if said is None:
                    said = {"EHLO": "250-server.test\r\n250 PIPELINING", "DATA": "354 go ahead", ".": "250 queued",
                            "QUIT": "221 bye"}.get(line[:4], "250 ok")
                body = line == "DATA" and said.startswith("354")
                connection.sendall(said.encode() + b"\r\n")
        self.ended.append(number)

    def verbs(self, connection):
        return [line.split()[0] for line in self.heard[connection]]


class Spawner:
    """A qmail-rspawn that is asked one thing after the other."""

    def __init__(self, home, before=(), **env):
        spawners.forget(home)
        self.line = harness.Line.start([*before, "qmail-rspawn"], {**home.env, "QMAILBURST": "1", **env})
        self.pid = self.line.process.pid
        self.limit = self.line.reader.read(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.line.close()

    def ask(self, slot, message, recipient="r@one.test", sender="s@h.test"):
        self.line.send(request(slot, message, sender, recipient))

    def report(self):
        slot = self.line.reader.read(1)[0]
        text = b""
        while not text.endswith(b"\0"):
            byte = self.line.reader.read(1)
            assert byte, "qmail-rspawn ended"
            text += byte
        return slot, text[:-1]

    def one(self, message, *more):
        """The report on a message that nothing else runs beside."""
        self.ask(0, message, *more)
        slot, text = self.report()
        assert slot == 0
        return text

    def finish(self):
        return self.line.finish()


def descendants(pid):
    return [below for child in spawners.children_of(pid) for below in [child, *descendants(child)]]


def remotes(pid):
    """The processes below this one that are a qmail-remote, and those beside them."""
    def name(pid):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as f:
            return f.read().strip()
    return [p for p in descendants(pid) if name(p) == "qmail-remote"]


class Kept(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.home = harness.Home()
        self.addCleanup(self.home.__exit__)
        self.message = spawners.put_message(self.home, 457)
        self.running = None

    def server(self, says=None, **controls):
        server = Server(says or (lambda *_: None))
        server.__enter__()
        self.addCleanup(server.__exit__)
        self.home.control("smtproutes", f":127.0.0.1:{server.port}\n")
        for name, value in controls.items():
            self.home.control(name, f"{value}\n")
        return server

    def spawner(self, **env):
        """The only one: a second would wait for the first to end."""
        if self.running:
            self.running.__exit__()
        self.running = Spawner(self.home, **env)
        self.addCleanup(self.running.__exit__)
        return self.running

    # -- more than one connection

    def test_there_are_descriptors_for_all_connections_and_programs_get_the_limit_that_we_were_given(self):
        server = self.server(lambda line, *_: server.wait() if line == "." else None, concurrencyremote=40)
        spawner = self.spawner(before=("prlimit", "--nofile=48:1024", "--"))
        for slot in range(40):
            spawner.ask(slot, self.message, f"r@h{slot}.test")
        wait_for(lambda: sum("." in heard for heard in server.heard) == 40, "all to be on their way")
        for pid in remotes(spawner.pid):
            with open(f"/proc/{pid}/limits") as f:
                self.assertRegex(f.read(), r"(?m)^Max open files +48 +1024 ")
        server.go.set()
        self.assertEqual(sorted(spawner.report() for _ in range(40)), [(slot, ACCEPTED) for slot in range(40)])

    # -- one message behind the other

    def test_the_next_message_to_a_host_goes_over_the_same_connection(self):
        server, spawner = self.server(), self.spawner()
        other = spawners.put_message(self.home, 458, b"Subject: y\n\nanother body\n")
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        self.assertEqual(spawner.one(other, "second@ONE.test", ""), ACCEPTED)
        self.assertEqual(spawner.one(self.message, "third@one.test"), ACCEPTED)
        self.assertEqual(spawner.finish().code, 0)
        wait_for(lambda: server.ended, "the connection to end")
        transaction = ["MAIL FROM:<s@h.test>", "RCPT TO:<r@one.test>", "DATA", "."]
        self.assertEqual(server.heard, [[
            "EHLO test.example", *transaction, "MAIL FROM:<>", "RCPT TO:<second@ONE.test>", "DATA", ".",
            "MAIL FROM:<s@h.test>", "RCPT TO:<third@one.test>", "DATA", ".", "QUIT"]])

    def test_another_host_has_a_connection_of_its_own(self):
        server, spawner = self.server(), self.spawner()
        for recipient in ("a@one.test", "b@two.test", "c@one.test", "d@two.test"):
            self.assertEqual(spawner.one(self.message, recipient), ACCEPTED)
        self.assertEqual([v.count("MAIL") for v in map(server.verbs, range(2))], [2, 2])
        self.assertEqual(len(server.heard), 2)

    def test_those_who_travel_together_do_so_on_a_kept_connection_too(self):
        refused = {"RCPT TO:<b@one.test>": "550 no"}
        server, spawner = self.server(lambda line, *_: refused.get(line)), self.spawner()
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        spawner.line.send(b"".join(request(i, self.message, "s@h.test", r + "@one.test") for i, r in enumerate("abc")))
        found = dict(spawner.report() for _ in range(3))
        refusal = b"D127.0.0.1 does not like recipient.\nRemote host said: 550 no\n"
        self.assertEqual(found, {0: ACCEPTED, 1: refusal, 2: ACCEPTED})
        self.assertEqual(len(server.heard), 1)
        self.assertEqual(server.verbs(0)[5:], ["MAIL", "RCPT", "RCPT", "RCPT", "DATA", "."])

    def test_what_was_begun_and_not_sent_is_reset_first(self):
        def says(line, connection, message):
            if line.startswith("RCPT") and message == 0:
                return "550 nobody"
            return "503 no valid recipients" if line == "DATA" and message == 0 else None
        server, spawner = self.server(says), self.spawner()
        self.assertTrue(spawner.one(self.message).startswith(b"D127.0.0.1 does not like recipient."))
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        self.assertEqual(server.verbs(0)[4:], ["RSET", "MAIL", "RCPT", "DATA", "."])
        self.assertEqual(len(server.heard), 1)

    def test_a_message_that_cannot_be_sent_does_not_cost_the_connection(self):
        server, spawner = self.server(), self.spawner()
        partial = spawners.put_message(self.home, 458, b"Subject: no end")
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        self.assertEqual(spawner.one(partial), b"DSMTP cannot transfer messages with partial final lines. (#5.6.2)\n")
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        self.assertEqual(len(server.heard), 1)

    # -- limits

    def test_a_connection_has_so_many_messages_and_not_more(self):
        server, spawner = self.server(), self.spawner()
        for _ in range(MESSAGES_MAX + 1):
            self.assertEqual(spawner.one(self.message), ACCEPTED)
        wait_for(lambda: server.ended, "the first connection to end")
        self.assertEqual([v.count("MAIL") for v in map(server.verbs, range(2))], [MESSAGES_MAX, 1])
        self.assertEqual(server.verbs(0)[-1], "QUIT")

    def test_a_connection_that_nobody_needs_is_given_up(self):
        server, spawner = self.server(), self.spawner()
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        wait_for(lambda: server.ended, "the connection to end")
        self.assertEqual(server.verbs(0)[-1], "QUIT")
        wait_for(lambda: descendants(spawner.pid) == [], "everybody to leave")
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        self.assertEqual(len(server.heard), 2)

    def test_a_host_has_so_many_at_once_and_the_others_wait_in_their_order(self):
        server = self.server(lambda line, *_: server.wait() if line == "." else None, concurrencyhost=2)
        spawner = self.spawner()
        for slot in range(6):
            spawner.ask(slot, self.message, f"r{slot}@one.test", f"s{slot}@h.test")
        spawner.ask(6, self.message, "r6@two.test")
        wait_for(lambda: [v.count(".") for v in map(server.verbs, range(len(server.heard)))] == [1, 1, 1], "three messages")
        self.assertEqual(len(remotes(spawner.pid)), 3)
        server.go.set()
        self.assertEqual(dict(spawner.report() for _ in range(7)), dict.fromkeys(range(7), ACCEPTED))
        order = [line for heard in server.heard for line in heard if line.startswith("RCPT") and "one.test" in line]
        self.assertEqual(len(order), 6)
        self.assertEqual(len(server.heard), 3)
        for connection in range(3):
            mine = [line for line in server.heard[connection] if line.startswith("RCPT")]
            self.assertEqual(mine, sorted(mine))

    def test_who_waits_makes_room_for_another_host(self):
        server, spawner = self.server(concurrencyremote=1), self.spawner()
        self.assertEqual(spawner.one(self.message, "r@one.test"), ACCEPTED)
        self.assertEqual(spawner.one(self.message, "r@two.test"), ACCEPTED)
        wait_for(lambda: server.ended, "the first connection to end")
        self.assertEqual(server.verbs(0)[-1], "QUIT")
        self.assertEqual(len(server.heard), 2)

    def test_at_the_end_of_requests_nobody_stays_and_all_is_reported(self):
        server, spawner = self.server(concurrencyhost=1), self.spawner()
        for slot in range(5):
            spawner.ask(slot, self.message, sender=f"s{slot}@h.test")  # they do not travel together
        result = spawner.finish()
        self.assertEqual((result.code, reports(b"\xff" + result.out)), (0, dict.fromkeys(range(5), ACCEPTED)))
        wait_for(lambda: server.ended, "the connection to end")
        self.assertEqual(server.verbs(0).count("MAIL"), 5)
        self.assertEqual(server.verbs(0)[-1], "QUIT")

    # -- a connection that is gone is not the message's fault

    def second_is_accepted_elsewhere(self, says, **controls):
        server, spawner = self.server(says, **controls), self.spawner()
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        self.assertEqual(spawner.one(self.message, "second@one.test"), ACCEPTED)
        self.assertEqual(len(server.heard), 2)
        self.assertEqual(server.heard[1][:5], ["EHLO test.example", "MAIL FROM:<s@h.test>", "RCPT TO:<second@one.test>", "DATA", "."])
        # What comes now goes over the new one.
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        self.assertEqual(len(server.heard), 2)
        return server

    def test_the_server_closes_between_messages(self):
        server, spawner = self.server(), self.spawner()
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        server.connections[0].shutdown(socket.SHUT_RDWR)
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        self.assertEqual(len(server.heard), 2)

    def test_the_server_closes_when_it_is_asked(self):
        self.second_is_accepted_elsewhere(
            lambda line, connection, message: CLOSE if connection == 0 and message == 1 and line.startswith("MAIL") else None)

    def test_the_server_says_that_it_stops(self):
        server = self.server(lambda line, connection, _: "250 queued\r\n421 I stop" if line == "." and connection == 0 else None)
        spawner = self.spawner()
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        self.assertEqual(len(server.heard), 2)

    def test_a_421_is_the_end_of_a_connection_whatever_it_answers(self):
        said = {"RCPT": "421 too many", "DATA": "503 no"}
        server = self.server(lambda line, connection, _: said.get(line[:4]) if connection == 0 else None)
        spawner = self.spawner()
        self.assertEqual(spawner.one(self.message)[:1], b"Z")
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        self.assertEqual(len(server.heard), 2)

    def test_a_server_that_wants_no_second_message_gets_it_over_another_connection(self):
        for refusal in ("421 enough", "452 too many messages", "550 one a connection", "nonsense"):
            with self.subTest(refusal):
                server = self.second_is_accepted_elsewhere(
                    lambda line, c, m, said=refusal: said if c == 0 and m == 1 and line.startswith("MAIL") else None)
                # With the envelope asked for at once, nothing is taken for data.
                self.assertNotIn(".", server.verbs(0)[5:])

    def test_a_refusal_on_a_connection_of_its_own_counts(self):
        server = self.server(lambda line, connection, message: "550 not you" if line == "MAIL FROM:<bad@h.test>" else None)
        spawner = self.spawner()
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        self.assertEqual(spawner.one(self.message, "r@one.test", "bad@h.test"),
                         b"DConnected to 127.0.0.1 but sender was rejected.\nRemote host said: 550 not you\n")
        self.assertEqual(len(server.heard), 2)

    def test_a_server_that_is_silent_between_messages(self):
        silent = threading.Event()
        self.addCleanup(silent.set)
        self.second_is_accepted_elsewhere(
            lambda line, c, m: silent.wait(TIMEOUT) and CLOSE if (c, m, line[:4]) == (0, 1, "MAIL") else None, timeoutremote=3)
        silent.set()

    # -- what was begun is

    def test_a_connection_that_dies_within_the_second_message(self):
        for at, said in (("RCPT", DIED), (".", DIED.replace(b"died. (", b"died. Possible duplicate! ("))):
            with self.subTest(at):
                server = self.server(lambda line, c, m, at=at: CLOSE if (c, m) == (0, 1) and line.startswith(at) else None)
                spawner = self.spawner()
                self.assertEqual(spawner.one(self.message), ACCEPTED)
                self.assertEqual(spawner.one(self.message), said)
                self.assertEqual(len(server.heard), 1)
                self.assertEqual(spawner.one(self.message), ACCEPTED)

    def test_an_answer_to_the_second_message_is_the_answer(self):
        for line, said, report in (
                ("RCPT", "550 no", b"D127.0.0.1 does not like recipient.\nRemote host said: 550 no\nGiving up on 127.0.0.1.\n"),
                (".", "452 full", b"Z127.0.0.1 failed after I sent the message.\nRemote host said: 452 full\n"),
                (".", "554 no", b"D127.0.0.1 failed after I sent the message.\nRemote host said: 554 no\n")):
            with self.subTest(said):
                server = self.server(lambda got, c, m, at=line, said=said: said if m == 1 and got.startswith(at) else None)
                spawner = self.spawner()
                self.assertEqual(spawner.one(self.message), ACCEPTED)
                self.assertEqual(spawner.one(self.message), report)
                self.assertEqual(len(server.heard), 1)

    # -- somebody is killed

    def test_killed_between_messages(self):
        for who in ("qmail-remote", "beside"):
            with self.subTest(who):
                server, spawner = self.server(), self.spawner()
                self.assertEqual(spawner.one(self.message), ACCEPTED)
                [remote] = remotes(spawner.pid)
                os.kill(remote if who == "qmail-remote" else spawners.parent_of(remote), signal.SIGKILL)
                wait_for(lambda: not spawners.lives(remote), "qmail-remote to end")
                self.assertEqual(spawner.one(self.message), ACCEPTED)
                self.assertEqual(len(server.heard), 2)

    def test_killed_within_the_second_message(self):
        for who, report in (("qmail-remote", b"Zqmail-remote crashed.\n"), ("beside", b"Zqmail-remote crashed.\n")):
            with self.subTest(who):
                server = self.server(lambda line, c, m: server.wait() if (c, m, line) == (0, 1, ".") else None)
                spawner = self.spawner()
                self.assertEqual(spawner.one(self.message), ACCEPTED)
                spawner.ask(0, self.message)
                wait_for(lambda: server.verbs(0).count(".") == 2, "the second message")
                [remote] = remotes(spawner.pid)
                os.kill(remote if who == "qmail-remote" else spawners.parent_of(remote), signal.SIGKILL)
                self.assertEqual(spawner.report(), (0, report))
                self.assertEqual(len(server.heard), 1)
                self.assertEqual(spawner.one(self.message), ACCEPTED)

    def test_a_spawner_that_is_killed_is_told_by_the_ledger(self):
        server = self.server(lambda line, c, m: server.wait() if (c, m, line) == (0, 1, ".") else None)
        spawner = self.spawner()
        self.assertEqual(spawner.one(self.message), ACCEPTED)
        spawner.ask(0, self.message, "second@one.test")
        wait_for(lambda: server.verbs(0).count(".") == 2, "the second message")
        spawner.line.process.kill()
        spawner.line.process.wait()
        with harness.Line.start(["qmail-rspawn"], {**self.home.env, "QMAILBURST": "1"}) as line:
            line.send(request(0, self.message, "s@h.test", "second@one.test"))
            server.go.set()
            self.assertEqual(reports(line.finish().out), {0: b"Kdelivered before a restart\n"})
        wait_for(lambda: server.ended, "the connection to end")
        self.assertEqual(server.verbs(0)[-1], "QUIT")
        self.assertEqual(len(server.heard), 1)

    # -- the line

    def test_others_are_not_told_of_it(self):
        fakes = spawners.Fakes()
        self.addCleanup(fakes.remove)
        script = fakes.script("qmail-remote", 'printf "r\\0K${QMAILKEEP-none}\\0"')
        for env in ({"PATH": f"{fakes.path}:{self.home.env['PATH']}"}, {"QMAILREMOTE": script}):
            with self.subTest(env), Spawner(self.home, QMAILKEEP="3", **env) as spawner:
                self.assertEqual(spawner.one(self.message), b"Knone")

    def remote(self, number="3"):
        """A qmail-remote with a line, and our ends of its line and of its output."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        read, write = os.pipe()
        for fd in (near, far):
            self.addCleanup(fd.close)
        self.addCleanup(os.close, read)
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(os.open(self.home.file("queue/mess", self.message), os.O_RDONLY), 0)
                os.dup2(write, 1)
                os.dup2(far.fileno(), 3)
                os.execve(harness.program("qmail-remote"), ["qmail-remote", "one.test", "s@h.test", "r@one.test"],
                          {**self.home.env, "QMAILKEEP": number})
            finally:
                os._exit(99)
        self.addCleanup(self.bury, pid)
        os.close(write)
        far.close()
        return near, read, pid

    def bury(self, pid):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def errand(self, near, words, files=1):
        files = [os.open(self.home.file("queue/mess", self.message), os.O_RDONLY) for _ in range(files)]
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
        near.sendmsg([words], control)
        for fd in files:
            os.close(fd)

    def said(self, read, near=None):
        """The reports until it waits, with what it says on its line, or until it has ended."""
        kept = near.recv(100) if near else b""
        text = b""
        while (not kept or select.select([read], [], [], 0)[0]) and (more := os.read(read, 4096)):
            text += more
        return text + kept

    def test_what_is_said_on_a_line(self):
        server = self.server()
        near, read, pid = self.remote()
        accepted = b"r\0" + ACCEPTED + b"\0"
        self.assertEqual(self.said(read, near), accepted + b"kept\n")
        self.errand(near, b"x@h.test\0a@one.test\0b@one.test\0")
        self.assertEqual(self.said(read, near), b"r\0" + accepted + b"kept\n")
        near.close()
        self.assertEqual(self.said(read), b"")
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        wait_for(lambda: server.ended, "the connection to end")
        self.assertEqual(server.verbs(0)[5:], ["MAIL", "RCPT", "RCPT", "DATA", ".", "QUIT"])

    def test_what_is_no_errand_ends_it_without_a_word(self):
        for words, files in ((b"x@h.test\0", 1), (b"x", 1), (b"x@h.test\0a@one.test\0", 0), (b"x@h.test\0a@one.test\0", 2)):
            with self.subTest((words, files)):
                self.server()
                near, read, pid = self.remote()
                self.assertEqual(self.said(read, near)[-5:], b"kept\n")
                self.errand(near, words, files)
                self.assertEqual(self.said(read), b"")
                self.assertEqual(os.waitpid(pid, 0)[1], 0)

    def test_without_a_line_of_its_own_it_ends_as_ever(self):
        for number in ("", "4", "03", "x"):
            with self.subTest(number):
                self.server()
                _, read, pid = self.remote(number)
                self.assertEqual(self.said(read), b"r\0" + ACCEPTED + b"\0")
                self.assertEqual(os.waitpid(pid, 0)[1], 0)


if __name__ == "__main__":
    unittest.main()
