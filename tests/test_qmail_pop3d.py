"""qmail-pop3d from outside: a Maildir as a POP3 client sees it, and what other programs do to it meanwhile."""

import os
import poplib
import re
import shutil
import socket
import subprocess
import time
import unittest

from tests import harness
from tests.harness import Line, dialogue

UID, GID = harness.owner()[1:]
# qmail-pop3d does not run as root: a test run by root puts this before it.
DROP = ["setpriv", "--reuid", str(UID), "--regid", str(GID), "--clear-groups"] if os.geteuid() == 0 else []


class Maildir(unittest.TestCase):
    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        self.maildir = os.path.join(self.base, "Maildir")
        for d in ("", "tmp", "new", "cur"):
            self.own(os.mkdir, os.path.join(self.maildir, d))

    def own(self, make, path):
        make(path)
        os.chown(path, UID, GID)

    def file(self, *names):
        return os.path.join(self.maildir, *names)

    def put(self, name, content=b"Subject: x\n\nbody\n", age=1000):
        with open(self.file(name), "wb") as f:
            f.write(content)
        os.chown(self.file(name), UID, GID)
        then = time.time() - age
        os.utime(self.file(name), (then, then))

    def names(self, directory):
        return sorted(os.listdir(self.file(directory)))

    def open(self):
        line = Line.start([*DROP, harness.program("qmail-pop3d"), "Maildir"], cwd=self.base)
        self.addCleanup(line.close)
        return line

    def play(self, text):
        """A whole session from the greeting to QUIT and its answer."""
        line = self.open()
        got = dialogue(line, "S: +OK ...\n" + text + "\nC: QUIT\nS: +OK ...")
        self.end(line)
        return got

    def end(self, line):
        result = line.finish()
        self.assertEqual((result.code, result.out, result.err), (0, b"", b""))


