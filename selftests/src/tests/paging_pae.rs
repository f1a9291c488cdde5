// SPDX-License-Identifier: GPL-2.0

//! A 32-bit PAE guest: its four directory pointers are loaded by SET_SREGS and by MOV CR3, and kept over exits.

use crate::machine::*;
use crate::prelude::*;

pub const TEST: Test = Test::new(20, run);

guest!(
    paging_pae,
    code32,
    "mov eax, [0x40000000]",
    "out 0x10, al",
    "mov ebx, [0xc0000000]",
    "mov ecx, 0x30020",
    "mov cr3, ecx",
    "mov edx, [0x40000000]",
    "out 0x11, al",
    "mov esi, [0xc0000000]",
    "hlt",
);

const POINTERS: usize = 0x30000;
const DIRECTORIES: usize = 0x31000;

fn run(t: &Context) -> Outcome {
    let machine = Machine::protected(&t.device()?, paging_pae())?;
    // Two sets of pointers, 32 bytes apart; directory 0 maps the first GiB onto itself in both.
    for set in 0..2 {
        for index in 0..4 {
            let directory = DIRECTORIES + if index == 0 { 0 } else { 0x1000 * (4 * set + index) };
            machine.memory.write_u64(POINTERS + 32 * set + 8 * index, directory as u64 | PTE_PRESENT);
        }
    }
    for index in 0..512 {
        machine.memory.write_u64(DIRECTORIES + 8 * index, (index as u64) << 21 | PTE_LARGE | PTE_ALL);
    }
    // Each set sees another page at 1 GiB and at 3 GiB.
    for (set, index, page) in [(0, 1, 0x50000), (0, 3, 0x51000), (1, 1, 0x52000), (1, 3, 0x53000)] {
        let directory = DIRECTORIES + 0x1000 * (4 * set + index);
        let table = 0x60000 + page - 0x50000;
        machine.memory.write_u64(directory, table as u64 | PTE_ALL);
        machine.memory.write_u64(table, page as u64 | PTE_ALL);
        machine.memory.write(page, &(page as u32).to_le_bytes());
    }
    machine.change_sregs(|sregs| {
        sregs.cr3 = POINTERS as u64;
        sregs.cr4 |= CR4_PAE;
        sregs.cr0 |= CR0_PG;
    })?;
    check!(matches!(machine.run()?, Exit::Io { port: 0x10, .. }), "{:x?}", machine.vcpu.exit());
    // A round trip of the state in the middle changes nothing.
    machine.change_sregs(|_| ())?;
    check!(matches!(machine.run()?, Exit::Io { port: 0x11, .. }), "{:x?}", machine.vcpu.exit());
    check_eq!(machine.run()?, Exit::Hlt);
    let regs = machine.vcpu.regs()?;
    check_eq!((regs.rax, regs.rbx, regs.rdx, regs.rsi), (0x50000, 0x51000, 0x52000, 0x53000));
    Ok(())
}
