"""qmail-fix: what it finds in a queue, and that mending loses nothing and doubles nothing, killed at any step."""

import collections
import os
import re
import shutil
import subprocess
import tempfile
import unittest
import unittest.mock

from tests import harness
from tests.queue_rig import Queue, Sender, split

S, A, B, X = b"s@sender.example", b"a@local.example", b"b@local.example", b"x@far.example"


class Case(unittest.TestCase):
    maxDiff = None

    def make(self):
        queue = Queue(locals="local.example\n", concurrencylocal="20\n")
        self.addCleanup(queue.__exit__)
        queue.write("queue/lock/tcpto", bytes(1024))
        for way in ("local", "remote"):
            queue.write(f"queue/lock/ledger.{way}", b"", 0o600)
        return queue

    def fix(self, queue, *args, code=0):
        result = harness.run(["qmail-fix", *args], env=queue.env)
        self.assertEqual((result.code, result.err), (code, b"") if code in (0, 1) else (code, result.err), result)
        return result.out.decode().splitlines()

    def swap(self, queue, one, two):
        """The messages of two numbers have each the other's inode, as after a restore."""
        paths = [queue.file("queue/" + split("mess", n)) for n in (one, two)]
        os.rename(paths[0], paths[0] + "~")
        os.rename(paths[1], paths[0])
        os.rename(paths[0] + "~", paths[1])
        texts = []
        for path in paths:
            with open(path, "rb") as f:
                texts.append(f.read())
        for path, text in zip(paths, reversed(texts)):  # what each number had is there again
            with open(path, "r+b") as f:
                f.truncate()
                f.write(text)

    def mess(self, queue):
        """A queue of every state, with numbers that are not inodes; what is to be delivered."""
        texts = {name: f"Subject: {name}\n\n{name}\n".encode() for name in ("one", "two", "three", "four", "five")}
        one = queue.preprocessed(S, local=[b"T" + A, b"D" + B], remote=[b"T" + X], content=texts["one"])
        two = queue.preprocessed(S, local=[b"T" + B], content=texts["two"])
        queue.write(f"queue/bounce/{two}", b"<no@x>:\nno\n\n", 0o600)
        three = queue.todo(S, [A, X], texts["three"], pull=False)
        queue.preprocessed(S, remote=[b"T" + X], content=texts["four"])  # is in its place, and stays there
        five = queue.todo(S, [B], texts["five"], pull=False)
        self.swap(queue, one, two)
        # A third one whose inode nobody has as a number.
        for number in (three, five):
            path = queue.file("queue/" + split("mess", number))
            shutil.copyfile(path, path + "~")
            os.rename(path + "~", path)
            queue.own("queue/" + split("mess", number))
        return {(A, texts["one"]): 1, (X, texts["one"]): 1, (B, texts["two"]): 1, (A, texts["three"]): 1,
                (X, texts["three"]): 1, (X, texts["four"]): 1, (B, texts["five"]): 1}

    def delivered(self, queue):
        """What qmail-send delivers from it, counted, until the queue is empty."""
        found, read = collections.Counter(), {}

        def take(request):
            number = request.number
            if number not in read:
                read[number] = queue.read(split("mess", number))
            found[request.recipient, read[number]] += 1
            return b"K"
        queue.bounces_to()
        with Sender(queue, answer=take) as sender:
            harness.wait_for(lambda: not [n for n in queue.left() if not n.endswith(".lost")],
                             f"an empty queue, not {queue.left()} {sender.lines}")
            self.assertEqual(sender.stop(), 0)
        self.assertNotIn("alert", sender.log())
        return dict(found)


