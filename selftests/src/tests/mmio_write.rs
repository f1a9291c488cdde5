// SPDX-License-Identifier: GPL-2.0

//! MMIO writes of 1, 2, 4 and 8 bytes exit once each, with address, width and data.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(
    mmio_write,
    code64,
    "mov [rbx], al",
    "mov [rbx + 2], ax",
    "mov [rbx + 4], eax",
    "mov [rbx + 8], rax",
    "mov dword ptr [rbx + 0x10], 0x12345678",
    "hlt",
);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, mmio_write())?;
    let value = 0x8877_6655_4433_2211_u64;
    machine.change_regs(|regs| (regs.rax, regs.rbx) = (value, layout::MMIO))?;
    for (offset, length) in [(0, 1), (2, 2), (4, 4), (8, 8)] {
        let data = value.to_le_bytes()[..length].to_vec();
        check_eq!(machine.run()?, Exit::MmioWrite { address: layout::MMIO + offset, data });
    }
    let data = 0x1234_5678_u32.to_le_bytes().to_vec();
    check_eq!(machine.run()?, Exit::MmioWrite { address: layout::MMIO + 0x10, data });
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(machine.vcpu.regs()?.rax, value);
    Ok(())
}
