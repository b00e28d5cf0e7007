"""Mail servers of others, unpacked (scripts/test-packages) and not installed: configuration, queue and mailbox of each in a
directory of its own. For a sandbox (tests/sandbox), as they want accounts, port 25 and, one of them, a file in /etc.

Both speak TLS at 25 and 587, and to everybody as DANE says; `proved` hosts must show their name. Who has logged in as joe,
password secret, may send at 587. What is for `domains` goes into one Maildir. `routes`: {domain: Route}, relays that want a login.
"""

import contextlib
import os
import re
import shutil
import smtplib
import socket
import subprocess
from dataclasses import dataclass

from tests import harness
from tests.harness import Daemon, wait_for
from tests.packages import TOOLS, libraries, tool, unpacked


@dataclass
class Route:
    """A relay that wants joe's login by one mechanism; port 465 is TLS from the first byte."""
    host: str
    port: int
    mechanism: str


@dataclass
class Outcome:
    """What a server's log says of a message: whether it is away, how the host was proved, and its words."""
    sent: bool
    proof: str  # verified, unverified, or empty without TLS
    text: str


def account(name):
    """It may be there already: the system has that server, too."""
    done = subprocess.run(["useradd", "-r", "-M", "-U", "-s", "/usr/sbin/nologin", name], capture_output=True, text=True)
    if done.returncode not in (0, 9):
        raise AssertionError(f"useradd: {done.stderr}")


