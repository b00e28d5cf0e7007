"""Hostile input behind the network: POP3, qmail-clean's pipe, .qmail files and what a delivery tells its programs,
tcpto, cdb files."""

import contextlib
import os
import random
import re
import shutil
import subprocess

from tests import harness, spawners, tinycdb
from tests.crash.doors_rig import MEMORY_MAX, Crowd, in_memory, peak, strings
from tests.crash.doors_smtp import Queue, sequences
from tests.crash.hosts import GO_ON, Hosts, Point
from tests.crash.report import Row
from tests.harness import wait_for

OWNER = harness.owner()[1:]


def own(path):
    if os.geteuid() == 0:
        os.chown(path, *OWNER, follow_symlinks=False)
    return path


def write(path, content, mode=0o600):
    with open(path, "wb") as f:
        f.write(content)
    os.chmod(path, mode)
    return own(path)


@contextlib.contextmanager
def scratch():
    base = harness.scratch()
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


# -- POP3

MESSAGES = (b"Subject: one\n\n.first\n..\nend\n", b"Subject: two\n\n\0\xff\n")
VERBS = (b"STAT", b"LIST", b"LIST 1", b"UIDL 2", b"RETR 1", b"TOP 2 0", b"DELE 1", b"DELE 2", b"DELE 3", b"RSET", b"NOOP", b"LAST", b"XXXX", b"USER joe")


def maildir(base, name="Maildir"):
    path = os.path.join(base, name)
    for part in ("", "tmp", "new", "cur"):
        own_mkdir(os.path.join(path, part))
    for number, message in enumerate(MESSAGES, 1):
        file = write(os.path.join(path, "new", f"{1700000000 + number}.{number}.h"), message)
        os.utime(file, (1700000000, 1700000000))
    return path


def own_mkdir(path):
    os.mkdir(path, 0o755)
    own(path)


class Maildrop:
    """What POP3 says of a maildrop of these two messages: RFC 1939, with LAST of RFC 1725."""

    def __init__(self):
        self.deleted, self.last = set(), 0

    def number(self, word):
        """The message it names, or None."""
        if re.fullmatch(rb"[0-9]+", word) and 1 <= int(word) <= 2 and int(word) not in self.deleted:
            return int(word)
        return None

    def answer(self, line):
        """(whether +OK, the lines behind it or None)."""
        verb, *words = [w for w in line.split(b" ") if w] or [b""]
        left = [n for n in (1, 2) if n not in self.deleted]
        if verb == b"STAT":
            return b"+OK %d %d" % (len(left), sum(len(MESSAGES[n - 1]) for n in left)), None
        if verb == b"LIST" and not words:
            return True, b"".join(b"%d %d\r\n" % (n, len(MESSAGES[n - 1])) for n in left)
        if verb == b"UIDL" and not words:
            return True, b"".join(b"%d %d.%d.h\r\n" % (n, 1700000000 + n, n) for n in left)
        if verb in (b"RSET", b"NOOP", b"LAST"):
            if verb == b"RSET":
                self.deleted, self.last = set(), 0
            return b"+OK %d" % self.last if verb == b"LAST" else True, None
        if verb in (b"LIST", b"UIDL", b"RETR", b"DELE") and len(words) == 1 or verb == b"TOP" and len(words) == 2:
            n = self.number(words[0])
            if n is None or verb == b"TOP" and not re.fullmatch(rb"[0-9]+", words[1]):
                return False, None
            if verb == b"LIST":
                return b"+OK %d %d" % (n, len(MESSAGES[n - 1])), None
            if verb == b"UIDL":
                return b"+OK %d %d.%d.h" % (n, 1700000000 + n, n), None
            if verb == b"DELE":
                self.deleted.add(n)
                self.last = max(self.last, n)
                return True, None
            text = MESSAGES[n - 1]
            if verb == b"TOP":
                head, _, body = text.partition(b"\n\n")
                text = head + b"\n\n" + b"".join(body.splitlines(True)[:int(words[1])])
            return True, b"".join((b"." if part.startswith(b".") else b"") + part.replace(b"\n", b"\r\n") for part in text.splitlines(True))
        return False, None


