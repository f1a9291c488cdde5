// SPDX-License-Identifier: GPL-2.0

//! RDTSCP reads the vCPU's own TSC_AUX; without the CPUID bit it is #UD.

use crate::emulator;
use crate::machine::enter_long;
use crate::prelude::*;
use crate::traps;

pub const TEST: Test = Test::new(20, run);

guest!(
    rdtscp,
    code64,
    "mov ecx, 0xc0000103",
    "mov eax, ebx",
    "xor edx, edx",
    "wrmsr",
    "2: rdtscp",
    "out 0x10, al",
    "jmp 2b",
);
guest!(rdtscp_only, code64, "rdtscp", "hlt");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let mut cpuid = device.supported_cpuid(256)?;
    let Some(leaf) =
        cpuid.iter_mut().find(|entry| entry.function == 0x8000_0001 && entry.edx & (1 << 27) != 0)
    else {
        skip!("no RDTSCP for guests here");
    };
    leaf.edx &= !(1 << 27);
    let without = Machine::long(&device, rdtscp_only())?;
    // RDPID shares the MSR.
    cpuid.iter_mut().filter(|entry| entry.function == 7).for_each(|entry| entry.ecx &= !(1 << 22));
    without.vcpu.set_cpuid(&cpuid)?;
    // QEMU's TCG has the intercept for RDTSCP and does not look at it (with KVM, too).
    if !emulator::is_tcg() {
        check_eq!(without.run_to_trap("RDTSCP without its CPUID bit")?.vector, traps::INVALID_OPCODE);
    }

    let machine = Machine::long(&device, rdtscp())?;
    let second = machine.vm.vcpu(1)?;
    second.set_cpuid(&device.supported_cpuid(256)?)?;
    enter_long(&second)?;
    for (index, vcpu) in [&machine.vcpu, &second].into_iter().enumerate() {
        let mut regs = vcpu.regs()?;
        regs.rbx = 0xABC0_0000 + index as u64;
        vcpu.set_regs(&regs)?;
    }
    for round in 0..t.repetitions(100) {
        for (index, vcpu) in [&machine.vcpu, &second].into_iter().enumerate() {
            check!(matches!(vcpu.run()?, Exit::Io { port: 0x10, .. }), "{:x?}", vcpu.exit());
            check_eq!(vcpu.regs()?.rcx, 0xABC0_0000 + index as u64, "round {round}, vCPU {index}");
        }
    }
    Ok(())
}
