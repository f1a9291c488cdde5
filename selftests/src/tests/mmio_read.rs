// SPDX-License-Identifier: GPL-2.0

//! MMIO reads of 1, 2, 4 and 8 bytes exit once each, with address and width, and load what user space answers.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(
    mmio_read,
    code64,
    "mov al, [rbx]",
    "mov ax, [rbx + 2]",
    "mov eax, [rbx + 4]",
    "mov rax, [rbx + 8]",
    "hlt",
);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, mmio_read())?;
    let start = 0x1111_2222_3333_4444;
    machine.change_regs(|regs| (regs.rax, regs.rbx) = (start, layout::MMIO))?;
    let answer = 0x8877_6655_4433_2211_u64.to_le_bytes();
    let loaded = [start & !0xFF | 0x11, start & !0xFFFF | 0x2211, 0x4433_2211, 0x8877_6655_4433_2211];
    for (index, (offset, length)) in [(0, 1), (2, 2), (4, 4), (8, 8)].into_iter().enumerate() {
        check_eq!(machine.run()?, Exit::MmioRead { address: layout::MMIO + offset, length });
        machine.vcpu.answer_mmio(&answer[..length]);
        machine.vcpu.set_immediate_exit(1);
        check_err!(machine.run(), EINTR);
        machine.vcpu.set_immediate_exit(0);
        check_eq!(machine.vcpu.regs()?.rax, loaded[index], "RAX after {length} bytes");
        machine.change_regs(|regs| regs.rax = start)?;
    }
    check_eq!(machine.run()?, Exit::Hlt);
    Ok(())
}
