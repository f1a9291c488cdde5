// SPDX-License-Identifier: GPL-2.0

//! With nearly all of the host's memory in a guest's hands, other VMs are made, run and go, and no guest loses a page.

use crate::host;
use crate::prelude::*;
use std::fs;

pub const TEST: Test = Test::new(300, run);

guest!(
    memory_pressure,
    code64,
    // Marks RCX large pages from RBX on, at both ends of each; then, asked again, checks them.
    "2: mov [rbx], rbx",
    "mov [rbx + 0x1ffff8], rbx",
    "add rbx, 0x200000",
    "loop 2b",
    "hlt",
    "3: cmp [rbx], rbx",
    "jne 4f",
    "cmp [rbx + 0x1ffff8], rbx",
    "jne 4f",
    "add rbx, 0x200000",
    "loop 3b",
    "hlt",
    "4: ud2",
);
guest!(pressed, code64, "2: inc qword ptr [rbx]", "add rbx, 0x1000", "loop 2b", "out 0x10, al", "hlt");

const BASE: u64 = 0x4000_0000;
const LARGE: u64 = 2 << 20;
/// What the host keeps: enough for it not to kill anybody.
const LEFT_KIB: i64 = 40 << 10;

fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    let device = t.device()?;
    let total = host::meminfo("MemTotal").unwrap_or_default();
    if total > 3 << 20 {
        skip!("{} MiB are too much to fill", total >> 10);
    }
    let counts = || match device.has_extensions() {
        true => device.host_stats().map(|stats| (stats.vms, stats.vcpus, stats.frames_in_use)),
        false => Ok((0, 0, 0)),
    };
    let before = counts()?;
    let machine = Machine::long(&device, memory_pressure())?;
    // Virtual memory is there for all of it.
    let memory = Memory::aligned(3 << 30, LARGE as usize)?;
    memory.advise(0, memory.size(), libc::MADV_HUGEPAGE)?;
    machine.vm.map(1, BASE, &memory)?;
    let available = || host::meminfo("MemAvailable").unwrap_or_default();
    let mut pages = 0;
    while available() > LEFT_KIB && (pages + 1) * LARGE < memory.size() as u64 {
        // In strides while there is plenty, one by one at the end.
        let stride = if available() > 4 * LEFT_KIB { 16 } else { 1 };
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx, regs.rcx) = (layout::CODE as u64, BASE + pages * LARGE, stride);
        })?;
        check_eq!(machine.run()?, Exit::Hlt, "after {pages} large pages");
        pages += stride;
    }
    check!(pages as i64 * 2048 > total / 2, "only {pages} large pages of {total} KiB");
    // The host reclaims: caches, and whatever it can compact.
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let _ = fs::write("/proc/sys/vm/compact_memory", "1");
    for round in 0..t.repetitions(30) {
        let other = Machine::long(&device, pressed())?;
        let second = other.vm.vcpu(1)?;
        let more = Memory::new(64 * 0x1000)?;
        other.vm.map(1, BASE, &more)?;
        other.change_regs(|regs| (regs.rbx, regs.rcx) = (BASE, 64))?;
        check!(matches!(other.run()?, Exit::Io { port: 0x10, .. }), "round {round}");
        check!((0..64).all(|page| more.read_u64(page * 0x1000) == 1), "round {round}");
        check!(second.regs().is_ok());
    }
    let offset = memory_pressure().windows(2).position(|bytes| bytes == [0xF4, 0x48]).unwrap_or(0) as u64 + 1;
    machine.change_regs(|regs| {
        (regs.rip, regs.rbx, regs.rcx) = (layout::CODE as u64 + offset, BASE, pages);
    })?;
    check_eq!(machine.run()?, Exit::Hlt, "all {pages} large pages hold what the guest wrote");
    check_eq!(machine.vcpu.regs()?.rcx, 0);
    drop(machine);
    check_eq!(counts()?, before, "VMs, vCPUs and frames");
    Ok(())
}
