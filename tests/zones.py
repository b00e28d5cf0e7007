"""Signed zones: unbound validates what nsd serves of them, as a resolver that mail servers believe does."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile

from tests.dnsserver import Nsd, question
from tests.harness import Daemon, wait_for
from tests.packages import tool


def do(name, *argv, cwd):
    path, env = tool(name)
    done = subprocess.run([path, *argv], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{name}: {done.stdout}{done.stderr}")
    return done.stdout


class Zones:
    """Zones in nsd, and unbound before it, which validates them: {name: (records, "signed" | "plain" | "broken")}."""

    def __init__(self, zones, port=5300):
        self.port = port
        self.base = tempfile.mkdtemp(prefix="qmail-dane-")
        os.chmod(self.base, 0o755)
        self.stack = contextlib.ExitStack()
        self.stack.callback(shutil.rmtree, self.base, ignore_errors=True)
        try:
            self.begin(zones, port)
        except BaseException:
            self.stack.close()
            raise

    def begin(self, zones, port):
        anchors, files = [], {}
        for name, (records, how) in zones.items():
            text = f"$ORIGIN {name}.\n$TTL 60\n@ SOA ns.{name}. root.{name}. 1 60 60 60 60\n@ NS ns\nns A 127.0.0.1\n{records}\n"
            with open(os.path.join(self.base, name), "w") as f:
                f.write(text)
            files[name] = text
            if how != "plain":
                key = do("ldns-keygen", "-k", "-a", "ECDSAP256SHA256", name, cwd=self.base).strip()
                do("ldns-signzone", "-n", name, key, cwd=self.base)
                with open(os.path.join(self.base, name + ".signed")) as f:
                    files[name] = f.read()
                with open(os.path.join(self.base, key + ".ds")) as f:
                    anchors.append(f.read())
            if how == "broken":
                # What was signed is not what is served: an address and the marks of its certificate.
                files[name] = files[name].replace("127.0.0.2", "127.0.0.3").replace("3 1 1 a", "3 1 1 b")
        self.nsd = self.stack.enter_context(Signed(files))
        with open(os.path.join(self.base, "anchors"), "w") as f:
            f.writelines(anchors)
        conf = ["server:", "  interface: 127.0.0.1", f"  port: {port}", '  username: ""', '  chroot: ""', f'  directory: "{self.base}"',
                f'  pidfile: "{self.base}/pid"', "  do-daemonize: no", "  use-syslog: no", "  do-not-query-localhost: no",
                f'  trust-anchor-file: "{self.base}/anchors"', "  module-config: \"validator iterator\"", '  local-zone: "test." nodefault',
                "  num-threads: 1", "  hide-version: yes", "remote-control:", "  control-enable: no"]
        for name in zones:
            conf += ["stub-zone:", f"  name: {name}", f"  stub-addr: 127.0.0.1@{self.nsd.port}"]
        with open(os.path.join(self.base, "unbound.conf"), "w") as f:
            f.write("\n".join(conf) + "\n")
        path, env = tool("unbound")
        daemon = Daemon([path, "-d", "-c", os.path.join(self.base, "unbound.conf")], env=env)
        self.stack.callback(daemon.stop)
        self.daemon = daemon
        self.address = f"127.0.0.1:{port}"
        try:
            wait_for(self.answers, "unbound to answer")
        except AssertionError as e:
            raise AssertionError(f"{e}\n--- unbound ---\n{daemon.log()}") from None

    def answers(self):
        if self.daemon.process.poll() is not None:
            raise AssertionError(f"unbound ended with {self.daemon.process.returncode}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(0.2)
            try:
                s.connect(("127.0.0.1", self.port))
                s.send(question("nothing.invalid", 6))
                return len(s.recv(4096)) >= 12
            except (TimeoutError, ConnectionRefusedError):
                return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()


class Signed(Nsd):
    """nsd with whole zone files."""

    def __init__(self, files):
        super().__init__({name: "" for name in files})
        for number, text in enumerate(files.values()):
            with open(os.path.join(self.base, f"{number}.zone"), "w") as f:
                f.write(text)