def check_pop3(row, lines, said):
    """Compares a whole session, greeting and all, with the model; what the model has then."""
    drop, rest = Maildrop(), said
    greeting, _, rest = rest.partition(b"\r\n")
    if greeting[:3] != b"+OK":
        row.bad("code", f"greeting {greeting!r}")
    for at, line in enumerate(lines):
        wanted, text = drop.answer(line)
        first, _, rest = rest.partition(b"\r\n")
        fits = first == wanted if isinstance(wanted, bytes) else first.startswith(b"+OK" if wanted else b"-ERR")
        if text is not None and fits:
            fits = rest.startswith(text + b".\r\n")
            rest = rest[len(text) + 3:]
        if not fits:
            row.bad("code", f"{lines[max(0, at - 4):at + 1]}: {first!r} {rest[:80]!r} instead of {wanted!r} {text!r}")
            return drop
    if rest:
        row.bad("code", f"behind the last answer: {rest[:200]!r}")
    return drop


def pop3_orders(longest):
    in_memory()
    row = Row("qmail-pop3d", f"every order of up to {longest} commands out of {len(VERBS)}")
    with scratch() as base:
        maildir(base)
        every = list(sequences(len(VERBS), longest))

        def done(lines, code, said):
            check_pop3(row, lines, said)
            if code != 0:
                row.bad("code", f"exit {code}")
        with Crowd(["qmail-pop3d", "Maildir"], {"PATH": os.environ["PATH"]}, done, base, True) as crowd:
            for at in range(0, len(every), 2000):
                lines = [line for order in every[at:at + 2000] for line in (b"RSET", *(VERBS[n] for n in order))]
                row.tried += len(every[at:at + 2000])
                crowd.put(lines, b"\r\n".join(lines) + b"\r\n")
        if sorted(os.listdir(os.path.join(base, "Maildir/new"))) != ["1700000001.1.h", "1700000002.2.h"]:
            row.bad("lost", "messages went without QUIT")
    return [row]


def pop3_numbers(longest, program="qmail-pop3d"):
    in_memory()
    row = Row("qmail-pop3d", "numbers that are none, or of nobody")
    words = list(strings((b"0", b"1", b"2", b"3", b"-", b"+", b" ", b"a", b".", b"\0", b"\xff", b"\t"), longest))
    words += [b"%d" % (2**bits + n) for bits in (8, 16, 31, 32, 63, 64, 65, 128) for n in (-1, 0, 1, 2)]
    words += [b"0" * 100 + b"1", b"1" + b"0" * 100, b"9" * 4000, b"0x1", b"1e0", b"1,2", b"1:*", b"$", b"*", b"1\r", b"\xc2\xb9", b"1;DELE 2", b"%31"]
    lines = [b" ".join((verb, word, *more)) for word in words for verb, *more in ((b"DELE",), (b"RETR",), (b"LIST",), (b"UIDL",), (b"TOP", b"0"), (b"TOP 1",))]
    with scratch() as base:
        maildir(base)
        whole = [line for one in lines for line in (one, b"RSET")]
        row.tried = len(lines)
        with Crowd([program, "Maildir"], {"PATH": os.environ["PATH"]}, lambda key, code, said: check_pop3(row, whole, said), base, True) as crowd:
            crowd.put(None, b"\r\n".join(whole) + b"\r\n")
    return [row]


