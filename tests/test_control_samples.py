"""control/: every file has a sample, a row in the table, a line in qmail-control(5) and a reader, both ways."""

import os
import re
import unittest

from tests.harness import ROOT, Home

CONTROL = os.path.join(ROOT, "control")
KINDS = ("line", "int", "list", "map", "cdb")


def read(*names):
    with open(os.path.join(ROOT, *names), encoding="latin-1") as f:
        return f.read()


def tables():
    """The two tables of control/README.md: {file: (kind, default, readers)}, those read and those to come."""
    found = []
    for block in re.findall(r"(?m)^\| File \| Kind .*\n\|[-|]+\n((?:\|.*\n)+)", read("control", "README.md")):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in block.splitlines()]
        found.append({row[0].strip("`"): (row[1], row[2], row[3].split()) for row in rows})
    return found


def manifest():
    rows = (line.split() for line in read("bins", "MANIFEST").splitlines() if line and not line.startswith("#"))
    return {row[1]: row[0] for row in rows}


def sources(program):
    """Everything a program is made of, by name: its own files, and the library modules that read for it."""
    family = manifest()[program]
    place = os.path.join(ROOT, "bins", family)
    paths = [os.path.join(place, name) for name in (f"{program}.rs", f"{program}.sh")]
    for directory, _, names in os.walk(os.path.join(place, program)):
        paths += [os.path.join(directory, name) for name in names if name.endswith(".rs")]
    text = "".join(open_text(path) for path in paths if os.path.exists(path))
    modules = {name + ".rs" for name in re.findall(r"\b(?:qmail::|\{)?([a-z]+)::", text)}
    for directory, _, names in os.walk(os.path.join(ROOT, "bins", "lib", "src")):
        text += "".join(open_text(os.path.join(directory, name)) for name in names if name in modules)
    return text


def open_text(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


class Samples(unittest.TestCase):
    def setUp(self):
        self.rows, self.coming = tables()
        self.samples = set(os.listdir(CONTROL)) - {"README.md"}

    def test_every_sample_has_a_row_and_every_row_a_sample(self):
        made = {name for name, (kind, _, _) in self.rows.items() if kind == "cdb"}
        self.assertEqual(self.samples, set(self.rows) - made)
        self.assertEqual(self.samples & set(self.coming), set())

    def test_every_row_has_readers_that_exist_and_name_the_file(self):
        for name, (kind, _, readers) in self.rows.items():
            self.assertIn(kind, KINDS, name)
            self.assertTrue(readers, name)
            for reader in readers:
                self.assertIn(reader, manifest(), name)
                if name == "me":  # read where another file is missing: Control::me and line_or_me
                    continue
                self.assertIn(f'{name}"', sources(reader), f"{reader} does not read {name}")

    def test_a_file_said_to_be_read_by_a_program_to_come_is_not_read_yet(self):
        for name, (_, _, readers) in self.coming.items():
            for reader in readers:
                self.assertNotIn(reader, manifest(), f"{reader} has come: move {name} up and add its sample")

    def test_qmail_showctl_knows_exactly_the_tables(self):
        known = re.findall(r'(?m)^    File\(\s*"([^"]+)",', read("bins", "admin", "qmail-showctl", "main.rs"))
        self.assertEqual(sorted(known), sorted([*self.rows, *self.coming]))

    def test_the_manual_has_every_file(self):
        items = re.findall(r"(?m)^\.It Pa (\S+)$", read("doc", "man", "qmail-control.5"))
        self.assertEqual(sorted(set(items)), sorted([*self.rows, *self.coming]))

    def test_programs_read_no_control_file_that_is_not_in_the_table(self):
        reading = re.compile(r'control(?:\(\))?\s*\.\s*(?:line|line_or_me|int|list|set|map)\("([^"]+)"')
        for directory, _, names in os.walk(os.path.join(ROOT, "bins")):
            for name in names:
                if name.endswith(".rs"):
                    text = open_text(os.path.join(directory, name)).split("#[cfg(test)]")[0]
                    for found in reading.findall(text):
                        self.assertIn(found, self.rows, os.path.join(directory, name))

    def test_samples_are_installable_as_they_are(self):
        """qmail-showctl on a home of samples has no trouble, and numbers and lines are their defaults."""
        with Home() as home:
            for name in sorted(self.samples):
                with open(os.path.join(CONTROL, name)) as f:
                    text = f.read()
                self.assertTrue(text.endswith("\n") and "\r" not in text, name)
                kind, default, _ = self.rows[name]
                if kind in ("line", "int"):
                    self.assertEqual(text.count("\n"), 1, f"{name} has one line: comments are no part of its kind")
                    expected = "localhost" if default in ("me", "none") else default.split(",")[0].strip("`")
                    self.assertEqual(text.strip(), expected, name)
                home.control(name, text)
            r = home.run(["qmail-newmrh"])
            self.assertEqual(r.code, 0, r.err)
            r = home.run(["qmail-showctl"])
            self.assertEqual(r.code, 0)
            self.assertNotIn(b"Oops!", r.out)
            self.assertNotIn(b"no idea", r.out)


if __name__ == "__main__":
    unittest.main()
