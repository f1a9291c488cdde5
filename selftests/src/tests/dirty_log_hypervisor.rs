// SPDX-License-Identifier: GPL-2.0

//! What the hypervisor writes for the guest is in the dirty log: INS, emulated stores, flags in the guest's page tables.

use crate::machine::{PTE_ALL, PTE_LARGE};
use crate::memory::PAGE;
use crate::prelude::*;

pub const TEST: Test = Test::new(30, run);

const GPA: u64 = 0x40_0000;
const PAGES: usize = 64;
/// Linear addresses from here on are translated by tables in the logged slot.
const WINDOW: u64 = 0x1_0000_0000;
const DIRECTORY: usize = 40;
const TABLE: usize = 41;

guest!(dirty_log_insb, code64, "mov edx, 0x10", "rep insb", "hlt");
guest!(dirty_log_movsq, code64, "movsq", "hlt");
guest!(dirty_log_add, code64, "add [rdi], eax", "hlt");
guest!(dirty_log_push, code64, "push qword ptr [rsi]", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, dirty_log_insb())?;
    let memory = Memory::new(PAGES * PAGE)?;
    memory.fill(0, memory.size(), 0);
    machine.vm.set_slot(1, KVM_MEM_LOG_DIRTY_PAGES, GPA, memory.size() as u64, memory.address())?;
    let at = |page: usize, offset: u64| GPA + (page * PAGE) as u64 + offset;
    let written = |code: &[u8], change: &dyn Fn(&mut kvm_regs)| {
        machine.load(code);
        machine.change_regs(|regs| {
            (regs.rip, regs.rsi, regs.rcx) = (layout::CODE as u64, layout::MMIO, 16);
            regs.rsp = layout::STACK as u64;
            change(regs);
        })?;
        loop {
            match machine.run()? {
                Exit::Hlt => return Ok(machine.vm.dirty_pages(1, PAGES)?),
                Exit::MmioRead { length, .. } => machine.vcpu.answer_mmio(&vec![0x5A; length]),
                Exit::MmioWrite { .. } => {}
                Exit::Io { data, .. } => machine.vcpu.answer_io(&vec![0xA5; data.len()]),
                other => return Err(Failure::failed(format!("{other:x?}"))),
            }
        }
    };
    // Twice, as a page is mapped and writable for the guest at the second time only.
    for round in 0..2 {
        check_eq!(written(dirty_log_insb(), &|regs| regs.rdi = at(3, 0x100))?, [3], "INS, {round}");
        check_eq!(memory.read(3 * PAGE + 0x100, 16), [0xA5; 16]);
        let across = written(dirty_log_insb(), &|regs| regs.rdi = at(4, 0xFF8))?;
        check_eq!(across, [4, 5], "INS across pages, {round}");
        check_eq!(written(dirty_log_movsq(), &|regs| regs.rdi = at(7, 8))?, [7], "MOVS, {round}");
        check_eq!(memory.read(7 * PAGE + 8, 8), [0x5A; 8]);
        let across = written(dirty_log_movsq(), &|regs| regs.rdi = at(8, 0xFFC))?;
        check_eq!(across, [8, 9], "MOVS across pages, {round}");
        check_eq!(written(dirty_log_push(), &|regs| regs.rsp = at(11, 0))?, [10], "PUSH, {round}");
        check_eq!(written(dirty_log_add(), &|regs| regs.rdi = layout::MMIO)?, [0; 0], "ADD to a device");
    }

    // A device behind a page of its own, whose tables are in the slot: who emulates the access
    // has to walk them, and sets the flags that the processor could not.
    let entry = (WINDOW >> 30) as usize;
    machine.memory.write_u64(layout::PDPT + 8 * entry, at(DIRECTORY, 0) | PTE_ALL);
    memory.write_u64(DIRECTORY * PAGE, at(TABLE, 0) | PTE_ALL);
    memory.write_u64(DIRECTORY * PAGE + 8, layout::MMIO & !0x1F_FFFF | PTE_LARGE | PTE_ALL);
    for page in 0..4 {
        memory.write_u64(TABLE * PAGE + 8 * page, at(20 + page, 0) | PTE_ALL);
    }
    let copied = written(dirty_log_movsq(), &|regs| {
        (regs.rsi, regs.rdi) = (WINDOW + (2 << 20), WINDOW + 0x1010);
    })?;
    for page in [21, DIRECTORY, TABLE] {
        check!(copied.contains(&page), "page {page}: {copied:?}");
    }
    check_eq!(memory.read_u64(TABLE * PAGE + 8) & 0x60, 0x60, "accessed and dirty");
    check_eq!(memory.read_u64(DIRECTORY * PAGE + 8) & 0x20, 0x20, "accessed");
    check_eq!(memory.read(21 * PAGE + 0x10, 8), [0x5A; 8]);
    Ok(())
}
