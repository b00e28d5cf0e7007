"""qmail-showctl: what it says of each control file, and of what is missing, unknown or unreadable."""

import os
import pwd
import re
import shutil
import subprocess
import unittest

from tests import harness, sandbox
from tests.harness import Home, run

HOME = None


def setUpModule():
    global HOME
    HOME = Home()
    unittest.addModuleCleanup(HOME.__exit__)


class Showctl(unittest.TestCase):
    def setUp(self):
        """Only control/me."""
        for name in os.listdir(HOME.file("control")):
            path = HOME.file("control", name)
            if os.path.isdir(path):
                os.rmdir(path)
            else:
                os.unlink(path)
        HOME.control("me", "test.example\n")

    def show(self, env=None):
        r = HOME.run(["qmail-showctl"], env=env)
        self.assertEqual((r.code, r.err), (1 if b"\n\nproblems: \n" in r.out else 0, b""))
        return r.out.decode()

    def sections(self):
        """{file: text} of everything after the head; notes and problems are no files."""
        found = dict(part.split(": ", 1) for part in self.show().rstrip("\n").split("\n\n")[1:])
        return {name: text for name, text in found.items() if name not in ("notes", "problems")}

    def test_the_head_says_what_is_built_in_and_who_the_users_are(self):
        owner = os.stat(HOME.path)
        uid, gid = owner.st_uid, owner.st_gid
        head = self.show().split("\n\n")[0].split("\n")
        self.assertEqual(head, [
            f"qmail home directory: {HOME.path}.",
            "user-ext delimiter: -.",
            "paternalism (in decimal): 2.",
            "silent concurrency limit: 120.",
            "subdirectory split: 23.",
            "user ids: " + ", ".join([str(uid)] * 8) + ".",
            f"group ids: {gid}, {gid}.",
            f"home kind: own, everything runs as uid {uid} and gid {gid}.",
        ])

    def test_files_come_in_alphabetical_order_with_morercpthosts_behind_rcpthosts(self):
        names = list(self.sections())
        expected = sorted(names)
        for name in ("morercpthosts", "morercpthosts.cdb"):
            expected.remove(name)
        at = expected.index("rcpthosts") + 1
        expected[at:at] = ["morercpthosts", "morercpthosts.cdb"]
        self.assertEqual(names, expected)

    def test_what_is_missing_has_its_default(self):
        got = self.sections()
        self.assertEqual(got.pop("me"), "My name is test.example.")
        for name, text in got.items():
            self.assertTrue(text.startswith("(Default.) "), (name, text))
        self.assertEqual(got["concurrencyremote"], "(Default.) Remote concurrency is 20.")
        self.assertEqual(got["helohost"], "(Default.) SMTP client HELO host name is test.example.")
        self.assertEqual(got["locals"], "(Default.) Messages for test.example are delivered locally.")
        self.assertEqual(got["rcpthosts"], "(Default.) SMTP clients may send messages to any recipient.")
        self.assertEqual(got["bouncefrom"], "(Default.) Bounce user name is MAILER-DAEMON.")

    def test_what_is_there_is_shown_without_default(self):
        HOME.control("concurrencyremote", "55 of them\n")
        HOME.control("concurrencylocal", "many\n")
        HOME.control("helohost", "helo.example \nnext\n")
        HOME.control("rcpthosts", "# comment\none.example\n\n.two.example\n")
        HOME.control("virtualdomains", "v.example:joe\n")
        HOME.control("badmailfrom", "")
        got = self.sections()
        self.assertEqual(got["concurrencyremote"], "Remote concurrency is 55.")
        self.assertEqual(got["concurrencylocal"], "(Default.) Local concurrency is 10.")
        self.assertEqual(got["helohost"], "SMTP client HELO host name is helo.example.")
        self.assertEqual(got["rcpthosts"], "\nSMTP clients may send messages to recipients at one.example.\n"
                         "SMTP clients may send messages to recipients at .two.example.")
        self.assertEqual(got["virtualdomains"], "\nVirtual domain: v.example:joe.")
        self.assertIn("\nbadmailfrom: \n\n", self.show())

    def test_without_me_the_files_that_need_it_say_so(self):
        os.unlink(HOME.file("control/me"))
        got = self.sections()
        self.assertEqual(got["me"], "(Default.) My name is undefined! Uh-oh.")
        self.assertEqual(got["smtpgreeting"], "(Default.) SMTP greeting: 220 undefined! Uh-oh.")
        self.assertEqual(got["defaulthost"], "(Default.) Default host name is defaulthost.")

    def test_an_unreadable_file_is_said_to_be_trouble(self):
        for name in ("databytes", "rcpthosts", "helohost"):
            os.mkdir(HOME.file("control", name))
        got = self.sections()
        for name in ("databytes", "rcpthosts", "helohost"):
            self.assertEqual(got[name], "Oops! Trouble reading this file.")

    def test_an_unreadable_me_or_no_control_or_no_home_is_the_end(self):
        os.unlink(HOME.file("control/me"))
        os.mkdir(HOME.file("control/me"))
        r = HOME.run(["qmail-showctl"])
        self.assertEqual(r.code, 111)
        self.assertTrue(r.out.endswith(b"Oops! unable to read control/me: is a directory (#4.3.0).\n"), r.out)
        os.rename(HOME.file("control"), HOME.file("elsewhere"))
        try:
            r = HOME.run(["qmail-showctl"])
        finally:
            os.rename(HOME.file("elsewhere"), HOME.file("control"))
        self.assertEqual((r.code, r.err), (111, b""))
        self.assertRegex(r.out, rb"\nOops! unable to read [^\n]*/control: file does not exist\.\n$")
        r = HOME.run(["qmail-showctl"], env={"QMAIL_HOME": "/nonexistent"})
        self.assertEqual((r.code, r.out), (111, b"Oops! unable to use home /nonexistent: file does not exist.\n"))

    def test_unknown_files_are_reported_and_nothing_of_them_reaches_the_terminal_raw(self):
        HOME.control("defaultdelivery", "./Maildir/\n")
        HOME.control("me", "test\x1b[2J.example\n")
        HOME.control("a\x1bb", "")
        got = self.sections()
        self.assertEqual(got["defaultdelivery"], "I have no idea what this file does.")
        self.assertEqual(got["a?b"], "I have no idea what this file does.")
        self.assertEqual(got["me"], "My name is test?[2J.example.")

    def test_what_is_in_pem_is_named_and_not_shown(self):
        os.mkdir(HOME.file("control/tls"))
        HOME.control("tlsca", "secret\n")
        got = self.sections()
        self.assertEqual(got["tls"], "Certificates and keys, of tlsserver and tlsclient.")
        self.assertEqual(got["tlsca"], "Authorities that tlsclient trusts, in the place of the system's.")

    def test_morercpthosts_and_its_database_are_compared(self):
        database = lambda: self.sections()["morercpthosts.cdb"]
        HOME.control("morercpthosts", "a.example\n")
        self.assertEqual(database(), "Oops! morercpthosts exists but morercpthosts.cdb doesn't. Run qmail-newmrh.")
        self.assertEqual(HOME.run(["qmail-newmrh"]).code, 0)
        self.assertEqual(database(), "Up to date.")
        os.utime(HOME.file("control/morercpthosts.cdb"), (1, 1))
        self.assertEqual(database(), "Oops! morercpthosts.cdb is older than morercpthosts. Run qmail-newmrh.")
        os.unlink(HOME.file("control/morercpthosts"))
        self.assertEqual(database(), "Oops! morercpthosts.cdb exists but morercpthosts doesn't.")
        HOME.control("morercpthosts", "a.example\n")
        os.utime(HOME.file("control/morercpthosts"), (1, 1))
        HOME.control("morercpthosts.cdb", "damaged")
        self.assertEqual(database(), "Oops! Trouble reading this file.")

    def test_the_index_of_senders_is_compared_with_them(self):
        index = lambda: self.sections()["submissionsenders.cdb"]
        self.assertEqual(index(), "(Default.) submissionsenders is read at each login.")
        HOME.control("submissionsenders", "joe:a@b.example\n")
        self.assertEqual(HOME.run(["qmail-newsenders"]).code, 0)
        self.assertEqual(index(), "Up to date.")
        HOME.control("submissionsenders", "joe:a@c.example\n")
        self.assertEqual(index(), "Oops! submissionsenders.cdb is not of submissionsenders as it is. Run qmail-newsenders.")
        os.unlink(HOME.file("control/submissionsenders"))
        self.assertEqual(index(), "Oops! submissionsenders.cdb exists but submissionsenders doesn't.")
        HOME.control("submissionsenders", "")
        HOME.control("submissionsenders.cdb", "damaged")
        self.assertEqual(index(), "Oops! Trouble reading this file.")

    def test_output_that_cannot_be_written_is_111(self):
        with open("/dev/full", "wb") as full:
            self.assertEqual(HOME.run(["qmail-showctl"], fds={1: full.fileno()}).code, 111)

    @unittest.skipUnless(os.geteuid() == 0, "only root can make a system home")
    def test_a_system_home_shows_its_users(self):
        base = harness.scratch()
        self.addCleanup(shutil.rmtree, base)
        os.chown(base, 0, 0)
        for name in ("control", "users"):
            os.mkdir(os.path.join(base, name))
        ids = ["alias:11:21", "qmaild:12:21", "qmaill:13:21", "root:0:0", "qmailp:14:21", "qmailq:15:22", "qmailr:16:22", "qmails:17:22"]
        with open(os.path.join(base, "users/ids"), "w") as f:
            f.write("\n".join(ids) + "\n")
        r = run(["qmail-showctl"], env={"QMAIL_HOME": base, "PATH": os.environ["PATH"]})
        self.assertEqual(r.code, 1)  # there is no queue and no control/me
        self.assertIn(b"\nuser ids: 11, 12, 13, 0, 14, 15, 16, 17.\ngroup ids: 21, 22.\nhome kind: system, ", r.out)
        self.assertNotIn(b"\nusers/ids: ", r.out)
        os.unlink(os.path.join(base, "users/ids"))
        r = run(["qmail-showctl"], env={"QMAIL_HOME": base, "PATH": os.environ["PATH"]})
        self.assertTrue(re.search(rb"\nuser ids: unknown, .*\nusers/ids: \(Default\.\) ", r.out, re.S), r.out)