class Checks(Case):
    def test_a_sound_queue_of_every_state_has_no_problem(self):
        queue = self.make()
        queue.preprocessed(S, local=[b"T" + A, b"D" + B], remote=[b"T" + X])
        queue.preprocessed(S, local=[b"T" + A], record=False)
        queue.preprocessed(S)
        queue.todo(S, [A], pull=False)
        queue.todo(S, [A], record=False, pull=False)
        queue.message()
        before = queue.left()
        self.assertEqual(self.fix(queue), [])
        self.assertEqual(self.fix(queue, "-r"), [])
        self.assertEqual(self.fix(queue, queue.file("queue")), [])
        self.assertEqual(queue.left(), before)

    def test_wrong_use_is_said(self):
        queue = self.make()
        for args in (["-x"], ["-a"], ["-a", "x"], ["-a", "07"], ["-r", "-a", "1"], ["a", "b"]):
            self.assertEqual(harness.run(["qmail-fix", *args], env=queue.env).code, 100, args)
        result = harness.run(["qmail-fix", queue.file("control")], env=queue.env)
        self.assertEqual((result.code, result.err), (111, b"qmail-fix: fatal: " + queue.file("control").encode() +
                                                     b" is no queue: neither mess nor info is there\n"))

    def test_it_checks_beside_a_running_qmail_send_and_does_not_mend(self):
        queue = self.make()
        queue.preprocessed(S, local=[b"T" + A])
        with Sender(queue) as sender:
            sender.wait_requests(1)
            self.assertEqual(self.fix(queue), [])
            os.rmdir(queue.file("queue/remote/7"))
            result = harness.run(["qmail-fix", "-r"], env=queue.env)
            self.assertEqual((result.code, result.err), (111, b"qmail-fix: fatal: qmail-send is running: stop it first\n"))
            self.assertFalse(queue.there("remote/7"))

    def test_a_running_system_gives_no_false_alarm(self):
        queue = self.make()
        with Sender(queue, answer=lambda request: b"K") as sender:
            for turn in range(6):
                for n in range(10):
                    queue.todo(S, [A, X, B] * 4 if n % 2 else [A], b"Subject: %d\n\n" % n + bytes(2000))
                self.assertEqual(self.fix(queue), [], turn)
            harness.wait_for(lambda: not queue.left(), "an empty queue")
            self.assertEqual(sender.stop(), 0)

    def test_what_does_not_belong_together_is_named_and_can_be_accepted(self):
        queue = self.make()
        text = b"Subject: x\n\nhi\n"

        def damage(name, change):
            content = queue.read(name)
            queue.write("queue/" + name, change(content), 0o600 if "/" in name and not name.startswith(("todo", "mess")) else 0o644)
        todo = queue.todo(S, [A, X], pull=False)
        damage(f"todo/{todo}", lambda t: t.replace(b"a@local", b"A@local"))
        cut = queue.todo(S, [A, X], pull=False)
        damage(f"todo/{cut}", lambda t: t[:t.index(b"\0T" + X) + 5])
        mess = queue.todo(S, [A], pull=False)
        damage(split("mess", mess), lambda t: t.upper())
        info = queue.preprocessed(S, local=[b"T" + A, b"D" + B])
        damage(split("info", info), lambda t: t[:10])
        local = queue.preprocessed(S, local=[b"T" + A, b"D" + B])
        damage(split("local", local), lambda t: t.replace(b"a@local", b"A@local"))
        torn = queue.preprocessed(S, local=[b"T" + A, b"D" + B])
        os.unlink(queue.file("queue/" + split("info", torn)))
        intd = queue.todo(S, [A], pull=False)
        os.unlink(queue.file(f"queue/todo/{intd}"))

        def aside(number, reason):
            return (f"msg {number}: kept aside: {reason}; put it right, or accept it as it lies (-a {number}), "
                    "or remove its files")
        expected = [
            aside(todo, f"todo/{todo} is not what was accepted"), aside(cut, f"todo/{cut} is not what was accepted"),
            aside(mess, f"{split('mess', mess)} is not what was accepted"),
            aside(info, f"{split('info', info)} is not what was accepted"),
            aside(local, f"{split('local', local)} is not what was accepted"),
            aside(torn, f"{split('local', torn)} is there without {split('info', torn)}"),
            f"msg {intd}: was never acknowledged, or lost its todo/{intd}; qmail-send removes it after 36 hours; "
            f"-a {intd} accepts it",
        ]
        self.assertEqual(sorted(self.fix(queue, code=1)), sorted(expected))
        before = {name: queue.read(name) for name in queue.left()}
        self.assertEqual(sorted(self.fix(queue, "-r", code=1)), sorted(expected))
        self.assertEqual({name: queue.read(name) for name in queue.left()}, before)
        for number, sender, count in ((todo, S, 2), (cut, S, 1), (mess, S, 1), (info, S, 1), (local, S, 1), (torn, b"", 1),
                                      (intd, S, 1)):
            if number == info:
                sender = b""  # what was left of it has no end
            unreadable = ", records that cannot be read: 1" if number == cut else ""
            self.assertEqual(self.fix(queue, "-a", str(number)),
                             [f"msg {number}: accepted from <{sender.decode()}>, recipients left: {count}{unreadable}"])
            self.assertEqual(self.fix(queue, "-a", str(number)), [f"msg {number}: is not kept aside"])
        self.assertEqual(self.fix(queue), [])
        self.assertEqual(self.delivered(queue), {
            (b"A@local.example", text): 2, (A, text): 4, (X, text): 1, (A, text.upper()): 1})

    def test_what_nobody_can_be_read_in_is_not_accepted(self):
        queue = self.make()
        numbers = []
        for spoil in (lambda b: b"", lambda b: bytes(len(b)), lambda b: b[:b.index(b"T")]):
            numbers.append(queue.todo(S, [A, X], pull=False))
            queue.write(f"queue/todo/{numbers[-1]}", spoil(queue.read(f"todo/{numbers[-1]}")))
        numbers.append(queue.todo(S, [A], pull=False))
        queue.write(f"queue/intd/{numbers[-1]}", b"")
        for spoil in (lambda b: b"", lambda b: bytes(len(b)), lambda b: b.replace(b"\0", b" ")):
            for more in ({}, {"remote": [b"D" + X]}):
                numbers.append(queue.preprocessed(S, local=[b"T" + A, b"D" + B], **more))
                name = split("local", numbers[-1])
                queue.write("queue/" + name, spoil(queue.read(name)), 0o600)
        numbers.append(queue.preprocessed(S))
        queue.write("queue/" + split("info", numbers[-1]), b"", 0o600)
        some = queue.preprocessed(S, local=[b"T" + A, b"T" + B], remote=[b"T" + X])
        queue.write("queue/" + split("remote", some), bytes(7), 0o600)
        before = {name: queue.read(name) for name in queue.left()}
        for number in numbers:
            result = harness.run(["qmail-fix", "-a", str(number)], env=queue.env)
            self.assertEqual((result.code, result.out, result.err), (
                111, b"", b"qmail-fix: fatal: nobody can be read in it; message %d stays aside\n" % number))
        self.assertEqual({name: queue.read(name) for name in queue.left()}, before)
        self.assertEqual(self.fix(queue, "-a", str(some)),
                         [f"msg {some}: accepted from <{S.decode()}>, recipients left: 2, records that cannot be read: 7"])

    def test_what_no_message_is_for_is_said(self):
        queue = self.make()
        numbers = [queue.todo(S, [A], pull=False), queue.preprocessed(S, local=[b"T" + A]), queue.preprocessed(S)]
        for number in numbers:
            os.unlink(queue.file("queue/" + split("mess", number)))
        queue.write(f"queue/bounce/{2**40}", b"x\n", 0o600)
        lines = self.fix(queue, code=1)
        self.assertEqual(len(lines), 4)
        for number in [*numbers, 2**40]:
            self.assertTrue([n for n in lines if n.startswith(f"msg {number}: a rest; there is no message for it")], lines)


