"""Programs of Debian's packages: installed, or unpacked aside (scripts/test-packages).

    path, env = tool("nsd")
"""

import functools
import os
import re
import shutil
import unittest

from tests.harness import ROOT

TOOLS = os.path.join(ROOT, "tests", "tools", "root")


@functools.cache
def libraries():
    """Directories of unpacked libraries, as LD_LIBRARY_PATH has them."""
    return ":".join(top for library in ("usr/lib", "lib") for top, _, files in os.walk(os.path.join(TOOLS, library))
                    if any(".so" in name for name in files))


def unpacked(*names):
    """The path of a file in the unpacked packages; raises SkipTest."""
    path = os.path.join(TOOLS, *names)
    if not os.path.exists(path):
        raise unittest.SkipTest(f"{os.path.basename(path)} is not unpacked in tests/tools (scripts/test-packages)")
    return path


def tool(*names):
    """(path, environment) of a program, by the first of its names that is there; raises SkipTest."""
    for name in names:
        if path := shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
            return path, dict(os.environ)
        for place in ("usr/sbin", "usr/bin"):
            path = os.path.join(TOOLS, place, name)
            if os.path.exists(path):
                return path, {**os.environ, "LD_LIBRARY_PATH": libraries()}
    raise unittest.SkipTest(f"{names[0]} is neither installed nor unpacked in tests/tools (scripts/test-packages)")


def fail2ban(name):
    """What a filter that fail2ban ships looks for, in a line whose date was taken off; at most one word may be before it."""
    with open(unpacked("etc/fail2ban/filter.d", name + ".conf")) as f:
        expression = re.search(r"^failregex = (.*)$", f.read(), re.M)[1]
    for tag, meaning in (("%(__prefix_line)s", r"(?:\S+\s+)?"), ("<F-USER>", "(?P<user>"), ("</F-USER>", ")"), ("<HOST>", r"(?P<host>[\d.]+|[\da-f:]+)")):
        expression = expression.replace(tag, meaning)
    return re.compile(expression)