class Commands(Maildir):
    def test_a_session(self):
        self.put("new/1700000001.1.h", b"Subject: one\n\nbody\n.\n..dots\nlast")
        self.put("cur/1700000002.2.h:2,S", b"Subject: two\n\n")
        self.play("""
            C: STAT
            S: +OK 2 46
            C: LIST
            S: +OK ...
            S: 1 32
            S: 2 14
            S: .
            C: LIST 2
            S: +OK 2 14
            C: UIDL
            S: +OK ...
            S: 1 1700000001.1.h
            S: 2 1700000002.2.h
            S: .
            C: uidl 1
            S: +OK 1 1700000001.1.h
            C: RETR 1
            S: +OK ...
            S: Subject: one
            S: ...
            S: body
            S: ..
            S: ...dots
            S: last
            S: .
            C: RETR 2
            S: +OK ...
            S: Subject: two
            S: ...
            S: .
            C: NOOP
            S: +OK ...
            C: LAST
            S: +OK 0
            C: DELE 1
            S: +OK ...
            C: LAST
            S: +OK 1
            C: STAT
            S: +OK 1 14
            C: LIST
            S: +OK ...
            S: 2 14
            S: .
            C: UIDL
            S: +OK ...
            S: 2 1700000002.2.h
            S: .
            C: RSET
            S: +OK ...
            C: LAST
            S: +OK 0
            C: STAT
            S: +OK 2 46
        """)
        self.assertEqual(self.names("new"), [])
        self.assertEqual(self.names("cur"), ["1700000001.1.h:2,", "1700000002.2.h:2,S"])

    def test_top(self):
        self.put("new/1700000001.1.h", b"A: b\nC: d\n\none\n.two\nthree\n")
        self.play("""
            C: TOP 1 0
            S: +OK ...
            S: A: b
            S: C: d
            S:
            S: .
            C: TOP 1 2
            S: +OK ...
            S: A: b
            S: C: d
            S:
            S: one
            S: ..two
            S: .
            C: TOP 1 99999999999999999999999
            S: +OK ...
            S: A: b
            S: C: d
            S:
            S: one
            S: ..two
            S: three
            S: .
        """)

    def test_the_bytes_of_an_answer(self):
        self.put("new/1700000001.1.h", b"A: b\r\n\r\n.\r\nc\n\0\r\rd\r")
        line = self.open()
        self.assertEqual(line.reader.readline(), b"+OK \r\n")
        line.send("RETR 1\r\n")
        wanted = b"+OK \r\nA: b\r\n\r\n..\r\nc\r\n\0\r\rd\r\n.\r\n"
        self.assertEqual(line.reader.read(len(wanted)), wanted)
        self.end(line)

    def test_odd_messages(self):
        self.put("new/1700000001.1.h", b"")
        self.put("new/1700000002.1.h", b".\n.\n.")
        self.put("new/1700000003.1.h", b"\n")
        self.put("new/1700000004.1.h", b"x" * 3_000_000)
        line = self.open()
        line.send("RETR 1\r\nRETR 2\r\nTOP 3 5\r\nRETR 4\r\nQUIT\r\n")
        wanted = (b"+OK \r\n" b"+OK \r\n.\r\n" b"+OK \r\n..\r\n..\r\n..\r\n.\r\n" b"+OK \r\n\r\n.\r\n"
                  b"+OK \r\n" + b"x" * 3_000_000 + b"\r\n.\r\n" b"+OK \r\n")
        self.assertEqual(line.reader.read(), wanted)
        self.end(line)

    def test_numbers_are_read_to_their_end(self):
        for number in (1, 2):
            self.put(f"new/170000000{number}.1.h")
        wrong = ["", "1a", "a", "+1", "-1", "1 2", "0x1", "1.0"]
        text = ""
        for verb in ("DELE", "RETR"):
            text += "".join(f"C: {verb} {n}\nS: -ERR syntax error\n" for n in wrong)
            for n in ("3", "18446744073709551617", "4294967297", "99999999999999999999999999"):
                text += f"C: {verb} {n}\nS: -ERR not that many messages\n"
            for n in ("0", "00"):
                text += f"C: {verb} {n}\nS: -ERR messages are counted from 1\n"
        text += "C: TOP 1\nS: -ERR syntax error\nC: TOP 1 x\nS: -ERR syntax error\nC: TOP\nS: -ERR syntax error\n"
        text += "C: LIST 1 2\nS: -ERR syntax error\nC: STAT\nS: +OK 2 34"
        self.play(text)
        self.assertEqual(len(self.names("cur")), 2)

    def test_what_is_deleted_is_not_there_any_more(self):
        self.put("new/1700000001.1.h")
        self.play("""
            C: DELE 1
            S: +OK ...
            C: DELE 1
            S: -ERR already deleted
            C: RETR 1
            S: -ERR already deleted
            C: TOP 1 1
            S: -ERR already deleted
            C: LIST 1
            S: -ERR already deleted
            C: UIDL 1
            S: -ERR already deleted
            C: LIST
            S: +OK ...
            S: .
        """)
        self.assertEqual(self.names("new") + self.names("cur"), [])

    def test_capabilities_and_the_unknown(self):
        self.play("""
            C: CAPA
            S: +OK ...
            S: USER
            S: TOP
            S: UIDL
            S: PIPELINING
            S: RESP-CODES
            S: AUTH-RESP-CODE
            S: IMPLEMENTATION qmail-rs
            S: .
            C: XTND XMIT
            S: -ERR unimplemented
            C: USER joe
            S: -ERR unimplemented
            C:
            S: -ERR unimplemented
        """)

    def test_a_line_without_end_takes_no_memory(self):
        line = self.open()
        line.expect("+OK ...")
        line.send(b"x" * 1_000_000 + b"\r\nNOOP\r\n")
        line.expect("-ERR line too long")
        line.expect("+OK ...")
        with open(f"/proc/{line.process.pid}/status") as f:
            peak = next(int(row.split()[1]) for row in f if row.startswith("VmHWM"))
        self.assertLess(peak, 8192)
        self.end(line)

    def test_without_quit_nothing_changes(self):
        self.put("new/1700000001.1.h")
        line = self.open()
        line.expect("+OK ...")
        line.send("DELE 1\r\nQUI")
        line.expect("+OK ...")
        self.end(line)
        self.assertEqual(self.names("new"), ["1700000001.1.h"])


    def test_who_left_before_the_answers_came_loses_nothing(self):
        self.put("new/1700000001.1.h")
        r, w = os.pipe()
        os.close(r)
        try:
            harness.run([*DROP, harness.program("qmail-pop3d"), "Maildir"], b"RETR 1\r\nDELE 1\r\nQUIT\r\n", cwd=self.base, fds={1: w})
        finally:
            os.close(w)
        self.assertEqual(self.names("new"), ["1700000001.1.h"])


