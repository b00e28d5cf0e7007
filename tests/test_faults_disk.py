"""A full disk refuses for now, loses nothing, and leaves nothing behind: small file systems, filled to the brim.

Space is given back page by page (and names one by one), so that each write on the way is once the
first that fails. Every outcome but a refusal is a whole message.
"""

import os
import poplib
import re
import unittest

from tests import harness
from tests.faults import Small, copies, crowd, left, message, nudge, own_mounts, start, wait_arrival, wait_line
from tests.harness import Daemon, Home, free_port, wait_for

SMTP = ("EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<joe@test.example>\r\nDATA\r\n"
        "Subject: x\r\n\r\n" + "x" * 5000 + "\r\n.\r\nQUIT\r\n").encode()
FULL = b"qq write error or disk full (#4.3.0)"
DROP = ["setpriv", "--reuid", str(harness.owner()[1]), "--regid", str(harness.owner()[2]), "--clear-groups"]


def envelope(recipients):
    return b"Fa@b.example\0" + b"".join(b"T" + r.encode() + b"\0" for r in recipients) + b"\0"


class Case(unittest.TestCase):
    def make(self, **more):
        self.home = Home(**more)
        self.addCleanup(self.home.__exit__)
        return self.home

    def small(self, name, **more):
        disk = Small(self.home.file(name), **more)
        self.addCleanup(disk.end)  # after the home has stopped: cleanups run from the last to the first
        self.addCleanup(self.home.stop)
        return disk

    def read(self, name):
        with open(self.home.file(name), "rb") as f:
            return f.read()


