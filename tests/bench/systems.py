"""Ours and its peers, each as its documentation advises for speed, none without its syncs.

Spools and mailboxes of all lie on one disk, in DISK/NAME/spool and DISK/NAME/home. A peer lives in a tree of its own
(scripts/bench-peers), whose /etc, /run, /tmp, /var/log and state are copies in memory; ours has a system home with
eight accounts on that disk. Nobody has a syslog to speak to: what is said there costs nobody more than the call.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess

from tests.bench import meter
from tests.harness import BIN, ROOT, wait_for

TREES = os.path.join(ROOT, "tests", "tools", "peers")
DOMAIN = "bench.example"
USERS = [f"u{n}" for n in range(50)]
ACCOUNTS = {**{name: 2000 + n for n, name in enumerate(USERS)}, "fresh": 2999}
PASSWORD = "secret"
SHADOW = "$6$benchbench$agdH7.5jUrp182qOzKzpdDcqPZScP0K/8LvbT8ZmDpv5eOwmU6vCXtxnU7YVDmn.pGUHsC.mIrDmiJbLM0jHf1"  # of that
LOCAL = 100  # deliveries at a time that everybody may have, in the mailboxes and to other hosts
STOP = 60  # seconds a system may take to end


def sh(*argv, **more):
    done = subprocess.run(argv, capture_output=True, text=True, **more)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(argv)}: {done.stderr or done.stdout}")
    return done.stdout


def put(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write(text)
    os.chmod(path, mode)


class System:
    """A mail system that can be started, asked and stopped, and made empty again."""

    name = tree = ""
    queues = ()  # directories below the spool whose files are messages waiting, as messages() counts them
    leftovers = ()  # others that a queue with mail in it has
    sendmail = "/usr/sbin/sendmail"
    pop = False  # serves POP3, and not SMTP

    @property
    def ports(self):
        return (110,) if self.pop else (25,)

    @classmethod
    def there(cls):
        return os.path.exists(os.path.join(TREES, cls.tree + ".done"))

    def __init__(self, disk, device):
        self.disk, self.device = os.path.join(disk, self.name), device
        self.spool, self.homes = os.path.join(self.disk, "spool"), os.path.join(self.disk, "home")
        self.group, self.daemons, self.mounts = meter.Group(self.name), [], []
        self.root = None

    def prepare(self):
        for directory in (self.spool, self.homes):
            os.makedirs(directory)
        self.mailboxes()
        self.lay()
        self.clean()

    # -- the tree

    def mount(self, *argv):
        sh("mount", *argv)
        self.mounts.append(argv[-1])

    def lay(self):
        """The tree, mounted where only this process and its children see it."""
        self.root = f"/mnt/{self.name}"
        os.makedirs(self.root, exist_ok=True)
        self.mount("--bind", os.path.join(TREES, self.tree), self.root)
        for directory in ("etc", "run", "tmp", "var/log", *self.state):
            where, copy = os.path.join(self.root, directory), f"/mnt/{self.name}.{directory.replace('/', '-')}"
            shutil.rmtree(copy, ignore_errors=True)
            sh("cp", "-a", where, copy)
            self.mount("--bind", copy, where)
        os.chmod(self.root + "/tmp", 0o1777)
        self.mount("--rbind", "/dev", self.root + "/dev")
        self.mount("--bind", "/proc", self.root + "/proc")
        self.mount("--bind", self.homes, self.root + "/home")
        if self.spooled:
            os.rmdir(self.spool)
            sh("cp", "-a", self.root + self.spooled, self.spool)
            self.mount("--bind", self.spool, self.root + self.spooled)
        put(self.root + "/etc/resolv.conf", "nameserver 127.0.0.1\n")
        put(self.root + "/etc/hosts", f"127.0.0.1 localhost\n127.0.0.1 {DOMAIN}\n")
        put(self.root + "/etc/mailname", DOMAIN + "\n")
        accounts(self.root + "/etc")
        self.configure()

    state = ()
    spooled = ""

    def configure(self):
        raise NotImplementedError

    def command(self, *argv):
        return ["chroot", self.root, *argv] if self.root else list(argv)

    def inside(self):
        """Options for a driver that starts programs of it."""
        return ["-R", self.root] if self.root else []

    def programs(self):
        """What people start."""
        return [self.sendmail]

    def flush(self):
        """Says: try everything in the queue now."""
        sh(*self.command(*self.try_all), preexec_fn=self.group.join)

    try_all = ()

    # -- its life

    def daemon(self, *argv, env=None, log="/dev/null"):
        out = open(log, "ab") if log != "/dev/null" else subprocess.DEVNULL
        process = subprocess.Popen(self.command(*argv), env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                   preexec_fn=self.group.join, start_new_session=True)
        self.daemons.append(process)
        return process

    def launch(self):
        raise NotImplementedError

    def start(self):
        self.launch()
        for port in self.ports:
            wait_for(lambda: greets(port), f"{self.name} at port {port}", 60)
        return self

    def stop(self):
        for process in reversed(self.daemons):
            if process.poll() is None:
                process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in reversed(self.daemons):
                process.wait(STOP)
        self.group.end()
        for process in self.daemons:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.daemons = []

    def close(self):
        try:
            self.stop()
        finally:
            for path in reversed(self.mounts):
                subprocess.run(["umount", "-l", path], capture_output=True)
            self.mounts = []

    # -- its files

    def new(self, user):
        return os.path.join(self.homes, user, "Maildir", "new")

    def messages(self, user="u0"):
        return len(os.listdir(self.new(user)))

    def mailboxes(self):
        """Empty ones for everybody."""
        for name, uid in ACCOUNTS.items():
            home = os.path.join(self.homes, name)
            shutil.rmtree(home, ignore_errors=True)
            for directory in ("", "Maildir", "Maildir/tmp", "Maildir/new", "Maildir/cur"):
                path = os.path.join(home, directory)
                os.mkdir(path, 0o700)
                os.chown(path, uid, uid)

    def clean(self):
        """Empty mailboxes; no mail in the queue. While it is stopped."""
        self.mailboxes()
        for directory in (*self.queues, *self.leftovers):
            for top, _, names in os.walk(os.path.join(self.spool, directory)):
                for name in names:
                    os.unlink(os.path.join(top, name))
        sh("sync", "-f", self.disk)

    def waiting(self, name):
        """Whether a file of the queue stands for a message."""
        return True

    def queued(self, at_most=None):
        """How many messages are in the queue; looks no further than at_most."""
        count = 0
        for directory in self.queues:
            for _, _, names in os.walk(os.path.join(self.spool, directory)):
                count += sum(map(self.waiting, names))
                if at_most is not None and count > at_most:
                    return count
        return count


def script(path):
    with open(path, "rb") as f:
        return f.read(2) == b"#!"


def greets(port):
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as s:
            hello = s.recv(512)
            s.sendall(b"QUIT\r\n")
            while s.recv(512):
                pass
            return hello[:3] in (b"220", b"+OK")
    except OSError:
        return False


def accounts(etc):
    with open(os.path.join(etc, "passwd")) as f:
        if f"\n{USERS[0]}:" in f.read():
            return
    for file, lines in (("passwd", [f"{n}:x:{u}:{u}::/home/{n}:/bin/sh" for n, u in ACCOUNTS.items()]),
                        ("group", [f"{n}:x:{u}:" for n, u in ACCOUNTS.items()]),
                        ("shadow", [f"{n}:{SHADOW}:19000:0:99999:7:::" for n in ACCOUNTS])):
        with open(os.path.join(etc, file), "a") as f:
            f.write("\n".join(lines) + "\n")


class Ours(System):
    """A system home; users/cdb instead of asking NSS, as qmail-users(5) advises."""

    name = "ours"
    queues = ("queue/mess",)
    leftovers = tuple(f"queue/{d}" for d in ("intd", "todo", "info", "local", "remote", "bounce", "pid"))
    sendmail = "/var/qmail/bin/sendmail"

    @classmethod
    def there(cls):
        return os.path.exists(os.path.join(BIN, "qmail-send"))

    def lay(self):
        os.makedirs("/var/qmail", exist_ok=True)
        self.mount("--bind", self.spool, "/var/qmail")
        self.mount("--bind", self.homes, "/home")
        accounts("/etc")
        put("/etc/resolv.conf", "nameserver 127.0.0.1\n")
        sh(os.path.join(ROOT, "scripts", "mkhome"), "--system", "--me", DOMAIN, "--bin", BIN)
        for name, value in (("concurrencylocal", LOCAL), ("concurrencyremote", LOCAL)):
            put(f"/var/qmail/control/{name}", f"{value}\n")
        with open("/etc/passwd") as passwd, open("/var/qmail/users/assign", "w") as assign:
            subprocess.run(["/var/qmail/bin/qmail-pw2u"], stdin=passwd, stdout=assign, check=True)
        sh("/var/qmail/bin/qmail-newu")

    def command(self, *argv):
        return list(argv)

    def launch(self):
        env = {"PATH": f"/var/qmail/bin:{os.environ['PATH']}"}
        with open("/etc/passwd") as f:
            ids = {line.split(":")[0]: line.split(":")[2:4] for line in f}
        uid, gid = ids["qmaild"]
        if self.pop:  # qmail-popup as qmaild, logins by qmail-authd
            self.daemon("/var/qmail/bin/qmail-authd", env=env)
            self.daemon("/var/qmail/bin/tcpserver", "-U", "-H", "-R", "-l", DOMAIN, "127.0.0.1", "110", "qmail-popup", DOMAIN,
                        "checkpassword", "qmail-pop3d", "Maildir", env={**env, "UID": uid, "GID": gid})
            return
        self.daemon("/var/qmail/bin/qmail-start", "./Maildir/", env=env)
        wait_for(lambda: os.path.exists("/var/qmail/run/queue"), "the socket run/queue")
        self.daemon("/var/qmail/bin/tcpserver", "-U", "-H", "-R", "-l", DOMAIN, "-c", "600", "-b", "600", "-x", "/var/qmail/tcp/smtp.cdb",
                    "127.0.0.1", "25", "qmail-smtpd", env={**env, "UID": uid, "GID": gid})

    def flush(self):
        self.daemons[0].send_signal(signal.SIGALRM)

    def programs(self):
        paths = [os.path.join("/var/qmail/bin", name) for name in sorted(os.listdir("/var/qmail/bin"))]
        return [path for path in paths if not os.path.islink(path) and not script(path)]

    def stop(self):
        super().stop()
        with contextlib.suppress(FileNotFoundError):
            os.unlink("/var/qmail/run/queue")


class Postfix(System):
    """Upstream's defaults without chroot(2); process and recipient limits as TUNING_README says for busy hosts."""

    name = tree = "postfix"
    state = ("var/lib/postfix",)
    spooled = "/var/spool/postfix"
    queues = ("maildrop", "incoming", "active", "deferred")
    leftovers = ("defer", "bounce", "corrupt", "hold", "trace")

    def configure(self):
        put(self.root + "/etc/postfix/main.cf", f"""compatibility_level = 3.6
myhostname = {DOMAIN}
mydomain = {DOMAIN}
mydestination = {DOMAIN}
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
home_mailbox = Maildir/
biff = no
smtpd_tls_security_level = none
smtp_tls_security_level = none
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
default_process_limit = {LOCAL}
smtpd_client_connection_count_limit = 0
local_destination_concurrency_limit = 20
default_destination_concurrency_limit = 20
default_destination_recipient_limit = 100
in_flow_delay = 0
""")
        sh(*self.command("postconf", "-F", "*/*/chroot=n", "smtp/inet/process_limit=600"))

    try_all = ("/usr/sbin/postqueue", "-f")

    def launch(self):
        self.daemon("/usr/sbin/postfix", "start-fg")


