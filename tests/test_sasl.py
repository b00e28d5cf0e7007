"""SASL in the library: the table behind its SASLprep against Unicode 3.2, which RFC 4013 is written for."""

import os
import re
import stringprep
import unicodedata
import unittest

from tests.harness import ROOT

OLD = unicodedata.ucd_3_2_0


def ranges(source, name):
    table = re.search(rf"const {name}: [^=]*= \[(.*?)\];", source, re.S).group(1)
    return [(int(a, 16), int(b, 16)) for a, b in re.findall(r"\((0x[0-9a-f]+), (0x[0-9a-f]+)\)", table)]


def second_halves():
    """Characters that may be composed with the one before them."""
    found = set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    for code in range(0x110000):
        parts = OLD.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            found.add(int(parts[1], 16))
    return found


PROHIBITED = (stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4,
              stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8,
              stringprep.in_table_c9, stringprep.in_table_a1, stringprep.in_table_b1)


class Prepare(unittest.TestCase):
    def setUp(self):
        with open(os.path.join(ROOT, "bins", "lib", "src", "sasl", "prep.rs")) as f:
            self.source = f.read()

    def test_what_passes_is_what_saslprep_leaves_alone(self):
        stable = ranges(self.source, "STABLE")
        self.assertGreater(len(stable), 40)
        self.assertEqual(stable, sorted(stable))
        seconds = second_halves()
        for first, last in stable:
            for code in range(first, last + 1):
                c = chr(code)
                bad = (OLD.normalize("NFKC", c) != c or OLD.combining(c) or code in seconds
                       or any(table(c) for table in PROHIBITED))
                self.assertFalse(bad, f"U+{code:04X}")

    def test_directions_are_those_of_the_tables(self):
        neutral = ranges(self.source, "NEUTRAL")
        first, last = map(lambda n: int(n, 16), re.search(
            r"RIGHT_TO_LEFT: \(u32, u32\) = \((\w+), (\w+)\)", self.source).groups())
        for low, high in ranges(self.source, "STABLE"):
            for code in range(low, high + 1):
                is_neutral = any(a <= code <= b for a, b in neutral)
                ours = not is_neutral and first <= code <= last
                self.assertEqual(ours, stringprep.in_table_d1(chr(code)), f"U+{code:04X}")
                if is_neutral:
                    self.assertFalse(stringprep.in_table_d2(chr(code)), f"U+{code:04X}")

    def test_what_is_mapped_to_nothing_or_a_space_is_all_that_is(self):
        body = re.search(r"fn mapped\(.*?\n}\n", self.source, re.S).group(0)
        arms = re.findall(r"^ +((?:0x[0-9a-f]+(?:\.\.=0x[0-9a-f]+)?(?: \| )?)+) =>", body, re.M)
        self.assertEqual(len(arms), 2)

        def codes(arm):
            for part in arm.split(" | "):
                low, _, high = part.partition("..=")
                yield from range(int(low, 16), int(high or low, 16) + 1)
        spaces = {code for code in range(0x110000) if stringprep.in_table_c12(chr(code))}
        nothing = {code for code in range(0x110000) if stringprep.in_table_b1(chr(code))} - spaces
        self.assertEqual(set(codes(arms[0])), nothing)
        self.assertEqual(set(codes(arms[1])), spaces)


if __name__ == "__main__":
    unittest.main()