def findings(result, home):
    """(notes, problems) as lists of lines; the home is written as ~."""
    found = {}
    for part in result.out.decode().rstrip("\n").split("\n\n")[1:]:
        heading, _, lines = part.partition(": \n")
        if heading in ("notes", "problems"):
            found[heading] = lines.replace(home, "~").split("\n")
    return found.get("notes", []), found.get("problems", [])


# What is written, and what is said of it.
WRONG = [
    ({"concurrencyremote": "55 of them\n"}, ['control/concurrencyremote: "55 of them" is more than a number: 55 is taken: correct it']),
    ({"databytes": "10M\n"}, ['control/databytes: "10M" is more than a number: 10 is taken: correct it']),
    ({"queuelifetime": "a week\n"}, ['control/queuelifetime: "a week" is no number: the default is taken: correct it']),
    ({"timeoutsmtpd": ""}, ['control/timeoutsmtpd: "" is no number: the default is taken: correct it']),
    ({"me": None}, ["control/me: missing: write the full name of this host into it"]),
    ({"me": "mail.example.\n"}, ['control/me: "mail.example." has a dot at its beginning or end, or two together: correct it']),
    ({"me": "mail.example\r\n"}, ['control/me: "mail.example?" has a character that no domain has: correct it']),
    ({"helohost": "mail_of us\n"}, ['control/helohost: "mail_of us" has a character that no domain has: correct it']),
    ({"defaulthost": "joe@test.example\n"}, ['control/defaulthost: "joe@test.example" is an address, where a domain is meant: correct it']),
    ({"smtpgreeting": "\n"}, ['control/smtpgreeting: "" is empty: correct it']),
    ({"doublebounceto": "joe@test.example\n"}, ['control/doublebounceto: "joe@test.example" has an @, and the host is added behind it: correct it']),
    ({"rcpthosts": None}, ["control/rcpthosts: missing, and so everybody can send mail to every domain through this host: "
                           "write the domains that this host takes mail for into it"]),
    ({"rcpthosts": "test.example\n*.wild.example\n"}, ['control/rcpthosts: "*.wild.example" has a character that no domain has: correct it']),
    ({"locals": "test.example\n.all.example\n"},
     ['control/locals: ".all.example" begins with a dot, and there are no wildcards here: correct it']),
    ({"locals": "b\xfccher.example\n"}, ['control/locals: "b??cher.example" has letters that are not ASCII: its xn-- form is meant: correct it']),
    ({"badmailfrom": "spam.example\n@good.example\n"}, ['control/badmailfrom: "spam.example" has no @, and so no sender is like it: correct it']),
    ({"virtualdomains": "v.example\n"}, ['control/virtualdomains: "v.example" has no colon, and is ignored: correct it']),
    ({"virtualdomains": "Test.example:joe\n.x.example:joe\n:joe\njoe@v.example:joe\n"},
     ['control/virtualdomains: "Test.example:joe" is never used: the domain is in control/locals: correct it']),
    ({"virtualdomains": "v.example:joe\nV.example:ann\n"},
     ['control/virtualdomains: "V.example:ann" takes the place of an earlier line of the same key: correct it']),
    ({"smtproutes": "a.example:relay:25\n:[10.0.0.1]:587\n.b.example:\nc.example:relay:smtp\nd.example relay\ne.example::25\n"},
     ['control/smtproutes: "c.example:relay:smtp" has a port that is no number from 1 to 65535: correct it',
      'control/smtproutes: "d.example relay" has no colon, and is ignored: correct it',
      'control/smtproutes: "e.example::25" names no usable relay: correct it']),
    ({"concurencylocal": "5\n", "defaultdelivery": "./Maildir/\n", "locals~": "x\n"},
     ["control/concurencylocal: no program reads it: rename it to concurrencylocal, or remove it"]),
    ({"morercpthosts": "more.example\n"}, ["control/morercpthosts.cdb: missing, and so control/morercpthosts has no effect: run qmail-newmrh"]),
]


