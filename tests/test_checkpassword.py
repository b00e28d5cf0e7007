"""checkpassword, checkpassword-file and checkpassword-cram from outside: descriptor 3 in, an exit code or the user's program out."""

import base64
import hashlib
import hmac
import os
import shutil
import subprocess
import time
import unittest

from tests import harness

UID, GID = harness.owner()[1:]

# The password is "pencil".
VECTORS = {
    "MD5": "$1$abcdefgh$Gqo0dW5ZZwRMuhky6A93q0",
    "SHA-256": "$5$abcdefghijklmnop$mwkOiYLw5/HQW3OlFtEIF6QWHgkGNIKDi/rM9KKCnV5",
    "SHA-512": "$6$abcdefghijklmnop$56TBvBN4aKG8fPSlsWIfoXFPnIOFO5q1G5H3EPmTBL7VoKVeXsaY7s15dq91.92PYJFRFdRkML2wWbDf8qhUe/",
    "bcrypt": "$2b$05$abcdefghijklmnopqrstuu680Yiaj5hFUaJTH/rTAcbA2PQEGfiZu",
    "yescrypt": "$y$j75$abcdefghijkl$G1Bw0nbf6kKOppE0XU9Ut1.OWvQpuMM3tsJPfzf.gkB",
}

# The same password, made by Dovecot 2.3 ({…}), Python (the first two; the third is passlib's notation of the second) and
# the argon2 of its authors.
SCHEMES = {
    "scrypt": "$scrypt$ln=10,r=8,p=1$c2FsdHNhbHQ$803LTt5buFR9gST/4a0fP53kvVnDkMdXJaH2x4D31SY",
    "PBKDF2 with SHA-256": "$pbkdf2-sha256$i=1000,l=32$c2FsdHNhbHQ$wVNdDJbDXytD3Ypu4dvQtX0COri6cW8h0XT6q2RUj3E",
    "the same of passlib": "$pbkdf2-sha256$1000$c2FsdHNhbHQ$wVNdDJbDXytD3Ypu4dvQtX0COri6cW8h0XT6q2RUj3E",
    "argon2id": "{ARGON2ID}$argon2id$v=19$m=512,t=2,p=2$c2FsdHNhbHQ$AhrwD56wnL44wIqAr0pvvzw1+LfZc9F0t3xVWLPPeZ0",
    "argon2id alone": "$argon2id$v=19$m=512,t=2,p=2$c2FsdHNhbHQ$AhrwD56wnL44wIqAr0pvvzw1+LfZc9F0t3xVWLPPeZ0",
    "argon2i": "{ARGON2I}$argon2i$v=19$m=512,t=2,p=2$c2FsdHNhbHQ$kUZpDVeYRT2HuteCZZT4peRiAVIfsTNF+oNUHyZsCKI",
    "argon2i of version 16": "$argon2i$v=16$m=512,t=2,p=2$c2FsdHNhbHQ$WqIgdWXsO92qXHGgK9czirShLnFvumz9/803KEJC73k",
    "argon2d": "$argon2d$v=19$m=512,t=2,p=2$c2FsdHNhbHQ$udHSVYyMdV/EjJER2PHB7kObaBWHGATVBkpKlb0pvT4",
    "SSHA of the RFC's kind": "{SSHA}wQlfDRC2U2VxQ+eMKr7SFL0BmVgBAgMEBQYHCA==",
    "SSHA": "{SSHA}CH7VQ9+l3BzaaI43fMQoeOsZs2IoocJW",
    "SSHA256": "{SSHA256}VskNHpr5vHQC27SfhtwJ3pW47sMUpzI1mLBLTi1aW5esS5m+",
    "SSHA512": "{SSHA512}298PRl/VE/6F/TGtfN3eS39a77OeHZV0DmvQvUmpc+WdZwNb9s0txzmMN5FZ6sYTua2MwiRv68eoFv4bDzmJBtBGLy0=",
    "SHA": "{SHA}0vxRJJChUDZGC1SJQBQ51tpUB/o=",
    "SHA256": "{SHA256}E4CWaPtDY4Zwb2fcsFLtWEoEuhaowCoX1m00ww/O2iE=",
    "SHA512": "{SHA512}Gd8Bqrgo+NUINrp1cJcTrtInM1344YZDkYXAbJF6Kn03cat24wfPo7a4nvGmaC1mgd3xGISHDl3hPnk/uVXu6w==",
    "SMD5": "{SMD5}9oS2s10W9DN5rGtQ7qXAODxr2Ik=",
    "MD5 in base64": "{LDAP-MD5}qPaDC855Copn/C6E4SCTug==",
    "MD5 in base64, as of LDAP": "{MD5}qPaDC855Copn/C6E4SCTug==",
    "MD5 in hexadecimal": "{PLAIN-MD5}a8f6830bce790a8a67fc2e84e12093ba",
    "MD5 that is crypt's": "{MD5}$1$abcdefgh$Gqo0dW5ZZwRMuhky6A93q0",
    "PBKDF2 with SHA-1": "{PBKDF2}$1$5ao41DgFm8LAXCfX$5000$d1ad5a69e92887f4bef71dfb60918500e683ea1c",
    "CRAM-MD5": "{CRAM-MD5}7f47ace0e2af8f6cdeb72c03243a8c87834e19104164d6a42de72d243adb4080",
    "SHA256 in hexadecimal": "{SHA256.HEX}13809668fb436386706f67dcb052ed584a04ba16a8c02a17d66d34c30fceda21",
    "SSHA in hexadecimal": "{ssha.hex}a0c239a7f9c20102717f9ce016eb927d479a0c886488172a",
    "plain in base64": "{PLAIN.B64}cGVuY2ls",
    "plain": "{PLAIN}pencil",
    "clear": "{CLEARTEXT}pencil",
    "DES": "{DES-CRYPT}OBfJP.dPLGRz6",
    "DES alone": "OBfJP.dPLGRz6",
    "SCRAM of Dovecot": "{SCRAM-SHA-256}4096,W22ZaJ0SNY7soEsUEjb6gQ==,"
                        "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
    "SCRAM of PostgreSQL": "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
                           "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
}

