# SPDX-License-Identifier: GPL-2.0
"""How tests/test deals its tests out, and what becomes of those of a machine that dies."""

import contextlib
import importlib.machinery
import importlib.util
import io
import tempfile
import types
import unittest
from pathlib import Path
from unittest import mock

import paths
import session
from results import Results

loader = importlib.machinery.SourceFileLoader("tools_test", str(paths.TOP / "tools/test"))
tools_test = importlib.util.module_from_spec(importlib.util.spec_from_loader("tools_test", loader))
loader.exec_module(tools_test)


class Deal(unittest.TestCase):
    def test_everything_once(self):
        costs = {f"t{i}": i % 7 for i in range(50)}
        hands = tools_test.deal(costs, 3)
        self.assertEqual(sorted(sum(hands, [])), sorted(costs))
        sums = [sum(costs[name] for name in hand) for hand in hands]
        self.assertLessEqual(max(sums) - min(sums), 6)

    def test_one_is_long(self):
        self.assertEqual(tools_test.deal({"a": 1, "b": 10, "c": 1}, 2), [["b"], ["a", "c"]])


class Machines(unittest.TestCase):
    """With machines that run so many of their selftests and then die."""

    def run_all(self, lives, names, checks=(), kind="bochs", several=(), hands=1, kernel="base"):
        boots = []
        self.cpus, self.models, self.scans = [], [], {}

        def run(box):
            boots.append([s.name for s in box.sections])
            self.cpus.append(box.cpus)
            self.models.append(box.cpu)
            scans = any(s.name == "leaks" for s in box.sections)
            self.assertEqual(scans, kernel == "debug" and "kmemleak=off" not in box.append)
            for section in box.sections:
                self.scans.update(dict.fromkeys(getattr(section, "expected", None) or [], scans))
            box.result = types.SimpleNamespace(ready_after=1.0)
            tests = lives[len(boots) - 1] if len(boots) <= len(lives) else None
            for section in box.sections:
                if section.name not in ("selftests", "vmm-test", "fuzz"):
                    continue
                box.begun.add(section.name)
                if not isinstance(section, session.Tap):
                    continue
                section.line(f"1..{len(section.expected or [])}")
                for index, name in enumerate((section.expected or [])[:tests]):
                    section.line(f"ok {index + 1} {name}")
                section.done(0 if tests is None else None)
                if tests is not None:
                    return False
            return True

        arguments = types.SimpleNamespace(kernel=kernel, scale=None, cpus=2, seconds=None, verbose=False)
        with tempfile.TemporaryDirectory(dir=paths.BUILD) as logs, \
                mock.patch.object(tools_test.programs, "stripped", lambda path, name: path), \
                mock.patch.object(session.Session, "run", run), \
                contextlib.redirect_stdout(io.StringIO()):
            results = Results(logs)
            built = {"rusthv-selftests": Path("s"), "rusthv-fuzz": Path("f"),
                     "rusthv-spin": Path("spin")}
            bench = tools_test.Bench(arguments, [], Path("k"), logs, "m", built, [], [], set(several))
            machines = tools_test.Machines(bench, (kind, ""), results)
            long, short = machines.jobs(names, [], checks, hands)
            for job in long + short:
                job()
        return machines.part, boots

    def test_all_well(self):
        part, boots = self.run_all([], ["a", "b"], ["fuzz"])
        self.assertEqual(part.reported, {"a", "b"})
        self.assertEqual(boots, [["kvm", "load", "selftests", "fuzz", "unload"]])

    def test_each_machine_ends_once(self):
        _, boots = self.run_all([], ["a"], ["power_off", "reboot"])
        self.assertEqual(boots, [["kvm", "load", "selftests", "unload", "power_off"],
                                 ["kvm", "load", "unload", "reboot"]])

    def test_a_lone_cpu_where_one_will_do(self):
        names = [f"t{i}" for i in range(40)]
        # With one job more than that, as boot is short.
        part, _ = self.run_all([], names, several=names[:4], hands=1)
        self.assertEqual(self.cpus, [2, 1])
        self.assertEqual(part.reported, set(names))
        # A machine that goes on where another one died has as many as that.
        self.run_all([None, 0], names, several=names[:4], hands=1)
        self.assertEqual(self.cpus, [2, 1, 1])
        for several, hands, cpus in (([], 1, [1, 1]), (names, 1, [2, 2]), (names[:4], 2, [2, 1, 1]),
                                     (names[:20], 3, [2, 2, 1, 1])):
            self.run_all([], names, several=several, hands=hands)
            self.assertEqual(self.cpus, cpus)
        # Too few to be shared out.
        for several, cpus in ((names[:1], [2]), ([], [1])):
            self.run_all([], names[:8], several=several, hands=2)
            self.assertEqual(self.cpus, cpus)
        self.run_all([], names, several=names[:4], hands=2, kind="qemu")
        self.assertEqual(self.cpus, [2, 2])

    def test_dirty_logs_on_a_cpu_that_has_one_too(self):
        part, _ = self.run_all([], ["a", "dirty_log_x"])
        self.assertEqual(self.models, [None, "corei7_skylake_x"])
        self.assertEqual(part.reported, {"a", "dirty_log_x"})
        self.run_all([], ["a"])
        self.assertEqual(self.models, [None])
        self.run_all([], ["a", "dirty_log_x"], kind="qemu")
        self.assertEqual(self.models, [None])

    def test_in_bochs_some_are_looked_at_for_leaks(self):
        names = ["hlt", "module_reload", "signal", "slot_alias", "several_vcpus"]
        several = ["several_vcpus"]
        self.run_all([], names, several=several, hands=2, kernel="debug")
        self.assertEqual([name for name in names if self.scans[name]], ["hlt", "module_reload"])
        self.run_all([], names, several=several, hands=2, kernel="debug", kind="qemu")
        self.assertEqual([name for name in names if self.scans[name]], names)

    def test_refusals_have_machines_of_their_own(self):
        _, boots = self.run_all([], ["a"], ["refuse_no_svm", "refuse_no_vmx"], kind="qemu")
        self.assertEqual(boots, [["kvm", "load", "selftests", "unload"],
                                 ["refuse_no_svm"], ["refuse_no_vmx"]])
        _, boots = self.run_all([], ["a"], ["refuse_no_svm"])
        self.assertEqual(boots, [["kvm", "load", "selftests", "unload"]])

    def test_stress_takes_its_time_in_every_mode(self):
        def machines(kernel, kind, seconds=None):
            arguments = types.SimpleNamespace(kernel=kernel, scale=None, seconds=seconds)
            bench = types.SimpleNamespace(arguments=arguments, words=[], debug=kernel == "debug")
            return tools_test.Machines(bench, (kind, ""), mock.MagicMock())

        debug = machines("debug", "qemu")
        for mode in tools_test.PAGING:
            self.assertLessEqual(set(tools_test.STRESS), debug.paged[mode])
        self.assertGreaterEqual(
            debug.seconds * len(tools_test.STRESS) * (1 + len(tools_test.PAGING)), 120)
        self.assertEqual(machines("base", "qemu").seconds, 0)
        self.assertEqual(machines("debug", "bochs").seconds, 0)
        self.assertEqual(machines("base", "qemu", 7).seconds, 7)

    def test_no_machine_for_a_refusal_alone(self):
        _, boots = self.run_all([], [], ["refuse_no_svm"], kind="qemu")
        self.assertEqual(boots, [["refuse_no_svm"]])

    def test_rest_runs_in_another(self):
        part, boots = self.run_all([1], ["a", "b", "c"], ["fuzz"])
        self.assertEqual(part.reported, {"a", "b", "c"})
        self.assertEqual(part.counts["failed"], 1)
        self.assertEqual(len(boots), 2)
        self.assertIn("fuzz", boots[1])

    def test_gives_up(self):
        part, boots = self.run_all([0] * 9, [f"t{i}" for i in range(6)], ["fuzz"])
        self.assertEqual(len(boots), 4)
        self.assertEqual(part.counts["failed"], 7)


if __name__ == "__main__":
    unittest.main()
