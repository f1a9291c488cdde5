// SPDX-License-Identifier: GPL-2.0

//! The same host memory in two slots is one memory for the guest, and what it writes the VMM sees.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(
    slot_alias,
    code64,
    "mov qword ptr [0x400000], 0x1111",
    "mov rax, [0x600000]",
    "add qword ptr [0x600000], 0x2222",
    "mov rbx, [0x400000]",
    "hlt",
);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, slot_alias())?;
    let memory = Memory::new(0x1000)?;
    machine.vm.map(1, 0x40_0000, &memory)?;
    machine.vm.map(2, 0x60_0000, &memory)?;
    check_eq!(machine.run()?, Exit::Hlt);
    let regs = machine.vcpu.regs()?;
    check_eq!((regs.rax, regs.rbx), (0x1111, 0x3333));
    check_eq!(memory.read_u64(0), 0x3333);
    Ok(())
}
