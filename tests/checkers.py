"""A checker for tests: knows some cleartext passwords, and so every mechanism; writes down what it was told."""

import base64
import hashlib
import hmac
import os
import shutil
import struct

from tests import harness

PASSWORDS = {"joe": "secret", "jim@example.net": "pa ss,wo=rd", "üser": "pässwörd"}
COUNT, SALT = 4096, b"0123456789abcdef"

SCRIPT = """#!/usr/bin/env python3
import base64, hashlib, hmac, os, sys
PASSWORDS = {passwords!r}
told = b""
while piece := os.read(3, 4096):
    told += piece
with open(os.path.join({kept!r}, "told"), "ab") as f:
    f.write(told + b"\\n")
with open(os.path.join({kept!r}, "environ"), "ab") as f:
    f.write(b"".join(name + b"=" + value + b"\\n" for name, value in sorted(os.environb.items())))
fields = told.split(b"\\0")
name, secret, challenge = fields[:3]
mechanism = fields[3] if len(fields) > 4 else b""
if name == b"temp":
    sys.exit(111)
if name == b"misused":
    sys.exit(2)
password = PASSWORDS.get(name.decode("utf-8", "replace"))
if password is None:
    sys.exit(1)
password = password.encode()
if mechanism.startswith(b"SCRAM"):
    salted = hashlib.pbkdf2_hmac("sha256", password, {salt!r}, {count})
    mac = lambda key, text: hmac.new(key, text, "sha256").digest()
    client = mac(salted, b"Client Key")
    signature = mac(hashlib.sha256(client).digest(), challenge)
    right = bytes(a ^ b for a, b in zip(client, signature)) == base64.b64decode(secret)
    if right:
        os.write(4, base64.b64encode(mac(mac(salted, b"Server Key"), challenge)))
elif challenge and len(secret) == 32:
    right = secret in (hmac.new(password, challenge, "md5").hexdigest().encode(),
                       hashlib.md5(challenge + password).hexdigest().encode())
else:
    right = secret == password
if not right:
    sys.exit(3 if name == b"joe" and secret == b"three" else 1)
if "CHECKER_HOME" in os.environ:
    os.chdir(os.environ["CHECKER_HOME"])
os.execvpe(sys.argv[1], sys.argv[1:], dict(os.environ, USER=name.decode(), HOME=os.environ.get("CHECKER_HOME", "/")))
"""


CAPTURE = """#!/bin/sh
cat >"$CAPTURE_DIR/message"
cat <&1 >"$CAPTURE_DIR/envelope"
"""


def install(home):
    """Makes bin/checker in a home, capture.sh for QMAILQUEUE, and the directory that both write into."""
    home.write("bin/checker", script(home.file("kept")), 0o755)
    home.write("capture.sh", CAPTURE, 0o755)
    return empty(home)


def empty(home):
    """That directory, with nothing in it."""
    kept = home.file("kept")
    shutil.rmtree(kept, ignore_errors=True)
    os.mkdir(kept)
    if os.geteuid() == 0:
        os.chown(kept, *harness.owner()[1:])
    return kept


def capturing(home):
    """The environment of a program that queues by capture.sh."""
    return {**home.env, "QMAILQUEUE": home.file("capture.sh"), "CAPTURE_DIR": home.file("kept")}


def offer_scram(home):
    home.control("scramparams.cdb", params())
    home.control("scramsecret", "never told\n")


def script(kept):
    return SCRIPT.format(passwords=PASSWORDS, kept=kept, salt=SALT, count=COUNT)


def params():
    """control/scramparams.cdb."""
    text = f"{COUNT},{base64.b64encode(SALT).decode()}".encode()
    return cdb({name.encode(): text for name in PASSWORDS})


def cdb(records):
    """The bytes of a constant database."""
    def hashed(key):
        h = 5381
        for byte in key:
            h = ((h << 5) + h ^ byte) & 0xFFFFFFFF
        return h
    out, tables = bytearray(2048), [[] for _ in range(256)]
    for key, value in records.items():
        tables[hashed(key) & 255].append((hashed(key), len(out)))
        out += struct.pack("<II", len(key), len(value)) + key + value
    for number, table in enumerate(tables):
        slots = [(0, 0)] * (len(table) * 2)
        for h, at in table:
            where = (h >> 8) % len(slots)
            while slots[where][1]:
                where = (where + 1) % len(slots)
            slots[where] = (h, at)
        struct.pack_into("<II", out, number * 8, len(out), len(slots))
        out += b"".join(struct.pack("<II", *slot) for slot in slots)
    return bytes(out)


def plain(name, password, authzid=""):
    return base64.b64encode(f"{authzid}\0{name}\0{password}".encode()).decode()


def b64(text):
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


class Scram:
    """A client of SCRAM-SHA-256, step by step."""

    def __init__(self, name, password, header="n,,", binding=b"", nonce="fyko+d2lbbFgONRv9qkxdawL"):
        self.password, self.header, self.binding, self.nonce = password, header, binding, nonce
        self.bare = f"n={name},r={nonce}"

    def first(self):
        return b64(self.header + self.bare)

    def final(self, challenge):
        server = base64.b64decode(challenge).decode()
        nonce, salt, count = (part[2:] for part in server.split(","))
        assert nonce.startswith(self.nonce) and nonce != self.nonce, nonce
        without = f"c={b64(self.header.encode() + self.binding)},r={nonce}"
        self.message = f"{self.bare},{server},{without}".encode()
        self.salted = hashlib.pbkdf2_hmac("sha256", self.password.encode(), base64.b64decode(salt), int(count))
        client = self.mac(self.salted, b"Client Key")
        signature = self.mac(hashlib.sha256(client).digest(), self.message)
        return b64(without + ",p=" + b64(bytes(a ^ b for a, b in zip(client, signature))))

    def expected(self):
        return b64("v=" + b64(self.mac(self.mac(self.salted, b"Server Key"), self.message)))

    @staticmethod
    def mac(key, text):
        return hmac.new(key, text, "sha256").digest()


def read(kept, name):
    try:
        with open(os.path.join(kept, name), "rb") as f:
            return f.read()
    except FileNotFoundError:
        return b""
