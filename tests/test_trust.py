"""What daemons rely on, spoiled in every way: each refuses with the path and the mend, before it starts anything."""

import glob
import itertools
import os
import re
import shutil
import signal
import stat
import subprocess
import unittest

from tests import harness, spawners
from tests.harness import run

STRANGER = 12345
DAEMONS = ["qmail-lspawn", "qmail-rspawn", "qmail-clean", "qmail-send"]
LATER = ["qmail-queued", "qmail-local", "qmail-getpw", "qmail-remote"]
QUEUE = ["queue"] + ["queue/" + d for d in ("lock", "mess", "todo", "intd", "pid", "info", "local", "remote", "bounce")] + [
    "queue/lock/sendmutex", "queue/lock/tcpto", "queue/lock/trigger", "run"]
# A spoiled one is refused; a missing one is nobody's loss, or somebody else's to say.
OPTIONAL = ["users/ids", "users/assign", "users/cdb", "control/me", "control/rcpthosts", "control/virtualdomains"] + [
    "bin/" + name for name in LATER]
WRITING = ["group", "others"]
REPLACING = ["missing", "kind", "dangling", "elsewhere", "link"]
AS_ROOT = os.geteuid() == 0


def spoil(path, way, base):
    """Spoils a thing; returns (what a refusal must name, how to undo it). `base` is a directory beside the home."""
    before = os.lstat(path)
    mode = stat.S_IMODE(before.st_mode)
    away, place = path.rstrip("/") + ".away", os.path.join(base, "stranger")

    def restore():
        os.lchown(path, before.st_uid, before.st_gid)
        os.chmod(path, mode)

    def put_back():
        if os.path.lexists(path):
            (os.rmdir if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)
        os.rename(away if os.path.lexists(away) else os.path.join(place, "x"), path)
        shutil.rmtree(place, ignore_errors=True)

    if way == "owner":
        os.lchown(path, STRANGER, STRANGER)
        os.chmod(path, mode)
    elif way in WRITING:
        bits = 0o040 if stat.S_ISFIFO(before.st_mode) else 0o020  # all may write into the trigger, and nobody read
        os.chmod(path, mode | (bits if way == "group" else bits >> 3))
    else:
        place_mode = 0o755
        if way == "elsewhere":  # root's own thing, in a stranger's directory
            os.mkdir(place)
            os.rename(path, os.path.join(place, "x"))
            os.symlink(os.path.join(place, "x"), path)
            if AS_ROOT:
                os.chown(place, STRANGER, STRANGER)
            else:
                place_mode = 0o777
            os.chmod(place, place_mode)
            return place, put_back
        os.rename(path, away)
        if way == "kind":
            if stat.S_ISDIR(before.st_mode):
                open(path, "w").close()
            else:
                os.mkdir(path)
            os.lchown(path, before.st_uid, before.st_gid)
        elif way == "dangling":
            os.symlink("/nonexistent/x", path)
            return "/nonexistent", put_back
        elif way == "link":  # to the right thing, but whoever made the link can make it lead elsewhere
            os.symlink(away, path)
            os.lchown(path, STRANGER, STRANGER)
        return path, put_back
    return path, restore