class Exim(System):
    """exim4-daemon-light, with split_spool_directory and without message logs, as its specification says for busy hosts."""

    name, tree = "exim", "exim"
    spooled = "/var/spool/exim4"
    queues = ("input",)
    leftovers = ("db", "msglog")
    sendmail = "/usr/sbin/exim4"

    try_all = ("/usr/sbin/exim4", "-qff")

    def waiting(self, name):
        return name.endswith("-H")

    def configure(self):
        put(self.root + "/etc/exim4/exim4.conf", f"""primary_hostname = {DOMAIN}
qualify_domain = {DOMAIN}
domainlist local_domains = {DOMAIN}
local_interfaces = 127.0.0.1
daemon_smtp_ports = 25
disable_ipv6
host_lookup =
rfc1413_query_timeout = 0s
smtp_accept_max = 600
smtp_accept_queue_per_connection = 0
smtp_connect_backlog = 200
remote_max_parallel = {LOCAL}
queue_run_max = 10
split_spool_directory
no_message_logs
tls_advertise_hosts =
chunking_advertise_hosts =
recipients_max = 20000
check_spool_space = 0
check_spool_inodes = 0
trusted_users = u0
keep_environment =
acl_smtp_rcpt = accept
begin acl
accept:
  accept
begin routers
away:
  driver = dnslookup
  domains = ! +local_domains
  transport = away
  self = send
  no_more
here:
  driver = accept
  check_local_user
  transport = here
begin transports
away:
  driver = smtp
here:
  driver = appendfile
  directory = $home/Maildir
  maildir_format
begin retry
* * F,2h,15m; G,16h,1h,1.5; F,4d,6h
begin rewrite
begin authenticators
""")

    def launch(self):
        self.daemon("/usr/sbin/exim4", "-bdf", "-q30m")


