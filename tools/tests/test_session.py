# SPDX-License-Identifier: GPL-2.0
"""What a run of the test machine is counted as, with a machine that reads from a script."""

import contextlib
import io
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import klog
import machine
import paths
import session
from machine import HOST, TEST
from results import Results

BOOT = [(HOST, f"[    2.1] {klog.BOOTED}"), (TEST, "@ready 2.1")]
OFF = [(HOST, "[    9.1] rusthv machine: command ended with 0"), (TEST, "@exit 0")]


def section(name, *lines, code=0):
    end = [(TEST, f"@end {name} {code}")] if code is not None else []
    return [(HOST, f"[    3.1] rusthv machine: section {name}"), (TEST, f"@section {name}"),
            *(line if isinstance(line, tuple) else (TEST, line) for line in lines), *end]


class Scripted:
    """Stands for machine.Machine."""

    script, stopped, firmware_again = [], None, False

    def __init__(self, *_arguments, **_options):
        pass

    def describe(self):
        return "a script"

    def hurry(self, seconds):
        pass

    def last_words(self):
        return []

    def run(self, on_line, _limit, _idle_limit):
        result = machine.Result()
        for channel, text in self.script:
            if text.startswith("@exit"):
                result.exit_code = int(text.split()[1])
            on_line(channel, text)
        result.stopped = self.stopped
        result.firmware_again = self.firmware_again
        return result


