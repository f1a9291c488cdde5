// SPDX-License-Identifier: GPL-2.0

//! DR0 to DR3, DR6 and DR7 are each vCPU's own, and a data breakpoint is a #DB in the guest.

use crate::emulator;
use crate::machine::enter_long;
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(
    debug_registers,
    code64,
    "mov dr0, rax",
    "mov dr1, rbx",
    "mov dr2, rcx",
    "mov dr3, rdx",
    "2: out 0x10, al",
    "mov rax, dr0",
    "mov rbx, dr1",
    "mov rcx, dr2",
    "mov rdx, dr3",
    "jmp 2b",
);
guest!(
    debug_breakpoint,
    code64,
    "mov dr0, rbx",
    "mov rax, 0xd0001",
    "mov dr7, rax",
    "mov eax, [rbx + 4]",
    "mov [rbx], eax",
    "nop",
);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::long(&device, debug_registers())?;
    let second = machine.vm.vcpu(1)?;
    second.set_cpuid(&device.supported_cpuid(256)?)?;
    enter_long(&second)?;
    let vcpus = [&machine.vcpu, &second];
    let value = |vcpu: usize, register: u64| 0x1111_0000 * (vcpu as u64 + 1) + register;
    for (index, vcpu) in vcpus.into_iter().enumerate() {
        let mut regs = vcpu.regs()?;
        [regs.rax, regs.rbx, regs.rcx, regs.rdx] = [0, 1, 2, 3].map(|register| value(index, register));
        vcpu.set_regs(&regs)?;
    }
    for _ in 0..20 {
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            check!(matches!(vcpu.run()?, Exit::Io { .. }));
            let regs = vcpu.regs()?;
            check_eq!(
                [regs.rax, regs.rbx, regs.rcx, regs.rdx],
                [0, 1, 2, 3].map(|register| value(index, register)),
                "vCPU {index}"
            );
        }
    }

    if emulator::is_tcg() {
        // That of QEMU 7.2 does not arm the breakpoints of a DR7 that comes with VMRUN.
        return Ok(());
    }
    let machine = Machine::long(&device, debug_breakpoint())?;
    machine.change_regs(|regs| regs.rbx = layout::DATA as u64)?;
    let trap = machine.run_to_trap("a write to where DR0 points")?;
    check_eq!(trap.vector, traps::DEBUG);
    // A trap: behind the write, and not at the read beside it.
    check_eq!(trap.rip, (layout::CODE + debug_breakpoint().len() - 1) as u64);
    Ok(())
}
