// SPDX-License-Identifier: GPL-2.0

//! A 32-bit guest with two-level paging: 4 KiB and 4 MiB pages, a write-protected one, and a change of tables.

use crate::machine::*;
use crate::prelude::*;

pub const TEST: Test = Test::new(20, run);

guest!(
    paging_32,
    code32,
    "mov eax, [0x800000]",
    "mov ebx, [0xc00000]",
    "mov ecx, 0x31000",
    "mov cr3, ecx",
    "mov edx, [0x800000]",
    "mov esi, cr3",
    "hlt",
);

const FIRST: usize = 0x30000;
const SECOND: usize = 0x31000;
const TABLE: usize = 0x32000;
const CR4_PSE: u64 = 1 << 4;

fn run(t: &Context) -> Outcome {
    let machine = Machine::protected(&t.device()?, paging_32())?;
    let entry = |at: usize, value: u32| machine.memory.write(at, &value.to_le_bytes());
    for directory in [FIRST, SECOND] {
        entry(directory, 0x83);
    }
    // 8 MiB: a small page in the first, another in the second. 12 MiB: a large page onto 0.
    entry(FIRST + 8, TABLE as u32 | 3);
    entry(TABLE, 0x40000 | 3);
    entry(FIRST + 12, 0x83);
    entry(SECOND + 8, (TABLE + 0x1000) as u32 | 3);
    entry(TABLE + 0x1000, 0x41000 | 3);
    machine.memory.write(0x40000, &0x1111_1111u32.to_le_bytes());
    machine.memory.write(0x41000, &0x2222_2222u32.to_le_bytes());
    machine.memory.write(0, &0x3333_3333u32.to_le_bytes());
    machine.change_sregs(|sregs| {
        sregs.cr3 = FIRST as u64;
        sregs.cr4 |= CR4_PSE;
        sregs.cr0 |= CR0_PG;
    })?;
    check_eq!(machine.run()?, Exit::Hlt);
    let regs = machine.vcpu.regs()?;
    check_eq!((regs.rax, regs.rbx, regs.rdx), (0x1111_1111, 0x3333_3333, 0x2222_2222));
    check_eq!(regs.rsi, SECOND as u64);
    // The processor marked what it used.
    check_eq!(machine.memory.read_u32(TABLE) & 0x60, 0x20, "accessed, not dirty");
    Ok(())
}
