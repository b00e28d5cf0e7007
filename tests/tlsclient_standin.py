#!/usr/bin/env python3
"""tlsclient's contract in few lines, for tests, where the program is not there."""

import array
import hashlib
import os
import select
import socket
import ssl
import subprocess
import sys


def relay(clear, tls):
    tls.settimeout(30)
    clear.settimeout(30)
    try:
        while True:
            ready = [tls] if tls.pending() else select.select([clear, tls], [], [])[0]
            if tls in ready:
                tls.settimeout(0)  # what came may be a ticket, and no data behind it
                try:
                    data = tls.recv(65536)
                except ssl.SSLWantReadError:
                    data = None
                tls.settimeout(30)
                if data == b"":
                    clear.shutdown(socket.SHUT_WR)
                    return
                clear.sendall(data or b"")
            if clear in ready:
                data = clear.recv(65536)
                if not data:
                    tls.unwrap()
                    return
                tls.sendall(data)
    except OSError:
        pass


def fits(mark, der):
    usage, selector, matching, data = mark.split(" ")
    if selector == "1":
        pem = subprocess.run(["openssl", "x509", "-inform", "DER", "-noout", "-pubkey"], input=der, capture_output=True).stdout
        der = subprocess.run(["openssl", "pkey", "-pubin", "-outform", "DER"], input=pem, capture_output=True).stdout
    found = {"0": der.hex, "1": hashlib.sha256(der).hexdigest, "2": hashlib.sha512(der).hexdigest}[matching]()
    return usage == "3" and found == data.lower()


def serve(demands, answer, clear, plain):
    words = [w.split(b"=", 1) for w in demands.split(b"\0") if w]
    one = {k.decode(): v.decode() for k, v in words}
    tlsa = [v.decode() for k, v in words if k == b"tlsa"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if one["verify"] != "pkix":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
    plain.setblocking(True)
    plain.settimeout(20)
    try:
        tls = context.wrap_socket(plain, server_hostname=one["name"])
    except ssl.SSLCertVerificationError as e:
        answer.send(b"D" + str(e).encode())
        return
    except (OSError, ValueError) as e:
        answer.send(b"Z" + str(e).encode())
        return
    verdict = b"U" if one["verify"] == "none" else b"K"
    if one["verify"] == "dane" and not any(fits(mark, tls.getpeercert(True)) for mark in tlsa):
        answer.send(b"Dno TLSA record fits")
        return
    answer.send(verdict + b"TLS_PROTOCOL=" + tls.version().encode() + b"\0TLS_CIPHER=" + tls.cipher()[0].encode() + b"\0")
    clear.setblocking(True)
    relay(clear, tls)


def main():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        ours.close()
        number = os.dup(theirs.fileno())
        os.set_inheritable(number, True)
        os.environ["TLSCLIENTFD"] = str(number)
        os.execvp(sys.argv[1], sys.argv[1:])
    theirs.close()
    for number in range(3):
        os.close(number)
        os.open("/dev/null", os.O_RDWR)
    while True:
        data, passed, _, _ = socket.recv_fds(ours, 65536, 3)
        if not data:
            os._exit(0)
        if os.fork():
            for number in passed:
                os.close(number)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass
            continue
        ours.close()
        sockets = [socket.socket(fileno=number) for number in passed]
        try:
            serve(data, *sockets)
        finally:
            os._exit(0)


main()
