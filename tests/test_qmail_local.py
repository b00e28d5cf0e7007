"""qmail-local: one message, one recipient, one .qmail file."""

import fcntl
import mailbox
import os
import re
import shutil
import socket
import subprocess
import time
import unittest

from tests import harness

MESSAGE = b"Subject: hello\n\nFrom the start\n>From quoted\nlast line"
DTLINE = b"Delivered-To: joe-ext@host.example\n"
RPLINE = b"Return-Path: <sender@else.example>\n"
DATE = rb"(Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d \d{4}"
FROM_LINE = rb"From sender@else\.example " + DATE + rb"\n"

# A qmail-queue that keeps what it gets; with a file `exit` it ends as that says.
QUEUE = """#!/bin/sh
cat >"{0}/message"
cat <&1 >"{0}/envelope"
if [ -f "{0}/text" ]; then cat "{0}/text" >&6; fi
if [ -f "{0}/exit" ]; then exit "$(cat "{0}/exit")"; fi
exit 0
"""


def read(*names):
    with open(os.path.join(*names), "rb") as f:
        return f.read()


class LocalCase(unittest.TestCase):
    """A user's home in a scratch directory. As root, deliveries run as the user that homes belong to."""

    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, True)
        self.home = self.mkdir("home")
        self.user = harness.owner()[1:] if os.geteuid() == 0 else None
        # A home of the mail system, just enough to be found, with a qmail-queue of our own.
        self.system = self.mkdir("system")
        self.mkdir("system/users")
        uid, gid = harness.owner()[1:]
        self.write("../system/users/ids", f"owner:{uid}:{gid}\n")
        self.write("../system/queue-program", QUEUE.format(self.system), 0o755)
        self.env = {
            "PATH": os.environ["PATH"], "QMAIL_HOME": self.system,
            "QMAILQUEUE": os.path.join(self.system, "queue-program"),
        }

    def own(self, path):
        if os.geteuid() == 0:
            os.chown(path, *harness.owner()[1:], follow_symlinks=False)
        return path

    def mkdir(self, name, mode=0o700):
        path = os.path.join(self.base, name)
        os.mkdir(path)
        os.chmod(path, mode)
        return self.own(path)

    def write(self, name, content=b"", mode=0o600):
        path = os.path.join(self.base, "home", name)
        with open(path, "wb") as f:
            f.write(content if isinstance(content, bytes) else content.encode())
        os.chmod(path, mode)
        return self.own(path)

    def maildir(self, name="Maildir"):
        for part in (name, f"{name}/tmp", f"{name}/new", f"{name}/cur"):
            self.mkdir(f"home/{part}")
        return os.path.join(self.home, name)

    def open_message(self, message):
        path = os.path.join(self.base, "the message")
        with open(path, "wb") as f:
            f.write(message)
        f = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, f)
        return f

    def command(self, options=(), home=None, local="joe-ext", dash="-", ext="ext", domain="host.example",
                sender="sender@else.example", default="./Mailbox"):
        return ["qmail-local", *options, "--", "joe", home or self.home, local, dash, ext, domain, sender, default]

    def local(self, *options, message=MESSAGE, env=None, wrap=(), fds=None, **what):
        argv = self.command(options, **what)
        if wrap:
            argv[0] = harness.program(argv[0])
        fds = {0: self.open_message(message), **(fds or {})}
        return harness.run([*wrap, *argv], env={**self.env, **(env or {})}, fds=fds, cwd="/", as_user=self.user)

    def ends(self, result, code, err="", out=None):
        """Asserts exit code and report; a failure says nothing on fd 1."""
        self.assertEqual((result.code, result.err), (code, err.encode() + b"\n" if err else b""), result)
        if out is not None or code:
            self.assertEqual(result.out, (out or "").encode())

    def delivers(self, out, **what):
        result = self.local(**what)
        self.ends(result, 0, out=out)
        return result

    def in_maildir(self, name="Maildir"):
        return [read(self.home, name, "new", n) for n in sorted(os.listdir(os.path.join(self.home, name, "new")))]


class TheCommandLine(LocalCase):
    def test_anything_but_eight_arguments_is_wrong_use(self):
        for argv in (["qmail-local"], self.command()[:-1], self.command() + ["more"]):
            result = harness.run(argv, env=self.env)
            self.assertEqual((result.code, result.out), (100, b""))
            self.assertIn(b"qmail-local: usage: qmail-local [-nN] user homedir local dash ext domain sender", result.err)

    def test_an_unknown_option_is_wrong_use(self):
        result = harness.run(["qmail-local", "-x"], env=self.env)
        self.assertEqual(result.code, 100)
        self.assertTrue(result.err.startswith(b"qmail-local: illegal option -- x\n"), result.err)

    def test_a_home_directory_that_does_not_start_with_a_slash_is_wrong_use(self):
        self.assertEqual(self.local(home="home/joe").code, 100)

    def test_the_last_of_n_and_N_counts(self):
        self.write(".qmail-ext", "./Mailbox\n")
        self.ends(self.local("-Nn"), 0, out="mbox ./Mailbox\ndid 1+0+0\n")
        self.ends(self.local("-nN"), 0, out="did 1+0+0\n")
        self.assertTrue(os.path.exists(f"{self.home}/Mailbox"))


class TheHome(LocalCase):
    def test_a_missing_home_is_temporary(self):
        self.ends(self.local(home="/nonexistent/joe"), 111,
                  "Unable to switch to /nonexistent/joe: file does not exist. (#4.3.0)")

    def test_a_home_that_everybody_may_write_is_refused(self):
        os.chmod(self.home, 0o702)
        self.ends(self.local(), 111, "Uh-oh: home directory is writable. (#4.7.0)")

    def test_a_home_that_the_group_may_write_is_fine(self):
        os.chmod(self.home, 0o770)
        self.write(".qmail-ext", "#\n")
        self.delivers("did 0+0+0\n")

    def test_a_sticky_home_means_that_its_user_is_editing(self):
        os.chmod(self.home, 0o1700)
        self.write(".qmail-ext", "#\n")
        text = "Home directory is sticky: user is editing his .qmail file. (#4.2.1)"
        self.ends(self.local(), 111, text)
        self.ends(self.local("-n"), 0, text, out="did 0+0+0\n")