class Mends(Case):
    def test_directories_and_what_is_in_lock_are_made(self):
        queue = self.make()
        number = queue.preprocessed(S, local=[b"T" + A])
        gone = ["lock/trigger", "lock/sendmutex", "lock/tcpto", "lock/ledger.local", "lock/ledger.remote", "remote/7", "intd", f"info/{(number + 1) % 23}"]
        for name in gone:
            path = queue.file("queue/" + name)
            os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
        os.chmod(queue.file("queue/mess/3"), 0o777)
        os.chmod(queue.file("queue/" + split("info", number)), 0o000)
        lines = self.fix(queue, code=1)
        missing = sorted(f"{name}: is missing; -r makes it" for name in gone)
        self.assertEqual(sorted(n for n in lines if "missing" in n), missing)
        self.assertIn("mess/3: has mode 777 and not 750; -r mends that", lines)
        self.assertIn(f"{split('info', number)}: has mode 0 and not 600; -r mends that", lines)
        self.assertTrue(self.fix(queue, "-r"))
        self.assertEqual(self.fix(queue), [])
        self.assertEqual(os.stat(queue.file("queue/lock/tcpto")).st_size, 1024)
        for way in ("local", "remote"):
            self.assertEqual(os.stat(queue.file(f"queue/lock/ledger.{way}")).st_mode & 0o777, 0o600)
        self.assertEqual(self.delivered(queue), {(A, b"Subject: x\n\nhi\n"): 1})

    def test_what_is_no_directory_is_left_and_said(self):
        queue = self.make()
        elsewhere = queue.file("elsewhere")
        os.mkdir(elsewhere)
        os.rmdir(queue.file("queue/local/5"))
        os.symlink(elsewhere, queue.file("queue/local/5"))
        expected = ["local/5: is not a directory; move it away, then -r makes one"]
        self.assertEqual(self.fix(queue, code=1), expected)
        self.assertEqual(self.fix(queue, "-r", code=1), expected)
        os.unlink(queue.file("queue/local/5"))
        self.assertEqual(self.fix(queue, "-r"), ["local/5: is missing; mended"])

    def test_what_writers_left_long_ago_goes(self):
        queue = self.make()
        number = queue.message()
        for name in (split("mess", number), "pid/77.1.1"):
            queue.write("queue/" + name, b"half")
        # Only the change time cannot be set back; so it is the clock that must be wrong.
        lines = self.fix(queue)
        self.assertEqual(lines, [])
        result = self.fix(queue, "-r")
        self.assertEqual(result, [])
        self.assertTrue(queue.there("pid/77.1.1"))

    def test_a_moved_queue_is_found_and_numbered_anew(self):
        queue = self.make()
        wanted = self.mess(queue)
        lines = self.fix(queue, code=1)
        self.assertEqual(len(lines), 4)
        for line in lines:
            self.assertRegex(line, r"^mess/\d+/\d+: its inode is \d+; -r makes that the message's number$")
        mended = self.fix(queue, "-r")
        self.assertEqual([n.replace("; mended", "; -r makes that the message's number") for n in mended], lines)
        self.assertEqual(self.fix(queue), [])
        for name in queue.left():
            if name.startswith("mess/"):
                found = os.stat(queue.file("queue/" + name))
                self.assertEqual((name, found.st_nlink), (split("mess", found.st_ino), 1))
        self.assertEqual(self.delivered(queue), wanted)
        self.assertEqual(len(queue.bounced()), 1)

    def test_a_copied_queue_is_mended_where_it_lies(self):
        queue = self.make()
        numbers = [queue.preprocessed(S, local=[b"T" + A], content=b"n: %d\n\n" % n) for n in range(60)]
        copy = queue.file("copy")
        subprocess.run(["cp", "-a", queue.file("queue"), copy], check=True)
        self.assertEqual(len(self.fix(queue, copy, code=1)), 60)
        self.assertEqual(len(self.fix(queue, "-r", copy)), 60)
        self.assertEqual(self.fix(queue, copy), [])
        self.assertEqual(self.fix(queue), [])
        shutil.rmtree(queue.file("queue"))
        os.rename(copy, queue.file("queue"))
        self.assertEqual(self.delivered(queue), {(A, b"n: %d\n\n" % n): 1 for n in range(60)})
        self.assertEqual(len(numbers), 60)

    def test_another_split_is_made_ours(self):
        queue = self.make()
        texts = [b"n: %d\n\n" % n for n in range(20)]
        numbers = [queue.preprocessed(S, local=[b"T" + A], content=t) if n % 2 else queue.todo(S, [A], t, pull=False)
                   for n, t in enumerate(texts)]
        for top in ("mess", "info", "local", "remote"):
            for s in (23, 24, 25, 28):
                queue.mkdir(f"queue/{top}/{s}")
        for number in numbers:
            for top in ("mess", "info", "local"):
                if queue.there(split(top, number)):
                    os.rename(queue.file("queue/" + split(top, number)), queue.file(f"queue/{top}/{number % 29}/{number}")
                              if queue.there(f"{top}/{number % 29}") else queue.file(f"queue/{top}/28/{number}"))
        empty = [s for top in ("mess", "info", "local", "remote") for s in (23, 24, 25, 28)
                 if not os.listdir(queue.file(f"queue/{top}/{s}"))]
        self.assertTrue(self.fix(queue, code=1))
        with Sender(queue) as sender:
            sender.wait_line("^alert: cannot start: the queue has more directories than ours: run qmail-fix -r$")
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 111)
        mended = self.fix(queue, "-r")
        self.assertEqual(self.fix(queue), [])
        for top in ("mess", "info", "local", "remote"):
            self.assertEqual(sorted(os.listdir(queue.file("queue/" + top))), sorted(map(str, range(23))))
        self.assertEqual(sum(n.endswith("is a directory of another split; mended") for n in mended), len(empty))
        self.assertEqual(self.delivered(queue), {(A, t): 1 for t in texts})

    def test_directories_of_another_split_are_removed_when_they_are_empty(self):
        queue = self.make()
        queue.todo(S, [A], pull=False)
        for name in ("mess/23", "mess/40", "info/23"):
            queue.mkdir("queue/" + name)
        queue.write("queue/mess/40/note", b"mine\n")
        hand = "mess/40: is a directory of another split; when no message is in it any more, remove it"
        self.assertEqual(sorted(self.fix(queue, code=1)), [f"{name}: is a directory of another split; -r removes it"
                                                           for name in ("info/23", "mess/23")] + [hand])
        self.assertEqual(sorted(self.fix(queue, "-r", code=1)), [f"{name}: is a directory of another split; mended"
                                                                 for name in ("info/23", "mess/23")] + [hand])
        self.assertFalse(queue.there("mess/23") or queue.there("info/23"))
        os.unlink(queue.file("queue/mess/40/note"))
        queue.mkdir("queue/mess/23")
        self.assertEqual(self.delivered(queue), {(A, b"Subject: x\n\nhi\n"): 1})  # nobody's messages are in them

    def test_there_may_be_more_directories_than_a_process_opens_at_first(self):
        queue = self.make()
        for top in ("mess", "info", "local", "remote"):
            for s in range(23, 401):
                queue.mkdir(f"queue/{top}/{s}")
        number = queue.message()
        os.rename(queue.file("queue/" + split("mess", number)), queue.file(f"queue/mess/{number % 401}/{number}"))
        envelope = b"u1\0p2\0F" + S + b"\0T" + A + b"\0"
        queue.write(f"queue/intd/{number}", envelope)
        os.link(queue.file(f"queue/intd/{number}"), queue.file(f"queue/todo/{number}"))
        result = harness.run(["sh", "-c", "ulimit -Sn 1024; exec qmail-fix -r"], env=queue.env)
        self.assertEqual((result.code, result.err), (0, b""), result)
        self.assertEqual(self.fix(queue), [])
        self.assertEqual(self.delivered(queue), {(A, b"Subject: x\n\nhi\n"): 1})

    def test_what_is_in_the_way_of_a_number_is_kept_under_another_name(self):
        queue = self.make()
        number = queue.preprocessed(S, local=[b"T" + A])
        path = queue.file("queue/" + split("mess", number))
        shutil.copyfile(path, path + "~")
        os.rename(path + "~", path)
        queue.own("queue/" + split("mess", number))
        target = os.stat(path).st_ino
        queue.write("queue/" + split("info", target), b"Fother@x\0", 0o600)
        lines = self.fix(queue, "-r", code=1)
        lost = split("info", target) + ".lost"
        self.assertIn(f"{lost}: belongs to no message, and was in the way of one; remove it", lines)
        self.assertEqual(self.delivered(queue), {(A, b"Subject: x\n\nhi\n"): 1})
        self.assertEqual(queue.left(), [lost])

    def test_one_number_in_two_directories_and_one_file_under_two_numbers_are_for_a_person(self):
        queue = self.make()
        number = queue.preprocessed(S, local=[b"T" + A])
        other = f"mess/{(number + 1) % 23}/{number}"
        queue.write("queue/" + other, b"what\n")
        twin = queue.preprocessed(S, local=[b"T" + A])
        os.link(queue.file("queue/" + split("mess", twin)), queue.file("queue/" + split("mess", 2**40)))
        before = queue.left()
        lines = self.fix(queue, "-r", code=1)
        self.assertTrue([n for n in lines if f"/{number}: the same number is in another directory, too; move one" in n], lines)
        self.assertIn(f"{split('mess', 2**40)}: is the same file as {split('mess', twin)}; remove this name, and the other "
                      "files of this number", lines)
        self.assertEqual(queue.left(), before)


