// SPDX-License-Identifier: GPL-2.0

//! An access that starts in memory and ends in MMIO splits there: RAM's part is RAM, the rest exits.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(mmio_memory_edge, code64, "mov [rbx], rax", "mov rdx, [rbx]", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, mmio_memory_edge())?;
    let end = layout::SIZE as u64;
    machine.change_regs(|regs| (regs.rax, regs.rbx) = (0x8877_6655_4433_2211, end - 3))?;
    let data = vec![0x44, 0x55, 0x66, 0x77, 0x88];
    check_eq!(machine.run()?, Exit::MmioWrite { address: end, data });
    check_eq!(machine.run()?, Exit::MmioRead { address: end, length: 5 });
    check_eq!(machine.memory.read(layout::SIZE - 3, 3), [0x11, 0x22, 0x33], "the part in memory");
    machine.vcpu.answer_mmio(&[0xA1, 0xA2, 0xA3, 0xA4, 0xA5]);
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(machine.vcpu.regs()?.rdx, 0xA5A4_A3A2_A133_2211);
    Ok(())
}