class Queue(Case):
    def queue(self, text, recipients, door):
        return self.home.run(["qmail-queue"], env={"QMAILDOOR": door}, fds={0: text, 1: envelope(recipients)}).code

    def whole(self, text, recipients):
        """The one message in the queue is this one; it is removed."""
        names = left(self.home)
        self.assertEqual([n.split("/")[0] for n in names], ["intd", "mess", "todo"])
        self.assertTrue(self.read(f"queue/{names[1]}").endswith(text))
        records = self.read(f"queue/{names[2]}").split(b"\0")
        self.assertEqual([r[1:].decode() for r in records if r.startswith(b"T")], recipients)
        for name in names:
            os.unlink(self.home.file("queue", name))

    @own_mounts
    def test_a_message_is_taken_whole_or_not_at_all_however_much_space_is_left(self):
        self.make()
        disk = self.small("queue")
        text, recipients = message("big", 20000), [f"joe-{n}@test.example" for n in range(500)]
        with Daemon(["qmail-queued"], env=self.home.env, cwd="/"):
            wait_for(lambda: os.path.exists(self.home.file("run/queue")), "the socket")
            for door in ("direct", "socket"):
                codes = []
                for pages in range(14):
                    disk.fill(leave=pages)
                    codes.append(self.queue(text, recipients, door))
                    disk.free()
                    if codes[-1] == 0:
                        self.whole(text, recipients)
                    self.assertEqual(left(self.home), [])
                self.assertEqual(set(codes), {53, 0})
                self.assertEqual(codes, sorted(codes, reverse=True))
                self.assertEqual(codes[0], 53)

    @own_mounts
    def test_a_message_is_taken_whole_or_not_at_all_however_many_names_are_left(self):
        self.make()
        disk = self.small("queue")
        text, recipients = message("small"), ["joe@test.example"]
        with Daemon(["qmail-queued"], env=self.home.env, cwd="/"):
            wait_for(lambda: os.path.exists(self.home.file("run/queue")), "the socket")
            for door in ("direct", "socket"):
                codes = []
                for names in range(5):
                    disk.take_inodes(leave=names)
                    codes.append(self.queue(text, recipients, door))
                    disk.free()
                    if codes[-1] == 0:
                        self.whole(text, recipients)
                    self.assertEqual(left(self.home), [])
                # pid/… first, then mess, intd and todo.
                self.assertEqual(codes, sorted(codes[:-2]) + [0, 0] if codes[-2] == 0 else sorted(codes[:-1]) + [0])
                self.assertLessEqual({63, 66, 0}, set(codes))
                self.assertLessEqual(set(codes), {63, 64, 65, 66, 0})

    @own_mounts
    def test_every_door_says_that_the_disk_is_full(self):
        self.make()
        disk = self.small("queue")
        disk.fill()
        for door in ("direct", "socket"):
            with Daemon(["qmail-queued"], env=self.home.env, cwd="/"):
                wait_for(lambda: self.home.queued_pid(), "qmail-queued")
                env = {"QMAILDOOR": door}
                result = self.home.run(["qmail-inject", "joe"], message("x", 5000), env)
                self.assertEqual((result.code, result.err), (111, b"qmail-inject: fatal: " + FULL + b"\n"))
                result = self.home.run(["qmail-smtpd"], SMTP, env)
                self.assertIn(b"\r\n354 go ahead\r\n451 4.3.0 " + FULL + b"\r\n221 ", result.out)
                self.assertIn(FULL, result.err)
                result = self.home.run(["forward", "joe"], message("x", 5000), {**env, "NEWSENDER": "a@b", "DTLINE": "D: x\n"})
                self.assertEqual((result.code, result.err), (111, b"forward: fatal: " + FULL + b"\n"))
                self.assertEqual(left(self.home), [])

    @own_mounts
    def test_what_was_accepted_waits_for_space_and_is_delivered_once(self):
        self.make()
        disk = self.small("queue")
        for pages in range(3):
            name = f"pages {pages}"
            with self.subTest(name):
                everybody = ["joe@test.example", *crowd(self.home)]
                self.assertEqual(self.home.inject(message(name), "", everybody).code, 0)
                disk.fill(leave=pages)
                start(self.home)
                if pages < 2:
                    wait_line(self.home, r"^warning: trouble writing to (info|local)/\d+/\d+$")
                    self.assertEqual(copies(self.home.messages(), name), [])
                disk.free()
                wait_arrival(self.home, name)
                self.home.stop()

    @own_mounts
    def test_names_that_ran_out_are_waited_for(self):
        self.make()
        disk = self.small("queue")
        for names in range(3):
            name = f"names {names}"
            with self.subTest(name):
                everybody = ["joe@test.example", *crowd(self.home)]
                self.assertEqual(self.home.inject(message(name), "", everybody).code, 0)
                disk.take_inodes(leave=names)
                start(self.home)
                if names < 2:
                    wait_line(self.home, r"^warning: unable to create (info|local)/\d+/\d+$")
                disk.free()
                wait_arrival(self.home, name)
                self.home.stop()

    @own_mounts
    def test_a_message_for_few_is_delivered_without_space(self):
        self.make()
        disk = self.small("queue")
        for full in (disk.fill, disk.take_inodes):
            name = full.__name__
            with self.subTest(name):
                self.assertEqual(self.home.inject(message(name), "", ["joe@test.example"]).code, 0)
                full()
                start(self.home)
                wait_arrival(self.home, name)
                self.home.stop()
                disk.free()

    @own_mounts
    def test_a_deferral_that_finds_no_space_is_written_down_when_there_is_some(self):
        self.make()
        self.home.dotqmail(".qmail-later", "|exit 111\n")
        disk = self.small("queue")
        self.assertEqual(self.home.inject(message("later"), "", ["joe@test.example", "joe-later@test.example"]).code, 0)
        disk.fill()
        start(self.home)
        wait_line(self.home, r"^warning: trouble writing to info/\d+/\d+$")
        disk.free()  # it is tried again by itself, after ten seconds
        wait_for(lambda: not left(self.home, "todo"), "the lists")
        [name] = left(self.home, "local")
        marked = b"Djoe@test.example\0Tjoe-later@test.example\0"
        wait_for(lambda: self.read(f"queue/{name}").startswith(marked + b"Q. "), "the marks")
        self.assertEqual(len(copies(self.home.messages(), "later")), 1)

    @own_mounts
    def test_a_bounce_that_finds_no_space_is_neither_lost_nor_written_twice(self):
        self.make(users={"joe": "secret", "ann": "x"})
        self.home.dotqmail(".qmail-hard", "|until [ -e go ]; do sleep 0.01; done; echo no such luck; exit 100\n")
        disk = self.small("queue")
        start(self.home)
        self.home.inject(message("hard"), "ann@test.example", ["joe-hard@test.example"])
        wait_line(self.home, r"to local joe-hard@test.example$")
        disk.fill()
        self.home.write("home/joe/go", "")
        wait_line(self.home, r"^alert: unable to append to bounce message; HELP! sleeping...$")
        # Now for the paragraph, but not for the bounce. It is tried again by itself, after ten seconds.
        disk.fill(leave=1)
        wait_line(self.home, r"^warning: trouble injecting bounce message, will try later$")
        self.assertEqual(self.home.messages("ann"), [])
        disk.free()
        self.home.stop()  # and the start stands for the 123 seconds
        start(self.home)
        wait_for(lambda: nudge(self.home) or self.home.messages("ann") and not left(self.home), "the bounce")
        [bounce] = self.home.messages("ann")
        self.assertEqual(bounce.count(b"<joe-hard@test.example>:\nno such luck\n"), 1)
        self.assertTrue(bounce.endswith(b"\nend hard\n"))

    @own_mounts
    def test_a_log_that_takes_nothing_stops_no_mail(self):
        self.make()
        os.mkdir(self.home.file("logs"))
        disk = self.small("logs")
        disk.fill()
        self.home.daemon = Daemon([self.home.file("bin/qmail-start"), "./Maildir/"], self.home.env, "/",
                                  logfile=self.home.file("logs/log"))
        self.home.inject(message("unlogged"), "a@b.example", ["joe@test.example"])
        wait_for(lambda: copies(self.home.messages(), "unlogged") and not left(self.home), "the message")
        self.assertEqual(os.path.getsize(self.home.file("logs/log")), 0)
        disk.free()
        self.home.inject(message("logged"), "a@b.example", ["joe@test.example"])
        wait_for(lambda: copies(self.home.messages(), "logged") and not left(self.home), "the message")
        self.assertRegex(self.read("logs/log").decode(), r"(?m)^delivery \d+: success: did_1\+0\+0/$")