class Case(unittest.TestCase):
    """A home whose programs say that they were started, in files $STARTED.*."""

    def fakes(self, path, owner=None):
        said = os.path.join(self.base, "said")
        os.mkdir(said)
        os.chmod(said, 0o1777)
        self.tries = (os.path.join(said, str(n)) for n in itertools.count())
        self.env = {**self.env, "FAKES": self.base}
        self.addCleanup(self.end_queued)
        texts = {"qmail-send": "echo sending >&0", "qmail-queued": "exec sleep 1000"}
        for name in DAEMONS + LATER:
            program = os.path.join(path, "bin", name)
            if os.path.lexists(program):
                os.unlink(program)
            with open(program, "w") as f:
                f.write(f"#!/bin/sh\n: >$STARTED.$$\n{texts.get(name, 'cat >/dev/null')}\n")
            os.chmod(program, 0o755)
            if owner:
                os.chown(program, *owner)

    def end_queued(self):
        while left := spawners.with_environment(f"FAKES={self.base}"):
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    def start(self, *arguments):
        """One try; what it started is in files that begin as self.said, or still lives."""
        self.said = next(self.tries)
        return run(["qmail-start", *arguments], env={**self.env, "STARTED": self.said})

    def refused(self, path, way, named, *arguments):
        result = self.start(*arguments)
        self.assertEqual((result.code, result.out), (111, b""), (path, way, result))
        text = result.err.decode()
        self.assertRegex(text, r"\Aqmail-start: fatal: [^\n]*\n\Z")
        # What is sought before anything is judged is just not there.
        self.assertTrue(named in text or way == "dangling" and path in text or "/users" in path and "users/ids names" in text,
                        (path, way, text))
        self.assertFalse(spawners.with_environment(f"STARTED={self.said}") or glob.glob(self.said + ".*"), (path, way))
        return text

    def starts(self, why):
        result = self.start()
        self.assertEqual((result.code, result.out), (0, b"sending\n"), (why, result))

    def each_way(self, things, ways):
        for name in things:
            path = self.path(name)
            for way in ways:
                if way == "missing" and name in OPTIONAL or way == "owner" and not AS_ROOT or way == "link" and not AS_ROOT:
                    continue
                named, undo = spoil(path, way, self.base)
                try:
                    self.refused(path, way, named)
                finally:
                    undo()

    def mended(self, name, *ways):
        """Spoils it in these ways at once, does what the refusals say, and starts."""
        path = self.path(name)
        before = os.lstat(path)
        for way in ways:
            spoil(path, way, self.base)
        for _ in range(4):  # a refusal is one path and its mend
            result = self.start()
            if result.code == 0:
                break
            mend = re.search(rb": (?:run [^\n]*?, or )?((?:chown|chmod) .*)\n", result.err)
            self.assertTrue(mend, result)
            self.shell(mend[1].decode())
        self.assertEqual((result.code, result.out), (0, b"sending\n"), (path, result))
        after = os.lstat(path)
        self.assertEqual((after.st_uid, oct(after.st_mode)), (before.st_uid, oct(before.st_mode)), path)
        os.lchown(path, before.st_uid, before.st_gid)
        os.chmod(path, stat.S_IMODE(before.st_mode))

    def shell(self, line):
        """Does what a refusal said; the accounts of this home have no names here."""
        ids = getattr(self.home, "IDS", {})
        subprocess.run(["sh", "-ec", re.sub(r"chown (qmail.)", lambda m: f"chown {ids[m[1]][0]}", line)], check=True)

    def path(self, name):
        return os.path.join(self.home.path, name).rstrip("/")


