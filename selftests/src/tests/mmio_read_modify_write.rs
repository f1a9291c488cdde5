// SPDX-License-Identifier: GPL-2.0

//! An instruction that reads and writes MMIO exits once for each, the write with the new value.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(mmio_rmw, code64, "or dword ptr [rbx], 0xf0", "xchg [rbx + 8], ax", "add [rbx + 0x10], al", "hlt",);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, mmio_rmw())?;
    machine.change_regs(|regs| (regs.rax, regs.rbx) = (0x1234, layout::MMIO))?;
    for (offset, old, new) in [
        (0, &[0x01, 0, 0, 0x80][..], &[0xF1, 0, 0, 0x80][..]),
        (8, &[0x78, 0x56], &[0x34, 0x12]),
        (0x10, &[0xFF], &[0x77]),
    ] {
        let address = layout::MMIO + offset;
        check_eq!(machine.run()?, Exit::MmioRead { address, length: old.len() });
        machine.vcpu.answer_mmio(old);
        check_eq!(machine.run()?, Exit::MmioWrite { address, data: new.to_vec() });
    }
    check_eq!(machine.run()?, Exit::Hlt);
    let regs = machine.vcpu.regs()?;
    check_eq!(regs.rax, 0x5678);
    check_eq!(regs.rflags & 1, 1, "0xff + 0x78 carries");
    Ok(())
}
