// SPDX-License-Identifier: GPL-2.0

//! A VM takes as many vCPUs as KVM_CAP_NR_VCPUS recommends, each with an area of its own.

use crate::prelude::*;

pub const TEST: Test = Test::new(60, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    let recommended = device.check_extension(KVM_CAP_NR_VCPUS)? as u64;
    // Enough to pass every small limit, and bounded on large machines.
    let count = recommended.min(64);
    let vm = device.vm()?;
    let vcpus: Vec<Vcpu> = (0..count).map(|id| vm.vcpu(id)).collect::<Result<_, _>>()?;
    for (index, vcpu) in vcpus.iter().enumerate() {
        vcpu.set_regs(&kvm_regs { rax: index as u64, rflags: 2, ..Default::default() })?;
        vcpu.set_immediate_exit(index as u8);
    }
    for (index, vcpu) in vcpus.iter().enumerate() {
        check_eq!(vcpu.regs()?.rax, index as u64);
        // SAFETY: a live vCPU's area.
        check_eq!(unsafe { (*vcpu.kvm_run()).immediate_exit }, index as u8);
    }
    Ok(())
}