@unittest.skipUnless(AS_ROOT, "a system home needs root")
class InASystemHome(Case):
    THINGS = ["", "users", "bin", "control"] + ["bin/" + name for name in DAEMONS] + OPTIONAL + QUEUE

    def setUp(self):
        self.home = spawners.SystemHome()
        self.addCleanup(self.home.remove)
        self.base, self.env = self.home.base, self.home.env
        self.fakes(self.home.path)
        for name in OPTIONAL:
            if not os.path.exists(self.path(name)):
                self.home.write(name, b"")

    def test_as_it_is_made_it_starts(self):
        self.starts("nothing is wrong")

    def test_whatever_is_spoiled_is_refused_with_its_path(self):
        self.each_way([t for t in self.THINGS if t], ["owner"] + WRITING + REPLACING)
        self.each_way([""], ["owner"] + WRITING + ["kind", "dangling", "elsewhere", "link"])
        self.starts("everything was put back")

    def test_what_the_refusal_says_mends_it(self):
        for name in self.THINGS:
            if name not in ("", "users/ids"):  # who owns these decides what the rest is judged by
                self.mended(name, "owner", *WRITING)
        self.mended("", *WRITING)
        self.mended("users/ids", *WRITING)

    def test_the_refusal_names_accounts_and_groups_by_name(self):
        for damage, text in (
                (lambda: os.chown(self.path("bin/qmail-lspawn"), 7795, 0),
                 "refusing {home}/bin/qmail-lspawn: qmailr owns it and root should: run scripts/mkhome --system {home}, "
                 "or chown root {home}/bin/qmail-lspawn"),
                (lambda: (os.chown(self.path("bin/qmail-lspawn"), 0, 2107), os.chmod(self.path("bin/qmail-lspawn"), 0o775)),
                 "refusing {home}/bin/qmail-lspawn: group qmail can write it: run scripts/mkhome --system {home}, "
                 "or chmod g-w {home}/bin/qmail-lspawn"),
                (lambda: os.chmod(self.path("bin/qmail-lspawn"), 0o777),
                 "refusing {home}/bin/qmail-lspawn: everybody can write it: run scripts/mkhome --system {home}, "
                 "or chmod go-w {home}/bin/qmail-lspawn"),
                (lambda: os.rmdir(self.path("queue/bounce")),
                 "refusing {home}/queue/bounce: file does not exist: run scripts/mkhome --system {home}")):
            damage()
            text = text.replace("{home}", self.home.path)
            self.assertEqual(self.start().err.decode(), f"qmail-start: fatal: {text}\n")
            os.chown(self.path("bin/qmail-lspawn"), 0, 0)
            os.chmod(self.path("bin/qmail-lspawn"), 0o755)

    def test_every_directory_above_the_home_counts(self):
        for way in ["owner"] + WRITING:
            named, undo = spoil(self.base, way, self.base)
            text = self.refused(self.base, way, f"refusing {named}: ")
            self.assertIn(f", and it is on the way to {self.home.path}: ch", text)
            undo()
        os.chmod(self.base, 0o1777)
        self.starts("a sticky directory of root's is no danger")
        self.mended_above()

    def mended_above(self):
        os.chmod(self.base, 0o777)
        mend = re.search(rb": ((?:chown|chmod) .*)\n", self.start().err)[1]
        self.shell(mend.decode())
        self.starts("mended as it was said")

    def test_links_of_roots_to_places_of_roots_are_fine(self):
        os.rename(self.path("control"), os.path.join(self.base, "etc"))
        os.symlink("../etc", self.path("control"))
        os.rename(self.path("bin/qmail-send"), os.path.join(self.base, "etc", "send"))
        os.symlink("../control/send", self.path("bin/qmail-send"))
        self.starts("every step of the way is root's")
        os.chmod(os.path.join(self.base, "etc"), 0o775)
        self.refused("control", "where it leads", f"refusing {self.path('control')}: group 0 can write it")
        os.chmod(os.path.join(self.base, "etc"), 0o755)
        os.chmod(os.path.join(self.base, "etc", "send"), 0o775)
        self.refused("bin/qmail-send", "where it leads", f"refusing {self.base}/etc/send: group 0 can write it, and {self.path('bin/qmail-send')} leads there")

    def test_a_circle_of_links_is_an_end(self):
        os.rmdir(self.path("queue/pid"))
        os.symlink("pid", self.path("queue/pid"))
        self.refused("queue/pid", "circle", self.path("queue/pid") + ": too many symbolic links")

    def test_programs_found_along_PATH_count_too_and_the_logger(self):
        other = os.path.join(self.base, "other")
        os.mkdir(other)
        shutil.copy(self.path("bin/qmail-clean"), other)
        shutil.copy("/bin/true", os.path.join(other, "logger"))
        self.env = {**self.env, "PATH": f"{other}:{self.env['PATH']}"}
        os.chmod(other, 0o777)
        self.refused(other, "others", f"refusing {other}: everybody can write it")
        os.chmod(other, 0o755)
        os.chown(os.path.join(other, "logger"), STRANGER, 0)
        self.starts("nobody named the logger")
        self.refused("logger", "owner", f"refusing {other}/logger: uid {STRANGER} owns it and root should: chown root ",
                     "./Mailbox", "logger")

    def test_an_original_home_whose_queue_is_qmailqs_whole_is_taken(self):
        os.chown(self.path("queue"), *self.home.IDS["qmailq"])
        self.refused("queue", "owner", self.path("queue"))
        os.unlink(self.path("users/ids"))
        for name, role in (("alias", "alias"),):
            self.home.owned(os.mkdir, name, role, 0o755)
        # Such a home does not name qmailr's group and so on; what it does name is enough for this.
        text = self.start().err.decode()
        self.assertNotIn("refusing", text)

    def test_qmail_queued_looks_at_the_queue_and_the_way_there(self):
        shutil.copy(harness.program("qmail-queued"), os.path.join(self.base, "queued"))
        run_as = self.home.IDS["qmailq"]

        def queued():
            return run([os.path.join(self.base, "queued")], env=self.env, as_user=run_as)
        for name in ["", "users"] + QUEUE:
            for way in ["owner"] + WRITING + (REPLACING if name else []):
                named, undo = spoil(self.path(name), way, self.base)
                try:
                    result = queued()
                    self.assertEqual((result.code, result.out), (111, b""), (name, way, result))
                    self.assertIn(named, result.err.decode(), (name, way))
                    self.assertFalse(os.path.lexists(self.path("run/queue")) and way != "elsewhere", (name, way))
                finally:
                    undo()
        daemon = harness.Daemon(["setpriv", "--reuid", str(run_as[0]), "--regid", str(run_as[1]), "--clear-groups",
                                 os.path.join(self.base, "queued")], env=self.env)
        self.addCleanup(daemon.stop)
        harness.wait_for(lambda: os.path.exists(self.path("run/queue")), "the socket")