class Killed(Case):
    """SIGKILL at the n-th of the calls that change names, and in between."""

    CALLS = ("renameat", "linkat", "unlinkat", "openat", "fsync")

    def make(self):
        """In memory: nothing is lost by a kill that a sync would keep, and a run has 300 of them."""
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) and not os.statvfs("/dev/shm").f_flag & os.ST_NOEXEC else None
        with unittest.mock.patch.object(tempfile, "tempdir", memory):
            return super().make()

    def run_killed(self, queue, call, n, *args):
        strace = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={n}"]
        return subprocess.run([*strace, harness.program("qmail-fix"), *args], env=queue.env, capture_output=True,
                              timeout=harness.TIMEOUT).returncode

    def points(self, call):
        """How many calls there are of it in an undisturbed run."""
        queue = self.make()
        self.mess(queue)
        counted = queue.file("counted")
        open(counted, "w").close()
        os.chmod(counted, 0o666)
        subprocess.run(["strace", "-f", "-o", counted, "-e", f"trace={call}", harness.program("qmail-fix"), "-r"],
                       env=queue.env, capture_output=True, timeout=harness.TIMEOUT, check=True)
        with open(counted) as f:
            return sum(f"{call}(" in line for line in f)

    def test_a_second_run_ends_what_a_killed_one_began(self):
        if os.geteuid() != 0 or not shutil.which("strace"):
            self.skipTest("only root may trace a program that made itself undumpable")
        harness.needs_static("qmail-fix")
        tried = 0
        for call in self.CALLS:
            points = self.points(call)
            self.assertGreater(points, 0)
            # Most of the openings and syncs are of one directory after another, and change nothing.
            every = 4 if call in ("renameat", "linkat", "unlinkat") else 97  # all: python3 -m tests.crash damage
            for n in range(1, points + 1, every):
                with self.subTest(call=call, n=n):
                    queue = self.make()
                    wanted = self.mess(queue)
                    self.assertNotEqual(self.run_killed(queue, call, n, "-r"), 0)
                    tried += 1
                    if queue.there("lock/fixing"):
                        with Sender(queue) as sender:
                            sender.wait_line("cannot start: the queue is being mended: qmail-fix -r must come to its end$")
                    self.fix(queue, "-r")
                    self.assertFalse(queue.there("lock/fixing") or queue.there("lock/placing"))
                    self.assertEqual(self.fix(queue), [])
                    self.assertEqual(self.delivered(queue), wanted)
                    queue.__exit__()
        self.assertGreater(tried, 15)

    def test_a_queue_that_was_copied_after_a_killed_run_loses_nobody(self):
        """The message on its way has yet another inode in the copy."""
        if os.geteuid() != 0 or not shutil.which("strace"):
            self.skipTest("only root may trace a program that made itself undumpable")
        harness.needs_static("qmail-fix")
        for call, every, copy in (("renameat", 3, ["cp", "-a"]),
                                  ("linkat", 6, ["cp", "-a"]), ("unlinkat", 6, ["cp", "-a"]),
                                  ("linkat", 6, ["cp", "-r", "--preserve=mode,ownership,timestamps"]),
                                  ("unlinkat", 6, ["cp", "-r", "--preserve=mode,ownership,timestamps"])):
            for n in range(1, self.points(call) + 1, every):
                with self.subTest(call=call, n=n, copy=copy):
                    queue = self.make()
                    wanted = self.mess(queue)
                    self.assertNotEqual(self.run_killed(queue, call, n, "-r"), 0)
                    subprocess.run([*copy, queue.file("queue"), queue.file("copy")], check=True)
                    os.rename(queue.file("queue"), queue.file("old"))  # keeps its inodes in use
                    os.rename(queue.file("copy"), queue.file("queue"))
                    self.assertTrue(self.fix(queue, "-r"))
                    self.assertFalse(queue.there("lock/fixing") or queue.there("lock/placing"))
                    self.assertEqual(self.fix(queue), [])
                    self.assertEqual(self.delivered(queue), wanted)
                    queue.__exit__()

    def test_an_acceptance_that_was_killed_can_be_made_again(self):
        if os.geteuid() != 0 or not shutil.which("strace"):
            self.skipTest("only root may trace a program that made itself undumpable")
        harness.needs_static("qmail-fix")
        for call, points in (("renameat", 3), ("fsync", 5)):
            for n in range(1, points + 1):
                with self.subTest(call=call, n=n):
                    queue = self.make()
                    todo = queue.todo(S, [A, X], pull=False)
                    queue.write(f"queue/todo/{todo}", queue.read(f"todo/{todo}").replace(b"s@", b"S@"))
                    info = queue.preprocessed(S, local=[b"T" + A], remote=[b"T" + X], content=b"other\n")
                    queue.write("queue/" + split("info", info), b"F" + S + b"\0x", 0o600)
                    for number in (todo, info):
                        self.run_killed(queue, call, n, "-a", str(number))
                    self.fix(queue, "-r", code=1 if self.fix_code(queue) else 0)
                    for number in (todo, info):
                        self.fix(queue, "-a", str(number))
                    self.assertEqual(self.fix(queue), [])
                    self.assertEqual(self.delivered(queue), {(A, b"Subject: x\n\nhi\n"): 1, (X, b"Subject: x\n\nhi\n"): 1,
                                                             (A, b"other\n"): 1, (X, b"other\n"): 1})
                    queue.__exit__()

    def fix_code(self, queue):
        """Whether something is kept aside still."""
        return any("kept aside" in line for line in harness.run(["qmail-fix"], env=queue.env).out.decode().splitlines())


