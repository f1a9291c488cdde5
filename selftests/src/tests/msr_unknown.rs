// SPDX-License-Identifier: GPL-2.0

//! RDMSR and WRMSR of an MSR that the guest does not have are #GP, on both bitmap ranges and between.

use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

const RF: u64 = 1 << 16;

guest!(msr_unknown_read, code64, "rdmsr", "hlt");
guest!(msr_unknown_write, code64, "wrmsr", "hlt");

fn run(t: &Context) -> Outcome {
    for guest in [msr_unknown_read(), msr_unknown_write()] {
        let machine = Machine::long(&t.device()?, guest)?;
        for msr in [
            0x7F,
            0x4F0,
            0x1FFF,
            0x2000,
            0x1234_5678,
            0x4000_1000,
            0xBFFF_FFFF,
            0xC000_1FFF,
            0xC000_2000,
            0xFFFF_FFFF,
        ] {
            let start = layout::CODE as u64;
            machine.change_regs(|regs| {
                (regs.rcx, regs.rax, regs.rdx, regs.rip, regs.rsp) = (msr, 0, 0, start, layout::STACK as u64);
            })?;
            let trap = machine.run_to_trap(&format!("MSR {msr:#x}"))?;
            check_eq!(
                (trap.vector, trap.error, trap.rip),
                (traps::GENERAL_PROTECTION, 0, start),
                "MSR {msr:#x}"
            );
            check_eq!(trap.rflags & RF, RF, "a fault: its handler comes back to the instruction");
        }
    }
    Ok(())
}
