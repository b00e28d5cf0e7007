"""What was tried and what was wrong: the rows of the tables in doc/reliability.md."""

import dataclasses
import json

# What may be wrong, and what the word means in every part.
WRONG = {
    "lost": "acknowledged and neither delivered, bounced nor queued",
    "code": "success for what was not done, or a permanent failure for a fault that may pass",
    "half": "part of a message, or another's content, delivered or queued as whole",
    "stray": "in a mailbox, or told to a sender, whom it is not for",
    "left": "left behind: what no start and no cleanup puts right",
    "stuck": "the system does not go on by itself when the fault is gone",
}


@dataclasses.dataclass
class Row:
    """One line of a table: what was tried with one program or state and one kind of fault."""

    case: str  # the program and what it did: "qmail-local, Maildir"
    fault: str  # "EIO", "SIGKILL", "ext4 model", "a bit flipped"
    tried: int = 0  # points: each a run with one fault at one place
    extra: int = 0  # second copies delivered: allowed behind a crash, and counted
    wrong: dict = dataclasses.field(default_factory=dict)  # of WRONG: [what happened, where]

    def bad(self, kind, text):
        assert kind in WRONG, kind
        self.wrong.setdefault(kind, []).append(text)

    def is_clean(self):
        return not any(self.wrong.values())


def table(rows):
    """Rows as a Markdown table; rows of one case and fault are added up."""
    summed = {}
    for row in rows:
        into = summed.setdefault((row.case, row.fault), [0, 0, dict.fromkeys(WRONG, 0)])
        into[0] += row.tried
        into[1] += row.extra
        for kind, found in row.wrong.items():
            into[2][kind] += len(found)
    lines = ["| case | fault | tried | " + " | ".join(WRONG) + " | second copies |", "|---|---|" + "--:|" * (len(WRONG) + 2)]
    for (case, fault), (tried, extra, wrong) in summed.items():
        lines.append(f"| {case} | {fault} | {tried:,} | " + " | ".join(str(wrong[kind]) for kind in WRONG) + f" | {extra:,} |")
    return "\n".join(lines)


def encode(rows):
    return [dataclasses.asdict(row) for row in rows]


def decode(rows):
    return [Row(**row) for row in rows]


def save(path, parts, seconds, seed):
    """parts: {name: rows}; the machine-readable summary."""
    whole = {
        "seed": seed,
        "seconds": round(seconds),
        "parts": {name: encode(rows) for name, rows in parts.items()},
        "tried": sum(row.tried for rows in parts.values() for row in rows),
        **{kind: sum(len(row.wrong.get(kind, ())) for rows in parts.values() for row in rows) for kind in WRONG},
    }
    with open(path, "w") as f:
        json.dump(whole, f, indent=1)
        f.write("\n")