class Start(Case):
    """qmail-send and a queue that it would misread."""

    def refused(self, queue, why):
        with Sender(queue) as sender:
            sender.wait_line("^alert: cannot start: " + re.escape(why) + "$")
            self.assertEqual(sender.process.wait(harness.TIMEOUT), 111)
            self.assertEqual((sender.requests, sender.cleaned), ([], []))

    def test_a_moved_queue_is_refused(self):
        queue = self.make()
        self.mess(queue)
        before = queue.left()
        self.refused(queue, "the queue was moved or restored, and its numbers are no inodes: run qmail-fix -r")
        self.assertEqual(queue.left(), before)

    def test_another_split_is_refused(self):
        queue = self.make()
        number = queue.todo(S, [A], pull=False)
        os.rename(queue.file("queue/" + split("mess", number)), queue.file(f"queue/mess/{(number + 1) % 23}/{number}"))
        self.refused(queue, "messages are in other directories than ours: run qmail-fix -r")
        self.assertTrue(queue.there(f"todo/{number}"))

    def test_a_split_todo_is_refused(self):
        queue = self.make()
        number = queue.message()
        for top in ("todo", "intd"):
            queue.mkdir(f"queue/{top}/5")
        queue.write(f"queue/todo/5/{number}", b"u1\0p2\0F" + S + b"\0T" + A + b"\0")
        hand = "let the old qmail-send empty it, and remove its directories"
        self.refused(queue, "todo is split: " + hand)
        self.assertEqual(sorted(self.fix(queue, code=1)),
                         [f"{top}/5: is a directory, so todo is split; {hand}" for top in ("intd", "todo")])
        for args in (["-r"], ["-a", str(number)]):
            result = harness.run(["qmail-fix", *args], env=queue.env)
            self.assertEqual((result.code, result.out, result.err), (111, b"", b"qmail-fix: fatal: todo is split: " +
                                                                     hand.encode() + b"\n"))
        self.assertTrue(queue.there(f"todo/5/{number}"))

    def test_a_single_message_with_another_inode_is_kept_aside(self):
        for state in ("todo", "info"):
            queue = self.make()
            for n in range(30):
                queue.preprocessed(S, local=[b"T" + B], content=b"%d\n" % n)
            number = queue.todo(S, [A], pull=False) if state == "todo" else queue.preprocessed(S, local=[b"T" + A])
            path = queue.file("queue/" + split("mess", number))
            shutil.copyfile(path, path + "~")
            os.rename(path + "~", path)
            queue.own("queue/" + split("mess", number))
            with Sender(queue, answer=lambda request: b"K") as sender:
                inode = os.stat(path).st_ino
                sender.wait_line(f"^alert: msg {number} kept aside: {split('mess', number)} has inode {inode}: run qmail-fix$")
                harness.wait_for(lambda: len(sender.requests) == 30, "the others")
                self.assertEqual(sender.stop(), 0)
            self.fix(queue, "-r")
            self.assertEqual(self.delivered(queue), {(A, b"Subject: x\n\nhi\n"): 1})


