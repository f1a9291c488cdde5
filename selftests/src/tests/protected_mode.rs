// SPDX-License-Identifier: GPL-2.0

//! A 32-bit protected-mode guest calls, pushes and pops, and reports through a port.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(
    protected_mode,
    code32,
    "mov ecx, 10",
    "xor eax, eax",
    "2: push ecx",
    "call 3f",
    "pop ecx",
    "loop 2b",
    "out 0x42, eax",
    "hlt",
    "3: add eax, [esp + 4]",
    "ret",
);

fn run(t: &Context) -> Outcome {
    let machine = Machine::protected(&t.device()?, protected_mode())?;
    let expected = Exit::Io {
        direction: Direction::Out,
        port: 0x42,
        size: 4,
        count: 1,
        data: 55u32.to_le_bytes().to_vec(),
    };
    check_eq!(machine.run()?, expected);
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(machine.vcpu.regs()?.rsp, layout::STACK as u64);
    Ok(())
}
