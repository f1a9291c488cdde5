// SPDX-License-Identifier: GPL-2.0

//! Memory in huge pages is mapped with 2 MiB entries; taking one small page out splits them and loses nothing.

use crate::memory::{LARGE_PAGE, PAGE};
use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

const GPA: u64 = 0x4000_0000;
const SIZE: usize = 4 * LARGE_PAGE;

guest!(
    large_pages,
    code64,
    // Adds up the first word of each page, and increments it.
    "xor eax, eax",
    "mov ebx, 0x40000000",
    "2: add rax, [rbx]",
    "inc qword ptr [rbx]",
    "add rbx, 0x1000",
    "dec r8",
    "jnz 2b",
    "hlt",
);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, large_pages())?;
    let memory = Memory::aligned(SIZE, LARGE_PAGE)?;
    if memory.advise(0, SIZE, libc::MADV_HUGEPAGE).is_err() {
        skip!("no transparent huge pages in this kernel");
    }
    let pages = SIZE / PAGE;
    for page in 0..pages {
        memory.write_u64(page * PAGE, page as u64);
    }
    if crate::host::huge_bytes(memory.address())? < SIZE as u64 {
        skip!("the host gave no huge pages");
    }
    machine.vm.map(1, GPA, &memory)?;
    let sweep = || {
        machine.change_regs(|regs| (regs.rip, regs.r8) = (layout::CODE as u64, pages as u64))?;
        machine.run()
    };
    let sum = (pages * (pages - 1) / 2) as u64;
    check_eq!(sweep()?, Exit::Hlt);
    check_eq!(machine.vcpu.regs()?.rax, sum);
    if device.has_extensions() {
        let stats = machine.vm.stats()?;
        check!(stats.mapped_2m >= (SIZE / LARGE_PAGE) as u64, "{stats:?}");
        let faults = machine.vcpu.stats()?.ept_faults;
        check!(faults < pages as u64 / 8, "{faults} faults for {pages} pages in huge pages");
    }
    // One small page goes: the host splits its huge page, and we ours.
    let gone = LARGE_PAGE + 5 * PAGE;
    memory.advise(gone, PAGE, libc::MADV_DONTNEED)?;
    check_eq!(sweep()?, Exit::Hlt);
    let lost = (gone / PAGE + 1) as u64;
    check_eq!(machine.vcpu.regs()?.rax, sum + pages as u64 - lost, "all but that page, incremented once");
    check_eq!(memory.read_u64(gone), 1);
    // A slot that is not aligned alike cannot use large entries, and is right all the same.
    machine.vm.set_slot(1, 0, 0, 0, 0)?;
    machine.vm.set_slot(1, 0, GPA, (SIZE - PAGE) as u64, memory.address() + PAGE as u64)?;
    let expected: u64 = (1..pages).map(|page| memory.read_u64(page * PAGE)).sum();
    machine.change_regs(|regs| (regs.rip, regs.r8) = (layout::CODE as u64, pages as u64 - 1))?;
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(machine.vcpu.regs()?.rax, expected);
    check_eq!(memory.read_u64(0), 2, "the page that is not in the slot any more");
    Ok(())
}
