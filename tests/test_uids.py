"""Separate users: what each account can do to every file of a system home, what each process is while mail flows,
and users whose homes and files are odd."""

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import unittest

from tests import sandbox
from tests.harness import ROOT, Daemon, free_port, wait_for
from tests.test_system_home import ENV, HOME, PASSWORD, ROLES, WholeSystem, gid, made, sh, uid, write

MIRROR = "/var/mirror"
STRANGER = 54321

# Columns of doc/access.md, and who stands in each: (user, group), or a number without any account.
COLUMNS = {"everybody": [("joe", "joe"), (STRANGER, STRANGER)],
           "qmaild qmaill qmailp": [("qmaild", "nofiles"), ("qmaill", "nofiles"), ("qmailp", "nofiles")],
           "alias": [("alias", "nofiles")], "qmailq": [("qmailq", "qmail")], "qmailr": [("qmailr", "qmail")],
           "qmails": [("qmails", "qmail")]}


def row(path, status):
    """The row of the table that a path belongs to."""
    parts = path.split("/")
    if parts[0] == "queue" and len(parts) > 2 and parts[1] != "lock":
        split = parts[1] in ("mess", "info", "local", "remote")
        return "/".join(parts[:2] + (["S", "N"] if split else ["N"])[:len(parts) - 2])
    if parts[0] == "bin" and len(parts) == 2:
        return "bin/*, a link" if stat.S_ISLNK(status.st_mode) else f"bin/*, {stat.S_IMODE(status.st_mode):04o}"
    if parts[:2] == ["alias", "Maildir"]:
        return "alias/Maildir" if len(parts) < 4 else "alias/Maildir/*/*"
    if parts[0] in ("man", "samples"):
        return f"{parts[0]}, and directories in it" if stat.S_ISDIR(status.st_mode) else f"{parts[0]}/*/*"
    if parts[0] in ("control", "tcp", "alias", "sts") and len(parts) == 2:
        return f"{parts[0]}/*"
    if parts[0] == "users" and len(parts) == 2:
        return "users/*"
    return path


def mirror():
    """The home once more, with owners, groups, modes and kinds, and little in the files; (listening sockets, rows)."""
    rows, sockets = {}, []
    for directory, dirs, files in os.walk(HOME):
        for path in [directory] + [os.path.join(directory, n) for n in files] + [
                os.path.join(directory, n) for n in dirs if os.path.islink(os.path.join(directory, n))]:
            status = os.lstat(path)
            name = os.path.relpath(path, HOME)
            copy = os.path.normpath(os.path.join(MIRROR, name))
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFDIR:
                os.mkdir(copy)
            elif kind == stat.S_IFLNK:
                os.symlink(os.readlink(path), copy)
            elif kind == stat.S_IFIFO:
                os.mkfifo(copy)
            elif kind == stat.S_IFSOCK:
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(copy)
                listener.listen(50)
                sockets.append(listener)
            else:
                with open(copy, "w") as f:
                    f.write("x")
            os.lchown(copy, status.st_uid, status.st_gid)
            if kind != stat.S_IFLNK:
                os.chmod(copy, stat.S_IMODE(status.st_mode))
            rows[name] = row(name, status) if name != "." else "the home"
    return sockets, rows


