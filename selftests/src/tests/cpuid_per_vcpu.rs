// SPDX-License-Identifier: GPL-2.0

//! Each vCPU has a CPUID of its own, and none before KVM_SET_CPUID2.

use crate::machine::enter_real;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(cpuid_per_vcpu, code16, "mov eax, 0x40000001", "cpuid", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::real(&t.device()?, cpuid_per_vcpu())?;
    let others = [machine.vm.vcpu(1)?, machine.vm.vcpu(2)?];
    for (vcpu, value) in others.iter().zip([0x111, 0x222]) {
        let entry = kvm_cpuid_entry2 { function: 0x4000_0001, eax: value, ..Default::default() };
        vcpu.set_cpuid(&[entry])?;
        enter_real(vcpu)?;
    }
    for (vcpu, expected) in [(&machine.vcpu, 0), (&others[0], 0x111), (&others[1], 0x222)] {
        check_eq!(vcpu.run()?, Exit::Hlt);
        check_eq!(vcpu.regs()?.rax, expected);
    }
    Ok(())
}
