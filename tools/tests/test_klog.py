# SPDX-License-Identifier: GPL-2.0
"""The kernel's complaints are seen, and only those."""

import unittest

import klog

BOOTED = "[    2.5] rusthv machine: boot ended"


def complaints(*lines, booted=True):
    scanner = klog.Scanner()
    for line in ([BOOTED] if booted else []) + list(lines):
        scanner.feed(line)
    return scanner.first_lines()


class Complaints(unittest.TestCase):
    def test_each_kind(self):
        for text in (
            "WARNING: CPU: 0 PID: 7 at arch/x86/kvm/x86.c:1 f+0x1/0x2",
            "WARNING: possible circular locking dependency detected",
            "WARNING: possible recursive locking detected",
            "BUG: KASAN: slab-use-after-free in f+0x1/0x2 [rust_hv]",
            "BUG: sleeping function called from invalid context at mm/x.c:1",
            "BUG: scheduling while atomic: sh/1/0x00000002",
            "BUG: unable to handle page fault for address: ffff888000000000",
            "Oops: general protection fault, probably for non-canonical address",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "INFO: task rusthv-vmm:77 blocked for more than 120 seconds.",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [sh:1]",
            "kmemleak: 1 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "rust_kernel: panicked at rust_hv/vm/mod.rs:1:2:",
            "unchecked MSR access error: RDMSR from 0x480 at rIP: 0xffffffff81000000",
            "list_del corruption. prev->next should be ffff, but was 0",
            "Kernel panic - not syncing: Fatal exception",
            "refcount_t: underflow; use-after-free.",
        ):
            with self.subTest(text):
                self.assertEqual(complaints(f"[   12.345678] {text}"), [text])

    def test_kmemleak_out_of_order(self):
        self.assertEqual(len(complaints("[ 9.1] kmemleak: Kernel memory leak detector disabled")), 1)

    def test_one_report_counts_once(self):
        self.assertEqual(len(complaints("[ 9.1] BUG: KASAN: null-ptr-deref in f", "[ 9.1] x",
                                        "[ 9.1] Call Trace:", "[ 9.1]  <TASK>")), 1)

    def test_normal_lines(self):
        self.assertEqual(complaints(
            "[   3.1] rust_hv: ready at /dev/rusthv",
            "[   3.2] rust_hv: loading out-of-tree module taints kernel.",
            "[   3.3] rust_hv: module uses symbol (x86_virt_get_ref) from namespace module:kvm, "
            "but does not import it.",
            "[   3.4] smpboot: CPU 1 is now offline",
            "[   3.5]     ok 1 debugging_works",
        ), [])

    def test_boot_is_not_looked_at(self):
        self.assertEqual(complaints("[    0.1] WARNING: topology", booted=False), [])

    def test_kasan_in_boot_is_not(self):
        text = "BUG: KASAN: wild-memory-access in do_raw_spin_lock+0xc3/0x210"
        self.assertEqual(complaints(text, booted=False), [])
        self.assertEqual(len(complaints(text)), 1)

    def test_dying_in_boot_is(self):
        self.assertEqual(len(complaints("[    0.1] Kernel panic - not syncing: x", booted=False)), 1)

    def test_injected_failures(self):
        self.assertEqual(complaints(
            "[    9.1] FAULT_INJECTION: forcing a failure.", "[    9.1] name failslab",
            "[    9.1] Call Trace:", "[    9.1]  <TASK>"), [])
        self.assertEqual(complaints(
            "[    9.1] test: vmalloc error: size 896, vm_struct allocation failed",
            "[    9.1] Call Trace:",
            "[    9.2] kmemleak: Cannot allocate a scan area, scanning the full object"), [])
        # The next trace is not excused by it.
        self.assertEqual(len(complaints(
            "[    9.1] FAULT_INJECTION: forcing a failure.", "[    9.1] Call Trace:",
            "[    9.2] Call Trace:")), 1)

    def test_oom_killer(self):
        trace = ["[    9.2] vcpu invoked oom-killer: gfp_mask=0x140cca", "[    9.2] Call Trace:"]
        expected = "[    9.1] rusthv-selftests: the OOM killer is expected"
        no_longer = "[    9.3] rusthv-selftests: the OOM killer is not expected"
        self.assertEqual(len(complaints(*trace)), 1)
        self.assertEqual(complaints(expected, *trace, *trace), [])
        self.assertEqual(len(complaints(expected, *trace, no_longer, *trace)), 1)
        self.assertEqual(len(complaints(expected, *trace, "[ 9.3] WARNING: x")), 1)


if __name__ == "__main__":
    unittest.main()
