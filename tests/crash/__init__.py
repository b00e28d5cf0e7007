"""Every fault once: what must hold whatever fails, tried one point after the other.

    make crash                                   everything; writes target/crash.json
    python3 -m tests.crash --sample PART ...     the sample that `make test` runs, of these parts

A part is a module here. It has

    TITLE = "one line for the head of its table"
    def cases(sample, seed): yield name, function, arguments

A function gets its arguments, tries its points and returns a list of report.Row. Functions stand at the top of
their module, share nothing and clean up after themselves: several run at once, each in a process of its own. With
`sample`, a part yields few and short ones; `seed` chooses which, and is printed.

parts: PARTS below. The rows and what is wrong in them: report.py. Who runs them: runner.py.
"""

# In the order of doc/reliability.md.
PARTS = (
    "calls",
    "kept",
    "power",
    "kills",
    "damage",
    "disk",
    "clock",
    "hosts",
    "doors",
)