def pop3_ends():
    """What is deleted is what was marked, and only behind QUIT."""
    in_memory()
    row = Row("qmail-pop3d", "every order of up to 3 DELE and RSET, then QUIT or none")
    marks = (b"DELE 1", b"DELE 2", b"RSET", b"DELE 1a", b"DELE 18446744073709551617", b"DELE -1", b"DELE 2 1")
    with scratch() as base:
        def done(key, code, said):
            name, lines, end = key
            row.tried += 1
            drop = check_pop3(row, lines, said[:-6] if end and said.endswith(b"+OK \r\n") else said)
            there = {int(n.split(".")[1]) for sub in ("new", "cur") for n in os.listdir(os.path.join(base, name, sub))}
            wanted = {1, 2} - (drop.deleted if end else set())
            if wanted - there:
                row.bad("lost", f"{lines} {end}: left {there}")
            if there - wanted or code != 0:
                row.bad("code", f"{lines} {end}: left {there}, exit {code}")
            shutil.rmtree(os.path.join(base, name))
        with Crowd(["qmail-pop3d"], {"PATH": os.environ["PATH"]}, done, base, True) as crowd:
            for number, order in enumerate(sequences(len(marks), 3)):
                lines = [marks[n] for n in order]
                for end in (b"QUIT\r\n", b"", b"QUIT"):
                    name = f"{number}{'q' if end else 'e'}{len(end)}"
                    maildir(base, name)
                    crowd.put((name, lines, end == b"QUIT\r\n"), b"".join(line + b"\r\n" for line in lines) + end, name)
    return [row]


LOGIN = (b"USER joe", b"PASS x", b"APOP joe digest", b"NOOP", b"QUIT", b"XXXX", b"USER", b"PASS", b"PASS a\0b")


def login_model(lines):
    """(answers, what the checker is given or None)."""
    answers, user, failures = ["+OK"], None, 0
    for line in lines:
        had, user = user, None
        good = True
        if line == b"USER joe":
            user = b"joe"
        elif line == b"PASS x" and had:
            return answers, b"joe\0x\0"
        elif line == b"APOP joe digest":
            return answers, b"joe\0digest\0"
        elif line == b"QUIT":
            return answers + ["+OK"], None
        elif line != b"NOOP":
            good = False
        answers.append("+OK" if good else "-ERR")
        failures += not good
        if failures == 3:
            return answers, None
    return answers, None


def logins(longest):
    in_memory()
    row = Row("qmail-popup", f"every order of up to {longest} commands out of {len(LOGIN)}")
    fakes = spawners.Fakes()
    try:
        fakes.script("checker", "exec cat <&3\n")
        env = {"PATH": f"{fakes.path}:{os.environ['PATH']}"}

        def done(lines, code, said):
            row.tried += 1
            answers, fields = login_model(lines)
            found = re.findall(rb"(?m)^(\+OK|-ERR)[^\r\n]*\r\n", said)
            given = re.sub(rb"(?m)^(\+OK|-ERR)[^\r\n]*\r\n", b"", said)
            if fields and not given.startswith(fields) or not fields and given:
                row.bad("stray", f"{lines}: the checker got {given!r}")
            if [f.decode() for f in found] [:len(answers)] != answers or code != 1:
                row.bad("code", f"{lines}: exit {code}, {said!r} instead of {answers}")
        with Crowd(["qmail-popup", "pop.example", "checker"], env, done) as crowd:
            for order in sequences(len(LOGIN), longest):
                lines = [LOGIN[n] for n in order]
                crowd.put(lines, b"".join(line + b"\r\n" for line in lines))
    finally:
        fakes.remove()
    return [row]


# -- qmail-clean

def clean_requests(pieces):
    letters = (b"0", b"1", b"9", b"/", b".", b"-", b"\n", b"\xff", b"x")
    for verb in (b"foop/", b"todo/"):
        for rest in strings(letters, 4):
            yield verb + rest
        for length in range(1, 120):
            yield verb + b"1" * length
            yield verb + b"9" * length
        for at in range(len(verb) + 3):
            for byte in range(1, 256):
                whole = bytearray(verb + b"991")
                whole[at] = byte
                yield bytes(whole)
    yield from strings((b"foop", b"todo", b"/", b"1", b"0", b"..", b"\xff"), pieces)