class Loops(LocalCase):
    def setUp(self):
        super().setUp()
        self.write(".qmail-ext", "./Mailbox\n")

    def loops(self, message, **what):
        self.ends(self.local(message=message, **what), 100,
                  "This message is looping: it already has my Delivered-To line. (#5.4.6)")
        self.assertFalse(os.path.exists(f"{self.home}/Mailbox"))

    def test_a_message_that_was_here_is_looping(self):
        self.loops(b"Received: x\n" + DTLINE + b"\nbody\n")
        self.loops(DTLINE)
        self.loops(DTLINE[:-1])

    def test_only_the_very_same_line_counts_and_only_in_the_header(self):
        for message in (b"\n" + DTLINE, b"X" + DTLINE, DTLINE.lower(), b"Delivered-To:  joe-ext@host.example\n",
                        DTLINE[:-1] + b"x\n", b"Delivered-To: joe-ext@host.example \n"):
            self.ends(self.local(message=message), 0, out="did 1+0+0\n")

    def test_very_long_header_lines_are_passed_over(self):
        self.loops(b"X: " + b"y" * 300000 + b"\n" + DTLINE + b"\n")

    def test_printing_does_not_look_at_the_message(self):
        self.ends(self.local("-n", message=DTLINE), 0, out="mbox ./Mailbox\ndid 1+0+0\n")

    def test_a_line_feed_in_the_address_is_compared_as_it_is_written(self):
        self.loops(b"Delivered-To: joe_x@host.example\n\n", local="joe\nx")

    def test_a_message_that_cannot_be_rewound_is_temporary(self):
        result = self.local(fds={0: MESSAGE})  # a pipe
        self.ends(result, 111, "Unable to rewind message. (#4.3.0)")


class TheSearch(LocalCase):
    def used(self, **what):
        """Which control file is used: each forwards to its own name."""
        result = self.local("-n", **what)
        self.assertEqual(result.code, 0, result)
        return re.match(rb"forward (.*)\n", result.out).group(1).decode()

    def files(self, *names):
        for name in names:
            self.write(name, f"&{name}")

    def test_the_exact_file_comes_first_and_then_ever_wider_defaults(self):
        names = [".qmail-a-b-c", ".qmail-a-b-default", ".qmail-a-default", ".qmail-default"]
        self.files(*names, ".qmail", ".qmail-a", ".qmail-a-b")
        for name in names:
            self.assertEqual(self.used(ext="a-b-c"), name)
            os.unlink(f"{self.home}/{name}")
        self.ends(self.local(ext="a-b-c"), 100, "Sorry, no mailbox here by that name. (#5.1.1)")

    def test_case_and_dots_do_not_matter_in_an_extension(self):
        self.files(".qmail-a:b::c")
        self.assertEqual(self.used(ext="A.b..C"), ".qmail-a:b::c")

    def test_an_extension_leads_nowhere_else(self):
        self.mkdir("home/.qmail-x")
        self.write("secret", "stolen@x")
        self.ends(self.local(ext="x/../secret"), 100, "Sorry, no mailbox here by that name. (#5.1.1)")

    def test_an_extension_that_ends_in_a_hyphen_has_a_default_of_its_own(self):
        self.files(".qmail-a-default", ".qmail-default")
        self.assertEqual(self.used(ext="a-"), ".qmail-a-default")
        self.assertEqual(self.used(ext="a"), ".qmail-default")

    def test_without_an_extension_the_file_is_the_plain_one(self):
        self.files(".qmail", ".qmail-default", ".qmail-")
        self.assertEqual(self.used(dash="", ext=""), ".qmail")
        self.assertEqual(self.used(dash="-", ext=""), ".qmail-")
        os.unlink(f"{self.home}/.qmail")
        self.files(".qmaildefault")
        self.assertEqual(self.used(dash="", ext=""), ".qmaildefault")

    def test_the_dash_is_whatever_it_is(self):
        self.files(".qmail.list-ext")
        self.assertEqual(self.used(dash=".list-"), ".qmail.list-ext")

    def test_without_dash_and_file_the_default_delivery_is_used(self):
        self.ends(self.local("-n", dash="", ext="", default="./Mailbox\n&a@b"), 0,
                  out="mbox ./Mailbox\nforward a@b\ndid 1+1+0\n")

    def test_an_empty_file_means_the_default_delivery_even_with_the_x_bit(self):
        self.write(".qmail-ext", "", 0o700)
        self.ends(self.local("-n", default="|true"), 0, out="program true\ndid 0+0+1\n")

    def test_what_is_not_a_file_is_passed_over(self):
        self.mkdir("home/.qmail-a-b")
        os.mkfifo(f"{self.home}/.qmail-a-default")
        s = socket.socket(socket.AF_UNIX)
        self.addCleanup(s.close)
        s.bind(f"{self.home}/.qmail-default")
        self.ends(self.local(ext="a-b"), 100, "Sorry, no mailbox here by that name. (#5.1.1)")

    def test_a_symbolic_link_to_a_file_is_that_file(self):
        self.files("elsewhere")
        os.symlink("elsewhere", f"{self.home}/.qmail-ext")
        self.assertEqual(self.used(), "elsewhere")

    def test_a_dangling_link_is_no_file_and_a_circle_is_trouble(self):
        os.symlink("nowhere", f"{self.home}/.qmail-ext")
        self.ends(self.local(), 100, "Sorry, no mailbox here by that name. (#5.1.1)")
        os.symlink(".qmail-round", f"{self.home}/.qmail-round")
        self.ends(self.local(ext="round"), 111, "Unable to open .qmail-round: too many symbolic links. (#4.3.0)")

    def test_a_file_we_may_not_read_is_temporary(self):
        self.write(".qmail-ext", "./Mailbox\n", 0o000)
        self.files(".qmail-default")
        self.ends(self.local(), 111, "Unable to open .qmail-ext: access denied. (#4.3.0)")

    def test_trouble_while_opening_is_never_taken_for_no_mailbox(self):
        self.files(".qmail-default")
        for errno, text in (("EIO", "input/output error"), ("ENFILE", "too many open files in this system"),
                            ("ENOMEM", "out of memory"), ("EPERM", "permission denied")):
            result = self.local(wrap=injecting("open,openat", f"error={errno}"))
            self.ends(result, 111, f"Unable to open .qmail-ext: {text}. (#4.3.0)")

    def test_an_absurdly_long_extension_has_no_file(self):
        self.files(".qmail-default")
        self.assertEqual(self.used(ext="x" * 900), ".qmail-default")

    def test_a_file_that_everybody_may_write_is_refused(self):
        self.write(".qmail-ext", "./Mailbox\n", 0o602)
        self.ends(self.local(), 111, "Uh-oh: .qmail file is writable. (#4.7.0)")
        self.write(".qmail-ext", "#\n", 0o620)
        self.delivers("did 0+0+0\n")

    def test_a_file_of_absurd_size_is_temporary(self):
        path = self.write(".qmail-ext", "#")
        os.truncate(path, 9 << 20)
        self.ends(self.local(), 111, "Unable to read .qmail-ext: file too big. (#4.3.0)")


def injecting(calls, what, when=1, children=True):
    """strace that makes a system call fail, or the program die at it."""
    harness.needs_static("qmail-local")
    return ["strace", *(["-f"] if children else []), "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:{what}:when={when}"]


