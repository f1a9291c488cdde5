// SPDX-License-Identifier: GPL-2.0

//! Pages of a guest that the host merges stay what they are, and a guest's write to one changes that one alone.

use crate::ksm::{self, Merging};
use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(120, run);

guest!(
    notifier_ksm,
    code64,
    // Sums up the first words of the pages, then writes to every second one.
    "2: xor eax, eax",
    "mov ebx, 0x400000",
    "mov ecx, 32",
    "3: add rax, [rbx]",
    "add rbx, 0x1000",
    "loop 3b",
    "hlt",
    "mov ebx, 0x400000",
    "mov ecx, 16",
    "4: add [rbx], rcx",
    "add rbx, 0x2000",
    "loop 4b",
    "hlt",
    "jmp 2b",
);

const PAGES: usize = 32;
fn run(t: &Context) -> Outcome {
    t.exclusive()?;
    if !ksm::is_there() {
        skip!("the kernel does not merge pages");
    }
    let machine = Machine::long(&t.device()?, notifier_ksm())?;
    let memory = Memory::new(PAGES * PAGE)?;
    machine.vm.map(1, 0x40_0000, &memory)?;
    memory.advise(0, PAGES * PAGE, libc::MADV_MERGEABLE)?;
    let merging = Merging::new()?;
    for round in 0..t.repetitions(3) {
        for page in 0..PAGES {
            memory.fill(page * PAGE, PAGE, 0);
            memory.write_u64(page * PAGE, 0x55);
            memory.write_u64(page * PAGE + PAGE - 8, round);
        }
        // Mapped for the guest, written even, before they are merged.
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!(machine.vcpu.regs()?.rax, 0x55 * PAGES as u64, "round {round}, before");
        let merged = merging.merge(PAGES as u64 - 1)?;
        check!(
            merged >= PAGES as u64 / 2,
            "round {round}: {merged} pages were merged, {}",
            merging.describe()
        );
        machine.change_regs(|regs| regs.rip = layout::CODE as u64)?;
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!(machine.vcpu.regs()?.rax, 0x55 * PAGES as u64, "round {round}, merged");
        check_eq!(machine.run()?, Exit::Hlt);
        for page in 0..PAGES {
            let added = if page % 2 == 0 { 16 - page as u64 / 2 } else { 0 };
            check_eq!(memory.read_u64(page * PAGE), 0x55 + added, "round {round}, page {page} after a write");
        }
        machine.change_regs(|regs| regs.rip = layout::CODE as u64)?;
    }
    Ok(())
}
