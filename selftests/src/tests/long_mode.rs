// SPDX-License-Identifier: GPL-2.0

//! A 64-bit paged guest uses 64-bit registers and addresses, and reports through a port.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(
    long_mode,
    code64,
    "movabs rax, 0x1122334455667788",
    "mov [0x20000], rax",
    "lea rbx, [rip + 2f]",
    "mov r8, [rbx]",
    "add r8, rax",
    "mov eax, r8d",
    "out 0x42, eax",
    "shr r8, 32",
    "mov eax, r8d",
    "out 0x43, eax",
    "hlt",
    "2: .quad 0x1111111111111111",
);

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, long_mode())?;
    for (port, value) in [(0x42, 0x6677_8899u32), (0x43, 0x2233_4455)] {
        let data = value.to_le_bytes().to_vec();
        let expected = Exit::Io { direction: Direction::Out, port, size: 4, count: 1, data };
        check_eq!(machine.run()?, expected);
    }
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(machine.memory.read_u64(layout::DATA), 0x1122_3344_5566_7788);
    Ok(())
}