class TheLines(LocalCase):
    def says(self, content, out, mode=0o600, **what):
        self.write(".qmail-ext", content, mode)
        self.ends(self.local("-n", **what), 0, out=out)

    def refuses(self, content, err, mode=0o600):
        self.write(".qmail-ext", content, mode)
        for options in (("-n",), ()):
            result = self.local(*options)
            self.assertEqual((result.code, result.err), (111, err.encode() + b"\n"))

    def test_each_kind_of_line_is_said_as_what_it_is(self):
        self.says("# comment\n|prog arg\n./Maildir/\n/abs/Mailbox\n&a@b\nc@d\n\n.x\n+what\n& e@f\n#\n",
                  "program prog arg\nmaildir ./Maildir/\nmbox /abs/Mailbox\nforward a@b\nforward c@d\nmbox .x\n"
                  "forward  e@f\ndid 3+3+1\n")

    def test_blanks_at_the_end_of_a_line_do_not_count_and_at_its_beginning_they_do(self):
        self.says("./Mailbox \t \n |x\n \t\n", "mbox ./Mailbox\nforward  |x\ndid 1+1+0\n")

    def test_a_missing_line_feed_at_the_end_makes_no_difference(self):
        self.says("&a@b\n&c@d", "forward a@b\nforward c@d\ndid 0+2+0\n")

    def test_a_blank_first_line_is_a_file_being_written(self):
        text = "Uh-oh: first line of .qmail file is blank. (#4.2.1)"
        self.refuses("\n./Mailbox\n", text)
        self.refuses(" \t\n./Mailbox\n", text)
        self.refuses("\n", text)

    def test_an_empty_default_delivery_loses_nothing(self):
        self.write(".qmail-ext")
        self.ends(self.local(default=""), 111, "Uh-oh: first line of .qmail file is blank. (#4.2.1)")

    def test_the_x_bit_allows_only_forwards(self):
        self.says("&a@b\n# c\n", "forward a@b\ndid 0+1+0\n", 0o700)
        self.refuses("./Mailbox\n", "Uh-oh: .qmail has file delivery but has x bit set. (#4.7.0)", 0o700)
        self.refuses("./Maildir/\n", "Uh-oh: .qmail has file delivery but has x bit set. (#4.7.0)", 0o700)
        self.refuses("|true\n", "Uh-oh: .qmail has prog delivery but has x bit set. (#4.7.0)", 0o700)

    def test_the_x_bits_of_others_do_not_matter(self):
        self.says("|true\n", "program true\ndid 0+0+1\n", 0o611)

    def test_plus_list_allows_only_forwards_from_there_on(self):
        self.says("|true\n+list\n&a@b\n", "program true\nforward a@b\ndid 0+1+1\n")
        self.write(".qmail-ext", "+list\n|true\n")
        self.ends(self.local(), 111, "Uh-oh: .qmail has prog delivery but has x bit set. (#4.7.0)")

    def test_a_line_with_a_nul_is_damage_and_not_an_address(self):
        self.write(".qmail-ext", b"&a@b\0Tevil@x\n")
        self.ends(self.local(), 111, "Uh-oh: .qmail file has a line with a NUL. (#4.2.1)")

    def test_the_first_failure_ends_everything(self):
        self.write(".qmail-ext", "./Mailbox\n&a@b\n|exit 111\n./Other\n")
        self.ends(self.local(), 111)
        self.assertTrue(os.path.exists(f"{self.home}/Mailbox"))
        self.assertFalse(os.path.exists(f"{self.home}/Other"))
        self.assertFalse(os.path.exists(f"{self.system}/envelope"))

    def test_printing_does_nothing(self):
        self.write(".qmail-ext", "./Mailbox\n./Maildir/\n|touch ran\n&a@b\n")
        before = sorted(os.listdir(self.home))
        self.ends(self.local("-n"), 0,
                  out="mbox ./Mailbox\nmaildir ./Maildir/\nprogram touch ran\nforward a@b\ndid 2+1+1\n")
        self.assertEqual(sorted(os.listdir(self.home)), before)
        self.assertFalse(os.path.exists(f"{self.system}/envelope"))

    def test_success_does_not_need_a_listener(self):
        self.write(".qmail-ext", "./Mailbox\n")
        r, w = os.pipe()
        os.close(r)
        self.addCleanup(os.close, w)
        self.assertEqual(self.local(fds={1: w}).code, 0)
        self.assertTrue(read(self.home, "Mailbox"))


