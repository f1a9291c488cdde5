// SPDX-License-Identifier: GPL-2.0

//! KVM_INTERRUPT wakes a halted guest and interrupts a running one, once each, with any vector.

use crate::host;
use crate::ioctl::KVM_INTERRUPT;
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(30, run);

guest!(interrupt, code64, "sti", "hlt", "out 0x11, al", "2: inc rbx", "jmp 2b");
guest!(interrupt_handler, code64, "inc r15", "mov rax, [rsp]", "out 0x20, al", "iretq");

const HANDLER: usize = layout::DATA;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, interrupt())?;
    let vcpu = &machine.vcpu;
    check_err!(vcpu.ioctl(KVM_INTERRUPT, 0), EFAULT);
    for vector in [256, 1 << 16, 1 << 31, u32::MAX] {
        check_err!(vcpu.interrupt(vector), EINVAL, "vector {vector:#x}");
    }
    machine.memory.write(HANDLER, interrupt_handler());
    // Vectors of exceptions, too: an interrupt there pushes no error code.
    let vectors = [0x51, 0x20, 0xFF, 0x80, 14, 8, 0];
    for vector in vectors {
        let gate = layout::IDT + 16 * vector as usize;
        let old = machine.memory.read_u64(gate);
        machine.memory.write_u64(gate, traps::gate(HANDLER));
        machine.change_regs(|regs| (regs.rip, regs.r15) = (layout::CODE as u64, 0))?;
        check_eq!(machine.run()?, Exit::Hlt, "before vector {vector:#x}");
        check_eq!(vcpu.interrupt(vector), Ok(0));
        handled(&machine, 1, vector)?;
        check_eq!(vcpu.regs()?.rax, layout::CODE as u64 + 2, "behind the HLT");
        let exit = machine.run()?;
        check!(matches!(exit, Exit::Io { port: 0x11, .. }), "back from the handler: {exit:x?}");
        // Out of the loop by a signal, and into the handler.
        interrupted_by_signal(&machine)?;
        check_eq!(vcpu.interrupt(vector), Ok(0));
        handled(&machine, 2, vector)?;
        interrupted_by_signal(&machine)?;
        check_eq!(vcpu.regs()?.r15, 2, "vector {vector:#x} came once each time");
        machine.memory.write_u64(gate, old);
    }
    Ok(())
}

fn handled(machine: &Machine, times: u64, vector: u32) -> Outcome {
    let exit = machine.run()?;
    check!(matches!(exit, Exit::Io { port: 0x20, .. }), "vector {vector:#x}: {exit:x?}");
    check_eq!(machine.vcpu.regs()?.r15, times, "vector {vector:#x}");
    Ok(())
}

fn interrupted_by_signal(machine: &Machine) -> Outcome {
    check_err!(host::under_signals(|| machine.run()), EINTR);
    Ok(())
}