class Problems(unittest.TestCase):
    """A home as mkhome makes it, and what is done to it."""

    maxDiff = None

    def setUp(self):
        self.home = Home()
        self.addCleanup(self.home.__exit__)

    def look(self, **more):
        result = self.home.run(["qmail-showctl"], **more)
        notes, problems = findings(result, self.home.path)
        self.assertEqual((result.code, result.err), (1 if problems else 0, b""), result)
        return notes, problems

    def test_a_home_as_it_is_made_has_none_and_daemons_that_do_not_run_are_only_noted(self):
        notes, problems = self.look()
        self.assertEqual(problems, [])
        self.assertEqual(notes, ["~/run/queue: nobody listens: qmail-queued is not running, and mail cannot be handed in",
                                 "~/queue/lock/trigger: nobody reads it: qmail-send is not running, and nothing is delivered"])
        self.home.start()
        self.assertEqual(self.look(), ([], []))
        self.assertEqual(self.home.inject("Subject: x\n\n", "a@b.example", ["joe@test.example"]).code, 0)
        harness.wait_for(lambda: self.home.messages(), "mail, although somebody had knocked at the door")

    def test_each_wrong_value_is_told_with_its_file_and_all_of_them_at_once(self):
        wrote, expected = {}, []
        for files, lines in WRONG:
            with self.subTest(files):
                before = {}
                for name, text in files.items():
                    path = self.home.file("control", name)
                    before[name] = open(path).read() if os.path.exists(path) else None
                    if text is None:
                        os.unlink(path)
                    else:
                        self.home.control(name, text)
                self.assertEqual(self.look()[1], ["~/" + line for line in lines])
                for name, text in before.items():
                    if text is None:
                        os.unlink(self.home.file("control", name))
                    else:
                        self.home.control(name, text)
                if not set(files) & (set(wrote) | {"me", "locals", "rcpthosts"}):  # each once, and none that changes others
                    wrote.update(files)
                    expected += lines
        self.assertEqual(self.look()[1], [])
        for name, text in wrote.items():
            self.home.control(name, text)
        self.assertGreater(len(expected), 10)
        self.assertEqual(sorted(self.look()[1]), sorted("~/" + line for line in expected))

    def test_what_may_be_meant_so_is_a_note(self):
        for files, line in (({"concurrencylocal": "0\n"}, "control/concurrencylocal: 0 holds all deliveries back"),
                            ({"concurrencyremote": "500\n"}, "control/concurrencyremote: more than 255, which is the most that a spawner does at once"),
                            ({"rcpthosts": "# none\n"}, "control/rcpthosts: names no domain: mail is taken only from clients that may relay"),
                            ({"me": "mail\n"}, "control/me: a name without a dot: other hosts may refuse mail from it")):
            for name, text in files.items():
                self.home.control(name, text)
            notes, problems = self.look()
            self.assertEqual(problems, [])
            self.assertIn("~/" + line, notes)

    def test_a_list_of_nonsense_does_not_flood(self):
        self.home.control("rcpthosts", "".join(f"bad domain {n}\n" for n in range(1000)))
        problems = self.look()[1]
        self.assertEqual(len(problems), 21)
        self.assertEqual(problems[-1], "~/control/rcpthosts: 980 more of its lines are wrong: correct them")

    def test_a_file_that_is_none_is_a_problem_and_a_fifo_does_not_hold_it_up(self):
        os.unlink(self.home.file("control/locals"))
        os.mkdir(self.home.file("control/locals"))
        os.mkfifo(self.home.file("control/databytes"))
        problems = self.look()[1]
        self.assertIn("~/control/locals: it should be a file: move it away and run scripts/mkhome ~", problems)
        self.assertIn("~/control/locals: cannot be read (is a directory), and programs that need it refuse to work: make it a file, or remove it",
                      problems)
        self.assertIn("~/control/databytes: it should be a file: move it away and run scripts/mkhome ~", problems)

    def test_databases_are_compared_with_what_they_were_made_from(self):
        future = 2 ** 31
        for source, line in (("users/assign", "users/cdb: older than users/assign: run qmail-newu"),
                             ("tcp/smtp", "tcp/smtp.cdb: older than tcp/smtp: run tcprules ~/tcp/smtp.cdb ~/tcp/smtp.tmp <~/tcp/smtp")):
            path = self.home.file(source)
            before = os.stat(path)
            os.utime(path, (future, future))
            self.assertEqual(self.look()[1], ["~/" + line])
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.rename(self.home.file("users/cdb"), self.home.file("users/away"))
        self.assertEqual(self.look()[1], ["~/users/cdb: missing, and so users/assign has no effect: run qmail-newu"])
        self.home.write("users/cdb", b"x" * 100)
        self.assertEqual(self.look()[1], ["~/users/cdb: damaged: local mail is put off: run qmail-newu"])
        os.unlink(self.home.file("users/assign"))
        self.assertIn("~/users/cdb: made from users/assign, which is gone: remove it, or bring that back", self.look()[1])

    def test_what_strangers_could_spoil_is_told_all_at_once(self):
        for name, mode in (("control", 0o777), ("control/me", 0o666), ("queue/lock/trigger", 0o666), ("tcp/smtp.cdb", 0o646), ("run", 0o775)):
            os.chmod(self.home.file(name), mode)
        os.rmdir(self.home.file("queue/bounce"))
        os.unlink(self.home.file("bin/qmail-clean"))
        problems = self.look()[1]
        # The group is the owner's, and so may write control/me, but not the directories.
        self.assertEqual(sorted(problems), sorted([
            "~/control: everybody can write it: chmod go-w ~/control",
            "~/control/me: everybody can write it: chmod o-w ~/control/me",
            "~/queue/lock/trigger: everybody can read it: chmod go-r ~/queue/lock/trigger",
            "~/tcp/smtp.cdb: everybody can write it: chmod o-w ~/tcp/smtp.cdb",
            "~/run: group %d can write it: chmod g-w ~/run" % os.stat(self.home.file("run")).st_gid,
            "~/queue/bounce: file does not exist: run scripts/mkhome ~",
            "~/bin/qmail-clean: file does not exist: run scripts/mkhome ~"]))
        # Whoever starts it hears the first of these.
        result = self.home.run(["qmail-start"])
        self.assertEqual(result.code, 111)
        self.assertIn(b"bin/qmail-clean: file does not exist", result.err)