@unittest.skipUnless(os.geteuid() == 0, "only root works among others' files")
class SystemHome(Case):
    """Root, in directories of which each belongs to an account that may have put anything there."""

    ROLES = {"alias": 7790, "qmaild": 7791, "qmaill": 7792, "root": 0, "qmailp": 7793, "qmailq": 7794, "qmailr": 7795, "qmails": 7796}

    def make(self):
        queue = super().make()
        ids = "".join(f"{role}:{uid}:{0 if role == 'root' else 2107}\n" for role, uid in self.ROLES.items())
        queue.write("users/ids", ids)
        for directory, names, files in os.walk(queue.path):
            for name in [directory, *(os.path.join(directory, n) for n in files)]:
                top = os.path.relpath(name, queue.file("queue")).split("/")[0]
                role = {"mess": "qmailq", "todo": "qmailq", "intd": "qmailq", "pid": "qmailq", "lock": "qmailq", "info": "qmails",
                        "local": "qmails", "remote": "qmails", "bounce": "qmails"}.get(top, "root")
                if name.endswith(("sendmutex", "trigger")):
                    role = "qmails"
                os.lchown(name, self.ROLES[role], 2107)
        os.chown(queue.file("queue/lock/ledger.local"), 0, 2107)
        for name in ("tcpto", "ledger.remote"):
            os.chown(queue.file("queue/lock/" + name), self.ROLES["qmailr"], 2107)
        return queue

    def message(self, queue, **more):
        number = queue.preprocessed(S, **more)
        for kind in ("mess", "info", "local", "remote"):
            if queue.there(split(kind, number)):
                os.chown(queue.file("queue/" + split(kind, number)), self.ROLES["qmailq" if kind == "mess" else "qmails"], 2107)
        return number

    def test_owners_and_numbers_are_mended_and_new_files_are_their_accounts(self):
        queue = self.make()
        self.assertEqual(self.fix(queue), [])
        number = self.message(queue, local=[b"T" + A])
        path = queue.file("queue/" + split("mess", number))
        shutil.copyfile(path, path + "~")  # root's now, and with another inode
        os.rename(path + "~", path)
        inode = os.stat(path).st_ino
        os.chown(queue.file("queue/" + split("info", number)), 0, 0)
        os.chown(queue.file("queue/remote/4"), 0, 0)
        os.unlink(queue.file("queue/lock/tcpto"))
        os.chown(queue.file("queue/lock/ledger.local"), self.ROLES["qmailq"], 2107)
        os.unlink(queue.file("queue/lock/ledger.remote"))
        lines = self.fix(queue, code=1)
        self.assertIn("remote/4: belongs to uid 0 and not to 7796; -r mends that", lines)
        self.fix(queue, "-r")
        self.assertEqual(self.fix(queue), [])
        for name, role in ((split("mess", inode), "qmailq"), (split("info", inode), "qmails"), ("remote/4", "qmails"),
                           ("lock/tcpto", "qmailr"), ("lock/ledger.local", "root"), ("lock/ledger.remote", "qmailr")):
            self.assertEqual(os.stat(queue.file("queue/" + name)).st_uid, self.ROLES[role], name)
        write = queue.file("queue/" + split("mess", inode))
        with open(write, "ab") as f:
            f.write(b"more\n")
        self.fix(queue, "-a", str(inode))
        self.assertEqual(self.fix(queue), [])

    def test_nothing_of_others_is_given_to_an_account(self):
        queue = self.make()
        secrets = [queue.file("queue/lock/kept"), queue.file("queue/lock/linked")]
        for secret in secrets:
            with open(secret, "w") as f:
                f.write("root's\n")
            os.chmod(secret, 0o600)
        os.rename(secrets[0], queue.file("queue/lock/sendmutex"))  # as qmailq can, whose directory lock is
        os.unlink(queue.file("queue/lock/tcpto"))
        os.link(secrets[1], queue.file("queue/lock/tcpto"))
        holder = open(queue.file("queue/lock/sendmutex"))
        self.addCleanup(holder.close)
        self.assertIn("lock/sendmutex: belongs to uid 0 and not to 7796; mended", self.fix(queue, "-r"))
        self.assertEqual((os.fstat(holder.fileno()).st_uid, os.fstat(holder.fileno()).st_nlink), (0, 0))
        self.assertEqual((os.stat(secrets[1]).st_uid, os.stat(secrets[1]).st_nlink), (0, 1))
        for name, role, size in (("sendmutex", "qmails", 0), ("tcpto", "qmailr", 1024)):
            found = os.stat(queue.file("queue/lock/" + name))
            self.assertEqual((found.st_uid, found.st_size), (self.ROLES[role], size))
        os.unlink(secrets[1])
        self.assertEqual(self.fix(queue), [])
        # A mode is not mended through a second name either.
        os.link(queue.file("queue/lock/sendmutex"), secrets[1])
        os.chmod(secrets[1], 0o666)
        self.assertIn("lock/sendmutex: has mode 666 and not 600; -r mends that", self.fix(queue, "-r", code=1))
        os.unlink(secrets[1])
        self.fix(queue, "-r")
        number = self.message(queue, local=[b"T" + A])
        mess = split("mess", number)
        os.chown(queue.file("queue/" + mess), 0, 0)
        os.chmod(queue.file("queue/" + mess), 0o600)
        by_hand = [f"{mess}: belongs to uid 0; look at it, and chown qmailq {mess}"]
        self.assertEqual(self.fix(queue, "-r", code=1), by_hand)
        self.assertEqual(os.stat(queue.file("queue/" + mess)).st_uid, 0)
        os.chmod(queue.file("queue/" + mess), 0o644)
        # Where everybody may link to everything, nothing is given.
        queue.write("zero", b"0\n")
        result = subprocess.run(
            ["unshare", "-m", "sh", "-c", 'mount --bind "$1" /proc/sys/fs/protected_hardlinks && exec "$2" -r', "sh",
             queue.file("zero"), harness.program("qmail-fix")], env=queue.env, capture_output=True, timeout=harness.TIMEOUT)
        self.assertEqual((result.returncode, result.stdout.decode().splitlines()), (1, by_hand), result)
        with open("/proc/sys/fs/protected_hardlinks") as f:
            are_protected = f.read() == "1\n"
        self.assertEqual(self.fix(queue, "-r", code=0 if are_protected else 1),
                         [f"{mess}: belongs to uid 0 and not to 7794; mended"] if are_protected else by_hand)

    def test_links_that_an_account_planted_lead_nowhere(self):
        queue = self.make()
        victim = queue.file("victim")
        os.mkdir(victim)
        secret = os.path.join(victim, "77")
        with open(secret, "w") as f:
            f.write("root's\n")
        os.chmod(secret, 0o600)
        number = self.message(queue, local=[b"T" + A])
        other = "queue/mess/3" if number % 23 != 3 else "queue/mess/4"
        os.rmdir(queue.file(other))
        os.symlink(victim, queue.file(other))
        os.symlink(secret, queue.file("queue/" + split("mess", 23 * 10**6)))
        os.unlink(queue.file("queue/" + split("local", number)))
        os.link(secret, queue.file("queue/" + split("local", number)))
        os.unlink(queue.file("queue/lock/trigger"))
        os.symlink(secret, queue.file("queue/lock/trigger"))
        for args in ([], ["-r"], ["-a", str(number)], ["-a", "77"]):
            result = harness.run(["qmail-fix", *args], env=queue.env)
            self.assertIn(result.code, (0, 1, 111), result)
            found = os.stat(secret)
            self.assertEqual((found.st_uid, found.st_mode & 0o777, os.listdir(victim)), (0, 0o600, ["77"]), args)
            with open(secret) as f:
                self.assertEqual(f.read(), "root's\n")


if __name__ == "__main__":
    unittest.main()
