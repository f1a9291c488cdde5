// SPDX-License-Identifier: GPL-2.0

//! An interrupt whose delivery was interrupted shows in KVM_GET_SREGS, survives KVM_SET_REGS, and arrives once.

use crate::memory::PAGE;
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(delivery_resumed, code64, "2: jmp 2b");
guest!(delivery_handler, code64, "inc r15", "mov rax, [rsp]", "out 0x20, al", "hlt");

const VECTOR: usize = 0x51;
const OTHER: usize = 0xA3;

fn run(t: &Context) -> Outcome {
    // kvm_intel does not come back from this in Bochs 2.7.
    let device = t.rusthv()?;
    for other in [false, true] {
        let machine = Machine::long(&device, delivery_resumed())?;
        machine.memory.write(layout::DATA, delivery_handler());
        machine.change_sregs(|sregs| sregs.idt.base = layout::MMIO)?;
        machine.vcpu.interrupt(VECTOR as u32)?;
        let exit = machine.run()?;
        check!(
            matches!(exit, Exit::InternalError { suberror: KVM_INTERNAL_ERROR_DELIVERY_EV, .. }),
            "no memory at the IDT: {exit:x?}"
        );
        let bitmap = |vector: usize| {
            let mut bitmap = [0; 4];
            bitmap[vector / 64] = 1 << (vector % 64);
            bitmap
        };
        check_eq!(machine.vcpu.sregs()?.interrupt_bitmap, bitmap(VECTOR), "on its way");
        machine.change_regs(|regs| regs.rbx = 7)?;
        check_eq!(machine.vcpu.sregs()?.interrupt_bitmap, bitmap(VECTOR), "after KVM_SET_REGS");
        // What an IDT is there now, with one gate.
        let memory = Memory::new(PAGE)?;
        machine.vm.map(1, layout::MMIO, &memory)?;
        let mut vector = VECTOR;
        if other {
            // User space sets another interrupt in its place.
            vector = OTHER;
            machine.change_sregs(|sregs| sregs.interrupt_bitmap = bitmap(OTHER))?;
            check_eq!(machine.vcpu.sregs()?.interrupt_bitmap, bitmap(OTHER), "replaced");
        }
        memory.write_u64(16 * vector, traps::gate(layout::DATA));
        let exit = machine.run()?;
        check!(matches!(exit, Exit::Io { port: 0x20, .. }), "the handler, not {exit:x?}");
        let regs = machine.vcpu.regs()?;
        check_eq!((regs.rax, regs.rbx), (layout::CODE as u64, 7), "interrupted at the loop");
        check_eq!(machine.vcpu.sregs()?.interrupt_bitmap, [0; 4], "delivered");
        check_eq!(machine.run()?, Exit::Hlt);
        check_eq!(machine.vcpu.regs()?.r15, 1, "once");
    }
    Ok(())
}