class InAnOwnHome(Case):
    THINGS = ["users", "bin", "control"] + ["bin/" + name for name in DAEMONS] + OPTIONAL + QUEUE

    def setUp(self):
        self.home = harness.Home(users={})
        self.addCleanup(self.home.__exit__)
        self.base, self.env = self.home.base, self.home.env
        self.fakes(self.home.path, harness.owner()[1:])
        for name in OPTIONAL:
            if not os.path.exists(self.path(name)):
                self.home.write(name, b"")

    def test_whatever_is_spoiled_is_refused_with_its_path(self):
        # In it, a file that the owner's own group can write is the owner's way to work (umask 002).
        files = [t for t in self.THINGS if os.path.isfile(self.path(t)) and not t.startswith("bin/")]
        self.starts("nothing is wrong")
        self.each_way(files, ["owner", "others"] + REPLACING)
        self.each_way([t for t in self.THINGS if t not in files], ["owner"] + WRITING + REPLACING)
        self.each_way([""], WRITING + ["elsewhere"])
        for name in files:
            spoil(self.path(name), "group", self.base)
        self.starts("the group is the owner's")
        for name in files:
            if AS_ROOT:
                os.chown(self.path(name), -1, STRANGER)
                self.refused(name, "group", self.path(name))
                os.chown(self.path(name), -1, harness.owner()[2])

    def test_what_the_refusal_says_mends_it(self):
        for name in self.THINGS:
            if name != "users/ids":
                self.mended(name, *(["owner"] if AS_ROOT and name != "queue/mess" else []), *WRITING)
        self.mended("", *WRITING)

    @unittest.skipUnless(AS_ROOT, "only root gives things away")
    def test_what_roots_hands_made_in_it_is_trusted_but_not_the_queue(self):
        for name in ("control/me", "bin/qmail-send", "control"):
            os.chown(self.path(name), 0, 0)
        self.starts("root could do anything anyway")
        os.chown(self.path("queue/mess"), STRANGER, 0)
        self.refused("queue/mess", "owner", f"{self.path('queue/mess')}: uid {STRANGER} owns it and uid {harness.owner()[1]} should: "
                                            f"chown {harness.owner()[1]} {self.path('queue/mess')}\n")


