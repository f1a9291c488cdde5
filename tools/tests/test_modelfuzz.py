# SPDX-License-Identifier: GPL-2.0
"""What is said of the model's fuzzers, and that an input which they do not survive is kept."""

import tempfile
import unittest
from pathlib import Path

import modelfuzz
from tap import FAILED, PASSED

SAID = """INFO: Seed: 7
#2\tINITED cov: 158 ft: 158 corp: 1/1b exec/s: 0 rss: 27Mb
#900\tDONE   cov: 788 ft: 3539 corp: 296/25Kb lim: 512 exec/s: 183 rss: 29Mb
Done 900 runs in 11 second(s)"""


class Noted:
    def __init__(self):
        self.verdicts = []

    def add(self, _layer, name, verdict, remark="", details=()):
        self.verdicts.append((name, verdict, remark, list(details)))


class Run(unittest.TestCase):
    def end(self, script):
        with tempfile.TemporaryDirectory() as scratch:
            scratch = Path(scratch)
            program = scratch / "fuzz-tables"
            program.write_text("#!/bin/sh\n" + script)
            program.chmod(0o755)
            fuzzers = modelfuzz.Fuzzers(1, seed=7, kept=scratch / "kept")
            fuzzers._directory = scratch
            results = Noted()
            fuzzers.run(results, ["fuzz_tables"])
            inputs = list((scratch / "kept/fuzz_tables/corpus").iterdir())
            self.assertEqual(len(inputs), modelfuzz.BEGINNINGS)
            return results.verdicts[0]

    def test_passes(self):
        verdict = self.end(f"echo '{SAID}'\n")
        self.assertEqual(verdict[:3], ("fuzz_tables", PASSED, "seed 7: 900 inputs, 788 branches"))

    def test_fails_and_says_how_to_see_it_again(self):
        name, verdict, remark, details = self.end(
            "for word; do case $word in -artifact_prefix=*) touch ${word#*=}crash-1;; esac; done\n"
            "echo panicked; exit 77\n")
        self.assertEqual((name, verdict, remark), ("fuzz_tables", FAILED, "status 77, seed 7"))
        self.assertEqual(details[0], "panicked")
        self.assertTrue(details[-1].endswith("/kept/fuzz_tables/crash-1"), details)

    def test_saying_nothing_is_no_success(self):
        self.assertEqual(self.end("exit 0")[1], FAILED)


class Seed(unittest.TestCase):
    def test_same_seed_same_beginning(self):
        def inputs(seed):
            with tempfile.TemporaryDirectory() as scratch:
                corpus = Path(scratch) / "corpus"
                modelfuzz.begin(corpus, 40, seed)
                return [path.read_bytes() for path in sorted(corpus.iterdir())]
        self.assertEqual(inputs(1), inputs(1))
        self.assertNotEqual(inputs(1), inputs(2))
        self.assertTrue(all(len(data) <= 40 for data in inputs(1)))


if __name__ == "__main__":
    unittest.main()