class WhatIsThere(Maildir):
    def uids(self):
        line = self.open()
        line.expect("+OK ...")
        line.send("UIDL\r\n")
        line.expect("+OK ...")
        found = []
        while (row := line.expect("...")) != ".":
            found.append(row.split(" ", 1)[1])
        self.end(line)
        return found

    def test_messages_are_in_the_order_of_their_delivery(self):
        self.put("cur/1700000002.M9P1.h:2,")
        self.put("new/1700000002.M10P1.h")
        self.put("cur/1700000001.5.h:2,S")
        self.put("new/1700000002.M10P0.h")
        self.put("cur/other-name", age=900_000_000)
        self.assertEqual(self.uids(), ["other-name", "1700000001.5.h", "1700000002.M9P1.h", "1700000002.M10P0.h",
                                       "1700000002.M10P1.h"])

    def test_what_arrives_in_this_very_second_waits_for_the_next_session(self):
        future = int(time.time()) + 1000
        self.put(f"new/{future}.1.h", age=-1000)
        self.put("new/nameless", age=-1000)
        self.put(f"new/{future}.2.h", age=1000)  # a clock that was wrong: not hidden for ever
        self.assertEqual(self.uids(), [f"{future}.2.h"])

    def test_dot_files_and_directories_are_no_messages(self):
        self.put("new/.hidden")
        self.own(os.mkdir, self.file("cur", "directory"))
        os.utime(self.file("cur", "directory"), (1, 1))
        self.put("new/1700000001.1.h")
        self.assertEqual(self.uids(), ["1700000001.1.h"])

    def test_one_message_in_both_places_is_one(self):
        self.put("new/1700000001.1.h")
        self.put("cur/1700000001.1.h:2,S")
        self.assertEqual(self.uids(), ["1700000001.1.h"])

    def test_one_file_with_both_names_is_moved_to_its_end_or_deleted(self):
        """A power cut, or another session, came between the name in cur and the end of that in new."""
        for commands, left in (("C: NOOP\nS: +OK ...", ["1700000001.1.h:2,S"]), ("C: DELE 1\nS: +OK ...", [])):
            self.put("new/1700000001.1.h")
            os.link(self.file("new/1700000001.1.h"), self.file("cur/1700000001.1.h:2,S"))
            self.play("C: STAT\nS: +OK 1 17\n" + commands)
            self.assertEqual((self.names("new"), self.names("cur")), ([], left))
            for name in left:
                os.unlink(self.file("cur", name))

    def test_an_id_too_long_or_with_odd_bytes_is_a_hash(self):
        self.put("cur/1700000001." + "x" * 70 + ":2,")
        self.put("cur/1700000002.a b:2,")
        first, second = self.uids()
        self.assertRegex(first, "^[0-9a-f]{32}$")
        self.assertRegex(second, "^[0-9a-f]{32}$")
        self.assertEqual(self.uids(), [first, second])

    def test_ids_another_server_gave_are_kept(self):
        for n in (1, 2, 3, 4):
            self.put(f"cur/170000000{n}.1.h,S=17:2,S")
        with open(self.file("dovecot-uidlist"), "w") as f:
            f.write("3 V1795200876 N9 G70c78731dd9a006b4561000083ecc375\n"
                    "1 P000000016b009c82 :1700000001.1.h,S=17\n"
                    "2 :1700000002.1.h,S=17\n"
                    "3 W19 P000000036b009c82 :1700000003.1.h,S=17:2,RS\n"
                    "4 P000000036b009c82 :1700000004.1.h,S=17\n"
                    + "9 " + "x" * 10000 + "\n")
        self.assertEqual(self.uids(), ["000000016b009c82", "1700000002.1.h,S=17", "000000036b009c82",
                                       "1700000004.1.h,S=17"])

    def test_sizes_come_from_the_name_when_it_has_them(self):
        self.put("cur/1700000001.1.h,S=5:2,")
        self.put("cur/1700000002.1.h,S=5,W=7:2,")
        self.put("cur/1700000003.1.h,S=x:2,")
        self.play("C: LIST\nS: +OK ...\nS: 1 5\nS: 2 7\nS: 3 17\nS: .\nC: STAT\nS: +OK 3 29")

    def test_what_dead_deliveries_left_in_tmp_is_removed(self):
        self.put("tmp/old", age=129_700)
        self.put("tmp/young", age=129_500)
        self.put("tmp/read-lately", age=200_000)
        os.utime(self.file("tmp/read-lately"), (time.time(), time.time() - 200_000))
        self.put("tmp/written-lately", age=200_000)
        os.utime(self.file("tmp/written-lately"), (time.time() - 200_000, time.time()))
        self.put("tmp/.dot", age=200_000)
        self.play("C: NOOP\nS: +OK ...")
        self.assertEqual(self.names("tmp"), [".dot", "read-lately", "written-lately", "young"])

    def test_a_quota_is_told_what_was_freed(self):
        with open(self.file("maildirsize"), "w") as f:
            f.write("1000S\n100 3\n")
        os.chown(self.file("maildirsize"), UID, GID)
        self.put("cur/1700000001.1.h,S=40:2,")
        self.put("cur/1700000002.1.h:2,", b"x" * 17)
        self.put("cur/1700000003.1.h:2,")
        self.play("C: DELE 1\nS: +OK ...\nC: DELE 2\nS: +OK ...")
        with open(self.file("maildirsize")) as f:
            self.assertEqual(f.read(), "1000S\n100 3\n-57 -2\n")


