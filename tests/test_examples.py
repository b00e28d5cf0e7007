"""The EXAMPLES of every manual page run as printed.

In `.Bd -literal` displays of an EXAMPLES section, lines starting `$ ` are typed into one shell per page,
`> ` continues them, and what stands below is the output (`...` stands for anything). Other kinds of
displays need root, a network or running daemons and are not run.
"""

import os
import re
import shutil
import subprocess
import unittest

from tests import harness

PAGES = os.path.join(harness.ROOT, "doc", "man")


def roff(line):
    """The text a reader sees of one source line of a literal display."""
    if line.startswith("\\&"):
        line = line[2:]
    return line.replace("\\e", "\\").replace("\\(aq", "'").replace("\\(dq", '"').replace("\\-", "-").replace("\\&", "")


def examples(page):
    """[(command, expected output)] of a page, in order."""
    with open(os.path.join(PAGES, page)) as f:
        text = f.read()
    found = []
    section = re.search(r"^\.Sh EXAMPLES\n(.*?)(?=^\.Sh |\Z)", text, re.M | re.S)
    for display in re.findall(r"^\.Bd -literal[^\n]*\n(.*?)^\.Ed", section[1] if section else "", re.M | re.S):
        for line in display.rstrip("\n").split("\n"):
            line = roff(line)
            if line.startswith("$ "):
                found.append([line[2:] + "\n", ""])
            elif line.startswith("> ") or line == ">":
                found[-1][0] += line[2:] + "\n"
            elif found:
                found[-1][1] += line + "\n"
    return found


def play(page):
    """Runs a page's examples; the list of (command, expected, got) that differ."""
    with harness.Home() as home:
        scratch = harness.scratch()
        try:
            env = {**home.env, "HOST": home.me, "USER": "joe", "HOME": scratch, "TMPDIR": scratch}
            script = ""
            steps = examples(page)
            for n, (command, _) in enumerate(steps):
                script += f"{command}printf '\\036%s\\036' {n}\n"
            as_owner = ["setpriv", "--reuid", str(harness.owner()[1]), "--regid", str(harness.owner()[2]),
                        "--clear-groups"] if os.geteuid() == 0 else []
            done = subprocess.run(as_owner + ["sh"], input=script.encode(), cwd=scratch, env=env, timeout=60,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            pieces = re.split("\036\\d+\036", done.stdout.decode("latin-1"))
            wrong = []
            for n, (command, expected) in enumerate(steps):
                got = pieces[n] if n < len(pieces) else "(not reached)"
                regex = ".*?".join(re.escape(part) for part in expected.rstrip("\n").split("..."))
                if not re.fullmatch(regex, got.rstrip("\n"), re.S):
                    wrong.append((command, expected, got))
            return wrong
        finally:
            shutil.rmtree(scratch)


class Examples(unittest.TestCase):
    def test_the_reader_of_examples_reads(self):
        self.assertGreaterEqual(len(examples("qmail-queue.8")), 3)


def add(page):
    def test(self):
        self.assertTrue(examples(page), "no runnable example")
        for command, expected, got in play(page):
            self.fail(f"$ {command}expected:\n{expected}got:\n{got}")
    name = "test_the_examples_of_" + re.sub(r"\W", "_", page) + "_run_as_printed"
    setattr(Examples, name, test)


# Format pages describe files; some have nothing to type.
WITHOUT = {"qmail-start.8", "envelopes.5", "qmail-log.5", "qsmbf.5", "addresses.5", "qmail-users.5"}

for _page in sorted(os.listdir(PAGES)):
    if _page not in WITHOUT or examples(_page):
        add(_page)

if __name__ == "__main__":
    unittest.main()