class Programs(LocalCase):
    def program(self, command, **what):
        self.write(".qmail-ext", f"|{command}\n")
        return self.local(**what)

    def environment(self, **what):
        """The environment as a program of a delivery sees it."""
        result = self.program(f"env -0 >'{self.home}/env'", **what)
        self.ends(result, 0, out="did 0+0+1\n")
        pairs = read(self.home, "env").split(b"\0")
        return dict(p.decode("latin-1").split("=", 1) for p in pairs if b"=" in p)

    def test_the_program_gets_the_bare_message_from_its_beginning(self):
        self.ends(self.program("cat >got; cat >again; pwd >where"), 0, out="did 0+0+1\n")
        self.assertEqual(read(self.home, "got"), MESSAGE)
        self.assertEqual(read(self.home, "where").strip().decode(), os.path.realpath(self.home))

    def test_every_line_gets_the_message_from_its_beginning(self):
        self.write(".qmail-ext", "|head -c 5 >a\n|cat >b\n./Mailbox\n|cat >c\n")
        self.ends(self.local(), 0, out="did 1+0+3\n")
        self.assertEqual((read(self.home, "a"), read(self.home, "b")), (MESSAGE[:5], MESSAGE))
        self.assertEqual(read(self.home, "c"), MESSAGE)
        self.assertIn(b"Subject: hello\n", read(self.home, "Mailbox"))

    def test_what_it_writes_is_the_report(self):
        self.ends(self.program("echo out; echo err >&2; exit 100"), 100, "err", "out\n")
        self.ends(self.program("echo out"), 0, out="out\ndid 0+0+1\n")

    def test_exit_codes_mean_what_they_always_meant(self):
        meanings = {0: 0, 99: 0}
        meanings.update({code: 100 for code in (100, 64, 65, 70, 76, 77, 78, 112)})
        meanings.update({code: 111 for code in (1, 2, 66, 67, 68, 69, 71, 72, 73, 74, 75, 98, 101, 111, 113, 126, 127, 255)})
        for code, meaning in meanings.items():
            result = self.program(f"exit {code}")
            self.assertEqual((result.code, result.err), (meaning, b""), f"exit {code}")

    def test_99_ends_the_lines_but_not_the_forwards_before_it(self):
        self.write(".qmail-ext", "&a@b\n|exit 99\n&c@d\n./Mailbox\n")
        result = self.local()
        self.assertEqual(result.code, 0)
        self.assertRegex(result.out, rb"\Adid 0\+1\+1\nqp \d+\n\Z")
        self.assertEqual(read(self.system, "envelope"), b"Fsender@else.example\0Ta@b\0\0")
        self.assertFalse(os.path.exists(f"{self.home}/Mailbox"))

    def test_a_crash_is_temporary(self):
        self.ends(self.program("kill -9 $$"), 111, "Aack, child crashed. (#4.3.0)")

    def test_a_command_that_does_not_exist_is_temporary(self):
        result = self.program("/nonexistent/program")
        self.assertEqual(result.code, 111)

    def test_a_command_too_long_for_the_system_is_temporary(self):
        result = self.program("x" * 200000)
        self.assertEqual(result.code, 111)
        self.assertRegex(result.err, rb"\AUnable to run /bin/sh: .*\. \(#4\.3\.0\)\n\Z")

    def test_a_fork_that_fails_is_temporary(self):
        self.write(".qmail-ext", "|true\n")
        result = self.local(wrap=injecting("fork,clone,clone3,vfork", "error=EAGAIN"))
        self.ends(result, 111, "Unable to fork: temporarily unavailable. (#4.3.0)")

    def test_it_has_descriptors_0_1_and_2_and_default_signals_and_a_safe_umask(self):
        extra = os.open("/dev/null", os.O_RDONLY)
        self.addCleanup(os.close, extra)
        look = "for n in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$n ] && echo $n; done >fds"
        # exec: a shell that waits for its child blocks signals itself.
        result = self.program(f"{look}; umask >mask; exec cat /proc/self/status >status", fds={7: extra})
        self.ends(result, 0, out="did 0+0+1\n")
        self.assertEqual(read(self.home, "fds").split(), [b"0", b"1", b"2"])
        status = read(self.home, "status")
        for field in (rb"SigIgn", rb"SigBlk"):
            # But for the two signals the C library keeps for itself, which a parent may have ignored.
            self.assertRegex(status, field + rb":\s+0{7}[01][08]0{7}\n")
        self.assertEqual(read(self.home, "mask").strip(), b"0077")

    def test_the_environment_says_what_the_delivery_is_about(self):
        got = self.environment(local="joe-Ext", ext="Ext-two-three-four", domain="a.b.c.example", sender="s p@x",
                               env={"PATH": "/usr/bin:/bin", "OTHER": "kept"})
        wanted = {
            "SENDER": "s p@x", "NEWSENDER": "s p@x", "RECIPIENT": "joe-Ext@a.b.c.example", "LOCAL": "joe-Ext",
            "HOST": "a.b.c.example", "USER": "joe", "HOME": self.home, "EXT": "Ext-two-three-four",
            "EXT2": "two-three-four", "EXT3": "three-four", "EXT4": "four", "HOST2": "a.b.c", "HOST3": "a.b",
            "HOST4": "a", "DTLINE": "Delivered-To: joe-Ext@a.b.c.example\n", "RPLINE": "Return-Path: <\"s p\"@x>\n",
            "PATH": "/usr/bin:/bin", "OTHER": "kept",
        } if os.path.exists(f"{self.home}/.qmail-ext-two-three-four") else None
        self.assertIsNotNone(wanted)
        for name, value in wanted.items():
            self.assertEqual(got.get(name), value, name)
        self.assertRegex(got["UFLINE"].encode(), rb"\AFrom s-p@x " + DATE + rb"\n\Z")
        for name in ("DEFAULT", "SHELL", "LOGNAME", "TZ"):
            self.assertNotIn(name, got)

    def program(self, command, **what):  # the file's name follows the extension
        name = ".qmail" + what.get("dash", "-") + what.get("ext", "ext").lower().replace(".", ":")
        self.write(what.pop("file", name), f"|{command}\n")
        return self.local(**what)

    def test_missing_parts_are_empty_and_a_host_without_dots_stays(self):
        got = self.environment(ext="one", domain="host")
        self.assertEqual([got[n] for n in ("EXT2", "EXT3", "EXT4")], ["", "", ""])
        self.assertEqual([got[n] for n in ("HOST2", "HOST3", "HOST4")], ["host", "host", "host"])

    def test_default_is_what_the_name_left_open_in_its_own_case(self):
        for file, ext, default in ((".qmail-default", "A-B", "A-B"), (".qmail-a-default", "A-B-C", "B-C"),
                                   (".qmail-a-default", "a-", ""), (".qmail-x-default", "X-Default", "Default")):
            got = self.environment(ext=ext, file=file, env={"DEFAULT": "inherited"})
            self.assertEqual(got["DEFAULT"], default)
            os.unlink(f"{self.home}/{file}")

    def test_an_inherited_default_is_not_ours(self):
        self.assertNotIn("DEFAULT", self.environment(env={"DEFAULT": "inherited"}))

    def test_an_empty_sender_is_the_mailer_daemon_in_from_lines_only(self):
        got = self.environment(sender="")
        self.assertEqual((got["SENDER"], got["NEWSENDER"], got["RPLINE"]), ("", "", "Return-Path: <>\n"))
        self.assertTrue(got["UFLINE"].startswith("From MAILER-DAEMON "))

    def test_line_feeds_in_addresses_cannot_forge_lines(self):
        got = self.environment(local="joe\nX: y", sender="a\nb\tc d@e")
        self.assertEqual(got["DTLINE"], "Delivered-To: joe_X: y@host.example\n")
        self.assertEqual(got["RPLINE"], "Return-Path: <\"a\\_b\tc d\"@e>\n")
        self.assertTrue(got["UFLINE"].startswith("From a-b-c-d@e "))
        self.assertEqual(got["LOCAL"], "joe\nX: y")


class Owners(LocalCase):
    def new_sender(self, *files, sender="sender@else.example", ext="ext", file=".qmail-ext"):
        for name in files:
            self.write(name, "")
        self.write(file, f"|printf %s \"$NEWSENDER\" >'{self.home}/new-sender'\n&a@b\n")
        result = self.local(sender=sender, ext=ext, local=f"joe-{ext}")
        self.assertEqual(result.code, 0, result)
        new = read(self.home, "new-sender")
        self.assertEqual(read(self.system, "envelope"), b"F" + new + b"\0Ta@b\0\0")
        for name in files:
            os.unlink(f"{self.home}/{name}")
        return new.decode()

    def test_without_an_owner_the_sender_stays(self):
        self.assertEqual(self.new_sender(), "sender@else.example")
        self.assertEqual(self.new_sender(".qmail-ext-owner-default"), "sender@else.example")

    def test_an_owner_takes_the_bounces(self):
        self.assertEqual(self.new_sender(".qmail-ext-owner"), "joe-ext-owner@host.example")

    def test_with_owner_default_each_recipient_gets_a_bounce_address(self):
        self.assertEqual(self.new_sender(".qmail-ext-owner", ".qmail-ext-owner-default"),
                         "joe-ext-owner-@host.example-@[]")

    def test_bounces_have_no_owner(self):
        for sender in ("", "#@[]"):
            self.assertEqual(self.new_sender(".qmail-ext-owner", sender=sender), sender)

    def test_the_owner_is_that_of_the_whole_extension_even_when_a_default_file_is_used(self):
        self.assertEqual(self.new_sender(".qmail-a-b-owner", ext="A-b", file=".qmail-a-default"),
                         "joe-A-b-owner@host.example")
        self.assertEqual(self.new_sender(".qmail-a-owner", ext="a-b", file=".qmail-a-default"), "sender@else.example")

    def test_a_doubt_about_the_owner_is_temporary(self):
        os.symlink(".qmail-ext-owner", f"{self.home}/.qmail-ext-owner")
        self.write(".qmail-ext", "./Mailbox\n")
        self.ends(self.local(), 111, "Unable to stat .qmail-ext-owner: too many symbolic links. (#4.3.0)")