def clean(pieces, program="qmail-clean"):
    """One reply a request, whatever it is; and what nobody asked for stays."""
    in_memory()
    row = Row("qmail-clean", "requests of every kind: one reply each")
    requests = list(clean_requests(pieces))

    def wanted(request):
        match = re.fullmatch(rb"(?:foop|todo)/(0|[1-9][0-9]*)", request)
        return b"+" if match and len(request) < 100 and int(match[1]) < 2**64 else b"x"
    with harness.Home(users={}) as home:
        kept = [spawners.put_message(home, 457)]
        home.write("queue/todo/457", b"u1\0p1\0F\0\0")

        def done(_, code, said):
            row.tried = len(requests)
            if code != 0 or len(said) != len(requests):
                row.bad("code", f"exit {code}, {len(said)} replies to {len(requests)} requests")
            for request, byte in zip(requests, said):
                if bytes([byte]) != wanted(request):
                    row.bad("code", f"{request!r}: {chr(byte)} instead of {wanted(request)}")
        with Crowd([program], home.env, done) as crowd:
            crowd.put(None, b"".join(r + b"\0" for r in requests))
        for name in [f"queue/mess/{kept[0]}", "queue/todo/457"]:
            if not os.path.exists(home.file(name)):
                row.bad("lost", name)
        # A request without an end takes no memory.
        process = subprocess.Popen([harness.program("qmail-clean")], env=home.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            process.stdin.write(b"foop/" + b"1" * (8 << 20) + b"\0foop/1\0")
            process.stdin.flush()
            if process.stdout.read(2) != b"x+":
                row.bad("code", "a request of 8 MiB")
            if (used := peak(process.pid)) > MEMORY_MAX:
                row.bad("code", f"a request of 8 MiB takes {used} KiB")
        finally:
            process.stdin.close()
            process.wait(harness.TIMEOUT)
            process.stdout.close()
    return [row]


# -- qmail-local

def quoted(address):
    """As delivery.md says of Return-Path."""
    local, at, domain = address.rpartition(b"@") if b"@" in address else (address, b"", b"")
    if address and (not local or re.search(rb"[^A-Za-z0-9!#$%&'*+\-./=?^_{|}~`]", local) or local[:1] == b"." or local[-1:] == b"." or b".." in local):
        local = b'"' + re.sub(rb'([\r\n"\\])', rb"\\\1", local) + b'"'
    return local + at + domain


def after_hyphens(ext):
    return [b"-".join(ext.split(b"-")[n:]) if ext.count(b"-") >= n else b"" for n in (1, 2, 3)]


def before_dots(host):
    found = []
    for _ in range(3):
        host = host.rpartition(b".")[0] if b"." in host else host
        found.append(host)
    return found


def environment(sender, ext, host, home):
    local = b"joe-" + ext
    return {
        b"SENDER": sender, b"NEWSENDER": sender, b"RECIPIENT": local + b"@" + host, b"LOCAL": local, b"HOST": host, b"USER": b"joe",
        b"HOME": home.encode(), b"EXT": ext, b"DEFAULT": ext, **dict(zip((b"EXT2", b"EXT3", b"EXT4"), after_hyphens(ext))),
        **dict(zip((b"HOST2", b"HOST3", b"HOST4"), before_dots(host))),
        b"DTLINE": b"Delivered-To: " + (local + b"@" + host).replace(b"\n", b"_") + b"\n",
        b"RPLINE": b"Return-Path: <" + quoted(sender).replace(b"\n", b"_") + b">\n",
    }


@contextlib.contextmanager
def user_home():
    """(system home, a user's home) just enough for qmail-local."""
    with scratch() as base:
        os.makedirs(os.path.join(base, "system/users"))
        write(os.path.join(base, "system/users/ids"), b"owner:%d:%d\n" % OWNER, 0o644)
        home = os.path.join(base, "home")
        os.mkdir(home, 0o700)
        yield {"PATH": "/usr/bin:/bin", "QMAIL_HOME": own(os.path.join(base, "system"))}, own(home)


def local_environment(step=1):
    """Every byte in sender, extension and host, as programs of .qmail files get them."""
    in_memory()
    row = Row("qmail-local, a program", "every byte in sender, extension and host")
    with user_home() as (env, home):
        write(os.path.join(home, ".qmail-default"), b"|exec env -0\n")

        def done(key, code, said):
            row.tried += 1
            found = dict(pair.split(b"=", 1) for pair in said.split(b"\0") if b"=" in pair)
            uf = found.get(b"UFLINE", b"")
            wanted = environment(*key, home)
            wrong = {k: (found.get(k), v) for k, v in wanted.items() if found.get(k) != v}
            who = re.sub(rb"[ \t\n]", b"-", key[0]) or b"MAILER-DAEMON"
            if code != 0 or wrong or not re.fullmatch(rb"From " + re.escape(who) + rb" \w{3} \w{3} \d\d \d\d:\d\d:\d\d \d{4}\n", uf):
                row.bad("code", f"{key}: exit {code}, (is, should be): {wrong}, {uf!r}")
        with Crowd(["qmail-local"], env, done, "/", True) as crowd:
            for byte in range(1, 256, step):
                b = bytes([byte])
                for sender, ext, host in ((b"s%sx@%sy" % (b, b), b"ext", b"host.example"), (b"s@h", b"e%s-x%s-y" % (b, b), b"host.example"),
                                          (b"s@h", b"ext", b"h%s.ex%s.am.ple" % (b, b)), (b, b, b)):
                    crowd.put((sender, ext, host), b"Subject: x\n\nx\n", b"--", b"joe", home, b"joe-" + ext, b"-", ext, host, sender, b"./Mailbox")
    return [row]


def instruction(line):
    """What -n prints of a line; None for one that stops everything."""
    text = line.rstrip(b" \t")
    if not text or text[:1] == b"#":
        return b""
    if b"\0" in text:
        return None
    if text[:1] in b"/.":
        return (b"maildir " if text[-1:] == b"/" else b"mbox ") + text + b"\n"
    if text[:1] == b"|":
        return b"program " + text[1:] + b"\n"
    if text[:1] == b"+":
        return b""
    return b"forward " + text.removeprefix(b"&") + b"\n"


def instructions():
    """Every two bytes at the beginning of a line; what is one line stays one."""
    in_memory()
    row = Row("qmail-local, .qmail", "lines that begin with every two bytes; NUL at every place; 10 MiB; loops")
    head = b"Subject: x\nDelivered-To: other@host.example\n\nDelivered-To: joe-ext@host.example\n"
    arguments = (b"joe-ext", b"-", b"ext", b"host.example", b"s@h", b"./Mailbox")
    with user_home() as (env, home):
        def done(key, code, said):
            row.tried += key[0]
            if (code, said) != key[1]:
                row.bad("code", f"{key[2]!r}: exit {code}, {said[:300]!r} instead of {key[1][0]}, {key[1][1][:300]!r}")
            os.unlink(os.path.join(home, key[3]))

        def put(crowd, count, name, text, code, said, message=head, options=(b"-n",)):
            write(os.path.join(home, name), text)
            crowd.put((count, (code, said), text[:100] if message is head else message[:200], name), message, *options, b"--", b"joe", home, b"joe-" + name[7:].encode(),
                      b"-", name[7:].encode(), *arguments[3:])
        with Crowd(["qmail-local"], env, done, "/", True) as crowd:
            for first in range(256):
                lines = [bytes((first, second)) + b"yz" for second in range(256) if first != 10 and second != 10 and 0 not in (first, second)]
                if lines:
                    said = [instruction(line) for line in lines]
                    kinds = [sum(line.startswith(k) for line in said) for k in (b"mbox", b"forward", b"program")]
                    put(crowd, len(lines), f".qmail-l{first}", b"#\n" + b"\n".join(lines), 0, b"".join(said) + b"did %d+%d+%d\n" % tuple(kinds))
            for at in range(5):
                put(crowd, 1, f".qmail-n{at}", b"&a@b"[:at] + b"\0" + b"&a@b"[at:] + b"\n", 111, b"Uh-oh: .qmail file has a line with a NUL. (#4.2.1)\n")
            for n, text in enumerate((b"\n&a@b\n", b" \n&a@b\n", b"\t \n", b"\n")):
                put(crowd, 1, f".qmail-b{n}", text, 111, b"Uh-oh: first line of .qmail file is blank. (#4.2.1)\n")
            # A delivery to itself ends at the very line it left; what only resembles it is no loop.
            looping = b"Delivered-To: joe-loop%d@host.example"
            for n in range(60):
                mine = looping % n
                line = mine[:n] + b"x" + mine[n + 1:] if n < len(mine) else mine
                code = 100 if line == mine else 0
                said = b"This message is looping: it already has my Delivered-To line. (#5.4.6)\n" if code else b"did 0+0+0\n"
                put(crowd, 1, f".qmail-loop{n}", b"#\n", code, said, b"Subject: x\n" + line + b"\n\nx\n", ())
        for name, text, message in (("a line of 10 MiB", b"&" + b"a" * (10 << 20), head), ("a header line of 10 MiB", b"#\n", b"x" * (10 << 20) + b"\n\n"),
                                    ("header lines without end", b"#\n", b"Delivered-To: x\n" * (10 << 16))):
            write(os.path.join(home, ".qmail-ext"), text)
            row.tried += 1
            # 48 MiB of addresses, of which the program itself takes most: no line is held whole but where the file is refused.
            limited = subprocess.run(["prlimit", f"--as={48 << 20}", *(["setpriv", "--reuid", str(OWNER[0]), "--regid", str(OWNER[1]), "--clear-groups"] if os.geteuid() == 0 else []),
                                      harness.program("qmail-local"), "--", "joe", home, *[a.decode() for a in arguments]], env=env, cwd="/", stdin=message_file(home, message),
                                     capture_output=True, timeout=2 * harness.TIMEOUT)
            if limited.returncode not in ((111,) if text[:1] == b"&" else (0,)):
                row.bad("code", f"{name}: exit {limited.returncode} {limited.stderr[-200:]!r}")
    return [row]


def message_file(home, message):
    f = open(write(os.path.join(os.path.dirname(home), "message"), message, 0o644), "rb")
    os.unlink(f.name)
    return f


# -- files that others write

def table_of(home):
    with open(home.file("queue/lock/tcpto"), "rb") as f:
        return f.read()


def tcpto(count, seed):
    """Any content of the table of timeouts: it never ends a message, and the tools live."""
    in_memory()
    row = Row("tcpto: qmail-remote, qmail-tcpto, qmail-tcpok", "any content and length")
    chance = random.Random(seed)
    point = Point(0, "QUIT", b"221 bye\r\n", GO_ON)
    with harness.Home(users={}) as home, Hosts([point]) as hosts:
        home.control("smtproutes", hosts.routes())
        ip = bytes(int(n) for n in point.address.split("."))
        for number in range(count):
            length = chance.choice((0, 1, 15, 16, 17, 1023, 1024, 1025, 4096, 20000))
            table = bytes(chance.choice((0, 1, 2, 10, 127, 255, chance.randrange(256))) for _ in range(length))
            if number % 3 == 0:  # it speaks of this very host
                table = b"".join(ip + bytes(chance.choice((0, 1, 2, 255)) for _ in range(12)) for _ in range(length // 16))
            home.write("queue/lock/tcpto", table)
            row.tried += 1
            listed = home.run(["qmail-tcpto"])
            if listed.code != 0 or len(listed.out.splitlines()) > 64 or not re.fullmatch(rb"([0-9.]+ timed out [0-9]+ seconds ago; # recent timeouts: [0-9]+\n)*", listed.out):
                row.bad("code", f"qmail-tcpto of {table[:64]!r}: {listed}")
            sent = home.run(["qmail-remote", point.host, "s@test.example", point.recipients[0]], b"x\n")
            if sent.code != 0 or not re.match(rb"r\0K|Z", sent.out):
                row.bad("code", f"qmail-remote with {table[:64]!r}: {sent}")
            if home.run(["qmail-tcpok"]).code != 0 or any(table_of(home)[:1024]):
                row.bad("left", f"qmail-tcpok leaves {table[:64]!r}")
    return [row]


def damages(file, cut, flip):
    """(what was done, the damaged file): cut at every so many bytes, one bit of every so many flipped."""
    for at in range(0, len(file), cut):
        yield f"cut at {at}", file[:at]
    for at in range(0, len(file), flip):
        for bit in (1 << at % 8,):
            yield f"bit {bit} at {at}", file[:at] + bytes([file[at] ^ bit]) + file[at + 1:]


def cdb_rules(step):
    """A cut rules file never lets in whom it should keep out."""
    in_memory()
    cut_row, flip_row = Row("tcprulescheck, rules.cdb", "cut at every byte"), Row("tcprulescheck, rules.cdb", "a bit flipped")
    file = tinycdb.make([(b"192.0.2.1", b"D\0"), (b"192.0.2.", b"+RELAYCLIENT=\0"), (b"", b"+A=x\0")])
    with scratch() as base:
        def done(key, code, said):
            what, name = key
            row = cut_row if what.startswith("cut") else flip_row
            row.tried += 1
            if row is cut_row and code != 111 and (code, said) != (100, b"rule 192.0.2.1:\ndeny connection\n") or code not in (0, 100, 111):
                row.bad("code", f"{what}: exit {code} {said!r}")
            os.unlink(name)
        with Crowd(["tcprulescheck"], {"PATH": os.environ["PATH"], "TCPREMOTEIP": "192.0.2.1"}, done) as crowd:
            for number, (what, damaged) in enumerate(damages(file, step, step)):
                name = write(os.path.join(base, f"{number}.cdb"), damaged, 0o644)
                crowd.put((what, name), b"", name)
    return [cut_row, flip_row]


def cdb_morercpthosts(step):
    """A damaged list of hosts never makes a refusal for good of a host that is on it, when it is seen to be damaged."""
    in_memory()
    row = Row("qmail-smtpd, morercpthosts.cdb", "cut at every byte")
    file = tinycdb.make([(b"more.example", b""), (b".more.example", b"")])
    with Queue() as queue:
        talk = b"HELO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@more.example>\r\nQUIT\r\n"
        for what, damaged in damages(file, step, len(file)):
            if not what.startswith("cut"):
                continue
            queue.home.control("morercpthosts.cdb", damaged)
            row.tried += 1
            result = harness.run(["qmail-smtpd"], talk, queue.env)
            codes = queue.codes(result.out)
            if codes not in ([220, 250, 250, 250, 221], [220, 250, 250, 421]) or result.code not in (0, 1):
                row.bad("code", f"{what}: {result}")
    return [row]


def cdb_users(cut, flip):
    """A damaged users/cdb never sends mail back for good, where it is cut; and nobody else gets it."""
    in_memory()
    cut_row, flip_row = Row("qmail-lspawn, users/cdb", "cut"), Row("qmail-lspawn, users/cdb", "a bit flipped")
    fakes = spawners.Fakes()
    try:
        with harness.Home(users={"joe": "x"}) as home:
            message = spawners.put_message(home, 457)
            uid, gid = OWNER
            data = f"joe\0{uid}\0{gid}\0{home.file('home/joe')}\0".encode()
            file = tinycdb.make([(b"!joe\0", data + b"\0"), (b"!joe-", data + b"-\0"), (b"", b"-")])
            fakes.script("qmail-local", 'echo "$1 $2 $3 $4"\n')
            process = subprocess.Popen([harness.program("qmail-lspawn"), "./Mailbox"], env=fakes.env(home.env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            try:
                process.stdout.read(1)
                for what, damaged in damages(file, cut, flip):
                    row = cut_row if what.startswith("cut") else flip_row
                    row.tried += 1
                    home.write("users/cdb.new", damaged)
                    os.rename(home.file("users/cdb.new"), home.file("users/cdb"))
                    process.stdin.write(spawners.request(0, message, "s@h", "joe@test.example"))
                    said = b""
                    while not said.endswith(b"\0") or len(said) < 2:
                        byte = process.stdout.read(1)
                        if not byte:
                            raise AssertionError("qmail-lspawn ended")
                        said += byte
                    letter = said[1:2]
                    if row is cut_row and letter not in b"KZ" or letter not in b"KZD":
                        row.bad("code", f"{what}: {said!r}")
                    if row is cut_row and letter == b"K" and not said.startswith(f"\0K-- joe {home.file('home/joe')} joe".encode()):
                        row.bad("stray", f"{what}: {said!r}")
            finally:
                process.stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(harness.TIMEOUT)
                process.kill()
                process.wait()
                process.stdout.close()
    finally:
        fakes.remove()
    return [cut_row, flip_row]