def attempts(path, status):
    """Every attempt on one path of the mirror, by whoever runs this; the letters of those that succeed."""
    def opens(flags):
        os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW))

    def rename():
        os.rename(path, path + ".renamed")
        os.rename(path + ".renamed", path)

    def create():
        os.close(os.open(path + "/new.file", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.unlink(path + "/new.file")

    def enter():
        os.stat(path + "/.")

    def execute():
        if not os.access(path, os.X_OK):
            raise PermissionError

    def connect():
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(10)
            s.connect(path)
    kind = stat.S_IFMT(status.st_mode)
    tries = {stat.S_IFDIR: {"r": lambda: os.listdir(path), "x": enter, "c": create}, stat.S_IFSOCK: {"k": connect},
             stat.S_IFLNK: {"r": lambda: os.readlink(path)}}.get(
                 kind, {"r": lambda: opens(os.O_RDONLY), "w": lambda: opens(os.O_WRONLY), "x": execute})
    if kind != stat.S_IFLNK:
        tries["o"] = lambda: os.chmod(path, stat.S_IMODE(status.st_mode))
    if path != MIRROR:
        tries["m"] = rename
    found = ""
    for letter, attempt in tries.items():
        try:
            attempt()
            found += letter
        except PermissionError:
            pass
        except OSError as e:
            if letter == "w" and e.errno == 6:  # a fifo without a reader, which may be written
                found += letter
            elif letter != "x" or e.errno not in (2, 20):
                raise
    return found


def removes(path):
    try:
        (os.rmdir if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)
    except PermissionError:
        return False
    except OSError as e:
        return e.errno == 39  # not empty: others' files keep it, no right does
    return True


def as_account(account, work):
    """What work() gives in a process of this account with the groups its daemons have."""
    user, group = account
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            number = group if isinstance(group, int) else gid(group)
            os.setgroups([number])
            os.setgid(number)
            os.setuid(user if isinstance(user, int) else uid(user))
            with os.fdopen(w, "w") as out:
                json.dump(work(), out)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(w)
    with os.fdopen(r) as answer:
        text = answer.read()
    assert os.waitpid(pid, 0)[1] == 0, (account, text)
    return json.loads(text)


def measured(account):
    """{row: letters} of what this account can do; paths of one row must agree."""
    sockets, rows = mirror()
    try:
        places = {name: (os.path.normpath(os.path.join(MIRROR, name)), os.lstat(os.path.normpath(os.path.join(MIRROR, name))))
                  for name in rows}

        def work():
            able = {name: attempts(*place) for name, place in places.items()}
            for name in sorted(able, key=lambda n: -n.count("/")):  # what is in a directory before it
                if name != "." and removes(places[name][0]):
                    able[name] += "u"
            return able
        able = as_account(account, work)
    finally:
        for listener in sockets:
            listener.close()
        shutil.rmtree(MIRROR)
    found = {}
    for name, letters in able.items():
        assert ("m" in letters) == ("u" in letters), (account, name, letters)  # the same right
        letters = letters.replace("m", "")
        assert found.setdefault(rows[name], letters) == letters, (account, name, letters, found[rows[name]])
    return found


def documented():
    """{row: {column: letters}} of doc/access.md."""
    with open(os.path.join(ROOT, "doc", "access.md")) as f:
        lines = [line.strip().strip("|").split("|") for line in f if line.startswith("|")]
    head, table = [cell.strip() for cell in lines[0]], {}
    assert head[1:] == list(COLUMNS), head
    for line in lines[2:]:
        cells = [cell.strip().strip("`") for cell in line]
        if cells[0] == "letter":  # the next table
            break
        assert cells[0] not in table, cells[0]
        table[cells[0]] = dict(zip(head[1:], (c if c != "-" else "" for c in cells[1:])))
    return table


@sandbox.alone
class Accounts(unittest.TestCase):
    """Every account tries everything on every file of a home that has mail in every state."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        made("--me", "test.example")
        sh("useradd -m joe")
        write("control/smtproutes", f":127.0.0.1:{free_port()}\n")
        write("users/assign", f"=box:joe:{uid('joe')}:{gid('joe')}:/home/joe:::\n.\n")
        write("alias/.qmail-later", "|exit 111\n")
        sh("chown alias alias/.qmail-later; qmail-newu; printf 'more.example\n' >control/morercpthosts; qmail-newmrh; "
           "echo x >alias/Maildir/new/1.x; chown alias:qmail alias/Maildir/new/1.x; chmod 600 alias/Maildir/new/1.x; "
           "echo x >sts/test.example; chown qmailr:qmail sts/test.example", cwd=HOME, env=ENV)
        cls.send = Daemon([HOME + "/bin/qmail-start", "./Maildir/"], env=ENV, cwd="/")
        cls.send.wait_log("^status: local 0/")
        # One deferred here and there, one more that has failed for somebody; then one that waits for qmail-send.
        sh("printf 'Subject: 1\n\n' | qmail-inject -f joe@test.example later@test.example nobody-here@test.example a@far.example",
           env=ENV, user="joe", group="joe", extra_groups=[], cwd="/")
        wait_for(lambda: len(re.findall(r"^delivery \d+: (deferral|failure)", cls.send.log(), re.M)) >= 3, "three deliveries")
        cls.send.stop()
        cls.authd = Daemon([HOME + "/bin/qmail-authd"], env=ENV, cwd="/")
        wait_for(lambda: os.path.exists(HOME + "/run/auth"), "the door of logins")
        sh("printf 'Subject: 2\n\n' | qmail-inject -f joe@test.example later@test.example", env=ENV, user="joe", group="joe",
           extra_groups=[], cwd="/")

    @classmethod
    def tearDownClass(cls):
        cls.authd.stop()
        with open(HOME + "/run/queue.lock") as f:
            os.kill(int(f.read()), 15)

    def test_who_can_reach_what_is_as_documented(self):
        table = documented()
        for column, accounts in COLUMNS.items():
            for account in accounts:
                with self.subTest(account=account):
                    found = measured(account)
                    wanted = {name: cells[column] for name, cells in table.items()}
                    self.assertEqual({n: "".join(sorted(found.get(n, "no such file"))) for n in {**found, **wanted}},
                                     {n: "".join(sorted(wanted.get(n, "no such row"))) for n in {**found, **wanted}})


DEFERRED, DELIVERED, BOUNCED = "deferral", "success", "failure"


class Odd:
    """A user, what is odd about that one's home, what becomes of the mail, and where it then is (in that home)."""

    def __init__(self, prepare, outcome, text="", where="Maildir/new", home=None):
        self.prepare, self.outcome, self.text, self.home = prepare, outcome, text, home
        self.where = where if outcome == DELIVERED else None


# `cd` is the user's home, root the hand; $u is the user. Spaces of reports are underscores in the log.
ODD = {
    "plain": Odd("", DELIVERED),
    # The home.
    "hisgone": Odd("chown ann .", BOUNCED, "no_mailbox_here_by_that_name"),
    "hgroup": Odd("chmod 775 .", DELIVERED),
    "hworld": Odd("chmod 757 .", DEFERRED, r"Uh-oh:_home_directory_is_writable\."),
    "hsticky": Odd("chmod 1755 .", DEFERRED, r"Home_directory_is_sticky:"),
    "hlink": Odd("mv /home/$u /home/at-$u; ln -s /home/at-$u /home/$u", DELIVERED),
    "hfile": Odd("rm -r /home/$u; echo >/home/$u; chown $u /home/$u", DEFERRED, "Unable_to_switch_to_/home/hfile:_not_a_directory"),
    # Not there, or there and somebody else's: the account database's word is not enough (qmail-getpw) ...
    "haway": Odd("rm -r /home/$u", BOUNCED, "no_mailbox_here_by_that_name"),
    "hroot": Odd("usermod -d / $u", BOUNCED, "no_mailbox_here_by_that_name"),
    # ... but users/assign's is, and then it is a matter of time.
    "aaway": Odd("rm -r /home/$u", DEFERRED, "Unable_to_switch_to_/home/aaway:_file_does_not_exist", home="/home/aaway"),
    "amount": Odd("rm -r /home/$u; mkdir -m 755 /home/$u", DEFERRED, "Unable_to_chdir_to_maildir", home="/home/amount"),
    "aroot": Odd("", DEFERRED, "Unable_to_chdir_to_maildir", home="/"),
    "aclosed": Odd("chown ann .; chmod 700 .", DEFERRED, "Unable_to_switch_to_/home/aclosed:_access_denied", home="/home/aclosed"),
    # .qmail: whose, and writable by whom.
    "qgroup": Odd("echo ./box >.qmail; chmod 664 .qmail; chown $u .qmail", DELIVERED, where="box"),
    "qworld": Odd("echo ./box >.qmail; chmod 646 .qmail; chown $u .qmail", DEFERRED, r"Uh-oh:_\.qmail_file_is_writable"),
    "qclosed": Odd("echo ./box >.qmail; chmod 0 .qmail; chown $u .qmail", DEFERRED, r"Unable_to_open_\.qmail:_access_denied"),
    "qother": Odd("echo ./box >.qmail; chmod 644 .qmail; chown ann .qmail", DELIVERED, where="box"),
    # .qmail: what it leads to.
    "lown": Odd("echo ./box >mine; ln -s mine .qmail", DELIVERED, where="box"),
    "lother": Odd("ln -s /home/ann/public .qmail", DELIVERED, where="box"),  # ann's words, this user's rights
    "lsecret": Odd("ln -s /home/ann/.secret .qmail", DEFERRED, r"Unable_to_open_\.qmail:_access_denied"),
    "lshadow": Odd("ln -s /etc/shadow .qmail", DEFERRED, r"Unable_to_open_\.qmail:_access_denied"),
    "ldangles": Odd("ln -s nowhere .qmail", DELIVERED),
    "lcircle": Odd("ln -s .qmail .qmail", DEFERRED, r"Unable_to_open_\.qmail:_too_many_symbolic_links"),
    # .qmail: what it is. What is no file is passed over, and never waited for.
    "kfifo": Odd("mkfifo .qmail; chown $u .qmail", DELIVERED),
    "kdevice": Odd("mknod .qmail c 1 5; chmod 644 .qmail", DELIVERED),
    "ktty": Odd("ln -s /dev/zero .qmail", DELIVERED),
    "kdir": Odd("mkdir .qmail; chown $u .qmail", DELIVERED),
    # .qmail: what is in it.
    "clong": Odd("{ yes '# nothing' | head -c 5000000; echo; echo ./box; } >.qmail", DELIVERED, where="box"),
    "chuge": Odd("{ yes '# nothing' | head -c 9000000; echo; echo ./box; } >.qmail", DEFERRED, r"Unable_to_read_\.qmail:_file_too_big"),
    "cnul": Odd("printf './box\\0x\\n' >.qmail", DEFERRED, r"Uh-oh:_\.qmail_file_has_a_line_with_a_NUL"),
    "cblank": Odd("printf '\\n./box\\n' >.qmail", DEFERRED, r"Uh-oh:_first_line_of_\.qmail_file_is_blank"),
    # Where it is to go.
    "mlink": Odd("rm -r Maildir; ln -s /home/ann/Maildir Maildir", DEFERRED, "Unable_to_chdir_to_maildir|Temporary_error_on_maildir"),
    "mparts": Odd("rm -r Maildir/new; ln -s /home/ann/Maildir/new Maildir/new", DEFERRED, "Temporary_error_on_maildir_delivery"),
    "mfile": Odd("rm -r Maildir; echo >Maildir", DEFERRED, "Unable_to_chdir_to_maildir"),
    "mroot": Odd("chown -R root Maildir; chmod -R go-w Maildir", DEFERRED, "Unable_to_chdir_to_maildir|Temporary_error_on_maildir"),
    "bfifo": Odd("echo ./box >.qmail; mkfifo box; chown $u box", DEFERRED, r"Unable_to_(open|write)_\./box:_"),
    "bnull": Odd("echo ./box >.qmail; ln -s /dev/null box", DEFERRED, r"Unable_to_(open|write)_\./box:_"),
    "bfull": Odd("echo ./box >.qmail; ln -s /dev/full box", DEFERRED, r"Unable_to_(open|write)_\./box:_"),
    "bother": Odd("echo ./box >.qmail; ln -s /home/ann/box box", DEFERRED, r"Unable_to_open_\./box:_access_denied"),
    "bpasswd": Odd("echo ./box >.qmail; ln -s /etc/passwd box", DEFERRED, r"Unable_to_open_\./box:_access_denied"),
    "bdir": Odd("echo ./box >.qmail; mkdir box; chown $u box", DEFERRED, r"Unable_to_open_\./box:_is_a_directory"),
    "bqueue": Odd("echo /var/qmail/queue/mess/0/x >.qmail", DEFERRED, "Unable_to_open_/var/qmail/queue/mess/0/x:_access_denied"),
}


@sandbox.alone
class OddHomes(WholeSystem):
    """What users do to their homes, and others to them."""

    def outcome(self, name):
        """(verdict, text) of the first delivery to this user."""
        def look():
            log = self.send.log()
            if started := re.search(rf"^starting delivery (\d+): msg \d+ to local {name}@test\.example$", log, re.M):
                return re.search(rf"^delivery {started[1]}: (\w+): (.*)$", log, re.M)
            return None
        return wait_for(look, f"the delivery to {name}").groups()

    def test_each_has_the_outcome_that_is_specified_and_others_mail_goes_on(self):
        sh("echo ./box >public; chmod 644 public; chmod 711 .; echo ./box >.secret; chmod 600 .secret; : >box; chmod 600 box;"
           "chown ann public .secret box", cwd="/home/ann")
        assign = ""
        for name, odd in ODD.items():
            sh(f"useradd -m {name}; chmod 755 /home/{name}")
            sh("maildirmake Maildir", cwd=f"/home/{name}", env=ENV, user=name, group=name, extra_groups=[])
            sh(f"u={name}; {odd.prepare}", cwd=f"/home/{name}")
            if odd.home:
                assign += f"={name}:{name}:{uid(name)}:{gid(name)}:{odd.home}:::\n"
        write("users/assign", assign + ".\n")
        self.assertEqual(self.run_as("root", ["qmail-newu"]).returncode, 0)
        passwd = os.stat("/etc/passwd").st_size
        subjects = {name: self.inject("joe", f"{name}@test.example") for name in ODD}
        wrong = []
        for name, odd in ODD.items():
            verdict, text = self.outcome(name)
            if verdict != odd.outcome or not re.search(odd.text, text):
                wrong.append((name, odd.outcome, odd.text, verdict, text))
        self.assertEqual(wrong, [])
        # Each message is where it should be, once, and nowhere else. (Bounces, which go to joe, hold a copy.)
        for name, odd in ODD.items():
            found = sh(f"grep -rlsD skip 'Subject: {subjects[name]}' /home /etc /var/mail {HOME}/alias || :").splitlines()
            found = [path for path in found if not path.startswith("/home/joe/")]
            if odd.where is None:
                self.assertEqual(found, [], name)
            else:
                self.assertEqual(len(found), 1, (name, found))
                self.assertRegex(found[0], rf"\A/home/(at-)?{name}/{odd.where}", name)
                self.assertEqual(os.stat(found[0]).st_uid, uid(name), name)
        self.assertEqual(os.listdir("/home/ann/Maildir/new"), [])
        self.assertEqual((os.path.getsize("/home/ann/box"), os.stat("/etc/passwd").st_size), (0, passwd))
        subject = self.inject("joe", "ann@test.example")
        self.arrived("/home/ann/Maildir", subject)
        # Nothing waits on: every delivery has ended.
        wait_for(lambda: re.findall(r"^status: .*$", self.send.log(), re.M)[-1] == "status: local 0/10 remote 0/3", "the last delivery to end")


class Process:
    """What /proc says of a process."""

    def __init__(self, pid):
        with open(f"/proc/{pid}/status") as f:
            status = dict(line.split(":", 1) for line in f.read().splitlines())
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            self.argv = f.read().decode().split("\0")[:-1]
        self.pid, self.parent = pid, int(status["PPid"])
        self.name = os.path.basename(self.argv[0]) if self.argv else ""
        self.ids = {(int(n), int(g)) for n, g in zip(status["Uid"].split(), status["Gid"].split())}
        self.groups = [int(g) for g in status["Groups"].split()]
        self.caps = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
        self.no_new_privs = status["NoNewPrivs"].strip()
        self.fds = {}
        for n in os.listdir(f"/proc/{pid}/fd"):
            try:
                self.fds[int(n)] = re.sub(r"[\[\d\]]+$", "", os.readlink(f"/proc/{pid}/fd/{n}"))
            except FileNotFoundError:
                pass


def processes():
    """{pid: Process} of all that can be seen whole."""
    found = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            found[pid] = Process(pid)
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


@sandbox.alone
class Processes(WholeSystem):
    """Everything that runs while mail is held in the middle of every way it can go."""

    maxDiff = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.authd = Daemon([HOME + "/bin/qmail-authd"], env=ENV, cwd="/")
        wait_for(lambda: os.path.exists(HOME + "/run/auth"), "the door of logins")
        cls.fronts = Daemon(["tcpserver", "-v", "-H", "-R", "-l", "0", "-u", str(uid("qmaild")), "-g", str(gid("nofiles")), "127.0.0.1",
                             "1110", "qmail-popup", "test.example", "checkpassword", "qmail-pop3d", "Maildir"], env=ENV)
        cls.fronts.wait_log("status: 0/")

    @classmethod
    def tearDownClass(cls):
        cls.fronts.stop()
        cls.authd.stop()
        super().tearDownClass()

    def hold(self):
        """Starts one of each, and holds it: in and out, POP3 both ways, before and after the password."""
        self.dotqmail("joe", "-hold", "|read line <hold\n")
        sh("mkfifo /home/joe/hold alias/hold; chown joe:joe /home/joe/hold; echo '|read line <hold' >alias/.qmail-hold;"
           "chown alias alias/.qmail-hold alias/hold", cwd=HOME)
        remote = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(remote.close)
        write("control/smtproutes", f":127.0.0.1:{remote.getsockname()[1]}\n")
        for recipient in ("joe-hold@test.example", "hold@test.example", "a@far.example"):
            self.inject("ann", recipient)
        remote.settimeout(30)
        connection = remote.accept()[0]  # no greeting: qmail-remote waits for it
        self.addCleanup(connection.close)
        smtp = self.connect(25)
        for line in ("", "HELO x", "MAIL FROM:<a@b.example>", "RCPT TO:<ann@test.example>", "DATA"):
            if line:
                smtp.sendall(line.encode() + b"\r\n")
            self.assertRegex(smtp.recv(1000), rb"\A[23]")
        smtp.sendall(b"Subject: not yet\r\n")
        for port in (110, 1110):  # the classic way, and by qmail-authd
            self.assertRegex(self.connect(port).recv(1000), rb"\A\+OK")
            pop = self.connect(port)
            for line in ("", "USER joe", f"PASS {PASSWORD}"):
                if line:
                    pop.sendall(line.encode() + b"\r\n")
                self.assertRegex(pop.recv(1000), rb"\A\+OK")

    def connect(self, port):
        connection = socket.create_connection(("127.0.0.1", port), 30)
        self.addCleanup(connection.close)
        return connection

    def release(self):
        for fifo in ("/home/joe/hold", HOME + "/alias/hold"):
            with open(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK), "w") as f:
                f.write("go\n")

    def mismatches(self):
        """What is not as EXPECTED, in words; empty when all is."""
        found = processes()
        ours = {pid: p for pid, p in found.items() if p.argv and not p.name.startswith("python")}
        wrong, names = [], sorted(p.name for p in ours.values())
        if names != sorted(name for name, want in EXPECTED.items() for _ in want):
            wrong.append(f"there are {names}")
        jailed = jails()
        for p in ours.values():
            parent = found[p.parent].name if p.parent in found else ""
            parent = "the tests" if parent.startswith("python") else parent
            wants = [w for w in EXPECTED.get(p.name, []) if w.account == self.account_of(p)]
            if not wants:
                wrong.append(f"{p.name} is {p.ids}")
                continue
            want = next((w for w in wants if parent in w.parents), wants[0])
            number = 0 if want.account[0] == "root" else uid(want.account[0])
            group = gid(want.account[1])
            if p.ids != {(number, group)} or p.groups not in ([group], want.groups):
                wrong.append(f"{p.name} is {p.ids} {p.groups}")
            if parent not in want.parents:
                wrong.append(f"{p.name} is a child of {parent}")
            if number and any(p.caps.values()):
                wrong.append(f"{p.name} has capabilities {p.caps}")
            may = {"0"} if p.name in UNBOUND else jailed.get(p.name, {"0"}) | jailed.get(parent, {"0"})
            if p.no_new_privs not in may:
                wrong.append(f"{p.name} has NoNewPrivs {p.no_new_privs}")
            for n in {*p.fds, *want.fds}:
                if not re.fullmatch(want.fds.get(n, want.more), p.fds.get(n, "closed")):
                    wrong.append(f"{p.name} of {parent} has {p.fds.get(n, 'closed')} as descriptor {n}")
        return wrong

    def account_of(self, process):
        (number, group), = process.ids
        names = {uid(n): n for n in ROLES[:3] + ROLES[4:] + ["joe", "ann"]} | {0: "root"}
        return names.get(number), {gid(g): g for g in ("qmail", "nofiles", "joe", "ann", "root")}.get(group)

    def test_every_process_is_who_it_should_be_and_holds_what_it_needs(self):
        self.hold()
        self.addCleanup(self.release)
        last = []

        def as_expected():
            last[:] = self.mismatches()
            return not last
        try:
            wait_for(as_expected, "every process to be as expected")
        except AssertionError:
            self.fail("\n".join(last))


class Want:
    """A process: account, who may be its parent, descriptors by number, and what others it may have."""

    def __init__(self, account, parents, fds, more="closed", groups=None):
        self.account, self.parents, self.fds, self.more, self.groups = account, parents, fds, more, groups


PIPE, SOCKET, NULL, LOG = "pipe:", "socket:", "/dev/null", "/tmp/qmail-log-.*"
MESSAGE = HOME + r"/queue/mess/\d+/"
DELIVERY = {0: MESSAGE, 1: PIPE, 2: PIPE}
BESIDE = {0: NULL, 1: NULL, 2: NULL}
CONNECTION = {0: SOCKET, 1: SOCKET, 2: LOG}
SERVER = {0: NULL, 1: NULL, 2: LOG, 3: SOCKET}

# While one of each is held. The tests' own process stands above qmail-send and tcpserver.
EXPECTED = {
    "qmail-send": [Want(("qmails", "qmail"), {"the tests"}, {n: PIPE for n in range(7)}, HOME + "/queue/.*")],
    "cat": [Want(("qmaill", "nofiles"), {"qmail-send"}, {0: PIPE, 1: LOG})],
    # The keeper; qmail-queued, with a socket to its worker; the worker with the message that an SMTP client has not ended.
    "qmail-start": [Want(("qmailq", "qmail"), {"qmail-send"}, {0: NULL, 1: NULL, 2: NULL}, f"{PIPE}|{NULL}")],
    "qmail-queued": [Want(("qmailq", "qmail"), {"qmail-start"}, {0: NULL, 1: NULL, 2: PIPE, 3: HOME + "/run/queue\\.lock", 4: SOCKET}, SOCKET),
                     Want(("qmailq", "qmail"), {"qmail-queued"}, {0: NULL, 1: NULL, 2: PIPE}, f"{PIPE}|{SOCKET}|{HOME}/queue/pid/.*|{HOME}/queue/mess/.*")],
    # The first; and one beside each delivery, with a line from the first and one to the program.
    "qmail-lspawn": [Want(("root", "qmail"), {"qmail-send"}, {0: PIPE, 1: PIPE, 2: NULL}, f"{PIPE}|{SOCKET}|{NULL}|{HOME}/queue/lock/ledger.local")] + [
        Want(("root", "qmail"), {"qmail-lspawn"}, BESIDE, f"{PIPE}|{SOCKET}|{NULL}|{HOME}/queue/lock/ledger.local")] * 2,
    "qmail-rspawn": [Want(("qmailr", "qmail"), {"qmail-send"}, {0: PIPE, 1: PIPE, 2: NULL}, f"{PIPE}|{SOCKET}|{NULL}|{HOME}/queue/lock/ledger.remote"),
                     Want(("qmailr", "qmail"), {"qmail-rspawn"}, BESIDE, f"{PIPE}|{SOCKET}|{NULL}|{HOME}/queue/lock/ledger.remote")],
    # What answers qmail-remote's questions about TLS, and who replaces it; left by who became qmail-rspawn.
    "tlsclient": [Want(("qmailr", "qmail"), {"qmail-rspawn"}, BESIDE, SOCKET), Want(("qmailr", "qmail"), {"tlsclient"}, BESIDE, SOCKET)],
    "mta-sts": [Want(("qmailr", "qmail"), {"qmail-rspawn"}, BESIDE, SOCKET), Want(("qmailr", "qmail"), {"mta-sts"}, BESIDE, SOCKET)],
    # It holds intd locked for life: one qmail-clean a queue.
    "qmail-clean": [Want(("qmailq", "qmail"), {"qmail-send"}, {0: PIPE, 1: PIPE, 2: NULL, 3: HOME + "/queue/intd"})],
    "qmail-remote": [Want(("qmailr", "qmail"), {"qmail-rspawn"}, DELIVERY, f"{SOCKET}|{HOME}/queue/lock/tcpto")],
    # Descriptor 3 is the line for the next message; what they run does not have it.
    "qmail-local": [Want(("joe", "joe"), {"qmail-lspawn"}, DELIVERY, SOCKET), Want(("alias", "nofiles"), {"qmail-lspawn"}, DELIVERY, SOCKET)],
    "sh": [Want(("joe", "joe"), {"qmail-local"}, DELIVERY), Want(("alias", "nofiles"), {"qmail-local"}, DELIVERY)],
    "tcpserver": [Want(("qmaild", "nofiles"), {"the tests"}, SERVER)] * 2 + [Want(("root", "root"), {"the tests"}, SERVER, groups=[])],
    # To qmail-queued's worker: a socket and two pipes.
    "qmail-smtpd": [Want(("qmaild", "nofiles"), {"tcpserver"}, CONNECTION, f"{SOCKET}|{PIPE}")],
    # The classic way: root, before the password with a child that talks, and behind it; and by qmail-authd.
    "qmail-popup": [Want(("root", "root"), {"tcpserver"}, CONNECTION, PIPE + "|closed", groups=[])] * 2 + [
        Want(("qmaild", "nofiles"), {"qmail-popup"}, CONNECTION, PIPE)] + [
        Want(("qmaild", "nofiles"), {"tcpserver"}, CONNECTION, SOCKET + "|closed")] * 2,
    # The second one is beside the session.
    "qmail-authd": [Want(("root", "root"), {"the tests"}, {0: NULL, 1: LOG, 2: LOG}, SOCKET, groups=[]),
                    Want(("root", "root"), {"qmail-authd"}, {0: NULL, 1: LOG, 2: LOG}, SOCKET, groups=[])],
    "qmail-pop3d": [Want(("joe", "joe"), {"qmail-popup", "qmail-authd"}, CONNECTION)] * 2,
}

# They run others' programs: sudo, or a set-gid maildrop, must go on working there.
UNBOUND = {"cat", "sh", "tcpserver", "qmail-lspawn", "qmail-local", "qmail-authd"}


def jails():
    """{program: what NoNewPrivs may be there}, from the one manifest; a jail of a part of its life may be closed or not."""
    with open(os.path.join(ROOT, "bins", "jail", "src", "programs.rs")) as f:
        text = f.read()
    found = {}
    for name, rest in re.findall(r'Profile::jail\(\s*"([^"]+)"([^;]*);', text):
        found.setdefault(name, set()).update({"0", "1"} if ".part(" in rest else {"1"})
    return found


if __name__ == "__main__":
    unittest.main()