class Sessions(unittest.TestCase):
    def run_session(self, script, *sections, stopped=None, firmware_again=False):
        paths.BUILD.mkdir(exist_ok=True)
        fake = type("Fake", (Scripted,), {"script": script, "stopped": stopped,
                                          "firmware_again": firmware_again})
        with tempfile.TemporaryDirectory(dir=paths.BUILD) as logs, \
                mock.patch.object(session.machine, "Machine", fake), \
                mock.patch.object(session.image, "initramfs", lambda *a: None), \
                mock.patch.object(session.kernel, "image", lambda kdir: None), \
                contextlib.redirect_stdout(io.StringIO()) as said:
            results = Results(logs)
            part = results.part("m", "In a script")
            box = session.Session("m", Path("none"), part, logs, ("bochs", "why"))
            for one in sections:
                box.add(one)
            self.complete = box.run()
            self.code = results.finish()
        self.said = said.getvalue()
        # One part, so that its sum is the sum of all.
        self.assertIn(f"In a script: {self.said.splitlines()[-1]}", self.said)
        self.last = self.said.splitlines()[-1]
        return results

    def tap(self, expected=("a", "b")):
        return session.Tap("t", "true", "layer", expected)

    def test_all_well(self):
        self.run_session(BOOT + section("c") + section("t", "1..2", "ok 1 a", "ok 2 b # SKIP why")
                         + OFF, session.Check("c", "true", "layer"), self.tap())
        # The third is the host's log.
        self.assertEqual(self.last, "3 passed, 0 failed, 1 skipped")
        self.assertEqual(self.code, 0)
        self.assertIn("why", self.said)

    def test_check_fails(self):
        self.run_session(BOOT + section("c", code=1) + OFF, session.Check("c", "true", "layer"))
        self.assertEqual(self.last, "1 passed, 1 failed, 0 skipped")
        self.assertEqual(self.code, 1)

    def test_not_in_the_list(self):
        self.run_session(BOOT + section("t", "1..2", "ok 1 a", "ok 2 z") + OFF, self.tap())
        # b did not run, z was not announced.
        self.assertEqual(self.last, "3 passed, 2 failed, 0 skipped")

    def test_empty(self):
        self.run_session(BOOT + section("t", "1..0") + OFF, self.tap([]))
        self.assertEqual(self.code, 1)

    def test_status_without_failure(self):
        self.run_session(BOOT + section("t", "1..2", "ok 1 a", "ok 2 b", code=1) + OFF, self.tap())
        self.assertIn("does not fit", self.said)
        self.assertEqual(self.code, 1)

    def test_failure_without_status(self):
        self.run_session(BOOT + section("t", "1..2", "ok 1 a", "not ok 2 b", code=0) + OFF,
                         self.tap())
        self.assertEqual(self.last, "2 passed, 2 failed, 0 skipped")

    def test_host_complains(self):
        self.run_session(BOOT + section(
            "t", "1..2", "ok 1 a", (HOST, "[  4.0] BUG: KASAN: slab-out-of-bounds in f"), "ok 2 b")
            + OFF, self.tap())
        self.assertEqual(self.last, "2 passed, 1 failed, 0 skipped")
        self.assertIn("slab-out-of-bounds", self.said)

    def test_machine_hangs(self):
        tap = self.tap()
        self.run_session(BOOT + section("t", "1..2", "ok 1 a", code=None), tap,
                         stopped="nothing heard")
        self.assertFalse(self.complete)
        self.assertEqual(tap.unfinished(), ["b"])
        self.assertEqual(self.code, 1)
        self.assertIn("nothing heard", self.said)

    def test_machine_dies_in_boot(self):
        self.run_session([], self.tap())
        self.assertEqual(self.code, 1)
        self.assertIn("did not finish booting", self.said)

    KTAP = [(HOST, f"[    3.2] {line}") for line in (
        "    KTAP version 1", "    # Subtest: suite", "    # module: rust_hv", "    1..2",
        "    ok 1 one", "    ok 2 two", "# suite: pass:2 fail:0 skip:0 total:2", "ok 1 suite")]

    def kunit(self, lines, expected=("suite.one", "suite.two"), selected=None, code=0):
        selected = expected if selected is None else selected
        return self.run_session(BOOT + section("k", *lines, code=code) + OFF,
                                session.KUnit("k", "true", expected, selected))

    def test_kunit(self):
        self.kunit(self.KTAP)
        # Both of them, the load, and the host's log.
        self.assertEqual(self.last, "4 passed, 0 failed, 0 skipped")

    def test_kunit_lost(self):
        self.kunit([])
        self.assertEqual(self.last, "2 passed, 2 failed, 0 skipped")

    def test_kunit_selected(self):
        self.kunit(self.KTAP, selected=("suite.one",))
        self.assertEqual(self.last, "3 passed, 0 failed, 0 skipped")

    def test_kunit_unknown_test_counts(self):
        self.kunit(self.KTAP, expected=("suite.one",))
        self.assertEqual(self.last, "4 passed, 0 failed, 0 skipped")

    def test_load_fails(self):
        self.kunit([], code=1)
        self.assertEqual(self.last, "1 passed, 1 failed, 0 skipped")

    def test_kunit_suite_that_hangs(self):
        script = BOOT + section("k", *self.KTAP[:5], code=None)
        self.run_session(script, session.KUnit("k", "true", ("suite.one", "suite.two", "z.z"),
                                               ("suite.one", "suite.two", "z.z")),
                         stopped="nothing heard")
        self.assertIn("suite (the machine stopped while it ran, after 1 of its tests)", self.said)
        self.assertIn("2 tests did not run", self.said)
        # The first test, and the host's log; suite, the rest, load, and the machine.
        self.assertEqual(self.last, "2 passed, 4 failed, 0 skipped")

    def test_load_hangs_without_a_suite(self):
        self.run_session(BOOT + section("k", *self.KTAP, code=None),
                         session.KUnit("k", "true", ("suite.one", "suite.two"),
                                       ("suite.one", "suite.two")), stopped="nothing heard")
        self.assertIn("outside of the KUnit tests", self.said)
        self.assertEqual(self.last, "3 passed, 2 failed, 0 skipped")

    TOLD = (HOST, "[    9.2] rust_hv: the machine goes down: no more guests on 2 CPUs")
    DOWN = (HOST, "[    9.3] reboot: Power down")
    RESTART = (HOST, "[    9.3] reboot: machine restart")

    def ending(self, name, *after, code=0, **how):
        script = BOOT + section(name, code=code) + OFF + list(after)
        self.run_session(script, session.Ending(name, "true", "layer", 2), **how)

    def test_ending(self):
        self.ending("power_off", self.TOLD, self.DOWN)
        self.assertEqual(self.last, "2 passed, 0 failed, 0 skipped")
        self.ending("reboot", self.TOLD, self.RESTART, firmware_again=True)
        self.assertEqual(self.last, "2 passed, 0 failed, 0 skipped")

    def test_ending_otherwise(self):
        one = (HOST, self.TOLD[1].replace("2 CPUs", "1 CPUs"))
        for name, after, how in (
                ("power_off", (self.TOLD,), {}),
                ("power_off", (self.TOLD, self.RESTART), {}),
                ("power_off", (self.DOWN,), {}),
                ("power_off", (one, self.DOWN), {}),
                ("power_off", (self.TOLD, self.DOWN), {"code": 1}),
                ("reboot", (self.TOLD, self.RESTART), {})):
            self.ending(name, *after, **how)
            self.assertEqual(self.last, "1 passed, 1 failed, 0 skipped", (name, after, how))

    def test_ending_with_a_warning(self):
        self.ending("power_off", self.TOLD, (HOST, "[    9.2] WARNING: at x.c:1"), self.DOWN)
        self.assertEqual(self.last, "1 passed, 1 failed, 0 skipped")

    def test_ending_that_hangs(self):
        self.ending("power_off", self.TOLD, stopped="did not power off within 120 s")
        self.assertEqual(self.last, "1 passed, 2 failed, 0 skipped")


if __name__ == "__main__":
    unittest.main()