class Mailboxes(Case):
    def local(self, extension, text):
        argv = [*DROP, harness.program("qmail-local"), "--", "joe", self.home.file("home/joe"), "joe" + extension,
                extension and "-", extension[1:], "test.example", "a@b.example", "./Maildir/"]
        with open(os.path.join(self.home.base, "message"), "wb+") as f:
            f.write(text)
            f.seek(0)
            return self.home.run(argv, fds={0: f.fileno()})

    @own_mounts
    def test_a_maildir_gets_the_whole_message_or_nothing(self):
        self.make()
        disk = self.small("home/joe/Maildir")
        new, tmp = self.home.file("home/joe/Maildir/new"), self.home.file("home/joe/Maildir/tmp")
        codes = {}
        for kind, many in (("pages", 8), ("names", 4)):
            for count in range(many):
                name = f"{kind} {count}"
                disk.fill(count) if kind == "pages" else disk.take_inodes(count)
                result = self.local("", message(name, 20000))
                disk.free()
                codes.setdefault(kind, []).append(result.code)
                if result.code:
                    self.assertEqual((result.code, result.err), (111, b"Temporary error on maildir delivery. (#4.3.0)\n"))
                else:
                    self.assertEqual(len(copies(self.home.messages(), name)), 1)
                    os.unlink(os.path.join(new, os.listdir(new)[0]))
                self.assertEqual((os.listdir(new), os.listdir(tmp)), ([], []))
            self.assertEqual(codes[kind], sorted(codes[kind], reverse=True))
            self.assertEqual(set(codes[kind]), {111, 0})

    @own_mounts
    def test_an_mbox_gets_the_whole_message_or_stays_as_it_was(self):
        self.make()
        os.mkdir(self.home.file("home/joe/boxes"))
        os.chown(self.home.file("home/joe/boxes"), *harness.owner()[1:])
        self.home.dotqmail(".qmail-box", "./boxes/joe\n")
        disk = self.small("home/joe/boxes")
        for before in (b"", b"From x@y Thu Jan  1 00:00:00 1970\n\n" + b"kept\n" * 1500 + b"\n"):
            codes = []
            for pages in range(8):
                self.home.write("home/joe/boxes/joe", before, 0o600)
                disk.fill(leave=pages)
                result = self.local("-box", message("box", 20000))
                disk.free()
                codes.append(result.code)
                after = self.read("home/joe/boxes/joe")
                self.assertTrue(after.startswith(before))
                if result.code:
                    self.assertRegex(result.err, rb"\AUnable to write ./boxes/joe: .*\. \(#4.3.0\)\n\Z")
                    self.assertEqual(after, before)
                else:
                    self.assertEqual(len(re.findall(rb"(?m)^From ", after)), 1 + bool(before))
                    self.assertTrue(after.endswith(b"\nend box\n\n"))
            self.assertEqual(codes, sorted(codes, reverse=True))
            self.assertEqual(set(codes), {111, 0})

    @own_mounts
    def test_the_system_delivers_once_there_is_space(self):
        self.make()
        self.home.dotqmail(".qmail-both", "./Maildir/\n./boxes/joe\n")
        os.mkdir(self.home.file("home/joe/boxes"))
        os.chown(self.home.file("home/joe/boxes"), *harness.owner()[1:])
        maildir, boxes = self.small("home/joe/Maildir"), self.small("home/joe/boxes")
        start(self.home)
        maildir.fill()
        self.home.inject(message("maildir"), "a@b.example", ["joe@test.example"])
        wait_line(self.home, r"^delivery \d+: deferral: Temporary_error_on_maildir_delivery._\(#4.3.0\)/$")
        maildir.free()
        wait_arrival(self.home, "maildir")
        boxes.fill()
        self.home.dotqmail(".qmail-box", "./boxes/joe\n")
        self.home.inject(message("mbox"), "a@b.example", ["joe-box@test.example"])
        wait_line(self.home, r"^delivery \d+: deferral: Unable_to_write_./boxes/joe:_")
        self.assertEqual(self.read("home/joe/boxes/joe"), b"")
        boxes.free()
        wait_for(lambda: nudge(self.home) or not left(self.home), "the delivery")
        self.assertEqual(self.read("home/joe/boxes/joe").count(b"\nSubject: mbox\n"), 1)

    @own_mounts
    def test_a_full_mailbox_can_be_read_and_emptied_by_pop3(self):
        self.make()
        for n in (1, 2):
            self.home.write(f"home/joe/Maildir/new/{n}.mail", message(f"mine {n}"), 0o600)
            os.utime(self.home.file(f"home/joe/Maildir/new/{n}.mail"), (1, 1))
        disk = self.small("home/joe/Maildir")
        disk.fill()
        disk.take_inodes()
        port = free_port()
        with Daemon(["tcpserver", *harness.as_owner(), "-v", "-H", "-R", "-l", "0", "127.0.0.1", str(port), "qmail-popup", "h", "checkpassword-file",
                     self.home.file("users/passwd"), "qmail-pop3d", "Maildir"], self.home.env) as server:
            server.wait_log("status: 0/")
            client = poplib.POP3("127.0.0.1", port, timeout=harness.TIMEOUT)
            client.user("joe")
            client.pass_("secret")
            self.assertEqual(b"\n".join(client.retr(2)[1]) + b"\n", message("mine 2"))
            client.dele(2)
            client.quit()
        self.assertEqual(len(self.home.messages()), 1)
        self.assertEqual(len(copies(self.home.messages(), "mine 1")), 1)


