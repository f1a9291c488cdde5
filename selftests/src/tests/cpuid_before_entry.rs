// SPDX-License-Identifier: GPL-2.0

//! KVM_SET_CPUID2 takes another list after a KVM_RUN in which the guest did not run, and none after one where it did.

use crate::ioctl::KVM_RUN;
use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

guest!(cpuid_before_entry, code16, "xor eax, eax", "cpuid", "hlt");

fn run(t: &Context) -> Outcome {
    let machine = Machine::real(&t.device()?, cpuid_before_entry())?;
    let vcpu = &machine.vcpu;
    let entry = |eax: u32| [kvm_cpuid_entry2 { eax, ebx: eax * 2, ..Default::default() }];
    check_eq!(vcpu.set_cpuid(&entry(1)), Ok(0));
    vcpu.set_immediate_exit(1);
    check_err!(vcpu.run(), EINTR);
    check_eq!(vcpu.set_cpuid(&entry(2)), Ok(0), "after immediate_exit");
    vcpu.set_immediate_exit(0);
    check_err!(vcpu.ioctl(KVM_RUN, 1), EINVAL);
    check_eq!(vcpu.set_cpuid(&entry(3)), Ok(0), "after a KVM_RUN that was refused");
    check_eq!(vcpu.run()?, Exit::Hlt);
    check_eq!(vcpu.regs()?.rbx, 6, "the guest sees the last one");
    check_err!(vcpu.set_cpuid(&entry(4)), EINVAL, "after a real one");
    check_eq!(vcpu.set_cpuid(&entry(3)), Ok(0), "the same again");
    Ok(())
}
