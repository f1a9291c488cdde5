# SPDX-License-Identifier: GPL-2.0
"""What is said of a fuzzer that passed, failed, or took the machine with it."""

import unittest

import fuzzing
from tap import FAILED, PASSED


class Noted:
    def __init__(self):
        self.verdicts = []

    def add(self, _layer, name, verdict, remark="", _details=()):
        self.verdicts.append((name, verdict, remark))


class Section(unittest.TestCase):
    def end(self, code, *lines):
        box = fuzzing.section("bochs", False, 60, seed=7)
        box.results = Noted()
        for line in lines:
            box.line(line)
        box.done(code)
        return box.results.verdicts[0]

    def test_passes(self):
        self.assertEqual(self.end(0, "rusthv-fuzz: round 1: seed 7"), ("fuzz", PASSED, "seed 7"))

    def test_fails(self):
        self.assertEqual(self.end(1), ("fuzz", FAILED, "status 1, seed 7"))

    def test_machine_hangs_in_a_round(self):
        self.assertEqual(
            self.end(None, "rusthv-fuzz: round 1: seed 7", "rusthv-fuzz: round 2: seed 8"),
            ("fuzz", FAILED, "the machine stopped in round 2: seed 8"))

    def test_machine_hangs_before_a_round(self):
        self.assertIn("seed 7", self.end(None)[2])


class Command(unittest.TestCase):
    def test_only_bochs_is_spared(self):
        spared = "--no-masked-spin"
        for kind, want in (("bochs", True), ("qemu", False), ("host", False)):
            self.assertEqual(
                spared in fuzzing.section(kind, False, 60).command.split(), want)

    def test_how_long(self):
        self.assertIn("--seconds 60 ", fuzzing.section("qemu", False, 60).command)
        self.assertIn("--seconds 10 ", fuzzing.section("bochs", False, 60).command)
        self.assertIn("--rounds 3 ", fuzzing.section("bochs", False, 60, rounds=3).command)

    def test_seed_is_fresh(self):
        command = fuzzing.section("qemu", False, 60).command.split()
        self.assertGreater(int(command[command.index("--seed") + 1]), 10 ** 12)


if __name__ == "__main__":
    unittest.main()