class OtherPrograms(Maildir):
    def setUp(self):
        super().setUp()
        for n in (1, 2, 3):
            self.put(f"new/170000000{n}.1.h", b"Subject: %d\n\n" % n)
        self.line = self.open()
        self.line.expect("+OK ...")

    def move(self, old, new):
        os.rename(self.file(old), self.file(new))

    def test_a_file_that_was_moved_is_found_by_its_name(self):
        self.move("new/1700000001.1.h", "cur/1700000001.1.h:2,S")
        dialogue(self.line, "C: RETR 1\nS: +OK ...\nS: Subject: 1\nS: ...\nS: .")
        self.move("cur/1700000001.1.h:2,S", "cur/1700000001.1.h:2,RS")
        self.move("new/1700000002.1.h", "cur/1700000002.1.h:2,")
        dialogue(self.line, """
            C: TOP 1 0
            S: +OK ...
            S: Subject: 1
            S: ...
            S: .
            C: DELE 1
            S: +OK ...
            C: DELE 2
            S: +OK ...
        """)
        self.move("cur/1700000001.1.h:2,RS", "cur/1700000001.1.h:2,FRS")
        dialogue(self.line, "C: QUIT\nS: +OK ...")
        self.end(self.line)
        self.assertEqual((self.names("new"), self.names("cur")), ([], ["1700000003.1.h:2,"]))

    def test_a_file_that_is_gone_is_an_error_for_retr_and_none_for_quit(self):
        os.unlink(self.file("new/1700000001.1.h"))
        os.unlink(self.file("new/1700000002.1.h"))
        dialogue(self.line, """
            C: RETR 1
            S: -ERR unable to open that message
            C: DELE 1
            S: +OK ...
            C: STAT
            S: +OK 2 24
            C: QUIT
            S: +OK ...
        """)
        self.end(self.line)
        self.assertEqual(self.names("cur"), ["1700000003.1.h:2,"])

    def test_a_delivery_during_the_session_is_not_in_it(self):
        self.put("new/1600000000.1.h")
        dialogue(self.line, "C: STAT\nS: +OK 3 36\nC: RETR 1\nS: +OK ...\nS: Subject: 1\nS: ...\nS: .\nC: QUIT\nS: +OK ...")
        self.end(self.line)
        self.assertEqual(self.names("new"), ["1600000000.1.h"])

    def test_two_sessions_that_delete_both_succeed(self):
        other = self.open()
        other.expect("+OK ...")
        for line in (self.line, other):
            dialogue(line, "C: DELE 1\nS: +OK ...\nC: DELE 3\nS: +OK ...")
        for line in (self.line, other):
            dialogue(line, "C: QUIT\nS: +OK ...")
            self.end(line)
        self.assertEqual((self.names("new"), self.names("cur")), ([], ["1700000002.1.h:2,"]))

    def test_one_answer_when_something_cannot_be_deleted(self):
        # A directory in the place of a message is what even root cannot unlink.
        os.unlink(self.file("new/1700000001.1.h"))
        self.own(os.mkdir, self.file("new/1700000001.1.h"))
        dialogue(self.line, "C: DELE 1\nS: +OK ...\nC: DELE 2\nS: +OK ...\nC: QUIT\n"
                            "S: -ERR [SYS/TEMP] unable to unlink all deleted messages")
        self.end(self.line)
        self.assertEqual(self.names("cur"), ["1700000003.1.h:2,"])

    def test_something_else_in_the_place_of_a_message_is_not_read(self):
        os.unlink(self.file("new/1700000001.1.h"))
        os.mkfifo(self.file("new/1700000001.1.h"))
        os.chown(self.file("new/1700000001.1.h"), UID, GID)
        dialogue(self.line, "C: RETR 1\nS: -ERR [SYS/TEMP] unable to open that message")
        self.end(self.line)