class Server:
    LOGS = ()

    def __init__(self, name, address, pair, authority, domains, proved=(), routes=None, client=None):
        """pair: (certificate, key), files; client: the pair that is shown to servers that ask for one."""
        self.name, self.address, self.pair, self.authority, self.client = name, address, pair, authority, client
        self.domains, self.proved, self.routes = list(domains), list(proved), routes or {}
        self.base = harness.scratch()
        self.daemon, self.sent = None, 0
        try:
            os.makedirs(self.file("inbox"))
            self.configure()
            self.launch()
            for port in (25, 587):
                wait_for(lambda: self.greets(port), f"{type(self).__name__} at port {port}")
        except BaseException as e:
            log = self.log()
            self.__exit__()
            raise AssertionError(f"{e}\n--- log ---\n{log}") from None

    def file(self, *names):
        return os.path.join(self.base, *names)

    def put(self, name, text, mode=0o644):
        os.makedirs(os.path.dirname(self.file(name)), exist_ok=True)
        with open(self.file(name), "w") as f:
            f.write(text)
        os.chmod(self.file(name), mode)
        return self.file(name)

    def log(self):
        text = ""
        for name in self.LOGS:
            with contextlib.suppress(FileNotFoundError), open(self.file(name), encoding="latin-1") as f:
                text += f.read()
        return text

    def greets(self, port):
        if self.daemon.process.poll() is not None:
            raise AssertionError(f"it ended with {self.daemon.process.returncode}: {self.daemon.log()}")
        try:
            with socket.create_connection((self.address, port), harness.TIMEOUT) as s:
                return s.recv(3) == b"220"
        except OSError:
            return False

    def messages(self):
        """What is in its Maildir."""
        new = self.file("inbox", "new")
        found = []
        for name in sorted(os.listdir(new) if os.path.isdir(new) else []):
            with open(os.path.join(new, name), "rb") as f:
                found.append(f.read())
        return found

    def deliver(self, recipient, sender):
        """Gives it a message; the Outcome of its first attempt."""
        before = len(self.log())
        with smtplib.SMTP(self.address, 25, timeout=harness.TIMEOUT) as client:
            client.sendmail(sender, [recipient], "Subject: x\n\nhi\n")
        try:
            return wait_for(lambda: self.outcome(self.log()[before:], recipient), f"what becomes of {recipient}")
        except AssertionError as e:
            raise AssertionError(f"{e}\n--- log ---\n{self.log()[-4000:]}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            if self.daemon:
                self.daemon.stop()
        finally:
            shutil.rmtree(self.base, ignore_errors=True)


class Postfix(Server):
    LOGS = ("log",)
    ACCOUNT = "postfix"
    QUEUE = ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace")
    SERVICES = """
587       inet  n - n - -     smtpd -o smtpd_sasl_auth_enable=yes -o smtpd_recipient_restrictions=permit_sasl_authenticated,reject
cleanup   unix  n - n - 0     cleanup
qmgr      unix  n - n 300 1   qmgr
tlsmgr    unix  - - n 1000? 1 tlsmgr
rewrite   unix  - - n - -     trivial-rewrite
bounce    unix  - - n - 0     bounce
defer     unix  - - n - 0     bounce
trace     unix  - - n - 0     bounce
error     unix  - - n - -     error
retry     unix  - - n - -     error
virtual   unix  - n n - -     virtual
proxymap  unix  - - n - -     proxymap
anvil     unix  - - n - 1     anvil
scache    unix  - - n - 1     scache
postlog   unix-dgram n - n - 1 postlogd
"""

    def configure(self):
        self.master = unpacked("usr/lib/postfix/sbin/master")
        for name in (self.ACCOUNT, "postdrop"):
            account(name)
        for name in (*self.QUEUE, "pid", "public", "maildrop"):
            os.makedirs(self.file("queue", name), 0o700)
            if name != "pid":
                shutil.chown(self.file("queue", name), self.ACCOUNT, "postdrop" if name in ("public", "maildrop") else None)
        os.mkdir(self.file("data"), 0o700)
        shutil.chown(self.file("data"), self.ACCOUNT)
        uid, gid = harness.owner()[1:]
        os.chown(self.file("inbox"), uid, gid)
        hops = {domain: f"[{route.host}]:{route.port}" for domain, route in self.routes.items()}
        wrapped = "-o smtp_tls_wrappermode=yes" if any(r.port == 465 for r in self.routes.values()) else ""
        self.put("etc/master.cf", f"{self.address}:25 inet n - n - - smtpd\n{self.address}:{self.SERVICES.lstrip()}"
                                  "smtp unix - - n - - smtp\n" +
                 "".join(f"to-{domain} unix - - n - - smtp -o smtp_sasl_mechanism_filter={route.mechanism.lower()} "
                         f"{wrapped if route.port == 465 else ''}\n" for domain, route in self.routes.items()))
        self.put("tables/levels", "".join(f"{hop} verify\n" for hop in sorted({*self.proved, *hops.values()})))
        self.put("tables/transports", "".join(f"{domain} to-{domain}:{hop}\n" for domain, hop in hops.items()))
        self.put("tables/logins", "".join(f"{hop} joe:secret\n" for hop in sorted(set(hops.values()))))
        shown = f"smtp_tls_cert_file = {self.client[0]}\nsmtp_tls_key_file = {self.client[1]}\n" if self.client else ""
        self.put("etc/main.cf", f"""compatibility_level = 3.6
myhostname = {self.name}
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
queue_directory = {self.file("queue")}
data_directory = {self.file("data")}
command_directory = {TOOLS}/usr/sbin
daemon_directory = {TOOLS}/usr/lib/postfix/sbin
shlib_directory = {TOOLS}/usr/lib/postfix
mail_owner = {self.ACCOUNT}
setgid_group = postdrop
maillog_file = {self.file("log")}
maillog_file_prefixes = {self.base}
import_environment = MAIL_CONFIG LANG=C LD_LIBRARY_PATH={libraries()}
alias_maps =
virtual_mailbox_domains = {" ".join(self.domains)}
virtual_mailbox_maps = static:inbox/
virtual_mailbox_base = {self.base}
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_tls_security_level = may
smtpd_tls_cert_file = {self.pair[0]}
smtpd_tls_key_file = {self.pair[1]}
smtpd_tls_CAfile = {self.authority}
smtpd_tls_ask_ccert = yes
smtpd_tls_received_header = yes
smtpd_tls_auth_only = yes
smtp_tls_security_level = dane
smtp_dns_support_level = dnssec
dnssec_probe =
smtp_tls_policy_maps = texthash:{self.file("tables/levels")}
smtp_tls_CAfile = {self.authority}
smtp_tls_loglevel = 1
{shown}smtp_sasl_auth_enable = yes
smtp_sasl_password_maps = texthash:{self.file("tables/logins")}
smtp_sasl_security_options = noanonymous
transport_maps = texthash:{self.file("tables/transports")}
""")
        self.put("etc/sasl/smtpd.conf", f"pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {self.file('data/logins')}\n"
                                    "mech_list: PLAIN LOGIN CRAM-MD5 SCRAM-SHA-256\n")
        path, env = tool("saslpasswd2")
        done = subprocess.run([path, "-c", "-p", "-u", self.name, "-f", self.file("data/logins"), "joe"], input=b"secret", env=env,
                              capture_output=True)
        if done.returncode:
            raise AssertionError(f"saslpasswd2: {done.stderr.decode()}")
        shutil.chown(self.file("data/logins"), self.ACCOUNT)

    def launch(self):
        env = {"PATH": os.environ["PATH"], "MAIL_CONFIG": self.file("etc"), "LD_LIBRARY_PATH": libraries()}
        self.daemon = Daemon([self.master, "-c", self.file("etc"), "-s"], env=env, cwd="/",
                             own_group=True)

    def outcome(self, log, recipient):
        said = re.search(rf": to=<{re.escape(recipient)}>, relay=(\S+?)(?:\[\S+)?, .*status=(sent|deferred|bounced) \((.*)\)$", log, re.M)
        if not said:
            return None
        host = re.escape(said[1])
        proof = re.search(rf"^.* (Verified|Trusted|Untrusted|Anonymous) TLS connection established to {host}\[", log, re.M)
        return Outcome(said[2] == "sent", ("verified" if proof[1] == "Verified" else "unverified") if proof else "", said[3])

    def finger(self, *argv):
        """What posttls-finger says of a host."""
        path, env = tool("posttls-finger")
        done = subprocess.run([path, *argv], env={**env, "MAIL_CONFIG": self.file("etc")}, capture_output=True, text=True,
                              timeout=harness.TIMEOUT)
        return done.stdout + done.stderr


class Exim(Server):
    LOGS = ("mainlog", "paniclog")
    ACCOUNT = "Debian-exim"  # as which Debian has built it
    FILE = "/etc/exim4/exim4.conf"

    def configure(self):
        path, self.env = tool("exim4")
        self.path = shutil.copy(path, self.file("exim4"))  # without set-uid, and where its account gets
        account(self.ACCOUNT)
        os.makedirs(self.file("spool"))
        for path in (self.base, self.file("spool"), self.file("inbox")):
            shutil.chown(path, self.ACCOUNT, self.ACCOUNT)
        proving = f"""  tls_verify_certificates = {self.authority}
  tls_verify_hosts = *
  tls_verify_cert_hostnames = *
  hosts_require_tls = *
"""
        shown = f"  tls_certificate = {self.client[0]}\n  tls_privatekey = {self.client[1]}\n" if self.client else ""
        routers, transports, clients, named = "", "", "", {}
        for number, (domain, route) in enumerate(self.routes.items()):
            named.setdefault(route.mechanism, []).append(f"login{number}")
            routers += f"login{number}:\n  driver = manualroute\n  domains = {domain}\n  transport = login{number}\n" \
                       f"  route_list = * {route.host}::{route.port}\n  no_more\n"
            transports += f"login{number}:\n  driver = smtp\n  hosts_require_auth = *\n  hosts_try_dane =\n{proving}{shown}" + (
                "  protocol = smtps\n" if route.port == 465 else "")
        for mechanism, driver, secret in (("CRAM-MD5", "cram_md5", "client_name = joe\n  client_secret = secret"),
                                          ("PLAIN", "plaintext", "client_send = ^joe^secret"),
                                          ("LOGIN", "plaintext", "client_send = : joe : secret"),
                                          ("EXTERNAL", "external", "client_send = $sender_address")):
            clients += f"as_{mechanism[0].lower()}:\n  driver = {driver}\n  public_name = {mechanism}\n  {secret}\n" \
                       f"  client_condition = ${{if inlist{{$transport_name}}{{{':'.join(named.get(mechanism, []))}}}}}\n"
        offered = '  server_advertise_condition = ${if def:tls_in_cipher}\n  server_set_id = joe\n'
        os.makedirs(os.path.dirname(self.FILE), exist_ok=True)
        with open(self.FILE, "w") as f:
            f.write(f"""primary_hostname = {self.name}
spool_directory = {self.file("spool")}
log_file_path = {self.file("%slog")}
pid_file_path = {self.file("pid")}
exim_path = {self.path}
local_interfaces = {self.address}
daemon_smtp_ports = 25 : 587
disable_ipv6
host_lookup =
rfc1413_query_timeout = 0s
keep_environment = LD_LIBRARY_PATH
deliver_drop_privilege
check_spool_space = 0
check_spool_inodes = 0
log_selector = +tls_certificate_verified +tls_peerdn
domainlist mine = {" : ".join(self.domains)}
domainlist proved = {" : ".join(self.proved)}
tls_advertise_hosts = *
tls_certificate = {self.pair[0]}
tls_privatekey = {self.pair[1]}
tls_try_verify_hosts = *
tls_verify_certificates = {self.authority}
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  deny
    condition = ${{if eq{{$received_port}}{{587}}}}
    ! authenticated = *
  accept
    add_header = :at_start: X-Client: $tls_in_certificate_verified $tls_in_peerdn
begin routers
inbox:
  driver = accept
  domains = +mine
  transport = inbox
{routers}proved:
  driver = dnslookup
  domains = +proved
  transport = proved
  no_more
away:
  driver = dnslookup
  dnssec_request_domains = *
  transport = away
begin transports
inbox:
  driver = appendfile
  directory = {self.file("inbox")}
  maildir_format
  user = {self.ACCOUNT}
away:
  driver = smtp
  dnssec_request_domains = *
  hosts_try_dane = *
{shown}proved:
  driver = smtp
  hosts_try_dane =
{proving}{transports}begin retry
* * F,2h,15m
begin authenticators
{clients}plain:
  driver = plaintext
  public_name = PLAIN
  server_condition = ${{if and{{{{eq{{$auth2}}{{joe}}}}{{eq{{$auth3}}{{secret}}}}}}}}
{offered}login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username: : Password:
  server_condition = ${{if and{{{{eq{{$auth1}}{{joe}}}}{{eq{{$auth2}}{{secret}}}}}}}}
{offered}cram:
  driver = cram_md5
  public_name = CRAM-MD5
  server_secret = ${{if eq{{$auth1}}{{joe}}{{secret}}fail}}
{offered}""")

    def launch(self):
        self.daemon = Daemon([self.path, "-bdf"], env={**self.env, "LD_LIBRARY_PATH": libraries()}, cwd="/", own_group=True)

    def outcome(self, log, recipient):
        said = re.search(rf"^\S+ \S+ (\S+) (=>|==|\*\*) {re.escape(recipient)} (.*)$", log, re.M)
        if not said:
            return None
        # What a failed attempt met is on a line of its own, before.
        text = "\n".join(re.findall(rf"^.* {re.escape(said[1])} .*$", log, re.M))
        proof = re.search(r" CV=(\w+)", said[3])
        secure = " X=TLS" in said[3]
        verified = proof and proof[1] in ("yes", "dane")
        return Outcome(said[2] == "=>", ("verified" if verified else "unverified") if secure else "", text)
