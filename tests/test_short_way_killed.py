"""The short way of qmail-send under kill -9, before each call that changes something."""

import collections
import os
import signal
import sys
import unittest

from tests import harness
from tests.queue_rig import Queue, Sender

A, B, X = b"a@local.example", b"b@local.example", b"x@else.example"


class Killed(unittest.TestCase):
    """Everybody is served, and twice only after a kill."""

    CALLS = ("open", "openat", "write", "fsync", "unlink", "pwrite64", "utimensat")

    def queue(self):
        queue = Queue(locals="local.example\n")
        self.addCleanup(queue.__exit__)
        return queue

    def answers(self, said):
        """One deferral, one failure; whoever was deferred is served the next time."""
        seen, delivered = set(), collections.Counter()

        def answer(request):
            verdict = said[request.recipient]
            if verdict == b"Z" and request.recipient in seen:
                verdict = b"K"
            seen.add(request.recipient)
            delivered[request.recipient] += verdict == b"K"
            return verdict + b"said\n"
        return answer, delivered

    def life(self, queue, answer, said, under=()):
        """One qmail-send, from the first message to its end or its death. True when it was killed."""
        with Sender(queue, answer=answer, under=under) as sender:
            def over():
                return sender.process.poll() is not None or not self.undone(queue)

            def pushed():
                # From its first line on it hears signals.
                if not over() and sender.lines and not os.listdir(queue.file("queue/todo")):
                    sender.kill(signal.SIGALRM)
                return over()
            harness.wait_for(pushed, "the end of the message, or of qmail-send")
            if sender.process.poll() is None:
                sender.wait_line("^status")
                # What is left to be done may still meet the fault.
                self.assertIn(sender.stop(), (0, -signal.SIGKILL) if under else (0,), sender.log())
            self.assertNotIn("aside", sender.log())
            return sender.process.returncode == -signal.SIGKILL

    def undone(self, queue):
        return [name for name in queue.left() if not name.startswith("mess/")]

    def one(self, said, point=None):
        queue = self.queue()
        queue.bounces_to()
        answer, delivered = self.answers(said)
        queue.todo(b"s@h", list(said), pull=False)
        under = []
        if point:
            call, when = point
            under = ["strace", "-D", "-o", "/dev/null", "-e", f"trace={call}", "-e",
                     f"inject={call}:signal=SIGKILL:when={when}"]
        killed = self.life(queue, answer, said, under)
        if killed:
            self.assertFalse(self.life(queue, answer, said))
        copies = {r: delivered[r] for r in said if said[r] != b"D"}
        bounces = b"".join(message for _, message in queue.bounced()).count(b">:\nsaid\n")
        failed = sum(v == b"D" for v in said.values())
        self.assertEqual(self.undone(queue), [])
        if killed:
            self.assertTrue(all(copies.values()), copies)
            self.assertGreaterEqual(bounces, failed)
        else:
            self.assertEqual((set(copies.values()), bounces), ({1}, failed))
        queue.__exit__()
        return killed, max(copies.values()) > 1 or bounces > failed

    def points(self, said):
        """The calls of an undisturbed run that change something, from the first look at the message on."""
        queue = self.queue()
        queue.bounces_to()
        answer, _ = self.answers(said)
        queue.todo(b"s@h", list(said), pull=False)
        file = os.path.join(queue.base, "trace")
        open(file, "w").close()
        os.chmod(file, 0o666)
        self.life(queue, answer, said, ["strace", "-D", "-o", file, "-e", "trace=" + ",".join(self.CALLS)])
        counts, points, begun = collections.Counter(), [], False
        with open(file) as lines:
            for line in lines:
                call = line.partition("(")[0]
                if call not in self.CALLS:
                    continue
                counts[call] += 1
                begun = begun or 'write(0, "new msg' in line
                if begun and not (call in ("open", "openat") and "O_CREAT" not in line or line.startswith("write(0,")):
                    points.append((call, counts[call]))
        return points

    def everywhere(self, said):
        if os.geteuid() != 0:
            self.skipTest("only root may trace a process that made itself undumpable")
        harness.needs_static("qmail-send")
        points = self.points(said)
        killed = repeated = 0
        for point in points:
            with self.subTest(point):
                died, again = self.one(said, point)
                killed += died
                repeated += again
        self.assertFalse(self.one(said)[0])
        print(f"{self.id().rpartition('.')[2]}: {len(points)} points, {killed} kills, {repeated} with a second copy",
              file=sys.stderr)
        self.assertGreater(killed, len(points) // 2)

    def test_at_every_step_of_a_message_that_ends_at_once(self):
        self.everywhere({A: b"K", X: b"K"})

    def test_at_every_step_of_a_message_with_a_bounce(self):
        self.everywhere({A: b"K", X: b"D"})

    def test_at_every_step_of_a_change_of_way(self):
        self.everywhere({A: b"K", B: b"D", X: b"Z"})


if __name__ == "__main__":
    unittest.main()