# Nobody can say whether a password is right.
STRANGE = {
    "a scheme of nobody": "$nonsense$",
    "hashes that are given away": "{LANMAN}e52cac67419a9a22",
    "another encoding": "{SHA.b32}AAAA",
    "too short a digest": "{SSHA}AAAA",
    "argon2 with too much memory": "$argon2id$v=19$m=4194304,t=3,p=1$jlKVfddcfj8W+Y84Z66qNA$+xLqGiUtcY+PY7BRMBQJoqW9d2uwlSDEXtpu5RBND44",
    "argon2 cut off": "{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$jlKVfddcfj8W+Y84Z66qNA",
    "scrypt with too much memory": "$scrypt$ln=30,r=8,p=1$c2FsdHNhbHQ$803LTt5buFR9gST/4a0fP53kvVnDkMdXJaH2x4D31SY",
    "SCRAM with other hash": "{SCRAM-SHA-1}4096,QSXCR+Q6sek8bf92,6dlGYMOdZcOPutkcNY8U2g7vK9Y=,D+CSWLOshSulAsxiupA+qs2/fTE=",
    "SCRAM cut off": "{SCRAM-SHA-256}4096,W22ZaJ0SNY7soEsUEjb6gQ==,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=",
}


# An exchange of SCRAM-SHA-256 that RFC 7677 has in section 3.
SCRAM_MESSAGE = (b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
                 b"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
SCRAM_PROOF = b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
SCRAM_SIGNATURE = b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def fields(name, password, more=b"<1.2@h>\0"):
    return name.encode() + b"\0" + password.encode() + b"\0" + more


class File(unittest.TestCase):
    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        self.home = os.path.join(self.base, "joe")
        os.mkdir(self.home)
        self.passwd = os.path.join(self.base, "passwd")
        self.write(self.line("joe", VECTORS["SHA-256"]))

    def line(self, name, stored, uid=UID, gid=GID, home=None):
        return f"{name}:{stored}:{uid}:{gid}:{home or self.home}\n"

    def write(self, text):
        with open(self.passwd, "w") as f:
            f.write(text)

    def check(self, login, *program, env=None):
        program = program or ("sh", "-c", "echo in")
        return harness.run(["checkpassword-file", self.passwd, *program], fds={3: login}, env=env)

    def code(self, login):
        return self.check(login).code

    def test_the_right_password_runs_the_program_as_the_user(self):
        script = 'echo "$USER $HOME $SHELL $KEPT"; pwd; id -u; id -g; id -G; cat; [ -e /dev/fd/3 ] || echo closed; exit 7'
        result = harness.run(["checkpassword-file", self.passwd, "sh", "-c", script], b"input\n", fds={3: fields("joe", "pencil")},
                             env={"PATH": os.environ["PATH"], "KEPT": "kept", "HOME": "/"})
        groups = {GID} if os.geteuid() == 0 else {GID, *os.getgroups()}
        self.assertEqual(result.out.decode().split("\n")[:4], [f"joe {self.home} /bin/sh kept", self.home, str(UID), str(GID)])
        self.assertEqual(set(map(int, result.out.decode().split("\n")[4].split())), groups)
        self.assertTrue(result.out.endswith(b"\ninput\nclosed\n"), result.out)
        self.assertEqual((result.code, result.err), (7, b""))

    def test_every_scheme_of_crypt_is_understood(self):
        for scheme, stored in VECTORS.items():
            self.write(self.line("joe", stored))
            with self.subTest(scheme):
                self.assertEqual(self.code(fields("joe", "pencil")), 0)
                self.assertEqual(self.code(fields("joe", "Pencil")), 1)
        for name in ("CRYPT", "SHA256-CRYPT"):
            self.write(self.line("joe", "{" + name + "}" + VECTORS["SHA-256"]))
            self.assertEqual(self.code(fields("joe", "pencil")), 0)

    def test_a_wrong_password_or_name_is_refused_without_a_word(self):
        for name, password in [("joe", ""), ("joe", "pencil "), ("joe", "penci"), ("joe", "x" * 1000), ("JOE", "pencil"),
                               ("", "pencil"), ("other", "pencil"), ("joe:", "pencil")]:
            with self.subTest((name, password)):
                result = self.check(fields(name, password))
                self.assertEqual((result.code, result.out, result.err), (1, b"", b""))

    def test_a_stored_value_that_lets_nobody_in(self):
        for stored in ("", "*", "!", "x", "!!", "*LK*", "!" + VECTORS["SHA-256"]):
            self.write(self.line("joe", stored))
            for password in ("", stored, "pencil"):
                with self.subTest((stored, password)):
                    self.assertEqual(self.code(fields("joe", password)), 1)

    def test_every_scheme_of_other_servers_is_understood(self):
        for what, stored in SCHEMES.items():
            self.write(self.line("joe", stored))
            with self.subTest(what):
                self.assertEqual(self.code(fields("joe", "pencil")), 0)
                self.assertEqual(self.code(fields("joe", "Pencil", b"")), 1)

    def test_an_unknown_scheme_is_our_trouble_and_not_the_users(self):
        for what, stored in STRANGE.items():
            self.write(self.line("joe", stored))
            with self.subTest(what):
                result = self.check(fields("joe", "pencil"))
                self.assertEqual(result.code, 111)
                self.assertIn(b"unknown scheme", result.err)
                self.assertNotIn(b"pencil", result.err)

    def test_of_several_values_the_one_that_can_checks(self):
        scram = SCHEMES["SCRAM of Dovecot"]
        for row, code in [(VECTORS["SHA-256"] + " " + scram, 0), (scram + " " + VECTORS["SHA-256"], 0), ("{LANMAN}00 " + scram, 0),
                          ("!" + VECTORS["SHA-256"] + " " + scram, 1), ("* " + scram, 1), (scram + " {PLAIN}pencil", 0),
                          ("{PLAIN}two words", 1)]:
            self.write(self.line("joe", row))
            with self.subTest(row):
                self.assertEqual(self.code(fields("joe", "pencil")), code)
        self.assertEqual(self.code(fields("joe", "two words")), 0)

    def test_a_proof_of_scram_is_answered_with_the_signature(self):
        stored = (SCHEMES["SCRAM of Dovecot"], SCHEMES["SCRAM of PostgreSQL"], VECTORS["SHA-256"] + " " + SCHEMES["SCRAM of Dovecot"])
        for row in stored:
            self.write(self.line("joe", row))
            for mechanism in (b"SCRAM-SHA-256", b"SCRAM-SHA-256-PLUS"):
                for proof, code, signature in [(SCRAM_PROOF, 0, SCRAM_SIGNATURE), (b"A" + SCRAM_PROOF[1:], 1, b""), (b"", 1, b""), (b"=", 1, b"")]:
                    login = b"\0".join([b"joe", proof, SCRAM_MESSAGE, mechanism, b"smtp", b"192.0.2.1", b""])
                    with self.subTest((row, mechanism, proof)):
                        result = harness.run(["checkpassword-file", self.passwd, "sh", "-c", "[ -e /dev/fd/4 ] && echo open"],
                                             fds={3: login, 4: "capture"})
                        self.assertEqual((result.code, result.fds[4]), (code, signature))
                        self.assertEqual(result.out, b"open\n" if code == 0 else b"")  # qmail-pop3d reads it there
        # Nobody wants the signature.
        login = b"\0".join([b"joe", SCRAM_PROOF, SCRAM_MESSAGE, b"scram-sha-256", b"", b"", b""])
        self.assertEqual(self.code(login), 0)

    def test_a_proof_is_no_password_and_a_password_no_proof(self):
        self.write(self.line("joe", SCHEMES["SCRAM of Dovecot"]))
        self.assertEqual(self.code(fields("joe", SCRAM_PROOF.decode(), SCRAM_MESSAGE + b"\0")), 1)
        self.assertEqual(self.code(fields("joe", "pencil", SCRAM_MESSAGE + b"\0SCRAM-SHA-256\0\0\0")), 1)
        self.write(self.line("joe", VECTORS["SHA-256"]))
        self.assertEqual(self.code(fields("joe", SCRAM_PROOF.decode(), SCRAM_MESSAGE + b"\0SCRAM-SHA-256\0\0\0")), 1)
        self.assertEqual(self.code(fields("joe", "pencil", b"\0EXTERNAL\0\0\0")), 1)
        self.assertEqual(self.code(fields("joe", "pencil", b"\0GSSAPI\0\0\0")), 1)

    def test_responses_to_challenges_by_what_can_check_them(self):
        challenge = b"<1896.697170952@postoffice.example>"
        cram = hmac.new(b"pencil", challenge, "md5").hexdigest()
        apop = hashlib.md5(challenge + b"pencil").hexdigest()
        both, hashed = (SCHEMES["plain"],), (SCHEMES["CRAM-MD5"],)
        for row, response, mechanism, code in [
                (both, cram, b"", 0), (both, apop, b"", 0), (both, cram, b"CRAM-MD5", 0), (both, apop, b"APOP", 0),
                (both, apop, b"CRAM-MD5", 1), (both, cram, b"APOP", 1), (hashed, cram, b"", 0), (hashed, cram, b"cram-md5", 0),
                (hashed, apop, b"", 1), (hashed, apop, b"APOP", 1), (both, "pencil", b"CRAM-MD5", 1), (both, cram, b"PLAIN", 1),
                ((VECTORS["SHA-256"],), cram, b"CRAM-MD5", 1), ((VECTORS["SHA-256"] + " " + SCHEMES["CRAM-MD5"],), cram, b"CRAM-MD5", 0)]:
            self.write(self.line("joe", row[0]))
            with self.subTest((row, response, mechanism)):
                self.assertEqual(self.code(fields("joe", response, challenge + b"\0" + mechanism + b"\0\0\0")), code)

    def test_a_long_password_is_nobodys_where_crypt_has_an_end(self):
        long = "x" * 2000
        self.write(self.line("joe", "{SHA256}" + base64.b64encode(hashlib.sha256(long.encode()).digest()).decode()))
        self.assertEqual(self.code(fields("joe", long)), 0)

    def test_misuse(self):
        for argv, login in [([], fields("joe", "pencil")), ([self.passwd], fields("joe", "pencil")),
                            ([self.passwd, "true"], b""), ([self.passwd, "true"], b"joe"),
                            ([self.passwd, "true"], b"joe\0pencil")]:
            with self.subTest((argv, login)):
                self.assertEqual(harness.run(["checkpassword-file", *argv], fds={3: login}).code, 2)

    def test_two_fields_are_enough_and_more_are_no_harm(self):
        for more in (b"", b"<t>\0", b"\0PLAIN\0smtp\0" + b"127.0.0.1\0"):
            self.assertEqual(self.code(fields("joe", "pencil", more)), 0)

    def test_descriptor_3_is_bounded(self):
        self.assertEqual(self.code(fields("joe", "pencil", b"t\0" + b"x" * 60_000)), 0)
        self.assertEqual(self.code(fields("joe", "pencil", b"t\0" + b"x" * 70_000)), 1)

    def test_without_descriptor_3_the_trouble_is_temporary(self):
        result = harness.run(["checkpassword-file", self.passwd, "true"])
        self.assertEqual(result.code, 111)
        self.assertIn(b"descriptor 3", result.err)

    def test_troubles_are_temporary_and_name_the_thing(self):
        os.unlink(self.passwd)
        result = self.check(fields("joe", "pencil"))
        self.assertEqual(result.code, 111)
        self.assertIn(f"unable to open {self.passwd}: file does not exist".encode(), result.err)
        self.write(self.line("joe", VECTORS["SHA-256"], home="/nonexistent"))
        result = self.check(fields("joe", "pencil"))
        self.assertEqual((result.code, result.err[-54:]), (111, b"unable to switch to /nonexistent: file does not exist\n"))
        self.write(self.line("joe", VECTORS["SHA-256"]))
        result = self.check(fields("joe", "pencil"), "no-such-program")
        self.assertEqual((result.code, result.out), (111, b""))

    def test_the_first_line_of_a_name_counts_and_odd_lines_are_nobodys(self):
        noise = "# comment\n\njoe\njoe:x:1\njoe:" + VECTORS["MD5"] + ":a:b:/\n" + "joe:" + "x" * 10_000 + "\n" \
            + self.line("joe", VECTORS["MD5"], uid=4294967295) + "joe:" + VECTORS["MD5"] + f":{UID}:{GID}:/:/bin/sh\n"
        self.write(noise + self.line("joe", "*") + self.line("joe", VECTORS["SHA-256"]))
        self.assertEqual(self.code(fields("joe", "pencil")), 1)
        self.write(noise + self.line("joe", VECTORS["SHA-256"]) + self.line("joe", "*"))
        self.assertEqual(self.code(fields("joe", "pencil")), 0)

    def test_a_last_line_without_end_counts(self):
        self.write(self.line("a", "*") + self.line("joe", VECTORS["SHA-256"]).rstrip("\n"))
        self.assertEqual(self.code(fields("joe", "pencil")), 0)

    def test_root_is_never_let_in(self):
        self.write(self.line("joe", VECTORS["SHA-256"], uid=0, gid=0))
        self.assertEqual(self.code(fields("joe", "pencil")), 1)

    def test_a_user_we_cannot_become_is_refused(self):
        self.write(self.line("joe", VECTORS["SHA-256"], uid=UID + 1))
        result = harness.run(["checkpassword-file", self.passwd, "true"], fds={3: fields("joe", "pencil")},
                             as_user=(UID, GID) if os.geteuid() == 0 else None)
        self.assertEqual(result.code, 1)

    def test_without_root_it_goes_on_when_it_is_that_user_already(self):
        self.write(self.line("joe", VECTORS["SHA-256"], gid=GID + 1))
        result = harness.run(["checkpassword-file", self.passwd, "id", "-u"], fds={3: fields("joe", "pencil")},
                             as_user=(UID, GID) if os.geteuid() == 0 else None)
        self.assertEqual((result.code, result.out), (0, b"%d\n" % UID))


class Cram(unittest.TestCase):
    CHALLENGE = b"<1896.697170952@postoffice.example>"

    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        self.file = os.path.join(self.base, "secrets")
        with open(self.file, "w") as f:
            for name, secret in [("joe", "pencil"), ("sue", "{PLAIN}pencil"), ("amy", SCHEMES["CRAM-MD5"]), ("none", ""),
                                 ("odd", "!pen cil"), ("old", "{LANMAN}00")]:
                f.write(f"{name}:{secret}:{UID}:{GID}:/\n")

    def code(self, name, response, mechanism=b"", challenge=None):
        challenge = self.CHALLENGE if challenge is None else challenge
        login = fields(name, response, challenge + b"\0" + (mechanism + b"\0pop3\0" + b"\0" if mechanism else b""))
        result = harness.run(["checkpassword-cram", self.file, "true"], fds={3: login})
        self.assertEqual((result.out, result.err if result.code < 100 else b""), (b"", b""))
        return result.code

    def test_responses_are_held_against_the_secret(self):
        cram = hmac.new(b"pencil", self.CHALLENGE, "md5").hexdigest()
        apop = hashlib.md5(self.CHALLENGE + b"pencil").hexdigest()
        for name, wants in [("joe", (0, 0)), ("sue", (0, 0)), ("amy", (0, 1)), ("none", (1, 1)), ("odd", (1, 1)), ("nobody", (1, 1))]:
            with self.subTest(name):
                self.assertEqual((self.code(name, cram), self.code(name, apop)), wants)
                self.assertEqual((self.code(name, cram, b"CRAM-MD5"), self.code(name, apop, b"APOP")), wants)
                self.assertEqual(self.code(name, cram, challenge=b"<1896.697170953@postoffice.example>"), 1)
                self.assertEqual(self.code(name, cram.upper()), 1)
        self.assertEqual(self.code("odd", hmac.new(b"!pen cil", self.CHALLENGE, "md5").hexdigest()), 0)

    def test_the_password_itself_is_as_good(self):
        for name, code in [("joe", 0), ("sue", 0), ("amy", 0), ("none", 1), ("odd", 1), ("nobody", 1), ("old", 111)]:
            with self.subTest(name):
                self.assertEqual((self.code(name, "pencil", challenge=b""), self.code(name, "pencil", b"PLAIN")), (code, code))
        self.assertEqual(self.code("none", "", challenge=b""), 1)
        self.assertEqual(self.code("joe", "", challenge=b""), 1)

    def test_misuse(self):
        for argv in [[], [self.file]]:
            self.assertEqual(harness.run(["checkpassword-cram", *argv], fds={3: fields("joe", "pencil")}).code, 2)


TODAY = int(time.time() // 86400)

# Of no password, and as expensive as it says.
LARGE = "$argon2id$v=19$m=131072,t=1,p=1$c2FsdHNhbHQ$AhrwD56wnL44wIqAr0pvvzw1+LfZc9F0t3xVWLPPeZ0"

# Accounts by the dates of their shadow entries, and why they are closed.
DATES = {
    "young": (f"{TODAY}:0:99999:7:::", ""),
    "aged": (f"{TODAY - 100}:0:90:7:::", "the password has expired"),
    "gone": (f"19000:::::{TODAY - 1}:", "the account has expired"),
    "later": (f"19000:::::{TODAY + 2}:", ""),
    "fresh": ("0:0:99999:7:::", "the password must be changed first"),
}


@unittest.skipUnless(os.geteuid() == 0, "reading shadow passwords, and private ones in a mount namespace, need root")
class System(unittest.TestCase):
    """The accounts are of the test's own: /etc/passwd and /etc/shadow of a private mount namespace."""

    def setUp(self):
        self.base = harness.scratch()
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        self.home = os.path.join(self.base, "home")
        os.mkdir(self.home)
        self.write("passwd", f"root:x:0:0:root:/root:/bin/sh\njoe:x:12345:23456:Joe:{self.home}:/bin/bash\n"
                             f"old:{VECTORS['MD5']}:12346:23456::{self.home}:/bin/sh\nlocked:x:12347:23456::{self.home}:/bin/sh\n"
                             f"empty::12348:23456::{self.home}:/bin/sh\nblank:x:12349:23456::{self.home}:/bin/sh\n"
                             "nohome:x:12350:23456::/nonexistent:/bin/sh\n"
                             f"toor:x:0:0::{self.home}:/bin/sh\nmail:x:12351:23456::{self.home}:/usr/sbin/nologin\n"
                             + "".join(f"{name}:x:{12360 + i}:23456::{self.home}:\n" for i, name in enumerate(DATES)))
        self.write("shadow", f"root:*:19000::::::\njoe:{VECTORS['SHA-512']}:19000:0:99999:7:::\n"
                             f"locked:!{VECTORS['SHA-512']}:19000::::::\nblank::19000::::::\n"
                             f"nohome:{VECTORS['MD5']}:19000::::::\n"
                             f"toor:{VECTORS['MD5']}:19000::::::\nmail:{VECTORS['MD5']}:19000::::::\n"
                             + "".join(f"{name}:{VECTORS['MD5']}:{dates}\n" for name, (dates, _) in DATES.items()))

    def write(self, name, text):
        with open(os.path.join(self.base, name), "w") as f:
            f.write(text)

    def check(self, name, password, *program):
        shell = 'mount --bind "$0/passwd" /etc/passwd && mount --bind "$0/shadow" /etc/shadow && exec "$@"'
        argv = ["unshare", "-m", "sh", "-c", shell, self.base, harness.program("checkpassword"), *program]
        return harness.run(argv, fds={3: fields(name, password)})

    def test_an_account_is_let_in_by_its_shadow_password(self):
        result = self.check("joe", "pencil", "sh", "-c", 'echo "$USER $HOME $SHELL"; pwd; id -u; id -g; id -G')
        wanted = f"joe {self.home} /bin/bash\n{self.home}\n12345\n23456\n23456\n"
        self.assertEqual((result.code, result.out.decode(), result.err), (0, wanted, b""))

    def test_for_who_is_unknown_the_work_is_that_of_the_first_hash_there(self):
        # Told by the memory it takes, 128 MiB, and not by time. What our own process has is counted to the child's at its start.
        self.write("shadow", f"root:*:19000::::::\nlocked:!x:19000::::::\njoe:{LARGE}:19000::::::\nold:{VECTORS['MD5']}:19000::::::\n")
        for name, large in [("joe", True), ("nobody-here", True), ("locked", True), ("root", True), ("old", False)]:
            with self.subTest(name):
                with open(os.path.join(self.base, "login"), "wb") as f:
                    f.write(fields(name, "wrong"))
                shell = 'mount --bind "$0/passwd" /etc/passwd && mount --bind "$0/shadow" /etc/shadow && exec "$@" true 3<"$0/login"'
                process = subprocess.Popen(["unshare", "-m", "sh", "-c", shell, self.base, harness.program("checkpassword")])
                status, usage = os.wait4(process.pid, 0)[1:]
                process.returncode = os.waitstatus_to_exitcode(status)
                self.assertEqual((process.returncode, usage.ru_maxrss > 120 * 1024), (1, large))

    def test_an_account_without_shadow_entry_by_the_password_of_passwd(self):
        self.assertEqual(self.check("old", "pencil", "id", "-u").out, b"12346\n")

    def test_the_rest_is_refused(self):
        for name, password in [("joe", "wrong"), ("joe", ""), ("root", ""), ("root", "*"), ("locked", "pencil"), ("empty", ""),
                               ("blank", ""), ("nobody-here", "pencil"), ("", ""), ("old", "x")]:
            with self.subTest((name, password)):
                result = self.check(name, password, "true")
                self.assertEqual((result.code, result.out, result.err), (1, b"", b""))

    def test_dates_of_the_shadow_entry_close_an_account(self):
        for name, (_, reason) in DATES.items():
            with self.subTest(name):
                result = self.check(name, "pencil", "true")
                self.assertEqual((result.code, result.err.decode()), (1, f"checkpassword: fatal: {name}: {reason}\n") if reason else (0, ""))
                wrong = self.check(name, "wrong", "true")
                self.assertEqual((wrong.code, wrong.err), (1, b""))

    def test_root_is_never_let_in(self):
        self.assertEqual(self.check("toor", "pencil", "true").code, 1)

    def test_with_s_only_shells_of_the_list_count(self):
        self.assertEqual(self.check("mail", "pencil", "true").code, 0)
        result = self.check("mail", "pencil", "-s", "true")
        self.assertEqual((result.code, result.err), (1, b"checkpassword: fatal: mail: its shell is none of /etc/shells\n"))
        self.assertEqual(self.check("joe", "pencil", "-s", "true").code, 0)
        self.assertEqual(self.check("joe", "pencil", "-x", "true").code, 2)

    def test_a_missing_home_is_temporary(self):
        self.assertEqual(self.check("nohome", "pencil", "true").code, 111)

    def test_without_a_program_it_is_misused(self):
        self.assertEqual(self.check("joe", "pencil").code, 2)


if __name__ == "__main__":
    unittest.main()
