// SPDX-License-Identifier: GPL-2.0

//! Debug registers are the kernel's: a user program of the guest that reads or writes one gets #GP.

use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(
    debug_registers_user,
    code64,
    // To user mode, at RAX.
    "push 0x3b",
    "push 0x17000",
    "push 0x202",
    "push 0x43",
    "push rax",
    "iretq",
);
guest!(debug_read_user, code64, "mov rax, dr7", "ud2");
guest!(debug_write_user, code64, "mov dr0, rax", "ud2");
guest!(debug_control_user, code64, "mov dr7, rbx", "ud2");
guest!(debug_kernel, code64, "mov rbx, dr0", "mov rcx, dr7", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    for user in [debug_read_user(), debug_write_user(), debug_control_user()] {
        let machine = Machine::long(&device, debug_registers_user())?;
        machine.memory.write(layout::DATA, user);
        machine.change_regs(|regs| (regs.rax, regs.rbx) = (layout::DATA as u64, 0x401))?;
        let trap = machine.run_to_trap("MOV DR in user mode")?;
        check_eq!(
            (trap.vector, trap.error, trap.rip, trap.cs),
            (traps::GENERAL_PROTECTION, 0, layout::DATA as u64, 0x43)
        );
        // Nothing has come of it.
        machine.load(debug_kernel());
        machine.change_sregs(|sregs| {
            (sregs.cs.selector, sregs.cs.dpl) = (layout::CODE64, 0);
            (sregs.ss.selector, sregs.ss.dpl) = (layout::DATA_FLAT, 0);
        })?;
        machine.change_regs(|regs| regs.rip = layout::CODE as u64)?;
        check_eq!(machine.run()?, Exit::Hlt);
        let regs = machine.vcpu.regs()?;
        check_eq!((regs.rbx, regs.rcx), (0, 0x400), "DR0 and DR7");
    }
    Ok(())
}
