// SPDX-License-Identifier: GPL-2.0

//! KVM_CHECK_EXTENSION: every capability of tier T0 has its value, unknown ones are 0.

use crate::prelude::*;

pub const TEST: Test = Test::new(10, run);

fn run(t: &Context) -> Outcome {
    let device = t.device()?;
    for (capability, name) in [
        (KVM_CAP_USER_MEMORY, "USER_MEMORY"),
        (KVM_CAP_SET_TSS_ADDR, "SET_TSS_ADDR"),
        (KVM_CAP_EXT_CPUID, "EXT_CPUID"),
        (KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT"),
    ] {
        check_eq!(device.check_extension(capability), Ok(1), "{name}");
    }
    let recommended = device.check_extension(KVM_CAP_NR_VCPUS)?;
    let maximum = device.check_extension(KVM_CAP_MAX_VCPUS)?;
    check!(recommended >= 1, "NR_VCPUS is {recommended}");
    check!(maximum >= recommended, "MAX_VCPUS {maximum} is below NR_VCPUS {recommended}");
    let slots = device.check_extension(KVM_CAP_NR_MEMSLOTS)?;
    check!(slots >= 32, "NR_MEMSLOTS is {slots}");
    for capability in [0x7FFF_FFFF, u32::MAX, 100_000] {
        check_eq!(device.check_extension(capability), Ok(0), "capability {capability}");
    }
    let extensions = device.check_extension(crate::rusthv::RUSTHV_CAP_EXTENSIONS)?;
    check_eq!(extensions > 0, !device.is_kvm(), "only rusthv has rusthv's extensions");
    Ok(())
}
