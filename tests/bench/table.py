"""Rows of measurements as tables, and the limits of the project against them."""

import statistics

from tests.bench import systems

UNSYNCED = ("opensmtpd",)  # 6.8 calls no fsync for a message in its queue (strace); only the mailbox is synced
PEERS = ("postfix", "exim", "opensmtpd", "dovecot")


class Found:
    """Medians of the rounds of one run."""

    def __init__(self, rows):
        self.rows = [row for row in rows if "trouble" not in row]
        self.troubles = [row for row in rows if "trouble" in row]

    def workloads(self):
        return list(dict.fromkeys(row["workload"] for row in self.rows))

    def cases(self, workload):
        return list(dict.fromkeys(row["case"] for row in self.rows if row["workload"] == workload))

    def systems(self, workload, case):
        return list(dict.fromkeys(row["system"] for row in sorted(self.rows, key=lambda row: row["system"] != "ours")
                                  if row["workload"] == workload and row["case"] == case))

    def of(self, workload, case, system, field):
        """The median, field being a name or a function of a row; None where nobody measured it."""
        ask = field if callable(field) else (lambda row: row.get(field))
        values = [ask(row) for row in self.rows if (row["workload"], row["case"], row["system"]) == (workload, case, system)]
        values = [value for value in values if value is not None]
        if not values or not all(isinstance(value, (int, float)) for value in values):
            return values[0] if values else None
        return statistics.median(values)

    def best(self, workload, case, field, choose, among=None):
        """(the best peer's value, its name)."""
        values = [(self.of(workload, case, peer, field), peer) for peer in among or PEERS]
        values = [value for value in values if value[0] is not None]
        return choose(values) if values else (None, None)


def rate(row):
    return row["messages"] / row["seconds"] if row.get("seconds") else None


def each(name, factor=1):
    return lambda row: None if row.get(name) is None or not row.get("messages") else row[name] * factor / row["messages"]


COST = (("a second", rate, 0), ("CPU ms", each("cpu", 1000), 2), ("flushes", each("flushes"), 2), ("forks", each("forks"), 2))
LATENCY = (("median ms", "median", 1), ("95 % ms", "p95", 1))
COLUMNS = {
    "raw": COST[:1] + COST[2:3],
    "sendmail": COST + LATENCY + (("refused", "refused", 0),),
    "smtp": COST + LATENCY,
    "relay": COST + LATENCY + (("connections", "connections", 0),),
    "recipients": (("seconds", "seconds", 3), ("CPU s", "cpu", 2), ("KB sent", lambda row: row["bytes"] / 1000, 0),
                   ("connections", "connections", 0), ("at once", "peak", 0), ("transactions", "transactions", 0)),
    "fresh": LATENCY + (("accepted ms", "accepted_ms", 1),),
    "backlog": (("seconds", "seconds", 1),) + COST + (("connections", "connections", 0),),
    "pop": COST[:2] + (("list s", "listing", 3), ("read s", "read", 3), ("all s", "seconds", 3)),
    "start": (("ms", lambda row: row["seconds"] * 1000, 3), ("95 % ms", "p95", 3)),
    "memory": (("KiB", "pss", 0), ("processes", "processes", 0), ("each KiB", "each_pss", 1), ("machine KiB", "each_machine", 1),
               ("served", "served", 0)),
}
TITLES = {
    "raw": "What the disk allows: create, write, fsync, rename, sync of the directory, by so many writers",
    "sendmail": "Injection by sendmail, so many at a time (latency: of one sendmail)",
    "smtp": "SMTP to Maildir, a connection a message, to 50 mailboxes; counted when in the mailbox (latency: until accepted)",
    "relay": "SMTP in, SMTP out to one host; counted when the host has it (latency: until accepted)",
    "recipients": "One message to very many recipients",
    "fresh": "Fresh local mail, one after the other: until it is in the mailbox",
    "backlog": "A backlog drained when its host accepts again",
    "pop": "POP3, retrieved and deleted one by one",
    "start": "Start of a program that finds no home or refuses its arguments, from posix_spawn to its end",
    "memory": "Memory: sum of Pss of all processes; what the machine has less of for each idle SMTP connection",
}


def cell(value, digits, width):
    if value is None:
        return " " * (width - 1) + "-"
    return f"{value:{width}.{digits}f}" if isinstance(value, (int, float)) else f"{value:>{width}}"


def show(found):
    """All tables, as text."""
    out = []
    for workload in found.workloads():
        out.append(TITLES[workload])
        columns = COLUMNS[workload]
        cases = found.cases(workload)
        wide = max([len(case) for case in cases] + [4])
        out.append(" " * (wide + 12) + "".join(f"{name:>13}" for name, _, _ in columns))
        for case in cases:
            for n, system in enumerate(found.systems(workload, case)):
                values = [cell(found.of(workload, case, system, field), digits, 13) for _, field, digits in columns]
                out.append(f"{case if n == 0 else '':{wide}}  {system:10}" + "".join(values))
        out.append("")
    for row in found.troubles:
        out.append(f"NOT MEASURED: {row['workload']}, {row['system']}: {row['trouble']}")
    return "\n".join(out)