class OpenSmtpd(System):
    name, tree = "opensmtpd", "opensmtpd"
    queues = ("queue", "incoming")
    leftovers = ("corrupt", "temporary", "purge", "offline")
    try_all = ("/usr/sbin/smtpctl", "schedule", "all")

    def waiting(self, name):
        return name == "message"

    def configure(self):
        # Its spool is made by itself, with its own owners.
        os.makedirs(self.root + "/var/spool/smtpd", exist_ok=True)
        os.chmod(self.spool, 0o711)
        self.mount("--bind", self.spool, self.root + "/var/spool/smtpd")
        put(self.root + "/etc/smtpd.conf", f"""smtp limit max-rcpt 20000
smtp limit max-mails 20000
listen on 127.0.0.1 port 25 hostname {DOMAIN}
action "here" maildir "%{{user.directory}}/Maildir"
action "away" relay
match from any for domain "{DOMAIN}" action "here"
match from any for any action "away"
""")
        put(self.root + "/etc/mailer.conf", "")

    def launch(self):
        self.daemon("/usr/sbin/smtpd", "-F")


class Dovecot(System):
    name, tree = "dovecot", "dovecot"
    state = ("var/lib/dovecot",)

    def configure(self):
        put(self.root + "/etc/dovecot/dovecot.conf", """protocols = pop3
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
mail_location = maildir:~/Maildir
pop3_no_flag_updates = yes
maildir_very_dirty_syncs = yes
mail_fsync = optimized
auth_mechanisms = plain
passdb {
  driver = shadow
}
userdb {
  driver = passwd
}
service pop3-login {
  inet_listener pop3s {
    port = 0
  }
}
""")

    def launch(self):
        self.daemon("/usr/sbin/dovecot", "-F")


class Bare(System):
    """A static program that does nothing: what a start costs at least."""

    name = "bare"

    @classmethod
    def there(cls):
        return True

    def prepare(self):
        pass

    clean = launch = prepare

    def start(self):
        return self

    def programs(self):
        return [os.environ["QMAIL_BENCH_BARE"]]


class Nobody:
    """The group of who has no processes of interest."""

    def cpu(self):
        return None


MAIL = (Ours, Postfix, Exim, OpenSmtpd)
POP = (Ours, Dovecot)
START = (Bare, Ours, Postfix, Exim, OpenSmtpd)
