// SPDX-License-Identifier: GPL-2.0

//! Memory in a page of 1 GiB is mapped with one entry where the slot allows it, and everybody knows its size.

use crate::debugfs;
use crate::gigantic::{self, GIB, GPA, LARGE};
use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;
use crate::rusthv::*;
use std::fs;

pub const TEST: Test = Test::new(120, run);

guest!(
    gigantic_pages,
    code64,
    // Adds up the first word of each 2 MiB from RBX on, and increments it.
    "xor eax, eax",
    "2: add rax, [rbx]",
    "inc qword ptr [rbx]",
    "add rbx, 0x200000",
    "dec r8",
    "jnz 2b",
    "hlt",
);
guest!(gigantic_pages_read, code64, "mov rax, [rbx]", "hlt");

/// The sum of the numbers below.
fn sum_below(end: usize) -> u64 {
    (end * (end - 1) / 2) as u64
}

fn run(t: &Context) -> Outcome {
    let device = t.rusthv()?;
    if device.info()?.missing & FEAT_1G != 0 {
        skip!("the CPU has no 1 GiB pages in nested tables");
    }
    let memory = gigantic::memory()?;
    let machine = Machine::long(&device, gigantic_pages())?;
    let vm = &machine.vm;
    vm.map(1, GPA, &memory)?;
    let sweep = |from: u64, number: usize| -> Result<u64, Failure> {
        machine.load(gigantic_pages());
        machine.change_regs(|regs| {
            (regs.rip, regs.rbx, regs.r8) = (layout::CODE as u64, from, number as u64);
        })?;
        check_eq!(machine.run()?, Exit::Hlt);
        Ok(machine.vcpu.regs()?.rax)
    };
    let read = |at: u64| -> Result<u64, Failure> {
        machine.load(gigantic_pages_read());
        machine.change_regs(|regs| (regs.rip, regs.rbx) = (layout::CODE as u64, at))?;
        check_eq!(machine.run()?, Exit::Hlt);
        Ok(machine.vcpu.regs()?.rax)
    };
    let faults = || machine.vcpu.stats().map(|stats| stats.ept_faults);
    let huge = || vm.stats().map(|stats| stats.mapped_1g);

    // One entry, one fault, wherever in the page it comes. The code is somewhere else, already mapped.
    read(0)?;
    let before = (faults()?, vm.stats()?);
    check_eq!(sweep(GPA + (7 * LARGE_PAGE) as u64, LARGE - 7)?, sum_below(LARGE) - sum_below(7));
    check_eq!(sweep(GPA, 7)?, sum_below(7));
    let after = (faults()?, vm.stats()?);
    check_eq!(after.0 - before.0, 1, "faults: {before:?}, {after:?}");
    check_eq!(after.1.mapped_1g, 1, "{after:?}");
    check_eq!((after.1.mapped_4k, after.1.mapped_2m), (before.1.mapped_4k, before.1.mapped_2m), "{after:?}");
    // The entry is in a table that was there.
    check_eq!(after.1.table_frames, before.1.table_frames, "{after:?}");
    known(&device, &machine)?;

    // The host protects it: what is only read comes back as large, and not writable.
    memory.protect(0, GIB, libc::PROT_READ)?;
    check_eq!(huge()?, 0, "after the host has protected it");
    check_eq!(read(GPA + (9 * LARGE_PAGE) as u64)?, 10);
    let found = vm.locate(GPA + 5 * PAGE as u64)?;
    check_eq!((found.page_shift, found.flags & RUSTHV_MAP_WRITE), (30, 0), "{found:x?}");
    machine.load(gigantic_pages());
    machine.change_regs(|regs| (regs.rip, regs.rbx, regs.r8) = (layout::CODE as u64, GPA, 1))?;
    check_eq!(machine.run(), Err(Errno::EFAULT), "a write to what the VMM must not write");
    memory.protect(0, GIB, libc::PROT_READ | libc::PROT_WRITE)?;
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(memory.read_u64(0), 2);
    check_eq!(huge()?, 1, "writable, again");

    // Slots that it does not fit: less than all of it, or aligned otherwise.
    let large = LARGE_PAGE as u64;
    let whole = GIB as u64;
    for (gpa, size, offset) in
        [(GPA, whole - large, 0), (GPA, whole - large, large), (GPA + large, whole - large, large)]
    {
        vm.set_slot(1, 0, 0, 0, 0)?;
        check_eq!(huge()?, 0, "without a slot");
        let mapped = vm.stats()?.mapped_2m;
        vm.set_slot(1, 0, gpa, size, memory.address() + offset)?;
        let first = (offset / large) as usize;
        let expected: u64 =
            (first..first + LARGE - 1).map(|number| memory.read_u64(number * LARGE_PAGE)).sum();
        check_eq!(sweep(gpa, LARGE - 1)?, expected, "{size:#x} bytes at {gpa:#x}, from {offset:#x} on");
        check_eq!((huge()?, vm.stats()?.mapped_2m - mapped), (0, LARGE as u64 - 1), "{gpa:#x}, {offset:#x}");
    }
    // A slot that may not be written.
    vm.set_slot(1, 0, 0, 0, 0)?;
    vm.set_slot(1, KVM_MEM_READONLY, GPA, whole, memory.address())?;
    check_eq!(read(GPA + 3 * large)?, memory.read_u64(3 * LARGE_PAGE));
    check_eq!(huge()?, 1, "in a slot that is read only");
    machine.load(gigantic_pages());
    machine.change_regs(|regs| (regs.rip, regs.rbx, regs.r8) = (layout::CODE as u64, GPA, 1))?;
    check!(
        matches!(machine.run()?, Exit::MmioWrite { address: GPA, .. }),
        "a write to it: {:?}",
        machine.vcpu.exit()
    );
    vm.set_slot(1, 0, 0, 0, 0)?;
    check_eq!(huge()?, 0, "at the end");
    Ok(())
}