class Forwards(LocalCase):
    def setUp(self):
        super().setUp()
        self.write(".qmail-ext", "./Mailbox\n&a@b\nc d@e\n")

    def test_all_addresses_are_queued_at_once_with_one_line_before_the_message(self):
        result = self.local()
        self.assertEqual((result.code, result.err), (0, b""))
        self.assertRegex(result.out, rb"\Adid 1\+2\+0\nqp \d+\n\Z")
        self.assertEqual(read(self.system, "message"), DTLINE + MESSAGE)
        self.assertEqual(read(self.system, "envelope"), b"Fsender@else.example\0Ta@b\0Tc d@e\0\0")

    def test_a_large_message_arrives_whole(self):
        message = os.urandom(3_000_000)
        self.assertEqual(self.local(message=message).code, 0)
        self.assertEqual(read(self.system, "message"), DTLINE + message)

    def test_a_refusal_is_told_in_the_words_of_the_queue(self):
        for code, ours, text in ((31, 100, "mail server permanently rejected message (#5.3.0)"),
                                 (11, 100, "envelope address too long for qq (#5.1.3)"),
                                 (53, 111, "qq write error or disk full (#4.3.0)"),
                                 (101, 111, "qq temporary problem (#4.3.0)")):
            self.write("../system/exit", str(code))
            self.ends(self.local(), ours, f"Unable to forward message: {text}.")

    def test_a_refusal_in_own_words_is_passed_on(self):
        self.write("../system/exit", "82")
        for word, code in (("D", 100), ("Z", 111)):
            self.write("../system/text", f"{word}not today (#1.2.3)")
            self.ends(self.local(), code, "Unable to forward message: not today (#1.2.3).")

    def test_a_queue_that_cannot_be_started_is_temporary(self):
        result = self.local(env={"QMAILQUEUE": "/nonexistent/queue"})
        self.ends(result, 111, "Unable to forward message: unable to exec qq (#4.3.0).")

    def test_without_a_home_forwards_are_temporary_and_everything_else_goes_on(self):
        env = {"QMAIL_HOME": "/nonexistent"}
        result = self.local(env=env)
        self.assertEqual((result.code, result.out), (111, b""))
        self.assertIn(b"Unable to forward message: unable to use home /nonexistent: file does not exist", result.err)
        self.write(".qmail-ext", "./Mailbox\n|true\n")
        self.delivers("did 1+0+1\n", env=env)
        self.write(".qmail-ext", "&a@b\n")
        self.ends(self.local("-n", env=env), 0, out="forward a@b\ndid 0+1+0\n")


class Maildirs(LocalCase):
    def setUp(self):
        super().setUp()
        self.write(".qmail-ext", "./Maildir/\n")

    def test_the_message_stands_in_new_with_two_lines_before_it(self):
        self.maildir()
        self.delivers("did 1+0+0\n")
        self.assertEqual(self.in_maildir(), [RPLINE + DTLINE + MESSAGE])
        name, = os.listdir(f"{self.home}/Maildir/new")
        self.assertRegex(name, r"\A\d{10,}\.M\d{6}P\d+Q\d+\.[^/:]+\Z")
        self.assertLess(abs(int(name.split(".")[0]) - time.time()), 3600)
        self.assertEqual(os.stat(f"{self.home}/Maildir/new/{name}").st_mode & 0o7777, 0o600)
        self.assertEqual(os.listdir(f"{self.home}/Maildir/tmp"), [])

    def test_two_lines_are_two_messages(self):
        self.maildir()
        self.write(".qmail-ext", "./Maildir/\n./Maildir/\n")
        self.delivers("did 2+0+0\n")
        self.assertEqual(self.in_maildir(), [RPLINE + DTLINE + MESSAGE] * 2)

    def test_any_bytes_and_sizes_arrive_as_they_are(self):
        self.maildir()
        for message in (b"", b"\0\r\n\xff", os.urandom(200_000), b"x" * 65536):
            self.delivers("did 1+0+0\n", message=message)
            new = f"{self.home}/Maildir/new"
            name, = os.listdir(new)
            self.assertEqual(read(new, name), RPLINE + DTLINE + message)
            os.unlink(f"{new}/{name}")

    def test_a_missing_maildir_is_temporary(self):
        self.ends(self.local(), 111, "Unable to chdir to maildir. (#4.2.1)")

    def test_a_maildir_that_misses_a_part_is_temporary(self):
        self.maildir()
        for part in ("tmp", "new"):
            os.rmdir(f"{self.home}/Maildir/{part}")
            self.ends(self.local(), 111, "Temporary error on maildir delivery. (#4.3.0)")
            self.mkdir(f"home/Maildir/{part}")

    def test_a_maildir_that_is_none_of_ours_is_temporary(self):
        self.maildir()
        os.chmod(f"{self.home}/Maildir/tmp", 0o500)
        self.ends(self.local(), 111, "Temporary error on maildir delivery. (#4.3.0)")

    def test_a_new_that_can_be_written_but_not_read_is_served(self):
        self.maildir()
        os.chmod(f"{self.home}/Maildir/new", 0o300)
        self.delivers("did 1+0+0\n")
        os.chmod(f"{self.home}/Maildir/new", 0o700)
        self.assertEqual(self.in_maildir(), [RPLINE + DTLINE + MESSAGE])

    def test_whatever_fails_leaves_nothing_behind(self):
        self.maildir()
        for call, when, error in (("write", 1, "ENOSPC"), ("fsync", 1, "EIO"), ("linkat", 1, "EPERM"),
                                  ("fsync", 2, "EIO")):
            result = self.local(wrap=injecting(call, f"error={error}", when))
            self.ends(result, 111, "Temporary error on maildir delivery. (#4.3.0)")
            self.assertEqual((os.listdir(f"{self.home}/Maildir/tmp"), self.in_maildir()), ([], []), (call, when))

    def test_a_read_that_fails_is_temporary_whichever_it_is(self):
        self.maildir()
        said = []
        for when in range(1, 20):
            result = self.local(wrap=injecting("read", "error=EIO", when))
            if result.code == 0:
                break
            said.append(result.err)
            self.assertEqual((result.code, self.in_maildir()), (111, []), result)
        self.assertEqual(self.in_maildir(), [RPLINE + DTLINE + MESSAGE])
        for text in (b"Unable to read message: input/output error. (#4.3.0)\n", b"Unable to read message. (#4.3.0)\n",
                     b"Unable to read .qmail-ext: input/output error. (#4.3.0)\n"):
            self.assertIn(text, said)

    def test_the_file_is_synced_before_its_link_and_new_after_it(self):
        self.maildir()
        log = os.path.join(self.base, "calls")
        self.own(log_file(log))
        result = self.local(wrap=["strace", "-qq", "-o", log, "-e", "trace=openat,open,write,fsync,close,linkat,unlinkat,exit_group"])
        self.assertEqual(result.code, 0)
        calls = re.findall(r"(?m)^(\w+)\(", read(log).decode("latin-1"))
        self.assertEqual([c for c in calls if c in ("fsync", "linkat", "unlinkat", "exit_group")], ["fsync", "linkat", "fsync", "unlinkat", "exit_group"])

    def test_killed_at_any_call_it_has_delivered_nothing_or_all_and_the_retry_succeeds(self):
        for call in ("write", "fsync", "linkat", "unlinkat"):
            for when in ("1", "2"):
                with self.subTest(call=call, when=when):
                    self.maildir()
                    killed = self.local(wrap=injecting(call, "signal=SIGKILL", when), message=MESSAGE * 3000)
                    whole = RPLINE + DTLINE + MESSAGE * 3000
                    before = self.in_maildir()
                    # Nothing is visible unless it is whole.
                    self.assertIn(before, ([], [whole]))
                    if killed.code != 0:
                        self.assertEqual(killed.code, -9)
                    self.delivers("did 1+0+0\n", message=MESSAGE * 3000)
                    self.assertEqual(self.in_maildir(), before + [whole])
                    if call == "write" or (call, when) == ("fsync", "1"):
                        self.assertEqual(before, [])
                    shutil.rmtree(f"{self.home}/Maildir")


