#!/usr/bin/env python3
"""Which lines and functions of each parser the inputs reached: the table of scripts/fuzz.

usage: coverage.py README EXPORT DEMANGLER

README has the table of parsers, whose column "read by" names files of bins/; EXPORT is what `llvm-cov export` says;
DEMANGLER is llvm-cxxfilt. Code of unit tests is not in it. A function of generic code counts once.
"""

import json
import re
import subprocess
import sys

HEAD = f"{'file':36}  {'lines':>13}  {'functions':>9}  not reached"


def parsers(readme):
    """The files in the table, in its order."""
    rows = re.findall(r"^\|[^|]*\|([^|]*)\|[^|]*\|[^|]*\|$", readme, re.M)
    return list(dict.fromkeys(name for row in rows for name in re.findall(r"`([a-z0-9_/-]+\.rs)`", row)))


def without_generics(name):
    """The name without what stands between angle brackets; of `<Type as Trait>::method` the type stays."""
    kept, depth, behind = "", 0, ""
    for letter in name:
        arrow = behind == "-" and letter == ">"  # of a function's type
        if letter == "<":
            depth += 1
        elif letter == ">" and not arrow:
            depth -= 1
        elif depth == 0:
            kept += letter
        behind = letter
    return kept.replace("::::", "::").rstrip(":")


def short(name):
    """`Type::method` or `function` of a demangled name; None for a closure, which is part of its function."""
    name = re.sub(r"\[[0-9a-f]+\]", "", name)
    if name.startswith("<"):
        depth, end = 0, 0
        for end, letter in enumerate(name):
            depth += {"<": 1, ">": -1}.get(letter, 0) if name[end - 1:end + 1] != "->" else 0
            if depth == 0:
                break
        name = without_generics(name[1:end].split(" as ")[0]) + without_generics(name[end + 1:])
    parts = without_generics(name).split("::")
    if any(part.startswith("{closure") for part in parts):
        return None
    return "::".join(parts[-2:] if len(parts) > 1 and parts[-2][:1].isupper() else parts[-1:])


def functions(export, demangled):
    """{file: {(line, name): reached}}"""
    found = {}
    for function, name in zip(export["functions"], demangled):
        name = short(name)
        if name:
            of_file = found.setdefault(function["filenames"][0], {})
            place = (function["regions"][0][0], name)
            of_file[place] = of_file.get(place, False) or function["count"] > 0
    return found


def table(readme, export, demangled):
    """Lines of text, and the files that nothing was measured of."""
    lines, missing = [HEAD], []
    reached = functions(export, demangled)
    summaries = {entry["filename"]: entry["summary"] for entry in export["files"]}
    total = [0, 0, 0, 0]
    for parser in parsers(readme):
        path = next((name for name in summaries if name.endswith("/bins/" + parser)), None)
        if path is None:
            missing.append(parser)
            continue
        covered, count = summaries[path]["lines"]["covered"], summaries[path]["lines"]["count"]
        own = reached.get(path, {})
        names = [name for (_, name), was in sorted(own.items()) if not was]
        done = len(own) - len(names)
        total = [a + b for a, b in zip(total, (covered, count, done, len(own)))]
        lines.append(f"{parser:36}  {covered:4}/{count:4} {100 * covered // max(count, 1):2}%  {done:4}/{len(own):4}"
                     f"  {' '.join(names)}".rstrip())
    covered, count, done, all_of_them = total
    lines.append(f"{'all':36}  {covered:4}/{count:4} {100 * covered // max(count, 1):2}%  {done:4}/{all_of_them:4}")
    return lines, missing


def main():
    readme, export, demangler = sys.argv[1:]
    with open(readme) as f:
        readme = f.read()
    with open(export) as f:
        export = json.load(f)["data"][0]
    # Behind the first colon is the function; before it, where it has no outside name, its file.
    names = [function["name"].rsplit(":", 1)[-1] for function in export["functions"]]
    demangled = subprocess.run([demangler], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    lines, missing = table(readme, export, demangled.splitlines())
    print("\n".join(lines))
    for name in missing:
        print(f"coverage: nothing is known of bins/{name}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
