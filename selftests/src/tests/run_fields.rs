// SPDX-License-Identifier: GPL-2.0

//! What an exit tells in `kvm_run` beside its reason: IF, CR8 and the APIC base; CR8 is taken from there.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(run_fields, code64, "sti", "nop", "out 0x10, al", "cli", "mov rax, cr8", "out 0x11, al", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::long(&t.device()?, run_fields())?;
    let area = machine.vcpu.kvm_run();
    // SAFETY: the vCPU's area.
    let fields = || unsafe {
        let area = area.read_volatile();
        (area.if_flag, area.cr8, area.ready_for_interrupt_injection)
    };
    // SAFETY: the vCPU's area.
    let set_cr8 = |value: u64| unsafe { (&raw mut (*area).cr8).write_volatile(value) };
    check!(matches!(machine.run()?, Exit::Io { port: 0x10, .. }));
    check_eq!(fields(), (1, 0, 1), "IF, CR8, ready with interrupts on");
    // SAFETY: the vCPU's area.
    check_eq!(unsafe { area.read_volatile() }.apic_base, machine.vcpu.sregs()?.apic_base);
    // Without an interrupt controller in the kernel the TPR is handed over here.
    set_cr8(7);
    check!(matches!(machine.run()?, Exit::Io { port: 0x11, .. }));
    check_eq!(machine.vcpu.regs()?.rax, 7, "CR8 as the guest reads it");
    check_eq!(fields(), (0, 7, 0), "IF, CR8, ready with interrupts off");
    check_eq!(machine.vcpu.sregs()?.cr8, 7);
    set_cr8(16);
    check_err!(machine.run(), EINVAL, "a CR8 that is none");
    set_cr8(0);
    // What user space has changed meanwhile is there after a run that comes to nothing, too.
    machine.vcpu.set_immediate_exit(1);
    for (flags, expected) in [(0x202, (1, 0, 1)), (2, (0, 0, 0))] {
        machine.change_regs(|regs| regs.rflags = flags)?;
        check_err!(machine.run(), EINTR);
        check_eq!(fields(), expected, "with RFLAGS {flags:#x}");
    }
    machine.vcpu.set_immediate_exit(0);
    check_eq!(machine.run()?, Exit::Hlt);
    Ok(())
}
