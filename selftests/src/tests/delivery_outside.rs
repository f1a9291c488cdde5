// SPDX-License-Identifier: GPL-2.0

//! An event whose IDT, TSS or stack lies where no memory is leaves as KVM_INTERNAL_ERROR_DELIVERY_EV, not as MMIO.

use crate::memory::PAGE;
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(delivery_exception, code64, "ud2");
guest!(delivery_software, code64, "int 0x51");
guest!(delivery_interrupt, code64, "2: jmp 2b");

const VECTOR: usize = 0x51;

/// Where the delivery meets nothing.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Missing {
    Idt,
    Tss,
    Stack,
}

fn run(t: &Context) -> Outcome {
    // kvm_intel does not come back from this in Bochs 2.7.
    let device = t.rusthv()?;
    let stack = Memory::new(PAGE)?;
    for (vector, code) in
        [(6, delivery_exception()), (VECTOR, delivery_software()), (VECTOR, delivery_interrupt())]
    {
        for missing in [Missing::Idt, Missing::Tss, Missing::Stack] {
            let what = format!("vector {vector:#x}, no {missing:?}");
            let machine = Machine::long(&device, code)?;
            machine.memory.write_u64(layout::IDT + 16 * VECTOR, traps::gate(layout::STUBS));
            machine.change_sregs(|sregs| match missing {
                Missing::Idt => sregs.idt.base = layout::MMIO,
                Missing::Tss => sregs.tr.base = layout::MMIO,
                Missing::Stack => {}
            })?;
            match missing {
                Missing::Idt => {}
                // The handler's stack comes from the first entry of the interrupt stack table.
                Missing::Tss => {
                    for vector in [6, VECTOR] {
                        let at = layout::IDT + 16 * vector;
                        machine.memory.write_u64(at, machine.memory.read_u64(at) | 1 << 32);
                    }
                }
                Missing::Stack => machine.change_regs(|regs| regs.rsp = layout::MMIO + 0x1000)?,
            }
            if code == delivery_interrupt() {
                machine.vcpu.interrupt(VECTOR as u32)?;
            }
            for attempt in ["first", "second"] {
                let exit = machine.run()?;
                let Exit::InternalError { suberror, data } = exit else { fail!("{what}: {exit:x?}") };
                check_eq!(suberror, KVM_INTERNAL_ERROR_DELIVERY_EV, "{what}, {attempt}");
                // The event, the exit's reason and its qualification, the guest-physical address.
                check!(data.len() >= 4, "{what}: only {} words of data", data.len());
                check_eq!(data[0] & 0xFF, vector as u64, "{what}: the vector");
                check_eq!(data[0] >> 31 & 1, 1, "{what}: an event there is");
                check_eq!(data[3] >> 12, layout::MMIO >> 12, "{what}: where");
                check_eq!(machine.vcpu.regs()?.rip, layout::CODE as u64, "{what}: nothing was delivered");
            }
            // With everything in its place the same event arrives.
            machine.change_sregs(|sregs| {
                (sregs.idt.base, sregs.tr.base) = (layout::IDT as u64, layout::TSS as u64);
            })?;
            machine.memory.write_u64(layout::TSS + 0x24, layout::TRAP_STACK as u64);
            if missing == Missing::Stack {
                machine.vm.map(1, layout::MMIO, &stack)?;
            }
            let exit = machine.run()?;
            check!(matches!(exit, Exit::Io { port: 0xE0, .. }), "{what}: the handler, not {exit:x?}");
        }
    }
    Ok(())
}