class Tcpserver(unittest.TestCase):
    """Run by root it looks at its rules, and at a program that it would run as root."""

    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base)
        if AS_ROOT:
            os.chown(self.base, 0, 0)
        self.place = os.path.join(self.base, "tcp")
        os.mkdir(self.place, 0o755)
        self.rules = os.path.join(self.place, "rules.cdb")
        self.assertEqual(run(["tcprules", self.rules, self.rules + ".tmp"], b":allow\n").code, 0)
        os.chmod(self.rules, 0o644)
        self.program = os.path.join(self.place, "program")
        shutil.copy("/bin/true", self.program)

    def serves(self, *options, user=None):
        drop = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"] if user else []
        with harness.Daemon([*drop, harness.program("tcpserver"), "-v", "-1", "-RHl0", *options, "127.0.0.1", "0", self.program]) as server:
            server.wait_log(r"^tcpserver: status: 0/")

    def refuses(self, named, *options):
        result = run(["tcpserver", "-RHl0", *options, "127.0.0.1", "0", self.program])
        self.assertEqual((result.code, result.out), (111, b""), result)
        self.assertRegex(result.err.decode(), rf"\Atcpserver: fatal: refusing {re.escape(named)}: [^\n]*: (ch(own|mod)|make|move|remove)[^\n]*\n\Z")

    @unittest.skipUnless(AS_ROOT, "tcpserver run by others trusts what it is given")
    def test_spoiled_rules_are_refused_whoever_the_program_runs_as(self):
        for ids in ([], ["-u", "4321", "-g", "4321"]):
            options = [*ids, "-x", self.rules]
            self.serves(*options)
            for path in (self.rules, self.place, self.base):
                for way in ["owner"] + WRITING:
                    named, undo = spoil(path, way, self.base)
                    self.refuses(named, *options)
                    undo()
            for way, named in (("dangling", "/nonexistent"), ("kind", self.rules), ("elsewhere", os.path.join(self.base, "stranger")),
                               ("link", self.rules)):
                _, undo = spoil(self.rules, way, self.base)
                self.refuses(named, *options)
                undo()
            self.serves(*options)

    @unittest.skipUnless(AS_ROOT, "tcpserver run by others trusts what it is given")
    def test_a_spoiled_program_is_refused_only_where_it_would_be_roots(self):
        for way in ["owner"] + WRITING + ["dangling", "elsewhere", "link"]:
            named, undo = spoil(self.program, way, self.base)
            self.refuses(named if way != "dangling" else "/nonexistent")
            self.serves("-u", "4321", "-g", "4321")
            undo()
        self.serves()

    @unittest.skipUnless(AS_ROOT, "only root gives things away")
    def test_rules_of_whom_the_program_runs_as_are_that_ones_affair(self):
        for path in (self.rules, self.place):
            os.chown(path, 4321, 4321)
        self.serves("-u", "4321", "-g", "4321", "-x", self.rules)
        self.refuses(self.place, "-u", "4322", "-g", "4321", "-x", self.rules)

    def test_others_than_root_may_use_what_they_like(self):
        os.chmod(self.rules, 0o666)
        os.chmod(self.place, 0o777)
        self.serves("-x", self.rules, user=STRANGER if AS_ROOT else None)


@unittest.skipUnless(shutil.which("unshare"), "no unshare here")
class InANamespace(unittest.TestCase):
    def test_the_systems_own_directories_belong_to_nobody_there_and_are_trusted(self):
        _, uid, gid = harness.owner()
        argv = ["unshare", "-U", "--map-user=1000", "--map-group=1000"]
        if AS_ROOT:
            argv[:0] = ["setpriv", "--reuid", str(uid), "--regid", str(gid), "--clear-groups"]
        tried = subprocess.run([*argv, "stat", "-c", "%u", "/"], capture_output=True)
        if tried.returncode:
            self.skipTest(f"no user namespaces for ordinary users here: {tried.stderr.decode().strip()}")
        self.assertEqual(tried.stdout, b"65534\n")
        with harness.Home(users={}) as home:
            home.write("users/ids", "owner:1000:1000\n")
            with harness.Daemon([*argv, home.file("bin/qmail-queued")], env=home.env) as queued:
                harness.wait_for(lambda: os.path.exists(home.file("run/queue")) or queued.process.poll() is not None, "the socket")
                self.assertTrue(os.path.exists(home.file("run/queue")), queued.log())


if __name__ == "__main__":
    unittest.main()
