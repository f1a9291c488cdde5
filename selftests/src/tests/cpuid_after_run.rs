// SPDX-License-Identifier: GPL-2.0

//! After the first KVM_RUN the same CPUID may be set again, another one is EINVAL.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(cpuid_after_run, code16, "2: hlt", "jmp 2b");

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let machine = Machine::real(&device, cpuid_after_run())?;
    let cpuid = device.supported_cpuid(256)?;
    machine.vcpu.set_cpuid(&cpuid)?;
    check_eq!(machine.run()?, Exit::Hlt);
    check_eq!(machine.vcpu.set_cpuid(&cpuid), Ok(0), "the same");
    check_err!(machine.vcpu.set_cpuid(&cpuid[1..]), EINVAL, "one entry less");
    let mut other = cpuid.clone();
    other[0].ebx ^= 1;
    check_err!(machine.vcpu.set_cpuid(&other), EINVAL, "one bit changed");
    check_eq!(machine.run()?, Exit::Hlt);
    Ok(())
}