def log_file(path):
    open(path, "w").close()
    return path


class Mboxes(LocalCase):
    QUOTED = MESSAGE.replace(b"\nFrom ", b"\n>From ").replace(b"\n>From q", b"\n>>From q")

    def setUp(self):
        super().setUp()
        self.write(".qmail-ext", "./Mailbox\n")
        self.box = f"{self.home}/Mailbox"

    def record(self, content):
        return FROM_LINE + re.escape(RPLINE + DTLINE + content)

    def test_a_message_stands_between_a_from_line_and_an_empty_line(self):
        self.delivers("did 1+0+0\n")
        self.assertRegex(read(self.box), rb"\A" + self.record(self.QUOTED + b"\n\n") + rb"\Z")
        self.assertEqual(os.stat(self.box).st_mode & 0o7777, 0o600)

    def test_messages_come_one_after_the_other_and_can_be_told_apart(self):
        texts = [b"Subject: 1\n\nFrom x\n", b"", b"From y\nFrom z", b">>From a\n\n\n", b"Subject: 5\n\n>From\n From b\n"]
        for text in texts:
            self.delivers("did 1+0+0\n", message=text)
        content = read(self.box)
        # The way back is exact: split at From_ lines, take one > from lines that match >+From .
        parts = re.split(rb"(?m)^From .*\n", content)[1:]
        found = [re.sub(rb"(?m)^>(>*From )", rb"\1", part[:-1]) for part in parts]
        wanted = [RPLINE + DTLINE + text + (b"" if text.endswith(b"\n") or not text else b"\n") for text in texts]
        self.assertEqual(found, wanted)

    def test_python_reads_what_we_write(self):
        for n in range(3):
            self.delivers("did 1+0+0\n", message=b"Subject: %d\n\nFrom body\n" % n)
        box = mailbox.mbox(self.box)
        self.assertEqual([m["Subject"] for m in box], ["0", "1", "2"])
        box.close()

    def test_what_stands_there_stays(self):
        other = b"From other Thu Jan 01 00:00:00 1970\nSubject: old\n\ntext\n\n"
        self.write("Mailbox", other, 0o640)
        self.delivers("did 1+0+0\n")
        self.assertRegex(read(self.box), rb"\A" + re.escape(other) + self.record(self.QUOTED + b"\n\n") + rb"\Z")
        self.assertEqual(os.stat(self.box).st_mode & 0o7777, 0o640)

    def test_a_mailbox_that_ends_within_a_line_is_ended_first(self):
        for before, separator in ((b"text", b"\n\n"), (b"text\n", b"\n")):
            self.write("Mailbox", before)
            self.delivers("did 1+0+0\n")
            self.assertRegex(read(self.box), rb"\A" + before + separator + self.record(self.QUOTED + b"\n\n") + rb"\Z")

    def test_a_link_leads_to_the_mailbox(self):
        self.mkdir("home/mail")
        os.symlink("mail/box", self.box)
        self.delivers("did 1+0+0\n")
        self.assertIn(MESSAGE[:15], read(self.home, "mail/box"))

    def test_what_cannot_be_opened_is_temporary(self):
        os.mkdir(self.box)
        self.ends(self.local(), 111, "Unable to open ./Mailbox: is a directory. (#4.2.1)")
        self.write(".qmail-ext", "./no/Mailbox\n")
        self.ends(self.local(), 111, "Unable to open ./no/Mailbox: file does not exist. (#4.2.1)")

    def test_what_keeps_nothing_is_refused(self):
        os.mkfifo(self.box)
        self.own(self.box)
        self.ends(self.local(), 111, "Unable to open ./Mailbox: invalid argument. (#4.2.1)")
        self.write(".qmail-ext", "/dev/null\n")
        self.ends(self.local(), 111, "Unable to open /dev/null: invalid argument. (#4.2.1)")

    def test_a_name_of_absurd_length_does_not_flood_the_report(self):
        self.write(".qmail-ext", "./" + "x" * 5000 + "\n")
        result = self.local()
        self.assertEqual(result.code, 111)
        self.assertLess(len(result.err), 400)

    def test_a_mailbox_that_can_only_be_written_is_served(self):
        self.write("Mailbox", b"", 0o200)
        self.delivers("did 1+0+0\n")
        os.chmod(self.box, 0o600)
        self.assertIn(MESSAGE[:15], read(self.box))

    def test_it_waits_for_the_lock(self):
        holder = os.open(self.write("Mailbox"), os.O_RDWR)
        fcntl.flock(holder, fcntl.LOCK_EX)
        argv = self.command()
        argv[0] = harness.program(argv[0])
        as_user = {"user": self.user[0], "group": self.user[1], "extra_groups": []} if self.user else {}
        waiting = subprocess.Popen(argv, env=self.env, cwd="/", stdin=self.open_message(MESSAGE),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, **as_user)
        inode = os.stat(self.box).st_ino
        harness.wait_for(lambda: re.search(rf"->.*FLOCK.*:{inode} ".encode(), read("/proc/locks")), "a waiter for the lock")
        self.assertEqual(read(self.box), b"")
        os.write(holder, b"held\n\n")
        os.close(holder)
        out, err = waiting.communicate(timeout=harness.TIMEOUT)
        self.assertEqual((waiting.returncode, out, err), (0, b"did 1+0+0\n", b""))
        self.assertRegex(read(self.box), rb"\Aheld\n\n" + self.record(self.QUOTED + b"\n\n") + rb"\Z")

    def test_a_lock_held_for_thirty_seconds_is_temporary(self):
        # Costs half a minute of waiting and no processor.
        holder = os.open(self.write("Mailbox", "x\n\n"), os.O_RDWR)
        self.addCleanup(os.close, holder)
        fcntl.flock(holder, fcntl.LOCK_EX)
        argv = self.command()
        result = harness.run(argv, env=self.env, fds={0: self.open_message(MESSAGE)}, cwd="/", as_user=self.user,
                             timeout=harness.TIMEOUT + 60)
        self.ends(result, 111, "File has been locked for 30 seconds straight. (#4.3.0)")
        self.assertEqual(read(self.box), b"x\n\n")

    def test_a_mailbox_replaced_while_we_wait_is_opened_again(self):
        holder = os.open(self.write("Mailbox"), os.O_RDWR)
        fcntl.flock(holder, fcntl.LOCK_EX)
        argv = self.command()
        argv[0] = harness.program(argv[0])
        as_user = {"user": self.user[0], "group": self.user[1], "extra_groups": []} if self.user else {}
        waiting = subprocess.Popen(argv, env=self.env, cwd="/", stdin=self.open_message(MESSAGE),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, **as_user)
        inode = os.stat(self.box).st_ino
        harness.wait_for(lambda: re.search(rf"->.*FLOCK.*:{inode} ".encode(), read("/proc/locks")), "a waiter for the lock")
        self.write("Mailbox.rewritten", "rewritten\n\n")
        os.rename(f"{self.box}.rewritten", self.box)
        os.close(holder)
        out, err = waiting.communicate(timeout=harness.TIMEOUT)
        self.assertEqual((waiting.returncode, out, err), (0, b"did 1+0+0\n", b""))
        self.assertRegex(read(self.box), rb"\Arewritten\n\n" + self.record(self.QUOTED + b"\n\n") + rb"\Z")

    def test_deliveries_at_once_do_not_mix(self):
        argv = self.command()
        argv[0] = harness.program(argv[0])
        as_user = {"user": self.user[0], "group": self.user[1], "extra_groups": []} if self.user else {}
        running = []
        for n in range(8):
            path = os.path.join(self.base, f"message {n}")
            with open(path, "wb") as f:
                f.write(b"Subject: %d\n\n" % n + b"line %d\n" % n * 30_000)
            with open(path, "rb") as f:
                running.append(subprocess.Popen(argv, env=self.env, cwd="/", stdin=f, stdout=subprocess.DEVNULL, **as_user))
        self.assertEqual([p.wait(harness.TIMEOUT) for p in running], [0] * 8)
        parts = re.split(rb"(?m)^From .*\n", read(self.box))[1:]
        wanted = [RPLINE + DTLINE + b"Subject: %d\n\n" % n + b"line %d\n" % n * 30_000 + b"\n" for n in range(8)]
        self.assertEqual(sorted(parts), sorted(wanted))

    def test_where_locks_do_not_work_it_delivers_all_the_same(self):
        self.write("Mailbox", "x\n\n")
        result = self.local(wrap=injecting("flock", "error=ENOLCK", "1+"))
        self.ends(result, 0, out="did 1+0+0\n")
        self.assertIn(MESSAGE[:15], read(self.box))

    def test_a_failure_cuts_back_to_what_was_there(self):
        before = b"From x Thu Jan 01 00:00:00 1970\n\nold\n\n"
        for call, error, text, whens in (("write", "ENOSPC", "out of disk space", (1, 2, 3)),
                                         ("fsync", "EIO", "input/output error", (1, 2))):
            for when in whens:
                self.write("Mailbox", before)
                result = self.local(wrap=injecting(call, f"error={error}", when), message=MESSAGE * 4000)
                self.ends(result, 111, f"Unable to write ./Mailbox: {text}. (#4.3.0)")
                self.assertEqual(read(self.box), before, (call, when))

    def test_a_file_size_limit_is_a_failure_like_others(self):
        before = b"From x Thu Jan 01 00:00:00 1970\n\nold\n\n"
        self.write("Mailbox", before)
        result = self.local(wrap=["sh", "-c", 'ulimit -f 20; exec "$@"', "sh"], message=MESSAGE * 4000)
        self.ends(result, 111, "Unable to write ./Mailbox: file too big. (#4.3.0)")
        self.assertEqual(read(self.box), before)

    def test_the_file_and_its_directory_are_synced_before_success(self):
        log = os.path.join(self.base, "calls")
        self.own(log_file(log))
        result = self.local(wrap=["strace", "-qq", "-o", log, "-e", "trace=write,fsync,exit_group,flock"])
        self.assertEqual(result.code, 0)
        calls = re.findall(r"(?m)^(\w+)\(", read(log).decode("latin-1"))
        self.assertEqual(calls, ["flock", "write", "fsync", "fsync", "flock", "write", "exit_group"])

    def test_killed_while_appending_it_leaves_no_trace_after_the_retry(self):
        message = b"Subject: long\n\n" + b"From line\n\nand text\n" * 20_000
        before = b"From x Thu Jan 01 00:00:00 1970\n\nold\n\n"
        quoted = message.replace(b"\nFrom ", b"\n>From ")
        wanted = rb"\A" + re.escape(before) + FROM_LINE + re.escape(RPLINE + DTLINE + quoted + b"\n") + rb"\Z"
        for when in (2, 3, 5):
            with self.subTest(when=when):
                self.write("Mailbox", before)
                killed = self.local(wrap=injecting("write", "signal=SIGKILL", when), message=message)
                self.assertEqual(killed.code, -9)
                self.assertGreater(len(read(self.box)), len(before))
                self.delivers("did 1+0+0\n", message=message)
                self.assertRegex(read(self.box), wanted)

    def test_a_tail_torn_at_any_byte_is_replaced(self):
        self.delivers("did 1+0+0\n")
        whole = read(self.box)
        old = b"From x Thu Jan 01 00:00:00 1970\n\nold\n\n"
        for at in list(range(5, len(whole), 7)) + [len(whole) - 1]:
            if whole[:at].endswith(b"\n\n"):
                continue
            for before in (b"", old):
                # As an attempt an hour ago would have left it.
                torn = re.sub(rb"\d\d:\d\d:\d\d", b"01:02:03", whole[:at])
                self.write("Mailbox", before + torn)
                self.delivers("did 1+0+0\n")
                self.assertRegex(read(self.box), rb"\A" + before + self.record(self.QUOTED + b"\n\n") + rb"\Z", at)

    def test_zeros_in_the_place_of_a_message_are_removed(self):
        self.write("Mailbox", b"From x Thu Jan 01 00:00:00 1970\n\nold\n\n" + bytes(5000))
        self.delivers("did 1+0+0\n")
        self.assertRegex(read(self.box), rb"\AFrom x .*\n\nold\n\n" + self.record(self.QUOTED + b"\n\n") + rb"\Z")

    def test_a_tail_that_may_be_anybodys_is_kept(self):
        self.delivers("did 1+0+0\n")
        whole = read(self.box)
        header_end = whole.index(b"\n\n") + 2
        for tail in (whole, whole[:header_end], whole[:-1].replace(b"hello", b"other"),
                     whole[:-1].replace(b"sender@", b"someone@"), whole[:-1].replace(b"joe-ext@", b"jim-ext@"),
                     b"text\n" + whole[:-1], whole + b"more", b"text\n\nFrom"):
            self.write("Mailbox", tail)
            self.delivers("did 1+0+0\n")
            self.assertTrue(read(self.box).startswith(tail), tail)
            self.assertRegex(read(self.box), rb"\n\n" + self.record(self.QUOTED + b"\n\n") + rb"\Z")

    def test_nothing_is_cut_without_the_lock(self):
        self.delivers("did 1+0+0\n")
        torn = read(self.box)[:-10]
        self.write("Mailbox", torn)
        self.assertEqual(self.local(wrap=injecting("flock", "error=ENOLCK", "1+")).code, 0)
        self.assertTrue(read(self.box).startswith(torn + b"\n\nFrom "))


