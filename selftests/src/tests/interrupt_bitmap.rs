// SPDX-License-Identifier: GPL-2.0

//! An interrupt in the `interrupt_bitmap` of KVM_SET_SREGS is delivered through the guest's IDT.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(interrupt_bitmap, code64, "sti", "2: inc rbx", "jmp 2b");
guest!(interrupt_bitmap_handler, code64, "mov rax, [rsp]", "out 0x20, al", "iretq");

const VECTOR: usize = 0x51;

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, interrupt_bitmap())?;
    let handler = layout::CODE + 0x800;
    machine.memory.write(handler, interrupt_bitmap_handler());
    let gate = handler as u64 | u64::from(layout::CODE64) << 16 | 0x8E << 40;
    machine.memory.write_u64(layout::IDT + 16 * VECTOR, gate);
    machine.change_regs(|regs| regs.rflags |= 1 << 9)?;
    machine.change_sregs(|sregs| sregs.interrupt_bitmap[VECTOR / 64] |= 1 << (VECTOR % 64))?;
    check_eq!(
        machine.vcpu.sregs()?.interrupt_bitmap[1],
        1 << (VECTOR % 64),
        "pending, as user space sees it"
    );
    let exit = machine.run()?;
    check!(matches!(exit, Exit::Io { port: 0x20, .. }), "{exit:x?}");
    check_eq!(machine.vcpu.regs()?.rax, layout::CODE as u64, "where the interrupt came");
    check_eq!(machine.vcpu.sregs()?.interrupt_bitmap, [0; 4], "delivered");
    Ok(())
}