@sandbox.alone
class OfASystemHome(unittest.TestCase):
    HOME = "/var/qmail"
    ENV = {"PATH": f"/var/qmail/bin:{os.environ['PATH']}"}
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        subprocess.run([os.path.join(harness.ROOT, "scripts", "mkhome"), "--system", "--me", "mail.test.example", "--bin", harness.BIN],
                       check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["useradd", "joe"], check=True)

    def look(self, user="root"):
        account = pwd.getpwnam(user)
        result = run(["/var/qmail/bin/qmail-showctl"], env=self.ENV, as_user=(account.pw_uid, account.pw_gid) if user != "root" else None)
        notes, problems = findings(result, self.HOME)
        self.assertEqual((result.code, result.err), (1 if problems else 0, b""), result)
        return notes, problems

    def do(self, command):
        subprocess.run(["sh", "-ec", command], cwd=self.HOME, check=True)

    def test_root_finds_nothing_wrong_with_one_as_it_is_made(self):
        self.assertEqual(self.look(), (["~/run/queue: nobody listens: qmail-queued is not running, and mail cannot be handed in",
                                        "~/queue/lock/trigger: nobody reads it: qmail-send is not running, and nothing is delivered"], []))

    def test_an_ordinary_user_is_told_what_cannot_be_seen(self):
        self.assertEqual(self.look("joe"), (["~/queue: what is in it cannot be looked at as this user",
                                             "~/run/queue: nobody listens: qmail-queued is not running, and mail cannot be handed in"], []))
        self.do("chmod 600 control/databytes 2>/dev/null || { echo 1 >control/databytes; chmod 600 control/databytes; }")
        notes, problems = self.look("joe")
        self.assertIn("~/control/databytes: cannot be read as this user", notes)
        self.assertEqual(problems, ["~/control/databytes: closed to those who need it: chmod a+r ~/control/databytes"])
        self.do("rm control/databytes")

    def test_root_hears_everything_at_once_with_accounts_by_name_and_every_mend_mends(self):
        # Group qmail may read what only daemons of group qmail read.
        self.do("for f in helohost smtproutes me; do cp -p control/me control/$f.keep; [ $f = me ] || cp control/me control/$f; "
                "chown 0:qmail control/$f; chmod 640 control/$f; done; echo : >control/smtproutes")
        self.do("chown qmailr bin/qmail-lspawn; chgrp qmail bin/qmail-send; chmod 775 bin/qmail-send; chown qmails queue/mess; chmod 777 run;"
                "chmod 775 queue; chown qmailq control; chmod 700 users; chown joe queue/lock/trigger; chmod 1777 bin")
        problems = self.look()[1]
        self.assertEqual(sorted(problems), sorted([
            "~/bin/qmail-lspawn: qmailr owns it and root should: run scripts/mkhome --system, or chown root ~/bin/qmail-lspawn",
            "~/bin/qmail-send: group qmail can write it: run scripts/mkhome --system, or chmod g-w ~/bin/qmail-send",
            "~/queue/mess: qmails owns it and qmailq should: run scripts/mkhome --system, or chown qmailq ~/queue/mess",
            "~/run: everybody can write it: run scripts/mkhome --system, or chmod go-w ~/run",
            "~/queue: group qmail can write it: run scripts/mkhome --system, or chmod g-w ~/queue",
            "~/control: qmailq owns it and root should: run scripts/mkhome --system, or chown root ~/control",
            "~/users: closed to those who need it: chmod a+x ~/users",
            f"~/queue/lock/trigger: uid {pwd.getpwnam('joe').pw_uid} owns it and qmails should: "
            "run scripts/mkhome --system, or chown qmails ~/queue/lock/trigger",
            "~/bin: everybody can write it: run scripts/mkhome --system, or chmod go-w ~/bin",
            "~/control/me: closed to those who need it: chmod a+r ~/control/me"]))
        for line in problems:
            self.do(re.search(r"((?:chown|chmod) .*)$", line)[1].replace("~", self.HOME))
        self.assertEqual(self.look()[1], [])
        self.do("mv control/helohost.keep control/helohost; rm control/smtproutes*; mv control/me.keep control/me; chmod 755 control users bin")

    def test_passwords_at_relays_are_for_group_qmail_and_nobody_else(self):
        self.addCleanup(self.do, "rm -f control/smtpauth")
        for owner, mode, line in (("root:qmail", "640", None), ("root:qmail", "644", "is for"), ("root:root", "640", "is for"), ("qmailr:qmail", "640", "qmailr owns it")):
            self.do(f"echo isp:joe secret >control/smtpauth; chown {owner} control/smtpauth; chmod {mode} control/smtpauth")
            problems = self.look()[1]
            self.assertEqual([line in problem for problem in problems], [True] if line else [], problems)
            for problem in problems:
                self.do(re.search(r"((?:chown|chmod) .*)$", problem)[1].replace("~", self.HOME))
            self.assertEqual(self.look()[1], [])

    def test_two_roles_of_one_account_are_no_wall(self):
        self.do("cp -p users/ids users/keep; sed -i \"s/^qmaill:.*/qmaill:$(id -u qmaild):$(id -g qmaild)/\" users/ids")
        self.assertEqual(self.look()[1], ["~/users/ids: qmaill and qmaild have the same uid, and so no wall between them: "
                                          "give each an account of its own"])
        self.do("mv users/keep users/ids")

    def test_a_role_that_is_not_named_is_told_and_not_taken_for_root(self):
        self.do("cp -p users/ids users/keep; sed -i '/^qmailr:/d; /^qmaild:/d' users/ids")
        self.assertEqual(self.look()[1], ["~/users/ids: does not name qmaild, qmailr: "
                                          "scripts/mkhome --system says what must stand there"])
        self.do("mv users/keep users/ids")

    def test_logins_that_nobody_takes_are_noted_once_somebody_did(self):
        gone = "~/run/auth: nobody listens: qmail-authd is not running, and nobody can log in through it"
        with subprocess.Popen(["/var/qmail/bin/qmail-authd"], env=self.ENV, stderr=subprocess.DEVNULL) as authd:
            try:
                harness.wait_for(lambda: os.path.exists("/var/qmail/run/auth"), "the door of logins")
                self.assertNotIn(gone, self.look()[0])
            finally:
                authd.kill()
        try:
            # The child that closes what has ended, and so its copy of the socket, may live for a moment longer.
            harness.wait_for(lambda: gone in self.look()[0], "the end of all that listen")
        finally:
            self.do("rm run/auth")

    def test_a_disk_that_is_nearly_full_is_a_problem_before_it_is(self):
        self.do("cp -a queue /var/kept; mount -t tmpfs -o size=20m,nr_inodes=700,mode=750 none queue; chgrp qmail queue; cp -a /var/kept/. queue/")
        try:
            problems = self.look()[1]
            as_joe = self.look("joe")[1]
        finally:
            self.do("umount queue")
        self.assertRegex("\n".join(problems), r"\A~/queue: its file system has \d+ KiB left, and mail will soon be put off: make room\n"
                                              r"~/queue: its file system can hold \d+ files more, and mail will soon be put off: remove files there that nobody needs\Z")
        self.assertEqual(as_joe, problems)


if __name__ == "__main__":
    unittest.main()