class UnderTheJudge(LocalCase):
    """Every system call of a delivery, failing or fatal."""

    # What only the C library, the loader and the end of a process do.
    IGNORED = {"execve", "exit_group", "exit", "brk", "mmap", "munmap", "mprotect", "arch_prctl", "set_tid_address", "rseq",
               "set_robust_list", "prlimit64", "getrandom", "sigaltstack", "rt_sigaction", "rt_sigprocmask", "close",
               "prctl", "sched_getaffinity", "close_range", "gettid", "getpid", "umask", "rt_sigreturn", "restart_syscall",
               "tkill", "uname", "alarm", "wait4", "futex", "access", "readlink"}

    def calls(self):
        """(name, number of invocations) of a delivery that goes well."""
        log = os.path.join(self.base, "calls")
        self.own(log_file(log))
        result = self.local(wrap=["strace", "-qq", "-o", log])
        self.assertEqual(result.code, 0, result)
        count = {}
        for name in re.findall(r"(?m)^(\w+)\(", read(log).decode("latin-1")):
            count[name] = count.get(name, 0) + 1
        return [(name, when) for name, n in count.items() if name not in self.IGNORED for when in range(1, n + 1)]

    def sweep(self, clear, judge):
        """Fails each call, then kills at each, and judges the mailbox after it and after a retry."""
        calls = self.calls()
        self.assertGreater(len(calls), 10)
        for call, when in calls:
            for what in ("error=EIO", "error=ENOMEM", "signal=SIGKILL"):
                with self.subTest(call=call, when=when, what=what):
                    clear()
                    result = self.local(wrap=injecting(call, what, when))
                    if what.startswith("error"):
                        self.assertTrue(result.code in (0, 111) or result.code < 0, result)
                    judge(0 if result.code else 1, 1, killed=result.code < 0)
                    if result.code:
                        self.delivers("did 1+0+0\n")
                        judge(1, 2, killed=False)

    def test_a_maildir_is_never_torn_and_success_is_never_a_lie(self):
        self.write(".qmail-ext", "./Maildir/\n")
        self.maildir()

        def clear():
            shutil.rmtree(f"{self.home}/Maildir")
            self.maildir()

        def judge(least, most, killed):
            found = self.in_maildir()
            self.assertEqual(set(found), {RPLINE + DTLINE + MESSAGE} if found else set())
            self.assertTrue(least <= len(found) <= most, len(found))

        self.sweep(clear, judge)

    def test_a_mailbox_is_never_torn_after_the_retry_and_success_is_never_a_lie(self):
        self.write(".qmail-ext", "./Mailbox\n")
        old = b"From x Thu Jan 01 00:00:00 1970\n\nold\n\n"
        box = f"{self.home}/Mailbox"
        whole = FROM_LINE + re.escape(RPLINE + DTLINE + Mboxes.QUOTED + b"\n\n")

        def judge(least, most, killed):
            if not killed:
                self.assertRegex(read(box), rb"\A%s(%s){%d,%d}\Z" % (re.escape(old), whole, least, most))

        self.sweep(lambda: self.write("Mailbox", old), judge)

    def faults(self, evidence):
        """Fails each call of a delivery that leaves this file, which must be there and right after a success."""
        path, content = evidence
        calls = self.calls()
        self.assertGreater(len(calls), 10)
        for call, when in calls:
            for error in ("EIO", "ENOMEM", "EAGAIN"):
                with self.subTest(call=call, when=when, error=error):
                    os.unlink(path)
                    result = self.local(wrap=injecting(call, f"error={error}", when, children=False))
                    self.assertTrue(result.code in (0, 111) or result.code < 0, result)
                    if result.code == 0:
                        self.assertEqual(read(path), content)
                    elif not os.path.exists(path):
                        open(path, "w").close()

    def test_a_program_delivery_never_bounces_for_a_fault_of_the_system(self):
        self.write(".qmail-ext", "|cat >got\n")
        self.faults((f"{self.home}/got", MESSAGE))

    def test_a_forward_never_bounces_for_a_fault_of_the_system(self):
        self.write(".qmail-ext", "&a@b\n&c@d\n")
        self.faults((f"{self.system}/envelope", b"Fsender@else.example\0Ta@b\0Tc@d\0\0"))


class InTheSystem(unittest.TestCase):
    def test_a_forward_goes_through_the_queue_of_the_home(self):
        with harness.Home(users={"joe": "secret", "ann": "secret"}) as home:
            home.dotqmail(".qmail-list", "&ann@test.example\n")
            home.dotqmail(".qmail-list-owner", "./Maildir/\n")
            home.start()
            home.inject("Subject: to the list\n\nhello\n", "sender@else.example", ["joe-list@test.example"])
            home.wait_empty()
            message, = home.messages("ann")
            self.assertTrue(message.startswith(b"Return-Path: <joe-list-owner@test.example>\n"
                                               b"Delivered-To: ann@test.example\n"), message)
            self.assertIn(b"\nDelivered-To: joe-list@test.example\n", message)
            self.assertTrue(message.endswith(b"Subject: to the list\n\nhello\n"))
            self.assertRegex(home.log(), r"success: did_0\+1\+0/qp_\d+/")


if __name__ == "__main__":
    unittest.main()