@unittest.skipUnless(shutil.which("strace"), "strace is not installed")
class Quit(Maildir):
    """What QUIT says is durable: a power cut neither brings back what was deleted nor takes what was moved."""

    def calls(self, names, *options):
        """The answers of a session that deletes its first message, and its calls; N for the name of a message."""
        for directory, number in names:
            self.put(f"{directory}/170000000{number}.1.h")
        file = os.path.join(self.base, "trace")
        result = harness.run(["strace", "-y", "-o", file, "-e", "trace=unlink,unlinkat,link,linkat,rename,renameat,fsync", *options,
                              *DROP, harness.program("qmail-pop3d"), "Maildir"], b"DELE 1\r\nQUIT\r\n", cwd=self.base)
        with open(file) as f:
            lines = [re.sub(r"170000000(\d)\.1\.h", r"\1", line) for line in f if "= 0" in line]
        calls = []
        for line in lines:
            call = re.match(r"[a-z]+", line)[0].removesuffix("at")
            paths = re.findall(r'"([^"]*)"', line) or [os.path.basename(re.search(r"<([^>]*)>", line)[1])]
            calls.append(" ".join([call, *paths]))
        return result.out.split(b"\r\n")[2:-1], calls

    def setUp(self):
        super().setUp()
        if os.geteuid() != 0:
            self.skipTest("only root may look into a process that made itself undumpable")
        harness.needs_static("qmail-pop3d")

    def test_a_name_in_cur_is_durable_before_the_one_in_new_goes(self):
        self.assertEqual(self.calls([("new", 1), ("new", 2), ("cur", 3)]), ([b"+OK "], [
            "unlink new/1", "link new/2 cur/2:2,", "fsync cur", "unlink new/2", "fsync new"]))

    def test_what_was_only_deleted_is_durably_gone(self):
        self.assertEqual(self.calls([("cur", 1), ("cur", 2)]), ([b"+OK "], ["unlink cur/1", "fsync cur", "fsync new"]))

    def test_a_deletion_that_may_not_last_is_no_success(self):
        answers, calls = self.calls([("new", 1), ("new", 2)], "-e", "inject=fsync:error=EIO:when=1")
        self.assertEqual(answers, [b"-ERR [SYS/TEMP] unable to unlink all deleted messages"])
        self.assertEqual(calls, ["unlink new/1", "link new/2 cur/2:2,", "fsync new"])

    def test_a_file_system_without_links_is_served_by_rename(self):
        self.assertEqual(self.calls([("new", 1), ("new", 2)], "-e", "inject=linkat:error=EPERM"), ([b"+OK "], [
            "unlink new/1", "rename new/2 cur/2:2,", "fsync cur", "fsync new"]))


