// SPDX-License-Identifier: GPL-2.0

//! OUTS from an address that the guest does not map is a #PF in the guest, in the middle of a REP too.

use crate::machine::{PTE_ALL, PTE_LARGE, PTE_PRESENT};
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(10, run);

guest!(io_string_fault, code64, "rep outsb", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, io_string_fault())?;
    // The guest's memory ends at 2 MiB; the next large page is not present in its tables.
    let entry = layout::DIRECTORIES + 8;
    machine.memory.write_u64(entry, (0x20_0000 | PTE_LARGE | PTE_ALL) & !PTE_PRESENT);
    machine.memory.write(0x1F_FFFD, &[7, 8, 9]);
    machine.change_regs(|regs| (regs.rcx, regs.rsi, regs.rdx) = (5, 0x1F_FFFD, 0x10))?;
    let mut seen = Vec::new();
    let trap = loop {
        match machine.run()? {
            Exit::Io { direction: Direction::Out, port: 0x10, size: 1, data, .. } => seen.extend(data),
            other => match traps::trap(&machine, &other)? {
                Some(trap) => break trap,
                None => fail!("unexpected {other:x?}"),
            },
        }
    };
    check_eq!(seen, [7, 8, 9], "what came before the fault");
    check_eq!((trap.vector, trap.error, trap.rip), (traps::PAGE_FAULT, 0, layout::CODE as u64));
    check_eq!(machine.vcpu.sregs()?.cr2, 0x20_0000);
    let regs = machine.vcpu.regs()?;
    check_eq!((regs.rcx, regs.rsi), (2, 0x20_0000), "the instruction stands at the element that faults");
    Ok(())
}
