# SPDX-License-Identifier: GPL-2.0
"""Which machines are chosen, and what they are started with."""

import os
import struct
import subprocess
import tempfile
import unittest
from unittest import mock

import machine
import ui


def cpuid(*entries):
    """A struct kvm_cpuid2 with (function, ecx) for each entry."""
    return struct.pack("II", len(entries), 0) + b"".join(
        struct.pack("7I12x", function, 0, 0, 0, 0, ecx, 0) for function, ecx in entries)


class SpareCpu(unittest.TestCase):
    """With QEMU's TCG programs stay off the first CPU where there are others."""

    def command(self, kind, **what):
        with tempfile.TemporaryDirectory() as work:
            box = machine.Machine(work, "kernel", "initramfs", (kind, "as asked"), **what)
            return box.cmdline.split(), box._qemu()

    def test_one_more(self):
        words, command = self.command("qemu", cpus=2, nodes=2)
        self.assertIn("program_cpus=1-2", words)
        self.assertEqual(command[command.index("-smp") + 1], "3,sockets=3")
        # Those that programs use are on different nodes.
        nodes = [word for word in command if word.startswith("node,")]
        self.assertEqual([word.count("cpus=1") for word in nodes], [0, 1])
        self.assertEqual([word.count("cpus=2") for word in nodes], [1, 0])

    def test_none_needed(self):
        for kind, what in (("qemu", {"cpus": 1}), ("qemu", {"cpus": 2, "counting": True}),
                           ("bochs", {"cpus": 2}), ("host", {"cpus": 2})):
            words, command = self.command(kind, **what)
            self.assertFalse([word for word in words if word.startswith("program_cpus")])
            self.assertEqual(command[command.index("-smp") + 1].split(",")[0], str(what["cpus"]))


class Choice(unittest.TestCase):
    def choose(self, nests, wanted=None, qemu="/usr/bin/qemu", emulators=("qemu", "bochs")):
        with mock.patch.object(machine, "host_nests", lambda: nests), \
                mock.patch.object(machine, "EMULATORS", emulators), \
                mock.patch.object(machine.shutil, "which", lambda name: qemu), \
                mock.patch.dict(os.environ, {"MACHINE": ""}):
            machines = machine.choose(wanted)
            self.one = machine.choose_one(wanted)[0]
        return [name for name, reason in machines]

    def test_no_hardware(self):
        self.assertEqual(self.choose((None, "none")), ["qemu", "bochs"])
        self.assertEqual(self.one, "bochs")

    def test_vtx(self):
        self.assertEqual(self.choose(("VT-x", "")), ["host", "qemu"])
        self.assertEqual(self.one, "host")

    def test_amdv(self):
        self.assertEqual(self.choose(("AMD-V", "")), ["host", "bochs"])

    def test_hardware_without_qemu(self):
        self.assertEqual(self.choose(("VT-x", ""), qemu=None), ["qemu", "bochs"])

    def test_asked(self):
        self.assertEqual(self.choose((None, "none"), "qemu"), ["qemu"])
        self.assertEqual(self.one, "qemu")
        self.assertEqual(self.choose((None, "none"), "bochs,qemu,bochs"), ["bochs", "qemu"])
        self.assertEqual(self.choose(("AMD-V", ""), "host"), ["host"])

    def test_refused(self):
        for wanted in ("vmware", "qemu,vmware", "host"):
            with self.assertRaises(ui.Failure):
                self.choose((None, "no VT-x"), wanted)

    def test_nested_cpuid(self):
        self.assertEqual(machine.nested_vendor(cpuid((0, 0), (1, 1 << 5))), "VT-x")
        self.assertEqual(machine.nested_vendor(cpuid((1, 0), (0x80000001, 1 << 2))), "AMD-V")
        self.assertIsNone(machine.nested_vendor(cpuid((1, 1 << 2), (0x80000001, 1 << 5))))


class Command(unittest.TestCase):
    def qemu(self, kind, **options):
        with tempfile.TemporaryDirectory() as work:
            box = machine.Machine(work, "kernel", "initramfs", (kind, ""), **options)
            return " ".join(box._qemu())

    def test_tcg(self):
        command = self.qemu("qemu", cpus=2)
        self.assertIn("thread=multi", command)
        self.assertIn("+svm,+npt", command)
        self.assertNotIn("-icount", command)

    def test_counting(self):
        command = self.qemu("qemu", cpus=1, counting=True)
        self.assertIn("thread=single", command)
        self.assertIn("-icount", command)

    def test_nodes(self):
        self.assertNotIn("-numa", self.qemu("qemu", cpus=2))
        command = self.qemu("qemu", cpus=3, memory=1024, nodes=2)
        self.assertIn("-numa node,nodeid=0,memdev=node0,cpus=0,cpus=2", command)
        self.assertIn("-numa node,nodeid=1,memdev=node1,cpus=1", command)
        self.assertIn("id=node1,size=512M", command)
        self.assertNotIn("numa=fake", command)

    def test_other_cpu(self):
        command = self.qemu("qemu", cpu="qemu64,-svm")
        self.assertIn("-cpu qemu64,-svm ", command)
        self.assertNotIn("+svm", command)

    def test_host(self):
        command = self.qemu("host", counting=True)
        self.assertIn("-accel kvm", command)
        self.assertNotIn("tcg", command)
        self.assertNotIn("-icount", command)

    def bochs(self, usage, cpus):
        answer = subprocess.CompletedProcess([], 0, stdout=usage)
        machine.bochs_debugger.cache_clear()
        self.addCleanup(machine.bochs_debugger.cache_clear)
        with tempfile.TemporaryDirectory() as work, \
                mock.patch.object(machine.subprocess, "run", lambda *_, **__: answer), \
                mock.patch.object(machine.image, "iso"), \
                mock.patch.object(machine.Path, "exists", lambda path: True):
            return machine.Machine(work, "kernel", "initramfs", ("bochs", ""), cpus=cpus)._bochs()

    def test_bochs_debugger(self):
        old = "  -rc filename     execute debugger commands stored in file\n"
        new = "  -debugger        start Bochs internal debugger on startup\n" + old
        self.assertNotIn("-debugger", self.bochs(old, cpus=2))
        self.assertIn("-debugger", self.bochs(new, cpus=2))
        self.assertNotIn("-debugger", self.bochs(new, cpus=1))


if __name__ == "__main__":
    unittest.main()