def limits(found, scale):
    """[(what, reached or not or None, in words)]: the promises, where both sides were measured. Ratios within the run."""
    lines = []

    def compare(what, workload, case, field, factor, choose, more):
        """more: ours must be at least factor × the peer's; else at most."""
        ours, (best, peer) = found.of(workload, case, "ours", field), found.best(workload, case, field, choose)
        if ours is None or not best:
            return
        ratio = ours / best
        reached = ratio >= factor if more else ratio <= factor
        words = f"{ratio:.2f} × {peer} ({'at least' if more else 'at most'} {factor})"
        if refused := found.of(workload, case, "ours", "refused"):
            reached, words = False, f"{words}; {refused:.0f} refused"
        if peer in UNSYNCED:
            honest, name = found.best(workload, case, field, choose, [p for p in PEERS if p not in UNSYNCED])
            words += ", which does not sync its queue" + (f"; {ours / honest:.2f} × {name}" if honest else "")
        lines.append((what, reached, words))

    def bound(what, value, most, unit):
        if value is not None:
            lines.append((what, value <= most, f"{value:.3g} {unit} (at most {most:.3g})"))

    cpu, flushes = each("cpu", 1000), each("flushes")
    busy = [n for n in scale["writers"] if n > 1]
    for size in scale["sizes"]:
        for n in busy:
            case = f"{size} bytes, {n}"
            compare(f"SMTP to Maildir, {case}: rate", "smtp", case, rate, 1.3, max, True)
            compare(f"SMTP to Maildir, {case}: CPU", "smtp", case, cpu, 0.5, min, False)
    for n in busy:
        compare(f"injection, {n} at a time: rate", "sendmail", f"{n} at a time", rate, 1.5, max, True)
    for n in busy:
        compare(f"relay, {n}: rate", "relay", f"{n}", rate, 1.2, max, True)
        compare(f"relay, {n}: CPU", "relay", f"{n}", cpu, 0.6, min, False)
    many = f"{scale['recipients']} recipients"
    compare(f"{many}, one host: bytes", "recipients", "one host", "bytes", 1.05, min, False)
    compare(f"{many}, one host: time", "recipients", "one host", "seconds", 1.0, min, False)
    compare(f"{many}, one host, 20 ms away: time", "recipients", "one host, 20 ms away", "seconds", 0.7, min, False)
    compare(f"{many}, 100 hosts: time", "recipients", "100 hosts", "seconds", 0.7, min, False)
    for field, words in (("median", "median"), ("p95", "95th percentile")):
        compare(f"fresh mail in a burst: {words}", "fresh", "in a burst", field, 1.0, min, False)
        beside = f"beside {scale['deferred']} deferred"
        empty, full = (found.of("fresh", case, "ours", field) for case in ("empty queue", beside))
        if empty and full:
            bound(f"fresh mail {beside}: {words}", full / empty, 1.2, "× of an empty queue's")
    compare(f"POP3, {scale['pop']} messages: rate", "pop", f"{scale['pop']} messages", rate, 1.0, max, True)
    for n, most in ((1, 4.5), (50, 0.5)):
        case = f"{scale['sizes'][0]} bytes, {n}"
        ours, raw = found.of("smtp", case, "ours", flushes), found.of("raw", f"{scale['sizes'][0]} bytes, 1", "raw", flushes)
        if ours is not None and raw:
            bound(f"flushes a message, local delivery, {n}", ours / raw, most, "× of a raw fsynced create's")
    bare = found.of("start", "bare", "bare", "seconds")
    times = [(found.of("start", case, "ours", "seconds"), case) for case in found.cases("start")]
    times = [time for time in times if time[0] is not None]
    if bare and times:
        worst, name = max(times)
        bound(f"program start, the slowest ({name})", worst / bare, 2.0, "× of a bare static program's")
    idle, many = found.of("memory", "idle", "ours", "pss"), f"{scale['connections']} connections"
    bound("memory of the idle system", idle, 3072, "KiB")
    bound(f"memory for each of {many}", found.of("memory", many, "ours", "each_machine"), 100, "KiB")
    served = found.of("memory", many, "ours", "served")
    if served is not None:
        lines.append((f"{many}: all served", served == scale["connections"], f"{served:.0f}"))
    return lines


def show_limits(lines):
    wide = max([len(line[0]) for line in lines] + [1])
    return "\n".join(f"{what:{wide}}  {'reached    ' if reached else 'NOT REACHED'}  {words}" for what, reached, words in lines)


def versions():
    """What the trees hold."""
    found = []
    for peer, package in (("postfix", "postfix"), ("exim", "exim4-daemon-light"), ("opensmtpd", "opensmtpd"), ("dovecot", "dovecot-pop3d")):
        try:
            with open(f"{systems.TREES}/{peer}/var/lib/dpkg/status") as f:
                block = f.read().split(f"Package: {package}\n", 1)[1].split("\n\n", 1)[0]
            found.append(f"{package} " + next(line.split()[1] for line in block.split("\n") if line.startswith("Version:")))
        except (OSError, IndexError, StopIteration):
            found.append(f"no {package}")
    return ", ".join(found)
