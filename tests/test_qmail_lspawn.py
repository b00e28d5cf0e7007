"""qmail-lspawn from outside: requests on fd 0, reports on fd 1, a fake qmail-local in between."""

import os
import signal
import subprocess
import unittest

from tests import harness, spawners, tinycdb
from tests.spawners import request, reports


class InAnOwnHome(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.home = harness.Home()

    @classmethod
    def tearDownClass(cls):
        cls.home.__exit__()

    def setUp(self):
        self.fakes = spawners.Fakes()
        self.addCleanup(self.fakes.remove)
        self.message = spawners.put_message(self.home, 457)
        uid, gid = harness.owner()[1:]
        place = self.home.file("home/joe")
        data = f"joe\0{uid}\0{gid}\0{place}\0".encode()
        self.cdb([(b"!joe\0", data + b"\0"), (b"!joe-", data + b"-\0"), (b"", b"-")])

    def cdb(self, records):
        self.home.write("users/cdb", tinycdb.make(records))

    def lspawn(self, *requests, default="./Mailbox"):
        spawners.forget(self.home)
        result = harness.run(["qmail-lspawn", default], b"".join(requests), self.fakes.env(self.home.env))
        self.assertEqual((result.code, result.err), (0, b""))
        self.assertEqual(result.out[0], spawners.SLOT_LIMIT)
        return reports(result.out)

    def to(self, recipient, slot=3, path=None, sender="s@h"):
        return request(slot, self.message if path is None else path, sender, recipient)

    def start(self, fresh=True):
        if fresh:
            spawners.forget(self.home)
        process = subprocess.Popen([harness.program("qmail-lspawn"), "./Mailbox"], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, env=self.fakes.env(self.home.env), bufsize=0)

        def end():
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        self.addCleanup(end)
        return process

    def test_without_requests_it_says_its_limit_and_ends(self):
        self.assertEqual(self.lspawn(), {})

    def test_without_an_argument_it_is_a_usage_error(self):
        result = harness.run(["qmail-lspawn"], env=self.home.env)
        self.assertEqual((result.code, result.out), (100, b""))
        self.assertIn(b"usage: qmail-lspawn defaultdelivery", result.err)

    def test_a_home_without_a_queue_is_temporary(self):
        result = harness.run(["qmail-lspawn", "x"], env={**self.home.env, "QMAIL_HOME": "/nonexistent"})
        self.assertEqual(result.code, 111)
        self.assertIn(b"/nonexistent", result.err)

    def test_qmail_local_gets_its_arguments_the_message_and_the_home(self):
        self.fakes.script("qmail-local", 'pwd; echo "$0"; for a; do echo "[$a]"; done; cat')
        found = self.lspawn(self.to("Joe-Ext-a@b@Host.example", sender="x y@z"), default="./Maildir/")
        place = self.home.file("home/joe")
        self.assertEqual(found[3].split(b"\n")[:2], [b"K" + self.home.path.encode(), self.fakes.file("qmail-local").encode()])
        arguments = f"[--]\n[joe]\n[{place}]\n[Joe-Ext-a@b]\n[-]\n[Ext-a@b]\n[Host.example]\n[x y@z]\n[./Maildir/]\n"
        self.assertTrue(found[3].endswith(arguments.encode() + b"Subject: x\n\nbody\n"), found[3])

    def test_its_report_is_what_it_says_on_both_descriptors(self):
        self.fakes.script("qmail-local", "echo one; echo two >&2; exit 111")
        self.assertEqual(self.lspawn(self.to("joe@h")), {3: b"Zone\ntwo\n"})

    def test_nothing_but_the_message_and_the_report_is_open(self):
        self.fakes.script("qmail-local", "for n in 0 1 2 3 4 5 6 7 8 9; do [ ! -e /proc/$$/fd/$n ] || echo $n; done")
        self.assertEqual(self.lspawn(self.to("joe@h")), {3: b"K0\n1\n2\n"})

    def test_every_exit_code_has_its_report(self):
        self.fakes.script("qmail-local", 'echo said; [ "$6" = crash ] && kill -9 $$; exit "$6"')
        fixed = {112: "Internal qmail-lspawn bug.", 113: "Not allowed to perform deliveries as root.",
                 115: "NFS failure in qmail-local.", 116: "Unable to find alias user!",
                 117: "Trouble reading users/cdb in qmail-lspawn.", 118: "Temporary failure in qmail-lspawn.",
                 119: "Out of memory in qmail-lspawn.", 120: "Unable to run qmail-local.",
                 121: "Unable to run qmail-getpw.", 126: "Unable to run qmail-local."}
        codes = [0, 100, 111, 71, 74, 75, *fixed, 1, 64, 77, 99, 101, 110, 122, 127, 255]
        found = self.lspawn(*[self.to(f"joe-{code}@h", slot) for slot, code in enumerate(codes)],
                            self.to("joe-crash@h", 119))
        for slot, code in enumerate(codes):
            letter = {0: "K", 100: "D"}.get(code, "Z")
            text = fixed.get(code, "said")
            self.assertEqual(found[slot], f"{letter}{text}\n".encode(), f"exit code {code}")
        self.assertEqual(found[119], b"Zqmail-local crashed.\n")

    def test_a_program_that_cannot_be_run_is_temporary(self):
        with open(self.fakes.script("qmail-local", ""), "w") as f:
            f.write("#!/nonexistent/interpreter\n")
        self.assertEqual(self.lspawn(self.to("joe@h")), {3: b"ZUnable to run qmail-local.\n"})

    def test_a_long_report_is_cut_and_one_with_a_nul_ends_there(self):
        self.fakes.script("qmail-local", 'case "$6" in long) head -c 100000 /dev/zero | tr "\\0" x;; *) printf "a\\0b";; esac')
        found = self.lspawn(self.to("joe-long@h", 1), self.to("joe-nul@h", 2))
        self.assertTrue(found[1].endswith(b"x\nError report too long, sorry.\n"))
        self.assertLess(len(found[1]), 3001)
        self.assertEqual(found[2], b"Ka")

    def test_bad_requests_are_answered_and_start_nothing(self):
        self.fakes.script("qmail-local", "touch $FAKES/ran")
        bad = [
            (self.to("joe@h", 120), 120, b"ZInternal error: delnum too big. (#4.3.5)\n"),
            (self.to("joe@h", 255), 255, b"ZInternal error: delnum too big. (#4.3.5)\n"),
            (self.to("joe@h", path="1/x"), 3, b"DInternal error: messid has nonnumerics. (#5.3.5)\n"),
            (self.to("joe@h", path="../../etc/passwd"), 3, b"DInternal error: messid has nonnumerics. (#5.3.5)\n"),
            (self.to("joe@h", path="/1"), 3, b"DInternal error: messid has nonnumerics. (#5.3.5)\n"),
            (self.to("joe@h", path="1" * 100), 3, b"DInternal error: messid too long. (#5.3.5)\n"),
            (self.to("joe@h", path=""), 3, b"DInternal error: messid too short. (#5.3.5)\n"),
            (self.to("joe"), 3, b"DSorry, address must include host name. (#5.1.3)\n"),
            (self.to("joe@h", path="7/7"), 3, b"Zqmail-spawn unable to open message. (#4.3.0)\n"),
            (self.to("joe@h", path="7/"), 3, b"ZSorry, message has wrong type. (#4.3.5)\n"),
            (self.to("joe@h", sender="x" * 20000), 3, b"Zqmail-spawn out of memory. (#4.3.0)\n"),
        ]
        for sent, slot, wanted in bad:
            with self.subTest(wanted):
                self.assertEqual(self.lspawn(sent), {slot: wanted})
        self.assertFalse(os.path.exists(self.fakes.file("ran")))

    def test_a_slot_at_work_is_in_use(self):
        gate = self.fakes.fifo("gate")
        self.fakes.script("qmail-local", f"cat {gate}")
        process = self.start()
        process.stdin.write(self.to("joe@h") + self.to("joe@h"))
        wanted = bytes([120, 3]) + b"ZInternal error: delnum in use. (#4.3.5)\n\0"
        self.assertEqual(self.read(process, len(wanted)), wanted)
        with open(gate, "w"):
            pass
        self.assertEqual(self.read(process, 3), b"\x03K\0")

    def read(self, process, n):
        got = b""
        while len(got) < n and (more := os.read(process.stdout.fileno(), n - len(got))):
            got += more
        return got

    @unittest.skipUnless(os.geteuid() == 0, "only root can make a file that belongs to somebody else")
    def test_a_message_of_another_owner_is_refused(self):
        os.chown(self.home.file("queue/mess", self.message), 12345, 12345)
        self.assertEqual(self.lspawn(self.to("joe@h")), {3: b"ZSorry, message has wrong owner. (#4.3.5)\n"})

    def test_an_empty_local_part_is_success_without_work(self):
        self.fakes.script("qmail-local", "touch $FAKES/ran")
        self.assertEqual(self.lspawn(self.to("@h")), {3: b"K"})
        self.assertFalse(os.path.exists(self.fakes.file("ran")))

    def test_a_delivery_ends_when_nobody_holds_its_output(self):
        gate = self.fakes.fifo("gate")
        self.fakes.script("qmail-local", f'echo done; [ "$6" = slow ] && {{ (cat {gate}) & }}; exit 0')
        process = self.start()
        process.stdin.write(self.to("joe-slow@h", 1))
        process.stdin.write(self.to("joe@h", 2))
        self.assertEqual(self.read(process, 9), bytes([120, 2]) + b"Kdone\n\0")
        process.stdin.close()
        with open(gate, "w") as f:
            f.write("late\n")
        self.assertEqual(self.read(process, 100), b"\x01Kdone\nlate\n\0")
        self.assertEqual(process.wait(harness.TIMEOUT), 0)

    def test_a_reader_that_does_not_read_holds_up_no_delivery(self):
        self.fakes.script("qmail-local", 'head -c 2900 /dev/zero | tr "\\0" x; touch $FAKES/ran-$6')
        process = self.start()
        count = spawners.SLOT_LIMIT
        for slot in range(count):
            process.stdin.write(self.to(f"joe-{slot}@h", slot))
        harness.wait_for(lambda: len([n for n in os.listdir(self.fakes.path) if n.startswith("ran-")]) == count,
                         "all deliveries to run while nobody reads reports")
        process.stdin.close()
        found = reports(process.stdout.read())
        self.assertEqual(found, {slot: b"K" + b"x" * 2900 for slot in range(count)})

    def test_without_a_reader_what_runs_is_finished_and_nothing_new_begun(self):
        gate = self.fakes.fifo("gate")
        self.fakes.script("qmail-local", f'touch $FAKES/ran-$6; cat {gate}; touch $FAKES/finished-$6')
        process = self.start()
        process.stdin.write(self.to("joe-1@h", 1))
        harness.wait_for(lambda: os.path.exists(self.fakes.file("ran-1")), "the delivery to run")
        process.stdout.close()
        process.stdin.write(self.to("joe-2@h", 2))
        with open(gate, "w"):
            pass
        harness.wait_for(lambda: os.path.exists(self.fakes.file("finished-1")), "the delivery to be finished")
        process.stdin.close()
        self.assertEqual(process.wait(harness.TIMEOUT), 0)
        self.assertFalse(os.path.exists(self.fakes.file("ran-2")))

    # -- what the next one knows

    KEPT = 'echo $6 >>$FAKES/ran; until [ -e $FAKES/go ]; do sleep 0.01; done; [ "$6" != fails ]'
    BEFORE = b"Kdelivered before a restart\n"

    def test_what_succeeded_although_the_spawner_was_killed_is_not_done_again(self):
        self.fakes.script("qmail-local", self.KEPT)
        first = self.start()
        first.stdin.write(self.to("joe-works@h", 0) + self.to("joe-fails@h", 1))
        harness.wait_for(lambda: len(self.ran()) == 2, "the deliveries to run")
        first.kill()
        first.wait()
        second = self.start(fresh=False)  # it waits for those at work
        sent = (self.to("joe-works@h", 0) + self.to("joe-fails@h", 1) + self.to("joe-new@h", 2)
                + self.to("joe-works@h", 3, sender="t@h"))
        second.stdin.write(sent)
        harness.wait_for(lambda: len(self.ran()) == 4, "what is new to run")
        self.assertEqual(sorted(self.ran()), ["fails", "new", "works", "works"])
        with open(self.fakes.file("go"), "w"):
            pass
        second.stdin.close()
        self.assertEqual(reports(second.stdout.read()), {0: self.BEFORE, 1: b"Z", 2: b"K", 3: b"K"})
        self.assertEqual(sorted(self.ran()), ["fails", "fails", "new", "works", "works"])
        third = self.start(fresh=False)
        third.stdin.write(sent)
        third.stdin.close()
        self.assertEqual(reports(third.stdout.read()), {0: self.BEFORE, 1: b"Z", 2: self.BEFORE, 3: self.BEFORE})
        self.assertEqual(sorted(self.ran()), ["fails", "fails", "fails", "new", "works", "works"])

    def test_another_message_of_the_number_is_delivered(self):
        self.fakes.script("qmail-local", "echo $6 >>$FAKES/ran; cat >/dev/null")
        self.assertEqual(self.lspawn(self.to("joe@h")), {3: b"K"})
        path = self.home.file("queue/mess", self.message)
        with open(path, "rb") as f:
            text = f.read()
        with open(path, "wb") as f:  # the same bytes: what differs is when it was written
            f.write(text)
        process = self.start(fresh=False)
        process.stdin.write(self.to("joe@h"))
        process.stdin.close()
        self.assertEqual(reports(process.stdout.read()), {3: b"K"})

    def test_a_damaged_or_missing_ledger_is_as_good_as_none(self):
        self.fakes.script("qmail-local", "cat >/dev/null")
        name = self.home.file("queue/lock/ledger.local")
        for damage in (lambda: os.unlink(name), lambda: os.truncate(name, 63), lambda: os.rename(name, name + "~"),
                       lambda: (os.unlink(name), os.mkdir(name)), lambda: (os.rmdir(name), os.symlink("x", name))):
            self.assertEqual(self.lspawn(self.to("joe@h")), {3: b"K"})
            damage()
            process = self.start(fresh=False)
            process.stdin.write(self.to("joe@h"))
            process.stdin.close()
            self.assertEqual(reports(process.stdout.read()), {3: b"K"})
        self.assertFalse(os.path.exists(self.home.file("queue/lock/x")))
        os.unlink(name)

    def test_who_is_to_become_qmail_local_ends_with_the_process_beside_it(self):
        self.fakes.script("qmail-local", "echo $6 >>$FAKES/ran")
        self.getpw('touch $FAKES/asked; until [ -e $FAKES/go ] || [ ! -e $FAKES/asked ]; do sleep 0.01; done\n'
                   'printf "%s\\0" user 1 2 /home "" ""')
        process = self.start()
        process.stdin.write(self.to("other@h"))
        harness.wait_for(lambda: os.path.exists(self.fakes.file("asked")), "the question")
        beside, = spawners.children_of(process.pid)
        becoming, = spawners.children_of(beside)
        os.kill(beside, signal.SIGKILL)
        harness.wait_for(lambda: not spawners.lives(becoming), "who asked to end, without an answer")
        self.fakes.script("go", "")
        process.stdin.close()
        self.assertEqual(reports(process.stdout.read())[3][:1], b"Z")
        self.assertEqual(self.ran(), [])

    def ran(self):
        try:
            with open(self.fakes.file("ran")) as f:
                return f.read().split()
        except FileNotFoundError:
            return []

    # -- whose mail it is

    def getpw(self, text):
        self.fakes.script("qmail-getpw", text)

    def test_who_is_not_in_users_cdb_is_asked_of_qmail_getpw(self):
        self.fakes.script("qmail-local", 'echo "$2 $3 $5 $6"')
        self.getpw('printf "%s\\0" "user of $1" 1 2 /home dash- "ext $1"')
        self.assertEqual(self.lspawn(self.to("Other@h")), {3: b"Kuser of Other /home dash- ext Other\n"})
        os.unlink(self.home.file("users/cdb"))
        self.assertEqual(self.lspawn(self.to("joe@h")), {3: b"Kuser of joe /home dash- ext joe\n"})

    def test_qmail_getpw_has_something_at_0_and_its_answer_and_report_only(self):
        self.fakes.script("qmail-local", 'echo "$2"')
        self.getpw('for n in 0 1 2 3 4 5 6 7 8 9; do [ ! -e /proc/$$/fd/$n ] || open="$open $n"; done\n'
                   'printf "%s\\0" "$(readlink /proc/$$/fd/0)$open" 1 2 /home "" ""')
        self.assertEqual(self.lspawn(self.to("other@h")), {3: b"K/dev/null 0 1 2\n"})

    def test_troubles_of_qmail_getpw_are_temporary(self):
        self.fakes.script("qmail-local", "touch $FAKES/ran")
        for text, wanted in [("exit 116", b"ZUnable to find alias user!\n"),
                             ("exit 115", b"ZNFS failure in qmail-local.\n"),
                             ("kill -9 $$", b"ZTemporary failure in qmail-lspawn.\n"),
                             ("exit 0", b"ZTemporary failure in qmail-lspawn.\n"),
                             ("printf 'a\\0b\\0'", b"ZTemporary failure in qmail-lspawn.\n"),
                             ("exec head -c 1000000 /dev/zero", b"ZTemporary failure in qmail-lspawn.\n")]:
            self.getpw(text)
            with self.subTest(text):
                self.assertEqual(self.lspawn(self.to("other@h")), {3: wanted})
        with open(self.fakes.file("qmail-getpw"), "w") as f:
            f.write("#!/nonexistent\n")
        self.assertEqual(self.lspawn(self.to("other@h")), {3: b"ZUnable to run qmail-getpw.\n"})
        self.assertFalse(os.path.exists(self.fakes.file("ran")))

    def test_a_damaged_users_cdb_is_temporary(self):
        self.fakes.script("qmail-local", "touch $FAKES/ran")
        for damage in [b"", b"short", tinycdb.make([(b"!joe\0", b"x")]), tinycdb.make([(b"!joe\0", b"x"), (b"", b"")])]:
            self.home.write("users/cdb", damage)
            self.assertEqual(self.lspawn(self.to("joe@h")), {3: b"ZTrouble reading users/cdb in qmail-lspawn.\n"})
        self.assertFalse(os.path.exists(self.fakes.file("ran")))

    def test_uid_and_gid_of_users_assign_do_not_count(self):
        self.cdb([(b"!joe\0", b"joe\x000\x000\0/\0\0"), (b"", b"")])
        self.fakes.script("qmail-local", "id -u")
        self.assertEqual(self.lspawn(self.to("joe@h")), {3: b"K%d\n" % harness.owner()[1]})


@unittest.skipUnless(os.geteuid() == 0, "a system home needs root")
class InASystemHome(unittest.TestCase):
    def setUp(self):
        self.home = spawners.SystemHome()
        self.addCleanup(self.home.remove)
        self.fakes = spawners.Fakes()
        self.addCleanup(self.fakes.remove)
        self.message = spawners.put_message(self.home, 457)
        self.fakes.script("qmail-local", 'echo "$2 $(id -u) $(id -g) $(id -G)"')

    def lspawn(self, recipient):
        result = harness.run(["qmail-lspawn", "./Mailbox"], request(3, self.message, "s@h", recipient),
                             self.fakes.env(self.home.env))
        self.assertEqual((result.code, result.err), (0, b""))
        return reports(result.out)

    def test_qmail_local_runs_as_the_recipient_with_exactly_its_group(self):
        self.home.write("users/cdb", tinycdb.make([(b"!joe\0", b"joe\x0012345\x0023456\0/\0\0"), (b"", b"")]))
        self.assertEqual(self.lspawn("joe@h"), {3: b"Kjoe 12345 23456 23456\n"})

    def test_root_gets_no_mail(self):
        self.home.write("users/cdb", tinycdb.make([(b"!joe\0", b"joe\x000\x0023456\0/\0\0"), (b"", b"")]))
        self.assertEqual(self.lspawn("joe@h"), {3: b"ZNot allowed to perform deliveries as root.\n"})

    def test_qmail_getpw_runs_as_qmailp(self):
        self.fakes.script("qmail-getpw", 'printf "%s\\0" "$(id -u).$(id -g).$(id -G)" 12345 23456 / "" ""')
        self.assertEqual(self.lspawn("joe@h"), {3: b"K7793.2108.2108 12345 23456 23456\n"})

    def test_a_home_that_others_can_write_is_refused(self):
        os.chmod(self.home.file("users"), 0o777)
        result = harness.run(["qmail-lspawn", "./Mailbox"], env=self.home.env)
        self.assertEqual((result.code, result.out), (111, b""))
        self.assertIn(b"/users: everybody can write it: run scripts/mkhome --system ", result.err)


if __name__ == "__main__":
    unittest.main()
