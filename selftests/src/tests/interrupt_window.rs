// SPDX-License-Identifier: GPL-2.0

//! `request_interrupt_window` ends KVM_RUN when the guest can take an interrupt, not before, and only if asked.

use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(10, run);

guest!(
    interrupt_window,
    code64,
    "2: cli",
    "out 0x11, al",
    "mov ecx, 100",
    "3: loop 3b",
    "sti",
    "inc rbx",
    "inc rbx",
    "out 0x12, al",
    "jmp 2b",
);
guest!(interrupt_window_handler, code64, "out 0x20, al", "iretq");

const VECTOR: usize = 0x51;

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, interrupt_window())?;
    let vcpu = &machine.vcpu;
    machine.memory.write(layout::DATA, interrupt_window_handler());
    machine.memory.write_u64(layout::IDT + 16 * VECTOR, traps::gate(layout::DATA));
    let area = vcpu.kvm_run();
    // SAFETY: the vCPU's area.
    let ask = |value: u8| unsafe { (&raw mut (*area).request_interrupt_window).write_volatile(value) };
    let at = |port: u16| -> Outcome {
        let exit = machine.run()?;
        check!(matches!(exit, Exit::Io { port: at, .. } if at == port), "port {port:#x}, not {exit:x?}");
        Ok(())
    };
    for round in 0..3 {
        at(0x11)?;
        // SAFETY: as above.
        check_eq!(unsafe { (*area).ready_for_interrupt_injection }, 0, "with interrupts off");
        ask(1);
        check_eq!(machine.run()?, Exit::Other(KVM_EXIT_IRQ_WINDOW_OPEN), "round {round}");
        // SAFETY: as above.
        check_eq!(unsafe { ((*area).ready_for_interrupt_injection, (*area).if_flag) }, (1, 1));
        check_eq!(vcpu.regs()?.rbx, 4 * round + 1, "one instruction behind STI");
        if round != 1 {
            check_eq!(vcpu.interrupt(VECTOR as u32), Ok(0));
            ask(0);
            at(0x20)?;
        }
        ask(0);
        at(0x12)?;
        check_eq!(vcpu.regs()?.rbx, 4 * round + 2);
        // Nobody asks: the same stretch without such an exit.
        at(0x11)?;
        at(0x12)?;
    }
    Ok(())
}
