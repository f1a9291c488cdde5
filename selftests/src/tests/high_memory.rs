// SPDX-License-Identifier: GPL-2.0

//! Memory far above 4 GiB in the guest, and slots whose ends are not at large-page boundaries.

use crate::machine::{PTE_ALL, PTE_LARGE};
use crate::prelude::*;

pub const TEST: Test = Test::new(20, run);

guest!(high_memory, code64, "mov [rbx], rax", "mov rdx, [rbx]", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, high_memory())?;
    for (slot, gpa) in [(1, 0x1_0000_0000u64), (2, 0x7_FFE0_0000), (3, 0x10_0000_0000 - 0x20_0000)] {
        let memory = Memory::new(0x20_0000 - 0x3000)?;
        machine.vm.map(slot, gpa + 0x1000, &memory)?;
        // Virtual 1 GiB is this large page.
        let entry = layout::DIRECTORIES + 0x1000;
        machine.memory.write_u64(entry, gpa | PTE_LARGE | PTE_ALL);
        machine.change_sregs(|sregs| sregs.cr3 = layout::PML4 as u64)?;
        for offset in [0x1000, 0x2008, 0x1F_DFF8] {
            let value = gpa | offset | 0x5000_0000_0000_0000;
            machine.change_regs(|regs| {
                (regs.rip, regs.rax, regs.rbx) = (layout::CODE as u64, value, 0x4000_0000 + offset);
            })?;
            check_eq!(machine.run()?, Exit::Hlt, "{gpa:#x} + {offset:#x}");
            check_eq!(machine.vcpu.regs()?.rdx, value);
            check_eq!(memory.read_u64(offset as usize - 0x1000), value);
        }
        for offset in [0, 0xFF8, 0x1F_E000, 0x1F_FFF8] {
            machine.change_regs(|regs| {
                (regs.rip, regs.rax, regs.rbx) = (layout::CODE as u64, 1, 0x4000_0000 + offset);
            })?;
            check!(matches!(machine.run()?, Exit::MmioWrite { address, .. } if address == gpa + offset));
        }
        machine.vcpu.set_immediate_exit(1);
        check_err!(machine.run(), EINTR);
        machine.vcpu.set_immediate_exit(0);
        machine.vm.set_slot(slot, 0, 0, 0, 0)?;
    }
    Ok(())
}
