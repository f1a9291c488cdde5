// SPDX-License-Identifier: GPL-2.0

//! XSETBV with a value that the architecture forbids is #GP, and without CR4.OSXSAVE it is #UD.

use crate::machine::CR4_OSXSAVE;
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(xsetbv, code64, "xsetbv", "xor ecx, ecx", "xgetbv", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let cpuid = device.supported_cpuid(256)?;
    if !cpuid.iter().any(|entry| entry.function == 1 && entry.ecx & (1 << 26) != 0) {
        skip!("no XSAVE for guests here");
    }
    let machine = Machine::long(&device, xsetbv())?;
    check_eq!(machine.run_to_trap("without OSXSAVE")?.vector, traps::INVALID_OPCODE);
    for (what, index, value) in [
        ("x87 off", 0, 0u64),
        ("x87 off, SSE on", 0, 2),
        ("AVX without SSE", 0, 5),
        ("a bit that is not there", 0, 1 << 62 | 1),
        ("another XCR", 1, 1),
        ("an XCR that is none", 0xFFFF_FFFF, 1),
    ] {
        let machine = Machine::long(&device, xsetbv())?;
        machine.change_sregs(|sregs| sregs.cr4 |= CR4_OSXSAVE)?;
        machine.change_regs(|regs| {
            (regs.rcx, regs.rax, regs.rdx) = (index, value & 0xFFFF_FFFF, value >> 32);
        })?;
        let trap = machine.run_to_trap(what)?;
        check_eq!(
            (trap.vector, trap.error, trap.rip),
            (traps::GENERAL_PROTECTION, 0, layout::CODE as u64),
            "{what}"
        );
    }
    let machine = Machine::long(&device, xsetbv())?;
    machine.change_sregs(|sregs| sregs.cr4 |= CR4_OSXSAVE)?;
    machine.change_regs(|regs| (regs.rcx, regs.rax, regs.rdx) = (0, 3, 0))?;
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(machine.vcpu.regs()?.rax, 3);
    Ok(())
}