class Databases(Case):
    @own_mounts
    def test_a_database_that_finds_no_space_leaves_the_old_one(self):
        self.make()
        self.home.control("morercpthosts", "".join(f"d{n}.example\n" for n in range(500)))
        with open(self.home.file("users/assign"), "a+") as f:
            f.seek(0)
            text = f.read()
            f.truncate(0)
            f.write("".join(f"=u{n}:u{n}:1:1:/nowhere:::\n" for n in range(300)) + text)
        self.assertEqual(self.home.run(["qmail-newmrh"]).code, 0)
        for directory, database, argv, stdin in (
                ("users", "users/cdb", ["qmail-newu"], b""),
                ("control", "control/morercpthosts.cdb", ["qmail-newmrh"], b""),
                ("tcp", "tcp/smtp.cdb", ["tcprules", "tcp/smtp.cdb", "tcp/smtp.tmp"],
                 b"".join(b"10.%d.%d.:allow,X=\"1\"\n" % divmod(n, 250) for n in range(900)))):
            with self.subTest(database):
                disk = self.small(directory)
                before = self.read(database)
                codes = []
                for pages in (0, 1, 2, 4, 64):
                    disk.fill(leave=pages)
                    result = self.home.run(DROP + [harness.program(argv[0])] + argv[1:], stdin, cwd=self.home.path)
                    disk.free()
                    codes.append(result.code)
                    if result.code:
                        self.assertRegex(result.err, rb"unable to write (to )?\S+[.]tmp: .*\n\Z")
                        self.assertEqual(self.read(database), before)
                self.assertEqual(codes, [111] * 4 + [0])

    @own_mounts
    def test_the_door_opens_when_there_is_space_for_it(self):
        self.make()
        disk = self.small("run")
        for full in (disk.fill, disk.take_inodes):
            full()
            result = self.home.run(["qmail-queued"])
            self.assertEqual(result.code, 111)
            self.assertIn(b"run/queue", result.err)
            disk.free()
        with Daemon(["qmail-queued"], env=self.home.env, cwd="/"):
            wait_for(lambda: os.path.exists(self.home.file("run/queue")), "the socket")
            result = self.home.run(["qmail-inject", "joe"], message("x"), {"QMAILDOOR": "socket"})
            self.assertEqual(result.code, 0)


if __name__ == "__main__":
    unittest.main()
