"""Memory of the whole system when nothing happens: an own home, and as root a system home.

The sum of the proportional set sizes (Pss) of every process: shared pages are counted once in all.
"""

import os
import subprocess

from tests import harness, sandbox
from tests.harness import BIN, ROOT, Daemon, Home, free_port, wait_for


def pss(pid):
    """KiB, or None when the process is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return None


def table(title, pids):
    family = harness.family(*pids)
    sizes = {pid: pss(pid) for pid in family}
    sizes = {pid: size for pid, size in sizes.items() if size is not None}
    print(f"\n{title}: {sum(sizes.values())} KiB in {len(sizes)} processes")
    for pid, size in sorted(sizes.items(), key=lambda entry: -entry[1]):
        print(f"{size:8} KiB  {family[pid]}")


def measure():
    print("Memory of the idle system (sum of Pss of all its processes)")
    with Home() as home:
        home.start()
        port = free_port()
        argv = ["tcpserver", *harness.as_owner(), "-H", "-R", "-l", "test.example", "127.0.0.1", str(port), "qmail-smtpd"]
        with Daemon(argv, env=home.env) as smtpd:
            smtpd_up(port)
            wait_for(lambda: "qmail-smtpd" not in harness.family(smtpd.pid).values(), "the session's end")
            table("own home", [home.daemon.pid, home.queued_pid(), smtpd.pid])
    if not sandbox.here():
        print("\nsystem home: only root in its sandbox can make one")
        return []
    path = "/var/qmail"
    made = subprocess.run([os.path.join(ROOT, "scripts", "mkhome"), "--system", "--me", "test.example", "--bin", BIN],
                          capture_output=True, text=True)
    if made.returncode:
        return [f"no system home: {made.stderr}"]
    env = {"PATH": f"{path}/bin:{os.environ['PATH']}"}
    with Daemon([path + "/bin/qmail-start", "./Maildir/"], env=env, cwd="/") as send:
        send.wait_log("^status: local 0/")
        wait_for(lambda: os.path.exists(path + "/run/queue"), "the socket")
        ids = os.stat(path + "/alias")  # any unprivileged account will do for the listener
        smtp = {**env, "UID": str(ids.st_uid), "GID": str(ids.st_gid)}
        argv = [path + "/bin/tcpserver", "-U", "-H", "-R", "-l", "test.example", "127.0.0.1", "25", path + "/bin/qmail-smtpd"]
        with Daemon(argv, env=smtp, cwd="/") as smtpd:
            smtpd_up(25)
            wait_for(lambda: "qmail-smtpd" not in harness.family(smtpd.pid).values(), "the session's end")
            with open(path + "/run/queue.lock") as f:
                queued = int(f.read())
            table("system home", [send.pid, queued, smtpd.pid])
    return []


def smtpd_up(port):
    """Waits for a greeting."""
    def greeted():
        try:
            with harness.Line.connect(port) as line:
                line.expect("220 ...")
                line.send("QUIT\r\n")
                line.expect("221 ...")
                return True
        except OSError:
            return False
    wait_for(greeted, "the SMTP server")