class Start(Maildir):
    def test_a_missing_maildir_is_said(self):
        for argv in (["Nowhere"], []):
            result = harness.run([*DROP, harness.program("qmail-pop3d"), *argv], cwd=self.base)
            self.assertEqual((result.code, result.out), (0, b"-ERR [SYS/PERM] this user has no $HOME/Maildir\r\n"))

    def test_a_maildir_that_is_none_is_said(self):
        os.rmdir(self.file("cur"))
        result = harness.run([*DROP, harness.program("qmail-pop3d"), "Maildir"], cwd=self.base)
        self.assertEqual((result.code, result.out), (0, b"-ERR [SYS/TEMP] unable to scan $HOME/Maildir\r\n"))

    @unittest.skipUnless(os.geteuid() == 0, "only root can try to run it as root")
    def test_it_does_not_run_as_root(self):
        result = harness.run(["qmail-pop3d", "Maildir"], cwd=self.base)
        self.assertEqual((result.code, result.out), (1, b""))
        self.assertEqual(result.err, b"qmail-pop3d invoked as uid 0, terminating\n")


class Scale(Maildir):
    def setUp(self):
        super().setUp()
        for n in range(10_000):
            with open(self.file("cur", f"1700000000.M{n:06}P1.h,S=17:2,"), "wb") as f:
                f.write(b"Subject: x\n\nbody\n")

    def test_ten_thousand_messages_by_a_real_client(self):
        # All renamed by another program after login, all deleted at QUIT: work grows with their number only.
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        process = subprocess.Popen([*DROP, harness.program("qmail-pop3d"), "Maildir"], stdin=server, stdout=server,
                                   cwd=self.base)
        self.addCleanup(process.wait, harness.TIMEOUT)
        server.close()

        class Client(poplib.POP3):
            def _create_socket(self, timeout):
                return client
        pop = Client("localhost", timeout=harness.TIMEOUT)
        self.addCleanup(client.close)
        self.assertEqual(pop.stat(), (10_000, 170_000))
        self.assertEqual(len(pop.list()[1]), 10_000)
        self.assertEqual(len({row.split()[1] for row in pop.uidl()[1]}), 10_000)
        for name in os.listdir(self.file("cur")):
            os.rename(self.file("cur", name), self.file("cur", name + "S"))
        for number in (1, 5_000, 10_000):
            self.assertEqual(pop.retr(number)[1], [b"Subject: x", b"", b"body"])
        for number in range(1, 10_001, 2):
            pop.dele(number)
        self.assertEqual(pop.stat(), (5_000, 85_000))
        with open(f"/proc/{process.pid}/status") as f:
            peak = next(int(row.split()[1]) for row in f if row.startswith("VmHWM"))
        self.assertLess(peak, 16_384)
        self.assertEqual(pop.quit(), b"+OK ")
        self.assertEqual(process.wait(harness.TIMEOUT), 0)
        self.assertEqual(len(self.names("cur")), 5_000)


if __name__ == "__main__":
    unittest.main()