/// Queries, debugfs and the comparison of the tables all say that it is one page of 1 GiB.
fn known(device: &Device, machine: &Machine) -> Outcome {
    let vm = &machine.vm;
    let id = vm.stats()?.id;
    let found = vm.locate(GPA)?;
    check_eq!((found.page_shift, found.hpa % GIB as u64), (30, 0), "{found:x?}");
    for inner in [0, 1, 4095, 0x12_3456, 0x3456_7890, GIB as u64 - 1] {
        check_eq!(vm.locate(GPA + inner)?.hpa, found.hpa + inner, "{inner:#x}");
        let frame = device.frame(found.hpa + inner, 0)?;
        check_eq!((frame.count, frame.total), (1, 1), "{inner:#x}: {frame:x?}");
        check_eq!(frame.kind, RUSTHV_PAGE_PRIVATE, "{inner:#x}: {frame:x?}");
        let owner = frame.owners[0];
        check_eq!((owner.vm, owner.gpa, owner.page_shift), (id, GPA + inner, 30), "{inner:#x}");
    }
    let walk = machine.vcpu.walk(GPA + 0x34_5678, 1)?;
    check_eq!((walk.result, walk.hpa), (RUSTHV_WALK_DONE, found.hpa + 0x34_5678), "{walk:x?}");
    let last = walk.entries[walk.count as usize - 1];
    check_eq!(last.level, 3, "{walk:x?}");
    if debugfs::module().is_some() {
        let pages = fs::read_to_string(debugfs::of(vm)?.join("pages"))?;
        let lines: Vec<&str> = pages.lines().filter(|line| line.contains(" 1G ")).collect();
        let line = format!("{GPA:#x} {:#x} 1 1G ", found.hpa);
        check!(matches!(lines[..], [one] if one.starts_with(&line)), "no {line:?} in {lines:?}");
        let report = debugfs::verify().map_err(Failure::failed)?;
        check_eq!(report.get("pages_1g").map(String::as_str), Some("1"), "{report:?}");
    }
    Ok(())
}
