// SPDX-License-Identifier: GPL-2.0

//! An interrupt that user space sends comes whatever CR8 is: the interrupt controller, which CR8 is for, is there.

use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(10, run);

guest!(
    task_priority,
    code64,
    "cli",
    "mov eax, 15",
    "mov cr8, rax",
    "out 0x11, al",
    "sti",
    "nop",
    "nop",
    "hlt",
);
guest!(task_priority_handler, code64, "mov rax, cr8", "out 0x20, al", "iretq");

const VECTOR: usize = 0x51;

fn run(t: &Context) -> Outcome {
    // KVM injects it at once, and the entry fails.
    let machine = Machine::long(&t.rusthv()?, task_priority())?;
    machine.memory.write(layout::DATA, task_priority_handler());
    machine.memory.write_u64(layout::IDT + 16 * VECTOR, traps::gate(layout::DATA));
    check!(matches!(machine.run()?, Exit::Io { port: 0x11, .. }), "{:x?}", machine.vcpu.exit());
    check_eq!(machine.vcpu.interrupt(VECTOR as u32), Ok(0));
    let exit = machine.run()?;
    check!(matches!(exit, Exit::Io { port: 0x20, .. }), "the handler, not {exit:x?}");
    check_eq!(machine.vcpu.regs()?.rax, 15, "CR8 in the handler");
    check_eq!(machine.run()?, Exit::Hlt);
    Ok(())
}
